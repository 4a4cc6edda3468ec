//! What the correlator counts, and whether it is well: one registry that every part adds to, one port that shows it.
//!
//! A part that counts as it goes registers a metric once and keeps its clone; a part that has the numbers anyway gives
//! them when they are asked for ([`Collect`]). Every name begins with `seclog_correlator_`; a counter's ends in `_total`.
//! Labels come from small sets that the code knows, never from what a peer sent.

mod serve;

pub use serve::{Metrics, TelemetryError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Metric, Registry};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

const PREFIX: &str = "seclog_correlator";

/// The registry. Clones are the same one.
#[derive(Debug, Clone)]
pub struct Telemetry(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    registry: Mutex<Registry>,
    /// What must be well before the correlator is ready: empty text is well, other text says what is wrong.
    parts: Mutex<BTreeMap<&'static str, String>>,
}

/// Says whether one part is ready.
#[derive(Debug)]
pub struct Readiness {
    telemetry: Telemetry,
    part: &'static str,
}

/// Has numbers when it is asked for them.
pub trait Collect: fmt::Debug + Send + Sync + 'static {
    fn collect(&self, to: &mut Sample<'_>) -> fmt::Result;
}

/// Where a [`Collect`] writes.
#[derive(Debug)]
pub struct Sample<'a>(DescriptorEncoder<'a>);

// === impl Telemetry ===

impl Default for Telemetry {
    fn default() -> Self {
        let registry = Mutex::new(Registry::with_prefix(PREFIX));
        Self(Arc::new(Inner { registry, parts: Mutex::default() }))
    }
}

impl Telemetry {
    /// Adds a metric; the caller keeps its clone and counts with it. A counter's name gets its `_total` by itself.
    pub fn register(&self, name: &str, help: &str, metric: impl Metric) {
        // The text format ends help with a full stop of its own.
        self.registry().register(name, help.trim_end_matches('.'), metric);
    }

    pub fn collect(&self, collect: impl Collect) {
        self.registry().register_collector(Box::new(Asked(collect)));
    }

    /// A part that is not ready until it says so.
    pub fn readiness(&self, part: &'static str) -> Readiness {
        let readiness = Readiness { telemetry: self.clone(), part };
        readiness.not_ready("starting");
        readiness
    }

    /// Every part that is not ready, a line each. Empty: all are.
    pub fn not_ready(&self) -> String {
        let parts = self.parts();
        parts.iter().filter(|(_, why)| !why.is_empty()).map(|(part, why)| format!("{part}: {why}\n")).collect()
    }

    /// OpenMetrics text, which every Prometheus from 2.5 on reads.
    pub fn render(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry())?;
        Ok(text)
    }

    fn registry(&self) -> MutexGuard<'_, Registry> {
        self.0.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn parts(&self) -> MutexGuard<'_, BTreeMap<&'static str, String>> {
        self.0.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Readiness ===

impl Readiness {
    pub fn ready(&self) {
        self.telemetry.parts().insert(self.part, String::new());
    }

    pub fn not_ready(&self, why: &str) {
        let why = if why.is_empty() { "not ready" } else { why };
        self.telemetry.parts().insert(self.part, why.to_owned());
    }
}

impl Drop for Readiness {
    fn drop(&mut self) {
        self.not_ready("ended");
    }
}

// === impl Sample ===

impl Sample<'_> {
    pub fn gauge(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        let value = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
        self.put(name, help, &value)
    }

    pub fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        self.put(name, help, &ConstCounter::new(value))
    }

    fn put(&mut self, name: &str, help: &str, value: &impl EncodeMetric) -> fmt::Result {
        let encoder = self.0.encode_descriptor(name, help, None, value.metric_type())?;
        value.encode(encoder)
    }
}

#[derive(Debug)]
struct Asked<C>(C);

impl<C: Collect> Collector for Asked<C> {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        self.0.collect(&mut Sample(encoder))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::metrics::counter::Counter;

    #[derive(Debug)]
    struct Two;

    impl Collect for Two {
        fn collect(&self, to: &mut Sample<'_>) -> fmt::Result {
            to.gauge("waiting", "Batches that wait.", 3)?;
            to.counter("taken", "Batches taken.", 4)
        }
    }

    #[test]
    fn what_is_registered_and_what_is_asked_for_stand_in_one_text() {
        let telemetry = Telemetry::default();
        let counter = Counter::<u64>::default();
        telemetry.register("refused", "Peers refused.", counter.clone());
        telemetry.collect(Two);
        counter.inc();
        let text = telemetry.render().unwrap();
        for line in [
            "# HELP seclog_correlator_refused Peers refused.",
            "# TYPE seclog_correlator_refused counter",
            "seclog_correlator_refused_total 1",
            "# HELP seclog_correlator_waiting Batches that wait.",
            "seclog_correlator_waiting 3",
            "seclog_correlator_taken_total 4",
            "# EOF",
        ] {
            assert!(text.lines().any(|found| found == line), "no line {line:?} in\n{text}");
        }
    }

    #[test]
    fn ready_is_when_every_part_is() {
        let telemetry = Telemetry::default();
        let (join, agents) = (telemetry.readiness("join"), telemetry.readiness("agents"));
        assert_eq!(telemetry.not_ready(), "agents: starting\njoin: starting\n");
        join.ready();
        agents.ready();
        assert_eq!(telemetry.not_ready(), "");
        agents.not_ready("behind");
        drop(join);
        assert_eq!(telemetry.not_ready(), "agents: behind\njoin: ended\n");
    }
}
