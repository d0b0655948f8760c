//! `ringkeep status`.

mod changes;
mod page;
mod progress;
mod screen;
mod watch;

use std::fmt::Write;

use super::{
    args::{Global, StatusArgs},
    connect,
    exit::{self, Outcome},
    print_json,
    table::{Align, or_dash, table},
    values::Size,
};
use crate::{
    demo::drawing::{Charset, draw, ring_of},
    name::Name,
    protocol::{MirrorOf, OwnedStatus, RingState, Role, Status, SyncStatus},
};

/// Shows the ring and its protection.
pub(super) fn run(global: &Global, args: &StatusArgs) -> Outcome {
    if args.watch {
        return watch::run(global, args);
    }
    let status = connect(global)?.status()?;
    match args.output.json {
        true => print_json(&status),
        false => exit::print(&text(&status, Charset::of_environment())),
    }
}

fn text(status: &Status, charset: Charset) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{} is {}", status.node, state(status));
    match &status.view {
        None => {
            let _ = writeln!(text, "It is joining and in no view yet.");
        }
        Some(view) => {
            let _ = write!(text, "\nView {}:\n{}", view.number, draw(&ring_of(status), charset));
        }
    }
    for (label, names) in beside_the_ring(status) {
        let _ = writeln!(text, "{label}: {names}");
    }
    let _ = writeln!(
        text,
        "\nIncarnation {}, transport {}, {} pages, memory {} of {}",
        status.incarnation,
        status.transport,
        if status.hugepages { "huge" } else { "ordinary" },
        Size(status.memory_bytes),
        Size(status.memory_bytes_max),
    );
    text + &checkpoints(status) + &mirrors(status)
}

/// What a person is to know first.
fn state(status: &Status) -> &'static str {
    match status.state {
        _ if status.witness => "a witness: it votes and stores nothing",
        RingState::Protected => "protected: every checkpoint here has two live copies",
        RingState::Degraded => "DEGRADED: not every checkpoint here has two live copies",
    }
}

/// What the picture of the ring does not show, where there is any.
fn beside_the_ring(status: &Status) -> Vec<(&'static str, String)> {
    let names = |names: &[Name]| names.iter().map(Name::as_str).collect::<Vec<_>>().join(", ");
    let mut lines = vec![("Not answering", names(&status.suspects))];
    if let Some(view) = &status.view {
        let gone = |name: &&Name| !view.members.contains(name) && !view.witnesses.contains(name);
        let gone: Vec<Name> = view.voters.iter().filter(gone).cloned().collect();
        let zones = view.zones.iter().map(|(node, zone)| format!("{node} {zone}"));
        lines.extend([
            ("Leaving", names(&view.leaving)),
            ("Witness", names(&view.witnesses)),
            ("Voting though gone", names(&gone)),
            ("Zones", zones.collect::<Vec<_>>().join(", ")),
        ]);
    }
    if status.mirrors_wanted > 1 {
        lines.push(("Mirrors of each checkpoint", status.mirrors_wanted.to_string()));
    }
    lines.retain(|(_, text)| !text.is_empty());
    lines
}

fn checkpoints(status: &Status) -> String {
    if status.checkpoints.is_empty() {
        return String::new();
    }
    format!("\n{}{}", checkpoint_rows(status), syncing(status))
}

fn checkpoint_rows(status: &Status) -> String {
    let heads = [
        ("CHECKPOINT", Align::Left),
        ("ROLE", Align::Left),
        ("VERSION", Align::Right),
        ("SIZE", Align::Right),
        ("SERVICE", Align::Left),
        ("MIRROR", Align::Left),
        ("VERSION", Align::Right),
        ("LAG", Align::Right),
        ("STATE", Align::Left),
        ("OVER", Align::Left),
    ];
    let rows = status.checkpoints.iter().map(|c| {
        let role = match c.role {
            Role::Owner => "owner",
            Role::Orphan => "orphan",
            Role::Mirror => "mirror",
        };
        let mirror = c.mirror.as_ref();
        [
            c.name.to_string(),
            role.to_owned(),
            c.version.to_string(),
            Size(c.bytes).to_string(),
            if c.attached { "attached" } else { "-" }.to_owned(),
            or_dash(mirror.map(|m| &m.node)),
            or_dash(mirror.map(|m| m.version)),
            or_dash(mirror.map(|m| c.version.saturating_sub(m.version))),
            or_dash(mirror.map(|m| m.state)),
            or_dash(mirror.map(over)),
        ]
    });
    table(heads, rows)
}

/// How a mirror is reached.
fn over(mirror: &MirrorOf) -> String {
    mirror.transport.map_or_else(|| "down".to_owned(), |transport| transport.to_string())
}

