//! What servers say in their logs about the views that they installed, and whether it fits
//! together: no two of them may install different rings under one number (invariant I4).

use std::collections::BTreeMap;

/// A view that a server installed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Installed {
    pub view: u64,
    /// As it is logged: names in ring order.
    pub ring: String,
}

/// The views in a server's log, in the order in which they were installed.
pub fn installed(log: &str) -> Vec<Installed> {
    log.lines().filter(|line| line.contains("view installed")).map(parsed).collect()
}

fn parsed(line: &str) -> Installed {
    let after = |key: &str| line.split_once(key).map(|(_, rest)| rest);
    let number = after(" view=").and_then(|rest| rest.split(' ').next()?.parse().ok());
    let ring = after(" ring=\"").and_then(|rest| rest.split('"').next());
    match (number, ring) {
        (Some(view), Some(ring)) => Installed { view, ring: ring.to_owned() },
        _ => panic!("a line about a view that cannot be read: {line}"),
    }
}

/// The first contradiction between the logs of these servers, or within one of them. Servers of
/// one cluster only: another cluster counts from one again.
pub fn contradiction<'a>(logs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Option<String> {
    let mut seen: BTreeMap<u64, (&str, String)> = BTreeMap::new();
    for (server, log) in logs {
        let mut before = 0;
        for Installed { view, ring } in installed(log) {
            // The same one again is what a server says that was started again.
            if view < before {
                return Some(format!("{server} installs view {view} after view {before}"));
            }
            before = view;
            let (first, other) = seen.entry(view).or_insert_with(|| (server, ring.clone()));
            if *other != ring {
                return Some(format!("view {view} is {other} on {first}, {ring} on {server}"));
            }
        }
    }
    None
}
