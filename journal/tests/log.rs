//! What the module documentation promises.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test says no more by handling them")]

use proptest::prelude::*;
use seclog_journal::{Item, Log, LogError, Options, Problem, Reader, Why, check};
use std::{fs, ops::Range, path::Path, path::PathBuf};
use tempfile::TempDir;

const SMALL: Options = Options { segment_bytes: 600 };

/// What a payload of a number looks like.
fn payload(number: u64) -> Vec<u8> {
    format!("entry {number} ").repeat(1 + (number % 7) as usize).into_bytes()
}

fn fill(log: &mut Log, count: u64) {
    for _ in 0..count {
        let next = log.next();
        log.append(&[payload(next)]).unwrap();
    }
    log.sync().unwrap();
}

/// Numbers of the whole entries, and what is missing.
fn read(dir: &Path, from: u64, limit: u64) -> (Vec<u64>, Vec<(Range<u64>, Why)>) {
    let (mut whole, mut missing) = (Vec::new(), Vec::new());
    let mut reader = Reader::new(dir, from);
    while let Some(item) = reader.next(limit).unwrap() {
        match item {
            Item::Entry(entry) => {
                assert_eq!(entry.payload, payload(entry.number), "a payload that was never written");
                whole.push(entry.number);
            }
            Item::Missing(gap) => missing.push((gap.from..gap.until, gap.why)),
        }
    }
    (whole, missing)
}

fn segment_files(dir: &Path) -> Vec<PathBuf> {
    let files = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = files.filter(|path| path.extension().is_some_and(|end| end == "log")).collect();
    files.sort();
    files
}

fn log_of(count: u64, options: Options) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, recovery) = Log::open(dir.path(), options).unwrap();
    assert!(recovery.is_clean());
    fill(&mut log, count);
    dir
}

#[test]
fn entries_are_read_back_from_any_cursor_and_across_segments() {
    let dir = log_of(40, SMALL);
    assert!(segment_files(dir.path()).len() > 3);
    for from in [1, 2, 17, 40, 41, 60] {
        assert_eq!(read(dir.path(), from, u64::MAX), ((from..=40).collect(), vec![]), "from {from}");
    }
    assert_eq!(read(dir.path(), 5, 9).0, [5, 6, 7, 8]);
    let checked = check(dir.path(), |_| {}).unwrap();
    assert!(checked.is_whole(), "{checked:?}");
    assert_eq!((checked.first, checked.next, checked.entries), (1, 41, 40));
}

#[test]
fn a_reader_follows_while_the_log_grows() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, _) = Log::open(dir.path(), SMALL).unwrap();
    let mut reader = log.reader(1);
    for round in 1..30 {
        fill(&mut log, round % 5);
        while reader.position() < log.synced() {
            let expected = reader.position();
            let Some(Item::Entry(entry)) = reader.next(log.synced()).unwrap() else { panic!("{expected}") };
            assert_eq!(entry.number, expected);
        }
        assert_eq!(reader.next(log.synced()).unwrap(), None);
    }
}

#[test]
fn a_log_goes_on_where_it_ended() {
    let dir = tempfile::tempdir().unwrap();
    for _ in 0..10 {
        let (mut log, recovery) = Log::open(dir.path(), SMALL).unwrap();
        assert!(recovery.is_clean());
        fill(&mut log, 3);
    }
    assert_eq!(read(dir.path(), 1, u64::MAX).0.len(), 30);
    assert!(check(dir.path(), |_| {}).unwrap().is_whole());
}

#[test]
fn one_process_writes_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let (_log, _) = Log::open(dir.path(), SMALL).unwrap();
    assert!(matches!(Log::open(dir.path(), SMALL), Err(LogError::Locked(_))));
}

