//! Contenders take turns in short rounds, so that a noisy moment hits them all.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;

use super::BenchError;

/// How often each contender gets a turn.
const ROUNDS: u32 = 8;

/// What is timed.
pub trait Contender {
    /// Sees to what has to be there before the next step. How long that took, which does not count.
    ///
    /// # Errors
    /// As [`Contender::step`].
    fn prepare(&mut self) -> Result<Duration, BenchError> {
        Ok(Duration::ZERO)
    }

    /// Does it once more. How long it took, from its begin until it was done; of a contender that
    /// has several on their way, of the one that was begun first.
    ///
    /// # Errors
    /// It failed: there is nothing to measure any more.
    fn step(&mut self) -> Result<Duration, BenchError>;

    /// Ends what is on its way.
    ///
    /// # Errors
    /// As [`Contender::step`].
    fn settle(&mut self) -> Result<(), BenchError> {
        Ok(())
    }
}

/// How much of a contender's work is timed.
#[derive(Debug, Clone, Copy)]
pub struct Budget {
    /// So many steps, however long they take.
    pub steps: Option<u64>,
    /// Else for so long.
    pub time: Duration,
    /// Steps at the begin of each turn that are not counted: caches, clocks and sleepers.
    pub warm_up: u64,
}

impl Budget {
    fn is_spent(&self, steps: u64, since: Instant) -> bool {
        match self.steps {
            Some(all) => steps >= all.div_ceil(u64::from(ROUNDS)),
            None => steps > 0 && since.elapsed() >= self.time / ROUNDS,
        }
    }
}

/// What a contender took.
#[derive(Debug, Clone)]
pub struct Times {
    /// Nanoseconds, three significant digits.
    pub histogram: Histogram<u64>,
    /// What all of the steps took together; of a contender that has several on their way, from the
    /// first to the last.
    pub busy: Duration,
}

impl Times {
    fn new() -> Self {
        const LONGEST_NS: u64 = 600_000_000_000;
        let histogram = Histogram::new_with_bounds(1, LONGEST_NS, 3).expect("constant bounds");
        Self { histogram, busy: Duration::ZERO }
    }

    /// Of steps that were timed one by one, elsewhere.
    pub fn of(steps: impl IntoIterator<Item = Duration>) -> Self {
        let mut times = Self::new();
        for took in steps {
            times.record(took);
            times.busy += took;
        }
        times
    }

    fn record(&mut self, took: Duration) {
        self.histogram.saturating_record(took.as_nanos() as u64);
    }

    /// Nanoseconds that this share of the steps did not exceed.
    pub fn quantile(&self, share: f64) -> u64 {
        self.histogram.value_at_quantile(share)
    }

    /// Steps a second.
    pub fn rate(&self) -> f64 {
        self.histogram.len() as f64 / self.busy.as_secs_f64().max(f64::MIN_POSITIVE)
    }
}

/// Times all contenders. `stop` ends it between two steps.
///
/// # Errors
/// The first that a contender reports.
pub fn take_turns<const N: usize>(
    mut contenders: [&mut dyn Contender; N],
    budget: Budget,
    stop: &AtomicBool,
) -> Result<[Times; N], BenchError> {
    let mut times = std::array::from_fn(|_| Times::new());
    rounds(&mut contenders, &mut times, budget, stop)?;
    Ok(times)
}

/// The same for contenders whose number is known only now.
///
/// # Errors
/// As [`take_turns`].
pub fn take_turns_of(
    mut contenders: Vec<&mut dyn Contender>,
    budget: Budget,
    stop: &AtomicBool,
) -> Result<Vec<Times>, BenchError> {
    let mut times = vec![Times::new(); contenders.len()];
    rounds(&mut contenders, &mut times, budget, stop)?;
    Ok(times)
}

fn rounds(
    contenders: &mut [&mut dyn Contender],
    times: &mut [Times],
    budget: Budget,
    stop: &AtomicBool,
) -> Result<(), BenchError> {
    for _ in 0..ROUNDS {
        for (contender, times) in contenders.iter_mut().zip(&mut *times) {
            turn(&mut **contender, budget, times, stop)?;
        }
    }
    Ok(())
}

fn turn(
    contender: &mut dyn Contender,
    budget: Budget,
    times: &mut Times,
    stop: &AtomicBool,
) -> Result<(), BenchError> {
    for _ in 0..budget.warm_up {
        go_on(stop)?;
        contender.prepare()?;
        contender.step()?;
    }
    let (began, mut prepared) = (Instant::now(), Duration::ZERO);
    let mut steps = 0;
    while !budget.is_spent(steps, began) {
        go_on(stop)?;
        prepared += contender.prepare()?;
        times.record(contender.step()?);
        steps += 1;
    }
    times.busy += began.elapsed().saturating_sub(prepared);
    contender.settle()
}

/// An error once somebody asked to stop.
pub(super) fn go_on(stop: &AtomicBool) -> Result<(), BenchError> {
    match stop.load(Ordering::Relaxed) {
        true => Err(BenchError::Interrupted),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    struct Counter<'a> {
        name: char,
        took: Duration,
        order: &'a RefCell<String>,
    }

    impl Contender for Counter<'_> {
        fn step(&mut self) -> Result<Duration, BenchError> {
            self.order.borrow_mut().push(self.name);
            Ok(self.took)
        }
    }

    #[test]
    fn each_gets_its_steps_and_they_take_turns() {
        let order = RefCell::default();
        let contender = |name, ms| Counter { name, took: Duration::from_millis(ms), order: &order };
        let (mut a, mut b) = (contender('a', 1), contender('b', 2));
        let budget = Budget { steps: Some(16), time: Duration::ZERO, warm_up: 1 };
        let stop = AtomicBool::new(false);
        let times = take_turns([&mut a, &mut b], budget, &stop).unwrap();
        assert_eq!(times.each_ref().map(|t| t.histogram.len()), [16, 16]);
        assert_eq!(times[1].quantile(0.5) / times[0].quantile(0.5), 2);
        assert_eq!(*order.borrow(), "aaabbb".repeat(ROUNDS as usize), "two counted, one warm-up");
    }

    #[test]
    fn somebody_who_does_not_want_to_wait_any_longer_does_not() {
        let order = RefCell::default();
        let mut a = Counter { name: 'a', took: Duration::ZERO, order: &order };
        let budget = Budget { steps: None, time: Duration::MAX, warm_up: 0 };
        let stopped = take_turns([&mut a], budget, &AtomicBool::new(true));
        assert!(matches!(stopped, Err(BenchError::Interrupted)));
        let budget = Budget { warm_up: u64::MAX, ..budget };
        let stopped = take_turns([&mut a], budget, &AtomicBool::new(true));
        assert!(matches!(stopped, Err(BenchError::Interrupted)), "nor while warming up");
    }
}
