//! The thread that joins what the journal holds, and writes what comes of it to the outlet and the store.
//!
//! The join keeps nothing on disk: after a restart it is told again what it still needs. What holds:
//! - The join learns the time in steps, and between two steps it gets the entries that came between them, live and in a
//!   replay alike. So a replay tells the same sessions in the same revisions, as far as its beginning reaches back.
//! - What was told and is on the outlet's disk is not told again, but for the last second before a kill: a line may come
//!   twice, with the same id and revision.
//! - A replay begins where the oldest session that can still change began, at most a day ago; where the store is new, at
//!   the journal's beginning.
//! - Outlet and store have each their own note of what they were told: who is behind is told again, the other is not.
//! - While the store's disk takes nothing, what was said waits in memory up to a bound; then the join stands still, and the
//!   journal keeps what comes.

use crate::intake::{RateLimit, now};
use crate::join::session::Session;
use crate::join::{Counters, Input, Join};
use crate::journal::{Checkpoint, Fed, Feed};
use crate::outlet::{Outlet, OutletError};
use crate::pace::{Pace, STEP_NS};
use crate::store::{Cursor, Store, StoreError};
use seclog_journal::LogError;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::mpsc::Receiver;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::watch;

const SECOND_NS: u64 = 1_000_000_000;
/// How often it is told that the join turned something away.
const TELL_EVERY: Duration = Duration::from_secs(60);
/// How often it is noted what was told.
const NOTE_EVERY: Duration = Duration::from_secs(1);
/// Times between which a replay may begin.
const MARK_EVERY_NS: u64 = 10 * SECOND_NS;
const MARKS: usize = 10_000;
/// How often it is asked what a replay would need.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// How soon the store is tried again after it could not be written, where the join waits for it.
const STORE_AGAIN: Duration = Duration::from_secs(1);

