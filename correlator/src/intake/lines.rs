//! Whole lines out of what comes in pieces.

use memchr::{memchr, memrchr};

/// Lines beyond this are skipped and counted. The largest body of an API server's event is far smaller.
pub(super) const LONGEST_LINE: usize = 64 << 20;

/// What was read and is not yet taken.
#[derive(Debug, Default)]
pub(super) struct Lines {
    held: Vec<u8>,
    /// A line that is too long is skipped up to its end.
    skipping: bool,
    /// Lines that were too long, since this was last asked.
    too_long: u64,
    /// Bytes of them, which are part of nothing that is taken.
    skipped: u64,
}

impl Lines {
    pub(super) fn push(&mut self, piece: &[u8]) {
        let mut piece = piece;
        if self.skipping {
            let Some(end) = memchr(b'\n', piece) else {
                self.skipped += piece.len() as u64;
                return;
            };
            self.skipping = false;
            self.skipped += end as u64 + 1;
            piece = &piece[end + 1..];
        }
        self.held.extend_from_slice(piece);
        if self.held.len() > LONGEST_LINE && memchr(b'\n', &self.held).is_none() {
            self.skipped += self.held.len() as u64;
            self.held = Vec::new();
            self.skipping = true;
            self.too_long += 1;
        }
    }

    /// The lines that are whole; empty where there is none. They stay until [`Lines::taken`].
    pub(super) fn whole(&self) -> &[u8] {
        memrchr(b'\n', &self.held).map_or(&[], |end| &self.held[..=end])
    }

    /// What is left when nothing more comes: a last line that lacks its end.
    pub(super) fn rest(&self) -> &[u8] {
        &self.held
    }

    /// Bytes of lines that were too long and lie before what is held.
    pub(super) fn skipped(&self) -> u64 {
        self.skipped
    }

    /// The first bytes of what is held are done with. How many bytes of what was pushed that moves past.
    pub(super) fn taken(&mut self, bytes: usize) -> u64 {
        self.held.drain(..bytes.min(self.held.len()));
        if self.held.is_empty() {
            // A long line's room is given back.
            self.held.shrink_to(1 << 20);
        }
        bytes as u64 + std::mem::take(&mut self.skipped)
    }

    pub(super) fn too_long(&mut self) -> u64 {
        std::mem::take(&mut self.too_long)
    }
}

#[cfg(test)]
mod tests {
    use super::Lines;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn however_a_text_is_cut_its_lines_come_out_whole_and_every_byte_is_counted(
            text in "[a-c\n]{0,60}", cuts in prop::collection::vec(0usize..10, 1..20),
        ) {
            let (mut lines, mut found, mut moved) = (Lines::default(), Vec::new(), 0);
            let mut rest = text.as_bytes();
            for cut in cuts.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (piece, behind) = rest.split_at((*cut + 1).min(rest.len()));
                rest = behind;
                lines.push(piece);
                let whole = lines.whole().to_vec();
                prop_assert!(whole.is_empty() || whole.ends_with(b"\n"));
                moved += lines.taken(whole.len());
                found.extend(whole);
            }
            found.extend(lines.rest());
            moved += lines.rest().len() as u64;
            prop_assert_eq!(&found, text.as_bytes());
            prop_assert_eq!(moved, text.len() as u64);
        }
    }
}
