//! The rule: struct audit_rule_data (include/uapi/linux/audit.h) as bytes.
//!
//! Ours is `auditctl -a always,exclude -F msgtype=SECCOMP -F msgtype=SECCOMP`: the condition stands there twice. It means
//! the same as once and can be listed and deleted by auditctl, but to the kernel (audit_compare_rule) it is another rule
//! than the one an administrator would write. So deleting ours can never delete theirs, whoever came first.

use super::netlink::{SECCOMP, word};

/// AUDIT_FILTER_EXCLUDE: looked at before a record is made.
const FILTER_EXCLUDE: u32 = 5;
/// AUDIT_FILTER_PREPEND, a flag of `flags` beside the list's number.
const FILTER_PREPEND: u32 = 0x10;
/// AUDIT_ALWAYS. The exclude list ignores the action (kernel/auditsc.c, audit_filter); this is what auditctl sends.
const ALWAYS: u32 = 2;
const MSGTYPE: u32 = 12;

const MAX_FIELDS: usize = 64;
const BITMASK_WORDS: usize = 64;
/// flags, action, field_count, mask, fields, values, fieldflags, buflen.
const LENGTH: usize = 4 * (3 + BITMASK_WORDS + 3 * MAX_FIELDS + 1);

/// Offsets in 32-bit words.
const MASK: usize = 3;
const FIELDS: usize = MASK + BITMASK_WORDS;
const VALUES: usize = FIELDS + MAX_FIELDS;
const OPERATORS: usize = VALUES + MAX_FIELDS;

/// fieldflags: how a field is compared.
mod operator {
    pub(super) const EQUAL: u32 = 0x4000_0000;
    pub(super) const NOT_EQUAL: u32 = 0x3000_0000;
    pub(super) const LESS_THAN: u32 = 0x1000_0000;
    pub(super) const GREATER_THAN: u32 = 0x2000_0000;
    pub(super) const LESS_OR_EQUAL: u32 = LESS_THAN | EQUAL;
    pub(super) const GREATER_OR_EQUAL: u32 = GREATER_THAN | EQUAL;
}

/// What auditctl calls ours, to be told to people.
pub const AUDITCTL: &str = "always,exclude -F msgtype=SECCOMP -F msgtype=SECCOMP";

/// One rule of the kernel's audit filters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    list: u32,
    action: u32,
    /// What, compared how, with what.
    conditions: Vec<(u32, u32, u32)>,
}

// === impl Rule ===

impl Rule {
    /// The one that quiet mode adds.
    pub fn ours() -> Self {
        Self::excluding(SECCOMP, 2)
    }

    /// Excludes a record type by so many equal conditions.
    fn excluding(message_type: u16, conditions: usize) -> Self {
        let condition = (MSGTYPE, operator::EQUAL, u32::from(message_type));
        Self { list: FILTER_EXCLUDE, action: ALWAYS, conditions: vec![condition; conditions] }
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut words = vec![0; LENGTH / 4];
        words[0] = self.list;
        words[1] = self.action;
        // Every syscall. The exclude list does not look at it, but rules are compared with it.
        words[MASK..FIELDS].fill(u32::MAX);
        for (index, (field, operator, value)) in self.conditions.iter().take(MAX_FIELDS).enumerate() {
            words[2] += 1;
            words[FIELDS + index] = *field;
            words[VALUES + index] = *value;
            words[OPERATORS + index] = *operator;
        }
        words.into_iter().flat_map(u32::to_ne_bytes).collect()
    }

