//! A task's name, as small as the kernel keeps it.

use std::fmt;

use seclog_abi::COMM_LEN;
use seclog_proto::text;

/// `task_struct.comm`: up to 15 bytes that a process can choose (prctl), any but NUL.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Comm([u8; COMM_LEN]);

// === impl Comm ===

impl Comm {
    /// Up to the first NUL. No kernel has more than 15 bytes; more are cut as prctl cuts them.
    pub fn new(bytes: &[u8]) -> Self {
        let length =
            bytes.iter().take(COMM_LEN - 1).position(|byte| *byte == 0).unwrap_or(bytes.len().min(COMM_LEN - 1));
        let mut comm = [0; COMM_LEN];
        comm[..length].copy_from_slice(&bytes[..length]);
        Self(comm)
    }

    pub fn as_bytes(&self) -> &[u8] {
        let length = self.0.iter().position(|byte| *byte == 0).unwrap_or(COMM_LEN);
        &self.0[..length]
    }

    pub fn to_text(&self) -> String {
        text::from_bytes(self.as_bytes())
    }
}

/// Text as records carry it ([`text`]).
impl From<&str> for Comm {
    fn from(text: &str) -> Self {
        Self::new(&text::to_bytes(text))
    }
}

impl fmt::Debug for Comm {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:?}", self.to_text())
    }
}

#[cfg(test)]
mod tests {
    use super::Comm;
    use proptest::prelude::*;

    #[test]
    fn names_longer_than_the_kernels_are_cut_as_prctl_cuts_them() {
        assert_eq!(Comm::new(b"0123456789abcdefgh").as_bytes(), b"0123456789abcde");
        assert_eq!(Comm::new(b"sh\0rest of an older name").as_bytes(), b"sh");
    }

    proptest! {
        #[test]
        fn names_of_any_bytes_come_back(bytes in proptest::collection::vec(1u8.., 0..16)) {
            let comm = Comm::new(&bytes);
            prop_assert_eq!(comm.as_bytes(), &bytes);
            prop_assert_eq!(Comm::from(comm.to_text().as_str()), comm);
        }
    }
}
