//! From a cgroup to a container, from a container to its pod.

mod cgroups;
mod cri;
mod names;

pub use cgroups::{Cgroups, container_of_path, pod_uid_of_path};
pub use cri::{CriClient, CriError};
pub use names::{Known, Names};
