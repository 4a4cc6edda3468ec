//! What one record costs in the agent's pipeline: decoded (or parsed), pinned to the image that made it, made a node record.
//!
//! The records are synthetic and lie in memory: several for each process, so that no producer is the limit. They come in
//! passes of two milliseconds at 100,000 records a second, the pace of a storm. Making them is not timed; dropping the node
//! records is.

use super::{
    figure::Figure,
    median, processor, spread,
    synthetic::{NODE_RECORDS, Pass, RECORDS, Story, VERDICTS},
};
use anyhow::{Context as _, Result, ensure};
use prost::Message as _;
use seclog_agent::{
    capture::{
        audit,
        kernel::{Record, decode},
    },
    lineage::Outcome as Attempt,
    pipeline::{Pipeline, PipelineCounters},
    record::{self, Detail, VerdictEnd},
};

/// Processes and time of one pass.
const PROCESSES: u32 = 25;
const PASS_NS: u64 = 2_000_000;
const REPETITIONS: usize = 7;
/// Ended processes are remembered, 20,000 of them: only then does the table no longer grow.
const WARM_UP: u32 = 30_000;

/// Which records are timed; the others go through as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timed {
    /// Both rings.
    Rings,
    /// The verdicts' ring.
    Verdicts,
    /// Audit records in place of the verdicts' ring.
    Audit,
    /// What comes after, in the uplink's thread: records to node records, and those to bytes.
    Texts,
}

/// What went through, and what it cost.
#[derive(Clone, Copy, Debug, Default)]
pub struct Outcome {
    pub timed_records: u64,
    pub cpu_ns: u64,
    pub node_records: u64,
    pub executed: u64,
    pub in_session: u64,
    pub counters: PipelineCounters,
}

// === impl Outcome ===

impl Outcome {
    fn ns(&self) -> f64 {
        self.cpu_ns as f64 / self.timed_records.max(1) as f64
    }
}

/// Puts so many processes through a new pipeline, `warm_up` of them before the clock counts.
pub fn run(timed: Timed, warm_up: u32, processes: u32) -> Result<Outcome> {
    let mut story = Story::default();
    let mut pipeline = Story::pipeline();
    let mut outcome = Outcome::default();
    let mut out = Vec::new();
    feed(&mut pipeline, &story.opening(), timed, &mut out)?;
    out.clear();
    let mut left = warm_up + processes;
    while left > 0 {
        let count = left.min(PROCESSES);
        let measured = left <= processes;
        left -= count;
        let pass = story.pass(count, PASS_NS);
        let (records, cpu_ns) = feed(&mut pipeline, &pass, timed, &mut out)?;
        count_out(&out, &mut outcome);
        let made = out.len() as u64;
        let before = processor::thread_ns();
        if timed == Timed::Texts {
            for record in out.drain(..) {
                std::hint::black_box(record.to_node_record(&pipeline.origins).encode_to_vec());
            }
        }
        out.clear();
        let (records, cpu_ns) = if timed == Timed::Texts { (made, 0) } else { (records, cpu_ns) };
        if measured {
            outcome.timed_records += records;
            outcome.cpu_ns += cpu_ns + processor::thread_ns() - before;
        }
    }
    pipeline.advance(u64::MAX / 2, Story::offset(), true, &mut out);
    count_out(&out, &mut outcome);
    outcome.counters = pipeline.counters;
    Ok(outcome)
}

fn count_out(out: &[record::Record], outcome: &mut Outcome) {
    outcome.node_records += out.len() as u64;
    for record in out {
        outcome.in_session += u64::from(record.root.is_some());
        let executed = matches!(&record.detail, Detail::Verdict(_, VerdictEnd::Of(Attempt::Executed { .. })));
        outcome.executed += u64::from(executed);
    }
}

