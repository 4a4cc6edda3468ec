//! Records to the bytes of a [`Batch`] and back.

use crate::v1::{Batch, Compression, NodeRecord, Records};
use bytes::Bytes;
use prost::Message as _;
use thiserror::Error;

/// Bytes of the records of one batch, before compression. Agents send far less.
pub const LARGEST_RECORDS: usize = 32 << 20;

/// What memory to give back after a large batch.
const USUAL: usize = 4 << 20;

#[derive(Debug, Error)]
pub enum BatchError {
    #[error("not a batch: {0}")]
    Decode(#[from] prost::DecodeError),
    #[error("records of {0} bytes are more than {LARGEST_RECORDS}")]
    TooLarge(u64),
    #[error("a compression that this program does not know: {0}")]
    Compression(i32),
    #[error("compressed records are damaged: {0}")]
    Damaged(std::io::Error),
    #[error("records of {said} bytes turned out to be {found}")]
    Length { said: u64, found: u64 },
}

/// Makes batches.
pub struct Packer {
    compressor: zstd::bulk::Compressor<'static>,
    raw: Vec<u8>,
}

/// Reads batches.
pub struct Unpacker {
    decompressor: zstd::bulk::Decompressor<'static>,
    raw: Vec<u8>,
}

// === impl Packer ===

impl Packer {
    /// zstd's level; below 0 is faster.
    pub fn new(level: i32) -> std::io::Result<Self> {
        Ok(Self { compressor: zstd::bulk::Compressor::new(level)?, raw: Vec::new() })
    }

    /// An encoded [`Batch`] that covers `count` sequences from `first_sequence` on.
    pub fn pack(
        &mut self,
        first_sequence: u64,
        count: u64,
        records: Vec<NodeRecord>,
        watermark_unix_ns: u64,
    ) -> std::io::Result<Bytes> {
        self.raw.clear();
        let records = Records { records };
        // A vector grows as it must.
        let _ = records.encode(&mut self.raw);
        let batch = Batch {
            first_sequence,
            watermark_unix_ns,
            count,
            compression: Compression::Zstd.into(),
            records: self.compressor.compress(&self.raw)?.into(),
            records_bytes: self.raw.len() as u64,
        };
        if self.raw.capacity() > USUAL {
            self.raw = Vec::new();
        }
        Ok(batch.encode_to_vec().into())
    }
}

impl std::fmt::Debug for Packer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Packer { .. }")
    }
}

// === impl Unpacker ===

impl Unpacker {
    pub fn new() -> std::io::Result<Self> {
        Ok(Self { decompressor: zstd::bulk::Decompressor::new()?, raw: Vec::new() })
    }

    /// A batch's records. Takes any bytes.
    pub fn unpack(&mut self, batch: &Batch) -> Result<Vec<NodeRecord>, BatchError> {
        let said = batch.records_bytes;
        if batch.compression == Compression::None as i32 {
            return Ok(Records::decode(batch.records.clone())?.records);
        }
        if batch.compression != Compression::Zstd as i32 {
            return Err(BatchError::Compression(batch.compression));
        }
        let length = usize::try_from(said).ok().filter(|length| *length <= LARGEST_RECORDS);
        let length = length.ok_or(BatchError::TooLarge(said))?;
        self.raw.clear();
        if self.raw.capacity() > USUAL.max(length) {
            self.raw = Vec::new();
        }
        self.raw.reserve(length);
        self.decompressor.decompress_to_buffer(&batch.records, &mut self.raw).map_err(BatchError::Damaged)?;
        if self.raw.len() != length {
            return Err(BatchError::Length { said, found: self.raw.len() as u64 });
        }
        Ok(Records::decode(self.raw.as_slice())?.records)
    }
}

impl std::fmt::Debug for Unpacker {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Unpacker { .. }")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn records(count: u32) -> Vec<NodeRecord> {
        (0..count).map(|pid| NodeRecord { id: format!("b:{pid}"), pid, ..Default::default() }).collect()
    }

    #[test]
    fn what_is_packed_is_unpacked() {
        let (mut packer, mut unpacker) = (Packer::new(1).unwrap(), Unpacker::new().unwrap());
        for count in [0, 1, 1000] {
            let bytes = packer.pack(7, count.into(), records(count), 99).unwrap();
            let batch = Batch::decode(bytes).unwrap();
            assert_eq!((batch.first_sequence, batch.count, batch.watermark_unix_ns), (7, count.into(), 99));
            assert_eq!(unpacker.unpack(&batch).unwrap(), records(count));
        }
    }

    #[test]
    fn a_batch_that_lies_about_its_size_is_refused() {
        let bytes = Packer::new(1).unwrap().pack(1, 100, records(100), 0).unwrap();
        let batch = Batch::decode(bytes).unwrap();
        let mut unpacker = Unpacker::new().unwrap();
        for said in [0, batch.records_bytes - 1, u64::MAX, LARGEST_RECORDS as u64 + 1] {
            assert!(unpacker.unpack(&Batch { records_bytes: said, ..batch.clone() }).is_err(), "{said}");
        }
        assert!(unpacker.unpack(&Batch { compression: 9, ..batch.clone() }).is_err());
        assert!(unpacker.unpack(&batch).is_ok());
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300), said in 0u64..5000) {
            let mut unpacker = Unpacker::new().unwrap();
            for compression in 0..2 {
                let batch = Batch { compression, records: bytes.clone().into(), records_bytes: said, ..Default::default() };
                let _ = unpacker.unpack(&batch);
            }
        }
    }
}
