//! Joining and leaving: the one who asks, and the one member that collects what is asked.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use super::{
    Body, Change, Departure, JoinRefusal, MEMBERS_MAX, Member, Membership, NodeId, OWNERS_MAX,
    Output, Peer, Time, View, detector::Detector, machine::Phase,
};
use crate::name::Name;

/// Most joiners, and most leavers, that wait at one member.
const WAITING_MAX: usize = 256;
/// Most addresses that a joiner takes from a view.
const CONTACTS_MAX: usize = 64;

/// Where a joiner asks.
#[derive(Debug)]
pub(super) struct Contacts {
    given: Vec<SocketAddr>,
    /// From the newest view that refers to its ring.
    learnt: Vec<SocketAddr>,
    learnt_from: u64,
    asked: usize,
    /// When it asks next.
    pub(super) at: Time,
}

impl Contacts {
    pub(super) fn new(given: Vec<SocketAddr>, now: Time) -> Self {
        Self { given, learnt: Vec::new(), learnt_from: 0, asked: 0, at: now }
    }
}

#[derive(Debug)]
struct Waiting {
    member: Member,
    since: Time,
    until: Time,
}

/// What other nodes asked this one to propose.
#[derive(Debug, Default)]
pub(super) struct Requests {
    joins: BTreeMap<Name, Waiting>,
    departures: BTreeMap<NodeId, (Departure, Time)>,
    /// When this node, which wants to leave or to stay after all, asks again.
    pub(super) depart_at: Option<Time>,
}

impl Requests {
    /// The joiners that can be taken in now, and since when they wait.
    pub(super) fn joiners<'a>(
        &'a self,
        view: &'a View,
        detector: &'a Detector,
    ) -> impl Iterator<Item = (&'a Member, Time)> {
        let waiting = self.joins.values().map(|waiting| (&waiting.member, waiting.since));
        waiting.filter(move |(joiner, _)| namesake(view, detector, joiner).is_none())
    }

    /// Adds the departures that can be decided now.
    pub(super) fn departures(&self, view: &View, change: &mut Change) {
        for (id, (step, _)) in &self.departures {
            let list = match (step, view.contains(id), view.is_leaving(id)) {
                (Departure::Begin, true, false) => &mut change.leaving,
                (Departure::Begin, false, _) | (Departure::Finish, _, true) => &mut change.left,
                (Departure::Cancel, _, true) => &mut change.staying,
                _ => continue,
            };
            list.push(id.clone());
        }
    }

    /// Forgets what is done, pointless or not asked for any more.
    pub(super) fn prune(&mut self, view: &View, now: Time) {
        self.joins.retain(|name, waiting| {
            let newest = view.newest_life(name);
            let older = |id: &NodeId| id.incarnation < waiting.member.id.incarnation;
            waiting.until > now && newest.is_none_or(older)
        });
        self.departures.retain(|id, (_, until)| *until > now && view.admits(id));
    }
}

/// A live member that has the joiner's name and is another node.
fn namesake<'a>(view: &'a View, detector: &Detector, joiner: &Member) -> Option<&'a Member> {
    let existing = view.member_named(&joiner.id.name)?;
    let live = view.admits(&existing.id) && !detector.is_suspect(&existing.id);
    (live && existing.address != joiner.address).then_some(existing)
}

impl Membership {
    // The one who asks.

    /// Asks the next contact to be taken in.
    pub(super) fn contact(&mut self, now: Time, out: &mut Vec<Output>) {
        if self.contacts.at > now {
            return;
        }
        self.contacts.at = now + self.config.retry_after;
        let known = self.contacts.learnt.len() + self.contacts.given.len();
        let turn = self.contacts.asked.checked_rem(known);
        self.contacts.asked = self.contacts.asked.wrapping_add(1);
        let mut all = self.contacts.learnt.iter().chain(&self.contacts.given);
        if let Some(&address) = turn.and_then(|turn| all.nth(turn)) {
            let body = Body::Join { member: self.me.clone(), forwarded: false };
            out.push(Output::Contact { address, message: self.message(None, body) });
        }
    }

