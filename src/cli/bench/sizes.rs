//! Which sizes are measured, and which do not fit.

use super::{
    super::{
        args::MeasureArgs,
        exit::{Exit, Failure},
        values::Size,
    },
    output::{Output, Skipped},
};
use crate::bench::room::free_bytes;

/// Memory must fit several times.
const SIZE_MAX: u64 = 4 << 30;
/// Powers of two: `--all` is 8 B to 1 GiB.
const ALL: std::ops::RangeInclusive<u32> = 3..=30;

impl MeasureArgs {
    /// Bytes of each size.
    pub(super) fn lens(&self) -> Vec<u64> {
        match self.all {
            true => ALL.map(|power| 1 << power).collect(),
            false => self.sizes.iter().map(|size| size.0).collect(),
        }
    }
}

pub(super) fn check(sizes: &[Size]) -> Result<(), Failure> {
    match sizes.iter().find(|size| size.0 == 0 || size.0 > SIZE_MAX) {
        Some(size) => {
            let why = format_args!("--sizes {size}: a size is 1 to {}", Size(SIZE_MAX));
            Err(Failure::new(Exit::Usage, why))
        }
        None => Ok(()),
    }
}

impl Output {
    /// With `--all`, whether a size is left out, which is then said: so many copies of it have no room
    /// in memory. A size that somebody asked for is tried.
    pub(super) fn leaves_out(
        &mut self,
        args: &MeasureArgs,
        bytes: u64,
        copies: u64,
    ) -> Result<bool, Failure> {
        let needs_bytes = bytes.saturating_mul(copies);
        let Some(free_bytes) = free_bytes().filter(|free| args.all && needs_bytes > *free) else {
            return Ok(false);
        };
        self.skip(Skipped { bytes, needs_bytes, free_bytes })?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::{
        super::output::{Report, Table},
        *,
    };
    use crate::cli::args::{BenchArgs, BenchCommand, Cli, Command};

    fn measure(args: &[&str]) -> MeasureArgs {
        let args = [&["ringkeep", "bench", "transport"], args].concat();
        match Cli::parse_from(args).command {
            Command::Bench(BenchArgs { what: BenchCommand::Transport(args) }) => args.measure,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn all_sizes_are_eight_bytes_to_a_gibibyte() {
        let all = measure(&["--all"]).lens();
        assert_eq!((all[0], all[all.len() - 1], all.len()), (8, 1 << 30, 28));
        assert!(all.windows(2).all(|pair| pair[1] == 2 * pair[0]));
        assert_eq!(measure(&["--sizes", "8,1MiB"]).lens(), [8, 1 << 20]);
    }

    #[test]
    fn what_does_not_fit_is_left_out_unless_somebody_asked_for_it() {
        let leaves_out = |args: &MeasureArgs, copies| {
            let table = Table::new("nothing", []);
            let mut out = Output::begin(table, &args.output, &args.plot, Report::default());
            out.as_mut().is_ok_and(|out| out.leaves_out(args, 1 << 30, copies).unwrap())
        };
        let all = measure(&["--all", "--json"]);
        assert!(leaves_out(&all, 1 << 20), "a pebibyte");
        assert!(!leaves_out(&all, 0));
        assert!(!leaves_out(&measure(&["--sizes", "1g", "--json"]), 1 << 20));
    }

    #[test]
    fn sizes_are_checked_where_they_enter() {
        assert!(check(&[Size(1), Size(SIZE_MAX)]).is_ok());
        assert!(check(&[Size(64), Size(0)]).is_err());
        assert!(check(&[Size(SIZE_MAX + 1)]).is_err());
    }
}
