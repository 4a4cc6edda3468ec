//! An independent listener on the kernel's audit multicast: what the agent must agree with.

use std::{
    os::fd::{AsRawFd as _, OwnedFd},
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
};

use anyhow::{Context as _, Result, anyhow};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{
        AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, setsockopt, socket, sockopt,
    },
};

use super::{audit_record::SECCOMP, process::PATIENCE};

/// AUDIT_NLGRP_READLOG as a bit of the address's group mask (include/uapi/linux/audit.h).
const READLOG: u32 = 1;
/// struct nlmsghdr
const HEADER: usize = 16;

/// Keeps the text of every SECCOMP record from [`Observer::start`] on.
#[derive(Debug)]
pub struct Observer {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Result<()>>>,
}

#[derive(Debug, Default)]
struct Shared {
    records: Mutex<Vec<String>>,
    more: Condvar,
    /// Times that the kernel said it had to drop something for this socket.
    overflows: AtomicU64,
    stop: AtomicBool,
}

/// What was heard.
#[derive(Debug)]
pub struct Heard {
    pub records: Vec<String>,
    pub overflows: u64,
}

impl Observer {
    pub fn start() -> Result<Self> {
        let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkAudit)
            .context("audit socket")?;
        // A burst must fit while this thread waits for a processor. Needs CAP_NET_ADMIN; without it the default stays.
        let _ = setsockopt(&socket, sockopt::RcvBufForce, &(32 << 20));
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, READLOG))
            .context("joining the audit multicast (CAP_AUDIT_READ)")?;
        let shared = Arc::new(Shared::default());
        let thread = std::thread::Builder::new().name("audit-observer".into()).spawn({
            let shared = Arc::clone(&shared);
            move || listen(&socket, &shared)
        })?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Waits until `count` SECCOMP records were heard; not for ever.
    pub fn wait_for(&self, count: usize) {
        let records = self.shared.records.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.shared.more.wait_timeout_while(records, PATIENCE, |records| records.len() < count));
    }

    /// Takes what is already in the socket, then closes it.
    pub fn finish(mut self) -> Result<Heard> {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().map_err(|_| anyhow!("the audit observer panicked"))??;
        }
        Ok(Heard {
            records: std::mem::take(&mut *self.shared.records.lock().unwrap_or_else(PoisonError::into_inner)),
            overflows: self.shared.overflows.load(Ordering::Relaxed),
        })
    }
}

fn listen(socket: &OwnedFd, shared: &Shared) -> Result<()> {
    use std::os::fd::AsFd as _;
    let mut buffer = vec![0; 64 << 10];
    loop {
        // Read before the poll: a record that came before it is then certainly seen.
        let stopping = shared.stop.load(Ordering::Relaxed);
        let mut ready = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
        let events = match poll(&mut ready, PollTimeout::from(100_u16)) {
            Err(Errno::EINTR) => continue,
            other => other.context("poll")?,
        };
        if events == 0 {
            if stopping {
                return Ok(());
            }
            continue;
        }
        match recv(socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
            Ok(length) => keep(&buffer[..length], shared),
            Err(Errno::ENOBUFS) => {
                shared.overflows.fetch_add(1, Ordering::Relaxed);
            }
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(errno) => return Err(errno).context("audit socket"),
        }
    }
}

/// One datagram is one record. The header's length counts the payload only (a quirk of kauditd's multicast), so the
/// datagram's own length is used.
fn keep(datagram: &[u8], shared: &Shared) {
    let Some((header, payload)) = datagram.split_at_checked(HEADER) else { return };
    if u16::from_ne_bytes([header[4], header[5]]) == SECCOMP {
        let text = String::from_utf8_lossy(payload).trim_end_matches('\0').to_owned();
        shared.records.lock().unwrap_or_else(PoisonError::into_inner).push(text);
        shared.more.notify_all();
    }
}