    /// A joiner hears of a view that it is not in: its members are the ones to ask.
    pub(super) fn learn_contacts(&mut self, now: Time, view: &View, out: &mut Vec<Output>) {
        let newest = view.newest_life(&self.me.id.name);
        let later = newest.filter(|id| id.incarnation > self.me.id.incarnation);
        if let Some(existing) = later.cloned() {
            return self.refused(JoinRefusal::Outlived { existing }, out);
        }
        if view.number > self.contacts.learnt_from {
            let first = self.contacts.learnt_from == 0;
            self.contacts.learnt_from = view.number;
            self.contacts.learnt = view.ring.iter().take(CONTACTS_MAX).map(|m| m.address).collect();
            self.contacts.asked = 0;
            if !first {
                self.contacts.at = now;
            }
        }
    }

    pub(super) fn refused(&mut self, reason: JoinRefusal, out: &mut Vec<Output>) {
        if self.phase == Phase::Joining {
            self.phase = Phase::Finished;
            out.push(Output::JoinRefused { reason });
        }
    }

    pub(super) fn leave(&mut self, now: Time, out: &mut Vec<Output>) {
        let alone = self.view.as_ref().is_none_or(|view| {
            view.ring.iter().all(|m| m.id == self.me.id) && view.contains(&self.me.id)
        });
        if self.phase != Phase::Member || alone {
            self.phase = Phase::Finished;
            out.push(Output::Left);
        } else if !self.leaving {
            self.leaving = true;
            self.requests.depart_at = Some(now);
        }
    }

    /// The step that this node waits for, if any.
    fn departure(&self) -> Option<Departure> {
        let view = self.view.as_ref()?;
        match (self.leaving, view.is_leaving(&self.me.id)) {
            (true, false) => Some(Departure::Begin),
            (true, true) => self.handed_over.then_some(Departure::Finish),
            (false, true) => Some(Departure::Cancel),
            (false, false) => None,
        }
    }

    /// Repeats what this node wants until it is so.
    pub(super) fn ask_to_depart(&mut self, now: Time, out: &mut Vec<Output>) {
        let Some(step) = self.departure() else {
            self.requests.depart_at = None;
            return;
        };
        if self.requests.depart_at.is_some_and(|at| at > now) {
            return;
        }
        self.requests.depart_at = Some(now + self.config.retry_after);
        let me = self.me.id.clone();
        match self.collector(&me) {
            Some(to) => self.send(&to, Body::Leave { member: me, step, forwarded: false }, out),
            None => self.await_departure(now, me, step),
        }
    }

    // The one who collects.

    /// Who proposes joins and leaves, so that these do not collide: the first live ring member,
    /// other than `without`, and one that stays if there is one.
    fn collector(&self, without: &NodeId) -> Option<Peer> {
        let view = self.view.as_ref()?;
        let live = |m: &&Member| m.id != *without && !self.detector.is_suspect(&m.id);
        let mut staying = view.ring.iter().filter(|m| !view.is_leaving(&m.id));
        staying.find(live).or_else(|| view.ring.iter().find(live)).map(Peer::from)
    }

    /// To whom a request is passed on, if to anybody.
    fn collector_elsewhere(&self, forwarded: bool, without: &NodeId) -> Option<Peer> {
        let elsewhere = self.collector(without).filter(|to| to.id != self.me.id);
        elsewhere.filter(|_| !forwarded)
    }

