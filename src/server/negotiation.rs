//! Which transport a link towards a peer uses: what this node has and may use, what the peer
//! refused, and what did not work and when.
//!
//! Pure: it is told what happened and the time, and says what to try and what to tell a person.

use std::{collections::HashMap, time::Duration};

use crate::{
    membership::{NodeId, Time},
    transport::Kind,
};

/// How long links towards a peer do without RDMA after it did not get through.
pub(super) const AVOIDED_FOR: Duration = Duration::from_secs(60);

/// Which transports a server offers and accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Policy {
    /// RDMA where both ends of a link have it, else TCP.
    #[default]
    Auto,
    /// RDMA and nothing else.
    Rdma,
    /// TCP and nothing else.
    Tcp,
}

impl Policy {
    /// A link may use this transport.
    pub fn allows(self, kind: Kind) -> bool {
        match self {
            Self::Auto => true,
            Self::Rdma => kind == Kind::Rdma,
            Self::Tcp => kind == Kind::Tcp,
        }
    }
}

/// Why a link did not come about, or ended before it was of use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Trouble {
    /// The peer does not have this transport or may not use it.
    #[error("it takes {} only", names(usable))]
    Refused { usable: Vec<Kind> },
    /// A step failed, here or there.
    #[error("{why}")]
    Failed { why: String },
    /// It was made, and ended before a single request on it was done.
    #[error("the connection ended before anything came through")]
    Unreachable,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Reason {
    Refused,
    Failed,
    Unreachable,
}

impl Trouble {
    fn reason(&self) -> Reason {
        match self {
            Self::Refused { .. } => Reason::Refused,
            Self::Failed { .. } => Reason::Failed,
            Self::Unreachable => Reason::Unreachable,
        }
    }
}

/// What one node knows about its links.
#[derive(Debug)]
pub(super) struct Negotiation {
    /// What it has and may use, the best first.
    usable: Vec<Kind>,
    /// What is not to be tried towards a peer, and until when. Never the last that is usable.
    avoided: HashMap<(NodeId, Kind), Time>,
    /// What a person was told, and when.
    told: HashMap<(NodeId, Kind, Reason), Time>,
}

impl Negotiation {
    /// Of a node that has these transports, the best first.
    pub(super) fn new(policy: Policy, has: impl IntoIterator<Item = Kind>) -> Self {
        let usable = has.into_iter().filter(|kind| policy.allows(*kind)).collect();
        Self { usable, avoided: HashMap::new(), told: HashMap::new() }
    }

    /// What this node offers and accepts, the best first.
    pub(super) fn usable(&self) -> &[Kind] {
        &self.usable
    }

    /// The best of them.
    pub(super) fn best(&self) -> Kind {
        self.usable.first().copied().unwrap_or(Kind::Tcp) // a server without any does not start
    }

    /// What to try towards a peer, in this order.
    pub(super) fn to_try(&self, peer: &NodeId, now: Time) -> Vec<Kind> {
        let avoided =
            |kind: Kind| self.avoided.get(&(peer.clone(), kind)).is_some_and(|&until| now < until);
        self.usable.iter().copied().filter(|&kind| !avoided(kind)).collect()
    }

    /// A link came to nothing. Answers what to tell a person: once for each peer and reason where
    /// another transport takes over, and again and again where none does.
    pub(super) fn trouble(
        &mut self,
        peer: &NodeId,
        kind: Kind,
        trouble: &Trouble,
        now: Time,
    ) -> Option<String> {
        let behind = self.usable.iter().skip_while(|usable| **usable != kind).nth(1).copied();
        let refused = matches!(trouble, Trouble::Refused { .. });
        match behind {
            Some(_) if !refused => {
                self.avoided.insert((peer.clone(), kind), now + AVOIDED_FOR);
            }
            // A refusal costs one question and may be over with the peer's next start.
            Some(_) => {}
            // Nothing is left but what was avoided.
            None => self.avoided.retain(|(avoided, _), _| avoided != peer),
        }
        // That TCP breaks is a matter for the membership.
        if kind == Kind::Tcp && !refused {
            return None;
        }
        let told = (peer.clone(), kind, trouble.reason());
        let due =
            self.told.get(&told).is_none_or(|&at| behind.is_none() && now >= at + AVOIDED_FOR);
        if !due {
            return None;
        }
        self.told.insert(told, now);
        Some(warning(peer, kind, behind, trouble))
    }

    /// A link over this transport was of use: the next trouble with it is news.
    pub(super) fn worked(&mut self, peer: &NodeId, kind: Kind) {
        self.told.retain(|(told, of, _), _| (told, *of) != (peer, kind));
    }

