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
    REPLICA_HINT, Report, budget, failure, name, output,
    output::{Beside, Output},
    prepare, redis_failure, round_trip, target, waiting, whole_state,
};
use crate::{
    bench::{
        commits::Commits,
        files::{Place, Replaced},
        redis::Redis,
        report::Row,
        turns::{Contender, take_turns_of},
    },
    client::Durability,
};

/// Where files are replaced in memory.
const MEMORY: &str = "/dev/shm";
/// The environment variable that has the password, as for redis-cli.
const PASSWORD: &str = "REDISCLI_AUTH";

const OURS: &str = "ringkeep mirrored commit";

pub(super) fn run(global: &Global, args: &BenchCompareArgs, stop: &Arc<AtomicBool>) -> Outcome {
    prepare(&args.measure)?;
    let files = places(global, &args.dir)?;
    let password = std::env::var(PASSWORD).ok().filter(|password| !password.is_empty());
    let connect = |address| Redis::connect(address, password.as_deref(), stop);
    let mut redis = args.redis.as_ref().map(connect).transpose().map_err(failure)?;
    let about = redis.as_mut().map(Redis::about).transpose().map_err(redis_failure)?;
    let mut copies = redis.as_mut().map_or(Ok(0), Redis::full_copies).map_err(redis_failure)?;
    let target = target(global, &args.measure, args.transport, true, stop)?;
    let beside = Beside { files: files.clone(), redis: about };
    let report = Report { ring: Some(target.at), beside: Some(beside), ..Report::default() };
    let measure = &args.measure;
    let mut out =
        Output::begin("A mirrored commit, and others", &measure.output, &measure.plot, report)?;
    for &Size(len) in &measure.sizes {
        let work = whole_state(len, Durability::Mirrored, measure.poll);
        let ours = Commits::start(&target.client, &name(), work, stop).map_err(failure)?;
        let limit = round_trip(len, waiting(measure.poll))?;
        let mut names = vec![OURS.to_owned(), output::ROUND_TRIP.to_owned()];
        let mut contenders: Vec<Box<dyn Contender + '_>> = vec![Box::new(ours), Box::new(limit)];
        if let Some(redis) = &mut redis {
            names.push("Redis SET + WAIT 1".to_owned());
            contenders.push(Box::new(redis.commits(len as usize)));
        }
        for Place { dir, file_system } in &files {
            let replaced = Replaced::start(dir, len as usize).map_err(|e| no_place(dir, e))?;
            names.push(format!("file, fsync, rename ({file_system})"));
            contenders.push(Box::new(replaced));
        }
        let times = take_turns_of(&mut contenders, budget(measure), stop).map_err(failure)?;
        drop(contenders);
        look_at_replica(global, redis.as_mut(), &mut copies, len)?;
        let all = names.iter().zip(&times).map(|(name, times)| Row::new(name, len, len, times));
        for row in compared(all.collect()) {
            if !out.row(row)? {
                return Ok(Exit::Done);
            }
        }
    }
    out.end()
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

/// Ringkeep's row, its limit, those that have a second copy as it does, and the others.
fn compared(rows: Vec<Row>) -> Vec<Row> {
    let (ours, limit) = (rows[0].clone(), rows[1].clone());
    let beside = |(index, row): (usize, Row)| {
        let row = row.compared_with(&ours);
        match index {
            1 => row.as_limit(),
            // A file on this node sends nothing: the limit is not its.
            _ if row.what.starts_with("file") => row,
            _ => row.beside(&limit),
        }
    };
    rows.into_iter().enumerate().map(beside).collect()
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
        .hint("--dir names another directory, with room for three states of the largest size")
}
