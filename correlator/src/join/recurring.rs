//! Commands that the runtime's synchronous exec ran more than once in one container, as the kubelet's probes are run. Where
//! no audit record ever showed the pod's spec (a policy without bodies, a pod older than the log), this is all that tells a
//! probe that comes every ten seconds from an entry: the first is told, those that repeat it are not.

use super::place::argv_hash;
use super::root::{Root, RootKey};
use super::scope::Scope;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Of one container, by name, the hash of argv.
type Command = (Arc<Scope>, String, u64);

#[derive(Debug, Default)]
pub(super) struct Recurring {
    commands: BTreeMap<Command, Seen>,
}

#[derive(Debug)]
struct Seen {
    /// The earliest that is known; a root that comes late may be earlier.
    first: (u64, Arc<RootKey>),
    recurs: bool,
    /// The join's `now` when one last came.
    at: u64,
}

impl Recurring {
    /// Roots of which more is known now. Where there is no room, a command is one that was never seen: it is told.
    pub(super) fn add(&mut self, scope: &Arc<Scope>, root: &Root, now: u64, most: usize) -> Vec<Arc<RootKey>> {
        let Some(command) = command(scope, root) else { return Vec::new() };
        let this = (root.entered(), Arc::clone(&root.key));
        let is_full = self.commands.len() >= most;
        let Some(seen) = self.commands.get_mut(&command) else {
            if !is_full {
                self.commands.insert(command, Seen { first: this, recurs: false, at: now });
            }
            return Vec::new();
        };
        seen.at = now;
        if seen.first.1 == this.1 {
            seen.first.0 = this.0;
            return Vec::new();
        }
        let first = Arc::clone(&seen.first.1);
        let news = this < seen.first || !seen.recurs;
        seen.first = std::cmp::min(seen.first.clone(), this);
        seen.recurs = true;
        if news { vec![first] } else { Vec::new() }
    }

    /// The root that ran the same command in the same container before this one.
    pub(super) fn before(&self, scope: &Arc<Scope>, root: &Root) -> Option<&Arc<RootKey>> {
        let seen = self.commands.get(&command(scope, root)?)?;
        Some(&seen.first.1).filter(|first| **first != root.key)
    }

    /// Others ran the same command in the same container.
    pub(super) fn recurs(&self, scope: &Arc<Scope>, root: &Root) -> bool {
        command(scope, root).and_then(|command| self.commands.get(&command)).is_some_and(|seen| seen.recurs)
    }

    pub(super) fn forget_before(&mut self, at: u64) {
        self.commands.retain(|_, seen| seen.at >= at);
    }
}

fn command(scope: &Arc<Scope>, root: &Root) -> Option<Command> {
    let (_, first) = root.first_exec().filter(|_| root.entry.how == "exec_sync")?;
    let container = root.container().filter(|container| !container.name.is_empty())?;
    // What was cut off may be another command.
    let whole = first.argv_truncated_bytes == 0;
    whole.then(|| (Arc::clone(scope), container.name.clone(), argv_hash(&first.argv)))
}
