//! A shared mapping of a region's file, reached by offset.
//!
//! ```text
//!   file on hugetlbfs or tmpfs ── fallocate'd to its full length before it is mapped
//!   ┌────────┬───────────────┬───────────────┐
//!   │ header │ slot 0        │ slot 1  …     │   mapped shared by: the server, the client, the NIC
//!   └────────┴───────────────┴───────────────┘
//! ```
//!
//! **Strategy.** Another process (or a NIC) may write the same bytes at any time, so the mapping is
//! never lent out as `&[u8]` or `&mut [u8]` to code that can race with such a writer: bytes are
//! copied in and out by offset, and what was copied is believed only after its checksum was found
//! right. The words that hand something over are atomics.

use std::{
    fs::File,
    io,
    ptr::NonNull,
    sync::atomic::{AtomicU32, AtomicU64},
};

use memmap2::{MmapOptions, MmapRaw};
#[cfg(feature = "server")]
use rustix::mm::{Advice, madvise};
use rustix::{
    fs::fstatfs,
    mm::{MapFlags, ProtFlags, mmap},
};

use super::{sigbus::Registered, streaming, transparent::HUGE_PAGE_BYTES};

/// A whole region mapped readable and writable, shared with whoever else maps its file.
#[derive(Debug)]
pub struct Mapping {
    /// Goes first: an entry of memory that is unmapped would speak of somebody else's.
    registered: Registered,
    /// The file's first byte, in `_map`.
    begin: NonNull<u8>,
    len: usize,
    _map: MmapRaw,
}

// SAFETY: `begin` points into `_map`, which may be sent; bytes are copied and words are atomics.
unsafe impl Send for Mapping {}
// SAFETY: as above, and `_map` may be shared.
unsafe impl Sync for Mapping {}

/// Offset and length that do not lie inside a mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("bytes {offset}+{len} lie outside a mapping of {mapping_len} bytes")]
pub struct OutOfBounds {
    /// First byte asked for.
    pub offset: u64,
    /// Bytes asked for.
    pub len: u64,
    /// Bytes that the mapping has.
    pub mapping_len: u64,
}

