//! Opening a checkpoint: attach, make, enlarge, or take over from another node.

use std::{fs::File, os::fd::OwnedFd, rc::Rc, time::Duration};

use tokio::time::Instant;

use super::{
    data_plane::{Attachment, Command},
    failures::{internal, invalid, no_such, permission, stored_elsewhere},
    node::{Node, Owned},
    rpc::{Copy, Standing},
    store::{Held, Meta, Owner, is_writer, open_for_client},
};
use crate::{
    commit::Version,
    handover::{self, Bell, Condition, Consumer},
    membership::{HoldingRun, Member, NodeId, OwnerHolders, View},
    name::Name,
    protocol::{Failure, FailureKind, Opened},
    region::{Identity, files::Backing, layout::Layout},
};

/// How long an open or a get waits for a ring that is changing.
pub(super) const SETTLE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the last work requests of a checkpoint that is let go may take.
const DISOWN_TIMEOUT: Duration = Duration::from_secs(5);
/// Between two looks at a ring that is changing.
pub(super) const SETTLE_LOOK: Duration = Duration::from_millis(50);

/// What a client asks for.
#[derive(Debug, Clone)]
pub(super) struct Wish {
    pub(super) name: Name,
    pub(super) layout: Layout,
    pub(super) caller: Owner,
    pub(super) take_over: bool,
    pub(super) existing: bool,
}

/// What a client gets.
pub(super) struct Attached {
    pub(super) opened: Opened,
    pub(super) descriptors: [OwnedFd; 3],
    /// Which attachment it is.
    pub(super) number: u64,
}

impl Node {
    /// Opens a checkpoint for a local client, wherever it is now.
    pub(super) async fn open(self: &Rc<Self>, wish: Wish) -> Result<Attached, Failure> {
        if self.is_witness() {
            return Err(stored_elsewhere(&wish.name, &self.id(), &self.others()));
        }
        let deadline = Instant::now() + SETTLE_TIMEOUT;
        loop {
            let result = {
                let _lock = self.lock(&wish.name).await;
                self.try_open(&wish).await
            };
            match result {
                // The ring is changing: what cannot be said now can be said soon.
                Err(failure)
                    if failure.kind == FailureKind::Unavailable && Instant::now() < deadline =>
                {
                    self.wait_a_little(SETTLE_LOOK).await;
                }
                other => return other,
            }
        }
    }

    async fn try_open(self: &Rc<Self>, wish: &Wish) -> Result<Attached, Failure> {
        self.takes_clients()?;
        if self.owns(&wish.name) {
            return self.open_here(wish).await;
        }
        let here = self.located(&wish.name);
        let elsewhere = self.locate(&wish.name).await?;
        let owner = elsewhere
            .iter()
            .filter(|(_, copy)| matches!(copy.standing, Standing::Owns(_)))
            .max_by_key(|(_, copy)| copy.epoch);
        if let Some((member, copy)) = owner {
            // Somebody who looks whether there is one must see it at one of the two.
            if elsewhere.iter().any(|(_, copy)| copy.standing == Standing::Creating) {
                let why = format!("{} is on its way to another node", wish.name);
                return Err(Failure::new(FailureKind::Unavailable, why));
            }
            self.while_creating(&wish.name, self.take_over(wish, member, copy)).await?;
            return self.open_here(wish).await;
        }
        if let Some(failure) = self.why_unowned(&wish.name, &here, &elsewhere) {
            return Err(failure);
        }
        if wish.existing {
            return Err(no_such(&wish.name));
        }
        self.while_creating(&wish.name, self.make(wish)).await?;
        self.open_here(wish).await
    }