    /// The peer is not in the ring any more.
    pub(super) fn forget(&mut self, peer: &NodeId) {
        self.avoided.retain(|(avoided, _), _| avoided != peer);
        self.told.retain(|(told, ..), _| told != peer);
    }
}

fn names(kinds: &[Kind]) -> String {
    let names: Vec<_> = kinds.iter().map(Kind::to_string).collect();
    names.join(" and ")
}

/// One line that names the peer, says why, and what to do.
fn warning(peer: &NodeId, kind: Kind, behind: Option<Kind>, trouble: &Trouble) -> String {
    let name = &peer.name;
    let why = format!("no {kind} towards node {name}: {trouble}");
    match (trouble, behind) {
        (Trouble::Refused { .. }, Some(next)) => format!(
            "{why}; this link uses {next}: `ringkeep doctor` on {name} says what is missing there, \
             unless its --transport forbids {kind}"
        ),
        (Trouble::Refused { .. }, None) => format!(
            "{why}; there is no link and no mirror: start both servers with --transport auto, or \
             both with the same"
        ),
        (_, Some(next)) => format!(
            "{why}; links to it use {next} for {} s, then the next one tries {kind} again: see \
             `ringkeep doctor` here and on {name}",
            AVOIDED_FOR.as_secs()
        ),
        (_, None) => format!(
            "{why}; it is tried again, and until then there is no mirror, because --transport \
             {kind} forbids another: see `ringkeep doctor` here and on {name}"
        ),
    }
}

#[cfg(test)]
mod tests {
    use Kind::{Rdma, Tcp};

    use super::*;
    use crate::name::Name;

    const BOTH: [Kind; 2] = [Rdma, Tcp];

    fn node(name: &str) -> NodeId {
        NodeId { name: Name::new(name).unwrap(), incarnation: 1 }
    }

    fn at(seconds: u64) -> Time {
        Time::default() + Duration::from_secs(seconds)
    }

    fn refused(usable: &[Kind]) -> Trouble {
        Trouble::Refused { usable: usable.to_vec() }
    }

    fn failed() -> Trouble {
        Trouble::Failed { why: "no memory".to_owned() }
    }

    #[test]
    fn a_policy_limits_what_is_offered_and_accepted() {
        let usable =
            |policy, has: &[Kind]| Negotiation::new(policy, has.iter().copied()).usable().to_vec();
        assert_eq!(usable(Policy::Auto, &BOTH), BOTH);
        assert_eq!(usable(Policy::Auto, &[Tcp]), [Tcp]);
        assert_eq!(usable(Policy::Rdma, &BOTH), [Rdma]);
        assert_eq!(usable(Policy::Tcp, &BOTH), [Tcp]);
    }

    /// What a node ends up with towards a peer: each kind is tried and refused as the peer's own
    /// policy says.
    fn agreed(asker: &mut Negotiation, peer: &Negotiation) -> (Option<Kind>, Vec<String>) {
        let mut warnings = Vec::new();
        for kind in asker.to_try(&node("b"), at(0)) {
            if peer.usable().contains(&kind) {
                return (Some(kind), warnings);
            }
            let trouble = refused(peer.usable());
            warnings.extend(asker.trouble(&node("b"), kind, &trouble, at(0)));
        }
        (None, warnings)
    }

    #[test]
    fn in_a_mixed_ring_each_link_uses_the_best_that_both_ends_have() {
        let of = |policy, has: &[Kind]| Negotiation::new(policy, has.iter().copied());
        let kinds = [
            (of(Policy::Auto, &BOTH), [Some(Rdma), Some(Tcp), Some(Rdma), Some(Tcp)]),
            (of(Policy::Auto, &[Tcp]), [Some(Tcp), Some(Tcp), None, Some(Tcp)]),
            (of(Policy::Rdma, &BOTH), [Some(Rdma), None, Some(Rdma), None]),
            (of(Policy::Tcp, &BOTH), [Some(Tcp), Some(Tcp), None, Some(Tcp)]),
        ];
        let policies = || {
            [
                of(Policy::Auto, &BOTH),
                of(Policy::Auto, &[Tcp]),
                of(Policy::Rdma, &BOTH),
                of(Policy::Tcp, &BOTH),
            ]
        };
        for (at, (_, wanted)) in kinds.iter().enumerate() {
            for (peer, wanted) in policies().iter().zip(wanted) {
                let asker = &mut policies()[at];
                let (kind, warnings) = agreed(asker, peer);
                assert_eq!(kind, *wanted, "{asker:?} towards {peer:?}");
                // Loud whenever it is not what this node has as its best.
                assert_eq!(warnings.is_empty(), kind == Some(asker.usable()[0]), "{warnings:?}");
            }
        }
    }

