//! What delivery costs: CPU per record of the agent's spool and of the correlator's intake into the journal, and of rsyslog
//! with a disk-assisted queue on lines of the same size in the same run. Senders are processes of their own and not counted.
//!
//! cargo bench -p seclog-tests --bench delivery [-- RECORDS]

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::resource::{UsageWho, getrusage};
use prost::Message as _;
use seclog_agent::uplink::{Batch, Cursor, Spool, SpoolConfig, WhenFull};
use seclog_correlator::{
    intake::{Budget, agents::Agents},
    journal::{Journal, JournalOptions, Opened},
    listen::{Door, Limits, Tls, TlsFiles},
    telemetry::Telemetry,
};
use seclog_proto::{
    batch::Packer,
    v1::{
        AgentMessage, Container, Hello, NodeRecord, ProcessStart, agent_message::Message as FromAgent,
        correlator_message::Message as ToAgent, node_record::Detail, node_stream_client::NodeStreamClient,
    },
};
use seclog_tests::lab::{pki::Pki, places};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};

const CONNECTIONS: u64 = 100;
const BATCH: u64 = 200;
const RUNS: usize = 5;

/// Disks are real ones: target/, not /tmp, which may be memory.
fn disk() -> Result<tempfile::TempDir> {
    Ok(tempfile::tempdir_in(places::target()?)?)
}

/// About 400 bytes, of which two arguments do not compress.
fn record(number: u64) -> NodeRecord {
    let noise = |salt: u64| {
        let noise = seclog_journal::digest(&[number.to_le_bytes(), salt.to_le_bytes()].concat());
        noise.iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
    };
    NodeRecord {
        id: format!("0d3c5d6e-9a53-4a25-9e5b-8b8f2a7c1e11:81234567890123:l0.{number}"),
        boot_id: "0d3c5d6e-9a53-4a25-9e5b-8b8f2a7c1e11".into(),
        time_unix_ns: 1_795_473_004_372_321_256 + number * 1000,
        time_boot_ns: 81_234_567_890_123 + number * 1000,
        pid: 4000 + u32::try_from(number % 30_000).unwrap_or(0),
        start_boottime_ns: 81_234_000_000_000 + number,
        comm: "sh".into(),
        container: Some(Container {
            id: "5f1c0a4b9d3e6f7a8b9c0d1e2f3a4b5c6d7e8f90".into(),
            pod_name: "web-7c9d8f6b5-x2x7k".into(),
            pod_namespace: "shop".into(),
            name: "app".into(),
            ..Default::default()
        }),
        detail: Some(Detail::ProcessStart(ProcessStart {
            filename: "/usr/bin/env".into(),
            argv: vec!["env".into(), "sh".into(), noise(1), noise(2)],
            ..Default::default()
        })),
        ..Default::default()
    }
}

fn cpu() -> Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    let of = |time: nix::sys::time::TimeVal| Duration::new(time.tv_sec().unsigned_abs(), time.tv_usec() as u32 * 1000);
    Ok(of(usage.user_time()) + of(usage.system_time()))
}

/// What a run took.
#[derive(Clone, Copy)]
struct Run {
    records: u64,
    cpu: Duration,
    wall: Duration,
}

impl Run {
    fn each(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / self.records as f64
    }
}

/// Several runs: others on the machine make CPU times longer, never shorter, so the least counts.
fn tell(what: &str, target: Option<f64>, mut run: impl FnMut() -> Result<Run>) -> Result<()> {
    let mut runs: Vec<Run> = (0..RUNS).map(|_| run()).collect::<Result<_>>()?;
    runs.sort_by(|one, other| one.each().total_cmp(&other.each()));
    let (Some(least), Some(most)) = (runs.first(), runs.last()) else { return Ok(()) };
    let rate = runs.iter().map(|run| run.records as f64 / run.wall.as_secs_f64()).fold(0.0, f64::max);
    let verdict = match target {
        Some(target) if least.each() <= target => format!("target {target}: met"),
        Some(target) => format!("target {target}: MISSED"),
        None => String::new(),
    };
    println!("{what:<56} {:6.2} us (most {:6.2})  {rate:9.0} records/s  {verdict}", least.each(), most.each());
    Ok(())
}

fn batches(records: u64) -> Vec<Vec<NodeRecord>> {
    (0..records / BATCH).map(|at| (at * BATCH..(at + 1) * BATCH).map(record).collect()).collect()
}

