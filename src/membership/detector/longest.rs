//! The longest of some durations, lately.

use std::time::Duration;

use crate::membership::Time;

/// After one to two of these a long duration is forgotten.
pub(super) const WINDOW: Duration = Duration::from_secs(120);

/// The maximum over the present window and the one before it: constant memory, no arithmetic that
/// drifts, and whatever happened in the last [`WINDOW`] counts in full.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Longest {
    begun: Time,
    present: Duration,
    before: Duration,
}

impl Longest {
    pub(super) fn observe(&mut self, duration: Duration, now: Time) {
        *self = self.at(now);
        self.present = self.present.max(duration);
    }

    pub(super) fn get(&self, now: Time) -> Duration {
        let Self { present, before, .. } = self.at(now);
        present.max(before)
    }

    /// What is left of it at `now`.
    fn at(&self, now: Time) -> Self {
        let age = now.since(self.begun);
        if age < WINDOW {
            *self
        } else if age < WINDOW * 2 {
            let begun = self.begun + WINDOW;
            Self { begun, present: Duration::ZERO, before: self.present }
        } else {
            Self { begun: now, ..Self::default() }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_counts_for_a_window_and_is_forgotten_after_two() {
        let at = |secs| Time(0) + Duration::from_secs(secs);
        let (long, short) = (Duration::from_secs(3), Duration::from_millis(100));
        let mut longest = Longest::default();
        longest.observe(long, at(1000));
        for secs in 1001..=1000 + 2 * WINDOW.as_secs() {
            longest.observe(short, at(secs));
            let counts = longest.get(at(secs)) == long;
            assert!(counts || secs > 1000 + WINDOW.as_secs(), "forgotten after {secs}");
        }
        assert_eq!(longest.get(at(1000 + 2 * WINDOW.as_secs())), short);
        assert_eq!(longest.get(at(10_000)), Duration::ZERO);
    }
}
