//! A server: the real membership, and a little of the real server's shell around it. Its parts
//! stand for those of the same name in `src/server`; what they leave out is told in
//! `docs/simulation.md`.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use futures::{
    channel::oneshot,
    future::{Either, select},
    lock::{Mutex, OwnedMutexGuard},
};
use ringkeep::{
    membership::{
        Durable, Event, JoinRefusal, Member, Membership, NodeId, Output, OwnerHolders, Peer,
        ResumeError, Time, View,
    },
    name::Name,
    recovery::{self, Run},
    transport::{RemoteKey, fake::FakeTransport},
};

use serde::{Serialize, de::DeserializeOwned};

use crate::{
    Mutant,
    plane::Plane,
    rpc::{Failure, Reply, Request},
    tally::Fault,
    world::{CLUSTER, Kept, Meta, Wire, World},
};

pub(crate) const CALL_TIMEOUT: Duration = Duration::from_secs(2);
pub(crate) const LONG_CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// Views of which is kept what was read.
const READ_VIEWS_MAX: usize = 4;
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(250);

/// What becomes of a question.
pub(crate) type Answer = Result<Reply, Failure>;

/// A checkpoint that this server owns, or owned once.
pub(crate) struct Owned {
    pub(crate) kept: Kept,
    /// What the data plane has of it, while it is served.
    pub(crate) plane: Option<Plane>,
}

/// A copy of somebody else's checkpoint.
pub(crate) struct Held {
    pub(crate) kept: Kept,
    pub(crate) memory: Option<ringkeep::transport::MemoryId>,
    pub(crate) key: Option<RemoteKey>,
    pub(crate) fenced: bool,
}

struct Shell {
    machine: Membership,
    /// The life before, while it still votes.
    former: Option<Membership>,
}

/// One process on one machine.
pub(crate) struct Server {
    pub(crate) world: Rc<World>,
    pub(crate) at: usize,
    pub(crate) process: u64,
    alive: Cell<bool>,
    me: RefCell<Member>,
    shell: RefCell<Shell>,
    timer: Cell<Option<Time>>,
    view: RefCell<Option<Arc<View>>>,
    /// Counts the lives within this process.
    pub(crate) life: Cell<u64>,
    pub(crate) owned: RefCell<BTreeMap<Name, Owned>>,
    pub(crate) mirrors: RefCell<BTreeMap<(Name, NodeId), Held>>,
    pub(crate) synced_views: RefCell<BTreeMap<Name, u64>>,
    pub(crate) creating: RefCell<BTreeSet<Name>>,
    pub(crate) preparing: RefCell<BTreeMap<(Name, NodeId), bool>>,
    pub(crate) recovering: RefCell<BTreeSet<NodeId>>,
    pub(crate) transport: RefCell<FakeTransport>,
    pub(crate) links: RefCell<crate::plane::Links>,
    pub(crate) leaving: Cell<bool>,
    locks: RefCell<BTreeMap<Name, Arc<Mutex<()>>>>,
    calls: RefCell<BTreeMap<u64, oneshot::Sender<Answer>>>,
    answers: RefCell<BTreeMap<(NodeId, u64), Option<Answer>>>,
}

impl Server {
    /// A process starts on a machine and finds what an earlier one left in memory.
    pub(crate) fn start(world: &Rc<World>, at: usize) -> Rc<Self> {
        let machine = &world.machines[at];
        let stored = machine.memory.borrow().durable.clone();
        let now = world.clock(at);
        let (membership, resumed) = begin(world, at, stored.clone(), now);
        let me = membership.me().clone();
        let old = machine.memory.borrow().former.clone().filter(|old| old.me.id != me.id);
        let old = old.and_then(|old| Membership::resume(world.config, old, now).ok());
        let former = stored.filter(|_| !resumed).map(|stored| stored.me.id);
        machine.memory.borrow_mut().lineage.extend(former.clone());
        let transport = world.data.endpoint(machine.name.as_str());
        let server = Rc::new(Self {
            world: world.clone(),
            at,
            process: world.count(),
            alive: Cell::new(true),
            me: RefCell::new(me),
            shell: RefCell::new(Shell { machine: membership, former: old }),
            timer: Cell::new(None),
            view: RefCell::default(),
            life: Cell::new(0),
            owned: RefCell::default(),
            mirrors: RefCell::default(),
            synced_views: RefCell::default(),
            creating: RefCell::default(),
            preparing: RefCell::default(),
            recovering: RefCell::default(),
            transport: RefCell::new(transport),
            links: RefCell::default(),
            leaving: Cell::new(false),
            locks: RefCell::default(),
            calls: RefCell::default(),
            answers: RefCell::default(),
        });
        *machine.server.borrow_mut() = Some(server.clone());
        server.load(resumed, former);
        server.set_timer();
        server.spawn(server.clone().run_leftovers());
        if at < world.params.services {
            server.spawn(server.clone().run_home());
        }
        server
    }

