//! Requests to the kernel's audit subsystem: what stands, what is listed, one rule added or deleted.
//!
//! The only place of seclog that can change the kernel's audit settings. There is no request here that sets the audit
//! pid, the enabled flag or a limit.

use std::{
    fmt, fs,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{
        AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recvfrom, sendto, socket,
    },
};
use thiserror::Error;

use super::rule::Rule;

/// Message and record types (include/uapi/linux/audit.h).
const GET: u16 = 1000;
const ADD_RULE: u16 = 1011;
const DEL_RULE: u16 = 1012;
const LIST_RULES: u16 = 1013;
pub(super) const SECCOMP: u16 = 1326;

/// struct nlmsghdr: length, type, flags, sequence, port.
const HEADER: usize = 16;
/// NLMSG_ERROR, also the acknowledgement; NLMSG_DONE (include/uapi/linux/netlink.h).
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// NLM_F_REQUEST | NLM_F_ACK.
const REQUEST: u16 = 0x1 | 0x4;
/// MAX_AUDIT_MESSAGE_LENGTH and its header.
const MOST_BYTES: usize = HEADER + 8970;
/// audit_status.enabled of `auditctl -e 2`.
const LOCKED: u32 = 2;
/// The kernel answers at once, lists from a thread of its own.
const PATIENCE: Duration = Duration::from_secs(5);

/// CAP_AUDIT_CONTROL (include/uapi/linux/capability.h).
const CAP_AUDIT_CONTROL: u32 = 30;
/// PROC_PID_INIT_INO (include/linux/proc_ns.h): the initial pid namespace has this inode number on every kernel.
const INITIAL_PID_NAMESPACE: &str = "pid:[4026531836]";

/// What was asked of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    Open,
    Status,
    ListRules,
    AddRule,
    DeleteRule,
}

/// Names what could not be done, why, and what helps.
#[derive(Debug, Error)]
pub enum AuditError {
    #[error("{0}: CAP_AUDIT_CONTROL is missing. Give it to the agent's container, or leave quiet mode off")]
    Capability(Request),
    #[error("{0}: audit settings can only be reached from the initial pid and user namespaces. Run with hostPID")]
    Namespace(Request),
    #[error("{0}: the kernel has no audit netlink (CONFIG_AUDIT, or audit=0 on its command line)")]
    NoAudit(Request),
    #[error("{0}: the audit rules are immutable (auditctl -e 2) until the next boot")]
    Immutable(Request),
    #[error("{0}: such a rule is there already")]
    Exists(Request),
    #[error("{0}: there is no such rule")]
    NoSuchRule(Request),
    #[error("{0}: the kernel answered {1}")]
    Refused(Request, Errno),
    #[error("{0}: the kernel did not answer within {PATIENCE:?}")]
    Silent(Request),
    #[error("{0}: the answer cannot be read")]
    Malformed(Request),
    #[error("{0}: {1}")]
    Socket(Request, Errno),
}

/// struct audit_status, of it what matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    /// Rules cannot be changed until the next boot.
    pub immutable: bool,
    /// Process that gets the records by unicast (auditd). 0: none.
    pub daemon_pid: u32,
    /// Records of any type that the kernel could not hand on since boot.
    pub lost: u32,
}

/// A socket for requests.
#[derive(Debug)]
pub struct AuditControl {
    socket: OwnedFd,
    sequence: u32,
}

/// One netlink message.
struct Message<'a> {
    message_type: u16,
    sequence: u32,
    payload: &'a [u8],
}

// === impl Request ===

impl fmt::Display for Request {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Open => "the audit netlink cannot be opened",
            Self::Status => "the state of audit cannot be read",
            Self::ListRules => "the audit rules cannot be listed",
            Self::AddRule => "the audit rule cannot be added",
            Self::DeleteRule => "the audit rule cannot be deleted",
        })
    }
}

// === impl AuditError ===

impl AuditError {
    /// What an error number means as the answer to a request. EPERM has several causes, told apart by what this process
    /// is; an immutable configuration is looked at before anything is changed, and here for a change in between.
    fn answered(request: Request, errno: Errno, immutable: bool) -> Self {
        match errno {
            Errno::EEXIST => Self::Exists(request),
            Errno::ENOENT => Self::NoSuchRule(request),
            // kernel/audit.c, audit_netlink_ok: another user namespace.
            Errno::ECONNREFUSED => Self::Namespace(request),
            Errno::EPERM if !has_capability(CAP_AUDIT_CONTROL) => Self::Capability(request),
            Errno::EPERM if !in_initial_pid_namespace() => Self::Namespace(request),
            Errno::EPERM if immutable => Self::Immutable(request),
            other => Self::Refused(request, other),
        }
    }
}

