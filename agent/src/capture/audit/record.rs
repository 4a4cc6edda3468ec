//! The text of a type 1326 record, parsed whole.
//!
//! `audit(<seconds>.<milliseconds>:<serial>): ` and then `key=value` pairs. Values that a process could choose (comm, exe)
//! come in double quotes, or as bare hexadecimal when they hold a quote, a space, a control character or a byte above
//! 0x7e (audit_log_untrustedstring and audit_string_contains_control, kernel/audit.c); `(null)` stands for none.

use std::{borrow::Cow, sync::Arc};

use seclog_proto::text;
use thiserror::Error;

use crate::lineage::Comm;

/// When the kernel made the record (coarse clock: up to one tick early), and its serial number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct AuditTime {
    pub unix_ms: u64,
    pub serial: u64,
}

/// audit_seccomp_actions_logged aside, every field that audit_seccomp and audit_log_task write (kernel/auditsc.c).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AuditRecord {
    pub time: AuditTime,
    /// Login uid and session; 4294967295: unset.
    pub auid: u32,
    pub ses: u32,
    pub uid: u32,
    pub gid: u32,
    /// LSM context of the subject; empty without an LSM.
    pub subj: Arc<str>,
    /// The thread group id, in spite of its name.
    pub pid: u32,
    pub comm: Comm,
    pub exe: Arc<str>,
    pub sig: i32,
    pub arch: u32,
    pub syscall: i64,
    pub compat: bool,
    pub ip: u64,
    /// SECCOMP_RET_* action and data.
    pub code: u32,
}

/// What is wrong, and the byte where.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ParseError {
    #[error("byte {0}: the record does not begin with audit(<seconds>.<milliseconds>:<serial>):")]
    Stamp(usize),
    #[error("byte {at}: {key} is not {expected}")]
    Value { at: usize, key: &'static str, expected: &'static str },
    #[error("{0} is missing")]
    Missing(&'static str),
}

/// The time and serial at the start of any record, and the length of that part.
pub fn stamp(payload: &[u8]) -> Result<(AuditTime, usize), ParseError> {
    let rest = payload.strip_prefix(b"audit(").ok_or(ParseError::Stamp(0))?;
    let end = rest.iter().position(|byte| *byte == b')').ok_or(ParseError::Stamp(6))?;
    let inside = &rest[..end];
    let dot = inside.iter().position(|byte| *byte == b'.').ok_or(ParseError::Stamp(6))?;
    let colon = inside.iter().position(|byte| *byte == b':').ok_or(ParseError::Stamp(6))?;
    if colon < dot {
        return Err(ParseError::Stamp(6));
    }
    let seconds = decimal(&inside[..dot]).ok_or(ParseError::Stamp(6))?;
    let milliseconds = decimal(&inside[dot + 1..colon]).ok_or(ParseError::Stamp(7 + dot))?;
    let serial = decimal(&inside[colon + 1..]).ok_or(ParseError::Stamp(7 + colon))?;
    let unix_ms = seconds
        .checked_mul(1000)
        .and_then(|whole| whole.checked_add(milliseconds))
        .filter(|_| milliseconds < 1000)
        .ok_or(ParseError::Stamp(6))?;
    let mut length = 6 + end + 1;
    if payload.get(length) != Some(&b':') {
        return Err(ParseError::Stamp(length));
    }
    length += 1;
    Ok((AuditTime { unix_ms, serial }, length))
}

