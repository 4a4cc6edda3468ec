//! Request URIs as the API server reads them (Go's net/url), because what it did is what must be compared with the node.

use seclog_proto::text;

/// A decoded request URI. Bytes that are not UTF-8 are carried as [`seclog_proto::text`] does, so that an argument equals
/// the one the node reports.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Uri {
    /// Path segments between slashes, decoded; empty ones left out.
    pub path: Vec<String>,
    /// Query pairs in order.
    pub query: Vec<(String, String)>,
    /// Query pairs that Go refuses, and the API server therefore ignores: with `;` or a broken `%` escape.
    pub ignored_pairs: usize,
}

impl Uri {
    pub fn parse(uri: &str) -> Self {
        let (path, query) = uri.split_once('?').unwrap_or((uri, ""));
        // An escaped slash separates too: the API server splits the decoded path.
        let decoded = unescape(path.as_bytes(), false).unwrap_or_else(|| path.as_bytes().to_vec());
        let path = decoded.split(|byte| *byte == b'/').filter(|part| !part.is_empty()).map(text::from_bytes).collect();
        let mut parsed = Self { path, ..Self::default() };
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            match query_pair(pair) {
                Some(pair) => parsed.query.push(pair),
                None => parsed.ignored_pairs += 1,
            }
        }
        parsed
    }

    /// All values of a parameter, in order.
    pub fn values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.query.iter().filter(move |(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    pub fn first(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// A boolean as k8s.io/apimachinery/pkg/runtime/conversion.go reads it: present and neither "0" nor "false".
    pub fn flag(&self, name: &str) -> bool {
        self.first(name).is_some_and(|value| value != "0" && !value.eq_ignore_ascii_case("false"))
    }
}

fn query_pair(pair: &str) -> Option<(String, String)> {
    if pair.contains(';') {
        return None;
    }
    let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
    let key = unescape(key.as_bytes(), true)?;
    let value = unescape(value.as_bytes(), true)?;
    Some((text::from_bytes(&key), text::from_bytes(&value)))
}

/// `None` for an escape that Go refuses. (percent-encoding would pass such an escape through unchanged.)
fn unescape(escaped: &[u8], plus_is_space: bool) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(escaped.len());
    let mut rest = escaped.iter();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => hex(*rest.next()?)? << 4 | hex(*rest.next()?)?,
            b'+' if plus_is_space => b' ',
            other => *other,
        });
    }
    Some(bytes)
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

#[cfg(test)]
mod tests {
    use super::Uri;
    use proptest::prelude::*;
    use seclog_proto::text;

    #[test]
    fn repeated_commands_keep_their_order_and_their_bytes() {
        let uri = Uri::parse("/api/v1/namespaces/shop/pods/web/exec?command=sh&command=-c&tty=true&command=a+b%2B%ff");
        assert_eq!(uri.path, ["api", "v1", "namespaces", "shop", "pods", "web", "exec"]);
        let argv: Vec<&str> = uri.values("command").collect();
        assert_eq!(argv, ["sh", "-c", text::from_bytes(b"a b+\xff").as_str()]);
        assert!(uri.flag("tty"));
        assert!(!uri.flag("stdin"));
    }

    #[test]
    fn pairs_that_go_refuses_are_left_out_and_counted() {
        let uri = Uri::parse("/exec?command=id&command=%zz&command=a;b&command=%4&&command");
        assert_eq!(uri.values("command").collect::<Vec<_>>(), ["id", ""]);
        assert_eq!(uri.ignored_pairs, 3);
    }

    #[test]
    fn flags_read_as_the_api_server_reads_them() {
        for (query, value) in [("tty=1", true), ("tty=0", false), ("tty=FALSE", false), ("tty=", true), ("x=1", false)]
        {
            assert_eq!(Uri::parse(&format!("/exec?{query}")).flag("tty"), value, "{query}");
        }
    }

    fn escape(bytes: &[u8], plus: bool) -> String {
        bytes
            .iter()
            .map(|byte| match byte {
                b' ' if plus => "+".to_owned(),
                b'a'..=b'z' => char::from(*byte).to_string(),
                other => format!("%{other:02X}"),
            })
            .collect()
    }

    proptest! {
        #[test]
        fn any_argv_survives_the_query(argv: Vec<Vec<u8>>, plus: bool) {
            let query: Vec<String> = argv.iter().map(|argument| format!("command={}", escape(argument, plus))).collect();
            let uri = Uri::parse(&format!("/exec?{}", query.join("&")));
            let read: Vec<Vec<u8>> = uri.values("command").map(text::to_bytes).collect();
            prop_assert_eq!(read, argv);
        }

        #[test]
        fn any_text_is_read_without_panic(uri: String) {
            Uri::parse(&uri);
        }

        #[test]
        fn every_query_pair_is_kept_or_counted(query in "[a-z%&=;+0-9]{0,40}") {
            let uri = Uri::parse(&format!("/x?{query}"));
            let pairs = query.split('&').filter(|pair| !pair.is_empty()).count();
            prop_assert_eq!(uri.query.len() + uri.ignored_pairs, pairs);
        }
    }
}
