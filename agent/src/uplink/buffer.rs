//! Records until the correlator has them, in memory and bounded.
//!
//! - Sequences start at 1 and have no gaps; the epoch is random for each buffer.
//! - A record leaves only when it is acknowledged. When the buffer is full, new ones are refused and counted, and the
//!   count goes out as a loss record as soon as there is room.
//! - A watermark belongs to the end of the buffer: it goes out only with a batch that empties it.

use std::{
    collections::{VecDeque, hash_map::RandomState},
    hash::{BuildHasher as _, Hasher as _},
    sync::{Mutex, MutexGuard, PoisonError},
};

use prost::Message as _;
use seclog_proto::v1::NodeRecord;
use tokio::sync::Notify;

use super::Batch;
use crate::record;

#[derive(Debug)]
pub struct Buffer {
    pub epoch: u64,
    boot_id: String,
    most_bytes: usize,
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    records: VecDeque<(NodeRecord, usize)>,
    /// Sequence of `records[0]`.
    first: u64,
    bytes: usize,
    refused: Option<Refused>,
    losses: u64,
    watermark_unix_ns: u64,
    counters: Vec<(&'static str, u64)>,
    refused_total: u64,
    acknowledged_total: u64,
    /// Sequences behind which a watermark holds, oldest first.
    marks: VecDeque<(u64, u64)>,
    acknowledged_unix_ns: u64,
    closed: bool,
}

#[derive(Clone, Copy, Debug)]
struct Refused {
    count: u64,
    from_unix_ns: u64,
    until_unix_ns: u64,
}

/// A part of the buffer, to be sent.
#[derive(Debug, PartialEq)]
pub struct Part {
    pub first_sequence: u64,
    pub records: Vec<NodeRecord>,
    /// 0: more records wait behind this part.
    pub watermark_unix_ns: u64,
}

// === impl Buffer ===

impl Buffer {
    pub fn new(most_bytes: usize, boot_id: String) -> Self {
        // The standard library's hash keys are random for each process; nothing here needs more than that.
        let epoch = RandomState::new().build_hasher().finish().max(1);
        let state = Mutex::new(State { first: 1, ..State::default() });
        Self { epoch, boot_id, most_bytes, state, changed: Notify::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere leaves nothing half done here.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn push(&self, batch: Batch) {
        let mut state = self.state();
        for record in batch.records {
            self.push_one(&mut state, record);
        }
        state.watermark_unix_ns = state.watermark_unix_ns.max(batch.watermark_unix_ns);
        state.mark();
        if let Some(counters) = batch.counters {
            state.counters = counters;
        }
        drop(state);
        self.changed.notify_one();
    }

    fn push_one(&self, state: &mut State, record: NodeRecord) {
        let length = record.encoded_len();
        if state.bytes + length > self.most_bytes {
            state.refused_total += 1;
            let refused = state.refused.get_or_insert(Refused {
                count: 0,
                from_unix_ns: record.time_unix_ns,
                until_unix_ns: record.time_unix_ns,
            });
            refused.count += 1;
            refused.from_unix_ns = refused.from_unix_ns.min(record.time_unix_ns);
            refused.until_unix_ns = refused.until_unix_ns.max(record.time_unix_ns);
            return;
        }
        if let Some(refused) = state.refused.take() {
            let loss = self.loss_record(state, refused);
            let length = loss.encoded_len();
            // A loss record is small and never refused itself.
            state.bytes += length;
            state.records.push_back((loss, length));
        }
        state.bytes += length;
        state.records.push_back((record, length));
    }

    fn loss_record(&self, state: &mut State, refused: Refused) -> NodeRecord {
        let Refused { count, from_unix_ns, until_unix_ns } = refused;
        state.losses += 1;
        let reason = format!("the buffer of {} bytes was full: the correlator did not take records", self.most_bytes);
        NodeRecord {
            id: format!("{}:{:x}:u{}", self.boot_id, self.epoch, state.losses),
            boot_id: self.boot_id.clone(),
            time_unix_ns: until_unix_ns,
            detail: Some(record::loss("uplink_buffer", reason, Some(count), from_unix_ns, until_unix_ns)),
            ..Default::default()
        }
    }

    /// No more records come.
    pub fn close(&self) {
        let mut state = self.state();
        if let Some(refused) = state.refused.take() {
            let loss = self.loss_record(&mut state, refused);
            let length = loss.encoded_len();
            state.bytes += length;
            state.records.push_back((loss, length));
        }
        state.closed = true;
        drop(state);
        self.changed.notify_one();
    }

    pub fn is_closed(&self) -> bool {
        self.state().closed
    }

    pub fn is_empty(&self) -> bool {
        self.state().records.is_empty()
    }

    pub fn oldest_sequence(&self) -> u64 {
        self.state().first
    }

    /// Everything up to `sequence` is with the correlator. False when that was never in the buffer.
    pub fn acknowledge(&self, sequence: u64) -> bool {
        let mut state = self.state();
        if sequence >= state.first + state.records.len() as u64 {
            return false;
        }
        while state.first <= sequence
            && let Some((_, length)) = state.records.pop_front()
        {
            state.first += 1;
            state.acknowledged_total += 1;
            state.bytes -= length;
        }
        state.settle_marks();
        true
    }

    /// Up to `most` records from `sequence` on; none when there is nothing.
    pub fn part(&self, sequence: u64, most: usize, most_bytes: usize) -> Option<Part> {
        let state = self.state();
        let skip = sequence.saturating_sub(state.first) as usize;
        let mut bytes = 0;
        let records: Vec<NodeRecord> = state
            .records
            .iter()
            .skip(skip)
            .take(most)
            .take_while(|(_, length)| {
                bytes += length;
                bytes <= most_bytes || bytes == *length
            })
            .map(|(record, _)| record.clone())
            .collect();
        if records.is_empty() {
            return None;
        }
        let last = skip + records.len() == state.records.len();
        Some(Part {
            first_sequence: state.first + skip as u64,
            records,
            watermark_unix_ns: if last { state.watermark_unix_ns } else { 0 },
        })
    }

    /// The watermark, if nothing waits at or behind `sequence`, and the counters.
    pub fn idle(&self, sequence: u64) -> (u64, Vec<(&'static str, u64)>) {
        let state = self.state();
        let all_sent = sequence >= state.first + state.records.len() as u64;
        let mut counters = state.counters.clone();
        counters.extend([("uplink_refused", state.refused_total), ("uplink_acknowledged", state.acknowledged_total)]);
        (if all_sent { state.watermark_unix_ns } else { 0 }, counters)
    }

    /// Wall clock time up to which every record is with the correlator. 0: not known yet.
    pub fn acknowledged_unix_ns(&self) -> u64 {
        self.state().acknowledged_unix_ns
    }

    /// The buffer's own counters.
    pub fn counters(&self) -> [(&'static str, u64); 2] {
        let state = self.state();
        [("uplink_refused", state.refused_total), ("uplink_acknowledged", state.acknowledged_total)]
    }

    /// Returns when something was pushed or the buffer was closed.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }
}

// === impl State ===

impl State {
    /// The watermark holds once everything that is in the buffer now is acknowledged.
    fn mark(&mut self) {
        let last = self.first + self.records.len() as u64 - 1;
        match self.marks.back_mut() {
            Some((sequence, watermark)) if *sequence == last => *watermark = self.watermark_unix_ns,
            _ => self.marks.push_back((last, self.watermark_unix_ns)),
        }
        self.settle_marks();
    }

    fn settle_marks(&mut self) {
        while let Some((sequence, watermark)) = self.marks.front().copied()
            && sequence < self.first
        {
            self.acknowledged_unix_ns = watermark;
            self.marks.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use seclog_proto::v1::node_record::Detail;

    fn record(number: u64) -> NodeRecord {
        NodeRecord { id: format!("r{number:06}"), time_unix_ns: number, ..Default::default() }
    }

    fn push(buffer: &Buffer, numbers: std::ops::Range<u64>) {
        let watermark_unix_ns = numbers.end;
        buffer.push(Batch { records: numbers.map(record).collect(), watermark_unix_ns, counters: None });
    }

    #[test]
    fn a_watermark_goes_out_only_with_the_last_record() {
        let buffer = Buffer::new(1 << 20, "b".into());
        push(&buffer, 0..3);
        let part = buffer.part(1, 2, 1 << 20).unwrap();
        assert_eq!((part.first_sequence, part.records.len(), part.watermark_unix_ns), (1, 2, 0));
        let part = buffer.part(3, 2, 1 << 20).unwrap();
        assert_eq!((part.first_sequence, part.records.len(), part.watermark_unix_ns), (3, 1, 3));
        assert_eq!(buffer.part(4, 2, 1 << 20), None);
    }

    #[test]
    fn an_acknowledgement_of_what_was_never_sent_is_refused() {
        let buffer = Buffer::new(1 << 20, "b".into());
        push(&buffer, 0..3);
        assert!(!buffer.acknowledge(4));
        assert!(buffer.acknowledge(2));
        assert!(buffer.acknowledge(1), "an old acknowledgement changes nothing");
        assert_eq!(buffer.oldest_sequence(), 3);
    }

    #[test]
    fn a_watermark_is_acknowledged_with_the_last_record_before_it() {
        let buffer = Buffer::new(1 << 20, "b".into());
        push(&buffer, 0..3);
        push(&buffer, 3..5);
        assert!(buffer.acknowledge(2));
        assert_eq!(buffer.acknowledged_unix_ns(), 0);
        assert!(buffer.acknowledge(4));
        assert_eq!(buffer.acknowledged_unix_ns(), 3);
        assert!(buffer.acknowledge(5));
        assert_eq!(buffer.acknowledged_unix_ns(), 5);
        push(&buffer, 9..9);
        assert_eq!(buffer.acknowledged_unix_ns(), 9, "with nothing to acknowledge it holds at once");
    }

    proptest! {
        #[test]
        fn pushed_is_delivered_or_counted(steps in proptest::collection::vec((0u64..30, 0u64..10), 1..50)) {
            let buffer = Buffer::new(400, "b".into());
            let (mut pushed, mut delivered, mut lost, mut next) = (0, 0, 0, 1);
            let mut take = |buffer: &Buffer, next: &mut u64, most: usize| {
                while let Some(part) = buffer.part(*next, most, 200) {
                    assert_eq!(part.first_sequence, *next);
                    *next += part.records.len() as u64;
                    for record in &part.records {
                        match &record.detail {
                            Some(Detail::Loss(loss)) => lost += loss.count,
                            _ => delivered += 1,
                        }
                    }
                    assert!(buffer.acknowledge(*next - 1));
                }
            };
            for (push_count, most) in steps {
                push(&buffer, pushed..pushed + push_count);
                pushed += push_count;
                if most > 0 {
                    take(&buffer, &mut next, most as usize);
                }
            }
            buffer.close();
            take(&buffer, &mut next, 100);
            prop_assert_eq!(delivered + lost, pushed);
            prop_assert!(buffer.is_empty());
        }
    }
}
