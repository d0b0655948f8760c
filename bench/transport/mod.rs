//! The TCP transport by itself, in one process, both ends busy polling.

use std::{
    io::Read,
    net::TcpListener,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use ringkeep::{
    region::mapping::Mapping,
    transport::{
        Access, Event, Purpose, Segment, Stamp, Terms, Transport, Work, WorkId,
        tcp::{TcpTransport, Timeouts},
    },
};

const TIME_PER_ROW: Duration = Duration::from_millis(150);

/// Two spinning threads on one core would measure the scheduler.
pub(crate) fn pin(cpu: usize) {
    let mut set = rustix::thread::CpuSet::new();
    set.set(cpu);
    let _ = rustix::thread::sched_setaffinity(None, &set);
}

/// Round trip in microseconds (min, median, p99), and GB/s.
pub(crate) type Figures = ([f64; 3], f64);

/// Runs `exchange` for a while; it answers when it began and how many writes it saw completed.
pub(crate) fn measure(len: u64, mut exchange: impl FnMut() -> (Instant, u64)) -> Figures {
    let warming = Instant::now();
    for _ in 0..20 {
        exchange();
        if warming.elapsed() > TIME_PER_ROW {
            break;
        }
    }
    let begin = Instant::now();
    let (mut micros, mut writes) = (Vec::new(), 0);
    while begin.elapsed() < TIME_PER_ROW {
        let (posted, completed) = exchange();
        writes += completed;
        micros.push(posted.elapsed().as_secs_f64() * 1e6);
    }
    let rate = (writes * len) as f64 / begin.elapsed().as_secs_f64() / 1e9;
    micros.sort_by(f64::total_cmp);
    let at = |part: f64| micros[((micros.len() - 1) as f64 * part) as usize];
    ([at(0.0), at(0.5), at(0.99)], rate)
}

/// Writes of `len` bytes, so many under way at once.
pub(crate) fn ours(len: u64, window: u64) -> Figures {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut near = TcpTransport::new(Timeouts::default()).unwrap();
    let mut far = TcpTransport::new(Timeouts::default()).unwrap();
    let local = near.register(mapping(len), Purpose::Post).unwrap();
    let remote = far.register(mapping(len), Purpose::Grant).unwrap();
    let (conn, offer) = near.offer().unwrap();
    let (far_conn, answer) = far.accept(&offer).unwrap();
    let terms = Terms { epoch: 1, view_min: 1 };
    let key = far.grant(far_conn, remote, Access::Write, terms).unwrap();
    near.finish(conn, &answer, listener.local_addr().unwrap()).unwrap();
    let (mut socket, _) = listener.accept().unwrap();
    let mut events = Vec::new();
    near.poll(&mut events);
    socket.read_exact(&mut [0; 4]).unwrap();
    far.adopter().adopt(socket);

    let stop = Arc::new(AtomicBool::new(false));
    let responder = {
        let stop = stop.clone();
        thread::spawn(move || {
            pin(1);
            let mut events = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                far.poll(&mut events);
            }
        })
    };
    let segments = [Segment { local: 0, remote: 0, len }];
    let stamp = Stamp { epoch: 1, view: 1 };
    let work = Work { id: WorkId(0), conn, memory: local, key, stamp, segments: &segments };
    let mut outstanding = 0;
    let figures = measure(len, || {
        let posted = Instant::now();
        while outstanding < window {
            near.post_write(work).unwrap();
            outstanding += 1;
        }
        while outstanding == window {
            near.poll(&mut events);
            for event in events.drain(..) {
                assert!(matches!(event, Event::Completed { result: Ok(()), .. }), "{event:?}");
                outstanding -= 1;
            }
        }
        (posted, window - outstanding)
    });
    stop.store(true, Ordering::Relaxed);
    responder.join().unwrap();
    figures
}

/// Memory whose pages are there already.
fn mapping(len: u64) -> Arc<Mapping> {
    let file = tempfile::tempfile_in("/dev/shm").or_else(|_| tempfile::tempfile()).unwrap();
    file.set_len(len).unwrap();
    let mapping = Mapping::new(&file, len as usize).unwrap();
    let ones = vec![1; len.min(1 << 20) as usize];
    for at in (0..len).step_by(ones.len()) {
        mapping.write_at(at, &ones[..ones.len().min((len - at) as usize)]).unwrap();
    }
    Arc::new(mapping)
}
