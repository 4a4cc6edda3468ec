//! Names of architectures, syscalls and seccomp actions.

/// AUDIT_ARCH_* (include/uapi/linux/audit.h): ELF machine, little endian 0x4000_0000, 64 bit 0x8000_0000.
pub const X86_64: u32 = 0xc000_003e;
pub const I386: u32 = 0x4000_0003;
pub const AARCH64: u32 = 0xc000_00b7;
pub const ARM: u32 = 0x4000_0028;

/// Marks a call in the x32 ABI (arch/x86/include/uapi/asm/unistd.h).
const X32_BIT: i64 = 0x4000_0000;

/// The AUDIT_ARCH_* value of calls on this machine.
pub fn native_arch(compat: bool) -> u32 {
    match (cfg!(target_arch = "aarch64"), compat) {
        (false, false) => X86_64,
        (false, true) => I386,
        (true, false) => AARCH64,
        (true, true) => ARM,
    }
}

/// x32 calls are marked in the number, not in the architecture.
pub fn arch_name(arch: u32, syscall: i64) -> &'static str {
    match arch {
        X86_64 if is_x32(syscall) => "x32",
        X86_64 => "x86_64",
        I386 => "i386",
        AARCH64 => "aarch64",
        ARM => "arm",
        0x8000_0016 => "s390x",
        0xc000_0015 => "ppc64le",
        _ => "unknown",
    }
}

fn is_x32(syscall: i64) -> bool {
    syscall >= 0 && syscall & X32_BIT != 0
}

/// Empty for a number that the ABI does not have.
pub fn syscall_name(arch: u32, syscall: i64) -> &'static str {
    let Ok(number) = usize::try_from(syscall) else { return "" };
    match arch {
        X86_64 if is_x32(syscall) => x32_name(number & !(X32_BIT as usize)),
        X86_64 => syscalls::x86_64::Sysno::new(number).map_or("", |number| number.name()),
        I386 => syscalls::x86::Sysno::new(number).map_or("", |number| number.name()),
        AARCH64 => syscalls::aarch64::Sysno::new(number).map_or("", |number| number.name()),
        ARM => syscalls::arm::Sysno::new(number).map_or("", |number| number.name()),
        0x8000_0016 => syscalls::s390x::Sysno::new(number).map_or("", |number| number.name()),
        0xc000_0015 => syscalls::powerpc64::Sysno::new(number).map_or("", |number| number.name()),
        _ => "",
    }
}

/// x32 has numbers of its own from 512 on (arch/x86/entry/syscalls/syscall_64.tbl, abi x32); the others are x86-64's.
fn x32_name(number: usize) -> &'static str {
    const OWN: [&str; 36] = [
        "rt_sigaction",
        "rt_sigreturn",
        "ioctl",
        "readv",
        "writev",
        "recvfrom",
        "sendmsg",
        "recvmsg",
        "execve",
        "ptrace",
        "rt_sigpending",
        "rt_sigtimedwait",
        "rt_sigqueueinfo",
        "sigaltstack",
        "timer_create",
        "mq_notify",
        "kexec_load",
        "waitid",
        "set_robust_list",
        "get_robust_list",
        "vmsplice",
        "move_pages",
        "preadv",
        "pwritev",
        "rt_tgsigqueueinfo",
        "recvmmsg",
        "sendmmsg",
        "process_vm_readv",
        "process_vm_writev",
        "setsockopt",
        "getsockopt",
        "io_setup",
        "io_submit",
        "execveat",
        "preadv2",
        "pwritev2",
    ];
    match number.checked_sub(512) {
        Some(index) => OWN.get(index).copied().unwrap_or(""),
        None => syscalls::x86_64::Sysno::new(number).map_or("", |number| number.name()),
    }
}

/// Whether a call starts a new program.
pub fn is_exec(arch: u32, syscall: i64) -> bool {
    matches!(syscall_name(arch, syscall), "execve" | "execveat")
}

/// SECCOMP_RET_* of the high half of a filter's answer (include/uapi/linux/seccomp.h).
pub fn action_name(code: u32) -> &'static str {
    match code & 0xffff_0000 {
        0x8000_0000 => "kill_process",
        0x0000_0000 => "kill_thread",
        0x0003_0000 => "trap",
        0x0005_0000 => "errno",
        0x7fc0_0000 => "user_notif",
        0x7ff0_0000 => "trace",
        0x7ffc_0000 => "log",
        0x7fff_0000 => "allow",
        _ => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_abi_names_its_own_numbers() {
        assert_eq!(syscall_name(X86_64, 59), "execve");
        assert_eq!(syscall_name(I386, 11), "execve");
        assert_eq!(syscall_name(X86_64, X32_BIT | 520), "execve");
        assert_eq!(syscall_name(X86_64, X32_BIT | 545), "execveat");
        assert_eq!(syscall_name(X86_64, X32_BIT | 57), "fork");
        assert_eq!(syscall_name(AARCH64, 221), "execve");
        assert_eq!((arch_name(X86_64, X32_BIT | 520), arch_name(X86_64, 59)), ("x32", "x86_64"));
    }

    #[test]
    fn numbers_that_no_abi_has_have_no_name() {
        for number in [-1, i64::MAX, 100_000, X32_BIT | 900] {
            assert_eq!(syscall_name(X86_64, number), "", "{number}");
        }
        assert_eq!(syscall_name(7, 59), "");
    }

    #[test]
    fn actions_are_named_whatever_their_data() {
        assert_eq!(action_name(0x7ffc_0000), "log");
        assert_eq!(action_name(0x0005_0026), "errno");
        assert_eq!(action_name(0x1234_0000), "unknown");
    }
}
