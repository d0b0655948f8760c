//! Which way into the kernel carries a commit best over loopback TCP: the same bytes, in turns.
//!
//! `cargo bench --bench tcp_ways`. A small commit is a round trip: two parties look for what comes,
//! giving their core away between two looks, as servers do on two cores. A large one is bytes from a
//! file in memory into memory that was written before, and one byte back. The first way of each table
//! is the one that the others are divided by; below 1 is better.

#[path = "transport/pair.rs"]
mod pair;

use std::{
    cell::RefCell,
    fs::File,
    hint::black_box,
    io::{ErrorKind, Read, Write},
    mem::MaybeUninit,
    net::TcpStream,
    os::fd::{AsRawFd, OwnedFd},
    thread,
    time::{Duration, Instant},
};

use io_uring::{IoUring, opcode, types::Fd};
use memmap2::{MmapMut, MmapOptions};
use pair::pair;
use rustix::{
    event::{
        Timespec,
        epoll::{self, CreateFlags, Event, EventData, EventFlags},
    },
    fs::{MemfdFlags, memfd_create},
    io::Errno,
    net::{RecvAncillaryBuffer, RecvFlags, SendFlags, recvmsg, send},
};

/// All ways take turns so often; the median of all their exchanges counts.
const TURNS: usize = 5;
const TIME_PER_TURN: Duration = Duration::from_millis(200);
/// An acknowledgement of the transport.
const ANSWER: usize = 32;
/// Bytes that one call may send without a copy: each pins its pages until they are acknowledged.
const UNCOPIED_AT_ONCE: usize = 1 << 20;

fn main() {
    println!("round trips, median µs (beside the first)");
    let mut ways = vec![Way::Told, Way::Looking];
    match IoUring::new(8) {
        Ok(_) => ways.push(Way::Ring),
        Err(error) => println!("without io_uring, which this system refuses: {error}"),
    }
    for len in [256, 4300] {
        let medians = in_turns(&ways, |way| round_trips(way, len));
        row(len, ways.iter().map(Way::name).zip(medians));
    }
    let ways = [Bulk::Copied, Bulk::File, Bulk::Uncopied];
    for (what, written) in
        [("just written, as in a commit", true), ("at rest, as in a copy", false)]
    {
        println!("bytes from memory {what}, median µs (beside the first)");
        for len in [64 << 10, 1 << 20, 16 << 20, 256 << 20] {
            let medians = in_turns(&ways, |way| transfers(way, len, written));
            row(len, ways.iter().map(Bulk::name).zip(medians));
        }
    }
}

fn row<'a>(len: usize, ways: impl Iterator<Item = (&'a str, f64)>) {
    print!("{len:>10} B");
    let mut first = None;
    for (name, median) in ways {
        let first = *first.get_or_insert(median);
        print!("   {name} {median:.1} ({:.2})", median / first);
    }
    println!();
}

/// The median of what each way took, in microseconds.
fn in_turns<W: Copy>(ways: &[W], run: impl Fn(W) -> Vec<f64>) -> Vec<f64> {
    let mut taken = vec![Vec::new(); ways.len()];
    for _ in 0..TURNS {
        for (way, taken) in ways.iter().zip(&mut taken) {
            taken.extend(run(*way));
        }
    }
    let median = |mut micros: Vec<f64>| {
        micros.sort_by(f64::total_cmp);
        micros[micros.len() / 2]
    };
    taken.into_iter().map(median).collect()
}

/// Exchanges until the time of a turn is over, after as many that are not counted. What an exchange
/// begins with is not timed.
fn timed(mut begin: impl FnMut(), mut exchange: impl FnMut()) -> Vec<f64> {
    let began = Instant::now();
    let mut micros = Vec::new();
    while began.elapsed() < TIME_PER_TURN || micros.len() < 4 {
        begin();
        let began = Instant::now();
        exchange();
        micros.push(began.elapsed().as_secs_f64() * 1e6);
    }
    micros.split_off(micros.len() / 2)
}

