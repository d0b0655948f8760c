//! The membership as a model: real [`Instance`]s and real views, over a network in which every
//! message, once sent, may arrive at any time later, any number of times, or never.
//!
//! Suspicion is free: any member may propose to remove any other at any time. So partitions, slow
//! nodes and wrong detectors are all in it without being named. So is a node that crashes for good:
//! to the others it is one that never hears anything any more.
//!
//! What is left out changes nothing for anybody else, each with the reason where it is done:
//!
//! * answers are heard together, at the moment when something comes of them (`answers`);
//! * a message that can have no effect any more is forgotten ([`Ring::matters`]);
//! * that the last view was decided is told to nobody ([`Ring::is_told`]).
//!
//! [`Instance`]: ringkeep::membership::instance::Instance

use std::{
    collections::{BTreeSet, HashSet},
    sync::Arc,
};

use ringkeep::{
    membership::{
        Body, Change, Member, NodeId, View,
        ballot::{Ballot, Votes},
        quorum::{fast_quorum, majority},
    },
    name::Name,
};
use stateright::{Model, Property};

use super::{
    Memo, Numbered,
    node::{Fact, Input, Local, Outcome, Voter},
    progress::Together,
};

/// What is looked at, and what is not.
#[derive(Clone)]
pub(crate) struct Limits {
    /// How many views may follow the first.
    pub(crate) views: u64,
    /// How many of these come about undisturbed, by one proposal and no slow ballot, so that the
    /// later ones can be looked at more closely.
    pub(crate) calm: u64,
    /// Proposals per view number.
    pub(crate) proposals: u8,
    /// Slow ballots per view number.
    pub(crate) leads: u8,
    /// Nodes that crash for good: random walks seldom leave somebody alone by themselves.
    pub(crate) crashes: u32,
    /// Processes that come back with what they stored, killed between two steps or amid one.
    pub(crate) restarts: u8,
    /// Processes that come back, under the same incarnation, with nothing: rule V5 forbids it.
    pub(crate) forgetful: u8,
    /// Whether somebody who overhears the acknowledgements may declare: rule V3 forbids it.
    pub(crate) anyone_declares: bool,
    /// Whether members may ask to leave, and to stay.
    pub(crate) departures: bool,
    /// Whether it is checked in each state that the next view can still be decided.
    pub(crate) progress: bool,
    /// Whether each message is heard by itself and stays for ever: what is left out otherwise.
    pub(crate) plain: bool,
}

pub(crate) const SMALL: Limits = Limits {
    views: 1,
    calm: 0,
    proposals: 2,
    leads: 1,
    crashes: 0,
    restarts: 0,
    forgetful: 0,
    anyone_declares: false,
    departures: false,
    progress: false,
    plain: false,
};

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct State {
    pub(super) nodes: Vec<u32>,
    facts: Vec<u32>,
    /// The change of each view number, from the first on.
    decided: Vec<u32>,
    spent: Vec<[u8; 2]>,
    crashed: u16,
    restarts: u8,
    forgotten: u8,
    split: bool,
    contradicted: bool,
}

/// What each node has voted, in which view, and what was decided by then.
pub(crate) type Reached = (Vec<Option<(u64, Votes)>>, Vec<Change>);

#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Action {
    Step {
        node: u8,
        input: u32,
    },
    /// A step amid which the process is killed; it comes back with what it had stored by then.
    Cut {
        node: u8,
        input: u32,
        at: u8,
    },
    Crash(u8),
}

pub(crate) struct Ring {
    first: Arc<View>,
    joiners: Vec<Member>,
    limits: Limits,
    ids: Vec<NodeId>,
    pub(super) locals: Numbered<Local>,
    pub(super) facts: Numbered<Fact>,
    pub(super) inputs: Numbered<Input>,
    pub(super) changes: Numbered<Change>,
    pub(super) outcomes: Memo<(u32, u32), Option<Arc<Outcome>>>,
    pub(super) awaits_votes: Memo<u32, bool>,
    pub(super) together: Memo<Vec<u32>, Together>,
    wishes: Memo<u32, Arc<Vec<u32>>>,
    heard: Memo<u32, u32>,
    hearable: Memo<(u32, Vec<u32>), Arc<Vec<u32>>>,
}

