//! What the kernel tells of a loaded program that aya does not: recursion misses and verified instructions.

use std::os::fd::{AsRawFd as _, BorrowedFd};

/// struct bpf_prog_info (include/uapi/linux/bpf.h) up to what is read here. The kernel fills in what it knows and leaves
/// the rest zero.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct ProgramInfo {
    before_run_time: [u64; 24],
    run_time_ns: u64,
    run_count: u64,
    recursion_misses: u64,
    verified_instructions: u32,
    attach_btf_object: u32,
    attach_btf: u32,
    padding: u32,
}

/// union bpf_attr for BPF_OBJ_GET_INFO_BY_FD.
#[repr(C)]
struct InfoByDescriptor {
    descriptor: u32,
    length: u32,
    info: u64,
}

/// Figures of one program since it was loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct ProgramFigures {
    /// Times that the program was due while it ran on the same CPU, and was skipped. Kernels before 5.12 do not say: 0.
    pub(super) recursion_misses: u64,
    /// Kernels before 5.16 do not say: 0.
    pub(super) verified_instructions: u32,
    /// With kernel.bpf_stats_enabled only.
    pub(super) run_time_ns: u64,
    pub(super) run_count: u64,
}

/// Asks the kernel; `None` when it refuses.
pub(super) fn figures(program: BorrowedFd<'_>) -> Option<ProgramFigures> {
    const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
    let mut info = ProgramInfo::default();
    let mut attributes = InfoByDescriptor {
        descriptor: u32::try_from(program.as_raw_fd()).ok()?,
        length: size_of::<ProgramInfo>() as u32,
        info: (&raw mut info) as u64,
    };
    // SAFETY: attributes is as long as said and points to memory of the length it tells.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, BPF_OBJ_GET_INFO_BY_FD, &raw mut attributes, size_of::<InfoByDescriptor>())
    };
    (result == 0).then_some(ProgramFigures {
        recursion_misses: info.recursion_misses,
        verified_instructions: info.verified_instructions,
        run_time_ns: info.run_time_ns,
        run_count: info.run_count,
    })
}
