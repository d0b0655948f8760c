//! `ringkeep doctor`.

use std::fmt::Write;

use super::{
    args::{DoctorArgs, Global},
    config::ConfigError,
    exit::{self, Exit, Failure, Outcome},
    print_json, socket_path, uid,
    values::TransportChoice,
};
use crate::doctor::{
    Level, Report, checks,
    facts::{self, Asked, Rdma},
};

/// Looks at this machine and says how to mend it.
pub(super) fn run(global: &Global, args: &DoctorArgs) -> Outcome {
    if let (Some(device), TransportChoice::Tcp) = (&args.device, args.transport) {
        let error = ConfigError::DeviceUnused { device: device.clone() };
        return Err(Failure::new(Exit::Usage, &error).hint(error.hint()));
    }
    let facts = facts::read(Asked {
        uid: uid(),
        socket: socket_path(global),
        listen: args.listen,
        cluster_key: args.cluster_key.clone(),
        rdma: match args.transport {
            TransportChoice::Auto => Rdma::Welcome,
            TransportChoice::Rdma => Rdma::Required,
            TransportChoice::Tcp => Rdma::Unused,
        },
        device: args.device.as_ref().map(|name| name.as_str().to_owned()),
    });
    let report = Report::new(checks::all(&facts));
    match args.output.json {
        true => print_json(&report)?,
        false => exit::print(&table(&report))?,
    };
    match report.level {
        Level::Fail => Ok(Exit::Failed),
        Level::Ok | Level::Warn => Ok(Exit::Done),
    }
}

fn table(report: &Report) -> String {
    let mut text = String::new();
    let width = report.checks.iter().map(|check| check.name.len()).max().unwrap_or(0);
    for check in &report.checks {
        let level = match check.level {
            Level::Ok => "ok  ",
            Level::Warn => "warn",
            Level::Fail => "FAIL",
        };
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{level}  {:width$}  {}", check.name, check.found);
        if let Some(mend) = &check.mend {
            let _ = writeln!(text, "      {:width$}  -> {mend}", "");
        }
    }
    let count = |level| report.checks.iter().filter(|check| check.level == level).count();
    let (warnings, failures) = (count(Level::Warn), count(Level::Fail));
    let _ = match (failures, warnings) {
        (0, 0) => writeln!(text, "\nNothing to mend."),
        (0, _) => writeln!(text, "\n`ringkeep serve` would work. Warnings: {warnings}."),
        _ => writeln!(text, "\n`ringkeep serve` would not work. Failures: {failures}."),
    };
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Check;

    #[test]
    fn the_mending_command_stands_below_its_finding() {
        let check = |name, level, mend: Option<&str>| Check {
            name,
            level,
            found: "found".to_owned(),
            mend: mend.map(str::to_owned),
        };
        let checks =
            vec![check("cores", Level::Ok, None), check("hugepages", Level::Warn, Some("do it"))];
        assert_eq!(
            table(&Report::new(checks)),
            "ok    cores      found\n\
             warn  hugepages  found\n\
             \x20                -> do it\n\n\
             `ringkeep serve` would work. Warnings: 1.\n"
        );
    }
}
