use std::{collections::BTreeMap, fs, path::Path};

use proptest::prelude::*;
use seclog_proto::{
    batch::Unpacker,
    v1::{self, node_record::Detail},
};

use super::*;

fn record(number: u64) -> NodeRecord {
    NodeRecord {
        id: format!("r{number:06}"),
        time_unix_ns: number,
        // Made of what does not compress.
        comm: seclog_journal::digest(&number.to_le_bytes()).iter().map(|byte| format!("{byte:02x}")).collect(),
        ..Default::default()
    }
}

fn push(spool: &Spool, numbers: std::ops::Range<u64>) {
    let watermark_unix_ns = numbers.end;
    spool.push(Batch { records: numbers.map(record).collect(), watermark_unix_ns, counters: None });
}

fn config(dir: Option<&Path>, most_bytes: u64, when_full: WhenFull) -> SpoolConfig {
    SpoolConfig { dir: dir.map(Path::to_owned), most_bytes, when_full }
}

fn open(dir: Option<&Path>, most_bytes: u64, when_full: WhenFull) -> Arc<Spool> {
    loop {
        match Spool::open(config(dir, most_bytes, when_full), "b".into()) {
            // The thread of the one before has not let go of it yet.
            Err(LogError::Locked(_)) => thread::yield_now(),
            opened => return opened.unwrap(),
        }
    }
}

/// As a kill does: nothing is closed. Its thread may be at work yet; who opens it again waits for that.
fn kill(spool: Arc<Spool>) {
    drop(spool);
}

fn cursor(spool: &Spool, acknowledged: u64) -> Cursor {
    Cursor::new(spool, spool.sending(), (acknowledged, Vec::new())).unwrap()
}

/// What a correlator would have.
#[derive(Default)]
struct Taken {
    /// Last sequence of each epoch.
    last: BTreeMap<u64, (u64, Vec<u8>)>,
    ids: Vec<String>,
    lost: u64,
    lost_ids: Vec<String>,
}

impl Taken {
    /// Takes up to so many frames over a new stream, and acknowledges them.
    fn take(&mut self, spool: &Spool, mut frames: usize) {
        spool.sync();
        while frames > 0 {
            let sending = spool.sending();
            let epoch = sending.0;
            let welcome = self.last.get(&epoch).cloned().unwrap_or_default();
            let mut cursor = Cursor::new(spool, sending, welcome).unwrap();
            while frames > 0
                && let Some(frame) = cursor.next(spool).unwrap().unwrap()
            {
                frames -= 1;
                self.frame(epoch, &frame);
                spool.acknowledge(&frame);
            }
            if frames > 0 && !spool.next_epoch() {
                return;
            }
        }
    }

    fn frame(&mut self, epoch: u64, frame: &Frame) {
        let last = self.last.get(&epoch).map_or(frame.first - 1, |(last, _)| *last);
        assert_eq!(frame.first, last + 1, "no gap, and nothing twice");
        self.last.insert(epoch, (frame.last, frame.digest.to_vec()));
        let batch = v1::Batch::decode(frame.bytes.clone()).unwrap();
        for record in Unpacker::new().unwrap().unpack(&batch).unwrap() {
            match record.detail {
                Some(Detail::Loss(loss)) if !self.lost_ids.contains(&record.id) => {
                    self.lost += loss.count;
                    self.lost_ids.push(record.id);
                }
                Some(Detail::Loss(_)) => {}
                _ => self.ids.push(record.id),
            }
        }
    }
}

fn ids(numbers: std::ops::Range<u64>) -> Vec<String> {
    numbers.map(|number| record(number).id).collect()
}

#[test]
fn what_was_not_acknowledged_is_sent_after_a_restart_and_nothing_twice() {
    let dir = tempfile::tempdir().unwrap();
    let mut taken = Taken::default();
    for run in 0..5 {
        let spool = open(Some(dir.path()), 1 << 20, WhenFull::KeepOldest);
        push(&spool, run * 30..run * 30 + 10);
        push(&spool, run * 30 + 10..run * 30 + 20);
        push(&spool, run * 30 + 20..run * 30 + 30);
        taken.take(&spool, 2);
        kill(spool);
    }
    taken.take(&open(Some(dir.path()), 1 << 20, WhenFull::KeepOldest), 100);
    assert_eq!(taken.ids, ids(0..150));
    assert_eq!(taken.lost, 0);
}

#[test]
fn only_what_is_synced_is_sent() {
    let dir = tempfile::tempdir().unwrap();
    let spool = open(Some(dir.path()), 1 << 20, WhenFull::KeepOldest);
    let state = spool.state();
    let epoch = state.store.sending();
    assert_eq!(state.store.limit(epoch), 1);
    drop(state);
    push(&spool, 0..3);
    spool.sync();
    assert_eq!(spool.limit(epoch), 2);
}

#[test]
fn a_full_spool_refuses_or_drops_as_configured_and_counts() {
    for (when_full, dir) in [
        (WhenFull::KeepOldest, None),
        (WhenFull::KeepNewest, None),
        (WhenFull::KeepOldest, Some(tempfile::tempdir().unwrap())),
        (WhenFull::KeepNewest, Some(tempfile::tempdir().unwrap())),
    ] {
        let path = dir.as_ref().map(|dir| dir.path());
        let spool = open(path, 1 << 20, when_full);
        for at in 0..600 {
            push(&spool, at * 100..at * 100 + 100);
            assert!(spool.state().store.bytes() <= (1 << 20) + 100);
        }
        let mut taken = Taken::default();
        taken.take(&spool, 10_000);
        push(&spool, 60_000..60_001);
        spool.close();
        taken.take(&spool, 10_000);
        assert!(taken.lost > 1000);
        assert_eq!(taken.ids.len() as u64 + taken.lost, 60_001, "{when_full:?}");
        let first = taken.ids[0] == record(0).id;
        assert_eq!(first, when_full == WhenFull::KeepOldest);
    }
}