/// Append and drain: everything that happens to a record in the spool.
fn spool(records: u64) -> Result<Run> {
    let dir = disk()?;
    let config = SpoolConfig { dir: Some(dir.path().into()), most_bytes: 4 << 30, when_full: WhenFull::KeepOldest };
    let spool = Spool::open(config, "b".into())?;
    let batch = |records| Batch { records, watermark_unix_ns: 1, counters: None };
    let batches: Vec<Batch> = batches(records).into_iter().map(batch).collect();
    let (before, began) = (cpu()?, Instant::now());
    for batch in batches {
        spool.push(batch);
    }
    spool.close();
    let mut cursor = Cursor::new(&spool, spool.sending(), (0, Vec::new())).map_err(|why| anyhow::anyhow!("{why:?}"))?;
    let mut sent = 0;
    while let Some(frame) = cursor.next(&spool)?.map_err(|why| anyhow::anyhow!("{why:?}"))? {
        sent += frame.last - frame.first + 1;
        spool.acknowledge(&frame);
    }
    let run = Run { records: sent, cpu: cpu()? - before, wall: began.elapsed() };
    ensure!(sent == records / BATCH * BATCH, "{sent} of {records}");
    Ok(run)
}

/// Of that, what is not the disk.
fn packing(records: u64) -> Result<Run> {
    let batches = batches(records);
    let count = batches.len() as u64 * BATCH;
    let mut packer = Packer::new(1)?;
    let (before, began) = (cpu()?, Instant::now());
    for (at, records) in (0..).zip(batches) {
        packer.pack(at * BATCH + 1, BATCH, records, 0)?;
    }
    Ok(Run { records: count, cpu: cpu()? - before, wall: began.elapsed() })
}

fn sizes() -> Result<()> {
    let raw: Vec<NodeRecord> = (0..BATCH).map(record).collect();
    let bytes: usize = raw.iter().map(prost::Message::encoded_len).sum();
    let packed = Packer::new(1)?.pack(1, BATCH, raw, 0)?.len();
    println!(
        "{} bytes a record, {} compressed, {BATCH} records a batch; the least of {RUNS} runs",
        bytes as u64 / BATCH,
        packed as u64 / BATCH
    );
    Ok(())
}

