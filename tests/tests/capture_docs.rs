//! docs/capture.md against the program.

use anyhow::{Context as _, Result, ensure};
use seclog_agent::telemetry::COUNTERS;

#[test]
fn every_counter_is_explained_as_the_program_explains_it_and_no_other() -> Result<()> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/capture.md");
    let text = std::fs::read_to_string(path).context(path)?;
    let (_, section) = text.split_once("\n## Counters\n").context("no section on counters")?;
    let section = section.split("\n## ").next().unwrap_or_default();
    let rows: Vec<&str> = section.lines().filter(|line| line.starts_with("| `")).collect();
    let expected: Vec<String> = COUNTERS.iter().map(|(name, help)| format!("| `{name}` | {help} |")).collect();
    ensure!(rows == expected, "the table should be:\n{}", expected.join("\n"));
    Ok(())
}
