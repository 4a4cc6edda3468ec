//! Which events matter: the one place that says so. The fast filter may only ever be more generous.

use super::Event;
use super::monitoring::OWN_NAMESPACE;

/// How the names of kubelets begin.
pub(super) const NODE_USERS: &str = "system:node:";

/// What decides whether an event matters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Head<'a> {
    pub verb: &'a [u8],
    pub username: &'a [u8],
    pub target: Target<'a>,
    /// requestReceivedTimestamp, as it stands in the event.
    pub received: &'a [u8],
}

/// What an event's objectRef names.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Target<'a> {
    pub group: &'a [u8],
    pub resource: &'a [u8],
    pub subresource: &'a [u8],
    pub namespace: &'a [u8],
    pub name: &'a [u8],
}

/// Why an event is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kept {
    /// exec, attach, port-forward, ephemeral containers, nodes/proxy.
    Access,
    /// A pod is made, changed or removed.
    Pod,
    /// The scheduler says which node is to run a pod.
    Binding,
    /// A node reports a pod's status as its own.
    NodeStatus,
    /// A node says that it is there.
    NodeLease,
    /// Somebody changes what the monitoring rests on.
    Monitoring,
}

/// What could make an event of that target matter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Possible {
    Never,
    /// Where its verb changes something.
    Write,
    /// Where it is a write, and the sample takes it.
    Lease,
    Always,
}

/// How many seconds of each minute the sample of node leases takes. Kubelets renew every ten seconds, give or take four
/// percent: about one a minute and node, the same ones on every route.
const LEASE_SECONDS: u8 = 11;

impl Target<'_> {
    pub(super) fn possible(&self) -> Possible {
        match (self.group, self.resource, self.subresource) {
            (b"", b"pods", b"exec" | b"attach" | b"portforward") | (b"", b"nodes", b"proxy") => Possible::Always,
            (b"", b"pods", b"" | b"ephemeralcontainers" | b"binding" | b"status") => Possible::Write,
            (b"coordination.k8s.io", b"leases", b"") if self.namespace == b"kube-node-lease" => Possible::Lease,
            _ if self.is_monitoring() => Possible::Write,
            _ => Possible::Never,
        }
    }

    /// What the monitoring rests on: webhook configurations, profiles, and seclog's own objects but for those that change
    /// by themselves. Status and the like is what controllers report all the time.
    pub(super) fn is_monitoring(&self) -> bool {
        let by_itself = matches!(self.resource, b"events" | b"leases" | b"endpoints" | b"endpointslices");
        let own = self.namespace == OWN_NAMESPACE.as_bytes() || self.name.starts_with(b"seclog-");
        self.subresource.is_empty()
            && (matches!(
                self.resource,
                b"mutatingwebhookconfigurations"
                    | b"validatingwebhookconfigurations"
                    | b"mutatingadmissionpolicies"
                    | b"mutatingadmissionpolicybindings"
                    | b"seccompprofiles"
                    | b"profilebindings"
                    | b"securityprofilesoperatordaemons"
            ) || own && !by_itself)
    }
}

impl Head<'_> {
    /// `None`: it does not matter.
    pub fn kept(&self) -> Option<Kept> {
        let Target { resource, subresource, .. } = self.target;
        let by_node = self.username.starts_with(NODE_USERS.as_bytes());
        let kept = match self.target.possible() {
            Possible::Never => return None,
            Possible::Always => Kept::Access,
            Possible::Lease if is_sampled(self.received) => Kept::NodeLease,
            Possible::Lease => return None,
            Possible::Write => match (resource, subresource) {
                (b"pods", b"") => Kept::Pod,
                (b"pods", b"ephemeralcontainers") => Kept::Access,
                (b"pods", b"binding") => Kept::Binding,
                (b"pods", _) if by_node => Kept::NodeStatus,
                (b"pods", _) => return None,
                // Nodes touch objects of every namespace that runs on them.
                _ if by_node => return None,
                _ => Kept::Monitoring,
            },
        };
        (kept == Kept::Access && subresource != b"ephemeralcontainers" || is_write(self.verb)).then_some(kept)
    }
}

impl Event {
    pub fn head(&self) -> Head<'_> {
        let target = self.object_ref.as_ref().map_or_else(Target::default, |object| Target {
            group: object.api_group.as_bytes(),
            resource: object.resource.as_bytes(),
            subresource: object.subresource.as_bytes(),
            namespace: object.namespace.as_bytes(),
            name: object.name.as_bytes(),
        });
        Head {
            verb: self.verb.as_bytes(),
            username: self.user.username.as_bytes(),
            target,
            received: self.request_received_timestamp.as_bytes(),
        }
    }
}

pub(super) fn is_write(verb: &[u8]) -> bool {
    matches!(verb, b"create" | b"update" | b"patch" | b"delete" | b"deletecollection")
}

/// By the seconds of `2026-11-23T22:30:04.1Z`. What is written otherwise is taken.
pub(super) fn is_sampled(received: &[u8]) -> bool {
    match received.get(16..19) {
        Some([b':', tens @ b'0'..=b'5', ones @ b'0'..=b'9']) => (tens - b'0') * 10 + (ones - b'0') < LEASE_SECONDS,
        _ => true,
    }
}
