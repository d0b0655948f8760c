//! The membership as a model: real [`Instance`]s and real views, over a network in which every
//! message, once sent, may arrive at any time later, any number of times, or never.
//!
//! Suspicion is free: any member may propose to remove any other at any time. So partitions, slow
//! nodes and wrong detectors are all in it without being named.

use std::sync::Arc;

use ringkeep::{
    membership::{
        Body, Change, Member, NodeId, View,
        ballot::Votes,
        instance::{Instance, Step},
        quorum::{fast_quorum, majority},
    },
    name::Name,
};
use stateright::{Model, Property};

use super::{Memo, Numbered};

/// What is looked at, and what is not.
#[derive(Clone)]
pub(crate) struct Limits {
    /// How many views may follow the first.
    pub(crate) views: u64,
    /// Proposals per view number.
    pub(crate) proposals: u8,
    /// Slow ballots per view number.
    pub(crate) leads: u8,
    /// Nodes that crash for good.
    pub(crate) crashes: u32,
    /// Processes that come back with what they stored.
    pub(crate) restarts: u8,
    /// Processes that come back, under the same incarnation, with nothing: rule V5 forbids it.
    pub(crate) forgetful: u8,
    /// Whether somebody who overhears the acknowledgements may declare: rule V3 forbids it.
    pub(crate) anyone_declares: bool,
    /// Whether members may ask to leave, and to stay.
    pub(crate) departures: bool,
    /// Whether it is checked in each state that the next view can still be decided.
    pub(crate) progress: bool,
}

pub(crate) const SMALL: Limits = Limits {
    views: 1,
    proposals: 2,
    leads: 1,
    crashes: 1,
    restarts: 0,
    forgetful: 0,
    anyone_declares: false,
    departures: false,
    progress: false,
};

/// One node.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
enum Local {
    Joining(NodeId),
    /// With a view, or former voter that still counts.
    In(Instance),
    Out,
}

/// A message that was sent once.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Fact {
    from: NodeId,
    to: NodeId,
    /// The sender's view.
    view: u64,
    body: Body,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
enum Input {
    Propose(Arc<Change>),
    TakeTheLead,
    Receive(u32),
    Restart,
    Forget,
    /// Declares what it did not propose.
    Overhear(Arc<Change>),
}

/// What one step of a node comes to.
struct Outcome {
    local: u32,
    sent: Vec<u32>,
    /// The view number that was decided, and the change.
    decided: Option<(u64, u32)>,
    /// The rule that was broken.
    broken: bool,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct State {
    nodes: Vec<u32>,
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

#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Action {
    Step { node: u8, input: u32 },
    Crash(u8),
}

pub(crate) struct Ring {
    first: Arc<View>,
    joiners: Vec<Member>,
    limits: Limits,
    names: Vec<Name>,
    locals: Numbered<Local>,
    facts: Numbered<Fact>,
    inputs: Numbered<Input>,
    changes: Numbered<Change>,
    outcomes: Memo<(u32, u32), Option<Arc<Outcome>>>,
    wishes: Memo<u32, Arc<Vec<u32>>>,
    decidable: Memo<(Vec<u32>, u16), bool>,
}

fn member(name: &str) -> Member {
    let id = NodeId { name: Name::new(name).unwrap(), incarnation: 1 };
    let witness = name.starts_with('w');
    Member { id, address: ([127, 0, 0, 1], 7000).into(), witness, zone: None, mirrors: 1 }
}

impl Ring {
    /// The members named, and those who may join; a name that begins with w is a witness.
    pub(crate) fn new(members: &str, joiners: &str, limits: Limits) -> Self {
        let each = |names: &str| -> Vec<Member> {
            names.chars().map(|c| member(&c.to_string())).collect()
        };
        let (members, joiners) = (each(members), each(joiners));
        let mut view = View::first(1, members[0].clone());
        for joiner in &members[1..] {
            let joined = vec![joiner.clone()];
            view = view.next(&Change { joined, ..Change::default() }).unwrap();
        }
        let names = members.iter().chain(&joiners).map(|m| m.id.name.clone()).collect();
        Self {
            first: Arc::new(view),
            joiners,
            limits,
            names,
            locals: Numbered::default(),
            facts: Numbered::default(),
            inputs: Numbered::default(),
            changes: Numbered::default(),
            outcomes: Memo::default(),
            wishes: Memo::default(),
            decidable: Memo::default(),
        }
    }

