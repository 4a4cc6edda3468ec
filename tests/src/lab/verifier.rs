//! What the kernel's verifier had to walk, as the agent's log tells it, against ceilings that are checked in: a change that
//! makes a program much dearer to load is seen before a kernel refuses it (at a million).

use std::collections::BTreeMap;

use super::vm::CHECK;

/// `<kernel> <program> <ceiling>` a line; `#` begins a comment.
const CEILINGS: &str = include_str!("../../fixtures/verifier-ceilings.txt");

/// Instructions by program, from lines such as
/// `… works hook="lineage/sched_process_exec" detail="raw tracepoint, 2568 instructions verified; environment, 86669 instructions verified"`.
/// Empty on kernels that do not tell (before 5.16).
pub fn verified(console: &[String]) -> BTreeMap<String, u64> {
    let mut found = BTreeMap::new();
    // A check that failed tells the agent's whole log in one line.
    for line in console.iter().filter(|line| !line.contains(CHECK)) {
        let Some((_, rest)) = line.split_once("hook=\"") else { continue };
        let Some((hook, rest)) = rest.split_once('"') else { continue };
        let Some((_, detail)) = rest.split_once("detail=\"") else { continue };
        for part in detail.split(';') {
            let Some((what, number)) =
                part.split_once(" instructions verified").and_then(|(before, _)| before.rsplit_once(", "))
            else {
                continue;
            };
            let name = if what.trim() == "environment" { format!("{hook}/environment") } else { hook.to_owned() };
            if let Ok(number) = number.parse() {
                found.insert(name, number);
            }
        }
    }
    found
}

/// Programs above their ceiling, and programs without one.
pub fn above_ceiling(kernel: &str, verified: &BTreeMap<String, u64>) -> Vec<String> {
    let ceiling = |program: &str| {
        let lines = CEILINGS.lines().map(|line| line.split('#').next().unwrap_or_default());
        lines.map(|line| line.split_whitespace().collect::<Vec<_>>()).find_map(|words| match words.as_slice() {
            [of, name, ceiling] if *of == kernel && *name == program => ceiling.parse::<u64>().ok(),
            _ => None,
        })
    };
    let mut found = Vec::new();
    for (program, number) in verified {
        match ceiling(program) {
            Some(ceiling) if *number <= ceiling => {}
            Some(ceiling) => found.push(format!("{program}: {number} instructions verified, the ceiling is {ceiling}")),
            None => found.push(format!("{program}: {number} instructions verified, and no ceiling for {kernel}")),
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::{above_ceiling, verified};

    #[test]
    fn figures_are_read_from_the_agents_log() {
        let line = "INFO works hook=\"lineage/sched_process_exec\" detail=\"raw tracepoint, 2568 instructions verified; \
                    environment, 86669 instructions verified\"";
        let told = format!("CHECK trouble/one FAIL works hook=\"audit/netlink\" detail=\"receive buffer 1\" | {line}");
        let audit = "works hook=\"audit/netlink\" detail=\"receive buffer 1\"".to_owned();
        let found = verified(&[line.to_owned(), audit, told]);
        let expected = [("lineage/sched_process_exec", 2568), ("lineage/sched_process_exec/environment", 86669)];
        assert_eq!(found, expected.map(|(name, number)| (name.to_owned(), number)).into());
    }

    #[test]
    fn a_program_above_or_without_its_ceiling_is_named() {
        let of = |program: &str, number| above_ceiling("6.1", &[(program.to_owned(), number)].into()).len();
        assert_eq!((of("lineage/sched_process_fork", 1), of("lineage/sched_process_fork", 999_999)), (0, 1));
        assert_eq!(of("lineage/no_such_program", 1), 1);
    }
}
