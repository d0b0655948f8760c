//! Finding new homes for what a lost node had, and for what nobody counts on any more: as
//! `src/server/recover.rs`, `leftovers.rs`, `take_over.rs` and `leave.rs`.

use std::{
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use ringkeep::{
    commit::Version,
    membership::{Event, Member, NodeId, OwnerHolders, View},
    name::Name,
    recovery::{Decision, Report, Run, choose, in_owners_memory, with_owner},
    transport::{Access, Purpose, Terms, Transport},
};

use crate::{
    Mutant,
    copies::new_region,
    rpc::{Copy, Failure, FencedCopy, Reply, Request, Standing},
    server::{Held, LONG_CALL_TIMEOUT, Owned, Server, caretaker, runs, runs_after},
    world::{Kept, Meta},
};

const RETRY_AFTER: Duration = Duration::from_millis(250);
const LOOK_AFTER: Duration = Duration::from_millis(500);
const LEAVE_LOOK_AFTER: Duration = Duration::from_millis(20);

/// What a holder of an owner's mirrors has, said after it was fenced.
struct Fenced {
    by: Member,
    copies: Vec<FencedCopy>,
    /// There is nothing else that may count.
    complete: bool,
}

impl Fenced {
    fn report(&self, name: &Name) -> Report {
        let copy = self.copies.iter().find(|copy| copy.name == *name);
        let (mark, version) = copy.map_or((None, 0), |copy| (copy.mark, copy.version));
        Report { mark, version }
    }
}

impl Server {
    // Recovery.

    /// What a new view asks of this node.
    pub(crate) fn fence_the_gone(self: &Rc<Self>, view: &Arc<View>) {
        for gone in view.holders.iter().filter(|h| h.is_gone()) {
            // F1: whatever is recovered later, this owner writes here no more.
            self.fence_quickly(&gone.owner);
            if caretaker(view, &gone.owner) == Some(&self.id())
                && self.recovering.borrow_mut().insert(gone.owner.clone())
            {
                self.spawn(self.clone().recover_owner(gone.owner.clone()));
            }
        }
        let server = self.clone();
        self.spawn(async move { server.confirm_sync() });
    }

    /// Finds a home for each checkpoint of an owner that left the ring, and tells the membership
    /// when all of them have all their copies again.
    async fn recover_owner(self: Rc<Self>, owner: NodeId) {
        let mut adopted = BTreeMap::new();
        while let Some(view) = self.view() {
            let mine = caretaker(&view, &owner) == Some(&self.id());
            if view.contains(&owner) || !mine || !self.is_alive() {
                break;
            }
            if self.try_recover(&owner, &view, &mut adopted).await == Ok(true) {
                self.world.log(|| format!("{} has settled {owner}", self.id()));
                self.event(Event::OwnerSettled { owner: owner.clone() });
                break;
            }
            self.sleep(RETRY_AFTER).await;
        }
        self.recovering.borrow_mut().remove(&owner);
    }

    async fn try_recover(
        self: &Rc<Self>,
        owner: &NodeId,
        view: &View,
        adopted: &mut BTreeMap<Name, Member>,
    ) -> Result<bool, Failure> {
        let mut runs = runs(view, owner);
        if self.world.params.mutant == Some(Mutant::NewestHolderOnly) {
            runs.drain(..runs.len().saturating_sub(1));
            runs.iter_mut().for_each(|run| run.since = 0);
        }
        let fenced = self.fence_holders(owner, view, &runs).await;
        // Whoever was there after the owner left may have had something next. If one is lost without a
        // trace, all that is left may be older than what was acknowledged since.
        let left = view.owner(owner).map_or(0, |h| h.left);
        let later = |h: &&OwnerHolders| h.left > left;
        for gone in view.holders.iter().filter(later) {
            if self.is_lost(gone, view, left).await {
                return Ok(false);
            }
        }
        let own = self.ask_owner(owner, view).await;
        let answers = || fenced.values().chain(&own);
        let mut names: Vec<&Name> = answers().flat_map(|f| &f.copies).map(|c| &c.name).collect();
        names.sort_unstable();
        names.dedup();
        // Whoever adopted one and was lost since is recovered as its owner.
        adopted.retain(|_, member| view.contains(&member.id));
        let mut homes = adopted.clone();
        let (mut done, mut kept_back) = (true, false);
        for name in names {
            // The last to take it up had the right to. Whatever came of it there, it is no older.
            let of_name: Vec<(&FencedCopy, &Member)> = answers()
                .flat_map(|f| f.copies.iter().map(|copy| (copy, &f.by)))
                .filter(|(copy, _)| copy.name == *name)
                .collect();
            let newest = of_name.iter().max_by_key(|(copy, _)| (copy.epoch, copy.taken_up));
            if let Some(&(_, by)) = newest.filter(|(copy, _)| copy.taken_up) {
                self.world.log(|| format!("{}: {name} of {owner} went to {}", self.id(), by.id));
                homes.insert(name.clone(), by.clone());
                continue;
            }
            if self.lost_without_trace(&of_name, view).await {
                kept_back = true;
                continue;
            }
            let kept = own.iter().find_map(|own| {
                let copy = own.copies.iter().find(|copy| copy.name == *name)?;
                Some((own, copy))
            });
            let decision = match kept {
                Some((_, copy)) => choose(&with_owner(&runs, owner), |holder| {
                    (holder == owner).then(|| in_owners_memory(copy.version))
                }),
                None => choose(&runs, |holder| fenced.get(holder).map(|f| f.report(name))),
            };
            self.world.log(|| format!("{}: {name} of {owner}: {decision:?}", self.id()));
            match decision {
                Decision::Exact { holder, .. } => {
                    let by = kept.map(|(own, _)| own).or(fenced.get(&holder)).map(|f| f.by.clone());
                    homes.insert(name.clone(), by.ok_or(Failure::Unavailable)?);
                }
                Decision::Unavailable { .. } => done = false,
                // Nobody was ever told that it is mirrored.
                Decision::Nothing => {
                    let _lock = self.lock(name).await;
                    self.drop_mirror(&(name.clone(), owner.clone()));
                }
            }
        }
        let (mut protected, mut failed) = (true, None);
        for (name, member) in homes {
            match self.adopt_at(&member, owner, &name, view.number).await {
                Ok(its) => {
                    protected &= its;
                    // What was decided and not done is decided anew.
                    adopted.insert(name, member);
                }
                Err(failure) => failed = Some(failure),
            }
        }
        if let Some(failure) = failed {
            return Err(failure);
        }
        // Runs of which nobody can tell may have had checkpoints that nobody else has, but for the
        // owner itself.
        let nobody = |run: &Run<NodeId>| {
            !run.holders.is_empty() && !run.holders.iter().any(|h| fenced.contains_key(h))
        };
        let all_kept = own.as_ref().is_some_and(|own| own.complete);
        let rehomed = done && (all_kept || !runs.iter().any(nobody));
        Ok(rehomed && protected && !kept_back)
    }

    /// Has every holder that can be asked stop accepting the owner's writes and say what it has.
    async fn fence_holders(
        self: &Rc<Self>,
        owner: &NodeId,
        view: &View,
        runs: &[Run<NodeId>],
    ) -> BTreeMap<NodeId, Fenced> {
        let holders: BTreeSet<&NodeId> = runs.iter().flat_map(|run| &run.holders).collect();
        let mut fenced = BTreeMap::new();
        for holder in holders {
            let lives = view.ring.iter().filter(|m| m.id.name == holder.name);
            let Some(member) = lives.max_by_key(|m| m.id == *holder) else { continue };
            let copies = if member.id == self.id() {
                if !self.has_memory_of(holder) {
                    continue;
                }
                Ok(self.answer_recovery(owner))
            } else {
                let (owner, holder) = (owner.clone(), holder.clone());
                let request = Request::Fence { owner, holder, view: view.number };
                match self.call(member, request, LONG_CALL_TIMEOUT).await {
                    Ok(Reply::Fenced(copies)) => Ok(copies),
                    Ok(_) => Err(Failure::Unavailable),
                    Err(failure) => Err(failure),
                }
            };
            if let Ok(copies) = copies {
                let (by, complete) = (member.clone(), true);
                fenced.insert(holder.clone(), Fenced { by, copies, complete });
            }
        }
        fenced
    }

    /// Whether an owner is not recovered, and what it had from view `since` on is known to nobody.
    async fn is_lost(self: &Rc<Self>, gone: &OwnerHolders, view: &View, since: u64) -> bool {
        self.is_unsettled(&gone.owner) && !self.leaves_traces(gone, view, since).await
    }

    /// Whether what a lost owner had from view `since` on is known to somebody: to one of each run of
    /// its holders since then, or to a later life of its own. Such a life has its memory.
    async fn leaves_traces(self: &Rc<Self>, gone: &OwnerHolders, view: &View, since: u64) -> bool {
        let runs = runs_after(gone, since);
        let each_has =
            |there: &dyn Fn(&NodeId) -> bool| runs.iter().all(|run| run.holders.iter().any(there));
        if each_has(&|holder| view.contains(holder)) {
            return true;
        }
        let asked = self.fence_holders(&gone.owner, view, &runs).await;
        each_has(&|holder| asked.contains_key(holder))
            || self.ask_owner(&gone.owner, view).await.is_some()
    }

    /// Whether one of those to whom the owner of these copies gave them is lost with all that it had.
    async fn lost_without_trace(
        self: &Rc<Self>,
        copies: &[(&FencedCopy, &Member)],
        view: &View,
    ) -> bool {
        for (copy, _) in copies {
            let next = copy.given_to.as_ref().and_then(|next| view.owner(next));
            let Some(gone) = next else { continue };
            if self.is_lost(gone, view, copy.mark.unwrap_or(0)).await {
                return true;
            }
        }
        false
    }

    /// Asks a later life of a lost owner what it still has of that one.
    async fn ask_owner(self: &Rc<Self>, owner: &NodeId, view: &View) -> Option<Fenced> {
        let by = view.ring.iter().find(|member| member.id.name == owner.name)?.clone();
        if by.id == self.id() {
            let (copies, complete) =
                self.has_memory_of(owner).then(|| self.copies_of_ended(owner))?;
            return Some(Fenced { by, copies, complete });
        }
        let (owner, holder) = (owner.clone(), owner.clone());
        let request = Request::Fence { owner, holder, view: view.number };
        match self.call(&by, request, LONG_CALL_TIMEOUT).await {
            Ok(Reply::Kept { copies, complete }) => Some(Fenced { by, copies, complete }),
            _ => None,
        }
    }

    /// What a former life of this node owned when it ended, as far as it was given to nobody who is
    /// not recovered; and whether that is all.
    pub(crate) fn copies_of_ended(&self, life: &NodeId) -> (Vec<FencedCopy>, bool) {
        let owned = self.owned.borrow();
        let all = || owned.iter().filter(|(_, o)| was_of(&o.kept.meta, life));
        let counts = |o: &Owned| self.may_go_on(&o.kept.meta);
        let copies = all().filter(|(_, o)| counts(o)).map(|(name, o)| own_copy(name, o, false));
        let copies = copies.chain(self.taken_up_from(life)).collect();
        (copies, all().all(|(_, o)| counts(o)))
    }

    /// Whether a copy was an ended life's, and nobody else's since.
    fn may_go_on(&self, meta: &Meta) -> bool {
        let lost = meta.successor.as_ref().is_some_and(|next| self.is_unsettled(next));
        meta.superseded && meta.ended.is_some() && !lost
    }

    /// Those whose recovery a copy concerns when it is taken up from `owner`.
    fn taken_from(&self, mine: &Meta, owner: &NodeId) -> Vec<NodeId> {
        let others =
            mine.taken_from.iter().filter(|from| *from != owner && self.is_unsettled(from));
        others.chain([owner]).cloned().collect()
    }

    /// What this node took up from a lost owner: it is no mirror of that one's, or copy of an ended
    /// life, any more, and perhaps mirrored nowhere yet.
    pub(crate) fn taken_up_from(&self, owner: &NodeId) -> Vec<FencedCopy> {
        let counts = |meta: &Meta| meta.taken_from.contains(owner);
        let owned = self.owned.borrow();
        let adopted = owned.iter().filter(|(_, o)| counts(&o.kept.meta));
        adopted.map(|(name, o)| own_copy(name, o, true)).collect()
    }

    /// Whether an owner left the ring and all that it had is recovered.
    fn is_over(&self, owner: &NodeId) -> bool {
        self.view().is_some_and(|view| !view.contains(owner)) && !self.is_unsettled(owner)
    }

    /// Whether an owner left the ring and its checkpoints are not all recovered.
    fn is_unsettled(&self, owner: &NodeId) -> bool {
        let is_gone = |view: &View| view.owner(owner).is_some_and(OwnerHolders::is_gone);
        let gone = self.view().is_some_and(|view| is_gone(&view));
        gone && !self.is_settled(owner)
    }

    async fn adopt_at(
        self: &Rc<Self>,
        member: &Member,
        owner: &NodeId,
        name: &Name,
        view: u64,
    ) -> Result<bool, Failure> {
        if member.id == self.id() {
            return self.adopt(owner, name, Some(view)).await;
        }
        let request = Request::Adopt { owner: owner.clone(), name: name.clone(), view };
        match self.call(member, request, LONG_CALL_TIMEOUT).await? {
            Reply::Adopted { protected } => Ok(protected),
            _ => Err(Failure::Unavailable),
        }
    }

    /// This node's mirror of a dead owner's checkpoint becomes the checkpoint, or its own copy if
    /// the owner was a life of its own. True when it, or whatever took its place since, has all its
    /// copies.
    pub(crate) async fn adopt(
        self: &Rc<Self>,
        owner: &NodeId,
        name: &Name,
        decided_for: Option<u64>,
    ) -> Result<bool, Failure> {
        let life = self.life.get();
        let _lock = self.lock(name).await;
        // Decided for other members, or long ago: somebody else may have it since.
        if decided_for.is_some_and(|view| self.view().is_none_or(|v| v.number != view)) {
            return Err(Failure::Unavailable);
        }
        self.creating.borrow_mut().insert(name.clone());
        let adopted = self.try_adopt(owner, name, life).await;
        self.creating.borrow_mut().remove(name);
        adopted
    }

    /// Goes on with an own copy in the recovery of `owner`, unless somebody has a later one.
    async fn go_on_after(
        self: &Rc<Self>,
        owner: &NodeId,
        name: &Name,
        mine: Meta,
        life: u64,
    ) -> Result<bool, Failure> {
        if let Some(successor) = self.taken_over_already(owner, name, &mine).await? {
            return Ok(successor.synced.is_some());
        }
        let taken_from = self.taken_from(&mine, owner);
        self.go_on_with(name, Meta { taken_from, ..mine }, life)?;
        Ok(false)
    }

    /// A copy that an ended life of this node made when it took over what `mirror` is a mirror of, and
    /// mirrored nowhere: it comes next, and nobody else has it.
    fn never_mirrored_after(&self, name: &Name, mirror: &Meta) -> Option<Meta> {
        let owned = self.owned.borrow();
        let Kept { meta, region } = &owned.get(name)?.kept;
        let next = meta.checkpoint == mirror.checkpoint && meta.epoch > mirror.epoch;
        let comes_next = next && self.may_go_on(meta) && region.mark().is_err();
        comes_next.then(|| meta.clone())
    }

    async fn try_adopt(
        self: &Rc<Self>,
        owner: &NodeId,
        name: &Name,
        life: u64,
    ) -> Result<bool, Failure> {
        let id = (name.clone(), owner.clone());
        let Some(mine) = self.mirrors.borrow().get(&id).map(|m| m.kept.meta.clone()) else {
            let theirs = |meta: &Meta| was_of(meta, owner) || meta.taken_from.contains(owner);
            let mine = self.meta_of(name).filter(|meta| theirs(meta) && self.may_go_on(meta));
            let Some(mine) = mine else {
                let here = |m: Meta| !m.superseded || m.taken_from.contains(owner);
                let here = self.meta_of(name).is_some_and(here);
                return Ok(!here || self.synced_views.borrow().contains_key(name));
            };
            return self.go_on_after(owner, name, mine, life).await;
        };
        if let Some(own) = self.never_mirrored_after(name, &mine) {
            return self.go_on_after(owner, name, own, life).await;
        }
        if let Some(successor) = self.taken_over_already(owner, name, &mine).await? {
            return Ok(successor.synced.is_some());
        }
        if self.life.get() != life || !self.is_alive() {
            return Err(Failure::Unavailable);
        }
        // An own older copy that was superseded once gives way.
        self.drop_owned(name);
        let Some(mirror) = self.mirrors.borrow_mut().remove(&id) else {
            return Err(Failure::Unavailable);
        };
        if let Some(memory) = mirror.memory {
            let _ = self.transport.borrow_mut().deregister(memory);
        }
        let region = mirror.kept.region;
        // What was on its way when the owner died may have left a record without its payload.
        for slot in 0..region.layout().slots() {
            if region.record(slot).is_ok() && region.verify(slot).is_err() {
                region.invalidate(slot);
            }
        }
        let (epoch, taken_from) = (self.epoch_after(mine.epoch), self.taken_from(&mine, owner));
        let (superseded, successor, ended) = (false, None, None);
        let meta = Meta { epoch, superseded, successor, ended, taken_from, ..mine };
        self.world.log(|| format!("{} adopts {name} of {owner}, epoch {}", self.id(), meta.epoch));
        self.world.tally.borrow_mut().adopted += 1;
        let kept = Kept { meta, region };
        self.keep_owned(name, &kept);
        self.erase_mirror(&id);
        self.owned.borrow_mut().insert(name.clone(), Owned { kept, plane: None });
        self.serve(name, true);
        Ok(false)
    }

    /// Who has a later epoch of this mirror's checkpoint. An error while it is not clear who will.
    async fn taken_over_already(
        self: &Rc<Self>,
        owner: &NodeId,
        name: &Name,
        mine: &Meta,
    ) -> Result<Option<Copy>, Failure> {
        let mut later: Vec<Copy> = self.locate(name).await?.into_iter().map(|(_, c)| c).collect();
        if later.iter().any(|c| c.standing == Standing::Creating) {
            return Err(Failure::Unavailable);
        }
        later.extend(self.located(name));
        later.retain(|c| c.standing != Standing::Creating); // this node's own flag
        // A mirror of an owner that is over stands for nothing: all that counts of what that one had
        // has an owner, or a later mark. Unless the mirror is from a view that is news here. And
        // those of the owner now recovered were weighed when this one was chosen.
        let number = self.view().map_or(0, |view| view.number);
        let is_nothing = |of: &NodeId, synced: Option<u64>| {
            of == owner || (synced.is_none_or(|view| view <= number) && self.is_over(of))
        };
        later.retain(|c| !matches!(&c.standing, Standing::Holds(of) if is_nothing(of, c.synced)));
        let same = |c: &Copy| c.checkpoint == mine.checkpoint;
        let owns = |c: &Copy| c.standing == Standing::Owns;
        // Made anew while this one was out of reach.
        if later.iter().any(|c| owns(c) && !same(c)) {
            return Err(Failure::Unavailable);
        }
        // Also an owner that gave it up once and went on with it after all.
        later.retain(|c| same(c) && c.epoch >= mine.epoch + u64::from(!owns(c)));
        if let Some(at) = later.iter().position(owns) {
            return Ok(Some(later.swap_remove(at)));
        }
        // A copy that was superseded proves a later owner, and is not where that one's is now.
        match later.iter().position(|c| c.synced.is_some() && c.standing != Standing::Superseded) {
            Some(at) => Ok(Some(Copy { synced: None, ..later.swap_remove(at) })),
            None if later.is_empty() => Ok(None),
            None => Err(Failure::Unavailable),
        }
    }

    /// The epoch of an ownership that follows one of this epoch and begins now.
    fn epoch_after(&self, epoch: u64) -> u64 {
        if self.world.params.mutant == Some(Mutant::EpochKept) {
            return epoch;
        }
        let view = self.view().map_or(0, |view| view.number);
        view.max(epoch + 1)
    }

    /// A copy that was superseded is the present one again: nobody has a newer one.
    fn go_on_with(self: &Rc<Self>, name: &Name, mine: Meta, life: u64) -> Result<(), Failure> {
        let kept = {
            let mut owned = self.owned.borrow_mut();
            let Some(owned) = owned.get_mut(name) else { return Ok(()) };
            // Its last requests may be on their way.
            if owned.plane.is_some() || self.life.get() != life || !self.is_alive() {
                return Err(Failure::Unavailable);
            }
            let epoch = self.epoch_after(mine.epoch);
            let life_of = |incarnation| NodeId { name: self.id().name, incarnation };
            let taken_from = match mine.ended.map(life_of) {
                Some(former) => self.taken_from(&mine, &former),
                None => mine.taken_from.clone(),
            };
            let (superseded, successor, ended) = (false, None, None);
            owned.kept.meta = Meta { epoch, superseded, successor, ended, taken_from, ..mine };
            owned.kept.clone()
        };
        self.world.log(|| format!("{} goes on with its old {name}", self.id()));
        self.keep_owned(name, &kept);
        self.serve(name, true);
        Ok(())
    }

    // Leftovers.

    pub(crate) async fn run_leftovers(self: Rc<Self>) {
        while self.is_alive() {
            if self.is_member() {
                self.look_after_leftovers().await;
            }
            self.sleep(LOOK_AFTER).await;
        }
    }

    /// Mirrors of owners whose predecessor this node is not, and for whose recovery nobody will
    /// ask it.
    fn left_over_mirrors(&self) -> Vec<(Name, NodeId)> {
        let Some(view) = self.view() else { return Vec::new() };
        let mirrors = self.mirrors.borrow();
        mirrors.keys().filter(|(_, owner)| self.is_left_over(&view, owner)).cloned().collect()
    }

    fn is_left_over(&self, view: &View, owner: &NodeId) -> bool {
        let me = self.id();
        !view.predecessors(owner).iter().any(|m| m.id == me)
            && (self.is_over(owner)
                || runs(view, owner).iter().all(|run| !run.holders.contains(&me)))
    }

    async fn look_after_leftovers(self: &Rc<Self>) {
        let old: Vec<Name> = {
            let owned = self.owned.borrow();
            let old = owned.iter().filter(|(_, o)| o.kept.meta.superseded);
            old.map(|(name, _)| name.clone()).collect()
        };
        for name in old {
            let _ = self.settle_old_copy(&name).await;
        }
        for id in self.left_over_mirrors() {
            let _lock = self.lock(&id.0).await;
            let known = |m: &Held| (m.kept.meta.clone(), m.kept.region.mark().is_ok());
            let Some((mine, marked)) = self.mirrors.borrow().get(&id).map(known) else { continue };
            let Ok(copies) = self.locate(&id.0).await else { continue };
            let Some(view) = self.view() else { return };
            // Since it was found, this node may have become its owner's predecessor.
            let left_over = self.is_left_over(&view, &id.1);
            let replaced = || replaced(&mine, &self.and_here(&id.0, &copies), mine.epoch, &view);
            if left_over && (replaced() || (!marked && self.is_over(&id.1))) {
                // Its owner may be ahead of this node, and count on it.
                self.drop_mirror_unless_synced(&id, view.number + 1);
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
        self.creating.borrow_mut().insert(name.clone());
        let settled = self.try_settle(name).await;
        self.creating.borrow_mut().remove(name);
        settled
    }

    async fn try_settle(self: &Rc<Self>, name: &Name) -> Result<(), Failure> {
        let copies = self.locate(name).await?;
        let Some(mine) = self.meta_of(name).filter(|meta| meta.superseded) else { return Ok(()) };
        let life = self.life.get();
        let view = self.view().ok_or(Failure::Unavailable)?;
        if replaced(&mine, &self.and_here(name, &copies), mine.epoch + 1, &view) {
            self.drop_owned(name);
            return Ok(());
        }
        let same = |c: &Copy| c.checkpoint == mine.checkpoint;
        // An owner of whichever epoch, one on its way, or anything newer.
        let later = |c: &Copy| c.standing == Standing::Owns || c.epoch > mine.epoch || !same(c);
        if copies.iter().any(|(_, c)| later(c)) {
            return Err(Failure::Unavailable);
        }
        let newer_here = {
            let mirrors = self.mirrors.borrow();
            mirrors.iter().any(|((n, _), m)| n == name && m.kept.meta.epoch > mine.epoch)
        };
        // Who is not recovered yet and was a member after this copy's last sync may have had it next,
        // but for those that show an older one. If they never can be, because all that had their
        // copies lost their memory, then neither can this: it may be older. What was made
        // here and never mirrored nobody had next; of what was taken over and never mirrored, whoever
        // gave it may have gone on with its own.
        let mark = self.owned.borrow().get(name).and_then(|o| o.kept.region.mark().ok());
        let since = mark.map_or(0, |mark| mark.view);
        let may_be_elsewhere = mark.is_some() || mine.successor.is_some() || mine.taken_over;
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
            return Err(Failure::Unavailable);
        }
        if newer_here || doubt {
            return Err(Failure::Unavailable);
        }
        self.go_on_with(name, mine, life)
    }

    // Services.

    /// Makes this node's checkpoint, once.
    pub(crate) async fn run_home(self: Rc<Self>) {
        let name = home_of(self.at);
        while self.is_alive() {
            let born = self.world.oracle.borrow().is_born(&name);
            if !born && self.is_member() && !self.leaving.get() {
                self.world.oracle.borrow_mut().born(&name);
                let checkpoint = self.world.count();
                let meta = Meta {
                    checkpoint,
                    epoch: self.epoch_after(0),
                    superseded: false,
                    successor: None,
                    ended: None,
                    taken_over: false,
                    taken_from: Vec::new(),
                    nonce: self.world.count(),
                };
                let kept = Kept { meta, region: new_region(&name, checkpoint) };
                self.keep_owned(&name, &kept);
                self.owned.borrow_mut().insert(name.clone(), Owned { kept, plane: None });
                self.serve(&name, false);
            }
            self.sleep(LOOK_AFTER).await;
        }
    }

    /// Takes a checkpoint over from whoever owns it.
    pub(crate) async fn take_over(self: Rc<Self>, name: Name) {
        let _lock = self.lock(&name).await;
        if self.owns(&name) || self.leaving.get() {
            return;
        }
        self.creating.borrow_mut().insert(name.clone());
        let taken = self.try_take_over(&name).await;
        self.world.log(|| format!("{} takes over {name}: {taken:?}", self.id()));
        self.creating.borrow_mut().remove(&name);
    }

    async fn try_take_over(self: &Rc<Self>, name: &Name) -> Result<(), Failure> {
        let life = self.life.get();
        let copies = self.locate(name).await?;
        if copies.iter().any(|(_, c)| c.standing == Standing::Creating) {
            return Err(Failure::Unavailable);
        }
        let owner = copies.iter().filter(|(_, c)| c.standing == Standing::Owns);
        let (from, _) = owner.max_by_key(|(_, c)| c.epoch).ok_or(Failure::Unavailable)?;
        self.link(from).await?;
        let request = Request::TakeOver { name: name.clone() };
        let reply = self.call(from, request, LONG_CALL_TIMEOUT).await?;
        let Reply::Granted { key, checkpoint, epoch, newest } = reply else {
            return Err(Failure::Unavailable);
        };
        let region = new_region(name, checkpoint);
        if let Some((slot, version)) = newest {
            self.read_slot(&from.id, key, slot, &region).await?;
            if region.verify(0).ok().map(|record| record.sequence) != Some(version) {
                return Err(Failure::Unavailable);
            }
        }
        let nonce = self.world.count();
        let (epoch, superseded, successor, ended) = (self.epoch_after(epoch), false, None, None);
        let (taken_over, taken_from) = (true, Vec::new());
        let meta =
            Meta { checkpoint, epoch, taken_over, superseded, successor, ended, taken_from, nonce };
        let mut kept = Kept { meta, region };
        self.drop_owned(name); // an older copy of this node's own
        let still = self.life.get() == life && self.is_alive();
        kept.meta.superseded = !still; // evicted meanwhile
        self.keep_owned(name, &kept);
        self.owned.borrow_mut().insert(name.clone(), Owned { kept, plane: None });
        if still {
            self.serve(name, true);
        }
        Ok(())
    }

    /// A peer takes a checkpoint over: this node stops serving it and lets the peer read.
    pub(crate) async fn give_up(
        self: &Rc<Self>,
        to: &NodeId,
        name: Name,
    ) -> Result<Reply, Failure> {
        let _lock = self.lock(&name).await;
        let meta = self.meta_of(&name).ok_or(Failure::Unavailable)?;
        let repeated = meta.superseded && meta.successor.as_ref() == Some(to);
        if meta.superseded && !repeated {
            return Err(Failure::Unavailable);
        }
        if !repeated {
            self.supersede(&name, Some(to.clone()));
            self.clone().disown(name.clone()).await;
            self.tell_holders(&name, to).await;
        }
        let owned = self.owned.borrow();
        let region = &owned.get(&name).ok_or(Failure::Unavailable)?.kept.region;
        let newest = region.newest_by_record().map(|f| (f.slot, f.record.sequence));
        let conn = self.links.borrow().incoming(to).ok_or(Failure::Unavailable)?;
        let mut transport = self.transport.borrow_mut();
        let memory = transport.register(region.mapping().clone(), Purpose::Grant);
        let memory = memory.map_err(|_| Failure::Unavailable)?;
        let terms = Terms { epoch: 0, view_min: 0 };
        let key = transport.grant(conn, memory, Access::Read, terms);
        let key = key.map_err(|_| Failure::Unavailable)?;
        Ok(Reply::Granted { key, checkpoint: meta.checkpoint, epoch: meta.epoch, newest })
    }

    /// Tells whoever may hold mirrors of a checkpoint who has it next, as far as they can be asked.
    async fn tell_holders(self: &Rc<Self>, name: &Name, to: &NodeId) {
        let (Some(view), Some(meta)) = (self.view(), self.meta_of(name)) else { return };
        let me = self.id();
        let holders = view.holders_of(&me).iter().flat_map(|run| &run.holders);
        let told = holders.filter_map(|holder| view.member(holder)).map(|holder| {
            let (server, name, to) = (self.clone(), name.clone(), to.clone());
            let request =
                Request::Given { name, checkpoint: meta.checkpoint, epoch: meta.epoch, to };
            async move { server.call(holder, request, crate::server::CALL_TIMEOUT).await }
        });
        futures::future::join_all(told).await;
    }

    // Leaving.

    /// Leaves the ring in order, if there is one that goes on without this node.
    pub(crate) async fn leave(self: Rc<Self>) {
        let others = self.view().is_some_and(|view| stays(&view, &self.id()).next().is_some());
        if !others || self.leaving.replace(true) {
            return;
        }
        self.world.log(|| format!("{} leaves", self.id()));
        self.event(Event::Leave);
        while self.is_alive() {
            let Some(view) = self.view() else { return };
            if view.is_leaving(&self.id()) && self.hand_over(&view).await == Ok(true) {
                self.event(Event::HandedOver);
            }
            self.sleep(LEAVE_LOOK_AFTER).await;
        }
    }

    /// Hands over what can be handed over now. True when nobody counts on anything here any more.
    async fn hand_over(self: &Rc<Self>, view: &View) -> Result<bool, Failure> {
        let me = self.id();
        let served: Vec<Name> = {
            let owned = self.owned.borrow();
            owned.iter().filter(|(_, o)| o.plane.is_some()).map(|(name, _)| name.clone()).collect()
        };
        if let Some(heir) = view.predecessor(&me) {
            for name in served.iter().filter(|name| self.is_mirrored_at(name, &heir.id)) {
                self.bequeath(name, heir).await?;
            }
        }
        // The heir may not have been able to take it when it was told first.
        let given: Vec<(Name, Member)> = {
            let owned = self.owned.borrow();
            let heir = |o: &Owned| view.member(o.kept.meta.successor.as_ref()?).cloned();
            let given = owned.iter().filter(|(_, o)| o.kept.meta.superseded);
            given.filter_map(|(name, o)| Some((name.clone(), heir(o)?))).collect()
        };
        let mut refused = false;
        for (name, heir) in given {
            refused |= self.tell_heir(&name, &heir).await.is_err();
        }
        let two_stay = stays(view, &me).nth(1).is_some();
        let owned_rest = self.owned.borrow().values().any(|owned| {
            let given = owned.kept.meta.superseded && owned.kept.meta.successor.is_some();
            !given || two_stay
        });
        let mirrors_rest = self.mirrors.borrow().keys().any(|(_, owner)| {
            // Of an owner that is gone: its recovery is not done.
            !view.contains(owner) || !view.predecessors(owner).is_empty()
        });
        Ok(!owned_rest && !mirrors_rest && !refused)
    }

    /// Gives an owned checkpoint to the member that holds its mirror.
    async fn bequeath(self: &Rc<Self>, name: &Name, heir: &Member) -> Result<(), Failure> {
        // All the while: nobody may take the copy here for one that nobody else has.
        let _lock = self.lock(name).await;
        if !self.owns(name) {
            return Ok(());
        }
        self.supersede(name, Some(heir.id.clone()));
        self.clone().disown(name.clone()).await;
        self.tell_holders(name, &heir.id).await;
        self.tell_heir(name, heir).await
    }

    /// Tells a member to go on with a checkpoint that was given to it. Also one that asked for it
    /// once and never came for it: it may have no mirror, or an old one.
    async fn tell_heir(&self, name: &Name, heir: &Member) -> Result<(), Failure> {
        let (epoch, version) = {
            let owned = self.owned.borrow();
            let kept = &owned.get(name).ok_or(Failure::Unavailable)?.kept;
            let newest = kept.region.newest_by_record();
            (kept.meta.epoch, newest.map_or(0, |found| found.record.sequence))
        };
        let request = Request::Inherit { name: name.clone(), epoch, version };
        self.call(heir, request, LONG_CALL_TIMEOUT).await.map(drop)
    }

    /// A leaver's checkpoint goes on here, or did so already.
    pub(crate) async fn inherit(
        self: &Rc<Self>,
        leaver: &NodeId,
        name: &Name,
        epoch: u64,
        version: Version,
    ) -> Result<(), Failure> {
        let complete = match self.mirrors.borrow().get(&(name.clone(), leaver.clone())) {
            Some(mirror) => {
                let newest = mirror.kept.region.newest_valid();
                let newest = newest.map_or(0, |found| found.record.sequence);
                (mirror.kept.meta.epoch, newest) == (epoch, version)
            }
            None => self.meta_of(name).is_some_and(|mine| mine.epoch > epoch),
        };
        match complete {
            true => self.adopt(leaver, name, None).await.map(drop),
            false => Err(Failure::Unavailable),
        }
    }
}

pub(crate) fn home_of(at: usize) -> Name {
    Name::new(&format!("c{at:04}")).expect("a name")
}

/// Whether that life of this node owned it when it ended, or had given it up and nobody had come
/// for it.
fn was_of(meta: &Meta, life: &NodeId) -> bool {
    meta.superseded && meta.ended == Some(life.incarnation)
}

/// A copy that this node owns or owned. The mark of one that was taken up may be its former owner's.
fn own_copy(name: &Name, owned: &Owned, taken_up: bool) -> FencedCopy {
    let Kept { meta, region } = &owned.kept;
    let mark = region.mark().ok().filter(|mark| taken_up || mark.epoch >= meta.epoch);
    FencedCopy {
        name: name.clone(),
        mark: mark.map(|mark| mark.view),
        version: region.newest_by_record().map_or(0, |found| found.record.sequence),
        epoch: meta.epoch,
        taken_up,
        given_to: None,
    }
}

/// The ring members besides `me` that are not leaving.
fn stays<'a>(view: &'a View, me: &NodeId) -> impl Iterator<Item = &'a Member> {
    let me = me.clone();
    view.ring.iter().filter(move |m| m.id != me && !view.is_leaving(&m.id))
}

/// Whether a copy of at least this epoch has an owner and all the mirrors that a recovery of that
/// owner would ask for.
fn replaced(mine: &Meta, copies: &[(NodeId, Copy)], epoch: u64, view: &View) -> bool {
    let same = |c: &Copy| c.checkpoint == mine.checkpoint;
    copies.iter().any(|(owner, owned)| {
        let Some(run) = view.holders_of(owner).last() else { return false };
        let mirrored_at = |holder: &NodeId| {
            copies.iter().any(|(node, mirror)| {
                node == holder
                    && mirror.standing == Standing::Holds(owner.clone())
                    && (mirror.checkpoint, mirror.epoch) == (owned.checkpoint, owned.epoch)
                    && mirror.synced.is_some_and(|synced| synced >= run.since)
            })
        };
        same(owned)
            && owned.standing == Standing::Owns
            && owned.epoch >= epoch
            && owned.synced.is_some()
            && run.holders.iter().all(mirrored_at)
    })
}
