//! What a hundred thousand processes cost the agent's memory.

#![allow(clippy::unwrap_used, reason = "a test says no more by handling them")]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::atomic::{AtomicIsize, Ordering},
};

use seclog_agent::{
    clock::Offset,
    container::Cgroups,
    lineage::{Argv, Environment, Event, EventKind, KernelRoot, Processes, RecordOrigin, Task},
    pipeline::Pipeline,
    record::{Origins, Record},
};

/// Counts what is allocated and not freed, and the most that it was.
struct Counting;

static NOW: AtomicIsize = AtomicIsize::new(0);
static MOST: AtomicIsize = AtomicIsize::new(0);

// SAFETY: the system's allocator, with a count beside it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let size = layout.size() as isize;
        let now = NOW.fetch_add(size, Ordering::Relaxed) + size;
        MOST.fetch_max(now, Ordering::Relaxed);
        // SAFETY: as the caller's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size() as isize, Ordering::Relaxed);
        // SAFETY: as the caller's.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const LIMIT: isize = 32 << 20;
const PROCESSES: u32 = 100_000;
const HOST: u64 = 1;
const INSIDE: u64 = 2;
const CGROUP: u64 = 7;

struct Bomb {
    pipeline: Pipeline,
    now: u64,
    records: u64,
}

impl Bomb {
    fn new() -> Self {
        let id = "a".repeat(64);
        let cgroups = Cgroups::recorded([(CGROUP, format!("/kubepods/podu/crio-{id}").as_str())]);
        let origins = Origins { boot_id: "boot".into(), epoch: 1 };
        let mut bomb = Self { pipeline: Pipeline::new(origins, Processes::new([HOST]), cgroups), now: 1, records: 0 };
        bomb.fork(1, 2);
        bomb.exec(2);
        bomb
    }

    fn event(&mut self, pid: u32, kind: EventKind) {
        self.now += 1_000;
        let event = Event {
            origin: RecordOrigin { stream: 'f', cpu: 0, sequence: self.now },
            time_boot_ns: self.now,
            task: Task {
                pid,
                tid: pid,
                start_boottime_ns: u64::from(pid) * 1_000,
                cgroup_id: if pid == 1 { 1 } else { CGROUP },
                mount_namespace: if pid == 1 { HOST } else { INSIDE },
                // As the kernel's own map has it.
                root: if pid > 2 { KernelRoot::Known { pid: 2, start_boottime_ns: 2_000 } } else { KernelRoot::None },
                ..Default::default()
            },
            kind,
        };
        let mut out: Vec<Record> = Vec::new();
        self.pipeline.lineage(&event, Offset::from_pair(1, 1), &mut out);
        self.pipeline.advance(self.now, Offset::from_pair(1, 1), false, &mut out);
        self.records += out.len() as u64;
    }

    fn fork(&mut self, pid: u32, child_pid: u32) {
        let child_start_boottime_ns = u64::from(child_pid) * 1_000;
        self.event(pid, EventKind::Fork { child_pid, child_start_boottime_ns });
    }

    fn exec(&mut self, pid: u32) {
        let argv =
            Argv { arguments: vec!["sh".to_owned(), "-c".to_owned(), "id".to_owned()].into(), truncated_bytes: 0 };
        let (filename, interpreter) = ("/bin/sh".into(), "".into());
        let environment = Environment::default();
        self.event(pid, EventKind::Exec { old_tid: pid, filename, interpreter, argv, environment });
    }
}

/// One test in this file: what others allocate would count.
#[test]
fn a_fork_bomb_of_a_hundred_thousand_processes_changes_memory_by_less_than_32_mib() {
    let mut bomb = Bomb::new();
    let before = NOW.load(Ordering::Relaxed);
    MOST.store(before, Ordering::Relaxed);
    // Each makes the next two, none ends, and every tenth runs a program of its own.
    for number in 0..PROCESSES {
        let (parent, child) = (2 + number / 2, 3 + number);
        bomb.fork(parent, child);
        if number % 10 == 0 {
            bomb.exec(child);
        }
    }
    let living = bomb.pipeline.processes.len();
    for number in 0..PROCESSES {
        bomb.event(3 + number, EventKind::Exit { exit_code: 0 });
    }
    let most = MOST.load(Ordering::Relaxed) - before;
    println!(
        "{} KiB at most, {} KiB after it, {living} processes remembered",
        most >> 10,
        (NOW.load(Ordering::Relaxed) - before) >> 10
    );
    assert!(most < LIMIT, "{most} bytes");
    // Programs that ran are told, whether their process is remembered or not; what is not remembered is counted.
    assert!(bomb.records >= u64::from(PROCESSES / 10), "{} records", bomb.records);
    let forgotten = bomb.pipeline.processes.not_kept();
    assert!(forgotten > 0 && living as u64 + forgotten >= u64::from(PROCESSES), "{living} and {forgotten}");
}
