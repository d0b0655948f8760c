//! `ringkeep ls`.

use super::{
    args::{Global, LsArgs},
    connect,
    exit::{self, Outcome},
    print_json,
    table::{Align, or_dash, table},
    values::Size,
};
use crate::protocol::Listed;

/// Lists the ring's checkpoints.
pub(super) fn run(global: &Global, args: &LsArgs) -> Outcome {
    let checkpoints = connect(global)?.list()?;
    match args.output.json {
        true => print_json(&checkpoints),
        false => exit::print(&text(&checkpoints)),
    }
}

fn text(checkpoints: &[Listed]) -> String {
    let heads = [
        ("NAME", Align::Left),
        ("VERSION", Align::Right),
        ("SIZE", Align::Right),
        ("OWNER", Align::Left),
        ("MIRROR", Align::Left),
        ("STATE", Align::Left),
    ];
    let row = |c: &Listed| {
        [
            c.name.to_string(),
            c.version.to_string(),
            Size(c.bytes).to_string(),
            c.owner.to_string(),
            or_dash(c.mirror.as_ref()),
            c.state.to_string(),
        ]
    };
    table(heads, checkpoints.iter().map(row))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{name::Name, protocol::CopyState};

    #[test]
    fn one_line_a_checkpoint() {
        let name = |text: &str| Name::new(text).unwrap();
        let listed = |mirror: Option<&str>, state| Listed {
            name: name("sched"),
            owner: name("a"),
            version: 42,
            bytes: 1 << 20,
            mirror: mirror.map(name),
            state,
        };
        let text = text(&[listed(Some("c"), CopyState::InSync), listed(None, CopyState::None)]);
        assert_eq!(
            text,
            "NAME   VERSION      SIZE  OWNER  MIRROR  STATE\n\
             sched       42  1.00 MiB  a      c       in-sync\n\
             sched       42  1.00 MiB  a      -       none\n"
        );
    }
}
