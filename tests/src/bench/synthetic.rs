//! The records of one session's processes, as the kernel programs and kauditd would write them.
//!
//! A shell that `runc exec` started in a container forks; each child is logged when it executes a program, again in four
//! further calls, and ends: fork, exec and exit in one ring, five verdicts in the other.

use seclog_abi::{Exec, Exit, Fork, Header, Plain as _, Task, Verdict, kind, root_state};
use seclog_agent::{clock::Offset, container::Cgroups, lineage::Processes, pipeline::Pipeline, record::Origins};

/// Records of one process in both rings, and node records that come of them (a fork makes none).
pub const RECORDS: u64 = 8;
pub const NODE_RECORDS: u64 = 7;
pub const VERDICTS: u64 = 5;

const HOST_MOUNTS: u32 = 4_026_531_832;
const POD_MOUNTS: u32 = 4_026_532_700;
const HOST_CGROUP: u64 = 11;
const POD_CGROUP: u64 = 4242;
const POD_PATH: &str = "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod95404c95_ae1f_4c16_a2f0_a2642aef5193.slice/crio-beb1ef43f6c3fc5f918a0c47afee9630c10966b3b567adeef3a9abe2eb180dd2.scope";
const LOG: u32 = 0x7ffc_0000;
/// execve, and four that profiles log: socket, connect, openat, setuid.
const CALLS: [i64; 5] = [59, 41, 42, 257, 105];
const PLACE: u64 = 0x7f12_3456_789a;
const SERVICE: u32 = 100;
const RUNC: u32 = 200;
const SHELL: u32 = 300;
const FIRST: u32 = 1000;
/// Process numbers before they are used again.
const MOST_PIDS: u32 = 4_000_000;
/// Wall clock minus boot clock.
const WALL: u64 = 1_795_473_000_000_000_000;

/// Records one behind the other.
#[derive(Clone, Debug, Default)]
pub struct Records {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

/// What one pass over the sources finds.
#[derive(Clone, Debug, Default)]
pub struct Pass {
    pub lineage: Records,
    pub verdicts: Records,
    /// The same verdicts, as audit tells them.
    pub audit: Records,
    /// Everything is in up to then, boot clock.
    pub now_ns: u64,
}

/// Makes one pass after the other.
#[derive(Debug)]
pub struct Story {
    now_ns: u64,
    made: u32,
    sequences: [u64; 5],
}

// === impl Records ===

impl Records {
    fn push(&mut self, parts: &[&[u8]]) {
        parts.iter().for_each(|part| self.bytes.extend_from_slice(part));
        self.ends.push(self.bytes.len());
    }

    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(&self.ends).map(|(start, end)| &self.bytes[start..*end])
    }

    pub fn len(&self) -> usize {
        self.ends.len()
    }

    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }
}

// === impl Story ===

impl Default for Story {
    fn default() -> Self {
        Self { now_ns: 3_600_000_000_000, made: 0, sequences: [0; 5] }
    }
}

impl Story {
    /// A pipeline that knows the container's cgroup, and nothing else.
    pub fn pipeline() -> Pipeline {
        let origins = Origins { boot_id: "3f6a3f0e-8f0d-4a51-9d43-2f4dbb1e7c55".into(), epoch: 1 };
        let cgroups = Cgroups::recorded([(HOST_CGROUP, "/system.slice/crio.service"), (POD_CGROUP, POD_PATH)]);
        Pipeline::new(origins, Processes::new([u64::from(HOST_MOUNTS)]), cgroups)
    }

    pub fn offset() -> Offset {
        Offset::from_pair(WALL, 0)
    }

    /// The runtime, its exec, and the shell that becomes a session root.
    pub fn opening(&mut self) -> Pass {
        let mut pass = Pass::default();
        let host = |pid, comm| task(pid, comm, HOST_CGROUP, HOST_MOUNTS);
        self.exec(&mut pass, host(SERVICE, b"crio"), "/usr/bin/crio", b"/usr/bin/crio\0");
        self.fork(&mut pass, host(SERVICE, b"crio"), RUNC);
        let argv = b"/usr/bin/runc\0exec\0--process\0/tmp/exec-process\0c1\0";
        self.exec(&mut pass, host(RUNC, b"runc"), "/usr/bin/runc", argv);
        self.fork(&mut pass, host(RUNC, b"runc"), SHELL);
        self.exec(&mut pass, task(SHELL, b"sh", POD_CGROUP, POD_MOUNTS), "/bin/sh", b"sh\0-c\0run\0");
        pass.now_ns = self.now_ns;
        pass
    }

