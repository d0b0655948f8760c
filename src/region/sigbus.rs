//! A region whose file was made shorter costs its own checkpoint, and not the server.
//!
//! A client must have a region's file open for writing, because it maps it shared and writable. So
//! it can also cut the file off (`ftruncate`), and whoever touches the mapping afterwards gets
//! SIGBUS. Files of tmpfs and hugetlbfs cannot be sealed against that. `docs/decisions/0002` has
//! what was tried.
//!
//! **Strategy.** Every [`Mapping`](super::mapping::Mapping) stands in a table. The server's handler
//! looks the faulting address up, puts empty anonymous memory in the place of that whole mapping and
//! marks it cut: the access goes on and finds zeros, which no checksum takes for a version. A fault
//! anywhere else is given back to whoever handled the signal before.
//!
//! The handler calls nothing but `mmap` and `sigaction`, takes no lock and allocates nothing. It
//! reads the table, whose entries are written under a sequence number and never freed.

use std::{
    io,
    sync::{
        Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering, fence},
    },
};

/// How many mappings were cut so far.
static CUT: AtomicUsize = AtomicUsize::new(0);
/// The newest entry of the table.
static HEAD: AtomicPtr<Entry> = AtomicPtr::new(std::ptr::null_mut());
/// Entries that no mapping uses. The handler never looks here.
static FREE: Mutex<Vec<&'static Entry>> = Mutex::new(Vec::new());
/// Who handled the signal before.
static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();

#[derive(Debug)]
struct Entry {
    /// Odd while `start` and `len` are being changed.
    sequence: AtomicUsize,
    start: AtomicUsize,
    len: AtomicUsize,
    cut: AtomicBool,
    next: Option<&'static Entry>,
}

impl Entry {
    fn set(&self, start: usize, len: usize) {
        // One writer: the mapping that the entry belongs to.
        self.sequence.fetch_add(1, Ordering::SeqCst);
        self.start.store(start, Ordering::SeqCst);
        self.len.store(len, Ordering::SeqCst);
        self.cut.store(false, Ordering::SeqCst);
        self.sequence.fetch_add(1, Ordering::SeqCst);
    }

    /// The range, unless it is just being changed. The entry of a mapping that somebody touches is
    /// not: it changes only just after `mmap` and just before `munmap`.
    fn range(&self) -> Option<(usize, usize)> {
        let before = self.sequence.load(Ordering::SeqCst);
        let range = (self.start.load(Ordering::SeqCst), self.len.load(Ordering::SeqCst));
        let after = self.sequence.load(Ordering::SeqCst);
        (before == after && before.is_multiple_of(2)).then_some(range)
    }
}

