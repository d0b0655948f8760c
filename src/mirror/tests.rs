//! The mirror's rules against simulated holders, in which every write may land late or never.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;
use crate::recovery::{Decision, Report, Run, choose};

const SLOTS: usize = 2;
const OWNER: u8 = 0;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Content {
    Empty,
    Torn,
    Whole(Version),
}

#[derive(Clone, Debug)]
enum Write {
    Version { version: Version, to: usize },
    Mark(u64),
}

/// A holder's memory, and what is on the wire towards it. Writes land in order, one at a time;
/// those of a broken connection may still land until the holder is fenced.
#[derive(Clone, Debug)]
struct Holder {
    slots: [Content; SLOTS],
    mark: Option<u64>,
    wire: VecDeque<(Option<u64>, Write)>,
    region: u64,
    fenced: bool,
}

impl Holder {
    fn land(&mut self) -> Option<u64> {
        let (work, write) = self.wire.pop_front()?;
        if !self.fenced {
            match write {
                Write::Version { version, to } => self.slots[to] = Content::Whole(version),
                Write::Mark(view) => self.mark = Some(view),
            }
        }
        work
    }

    fn report(&self) -> Report {
        Report { mark: self.mark, version: self.newest() }
    }

    fn newest(&self) -> Version {
        let whole = |c: &Content| if let Content::Whole(v) = c { *v } else { 0 };
        self.slots.iter().map(whole).max().unwrap_or(0)
    }
}

fn mirror(copies: usize) -> Mirror<u8> {
    Mirror::new(Measures { copies, slots: SLOTS, capacity: 8, pace_ns: 0 })
}

struct World {
    copies: usize,
    mirror: Mirror<u8>,
    holders: Vec<Holder>,
    version: Version,
    slot: usize,
    view: u64,
    ring: Vec<u8>,
    runs: Vec<Run<u8>>,
    acked: Version,
    work: u64,
    prepare_wanted: Vec<u8>,
}

#[derive(Clone, Debug)]
enum Step {
    Submit,
    Land(u8),
    Break(u8),
    Prepare,
    View(u8),
    LoseMemory(u8),
    RestartOwner,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        5 => Just(Step::Submit),
        8 => (1u8..4).prop_map(Step::Land),
        1 => (1u8..4).prop_map(Step::Break),
        5 => Just(Step::Prepare),
        1 => (1u8..8).prop_map(Step::View),
        1 => Just(Step::RestartOwner),
    ]
}

impl World {
    fn new() -> Self {
        Self::with_copies(1)
    }

    fn with_copies(copies: usize) -> Self {
        let holder = Holder {
            slots: [Content::Empty; SLOTS],
            mark: None,
            wire: VecDeque::new(),
            region: 1,
            fenced: false,
        };
        let mut world = Self {
            copies,
            mirror: mirror(copies),
            holders: vec![holder; 4],
            version: 0,
            slot: 0,
            view: 0,
            ring: vec![],
            runs: vec![],
            acked: 0,
            work: 0,
            prepare_wanted: vec![],
        };
        world.install(0b111);
        world
    }

    fn one(&self) -> u8 {
        *self.mirror.copies().find(|c| c.of_record).expect("a holder of record").holder
    }

    /// Members 1..=3 by mask; the owner's predecessors are the highest.
    fn install(&mut self, mask: u8) {
        self.ring = (1..4).filter(|h| mask & (1 << (h - 1)) != 0).collect();
        let predecessors = self.ring.iter().rev().take(self.copies).copied().collect();
        self.install_with(predecessors);
    }

    fn install_with(&mut self, predecessors: Vec<u8>) {
        self.view += 1;
        if self.runs.last().is_none_or(|run| run.holders != predecessors) {
            self.runs.push(Run { since: self.view, holders: predecessors });
        }
        self.tell_view();
    }

    fn tell_view(&mut self) {
        let Run { since, holders } = self.runs.last().expect("the first view makes one");
        let ring = &self.ring;
        self.mirror.view_installed(self.view, *since, holders, |h| ring.contains(h));
    }

