//! getppid() at full speed in a thread of its own, under a filter of its own.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow};

use super::processor::{self, GENERATOR, Pinned};
use crate::lab::seccomp;

/// What the thread is under.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    None,
    /// A filter of the same length that logs another call.
    Silent,
    Logging,
}

/// Of the whole thread.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cost {
    pub calls: u64,
    pub elapsed: Duration,
    /// In user space and in the kernel, but not while it waits.
    pub cpu_ns: u64,
}

// === impl Cost ===

impl Cost {
    pub fn cpu_ns_per_call(&self) -> f64 {
        self.cpu_ns as f64 / self.calls.max(1) as f64
    }

    pub fn elapsed_ns_per_call(&self) -> f64 {
        self.elapsed.as_nanos() as f64 / self.calls.max(1) as f64
    }
}

/// Filters belong to threads: it ends with the thread. The process stays this one.
pub fn calls(filter: Filter, calls: u64) -> Result<Cost> {
    let work = move || -> Result<Cost> {
        let _pinned = Pinned::this_thread(GENERATOR)?;
        match filter {
            Filter::None => {}
            Filter::Silent => seccomp::log(&[libc::SYS_acct])?,
            Filter::Logging => seccomp::log(&[libc::SYS_getppid])?,
        }
        let (begin, before) = (Instant::now(), processor::thread_ns());
        for _ in 0..calls {
            nix::unistd::getppid();
        }
        Ok(Cost { calls, elapsed: begin.elapsed(), cpu_ns: processor::thread_ns() - before })
    };
    thread::Builder::new()
        .name("generator".into())
        .spawn(work)?
        .join()
        .map_err(|_| anyhow!("the generator panicked"))?
}