/// How somebody learns that bytes are there, and gets them.
#[derive(Debug, Clone, Copy)]
enum Way {
    /// Asks an epoll instance, then receives.
    Told,
    /// Receives, whether something is there or not.
    Looking,
    /// Hands an io_uring what it sends and receives in one call, and looks for completions.
    Ring,
}

impl Way {
    fn name(&self) -> &'static str {
        match self {
            Self::Told => "epoll, recv, send",
            Self::Looking => "recv, send",
            Self::Ring => "io_uring",
        }
    }
}

enum Source {
    Epoll(OwnedFd),
    Socket,
    Ring(Box<IoUring>),
}

struct End {
    socket: TcpStream,
    source: Source,
}

impl End {
    fn new(socket: TcpStream, way: Way) -> Self {
        let source = match way {
            Way::Told => {
                let epoll = epoll::create(CreateFlags::CLOEXEC).unwrap();
                let flags = EventFlags::IN | EventFlags::ET;
                epoll::add(&epoll, &socket, EventData::new_u64(0), flags).unwrap();
                Source::Epoll(epoll)
            }
            Way::Looking => Source::Socket,
            Way::Ring => Source::Ring(Box::new(IoUring::new(8).unwrap())),
        };
        socket.set_nonblocking(!matches!(way, Way::Ring)).unwrap();
        Self { socket, source }
    }

    /// Sends all of `out`, then waits for all of `place`. False at the end of the stream.
    fn exchange(&mut self, out: &[u8], place: &mut [u8]) -> bool {
        if let Source::Ring(ring) = &mut self.source {
            return exchange_by(ring, &self.socket, out, place);
        }
        if !out.is_empty() && self.socket.write_all(out).is_err() {
            return false;
        }
        let mut got = 0;
        while got < place.len() {
            if let Source::Epoll(epoll) = &self.source
                && !is_told(epoll)
            {
                thread::yield_now();
                continue;
            }
            match self.socket.read(&mut place[got..]) {
                Ok(0) => return false,
                Ok(some) => got += some,
                Err(error) if error.kind() == ErrorKind::WouldBlock => thread::yield_now(),
                Err(_) => return false,
            }
        }
        true
    }
}

fn is_told(epoll: &OwnedFd) -> bool {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    let mut fired = [const { MaybeUninit::<Event>::uninit() }; 8];
    let (fired, _) = epoll::wait(epoll, &mut fired, Some(&now)).unwrap();
    !fired.is_empty()
}

fn exchange_by(ring: &mut IoUring, socket: &TcpStream, out: &[u8], place: &mut [u8]) -> bool {
    let fd = Fd(socket.as_raw_fd());
    let sending = opcode::Send::new(fd, out.as_ptr(), out.len() as u32)
        .flags(libc::MSG_NOSIGNAL)
        .build()
        .user_data(0);
    let receiving = opcode::Recv::new(fd, place.as_mut_ptr(), place.len() as u32)
        .flags(libc::MSG_WAITALL)
        .build()
        .user_data(1);
    let mut under_way = 1;
    if !out.is_empty() {
        // SAFETY: the buffer is borrowed until this returns, which it does only when nothing is under
        // way any more.
        unsafe { ring.submission().push(&sending).unwrap() };
        under_way += 1;
    }
    // SAFETY: as above.
    unsafe { ring.submission().push(&receiving).unwrap() };
    ring.submit().unwrap();
    let mut received = 0;
    while under_way > 0 {
        let Some(done) = ring.completion().next() else {
            thread::yield_now();
            continue;
        };
        under_way -= 1;
        if done.user_data() == 1 {
            received = done.result();
        }
    }
    received == place.len() as i32
}

