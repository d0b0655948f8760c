//! A Redis that speaks enough of its protocol for a client that sets a value and waits for replicas.

use std::{
    io::{self, BufRead, BufReader, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
};

/// How it behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// As many replicas acknowledge.
    Replicas(i64),
    /// The replica does not take a value larger than this.
    ReplicaUpTo(usize),
    /// It drops its replica again and again.
    DropsReplica,
    /// It closes the connection instead of storing anything.
    Closes,
    /// It wants this password first.
    Password(&'static str),
    /// It is something else.
    Nonsense,
}

/// It runs as long as the test's process.
pub struct FakeRedis {
    pub address: SocketAddr,
    heard: Arc<Mutex<Vec<String>>>,
}

impl FakeRedis {
    pub fn start(manner: Manner) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let heard = Arc::<Mutex<Vec<String>>>::default();
        let hears = Arc::clone(&heard);
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                // Ends with the client.
                let _ = serve(stream, manner, &hears);
            }
        });
        Self { address, heard }
    }

    /// The commands that it was given so far, without values.
    pub fn heard(&self) -> Vec<String> {
        self.heard.lock().unwrap().clone()
    }
}

fn serve(stream: TcpStream, manner: Manner, hears: &Mutex<Vec<String>>) -> io::Result<()> {
    let mut from = BufReader::new(stream);
    let (mut known, mut len) = (!matches!(manner, Manner::Password(_)), 0);
    loop {
        let words = command(&mut from)?;
        let text = |at: usize| String::from_utf8_lossy(&words[at]).into_owned();
        let answer = match (text(0).as_str(), manner) {
            (_, Manner::Nonsense) => "HTTP/1.1 400 Bad Request\r\n".to_owned(),
            ("AUTH", Manner::Password(password)) => {
                known = text(1) == password;
                if known { "+OK\r\n".to_owned() } else { "-WRONGPASS no\r\n".to_owned() }
            }
            _ if !known => "-NOAUTH Authentication required.\r\n".to_owned(),
            ("SET", Manner::Closes) => return Ok(()),
            ("SET", _) => {
                len = words[2].len();
                "+OK\r\n".to_owned()
            }
            ("WAIT", Manner::Replicas(count)) => format!(":{count}\r\n"),
            ("WAIT", Manner::ReplicaUpTo(max)) => format!(":{}\r\n", i32::from(len <= max)),
            ("WAIT", _) => ":1\r\n".to_owned(),
            ("INFO", _) => {
                let copies = if manner == Manner::DropsReplica { len } else { 1 };
                let about =
                    format!("redis_version:9.8.7\r\naof_enabled:0\r\nsync_full:{copies}\r\n");
                format!("${}\r\n{about}\r\n", about.len())
            }
            ("DEL", _) => ":1\r\n".to_owned(),
            (other, _) => format!("-ERR unknown command '{other}'\r\n"),
        };
        hears.lock().unwrap().push(format!("{} {}", text(0), words.get(1).map_or(0, Vec::len)));
        from.get_mut().write_all(answer.as_bytes())?;
    }
}

fn command(from: &mut impl BufRead) -> io::Result<Vec<Vec<u8>>> {
    let count = number(from)?;
    (0..count)
        .map(|_| {
            let mut word = vec![0; number(from)? + 2];
            from.read_exact(&mut word)?;
            word.truncate(word.len() - 2);
            Ok(word)
        })
        .collect()
}

/// What stands behind the first character of the next line.
fn number(from: &mut impl BufRead) -> io::Result<usize> {
    let mut line = String::new();
    from.read_line(&mut line)?;
    line.get(1..)
        .and_then(|number| number.trim_end().parse().ok())
        .ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}