pub(super) fn member(name: &str, incarnation: u64) -> Member {
    let id = NodeId { name: Name::new(name).unwrap(), incarnation };
    let witness = name.starts_with('w');
    Member { id, address: ([127, 0, 0, 1], 7000).into(), witness, zone: None, mirrors: 1 }
}

impl Ring {
    /// The members named, and those who may join; a name that begins with w is a witness. A joiner
    /// with the name of a member is that node's next life.
    pub(crate) fn new(members: &str, joiners: &str, limits: Limits) -> Self {
        let life = |c: char| if members.contains(c) { 2 } else { 1 };
        let joiners: Vec<_> = joiners.chars().map(|c| member(&c.to_string(), life(c))).collect();
        let members: Vec<_> = members.chars().map(|c| member(&c.to_string(), 1)).collect();
        let mut view = View::first(1, members[0].clone());
        for joiner in &members[1..] {
            let joined = vec![joiner.clone()];
            view = view.next(&Change { joined, ..Change::default() }).unwrap();
        }
        let ids = members.iter().chain(&joiners).map(|m| m.id.clone()).collect();
        Self {
            first: Arc::new(view),
            joiners,
            limits,
            ids,
            locals: Numbered::default(),
            facts: Numbered::default(),
            inputs: Numbered::default(),
            changes: Numbered::default(),
            outcomes: Memo::default(),
            awaits_votes: Memo::default(),
            together: Memo::default(),
            wishes: Memo::default(),
            heard: Memo::default(),
            hearable: Memo::default(),
        }
    }

    /// What a path did, in words.
    pub(crate) fn describe(&self, action: &Action) -> String {
        let (node, input, how) = match action {
            Action::Crash(node) => return format!("{} crashes", self.ids[*node as usize]),
            Action::Step { node, input } => (node, input, ""),
            Action::Cut { node, input, .. } => (node, input, ", and is killed amid that"),
        };
        let node = &self.ids[*node as usize];
        let heard = |fact: &u32| {
            let Fact { from, view, body, .. } = &*self.facts.get(*fact);
            match from {
                Some(from) => format!("{from} in view {view}: {body:?}"),
                None => format!("of view {view}: {body:?}"),
            }
        };
        match &*self.inputs.get(*input) {
            Input::Receive(fact) => format!("{node} hears {}{how}", heard(fact)),
            Input::Collect(facts) => {
                let all: Vec<String> = facts.iter().map(heard).collect();
                format!("{node} hears {}{how}", all.join(" and "))
            }
            input => format!("{node}: {input:?}{how}"),
        }
    }

    fn last_number(&self) -> u64 {
        self.first.number + self.limits.views
    }

    /// Whether anybody hears that this view was decided. Of the last one nobody does: nothing is
    /// decided after it, so whoever installs it only falls silent in the view before, and so does
    /// one that hears nothing more. (Where it is asked who can go on, it does matter who knows.)
    pub(super) fn is_told(&self, number: u64) -> bool {
        number < self.last_number() || self.limits.progress
    }

    pub(super) fn index(&self, id: &NodeId) -> usize {
        self.ids.iter().position(|it| it == id).expect("a node of the model")
    }

    /// The input that is this message.
    pub(super) fn hears(&self, fact: u32) -> u32 {
        self.heard.get(fact, |&fact| self.inputs.number(Input::Receive(fact)))
    }

    /// How many views after the first a node's is.
    fn depth(&self, voter: &Voter) -> usize {
        (voter.view().number - self.first.number) as usize
    }

    /// Proposals and slow ballots that there may be on the view after one.
    fn spendable(&self, depth: usize) -> [u8; 2] {
        match depth < self.limits.calm as usize {
            true => [1, 0],
            false => [self.limits.proposals, self.limits.leads],
        }
    }