    fn apply(&mut self, step: Step) {
        match step {
            Step::Submit => {
                self.version += 1;
                self.slot = 1 - self.slot;
                let changed = Stale::everything(8);
                self.mirror.submitted(0, self.version, self.slot, 8, &changed, true);
            }
            Step::Land(h) => {
                if let Some(work) = self.holders[h as usize].land()
                    && self.mirror.completed(work, true)
                {
                    self.acked = self.mirror.mirrored();
                }
            }
            Step::Break(h) => self.break_link(h),
            Step::Prepare => {
                if let Some(h) = self.prepare_wanted.pop() {
                    // The holder kills the old connection first (F2): nothing of it lands later.
                    self.holders[h as usize].wire.clear();
                    let holder = &self.holders[h as usize];
                    let versions: Vec<_> = holder
                        .slots
                        .iter()
                        .map(|c| match c {
                            Content::Whole(v) => *v,
                            _ => 0,
                        })
                        .collect();
                    let region = holder.region;
                    self.mirror.prepared(&h, region, &versions);
                }
            }
            Step::View(mask) => self.install(mask),
            Step::LoseMemory(h) => {
                let holder = &mut self.holders[h as usize];
                holder.slots = [Content::Empty; SLOTS];
                holder.mark = None;
                holder.region += 1;
                self.break_link(h);
            }
            Step::RestartOwner => {
                // The server is killed and comes back: it knows its region and the view only.
                for h in 1..4 {
                    self.break_wire(h);
                }
                self.prepare_wanted.clear();
                self.mirror = mirror(self.copies);
                self.tell_view();
                if self.version > 0 {
                    let changed = Stale::everything(8);
                    self.mirror.submitted(0, self.version, self.slot, 8, &changed, false);
                }
            }
        }
        self.drive();
    }

    fn break_wire(&mut self, h: u8) {
        for (work, _) in &mut self.holders[h as usize].wire {
            *work = None; // it may still land, but nobody will be told
        }
    }

    fn break_link(&mut self, h: u8) {
        let lost: Vec<u64> =
            self.holders[h as usize].wire.iter().filter_map(|(work, _)| *work).collect();
        self.break_wire(h);
        for work in lost {
            assert!(!self.mirror.completed(work, false), "a failure acknowledges nothing");
        }
        self.mirror.lost(&h);
    }

    fn drive(&mut self) {
        while let Some(action) = self.mirror.next(0) {
            match action {
                Action::Prepare(h) => self.prepare_wanted.push(h),
                Action::Post(post) => {
                    let h = *self.mirror.holder_at(post.at) as usize;
                    let before = self.holders[h].newest();
                    self.holders[h].slots[post.to] = Content::Torn;
                    assert!(
                        self.holders[h].newest() >= self.acked.min(before)
                            || self.is_superfluous(h as u8),
                        "I5: slot {} of {h} held the last acknowledged version",
                        post.to
                    );
                    self.work += 1;
                    let write = Write::Version { version: post.version, to: post.to };
                    self.holders[h].wire.push_back((Some(self.work), write));
                    self.mirror.posted(&post, self.work);
                }
                Action::PostMark { at, view } => {
                    let h = *self.mirror.holder_at(at) as usize;
                    self.work += 1;
                    self.holders[h].wire.push_back((Some(self.work), Write::Mark(view)));
                    self.mirror.mark_posted(at, view, self.work);
                }
                Action::Release { .. } | Action::Synced { .. } => {}
            }
        }
    }

    /// Somebody else is exact, so what this holder has does not matter.
    fn is_superfluous(&self, h: u8) -> bool {
        matches!(self.recover(), Decision::Exact { holder, .. } if holder != h)
    }

    fn recover(&self) -> Decision<u8> {
        choose(&self.runs, |&h| Some(self.holders[h as usize].report()))
    }

    /// I1, I3: if the owner died now, or after any more writes landed, nothing acknowledged is
    /// lost.
    fn check(&self) {
        let mut after = World {
            mirror: mirror(self.copies),
            holders: self.holders.clone(),
            runs: self.runs.clone(),
            ring: vec![],
            prepare_wanted: vec![],
            ..*self
        };
        loop {
            match after.recover() {
                Decision::Exact { version, .. } => {
                    assert!(version >= self.acked, "recovered {version}, acked {}", self.acked);
                }
                other => assert_eq!(self.acked, 0, "{other:?}"),
            }
            let Some(h) = after.holders.iter_mut().find(|h| !h.wire.is_empty()) else { break };
            h.land();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..Default::default() })]

    #[test]
    fn i1_i3_i5_i7_a_recovery_finds_every_acknowledged_version(
        copies in 1usize..3,
        steps in prop::collection::vec(step(), 1..120)
    ) {
        let mut world = World::with_copies(copies);
        world.drive();
        for step in steps {
            world.apply(step);
            world.check();
        }
    }
}

/// Lands and prepares everything until nothing moves.
fn settle(world: &mut World) {
    for _ in 0..50 {
        while !world.prepare_wanted.is_empty() {
            world.apply(Step::Prepare);
        }
        for h in 1..4 {
            world.apply(Step::Land(h));
        }
    }
}

#[test]
fn a_commit_is_acknowledged_once_the_mirror_is_marked_and_has_it() {
    let mut world = World::new();
    world.drive();
    world.apply(Step::Submit);
    assert_eq!(world.acked, 0);
    settle(&mut world);
    assert_eq!(world.acked, 1);
    assert_eq!(world.mirror.protection(), Protection::InSync);
}

