//! `ringkeep put`.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

use super::{
    args::{Global, PutArgs},
    connect,
    exit::{self, Exit, Failure, Outcome},
    progress::Progress,
    values::Size,
    warn,
};
use crate::client::{Checkpoint, Durability, Options};

/// Read at a time: seldom enough for the system, often enough for the bar.
const STEP_BYTES: usize = 1 << 20;

/// Keeps a file's content as a new version.
pub(super) fn run(global: &Global, args: &PutArgs) -> Outcome {
    // The server is asked first: who has none should not have to end their input to learn it.
    let client = connect(global)?;
    let input = Input::open(&args.file, global)?;
    let len = input.len();
    let capacity = args.capacity.map_or(len.max(1), |size| size.0);
    if capacity < len && capacity > 0 {
        let (len, capacity) = (Size(len), Size(capacity));
        return Err(Failure::new(
            Exit::NoSpace,
            format_args!("{:?} has {len}, more than the capacity of {capacity}", args.file),
        )
        .hint("give a larger --capacity, or none"));
    }
    let mut options = Options::capacity(capacity).timeout(args.timeout);
    if args.take_over {
        options = options.take_over();
    }
    let mut checkpoint = client.open(args.name.as_str(), options)?;
    if let Some(text) = checkpoint.warning() {
        warn(global, text);
    }
    let durability = durability(global, args, &checkpoint);
    if let Err(failure) = fill(&mut checkpoint, input, global) {
        checkpoint.discard();
        return Err(failure);
    }
    let version = checkpoint.commit(durability)?;
    exit::print(&format!("{version}\n"))
}

/// As asked; else the most that this ring has to offer.
fn durability(global: &Global, args: &PutArgs, checkpoint: &Checkpoint) -> Durability {
    match args.durability {
        Some(choice) => choice.into(),
        None if checkpoint.ring_mirrors() => Durability::Mirrored,
        None => {
            let name = &args.name;
            warn(
                global,
                format_args!(
                    "{name} is kept on this node only: the ring has no other for a second copy; \
                     start one with `ringkeep serve --join`"
                ),
            );
            Durability::Local
        }
    }
}

/// What to keep.
enum Input {
    /// Of known length: goes straight into shared memory.
    File { file: File, len: u64 },
    /// Read to its end, because its length was not known before.
    Collected(Vec<u8>),
}

impl Input {
    fn open(path: &Path, global: &Global) -> Result<Self, Failure> {
        let failed = |e| Failure::new(Exit::Failed, format_args!("reading {path:?}: {e}"));
        if path == Path::new("-") {
            return collect(io::stdin().lock(), global)
                .map(Self::Collected)
                .map_err(|e| Failure::new(Exit::Failed, format_args!("standard input: {e}")));
        }
        let file = File::open(path).map_err(failed)?;
        let found = file.metadata().map_err(failed)?;
        match found.len() {
            // Files of /proc say that they are empty.
            len if found.is_file() && len > 0 => Ok(Self::File { file, len }),
            _ => collect(file, global).map(Self::Collected).map_err(failed),
        }
    }

    fn len(&self) -> u64 {
        match self {
            Self::File { len, .. } => *len,
            Self::Collected(bytes) => bytes.len() as u64,
        }
    }
}

fn collect(input: impl Read, global: &Global) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    Progress::new("reading", None, global.quiet).reader(input).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Writes the whole input into the slot of the next version.
fn fill(checkpoint: &mut Checkpoint, input: Input, global: &Global) -> Result<(), Failure> {
    let slot = checkpoint.whole_mut(input.len())?;
    let mut file = match input {
        Input::Collected(bytes) => {
            slot.copy_from_slice(&bytes);
            return Ok(());
        }
        Input::File { file, len } => Progress::new("storing", Some(len), global.quiet).reader(file),
    };
    for step in slot.chunks_mut(STEP_BYTES) {
        file.read_exact(step).map_err(|e| match e.kind() {
            io::ErrorKind::UnexpectedEof => {
                Failure::new(Exit::Failed, "the file became shorter while it was read")
                    .hint("nothing was committed; try again when nobody writes it")
            }
            _ => Failure::new(Exit::Failed, format_args!("reading: {e}"))
                .hint("nothing was committed"),
        })?;
    }
    Ok(())
}
