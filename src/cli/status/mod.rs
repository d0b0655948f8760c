//! `ringkeep status`.

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
    protocol::{RingState, Role, Status},
};

/// Shows the ring and its protection.
pub(super) fn run(global: &Global, args: &StatusArgs) -> Outcome {
    let status = connect(global)?.status()?;
    match args.output.json {
        true => print_json(&status),
        false => exit::print(&text(&status, Charset::of_environment())),
    }
}

fn text(status: &Status, charset: Charset) -> String {
    let mut text = String::new();
    let state = match status.state {
        RingState::Protected => "protected: every checkpoint here has two live copies",
        RingState::Degraded => "DEGRADED: not every checkpoint here has two live copies",
    };
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{} is {state}", status.node);
    match &status.view {
        None => {
            let _ = writeln!(text, "It is joining and in no view yet.");
        }
        Some(view) => {
            let _ = write!(text, "\nView {}:\n{}", view.number, draw(&ring_of(status), charset));
        }
    }
    if !status.suspects.is_empty() {
        let names: Vec<&str> = status.suspects.iter().map(|name| name.as_str()).collect();
        let _ = writeln!(text, "Not answering: {}", names.join(", "));
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

fn checkpoints(status: &Status) -> String {
    if status.checkpoints.is_empty() {
        return String::new();
    }
    let heads = [
        ("CHECKPOINT", Align::Left),
        ("ROLE", Align::Left),
        ("VERSION", Align::Right),
        ("SIZE", Align::Right),
        ("SERVICE", Align::Left),
        ("MIRROR", Align::Left),
        ("VERSION", Align::Right),
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
            or_dash(mirror.map(|m| m.state)),
            or_dash(mirror.map(|m| m.transport)),
        ]
    });
    format!("\n{}", table(heads, rows))
}

fn mirrors(status: &Status) -> String {
    if status.mirrors.is_empty() {
        return String::new();
    }
    let heads = [
        ("MIRROR OF", Align::Left),
        ("OWNER", Align::Left),
        ("VERSION", Align::Right),
        ("STATE", Align::Left),
    ];
    let rows = status.mirrors.iter().map(|m| {
        [m.name.to_string(), m.owner.to_string(), m.version.to_string(), m.state.to_string()]
    });
    format!("\n{}", table(heads, rows))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The front door's own example, with the keys that were added since.
    fn example() -> Status {
        serde_json::from_str(
            r#"{"node": "a", "incarnation": 7, "transport": "rdma", "hugepages": true,
                "view": {"number": 3, "members": ["a", "b", "c"], "voters": ["a", "b", "c"]},
                "predecessor": "c", "successor": "b", "state": "protected",
                "checkpoints": [{"name": "sched", "role": "owner", "version": 42,
                    "bytes": 1048576, "attached": true, "epoch": 1,
                    "mirror": {"node": "c", "version": 42, "state": "in-sync",
                               "transport": "tcp"}}],
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
            "sched       owner       42  1.00 MiB  attached  c            42  in-sync  tcp",
            "transport rdma",
            "queue      b            9  in-sync",
        ] {
            assert!(words(&text).contains(&words(part)), "{part}\n{text}");
        }
    }

    #[test]
    fn while_joining_there_is_no_ring() {
        let joining = Status { view: None, ..example() };
        assert!(text(&joining, Charset::Ascii).contains("in no view yet"));
    }
}
