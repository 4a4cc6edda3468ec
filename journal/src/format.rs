//! Bytes of headers.

use ring::digest::{Context, SHA256};

/// SHA-256.
pub type Digest = [u8; 32];

/// Bytes of a payload.
pub const LARGEST_ENTRY: usize = 96 << 20;

pub(crate) const VERSION: u32 = 1;
pub(crate) const SEGMENT_HEADER: usize = 72;
pub(crate) const ENTRY_HEADER: usize = 84;
const MAGIC: &[u8; 8] = b"SECLOGJ\0";
const MARK: [u8; 4] = *b"\xa7eL\x1d";

/// SHA-256 of some bytes.
pub fn digest(bytes: &[u8]) -> Digest {
    let mut context = Context::new(&SHA256);
    context.update(bytes);
    finish(context)
}

fn finish(context: Context) -> Digest {
    let mut digest = [0; 32];
    digest.copy_from_slice(context.finish().as_ref());
    digest
}

pub(crate) fn link(before: &Digest, number: u64, length: u32, digest: &Digest) -> Digest {
    let mut context = Context::new(&SHA256);
    context.update(before);
    context.update(&number.to_le_bytes());
    context.update(&length.to_le_bytes());
    context.update(digest);
    finish(context)
}

/// Random, the same for all segments of a log.
pub(crate) type LogId = [u8; 16];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    pub(crate) version: u32,
    pub(crate) id: LogId,
    pub(crate) first: u64,
    pub(crate) chain: Digest,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct EntryHeader {
    pub(crate) length: u32,
    pub(crate) number: u64,
    pub(crate) digest: Digest,
    pub(crate) chain: Digest,
}

/// The first `N` bytes, and the rest.
fn take<'a, const N: usize>(bytes: &mut &'a [u8]) -> Option<&'a [u8; N]> {
    let (head, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(head)
}

// === impl SegmentHeader ===

impl SegmentHeader {
    pub(crate) fn encode(&self) -> [u8; SEGMENT_HEADER] {
        let Self { version, id, first, chain } = self;
        let mut bytes = Vec::with_capacity(SEGMENT_HEADER);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&version.to_le_bytes());
        bytes.extend_from_slice(id);
        bytes.extend_from_slice(&first.to_le_bytes());
        bytes.extend_from_slice(chain);
        bytes.extend_from_slice(&crc32fast::hash(&bytes).to_le_bytes());
        let mut header = [0; SEGMENT_HEADER];
        header.copy_from_slice(&bytes);
        header
    }

    /// `None`: damaged. A version that is not ours is read as far as this.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let checked = bytes.get(..SEGMENT_HEADER - 4)?;
        let mut rest = bytes;
        if take::<8>(&mut rest)? != MAGIC {
            return None;
        }
        let version = u32::from_le_bytes(*take(&mut rest)?);
        let id = *take(&mut rest)?;
        let first = u64::from_le_bytes(*take(&mut rest)?);
        let chain = *take(&mut rest)?;
        let crc = u32::from_le_bytes(*take(&mut rest)?);
        (crc == crc32fast::hash(checked)).then_some(Self { version, id, first, chain })
    }
}

// === impl EntryHeader ===

impl EntryHeader {
    pub(crate) fn encode(&self, id: &LogId, into: &mut Vec<u8>) {
        let Self { length, number, digest, chain } = self;
        let start = into.len();
        into.extend_from_slice(&MARK);
        into.extend_from_slice(&length.to_le_bytes());
        into.extend_from_slice(&number.to_le_bytes());
        into.extend_from_slice(digest);
        into.extend_from_slice(chain);
        let crc = keyed_crc(id, into.get(start..).unwrap_or_default());
        into.extend_from_slice(&crc.to_le_bytes());
    }

    /// `None`: not the header of a whole entry.
    pub(crate) fn decode(bytes: &[u8], id: &LogId) -> Option<Self> {
        let checked = bytes.get(..ENTRY_HEADER - 4)?;
        let mut rest = bytes;
        if *take::<4>(&mut rest)? != MARK {
            return None;
        }
        let length = u32::from_le_bytes(*take(&mut rest)?);
        let number = u64::from_le_bytes(*take(&mut rest)?);
        let digest = *take(&mut rest)?;
        let chain = *take(&mut rest)?;
        let crc = u32::from_le_bytes(*take(&mut rest)?);
        let fits = length as usize <= LARGEST_ENTRY && crc == keyed_crc(id, checked);
        fits.then_some(Self { length, number, digest, chain })
    }
}

fn keyed_crc(id: &LogId, bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(id);
    hasher.update(bytes);
    hasher.finalize()
}

/// Where the next entry could begin, at or behind `from`.
pub(crate) fn find_mark(bytes: &[u8], from: usize) -> Option<usize> {
    let rest = bytes.get(from..)?;
    rest.windows(MARK.len()).position(|window| window == MARK).map(|at| from + at)
}
