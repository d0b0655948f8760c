//! An owner's decisions about its copies, when holders say what they like of their memory and their
//! connections fail at any point; and the choice that a recovery makes of hostile reports.
//!
//! What is posted fits the region and never goes to the slot of the newest completed version (I5);
//! `mirrored` never goes back and never beyond what was submitted; deciding ends. A recovery names a
//! holder that reported, with the version that it reported.
#![no_main]

use std::collections::BTreeMap;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use ringkeep::{
    commit::{Stale, segments},
    mirror::{Action, Measures, Mirror, Post},
    recovery::{Decision, Report, Run, choose, maybe_stale},
    region::layout::Layout,
    transport::SEGMENTS_MAX,
};

/// Most decisions in a row with nothing happening in between.
const DECISIONS_MAX: usize = 1000;

#[derive(Debug, Arbitrary)]
struct Input {
    copies: u8,
    slots: u8,
    capacity: u16,
    steps: Vec<Step>,
    runs: Vec<(u64, Vec<u8>)>,
    reports: [Option<(Option<u64>, u64)>; 8],
}

#[derive(Debug, Arbitrary)]
enum Step {
    View { ahead: u8, predecessors: Vec<u8>, ring: u8 },
    Submit { slot: u8, len: u16, ranges: Vec<(u16, u16)>, urgent: bool },
    Prepared { holder: u8, region: u8, versions: Vec<u64> },
    Lost(u8),
    Completed { which: u8, ok: bool },
    Spoiled(u8),
    Wait(u32),
}

/// A work request that is under way: to whom, and which version to which slot.
type Work = (u8, Option<(u64, usize)>);

struct World {
    layout: Layout,
    mirror: Mirror<u8>,
    now: u64,
    view: u64,
    /// The last predecessors that there were, and since which view: as `server/holders.rs` says it.
    run: (u64, Vec<u8>),
    version: u64,
    mirrored: u64,
    works: u64,
    under_way: BTreeMap<u64, Work>,
    /// What each holder's slots hold as far as was completed, of the region that it named.
    held: BTreeMap<u8, (u8, Vec<u64>)>,
}

fuzz_target!(|input: Input| {
    recover(&input);
    let (slots, capacity) = (2 + u32::from(input.slots % 7), u64::from(input.capacity) + 1);
    let layout = Layout::new(capacity, slots).expect("inside the limits");
    let copies = 1 + usize::from(input.copies % 8);
    let measures = Measures { copies, slots: slots as usize, capacity, pace_ns: 1000 };
    let mut world = World {
        layout,
        mirror: Mirror::new(measures),
        now: 1,
        view: 1,
        run: (0, Vec::new()),
        version: 0,
        mirrored: 0,
        works: 0,
        under_way: BTreeMap::new(),
        held: BTreeMap::new(),
    };
    for step in &input.steps {
        world.step(step, copies);
        world.decide();
        world.check();
    }
});

impl World {
    fn step(&mut self, step: &Step, copies: usize) {
        let (layout, capacity) = (self.layout, self.layout.capacity());
        match *step {
            Step::View { ahead, ref predecessors, ring } => {
                self.view += u64::from(ahead) + 1;
                let mut nearest: Vec<u8> = Vec::new();
                for holder in predecessors.iter().map(|holder| holder % 8) {
                    let member = ring >> holder & 1 != 0;
                    if member && !nearest.contains(&holder) && nearest.len() < copies {
                        nearest.push(holder);
                    }
                }
                let (since, last) = &self.run;
                let same = last.len() == nearest.len() && last.iter().all(|h| nearest.contains(h));
                let since = if same { *since } else { self.view };
                if !nearest.is_empty() {
                    self.run = (since, nearest.clone());
                }
                self.mirror.view_installed(self.view, since, &nearest, |h| ring >> h & 1 != 0);
            }
            Step::Submit { slot, len, ref ranges, urgent } => {
                let mut changed = Stale::nothing(capacity);
                for &(start, bytes) in ranges {
                    let start = u64::from(start) % capacity;
                    changed.insert(start, (start + u64::from(bytes)).min(capacity));
                }
                self.version += 1;
                let (slot, len) =
                    (usize::from(slot) % layout.slots(), u64::from(len) % (capacity + 1));
                self.mirror.submitted(self.now, self.version, slot, len, &changed, urgent);
            }
            Step::Prepared { holder, region, ref versions } => {
                let holder = holder % 8;
                self.mirror.prepared(&holder, region.into(), versions);
                let known = self.held.get(&holder).is_some_and(|(known, _)| *known == region);
                let wanted = self.mirror.copies().any(|copy| *copy.holder == holder);
                if wanted && !known {
                    self.held.insert(holder, (region, vec![0; layout.slots()]));
                }
            }
            Step::Lost(holder) => {
                let holder = holder % 8;
                self.mirror.lost(&holder);
                self.under_way.retain(|_, (to, _)| *to != holder);
            }
            Step::Completed { which, ok } => {
                let Some((work, (to, posted))) = self.some_work(which) else { return };
                let before = self.mirror.mirrored();
                let news = self.mirror.completed(work, ok);
                assert_eq!(news, self.mirror.mirrored() > before);
                match posted {
                    Some((version, slot)) if ok => self.set(to, slot, version),
                    _ if !ok => self.under_way.retain(|_, (other, _)| *other != to),
                    _ => {}
                }
            }
            Step::Spoiled(which) => {
                if let Some((work, (_, Some(_)))) = self.some_work(which) {
                    self.mirror.spoiled(self.now, work);
                }
            }
            Step::Wait(ns) => self.now += u64::from(ns),
        }
        // Whom the mirror knows no more it has forgotten with all that was there.
        let known: Vec<u8> = self.mirror.copies().map(|copy| *copy.holder).collect();
        self.held.retain(|holder, _| known.contains(holder));
        self.under_way.retain(|_, (holder, _)| known.contains(holder));
    }

