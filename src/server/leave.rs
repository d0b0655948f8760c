//! Leaving the ring in order: what this node has moves to others before it goes, so that no
//! checkpoint is with one copy meanwhile.
//!
//! It takes two views. In the first, this node is [leaving](crate::membership::View::leaving): it is
//! a member in everything, but nobody's predecessor, so those whose mirrors it holds copy them to
//! somebody else and then tell it to let go (rules H2 to H4). What it owns it gives to its own
//! predecessor, which has the mirror already, and keeps its copy until that one has a mirror, too.
//! When nothing is left that anybody counts on, a second view takes it out.

use std::{collections::BTreeMap, rc::Rc, time::Duration};

use tokio::time::{Instant, timeout};

use super::{
    copies::find_version,
    data_plane::{Command, CopyReport, Report},
    failures::no_such,
    node::{LONG_CALL_TIMEOUT, Node, Owned, blocking},
    rpc::{Reply, Request},
    store::Held,
};
use crate::{
    commit::Version,
    handover::Condition,
    membership::{Event, Member, NodeId, View},
    name::Name,
    protocol::{Failure, FailureKind},
};

/// Between two looks at what is left.
const LOOK_AFTER: Duration = Duration::from_millis(20);
/// How long the last one of a ring answers those that have just left it: some tries of theirs.
const LAST_STAYS: Duration = Duration::from_millis(500);
/// How long a node that is out waits until a majority of those who stay knows it.
const FAREWELL: Duration = Duration::from_secs(2);

/// What was sent away from here, and of what was given since, the version that the heir has. A service
/// that goes on commits newer ones, which are for the next server to take.
type LetGo = BTreeMap<Name, Option<Version>>;

impl Node {
    /// Leaves the ring, if there is one that goes on without this node. Ends when this node is out
    /// or its time for that is over; what it still has then stays in memory.
    pub(super) async fn leave(self: &Rc<Self>) {
        let patience = self.config.leave_timeout;
        let others_stay = self.view().is_some_and(|view| stays(&view, &self.id()).next().is_some());
        if patience.is_zero() || !others_stay {
            return;
        }
        tracing::info!("leaving the ring; a second signal stops at once");
        self.leaving.set(true);
        self.membership_event(Event::Leave);
        if timeout(patience, self.hand_over_all()).await.is_err() {
            tracing::warn!(
                seconds = patience.as_secs_f64(),
                "not everything could be handed over in time; it stays in memory, and this node is \
                 a member again when it starts soon (see --leave-timeout)"
            );
        }
    }

    async fn hand_over_all(self: &Rc<Self>) {
        let (mut out_since, mut let_go) = (None, LetGo::new());
        while !self.stopping.get() {
            let Some(view) = self.view() else { return };
            if view.ring.len() == 1 && view.contains(&self.id()) {
                // The others left first, and what they had is here. The last of them may not have
                // heard yet that it is out, and asks again.
                if !view.change.left.is_empty() {
                    tokio::time::sleep(LAST_STAYS).await;
                }
                return;
            }
            // The view of a node that is out is not told any more: only the machine knows.
            let out = !self.membership.borrow().is_member();
            if out && out_since.get_or_insert_with(Instant::now).elapsed() > FAREWELL {
                return; // those who stay may have ended, too
            }
            if !out && (view.is_leaving(&self.id()) || self.config.witness) {
                match self.hand_over(&view, &mut let_go).await {
                    Ok(true) => self.membership_event(Event::HandedOver),
                    Ok(false) => {}
                    Err(failure) => tracing::debug!(%failure, "handing over"),
                }
            }
            self.wait_a_little(LOOK_AFTER).await;
        }
    }

    /// Hands over what can be handed over now. True when nobody counts on anything here any more.
    async fn hand_over(self: &Rc<Self>, view: &View, let_go: &mut LetGo) -> Result<bool, Failure> {
        let me = self.id();
        let heir = view.predecessor(&me).cloned();
        for report in self.data_plane.ask(|reply| Command::Report { reply }).await? {
            let (name, version) = (report.name.clone(), report.version);
            let heir = heir.as_ref().filter(|heir| is_mirrored_at(&report, heir));
            let sent_away = let_go.contains_key(&name) && !report.attached;
            let whole_here = self.is_still_here(&name, version);
            match heir.filter(|_| sent_away) {
                // A client that goes on may have written over it while it travelled.
                Some(heir) if whole_here || self.is_whole_at(heir, &name, version).await => {
                    let_go.insert(name.clone(), Some(version));
                    self.bequeath(&name, heir, version).await?;
                }
                None if sent_away && whole_here => {} // on its way
                _ => {
                    // Its last commits go to the mirror, also the one that it was in the middle of when
                    // it was sent away.
                    let_go.insert(name.clone(), None);
                    let condition = Some(Condition::Stopping);
                    self.data_plane.send(Command::Detach { name, condition })?;
                }
            }
        }
        // The heir may not have been able to take it when it was told first.
        let given: Vec<(Name, Member)> = {
            let owned = self.owned.borrow();
            let heir = |o: &Owned| view.member(o.meta.successor.as_ref()?).cloned();
            let given = owned.iter().filter(|(_, o)| o.meta.held == Held::Superseded);
            given.filter_map(|(name, o)| Some((name.clone(), heir(o)?))).collect()
        };
        let mut refused = false;
        for (name, heir) in given {
            let version = let_go.get(&name).copied().flatten();
            if let Err(failure) = self.tell_heir(&name, &heir, version).await {
                tracing::debug!(checkpoint = %name, heir = %heir.id, %failure, "not taken yet");
                refused = true;
            }
        }
        // With one member left there is nobody for a second copy: it goes on with its own.
        let two_stay = stays(view, &me).nth(1).is_some();
        let owned_rest = self.owned.borrow().values().any(|owned| {
            let given = owned.meta.held == Held::Superseded && owned.meta.successor.is_some();
            owned.damaged.is_none() && (!given || two_stay)
        });
        let mirrors_rest = self.mirrors.borrow().keys().any(|(_, owner, _)| {
            // Of an owner that is gone: its recovery is not done.
            !view.contains(owner) || !view.predecessors(owner).is_empty()
        });
        Ok(!owned_rest && !mirrors_rest && !refused)
    }

