//! Several transports as one, so that each connection can use the best one that both ends have.
//!
//! Memory is made known to all of them; a connection belongs to one. The numbers of connections and
//! memories are this module's own and lead to those of the transports by a shift and by an index:
//! posting looks nothing up in a map.

use std::{io, net::SocketAddr, os::fd::BorrowedFd, sync::Arc};

use super::{
    Access, ConnId, ConnectError, Event, Kind, MemoryError, MemoryId, PostError, Purpose,
    RemoteKey, Terms, Transport, Work, WorkId,
};
use crate::region::mapping::Mapping;

/// Most transports in one [`Many`].
pub const TRANSPORTS_MAX: usize = 3;

/// A connection's transport stands above its number there.
const TRANSPORT_SHIFT: u32 = 56;

/// A memory's number: its slot below, how often the slot was used before above. So numbers are not
/// used again, and slots are.
const SLOT_BITS: u32 = 32;

#[derive(Debug, Default)]
struct Slot {
    uses: u32,
    live: bool,
    /// What each transport calls the memory; `None` once that one let it go.
    ids: [Option<MemoryId>; TRANSPORTS_MAX],
}

/// Transports in order of preference. The methods mean what those of [`Transport`] mean.
pub struct Many {
    transports: Vec<Box<dyn Transport>>,
    memories: Vec<Slot>,
    free: Vec<u32>,
}

impl std::fmt::Debug for Many {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kinds: Vec<_> = self.kinds().collect();
        f.debug_struct("Many").field("kinds", &kinds).finish_non_exhaustive()
    }
}

impl<T: Transport + 'static> From<T> for Many {
    fn from(only: T) -> Self {
        Self::new(vec![Box::new(only)])
    }
}

impl Many {
    /// The best comes first.
    ///
    /// # Panics
    /// With no transport, or with more than [`TRANSPORTS_MAX`].
    pub fn new(transports: Vec<Box<dyn Transport>>) -> Self {
        assert!((1..=TRANSPORTS_MAX).contains(&transports.len()), "one to three transports");
        Self { transports, memories: Vec::new(), free: Vec::new() }
    }