    /// Why no member says that it owns a checkpoint of this name; nothing when there is none.
    pub(super) fn why_unowned(
        &self,
        name: &Name,
        here: &[Copy],
        elsewhere: &[(Member, Copy)],
    ) -> Option<Failure> {
        let copies = || {
            let all = here.iter().chain(elsewhere.iter().map(|(_, copy)| copy));
            all.filter(|copy| self.counts(copy))
        };
        let why = if copies().any(|c| c.standing == Standing::Creating) {
            format!("{name} is being made on another node")
        } else if let Some(copy) = copies().next() {
            being_recovered(name, copy)
        } else if let Some(lost) = self.unrecovered() {
            format!(
                "the checkpoints of node {lost} are not all recovered yet, {name} may be one of \
                 them"
            )
        } else {
            return None;
        };
        Some(Failure::new(FailureKind::Unavailable, why))
    }

    /// What to say of a checkpoint that nobody owns.
    pub(super) fn unowned(&self, name: &Name, copies: Vec<Copy>) -> Failure {
        self.why_unowned(name, &copies, &[]).unwrap_or_else(|| no_such(name))
    }

    /// What to say of a checkpoint that nobody in the ring has: an owner and the holder of its
    /// mirrors that went away together may have it.
    pub(super) fn missing(&self, name: &Name) -> Failure {
        let Some((owner, holder)) = self.away() else { return no_such(name) };
        let why = format!(
            "nobody here has {name}, but nodes {owner} and {holder} went away together and it may \
             be theirs; start them again, or begin a new, empty one with `ringkeep put`"
        );
        Failure::new(FailureKind::Unavailable, why)
    }

    /// Whether a copy says that there is, or may be, a checkpoint. The mirror of an owner that is
    /// in the ring and has just said that it does not own it is a leftover of a removal.
    fn counts(&self, copy: &Copy) -> bool {
        match &copy.standing {
            Standing::Holds(owner) => !self.view().is_some_and(|view| view.contains(owner)),
            _ => true,
        }
    }

    pub(super) fn owns(&self, name: &Name) -> bool {
        self.owned.borrow().get(name).is_some_and(|o| o.meta.held != Held::Superseded)
    }

    /// Whether checkpoints can be opened here now.
    fn takes_clients(&self) -> Result<(), Failure> {
        let why = match self.view() {
            None => "this server is not in a ring yet; see `ringkeep status`",
            Some(_) if self.leaving.get() => "this server is leaving the ring and ends soon",
            Some(_) => return Ok(()),
        };
        Err(Failure::new(FailureKind::Unavailable, why))
    }

    /// An owner that left and whose checkpoints find homes now: of all that held its mirrors since
    /// they were last known to be synced somebody can be asked. A ring of one never gives them two
    /// copies; there it is enough that it has them all.
    fn unrecovered(&self) -> Option<Name> {
        let view = self.view()?;
        let found = |owner: &NodeId| {
            self.rehomed.borrow().contains(owner) || self.membership.borrow().is_settled(owner)
        };
        let mut gone = view.holders.iter().filter(|h| h.is_gone() && !found(&h.owner));
        let can_be_asked = |h: &OwnerHolders| h.runs.iter().all(|run| any_in(&view, run));
        // Who left before somebody that is lost without a trace is kept back with that one.
        let lost = gone.clone().filter(|h| !can_be_asked(h)).map(|h| h.left).max();
        let gone = gone.find(|h| {
            !h.runs.is_empty() && can_be_asked(h) && lost.is_none_or(|lost| lost <= h.left)
        })?;
        Some(gone.owner.name.clone())
    }

    /// Owners that left together with a node that may be the only one with a mirror of theirs.
    fn lost(view: &View) -> impl Iterator<Item = (&NodeId, &NodeId)> {
        let gone = view.holders.iter().filter(|h| h.is_gone());
        gone.filter_map(|h| {
            let run = h.runs.iter().rfind(|run| !any_in(view, run))?;
            Some((&h.owner, run.holders.first()?))
        })
    }

