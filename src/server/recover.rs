//! After a view change: fence those who left, and find new homes for their checkpoints.

use std::{collections::BTreeMap, rc::Rc, time::Duration};

use super::{
    data_plane::{Command, Committed},
    mirrors::internal,
    node::{LONG_CALL_TIMEOUT, MirrorId, Node, Owned, blocking},
    rpc::{FencedCopy, Reply, Request, Standing},
    store::Held,
};
use crate::{
    membership::{Event, NodeId, View},
    mirror::Protection,
    name::Name,
    protocol::{Failure, Role},
    recovery::{Decision, Report, Run, choose},
};

/// Between two tries to recover what could not be recovered.
const RETRY_AFTER: Duration = Duration::from_millis(250);

impl Node {
    /// What a new view asks of this node.
    pub(super) async fn after_view_change(self: Rc<Self>) {
        let Some(view) = self.view() else { return };
        let me = self.id();
        for gone in view.holders.iter().filter(|h| !view.contains(&h.owner)) {
            if gone.runs.iter().any(|run| run.holder == me) {
                // F1: whatever is recovered later, this owner writes here no more.
                if let Err(failure) = self.fence_quickly(&gone.owner).await {
                    tracing::error!(%failure, owner = %gone.owner, "fencing");
                }
            }
            // The newest holder of its mirror looks after what it left behind.
            if gone.runs.last().is_some_and(|run| run.holder == me)
                && self.recovering.borrow_mut().insert(gone.owner.clone())
            {
                tokio::task::spawn_local(self.clone().recover_owner(gone.owner.clone()));
            }
        }
    }

    async fn fence_quickly(&self, owner: &NodeId) -> Result<(), Failure> {
        let keys: Vec<_> = {
            let mut mirrors = self.mirrors.borrow_mut();
            let theirs = mirrors.iter_mut().filter(|((_, o, _), _)| o == owner);
            theirs
                .filter_map(|(_, mirror)| {
                    mirror.fenced = true;
                    mirror.key.take()
                })
                .collect()
        };
        for key in keys {
            self.data_plane.ask(|reply| Command::Revoke { key, reply }).await?;
        }
        Ok(())
    }

    /// Finds a home for each checkpoint of an owner that left the ring, and tells the membership
    /// when all of them have two copies again.
    async fn recover_owner(self: Rc<Self>, owner: NodeId) {
        while let Some(view) = self.view() {
            if view.contains(&owner) || view.holders_of(&owner).is_empty() || self.stopping.get() {
                break;
            }
            match self.try_recover(&owner, &view).await {
                Ok(true) => {
                    tracing::info!(%owner, "all its checkpoints have two copies again");
                    self.membership_event(Event::OwnerSettled { owner: owner.clone() });
                    break;
                }
                Ok(false) => {}
                Err(failure) => tracing::warn!(%owner, %failure, "recovering its checkpoints"),
            }
            self.wait_a_little(RETRY_AFTER).await;
        }
        self.recovering.borrow_mut().remove(&owner);
    }

    /// True when nothing is left to do.
    async fn try_recover(self: &Rc<Self>, owner: &NodeId, view: &View) -> Result<bool, Failure> {
        let me = self.id();
        let runs: Vec<Run<NodeId>> = view
            .holders_of(owner)
            .iter()
            .map(|run| Run { since: run.since, holder: run.holder.clone() })
            .collect();
        let mut reports: BTreeMap<NodeId, Vec<FencedCopy>> = BTreeMap::new();
        for run in &runs {
            if reports.contains_key(&run.holder) {
                continue;
            }
            let copies = if run.holder == me {
                self.fence(owner).await
            } else if let Some(member) = view.ring.iter().find(|m| m.id == run.holder) {
                let request = Request::Fence { owner: owner.clone(), view: view.number };
                match self.call(member, request, LONG_CALL_TIMEOUT).await {
                    Ok(Reply::Fenced(copies)) => Ok(copies),
                    Ok(_) => Err(internal(&"an answer to something else")),
                    Err(failure) => Err(failure),
                }
            } else {
                continue; // gone: cannot be asked
            };
            if let Ok(copies) = copies {
                reports.insert(run.holder.clone(), copies);
            }
        }
        let mut names: Vec<&Name> = reports.values().flatten().map(|c| &c.name).collect();
        names.sort_unstable();
        names.dedup();
        let mut done = true;
        for name in names {
            let decision = choose(&runs, |holder| {
                let copies = reports.get(holder)?;
                let copy = copies.iter().find(|c| c.name == *name);
                let (mark, version) = copy.map_or((None, 0), |c| (c.mark, c.version));
                Some(Report { mark, version })
            });
            done &= match decision {
                Decision::Exact { holder, .. } if holder == me => {
                    self.adopt(owner, name).await?;
                    true
                }
                Decision::Exact { holder, .. } => {
                    let member = view.ring.iter().find(|m| m.id == holder).cloned();
                    let member = member.ok_or_else(|| internal(&"the holder left"))?;
                    let request = Request::Adopt { owner: owner.clone(), name: name.clone() };
                    self.call(&member, request, LONG_CALL_TIMEOUT).await?;
                    true
                }
                Decision::Unavailable { holder } => {
                    tracing::warn!(checkpoint = %name, %holder, "its newest mirror cannot be asked");
                    false
                }
                // Made while the mirror was, and never acknowledged as mirrored.
                Decision::Nothing => true,
            };
        }
        // An older holder that is gone may have had what no newer one was synced with.
        let all_asked = runs.iter().all(|run| reports.contains_key(&run.holder));
        Ok(done && (all_asked || runs.len() == 1) && self.all_protected().await?)
    }

