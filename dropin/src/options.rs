//! Which options each CRI-O version knows.
//!
//! CRI-O ignores a key it does not know without a word, so this table is what tells a setting from a wish. Rows are
//! the `toml` tags of the structs in cri-o/cri-o `pkg/config/config.go`, compared over the branches release-1.27 to
//! release-1.37.

use crate::version::{CrioVersion, NEWEST};

/// A table of the configuration with a fixed set of keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Section {
    Crio,
    Api,
    Runtime,
    /// `[crio.runtime.runtimes.NAME]`
    Handler,
    /// `[crio.runtime.workloads.NAME]`
    Workload,
    CheckpointRestore,
    Image,
    Network,
    Metrics,
    Tracing,
    Stats,
    Nri,
}

impl Section {
    /// As it stands in a file, with NAME for the entry of a map.
    pub fn path(self) -> &'static str {
        match self {
            Self::Crio => "crio",
            Self::Api => "crio.api",
            Self::Runtime => "crio.runtime",
            Self::Handler => "crio.runtime.runtimes.NAME",
            Self::Workload => "crio.runtime.workloads.NAME",
            Self::CheckpointRestore => "crio.checkpoint_restore",
            Self::Image => "crio.image",
            Self::Network => "crio.network",
            Self::Metrics => "crio.metrics",
            Self::Tracing => "crio.tracing",
            Self::Stats => "crio.stats",
            Self::Nri => "crio.nri",
        }
    }

    /// The table `[crio.NAME]`.
    pub(crate) fn below_crio(name: &str) -> Option<Self> {
        [
            Self::Api,
            Self::Runtime,
            Self::CheckpointRestore,
            Self::Image,
            Self::Network,
            Self::Metrics,
            Self::Tracing,
            Self::Stats,
            Self::Nri,
        ]
        .into_iter()
        .find(|s| s.path().strip_prefix("crio.").is_some_and(|own| own.eq_ignore_ascii_case(name)))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Str,
    Int,
    Bool,
    Strings,
    /// A string such as "30s", or nanoseconds.
    Duration,
    Map,
}

impl Kind {
    pub fn noun(self) -> &'static str {
        match self {
            Self::Str => "a string",
            Self::Int => "an integer",
            Self::Bool => "true or false",
            Self::Strings => "an array of strings",
            Self::Duration => "a duration",
            Self::Map => "a table",
        }
    }
}

/// One option and the versions 1.`since` to 1.`until` that read it.
#[derive(Debug, Clone, Copy)]
pub struct Opt {
    pub section: Section,
    pub key: &'static str,
    pub kind: Kind,
    pub since: u32,
    pub until: u32,
}

impl Opt {
    /// Versions newer than the table are taken to behave as its last one.
    pub fn known_to(&self, version: CrioVersion) -> bool {
        let minor = version.minor.min(NEWEST.minor);
        (self.since..=self.until).contains(&minor)
    }
}

/// The option of that name, found as CRI-O's decoder finds it: exactly, else without regard to case
/// (BurntSushi/toml `unifyStruct`).
pub fn find(section: Section, key: &str) -> Option<&'static Opt> {
    let of_section = || OPTIONS.iter().filter(move |o| o.section == section);
    of_section().find(|o| o.key == key).or_else(|| of_section().find(|o| o.key.eq_ignore_ascii_case(key)))
}

/// Where an option of that name would be read, when it stands elsewhere. `allowed_annotations` and the like belong to
/// several tables: only `[crio.runtime]` or an only home is an answer.
pub fn elsewhere(section: Option<Section>, key: &str) -> Option<&'static Opt> {
    let homes = || OPTIONS.iter().filter(move |o| o.key == key && Some(o.section) != section);
    let runtime = homes().find(|o| o.section == Section::Runtime);
    runtime.or_else(|| homes().next().filter(|_| homes().nth(1).is_none()))
}

/// Keys that the Machine Config Operator still writes although CRI-O stopped reading them before 1.27: no finding.
pub const LEFTOVERS: [(Section, &str); 1] = [(Section::Runtime, "manage_ns_lifecycle")];

const LAST: u32 = NEWEST.minor;

