//! Validated names of checkpoints and nodes.
//!
//! A name becomes part of a file name and of other servers' tables, so it is checked once, where it
//! enters, and carried as [`Name`] from there on.

use std::{fmt, sync::Arc};

use serde::{Deserialize, Serialize};

/// Longest name in bytes.
pub const NAME_LEN_MAX: usize = 128;

/// The name of a checkpoint or of a node: 1 to 128 of `A-Z a-z 0-9 . _ -`, not starting with a dot.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(Arc<str>);

/// Why a text is not a [`Name`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The text is empty.
    #[error("a name must not be empty")]
    Empty,
    /// The text is longer than [`NAME_LEN_MAX`].
    #[error("a name has at most {NAME_LEN_MAX} bytes, this one has {len}")]
    TooLong {
        /// Length in bytes of what was given.
        len: usize,
    },
    /// The text starts with a dot.
    #[error("a name must not start with a dot")]
    LeadingDot,
    /// The text has a byte that is not allowed.
    #[error("a name is made of A-Z a-z 0-9 . _ - only; {found:?} is not")]
    BadCharacter {
        /// The first character that is not allowed.
        found: char,
    },
}

impl Name {
    /// Checks `text`.
    pub fn new(text: &str) -> Result<Self, NameError> {
        if text.is_empty() {
            return Err(NameError::Empty);
        }
        if text.len() > NAME_LEN_MAX {
            return Err(NameError::TooLong { len: text.len() });
        }
        if text.starts_with('.') {
            return Err(NameError::LeadingDot);
        }
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        match text.chars().find(|&c| !allowed(c)) {
            Some(found) => Err(NameError::BadCharacter { found }),
            None => Ok(Self(text.into())),
        }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Name {
    type Error = NameError;
    fn try_from(text: String) -> Result<Self, NameError> {
        Self::new(&text)
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0.as_ref().to_owned()
    }
}

impl std::str::FromStr for Name {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        Self::new(text)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_control_characters_are_no_names() {
        assert_eq!(Name::new(""), Err(NameError::Empty));
        assert_eq!(Name::new(".."), Err(NameError::LeadingDot));
        assert_eq!(Name::new("a/b"), Err(NameError::BadCharacter { found: '/' }));
        assert_eq!(Name::new("a\0b"), Err(NameError::BadCharacter { found: '\0' }));
        assert_eq!(Name::new(&"x".repeat(10_000)), Err(NameError::TooLong { len: 10_000 }));
        assert_eq!(Name::new("sched-1.main_A").unwrap().as_str(), "sched-1.main_A");
    }

    #[test]
    fn a_serialized_name_is_checked_when_it_is_read() {
        assert!(serde_json::from_str::<Name>("\"../etc\"").is_err());
        assert_eq!(serde_json::from_str::<Name>("\"ok\"").unwrap(), Name::new("ok").unwrap());
    }
}
