//! Which streams speak for which node now. Two that are both alive are a finding: a node's key was copied.
//!
//! A stream that was cut off looks alive until the transport gives it up, and what it had sent may be read late. So two
//! count as alive together only when each said something, by its own clock and by ours, after the other had begun.

use seclog_proto::v1::{Hello, SharedIdentity};
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What messages may overtake each other by, nanoseconds.
const MARGIN_NS: u64 = 1_000_000_000;

#[derive(Debug, Default)]
pub(super) struct Beats(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    next: u64,
    by_node: BTreeMap<String, Vec<Stream>>,
}

#[derive(Debug)]
struct Stream {
    number: u64,
    /// Of the agent's process; its number where it does not say.
    instance: u64,
    epoch: u64,
    peer: String,
    /// By the agent's clock and by ours, nanoseconds since 1970.
    began: (u64, u64),
    heard: (u64, u64),
    /// Instances that were told of together with this one.
    told: Vec<u64>,
}

/// A stream, as long as it is open.
#[derive(Debug)]
pub(super) struct Live<'a> {
    beats: &'a Beats,
    node: String,
    number: u64,
}

// === impl Beats ===

impl Beats {
    fn state(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere leaves nothing half done here.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn begin(&self, node: &str, peer: &str, hello: &Hello) -> Live<'_> {
        let mut state = self.state();
        state.next += 1;
        let number = state.next;
        let began = (hello.sent_unix_ns, super::now());
        let instance = if hello.instance == 0 { number } else { hello.instance };
        let stream = Stream {
            number,
            instance,
            epoch: hello.epoch,
            peer: peer.to_owned(),
            began,
            heard: (0, 0),
            told: Vec::new(),
        };
        state.by_node.entry(node.to_owned()).or_default().push(stream);
        Live { beats: self, node: node.to_owned(), number }
    }
}

// === impl Stream ===

impl Stream {
    fn spoke_after(&self, other: &Self) -> bool {
        let after = |heard: u64, began: u64| heard > began.saturating_add(MARGIN_NS);
        after(self.heard.0, other.began.0) && after(self.heard.1, other.began.1)
    }
}

// === impl Live ===

impl Live<'_> {
    /// A heartbeat came, sent and received at these times. Says so once when another agent speaks for the node too.
    pub(super) fn beat(&self, sent: u64, received: u64) -> Option<SharedIdentity> {
        let mut state = self.beats.state();
        let streams = state.by_node.get_mut(&self.node)?;
        let at = streams.iter().position(|stream| stream.number == self.number)?;
        streams.get_mut(at)?.heard = (sent, received);
        let this = streams.get(at)?;
        let is_other = |other: &&Stream| {
            other.instance != this.instance
                && this.spoke_after(other)
                && other.spoke_after(this)
                && !this.told.contains(&other.instance)
                && !other.told.contains(&this.instance)
        };
        let other = streams.iter().find(is_other)?;
        let found = SharedIdentity {
            node: self.node.clone(),
            peers: vec![other.peer.clone(), this.peer.clone()],
            epochs: vec![other.epoch, this.epoch],
        };
        let instance = other.instance;
        streams.get_mut(at)?.told.push(instance);
        Some(found)
    }
}

impl Drop for Live<'_> {
    fn drop(&mut self) {
        let mut state = self.beats.state();
        if let Some(streams) = state.by_node.get_mut(&self.node) {
            streams.retain(|stream| stream.number != self.number);
            if streams.is_empty() {
                state.by_node.remove(&self.node);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello(instance: u64, sent_unix_ns: u64) -> Hello {
        Hello { instance, sent_unix_ns, ..Hello::default() }
    }

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn two_agents_that_both_go_on_speaking_are_one_finding() {
        let beats = Beats::default();
        let now = super::super::now();
        let one = beats.begin("n", "10.0.0.1:1", &hello(1, now));
        let two = beats.begin("n", "10.0.0.2:1", &hello(2, now));
        let later = |seconds: u64| now + seconds * SECOND;
        assert_eq!(one.beat(later(5), later(5)), None);
        let found = two.beat(later(6), later(6)).unwrap();
        assert_eq!(found.peers, ["10.0.0.1:1", "10.0.0.2:1"]);
        assert_eq!(one.beat(later(10), later(10)), None, "told once");
        drop(one);
        assert_eq!(two.beat(later(11), later(11)), None);
    }

    #[test]
    fn an_agent_that_connects_again_is_no_finding_while_its_old_stream_is_still_open() {
        let beats = Beats::default();
        let now = super::super::now();
        let later = |seconds: u64| now + seconds * SECOND;
        let old = beats.begin("n", "p", &hello(1, now));
        let again = beats.begin("n", "p", &hello(1, later(3)));
        assert_eq!(old.beat(later(5), later(9)), None);
        assert_eq!(again.beat(later(6), later(10)), None, "the same process");
        drop(again);
        // A restarted agent; the last words of the one before are read late.
        let restarted = beats.begin("n", "p", &hello(2, later(20)));
        assert_eq!(restarted.beat(later(25), later(25)), None);
        assert_eq!(old.beat(later(19), later(30)), None);
        assert_eq!(restarted.beat(later(30), later(31)), None);
    }
}