fn round_trips(way: Way, len: usize) -> Vec<f64> {
    let (near, far) = pair();
    let responder = thread::spawn(move || {
        let (mut far, mut place) = (End::new(far, way), vec![1; len]);
        let mut answer: &[u8] = &[];
        while far.exchange(answer, &mut place) {
            answer = &[2; ANSWER];
        }
    });
    let (mut near, bytes) = (End::new(near, way), vec![1; len]);
    let taken = timed(|| (), || assert!(near.exchange(&bytes, &mut [0; ANSWER])));
    drop(near);
    responder.join().unwrap();
    taken
}

/// How many bytes leave.
#[derive(Debug, Clone, Copy)]
enum Bulk {
    /// `send`: the kernel copies them.
    Copied,
    /// `sendfile`: it sends the file's own pages.
    File,
    /// `MSG_ZEROCOPY`: it sends the mapping's pages and says when it is done with them.
    Uncopied,
}

impl Bulk {
    fn name(&self) -> &'static str {
        match self {
            Self::Copied => "send",
            Self::File => "sendfile",
            Self::Uncopied => "MSG_ZEROCOPY",
        }
    }

    /// Sends what the socket takes of the bytes from `at` on.
    fn send(self, socket: &TcpStream, file: &File, bytes: &[u8], at: usize) -> usize {
        let rest = &bytes[at..];
        let sent = match self {
            Self::Copied => send(socket, rest, SendFlags::NOSIGNAL),
            Self::File => {
                let mut offset = at as u64;
                rustix::fs::sendfile(socket, file, Some(&mut offset), rest.len())
            }
            Self::Uncopied => {
                let flags = SendFlags::from_bits_retain(libc::MSG_ZEROCOPY as u32);
                let rest = &rest[..rest.len().min(UNCOPIED_AT_ONCE)];
                let sent = send(socket, rest, SendFlags::NOSIGNAL | flags);
                hear_of_completions(socket);
                sent
            }
        };
        match sent {
            // As many notices as the socket may hold are waiting: they were just taken.
            Err(Errno::NOBUFS) => 0,
            sent => sent.unwrap(),
        }
    }
}

fn hear_of_completions(socket: &TcpStream) {
    let mut space = [MaybeUninit::uninit(); 256];
    let flags = RecvFlags::ERRQUEUE | RecvFlags::DONTWAIT;
    while recvmsg(socket, &mut [], &mut RecvAncillaryBuffer::new(&mut space), flags).is_ok() {}
}

fn allow_uncopied(socket: &TcpStream) {
    let (on, len) = (1_i32, size_of::<i32>() as libc::socklen_t);
    // SAFETY: the option is an `int`, which outlives the call.
    let done = unsafe {
        let on = (&raw const on).cast();
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_ZEROCOPY, on, len)
    };
    assert_eq!(done, 0, "SO_ZEROCOPY: {}", std::io::Error::last_os_error());
}

fn memory(len: usize) -> (File, MmapMut) {
    let file = File::from(memfd_create("tcp_ways", MemfdFlags::CLOEXEC).unwrap());
    file.set_len(len as u64).unwrap();
    // SAFETY: nobody else knows the file, and it keeps its length.
    let mut bytes = unsafe { MmapOptions::new().len(len).map_mut(&file).unwrap() };
    bytes.fill(7);
    (file, bytes)
}

fn transfers(way: Bulk, len: usize, written: bool) -> Vec<f64> {
    let (mut near, mut far) = pair();
    allow_uncopied(&near);
    let receiver = thread::spawn(move || {
        let mut place = vec![1; len];
        while far.read_exact(&mut place).is_ok() && far.write_all(&[1]).is_ok() {
            black_box(&mut place);
        }
    });
    let (file, bytes) = memory(len);
    let bytes = RefCell::new(bytes);
    let write = || {
        if written {
            bytes.borrow_mut().fill(3);
        }
    };
    let taken = timed(write, || {
        let (bytes, mut sent) = (bytes.borrow(), 0);
        while sent < len {
            sent += way.send(&near, &file, &bytes, sent);
        }
        near.read_exact(&mut [0]).unwrap();
    });
    drop(near);
    receiver.join().unwrap();
    taken
}
