//! A mirrored commit beside what people have today, in one run: Redis SET+WAIT, a file with fsync
//! and rename (one copy), and the round trip of TCP itself. Compare ratios, not times.
//!
//! ```sh
//! cargo bench --bench compare
//! ```
//!
//! Contenders take turns in short rounds, so that a noisy moment hits them all. Redis is left out
//! when there is no `redis-server`.

use std::{
    error::Error,
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, atomic::AtomicBool},
    thread,
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use ringkeep::{Checkpoint, Client, Durability, Options, demo::ring};

const SIZES: [usize; 3] = [64, 4096, 65536];
const ROUNDS: usize = 6;
/// One contender, one size, one round.
const TURN: Duration = Duration::from_millis(200);
/// Not measured at the begin of each turn: caches, clocks, sleepers.
const WARM_UP: usize = 5;

type Fallible<T> = Result<T, Box<dyn Error>>;

trait Contender {
    fn name(&self) -> &'static str;
    fn commit(&mut self, bytes: &[u8]) -> Fallible<()>;
}

fn main() -> Fallible<()> {
    // `cargo test --benches` runs this, too: then it only has to compile.
    if !std::env::args().any(|argument| argument == "--bench") {
        return Ok(());
    }
    let tmp = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("compare");
    fs::create_dir_all(&tmp)?;
    let ring = ring::Ring::start(
        Path::new(env!("CARGO_BIN_EXE_ringkeep")),
        3,
        "tcp",
        Arc::new(AtomicBool::new(false)),
    )?;
    let mut contenders: Vec<Box<dyn Contender>> = vec![
        Box::new(Raw::start()?),
        Box::new(Mirrored::start(&ring.node(0).client()?)?),
        Box::new(FileFsync { dir: tmp.clone() }),
    ];
    match Redis::start(&tmp) {
        Ok(redis) => contenders.push(Box::new(redis)),
        Err(error) => eprintln!("without Redis: {error}"),
    }
    let mut times = vec![[(); SIZES.len()].map(|()| histogram()); contenders.len()];
    for _ in 0..ROUNDS {
        for (size, &bytes) in SIZES.iter().enumerate() {
            for (contender, times) in contenders.iter_mut().zip(&mut times) {
                turn(contender.as_mut(), bytes, &mut times[size])?;
            }
        }
    }
    print(&contenders, &times);
    drop(contenders);
    ring.stop();
    fs::remove_dir_all(&tmp)?;
    Ok(())
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("constant bounds")
}

fn turn(contender: &mut dyn Contender, len: usize, times: &mut Histogram<u64>) -> Fallible<()> {
    let mut bytes = vec![7; len];
    let end = Instant::now() + TURN;
    for number in 0.. {
        bytes[number % len] = number as u8;
        let started = Instant::now();
        contender.commit(&bytes)?;
        let ended = Instant::now();
        if number >= WARM_UP {
            times.saturating_record((ended - started).as_nanos() as u64);
        }
        if ended >= end && number > WARM_UP {
            break;
        }
    }
    Ok(())
}

fn print(contenders: &[Box<dyn Contender>], times: &[[Histogram<u64>; SIZES.len()]]) {
    println!(
        "{:>7}  {:<24} {:>8} {:>10} {:>10} {:>10} {:>14}",
        "#bytes", "", "count", "min[us]", "median[us]", "p99[us]", "of ringkeep's"
    );
    let ours = contenders.iter().position(|c| c.name() == Mirrored::NAME).unwrap_or(0);
    for (size, bytes) in SIZES.iter().enumerate() {
        let median = |index: usize| times[index][size].value_at_quantile(0.5) as f64;
        for (index, contender) in contenders.iter().enumerate() {
            let all = &times[index][size];
            println!(
                "{bytes:>7}  {:<24} {:>8} {:>10.1} {:>10.1} {:>10.1} {:>13.2}x",
                contender.name(),
                all.len(),
                all.min() as f64 / 1e3,
                median(index) / 1e3,
                all.value_at_quantile(0.99) as f64 / 1e3,
                median(index) / median(ours),
            );
        }
    }
}

/// What is measured here.
struct Mirrored(Vec<(usize, Checkpoint)>);

impl Mirrored {
    const NAME: &'static str = "ringkeep mirrored";

    fn start(client: &Client) -> Fallible<Self> {
        let open = |&len: &usize| {
            let options = Options::capacity(len as u64);
            client.open(&format!("compare-{len}"), options).map(|opened| (len, opened))
        };
        Ok(Self(SIZES.iter().map(open).collect::<Result<_, _>>()?))
    }
}

