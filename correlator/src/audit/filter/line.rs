//! Newline-delimited events: most are decided by a few searches for bytes, without walking their members.

use super::walk::{self, Text};
use super::{Decision, Filter, decide, plain, target};
use crate::audit::kind::Possible;
use memchr::memchr;
use memchr::memmem::Finder;

const TARGET: &[u8] = b"\"objectRef\"";
const RECEIVED: &[u8] = b"\"requestReceivedTimestamp\"";

/// Searches that are prepared once.
#[derive(Debug, Clone)]
pub(super) struct Finders {
    target: Finder<'static>,
    verb: Finder<'static>,
    received: Finder<'static>,
    escape: Finder<'static>,
}

impl Default for Finders {
    fn default() -> Self {
        Self {
            target: Finder::new(TARGET),
            verb: Finder::new(b"\"verb\""),
            received: Finder::new(RECEIVED),
            escape: Finder::new(b"\\u00"),
        }
    }
}

impl Finders {
    fn target_from(&self, text: &[u8], from: usize) -> Option<usize> {
        Some(from + self.target.find(text.get(from..)?)?)
    }

    /// The next escape that could spell a letter: KAS writes `<`, `>`, `&` and control characters so, and nothing else.
    fn escape_from(&self, text: &[u8], mut from: usize) -> Option<usize> {
        loop {
            from += self.escape.find(text.get(from..)?)?;
            match text.get(from + 4..from + 6) {
                Some(b"26" | b"3c" | b"3e" | b"3C" | b"3E" | [b'0' | b'1', _]) => from += 6,
                _ => return Some(from),
            }
        }
    }
}

impl Filter {
    /// Decides on every line of a text; those to look at go to `look`, with the byte at which they begin. Blank lines are
    /// left out; the last line may lack its newline. How many lines there were.
    pub fn lines<'a>(&mut self, text: &'a [u8], mut look: impl FnMut(&'a [u8], usize)) -> u64 {
        let (mut lines, mut begin) = (0, 0);
        // Both searches go through the text once, ahead of the line that is looked at.
        let mut next_target = self.finders.target_from(text, 0);
        let mut next_escape = self.finders.escape_from(text, 0);
        while begin < text.len() {
            let end = memchr(b'\n', &text[begin..]).map_or(text.len(), |found| begin + found);
            let line = text[begin..end].trim_ascii_end();
            let first = next_target.filter(|at| *at < end);
            let mut several = false;
            if let Some(first) = first {
                next_target = self.finders.target_from(text, first + TARGET.len());
                several = next_target.is_some_and(|at| at < end);
                if several {
                    next_target = self.finders.target_from(text, end);
                }
            }
            let escaped = next_escape.is_some_and(|at| at < end);
            if escaped {
                next_escape = self.finders.escape_from(text, end);
            }
            if !line.is_empty() {
                lines += 1;
                let quick = if several || escaped { None } else { self.line(line, first.map(|at| at - begin)) };
                if quick.unwrap_or_else(|| self.event(line)) == Decision::Look {
                    look(line, begin);
                }
            }
            begin = end + 1;
        }
        lines
    }

    /// Decides on a line in which nothing is spelled by escapes and `objectRef` stands once, at `at`, or never.
    /// `None`: its members must be walked.
    fn line(&mut self, line: &[u8], at: Option<usize>) -> Option<Decision> {
        let verb = leading_verb(line)?;
        if line.last() != Some(&b'}') {
            return None;
        }
        let target = target(match at {
            Some(at) => Some(member_behind(line, at + TARGET.len())?),
            None => None,
        })?;
        let possible = target.possible();
        let mut received: &[u8] = b"";
        if matches!(possible, Possible::Write | Possible::Lease) {
            // Were there a second verb, the whole parse would have to say which counts.
            self.finders.verb.find_iter(line).nth(1).is_none().then_some(())?;
        }
        if possible == Possible::Lease {
            let mut found = self.finders.received.find_iter(line);
            received = plain(match (found.next(), found.next()) {
                (Some(at), None) => Some(member_behind(line, at + RECEIVED.len())?),
                (None, _) => None,
                _ => return None,
            })?;
        }
        Some(decide(&target, verb, received, &mut self.kinds))
    }
}

/// The value of the member whose key ends at `at`.
fn member_behind(line: &[u8], at: usize) -> Option<&[u8]> {
    let colon = walk::blank(line, at);
    if line.get(colon) != Some(&b':') {
        return None;
    }
    let begin = walk::blank(line, colon + 1);
    line.get(begin..walk::value(line, begin)?)
}

/// How KAS begins a line, and what of it need not be read.
const BEGINNING: &[u8] = br#"{"kind":"Event","apiVersion":"audit.k8s.io/v1","level":"#;

/// The verb of a line that begins as KAS writes it: with members that are strings, `verb` among them.
fn leading_verb(line: &[u8]) -> Option<&[u8]> {
    let (mut key, mut at): (&[u8], usize) = match line {
        _ if line.starts_with(BEGINNING) => (b"level", BEGINNING.len()),
        [b'{', ..] => leading_key(line, 1)?,
        _ => return None,
    };
    loop {
        let Text { end, escaped } = walk::string(line, at)?;
        if key == b"verb" {
            return if escaped { None } else { line.get(at + 1..end - 1) };
        }
        if line.get(end) != Some(&b',') {
            return None;
        }
        (key, at) = leading_key(line, end + 1)?;
    }
}

/// The key that begins at `at`, and where its value does.
#[inline]
fn leading_key(line: &[u8], at: usize) -> Option<(&[u8], usize)> {
    let Text { end, escaped } = walk::string(line, at)?;
    (!escaped && line.get(end) == Some(&b':')).then_some((line.get(at + 1..end - 1)?, end + 1))
}
