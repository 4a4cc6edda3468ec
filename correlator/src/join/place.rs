//! Where requests and roots stand among the others of their pod: by what was asked or ran, and when. Whatever could fit one
//! of them is found there without looking at the rest.

use super::Config;
use super::ask::Ask;
use super::attempt::RequestKey;
use super::fit::{is_uid_argument, starts_prefixed};
use super::root::{Root, RootKey};
use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

/// What has to agree before anything else is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Bucket {
    /// Hash of argv without SPO's identifiers.
    Argv(u64),
    /// Requests: every one that runs a command. Roots: those whose argv was cut off, which may be any of these.
    Cut,
    /// Main processes of containers, and requests that make containers.
    Start,
}

/// Nanoseconds since 1970.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct AskPlace {
    /// Empty: no root is expected.
    pub(super) buckets: Vec<Bucket>,
    pub(super) from: u64,
    pub(super) until: u64,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct RootPlace {
    pub(super) buckets: Vec<Bucket>,
    pub(super) entered: u64,
}

/// `None` sorts first: where a range begins.
type Shelf<K> = BTreeSet<(Bucket, u64, Option<K>)>;

#[derive(Debug, Default)]
pub(super) struct Index {
    /// By the begin of the window.
    asks: Shelf<RequestKey>,
    roots: Shelf<Arc<RootKey>>,
}

impl AskPlace {
    /// `widen`: how much the clocks of any node may add to the window on both sides.
    pub(super) fn of(ask: &Ask<'_>, config: &Config, widen: u64) -> Self {
        let lead = ask.lead();
        if !lead.expects_root() || !lead.could_have_run() {
            return Self::default();
        }
        let (from, until) = ask.window(config, widen);
        let buckets = if lead.is_debug() {
            vec![Bucket::Start]
        } else {
            vec![Bucket::Argv(argv_hash(&lead.access.argv)), Bucket::Cut]
        };
        Self { buckets, from, until }
    }
}

impl RootPlace {
    pub(super) fn of(root: &Root) -> Self {
        let entry = root.entry.how.as_str();
        let mut buckets = Vec::new();
        if matches!(entry, "start" | "unknown") {
            buckets.push(Bucket::Start);
        }
        if let Some((_, first)) = root.first_exec().filter(|_| entry != "start") {
            let whole = first.argv_truncated_bytes == 0;
            buckets.push(if whole { Bucket::Argv(argv_hash(&first.argv)) } else { Bucket::Cut });
        }
        Self { buckets, entered: root.entered() }
    }

    /// The earliest and latest begin of a window that it could be in.
    fn begins(&self, bucket: Bucket, config: &Config, widen: u64) -> (u64, u64) {
        let longest = if bucket == Bucket::Start { config.debug_start_within_ns } else { config.start_within_ns };
        let reach = longest.saturating_add(config.skew_ns).saturating_add(widen.saturating_mul(2));
        (self.entered.saturating_sub(reach), self.entered)
    }
}

impl Index {
    pub(super) fn add_ask(&mut self, place: &AskPlace, ask: &RequestKey) {
        for bucket in &place.buckets {
            // Every root whose argv is whole looks into its own bucket only.
            self.asks.insert((*bucket, place.from, Some(Arc::clone(ask))));
        }
    }

    pub(super) fn remove_ask(&mut self, place: &AskPlace, ask: &RequestKey) {
        for bucket in &place.buckets {
            self.asks.remove(&(*bucket, place.from, Some(Arc::clone(ask))));
        }
    }

    pub(super) fn add_root(&mut self, place: &RootPlace, root: &Arc<RootKey>) {
        for bucket in &place.buckets {
            self.roots.insert((*bucket, place.entered, Some(Arc::clone(root))));
        }
    }

    pub(super) fn remove_root(&mut self, place: &RootPlace, root: &Arc<RootKey>) {
        for bucket in &place.buckets {
            self.roots.remove(&(*bucket, place.entered, Some(Arc::clone(root))));
        }
    }

    /// Roots that could fit, and some that do not.
    pub(super) fn roots_near<'a>(&'a self, place: &'a AskPlace) -> impl Iterator<Item = &'a Arc<RootKey>> + 'a {
        place
            .buckets
            .iter()
            .flat_map(move |bucket| within(&self.roots, *bucket, place.from, place.until.max(place.from)))
    }

    /// Requests that could fit, and some that do not.
    pub(super) fn asks_near<'a>(
        &'a self,
        place: &'a RootPlace,
        config: &'a Config,
        widen: u64,
    ) -> impl Iterator<Item = &'a RequestKey> + 'a {
        place.buckets.iter().flat_map(move |bucket| {
            let (first, last) = place.begins(*bucket, config, widen);
            within(&self.asks, *bucket, first, last)
        })
    }
}

/// Those of a bucket from `first` to `last`.
fn within<K: Ord>(shelf: &Shelf<K>, bucket: Bucket, first: u64, last: u64) -> impl Iterator<Item = &K> {
    let range = shelf.range((bucket, first, None)..(bucket, last.saturating_add(1), None));
    range.filter_map(|(_, _, key)| key.as_ref())
}

/// Equal for what was asked and for whatever SPO's rule makes of it.
pub(super) fn argv_hash(argv: &[String]) -> u64 {
    let mut hasher = DefaultHasher::new();
    let rest = if starts_prefixed(argv) { argv.get(2..).unwrap_or_default() } else { argv };
    for argument in rest {
        if is_uid_argument(argument) { "=" } else { argument.as_str() }.hash(&mut hasher);
    }
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::argv_hash;
    use crate::join::fit::rewritten;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_spo_makes_of_a_command_stays_in_its_bucket(
            argv in proptest::collection::vec("(env|sh|SPO_EXEC_REQUEST_UID=[a-c]?|[a-c\n]{0,2})", 0..5),
        ) {
            prop_assert_eq!(argv_hash(&argv), argv_hash(&rewritten(&argv, "u").0));
        }
    }
}
