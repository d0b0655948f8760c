//! The world around the servers: time, machines with their memory, and the network between them.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, VecDeque},
    future::Future,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use futures::{
    channel::oneshot,
    executor::{LocalPool, LocalSpawner},
    task::LocalSpawnExt,
};
use ringkeep::{
    membership::{Config, Durable, Member, Message, NodeId, Peer, Time, View},
    name::Name,
    region::Region,
    transport::fake::{self, FakeNet},
};

use crate::{
    Mutant,
    dice::Rng,
    oracle::Oracle,
    rpc::{Failure, Reply, Request},
    server::Server,
    tally::{Fault, Tally},
};

pub(crate) const CLUSTER: u64 = 77;
/// The time of one step of the data network.
const DATA_TICK: Duration = Duration::from_millis(1);
const PORT: u16 = 7000;
const EVENTS_KEPT: usize = 120;
/// Rings of so many nodes are looked at whenever data has moved; larger ones every 16 ms, and when a
/// copy is let go.
const SMALL_RING: usize = 4;

/// What one run is of.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Params {
    pub(crate) seed: u64,
    pub(crate) nodes: usize,
    /// How many of them run a service.
    pub(crate) services: usize,
    /// Mirrors of each checkpoint.
    pub(crate) copies: u8,
    /// How long faults are injected.
    pub(crate) storm: Duration,
    pub(crate) mutant: Option<Mutant>,
    /// Print what happens.
    pub(crate) verbose: bool,
}

/// What the network between the servers does, in percent and microseconds.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Weather {
    pub(crate) loss: u64,
    pub(crate) double: u64,
    pub(crate) delay_min: u64,
    pub(crate) delay_max: u64,
    /// Chance that a message is held back for up to 50 times as long, so that later ones pass it.
    pub(crate) overtaken: u64,
    /// Chance per 10,000 that the process dies right before it stores its state, or right after.
    pub(crate) crash_at_persist: u64,
    /// The same before anything else that it does because of one event.
    pub(crate) crash_at_output: u64,
    /// The same in the middle of an update.
    pub(crate) crash_in_update: u64,
}

/// What lies in a machine's memory and outlives a process.
#[derive(Default)]
pub(crate) struct Memory {
    pub(crate) owned: BTreeMap<Name, Kept>,
    pub(crate) mirrors: BTreeMap<(Name, NodeId), Kept>,
    pub(crate) durable: Option<Durable>,
    /// That of the life before, which may still vote.
    pub(crate) former: Option<Durable>,
    /// The life that asks to be taken in, as long as it has no view.
    pub(crate) joining: Option<Member>,
    pub(crate) lineage: Vec<NodeId>,
}

impl Memory {
    pub(crate) fn copies_of<'a>(&'a self, name: &'a Name) -> impl Iterator<Item = &'a Kept> {
        let mirrors = self.mirrors.iter().filter(move |((n, _), _)| n == name);
        self.owned.get(name).into_iter().chain(mirrors.map(|(_, kept)| kept))
    }
}

