//! Copies that are nobody's present one: what this node owned before it was evicted or gave it up,
//! mirrors that were replaced while this node did not listen, and checkpoints that are not served:
//! found damaged, or of memory that no transport took.
//!
//! Nothing is erased before a newer copy is known to be on two nodes (rule H4), and nothing comes
//! back to life while anybody has a newer one.

use std::{fs::File, rc::Rc, time::Duration};

use super::{
    failures::{internal, store_failure},
    holders,
    node::{Mirror, MirrorId, Node, Owned, blocking},
    rpc::{Copy, Standing},
    store::{Held, Meta, Owner},
};
use crate::{
    membership::{Member, NodeId, View},
    name::Name,
    protocol::{Failure, FailureKind},
    region::Identity,
};

/// Between two looks while there is something left over.
const LOOK_AFTER: Duration = Duration::from_millis(500);

impl Node {
    /// Looks after leftovers until the server stops.
    pub(super) async fn run_leftovers(self: Rc<Self>) {
        loop {
            if self.view().is_some() {
                self.look_after_leftovers().await;
            }
            if self.any_leftover() {
                tokio::time::sleep(LOOK_AFTER).await;
            } else {
                self.changed.notified().await;
            }
        }
    }

    fn any_leftover(&self) -> bool {
        let owned = self.owned.borrow();
        let old = owned.values().any(|o| o.meta.held == Held::Superseded || o.memory.is_none());
        old || !self.left_over_mirrors().is_empty()
    }

    /// Mirrors of owners whose predecessor this node is not, and for whose recovery nobody will
    /// ask it.
    fn left_over_mirrors(&self) -> Vec<MirrorId> {
        let Some(view) = self.view() else { return Vec::new() };
        let mirrors = self.mirrors.borrow();
        mirrors.keys().filter(|(_, owner, _)| self.is_left_over(&view, owner)).cloned().collect()
    }

    fn is_left_over(&self, view: &View, owner: &NodeId) -> bool {
        let me = self.id();
        !holders::is_predecessor(view, &me, owner)
            && (self.is_over(owner)
                || holders::runs(view, owner).iter().all(|run| !run.holders.contains(&me)))
    }

    pub(super) async fn look_after_leftovers(self: &Rc<Self>) {
        let (mut old, mut not_served) = (Vec::new(), Vec::new());
        for (name, owned) in self.owned.borrow().iter() {
            if owned.meta.held == Held::Superseded {
                old.push(name.clone());
            } else if owned.memory.is_none() {
                not_served.push(name.clone());
            }
        }
        for name in old {
            if let Err(failure) = self.settle_old_copy(&name).await {
                tracing::debug!(checkpoint = %name, %failure, "an old copy is kept");
            }
        }
        for name in not_served {
            if let Err(failure) = self.restore(&name).await {
                tracing::debug!(checkpoint = %name, %failure, "not restored yet");
            }
        }
        for id in self.left_over_mirrors() {
            let _lock = self.lock(&id.0).await;
            let known = |m: &Mirror| (m.meta.clone(), m.region.mark().is_ok());
            let Some((mine, marked)) = self.mirrors.borrow().get(&id).map(known) else { continue };
            let Ok(copies) = self.locate(&id.0).await else { continue };
            let Some(view) = self.view() else { return };
            // Since it was found, this node may have become its owner's predecessor.
            let left_over = self.is_left_over(&view, &id.1);
            let replaced = || replaced(&mine, &self.and_here(&id.0, &copies), mine.epoch, &view);
            if left_over && (replaced() || (!marked && self.is_over(&id.1))) {
                tracing::info!(checkpoint = %id.0, owner = %id.1, "an old mirror is dropped");
                // Its owner may be ahead of this node, and count on it.
                self.drop_mirror_unless_synced(&id, view.number + 1).await;
            }
        }
    }

    /// The copies elsewhere and those on this node.
    fn and_here(&self, name: &Name, elsewhere: &[(Member, Copy)]) -> Vec<(NodeId, Copy)> {
        let here = self.located(name).into_iter().map(|copy| (self.id(), copy));
        elsewhere.iter().map(|(m, copy)| (m.id.clone(), copy.clone())).chain(here).collect()
    }

    /// An old copy of this node's own goes when a newer one has two copies, and comes back to life
    /// when nobody has, or will have, a newer one.
    async fn settle_old_copy(self: &Rc<Self>, name: &Name) -> Result<(), Failure> {
        let _lock = self.lock(name).await;
        self.while_creating(name, self.try_settle(name)).await
    }