#[test]
fn what_was_refused_before_a_kill_is_still_told() {
    let dir = tempfile::tempdir().unwrap();
    let spool = open(Some(dir.path()), 1 << 20, WhenFull::KeepOldest);
    for at in 0..400 {
        push(&spool, at * 100..at * 100 + 100);
    }
    let refused = spool.state().totals.refused;
    assert!(refused > 0);
    kill(spool);
    let spool = open(Some(dir.path()), 1 << 20, WhenFull::KeepOldest);
    let mut taken = Taken::default();
    taken.take(&spool, 10_000);
    push(&spool, 0..1);
    taken.take(&spool, 10_000);
    assert_eq!(taken.lost, refused);
}

#[test]
fn an_acknowledgement_with_another_digest_is_a_disagreement_and_everything_goes_out_again() {
    let dir = tempfile::tempdir().unwrap();
    let spool = open(Some(dir.path()), 1 << 20, WhenFull::KeepOldest);
    push(&spool, 0..10);
    push(&spool, 10..20);
    spool.sync();
    let before = spool.sending().0;
    let mut lying = Cursor::new(&spool, spool.sending(), (10, vec![7; 32])).unwrap();
    assert!(lying.next(&spool).unwrap().is_err());
    assert!(Cursor::new(&spool, spool.sending(), (21, Vec::new())).is_err(), "of what was never sent");
    spool.disagreed();
    assert_ne!(spool.sending().0, before);
    let mut taken = Taken::default();
    taken.take(&spool, 100);
    push(&spool, 20..21);
    taken.take(&spool, 100);
    assert_eq!(taken.ids, ids(0..21));
}

#[test]
fn damaged_frames_are_a_loss_in_their_place() {
    let dir = tempfile::tempdir().unwrap();
    let spool = open(Some(dir.path()), 1 << 20, WhenFull::KeepOldest);
    for at in 0..5 {
        push(&spool, at * 10..at * 10 + 10);
    }
    spool.sync();
    let epoch = spool.state().store.directory().unwrap();
    kill(spool);
    let file = fs::read_dir(epoch).unwrap().map(|entry| entry.unwrap().path()).find(|path| path.extension().is_some());
    let file = file.unwrap();
    let mut bytes = fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&file, bytes).unwrap();
    let spool = open(Some(dir.path()), 1 << 20, WhenFull::KeepOldest);
    push(&spool, 50..60);
    let mut taken = Taken::default();
    taken.take(&spool, 100);
    assert_eq!(taken.lost, 10);
    assert_eq!(taken.ids, [ids(0..20), ids(30..60)].concat());
}

#[test]
fn a_spool_that_cannot_be_written_counts_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let spool = open(Some(dir.path()), 1 << 20, WhenFull::KeepOldest);
    push(&spool, 0..1);
    spool.sync();
    assert!(spool.status().active);
    spool.state().trouble = Some("read-only".into());
    assert_eq!((spool.status().active, spool.status().reason.as_str()), (false, "read-only"));
    assert!(!open(None, 1 << 20, WhenFull::KeepOldest).status().active, "memory is said to be memory");
}

#[test]
fn watermarks_are_safe_with_the_last_frame_before_them() {
    let dir = tempfile::tempdir().unwrap();
    let spool = open(Some(dir.path()), 1 << 20, WhenFull::KeepOldest);
    push(&spool, 0..5);
    spool.sync();
    assert_eq!(spool.safe_unix_ns(), 5);
    push(&spool, 9..9);
    assert_eq!(spool.safe_unix_ns(), 9, "with nothing to write it holds at once");
    let memory = open(None, 1 << 20, WhenFull::KeepOldest);
    push(&memory, 0..5);
    assert_eq!(memory.safe_unix_ns(), 0);
    let mut at = cursor(&memory, 0);
    let frame = at.next(&memory).unwrap().unwrap().unwrap();
    memory.acknowledge(&frame);
    assert_eq!(memory.safe_unix_ns(), 5);
    assert_eq!(memory.idle(memory.sending().0, at.number()).0, 5);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn pushed_is_delivered_or_counted_through_kills(
        steps in proptest::collection::vec((0u64..300, 0usize..8, any::<bool>()), 1..25),
        newest in any::<bool>(),
        on_disk in any::<bool>(),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let path = on_disk.then(|| dir.path());
        let when_full = if newest { WhenFull::KeepNewest } else { WhenFull::KeepOldest };
        let mut spool = open(path, 100_000, when_full);
        let (mut pushed, mut taken) = (0, Taken::default());
        for (count, frames, killed) in steps {
            push(&spool, pushed..pushed + count);
            pushed += count;
            taken.take(&spool, frames);
            if killed && on_disk {
                kill(spool);
                spool = open(path, 100_000, when_full);
            }
        }
        taken.take(&spool, 1000);
        spool.close();
        taken.take(&spool, 1000);
        prop_assert_eq!(taken.ids.len() as u64 + taken.lost, pushed);
        prop_assert!(taken.ids.is_sorted_by(|a, b| a < b), "in order, each once");
        prop_assert!(spool.is_empty());
    }
}
