//! What the machine can do at best: a round trip of TCP with the same bytes, a copy in memory, a
//! checksum.

use std::{
    hint::black_box,
    io::{self, ErrorKind, Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    net::sockopt,
};
use twox_hash::XxHash3_64;

use super::{BenchError, turns::Contender};

/// How somebody waits for bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waiting {
    /// Asleep in `read`.
    Asleep,
    /// Looks for so long, giving its core to whoever wants it, then sleeps. As a server and its
    /// client do.
    Looking(Duration),
    /// Looks for ever.
    Spinning,
}

/// Bytes there, into memory that was written before, and one byte back; a local copy first. What a
/// mirrored commit cannot do without.
#[derive(Debug)]
pub struct PingPong {
    stream: Waiter,
    state: Vec<u8>,
    own_copy: Vec<u8>,
}

impl PingPong {
    /// Over loopback TCP, set up as servers set up theirs.
    ///
    /// # Errors
    /// The system refused a connection.
    pub fn start(len: usize, waiting: Waiting) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let near = TcpStream::connect(listener.local_addr()?)?;
        let (far, _) = listener.accept()?;
        let mut far = Waiter::new(far, waiting)?;
        thread::Builder::new().name("echo".to_owned()).spawn(move || {
            let mut mirror = vec![1; len];
            // Ends with the other side.
            while far.read_exact(&mut mirror).is_ok() && far.write_all(&[1]).is_ok() {}
        })?;
        let (state, own_copy) = (vec![7; len], vec![1; len]);
        Ok(Self { stream: Waiter::new(near, waiting)?, state, own_copy })
    }
}

impl Contender for PingPong {
    fn step(&mut self) -> Result<Duration, BenchError> {
        let began = Instant::now();
        self.own_copy.copy_from_slice(black_box(&self.state));
        self.stream.write_all(&self.own_copy)?;
        self.stream.read_exact(&mut [0])?;
        Ok(began.elapsed())
    }
}

/// A socket and a way to wait for it.
#[derive(Debug)]
struct Waiter {
    stream: TcpStream,
    waiting: Waiting,
}

impl Waiter {
    fn new(stream: TcpStream, waiting: Waiting) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        // As the transport; not every system has it.
        let _ = sockopt::set_tcp_congestion(&stream, "cubic");
        stream.set_nonblocking(waiting != Waiting::Asleep)?;
        Ok(Self { stream, waiting })
    }

    /// Tries until it is done.
    fn wait<T>(
        &mut self,
        flags: PollFlags,
        mut tried: impl FnMut(&mut TcpStream) -> io::Result<T>,
    ) -> io::Result<T> {
        let mut began = None;
        loop {
            match tried(&mut self.stream) {
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                done => return done,
            }
            let looked = began.get_or_insert_with(Instant::now).elapsed();
            if matches!(self.waiting, Waiting::Looking(time) if looked > time) {
                poll(&mut [PollFd::new(&self.stream, flags)], None)?;
            } else {
                thread::yield_now();
            }
        }
    }
}

impl Read for Waiter {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.wait(PollFlags::IN, |stream| stream.read(bytes))
    }
}

impl Write for Waiter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.wait(PollFlags::OUT, |stream| stream.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Work on memory that was touched before.
#[derive(Debug)]
pub struct Memory {
    from: Vec<u8>,
    to: Vec<u8>,
    copies: bool,
    hashes: bool,
}

impl Memory {
    /// A copy of so many bytes.
    pub fn copy(len: usize) -> Self {
        Self { from: vec![7; len], to: vec![1; len], copies: true, hashes: false }
    }

    /// Their checksum (XXH3, as in a region).
    pub fn checksum(len: usize) -> Self {
        Self { from: vec![7; len], to: Vec::new(), copies: false, hashes: true }
    }

    /// Both: what a local commit cannot do without.
    pub fn copy_and_checksum(len: usize) -> Self {
        Self { hashes: true, ..Self::copy(len) }
    }
}

impl Contender for Memory {
    fn step(&mut self) -> Result<Duration, BenchError> {
        let began = Instant::now();
        if self.copies {
            self.to.copy_from_slice(black_box(&self.from));
        }
        if self.hashes {
            black_box(XxHash3_64::oneshot(black_box(if self.copies {
                &self.to
            } else {
                &self.from
            })));
        }
        black_box(&mut self.to);
        Ok(began.elapsed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_of_waiting_gets_all_bytes_there_and_an_answer_back() {
        for waiting in [Waiting::Asleep, Waiting::Looking(Duration::ZERO), Waiting::Spinning] {
            // More than a socket's buffers hold.
            for len in [1, 8 << 20] {
                let mut limit = PingPong::start(len, waiting).unwrap();
                (0..3).for_each(|_| assert!(limit.step().is_ok()));
                assert_eq!(limit.own_copy, limit.state);
            }
        }
    }
}
