//! Reading a profile, and what it does to a syscall.

use std::collections::BTreeSet;

use serde::Deserialize;

/// What a profile does, as far as logging and denying are concerned.
#[derive(Debug, Clone, PartialEq)]
pub struct Profile {
    pub default_action: Action,
    pub rules: Vec<Rule>,
    /// It names architectures (archMap or architectures).
    pub has_architectures: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    pub names: Vec<String>,
    pub action: Action,
    /// It holds only for some arguments, capabilities or architectures.
    pub conditional: bool,
}

/// The actions that go.podman.io/common and the OCI runtime specification know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    Allow,
    Log,
    Errno,
    Kill,
    Trap,
    Trace,
    Notify,
}

impl Action {
    fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "SCMP_ACT_ALLOW" => Self::Allow,
            "SCMP_ACT_LOG" => Self::Log,
            "SCMP_ACT_ERRNO" => Self::Errno,
            "SCMP_ACT_KILL" | "SCMP_ACT_KILL_PROCESS" | "SCMP_ACT_KILL_THREAD" => Self::Kill,
            "SCMP_ACT_TRAP" => Self::Trap,
            "SCMP_ACT_TRACE" => Self::Trace,
            "SCMP_ACT_NOTIFY" => Self::Notify,
            _ => return None,
        })
    }

    /// The call goes on as if there were no filter.
    pub fn passes(self) -> bool {
        matches!(self, Self::Allow | Self::Log)
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Allow => "SCMP_ACT_ALLOW",
            Self::Log => "SCMP_ACT_LOG",
            Self::Errno => "SCMP_ACT_ERRNO",
            Self::Kill => "SCMP_ACT_KILL",
            Self::Trap => "SCMP_ACT_TRAP",
            Self::Trace => "SCMP_ACT_TRACE",
            Self::Notify => "SCMP_ACT_NOTIFY",
        }
    }
}

/// Why a file is no profile.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}{}", line.map(|l| format!(" (line {l})")).unwrap_or_default())]
pub struct ProfileError {
    pub line: Option<u32>,
    pub message: String,
}

