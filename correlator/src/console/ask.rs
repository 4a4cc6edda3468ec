//! Arguments that the commands share.

use super::when;
use crate::intake::now;
use crate::join::finding::Code;
use crate::join::session::{Evidence, Kind};
use crate::store::{Filter, Pattern, Reader, StoreError};
use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use std::path::PathBuf;

/// Where the deployment has it.
const JOURNAL: &str = "/var/lib/seclog/journal";

#[derive(Debug, Clone, Args)]
pub struct StoreArgs {
    /// Directory of the store [default: store in the directory of $SECLOG_JOURNAL, or in /var/lib/seclog/journal].
    #[arg(long, value_name = "DIR", env = "SECLOG_STORE")]
    pub store: Option<PathBuf>,
}

/// All of it must hold; of what is given more than once, one of it.
#[derive(Debug, Clone, Default, Args)]
pub struct FilterArgs {
    /// Went on at this time or later: 2026-11-23, "2026-11-23 22:30" (UTC), RFC 3339, or so long ago: 15m, 2h, 7d.
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub since: Option<u64>,
    /// Began before this time.
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub until: Option<u64>,
    /// Who asked, or as whom; * stands for any text, here and below.
    #[arg(long)]
    pub user: Option<String>,
    #[arg(long, short)]
    pub namespace: Option<String>,
    #[arg(long)]
    pub pod: Option<String>,
    #[arg(long)]
    pub container: Option<String>,
    #[arg(long)]
    pub node: Option<String>,
    /// Repeatable, or several with commas.
    #[arg(long, value_delimiter = ',', value_parser = kinds())]
    pub kind: Vec<Kind>,
    #[arg(long, value_delimiter = ',', value_parser = evidence())]
    pub evidence: Vec<Evidence>,
    /// Code of a finding that the session names.
    #[arg(long, value_name = "CODE", value_delimiter = ',', value_parser = codes())]
    pub finding: Vec<Code>,
    /// Also what is no session any more (superseded), and probes.
    #[arg(long)]
    pub all: bool,
}

impl StoreArgs {
    pub(super) fn open(&self) -> Result<Reader, StoreError> {
        let journal = || std::env::var_os("SECLOG_JOURNAL").map_or_else(|| PathBuf::from(JOURNAL), PathBuf::from);
        let dir = self.store.clone().unwrap_or_else(|| journal().join("store"));
        Reader::open(&dir)
    }
}

impl FilterArgs {
    pub(super) fn filter(&self) -> Filter {
        let Self { since, until, user, namespace, pod, container, node, kind, evidence, finding, all } = self;
        let pattern = |text: &Option<String>| text.clone().map(Pattern);
        Filter {
            since: *since,
            until: *until,
            user: pattern(user),
            namespace: pattern(namespace),
            pod: pattern(pod),
            container: pattern(container),
            node: pattern(node),
            kinds: kind.clone(),
            evidence: evidence.clone(),
            findings: finding.clone(),
            all: *all,
        }
    }

    /// Only findings of sessions can fit.
    pub(super) fn is_of_sessions(&self) -> bool {
        let Self { since: _, until: _, user, namespace, pod, container, node, kind, evidence, finding: _, all: _ } =
            self;
        [user, namespace, pod, container, node].into_iter().any(Option::is_some)
            || !kind.is_empty()
            || !evidence.is_empty()
    }
}

pub(super) fn time(text: &str) -> Result<u64, String> {
    when::parse(text, now())
}

fn kinds() -> impl TypedValueParser<Value = Kind> {
    one_of(vec![
        ("exec", Kind::Exec),
        ("rsh", Kind::Rsh),
        ("attach", Kind::Attach),
        ("port_forward", Kind::PortForward),
        ("debug_container", Kind::DebugContainer),
        ("debug_node", Kind::DebugNode),
        ("node_proxy", Kind::NodeProxy),
        ("node_entry", Kind::NodeEntry),
        ("probe", Kind::Probe),
    ])
}

fn evidence() -> impl TypedValueParser<Value = Evidence> {
    one_of(vec![
        ("exact", Evidence::Exact),
        ("unique", Evidence::Unique),
        ("ambiguous", Evidence::Ambiguous),
        ("audit_only", Evidence::AuditOnly),
        ("node_only", Evidence::NodeOnly),
    ])
}

pub(super) fn codes() -> impl TypedValueParser<Value = Code> {
    one_of(Code::ALL.iter().map(|code| (code.as_str(), *code)).collect())
}

/// The names that the JSON form has.
fn one_of<T: Copy + Send + Sync + 'static>(all: Vec<(&'static str, T)>) -> impl TypedValueParser<Value = T> {
    let names: Vec<&'static str> = all.iter().map(|(name, _)| *name).collect();
    PossibleValuesParser::new(names).try_map(move |text| {
        let found = all.iter().find(|(name, _)| *name == text).map(|(_, value)| *value);
        found.ok_or_else(|| format!("{text:?} is not known"))
    })
}

#[cfg(test)]
mod tests {
    use super::FilterArgs;
    use clap::{Args as _, Command, FromArgMatches as _};

    #[test]
    fn kinds_and_evidence_are_called_as_in_the_json_form() {
        let parse = |option: &str, value: &str| {
            let command = FilterArgs::augment_args(Command::new("test"));
            FilterArgs::from_arg_matches(&command.try_get_matches_from(["test", option, value]).unwrap()).unwrap()
        };
        let kinds = "exec,rsh,attach,port_forward,debug_container,debug_node,node_proxy,node_entry,probe";
        let parsed = parse("--kind", kinds).kind;
        assert_eq!(parsed.iter().map(ToString::to_string).collect::<Vec<_>>().join(","), kinds);
        let evidence = "exact,unique,ambiguous,audit_only,node_only";
        let parsed = parse("--evidence", evidence).evidence;
        assert_eq!(parsed.iter().map(ToString::to_string).collect::<Vec<_>>().join(","), evidence);
    }
}
