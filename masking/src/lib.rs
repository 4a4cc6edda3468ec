//! Secrets in command lines, masked by rules.
//!
//! The agent masks what it captured before anything of it is kept or sent; the correlator masks what was asked for by the same
//! rules before it compares. So that both come to the same:
//!
//! - a rule looks at one argument, or at an argument and the one behind it, wherever they stand;
//! - what is masked already stays as it is;
//! - a pattern takes time in proportion to the text, whatever the pattern (the `regex` crate).

use std::{fs, io, path::PathBuf};

use regex::{Regex, RegexBuilder};
use thiserror::Error;

/// Stands where a secret was.
pub const MASK: &str = "***";
/// Rules of one file, and bytes of it.
const MOST_RULES: usize = 200;
const MOST_BYTES: u64 = 64 << 10;
/// Times that the rules are applied to one text.
const MOST_ROUNDS: usize = 4;
/// A text that masking makes longer than so many times itself, or than so many bytes, becomes one mask: rules can feed on each
/// other's masks.
const MOST_GROWTH: usize = 4;
const MOST_GROWN: usize = 1024;
/// Bytes of one compiled pattern.
const MOST_PATTERN: usize = 1 << 20;

/// The rules that `default` stands for, as a file would have them.
pub const DEFAULT: &str = include_str!("default.rules");

#[derive(Debug, Error)]
pub enum RulesError {
    #[error("{path}: cannot read the masking rules: {error}")]
    Read { path: PathBuf, error: io::Error },
    #[error("masking rules, line {line}: {reason}")]
    Rule { line: usize, reason: String },
}

/// What is masked, in the order of the rules.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    keys: Vec<Key>,
    patterns: Vec<Regex>,
}

/// A name whose value is a secret.
#[derive(Clone, Debug)]
struct Key {
    name: String,
    /// In the middle of a text: a script, say.
    within: Regex,
}

// === impl Rules ===

impl Rules {
    /// `default`, or the path of a file of rules.
    pub fn load(spec: &str) -> Result<Self, RulesError> {
        if spec == "default" {
            return Self::parse(DEFAULT);
        }
        let path = PathBuf::from(spec);
        let read = || {
            let length = fs::metadata(&path)?.len();
            if length > MOST_BYTES {
                return Err(io::Error::other(format!("{length} bytes are more than {MOST_BYTES}")));
            }
            fs::read_to_string(&path)
        };
        match read() {
            Ok(text) => Self::parse(&text),
            Err(error) => Err(RulesError::Read { path, error }),
        }
    }

    /// One rule a line: `key NAME` or `pattern REGEX`; empty lines and those that begin with `#` say nothing.
    pub fn parse(text: &str) -> Result<Self, RulesError> {
        let mut rules = Self::default();
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let fail = |reason: String| RulesError::Rule { line: number, reason };
            if rules.keys.len() + rules.patterns.len() >= MOST_RULES {
                return Err(fail(format!("more than {MOST_RULES} rules")));
            }
            match line.split_once(char::is_whitespace).map(|(kind, rest)| (kind, rest.trim())) {
                Some(("key", name)) if !name.contains(char::is_whitespace) && !name.contains('=') => {
                    rules.keys.push(Key::new(name).map_err(|error| fail(error.to_string()))?);
                }
                Some(("pattern", pattern)) => {
                    rules.patterns.push(compile(pattern).map_err(|error| fail(error.to_string()))?);
                }
                _ => return Err(fail("is neither `key NAME` nor `pattern REGEX`".into())),
            }
        }
        Ok(rules)
    }

    pub fn is_empty(&self) -> bool {
        self.keys.is_empty() && self.patterns.is_empty()
    }

    /// Masks the secrets of a command line in place; true where there were any.
    pub fn mask(&self, argv: &mut [String]) -> bool {
        let mut masked = false;
        let mut is_value = false;
        for argument in argv {
            if std::mem::take(&mut is_value) {
                // `--password VALUE`; another option is no value of it.
                if !argument.starts_with('-') {
                    masked |= argument != MASK;
                    MASK.clone_into(argument);
                    continue;
                }
            }
            is_value = self.keys.iter().any(|key| key.name == *argument);
            masked |= self.mask_text(argument);
        }
        masked
    }

    /// Until nothing changes: what one rule leaves can be another's.
    fn mask_text(&self, text: &mut String) -> bool {
        let mut changed = false;
        let most = text.len().saturating_mul(MOST_GROWTH).max(MOST_GROWN);
        for _ in 0..MOST_ROUNDS {
            let mut again = false;
            for key in &self.keys {
                again |= text.contains(&key.name) && replace(text, &key.within);
            }
            for pattern in &self.patterns {
                again |= replace(text, pattern);
                if text.len() > most {
                    MASK.clone_into(text);
                    return true;
                }
            }
            if !again {
                break;
            }
            changed = true;
        }
        changed
    }
}

// === impl Key ===

