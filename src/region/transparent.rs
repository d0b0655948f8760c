//! Huge pages without a pool: the system joins the small pages of a file on tmpfs.
//!
//! Since Linux 6.1 `madvise(MADV_COLLAPSE)` does that at once, whatever the mount's `huge=` option
//! and `transparent_hugepage/shmem_enabled` say, unless that says `deny` (madvise(2)). It wants the
//! memory mapped at a multiple of the huge page's size, which [`Mapping`] sees to, and one small page
//! of it in place; the others it fills with zeros, an eighth of the time that small ones take.
//!
//! **Strategy.** Each call first has every core hand in the pages that it put aside, which a thread of
//! the kernel does there. Where threads spin that give their core away and get it back at once, as ours
//! do, that one may wait for its turn: seconds were seen, once half a minute. So a thread of its own
//! makes the call, whoever wants the pages waits for it for a moment, and as long as one such call has
//! not come back there is no other.

use std::{
    fs::{self, File},
    io,
    ops::Range,
    os::unix::fs::FileExt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
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
/// So long one call is waited for. One that works takes at most half of it, at 4.6 ms a huge page.
const CALL_TIME: Duration = Duration::from_millis(150);

/// Calls that nobody waits for any more and that have not come back.
static STALLED: AtomicUsize = AtomicUsize::new(0);

/// How long joining so many bytes may take; `None` where it may take as long as it does.
type Allowed = Option<fn(u64) -> Duration>;

/// Whether the system joins pages, tried on one huge page. On a busy machine that can take its time.
pub fn is_offered() -> bool {
    let tried = || -> io::Result<bool> {
        let file = memory_file("ringkeep-trial", HUGE_PAGE_BYTES)?;
        Ok(Joining::new(&file, HUGE_PAGE_BYTES)?.step(&file, None))
    };
    tried().unwrap_or(false)
}

/// Whether the system says that it knows how to join pages and is not told not to. Takes no time; it
/// may refuse all the same.
pub fn is_known() -> bool {
    let setting = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/shmem_enabled");
    let denied = setting.is_ok_and(|setting| setting.contains("[deny]"));
    // Nothing is joined: with no bytes the system only looks whether it knows the request.
    let asked = || -> io::Result<()> {
        let bytes = rustix::param::page_size();
        Mapping::new(&memory_file("ringkeep-trial", bytes as u64)?, bytes)?.collapse(0..0)
    };
    !denied && asked().is_ok()
}

/// Puts huge pages behind the first `bytes` bytes of a file that is as long, as far as whole ones fit
/// and the system gives them without much ado. True when all lie in huge pages. What does not is as it
/// was before: it has to be reserved.
pub fn join_all(file: &File, bytes: u64) -> io::Result<bool> {
    join_within(file, bytes, Some(allowed))
}

fn join_within(file: &File, bytes: u64, allowed: Allowed) -> io::Result<bool> {
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
    mapping: Arc<Mapping>,
    /// Bytes that lie in huge pages.
    joined: u64,
    spent: Duration,
}

impl Joining {
    fn new(file: &File, bytes: u64) -> io::Result<Self> {
        let whole = bytes / HUGE_PAGE_BYTES * HUGE_PAGE_BYTES;
        let mapping = Arc::new(Mapping::new(file, whole as usize)?);
        Ok(Self { mapping, joined: 0, spent: Duration::ZERO })
    }

    fn is_done(&self) -> bool {
        self.joined == self.mapping.len()
    }

    /// Joins some more, as many as before at most. False when it did not, or took so long that it
    /// should not go on.
    fn step(&mut self, file: &File, allowed: Allowed) -> bool {
        let began = Instant::now();
        let bytes = self.joined.clamp(HUGE_PAGE_BYTES, STEP_BYTES_MAX);
        let next = self.joined..self.mapping.len().min(self.joined + bytes);
        let page = rustix::param::page_size() as u64;
        let mut first_pages = next.clone().step_by(HUGE_PAGE_BYTES as usize);
        let joined = first_pages
            .all(|at| fallocate(file, FallocateFlags::empty(), at, page).is_ok())
            && match allowed {
                None => self.mapping.collapse(next.clone()).is_ok(),
                Some(_) => joined_in_time(&self.mapping, next.clone(), CALL_TIME),
            };
        if joined {
            self.joined = next.end;
        }
        self.spent += began.elapsed();
        let in_time = allowed.is_none_or(|allowed| self.spent <= allowed(self.joined));
        joined && (self.is_done() || in_time)
    }
}

/// Joins pages on a thread of its own. False when the system did not, or not in time: then it may still
/// do so later, which changes no byte.
fn joined_in_time(mapping: &Arc<Mapping>, bytes: Range<u64>, time: Duration) -> bool {
    if STALLED.load(Ordering::Relaxed) > 0 {
        return false; // this one would wait for the same
    }
    // Without room for a message, telling fails exactly when it was given up.
    let (tell, told) = mpsc::sync_channel(0);
    let mapping = mapping.clone();
    let call = move || {
        if tell.send(mapping.collapse(bytes).is_ok()).is_err() {
            STALLED.fetch_sub(1, Ordering::Relaxed);
        }
    };
    if thread::Builder::new().name("join-pages".to_owned()).spawn(call).is_err() {
        return false;
    }
    told.recv_timeout(time).unwrap_or_else(|_| {
        STALLED.fetch_add(1, Ordering::Relaxed);
        false
    })
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
            wants_more && !joining.step(&self.file, Some(allowed))
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
        let joined = join_within(&file, bytes, None).unwrap();
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
        assert!(!join_within(&file, bytes, Some(|_| Duration::ZERO)).unwrap());
        assert!(
            file.metadata().unwrap().blocks() * 512 <= HUGE_PAGE_BYTES,
            "the first one at most"
        );
        fallocate(&file, FallocateFlags::empty(), 0, bytes).unwrap();
        assert_eq!(file.metadata().unwrap().blocks() * 512, bytes);
    }

    #[test]
    fn a_call_that_does_not_come_back_in_time_is_not_waited_for_and_counts_until_it_does() {
        let file = memory_file("test", HUGE_PAGE_BYTES).unwrap();
        let joining = Joining::new(&file, HUGE_PAGE_BYTES).unwrap();
        // However it ends, and whoever is the first to know.
        for _ in 0..100 {
            joined_in_time(&joining.mapping, 0..HUGE_PAGE_BYTES, Duration::ZERO);
        }
        // After the last one came back, the system is asked again.
        file.write_all_at(b"here", 0).unwrap();
        let offered = is_offered();
        while joined_in_time(&joining.mapping, 0..HUGE_PAGE_BYTES, Duration::MAX) != offered {
            thread::yield_now();
        }
    }

    #[test]
    fn what_the_system_does_it_knows() {
        assert!(is_known() || !is_offered());
    }

    #[test]
    fn a_file_that_is_too_short_is_not_mapped() {
        let file = memory_file("test", HUGE_PAGE_BYTES).unwrap();
        assert!(join_all(&file, 2 * HUGE_PAGE_BYTES).is_err());
    }
}