/// Parses the payload of a type 1326 record. Unknown keys are passed over; `subj` may be absent.
pub fn parse(payload: &[u8]) -> Result<AuditRecord, ParseError> {
    let (time, start) = stamp(payload)?;
    let mut record = AuditRecord { time, ..Default::default() };
    let mut seen = 0u16;
    let mut at = start;
    while let Some(pair) = next_pair(payload, &mut at) {
        let number = |expected: &'static str, key: &'static str, radix: u32| {
            number(pair.value, radix).ok_or(ParseError::Value { at: pair.at, key, expected })
        };
        let bytes_value = |key: &'static str| {
            untrusted(pair.value).ok_or(ParseError::Value { at: pair.at, key, expected: "quoted text or hexadecimal" })
        };
        const ID: &str = "a 32-bit number";
        let bit = match pair.key {
            b"auid" => {
                record.auid = small(number(ID, "auid", 10)?, pair.at, "auid")?;
                FIELD_AUID
            }
            b"uid" => {
                record.uid = small(number(ID, "uid", 10)?, pair.at, "uid")?;
                FIELD_UID
            }
            b"gid" => {
                record.gid = small(number(ID, "gid", 10)?, pair.at, "gid")?;
                FIELD_GID
            }
            b"ses" => {
                record.ses = small(number(ID, "ses", 10)?, pair.at, "ses")?;
                FIELD_SES
            }
            b"pid" => {
                record.pid = small(number(ID, "pid", 10)?, pair.at, "pid")?;
                FIELD_PID
            }
            b"arch" => {
                record.arch = small(number("a 32-bit hexadecimal number", "arch", 16)?, pair.at, "arch")?;
                FIELD_ARCH
            }
            b"code" => {
                record.code = small(number("a 32-bit hexadecimal number", "code", 16)?, pair.at, "code")?;
                FIELD_CODE
            }
            b"ip" => {
                record.ip = number("a hexadecimal number", "ip", 16)?;
                FIELD_IP
            }
            b"compat" => {
                record.compat = number("0 or 1", "compat", 10)? != 0;
                FIELD_COMPAT
            }
            b"sig" => {
                let value = signed(pair.value).and_then(|value| i32::try_from(value).ok());
                record.sig = value.ok_or(ParseError::Value { at: pair.at, key: "sig", expected: "a signal number" })?;
                FIELD_SIG
            }
            b"syscall" => {
                // Printed as %ld of an unsigned long: syscall(-1) is -1.
                record.syscall = signed(pair.value).ok_or(ParseError::Value {
                    at: pair.at,
                    key: "syscall",
                    expected: "a syscall number",
                })?;
                FIELD_SYSCALL
            }
            b"comm" => {
                record.comm = Comm::new(&bytes_value("comm")?);
                FIELD_COMM
            }
            b"exe" => {
                record.exe = text::shared(&bytes_value("exe")?);
                FIELD_EXE
            }
            b"subj" => {
                record.subj = text::shared(pair.value);
                0
            }
            _ => 0,
        };
        seen |= bit;
    }
    match FIELDS.iter().find(|(bit, _)| seen & bit == 0) {
        Some((_, name)) => Err(ParseError::Missing(name)),
        None => Ok(record),
    }
}

const FIELD_AUID: u16 = 1 << 0;
const FIELD_UID: u16 = 1 << 1;
const FIELD_GID: u16 = 1 << 2;
const FIELD_SES: u16 = 1 << 3;
const FIELD_PID: u16 = 1 << 4;
const FIELD_COMM: u16 = 1 << 5;
const FIELD_EXE: u16 = 1 << 6;
const FIELD_SIG: u16 = 1 << 7;
const FIELD_ARCH: u16 = 1 << 8;
const FIELD_SYSCALL: u16 = 1 << 9;
const FIELD_COMPAT: u16 = 1 << 10;
const FIELD_IP: u16 = 1 << 11;
const FIELD_CODE: u16 = 1 << 12;

const FIELDS: [(u16, &str); 13] = [
    (FIELD_AUID, "auid"),
    (FIELD_UID, "uid"),
    (FIELD_GID, "gid"),
    (FIELD_SES, "ses"),
    (FIELD_PID, "pid"),
    (FIELD_COMM, "comm"),
    (FIELD_EXE, "exe"),
    (FIELD_SIG, "sig"),
    (FIELD_ARCH, "arch"),
    (FIELD_SYSCALL, "syscall"),
    (FIELD_COMPAT, "compat"),
    (FIELD_IP, "ip"),
    (FIELD_CODE, "code"),
];

