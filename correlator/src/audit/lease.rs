//! Node leases: the proof that a node lives, whether or not an agent speaks for it.

use super::kind::NODE_USERS;
use super::{Event, Kept};
use seclog_proto::rfc3339;

/// A node renewed its lease, by its own credential (the API server's node authorizer lets it write no other's).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeLease {
    pub node: String,
    /// Nanoseconds since 1970.
    pub time: u64,
}

pub(super) fn lease(event: &Event) -> Option<NodeLease> {
    if event.head().kept() != Some(Kept::NodeLease) || event.code().is_none_or(|code| code >= 400) {
        return None;
    }
    let node = event.user.username.strip_prefix(NODE_USERS)?;
    let own = event.object_ref.as_ref().is_some_and(|object| object.name == node || object.name.is_empty());
    (own && event.verb != "delete" && !node.is_empty())
        .then(|| Some(NodeLease { node: node.to_owned(), time: rfc3339::parse(&event.stage_timestamp)? }))?
}

#[cfg(test)]
mod tests {
    use crate::audit::read;

    fn told(user: &str, name: &str, code: u32) -> Option<String> {
        let json = format!(
            r#"{{"verb":"update","user":{{"username":"{user}"}},"responseStatus":{{"code":{code}}},
                "objectRef":{{"resource":"leases","apiGroup":"coordination.k8s.io","namespace":"kube-node-lease","name":"{name}"}},
                "requestReceivedTimestamp":"2026-11-23T22:30:04.1Z","stageTimestamp":"2026-11-23T22:30:04.2Z"}}"#
        );
        read(&json).unwrap().1.lease.map(|lease| lease.node)
    }

    #[test]
    fn a_node_that_renews_its_own_lease_lives() {
        assert_eq!(told("system:node:node-1", "node-1", 200).as_deref(), Some("node-1"));
        assert_eq!(told("system:node:node-1", "node-2", 200), None, "another's");
        assert_eq!(told("system:node:node-1", "node-1", 409), None, "it was refused");
        assert_eq!(told("mallory", "node-1", 200), None, "somebody else");
    }
}
