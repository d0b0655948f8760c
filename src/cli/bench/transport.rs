//! `ringkeep bench transport`.

use std::{path::Path, sync::atomic::AtomicBool};

use super::{
    super::{
        args::{BenchTransportArgs, Global},
        exit::{Exit, Failure, Outcome},
        values::{Size, TransportChoice},
        warn,
    },
    LOOK, Report, budget, failure,
    output::Output,
    prepare, round_trip,
};
use crate::bench::{
    limits::{Memory, Pages, Stream, Waiting},
    report::Row,
    turns::{Contender, take_turns_of},
};

/// Where regions lie.
const MEMORY: &str = "/dev/shm";

type Contenders = Vec<(String, Box<dyn Contender>)>;

pub(super) fn run(global: &Global, args: &BenchTransportArgs, stop: &AtomicBool) -> Outcome {
    let measure = &args.measure;
    prepare(measure)?;
    let rdma = args.transport != TransportChoice::Tcp && device::is_there(args.transport)?;
    // Private, and gone with this.
    let dir = tempfile::Builder::new().prefix("ringkeep-").tempdir_in(MEMORY);
    let dir = dir.map_err(|e| failure(e.into()))?;
    let title = "What this machine can do";
    let mut out = Output::begin(title, &measure.output, &measure.plot, Report::default())?;
    let mut has_huge_pages = true;
    for &Size(len) in &measure.sizes {
        let mut all = of_tcp(len)?;
        has_huge_pages &= add_memory(&mut all, dir.path(), len as usize)?;
        if rdma {
            device::add(&mut all, len as usize)?;
        }
        let (names, mut contenders): (Vec<_>, Vec<_>) = all.into_iter().unzip();
        let times = take_turns_of(&mut contenders, budget(measure), stop).map_err(failure)?;
        for (name, times) in names.iter().zip(&times) {
            if !out.row(Row::new(name, len, len, times).as_limit())? {
                return Ok(Exit::Done);
            }
        }
    }
    if !has_huge_pages {
        warn(global, "no huge page to be had: not timed; `ringkeep doctor` says how to have some");
    }
    out.end()
}

fn of_tcp(len: u64) -> Result<Contenders, Failure> {
    let stream = Stream::start(len as usize, Waiting::Looking(LOOK));
    Ok(vec![
        ("round trip of TCP, asleep".to_owned(), Box::new(round_trip(len, Waiting::Asleep)?)),
        (
            "round trip of TCP, adaptive".to_owned(),
            Box::new(round_trip(len, Waiting::Looking(LOOK))?),
        ),
        ("round trip of TCP, busy".to_owned(), Box::new(round_trip(len, Waiting::Spinning)?)),
        ("one of a stream of TCP".to_owned(), Box::new(stream.map_err(|e| failure(e.into()))?)),
    ])
}

/// False when there is no huge page.
fn add_memory(all: &mut Contenders, dir: &Path, len: usize) -> Result<bool, Failure> {
    let ordinary = Pages::ordinary(dir, len).map_err(|e| failure(e.into()))?;
    let huge = Pages::huge(dir, len).map_err(|e| failure(e.into()))?;
    let is_there = huge.is_some();
    let name = |page: u64| format!("copy into {} pages", page_text(page));
    all.push(("copy".to_owned(), Box::new(Memory::copy(len))));
    all.push((name(rustix::param::page_size() as u64), Box::new(ordinary)));
    all.extend(huge.map(|(page, pages)| (name(page), Box::new(pages) as Box<dyn Contender>)));
    all.push(("checksum".to_owned(), Box::new(Memory::checksum(len))));
    Ok(is_there)
}

/// A power of two, in its unit.
fn page_text(bytes: u64) -> String {
    match bytes.trailing_zeros() {
        30.. => format!("{} GiB", bytes >> 30),
        20.. => format!("{} MiB", bytes >> 20),
        _ => format!("{} KiB", bytes >> 10),
    }
}

#[cfg(feature = "rdma")]
mod device {
    use super::{Contenders, Exit, Failure, TransportChoice, failure};
    use crate::{bench::rdma::Writes, transport::verbs::discovery};

    /// Under way at a time in a stream of writes.
    const WINDOW: usize = 16;

    /// Whether a device can be timed.
    pub(super) fn is_there(choice: TransportChoice) -> Result<bool, Failure> {
        let is_there = discovery::devices().iter().any(|device| device.problem.is_none());
        match (is_there, choice) {
            (false, TransportChoice::Rdma) => {
                let why = "--transport rdma: no RDMA device can be used";
                Err(Failure::new(Exit::Failed, why).hint("`ringkeep doctor` says what is missing"))
            }
            (is_there, _) => Ok(is_there),
        }
    }

    pub(super) fn add(all: &mut Contenders, len: usize) -> Result<(), Failure> {
        for (name, window) in [("RDMA write", 1), ("one of a stream of RDMA", WINDOW)] {
            let writes = Writes::open(len, window).map_err(|e| failure(e.into()))?;
            all.push((name.to_owned(), Box::new(writes)));
        }
        Ok(())
    }
}

#[cfg(not(feature = "rdma"))]
mod device {
    use super::{Contenders, Exit, Failure, TransportChoice};

    /// Never.
    pub(super) fn is_there(choice: TransportChoice) -> Result<bool, Failure> {
        match choice {
            TransportChoice::Rdma => {
                let why = "--transport rdma: this build has no RDMA";
                Err(Failure::new(Exit::Failed, why).hint("build it with the feature rdma"))
            }
            _ => Ok(false),
        }
    }

    pub(super) fn add(_: &mut Contenders, _: usize) -> Result<(), Failure> {
        Ok(())
    }
}
