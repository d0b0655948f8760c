//! What is worth a line when one status follows another. Pure.

use crate::{
    name::Name,
    protocol::{
        Direction, LinkState, LinkStatus, OwnedStatus, RingState, Role, Status, StatusView,
    },
};

/// The changes, the ring's first.
pub(super) fn between(before: &Status, after: &Status) -> Vec<String> {
    let mut changes = Vec::new();
    if before.incarnation != after.incarnation {
        changes.push(format!("{} is a new member of the ring", after.node));
    }
    changes.extend(views(before.view.as_ref(), after.view.as_ref()));
    for name in news(&before.suspects, &after.suspects) {
        changes.push(format!("{name} does not answer"));
    }
    let is_member = |name: &&&Name| after.view.as_ref().is_some_and(|v| v.members.contains(name));
    for name in news(&after.suspects, &before.suspects).iter().filter(is_member) {
        changes.push(format!("{name} answers again"));
    }
    match (before.state, after.state) {
        (RingState::Protected, RingState::Degraded) => changes.push("degraded".to_owned()),
        (RingState::Degraded, RingState::Protected) => changes.push("protected again".to_owned()),
        _ => {}
    }
    changes.extend(links(&before.links, &after.links));
    changes.extend(checkpoints(&before.checkpoints, &after.checkpoints));
    changes
}

/// Ring members that were not there before.
pub(super) fn joined(before: &Status, after: &Status) -> Vec<Name> {
    match (&before.view, &after.view) {
        (Some(before), Some(after)) => {
            news(&before.members, &after.members).into_iter().cloned().collect()
        }
        _ => Vec::new(),
    }
}

fn news<'a>(before: &[Name], after: &'a [Name]) -> Vec<&'a Name> {
    after.iter().filter(|name| !before.contains(name)).collect()
}

fn views(before: Option<&StatusView>, after: Option<&StatusView>) -> Option<String> {
    match (before, after) {
        (Some(_), None) => Some("out of the ring; joining again".to_owned()),
        (None, Some(view)) => Some(format!("view {}: in the ring", view.number)),
        (Some(before), Some(after)) if before.number != after.number => {
            let told = |verb: &str, names: Vec<&Name>| -> Vec<String> {
                names.into_iter().map(|name| format!("{name} {verb}")).collect()
            };
            let parts = [
                told("is gone", news(&after.members, &before.members)),
                told("joined", news(&before.members, &after.members)),
                told("is no witness any more", news(&after.witnesses, &before.witnesses)),
                told("votes as a witness", news(&before.witnesses, &after.witnesses)),
                told("is leaving", news(&before.leaving, &after.leaving)),
            ]
            .concat();
            let what =
                if parts.is_empty() { "the same nodes".to_owned() } else { parts.join(", ") };
            Some(format!("view {}: {what}", after.number))
        }
        _ => None,
    }
}

fn links(before: &[LinkStatus], after: &[LinkStatus]) -> Vec<String> {
    let find = |links: &[LinkStatus], of: &LinkStatus| {
        let same = |link: &&LinkStatus| (&link.node, link.direction) == (&of.node, of.direction);
        links.iter().find(same).cloned()
    };
    let mut changes = Vec::new();
    for link in after {
        let was = find(before, link);
        let changed =
            was.as_ref().is_none_or(|w| (w.state, w.transport) != (link.state, link.transport));
        if changed && link.state != LinkState::Connecting {
            let over = link.transport.map_or_else(String::new, |kind| format!(" over {kind}"));
            changes.push(format!("the link {} is {}{over}", end_of(link), link.state));
        }
    }
    for link in before.iter().filter(|link| find(after, link).is_none()) {
        changes.push(format!("the link {} ended", end_of(link)));
    }
    changes
}

/// As in `to b`.
pub(super) fn end_of(link: &LinkStatus) -> String {
    match link.direction {
        Direction::To => format!("to {}", link.node),
        Direction::From => format!("from {}", link.node),
    }
}

