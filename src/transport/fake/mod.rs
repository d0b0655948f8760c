//! An in-memory network with a seed, for tests: the same calls with the same seed do the same.
//!
//! Time is ticks, and only [`FakeNet::advance`] moves it. Placement needs no poll of the responder,
//! as with a real NIC. Above the promises of the [`Transport`] trait it does what a real network may
//! do and rarely does: requests and acknowledgements are held back, words of one request are placed
//! out of order and are seen half placed, a direction is cut and some of what was on its way still
//! arrives, a crashed node's last writes land after everybody believed it dead.

mod flight;
mod net;
mod weather;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, io,
    net::SocketAddr,
    os::fd::BorrowedFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

pub use self::weather::{Counts, Weather};
use self::{
    flight::Flight,
    net::{Node, Side, State, Wire},
    weather::Dice,
};
use super::{
    Access, ConnId, ConnectError, Event, Kind, MemoryError, MemoryId, PostError, Purpose,
    RemoteKey, Terms, Transport, WORK_OUTSTANDING_MAX, Work, keys::Keys,
};
use crate::region::mapping::Mapping;

const OFFER_MAGIC: &[u8; 8] = b"fake-ofr";
const ANSWER_MAGIC: &[u8; 8] = b"fake-ans";

/// The network that some [`FakeTransport`]s share. A clone is the same network.
#[derive(Clone)]
pub struct FakeNet(Arc<Mutex<State>>);

impl fmt::Debug for FakeNet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FakeNet").finish_non_exhaustive()
    }
}

impl FakeNet {
    /// A network in fair weather.
    pub fn new(seed: u64) -> Self {
        Self::with_weather(seed, Weather::default())
    }