/// The agents, in a process of their own.
async fn client(addr: SocketAddr, records: u64, directory: &Path) -> Result<()> {
    let file = |name: String| std::fs::read(directory.join(name));
    let ca = Certificate::from_pem(file("ca.pem".into())?);
    let mut tasks = tokio::task::JoinSet::new();
    for connection in 0..CONNECTIONS {
        let node = format!("agent-guest-node-{connection}");
        let identity = Identity::from_pem(file(format!("{node}.pem"))?, file(format!("{node}-key.pem"))?);
        let tls = ClientTlsConfig::new().ca_certificate(ca.clone()).identity(identity).domain_name("localhost");
        tasks.spawn(async move {
            let channel = Endpoint::from_shared(format!("https://{addr}"))?.tls_config(tls)?.connect().await?;
            let (to, messages) = mpsc::channel(4);
            let hello = Hello {
                cluster: "guest".into(),
                node: format!("node-{connection}"),
                epoch: 1,
                oldest_sequence: 1,
                ..Hello::default()
            };
            to.send(AgentMessage { message: Some(FromAgent::Hello(hello)) }).await?;
            let mut from = NodeStreamClient::new(channel).connect(ReceiverStream::new(messages)).await?.into_inner();
            from.message().await?;
            let mut packer = Packer::new(1)?;
            let last = records / CONNECTIONS / BATCH * BATCH;
            let sending = tokio::spawn(async move {
                for at in 0..last / BATCH {
                    let batch = (at * BATCH..(at + 1) * BATCH).map(record).collect();
                    let batch = packer.pack(at * BATCH + 1, BATCH, batch, 0)?;
                    to.send(AgentMessage { message: Some(FromAgent::Batch(batch)) }).await?;
                }
                anyhow::Ok(to)
            });
            while let Some(message) = from.message().await? {
                if let Some(ToAgent::Ack(ack)) = message.message
                    && ack.sequence == last
                {
                    break;
                }
            }
            drop(sending.await??);
            anyhow::Ok(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    Ok(())
}

/// Mutual TLS, gRPC, the journal synced before each acknowledgement; what reads the journal is not in it.
async fn intake(records: u64, pki: &Pki, directory: &Path) -> Result<Run> {
    let dir = disk()?;
    let options = JournalOptions {
        dir: dir.path().into(),
        most_bytes: 8 << 30,
        segment_bytes: 64 << 20,
        checkpoint_every: Duration::from_secs(60),
    };
    let Opened { journal, feed: _feed, .. } = Journal::open(options, None, &Telemetry::default())?;
    let (_stop, stopped) = watch::channel(false);
    let files =
        TlsFiles { cert: pki.server.certificate.clone(), key: pki.server.key.clone(), client_ca: pki.ca.clone() };
    let door = Door::mutual("agents", Tls::open(files)?, Limits::default(), &Budget::new(256 << 20));
    let agents = Agents::bind("127.0.0.1:0".parse()?, "guest", door, journal, stopped).await?;
    let addr = agents.addr.to_string();
    tokio::spawn(agents.serve());
    let (before, began) = (cpu()?, Instant::now());
    let own = std::env::current_exe()?;
    let client =
        tokio::process::Command::new(own).args(["--client", &addr, &records.to_string()]).arg(directory).status();
    let status = client.await?;
    let (cpu, wall) = (cpu()? - before, began.elapsed());
    ensure!(status.success(), "the client failed");
    Ok(Run { records: records / CONNECTIONS / BATCH * BATCH * CONNECTIONS, cpu, wall })
}

/// TCP in, a queue, a file out. `queue`: its options.
fn rsyslog(program: &Path, records: u64, queue: &str) -> Result<Run> {
    let dir = disk()?;
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let (config, out) = (dir.path().join("conf"), dir.path().join("out"));
    let work = dir.path().display();
    std::fs::write(
        &config,
        format!(
            "global(workDirectory=\"{work}\")\nmodule(load=\"imtcp\")\ninput(type=\"imtcp\" port=\"{port}\" address=\"127.0.0.1\")\n\
             main_queue({queue} queue.filename=\"q\" queue.maxDiskSpace=\"4g\")\n*.* action(type=\"omfile\" file=\"{}\")\n",
            out.display()
        ),
    )?;
    let mut child = Command::new(program)
        .args(["-n", "-i"])
        .arg(dir.path().join("pid"))
        .arg("-f")
        .arg(&config)
        .stderr(Stdio::null())
        .spawn()?;
    let mut stream = loop {
        match TcpStream::connect(("127.0.0.1", port)) {
            Ok(stream) => break stream,
            Err(_) if child.try_wait()?.is_none() => std::thread::sleep(Duration::from_millis(50)),
            Err(error) => return Err(error.into()),
        }
    };
    let length = record(1).encoded_len();
    let line = format!("<13>Nov 24 12:00:00 node seclog: {:x<width$}\n", "", width = length.saturating_sub(33));
    let began = Instant::now();
    for _ in 0..records {
        stream.write_all(line.as_bytes())?;
    }
    stream.shutdown(std::net::Shutdown::Write)?;
    let _ = stream.read(&mut [0]);
    let lines = |path: &Path| std::fs::metadata(path).map_or(0, |file| file.len()) / (line.len() as u64 - 4);
    while lines(&out) < records * 99 / 100 && began.elapsed() < Duration::from_secs(120) {
        std::thread::sleep(Duration::from_millis(50));
    }
    let wall = began.elapsed();
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.id()))?;
    let fields: Vec<&str> = stat.rsplit_once(')').context("stat")?.1.split_whitespace().collect();
    let ticks: u64 =
        fields.get(11).context("utime")?.parse::<u64>()? + fields.get(12).context("stime")?.parse::<u64>()?;
    child.kill()?;
    child.wait()?;
    Ok(Run { records, cpu: Duration::from_millis(ticks * 10), wall })
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let runtime = tokio::runtime::Runtime::new()?;
    if let [flag, addr, records, directory] = &args[..]
        && flag == "--client"
    {
        return runtime.block_on(client(addr.parse()?, records.parse()?, Path::new(directory)));
    }
    let records = args.first().map_or(Ok(400_000), |records| records.parse())?;
    sizes()?;
    tell("spool: encode, compress, append, sync, read, trim", Some(2.0), || spool(records))?;
    tell("  of it encoding and compressing", None, || packing(records))?;
    let directory = tempfile::tempdir()?;
    let pki = Pki::create(directory.path())?;
    for connection in 0..CONNECTIONS {
        pki.agent("guest", &format!("node-{connection}"))?;
    }
    tell("intake: 100 gRPC streams (mTLS) to the synced journal", Some(3.0), || {
        runtime.block_on(intake(records, &pki, directory.path()))
    })?;
    let Some(program) = places::tool("rsyslogd") else {
        println!("rsyslog: skipped, rsyslogd is not installed (apt-get install rsyslog)");
        return Ok(());
    };
    // On the disk only when its memory is full.
    tell("rsyslog: TCP, disk-assisted queue, file", None, || {
        rsyslog(&program, records / 4, "queue.type=\"LinkedList\"")
    })?;
    tell("rsyslog: TCP, disk queue (not synced), file", None, || rsyslog(&program, records / 4, "queue.type=\"Disk\""))
}