    /// The oldest of a holder: a connection completes in order.
    fn some_work(&mut self, which: u8) -> Option<(u64, Work)> {
        let holder = which % 8;
        let (&work, _) = self.under_way.iter().find(|(_, (to, _))| *to == holder)?;
        Some((work, self.under_way.remove(&work)?))
    }

    fn set(&mut self, holder: u8, slot: usize, version: u64) {
        if let Some((_, slots)) = self.held.get_mut(&holder) {
            slots[slot] = version;
        }
    }

    fn decide(&mut self) {
        for _ in 0..DECISIONS_MAX {
            let Some(action) = self.mirror.next(self.now) else { return };
            self.works += 1;
            match action {
                Action::Post(post) => self.post(&post),
                Action::PostMark { at, view } => {
                    assert_eq!(view, self.view);
                    let holder = *self.mirror.holder_at(at);
                    self.under_way.insert(self.works, (holder, None));
                    self.mirror.mark_posted(at, view, self.works);
                }
                Action::Synced { holders, view } => {
                    assert!(view <= self.view && !holders.is_empty());
                }
                Action::Prepare(_) | Action::Release { .. } => {}
            }
        }
        panic!("deciding does not end");
    }

    fn post(&mut self, post: &Post) {
        let (layout, holder) = (self.layout, *self.mirror.holder_at(post.at));
        assert_eq!(post.version, self.version);
        assert!(post.from < layout.slots() && post.to < layout.slots());
        let mut travel = Vec::new();
        let stale = self.mirror.stale(post);
        segments(&layout, post.from, post.to, post.len, stale, &mut travel);
        assert!(!travel.is_empty() && travel.len() <= SEGMENTS_MAX);
        let end = layout.slot(post.to) + layout.slot_bytes();
        assert!(travel.iter().all(|s| s.remote >= layout.slot(post.to) && s.remote + s.len <= end));
        let (_, slots) = self.held.get(&holder).expect("nobody is sent anything who is not ready");
        let newest = slots.iter().copied().max().unwrap_or(0);
        assert!(newest == 0 || slots[post.to] != newest, "I5: {holder} would lose {newest}");
        self.set(holder, post.to, 0);
        self.under_way.insert(self.works, (holder, Some((post.version, post.to))));
        self.mirror.posted(post, self.works);
    }

    fn check(&mut self) {
        let mirrored = self.mirror.mirrored();
        assert!(mirrored >= self.mirrored && mirrored <= self.version);
        self.mirrored = mirrored;
        assert_eq!(self.mirror.version(), self.version);
        let _ = (self.mirror.deadline_ns(), self.mirror.protection());
    }
}

fn recover(input: &Input) {
    let runs: Vec<Run<u8>> = (input.runs.iter())
        .map(|(since, holders)| Run { since: *since, holders: holders.clone() })
        .collect();
    let answer = |holder: &u8| {
        let report = input.reports.get(usize::from(*holder)).copied().flatten();
        report.map(|(mark, version)| Report { mark, version })
    };
    match choose(&runs, answer) {
        Decision::Exact { holder, version } => {
            let report = answer(&holder).expect("it reported");
            assert_eq!(report.version, version);
            let of = |run: &&Run<u8>| run.holders.contains(&holder);
            assert!(runs.iter().filter(of).any(|run| report.mark >= Some(run.since)));
        }
        Decision::Unavailable { holders } => {
            assert!(holders.iter().all(|holder| answer(holder).is_none()));
        }
        Decision::Nothing => {}
    }
    let shown = (0..8).filter_map(|holder| Some((holder, answer(&holder)?)));
    if let Some((holder, version)) = maybe_stale(shown.clone()) {
        assert!(version > 0 && shown.clone().all(|(_, report)| report.version <= version));
        assert_eq!(answer(&holder).map(|report| report.version), Some(version));
    }
}
