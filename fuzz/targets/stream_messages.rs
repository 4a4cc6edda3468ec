//! What a peer sends, and what a journal's entry holds: any bytes are read or refused, and what is read is written again as
//! the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use prost::Message;
use seclog_proto::batch::{Packer, Unpacker};
use seclog_proto::v1::{AgentMessage, Batch, CorrelatorMessage, JournalEntry, NodeRecord, agent_message};

fn again<M: Message + Default + PartialEq + std::fmt::Debug>(bytes: &[u8]) -> Option<M> {
    let message = M::decode(bytes).ok()?;
    let encoded = message.encode_to_vec();
    assert_eq!(encoded.len(), message.encoded_len());
    let back = M::decode(encoded.as_slice()).unwrap();
    assert_eq!(back, message);
    Some(message)
}

fn unpack(batch: &Batch) {
    let Ok(records) = Unpacker::new().unwrap().unpack(batch) else { return };
    let packed = Packer::new(1).unwrap().pack(1, 1, records.clone(), 0).unwrap();
    let batch = Batch::decode(packed).unwrap();
    assert_eq!(Unpacker::new().unwrap().unpack(&batch).unwrap(), records);
}

fuzz_target!(|data: &[u8]| {
    let Some((kind, data)) = data.split_first() else { return };
    match kind % 6 {
        0 => {
            if let Some(AgentMessage { message: Some(agent_message::Message::Batch(bytes)) }) = again(data)
                && let Ok(batch) = Batch::decode(bytes)
            {
                unpack(&batch);
            }
        }
        1 => drop(again::<CorrelatorMessage>(data)),
        2 => drop(again::<JournalEntry>(data)),
        3 => drop(again::<NodeRecord>(data)),
        4 => {
            if let Some(batch) = again::<Batch>(data) {
                unpack(&batch);
            }
        }
        _ => {
            let records_bytes = data.len() as u64 * 3;
            unpack(&Batch { compression: 1, records: data.to_vec().into(), records_bytes, ..Default::default() });
        }
    }
});
