//! `ringkeep keygen`.

use std::{
    fs::OpenOptions,
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use super::{
    args::KeygenArgs,
    exit::{self, Exit, Failure, Outcome},
};
use crate::cluster_key::ClusterKey;

/// Makes a key; into a new file with mode 0600, or to standard output.
pub(super) fn run(args: &KeygenArgs) -> Outcome {
    let key = ClusterKey::generate().map_err(|e| {
        Failure::new(Exit::Failed, format_args!("the system gave no random bytes: {e}"))
    })?;
    let text = key.to_file_text();
    match &args.output {
        None => exit::print(&text),
        Some(path) => write_new(path, &text).map(|()| Exit::Done),
    }
}

fn write_new(path: &Path, text: &str) -> Result<(), Failure> {
    let opened = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    let mut file = opened.map_err(|e| match e.kind() {
        io::ErrorKind::AlreadyExists => {
            Failure::new(Exit::Failed, format_args!("{path:?} is there already"))
                .hint("a key is never overwritten: name another file, or move this one away")
        }
        _ => Failure::new(Exit::Failed, format_args!("making {path:?}: {e}")),
    })?;
    // On disk before anybody is told: a key that a power cut empties locks a ring out.
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(|e| {
        Failure::new(Exit::Failed, format_args!("writing {path:?}: {e}"))
            .hint("remove the unfinished file and try again")
    })
}