    fn load(self: &Rc<Self>, resumed: bool, former: Option<NodeId>) {
        let (owned, mirrors) = {
            let memory = self.world.machines[self.at].memory.borrow();
            (memory.owned.clone(), memory.mirrors.clone())
        };
        for (id, kept) in mirrors {
            let held = Held { kept, memory: None, key: None, fenced: !resumed };
            self.mirrors.borrow_mut().insert(id, held);
        }
        for (name, mut kept) in owned {
            if !resumed && kept.meta.ended.is_none() {
                kept.meta.superseded = true; // until it turns out that nobody took it over
                kept.meta.ended = former.as_ref().map(|life| life.incarnation);
                self.keep_owned(&name, &kept);
            }
            let superseded = kept.meta.superseded;
            self.owned.borrow_mut().insert(name.clone(), Owned { kept, plane: None });
            if !superseded {
                self.serve(&name, false);
            }
        }
    }

    /// The process is gone.
    pub(crate) fn dies(&self) {
        self.alive.set(false);
        self.calls.borrow_mut().clear(); // whoever waits wakes up and ends
        self.owned.borrow_mut().clear();
        self.mirrors.borrow_mut().clear();
    }

    pub(crate) fn is_alive(&self) -> bool {
        self.alive.get()
    }

    /// Runs a task while this process lives.
    pub(crate) fn spawn(self: &Rc<Self>, task: impl Future<Output = ()> + 'static) {
        let server = self.clone();
        let mut task = Box::pin(task);
        self.world.spawn(std::future::poll_fn(move |context| match server.is_alive() {
            true => task.as_mut().poll(context),
            false => std::task::Poll::Ready(()),
        }));
    }

    pub(crate) fn id(&self) -> NodeId {
        self.me.borrow().id.clone()
    }

    pub(crate) fn peer(&self) -> Peer {
        Peer::from(&*self.me.borrow())
    }

    pub(crate) fn view(&self) -> Option<Arc<View>> {
        self.view.borrow().clone()
    }

    pub(crate) fn view_number(&self) -> Option<u64> {
        self.view.borrow().as_ref().map(|view| view.number)
    }

    pub(crate) fn is_member(&self) -> bool {
        self.view.borrow().is_some()
    }

    pub(crate) fn is_settled(&self, owner: &NodeId) -> bool {
        self.shell.borrow().machine.is_settled(owner)
    }

    /// The other members of the ring.
    pub(crate) fn others(&self) -> Vec<Member> {
        let (me, view) = (self.id(), self.view());
        view.iter().flat_map(|v| &v.ring).filter(|m| m.id != me).cloned().collect()
    }

    /// Whether this node is that life, or has its memory.
    pub(crate) fn has_memory_of(&self, life: &NodeId) -> bool {
        let memory = self.world.machines[self.at].memory.borrow();
        *life == self.id() || memory.lineage.contains(life)
    }

    /// Orders whole operations on one checkpoint on this node.
    pub(crate) async fn lock(&self, name: &Name) -> OwnedMutexGuard<()> {
        let lock = self.locks.borrow_mut().entry(name.clone()).or_default().clone();
        lock.lock_owned().await
    }

    pub(crate) async fn sleep(&self, time: Duration) {
        self.world.sleep(self, time).await;
    }

    // What lies in memory.

    pub(crate) fn keep_owned(&self, name: &Name, kept: &Kept) {
        let mut memory = self.world.machines[self.at].memory.borrow_mut();
        memory.owned.insert(name.clone(), kept.clone());
    }

    pub(crate) fn keep_mirror(&self, id: &(Name, NodeId), kept: &Kept) {
        let mut memory = self.world.machines[self.at].memory.borrow_mut();
        memory.mirrors.insert(id.clone(), kept.clone());
    }

