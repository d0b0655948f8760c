//! `ringkeep bench compare`.

use std::{
    path::Path,
    sync::{Arc, atomic::AtomicBool},
};

use super::{
    super::{
        args::{BenchCompareArgs, Global},
        exit::{Exit, Failure, Outcome},
        values::Size,
        warn,
    },
    Contenders, Kind, REPLICA_HINT, Report, failure, limit,
    limit::HANDED,
    name,
    output::{Beside, Besides, Output, Table},
    prepare, redis_failure, target, timed, whole_state,
};
use crate::{
    bench::{
        commits::Commits,
        files::{Overwritten, Place, Replaced},
        redis::Redis,
        report::Row,
    },
    client::Durability,
};

/// Where files are replaced in memory.
const MEMORY: &str = "/dev/shm";
/// The environment variable that has the password, as for redis-cli.
const PASSWORD: &str = "REDISCLI_AUTH";

const OURS: &str = "ringkeep mirrored commit";
const REDIS: &str = "Redis SET + WAIT 1";
/// Copies of the state in memory: ringkeep's, Redis's, those of each file, and what all of them write
/// from and into.
const COPIES: u64 = 26;

pub(super) fn run(global: &Global, args: &BenchCompareArgs, stop: &Arc<AtomicBool>) -> Outcome {
    prepare(&args.measure)?;
    let files = places(global, &args.dir)?;
    let password = std::env::var(PASSWORD).ok().filter(|password| !password.is_empty());
    let connect = |address| Redis::connect(address, password.as_deref(), stop);
    let mut redis = args.redis.as_ref().map(connect).transpose().map_err(failure)?;
    let about = redis.as_mut().map(Redis::about).transpose().map_err(redis_failure)?;
    let mut copies = redis.as_mut().map_or(Ok(0), Redis::full_copies).map_err(redis_failure)?;
    let target = target(global, &args.measure, args.transport, true, stop)?;
    if let Some(untuned) = about.as_ref().and_then(|about| about.untuned.as_deref()) {
        warn(global, format_args!("Redis: {untuned}"));
    }
    let beside = Beside { files: files.clone(), redis: about };
    let no_limit = target.limit.why_not();
    let ring = Some(target.at());
    let report = Report { ring, beside: Some(beside), no_limit, ..Report::default() };
    let measure = &args.measure;
    let mut out = Output::begin(table(&files), &measure.output, &measure.plot, report)?;
    for len in measure.lens() {
        if out.leaves_out(measure, len, COPIES)? {
            continue;
        }
        let work = whole_state(len, Durability::Mirrored, measure.poll);
        let ours = Commits::start(&target.client, &name(), work, stop).map_err(failure)?;
        // Three parties take part in a commit to Redis, too.
        let limit = target.limit.of_commit(len, measure.poll)?.into_iter().take(1).collect();
        let mut with_copies: Contenders<'_> = vec![(OURS.to_owned(), Box::new(ours))];
        if let Some(redis) = &mut redis {
            with_copies.push((REDIS.to_owned(), Box::new(redis.commits(len as usize))));
        }
        let mut kinds = vec![with_copies, limit];
        for place in &files {
            kinds.push(replaced(place, len as usize).map_err(|e| no_place(&place.dir, e))?);
        }
        let kinds = kinds.into_iter().map(|all| Kind { changed: len, all }).collect();
        let rows = timed(kinds, len, measure, stop)?;
        look_at_replica(global, redis.as_mut(), &mut copies, len)?;
        if !out.rows(compared(&rows))? {
            return Ok(Exit::Done);
        }
    }
    out.end()
}

fn table(files: &[Place]) -> Table {
    let files: Vec<String> = files.iter().flat_map(file_names).collect();
    let names = [OURS, HANDED, REDIS].into_iter().chain(files.iter().map(String::as_str));
    let mut table = Table::new("A mirrored commit, and others", names);
    table.besides.push(Besides::Ringkeep);
    table
}

/// Of a file that is replaced, and of its limit.
fn file_names(Place { file_system, .. }: &Place) -> [String; 2] {
    [format!("file, fsync, rename ({file_system})"), format!("overwritten, synced ({file_system})")]
}

fn replaced(place: &Place, len: usize) -> std::io::Result<Contenders<'static>> {
    let [name, limit] = file_names(place);
    Ok(vec![
        (name, Box::new(Replaced::start(&place.dir, len)?)),
        (limit, Box::new(Overwritten::start(&place.dir, len)?)),
    ])
}

/// Redis drops a replica that is too far behind and then sends it everything: that is no commit.
fn look_at_replica(
    global: &Global,
    redis: Option<&mut Redis>,
    copies: &mut u64,
    len: u64,
) -> Result<(), Failure> {
    let Some(redis) = redis else { return Ok(()) };
    let now = redis.full_copies().map_err(redis_failure)?;
    if now > *copies {
        warn(
            global,
            format_args!(
                "Redis dropped its replica and sent it everything anew, {} times with states of {}: \
                 its row says what that takes, not a commit; {REPLICA_HINT}",
                now - *copies,
                Size(len)
            ),
        );
    }
    *copies = now;
    Ok(())
}

/// Ringkeep and those that have a second copy as it does, with their limit; and each file with its own.
fn compared(rows: &[Vec<Row>]) -> Vec<Row> {
    let [with_copies, limit, files @ ..] = rows else { return Vec::new() };
    let mut all: Vec<Row> = Vec::new();
    let files = files.iter().map(|file| file.split_at(1));
    for (ours, limits) in [(&with_copies[..], &limit[..])].into_iter().chain(files) {
        all.extend(ours.iter().cloned().map(|row| limit::beside(row, limits)));
        all.extend(limit::rows(limits));
    }
    all.into_iter().map(|row| row.compared_with(&with_copies[0])).collect()
}

/// The directory that was named, and one in memory unless that is it.
fn places(global: &Global, dir: &Path) -> Result<Vec<Place>, Failure> {
    let place = |dir: &Path| Place::of(dir).map_err(|e| no_place(dir, e));
    let (named, memory) = (place(dir)?, place(Path::new(MEMORY))?);
    if named.file_system == memory.file_system {
        warn(
            global,
            format_args!("{} is memory: --dir names a directory on a disk", dir.display()),
        );
        return Ok(vec![named]);
    }
    Ok(vec![named, memory])
}

fn no_place(dir: &Path, error: std::io::Error) -> Failure {
    Failure::new(Exit::Failed, format_args!("replacing files in {}: {error}", dir.display()))
        .hint("--dir names another directory, with room for four states of the largest size")
}
