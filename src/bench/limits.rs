//! What the machine can do at best: a round trip of TCP with the same bytes, a stream of them, memory
//! that is mapped, a copy in it, a checksum.

use std::{
    fs::{self, File},
    hint::black_box,
    io::{self, ErrorKind, Read, Write},
    mem::MaybeUninit,
    net::{Ipv4Addr, TcpListener, TcpStream},
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use rustix::{
    event::{
        PollFd, PollFlags,
        epoll::{self, CreateFlags, EventData, EventFlags},
        poll,
    },
    fs::{MemfdFlags, memfd_create},
    io::retry_on_intr,
    net::sockopt,
};
use twox_hash::XxHash3_64;

use super::{BenchError, turns::Contender};
use crate::region::{
    files::{Backing, Places},
    mapping::Mapping,
    transparent::HUGE_PAGE_BYTES,
};

/// How somebody waits for bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waiting {
    /// Asleep in `read`.
    Asleep,
    /// Asleep in `epoll_wait`, as whoever waits for several.
    Epoll,
    /// Looks for so long, giving its core to whoever wants it, then sleeps. As a server and its
    /// client do.
    Looking(Duration),
    /// Looks for ever.
    Spinning,
}

/// Bytes there, into memory that was written before, and one byte back.
#[derive(Debug)]
pub struct PingPong {
    stream: Waiter,
    state: Vec<u8>,
    /// What is sent, where the state is copied first.
    own_copy: Option<Vec<u8>>,
}

impl PingPong {
    /// Over loopback TCP, set up as servers set up theirs, and a local copy first: what a mirrored
    /// commit cannot do without.
    ///
    /// # Errors
    /// The system refused a connection.
    pub fn start(len: usize, waiting: Waiting) -> io::Result<Self> {
        Ok(Self { own_copy: Some(vec![1; len]), ..Self::raw(len, waiting)? })
    }

    /// The same without the copy: what TCP does by itself.
    ///
    /// # Errors
    /// The system refused a connection.
    pub fn raw(len: usize, waiting: Waiting) -> io::Result<Self> {
        Ok(Self { stream: echo(len, waiting)?, state: vec![7; len], own_copy: None })
    }
}

/// A connection to somebody who receives `len` bytes at a time and answers each time with one.
pub(super) fn echo(len: usize, waiting: Waiting) -> io::Result<Waiter> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let near = TcpStream::connect(listener.local_addr()?)?;
    let (far, _) = listener.accept()?;
    let mut far = Waiter::new(far, waiting)?;
    thread::Builder::new().name("echo".to_owned()).spawn(move || {
        let mut mirror = vec![1; len];
        // Ends with the other side.
        while far.read_exact(&mut mirror).is_ok() && far.write_all(&[1]).is_ok() {}
    })?;
    Waiter::new(near, waiting)
}

/// Bytes one way and no waiting for each answer: what a copy of something large cannot do without.
#[derive(Debug)]
pub struct Stream {
    stream: Waiter,
    state: Vec<u8>,
    window: u64,
    unanswered: u64,
}

impl Stream {
    /// Over loopback TCP, as [`PingPong`]; so many bytes at a time, and as many of these under way
    /// as keep it busy.
    ///
    /// # Errors
    /// The system refused a connection.
    pub fn start(len: usize, waiting: Waiting) -> io::Result<Self> {
        /// More than the sockets' buffers take.
        const UNDER_WAY_BYTES: u64 = 8 << 20;
        /// Their answers lie in a buffer, too.
        const UNDER_WAY_MAX: u64 = 1024;
        let window = (UNDER_WAY_BYTES / len as u64).clamp(2, UNDER_WAY_MAX);
        Ok(Self { stream: echo(len, waiting)?, state: vec![7; len], window, unanswered: 0 })
    }

    fn answer(&mut self) -> io::Result<()> {
        self.unanswered -= 1;
        self.stream.read_exact(&mut [0])
    }
}