fn checkpoints(before: &[OwnedStatus], after: &[OwnedStatus]) -> Vec<String> {
    let find = |list: &[OwnedStatus], name: &Name| list.iter().find(|c| c.name == *name).cloned();
    let mut changes = Vec::new();
    for checkpoint in after {
        let name = &checkpoint.name;
        let now_on = checkpoint.mirror.as_ref().map(|mirror| &mirror.node);
        match find(before, name) {
            None if checkpoint.role == Role::Orphan => {
                changes.push(format!("{name}: recovered here"));
            }
            None => changes.push(format!("{name}: owned here")),
            Some(was) => {
                let was_on = was.mirror.as_ref().map(|mirror| &mirror.node);
                match now_on {
                    Some(node) if was_on != now_on => {
                        changes.push(format!("{name}: its mirror is on {node}"));
                    }
                    None if was_on.is_some() => changes.push(format!("{name}: it has no mirror")),
                    _ => {}
                }
            }
        }
    }
    for checkpoint in before.iter().filter(|c| find(after, &c.name).is_none()) {
        changes.push(format!("{}: not here any more", checkpoint.name));
    }
    changes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{cli::status::tests::example, transport::Kind};

    fn name(text: &str) -> Name {
        Name::new(text).unwrap()
    }

    fn changed(change: impl FnOnce(&mut Status)) -> Vec<String> {
        let before = example();
        let mut after = before.clone();
        change(&mut after);
        between(&before, &after)
    }

    #[test]
    fn nothing_new_is_no_line() {
        assert_eq!(changed(|_| {}), [""; 0]);
        // A mirror that follows is no news.
        assert_eq!(changed(|s| s.checkpoints[0].version += 1), [""; 0]);
    }

    #[test]
    fn a_new_view_says_who_came_and_went() {
        let told = changed(|status| {
            let view = status.view.as_mut().unwrap();
            view.number = 4;
            view.members = vec![name("a"), name("c"), name("d")];
            view.witnesses = vec![name("w")];
            status.suspects.clear();
        });
        assert_eq!(told, ["view 4: b is gone, d joined, w votes as a witness"]);
        assert_eq!(changed(|s| s.view = None), ["out of the ring; joining again"]);
        let told = changed(|s| s.view.as_mut().unwrap().number = 4);
        assert_eq!(told, ["view 4: the same nodes"]);
        let (before, mut after) = (example(), example());
        after.view.as_mut().unwrap().members.push(name("d"));
        assert_eq!(joined(&before, &after), [name("d")]);
    }

    #[test]
    fn who_is_silent_and_who_is_back_is_told() {
        assert_eq!(changed(|s| s.suspects.push(name("c"))), ["c does not answer"]);
        assert_eq!(changed(|s| s.suspects.clear()), ["b answers again"]);
        assert_eq!(changed(|s| s.state = RingState::Degraded), ["degraded"]);
        assert_eq!(changed(|s| s.incarnation += 1), ["a is a new member of the ring"]);
    }

    #[test]
    fn links_and_copies_that_move_are_told() {
        assert_eq!(
            changed(|s| (s.links[0].state, s.links[0].transport) = (LinkState::Down, None)),
            ["the link to c is down"]
        );
        assert_eq!(changed(|s| s.links[0].state = LinkState::Connecting), [""; 0]);
        assert_eq!(
            changed(|s| s.links[0].transport = Some(Kind::Rdma)),
            ["the link to c is up over rdma"]
        );
        assert_eq!(changed(|s| s.links.clear()), ["the link to c ended"]);
        let moved = |s: &mut Status| s.checkpoints[0].mirror.as_mut().unwrap().node = name("b");
        assert_eq!(changed(moved), ["sched: its mirror is on b"]);
        assert_eq!(changed(|s| s.checkpoints[0].mirror = None), ["sched: it has no mirror"]);
        assert_eq!(changed(|s| s.checkpoints.clear()), ["sched: not here any more"]);
        let recovered = |s: &mut Status| {
            let one = s.checkpoints[0].clone();
            s.checkpoints.push(OwnedStatus { name: name("queue"), role: Role::Orphan, ..one });
        };
        assert_eq!(changed(recovered), ["queue: recovered here"]);
    }
}