    /// What somebody may want to be decided, as inputs.
    fn wishes(&self, local: u32) -> Arc<Vec<u32>> {
        self.wishes.get(local, |&local| {
            let local = self.locals.get(local);
            let Local::In(voter) = &*local else { return Arc::default() };
            let (view, me) = (voter.view(), voter.me());
            let others = || view.ring.iter().map(|m| m.id.clone()).filter(|id| id != me);
            let inside = view.admits(me);
            let one = |id: &NodeId| vec![id.clone()];
            let mut all: Vec<Change> = Vec::new();
            for id in others().filter(|_| inside) {
                all.push(Change { removed: one(&id), ..Change::default() });
            }
            for joiner in &self.joiners {
                all.push(Change { joined: vec![joiner.clone()], ..Change::default() });
            }
            if self.limits.departures && inside {
                for id in view.ring.iter().map(|m| &m.id) {
                    all.push(Change { leaving: one(id), ..Change::default() });
                    all.push(Change { staying: one(id), ..Change::default() });
                    all.push(Change { left: one(id), ..Change::default() });
                }
            }
            let possible = all.into_iter().filter(|change| view.next(change).is_ok());
            let input = |change| self.inputs.number(Input::Propose(Arc::new(change)));
            Arc::new(possible.map(input).collect())
        })
    }

    /// What a node may hear next: each question, and each piece of news, by itself; answers
    /// together.
    ///
    /// Until there are enough of them, answers only wait to be counted: they say nothing, are not
    /// stored, and stay sent, so hearing them later, all at once, is the same. Which votes and which
    /// second votes there are makes no difference once there are enough: all that were sent are
    /// heard. Of promises it does: each smallest majority is tried.
    fn hearable(&self, local: u32, sent: Vec<u32>) -> Arc<Vec<u32>> {
        self.hearable.get((local, sent), |(local, sent)| {
            let receive = |fact: &u32| self.inputs.number(Input::Receive(*fact));
            if self.limits.plain {
                return Arc::new(sent.iter().map(receive).collect());
            }
            let local = self.locals.get(*local);
            let view = match &*local {
                Local::In(voter) => Some(voter.view()),
                _ => None,
            };
            let (mut inputs, mut votes) = (Vec::new(), Vec::new());
            let mut accepted: Vec<(Ballot, Vec<u32>)> = Vec::new();
            let mut promises: Vec<(Ballot, Vec<(NodeId, u32)>)> = Vec::new();
            for &number in sent {
                let Fact { from, view: of, body, .. } = &*self.facts.get(number);
                let now = view.is_some_and(|view| view.number == *of);
                match (body, from) {
                    (Body::Ack, _) if now => votes.push(number),
                    (Body::Accepted(ballot), _) if now => group(&mut accepted, *ballot, number),
                    (Body::Promise(ballot, _), Some(from)) if now => {
                        group(&mut promises, *ballot, (from.clone(), number));
                    }
                    (Body::Ack | Body::Accepted(_) | Body::Promise(..), _) => {}
                    _ => inputs.push(receive(&number)),
                }
            }
            let mut together: Vec<Vec<u32>> = accepted.into_iter().map(|(_, all)| all).collect();
            together.push(votes);
            let others = view.map_or(0, |view| majority(view.voters.len()) - 1);
            promises.iter().for_each(|(_, given)| together.extend(choices(given, others)));
            let collect = |facts| self.inputs.number(Input::Collect(facts));
            inputs.extend(together.into_iter().filter(|all| !all.is_empty()).map(collect));
            Arc::new(inputs)
        })
    }

    /// Whether something new comes of a step.
    fn is_news(&self, state: &State, node: usize, outcome: &Outcome) -> bool {
        outcome.local != state.nodes[node]
            || outcome.decided.is_some()
            || outcome.sent.iter().any(|&fact| self.is_new(state, fact))
    }

    fn is_new(&self, state: &State, fact: u32) -> bool {
        state.facts.binary_search(&fact).is_err() && self.matters_in(state, fact)
    }

    fn matters_in(&self, state: &State, fact: u32) -> bool {
        let local = state.nodes[self.facts.get(fact).to];
        self.limits.plain || self.matters(fact, local, |answer| !self.is_new(state, answer))
    }

