//! What services use: connect, open, write, commit, read back.
//!
//! The client needs nothing but shared memory and one Unix socket: no RDMA library, no async
//! runtime, no thread of its own.
//!
//! ```no_run
//! use ringkeep::{Client, Durability, Options};
//!
//! let client = Client::connect()?; // the local server
//! let mut checkpoint = client.open("sched", Options::capacity(64 << 20))?;
//! if let Some(saved) = checkpoint.latest()? {
//!     println!("going on from version {}: {} bytes", saved.version(), saved.bytes().len());
//! }
//! checkpoint.write_at(4096, b"only what changed travels")?;
//! let version = checkpoint.commit(Durability::Mirrored)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod checkpoint;
mod error;
mod link;
mod saved;
pub(crate) mod wire;

use std::{
    fs::File,
    io,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

pub use checkpoint::{Checkpoint, Pending, SlotWriter};
pub use error::{CommitError, OwnershipError, ReadError, RequestError, WriteError};
pub use saved::Saved;

use crate::{
    commit::Version,
    name::{Name, NameError},
    paths,
    protocol::{FailureKind, Listed, Request, Response, Status, VerifiedCopy},
};

/// Environment variable that names the local server's socket.
pub const SOCKET_VARIABLE: &str = "RINGKEEP_SOCKET";

/// Any longer may be beyond what the system's clock can tell.
const TIMEOUT_MAX: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// What an acknowledged commit survives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Durability {
    /// The end of its process: it lies in this node's shared memory.
    Local,
    /// The end of its node: it lies in the predecessor's memory, too.
    Mirrored,
}

/// How to open a checkpoint.
#[derive(Debug, Clone)]
pub struct Options {
    capacity: u64,
    slots: u32,
    mode: u32,
    take_over: bool,
    existing: bool,
    timeout: Duration,
    spin: Duration,
}

impl Options {
    /// A checkpoint of up to `bytes` bytes: made if there is none, attached to or taken over if
    /// there is one, enlarged if it is smaller.
    pub fn capacity(bytes: u64) -> Self {
        Self {
            capacity: bytes,
            slots: 2,
            mode: 0o600,
            take_over: false,
            existing: false,
            timeout: Duration::from_secs(5),
            spin: crate::pause::LOOK,
        }
    }

    /// Slots of a new region, 2 (the default) to 8. At most one less than this many versions are
    /// in flight to the mirror.
    pub fn slots(mut self, slots: u32) -> Self {
        self.slots = slots;
        self
    }

    /// Permission bits of a new checkpoint, as of a file; 0o600 by default. Others who may read
    /// can get it, others who may write can open it.
    pub fn mode(mut self, mode: u32) -> Self {
        self.mode = mode;
        self
    }

    /// Takes the checkpoint over from a writer that is alive, here or on another node. That writer
    /// is fenced: its next call fails.
    pub fn take_over(mut self) -> Self {
        self.take_over = true;
        self
    }

    /// Does not make a checkpoint that is not there.
    pub fn existing(mut self) -> Self {
        self.existing = true;
        self
    }

    /// How long a [`Durability::Mirrored`] commit waits for its mirror; 5 s by default, a year at most.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout.min(TIMEOUT_MAX);
        self
    }

    /// How long a commit looks for its completion before it sleeps; 100 µs by default.
    pub fn spin(mut self, spin: Duration) -> Self {
        self.spin = spin;
        self
    }
}

/// Why a checkpoint could not be opened. Nothing changed.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Not a name.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The server did not let us.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The region could not be mapped.
    #[error("mapping the region: {0}")]
    Map(io::Error),
}

impl OpenError {
    /// The kind of the server's refusal, if it was one.
    pub fn kind(&self) -> Option<FailureKind> {
        match self {
            Self::Request(error) => error.kind(),
            _ => None,
        }
    }
}

/// The way to one local server.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
}

/// A copy of a committed version, in memory of its own.
#[derive(Debug)]
pub struct Fetched {
    /// The version.
    pub version: Version,
    /// Its length in bytes.
    pub len: u64,
    /// A newer version may have been acknowledged. Only after [`Client::get_maybe_stale`].
    pub maybe_stale: bool,
    /// Holds the bytes from its begin on; positioned there.
    pub file: File,
}

impl Client {
    /// The server at `RINGKEEP_SOCKET`, else at this user's well-known path.
    ///
    /// # Errors
    /// [`RequestError::NoServer`] when nobody answers there.
    pub fn connect() -> Result<Self, RequestError> {
        Self::connect_to(socket_path())
    }

    /// The server at this socket.
    ///
    /// # Errors
    /// As [`Client::connect`].
    pub fn connect_to(socket: impl Into<PathBuf>) -> Result<Self, RequestError> {
        let client = Self { socket: socket.into() };
        client.stream()?;
        Ok(client)
    }

    /// The socket's path.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Opens a checkpoint for writing. This process is its only writer until the [`Checkpoint`]
    /// is dropped or somebody takes it over.
    ///
    /// What it finds may be newer than the last version that was acknowledged as mirrored: one that
    /// was on its way when its writer ended. Until [`Checkpoint::mirrored`] says so it survives no
    /// loss of this node, like any that nobody waited for.
    ///
    /// # Errors
    /// [`FailureKind::OwnedElsewhere`] names the node whose service has it; others say what is
    /// missing. Nothing was changed.
    pub fn open(&self, name: &str, options: Options) -> Result<Checkpoint, OpenError> {
        Checkpoint::open(self, Name::new(name)?, options)
    }

