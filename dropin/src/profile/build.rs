//! Writing the two profiles.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::version::{CrioVersion, NEWEST, OLDEST};

/// CRI-O's RuntimeDefault: the list of containers/common `pkg/seccomp/seccomp.json` with what CRI-O changes in it
/// (`internal/config/seccomp/seccomp.go`, DefaultProfile), as rules with the minor versions 1.`since` to 1.`until` that
/// have them. Compared over CRI-O's branches release-1.27 to release-1.37.
const DATA: &str = include_str!("runtime-default.json");

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Data {
    default_errno_ret: u32,
    arch_map: Vec<OneRule>,
    rules: Vec<DataRule>,
}

#[derive(Debug, Deserialize)]
struct DataRule {
    names: Vec<String>,
    action: String,
    #[serde(default)]
    since: Option<u32>,
    #[serde(default)]
    until: Option<u32>,
    /// Conditions and errno, carried over as they are.
    #[serde(flatten)]
    rest: OneRule,
}

/// The default profile of one CRI-O version.
#[derive(Debug)]
pub struct RuntimeDefault {
    default_errno_ret: u32,
    arch_map: Vec<OneRule>,
    rules: Vec<DataRule>,
}

impl RuntimeDefault {
    /// A version outside the known range gets the nearest known.
    pub fn of(version: CrioVersion) -> Result<Self, serde_json::Error> {
        let minor = version.minor.clamp(OLDEST.minor, NEWEST.minor);
        let data: Data = serde_json::from_str(DATA)?;
        let holds = |r: &DataRule| r.since.is_none_or(|s| s <= minor) && r.until.is_none_or(|u| minor <= u);
        Ok(Self {
            default_errno_ret: data.default_errno_ret,
            arch_map: data.arch_map,
            rules: data.rules.into_iter().filter(holds).collect(),
        })
    }

    /// As a profile without logging.
    pub fn profile(&self) -> String {
        self.logging(&[]).json
    }

    fn logging(&self, syscalls: &[String]) -> Built {
        let chosen = |name: &String| syscalls.contains(name);
        let mut rules = Vec::new();
        let mut logged: Vec<&String> = Vec::new();
        for rule in &self.rules {
            let (log, keep): (Vec<&String>, Vec<&String>) =
                rule.names.iter().partition(|n| rule.action == "SCMP_ACT_ALLOW" && chosen(n));
            for (names, action) in [(&keep, rule.action.as_str()), (&log, "SCMP_ACT_LOG")] {
                if !names.is_empty() {
                    rules.push(one_rule(names, action, &rule.rest));
                }
            }
            logged.extend(log);
        }
        let denied = syscalls.iter().filter(|name| !logged.contains(name)).cloned().collect();
        Built { json: layout("SCMP_ACT_ERRNO", Some(self.default_errno_ret), &self.arch_map, &rules), denied }
    }
}

/// A profile, ready to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Built {
    pub json: String,
    /// Chosen syscalls that the runtime's default denies: they stay denied, without a record.
    pub denied: Vec<String>,
}

/// The runtime's default profile with the chosen syscalls logged where it allows them.
pub fn workload(version: CrioVersion, syscalls: &[String]) -> Result<Built, serde_json::Error> {
    Ok(RuntimeDefault::of(version)?.logging(syscalls))
}

/// Allows everything and logs the chosen syscalls.
pub fn privileged(syscalls: &[String]) -> Result<Built, serde_json::Error> {
    let arch_map = serde_json::from_str::<Data>(DATA)?.arch_map;
    let names: Vec<&String> = syscalls.iter().collect();
    let rules = [one_rule(&names, "SCMP_ACT_LOG", &BTreeMap::new())];
    Ok(Built { json: layout("SCMP_ACT_ALLOW", None, &arch_map, &rules), denied: Vec::new() })
}

/// Keys sorted, whatever map type serde_json is built with elsewhere.
type OneRule = BTreeMap<String, Value>;

fn one_rule(names: &[&String], action: &str, rest: &OneRule) -> OneRule {
    let own = [("names".to_owned(), json!(names)), ("action".to_owned(), json!(action))];
    own.into_iter().chain(rest.clone()).collect()
}

/// One rule a line: short enough to read, stable, and a small diff when a syscall is added.
fn layout(default_action: &str, errno: Option<u32>, arch_map: &[OneRule], rules: &[OneRule]) -> String {
    let mut out = format!("{{\n  \"defaultAction\": \"{default_action}\",\n");
    if let Some(errno) = errno {
        out.push_str(&format!("  \"defaultErrnoRet\": {errno},\n"));
    }
    for (key, items, end) in [("archMap", arch_map, ",\n"), ("syscalls", rules, "\n}\n")] {
        let lines: Vec<String> = items.iter().map(|item| format!("    {}", json!(item))).collect();
        out.push_str(&format!("  \"{key}\": [\n{}\n  ]{end}", lines.join(",\n")));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::{EXEC, PROCESS, Profile};

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(|s| (*s).to_owned()).collect()
    }

    fn versions() -> impl Iterator<Item = CrioVersion> {
        (OLDEST.minor..=NEWEST.minor).map(|minor| CrioVersion { minor })
    }

    #[test]
    fn the_privileged_profile_denies_nothing_and_logs_what_was_chosen() {
        let profile = Profile::parse(&privileged(&names(EXEC)).unwrap().json).unwrap();
        assert!(profile.denied().is_empty() && profile.default_action.passes() && profile.has_architectures);
        assert_eq!(profile.logged().into_iter().collect::<Vec<_>>(), ["execve", "execveat"]);
    }

    #[test]
    fn the_workload_profile_is_the_default_of_each_version_with_some_calls_logged_instead_of_allowed() {
        for version in versions() {
            let plain = Profile::parse(&RuntimeDefault::of(version).unwrap().profile()).unwrap();
            let built = workload(version, &names(PROCESS)).unwrap();
            let logging = Profile::parse(&built.json).unwrap();
            assert_eq!(built.denied, [] as [&str; 0], "{version}");
            assert_eq!(plain.default_action, logging.default_action);
            assert_eq!(plain.denied(), logging.denied(), "{version}: as much is denied");
            assert_eq!(plain.always_passed(), logging.always_passed(), "{version}: as much passes");
            assert!(PROCESS.iter().all(|n| logging.logs(n)), "{version}");
            assert!(logging.contradictory().is_empty() && !plain.logs_something());
        }
    }

    #[test]
    fn clone3_stays_enosys_without_cap_sys_admin_from_1_29_on() {
        for version in versions() {
            let json = workload(version, &names(PROCESS)).unwrap().json;
            let denies = json.contains(
                r#"{"action":"SCMP_ACT_ERRNO","errnoRet":38,"excludes":{"caps":["CAP_SYS_ADMIN"]},"names":["clone3"]}"#,
            );
            assert_eq!(denies, version.minor >= 29, "{version}");
        }
    }

    #[test]
    fn a_syscall_that_the_default_denies_is_told_and_stays_denied() {
        let built = workload(NEWEST, &names(&["execve", "kexec_load"])).unwrap();
        assert_eq!(built.denied, ["kexec_load"]);
        assert!(!Profile::parse(&built.json).unwrap().logs("kexec_load"));
    }
}