    /// The names of two such nodes of which at least one has not come back, in whichever life.
    fn away(&self) -> Option<(Name, Name)> {
        let view = self.view()?;
        let back = |id: &NodeId| view.ring.iter().any(|member| member.id.name == id.name);
        let mut lost = Self::lost(&view);
        let (owner, holder) = lost.find(|(owner, holder)| !(back(owner) && back(holder)))?;
        Some((owner.name.clone(), holder.name.clone()))
    }

    /// Told once to whoever makes a checkpoint that may have been there before.
    fn lost_warning(&self, name: &Name, version: Version) -> Option<String> {
        let view = self.view().filter(|_| version == 0)?;
        let (owner, holder) = Self::lost(&view).next()?;
        let (owner, holder) = (&owner.name, &holder.name);
        Some(format!(
            "nodes {owner} and {holder} went away together; if {name} was owned by {owner}, this \
             is a new, empty one"
        ))
    }

    /// Makes a new checkpoint, unless somebody else has it or is about to.
    async fn make(self: &Rc<Self>, wish: &Wish) -> Result<(), Failure> {
        let (name, life) = (&wish.name, self.life.get());
        if self.locate(name).await?.iter().any(|(_, copy)| self.counts(copy)) {
            // Both give way; the one that comes back first makes it.
            let pause = Duration::from_millis(Self::draw() % 100);
            tokio::time::sleep(pause).await;
            let why = format!("{name} is being made on another node");
            return Err(Failure::new(FailureKind::Unavailable, why));
        }
        let identity = Identity { checkpoint: Self::draw(), generation: 1 };
        let (epoch, held, region) = (self.epoch_after(0), Held::Owned, Self::draw());
        let (name_of, layout, owner) = (name.clone(), wish.layout, wish.caller);
        let meta = Meta::new(name_of, identity, layout, epoch, owner, held, region);
        let stored = self.describe_region(self.make_region(meta).await?).await?;
        tracing::info!(checkpoint = %name, bytes = stored.meta.bytes, "made");
        let served = self.serve(Owned::new(stored), life).await;
        if served.is_err() && self.life.get() == life {
            self.drop_owned(name).await; // nothing is in it
        }
        served
    }

    /// Attaches a client to a checkpoint that this node owns.
    async fn open_here(self: &Rc<Self>, wish: &Wish) -> Result<Attached, Failure> {
        let (meta, path, damaged, served) = {
            let owned = self.owned.borrow();
            let owned = owned.get(&wish.name).ok_or_else(|| no_such(&wish.name))?;
            let served = owned.memory.is_some();
            (owned.meta.clone(), owned.path.clone(), owned.damaged.clone(), served)
        };
        if !meta.owner.may_write(&wish.caller) {
            return Err(permission(&wish.name));
        }
        if let Some(damage) = damaged {
            return Err(Failure::new(
                FailureKind::Corrupt,
                format!(
                    "{}: {damage}; it is restored as soon as its mirror can be read; without one, \
                     `ringkeep get --version` may find an older version, `ringkeep rm` gives it up",
                    wish.name
                ),
            ));
        }
        if !served {
            let why = format!(
                "{}: no transport takes its memory (the server's log says why); it is tried again",
                wish.name
            );
            return Err(Failure::new(FailureKind::Unavailable, why));
        }
        let file = open_for_client(&path).map_err(|e| internal(&e))?;
        if file.is_none() && !wish.take_over {
            let node = self.me.borrow().id.name.clone();
            return Err(Failure::new(
                FailureKind::OwnedElsewhere,
                format!(
                    "{} is open in another process on this node ({node}); end that one, or take \
                     the checkpoint over",
                    wish.name
                ),
            ));
        }
        if let Some(file) = &file
            && file.metadata().map_err(|e| internal(&e))?.len() < meta.bytes
        {
            self.region_cut(&wish.name).await;
            let why = format!("{}: its last writer cut its memory off", wish.name);
            return Err(Failure::new(FailureKind::Corrupt, why));
        }
        let larger = wish.layout.capacity() > meta.layout.capacity();
        let file = match file {
            Some(file) if !larger => file,
            // A writer that is alive keeps its memory, which counts no more; a larger capacity
            // needs a larger region.
            file => {
                drop(file);
                let capacity = wish.layout.capacity().max(meta.layout.capacity());
                self.while_creating(&wish.name, self.rehome(&wish.name, capacity)).await?;
                let path = self.owned.borrow().get(&wish.name).map(|o| o.path.clone());
                let path = path.ok_or_else(|| no_such(&wish.name))?;
                let file = open_for_client(&path).map_err(|e| internal(&e))?;
                file.ok_or_else(|| internal(&"a new region is in use already"))?
            }
        };
        if meta.held == Held::Orphan {
            self.set_held(&wish.name, Held::Owned, None)?;
        }
        self.attach(&wish.name, file)
    }

