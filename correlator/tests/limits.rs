//! Peers that do what no peer should: over real sockets, each against a correlator with small limits.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test says no more by handling them")]

mod support;

use prost::Message as _;
use seclog_correlator::intake::Budget;
use seclog_correlator::intake::agents::Agents;
use seclog_correlator::listen::{Door, Limits};
use seclog_correlator::telemetry::Telemetry;
use seclog_proto::v1::agent_message::Message as FromAgent;
use seclog_proto::v1::{AgentMessage, Batch, NodeRecord};
use std::net::SocketAddr;
use std::time::Duration;
use support::client::{Agent, channel, hello};
use support::journal::{Inputs, journal};
use support::pki::{Authority, Leaf};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tonic::Code;

struct Intake {
    authority: Authority,
    addr: SocketAddr,
    budget: Budget,
    telemetry: Telemetry,
    _inputs: Inputs,
    _stop: watch::Sender<bool>,
}

fn small() -> Limits {
    Limits {
        connections: 4,
        handshakes: 4,
        handshake_within: Duration::from_millis(500),
        idle_within: Duration::from_millis(500),
        connection_memory: 2 << 20,
        ..Limits::default()
    }
}

async fn serve(limits: Limits) -> Intake {
    let authority = Authority::new();
    let (stop, stopped) = watch::channel(false);
    let (budget, telemetry) = (Budget::new(4 << 20), Telemetry::default());
    let door = Door::mutual("agents", authority.tls(), limits, &budget);
    door.register(&telemetry);
    let (journal, inputs) = journal();
    budget.register(&telemetry);
    let agents = Agents::bind("127.0.0.1:0".parse().unwrap(), "guest", door, journal, stopped).await.unwrap();
    let addr = agents.addr;
    tokio::spawn(agents.serve());
    Intake { authority, addr, budget, telemetry, _inputs: inputs, _stop: stop }
}

impl Intake {
    fn leaf(&self, node: &str) -> Leaf {
        self.authority.agent("guest", node)
    }

    async fn agent(&self, node: &str) -> Result<Agent, tonic::Status> {
        let channel = channel(self.addr, &self.authority, Some(&self.leaf(node))).await.unwrap();
        let mut agent = Agent::connect(channel, hello("guest", node, 1, 1)).await?;
        agent.welcome().await?;
        Ok(agent)
    }

    /// A good agent is served, whatever others do.
    async fn serves(&self, node: &str) {
        let mut agent = self.agent(node).await.unwrap();
        agent.batch(1, vec![NodeRecord { id: "a".into(), ..NodeRecord::default() }], 0).await;
        assert_eq!(agent.ack().await.unwrap(), 1);
    }

    fn metric(&self, name: &str) -> u64 {
        let text = self.telemetry.render().unwrap();
        let prefix = format!("seclog_correlator_agents_{name} ");
        let line = text.lines().find_map(|line| line.strip_prefix(&prefix));
        line.unwrap_or_else(|| panic!("{name}: {text}")).parse().unwrap()
    }

    async fn until(&self, name: &str, wanted: impl Fn(u64) -> bool) {
        let waiting = async {
            while !wanted(self.metric(name)) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), waiting)
            .await
            .unwrap_or_else(|_| panic!("{name}: {}", self.metric(name)));
    }

    async fn tls(&self, node: &str) -> tokio_rustls::client::TlsStream<TcpStream> {
        support::client::tls(self.addr, &self.authority, Some(&self.leaf(node))).await.unwrap()
    }
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// An HTTP/2 frame.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const DATA: u8 = 0;

/// The headers of a call to `NodeStream.Connect` in HPACK literals without indexing.
fn call() -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in [
        (":method", "POST"),
        (":scheme", "https"),
        (":path", "/seclog.v1.NodeStream/Connect"),
        (":authority", "localhost"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ] {
        block.extend([0, u8::try_from(name.len()).unwrap()]);
        block.extend(name.as_bytes());
        block.push(u8::try_from(value.len()).unwrap());
        block.extend(value.as_bytes());
    }
    block
}

/// Reads frames until one of this kind; its payload. `None`: the connection ended before.
async fn next(stream: &mut (impl AsyncReadExt + Unpin), wanted: u8) -> Option<Vec<u8>> {
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head).await.ok()?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let mut payload = vec![0; length];
        stream.read_exact(&mut payload).await.ok()?;
        if head[3] == wanted {
            return Some(payload);
        }
    }
}