/// A region and what is written beside it.
#[derive(Clone)]
pub(crate) struct Kept {
    pub(crate) meta: Meta,
    pub(crate) region: Region,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Meta {
    /// Which checkpoint of that name.
    pub(crate) checkpoint: u64,
    pub(crate) epoch: u64,
    /// Its memory was made to take it over from another owner.
    pub(crate) taken_over: bool,
    /// Given up, or lost to another owner: kept until that one is safe.
    pub(crate) superseded: bool,
    pub(crate) successor: Option<NodeId>,
    /// The life of this node that owned it or gave it up last has ended: that life's incarnation.
    pub(crate) ended: Option<u64>,
    /// Owners that left the ring with this as theirs before it was taken up here.
    pub(crate) taken_from: Vec<NodeId>,
    /// Names this memory.
    pub(crate) nonce: u64,
}

/// A machine; a server may run on it.
pub(crate) struct Machine {
    pub(crate) name: Name,
    pub(crate) address: SocketAddr,
    pub(crate) memory: RefCell<Memory>,
    pub(crate) server: RefCell<Option<Rc<Server>>>,
    /// Grows with every life of the node, as a clock would.
    incarnation: Cell<u64>,
    /// The first incarnation that can be in its present memory.
    pub(crate) memory_since: Cell<u64>,
    /// How often its memory was lost.
    pub(crate) memory_losses: Cell<u64>,
    /// Its processes do not run before.
    asleep_until: Cell<Time>,
    /// Until when it is slow, and by how much at most, in microseconds.
    slow: Cell<(Time, u64)>,
    /// How far its clock is ahead, nanoseconds; below zero after it was started anew.
    clock_ahead: Cell<i64>,
}

/// What goes between two servers.
#[derive(Clone)]
pub(crate) enum Wire {
    Membership { from: Peer, message: Message },
    Request { from: Peer, to: NodeId, id: u64, body: Request },
    Reply { to: NodeId, id: u64, body: Result<Reply, Failure> },
}

enum Happening {
    Deliver {
        from: usize,
        to: usize,
        wire: Box<Wire>,
    },
    Wake {
        machine: usize,
        process: u64,
        waker: oneshot::Sender<()>,
    },
    /// A wake-up of nobody in particular.
    Call(oneshot::Sender<()>),
    Timer {
        machine: usize,
        process: u64,
    },
}

/// Views that were stored and read again, by number, and what was read.
type ReadViews = BTreeMap<u64, (Arc<View>, Arc<View>)>;

/// Pairs of machines: nothing goes from the first to the second. In a large ring they are hundreds
/// of thousands, and each message asks.
#[derive(Default)]
struct Cuts {
    nodes: usize,
    /// A row for each first one; empty if there are none.
    table: Vec<bool>,
}

impl Cuts {
    fn cut(&mut self, from: usize, to: usize) {
        self.table.resize(self.nodes * self.nodes, false);
        self.table[from * self.nodes + to] = true;
    }

    fn has(&self, from: usize, to: usize) -> bool {
        self.table.get(from * self.nodes + to).is_some_and(|cut| *cut)
    }

    fn pairs(&self) -> impl Iterator<Item = (usize, usize)> {
        let cut = self.table.iter().enumerate().filter(|(_, cut)| **cut);
        cut.map(|(at, _)| (at / self.nodes, at % self.nodes))
    }
}

pub(crate) struct World {
    pub(crate) params: Params,
    pub(crate) config: Config,
    pub(crate) now: Cell<Time>,
    pub(crate) dice: RefCell<Rng>,
    pub(crate) machines: Vec<Machine>,
    pub(crate) data: FakeNet,
    pub(crate) weather: Cell<Weather>,
    cuts: RefCell<Cuts>,
    pub(crate) tally: RefCell<Tally>,
    pub(crate) oracle: RefCell<Oracle>,
    pub(crate) founded: Cell<bool>,
    /// A machine that was not in the view of the first when it was asked last.
    pub(crate) missing: Cell<usize>,
    pub(crate) read_views: RefCell<ReadViews>,
    /// A machine whose next mark is the last thing that it does, or that it can send.
    pub(crate) mark_trap: Cell<Option<(usize, bool)>>,
    queue: RefCell<BTreeMap<(Time, u64), Happening>>,
    counter: Cell<u64>,
    next_data_tick: Cell<Time>,
    spawner: LocalSpawner,
    events: RefCell<VecDeque<String>>,
}

impl World {
    fn new(params: Params, spawner: LocalSpawner) -> Rc<Self> {
        let weather =
            fake::Weather { delay_ticks_max: 3, late_ticks_max: 400, retry_ticks: 300, torn: true };
        let machine = |index: usize| Machine {
            name: Name::new(&format!("n{index:04}")).expect("a name"),
            address: SocketAddr::from(([127, 0, 0, 1], PORT + index as u16)),
            memory: RefCell::default(),
            server: RefCell::default(),
            incarnation: Cell::new(0),
            memory_since: Cell::new(0),
            memory_losses: Cell::new(0),
            asleep_until: Cell::default(),
            slow: Cell::default(),
            clock_ahead: Cell::new(index as i64 * 1_000_000_007),
        };
        Rc::new(Self {
            params,
            config: Config::default(),
            now: Cell::new(Time(1)),
            dice: RefCell::new(Rng(params.seed)),
            machines: (0..params.nodes).map(machine).collect(),
            data: FakeNet::with_weather(params.seed ^ 0xda7a, weather),
            weather: Cell::new(Weather { delay_min: 50, delay_max: 200, ..Weather::default() }),
            cuts: RefCell::new(Cuts { nodes: params.nodes, ..Cuts::default() }),
            tally: RefCell::default(),
            oracle: RefCell::default(),
            founded: Cell::new(false),
            missing: Cell::new(0),
            read_views: RefCell::default(),
            mark_trap: Cell::new(None),
            queue: RefCell::default(),
            counter: Cell::new(0),
            next_data_tick: Cell::new(Time(1) + DATA_TICK),
            spawner,
            events: RefCell::default(),
        })
    }