#[test]
fn the_old_holder_acknowledges_until_the_new_one_is_complete() {
    let mut world = World::new();
    world.drive();
    world.apply(Step::Submit);
    settle(&mut world);
    assert_eq!(world.one(), 3);
    // Holder 3 stays a member, but 2 is the predecessor now: model it by ring order.
    world.install_with(vec![2]);
    world.apply(Step::Submit);
    world.apply(Step::Land(3));
    assert_eq!(world.acked, 2, "H3: the old holder goes on");
    settle(&mut world);
    assert_eq!(world.one(), 2);
    world.apply(Step::Submit);
    settle(&mut world);
    assert_eq!(world.acked, 3);
    assert_eq!(world.holders[2].newest(), 3);
}

#[test]
fn a_holder_that_lost_its_memory_is_synced_again_before_it_counts() {
    let mut world = World::new();
    world.drive();
    world.apply(Step::Submit);
    settle(&mut world);
    world.apply(Step::LoseMemory(3));
    assert_ne!(world.mirror.protection(), Protection::InSync);
    settle(&mut world);
    assert_eq!(world.mirror.protection(), Protection::InSync);
    assert_eq!(world.holders[3].newest(), 1);
    assert!(world.holders[3].mark.is_some());
}

#[test]
fn after_a_posted_mark_no_older_mirror_acknowledges_even_if_the_ring_flaps_back() {
    let mut world = World::new();
    world.drive();
    world.apply(Step::Submit);
    settle(&mut world);
    let first = world.acked;
    // 2 becomes the predecessor; its mark is posted but does not land.
    world.install_with(vec![2]);
    world.drive();
    world.apply(Step::Prepare);
    world.apply(Step::Land(2));
    assert!(
        matches!(world.holders[2].wire.front(), Some((_, Write::Mark(_)))),
        "the mark is posted"
    );
    // The ring flaps back to 3.
    world.install_with(vec![3]);
    world.apply(Step::Submit);
    world.apply(Step::Land(3));
    assert_eq!(world.acked, first, "I7: below the floor nothing is acknowledged");
    settle(&mut world);
    assert_eq!(world.acked, 2, "marked anew, it counts again");
}

/// Somebody was the predecessor for a while, was never synced, and died. The holder before it is the
/// predecessor again; were it not marked anew, a recovery would wait for the dead one for ever.
#[test]
fn a_holder_that_is_the_predecessor_again_is_marked_for_its_new_time() {
    let mut world = World::new();
    world.drive();
    world.apply(Step::Submit);
    settle(&mut world);
    for predecessor in [2, 3] {
        world.install_with(vec![predecessor]);
        world.drive();
    }
    settle(&mut world);
    let answer = |&h: &u8| match h {
        2 => None,
        _ => Some(world.holders[h as usize].report()),
    };
    assert_eq!(choose(&world.runs, answer), Decision::Exact { holder: 3, version: 1 });
    world.apply(Step::Submit);
    settle(&mut world);
    assert_eq!(world.acked, 2);
}

#[test]
fn versions_that_nobody_waits_for_are_collected() {
    let mut mirror = Mirror::new(Measures { copies: 1, slots: 2, capacity: 8, pace_ns: 1_000 });
    mirror.view_installed(1, 1, &[1u8], |_| true);
    assert_eq!(mirror.next(0), Some(Action::Prepare(1)));
    mirror.prepared(&1, 1, &[0, 0]);
    assert_eq!(mirror.next(0), Some(Action::PostMark { at: 0, view: 1 }));
    mirror.mark_posted(0, 1, 1);
    mirror.completed(1, true);
    assert!(matches!(mirror.next(0), Some(Action::Synced { .. })));
    mirror.submitted(100, 1, 0, 8, &Stale::everything(8), false);
    assert_eq!(mirror.next(100), None);
    assert_eq!(mirror.deadline_ns(), Some(1_100));
    mirror.submitted(500, 2, 1, 8, &Stale::everything(8), false);
    assert!(matches!(mirror.next(1_100), Some(Action::Post(Post { version: 2, .. }))));
}

#[test]
fn the_owner_is_never_its_own_mirror() {
    let mut mirror = mirror(1);
    mirror.view_installed(1, 1, &[], |&h| h == OWNER);
    mirror.submitted(0, 1, 0, 8, &Stale::everything(8), true);
    assert_eq!(mirror.next(0), None);
    assert_eq!(mirror.protection(), Protection::None);
}

#[test]
fn a_version_whose_source_was_overwritten_is_not_acknowledged_and_its_slot_is_written_anew() {
    let mut world = World::new();
    world.drive();
    world.apply(Step::Submit);
    settle(&mut world);
    world.apply(Step::Submit);
    let (work, _) = world.holders[3].wire.pop_front().unwrap();
    world.holders[3].slots[1] = Content::Torn;
    world.mirror.spoiled(0, work.unwrap());
    assert_eq!(world.mirror.mirrored(), 1);
    world.drive();
    settle(&mut world);
    assert_eq!(world.mirror.mirrored(), 2, "it is sent again");
    assert_eq!(world.holders[3].newest(), 2);
}
