//! What an RDMA device can do: a write from its post to its completion, and a stream of them. Both
//! ends are in this process, on one device; the bytes go through it all the same.

use std::{
    fs::File,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use rustix::fs::{MemfdFlags, memfd_create};

use super::{BenchError, turns::Contender};
use crate::{
    region::mapping::Mapping,
    transport::{
        Access, ConnId, Event, MemoryId, Purpose, RemoteKey, Segment, Stamp, Terms, Transport,
        Work, WorkId, verbs::VerbsTransport,
    },
};

/// A new connection may take its time; a device that is silent for longer is given up.
const LIMIT: Duration = Duration::from_secs(10);
const TERMS: Terms = Terms { epoch: 1, view_min: 1 };
const STAMP: Stamp = Stamp { epoch: 1, view: 1 };

/// Two ends of a connection, and memory to write from and into.
pub struct Writes {
    near: VerbsTransport,
    far: VerbsTransport,
    conn: ConnId,
    memory: MemoryId,
    there: ConnId,
    mirror: MemoryId,
    key: RemoteKey,
    len: u64,
    window: usize,
    under_way: usize,
    connected: bool,
    events: Vec<Event>,
}

impl Writes {
    /// Writes of `len` bytes, `window` of them under way at a time, on the device that a server
    /// would use.
    ///
    /// # Errors
    /// There is no device, or it refuses.
    pub fn open(len: usize, window: usize) -> io::Result<Self> {
        let open = || VerbsTransport::open(None, IpAddr::V4(Ipv4Addr::LOCALHOST));
        let mut near = open().map_err(io::Error::other)?;
        let mut far = open().map_err(io::Error::other)?;
        let memory = near.register(mapping(len)?, Purpose::Post).map_err(io::Error::other)?;
        let mirror = far.register(mapping(len)?, Purpose::Grant).map_err(io::Error::other)?;
        let (conn, offer) = near.offer().map_err(io::Error::other)?;
        let (there, answer) = far.accept(&offer).map_err(io::Error::other)?;
        // Unused: the device's own address travelled with the answer.
        let peer = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
        near.finish(conn, &answer, peer).map_err(io::Error::other)?;
        let key = far.grant(there, mirror, Access::Write, TERMS).map_err(io::Error::other)?;
        Ok(Self {
            near,
            far,
            conn,
            memory,
            there,
            mirror,
            key,
            len: len as u64,
            window,
            under_way: 0,
            connected: false,
            events: Vec::new(),
        })
    }

    /// The device's name.
    pub fn device(&self) -> &str {
        self.near.device()
    }

    /// How long it takes until a key is good for nothing any more.
    ///
    /// # Errors
    /// The device granted none.
    pub fn fence(&mut self) -> io::Result<Duration> {
        let granted = self.far.grant(self.there, self.mirror, Access::Write, TERMS);
        let key = granted.map_err(io::Error::other)?;
        let began = Instant::now();
        self.far.revoke(key);
        Ok(began.elapsed())
    }

    fn post(&mut self) -> io::Result<()> {
        let segments = [Segment { local: 0, remote: 0, len: self.len }];
        let Self { conn, memory, key, .. } = *self;
        let work = Work { id: WorkId(1), conn, memory, key, stamp: STAMP, segments: &segments };
        self.near.post_write(work).map_err(io::Error::other)?;
        self.under_way += 1;
        Ok(())
    }

    /// Looks for one completion without ever sleeping, as perftest does.
    fn complete(&mut self) -> io::Result<()> {
        let began = Instant::now();
        while self.events.is_empty() {
            self.near.poll(&mut self.events);
            if !self.connected {
                self.far.poll(&mut Vec::new());
                if began.elapsed() > LIMIT {
                    return Err(io::ErrorKind::TimedOut.into());
                }
            }
        }
        self.connected = true;
        self.under_way -= 1;
        match self.events.remove(0) {
            Event::Completed { result: Ok(()), .. } => Ok(()),
            Event::Completed { result: Err(error), .. } => Err(io::Error::other(error)),
            Event::Closed { .. } => Err(io::ErrorKind::ConnectionReset.into()),
        }
    }
}

/// A step is from a post to its completion; with more than one under way, from one completion to the
/// next.
impl Contender for Writes {
    fn step(&mut self) -> Result<Duration, BenchError> {
        let began = Instant::now();
        while self.under_way < self.window {
            self.post()?;
        }
        self.complete()?;
        Ok(began.elapsed())
    }

    fn settle(&mut self) -> Result<(), BenchError> {
        while self.under_way > 0 {
            self.complete()?;
        }
        Ok(())
    }
}

fn mapping(len: usize) -> io::Result<Arc<Mapping>> {
    let file = File::from(memfd_create("bench", MemfdFlags::CLOEXEC)?);
    let len = len.next_multiple_of(rustix::param::page_size());
    file.set_len(len as u64)?;
    let mapping = Mapping::new(&file, len)?;
    // Pages that are there already: a device needs them at once.
    for at in (0..len as u64).step_by(rustix::param::page_size()) {
        mapping.write_at(at, &[1]).map_err(io::Error::other)?;
    }
    Ok(Arc::new(mapping))
}
