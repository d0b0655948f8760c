//! The files that regions lie in: on huge pages when there is room, reserved to the last byte.
//!
//! Space is reserved with `fallocate` when a file is made. `set_len` alone would succeed beyond the
//! huge page pool and beyond a full tmpfs, and the first touch would then raise SIGBUS. Under a
//! memory limit of the container `fallocate` on tmpfs would wake the out-of-memory killer instead of
//! failing, so the limit is asked first.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{FallocateFlags, fallocate, fstatfs, statfs},
    io::Errno,
};
use serde::{Deserialize, Serialize};

use super::{
    room::{NoRoom, Promise},
    transparent,
};

/// Smaller regions lie in ordinary pages: a huge page would be mostly waste.
const HUGE_REGION_BYTES_MIN: u64 = 1 << 20;

/// Left in the node's directory for what the server notes there: each note is a new file before it
/// takes the place of the old one, and without a page for it nothing is adopted, given up or fenced.
const NOTES_BYTES: u64 = 1 << 20;

/// Which kind of memory a region's file lies in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Backing {
    /// Huge pages of the system's pool.
    Hugetlbfs,
    /// Ordinary pages that were joined, as far as whole huge ones fit.
    Transparent,
    /// Ordinary pages.
    #[default]
    Tmpfs,
}

/// Where regions may lie.
#[derive(Debug, Clone)]
pub struct Places {
    /// The node's directory, on tmpfs.
    pub dir: PathBuf,
    /// A directory on hugetlbfs and its page size in bytes.
    pub huge: Option<(PathBuf, u64)>,
    /// The system knows how to join ordinary pages.
    pub joins_pages: bool,
}

/// A region's file, just made.
#[derive(Debug)]
pub struct NewFile {
    /// Open for reading and writing.
    pub file: File,
    /// Its path.
    pub path: PathBuf,
    /// Reserved length in bytes, a multiple of the page size.
    pub bytes: u64,
    /// Where it lies.
    pub backing: Backing,
}

