//! SPO's identifiers: which requests the API server recorded each for, and which roots carry it in their first argv. Over
//! all pods of the cluster.

use super::attempt::RequestKey;
use super::root::{Root, RootKey};
use super::scope::Scope;
use crate::audit::SPO_UID;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

/// Arguments of one root that are looked at; SPO makes one.
const MOST_OF_A_ROOT: usize = 8;

#[derive(Debug, Default)]
pub(super) struct Identifiers {
    recorded: HashMap<String, BTreeSet<(Arc<Scope>, RequestKey)>>,
    carried: HashMap<String, BTreeSet<Arc<RootKey>>>,
}

impl Identifiers {
    /// How many requests it was recorded for.
    pub(super) fn requests(&self, uid: &str) -> usize {
        self.recorded.get(uid).map_or(0, BTreeSet::len)
    }

    /// How many roots carry it.
    pub(super) fn carriers(&self, uid: &str) -> usize {
        self.carried.get(uid).map_or(0, BTreeSet::len)
    }

    pub(super) fn record(&mut self, uid: &str, scope: &Arc<Scope>, request: &RequestKey) {
        self.recorded.entry(uid.to_owned()).or_default().insert((Arc::clone(scope), Arc::clone(request)));
    }

    pub(super) fn forget_request(&mut self, uid: &str, scope: &Arc<Scope>, request: &RequestKey) {
        if let Some(requests) = self.recorded.get_mut(uid) {
            requests.remove(&(Arc::clone(scope), Arc::clone(request)));
            if requests.is_empty() {
                self.recorded.remove(uid);
            }
        }
    }

    pub(super) fn carry(&mut self, uid: &str, root: &Arc<RootKey>) {
        self.carried.entry(uid.to_owned()).or_default().insert(Arc::clone(root));
    }

    pub(super) fn forget_root(&mut self, uid: &str, root: &Arc<RootKey>) {
        if let Some(roots) = self.carried.get_mut(uid) {
            roots.remove(root);
            if roots.is_empty() {
                self.carried.remove(uid);
            }
        }
    }

    /// Everything that an identifier is known of.
    pub(super) fn holders(&self, uid: &str) -> Holders {
        let requests = self.recorded.get(uid).into_iter().flatten().cloned().collect();
        (requests, self.carried.get(uid).into_iter().flatten().cloned().collect())
    }
}

/// Requests and roots that an identifier is known of.
type Holders = (Vec<(Arc<Scope>, RequestKey)>, Vec<Arc<RootKey>>);

/// The identifiers in the argv of a root's first exec. Values of the container's own environment are none.
pub(super) fn of_root(root: &Root) -> BTreeSet<String> {
    let argv = root.first_exec().map(|(_, first)| first.argv.as_slice()).unwrap_or_default();
    let marked = argv.iter().filter_map(|argument| argument.strip_prefix(SPO_UID)?.strip_prefix('='));
    marked.filter(|value| !root.is_own_value(value)).take(MOST_OF_A_ROOT).map(str::to_owned).collect()
}