#[test]
fn trimming_lets_go_of_whole_segments_only_and_readers_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, _) = Log::open(dir.path(), SMALL).unwrap();
    fill(&mut log, 40);
    let before = log.bytes();
    let (entries, bytes) = log.trim(20).unwrap();
    assert!(entries > 0 && log.first() <= 20 && log.bytes() == before - bytes);
    let (whole, missing) = read(dir.path(), 1, u64::MAX);
    assert_eq!(whole, (log.first()..=40).collect::<Vec<_>>());
    assert_eq!(missing, [(1..log.first(), Why::Gone)]);
    log.trim(u64::MAX).unwrap();
    assert_eq!(log.segments().count(), 1, "the last segment stays");
    log.roll().unwrap();
    log.trim(u64::MAX).unwrap();
    assert_eq!((log.first(), log.next()), (41, 41));
    drop(log);
    let (mut log, _) = Log::open(dir.path(), SMALL).unwrap();
    fill(&mut log, 2);
    assert_eq!(read(dir.path(), 41, u64::MAX).0, [41, 42], "numbers go on");
}

#[test]
fn a_cleared_log_has_room_and_goes_on_with_its_numbers() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, _) = Log::open(dir.path(), SMALL).unwrap();
    fill(&mut log, 40);
    log.clear().unwrap();
    assert!(log.bytes() < 100 && log.first() == 41 && log.next() == 41);
    fill(&mut log, 3);
    assert_eq!(read(dir.path(), 41, u64::MAX), (vec![41, 42, 43], vec![]));
    drop(log);
    let (log, recovery) = Log::open(dir.path(), SMALL).unwrap();
    assert!(recovery.is_clean() && log.next() == 44);
    assert!(check(dir.path(), |_| {}).unwrap().is_whole());
}

#[test]
fn a_changed_payload_costs_that_entry_alone() {
    let dir = log_of(20, Options::default());
    let file = &segment_files(dir.path())[0];
    let mut bytes = fs::read(file).unwrap();
    let at = bytes.windows(8).position(|window| window == b"entry 9 ").unwrap();
    bytes[at] ^= 1;
    fs::write(file, bytes).unwrap();
    let (whole, missing) = read(dir.path(), 1, u64::MAX);
    assert_eq!(whole.len(), 19);
    assert_eq!(missing, [(9..10, Why::Damaged)]);
    let checked = check(dir.path(), |_| {}).unwrap();
    assert_eq!(checked.problems.len(), 1, "what comes after it is proven: {checked:?}");
    let (mut log, recovery) = Log::open(dir.path(), Options::default()).unwrap();
    assert_eq!((recovery.damaged, recovery.torn_bytes, log.next()), (1, 0, 21));
    fill(&mut log, 1);
    assert_eq!(read(dir.path(), 1, u64::MAX).0.len(), 20);
}

#[test]
fn bytes_in_a_payload_that_look_like_an_entry_are_none() {
    let dir = tempfile::tempdir().unwrap();
    let other = log_of(3, Options::default());
    let forged = fs::read(&segment_files(other.path())[0]).unwrap();
    let (mut log, _) = Log::open(dir.path(), Options::default()).unwrap();
    log.append(&[b"one".to_vec(), forged[72..].to_vec(), b"three".to_vec()]).unwrap();
    log.sync().unwrap();
    let file = &segment_files(dir.path())[0];
    let mut bytes = fs::read(file).unwrap();
    // The header of the second entry: its length cannot be known any more.
    bytes[72 + 84 + 3 + 6] ^= 0xff;
    fs::write(file, bytes).unwrap();
    let mut reader = Reader::new(dir.path(), 1);
    let mut seen = Vec::new();
    while let Some(item) = reader.next(u64::MAX).unwrap() {
        seen.push(match item {
            Item::Entry(entry) => String::from_utf8(entry.payload.to_vec()).unwrap(),
            Item::Missing(gap) => format!("{}..{}", gap.from, gap.until),
        });
    }
    assert_eq!(seen, ["one", "2..3", "three"]);
}

#[test]
fn a_removed_segment_is_missing_and_a_replaced_one_is_noticed() {
    let dir = log_of(40, SMALL);
    let files = segment_files(dir.path());
    let first_of = |at: usize| files[at].file_stem().unwrap().to_str().unwrap().parse::<u64>().unwrap();
    fs::remove_file(&files[2]).unwrap();
    assert_eq!(read(dir.path(), 1, u64::MAX).1, [(first_of(2)..first_of(3), Why::Damaged)]);
    let checked = check(dir.path(), |_| {}).unwrap();
    assert!(matches!(checked.problems[..], [Problem::Missing(_)]), "{checked:?}");
}