    /// Gives a checkpoint a new region: the writer of the old one, if it is alive, is fenced.
    async fn rehome(self: &Rc<Self>, name: &Name, capacity: u64) -> Result<(), Failure> {
        let life = self.life.get();
        let (old, region) = {
            let owned = self.owned.borrow();
            let owned = owned.get(name).ok_or_else(|| no_such(name))?;
            (owned.meta.clone(), owned.region.clone())
        };
        let slots = old.layout.slots() as u32;
        let layout = Layout::new(capacity, slots).map_err(|e| invalid(&e))?;
        let generation = old.identity.generation + 1;
        let meta = Meta {
            identity: Identity { checkpoint: old.identity.checkpoint, generation },
            layout,
            epoch: old.epoch + 1,
            held: Held::Owned,
            region: Self::draw(),
            ..old.clone()
        };
        // First: where there is no room nothing happens to the old writer.
        let empty = self.make_region(meta).await?;
        // From here on nothing that the old writer commits is taken.
        if let Err(failure) = self.disown(name.clone(), Condition::Fenced).await {
            self.remove_region(empty.meta, empty.path, empty.region).await;
            return Err(failure);
        }
        // By its record: the copy verifies it, and fails rather than fall back to an older one.
        let newest = region.newest_by_record();
        let made = self.fill_region(empty, region, newest.map(|f| f.slot)).await;
        if self.life.get() != life {
            // Evicted meanwhile: the old region is superseded, the new one is nothing.
            if let Ok(stored) = made {
                self.remove_region(stored.meta, stored.path, stored.region).await;
            }
            let why = "this node was evicted meanwhile; try again";
            return Err(Failure::new(FailureKind::Unavailable, why));
        }
        let Some(before) = self.owned.borrow_mut().remove(name) else {
            return Err(internal(&"the checkpoint went away"));
        };
        let served = match made {
            Ok(stored) => self.serve(Owned::new(stored), life).await,
            Err(failure) => Err(failure),
        };
        if served.is_err() && self.life.get() == life {
            // As it was, except that the old writer has to attach again.
            self.drop_owned(name).await;
            self.serve(before, life).await?;
        } else {
            self.remove_region(before.meta, before.path, before.region).await;
        }
        served
    }

    /// Stops serving a checkpoint. A holder that answers nothing, and cannot be voted out either,
    /// must not hold this up for ever.
    pub(super) async fn disown(&self, name: Name, condition: Condition) -> Result<(), Failure> {
        let gone = self.data_plane.ask(|reply| Command::Disown { name, condition, reply });
        tokio::pin!(gone);
        match tokio::time::timeout(DISOWN_TIMEOUT, &mut gone).await {
            Ok(done) => Ok(done?),
            Err(_) => {
                for member in self.others() {
                    self.data_plane.send(Command::Unlink { peer: member.id.clone() })?;
                    self.forget_link(&member.id);
                }
                Ok(gone.await?)
            }
        }
    }

