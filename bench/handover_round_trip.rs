//! How long does it take to hand a version over to the server and to hear of it, beside what two
//! threads need at least to answer each other?
//!
//! `cargo bench --bench handover_round_trip`. Two threads, each with its own mapping of the real
//! hand-over memory, as a client and its server have; what the server does with a version between both
//! is left out. `awake`: both look all the time; the limit are two bare words on cache lines of their
//! own. `asleep`: each sleeps until it is woken; the limits are a bare eventfd there and one back, and
//! a futex likewise. Compare the medians inside one group: the limit is the machine's (and, asleep,
//! the kernel's), the rest is ours. With fewer than two free cores `awake` measures the scheduler.
#![allow(missing_docs)]

#[path = "paths/mod.rs"]
#[allow(dead_code)]
mod paths;

use std::{
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread::{self, JoinHandle},
};

use crossbeam_utils::CachePadded;
use rustix::{
    event::{EventfdFlags, eventfd},
    io::{read, write},
    thread::{CpuSet, futex, sched_setaffinity},
};

fn main() {
    pin(0);
    divan::Divan::from_args().min_time(paths::TIME_PER_ROW).main();
}

/// Two threads on one core would measure the scheduler. A machine with one core has no choice.
fn pin(cpu: usize) {
    let mut set = CpuSet::new();
    set.set(cpu);
    let _ = sched_setaffinity(None, &set);
}

/// A thread on the other core that answers until it is told to stop.
struct Answerer {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Answerer {
    /// `answer` does one turn; it may sleep, but not for ever once the last question was asked.
    fn start(mut answer: impl FnMut() + Send + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = thread::spawn(move || {
            pin(1);
            while !stopped.load(Ordering::Relaxed) {
                answer();
            }
        });
        Self { stop, thread: Some(thread) }
    }

    /// `wake` asks once more, so that who sleeps sees that it is over.
    fn stop(mut self, wake: impl FnOnce()) {
        self.stop.store(true, Ordering::Relaxed);
        wake();
        self.thread.take().map(JoinHandle::join).unwrap().unwrap();
    }
}

fn event() -> (OwnedFd, OwnedFd) {
    let one = eventfd(0, EventfdFlags::empty()).unwrap();
    (one.try_clone().unwrap(), one)
}

fn ring(eventfd: &OwnedFd) {
    write(eventfd, &1u64.to_ne_bytes()).unwrap();
}

fn wait(eventfd: &OwnedFd) {
    read(eventfd, &mut [0; 8]).unwrap();
}

/// Both look all the time.
mod awake {
    use std::hint::spin_loop;

    use divan::Bencher;

    use super::{paths::handover::pair, *};

    #[divan::bench]
    fn handover(bencher: Bencher<'_, '_>) {
        let (mut near, mut far) = pair();
        let server = Answerer::start(move || {
            if far.take() {
                assert!(!far.acknowledge());
            } else {
                spin_loop();
            }
        });
        bencher.bench_local(|| {
            assert!(!near.submit());
            while !near.is_mirrored() {
                spin_loop();
            }
        });
        server.stop(|| {});
    }

    #[divan::bench]
    fn bare_words(bencher: Bencher<'_, '_>) {
        let words = Arc::new([const { CachePadded::new(AtomicU32::new(0)) }; 2]);
        let (there, mut seen) = (words.clone(), 0);
        let server = Answerer::start(move || match there[0].load(Ordering::Acquire) {
            asked if asked != seen => {
                seen = asked;
                there[1].store(asked, Ordering::Release);
            }
            _ => spin_loop(),
        });
        let mut asked = 0;
        bencher.bench_local(|| {
            asked += 1;
            words[0].store(asked, Ordering::Release);
            while words[1].load(Ordering::Acquire) != asked {
                spin_loop();
            }
        });
        server.stop(|| {});
    }
}

/// Each sleeps until it is woken.
mod asleep {
    use divan::Bencher;

    use super::{paths::handover::pair, *};

    #[divan::bench]
    fn handover(bencher: Bencher<'_, '_>) {
        let (mut near, mut far) = pair();
        let ((doorbell, far_doorbell), (wake, far_wake)) = (event(), event());
        let server = Answerer::start(move || {
            if far.consumer.fall_asleep() {
                wait(&far_doorbell);
            }
            far.consumer.wake_up();
            while far.take() {
                if far.acknowledge() {
                    ring(&far_wake);
                }
            }
        });
        bencher.bench_local(|| {
            if near.submit() {
                ring(&doorbell);
            }
            near.producer.fall_asleep();
            while !near.is_mirrored() {
                wait(&wake);
            }
            near.producer.wake_up();
        });
        server.stop(|| ring(&doorbell));
    }

    #[divan::bench]
    fn bare_eventfds(bencher: Bencher<'_, '_>) {
        let ((there, far_there), (back, far_back)) = (event(), event());
        let server = Answerer::start(move || {
            wait(&far_there);
            ring(&far_back);
        });
        bencher.bench_local(|| {
            ring(&there);
            wait(&back);
        });
        server.stop(|| ring(&there));
    }

    #[divan::bench]
    fn bare_futexes(bencher: Bencher<'_, '_>) {
        let words = Arc::new([const { CachePadded::new(AtomicU32::new(0)) }; 2]);
        let (there, mut seen) = (words.clone(), 0);
        let server = Answerer::start(move || {
            seen = sleep_on(&there[0], seen);
            tell(&there[1], seen);
        });
        let mut asked = 0;
        bencher.bench_local(|| {
            asked += 1;
            tell(&words[0], asked);
            sleep_on(&words[1], asked - 1);
        });
        server.stop(|| tell(&words[0], asked + 1));
    }

    fn tell(word: &AtomicU32, value: u32) {
        word.store(value, Ordering::Release);
        futex::wake(word, futex::Flags::empty(), 1).unwrap();
    }

    /// Until the word is another; what it is then.
    fn sleep_on(word: &AtomicU32, old: u32) -> u32 {
        while word.load(Ordering::Acquire) == old {
            // It may be another already, or this was interrupted: look again.
            let _ = futex::wait(word, futex::Flags::empty(), old, None);
        }
        word.load(Ordering::Acquire)
    }
}
