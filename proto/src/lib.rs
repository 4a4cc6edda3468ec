//! The wire between agent and correlator (`seclog.v1`), the part of CRI that seclog speaks, and the JSON form of a node
//! record, which is its protobuf form with the same field names.

pub mod batch;
pub mod rfc3339;
pub mod text;

/// `seclog.v1`: node records and the stream that carries them.
pub mod v1 {
    #![allow(missing_debug_implementations, clippy::all, clippy::allow_attributes_without_reason, reason = "generated")]

    tonic::include_proto!("seclog.v1");
}

/// `runtime.v1`: the Kubernetes Container Runtime Interface.
pub mod cri {
    #![allow(missing_debug_implementations, clippy::all, clippy::allow_attributes_without_reason, reason = "generated")]

    tonic::include_proto!("runtime.v1");
}

#[cfg(test)]
mod tests {
    use super::v1::{NodeRecord, ProcessStart, node_record::Detail};

    #[test]
    fn a_node_record_is_one_flat_json_object_with_a_numeric_pid() {
        let record = NodeRecord {
            id: "b:1:l0.7".into(),
            time_unix_ns: 1_795_473_004_372_321_256,
            pid: 4292,
            detail: Some(Detail::ProcessStart(ProcessStart {
                argv: vec!["sh".into(), "-c".into(), "id".into()],
                ..Default::default()
            })),
            ..Default::default()
        };
        let json = serde_json::to_value(&record).unwrap();
        assert_eq!(json["kind"], "process_start");
        assert_eq!(json["pid"], 4292);
        assert_eq!(json["time"], "2026-11-23T22:30:04.372321256Z");
        assert_eq!(json["argv"], serde_json::json!(["sh", "-c", "id"]));
        let back: NodeRecord = serde_json::from_value(json).unwrap();
        assert_eq!(back, record);
    }
}