    pub(crate) fn erase_mirror(&self, id: &(Name, NodeId)) {
        self.world.machines[self.at].memory.borrow_mut().mirrors.remove(id);
    }

    /// Forgets an owned checkpoint that is not served any more, and its memory.
    pub(crate) fn drop_owned(&self, name: &Name) {
        if self.owned.borrow_mut().remove(name).is_some() {
            self.synced_views.borrow_mut().remove(name);
            self.world.machines[self.at].memory.borrow_mut().owned.remove(name);
            self.world.oracle.borrow_mut().look_for_copies(&self.world);
        }
    }

    pub(crate) fn owns(&self, name: &Name) -> bool {
        self.owned.borrow().get(name).is_some_and(|o| !o.kept.meta.superseded)
    }

    pub(crate) fn meta_of(&self, name: &Name) -> Option<Meta> {
        self.owned.borrow().get(name).map(|o| o.kept.meta.clone())
    }

    /// Notes that this copy is not the present one any more.
    pub(crate) fn supersede(&self, name: &Name, successor: Option<NodeId>) {
        let kept = {
            let mut owned = self.owned.borrow_mut();
            let Some(owned) = owned.get_mut(name) else { return };
            owned.kept.meta.superseded = true;
            owned.kept.meta.successor = successor;
            owned.kept.meta.ended = None;
            owned.kept.clone()
        };
        self.keep_owned(name, &kept);
        self.synced_views.borrow_mut().remove(name);
    }

    /// The life that owned it has ended.
    fn end(&self, name: &Name, life: &NodeId) {
        let kept = {
            let mut owned = self.owned.borrow_mut();
            let Some(owned) = owned.get_mut(name) else { return };
            owned.kept.meta.superseded = true;
            owned.kept.meta.ended.get_or_insert(life.incarnation);
            owned.kept.clone()
        };
        self.keep_owned(name, &kept);
    }

    // Messages.

    pub(crate) fn received(self: &Rc<Self>, wire: Wire) {
        match wire {
            Wire::Membership { from, message } => {
                self.event(Event::Received { from, message });
            }
            Wire::Reply { to, id, body } => {
                if to == self.id()
                    && let Some(reply) = self.calls.borrow_mut().remove(&id)
                {
                    let _ = reply.send(body); // whoever asked may have given up
                }
            }
            Wire::Request { from, to, id, body } => {
                if to == self.id() {
                    self.spawn(self.clone().answer(from, id, body));
                }
            }
        }
    }

    /// Does what a peer asks, once, and answers.
    async fn answer(self: Rc<Self>, from: Peer, id: u64, body: Request) {
        if id == 0 {
            let _ = self.request(&from.id, body).await;
            return;
        }
        let question = (from.id.clone(), id);
        let known = self.answers.borrow().get(&question).cloned();
        let body = match known {
            Some(None) => return,
            Some(Some(body)) => body,
            None => {
                self.answers.borrow_mut().insert(question.clone(), None);
                let body = self.request(&from.id, body).await;
                self.answers.borrow_mut().insert(question, Some(body.clone()));
                body
            }
        };
        let reply = Wire::Reply { to: from.id, id, body };
        self.world.post(self.at, from.address, reply);
    }

    async fn request(self: &Rc<Self>, from: &NodeId, body: Request) -> Result<Reply, Failure> {
        match body {
            Request::Link { offer } => self.accept_link(from, &offer),
            Request::Prepare { name, checkpoint, epoch, view } => {
                self.prepare(from, name, checkpoint, epoch, view).await
            }
            Request::Confirm { name, checkpoint, epoch, holders, view } => {
                self.confirmed(from, name, checkpoint, epoch, holders, view).await;
                Ok(Reply::Done)
            }
            Request::Locate { name } => Ok(Reply::Located(self.located(&name))),
            Request::Fence { owner, holder, view } => {
                let behind = self.view().is_none_or(|v| v.number < view || v.contains(&owner));
                if !self.has_memory_of(&holder) || behind {
                    return Err(Failure::Unavailable);
                }
                Ok(match holder == owner {
                    true => {
                        let (copies, complete) = self.copies_of_ended(&owner);
                        Reply::Kept { copies, complete }
                    }
                    false => Reply::Fenced(self.answer_recovery(&owner)),
                })
            }
            Request::Adopt { owner, name, view } => {
                self.fence(&owner);
                self.adopt(&owner, &name, Some(view))
                    .await
                    .map(|protected| Reply::Adopted { protected })
            }
            Request::Inherit { name, epoch, version } => {
                self.inherit(from, &name, epoch, version).await.map(|()| Reply::Done)
            }
            Request::TakeOver { name } => self.give_up(from, name).await,
            Request::Given { name, checkpoint, epoch, to } => {
                self.note_given(from, &name, checkpoint, epoch, &to);
                Ok(Reply::Done)
            }
        }
    }

