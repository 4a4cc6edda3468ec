//! docs/check.md against the code.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test says no more by handling them")]

use seclog_dropin::finding::Code;

const CHECK: &str = include_str!("../../docs/check.md");

/// The words in backquotes of a line that look like codes.
fn codes(line: &str) -> Vec<&str> {
    let fits = |word: &&str| {
        word.contains('-') && !word.starts_with('-') && word.bytes().all(|b| b.is_ascii_lowercase() || b == b'-')
    };
    line.split('`').skip(1).step_by(2).filter(fits).collect()
}

#[test]
fn every_code_is_documented_with_its_meaning_and_no_other_is() {
    let section = CHECK.split("## Codes").nth(1).unwrap();
    let documented: Vec<&str> = section.lines().filter(|l| l.starts_with("| `")).collect();
    let expected: Vec<String> = Code::ALL.iter().map(|c| format!("| `{}` | {} |", c.name(), c.about())).collect();
    assert_eq!(documented, expected);
}

#[test]
fn every_trap_has_a_row_and_names_codes_that_exist() {
    let section = CHECK.split("## Traps").nth(1).unwrap().split("## Codes").next().unwrap();
    let rows: Vec<&str> = section.lines().filter(|l| l.starts_with("| D")).collect();
    let render = ["audit-logs", "webhook-kubeconfig"];
    for (at, row) in rows.iter().enumerate() {
        assert!(row.starts_with(&format!("| D{} |", at + 1)), "{row}");
        let last = row.split(" | ").nth(2).unwrap();
        for code in codes(last).into_iter().filter(|c| !render.contains(c)) {
            assert!(Code::ALL.iter().any(|known| known.name() == code), "{row}: {code}");
        }
        assert!(last.contains('`') || last.contains("render") || last.contains("correlator"), "{row}");
    }
    assert_eq!(rows.len(), 18);
}