    /// A network without nodes.
    pub fn with_weather(seed: u64, weather: Weather) -> Self {
        Self(Arc::new(Mutex::new(State {
            now: 0,
            dice: Dice::new(seed),
            weather,
            counts: Counts::default(),
            nodes: Vec::new(),
            wires: BTreeMap::new(),
            wires_made: 0,
            cut: BTreeSet::new(),
        })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A test that panicked elsewhere has failed already.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A node joins. A crashed node's name may be used again: that is its next life.
    pub fn endpoint(&self, name: &str) -> FakeTransport {
        let mut state = self.state();
        state.nodes.push(Node {
            name: name.to_owned(),
            alive: true,
            keys: Keys::default(),
            events: Vec::new(),
            conns: BTreeMap::new(),
            conns_made: 0,
        });
        FakeTransport { net: self.clone(), node: state.nodes.len() - 1 }
    }

    /// Lets time pass.
    pub fn advance(&self, ticks: u64) {
        let mut state = self.state();
        for _ in 0..ticks {
            state.tick();
        }
    }

    /// Changes how the network behaves from now on.
    pub fn set_weather(&self, weather: Weather) {
        self.state().weather = weather;
    }

    /// Nothing arrives at `to` from `from` any more, but for what the network already holds.
    pub fn cut(&self, from: &str, to: &str) {
        let mut state = self.state();
        if state.cut.insert((from.to_owned(), to.to_owned())) {
            state.counts.cuts += 1;
        }
    }

    /// Cuts both directions.
    pub fn cut_both(&self, one: &str, other: &str) {
        self.cut(one, other);
        self.cut(other, one);
    }

    /// Mends all cuts. Connections that were given up stay so.
    pub fn heal(&self) {
        self.state().cut.clear();
    }

    /// A node dies at once. What it had posted may still arrive where its keys are not revoked;
    /// its own memory is reached by nobody any more, and its transport does nothing.
    pub fn crash(&self, name: &str) {
        let mut guard = self.state();
        let state = &mut *guard;
        let Some(node) = state.nodes.iter().rposition(|node| node.alive && node.name == name)
        else {
            return;
        };
        state.nodes[node].alive = false;
        state.counts.crashes += 1;
        for wire in state.wires.values_mut().filter(|wire| wire.near.node == node) {
            let left = wire.flights.iter().map(Flight::left).sum();
            wire.leak.get_or_insert_with(|| state.dice.part_of(left));
            for flight in &mut wire.flights {
                flight.take_local();
                flight.arrives_at += state.dice.up_to(state.weather.late_ticks_max);
            }
        }
    }

    /// What was injected so far.
    pub fn counts(&self) -> Counts {
        self.state().counts
    }
}

/// One node's end of a [`FakeNet`].
#[derive(Debug)]
pub struct FakeTransport {
    net: FakeNet,
    node: usize,
}

impl FakeTransport {
    fn post(&mut self, work: &Work<'_>, access: Access) -> Result<(), PostError> {
        let mut guard = self.net.state();
        let state = &mut *guard;
        let arrives_at = state.delay();
        let node = &mut state.nodes[self.node];
        let wire = node.conns.get(&work.conn).and_then(|id| state.wires.get_mut(id));
        let Some(wire) = wire.filter(|wire| {
            node.alive
                && wire.finished
                && (wire.near.node, wire.near.conn) == (self.node, work.conn)
        }) else {
            return Err(PostError::NotConnected);
        };
        if wire.flights.len() == WORK_OUTSTANDING_MAX {
            return Err(PostError::QueueFull);
        }
        let local = node.keys.post(work.memory, work.segments)?;
        let (key, stamp) = (work.key.key, work.stamp);
        let mut flight =
            Flight::new(work.id, work.memory, local, access, key, stamp, work.segments, arrives_at);
        // Bytes are taken at any time until the completion: now or as late as can be.
        if state.dice.coin() {
            flight.take_local();
        }
        wire.flights.push_back(flight);
        Ok(())
    }
}

fn blob(magic: &[u8; 8], wire: u64) -> Vec<u8> {
    [*magic, wire.to_le_bytes()].concat()
}

fn wire_of(magic: &[u8; 8], blob: &[u8]) -> Option<u64> {
    let number = blob.strip_prefix(magic)?;
    Some(u64::from_le_bytes(number.try_into().ok()?))
}

fn new_side(state: &mut State, node: usize, wire: u64) -> Side {
    let it = &mut state.nodes[node];
    it.conns_made += 1;
    let conn = ConnId(it.conns_made);
    it.conns.insert(conn, wire);
    Side { node, conn, open: true, learns_at: None }
}

impl Transport for FakeTransport {
    fn kind(&self) -> Kind {
        Kind::Fake
    }

    fn register(
        &mut self,
        mapping: Arc<Mapping>,
        purpose: Purpose,
    ) -> Result<MemoryId, MemoryError> {
        Ok(self.net.state().nodes[self.node].keys.register(mapping, purpose))
    }

    fn deregister(&mut self, memory: MemoryId) -> Result<(), MemoryError> {
        // Placement asks for the key again in each turn, so revoking is all there is to do.
        self.net.state().nodes[self.node].keys.deregister(memory).map(drop)
    }

    fn offer(&mut self) -> Result<(ConnId, Vec<u8>), ConnectError> {
        let mut state = self.net.state();
        state.wires_made += 1;
        let id = state.wires_made;
        let near = new_side(&mut state, self.node, id);
        state.wires.insert(id, Wire::new(near));
        Ok((near.conn, blob(OFFER_MAGIC, id)))
    }

    fn accept(&mut self, offer: &[u8]) -> Result<(ConnId, Vec<u8>), ConnectError> {
        let mut state = self.net.state();
        let id = wire_of(OFFER_MAGIC, offer).ok_or(ConnectError::Malformed)?;
        if state.wires.get(&id).is_none_or(|wire| wire.far.is_some()) {
            return Err(ConnectError::Malformed);
        }
        let far = new_side(&mut state, self.node, id);
        if let Some(wire) = state.wires.get_mut(&id) {
            wire.far = Some(far);
        }
        Ok((far.conn, blob(ANSWER_MAGIC, id)))
    }

    fn finish(&mut self, conn: ConnId, answer: &[u8], _: SocketAddr) -> Result<(), ConnectError> {
        let mut guard = self.net.state();
        let state = &mut *guard;
        let id = state.nodes[self.node].conns.get(&conn).copied();
        let wire = id.and_then(|id| state.wires.get_mut(&id));
        let Some(wire) = wire
            .filter(|wire| !wire.finished && (wire.near.node, wire.near.conn) == (self.node, conn))
        else {
            return Err(ConnectError::WrongState);
        };
        if wire_of(ANSWER_MAGIC, answer) != id || wire.far.is_none() {
            drop(guard);
            self.close(conn);
            return Err(ConnectError::Malformed);
        }
        wire.finished = true;
        Ok(())
    }

    fn close(&mut self, conn: ConnId) {
        let mut state = self.net.state();
        let Some(id) = state.nodes[self.node].conns.get(&conn).copied() else { return };
        let Some(mut wire) = state.wires.remove(&id) else { return };
        if (wire.near.node, wire.near.conn) == (self.node, conn) {
            state.end_near(&mut wire, false);
        } else {
            state.end_far(&mut wire, false);
        }
        state.wires.insert(id, wire);
    }

    fn grant(
        &mut self,
        conn: ConnId,
        memory: MemoryId,
        access: Access,
        terms: Terms,
    ) -> Result<RemoteKey, MemoryError> {
        let mut state = self.net.state();
        let id = state.nodes[self.node].conns.get(&conn);
        let far = id.and_then(|id| state.wires.get(id)).and_then(|wire| wire.far);
        if far.is_none_or(|far| (far.node, far.conn) != (self.node, conn)) {
            return Err(MemoryError::NoConnection);
        }
        let mut key = state.dice.word();
        while state.nodes[self.node].keys.is_taken(key) {
            key = state.dice.word();
        }
        let len = state.nodes[self.node].keys.grant(key, conn, memory, access, terms)?;
        Ok(RemoteKey { key, base: 0, len })
    }

    fn revoke(&mut self, key: RemoteKey) {
        self.net.state().nodes[self.node].keys.revoke(key.key);
    }

    fn post_write(&mut self, work: Work<'_>) -> Result<(), PostError> {
        self.post(&work, Access::Write)
    }

    fn post_read(&mut self, work: Work<'_>) -> Result<(), PostError> {
        self.post(&work, Access::Read)
    }

    fn poll(&mut self, events: &mut Vec<Event>) -> bool {
        let mut state = self.net.state();
        let node = &mut state.nodes[self.node];
        if !node.alive {
            node.events.clear();
        }
        let moved = !node.events.is_empty();
        events.append(&mut node.events);
        moved
    }

    fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        // Time stands still until the test moves it: there is nothing to sleep on.
        None
    }

    fn arm(&mut self) -> io::Result<bool> {
        Ok(self.net.state().nodes[self.node].events.is_empty())
    }
}
