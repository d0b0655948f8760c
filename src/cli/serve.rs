//! `ringkeep serve`: from the command line to a checked configuration, then the server.

use std::{path::Path, time::Duration};

use super::{
    args::{Global, ServeArgs},
    config::{self, FileConfig, FileError, Machine, ServeConfig},
    exit::{Exit, Failure, Outcome},
    uid,
    values::Poll,
};
use crate::{
    cluster_key::{ClusterKey, ReadKeyError},
    doctor::facts,
    paths,
    server::{self, data_plane::Waiting},
};

/// Runs the server until it is told to stop.
pub(super) fn run(global: &Global, args: ServeArgs) -> Outcome {
    let (config, key) = prepare(global, args)?;
    serve(config, key)
}

fn serve(config: ServeConfig, key: Option<ClusterKey>) -> Outcome {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    if let Some(cpu) = config.cpu.filter(|&cpu| cpu >= cores) {
        return Err(Failure::new(Exit::Usage, format!("there is no core {cpu}"))
            .hint(format!("--cpu takes 0 to {}", cores - 1)));
    }
    private_parents(&config)?;
    let spin = match config.poll {
        Poll::Adaptive => Waiting::default().spin,
        Poll::Busy => Duration::MAX,
    };
    server::run(server::Config {
        name: config.name,
        listen: config.listen,
        join: config.join,
        witness: config.witness,
        zone: config.zone,
        mirrors: config.mirrors,
        leave_timeout: config.leave_timeout,
        socket: config.socket,
        dir: config.dir,
        memory_bytes: config.memory_bytes_max,
        waiting: Waiting { spin, cpu: config.cpu, ..Waiting::default() },
        membership: config.detection.into(),
        metrics: config.metrics,
        key,
        transport: config.transport.into(),
        device: config.device.map(|device| device.to_string()),
    })
    .map_err(|error| Failure::new(Exit::Failed, error))?;
    Ok(Exit::Done)
}

/// The directories that the defaults name may not be there yet.
fn private_parents(config: &ServeConfig) -> Result<(), Failure> {
    let default_dir = paths::default_dir(uid(), &config.name);
    let default_socket = paths::default_socket(uid(), paths::run_user_dir(uid()).as_deref());
    let in_tmp = |path: &Path| path.starts_with("/tmp");
    let parents = [
        (config.dir == default_dir).then(|| default_dir.parent()).flatten(),
        (config.socket == default_socket)
            .then(|| default_socket.parent())
            .flatten()
            .filter(|p| in_tmp(p)),
    ];
    for parent in parents.into_iter().flatten() {
        paths::make_private_dir(parent, uid()).map_err(|e| Failure::new(Exit::Failed, e))?;
    }
    Ok(())
}

/// Everything that can be refused before the server starts.
fn prepare(
    global: &Global,
    mut args: ServeArgs,
) -> Result<(ServeConfig, Option<ClusterKey>), Failure> {
    let file = match args.config.take() {
        Some(path) => FileConfig::read(&path).map_err(refused_file)?,
        None => FileConfig::default(),
    };
    let config = config::resolve(args, global.socket.clone(), file, &this_machine())
        .map_err(|e| Failure::new(Exit::Usage, &e).hint(e.hint()))?;
    let key = match &config.cluster_key {
        Some(path) => Some(ClusterKey::read(path, uid()).map_err(refused_key)?),
        None => None,
    };
    Ok((config, key))
}

fn this_machine() -> Machine {
    Machine {
        uid: uid(),
        hostname: rustix::system::uname().nodename().to_string_lossy().into_owned(),
        memory_bytes: facts::memory_bytes(),
        run_user: paths::run_user_dir(uid()),
    }
}

fn refused_file(error: FileError) -> Failure {
    match error {
        FileError::System { .. } => Failure::new(Exit::Failed, error),
        _ => Failure::new(Exit::Usage, error).hint("`ringkeep serve --help` lists the keys"),
    }
}

/// A key that cannot be used, with the command that mends it.
pub(super) fn refused_key(error: ReadKeyError) -> Failure {
    let hint = match &error {
        ReadKeyError::System { path, .. } => format!("`ringkeep keygen -o {path:?}` makes one"),
        ReadKeyError::TooOpen { path, .. } => format!("chmod 600 {path:?}"),
        ReadKeyError::WrongOwner { path, .. } => format!("chown it, or copy {path:?}"),
        ReadKeyError::Malformed { .. } => {
            "copy the file of another node again, or make one with `ringkeep keygen`".to_owned()
        }
    };
    Failure::new(Exit::Failed, error).hint(hint)
}