#[derive(Debug, thiserror::Error)]
pub enum JoiningError {
    #[error(transparent)]
    Outlet(#[from] OutletError),
    #[error("the journal cannot be read: {0}")]
    Journal(#[from] LogError),
    #[error("the store cannot be used: {0}")]
    Store(#[from] StoreError),
    #[error("the join's thread ended by a panic; a restart tells what it held")]
    Panicked,
    #[error("cannot start: {0}")]
    Start(io::Error),
}

/// The thread.
#[derive(Debug)]
pub(crate) struct Joining {
    thread: JoinHandle<Result<(), JoiningError>>,
    alive: watch::Receiver<()>,
}

/// What a restart goes by.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Note {
    /// Number of the entry from which on the join needs them.
    replay_from: u64,
    /// What the join said up to this time is on the outlet's disk; nanoseconds since 1970.
    told_until_unix_ns: u64,
}

struct Work {
    join: Join,
    feed: Feed,
    outlet: Outlet,
    store: Store,
    checkpoints: Receiver<Checkpoint>,
    path: PathBuf,
    /// What the outlet was told before this start.
    before: Note,
    /// How far the store was before this start.
    stored_before: Cursor,
    committed: Instant,
    /// The store's failures are told at most so often.
    store_told: RateLimit,
    noted: (Instant, Note),
    /// The time that the join knows.
    pace: Pace,
    /// Something was written that is perhaps not on the disk.
    is_unsynced: bool,
    /// Times and the entries that came then, oldest first.
    marks: VecDeque<(u64, u64)>,
    looked: Option<Instant>,
    needed_from: u64,
    told: (Instant, Counters),
}

// === impl Joining ===

impl Joining {
    pub(crate) fn start(
        join: Join,
        feed: Feed,
        checkpoints: Receiver<Checkpoint>,
        outlet: Outlet,
        store: Store,
        journal: &Path,
    ) -> Result<Self, JoiningError> {
        let (living, alive) = watch::channel(());
        let path = journal.join("outlet.json");
        let before = read_note(&path);
        let told = (Instant::now(), join.counters());
        let mut work = Work {
            join,
            feed,
            outlet,
            store,
            checkpoints,
            path,
            before,
            stored_before: Cursor::default(),
            committed: Instant::now(),
            store_told: RateLimit::default(),
            noted: (Instant::now(), before),
            pace: Pace::default(),
            is_unsynced: false,
            marks: VecDeque::new(),
            looked: None,
            needed_from: 0,
            told,
        };
        let run = move || {
            let _living = living;
            let ended = work.run();
            if let Err(JoiningError::Store(error)) = &ended
                && error.is_damage()
            {
                work.store.condemn();
            }
            ended
        };
        let thread = std::thread::Builder::new().name("join".to_owned()).spawn(run).map_err(JoiningError::Start)?;
        Ok(Self { thread, alive })
    }

    /// Waits until the thread has ended, which it should not.
    pub(crate) async fn ended(&mut self) {
        while self.alive.changed().await.is_ok() {}
    }

    pub(crate) async fn finish(self) -> Result<(), JoiningError> {
        match tokio::task::spawn_blocking(move || self.thread.join()).await {
            Ok(Ok(result)) => result,
            _ => Err(JoiningError::Panicked),
        }
    }
}

// === impl Work ===

impl Work {
    fn run(&mut self) -> Result<(), JoiningError> {
        self.stored_before = self.store.begin(self.feed.end())?;
        self.feed.begin_at(self.before.replay_from.min(self.stored_before.replay_from));
        self.feed.want_from(self.feed.position());
        for fact in self.store.facts_before(self.feed.position())? {
            self.join.recall(fact);
        }
        let (from, until) = (self.feed.position(), self.feed.end());
        if until > from {
            tracing::info!(from, until, "reading from the journal what the join needs");
        }
        loop {
            let fed = self.feed.next(Instant::now() + Duration::from_nanos(STEP_NS))?;
            if self.take(fed)? {
                break;
            }
            if self.feed.position() >= self.feed.end() {
                self.live_step()?;
            }
            self.now_and_then()?;
        }
        self.write_findings()?;
        self.write_checkpoints()?;
        self.note()?;
        self.commit()?;
        let counters = self.join.counters();
        let totals = self.feed.totals();
        tracing::info!(
            ?counters,
            entries = totals.entries,
            missing = totals.missing,
            unreadable = totals.unreadable,
            "join is done"
        );
        Ok(())
    }

    /// True: there is nothing more.
    fn take(&mut self, fed: Fed) -> Result<bool, JoiningError> {
        match fed {
            Fed::Inputs { time, inputs } => {
                // The clock may have been set back since.
                let time = time.min(now());
                self.mark(time);
                self.step_to(time)?;
                let entry = self.feed.position().saturating_sub(1);
                for input in inputs {
                    match &input {
                        Input::Node { node, record } => self.store.record(node, record, entry, self.pace.time())?,
                        Input::Pod(fact) => self.store.pod(&self.join.masked_pod(fact), entry)?,
                        _ => {}
                    }
                    // Sessions come with time alone.
                    drop(self.join.apply(input));
                }
                self.write_findings()?;
            }
            Fed::Stopped { time } => {
                self.step_to(time.min(now()))?;
                let sessions = self.join.finish();
                self.write(&sessions)?;
                self.write_findings()?;
            }
            Fed::Idle => {}
            Fed::Ended => return Ok(true),
        }
        Ok(false)
    }

    /// Everything that came so far was read: the join learns the time of day.
    fn live_step(&mut self) -> Result<(), JoiningError> {
        let time = now() / STEP_NS * STEP_NS;
        if time <= self.pace.time() {
            return Ok(());
        }
        let before = self.feed.tick(time);
        while !self.feed.has_read(before) {
            let fed = self.feed.next(Instant::now() + Duration::from_nanos(STEP_NS))?;
            if matches!(fed, Fed::Idle | Fed::Ended) {
                break;
            }
            self.take(fed)?;
        }
        self.step_to(time)
    }

    /// Tells the join the time, step by step.
    fn step_to(&mut self, time: u64) -> Result<(), JoiningError> {
        let mut steps = self.pace.to(time);
        while let Some(time) = steps.next(&mut self.pace) {
            let sessions = self.join.apply(Input::Now(time));
            self.write(&sessions)?;
            self.write_findings()?;
        }
        Ok(())
    }

    /// What the join says now was not told to the outlet before this start.
    fn is_news(&self) -> bool {
        self.pace.time() > self.before.told_until_unix_ns
    }

    fn is_news_to_store(&self) -> bool {
        self.pace.time() > self.stored_before.told_until_unix_ns
    }

    fn write(&mut self, sessions: &[Session]) -> Result<(), JoiningError> {
        if sessions.is_empty() {
            return Ok(());
        }
        if self.is_news() {
            self.outlet.write(sessions)?;
            self.is_unsynced = true;
        }
        if self.is_news_to_store() {
            self.store.told(sessions, self.pace.time())?;
        }
        Ok(())
    }

    fn write_findings(&mut self) -> Result<(), JoiningError> {
        let findings = self.join.take_findings();
        if findings.is_empty() {
            return Ok(());
        }
        if self.is_news() {
            self.outlet.write_findings(&findings)?;
            self.is_unsynced = true;
        }
        if self.is_news_to_store() {
            self.store.found(&findings, self.pace.time())?;
        }
        Ok(())
    }

    fn write_checkpoints(&mut self) -> Result<(), JoiningError> {
        while let Ok(checkpoint) = self.checkpoints.try_recv() {
            self.outlet.write_checkpoint(&checkpoint)?;
            self.is_unsynced = true;
        }
        Ok(())
    }

    fn now_and_then(&mut self) -> Result<(), JoiningError> {
        self.write_checkpoints()?;
        if self.noted.0.elapsed() >= NOTE_EVERY && self.is_news() {
            self.note()?;
        }
        if self.committed.elapsed() >= NOTE_EVERY || self.store.is_full() {
            self.commit()?;
        }
        if self.told.0.elapsed() >= TELL_EVERY {
            let counters = self.join.counters();
            tell_refusals(&self.told.1, &counters);
            if let Some(failure) = self.join.take_attic_failure() {
                tracing::warn!("no room beside memory for what programs did: {failure}");
            }
            self.told = (Instant::now(), counters);
        }
        Ok(())
    }

    fn mark(&mut self, time: u64) {
        if self.marks.back().is_none_or(|(last, _)| time >= last + MARK_EVERY_NS) {
            // The entry before the next one.
            self.marks.push_back((time, self.feed.position().saturating_sub(1)));
            if self.marks.len() > MARKS {
                self.marks.pop_front();
            }
        }
    }

    /// The first entry that what may still change rests on, or one before it.
    fn needed(&mut self) -> u64 {
        if self.looked.is_some_and(|looked| looked.elapsed() < LOOK_EVERY) {
            return self.needed_from;
        }
        self.looked = Some(Instant::now());
        let since = self.join.needs_since();
        while let Some((after, _)) = self.marks.get(1)
            && *after <= since
        {
            self.marks.pop_front();
        }
        self.needed_from = self.marks.front().map_or(0, |(_, number)| *number);
        self.needed_from
    }

    /// Notes what the outlet was told, and from where on a restart reads.
    fn note(&mut self) -> Result<(), JoiningError> {
        // What is found between this step and the next is not told yet.
        let told_until_unix_ns = self.pace.time().saturating_sub(STEP_NS);
        let replay_from = self.noted.1.replay_from.max(self.needed());
        let note = Note { told_until_unix_ns, replay_from };
        self.feed.want_from(replay_from.min(self.store.cursor().replay_from));
        if std::mem::take(&mut self.is_unsynced) {
            self.outlet.sync()?;
        }
        self.noted.0 = Instant::now();
        if note != self.noted.1 {
            match write_note(&self.path, note) {
                Ok(()) => self.noted.1 = note,
                // The journal's disk is full or read-only: more is told again after a restart, nothing is lost.
                Err(error) => tracing::debug!(path = %self.path.display(), "cannot note what was told: {error}"),
            }
        }
        Ok(())
    }

    /// What the store was told, and up to where, in one transaction.
    fn commit(&mut self) -> Result<(), JoiningError> {
        self.committed = Instant::now();
        if !self.is_news_to_store() {
            return Ok(());
        }
        let mut cursor = self.store.cursor();
        cursor.replay_from = cursor.replay_from.max(self.needed());
        cursor.told_until_unix_ns = self.pace.time().saturating_sub(STEP_NS);
        cursor.read_until = cursor.read_until.max(self.feed.position());
        loop {
            match self.store.commit(cursor, self.pace.time()) {
                Ok(()) => return Ok(()),
                Err(error) if error.is_damage() => return Err(error.into()),
                // Nothing of it was written: it is tried again.
                Err(error) => {
                    if let Some(held_back) = self.store_told.pass() {
                        tracing::error!(held_back, "the store cannot be written, and is tried again: {error}");
                    }
                    if self.feed.is_closed() {
                        return Err(error.into());
                    }
                }
            }
            if !self.store.is_full() {
                return Ok(());
            }
            std::thread::sleep(STORE_AGAIN);
        }
    }
}

/// What is not there, or damaged, means that everything is told again.
fn read_note(path: &Path) -> Note {
    let note = std::fs::read(path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
    note.unwrap_or_default()
}

/// Old or new after a crash, never half.
fn write_note(path: &Path, note: Note) -> io::Result<()> {
    let beside = path.with_extension("new");
    let mut file = File::create(&beside)?;
    file.write_all(&serde_json::to_vec(&note)?)?;
    file.sync_data()?;
    std::fs::rename(&beside, path)
}

fn tell_refusals(before: &Counters, now: &Counters) {
    let refused = |counters: &Counters| {
        let Counters { refused_requests, refused_roots, refused_pods, given_up, cut, .. } = *counters;
        [refused_requests, refused_roots, refused_pods, given_up, cut]
    };
    if refused(before) != refused(now) {
        let [requests, roots, pods, given_up, cut] = refused(now);
        tracing::warn!(requests, roots, pods, given_up, cut, "the join is full: turned away or let go since the start");
    }
}