    /// Asks a member and waits for its answer.
    pub(crate) async fn call(
        &self,
        to: &Member,
        body: Request,
        timeout: Duration,
    ) -> Result<Reply, Failure> {
        let id = self.world.count();
        let (reply, mut answer) = oneshot::channel();
        self.calls.borrow_mut().insert(id, reply);
        let deadline = self.world.now.get() + timeout;
        let answer = loop {
            let body = body.clone();
            let wire = Wire::Request { from: self.peer(), to: to.id.clone(), id, body };
            self.world.post(self.at, to.address, wire);
            let again = Box::pin(self.sleep(ASK_AGAIN_AFTER));
            match select(answer, again).await {
                Either::Left((answer, _)) => break answer.ok(),
                Either::Right(((), still)) => answer = still,
            }
            let gone = self.view().is_none_or(|view| view.member(&to.id).is_none());
            if gone || self.world.now.get() >= deadline || !self.is_alive() {
                break None;
            }
        };
        self.calls.borrow_mut().remove(&id);
        answer.unwrap_or(Err(Failure::Unavailable))
    }

    /// Asks a member and does not wait.
    pub(crate) fn cast(&self, to: &Member, body: Request) {
        let wire = Wire::Request { from: self.peer(), to: to.id.clone(), id: 0, body };
        self.world.post(self.at, to.address, wire);
    }

    // Membership.

    fn local_now(&self) -> Time {
        self.world.clock(self.at)
    }

    fn deadline(&self) -> Option<Time> {
        let shell = self.shell.borrow();
        let former = shell.former.as_ref().and_then(Membership::deadline);
        let next = shell.machine.deadline().into_iter().chain(former).min()?;
        Some(self.world.when_clock_shows(self.at, next))
    }

    pub(crate) fn set_timer(&self) {
        let next = self.deadline();
        if let Some(at) = next
            && self.timer.get().is_none_or(|set| set > at)
        {
            self.timer.set(Some(at));
            self.world.set_timer(self, at);
        }
    }

    pub(crate) fn timer(self: &Rc<Self>) {
        let now = self.world.now.get();
        if self.timer.get().is_some_and(|at| at > now) {
            return; // one that was set before an earlier one
        }
        self.timer.set(None);
        if self.deadline().is_some_and(|at| at <= now) {
            self.event(Event::Tick);
        } else {
            self.set_timer();
        }
    }

    /// Something happened that the membership wants to know.
    pub(crate) fn event(self: &Rc<Self>, event: Event) {
        let (mut outputs, mut former_outputs) = (Vec::new(), Vec::new());
        let now = self.local_now();
        {
            let mut shell = self.shell.borrow_mut();
            let for_both = matches!(event, Event::Received { .. } | Event::Tick);
            if let Some(former) = shell.former.as_mut().filter(|_| for_both) {
                former.handle(now, event.clone(), &mut former_outputs);
                if former.is_finished() {
                    shell.former = None;
                    self.world.machines[self.at].memory.borrow_mut().former = None;
                }
            }
            shell.machine.handle(now, event, &mut outputs);
            shell.machine.findings();
        }
        for output in former_outputs {
            match output {
                Output::Persist(durable) => {
                    self.voted(&durable);
                    self.world.machines[self.at].memory.borrow_mut().former = Some(durable);
                }
                Output::Send { to, message } => {
                    let from = self.shell.borrow().former.as_ref().map(|m| Peer::from(m.me()));
                    if let Some(from) = from {
                        self.world.post(self.at, to.address, Wire::Membership { from, message });
                    }
                }
                _ => {} // it is out already
            }
        }
        if self.world.params.mutant == Some(Mutant::SendsBeforeItPersists) {
            outputs.sort_by_key(|output| !matches!(output, Output::Send { .. }));
        }
        let weather = self.world.weather.get();
        for output in outputs {
            let (fault, chance) = match output {
                Output::Persist(_) => (Fault::CrashBeforeVoting, weather.crash_at_persist),
                _ => (Fault::CrashBetweenOutputs, weather.crash_at_output),
            };
            if self.world.roll(10_000) < chance {
                self.world.dies_of(fault, self.at);
                return;
            }
            self.output(output);
            if !self.is_alive() {
                return;
            }
        }
        self.set_timer();
    }

