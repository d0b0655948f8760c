//! `ringkeep bench commit`.

use std::sync::{Arc, atomic::AtomicBool};

use super::{
    super::{
        args::{BenchCommitArgs, Global},
        exit::{Exit, Failure, Outcome},
    },
    Contenders, Kind, Report, Target, failure, limit,
    limit::{HANDED, ROUND_TRIP},
    name,
    output::{Besides, Output, Table},
    prepare, target, timed, whole_state,
};
use crate::{
    bench::{
        commits::{Commits, Work},
        limits::Memory,
        report::Row,
    },
    client::Durability,
};

const MIRRORED: &str = "mirrored commit";
const LOCAL: &str = "local commit";
const LOCAL_LIMIT: &str = "copy, checksum";
const WHOLE: &str = "whole state committed";
const WHOLE_LIMIT: &str = "limit of the whole state";
/// Copies of the state in memory: both nodes' slots, and what this and its limits write from and into.
const COPIES: u64 = 8;

pub(super) fn run(global: &Global, args: &BenchCommitArgs, stop: &Arc<AtomicBool>) -> Outcome {
    let durability = Durability::from(args.durability);
    let mirrored = durability == Durability::Mirrored;
    check(args, mirrored)?;
    prepare(&args.measure)?;
    let target = target(global, &args.measure, args.transport, mirrored, stop)?;
    let no_limit = target.limit.why_not().filter(|_| mirrored);
    let report = Report { ring: Some(target.at()), no_limit, ..Report::default() };
    let partial = args.dirty < 100.0;
    let mut out =
        Output::begin(table(mirrored, partial), &args.measure.output, &args.measure.plot, report)?;
    let (slots, ways) = (u64::from(args.inflight).max(1) + 1, if partial { 2 } else { 1 });
    let copies = (COPIES + 2 * slots * u64::from(args.checkpoints)) * ways;
    for len in args.measure.lens() {
        if out.leaves_out(&args.measure, len, copies)? {
            continue;
        }
        let work = Work {
            checkpoints: args.checkpoints as usize,
            inflight: usize::from(args.inflight),
            dirty_percent: args.dirty,
            ..whole_state(len, durability, args.measure.poll)
        };
        let rows = of_size(args, &target, work, stop)?;
        if !out.rows(rows)? {
            return Ok(Exit::Done);
        }
    }
    out.end()
}

/// What would change nothing is refused.
fn check(args: &BenchCommitArgs, mirrored: bool) -> Result<(), Failure> {
    if !mirrored && args.inflight > 1 {
        let why = "--inflight: a local commit is done when it returns, none is ever on its way";
        return Err(Failure::new(Exit::Usage, why).hint("leave it out, or --durability mirrored"));
    }
    Ok(())
}

fn table(mirrored: bool, partial: bool) -> Table {
    let names = [MIRRORED, HANDED, ROUND_TRIP, if partial { WHOLE_LIMIT } else { MIRRORED }];
    let title = if mirrored { "A mirrored commit" } else { "A local commit" };
    let mut table = Table::new(title, names);
    table.besides.extend(mirrored.then_some(Besides::Bare));
    table.besides.extend(partial.then_some(Besides::Whole));
    table
}

fn of_size(
    args: &BenchCommitArgs,
    target: &Target,
    work: Work,
    stop: &Arc<AtomicBool>,
) -> Result<Vec<Row>, Failure> {
    let mirrored = work.durability == Durability::Mirrored;
    let limits = |bytes: u64| -> Result<Contenders<'static>, Failure> {
        let copied = || Box::new(Memory::copy_and_checksum(bytes as usize));
        match mirrored {
            true => target.limit.of_commit(bytes, args.measure.poll),
            false => Ok(vec![(LOCAL_LIMIT.to_owned(), copied())]),
        }
    };
    let commits = |what: &str, name: &str, work| -> Result<Contenders<'_>, Failure> {
        let commits = Commits::start(&target.client, name, work, stop).map_err(failure)?;
        Ok(vec![(what.to_owned(), Box::new(commits))])
    };
    let (changed, name) = (work.changed_bytes(), name());
    let ours = commits(if mirrored { MIRRORED } else { LOCAL }, &name, work)?;
    let kind = |changed, all| Kind { changed, all };
    let mut kinds = vec![kind(changed, ours), kind(changed, limits(changed)?)];
    if args.dirty < 100.0 {
        let work = Work { dirty_percent: 100.0, ..work };
        let whole = commits(WHOLE, &format!("{name}.whole"), work)?;
        let limit = limits(work.len)?.into_iter().take(1);
        let limit = limit.map(|(_, limit)| (WHOLE_LIMIT.to_owned(), limit));
        kinds.extend([kind(work.len, whole), kind(work.len, limit.collect())]);
    }
    let mut rows = timed(kinds, work.len, &args.measure, stop)?.into_iter();
    let mut next = || rows.next().unwrap_or_default();
    let (ours, limits, whole, whole_limit) = (next(), next(), next(), next());
    Ok(beside_each_other(ours, limits, whole, whole_limit))
}

/// Ours with its limits; then a commit of the whole state with its own, if only a part changes.
fn beside_each_other(
    ours: Vec<Row>,
    limits: Vec<Row>,
    whole: Vec<Row>,
    whole_limit: Vec<Row>,
) -> Vec<Row> {
    let share = |row: Row| match whole.first() {
        Some(whole) => row.beside_whole(whole),
        None => row,
    };
    let ours = ours.into_iter().map(|row| share(limit::beside(row, &limits)));
    let of_whole = whole.iter().cloned().map(|row| share(limit::beside(row, &whole_limit)));
    let mut rows: Vec<Row> = ours.chain(limit::rows(&limits)).collect();
    rows.extend(of_whole.chain(limit::rows(&whole_limit)));
    rows
}
