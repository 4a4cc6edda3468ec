//! One room for each thing that a test puts on the table.
//!
//! ```text
//!   cluster      correlator + agent + node + one pod, wired up: what most tests want
//!     programs     seclog's own two; process any program, its log, its orderly end
//!     node         containerd with a private root; image its image; cri its pods; stream an exec into one
//!     kube_audit   what the API server would report of an exec; webhook delivers it
//!     pki          certificates of both connections
//!   site         a correlator and an agent's spool and stream without a kernel; faults and relay what befalls them
//!     token        a service account token, as the API server makes it for an agent's pod
//!   vm           a kernel in QEMU; verifier what its verifier had to walk
//!     initramfs    what boots in it; cpio its format
//!   seccomp      a filter that logs; filters the rarer ones; audit_socket who hears it; audit_record what it says;
//!   agreement    whether the agent says the same
//!   runtime_scene  where a runtime in small finds what to do
//!   quiet        quiet mode's rule, and what was there before
//! ```

pub mod agreement;
pub mod audit_record;
pub mod audit_socket;
pub mod cluster;
pub mod cpio;
pub mod cri;
pub mod exclusive;
pub mod faults;
pub mod filters;
pub mod image;
pub mod initramfs;
pub mod kube_audit;
pub mod leftovers;
pub mod node;
pub mod pki;
pub mod places;
pub mod process;
pub mod programs;
pub mod quiet;
pub mod relay;
pub mod runtime_scene;
pub mod seccomp;
pub mod site;
mod skip;
pub mod stream;
pub mod token;
pub mod verifier;
pub mod vm;
pub mod webhook;

pub use skip::skip;
