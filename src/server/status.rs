//! What `ringkeep status` shows: this server, its ring, its connections and its copies.

use std::collections::BTreeMap;

use super::{
    data_plane::{Command, CopyReport, LinkReport, Report},
    node::{Link, Node},
    requests::copy_state,
    store::Held,
};
use crate::{
    membership::{Member, NodeId, View},
    mirror::Protection,
    name::Name,
    protocol::{
        CopyState, Direction, Failure, LinkState, LinkStatus, MirrorOf, MirrorStatus, OwnedStatus,
        RingState, Role, Status, StatusView, SyncStatus,
    },
};

impl Node {
    /// This server and its ring.
    pub(super) async fn status(&self) -> Result<Status, Failure> {
        let reports = self.data_plane.ask(|reply| Command::Report { reply }).await?;
        let connections = self.data_plane.ask(|reply| Command::Links { reply }).await?;
        let (view, me) = (self.view(), self.me.borrow().clone());
        let before = view.as_ref().and_then(|v| v.predecessor(&me.id));
        let predecessor = before.map(|m| &m.id);
        let successor = view.as_ref().and_then(|v| v.successor(&me.id)).map(|m| &m.id);
        let checkpoints = self.owned_status(&reports, predecessor);
        let mirrors = self.mirror_status(view.as_deref());
        let two_copies =
            |r: &Report| matches!(r.protection, Protection::InSync | Protection::Lagging);
        let protected = reports.iter().all(two_copies)
            && mirrors.iter().all(|m| m.state != CopyState::Orphan)
            && view.is_some();
        super::metrics::set_copies(checkpoints.len(), mirrors.len());
        super::metrics::set_protected(protected);
        super::metrics::set_memory(self.memory_bytes.get(), self.config.memory_bytes);
        Ok(Status {
            node: me.id.name.clone(),
            incarnation: me.id.incarnation,
            witness: me.witness,
            zone: me.zone,
            mirrors_wanted: me.mirrors,
            transport: self.negotiation.borrow().best(),
            hugepages: self.store.has_hugepages(),
            predecessor: predecessor.map(|id| id.name.clone()),
            predecessor_address: before.map(|m| m.address),
            successor: successor.map(|id| id.name.clone()),
            view: view.as_deref().map(view_status),
            state: if protected { RingState::Protected } else { RingState::Degraded },
            links: self.link_status(&reports, connections, predecessor),
            checkpoints,
            mirrors,
            memory_bytes: self.memory_bytes.get(),
            memory_bytes_max: self.config.memory_bytes,
            suspects: self.membership.borrow().suspects(),
        })
    }

    fn owned_status(&self, reports: &[Report], predecessor: Option<&NodeId>) -> Vec<OwnedStatus> {
        let owned = self.owned.borrow();
        let known = reports.iter().filter_map(|r| Some((r, &owned.get(&r.name)?.meta)));
        known
            .map(|(report, meta)| OwnedStatus {
                name: report.name.clone(),
                role: if meta.held == Held::Orphan { Role::Orphan } else { Role::Owner },
                version: report.version,
                bytes: report.len,
                attached: report.attached,
                epoch: meta.epoch,
                mirror: report.slowest().map(|slowest| MirrorOf {
                    version: report.mirrored,
                    state: copy_state(report.protection),
                    ..mirror_of(slowest)
                }),
                mirrors: match self.me.borrow().mirrors {
                    0 | 1 => Vec::new(),
                    _ => report.copies.iter().map(mirror_of).collect(),
                },
                syncing: syncing(report, predecessor),
            })
            .collect()
    }

    fn mirror_status(&self, view: Option<&View>) -> Vec<MirrorStatus> {
        let state = |owner: &NodeId, synced: bool| match view.is_some_and(|v| v.contains(owner)) {
            false => CopyState::Orphan,
            true if synced => CopyState::InSync,
            true => CopyState::Syncing,
        };
        let mirrors = self.mirrors.borrow();
        let entries = mirrors.iter().map(|((name, owner, _), mirror)| MirrorStatus {
            name: name.clone(),
            owner: owner.name.clone(),
            version: mirror.region.newest_by_record().map_or(0, |f| f.record.sequence),
            state: state(owner, mirror.region.mark().is_ok()),
        });
        entries.collect()
    }

    /// The connections that are there, and those that a checkpoint waits for.
    fn link_status(
        &self,
        reports: &[Report],
        connections: Vec<LinkReport>,
        predecessor: Option<&NodeId>,
    ) -> Vec<LinkStatus> {
        let mut links: BTreeMap<(Name, Direction), LinkStatus> = BTreeMap::new();
        for report in reports {
            let waits = report.protection == Protection::Syncing;
            let wanted = report.copies.iter().map(|copy| &copy.holder);
            let wanted = wanted.chain(report.under_way.iter().map(|copy| &copy.holder));
            for peer in wanted.chain(predecessor.filter(|_| waits)) {
                let connecting =
                    matches!(self.links.borrow().get(peer), Some(Link::Connecting { .. }));
                let state = if connecting { LinkState::Connecting } else { LinkState::Down };
                insert(&mut links, peer, Direction::To, None, state);
            }
        }
        for LinkReport { peer, incoming, kind, up } in connections {
            let direction = if incoming { Direction::From } else { Direction::To };
            match up {
                true => insert(&mut links, &peer, direction, kind, LinkState::Up),
                false => insert(&mut links, &peer, direction, None, LinkState::Connecting),
            }
        }
        links.into_values().collect()
    }
}

fn mirror_of(copy: &CopyReport) -> MirrorOf {
    MirrorOf {
        node: copy.holder.name.clone(),
        version: copy.version,
        state: copy_state(copy.state),
        transport: copy.transport,
    }
}

fn insert(
    links: &mut BTreeMap<(Name, Direction), LinkStatus>,
    peer: &NodeId,
    direction: Direction,
    transport: Option<crate::transport::Kind>,
    state: LinkState,
) {
    let node = peer.name.clone();
    links.insert((node.clone(), direction), LinkStatus { node, direction, transport, state });
}

/// The copies under way; before its first byte was sent, the one that is to be made.
fn syncing(report: &Report, predecessor: Option<&NodeId>) -> Vec<SyncStatus> {
    let under_way: Vec<SyncStatus> = report
        .under_way
        .iter()
        .map(|copy| SyncStatus {
            node: copy.holder.name.clone(),
            sent_bytes: copy.sent_bytes,
            bytes: copy.bytes,
        })
        .collect();
    match predecessor {
        Some(predecessor) if under_way.is_empty() && report.protection == Protection::Syncing => {
            let node = predecessor.name.clone();
            vec![SyncStatus { node, sent_bytes: 0, bytes: report.len }]
        }
        _ => under_way,
    }
}

fn view_status(view: &View) -> StatusView {
    let name = |m: &Member| m.id.name.clone();
    let zone = |m: &Member| Some((m.id.name.clone(), m.zone.clone()?));
    StatusView {
        number: view.number,
        members: view.ring.iter().map(name).collect(),
        voters: view.voters.iter().map(name).collect(),
        witnesses: view.voters.iter().filter(|m| m.witness).map(name).collect(),
        leaving: view.leaving.iter().map(|id| id.name.clone()).collect(),
        zones: view.everybody().filter_map(zone).collect(),
    }
}
