//! Connections by peer: at most one that this node opened and one that the peer opened (rule F1).

use std::collections::HashMap;

use crate::{
    membership::NodeId,
    transport::{ConnId, ConnectError, Kind, many::Many},
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outgoing {
    Offered(ConnId),
    Up(ConnId),
}

impl Outgoing {
    fn conn(self) -> ConnId {
        match self {
            Self::Offered(conn) | Self::Up(conn) => conn,
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Links {
    outgoing: HashMap<NodeId, Outgoing>,
    incoming: HashMap<NodeId, ConnId>,
    /// Those on which no request was done well yet. Empty, or nearly, when it matters: each
    /// completion asks.
    unproven: Vec<ConnId>,
}

impl Links {
    pub(super) fn offer(
        &mut self,
        transport: &mut Many,
        peer: NodeId,
        kind: Kind,
    ) -> Result<Vec<u8>, ConnectError> {
        if let Some(old) = self.outgoing.remove(&peer) {
            self.unproven.retain(|unproven| *unproven != old.conn());
            transport.close(old.conn());
        }
        let (conn, offer) = transport.offer(kind)?;
        self.outgoing.insert(peer, Outgoing::Offered(conn));
        self.unproven.push(conn);
        Ok(offer)
    }

    pub(super) fn accept(
        &mut self,
        transport: &mut Many,
        peer: NodeId,
        kind: Kind,
        offer: &[u8],
    ) -> Result<Vec<u8>, ConnectError> {
        if let Some(old) = self.incoming.remove(&peer) {
            transport.close(old); // F2: the old one ends before the new one begins
        }
        let (conn, answer) = transport.accept(kind, offer)?;
        self.incoming.insert(peer, conn);
        Ok(answer)
    }

    pub(super) fn finish(
        &mut self,
        transport: &mut Many,
        peer: NodeId,
        answer: &[u8],
        address: std::net::SocketAddr,
    ) -> Result<ConnId, ConnectError> {
        let Some(Outgoing::Offered(conn)) = self.outgoing.get(&peer).copied() else {
            return Err(ConnectError::WrongState);
        };
        transport.finish(conn, answer, address)?;
        self.outgoing.insert(peer, Outgoing::Up(conn));
        Ok(conn)
    }

    /// A request on this connection was done well.
    pub(super) fn proven(&mut self, conn: ConnId) {
        if let Some(at) = self.unproven.iter().position(|unproven| *unproven == conn) {
            self.unproven.swap_remove(at);
        }
    }

    /// The connection on which work can be posted.
    pub(super) fn up(&self, peer: &NodeId) -> Option<ConnId> {
        match self.outgoing.get(peer) {
            Some(Outgoing::Up(conn)) => Some(*conn),
            _ => None,
        }
    }

    /// Towards whom this connection was opened.
    pub(super) fn peer_of(&self, conn: ConnId) -> Option<&NodeId> {
        self.outgoing.iter().find(|(_, o)| o.conn() == conn).map(|(peer, _)| peer)
    }

    /// The connection on which this peer may be granted keys.
    pub(super) fn incoming(&self, peer: &NodeId) -> Option<ConnId> {
        self.incoming.get(peer).copied()
    }

    /// Forgets a connection that ended. When it was the one that work is posted on: the peer, and
    /// whether any request was done well.
    pub(super) fn closed(&mut self, conn: ConnId) -> Option<(NodeId, bool)> {
        self.incoming.retain(|_, c| *c != conn);
        let peer = self.outgoing.iter().find(|(_, o)| o.conn() == conn)?.0.clone();
        self.outgoing.remove(&peer);
        let proven = !self.unproven.contains(&conn);
        self.proven(conn);
        Some((peer, proven))
    }

    /// All of them: the peer, the connection, whether the peer opened it, whether it is up.
    pub(super) fn all(&self) -> impl Iterator<Item = (&NodeId, ConnId, bool, bool)> {
        let up = |outgoing: &Outgoing| matches!(outgoing, Outgoing::Up(_));
        let outgoing = self.outgoing.iter().map(move |(peer, o)| (peer, o.conn(), false, up(o)));
        outgoing.chain(self.incoming.iter().map(|(peer, conn)| (peer, *conn, true, true)))
    }

    /// Closes both directions.
    pub(super) fn unlink(&mut self, transport: &mut Many, peer: &NodeId) {
        let outgoing = self.outgoing.remove(peer).map(Outgoing::conn);
        for conn in outgoing.into_iter().chain(self.incoming.remove(peer)) {
            self.unproven.retain(|unproven| *unproven != conn);
            transport.close(conn);
        }
    }

    /// Closes everything.
    pub(super) fn close_all(&mut self, transport: &mut Many) {
        self.unproven.clear();
        let outgoing = self.outgoing.drain().map(|(_, o)| o.conn());
        for conn in outgoing.chain(self.incoming.drain().map(|(_, c)| c)) {
            transport.close(conn);
        }
    }
}
