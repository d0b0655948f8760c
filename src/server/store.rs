//! A node's regions on disk, which is memory: a region file and, beside it, what the server knows
//! of it. Everything here blocks and runs apart from the control plane's thread.
//!
//! The description is not kept in the region's own header, because a client may write there. It is
//! replaced by renaming, so a server that is killed at any point finds the old or the new one.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt, chown},
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::fs::{AtFlags, CWD, FlockOperation, Statx, StatxFlags, flock, statx};
use serde::{Deserialize, Serialize};

use crate::{
    commit::{Extent, RecordError, Version},
    membership::NodeId,
    name::Name,
    region::{
        Identity, Region, SlotError,
        files::{Backing, CreateError, Places},
        layout::Layout,
        mapping::Mapping,
    },
};

const META_SUFFIX: &str = ".meta";
const REGION_SUFFIX: &str = ".region";

/// Whose checkpoint it is, and who else may reach it: as of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Permission bits; of a caller, not used.
    pub mode: u32,
}

impl Owner {
    /// Whether `caller` may read.
    pub fn may_read(&self, caller: &Owner) -> bool {
        self.allows(caller, 4)
    }

    /// Whether `caller` may write, take over and remove.
    pub fn may_write(&self, caller: &Owner) -> bool {
        self.allows(caller, 6)
    }

    fn allows(&self, caller: &Owner, wanted: u32) -> bool {
        let shift = if caller.uid == self.uid {
            6
        } else if caller.gid == self.gid {
            3
        } else {
            0
        };
        caller.uid == 0 || (self.mode >> shift) & wanted == wanted
    }
}

/// What a server knows of a region.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// The checkpoint.
    pub name: Name,
    /// Whose region it is.
    pub identity: Identity,
    /// Its measures.
    pub layout: Layout,
    /// Ownership epoch.
    pub epoch: u64,
    /// Whose checkpoint it is.
    pub owner: Owner,
    /// In which way this node has it.
    pub held: Held,
    /// Names this very memory.
    pub region: u64,
    /// Reserved bytes.
    pub bytes: u64,
    /// In which kind of memory.
    #[serde(default)]
    pub backing: Backing,
    /// Who took it over: from here if it is superseded, from its owner if it is a mirror.
    #[serde(default)]
    pub successor: Option<NodeId>,
    /// The life of this node that owned it or gave it up last has ended: that life's incarnation.
    /// What it acknowledged is in here.
    #[serde(default)]
    pub ended: Option<u64>,
    /// Owners that left the ring with this as theirs, former lives of this node among them, before
    /// it was taken up here; as far as they were not recovered when it was taken up last.
    #[serde(default)]
    pub taken_from: Vec<NodeId>,
}

impl Meta {
    /// Of a region that is yet to be made.
    pub fn new(
        name: Name,
        identity: Identity,
        layout: Layout,
        epoch: u64,
        owner: Owner,
        held: Held,
        region: u64,
    ) -> Self {
        let (bytes, backing) = (0, Backing::default()); // `Store::create` says what it took
        let (successor, ended, taken_from) = (None, None, Vec::new());
        Self {
            name,
            identity,
            layout,
            epoch,
            owner,
            held,
            region,
            bytes,
            backing,
            successor,
            ended,
            taken_from,
        }
    }
}

/// In which way a node has a region.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Held {
    /// Its service writes here.
    Owned,
    /// Taken over from a dead node; nobody has opened it yet.
    Orphan,
    /// Somebody took it over; kept until that one is mirrored.
    Superseded,
    /// The mirror of this owner.
    Mirror(NodeId),
}

/// A region with its file and description.
#[derive(Debug)]
pub struct Stored {
    /// The description.
    pub meta: Meta,
    /// The mapped region.
    pub region: Region,
    /// The file's path.
    pub path: PathBuf,
}

/// The regions of one node.
#[derive(Debug, Clone)]
pub struct Store {
    places: Places,
}

