//! What one listener asks of its peers, and how many it takes.

use super::connection::Peer;
use super::tls::Tls;
use crate::intake::Budget;
use crate::telemetry::{Collect, Sample, Telemetry};
use rustls::ServerConfig;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections at once.
    pub connections: usize,
    /// Handshakes at once.
    pub handshakes: usize,
    /// Time for a handshake. A fifth of it once half of the places for handshakes are taken.
    pub handshake_within: Duration,
    /// A connection without an open request ends after at most twice this time.
    pub idle_within: Duration,
    /// Bytes that one connection may hold of the whole budget.
    pub connection_memory: usize,
    /// How long a message waits for memory before its sender is told to come again.
    pub memory_within: Duration,
    /// An agent sends a heartbeat every few seconds. One that is silent for so long is not there any more, or does not do
    /// what agents do.
    pub silent_for: Duration,
    /// A peer that does not read what it is answered is given up after this time.
    pub reads_within: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 2048,
            handshakes: 512,
            handshake_within: Duration::from_secs(10),
            idle_within: Duration::from_secs(30),
            connection_memory: 24 << 20,
            memory_within: Duration::from_secs(20),
            silent_for: Duration::from_secs(60),
            reads_within: Duration::from_secs(30),
        }
    }
}

/// Connections beyond the limit that are told so at once.
const REFUSALS: usize = 32;

/// Clones are the same door.
#[derive(Debug, Clone)]
pub struct Door(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// In the names of its metrics.
    name: &'static str,
    transport: Transport,
    limits: Limits,
    budget: Budget,
    places: Arc<Semaphore>,
    handshakes: Arc<Semaphore>,
    refusals: Arc<Semaphore>,
    counters: Counters,
}

#[derive(Debug)]
enum Transport {
    Plaintext,
    /// Clients show a certificate.
    Mutual(Arc<Tls>),
    /// Only the server shows one.
    Anonymous(Arc<Tls>),
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) accepted: AtomicU64,
    pub(super) handshakes_failed: AtomicU64,
    pub(super) handshakes_late: AtomicU64,
    pub(super) closed_full: AtomicU64,
    pub(super) refused_full: AtomicU64,
    pub(super) closed_idle: AtomicU64,
    pub(super) accept_failed: AtomicU64,
}

/// A place for one connection, free again when dropped.
#[derive(Debug)]
pub(super) struct Place {
    _permit: OwnedSemaphorePermit,
    pub(super) refused: bool,
}

// === impl Door ===

impl Door {
    pub fn plaintext(name: &'static str, limits: Limits, budget: &Budget) -> Self {
        Self::new(name, Transport::Plaintext, limits, budget)
    }

    pub fn mutual(name: &'static str, tls: Arc<Tls>, limits: Limits, budget: &Budget) -> Self {
        Self::new(name, Transport::Mutual(tls), limits, budget)
    }

    pub fn anonymous(name: &'static str, tls: Arc<Tls>, limits: Limits, budget: &Budget) -> Self {
        Self::new(name, Transport::Anonymous(tls), limits, budget)
    }

    fn new(name: &'static str, transport: Transport, limits: Limits, budget: &Budget) -> Self {
        Self(Arc::new(Inner {
            name,
            transport,
            limits,
            budget: budget.clone(),
            places: Arc::new(Semaphore::new(limits.connections)),
            handshakes: Arc::new(Semaphore::new(limits.handshakes)),
            refusals: Arc::new(Semaphore::new(REFUSALS)),
            counters: Counters::default(),
        }))
    }

    pub fn register(&self, telemetry: &Telemetry) {
        telemetry.collect(self.clone());
    }

    pub fn is_plaintext(&self) -> bool {
        matches!(self.0.transport, Transport::Plaintext)
    }

    pub fn limits(&self) -> &Limits {
        &self.0.limits
    }

    /// The budget of all connections together.
    pub fn budget(&self) -> &Budget {
        &self.0.budget
    }

    /// Whether the peer may speak now; else why not.
    pub fn check(&self, peer: &Peer) -> Result<(), String> {
        match &self.0.transport {
            Transport::Mutual(tls) => tls.check_client(peer.chain()),
            Transport::Plaintext | Transport::Anonymous(_) => Ok(()),
        }
    }

