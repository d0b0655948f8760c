//! `ringkeep verify`.

use super::{
    args::{Global, VerifyArgs},
    connect,
    exit::{self, Exit, Failure, Outcome},
    print_json,
    table::{Align, table},
    values::Size,
};
use crate::protocol::{Role, VerifiedCopy};

/// Checks stored bytes against their checksums.
pub(super) fn run(global: &Global, args: &VerifyArgs) -> Outcome {
    let copies = connect(global)?.verify(args.name.as_ref())?;
    match args.output.json {
        true => print_json(&copies)?,
        false => exit::print(&text(&copies))?,
    };
    judge(&copies)
}

/// Damage is a failure that names the first damaged copy.
fn judge(copies: &[VerifiedCopy]) -> Outcome {
    let mut damaged = copies.iter().filter(|copy| copy.damage.is_some());
    let Some(first) = damaged.next() else { return Ok(Exit::Done) };
    let (name, node) = (&first.name, &first.node);
    let more = match damaged.count() {
        0 => String::new(),
        more => format!(" (and {more} more)"),
    };
    let message = format_args!("the copy of {name} on {node} is damaged{more}");
    let hint = format_args!(
        "`ringkeep get {name}` reads what another copy still has, `ringkeep put {name}` makes a \
         new version on both nodes"
    );
    Err(Failure::new(Exit::Corrupt, message).hint(hint))
}

fn text(copies: &[VerifiedCopy]) -> String {
    let heads = [
        ("NAME", Align::Left),
        ("NODE", Align::Left),
        ("ROLE", Align::Left),
        ("VERSION", Align::Right),
        ("SIZE", Align::Right),
        ("RESULT", Align::Left),
    ];
    let row = |copy: &VerifiedCopy| {
        let role = match copy.role {
            Role::Owner => "owner",
            Role::Orphan => "orphan",
            Role::Mirror => "mirror",
        };
        [
            copy.name.to_string(),
            copy.node.to_string(),
            role.to_owned(),
            copy.version.to_string(),
            Size(copy.bytes).to_string(),
            copy.damage.as_ref().map_or_else(|| "right".to_owned(), |d| format!("DAMAGED: {d}")),
        ]
    };
    table(heads, copies.iter().map(row))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::Name;

    #[test]
    fn damage_is_told_and_is_a_failure() {
        let copy = |node, damage: Option<&str>| VerifiedCopy {
            name: Name::new("sched").unwrap(),
            node: Name::new(node).unwrap(),
            role: Role::Mirror,
            version: 7,
            bytes: 0,
            damage: damage.map(str::to_owned),
        };
        assert_eq!(judge(&[copy("a", None)]), Ok(Exit::Done));
        let copies = [copy("a", None), copy("b", Some("chunk 3")), copy("c", Some("record"))];
        let failure = judge(&copies).unwrap_err();
        assert_eq!(failure.status, Exit::Corrupt);
        assert!(failure.to_string().starts_with("the copy of sched on b is damaged (and 1 more)"));
        assert!(text(&copies).contains("DAMAGED: chunk 3"));
    }
}
