//! Where the running kernel keeps what the programs read.
//!
//! From its own BTF, never from a version number: distributions move fields between point releases. A field that is not
//! found stays absent, and what depends on it stays unknown; nothing fails to load for it.

use btf_rs::{Btf, Struct, Type};
use seclog_abi::{ABSENT, Offsets};

/// Looks every field up. The names of those that were not found come beside. `controller`: the v1 controller whose hierarchy
/// tells containers apart.
pub(super) fn find(btf: &Btf, controller: Option<&str>) -> (Offsets, Vec<&'static str>) {
    let mut missing = Vec::new();
    let mut field = |names: &[(&str, &str)], what: &'static str| {
        let found = names.iter().find_map(|(of, path)| offset(btf, of, path));
        found.unwrap_or_else(|| {
            missing.push(what);
            ABSENT
        })
    };
    let subsystems = controller.map(|_| field(&[("css_set", "subsys")], "css_set.subsys"));
    let mut offsets = Offsets {
        task_pid: field(&[("task_struct", "pid")], "task_struct.pid"),
        task_tgid: field(&[("task_struct", "tgid")], "task_struct.tgid"),
        task_group_leader: field(&[("task_struct", "group_leader")], "task_struct.group_leader"),
        // real_start_time until 5.5
        task_start_boottime: field(
            &[("task_struct", "start_boottime"), ("task_struct", "real_start_time")],
            "task_struct.start_boottime",
        ),
        task_signal: field(&[("task_struct", "signal")], "task_struct.signal"),
        task_exit_code: field(&[("task_struct", "exit_code")], "task_struct.exit_code"),
        task_mm: field(&[("task_struct", "mm")], "task_struct.mm"),
        task_nsproxy: field(&[("task_struct", "nsproxy")], "task_struct.nsproxy"),
        task_thread_pid: field(&[("task_struct", "thread_pid")], "task_struct.thread_pid"),
        signal_live: field(&[("signal_struct", "live")], "signal_struct.live"),
        mm_arg_start: field(&[("mm_struct", "arg_start")], "mm_struct.arg_start"),
        mm_arg_end: field(&[("mm_struct", "arg_end")], "mm_struct.arg_end"),
        mm_env_start: field(&[("mm_struct", "env_start")], "mm_struct.env_start"),
        mm_env_end: field(&[("mm_struct", "env_end")], "mm_struct.env_end"),
        nsproxy_mnt_ns: field(&[("nsproxy", "mnt_ns")], "nsproxy.mnt_ns"),
        mnt_namespace_inum: field(&[("mnt_namespace", "ns.inum")], "mnt_namespace.ns.inum"),
        pid_level: field(&[("pid", "level")], "pid.level"),
        pid_numbers: field(&[("pid", "numbers")], "pid.numbers"),
        upid_ns: field(&[("upid", "ns")], "upid.ns"),
        upid_size: structure(btf, "upid").map_or(ABSENT, |upid| upid.size() as u32),
        pid_namespace_inum: field(&[("pid_namespace", "ns.inum")], "pid_namespace.ns.inum"),
        bprm_filename: field(&[("linux_binprm", "filename")], "linux_binprm.filename"),
        bprm_interp: field(&[("linux_binprm", "interp")], "linux_binprm.interp"),
        cgroup_kn: field(&[("cgroup", "kn")], "cgroup.kn"),
        kernfs_node_id: field(&[("kernfs_node", "id")], "kernfs_node.id"),
        cgroup_root: field(&[("cgroup", "root")], "cgroup.root"),
        cgroup_root_hierarchy_id: field(&[("cgroup_root", "hierarchy_id")], "cgroup_root.hierarchy_id"),
        task_cgroups: field(&[("task_struct", "cgroups")], "task_struct.cgroups"),
        css_set_subsystem: ABSENT,
        css_cgroup: field(&[("cgroup_subsys_state", "cgroup")], "cgroup_subsys_state.cgroup"),
        sock_port: field(&[("sock", "__sk_common.skc_num")], "sock.__sk_common.skc_num"),
        sock_net: field(&[("sock", "__sk_common.skc_net.net")], "sock.__sk_common.skc_net.net"),
        net_inum: field(&[("net", "ns.inum")], "net.ns.inum"),
        ..Offsets::NONE
    };
    // x86: in_ia32_syscall() reads TS_COMPAT (2) of thread_info.status; arm64: TIF_32BIT (bit 22) of thread_info.flags.
    #[cfg(target_arch = "x86_64")]
    let (word, mask) = ("thread_info.status", 2);
    #[cfg(target_arch = "aarch64")]
    let (word, mask) = ("thread_info.flags", 1 << 22);
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    {
        offsets.task_compat_word = field(&[("task_struct", word)], "task_struct.thread_info");
        offsets.task_compat_mask = mask;
    }
    if let (Some(controller), Some(subsystems)) = (controller, subsystems) {
        match enumerator(btf, "cgroup_subsys_id", &format!("{controller}_cgrp_id")) {
            Some(index) if subsystems != ABSENT => {
                offsets.css_set_subsystem = subsystems + index * size_of::<u64>() as u32;
            }
            _ => missing.push("cgroup_subsys_id"),
        }
    }
    (offsets, missing)
}

