//! A cluster as small as can be: one node with one pod, its agent, a correlator, and the audit events of its API server.

use anyhow::Result;
use serde_json::Value;
use tempfile::TempDir;

use super::{
    cri::Pod,
    exclusive::{Turn, turn},
    kube_audit::ExecRequest,
    node::Node,
    pki::Pki,
    process::PATIENCE,
    programs::{Agent, Correlator, Sink},
    stream::Output,
};

/// Fields are dropped in this order: the agent still reports the end of the containers.
#[derive(Debug)]
pub struct Cluster {
    pub agent: Agent,
    pub pod: Pod,
    pub node: Node,
    pub correlator: Correlator,
    pub pki: Pki,
    _directory: TempDir,
    _turn: Turn,
}

impl Cluster {
    /// Everything is up and capturing when this returns.
    pub async fn start() -> Result<Self> {
        let turn = turn("containers")?;
        let directory = tempfile::Builder::new().prefix("seclog-cluster-").tempdir()?;
        let pki = Pki::create(directory.path())?;
        let correlator = Correlator::start(&pki)?;
        let node = Node::start().await?;
        let agent = Agent::start("node-1", &node.socket(), Sink::Correlator(&correlator, &pki))?;
        let pod = node.run_pod("shop", "web-0", "app").await?;
        Ok(Self { agent, pod, node, correlator, pki, _directory: directory, _turn: turn })
    }

    /// What the API server will have to report of an exec by `user` into the pod, which arrives now.
    pub fn request(&self, user: &str, command: &[&str]) -> Result<ExecRequest> {
        let Pod { namespace, name, container, .. } = &self.pod;
        ExecRequest::arrives(user, namespace, name, container, command)
    }

    /// An exec by `user`, streamed to its end. The API server has not reported it yet.
    pub async fn exec(&self, user: &str, command: &[&str]) -> Result<(ExecRequest, Output)> {
        let mut request = self.request(user, command)?;
        request.response_started();
        let output = self.node.exec(&self.pod, command).await?;
        request.response_complete();
        Ok((request, output))
    }

    /// The API server reports.
    pub async fn audit(&self, requests: &[&ExecRequest]) -> Result<()> {
        self.correlator.audit(&self.pki, requests.iter().flat_map(|request| request.events())).await
    }

    /// See [`Correlator::wait_for_session`].
    pub fn expect_session(&self, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
        self.correlator.wait_for_session(PATIENCE, wanted)
    }
}
