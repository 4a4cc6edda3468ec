//! Feeds made-up records through the agent's own spool and stream, for tests of delivery: no kernel is watched.
//!
//! What was certainly taken in is written to `--truth`, a line `<run> <first> <last>` for each batch, after the agent's
//! rooms have it. Record ids are `<run>-<number>`.

use std::{
    fs::File,
    io::{BufRead as _, BufReader, Write as _},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result};
use clap::Parser;
use seclog_agent::{
    absence::Keeper,
    clock,
    credentials::{self, TlsFiles},
    telemetry::{self, Telemetry},
    uplink::{self, Batch, Health, Identity, Sink, SpoolConfig, StreamConfig, WhenFull},
};
use seclog_proto::v1::{NodeRecord, ProcessStart, node_record::Detail};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
    time::{Instant, sleep_until},
};

#[derive(Parser, Debug)]
struct Args {
    #[arg(long, value_delimiter = ',', required = true)]
    correlator: Vec<String>,
    #[arg(long, default_value = "guest")]
    cluster: String,
    #[arg(long, default_value = "node-1")]
    node: String,
    #[arg(long)]
    spool_dir: Option<PathBuf>,
    #[arg(long, default_value_t = 256 << 20)]
    spool_bytes: u64,
    #[arg(long, value_enum, default_value = "keep-oldest")]
    spool_full: WhenFull,
    /// Part of each record's id.
    #[arg(long)]
    run: u64,
    #[arg(long)]
    truth: PathBuf,
    /// Records of a batch, and batches a second. 0 batches: only what the spool holds is sent.
    #[arg(long, default_value_t = 50)]
    records: u64,
    #[arg(long, default_value_t = 200)]
    batches: u32,
    /// So many records are made, then only counters.
    #[arg(long, default_value_t = u64::MAX)]
    most: u64,
    /// In place of made-up records: those of this file, one JSON object a line, as it grows. They are not in --truth.
    #[arg(long)]
    follow: Option<PathBuf>,
    #[arg(long, requires = "tls_cert", requires = "tls_key")]
    tls_ca: Option<PathBuf>,
    #[arg(long, requires = "tls_ca")]
    tls_cert: Option<PathBuf>,
    #[arg(long, requires = "tls_ca")]
    tls_key: Option<PathBuf>,
}

/// Records of a file that grows.
struct Followed(BufReader<File>, String);

impl Followed {
    fn next(&mut self) -> Result<Vec<NodeRecord>> {
        let mut records = Vec::new();
        // A line that is not whole yet is gone on with.
        while self.0.read_line(&mut self.1)? > 0 && self.1.ends_with('\n') {
            records.push(serde_json::from_str(&std::mem::take(&mut self.1))?);
        }
        Ok(records)
    }
}

fn record(boot_id: &str, run: u64, number: u64) -> NodeRecord {
    // As little alike as real records are, and no more.
    let noise = seclog_journal::digest(&[run.to_le_bytes(), number.to_le_bytes()].concat());
    let noise: String = noise.iter().map(|byte| format!("{byte:02x}")).collect();
    NodeRecord {
        id: format!("{run}-{number}"),
        boot_id: boot_id.to_owned(),
        time_unix_ns: clock::unix_ns(),
        time_boot_ns: clock::boot_ns(),
        pid: u32::try_from(number % 4_000_000).unwrap_or(1),
        comm: "made-up".into(),
        detail: Some(Detail::ProcessStart(ProcessStart {
            filename: format!("/usr/bin/{}", noise.get(..8).unwrap_or_default()),
            argv: vec!["made-up".into(), format!("--{noise}")],
            ..Default::default()
        })),
        ..Default::default()
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let args = Args::parse();
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).init();
    let mut terminate = signal(SignalKind::terminate())?;
    let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned();
    let identity = Identity { cluster: args.cluster.clone(), node: args.node.clone(), boot_id: boot_id.clone() };
    let spool = SpoolConfig { dir: args.spool_dir.clone(), most_bytes: args.spool_bytes, when_full: args.spool_full };
    let status = Arc::<credentials::Status>::default();
    let credentials = match (&args.tls_ca, &args.tls_cert, &args.tls_key) {
        (Some(ca), Some(certificate), Some(key)) => {
            let files = TlsFiles { ca: ca.clone(), certificate: certificate.clone(), key: key.clone() };
            Some(credentials::follow(files, Arc::clone(&status))?)
        }
        _ => None,
    };
    let config = StreamConfig { urls: args.correlator.clone(), credentials, spool };
    let hooks = watch::Sender::new(Vec::new());
    let check = watch::Sender::new(None);
    let health = Health { hooks: hooks.subscribe(), check: check.subscribe() };
    let telemetry = Arc::new(Telemetry::new(hooks.subscribe(), check.subscribe(), Some(status)));
    telemetry::serve("127.0.0.1:0".parse()?, Arc::clone(&telemetry)).await?;
    let state = args.truth.with_extension("state");
    let (keeper, _) = Keeper::open(&state, &boot_id);
    let (sender, batches) = mpsc::channel(1);
    let delivery =
        tokio::spawn(uplink::deliver(batches, Sink::Correlator(Box::new(config)), identity, health, telemetry, keeper));

    let mut truth = std::fs::OpenOptions::new().create(true).append(true).open(&args.truth).context("--truth")?;
    let mut followed = match &args.follow {
        Some(path) => Some(Followed(BufReader::new(File::open(path).context("--follow")?), String::new())),
        None => None,
    };
    let mut next = Instant::now();
    let mut number = 0;
    let mut on_the_way: Vec<String> = Vec::new();
    loop {
        if args.batches == 0 {
            break;
        }
        tokio::select! {
            _ = terminate.recv() => break,
            () = sleep_until(next) => {}
        }
        next += Duration::from_secs(1) / args.batches;
        let first = number;
        let records: Vec<NodeRecord> = match &mut followed {
            Some(followed) => followed.next()?,
            None => {
                number = args.most.min(first + args.records);
                (first..number).map(|number| record(&boot_id, args.run, number)).collect()
            }
        };
        let taken = vec![("records", number)];
        // Whoever writes the file is a moment behind.
        let behind = if followed.is_some() { 1_000_000_000 } else { 0 };
        let watermark_unix_ns = clock::unix_ns().saturating_sub(behind);
        let batch = Batch { records, watermark_unix_ns, counters: Some(taken) };
        tokio::select! {
            _ = terminate.recv() => break,
            sent = sender.send(batch) => if sent.is_err() {
                break;
            },
        }
        on_the_way.push(match number.checked_sub(1) {
            Some(last) if number > first => format!("{} {first} {last}\n", args.run),
            _ => String::new(),
        });
        // The channel holds one batch: when this one is in it, the one before it was taken out, and the one before that
        // was dealt with.
        if on_the_way.len() > 2 {
            truth.write_all(on_the_way.remove(0).as_bytes())?;
        }
    }
    drop(sender);
    delivery.await??;
    // All of it is in the spool, or was sent.
    for line in on_the_way {
        truth.write_all(line.as_bytes())?;
    }
    Ok(())
}
