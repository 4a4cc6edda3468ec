//! Who is let in no more, whatever certificate he shows: a file of an administrator's, followed.
//!
//! Certificates of nodes live a day, so there are no revocation lists; this is for the day. One line each, `#` begins a
//! comment:
//!
//! ```text
//! node node-7.example     # every certificate of that node
//! key 3b0c…               # SHA-256 of a public key, 64 hexadecimal digits, as in the ledger of certificates
//! serial 4f21…            # one certificate
//! ```

use seclog_identity::{FileError, Files, NodeIdentity, is_name};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

#[derive(Debug, thiserror::Error)]
pub enum DeniedError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error(
        "{}:{line}: not `node NAME`, `key SHA256` or `serial HEXADECIMAL`: {text:?}", path.display()
    )]
    Line { path: PathBuf, line: usize, text: String },
}

/// The list in force.
#[derive(Debug)]
pub struct Denied {
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    files: Files<1>,
    list: List,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct List {
    nodes: BTreeSet<String>,
    keys: BTreeSet<String>,
    serials: BTreeSet<String>,
}

// === impl Denied ===

impl Denied {
    pub fn open(path: &Path) -> Result<Self, DeniedError> {
        let state = State { files: Files::new([path.to_owned()]), list: List::default() };
        let denied = Self { path: path.to_owned(), state: Mutex::new(state) };
        denied.look()?;
        Ok(denied)
    }

    /// Reads the file again. True: the list changed. An error leaves the list of before in force.
    pub(super) fn look(&self) -> Result<bool, DeniedError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let Some([bytes]) = state.files.changed()? else { return Ok(false) };
        state.list = List::read(&self.path, &String::from_utf8_lossy(&bytes)).inspect_err(|_| state.files.forget())?;
        let List { nodes, keys, serials } = &state.list;
        tracing::info!(
            nodes = nodes.len(),
            keys = keys.len(),
            serials = serials.len(),
            "the list of who is denied is in force"
        );
        Ok(true)
    }

    /// Why this one is not let in.
    pub fn reason(&self, identity: &NodeIdentity, key_sha256: &str, serial: &str) -> Option<String> {
        let list = &self.state.lock().unwrap_or_else(PoisonError::into_inner).list;
        let what = if list.nodes.contains(&identity.node) {
            format!("node {}", identity.node)
        } else if list.keys.contains(key_sha256) {
            format!("key {key_sha256}")
        } else if list.serials.contains(serial) {
            format!("serial {serial}")
        } else {
            return None;
        };
        Some(format!("an administrator denied {what} (--denied)"))
    }
}

// === impl List ===

impl List {
    fn read(path: &Path, text: &str) -> Result<Self, DeniedError> {
        let mut list = Self::default();
        for (number, line) in (1..).zip(text.lines()) {
            let meant = line.split('#').next().unwrap_or_default();
            let words: Vec<&str> = meant.split_whitespace().collect();
            let hexadecimal = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit());
            match words[..] {
                [] => {}
                ["node", name] if is_name(name) => drop(list.nodes.insert(name.to_owned())),
                ["key", digits] if digits.len() == 64 && hexadecimal(digits) => {
                    list.keys.insert(digits.to_ascii_lowercase());
                }
                // As certificates are told elsewhere: without zeros in front.
                ["serial", digits] if hexadecimal(digits) => {
                    list.serials.insert(digits.to_ascii_lowercase().trim_start_matches('0').to_owned());
                }
                _ => {
                    let text = line.chars().take(100).collect();
                    return Err(DeniedError::Line { path: path.to_owned(), line: number, text });
                }
            }
        }
        Ok(list)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn identity(node: &str) -> NodeIdentity {
        NodeIdentity { cluster: "guest".into(), node: node.into() }
    }

    #[test]
    fn node_key_and_serial_are_denied_and_nobody_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("denied");
        let key = "AB".repeat(32);
        std::fs::write(&path, format!("# stolen\n\nnode node-7\nkey {key} # laptop\nserial 00fF01\n")).unwrap();
        let denied = Denied::open(&path).unwrap();
        let why = |node: &str, key: &str, serial: &str| denied.reason(&identity(node), key, serial);
        assert!(why("node-7", "", "1").unwrap().contains("node node-7"));
        assert!(why("node-1", &key.to_lowercase(), "1").unwrap().contains("key abab"));
        assert!(why("node-1", "", "ff01").unwrap().contains("serial ff01"));
        assert_eq!(why("node-1", "", "1"), None);

        std::fs::write(&path, "node node-1\nnodes node-2\n").unwrap();
        assert!(denied.look().unwrap_err().to_string().contains("denied:2:"));
        assert!(why("node-7", "", "1").is_some(), "the list of before stays in force");
        std::fs::write(&path, "").unwrap();
        assert!(denied.look().unwrap());
        assert_eq!(why("node-7", "", "1"), None);
    }

    proptest! {
        #[test]
        fn any_text_is_a_list_or_an_error(text in "[a-z0-9 #\\n]{0,120}") {
            let _ = List::read(Path::new("denied"), &text);
        }
    }
}