const fn row(section: Section, key: &'static str, kind: Kind, since: u32, until: u32) -> Opt {
    Opt { section, key, kind, since, until }
}

use Kind::{Bool, Duration, Int, Map, Str, Strings};
use Section::{Api, CheckpointRestore, Crio, Handler, Image, Metrics, Network, Nri, Runtime, Stats, Tracing, Workload};

#[rustfmt::skip]
pub static OPTIONS: &[Opt] = &[
    row(Crio, "root", Str, 27, LAST),
    row(Crio, "runroot", Str, 27, LAST),
    row(Crio, "storage_driver", Str, 27, LAST),
    row(Crio, "storage_option", Strings, 27, LAST),
    row(Crio, "log_dir", Str, 27, LAST),
    row(Crio, "version_file", Str, 27, LAST),
    row(Crio, "version_file_persist", Str, 27, LAST),
    row(Crio, "clean_shutdown_file", Str, 27, LAST),
    row(Crio, "internal_wipe", Bool, 27, LAST),
    row(Crio, "internal_repair", Bool, 28, LAST),
    row(Crio, "imagestore", Str, 29, LAST),
    row(Api, "grpc_max_send_msg_size", Int, 27, LAST),
    row(Api, "grpc_max_recv_msg_size", Int, 27, LAST),
    row(Api, "listen", Str, 27, LAST),
    row(Api, "stream_address", Str, 27, LAST),
    row(Api, "stream_port", Str, 27, LAST),
    row(Api, "stream_enable_tls", Bool, 27, LAST),
    row(Api, "stream_tls_cert", Str, 27, LAST),
    row(Api, "stream_tls_key", Str, 27, LAST),
    row(Api, "stream_tls_ca", Str, 27, LAST),
    row(Api, "stream_idle_timeout", Str, 27, LAST),
    row(Api, "tls_min_version", Str, 35, LAST),
    row(Api, "tls_cipher_suites", Strings, 35, LAST),
    row(Runtime, "seccomp_use_default_when_empty", Bool, 27, 29),
    row(Runtime, "no_pivot", Bool, 27, LAST),
    row(Runtime, "selinux", Bool, 27, LAST),
    row(Runtime, "log_to_journald", Bool, 27, LAST),
    row(Runtime, "drop_infra_ctr", Bool, 27, LAST),
    row(Runtime, "read_only", Bool, 27, LAST),
    row(Runtime, "conmon_env", Strings, 27, LAST),
    row(Runtime, "hooks_dir", Strings, 27, LAST),
    row(Runtime, "default_capabilities", Strings, 27, LAST),
    row(Runtime, "add_inheritable_capabilities", Bool, 27, LAST),
    row(Runtime, "default_env", Strings, 27, LAST),
    row(Runtime, "default_sysctls", Strings, 27, LAST),
    row(Runtime, "default_ulimits", Strings, 27, LAST),
    row(Runtime, "allowed_devices", Strings, 27, LAST),
    row(Runtime, "additional_devices", Strings, 27, LAST),
    row(Runtime, "cdi_spec_dirs", Strings, 27, LAST),
    row(Runtime, "device_ownership_from_security_context", Bool, 27, LAST),
    row(Runtime, "default_runtime", Str, 27, LAST),
    row(Runtime, "decryption_keys_path", Str, 27, LAST),
    row(Runtime, "conmon", Str, 27, LAST),
    row(Runtime, "conmon_cgroup", Str, 27, LAST),
    row(Runtime, "seccomp_profile", Str, 27, LAST),
    row(Runtime, "apparmor_profile", Str, 27, LAST),
    row(Runtime, "blockio_config_file", Str, 27, LAST),
    row(Runtime, "irqbalance_config_file", Str, 27, LAST),
    row(Runtime, "rdt_config_file", Str, 27, LAST),
    row(Runtime, "cgroup_manager", Str, 27, LAST),
    row(Runtime, "default_mounts_file", Str, 27, LAST),
    row(Runtime, "container_exits_dir", Str, 27, LAST),
    row(Runtime, "container_attach_socket_dir", Str, 27, LAST),
    row(Runtime, "bind_mount_prefix", Str, 27, LAST),
    row(Runtime, "uid_mappings", Str, 27, LAST),
    row(Runtime, "minimum_mappable_uid", Int, 27, LAST),
    row(Runtime, "gid_mappings", Str, 27, LAST),
    row(Runtime, "minimum_mappable_gid", Int, 27, LAST),
    row(Runtime, "log_level", Str, 27, LAST),
    row(Runtime, "log_filter", Str, 27, LAST),
    row(Runtime, "namespaces_dir", Str, 27, LAST),
    row(Runtime, "pinns_path", Str, 27, LAST),
    row(Runtime, "enable_criu_support", Bool, 27, LAST),
    row(Runtime, "runtimes", Map, 27, LAST),
    row(Runtime, "workloads", Map, 27, LAST),
    row(Runtime, "pids_limit", Int, 27, LAST),
    row(Runtime, "log_size_max", Int, 27, LAST),
    row(Runtime, "ctr_stop_timeout", Int, 27, LAST),
    row(Runtime, "separate_pull_cgroup", Str, 27, LAST),
    row(Runtime, "infra_ctr_cpuset", Str, 27, LAST),
    row(Runtime, "absent_mount_sources_to_reject", Strings, 27, LAST),
    row(Runtime, "enable_pod_events", Bool, 27, LAST),
    row(Runtime, "irqbalance_config_restore_file", Str, 27, LAST),
    row(Runtime, "hostnetwork_disable_selinux", Bool, 27, LAST),
    row(Runtime, "shared_cpuset", Str, 28, LAST),
    row(Runtime, "disable_hostport_mapping", Bool, 28, LAST),
    row(Runtime, "blockio_reload", Bool, 29, LAST),
    row(Runtime, "timezone", Str, 30, LAST),
    row(Runtime, "min_injected_gomaxprocs", Int, 31, LAST),
    row(Runtime, "privileged_seccomp_profile", Str, 33, LAST),
    row(Runtime, "additional_artifact_stores", Strings, 35, LAST),
    row(Handler, "runtime_config_path", Str, 27, LAST),
    row(Handler, "runtime_path", Str, 27, LAST),
    row(Handler, "runtime_type", Str, 27, LAST),
    row(Handler, "runtime_root", Str, 27, LAST),
    row(Handler, "privileged_without_host_devices", Bool, 27, LAST),
    row(Handler, "allowed_annotations", Strings, 27, LAST),
    row(Handler, "monitor_path", Str, 27, LAST),
    row(Handler, "monitor_cgroup", Str, 27, LAST),
    row(Handler, "monitor_env", Strings, 27, LAST),
    row(Handler, "monitor_exec_cgroup", Str, 27, LAST),
    row(Handler, "platform_runtime_paths", Map, 27, LAST),
    row(Handler, "runtime_pull_image", Bool, 28, LAST),
    row(Handler, "container_min_memory", Str, 29, LAST),
    row(Handler, "no_sync_log", Bool, 31, LAST),
    row(Handler, "inherit_default_runtime", Bool, 31, LAST),
    row(Handler, "default_annotations", Map, 31, LAST),
    row(Handler, "stream_websockets", Bool, 34, LAST),
    row(Handler, "exec_cpu_affinity", Str, 34, LAST),
    row(Handler, "seccomp_profile", Str, 34, LAST),
    row(Handler, "container_create_timeout", Int, 35, LAST),
    row(CheckpointRestore, "container_level_enabled", Str, 37, LAST),
    row(Image, "default_transport", Str, 27, LAST),
    row(Image, "global_auth_file", Str, 27, LAST),
    row(Image, "pause_image", Str, 27, LAST),
    row(Image, "pause_image_auth_file", Str, 27, LAST),
    row(Image, "pause_command", Str, 27, LAST),
    row(Image, "signature_policy", Str, 27, LAST),
    row(Image, "signature_policy_dir", Str, 27, LAST),
    row(Image, "insecure_registries", Strings, 27, LAST),
    row(Image, "image_volumes", Str, 27, LAST),
    row(Image, "registries", Strings, 27, 30),
    row(Image, "big_files_temporary_dir", Str, 27, LAST),
    row(Image, "pinned_images", Strings, 28, LAST),
    row(Image, "pull_progress_timeout", Duration, 29, LAST),
    row(Image, "auto_reload_registries", Bool, 30, LAST),
    row(Image, "oci_artifact_mount_support", Bool, 33, LAST),
    row(Image, "namespaced_auth_dir", Str, 34, LAST),
    row(Image, "short_name_mode", Str, 34, LAST),
    row(Network, "cni_default_network", Str, 27, LAST),
    row(Network, "network_dir", Str, 27, LAST),
    row(Network, "plugin_dir", Str, 27, LAST),
    row(Network, "plugin_dirs", Strings, 27, LAST),
    row(Network, "cni_status_grace_period", Duration, 36, LAST),
    row(Metrics, "enable_metrics", Bool, 27, LAST),
    row(Metrics, "metrics_collectors", Strings, 27, LAST),
    row(Metrics, "metrics_port", Int, 27, LAST),
    row(Metrics, "metrics_socket", Str, 27, LAST),
    row(Metrics, "metrics_cert", Str, 27, LAST),
    row(Metrics, "metrics_key", Str, 27, LAST),
    row(Metrics, "metrics_host", Str, 28, LAST),
    row(Tracing, "enable_tracing", Bool, 27, LAST),
    row(Tracing, "tracing_endpoint", Str, 27, LAST),
    row(Tracing, "tracing_sampling_rate_per_million", Int, 27, LAST),
    row(Stats, "stats_collection_period", Int, 27, LAST),
    row(Stats, "collection_period", Int, 30, LAST),
    row(Stats, "included_pod_metrics", Strings, 30, LAST),
    row(Workload, "activation_annotation", Str, 27, LAST),
    row(Workload, "annotation_prefix", Str, 27, LAST),
    row(Workload, "allowed_annotations", Strings, 27, LAST),
    row(Workload, "resources", Map, 27, LAST),
    row(Nri, "enable_nri", Bool, 27, LAST),
    row(Nri, "nri_listen", Str, 27, LAST),
    row(Nri, "nri_plugin_dir", Str, 27, LAST),
    row(Nri, "nri_plugin_config_dir", Str, 27, LAST),
    row(Nri, "nri_plugin_registration_timeout", Duration, 27, LAST),
    row(Nri, "nri_plugin_request_timeout", Duration, 27, LAST),
    row(Nri, "nri_disable_connections", Bool, 27, LAST),
    row(Nri, "default_validator", Map, 34, LAST),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seccomp_options_exist_in_exactly_the_versions_that_read_them() {
        for (section, key, first, last) in [
            (Runtime, "seccomp_use_default_when_empty", 27, 29),
            (Runtime, "privileged_seccomp_profile", 33, 37),
            (Runtime, "seccomp_profile", 27, 37),
            (Handler, "seccomp_profile", 34, 37),
            (Handler, "default_annotations", 31, 37),
        ] {
            let known: Vec<u32> = (27..=37)
                .filter(|&minor| find(section, key).is_some_and(|o| o.known_to(CrioVersion { minor })))
                .collect();
            assert_eq!(known, (first..=last).collect::<Vec<_>>(), "{key}");
        }
    }

    #[test]
    fn a_version_newer_than_the_table_behaves_as_its_last() {
        let option = find(Runtime, "privileged_seccomp_profile").unwrap();
        assert!(option.known_to(CrioVersion { minor: 40 }));
    }

    #[test]
    fn keys_are_found_without_regard_to_case_as_crio_does() {
        assert_eq!(find(Runtime, "Seccomp_Profile").unwrap().key, "seccomp_profile");
    }

    #[test]
    fn an_option_outside_its_table_is_told_its_home() {
        assert_eq!(elsewhere(None, "privileged_seccomp_profile").unwrap().section, Runtime);
        assert_eq!(elsewhere(Some(Image), "seccomp_profile").unwrap().section, Runtime);
        assert!(elsewhere(Some(Crio), "allowed_annotations").is_none(), "two tables read it");
    }
}
