//! One wish of one user, which may take several requests: kubectl tries WebSocket, then SPDY; `kubectl debug` patches a pod
//! or makes one, then attaches.

use super::Config;
use super::attempt::Attempt;
use super::fit::rewritten;
use super::session::{Kind, Outcome};
use crate::audit::{AccessKind, is_rsh};
use std::collections::BTreeSet;
use std::ops::Deref;
use uuid::Uuid;

/// kubectl falls back within milliseconds (k8s.io/kubectl remotecommand fallback executor).
pub(super) const RETRY_WITHIN_NS: u64 = 1_000_000_000;
/// Without bodies (audit level Metadata) the attach that follows a patch this closely names the debug container.
const ATTACH_WITHIN_NS: u64 = 120_000_000_000;

#[derive(Debug)]
pub(super) struct Ask<'a> {
    pub(super) id: Uuid,
    /// In the order of time; the retries of one request, never empty.
    pub(super) tries: Vec<&'a Attempt>,
    /// Attaches to the container that this made.
    pub(super) attaches: Vec<&'a Attempt>,
}

/// One that is compared with many roots.
#[derive(Debug)]
pub(super) struct Asked<'a> {
    ask: Ask<'a>,
    pub(super) containers: BTreeSet<&'a str>,
    /// argv as SPO's rule makes it with the identifier that was recorded, and whether by putting `env` in front.
    pub(super) rewritten: Option<(Vec<String>, bool)>,
}

impl<'a> Asked<'a> {
    pub(super) fn new(ask: Ask<'a>) -> Self {
        let lead = ask.lead();
        let rewritten = lead.spo_uid().map(|uid| rewritten(&lead.access.argv, uid));
        Self { containers: ask.containers(), rewritten, ask }
    }
}

impl<'a> Deref for Asked<'a> {
    type Target = Ask<'a>;

    fn deref(&self) -> &Ask<'a> {
        &self.ask
    }
}

impl<'a> Ask<'a> {
    /// The last try: it decided.
    pub(super) fn lead(&self) -> &'a Attempt {
        // `fold` never makes an empty one; the first is a try like any other.
        self.tries[self.tries.len() - 1]
    }

    pub(super) fn first(&self) -> &'a Attempt {
        self.tries[0]
    }

    pub(super) fn kind(&self) -> Kind {
        let access = &self.lead().access;
        match access.kind {
            AccessKind::Exec if is_rsh(&access.argv) => Kind::Rsh,
            AccessKind::Exec => Kind::Exec,
            AccessKind::Attach => Kind::Attach,
            AccessKind::PortForward => Kind::PortForward,
            AccessKind::Ephemeral => Kind::DebugContainer,
            AccessKind::NodeDebug => Kind::DebugNode,
            AccessKind::ProxyExec | AccessKind::ProxyRun | AccessKind::ProxyAttach | AccessKind::ProxyPortForward => {
                Kind::NodeProxy
            }
        }
    }

    /// Containers in which its root would be; empty where any of the pod could be it.
    pub(super) fn containers(&self) -> BTreeSet<&'a str> {
        let access = &self.lead().access;
        let mut names: BTreeSet<&str> = access.new_containers.iter().map(|made| made.name.as_str()).collect();
        names.extend(access.container.as_deref());
        if names.is_empty() {
            names.extend(self.attaches.iter().filter_map(|attach| attach.access.container.as_deref()));
        }
        names
    }

    /// When the last stream of it closed; `None` while one is open, and for debug containers that nobody attached to.
    pub(super) fn closed_at(&self) -> Option<u64> {
        if self.lead().is_debug() && self.lead().outcome() == Outcome::Accepted {
            let closes: Option<Vec<u64>> = self.attaches.iter().map(|attach| attach.completed()).collect();
            return closes.and_then(|closes| closes.into_iter().max());
        }
        self.lead().completed()
    }

    /// Wall times between which its root must have entered.
    /// `widen`: what the samples of clocks add on both sides.
    pub(super) fn window(&self, config: &Config, widen: u64) -> (u64, u64) {
        let lead = self.lead();
        let received = lead.identity.received;
        let begin = match lead.access.kind {
            // The kubelet's answer to `run` comes when the command has ended.
            AccessKind::ProxyExec | AccessKind::ProxyRun | AccessKind::Ephemeral | AccessKind::NodeDebug => received,
            _ => lead.started().unwrap_or(received),
        };
        let longest = if lead.is_debug() { config.debug_start_within_ns } else { config.start_within_ns };
        // A session that stays open for hours must not lay claim to every later exec of the same command.
        let latest = begin.saturating_add(longest);
        let until = match lead.completed() {
            Some(completed) if !lead.is_debug() => latest.min(completed.saturating_add(config.slack_ns)),
            _ => latest,
        };
        (begin.saturating_sub(config.skew_ns).saturating_sub(widen), until.saturating_add(widen))
    }
}

/// Groups the requests of one pod, given in the order of [`crate::audit::Identity`] (time first).
pub(super) fn fold<'a>(attempts: impl Iterator<Item = &'a Attempt>) -> Vec<Ask<'a>> {
    let mut asks: Vec<Ask<'a>> = Vec::new();
    for attempt in attempts {
        let received = attempt.identity.received;
        let recent = |ask: &&mut Ask<'_>| received - ask.first().identity.received <= RETRY_WITHIN_NS;
        let retried = asks.iter_mut().rev().take_while(recent).find(|ask| is_retry(ask, attempt));
        if let Some(ask) = retried {
            ask.tries.push(attempt);
        } else if let Some(ask) = made_for(&mut asks, attempt) {
            ask.attaches.push(attempt);
        } else {
            asks.push(Ask { id: attempt.id, tries: vec![attempt], attaches: Vec::new() });
        }
    }
    asks
}

fn is_retry(ask: &Ask<'_>, attempt: &Attempt) -> bool {
    let [first] = ask.tries.as_slice() else { return false };
    first.verb == "get"
        && attempt.verb == "create"
        && first.code().is_some_and(|code| code >= 400)
        && first.access.kind == attempt.access.kind
        && first.same_user(attempt)
        && first.identity.uri == attempt.identity.uri
}

/// The debug request whose container this attaches to, the latest if there are several.
fn made_for<'b, 'a>(asks: &'b mut [Ask<'a>], attempt: &Attempt) -> Option<&'b mut Ask<'a>> {
    if attempt.access.kind != AccessKind::Attach {
        return None;
    }
    asks.iter_mut().rev().find(|ask| {
        let lead = ask.lead();
        let made = &lead.access.new_containers;
        let names_it = match (&attempt.access.container, made.as_slice()) {
            (Some(container), []) => {
                let already = ask.containers();
                let soon = attempt.identity.received - lead.identity.received <= ATTACH_WITHIN_NS;
                already.contains(container.as_str()) || (already.is_empty() && soon)
            }
            (Some(container), made) => made.iter().any(|made| made.name == *container),
            (None, _) => lead.access.kind == AccessKind::NodeDebug,
        };
        lead.is_debug() && lead.outcome() == Outcome::Accepted && lead.same_user(attempt) && names_it
    })
}
