//! `ringkeep status --watch`: on a terminal a page that follows the server, elsewhere one status
//! after another.

use std::{
    io::{self, IsTerminal},
    sync::mpsc::{self, RecvTimeoutError, Sender},
    thread,
    time::{Duration, Instant},
};

use crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{
    page::{Watch, Window},
    screen::Screen,
    text,
};
use crate::{
    cli::{
        args::{Global, StatusArgs},
        connect,
        exit::{self, Exit, Failure, Outcome},
        json_line, signals, warn,
    },
    client::RequestError,
    demo::drawing::Charset,
    protocol::Status,
};

/// A server that does not answer within this, or within the interval if that is longer, is said not
/// to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);
/// The page's times go on though nothing happens.
const REPAINT_AFTER: Duration = Duration::from_secs(1);

/// Follows the server until the person, or the reader, has seen enough.
pub(super) fn run(global: &Global, args: &StatusArgs) -> Outcome {
    let client = connect(global)?;
    let limit = args.interval.max(ANSWER_LIMIT);
    let ask = move || client.status_within(limit);
    // No server at the start is a failure; one that goes away later is awaited.
    let first = ask()?;
    match io::stdout().is_terminal() && !args.output.json {
        true => on_screen(first, ask, args.interval),
        false => as_lines(global, args, first, ask),
    }
}

// One status after another.

fn as_lines(
    global: &Global,
    args: &StatusArgs,
    first: Status,
    ask: impl Fn() -> Result<Status, RequestError>,
) -> Outcome {
    let charset = Charset::of_environment();
    let (mut answer, mut gone) = (Ok(first), false);
    loop {
        let asked = Instant::now();
        match &answer {
            Ok(status) => {
                if std::mem::take(&mut gone) {
                    warn(global, "the server answers again");
                }
                let said = match args.output.json {
                    true => json_line(status)?,
                    false => text(status, charset) + "\n",
                };
                if !exit::print_on(&said)? {
                    return Ok(Exit::Done);
                }
            }
            Err(error) => {
                if !std::mem::replace(&mut gone, true) {
                    warn(global, format_args!("{error}; asking again"));
                }
            }
        }
        if reader_left(args.interval.saturating_sub(asked.elapsed())) {
            return Ok(Exit::Done);
        }
        answer = ask();
    }
}

/// Waits so long. True at once when nobody reads standard output any more.
fn reader_left(wait: Duration) -> bool {
    let deadline = Instant::now() + wait;
    let out = io::stdout();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout =
            Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        // Errors and the end are told without being asked for.
        let mut fds = [PollFd::new(&out, PollFlags::empty())];
        match poll(&mut fds, Some(&timeout)) {
            Ok(0) => return false,
            Ok(_) => return true,
            Err(_) if left.is_zero() => return false, // interrupted by a signal
            Err(_) => {}
        }
    }
}

// On a terminal.

enum Happened {
    /// The server answered, or why it did not.
    Answer(Box<Result<Status, String>>),
    Resized,
    /// The person, or a signal, wants to end it.
    End,
}

fn on_screen(
    first: Status,
    ask: impl Fn() -> Result<Status, RequestError> + Send + 'static,
    interval: Duration,
) -> Outcome {
    let system = |what: &str, e| Failure::new(Exit::Failed, format_args!("{what}: {e}"));
    let (happens, happened) = mpsc::channel();
    let end = happens.clone();
    // Whoever does not listen any more has ended already.
    let ending = signals::on_end(move || drop(end.send(Happened::End)));
    ending.map_err(|e| system("listening to signals", e))?;
    let mut screen = Screen::open().map_err(|e| system("taking the terminal", e))?;
    let keys = happens.clone();
    let follow = |name: &str, run: Box<dyn FnOnce() + Send>| {
        thread::Builder::new().name(name.to_owned()).spawn(run)
    };
    let started = follow("keys", Box::new(move || tell_keys(&keys)))
        .and_then(|_| follow("asking", Box::new(move || tell_answers(&happens, ask, interval))));
    started.map_err(|e| system("starting a thread", e))?;

    let (began, mut watch) = (Instant::now(), Watch::new(first));
    let charset = Charset::of_environment();
    loop {
        let painted = Screen::size().and_then(|(columns, rows)| {
            screen.paint(&watch.page(began.elapsed(), Window { columns, rows, charset }))
        });
        if painted.is_err() {
            return Ok(Exit::Done); // the terminal is gone: its person went away
        }
        match happened.recv_timeout(REPAINT_AFTER) {
            Ok(Happened::Answer(answer)) => watch.heard(began.elapsed(), *answer),
            Ok(Happened::Resized) | Err(RecvTimeoutError::Timeout) => {}
            Ok(Happened::End) | Err(RecvTimeoutError::Disconnected) => return Ok(Exit::Done),
        }
    }
}

/// Asks at each interval until nobody listens. On a thread of its own: a server that hangs must not
/// keep a person from ending this.
fn tell_answers(
    happens: &Sender<Happened>,
    ask: impl Fn() -> Result<Status, RequestError>,
    interval: Duration,
) {
    loop {
        let asked = Instant::now();
        let answer = ask().map_err(|error| error.to_string());
        if happens.send(Happened::Answer(Box::new(answer))).is_err() {
            return;
        }
        thread::sleep(interval.saturating_sub(asked.elapsed()));
    }
}

/// Says what the person does until they want to end it, or the terminal is gone.
fn tell_keys(happens: &Sender<Happened>) {
    while let Ok(event) = event::read() {
        let happened = match event {
            Event::Resize(..) => Happened::Resized,
            Event::Key(key) if ends(&key) => Happened::End,
            _ => continue,
        };
        if happens.send(happened).is_err() {
            return;
        }
    }
}

fn ends(key: &KeyEvent) -> bool {
    let control = key.modifiers.contains(KeyModifiers::CONTROL);
    key.kind == KeyEventKind::Press
        && (matches!(key.code, KeyCode::Char('q' | 'Q') | KeyCode::Esc)
            || control && key.code == KeyCode::Char('c'))
}
