//! Where what the oldest sessions' programs did waits when memory has no room for it: see [`super::Config::most_deed_bytes`].

use super::Join;
use super::deeds::Deeds;
use super::root::{Root, RootKey};
use std::fmt::Debug;
use std::sync::Arc;

/// Number of what is in it.
pub type Slot = i64;

/// It is part of the join's memory: what is in it is of no use after a restart. Its errors are texts, for a log.
pub trait Attic: Debug + Send {
    /// All or none of them.
    ///
    /// # Errors
    /// There is no room, or it is broken.
    fn put(&mut self, deeds: &[Vec<u8>]) -> Result<Vec<Slot>, String>;

    /// # Errors
    /// It is broken, or nothing is in the slot.
    fn get(&self, slot: Slot) -> Result<Vec<u8>, String>;

    /// What was never there is removed as well.
    fn remove(&mut self, slot: Slot);
}

/// So many are put at once.
const BATCH: usize = 256;
/// How soon lists are cut again.
const CUT_EVERY_NS: u64 = 2_000_000_000;

impl Join {
    /// What memory has no room for waits there from now on.
    pub fn set_attic(&mut self, attic: Box<dyn Attic>) {
        self.attic = Some(attic);
    }

    /// Bytes of what the programs of sessions did, near enough, as far as it is in memory.
    pub fn deed_bytes(&self) -> usize {
        self.deed_bytes
    }

    /// Why the attic failed, if it did since this was last asked.
    pub fn take_attic_failure(&mut self) -> Option<String> {
        self.attic_failure.take()
    }

    /// What a root holds in memory was changed.
    pub(super) fn deeds_changed(&mut self, before: usize, after: usize) {
        self.deed_bytes = (self.deed_bytes + after).saturating_sub(before);
    }

    /// Puts the deeds away that nothing was heard of for longest, until a quarter of the room is free.
    pub(super) fn make_room(&mut self) {
        let most = self.config.most_deed_bytes;
        let is_too_much = self.deed_bytes > most.saturating_mul(2);
        // Where no room could be made, it is not tried again at once: it takes a look at every root.
        let patience = if is_too_much { CUT_EVERY_NS } else { self.config.sweep_every_ns };
        let waits = self.tight_since.is_some_and(|since| self.now.saturating_sub(since) < patience);
        if self.deed_bytes <= most || waits {
            return;
        }
        let mut oldest: Vec<(u64, Arc<RootKey>)> = self
            .roots
            .values()
            .filter(|rooted| rooted.root.deed_bytes() > 0)
            .map(|rooted| (rooted.root.arrived, Arc::clone(&rooted.root.key)))
            .collect();
        oldest.sort_unstable();
        let mut attic_takes = self.attic.is_some();
        for batch in oldest.chunks(BATCH) {
            if self.deed_bytes <= most / 4 * 3 {
                break;
            }
            attic_takes = attic_takes && self.put_away(batch);
            if !attic_takes && self.deed_bytes > most.saturating_mul(2) {
                self.cut(batch);
            }
        }
        self.tight_since = (self.deed_bytes > most).then_some(self.now);
    }

    fn put_away(&mut self, batch: &[(u64, Arc<RootKey>)]) -> bool {
        let Some(attic) = &mut self.attic else { return false };
        let packed: Vec<(&Arc<RootKey>, Vec<u8>)> = batch
            .iter()
            .filter_map(|(_, key)| Some((key, postcard::to_allocvec(self.roots.get(key)?.root.deeds()).ok()?)))
            .collect();
        let (keys, deeds): (Vec<&Arc<RootKey>>, Vec<Vec<u8>>) = packed.into_iter().unzip();
        let slots = match attic.put(&deeds) {
            Ok(slots) => slots,
            Err(error) => {
                self.attic_failure = Some(error);
                self.counters.attic_failures += 1;
                return false;
            }
        };
        for (key, slot) in keys.into_iter().zip(slots) {
            let Some(rooted) = self.roots.get_mut(key) else { continue };
            let before = rooted.root.deed_bytes();
            rooted.root.went_to(slot);
            self.counters.put_away += 1;
            self.deeds_changed(before, 0);
        }
        true
    }

    /// There is no room anywhere: lists of programs go, oldest first, and sessions say how many are not listed.
    fn cut(&mut self, batch: &[(u64, Arc<RootKey>)]) {
        for (_, key) in batch {
            let Some(rooted) = self.roots.get_mut(key) else { continue };
            let before = rooted.root.deed_bytes();
            rooted.root.cut();
            let after = rooted.root.deed_bytes();
            self.counters.cut += 1;
            self.deeds_changed(before, after);
        }
    }
}

/// More is to be added to a root's deeds: they are brought back for good. The caller counts the bytes.
pub(super) fn bring_back(root: &mut Root, attic: &mut Option<Box<dyn Attic>>) {
    let Some(slot) = root.slot() else { return };
    fetch(root, attic.as_deref());
    root.came_back();
    if let Some(attic) = attic {
        attic.remove(slot);
    }
}

/// Makes the deeds of a root readable where they are away; they stay there.
pub(super) fn fetch(root: &Root, attic: Option<&dyn Attic>) {
    let Some(slot) = root.slot() else { return };
    let packed = attic.ok_or_else(String::new).and_then(|attic| attic.get(slot));
    let deeds: Option<Deeds> = packed.ok().and_then(|packed| postcard::from_bytes(&packed).ok());
    root.lend(deeds);
}
