//! Which requests are done. Pure.
//!
//! A reliable queue pair completes in order, so the completion of a piece stands for every piece
//! before it. The first one that failed stands for the end: whatever a later completion says, all
//! requests behind it are flushed.

use std::collections::VecDeque;

use super::completion_queue::{Completion, Outcome};
use crate::transport::{MemoryId, WorkError, WorkId};

/// A request that was taken over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) id: WorkId,
    pub(super) memory: MemoryId,
    /// The number after its last piece's.
    pub(super) end: u64,
    /// It names bytes outside of the remote memory: what is posted of it is meant to be refused.
    pub(super) outside: bool,
}

#[derive(Debug, Default)]
pub(super) struct Ledger {
    requests: VecDeque<Request>,
    /// The number after the last piece that is known to be done.
    done: u64,
    /// How the first piece that failed ended, and whether its request was told.
    failed: Option<(Outcome, bool)>,
}

impl Ledger {
    pub(super) fn push(&mut self, request: Request) {
        self.requests.push_back(request);
    }

    /// Requests that were not told yet.
    pub(super) fn len(&self) -> usize {
        self.requests.len()
    }

    pub(super) fn done(&self) -> u64 {
        self.done
    }

    /// How the first piece that failed ended.
    pub(super) fn failed(&self) -> Option<Outcome> {
        self.failed.map(|(outcome, _)| outcome)
    }

    /// The device tells of a piece.
    pub(super) fn completed(&mut self, completion: Completion) {
        match (self.failed, completion.outcome) {
            (Some(_), _) => {}
            (None, Outcome::Done) => self.done = completion.piece + 1,
            (None, outcome) => {
                self.done = self.done.max(completion.piece);
                self.failed = Some((outcome, false));
            }
        }
    }

    /// The connection ends: what is not known to be done is flushed.
    pub(super) fn end(&mut self) {
        self.failed.get_or_insert((Outcome::Flushed, false));
    }

    /// The next request, in the order of posting, of which it is known what became of it.
    pub(super) fn next(&mut self) -> Option<(Request, Result<(), WorkError>)> {
        let first = self.requests.front()?;
        let result = if first.end <= self.done {
            if first.outside {
                // The peer says that its memory is smaller than its device thinks.
                self.failed.get_or_insert((Outcome::Refused, true));
                Err(WorkError::RemoteBounds)
            } else {
                Ok(())
            }
        } else {
            let (outcome, told) = self.failed.as_mut()?;
            Err(if std::mem::replace(told, true) {
                WorkError::Flushed
            } else {
                told_as(*outcome, first.outside)
            })
        };
        Some((self.requests.pop_front()?, result))
    }
}

fn told_as(outcome: Outcome, outside: bool) -> WorkError {
    match outcome {
        Outcome::Refused if outside => WorkError::RemoteBounds,
        Outcome::Refused => WorkError::Fenced,
        Outcome::Unanswered => WorkError::Unreachable,
        Outcome::Done | Outcome::Flushed => WorkError::Flushed,
        Outcome::Broken(_) => WorkError::Device,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENDS: [u64; 4] = [3, 4, 9, 10];

    fn ledger(outside: Option<usize>) -> Ledger {
        let mut ledger = Ledger::default();
        for (at, end) in ENDS.into_iter().enumerate() {
            let outside = outside == Some(at);
            ledger.push(Request { id: WorkId(at as u64), memory: MemoryId(1), end, outside });
        }
        ledger
    }

    fn told(ledger: &mut Ledger) -> Vec<Result<(), WorkError>> {
        std::iter::from_fn(|| ledger.next()).map(|(_, result)| result).collect()
    }

    /// However the completions are cut into polls, the same is told.
    #[test]
    fn what_is_flushed_is_never_told_as_done() {
        const FLUSHED: Result<(), WorkError> = Err(WorkError::Flushed);
        // The first request is done, the second refused, the others flushed, each piece told of.
        let mut all = vec![(2, Outcome::Done), (3, Outcome::Refused)];
        all.extend((4..10).map(|piece| (piece, Outcome::Flushed)));
        let whole = [Ok(()), Err(WorkError::Fenced), FLUSHED, FLUSHED];
        for cut in 0..=all.len() {
            let mut ledger = ledger(None);
            let mut seen = Vec::new();
            for part in [&all[..cut], &all[cut..]] {
                for &(piece, outcome) in part {
                    ledger.completed(Completion { piece, outcome });
                }
                seen.extend(told(&mut ledger));
            }
            assert_eq!(seen, whole, "cut at {cut}");
        }
    }

    #[test]
    fn one_completion_stands_for_all_before_it_and_no_more() {
        let mut ledger = ledger(None);
        ledger.completed(Completion { piece: 8, outcome: Outcome::Done });
        assert_eq!((told(&mut ledger), ledger.len()), (vec![Ok(()); 3], 1));
        ledger.end();
        assert_eq!(told(&mut ledger), [Err(WorkError::Flushed)]);
    }

    #[test]
    fn a_failure_in_the_middle_of_a_request_is_that_requests() {
        let mut ledger = ledger(None);
        ledger.completed(Completion { piece: 6, outcome: Outcome::Unanswered });
        let unreachable = Err(WorkError::Unreachable);
        assert_eq!(told(&mut ledger), [Ok(()), Ok(()), unreachable, Err(WorkError::Flushed)]);
    }

    /// A key that says less than the device allows: nothing that it was used for counts.
    #[test]
    fn a_request_outside_that_was_let_through_counts_as_refused() {
        let mut ledger = ledger(Some(1));
        ledger.completed(Completion { piece: 9, outcome: Outcome::Done });
        assert_eq!(told(&mut ledger)[..2], [Ok(()), Err(WorkError::RemoteBounds)]);
        assert_eq!(ledger.failed(), Some(Outcome::Refused));
    }
}
