//! A file that is replaced in order: what people do where no checkpoint server runs.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::{fd::AsRawFd, unix::fs::FileExt},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use serde::Serialize;
use tempfile::TempDir;

use super::{BenchError, turns::Contender};

/// A directory and what it lies on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Place {
    /// The directory, without links.
    pub dir: PathBuf,
    /// The type of its file system, as `mount` shows it; `unknown` where the system does not say.
    pub file_system: String,
}

impl Place {
    /// Looks at a directory.
    ///
    /// # Errors
    /// It is none, or it cannot be opened.
    pub fn of(dir: &Path) -> io::Result<Self> {
        let dir = dir.canonicalize()?;
        let open = File::open(&dir)?;
        if !open.metadata()?.is_dir() {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        // The mount that the open directory belongs to, whatever is mounted over it.
        let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", open.as_raw_fd()));
        let mounts = fs::read_to_string("/proc/self/mountinfo");
        let found = info.ok().zip(mounts.ok()).and_then(|(info, mounts)| {
            let id = info.lines().find_map(|line| line.strip_prefix("mnt_id:"))?;
            file_system_of(id.trim(), &mounts).map(str::to_owned)
        });
        Ok(Self { dir, file_system: found.unwrap_or_else(|| "unknown".to_owned()) })
    }

    /// A power cut takes what lies here.
    pub fn is_memory(&self) -> bool {
        matches!(self.file_system.as_str(), "tmpfs" | "ramfs" | "hugetlbfs")
    }
}

/// The type of the mount with this number; see proc(5), mountinfo.
fn file_system_of<'a>(id: &str, mounts: &'a str) -> Option<&'a str> {
    let line = mounts.lines().find(|line| line.split(' ').next() == Some(id))?;
    line.split_once(" - ")?.1.split(' ').next()
}

/// A state that is written beside the last one and takes its place: write, fsync, rename, fsync of
/// the directory. One copy, as durable as the file system is. What it made is removed when this is
/// dropped.
#[derive(Debug)]
pub struct Replaced {
    /// Its own.
    dir: TempDir,
    open: File,
    state: Vec<u8>,
    count: usize,
}

impl Replaced {
    /// States of `len` bytes in a new directory in `dir`.
    ///
    /// # Errors
    /// The system refused.
    pub fn start(dir: &Path, len: usize) -> io::Result<Self> {
        let dir = tempfile::Builder::new().prefix(".ringkeep-bench-").tempdir_in(dir)?;
        let open = File::open(dir.path())?;
        Ok(Self { dir, open, state: vec![7; len], count: 0 })
    }
}

impl Contender for Replaced {
    fn step(&mut self) -> Result<Duration, BenchError> {
        self.count += 1;
        let at = self.count % self.state.len();
        self.state[at] = self.state[at].wrapping_add(1);
        let (new, path) = (self.dir.path().join("state.new"), self.dir.path().join("state"));
        let began = Instant::now();
        let mut file = File::create(&new)?;
        file.write_all(&self.state)?;
        file.sync_all()?;
        fs::rename(new, path)?;
        self.open.sync_all()?;
        Ok(began.elapsed())
    }
}

/// The same bytes into a file that is there already, and an fdatasync: what no file that is as durable
/// can do without.
#[derive(Debug)]
pub struct Overwritten {
    _dir: TempDir,
    file: File,
    state: Vec<u8>,
    count: usize,
}

impl Overwritten {
    /// States of `len` bytes in a new directory in `dir`.
    ///
    /// # Errors
    /// The system refused.
    pub fn start(dir: &Path, len: usize) -> io::Result<Self> {
        let dir = tempfile::Builder::new().prefix(".ringkeep-bench-").tempdir_in(dir)?;
        let file = File::create(dir.path().join("state"))?;
        let state = vec![7; len];
        file.write_all_at(&state, 0)?;
        file.sync_all()?;
        Ok(Self { _dir: dir, file, state, count: 0 })
    }
}

impl Contender for Overwritten {
    fn step(&mut self) -> Result<Duration, BenchError> {
        self.count += 1;
        let at = self.count % self.state.len();
        self.state[at] = self.state[at].wrapping_add(1);
        let began = Instant::now();
        self.file.write_all_at(&self.state, 0)?;
        self.file.sync_data()?;
        Ok(began.elapsed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_system_is_that_of_the_mount() {
        let mounts = "\
22 28 0:21 / /proc rw,nosuid shared:12 - proc proc rw
28 1 254:0 / / rw,relatime - ext4 /dev/vda rw
128 28 0:30 / /dev/shm rw shared:4 master:1 - tmpfs none rw,size=1g
";
        assert_eq!(file_system_of("28", mounts), Some("ext4"));
        assert_eq!(file_system_of("128", mounts), Some("tmpfs"));
        assert_eq!(file_system_of("2", mounts), None);
        let memory = Place::of(Path::new("/dev/shm")).unwrap();
        assert!(memory.is_memory(), "{memory:?}");
        assert!(Place::of(Path::new("/proc/self/status")).is_err());
    }

    #[test]
    fn the_last_state_lies_there_whole_and_nothing_stays() {
        let tmp = tempfile::tempdir().unwrap();
        let mut replaced = Replaced::start(tmp.path(), 5).unwrap();
        (0..3).for_each(|_| assert!(replaced.step().is_ok()));
        let made = fs::read(replaced.dir.path().join("state")).unwrap();
        assert_eq!((made.as_slice(), made.len()), (&replaced.state[..], 5));
        assert_eq!(fs::read_dir(replaced.dir.path()).unwrap().count(), 1);
        let mut overwritten = Overwritten::start(tmp.path(), 5).unwrap();
        (0..3).for_each(|_| assert!(overwritten.step().is_ok()));
        let made = fs::read(overwritten._dir.path().join("state")).unwrap();
        assert_eq!(made, overwritten.state);
        drop((replaced, overwritten));
        assert_eq!(fs::read_dir(tmp.path()).unwrap().count(), 0);
    }
}
