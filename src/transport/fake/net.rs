//! The network's state and what one tick does to it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::{
    flight::Flight,
    weather::{Counts, Dice, Weather},
};
use crate::transport::{
    Access, ConnId, Event, WorkError,
    keys::{Asked, Keys},
};

pub(super) struct Node {
    pub(super) name: String,
    pub(super) alive: bool,
    pub(super) keys: Keys,
    pub(super) events: Vec<Event>,
    pub(super) conns: BTreeMap<ConnId, u64>,
    pub(super) conns_made: u64,
}

/// One end of a wire, as its node knows it.
#[derive(Clone, Copy)]
pub(super) struct Side {
    pub(super) node: usize,
    pub(super) conn: ConnId,
    pub(super) open: bool,
    /// When it learns that the other end closed.
    pub(super) learns_at: Option<u64>,
}

/// A connection.
pub(super) struct Wire {
    pub(super) near: Side,
    pub(super) far: Option<Side>,
    pub(super) finished: bool,
    /// Outstanding requests, in order; once `near` is not open, those that may still arrive.
    pub(super) flights: VecDeque<Flight>,
    /// The responder refused a request: nothing behind it has any effect.
    refused: bool,
    broken_since: Option<u64>,
    /// How many bytes still come through although the path is broken or the sender gone: they were
    /// in the network already.
    pub(super) leak: Option<u64>,
}

impl Wire {
    pub(super) fn new(near: Side) -> Self {
        Self {
            near,
            far: None,
            finished: false,
            flights: VecDeque::new(),
            refused: false,
            broken_since: None,
            leak: None,
        }
    }
}

pub(super) struct State {
    pub(super) now: u64,
    pub(super) dice: Dice,
    pub(super) weather: Weather,
    pub(super) counts: Counts,
    pub(super) nodes: Vec<Node>,
    pub(super) wires: BTreeMap<u64, Wire>,
    pub(super) wires_made: u64,
    /// Directions that carry nothing, by the names of the nodes.
    pub(super) cut: BTreeSet<(String, String)>,
}

impl State {
    pub(super) fn tick(&mut self) {
        self.now += 1;
        let ids: Vec<u64> = self.wires.keys().copied().collect();
        for id in ids {
            // Taken out while it moves, so that it and the nodes can be changed side by side.
            let Some(mut wire) = self.wires.remove(&id) else { continue };
            self.move_wire(&mut wire);
            let dead_end = |side: Side| !side.open || !self.nodes[side.node].alive;
            if dead_end(wire.near) && wire.far.is_none_or(dead_end) {
                self.account_lost(&wire);
            } else {
                self.wires.insert(id, wire);
            }
        }
    }

    pub(super) fn delay(&mut self) -> u64 {
        let delay = self.dice.up_to(self.weather.delay_ticks_max);
        self.counts.delayed += u64::from(delay > 0);
        self.now + 1 + delay
    }

    fn carries(&self, from: usize, to: usize) -> bool {
        let (from, to) = (&self.nodes[from], &self.nodes[to]);
        from.alive && to.alive && !self.cut.contains(&(from.name.clone(), to.name.clone()))
    }

    fn move_wire(&mut self, wire: &mut Wire) {
        let Some(far) = wire.far else { return };
        let near = wire.near;
        let forth = self.carries(near.node, far.node);
        let back = self.carries(far.node, near.node);
        if !forth {
            self.leak_if_new(wire);
        } else if near.open {
            wire.leak = None;
        }
        if far.open && self.nodes[far.node].alive {
            self.place(wire, far);
        }
        if near.open && self.nodes[near.node].alive && back {
            self.acknowledge(wire);
        }
        self.tell_of_closes(wire, forth, back);
        self.give_up_if_broken(wire, forth && back);
    }

    /// From here on only what the network already holds arrives.
    pub(super) fn leak_if_new(&mut self, wire: &mut Wire) {
        if wire.leak.is_none() {
            let left = wire.flights.iter().map(Flight::left).sum();
            wire.leak = Some(self.dice.part_of(left));
        }
    }

