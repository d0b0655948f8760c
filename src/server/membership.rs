//! Drives the membership state machine: gives it time, messages and a place to keep its votes, and
//! does what it says.

use std::{fmt::Display, fs, net::SocketAddr, path::Path, rc::Rc, sync::Arc, time::Duration};

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use super::{
    data_plane::Command,
    life::Life,
    node::Node,
    rpc::PeerMessage,
    state_file::{BootId, OpenStateError, StateFile},
};
use crate::{
    handover::Condition,
    membership::{
        Config as Timeouts, Durable, Event, JoinRefusal, MIRRORS_MAX, Member, Membership, NodeId,
        Output, Peer, Time, View,
    },
};

/// The votes of this life of the node, in its directory.
pub(super) const STATE_FILE: &str = "node.state";
/// Those of the life before.
pub(super) const FORMER_STATE_FILE: &str = "former.state";

/// What a node must not forget while the machine is up.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Remembered {
    /// It asks to be taken in, and voted for nothing yet. The ring may count on it before it hears
    /// so: killed in between it must be the same one when it starts again, or a voter is lost.
    Joining {
        /// The life that asks.
        me: Member,
        /// Whom it asks.
        contacts: Vec<SocketAddr>,
        /// The only cluster that it joins; 0: any.
        cluster: u64,
    },
    /// It has a view and a vote.
    Voting(Durable),
}

impl Remembered {
    pub(super) fn me(&self) -> &Member {
        match self {
            Self::Joining { me, .. } => me,
            Self::Voting(durable) => &durable.me,
        }
    }

    /// The life that has a vote.
    pub(super) fn voter(&self) -> Option<&NodeId> {
        match self {
            Self::Joining { .. } => None,
            Self::Voting(durable) => Some(&durable.me.id),
        }
    }
}

/// This life of the node, and the life before while that one still votes.
pub(super) struct Shell {
    life: Life,
    /// A life that was evicted stays a voter until the ring has replaced it.
    former: Option<Life>,
    contacts: Vec<SocketAddr>,
}

impl Shell {
    pub(super) fn new(
        machine: Membership,
        file: StateFile,
        former: Option<(Membership, StateFile)>,
        contacts: Vec<SocketAddr>,
    ) -> Self {
        let former = former.map(|(machine, file)| Life::new(machine, file));
        Self { life: Life::new(machine, file), former, contacts }
    }

    fn deadline(&self) -> Option<Time> {
        let former = self.former.as_ref().and_then(Life::deadline);
        self.life.deadline().into_iter().chain(former).min()
    }

    /// Tells the former life of an event, if it is one for it. Who speaks, and what is to be done.
    pub(super) fn tell_former(&mut self, now: Time, event: &Event) -> Option<(Peer, Vec<Output>)> {
        let for_both = matches!(event, Event::Received { .. } | Event::Tick);
        let former = self.former.as_mut().filter(|_| for_both)?;
        let mut out = Vec::new();
        let me = Peer::from(former.machine.me());
        if let Err(error) = former.handle(now, event.clone(), &mut out) {
            tracing::error!(%error, "the former life's vote cannot be kept; it votes no more");
            self.former = None;
        }
        Some((me, out))
    }

    pub(super) fn suspects(&self) -> Vec<crate::name::Name> {
        self.life.machine.suspects().map(|id| id.name.clone()).collect()
    }

    /// See [`Membership::is_member`].
    pub(super) fn is_member(&self) -> bool {
        self.life.machine.is_member()
    }

    /// See [`Membership::is_settled`].
    pub(super) fn is_settled(&self, owner: &NodeId) -> bool {
        self.life.machine.is_settled(owner)
    }
}

/// The life before this one, if it was evicted and the ring may still count on its vote: also a
/// process that was killed does not forget that one (rule V5).
pub(super) fn former_life(
    dir: &Path,
    boot: BootId,
    timeouts: Timeouts,
    me: &NodeId,
) -> Result<Option<(Membership, StateFile)>, OpenStateError> {
    let path = dir.join(FORMER_STATE_FILE);
    let file = StateFile::open(&path, boot)?;
    let former = match file.load() {
        Some(Remembered::Voting(durable)) if durable.me.id != *me => {
            Membership::resume(timeouts, durable, now()).ok()
        }
        _ => None,
    };
    if former.is_none() {
        let _ = fs::remove_file(path); // a file that stays is looked at again, no more
    }
    Ok(former.map(|machine| (machine, file)))
}

/// Nanoseconds of a clock that goes on when the process restarts.
pub(super) fn now() -> Time {
    let now = clock_gettime(ClockId::Boottime);
    Time(now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64)
}

/// A number that grows with every life of a node.
pub(super) fn new_incarnation() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(1, |t| t.as_micros() as u64)
}

