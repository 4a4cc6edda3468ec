//! Programs by which a session asks a daemon of the node to run something: what the daemon then starts is not below the
//! session, so it can only be named as possible.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use uuid::Uuid;

/// Clients of daemons that start processes for them.
const PROGRAMS: [&str; 13] = [
    "systemd-run",
    "systemctl",
    "busctl",
    "dbus-send",
    "gdbus",
    "crictl",
    "ctr",
    "nerdctl",
    "podman",
    "docker",
    "crontab",
    "at",
    "batch",
];
/// How long after it something may come of it, nanoseconds. (cron may take its time; then nothing is said.)
const WITHIN_NS: u64 = 60_000_000_000;
/// Remembered of each node, the latest.
const PER_NODE: usize = 64;
const MAX_NODES: usize = 20_000;

#[derive(Debug, Default)]
pub(super) struct Askers {
    nodes: BTreeMap<Arc<str>, BTreeSet<(u64, Uuid, &'static str)>>,
}

/// The daemon's client that a program is.
pub(super) fn asks(filename: &str) -> Option<&'static str> {
    let name = filename.rsplit('/').next().unwrap_or_default();
    PROGRAMS.iter().copied().find(|program| *program == name)
}

impl Askers {
    /// `root`: of the session that ran it.
    pub(super) fn add(&mut self, node: &Arc<str>, time: u64, root: Uuid, program: &'static str) {
        if self.nodes.len() >= MAX_NODES && !self.nodes.contains_key(node) {
            return;
        }
        let known = self.nodes.entry(Arc::clone(node)).or_default();
        known.insert((time, root, program));
        if known.len() > PER_NODE {
            known.pop_first();
        }
    }

    /// Those that something which began at `time` may have come of.
    pub(super) fn before(&self, node: &str, time: u64) -> impl Iterator<Item = &(u64, Uuid, &'static str)> {
        let from = (time.saturating_sub(WITHIN_NS), Uuid::nil(), "");
        let until = (time, Uuid::max(), "\u{7f}");
        self.nodes.get(node).into_iter().flat_map(move |known| known.range(from..=until))
    }

    /// Whether something that began at `time` may have come of one at `asked`.
    pub(super) fn may_follow(asked: u64, time: u64) -> bool {
        (asked..=asked.saturating_add(WITHIN_NS)).contains(&time)
    }

    pub(super) fn forget(&mut self, before: u64) {
        self.nodes.retain(|_, known| {
            known.retain(|(time, ..)| *time >= before);
            !known.is_empty()
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_began_soon_after_may_have_come_of_it_and_memory_is_bounded() {
        let node: Arc<str> = "n".into();
        let mut askers = Askers::default();
        for time in 0..1000 {
            askers.add(&node, time, Uuid::nil(), "crictl");
        }
        assert_eq!(askers.nodes["n"].len(), PER_NODE);
        assert_eq!(askers.before("n", 940).count(), 5);
        assert_eq!(askers.before("n", 999 + WITHIN_NS + 1).count(), 0);
        assert_eq!(askers.before("other", 999).count(), 0);
        askers.forget(999);
        assert_eq!(askers.before("n", 999).count(), 1);
        assert_eq!(asks("/usr/bin/crictl"), Some("crictl"));
        assert_eq!(asks("/bin/cat"), None);
    }
}
