//! What was injected, by type.

use std::fmt;

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    Crash,
    CrashBeforeVoting,
    CrashWhileVoting,
    CrashBetweenOutputs,
    CrashInUpdate,
    PowerLoss,
    Cut,
    OneWayCut,
    Flap,
    Pause,
    SlowNode,
    ClockJump,
    Leave,
    CollidingStarts,
    HalfLandedMark,
    Takeover,
    Drop,
    Duplicate,
    Delay,
    LateWrite,
    TornWrite,
    LostAcknowledgement,
}

const NAMES: [&str; 22] = [
    "processes killed",
    "killed before a vote was stored",
    "killed between a vote and its message",
    "killed between two consequences of one event",
    "killed in the middle of an update",
    "memory lost",
    "cuts both ways",
    "cuts one way",
    "flapping links",
    "processes stopped for a while",
    "slow nodes",
    "clocks jumped",
    "graceful leaves",
    "several joins at once",
    "cut off or killed at a sync mark",
    "checkpoints taken over",
    "messages dropped",
    "messages doubled",
    "messages overtaken",
    "writes that landed late",
    "writes torn for good",
    "writes done and never acknowledged",
];

/// How often each happened.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tally {
    counts: [u64; NAMES.len()],
    /// Simulated time, in milliseconds.
    pub(crate) simulated_ms: u64,
    pub(crate) runs: u64,
    pub(crate) committed: u64,
    /// Updates that were given up half written.
    pub(crate) given_up: u64,
    pub(crate) acknowledged: u64,
    pub(crate) views: u64,
    pub(crate) adopted: u64,
    /// Checkpoints of which all memories that had the last acknowledged version were lost.
    pub(crate) lost_rightly: u64,
    /// Runs in the end of which most voters had lost their memory: nobody may go on then.
    pub(crate) without_majority: u64,
    /// The seeds of runs after which not everything came back.
    pub(crate) stuck: Vec<u64>,
    /// Checkpoints of which a copy is left that may not be the newest.
    pub(crate) kept_back: u64,
}

impl Tally {
    pub(crate) fn add(&mut self, fault: Fault) {
        self.add_many(fault, 1);
    }

    pub(crate) fn add_many(&mut self, fault: Fault, count: u64) {
        self.counts[fault as usize] += count;
    }

    pub(crate) fn faults(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The kinds that did not happen.
    pub(crate) fn kinds_left_out(&self) -> Vec<&'static str> {
        let left_out = NAMES.iter().zip(self.counts).filter(|(_, count)| *count == 0);
        left_out.map(|(name, _)| *name).collect()
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        for (count, more) in self.counts.iter_mut().zip(other.counts) {
            *count += more;
        }
        self.simulated_ms += other.simulated_ms;
        self.runs += other.runs;
        self.committed += other.committed;
        self.given_up += other.given_up;
        self.acknowledged += other.acknowledged;
        self.views += other.views;
        self.adopted += other.adopted;
        self.lost_rightly += other.lost_rightly;
        self.kept_back += other.kept_back;
        self.without_majority += other.without_majority;
        self.stuck.extend(&other.stuck);
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, count) in NAMES.iter().zip(self.counts) {
            writeln!(f, "{count:>12}  {name}")?;
        }
        writeln!(f, "{:>12}  faults together", self.faults())?;
        writeln!(f, "{:>12}  runs, {} s of simulated time", self.runs, self.simulated_ms / 1000)?;
        writeln!(f, "{:>12}  views", self.views)?;
        writeln!(f, "{:>12}  versions committed", self.committed)?;
        writeln!(f, "{:>12}  updates given up half written", self.given_up)?;
        writeln!(f, "{:>12}  versions acknowledged as mirrored", self.acknowledged)?;
        writeln!(f, "{:>12}  checkpoints recovered from a mirror", self.adopted)?;
        writeln!(
            f,
            "{:>12}  checkpoints of which every memory that had them was lost",
            self.lost_rightly
        )?;
        writeln!(
            f,
            "{:>12}  checkpoints kept back, since what was lost may have been newer",
            self.kept_back
        )?;
        writeln!(f, "{:>12}  runs that cost most voters their memory", self.without_majority)?;
        write!(
            f,
            "{:>12}  runs after which not everything came back by itself: seeds {:?}",
            self.stuck.len(),
            self.stuck
        )
    }
}
