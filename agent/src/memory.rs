//! Memory back to the kernel: after the start, where reading the kernel's types takes tens of MiB for a moment, and after a
//! storm. The allocator would keep it for the next time, which may never come.

/// Records since the last look from which on it is a storm.
const STORM: usize = 1_000;

/// Of one thread: what a thread freed, only it can give back.
#[derive(Debug, Default)]
pub struct Storms {
    under_way: bool,
}

// === impl Storms ===

impl Storms {
    /// Call it about once a second, with how many records the thread handled since.
    pub fn look(&mut self, records: usize) {
        if records >= STORM {
            self.under_way = true;
        } else if std::mem::take(&mut self.under_way) {
            give_back();
        }
    }
}

/// No transparent huge pages: the allocator asks for them, and each of a few threads would hold two MiB for some KiB.
pub fn small_pages() {
    if let Err(error) = nix::sys::prctl::set_thp_disable(true) {
        tracing::debug!(%error, "huge pages stay allowed");
    }
}

/// What this thread has freed.
pub fn give_back() {
    // SAFETY: may be called at any time by any thread; it touches free memory only. In programs with another allocator
    // there is none.
    unsafe { libmimalloc_sys::mi_collect(true) }
}
