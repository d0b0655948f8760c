//! `ringkeep status --watch` as a person at a terminal and as a script see it.
#![cfg(feature = "cli")]

mod common;

use std::{
    io::{BufRead, BufReader, Read},
    process::{Child, Stdio},
    sync::mpsc,
};

use common::{Ring, command, poll, servers::Server, terminal::Terminal};
use ringkeep::{
    Durability, Options,
    protocol::{LinkState, Status},
};
use rustix::process::Signal;

const WATCH: &[&str] = &["status", "--watch", "--interval", "100ms"];

fn server() -> Server {
    let mut server = Server::new("alone", &["--listen", "127.0.0.1:0", "--transport", "tcp"]);
    server.start();
    server
}

fn watched(server: &Server, columns: u16, rows: u16) -> Terminal {
    let terminal = Terminal::start(command(&server.socket(), WATCH), columns, rows);
    terminal.shows("alone is ");
    assert!(terminal.is_taken());
    terminal
}

#[test]
fn however_it_ends_the_terminal_is_given_back() {
    let server = server();
    let ways: [fn(&mut Terminal); 6] = [
        |terminal| terminal.types(b"q"),
        |terminal| terminal.types(b"x\x1b[A Q"),
        |terminal| terminal.types(b"\x03"),
        |terminal| terminal.signal(Signal::TERM),
        |terminal| terminal.signal(Signal::INT),
        |terminal| terminal.signal(Signal::HUP),
    ];
    for (number, end) in ways.into_iter().enumerate() {
        let mut terminal = watched(&server, 80, 24);
        end(&mut terminal);
        assert_eq!(terminal.ended().code(), Some(0), "way {number}");
        poll("the terminal as it was", || match terminal.is_given_back() {
            true => Ok(()),
            false => Err(format!("way {number}: {}", terminal.text())),
        });
    }
}

#[test]
fn the_page_fits_whatever_size_the_window_gets() {
    let server = server();
    let mut state = server.client().open("state", Options::capacity(100)).unwrap();
    state.save(b"one", Durability::Local).unwrap();
    let terminal = watched(&server, 100, 30);
    terminal.shows("CHECKPOINT");
    terminal.resize(30, 5);
    terminal.shows("(more in a larger window)");
    assert!(!terminal.text().contains("CHECKPOINT"), "{}", terminal.text());
    terminal.resize(120, 50);
    terminal.shows("╰"); // the ring's picture
    terminal.shows("CHECKPOINT");
    assert!(!terminal.text().contains("larger window"), "{}", terminal.text());
}

#[test]
fn a_server_that_goes_away_is_awaited() {
    let mut server = server();
    let mut terminal = watched(&server, 100, 30);
    server.kill_9();
    terminal.shows("NO ANSWER from alone");
    server.start();
    terminal.shows("the server answers again");
    terminal.shows("alone is protected");
    // One that is there and does not answer keeps nobody from leaving.
    let hung = rustix::process::Pid::from_raw(server.pid() as i32).unwrap();
    rustix::process::kill_process(hung, Signal::STOP).unwrap();
    terminal.shows("does not answer within 2s");
    terminal.types(b"q");
    assert_eq!(terminal.ended().code(), Some(0));
}

#[test]
fn a_person_sees_the_ring_change() {
    let mut ring = Ring::start(3);
    let mut state = ring.client(0).open("state", Options::capacity(100)).unwrap();
    state.save(b"one", Durability::Mirrored).unwrap();
    let mirror = ring.predecessor(0);
    let terminal = Terminal::start(command(&ring.node(0).socket(), WATCH), 120, 30);
    let (lost, other) = (ring.node(mirror).name(), ring.node(3 - mirror).name());
    for part in [
        "a is protected",
        "a (this node) ",
        &format!("{lost} (predecessor)"),
        &format!("to {lost} "),
        "in-sync",
        "memory [",
    ] {
        terminal.shows(part);
    }
    let (lost, other) = (lost.to_owned(), other.to_owned());
    ring.node_mut(mirror).kill_9();
    terminal.shows(&format!("{lost} is gone"));
    terminal.shows(&format!("state: its mirror is on {other}"));
    terminal.shows(&format!("{other} (predecessor, successor)"));
    ring.restart(mirror);
    terminal.shows(&format!("{lost} joined"));
}

/// What a script reads, and the process that writes it.
struct Lines {
    child: Child,
    said: mpsc::Receiver<String>,
    warned: mpsc::Receiver<String>,
}

/// The lines of a pipe as they come; it is closed when nobody takes them any more.
fn lines_of(pipe: impl Read + Send + 'static) -> mpsc::Receiver<String> {
    let (sender, lines) = mpsc::sync_channel(0);
    std::thread::spawn(move || {
        for line in BufReader::new(pipe).lines() {
            if line.is_err() || sender.send(line.unwrap()).is_err() {
                return;
            }
        }
    });
    lines
}

impl Lines {
    fn start(server: &Server, args: &[&str]) -> Self {
        let args: Vec<&str> = WATCH.iter().chain(args).copied().collect();
        let mut command = command(&server.socket(), &args);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let said = lines_of(child.stdout.take().unwrap());
        let warned = lines_of(child.stderr.take().unwrap());
        Self { child, said, warned }
    }

    fn next(&self) -> String {
        self.said.recv_timeout(common::LIMIT).expect("a line")
    }

    fn warned(&self) -> String {
        self.warned.recv_timeout(common::LIMIT).expect("a warning")
    }