// === impl AuditControl ===

impl AuditControl {
    pub fn open() -> Result<Self, AuditError> {
        let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkAudit)
            .map_err(|errno| match errno {
                Errno::EPROTONOSUPPORT => AuditError::NoAudit(Request::Open),
                other => AuditError::Socket(Request::Open, other),
            })?;
        // No groups: this socket hears answers only.
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0)).map_err(|errno| AuditError::Socket(Request::Open, errno))?;
        Ok(Self { socket, sequence: 0 })
    }

    pub fn status(&mut self) -> Result<Status, AuditError> {
        let mut status = None;
        self.ask(Request::Status, GET, &[], &mut |message| {
            if message.message_type == GET {
                // mask, enabled, failure, pid, rate_limit, backlog_limit, lost, …
                status = Some((word(message.payload, 4), word(message.payload, 12), word(message.payload, 24)));
            }
            message.message_type == GET
        })?;
        match status {
            Some((Some(enabled), Some(daemon_pid), Some(lost))) => {
                Ok(Status { immutable: enabled == LOCKED, daemon_pid, lost })
            }
            _ => Err(AuditError::Malformed(Request::Status)),
        }
    }

    /// Every rule of every list that this version can read.
    pub fn rules(&mut self) -> Result<Vec<Rule>, AuditError> {
        let mut rules = Vec::new();
        self.ask(Request::ListRules, LIST_RULES, &[], &mut |message| {
            if message.message_type == LIST_RULES {
                rules.extend(Rule::decode(message.payload));
            }
            message.message_type == DONE
        })?;
        Ok(rules)
    }

    pub fn add(&mut self, rule: &Rule) -> Result<(), AuditError> {
        self.change(Request::AddRule, ADD_RULE, rule)
    }

    pub fn delete(&mut self, rule: &Rule) -> Result<(), AuditError> {
        self.change(Request::DeleteRule, DEL_RULE, rule)
    }

    fn change(&mut self, request: Request, message_type: u16, rule: &Rule) -> Result<(), AuditError> {
        // The acknowledgement is all that comes.
        match self.ask(request, message_type, &rule.encode(), &mut |_| true) {
            Err(AuditError::Refused(_, Errno::EPERM)) => {
                let immutable = self.status().is_ok_and(|status| status.immutable);
                Err(AuditError::answered(request, Errno::EPERM, immutable))
            }
            other => other,
        }
    }

    /// Sends a request and gives its answers to `take` until that says that it has all, and the acknowledgement came.
    fn ask(
        &mut self,
        request: Request,
        message_type: u16,
        payload: &[u8],
        take: &mut dyn FnMut(&Message<'_>) -> bool,
    ) -> Result<(), AuditError> {
        self.sequence = self.sequence.wrapping_add(1);
        let bytes = encode(message_type, self.sequence, payload);
        let kernel = NetlinkAddr::new(0, 0);
        sendto(self.socket.as_raw_fd(), &bytes, &kernel, MsgFlags::empty()).map_err(|errno| match errno {
            // What the kernel checks while sending is told by send itself.
            Errno::ECONNREFUSED => AuditError::answered(request, errno, false),
            other => AuditError::Socket(request, other),
        })?;
        let deadline = Instant::now() + PATIENCE;
        // A change has no answer but the acknowledgement.
        let mut complete = matches!(request, Request::AddRule | Request::DeleteRule);
        let mut acknowledged = false;
        let mut buffer = vec![0; MOST_BYTES];
        while !(complete && acknowledged) {
            let length = self.receive(request, &mut buffer, deadline)?;
            let mut rest = &buffer[..length];
            while let Some((message, behind)) = next_message(rest) {
                rest = behind;
                // Of a former request that was given up.
                if message.sequence != self.sequence {
                    continue;
                }
                if message.message_type == ERROR {
                    match word(message.payload, 0) {
                        Some(0) => acknowledged = true,
                        Some(error) => {
                            let errno = Errno::from_raw((error as i32).wrapping_neg());
                            return Err(AuditError::answered(request, errno, false));
                        }
                        None => return Err(AuditError::Malformed(request)),
                    }
                } else {
                    complete |= take(&message);
                }
            }
        }
        Ok(())
    }

    /// The next datagram of the kernel's: other processes may send to a netlink socket, too.
    fn receive(&self, request: Request, buffer: &mut [u8], deadline: Instant) -> Result<usize, AuditError> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(AuditError::Silent(request));
            }
            let mut ready = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
            match poll(&mut ready, PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO)) {
                // Less than a millisecond left rounds to none.
                Ok(0) => return Err(AuditError::Silent(request)),
                Err(Errno::EINTR) => continue,
                Ok(_) => {}
                Err(errno) => return Err(AuditError::Socket(request, errno)),
            }
            match recvfrom::<NetlinkAddr>(self.socket.as_raw_fd(), buffer) {
                Ok((length, Some(sender))) if sender.pid() == 0 => return Ok(length.min(buffer.len())),
                Ok(_) | Err(Errno::EINTR | Errno::EAGAIN) => {}
                Err(errno) => return Err(AuditError::Socket(request, errno)),
            }
        }
    }
}