#[test]
fn an_entry_that_was_put_in_by_a_writer_without_the_chain_breaks_it() {
    let dir = log_of(10, Options::default());
    let copy = tempfile::tempdir().unwrap();
    let name = segment_files(dir.path())[0].file_name().unwrap().to_owned();
    fs::copy(dir.path().join(&name), copy.path().join(&name)).unwrap();
    // The same log goes on in two ways; then one's end is put behind the other's.
    let (mut log, _) = Log::open(dir.path(), Options::default()).unwrap();
    fill(&mut log, 2);
    let (mut other, _) = Log::open(copy.path(), Options::default()).unwrap();
    other.append(&[b"forged"]).unwrap();
    other.sync().unwrap();
    let at = fs::metadata(copy.path().join(&name)).unwrap().len() as usize;
    let cut = at - 6 - 84;
    fill(&mut other, 1);
    let (mine, theirs) = (fs::read(dir.path().join(&name)).unwrap(), fs::read(copy.path().join(&name)).unwrap());
    let first_of_two = cut + 84 + payload(11).len();
    let spliced = [&mine[..first_of_two], &theirs[at..]].concat();
    drop(log);
    fs::write(dir.path().join(&name), spliced).unwrap();
    let checked = check(dir.path(), |_| {}).unwrap();
    assert_eq!(checked.problems, [Problem::ChainBroken { number: 12 }]);
}

#[test]
fn damage_at_the_very_end_uses_its_numbers_up() {
    let dir = log_of(5, Options::default());
    let file = &segment_files(dir.path())[0];
    let mut bytes = fs::read(file).unwrap();
    let start = bytes.len() - payload(5).len() - 84;
    bytes[start + 10] ^= 1;
    fs::write(file, bytes).unwrap();
    let (mut log, recovery) = Log::open(dir.path(), Options::default()).unwrap();
    assert!(recovery.lost_end);
    assert!(log.next() > 6, "number 5 was synced, and is not given again");
    fill(&mut log, 1);
    let (whole, missing) = read(dir.path(), 1, u64::MAX);
    assert_eq!(whole[..4], [1, 2, 3, 4]);
    assert_eq!(missing, [(5..whole[4], Why::Damaged)]);
    drop(log);
    assert!(Log::open(dir.path(), Options::default()).unwrap().1.is_clean());
}

#[test]
fn a_version_of_later_is_refused_and_left_alone() {
    let dir = log_of(2, Options::default());
    let file = &segment_files(dir.path())[0];
    let mut bytes = fs::read(file).unwrap();
    bytes[8] = 2;
    let crc = crc32fast::hash(&bytes[..68]);
    bytes[68..72].copy_from_slice(&crc.to_le_bytes());
    fs::write(file, &bytes).unwrap();
    let refused = Log::open(dir.path(), Options::default());
    assert!(matches!(refused, Err(LogError::Version { version: 2, .. })));
    assert_eq!(fs::read(file).unwrap(), bytes);
}

#[test]
fn a_log_whose_headers_are_all_gone_begins_anew_behind_itself() {
    let dir = log_of(40, SMALL);
    for file in segment_files(dir.path()) {
        let mut bytes = fs::read(&file).unwrap();
        bytes[..72].fill(0);
        fs::write(file, bytes).unwrap();
    }
    let (mut log, recovery) = Log::open(dir.path(), SMALL).unwrap();
    assert!(recovery.lost_end && log.next() > 41);
    fill(&mut log, 3);
    let (whole, missing) = read(dir.path(), 1, u64::MAX);
    // What has no id any more can be told from garbage by nobody.
    assert_eq!((whole.len(), missing.first().unwrap().0.start), (3, 1));
    assert_eq!(missing.last().unwrap().0.end, whole[0]);
}

