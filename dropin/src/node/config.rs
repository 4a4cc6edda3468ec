//! CRI-O's files and what surrounds them.

use rustix::io::Errno;

use super::root::{Root, reason};
use crate::{
    facts::{ConfigFile, Content, Meta, ProfileFile},
    version::CrioVersion,
};

pub(crate) const CRIO_CONF: &str = "/etc/crio/crio.conf";
pub(crate) const CRIO_CONF_D: &str = "/etc/crio/crio.conf.d";

/// Generous for configuration, harmless for memory.
const MAX_FILE: u64 = 1 << 20;
const MAX_FILES: usize = 256;
const MAX_DEPTH: usize = 16;
const MAX_TOTAL: usize = 8 << 20;

/// crio.conf, then crio.conf.d as Go's filepath.Walk goes: sorted, directories where their name stands, every file
/// whatever its suffix, links to files read and links to directories not followed.
pub(crate) fn files(root: &Root) -> (Vec<ConfigFile>, Option<String>) {
    let mut walk = Walk { root, files: Vec::new(), total: 0, limit: None };
    if root.exists(CRIO_CONF) {
        walk.file(CRIO_CONF.to_owned());
    }
    if root.is_link(CRIO_CONF_D) {
        // filepath.Walk looks at the link itself, finds no directory and hands it to ReadFile.
        let (content, meta) = root.read(CRIO_CONF_D, MAX_FILE);
        if content != Content::Absent {
            walk.files.push(ConfigFile { path: CRIO_CONF_D.into(), content, meta });
        }
    } else {
        walk.dir(CRIO_CONF_D.to_owned(), 0);
    }
    (walk.files, walk.limit)
}

struct Walk<'a> {
    root: &'a Root,
    files: Vec<ConfigFile>,
    total: usize,
    limit: Option<String>,
}

impl Walk<'_> {
    fn dir(&mut self, path: String, depth: usize) {
        if depth > MAX_DEPTH {
            self.limit = Some(format!("{path} lies deeper than {MAX_DEPTH} directories"));
            return;
        }
        let entries = match self.root.list(&path) {
            Ok(entries) => entries,
            Err(Errno::NOENT) => return,
            Err(error) => {
                let content = Content::Unreadable(reason(error));
                self.files.push(ConfigFile { path, content, meta: Meta::default() });
                return;
            }
        };
        for entry in entries {
            if self.limit.is_some() {
                return;
            }
            let path = format!("{path}/{}", entry.name);
            if entry.is_dir { self.dir(path, depth + 1) } else { self.file(path) }
        }
    }

    fn file(&mut self, path: String) {
        if self.files.len() == MAX_FILES || self.total > MAX_TOTAL {
            self.limit = Some(format!("more than {MAX_FILES} files or {} MiB; stopped before {path}", MAX_TOTAL >> 20));
            return;
        }
        let (content, meta) = self.root.read(&path, MAX_FILE);
        self.total += content.text().map_or(0, str::len);
        let content = match content {
            // It was listed, so a link leads nowhere.
            Content::Absent => Content::Broken("is a symbolic link that leads to no file".into()),
            content => content,
        };
        self.files.push(ConfigFile { path, content, meta });
    }
}

/// The version that CRI-O wrote down when it last started.
pub(crate) fn version_file(root: &Root) -> Option<CrioVersion> {
    ["/var/run/crio/version", "/run/crio/version", "/var/lib/crio/version"]
        .into_iter()
        .find_map(|path| CrioVersion::parse(&root.text(path, 256)?))
}

/// What gives crio.service flags and environment: files that exist, in systemd's order.
pub(crate) fn service_files(root: &Root) -> Vec<ConfigFile> {
    let drop_ins = ["/usr/lib/systemd/system/crio.service.d", "/etc/systemd/system/crio.service.d"]
        .into_iter()
        .flat_map(|dir| below(root, dir, ".conf"));
    ["/etc/sysconfig/crio".to_owned()].into_iter().chain(drop_ins).filter_map(|path| existing(root, path)).collect()
}

pub(crate) fn audit_rules(root: &Root) -> Vec<ConfigFile> {
    below(root, "/etc/audit/rules.d", ".rules").into_iter().filter_map(|path| existing(root, path)).collect()
}

pub(crate) fn profile(root: &Root, path: &str) -> ProfileFile {
    // A path that is not absolute depends on crio's working directory, which is /.
    let (content, meta) = root.read(path, MAX_FILE);
    ProfileFile { content, meta }
}

fn existing(root: &Root, path: String) -> Option<ConfigFile> {
    let (content, meta) = root.read(&path, MAX_FILE);
    (content != Content::Absent).then_some(ConfigFile { path, content, meta })
}

fn below(root: &Root, dir: &str, suffix: &str) -> Vec<String> {
    let entries = root.list(dir).unwrap_or_default();
    let files = entries.into_iter().filter(|e| !e.is_dir && e.name.ends_with(suffix));
    files.take(MAX_FILES).map(|e| format!("{dir}/{}", e.name)).collect()
}