#[tokio::test]
async fn who_never_finishes_a_handshake_takes_no_place_from_others() {
    let intake = serve(small()).await;
    let mut slow = Vec::new();
    for _ in 0..4 {
        let mut stream = TcpStream::connect(intake.addr).await.unwrap();
        // The beginning of a ClientHello, and no more.
        stream.write_all(&[22, 3, 1]).await.unwrap();
        slow.push(stream);
    }
    intake.until("handshakes", |taken| taken == 4).await;
    let mut beyond = TcpStream::connect(intake.addr).await.unwrap();
    assert_eq!(beyond.read(&mut [0; 1]).await.unwrap_or(0), 0, "closed at once");
    intake.until("handshakes_late_total", |late| late == 4).await;
    for mut stream in slow {
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest).await;
    }
    assert_eq!(intake.metric("connections"), 0);
    intake.serves("node-1").await;
}

#[tokio::test]
async fn garbage_in_place_of_tls_is_counted_and_costs_nobody() {
    let intake = serve(small()).await;
    for _ in 0..50 {
        let mut stream = TcpStream::connect(intake.addr).await.unwrap();
        let _ = stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
    }
    intake.until("handshakes_failed_total", |failed| failed == 50).await;
    intake.serves("node-1").await;
}

#[tokio::test]
async fn a_connection_on_which_nothing_is_asked_for_ends() {
    let intake = serve(small()).await;
    let mut silent = intake.tls("node-1").await;
    let mut preface_only = intake.tls("node-2").await;
    preface_only.write_all(&[PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()).await.unwrap();
    let mut rest = Vec::new();
    let _ = silent.read_to_end(&mut rest).await;
    let _ = preface_only.read_to_end(&mut rest).await;
    intake.until("connections_closed_idle_total", |closed| closed == 2).await;
    intake.until("connections", |open| open == 0).await;
    // One with a stream stays for longer than that.
    let mut agent = intake.agent("node-1").await.unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    agent.batch(1, vec![NodeRecord { id: "a".into(), ..NodeRecord::default() }], 0).await;
    assert_eq!(agent.ack().await.unwrap(), 1);
}

#[tokio::test]
async fn connections_beyond_the_limit_are_told_so_and_served_when_there_is_a_place() {
    let intake = serve(small()).await;
    let mut agents = Vec::new();
    for node in 1..=4 {
        agents.push(intake.agent(&format!("node-{node}")).await.unwrap());
    }
    let status = intake.agent("node-5").await.err().unwrap();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    assert!(status.message().contains("4 connections are open"), "{status}");
    assert_eq!(intake.metric("connections_refused_full_total"), 1);
    agents.pop();
    intake.until("connections", |open| open < 4).await;
    intake.agent("node-5").await.unwrap();
}

#[tokio::test]
async fn one_node_cannot_take_every_place() {
    let intake = serve(Limits { connections: 100, ..small() }).await;
    let mut streams = Vec::new();
    for _ in 0..4 {
        streams.push(intake.agent("node-1").await.unwrap());
    }
    let status = intake.agent("node-1").await.err().unwrap();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    assert!(status.message().contains("node-1 has 4 streams open"), "{status}");
    intake.serves("node-2").await;
}

#[tokio::test]
async fn a_message_that_is_too_large_is_refused_by_its_length_before_it_comes() {
    let intake = serve(small()).await;
    let mut agent = intake.agent("node-1").await.unwrap();
    // Not to be made smaller by compression.
    let mut state = 1_u64;
    let mut random = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        char::from(b' ' + u8::try_from((state >> 33) % 94).unwrap())
    };
    let id: String = std::iter::repeat_with(&mut random).take(6 << 20).collect();
    agent.batch(1, vec![NodeRecord { id, ..NodeRecord::default() }], 0).await;
    let status = agent.ack().await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    assert!(status.message().contains("4194304 bytes at most"), "{status}");
    assert!(intake.budget.most_held() < 1 << 20, "{}", intake.budget.most_held());
    intake.serves("node-1").await;
}

#[tokio::test]
async fn messages_that_never_end_hold_no_more_than_the_budget() {
    let intake = serve(Limits { connections: 32, handshakes: 32, ..small() }).await;
    let mut streams = Vec::new();
    // Each announces 400 kB, for which 2 MB are taken: two of them fill the budget of 4 MiB.
    for number in 0..8 {
        let mut stream = intake.tls(&format!("node-{number}")).await;
        let message = [&[0][..], &400_000_u32.to_be_bytes(), &[0; 1000]].concat();
        let frames =
            [PREFACE, &frame(SETTINGS, 0, 0, &[]), &frame(HEADERS, 4, 1, &call()), &frame(DATA, 0, 1, &message)]
                .concat();
        stream.write_all(&frames).await.unwrap();
        streams.push(stream);
    }
    let filled = async {
        while intake.budget.held() < 4_000_000 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), filled).await.unwrap();
    assert!(intake.budget.most_held() <= 4 << 20);
    // With the peers gone, so is what they held.
    drop(streams);
    let emptied = async {
        while intake.budget.held() > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), emptied).await.unwrap();
    intake.serves("node-1").await;
}

