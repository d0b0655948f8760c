//! Copies of committed versions for readers: from this node's memory or a peer's.

use std::{rc::Rc, time::Duration};

use tokio::time::Instant;

use super::{
    copies::{Copied, CopyError, copy_version, find_version},
    data_plane::{Command, Pinned},
    failures::{internal, no_such, no_version, permission},
    node::{CALL_TIMEOUT, LONG_CALL_TIMEOUT, Node, blocking},
    open::{SETTLE_LOOK, SETTLE_TIMEOUT},
    rpc::{Copy, Grant, Reply, Request, Standing},
    store::{Held, Meta, Owner},
};
use crate::{
    commit::Version,
    membership::{Member, NodeId},
    name::Name,
    protocol::{Failure, FailureKind},
    recovery::{Report, maybe_stale},
    region::Region,
    transport::{MemoryId, RemoteKey},
};

/// A right to read ends by itself after this time, and this much more for each GiB: a reader that
/// died must not keep a writer from its slot for long.
const GRANT_LIFETIME: Duration = Duration::from_secs(3);
const GRANT_LIFETIME_PER_GIB: Duration = Duration::from_secs(10);
/// Tries to copy a version that its writer overwrites meanwhile.
const TRIES: usize = 5;

/// A right to read that was given to a peer, and what ends with it.
pub(super) struct Granted {
    pub(super) memory: MemoryId,
    pub(super) name: Name,
    pub(super) pinned: Option<Pinned>,
}

impl Node {
    /// A copy of a committed version for a local client, as soon as it is certain which one is the
    /// newest.
    pub(super) async fn get(
        self: &Rc<Self>,
        name: &Name,
        version: Option<Version>,
        caller: Owner,
        maybe_stale: bool,
    ) -> Result<Copied, Failure> {
        let deadline = Instant::now() + SETTLE_TIMEOUT;
        loop {
            match self.try_get(name, version, caller).await {
                Err(failure) if failure.kind == FailureKind::Unavailable && maybe_stale => {
                    return self.newest_shown(name, caller).await;
                }
                // The ring is changing: what cannot be said now can be said soon.
                Err(failure)
                    if failure.kind == FailureKind::Unavailable && Instant::now() < deadline =>
                {
                    self.wait_a_little(SETTLE_LOOK).await;
                }
                Ok(None) => return Err(self.missing(name)),
                Ok(Some(copied)) => return Ok(copied),
                Err(failure) => return Err(failure),
            }
        }
    }

    /// Nothing when nobody in the ring has it.
    async fn try_get(
        self: &Rc<Self>,
        name: &Name,
        version: Option<Version>,
        caller: Owner,
    ) -> Result<Option<Copied>, Failure> {
        let mut failure = None;
        let owned = {
            let owned = self.owned.borrow();
            let owned = owned.get(name).filter(|o| o.meta.held != Held::Superseded);
            owned.map(|o| (o.meta.owner, o.region.clone()))
        };
        if let Some((owner, region)) = owned {
            if !owner.may_read(&caller) {
                return Err(permission(name));
            }
            match self.copy_here(name, &region, version).await {
                // The mirror may have what is damaged here.
                Err(damage) if damage.kind == FailureKind::Corrupt => failure = Some(damage),
                other => return other.map(Some),
            }
        }
        let (mut here, mut elsewhere) = (self.located(name), self.locate(name).await?);
        if version.is_none() && !self.only_the_newest(name, &mut here, &mut elsewhere)? {
            return Ok(None);
        }
        // The owner first, then mirrors, the newest first.
        elsewhere.sort_by_key(|(_, copy)| {
            let owns = matches!(copy.standing, Standing::Owns(_));
            std::cmp::Reverse((owns, copy.epoch, copy.version))
        });
        elsewhere.retain(|(_, copy)| copy.standing != Standing::Creating);
        for (member, _) in &elsewhere {
            let mut copied = self.copy_from(member, name, version, caller).await;
            let again = |e: &Failure| match e.kind {
                // The connection may have been one that only this end still believed in.
                FailureKind::Unavailable => true,
                // Overwritten while it was read: then there is no such version any more.
                FailureKind::Corrupt => version.is_some(),
                _ => false,
            };
            if copied.as_ref().is_err_and(again) {
                copied = self.copy_from(member, name, version, caller).await;
            }
            match copied {
                Ok(copied) => return Ok(Some(copied)),
                Err(e) if e.kind == FailureKind::Permission => return Err(e),
                // Only damage is a reason to look further: one that cannot be asked may be newer.
                Err(e) if e.kind == FailureKind::Unavailable && version.is_none() => return Err(e),
                Err(e) => failure = failure.or(Some(e)),
            }
        }
        let mirror = {
            let mirrors = self.mirrors.borrow();
            let mine = mirrors.iter().filter(|((n, ..), _)| n == name);
            let newest = mine.max_by_key(|(_, m)| m.meta.epoch);
            newest.map(|(_, m)| (m.meta.owner, m.region.clone()))
        };
        let holds = here.iter().any(|copy| matches!(copy.standing, Standing::Holds(_)));
        if let Some((owner, region)) = mirror.filter(|_| holds) {
            if !owner.may_read(&caller) {
                return Err(permission(name));
            }
            return self.copy_here(name, &region, version).await.map(Some);
        }
        Err(failure.unwrap_or_else(|| no_such(name)))
    }