    // Time and chance.

    pub(crate) fn roll(&self, end: u64) -> u64 {
        self.dice.borrow_mut().below(end)
    }

    /// What a machine's own clock shows. It may jump ahead, and begins anew when the power comes back;
    /// while the machine is up it never goes back, as the membership demands.
    pub(crate) fn clock(&self, at: usize) -> Time {
        Time(self.now.get().0.saturating_add_signed(self.machines[at].clock_ahead.get()))
    }

    /// When a machine's clock shows this: now if it is past.
    pub(crate) fn when_clock_shows(&self, at: usize, time: Time) -> Time {
        let ahead = self.machines[at].clock_ahead.get();
        Time(time.0.saturating_add_signed(-ahead)).max(self.now.get())
    }

    pub(crate) fn clock_jumps(&self, at: usize, by: Duration) {
        let ahead = &self.machines[at].clock_ahead;
        ahead.set(ahead.get() + by.as_nanos() as i64);
    }

    pub(crate) fn count(&self) -> u64 {
        self.counter.set(self.counter.get() + 1);
        self.counter.get()
    }

    /// Notes what happens, for whoever has to find out why.
    pub(crate) fn log(&self, text: impl FnOnce() -> String) {
        if self.params.verbose {
            let (mut events, text) = (self.events.borrow_mut(), text());
            let again = text.contains("Unavailable") || text.contains("Exact");
            if again && events.iter().rev().take(40).any(|event| event.ends_with(&text)) {
                return;
            }
            events.push_back(format!("{:>12.6} {text}", self.now.get().0 as f64 / 1e9));
            if events.len() > EVENTS_KEPT && std::env::var_os("RINGKEEP_SEED").is_none() {
                events.pop_front();
            }
        }
    }

    pub(crate) fn last_events(&self) -> Vec<String> {
        self.events.borrow().iter().cloned().collect()
    }

    fn push(&self, at: Time, happening: Happening) {
        let key = (at, self.count());
        self.queue.borrow_mut().insert(key, happening);
    }

    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        self.spawner.spawn_local(task).expect("the simulation runs");
    }

    /// Waits, if the process that waits lives so long.
    pub(crate) async fn sleep(&self, server: &Server, time: Duration) {
        let (waker, woken) = oneshot::channel();
        let (machine, process) = (server.at, server.process);
        self.push(self.now.get() + time, Happening::Wake { machine, process, waker });
        let _ = woken.await;
    }

    /// Waits, outside of any machine.
    pub(crate) async fn pause(&self, time: Duration) {
        let (waker, woken) = oneshot::channel();
        self.push(self.now.get() + time, Happening::Call(waker));
        let _ = woken.await;
    }

    pub(crate) fn set_timer(&self, server: &Server, at: Time) {
        let (machine, process) = (server.at, server.process);
        self.push(at, Happening::Timer { machine, process });
    }

    // Machines.

    pub(crate) fn server(&self, at: usize) -> Option<Rc<Server>> {
        self.machines[at].server.borrow().clone()
    }

    pub(crate) fn servers(&self) -> Vec<Rc<Server>> {
        self.machines.iter().filter_map(|m| m.server.borrow().clone()).collect()
    }