#[tokio::test]
async fn streams_that_are_reset_as_they_are_opened_end_the_connection() {
    // Not to be ended for being idle.
    let intake = serve(Limits { idle_within: Duration::from_secs(600), ..small() }).await;
    let mut stream = intake.tls("node-1").await;
    stream.write_all(&[PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()).await.unwrap();
    let call = call();
    let mut flood = Vec::new();
    for number in 0..2000_u32 {
        let id = 2 * number + 1;
        flood.extend(frame(HEADERS, 4, id, &call));
        flood.extend(frame(RST_STREAM, 0, id, &8_u32.to_be_bytes()));
    }
    let _ = stream.write_all(&flood).await;
    let goaway = tokio::time::timeout(Duration::from_secs(20), next(&mut stream, GOAWAY)).await.unwrap();
    if let Some(goaway) = goaway {
        assert_eq!(u32::from_be_bytes(goaway[4..8].try_into().unwrap()), 11, "ENHANCE_YOUR_CALM: {goaway:?}");
    }
    drop(stream);
    intake.until("connections", |open| open == 0).await;
    intake.serves("node-2").await;
    assert_eq!(intake.budget.held(), 0);
}

#[tokio::test]
async fn garbage_in_place_of_http2_ends_its_connection_only() {
    let intake = serve(small()).await;
    let mut good = intake.agent("node-1").await.unwrap();
    for round in 0..20_u8 {
        let mut stream = intake.tls("node-2").await;
        let mut bytes: Vec<u8> = (0..4096_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8 ^ round).collect();
        if round % 2 == 0 {
            bytes.splice(0..0, PREFACE.iter().copied());
        }
        let _ = stream.write_all(&bytes).await;
        let mut rest = Vec::new();
        let _ = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut rest)).await.unwrap();
    }
    good.batch(1, vec![NodeRecord { id: "a".into(), ..NodeRecord::default() }], 0).await;
    assert_eq!(good.ack().await.unwrap(), 1);
}

#[tokio::test]
async fn an_agent_that_falls_silent_is_told_so_and_let_go() {
    let intake = serve(Limits { silent_for: Duration::from_millis(300), ..small() }).await;
    let mut agent = intake.agent("node-1").await.unwrap();
    let status = agent.ack().await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status}");
    assert!(status.message().contains("no message within 300ms"), "{status}");
    intake.until("connections", |open| open == 0).await;
}

#[tokio::test]
async fn an_agent_that_does_not_read_its_acknowledgements_is_given_up() {
    let intake = serve(Limits { reads_within: Duration::from_millis(300), ..small() }).await;
    let mut stream = intake.tls("node-1").await;
    // SETTINGS_INITIAL_WINDOW_SIZE 0: no answer may be sent to it, not even the welcome.
    let settings = frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]);
    stream.write_all(&[PREFACE, &settings, &frame(HEADERS, 4, 1, &call())].concat()).await.unwrap();
    let mut say = Vec::from([FromAgent::Hello(hello("guest", "node-1", 1, 1))]);
    // Each is acknowledged.
    say.extend((0..100).map(|_| FromAgent::Batch(Batch::default().encode_to_vec().into())));
    for message in say {
        let message = AgentMessage { message: Some(message) }.encode_to_vec();
        let length = u32::try_from(message.len()).unwrap().to_be_bytes();
        stream.write_all(&frame(DATA, 0, 1, &[&[0], &length[..], &message].concat())).await.unwrap();
    }
    // An open stream is never idle: that it is means that its stream was given up. The keepalive, which this peer does not
    // answer, ends the connection too, but later than anybody waits here.
    intake.until("connections_closed_idle_total", |closed| closed == 1).await;
    intake.until("connections", |open| open == 0).await;
    assert_eq!(intake.budget.held(), 0);
    assert!(next(&mut stream, DATA).await.is_none(), "nothing was sent beyond the window");
    intake.serves("node-1").await;
}

#[tokio::test]
async fn an_agent_for_whose_message_there_is_no_memory_is_told_to_come_again() {
    let intake = serve(Limits { memory_within: Duration::from_millis(200), ..small() }).await;
    let mut agent = intake.agent("node-1").await.unwrap();
    let others = intake.budget.try_take(intake.budget.bytes() - 10).unwrap();
    agent.batch(1, vec![NodeRecord { id: "a".into(), ..NodeRecord::default() }], 0).await;
    let status = agent.ack().await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    assert!(status.message().contains("come again"), "{status}");
    let text = intake.telemetry.render().unwrap();
    assert!(!text.contains("intake_memory_refused_total 0"), "{text}");
    drop(others);
    intake.serves("node-1").await;
}