    /// Everything that may have been voted and decided at one time.
    pub(crate) fn reachable(&self) -> HashSet<Reached> {
        let voted = |&local: &u32| match &*self.locals.get(local) {
            Local::In(voter) => Some((voter.view().number, voter.instance.votes().clone())),
            _ => None,
        };
        let (mut todo, mut seen, mut all) = (self.init_states(), HashSet::new(), HashSet::new());
        while let Some(state) = todo.pop() {
            let decided = state.decided.iter().map(|&change| (*self.changes.get(change)).clone());
            all.insert((state.nodes.iter().map(voted).collect(), decided.collect()));
            let mut actions = Vec::new();
            self.actions(&state, &mut actions);
            for next in actions.into_iter().filter_map(|action| self.next_state(&state, action)) {
                if seen.insert(next.clone()) {
                    todo.push(next);
                }
            }
        }
        println!("{} states, {} of them different in what was voted", seen.len(), all.len());
        all
    }

    /// Who may have overheard a fast quorum of votes for which change: everybody else who is up.
    fn overheard(&self, state: &State) -> Vec<(usize, Arc<Change>)> {
        let facts: Vec<Arc<Fact>> = state.facts.iter().map(|&fact| self.facts.get(fact)).collect();
        let mut found = Vec::new();
        for proposal in &facts {
            let Body::Propose(change) = &proposal.body else { continue };
            let acknowledges = |fact: &&Arc<Fact>| {
                let to_it = proposal.from.as_ref() == Some(&self.ids[fact.to]);
                to_it && fact.view == proposal.view && fact.body == Body::Ack
            };
            let votes = 1 + facts.iter().filter(acknowledges).count();
            for node in 0..state.nodes.len() {
                if let Local::In(voter) = &*self.locals.get(state.nodes[node])
                    && voter.view().number == proposal.view
                    && votes >= fast_quorum(voter.view().voters.len())
                {
                    found.push((node, change.clone()));
                }
            }
        }
        found
    }

    /// A state with what a step of a node came to.
    fn after(&self, mut next: State, node: usize, outcome: &Outcome) -> State {
        next.nodes[node] = outcome.local;
        for &fact in &outcome.sent {
            if let Err(at) = next.facts.binary_search(&fact) {
                next.facts.insert(at, fact);
            }
        }
        next.contradicted |= outcome.broken;
        if let Some((number, change)) = outcome.decided {
            let at = (number - self.first.number - 1) as usize;
            match next.decided.get(at) {
                Some(&decided) => next.split |= decided != change,
                None => next.decided.push(change),
            }
        }
        let mine = |fact: u32| self.facts.get(fact).to == node || outcome.sent.contains(&fact);
        let (touched, rest): (Vec<u32>, Vec<u32>) =
            next.facts.iter().partition(|&&fact| mine(fact));
        let alive = touched.into_iter().filter(|&fact| self.matters_in(&next, fact));
        let mut facts: Vec<u32> = rest.into_iter().chain(alive).collect();
        facts.sort_unstable();
        next.facts = facts;
        next
    }
}

/// Every `count` of the messages, no two from one sender.
fn choices(given: &[(NodeId, u32)], count: usize) -> Vec<Vec<u32>> {
    let sets = (0..1_u32 << given.len()).filter(|set| set.count_ones() as usize == count);
    let chosen = sets.filter_map(|set| {
        let inside = (0..given.len()).filter(|at| set >> at & 1 == 1).map(|at| &given[at]);
        let senders: BTreeSet<&NodeId> = inside.clone().map(|(from, _)| from).collect();
        (senders.len() == count).then(|| inside.map(|(_, fact)| *fact).collect())
    });
    chosen.collect()
}

fn group<K: PartialEq, V>(groups: &mut Vec<(K, Vec<V>)>, key: K, value: V) {
    match groups.iter_mut().find(|(other, _)| *other == key) {
        Some((_, values)) => values.push(value),
        None => groups.push((key, vec![value])),
    }
}