struct Pair<'a> {
    key: &'a [u8],
    value: &'a [u8],
    /// Offset of the value.
    at: usize,
}

/// The next `key=value` from `*at` on. A quoted value keeps its quotes and may hold spaces: the kernel writes no value
/// with a quote inside in quotes.
fn next_pair<'a>(payload: &'a [u8], at: &mut usize) -> Option<Pair<'a>> {
    loop {
        while matches!(payload.get(*at), Some(b' ' | b'\n' | 0)) {
            *at += 1;
        }
        let rest = payload.get(*at..).filter(|rest| !rest.is_empty())?;
        let word_end = rest.iter().position(|byte| matches!(byte, b'=' | b' ' | b'\n' | 0)).unwrap_or(rest.len());
        if rest.get(word_end) != Some(&b'=') {
            // A word without a value: not ours to judge.
            *at += word_end;
            continue;
        }
        let key = &rest[..word_end];
        let from = word_end + 1;
        let tail = &rest[from..];
        let length = match tail.first() {
            Some(b'"') => tail[1..].iter().position(|byte| *byte == b'"').map_or(tail.len(), |end| end + 2),
            _ => tail.iter().position(|byte| matches!(byte, b' ' | b'\n' | 0)).unwrap_or(tail.len()),
        };
        let pair = Pair { key, value: &tail[..length], at: *at + from };
        *at += from + length;
        return Some(pair);
    }
}

fn decimal(digits: &[u8]) -> Option<u64> {
    number(digits, 10)
}

fn number(digits: &[u8], radix: u32) -> Option<u64> {
    let digits = if radix == 16 { digits.strip_prefix(b"0x").unwrap_or(digits) } else { digits };
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0u64, |value, digit| {
        let digit = char::from(*digit).to_digit(radix)?;
        value.checked_mul(u64::from(radix))?.checked_add(u64::from(digit))
    })
}

fn signed(digits: &[u8]) -> Option<i64> {
    match digits.strip_prefix(b"-") {
        Some(digits) => i64::try_from(decimal(digits)?).ok().map(|value| -value),
        // %ld never prints more than i64::MAX, but %lu of -1 did in kernels before 3.15.
        None => decimal(digits).map(|value| value as i64),
    }
}

fn small(value: u64, at: usize, key: &'static str) -> Result<u32, ParseError> {
    u32::try_from(value).map_err(|_| ParseError::Value { at, key, expected: "a 32-bit number" })
}

