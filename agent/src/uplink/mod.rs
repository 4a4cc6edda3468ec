//! Node records on their way out: named, then written or streamed.

mod buffer;
mod stream;

use std::{io::Write as _, sync::Arc};

use seclog_proto::v1::{HookStatus, NodeRecord};
use thiserror::Error;
use tokio::sync::{mpsc, watch};

pub use buffer::Buffer;
pub use stream::{Identity, StreamConfig, Tls};

use crate::{absence::Keeper, check, container::Names, memory::Storms, telemetry::Telemetry};

/// What the pipeline hands over at once.
#[derive(Debug, Default)]
pub struct Batch {
    pub records: Vec<NodeRecord>,
    /// Wall clock time up to which every record was handed over.
    pub watermark_unix_ns: u64,
    /// Counters by name, now and then.
    pub counters: Option<Vec<(&'static str, u64)>>,
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
}

/// Takes batches until the pipeline ends, then delivers what is left.
pub async fn deliver(
    mut batches: mpsc::Receiver<Batch>,
    mut names: Names,
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
                name_containers(&mut names, &mut batch.records).await;
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
            let buffer = Arc::new(Buffer::new(config.buffer_bytes, identity.boot_id.clone()));
            let stream = tokio::spawn(stream::run(*config, identity, health, Arc::clone(&buffer)));
            while let Some(mut batch) = batches.recv().await {
                records += batch.records.len();
                name_containers(&mut names, &mut batch.records).await;
                if let Some(counters) = &batch.counters {
                    telemetry.update([counters.as_slice(), &buffer.counters()].concat());
                    storms.look(std::mem::take(&mut records));
                }
                buffer.push(batch);
                keeper.note(buffer.acknowledged_unix_ns());
            }
            buffer.close();
            let result = match stream.await {
                Ok(result) => result,
                Err(error) => Err(UplinkError::Configuration(format!("the uplink stopped: {error}"))),
            };
            keeper.stopped(buffer.acknowledged_unix_ns());
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

/// Fills in the Kubernetes names of each record's container.
pub async fn name_containers(names: &mut Names, records: &mut [NodeRecord]) {
    for container in records.iter_mut().filter_map(|record| record.container.as_mut()) {
        if container.id.is_empty() {
            continue;
        }
        let known = names.get(&container.id).await;
        container.names.clone_from(&known.how);
        container.pod_name.clone_from(&known.pod_name);
        container.pod_namespace.clone_from(&known.pod_namespace);
        container.name.clone_from(&known.name);
        container.image.clone_from(&known.image);
        if !known.pod_uid.is_empty() {
            container.pod_uid.clone_from(&known.pod_uid);
        }
    }
}
