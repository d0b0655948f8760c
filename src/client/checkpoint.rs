//! An open checkpoint: its writer's side of the update protocol.

use std::{
    fs::File,
    io,
    os::{fd::OwnedFd, unix::net::UnixStream},
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    Client, CommitError, Durability, OpenError, Options, OwnershipError, ReadError, RequestError,
    Saved, WriteError,
    link::{Link, ReattachError, Woke},
};
use crate::{
    commit::{Extent, Slots, Stale, Version, Working},
    name::Name,
    protocol::Request,
    region::{Region, mapping::Mapping},
};

/// A checkpoint that this process writes. Dropping it ends the attachment; what was committed
/// stays.
#[derive(Debug)]
pub struct Checkpoint {
    name: Name,
    region: Region,
    /// The open file that carries this process's lock on the region; shown to a restarted server.
    file: OwnedFd,
    epoch: u64,
    link: Link,
    slots: Slots,
    update: Option<Update>,
    /// What changed in versions that the hand-over ring had no room for.
    unsubmitted: Stale,
    submitted: Version,
    /// Up to this version somebody waits for the mirror.
    urgent: Version,
    timeout: Duration,
    ring_mirrors: bool,
    warning: Option<String>,
}

/// An update under way.
#[derive(Debug, Clone, Copy)]
struct Update {
    working: Working,
    /// The chunk table is already right.
    hashed: bool,
}

/// A commit that is on its way; see [`Checkpoint::commit_async`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "a pending commit is acknowledged by Checkpoint::wait only"]
pub struct Pending {
    version: Version,
}

impl Pending {
    /// The version that was committed. It is `local` already.
    pub fn version(&self) -> Version {
        self.version
    }
}

impl Checkpoint {
    pub(super) fn open(client: &Client, name: Name, options: Options) -> Result<Self, OpenError> {
        let Options { capacity, slots, mode, take_over, existing, timeout, spin } = options;
        let request =
            Request::Open { name: name.clone(), capacity, slots, mode, take_over, existing };
        let socket = client.socket().to_owned();
        let stream = UnixStream::connect(&socket)
            .map_err(|source| RequestError::NoServer { socket: socket.clone(), source })?;
        let (link, opened, file) =
            Link::attach(name.clone(), socket, stream, &request, None, spin)?;
        let file = File::from(file);
        let bytes = usize::try_from(opened.bytes).map_err(|_| RequestError::Unexpected)?;
        let mapping = Mapping::new(&file, bytes).map_err(OpenError::Map)?;
        let region = Region::new(Arc::new(mapping), opened.layout, opened.identity)
            .map_err(|_| RequestError::Unexpected)?;
        let len = region.newest_by_record().map_or(0, |found| found.record.len);
        let capacity = region.layout().capacity();
        let slots = Slots::new(capacity, &region.versions(), len);
        Ok(Self {
            name,
            region,
            file: file.into(),
            epoch: opened.epoch,
            link,
            submitted: slots.version(),
            slots,
            update: None,
            unsubmitted: Stale::nothing(capacity),
            urgent: 0,
            timeout,
            ring_mirrors: opened.mirrored,
            warning: opened.warning,
        })
    }

    /// Its name.
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// The newest committed version; 0: none yet.
    pub fn version(&self) -> Version {
        self.slots.version()
    }

