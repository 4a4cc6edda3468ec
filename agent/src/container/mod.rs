//! From a cgroup to a container, from a container to its pod.

mod cgroups;
mod cri;
mod hierarchy;
mod known;
mod lookup;
mod names;
mod naming;
mod options;
mod state;

pub use cgroups::{Cgroup, Cgroups, container_of_path, pod_uid_of_path};
pub use cri::{CriClient, CriError};
pub use hierarchy::{Hierarchy, V1};
pub use known::Known;
pub use lookup::{Answer, Lookup};
pub use names::Names;
pub use naming::{Counters, Naming, start as start_naming};
pub use options::{Options, follow_events, made};
pub use state::State;
