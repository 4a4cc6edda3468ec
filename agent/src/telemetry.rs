//! Metrics and health on one port: `/metrics` for Prometheus, `/healthz` (the process answers), `/readyz` (it captures and
//! its records get out).

use std::{
    fmt::Write as _,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::IntoResponse,
    routing::get,
};
use seclog_proto::v1::HookStatus;
use tokio::{net::TcpListener, sync::watch};

use crate::{check, clock, credentials};

/// The pipeline accounts once a second; silence for so long means that it hangs: nanoseconds.
const HANGING_NS: u64 = 30_000_000_000;

/// Name, help. Every counter that the pipeline and the uplink tell, as `seclog_agent_<name>_total`.
pub const COUNTERS: [(&str, &str); 44] = [
    ("lineage_events", "Lineage records read from the ring."),
    ("kernel_verdicts", "Verdict records read from the ring."),
    ("audit_verdicts", "Audit records of type SECCOMP that were parsed."),
    ("fused", "Verdicts that eBPF and audit both saw."),
    ("only_kernel", "Verdicts that audit did not see, or not in time."),
    ("only_audit", "Verdicts that eBPF did not see, or not in time."),
    ("unpinned", "Verdicts whose process was not known."),
    ("malformed_audit", "Audit records of type SECCOMP that could not be parsed; they are skipped."),
    ("malformed_ring", "Ring records that could not be decoded; they are skipped."),
    ("verdict_seen", "Calls of the verdict program. seen = submitted + aggregated + dropped."),
    ("verdict_submitted", "Verdicts handed over in the ring."),
    ("verdict_aggregated", "Verdicts that the ring had no room for, counted by kind in the kernel."),
    ("verdict_dropped", "Verdicts that neither the ring nor the map of counts had room for."),
    ("verdict_recursion_misses", "Verdicts missed because the program ran already on that CPU (kernel 5.12 on)."),
    ("verdict_verified_instructions", "What the verifier walked for the verdict program (kernel 5.16 on)."),
    ("lineage_seen", "Calls of the lineage programs for processes that matter. seen = submitted + dropped."),
    ("lineage_submitted", "Lineage records handed over in the ring."),
    ("lineage_dropped", "Lineage records that the ring had no room for."),
    ("lineage_filtered", "Events of processes that do not matter; they never leave the kernel."),
    ("lineage_recursion_misses", "Lineage events missed because the program ran already on that CPU."),
    ("lineage_verified_instructions", "The most that the verifier walked for one lineage program."),
    ("process_map_full", "Processes that the kernel's map of session roots had no room for."),
    ("verdicts_counted", "Aggregated verdicts handed over as counts; in the end equal to verdict_aggregated."),
    ("overflow_unreadable", "Entries of the kernel's map of counts that could not be read."),
    ("audit_received", "Datagrams received from the audit multicast group, of every type."),
    ("audit_overruns", "Times the kernel said ENOBUFS: at least one audit record lost each time."),
    ("audit_queue_full", "Audit records dropped because the agent's own queue was full."),
    ("audit_malformed_datagrams", "Datagrams too short for a netlink header."),
    ("audit_serial_gaps", "Serial numbers that never came: a lower bound of lost audit records of any type."),
    ("audit_kernel_lost", "What the kernel itself counts as lost audit records (needs CAP_AUDIT_CONTROL)."),
    ("processes", "Processes remembered now, ended ones of the last seconds included (a gauge)."),
    ("own_records", "Records of the agent's own container, which are not handed over (--report-own)."),
    ("containers_known", "Containers whose names are remembered (a gauge)."),
    ("containers_resolved", "Containers whose names became known."),
    (
        "containers_unresolved",
        "Containers whose names never became known: their records have an id and a pod UID only.",
    ),
    ("containers_pending", "Containers with records that went out without names, and are still looked for (a gauge)."),
    ("amendments", "Records that tell names of containers after records of them went out without."),
    ("records", "Node records made."),
    ("losses", "Loss records made."),
    ("uplink_refused", "Records refused because the spool was full or could not be written; told in loss records."),
    ("uplink_acknowledged", "Records that the correlator has acknowledged: they are on its disk."),
    ("uplink_lost", "Records that the spool dropped for room or found damaged; told in loss records."),
    ("uplink_disagreements", "Times that the correlator had other records at the spool's positions."),
    ("spool_bytes", "Bytes of the spool (a gauge)."),
];

