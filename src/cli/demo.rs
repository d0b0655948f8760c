//! `ringkeep demo`, and the service that it starts.

use std::io;

use super::{
    args::{DemoArgs, DemoServiceArgs, Global},
    connect,
    exit::{Exit, Failure, Outcome},
    signals, this_program,
    values::text_of,
};
use crate::demo::{
    ring::RingError,
    service::{self, ServiceError, Task},
    story::{self, Plan, StoryError},
};

/// Tells the story of a service that loses its node.
pub(super) fn run(_global: &Global, args: &DemoArgs) -> Outcome {
    let program = this_program()?;
    let stop = signals::stop_flag()?;
    let plan = Plan {
        program,
        dir: args.dir.clone(),
        nodes: usize::from(args.nodes),
        transport: text_of(args.transport),
        files_max: args.files_max,
        keep: args.keep,
        stop,
    };
    story::play(&plan, &mut io::stdout()).map(|()| Exit::Done).map_err(failure)
}

fn failure(error: StoryError) -> Failure {
    match error {
        StoryError::Request(error) => error.into(),
        StoryError::Start(_) => Failure::new(Exit::Failed, error)
            .hint("name a directory with files: `ringkeep demo DIR`"),
        StoryError::Ring(RingError::Interrupted) => {
            Failure::new(Exit::Failed, error).hint("its servers are stopped, its files removed")
        }
        error => Failure::new(Exit::Failed, error),
    }
}

/// Is the service.
pub(super) fn service(global: &Global, args: &DemoServiceArgs) -> Outcome {
    let client = connect(global)?;
    let (name, dir) = (&args.name, args.dir.as_path());
    let task = Task { name, dir, files_max: args.files_max, batch: args.batch };
    match service::run(&client, task, &mut io::stdout()) {
        Ok(()) => Ok(Exit::Done),
        Err(ServiceError::Open(error)) => Err(error.into()),
        Err(ServiceError::Read(error)) => Err(error.into()),
        Err(ServiceError::Commit(error)) => Err(error.into()),
        Err(error) => Err(Failure::new(Exit::Failed, error)),
    }
}
