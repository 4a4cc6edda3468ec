//! Makes a known number of seccomp verdicts: puts a logging filter on itself, then calls and executes as often as told.

use std::{fs, path::PathBuf, process::Command, str::FromStr as _, thread};

use anyhow::{Context as _, Result, anyhow, ensure};
use clap::Parser;
use nix::unistd::{Gid, Uid, getpid, getppid, setresgid, setresuid};
use seclog_tests::lab::seccomp;
use syscalls::Sysno;

#[derive(Debug, Parser)]
#[command(about = "Makes a known number of seccomp log verdicts")]
struct Options {
    /// System calls that the filter logs
    #[arg(long, value_delimiter = ',', default_value = "getppid")]
    log: Vec<String>,
    /// getppid() this often in each thread
    #[arg(long, default_value_t = 0)]
    calls: u64,
    /// Execute the program this often in each thread, one after the other
    #[arg(long, default_value_t = 0)]
    execs: u64,
    #[arg(long, default_value_t = 1)]
    threads: u64,
    /// Join this cgroup first (its directory)
    #[arg(long)]
    cgroup: Option<PathBuf>,
    /// Become this user and group first
    #[arg(long)]
    user: Option<u32>,
    /// Program and arguments for --execs
    #[arg(last = true, default_value = "/bin/true")]
    program: Vec<PathBuf>,
}

fn main() -> Result<()> {
    let Options { log, calls, execs, threads, cgroup, user, program } = Options::parse();
    if let Some(cgroup) = cgroup {
        fs::write(cgroup.join("cgroup.procs"), getpid().to_string())
            .with_context(|| format!("cannot join {}", cgroup.display()))?;
    }
    if let Some(user) = user {
        let (uid, gid) = (Uid::from_raw(user), Gid::from_raw(user));
        setresgid(gid, gid, gid).context("setresgid")?;
        setresuid(uid, uid, uid).context("setresuid")?;
    }
    let numbers = log
        .iter()
        .map(|name| {
            Sysno::from_str(name).map(|call| i64::from(call.id())).map_err(|()| anyhow!("no system call {name:?}"))
        })
        .collect::<Result<Vec<_>>>()?;
    let (path, arguments) = program.split_first().context("no program")?;

    seccomp::log(&numbers)?;
    thread::scope(|scope| {
        let work = || -> Result<()> {
            for _ in 0..calls {
                getppid();
            }
            for _ in 0..execs {
                let status = Command::new(path).args(arguments).status().with_context(|| path.display().to_string())?;
                ensure!(status.success(), "{} ended with {status}", path.display());
            }
            Ok(())
        };
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| worker.join().unwrap_or_else(|_| Err(anyhow!("a thread panicked"))))
    })?;
    println!("pid={} calls={} execs={}", getpid(), threads * calls, threads * execs);
    Ok(())
}