    /// Payload length of the state in bytes, with the update under way.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> u64 {
        self.slots.len()
    }

    /// Largest payload in bytes.
    pub fn capacity(&self) -> u64 {
        self.region.layout().capacity()
    }

    /// When it was opened, the ring had a node for the second copy.
    pub fn ring_mirrors(&self) -> bool {
        self.ring_mirrors
    }

    /// What the server had to say to the person when it was opened.
    pub fn warning(&self) -> Option<&str> {
        self.warning.as_deref()
    }

    /// The newest committed version, every checksum verified, read in place. `None` before the
    /// first commit.
    ///
    /// # Errors
    /// [`ReadError::Corrupt`] when a checksum does not match; nothing older is handed out instead.
    pub fn latest(&self) -> Result<Option<Saved<'_>>, ReadError> {
        let Some(slot) = self.slots.newest() else { return Ok(None) };
        // SAFETY: this process is the region's only writer, and writes through `&mut self` only.
        match unsafe { self.region.verify_quiet(slot) } {
            Ok(record) => Ok(Some(Saved::new(&self.region, slot, record))),
            Err(damage) => {
                let (name, version) = (self.name.clone(), self.slots.version());
                Err(ReadError::Corrupt { name, version, damage })
            }
        }
    }

    /// The newest committed version without looking at the checksums: costs the same for any size.
    pub fn latest_unverified(&self) -> Option<Saved<'_>> {
        let slot = self.slots.newest()?;
        let record = self.region.record(slot).ok()?;
        Some(Saved::new(&self.region, slot, record))
    }

    /// Writes bytes of the next version. Beyond the present end it grows, a gap is filled with
    /// zeros. Nothing is committed.
    ///
    /// # Errors
    /// See [`WriteError`]; the bytes were not written.
    pub fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), WriteError> {
        let slot = self.touch(offset, bytes.len() as u64)?;
        self.region.write_payload(slot, offset, bytes)?;
        Ok(())
    }

    /// Bytes of the next version to be written in place; they count as changed.
    ///
    /// # Errors
    /// As [`Checkpoint::write_at`].
    pub fn slice_mut(&mut self, offset: u64, len: u64) -> Result<&mut [u8], WriteError> {
        let slot = self.touch(offset, len)?;
        let at = self.region.layout().payload(slot) + offset;
        // SAFETY: `touch` claimed the working slot: this process is its only writer, holds it by
        // `&mut self`, and the server does not read a slot that is being written.
        Ok(unsafe { self.region.mapping().quiet_slice_mut(at, len)? })
    }

    /// The whole payload of the next version, `len` bytes to be written in place; what they held
    /// before is not defined.
    ///
    /// # Errors
    /// As [`Checkpoint::write_at`].
    pub fn whole_mut(&mut self, len: u64) -> Result<&mut [u8], WriteError> {
        let slot = self.replace(len)?;
        let at = self.region.layout().payload(slot);
        // SAFETY: as in `slice_mut`.
        Ok(unsafe { self.region.mapping().quiet_slice_mut(at, len)? })
    }

    /// A writer that puts a whole new state straight into the slot, from its begin on.
    ///
    /// # Errors
    /// As [`Checkpoint::write_at`].
    pub fn writer(&mut self) -> Result<SlotWriter<'_>, WriteError> {
        self.replace(0)?;
        Ok(SlotWriter { checkpoint: self })
    }

    /// Cuts or extends the next version to `len` bytes; new bytes are zero.
    ///
    /// # Errors
    /// As [`Checkpoint::write_at`].
    pub fn set_len(&mut self, len: u64) -> Result<(), WriteError> {
        self.region.check_payload(0, len)?;
        let update = self.begin(true)?;
        self.grow(update.working.slot, len)?;
        self.slots.resize(len);
        Ok(())
    }

    /// Gives the update under way up: the state is the newest committed version again.
    pub fn discard(&mut self) {
        if self.update.take().is_some() {
            self.link.producer.end_writing();
            self.slots.abandoned();
        }
    }

    /// Replaces the whole state and commits it.
    ///
    /// # Errors
    /// As [`Checkpoint::commit`].
    pub fn save(&mut self, bytes: &[u8], durability: Durability) -> Result<Version, CommitError> {
        let slot = self.replace(bytes.len() as u64)?;
        self.region.write_whole(slot, bytes).map_err(WriteError::TooLarge)?;
        if let Some(update) = &mut self.update {
            update.hashed = true;
        }
        self.commit(durability)
    }

    /// Commits what was written since the last commit as the next version. `Local` returns as soon
    /// as the version lies in this node's memory; `Mirrored` when the mirror has it, too.
    ///
    /// # Errors
    /// [`CommitError::DurabilityNotReached`] after the time limit: the version is committed
    /// locally and will be mirrored when the ring is whole again. Any other error: nothing was
    /// committed.
    pub fn commit(&mut self, durability: Durability) -> Result<Version, CommitError> {
        match durability {
            Durability::Local => {
                let version = self.publish(false)?;
                self.stay_attached();
                Ok(version)
            }
            Durability::Mirrored => {
                let deadline = self.deadline();
                let version = self.publish(true)?;
                self.wait_mirrored(version, deadline)?;
                Ok(version)
            }
        }
    }

    /// Commits as [`Checkpoint::commit`] with [`Durability::Mirrored`] does, but does not wait:
    /// the version is `local` when this returns. At most slots − 1 versions are on their way to
    /// the mirror; one more waits here until there is room, at most the time limit.
    ///
    /// # Errors
    /// When nothing was committed.
    pub fn commit_async(&mut self) -> Result<Pending, CommitError> {
        let room = self.region.layout().slots() as u64 - 1;
        let next = self.slots.version() + 1;
        if self.urgent + 1 == next && next > room {
            let deadline = self.deadline();
            // Without a mirror the version still becomes `local`; waiting for it tells the rest.
            match self.wait_mirrored(next - room, deadline) {
                Ok(()) | Err(CommitError::DurabilityNotReached { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        let version = self.publish(true)?;
        Ok(Pending { version })
    }

    /// Waits until a pending commit is mirrored, at most the time limit.
    ///
    /// # Errors
    /// As [`Checkpoint::commit`].
    pub fn wait(&mut self, pending: Pending) -> Result<Version, CommitError> {
        self.wait_mirrored(pending.version, self.deadline())?;
        Ok(pending.version)
    }

    /// All versions up to this one are known to be mirrored.
    pub fn mirrored(&self) -> Version {
        self.link.producer.mirrored()
    }

    /// Until when what begins now may wait.
    fn deadline(&self) -> Instant {
        Instant::now() + self.timeout
    }

    /// Claims the working slot and brings it up to date, unless an update is under way.
    fn begin(&mut self, up_to_date: bool) -> Result<Update, WriteError> {
        if let Some(update) = self.update {
            return Ok(update);
        }
        self.link.check()?;
        let working = self.slots.target();
        self.claim(working.slot)?;
        self.region.invalidate(working.slot);
        if let (true, Some(source)) = (up_to_date, working.source) {
            let region = &self.region;
            self.slots.stale(working).for_each(self.slots.len(), |extent| {
                region.bring_up_to_date(source, working.slot, extent);
            });
        }
        self.slots.spoiled(working);
        let update = Update { working, hashed: false };
        self.update = Some(update);
        Ok(update)
    }

    /// Waits until the server does not read the slot any more.
    fn claim(&mut self, slot: usize) -> Result<(), WriteError> {
        if self.link.producer.begin_writing(slot) {
            return Ok(());
        }
        let deadline = self.deadline();
        loop {
            let woke = self.link.wait(deadline, |p| !p.pinned(slot));
            self.link.check()?;
            if woke == Woke::ServerGone {
                self.attach_again(Instant::now())?;
                if self.link.hung_up() {
                    // Whatever the dead server was reading, it reads no more. Its successor looks
                    // at the commit word before and after it reads.
                    self.link.producer.begin_writing_alone(slot);
                    return Ok(());
                }
            }
            if self.link.producer.begin_writing(slot) {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(WriteError::Busy);
            }
        }
    }

    /// Claims the slot for bytes `offset..offset + len` and notes them as changed.
    fn touch(&mut self, offset: u64, len: u64) -> Result<usize, WriteError> {
        self.region.check_payload(offset, len)?;
        let slot = self.begin(true)?.working.slot;
        let end = offset + len;
        if end > self.slots.len() {
            self.grow(slot, offset)?;
            self.slots.resize(end);
        }
        self.slots.changes(offset, end);
        if let Some(update) = &mut self.update {
            update.hashed = false;
        }
        Ok(slot)
    }

    /// Claims the slot for a whole new payload of `len` bytes.
    fn replace(&mut self, len: u64) -> Result<usize, WriteError> {
        self.region.check_payload(0, len)?;
        let slot = self.begin(false)?.working.slot;
        self.slots.resize(len);
        self.slots.changes(0, len);
        if let Some(update) = &mut self.update {
            update.hashed = false;
        }
        Ok(slot)
    }

    /// Fills the payload with zeros from its present end up to `end`.
    fn grow(&mut self, slot: usize, end: u64) -> Result<(), WriteError> {
        const ZEROS: [u8; 4096] = [0; 4096];
        let mut at = self.slots.len();
        while at < end {
            let n = (end - at).min(ZEROS.len() as u64);
            self.region.write_payload(slot, at, &ZEROS[..n as usize])?;
            at += n;
        }
        Ok(())
    }

    /// Makes the version exist in this node's memory and hands it over.
    fn publish(&mut self, urgent: bool) -> Result<Version, CommitError> {
        self.link.check()?;
        let Update { working, hashed } = self.begin(true)?;
        let version = self.slots.version() + 1;
        self.make_version(working, version, hashed);
        self.link.producer.end_writing();
        self.update = None;
        self.unsubmitted.union_ranges(self.slots.changed());
        self.slots.committed(working, version);
        if urgent {
            self.urgent = version;
        }
        self.submit();
        // Fenced in the meantime: the version may lie in memory that nobody will read again.
        self.link.check()?;
        Ok(version)
    }

    /// Checksums what changed, unless that is done, and writes the record.
    fn make_version(&self, working: Working, version: Version, hashed: bool) {
        let (slot, len, changed) = (working.slot, self.slots.len(), self.slots.changed());
        if let (false, Some(source)) = (hashed, working.source) {
            // SAFETY: `begin` claimed the slot; see `slice_mut`. The source is the newest version's,
            // which nobody writes.
            let root = unsafe { self.region.rehash_changed(source, slot, changed, len) };
            if let Ok(root) = root {
                self.region.publish_root(slot, self.epoch, version, len, root);
                return;
            }
        }
        if !hashed {
            // SAFETY: `begin` claimed the slot; see `slice_mut`.
            unsafe { self.region.rehash(slot, Extent { start: 0, end: len }, len) };
        }
        // SAFETY: `begin` claimed the slot; see `slice_mut`.
        unsafe { self.region.publish(slot, self.epoch, version, len) };
    }

    /// Hands the newest version over, if the ring has room; else a later call does.
    fn submit(&mut self) {
        let version = self.slots.version();
        if version == self.submitted {
            return;
        }
        if let Some(slot) = self.slots.newest() {
            let urgent = self.urgent > self.submitted;
            let (len, changed) = (self.slots.newest_len(), &self.unsubmitted);
            if self.link.producer.submit(version, slot, len, changed, urgent) {
                self.unsubmitted.clear();
                self.submitted = version;
                self.link.ring();
            }
        }
    }

    fn wait_mirrored(&mut self, version: Version, deadline: Instant) -> Result<(), CommitError> {
        loop {
            self.submit();
            let all_submitted = self.submitted == self.slots.version();
            let woke = self.link.wait(deadline, |p| {
                p.mirrored() >= version
                    || p.condition() != crate::handover::Condition::Owner
                    || (!all_submitted && p.all_consumed())
            });
            if self.link.producer.mirrored() >= version {
                return Ok(());
            }
            self.link.check()?;
            if woke == Woke::ServerGone {
                self.attach_again(deadline)?;
            }
            if Instant::now() >= deadline {
                let name = self.name.clone();
                return Err(CommitError::DurabilityNotReached { name, version });
            }
        }
    }

    /// A commit that waits for nothing notices in its own time that the server is gone.
    fn stay_attached(&mut self) {
        if self.link.seems_dead() {
            // If it does not work now, a later commit tries again.
            let _ = self.attach_again(Instant::now());
        }
    }

    /// Attaches to a restarted server. The server knows nothing of what was in flight.
    fn attach_again(&mut self, deadline: Instant) -> Result<(), OwnershipError> {
        match self.link.reattach(&self.file, self.epoch, deadline) {
            Ok(()) => {}
            Err(ReattachError::NotYet) => return Ok(()),
            Err(ReattachError::Lost(error)) => return Err(error),
        }
        self.unsubmitted.set_everything();
        self.submitted = 0;
        if let Some(update) = self.update {
            // Nothing of the new server can be reading this slot: it was not handed over.
            self.link.producer.begin_writing(update.working.slot);
        }
        self.submit();
        Ok(())
    }

    /// Looks whether the server is there, and attaches again to one that restarted.
    ///
    /// # Errors
    /// [`RequestError::NoServer`] when there is none at present. Local commits go on working.
    pub fn ping(&mut self) -> Result<(), RequestError> {
        // What the attachment's loss means for this writer is told by its next commit.
        if self.link.hung_up() && self.attach_again(Instant::now()).is_ok() && self.link.hung_up() {
            return Err(self.link.no_server());
        }
        Ok(())
    }
}

/// Puts a whole new state straight into the slot; see [`Checkpoint::writer`].
#[derive(Debug)]
pub struct SlotWriter<'a> {
    checkpoint: &'a mut Checkpoint,
}

impl SlotWriter<'_> {
    /// Commits what was written as the next version.
    ///
    /// # Errors
    /// As [`Checkpoint::commit`].
    pub fn commit(self, durability: Durability) -> Result<Version, CommitError> {
        self.checkpoint.commit(durability)
    }
}

impl io::Write for SlotWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let end = self.checkpoint.len();
        match self.checkpoint.write_at(end, bytes) {
            Ok(()) => Ok(bytes.len()),
            Err(WriteError::TooLarge(e)) => Err(io::Error::new(io::ErrorKind::StorageFull, e)),
            Err(e) => Err(io::Error::other(e)),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
