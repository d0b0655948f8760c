//! The secret that the servers of one ring share.
//!
//! A key file is text: lines that are empty or begin with `#`, and one line of 64 hexadecimal
//! digits. Like a private key of ssh it must be closed to others.

use std::{
    fmt,
    fs::File,
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

/// Length of a key in bytes.
pub const CLUSTER_KEY_LEN: usize = 32;
/// A key file is far smaller; more is not read.
const KEY_FILE_LEN_MAX: u64 = 4096;

/// 32 secret bytes. Neither `Debug` nor anything else but [`ClusterKey::to_file_text`] shows them.
#[derive(Clone)]
pub struct ClusterKey([u8; CLUSTER_KEY_LEN]);

/// Why a text is not a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseKeyError {
    /// Nothing but comments.
    #[error("no key in it, only comments or nothing")]
    Missing,
    /// More than one line that is neither empty nor a comment.
    #[error("more than one key in it; a ring has exactly one")]
    Several,
    /// Not 64 digits.
    #[error("a key has {} hexadecimal digits, this one has {found} characters", 2 * CLUSTER_KEY_LEN)]
    WrongLength {
        /// Characters found.
        found: usize,
    },
    /// A character that is no hexadecimal digit. Which one is not said: it may be secret.
    #[error("a key is made of hexadecimal digits only")]
    NotHexadecimal,
}

/// Why a key file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ReadKeyError {
    /// The system refused.
    #[error("reading the cluster key {path:?}: {source}")]
    System {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Others may read or write it.
    #[error("the cluster key {path:?} has mode {mode:03o} and is open to others")]
    TooOpen {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Somebody else owns it, and so knows it.
    #[error("the cluster key {path:?} belongs to uid {owner}, not to you (uid {uid}) or root")]
    WrongOwner {
        /// The file.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// Who reads it.
        uid: u32,
    },
    /// What it holds is not a key.
    #[error("the cluster key {path:?} cannot be used: {source}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: ParseKeyError,
    },
}

impl ClusterKey {
    /// A new key from the system's random number generator.
    ///
    /// # Errors
    /// The system has no randomness to give.
    pub fn generate() -> io::Result<Self> {
        let mut bytes = [0; CLUSTER_KEY_LEN];
        getrandom::fill(&mut bytes).map_err(io::Error::other)?;
        Ok(Self(bytes))
    }

    /// Reads a key file's text.
    pub fn parse(text: &str) -> Result<Self, ParseKeyError> {
        let mut lines =
            text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#'));
        let line = lines.next().ok_or(ParseKeyError::Missing)?;
        if lines.next().is_some() {
            return Err(ParseKeyError::Several);
        }
        if line.len() != 2 * CLUSTER_KEY_LEN {
            return Err(ParseKeyError::WrongLength { found: line.chars().count() });
        }
        let mut bytes = [0; CLUSTER_KEY_LEN];
        for (byte, pair) in bytes.iter_mut().zip(line.as_bytes().chunks_exact(2)) {
            let digit = |c: u8| char::from(c).to_digit(16).ok_or(ParseKeyError::NotHexadecimal);
            // Two hexadecimal digits always fit.
            *byte = (digit(pair[0])? << 4 | digit(pair[1])?) as u8;
        }
        Ok(Self(bytes))
    }

    /// Reads a key file, which must belong to `uid` or root and be closed to everybody else. The
    /// permissions are those of the file that was opened, not of whatever has its name later.
    pub fn read(path: &Path, uid: u32) -> Result<Self, ReadKeyError> {
        let system = |source| ReadKeyError::System { path: path.to_owned(), source };
        let file = File::open(path).map_err(system)?;
        let meta = file.metadata().map_err(system)?;
        let (owner, mode) = (meta.uid(), meta.mode() & 0o777);
        if owner != uid && owner != 0 {
            return Err(ReadKeyError::WrongOwner { path: path.to_owned(), owner, uid });
        }
        if mode & 0o077 != 0 {
            return Err(ReadKeyError::TooOpen { path: path.to_owned(), mode });
        }
        let mut text = String::new();
        file.take(KEY_FILE_LEN_MAX).read_to_string(&mut text).map_err(system)?;
        Self::parse(&text)
            .map_err(|source| ReadKeyError::Malformed { path: path.to_owned(), source })
    }

    /// What goes into a key file.
    pub fn to_file_text(&self) -> String {
        let digits: String = self.0.iter().map(|byte| format!("{byte:02x}")).collect();
        format!(
            "# ringkeep cluster key: secret, the same file on every node, mode 0600\n{digits}\n"
        )
    }

    /// The secret itself, for the handshake.
    pub fn as_bytes(&self) -> &[u8; CLUSTER_KEY_LEN] {
        &self.0
    }
}

impl fmt::Debug for ClusterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClusterKey(secret)")
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;

    #[test]
    fn a_key_survives_its_file_text() {
        let key = ClusterKey::generate().unwrap();
        let read = ClusterKey::parse(&key.to_file_text()).unwrap();
        assert_eq!(read.as_bytes(), key.as_bytes());
        assert_ne!(ClusterKey::generate().unwrap().as_bytes(), key.as_bytes());
        assert_eq!(format!("{key:?}"), "ClusterKey(secret)");
    }

    #[test]
    fn what_is_not_a_key_is_refused() {
        let digits = "0f".repeat(32);
        let error = |text: &str| ClusterKey::parse(text).unwrap_err();
        assert_eq!(error("# only a comment\n\n"), ParseKeyError::Missing);
        assert_eq!(error(&format!("{digits}\n{digits}\n")), ParseKeyError::Several);
        assert_eq!(error(&digits[1..]), ParseKeyError::WrongLength { found: 63 });
        assert_eq!(error(&digits.replace('f', "g")), ParseKeyError::NotHexadecimal);
        assert_eq!(error(&"é".repeat(32)), ParseKeyError::NotHexadecimal);
        assert_eq!(ClusterKey::parse(&digits.to_uppercase()).unwrap().as_bytes(), &[0x0f; 32]);
    }

    #[test]
    fn a_key_file_open_to_others_is_refused() {
        let tmp = tempfile::tempdir().unwrap();
        let (path, uid) = (tmp.path().join("key"), rustix::process::geteuid().as_raw());
        fs::write(&path, ClusterKey::generate().unwrap().to_file_text()).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let open = ClusterKey::read(&path, uid);
        assert!(matches!(open, Err(ReadKeyError::TooOpen { mode: 0o640, .. })));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        ClusterKey::read(&path, uid).unwrap();
    }
}
