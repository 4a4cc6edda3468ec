//! CRI-O's files merged as CRI-O merges them.
//!
//! CRI-O decodes each file over the structures that the files before it left (`pkg/config/config.go`,
//! UpdateFromDropInFile, with BurntSushi/toml). From that follows:
//!
//! - tables with fixed keys merge key by key; a scalar or an array of a later file replaces the earlier one;
//! - `runtimes` and `workloads` are maps: an entry of a later file starts from nothing, so every field that only the
//!   earlier file set is gone (`unifyMap`);
//! - keys that the version does not know are dropped without a word; a value of the wrong type stops CRI-O.
//!
//! Everything keeps the file and the line that set it.

use std::collections::BTreeMap;

use crate::{
    finding::Place,
    options::{self, Kind, LEFTOVERS, Opt, Section},
    tree::{self, Node, Value},
    version::CrioVersion,
};

/// A value and who set it.
#[derive(Debug, Clone, PartialEq)]
pub struct Setting {
    pub value: Value,
    pub place: Place,
}

/// An entry of the map `runtimes` or `workloads`.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    pub place: Place,
    pub fields: BTreeMap<&'static str, Setting>,
}

impl Entry {
    pub fn text(&self, key: &str) -> Option<&str> {
        self.fields.get(key).and_then(|s| s.value.as_str()).filter(|t| !t.is_empty())
    }

    pub fn strings(&self, key: &str) -> Vec<&str> {
        self.fields.get(key).map(|s| s.value.strings()).unwrap_or_default()
    }
}

/// An entry that a later file replaced whole.
#[derive(Debug, Clone, PartialEq)]
pub struct Replaced {
    pub section: Section,
    pub name: String,
    pub before: Entry,
    pub after: Entry,
}

impl Replaced {
    /// Fields, or elements of arrays and tables, that the earlier entry had and the later one has not:
    /// `runtime_root = "/run/runc"`.
    pub fn lost(&self) -> Vec<String> {
        let mut lost = Vec::new();
        for (key, was) in &self.before.fields {
            if was.value.is_zero() {
                continue;
            }
            match (&was.value, self.after.fields.get(key).map(|s| &s.value)) {
                (value, None) => lost.push(format!("{key} = {}", show(value))),
                (Value::Array(_), Some(now)) => {
                    let now = now.strings();
                    for item in was.value.strings().into_iter().filter(|i| !now.contains(i)) {
                        lost.push(format!("{key}: {}", show(&Value::Str(item.to_owned()))));
                    }
                }
                (Value::Table(old), Some(Value::Table(new))) => {
                    for (name, node) in old.iter().filter(|(name, _)| !new.iter().any(|(n, _)| n == name)) {
                        lost.push(format!("{key}: {name} = {}", show(&node.value)));
                    }
                }
                _ => {}
            }
        }
        lost
    }
}

/// A key that this CRI-O does not read where it stands.
#[derive(Debug, Clone, PartialEq)]
pub struct Stray {
    pub key: String,
    /// The table it stands in, as written: `crio.runtime`.
    pub table: String,
    pub place: Place,
    pub why: StrayReason,
    pub value: Value,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum StrayReason {
    /// This version dropped it; the last that read it.
    Removed { until: u32 },
    /// A later version brings it.
    TooNew { since: u32 },
    /// It belongs to another table.
    Misplaced { home: Section },
    /// No version reads it.
    Unknown,
}

/// A value CRI-O cannot decode: it does not start, or refuses the reload.
#[derive(Debug, Clone, PartialEq)]
pub struct WrongType {
    pub key: String,
    pub place: Place,
    pub expected: &'static str,
    pub found: &'static str,
}

/// What the files add up to.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Merged {
    /// Options of tables with fixed keys, by section and key.
    pub settings: BTreeMap<(Section, &'static str), Setting>,
    /// What earlier files said of those, oldest first.
    pub overridden: BTreeMap<(Section, &'static str), Vec<Setting>>,
    pub handlers: BTreeMap<String, Entry>,
    pub workloads: BTreeMap<String, Entry>,
    pub replaced: Vec<Replaced>,
    pub strays: Vec<Stray>,
    pub wrong_types: Vec<WrongType>,
    /// Files that are not TOML, with the line and the reason.
    pub broken: Vec<(Place, String)>,
}

impl Merged {
    /// Merges files in the order given: the caller has CRI-O's. Without a version every option of any version counts.
    pub fn of<'a>(files: impl IntoIterator<Item = (&'a str, &'a str)>, version: Option<CrioVersion>) -> Self {
        let mut merged = Self::default();
        for (path, text) in files {
            match tree::parse(text) {
                Ok(top) => FileMerge { into: &mut merged, path, version }.top(top),
                Err(error) => merged.broken.push((Place::line(path, error.line), error.message)),
            }
        }
        merged
    }

    pub fn setting(&self, section: Section, key: &str) -> Option<&Setting> {
        self.settings.iter().find(|((s, k), _)| *s == section && *k == key).map(|(_, setting)| setting)
    }

    /// A string of `[crio.runtime]`; an empty one counts as absent, as it does for CRI-O.
    pub fn runtime_text(&self, key: &str) -> Option<(&str, &Place)> {
        let setting = self.setting(Section::Runtime, key)?;
        setting.value.as_str().filter(|t| !t.is_empty()).map(|t| (t, &setting.place))
    }

    /// The name of the default handler and who chose it; the compiled default has no place.
    pub fn default_runtime(&self, version: Option<CrioVersion>) -> Option<(&str, Option<&Place>)> {
        self.runtime_text("default_runtime")
            .map(|(name, place)| (name, Some(place)))
            .or_else(|| version.map(|v| (v.compiled_runtime(), None)))
    }
}

/// One file on its way into the whole.
struct FileMerge<'a> {
    into: &'a mut Merged,
    path: &'a str,
    version: Option<CrioVersion>,
}

