//! Whether a decision is still possible in a state of [`Ring`].

use std::sync::Arc;

use ringkeep::membership::{
    Change, NodeId,
    instance::{Instance, Step},
    quorum::majority,
};

use super::{
    node::Local,
    ring::{Ring, State, member},
};

/// What nodes can do that hear each other and nobody else.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Together {
    /// They are no majority of the voters of the newest view that they know.
    TooFew,
    Decide,
    Stuck,
}

impl Ring {
    /// Every set of nodes that has a majority of the voters of the newest view that it knows can
    /// decide the next one; and all nodes but any one are such a set.
    pub(super) fn can_go_on(&self, state: &State) -> bool {
        let all = state.nodes.len();
        (0..1_u32 << all).all(|set| {
            let inside = (0..all).filter(|at| set >> at & 1 == 1);
            let mut locals: Vec<u32> = inside.map(|at| state.nodes[at]).collect();
            locals.sort_unstable();
            match self.together.get(locals, |locals| self.together(locals)) {
                Together::TooFew => (set.count_ones() as usize) + 1 < all,
                can => can == Together::Decide,
            }
        })
    }

    /// They catch up with the newest view among them, and one after the other leads.
    fn together(&self, locals: &[u32]) -> Together {
        let locals: Vec<Arc<Local>> = locals.iter().map(|&local| self.locals.get(local)).collect();
        let views = locals.iter().filter_map(|local| match &**local {
            Local::In(voter) => Some(voter.view()),
            Local::Out(view) => Some(view),
            Local::Joining(_) => None,
        });
        let Some(newest) = views.max_by_key(|view| view.number) else { return Together::TooFew };
        let caught_up = |me: &NodeId| match Local::enter(me.clone(), newest.clone()) {
            Local::In(voter) => Some(voter.instance),
            _ => None,
        };
        let instances = locals.iter().filter_map(|local| match &**local {
            Local::In(voter) if voter.view() == newest => Some(voter.instance.clone()),
            Local::In(voter) => caught_up(voter.me()),
            Local::Joining(me) => caught_up(me),
            Local::Out(_) => None,
        });
        let mut voters: Vec<Instance> = instances.filter(|i| newest.is_voter(i.me())).collect();
        match voters.len() >= majority(newest.voters.len()) {
            false => Together::TooFew,
            true if decides(&mut voters) => Together::Decide,
            true => Together::Stuck,
        }
    }
}

/// One member after the other leads, everybody hears everything, until something is decided.
fn decides(voters: &mut [Instance]) -> bool {
    for _ in 0..3 {
        for leader in 0..voters.len() {
            let me = voters[leader].me().clone();
            // Somebody may always join: that is what is decided if nothing else is.
            let wish = Change { joined: vec![member("z", 1)], ..Change::default() };
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
