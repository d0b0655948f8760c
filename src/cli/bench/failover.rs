//! `ringkeep bench failover`.

use std::{
    sync::{Arc, atomic::AtomicBool},
    time::{Duration, Instant},
};

use super::{
    super::{
        args::{BenchFailoverArgs, BenchServiceArgs, Global},
        connect,
        exit::{Exit, Failure, Outcome},
        progress, socket_path, this_program,
        values::{Size, text_of},
    },
    Report, SERVERS, failure,
    output::{FailureOf, Output, Table},
    sizes, where_it_is,
};
use crate::{
    bench::{
        failover::{self, Death, Failover, State},
        report::Row,
        turns::Times,
    },
    client::Client,
    membership,
};

/// What is seen of one size.
const NEW_VIEW: &str = "server dead: new view";
const SERVED: &str = "server dead: state served";
const WHOLE: &str = "server dead: two copies again";
const RESTARTED: &str = "service dead: state served";
const RESTART_LIMIT: &str = "process gone, checksum";

pub(super) fn run(global: &Global, args: &BenchFailoverArgs, stop: &Arc<AtomicBool>) -> Outcome {
    sizes::check(&args.sizes)?;
    refuse_running(global)?;
    let config = membership::Config::from(args.detection);
    let (death, signal, silence) = match args.silent {
        false => (Death::Killed, "SIGKILL", config.silence_when_refused()),
        true => (Death::Silent, "SIGSTOP", config.suspicion_after),
    };
    let (detection, transport) = (text_of(args.detection), text_of(args.transport));
    let poll = text_of(args.poll);
    let flags = ["--detection", &detection, "--poll", &poll];
    let ring = Failover::start(this_program()?, SERVERS, &transport, &flags, Arc::clone(stop));
    let mut ring = ring.map_err(failure)?;
    let status = ring.ring().node(0).client()?.status()?;
    let silence_ns = silence.as_nanos() as u64;
    let checkpoints = args.checkpoints;
    let of = FailureOf { signal, detection, silence_ns, checkpoints };
    let ring_is = Some(where_it_is(&status, true));
    let report = Report { ring: ring_is, failure: Some(of), ..Report::default() };
    let of_each = u64::from(args.warm_up) + u64::from(args.iterations);
    // How often is not known where it is a matter of time.
    let quiet = global.quiet || args.duration.is_some();
    let progress = progress::steps("killing", args.sizes.len() as u64 * of_each, quiet);
    let names = [NEW_VIEW, SERVED, WHOLE, RESTARTED, RESTART_LIMIT];
    let table = Table::new("A failure, until it is mended", names);
    let out = Output::begin(table, &args.output, &args.plot, report)?;
    let mut out = out.beside(progress.clone());
    for &Size(bytes) in &args.sizes {
        let state = State { bytes, checkpoints };
        let (mut healed, mut restarted) = (Vec::new(), Vec::new());
        let mut both = || -> Result<_, Failure> {
            let died = ring.server_dies(state, death).map_err(failure)?;
            let ended = ring.service_dies(state).map_err(failure)?;
            progress.inc(1);
            Ok((died, ended))
        };
        for _ in 0..args.warm_up {
            both()?;
        }
        let began = Instant::now();
        while goes_on(args, healed.len(), began.elapsed()) {
            let (died, ended) = both()?;
            healed.push(died);
            restarted.push(ended);
        }
        let moved = bytes * u64::from(checkpoints);
        let row =
            |what, moved, times: Vec<Duration>| Row::new(what, bytes, moved, &Times::of(times));
        let healed = |of: fn(&failover::Healed) -> Duration| healed.iter().map(of).collect();
        let restarted =
            |of: fn(&failover::Restarted) -> Duration| restarted.iter().map(of).collect();
        let limit = row(RESTART_LIMIT, moved, restarted(|it| it.limit)).as_limit();
        // Each step beside the one that it cannot begin before.
        let view = row(NEW_VIEW, 0, healed(|it| it.view)).beside_median(silence_ns);
        let served = row(SERVED, 0, healed(|it| it.served)).beside(&view);
        let whole = row(WHOLE, 0, healed(|it| it.whole)).beside(&served);
        let restarted = row(RESTARTED, moved, restarted(|it| it.served)).beside(&limit);
        if !out.rows([view, served, whole, restarted, limit])? {
            return Ok(Exit::Done);
        }
    }
    ring.end();
    out.end()
}

/// Whether so many rounds, which took so long, are not enough.
fn goes_on(args: &BenchFailoverArgs, rounds: usize, took: Duration) -> bool {
    match args.duration {
        Some(time) => rounds == 0 || took < time,
        None => rounds < args.iterations as usize,
    }
}

/// What is killed here is never somebody's.
fn refuse_running(global: &Global) -> Result<(), Failure> {
    let socket = socket_path(global);
    let runs = Client::connect_to(&socket).is_ok();
    if runs {
        let why = format_args!("a server runs at {}, and this kills servers", socket.display());
        return Err(Failure::new(Exit::Usage, why)
            .hint("run it where none does: it starts three of its own"));
    }
    if global.socket.is_some() {
        let why = "--socket or RINGKEEP_SOCKET was given, and this kills servers";
        return Err(Failure::new(Exit::Usage, why)
            .hint("leave it out: `bench failover` starts three servers of its own"));
    }
    Ok(())
}

/// Is the service that is killed.
pub(super) fn service(global: &Global, args: &BenchServiceArgs) -> Outcome {
    let state = State { bytes: args.bytes, checkpoints: args.checkpoints };
    failover::serve_state(&connect(global)?, state).map_err(failure)?;
    Ok(Exit::Done)
}
