//! What a simulated network does to its traffic, by which dice, and how often it did.

/// How the network behaves when nothing is cut. Times are ticks of [`super::FakeNet::advance`].
#[derive(Debug, Clone, Copy)]
pub struct Weather {
    /// Each request and each acknowledgement takes one to this many ticks more than none.
    pub delay_ticks_max: u64,
    /// How much later still the last requests of a crashed or closed initiator may arrive.
    pub late_ticks_max: u64,
    /// How long a path may be broken before both ends give the connection up.
    pub retry_ticks: u64,
    /// Place a request's words in random order over several ticks, so that others see it half done.
    pub torn: bool,
}

impl Default for Weather {
    fn default() -> Self {
        Self { delay_ticks_max: 0, late_ticks_max: 10, retry_ticks: 40, torn: false }
    }
}

/// What was injected so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Requests and acknowledgements that were held back.
    pub delayed: u64,
    /// Directions cut.
    pub cuts: u64,
    /// Nodes crashed.
    pub crashes: u64,
    /// Turns in which a request was left half placed, to be seen so.
    pub torn_turns: u64,
    /// Requests that stayed half placed for good.
    pub torn_for_good: u64,
    /// Requests lost whole.
    pub lost: u64,
    /// Placements after the initiator had crashed or closed, or past a cut.
    pub late: u64,
    /// Requests that the responder did, of which the initiator never learned.
    pub unacknowledged: u64,
    /// Requests refused.
    pub refused: u64,
}

/// Dice that fall the same way for the same seed (splitmix64).
#[derive(Debug)]
pub(super) struct Dice(u64);

impl Dice {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(super) fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Zero to `max`, both possible.
    pub(super) fn up_to(&mut self, max: u64) -> u64 {
        if max == u64::MAX { self.word() } else { self.word() % (max + 1) }
    }

    /// Nothing, everything, or something between: each a third of the time.
    pub(super) fn part_of(&mut self, whole: u64) -> u64 {
        match self.up_to(2) {
            0 => 0,
            1 => whole,
            _ => self.up_to(whole),
        }
    }

    pub(super) fn coin(&mut self) -> bool {
        self.word() & 1 == 1
    }
}
