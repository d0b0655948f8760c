//! The real membership machine of one node, when the others say what they like.
//!
//! Views that it installs are coherent, their numbers grow, and one follows from the one before where
//! that one was known. It votes for one value per view number, follows no older ballot, and says
//! nothing that rests on a vote before that vote is to be stored (V1, V2, V5). What it stores it can
//! go on from. What it says can be read. It does not want to be called again at once for ever.
#![no_main]

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use ringkeep::{
    Name,
    membership::{
        Beat, Body, Change, Config, Confirmation, Departure, Durable, Event, JoinRefusal, Member,
        Membership, Message, NodeId, Output, Peer, Refusal, ResumeError, Time, View,
        ballot::{Ballot, Promise, Vote},
    },
    server::peers::MESSAGE_BYTES_MAX,
};
use ringkeep_fuzz::{Number, member};

/// Most outputs of one event, in rings as small as these.
const OUTPUTS_MAX: usize = 200;
/// So often in a row it may want to be called at once.
const AT_ONCE_MAX: usize = 30;

#[derive(Debug, Arbitrary)]
struct Input {
    start: Start,
    steps: Vec<Step>,
}

#[derive(Debug, Arbitrary)]
enum Start {
    Member { others: u8, witness: bool },
    Founder,
    Joiner,
}

#[derive(Debug, Arbitrary)]
enum Step {
    Wait(u16),
    Deadline,
    Hear {
        from: u8,
        life: u8,
        cluster: Option<Number>,
        view: Number,
        to: Option<(u8, Number)>,
        body: Box<Said>,
    },
    Leave,
    HandedOver,
    Gone(u8),
    SyncConfirmed(u8, Number),
    Settled(u8, u8),
    Restart,
}

#[derive(Debug, Arbitrary)]
enum Said {
    Propose(Wish),
    Ack,
    Nack(Option<Round>),
    Decided(Wish),
    Install { wishes: Vec<Wish>, number: Option<Number>, spoil: Option<Spoil> },
    Prepare(Round),
    Promise(Round, Option<(Wish, u8)>, Option<(Round, Wish)>),
    Accept(Round, Wish),
    Accepted(Round),
    Join(Who, bool),
    JoinRefused(u8, Number),
    Leave { who: u8, step: u8, forwarded: bool },
    Heartbeat { suspects: u8, confirmations: Vec<(u8, Number)>, settled: u8 },
}

#[derive(Debug, Arbitrary)]
enum Spoil {
    Cluster(u64),
    Voter(u8),
    NoRing,
    Mirrors(u8),
    Twice(u8),
}

#[derive(Debug, Arbitrary)]
struct Round {
    round: Number,
    rank: u8,
}

#[derive(Debug, Arbitrary)]
struct Wish {
    removed: u8,
    leaving: u8,
    staying: u8,
    left: u8,
    joined: Vec<Who>,
    synced: Vec<(u8, Number)>,
    settled: u8,
    unsorted: bool,
}

#[derive(Debug, Arbitrary)]
struct Who {
    which: u8,
    life: Number,
    witness: bool,
    zone: Option<u8>,
    mirrors: u8,
}

impl Who {
    fn member(&self) -> Member {
        let zone = self.zone.map(|zone| member(zone, 1).id.name);
        let (witness, mirrors) = (self.witness, self.mirrors);
        Member { witness, zone, mirrors, ..member(self.which, self.life.beside(2)) }
    }
}

impl Round {
    fn ballot(&self) -> Ballot {
        let round = self.round.beside(1).min(u32::MAX.into()) as u32;
        Ballot { round, rank: self.rank.into() }
    }
}

struct World {
    config: Config,
    now: Time,
    machine: Membership,
    stored: Option<Durable>,
    /// What the other nodes go by.
    view: Arc<View>,
}

fuzz_target!(|input: Input| {
    let (config, now) = (Config::default(), Time(1));
    let mut view = View::first(1, member(1, 1));
    let others = if let Start::Member { others, .. } = input.start { others % 6 } else { 2 };
    for which in (2..).take(others.into()) {
        let change = Change { joined: vec![member(which, 1)], ..Change::default() };
        view = view.next(&change).expect("it fits");
    }
    let machine = match input.start {
        Start::Member { witness, .. } => {
            let me = Member { witness, ..member(0, 1) };
            let change = Change { joined: vec![me.clone()], ..Change::default() };
            view = view.next(&change).expect("it fits");
            let (view, votes) = (Arc::new(view.clone()), Default::default());
            Membership::resume(config, Durable { me, view, votes }, now).expect("coherent")
        }
        Start::Founder => {
            view = View::first(1, member(0, 1));
            Membership::found(config, member(0, 1), 1, now)
        }
        Start::Joiner => {
            let contact = view.ring[0].address;
            Membership::join(config, member(0, 1), vec![contact], now)
        }
    };
    let mut world = World { config, now, machine, stored: None, view: Arc::new(view) };
    for step in &input.steps {
        world.step(step);
    }
});