/// A mapping's place in the table.
#[derive(Debug)]
pub(super) struct Registered(&'static Entry);

impl Registered {
    pub(super) fn new(start: *const u8, len: usize) -> Self {
        let free = FREE.lock().unwrap_or_else(PoisonError::into_inner).pop();
        if let Some(entry) = free {
            entry.set(start.addr(), len);
            return Self(entry);
        }
        let entry = Box::leak(Box::new(Entry {
            sequence: AtomicUsize::new(0),
            start: AtomicUsize::new(start.addr()),
            len: AtomicUsize::new(len),
            cut: AtomicBool::new(false),
            next: None,
        }));
        let place: *mut Entry = entry;
        let mut head = HEAD.load(Ordering::Acquire);
        loop {
            // SAFETY: entries are leaked, so a pointer in `HEAD` is null or good for ever.
            let next = unsafe { head.as_ref() };
            // SAFETY: `place` is known to nobody else before the exchange below succeeds.
            unsafe { (*place).next = next };
            match HEAD.compare_exchange_weak(head, place, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => break,
                Err(other) => head = other,
            }
        }
        // SAFETY: leaked, and from here on only read through shared references.
        Self(unsafe { &*place })
    }

    /// The mapping's file was cut off: its bytes are zeros that belong to nobody.
    pub(super) fn is_cut(&self) -> bool {
        self.0.cut.load(Ordering::Acquire)
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.0.set(0, 0);
        FREE.lock().unwrap_or_else(PoisonError::into_inner).push(self.0);
    }
}

/// How many mappings of this process were cut so far.
pub fn cut_so_far() -> usize {
    CUT.load(Ordering::Relaxed)
}

/// Handles SIGBUS in this process from now on. Only a server does: a library that changes a
/// service's signals would surprise it.
pub fn install() -> io::Result<()> {
    if BEFORE.get().is_some() {
        return Ok(());
    }
    // SAFETY: all zeros is a valid `sigaction`: default action, empty mask, no flags.
    let mut before: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: a null pointer asks for the present action only; `before` is a valid place for it.
    if unsafe { libc::sigaction(libc::SIGBUS, std::ptr::null(), &mut before) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let _ = BEFORE.set(before);
    // SAFETY: as above.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = on_sigbus;
    action.sa_sigaction = handler as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: `action` is complete, and its handler is async-signal-safe as said above.
    if unsafe { libc::sigaction(libc::SIGBUS, &action, std::ptr::null_mut()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

extern "C" fn on_sigbus(
    signal: libc::c_int,
    info: *mut libc::siginfo_t,
    _context: *mut libc::c_void,
) {
    // SAFETY: the kernel passes a valid `siginfo_t` to a handler with SA_SIGINFO.
    let info = unsafe { &*info };
    // Above zero: from the kernel, for a fault. Others can send the signal, too.
    if info.si_code > 0 {
        // SAFETY: SIGBUS from a fault carries an address.
        let address = unsafe { info.si_addr() }.addr();
        if replace(address) {
            return;
        }
    }
    if let Some(before) = BEFORE.get() {
        // SAFETY: `before` came from the kernel. The access is repeated when this returns, and the
        // former action takes it from there.
        unsafe { libc::sigaction(signal, before, std::ptr::null_mut()) };
    }
}

/// Puts empty memory in the place of the mapping that holds this address. False when there is none.
fn replace(address: usize) -> bool {
    // SAFETY: entries are leaked: null or good for ever.
    let mut next = unsafe { HEAD.load(Ordering::Acquire).as_ref() };
    while let Some(entry) = next {
        next = entry.next;
        let Some((start, len)) = entry.range() else { continue };
        if !(start..start.saturating_add(len)).contains(&address) {
            continue;
        }
        // Before the mapping changes: whoever finds zeros finds the mark, too.
        if !entry.cut.swap(true, Ordering::SeqCst) {
            CUT.fetch_add(1, Ordering::SeqCst);
        }
        fence(Ordering::SeqCst);
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_FIXED | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: the range is exactly one mapping of this process, which lives as long as the
        // faulting access borrows it; mappings are reached by raw copies and atomics that mind no
        // change below them. `mmap` is a system call and nothing else; a thread that faulted at
        // the same time repeats this, which loses at most zeros that it just wrote.
        let made = unsafe {
            libc::mmap(std::ptr::without_provenance_mut(start), len, protection, flags, -1, 0)
        };
        return made != libc::MAP_FAILED;
    }
    false
}

#[cfg(test)]
mod tests {
    use std::{fs::File, os::fd::AsFd};

    use crate::region::mapping::Mapping;

    fn cut_file(in_dir: &std::path::Path) -> (File, Mapping) {
        let path = in_dir.join("r");
        let file = File::options().read(true).write(true).create_new(true).open(path).unwrap();
        rustix::fs::ftruncate(file.as_fd(), 16_384).unwrap();
        let mapping = Mapping::new(&file, 16_384).unwrap();
        mapping.write_at(8_000, b"state").unwrap();
        (file, mapping)
    }

    #[test]
    fn a_file_cut_off_under_its_mapping_is_zeros_and_said_so() {
        super::install().unwrap();
        let dirs = [(); 2].map(|()| tempfile::tempdir_in("/dev/shm").unwrap());
        let [(file, mapping), (_other_file, other)] = dirs.each_ref().map(|d| cut_file(d.path()));
        let before = super::cut_so_far();
        file.set_len(0).unwrap();
        let mut read = [1; 5];
        mapping.read_at(8_000, &mut read).unwrap();
        assert_eq!(read, [0; 5]);
        assert!(mapping.is_cut() && super::cut_so_far() > before);
        mapping.write_at(0, b"no harm").unwrap();
        other.read_at(8_000, &mut read).unwrap();
        assert_eq!(&read, b"state");
        assert!(!other.is_cut());
    }
}
