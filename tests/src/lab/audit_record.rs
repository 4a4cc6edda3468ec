//! The text of an audit record of type 1326 (SECCOMP), as kernel/auditsc.c `audit_seccomp()` writes it. Written apart
//! from the agent's parser, so that the two can disagree.

use anyhow::{Context as _, Result};

pub const SECCOMP: u16 = 1326;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeccompRecord {
    pub time_unix_ms: u64,
    pub serial: u64,
    pub auid: u32,
    pub uid: u32,
    pub gid: u32,
    pub ses: u32,
    pub pid: u32,
    pub comm: Vec<u8>,
    pub exe: Vec<u8>,
    pub sig: i32,
    pub arch: u32,
    pub syscall: i64,
    pub compat: bool,
    pub ip: u64,
    pub code: u32,
}

impl SeccompRecord {
    /// `audit(1795473004.137:240128): auid=… code=0x7ffc0000`
    pub fn parse(text: &str) -> Result<Self> {
        let stamp = between(text, "audit(", ")").with_context(|| format!("no time in {text:?}"))?;
        let (time, serial) = stamp.split_once(':').context("no serial")?;
        let (seconds, milliseconds) = time.split_once('.').context("no milliseconds")?;
        let decimal = |name| -> Result<u64> { Ok(field(text, name)?.parse()?) };
        let hexadecimal =
            |name| -> Result<u64> { Ok(u64::from_str_radix(field(text, name)?.trim_start_matches("0x"), 16)?) };
        Ok(Self {
            time_unix_ms: seconds.parse::<u64>()? * 1000 + milliseconds.parse::<u64>()?,
            serial: serial.parse()?,
            auid: decimal("auid")? as u32,
            uid: decimal("uid")? as u32,
            gid: decimal("gid")? as u32,
            ses: decimal("ses")? as u32,
            pid: decimal("pid")? as u32,
            comm: untrusted(field(text, "comm")?)?,
            exe: untrusted(field(text, "exe")?)?,
            sig: field(text, "sig")?.parse()?,
            arch: hexadecimal("arch")? as u32,
            syscall: field(text, "syscall")?.parse()?,
            compat: decimal("compat")? != 0,
            ip: hexadecimal("ip")?,
            code: hexadecimal("code")? as u32,
        })
    }
}

fn between<'a>(text: &'a str, before: &str, after: &str) -> Option<&'a str> {
    text.split_once(before)?.1.split_once(after).map(|(inside, _)| inside)
}

/// The value of ` name=value`. Values have no spaces: what a process chose is in hexadecimal when it has one.
fn field<'a>(text: &'a str, name: &str) -> Result<&'a str> {
    text.split(' ')
        .find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
        .with_context(|| format!("no {name} in {text:?}"))
}

/// `"text"`, or hexadecimal where the text has quotes, spaces or control characters (audit_log_untrustedstring).
fn untrusted(value: &str) -> Result<Vec<u8>> {
    if let Some(plain) = value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) {
        return Ok(plain.into());
    }
    value
        .as_bytes()
        .chunks(2)
        .map(|pair| Ok(u8::from_str_radix(std::str::from_utf8(pair)?, 16)?))
        .collect::<Result<_>>()
        .with_context(|| format!("neither quoted nor hexadecimal: {value:?}"))
}

#[cfg(test)]
mod tests {
    use super::SeccompRecord;

    #[test]
    fn every_field_of_a_recorded_line_is_read() {
        let text = "audit(1795473004.137:240128): auid=4294967295 uid=0 gid=5 ses=4294967295 pid=4237 \
                    comm=72756E633A5B323A494E49545D exe=\"/\" sig=0 arch=c000003e syscall=59 compat=0 ip=0x40828e code=0x7ffc0000";
        let expected = SeccompRecord {
            time_unix_ms: 1_795_473_004_137,
            serial: 240_128,
            auid: u32::MAX,
            uid: 0,
            gid: 5,
            ses: u32::MAX,
            pid: 4237,
            comm: b"runc:[2:INIT]".to_vec(),
            exe: b"/".to_vec(),
            sig: 0,
            arch: 0xc000_003e,
            syscall: 59,
            compat: false,
            ip: 0x40_828e,
            code: 0x7ffc_0000,
        };
        assert_eq!(SeccompRecord::parse(text).unwrap(), expected);
    }
}
