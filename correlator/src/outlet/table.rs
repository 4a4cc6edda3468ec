//! Sessions for people, at most 120 columns wide: who, when, where, what was asked, what ran, and how sure that is.

use crate::join::finding::Finding;
use crate::join::session::{Evidence, Session, Side, State};
use crate::timestamp::Timestamp;
use std::fmt::Write as _;

const WIDTH: usize = 120;
/// Programs shown of one session; the JSON form has them all.
const SHOWN: usize = 12;

/// A heading line and indented lines under it.
pub fn render(session: &Session) -> String {
    let mut text = String::new();
    let who = session.user.as_ref().map_or_else(
        || "(nobody known)".to_owned(),
        |user| match &user.impersonated {
            Some(impersonated) => format!("{} as {impersonated}", user.username),
            None => user.username.clone(),
        },
    );
    let place = &session.place;
    let mut at =
        if place.pod.is_empty() { "(pod not known)".to_owned() } else { format!("{}/{}", place.namespace, place.pod) };
    if let Some(container) = &place.container {
        let _ = write!(at, "/{container}");
    }
    if let Some(node) = &place.node {
        let _ = write!(at, " on {node}");
    }
    let mut notes = vec![session.outcome.to_string()];
    if session.state != State::Closed {
        notes.push(session.state.to_string());
    }
    if session.revision > 1 {
        notes.push(format!("revision {}", session.revision));
    }
    // The evidence and the user stand first: a long place is what is cut.
    line(
        &mut text,
        "",
        &format!("{}  {:<15} {:<10} {who}  {at}", short(session.start), session.kind, session.evidence),
    );
    if let Some(request) = &session.request {
        let asked = if request.argv.is_empty() { request.uri.clone() } else { command(&request.argv) };
        let tty = if request.tty { " (tty)" } else { "" };
        line(&mut text, "  asked  ", &format!("{asked}{tty}  [{}]", notes.join(", ")));
    }
    for ran in session.ran.iter().take(SHOWN) {
        let after = if ran.after_close { "  AFTER CLOSE" } else { "" };
        line(&mut text, "  ran    ", &format!("{} {:>7} {}{after}", clock(ran.time), ran.pid, command(&ran.argv)));
    }
    let hidden = session.ran.len().saturating_sub(SHOWN) as u64 + session.ran_not_listed;
    if hidden > 0 {
        line(&mut text, "  ran    ", &format!("... and {hidden} more"));
    }
    for candidate in &session.candidates {
        let side = match candidate.side {
            Side::Request => "request of",
            Side::Root => "processes of",
        };
        line(&mut text, "  maybe  ", &format!("{side} {} at {}", candidate.who, clock(candidate.time)));
    }
    if let Some(other) = session.superseded_by {
        line(&mut text, "  see    ", &other.to_string());
    }
    if session.evidence != Evidence::Unique || session.request.is_none() {
        for reason in &session.reasons {
            line(&mut text, "  why    ", reason);
        }
    }
    for loss in &session.losses {
        let count = loss.count.map_or_else(|| "some".to_owned(), |count| count.to_string());
        line(&mut text, "  lost   ", &format!("{count} records of {} ({}): {}", loss.stream, loss.source, loss.reason));
    }
    for note in &session.coverage {
        line(&mut text, "  cover  ", note);
    }
    for finding in &session.findings {
        line(&mut text, "  look   ", &format!("{}: {}", finding.code, finding.text));
    }
    for claim in &session.claims {
        line(&mut text, "  claim  ", claim);
    }
    text
}

/// A finding that is of no session; those of sessions stand with them.
pub fn render_finding(finding: &Finding) -> String {
    let mut text = String::new();
    if finding.session.is_none() {
        line(&mut text, "", &format!("{}  look: {}: {}", short(finding.time), finding.code, finding.text));
    }
    text
}

pub(crate) fn short(time: Timestamp) -> String {
    let text = time.to_string();
    // 2026-11-23T22:30:04.372 of 2026-11-23T22:30:04.372321256Z
    text.get(..19).map_or(text.clone(), |head| head.replace('T', " "))
}

pub(crate) fn clock(time: Timestamp) -> String {
    let text = time.to_string();
    text.get(11..23).map_or(text.clone(), str::to_owned)
}

/// argv as one could type it; quoted where a space or an odd character would mislead.
pub(crate) fn command(argv: &[String]) -> String {
    let quoted = argv.iter().map(|argument| {
        let plain = |letter: char| letter.is_alphanumeric() || "-_./=:,@%+".contains(letter);
        if !argument.is_empty() && argument.chars().all(plain) {
            argument.clone()
        } else {
            format!("'{}'", argument.replace('\'', "'\\''"))
        }
    });
    quoted.collect::<Vec<_>>().join(" ")
}

/// One line, escaped, cut at the width with a mark.
fn line(text: &mut String, label: &str, content: &str) {
    let escaped = escape(content);
    let room = WIDTH - label.len();
    let _ = if escaped.chars().count() > room {
        let head: String = escaped.chars().take(room - 1).collect();
        writeln!(text, "{label}{head}…")
    } else {
        writeln!(text, "{label}{escaped}")
    };
}

/// No control or direction-changing character reaches a terminal; bytes that were not UTF-8 show as `\xff`.
pub(crate) fn escape(content: &str) -> String {
    let mut escaped = String::with_capacity(content.len());
    for letter in content.chars() {
        match letter {
            '\n' => escaped.push_str("\\n"),
            '\t' => escaped.push_str("\\t"),
            '\u{ef80}'..='\u{efff}' => {
                let _ = write!(escaped, "\\x{:02x}", u32::from(letter) - 0xef00);
            }
            '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}' => {
                let _ = write!(escaped, "\\u{{{:x}}}", u32::from(letter));
            }
            control if control.is_control() => {
                let _ = write!(escaped, "\\x{:02x}", u32::from(control));
            }
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::{WIDTH, command, escape, line};

    #[test]
    fn nothing_that_moves_the_cursor_is_printed() {
        assert_eq!(escape("a\x1b[2J\r\n\u{202e}\u{effe}é"), "a\\x1b[2J\\x0d\\n\\u{202e}\\xfeé");
    }

    #[test]
    fn a_command_reads_as_typed() {
        let argv = ["sh", "-c", "it's"].map(str::to_owned);
        assert_eq!(command(&argv), r"sh -c 'it'\''s'");
    }

    #[test]
    fn a_long_line_is_cut_with_a_mark() {
        let mut text = String::new();
        line(&mut text, "  ran  ", &"x".repeat(500));
        assert_eq!(text.trim_end().chars().count(), WIDTH);
        assert!(text.trim_end().ends_with('…'));
    }
}
