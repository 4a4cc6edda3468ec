//! Could this request have made this root? Identity, container, time and argv; nothing here weighs one against another.

use super::Config;
use super::ask::Asked;
use super::root::Root;
use crate::audit::{AccessKind, SPO_UID};

/// How the root's first argv follows from the request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ArgvFit {
    /// As it was asked.
    Plain,
    /// SPO's rule with the identifier that the API server recorded: behind `env` where `prefixed`, else in place of an
    /// argument.
    Recorded { prefixed: bool },
    /// SPO's rule with some identifier; the audit record names none.
    Unrecorded,
    /// The main process of a container that the request made: its argv is the container's business.
    MadeContainer { stored_uid: Option<String> },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fit {
    pub(super) argv: ArgvFit,
    /// The node carried all of argv.
    pub(super) whole: bool,
}

/// `skew`: by how much the clock of the root's node widens the window. `recorded`: some request has this identifier.
pub(super) fn fit(
    ask: &Asked<'_>,
    root: &Root,
    config: &Config,
    skew: u64,
    recorded: impl Fn(&str) -> bool,
) -> Option<Fit> {
    let lead = ask.lead();
    let access = &lead.access;
    if !lead.expects_root() || !lead.could_have_run() {
        return None;
    }
    let container = root.container()?;
    let (from, until) = ask.window(config, skew);
    if !(from..=until).contains(&root.entered()) {
        return None;
    }
    let containers = &ask.containers;
    let agrees = (containers.is_empty() || containers.contains(container.name.as_str()))
        && access.pod_uid.as_ref().is_none_or(|uid| container.pod_uid.is_empty() || *uid == container.pod_uid)
        && access.node.as_ref().is_none_or(|node| root.key.node.is_empty() || **node == *root.key.node)
        && enters_as(access.kind, &root.entry.how);
    if !agrees {
        return None;
    }
    if lead.is_debug() {
        let made = access.new_containers.iter().find(|made| made.name == container.name);
        return Some(Fit {
            argv: ArgvFit::MadeContainer { stored_uid: made.and_then(|made| made.stored_uid.clone()) },
            whole: true,
        });
    }
    let (_, first) = root.first_exec()?;
    let ran = first.argv.as_slice();
    let whole = first.argv_truncated_bytes == 0;
    let is = |expected: &[String]| if whole { ran == expected } else { is_cut_from(ran, expected) };
    let argv = match &ask.rewritten {
        Some((expected, prefixed)) => is(expected).then_some(ArgvFit::Recorded { prefixed: *prefixed })?,
        None if is(&access.argv) => ArgvFit::Plain,
        None => {
            let uid = ran.iter().find_map(|argument| argument.strip_prefix(SPO_UID)?.strip_prefix('='))?;
            // One that another request has was made for that one.
            (!recorded(uid) && !root.is_own_value(uid) && is(&rewritten(&access.argv, uid).0))
                .then_some(ArgvFit::Unrecorded)?
        }
    };
    Some(Fit { argv, whole })
}

/// The way in that each kind of access takes on the node. `unknown` (the agent did not see it begin) may be any.
fn enters_as(kind: AccessKind, entry: &str) -> bool {
    let expected = match kind {
        AccessKind::Exec | AccessKind::ProxyExec => "exec",
        AccessKind::ProxyRun => "exec_sync",
        AccessKind::Ephemeral | AccessKind::NodeDebug => "start",
        _ => return false,
    };
    entry == expected || entry == "unknown"
}

/// SPO's rule (security-profiles-operator, internal/pkg/webhooks/execmetadata: getPodExecPatch): every argument that
/// matches `^SPO_EXEC_REQUEST_UID=.*$` is replaced; only where there is none, `env` and the variable are put in front.
/// True: it was put in front.
pub(super) fn rewritten(argv: &[String], uid: &str) -> (Vec<String>, bool) {
    let variable = format!("{SPO_UID}={uid}");
    if !argv.iter().any(|argument| is_uid_argument(argument)) {
        let mut prefixed = vec!["env".to_owned(), variable];
        prefixed.extend_from_slice(argv);
        return (prefixed, true);
    }
    let replace = |argument: &String| if is_uid_argument(argument) { variable.clone() } else { argument.clone() };
    (argv.iter().map(replace).collect(), false)
}

/// `env` and the variable stand in front.
pub(super) fn starts_prefixed(argv: &[String]) -> bool {
    matches!(argv, [env, variable, ..] if env == "env" && is_uid_argument(variable))
}

pub(super) fn is_uid_argument(argument: &str) -> bool {
    // In Go `.` matches no newline and `$` only the end of the text.
    argument.strip_prefix(SPO_UID).is_some_and(|rest| rest.starts_with('=') && !rest.contains('\n'))
}

/// `ran` is what is left of `expected` when its end is cut off, in the middle of an argument perhaps.
fn is_cut_from(ran: &[String], expected: &[String]) -> bool {
    let Some((last, before)) = ran.split_last() else { return true };
    expected.get(..before.len()) == Some(before)
        && expected.get(before.len()).is_some_and(|argument| argument.starts_with(last.as_str()))
}

#[cfg(test)]
mod tests {
    use super::{is_cut_from, rewritten};

    fn argv(parts: &[&str]) -> Vec<String> {
        parts.iter().map(|part| (*part).to_owned()).collect()
    }

    #[test]
    fn spo_puts_env_in_front_unless_an_argument_starts_with_its_variable() {
        assert_eq!(rewritten(&argv(&["id"]), "u").0, argv(&["env", "SPO_EXEC_REQUEST_UID=u", "id"]));
        let in_place = argv(&["sh", "SPO_EXEC_REQUEST_UID=x", "a SPO_EXEC_REQUEST_UID=y", "SPO_EXEC_REQUEST_UID="]);
        assert_eq!(
            rewritten(&in_place, "u").0,
            argv(&["sh", "SPO_EXEC_REQUEST_UID=u", "a SPO_EXEC_REQUEST_UID=y", "SPO_EXEC_REQUEST_UID=u"])
        );
        assert!(rewritten(&argv(&["sh", "SPO_EXEC_REQUEST_UID=x\nid"]), "u").1, "Go's dot matches no newline");
    }

    #[test]
    fn a_truncated_argv_fits_what_it_was_cut_from() {
        let whole = argv(&["sh", "-c", "long script"]);
        assert!(is_cut_from(&argv(&["sh", "-c", "long"]), &whole));
        assert!(is_cut_from(&argv(&["sh"]), &whole));
        assert!(!is_cut_from(&argv(&["sh", "-x"]), &whole));
        assert!(!is_cut_from(&argv(&["sh", "-c", "long script", "more"]), &whole));
    }
}