impl Node {
    /// Gives the state machine its time until the server stops.
    pub(super) async fn run_membership(self: Rc<Self>) {
        let sleep = tokio::time::sleep(Duration::ZERO);
        tokio::pin!(sleep);
        loop {
            let deadline = self.membership.borrow().deadline();
            let wait = deadline.map_or(Duration::from_secs(1), |at| at.since(now()));
            // One timer: most messages leave the deadline where it is or bring it forward a little.
            sleep.as_mut().reset(tokio::time::Instant::now() + wait);
            // A changed view may have brought the deadline forward.
            tokio::select! {
                () = &mut sleep => {}
                () = self.membership_moved.notified() => {}
            }
            let (deadline, now) = (self.membership.borrow().deadline(), now());
            if let Some(at) = deadline.filter(|at| *at <= now) {
                if at != Time(0) {
                    self.ran_late(now.since(at), now);
                }
                self.membership_event(Event::Tick);
            }
        }
    }

    /// Something happened that the membership wants to know.
    pub(super) fn membership_event(self: &Rc<Self>, event: Event) {
        let (now, mut outputs) = (now(), Vec::new());
        let (former, kept, findings) = {
            let shell = &mut *self.membership.borrow_mut();
            let former = shell.tell_former(now, &event);
            let kept = shell.life.handle(now, event, &mut outputs);
            (former, kept, shell.life.machine.findings())
        };
        findings.iter().for_each(|finding| self.report(finding));
        if let Some((from, outputs)) = former {
            outputs.into_iter().for_each(|output| self.former_output(&from, output));
        }
        for output in outputs {
            self.output(output);
        }
        if let Err(error) = kept {
            // Voting on without a memory could split the ring (rule V5).
            self.stop_because(format!("the node's vote cannot be kept: {error}"));
        }
        self.membership.borrow_mut().former.take_if(|former| former.machine.is_finished());
        self.membership_moved.notify_one();
    }

    /// Nobody listens where a member should: its process is gone. Whoever it was dialed for, the
    /// view says who should have been there.
    pub(super) fn refused(self: &Rc<Self>, address: SocketAddr) {
        let view = self.view();
        let member = view.iter().flat_map(|view| &view.ring).find(|m| m.address == address);
        if let Some(member) = member {
            self.membership_event(Event::PeerGone(member.id.clone()));
        }
    }

    fn former_output(&self, from: &Peer, output: Output) {
        // It is out already; what else happens is the present life's business.
        if let Output::Send { to, message } = output {
            let from = from.clone();
            self.contact(to.address, &PeerMessage::Membership { from, message });
        }
    }

    fn output(self: &Rc<Self>, output: Output) {
        match output {
            Output::Send { to, message } => {
                // To whichever life answers there: the message names the one that it is for.
                let from = Peer::from(&*self.me.borrow());
                self.contact(to.address, &PeerMessage::Membership { from, message });
            }
            Output::Contact { address, message } => {
                let from = Peer::from(&*self.me.borrow());
                self.contact(address, &PeerMessage::Membership { from, message });
            }
            Output::Persist(_) => {} // done: see `Life::handle`
            Output::Install(view) => self.install(view),
            Output::Evicted { view } => self.evicted(&view),
            Output::JoinRefused { reason } => {
                tracing::error!(%reason, "the ring does not take this node in");
                self.next_start_is_later_than(&reason);
                self.stop_because(reason);
            }
            Output::Left => self.stop(),
        }
    }

    /// A life that was outlived is of no use to the next start.
    fn next_start_is_later_than(&self, reason: &JoinRefusal) {
        let JoinRefusal::Outlived { existing } = reason else { return };
        let incarnation = new_incarnation().max(existing.incarnation + 1);
        let me = member(&self.config, incarnation, self.me.borrow().address);
        let mut shell = self.membership.borrow_mut();
        let (contacts, cluster) = (shell.contacts.clone(), self.cluster.get());
        if let Err(error) = shell.life.file.store(&Remembered::Joining { me, contacts, cluster }) {
            tracing::error!(%error, "noting a new life");
        }
    }

    fn install(self: &Rc<Self>, view: Arc<View>) {
        let names: Vec<_> = view.ring.iter().map(|m| m.id.name.as_str()).collect();
        tracing::info!(view = view.number, ring = names.join(" → "), "view installed");
        let before = self.view.replace(Some(view.clone()));
        super::metrics::view_installed(view.number, view.ring.len());
        self.cluster.set(view.cluster);
        let named = |owner: &NodeId| view.owner(owner).is_some();
        self.rehomed.borrow_mut().retain(named);
        for gone in before.iter().flat_map(|before| view.gone_since(before)) {
            self.links.borrow_mut().remove(&gone);
            self.negotiation.borrow_mut().forget(&gone);
            let unlink = Command::Unlink { peer: gone };
            if let Err(stopped) = self.data_plane.send(unlink) {
                return self.stop_because(stopped);
            }
        }
        let me = self.id();
        if let Err(stopped) = self.data_plane.send(Command::View { me, view: Some(view) }) {
            return self.stop_because(stopped);
        }
        self.changed.notify_waiters();
        tokio::task::spawn_local(self.clone().after_view_change());
    }

