//! Whether the agent's verdicts say what the kernel's audit records say, field by field.

use std::collections::HashMap;

use seclog_proto::{
    text,
    v1::{NodeRecord, Verdict, node_record::Detail},
};

use super::audit_record::SeccompRecord;

/// audit reads the coarse clock, which moves with the timer tick (1 to 10 ms), and reads it after waiting for room in
/// kauditd's queue. So most times must be within a tick, and all within this: a busy emulator ticks late, too.
const FAR_MS: u64 = 1000;
const TICK_MS: u64 = 10;

/// Every way in which `records` (of which only verdicts are looked at) differs from `audit`; one line each.
pub fn disagreements(audit: &[SeccompRecord], records: &[NodeRecord]) -> Vec<String> {
    let mut found = Vec::new();
    let mut by_serial: HashMap<u64, (&NodeRecord, &Verdict)> = HashMap::new();
    for (record, verdict) in verdicts(records) {
        if verdict.audit_serial == 0 {
            found.push(format!("{}: no audit record (pid {} syscall {})", record.id, record.pid, verdict.syscall));
        } else if let Some((other, _)) = by_serial.insert(verdict.audit_serial, (record, verdict)) {
            found.push(format!("{} and {} are both of serial {}", other.id, record.id, verdict.audit_serial));
        }
    }
    let mut apart = 0;
    for expected in audit {
        let Some((record, verdict)) = by_serial.remove(&expected.serial) else {
            found.push(format!("serial {}: the agent has no record", expected.serial));
            continue;
        };
        let differences = differences(expected, record, verdict);
        if !differences.is_empty() {
            found.push(format!("serial {}: {}", expected.serial, differences.join(", ")));
        }
        apart += usize::from((record.time_unix_ns / 1_000_000).abs_diff(expected.time_unix_ms) > TICK_MS);
    }
    found.extend(by_serial.keys().map(|serial| format!("serial {serial}: the agent made it up")));
    if apart * 2 > audit.len() {
        found.push(format!("{apart} of {} times are over {TICK_MS} ms from audit's", audit.len()));
    }
    found
}

/// The verdicts among `records`.
pub fn verdicts(records: &[NodeRecord]) -> impl Iterator<Item = (&NodeRecord, &Verdict)> {
    records.iter().filter_map(|record| match &record.detail {
        Some(Detail::Verdict(verdict)) => Some((record, verdict)),
        _ => None,
    })
}

fn differences(expected: &SeccompRecord, record: &NodeRecord, verdict: &Verdict) -> Vec<String> {
    // Every field of the audit record is looked at: a new one does not compile without being considered.
    let SeccompRecord {
        time_unix_ms,
        serial: _,
        auid,
        uid,
        gid,
        ses,
        pid,
        comm,
        exe,
        sig,
        arch,
        syscall,
        compat,
        ip,
        code,
    } = expected;
    let mut found = Vec::new();
    let mut compare = |field: &str, expected: String, actual: String| {
        if expected != actual {
            found.push(format!("{field} is {actual}, audit says {expected}"));
        }
    };
    compare("auid", auid.to_string(), verdict.audit_uid.to_string());
    compare("uid", uid.to_string(), record.uid.to_string());
    compare("gid", gid.to_string(), record.gid.to_string());
    compare("ses", ses.to_string(), verdict.audit_session.to_string());
    compare("pid", pid.to_string(), record.pid.to_string());
    compare("comm", text::from_bytes(comm), record.comm.clone());
    compare("exe", text::from_bytes(exe), verdict.exe.clone());
    compare("sig", sig.to_string(), verdict.signal.to_string());
    compare("arch", format!("{arch:x}"), format!("{:x}", verdict.arch));
    compare("syscall", syscall.to_string(), verdict.syscall.to_string());
    compare("compat", compat.to_string(), verdict.compat.to_string());
    compare("ip", format!("{ip:x}"), format!("{:x}", verdict.instruction_pointer));
    compare("code", format!("{code:x}"), format!("{:x}", verdict.code));
    let time = record.time_unix_ns / 1_000_000;
    if time.abs_diff(*time_unix_ms) > FAR_MS {
        found.push(format!("time is {time}, audit says {time_unix_ms}"));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::{SeccompRecord, disagreements};
    use seclog_proto::v1::{NodeRecord, Verdict, node_record::Detail};

    fn audit(serial: u64) -> SeccompRecord {
        SeccompRecord {
            time_unix_ms: 1000,
            serial,
            auid: u32::MAX,
            uid: 7,
            gid: 8,
            ses: 9,
            pid: 10,
            comm: b"\xffcomm".to_vec(),
            exe: b"/bin/x".to_vec(),
            sig: 0,
            arch: 0xc000_003e,
            syscall: 110,
            compat: false,
            ip: 0x1234,
            code: 0x7ffc_0000,
        }
    }

    fn node(serial: u64) -> NodeRecord {
        let verdict = Verdict {
            audit_serial: serial,
            audit_uid: u32::MAX,
            audit_session: 9,
            exe: "/bin/x".into(),
            arch: 0xc000_003e,
            syscall: 110,
            instruction_pointer: 0x1234,
            code: 0x7ffc_0000,
            ..Default::default()
        };
        NodeRecord {
            id: format!("n{serial}"),
            time_unix_ns: 1_003_000_000,
            uid: 7,
            gid: 8,
            pid: 10,
            comm: seclog_proto::text::from_bytes(b"\xffcomm"),
            detail: Some(Detail::Verdict(verdict)),
            ..Default::default()
        }
    }

    #[test]
    fn equal_records_agree() {
        assert_eq!(disagreements(&[audit(1), audit(2)], &[node(2), node(1)]), Vec::<String>::new());
    }

    #[test]
    fn missing_double_and_invented_records_are_found() {
        assert_eq!(disagreements(&[audit(1)], &[]), ["serial 1: the agent has no record"]);
        assert_eq!(disagreements(&[], &[node(1)]), ["serial 1: the agent made it up"]);
        assert_eq!(disagreements(&[audit(1)], &[node(1), node(1)]).len(), 1);
        assert_eq!(disagreements(&[], &[node(0)]).len(), 1);
    }

    #[test]
    fn a_wrong_field_is_named() {
        let mut record = node(1);
        record.uid = 0;
        assert_eq!(disagreements(&[audit(1)], &[record]), ["serial 1: uid is 0, audit says 7"]);
    }
}