    fn voted(&self, durable: &Durable) {
        self.world.oracle.borrow_mut().stored(durable);
    }

    fn output(self: &Rc<Self>, output: Output) {
        match output {
            Output::Send { to, message } => {
                let wire = Wire::Membership { from: self.peer(), message };
                self.world.post(self.at, to.address, wire);
            }
            Output::Contact { address, message } => {
                let wire = Wire::Membership { from: self.peer(), message };
                self.world.post(self.at, address, wire);
            }
            Output::Persist(durable) => {
                self.voted(&durable);
                {
                    let mut memory = self.world.machines[self.at].memory.borrow_mut();
                    memory.joining = None;
                    memory.durable = Some(durable);
                }
                if self.world.roll(10_000) < self.world.weather.get().crash_at_persist {
                    self.world.dies_of(Fault::CrashWhileVoting, self.at);
                }
            }
            Output::Install(view) => self.install(view),
            Output::Evicted { view } => self.evicted(&view),
            Output::JoinRefused { reason } => {
                self.world.log(|| format!("{} is refused: {reason}", self.id()));
                if matches!(reason, JoinRefusal::Outlived { .. }) {
                    self.world.machines[self.at].memory.borrow_mut().joining = None;
                }
                self.world.kill(self.at);
            }
            Output::Left => {
                self.world.log(|| format!("{} has left", self.id()));
                self.world.kill(self.at);
            }
        }
    }

    fn install(self: &Rc<Self>, view: Arc<View>) {
        self.world.log(|| {
            let ring: Vec<_> = view.ring.iter().map(|m| m.id.to_string()).collect();
            let leaving: Vec<_> = view.leaving.iter().map(NodeId::to_string).collect();
            format!("{} installs {} {ring:?} leaving {leaving:?}", self.id(), view.number)
        });
        if self.world.oracle.borrow_mut().installed(&view) {
            self.world.tally.borrow_mut().views += 1;
        }
        let before = self.view.replace(Some(view.clone()));
        let gone = before.as_ref().map_or(Vec::new(), |before| view.gone_since(before));
        if !gone.is_empty() && self.world.params.mutant != Some(Mutant::NoFence) {
            // In the order of the ring.
            let is_gone = |m: &&Member| gone.binary_search(&m.id).is_ok();
            for gone in before.iter().flat_map(|before| &before.ring).filter(is_gone) {
                self.unlink(&gone.id);
            }
        }
        self.tell_view();
        // What the tasks of an installation begin with happens before anything else does.
        self.fence_the_gone(&view);
    }

    /// The ring went on without this life of the node: its writers are fenced, and it comes back
    /// as a new one.
    fn evicted(self: &Rc<Self>, view: &Arc<View>) {
        self.world.log(|| format!("{} is evicted in {}", self.id(), view.number));
        self.world.oracle.borrow_mut().installed(view);
        self.view.replace(None);
        self.life.set(self.life.get() + 1);
        self.synced_views.borrow_mut().clear();
        let before = self.me.borrow().clone();
        self.world.machines[self.at].memory.borrow_mut().lineage.push(before.id.clone());
        for member in view.everybody() {
            self.unlink(&member.id);
        }
        if self.world.params.mutant == Some(Mutant::WipedAtEviction) {
            let ids: Vec<_> = self.mirrors.borrow().keys().cloned().collect();
            for id in ids {
                self.drop_mirror(&id);
            }
        }
        let me = member(&self.world, self.at);
        *self.me.borrow_mut() = me.clone();
        {
            let mut memory = self.world.machines[self.at].memory.borrow_mut();
            memory.former = memory.durable.take();
            memory.joining = Some(me.clone());
        }
        let names: Vec<_> = self.owned.borrow().keys().cloned().collect();
        for name in names {
            self.end(&name, &before.id);
            self.spawn(self.clone().disown(name));
        }
        let machine = Membership::join(
            self.world.config,
            me,
            contacts(&self.world, self.at),
            self.local_now(),
        )
        .expect_cluster(CLUSTER);
        let mut shell = self.shell.borrow_mut();
        let former = std::mem::replace(&mut shell.machine, machine);
        shell.former = Some(former);
    }
}