    /// The ring went on without this life of the node: its writers are fenced, and it comes back
    /// as a new one.
    fn evicted(self: &Rc<Self>, view: &Arc<View>) {
        tracing::warn!(view = view.number, "this node was evicted; it joins again");
        super::metrics::evicted();
        self.view.replace(None);
        self.life.set(self.life.get() + 1);
        self.synced_views.borrow_mut().clear();
        self.links.borrow_mut().clear();
        // The next life is what the flags of this start say.
        let before = self.me.borrow().clone();
        if let Err(error) = self.lineage.borrow_mut().inherit(before.id.clone()) {
            // Only a recovery that needs this very node's copies is the worse for it.
            tracing::error!(%error, "noting a new life");
        }
        let incarnation = new_incarnation().max(before.id.incarnation + 1);
        let me = member(&self.config, incarnation, before.address);
        for member in view.everybody() {
            self.negotiation.borrow_mut().forget(&member.id);
            let unlink = Command::Unlink { peer: member.id.clone() };
            if let Err(stopped) = self.data_plane.send(unlink) {
                return self.stop_because(stopped);
            }
        }
        *self.me.borrow_mut() = me.clone();
        self.peers.set_me(Peer::from(&me));
        let none = Command::View { me: me.id.clone(), view: None };
        if let Err(stopped) = self.data_plane.send(none) {
            return self.stop_because(stopped);
        }
        self.fence_own(&before.id);
        let mut shell = self.membership.borrow_mut();
        let members = view.everybody().filter(|m| m.address != me.address).map(|m| m.address);
        let contacts: Vec<_> = members.chain(shell.contacts.iter().copied()).collect();
        let config = self.config.membership;
        let cluster = view.cluster;
        let joining = Remembered::Joining { me: me.clone(), contacts: contacts.clone(), cluster };
        let machine = Membership::join(config, me, contacts, now()).expect_cluster(cluster);
        match self.next_state_file(&joining) {
            Ok(next) => {
                let former = std::mem::replace(&mut shell.life, Life::new(machine, next));
                shell.former = Some(former);
            }
            Err(error) => {
                drop(shell);
                let why = format!("this node was evicted, and that cannot be noted: {error}");
                self.stop_because(why);
            }
        }
        self.changed.notify_waiters();
    }

    /// The former life's votes stay in a file of their own.
    fn next_state_file(&self, joining: &Remembered) -> std::io::Result<StateFile> {
        let dir = &self.config.dir;
        std::fs::rename(dir.join(STATE_FILE), dir.join(FORMER_STATE_FILE))?;
        let boot = BootId::current()?;
        let mut file =
            StateFile::open(&dir.join(STATE_FILE), boot).map_err(std::io::Error::other)?;
        file.store(joining).map_err(std::io::Error::other)?;
        Ok(file)
    }

    /// Everything that this node owned belongs to whoever recovers it. The copies stay until that
    /// one has two of its own.
    fn fence_own(self: &Rc<Self>, life: &NodeId) {
        let names: Vec<_> = self.owned.borrow().keys().cloned().collect();
        for name in names {
            if let Err(failure) = self.set_ended(&name, life) {
                // A restart would take the copy for the present one: better no server than two
                // owners.
                let why = format!("this node was evicted, and that cannot be noted: {failure}");
                return self.stop_because(why);
            }
            let node = self.clone();
            tokio::task::spawn_local(async move {
                let condition = Condition::Fenced;
                let disown = |reply| Command::Disown { name, condition, reply };
                if let Err(stopped) = node.data_plane.ask(disown).await {
                    node.stop_because(stopped);
                }
            });
        }
    }

    /// Ends the server as a failure. The first reason is the one that is told.
    pub(super) fn stop_because(&self, why: impl Display) {
        self.failure.borrow_mut().get_or_insert_with(|| why.to_string());
        self.stop();
    }

    /// Ends the server.
    pub(super) fn stop(&self) {
        self.stopping.set(true);
        self.stop_wanted.notify_one();
    }
}

/// This node as a member, as its flags say.
pub(super) fn member(config: &super::Config, incarnation: u64, address: SocketAddr) -> Member {
    let id = NodeId { name: config.name.clone(), incarnation };
    let super::Config { witness, mirrors, ref zone, .. } = *config;
    Member { id, address, witness, zone: zone.clone(), mirrors: mirrors.clamp(1, MIRRORS_MAX) }
}
