//! What agent and correlator must agree on about a node's identity: how a certificate names a node, what is read from
//! certificates, and how files of certificates are followed while they are replaced.

mod certificate;
mod files;
mod name;

pub use certificate::{CertificateError, Facts, certificates, private_key};
pub use files::{FileError, Files};
pub use name::{IdentityError, NodeIdentity, is_name};
