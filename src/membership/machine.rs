//! One node's part in the membership: what it is told, what it says.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
};

use super::{
    Beat, Body, Change, Config, Confirmation, Durable, JoinRefusal, Member, Message, NodeId, Peer,
    Time, View,
    ballot::Votes,
    detector::{Detector, Finding},
    holders::SyncFacts,
    instance::Instance,
    quorum::majority,
    requests::{Contacts, Requests},
    rounds::Schedule,
};

/// Every how many heartbeats the first ring member also tells the voters outside the ring.
const BEATS_PER_OUTSIDE_BEAT: u64 = 4;
/// Most confirmations, and most settled owners, in one heartbeat.
const FACTS_PER_BEAT_MAX: usize = 64;
/// Most peers whose last answer is remembered for limiting the rate.
const ANSWERED_MAX: usize = 1024;
/// Waiting for an answer to a farewell doubles so many times.
const FAREWELL_DOUBLINGS_MAX: u32 = 5;

/// What happened.
#[derive(Debug, Clone)]
pub enum Event {
    /// A message came over an authenticated connection.
    Received {
        /// Who sent it.
        from: Peer,
        /// What it says.
        message: Message,
    },
    /// [`Membership::deadline`] has come.
    Tick,
    /// This node is to leave the ring. The first view in which it is leaving says what it still has
    /// to hand over; see [`View::leaving`].
    Leave,
    /// This node, which is leaving, has handed over all that the ring counts on.
    HandedOver,
    /// A member's connection was reset and connecting again was refused. A hint: it shortens the
    /// wait before that member is suspected.
    PeerGone(NodeId),
    /// This node knows that `owner`'s predecessor in view `view` has the whole mirror.
    SyncConfirmed {
        /// Whose mirror.
        owner: NodeId,
        /// The view for which it was synced.
        view: u64,
    },
    /// All checkpoints of `owner`, which left the ring, have two copies elsewhere.
    OwnerSettled {
        /// Who left.
        owner: NodeId,
    },
}

/// What is to be done, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Send this to a peer. It may be lost, late or doubled.
    Send {
        /// To whom; drop the message if another life answers there.
        to: Peer,
        /// What.
        message: Message,
    },
    /// Send this to whoever listens at an address.
    Contact {
        /// Where.
        address: SocketAddr,
        /// What.
        message: Message,
    },
    /// Store this in place of what was stored before. It must be durable before any later output
    /// is acted on.
    Persist(Durable),
    /// This is the view now, and this node is in it.
    Install(Arc<View>),
    /// There is a newer view without this node. Its writers are to be fenced; it can come back as
    /// a new incarnation. Keep this machine beside the new one until [`Membership::is_finished`]:
    /// the ring may still count on its vote.
    Evicted {
        /// The newer view.
        view: Arc<View>,
    },
    /// The ring does not take this node in; the machine is finished.
    JoinRefused {
        /// Why.
        reason: JoinRefusal,
    },
    /// The node asked to leave and is out, and the ring knows it; the machine is finished.
    Left,
}

/// Why a stored state cannot be gone on from. The node must join as a new incarnation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResumeError {
    /// The stored view or votes contradict themselves.
    #[error("the stored membership state is damaged; remove it to join as a new incarnation")]
    Incoherent,
    /// The node is neither member nor voter of its stored view.
    #[error("{me} has no part in the stored view {view}; join as a new incarnation")]
    NoPart {
        /// The stored identity.
        me: NodeId,
        /// The stored view's number.
        view: u64,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Has no view yet.
    Joining,
    /// In the ring, or a witness.
    Member,
    /// Evicted, but still a voter: answers, and leaves the initiative to the ring.
    Outside,
    /// Has no part in its newest view. It may be the only one that knows that view: until a majority
    /// of the voters has it, the decision would be lost with this node.
    Departing,
    /// Has no part in anything any more.
    Finished,
}

/// What a node knows and does while it is on its way out.
#[derive(Debug, Default)]
struct Farewell {
    /// The voters that showed to have the view without this node, or a later one.
    known: BTreeSet<NodeId>,
    attempts: u32,
    /// When it tells the others again.
    at: Time,
}

