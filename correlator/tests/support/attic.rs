//! The join's attic in memory, which fails where it is told to.

use seclog_correlator::join::attic::{Attic, Slot};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};

#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) held: HashMap<Slot, Vec<u8>>,
    pub(crate) is_full: bool,
    next: Slot,
}

/// Seen from both sides.
#[derive(Debug, Clone, Default)]
pub(crate) struct MemoryAttic(pub(crate) Arc<Mutex<State>>);

impl Attic for MemoryAttic {
    fn put(&mut self, deeds: &[Vec<u8>]) -> Result<Vec<Slot>, String> {
        let mut state = self.0.lock().unwrap();
        if state.is_full {
            return Err("no room".to_owned());
        }
        let first = state.next;
        state.next += deeds.len() as Slot;
        let slots: Vec<Slot> = (first..state.next).collect();
        state.held.extend(slots.iter().copied().zip(deeds.iter().cloned()));
        Ok(slots)
    }

    fn get(&self, slot: Slot) -> Result<Vec<u8>, String> {
        self.0.lock().unwrap().held.get(&slot).cloned().ok_or_else(|| format!("nothing in slot {slot}"))
    }

    fn remove(&mut self, slot: Slot) {
        self.0.lock().unwrap().held.remove(&slot);
    }
}
