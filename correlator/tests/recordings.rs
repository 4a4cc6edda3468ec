//! The recordings of a real cluster: every event is understood, and every access comes out as it happened.

mod support;

use seclog_correlator::audit::{self, AccessKind};
use seclog_correlator::join::session::{Evidence, Kind, Outcome, Session, State};
use seclog_correlator::join::{Input, Route};
use seclog_correlator::replay::{Reader, Replay};
use support::{fixture, read, trace};

fn replayed(audit: &str) -> Replay {
    let mut reader = Reader::new("guest");
    reader.audit_file(&fixture(audit)).unwrap();
    for record in trace::node_records() {
        reader.apply(Input::Node { node: "node-1".into(), record });
    }
    reader.finish()
}

#[test]
fn print() {
    let replay = replayed("kas-audit.log");
    for session in &replay.sessions {
        print!("{}", seclog_correlator::outlet::table::render(session));
    }
    println!("{:?} {:?}", replay.join, replay.audit);
}
