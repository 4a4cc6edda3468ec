//! The join's times and bounds.

use seclog_masking::Rules;
use std::sync::Arc;

/// Times are nanoseconds.
#[derive(Debug, Clone)]
pub struct Config {
    pub cluster: String,
    /// Secrets in what was asked for are masked by these, as the agents mask what ran.
    pub masking: Option<Arc<Rules>>,
    /// How far the clocks of API server and node may be apart.
    pub skew_ns: u64,
    /// How much more than that the samples of a node's clock may widen its windows.
    pub max_skew_ns: u64,
    /// How long after the response has completed a root may still enter.
    pub slack_ns: u64,
    /// How long after the request a root may enter.
    pub start_within_ns: u64,
    /// The same for containers that have to be made first.
    pub debug_start_within_ns: u64,
    /// How long a finding is held back for what usually follows at once.
    pub settle_ns: u64,
    /// Revisions of one session are at least this far apart.
    pub revise_after_ns: u64,
    /// What goes on is revised ever less often, half as often as it is old, but after so long at the latest.
    pub revise_at_least_every_ns: u64,
    /// How long to wait for node records where no node was ever heard of.
    pub node_patience_ns: u64,
    /// A node whose watermark has not moved for this long is silent: nobody waits for it.
    pub node_silent_ns: u64,
    /// A node whose lease was not renewed for so long is down. Kubelets renew every ten seconds; about one a minute is kept.
    pub lease_within_ns: u64,
    /// How long a node may live before an agent must have spoken for it.
    pub agent_within_ns: u64,
    /// The audit stream is silent when nothing came for this long. API servers are never idle: nodes renew leases.
    pub audit_silent_ns: u64,
    /// How late audit events are where nothing is amiss: a batching webhook waits 30 s by default.
    pub audit_lateness_ns: u64,
    /// How late a webhook's events may be that are tried again: five attempts of 30 s each and the waits between them
    /// (k8s.io/apiserver, plugin/pkg/audit/webhook: 10 s, each 1.5 times the one before). Then they are given up.
    pub audit_retries_ns: u64,
    /// Finished sessions are kept this long for late news.
    pub horizon_ns: u64,
    /// Sessions that never end are let go after this.
    pub longest_ns: u64,
    /// How often to look for what can be let go.
    pub sweep_every_ns: u64,
    /// What the programs of sessions did takes so many bytes of memory at most, near enough: beyond, the oldest wait in the
    /// attic, and where there is none or it is full, lists of programs are let go at twice as many.
    pub most_deed_bytes: usize,
    /// Requests and roots take so many bytes at most besides, going by [`REQUEST_BYTES`] and [`ROOT_BYTES`]: beyond, new ones are
    /// turned away and counted.
    pub most_element_bytes: usize,
    pub max_pods: usize,
    pub max_containers: usize,
    pub max_losses: usize,
    /// Commands of which it is remembered that they ran, so that their repetition is known as such.
    pub max_commands: usize,
    /// Ids of what was let go, so that stragglers are known as such.
    pub max_gone: usize,
    /// More possible partners than this: none of them is asserted, and no conclusion goes on from there.
    pub max_candidates: usize,
    pub starts_per_root: usize,
    pub verdicts_per_root: usize,
    pub containers_per_root: usize,
    pub moves_per_root: usize,
    /// Counts without detail that are kept of each pod.
    pub counts_per_pod: usize,
    pub facts_per_pod: usize,
}

const SECOND: u64 = 1_000_000_000;
/// Bytes that an open request takes, with everything that is kept because of it; what was measured, rounded up
/// (correlator/tests/memory.rs).
pub const REQUEST_BYTES: usize = 2_500;
/// The same of a root, without what its programs did.
pub const ROOT_BYTES: usize = 3_500;
pub const DEFAULT_MEMORY: usize = 512 << 20;

impl Config {
    /// Memory of the join, bytes: a quarter is for what programs did.
    pub fn set_memory(&mut self, bytes: usize) {
        self.most_deed_bytes = bytes / 4;
        self.most_element_bytes = bytes / 4 * 3;
    }

    pub fn new(cluster: impl Into<String>) -> Self {
        Self {
            cluster: cluster.into(),
            masking: None,
            skew_ns: SECOND,
            max_skew_ns: 10 * SECOND,
            slack_ns: SECOND,
            start_within_ns: 30 * SECOND,
            debug_start_within_ns: 600 * SECOND,
            settle_ns: 2 * SECOND,
            revise_after_ns: SECOND,
            revise_at_least_every_ns: 10 * SECOND,
            node_patience_ns: 10 * SECOND,
            node_silent_ns: 30 * SECOND,
            lease_within_ns: 180 * SECOND,
            agent_within_ns: 600 * SECOND,
            audit_silent_ns: 120 * SECOND,
            audit_lateness_ns: 45 * SECOND,
            audit_retries_ns: 250 * SECOND,
            horizon_ns: 900 * SECOND,
            longest_ns: 86_400 * SECOND,
            sweep_every_ns: 20 * SECOND,
            most_deed_bytes: DEFAULT_MEMORY / 4,
            most_element_bytes: DEFAULT_MEMORY / 4 * 3,
            max_pods: 200_000,
            max_containers: 200_000,
            max_losses: 10_000,
            max_commands: 100_000,
            max_gone: 200_000,
            max_candidates: 32,
            starts_per_root: 1_000,
            verdicts_per_root: 4_096,
            containers_per_root: 8,
            moves_per_root: 64,
            counts_per_pod: 1_000,
            facts_per_pod: 64,
        }
    }
}
