//! Which copy of a dead owner's checkpoint is the newest valid one, and from where. Pure.
//!
//! **First fence, then read** (rules F1 and H5): every report that comes in here was given by a
//! holder after it stopped accepting the old owner's writes. An acknowledgement needs all holders
//! of a run, so one of them is enough:
//!
//! * One whose sync mark is at least as new as the begin of the run has every version that was ever
//!   acknowledged: those of older runs were copied before the mark, those of this run needed it.
//! * One that is fenced and has no such mark shows that nothing was acknowledged in this run, and
//!   that nothing will be: the walk goes on to the run before.
//! * Where nobody can be asked the walk ends: an older copy is never handed out silently.
//!
//! Before all holders comes the owner itself, if only its life ended and a later one has its memory:
//! whatever was acknowledged is there, and nobody else has more.
//!
//! A holder may have been evicted by mistake and be back as another life with its memory. It was
//! fenced when the former life ended, and answers for that one as well as ever. A life that lost its
//! memory cannot answer for the one before: that it has nothing proves nothing.

use crate::commit::Version;

/// A time in which an owner's predecessors were the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run<H> {
    /// The view in which they became that.
    pub since: u64,
    /// The nearest first: as many as the owner wants copies, or all there were.
    pub holders: Vec<H>,
}

/// What a fenced holder has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Report {
    /// The view of its sync mark; `None` without a mark, or without a copy at all.
    pub mark: Option<u64>,
    /// Its newest valid version; 0: none.
    pub version: Version,
}

/// What to recover from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision<H> {
    /// This holder has every version that was ever acknowledged as mirrored.
    Exact {
        /// The holder.
        holder: H,
        /// The version that it has; 0 when nothing was ever committed.
        version: Version,
    },
    /// One of these holders would have to be asked and none can be: never hand out something older
    /// silently.
    Unavailable {
        /// The holders of the run that nobody can tell of.
        holders: Vec<H>,
    },
    /// No holder was ever synced.
    Nothing,
}

/// Walks the runs from the newest to the oldest. `runs` is in order of time; `answer` is what a
/// holder said after it was fenced, or a later life of it from the same memory; nothing if nobody
/// can say it.
pub fn choose<H: Clone>(runs: &[Run<H>], answer: impl Fn(&H) -> Option<Report>) -> Decision<H> {
    // In a run without predecessors nothing was acknowledged.
    for run in runs.iter().rev().filter(|run| !run.holders.is_empty()) {
        let heard = || run.holders.iter().filter_map(|holder| Some((holder, answer(holder)?)));
        let is_marked = |report: &Report| report.mark.is_some_and(|mark| mark >= run.since);
        let marked = heard().filter(|(_, report)| is_marked(report));
        if let Some((holder, report)) = marked.max_by_key(|(_, report)| report.version) {
            return Decision::Exact { holder: holder.clone(), version: report.version };
        }
        if heard().next().is_none() {
            return Decision::Unavailable { holders: run.holders.clone() };
        }
    }
    Decision::Nothing
}

/// The runs as they are when a later life of the owner has the memory of the lost one and a copy in
/// it: its answer, [`in_owners_memory`], is exact.
pub fn with_owner<H: Clone>(runs: &[Run<H>], owner: &H) -> Vec<Run<H>> {
    let last = Run { since: u64::MAX, holders: vec![owner.clone()] };
    runs.iter().cloned().chain([last]).collect()
}

/// What a later life of an owner says of the copy in its memory.
pub fn in_owners_memory(version: Version) -> Report {
    Report { mark: Some(u64::MAX), version }
}

/// Who looks after what a lost owner left: the nearest holder of the newest run that is in the ring,
/// else a node in the ring of which such a holder was an earlier life, else a later life of the
/// owner itself. Everybody with the same view finds the same one.
///
/// `holders` are those of all runs, the newest run's first, and `life` tells which life of a node is
/// in the ring.
pub fn caretaker<'a, H: Ord + 'a>(
    owner: &H,
    holders: impl Iterator<Item = &'a H> + Clone,
    life: impl Fn(&H) -> Option<&'a H>,
) -> Option<&'a H> {
    let later = |earlier: &H| life(earlier).filter(|life| *life > earlier);
    let present = |holder: &H| life(holder).filter(|life| *life == holder);
    holders
        .clone()
        .find_map(present)
        .or_else(|| holders.clone().find_map(later))
        .or_else(|| later(owner))
}