/// One node's membership state machine. See the [module](super) for what it does; the shell calls
/// [`Membership::handle`] with what happened and does what comes out.
#[derive(Debug)]
pub struct Membership {
    pub(super) config: Config,
    pub(super) me: Member,
    pub(super) cluster: u64,
    pub(super) phase: Phase,
    pub(super) view: Option<Arc<View>>,
    /// The decision on the view after the installed one.
    pub(super) instance: Option<Instance>,
    pub(super) schedule: Schedule,
    pub(super) detector: Detector,
    pub(super) facts: SyncFacts,
    pub(super) requests: Requests,
    pub(super) contacts: Contacts,
    /// This node wants to be out of the ring.
    pub(super) leaving: bool,
    /// Nothing that this node has is counted on any more.
    pub(super) handed_over: bool,
    farewell: Farewell,
    /// When the neighbours hear from this node next.
    beat_at: Time,
    beats: u64,
    /// When each peer was last answered with a view, or asked for one.
    answered: BTreeMap<NodeId, Time>,
    /// Nothing was told to the shell yet.
    fresh: bool,
}

impl Membership {
    fn new(config: Config, me: Member, contacts: Contacts, now: Time) -> Self {
        Self {
            detector: Detector::new(config, me.id.clone()),
            config,
            me,
            cluster: 0,
            phase: Phase::Joining,
            view: None,
            instance: None,
            schedule: Schedule::default(),
            facts: SyncFacts::default(),
            requests: Requests::default(),
            contacts,
            leaving: false,
            handed_over: false,
            farewell: Farewell::default(),
            beat_at: now,
            beats: 0,
            answered: BTreeMap::new(),
            fresh: true,
        }
    }

    /// The first member of a new cluster, whose number must not be zero: a ring of one, view 1.
    pub fn found(config: Config, me: Member, cluster: u64, now: Time) -> Self {
        let me = Member { witness: false, ..me };
        let view = Arc::new(View::first(cluster.max(1), me.clone()));
        let mut machine = Self::new(config, me, Contacts::new(Vec::new(), now), now);
        machine.enter(view, now);
        machine
    }

    /// A node that wants to join through any of `contacts`. `me` must be an incarnation that was
    /// never used before.
    pub fn join(config: Config, me: Member, contacts: Vec<SocketAddr>, now: Time) -> Self {
        Self::new(config, me, Contacts::new(contacts, now), now)
    }

    /// Joins this cluster only; another one refuses.
    pub fn expect_cluster(mut self, cluster: u64) -> Self {
        if self.phase == Phase::Joining {
            self.cluster = cluster;
        }
        self
    }

    /// Goes on from what [`Output::Persist`] stored last, as the same incarnation. Also one that
    /// was leaving stays after all.
    pub fn resume(config: Config, durable: Durable, now: Time) -> Result<Self, ResumeError> {
        let Durable { me, view, votes } = durable;
        let voted = votes.cast.vote.as_ref().map(|vote| &vote.value);
        let accepted = votes.cast.accepted.as_ref().map(|(_, value)| value);
        let mut cast = voted.into_iter().chain(accepted);
        if !view.is_coherent() || !cast.all(|change| view.allows(change).is_ok()) {
            return Err(ResumeError::Incoherent);
        }
        if view.member(&me.id).is_none() {
            return Err(ResumeError::NoPart { me: me.id, view: view.number });
        }
        let mut machine = Self::new(config, me, Contacts::new(Vec::new(), now), now);
        machine.enter(view.clone(), now);
        machine.instance = Some(Instance::new(machine.me.id.clone(), view, votes));
        machine.take_up_votes(now);
        Ok(machine)
    }

    /// Tells what happened at `now`; appends what is to be done to `out`.
    pub fn handle(&mut self, now: Time, event: Event, out: &mut Vec<Output>) {
        if self.phase == Phase::Finished {
            return;
        }
        if std::mem::take(&mut self.fresh) {
            self.persist(out);
            self.announce(out);
        }
        match event {
            Event::Received { from, message } => self.received(now, from, message, out),
            Event::Tick => {}
            Event::Leave => self.leave(now, out),
            Event::HandedOver => {
                self.handed_over = true;
                self.requests.depart_at = Some(now);
            }
            Event::PeerGone(node) => self.detector.gone(&node),
            Event::SyncConfirmed { owner, view: number } => {
                if let Some(view) = &self.view {
                    self.facts.confirm(view, &owner, number);
                }
            }
            Event::OwnerSettled { owner } => {
                if let Some(view) = &self.view {
                    self.facts.settle(view, &owner);
                }
            }
        }
        match self.phase {
            Phase::Joining => self.contact(now, out),
            Phase::Member => {
                self.beat(now, out);
                self.ask_to_depart(now, out);
                self.drive(now, out);
            }
            Phase::Outside => self.drive(now, out),
            Phase::Departing => self.say_farewell(now, out),
            Phase::Finished => {}
        }
    }