    /// This node's mirror of a dead owner's checkpoint becomes the checkpoint.
    pub(super) async fn adopt(self: &Rc<Self>, owner: &NodeId, name: &Name) -> Result<(), Failure> {
        let _lock = self.lock(name).await;
        let id: MirrorId = {
            let mirrors = self.mirrors.borrow();
            let theirs = mirrors.iter().filter(|((n, o, _), _)| n == name && o == owner);
            let newest = theirs.max_by_key(|((_, _, generation), m)| {
                (m.region.mark().is_ok(), m.meta.epoch, *generation)
            });
            match newest {
                Some((id, _)) => id.clone(),
                None => return Ok(()), // adopted already
            }
        };
        let already = {
            let (owned, mirrors) = (self.owned.borrow(), self.mirrors.borrow());
            let mirror = mirrors.get(&id).ok_or_else(|| internal(&"the mirror is gone"))?;
            owned.get(name).is_some_and(|o| {
                o.meta.held != Held::Superseded && o.meta.epoch > mirror.meta.epoch
            })
        };
        if already {
            return Ok(());
        }
        // An own older copy that was superseded once gives way.
        self.drop_owned(name).await;
        let Some(mirror) = self.mirrors.borrow_mut().remove(&id) else { return Ok(()) };
        if let Some(memory) = mirror.memory {
            self.data_plane.ask(|reply| Command::Deregister { memory, reply }).await?;
        }
        let mut meta = mirror.meta;
        (meta.epoch, meta.held) = (meta.epoch + 1, Held::Orphan);
        self.store.write_meta(&meta).map_err(|e| internal(&e))?;
        let region = mirror.region;
        let checked = region.clone();
        let newest = blocking(move || checked.newest_valid()).await;
        let version = newest.map_or(0, |f| f.record.sequence);
        tracing::info!(checkpoint = %name, from = %owner, version, epoch = meta.epoch, "adopted");
        self.serve(Owned {
            meta,
            region,
            path: mirror.path,
            memory: None,
            attachment: 0,
            successor: None,
            damaged: None,
        })
        .await
    }

    /// Hands an owned checkpoint to the data plane.
    pub(super) async fn serve(&self, mut owned: Owned) -> Result<(), Failure> {
        let name = owned.meta.name.clone();
        let (region, epoch) = (owned.region.clone(), owned.meta.epoch);
        let newest = region.newest_by_record().map(|found| Committed {
            version: found.record.sequence,
            slot: found.slot,
            len: found.record.len,
        });
        let own_name = name.clone();
        let own = |reply| Command::Own { name: own_name, region, epoch, newest, reply };
        let memory = self.data_plane.ask(own).await?;
        owned.memory = Some(memory.map_err(|e| internal(&e))?);
        self.owned.borrow_mut().insert(name, owned);
        self.changed.notify_waiters();
        Ok(())
    }

    /// True when every checkpoint that this node owns has its second copy.
    pub(super) async fn all_protected(&self) -> Result<bool, Failure> {
        let reports = self.data_plane.ask(|reply| Command::Report { reply }).await?;
        Ok(reports.iter().all(|r| matches!(r.protection, Protection::InSync | Protection::Lagging)))
    }

    /// Waits until something changed, at most so long.
    pub(super) async fn wait_a_little(&self, time: Duration) {
        // Only a bound on the wait: what is waited for is looked at again either way.
        let _ = tokio::time::timeout(time, self.changed.notified()).await;
    }

    /// What the other members have of a checkpoint. All of them must answer.
    pub(super) async fn locate(
        self: &Rc<Self>,
        name: &Name,
    ) -> Result<Vec<(crate::membership::Member, super::rpc::Copy)>, Failure> {
        let mut asked = Vec::new();
        for member in self.others() {
            let (node, name) = (self.clone(), name.clone());
            asked.push(tokio::task::spawn_local(async move {
                let request = Request::Locate { name };
                let answer = node.call(&member, request, super::node::CALL_TIMEOUT).await;
                (member, answer)
            }));
        }
        let mut found = Vec::new();
        for asked in asked {
            match asked.await {
                Ok((member, Ok(Reply::Located(copies)))) => {
                    found.extend(copies.into_iter().map(|copy| (member.clone(), copy)));
                }
                Ok((_, Err(failure))) => return Err(failure),
                Ok((_, Ok(_))) => return Err(internal(&"an answer to something else")),
                Err(error) => return Err(internal(&error)),
            }
        }
        Ok(found)
    }

    /// What this node has of a checkpoint.
    pub(super) fn located(&self, name: &Name) -> Vec<super::rpc::Copy> {
        use super::rpc::Copy;
        let newest = |region: &crate::region::Region| {
            region.newest_by_record().map_or(0, |f| f.record.sequence)
        };
        let mut copies = Vec::new();
        if let Some(owned) = self.owned.borrow().get(name) {
            copies.push(Copy {
                standing: match owned.meta.held {
                    Held::Orphan => Standing::Owns(Role::Orphan),
                    Held::Superseded => Standing::Superseded,
                    _ => Standing::Owns(Role::Owner),
                },
                identity: owned.meta.identity,
                epoch: owned.meta.epoch,
                version: newest(&owned.region),
                synced: false,
            });
        } else if self.creating.borrow().contains(name) {
            let identity = crate::region::Identity { checkpoint: 0, generation: 0 };
            copies.push(Copy {
                standing: Standing::Creating,
                identity,
                epoch: 0,
                version: 0,
                synced: false,
            });
        }
        for ((n, owner, _), mirror) in self.mirrors.borrow().iter() {
            if n == name {
                copies.push(Copy {
                    standing: Standing::Holds(owner.clone()),
                    identity: mirror.meta.identity,
                    epoch: mirror.meta.epoch,
                    version: newest(&mirror.region),
                    synced: mirror.region.mark().is_ok(),
                });
            }
        }
        copies
    }
}
