//! The demo's service: an index of a directory tree, path → SHA-256 of every regular file.
//!
//! Its state is what a service would checkpoint: the list of files, fixed when it starts, and the
//! outcomes so far. The position is the number of outcomes. A state encodes to bytes and back; a
//! resumed indexer goes on after the last outcome and ends with the same index.

use std::{
    ffi::OsStr,
    fs::{File, OpenOptions},
    io::{self, Read},
    os::unix::{
        ffi::{OsStrExt, OsStringExt},
        fs::OpenOptionsExt,
    },
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use walkdir::WalkDir;

/// A directory that is on every Linux machine and takes a few seconds.
pub const DIR_DEFAULT: &str = "/usr/share";
/// Files indexed unless told otherwise.
pub const FILES_MAX_DEFAULT: u32 = 5_000;
/// Most files that an index may have.
pub const FILES_MAX: u32 = 1_000_000;

/// Says which encoding a state has.
const FORMAT: u32 = 1;
/// Read at a time.
const BUFFER_LEN: usize = 128 << 10;

/// What became of one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// The SHA-256 of its content.
    Sha256([u8; 32]),
    /// It could not be read (any more).
    Unreadable,
}

/// How far an indexer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// Files done.
    pub done: usize,
    /// Files in all.
    pub total: usize,
}

impl Position {
    /// Nothing is left to do.
    pub fn is_finished(self) -> bool {
        self.done == self.total
    }
}

/// Why a directory cannot be indexed.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The directory itself cannot be read.
    #[error("reading the directory {dir:?}: {source}")]
    Directory {
        /// The directory.
        dir: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// There is no regular file in it.
    #[error("there is no file to index in {dir:?}")]
    Empty {
        /// The directory.
        dir: PathBuf,
    },
}

/// Why bytes are not a state to resume from.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResumeError {
    /// The bytes do not decode.
    #[error("the state does not decode")]
    Malformed,
    /// The state has another format.
    #[error("the state has format {found}, this program reads format {FORMAT}")]
    Format {
        /// What the state says.
        found: u32,
    },
    /// The state is of another directory.
    #[error("the state is of {found:?}, not of {wanted:?}")]
    OtherDirectory {
        /// What the state says.
        found: PathBuf,
        /// What was asked for.
        wanted: PathBuf,
    },
    /// The list of files breaks its rules: relative, sorted, no path twice, not too long.
    #[error("the state's list of files breaks its rules")]
    BadList,
    /// More outcomes than files.
    #[error("the state has {done} outcomes for {total} files")]
    BadPosition {
        /// Outcomes.
        done: usize,
        /// Files.
        total: usize,
    },
}

/// What is encoded. Paths are bytes, as Linux has them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    format: u32,
    dir: Vec<u8>,
    /// Relative to `dir`, sorted by bytes.
    paths: Vec<Vec<u8>>,
    /// Of the first paths, in their order.
    outcomes: Vec<Outcome>,
}

/// The service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Indexer {
    state: State,
}

impl Indexer {
    /// Lists at most `files_max` regular files of `dir`. Symbolic links are not followed and other
    /// file systems not entered. Directories that cannot be read are listed as if they were files:
    /// the index says `unreadable` of them.
    pub fn new(dir: &Path, files_max: u32) -> Result<Self, StartError> {
        let system = |source| StartError::Directory { dir: dir.to_owned(), source };
        let dir = dir.canonicalize().map_err(system)?;
        std::fs::read_dir(&dir).map_err(system)?;
        let limit = files_max.min(FILES_MAX) as usize;
        // Sorted while walking, so that the same files come first every time; sorted again after,
        // because `a/b` and `a.b` order differently as whole paths.
        let walk = WalkDir::new(&dir).sort_by_file_name().same_file_system(true);
        let mut paths: Vec<Vec<u8>> =
            walk.into_iter().filter_map(|entry| listed(&dir, entry)).take(limit).collect();
        paths.sort_unstable();
        paths.dedup();
        if paths.is_empty() {
            return Err(StartError::Empty { dir });
        }
        let dir = dir.into_os_string().into_vec();
        Ok(Self { state: State { format: FORMAT, dir, paths, outcomes: Vec::new() } })
    }

    /// Goes on from an encoded state of the same directory.
    pub fn resume(dir: &Path, encoded: &[u8]) -> Result<Self, ResumeError> {
        let (state, rest) =
            postcard::take_from_bytes::<State>(encoded).map_err(|_| ResumeError::Malformed)?;
        if state.format != FORMAT {
            return Err(ResumeError::Format { found: state.format });
        }
        if !rest.is_empty() {
            return Err(ResumeError::Malformed);
        }
        let wanted = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
        let found = Path::new(OsStr::from_bytes(&state.dir));
        if found != wanted {
            return Err(ResumeError::OtherDirectory { found: found.to_owned(), wanted });
        }
        let sorted = state.paths.is_sorted_by(|a, b| a < b);
        let sound = |path: &Vec<u8>| {
            let parts = Path::new(OsStr::from_bytes(path)).components();
            !path.is_empty()
                && parts.into_iter().all(|p| matches!(p, std::path::Component::Normal(_)))
        };
        if !sorted || state.paths.len() > FILES_MAX as usize || !state.paths.iter().all(sound) {
            return Err(ResumeError::BadList);
        }
        let (done, total) = (state.outcomes.len(), state.paths.len());
        if done > total {
            return Err(ResumeError::BadPosition { done, total });
        }
        Ok(Self { state })
    }