    /// The newest version that anybody shows who answers, when nobody knows of a newer one and
    /// somebody may have had it (rule H5, on request).
    async fn newest_shown(self: &Rc<Self>, name: &Name, caller: Owner) -> Result<Copied, Failure> {
        let report = |copy: &Copy| Report { mark: copy.synced, version: copy.version };
        let here = self.located(name);
        let mut shown: Vec<(Option<Member>, Report)> =
            here.iter().map(|copy| (None, report(copy))).collect();
        for member in self.others() {
            match self.call(&member, Request::Locate { name: name.clone() }, CALL_TIMEOUT).await {
                Ok(Reply::Located(copies)) => {
                    shown.extend(copies.iter().map(|copy| (Some(member.clone()), report(copy))));
                }
                Ok(_) => {}
                Err(failure) => tracing::debug!(node = %member.id, %failure, "not asked"),
            }
        }
        let mut failure = None;
        while let Some((place, version)) = maybe_stale(shown.iter().cloned()) {
            let copied = match &place {
                Some(member) => self.copy_from(member, name, Some(version), caller).await,
                None => self.copy_left_here(name, version, caller).await,
            };
            match copied {
                Ok(copied) => return Ok(Copied { maybe_stale: true, ..copied }),
                Err(e) if e.kind == FailureKind::Permission => return Err(e),
                Err(e) => failure = failure.or(Some(e)),
            }
            // Damaged, or gone meanwhile: the next best.
            shown.retain(|(at, report)| (at, report.version) != (&place, version));
        }
        Err(failure.unwrap_or_else(|| self.missing(name)))
    }

    async fn copy_left_here(
        &self,
        name: &Name,
        version: Version,
        caller: Owner,
    ) -> Result<Copied, Failure> {
        let regions = self.regions(name);
        let (meta, region) = with_version(&regions, version).ok_or_else(|| no_such(name))?;
        if !meta.owner.may_read(&caller) {
            return Err(permission(name));
        }
        self.copy_here(name, region, Some(version)).await
    }

    /// What this node has of a checkpoint: what it owns, mirrors from the newest on, what it owned
    /// once.
    pub(super) fn regions(&self, name: &Name) -> Vec<(Meta, Region)> {
        let (owned, mirrors) = (self.owned.borrow(), self.mirrors.borrow());
        let owned = |superseded: bool| {
            let owned = owned.get(name);
            let owned = owned.filter(|o| (o.meta.held == Held::Superseded) == superseded);
            owned.map(|o| (o.meta.clone(), o.region.clone()))
        };
        let mirrors = mirrors.iter().filter(|((n, ..), _)| n == name);
        let mut mirrors: Vec<(Meta, Region)> =
            mirrors.map(|(_, m)| (m.meta.clone(), m.region.clone())).collect();
        mirrors.sort_by_key(|(meta, _)| std::cmp::Reverse(meta.epoch));
        owned(false).into_iter().chain(mirrors).chain(owned(true)).collect()
    }

    /// Leaves the owner's copy and the mirrors that are synced with it. A mirror whose owner is gone
    /// may be one that was replaced long ago: before the recovery has asked all holders (rule H5),
    /// nobody knows, however whole it is. False when there is no copy at all.
    fn only_the_newest(
        &self,
        name: &Name,
        here: &mut Vec<Copy>,
        elsewhere: &mut Vec<(Member, Copy)>,
    ) -> Result<bool, Failure> {
        let me = self.id();
        let all = here.iter().map(|copy| (&me, copy));
        let all = all.chain(elsewhere.iter().map(|(member, copy)| (&member.id, copy)));
        let owner = all
            .filter(|(_, copy)| matches!(copy.standing, Standing::Owns(_)))
            .max_by_key(|(_, copy)| copy.epoch);
        let Some((owner, newest)) = owner.map(|(id, copy)| (id.clone(), copy.clone())) else {
            return match self.why_unowned(name, here, elsewhere) {
                None => Ok(false),
                Some(failure) => Err(failure),
            };
        };
        let of_newest =
            |copy: &Copy| (copy.identity, copy.epoch) == (newest.identity, newest.epoch);
        let counts = |copy: &Copy| match &copy.standing {
            Standing::Owns(_) => of_newest(copy),
            Standing::Holds(of) => *of == owner && copy.synced.is_some() && of_newest(copy),
            _ => false,
        };
        here.retain(counts);
        elsewhere.retain(|(_, copy)| counts(copy));
        Ok(true)
    }

