//! Ring records to events. Bytes of the kernel's own making, but argv and paths in them are a process's.

use seclog_abi::{
    Cgroup, Exec, Exit, Fork, Header, Plain as _, Task as AbiTask, VARIABLE_MAX, Verdict, environment, kind, root_state,
};
use seclog_proto::text;
use thiserror::Error;

use crate::lineage::{Argv, Comm, Environment, Event, EventKind, KernelRoot, RecordOrigin, Task};

/// One record of either ring.
#[derive(Debug)]
pub enum Record {
    Lineage(Event),
    Verdict(KernelVerdict),
}

/// A verdict as the hook on `audit_seccomp` saw it.
#[derive(Clone, Debug)]
pub struct KernelVerdict {
    pub cpu: u32,
    pub sequence: u64,
    pub time_boot_ns: u64,
    pub task: Task,
    pub syscall: i64,
    pub signal: i32,
    pub code: u32,
    /// `None`: the kernel's layout is not known, so neither is the ABI.
    pub compat: Option<bool>,
    pub instruction_pointer: u64,
}

#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum DecodeError {
    #[error("record of kind {kind} has {length} bytes, too few for its kind")]
    Short { kind: u32, length: usize },
    #[error("record of unknown kind {0}")]
    Kind(u32),
}

/// Decodes one ring record.
pub fn decode(bytes: &[u8]) -> Result<Record, DecodeError> {
    let length = bytes.len();
    let header = Header::from_bytes(bytes).ok_or(DecodeError::Short { kind: 0, length })?;
    let short = DecodeError::Short { kind: header.kind, length };
    match header.kind {
        kind::FORK => {
            let fork = Fork::from_bytes(bytes).ok_or(short)?;
            Ok(lineage(
                'f',
                fork.header,
                fork.task,
                EventKind::Fork { child_pid: fork.child_pid, child_start_boottime_ns: fork.child_start_boottime_ns },
            ))
        }
        kind::EXIT => {
            let exit = Exit::from_bytes(bytes).ok_or(short)?;
            Ok(lineage('x', exit.header, exit.task, EventKind::Exit { exit_code: exit.exit_code }))
        }
        kind::EXEC => {
            let exec = Exec::from_bytes(bytes).ok_or(short)?;
            let texts = bytes.get(size_of::<Exec>()..).unwrap_or_default();
            let (filename, rest) = texts.split_at_checked(exec.filename_len as usize).ok_or(short)?;
            let (interpreter, rest) = rest.split_at_checked(exec.interpreter_len as usize).ok_or(short)?;
            let (argv, rest) = rest.split_at_checked(exec.argv_len as usize).ok_or(short)?;
            let variables = rest.get(..exec.environment_len as usize).ok_or(short)?;
            Ok(lineage(
                'e',
                exec.header,
                exec.task,
                EventKind::Exec {
                    old_tid: exec.old_tid,
                    filename: text::shared(filename),
                    interpreter: text::shared(interpreter),
                    argv: split_argv(argv, exec.argv_total),
                    environment: Environment {
                        variables: variables
                            .chunks(VARIABLE_MAX)
                            .map(|bytes| text::from_bytes(before_nul(bytes)))
                            .collect(),
                        whole: match exec.environment_state {
                            environment::SKIPPED => None,
                            state => Some(state == environment::WHOLE),
                        },
                    },
                },
            ))
        }
        kind::VERDICT => {
            let verdict = Verdict::from_bytes(bytes).ok_or(short)?;
            Ok(Record::Verdict(KernelVerdict {
                cpu: verdict.header.cpu,
                sequence: verdict.header.sequence,
                time_boot_ns: verdict.header.time_boot_ns,
                task: task(verdict.task),
                syscall: verdict.syscall,
                signal: verdict.signal as i32,
                code: verdict.code,
                compat: match verdict.compat {
                    0 => Some(false),
                    1 => Some(true),
                    _ => None,
                },
                instruction_pointer: verdict.instruction_pointer,
            }))
        }
        kind::CGROUP_MKDIR | kind::CGROUP_ATTACH => {
            let cgroup = Cgroup::from_bytes(bytes).ok_or(short)?;
            let path = bytes.get(size_of::<Cgroup>()..).unwrap_or_default();
            let path = text::shared(path.get(..cgroup.path_len as usize).ok_or(short)?);
            let (stream, kind) = if header.kind == kind::CGROUP_MKDIR {
                ('m', EventKind::CgroupMade { cgroup_id: cgroup.cgroup_id, path })
            } else {
                let Cgroup { cgroup_id, subject_pid, subject_start_boottime_ns, .. } = cgroup;
                (
                    'a',
                    EventKind::CgroupMoved {
                        pid: subject_pid,
                        start_boottime_ns: subject_start_boottime_ns,
                        cgroup_id,
                        path,
                    },
                )
            };
            Ok(lineage(stream, cgroup.header, cgroup.task, kind))
        }
        other => Err(DecodeError::Kind(other)),
    }
}