    /// The responder's side: what arrives takes effect, in order.
    fn place(&mut self, wire: &mut Wire, far: Side) {
        for flight in wire.flights.iter_mut().filter(|flight| flight.outcome.is_none()) {
            if wire.refused || flight.arrives_at > self.now || wire.leak == Some(0) {
                return;
            }
            let keys = &self.nodes[far.node].keys;
            let asked = Asked {
                conn: far.conn,
                key: flight.key,
                access: flight.access,
                stamp: &flight.stamp,
                segments: flight.segments.iter().map(|segment| (segment.remote, segment.len)),
            };
            // Asked again in each turn: a key may go while its request is half placed.
            let result = match keys.admit(asked).cloned() {
                Err(why) => {
                    self.counts.refused += 1;
                    wire.refused = true;
                    Err(why)
                }
                Ok(mapping) if flight.access == Access::Read => {
                    flight.take_remote(&mapping);
                    Ok(())
                }
                Ok(mapping) => {
                    let left = flight.left();
                    let torn = self.weather.torn;
                    let mut quota = if torn { 1 + self.dice.up_to(left / 2 + 7) } else { left };
                    if let Some(leak) = wire.leak {
                        quota = quota.min(leak);
                        self.counts.late += 1;
                    }
                    let (placed, all) = flight.place(&mapping, quota, torn, &mut self.dice);
                    wire.leak = wire.leak.map(|leak| leak.saturating_sub(placed));
                    if !all {
                        self.counts.torn_turns += 1;
                        return;
                    }
                    Ok(())
                }
            };
            let delay = self.dice.up_to(self.weather.delay_ticks_max);
            self.counts.delayed += u64::from(delay > 0);
            flight.outcome = Some((result, self.now + 1 + delay));
        }
    }

    /// The initiator's side: what was done or refused completes, in order.
    fn acknowledge(&mut self, wire: &mut Wire) {
        while let Some(Flight { outcome: Some((result, known_at)), .. }) = wire.flights.front() {
            if *known_at > self.now {
                return;
            }
            let result = *result;
            let Some(flight) = wire.flights.pop_front() else { return };
            if result.is_ok() {
                flight.bring_home();
            }
            self.complete(wire.near, &flight, result);
            if result.is_err() {
                self.end_near(wire, true);
                wire.flights.clear();
                return;
            }
        }
    }

    fn complete(&mut self, near: Side, flight: &Flight, result: Result<(), WorkError>) {
        let node = &mut self.nodes[near.node];
        node.keys.done(flight.memory);
        node.events.push(Event::Completed { conn: near.conn, work: flight.work, result });
    }

    /// The initiator's end is over for its node: all is flushed. The requests stay on the wire.
    pub(super) fn end_near(&mut self, wire: &mut Wire, tell: bool) {
        self.leak_if_new(wire);
        for at in 0..wire.flights.len() {
            wire.flights[at].take_local();
            self.complete(wire.near, &wire.flights[at], Err(WorkError::Flushed));
            let late = self.dice.up_to(self.weather.late_ticks_max);
            wire.flights[at].arrives_at += late;
        }
        wire.near.open = false;
        let node = &mut self.nodes[wire.near.node];
        node.conns.remove(&wire.near.conn);
        if tell {
            node.events.push(Event::Closed { conn: wire.near.conn });
        }
        let after = self.delay() + self.dice.up_to(self.weather.late_ticks_max);
        if let Some(far) = &mut wire.far {
            far.learns_at = Some(after);
        }
    }

    /// The responder's end is over for its node: its keys are gone.
    pub(super) fn end_far(&mut self, wire: &mut Wire, tell: bool) {
        let after = self.delay();
        let Some(far) = &mut wire.far else { return };
        far.open = false;
        let node = &mut self.nodes[far.node];
        node.conns.remove(&far.conn);
        node.keys.forget(far.conn);
        if tell {
            node.events.push(Event::Closed { conn: far.conn });
        }
        wire.near.learns_at = Some(after);
    }

    fn tell_of_closes(&mut self, wire: &mut Wire, forth: bool, back: bool) {
        let due = |side: Side, now| side.open && side.learns_at.is_some_and(|at| at <= now);
        if forth && wire.far.is_some_and(|far| due(far, self.now)) {
            self.end_far(wire, true);
        }
        if back && wire.finished && due(wire.near, self.now) {
            self.end_near(wire, true);
        }
    }

    fn give_up_if_broken(&mut self, wire: &mut Wire, whole: bool) {
        if whole {
            wire.broken_since = None;
            return;
        }
        let since = *wire.broken_since.get_or_insert(self.now);
        if self.now - since < self.weather.retry_ticks {
            return;
        }
        if wire.near.open && self.nodes[wire.near.node].alive {
            self.end_near(wire, true);
        }
        if wire.far.is_some_and(|far| far.open && self.nodes[far.node].alive) {
            self.end_far(wire, true);
        }
    }

    fn account_lost(&mut self, wire: &Wire) {
        for flight in &wire.flights {
            match flight.outcome {
                Some((Ok(()), _)) => self.counts.unacknowledged += 1,
                Some((Err(_), _)) => {}
                None if flight.is_half_placed() => self.counts.torn_for_good += 1,
                None => self.counts.lost += 1,
            }
        }
    }
}