/// Why a region could not be made, opened or changed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No room, or the system refused. Nothing was made.
    #[error(transparent)]
    Create(#[from] CreateError),
    /// The system refused.
    #[error("{path}: {source}")]
    System {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The version that was to be copied is not valid. Nothing was made.
    #[error(transparent)]
    Damaged(#[from] SlotError),
}

impl Store {
    /// The regions in these places.
    pub fn new(places: Places) -> Self {
        Self { places }
    }

    /// True when large regions find huge pages.
    pub fn has_hugepages(&self) -> bool {
        self.places.huge.is_some() || self.places.joins_pages
    }

    /// Makes a new, empty region. `meta.bytes` and `meta.backing` are set
    /// to what was reserved. It has no description
    /// yet: until [`Store::write_meta`] a restart removes it. So whoever fills it writes the
    /// description last, and a half-made region never takes the place of a whole one.
    pub fn create(&self, mut meta: Meta) -> Result<Stored, StoreError> {
        let file_name = region_name(&meta.name, meta.region);
        let made = self.places.create(&file_name, meta.layout.region_bytes())?;
        (meta.bytes, meta.backing) = (made.bytes, made.backing);
        let path = made.path.clone();
        let finish = || -> io::Result<Stored> {
            if !matches!(meta.held, Held::Mirror(_)) && rustix::process::geteuid().is_root() {
                chown(&made.path, Some(meta.owner.uid), Some(meta.owner.gid))?;
            }
            let mapping = map(&made.file, made.bytes)?;
            let region = Region::new(mapping, meta.layout, meta.identity)
                .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
            Ok(Stored { meta, region, path: made.path })
        };
        finish().map_err(|source| {
            let _ = fs::remove_file(&path);
            StoreError::System { path, source }
        })
    }

    /// Makes a region that begins with a copy of another one's version in `slot`, if any. The copy
    /// is verified before it counts.
    pub fn copy(
        &self,
        meta: Meta,
        from: &Region,
        slot: Option<usize>,
    ) -> Result<Stored, StoreError> {
        self.fill(self.create(meta)?, from, slot)
    }

    /// The same for a region that was made already. On error it is gone.
    pub fn fill(
        &self,
        stored: Stored,
        from: &Region,
        slot: Option<usize>,
    ) -> Result<Stored, StoreError> {
        let Some(slot) = slot else { return self.describe(stored) };
        let copy = || -> Result<(), SlotError> {
            let into = &stored.region;
            let to = into.layout().payload(0);
            let record = from.read_verified(slot, |at, piece| {
                let len = at + piece.len() as u64;
                let capacity = into.layout().capacity();
                into.check_payload(0, len).map_err(|_| RecordError::Length { len, capacity })?;
                into.mapping().write_at(to + at, piece).expect("inside: just checked");
                Ok::<_, SlotError>(())
            })?;
            let extent = Extent { start: 0, end: record.len };
            // SAFETY: the region is new; nobody else knows it yet.
            unsafe { into.rehash(0, extent, record.len) };
            // SAFETY: as above.
            unsafe { into.publish(0, stored.meta.epoch, record.sequence, record.len) };
            Ok(())
        };
        match copy() {
            Ok(()) => self.describe(stored),
            Err(damage) => {
                self.remove(&stored.meta, &stored.path);
                Err(damage.into())
            }
        }
    }

    /// Writes the description anew.
    pub fn write_meta(&self, meta: &Meta) -> io::Result<()> {
        let path = self.meta_path(meta);
        let temporary = path.with_extension("tmp");
        let text = serde_json::to_vec_pretty(meta)?;
        fs::write(&temporary, text)?;
        fs::rename(&temporary, &path)
    }

    /// Removes a region: first its description, so that it is never found without its memory.
    pub fn remove(&self, meta: &Meta, path: &Path) {
        for path in [&self.meta_path(meta), path] {
            if let Err(error) = fs::remove_file(path)
                && error.kind() != io::ErrorKind::NotFound
            {
                tracing::warn!(path = %path.display(), %error, "removing a region");
            }
        }
    }

    /// Everything that an earlier life of this server left. What cannot be used is told and left
    /// where it is; region files without a description are removed.
    pub fn load(&self) -> io::Result<Vec<Stored>> {
        let mut found = Vec::new();
        let mut known = Vec::new();
        for file_name in self.places.list(META_SUFFIX)? {
            let path = self.places.dir.join(&file_name);
            match self.load_one(&path) {
                Ok(stored) => {
                    known.push(region_name(&stored.meta.name, stored.meta.region));
                    found.push(stored);
                }
                Err(error) => {
                    tracing::error!(path = %path.display(), %error, "a region cannot be used");
                    known.push(file_name.replace(META_SUFFIX, REGION_SUFFIX));
                }
            }
        }
        for file_name in self.places.list(REGION_SUFFIX)? {
            if !known.contains(&file_name)
                && let Ok((_, path)) = self.places.open(&file_name)
            {
                tracing::info!(path = %path.display(), "removing a region that was never finished");
                let _ = fs::remove_file(path);
            }
        }
        Ok(found)
    }

    fn load_one(&self, path: &Path) -> io::Result<Stored> {
        let meta: Meta = serde_json::from_slice(&fs::read(path)?)?;
        let (file, path) = self.places.open(&region_name(&meta.name, meta.region))?;
        // Longer is harmless: its client can do that, and nobody looks there.
        if file.metadata()?.len() < meta.bytes {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the region was cut off"));
        }
        let mapping = map(&file, meta.bytes)?;
        let region = Region::new(mapping, meta.layout, meta.identity)
            .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
        Ok(Stored { meta, region, path })
    }

    fn meta_path(&self, meta: &Meta) -> PathBuf {
        let region = region_name(&meta.name, meta.region);
        self.places.dir.join(region.replace(REGION_SUFFIX, META_SUFFIX))
    }
}

impl Store {
    /// Makes a region that begins with this version, whose payload is the first `len` bytes of a
    /// file that was verified when it was fetched.
    pub fn restore(
        &self,
        meta: Meta,
        from: &File,
        version: Version,
        len: u64,
    ) -> Result<Stored, StoreError> {
        let stored = self.create(meta)?;
        let payload = stored.region.layout().payload(0);
        let mut buffer = vec![0; (1 << 20).min(len as usize)];
        let mut at = 0;
        while at < len {
            let n = buffer.len().min((len - at) as usize);
            let piece = from.read_exact_at(&mut buffer[..n], at);
            let piece = piece.and_then(|()| {
                let written = stored.region.mapping().write_at(payload + at, &buffer[..n]);
                written.map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
            });
            if let Err(source) = piece {
                self.remove(&stored.meta, &stored.path);
                return Err(StoreError::System { path: stored.path, source });
            }
            at += n as u64;
        }
        // SAFETY: the region is new; nobody else knows it yet.
        unsafe { stored.region.rehash(0, Extent { start: 0, end: len }, len) };
        // SAFETY: as above.
        unsafe { stored.region.publish(0, stored.meta.epoch, version, len) };
        self.describe(stored)
    }

    /// Writes a filled region's description, so that a restart finds it.
    fn describe(&self, stored: Stored) -> Result<Stored, StoreError> {
        match self.write_meta(&stored.meta) {
            Ok(()) => Ok(stored),
            Err(source) => {
                self.remove(&stored.meta, &stored.path);
                Err(StoreError::System { path: stored.path, source })
            }
        }
    }
}

/// Opens a region's file for a client and locks it. The lock belongs to the open file: it lives as
/// long as any process has the file open or mapped, however the server fares, and is gone when the
/// last one is. `None` when another process has the region.
pub fn open_for_client(path: &Path) -> io::Result<Option<File>> {
    let file = OpenOptions::new().read(true).write(true).custom_flags(0).open(path)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// Whether an open file that a client shows is this region, and the client is its lock's holder.
pub fn is_writer(shown: &File, path: &Path) -> io::Result<bool> {
    // What is shown may be anything, for example a file of a server that does not answer: only what
    // is known of it is asked.
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let shown_is = statx(shown, "", flags, StatxFlags::INO)?;
    let is = statx(CWD, path, AtFlags::empty(), StatxFlags::INO)?;
    let place = |of: &Statx| (of.stx_dev_major, of.stx_dev_minor, of.stx_ino);
    if place(&shown_is) != place(&is) {
        return Ok(false);
    }
    match flock(shown, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

fn map(file: &File, bytes: u64) -> io::Result<Arc<Mapping>> {
    let len = usize::try_from(bytes).map_err(|_| io::ErrorKind::OutOfMemory)?;
    Ok(Arc::new(Mapping::new(file, len)?))
}

fn region_name(name: &Name, region: u64) -> String {
    format!("{name}.{region:016x}{REGION_SUFFIX}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::region::files::make_private_dir;

    fn store(dir: &Path) -> Store {
        let places = Places { dir: dir.join("n"), huge: None, joins_pages: true };
        make_private_dir(&places.dir).unwrap();
        Store::new(places)
    }

    fn meta(region: u64) -> Meta {
        let identity = Identity { checkpoint: 1, generation: 1 };
        let owner = Owner { uid: rustix::process::geteuid().as_raw(), gid: 0, mode: 0o640 };
        let (name, layout) = (Name::new("sched").unwrap(), Layout::new(10_000, 2).unwrap());
        Meta::new(name, identity, layout, 1, owner, Held::Owned, region)
    }

    #[test]
    fn what_was_stored_is_found_again_and_half_made_files_are_not() {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let store = store(dir.path());
        let stored = store.create(meta(7)).unwrap();
        assert!(store.load().unwrap().is_empty(), "a region that was never filled is not found");
        let stored = store.create(stored.meta).unwrap();
        store.write_meta(&stored.meta).unwrap();
        store.places.create("sched.00000000000000ff.region", 10).unwrap();
        let found = store.load().unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].meta, stored.meta);
        assert_eq!(store.places.list(REGION_SUFFIX).unwrap().len(), 1);
        store.remove(&stored.meta, &stored.path);
        assert!(store.load().unwrap().is_empty());
    }

    #[test]
    fn a_region_has_one_writer_as_long_as_a_process_maps_it() {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let stored = store(dir.path()).create(meta(7)).unwrap();
        let client = open_for_client(&stored.path).unwrap().unwrap();
        assert!(open_for_client(&stored.path).unwrap().is_none());
        assert!(is_writer(&client, &stored.path).unwrap());
        let stranger = File::open(&stored.path).unwrap();
        assert!(!is_writer(&stranger, &stored.path).unwrap(), "it is not the lock's holder");
        let mapping = Mapping::new(&client, 4096).unwrap();
        drop(client);
        assert!(open_for_client(&stored.path).unwrap().is_none(), "a mapping keeps the lock");
        drop(mapping);
        assert!(open_for_client(&stored.path).unwrap().is_some());
    }

    #[test]
    fn permission_is_as_of_a_file() {
        let owner = Owner { uid: 10, gid: 20, mode: 0o640 };
        let caller = |uid, gid| Owner { uid, gid, mode: 0 };
        assert!(owner.may_write(&caller(10, 99)));
        assert!(owner.may_read(&caller(11, 20)) && !owner.may_write(&caller(11, 20)));
        assert!(!owner.may_read(&caller(11, 21)));
        assert!(owner.may_write(&caller(0, 0)));
    }

    #[test]
    fn a_copy_of_a_damaged_version_is_not_made() {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let store = store(dir.path());
        let source = store.create(meta(7)).unwrap();
        store.write_meta(&source.meta).unwrap();
        let region = &source.region;
        region.write_payload(0, 0, &[3; 9_000]).unwrap();
        // SAFETY: the test is the region's only user.
        unsafe { region.rehash(0, Extent { start: 0, end: 9_000 }, 9_000) };
        // SAFETY: as above.
        unsafe { region.publish(0, 1, 5, 9_000) };
        let mut larger = meta(8);
        larger.layout = Layout::new(50_000, 2).unwrap();
        let copy = store.copy(larger.clone(), region, Some(0)).unwrap();
        assert_eq!(copy.region.newest_valid().unwrap().record.sequence, 5);
        region.write_payload(0, 100, &[4]).unwrap();
        larger.region = 9;
        assert!(matches!(store.copy(larger, region, Some(0)), Err(StoreError::Damaged(_))));
        assert_eq!(store.load().unwrap().len(), 2);
    }
}
