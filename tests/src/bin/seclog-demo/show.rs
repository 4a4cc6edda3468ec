//! What the demo prints.

use anyhow::Result;
use seclog_tests::lab::programs::Agent;
use serde_json::Value;

pub(crate) fn title() {
    println!("seclog: who exec'd into which container, and what ran there?\n");
}

pub(crate) fn step(what: &str, text: &str) {
    println!("  {what:<12}{text}");
}

pub(crate) fn missing(what: &str, reason: &str) {
    println!("  {what:<12}not here: {reason}");
}

/// Which ways of seeing work on this host, and why others do not, from the agent's own log.
pub(crate) fn hooks(agent: &Agent) {
    for (text, word) in [(" works hook=", "works"), (" does not work here hook=", "cannot")] {
        for line in agent.log_lines(text) {
            let detail = quoted(&line, "reason=").or_else(|| quoted(&line, "detail=")).unwrap_or_default();
            println!("  {:<12}{word:<7}{:<30}{detail}", "", quoted(&line, "hook=").unwrap_or_default());
        }
    }
}

fn quoted<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    line.split_once(key)?.1.strip_prefix('"')?.split_once('"').map(|(value, _)| value)
}

/// As JSON, and below it, where the eye is, as a table.
pub(crate) fn session(session: &Value) -> Result<()> {
    println!("\n{}", serde_json::to_string_pretty(session)?);
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let place = &session["where"];
    println!();
    row("who", &text(&session["user"]["username"]));
    row(
        "where",
        &format!(
            "{}/{} container {} on {} of {}",
            text(&place["namespace"]),
            text(&place["pod"]),
            text(&place["container"]),
            text(&place["node"]),
            text(&place["cluster"])
        ),
    );
    row("asked", &format!("{} at {}", argv(&session["request"]["argv"]), text(&session["request"]["received"])));
    let ran: Vec<&Value> = session["ran"].as_array().into_iter().flatten().collect();
    if ran.is_empty() {
        row("ran", "nothing that was seen");
    }
    for program in ran {
        row("ran", &format!("{} (pid {})", argv(&program["argv"]), program["pid"]));
    }
    let verdicts: u64 =
        session["verdicts"].as_array().into_iter().flatten().filter_map(|verdict| verdict["count"].as_u64()).sum();
    row("verdicts", &format!("{verdicts} logged by the container's seccomp profile"));
    row("evidence", &text(&session["evidence"]));
    for reason in session["reasons"].as_array().into_iter().flatten() {
        row("", &text(reason));
    }
    Ok(())
}

/// What a command of the correlator's printed.
pub(crate) fn asked(command: &str, answer: &str) {
    println!("\n  $ seclog-correlator {command}\n");
    for line in answer.lines() {
        println!("  {line}");
    }
}

pub(crate) fn how_to_ask() {
    println!(
        "\n  Others: findings, tail, and all of them with --json; docs/store.md. `replay --store DIR` makes a store of files."
    );
}

fn row(name: &str, value: &str) {
    println!("  {name:<10}{value}");
}

fn argv(argv: &Value) -> String {
    argv.as_array()
        .into_iter()
        .flatten()
        .map(|word| match word.as_str().unwrap_or_default() {
            plain if !plain.is_empty() && !plain.contains([' ', ';', '\'']) => plain.to_owned(),
            other => format!("'{}'", other.replace('\'', "'\\''")),
        })
        .collect::<Vec<_>>()
        .join(" ")
}
