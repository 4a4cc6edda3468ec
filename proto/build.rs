//! Generates the Rust types of the .proto files with a compiler written in Rust: no protoc to install.

use std::error::Error;

/// A node record's JSON form is its protobuf form with the same field names; absent fields are defaults.
const JSON: &str = "#[derive(serde::Serialize, serde::Deserialize)] #[serde(default)]";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=seclog");
    println!("cargo::rerun-if-changed=cri");

    let ours = ["node", "stream", "journal", "enrolment"].map(|name| format!("seclog/v1/{name}.proto"));
    let ours = protox::compile(ours, ["."])?;
    // An rpc named Connect would clash with the generated client's own `connect`: clients are made from a channel.
    tonic_prost_build::configure()
        .build_transport(false)
        // Not copied out of what they came in.
        .bytes(".seclog.v1.AgentMessage.batch")
        .bytes(".seclog.v1.Batch.records")
        .bytes(".seclog.v1.NodeBatch.batch")
        .bytes(".seclog.v1.AuditEvents.events")
        .message_attribute(".seclog.v1.NodeRecord", JSON)
        .message_attribute(".seclog.v1.Container", JSON)
        .message_attribute(".seclog.v1.SessionRoot", JSON)
        .message_attribute(".seclog.v1.Verdict", JSON)
        .message_attribute(".seclog.v1.ProcessStart", JSON)
        .message_attribute(".seclog.v1.ProcessExit", JSON)
        .message_attribute(".seclog.v1.Loss", JSON)
        .message_attribute(".seclog.v1.VerdictCount", JSON)
        .message_attribute(".seclog.v1.CgroupMove", JSON)
        .message_attribute(".seclog.v1.Amendment", JSON)
        .message_attribute(".seclog.v1.ContainerFacts", JSON)
        // Of session roots only: other starts carry a pointer.
        .boxed(".seclog.v1.ProcessStart.container_facts")
        .type_attribute(
            ".seclog.v1.NodeRecord.detail",
            "#[derive(serde::Serialize, serde::Deserialize)] #[serde(tag = \"kind\", rename_all = \"snake_case\")]",
        )
        .field_attribute("NodeRecord.detail", "#[serde(flatten)]")
        .field_attribute(".seclog.v1.NodeRecord.time_unix_ns", "#[serde(rename = \"time\", with = \"crate::rfc3339\")]")
        .field_attribute(".seclog.v1.Loss.from_unix_ns", "#[serde(rename = \"from\", with = \"crate::rfc3339\")]")
        .field_attribute(
            ".seclog.v1.VerdictCount.first_unix_ns",
            "#[serde(rename = \"first\", with = \"crate::rfc3339\")]",
        )
        .field_attribute(
            ".seclog.v1.VerdictCount.last_unix_ns",
            "#[serde(rename = \"last\", with = \"crate::rfc3339\")]",
        )
        .field_attribute(".seclog.v1.Loss.until_unix_ns", "#[serde(rename = \"until\", with = \"crate::rfc3339\")]")
        .compile_fds(ours)?;

    let cri = protox::compile(["cri/api.proto"], ["."])?;
    tonic_prost_build::configure().compile_fds(cri)?;
    Ok(())
}
