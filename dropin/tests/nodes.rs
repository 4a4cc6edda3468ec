//! Node roots, and exactly what the check finds in each.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test says no more by handling them")]

mod common;

use common::{DROPIN, LOGGING, Node, PROFILE};

const RECIPE: &str = "[crio.runtime]\nseccomp_use_default_when_empty = false\n\n[crio.runtime.runtimes.runc]\nallowed_annotations = [\n    \"io.containers.trace-syscall\",\n]\n";
const RECIPE_PATH: &str = "/etc/crio/crio.conf.d/99-seccomp-logging.conf";
const D: &str = "/etc/crio/crio.conf.d";

/// Said of every node with only the privileged half configured.
const QUIET_WORKLOAD: &str = "note workload-not-logged";

fn runtime(line: &str) -> String {
    format!("[crio.runtime]\n{line}\n")
}

fn profile(rest: &str) -> String {
    format!(r#"{{"defaultAction":"SCMP_ACT_ALLOW","archMap":[{{"architecture":"SCMP_ARCH_X86_64"}}],{rest}}}"#)
}

fn spec(namespace: &str, seccomp: &str) -> String {
    format!(
        r#"{{"annotations":{{"io.kubernetes.cri-o.ContainerType":"container","io.kubernetes.pod.namespace":"{namespace}","io.kubernetes.pod.name":"web","io.kubernetes.container.name":"app"}},"linux":{{"maskedPaths":["/proc/acpi"]{seccomp}}}}}"#
    )
}

fn privileged_spec(seccomp: &str) -> String {
    format!(
        r#"{{"annotations":{{"io.kubernetes.pod.namespace":"kube-system","io.kubernetes.pod.name":"cni"}},"process":{{"capabilities":{{"bounding":["CAP_SYS_ADMIN"]}}}},"linux":{{"maskedPaths":[]{seccomp}}}}}"#
    )
}

fn check(cases: Vec<(&str, Node, Vec<&str>)>) {
    for (name, node, expected) in cases {
        assert_eq!(node.findings(), expected, "{name}");
    }
}

#[test]
fn good_nodes_have_no_problem_on_any_version() {
    for minor in 27..=32 {
        let workload = seclog_dropin::profile::workload(
            seclog_dropin::version::CrioVersion { minor },
            &["execve".into(), "execveat".into()],
        )
        .unwrap();
        let node = Node::openshift(minor)
            .file(DROPIN, runtime("seccomp_profile = \"/etc/crio/seccomp/w.json\""))
            .file("/etc/crio/seccomp/w.json", workload.json);
        assert_eq!(node.findings(), ["note privileged-unsupported"], "1.{minor}");
        assert_eq!(node.report().verdict.exit_code(), 0);
    }
    for minor in 33..=37 {
        let node = Node::openshift(minor).with_dropin();
        assert_eq!(node.findings(), [QUIET_WORKLOAD], "1.{minor}");
        assert_eq!(node.report().verdict.exit_code(), 0);
    }
}

#[test]
fn the_recipes_own_drop_in_is_judged_per_version() {
    for minor in 27..=37 {
        let found = Node::openshift(minor).file(RECIPE_PATH, RECIPE).findings();
        let mut expected = Vec::new();
        if minor <= 29 {
            expected.push("error default-weakened 99-seccomp-logging.conf:2");
        }
        expected.push("error dropin-missing 99-seccomp-logging.conf");
        if minor >= 29 {
            expected.push("error handler-replaced 99-seccomp-logging.conf:4");
        }
        if minor >= 30 {
            expected.push("warning option-removed 99-seccomp-logging.conf:2");
        }
        if minor >= 31 {
            expected.push("warning handler-not-default 99-seccomp-logging.conf:4");
        }
        if minor < 33 {
            expected.push("note privileged-unsupported");
        }
        expected.push("note trace-syscall-annotation 99-seccomp-logging.conf:5");
        assert_eq!(found, expected, "1.{minor}");
    }
}

#[test]
fn options_that_crio_does_not_read_where_they_stand() {
    check(vec![
        (
            "the option before its version",
            Node::openshift(32).file(DROPIN, runtime(&format!("privileged_seccomp_profile = \"{PROFILE}\""))),
            vec![
                "error option-too-new 60-seccomp-audit.conf:2",
                "error dropin-missing 60-seccomp-audit.conf",
                "note privileged-unsupported",
            ],
        ),
        (
            "the header forgotten",
            Node::openshift(33)
                .file(DROPIN, format!("privileged_seccomp_profile = \"{PROFILE}\"\n"))
                .file(PROFILE, LOGGING),
            vec!["error option-misplaced 60-seccomp-audit.conf:1", "error dropin-missing 60-seccomp-audit.conf"],
        ),
        (
            "the option in a handler's table",
            Node::openshift(33).with_dropin().file(
                &format!("{D}/70.conf"),
                "[crio.runtime.runtimes.kata]\nruntime_path = \"/usr/bin/runc\"\nprivileged_seccomp_profile = \"/x\"\n",
            ),
            vec!["error option-misplaced 70.conf:3", QUIET_WORKLOAD],
        ),
        (
            "a misspelt option",
            Node::openshift(33).file(DROPIN, runtime("privileged_seccomp_profil = \"/x\"")),
            vec!["error dropin-missing 60-seccomp-audit.conf", "warning option-unknown 60-seccomp-audit.conf:2"],
        ),
        (
            "an unknown option that has nothing to do with it",
            Node::openshift(33).with_dropin().file(&format!("{D}/70.conf"), runtime("nonsense = 1")),
            vec!["note option-unknown 70.conf:2", QUIET_WORKLOAD],
        ),
        (
            "a handler's own profile before 1.34",
            Node::openshift(33).with_dropin().file(
                &format!("{D}/70.conf"),
                "[crio.runtime.runtimes.kata]\nruntime_path = \"/usr/bin/runc\"\nseccomp_profile = \"/x\"\n",
            ),
            vec!["error option-too-new 70.conf:3", QUIET_WORKLOAD],
        ),
    ]);
}

#[test]
fn files_that_crio_cannot_read() {
    check(vec![
        (
            "no TOML",
            Node::openshift(33).with_dropin().file(&format!("{D}/70.conf"), "[crio.runtime\n"),
            vec!["error config-syntax 70.conf:1", QUIET_WORKLOAD],
        ),
        (
            "binary junk",
            Node::openshift(33).with_dropin().file(&format!("{D}/70.conf"), [0xff, 0xfe, 0x00, 0x9b, 0x0a]),
            vec!["error config-unreadable 70.conf", QUIET_WORKLOAD],
        ),
        (
            "NUL bytes that are UTF-8",
            Node::openshift(33).with_dropin().file(&format!("{D}/70.conf"), "\0\0\0"),
            vec!["error config-syntax 70.conf:1", QUIET_WORKLOAD],
        ),
        (
            "a wrong type",
            Node::openshift(33).with_dropin().file(&format!("{D}/70.conf"), runtime("hooks_dir = \"/x\"")),
            vec!["error config-type 70.conf:2", QUIET_WORKLOAD],
        ),
        (
            "a symbolic link in a circle",
            Node::openshift(33).with_dropin().link(&format!("{D}/70.conf"), "70.conf"),
            vec!["error config-unreadable 70.conf", QUIET_WORKLOAD],
        ),
        (
            "a link to nowhere",
            Node::openshift(33).with_dropin().link(&format!("{D}/70.conf"), "/etc/gone"),
            vec!["error config-unreadable 70.conf", QUIET_WORKLOAD],
        ),
        (
            "a link to a directory",
            Node::openshift(33).with_dropin().dir("/etc/other").link(&format!("{D}/70"), "/etc/other"),
            vec!["error config-unreadable 70", QUIET_WORKLOAD],
        ),
        (
            "a link out of the root is taken inside it",
            Node::openshift(33).with_dropin().link(&format!("{D}/70.conf"), "../../../../../../etc/passwd"),
            vec!["error config-unreadable 70.conf", QUIET_WORKLOAD],
        ),
        (
            "a huge file",
            Node::openshift(33).with_dropin().file(&format!("{D}/70.conf"), vec![b'#'; 3 << 20]),
            vec!["unknown config-limit 70.conf", QUIET_WORKLOAD],
        ),
        (
            "the directory is a link, which CRI-O does not follow",
            Node::openshift(33)
                .file("/etc/elsewhere/10.conf", runtime("log_level = \"info\""))
                .without(D)
                .file("/etc/crio/crio.conf", runtime(&format!("privileged_seccomp_profile = \"{PROFILE}\"")))
                .file(PROFILE, LOGGING)
                .link(D, "/etc/elsewhere"),
            vec!["error config-unreadable /etc/crio/crio.conf.d", QUIET_WORKLOAD],
        ),
        (
            "a file writable by everybody",
            Node::openshift(33).with_dropin().mode(DROPIN, 0o666),
            vec!["warning profile-permissions 60-seccomp-audit.conf", QUIET_WORKLOAD],
        ),
    ]);
}

#[test]
fn more_files_than_a_node_has_are_not_read_to_the_end() {
    let mut node = Node::openshift(33).with_dropin();
    for n in 0..300 {
        node = node.file(&format!("{D}/70-{n}.conf"), "");
    }
    assert_eq!(node.findings(), ["unknown config-limit", QUIET_WORKLOAD]);
    assert_eq!(node.report().verdict.exit_code(), 2);
    let mut deep = Node::openshift(33).with_dropin();
    deep = deep.file(&format!("{D}/{}x.conf", "d/".repeat(40)), "");
    assert_eq!(deep.findings(), ["unknown config-limit", QUIET_WORKLOAD]);
}

#[test]
fn the_order_of_files_decides() {
    check(vec![
        (
            "a later file takes the option back",
            Node::openshift(33)
                .with_dropin()
                .file(&format!("{D}/99.conf"), runtime("privileged_seccomp_profile = \"\"")),
            vec!["error dropin-missing 60-seccomp-audit.conf", "error dropin-overridden 99.conf:2"],
        ),
        (
            "a backup overrides the file it was made of",
            Node::openshift(33)
                .with_dropin()
                .file(&format!("{DROPIN}.bak"), runtime("privileged_seccomp_profile = \"/etc/crio/seccomp/old.json\""))
                .file("/etc/crio/seccomp/old.json", LOGGING),
            vec![
                "warning config-stray-file 60-seccomp-audit.conf.bak",
                "warning dropin-overridden 60-seccomp-audit.conf.bak:2",
                QUIET_WORKLOAD,
            ],
        ),
        (
            "a file in a subdirectory counts, at the directory's place",
            Node::openshift(33)
                .with_dropin()
                .file(&format!("{D}/50/x"), runtime("privileged_seccomp_profile = \"/gone.json\"")),
            vec!["warning dropin-overridden 60-seccomp-audit.conf:2", QUIET_WORKLOAD],
        ),
        (
            "crio.conf is read first",
            Node::openshift(33)
                .with_dropin()
                .file("/etc/crio/crio.conf", runtime("privileged_seccomp_profile = \"/gone.json\"")),
            vec!["warning dropin-overridden 60-seccomp-audit.conf:2", QUIET_WORKLOAD],
        ),
        (
            "keys in another case are the same keys",
            Node::openshift(33)
                .file(DROPIN, format!("[Crio.Runtime]\nPrivileged_Seccomp_Profile = \"{PROFILE}\"\n"))
                .file(PROFILE, LOGGING),
            vec![QUIET_WORKLOAD],
        ),
    ]);
}

#[test]
fn handler_tables() {
    check(vec![
        (
            "the recipe's mistake mended to crun is worse",
            Node::openshift(33).with_dropin().file(
                &format!("{D}/99.conf"),
                "[crio.runtime.runtimes.crun]\nallowed_annotations = [\"io.containers.trace-syscall\"]\n",
            ),
            vec!["error handler-replaced 99.conf:1", QUIET_WORKLOAD, "note trace-syscall-annotation 99.conf:2"],
        ),
        (
            "a whole table repeated loses nothing",
            Node::openshift(33).with_dropin().file(
                &format!("{D}/99.conf"),
                "[crio.runtime.runtimes.crun]\nruntime_root = \"/run/crun\"\nallowed_annotations = [\"io.kubernetes.cri-o.Devices\", \"io.kubernetes.cri-o.LinkLogs\", \"io.containers.trace-syscall\"]\ncontainer_min_memory = \"512KiB\"\ndefault_annotations = {\"run.oci.systemd.subgroup\" = \"\"}\n",
            ),
            vec![QUIET_WORKLOAD, "note trace-syscall-annotation 99.conf:3"],
        ),
        (
            "a workload's table replaced",
            Node::openshift(33).with_dropin().file(&format!("{D}/99.conf"), "[crio.runtime.workloads.openshift-builder]\nactivation_annotation = \"x\"\n"),
            vec!["warning workload-replaced 99.conf:1", QUIET_WORKLOAD],
        ),
        (
            "a default without a table",
            Node::openshift(33).with_dropin().file(&format!("{D}/99.conf"), runtime("default_runtime = \"kata\"")),
            vec!["error handler-undefined 99.conf:2", QUIET_WORKLOAD],
        ),
        (
            "runc by default again makes a runc table effective",
            Node::openshift(33)
                .with_dropin()
                .file(&format!("{D}/01-ctrcfg-defaultRuntime"), runtime("default_runtime = \"runc\""))
                .file(&format!("{D}/99.conf"), "[crio.runtime.runtimes.runc]\nruntime_root = \"/run/runc\"\n"),
            vec!["error handler-replaced 99.conf:1", QUIET_WORKLOAD],
        ),
        (
            "no runc on the node, declared by OpenShift itself",
            Node::openshift(36).with_dropin().without("/usr/bin/runc"),
            vec![QUIET_WORKLOAD, "note handler-binary-missing 00-default:18"],
        ),
        (
            "no runc on the node, declared by a drop-in",
            Node::openshift(36).with_dropin().without("/usr/bin/runc").file(RECIPE_PATH, RECIPE),
            vec![
                "error handler-replaced 99-seccomp-logging.conf:4",
                "warning option-removed 99-seccomp-logging.conf:2",
                "warning handler-not-default 99-seccomp-logging.conf:4",
                "warning handler-binary-missing 99-seccomp-logging.conf:4",
                QUIET_WORKLOAD,
                "note trace-syscall-annotation 99-seccomp-logging.conf:5",
            ],
        ),
        (
            "the default's program missing",
            Node::openshift(33).with_dropin().without("/usr/bin/crun"),
            vec!["error handler-binary-missing 00-default:26", QUIET_WORKLOAD],
        ),
        (
            "a new annotation name on an old CRI-O, at the default handler",
            Node::openshift(34).with_dropin().file(
                &format!("{D}/99.conf"),
                "[crio.runtime.runtimes.crun]\nruntime_root = \"/run/crun\"\nallowed_annotations = [\"io.kubernetes.cri-o.Devices\", \"io.kubernetes.cri-o.LinkLogs\", \"io.containers.trace-syscall\", \"devices.crio.io\"]\ncontainer_min_memory = \"512KiB\"\ndefault_annotations = {\"run.oci.systemd.subgroup\" = \"\"}\n",
            ),
            vec![
                "error handler-annotation-invalid 99.conf:3",
                QUIET_WORKLOAD,
                "note trace-syscall-annotation 99.conf:3",
            ],
        ),
        (
            "an annotation nobody knows, at another handler",
            Node::openshift(37).with_dropin().file(
                &format!("{D}/99.conf"),
                "[crio.runtime.runtimes.kata]\nruntime_path = \"/usr/bin/runc\"\nallowed_annotations = [\"x\"]\n",
            ),
            vec!["warning handler-annotation-invalid 99.conf:3", QUIET_WORKLOAD],
        ),
        (
            "a runc handler without a root of its own",
            Node::empty()
                .file("/run/crio/version", "1.33.0")
                .file(&format!("{D}/10.conf"), "[crio.runtime.runtimes.runc]\nruntime_path = \"/usr/bin/runc\"\n[crio.runtime.runtimes.crun]\n")
                .expect(false, false),
            vec![
                "error dropin-missing",
                "warning handler-root 10.conf:1",
                "unknown hooks-unknown",
                "unknown containers-unknown",
            ],
        ),
        (
            "a handler's own profile wins over the global one",
            Node::openshift(34)
                .with_dropin()
                .file(&format!("{D}/70.conf"), "[crio.runtime]\nseccomp_profile = \"/etc/crio/seccomp/w.json\"\n[crio.runtime.runtimes.kata]\nruntime_path = \"/usr/bin/runc\"\nseccomp_profile = \"/etc/crio/seccomp/k.json\"\n")
                .file("/etc/crio/seccomp/w.json", LOGGING.replace("SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO"))
                .file("/etc/crio/seccomp/k.json", LOGGING.replace("SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO")),
            vec!["warning handler-profile-wins 70.conf:5"],
        ),
    ]);
}

#[test]
fn profile_files() {
    let with = |json: &str| Node::openshift(33).privileged_profile(json);
    let at = |path: &str| {
        Node::openshift(33)
            .file(DROPIN, runtime(&format!("privileged_seccomp_profile = \"{path}\"")))
            .file(path, LOGGING)
    };
    check(vec![
        (
            "the file is missing and bricks every privileged pod",
            Node::openshift(33).with_dropin().without(PROFILE),
            vec!["error privileged-profile-missing 60-seccomp-audit.conf:2", QUIET_WORKLOAD],
        ),
        (
            "the operator's file, which a fresh node does not have",
            at("/var/lib/kubelet/seccomp/operator/profile1.json"),
            vec!["error profile-path-volatile 60-seccomp-audit.conf:2", QUIET_WORKLOAD],
        ),
        (
            "a file that a reboot takes away",
            at("/run/seccomp.json"),
            vec!["error profile-path-volatile 60-seccomp-audit.conf:2", QUIET_WORKLOAD],
        ),
        (
            "a relative path",
            Node::openshift(33).file(DROPIN, runtime("privileged_seccomp_profile = \"seccomp.json\"")),
            vec![
                "error privileged-profile-missing 60-seccomp-audit.conf:2",
                "error profile-path-relative 60-seccomp-audit.conf:2",
                QUIET_WORKLOAD,
            ],
        ),
        (
            "no JSON",
            with("{\n\"defaultAction\":\n"),
            vec!["error profile-syntax privileged-audit.json:3", QUIET_WORKLOAD],
        ),
        (
            "an action nobody knows",
            with(&profile(r#""syscalls":[{"names":["execve"],"action":"SCMP_ACT_LOGG"}]"#)),
            vec!["error profile-syntax privileged-audit.json", QUIET_WORKLOAD],
        ),
        (
            "nothing logged",
            with(&profile(r#""syscalls":[]"#)),
            vec!["error profile-logs-nothing privileged-audit.json", QUIET_WORKLOAD],
        ),
        (
            "something logged, but not exec",
            with(&profile(r#""syscalls":[{"names":["getpid"],"action":"SCMP_ACT_LOG"}]"#)),
            vec!["error profile-misses-exec privileged-audit.json", QUIET_WORKLOAD],
        ),
        (
            "clone without its siblings",
            with(&profile(r#""syscalls":[{"names":["execve","execveat","clone","fork"],"action":"SCMP_ACT_LOG"}]"#)),
            vec!["warning profile-partial privileged-audit.json", QUIET_WORKLOAD],
        ),
        (
            "a privileged profile that denies by default",
            with(
                &profile(r#""syscalls":[{"names":["execve","execveat"],"action":"SCMP_ACT_LOG"}]"#)
                    .replace("SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO"),
            ),
            vec!["error privileged-profile-denies privileged-audit.json", QUIET_WORKLOAD],
        ),
        (
            "a privileged profile that denies one call",
            with(&profile(
                r#""syscalls":[{"names":["execve","execveat"],"action":"SCMP_ACT_LOG"},{"names":["mount"],"action":"SCMP_ACT_ERRNO"}]"#,
            )),
            vec!["error privileged-profile-denies privileged-audit.json", QUIET_WORKLOAD],
        ),
        (
            "everything logged",
            with(&profile(r#""syscalls":[]"#).replace("SCMP_ACT_ALLOW", "SCMP_ACT_LOG")),
            vec!["warning profile-logs-all privileged-audit.json", QUIET_WORKLOAD],
        ),
        (
            "two actions for one call",
            with(&profile(
                r#""syscalls":[{"names":["execve","execveat"],"action":"SCMP_ACT_LOG"},{"name":"execve","action":"SCMP_ACT_ALLOW"}]"#,
            )),
            vec!["warning profile-conflict privileged-audit.json", QUIET_WORKLOAD],
        ),
        (
            "no architectures",
            with(
                r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["execve","execveat"],"action":"SCMP_ACT_LOG"}]}"#,
            ),
            vec!["note workload-not-logged", "note profile-native-arch privileged-audit.json"],
        ),
        (
            "binary junk as profile",
            Node::openshift(33).with_dropin().file(PROFILE, [0xde, 0xad, 0xbe, 0xef]),
            vec!["error profile-unreadable privileged-audit.json", QUIET_WORKLOAD],
        ),
        (
            "a link in a circle as profile",
            Node::openshift(33).with_dropin().without(PROFILE).link(PROFILE, "privileged-audit.json"),
            vec!["error profile-unreadable privileged-audit.json", QUIET_WORKLOAD],
        ),
        (
            "a profile that its group may write",
            Node::openshift(33).with_dropin().mode(PROFILE, 0o664),
            vec!["warning profile-permissions privileged-audit.json", QUIET_WORKLOAD],
        ),
        (
            "the profile for ordinary pods missing",
            Node::openshift(31).file(DROPIN, runtime("seccomp_profile = \"/etc/crio/seccomp/w.json\"")),
            vec!["error runtime-profile-missing 60-seccomp-audit.conf:2", "note privileged-unsupported"],
        ),
        (
            "an ALLOW-all profile for ordinary pods",
            Node::openshift(31)
                .file(DROPIN, runtime("seccomp_profile = \"/etc/crio/seccomp/w.json\""))
                .file("/etc/crio/seccomp/w.json", LOGGING),
            vec!["error runtime-profile-weakens w.json", "note privileged-unsupported"],
        ),
        (
            "a default profile that allows clone3 to everybody",
            Node::openshift(31).file(DROPIN, runtime("seccomp_profile = \"/etc/crio/seccomp/w.json\"")).file(
                "/etc/crio/seccomp/w.json",
                LOGGING
                    .replace("SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO")
                    .replace("\"execveat\"", "\"execveat\",\"clone\",\"clone3\",\"fork\",\"vfork\""),
            ),
            vec!["warning runtime-profile-weakens w.json", "note privileged-unsupported"],
        ),
    ]);
}

#[test]
fn the_service_around_crio() {
    let flag = "CRIO_CONFIG_OPTIONS=\"--privileged-seccomp-profile=/x\"\n";
    check(vec![
        (
            "a flag that the next reload drops",
            Node::openshift(33).with_dropin().file("/etc/sysconfig/crio", flag),
            vec!["warning sysconfig-flag /etc/sysconfig/crio:1", QUIET_WORKLOAD],
        ),
        (
            "the documented line without its equals sign",
            Node::openshift(33)
                .with_dropin()
                .file("/etc/sysconfig/crio", "# x\nCRIO_CONFIG_OPTIONS --privileged-seccomp-profile=/x\n"),
            vec![
                "warning sysconfig-flag /etc/sysconfig/crio:2",
                "warning sysconfig-line /etc/sysconfig/crio:2",
                QUIET_WORKLOAD,
            ],
        ),
        (
            "an environment variable in a unit's drop-in",
            Node::openshift(33).with_dropin().file(
                "/etc/systemd/system/crio.service.d/10.conf",
                "[Service]\nEnvironment=CONTAINER_PRIVILEGED_SECCOMP_PROFILE=/x\n",
            ),
            vec!["warning sysconfig-flag /etc/systemd/system/crio.service.d/10.conf:2", QUIET_WORKLOAD],
        ),
        (
            "files that changed after CRI-O started",
            Node::openshift(33).with_dropin().crio_started(2_000_000),
            vec![
                "warning changed-since-start 00-default",
                "warning changed-since-start 60-seccomp-audit.conf",
                QUIET_WORKLOAD,
            ],
        ),
        ("files older than CRI-O", Node::openshift(33).with_dropin().crio_started(4_000_000_000), vec![QUIET_WORKLOAD]),
    ]);
}

#[test]
fn kernel_and_audit() {
    let good = || Node::openshift(33).with_dropin();
    check(vec![
        (
            "log taken out of actions_logged",
            good().file("/proc/sys/kernel/seccomp/actions_logged", "kill_process kill_thread trap errno trace\n"),
            vec!["error actions-logged /proc/sys/kernel/seccomp/actions_logged", QUIET_WORKLOAD],
        ),
        (
            "a kernel without the action",
            good().file("/proc/sys/kernel/seccomp/actions_avail", "kill trap errno trace allow\n"),
            vec!["error seccomp-unavailable /proc/sys/kernel/seccomp/actions_avail", QUIET_WORKLOAD],
        ),
        (
            "audit=0, with a hook that sees verdicts all the same",
            good().file("/proc/cmdline", "rw audit=1 audit=0\n"),
            vec!["warning audit-off /proc/cmdline", QUIET_WORKLOAD],
        ),
        (
            "audit=0 and no hook",
            good().file("/proc/cmdline", "rw audit=0\n").without("/sys/kernel/btf/vmlinux"),
            vec!["error audit-off /proc/cmdline", "warning hooks-missing", QUIET_WORKLOAD],
        ),
        ("audit=0 taken back", good().file("/proc/cmdline", "audit=0 audit=1\n"), vec![QUIET_WORKLOAD]),
        ("no auditd", good().without("/proc/700"), vec![QUIET_WORKLOAD, "note auditd-absent"]),
        (
            "a rule that excludes the records",
            good().file("/etc/audit/rules.d/x.rules", "-D\n-a always,exclude -F msgtype=SECCOMP\n"),
            vec![QUIET_WORKLOAD, "note audit-rule-excludes /etc/audit/rules.d/x.rules:2"],
        ),
        (
            "a rule that excludes others",
            good().file(
                "/etc/audit/rules.d/mco-audit-quiet-containers.rules",
                "-a exclude,always -F msgtype=NETFILTER_CFG\n",
            ),
            vec![QUIET_WORKLOAD],
        ),
        ("kernel symbols hidden", good().without("/proc/kallsyms"), vec!["unknown hooks-unknown", QUIET_WORKLOAD]),
    ]);
}

#[test]
fn running_containers() {
    let logging = format!(r#","seccomp":{LOGGING}"#);
    let node = Node::openshift(33)
        .with_dropin()
        .container("aa", 901, &spec("shop", &logging))
        .container("bb", 902, &spec("shop", ""))
        .container("cc", 903, &spec("shop", r#","seccomp":{"defaultAction":"?"}"#))
        .container("dd", 904, &spec("other", &logging))
        .container("ee", 905, &privileged_spec(""))
        .container("ff", 906, "{ no JSON");
    assert_eq!(node.findings(), [QUIET_WORKLOAD, "note containers-not-logging", "note containers-older"]);
    let coverage: Vec<_> =
        node.report().containers.into_iter().map(|c| (c.namespace, c.logs, c.does_not_log, c.unknown)).collect();
    assert_eq!(
        coverage,
        [
            (String::new(), 0, 0, 1),
            ("kube-system".into(), 0, 1, 0),
            ("other".into(), 1, 0, 0),
            ("shop".into(), 1, 1, 1),
        ]
    );
    let gone = Node::openshift(33).with_dropin().container("aa", 901, &spec("shop", "")).without("/proc/901");
    assert_eq!(gone.report().containers, [], "what has ended is not counted");
}

#[test]
fn the_recorded_specification_logs() {
    let spec = include_str!("fixtures/oci-config.json");
    let node = Node::openshift(37).with_dropin().container("beb1", 901, spec);
    let report = node.report();
    let found: Vec<_> = report.containers.iter().map(|c| (c.namespace.as_str(), c.logs, c.does_not_log)).collect();
    assert_eq!(found, [("shop", 1, 0)]);
}

#[test]
fn mixtures_and_nodes_that_cannot_be_checked() {
    check(vec![
        (
            "recipe, right drop-in with a missing profile, backup and audit=0",
            Node::openshift(33)
                .with_dropin()
                .without(PROFILE)
                .file(RECIPE_PATH, RECIPE)
                .file(&format!("{RECIPE_PATH}~"), "")
                .file("/proc/cmdline", "audit=0"),
            vec![
                "error handler-replaced 99-seccomp-logging.conf:4",
                "error privileged-profile-missing 60-seccomp-audit.conf:2",
                "warning config-stray-file 99-seccomp-logging.conf~",
                "warning option-removed 99-seccomp-logging.conf:2",
                "warning handler-not-default 99-seccomp-logging.conf:4",
                "warning audit-off /proc/cmdline",
                QUIET_WORKLOAD,
                "note trace-syscall-annotation 99-seccomp-logging.conf:5",
            ],
        ),
        ("OpenShift as it comes", Node::openshift(33), vec!["error dropin-missing"]),
        (
            "everything expected, half of it there",
            Node::openshift(33).with_dropin().expect(true, true),
            vec!["error workload-not-logged"],
        ),
        (
            "a version nobody tells",
            Node::openshift(33).with_dropin().without("/run/crio"),
            vec!["unknown version-unknown", QUIET_WORKLOAD],
        ),
        (
            "the caller tells the version",
            Node::openshift(33).with_dropin().without("/run/crio").version(35),
            vec![QUIET_WORKLOAD],
        ),
        (
            "the caller and the node disagree",
            Node::openshift(33).with_dropin().version(30),
            vec!["note version-conflict", QUIET_WORKLOAD],
        ),
        (
            "a version of the future",
            Node::openshift(33).with_dropin().file("/run/crio/version", "\"1.44.0\""),
            vec!["note version-untested", QUIET_WORKLOAD],
        ),
        (
            "an empty root",
            Node::empty(),
            vec!["unknown no-crio-config", "unknown version-unknown", "unknown hooks-unknown"],
        ),
    ]);
    assert_eq!(Node::empty().report().verdict.exit_code(), 2);
    assert_eq!(Node::openshift(33).with_dropin().without("/run/crio").report().verdict.exit_code(), 2);
    assert_eq!(Node::openshift(33).report().verdict.exit_code(), 1);
}

#[test]
fn names_of_a_hostile_node_cannot_write_to_the_terminal() {
    let node = Node::openshift(33)
        .with_dropin()
        .file(&format!("{D}/7\u{1b}[2J\n0.conf"), "[crio.runtime]\nno\u{202e}pe = \"\u{9b}\"\n");
    let report = node.report();
    for text in [report.table(), report.json().unwrap()] {
        let text = text.trim_end_matches('\n');
        assert!(!text.contains(['\u{1b}', '\u{9b}', '\u{202e}']), "{text}");
    }
}
