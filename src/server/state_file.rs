//! The voting state in shared memory: rule V5, no vote is ever forgotten while the machine is up.
//!
//! ```text
//! file    ┌ slot 0, 64 MiB ┬ slot 1, 64 MiB ┐        sparse: only what was written takes memory
//! slot    ┌ magic 8 ┬ sequence 8 ┬ boot id 16 ┬ length 8 ┬ xxh3 8 ┐ payload
//! ```
//!
//! A state is written over the older slot, the payload first. The checksum covers the header and the
//! payload, so a slot that a killed process left half-written does not count, and the state before
//! it, which the other slot holds, is the newest: nobody was told of the one that was cut off.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, OFlags, flock};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use twox_hash::XxHash3_64;

/// Largest state in bytes.
pub const STATE_BYTES_MAX: usize = SLOT_BYTES as usize - HEADER_BYTES;

const MAGIC: u64 = u64::from_le_bytes(*b"rkstate1");
const SLOT_BYTES: u64 = 64 << 20;
const HEADER_BYTES: usize = 48;
/// The part of the header that the checksum covers.
const CHECKED_BYTES: usize = 40;

/// Which run of the machine: a state of another one is worth nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootId([u8; 16]);

impl BootId {
    /// The run of this machine.
    ///
    /// # Errors
    /// The system does not tell.
    pub fn current() -> io::Result<Self> {
        let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
        Self::parse(&text).ok_or_else(|| io::Error::other("the system's boot id is malformed"))
    }

    /// Reads the usual form: 32 hexadecimal digits with dashes among them.
    pub fn parse(text: &str) -> Option<Self> {
        let digits: String = text.trim().chars().filter(|&c| c != '-').collect();
        let hexadecimal = digits.len() == 32 && digits.bytes().all(|c| c.is_ascii_hexdigit());
        let number = hexadecimal.then(|| u128::from_str_radix(&digits, 16).ok())??;
        Some(Self(number.to_be_bytes()))
    }
}

