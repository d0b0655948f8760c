//! The round trip of TCP as a service has it whose server stands between: three parties.

use std::{
    hint::black_box,
    io::{self, Read, Write},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle, Thread},
    time::{Duration, Instant},
};

use crossbeam_utils::CachePadded;

use super::{
    BenchError,
    limits::{Waiter, Waiting, echo},
    turns::Contender,
};
use crate::pause::Pause;

/// A copy in memory, a word to another thread, its round trip of TCP with the bytes, a word back.
/// Whoever waits does it as a service and its server do.
#[derive(Debug)]
pub struct HandedPingPong {
    shared: Arc<Shared>,
    relay: Option<JoinHandle<()>>,
    waiting: Waiting,
    state: Vec<u8>,
    turn: u64,
}

#[derive(Debug)]
struct Shared {
    bytes: Mutex<Vec<u8>>,
    asked: CachePadded<AtomicU64>,
    answered: CachePadded<AtomicU64>,
    over: AtomicBool,
}

impl HandedPingPong {
    /// Over loopback TCP, set up as servers set up theirs.
    ///
    /// # Errors
    /// The system refused a connection or a thread.
    pub fn start(len: usize, waiting: Waiting) -> io::Result<Self> {
        let stream = echo(len, waiting)?;
        let shared = Arc::new(Shared {
            bytes: Mutex::new(vec![1; len]),
            asked: CachePadded::default(),
            answered: CachePadded::default(),
            over: AtomicBool::new(false),
        });
        let (theirs, asker) = (Arc::clone(&shared), thread::current());
        let relay = thread::Builder::new()
            .name("relay".to_owned())
            .spawn(move || relay(&theirs, stream, waiting, &asker))?;
        Ok(Self { shared, relay: Some(relay), waiting, state: vec![7; len], turn: 0 })
    }
}

/// Ends with the other side, or with the connection.
fn relay(shared: &Shared, mut stream: Waiter, waiting: Waiting, asker: &Thread) {
    for turn in 1.. {
        let over = || shared.over.load(Ordering::Acquire);
        wait(waiting, || shared.asked.load(Ordering::Acquire) >= turn || over());
        let bytes = shared.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        let answered = !over() && stream.write_all(&bytes).is_ok();
        if !answered || stream.read_exact(&mut [0]).is_err() {
            shared.over.store(true, Ordering::Release);
        }
        drop(bytes);
        shared.answered.store(turn, Ordering::Release);
        asker.unpark();
        if over() {
            return;
        }
    }
}

/// Until `done`, of which whoever makes it so wakes this thread.
fn wait(waiting: Waiting, done: impl Fn() -> bool) {
    let (began, pause) = (Instant::now(), Pause::default());
    while !done() {
        match waiting {
            Waiting::Spinning => pause.pause(),
            Waiting::Looking(time) if began.elapsed() < time => pause.pause(),
            Waiting::Looking(_) | Waiting::Asleep | Waiting::Epoll => thread::park(),
        }
    }
}

impl Contender for HandedPingPong {
    fn step(&mut self) -> Result<Duration, BenchError> {
        let (shared, began) = (&self.shared, Instant::now());
        self.turn += 1;
        // Nobody else holds it: words order the two.
        let mut bytes = shared.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        bytes.copy_from_slice(black_box(&self.state));
        drop(bytes);
        shared.asked.store(self.turn, Ordering::Release);
        if let Some(relay) = &self.relay {
            relay.thread().unpark();
        }
        wait(self.waiting, || shared.answered.load(Ordering::Acquire) >= self.turn);
        if shared.over.load(Ordering::Acquire) {
            return Err(io::Error::from(io::ErrorKind::BrokenPipe).into());
        }
        Ok(began.elapsed())
    }
}

impl Drop for HandedPingPong {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::Release);
        if let Some(relay) = self.relay.take() {
            relay.thread().unpark();
            // It has nothing more to tell.
            let _ = relay.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_go_through_the_relay_however_one_waits() {
        for waiting in [Waiting::Asleep, Waiting::Looking(Duration::ZERO), Waiting::Spinning] {
            for len in [1, 8 << 20] {
                let mut limit = HandedPingPong::start(len, waiting).unwrap();
                (0..3).for_each(|_| assert!(limit.step().is_ok()));
                assert_eq!(*limit.shared.bytes.lock().unwrap(), limit.state);
            }
        }
    }
}
