//! After a view change: fence those who left, and find new homes for their checkpoints.

use std::{
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
    time::Duration,
};

use super::{
    data_plane::{Command, Committed},
    failures::internal,
    fenced::{Answers, Fenced},
    holders,
    node::{LONG_CALL_TIMEOUT, MirrorId, Node, Owned, blocking},
    rpc::{Copy, FencedCopy, Reply, Request, Standing},
    store::{Held, Meta},
};
use crate::{
    handover::Condition,
    membership::{Event, Member, NodeId, OwnerHolders, View},
    name::Name,
    protocol::{Failure, FailureKind, Role},
    recovery::{Decision, Run},
};

/// Between two tries to recover what could not be recovered.
const RETRY_AFTER: Duration = Duration::from_millis(250);

/// How far the recovery of an owner is.
#[derive(Default)]
pub(super) struct Progress {
    /// What has a new home, and where.
    adopted: BTreeMap<Name, Member>,
    /// What was said already to be out of reach.
    told: BTreeSet<Name>,
}

/// Where a round found a checkpoint to be recovered from.
enum Home {
    At(Member),
    /// Who has it next, or may have, is lost: it waits, and keeps nobody from anything.
    KeptBack,
    /// Those who have it cannot be asked now.
    OutOfReach,
    /// Nobody counts on it.
    Nowhere,
}

/// What came of a round's adoptions.
pub(super) struct Adoptions {
    /// All have their copies.
    protected: bool,
    /// Another checkpoint has the name of one of them.
    kept_back: bool,
}

/// Whether that life of this node owned it when it ended, or had given it up and nobody had come
/// for it.
fn was_of(meta: &Meta, life: &NodeId) -> bool {
    meta.held == Held::Superseded && meta.ended == Some(life.incarnation)
}

/// A copy that this node owns or owned. The mark of one that was taken up may be its former owner's.
fn own_copy(owned: &Owned, taken_up: bool) -> FencedCopy {
    let Meta { name, epoch, .. } = &owned.meta;
    let mark = owned.region.mark().ok().filter(|mark| taken_up || mark.epoch >= *epoch);
    FencedCopy {
        name: name.clone(),
        mark: mark.map(|mark| mark.view),
        version: owned.region.newest_by_record().map_or(0, |found| found.record.sequence),
        epoch: *epoch,
        taken_up,
        given_to: None,
    }
}

impl Node {
    /// What a new view asks of this node.
    pub(super) async fn after_view_change(self: Rc<Self>) {
        let Some(view) = self.view() else { return };
        let me = self.id();
        for gone in view.holders.iter().filter(|h| h.is_gone()) {
            // F1: whatever is recovered later, this owner writes here no more.
            if let Err(failure) = self.fence_quickly(&gone.owner).await {
                tracing::error!(%failure, owner = %gone.owner, "fencing");
            }
            if holders::caretaker(&view, &gone.owner) == Some(&me)
                && self.recovering.borrow_mut().insert(gone.owner.clone())
            {
                tokio::task::spawn_local(self.clone().recover_owner(gone.owner.clone()));
            }
        }
        self.confirm_sync();
    }