    /// The servers that own a checkpoint of this name.
    pub(crate) fn owners_of<'a>(&'a self, name: &'a Name) -> impl Iterator<Item = Rc<Server>> {
        let owns = |server: &&Rc<Server>| server.owns(name);
        let owner = move |m: &Machine| m.server.borrow().as_ref().filter(owns).cloned();
        self.machines.iter().filter_map(owner)
    }

    pub(crate) fn new_incarnation(&self, at: usize) -> u64 {
        let incarnation = &self.machines[at].incarnation;
        incarnation.set(incarnation.get() + 1);
        incarnation.get()
    }

    pub(crate) fn machine_named(&self, name: &Name) -> usize {
        let number = name.as_str().strip_prefix('n').and_then(|number| number.parse().ok());
        number.expect("a name of a machine")
    }

    pub(crate) fn is_asleep(&self, at: usize) -> bool {
        self.machines[at].asleep_until.get() > self.now.get()
    }

    /// The process dies; what is in memory stays.
    pub(crate) fn kill(&self, at: usize) {
        let Some(server) = self.machines[at].server.borrow_mut().take() else { return };
        self.log(|| format!("{} dies", server.id()));
        self.data.crash(self.machines[at].name.as_str());
        self.machines[at].asleep_until.set(Time(0));
        server.dies();
    }

    /// The process dies and all memory is lost.
    pub(crate) fn lose_power(&self, at: usize) {
        self.kill(at);
        let machine = &self.machines[at];
        self.log(|| format!("{} loses its memory", machine.name));
        let memory = machine.memory.take();
        machine.clock_ahead.set(1 - self.now.get().0 as i64);
        if self.params.mutant == Some(Mutant::Amnesia) {
            // The same life goes on, and has forgotten what it voted for.
            let forgets = |durable| Durable { votes: Default::default(), ..durable };
            machine.memory.borrow_mut().durable = memory.durable.map(forgets);
        }
        machine.memory_since.set(machine.incarnation.get() + 1);
        machine.memory_losses.set(machine.memory_losses.get() + 1);
        self.oracle.borrow_mut().look_for_copies(self);
    }

    /// A process dies of a fault, and starts again after a while.
    pub(crate) fn dies_of(self: &Rc<Self>, fault: Fault, at: usize) {
        self.tally.borrow_mut().add(fault);
        self.log(|| format!("{fault:?} at {at}"));
        self.kill(at);
        self.start_later(at, Duration::from_millis(20 + self.roll(4_000)));
    }

    pub(crate) fn start_later(self: &Rc<Self>, at: usize, after: Duration) {
        let again = self.clone();
        self.spawn(async move {
            again.pause(after).await;
            again.start(at);
        });
    }

    /// A holder's mirror, if the memory is left in which it was made.
    pub(crate) fn mirror_of(&self, holder: &NodeId, name: &Name, owner: &NodeId) -> Option<Kept> {
        let machine = &self.machines[self.machine_named(&holder.name)];
        if machine.memory_since.get() > holder.incarnation {
            return None;
        }
        machine.memory.borrow().mirrors.get(&(name.clone(), owner.clone())).cloned()
    }

    pub(crate) fn start(self: &Rc<Self>, at: usize) {
        if self.machines[at].server.borrow().is_none() {
            let server = Server::start(self, at);
            self.log(|| format!("{} starts", server.id()));
        }
    }

    /// The machine's processes stop for a while and then go on.
    pub(crate) fn put_to_sleep(&self, at: usize, time: Duration) {
        self.machines[at].asleep_until.set(self.now.get() + time);
    }

    pub(crate) fn slow_down(&self, at: usize, time: Duration, by_us: u64) {
        self.machines[at].slow.set((self.now.get() + time, by_us));
    }

    fn slowness(&self, at: usize) -> Duration {
        let (until, by_us) = self.machines[at].slow.get();
        let by_us = if until > self.now.get() { self.roll(by_us) } else { 0 };
        Duration::from_micros(by_us)
    }

    // The network.

    pub(crate) fn cut(&self, from: usize, to: usize) {
        self.cuts.borrow_mut().cut(from, to);
        self.data.cut(self.machines[from].name.as_str(), self.machines[to].name.as_str());
    }

    pub(crate) fn heal(&self) {
        self.cuts.borrow_mut().table.clear();
        self.data.heal();
    }

    /// The machines whose server runs and goes on to, with nothing cut between them and others.
    pub(crate) fn reachable(&self) -> Vec<bool> {
        let stays = |at| self.server(at).is_some_and(|server| !server.leaving.get());
        let mut reachable: Vec<bool> =
            (0..self.machines.len()).map(|at| stays(at) && !self.is_asleep(at)).collect();
        for (from, to) in self.cuts.borrow().pairs() {
            reachable[from] = false;
            reachable[to] = false;
        }
        reachable
    }

    pub(crate) fn is_cut(&self, from: usize, to: usize) -> bool {
        self.cuts.borrow().has(from, to)
    }

    pub(crate) fn machine_at(&self, address: SocketAddr) -> usize {
        usize::from(address.port() - PORT)
    }

    pub(crate) fn post(&self, from: usize, address: SocketAddr, wire: Wire) {
        let to = self.machine_at(address);
        let weather = self.weather.get();
        if self.is_cut(from, to) {
            return;
        }
        let mut copies = 1;
        if self.roll(1000) < weather.loss * 10 {
            self.tally.borrow_mut().add(Fault::Drop);
            return;
        }
        if self.roll(1000) < weather.double * 10 {
            self.tally.borrow_mut().add(Fault::Duplicate);
            copies = 2;
        }
        for _ in 0..copies {
            let mut delay =
                weather.delay_min + self.roll(weather.delay_max - weather.delay_min + 1);
            if self.roll(1000) < weather.overtaken * 10 {
                delay *= 1 + self.roll(50);
                self.tally.borrow_mut().add(Fault::Delay);
            }
            let at = self.now.get() + Duration::from_micros(delay) + self.slowness(to);
            self.push(at, Happening::Deliver { from, to, wire: Box::new(wire.clone()) });
        }
    }

    // What happens.

    fn happen(self: &Rc<Self>, happening: Happening) {
        let asleep = |machine: usize| {
            let until = self.machines[machine].asleep_until.get();
            // Whoever wakes up looks at its clock first.
            (until > self.now.get()).then_some(until + Duration::from_micros(1))
        };
        match happening {
            Happening::Deliver { from, to, wire } => {
                if let Some(until) = asleep(to) {
                    return self.push(until, Happening::Deliver { from, to, wire });
                }
                if let Some(server) = self.server(to).filter(|_| !self.is_cut(from, to)) {
                    server.received(*wire);
                }
            }
            Happening::Wake { machine, process, waker } => match asleep(machine) {
                Some(until) if self.server(machine).is_some_and(|s| s.process == process) => {
                    self.push(until, Happening::Wake { machine, process, waker });
                }
                _ => drop(waker.send(())),
            },
            Happening::Call(waker) => drop(waker.send(())),
            Happening::Timer { machine, process } => {
                let Some(server) = self.server(machine).filter(|s| s.process == process) else {
                    return;
                };
                match asleep(machine) {
                    Some(until) => {
                        let until = Time(until.0 - 1_000);
                        self.push(until, Happening::Timer { machine, process });
                    }
                    None => server.timer(),
                }
            }
        }
    }

    fn data_tick(&self) {
        self.next_data_tick.set(self.next_data_tick.get() + DATA_TICK);
        self.data.advance(1);
        for at in 0..self.machines.len() {
            if let Some(server) = self.server(at).filter(|_| !self.is_asleep(at)) {
                server.poll_data();
            }
        }
        let ticks = self.now.get().0 / 1_000_000;
        if self.params.nodes <= SMALL_RING || ticks.is_multiple_of(16) {
            self.oracle.borrow_mut().look_for_copies(self);
        }
        if ticks.is_multiple_of(16) {
            self.oracle.borrow_mut().look_at_copies(self);
        }
    }
}

