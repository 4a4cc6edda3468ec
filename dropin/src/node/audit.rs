//! The kernel's audit status, by one AUDIT_GET. It reads and changes nothing; it needs CAP_AUDIT_CONTROL, and without
//! it the status is unknown.

use std::os::fd::AsRawFd;

use nix::sys::{
    socket::{
        AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, setsockopt, socket,
        sockopt,
    },
    time::{TimeVal, TimeValLike},
};

use super::root::Root;
use crate::facts::{Audit, AuditStatus, Known};

/// linux/audit.h, linux/netlink.h
const AUDIT_GET: u16 = 1000;
const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 1;
const HEADER: usize = 16;
const SEQUENCE: u32 = 1;

/// Asks the kernel, if the root belongs to this machine.
pub(crate) fn status(root: &Root) -> Audit {
    if !root.is_this_machine() {
        return Known::No("the root is not that of this machine".into());
    }
    match ask() {
        Ok(status) => Known::Yes(status),
        Err(nix::Error::EPERM) => Known::No("the kernel answers only with CAP_AUDIT_CONTROL".into()),
        Err(error) => Known::No(format!("AUDIT_GET: {error}")),
    }
}

fn ask() -> nix::Result<AuditStatus> {
    let fd = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkAudit)?;
    setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::seconds(2))?;
    sendto(fd.as_raw_fd(), &request(), &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
    let mut buffer = [0; 8192];
    // Nothing else is expected on a socket in no group, but a stray message must not end in an endless loop.
    for _ in 0..8 {
        let length = recv(fd.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        if let Some(answer) = buffer.get(..length).and_then(answer) {
            return answer;
        }
    }
    Err(nix::Error::ENOMSG)
}

fn request() -> Vec<u8> {
    let mut message = Vec::with_capacity(HEADER);
    message.extend((HEADER as u32).to_ne_bytes());
    message.extend(AUDIT_GET.to_ne_bytes());
    message.extend(NLM_F_REQUEST.to_ne_bytes());
    message.extend(SEQUENCE.to_ne_bytes());
    message.extend(0u32.to_ne_bytes());
    message
}

/// `None`: not the answer.
fn answer(message: &[u8]) -> Option<nix::Result<AuditStatus>> {
    let word = |at: usize| Some(u32::from_ne_bytes(message.get(at..at + 4)?.try_into().ok()?));
    let kind = u16::from_ne_bytes(message.get(4..6)?.try_into().ok()?);
    match kind {
        NLMSG_ERROR => {
            let code = word(HEADER)?.cast_signed();
            Some(Err(nix::Error::from_raw(code.wrapping_neg())))
        }
        // struct audit_status: mask, enabled, failure, pid, rate_limit, backlog_limit, lost, backlog, …
        AUDIT_GET => Some(Ok(AuditStatus {
            enabled: word(HEADER + 4)?,
            pid: word(HEADER + 12)?,
            backlog_limit: word(HEADER + 20)?,
            lost: word(HEADER + 24)?,
            backlog: word(HEADER + 28)?,
        })),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, words: &[u32]) -> Vec<u8> {
        let mut message = request();
        message[4..6].copy_from_slice(&kind.to_ne_bytes());
        message.extend(words.iter().flat_map(|w| w.to_ne_bytes()));
        message
    }

    #[test]
    fn an_answer_is_read_by_its_place_and_a_short_one_is_none() {
        let words = [0, 1, 1, 4242, 0, 8192, 7, 3];
        let expected = AuditStatus { enabled: 1, pid: 4242, backlog_limit: 8192, lost: 7, backlog: 3 };
        assert_eq!(answer(&message(AUDIT_GET, &words)), Some(Ok(expected)));
        assert_eq!(answer(&message(AUDIT_GET, &words[..4])), None);
        assert_eq!(answer(&[]), None);
    }

    #[test]
    fn a_refusal_is_an_error() {
        let refusal = message(NLMSG_ERROR, &[(-1i32).cast_unsigned()]);
        assert_eq!(answer(&refusal), Some(Err(nix::Error::EPERM)));
    }
}