    /// So many processes, all within `spread_ns`.
    pub fn pass(&mut self, processes: u32, spread_ns: u64) -> Pass {
        let mut pass = Pass::default();
        let end = self.now_ns + spread_ns;
        for _ in 0..processes {
            let pid = FIRST + self.made % MOST_PIDS;
            self.made += 1;
            let shell = task(SHELL, b"sh", POD_CGROUP, POD_MOUNTS);
            self.fork(&mut pass, shell, pid);
            let of = |comm| task(pid, comm, POD_CGROUP, POD_MOUNTS);
            let start = self.now_ns;
            let (mut caller, mut program) = (of(b"sh"), of(b"curl"));
            (caller.start_boottime_ns, program.start_boottime_ns) = (start, start);
            self.verdict(&mut pass, caller, CALLS[0]);
            self.exec(
                &mut pass,
                program,
                "/usr/bin/curl",
                b"curl\0-sS\0--max-time\x0010\0https://registry.example/v2/\0",
            );
            for call in &CALLS[1..] {
                self.verdict(&mut pass, program, *call);
            }
            let header = self.header(kind::EXIT);
            pass.lineage.push(&[Exit { header, task: program, exit_code: 0, reserved: 0 }.as_bytes()]);
        }
        self.now_ns = self.now_ns.max(end);
        pass.now_ns = self.now_ns;
        pass
    }

    fn header(&mut self, kind: u32) -> Header {
        let sequence = &mut self.sequences[kind as usize];
        *sequence += 1;
        self.now_ns += 1_000;
        Header { kind, cpu: 1, sequence: *sequence, time_boot_ns: self.now_ns }
    }

    fn fork(&mut self, pass: &mut Pass, by: Task, child_pid: u32) {
        let header = self.header(kind::FORK);
        let child_start_boottime_ns = if child_pid < FIRST { u64::from(child_pid) } else { self.now_ns };
        pass.lineage.push(&[Fork { header, task: by, child_start_boottime_ns, child_pid, reserved: 0 }.as_bytes()]);
    }

    fn exec(&mut self, pass: &mut Pass, task: Task, filename: &str, argv: &[u8]) {
        let exec = Exec {
            header: self.header(kind::EXEC),
            task,
            old_tid: task.tid,
            filename_len: filename.len() as u32,
            interpreter_len: filename.len() as u32,
            argv_len: argv.len() as u32,
            argv_total: argv.len() as u64,
            ..Default::default()
        };
        pass.lineage.push(&[exec.as_bytes(), filename.as_bytes(), filename.as_bytes(), argv]);
    }

    fn verdict(&mut self, pass: &mut Pass, task: Task, syscall: i64) {
        let header = self.header(kind::VERDICT);
        let verdict = Verdict { header, task, syscall, signal: 0, instruction_pointer: PLACE, code: LOG, compat: 0 };
        pass.verdicts.push(&[verdict.as_bytes()]);
        let (milliseconds, serial) = ((WALL + self.now_ns) / 1_000_000, header.sequence);
        let (seconds, milliseconds) = (milliseconds / 1000, milliseconds % 1000);
        let comm = if syscall == CALLS[0] { "sh" } else { "curl" };
        let line = format!(
            "audit({seconds}.{milliseconds:03}:{serial}): auid=4294967295 uid=1000 gid=1000 ses=4294967295 \
             subj=system_u:system_r:container_t:s0:c12,c345 pid={} comm=\"{comm}\" exe=\"/usr/bin/{comm}\" sig=0 \
             arch=c000003e syscall={syscall} compat=0 ip=0x{PLACE:x} code=0x{LOG:x}",
            task.pid
        );
        pass.audit.push(&[line.as_bytes()]);
    }
}

fn task(pid: u32, comm: &[u8], cgroup_id: u64, mount_namespace: u32) -> Task {
    let mut task = Task {
        pid,
        tid: pid,
        start_boottime_ns: u64::from(pid),
        cgroup_id,
        mount_namespace,
        pid_namespace: 4_026_531_836,
        uid: 1000,
        gid: 1000,
        root_state: root_state::NONE,
        ..Default::default()
    };
    task.comm[..comm.len()].copy_from_slice(comm);
    task
}