impl ProfileError {
    fn new(message: String) -> Self {
        Self { line: None, message }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawProfile {
    #[serde(default)]
    default_action: Option<String>,
    #[serde(default)]
    arch_map: Option<Vec<serde_json::Value>>,
    #[serde(default)]
    architectures: Option<Vec<String>>,
    #[serde(default)]
    syscalls: Option<Vec<RawRule>>,
}

#[derive(Deserialize)]
struct RawRule {
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    names: Option<Vec<String>>,
    action: Option<String>,
    #[serde(default)]
    args: Option<Vec<RawArg>>,
    #[serde(default)]
    includes: Option<RawFilter>,
    #[serde(default)]
    excludes: Option<RawFilter>,
}

#[derive(Deserialize)]
struct RawArg {
    #[serde(default)]
    op: Option<String>,
}

#[derive(Deserialize)]
struct RawFilter {
    #[serde(default)]
    caps: Option<Vec<String>>,
    #[serde(default)]
    arches: Option<Vec<String>>,
}

impl RawFilter {
    fn filters(filter: Option<&Self>) -> bool {
        let some = |list: &Option<Vec<String>>| list.as_ref().is_some_and(|l| !l.is_empty());
        filter.is_some_and(|f| some(&f.caps) || some(&f.arches))
    }
}

const OPERATORS: [&str; 7] =
    ["SCMP_CMP_NE", "SCMP_CMP_LT", "SCMP_CMP_LE", "SCMP_CMP_EQ", "SCMP_CMP_GE", "SCMP_CMP_GT", "SCMP_CMP_MASKED_EQ"];

impl Profile {
    /// Reads a profile file, or the `linux.seccomp` of an OCI runtime specification, which has the same fields.
    pub fn parse(text: &str) -> Result<Self, ProfileError> {
        let raw: RawProfile = serde_json::from_str(text).map_err(|error| ProfileError {
            line: u32::try_from(error.line()).ok().filter(|l| *l > 0),
            message: error.to_string(),
        })?;
        Self::checked(raw)
    }

    fn checked(raw: RawProfile) -> Result<Self, ProfileError> {
        let some = |list: Option<usize>| list.is_some_and(|n| n > 0);
        let arch_map = some(raw.arch_map.as_ref().map(Vec::len));
        let architectures = some(raw.architectures.as_ref().map(Vec::len));
        if arch_map && architectures {
            return Err(ProfileError::new("both archMap and architectures are given; one of them is allowed".into()));
        }
        let Some(default) = raw.default_action.filter(|a| !a.is_empty()) else {
            return Err(ProfileError::new("there is no defaultAction".into()));
        };
        let rules = raw.syscalls.unwrap_or_default().into_iter().enumerate().map(|(at, rule)| checked_rule(at, rule));
        Ok(Self {
            default_action: action(&default, "defaultAction")?,
            rules: rules.collect::<Result<_, _>>()?,
            has_architectures: arch_map || architectures,
        })
    }

    /// Names that some rule logs, if only for some arguments.
    pub fn logged(&self) -> BTreeSet<&str> {
        self.with_action(|a| a == Action::Log)
    }

    /// Does a call of that name make a record? A rule decides, else the default.
    pub fn logs(&self, name: &str) -> bool {
        let mut rules = self.rules.iter().filter(|r| r.names.iter().any(|n| n == name)).peekable();
        match rules.peek() {
            Some(_) => rules.any(|r| r.action == Action::Log),
            None => self.default_action == Action::Log,
        }
    }

    pub fn logs_something(&self) -> bool {
        self.default_action == Action::Log || self.rules.iter().any(|r| r.action == Action::Log && !r.names.is_empty())
    }

    /// Names that some rule denies or diverts.
    pub fn denied(&self) -> BTreeSet<&str> {
        self.with_action(|a| !a.passes())
    }

    /// Names that get LOG and another passing or denying action, both without condition: which one holds depends on the
    /// runtime and libseccomp.
    pub fn contradictory(&self) -> BTreeSet<&str> {
        let unconditional = |wanted: fn(Action) -> bool| -> BTreeSet<&str> {
            let rules = self.rules.iter().filter(|r| !r.conditional && wanted(r.action));
            rules.flat_map(|r| r.names.iter().map(String::as_str)).collect()
        };
        let logged = unconditional(|a| a == Action::Log);
        let other = unconditional(|a| a != Action::Log);
        logged.intersection(&other).copied().collect()
    }

    /// Names that pass whatever the arguments and capabilities.
    pub fn always_passed(&self) -> BTreeSet<&str> {
        let rules = self.rules.iter().filter(|r| !r.conditional && r.action.passes());
        rules.flat_map(|r| r.names.iter().map(String::as_str)).collect()
    }

    fn with_action(&self, wanted: impl Fn(Action) -> bool) -> BTreeSet<&str> {
        let rules = self.rules.iter().filter(|r| wanted(r.action));
        rules.flat_map(|r| r.names.iter().map(String::as_str)).collect()
    }
}

fn checked_rule(at: usize, raw: RawRule) -> Result<Rule, ProfileError> {
    let here = format!("syscalls[{at}]");
    let names = match (raw.name.filter(|n| !n.is_empty()), raw.names.unwrap_or_default()) {
        (Some(_), names) if !names.is_empty() => {
            return Err(ProfileError::new(format!("{here} has both name and names; one of them is allowed")));
        }
        (Some(name), _) => vec![name],
        (None, names) => names,
    };
    let args = raw.args.unwrap_or_default();
    for arg in &args {
        let op = arg.op.as_deref().unwrap_or("");
        if !OPERATORS.contains(&op) {
            return Err(ProfileError::new(format!("{here} compares with an operator nobody knows: {op:?}")));
        }
    }
    Ok(Rule {
        names,
        action: action(raw.action.as_deref().unwrap_or(""), &here)?,
        conditional: !args.is_empty()
            || RawFilter::filters(raw.includes.as_ref())
            || RawFilter::filters(raw.excludes.as_ref()),
    })
}

fn action(name: &str, here: &str) -> Result<Action, ProfileError> {
    Action::parse(name).ok_or_else(|| ProfileError::new(format!("{here} has an action nobody knows: {name:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_profile_of_a_recorded_container_logs_exec_and_forks() {
        let profile = Profile::parse(
            r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"action": "SCMP_ACT_LOG", "names": ["execve", "execveat", "clone", "clone3", "fork", "vfork"]}]}"#,
        )
        .unwrap();
        assert!(profile.logs("execve") && profile.logs("clone3") && !profile.logs("openat"));
        assert!(profile.denied().is_empty());
    }

    #[test]
    fn what_is_no_profile_says_why() {
        for (text, reason) in [
            ("", "EOF while parsing a value at line 1 column 0 (line 1)"),
            ("[]", "there is no defaultAction"),
            ("{}", "there is no defaultAction"),
            (r#"{"defaultAction":"SCMP_ACT_LOGG"}"#, r#"defaultAction has an action nobody knows: "SCMP_ACT_LOGG""#),
            (
                r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"name":"a","names":["b"],"action":"SCMP_ACT_LOG"}]}"#,
                "syscalls[0] has both name and names; one of them is allowed",
            ),
            (
                r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["b"],"action":"SCMP_ACT_LOG","args":[{"op":"=="}]}]}"#,
                r#"syscalls[0] compares with an operator nobody knows: "==""#,
            ),
            (
                r#"{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_X86"],"archMap":[{}]}"#,
                "both archMap and architectures are given; one of them is allowed",
            ),
        ] {
            assert_eq!(Profile::parse(text).unwrap_err().to_string(), reason, "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_input_panics(text in ".{0,300}") {
            let _ = Profile::parse(&text);
        }
    }
}
