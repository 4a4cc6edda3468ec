//! Node records on their way out: written or streamed.

mod spool;
mod stream;

use std::{io::Write as _, sync::Arc};

use prost::Message as _;
use seclog_journal::LogError;
use seclog_proto::v1::{HookStatus, NodeRecord};
use thiserror::Error;
use tokio::sync::{mpsc, watch};

pub use spool::{Cursor, Disagreement, Frame, Spool, SpoolConfig, WhenFull};
pub use stream::{Identity, StreamConfig};

use crate::{absence::Keeper, check, drive::Captured, memory::Storms, telemetry::Telemetry};

/// What the pipeline handed over at once, as it goes out.
#[derive(Debug, Default)]
pub struct Batch {
    pub records: Vec<NodeRecord>,
    /// Wall clock time up to which every record was handed over.
    pub watermark_unix_ns: u64,
    /// Counters by name, now and then.
    pub counters: Option<Vec<(&'static str, u64)>>,
}

impl Batch {
    /// Of what was encoded; 0: it says nothing.
    fn watermark_of(encoded: &[u8]) -> u64 {
        seclog_proto::v1::Batch::decode(encoded).map_or(0, |batch| batch.watermark_unix_ns)
    }
}

impl From<Captured> for Batch {
    fn from(captured: Captured) -> Self {
        let Captured { origins, records, watermark_unix_ns, counters } = captured;
        let records = records.into_iter().map(|record| record.to_node_record(&origins)).collect();
        Self { records, watermark_unix_ns, counters }
    }
}

/// Where records go.
#[derive(Debug)]
pub enum Sink {
    Stdout,
    Correlator(Box<StreamConfig>),
}

/// What the agent says of its node besides records.
#[derive(Debug)]
pub struct Health {
    /// Changes while the agent runs.
    pub hooks: watch::Receiver<Vec<HookStatus>>,
    /// The last check of the node's configuration.
    pub check: check::Status,
}

#[derive(Debug, Error)]
pub enum UplinkError {
    #[error("standard output cannot be written: {0}")]
    Stdout(std::io::Error),
    #[error("{0}")]
    Configuration(String),
    #[error("the spool cannot be opened: {0}; name another directory by --spool-dir")]
    Spool(#[from] LogError),
}

/// Takes batches until the pipeline ends, then delivers what is left.
pub async fn deliver(
    mut batches: mpsc::Receiver<Batch>,
    sink: Sink,
    identity: Identity,
    health: Health,
    telemetry: Arc<Telemetry>,
    mut keeper: Keeper,
) -> Result<(), UplinkError> {
    let (mut storms, mut records) = (Storms::default(), 0);
    match sink {
        Sink::Stdout => {
            let mut watermark = 0;
            while let Some(mut batch) = batches.recv().await {
                records += batch.records.len();
                write_lines(&batch.records).map_err(UplinkError::Stdout)?;
                watermark = batch.watermark_unix_ns.max(watermark);
                keeper.note(watermark);
                if let Some(counters) = batch.counters.take() {
                    telemetry.update(counters);
                    drop(batch);
                    // Counters come once a second.
                    storms.look(std::mem::take(&mut records));
                }
            }
            keeper.stopped(watermark);
            Ok(())
        }
        Sink::Correlator(config) => {
            let spool = Spool::open(config.spool.clone(), identity.boot_id.clone())?;
            let HookStatus { name, active, reason } = spool.status();
            if active {
                tracing::info!(hook = name, detail = reason, "works");
            } else {
                tracing::warn!(hook = name, reason, "does not work here");
            }
            let stream = tokio::spawn(stream::run(*config, identity, health, Arc::clone(&spool)));
            while let Some(batch) = batches.recv().await {
                records += batch.records.len();
                if let Some(counters) = &batch.counters {
                    telemetry.update([counters.as_slice(), &spool.counters()].concat());
                    storms.look(std::mem::take(&mut records));
                }
                spool.push(batch);
                keeper.note(spool.safe_unix_ns());
            }
            spool.close();
            let result = match stream.await {
                Ok(result) => result,
                Err(error) => Err(UplinkError::Configuration(format!("the uplink stopped: {error}"))),
            };
            keeper.stopped(spool.safe_unix_ns());
            result
        }
    }
}

/// The same record the wire carries, one JSON object a line.
fn write_lines(records: &[NodeRecord]) -> std::io::Result<()> {
    /// Written at once: few calls for many records, and little memory.
    const CHUNK: usize = 64 << 10;
    if records.is_empty() {
        return Ok(());
    }
    let mut lines = Vec::with_capacity(2 * CHUNK);
    let mut stdout = std::io::stdout().lock();
    for record in records {
        serde_json::to_writer(&mut lines, record)?;
        lines.push(b'\n');
        if lines.len() >= CHUNK {
            stdout.write_all(&lines)?;
            lines.clear();
        }
    }
    stdout.write_all(&lines)?;
    stdout.flush()
}