/// A step is from one answer to the next: what one of many takes, not how long each is under way.
impl Contender for Stream {
    fn step(&mut self) -> Result<Duration, BenchError> {
        let began = Instant::now();
        while self.unanswered < self.window {
            self.stream.write_all(black_box(&self.state))?;
            self.unanswered += 1;
        }
        self.answer()?;
        Ok(began.elapsed())
    }

    fn settle(&mut self) -> Result<(), BenchError> {
        while self.unanswered > 0 {
            self.answer()?;
        }
        Ok(())
    }
}

impl Contender for PingPong {
    fn step(&mut self) -> Result<Duration, BenchError> {
        let began = Instant::now();
        let state = black_box(&self.state);
        match &mut self.own_copy {
            Some(copy) => {
                copy.copy_from_slice(state);
                self.stream.write_all(copy)?;
            }
            None => self.stream.write_all(state)?,
        }
        self.stream.read_exact(&mut [0])?;
        Ok(began.elapsed())
    }
}

/// A socket and a way to wait for it.
#[derive(Debug)]
pub(super) struct Waiter {
    stream: TcpStream,
    waiting: Waiting,
    epoll: Option<OwnedFd>,
}

impl Waiter {
    fn new(stream: TcpStream, waiting: Waiting) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        // As the transport; not every system has it.
        let _ = sockopt::set_tcp_congestion(&stream, "cubic");
        stream.set_nonblocking(waiting != Waiting::Asleep)?;
        let epoll = (waiting == Waiting::Epoll).then(|| watched(&stream)).transpose()?;
        Ok(Self { stream, waiting, epoll })
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
            if let Some(epoll) = &self.epoll {
                let mut event = [MaybeUninit::uninit()];
                retry_on_intr(|| epoll::wait(epoll, &mut event, None).map(drop))?;
                continue;
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

/// An epoll that tells each time that something about this stream changed, in both directions: whoever
/// waits has just seen that nothing can be done.
fn watched(stream: &TcpStream) -> io::Result<OwnedFd> {
    let epoll = epoll::create(CreateFlags::CLOEXEC)?;
    let flags = EventFlags::IN | EventFlags::OUT | EventFlags::ET;
    epoll::add(&epoll, stream, EventData::new_u64(0), flags)?;
    Ok(epoll)
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

/// New memory that is mapped, and a question that somebody answers over a Unix socket: what opening
/// something that lies in memory cannot do without.
#[derive(Debug)]
pub struct Mapped {
    len: usize,
    server: UnixStream,
}

impl Mapped {
    /// So many bytes at a time.
    ///
    /// # Errors
    /// The system refused a socket or a thread.
    pub fn start(len: usize) -> io::Result<Self> {
        let (server, mut far) = UnixStream::pair()?;
        thread::Builder::new().name("answerer".to_owned()).spawn(move || {
            let mut asked = [0];
            // Ends with the other side.
            while far.read_exact(&mut asked).is_ok() && far.write_all(&asked).is_ok() {}
        })?;
        Ok(Self { len, server })
    }
}

impl Contender for Mapped {
    fn step(&mut self) -> Result<Duration, BenchError> {
        let began = Instant::now();
        self.server.write_all(&[1])?;
        self.server.read_exact(&mut [0])?;
        let file = memfd_create("bench", MemfdFlags::CLOEXEC).map_err(io::Error::from)?;
        let file = File::from(file);
        file.set_len(self.len.next_multiple_of(rustix::param::page_size()) as u64)?;
        let mapping = Mapping::new(&file, self.len)?;
        let mut last = [0];
        mapping.read_at(self.len as u64 - 1, &mut last).map_err(io::Error::other)?;
        black_box(last);
        // Letting go is not part of it.
        Ok(began.elapsed())
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

/// A copy into a region's memory.
#[derive(Debug)]
pub struct Pages {
    from: Vec<u8>,
    to: Mapping,
}

impl Pages {
    /// So many bytes into ordinary pages, as small regions have. `dir` is on tmpfs.
    ///
    /// # Errors
    /// There is no room.
    pub fn ordinary(dir: &Path, len: usize) -> io::Result<Self> {
        Ok(Self::of(&Places { dir: dir.to_owned(), huge: None, joins_pages: false }, len, 1)?.1)
    }

    /// So many bytes into huge pages, of the system's pool or joined ones, as large regions have where
    /// the machine has some to give, and how large one is; else none.
    ///
    /// # Errors
    /// There is no room for them in ordinary pages either.
    pub fn huge(dir: &Path, len: usize) -> io::Result<Option<(u64, Self)>> {
        let places = Places::prepare(dir, &fs::read_to_string("/proc/mounts")?)?;
        let pooled = places.huge.as_ref().map(|(_, page)| *page);
        let page = pooled.unwrap_or(HUGE_PAGE_BYTES);
        // Less than a page would not lie in a huge one.
        let made = Self::of(&places, len, page);
        if let Some((huge_dir, _)) = &places.huge {
            fs::remove_dir(huge_dir)?;
        }
        let (backing, pages) = made?;
        Ok(match backing {
            Backing::Hugetlbfs => Some((page, pages)),
            Backing::Transparent => Some((HUGE_PAGE_BYTES, pages)),
            Backing::Tmpfs => None,
        })
    }

    /// The file's name is gone at once: the mapping keeps the memory for as long as it is needed.
    fn of(places: &Places, len: usize, len_min: u64) -> io::Result<(Backing, Self)> {
        let made = places.create("pages", len_min.max(len as u64)).map_err(io::Error::other)?;
        let mapped = Mapping::new(&made.file, made.bytes as usize);
        fs::remove_file(&made.path)?;
        Ok((made.backing, Self { from: vec![7; len], to: mapped? }))
    }
}

impl Contender for Pages {
    fn step(&mut self) -> Result<Duration, BenchError> {
        let began = Instant::now();
        self.to.write_at(0, black_box(&self.from)).map_err(io::Error::other)?;
        Ok(began.elapsed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_that_settles_has_its_answers_and_goes_on() {
        for len in [1, 100_000, 16 << 20] {
            let mut stream = Stream::start(len, Waiting::Looking(Duration::ZERO)).unwrap();
            for _ in 0..2 {
                (0..3).for_each(|_| assert!(stream.step().is_ok()));
                assert_eq!(stream.unanswered, stream.window - 1);
                stream.settle().unwrap();
                assert_eq!(stream.unanswered, 0);
            }
        }
    }

    #[test]
    fn pages_take_the_bytes_and_leave_nothing_behind() {
        let tmp = tempfile::tempdir_in("/dev/shm").unwrap();
        let dir = tmp.path().join("dir");
        let huge = Pages::huge(&dir, 5).unwrap().into_iter().map(|(_, pages)| pages);
        for mut pages in huge.chain([Pages::ordinary(&dir, 5).unwrap()]) {
            assert!(pages.step().is_ok());
            let mut there = [0; 5];
            pages.to.read_at(0, &mut there).unwrap();
            assert_eq!(there, [7; 5]);
        }
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 0);
    }

    #[test]
    fn memory_of_any_size_is_mapped_again_and_again() {
        for len in [1, 64 << 10, (64 << 10) + 1] {
            let mut mapped = Mapped::start(len).unwrap();
            (0..3).for_each(|_| assert!(mapped.step().is_ok()));
        }
    }

    #[test]
    fn every_way_of_waiting_gets_all_bytes_there_and_an_answer_back() {
        let looking = Waiting::Looking(Duration::ZERO);
        for waiting in [Waiting::Asleep, Waiting::Epoll, looking, Waiting::Spinning] {
            // More than a socket's buffers hold.
            for len in [1, 8 << 20] {
                let mut limit = PingPong::start(len, waiting).unwrap();
                (0..3).for_each(|_| assert!(limit.step().is_ok()));
                assert_eq!(limit.own_copy.as_ref(), Some(&limit.state));
                let mut raw = PingPong::raw(len, waiting).unwrap();
                (0..3).for_each(|_| assert!(raw.step().is_ok()));
            }
        }
    }
}
