//! How far a node's clock is off, from samples of both clocks. It widens windows and never narrows or shifts one.

use super::Config;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// The best of these counts: delays only make a node's clock look further behind.
const SAMPLES: usize = 16;
/// Estimates are rounded up to a multiple, so that noise changes nothing.
const STEP_NS: u64 = 250_000_000;

#[derive(Debug, Default)]
pub(super) struct Skews {
    nodes: BTreeMap<Arc<str>, Skew>,
    widest: u64,
}

#[derive(Debug, Default)]
struct Skew {
    /// Received minus sent, nanoseconds.
    samples: VecDeque<i64>,
    /// By how much windows are widened for this node, and when it was last as much.
    widens: u64,
    at: u64,
}

impl Skews {
    /// True where windows change.
    pub(super) fn sample(&mut self, node: &Arc<str>, sent: u64, received: u64, config: &Config) -> bool {
        let skew = self.nodes.entry(Arc::clone(node)).or_default();
        let distance = i64::try_from(i128::from(received) - i128::from(sent)).unwrap_or(i64::MAX);
        skew.samples.push_back(distance);
        if skew.samples.len() > SAMPLES {
            skew.samples.pop_front();
        }
        let off = skew.samples.iter().copied().min().unwrap_or_default().unsigned_abs();
        // What is below one step is delay as likely as skew.
        let estimate = if off < STEP_NS { 0 } else { off.div_ceil(STEP_NS).saturating_mul(STEP_NS) };
        let estimate = estimate.min(config.max_skew_ns);
        // A clock that was put right leaves records of before: the wider window stays until those are let go.
        let outdated = received.saturating_sub(skew.at) > config.horizon_ns;
        if estimate >= skew.widens {
            skew.at = received;
        }
        if estimate > skew.widens || (outdated && estimate < skew.widens) {
            (skew.widens, skew.at) = (estimate, received);
            self.widest = self.nodes.values().map(|skew| skew.widens).max().unwrap_or_default();
            return true;
        }
        false
    }

    pub(super) fn of(&self, node: &str) -> u64 {
        self.nodes.get(node).map_or(0, |skew| skew.widens)
    }

    pub(super) fn widest(&self) -> u64 {
        self.widest
    }
}

#[cfg(test)]
mod tests {
    use super::Skews;
    use crate::join::Config;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn delays_are_no_skew_and_skew_is_bounded() {
        let (config, node) = (Config::new("c"), "n".into());
        let mut skews = Skews::default();
        assert!(!skews.sample(&node, 100 * SECOND, 100 * SECOND + 100, &config));
        assert!(!skews.sample(&node, 101 * SECOND, 104 * SECOND, &config), "a message that was slow");
        assert!(skews.sample(&node, 107 * SECOND, 105 * SECOND, &config), "a clock that is ahead");
        assert_eq!(skews.of("n"), 2 * SECOND);
        skews.sample(&node, 900 * SECOND, 106 * SECOND, &config);
        assert_eq!((skews.of("n"), skews.widest()), (config.max_skew_ns, config.max_skew_ns));
        assert_eq!(skews.of("other"), 0);
    }
}