    fn attach(&self, name: &Name, file: File) -> Result<Attached, Failure> {
        let system = |e: std::io::Error| internal(&e);
        let layout = self.owned.borrow().get(name).map(|owned| owned.meta.layout);
        let layout = layout.ok_or_else(|| no_such(name))?;
        let handover = handover::create(&layout).map_err(system)?;
        let servers = handover.try_clone().map_err(system)?;
        let consumer = Consumer::new(servers, layout, 0).map_err(system)?;
        let (bell, clients) = Bell::pair().map_err(system)?;
        let attachment = Attachment { consumer, bell };
        // First, so that the end of an earlier attachment is not taken for the end of this one.
        let number = Self::draw();
        if let Some(owned) = self.owned.borrow_mut().get_mut(name) {
            owned.attachment = number;
        }
        // Not waited for: that would be two changes of thread. What is asked of the data plane later
        // finds it done.
        self.data_plane.send(Command::Attach { name: name.clone(), attachment })?;
        let ring_mirrors = self.view().is_some_and(|v| v.predecessor(&self.id()).is_some());
        let owned = self.owned.borrow();
        let owned = owned.get(name).ok_or_else(|| no_such(name))?;
        let version = owned.region.newest_by_record().map_or(0, |f| f.record.sequence);
        let opened = Opened {
            layout: owned.meta.layout,
            identity: owned.meta.identity,
            epoch: owned.meta.epoch,
            bytes: owned.meta.bytes,
            mirrored: ring_mirrors,
            warning: self.lost_warning(name, version).or_else(|| hugepage_warning(&owned.meta)),
        };
        Ok(Attached { opened, descriptors: [file.into(), handover, clients.into()], number })
    }

    /// Attaches a client that was attached before this server restarted.
    pub(super) async fn reattach(
        self: &Rc<Self>,
        name: Name,
        epoch: u64,
        shown: OwnedFd,
    ) -> Result<Attached, Failure> {
        let _lock = self.lock(&name).await;
        self.takes_clients()?;
        let (meta, path) = {
            let owned = self.owned.borrow();
            // The writer's node was voted out, and the checkpoint is somebody else's by now.
            let fenced = || Failure::new(FailureKind::Fenced, format!("{name} was taken over"));
            let owned = owned.get(&name).ok_or_else(fenced)?;
            (owned.meta.clone(), owned.path.clone())
        };
        let shown = File::from(shown);
        let writer = is_writer(&shown, &path).map_err(|e| internal(&e))?;
        let whole = || shown.metadata().is_ok_and(|shown| shown.len() >= meta.bytes);
        if meta.held != Held::Owned || meta.epoch != epoch || !writer || !whole() {
            let why = format!("{name} was taken over");
            return Err(Failure::new(FailureKind::Fenced, why));
        }
        self.attach(&name, shown)
    }

    /// A client's connection ended.
    pub(super) fn detached(&self, name: &Name, number: u64) {
        let present = self.owned.borrow().get(name).is_some_and(|o| o.attachment == number);
        if present {
            // A data plane that is gone ends the server elsewhere.
            let _ = self.data_plane.send(Command::Detach { name: name.clone(), condition: None });
        }
    }
}

fn hugepage_warning(meta: &Meta) -> Option<String> {
    let worth_it = meta.bytes >= 16 << 20 && meta.backing == Backing::Tmpfs;
    worth_it.then(|| super::HUGEPAGES_HINT.to_owned())
}

fn any_in(view: &View, run: &HoldingRun) -> bool {
    run.holders.iter().any(|holder| view.contains(holder))
}

fn being_recovered(name: &Name, copy: &Copy) -> String {
    let state = match &copy.standing {
        Standing::Holds(owner) => {
            format!("{name} was owned by node {}, and is not recovered yet", owner.name)
        }
        _ => format!("{name} is on its way to another node"),
    };
    format!(
        "{state}; if nodes lost their memory that had it last, `ringkeep get --maybe-stale` reads \
         what is left and `ringkeep rm --leftovers` gives it up"
    )
}