    /// Returns when the peer may no longer speak with the certificate that it came with, and says why: it ended, or the
    /// authorities changed, or it was denied. Never for peers without one.
    pub async fn no_longer_trusted(&self, peer: &Peer) -> String {
        /// The clock may be set meanwhile, so no wait for the end is longer.
        const LOOK_EVERY: Duration = Duration::from_secs(30);
        let Transport::Mutual(tls) = &self.0.transport else { return std::future::pending().await };
        let mut changes = tls.changes();
        loop {
            if let Err(why) = tls.check_client(peer.chain()) {
                return why;
            }
            let left =
                peer.not_after().saturating_sub(i64::try_from(crate::intake::now() / 1_000_000_000).unwrap_or(0));
            let left = Duration::from_secs(u64::try_from(left).unwrap_or(0) + 1);
            tokio::select! {
                () = changes.next() => {}
                () = tokio::time::sleep(left.min(LOOK_EVERY)) => {}
            }
        }
    }

    pub(super) fn tls(&self) -> Option<Arc<ServerConfig>> {
        match &self.0.transport {
            Transport::Plaintext => None,
            Transport::Mutual(tls) => Some(tls.mutual()),
            Transport::Anonymous(tls) => Some(tls.anonymous()),
        }
    }

    pub(super) fn counters(&self) -> &Counters {
        &self.0.counters
    }

    /// A place for a handshake and the time for it. `None`: all are taken.
    pub(super) fn handshake(&self) -> Option<(OwnedSemaphorePermit, Duration)> {
        let permit = Arc::clone(&self.0.handshakes).try_acquire_owned().ok()?;
        let Limits { handshakes, handshake_within, .. } = self.0.limits;
        let crowded = self.0.handshakes.available_permits() < handshakes / 2;
        Some((permit, if crowded { handshake_within / 5 } else { handshake_within }))
    }

    /// `None`: there is no place, not even to say so.
    pub(super) fn place(&self) -> Option<Place> {
        let place = |permit, refused| Place { _permit: permit, refused };
        if let Ok(permit) = Arc::clone(&self.0.places).try_acquire_owned() {
            return Some(place(permit, false));
        }
        let permit = Arc::clone(&self.0.refusals).try_acquire_owned().ok()?;
        self.0.counters.refused_full.fetch_add(1, Ordering::Relaxed);
        Some(place(permit, true))
    }
}

impl Collect for Door {
    fn collect(&self, to: &mut Sample<'_>) -> std::fmt::Result {
        let Inner { name, limits, places, handshakes, counters, .. } = &*self.0;
        let Counters {
            accepted,
            handshakes_failed,
            handshakes_late,
            closed_full,
            refused_full,
            closed_idle,
            accept_failed,
        } = counters;
        let taken = |all: usize, free: &Semaphore| all.saturating_sub(free.available_permits()) as u64;
        let named = |what: &str| format!("{name}_{what}");
        to.gauge(&named("connections"), "Connections now.", taken(limits.connections, places))?;
        to.gauge(&named("connections_limit"), "Connections that may be open at once.", limits.connections as u64)?;
        to.gauge(&named("handshakes"), "TLS handshakes under way.", taken(limits.handshakes, handshakes))?;
        for (what, help, counter) in [
            ("connections_accepted", "Connections accepted, whatever became of them.", accepted),
            ("handshakes_failed", "Connections that ended in the TLS handshake.", handshakes_failed),
            ("handshakes_late", "Connections whose TLS handshake took too long.", handshakes_late),
            ("connections_closed_full", "Connections closed at once because too many were open.", closed_full),
            ("connections_refused_full", "Connections told that too many are open.", refused_full),
            ("connections_closed_idle", "Connections closed because nothing was asked for on them.", closed_idle),
            ("accept_failed", "Times that a connection could not be accepted.", accept_failed),
        ] {
            to.counter(&named(what), help, counter.load(Ordering::Relaxed))?;
        }
        Ok(())
    }
}
