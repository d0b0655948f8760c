//! A network of membership machines in simulated time: links lose, double, delay and reorder
//! messages by a seed; nodes crash, forget and come back. After every step it checks what must
//! always hold.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use ringkeep::{
    membership::{
        Body, Change, Config, Durable, Event, JoinRefusal, Member, Membership, Message, NodeId,
        Output, Peer, ResumeError, Time, View, quorum::majority,
    },
    name::Name,
};

#[path = "../dice/mod.rs"]
mod dice;

pub(crate) use dice::Rng;

pub(crate) const CLUSTER: u64 = 77;

/// What the links do, in percent and microseconds.
#[derive(Clone, Copy)]
pub(crate) struct Faults {
    pub(crate) loss: u64,
    pub(crate) double: u64,
    pub(crate) delay_min: u64,
    pub(crate) delay_max: u64,
    /// Chance per 10,000 stored states that the node dies right after storing.
    pub(crate) crash_after_persist: u64,
}

pub(crate) const QUIET: Faults =
    Faults { loss: 0, double: 0, delay_min: 100, delay_max: 100, crash_after_persist: 0 };

struct Packet {
    to: SocketAddr,
    from: Peer,
    message: Message,
}

#[derive(Default)]
pub(crate) struct Node {
    pub(crate) up: bool,
    pub(crate) witness: bool,
    pub(crate) address: Option<SocketAddr>,
    /// The current life last; before it evicted ones that still vote.
    pub(crate) lives: Vec<Membership>,
    stored: BTreeMap<NodeId, Durable>,
    incarnation: u64,
    pub(crate) evictions: usize,
    pub(crate) refusals: Vec<JoinRefusal>,
    pub(crate) left: bool,
    /// What it has is nobody's concern: if it leaves, it hands over at once.
    pub(crate) has_nothing: bool,
    /// It does not get to run before; what is sent to it waits.
    asleep_until: Time,
}

impl Node {
    pub(crate) fn current(&self) -> &Membership {
        self.lives.last().expect("a node that runs")
    }
}

pub(crate) struct Net {
    pub(crate) now: Time,
    pub(crate) rng: Rng,
    pub(crate) faults: Faults,
    pub(crate) nodes: BTreeMap<String, Node>,
    /// Pairs of names that cannot talk.
    pub(crate) cut: BTreeSet<(String, String)>,
    pub(crate) agreed: BTreeMap<u64, Arc<View>>,
    /// Sent messages by kind: from whom, and to whom.
    pub(crate) sent: BTreeMap<&'static str, Vec<(NodeId, NodeId)>>,
    /// Whether the messages' lengths on the wire are counted, and their sums by kind.
    pub(crate) weigh: bool,
    pub(crate) bytes: BTreeMap<&'static str, usize>,
    config: Config,
    packets: BTreeMap<(Time, u64), Packet>,
    sequence: u64,
    forgotten: BTreeSet<NodeId>,
    votes: BTreeMap<(NodeId, u64), Durable>,
}