/// On explicit request only: the newest version that anybody reachable has, which may be older than
/// an acknowledged one.
pub fn maybe_stale<H: Clone>(
    holders: impl IntoIterator<Item = (H, Report)>,
) -> Option<(H, Version)> {
    holders
        .into_iter()
        .filter(|(_, report)| report.version > 0)
        .max_by_key(|(_, report)| report.version)
        .map(|(holder, report)| (holder, report.version))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runs(list: &[(u64, &str)]) -> Vec<Run<char>> {
        list.iter().map(|&(since, h)| Run { since, holders: h.chars().collect() }).collect()
    }

    fn has(mark: u64, version: Version) -> Report {
        Report { mark: Some(mark), version }
    }

    const EMPTY: Report = Report { mark: None, version: 0 };

    #[test]
    fn the_newest_holder_that_was_synced_in_its_time_is_exact() {
        let answer = |h: &char| match h {
            'c' => Some(has(5, 9)),
            _ => None,
        };
        let decision = choose(&runs(&[(1, "b"), (4, "c")]), answer);
        assert_eq!(decision, Decision::Exact { holder: 'c', version: 9 });
    }

    #[test]
    fn a_holder_whose_sync_was_not_done_sends_the_walk_to_the_one_before() {
        let answer = |h: &char| match h {
            'b' => Some(has(1, 7)),
            // Its mark is from an earlier time as predecessor: old news.
            'c' => Some(has(2, 3)),
            _ => None,
        };
        let decision = choose(&runs(&[(1, "b"), (4, "c")]), answer);
        assert_eq!(decision, Decision::Exact { holder: 'b', version: 7 });
    }

    #[test]
    fn an_older_copy_is_never_handed_out_while_a_newer_holder_is_silent() {
        let answer = |h: &char| if *h == 'b' { Some(has(1, 7)) } else { None };
        let decision = choose(&runs(&[(1, "b"), (4, "c")]), answer);
        assert_eq!(decision, Decision::Unavailable { holders: vec!['c'] });
    }

    #[test]
    fn one_of_several_holders_is_enough_and_the_newest_version_among_them_best() {
        let with = |silent: char| {
            choose(&runs(&[(1, "bcd")]), |&h| match h {
                _ if h == silent => None,
                'b' => Some(has(1, 7)),
                'c' => Some(has(1, 8)),
                _ => Some(EMPTY),
            })
        };
        assert_eq!(with('b'), Decision::Exact { holder: 'c', version: 8 });
        assert_eq!(with('c'), Decision::Exact { holder: 'b', version: 7 });
    }

    #[test]
    fn one_unmarked_holder_shows_that_its_run_acknowledged_nothing() {
        let answer = |h: &char| match h {
            'b' => Some(has(1, 7)),
            _ => None, // d is dead
        };
        let decision = choose(&runs(&[(1, "bc"), (4, "bd")]), answer);
        assert_eq!(decision, Decision::Exact { holder: 'b', version: 7 });
    }

    #[test]
    fn a_run_without_predecessors_is_passed_over() {
        let answer = |_: &char| Some(has(1, 7));
        let decision = choose(&runs(&[(1, "b"), (4, "")]), answer);
        assert_eq!(decision, Decision::Exact { holder: 'b', version: 7 });
    }

    #[test]
    fn the_nearest_present_holder_of_the_newest_run_looks_after_a_lost_owner() {
        let runs = [
            Run { since: 1, holders: vec![('a', 1), ('b', 1)] },
            Run { since: 4, holders: vec![('c', 1), ('b', 1)] },
        ];
        fn of<'a>(runs: &'a [Run<(char, u8)>], ring: &'a [(char, u8)]) -> Option<&'a (char, u8)> {
            let holders = runs.iter().rev().flat_map(|run| &run.holders);
            caretaker(&('o', 1), holders, |node| ring.iter().find(|member| member.0 == node.0))
        }
        let who = |ring: &[(char, u8)]| of(&runs, ring).copied();
        assert_eq!(who(&[('a', 1), ('b', 1), ('c', 1)]), Some(('c', 1)));
        assert_eq!(who(&[('a', 1), ('b', 1), ('c', 2)]), Some(('b', 1)), "a life that held it");
        assert_eq!(who(&[('a', 2), ('c', 2), ('d', 1)]), Some(('c', 2)), "else a later one");
        assert_eq!(who(&[('d', 1), ('o', 2)]), Some(('o', 2)), "else the owner's own");
        assert_eq!(who(&[('d', 1)]), None);
    }

    #[test]
    fn an_owner_that_only_lost_its_place_has_more_than_any_holder() {
        let runs = with_owner(&runs(&[(1, "b"), (4, "c")]), &'o');
        let with = |own| {
            choose(&runs, |&h| match h {
                'o' => own,
                'b' => Some(has(1, 7)),
                _ => None, // the newest holder is lost
            })
        };
        assert_eq!(with(Some(in_owners_memory(9))), Decision::Exact { holder: 'o', version: 9 });
        assert_eq!(with(None), Decision::Unavailable { holders: vec!['o'] });
    }

    #[test]
    fn maybe_stale_takes_the_newest_that_can_be_had() {
        let all =
            [('a', Report { mark: None, version: 4 }), ('b', Report { mark: None, version: 6 })];
        assert_eq!(maybe_stale(all), Some(('b', 6)));
        assert_eq!(maybe_stale::<char>([]), None);
    }
}