/// What happens to the files between two runs.
#[derive(Debug, Clone)]
enum Harm {
    Nothing,
    /// The last file loses bytes that were never synced.
    Torn(usize),
    /// The last file gets bytes that were never written whole.
    Tail(Vec<u8>),
    /// Bits somewhere.
    Flip {
        file: prop::sample::Index,
        at: prop::sample::Index,
        bits: u8,
    },
    Cut {
        file: prop::sample::Index,
        at: prop::sample::Index,
    },
    Remove(prop::sample::Index),
}

fn harm() -> impl Strategy<Value = Harm> {
    let index = any::<prop::sample::Index>;
    prop_oneof![
        Just(Harm::Nothing),
        (0usize..400).prop_map(Harm::Torn),
        proptest::collection::vec(any::<u8>(), 0..200).prop_map(Harm::Tail),
        (index(), index(), 1u8..).prop_map(|(file, at, bits)| Harm::Flip { file, at, bits }),
        (index(), index()).prop_map(|(file, at)| Harm::Cut { file, at }),
        index().prop_map(Harm::Remove),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_to_the_files_whole_entries_are_read_in_order_and_the_others_are_named(
        runs in proptest::collection::vec((0u64..12, 0u64..5, harm()), 1..8)
    ) {
        let dir = tempfile::tempdir().unwrap();
        let mut kept_numbers = Vec::new();
        let mut harmless = true;
        for (synced, unsynced, harm) in runs {
            let (mut log, _) = Log::open(dir.path(), SMALL).unwrap();
            let next = log.next();
            prop_assert!(!harmless || kept_numbers.iter().all(|number| *number < next), "a number is never given twice");
            fill(&mut log, synced);
            let kept = log.bytes();
            if harmless {
                kept_numbers.extend(next..log.next());
            }
            for _ in 0..unsynced {
                let next = log.next();
                log.append(&[payload(next)]).unwrap();
            }
            let unsynced_bytes = log.bytes() - kept;
            drop(log);
            let files = segment_files(dir.path());
            let last = files.last().unwrap().clone();
            match harm {
                Harm::Nothing => {}
                Harm::Torn(bytes) => {
                    let file = fs::OpenOptions::new().write(true).open(&last).unwrap();
                    let length = file.metadata().unwrap().len();
                    // Never more than what was not synced, and no segment's header, which was.
                    let torn = (bytes as u64).min(unsynced_bytes).min(length.saturating_sub(72));
                    file.set_len(length - torn).unwrap();
                }
                Harm::Tail(bytes) => {
                    let mut content = fs::read(&last).unwrap();
                    content.extend_from_slice(&bytes);
                    fs::write(&last, content).unwrap();
                }
                Harm::Flip { file, at, bits } => {
                    harmless = false;
                    let file = file.get(&files);
                    let mut content = fs::read(file).unwrap();
                    let at = at.index(content.len());
                    content[at] ^= bits;
                    fs::write(file, content).unwrap();
                }
                Harm::Cut { file, at } => {
                    harmless = false;
                    let file = file.get(&files);
                    let mut content = fs::read(file).unwrap();
                    content.truncate(at.index(content.len()));
                    fs::write(file, content).unwrap();
                }
                Harm::Remove(file) => {
                    harmless = false;
                    fs::remove_file(file.get(&files)).unwrap();
                }
            }
            // Read by somebody else meanwhile, or by verify: no panic, and everything is accounted for.
            let (whole, missing) = read(dir.path(), 1, u64::MAX);
            prop_assert!(whole.is_sorted_by(|a, b| a < b));
            let mut at = 1;
            let mut numbers: Vec<Range<u64>> = whole.iter().map(|number| *number..number + 1).collect();
            numbers.extend(missing.iter().map(|(gap, _)| gap.clone()));
            numbers.sort_by_key(|range| range.start);
            for range in numbers {
                prop_assert_eq!(range.start, at, "numbers are whole or missing, never both or neither");
                at = range.end;
            }
            if harmless {
                prop_assert!(kept_numbers.iter().all(|number| whole.contains(number)), "{:?}", missing);
            }
            let _ = check(dir.path(), |_| {});
        }
    }
}