/// `"quoted"`, bare hexadecimal, or `(null)`.
fn untrusted(value: &[u8]) -> Option<Cow<'_, [u8]>> {
    if let Some(quoted) = value.strip_prefix(b"\"") {
        return quoted.strip_suffix(b"\"").map(Cow::Borrowed);
    }
    if value == b"(null)" || value == b"?" {
        return Some(Cow::Borrowed(b""));
    }
    if value.is_empty() || !value.len().is_multiple_of(2) {
        return None;
    }
    let bytes: Option<Vec<u8>> = value
        .chunks_exact(2)
        .map(|pair| {
            let (high, low) = (char::from(pair[0]).to_digit(16)?, char::from(pair[1]).to_digit(16)?);
            Some((high * 16 + low) as u8)
        })
        .collect();
    bytes.map(Cow::Owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LINE: &str = "audit(1795473004.137:240128): auid=4294967295 uid=0 gid=0 ses=4294967295 pid=4237 \
        comm=\"runc:[2:INIT]\" exe=\"/\" sig=0 arch=c000003e syscall=59 compat=0 ip=0x40828e code=0x7ffc0000";

    #[test]
    fn a_recorded_line_gives_every_field() {
        let expected = AuditRecord {
            time: AuditTime { unix_ms: 1_795_473_004_137, serial: 240_128 },
            auid: u32::MAX,
            ses: u32::MAX,
            uid: 0,
            gid: 0,
            subj: Arc::default(),
            pid: 4237,
            comm: "runc:[2:INIT]".into(),
            exe: "/".into(),
            sig: 0,
            arch: 0xc000_003e,
            syscall: 59,
            compat: false,
            ip: 0x40_828e,
            code: 0x7ffc_0000,
        };
        assert_eq!(parse(LINE.as_bytes()), Ok(expected));
    }

    #[test]
    fn hexadecimal_names_are_decoded_and_the_lsm_context_is_kept() {
        let line = LINE
            .replace("\"runc:[2:INIT]\"", "612062")
            .replace("exe=\"/\"", "exe=2F746D702F61202864656C6574656429 subj=system_u:system_r:container_t:s0:c1,c2");
        let record = parse(line.as_bytes()).unwrap();
        assert_eq!(record.comm, "a b".into());
        assert_eq!(&*record.exe, "/tmp/a (deleted)");
        assert_eq!(&*record.subj, "system_u:system_r:container_t:s0:c1,c2");
    }

    #[test]
    fn a_name_that_looks_like_fields_stays_a_name() {
        let line = LINE.replace("\"runc:[2:INIT]\"", "\"x pid=1 uid=0\"");
        let record = parse(line.as_bytes()).unwrap();
        assert_eq!((record.comm, record.pid), ("x pid=1 uid=0".into(), 4237));
    }

    #[test]
    fn syscall_minus_one_and_no_executable_are_values() {
        let line = LINE.replace("syscall=59", "syscall=-1").replace("exe=\"/\"", "exe=(null)");
        let record = parse(line.as_bytes()).unwrap();
        assert_eq!((record.syscall, &*record.exe), (-1, ""));
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        let cases = [
            (LINE.replace("pid=4237", "pid=42x7"), "pid is not a 32-bit number"),
            (LINE.replace(" code=0x7ffc0000", ""), "code is missing"),
            (LINE.replace("exe=\"/\"", "exe=\"/"), "exe is not quoted text or hexadecimal"),
            (LINE.replace("exe=\"/\"", "exe=abc"), "exe is not quoted text or hexadecimal"),
            (LINE.replace("audit(", "audit["), "byte 0"),
            (LINE.replace(".137:", ".:"), "does not begin with audit("),
            (LINE.replace("1795473004", "99999999999999999999"), "does not begin with audit("),
        ];
        for (line, expected) in cases {
            let error = parse(line.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(expected), "{line}\n{error}");
        }
    }

    /// As audit_log_untrustedstring writes it.
    fn kernel_form(bytes: &[u8]) -> String {
        if bytes.iter().any(|byte| *byte == b'"' || *byte < 0x21 || *byte > 0x7e) {
            bytes.iter().map(|byte| format!("{byte:02X}")).collect()
        } else {
            format!("\"{}\"", String::from_utf8_lossy(bytes))
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_or_refused(bytes: Vec<u8>) {
            let _ = parse(&bytes);
        }

        #[test]
        fn damaged_lines_are_parsed_or_refused(at in 0..LINE.len(), with: u8, cut in 0..LINE.len()) {
            let mut line = LINE.as_bytes().to_vec();
            line[at] = with;
            let _ = parse(&line);
            let _ = parse(&line[..cut]);
        }

        #[test]
        fn names_of_any_bytes_come_back(comm in proptest::collection::vec(1u8.., 1..16),
                                        exe in proptest::collection::vec(1u8.., 1..200)) {
            let line = LINE
                .replace("\"runc:[2:INIT]\"", &kernel_form(&comm))
                .replace("exe=\"/\"", &format!("exe={}", kernel_form(&exe)));
            let record = parse(line.as_bytes()).unwrap();
            prop_assert_eq!(record.comm.as_bytes(), comm);
            prop_assert_eq!(text::to_bytes(&record.exe), exe);
        }
    }
}
