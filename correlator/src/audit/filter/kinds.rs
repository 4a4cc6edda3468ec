//! Counts of what was let go, by kind.

use std::collections::BTreeMap;

/// Kinds that are counted apart; the rest is counted together, so that made-up names take no memory.
const MAX_KINDS: usize = 512;
/// Longer names are counted with the rest.
const LONGEST: usize = 200;
/// Places of the table of kinds seen lately.
const SLOTS: usize = 256;

/// `verb resource/subresource` and how many.
#[derive(Debug, Clone)]
pub struct Kinds {
    counts: Vec<(String, u64)>,
    index: BTreeMap<String, usize>,
    /// By hash: where in `counts` a kind is.
    lately: Box<[u32; SLOTS]>,
    other: u64,
    key: Vec<u8>,
}

impl Default for Kinds {
    fn default() -> Self {
        Self {
            counts: Vec::new(),
            index: BTreeMap::new(),
            lately: Box::new([u32::MAX; SLOTS]),
            other: 0,
            key: Vec::new(),
        }
    }
}

impl Kinds {
    pub(crate) fn count(&mut self, verb: &[u8], resource: &[u8], subresource: &[u8]) {
        let key = &mut self.key;
        key.clear();
        key.extend_from_slice(verb);
        key.push(b' ');
        key.extend_from_slice(resource);
        if !subresource.is_empty() {
            key.push(b'/');
            key.extend_from_slice(subresource);
        }
        let slot = slot(key);
        if let Some((known, count)) = self.counts.get_mut(self.lately[slot] as usize)
            && known.as_bytes() == key
        {
            *count += 1;
            return;
        }
        let key = String::from_utf8_lossy(key).into_owned();
        if let Some(at) = self.add_to(key, 1) {
            self.lately[slot] = u32::try_from(at).unwrap_or(u32::MAX);
        }
    }

    fn add_to(&mut self, kind: String, count: u64) -> Option<usize> {
        let at = match self.index.get(&kind) {
            Some(at) => *at,
            None if self.counts.len() < MAX_KINDS && kind.len() <= LONGEST => {
                self.counts.push((kind.clone(), 0));
                self.index.insert(kind, self.counts.len() - 1);
                self.counts.len() - 1
            }
            None => {
                self.other += count;
                return None;
            }
        };
        self.counts[at].1 += count;
        Some(at)
    }

    pub fn total(&self) -> u64 {
        self.counts.iter().map(|(_, count)| count).sum::<u64>() + self.other
    }

    pub fn of(&self, kind: &str) -> u64 {
        self.index.get(kind).and_then(|at| self.counts.get(*at)).map_or(0, |(_, count)| *count)
    }

    /// In the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, u64)> {
        self.index.iter().filter_map(|(kind, at)| Some((kind.as_str(), self.counts.get(*at)?.1)))
    }

    /// Kinds beyond those that are counted apart.
    pub fn other(&self) -> u64 {
        self.other
    }

    /// Adds another's counts to these.
    pub fn add(&mut self, other: &Self) {
        for (kind, count) in other.iter() {
            self.add_to(kind.to_owned(), count);
        }
        self.other += other.other;
    }
}

/// Multiplies words together: quick for the few bytes of a kind. Who makes two kinds collide only makes counting slower.
fn slot(key: &[u8]) -> usize {
    let mut state = 0xcbf2_9ce4_8422_2325_u64;
    for chunk in key.chunks(8) {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        state = (state ^ u64::from_le_bytes(word)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
    }
    (state >> 40) as usize % SLOTS
}
