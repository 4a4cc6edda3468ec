//! The one way out of the kernel: count, number, stamp, hand over, count again.

use aya_ebpf::{
    helpers::generated::{bpf_get_smp_processor_id, bpf_ktime_get_boot_ns},
    macros::map,
    maps::{PerCpuArray, RingBuf},
};
use seclog_abi::{Counters, Header, program};

/// Fork, exec, exit and cgroups. The agent sets the size.
#[map]
pub(crate) static LINEAGE: RingBuf = RingBuf::with_byte_size(4 << 20, 0);

/// Seccomp verdicts. A ring of their own, so that a storm of verdicts cannot cost lineage.
#[map]
pub(crate) static VERDICTS: RingBuf = RingBuf::with_byte_size(4 << 20, 0);

#[map]
static COUNTERS: PerCpuArray<Counters> = PerCpuArray::with_max_entries(program::COUNT, 0);

/// This CPU's counters of a program.
#[inline(always)]
pub(crate) fn counters(program: u32) -> Option<&'static mut Counters> {
    // SAFETY: the entry is this CPU's, and a program does not interrupt itself on one CPU (the kernel counts that as a
    // recursion miss and skips it), so nobody else holds it.
    COUNTERS.get_ptr_mut(program).map(|counters| unsafe { &mut *counters })
}

/// Counts one event as seen and makes its header.
#[inline(always)]
pub(crate) fn begin(counters: &mut Counters, kind: u32) -> Header {
    counters.seen += 1;
    Header {
        kind,
        // SAFETY: helpers without arguments.
        cpu: unsafe { bpf_get_smp_processor_id() } as u32,
        sequence: counters.seen,
        time_boot_ns: unsafe { bpf_ktime_get_boot_ns() },
    }
}

/// Hands a record of a fixed size over. False when the ring is full; the caller counts what becomes of it then.
#[inline(always)]
pub(crate) fn submit<T: 'static>(ring: &RingBuf, counters: &mut Counters, fill: impl FnOnce(*mut T)) -> bool {
    match ring.reserve::<T>(0) {
        Some(mut entry) => {
            fill(entry.as_mut_ptr());
            entry.submit(0);
            counters.submitted += 1;
            true
        }
        None => false,
    }
}

/// Hands the first `length` bytes of `record` over, or counts it as dropped.
///
/// # Safety
/// `record` has that many initialised bytes.
#[inline(always)]
pub(crate) unsafe fn submit_bytes(ring: &RingBuf, counters: &mut Counters, record: *const u8, length: usize) {
    // SAFETY: by this function's own promise.
    let bytes = unsafe { core::slice::from_raw_parts(record, length) };
    match ring.output::<[u8]>(bytes, 0) {
        Ok(()) => counters.submitted += 1,
        Err(_) => counters.dropped += 1,
    }
}
