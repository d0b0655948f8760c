//! `ringkeep serve`: from the command line to a checked configuration, then the server.

use super::{
    args::{Global, ServeArgs},
    config::{self, FileConfig, FileError, Machine, ServeConfig},
    exit::{Exit, Failure, Outcome},
    uid,
};
use crate::{
    cluster_key::{ClusterKey, ReadKeyError},
    doctor::facts,
    paths,
};

/// Runs the server until it is told to stop.
pub(super) fn run(global: &Global, args: ServeArgs) -> Outcome {
    let (config, key) = prepare(global, args)?;
    serve(config, key)
}

/// The seam to the server module.
fn serve(_config: ServeConfig, _key: Option<ClusterKey>) -> Outcome {
    Err(Failure::not_wired("serve"))
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
