//! Which audit events are known, and by which routes they came: the state that makes one event of many copies.

use crate::audit::{Digest, Kept, KeptEvent};
use crate::join::Route;
use std::collections::{BTreeSet, HashMap, VecDeque};

/// Events remembered; beyond, the oldest are forgotten. About 200 bytes each.
const MOST_KNOWN: usize = 400_000;

/// What an event is to what is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    New {
        /// Another event speaks of the same moment of the same request.
        contradicts: bool,
        /// Another request of the same audit id was seen at the same stage.
        reuses: bool,
    },
    /// It came by another route before.
    Seen,
    /// It came by this route before.
    Repeated,
}

/// What is known of one event.
#[derive(Debug, Clone)]
struct Known {
    routes: Routes,
    /// Nanoseconds since 1970, by our clock.
    arrived: u64,
    stage_time: u64,
    is_access: bool,
    audit_id: Box<str>,
    moment: Digest,
    claimed: Digest,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Moment {
    whole: Digest,
    bare: Digest,
    truncated: bool,
}

/// A set of routes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Routes(u8);

#[derive(Debug, Default)]
pub(super) struct Memory {
    known: HashMap<Digest, Known>,
    moments: HashMap<Digest, Moment>,
    /// Moments by audit id and stage.
    claimed: HashMap<Digest, Digest>,
    /// In the order of arrival.
    in_order: VecDeque<(u64, Digest)>,
    /// Those whose routes are not yet judged, in the order of arrival.
    unjudged: VecDeque<(u64, Digest)>,
    pub(super) forgotten: u64,
}

/// What one offer changed, so that it can be taken back.
#[derive(Debug, Default)]
pub(super) struct Changes {
    added: Vec<Digest>,
    seen: Vec<(Digest, Route)>,
}

/// An event that came by one route alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Alone {
    pub(super) route: Route,
    pub(super) stage_time: u64,
    pub(super) is_access: bool,
    pub(super) audit_id: Box<str>,
}

impl Memory {
    pub(super) fn offer(&mut self, event: &KeptEvent, route: Route, now: u64, changes: &mut Changes) -> Verdict {
        let print = &event.fingerprint;
        if let Some(known) = self.known.get_mut(&print.whole) {
            return sighting(known, print.whole, route, changes);
        }
        let moment = Moment { whole: print.whole, bare: print.bare, truncated: print.truncated };
        let mut contradicts = false;
        if let Some(other) = self.moments.get(&print.moment) {
            // The API server leaves bodies out where a backend's events would be too large: what has them is news, what
            // has not is a sighting.
            let bodies_left_out = other.bare == moment.bare && (other.truncated || moment.truncated);
            if bodies_left_out && !other.truncated {
                let whole = other.whole;
                if let Some(known) = self.known.get_mut(&whole) {
                    return sighting(known, whole, route, changes);
                }
            }
            contradicts = !bodies_left_out;
        }
        let other = self.claimed.get(&print.claimed);
        let reuses = event.core && other.is_some_and(|other| *other != print.moment);
        self.moments.entry(print.moment).or_insert(moment);
        self.claimed.entry(print.claimed).or_insert(print.moment);
        let known = Known {
            routes: Routes::of(route),
            arrived: now,
            stage_time: event.stage_time,
            is_access: event.kept == Kept::Access,
            audit_id: event.audit_id.chars().take(64).collect(),
            moment: print.moment,
            claimed: print.claimed,
        };
        self.known.insert(print.whole, known);
        self.in_order.push_back((now, print.whole));
        self.unjudged.push_back((now, print.whole));
        changes.added.push(print.whole);
        self.bound();
        Verdict::New { contradicts, reuses }
    }

    /// A sighting that is known from before a restart.
    pub(super) fn seen(&mut self, digest: Digest, route: Route) {
        if let Some(known) = self.known.get_mut(&digest) {
            known.routes.add(route);
        }
    }

    /// As if the offer had not been.
    pub(super) fn take_back(&mut self, changes: Changes) {
        for (digest, route) in changes.seen {
            if let Some(known) = self.known.get_mut(&digest) {
                known.routes.remove(route);
            }
        }
        for digest in changes.added {
            self.forget(digest);
        }
    }

    /// Those that arrived before a time and came by one route alone, each once.
    pub(super) fn judge(&mut self, before: u64) -> Vec<Alone> {
        let mut alone = Vec::new();
        while let Some(&(arrived, digest)) = self.unjudged.front() {
            if arrived >= before {
                break;
            }
            self.unjudged.pop_front();
            let Some(known) = self.known.get(&digest).filter(|known| known.arrived == arrived) else { continue };
            if let Some(route) = known.routes.only() {
                let Known { stage_time, is_access, audit_id, .. } = known.clone();
                alone.push(Alone { route, stage_time, is_access, audit_id });
            }
        }
        alone
    }

    pub(super) fn len(&self) -> usize {
        self.known.len()
    }

    fn bound(&mut self) {
        while self.known.len() > MOST_KNOWN {
            let Some((arrived, digest)) = self.in_order.pop_front() else { return };
            if self.known.get(&digest).is_some_and(|known| known.arrived == arrived) {
                self.forget(digest);
                self.forgotten += 1;
            }
        }
    }

    fn forget(&mut self, digest: Digest) {
        let Some(known) = self.known.remove(&digest) else { return };
        if self.moments.get(&known.moment).is_some_and(|moment| moment.whole == digest) {
            self.moments.remove(&known.moment);
            if self.claimed.get(&known.claimed) == Some(&known.moment) {
                self.claimed.remove(&known.claimed);
            }
        }
    }
}

fn sighting(known: &mut Known, digest: Digest, route: Route, changes: &mut Changes) -> Verdict {
    if known.routes.add(route) {
        changes.seen.push((digest, route));
        Verdict::Seen
    } else {
        Verdict::Repeated
    }
}

impl Routes {
    fn bit(route: Route) -> u8 {
        1 << Route::ALL.iter().position(|known| *known == route).unwrap_or_default()
    }

    fn of(route: Route) -> Self {
        Self(Self::bit(route))
    }

    /// True where it is news.
    fn add(&mut self, route: Route) -> bool {
        let before = self.0;
        self.0 |= Self::bit(route);
        self.0 != before
    }

    fn remove(&mut self, route: Route) {
        self.0 &= !Self::bit(route);
    }

    fn only(self) -> Option<Route> {
        (self.0.count_ones() == 1).then(|| Route::ALL.into_iter().find(|route| Self::bit(*route) == self.0)).flatten()
    }
}

/// Several of one kind in one finding.
pub(super) fn summary(alone: &[Alone], route: Route) -> Option<(u64, u64, usize, usize, BTreeSet<&str>)> {
    let of_route = || alone.iter().filter(move |event| event.route == route);
    let from = of_route().map(|event| event.stage_time).min()?;
    let until = of_route().map(|event| event.stage_time).max()?;
    let access = of_route().filter(|event| event.is_access).count();
    let named = of_route().filter(|event| event.is_access).chain(of_route().filter(|event| !event.is_access));
    let named = named.take(16).map(|event| &*event.audit_id).collect();
    Some((from, until, of_route().count(), access, named))
}
