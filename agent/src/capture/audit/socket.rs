//! The multicast socket and the thread that keeps it empty.
//!
//! The socket's receive buffer is small (212,992 bytes unless CAP_NET_ADMIN may raise it) and the kernel drops for a full
//! one. So one thread does nothing but move datagrams to a bounded queue.

use std::{
    fs, io,
    os::fd::{AsFd as _, AsRawFd as _, IntoRawFd as _, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
    thread,
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, fcntl},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        eventfd::EventFd,
        socket::{
            AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, setsockopt, socket,
            sockopt,
        },
    },
};
use thiserror::Error;

/// AUDIT_NLGRP_READLOG is group 1 (include/uapi/linux/audit.h): bit 0 of the address's group mask.
const READLOG: u32 = 1;
const WANTED_RECEIVE_BUFFER: usize = 8 << 20;
/// Largest audit message: MAX_AUDIT_MESSAGE_LENGTH 8970 and its header.
const MOST_BYTES: usize = 16 + 8970;
/// struct nlmsghdr.
const HEADER: usize = 16;
/// Datagrams that wait for the pipeline.
const QUEUE: usize = 65_536;

#[derive(Debug, Error)]
pub enum AuditSocketError {
    #[error(
        "the audit multicast group cannot be joined: {0}. It needs CAP_AUDIT_READ in the initial user namespace and a \
         kernel with CONFIG_AUDIT"
    )]
    Join(Errno),
    #[error(
        "this is not the host's network namespace: the kernel sends audit records there only. Run with hostNetwork"
    )]
    NetworkNamespace,
    #[error("the audit reader cannot be started: {0}")]
    Thread(io::Error),
    #[error("the audit reader cannot be started: {0}")]
    Setup(Errno),
}

/// One netlink message without its header.
#[derive(Debug)]
pub struct Datagram {
    pub message_type: u16,
    pub payload: Box<[u8]>,
}

/// The reading side.
#[derive(Debug)]
pub struct AuditReader {
    pub datagrams: Receiver<Datagram>,
    pub counters: Arc<AuditCounters>,
    /// Receive buffer in force, bytes as the kernel counts them.
    pub receive_buffer: usize,
}

/// What the socket itself tells.
#[derive(Debug, Default)]
pub struct AuditCounters {
    pub received: AtomicU64,
    /// Times the kernel said ENOBUFS: at least one record was dropped for our full socket each time.
    pub overruns: AtomicU64,
    /// Records dropped because the pipeline's queue was full.
    pub queue_full: AtomicU64,
    /// Datagrams too short for a netlink header.
    pub malformed: AtomicU64,
    /// The socket failed for good.
    pub closed: AtomicBool,
}

/// Joins the group and starts the thread. `wake` is signalled when datagrams wait; the thread ends when `stop` is set.
pub fn start(wake: Arc<EventFd>, stop: Arc<AtomicBool>) -> Result<AuditReader, AuditSocketError> {
    if in_other_network_namespace() {
        return Err(AuditSocketError::NetworkNamespace);
    }
    let socket = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        SockProtocol::NetlinkAudit,
    )
    .map_err(AuditSocketError::Join)?;
    // Past net.core.rmem_max needs CAP_NET_ADMIN; without it take what is allowed.
    if setsockopt(&socket, sockopt::RcvBufForce, &WANTED_RECEIVE_BUFFER).is_err() {
        setsockopt(&socket, sockopt::RcvBuf, &WANTED_RECEIVE_BUFFER).map_err(AuditSocketError::Setup)?;
    }
    let receive_buffer = nix::sys::socket::getsockopt(&socket, sockopt::RcvBuf).unwrap_or(0);
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, READLOG)).map_err(AuditSocketError::Join)?;

    let (sender, datagrams) = sync_channel(QUEUE);
    let counters = Arc::new(AuditCounters::default());
    let thread_counters = Arc::clone(&counters);
    thread::Builder::new()
        .name("audit-reader".into())
        .spawn(move || {
            read_loop(&socket, &sender, &thread_counters, &wake, &stop);
            if fcntl(&socket, FcntlArg::F_GETFD).is_err() {
                // Somebody closed it under us: the number is another file's now or soon, and not ours to close.
                let _ = socket.into_raw_fd();
            }
        })
        .map_err(AuditSocketError::Thread)?;
    Ok(AuditReader { datagrams, counters, receive_buffer })
}

/// With the host's pid namespace, /proc/1 is the host's init. When it cannot be read, nothing is known and the bind
/// decides.
fn in_other_network_namespace() -> bool {
    let own = fs::read_link("/proc/self/ns/net");
    let host = fs::read_link("/proc/1/ns/net");
    matches!((own, host), (Ok(own), Ok(host)) if own != host)
}

fn read_loop(
    socket: &OwnedFd,
    sender: &SyncSender<Datagram>,
    counters: &AuditCounters,
    wake: &EventFd,
    stop: &AtomicBool,
) {
    let mut buffer = vec![0; MOST_BYTES];
    loop {
        if stop.load(Ordering::Relaxed) {
            // An end that was asked for is no failure of the socket.
            return;
        }
        let mut ready = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
        match poll(&mut ready, PollTimeout::from(200u16)) {
            Ok(0) | Err(Errno::EINTR) => continue,
            Ok(_) => {}
            Err(error) => {
                tracing::error!(%error, "the audit socket cannot be polled; audit records are no longer read");
                break;
            }
        }
        if !drain(socket, sender, counters, &mut buffer) {
            break;
        }
        // The counter saturating is as good as a wake-up: the pipeline has not read it yet.
        let _ = wake.write(1);
    }
    counters.closed.store(true, Ordering::Relaxed);
    let _ = wake.write(1);
}

/// Empties the socket; false when it is of no use any more.
fn drain(socket: &OwnedFd, sender: &SyncSender<Datagram>, counters: &AuditCounters, buffer: &mut [u8]) -> bool {
    loop {
        match recv(socket.as_raw_fd(), buffer, MsgFlags::empty()) {
            Ok(length) => {
                counters.received.fetch_add(1, Ordering::Relaxed);
                let bytes = &buffer[..length.min(buffer.len())];
                let Some((header, payload)) = bytes.split_at_checked(HEADER) else {
                    counters.malformed.fetch_add(1, Ordering::Relaxed);
                    continue;
                };
                // nlmsg_type; nlmsg_len is not looked at: a datagram carries one message.
                let message_type = u16::from_ne_bytes([header[4], header[5]]);
                match sender.try_send(Datagram { message_type, payload: payload.into() }) {
                    Ok(()) => {}
                    Err(TrySendError::Full(_)) => {
                        counters.queue_full.fetch_add(1, Ordering::Relaxed);
                    }
                    Err(TrySendError::Disconnected(_)) => return false,
                }
            }
            Err(Errno::EAGAIN) => return true,
            Err(Errno::EINTR) => {}
            Err(Errno::ENOBUFS) => {
                counters.overruns.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => {
                tracing::error!(%error, "the audit socket failed; audit records are no longer read");
                return false;
            }
        }
    }
}