/// Why a state file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenStateError {
    /// Another process has it open: a second server of the same node.
    #[error("{path:?} is in use by another server")]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// The system refused.
    #[error("opening {path:?}: {source}")]
    System {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Why a state was not stored. The one before it still is, and nobody may hear of the new one.
#[derive(Debug, thiserror::Error)]
pub enum StoreStateError {
    /// It cannot be encoded.
    #[error("encoding the voting state: {0}")]
    Encode(#[from] postcard::Error),
    /// It is too big.
    #[error("a voting state of {len} bytes; the limit is {STATE_BYTES_MAX}")]
    TooBig {
        /// Its length in bytes.
        len: usize,
    },
    /// The sequence ends with what is stored.
    #[error("no voting state can follow the one that is stored")]
    Last,
    /// The system refused, for instance because memory is full.
    #[error("storing the voting state: {0}")]
    System(#[from] io::Error),
}

/// Why a slot does not count.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum Invalid {
    #[error("it is empty")]
    Empty,
    #[error("it is not a state")]
    Foreign,
    #[error("it is of another run of the machine")]
    OtherBoot,
    #[error("it was not written to its end")]
    Torn,
    #[error("it cannot be read: {0}")]
    Unreadable(io::ErrorKind),
}

/// The file that holds the newest two states.
#[derive(Debug)]
pub struct StateFile {
    file: File,
    boot: BootId,
    /// Where the newest state is, and its sequence number.
    newest: Option<(u64, u64)>,
}

impl StateFile {
    /// Opens the file, or makes it. No other process can have it open at the same time. It should
    /// lie on a tmpfs.
    pub fn open(path: &Path, boot: BootId) -> Result<Self, OpenStateError> {
        let system = |source| OpenStateError::System { path: path.to_owned(), source };
        // `O_NOFOLLOW` fits: the flags of open(2) are C ints.
        let no_link = OFlags::NOFOLLOW.bits() as i32;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(no_link)
            .open(path)
            .map_err(system)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(OpenStateError::InUse { path: path.to_owned() });
            }
            Err(errno) => return Err(system(errno.into())),
        }
        let mut this = Self { file, boot, newest: None };
        for slot in 0..2 {
            match this.read_slot(slot) {
                Ok((sequence, _)) if this.newest.is_none_or(|(_, n)| n < sequence) => {
                    this.newest = Some((slot, sequence));
                }
                Ok(_) | Err(Invalid::Empty) => {}
                Err(why) => tracing::info!("ignoring slot {slot} of {path:?}: {why}"),
            }
        }
        Ok(this)
    }

    /// The newest state of this run of the machine. None if there is none, or it is of a type that
    /// this server does not know: never an older one instead, for that would forget votes.
    pub fn load<T: DeserializeOwned>(&self) -> Option<T> {
        let (slot, _) = self.newest?;
        let (_, payload) = self
            .read_slot(slot)
            .inspect_err(|why| tracing::warn!("ignoring the voting state: {why}"))
            .ok()?;
        postcard::from_bytes(&payload)
            .inspect_err(|why| tracing::warn!("ignoring an unknown voting state: {why}"))
            .ok()
    }

    /// Stores a state. When this returns well it survives the death of this process.
    pub fn store<T: Serialize>(&mut self, state: &T) -> Result<(), StoreStateError> {
        let payload = postcard::to_stdvec(state)?;
        if payload.len() > STATE_BYTES_MAX {
            return Err(StoreStateError::TooBig { len: payload.len() });
        }
        let (slot, sequence) = self.next().ok_or(StoreStateError::Last)?;
        for (at, bytes) in self.writes(slot, sequence, &payload) {
            self.file.write_all_at(bytes.as_ref(), at)?;
        }
        self.newest = Some((slot, sequence));
        Ok(())
    }

    /// One that has no room for anything.
    #[cfg(test)]
    pub(super) fn full() -> Self {
        let file = OpenOptions::new().read(true).write(true).open("/dev/full").unwrap();
        Self { file, boot: BootId([0; 16]), newest: None }
    }

    /// Where the next state goes, and its sequence number.
    fn next(&self) -> Option<(u64, u64)> {
        let Some((slot, sequence)) = self.newest else { return Some((0, 1)) };
        Some((1 - slot, sequence.checked_add(1)?))
    }

    /// What to write where, in this order.
    fn writes<'a>(
        &self,
        slot: u64,
        sequence: u64,
        payload: &'a [u8],
    ) -> [(u64, std::borrow::Cow<'a, [u8]>); 2] {
        let mut header = [0; HEADER_BYTES];
        header[..8].copy_from_slice(&MAGIC.to_le_bytes());
        header[8..16].copy_from_slice(&sequence.to_le_bytes());
        header[16..32].copy_from_slice(&self.boot.0);
        header[32..40].copy_from_slice(&(payload.len() as u64).to_le_bytes());
        let checksum = checksum(&header, payload);
        header[40..].copy_from_slice(&checksum.to_le_bytes());
        let at = slot * SLOT_BYTES;
        [(at + HEADER_BYTES as u64, payload.into()), (at, header.to_vec().into())]
    }

    fn read_slot(&self, slot: u64) -> Result<(u64, Vec<u8>), Invalid> {
        let unreadable = |e: io::Error| match e.kind() {
            io::ErrorKind::UnexpectedEof => Invalid::Torn,
            kind => Invalid::Unreadable(kind),
        };
        let at = slot * SLOT_BYTES;
        let file_len = self.file.metadata().map_err(unreadable)?.len();
        if file_len < at + HEADER_BYTES as u64 {
            return Err(Invalid::Empty);
        }
        let mut header = [0; HEADER_BYTES];
        self.file.read_exact_at(&mut header, at).map_err(unreadable)?;
        if header == [0; HEADER_BYTES] {
            return Err(Invalid::Empty);
        }
        if word(&header, 0) != MAGIC {
            return Err(Invalid::Foreign);
        }
        if header[16..32] != self.boot.0 {
            return Err(Invalid::OtherBoot);
        }
        let (sequence, len) = (word(&header, 8), word(&header, 32));
        if len > STATE_BYTES_MAX as u64 {
            return Err(Invalid::Foreign);
        }
        let begin = at + HEADER_BYTES as u64;
        if len > file_len - begin {
            return Err(Invalid::Torn);
        }
        let mut payload = vec![0; len as usize];
        self.file.read_exact_at(&mut payload, begin).map_err(unreadable)?;
        if checksum(&header, &payload) != word(&header, CHECKED_BYTES) {
            return Err(Invalid::Torn);
        }
        Ok((sequence, payload))
    }
}

fn word(header: &[u8; HEADER_BYTES], at: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&header[at..at + 8]);
    u64::from_le_bytes(bytes)
}