fn lineage(stream: char, header: Header, of: AbiTask, kind: EventKind) -> Record {
    Record::Lineage(Event {
        origin: RecordOrigin { stream, cpu: header.cpu, sequence: header.sequence },
        time_boot_ns: header.time_boot_ns,
        task: task(of),
        kind,
    })
}

/// What the kernel stamped, also of the sample of an overflow count.
pub(super) fn task(task: AbiTask) -> Task {
    let AbiTask { pid, tid, start_boottime_ns, cgroup_id, mount_namespace, pid_namespace, uid, gid, comm, .. } = task;
    let AbiTask { root_pid, root_start_boottime_ns, root_state, .. } = task;
    Task {
        pid,
        tid,
        start_boottime_ns,
        cgroup_id,
        mount_namespace: u64::from(mount_namespace),
        pid_namespace: u64::from(pid_namespace),
        uid,
        gid,
        comm: Comm::new(&comm),
        root: match root_state {
            root_state::NONE => KernelRoot::None,
            root_state::KNOWN => KernelRoot::Known { pid: root_pid, start_boottime_ns: root_start_boottime_ns },
            _ => KernelRoot::Unknown,
        },
    }
}

fn before_nul(bytes: &[u8]) -> &[u8] {
    let length = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    &bytes[..length]
}

/// Arguments as the kernel laid them out, each followed by a NUL; the last one is cut when argv was longer than its room.
fn split_argv(bytes: &[u8], total: u64) -> Argv {
    let whole = bytes.strip_suffix(&[0]).unwrap_or(bytes);
    let arguments =
        if bytes.is_empty() { Vec::new() } else { whole.split(|byte| *byte == 0).map(text::from_bytes).collect() };
    Argv { arguments: arguments.into(), truncated_bytes: total.saturating_sub(bytes.len() as u64) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn exec_record(filename: &[u8], interpreter: &[u8], argv: &[u8], total: u64) -> Vec<u8> {
        let exec = Exec {
            header: Header { kind: kind::EXEC, cpu: 3, sequence: 7, time_boot_ns: 11 },
            filename_len: filename.len() as u32,
            interpreter_len: interpreter.len() as u32,
            argv_len: argv.len() as u32,
            argv_total: total,
            ..Default::default()
        };
        [exec.as_bytes(), filename, interpreter, argv].concat()
    }

    fn decoded_argv(argv: &[u8], total: u64) -> Argv {
        match decode(&exec_record(b"/bin/sh", b"/bin/sh", argv, total)) {
            Ok(Record::Lineage(Event { kind: EventKind::Exec { argv, .. }, .. })) => argv,
            other => panic!("not an exec: {other:?}"),
        }
    }

    #[test]
    fn an_exec_record_gives_its_three_texts_and_its_origin() {
        let record = exec_record(b"/script", b"/bin/sh", b"sh\0/script\0\0a b\0", 16);
        let Ok(Record::Lineage(event)) = decode(&record) else { panic!("not lineage") };
        assert_eq!(event.origin.to_string(), "e3.7");
        let EventKind::Exec { filename, interpreter, argv, .. } = event.kind else { panic!("not an exec") };
        assert_eq!((&*filename, &*interpreter), ("/script", "/bin/sh"));
        assert_eq!(&*argv.arguments, ["sh", "/script", "", "a b"]);
        assert_eq!(argv.truncated_bytes, 0);
    }

    #[test]
    fn an_argv_longer_than_its_room_says_how_much_is_missing() {
        let argv = decoded_argv(b"sh\0aaaa", 4096);
        assert_eq!(&*argv.arguments, ["sh", "aaaa"]);
        assert_eq!(argv.truncated_bytes, 4089);
    }

    #[test]
    fn no_argv_is_no_arguments_and_one_nul_is_one_empty_argument() {
        assert!(decoded_argv(b"", 0).arguments.is_empty());
        assert_eq!(&*decoded_argv(b"\0", 1).arguments, [""]);
    }

    #[test]
    fn lengths_that_point_behind_the_record_are_refused() {
        let mut record = exec_record(b"/bin/sh", b"", b"sh\0", 3);
        record.truncate(record.len() - 1);
        assert!(matches!(decode(&record), Err(DecodeError::Short { kind: kind::EXEC, .. })));
    }

    proptest! {
        #[test]
        fn any_bytes_are_decoded_or_refused(mut bytes: Vec<u8>, kind in 0u32..8) {
            if bytes.len() >= 4 {
                bytes[..4].copy_from_slice(&kind.to_ne_bytes());
            }
            let _ = decode(&bytes);
        }
    }
}
