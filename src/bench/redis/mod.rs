//! Redis, as what people have today: `SET` and `WAIT 1` in one write, which is acknowledged when a
//! replica has the state, too.
//!
//! The crate `redis` would bring the address parser of browsers and its tables of Unicode along, for
//! two commands and their answers: [`resp`] is all that is needed here.

mod network;
mod resp;
mod servers;

use std::{
    fmt,
    io::{self, BufReader, ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream, ToSocketAddrs},
    os::unix::net::UnixStream,
    path::PathBuf,
    process::ExitStatus,
    str::FromStr,
    sync::atomic::AtomicBool,
    time::{Duration, Instant},
};

use serde::Serialize;

use self::{resp::Answer, servers::Servers};
use super::{BenchError, turns::Contender};
use crate::demo::ring;

/// Until a connection is there.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// How long a replica is waited for at first, which may still be connecting.
const FIRST_LIMIT: Duration = Duration::from_secs(3);
/// How long a replica may take for a state.
const COMMIT_LIMIT: Duration = Duration::from_secs(30);
/// Redis itself ends the wait; only one that hangs is silent for longer.
const SILENCE_LIMIT: Duration = Duration::from_secs(35);

/// How long it may take to remove what it was given.
const LAST_LIMIT: Duration = Duration::from_secs(1);

/// Where a Redis server answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A name or address, a colon and a port.
    Tcp(String),
    /// The path of its Unix socket.
    Unix(PathBuf),
    /// Nowhere yet: a server and a replica are started.
    Start,
}

/// Why a text is not an [`Address`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "not an address; write HOST:PORT, unix:/path, or start to have a server and a replica started"
)]
pub struct AddressError;

impl FromStr for Address {
    type Err = AddressError;
    fn from_str(text: &str) -> Result<Self, AddressError> {
        if text == "start" {
            return Ok(Self::Start);
        }
        if let Some(path) = text.strip_prefix("unix:") {
            return if path.is_empty() { Err(AddressError) } else { Ok(Self::Unix(path.into())) };
        }
        match text.rsplit_once(':') {
            Some((host, port))
                if !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0) =>
            {
                Ok(Self::Tcp(text.to_owned()))
            }
            _ => Err(AddressError),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => f.pad(address),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Start => f.pad("start"),
        }
    }
}

/// Why Redis does not take part.
#[derive(Debug, thiserror::Error)]
pub enum RedisError {
    /// Its servers could not be started.
    #[error("starting redis-server: {source}")]
    Start {
        /// What the system said.
        source: io::Error,
    },
    /// One that was started ended by itself.
    #[error("the redis-server that was started ended ({status})")]
    Ended {
        /// How.
        status: ExitStatus,
    },
    /// Nobody answers there.
    #[error("no Redis answers at {address}: {source}")]
    NoServer {
        /// Where.
        address: Address,
        /// What the system said.
        source: io::Error,
    },
    /// It was there.
    #[error("Redis at {address}: {}", broken(source))]
    Broken {
        /// Where.
        address: Address,
        /// What the connection said.
        source: io::Error,
    },
    /// It says no.
    #[error("Redis at {address} refused {command}: {answer}")]
    Refused {
        /// Where.
        address: Address,
        /// What was asked.
        command: &'static str,
        /// Its answer, a code first.
        answer: String,
    },
    /// Nobody has a second copy.
    #[error("Redis at {address} has no replica that acknowledges: WAIT 1 answered 0")]
    NoReplica {
        /// Where.
        address: Address,
    },
    /// The replica was there, and then did not have a state in time.
    #[error(
        "Redis at {address}: its replica did not acknowledge {bytes} bytes within {COMMIT_LIMIT:?}"
    )]
    ReplicaLost {
        /// Where.
        address: Address,
        /// Bytes of the state.
        bytes: usize,
    },
}

fn broken(source: &io::Error) -> String {
    match source.kind() {
        ErrorKind::UnexpectedEof => "it closed the connection".to_owned(),
        ErrorKind::WouldBlock | ErrorKind::TimedOut => {
            format!("it does not answer within {SILENCE_LIMIT:?}")
        }
        _ => source.to_string(),
    }
}

/// What a Redis says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct About {
    /// Where it answers.
    pub address: String,
    /// It and its replica were started for this.
    pub started: bool,
    /// Its version.
    pub version: Option<String>,
    /// It also writes to a disk, which it does beside.
    pub appends_to_disk: Option<bool>,
    /// What was done for those that were started.
    pub tuning: Vec<String>,
    /// What could not be done for them, and favours ringkeep.
    pub untuned: Option<String>,
}