    async fn copy_here(
        &self,
        name: &Name,
        region: &Region,
        version: Option<Version>,
    ) -> Result<Copied, Failure> {
        let mut failure = no_such(name);
        for _ in 0..TRIES {
            // Without a pin the copy is tried all the same: the checksums tell.
            let pin = |reply| Command::Pin { name: name.clone(), reply };
            let pinned = self.data_plane.ask(pin).await?;
            let source = region.clone();
            let copied = blocking(move || copy_version(&source, version)).await;
            if let Some(pinned) = pinned {
                let name = name.clone();
                self.data_plane.send(Command::Unpin { name, pinned })?;
            }
            match copied {
                Ok(copied) => return Ok(copied),
                Err(CopyError::NoVersion) if region.mapping().is_cut() => {
                    let why = format!("{name}: its writer cut its memory off");
                    return Err(Failure::new(FailureKind::Corrupt, why));
                }
                Err(CopyError::NoVersion) => {
                    return Err(version.map_or_else(|| no_such(name), |v| no_version(name, v)));
                }
                Err(CopyError::Damaged(damage)) => {
                    let why = format!("{name} is damaged in this node's memory: {damage}");
                    failure = Failure::new(FailureKind::Corrupt, why);
                }
                Err(CopyError::System(error)) => {
                    let why = format!("no space for a copy of {name}: {error}");
                    return Err(Failure::new(FailureKind::NoSpace, why));
                }
            }
        }
        Err(failure)
    }

    pub(super) async fn copy_from(
        &self,
        from: &Member,
        name: &Name,
        version: Option<Version>,
        caller: Owner,
    ) -> Result<Copied, Failure> {
        self.link(from).await?;
        let request = Request::Fetch { name: name.clone(), version, caller };
        let grant = self.call_for_grant(from, request).await?;
        let copied = self.read_copy(from, name, &grant).await;
        // Lost, it ends by itself.
        self.cast(from, Request::Fetched { key: grant.key });
        copied
    }

    /// Asks for a right to read over this node's data connection. Should the peer not know that
    /// connection, a new one is made the next time.
    pub(super) async fn call_for_grant(
        &self,
        to: &Member,
        request: Request,
    ) -> Result<Grant, Failure> {
        match self.call(to, request, LONG_CALL_TIMEOUT).await {
            Ok(Reply::Granted(grant)) => Ok(grant),
            Ok(_) => Err(internal(&"an answer to something else")),
            Err(failure) => {
                if failure.kind == FailureKind::Unavailable {
                    self.forget_link(&to.id);
                }
                Err(failure)
            }
        }
    }

    /// A peer wants to read a version.
    pub(super) async fn fetch(
        self: &Rc<Self>,
        from: NodeId,
        name: Name,
        version: Option<Version>,
        caller: Owner,
    ) -> Result<Reply, Failure> {
        let regions = self.regions(&name);
        let found = version.and_then(|version| with_version(&regions, version));
        let (meta, region) = found.or(regions.first()).ok_or_else(|| no_such(&name))?;
        if !meta.owner.may_read(&caller) {
            return Err(permission(&name));
        }
        let pin = |reply| Command::Pin { name: name.clone(), reply };
        let pinned = self.data_plane.ask(pin).await?;
        // By its record: the peer verifies it, and fails rather than fall back to an older one.
        let granted = match find_version(region, version) {
            Ok((slot, record)) => {
                let version = Some((slot as u32, record));
                self.grant_read(from, meta, region, version, pinned).await
            }
            Err(_) => Err(version.map_or_else(|| no_such(&name), |v| no_version(&name, v))),
        };
        if let (Err(_), Some(pinned)) = (&granted, pinned) {
            self.data_plane.send(Command::Unpin { name, pinned })?;
        }
        granted
    }

    /// Notes what ends with a right to read; it ends by itself when the reader says nothing.
    pub(super) fn remember_grant(&self, key: RemoteKey, granted: Granted, len: u64) {
        let lifetime =
            GRANT_LIFETIME + GRANT_LIFETIME_PER_GIB.mul_f64(len as f64 / (1u64 << 30) as f64);
        self.grants.borrow_mut().insert(key.key, granted);
        let Some(node) = self.this.upgrade() else { return };
        tokio::task::spawn_local(async move {
            tokio::time::sleep(lifetime).await;
            node.end_grant(key).await;
        });
    }

    /// A reader is done.
    pub(super) async fn end_grant(&self, key: RemoteKey) {
        let Some(granted) = self.grants.borrow_mut().remove(&key.key) else { return };
        let Granted { memory, name, pinned } = granted;
        if let Some(pinned) = pinned
            && self.data_plane.send(Command::Unpin { name, pinned }).is_err()
        {
            return;
        }
        // A data plane that is gone has let everything go.
        let _ = self.data_plane.ask(|reply| Command::Deregister { memory, reply }).await;
    }
}

/// Among copies of a checkpoint the first that says that it has this version.
fn with_version(regions: &[(Meta, Region)], version: Version) -> Option<&(Meta, Region)> {
    regions.iter().find(|(_, region)| find_version(region, Some(version)).is_ok())
}
