//! `ringkeep bench transport`.

use std::{path::Path, sync::atomic::AtomicBool};

use super::{
    super::{
        args::{BenchTransportArgs, Global, MeasureArgs},
        exit::{Exit, Failure, Outcome},
        values::TransportChoice,
        warn,
    },
    Contenders, Kind, LOOK, Report, failure,
    limit::{STREAM, device},
    output::{Output, Table},
    prepare, timed, waiting,
};
use crate::bench::{
    limits::{Memory, Pages, PingPong, Stream, Waiting},
    report::Row,
};

/// Where regions lie.
const MEMORY: &str = "/dev/shm";
/// Copies of the state: both ends of each round trip, and what memory is copied from and into.
const COPIES: u64 = 22;

/// A round trip in each way of waiting.
const ROUND_TRIPS: [(&str, Waiting); 4] = [
    ("round trip of TCP, blocking", Waiting::Asleep),
    ("round trip of TCP, epoll", Waiting::Epoll),
    ("round trip of TCP, adaptive", Waiting::Looking(LOOK)),
    ("round trip of TCP, busy", Waiting::Spinning),
];

pub(super) fn run(global: &Global, args: &BenchTransportArgs, stop: &AtomicBool) -> Outcome {
    let measure = &args.measure;
    prepare(measure)?;
    let rdma = args.transport != TransportChoice::Tcp && device::is_there(args.transport)?;
    // Private, and gone with this.
    let dir = tempfile::Builder::new().prefix("ringkeep-").tempdir_in(MEMORY);
    let dir = dir.map_err(|e| failure(e.into()))?;
    let names = ROUND_TRIPS.iter().map(|(name, _)| *name);
    let table = Table { ratio: "of best", ..Table::new("What this machine can do", names) };
    let mut out = Output::begin(table, &measure.output, &measure.plot, Report::default())?;
    let mut has_huge_pages = true;
    for len in measure.lens() {
        if out.leaves_out(measure, len, COPIES)? {
            continue;
        }
        let (copies, huge) = copies(dir.path(), len as usize)?;
        has_huge_pages &= huge;
        let mut kinds = vec![round_trips(len)?, streams(len, measure)?, copies, checksum(len)];
        if rdma {
            // A write beside the round trips, one of a stream beside the other stream.
            let both = device::both(len as usize)?;
            kinds.iter_mut().zip(both).for_each(|(kind, one)| kind.push(one));
        }
        let kinds = kinds.into_iter().map(|all| Kind { changed: len, all }).collect();
        let rows = timed(kinds, len, measure, stop)?.into_iter().flat_map(beside_the_best);
        if !out.rows(rows)? {
            return Ok(Exit::Done);
        }
    }
    if !has_huge_pages {
        warn(global, "no huge page to be had: not timed; `ringkeep doctor` says how to have some");
    }
    out.end()
}

fn beside_the_best(kind: Vec<Row>) -> Vec<Row> {
    let best = kind.iter().map(|row| row.median_ns).min().unwrap_or(0);
    kind.into_iter().map(|row| row.as_limit().beside_median(best)).collect()
}

fn round_trips(len: u64) -> Result<Contenders<'static>, Failure> {
    let start = |&(name, waiting): &(&'static str, Waiting)| {
        let raw = PingPong::raw(len as usize, waiting).map_err(|e| failure(e.into()))?;
        Ok((name.to_owned(), Box::new(raw) as _))
    };
    ROUND_TRIPS.iter().map(start).collect()
}

fn streams(len: u64, measure: &MeasureArgs) -> Result<Contenders<'static>, Failure> {
    let stream = Stream::start(len as usize, waiting(measure.poll));
    Ok(vec![(STREAM.to_owned(), Box::new(stream.map_err(|e| failure(e.into()))?))])
}

/// And whether there is a huge page.
fn copies(dir: &Path, len: usize) -> Result<(Contenders<'static>, bool), Failure> {
    let ordinary = Pages::ordinary(dir, len).map_err(|e| failure(e.into()))?;
    let huge = Pages::huge(dir, len).map_err(|e| failure(e.into()))?;
    let is_there = huge.is_some();
    let name = |page: u64| format!("copy into {} pages", page_text(page));
    let page = rustix::param::page_size() as u64;
    let mut all: Contenders<'_> =
        vec![("copy".to_owned(), Box::new(Memory::copy(len))), (name(page), Box::new(ordinary))];
    all.extend(huge.map(|(page, pages)| (name(page), Box::new(pages) as _)));
    Ok((all, is_there))
}

fn checksum(len: u64) -> Contenders<'static> {
    vec![("checksum".to_owned(), Box::new(Memory::checksum(len as usize)))]
}

/// A power of two, in its unit.
fn page_text(bytes: u64) -> String {
    match bytes.trailing_zeros() {
        30.. => format!("{} GiB", bytes >> 30),
        20.. => format!("{} MiB", bytes >> 20),
        _ => format!("{} KiB", bytes >> 10),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::bench::turns::Times;

    #[test]
    fn the_best_of_a_kind_is_once_itself() {
        let row = |ms| Row::new("one", 8, 8, &Times::of([Duration::from_millis(ms)]));
        let rows = beside_the_best(vec![row(30), row(10), row(20)]);
        let ratios: Vec<_> = rows.iter().map(|row| row.of_limit.unwrap().round()).collect();
        assert_eq!(ratios, [3.0, 1.0, 2.0]);
        assert!(rows.iter().all(|row| row.is_limit));
        assert!(beside_the_best(Vec::new()).is_empty());
    }
}
