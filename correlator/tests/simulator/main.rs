//! A simulated cluster with a ground truth, and the join held against it.
//!
//! Shares no code with the join: it makes accesses ([`world`]), what the API server and the nodes would tell of them
//! ([`wire`]), and counts what the join says wrongly and not at all ([`judge`]). Runs are the same every time. `cargo test
//! --workspace --release --test simulator -- --nocapture` prints the table; SECLOG_SIMULATE=long takes the long sweep.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test says no more by handling them")]

mod judge;
mod random;
mod settings;
mod wire;
mod world;

use judge::{Judge, Verdict};
use seclog_correlator::join::{Config, Join};
use settings::{Setting, sweep};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

fn run(setting: &Setting) -> Verdict {
    let accesses = world::happen(setting);
    let mut join = Join::new(Config::new("simulated"));
    let mut judge = Judge::new(&accesses);
    for input in wire::deliver(setting, &accesses) {
        judge.hear(join.apply(input));
    }
    judge.hear(join.finish());
    judge.verdict()
}

/// Every setting with what came of it, in order; as many at once as there are processors.
fn run_all(settings: &[Setting]) -> Vec<Verdict> {
    let next = AtomicUsize::new(0);
    let found = Mutex::new(BTreeMap::new());
    let work = || {
        while let Some((at, setting)) = settings.iter().enumerate().nth(next.fetch_add(1, Ordering::Relaxed)) {
            let verdict = run(setting);
            let mut found = found.lock().unwrap();
            found.insert(at, verdict);
            if found.len().is_multiple_of(50) {
                println!("{} of {} settings", found.len(), settings.len());
            }
        }
    };
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| (0..processors).for_each(|_| drop(scope.spawn(work))));
    found.into_inner().unwrap().into_values().collect()
}

#[test]
fn no_name_is_wrong_and_enough_are_found() {
    let long = std::env::var("SECLOG_SIMULATE").is_ok_and(|value| value == "long");
    let mut table = format!(
        "{:<28} {:>4} {:>5} {:>5} {:>5} {:>5} | {:>6} {:>6} {:>6} {:>6} {:>7} | wrong: exact unique interim\n",
        "setting", "open", "same%", "mark%", "skew", "loss%", "pairs", "exact", "unique", "ambig", "recall"
    );
    let mut complaints = Vec::new();
    let settings = sweep(long);
    let verdicts = run_all(&settings);
    assert_eq!(verdicts.len(), settings.len());
    for (setting, found) in settings.iter().zip(verdicts) {
        let Setting { name, concurrent, identical, webhook, skew_ms, undeclared_loss, .. } = setting;
        let _ = writeln!(
            table,
            "{name:<28} {concurrent:>4} {identical:>5} {webhook:>5} {skew_ms:>5} {undeclared_loss:>5} | {:>6} {:>6} {:>6} \
             {:>6} {:>6.2}% | {:>12} {:>6} {:>7}",
            found.true_pairs,
            found.exact,
            found.unique,
            found.ambiguous,
            found.recall(),
            found.wrong_exact,
            found.wrong_unique,
            found.wrong_for_a_while,
        );
        let mut complain = |what: &str| complaints.push(format!("{what}: {setting:?}: {found:?}"));
        if found.wrong_exact > 0 {
            complain("exact is wrong");
        }
        if found.wrong_unique > 0 && *undeclared_loss == 0.0 {
            complain("unique is wrong without undeclared loss");
        }
        if found.foreign > 0 {
            complain("a program of another access");
        }
        // A few for each access, and as many as its candidates change where many ask for the same. Never one a second.
        let most = if *identical == 100.0 { 50 } else { 8 };
        if found.revisions > most * setting.sessions {
            complain("the same is told over and over");
        }
        let undisturbed = *undeclared_loss == 0.0 && !setting.gaps && setting.spoofs == 0.0;
        if undisturbed && *webhook == 100.0 && found.recall() < 99.9 {
            complain("recall is below 99.9 % with a webhook");
        }
        let asserted = undisturbed && *webhook == 0.0 && *concurrent == 3 && *identical == 10.0;
        if asserted && *skew_ms == 0 && found.recall() < 95.0 {
            complain("recall is below 95 % without a webhook");
        }
    }
    println!("{table}");
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}
