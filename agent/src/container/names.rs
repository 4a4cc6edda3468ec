//! Containers that are known, by id: bounded in number and in time.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use super::known::Known;

/// Containers remembered, deleted ones among them.
const MOST: usize = 10_000;
/// A container that nothing was heard of for so long is forgotten; it is looked up again where it still exists.
const REMEMBER: Duration = Duration::from_secs(3600);

/// What is known, and when it was last asked for.
#[derive(Debug, Default)]
pub struct Names {
    known: HashMap<String, (Arc<Known>, u64)>,
    /// By the turn in which each was last asked for.
    turns: BTreeMap<u64, (String, Instant)>,
    turn: u64,
}

// === impl Names ===

impl Names {
    pub fn get(&mut self, id: &str, now: Instant) -> Option<Arc<Known>> {
        let (known, turn) = self.known.get_mut(id)?;
        let known = Arc::clone(known);
        // Not for every record of a storm.
        if self.turns.get(turn).is_none_or(|(_, asked)| now.duration_since(*asked) > REMEMBER / 60) {
            self.turns.remove(turn);
            self.turn += 1;
            *turn = self.turn;
            self.turns.insert(self.turn, (id.to_owned(), now));
        }
        Some(known)
    }

    pub fn remember(&mut self, id: &str, known: Known, now: Instant) -> Arc<Known> {
        let known = Arc::new(known);
        self.turn += 1;
        if let Some((_, before)) = self.known.insert(id.to_owned(), (Arc::clone(&known), self.turn)) {
            self.turns.remove(&before);
        }
        self.turns.insert(self.turn, (id.to_owned(), now));
        self.forget(now);
        known
    }

    fn forget(&mut self, now: Instant) {
        while let Some((turn, (id, asked))) = self.turns.first_key_value()
            && (self.known.len() > MOST || now.duration_since(*asked) > REMEMBER)
        {
            let turn = *turn;
            self.known.remove(id);
            self.turns.remove(&turn);
        }
    }

    pub fn len(&self) -> usize {
        self.known.len()
    }

    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deleted_containers_are_remembered_for_a_bounded_time_and_number() {
        let mut names = Names::default();
        let start = Instant::now();
        for number in 0..MOST + 100 {
            names.remember(&number.to_string(), Known::default(), start);
        }
        assert_eq!((names.len(), names.turns.len()), (MOST, MOST));
        assert!(names.get("99", start).is_none() && names.get("100", start).is_some());
        // What is still asked for stays, the rest goes.
        let later = start + REMEMBER - Duration::from_secs(1);
        assert!(names.get("200", later).is_some());
        names.remember("new", Known::default(), start + REMEMBER + Duration::from_secs(1));
        assert_eq!(names.len(), 2);
        assert!(names.get("200", later).is_some());
    }
}
