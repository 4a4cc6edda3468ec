//! Versions of CRI-O, and what OpenShift ships.
//!
//! OpenShift 4.N carries CRI-O 1.(N+13), 5.N carries 1.(N+36): the go.mod of openshift/machine-config-operator's release
//! branches. Options come and go with CRI-O's minor version only, so the patch level is not kept.

use std::fmt;

use serde::{Serialize, Serializer};

/// CRI-O 1.`minor`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct CrioVersion {
    pub minor: u32,
}

/// The oldest and the newest version whose source the tables of this crate were read from.
pub const OLDEST: CrioVersion = CrioVersion { minor: 27 };
pub const NEWEST: CrioVersion = CrioVersion { minor: 37 };

impl CrioVersion {
    /// Reads "1.33", "v1.33.2", "1.34.0-dev" and the content of CRI-O's version file (`"1.33.2"`, quotes included).
    pub fn parse(text: &str) -> Option<Self> {
        let (major, minor) = major_minor(text)?;
        (major == 1 && minor < 1000).then_some(Self { minor })
    }

    /// The CRI-O of an OpenShift release such as "4.20" or "5.0.3".
    pub fn of_openshift(text: &str) -> Option<Self> {
        match major_minor(text)? {
            (4, minor) if (14..=23).contains(&minor) => Some(Self { minor: minor + 13 }),
            (5, minor) if minor < 100 => Some(Self { minor: minor + 36 }),
            _ => None,
        }
    }

    /// The OpenShift release that ships this CRI-O, as people call it.
    pub fn openshift(self) -> String {
        match self.minor {
            m if m >= 36 => format!("5.{}", m - 36),
            m => format!("4.{}", m.saturating_sub(13)),
        }
    }

    /// `pkg/config/config_linux.go`: runc up to 1.30, crun from 1.31.
    pub fn compiled_runtime(self) -> &'static str {
        if self.minor >= 31 { "crun" } else { "runc" }
    }

    /// The root of a handler that sets no `runtime_root`, whatever the handler's name (`internal/oci/runtime_oci.go`).
    pub fn compiled_runtime_root(self) -> &'static str {
        if self.minor >= 31 { "/run/crun" } else { "/run/runc" }
    }

    /// `privileged_seccomp_profile` exists from v1.33.0 and was not backported.
    pub fn has_privileged_profile(self) -> bool {
        self.minor >= 33
    }
}

impl fmt::Display for CrioVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "1.{}", self.minor)
    }
}

impl Serialize for CrioVersion {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

fn major_minor(text: &str) -> Option<(u32, u32)> {
    let text = text.trim().trim_matches('"').trim_start_matches('v');
    let mut parts = text.splitn(3, '.');
    let major = parts.next()?.parse().ok()?;
    let minor = parts.next()?;
    let digits = minor.find(|c: char| !c.is_ascii_digit()).unwrap_or(minor.len());
    Some((major, minor.get(..digits)?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_crio_and_people_write_them() {
        for (text, minor) in [
            ("1.33", Some(33)),
            ("v1.27.4", Some(27)),
            ("\"1.37.0\"\n", Some(37)),
            ("1.34.0-dev", Some(34)),
            ("1.35-rc1", Some(35)),
            ("4.20", None),
            ("", None),
            ("1.", None),
            ("1.99999999999", None),
        ] {
            assert_eq!(CrioVersion::parse(text).map(|v| v.minor), minor, "{text:?}");
        }
    }

    #[test]
    fn every_openshift_release_maps_to_its_crio_and_back() {
        for (ocp, minor) in
            [("4.14", 27), ("4.17", 30), ("4.18", 31), ("4.20", 33), ("4.22", 35), ("5.0", 36), ("5.1", 37)]
        {
            let version = CrioVersion::of_openshift(ocp);
            assert_eq!(version.map(|v| v.minor), Some(minor), "{ocp}");
            assert_eq!(version.map(|v| v.openshift()).as_deref(), Some(ocp));
        }
        assert_eq!(CrioVersion::of_openshift("3.11"), None);
    }
}
