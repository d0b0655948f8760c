//! `ringkeep rm`.

use serde::Serialize;

use super::{
    args::{Global, RmArgs},
    connect,
    exit::{Exit, Failure, Outcome},
    print_json,
};
use crate::name::Name;

/// What `--json` prints.
#[derive(Serialize)]
struct Report<'a> {
    removed: Vec<&'a Name>,
}

/// Removes checkpoints and their mirrors. One that cannot be removed does not keep the others.
pub(super) fn run(global: &Global, args: &RmArgs) -> Outcome {
    let client = connect(global)?;
    let mut report = Report { removed: Vec::new() };
    let mut failures = Vec::new();
    for name in &args.names {
        let removed = match args.leftovers {
            true => client.remove_leftovers(name),
            false => client.remove(name),
        };
        match removed {
            Ok(()) => report.removed.push(name),
            Err(error) => failures.push(Failure::from(error)),
        }
    }
    if args.output.json {
        print_json(&report)?;
    }
    together(failures)
}

/// One line for all; the first one's status.
fn together(failures: Vec<Failure>) -> Outcome {
    let Some(first) = failures.first() else { return Ok(Exit::Done) };
    let lines: Vec<String> = failures.iter().map(Failure::to_string).collect();
    Err(Failure::new(first.status, lines.join("; ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_failures_are_one_line() {
        assert_eq!(together(Vec::new()), Ok(Exit::Done));
        let failures =
            vec![Failure::new(Exit::NotFound, "no a"), Failure::new(Exit::Failed, "no b")];
        let failure = together(failures).unwrap_err();
        assert_eq!((failure.status, failure.to_string().as_str()), (Exit::NotFound, "no a; no b"));
    }
}