    /// Stops reading, and answers how the process takes it.
    #[track_caller]
    fn leave(mut self) -> (Option<i32>, Vec<String>) {
        let Self { child, said, warned } = &mut self;
        drop(std::mem::replace(said, mpsc::channel().1));
        let status = poll("its end", || match child.try_wait().unwrap() {
            Some(status) => Ok(status),
            None => Err("running".to_owned()),
        });
        (status.code(), warned.iter().collect())
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_script_gets_a_line_of_json_each_time_and_may_leave() {
    let mut server = server();
    let lines = Lines::start(&server, &["--json"]);
    let status = |line: String| serde_json::from_str::<Status>(&line).unwrap();
    for _ in 0..3 {
        assert_eq!(status(lines.next()).node.as_str(), "alone");
    }
    let before = server.status().unwrap().memory_bytes;
    let mut state = server.client().open("state", Options::capacity(100)).unwrap();
    state.save(b"one", Durability::Local).unwrap();
    let seen = poll("the new checkpoint", || match status(lines.next()) {
        status if status.checkpoints.is_empty() => Err("none".to_owned()),
        status => Ok(status),
    });
    assert!(seen.memory_bytes > before);

    server.kill_9();
    let gone = poll("the warning", || match lines.warned.try_recv() {
        Ok(line) => Ok(line),
        Err(_) => Err(format!("{:?}", lines.said.try_recv())),
    });
    assert!(gone.contains("asking again"), "{gone}");
    server.start();
    assert!(lines.warned().contains("answers again"));
    status(lines.next());
    assert_eq!(lines.leave(), (Some(0), vec![]));
}

#[test]
fn a_reader_may_leave_while_the_server_is_gone() {
    let mut server = server();
    let lines = Lines::start(&server, &[]);
    assert_eq!(lines.next(), "alone is protected: every checkpoint here has two live copies");
    server.kill_9();
    poll("the warning", || match lines.warned.try_recv() {
        Ok(line) => Ok(line),
        Err(_) => Err(format!("{:?}", lines.said.try_recv())),
    });
    let (status, _) = lines.leave();
    assert_eq!(status, Some(0));
}

#[test]
fn a_link_is_told_to_be_down_where_its_other_end_is_gone() {
    let a = server();
    let mut b = Server::new(
        "b",
        &["--listen", "127.0.0.1:0", "--transport", "tcp", "--join", &a.address()],
    );
    b.start();
    a.wait("the ring", |status| common::members(status, 2));
    let mut state = a.client().open("state", Options::capacity(100)).unwrap();
    state.save(b"one", Durability::Mirrored).unwrap();
    let transport = |status: &Status| {
        let mirror = common::owned(status, "state").and_then(|c| c.mirror.clone());
        mirror.map(|mirror| mirror.transport)
    };
    let up = a.wait("the mirror", |status| common::in_sync(status, "state"));
    assert_eq!(transport(&up), Some(Some(ringkeep::transport::Kind::Tcp)));
    assert!(up.links.iter().any(|l| l.node.as_str() == "b" && l.state == LinkState::Up));
    // Two nodes cannot vote each other out: the holder stays the holder.
    b.kill_9();
    let down = a.wait("the link's end", |status| transport(status) == Some(None));
    assert!(down.links.iter().all(|link| link.state != LinkState::Up), "{:?}", down.links);
    assert!(a.ok(&["status"]).contains(" down"));
    b.start();
    a.wait("the link", |status| common::in_sync(status, "state"));
}

/// Large enough that making the copy is seen.
#[test]
fn a_copy_that_is_being_made_is_counted() {
    const LEN: u64 = 64 << 20;
    let mut ring = Ring::start(3);
    let mut state = ring.client(0).open("state", Options::capacity(LEN)).unwrap();
    state.save(&vec![7; LEN as usize], Durability::Mirrored).unwrap();
    let (mirror, client) = (ring.predecessor(0), ring.client(0));
    let next = ring.node(3 - mirror).name().to_owned();
    ring.node_mut(mirror).kill_9();
    let mut seen: Vec<(u64, u64)> = Vec::new();
    poll("the new copy", || {
        let status = client.status().unwrap();
        let of = |c: &ringkeep::protocol::OwnedStatus| c.syncing.clone();
        let syncing = common::owned(&status, "state").map(of).unwrap();
        let to_next = syncing.iter().filter(|copy| copy.node.as_str() == next);
        seen.extend(to_next.map(|copy| (copy.sent_bytes, copy.bytes)));
        let done = syncing.is_empty() && common::in_sync(&status, "state");
        if done && common::members(&status, 2) { Ok(()) } else { Err(format!("{seen:?}")) }
    });
    assert!(!seen.is_empty() && seen.is_sorted_by_key(|(sent, _)| sent), "{seen:?}");
    assert!(seen.iter().all(|(sent, of)| sent <= of && (LEN..2 * LEN).contains(of)), "{seen:?}");
}

#[test]
fn without_a_server_at_the_start_there_is_nothing_to_watch() {
    let nowhere = std::path::Path::new("/nowhere/sock");
    for args in [WATCH, &["status", "--watch", "--json"]] {
        common::refused(&command(nowhere, args).output().unwrap(), 8);
    }
    let mut terminal = Terminal::start(command(nowhere, WATCH), 80, 24);
    assert_eq!(terminal.ended().code(), Some(8));
    assert!(terminal.is_given_back());
    for args in [&["status", "--interval", "1s"][..], &["status", "--watch", "--interval", "1ms"]] {
        common::refused(&command(nowhere, args).output().unwrap(), 2);
    }
}
