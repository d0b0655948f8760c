//! Time and timeouts.

use std::{ops::Add, time::Duration};

use serde::{Deserialize, Serialize};

/// A neighbour whose port is closed may be silent for so many heartbeats.
const REFUSED_BEATS: u32 = 2;

/// Nanoseconds of a clock that never goes back while the machine is up, also not when the process
/// restarts (on Linux `CLOCK_BOOTTIME` or `CLOCK_MONOTONIC`). Only differences count.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub struct Time(pub u64);

impl Time {
    /// How long after `earlier` this is; zero if it is not.
    pub fn since(self, earlier: Time) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Time {
    type Output = Time;
    fn add(self, duration: Duration) -> Time {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        Time(self.0.saturating_add(nanos))
    }
}

/// Timeouts. They decide how fast a change is made, never whether it is safe; nodes with different
/// ones work together.
///
/// The profiles differ by a factor of five, except in their limits. Six heartbeats of silence survive several that were lost
/// or sent again by TCP, whose shortest retransmission takes 200 ms on Linux. 600 ms leave time
/// within a second for the decision; corosync's token, for comparison, is 1 to 3 s. The limit is
/// several times the second for which starving servers were seen not to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    /// How often a member tells its two neighbours that it lives.
    pub heartbeat_interval: Duration,
    /// How long a neighbour may at least be silent before it is suspected, several heartbeats; and
    /// how much longer one accuser waits than two.
    pub suspicion_after: Duration,
    /// How far that grows with the delays that were seen lately.
    pub suspicion_max: Duration,
    /// How long each further candidate waits before it does the first candidate's work (δ).
    pub propose_stagger: Duration,
    /// When an unanswered message is sent again.
    pub retry_after: Duration,
    /// How long the one-round ballot may take before the second ballot begins.
    pub slow_ballot_after: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            heartbeat_interval: Duration::from_millis(100),
            suspicion_after: Duration::from_millis(600),
            suspicion_max: Duration::from_secs(5),
            propose_stagger: Duration::from_millis(50),
            retry_after: Duration::from_millis(200),
            slow_ballot_after: Duration::from_millis(250),
        }
    }
}

impl Config {
    /// How long a neighbour whose port is closed may be silent before it is suspected.
    pub fn silence_when_refused(&self) -> Duration {
        self.heartbeat_interval * REFUSED_BEATS
    }

    /// For machines that are overloaded or emulated: five times the default's waiting.
    pub fn patient() -> Self {
        Self {
            heartbeat_interval: Duration::from_millis(500),
            suspicion_after: Duration::from_secs(3),
            suspicion_max: Duration::from_secs(15),
            propose_stagger: Duration::from_millis(250),
            retry_after: Duration::from_secs(1),
            slow_ballot_after: Duration::from_millis(1250),
        }
    }

    /// For a quiet network and machines that are not overloaded: a fifth of the default's waiting.
    pub fn fast() -> Self {
        Self {
            heartbeat_interval: Duration::from_millis(20),
            suspicion_after: Duration::from_millis(120),
            suspicion_max: Duration::from_secs(1),
            propose_stagger: Duration::from_millis(10),
            retry_after: Duration::from_millis(40),
            slow_ballot_after: Duration::from_millis(50),
        }
    }
}