    /// When [`Event::Tick`] is wanted next, at once if that is past; to be asked again after each
    /// event.
    pub fn deadline(&self) -> Option<Time> {
        match self.phase {
            _ if self.fresh => Some(Time(0)),
            Phase::Joining => Some(self.contacts.at),
            Phase::Member => {
                let alone = self.view.as_ref().is_some_and(|view| view.voters.len() == 1);
                let beat = (!alone).then_some(self.beat_at);
                let timers = [beat, self.detector.deadline(), self.requests.depart_at];
                timers.into_iter().chain(self.schedule.deadlines()).flatten().min()
            }
            Phase::Outside => self.schedule.deadlines().into_iter().flatten().min(),
            Phase::Departing => Some(self.farewell.at),
            Phase::Finished => None,
        }
    }

    /// The installed view, if there is one. After an eviction, the newest one known.
    pub fn view(&self) -> Option<&Arc<View>> {
        self.view.as_ref()
    }

    /// Who this is.
    pub fn me(&self) -> &Member {
        &self.me
    }

    /// Whom this node, or somebody that it believes, does not hear.
    pub fn suspects(&self) -> impl Iterator<Item = &NodeId> {
        self.detector.suspects()
    }

    /// What the failure detector found since the last call, for the log. To be asked after each
    /// event; most often it is nothing.
    pub fn findings(&mut self) -> Vec<Finding> {
        self.detector.findings()
    }

    /// Whether all checkpoints of an owner that left are known to have two copies elsewhere. A view
    /// that still names its holders says so only when the next one is made.
    pub fn is_settled(&self, owner: &NodeId) -> bool {
        self.facts.settled().any(|settled| settled == owner)
    }

    /// Whether this node is in its installed view.
    pub fn is_member(&self) -> bool {
        self.phase == Phase::Member
    }

    /// Whether nothing will ever come out any more: the machine and its stored state may go.
    pub fn is_finished(&self) -> bool {
        self.phase == Phase::Finished
    }

    fn received(&mut self, now: Time, from: Peer, message: Message, out: &mut Vec<Output>) {
        let Message { cluster, view: number, to, body } = message;
        if from.id == self.me.id {
            return;
        }
        if to.is_some_and(|to| to != self.me.id) {
            // Meant for an earlier life: somebody did not hear for long what became of the ring.
            let newer = self.view.clone().filter(|view| view.number > number && number > 0);
            if let Some(view) = newer.filter(|view| view.cluster == cluster)
                && self.may_answer(&from.id, now)
            {
                self.send(&from, Body::Install(view), out);
            }
            return;
        }
        let body = match body {
            Body::Install(view) => return self.learn(now, view, out),
            Body::Decided(change) if cluster == self.cluster => {
                let after = |view: &Arc<View>| view.number + 1 == number;
                let next = self.view.as_ref().filter(|view| after(view)).map(|v| v.next(&change));
                if let Some(Ok(next)) = next {
                    return self.install(now, Arc::new(next), out);
                }
                // Of another view than ours: what follows shows who is behind.
                Body::Heartbeat(Beat::default())
            }
            Body::JoinRefused(reason) => return self.refused(reason, out),
            body => body,
        };
        let Some(view) = self.view.clone() else { return };
        if self.phase == Phase::Departing && number >= view.number && view.is_voter(&from.id) {
            self.farewell.known.insert(from.id.clone());
        }
        let is_join = matches!(body, Body::Join { .. });
        if cluster != view.cluster && !(is_join && cluster == 0) {
            if let Body::Join { member, .. } = &body {
                let reason = JoinRefusal::WrongCluster { existing: view.cluster, joiner: cluster };
                self.send(&member.into(), Body::JoinRefused(reason), out);
            }
            return;
        }
        self.detector.heard(&from.id, now);
        if number > view.number && self.may_answer(&from.id, now) {
            // Whoever hears an older view answers with the newest.
            self.send(&from, Body::Heartbeat(Beat::default()), out);
        }
        if number < view.number && self.may_answer(&from.id, now) {
            // Whoever has the view before makes this one of it.
            let one_behind = number + 1 == view.number && number > 0;
            self.send(
                &from,
                match one_behind {
                    true => Body::Decided(Arc::new(view.change.clone())),
                    false => Body::Install(view.clone()),
                },
                out,
            );
        }
        match body {
            _ if self.phase == Phase::Departing => {}
            Body::Join { member, forwarded } => self.asked_to_join(now, member, forwarded, out),
            Body::Leave { member, step, forwarded } => {
                self.asked_to_depart(now, &from, member, step, forwarded, out);
            }
            body if number == view.number => match body {
                Body::Heartbeat(beat) => self.heard_beat(now, &view, &from, &beat),
                body => self.ballot_message(now, &from, &body, out),
            },
            _ => {}
        }
    }

