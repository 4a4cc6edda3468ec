//! The kernel side: what happens to processes (lineage ring) and what seccomp decided (verdict ring).
//!
//! Each program counts what it sees before it tries to hand it over, and counts what the ring could not take, so that
//! `seen = submitted + aggregated + dropped` holds for each program and CPU.

#![no_std]
#![no_main]

mod cgroup;
mod emit;
mod exec;
mod kernel;
mod known;
mod lineage;
mod stream;
mod verdict;

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    // No path of ours panics; the compiler wants a handler, and the verifier would refuse a program that reached it.
    loop {}
}

/// Some helpers (bpf_probe_read_kernel among them) are for programs under a GPL-compatible licence only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