    async fn try_settle(self: &Rc<Self>, name: &Name) -> Result<(), Failure> {
        let copies = self.locate(name).await?;
        let view = self.view().ok_or_else(|| internal(&"not in a ring"))?;
        let (mine, life) = {
            let owned = self.owned.borrow();
            match owned.get(name) {
                Some(o) if o.meta.held == Held::Superseded => (o.meta.clone(), self.life.get()),
                _ => return Ok(()),
            }
        };
        if replaced(&mine, &self.and_here(name, &copies), mine.epoch + 1, &view) {
            tracing::info!(checkpoint = %name, "an old copy is dropped");
            self.drop_owned(name).await;
            return Ok(());
        }
        if self.is_witness() {
            let why = "a witness owns nothing; started without --witness it takes its copies up";
            return Err(Failure::new(FailureKind::Unavailable, why));
        }
        let wait = |why: String| Err(Failure::new(FailureKind::Unavailable, why));
        let same = |c: &Copy| c.identity.checkpoint == mine.identity.checkpoint;
        // An owner of whichever epoch, one on its way, or anything newer.
        let later =
            |c: &Copy| matches!(c.standing, Standing::Owns(_)) || c.epoch > mine.epoch || !same(c);
        if let Some((node, copy)) = copies.iter().find(|(_, c)| later(c)) {
            return wait(format!("node {} has epoch {}", node.id.name, copy.epoch));
        }
        let newer_here = {
            let mirrors = self.mirrors.borrow();
            mirrors.iter().any(|((n, ..), m)| n == name && m.meta.epoch > mine.epoch)
        };
        // Who is not recovered yet and was a member after this copy's last sync may have had it next,
        // but for those that show an older one. If they never can be, because all that had their
        // copies lost their memory, then neither can this: it may be older. What was made
        // here and never mirrored nobody had next; of what was taken over and never mirrored, whoever
        // gave it may have gone on with its own.
        let mark = self.owned.borrow().get(name).and_then(|o| o.region.mark().ok());
        let since = mark.map_or(0, |mark| mark.view);
        let taken_over = mine.identity.generation > 1;
        let may_be_elsewhere = mark.is_some() || mine.successor.is_some() || taken_over;
        let shown = |owner: &NodeId| {
            copies.iter().any(|(m, c)| m.id.name == owner.name && same(c) && c.epoch < mine.epoch)
        };
        let mut doubt = false;
        for gone in view.holders.iter().filter(|h| self.is_unsettled(&h.owner)) {
            if gone.owner.name == self.id().name {
                doubt |= mine.ended == Some(gone.owner.incarnation);
            } else if may_be_elsewhere && gone.left > since {
                doubt |= !shown(&gone.owner) && !self.leaves_traces(gone, &view, since).await;
            }
        }
        // Asking took its time.
        if self.view().is_none_or(|v| v.number != view.number) || self.life.get() != life {
            return wait("the ring changed meanwhile".to_owned());
        }
        if newer_here || doubt {
            return wait("a node that may have had it next is not recovered".to_owned());
        }
        self.go_on_with(mine, life).await
    }

    /// A checkpoint whose newest version was damaged here gets it back from its mirror. One that is whole
    /// only has to be served.
    async fn restore(self: &Rc<Self>, name: &Name) -> Result<(), Failure> {
        let _lock = self.lock(name).await;
        let life = self.life.get();
        let whole = {
            let mut owned = self.owned.borrow_mut();
            let is_whole = |o: &Owned| {
                o.meta.held != Held::Superseded && o.memory.is_none() && o.damaged.is_none()
            };
            let whole = owned.get(name).is_some_and(is_whole).then(|| owned.remove(name));
            whole.flatten()
        };
        if let Some(whole) = whole {
            return self.while_creating(name, self.serve(whole, life)).await;
        }
        let (mine, region) = {
            let owned = self.owned.borrow();
            let owned = owned.get(name).ok_or_else(|| internal(&"gone"))?;
            (owned.meta.clone(), owned.region.clone())
        };
        let claimed = region.newest_by_record().map_or(0, |f| f.record.sequence);
        let copies = self.locate(name).await?;
        let mirror = copies.iter().find(|(_, c)| {
            matches!(&c.standing, Standing::Holds(owner) if *owner == self.id())
                && c.identity == mine.identity
                && c.synced.is_some()
        });
        let (member, _) = mirror.ok_or_else(|| {
            Failure::new(FailureKind::Unavailable, "no synced mirror of it was found")
        })?;
        let root = Owner { uid: 0, gid: 0, mode: 0 };
        let copied = self.copy_from(member, name, None, root).await?;
        // Versions that were never mirrored can make an older slot here the newer one.
        let checked = region.clone();
        let whole_here = blocking(move || checked.newest_valid()).await;
        let whole_here = whole_here.filter(|f| f.record.sequence > copied.version);
        let version = whole_here.map_or(copied.version, |f| f.record.sequence);
        if version < claimed {
            tracing::warn!(
                checkpoint = %name, claimed, version,
                "the damaged version was never mirrored; the newest that is whole takes its place"
            );
        }
        let generation = mine.identity.generation + 1;
        let meta = Meta {
            identity: Identity { checkpoint: mine.identity.checkpoint, generation },
            epoch: self.epoch_after(mine.epoch),
            region: Self::draw(),
            ..mine
        };
        let store = self.store.clone();
        let file = File::from(copied.file);
        let made = blocking(move || match whole_here {
            Some(found) => store.copy(meta, &region, Some(found.slot)),
            None => store.restore(meta, &file, copied.version, copied.len),
        })
        .await;
        let stored = made.map_err(|e| store_failure(&e))?;
        self.memory_bytes.set(self.memory_bytes.get() + stored.meta.bytes);
        self.while_creating(name, async {
            self.drop_owned(name).await;
            tracing::info!(checkpoint = %name, version, "restored");
            self.serve(Owned::new(stored), life).await
        })
        .await
    }
}

/// Whether a copy of at least this epoch has an owner and all the mirrors that a recovery of that
/// owner would ask for.
fn replaced(mine: &Meta, copies: &[(NodeId, Copy)], epoch: u64, view: &View) -> bool {
    let same = |c: &Copy| c.identity.checkpoint == mine.identity.checkpoint;
    copies.iter().any(|(owner, owned)| {
        let Some(run) = view.holders_of(owner).last() else { return false };
        let mirrored_at = |holder: &NodeId| {
            copies.iter().any(|(node, mirror)| {
                node == holder
                    && mirror.standing == Standing::Holds(owner.clone())
                    && (mirror.identity, mirror.epoch) == (owned.identity, owned.epoch)
                    && mirror.synced.is_some_and(|synced| synced >= run.since)
            })
        };
        same(owned)
            && matches!(owned.standing, Standing::Owns(_))
            && owned.epoch >= epoch
            && owned.synced.is_some()
            && run.holders.iter().all(mirrored_at)
    })
}
