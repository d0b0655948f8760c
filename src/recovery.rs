//! Which copy of a dead owner's checkpoint is the newest valid one, and from where. Pure.
//!
//! **First fence, then read** (rules F1 and H5): every report that comes in here was given by a
//! holder after it stopped accepting the old owner's writes. The walk goes from the newest holder
//! back to older ones and ends at the first whose sync mark is at least as new as the begin of the
//! time in which it was the predecessor: that copy has every acknowledged version. A holder that
//! cannot be asked ends the walk, since it may be the only one that has the newest version.

use crate::commit::Version;

/// A time in which one node was an owner's predecessor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run<H> {
    /// The view in which it became the predecessor.
    pub since: u64,
    /// The node.
    pub holder: H,
}

/// What a fenced holder has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
    /// This holder would have to be asked and cannot be: never hand out something older silently.
    Unavailable {
        /// The holder that cannot be reached.
        holder: H,
    },
    /// No holder was ever synced.
    Nothing,
}

/// Walks the holders from the newest to the oldest. `runs` is in order of time; `report` answers
/// for a holder that was fenced, `None` for one that cannot be reached.
pub fn choose<H: Clone>(runs: &[Run<H>], report: impl Fn(&H) -> Option<Report>) -> Decision<H> {
    for run in runs.iter().rev() {
        let holder = run.holder.clone();
        match report(&run.holder) {
            None => return Decision::Unavailable { holder },
            Some(Report { mark: Some(mark), version }) if mark >= run.since => {
                return Decision::Exact { holder, version };
            }
            Some(_) => {}
        }
    }
    Decision::Nothing
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

    fn runs(list: &[(u64, char)]) -> Vec<Run<char>> {
        list.iter().map(|&(since, holder)| Run { since, holder }).collect()
    }

    #[test]
    fn the_newest_holder_that_was_synced_in_its_time_is_exact() {
        let report = |h: &char| match h {
            'c' => Some(Report { mark: Some(5), version: 9 }),
            _ => None,
        };
        let decision = choose(&runs(&[(1, 'b'), (4, 'c')]), report);
        assert_eq!(decision, Decision::Exact { holder: 'c', version: 9 });
    }

    #[test]
    fn a_holder_whose_sync_was_not_done_sends_the_walk_to_the_one_before() {
        let report = |h: &char| match h {
            'b' => Some(Report { mark: Some(1), version: 7 }),
            // Its mark is from an earlier time as predecessor: old news.
            'c' => Some(Report { mark: Some(2), version: 3 }),
            _ => None,
        };
        let decision = choose(&runs(&[(1, 'b'), (4, 'c')]), report);
        assert_eq!(decision, Decision::Exact { holder: 'b', version: 7 });
    }

    #[test]
    fn an_older_copy_is_never_handed_out_while_a_newer_holder_is_silent() {
        let report = |h: &char| (*h == 'b').then_some(Report { mark: Some(1), version: 7 });
        let decision = choose(&runs(&[(1, 'b'), (4, 'c')]), report);
        assert_eq!(decision, Decision::Unavailable { holder: 'c' });
    }

    #[test]
    fn maybe_stale_takes_the_newest_that_can_be_had() {
        let all =
            [('a', Report { mark: None, version: 4 }), ('b', Report { mark: None, version: 6 })];
        assert_eq!(maybe_stale(all), Some(('b', 6)));
        assert_eq!(maybe_stale::<char>([]), None);
    }
}