impl Key {
    fn new(name: &str) -> Result<Self, regex::Error> {
        let within = format!(r#"(?:^|[\s'"`;&|(]){}(?:=|\s+)((?:"[^"]*"|'[^']*'|[^\s'";&|)])+)"#, regex::escape(name));
        Ok(Self { name: name.to_owned(), within: compile(&within)? })
    }
}

fn compile(pattern: &str) -> Result<Regex, regex::Error> {
    RegexBuilder::new(pattern).size_limit(MOST_PATTERN).build()
}

/// Puts the mask in the place of every group of every match, or of the whole match where there is no group.
fn replace(text: &mut String, pattern: &Regex) -> bool {
    let mut spans: Vec<(usize, usize)> = Vec::new();
    for found in pattern.captures_iter(text) {
        let groups: Vec<(usize, usize)> =
            found.iter().skip(1).flatten().map(|group| (group.start(), group.end())).collect();
        match groups.as_slice() {
            [] => spans.extend(found.get(0).map(|whole| (whole.start(), whole.end()))),
            groups => spans.extend(groups),
        }
    }
    let mut changed = false;
    let mut end_of_last = usize::MAX;
    for (start, end) in spans.into_iter().rev() {
        // Groups within groups, and empty ones.
        if end > end_of_last || start == end || &text[start..end] == MASK {
            continue;
        }
        text.replace_range(start..end, MASK);
        end_of_last = start;
        changed = true;
    }
    changed
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn masked(rules: &str, argv: &[&str]) -> Vec<String> {
        let mut argv: Vec<String> = argv.iter().map(ToString::to_string).collect();
        Rules::parse(rules).unwrap().mask(&mut argv);
        argv
    }

    #[test]
    fn rules_that_feed_on_each_others_masks_end_as_one_mask() {
        let rules = "pattern .\n".repeat(200);
        assert_eq!(masked(&rules, &[&"x".repeat(500)]), ["***"]);
    }

    #[test]
    fn the_value_of_a_key_is_masked_behind_it_after_an_equals_sign_and_within_a_script() {
        let rules = "key --password\nkey PGPASSWORD";
        assert_eq!(masked(rules, &["mysql", "--password", "s3cret", "db"]), ["mysql", "--password", "***", "db"]);
        assert_eq!(masked(rules, &["mysql", "--password=s3cret"]), ["mysql", "--password=***"]);
        assert_eq!(
            masked(rules, &["sh", "-c", "PGPASSWORD='a b' psql; mysql --password x -h y"]),
            ["sh", "-c", "PGPASSWORD=*** psql; mysql --password *** -h y"]
        );
        // Not a value; not the key.
        assert_eq!(masked(rules, &["mysql", "--password", "--host", "h"]), ["mysql", "--password", "--host", "h"]);
        assert_eq!(masked(rules, &["x", "--passwords=1", "my--password=2"]), ["x", "--passwords=1", "my--password=2"]);
    }

    #[test]
    fn a_pattern_masks_its_groups_or_all_of_its_match() {
        assert_eq!(
            masked("pattern //[^:/]+:([^@]+)@", &["curl", "https://me:pw@host/"]),
            ["curl", "https://me:***@host/"]
        );
        assert_eq!(masked("pattern AKIA[A-Z0-9]{4}", &["echo", "xAKIA1234y"]), ["echo", "x***y"]);
    }

    #[test]
    fn the_default_rules_are_rules_and_mask_what_they_say() {
        let rules = Rules::load("default").unwrap();
        let mut argv: Vec<String> =
            ["curl", "-H", "Authorization: Bearer abc", "https://u:p@h/", "--token=t"].map(str::to_owned).into();
        assert!(rules.mask(&mut argv));
        assert_eq!(argv, ["curl", "-H", "Authorization: Bearer ***", "https://u:***@h/", "--token=***"]);
        let mut plain: Vec<String> = ["ls", "-l", "/tmp"].map(str::to_owned).into();
        assert!(!rules.mask(&mut plain));
    }

    #[test]
    fn what_is_no_rule_says_in_which_line_and_why() {
        for (text, line) in [("keys x", 1), ("\n# x\nkey", 3), ("pattern (", 1), ("key a b", 1), ("key a=b", 1)] {
            let error = Rules::parse(text).unwrap_err().to_string();
            assert!(error.contains(&format!("line {line}:")), "{text:?}: {error}");
        }
        assert!(Rules::parse(&"key x\n".repeat(MOST_RULES + 1)).is_err());
        assert!(Rules::load("/nowhere").unwrap_err().to_string().contains("/nowhere"));
    }

    proptest! {
        /// Both sides mask, perhaps twice, and SPO's rule may put arguments in front.
        #[test]
        fn masking_again_or_behind_a_prefix_changes_nothing(
            argv in proptest::collection::vec("(--password|--password=[a-z ]{0,4}|TOKEN=[a-z'\" ]{0,6}|[a-z=; -]{0,8})", 0..6),
        ) {
            let rules = Rules::load("default").unwrap();
            let mut once = argv.clone();
            rules.mask(&mut once);
            let mut twice = once.clone();
            rules.mask(&mut twice);
            prop_assert_eq!(&once, &twice);
            let mut prefixed: Vec<String> = ["env".to_owned(), "SPO_EXEC_REQUEST_UID=u".to_owned()].into();
            prefixed.extend(argv);
            rules.mask(&mut prefixed);
            prop_assert_eq!(&prefixed[2..], once.as_slice());
        }

        #[test]
        fn any_text_is_masked_or_not_without_a_panic(argv: Vec<String>, rules: String) {
            let mut argv = argv;
            Rules::load("default").unwrap().mask(&mut argv);
            let _ = Rules::parse(&rules);
        }
    }
}