impl Model for Ring {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let local = |id: &NodeId| match self.first.member(id) {
            Some(_) => Local::enter(id.clone(), self.first.clone()),
            None => Local::Joining(id.clone()),
        };
        vec![State {
            nodes: self.ids.iter().map(|id| self.locals.number(local(id))).collect(),
            facts: Vec::new(),
            decided: Vec::new(),
            spent: vec![[0; 2]; self.limits.views as usize + 1],
            crashed: 0,
            restarts: 0,
            forgotten: 0,
            split: false,
            contradicted: false,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.split || state.contradicted {
            return;
        }
        let [lead, restart, forget] = [Input::TakeTheLead, Input::Restart, Input::Forget]
            .map(|input| self.inputs.number(input));
        let may_restart = state.restarts < self.limits.restarts;
        let mut step = |node: usize, input: u32| {
            let Some(outcome) = self.outcome(state.nodes[node], input) else { return };
            let node_is = node as u8;
            if self.is_news(state, node, &outcome) {
                actions.push(Action::Step { node: node_is, input });
            }
            for at in (0..outcome.cuts.len()).filter(|_| may_restart) {
                actions.push(Action::Cut { node: node_is, input, at: at as u8 });
            }
        };
        let overheard = match self.limits.anyone_declares {
            true => self.overheard(state),
            false => Vec::new(),
        };
        for (node, change) in overheard {
            step(node, self.inputs.number(Input::Overhear(change)));
        }
        let up = |node: &usize| state.crashed >> node & 1 == 0;
        let mut sent = vec![Vec::new(); state.nodes.len()];
        state.facts.iter().for_each(|&fact| sent[self.facts.get(fact).to].push(fact));
        for node in (0..state.nodes.len()).filter(up) {
            let sent = std::mem::take(&mut sent[node]);
            let hearable = self.hearable(state.nodes[node], sent);
            hearable.iter().for_each(|&input| step(node, input));
            let local = self.locals.get(state.nodes[node]);
            let Local::In(voter) = &*local else { continue };
            if may_restart {
                step(node, restart);
            }
            if state.forgotten < self.limits.forgetful {
                step(node, forget);
            }
            let votes = voter.view().is_voter(voter.me());
            if !votes || voter.view().number >= self.last_number() {
                continue;
            }
            let depth = self.depth(voter);
            let ([proposals, leads], most) = (state.spent[depth], self.spendable(depth));
            if proposals < most[0] {
                self.wishes(state.nodes[node]).iter().for_each(|&wish| step(node, wish));
            }
            if leads < most[1] && proposals > 0 {
                step(node, lead);
            }
        }
        for node in (0..state.nodes.len()).filter(up) {
            if state.crashed.count_ones() < self.limits.crashes {
                actions.push(Action::Crash(node as u8));
            }
        }
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        let mut next = state.clone();
        let (node, input, cut) = match action {
            Action::Crash(node) => {
                next.crashed |= 1 << node;
                return Some(next);
            }
            Action::Step { node, input } => (node as usize, input, None),
            Action::Cut { node, input, at } => (node as usize, input, Some(at as usize)),
        };
        let outcome = self.outcome(state.nodes[node], input)?;
        if let Local::In(voter) = &*self.locals.get(state.nodes[node]) {
            let depth = self.depth(voter);
            match &*self.inputs.get(input) {
                Input::Propose(_) => next.spent[depth][0] += 1,
                Input::TakeTheLead => next.spent[depth][1] += 1,
                Input::Restart => next.restarts += 1,
                Input::Forget => next.forgotten += 1,
                Input::Receive(_) | Input::Collect(_) | Input::Overhear(_) => {}
            }
        }
        Some(match cut {
            None => self.after(next, node, &outcome),
            Some(at) => {
                next.restarts += 1;
                self.after(next, node, &outcome.cuts[at])
            }
        })
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut all = vec![
            Property::<Self>::always("I4 one value per view number", |_, state: &State| {
                !state.split
            }),
            Property::always("I8 nobody votes after amnesia", |_, state: &State| {
                !state.contradicted
            }),
        ];
        if self.limits.progress {
            all.push(Property::always("the next view can still be decided", Ring::can_go_on));
        }
        all
    }
}