impl World {
    fn step(&mut self, step: &Step) {
        let event = match step {
            Step::Wait(millis) => {
                self.now = self.now + Duration::from_millis((*millis).into());
                Event::Tick
            }
            Step::Deadline => return self.reach_deadline(),
            Step::Hear { from, life, cluster, view, to, body } => {
                let from = Peer::from(&self.known(*from, *life));
                let number = self.view.number;
                let message = Message {
                    cluster: cluster.map_or(self.view.cluster, |it| it.beside(self.view.cluster)),
                    view: view.beside(number),
                    to: to.map(|(which, life)| member(which, life.beside(1)).id),
                    body: self.body(body),
                };
                let encoded = postcard::to_stdvec(&message).expect("a message");
                assert_eq!(postcard::from_bytes::<Message>(&encoded).as_ref(), Ok(&message));
                Event::Received { from, message }
            }
            Step::Leave => Event::Leave,
            Step::HandedOver => Event::HandedOver,
            Step::Gone(which) => Event::PeerGone(self.known(*which, 0).id),
            Step::SyncConfirmed(which, view) => Event::SyncConfirmed {
                owner: self.known(*which, 0).id,
                view: view.beside(self.view.number),
            },
            Step::Settled(which, life) => {
                Event::OwnerSettled { owner: self.known(*which, *life).id }
            }
            Step::Restart => {
                let Some(stored) = self.stored.clone() else { return };
                match Membership::resume(self.config, stored, self.now) {
                    Ok(machine) => self.machine = machine,
                    Err(ResumeError::NoPart { .. }) => return,
                    Err(error) => panic!("{error}: {:?}", self.stored),
                }
                Event::Tick
            }
        };
        self.tell(event);
        for _ in 0..AT_ONCE_MAX {
            if self.machine.deadline().is_none_or(|at| at > self.now) {
                return;
            }
            self.tell(Event::Tick);
        }
        panic!("it wants to be called at once for ever: {:?}", self.machine);
    }

    fn reach_deadline(&mut self) {
        if let Some(at) = self.machine.deadline() {
            self.now = self.now.max(at);
            self.tell(Event::Tick);
        }
    }

    fn tell(&mut self, event: Event) {
        let mut out = Vec::new();
        self.machine.handle(self.now, event, &mut out);
        assert!(out.len() <= OUTPUTS_MAX, "{} outputs", out.len());
        for output in out {
            self.check(output);
        }
        let _ = self.machine.findings();
    }

    fn check(&mut self, output: Output) {
        match output {
            Output::Persist(durable) => self.store(durable),
            Output::Install(view) | Output::Evicted { view } => {
                assert!(view.is_coherent(), "{view:?}");
                let stored = self.stored.as_ref().expect("a view is stored before it is told");
                assert!(stored.view.number >= view.number);
                if view.number >= self.view.number && view.cluster == self.view.cluster {
                    self.view = view;
                }
            }
            Output::Send { to, message } => {
                self.heard(&to, &message);
                readable(&message);
            }
            Output::Contact { message, .. } => readable(&message),
            Output::JoinRefused { .. } | Output::Left => {}
        }
    }

    /// V5, and that nothing is taken back.
    fn store(&mut self, durable: Durable) {
        assert!(durable.view.is_coherent(), "{:?}", durable.view);
        let resumed = Membership::resume(self.config, durable.clone(), self.now);
        assert!(!matches!(resumed, Err(ResumeError::Incoherent)), "{durable:?}");
        let Some(before) = self.stored.replace(durable) else { return };
        let after = self.stored.as_ref().expect("just stored");
        assert!(after.view.number >= before.view.number);
        if after.view.number > before.view.number {
            let next = after.view.number == before.view.number + 1;
            assert!(!next || before.view.precedes(&after.view));
            return;
        }
        assert_eq!(after.view, before.view, "two views of one number");
        let (then, now) = (&before.votes, &after.votes);
        if let Some(vote) = &then.cast.vote {
            let still = now.cast.vote.as_ref().expect("V5: a vote was forgotten");
            assert_eq!(still.value, vote.value, "V1: another vote");
            assert!(still.proposers.is_superset(&vote.proposers));
        }
        assert!(now.promised >= then.promised);
        let ballot = |promise: &Promise| promise.accepted.as_ref().map(|(ballot, _)| *ballot);
        assert!(ballot(&now.cast) >= ballot(&then.cast));
    }

    /// What was said rests on what is stored.
    fn heard(&self, to: &Peer, message: &Message) {
        let stored = || self.stored.as_ref().expect("V5: nothing is stored");
        if message.view != self.stored.as_ref().map_or(0, |stored| stored.view.number) {
            return;
        }
        match &message.body {
            Body::Ack => {
                let vote = stored().votes.cast.vote.as_ref().expect("V5: an unstored vote");
                assert!(vote.proposers.contains(&to.id));
            }
            Body::Propose(change) => {
                let vote = stored().votes.cast.vote.as_ref().expect("V1: an unstored vote");
                assert_eq!(vote.value, *change);
            }
            Body::Promise(ballot, promise) => {
                assert!(stored().votes.promised >= Some(*ballot));
                assert_eq!(stored().votes.cast, *promise);
            }
            Body::Accepted(ballot) => {
                let accepted = stored().votes.cast.accepted.as_ref();
                assert!(accepted.is_some_and(|(accepted, _)| accepted >= ballot));
            }
            _ => {}
        }
    }

