//! How the correlator lets peers in: TLS whose files are followed, places for a bounded number of connections, time limits for
//! peers that do nothing, and memory counted before it is used.
//!
//! What holds for every connection that comes out of [`Incoming`]:
//! - Its TLS handshake was done within [`Limits::handshake_within`], in one of a bounded number of places for handshakes, so that
//!   strangers who never finish one take no place from those who did.
//! - It has one of [`Limits::connections`] places. A peer that finds none is still told so for as long as one of a few places
//!   for refusals is free ([`Peer::is_refused`]); beyond those it is closed at once, and counted.
//! - Without an open request it is closed after at most twice [`Limits::idle_within`].

mod connection;
mod denied;
mod door;
mod incoming;
mod metered;
mod tls;

pub use connection::{Connection, OpenRequest, Peer};
pub use denied::{Denied, DeniedError};
pub use door::{Door, Limits};
pub use incoming::Incoming;
pub use metered::{Metered, PendingMessages};
pub use tls::{Tls, TlsError, TlsFiles};
