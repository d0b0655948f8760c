//! Where a user's server listens and keeps its files, when nobody says otherwise.
//!
//! Server and clients must come to the same answer without talking to each other, so the rule
//! depends on the user alone. `XDG_RUNTIME_DIR` is not asked on purpose: a server that an init
//! system started does not have it, its client in a login shell does.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
};

use crate::name::Name;

/// File name of the local socket.
const SOCKET_FILE: &str = "ringkeep.sock";

/// The local socket of `uid`'s server: `/run/ringkeep.sock` for root, else in the user's run-time
/// directory (`run_user`, see [`run_user_dir`]) if there is one, else in a private directory below
/// `/tmp`, for which see [`make_private_dir`].
pub fn default_socket(uid: u32, run_user: Option<&Path>) -> PathBuf {
    match (uid, run_user) {
        (0, _) => Path::new("/run").join(SOCKET_FILE),
        (_, Some(dir)) => dir.join(SOCKET_FILE),
        (uid, None) => PathBuf::from(format!("/tmp/ringkeep-{uid}")).join(SOCKET_FILE),
    }
}

/// `/run/user/UID` when this machine has it.
pub fn run_user_dir(uid: u32) -> Option<PathBuf> {
    let dir = PathBuf::from(format!("/run/user/{uid}"));
    dir.is_dir().then_some(dir)
}

/// The directory of a node's region files when there are no huge pages for them.
pub fn default_dir(uid: u32, node: &Name) -> PathBuf {
    PathBuf::from(format!("/dev/shm/ringkeep-{uid}/{node}"))
}

/// Why a directory cannot be used for what only one user may see. Nothing was changed, except that
/// the directory may have been made.
#[derive(Debug, thiserror::Error)]
pub enum PrivateDirError {
    /// The system refused.
    #[error("making {path:?}: {source}")]
    System {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Something else has that name, perhaps somebody's trap.
    #[error("{path:?} is not a directory")]
    NotADirectory {
        /// What was looked at.
        path: PathBuf,
    },
    /// Another user owns it.
    #[error("{path:?} belongs to uid {found}, not to {wanted}")]
    WrongOwner {
        /// The directory.
        path: PathBuf,
        /// Its owner.
        found: u32,
        /// Who must own it.
        wanted: u32,
    },
    /// Others may enter it.
    #[error("{path:?} has mode {mode:03o}; others must not enter it: chmod 700 {path:?}")]
    TooOpen {
        /// The directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
}

/// Makes `path` (not its parents) with mode 0700 if it is not there, then checks that it is a
/// directory of `uid` that nobody else may enter. A name below `/tmp` can be taken by anybody
/// first; one that was is refused here instead of being trusted.
pub fn make_private_dir(path: &Path, uid: u32) -> Result<(), PrivateDirError> {
    let system = |source| PrivateDirError::System { path: path.to_owned(), source };
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(system(e)),
        _ => {}
    }
    let found = fs::symlink_metadata(path).map_err(system)?;
    if !found.is_dir() {
        return Err(PrivateDirError::NotADirectory { path: path.to_owned() });
    }
    if found.uid() != uid {
        let (path, found) = (path.to_owned(), found.uid());
        return Err(PrivateDirError::WrongOwner { path, found, wanted: uid });
    }
    match found.mode() & 0o777 {
        mode if mode & 0o077 != 0 => Err(PrivateDirError::TooOpen { path: path.to_owned(), mode }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn each_user_has_one_socket() {
        let run = Path::new("/run/user/1000");
        assert_eq!(default_socket(0, Some(run)), Path::new("/run/ringkeep.sock"));
        assert_eq!(default_socket(1000, Some(run)), Path::new("/run/user/1000/ringkeep.sock"));
        assert_eq!(default_socket(1000, None), Path::new("/tmp/ringkeep-1000/ringkeep.sock"));
        let node = Name::new("n1").unwrap();
        assert_eq!(default_dir(1000, &node), Path::new("/dev/shm/ringkeep-1000/n1"));
    }

    #[test]
    fn a_private_directory_is_made_once_and_a_trap_is_refused() {
        let tmp = tempfile::tempdir().unwrap();
        let uid = rustix::process::geteuid().as_raw();
        let dir = tmp.path().join("d");
        make_private_dir(&dir, uid).unwrap();
        make_private_dir(&dir, uid).unwrap();
        assert_eq!(fs::metadata(&dir).unwrap().mode() & 0o777, 0o700);

        let wrong = make_private_dir(&dir, uid + 1);
        assert!(matches!(wrong, Err(PrivateDirError::WrongOwner { found, .. }) if found == uid));

        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
        let open = make_private_dir(&dir, uid);
        assert!(matches!(open, Err(PrivateDirError::TooOpen { mode: 0o755, .. })));

        let link = tmp.path().join("link");
        symlink(&dir, &link).unwrap();
        let trap = make_private_dir(&link, uid);
        assert!(matches!(trap, Err(PrivateDirError::NotADirectory { .. })));
    }
}