    fn known(&self, which: u8, life: u8) -> Member {
        let name = Name::new(ringkeep_fuzz::NODES[usize::from(which) % 8]).expect("a name");
        let known = self.view.member_named(&name).filter(|_| life < 128);
        known.cloned().unwrap_or_else(|| member(which, u64::from(life % 4) + 1))
    }

    fn ids(&self, mask: u8) -> Vec<NodeId> {
        (0..8).filter(|which| mask >> which & 1 != 0).map(|which| self.known(which, 0).id).collect()
    }

    fn change(&self, wish: &Wish) -> Arc<Change> {
        let mut change = Change {
            removed: self.ids(wish.removed),
            leaving: self.ids(wish.leaving),
            staying: self.ids(wish.staying),
            left: self.ids(wish.left),
            joined: wish.joined.iter().take(4).map(Who::member).collect(),
            synced: self.confirmations(&wish.synced),
            settled: self.ids(wish.settled),
        };
        if !wish.unsorted {
            change.joined.sort();
            change.joined.dedup_by(|a, b| a.id.name == b.id.name);
            change.synced.sort();
            change.synced.dedup_by(|a, b| a.owner == b.owner);
        }
        Arc::new(change)
    }

    fn confirmations(&self, list: &[(u8, Number)]) -> Vec<Confirmation> {
        let confirmation = |(owner, view): &(u8, Number)| Confirmation {
            owner: self.known(*owner, 0).id,
            view: view.beside(self.view.number),
        };
        list.iter().take(8).map(confirmation).collect()
    }

    fn body(&self, said: &Said) -> Body {
        match said {
            Said::Propose(wish) => Body::Propose(self.change(wish)),
            Said::Ack => Body::Ack,
            Said::Nack(None) => Body::Nack(Refusal::OtherVote),
            Said::Nack(Some(round)) => Body::Nack(Refusal::Promised(round.ballot())),
            Said::Decided(wish) => Body::Decided(self.change(wish)),
            Said::Install { wishes, number, spoil } => {
                let mut view = View::clone(&self.view);
                for wish in wishes.iter().take(4) {
                    view = view.next(&self.change(wish)).unwrap_or(view);
                }
                view.number = number.map_or(view.number, |number| number.beside(view.number));
                match spoil {
                    None => {}
                    Some(Spoil::Cluster(cluster)) => view.cluster = *cluster,
                    Some(Spoil::Voter(at)) => {
                        view.voters.remove(usize::from(*at) % view.voters.len());
                    }
                    Some(Spoil::NoRing) => view.ring.clear(),
                    Some(Spoil::Mirrors(mirrors)) => view.ring[0].mirrors = *mirrors,
                    Some(Spoil::Twice(at)) => {
                        view.ring.push(view.ring[usize::from(*at) % view.ring.len()].clone());
                    }
                }
                Body::Install(Arc::new(view))
            }
            Said::Prepare(round) => Body::Prepare(round.ballot()),
            Said::Promise(round, vote, accepted) => {
                let vote = vote.as_ref().map(|(wish, proposers)| {
                    let proposers: BTreeSet<NodeId> = self.ids(*proposers).into_iter().collect();
                    Vote { value: self.change(wish), proposers }
                });
                let accepted =
                    accepted.as_ref().map(|(round, wish)| (round.ballot(), self.change(wish)));
                Body::Promise(round.ballot(), Promise { vote, accepted })
            }
            Said::Accept(round, wish) => Body::Accept(round.ballot(), self.change(wish)),
            Said::Accepted(round) => Body::Accepted(round.ballot()),
            Said::Join(who, forwarded) => {
                Body::Join { member: who.member(), forwarded: *forwarded }
            }
            Said::JoinRefused(which, life) => {
                let existing = member(*which, life.beside(1)).id;
                Body::JoinRefused(JoinRefusal::Outlived { existing })
            }
            Said::Leave { who, step, forwarded } => {
                let step = match step % 3 {
                    0 => Departure::Begin,
                    1 => Departure::Finish,
                    _ => Departure::Cancel,
                };
                Body::Leave { member: self.known(*who, 0).id, step, forwarded: *forwarded }
            }
            Said::Heartbeat { suspects, confirmations, settled } => Body::Heartbeat(Beat {
                counter: self.now.0,
                suspects: self.ids(*suspects),
                confirmations: self.confirmations(confirmations),
                settled: self.ids(*settled),
            }),
        }
    }
}

fn readable(message: &Message) {
    let encoded = postcard::to_stdvec(message).expect("a message");
    assert!(encoded.len() <= MESSAGE_BYTES_MAX);
    assert_eq!(postcard::from_bytes::<Message>(&encoded).as_ref(), Ok(message));
}
