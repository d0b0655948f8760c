//! Huge pages without a pool: the system joins the small pages of a file on tmpfs.
//!
//! Since Linux 6.1 `madvise(MADV_COLLAPSE)` does that at once, whatever the mount's `huge=` option
//! and `transparent_hugepage/shmem_enabled` say, unless that says `deny` (madvise(2)). It wants the
//! memory mapped at a multiple of the huge page's size, which [`Mapping`] sees to, and one small page
//! of it in place; the others it fills with zeros, an eighth of the time that small ones take.

use std::{
    fs::File,
    io,
    ops::Range,
    time::{Duration, Instant},
};

use rustix::fs::{FallocateFlags, MemfdFlags, fallocate, memfd_create};

use super::mapping::Mapping;

/// Bytes of a huge page. Where the system's are larger, it joins nothing.
pub const HUGE_PAGE_BYTES: u64 = 2 << 20;
/// Bytes that one call joins: each begins with a word to every core.
const STEP_BYTES: u64 = 32 << 20;
/// On fragmented memory the system moves other pages about first. So long it may take for a step and,
/// once, for all: about as long as filling small pages does.
const STEP_TIME: Duration = Duration::from_millis(16);
const TIME: Duration = Duration::from_millis(100);

/// Whether the system joins pages at all.
pub fn is_offered() -> bool {
    let tried = || -> io::Result<bool> {
        let file = memory_file("ringkeep-trial", HUGE_PAGE_BYTES)?;
        let mapping = Mapping::new(&file, HUGE_PAGE_BYTES as usize)?;
        Ok(join(&file, &mapping, 0..HUGE_PAGE_BYTES))
    };
    tried().unwrap_or(false)
}

/// Puts huge pages behind the first `bytes` bytes of a file that is as long, as far as whole ones fit
/// and the system gives them without much ado. True when all lie in huge pages. What does not is as it
/// was before: it has to be reserved.
pub fn join_all(file: &File, bytes: u64) -> io::Result<bool> {
    let whole = whole_pages(bytes);
    if whole == 0 {
        return Ok(false);
    }
    let mapping = Mapping::new(file, whole as usize)?;
    let mut allowed = TIME;
    let began = Instant::now();
    for at in (0..whole).step_by(STEP_BYTES as usize) {
        allowed += STEP_TIME;
        let joined = join(file, &mapping, at..whole.min(at + STEP_BYTES));
        if !joined || began.elapsed() > allowed {
            return Ok(false);
        }
    }
    Ok(true)
}

fn whole_pages(bytes: u64) -> u64 {
    bytes / HUGE_PAGE_BYTES * HUGE_PAGE_BYTES
}

/// One step. False when some of it was not joined.
fn join(file: &File, mapping: &Mapping, bytes: Range<u64>) -> bool {
    let page = rustix::param::page_size() as u64;
    let mut first_pages = bytes.clone().step_by(HUGE_PAGE_BYTES as usize);
    first_pages.all(|at| fallocate(file, FallocateFlags::empty(), at, page).is_ok())
        && mapping.collapse(bytes).is_ok()
}

/// A file in memory of so many bytes, all zeros, with nothing behind them yet.
pub fn memory_file(name: &str, bytes: u64) -> io::Result<File> {
    let file = File::from(memfd_create(name, MemfdFlags::CLOEXEC)?);
    file.set_len(bytes)?;
    Ok(file)
}

/// A file in memory that is filled from its begin to its end.
#[derive(Debug)]
pub struct Filling {
    file: File,
    /// Huge pages lie behind what was filled, and a little further.
    mapping: Option<Mapping>,
    joined: u64,
}

impl Filling {
    /// A file of so many bytes.
    ///
    /// # Errors
    /// Those of the system, also where the process may not map as much.
    pub fn new(name: &str, bytes: u64) -> io::Result<Self> {
        let file = memory_file(name, bytes)?;
        let whole = whole_pages(bytes);
        let mapping = (whole > 0).then(|| Mapping::new(&file, whole as usize)).transpose()?;
        Ok(Self { file, mapping, joined: 0 })
    }

    /// Writes what comes next. `at` is where the last call ended.
    ///
    /// # Errors
    /// There is no room.
    pub fn write(&mut self, at: u64, bytes: &[u8]) -> io::Result<()> {
        use std::os::unix::fs::FileExt;
        let end = at + bytes.len() as u64;
        if let Some(mapping) = &self.mapping {
            let next = self.joined..mapping.len().min(self.joined + STEP_BYTES / 4);
            if end > next.start && !next.is_empty() {
                if join(&self.file, mapping, next.clone()) {
                    self.joined = next.end;
                } else {
                    self.mapping = None;
                }
            }
        }
        match &self.mapping {
            Some(mapping) if end <= self.joined => {
                mapping.write_at(at, bytes).map_err(io::Error::other)
            }
            // The system clears no page that is written whole, and says so when there is none left.
            _ => self.file.write_all_at(bytes, at),
        }
    }

    /// The file, as far as it is filled.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The file.
    pub fn into_file(self) -> File {
        self.file
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt, MetadataExt};

    use super::*;

    #[test]
    fn a_file_that_is_filled_has_every_byte_and_takes_no_more_than_it_needs() {
        // With a part that fits no huge page, with more than is joined at once, without any.
        for len in [0, 1, 70_000, HUGE_PAGE_BYTES, 2 * HUGE_PAGE_BYTES + 5, 11 << 20] {
            let mut filling = Filling::new("test", len).unwrap();
            let bytes: Vec<u8> = (0..len).map(|at| (at % 253) as u8).collect();
            for (piece, at) in bytes.chunks(65_536).zip((0..).step_by(65_536)) {
                filling.write(at, piece).unwrap();
            }
            let file = filling.into_file();
            let mut there = vec![1; bytes.len()];
            file.read_exact_at(&mut there, 0).unwrap();
            assert!(there == bytes, "{len} bytes");
            let meta = file.metadata().unwrap();
            assert_eq!(meta.len(), len);
            assert_eq!(meta.blocks() * 512, len.next_multiple_of(4096), "{len} bytes");
        }
    }

    #[test]
    fn pages_are_joined_where_the_system_does_and_keep_what_they_hold() {
        let bytes = 2 * HUGE_PAGE_BYTES + 4096;
        let file = memory_file("test", bytes).unwrap();
        file.write_all_at(b"here", HUGE_PAGE_BYTES + 77).unwrap();
        let joined = join_all(&file, bytes).unwrap();
        assert_eq!(joined, is_offered());
        let mut there = [0; 4];
        file.read_exact_at(&mut there, HUGE_PAGE_BYTES + 77).unwrap();
        assert_eq!(&there, b"here");
        if joined {
            // Two whole huge pages, and nothing of what fits none.
            assert_eq!(file.metadata().unwrap().blocks() * 512, 2 * HUGE_PAGE_BYTES);
        }
        assert!(!join_all(&file, HUGE_PAGE_BYTES - 1).unwrap(), "no whole one");
    }

    #[test]
    fn a_file_that_is_too_short_is_not_mapped() {
        let file = memory_file("test", HUGE_PAGE_BYTES).unwrap();
        assert!(join_all(&file, 2 * HUGE_PAGE_BYTES).is_err());
    }
}