    /// What a path did, in words.
    pub(crate) fn describe(&self, action: &Action) -> String {
        match action {
            Action::Crash(node) => format!("{} crashes", self.names[*node as usize]),
            Action::Step { node, input } => {
                let node = &self.names[*node as usize];
                match &*self.inputs.get(*input) {
                    Input::Receive(fact) => {
                        let fact = self.facts.get(*fact);
                        format!("{node} hears {} in view {}: {:?}", fact.from, fact.view, fact.body)
                    }
                    input => format!("{node}: {input:?}"),
                }
            }
        }
    }

    fn last_number(&self) -> u64 {
        self.first.number + self.limits.views
    }

    fn index(&self, id: &NodeId) -> usize {
        self.names.iter().position(|name| *name == id.name).unwrap()
    }

    /// How many views after the first a node's is.
    fn depth(&self, instance: &Instance) -> usize {
        (instance.view().number - self.first.number) as usize
    }

    /// What somebody may want to be decided, as inputs.
    fn wishes(&self, local: u32) -> Arc<Vec<u32>> {
        self.wishes.get(local, |&local| {
            let local = self.locals.get(local);
            let Local::In(instance) = &*local else { return Arc::default() };
            let (view, me) = (instance.view(), self.me(instance));
            let others = || view.ring.iter().map(|m| m.id.clone()).filter(|id| *id != me);
            let inside = view.admits(&me);
            let one = |id: &NodeId| vec![id.clone()];
            let mut all: Vec<Change> = Vec::new();
            for id in others().filter(|_| inside) {
                all.push(Change { removed: one(&id), ..Change::default() });
            }
            for joiner in self.joiners.iter().filter(|j| view.newest_life(&j.id.name).is_none()) {
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

    fn me(&self, instance: &Instance) -> NodeId {
        instance.me().clone()
    }

    fn outcome(&self, local: u32, input: u32) -> Option<Arc<Outcome>> {
        self.outcomes.get((local, input), |&(local, input)| {
            let (before, input) = (self.locals.get(local), self.inputs.get(input));
            let mut after = (*before).clone();
            let mut steps = Vec::new();
            let mut forgot = false;
            match (&mut after, &*input) {
                (Local::In(instance), Input::Propose(change)) => {
                    instance.propose(change, &mut steps);
                }
                (Local::In(instance), Input::TakeTheLead) => {
                    instance.take_the_lead(None, &mut steps);
                }
                (Local::In(instance), Input::Restart) => {
                    let votes = instance.votes().clone();
                    *instance = Instance::new(self.me(instance), instance.view().clone(), votes);
                }
                (Local::In(instance), Input::Forget) => {
                    let me = self.me(instance);
                    *instance = Instance::new(me, instance.view().clone(), Votes::default());
                    forgot = true;
                }
                (Local::In(_), Input::Overhear(change)) => {
                    steps.push(Step::Decided(change.clone()));
                }
                (_, Input::Receive(fact)) => self.receive(&mut after, *fact, &mut steps),
                _ => return None,
            }
            let outcome = self.take(&before, after, steps, forgot);
            let idle = outcome.local == local && outcome.sent.is_empty();
            (!idle || outcome.decided.is_some()).then(|| Arc::new(outcome))
        })
    }

    /// What the machine around an instance does with a message.
    fn receive(&self, local: &mut Local, fact: u32, steps: &mut Vec<Step>) {
        let Fact { from, view: number, body, .. } = &*self.facts.get(fact);
        match (&mut *local, body) {
            (Local::Joining(me), Body::Install(view)) => {
                *local = self.enter(me.clone(), view.clone());
            }
            (Local::In(instance), Body::Decided(change)) => {
                if instance.view().number + 1 == *number
                    && let Ok(next) = instance.view().next(change)
                {
                    *local = self.enter(self.me(instance), Arc::new(next));
                }
            }
            (Local::In(instance), body) if instance.view().number == *number => {
                instance.receive(from, body, steps);
            }
            _ => {}
        }
    }

    fn enter(&self, me: NodeId, view: Arc<View>) -> Local {
        match view.member(&me) {
            Some(_) => Local::In(Instance::new(me, view, Votes::default())),
            None => Local::Out,
        }
    }

    fn take(&self, before: &Local, after: Local, steps: Vec<Step>, forgot: bool) -> Outcome {
        let mut outcome = Outcome { local: 0, sent: Vec::new(), decided: None, broken: false };
        let mut after = after;
        if let (Local::In(old), Local::In(new)) = (before, &after) {
            outcome.broken = !forgot && old.view() == new.view() && contradicts(old, new);
        }
        let Local::In(instance) = &after else {
            outcome.local = self.locals.number(after);
            return outcome;
        };
        let (me, view) = (self.me(instance), instance.view().clone());
        let send = |to: &NodeId, view: u64, body: Body| {
            self.facts.number(Fact { from: me.clone(), to: to.clone(), view, body })
        };
        for step in steps {
            match step {
                Step::Persist | Step::Send { body: Body::Nack(_), .. } => {}
                Step::Send { to, body } => outcome.sent.push(send(&to, view.number, body)),
                Step::Decided(change) => {
                    let next = Arc::new(view.next(&change).unwrap());
                    for member in view.everybody().filter(|m| m.id != me) {
                        let body = Body::Decided(change.clone());
                        outcome.sent.push(send(&member.id, next.number, body));
                    }
                    for joiner in next.everybody().filter(|m| view.member(&m.id).is_none()) {
                        let body = Body::Install(next.clone());
                        outcome.sent.push(send(&joiner.id, next.number, body));
                    }
                    let number = self.changes.number((*change).clone());
                    outcome.decided = Some((next.number, number));
                    after = self.enter(me.clone(), next);
                    break;
                }
            }
        }
        outcome.local = self.locals.number(after);
        outcome
    }

    /// Who may have overheard a fast quorum of votes for which change: everybody else who is up.
    fn overheard(&self, state: &State) -> Vec<(usize, Arc<Change>)> {
        let facts: Vec<Arc<Fact>> = state.facts.iter().map(|&fact| self.facts.get(fact)).collect();
        let mut found = Vec::new();
        for proposal in &facts {
            let Body::Propose(change) = &proposal.body else { continue };
            let acknowledges = |fact: &&Arc<Fact>| {
                let same = fact.to == proposal.from && fact.view == proposal.view;
                same && fact.body == Body::Ack
            };
            let votes = 1 + facts.iter().filter(acknowledges).count();
            for node in (0..state.nodes.len()).filter(|node| state.crashed >> node & 1 == 0) {
                if let Local::In(instance) = &*self.locals.get(state.nodes[node])
                    && instance.view().number == proposal.view
                    && votes >= fast_quorum(instance.view().voters.len())
                {
                    found.push((node, change.clone()));
                }
            }
        }
        found
    }

    /// Whether the next view can still be decided: everybody who has not crashed catches up and
    /// hears everything from now on, and one member leads.
    fn can_go_on(&self, state: &State) -> bool {
        let key = (state.nodes.clone(), state.crashed);
        self.decidable.get(key, |(nodes, crashed)| {
            let alive = |at: &usize| crashed >> at & 1 == 0;
            let locals = (0..nodes.len()).filter(alive).map(|at| self.locals.get(nodes[at]));
            let instances: Vec<Instance> = locals
                .filter_map(|local| match &*local {
                    Local::In(instance) => Some(instance.clone()),
                    _ => None,
                })
                .collect();
            let Some(newest) = instances.iter().map(|i| i.view().clone()).max_by_key(|v| v.number)
            else {
                return true;
            };
            let caught_up = instances.into_iter().filter_map(|instance| {
                let me = self.me(&instance);
                match instance.view().number == newest.number {
                    true => Some(instance),
                    false if newest.member(&me).is_none() => None,
                    false => Some(Instance::new(me, newest.clone(), Votes::default())),
                }
            });
            let mut voters: Vec<Instance> =
                caught_up.filter(|i| newest.is_voter(&self.me(i))).collect();
            if voters.len() < majority(newest.voters.len()) {
                return false;
            }
            decides(&mut voters)
        })
    }
}

/// One member after the other leads, everybody hears everything, until something is decided.
fn decides(voters: &mut [Instance]) -> bool {
    for _ in 0..3 {
        for leader in 0..voters.len() {
            let me = voters[leader].me().clone();
            // Somebody may always join: that is what is decided if nothing else is.
            let wish = Change { joined: vec![member("z")], ..Change::default() };
            let mut steps = Vec::new();
            voters[leader].take_the_lead(Some(Arc::new(wish)), &mut steps);
            let mut mail: Vec<(NodeId, Step)> =
                steps.into_iter().map(|step| (me.clone(), step)).collect();
            while let Some((from, step)) = mail.pop() {
                match step {
                    Step::Persist => {}
                    Step::Decided(_) => return true,
                    Step::Send { to, body } => {
                        let Some(voter) = voters.iter_mut().find(|v| *v.me() == to) else {
                            continue;
                        };
                        let mut steps = Vec::new();
                        voter.receive(&from, &body, &mut steps);
                        mail.extend(steps.into_iter().map(|step| (to.clone(), step)));
                    }
                }
            }
        }
    }
    false
}

/// Whether a voter took back what it had said (rule V5, I8).
fn contradicts(old: &Instance, new: &Instance) -> bool {
    let (old, new) = (old.votes(), new.votes());
    let value = |v: &Votes| v.cast.vote.as_ref().map(|vote| vote.value.clone());
    let accepted = |v: &Votes| v.cast.accepted.as_ref().map(|(ballot, _)| *ballot);
    value(old).is_some() && value(old) != value(new)
        || old.promised > new.promised
        || accepted(old) > accepted(new)
}

impl Model for Ring {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let local = |id: &NodeId| match self.first.member(id) {
            Some(_) => Local::In(Instance::new(id.clone(), self.first.clone(), Votes::default())),
            None => Local::Joining(id.clone()),
        };
        let ids = self.names.iter().map(|name| NodeId { name: name.clone(), incarnation: 1 });
        vec![State {
            nodes: ids.map(|id| self.locals.number(local(&id))).collect(),
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
        let mut propose = |node: usize, input: u32| {
            if self.outcome(state.nodes[node], input).is_some() {
                actions.push(Action::Step { node: node as u8, input });
            }
        };
        for &fact in &state.facts {
            let node = self.index(&self.facts.get(fact).to);
            if state.crashed >> node & 1 == 0 {
                propose(node, self.inputs.number(Input::Receive(fact)));
            }
        }
        for node in (0..state.nodes.len()).filter(|node| state.crashed >> node & 1 == 0) {
            let local = self.locals.get(state.nodes[node]);
            let Local::In(instance) = &*local else { continue };
            if state.restarts < self.limits.restarts {
                propose(node, restart);
            }
            if state.forgotten < self.limits.forgetful {
                propose(node, forget);
            }
            let votes = instance.view().is_voter(&self.me(instance));
            if !votes || instance.view().number >= self.last_number() {
                continue;
            }
            let [proposals, leads] = state.spent[self.depth(instance)];
            if proposals < self.limits.proposals {
                self.wishes(state.nodes[node]).iter().for_each(|&wish| propose(node, wish));
            }
            if leads < self.limits.leads && proposals > 0 {
                propose(node, lead);
            }
        }
        if self.limits.anyone_declares {
            for (node, change) in self.overheard(state) {
                propose(node, self.inputs.number(Input::Overhear(change)));
            }
        }
        for node in 0..state.nodes.len() {
            let up = state.crashed >> node & 1 == 0;
            if up && state.crashed.count_ones() < self.limits.crashes {
                actions.push(Action::Crash(node as u8));
            }
        }
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        let mut next = state.clone();
        let (node, input) = match action {
            Action::Crash(node) => {
                next.crashed |= 1 << node;
                return Some(next);
            }
            Action::Step { node, input } => (node as usize, input),
        };
        let outcome = self.outcome(state.nodes[node], input)?;
        if let Local::In(instance) = &*self.locals.get(state.nodes[node]) {
            let depth = self.depth(instance);
            match &*self.inputs.get(input) {
                Input::Propose(_) => next.spent[depth][0] += 1,
                Input::TakeTheLead => next.spent[depth][1] += 1,
                Input::Restart => next.restarts += 1,
                Input::Forget => next.forgotten += 1,
                Input::Receive(_) | Input::Overhear(_) => {}
            }
        }
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
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut all = vec![
            Property::<Self>::always("I4 one value per view number", |_, state: &State| {
                !state.split
            }),
            Property::always("I8 nobody takes back what it voted", |_, state: &State| {
                !state.contradicted
            }),
        ];
        if self.limits.progress {
            all.push(Property::always("the next view can still be decided", Ring::can_go_on));
        }
        all
    }
}
