//! `make demo`: one real exec into one real container, and what seclog makes of it. Starts everything on this machine,
//! uses loopback only, and stops what it started, also when it fails or is interrupted.

mod show;

use std::{process::ExitCode, time::Duration};

use anyhow::{Context as _, Result, bail};
use seclog_tests::lab::{
    cri::Pod,
    exclusive::turn,
    kube_audit::ExecRequest,
    node::Node,
    pki::Pki,
    process::PATIENCE,
    programs::{Agent, Correlator, Sink},
    stream::Output,
};
use serde_json::Value;
use tokio::signal::unix::{SignalKind, signal};

const USER: &str = "alice@example.com";
const NODE: &str = "node-1";
const NAMESPACE: &str = "shop";
const POD: &str = "web-7c9d8f6b5-x2x7k";
const CONTAINER: &str = "app";
/// Paths, because busybox's shell runs what it knows by name itself, without an exec.
const COMMAND: [&str; 3] = ["sh", "-c", "/bin/id; /bin/cat /etc/hostname; exit 3"];

#[tokio::main]
async fn main() -> ExitCode {
    match until_interrupted().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nThe demo stopped: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn until_interrupted() -> Result<()> {
    // Taken over before anything is started: from here on, no signal ends this program without its cleaning up.
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    tokio::select! {
        outcome = story() => outcome,
        _ = interrupt.recv() => bail!("interrupted"),
        _ = terminate.recv() => bail!("terminated"),
    }
}

/// What is made here is dropped at the end in the opposite order: the agent first, the correlator last.
async fn story() -> Result<()> {
    show::title();
    let _turn = turn("containers")?;
    let directory = tempfile::Builder::new().prefix("seclog-demo-").tempdir()?;
    let pki = Pki::create(directory.path()).context("certificates")?;

    let correlator = Correlator::start(&pki).context("correlator")?;
    show::step(
        "correlator",
        &format!("agents on {}, audit webhook on {}, mutual TLS", correlator.agents, correlator.webhook),
    );
    let node = start_node().await;
    let agent = start_agent(node.as_ref(), &correlator, &pki);
    let pod = run_pod(node.as_ref()).await;

    let mut request = ExecRequest::arrives(USER, NAMESPACE, POD, CONTAINER, &COMMAND)?;
    request.response_started();
    if let (Some(node), Some(pod)) = (&node, &pod) {
        exec(node, pod).await;
    }
    request.response_complete();
    correlator.audit(&pki, request.events()).await.context("audit webhook")?;
    show::step("audit", &format!("{USER}'s request delivered to the webhook, as kube-apiserver would"));

    let both_sides = agent.is_some() && pod.is_some();
    let session = wait_for_session(&correlator, both_sides).await?;
    show::session(&session)?;
    ask(&correlator, &session).await?;
    if let Some(agent) = &agent {
        agent.stop()?;
    }
    Ok(())
}

async fn start_node() -> Option<Node> {
    if let Some(reason) = Node::unavailable() {
        show::missing("containers", &reason);
        return None;
    }
    let started = async {
        let node = Node::start().await?;
        let version = node.version().await?;
        anyhow::Ok((node, version))
    };
    match started.await {
        Ok((node, version)) => {
            show::step("containers", &format!("{version}, with root, state and socket of its own"));
            Some(node)
        }
        Err(error) => {
            show::missing("containers", &format!("{error:#}"));
            None
        }
    }
}

fn start_agent(node: Option<&Node>, correlator: &Correlator, pki: &Pki) -> Option<Agent> {
    let socket = node.map(Node::socket).unwrap_or_default();
    match Agent::start(NODE, &socket, Sink::Correlator(correlator, pki)) {
        Ok(agent) => {
            show::step("agent", "capturing");
            show::hooks(&agent);
            Some(agent)
        }
        Err(error) => {
            show::missing("agent", &format!("{error:#}"));
            None
        }
    }
}

async fn run_pod(node: Option<&Node>) -> Option<Pod> {
    match node?.run_pod(NAMESPACE, POD, CONTAINER).await {
        Ok(pod) => {
            let id = pod.container_id.get(..12).unwrap_or_default();
            show::step(
                "pod",
                &format!("{NAMESPACE}/{POD}, container {CONTAINER} ({id}), its seccomp profile logs execve"),
            );
            Some(pod)
        }
        Err(error) => {
            show::missing("pod", &format!("{error:#}"));
            None
        }
    }
}

async fn exec(node: &Node, pod: &Pod) {
    match node.exec(pod, &COMMAND).await {
        Ok(Output { stdout, exit_code, .. }) => {
            let output = stdout.lines().collect::<Vec<_>>().join(" | ");
            show::step("exec", &format!("streamed by containerd's own server: {output:?}, exit code {exit_code}"));
        }
        Err(error) => show::missing("exec", &format!("{error:#}")),
    }
}

/// As an administrator would, afterwards: the store has it at most a second later than the output.
async fn ask(correlator: &Correlator, session: &Value) -> Result<()> {
    let id = session["id"].as_str().unwrap_or_default();
    let wanted = session["revision"].as_u64();
    let turns = PATIENCE.as_millis() / 100;
    for _ in 0..turns {
        let told = correlator.ask(&["show", id, "--json"]).ok();
        let told = told.and_then(|told| serde_json::from_str::<Value>(&told).ok()).unwrap_or_default();
        if told["session"]["revision"].as_u64() >= wanted {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    show::asked("sessions", &correlator.ask(&["sessions"])?);
    let first = id.get(..8).unwrap_or(id);
    show::asked(&format!("show {first}"), &correlator.ask(&["show", first])?);
    show::how_to_ask();
    Ok(())
}

/// The session of the request; where both sides saw it, when they are joined. Asks again and again, so that an
/// interruption is seen in between.
async fn wait_for_session(correlator: &Correlator, both_sides: bool) -> Result<Value> {
    let wanted = |session: &Value| {
        let joined = session["evidence"] == "unique" && session["state"] == "closed";
        session["user"]["username"] == USER && (joined || !both_sides)
    };
    let turns = PATIENCE.as_millis() / 100;
    for _ in 0..turns {
        if let Ok(session) = correlator.wait_for_session(Duration::from_millis(100), wanted) {
            return Ok(session);
        }
        tokio::task::yield_now().await;
    }
    // Not as expected: what there is, and why.
    correlator.wait_for_session(Duration::from_millis(100), wanted)
}