impl FileMerge<'_> {
    fn top(&mut self, top: Vec<(String, Node)>) {
        for (key, node) in top {
            match node.value {
                Value::Table(entries) if key.eq_ignore_ascii_case("crio") => self.crio(entries),
                value if key.eq_ignore_ascii_case("crio") => self.wrong("crio", node.line, "a table", &value),
                value => self.stray(None, "", &key, node.line, value),
            }
        }
    }

    fn crio(&mut self, entries: Vec<(String, Node)>) {
        for (key, node) in entries {
            match (Section::below_crio(&key), node.value) {
                (Some(section), Value::Table(entries)) => self.section(section, entries),
                (Some(section), value) => self.wrong(section.path(), node.line, "a table", &value),
                (None, value) => self.option(Section::Crio, "crio", key, node.line, value),
            }
        }
    }

    fn section(&mut self, section: Section, entries: Vec<(String, Node)>) {
        for (key, node) in entries {
            if section == Section::Runtime {
                let map = [("runtimes", Section::Handler), ("workloads", Section::Workload)]
                    .into_iter()
                    .find(|(name, _)| key.eq_ignore_ascii_case(name));
                if let Some((name, section)) = map {
                    match node.value {
                        Value::Table(entries) => self.map(name, section, entries),
                        value => self.wrong(name, node.line, "a table", &value),
                    }
                    continue;
                }
            }
            self.option(section, section.path(), key, node.line, node.value);
        }
    }

    fn map(&mut self, map: &str, section: Section, entries: Vec<(String, Node)>) {
        for (name, node) in entries {
            let table = format!("crio.runtime.{map}.{name}");
            let Value::Table(fields) = node.value else {
                self.wrong(&table, node.line, "a table", &node.value);
                continue;
            };
            let mut entry = Entry { place: Place::line(self.path, node.line), fields: BTreeMap::new() };
            for (key, field) in fields {
                if let Some((opt, setting)) = self.accept(section, &table, key, field.line, field.value) {
                    entry.fields.insert(opt.key, setting);
                }
            }
            let entries = match section {
                Section::Handler => &mut self.into.handlers,
                _ => &mut self.into.workloads,
            };
            if let Some(before) = entries.insert(name.clone(), entry.clone()) {
                self.into.replaced.push(Replaced { section, name, before, after: entry });
            }
        }
    }

    fn option(&mut self, section: Section, table: &str, key: String, line: u32, value: Value) {
        if let Some((opt, setting)) = self.accept(section, table, key, line, value)
            && let Some(before) = self.into.settings.insert((section, opt.key), setting)
        {
            self.into.overridden.entry((section, opt.key)).or_default().push(before);
        }
    }

    /// The option and its setting if this CRI-O reads it; otherwise notes why not.
    fn accept(
        &mut self,
        section: Section,
        table: &str,
        key: String,
        line: u32,
        value: Value,
    ) -> Option<(&'static Opt, Setting)> {
        let found = options::find(section, &key).filter(|o| self.version.is_none_or(|v| o.known_to(v)));
        let Some(opt) = found else {
            self.stray(Some(section), table, &key, line, value);
            return None;
        };
        if !fits(opt.kind, &value) {
            self.wrong(&format!("{table}.{key}"), line, opt.kind.noun(), &value);
            return None;
        }
        Some((opt, Setting { value, place: Place::line(self.path, line) }))
    }

    fn stray(&mut self, section: Option<Section>, table: &str, key: &str, line: u32, value: Value) {
        let own = section.and_then(|s| options::find(s, key));
        let leftover = LEFTOVERS.iter().any(|(s, k)| Some(*s) == section && *k == key);
        if leftover && own.is_none() {
            return;
        }
        let why = match (own, self.version) {
            (Some(opt), Some(version)) if version.minor < opt.since => StrayReason::TooNew { since: opt.since },
            (Some(opt), _) => StrayReason::Removed { until: opt.until },
            (None, _) => match options::elsewhere(section, key) {
                Some(opt) => StrayReason::Misplaced { home: opt.section },
                None => StrayReason::Unknown,
            },
        };
        let place = Place::line(self.path, line);
        self.into.strays.push(Stray { key: key.to_owned(), table: table.to_owned(), place, why, value });
    }

    fn wrong(&mut self, key: &str, line: u32, expected: &'static str, value: &Value) {
        let place = Place::line(self.path, line);
        self.into.wrong_types.push(WrongType { key: key.to_owned(), place, expected, found: value.noun() });
    }
}