/// A Redis server that has a replica. What it was given is removed when this is dropped, and what was
/// started for it ends.
#[derive(Debug)]
pub struct Redis {
    address: Address,
    stream: BufReader<Stream>,
    key: String,
    message: Vec<u8>,
    servers: Option<Servers>,
}

impl Redis {
    /// Connects, with this password if it needs one, and sees to it that a replica acknowledges.
    /// `stop` ends the wait for servers that are started.
    ///
    /// # Errors
    /// It does not answer, refuses, or has no replica.
    pub fn connect(
        address: &Address,
        password: Option<&str>,
        stop: &AtomicBool,
    ) -> Result<Self, BenchError> {
        if *address != Address::Start {
            return Ok(Self::connect_to(address, password)?);
        }
        let mut servers = Servers::start()?;
        let address = servers.address();
        // It neither answers nor has its replica at first.
        let mut redis =
            ring::poll("Redis and its replica", ring::LIMIT, stop, || match servers.check() {
                Ok(()) => Self::connect_to(&address, None).map(Ok).map_err(|e| e.to_string()),
                Err(ended) => Ok(Err(ended)),
            })??;
        redis.servers = Some(servers);
        Ok(redis)
    }

    fn connect_to(address: &Address, password: Option<&str>) -> Result<Self, RedisError> {
        let no_server = |source| RedisError::NoServer { address: address.clone(), source };
        let stream = BufReader::new(Stream::connect(address).map_err(no_server)?);
        let key = format!("ringkeep-bench-{}", std::process::id());
        let address = address.clone();
        let mut redis = Self { address, stream, key, message: Vec::new(), servers: None };
        if let Some(password) = password {
            let answer = redis.ask(&[b"AUTH", password.as_bytes()])?;
            redis.expect_ok("AUTH", answer)?;
        }
        if redis.commit(b"ready?", FIRST_LIMIT)? < 1 {
            return Err(RedisError::NoReplica { address: redis.address.clone() });
        }
        Ok(redis)
    }

    /// What it says of itself; what it does not say is left out.
    ///
    /// # Errors
    /// The connection broke.
    pub fn about(&mut self) -> Result<About, RedisError> {
        let said = self.info()?;
        Ok(About {
            address: self.address.to_string(),
            started: self.servers.is_some(),
            version: value_in(&said, "redis_version").map(str::to_owned),
            appends_to_disk: value_in(&said, "aof_enabled").map(|enabled| enabled != "0"),
            tuning: self.servers.as_ref().map_or_else(Vec::new, Servers::tuning),
            untuned: self.servers.as_ref().and_then(Servers::untuned),
        })
    }

    /// How often a replica had to be sent everything anew, as happens to one that was dropped; 0 if
    /// it does not say.
    ///
    /// # Errors
    /// The connection broke.
    pub fn full_copies(&mut self) -> Result<u64, RedisError> {
        let said = self.info()?;
        Ok(value_in(&said, "sync_full").and_then(|count| count.parse().ok()).unwrap_or(0))
    }

    fn info(&mut self) -> Result<String, RedisError> {
        match self.ask(&[b"INFO"])? {
            Answer::Text(said) => Ok(said),
            _ => Ok(String::new()), // it need not tell everybody
        }
    }

    /// Sets the state and waits for a replica, both in one write. How many have it.
    fn commit(&mut self, state: &[u8], limit: Duration) -> Result<i64, RedisError> {
        let limit = limit.as_millis().to_string();
        let mut message = std::mem::take(&mut self.message);
        message.clear();
        resp::push(&mut message, &[b"SET", self.key.as_bytes(), state]);
        resp::push(&mut message, &[b"WAIT", b"1", limit.as_bytes()]);
        let written = self.stream.get_mut().write_all(&message);
        self.message = message;
        // A server that refuses a state may say why before it has read all of it.
        let set = match (written, resp::read(&mut self.stream)) {
            (Ok(()), answer) => answer.map_err(|e| self.broken(e))?,
            (Err(_), Ok(refused @ Answer::Error(_))) => refused,
            (Err(error), _) => return Err(self.broken(error)),
        };
        self.expect_ok("SET", set)?;
        match resp::read(&mut self.stream).map_err(|e| self.broken(e))? {
            Answer::Integer(replicas) => Ok(replicas),
            other => Err(self.refused("WAIT", other)),
        }
    }