    /// Indexes up to `files` more files.
    pub fn step_batch(&mut self, files: usize) -> Position {
        let dir = PathBuf::from(OsStr::from_bytes(&self.state.dir));
        let done = self.state.outcomes.len();
        let batch = self.state.paths.iter().skip(done).take(files);
        let outcomes: Vec<Outcome> = batch
            .map(|path| sha256(&dir.join(OsStr::from_bytes(path))))
            .map(|sum| sum.map_or(Outcome::Unreadable, Outcome::Sha256))
            .collect();
        self.state.outcomes.extend(outcomes);
        self.position()
    }

    /// How far it is.
    pub fn position(&self) -> Position {
        Position { done: self.state.outcomes.len(), total: self.state.paths.len() }
    }

    /// The state as bytes; the same state always gives the same bytes.
    ///
    /// # Errors
    /// None that this state can cause; the encoder's signature has them.
    pub fn encode(&self) -> io::Result<Vec<u8>> {
        postcard::to_stdvec(&self.state).map_err(io::Error::other)
    }

    /// The index so far, in the order of its paths.
    pub fn index(&self) -> impl Iterator<Item = (&Path, Outcome)> {
        let paths = self.state.paths.iter().map(|path| Path::new(OsStr::from_bytes(path)));
        paths.zip(self.state.outcomes.iter().copied())
    }

    /// A sum over the index so far: two indexes are equal when their digests are.
    pub fn digest(&self) -> [u8; 32] {
        let mut sum = Sha256::new();
        for (path, outcome) in self.index() {
            let path = path.as_os_str().as_bytes();
            sum.update((path.len() as u64).to_le_bytes());
            sum.update(path);
            match outcome {
                Outcome::Sha256(content) => {
                    sum.update([1]);
                    sum.update(content);
                }
                Outcome::Unreadable => sum.update([0]),
            }
        }
        sum.finalize().into()
    }
}

/// The path to list for what the walk found, relative to `dir`.
fn listed(dir: &Path, entry: walkdir::Result<walkdir::DirEntry>) -> Option<Vec<u8>> {
    let path = match entry {
        Ok(entry) if entry.file_type().is_file() => entry.into_path(),
        Ok(_) => return None,
        Err(e) => e.path()?.to_owned(),
    };
    let relative = path.strip_prefix(dir).ok()?.as_os_str().as_bytes().to_vec();
    (!relative.is_empty()).then_some(relative)
}

/// Neither follows a link nor waits for a pipe that took the file's place since it was listed.
fn open(path: &Path) -> io::Result<File> {
    use rustix::fs::OFlags;
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits();
    let file = OpenOptions::new().read(true).custom_flags(flags as i32).open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::ErrorKind::InvalidInput.into()),
    }
}