fn fits(kind: Kind, value: &Value) -> bool {
    match (kind, value) {
        (Kind::Str, Value::Str(_)) | (Kind::Int | Kind::Duration, Value::Int(_)) | (Kind::Bool, Value::Bool(_)) => true,
        (Kind::Duration, Value::Str(_)) | (Kind::Map, Value::Table(_)) => true,
        (Kind::Strings, Value::Array(items)) => items.iter().all(|i| matches!(i.value, Value::Str(_))),
        _ => false,
    }
}

/// A value as one writes it, shortened: for sentences.
pub(crate) fn show(value: &Value) -> String {
    match value {
        Value::Str(text) => format!("{text:?}"),
        Value::Int(number) => number.to_string(),
        Value::Bool(value) => value.to_string(),
        Value::Other(noun) => (*noun).to_owned(),
        Value::Array(items) => {
            let shown: Vec<String> = items.iter().take(8).map(|i| show(&i.value)).collect();
            format!("[{}{}]", shown.join(", "), if items.len() > 8 { ", …" } else { "" })
        }
        Value::Table(entries) => {
            let shown: Vec<String> =
                entries.iter().take(8).map(|(k, n)| format!("{k:?} = {}", show(&n.value))).collect();
            format!("{{{}{}}}", shown.join(", "), if entries.len() > 8 { ", …" } else { "" })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const V133: Option<CrioVersion> = Some(CrioVersion { minor: 33 });

    #[test]
    fn tables_merge_key_by_key_and_later_scalars_and_arrays_win() {
        let merged = Merged::of(
            [
                ("00", "[crio.runtime]\nlog_level = \"info\"\nhooks_dir = [\"/a\", \"/b\"]\nselinux = true\n"),
                ("50", "[crio.runtime]\nhooks_dir = [\"/c\"]\nlog_level = \"debug\"\n"),
            ],
            V133,
        );
        let value = |key| merged.setting(Section::Runtime, key).map(|s| (show(&s.value), s.place.to_string()));
        assert_eq!(value("log_level"), Some(("\"debug\"".into(), "50:3".into())));
        assert_eq!(value("hooks_dir"), Some(("[\"/c\"]".into(), "50:2".into())));
        assert_eq!(value("selinux"), Some(("true".into(), "00:4".into())));
    }

    #[test]
    fn an_entry_of_runtimes_is_replaced_whole_and_says_what_it_lost() {
        let merged = Merged::of(
            [
                (
                    "00-default",
                    "[crio.runtime.runtimes.runc]\nruntime_root = \"/run/runc\"\nallowed_annotations = [\"io.containers.trace-syscall\", \"io.kubernetes.cri-o.Devices\"]\n[crio.runtime.runtimes.crun]\nruntime_root = \"/run/crun\"\n",
                ),
                ("99", "[crio.runtime.runtimes.runc]\nallowed_annotations = [\"io.containers.trace-syscall\"]\n"),
            ],
            V133,
        );
        assert_eq!(merged.replaced.len(), 1);
        assert_eq!(
            merged.replaced[0].lost(),
            ["allowed_annotations: \"io.kubernetes.cri-o.Devices\"", "runtime_root = \"/run/runc\""]
        );
        assert_eq!(merged.handlers["runc"].text("runtime_root"), None);
        assert_eq!(merged.handlers["crun"].text("runtime_root"), Some("/run/crun"), "untouched");
    }

    #[test]
    fn a_key_this_version_does_not_read_is_named_with_the_reason() {
        let text = "privileged_seccomp_profile = \"/x\"\n[crio.runtime]\nseccomp_use_default_when_empty = false\nnonsense = 1\nmanage_ns_lifecycle = true\nseccomp_profile = 3\n[crio.runtime.runtimes.crun]\nseccomp_profile = \"/y\"\n";
        let merged = Merged::of([("f", text)], V133);
        let strays: Vec<_> = merged.strays.iter().map(|s| (s.key.as_str(), s.place.line, s.why)).collect();
        assert_eq!(
            strays,
            [
                ("privileged_seccomp_profile", Some(1), StrayReason::Misplaced { home: Section::Runtime }),
                ("seccomp_use_default_when_empty", Some(3), StrayReason::Removed { until: 29 }),
                ("nonsense", Some(4), StrayReason::Unknown),
                ("seccomp_profile", Some(8), StrayReason::TooNew { since: 34 }),
            ]
        );
        assert_eq!(merged.wrong_types.len(), 1);
    }
}
