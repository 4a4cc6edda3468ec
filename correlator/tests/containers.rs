//! What nodes know of containers: late names, what a container was started with, and what left its session.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test says no more by handling them")]

mod support;

use seclog_correlator::join::session::{Evidence, Session};
use seclog_correlator::join::{Config, Input, Join};
use seclog_proto::v1::node_record::Detail;
use seclog_proto::v1::{Amendment, Container, ContainerFacts, NodeRecord};
use support::scene::{BASE, Kept, MS, SECOND, ask, nameless, tree};

const UID: &str = "1b4e28ba-2fa1-11d2-883f-0016d3cca427";

fn joined(inputs: impl IntoIterator<Item = Input>) -> Vec<Session> {
    let mut join = Join::new(Config::new("guest"));
    let mut kept = Kept::default();
    for input in inputs {
        kept.take(join.apply(input));
    }
    kept.take(join.finish());
    kept.sessions()
}

/// What the agent sends when the runtime has answered at last.
fn amendment(own_environment: &[String]) -> Input {
    let facts = ContainerFacts {
        privileged: "no".into(),
        seccomp_profile: "Unconfined".into(),
        logs_exec: "no".into(),
        own_environment: own_environment.to_vec(),
        own_environment_known: true,
    };
    let detail = Amendment { container_facts: Some(facts), ..Amendment::default() };
    Input::Node {
        node: "node-1".into(),
        record: NodeRecord {
            id: "boot:1:n1".into(),
            time_unix_ns: BASE + 5 * SECOND,
            container: Some(Container {
                id: format!("{:0>64}", "app"),
                pod_uid: "uid-web".into(),
                pod_name: "web".into(),
                pod_namespace: "shop".into(),
                name: "app".into(),
                names: "state".into(),
                ..Default::default()
            }),
            detail: Some(Detail::Amendment(detail)),
            ..Default::default()
        },
    }
}

/// Changes each program start.
fn with_starts(inputs: Vec<Input>, change: impl Fn(&mut seclog_proto::v1::ProcessStart)) -> Vec<Input> {
    let each = |input| match input {
        Input::Node { node, mut record } => {
            if let Some(Detail::ProcessStart(start)) = &mut record.detail {
                change(start);
            }
            Input::Node { node, record }
        }
        other => other,
    };
    inputs.into_iter().map(each).collect()
}

#[test]
fn an_amendment_names_records_that_came_before_it_in_whatever_order() {
    let nameless_tree = || tree(100, &["sh"], BASE + 200 * MS).inputs().into_iter().map(nameless);
    let before: Vec<Input> = ask("alice", &["sh"], BASE).stages();
    let after = joined(before.into_iter().chain(nameless_tree()).chain([amendment(&[])]));
    let first = joined([amendment(&[])].into_iter().chain(nameless_tree()).chain(ask("alice", &["sh"], BASE).stages()));
    for sessions in [after, first] {
        assert_eq!(sessions.len(), 1, "{sessions:#?}");
        assert_eq!(sessions[0].evidence, Evidence::Unique);
        assert_eq!(sessions[0].place.container.as_deref(), Some("app"));
        let coverage = &sessions[0].coverage;
        assert!(coverage.iter().any(|note| note.contains("no seccomp filter")), "{coverage:?}");
    }
}

#[test]
fn a_value_of_the_containers_own_environment_identifies_nobody() {
    let variable = format!("SPO_EXEC_REQUEST_UID={UID}");
    let marked = ["env", variable.as_str(), "sh"];
    let inputs = |own: &[String]| {
        let mut inputs = ask("alice", &["sh"], BASE).uid(UID).stages();
        inputs.extend(tree(100, &marked, BASE + 200 * MS).inputs());
        inputs.push(amendment(own));
        inputs
    };
    assert_eq!(joined(inputs(&[]))[0].evidence, Evidence::Exact);
    let sessions = joined(inputs(std::slice::from_ref(&variable)));
    assert!(sessions.iter().all(|session| session.evidence != Evidence::Exact), "{sessions:#?}");
}

#[test]
fn identifiers_in_a_roots_environment_are_claims_and_inherited_ones_are_nobodys() {
    let variable = format!("KUBERNETES_EXEC_AUDIT_ID={UID}");
    let sessions = |own: &[String]| {
        let tree = tree(100, &["sh"], BASE + 200 * MS).inputs();
        let tree = with_starts(tree, |start| start.environment = vec![variable.clone()]);
        let mut inputs = ask("alice", &["sh"], BASE).stages();
        inputs.extend(tree);
        inputs.push(amendment(own));
        joined(inputs)
    };
    let claimed = sessions(&[]);
    assert!(claimed[0].claims[0].contains("proves nothing"), "{:?}", claimed[0].claims);
    assert!(sessions(std::slice::from_ref(&variable))[0].claims.is_empty());
}

#[test]
fn a_program_in_anothers_mount_namespace_is_a_finding_and_stays_in_its_session() {
    let inputs = with_starts(tree(100, &["sh"], BASE + 200 * MS).inputs(), |start| {
        if !start.is_session_root {
            start.entered_container_id = "host".into();
        }
    });
    let sessions = joined(ask("alice", &["sh"], BASE).stages().into_iter().chain(inputs));
    let found = sessions[0].findings.iter().find(|finding| finding.code.as_str() == "namespace-entered").unwrap();
    assert!(found.text.contains("the host"), "{found:?}");
    assert_eq!(sessions[0].ran.len(), 2);
}

#[test]
fn what_may_have_come_of_a_daemon_is_named_as_possible_and_never_asserted() {
    let debug = || {
        with_starts(tree(100, &["sh"], BASE).container("debugger").entry("start").inputs(), |start| {
            if !start.is_session_root {
                start.filename = "/usr/bin/crictl".into();
                start.entered_container_id = "host".into();
            }
        })
    };
    let entry = || tree(500, &["id"], BASE + 2 * SECOND).inputs();
    // In both orders of arrival.
    for inputs in [debug().into_iter().chain(entry()), entry().into_iter().chain(debug())] {
        let sessions = joined(inputs);
        let entered = sessions.iter().find(|session| session.evidence == Evidence::NodeOnly).unwrap();
        assert!(
            entered
                .reasons
                .iter()
                .any(|reason| reason.starts_with("possible, not proven: ") && reason.contains("crictl")),
            "{:?}",
            entered.reasons
        );
        assert!(entered.user.is_none());
    }
}

#[test]
fn by_the_same_rules_on_both_sides_masked_command_lines_still_belong_together() {
    let asked = ["mysql", "--password", "s3cret"];
    let masked = ["mysql", "--password", "***"];
    let joined_by = |rules: &str, ran: &[&str]| {
        let masking = Some(std::sync::Arc::new(seclog_masking::Rules::parse(rules).unwrap()));
        let mut join = Join::new(Config { masking, ..Config::new("guest") });
        let mut kept = Kept::default();
        let inputs = ask("alice", &asked, BASE).stages().into_iter().chain(tree(100, ran, BASE + 200 * MS).inputs());
        inputs.for_each(|input| kept.take(join.apply(input)));
        kept.take(join.finish());
        kept.sessions()
    };
    let sessions = joined_by("key --password", &masked);
    assert_eq!(sessions.len(), 1);
    assert_eq!(sessions[0].evidence, Evidence::Unique);
    let told = serde_json::to_string(&sessions[0]).unwrap();
    assert!(!told.contains("s3cret"), "{told}");
    // Without rules here, what ran masked there is another command.
    assert_eq!(joined_by("", &masked).len(), 2);
    assert_eq!(joined_by("", &asked).len(), 1);
}
