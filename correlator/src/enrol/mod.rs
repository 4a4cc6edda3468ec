//! Enrolment: signs the key of a node's agent after checking what Kubernetes says of the agent's pod.
//!
//! What holds:
//! - The names in a certificate come from the token that Kubernetes signed, and the cluster's from this correlator's
//!   configuration: never from the request. Whoever holds a token of a pod on node A gets a certificate of node A.
//! - A token counts only if it was made for this audience, for the agents' service account, and is bound to a node.
//! - Every certificate is in the ledger, on the disk, before it is handed out. Another key for a node whose certificate has not
//!   ended is told as such.
//! - What a stranger can cost is bounded: handshakes and connections by the listener, a request's size and time, checks under
//!   way, certificates a second and certificates of a node in an hour.

mod authority;
mod keys;
mod ledger;
mod options;
mod rate;
mod review;
mod service;
mod token;

pub use authority::{Authority, AuthorityError, AuthorityFiles, check_request};
pub use keys::{Keys, KeysError};
pub use ledger::{Issued, Ledger, LedgerError, Novelty};
pub use options::{EnrolArgs, StartError};
pub use review::{Review, ReviewError};
pub use service::{Enrolment, EnrolmentError, Settings};
pub use token::{Bound, Expected, TokenCheck, TokenError, claims};