    fn heard_beat(&mut self, now: Time, view: &View, from: &Peer, beat: &Beat) {
        self.detector.report(view, &from.id, beat, now);
        for Confirmation { owner, view: number } in
            beat.confirmations.iter().take(FACTS_PER_BEAT_MAX)
        {
            self.facts.confirm(view, owner, *number);
        }
        for owner in beat.settled.iter().take(FACTS_PER_BEAT_MAX) {
            self.facts.settle(view, owner);
        }
    }

    /// Somebody says that `view` was decided.
    fn learn(&mut self, now: Time, view: Arc<View>, out: &mut Vec<Output>) {
        let ours = self.cluster == 0 || self.cluster == view.cluster;
        let follows = self.view.as_ref().is_none_or(|mine| {
            view.number > mine.number && (view.number > mine.number + 1 || mine.precedes(&view))
        });
        if !ours || !follows || !view.is_coherent() {
            return;
        }
        // A joiner may have been taken in and out again before it heard of either.
        let known = view.newest_life(&self.me.id.name) == Some(&self.me.id);
        if self.phase == Phase::Joining && !known {
            return self.learn_contacts(now, &view, out);
        }
        self.install(now, view, out);
    }

    /// Makes a decided view this node's own.
    pub(super) fn install(&mut self, now: Time, view: Arc<View>, out: &mut Vec<Output>) {
        let before = self.phase;
        self.enter(view.clone(), now);
        self.persist(out);
        match (before, self.phase) {
            (Phase::Outside | Phase::Departing, _) => {}
            // See `say_farewell`.
            _ if self.leaving && !view.admits(&self.me.id) => {
                self.phase = Phase::Departing;
                self.farewell.at = now; // somebody waits for that
                self.say_farewell(now, out);
            }
            _ => self.announce(out),
        }
    }

    fn announce(&self, out: &mut Vec<Output>) {
        let Some(view) = self.view.clone() else { return };
        out.push(match self.phase {
            Phase::Member => Output::Install(view),
            _ => Output::Evicted { view },
        });
    }

    fn enter(&mut self, view: Arc<View>, now: Time) {
        let me = &self.me.id;
        self.phase = match self.phase {
            Phase::Joining | Phase::Member if view.admits(me) => Phase::Member,
            _ if view.is_voter(me) => Phase::Outside,
            _ => Phase::Departing,
        };
        self.farewell = Farewell { at: now + self.config.retry_after, ..Farewell::default() };
        self.cluster = view.cluster;
        let former = self.instance.take();
        let vote = former.as_ref().and_then(|instance| instance.votes().cast.vote.as_ref());
        let proposers = vote.filter(|vote| *vote.value == view.change).map(|v| &v.proposers);
        let proposers: Vec<NodeId> = proposers.into_iter().flatten().cloned().collect();
        self.instance = Some(Instance::new(me.clone(), view.clone(), Votes::default()));
        self.schedule = Schedule::default();
        self.detector.watch(&view, &proposers, now);
        self.facts.prune(&view);
        self.requests.prune(&view, now);
        self.view = Some(view);
    }

    /// A decided change: installs what it makes, and tells everybody concerned.
    pub(super) fn decided(&mut self, now: Time, change: &Arc<Change>, out: &mut Vec<Output>) {
        let Some(before) = self.view.clone() else { return };
        let Ok(next) = before.next(change).map(Arc::new) else { return };
        self.install(now, next.clone(), out);
        for member in before.everybody() {
            self.send(&member.into(), Body::Decided(change.clone()), out);
        }
        for joiner in next.everybody().filter(|m| change.lets_in(m)) {
            self.send(&joiner.into(), Body::Install(next.clone()), out);
        }
    }

