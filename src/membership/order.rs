//! The order of the ring: where a joiner stands, and how members that share a fate are kept apart.
//!
//! An owner and the holder of its mirror should not be in one failure domain ([`Member::zone`]): a
//! *clash* is an owner with one of its predecessors in its own zone. The order is made so that there
//! are few. Moving a member moves mirrors, so nobody moves unless that resolves a clash.

use std::{borrow::Borrow, collections::BTreeMap};

use super::{MIRRORS_MAX, Member};
use crate::name::Name;

/// Moves made for one view, and members tried for each: a ring in which nearly everybody is in one
/// zone is not worth more.
const MOVES_MAX: usize = 16;

/// What of a member matters here.
#[derive(Debug, Clone, Copy)]
struct Spot {
    /// Zones are numbered; a member without one shares its fate with nobody.
    zone: Option<usize>,
    mirrors: usize,
}

/// Puts a joiner where it clashes least; behind the last member if that is as good as any.
pub(super) fn place<M: Borrow<Member>>(ring: &mut Vec<M>, joiner: M) {
    let has_zone = joiner.borrow().zone.is_some();
    ring.push(joiner);
    let mut spots = if has_zone { spots(ring) } else { Vec::new() };
    if let Some(spot) = spots.pop() {
        let last = ring.len() - 1;
        let at = best_place(&spots, spot);
        ring[at..=last].rotate_right(1);
    }
}

/// Resolves clashes by moving one member at a time, as long as that helps.
pub(super) fn untangle<M: Borrow<Member>>(ring: &mut Vec<M>) {
    let mut spots = spots(ring);
    for _ in 0..MOVES_MAX {
        let Some((from, to)) = helpful_move(&spots) else { return };
        let (member, spot) = (ring.remove(from), spots.remove(from));
        ring.insert(to, member);
        spots.insert(to, spot);
    }
}

fn spots<M: Borrow<Member>>(ring: &[M]) -> Vec<Spot> {
    let mut numbers: BTreeMap<&Name, usize> = BTreeMap::new();
    let mut number = |zone| {
        let next = numbers.len();
        *numbers.entry(zone).or_insert(next)
    };
    let mut spots = Vec::with_capacity(ring.len());
    for member in ring.iter().map(Borrow::borrow) {
        let mirrors = usize::from(member.mirrors);
        spots.push(Spot { zone: member.zone.as_ref().map(&mut number), mirrors });
    }
    spots
}

/// A member and where to put it, so that there are fewer clashes than now.
fn helpful_move(spots: &[Spot]) -> Option<(usize, usize)> {
    let clashes = count(spots);
    let clashing = (0..spots.len()).filter(|&at| clashes_of(spots, at) > 0);
    clashing.take(MOVES_MAX).find_map(|from| {
        let mut others = spots.to_vec();
        let spot = others.remove(from);
        let to = best_place(&others, spot);
        others.insert(to, spot);
        (count(&others) < clashes).then_some((from, to))
    })
}

fn best_place(spots: &[Spot], joiner: Spot) -> usize {
    let mut with = spots.to_vec();
    with.push(joiner);
    let (mut best, mut least) = (spots.len(), None);
    // From the last place to the first: the joiner changes places with the one before it.
    for at in (0..=spots.len()).rev() {
        let before =
            if at < spots.len() { clashes_from(spots, at) } else { clashes_from(spots, 0) };
        let cost = clashes_from(&with, at) as isize - before as isize;
        if least.is_none_or(|least| cost < least) {
            (best, least) = (at, Some(cost));
        }
        if at > 0 {
            with.swap(at - 1, at);
        }
    }
    best
}

/// Clashes of the member at `at` and of all behind it that may count it among their predecessors.
fn clashes_from(spots: &[Spot], at: usize) -> usize {
    let reach = usize::from(MIRRORS_MAX) + 1;
    let window = (0..reach.min(spots.len())).map(|step| (at + step) % spots.len());
    window.map(|at| clashes_of(spots, at)).sum()
}

fn count(spots: &[Spot]) -> usize {
    (0..spots.len()).map(|at| clashes_of(spots, at)).sum()
}

/// How many of the predecessors of the member at `at` are in its zone.
fn clashes_of(spots: &[Spot], at: usize) -> usize {
    let (owner, len) = (spots[at], spots.len());
    let before = (1..len).map(|step| spots[(at + len - step) % len]);
    let holders = before.take(owner.mirrors);
    holders.filter(|holder| owner.zone.is_some() && holder.zone == owner.zone).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{membership::change::tests::member, name::Name};

    fn ring(members: &[(&str, &str)]) -> Vec<Member> {
        let mut ring = Vec::new();
        for (name, zone) in members {
            let zone = Name::new(zone).ok();
            place(&mut ring, Member { zone, ..member(name, 1) });
            untangle(&mut ring);
        }
        ring
    }

    fn count(ring: &[Member]) -> usize {
        super::count(&spots(ring))
    }

    fn names(ring: &[Member]) -> String {
        ring.iter().map(|m| m.id.name.as_str()).collect()
    }

    #[test]
    fn without_zones_a_joiner_stands_behind_the_last() {
        assert_eq!(names(&ring(&[("a", ""), ("b", ""), ("c", "")])), "abc");
    }

    #[test]
    fn owners_and_holders_are_in_different_zones_where_that_can_be() {
        let two_racks = [("a", "x"), ("b", "x"), ("c", "y"), ("d", "y"), ("e", "x"), ("f", "y")];
        for n in [4, 6] {
            assert_eq!(count(&ring(&two_racks[..n])), 0, "{}", names(&ring(&two_racks[..n])));
        }
        assert_eq!(count(&ring(&two_racks[..3])), 1, "two of three in one rack: one clash stays");
        let three = [("a", "x"), ("b", "x"), ("c", "y"), ("d", "y"), ("e", "z"), ("f", "z")];
        let mut two_copies = ring(&three);
        two_copies.iter_mut().for_each(|m| m.mirrors = 2);
        untangle(&mut two_copies);
        assert_eq!(count(&two_copies), 0, "{}", names(&two_copies));
    }

    #[test]
    fn who_does_not_clash_is_not_moved() {
        let mut ring = ring(&[("a", "x"), ("b", "y"), ("c", "x"), ("d", "y"), ("e", "z")]);
        let before = names(&ring);
        untangle(&mut ring);
        assert_eq!(names(&ring), before);
        ring.retain(|m| m.id.name.as_str() != "b");
        untangle(&mut ring);
        assert_eq!(count(&ring), 0, "a c d e had a and c side by side: {}", names(&ring));
    }
}
