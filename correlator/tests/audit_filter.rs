//! The fast filter never lets go what the whole parse would keep.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test says no more by handling them")]

mod support;

use proptest::prelude::*;
use seclog_correlator::audit::{Decision, Event, Filter, Kept};
use serde_json::Value;

/// What the whole parse says, where a key that stands twice counts as whichever reading makes more of it.
fn kept(json: &str) -> Option<Kept> {
    let strict = serde_json::from_str::<Event>(json).ok().and_then(|event| event.head().kept());
    let last_wins = || serde_json::from_value::<Event>(serde_json::from_str::<Value>(json).ok()?).ok()?.head().kept();
    strict.or_else(last_wins)
}

fn decision(json: &str) -> Decision {
    Filter::default().event(json.as_bytes())
}

/// By way of the search for lines.
fn line_decision(json: &str) -> Decision {
    let mut looked_at = 0;
    let lines = Filter::default().lines(json.as_bytes(), |line, at| {
        assert_eq!((line, at), (json.trim_end().as_bytes(), 0));
        looked_at += 1;
    });
    assert_eq!(lines, 1);
    if looked_at == 1 { Decision::Look } else { Decision::Irrelevant }
}

#[test]
fn on_recordings_the_filter_says_what_the_whole_parse_says() {
    let mut kinds_kept = std::collections::BTreeSet::new();
    for recording in ["kas-audit.log", "kas-audit-bulk.log"] {
        let text = support::read(recording);
        let wanted: Vec<&str> = text.lines().filter(|line| kept(line).is_some()).collect();
        kinds_kept.extend(wanted.iter().filter_map(|line| kept(line)));
        let (mut filter, mut found) = (Filter::default(), Vec::new());
        let lines = filter.lines(text.as_bytes(), |line, at| {
            assert!(text.as_bytes()[at..].starts_with(line));
            found.push(std::str::from_utf8(line).unwrap());
        });
        assert_eq!(found, wanted, "{recording}");
        assert_eq!(lines, filter.kinds.total() + found.len() as u64);
        for (kind, count) in filter.kinds.iter() {
            let of_kind = |event: &Event| format!("{} {}", event.verb, event.resource()) == kind;
            let events = text.lines().map(|line| serde_json::from_str::<Event>(line).unwrap());
            assert_eq!(events.filter(|event| of_kind(event) && event.head().kept().is_none()).count() as u64, count);
        }
        let list = format!(r#"{{"kind":"EventList","items":[{}]}}"#, text.lines().collect::<Vec<_>>().join(","));
        let body = Filter::default().body(list.as_bytes()).unwrap();
        let places: Vec<&str> = body.look.iter().map(|place| &list[place.begin..place.end]).collect();
        assert_eq!((body.events, places), (lines, wanted));
    }
    assert!(kinds_kept.contains(&Kept::Access) && kinds_kept.contains(&Kept::NodeStatus), "{kinds_kept:?}");
}

const TIMES: &str = r#""requestReceivedTimestamp":"2026-11-23T22:30:04.1Z""#;

fn event(verb: &str, user: &str, target: &str) -> String {
    format!(r#"{{"verb":"{verb}","user":{{"username":"{user}"}},"objectRef":{{{target}}},{TIMES}}}"#)
}

#[test]
fn what_is_kept_and_what_is_let_go() {
    let pods = r#""resource":"pods","namespace":"n","name":"p""#;
    let sub = |name: &str| format!(r#"{pods},"subresource":"{name}""#);
    let lease = r#""resource":"leases","namespace":"kube-node-lease","name":"n","apiGroup":"coordination.k8s.io""#;
    let of = |resource: &str, namespace: &str| format!(r#""resource":"{resource}","namespace":"{namespace}""#);
    for (verb, user, target, expected) in [
        ("get", "a", sub("exec"), Some(Kept::Access)),
        ("create", "a", sub("exec"), Some(Kept::Access)),
        ("get", "a", sub("attach"), Some(Kept::Access)),
        ("create", "a", sub("portforward"), Some(Kept::Access)),
        ("patch", "a", sub("ephemeralcontainers"), Some(Kept::Access)),
        ("get", "a", sub("ephemeralcontainers"), None),
        ("get", "a", sub("log"), None),
        ("get", "a", pods.to_owned(), None),
        ("watch", "a", pods.to_owned(), None),
        ("create", "a", pods.to_owned(), Some(Kept::Pod)),
        ("update", "a", pods.to_owned(), Some(Kept::Pod)),
        ("delete", "a", pods.to_owned(), Some(Kept::Pod)),
        ("deletecollection", "a", pods.to_owned(), Some(Kept::Pod)),
        ("create", "system:kube-scheduler", sub("binding"), Some(Kept::Binding)),
        ("patch", "system:node:n", sub("status"), Some(Kept::NodeStatus)),
        ("patch", "a", sub("status"), None),
        ("update", "system:node:n", lease.to_owned(), Some(Kept::NodeLease)),
        ("get", "system:node:n", lease.to_owned(), None),
        ("update", "a", of("leases", "kube-system"), None),
        ("get", "a", r#""resource":"nodes","name":"n","subresource":"proxy""#.to_owned(), Some(Kept::Access)),
        ("get", "a", r#""resource":"nodes","name":"n","subresource":"status""#.to_owned(), None),
        ("get", "a", r#""resource":"services","name":"n","subresource":"proxy""#.to_owned(), None),
        ("create", "a", of("pods", "n").replace("pods", "pods\",\"apiGroup\":\"metrics.k8s.io"), None),
        ("delete", "a", of("mutatingwebhookconfigurations", ""), Some(Kept::Monitoring)),
        ("update", "a", of("validatingwebhookconfigurations", ""), Some(Kept::Monitoring)),
        ("get", "a", of("validatingwebhookconfigurations", ""), None),
        ("patch", "a", of("seccompprofiles", "n"), Some(Kept::Monitoring)),
        ("delete", "a", of("profilebindings", "n"), Some(Kept::Monitoring)),
        ("update", "a", of("daemonsets", "seclog"), Some(Kept::Monitoring)),
        ("update", "a", of("events", "seclog"), None),
        ("update", "a", of("daemonsets", "shop"), None),
    ] {
        let json = event(verb, user, &target);
        assert_eq!(kept(&json), expected, "{json}");
        let look = if expected.is_some() { Decision::Look } else { Decision::Irrelevant };
        // Who reports a status is left to the whole parse.
        if !target.contains("status") || expected.is_some() {
            assert_eq!((decision(&json), line_decision(&json)), (look, look), "{json}");
        }
    }
}

#[test]
fn node_leases_are_sampled_by_their_own_time_so_that_every_route_has_the_same_ones() {
    let lease = r#""resource":"leases","namespace":"kube-node-lease","name":"n","apiGroup":"coordination.k8s.io""#;
    let taken = |second: u32| {
        let json = event("update", "system:node:n", lease).replace(":04.1Z", &format!(":{second:02}.1Z"));
        assert_eq!(kept(&json).is_some(), line_decision(&json) == Decision::Look, "{json}");
        assert_eq!(decision(&json), line_decision(&json));
        kept(&json).is_some()
    };
    assert_eq!((0..60).filter(|second| taken(*second)).count(), 11);
    // Renewed every ten seconds, whenever it began: at least once a minute.
    assert!((0..10).all(|first| (0..6).any(|turn| taken(first + turn * 10))));
}

#[test]
fn escapes_that_spell_letters_order_and_repetition_hide_nothing() {
    let exec = r#"{"resource":"pods","subresource":"exec","name":"p"}"#;
    let harmless = r#"{"resource":"configmaps","name":"p"}"#;
    for json in [
        format!(r#"{{"verb":"get","objectRef":{}}}"#, exec.replace("exec", r"\u0065xec")),
        format!(r#"{{"verb":"get","objectRef":{}}}"#, exec.replace("subresource", r"s\u0075bresource")),
        format!(r#"{{"verb":"get","\u006fbjectRef":{exec}}}"#),
        format!(r#"{{"verb":"get","objectRe\u0066":{exec},"auditID":"x"}}"#),
        format!(r#"{{"verb":"get","objectRef":{harmless},"objectRef":{exec}}}"#),
        format!(r#"{{"verb":"get","objectRef":{harmless},"objectRe\u0066":{exec}}}"#),
        format!(r#"{{"verb":"get","objectRef":{},"x":1}}"#, exec.replace("pods\"", "x\",\"resource\":\"pods\"")),
        format!(r#"{{"requestObject":{{"objectRef":{harmless}}},"objectRef" : {exec} , "verb":"get"}}"#),
        format!(r#"{{"userAgent":"\"objectRef\":{{}}","verb":"get","objectRef":{exec}}}"#),
        format!(r#"{{"stage":"objectRef","verb":"get","objectRef":{exec}}}"#),
        format!("{{\t\"verb\" :\"get\",\r \"objectRef\":{exec}}}"),
        r#"{"verb":"get","verb":"create","objectRef":{"resource":"pods","name":"p"}}"#.to_owned(),
        r#"{"verb":"get","v\u0065rb":"create","objectRef":{"resource":"pods","name":"p"}}"#.to_owned(),
        r#"{"verb":"cre\u0061te","objectRef":{"resource":"pods","name":"p"}}"#.to_owned(),
    ] {
        assert!(kept(&json).is_some(), "{json}");
        assert_eq!((decision(&json), line_decision(&json)), (Decision::Look, Decision::Look), "{json}");
    }
}

#[test]
fn what_breaks_off_or_is_no_event_is_looked_at() {
    for text in ["{", "x", "7", "[]", r#"{"verb":"get""#, r#"{"verb":"get"} x"#, "{]}"] {
        assert_eq!((decision(text), line_decision(text)), (Decision::Look, Decision::Look), "{text}");
    }
    // Broken inside, by its brackets: only the walk sees that.
    assert_eq!(decision(r#"{"verb":"get","a":[}"#), Decision::Look);
    let deep = format!(r#"{{"a":{}1{}}}"#, "[".repeat(200), "]".repeat(200));
    assert_eq!(decision(&deep), Decision::Look);
}

#[test]
fn an_item_that_is_broken_inside_costs_no_neighbour() {
    let good = event("get", "a", r#""resource":"configmaps""#);
    let body = format!(r#"{{"kind":"EventList","metadata":{{}},"items":[{good}, {{"verb":"get",bad}} ,{good},7]}}"#);
    let found = Filter::default().body(body.as_bytes()).unwrap();
    let places: Vec<(usize, &str)> =
        found.look.iter().map(|place| (place.index, &body[place.begin..place.end])).collect();
    assert_eq!((found.events, places), (4, vec![(1, r#"{"verb":"get",bad}"#), (3, "7")]));
    assert_eq!(Filter::default().body(br#"{"kind":"Pod"}"#), None);
    assert_eq!(Filter::default().body(b"[1,"), None);
}

/// Writes JSON as nobody does: any order, any white space, any escapes, repetitions.
#[derive(Debug, Clone)]
struct Hand {
    choices: Vec<u8>,
    at: usize,
    spaces: &'static [&'static str],
}

impl Hand {
    fn choose(&mut self, of: usize) -> usize {
        self.at += 1;
        self.choices[self.at % self.choices.len()].wrapping_add((self.at / self.choices.len()) as u8) as usize % of
    }

    fn space(&mut self) -> &'static str {
        let at = self.choose(self.spaces.len());
        self.spaces[at]
    }

    fn string(&mut self, text: &str) -> String {
        let escape = self.choose(3) == 0;
        let mut written = String::from('"');
        for character in text.chars() {
            match character {
                '"' | '\\' => written.extend(['\\', character]),
                _ if escape && self.choose(4) == 0 && character.is_ascii() => {
                    let code = character as u32;
                    written += &if self.choose(2) == 0 { format!("\\u{code:04x}") } else { format!("\\u{code:04X}") };
                }
                _ => written.push(character),
            }
        }
        written.push('"');
        written
    }

    fn object(&mut self, mut members: Vec<(&str, String)>) -> String {
        for at in (1..members.len()).rev() {
            let other = self.choose(at + 1);
            if self.choose(2) == 0 {
                members.swap(at, other);
            }
        }
        let mut written = format!("{{{}", self.space());
        for (at, (key, value)) in members.into_iter().enumerate() {
            let comma = if at == 0 { "" } else { "," };
            let (key, before, behind, end) = (self.string(key), self.space(), self.space(), self.space());
            written += &format!("{comma}{before}{key}{end}:{behind}{value}{end}");
        }
        written.push('}');
        written
    }

    fn one_of(&mut self, texts: &[&str]) -> String {
        let at = self.choose(texts.len());
        self.string(texts[at])
    }

    fn target(&mut self) -> String {
        let mut members = Vec::new();
        let choices: [(&str, &[&str]); 5] = [
            ("resource", &["pods", "pods", "nodes", "leases", "configmaps", "mutatingwebhookconfigurations"]),
            ("subresource", &["exec", "attach", "status", "proxy", "", "binding", "log"]),
            ("namespace", &["kube-node-lease", "seclog", "shop", "\"objectRef\":{\"resource\":\"pods\"}"]),
            ("name", &["seclog-agent", "web", "}"]),
            ("apiGroup", &["", "coordination.k8s.io", "metrics.k8s.io"]),
        ];
        for (key, texts) in choices {
            for _ in 0..[1, 1, 1, 1, 0, 0, 0, 2][self.choose(8)] {
                members.push((key, self.one_of(texts)));
            }
        }
        if self.choose(8) == 0 { "null".to_owned() } else { self.object(members) }
    }

    fn event(&mut self) -> String {
        let mut members = Vec::new();
        for _ in 0..[1, 1, 1, 1, 0, 0, 0, 2][self.choose(8)] {
            let verbs = ["get", "create", "patch", "list", "watch", "delete"];
            members.push(("verb", self.one_of(&verbs)));
        }
        for _ in 0..[1, 1, 1, 1, 1, 1, 0, 2][self.choose(8)] {
            members.push(("objectRef", self.target()));
        }
        let name = self.one_of(&["system:node:n", "alice", "objectRef", "verb"]);
        members.push(("user", self.object(vec![("username", name)])));
        let stamp = self.one_of(&["2026-11-23T22:30:04.1Z", "2026-11-23T22:30:44.1Z", "x"]);
        members.push(("requestReceivedTimestamp", stamp));
        members.push(("stage", self.one_of(&["ResponseComplete", "objectRef", "verb"])));
        if self.choose(3) == 0 {
            let (target, verb) = (self.target(), self.one_of(&["create", "objectRef"]));
            members.push(("requestObject", self.object(vec![("objectRef", target), ("verb", verb)])));
        }
        if self.choose(3) == 0 {
            members
                .push(("userAgent", self.one_of(&["\"objectRef\":{\"resource\":\"pods\"}", "\\\"verb\":\"create\""])));
        }
        self.object(members)
    }
}

fn hands(spaces: &'static [&'static str]) -> impl Strategy<Value = Hand> {
    prop::collection::vec(any::<u8>(), 64..256).prop_map(move |choices| Hand { choices, at: 0, spaces })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4096, ..ProptestConfig::default() })]

    #[test]
    fn no_event_is_let_go_that_the_whole_parse_keeps(mut hand in hands(&["", "", "", " ", "\t", " \r"])) {
        let json = hand.event();
        if decision(&json) == Decision::Irrelevant {
            prop_assert_eq!(kept(&json), None, "{}", json);
        }
        if line_decision(&json) == Decision::Irrelevant {
            prop_assert_eq!(kept(&json), None, "as a line: {}", json);
        }
    }

    #[test]
    fn neighbours_in_a_text_or_body_change_no_decision(mut hand in hands(&["", "", "", " "])) {
        let events: Vec<String> = (0..6).map(|_| hand.event()).collect();
        let mut found = Vec::new();
        let mut filter = Filter::default();
        let lines = filter.lines(events.join("\n").as_bytes(), |line, _| found.push(line.to_vec()));
        prop_assert_eq!(lines, 6);
        let alone = |json: &String| line_decision(json) == Decision::Look;
        let looked: Vec<Vec<u8>> = events.iter().filter(|json| alone(json)).map(|json| json.clone().into_bytes()).collect();
        prop_assert_eq!(&found, &looked);
        prop_assert_eq!(filter.kinds.total() + found.len() as u64, lines);
        let body = format!("[{}]", events.join(" , "));
        let found = Filter::default().body(body.as_bytes()).unwrap();
        for (index, json) in events.iter().enumerate() {
            let place = found.look.iter().find(|place| place.index == index);
            prop_assert!(place.is_some() || kept(json).is_none(), "{}", json);
            if let Some(place) = place {
                prop_assert_eq!(&body[place.begin..place.end], json.as_str());
            }
        }
    }

    #[test]
    fn any_bytes_are_decided_without_panic(bytes: Vec<u8>, json in "[\\[\\]{}\",:\\\\a-c0-9 \n]{0,80}") {
        for text in [&bytes[..], json.as_bytes()] {
            Filter::default().event(text);
            let mut looked_at = 0;
            let mut filter = Filter::default();
                let lines = filter.lines(text, |_, _| looked_at += 1);
            prop_assert_eq!(lines, looked_at + filter.kinds.total());
            Filter::default().body(text);
        }
    }

    #[test]
    fn what_the_walk_calls_an_event_alone_ends_where_json_ends(mut hand in hands(&["", " ", "\n"])) {
        let json = hand.event();
        let followed = format!("{json}x");
        prop_assert_eq!(decision(&followed), Decision::Look);
        serde_json::from_str::<serde::de::IgnoredAny>(&json).unwrap();
    }
}