/// Who this machine's next life is.
fn member(world: &World, at: usize) -> Member {
    let machine = &world.machines[at];
    let id = NodeId { name: machine.name.clone(), incarnation: world.new_incarnation(at) };
    let mirrors = world.params.copies;
    Member { id, address: machine.address, witness: false, zone: None, mirrors }
}

fn contacts(world: &World, at: usize) -> Vec<std::net::SocketAddr> {
    let mut all: Vec<_> = world.machines.iter().map(|m| m.address).collect();
    all.remove(at);
    all
}

/// How a process begins: as the life that its memory remembers, or as a new one.
fn begin(world: &World, at: usize, stored: Option<Durable>, now: Time) -> (Membership, bool) {
    if let Some(stored) = stored {
        match Membership::resume(world.config, read_again(world, &stored), now) {
            Ok(machine) => return (machine, true),
            Err(ResumeError::NoPart { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }
    let asking = world.machines[at].memory.borrow().joining.clone();
    let me = asking.unwrap_or_else(|| member(world, at));
    if !world.founded.replace(true) {
        return (Membership::found(world.config, me, CLUSTER, now), false);
    }
    let mut memory = world.machines[at].memory.borrow_mut();
    memory.durable = None;
    memory.joining = Some(me.clone());
    let machine = Membership::join(world.config, me, contacts(world, at), now);
    (machine.expect_cluster(CLUSTER), false)
}

/// What was stored, as it is read. Each view is stored and read once: a thousand have the same.
fn read_again(world: &World, stored: &Durable) -> Durable {
    let mut views = world.read_views.borrow_mut();
    let number = stored.view.number;
    if let Some((_, read)) = views.get(&number).filter(|(before, _)| *before == stored.view) {
        let (me, votes) = (again(&stored.me), again(&stored.votes));
        return Durable { me, view: read.clone(), votes };
    }
    let read: Durable = again(stored);
    views.insert(number, (stored.view.clone(), read.view.clone()));
    if views.len() > READ_VIEWS_MAX {
        views.pop_first();
    }
    read
}

fn again<T: Serialize + DeserializeOwned>(stored: &T) -> T {
    let text = serde_json::to_string(stored).expect("it can be stored");
    serde_json::from_str(&text).expect("it can be read")
}

// As `src/server/holders.rs`.

/// Who is to hold the copies of what `node` owns, the nearest first, and since which view they are
/// that.
pub(crate) fn predecessors(view: &View, node: &NodeId) -> (u64, Vec<NodeId>) {
    let holders: Vec<NodeId> = view.predecessors(node).iter().map(|m| m.id.clone()).collect();
    let same = |run: &&ringkeep::membership::HoldingRun| {
        run.holders.len() == holders.len() && holders.iter().all(|h| run.holders.contains(h))
    };
    let run = view.holders_of(node).last().filter(same);
    (run.map_or(view.number, |run| run.since), holders)
}

pub(crate) fn runs(view: &View, owner: &NodeId) -> Vec<Run<NodeId>> {
    let runs = view.holders_of(owner).iter();
    runs.map(|run| Run { since: run.since, holders: run.holders.clone() }).collect()
}

pub(crate) fn caretaker<'a>(view: &'a View, owner: &NodeId) -> Option<&'a NodeId> {
    view.owner(owner)?; // else it is settled
    let holders = view.holders_of(owner).iter().rev().flat_map(|run| &run.holders);
    recovery::caretaker(owner, holders, |node| view.life_of(&node.name))
}

/// The runs of a lost owner that had not ended in view `since`.
pub(crate) fn runs_after(gone: &OwnerHolders, since: u64) -> Vec<Run<NodeId>> {
    let ends = gone.runs.iter().skip(1).map(|run| run.since).chain([gone.left]);
    let later = gone.runs.iter().zip(ends).filter(|(_, end)| *end > since);
    later.map(|(run, _)| Run { since: run.since, holders: run.holders.clone() }).collect()
}
