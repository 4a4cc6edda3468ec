//! Processes that are hard to see right.

use std::{
    ffi::{CString, OsString},
    fs,
    io::{Read as _, Write as _},
    os::{
        fd::{AsRawFd as _, FromRawFd as _},
        unix::{ffi::OsStringExt as _, fs::MetadataExt as _, fs::OpenOptionsExt as _},
    },
    path::PathBuf,
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use clap::Subcommand;
use nix::{
    sys::wait::waitpid,
    unistd::{ForkResult, fork},
};
use seclog_tests::lab::seccomp;

#[derive(Debug, Subcommand)]
pub(crate) enum Act {
    /// Say on standard output what /proc tells of this process
    Who,
    /// When told, execute /bin/true that often, and once as the first program in a container's cgroup
    Outside { times: u32, cgroup: PathBuf },
    /// Execute a program that often, one after the other, and wait for each
    Spawn {
        times: u32,
        #[arg(last = true, required = true)]
        program: Vec<OsString>,
    },
    /// Write the shortest program there is: its life is one system call
    Shortest { path: PathBuf },
    /// Processes one after the other, each with so many threads, all ended at once
    Threads { processes: u32, threads: u32 },
    /// Execute from a thread that is not the first, below a filter that logs execve
    ThreadExec {
        #[arg(last = true, required = true)]
        program: Vec<OsString>,
    },
    /// Execute itself that often
    ExecLoop { times: u32 },
    /// Execute a file that has been deleted, and one that is in memory only, each making one verdict
    Nameless,
    /// Call getppid once, logged
    Once,
    /// Execute /bin/true with hostile arguments: control characters, invalid UTF-8, 2 MiB
    Arguments,
}

// === impl Act ===

impl Act {
    pub(crate) fn run(self) -> Result<()> {
        match self {
            Self::Who => who(),
            Self::Outside { times, cgroup } => {
                super::wait_to_be_told()?;
                for _ in 0..times {
                    ensure!(Command::new("/bin/true").status()?.success(), "/bin/true failed");
                }
                let mut command = Command::new("/proc/self/exe");
                command.arg("enter").arg(cgroup).args(["--", "/bin/true", "from outside"]);
                ensure!(command.status()?.success(), "the root failed");
                Ok(())
            }
            Self::Spawn { times, program } => {
                let (path, arguments) = program.split_first().context("no program")?;
                for _ in 0..times {
                    let status =
                        Command::new(path).args(arguments).status().with_context(|| path.display().to_string())?;
                    ensure!(status.success(), "{} ended with {status}", path.display());
                }
                Ok(())
            }
            Self::Shortest { path } => {
                let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o755).open(path)?;
                file.write_all(&shortest_program())?;
                Ok(())
            }
            Self::Threads { processes, threads } => (0..processes).try_for_each(|_| with_threads(threads)),
            Self::ThreadExec { program } => {
                seccomp::log(&[libc::SYS_execve])?;
                std::thread::spawn(move || super::execute(&program)).join().map_err(|_| anyhow::anyhow!("panicked"))?
            }
            Self::ExecLoop { times: 0 } => Ok(()),
            Self::ExecLoop { times } => {
                super::execute(&["/proc/self/exe".into(), "exec-loop".into(), (times - 1).to_string().into()])
            }
            Self::Nameless => nameless(),
            Self::Once => {
                seccomp::log(&[libc::SYS_getppid])?;
                nix::unistd::getppid();
                Ok(())
            }
            Self::Arguments => arguments(),
        }
    }
}

fn who() -> Result<()> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    let after_comm = stat.rsplit_once(')').context("stat")?.1;
    let start_ticks = after_comm.split_whitespace().nth(19).context("field 22")?;
    let namespace = |name| fs::metadata(format!("/proc/self/ns/{name}")).map(|metadata| metadata.ino());
    println!(
        "pid={} parent={} start_ticks={start_ticks} mnt={} pid_ns={}",
        std::process::id(),
        std::os::unix::process::parent_id(),
        namespace("mnt")?,
        namespace("pid")?,
    );
    Ok(())
}