impl Contender for Mirrored {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn commit(&mut self, bytes: &[u8]) -> Fallible<()> {
        let found = self.0.iter_mut().find(|(len, _)| *len == bytes.len());
        let (_, checkpoint) = found.ok_or("a size that was not opened")?;
        checkpoint.save(bytes, Durability::Mirrored)?;
        Ok(())
    }
}

/// The limit: the bytes there, one byte back, two blocking threads.
struct Raw(TcpStream);

impl Raw {
    fn start() -> Fallible<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let near = TcpStream::connect(listener.local_addr()?)?;
        near.set_nodelay(true)?;
        let (mut far, _) = listener.accept()?;
        far.set_nodelay(true)?;
        thread::spawn(move || {
            let mut buffer = vec![0; 65536];
            let mut len = [0; 4];
            // Ends with the other side.
            while far.read_exact(&mut len).is_ok() {
                let part = &mut buffer[..u32::from_le_bytes(len) as usize];
                if far.read_exact(part).is_err() || far.write_all(&[1]).is_err() {
                    break;
                }
            }
        });
        Ok(Self(near))
    }
}

impl Contender for Raw {
    fn name(&self) -> &'static str {
        "TCP round trip"
    }

    fn commit(&mut self, bytes: &[u8]) -> Fallible<()> {
        let mut message = (bytes.len() as u32).to_le_bytes().to_vec();
        message.extend_from_slice(bytes);
        self.0.write_all(&message)?;
        self.0.read_exact(&mut [0])?;
        Ok(())
    }
}

/// One copy on a disk.
struct FileFsync {
    dir: PathBuf,
}

impl Contender for FileFsync {
    fn name(&self) -> &'static str {
        "file, fsync, rename"
    }

    fn commit(&mut self, bytes: &[u8]) -> Fallible<()> {
        let (new, path) = (self.dir.join("state.new"), self.dir.join("state"));
        let mut file = fs::File::create(&new)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(new, path)?;
        fs::File::open(&self.dir)?.sync_all()?;
        Ok(())
    }
}

/// A Redis server and one replica, without persistence: two copies in memory.
struct Redis {
    stream: BufReader<TcpStream>,
    servers: Vec<Child>,
}

impl Redis {
    fn start(dir: &Path) -> Fallible<Self> {
        // Both ports are free now; that they still are when the servers bind is likely enough.
        let listeners = [(); 2].map(|()| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)));
        let mut ports = Vec::new();
        for listener in listeners {
            ports.push(listener?.local_addr()?.port());
        }
        let mut servers = Servers(Vec::new());
        for (index, port) in ports.iter().enumerate() {
            let mut command = Command::new("redis-server");
            command.args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--save", ""]);
            command.args(["--appendonly", "no", "--repl-diskless-sync-delay", "0", "--dir"]);
            command.arg(dir).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            if index > 0 {
                command.args(["--replicaof", "127.0.0.1", &ports[0].to_string()]);
            }
            servers.0.push(command.spawn().map_err(|e| format!("redis-server: {e}"))?);
        }
        let never = AtomicBool::new(false);
        let stream = ring::poll("Redis", ring::LIMIT, &never, || {
            TcpStream::connect((Ipv4Addr::LOCALHOST, ports[0])).map_err(|e| e.to_string())
        })?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(ring::LIMIT))?;
        let servers = std::mem::take(&mut servers.0);
        let mut redis = Self { stream: BufReader::new(stream), servers };
        ring::poll("the replica", ring::LIMIT, &never, || {
            redis.commit(b"ready?").map_err(|e| e.to_string())
        })?;
        Ok(redis)
    }

    fn answer(&mut self) -> Fallible<String> {
        let mut line = String::new();
        self.stream.read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    }
}

impl Contender for Redis {
    fn name(&self) -> &'static str {
        "Redis SET+WAIT 1"
    }

    /// Both commands in one write.
    fn commit(&mut self, bytes: &[u8]) -> Fallible<()> {
        let len = bytes.len();
        let mut message = format!("*3\r\n$3\r\nSET\r\n$5\r\nstate\r\n${len}\r\n").into_bytes();
        message.extend_from_slice(bytes);
        message.extend_from_slice(b"\r\n*3\r\n$4\r\nWAIT\r\n$1\r\n1\r\n$4\r\n1000\r\n");
        self.stream.get_mut().write_all(&message)?;
        match (self.answer()?.as_str(), self.answer()?.as_str()) {
            ("+OK", ":1") => Ok(()),
            (set, wait) => Err(format!("SET said {set:?}, WAIT said {wait:?}").into()),
        }
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        drop(Servers(std::mem::take(&mut self.servers)));
    }
}

/// Processes that end with this.
struct Servers(Vec<Child>);

impl Drop for Servers {
    fn drop(&mut self) {
        for server in &mut self.0 {
            // It may be gone already.
            let _ = server.kill();
            let _ = server.wait();
        }
    }
}
