//! Seccomp profiles that log, as CRI-O reads them (go.podman.io/common `pkg/seccomp`).
//!
//! There are two, because the two places where CRI-O takes a profile want opposite things:
//!
//! - **Ordinary containers** (`seccomp_profile`, or a Localhost profile of a pod) are protected by the runtime's default
//!   profile, which denies what is not listed. A profile that allows everything and logs some would take that protection
//!   away, so [`workload`] is the runtime's default with the chosen syscalls moved from ALLOW to LOG, each under the
//!   same conditions as before. `clone3` shows why the conditions matter: the default answers ENOSYS to it (a filter
//!   cannot see its flags) so that libc falls back to `clone`, which is logged; a plain LOG rule would allow it.
//! - **Privileged containers** (`privileged_seccomp_profile`) have no filter at all by default, and CNI, CSI and the
//!   machine config daemon live on that. Anything denied there breaks the node, so [`privileged`] allows everything and
//!   logs the chosen syscalls. It names the architectures' 32-bit siblings too: libseccomp ends a process that makes a
//!   call of an architecture the filter was not told of.

mod build;
mod family;
mod parse;

pub use build::{Built, RuntimeDefault, privileged, workload};
pub use family::{EXEC, PROCESS, missing_siblings, with_siblings};
pub use parse::{Action, Profile, ProfileError, Rule};