    /// A copy of the newest committed version, or of the one given, from whichever node has it.
    ///
    /// # Errors
    /// [`FailureKind::NoSuchCheckpoint`], [`FailureKind::Corrupt`], or that no node could be
    /// asked.
    pub fn get(&self, name: &Name, version: Option<Version>) -> Result<Fetched, RequestError> {
        self.fetch(&Request::Get { name: name.clone(), version, maybe_stale: false })
    }

    /// As [`Client::get`]; but where so many nodes lost their memory that nobody can tell which
    /// version is the newest, the newest that anybody shows. [`Fetched::maybe_stale`] says so.
    ///
    /// # Errors
    /// Those of [`Client::get`].
    pub fn get_maybe_stale(&self, name: &Name) -> Result<Fetched, RequestError> {
        self.fetch(&Request::Get { name: name.clone(), version: None, maybe_stale: true })
    }

    fn fetch(&self, request: &Request) -> Result<Fetched, RequestError> {
        let stream = self.stream()?;
        wire::send(&stream, request, None)?;
        let (response, mut descriptors) = wire::receive(&stream)?;
        match (response, descriptors.pop()) {
            (Response::Fetched { version, len, maybe_stale }, Some(fd)) => {
                Ok(Fetched { version, len, maybe_stale, file: File::from(fd) })
            }
            (Response::Failed(failure), _) => Err(failure.into()),
            _ => Err(RequestError::Unexpected),
        }
    }

    /// All checkpoints of the ring, by name.
    ///
    /// # Errors
    /// Those of the connection.
    pub fn list(&self) -> Result<Vec<Listed>, RequestError> {
        match self.request(&Request::List)? {
            Response::Listing { checkpoints } => Ok(checkpoints),
            _ => Err(RequestError::Unexpected),
        }
    }

    /// The local server and its ring.
    ///
    /// # Errors
    /// Those of the connection.
    pub fn status(&self) -> Result<Status, RequestError> {
        match self.request(&Request::Status)? {
            Response::Status(status) => Ok(*status),
            _ => Err(RequestError::Unexpected),
        }
    }

    /// The same, given up when the server does not answer in time.
    ///
    /// # Errors
    /// Those of the connection.
    pub fn status_within(&self, limit: Duration) -> Result<Status, RequestError> {
        let stream = self.stream()?;
        stream.set_read_timeout(Some(limit))?;
        stream.set_write_timeout(Some(limit))?;
        match ask(&stream, &Request::Status) {
            Ok(Response::Status(status)) => Ok(*status),
            Ok(_) => Err(RequestError::Unexpected),
            Err(RequestError::Broken(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                let why = format!("it does not answer within {limit:?}");
                Err(RequestError::Broken(io::Error::new(io::ErrorKind::TimedOut, why)))
            }
            Err(error) => Err(error),
        }
    }

    /// Checks every checksum of a checkpoint's copies, or of all copies that the local node has.
    ///
    /// # Errors
    /// Those of the connection. Damage is no error but told in the answer.
    pub fn verify(&self, name: Option<&Name>) -> Result<Vec<VerifiedCopy>, RequestError> {
        match self.request(&Request::Verify { name: name.cloned() })? {
            Response::Verified { copies } => Ok(copies),
            _ => Err(RequestError::Unexpected),
        }
    }

    /// Removes a checkpoint and its mirror. Its writer gets [`OwnershipError::Removed`].
    ///
    /// # Errors
    /// [`FailureKind::NoSuchCheckpoint`], [`FailureKind::Permission`], or those of the connection.
    pub fn remove(&self, name: &Name) -> Result<(), RequestError> {
        self.give_up(&Request::Remove { name: name.clone(), leftovers: false })
    }

    /// As [`Client::remove`]; of a checkpoint that nobody owns, because too many nodes lost their
    /// memory, the copies that are left.
    ///
    /// # Errors
    /// Those of [`Client::remove`], and that a node cannot be asked.
    pub fn remove_leftovers(&self, name: &Name) -> Result<(), RequestError> {
        self.give_up(&Request::Remove { name: name.clone(), leftovers: true })
    }

    fn give_up(&self, request: &Request) -> Result<(), RequestError> {
        match self.request(request)? {
            Response::Removed => Ok(()),
            _ => Err(RequestError::Unexpected),
        }
    }

    fn request(&self, request: &Request) -> Result<Response, RequestError> {
        ask(&self.stream()?, request)
    }

    fn stream(&self) -> Result<UnixStream, RequestError> {
        UnixStream::connect(&self.socket)
            .map_err(|source| RequestError::NoServer { socket: self.socket.clone(), source })
    }
}

fn ask(stream: &UnixStream, request: &Request) -> Result<Response, RequestError> {
    wire::send(stream, request, None)?;
    match wire::receive(stream)?.0 {
        Response::Failed(failure) => Err(failure.into()),
        response => Ok(response),
    }
}

/// The socket that `RINGKEEP_SOCKET` names, else this user's well-known path.
pub fn socket_path() -> PathBuf {
    if let Some(path) = std::env::var_os(SOCKET_VARIABLE).filter(|p| !p.is_empty()) {
        return path.into();
    }
    let uid = rustix::process::geteuid().as_raw();
    paths::default_socket(uid, paths::run_user_dir(uid).as_deref())
}