    /// Stops accepting an owner's writes (rule F1).
    pub(super) async fn fence_quickly(&self, owner: &NodeId) -> Result<(), Failure> {
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
    /// when all of them have all their copies again.
    async fn recover_owner(self: Rc<Self>, owner: NodeId) {
        let mut progress = Progress::default();
        while let Some(view) = self.view() {
            let mine = holders::caretaker(&view, &owner) == Some(&self.id());
            if view.contains(&owner) || !mine || self.stopping.get() {
                break;
            }
            match self.try_recover(&owner, &view, &mut progress).await {
                Ok(true) => {
                    tracing::info!(%owner, "all its checkpoints have all their copies again");
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

    /// A round: fence, ask, decide, adopt. True when nothing is left to do.
    async fn try_recover(
        self: &Rc<Self>,
        owner: &NodeId,
        view: &View,
        progress: &mut Progress,
    ) -> Result<bool, Failure> {
        let runs = holders::runs(view, owner);
        let fenced = self.fence_holders(owner, view, &runs).await;
        if let Some(lost) = self.lost_later(owner, view).await {
            // Which names are meant is known: others can be made.
            if self.rehomed.borrow_mut().insert(owner.clone()) {
                tracing::warn!(%owner, %lost, "nobody can tell what it had next: kept back");
                self.changed.notify_waiters();
            }
            return Ok(false);
        }
        let own = self.ask_owner(owner, view).await;
        let answers = Answers { runs, fenced, own };
        // Whoever adopted one and was lost since is recovered as its owner.
        progress.adopted.retain(|_, member| view.contains(&member.id));
        let mut homes = progress.adopted.clone();
        let (mut done, mut kept_back) = (true, false);
        for name in answers.names() {
            match self.find_home(owner, &name, view, &answers, progress).await {
                Home::At(member) => {
                    homes.insert(name, member);
                }
                Home::KeptBack => kept_back = true,
                Home::OutOfReach => done = false,
                Home::Nowhere => self.drop_unsynced(owner, &name).await,
            }
        }
        let adoptions = self.adopt_all(owner, homes, view.number, progress).await?;
        kept_back |= adoptions.kept_back;
        let rehomed = done && answers.name_all();
        if rehomed {
            self.rehomed.borrow_mut().insert(owner.clone());
            self.changed.notify_waiters();
        }
        Ok(rehomed && adoptions.protected && !kept_back)
    }

    /// Whoever was there after the owner left may have had something next. If one is lost without a
    /// trace, all that is left may be older than what was acknowledged since.
    async fn lost_later(self: &Rc<Self>, owner: &NodeId, view: &View) -> Option<NodeId> {
        let left = view.owner(owner).map_or(0, |h| h.left);
        let later = |h: &&OwnerHolders| h.left > left;
        for gone in view.holders.iter().filter(later) {
            if self.is_lost(gone, view, left).await {
                return Some(gone.owner.clone());
            }
        }
        None
    }

    async fn find_home(
        self: &Rc<Self>,
        owner: &NodeId,
        name: &Name,
        view: &View,
        answers: &Answers,
        progress: &mut Progress,
    ) -> Home {
        let checkpoint = name;
        if let Some(by) = answers.taken_up(name) {
            return Home::At(by.clone());
        }
        if let Some(lost) = self.lost_without_trace(&answers.copies(name), view).await {
            if progress.told.insert(name.clone()) {
                tracing::warn!(%checkpoint, %owner, %lost, "given to a node that is lost: kept back");
            }
            return Home::KeptBack;
        }
        match answers.decide(owner, name) {
            Decision::Exact { holder, .. } => {
                let by = answers.speaker(owner, &holder).cloned();
                by.map_or(Home::OutOfReach, Home::At)
            }
            Decision::Unavailable { holders } => {
                if progress.told.insert(name.clone()) {
                    let holders: Vec<String> = holders.iter().map(NodeId::to_string).collect();
                    let holders = holders.join(", ");
                    tracing::warn!(%checkpoint, holders, "its newest mirrors cannot be asked");
                }
                Home::OutOfReach
            }
            // Nobody was ever told that it is mirrored.
            Decision::Nothing => Home::Nowhere,
        }
    }

    /// Has each checkpoint adopted where it was found.
    pub(super) async fn adopt_all(
        self: &Rc<Self>,
        owner: &NodeId,
        homes: BTreeMap<Name, Member>,
        view: u64,
        progress: &mut Progress,
    ) -> Result<Adoptions, Failure> {
        let (mut all, mut failed) = (Adoptions { protected: true, kept_back: false }, None);
        for (name, member) in homes {
            match self.adopt_at(&member, owner, &name, view).await {
                Ok(protected) => {
                    all.protected &= protected;
                    // What was decided and not done is decided anew.
                    progress.adopted.insert(name, member);
                }
                Err(failure) if failure.kind == FailureKind::OwnedElsewhere => {
                    if progress.told.insert(name.clone()) {
                        tracing::warn!(checkpoint = %name, %owner, %failure, "kept back");
                    }
                    all.kept_back = true;
                }
                // One that has to wait, on a node without room perhaps, holds up no other.
                Err(failure) => failed = failed.or(Some(failure)),
            }
        }
        failed.map_or(Ok(all), Err)
    }

    /// Has every holder that can be asked stop accepting the owner's writes and say what it has.
    /// A holder that came back as another life is asked for what it has of the former one.
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
                self.fence(owner).await
            } else {
                let (owner, holder) = (owner.clone(), holder.clone());
                let request = Request::Fence { owner, holder, view: view.number };
                match self.call(member, request, LONG_CALL_TIMEOUT).await {
                    Ok(Reply::Fenced(copies)) => Ok(copies),
                    Ok(_) => Err(internal(&"an answer to something else")),
                    Err(failure) => Err(failure),
                }
            };
            match copies {
                Ok(copies) => {
                    let (by, complete) = (member.clone(), true);
                    fenced.insert(holder.clone(), Fenced { by, copies, complete });
                }
                Err(failure) => tracing::debug!(%owner, %holder, %failure, "not fenced yet"),
            }
        }
        fenced
    }

    /// Of those to whom the owner of these copies gave them, one that is lost with all that it had.
    async fn lost_without_trace(
        self: &Rc<Self>,
        copies: &[(&FencedCopy, &Member)],
        view: &View,
    ) -> Option<NodeId> {
        for (copy, _) in copies {
            let next = copy.given_to.as_ref().and_then(|next| view.owner(next));
            let Some(gone) = next else { continue };
            if self.is_lost(gone, view, copy.mark.unwrap_or(0)).await {
                return Some(gone.owner.clone());
            }
        }
        None
    }

    /// Asks a later life of a lost owner what it still has of that one.
    pub(super) async fn ask_owner(self: &Rc<Self>, owner: &NodeId, view: &View) -> Option<Fenced> {
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

    /// Whether an owner is not recovered, and what it had from view `since` on is known to nobody.
    pub(super) async fn is_lost(
        self: &Rc<Self>,
        gone: &OwnerHolders,
        view: &View,
        since: u64,
    ) -> bool {
        self.is_unsettled(&gone.owner) && !self.leaves_traces(gone, view, since).await
    }

    /// Whether what a lost owner had from view `since` on is known to somebody: to one of each run of
    /// its holders since then, or to a later life of its own. Such a life has its memory.
    pub(super) async fn leaves_traces(
        self: &Rc<Self>,
        gone: &OwnerHolders,
        view: &View,
        since: u64,
    ) -> bool {
        let runs = holders::runs_after(gone, since);
        let each_has =
            |there: &dyn Fn(&NodeId) -> bool| runs.iter().all(|run| run.holders.iter().any(there));
        if each_has(&|holder| view.contains(holder)) {
            return true;
        }
        let asked = self.fence_holders(&gone.owner, view, &runs).await;
        each_has(&|holder| asked.contains_key(holder))
            || self.ask_owner(&gone.owner, view).await.is_some()
    }

    /// What a former life of this node owned when it ended, as far as it is whole and was given to
    /// nobody who is not recovered; and whether that is all.
    pub(super) fn copies_of_ended(&self, life: &NodeId) -> (Vec<FencedCopy>, bool) {
        let owned = self.owned.borrow();
        let all = || owned.iter().filter(|(_, o)| was_of(&o.meta, life));
        let counts = |o: &Owned| self.may_go_on(&o.meta) && o.damaged.is_none();
        let copies = all().filter(|(_, o)| counts(o)).map(|(_, o)| own_copy(o, false));
        let copies = copies.chain(self.taken_up_from(life)).collect();
        (copies, all().all(|(_, o)| counts(o)))
    }

    /// Whether a copy was an ended life's, and nobody else's since: who was to have it next is there
    /// and will say so, or is recovered and had it not.
    fn may_go_on(&self, meta: &Meta) -> bool {
        let lost = meta.successor.as_ref().is_some_and(|next| self.is_unsettled(next));
        meta.held == Held::Superseded && meta.ended.is_some() && !lost
    }

    /// Those whose recovery a copy concerns when it is taken up from `owner`.
    fn taken_from(&self, mine: &Meta, owner: &NodeId) -> Vec<NodeId> {
        let others =
            mine.taken_from.iter().filter(|from| *from != owner && self.is_unsettled(from));
        others.chain([owner]).cloned().collect()
    }

    /// What this node took up from a lost owner: it is no mirror of that one's, or copy of an ended
    /// life, any more, and perhaps mirrored nowhere yet.
    pub(super) fn taken_up_from(&self, owner: &NodeId) -> Vec<FencedCopy> {
        let counts = |o: &Owned| o.meta.taken_from.contains(owner) && o.damaged.is_none();
        let owned = self.owned.borrow();
        let adopted = owned.iter().filter(|(_, o)| counts(o));
        adopted.map(|(_, o)| own_copy(o, true)).collect()
    }

    /// Whether an owner left the ring and all that it had is recovered.
    pub(super) fn is_over(&self, owner: &NodeId) -> bool {
        self.view().is_some_and(|view| !view.contains(owner)) && !self.is_unsettled(owner)
    }

    /// Whether an owner left the ring and its checkpoints are not all recovered.
    pub(super) fn is_unsettled(&self, owner: &NodeId) -> bool {
        let is_gone = |view: &View| view.owner(owner).is_some_and(OwnerHolders::is_gone);
        let gone = self.view().is_some_and(|view| is_gone(&view));
        gone && !self.membership.borrow().is_settled(owner)
    }

    /// Whether this node is that life, or has its memory.
    pub(super) fn has_memory_of(&self, life: &NodeId) -> bool {
        *life == self.id() || self.lineage.borrow().includes(life)
    }

    /// As [`Node::adopt`], wherever the mirror is.
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
            _ => Err(internal(&"an answer to something else")),
        }
    }

    /// A mirror that was being made when its owner died has nothing that anybody counts on.
    async fn drop_unsynced(&self, owner: &NodeId, name: &Name) {
        let _lock = self.lock(name).await;
        while let Some(id) = self.best_mirror(owner, name) {
            tracing::info!(checkpoint = %name, %owner, "a mirror that was never synced is dropped");
            self.drop_mirror(&id).await;
        }
    }

    /// This node's mirror of a dead owner's checkpoint becomes the checkpoint, or its own copy if
    /// the owner was a life of its own. True when it, or whatever took its place since, has all its
    /// copies. `decided_for` is the view of whoever decided that.
    pub(super) async fn adopt(
        self: &Rc<Self>,
        owner: &NodeId,
        name: &Name,
        decided_for: Option<u64>,
    ) -> Result<bool, Failure> {
        let life = self.life.get();
        let _lock = self.lock(name).await;
        // Decided for other members, or long ago: somebody else may have it since.
        if decided_for.is_some_and(|view| self.view().is_none_or(|v| v.number != view)) {
            let why = "the ring has changed since that was decided, or will here";
            return Err(Failure::new(FailureKind::Unavailable, why));
        }
        self.while_creating(name, self.try_adopt(owner, name, life)).await
    }

    /// Goes on with an own copy in the recovery of `owner`, unless somebody has a later one.
    async fn go_on_after(
        self: &Rc<Self>,
        owner: &NodeId,
        mine: Meta,
        life: u64,
    ) -> Result<bool, Failure> {
        if let Some(successor) = self.taken_over_already(owner, &mine.name, &mine).await? {
            return Ok(successor.synced.is_some());
        }
        let taken_from = self.taken_from(&mine, owner);
        self.go_on_with(Meta { taken_from, ..mine }, life).await?;
        Ok(false)
    }

    /// A copy that an ended life of this node made when it took over what `mirror` is a mirror of, and
    /// mirrored nowhere: it comes next, and nobody else has it.
    fn never_mirrored_after(&self, name: &Name, mirror: &Meta) -> Option<Meta> {
        let owned = self.owned.borrow();
        let Owned { meta, region, .. } = owned.get(name)?;
        let same = meta.identity.checkpoint == mirror.identity.checkpoint;
        let next = same && meta.epoch > mirror.epoch;
        let comes_next = next && self.may_go_on(meta) && region.mark().is_err();
        comes_next.then(|| meta.clone())
    }

    async fn try_adopt(
        self: &Rc<Self>,
        owner: &NodeId,
        name: &Name,
        life: u64,
    ) -> Result<bool, Failure> {
        let Some(id) = self.best_mirror(owner, name) else {
            let own = self.owned.borrow().get(name).map(|o| o.meta.clone());
            let Some(mine) = own.filter(|meta| {
                let theirs = was_of(meta, owner) || meta.taken_from.contains(owner);
                theirs && self.may_go_on(meta)
            }) else {
                return Ok(self.is_protected(owner, name)); // adopted already
            };
            return self.go_on_after(owner, mine, life).await;
        };
        let mine = {
            let mirrors = self.mirrors.borrow();
            let mirror = mirrors.get(&id).ok_or_else(|| internal(&"the mirror is gone"))?;
            mirror.meta.clone()
        };
        if let Some(own) = self.never_mirrored_after(name, &mine) {
            return self.go_on_after(owner, own, life).await;
        }
        if let Some(successor) = self.taken_over_already(owner, name, &mine).await? {
            tracing::debug!(checkpoint = %name, from = %owner, "somebody else has it already");
            return Ok(successor.synced.is_some());
        }
        // An own older copy that was superseded once gives way.
        self.drop_owned(name).await;
        let (region, path, memory) = {
            let mut mirrors = self.mirrors.borrow_mut();
            let mirror = mirrors.get_mut(&id).ok_or_else(|| internal(&"the mirror is gone"))?;
            (mirror.region.clone(), mirror.path.clone(), mirror.memory.take())
        };
        if let Some(memory) = memory {
            self.data_plane.ask(|reply| Command::Deregister { memory, reply }).await?;
        }
        // What was on its way when the owner died may have left a record without its payload.
        let checked = region.clone();
        let newest = blocking(move || {
            for slot in 0..checked.layout().slots() {
                if checked.record(slot).is_ok() && checked.verify(slot).is_err() {
                    checked.invalidate(slot);
                }
            }
            checked.newest_by_record() // every record that is left was verified just now
        })
        .await;
        let version = newest.map_or(0, |f| f.record.sequence);
        let (epoch, taken_from) = (self.epoch_after(mine.epoch), self.taken_from(&mine, owner));
        let meta = Meta { epoch, held: Held::Orphan, successor: None, taken_from, ..mine };
        self.store.write_meta(&meta).map_err(|e| internal(&e))?;
        tracing::info!(checkpoint = %name, from = %owner, version, epoch = meta.epoch, "adopted");
        let adopted = Owned { meta, region, path, memory: None, attachment: 0, damaged: None };
        let served = self.serve(adopted, life).await;
        // Only now: whoever asks meanwhile is told of one of the two.
        self.mirrors.borrow_mut().remove(&id);
        served.map(|()| false)
    }

    /// Whether a checkpoint of `owner` that this node took up has all its copies, or is not here any
    /// more: whoever has it next has them.
    fn is_protected(&self, owner: &NodeId, name: &Name) -> bool {
        let owned = self.owned.borrow();
        let here = owned.get(name).map(|o| &o.meta);
        let here = here.is_some_and(|m| m.held != Held::Superseded || m.taken_from.contains(owner));
        !here || self.synced_views.borrow().contains_key(name)
    }

    /// The epoch of an ownership that follows one of this epoch and begins now. Of two that follow
    /// the same one the later counts, as the views do: it was decided without the earlier one, which
    /// then has no synced mirror.
    pub(super) fn epoch_after(&self, epoch: u64) -> u64 {
        let view = self.view().map_or(0, |view| view.number);
        view.max(epoch + 1)
    }

    /// A copy that was superseded is the present one again: nobody has a newer one.
    pub(super) async fn go_on_with(self: &Rc<Self>, mine: Meta, life: u64) -> Result<(), Failure> {
        let epoch = self.epoch_after(mine.epoch);
        let life_of = |incarnation| NodeId { name: self.id().name, incarnation };
        let taken_from = match mine.ended.map(life_of) {
            Some(former) => self.taken_from(&mine, &former),
            None => mine.taken_from.clone(),
        };
        let (held, successor, ended) = (Held::Orphan, None, None);
        let meta = Meta { epoch, held, successor, ended, taken_from, ..mine };
        self.store.write_meta(&meta).map_err(|e| internal(&e))?;
        let Some(mut owned) = self.owned.borrow_mut().remove(&meta.name) else { return Ok(()) };
        tracing::info!(checkpoint = %meta.name, epoch, "nobody else has it: kept on");
        owned.meta = meta;
        if owned.damaged.is_some() {
            self.owned.borrow_mut().insert(owned.meta.name.clone(), owned);
            return Ok(());
        }
        self.serve(owned, life).await
    }

    /// Who has a later epoch of this mirror's checkpoint: its owner, else a synced mirror, whose
    /// owner is being recovered from it. An error while it is not clear who will, and as long as
    /// another checkpoint has the name.
    async fn taken_over_already(
        self: &Rc<Self>,
        owner: &NodeId,
        name: &Name,
        mine: &Meta,
    ) -> Result<Option<Copy>, Failure> {
        let mut later: Vec<Copy> = self.locate(name).await?.into_iter().map(|(_, c)| c).collect();
        let wait = |why: &str| Err(Failure::new(FailureKind::Unavailable, format!("{name} {why}")));
        if later.iter().any(|c| c.standing == Standing::Creating) {
            return wait("is on its way to another node");
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
        let same = |c: &Copy| c.identity.checkpoint == mine.identity.checkpoint;
        let owns = |c: &Copy| matches!(c.standing, Standing::Owns(_));
        // Made anew while this one was out of reach. Its copy that waits here is not erased either.
        let newer_here = self.owned.borrow().get(name).is_some_and(|o| {
            o.meta.identity.checkpoint != mine.identity.checkpoint && o.meta.epoch >= mine.epoch
        });
        if newer_here || later.iter().any(|c| owns(c) && !same(c)) {
            let why = format!("{name} was made anew meanwhile, and that one has the name");
            return Err(Failure::new(FailureKind::OwnedElsewhere, why));
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
            None => wait("was taken over by a node that is lost, too"),
        }
    }

    /// The mirror of this owner's checkpoint that was synced last: a name has several while it
    /// moves to a new region.
    pub(super) fn best_mirror(&self, owner: &NodeId, name: &Name) -> Option<MirrorId> {
        let mirrors = self.mirrors.borrow();
        let theirs = mirrors.iter().filter(|((n, o, _), _)| n == name && o == owner);
        let best = theirs.max_by_key(|((_, _, generation), m)| {
            (m.region.mark().ok().map(|mark| mark.view), m.meta.epoch, *generation)
        });
        best.map(|(id, _)| id.clone())
    }

    /// Hands an owned checkpoint to the data plane, if this is still the life of the node in which
    /// the operation began. Else it is kept as a copy that somebody else has taken over. Also one whose
    /// memory no transport takes is kept, and tried again (`server/leftovers.rs`).
    pub(super) async fn serve(&self, mut owned: Owned, life: u64) -> Result<(), Failure> {
        let name = owned.meta.name.clone();
        // Of the ownership before: late news of that one may have come after its end.
        self.synced_views.borrow_mut().remove(&name);
        let (region, epoch) = (owned.region.clone(), owned.meta.epoch);
        let newest = region.newest_by_record().map(|found| Committed {
            version: found.record.sequence,
            slot: found.slot,
            len: found.record.len,
        });
        let own_name = name.clone();
        let copies = usize::from(self.config.mirrors);
        let own = |reply| Command::Own { name: own_name, region, epoch, copies, newest, reply };
        let memory = self.data_plane.ask(own).await?;
        let (memory, refused) = match memory {
            Ok(memory) => (Some(memory), Ok(())),
            Err(error) => (None, Err(internal(&error))),
        };
        owned.memory = memory;
        if self.life.get() == life {
            self.owned.borrow_mut().insert(name, owned);
            self.changed.notify_waiters();
            return refused;
        }
        owned.meta.held = Held::Superseded;
        let kept = self.store.write_meta(&owned.meta);
        self.owned.borrow_mut().insert(name.clone(), owned);
        let condition = Condition::Fenced;
        self.data_plane.ask(|reply| Command::Disown { name, condition, reply }).await?;
        kept.map_err(|e| internal(&e))?;
        let why = "this node was evicted meanwhile; try again";
        Err(Failure::new(FailureKind::Unavailable, why))
    }

    /// Waits until something changed, at most so long.
    pub(super) async fn wait_a_little(&self, time: Duration) {
        // Only a bound on the wait: what is waited for is looked at again either way.
        let _ = tokio::time::timeout(time, self.changed.notified()).await;
    }

    /// What the other members have of a checkpoint. All of them must answer; a node that is in no
    /// ring does not know them.
    pub(super) async fn locate(
        self: &Rc<Self>,
        name: &Name,
    ) -> Result<Vec<(crate::membership::Member, Copy)>, Failure> {
        let asked_in = self.view().map(|view| view.number);
        if asked_in.is_none() {
            return Err(Failure::new(FailureKind::Unavailable, "not in a ring now"));
        }
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
        if self.view().map(|view| view.number) != asked_in {
            let why = "the ring changed meanwhile";
            return Err(Failure::new(FailureKind::Unavailable, why));
        }
        Ok(found)
    }

    /// What this node has of a checkpoint.
    pub(super) fn located(&self, name: &Name) -> Vec<Copy> {
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
                synced: self.synced_views.borrow().get(name).copied(),
            });
        }
        if self.creating.borrow().contains(name) {
            let identity = crate::region::Identity { checkpoint: 0, generation: 0 };
            copies.push(Copy {
                standing: Standing::Creating,
                identity,
                epoch: 0,
                version: 0,
                synced: None,
            });
        }
        for ((n, owner, _), mirror) in self.mirrors.borrow().iter() {
            if n == name {
                copies.push(Copy {
                    standing: Standing::Holds(owner.clone()),
                    identity: mirror.meta.identity,
                    epoch: mirror.meta.epoch,
                    version: newest(&mirror.region),
                    synced: mirror.region.mark().ok().map(|mark| mark.view),
                });
            }
        }
        copies
    }
}
