//! Data connections towards peers, made over the authenticated control connection: over the best
//! transport that both ends have and that gets through.

use std::rc::Rc;

use tokio::sync::Notify;

use super::{
    data_plane::{Command, LinkEnd},
    membership::now,
    negotiation::Trouble,
    node::{CALL_TIMEOUT, Link, Node},
    rpc::{NoLink, Reply, Request},
};
use crate::{
    membership::{Member, NodeId},
    protocol::{Failure, FailureKind},
    transport::{Access, ConnId, ConnectError, Kind, MemoryError, MemoryId, RemoteKey, Terms},
};

impl Node {
    /// Makes sure that work can be posted towards a peer.
    pub(super) async fn link(&self, to: &Member) -> Result<(), Failure> {
        let waiting = match self.links.borrow().get(&to.id) {
            Some(Link::Up(_)) => return Ok(()),
            Some(Link::Connecting { made, .. }) => Some(made.clone()),
            None => None,
        };
        if let Some(made) = waiting {
            made.notified().await;
            return match self.links.borrow().get(&to.id) {
                Some(Link::Up(_)) => Ok(()),
                _ => Err(no_link(&to.id)),
            };
        }
        let notify = Rc::new(Notify::new());
        let connecting = Link::Connecting { made: notify.clone(), ended: None };
        self.links.borrow_mut().insert(to.id.clone(), connecting);
        let mut made = self.make_link(to).await;
        {
            // Unless the peer left meanwhile, and perhaps came back and is linked anew.
            let mut links = self.links.borrow_mut();
            if let Some(Link::Connecting { made: its, ended }) = links.get(&to.id)
                && Rc::ptr_eq(its, &notify)
            {
                // It may have ended before its beginning was heard of.
                if made.as_ref().is_ok_and(|conn| *ended == Some(*conn)) {
                    made = Err(no_link(&to.id));
                }
                match &made {
                    Ok(conn) => links.insert(to.id.clone(), Link::Up(*conn)),
                    Err(_) => links.remove(&to.id),
                };
            }
        }
        notify.notify_waiters();
        made.map(drop)
    }

    async fn make_link(&self, to: &Member) -> Result<ConnId, Failure> {
        let mut failure = no_link(&to.id);
        let kinds = self.negotiation.borrow().to_try(&to.id, now());
        for kind in kinds {
            match self.make_link_over(kind, to).await? {
                Ok(conn) => {
                    tracing::debug!(peer = %to.id, transport = %kind, "linked");
                    return Ok(conn);
                }
                Err(trouble) => {
                    self.link_trouble(&to.id, kind, &trouble);
                    failure.message = format!("{failure}; over {kind}: {trouble}");
                }
            }
        }
        Err(failure)
    }

    /// The inner failure is the transport's: another one may do better.
    async fn make_link_over(
        &self,
        kind: Kind,
        to: &Member,
    ) -> Result<Result<ConnId, Trouble>, Failure> {
        let peer = to.id.clone();
        let offer = match self.data_plane.ask(|reply| Command::Offer { peer, kind, reply }).await? {
            Ok(offer) => offer,
            Err(error) => return Ok(Err(failed(&error))),
        };
        let answer = match self.call(to, Request::Link { kind, offer }, CALL_TIMEOUT).await? {
            Reply::Link { answer } => answer,
            Reply::NoLink(NoLink::NoTransport { usable }) => {
                return Ok(Err(Trouble::Refused { usable }));
            }
            Reply::NoLink(NoLink::Failed { why }) => return Ok(Err(Trouble::Failed { why })),
            _ => return Err(no_link(&to.id)),
        };
        let (peer, address) = (to.id.clone(), to.address);
        let finish = |reply| Command::Finish { peer, answer, address, reply };
        Ok(self.data_plane.ask(finish).await?.map_err(|error| failed(&error)))
    }

    fn link_trouble(&self, peer: &NodeId, kind: Kind, trouble: &Trouble) {
        let warning = self.negotiation.borrow_mut().trouble(peer, kind, trouble, now());
        match warning {
            Some(warning) => tracing::warn!("{warning}"),
            None => tracing::debug!(%peer, transport = %kind, %trouble, "no link"),
        }
    }

    /// A peer opens a connection towards this node.
    pub(super) async fn accept_link(
        &self,
        from: NodeId,
        kind: Kind,
        offer: Vec<u8>,
    ) -> Result<Reply, Failure> {
        let usable = self.negotiation.borrow().usable().to_vec();
        if !usable.contains(&kind) {
            return Ok(Reply::NoLink(NoLink::NoTransport { usable }));
        }
        if !self.negotiation.borrow().to_try(&from, now()).contains(&kind) {
            let why = format!("{kind} between these two was of no use a moment ago");
            return Ok(Reply::NoLink(NoLink::Failed { why }));
        }
        let accept = |reply| Command::Accept { peer: from, kind, offer, reply };
        Ok(match self.data_plane.ask(accept).await? {
            Ok(answer) => Reply::Link { answer },
            Err(error) => Reply::NoLink(NoLink::Failed { why: error.to_string() }),
        })
    }

    /// Lets a peer reach memory over the connection that it opened. Should this node's device not
    /// take the memory, that connection is of no use, and the next one goes over another transport.
    pub(super) async fn grant(
        &self,
        to: &NodeId,
        memory: MemoryId,
        access: Access,
        terms: Terms,
    ) -> Result<RemoteKey, Failure> {
        let peer = to.clone();
        let grant = |reply| Command::Grant { peer, memory, access, terms, reply };
        self.data_plane.ask(grant).await?.map_err(|error| {
            let why = format!("granting access: {error}");
            if matches!(error, MemoryError::System(_)) {
                let kind = self.negotiation.borrow().best();
                self.link_trouble(to, kind, &Trouble::Failed { why: why.clone() });
            }
            Failure::new(FailureKind::Unavailable, why)
        })
    }

    /// The connection towards this peer must not be used any more.
    pub(super) fn forget_link(&self, peer: &NodeId) {
        let mut links = self.links.borrow_mut();
        if matches!(links.get(peer), Some(Link::Up(_))) {
            links.remove(peer);
        }
    }

    /// This connection ended; a newer one towards the same peer is not meant.
    pub(super) fn link_down(&self, peer: &NodeId, conn: ConnId, kind: Kind, end: LinkEnd) {
        {
            let mut links = self.links.borrow_mut();
            match links.get_mut(peer) {
                Some(Link::Up(up)) if *up == conn => drop(links.remove(peer)),
                Some(Link::Connecting { ended, .. }) => *ended = Some(conn),
                _ => {}
            }
        }
        let trouble = match end {
            LinkEnd::Proven => return self.negotiation.borrow_mut().worked(peer, kind),
            // Making a link ends before the connection is there: this is how it failed.
            LinkEnd::Unproven => Trouble::Unreachable,
            LinkEnd::Unfit(why) => Trouble::Failed { why },
        };
        if self.view().is_some_and(|view| view.contains(peer)) {
            self.link_trouble(peer, kind, &trouble);
        }
    }
}

fn failed(error: &ConnectError) -> Trouble {
    Trouble::Failed { why: error.to_string() }
}

fn no_link(to: &NodeId) -> Failure {
    Failure::new(FailureKind::Unavailable, format!("no data connection to node {}", to.name))
}
