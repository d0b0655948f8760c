//! What the membership decided: a line of views, the same for everybody, that each node installs
//! when it gets to hear of it. That all agree on it is checked elsewhere.

use ringkeep::recovery::Run;

/// Nodes besides the owner.
pub(crate) const NODES: usize = 4;

/// Lives of one node in one history.
const LIVES_MAX: u8 = 3;

/// A life of a node: the node's number in the upper half, the life's in the lower, from 1.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Holder(pub u8);

impl Holder {
    pub(crate) fn new(node: usize, life: u8) -> Self {
        Self((node as u8) << 4 | life)
    }

    pub(crate) fn node(self) -> usize {
        usize::from(self.0 >> 4)
    }

    pub(crate) fn life(self) -> u8 {
        self.0 & 15
    }
}

impl std::fmt::Debug for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}{}", char::from(b'a' + self.node() as u8), self.life())
    }
}

/// One view.
#[derive(Debug, Clone)]
pub(crate) struct View {
    /// The owner is a member.
    pub(crate) owner: bool,
    /// Which life of each node is a member; 0: none.
    pub(crate) lives: [u8; NODES],
    /// The owner's predecessors, the nearest first, and since which view they are that.
    pub(crate) predecessors: Vec<Holder>,
    pub(crate) since: u64,
}

impl View {
    pub(crate) fn contains(&self, holder: Holder) -> bool {
        self.lives[holder.node()] == holder.life()
    }
}

/// Views 1, 2, 3, … with their holding runs.
#[derive(Debug, Clone)]
pub(crate) struct History {
    views: Vec<View>,
    pub(crate) runs: Vec<Run<Holder>>,
}

impl History {
    /// From views such as `ba Cba !ba`: the members, the nearest predecessor of the owner first; a
    /// capital letter is leaving, so nobody's predecessor; `!` is a view without the owner. Who
    /// comes back after it was gone is another life.
    pub(crate) fn new(copies: usize, text: &str) -> Self {
        let mut views: Vec<View> = Vec::new();
        let mut runs: Vec<Run<Holder>> = Vec::new();
        let mut newest_lives = [0; NODES];
        for (i, text) in text.split_whitespace().enumerate() {
            let (owner, members) = match text.strip_prefix('!') {
                Some(members) => (false, members),
                None => (true, text),
            };
            let before = views.last().map_or([0; NODES], |view| view.lives);
            let mut lives = [0; NODES];
            let mut nearest = Vec::new();
            for member in members.chars() {
                let node = (member.to_ascii_lowercase() as u8 - b'a') as usize;
                if before[node] == 0 {
                    newest_lives[node] += 1;
                    assert!(newest_lives[node] <= LIVES_MAX);
                }
                lives[node] = newest_lives[node];
                if member.is_ascii_lowercase() {
                    nearest.push(Holder::new(node, lives[node]));
                }
            }
            nearest.truncate(copies);
            if owner && runs.last().is_none_or(|run| run.holders != nearest) {
                runs.push(Run { since: i as u64 + 1, holders: nearest.clone() });
            }
            let since = runs.last().map_or(0, |run| run.since);
            views.push(View { owner, lives, predecessors: nearest, since });
        }
        Self { views, runs }
    }

    /// The number of the last view.
    pub(crate) fn last(&self) -> u8 {
        self.views.len() as u8
    }

    /// The number of the last view that has the owner.
    pub(crate) fn last_with_owner(&self) -> u8 {
        let last = self.views.iter().rposition(|view| view.owner);
        last.expect("it founded") as u8 + 1
    }

    pub(crate) fn view(&self, number: u8) -> &View {
        &self.views[usize::from(number) - 1]
    }

    pub(crate) fn views(&self) -> &[View] {
        &self.views
    }

    /// Whether somebody comes back in the last view only, when the owner is gone.
    pub(crate) fn has_former_lives(&self) -> bool {
        let last = self.views.len() - 1;
        let (before, after) = (&self.views[last - 1], &self.views[last]);
        before.lives.iter().zip(after.lives).any(|(before, after)| *before == 0 && after > 1)
    }

    /// The runs that are left once a sync for this view was confirmed; 0: none was.
    pub(crate) fn runs_since(&self, confirmed: u8) -> &[Run<Holder>] {
        let current = self.runs.iter().rposition(|run| run.since <= u64::from(confirmed));
        &self.runs[current.unwrap_or(0)..]
    }
}