fn enumerator(btf: &Btf, of: &str, name: &str) -> Option<u32> {
    let types = btf.resolve_types_by_name(of).ok()?;
    types.into_iter().find_map(|found| match found {
        Type::Enum(found) => found
            .members
            .iter()
            .find(|member| btf.resolve_name(*member).is_ok_and(|own| own == name))
            .map(btf_rs::EnumMember::val),
        _ => None,
    })
}

fn structure(btf: &Btf, name: &str) -> Option<Struct> {
    let types = btf.resolve_types_by_name(name).ok()?;
    // A name may also be declared forward; only the definition has members.
    types.into_iter().find_map(|found| match found {
        Type::Struct(found) if !found.members.is_empty() => Some(found),
        _ => None,
    })
}

/// Byte offset of a dotted path of members.
fn offset(btf: &Btf, of: &str, path: &str) -> Option<u32> {
    let mut holder = structure(btf, of)?;
    let mut bits = 0;
    let mut names = path.split('.').peekable();
    while let Some(name) = names.next() {
        let (at, member_type) = member(btf, &holder, name)?;
        bits += at;
        if names.peek().is_some() {
            holder = as_struct(btf, member_type)?;
        }
    }
    Some(bits / 8)
}

/// A member by name, also inside anonymous structs and unions (mm_struct keeps arg_start in one): bit offset and type.
fn member(btf: &Btf, holder: &Struct, name: &str) -> Option<(u32, Type)> {
    for candidate in &holder.members {
        let of_type = btf.resolve_chained_type(candidate).ok()?;
        let found = btf.resolve_name(candidate).unwrap_or_default();
        if found == name {
            return Some((candidate.bit_offset(), of_type));
        }
        if found.is_empty()
            && let Some(inner) = as_struct(btf, of_type)
            && let Some((at, of_type)) = member(btf, &inner, name)
        {
            return Some((candidate.bit_offset() + at, of_type));
        }
    }
    None
}

/// Through typedefs and qualifiers to the struct or union.
fn as_struct(btf: &Btf, mut of_type: Type) -> Option<Struct> {
    loop {
        of_type = match of_type {
            Type::Struct(found) | Type::Union(found) => return Some(found),
            Type::Typedef(inner) => btf.resolve_chained_type(&inner).ok()?,
            Type::Const(inner) => btf.resolve_chained_type(&inner).ok()?,
            Type::Volatile(inner) => btf.resolve_chained_type(&inner).ok()?,
            _ => return None,
        };
    }
}