    pub(super) fn asked_to_join(
        &mut self,
        now: Time,
        member: Member,
        forwarded: bool,
        out: &mut Vec<Output>,
    ) {
        let Some(view) = self.view.clone().filter(|_| member.is_possible()) else { return };
        let joiner = Peer::from(&member);
        if view.admits(&member.id) {
            if self.may_answer(&member.id, now) {
                self.send(&joiner, Body::Install(view), out);
            }
            return;
        }
        let existing = view.newest_life(&member.id.name).cloned();
        if let Some(existing) = existing.filter(|e| e.incarnation >= member.id.incarnation) {
            if existing.incarnation > member.id.incarnation && self.phase == Phase::Member {
                let reason = JoinRefusal::Outlived { existing };
                self.send(&joiner, Body::JoinRefused(reason), out);
            }
            return;
        }
        if self.phase == Phase::Outside {
            // The ring should do that. If it does not for long, nobody of it may be left.
            let until = now + self.outside_patience() * 2;
            return self.await_join_until(now, until, member);
        }
        let without = if self.leaving { self.me.id.clone() } else { member.id.clone() };
        if let Some(to) = self.collector_elsewhere(forwarded, &without) {
            return self.send(&to, Body::Join { member, forwarded: true }, out);
        }
        let waiting = self.requests.joins.len();
        if view.voters.len() + waiting >= MEMBERS_MAX || view.holders.len() + waiting >= OWNERS_MAX
        {
            return self.send(&joiner, Body::JoinRefused(JoinRefusal::Full), out);
        }
        self.await_join(now, &view, member, out);
    }

    /// How long a voter outside the ring leaves it to the ring to take a joiner in.
    pub(super) fn outside_patience(&self) -> Duration {
        self.config.suspicion_after * 4
    }

    fn waits_since(&self, now: Time, member: &Member) -> Time {
        let known = self.requests.joins.get(&member.id.name);
        known.filter(|known| known.member == *member).map_or(now, |known| known.since)
    }

    fn await_join_until(&mut self, now: Time, until: Time, member: Member) {
        let known = self.requests.joins.get(&member.id.name);
        if known.is_none() && self.requests.joins.len() >= WAITING_MAX
            || known.is_some_and(|known| known.member.id.incarnation > member.id.incarnation)
        {
            return;
        }
        let since = self.waits_since(now, &member);
        self.requests.joins.insert(member.id.name.clone(), Waiting { member, since, until });
    }

    fn await_join(&mut self, now: Time, view: &View, member: Member, out: &mut Vec<Output>) {
        let since = self.waits_since(now, &member);
        // A namesake may have failed a moment ago: wait as long as it takes to notice.
        if let Some(existing) = namesake(view, &self.detector, &member)
            && now.since(since) > self.config.suspicion_after * 2
        {
            self.requests.joins.remove(&member.id.name);
            let reason =
                JoinRefusal::NameInUse { existing: existing.id.clone(), address: existing.address };
            return self.send(&Peer::from(&member), Body::JoinRefused(reason), out);
        }
        // Not longer than it takes to ask again: a joiner that vanished would be a voter lost.
        self.await_join_until(now, now + self.config.retry_after * 3, member);
    }

    pub(super) fn asked_to_depart(
        &mut self,
        now: Time,
        from: &Peer,
        member: NodeId,
        step: Departure,
        forwarded: bool,
        out: &mut Vec<Output>,
    ) {
        let Some(view) = self.view.as_ref().filter(|_| self.phase == Phase::Member) else { return };
        let authentic = member == from.id || (forwarded && view.member(&from.id).is_some());
        if !authentic || !view.admits(&member) {
            return;
        }
        match self.collector_elsewhere(forwarded, &member) {
            Some(to) => self.send(&to, Body::Leave { member, step, forwarded: true }, out),
            None => self.await_departure(now, member, step),
        }
    }

    fn await_departure(&mut self, now: Time, member: NodeId, step: Departure) {
        let departures = &mut self.requests.departures;
        if departures.len() < WAITING_MAX || departures.contains_key(&member) {
            departures.insert(member, (step, now + self.config.suspicion_after * 4));
        }
    }
}
