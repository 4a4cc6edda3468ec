//! Secrets in what was asked for, masked by the rules that the agents mask by: both sides of a comparison are masked, and no
//! session shows what the node's records do not.

use crate::audit::{AccessEvent, PodFact, Uri};
use percent_encoding::{NON_ALPHANUMERIC, percent_encode};
use seclog_masking::Rules;
use seclog_proto::text;

/// Parameters of a request's URI that are a command, or its arguments in order.
const COMMANDS: [&str; 2] = ["command", "cmd"];

pub(super) fn access(rules: &Rules, event: &mut AccessEvent) {
    rules.mask(&mut event.access.argv);
    for container in &mut event.access.new_containers {
        rules.mask(&mut container.argv);
    }
    uri(rules, &mut event.identity.uri);
}

/// Probes are told by their command.
pub(super) fn pod(rules: &Rules, fact: &mut PodFact) {
    for command in &mut fact.commands {
        rules.mask(&mut command.argv);
    }
}

/// Every stage of a request has the same URI, and is masked alike: it stays the request's identity.
fn uri(rules: &Rules, uri: &mut String) {
    for name in COMMANDS {
        let mut argv: Vec<String> = Uri::parse(uri).values(name).map(str::to_owned).collect();
        if !rules.mask(&mut argv) {
            continue;
        }
        let Some((path, query)) = uri.split_once('?') else { return };
        let mut masked = argv.iter();
        let pairs: Vec<String> = query
            .split('&')
            .map(|pair| {
                // A pair that the API server ignores has no value here either.
                let parsed = Uri::parse(&format!("?{pair}"));
                let is_command = parsed.query.first().is_some_and(|(key, _)| key == name);
                match masked.as_slice().first().filter(|_| is_command) {
                    Some(argument) => {
                        masked.next();
                        let bytes = text::to_bytes(argument);
                        format!("{name}={}", percent_encode(&bytes, NON_ALPHANUMERIC))
                    }
                    None => pair.to_owned(),
                }
            })
            .collect();
        *uri = format!("{path}?{}", pairs.join("&"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_uri_shows_no_more_than_the_command_line() {
        let rules = Rules::parse("key --password").unwrap();
        let masked = |text: &str| {
            let mut text = text.to_owned();
            uri(&rules, &mut text);
            text
        };
        assert_eq!(
            masked("/exec?command=mysql&container=app&command=--password&command=s%20x&tty=true"),
            "/exec?command=mysql&container=app&command=%2D%2Dpassword&command=%2A%2A%2A&tty=true"
        );
        let plain = "/exec?command=sh&command=-c&command=id;x&container=app";
        assert_eq!(masked(plain), plain, "untouched where nothing is masked");
        assert!(!masked("/run?cmd=x+--password%3Ds3").contains("s3"));
    }
}