/// A line for each copy that is being made.
fn syncing(status: &Status) -> String {
    let copies = status.checkpoints.iter().flat_map(|c| c.syncing.iter().map(move |s| (c, s)));
    let line = |(checkpoint, sync): (&OwnedStatus, &SyncStatus)| {
        let (name, node) = (&checkpoint.name, &sync.node);
        format!("{name} to {node}: {} of {}\n", Size(sync.sent_bytes), Size(sync.bytes))
    };
    let lines: String = copies.map(|copy| format!("Copying {}", line(copy))).collect();
    if lines.is_empty() { lines } else { format!("\n{lines}") }
}

fn mirrors(status: &Status) -> String {
    if status.mirrors.is_empty() {
        return String::new();
    }
    format!("\n{}", mirror_rows(status))
}

fn mirror_rows(status: &Status) -> String {
    let heads = [
        ("MIRROR OF", Align::Left),
        ("OWNER", Align::Left),
        ("VERSION", Align::Right),
        ("STATE", Align::Left),
    ];
    let rows = status.mirrors.iter().map(|m| {
        [m.name.to_string(), m.owner.to_string(), m.version.to_string(), m.state.to_string()]
    });
    table(heads, rows)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// The front door's own example, with the keys that were added since.
    pub(super) fn example() -> Status {
        serde_json::from_str(
            r#"{"node": "a", "incarnation": 7, "transport": "rdma", "hugepages": true,
                "view": {"number": 3, "members": ["a", "b", "c"], "voters": ["a", "b", "c"]},
                "predecessor": "c", "successor": "b", "state": "protected",
                "checkpoints": [{"name": "sched", "role": "owner", "version": 42,
                    "bytes": 1048576, "attached": true, "epoch": 1,
                    "mirror": {"node": "c", "version": 42, "state": "in-sync",
                               "transport": "tcp"}}],
                "links": [{"node": "c", "direction": "to", "transport": "tcp", "state": "up"}],
                "mirrors": [{"name": "queue", "owner": "b", "version": 9, "state": "in-sync"}],
                "memory_bytes": 4194304, "memory_bytes_max": 8388608, "suspects": ["b"]}"#,
        )
        .unwrap()
    }

    #[test]
    fn a_person_sees_the_ring_and_every_copy() {
        let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        let text = text(&example(), Charset::Ascii);
        for part in [
            "a is protected",
            "View 3:",
            "| sched v42 owner  |",
            "| queue v9 owner |",
            "Not answering: b",
            "memory 4.00 MiB of 8.00 MiB",
            "sched       owner       42  1.00 MiB  attached  c            42  0  in-sync  tcp",
            "transport rdma",
            "queue      b            9  in-sync",
        ] {
            assert!(words(&text).contains(&words(part)), "{part}\n{text}");
        }
    }

    #[test]
    fn a_link_that_is_down_and_a_copy_under_way_are_told() {
        let mut status = example();
        status.checkpoints[0].mirror.as_mut().unwrap().transport = None;
        let node = Name::new("c").unwrap();
        let sync = SyncStatus { node, sent_bytes: 1 << 19, bytes: 1 << 20 };
        status.checkpoints[0].syncing.push(sync);
        let text = text(&status, Charset::Ascii);
        assert!(text.contains("in-sync  down"), "{text}");
        assert!(text.contains("Copying sched to c: 512.00 KiB of 1.00 MiB"), "{text}");
    }

    #[test]
    fn who_votes_leaves_or_shares_a_fate_is_told_when_there_is_any() {
        let plain = text(&example(), Charset::Ascii);
        for word in ["Leaving", "Witness", "Zones", "though gone", "Mirrors of"] {
            assert!(!plain.contains(word), "{word}: {plain}");
        }
        let name = |text: &str| Name::new(text).unwrap();
        let mut status = Status { mirrors_wanted: 2, ..example() };
        let view = status.view.as_mut().unwrap();
        view.voters.extend([name("w"), name("d")]);
        (view.witnesses, view.leaving) = (vec![name("w")], vec![name("b")]);
        view.zones.insert(name("a"), name("rack-1"));
        let told = text(&status, Charset::Ascii);
        for line in [
            "Leaving: b",
            "Witness: w",
            "Voting though gone: d",
            "Zones: a rack-1",
            "Mirrors of each checkpoint: 2",
        ] {
            assert!(told.lines().any(|told| told == line), "{line}: {told}");
        }
        let witness = Status { witness: true, ..example() };
        assert!(text(&witness, Charset::Ascii).starts_with("a is a witness"));
    }

    #[test]
    fn while_joining_there_is_no_ring() {
        let joining = Status { view: None, ..example() };
        assert!(text(&joining, Charset::Ascii).contains("in no view yet"));
    }
}
