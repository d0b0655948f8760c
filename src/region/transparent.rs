//! Huge pages without a pool: the system joins the small pages of a file on tmpfs.
//!
//! Since Linux 6.1 `madvise(MADV_COLLAPSE)` does that at once, whatever the mount's `huge=` option
//! and `transparent_hugepage/shmem_enabled` say, unless that says `deny` (madvise(2)). It wants the
//! memory mapped at a multiple of the huge page's size, which [`Mapping`] sees to, and one small page
//! of it in place; the others it fills with zeros, an eighth of the time that small ones take.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    time::{Duration, Instant},
};

use rustix::fs::{FallocateFlags, MemfdFlags, fallocate, memfd_create};

use super::{mapping::Mapping, room::Promise};

/// Bytes of a huge page. Where the system's are larger, it joins nothing.
pub const HUGE_PAGE_BYTES: u64 = 2 << 20;
/// Bytes that one call joins at most: each begins with a word to every core. The first calls join less,
/// so that a slow one does not last.
const STEP_BYTES_MAX: u64 = 32 << 20;
/// The system may have to move other pages about first, or to get memory from its host. So long it may
/// take, once and for each MiB: about as long as filling small pages does.
const TIME: Duration = Duration::from_millis(15);
const TIME_PER_MIB: Duration = Duration::from_micros(250);

/// Whether the system joins pages at all.
pub fn is_offered() -> bool {
    let tried = || -> io::Result<bool> {
        let file = memory_file("ringkeep-trial", HUGE_PAGE_BYTES)?;
        Ok(Joining::new(&file, HUGE_PAGE_BYTES)?.step(&file, |_| Duration::MAX))
    };
    tried().unwrap_or(false)
}

/// Puts huge pages behind the first `bytes` bytes of a file that is as long, as far as whole ones fit
/// and the system gives them without much ado. True when all lie in huge pages. What does not is as it
/// was before: it has to be reserved.
pub fn join_all(file: &File, bytes: u64) -> io::Result<bool> {
    join_within(file, bytes, allowed)
}

fn join_within(file: &File, bytes: u64, allowed: fn(u64) -> Duration) -> io::Result<bool> {
    if bytes < HUGE_PAGE_BYTES {
        return Ok(false);
    }
    let mut joining = Joining::new(file, bytes)?;
    while !joining.is_done() {
        if !joining.step(file, allowed) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// A file whose pages are joined from its begin on.
#[derive(Debug)]
struct Joining {
    mapping: Mapping,
    /// Bytes that lie in huge pages.
    joined: u64,
    spent: Duration,
}

impl Joining {
    fn new(file: &File, bytes: u64) -> io::Result<Self> {
        let whole = bytes / HUGE_PAGE_BYTES * HUGE_PAGE_BYTES;
        let mapping = Mapping::new(file, whole as usize)?;
        Ok(Self { mapping, joined: 0, spent: Duration::ZERO })
    }

    fn is_done(&self) -> bool {
        self.joined == self.mapping.len()
    }

    /// Joins some more, as many as before at most. False when it did not, or took so long that it
    /// should not go on.
    fn step(&mut self, file: &File, allowed: fn(u64) -> Duration) -> bool {
        let began = Instant::now();
        let bytes = self.joined.clamp(HUGE_PAGE_BYTES, STEP_BYTES_MAX);
        let next = self.joined..self.mapping.len().min(self.joined + bytes);
        let page = rustix::param::page_size() as u64;
        let mut first_pages = next.clone().step_by(HUGE_PAGE_BYTES as usize);
        let joined = first_pages
            .all(|at| fallocate(file, FallocateFlags::empty(), at, page).is_ok())
            && self.mapping.collapse(next.clone()).is_ok();
        if joined {
            self.joined = next.end;
        }
        self.spent += began.elapsed();
        joined && (self.is_done() || self.spent <= allowed(self.joined))
    }
}

fn allowed(bytes: u64) -> Duration {
    TIME + TIME_PER_MIB * (bytes >> 20) as u32
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
    joining: Option<Joining>,
    bytes: u64,
    /// For what nothing lies behind yet.
    promise: Promise,
}

impl Filling {
    /// A file of so many bytes.
    ///
    /// # Errors
    /// The container's limit leaves no room for it, as far as anybody can tell. Those of the system,
    /// also where the process may not map as much.
    pub fn new(name: &str, bytes: u64) -> io::Result<Self> {
        let promise = Promise::new(bytes)?;
        let file = memory_file(name, bytes)?;
        let large = bytes >= HUGE_PAGE_BYTES;
        let joining = large.then(|| Joining::new(&file, bytes)).transpose()?;
        Ok(Self { file, joining, bytes, promise })
    }

    /// Writes what comes next. `at` is where the last call ended.
    ///
    /// # Errors
    /// There is no room.
    pub fn write(&mut self, at: u64, bytes: &[u8]) -> io::Result<()> {
        let end = at + bytes.len() as u64;
        self.joining.take_if(|joining| {
            let wants_more = end > joining.joined && !joining.is_done();
            wants_more && !joining.step(&self.file, allowed)
        });
        match &self.joining {
            Some(joining) if end <= joining.joined => {
                joining.mapping.write_at(at, bytes).map_err(io::Error::other)?;
            }
            // The system clears no page that is written whole, and says so when there is none left.
            _ => self.file.write_all_at(bytes, at)?,
        }
        let taken = self.joining.as_ref().map_or(end, |joining| joining.joined.max(end));
        self.promise.shrink_to(self.bytes.saturating_sub(taken));
        Ok(())
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
    use std::os::unix::fs::MetadataExt;

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
        let joined = join_within(&file, bytes, |_| Duration::MAX).unwrap();
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
    fn joining_that_takes_too_long_ends_and_what_is_left_can_be_reserved() {
        let bytes = 4 * HUGE_PAGE_BYTES;
        let file = memory_file("test", bytes).unwrap();
        assert!(!join_within(&file, bytes, |_| Duration::ZERO).unwrap());
        assert!(
            file.metadata().unwrap().blocks() * 512 <= HUGE_PAGE_BYTES,
            "the first one at most"
        );
        fallocate(&file, FallocateFlags::empty(), 0, bytes).unwrap();
        assert_eq!(file.metadata().unwrap().blocks() * 512, bytes);
    }

    #[test]
    fn a_file_that_is_too_short_is_not_mapped() {
        let file = memory_file("test", HUGE_PAGE_BYTES).unwrap();
        assert!(join_all(&file, 2 * HUGE_PAGE_BYTES).is_err());
    }
}