    #[test]
    fn a_refusal_is_told_once_and_asked_again_each_time() {
        let mut links = Negotiation::new(Policy::Auto, BOTH);
        let b = node("b");
        let warning = links.trouble(&b, Rdma, &refused(&[Tcp]), at(0)).unwrap();
        for part in ["node b", "no rdma", "tcp only", "uses tcp", "`ringkeep doctor` on b"] {
            assert!(warning.contains(part), "{part}: {warning}");
        }
        for seconds in [0, 1, 1000] {
            assert_eq!(links.to_try(&b, at(seconds)), BOTH);
            assert_eq!(links.trouble(&b, Rdma, &refused(&[Tcp]), at(seconds)), None);
        }
        assert!(links.trouble(&node("c"), Rdma, &refused(&[Tcp]), at(0)).is_some());
        // Another reason is another line; after a success all of it is news again.
        assert!(links.trouble(&b, Rdma, &failed(), at(2000)).is_some());
        links.worked(&b, Rdma);
        assert!(links.trouble(&b, Rdma, &refused(&[Tcp]), at(3000)).is_some());
        assert!(links.trouble(&b, Rdma, &failed(), at(3000)).is_some());
    }

    #[test]
    fn what_did_not_get_through_is_avoided_for_a_while_and_towards_this_peer_only() {
        for trouble in [Trouble::Unreachable, failed()] {
            let mut links = Negotiation::new(Policy::Auto, BOTH);
            let (b, c) = (node("b"), node("c"));
            let warning = links.trouble(&b, Rdma, &trouble, at(10)).unwrap();
            assert!(warning.contains("node b") && warning.contains("tcp for 60 s"), "{warning}");
            assert_eq!(links.to_try(&b, at(69)), [Tcp]);
            assert_eq!(links.to_try(&c, at(10)), BOTH);
            assert_eq!(links.to_try(&b, at(70)), BOTH);
            // Tried again in vain: avoided again, and nothing new to tell.
            assert_eq!(links.trouble(&b, Rdma, &trouble, at(80)), None);
            assert_eq!(links.to_try(&b, at(139)), [Tcp]);
            links.forget(&b);
            assert_eq!(links.to_try(&b, at(81)), BOTH);
            assert!(links.trouble(&b, Rdma, &trouble, at(81)).is_some());
        }
    }

    #[test]
    fn a_peer_that_takes_no_tcp_gets_another_try_over_rdma() {
        let mut links = Negotiation::new(Policy::Auto, BOTH);
        let b = node("b");
        links.trouble(&b, Rdma, &Trouble::Unreachable, at(0));
        assert_eq!(links.to_try(&b, at(1)), [Tcp]);
        let warning = links.trouble(&b, Tcp, &refused(&[Rdma]), at(1)).unwrap();
        assert!(warning.contains("no mirror") && warning.contains("rdma only"), "{warning}");
        assert_eq!(links.to_try(&b, at(1)), BOTH);
    }

    #[test]
    fn rdma_alone_never_falls_back_and_says_so_again_and_again() {
        for trouble in [Trouble::Unreachable, failed(), refused(&[Tcp])] {
            let mut links = Negotiation::new(Policy::Rdma, BOTH);
            let b = node("b");
            let warning = links.trouble(&b, Rdma, &trouble, at(0)).unwrap();
            assert!(warning.contains("no mirror") && warning.contains("--transport"), "{warning}");
            for seconds in [0, 30, 59] {
                assert_eq!(links.to_try(&b, at(seconds)), [Rdma]);
                assert_eq!(links.trouble(&b, Rdma, &trouble, at(seconds)), None);
            }
            assert!(links.trouble(&b, Rdma, &trouble, at(60)).is_some());
            assert_eq!(links.trouble(&b, Rdma, &trouble, at(119)), None);
        }
    }

    #[test]
    fn tcp_alone_never_offers_rdma_and_breaks_quietly() {
        let mut links = Negotiation::new(Policy::Tcp, BOTH);
        let b = node("b");
        for trouble in [Trouble::Unreachable, failed()] {
            assert_eq!(links.trouble(&b, Tcp, &trouble, at(0)), None);
            assert_eq!(links.to_try(&b, at(0)), [Tcp]);
        }
        assert!(links.trouble(&b, Tcp, &refused(&[Rdma]), at(0)).is_some());
        assert_eq!(links.to_try(&b, at(0)), [Tcp]);
    }
}
