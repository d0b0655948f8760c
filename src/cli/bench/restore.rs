//! `ringkeep bench restore`.

use std::sync::{Arc, atomic::AtomicBool};

use super::{
    super::{
        args::{BenchRestoreArgs, Global, MeasureArgs},
        exit::{Exit, Failure, Outcome},
    },
    Contenders, Kind, Report, Target, failure, limit,
    limit::{ROUND_TRIP, STREAM},
    name,
    output::{Besides, Elsewhere, Output, Table},
    prepare, target, timed,
};
use crate::{
    bench::{
        limits::{Mapped, Memory},
        report::Row,
        restores::{Left, Way},
    },
    client::{Client, Durability},
    name::Name,
};

const MAPPED: &str = "mapped";
const MAPPED_LIMIT: &str = "memfd, mmap, a question";
const VERIFIED: &str = "mapped and verified";
const VERIFIED_LIMIT: &str = "checksum";
const READ: &str = "read from another node";
const TAKEN: &str = "taken over";
/// Copies of the state in memory: two checkpoints on two nodes, one more that is being taken over, a
/// copy that is read, and what the limits write from and into.
const COPIES: u64 = 20;

/// The other nodes of a ring that was started for this.
struct Others {
    reader: Client,
    takers: Vec<Client>,
}

pub(super) fn run(global: &Global, args: &BenchRestoreArgs, stop: &Arc<AtomicBool>) -> Outcome {
    let measure = &args.measure;
    prepare(measure)?;
    let target = target(global, measure, args.transport, false, stop)?;
    let others = others(&target)?;
    let elsewhere = target.ring.as_ref().map(|ring| Elsewhere {
        owner: ring.node(0).name().to_owned(),
        reader: ring.node(1).name().to_owned(),
        takers: takers().map(|node| ring.node(node).name().to_owned()).to_vec(),
    });
    let report = Report { ring: Some(target.at()), elsewhere, ..Report::default() };
    let names = [MAPPED_LIMIT, VERIFIED, READ, STREAM, ROUND_TRIP];
    let mut table = Table::new("A service gets its state back", names);
    table.besides.extend(others.is_some().then_some(Besides::Bare));
    let mut out = Output::begin(table, &measure.output, &measure.plot, report)?;
    for len in measure.lens() {
        if out.leaves_out(measure, len, COPIES)? {
            continue;
        }
        let mut rows = here(&target, measure, len, stop)?;
        if let Some(others) = &others {
            rows.extend(elsewhere_rows(&target, others, measure, len, stop)?);
        }
        if !out.rows(rows)? {
            return Ok(Exit::Done);
        }
    }
    out.end()
}

/// Each takes over from the one before it in the ring, so none of them holds that one's mirror.
fn takers() -> [usize; super::SERVERS] {
    std::array::from_fn(|turn| (turn + 1) % super::SERVERS)
}

fn others(target: &Target) -> Result<Option<Others>, Failure> {
    let Some(ring) = &target.ring else { return Ok(None) };
    let takers = takers().into_iter().map(|node| ring.node(node).client());
    Ok(Some(Others { reader: ring.node(1).client()?, takers: takers.collect::<Result<_, _>>()? }))
}

/// A state that somebody left at the server that is measured.
fn left<'a>(target: &'a Target, what: &str, len: u64) -> Result<Left<'a>, Failure> {
    let name = Name::new(&format!("{}{what}", name()));
    let name = name.map_err(|e| Failure::new(Exit::Failed, e))?;
    let durability = match target.at().members {
        0 | 1 => Durability::Local,
        _ => Durability::Mirrored,
    };
    Left::behind(&target.client, name, len, durability).map_err(failure)
}

/// On its node.
fn here(
    target: &Target,
    measure: &MeasureArgs,
    len: u64,
    stop: &AtomicBool,
) -> Result<Vec<Row>, Failure> {
    let left = left(target, "", len)?;
    let limit = Mapped::start(len as usize).map_err(|e| failure(e.into()))?;
    let mapped = left.restored(&target.client, Way::Mapped);
    let verified = left.restored(&target.client, Way::Verified);
    let pair = |what: &str, ours, limit: &str, its| Kind {
        changed: len,
        all: vec![(what.to_owned(), ours), (limit.to_owned(), its)],
    };
    let checksum = Memory::checksum(len as usize);
    let kinds = vec![
        pair(MAPPED, Box::new(mapped), MAPPED_LIMIT, Box::new(limit)),
        pair(VERIFIED, Box::new(verified), VERIFIED_LIMIT, Box::new(checksum)),
    ];
    let rows = timed(kinds, len, measure, stop)?;
    Ok(rows.iter().flat_map(|pair| beside_each_other(&pair[..1], &pair[1..])).collect())
}

/// With their limits behind them.
fn beside_each_other(ours: &[Row], limits: &[Row]) -> Vec<Row> {
    let ours = ours.iter().cloned().map(|row| limit::beside(row, limits));
    ours.chain(limit::rows(limits)).collect()
}

/// On other nodes.
fn elsewhere_rows(
    target: &Target,
    others: &Others,
    measure: &MeasureArgs,
    len: u64,
    stop: &AtomicBool,
) -> Result<Vec<Row>, Failure> {
    let (read, taken) = (left(target, "", len)?, left(target, ".taken", len)?);
    let ours: Contenders<'_> = vec![
        (READ.to_owned(), Box::new(read.restored(&others.reader, Way::Fetched))),
        (TAKEN.to_owned(), Box::new(taken.taken_over(&others.takers))),
    ];
    let limits = target.limit.of_move(len, measure.poll)?;
    let kinds = [ours, limits].into_iter().map(|all| Kind { changed: len, all });
    let rows = timed(kinds.collect(), len, measure, stop)?;
    Ok(beside_each_other(&rows[0], &rows[1]))
}
