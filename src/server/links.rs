//! Data connections towards peers, made over the authenticated control connection.

use std::rc::Rc;

use tokio::sync::Notify;

use super::{
    data_plane::Command,
    node::{CALL_TIMEOUT, Link, Node},
    rpc::{Reply, Request},
};
use crate::{
    membership::{Member, NodeId},
    protocol::{Failure, FailureKind},
    transport::ConnId,
};

impl Node {
    /// Makes sure that work can be posted towards a peer.
    pub(super) async fn link(&self, to: &Member) -> Result<(), Failure> {
        let waiting = match self.links.borrow().get(&to.id) {
            Some(Link::Up(_)) => return Ok(()),
            Some(Link::Connecting(notify)) => Some(notify.clone()),
            None => None,
        };
        if let Some(notify) = waiting {
            notify.notified().await;
            return match self.links.borrow().get(&to.id) {
                Some(Link::Up(_)) => Ok(()),
                _ => Err(no_link(&to.id)),
            };
        }
        let notify = Rc::new(Notify::new());
        self.links.borrow_mut().insert(to.id.clone(), Link::Connecting(notify.clone()));
        let made = self.make_link(to).await;
        match &made {
            Ok(conn) => self.links.borrow_mut().insert(to.id.clone(), Link::Up(*conn)),
            Err(_) => self.links.borrow_mut().remove(&to.id),
        };
        notify.notify_waiters();
        made.map(drop)
    }

    async fn make_link(&self, to: &Member) -> Result<ConnId, Failure> {
        let peer = to.id.clone();
        let offer = self.data_plane.ask(|reply| Command::Offer { peer, reply }).await?;
        let offer = offer.map_err(|e| Failure::new(FailureKind::Internal, e.to_string()))?;
        let request = Request::Link { kind: self.kind, offer };
        let Reply::Link { answer } = self.call(to, request, CALL_TIMEOUT).await? else {
            return Err(no_link(&to.id));
        };
        let (peer, address) = (to.id.clone(), to.address);
        let finish = |reply| Command::Finish { peer, answer, address, reply };
        let finished = self.data_plane.ask(finish).await?;
        finished.map_err(|e| Failure::new(FailureKind::Unavailable, e.to_string()))
    }

    /// A peer opens a connection towards this node.
    pub(super) async fn accept_link(&self, from: NodeId, offer: Vec<u8>) -> Result<Reply, Failure> {
        let accept = |reply| Command::Accept { peer: from, offer, reply };
        let answer = self.data_plane.ask(accept).await?;
        let answer = answer.map_err(|e| Failure::new(FailureKind::Invalid, e.to_string()))?;
        Ok(Reply::Link { answer })
    }

    /// The connection towards this peer must not be used any more.
    pub(super) fn forget_link(&self, peer: &NodeId) {
        let mut links = self.links.borrow_mut();
        if matches!(links.get(peer), Some(Link::Up(_))) {
            links.remove(peer);
        }
    }

    /// This connection ended; a newer one towards the same peer is not meant.
    pub(super) fn link_down(&self, peer: &NodeId, conn: ConnId) {
        let mut links = self.links.borrow_mut();
        if matches!(links.get(peer), Some(Link::Up(up)) if *up == conn) {
            links.remove(peer);
        }
    }
}

fn no_link(to: &NodeId) -> Failure {
    Failure::new(FailureKind::Unavailable, format!("no data connection to node {}", to.name))
}