    /// Whether this version is in its slot as it was when it was committed, if there is one.
    fn is_still_here(&self, name: &Name, version: Version) -> bool {
        let owned = self.owned.borrow();
        let Some(Owned { region, .. }) = owned.get(name) else { return true };
        version == 0 || find_version(region, Some(version)).is_ok()
    }

    /// Whether a member's mirror has this version and no newer one, down to the last checksum.
    async fn is_whole_at(&self, heir: &Member, name: &Name, version: Version) -> bool {
        let request = Request::Verify { name: name.clone() };
        let verified = self.call(heir, request, LONG_CALL_TIMEOUT).await;
        matches!(verified, Ok(Reply::Verified(Some(copy))) if copy.version == version)
    }

    /// Gives an owned checkpoint to the member that holds its mirror.
    async fn bequeath(
        self: &Rc<Self>,
        name: &Name,
        heir: &Member,
        version: Version,
    ) -> Result<(), Failure> {
        // All the while: nobody may take the copy here for one that nobody else has.
        let _lock = self.lock(name).await;
        if !self.owns(name) {
            return Ok(());
        }
        // On disk before anything else: a restart must not take this copy for the present one.
        self.set_held(name, Held::Superseded, Some(heir.id.clone()))?;
        self.disown(name.clone(), Condition::Stopping).await?;
        self.tell_holders(name, &heir.id).await;
        self.tell_heir(name, heir, Some(version)).await?;
        tracing::info!(checkpoint = %name, heir = %heir.id, "handed over");
        Ok(())
    }

    /// Tells a member to go on with a checkpoint that was given to it. Also one that asked for it
    /// once and never came for it: it may have no mirror, or an old one. Without a version, the newest.
    async fn tell_heir(
        &self,
        name: &Name,
        heir: &Member,
        version: Option<Version>,
    ) -> Result<(), Failure> {
        let (epoch, newest) = {
            let owned = self.owned.borrow();
            let owned = owned.get(name).ok_or_else(|| no_such(name))?;
            (owned.meta.epoch, owned.region.newest_by_record())
        };
        let version = version.or(newest.map(|found| found.record.sequence)).unwrap_or(0);
        let request = Request::Inherit { name: name.clone(), epoch, version };
        self.call(heir, request, LONG_CALL_TIMEOUT).await.map(drop)
    }

    /// A leaver's checkpoint goes on here, or did so already.
    pub(super) async fn inherit(
        self: &Rc<Self>,
        leaver: &NodeId,
        name: &Name,
        epoch: u64,
        version: Version,
    ) -> Result<(), Failure> {
        let mirror = self.best_mirror(leaver, name).and_then(|id| {
            let mirrors = self.mirrors.borrow();
            mirrors.get(&id).map(|m| (m.meta.epoch, m.region.clone()))
        });
        let complete = match mirror {
            Some((of_epoch, region)) => {
                let newest = blocking(move || region.newest_valid()).await;
                (of_epoch, newest.map_or(0, |found| found.record.sequence)) == (epoch, version)
            }
            None => self.owned.borrow().get(name).is_some_and(|mine| mine.meta.epoch > epoch),
        };
        if !complete {
            let why = format!("this node's mirror of {name} is not complete");
            return Err(Failure::new(FailureKind::Unavailable, why));
        }
        self.adopt(leaver, name, None).await.map(drop)
    }
}

/// The ring members besides `me` that are not leaving.
fn stays<'a>(view: &'a View, me: &NodeId) -> impl Iterator<Item = &'a Member> {
    let me = me.clone();
    view.ring.iter().filter(move |m| m.id != me && !view.is_leaving(&m.id))
}

/// Whether the newest version is at this member, or there is none.
fn is_mirrored_at(report: &Report, heir: &Member) -> bool {
    let there = |copy: &CopyReport| copy.holder == heir.id && copy.version == report.version;
    report.copies.iter().any(|copy| copy.of_record && there(copy))
}
