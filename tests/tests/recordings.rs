//! The recordings of a real cluster through the agent: every line is understood, every root and entry is the right one.

use std::collections::{BTreeMap, HashSet};

use seclog_proto::v1::{NodeRecord, Verdict, node_record::Detail};
use seclog_tests::recordings;

fn container_name(record: &NodeRecord) -> &str {
    record.container.as_ref().map_or("", |container| container.name.as_str())
}

fn is_probed(record: &NodeRecord) -> bool {
    record.container.as_ref().is_some_and(|container| container.pod_name == "probed")
}

/// First argv, entry, container, and what the members of the tree executed.
type Tree = (String, String, String, Vec<String>);

/// Session roots outside the probed pod.
fn roots(records: &[NodeRecord]) -> Vec<Tree> {
    let mut trees: BTreeMap<(u64, u32), Tree> = BTreeMap::new();
    for record in records.iter().filter(|record| !is_probed(record)) {
        let (Some(Detail::ProcessStart(start)), Some(root)) = (&record.detail, &record.session_root) else { continue };
        let argv = start.argv.join(" ");
        if start.is_session_root {
            let tree = (argv, root.entry.clone(), container_name(record).to_owned(), Vec::new());
            assert!(trees.insert((root.start_boottime_ns, root.pid), tree).is_none(), "one root, made once");
        } else {
            let tree = trees.get_mut(&(root.start_boottime_ns, root.pid));
            assert!(tree.is_some(), "a member after its root");
            tree.into_iter().for_each(|tree| tree.3.push(argv.clone()));
        }
    }
    trees.into_values().collect()
}

#[test]
fn every_recorded_line_is_understood() {
    assert_eq!(recordings::lineage_events().unwrap().0.len(), 1257);
    let audit = recordings::audit_records().unwrap();
    assert_eq!(audit.len(), 150);
    assert!(audit.iter().all(|record| record.arch == 0xc000_003e && record.code == 0x7ffc_0000));
}

#[test]
fn every_root_has_its_entry_its_container_and_its_children() {
    let records = recordings::node_records().unwrap();
    let expected: &[(&str, &str, &str, &[&str])] = &[
        ("sh -c /bin/id; /bin/cat /etc/hostname; exit 3", "exec", "app", &["/bin/id", "/bin/cat /etc/hostname"]),
        ("echo hello world", "exec", "app", &[]),
        ("id", "exec", "sidecar", &[]),
        ("/bin/sh", "exec", "app", &["/bin/ls /", "/bin/sleep 1", "/bin/id -u"]),
        ("sh -c /bin/id -u", "exec", "app", &["/bin/id -u"]),
        ("sh -c /bin/sleep 2; /bin/id", "exec", "app", &["/bin/sleep 2", "/bin/id"]),
        ("sh -c /bin/sleep 2; /bin/id", "exec", "app", &["/bin/sleep 2", "/bin/id"]),
        (
            "/bin/sh -c TERM=\"xterm\" /bin/sh -c \"/bin/id; /bin/ls /\"",
            "exec",
            "app",
            &["/bin/sh -c /bin/id; /bin/ls /", "/bin/id", "/bin/ls /"],
        ),
        // nodes/proxy run and crictl exec -s: by conmon -e, like a probe.
        ("/bin/id", "exec_sync", "app", &[]),
        ("/bin/id", "exec", "app", &[]),
        ("/bin/id", "exec_sync", "app", &[]),
        ("/bin/id", "namespace_entry", "app", &[]),
        ("sh -c (/bin/sleep 3; /bin/ls /) >/dev/null 2>&1 </dev/null &", "exec", "app", &["/bin/sleep 3", "/bin/ls /"]),
        ("/bin/sh -c /bin/id; /bin/sleep 2", "start", "dbg7", &["/bin/id", "/bin/sleep 2"]),
    ];
    let found = roots(&records);
    for (index, (argv, entry, container, children)) in expected.iter().enumerate() {
        let root = &found[index];
        assert_eq!(
            (root.0.as_str(), root.1.as_str(), root.2.as_str(), root.3.iter().map(String::as_str).collect::<Vec<_>>()),
            (*argv, *entry, *container, children.to_vec()),
            "root {index}"
        );
    }
    // Then the accesses under the webhook: every root still has one entry of those kinds.
    assert_eq!(found.len(), 25, "{found:#?}");
    let last = &found[found.len() - 1];
    assert!(last.0.starts_with("env SPO_EXEC_REQUEST_UID=a2273817-91fd-4346-ae9a-bbc3cd7ef02a sh -c"));
    assert_eq!(last.3.len(), 4, "env's re-execution, id, ls and cat belong to the root of the forged child");
}

#[test]
fn probes_come_in_by_exec_sync_and_nothing_else_does_in_their_pod() {
    let records = recordings::node_records().unwrap();
    let entries: HashSet<&str> = records
        .iter()
        .filter(|record| is_probed(record))
        .filter_map(|record| record.session_root.as_ref())
        .map(|root| root.entry.as_str())
        .collect();
    assert_eq!(entries, HashSet::from(["exec_sync"]));
}

#[test]
fn every_recorded_verdict_is_pinned_to_its_process_and_completed() {
    let records = recordings::node_records().unwrap();
    let verdicts: Vec<(&NodeRecord, &Verdict)> = records
        .iter()
        .filter_map(|record| match &record.detail {
            Some(Detail::Verdict(verdict)) => Some((record, verdict)),
            _ => None,
        })
        .collect();
    assert_eq!(verdicts.len(), 150);
    let starts: HashSet<&str> = records
        .iter()
        .filter(|record| matches!(record.detail, Some(Detail::ProcessStart(_))))
        .map(|record| record.id.as_str())
        .collect();
    let mut targets = HashSet::new();
    for (record, verdict) in &verdicts {
        assert_ne!(record.start_boottime_ns, 0, "{} is pinned", record.id);
        if verdict.outcome == "executed" {
            assert!(starts.contains(verdict.target_id.as_str()), "{} names a start that was reported", record.id);
            assert!(targets.insert(&verdict.target_id), "{} is completed by an exec of its own", record.id);
        }
    }
    // The one program that does not exist: a shell's child tried it and ended with 127. After every other attempt the trace
    // has an exec of the same process within 15 milliseconds.
    let failed: Vec<(u32, &str)> = verdicts
        .iter()
        .filter(|(_, verdict)| verdict.outcome == "failed")
        .map(|(record, _)| (record.pid, record.comm.as_str()))
        .collect();
    assert_eq!(failed, [(11_578, "sh")]);
    assert!(verdicts.iter().all(|(_, verdict)| verdict.outcome != "unknown"));
}
