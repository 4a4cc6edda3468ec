//! Just enough YAML to write: scalars that cannot be misread, and blocks.

/// A scalar in double quotes where plain would be read as something else.
pub(super) fn scalar(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_' | '/');
    let first = text.chars().next();
    let word = first.is_some_and(|c| c.is_ascii_alphabetic()) && text.chars().all(plain);
    let reserved = ["true", "false", "yes", "no", "on", "off", "null", "y", "n"];
    if word && !reserved.contains(&text.to_ascii_lowercase().as_str()) {
        text.to_owned()
    } else {
        // JSON's strings are YAML's double-quoted ones.
        serde_json::Value::from(text).to_string()
    }
}

/// Lines of a literal block below a key, indented by `depth` spaces.
pub(super) fn block(text: &str, depth: usize) -> String {
    text.lines().map(|line| if line.is_empty() { "\n".to_owned() } else { format!("{:depth$}{line}\n", "") }).collect()
}

/// Comment lines.
pub(super) fn comment(text: &str) -> String {
    text.lines().map(|line| if line.is_empty() { "#\n".to_owned() } else { format!("# {line}\n") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_be_misread_is_quoted() {
        for (text, yaml) in [
            ("seclog-audit", "seclog-audit"),
            ("yes", "\"yes\""),
            ("1", "\"1\""),
            ("", "\"\""),
            ("a: b", "\"a: b\""),
            ("a\"b\n", "\"a\\\"b\\n\""),
        ] {
            assert_eq!(scalar(text), yaml);
        }
        assert_eq!(block("a\n\n b\n", 2), "  a\n\n   b\n");
    }
}
