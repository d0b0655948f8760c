//! What membership takes of the processor: the machines alone, over a network that delivers at once.

use std::{collections::VecDeque, mem, sync::Arc};

use ringkeep::{
    membership::{
        Beat, Body, Change, Config, Durable, Event, Member, Membership, Message, NodeId, Output,
        Peer, Time, View,
    },
    name::Name,
};

use super::Path;

const CLUSTER: u64 = 77;
const PORT_MIN: u16 = 7000;
const FORMED_AT: Time = Time(1);

/// A ring that has been there already. Its time stands still, so that nobody beats.
pub(crate) struct Ring {
    machines: Vec<Membership>,
    /// What was sent, and to which machine.
    wire: VecDeque<(usize, Event)>,
    outputs: Vec<Output>,
}

impl Ring {
    /// A ring of so many, each of which has said its first word.
    pub(crate) fn formed(count: usize) -> Self {
        let mut joined: Vec<Member> = (0..count as u16).map(member).collect();
        let first = View::first(CLUSTER, joined.remove(0));
        let view = Arc::new(first.next(&Change { joined, ..Change::default() }).unwrap());
        let resume = |me: &Member| {
            let durable = Durable { me: me.clone(), view: view.clone(), votes: Default::default() };
            Membership::resume(Config::default(), durable, FORMED_AT).unwrap()
        };
        let machines = view.ring.iter().map(resume).collect();
        let mut ring = Self { machines, wire: VecDeque::new(), outputs: Vec::new() };
        for machine in &mut ring.machines {
            machine.handle(FORMED_AT, Event::Tick, &mut ring.outputs);
        }
        ring.outputs.clear();
        ring
    }

    /// One round: a member asks to go, the first member proposes it, all vote, and all install the
    /// view in which that member is leaving.
    pub(crate) fn change_view(&mut self) {
        self.wire.push_back((self.machines.len() / 2, Event::Leave));
        while let Some((to, event)) = self.wire.pop_front() {
            self.machines[to].handle(FORMED_AT, event, &mut self.outputs);
            let from = Peer::from(self.machines[to].me());
            for output in self.outputs.drain(..) {
                if let Output::Send { to, message } = output {
                    let event = Event::Received { from: from.clone(), message };
                    self.wire.push_back((usize::from(to.address.port() - PORT_MIN), event));
                }
            }
        }
    }

    fn has_changed_once(&self) -> bool {
        self.machines.iter().all(|machine| machine.view().is_some_and(|view| view.number == 3))
    }
}

fn member(number: u16) -> Member {
    let name = Name::new(&format!("n{number:04}")).unwrap();
    let address = ([127, 0, 0, 1], PORT_MIN + number).into();
    let id = NodeId { name, incarnation: 1 };
    Member { id, address, witness: false, zone: None, mirrors: 1 }
}

/// One view change, each in a ring of its own.
impl Path for Ring {
    fn step(&mut self) {
        self.change_view();
    }

    fn settle(&mut self) {
        assert!(self.has_changed_once());
        *self = Self::formed(self.machines.len());
    }
}

/// One heartbeat interval of one member: it hears both neighbours and tells them that it lives.
pub(crate) struct Heartbeat {
    machine: Membership,
    neighbours: Vec<Peer>,
    now: Time,
    heard: Vec<Event>,
    outputs: Vec<Output>,
}

impl Heartbeat {
    /// In a ring of so many.
    pub(crate) fn new(count: usize) -> Self {
        let machine = Ring::formed(count).machines.swap_remove(count / 2);
        let view = machine.view().unwrap();
        let neighbours = view.neighbours(&machine.me().id).map(Peer::from).collect();
        let (heard, outputs) = (Vec::new(), Vec::new());
        let mut beat = Self { machine, neighbours, now: FORMED_AT, heard, outputs };
        beat.send();
        beat
    }

    fn send(&mut self) {
        self.now = self.now + Config::default().heartbeat_interval;
        let (to, view) = (self.machine.me().id.clone(), self.machine.view().unwrap().number);
        for from in self.neighbours.iter().cloned() {
            let body = Body::Heartbeat(Beat { counter: self.now.0, ..Beat::default() });
            let message = Message { cluster: CLUSTER, view, to: Some(to.clone()), body };
            self.heard.push(Event::Received { from, message });
        }
    }
}

impl Path for Heartbeat {
    fn step(&mut self) {
        for event in self.heard.drain(..) {
            self.machine.handle(self.now, event, &mut self.outputs);
        }
    }

    fn settle(&mut self) {
        let sent = mem::take(&mut self.outputs);
        assert!(sent.iter().all(|output| matches!(output, Output::Send { .. })), "{sent:?}");
        assert_eq!(sent.len(), self.neighbours.len(), "it tells its neighbours");
        self.send();
    }
}
