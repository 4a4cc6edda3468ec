//! Where `seclog-act`, playing a container runtime, finds its scene.

/// A file with the roots of the cgroup hierarchies, a line each.
pub const HIERARCHIES: &str = "/run/scene/hierarchies";
/// `containers/<id>/{cgroup,process-cgroup}`, and `execs/<name>`: id, way (`exec` or `exec_sync`) and script, a line each.
pub const CONTAINERS: &str = "/run/scene";
pub const SERVICE_CGROUP: &str = "/system.slice/crio.service";
/// The real one.
pub const CRUN: &str = "/usr/bin/crun";