/// The 32 bits at `offset`, in the machine's order.
pub(super) fn word(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(offset..)?.first_chunk()?))
}

fn encode(message_type: u16, sequence: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER + payload.len());
    bytes.extend(((HEADER + payload.len()) as u32).to_ne_bytes());
    bytes.extend(message_type.to_ne_bytes());
    bytes.extend(REQUEST.to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    // Port: the kernel knows it.
    bytes.extend(0u32.to_ne_bytes());
    bytes.extend(payload);
    bytes
}

/// Splits off the first message of a datagram.
fn next_message(bytes: &[u8]) -> Option<(Message<'_>, &[u8])> {
    let length = usize::try_from(word(bytes, 0)?).ok()?;
    if length < HEADER || length > bytes.len() {
        return None;
    }
    let message = Message {
        message_type: u16::from_ne_bytes([bytes[4], bytes[5]]),
        sequence: word(bytes, 8)?,
        payload: &bytes[HEADER..length],
    };
    // NLMSG_ALIGN
    Some((message, bytes.get(length.next_multiple_of(4)..).unwrap_or_default()))
}

/// Whether this process has a capability in effect. When it cannot be told, that it has: the error number speaks then.
fn has_capability(capability: u32) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    effective.and_then(|text| u64::from_str_radix(text.trim(), 16).ok()).is_none_or(|set| set & (1 << capability) != 0)
}

fn in_initial_pid_namespace() -> bool {
    fs::read_link("/proc/self/ns/pid").map_or(true, |link| link.as_os_str() == INITIAL_PID_NAMESPACE)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{AuditError, Errno, Request, encode, next_message, word};

    #[test]
    fn a_request_is_one_message() {
        let bytes = encode(1000, 7, b"ab");
        let (message, rest) = next_message(&bytes).unwrap();
        assert_eq!((message.message_type, message.sequence, message.payload), (1000, 7, b"ab".as_slice()));
        assert_eq!((word(&bytes, 0), rest.len()), (Some(18), 0));
    }

    #[test]
    fn messages_of_one_datagram_are_split_at_four_bytes() {
        let mut bytes = encode(1, 1, b"abcde");
        bytes.extend([0; 3]);
        bytes.extend(encode(2, 2, b""));
        let (first, rest) = next_message(&bytes).unwrap();
        let (second, rest) = next_message(rest).unwrap();
        assert_eq!((first.payload, second.message_type), (b"abcde".as_slice(), 2));
        assert!(next_message(rest).is_none());
    }

    #[test]
    fn an_error_says_what_to_do() {
        let error = |errno| AuditError::answered(Request::AddRule, errno, false).to_string();
        assert_eq!(error(Errno::EEXIST), "the audit rule cannot be added: such a rule is there already");
        assert!(error(Errno::ECONNREFUSED).contains("hostPID"));
        let text = AuditError::answered(Request::AddRule, Errno::EPERM, true).to_string();
        // Without the capability, as in an ordinary user's test run, that comes first.
        assert!(text.contains("immutable") || text.contains("CAP_AUDIT_CONTROL") || text.contains("hostPID"), "{text}");
    }

    proptest! {
        #[test]
        fn any_datagram_ends(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut rest = bytes.as_slice();
            while let Some((_, behind)) = next_message(rest) {
                prop_assert!(behind.len() < rest.len());
                rest = behind;
            }
        }
    }
}