/// A world and what drives it.
pub(crate) struct Simulation {
    pub(crate) world: Rc<World>,
    pool: LocalPool,
}

impl Simulation {
    pub(crate) fn new(params: Params) -> Self {
        let pool = LocalPool::new();
        Self { world: World::new(params, pool.spawner()), pool }
    }

    /// Runs until `done`, at most so long. Whether it was reached.
    pub(crate) fn run_until(&mut self, limit: Duration, done: impl Fn(&World) -> bool) -> bool {
        let end = self.world.now.get() + limit;
        loop {
            self.pool.run_until_stalled();
            if self.world.oracle.borrow().broken().is_some() {
                return false;
            }
            if done(&self.world) {
                return true;
            }
            if !self.step(end) {
                return false;
            }
        }
    }

    pub(crate) fn run_for(&mut self, time: Duration) {
        self.run_until(time, |_| false);
    }

    fn step(&mut self, end: Time) -> bool {
        let world = &self.world;
        let next = world.queue.borrow().first_key_value().map(|(key, _)| *key);
        let tick = world.next_data_tick.get();
        let at = next.map_or(tick, |(at, _)| at.min(tick)).max(world.now.get());
        if at > end {
            world.now.set(end);
            return false;
        }
        world.now.set(at);
        match next.filter(|(at, _)| *at <= tick) {
            Some(key) => {
                let happening = world.queue.borrow_mut().remove(&key);
                happening.into_iter().for_each(|happening| world.happen(happening));
            }
            None => world.data_tick(),
        }
        true
    }
}

impl Drop for Simulation {
    /// Servers and the world know each other.
    fn drop(&mut self) {
        for machine in &self.world.machines {
            if let Some(server) = machine.server.take() {
                server.dies();
            }
        }
    }
}