impl Net {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            now: Time(1),
            rng: Rng(seed),
            faults: QUIET,
            nodes: BTreeMap::new(),
            cut: BTreeSet::new(),
            agreed: BTreeMap::new(),
            sent: BTreeMap::new(),
            weigh: false,
            bytes: BTreeMap::new(),
            config: Config::default(),
            packets: BTreeMap::new(),
            sequence: 0,
            forgotten: BTreeSet::new(),
            votes: BTreeMap::new(),
        }
    }

    /// A ring of the names, formed one by one on a quiet network.
    pub(crate) fn ring(seed: u64, names: &[&str]) -> Self {
        Self::ring_with(Config::default(), seed, names)
    }

    pub(crate) fn ring_with(config: Config, seed: u64, names: &[&str]) -> Self {
        let mut net = Self { config, ..Self::new(seed) };
        net.found(names[0]);
        for name in &names[1..] {
            net.join(name);
            net.run_ms(50);
        }
        net.run_ms(300);
        assert_eq!(net.ring_of(names[0]), names);
        net
    }

    /// A ring of so many that has been there already: n0000, n0001, …
    pub(crate) fn formed(config: Config, seed: u64, count: usize) -> Self {
        let mut net = Self { config, ..Self::new(seed) };
        let names: Vec<String> = (0..count).map(|number| format!("n{number:04}")).collect();
        let mut joined: Vec<Member> = names.iter().map(|name| net.new_life(name)).collect();
        let first = View::first(CLUSTER, joined.remove(0));
        let view = first.next(&Change { joined, ..Change::default() }).unwrap();
        let view = Arc::new(view);
        for (name, me) in names.iter().zip(&view.ring) {
            let (me, votes) = (me.clone(), Default::default());
            let durable = Durable { me, view: view.clone(), votes };
            let machine = Membership::resume(net.config, durable, net.now).unwrap();
            net.start(name, machine);
        }
        net
    }

    fn node(&mut self, name: &str) -> &mut Node {
        let port = 7000 + u16::try_from(self.nodes.len()).unwrap();
        self.nodes.entry(name.into()).or_insert_with(|| Node {
            address: Some(([127, 0, 0, 1], port).into()),
            ..Node::default()
        })
    }

    fn new_life(&mut self, name: &str) -> Member {
        let node = self.node(name);
        node.incarnation += 1;
        let id = NodeId { name: Name::new(name).unwrap(), incarnation: node.incarnation };
        Member { id, address: node.address.unwrap(), witness: node.witness, zone: None, mirrors: 1 }
    }

    pub(crate) fn found(&mut self, name: &str) {
        let me = self.new_life(name);
        let machine = Membership::found(self.config, me, CLUSTER, self.now);
        self.start(name, machine);
    }

    pub(crate) fn join(&mut self, name: &str) {
        let me = self.new_life(name);
        let others = self.nodes.iter().filter(|(other, _)| *other != name);
        let contacts = others.filter_map(|(_, node)| node.address).collect();
        let machine = Membership::join(self.config, me, contacts, self.now);
        self.start(name, machine);
    }

    pub(crate) fn join_witness(&mut self, name: &str) {
        self.node(name).witness = true;
        self.join(name);
    }

    /// A node at another address that calls itself `name`, run as `host`.
    pub(crate) fn join_as(&mut self, host: &str, name: &str) {
        let address = self.node(host).address.unwrap();
        let contacts = self.nodes.values().filter_map(|node| node.address).collect();
        let me = Member { address, ..self.new_life(name) };
        let machine = Membership::join(self.config, me, contacts, self.now);
        self.start(host, machine);
    }

    fn start(&mut self, name: &str, machine: Membership) {
        let node = self.node(name);
        node.up = true;
        node.lives.push(machine);
    }

    /// The process dies; what it stored stays.
    pub(crate) fn kill(&mut self, name: &str) {
        let node = self.node(name);
        node.up = false;
        node.lives.clear();
    }

    /// The process comes back with what it stored, through its serialized form.
    pub(crate) fn resume(&mut self, name: &str) {
        let (config, now) = (self.config, self.now);
        let stored: Vec<Durable> = self.node(name).stored.values().cloned().collect();
        for durable in stored {
            let text = serde_json::to_string(&durable).unwrap();
            let durable: Durable = serde_json::from_str(&text).unwrap();
            match Membership::resume(config, durable, now) {
                Ok(machine) => self.start(name, machine),
                Err(error) => assert!(matches!(error, ResumeError::NoPart { .. }), "{error}"),
            }
        }
        if !self.node(name).up {
            self.join(name);
        }
    }

    /// The node dies with its memory and comes back as a new incarnation.
    pub(crate) fn reboot(&mut self, name: &str) {
        self.kill(name);
        let stored = std::mem::take(&mut self.node(name).stored);
        self.forgotten.extend(stored.into_keys());
        self.join(name);
    }

    /// A node that nobody counts on leaves.
    pub(crate) fn leave(&mut self, name: &str) {
        self.node(name).has_nothing = true;
        self.event(name, Event::Leave);
    }

    /// Cuts the network between two groups; nothing crosses until [`Net::heal`].
    pub(crate) fn partition(&mut self, left: &[&str], right: &[&str]) {
        for (a, b) in left.iter().flat_map(|a| right.iter().map(move |b| (*a, *b))) {
            self.cut.insert((a.into(), b.into()));
            self.cut.insert((b.into(), a.into()));
        }
    }

    /// The node is short of processor time.
    pub(crate) fn sleep(&mut self, name: &str, ms: u64) {
        self.node(name).asleep_until = self.now + Duration::from_millis(ms);
    }

    pub(crate) fn heal(&mut self) {
        self.cut.clear();
    }

    pub(crate) fn event(&mut self, name: &str, event: Event) {
        let life = self.nodes[name].lives.len() - 1;
        self.handle(name, life, event);
    }

    pub(crate) fn run_ms(&mut self, ms: u64) {
        let end = self.now + Duration::from_millis(ms);
        while self.step(end) {}
        self.now = end;
    }

    /// Runs until `done`, at most `ms`. Whether it was reached.
    pub(crate) fn run_until(&mut self, ms: u64, done: impl Fn(&Net) -> bool) -> bool {
        let end = self.now + Duration::from_millis(ms);
        while !done(self) {
            if !self.step(end) {
                return false;
            }
        }
        true
    }

    /// The ring as `name` sees it.
    pub(crate) fn ring_of(&self, name: &str) -> Vec<String> {
        let view = self.nodes[name].current().view().expect("an installed view");
        view.ring.iter().map(|m| m.id.name.to_string()).collect()
    }

    pub(crate) fn view_of(&self, name: &str) -> Arc<View> {
        self.nodes[name].current().view().expect("an installed view").clone()
    }

    /// Whether all running nodes are members of one view, and nobody else is in its ring.
    pub(crate) fn is_whole(&self) -> bool {
        let up: Vec<(&String, &Node)> = self.nodes.iter().filter(|(_, n)| n.up).collect();
        let Some(view) = up.first().and_then(|(_, n)| n.current().view()) else { return false };
        let stored = up.iter().filter(|(_, n)| !n.witness).count();
        view.ring.len() == stored
            && up.iter().all(|(_, n)| n.current().is_member() && n.current().view() == Some(view))
    }

    /// Whether a majority of the newest view's voters runs and remembers: no less can decide.
    pub(crate) fn can_decide(&self) -> bool {
        let Some((_, view)) = self.agreed.last_key_value() else { return true };
        let lives: BTreeSet<&NodeId> =
            self.nodes.values().flat_map(|n| &n.lives).map(|life| &life.me().id).collect();
        let voting = view.voters.iter().filter(|m| lives.contains(&m.id)).count();
        voting >= majority(view.voters.len())
    }

    /// What everybody thinks, for failure messages.
    pub(crate) fn describe(&self) -> String {
        let ids = |members: &[Member]| -> Vec<String> {
            members.iter().map(|m| m.id.to_string()).collect()
        };
        let mut text = String::new();
        for machine in self.nodes.values().flat_map(|node| &node.lives) {
            let view = machine.view().map(|v| (v.number, ids(&v.ring), ids(&v.voters)));
            let (me, member) = (&machine.me().id, machine.is_member());
            let suspects: Vec<_> = machine.suspects().collect();
            text += &format!("\n{me}: member {member}, {view:?}, suspects {suspects:?}");
        }
        text
    }

    fn step(&mut self, end: Time) -> bool {
        let mut timer: Option<(Time, &String, usize)> = None;
        for (name, node) in self.nodes.iter().filter(|(_, node)| node.up) {
            for (life, machine) in node.lives.iter().enumerate() {
                let awake = self.now.max(node.asleep_until);
                let next = machine.deadline().map(|at| (at.max(awake), name, life));
                timer = timer.into_iter().chain(next).min();
            }
        }
        let timer = timer.map(|(at, name, life)| (at, name.clone(), life));
        let packet = self.packets.first_key_value().map(|(key, _)| *key);
        let timer_first = match (&timer, packet) {
            (Some((at, ..)), Some((arrives, _))) => *at < arrives,
            (timer, _) => timer.is_some(),
        };
        if timer_first {
            let Some((at, name, life)) = timer.filter(|(at, ..)| *at <= end) else { return false };
            self.now = at;
            self.handle(&name, life, Event::Tick);
        } else {
            let Some(key) = packet.filter(|(at, _)| *at <= end) else { return false };
            self.now = self.now.max(key.0);
            let packet = self.packets.remove(&key).unwrap();
            if let Some(awake) = self.asleep(packet.to) {
                // Whoever wakes up looks at its clock first.
                let later = (awake + Duration::from_micros(1), key.1);
                self.packets.insert(later, packet);
                return true;
            }
            let Packet { to, from, message } = packet;
            let found = self.nodes.iter().find(|(_, n)| n.up && n.address == Some(to));
            let Some((name, lives)) = found.map(|(name, n)| (name.clone(), n.lives.len())) else {
                return true;
            };
            if self.cut.contains(&(from.id.name.to_string(), name.clone())) {
                return true;
            }
            for life in (0..lives).rev() {
                let event = Event::Received { from: from.clone(), message: message.clone() };
                self.handle(&name, life, event);
            }
        }
        true
    }

    /// Until when whoever listens at `address` does not run.
    fn asleep(&self, address: SocketAddr) -> Option<Time> {
        let node = self.nodes.values().find(|n| n.up && n.address == Some(address))?;
        (node.asleep_until >= self.now).then_some(node.asleep_until)
    }

    fn handle(&mut self, name: &str, life: usize, event: Event) {
        let now = self.now;
        let Some(machine) = self.nodes.get_mut(name).and_then(|n| n.lives.get_mut(life)) else {
            return;
        };
        let mut out = Vec::new();
        machine.handle(now, event, &mut out);
        let me = Peer::from(machine.me());
        let (mut rejoin, mut hands_over) = (false, false);
        for output in out {
            match output {
                Output::Send { to, message } => self.post(&me, to.address, message),
                Output::Contact { address, message } => self.post(&me, address, message),
                Output::Persist(durable) => {
                    self.check_memory(&durable);
                    self.node(name).stored.insert(me.id.clone(), durable);
                    if self.rng.below(10_000) < self.faults.crash_after_persist {
                        return self.kill(name);
                    }
                }
                Output::Install(view) => {
                    hands_over = view.is_leaving(&me.id);
                    self.check_agreement(view);
                }
                Output::Evicted { view } => {
                    assert!(!view.admits(&me.id));
                    self.check_agreement(view);
                    self.node(name).evictions += 1;
                    rejoin = life + 1 == self.nodes[name].lives.len();
                }
                Output::JoinRefused { reason } => self.node(name).refusals.push(reason),
                Output::Left => self.node(name).left = true,
            }
        }
        let node = self.node(name);
        if node.lives[life].is_finished() && (rejoin || life + 1 < node.lives.len()) {
            node.lives.remove(life);
            node.stored.remove(&me.id);
        }
        if hands_over && life + 1 == node.lives.len() && node.has_nothing {
            self.event(name, Event::HandedOver);
        } else if node.lives.last().is_some_and(Membership::is_finished) {
            self.kill(name);
        } else if rejoin {
            self.join(name);
        }
    }

    fn post(&mut self, from: &Peer, to: SocketAddr, message: Message) {
        assert!(!self.forgotten.contains(&from.id), "I8 nobody votes after amnesia: {}", from.id);
        if let Some(to) = &message.to {
            let ends = (from.id.clone(), to.clone());
            self.sent.entry(kind(&message.body)).or_default().push(ends);
            if self.weigh {
                let bytes = postcard::to_stdvec(&message).unwrap().len();
                *self.bytes.entry(kind(&message.body)).or_default() += bytes;
            }
        }
        if self.rng.percent(self.faults.loss) {
            return;
        }
        let copies = 1 + u64::from(self.rng.percent(self.faults.double));
        for _ in 0..copies {
            let Faults { delay_min, delay_max, .. } = self.faults;
            let delay = delay_min + self.rng.below(delay_max - delay_min + 1);
            self.sequence += 1;
            let key = (self.now + Duration::from_micros(delay), self.sequence);
            self.packets.insert(key, Packet { to, from: from.clone(), message: message.clone() });
        }
    }

    fn check_agreement(&mut self, view: Arc<View>) {
        assert!(view.is_coherent());
        let agreed = self.agreed.entry(view.number).or_insert_with(|| view.clone());
        assert_eq!(*agreed, view, "I4 one value per view number: {}", view.number);
        if let Some(before) = self.agreed.get(&(view.number - 1)) {
            assert!(before.precedes(&view));
        }
    }

    /// What a voter once stored for a view number is never contradicted.
    fn check_memory(&mut self, new: &Durable) {
        let key = (new.me.id.clone(), new.view.number);
        if let Some(old) = self.votes.insert(key, new.clone()) {
            let voted = |d: &Durable| d.votes.cast.vote.as_ref().map(|vote| vote.value.clone());
            assert!(
                voted(&old).is_none() || voted(&old) == voted(new),
                "I8 nobody votes after amnesia: another vote"
            );
            assert!(
                old.votes.promised <= new.votes.promised,
                "I8 nobody votes after amnesia: a promise"
            );
            let accepted = |d: &Durable| d.votes.cast.accepted.as_ref().map(|(ballot, _)| *ballot);
            assert!(accepted(&old) <= accepted(new), "I8 nobody votes after amnesia: a ballot");
        }
    }
}

fn kind(body: &Body) -> &'static str {
    match body {
        Body::Propose(_) => "propose",
        Body::Ack => "ack",
        Body::Nack(_) => "nack",
        Body::Install(_) => "install",
        Body::Decided(_) => "decided",
        Body::Prepare(_) => "prepare",
        Body::Promise(..) => "promise",
        Body::Accept(..) => "accept",
        Body::Accepted(_) => "accepted",
        Body::Join { .. } => "join",
        Body::JoinRefused(_) => "refused",
        Body::Leave { .. } => "leave",
        Body::Heartbeat(_) => "heartbeat",
    }
}
