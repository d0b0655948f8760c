//! How far the ring is with giving checkpoints their copies, and how fast. Pure.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use crate::{
    name::Name,
    protocol::{CopyState, Status},
};

/// The rate is that of so much time.
const RATE_OVER: Duration = Duration::from_secs(5);

/// Bytes sent, of so many.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Share {
    pub(super) sent: u64,
    pub(super) of: u64,
}

/// The copies since the last time when none was being made.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// By checkpoint and holder. What is complete stays until all is, so that the whole only grows.
    copies: BTreeMap<(Name, Name), Share>,
    /// When so much was sent.
    samples: VecDeque<(Duration, u64)>,
}

impl Progress {
    /// A new status at this time.
    pub(super) fn update(&mut self, now: Duration, status: &Status) {
        let under_way: BTreeMap<(Name, Name), Share> = status
            .checkpoints
            .iter()
            .flat_map(|c| c.syncing.iter().map(move |copy| (c, copy)))
            .map(|(c, copy)| {
                let share = Share { sent: copy.sent_bytes, of: copy.bytes };
                ((c.name.clone(), copy.node.clone()), share)
            })
            .collect();
        if under_way.is_empty() {
            return *self = Self::default();
        }
        // One that is not under way any more is complete, or was given up.
        self.copies.retain(|which, share| {
            share.sent = share.of;
            under_way.contains_key(which) || is_complete(status, which)
        });
        self.copies.extend(under_way);
        let sent = self.total().sent;
        if self.samples.back().is_some_and(|(_, before)| sent < *before) {
            self.samples.clear(); // one was given up or begins anew
        }
        self.samples.push_back((now, sent));
        while self.samples.len() > 2 && self.samples[1].0 + RATE_OVER <= now {
            self.samples.pop_front();
        }
    }

    /// Each copy with its checkpoint and its holder.
    pub(super) fn copies(&self) -> impl Iterator<Item = (&Name, &Name, Share)> {
        self.copies.iter().map(|((name, node), share)| (name, node, *share))
    }

    /// All of them together.
    pub(super) fn total(&self) -> Share {
        self.copies.values().fold(Share::default(), |all, share| Share {
            sent: all.sent + share.sent,
            of: all.of + share.of,
        })
    }

    /// Bytes in a second, once there are two looks at it.
    pub(super) fn bytes_per_second(&self) -> Option<u64> {
        let (began, first) = *self.samples.front()?;
        let (now, last) = *self.samples.back()?;
        let millis = now.checked_sub(began)?.as_millis();
        let bytes = u128::from(last.saturating_sub(first)) * 1000;
        bytes.checked_div(millis).map(|rate| rate.min(u128::from(u64::MAX)) as u64)
    }

    /// How long the rest takes at this rate.
    pub(super) fn left(&self) -> Option<Duration> {
        let total = self.total();
        let rate = self.bytes_per_second().filter(|&rate| rate > 0)?;
        Some(Duration::from_secs((total.of - total.sent.min(total.of)).div_ceil(rate)))
    }
}

fn is_complete(status: &Status, (name, node): &(Name, Name)) -> bool {
    let mut mirrors =
        status.checkpoints.iter().filter(|c| c.name == *name).filter_map(|c| c.mirror.as_ref());
    mirrors.any(|m| m.node == *node && matches!(m.state, CopyState::InSync | CopyState::Lagging))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{cli::status::tests::example, protocol::SyncStatus};

    const MIB: u64 = 1 << 20;

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    /// A status with copies to c of checkpoints with these names.
    fn copying(copies: &[(&str, u64, u64)]) -> Status {
        let mut status = example();
        let one = status.checkpoints.remove(0);
        for (name, sent_bytes, bytes) in copies {
            let node = Name::new("c").unwrap();
            let sync = SyncStatus { node, sent_bytes: *sent_bytes, bytes: *bytes };
            let mut checkpoint = one.clone();
            checkpoint.name = Name::new(name).unwrap();
            checkpoint.syncing = if *bytes > 0 { vec![sync] } else { vec![] };
            status.checkpoints.push(checkpoint);
        }
        status
    }

    #[test]
    fn what_is_complete_counts_until_all_is() {
        let mut progress = Progress::default();
        progress.update(seconds(0), &copying(&[("x", 0, 100 * MIB), ("y", 0, 300 * MIB)]));
        assert_eq!(progress.total(), Share { sent: 0, of: 400 * MIB });
        assert_eq!((progress.bytes_per_second(), progress.left()), (None, None));
        progress.update(seconds(1), &copying(&[("x", 80 * MIB, 100 * MIB), ("y", 0, 300 * MIB)]));
        progress.update(seconds(2), &copying(&[("x", 0, 0), ("y", 20 * MIB, 300 * MIB)]));
        assert_eq!(progress.total(), Share { sent: 120 * MIB, of: 400 * MIB });
        assert_eq!(progress.bytes_per_second(), Some(60 * MIB));
        assert_eq!(progress.left(), Some(seconds(5)));
        progress.update(seconds(3), &copying(&[("x", 0, 0), ("y", 0, 0)]));
        assert_eq!((progress.total(), progress.copies().count()), (Share::default(), 0));
    }

    #[test]
    fn a_copy_that_was_given_up_is_neither_complete_nor_a_rate() {
        let mut progress = Progress::default();
        let mut before = copying(&[("x", 90 * MIB, 100 * MIB)]);
        before.checkpoints[0].syncing[0].node = Name::new("b").unwrap();
        progress.update(seconds(0), &before);
        progress.update(seconds(1), &copying(&[("x", 10 * MIB, 100 * MIB)]));
        assert_eq!(progress.total(), Share { sent: 10 * MIB, of: 100 * MIB });
        assert_eq!(progress.bytes_per_second(), None);
        progress.update(seconds(2), &copying(&[("x", 30 * MIB, 100 * MIB)]));
        assert_eq!(progress.bytes_per_second(), Some(20 * MIB));
    }

    #[test]
    fn a_removed_checkpoint_is_not_waited_for() {
        let mut progress = Progress::default();
        progress.update(seconds(0), &copying(&[("x", 0, MIB), ("y", 0, MIB)]));
        progress.update(seconds(1), &copying(&[("y", 0, MIB)]));
        assert_eq!(progress.total(), Share { sent: 0, of: MIB });
    }

    #[test]
    fn the_rate_is_that_of_the_last_seconds() {
        let mut progress = Progress::default();
        for second in 0..=10 {
            progress.update(seconds(second), &copying(&[("x", second * MIB, 100 * MIB)]));
        }
        for second in 11..=20 {
            progress.update(seconds(second), &copying(&[("x", 10 * MIB, 100 * MIB)]));
        }
        assert_eq!((progress.bytes_per_second(), progress.left()), (Some(0), None));
    }
}
