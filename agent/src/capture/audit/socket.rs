//! The multicast socket and the thread that keeps it empty.
//!
//! The socket's receive buffer is small (212,992 bytes unless CAP_NET_ADMIN may raise it) and the kernel drops for a full
//! one. So one thread does nothing but parse what comes and put it into a bounded queue. A parsed record takes a third of
//! its text; of records of other types only the serial number is of use, and they do not wait at all.

use std::{
    fs, io,
    os::fd::{AsFd as _, AsRawFd as _, IntoRawFd as _, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
        mpsc::{Receiver, Sender, channel},
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

use super::{AUDIT_SECCOMP, AuditRecord, SerialGaps, parse, stamp};
use crate::{clock, throttle::Throttle};

/// AUDIT_NLGRP_READLOG is group 1 (include/uapi/linux/audit.h): bit 0 of the address's group mask.
const READLOG: u32 = 1;
const WANTED_RECEIVE_BUFFER: usize = 8 << 20;
/// Largest audit message: MAX_AUDIT_MESSAGE_LENGTH 8970 and its header.
const MOST_BYTES: usize = 16 + 8970;
/// struct nlmsghdr.
const HEADER: usize = 16;
/// Records that wait for the pipeline, bytes: some 90,000 of ordinary ones.
const MOST_WAITING: usize = 16 << 20;
/// A line for a record that cannot be parsed once in so many nanoseconds.
const TELL_EVERY_NS: u64 = 10_000_000_000;

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

/// The reading side.
#[derive(Debug)]
pub struct AuditReader {
    records: Receiver<AuditRecord>,
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
    /// Records of type SECCOMP that could not be parsed.
    pub malformed_records: AtomicU64,
    /// Serial numbers that never came.
    pub serial_gaps: AtomicU64,
    /// Bytes of the records that wait.
    waiting: AtomicUsize,
    /// The socket failed for good.
    pub closed: AtomicBool,
}

// === impl AuditReader ===

impl AuditReader {
    /// The next record that waits.
    pub fn next(&self) -> Option<AuditRecord> {
        let record = self.records.try_recv().ok()?;
        self.counters.waiting.fetch_sub(room(&record), Ordering::Relaxed);
        Some(record)
    }
}

/// What a record takes while it waits, bytes; shared texts are counted for each.
fn room(record: &AuditRecord) -> usize {
    size_of::<AuditRecord>() + record.exe.len() + record.subj.len()
}

#[allow(clippy::disallowed_methods, reason = "its bound is MOST_WAITING, in bytes")]
fn queue() -> (Sender<AuditRecord>, Receiver<AuditRecord>) {
    channel()
}

/// Joins the group and starts the thread. `wake` is signalled when records wait; the thread ends when `stop` is set.
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

    let (sender, records) = queue();
    let counters = Arc::new(AuditCounters::default());
    let mut reader = Reader {
        sender,
        counters: Arc::clone(&counters),
        gaps: SerialGaps::default(),
        malformed: Throttle::new(TELL_EVERY_NS),
        exe: Arc::default(),
        subj: Arc::default(),
    };
    thread::Builder::new()
        .name("audit-reader".into())
        .spawn(move || {
            reader.run(&socket, &wake, &stop);
            if fcntl(&socket, FcntlArg::F_GETFD).is_err() {
                // Somebody closed it under us: the number is another file's now or soon, and not ours to close.
                let _ = socket.into_raw_fd();
            }
        })
        .map_err(AuditSocketError::Thread)?;
    Ok(AuditReader { records, counters, receive_buffer })
}

/// With the host's pid namespace, /proc/1 is the host's init. When it cannot be read, nothing is known and the bind
/// decides.
fn in_other_network_namespace() -> bool {
    let own = fs::read_link("/proc/self/ns/net");
    let host = fs::read_link("/proc/1/ns/net");
    matches!((own, host), (Ok(own), Ok(host)) if own != host)
}

/// The thread's side.
struct Reader {
    sender: Sender<AuditRecord>,
    counters: Arc<AuditCounters>,
    gaps: SerialGaps,
    malformed: Throttle,
    /// Of the last record: most have the same as the one before, and share it.
    exe: Arc<str>,
    subj: Arc<str>,
}

// === impl Reader ===

impl Reader {
    fn run(&mut self, socket: &OwnedFd, wake: &EventFd, stop: &AtomicBool) {
        let mut buffer = vec![0; MOST_BYTES];
        loop {
            if stop.load(Ordering::Relaxed) {
                // An end that was asked for is no failure of the socket.
                return;
            }
            let mut ready = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
            let came = match poll(&mut ready, PollTimeout::from(500u16)) {
                Err(Errno::EINTR) => continue,
                Ok(count) => count > 0,
                Err(error) => {
                    tracing::error!(%error, "the audit socket cannot be polled; audit records are no longer read");
                    break;
                }
            };
            if came && !self.drain(socket, &mut buffer) {
                break;
            }
            self.counters.serial_gaps.fetch_add(self.gaps.take_lost(clock::boot_ns()), Ordering::Relaxed);
            if came {
                // The counter saturating is as good as a wake-up: the pipeline has not read it yet.
                let _ = wake.write(1);
            }
        }
        self.counters.closed.store(true, Ordering::Relaxed);
        let _ = wake.write(1);
    }

    /// Empties the socket; false when it is of no use any more.
    fn drain(&mut self, socket: &OwnedFd, buffer: &mut [u8]) -> bool {
        loop {
            match recv(socket.as_raw_fd(), buffer, MsgFlags::empty()) {
                Ok(length) => {
                    self.counters.received.fetch_add(1, Ordering::Relaxed);
                    let bytes = &buffer[..length.min(buffer.len())];
                    let Some((header, payload)) = bytes.split_at_checked(HEADER) else {
                        self.counters.malformed.fetch_add(1, Ordering::Relaxed);
                        continue;
                    };
                    // nlmsg_type; nlmsg_len is not looked at: a datagram carries one message.
                    let message_type = u16::from_ne_bytes([header[4], header[5]]);
                    if !self.take(message_type, payload) {
                        return false;
                    }
                }
                Err(Errno::EAGAIN) => return true,
                Err(Errno::EINTR) => {}
                Err(Errno::ENOBUFS) => {
                    self.counters.overruns.fetch_add(1, Ordering::Relaxed);
                }
                Err(error) => {
                    tracing::error!(%error, "the audit socket failed; audit records are no longer read");
                    return false;
                }
            }
        }
    }

    /// One record of any type; false when nobody takes records any more.
    fn take(&mut self, message_type: u16, payload: &[u8]) -> bool {
        // Records of every type share the numbering. What is dropped below did come, and is told as dropped.
        if let Ok((time, _)) = stamp(payload) {
            self.gaps.saw(time.serial, clock::boot_ns());
        }
        if message_type != AUDIT_SECCOMP {
            return true;
        }
        let mut record = match parse(payload) {
            Ok(record) => record,
            Err(error) => {
                let total = self.counters.malformed_records.fetch_add(1, Ordering::Relaxed) + 1;
                if self.malformed.allows(clock::boot_ns()) {
                    let text = seclog_proto::text::from_bytes(payload);
                    tracing::warn!(%error, record = ?text, total, "an audit record was skipped");
                }
                return true;
            }
        };
        share(&mut record.exe, &mut self.exe);
        share(&mut record.subj, &mut self.subj);
        let room = room(&record);
        if self.counters.waiting.load(Ordering::Relaxed) + room > MOST_WAITING {
            self.counters.queue_full.fetch_add(1, Ordering::Relaxed);
            return true;
        }
        self.counters.waiting.fetch_add(room, Ordering::Relaxed);
        self.sender.send(record).is_ok()
    }
}

/// Uses the last text again where it is the same.
fn share(text: &mut Arc<str>, last: &mut Arc<str>) {
    if *text == *last {
        *text = Arc::clone(last);
    } else {
        *last = Arc::clone(text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECORD: &str = "audit(1759308472.123:%): auid=4294967295 uid=0 gid=0 ses=4294967295 subj=kernel pid=9 comm=\"sh\" \
        exe=\"/usr/bin/sh\" sig=0 arch=c000003e syscall=59 compat=0 ip=0x40828e code=0x7ffc0000";

    fn reader() -> (Reader, AuditReader) {
        let (sender, records) = queue();
        let counters = Arc::new(AuditCounters::default());
        let reader = Reader {
            sender,
            counters: Arc::clone(&counters),
            gaps: SerialGaps::default(),
            malformed: Throttle::new(TELL_EVERY_NS),
            exe: Arc::default(),
            subj: Arc::default(),
        };
        (reader, AuditReader { records, counters, receive_buffer: 0 })
    }

    fn take(reader: &mut Reader, message_type: u16, serial: u64) {
        assert!(reader.take(message_type, RECORD.replace('%', &serial.to_string()).as_bytes()));
    }

    #[test]
    fn what_the_queue_has_no_room_for_is_counted_once_and_is_no_gap() {
        let (mut reader, side) = reader();
        let most = (MOST_WAITING / room(&parse(RECORD.replace('%', "1").as_bytes()).unwrap())) as u64;
        (1..=most + 10).for_each(|serial| take(&mut reader, AUDIT_SECCOMP, serial));
        assert_eq!(side.counters.queue_full.load(Ordering::Relaxed), 10);
        assert_eq!(reader.gaps.take_lost(u64::MAX), 0);

        // As soon as one was taken there is room again.
        assert_eq!(side.next().unwrap().time.serial, 1);
        take(&mut reader, AUDIT_SECCOMP, most + 11);
        assert_eq!(std::iter::from_fn(|| side.next()).count() as u64, most);
        assert_eq!(side.counters.waiting.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn records_of_other_types_count_in_the_numbering_and_do_not_wait() {
        let (mut reader, side) = reader();
        for (message_type, serial) in [(AUDIT_SECCOMP, 1), (1300, 2), (1327, 2), (AUDIT_SECCOMP, 5)] {
            take(&mut reader, message_type, serial);
        }
        assert_eq!(std::iter::from_fn(|| side.next()).map(|record| record.time.serial).collect::<Vec<_>>(), [1, 5]);
        assert_eq!(reader.gaps.take_lost(u64::MAX), 2);
    }

    #[test]
    fn a_record_that_cannot_be_parsed_is_counted_and_the_next_one_kept() {
        let (mut reader, side) = reader();
        assert!(reader.take(AUDIT_SECCOMP, b"audit(1.000:1): pid=x"));
        take(&mut reader, AUDIT_SECCOMP, 2);
        assert_eq!(side.counters.malformed_records.load(Ordering::Relaxed), 1);
        assert!(side.next().is_some() && side.next().is_none());
    }

    #[test]
    fn records_of_one_program_share_its_path() {
        let (mut reader, side) = reader();
        (1..=2).for_each(|serial| take(&mut reader, AUDIT_SECCOMP, serial));
        let (one, other) = (side.next().unwrap(), side.next().unwrap());
        assert!(Arc::ptr_eq(&one.exe, &other.exe) && Arc::ptr_eq(&one.subj, &other.subj));
    }
}