/// Why no file could be made. Nothing is left behind.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// Neither huge pages nor tmpfs has this much room, or the container's limit is too near.
    #[error("no space for {wanted} bytes in {place}: {available} bytes available")]
    NoSpace {
        /// Bytes wanted.
        wanted: u64,
        /// Bytes that could be had.
        available: u64,
        /// What is full.
        place: String,
    },
    /// The system refused.
    #[error("{path}: {source}")]
    System {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

impl Places {
    /// The node's directories: `dir`, and one beside it on the first writable hugetlbfs mount.
    /// Both are made if need be, for this user only.
    pub fn prepare(dir: &Path, mounts: &str) -> io::Result<Self> {
        make_private_dir(dir)?;
        let huge = hugetlbfs_mounts(mounts).find_map(|mount| {
            let name = dir.to_string_lossy().trim_matches('/').replace('/', "-");
            let path = mount.join(format!("ringkeep-{name}"));
            make_private_dir(&path).ok()?;
            let fs = statfs(&path).ok()?;
            Some((path, fs.f_bsize as u64))
        });
        Ok(Self { dir: dir.to_owned(), huge, joins_pages: transparent::is_known() })
    }

    /// Makes and reserves a file of at least `bytes` bytes with this file name.
    pub fn create(&self, file_name: &str, bytes: u64) -> Result<NewFile, CreateError> {
        if let Some((dir, page)) = &self.huge
            && bytes >= HUGE_REGION_BYTES_MIN
            && let Ok(made) = reserve(dir.join(file_name), bytes, *page, Backing::Hugetlbfs)
        {
            return Ok(made);
        }
        let page = rustix::param::page_size() as u64;
        let _promise = Promise::new(bytes).map_err(|NoRoom { available }| {
            let place = "this container's memory limit".to_owned();
            CreateError::NoSpace { wanted: bytes, available, place }
        })?;
        let backing = if self.joins_pages { Backing::Transparent } else { Backing::Tmpfs };
        reserve(self.dir.join(file_name), bytes, page, backing)
    }

    /// Opens a file that an earlier life of this server made.
    pub fn open(&self, file_name: &str) -> io::Result<(File, PathBuf)> {
        for dir in self.huge.iter().map(|(dir, _)| dir).chain([&self.dir]) {
            let path = dir.join(file_name);
            match OpenOptions::new().read(true).write(true).open(&path) {
                Ok(file) => return Ok((file, path)),
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
        Err(io::ErrorKind::NotFound.into())
    }

    /// All files here whose name ends in `suffix`, with their names.
    pub fn list(&self, suffix: &str) -> io::Result<Vec<String>> {
        let mut found = Vec::new();
        for dir in self.huge.iter().map(|(dir, _)| dir).chain([&self.dir]) {
            for entry in fs::read_dir(dir)? {
                if let Ok(name) = entry?.file_name().into_string()
                    && name.ends_with(suffix)
                {
                    found.push(name);
                }
            }
        }
        Ok(found)
    }
}

/// Makes a directory for this user alone, and refuses one that belongs to somebody else: in a
/// world-writable parent anybody could have put it there.
pub fn make_private_dir(dir: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let meta = fs::symlink_metadata(dir)?;
    if !meta.is_dir() || meta.uid() != rustix::process::geteuid().as_raw() {
        let why = format!("{} belongs to another user; choose another --dir", dir.display());
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
    }
    Ok(())
}

fn reserve(path: PathBuf, bytes: u64, page: u64, backing: Backing) -> Result<NewFile, CreateError> {
    let system = |source| CreateError::System { path: path.clone(), source };
    let bytes = bytes.next_multiple_of(page);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)
        .map_err(system)?;
    let notes = if backing == Backing::Hugetlbfs { 0 } else { NOTES_BYTES };
    let reserved = fill(&file, bytes, notes, backing);
    reserved.map(|backing| NewFile { file, path: path.clone(), bytes, backing }).map_err(|failed| {
        // The file is new and ours; if it cannot be unlinked the reservation error still counts.
        let _ = fs::remove_file(&path);
        match failed {
            (Errno::NOSPC | Errno::NOMEM | Errno::FBIG, available) => {
                let place = path.parent().unwrap_or(&path).display().to_string();
                CreateError::NoSpace { wanted: bytes, available, place }
            }
            (other, _) => system(other.into()),
        }
    })
}

/// Puts memory behind a new file, and leaves `notes` bytes of its file system to others. On error, also
/// how many bytes could be had.
fn fill(file: &File, bytes: u64, notes: u64, backing: Backing) -> Result<Backing, (Errno, u64)> {
    let left = || left_beside(file).saturating_sub(notes);
    if bytes > left() {
        return Err((Errno::NOSPC, left()));
    }
    let backing = match backing {
        Backing::Transparent if !joined(file, bytes) => Backing::Tmpfs,
        other => other,
    };
    // It takes what is not in place yet.
    fallocate(file, FallocateFlags::empty(), 0, bytes).map_err(|errno| (errno, left()))?;
    // Another one may have been made meanwhile.
    if left_beside(file) < notes { Err((Errno::NOSPC, 0)) } else { Ok(backing) }
}

/// Bytes that a file's file system can still take; a tmpfs may be without a limit.
fn left_beside(file: &File) -> u64 {
    match fstatfs(file) {
        Ok(fs) if fs.f_blocks == 0 => u64::MAX,
        Ok(fs) => fs.f_bavail * fs.f_bsize as u64,
        Err(_) => 0,
    }
}

/// Whether a new file has huge pages behind it now.
fn joined(file: &File, bytes: u64) -> bool {
    file.set_len(bytes).and_then(|()| transparent::join_all(file, bytes)).unwrap_or(false)
}

/// Mount points of type hugetlbfs in the text of `/proc/mounts`.
pub fn hugetlbfs_mounts(mounts: &str) -> impl Iterator<Item = PathBuf> + '_ {
    mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ');
        let (_, at, kind) = (fields.next()?, fields.next()?, fields.next()?);
        (kind == "hugetlbfs").then(|| PathBuf::from(at))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hugetlbfs_is_found_among_other_mounts() {
        let mounts =
            "tmpfs /dev/shm tmpfs rw 0 0\nhugetlbfs /mnt/huge hugetlbfs rw,pagesize=2M 0 0\n";
        assert_eq!(hugetlbfs_mounts(mounts).collect::<Vec<_>>(), [PathBuf::from("/mnt/huge")]);
    }

    #[test]
    fn a_file_is_reserved_at_once_and_leaves_nothing_when_it_cannot_be() {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let places = Places { dir: dir.path().join("n"), huge: None, joins_pages: false };
        make_private_dir(&places.dir).unwrap();
        let made = places.create("a.region", 10_000).unwrap();
        assert_eq!(made.bytes, 12_288);
        assert_eq!(made.file.metadata().unwrap().blocks() * 512, 12_288);
        let too_much = places.create("b.region", 1 << 50);
        assert!(matches!(too_much, Err(CreateError::NoSpace { .. })), "{too_much:?}");
        assert_eq!(places.list(".region").unwrap(), ["a.region"]);
    }

    #[test]
    fn a_file_in_joined_pages_takes_no_more_than_it_needs_and_leaves_nothing_when_it_cannot_be() {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let places = Places { joins_pages: true, ..Places::prepare(dir.path(), "").unwrap() };
        let bytes = 5 * transparent::HUGE_PAGE_BYTES / 2 + 1;
        let made = places.create("a.region", bytes).unwrap();
        assert_eq!(made.bytes, bytes.next_multiple_of(4096));
        assert_eq!(made.file.metadata().unwrap().blocks() * 512, made.bytes);
        // Not where it takes too long.
        assert!(made.backing == Backing::Tmpfs || transparent::is_offered());
        let small = places.create("b.region", 10_000).unwrap();
        assert_eq!((small.bytes, small.backing), (12_288, Backing::Tmpfs));
        let too_much = places.create("c.region", 1 << 46);
        assert!(matches!(too_much, Err(CreateError::NoSpace { .. })), "{too_much:?}");
        assert_eq!(places.list(".region").unwrap().len(), 2);
    }
}