impl Mapping {
    /// Maps the first `len` bytes of `file`. `len` must already be a multiple of the file system's
    /// page size (2 MiB on hugetlbfs), or unmapping a huge page mapping would fail silently, and
    /// the space must have been reserved, or a touch could raise SIGBUS.
    ///
    /// # Errors
    /// Whatever `mmap` answers; and `InvalidInput` when the file is shorter than `len`.
    pub fn new(file: &File, len: usize) -> io::Result<Self> {
        if file.metadata()?.len() < len as u64 {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "the file is shorter than its mapping",
            ));
        }
        let large = len as u64 >= HUGE_PAGE_BYTES;
        let aligned = if large { map_aligned(file, len).ok() } else { None };
        let (map, begin) = match aligned {
            Some(aligned) => aligned,
            // Where the system gives no addresses away: slower, and else the same.
            None => (MmapOptions::new().len(len).map_raw(file)?, 0),
        };
        let begin = NonNull::new(map.as_mut_ptr().wrapping_add(begin));
        let begin = begin.ok_or(io::ErrorKind::InvalidInput)?;
        let registered = Registered::new(begin.as_ptr(), len);
        Ok(Self { registered, begin, len, _map: map })
    }

    /// Length in bytes.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> u64 {
        self.len as u64
    }

    /// The file was made shorter by somebody who has it open, and this process found out: all bytes
    /// are zeros now. Only where [`sigbus::install`](super::sigbus::install) was called.
    pub fn is_cut(&self) -> bool {
        self.registered.is_cut()
    }

    /// Reads one byte of each page of a range that a system call could not reach, so that a file
    /// that was cut off is found out.
    ///
    /// # Safety
    /// The bytes must be mapped and stay so during the call.
    pub(crate) unsafe fn touch(start: *const u8, len: usize) {
        let page = 4096; // no page is smaller
        let first = start.addr() & !(page - 1);
        for at in (first..start.addr() + len).step_by(page).map(|at| at.max(start.addr())) {
            // SAFETY: inside the range, which the caller keeps mapped.
            unsafe { start.with_addr(at).read_volatile() };
        }
    }

    /// Has the system put pages behind these bytes now instead of at each one's first touch, which
    /// may be on a thread that others wait for. As far as it can; the rest comes when it is touched.
    #[cfg(feature = "server")]
    pub(crate) fn populate(&self, bytes: std::ops::Range<u64>) {
        /// Another thread that maps memory waits for one step.
        const STEP: usize = 8 << 20;
        let page = rustix::param::page_size();
        let end = self.len.min(bytes.end as usize);
        for start in (bytes.start as usize / page * page..end).step_by(STEP) {
            let len = STEP.min(end - start);
            // SAFETY: inside the mapping, which lives as long as `self`; the advice changes no byte.
            let populated =
                unsafe { madvise(self.at(start as u64).cast(), len, Advice::LinuxPopulateWrite) };
            if populated.is_err() {
                return; // a kernel before 5.14, or memory that is cut off
            }
        }
    }

    /// Has the system join the small pages behind these bytes, each huge page of which must have a
    /// small one in place. No byte changes.
    pub(super) fn collapse(&self, bytes: std::ops::Range<u64>) -> io::Result<()> {
        let outside = |e: OutOfBounds| io::Error::new(io::ErrorKind::InvalidInput, e);
        let len = bytes.end.saturating_sub(bytes.start);
        self.check(bytes.start, len).map_err(outside)?;
        // SAFETY: inside the mapping, which lives as long as `self`; the advice changes no byte.
        let done = unsafe {
            libc::madvise(self.at(bytes.start).cast(), len as usize, libc::MADV_COLLAPSE)
        };
        if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// The first byte's address, for registering the mapping with a transport.
    pub fn as_ptr(&self) -> *mut u8 {
        self.at(0)
    }

    /// Checks that `len` bytes at `offset` lie inside.
    pub fn check(&self, offset: u64, len: u64) -> Result<(), OutOfBounds> {
        match offset.checked_add(len) {
            Some(end) if end <= self.len() => Ok(()),
            _ => Err(OutOfBounds { offset, len, mapping_len: self.len() }),
        }
    }

    /// Copies bytes out. Fails, without copying, when they are not all inside.
    pub fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<(), OutOfBounds> {
        self.check(offset, into.len() as u64)?;
        // SAFETY: `check` holds the source inside the mapping, which lives as long as `self`; the
        // destination is a distinct `&mut`. A racing writer can only make the copied bytes a mix
        // of old and new, which is why callers validate them by checksum before use.
        unsafe {
            std::ptr::copy_nonoverlapping(self.at(offset), into.as_mut_ptr(), into.len());
        }
        Ok(())
    }

    /// Copies bytes in. Fails, without copying, when they do not all fit.
    pub fn write_at(&self, offset: u64, from: &[u8]) -> Result<(), OutOfBounds> {
        self.check(offset, from.len() as u64)?;
        // SAFETY: as in `read_at`, with the roles exchanged.
        unsafe {
            std::ptr::copy_nonoverlapping(from.as_ptr(), self.at(offset), from.len());
        }
        Ok(())
    }

    /// As [`Mapping::write_at`], around the cache: for what is too large to be found there later.
    pub(super) fn write_around_cache(&self, offset: u64, from: &[u8]) -> Result<(), OutOfBounds> {
        self.check(offset, from.len() as u64)?;
        // SAFETY: as in `write_at`.
        unsafe { streaming::copy(from, self.at(offset)) };
        Ok(())
    }

    /// Copies `len` bytes inside the mapping. The two ranges must not overlap.
    pub fn copy_within(&self, from: u64, to: u64, len: u64) -> Result<(), OutOfBounds> {
        self.check(from, len)?;
        self.check(to, len)?;
        // SAFETY: both ranges are inside; `copy` allows overlap, so no wrong call is unsound.
        unsafe {
            std::ptr::copy(self.at(from), self.at(to), len as usize);
        }
        Ok(())
    }

    /// Bytes that no other party writes while they are borrowed.
    ///
    /// # Safety
    /// Nobody, in this process, another one or a NIC, may write any of these bytes while the
    /// returned slice lives.
    pub unsafe fn quiet_slice(&self, offset: u64, len: u64) -> Result<&[u8], OutOfBounds> {
        self.check(offset, len)?;
        // SAFETY: in bounds by `check`; the caller guarantees that nobody writes.
        Ok(unsafe { std::slice::from_raw_parts(self.at(offset), len as usize) })
    }

    /// Bytes that only the borrower touches while they are borrowed.
    ///
    /// # Safety
    /// Nobody else, in this process, another one or a NIC, may read or write any of these bytes
    /// while the returned slice lives.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn quiet_slice_mut(&self, offset: u64, len: u64) -> Result<&mut [u8], OutOfBounds> {
        self.check(offset, len)?;
        // SAFETY: in bounds by `check`; the caller guarantees that the access is exclusive.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.at(offset), len as usize) })
    }

    /// The naturally aligned 64-bit word at `offset`.
    ///
    /// # Panics
    /// When the word is not inside or not aligned: offsets of words are layout constants.
    pub fn atomic_u64(&self, offset: u64) -> &AtomicU64 {
        assert!(offset.is_multiple_of(8) && self.check(offset, 8).is_ok());
        // SAFETY: inside and aligned by the assertion (the mapping itself is page aligned); every
        // party reaches this word by atomic operations only; it lives as long as `self`.
        unsafe { AtomicU64::from_ptr(self.at(offset).cast()) }
    }

    /// The naturally aligned 32-bit word at `offset`.
    ///
    /// # Panics
    /// As [`Mapping::atomic_u64`].
    pub fn atomic_u32(&self, offset: u64) -> &AtomicU32 {
        assert!(offset.is_multiple_of(4) && self.check(offset, 4).is_ok());
        // SAFETY: as in `atomic_u64`.
        unsafe { AtomicU32::from_ptr(self.at(offset).cast()) }
    }

    fn at(&self, offset: u64) -> *mut u8 {
        // Callers have checked the offset; `wrapping_add` keeps this function safe regardless.
        self.begin.as_ptr().wrapping_add(offset as usize)
    }
}

/// Maps a file where huge pages can lie behind it: inside a larger piece of addresses, of which it
/// takes the place from the second value on.
fn map_aligned(file: &File, len: usize) -> io::Result<(MmapRaw, usize)> {
    let page = fstatfs(file)?.f_bsize as usize;
    let align = page.max(HUGE_PAGE_BYTES as usize);
    let room = len.checked_add(align).ok_or(io::ErrorKind::InvalidInput)?;
    let map = MmapRaw::from(MmapOptions::new().len(room).no_reserve_swap().map_anon()?);
    let begin = map.as_ptr().addr().next_multiple_of(align) - map.as_ptr().addr();
    let at = map.as_mut_ptr().wrapping_add(begin).cast();
    let (protection, flags) =
        (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED | MapFlags::FIXED);
    // SAFETY: the range lies inside `map`, which is new, is nobody else's, and unmaps all of it when
    // it is dropped.
    unsafe { mmap(at, len, protection, flags, file, 0) }?;
    Ok((map, begin))
}