/// exit(0), for x86-64: an ELF header, one segment, nine bytes of code.
fn shortest_program() -> Vec<u8> {
    const ADDRESS: u64 = 0x40_0000;
    // mov eax, 60; xor edi, edi; syscall
    const CODE: [u8; 9] = [0xb8, 60, 0, 0, 0, 0x31, 0xff, 0x0f, 0x05];
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    file.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    file.extend((ADDRESS + 120).to_le_bytes());
    file.extend(64_u64.to_le_bytes());
    file.extend(0_u64.to_le_bytes());
    file.extend([0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    // PT_LOAD, readable and executable, the whole file
    file.extend([1, 0, 0, 0, 5, 0, 0, 0]);
    let length = 120 + CODE.len() as u64;
    for word in [0, ADDRESS, ADDRESS, length, length, 4096] {
        file.extend(word.to_le_bytes());
    }
    file.extend(CODE);
    file
}

fn with_threads(threads: u32) -> Result<()> {
    // SAFETY: one thread; what the child does works after fork from one thread.
    match unsafe { fork() }.context("fork")? {
        ForkResult::Parent { child } => {
            waitpid(child, None)?;
        }
        ForkResult::Child => {
            let (started, all_started) = std::sync::mpsc::sync_channel(threads as usize);
            for _ in 0..threads {
                let started = started.clone();
                std::thread::spawn(move || {
                    let _ = started.send(());
                    nix::unistd::pause();
                });
            }
            for _ in 0..threads {
                let _ = all_started.recv();
            }
            // exit_group: every thread leaves by itself, all at about the same time.
            // SAFETY: ends this process.
            unsafe { libc::_exit(0) };
        }
    }
    Ok(())
}

fn nameless() -> Result<()> {
    let mut own = Vec::new();
    fs::File::open("/proc/self/exe")?.read_to_end(&mut own)?;
    let path = "/tmp/it is \"deleted\"";
    fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o755).open(path)?.write_all(&own)?;
    let deleted = fs::File::open(path)?;
    fs::remove_file(path)?;
    execute_descriptor(deleted.as_raw_fd())?;
    // SAFETY: a NUL-terminated name.
    let descriptor = unsafe { libc::memfd_create(c"in memory".as_ptr(), 0) };
    nix::errno::Errno::result(descriptor).context("memfd_create")?;
    // SAFETY: just opened, and nobody else's.
    let mut memory = unsafe { fs::File::from_raw_fd(descriptor) };
    memory.write_all(&own)?;
    execute_descriptor(descriptor)
}

/// In a process of its own.
fn execute_descriptor(descriptor: i32) -> Result<()> {
    // SAFETY: one thread; the child executes or ends.
    match unsafe { fork() }.context("fork")? {
        ForkResult::Parent { child } => {
            waitpid(child, None)?;
        }
        ForkResult::Child => {
            let arguments = [c"act".as_ptr(), c"once".as_ptr(), std::ptr::null()];
            let environment = [std::ptr::null()];
            // SAFETY: both arrays end with a null; the strings are static.
            unsafe {
                libc::fexecve(descriptor, arguments.as_ptr(), environment.as_ptr());
                libc::_exit(1);
            }
        }
    }
    Ok(())
}

fn arguments() -> Result<()> {
    let hostile = OsString::from_vec(b"\x1b[31mred\nnew \"line\"\t\\\xff\xfe\x7f".to_vec());
    // One argument has at most 128 KiB (MAX_ARG_STRLEN), all together a quarter of the stack's limit.
    let long: OsString = "x".repeat(131_000).into();
    let run = |arguments: &[OsString]| -> Result<()> {
        let status = Command::new("/bin/true").args(arguments).status().context("/bin/true")?;
        ensure!(status.success(), "/bin/true ended with {status}");
        Ok(())
    };
    run(&[hostile])?;
    run(&["y".repeat(6000).into()])?;
    run(&vec![long; 15])?;
    // No argument at all, not even a name.
    // SAFETY: one thread; the child executes or ends.
    match unsafe { fork() }.context("fork")? {
        ForkResult::Parent { child } => drop(waitpid(child, None)?),
        ForkResult::Child => {
            let nothing = [std::ptr::null()];
            let path = CString::new("/tmp/shortest")?;
            // SAFETY: arrays that end with a null, a NUL-terminated path.
            unsafe {
                libc::execve(path.as_ptr(), nothing.as_ptr(), nothing.as_ptr());
                libc::_exit(1);
            }
        }
    }
    Ok(())
}