    /// Sees to it that a majority of the voters has the view in which this node has no part.
    fn say_farewell(&mut self, now: Time, out: &mut Vec<Output>) {
        let Some(view) = self.view.clone() else { return };
        let me = &self.me.id;
        let known = self.farewell.known.len() + usize::from(view.is_voter(me));
        if known >= majority(view.voters.len()) {
            self.phase = Phase::Finished;
            if self.leaving {
                out.push(Output::Left);
            }
            return;
        }
        if self.farewell.at > now {
            return;
        }
        let waits =
            self.config.retry_after * (1 << self.farewell.attempts.min(FAREWELL_DOUBLINGS_MAX));
        (self.farewell.at, self.farewell.attempts) = (now + waits, self.farewell.attempts + 1);
        let change = Arc::new(view.change.clone());
        let known = |voter: &Member| voter.id == *me || self.farewell.known.contains(&voter.id);
        for voter in view.voters.iter().filter(|voter| !known(voter)) {
            let to = Peer::from(voter);
            self.send(&to, Body::Decided(change.clone()), out);
            // Whoever has the view answers what is older.
            let (to_id, body) = (Some(to.id.clone()), Body::Heartbeat(Beat::default()));
            let message = Message { view: view.number - 1, ..self.message(to_id, body) };
            out.push(Output::Send { to, message });
        }
    }

    /// Tells the neighbours, and when somebody is newly suspected everybody, that this node lives.
    fn beat(&mut self, now: Time, out: &mut Vec<Output>) {
        let Some(view) = self.view.clone() else { return };
        let to_all = self.detector.poll(now);
        if !to_all && self.beat_at > now {
            return;
        }
        let mut to: Vec<&Member> = Vec::new();
        if to_all {
            to.extend(view.everybody());
        } else {
            to.extend(view.neighbours(&self.me.id));
            let first = view.ring.first().is_some_and(|m| m.id == self.me.id);
            if first && self.beats.is_multiple_of(BEATS_PER_OUTSIDE_BEAT) {
                to.extend(&view.voters[view.ring.len()..]);
            }
        }
        if self.beat_at <= now {
            self.beats += 1;
            self.beat_at = now + self.config.heartbeat_interval;
        }
        let confirmation =
            |(owner, number): (&NodeId, u64)| Confirmation { owner: owner.clone(), view: number };
        let useful = self.facts.useful(&view);
        let beat = Beat {
            counter: now.0,
            suspects: self.detector.own(),
            confirmations: useful.map(confirmation).take(FACTS_PER_BEAT_MAX).collect(),
            settled: self.facts.settled().take(FACTS_PER_BEAT_MAX).cloned().collect(),
        };
        for member in to {
            self.send(&member.into(), Body::Heartbeat(beat.clone()), out);
        }
    }

    pub(super) fn persist(&self, out: &mut Vec<Output>) {
        if let (Some(view), Some(instance)) = (self.view.clone(), &self.instance) {
            let (me, votes) = (self.me.clone(), instance.votes().clone());
            out.push(Output::Persist(Durable { me, view, votes }));
        }
    }

    /// Appends a message; none to this node itself.
    pub(super) fn send(&self, to: &Peer, body: Body, out: &mut Vec<Output>) {
        if to.id != self.me.id {
            let message = self.message(Some(to.id.clone()), body);
            out.push(Output::Send { to: to.clone(), message });
        }
    }

    pub(super) fn message(&self, to: Option<NodeId>, body: Body) -> Message {
        Message { cluster: self.cluster, view: self.number(), to, body }
    }

    pub(super) fn number(&self) -> u64 {
        self.view.as_ref().map_or(0, |view| view.number)
    }

    /// At most one answer per peer and heartbeat interval.
    pub(super) fn may_answer(&mut self, peer: &NodeId, now: Time) -> bool {
        let interval = self.config.heartbeat_interval;
        let recent = |at: &Time| now < *at + interval;
        if self.answered.get(peer).is_some_and(recent) {
            return false;
        }
        if self.answered.len() >= ANSWERED_MAX {
            self.answered.retain(|_, at| recent(at));
        }
        if self.answered.len() < ANSWERED_MAX {
            self.answered.insert(peer.clone(), now);
            return true;
        }
        false
    }
}