    fn ask(&mut self, words: &[&[u8]]) -> Result<Answer, RedisError> {
        let mut message = Vec::new();
        resp::push(&mut message, words);
        let written = self.stream.get_mut().write_all(&message);
        written.and_then(|()| resp::read(&mut self.stream)).map_err(|e| self.broken(e))
    }

    fn expect_ok(&self, command: &'static str, answer: Answer) -> Result<(), RedisError> {
        match answer {
            Answer::Status(_) => Ok(()),
            other => Err(self.refused(command, other)),
        }
    }

    fn refused(&self, command: &'static str, answer: Answer) -> RedisError {
        let answer = match answer {
            Answer::Error(text) => text.trim_end_matches('.').to_owned(),
            other => format!("{other:?}"),
        };
        RedisError::Refused { address: self.address.clone(), command, answer }
    }

    fn broken(&self, source: io::Error) -> RedisError {
        RedisError::Broken { address: self.address.clone(), source }
    }

    /// Somebody who commits states of `len` bytes.
    pub fn commits(&mut self, len: usize) -> RedisCommits<'_> {
        RedisCommits { redis: self, state: vec![7; len], count: 0 }
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        if self.servers.is_none() && self.stream.get_ref().answer_within(LAST_LIMIT).is_ok() {
            // A server that is gone has nothing that could be removed.
            let key = self.key.clone();
            let _ = self.ask(&[b"DEL", key.as_bytes()]);
        }
    }
}

/// One line of what `INFO` answers.
fn value_in<'a>(said: &'a str, key: &str) -> Option<&'a str> {
    let mut pairs = said.lines().filter_map(|line| line.split_once(':'));
    pairs.find(|(found, _)| *found == key).map(|(_, value)| value.trim())
}

/// See [`Redis::commits`].
#[derive(Debug)]
pub struct RedisCommits<'a> {
    redis: &'a mut Redis,
    state: Vec<u8>,
    count: usize,
}

impl Contender for RedisCommits<'_> {
    fn step(&mut self) -> Result<Duration, BenchError> {
        self.count += 1;
        let bytes = self.state.len();
        let at = self.count % bytes;
        self.state[at] = self.state[at].wrapping_add(1);
        let began = Instant::now();
        if self.redis.commit(&self.state, COMMIT_LIMIT)? < 1 {
            let address = self.redis.address.clone();
            return Err(RedisError::ReplicaLost { address, bytes }.into());
        }
        Ok(began.elapsed())
    }
}

/// Either way to a server.
#[derive(Debug)]
enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Stream {
    fn connect(address: &Address) -> io::Result<Self> {
        let stream = match address {
            Address::Tcp(address) => Self::Tcp(connect_to_any(address.to_socket_addrs()?)?),
            Address::Unix(path) => Self::Unix(UnixStream::connect(path)?),
            Address::Start => return Err(ErrorKind::AddrNotAvailable.into()),
        };
        stream.answer_within(SILENCE_LIMIT)?;
        Ok(stream)
    }

    /// Every read and write ends within this.
    fn answer_within(&self, limit: Duration) -> io::Result<()> {
        let limit = Some(limit);
        match self {
            Self::Tcp(stream) => {
                stream.set_read_timeout(limit).and(stream.set_write_timeout(limit))
            }
            Self::Unix(stream) => {
                stream.set_read_timeout(limit).and(stream.set_write_timeout(limit))
            }
        }
    }
}

/// The first that answers; else the last one's error.
fn connect_to_any(addresses: impl Iterator<Item = SocketAddr>) -> io::Result<TcpStream> {
    let mut last = io::Error::new(ErrorKind::NotFound, "the name has no address");
    for address in addresses {
        match TcpStream::connect_timeout(&address, CONNECT_LIMIT) {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

impl Read for Stream {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(bytes),
            Self::Unix(stream) => stream.read(bytes),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write(bytes),
            Self::Unix(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_checked_where_they_enter() {
        let of = |text: &str| text.parse::<Address>().ok();
        assert_eq!(of("start"), Some(Address::Start));
        assert_eq!(of("unix:/run/redis.sock"), Some(Address::Unix("/run/redis.sock".into())));
        for good in ["127.0.0.1:6379", "[::1]:6379", "redis.example:1"] {
            assert_eq!(of(good), Some(Address::Tcp(good.to_owned())));
            assert_eq!(of(good).map(|address| address.to_string()).as_deref(), Some(good));
        }
        for bad in ["", "redis", ":6379", "host:", "host:0", "host:65536", "host:port", "unix:"] {
            assert_eq!(of(bad), None, "{bad}");
        }
    }
}