    /// What there is, the best first.
    pub fn kinds(&self) -> impl Iterator<Item = Kind> + '_ {
        self.transports.iter().map(|transport| transport.kind())
    }

    /// The transport of a connection that this made, also when it has ended.
    pub fn kind_of(&self, conn: ConnId) -> Option<Kind> {
        Some(self.transports.get(inner(conn).0)?.kind())
    }

    fn with_kind(&mut self, kind: Kind) -> Result<(usize, &mut dyn Transport), ConnectError> {
        let at = self.kinds().position(|it| it == kind).ok_or(ConnectError::NoTransport(kind))?;
        Ok((at, &mut *self.transports[at]))
    }

    fn slot(&self, memory: MemoryId) -> Option<usize> {
        let slot = memory.0 as u32 as usize;
        let at = self.memories.get(slot)?;
        (at.live && u64::from(at.uses) == memory.0 >> SLOT_BITS).then_some(slot)
    }

    fn memory(&self, transport: usize, memory: MemoryId) -> Option<MemoryId> {
        self.memories[self.slot(memory)?].ids[transport]
    }

    /// Makes memory known to every transport that takes it. One that does not (a limit of locked
    /// memory, a device that is gone) leaves the work to the others: what is posted there answers
    /// [`PostError::UnknownMemory`].
    ///
    /// # Errors
    /// The first transport's, when none takes it.
    pub fn register(
        &mut self,
        mapping: Arc<Mapping>,
        purpose: Purpose,
    ) -> Result<MemoryId, MemoryError> {
        let mut ids = [None; TRANSPORTS_MAX];
        let mut refused = None;
        for (transport, id) in self.transports.iter_mut().zip(&mut ids) {
            match transport.register(mapping.clone(), purpose) {
                Ok(registered) => *id = Some(registered),
                Err(error) => {
                    tracing::warn!(transport = %transport.kind(), %error, "no use for this memory");
                    refused.get_or_insert(error);
                }
            }
        }
        if ids.iter().all(Option::is_none)
            && let Some(error) = refused
        {
            return Err(error);
        }
        let slot = self.free.pop().unwrap_or_else(|| {
            self.memories.push(Slot::default());
            (self.memories.len() - 1) as u32
        });
        let at = &mut self.memories[slot as usize];
        (at.live, at.ids) = (true, ids);
        Ok(MemoryId(u64::from(at.uses) << SLOT_BITS | u64::from(slot)))
    }

    /// Lets memory go everywhere.
    ///
    /// # Errors
    /// The first transport's that could not, as [`MemoryError::Busy`]. Where it could, it is gone
    /// already and its keys are revoked, which the caller wanted in any case; where it could not,
    /// nothing changed, and calling again lets go what is left.
    pub fn deregister(&mut self, memory: MemoryId) -> Result<(), MemoryError> {
        let slot = self.slot(memory).ok_or(MemoryError::Unknown)?;
        let at = &mut self.memories[slot];
        let mut outcome = Ok(());
        for (transport, id) in self.transports.iter_mut().zip(&mut at.ids) {
            match id.map_or(Ok(()), |id| transport.deregister(id)) {
                Ok(()) | Err(MemoryError::Unknown) => *id = None,
                Err(error) => outcome = outcome.and(Err(error)),
            }
        }
        outcome?;
        (at.live, at.uses) = (false, at.uses.wrapping_add(1));
        self.free.push(slot as u32);
        Ok(())
    }

    /// Begins a connection over one transport.
    ///
    /// # Errors
    /// [`ConnectError::NoTransport`], or that transport's.
    pub fn offer(&mut self, kind: Kind) -> Result<(ConnId, Vec<u8>), ConnectError> {
        let (at, transport) = self.with_kind(kind)?;
        let (conn, offer) = transport.offer()?;
        Ok((outer(at, conn), offer))
    }

    /// Answers an offer that was made over this transport.
    ///
    /// # Errors
    /// [`ConnectError::NoTransport`], or that transport's.
    pub fn accept(&mut self, kind: Kind, offer: &[u8]) -> Result<(ConnId, Vec<u8>), ConnectError> {
        let (at, transport) = self.with_kind(kind)?;
        let (conn, answer) = transport.accept(offer)?;
        Ok((outer(at, conn), answer))
    }

    /// Finishes what [`Many::offer`] began.
    ///
    /// # Errors
    /// The transport's.
    pub fn finish(
        &mut self,
        conn: ConnId,
        answer: &[u8],
        peer: SocketAddr,
    ) -> Result<(), ConnectError> {
        let (at, conn) = inner(conn);
        let transport = self.transports.get_mut(at).ok_or(ConnectError::WrongState)?;
        transport.finish(conn, answer, peer)
    }

    /// Ends a connection.
    pub fn close(&mut self, conn: ConnId) {
        let (at, conn) = inner(conn);
        if let Some(transport) = self.transports.get_mut(at) {
            transport.close(conn);
        }
    }

    /// Lets the peer of `conn` reach `memory`.
    ///
    /// # Errors
    /// The transport's.
    pub fn grant(
        &mut self,
        conn: ConnId,
        memory: MemoryId,
        access: Access,
        terms: Terms,
    ) -> Result<RemoteKey, MemoryError> {
        let (at, conn) = inner(conn);
        if at >= self.transports.len() {
            return Err(MemoryError::NoConnection);
        }
        let memory = self.memory(at, memory).ok_or(MemoryError::Unknown)?;
        self.transports[at].grant(conn, memory, access, terms)
    }

    /// The fence. A key does not say whose it is, and to the others it is unknown.
    pub fn revoke(&mut self, key: RemoteKey) {
        for transport in &mut self.transports {
            transport.revoke(key);
        }
    }

    /// Posts a write.
    ///
    /// # Errors
    /// The transport's.
    pub fn post_write(&mut self, work: Work<'_>) -> Result<(), PostError> {
        let (at, work) = self.work(work)?;
        self.transports[at].post_write(work)
    }

    /// Posts a read.
    ///
    /// # Errors
    /// The transport's.
    pub fn post_read(&mut self, work: Work<'_>) -> Result<(), PostError> {
        let (at, work) = self.work(work)?;
        self.transports[at].post_read(work)
    }

    fn work<'a>(&self, work: Work<'a>) -> Result<(usize, Work<'a>), PostError> {
        let (at, conn) = inner(work.conn);
        if at >= self.transports.len() {
            return Err(PostError::NotConnected);
        }
        let memory = self.memory(at, work.memory).ok_or(PostError::UnknownMemory)?;
        Ok((at, Work { conn, memory, ..work }))
    }

    /// How far an outstanding request is, as far as its transport knows.
    pub fn taken_bytes(&self, conn: ConnId, work: WorkId) -> u64 {
        let (at, conn) = inner(conn);
        self.transports.get(at).map_or(0, |transport| transport.taken_bytes(conn, work))
    }

    /// Moves everything that can move, in every transport.
    pub fn poll(&mut self, events: &mut Vec<Event>) -> bool {
        let mut moved = false;
        for (at, transport) in self.transports.iter_mut().enumerate() {
            let known = events.len();
            moved |= transport.poll(events);
            for event in &mut events[known..] {
                let (Event::Completed { conn, .. } | Event::Closed { conn }) = event;
                *conn = outer(at, *conn);
            }
        }
        moved
    }

    /// What to sleep on: each transport's own descriptor. The sleeper watches them all, which needs
    /// no system call while the thread is awake.
    pub fn event_fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.transports.iter().filter_map(|transport| transport.event_fd())
    }

    /// To be called before sleeping: arms every transport. False when one of them has something to
    /// do already, also when another cannot be armed.
    ///
    /// # Errors
    /// A transport's that could not be armed.
    pub fn arm(&mut self) -> io::Result<bool> {
        let (mut quiet, mut outcome) = (true, Ok(()));
        for transport in &mut self.transports {
            match transport.arm() {
                Ok(armed) => quiet &= armed,
                Err(error) => outcome = outcome.and(Err(error)),
            }
        }
        if quiet { outcome.map(|()| true) } else { Ok(false) }
    }
}

fn outer(transport: usize, conn: ConnId) -> ConnId {
    debug_assert!(conn.0 >> TRANSPORT_SHIFT == 0, "a connection's number is too large");
    ConnId((transport as u64) << TRANSPORT_SHIFT | conn.0)
}

fn inner(conn: ConnId) -> (usize, ConnId) {
    ((conn.0 >> TRANSPORT_SHIFT) as usize, ConnId(conn.0 & ((1 << TRANSPORT_SHIFT) - 1)))
}

#[cfg(test)]
mod tests;
