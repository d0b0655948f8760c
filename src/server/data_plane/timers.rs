//! When to look at a checkpoint again. Pure.

use std::{cmp::Reverse, collections::BinaryHeap};

/// One time for each checkpoint, by its index.
#[derive(Debug, Default)]
pub(super) struct Timers {
    due: Vec<Option<u64>>,
    /// Also of times that are not due any more: those are passed over.
    order: BinaryHeap<Reverse<(u64, usize)>>,
}

impl Timers {
    /// At this time at the latest, nanoseconds.
    pub(super) fn set(&mut self, index: usize, at_ns: u64) {
        if self.due.len() <= index {
            self.due.resize(index + 1, None);
        }
        if self.due[index].is_none_or(|due| at_ns < due) {
            self.due[index] = Some(at_ns);
            self.order.push(Reverse((at_ns, index)));
        }
    }

    /// Not at all.
    pub(super) fn clear(&mut self, index: usize) {
        if let Some(due) = self.due.get_mut(index) {
            *due = None;
        }
    }

    /// The first time that was set.
    pub(super) fn next(&mut self) -> Option<u64> {
        while let Some(Reverse((at_ns, index))) = self.order.peek().copied() {
            if self.due[index] == Some(at_ns) {
                return Some(at_ns);
            }
            self.order.pop();
        }
        None
    }

    /// A checkpoint whose time has come; its time is over with that.
    pub(super) fn take(&mut self, now_ns: u64) -> Option<usize> {
        self.next().filter(|at_ns| *at_ns <= now_ns)?;
        let Reverse((_, index)) = self.order.pop()?;
        self.clear(index);
        Some(index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_earliest_time_of_each_counts_once_and_in_order() {
        let mut timers = Timers::default();
        for (index, at_ns) in [(7, 50), (2, 40), (7, 30), (7, 60), (3, 10)] {
            timers.set(index, at_ns);
        }
        timers.clear(3);
        timers.clear(99);
        assert_eq!((timers.next(), timers.take(29)), (Some(30), None));
        assert_eq!(
            [timers.take(100), timers.take(100), timers.take(100)],
            [Some(7), Some(2), None]
        );
        timers.set(7, 70);
        assert_eq!((timers.next(), timers.take(70), timers.next()), (Some(70), Some(7), None));
    }
}