fn checksum(header: &[u8; HEADER_BYTES], payload: &[u8]) -> u64 {
    let seed = XxHash3_64::oneshot(&header[..CHECKED_BYTES]);
    XxHash3_64::oneshot_with_seed(seed, payload)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOOT: BootId = BootId([7; 16]);

    fn state(n: u8) -> (u64, String) {
        (u64::from(n), "vote".repeat(usize::from(n)))
    }

    type State = (u64, String);

    #[test]
    fn the_newest_state_is_loaded_by_the_next_process() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("node.state");
        for n in 1..6 {
            let mut file = StateFile::open(&path, BOOT).unwrap();
            assert_eq!(file.load::<State>(), (n > 1).then(|| state(n - 1)));
            file.store(&state(n)).unwrap();
            assert_eq!(file.load::<State>(), Some(state(n)));
        }
    }

    #[test]
    fn a_store_cut_off_anywhere_leaves_the_state_before_it() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("node.state");
        // The slot that is written over holds an older state (3 stored), or nothing (1 stored).
        for stored in [1, 3] {
            let written = {
                let _ = std::fs::remove_file(&path);
                let mut file = StateFile::open(&path, BOOT).unwrap();
                (1..=stored).for_each(|n| file.store(&state(n)).unwrap());
                let payload = postcard::to_stdvec(&state(9)).unwrap();
                let (slot, sequence) = file.next().unwrap();
                let writes = file.writes(slot, sequence, &payload);
                let bytes = |(at, b): &(u64, std::borrow::Cow<'_, [u8]>)| {
                    b.iter().enumerate().map(|(i, b)| (at + i as u64, *b)).collect::<Vec<_>>()
                };
                writes.iter().flat_map(bytes).collect::<Vec<_>>()
            };
            // The dead process's bytes come one by one; after each, its successor looks.
            let (last, torn) = written.split_last().unwrap();
            let file = OpenOptions::new().write(true).open(&path).unwrap();
            for (at, byte) in torn {
                file.write_all_at(&[*byte], *at).unwrap();
                let successor = StateFile::open(&path, BOOT).unwrap();
                assert_eq!(successor.load::<State>(), Some(state(stored)), "at {at}");
            }
            file.write_all_at(&[last.1], last.0).unwrap();
            let mut successor = StateFile::open(&path, BOOT).unwrap();
            assert_eq!(successor.load::<State>(), Some(state(9)));
            successor.store(&state(10)).unwrap();
            assert_eq!(successor.load::<State>(), Some(state(10)));
        }
    }

    #[test]
    fn a_torn_slot_is_written_over_and_not_the_good_one() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("node.state");
        let mut file = StateFile::open(&path, BOOT).unwrap();
        file.store(&state(1)).unwrap();
        file.store(&state(2)).unwrap();
        file.file.write_all_at(&[0xff], SLOT_BYTES + HEADER_BYTES as u64).unwrap();
        drop(file);
        let mut file = StateFile::open(&path, BOOT).unwrap();
        assert_eq!((file.load::<State>(), file.next()), (Some(state(1)), Some((1, 2))));
        file.store(&state(3)).unwrap();
        assert_eq!(file.load::<State>(), Some(state(3)));
    }

    #[test]
    fn a_state_of_another_boot_or_of_another_type_is_ignored() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("node.state");
        let mut file = StateFile::open(&path, BOOT).unwrap();
        file.store(&state(1)).unwrap();
        file.store(&vec![0xffu8; 3]).unwrap();
        assert_eq!(file.load::<State>(), None, "and not the older one");
        drop(file);
        let rebooted = StateFile::open(&path, BootId([8; 16])).unwrap();
        assert_eq!(rebooted.load::<State>(), None);
        drop(rebooted);
        std::fs::write(&path, [0xa5; 4096]).unwrap();
        assert_eq!(StateFile::open(&path, BOOT).unwrap().load::<State>(), None);
    }

    #[test]
    fn a_state_that_none_can_follow_is_kept_and_none_is_stored() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("node.state");
        let mut file = StateFile::open(&path, BOOT).unwrap();
        file.newest = Some((0, u64::MAX - 1));
        file.store(&state(1)).unwrap();
        drop(file);
        let mut file = StateFile::open(&path, BOOT).unwrap();
        assert_eq!(file.load::<State>(), Some(state(1)), "I8 nobody votes after amnesia");
        assert!(matches!(file.store(&state(2)), Err(StoreStateError::Last)));
        assert_eq!(file.load::<State>(), Some(state(1)));
    }

    #[test]
    fn only_one_process_votes() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("node.state");
        let first = StateFile::open(&path, BOOT).unwrap();
        assert!(matches!(StateFile::open(&path, BOOT), Err(OpenStateError::InUse { .. })));
        drop(first);
        StateFile::open(&path, BOOT).unwrap();
    }

    #[test]
    fn boot_ids_are_read() {
        BootId::current().unwrap();
        let text = "00112233-4455-6677-8899-aabbccddeeff\n";
        assert_eq!(BootId::parse(text).unwrap().0[..3], [0, 0x11, 0x22]);
        assert_eq!(BootId::parse("0011"), None);
        assert_eq!(BootId::parse(&"+".repeat(32)), None);
    }
}
