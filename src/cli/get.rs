//! `ringkeep get`.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::{self, Read, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use super::{
    args::{GetArgs, Global},
    connect,
    exit::{self, Exit, Failure, Outcome},
    progress::Progress,
    warn,
};
use crate::client::Fetched;

/// Reads a checkpoint back.
pub(super) fn run(global: &Global, args: &GetArgs) -> Outcome {
    let client = connect(global)?;
    let fetched = match args.maybe_stale {
        true => client.get_maybe_stale(&args.name)?,
        false => client.get(&args.name, args.version)?,
    };
    if fetched.maybe_stale {
        let (name, version) = (&args.name, fetched.version);
        warn(
            global,
            format_args!("{name}: a version newer than {version} may have been acknowledged"),
        );
    }
    let Some(path) = &args.output else {
        let mut out = io::stdout().lock();
        return match copy(fetched, &mut out, global) {
            Err(Copy::Write(e)) => exit::stdout_written(Err(e)),
            Err(Copy::Read(failure)) => Err(failure),
            Ok(()) => exit::stdout_written(out.flush()),
        };
    };
    let failed = |e| Failure::new(Exit::Failed, format_args!("writing {path:?}: {e}"));
    match Target::of(path).map_err(failed)? {
        Target::Stream(mut file) => copy(fetched, &mut file, global),
        Target::Replace(path) => replace(fetched, &path, global),
    }
    .map(|()| Exit::Done)
    .map_err(|e| match e {
        Copy::Write(e) => failed(e),
        Copy::Read(failure) => failure,
    })
}

/// Where to write.
enum Target {
    /// A device or a pipe: nothing that could be replaced.
    Stream(File),
    /// A file that is there or not; links are followed.
    Replace(PathBuf),
}

impl Target {
    fn of(path: &Path) -> io::Result<Self> {
        match fs::metadata(path) {
            Ok(found) if found.is_dir() => Err(io::ErrorKind::IsADirectory.into()),
            Ok(found) if found.is_file() => Ok(Self::Replace(path.canonicalize()?)),
            Ok(_) => OpenOptions::new().write(true).open(path).map(Self::Stream),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Self::Replace(path.to_owned())),
            Err(e) => Err(e),
        }
    }
}

/// Why bytes were not copied.
enum Copy {
    Read(Failure),
    Write(io::Error),
}

/// Beside the target first, then renamed: it appears whole or not at all, also after a power cut.
fn replace(fetched: Fetched, path: &Path, global: &Global) -> Result<(), Copy> {
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    // As for any new file, the umask decides who may read it.
    let mut file = tempfile::Builder::new()
        .prefix(".ringkeep-")
        .permissions(Permissions::from_mode(0o666))
        .tempfile_in(dir)
        .map_err(Copy::Write)?;
    copy(fetched, file.as_file_mut(), global)?;
    file.as_file().sync_all().map_err(Copy::Write)?;
    file.persist(path).map(drop).map_err(|e| Copy::Write(e.error))
}

fn copy(fetched: Fetched, out: &mut impl Write, global: &Global) -> Result<(), Copy> {
    let Fetched { version, len, mut file, .. } = fetched;
    let mut progress = Progress::new("reading", Some(len), global.quiet);
    let mut buffer = vec![0; len.min(1 << 20) as usize];
    let mut left = len;
    while left > 0 {
        let step = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let step = &mut buffer[..step];
        file.read_exact(step).map_err(|e| {
            let failure = format_args!("reading version {version} from the server: {e}");
            Copy::Read(Failure::new(Exit::Failed, failure).hint("try again"))
        })?;
        out.write_all(step).map_err(Copy::Write)?;
        progress.advance(step.len() as u64);
        left -= step.len() as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fetched(bytes: &[u8], len: u64) -> Fetched {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        io::Seek::rewind(&mut file).unwrap();
        Fetched { version: 3, len, maybe_stale: false, file }
    }

    fn global() -> Global {
        Global {
            socket: None,
            verbose: 0,
            quiet: true,
            log_format: super::super::values::LogFormat::Text,
        }
    }

    #[test]
    fn a_file_appears_whole_or_not_at_all() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("out");
        assert!(replace(fetched(b"state and rest", 5), &path, &global()).is_ok());
        assert_eq!(fs::read(&path).unwrap(), b"state");
        assert!(matches!(replace(fetched(b"short", 9), &path, &global()), Err(Copy::Read(_))));
        assert_eq!(fs::read(&path).unwrap(), b"state");
        assert_eq!(fs::read_dir(tmp.path()).unwrap().count(), 1, "nothing is left behind");
    }

    #[test]
    fn a_device_is_written_and_not_replaced_and_a_link_followed() {
        assert!(matches!(Target::of(Path::new("/dev/null")), Ok(Target::Stream(_))));
        let tmp = tempfile::tempdir().unwrap();
        assert!(Target::of(tmp.path()).is_err());
        let (file, link) = (tmp.path().join("file"), tmp.path().join("link"));
        fs::write(&file, "old").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        let wanted = file.canonicalize().unwrap();
        assert!(matches!(Target::of(&link), Ok(Target::Replace(path)) if path == wanted));
    }
}