fn sha256(path: &Path) -> io::Result<[u8; 32]> {
    let mut file = open(path)?;
    let mut sum = Sha256::new();
    let mut buffer = vec![0; BUFFER_LEN];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(sum.finalize().into()),
            Ok(len) => sum.update(&buffer[..len]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    /// Files whose paths sort differently by part and as a whole, a link, an empty directory.
    fn tree() -> tempfile::TempDir {
        let tmp = tempfile::tempdir().unwrap();
        let dir = tmp.path();
        fs::create_dir_all(dir.join("a/deep/er")).unwrap();
        fs::create_dir(dir.join("empty")).unwrap();
        for (number, path) in ["a/x", "a.y", "a/deep/er/z", "b", "c", "d", "é"].iter().enumerate()
        {
            fs::write(dir.join(path), format!("content {number}").repeat(number * 1000)).unwrap();
        }
        symlink("b", dir.join("link")).unwrap();
        symlink("/", dir.join("everything")).unwrap();
        tmp
    }

    fn finish(mut indexer: Indexer, batch: usize) -> Indexer {
        while !indexer.step_batch(batch).is_finished() {}
        indexer
    }

    #[test]
    fn every_regular_file_is_indexed_and_no_link_followed() {
        let tmp = tree();
        let indexer = finish(Indexer::new(tmp.path(), 100).unwrap(), 3);
        let paths: Vec<_> = indexer.index().map(|(path, _)| path.to_str().unwrap()).collect();
        assert_eq!(paths, ["a.y", "a/deep/er/z", "a/x", "b", "c", "d", "é"]);
        let (_, outcome) = indexer.index().nth(3).unwrap();
        let content: [u8; 32] = Sha256::digest("content 3".repeat(3000)).into();
        assert_eq!(outcome, Outcome::Sha256(content));
    }

    #[test]
    fn resumed_after_any_batch_it_ends_with_the_same_index() {
        let tmp = tree();
        let whole = finish(Indexer::new(tmp.path(), 100).unwrap(), 100);
        for batch in 1..=3 {
            let mut indexer = Indexer::new(tmp.path(), 100).unwrap();
            loop {
                let position = indexer.step_batch(batch);
                let resumed = Indexer::resume(tmp.path(), &indexer.encode().unwrap()).unwrap();
                assert_eq!(resumed.position(), position);
                let resumed = finish(resumed, batch);
                assert_eq!(resumed, whole);
                assert_eq!(resumed.digest(), whole.digest());
                assert_eq!(resumed.encode().unwrap(), whole.encode().unwrap());
                if position.is_finished() {
                    break;
                }
            }
        }
    }

    #[test]
    fn a_file_that_goes_away_is_unreadable_and_changes_the_digest() {
        let tmp = tree();
        let whole = finish(Indexer::new(tmp.path(), 100).unwrap(), 100);
        let indexer = Indexer::new(tmp.path(), 100).unwrap();
        fs::remove_file(tmp.path().join("c")).unwrap();
        fs::remove_file(tmp.path().join("d")).unwrap();
        symlink("b", tmp.path().join("d")).unwrap();
        let indexer = finish(indexer, 2);
        let lost: Vec<_> =
            indexer.index().filter(|(_, o)| *o == Outcome::Unreadable).map(|(p, _)| p).collect();
        assert_eq!(lost, [Path::new("c"), Path::new("d")]);
        assert_ne!(indexer.digest(), whole.digest());
    }

    #[test]
    fn files_max_takes_the_same_files_every_time() {
        let tmp = tree();
        let few = Indexer::new(tmp.path(), 3).unwrap();
        assert_eq!(few.position().total, 3);
        assert_eq!(few, Indexer::new(tmp.path(), 3).unwrap());
    }

    #[test]
    fn a_state_of_another_directory_is_refused() {
        let (tmp, other) = (tree(), tree());
        let state = Indexer::new(tmp.path(), 100).unwrap().encode().unwrap();
        let refused = Indexer::resume(other.path(), &state);
        assert!(matches!(refused, Err(ResumeError::OtherDirectory { .. })), "{refused:?}");
    }

    #[test]
    fn a_state_that_breaks_the_rules_is_refused() {
        let tmp = tree();
        let good = finish(Indexer::new(tmp.path(), 100).unwrap(), 100);
        let resume = |spoil: &dyn Fn(&mut State)| {
            let mut indexer = good.clone();
            spoil(&mut indexer.state);
            Indexer::resume(tmp.path(), &indexer.encode().unwrap()).unwrap_err()
        };
        assert_eq!(resume(&|s| s.format = 2), ResumeError::Format { found: 2 });
        assert_eq!(resume(&|s| s.paths.swap(0, 1)), ResumeError::BadList);
        assert_eq!(resume(&|s| s.paths[0] = b"../x".to_vec()), ResumeError::BadList);
        assert_eq!(resume(&|s| s.paths[0] = b"/x".to_vec()), ResumeError::BadList);
        assert_eq!(resume(&|s| s.paths[0].clear()), ResumeError::BadList);
        let short = resume(&|s| drop(s.paths.pop()));
        assert_eq!(short, ResumeError::BadPosition { done: 7, total: 6 });

        let bytes = good.encode().unwrap();
        for len in 0..bytes.len() {
            let cut = Indexer::resume(tmp.path(), &bytes[..len]);
            assert_eq!(cut, Err(ResumeError::Malformed), "cut at {len}");
        }
        let longer = [&bytes[..], &[0]].concat();
        assert_eq!(Indexer::resume(tmp.path(), &longer), Err(ResumeError::Malformed));
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_are_trusted(bytes: Vec<u8>, at: usize, new: u8) {
            let _ = Indexer::resume(Path::new("/"), &bytes);
            let paths = vec![b"a".to_vec(), b"b".to_vec()];
            let outcomes = vec![Outcome::Sha256([7; 32])];
            let state = State { format: FORMAT, dir: b"/".to_vec(), paths, outcomes };
            let mut spoiled = postcard::to_stdvec(&state).unwrap();
            let at = at % spoiled.len();
            spoiled[at] = new;
            if let Ok(mut indexer) = Indexer::resume(Path::new("/"), &spoiled) {
                assert!(indexer.step_batch(usize::MAX).is_finished());
            }
        }
    }

    #[test]
    fn a_directory_with_nothing_to_index_says_so() {
        let tmp = tempfile::tempdir().unwrap();
        assert!(matches!(Indexer::new(tmp.path(), 9), Err(StartError::Empty { .. })));
        let nowhere = Indexer::new(&tmp.path().join("no"), 9);
        assert!(matches!(nowhere, Err(StartError::Directory { .. })));
    }
}
