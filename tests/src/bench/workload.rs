//! What one logged system call costs the process that makes it: by default, and with quiet mode's rule.

use anyhow::Result;

use super::{
    audit_state::Excluded,
    figure::Figure,
    generator::{Filter, calls},
    median, spread,
};

const REPETITIONS: usize = 5;
const QUICK_CALLS: u64 = 1_000_000;
const LOGGED_CALLS: u64 = 100_000;

pub fn figures() -> Result<Vec<Figure>> {
    let mut costs: [Vec<f64>; 4] = Default::default();
    let mut waited = Vec::new();
    for _ in 0..REPETITIONS {
        costs[0].push(calls(Filter::None, QUICK_CALLS)?.cpu_ns_per_call());
        costs[1].push(calls(Filter::Silent, QUICK_CALLS)?.cpu_ns_per_call());
        let logged = calls(Filter::Logging, LOGGED_CALLS)?;
        costs[2].push(logged.cpu_ns_per_call());
        waited.push(logged.elapsed_ns_per_call());
        let _excluded = Excluded::new()?;
        costs[3].push(calls(Filter::Logging, QUICK_CALLS)?.cpu_ns_per_call());
    }
    let [plain, silent, logged, excluded] = costs;
    let (default_ns, excluded_ns) = (median(logged.clone()), median(excluded.clone()));
    let eighth = default_ns / 8.0;
    Ok(vec![
        Figure::stated("a call without a filter", spread(&plain, 0), "ns of the caller's CPU, getppid"),
        Figure::stated("a call under a filter that lets it pass", spread(&silent, 0), "ns of the caller's CPU"),
        Figure::stated(
            "a logged call, default audit path",
            spread(&logged, 0),
            format!("ns of the caller's CPU; with its waits for kauditd {} ns", spread(&waited, 0)),
        ),
        Figure::judged(
            "a logged call, quiet mode's rule, without the hook",
            &format!("below {eighth:.0} ns"),
            spread(&excluded, 0),
            excluded_ns <= eighth,
            format!("ns of the caller's CPU; 1/{:.1} of the default path", default_ns / excluded_ns),
        ),
    ])
}
