//! A TOML file as a tree whose every node knows its line.

use toml_edit::{Document, Item, TableLike, Value as TomlValue};

/// A value and the line it begins on.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    pub line: u32,
    pub value: Value,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Str(String),
    Int(i64),
    Bool(bool),
    /// A float or a date: no option of CRI-O takes one.
    Other(&'static str),
    Array(Vec<Node>),
    Table(Vec<(String, Node)>),
}

impl Value {
    pub fn noun(&self) -> &'static str {
        match self {
            Self::Str(_) => "a string",
            Self::Int(_) => "an integer",
            Self::Bool(_) => "true or false",
            Self::Other(noun) => noun,
            Self::Array(_) => "an array",
            Self::Table(_) => "a table",
        }
    }

    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::Str(text) => Some(text),
            _ => None,
        }
    }

    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Self::Bool(value) => Some(*value),
            _ => None,
        }
    }

    /// The strings of an array; other elements are left out.
    pub fn strings(&self) -> Vec<&str> {
        match self {
            Self::Array(items) => items.iter().filter_map(|i| i.value.as_str()).collect(),
            _ => Vec::new(),
        }
    }

    /// Equal apart from the lines.
    pub fn same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Array(a), Self::Array(b)) => {
                a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.value.same(&b.value))
            }
            (Self::Table(a), Self::Table(b)) => {
                a.len() == b.len()
                    && a.iter().all(|(key, a)| b.iter().any(|(other, b)| key == other && a.value.same(&b.value)))
            }
            (a, b) => a == b,
        }
    }

    /// What Go's decoder leaves a field at when nothing sets it.
    pub fn is_zero(&self) -> bool {
        match self {
            Self::Str(text) => text.is_empty(),
            Self::Int(value) => *value == 0,
            Self::Bool(value) => !value,
            Self::Other(_) => false,
            Self::Array(items) => items.is_empty(),
            Self::Table(entries) => entries.is_empty(),
        }
    }
}

/// Why a file is not TOML.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {message}")]
pub struct SyntaxError {
    pub line: u32,
    pub message: String,
}

/// The top-level keys of a file, in its order.
pub fn parse(text: &str) -> Result<Vec<(String, Node)>, SyntaxError> {
    let lines = Lines::of(text);
    let document = Document::parse(text).map_err(|error| SyntaxError {
        line: error.span().map_or(1, |span| lines.at(span.start)),
        message: error.message().to_owned(),
    })?;
    Ok(table(document.as_table(), &lines))
}

fn table(table: &dyn TableLike, lines: &Lines) -> Vec<(String, Node)> {
    table
        .iter()
        .map(|(key, item)| {
            let span = table.key(key).and_then(toml_edit::Key::span);
            (key.to_owned(), node(item, span.map(|s| lines.at(s.start)), lines))
        })
        .collect()
}

fn node(item: &Item, key_line: Option<u32>, lines: &Lines) -> Node {
    let own = item.span().map(|s| lines.at(s.start));
    let value = match item {
        Item::None => Value::Table(Vec::new()),
        Item::Value(value) => scalar(value, lines),
        Item::Table(inner) => Value::Table(table(inner, lines)),
        Item::ArrayOfTables(tables) => Value::Array(
            tables
                .iter()
                .map(|t| Node { line: t.span().map_or(0, |s| lines.at(s.start)), value: Value::Table(table(t, lines)) })
                .collect(),
        ),
    };
    // A header's own line beats the line where its name was first mentioned in another header.
    let line = if matches!(item, Item::Table(_)) { own.or(key_line) } else { key_line.or(own) };
    let line = line.or_else(|| first_line(&value)).unwrap_or(1);
    Node { line, value }
}

fn first_line(value: &Value) -> Option<u32> {
    match value {
        Value::Table(entries) => entries.first().map(|(_, node)| node.line),
        _ => None,
    }
}

fn scalar(value: &TomlValue, lines: &Lines) -> Value {
    match value {
        TomlValue::String(text) => Value::Str(text.value().clone()),
        TomlValue::Integer(number) => Value::Int(*number.value()),
        TomlValue::Boolean(value) => Value::Bool(*value.value()),
        TomlValue::Float(_) => Value::Other("a float"),
        TomlValue::Datetime(_) => Value::Other("a date"),
        TomlValue::Array(items) => Value::Array(
            items
                .iter()
                .map(|i| Node { line: i.span().map_or(1, |s| lines.at(s.start)), value: scalar(i, lines) })
                .collect(),
        ),
        TomlValue::InlineTable(inner) => Value::Table(table(inner, lines)),
    }
}

/// Byte offsets at which lines begin.
struct Lines(Vec<usize>);

impl Lines {
    fn of(text: &str) -> Self {
        let newlines = text.bytes().enumerate().filter(|(_, b)| *b == b'\n').map(|(at, _)| at + 1);
        Self(std::iter::once(0).chain(newlines).collect())
    }

    /// One-based.
    fn at(&self, offset: usize) -> u32 {
        u32::try_from(self.0.partition_point(|start| *start <= offset)).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line_of(text: &str, path: &[&str]) -> u32 {
        let mut entries = parse(text).unwrap();
        let mut line = 0;
        for key in path {
            let (_, node) = entries.into_iter().find(|(k, _)| k == key).unwrap();
            line = node.line;
            entries = match node.value {
                Value::Table(inner) => inner,
                _ => Vec::new(),
            };
        }
        line
    }

    #[test]
    fn every_key_and_table_knows_its_line() {
        let text = "# head\n[crio.runtime]\nlog_level = \"info\"\n\n[crio.runtime.runtimes.runc]\nallowed_annotations = [\n  \"a\",\n]\n[crio.image]\npause_image = \"x\"\n";
        for (path, line) in [
            (&["crio", "runtime"][..], 2),
            (&["crio", "runtime", "log_level"], 3),
            (&["crio", "runtime", "runtimes", "runc"], 5),
            (&["crio", "runtime", "runtimes", "runc", "allowed_annotations"], 6),
            (&["crio", "image"], 9),
            (&["crio", "image", "pause_image"], 10),
        ] {
            assert_eq!(line_of(text, path), line, "{path:?}");
        }
        assert_eq!(line_of("crio.runtime.log_level = \"x\"", &["crio", "runtime", "log_level"]), 1);
    }

    #[test]
    fn a_syntax_error_names_its_line() {
        let error = parse("[crio.runtime]\nlog_level = \n").unwrap_err();
        assert_eq!(error.line, 2);
        assert!(parse("[a]\n[a]\n").is_err(), "a table twice is an error for CRI-O too");
    }

    proptest::proptest! {
        #[test]
        fn no_input_panics(text in ".{0,300}") {
            let _ = parse(&text);
        }
    }
}