    /// `None`: shorter than a rule, or more fields than a rule can have.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.get(..LENGTH)?;
        let at = |index: usize| word(bytes, 4 * index);
        let count = usize::try_from(at(2)?).ok().filter(|count| *count <= MAX_FIELDS)?;
        let conditions = (0..count)
            .map(|index| Some((at(FIELDS + index)?, at(OPERATORS + index)?, at(VALUES + index)?)))
            .collect::<Option<_>>()?;
        Some(Self { list: at(0)? & !FILTER_PREPEND, action: at(1)?, conditions })
    }

    /// Whether no SECCOMP record of anyone passes it. A rule with further conditions lets some pass, or may.
    pub fn excludes_seccomp(&self) -> bool {
        let holds = |&(field, operator, value): &(u32, u32, u32)| {
            let seccomp = u32::from(SECCOMP);
            field == MSGTYPE
                && match operator {
                    operator::EQUAL => seccomp == value,
                    operator::NOT_EQUAL => seccomp != value,
                    operator::LESS_THAN => seccomp < value,
                    operator::GREATER_THAN => seccomp > value,
                    operator::LESS_OR_EQUAL => seccomp <= value,
                    operator::GREATER_OR_EQUAL => seccomp >= value,
                    _ => false,
                }
        };
        // A rule without conditions matches nothing.
        self.list == FILTER_EXCLUDE && !self.conditions.is_empty() && self.conditions.iter().all(holds)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Rule, SECCOMP};

    /// What auditctl 3.0.9 sends for `-a exclude,always -F msgtype=SECCOMP`, by strace, behind struct nlmsghdr; with the
    /// condition twice it differs in `twice`.
    fn as_auditctl_sends(twice: bool) -> Vec<u8> {
        let mut bytes = b"\x05\0\0\0\x02\0\0\0".to_vec();
        bytes.extend(if twice { b"\x02\0\0\0" } else { b"\x01\0\0\0" });
        bytes.extend([0xff; 256]);
        for value in [b"\x0c\0\0\0", b"\x2e\x05\0\0", b"\0\0\0\x40"] {
            let mut words = [0; 256];
            words[..4].copy_from_slice(value);
            if twice {
                words[4..8].copy_from_slice(value);
            }
            bytes.extend(words);
        }
        bytes.extend([0; 4]);
        bytes
    }

    #[cfg(target_endian = "little")]
    #[test]
    fn a_rule_is_encoded_as_auditctl_does() {
        assert_eq!(Rule::excluding(SECCOMP, 1).encode(), as_auditctl_sends(false));
        assert_eq!(Rule::ours().encode(), as_auditctl_sends(true));
    }

    #[test]
    fn ours_is_not_the_one_that_an_administrator_would_write() {
        let theirs = Rule::excluding(SECCOMP, 1);
        assert_ne!(Rule::ours(), theirs);
        assert!(Rule::ours().excludes_seccomp() && theirs.excludes_seccomp());
    }

    #[test]
    fn only_a_rule_that_excludes_every_seccomp_record_does() {
        let rule = |list, conditions: &[(u32, u32, u32)]| Rule { list, action: 0, conditions: conditions.to_vec() };
        let (equal, not_equal, at_least, at_most) = (0x4000_0000, 0x3000_0000, 0x6000_0000, 0x5000_0000);
        assert!(rule(5, &[(12, at_least, 1300), (12, at_most, 1399)]).excludes_seccomp());
        assert!(rule(5, &[(12, not_equal, 1300)]).excludes_seccomp());
        // Of another record type; of the exit list; of one user only; by bits.
        assert!(!rule(5, &[(12, equal, 1327)]).excludes_seccomp());
        assert!(!rule(4, &[(12, equal, 1326)]).excludes_seccomp());
        assert!(!rule(5, &[(12, equal, 1326), (1, equal, 0)]).excludes_seccomp());
        assert!(!rule(5, &[(12, 0x0800_0000, 1326)]).excludes_seccomp());
        assert!(!rule(5, &[]).excludes_seccomp());
    }

    #[test]
    fn a_prepended_rule_is_the_same_rule() {
        let mut bytes = Rule::ours().encode();
        bytes[0] |= 0x10;
        assert_eq!(Rule::decode(&bytes), Some(Rule::ours()));
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_rule_or_none(bytes in proptest::collection::vec(any::<u8>(), 0..1200)) {
            if let Some(rule) = Rule::decode(&bytes) {
                prop_assert_eq!(Rule::decode(&rule.encode()), Some(rule));
            }
        }
    }
}