/// What is shown. Filled by the uplink, read by requests.
#[derive(Debug)]
pub struct Telemetry {
    counters: Mutex<Vec<(&'static str, u64)>>,
    beat_boot_ns: AtomicU64,
    hooks: watch::Receiver<Vec<HookStatus>>,
    check: check::Status,
    /// `None`: records go to no correlator.
    credentials: Option<Arc<credentials::Status>>,
}

// === impl Telemetry ===

impl Telemetry {
    pub fn new(
        hooks: watch::Receiver<Vec<HookStatus>>,
        check: check::Status,
        credentials: Option<Arc<credentials::Status>>,
    ) -> Self {
        Self { counters: Mutex::default(), beat_boot_ns: AtomicU64::new(clock::boot_ns()), hooks, check, credentials }
    }

    /// Takes the counters of the last accounting.
    pub fn update(&self, counters: Vec<(&'static str, u64)>) {
        *self.counters.lock().unwrap_or_else(PoisonError::into_inner) = counters;
        self.beat_boot_ns.store(clock::boot_ns(), Ordering::Relaxed);
    }

    fn is_ready(&self) -> bool {
        let silent = clock::boot_ns().saturating_sub(self.beat_boot_ns.load(Ordering::Relaxed));
        silent < HANGING_NS && self.hooks.borrow().iter().any(|hook| hook.active)
    }

    /// Prometheus text format 0.0.4.
    fn render(&self) -> String {
        let mut text = String::from(
            "# HELP seclog_agent_hook_active Whether a way to see events works here.\n\
             # TYPE seclog_agent_hook_active gauge\n",
        );
        for HookStatus { name, active, reason } in self.hooks.borrow().iter() {
            let (name, reason) = (label(name), label(if *active { "" } else { reason }));
            let _ =
                writeln!(text, "seclog_agent_hook_active{{hook=\"{name}\",reason=\"{reason}\"}} {}", u8::from(*active));
        }
        for (name, value) in self.counters.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            let help = COUNTERS.iter().find(|(known, _)| known == name).map_or("", |(_, help)| help);
            let gauge = matches!(
                *name,
                "processes" | "spool_bytes" | "verdict_verified_instructions" | "lineage_verified_instructions"
            );
            let (suffix, kind) = if gauge { ("", "gauge") } else { ("_total", "counter") };
            let _ = writeln!(
                text,
                "# HELP seclog_agent_{name}{suffix} {help}\n# TYPE seclog_agent_{name}{suffix} {kind}\n\
                 seclog_agent_{name}{suffix} {value}"
            );
        }
        // What the last check of the node's configuration found; docs/check.md.
        for (name, value) in check::counters(&self.check) {
            let _ = writeln!(text, "# TYPE seclog_agent_{name} gauge\nseclog_agent_{name} {value}");
        }
        for (name, kind, help, value) in self.credentials.iter().flat_map(|status| status.metrics()) {
            let _ = writeln!(
                text,
                "# HELP seclog_agent_{name} {help}\n# TYPE seclog_agent_{name} {kind}\nseclog_agent_{name} {value}"
            );
        }
        text
    }
}

/// A label's value: backslash, quote and line feed escaped, other control characters left out.
fn label(text: &str) -> String {
    let escaped = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    escaped.chars().filter(|character| !character.is_control()).collect()
}

/// Serves until the process ends.
pub async fn serve(address: SocketAddr, telemetry: Arc<Telemetry>) -> std::io::Result<()> {
    let listener = TcpListener::bind(address).await?;
    tracing::info!(addr = %listener.local_addr()?, "listening for metrics");
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .with_state(telemetry);
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, router).await {
            tracing::error!(%error, "metrics are no longer served");
        }
    });
    Ok(())
}

async fn metrics(State(telemetry): State<Arc<Telemetry>>) -> impl IntoResponse {
    ([(CONTENT_TYPE, "text/plain; version=0.0.4")], telemetry.render())
}

async fn ready(State(telemetry): State<Arc<Telemetry>>) -> (StatusCode, &'static str) {
    if telemetry.is_ready() {
        (StatusCode::OK, "ok\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "nothing is captured\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::{active, inactive};

    #[test]
    fn metrics_have_help_and_no_reason_breaks_out_of_its_label() {
        let hooks = vec![active("audit/netlink", "x"), inactive("verdict/fentry", "said \"no\"\n\x1b[0m")];
        let telemetry =
            Telemetry::new(watch::Sender::new(hooks).subscribe(), watch::Sender::new(None).subscribe(), None);
        telemetry.update(vec![("fused", 7), ("processes", 3)]);
        let text = telemetry.render();
        assert!(
            text.contains("seclog_agent_hook_active{hook=\"verdict/fentry\",reason=\"said \\\"no\\\"\\n[0m\"} 0\n")
        );
        assert!(text.contains("seclog_agent_fused_total 7\n") && text.contains("seclog_agent_processes 3\n"));
        assert!(text.contains("# HELP seclog_agent_fused_total Verdicts that eBPF and audit both saw.\n"));
        assert!(telemetry.is_ready());
    }
}