/// One pass; timed records and their CPU time.
fn feed(pipeline: &mut Pipeline, pass: &Pass, timed: Timed, out: &mut Vec<record::Record>) -> Result<(u64, u64)> {
    let offset = Story::offset();
    let mut begin = processor::thread_ns();
    for bytes in pass.lineage.iter() {
        let Record::Lineage(event) = decode(bytes)? else { continue };
        pipeline.lineage(&event, offset, out);
    }
    if timed != Timed::Rings {
        begin = processor::thread_ns();
    }
    if timed == Timed::Audit {
        for bytes in pass.audit.iter() {
            // As the agent does: the serial numbers of every record are followed.
            std::hint::black_box(audit::stamp(bytes)?);
            pipeline.audit_verdict(audit::parse(bytes)?, offset, pass.now_ns);
        }
    } else {
        for bytes in pass.verdicts.iter() {
            let Record::Verdict(verdict) = decode(bytes)? else { continue };
            pipeline.kernel_verdict(verdict, pass.now_ns);
        }
    }
    pipeline.advance(pass.now_ns, offset, false, out);
    let cpu_ns = processor::thread_ns() - begin;
    let lineage = if timed == Timed::Rings { pass.lineage.len() } else { 0 };
    Ok(((lineage + pass.verdicts.len()) as u64, cpu_ns))
}

/// Nothing may be missing, whatever it costs.
pub fn check(timed: Timed, outcome: &Outcome, processes: u64) -> Result<()> {
    let Outcome { node_records, executed, in_session, counters, .. } = outcome;
    ensure!(*node_records == processes * NODE_RECORDS, "{node_records} node records of {processes} processes");
    ensure!(*in_session == *node_records, "{in_session} of {node_records} belong to the session");
    ensure!(*executed == processes, "{executed} attempts of {processes} are executed");
    ensure!(counters.unpinned == 0, "{} verdicts are pinned to no process", counters.unpinned);
    let alone = if timed == Timed::Audit { counters.only_audit } else { counters.only_kernel };
    ensure!(alone == processes * VERDICTS, "{alone} verdicts of {processes} processes");
    Ok(())
}

pub fn figures(processes: u32) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    let each = [Timed::Rings, Timed::Verdicts, Timed::Audit, Timed::Texts];
    let mut costs: [Vec<f64>; 4] = Default::default();
    for _ in 0..REPETITIONS {
        for (timed, costs) in each.into_iter().zip(&mut costs) {
            let outcome = run(timed, WARM_UP, processes)?;
            check(timed, &outcome, u64::from(WARM_UP + processes)).with_context(|| format!("{timed:?}"))?;
            costs.push(outcome.ns());
        }
    }
    let [rings, verdicts, audit, texts] = costs;
    let records = u64::from(processes) * RECORDS;
    let how =
        format!("ns a record, {records} synthetic records x {REPETITIONS}: fork, exec, exit and 5 verdicts a process");
    let met = median(rings.clone()) <= 1000.0;
    figures.push(Figure::judged("ring record: decode, pin, attribute", "at most 1000 ns", spread(&rings, 0), met, how));
    let how = "ns a record, verdicts alone, lineage not timed";
    let met = median(verdicts.clone()) <= 1000.0;
    figures.push(Figure::judged("  verdict records alone", "at most 1000 ns", spread(&verdicts, 0), met, how));
    let how = "ns a record: the same verdicts as text of 1326 records, parsed, fused, pinned";
    figures.push(Figure::stated("audit record: parse, fuse, pin", spread(&audit, 0), how));
    let how = "ns a record, in the uplink's thread: the record's texts made, and encoded for the wire";
    figures.push(Figure::stated("  to a node record and to bytes", spread(&texts, 0), how));
    Ok(figures)
}

#[cfg(test)]
mod tests {
    use super::{Timed, check, run};

    #[test]
    fn every_synthetic_record_becomes_a_node_record_of_the_session() {
        for timed in [Timed::Rings, Timed::Verdicts, Timed::Audit, Timed::Texts] {
            let outcome = run(timed, 0, 500).unwrap();
            check(timed, &outcome, 500).unwrap();
        }
    }
}
