//! Prints the recordings of the real cluster as the node records that the agent makes of them, for
//! `seclog-correlator replay`.

use std::io::Write as _;

fn main() -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    for record in seclog_tests::recordings::node_records()? {
        serde_json::to_writer(&mut stdout, &record)?;
        stdout.write_all(b"\n")?;
    }
    Ok(())
}
