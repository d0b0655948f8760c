//! The owner: the real [`Mirror`] and what a data plane does with it.
//!
//! Its states are numbered, and what a state does on an input is worked out once: the checker looks
//! it up, many million times.

use std::{
    collections::HashMap,
    sync::{Arc, RwLock},
};

use ringkeep::{
    commit::Stale,
    mirror::{Action, Measures, Mirror},
};

use crate::{
    Mutant,
    history::{Holder, View},
};

/// Slots of a region.
pub(crate) const SLOTS: usize = 2;

/// Whichever slot of the holder has the oldest version.
pub(crate) const OLDEST_SLOT: u8 = u8::MAX;

/// What happens to the owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Input {
    /// It installs a view, given by its number.
    View(u8),
    /// Its service commits a version.
    Submitted(u8),
    /// A holder made a mirror ready.
    Prepared { holder: Holder, region: u8, versions: [u8; SLOTS] },
    /// The connection to a holder is lost, with all that was under way.
    Broken(Holder),
    /// A work request is done.
    Completed(u8),
    /// A work request is done, but its source was overwritten.
    Spoiled(u8),
}

/// What the owner does then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Asks a holder for a mirror.
    Ask(Holder),
    /// Puts a version on its way.
    Post { holder: Holder, work: u8, version: u8, slot: u8 },
    /// Puts a mark on its way.
    Mark { holder: Holder, work: u8, view: u8 },
    /// Confirms to the others that all copies are synced for this view.
    Synced(u8),
}

/// The answer of one state to one input.
#[derive(Debug)]
pub(crate) struct Step {
    pub(crate) next: u32,
    pub(crate) effects: Vec<Effect>,
    /// What is newly acknowledged, with the holders of record.
    pub(crate) acknowledged: Option<(u8, Vec<Holder>)>,
}

/// A state of the owner's server.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Server {
    mirror: Mirror<Holder>,
    /// The work requests under way; the numbers of those that are done are used again.
    works: Vec<(u8, Holder)>,
    /// With [`Mutant::FloorRaisedLate`]: marks that the mirror does not know to be on their way.
    marks: Vec<(u8, Holder, u8)>,
    /// With [`Mutant::NoQuiesce`]: versions sent to the old holders past the mirror, and the newest
    /// that was acknowledged so.
    smuggled: Vec<(u8, u8)>,
    smuggled_up_to: u8,
}

#[derive(Default)]
struct Table {
    ids: HashMap<Arc<Server>, u32>,
    servers: Vec<Arc<Server>>,
    steps: HashMap<(u32, Input), Arc<Step>>,
}

/// All states of the owner that were met so far.
pub(crate) struct Owners {
    measures: Measures,
    mutant: Option<Mutant>,
    views: Vec<View>,
    table: RwLock<Table>,
}

impl Owners {
    pub(crate) fn new(copies: usize, views: Vec<View>, mutant: Option<Mutant>) -> Self {
        let measures = Measures { copies, slots: SLOTS, capacity: 1, pace_ns: 0 };
        Self { measures, mutant, views, table: RwLock::default() }
    }

    /// A server that starts and knows nothing yet.
    pub(crate) fn started(&self) -> u32 {
        let mirror = Mirror::new(self.measures);
        let server = Server {
            mirror,
            works: Vec::new(),
            marks: Vec::new(),
            smuggled: Vec::new(),
            smuggled_up_to: 0,
        };
        self.number(server)
    }

    /// How many different states were met.
    pub(crate) fn len(&self) -> usize {
        self.table.read().expect("no checker panicked").servers.len()
    }

    pub(crate) fn step(&self, id: u32, input: Input) -> Arc<Step> {
        let known =
            self.table.read().expect("no checker panicked").steps.get(&(id, input)).cloned();
        if let Some(step) = known {
            return step;
        }
        let mut server = Server::clone(&self.server(id));
        let acknowledged = self.happen(&mut server, input);
        let effects = self.drive(&mut server);
        let step = Arc::new(Step { next: self.number(server), effects, acknowledged });
        let mut table = self.table.write().expect("no checker panicked");
        table.steps.insert((id, input), step.clone());
        step
    }

    fn server(&self, id: u32) -> Arc<Server> {
        self.table.read().expect("no checker panicked").servers[id as usize].clone()
    }

    fn number(&self, server: Server) -> u32 {
        let mut table = self.table.write().expect("no checker panicked");
        if let Some(&id) = table.ids.get(&server) {
            return id;
        }
        let (id, server) = (table.servers.len() as u32, Arc::new(server));
        table.servers.push(server.clone());
        table.ids.insert(server, id);
        id
    }

    /// Tells the mirror. What is newly acknowledged, if anything.
    fn happen(&self, server: &mut Server, input: Input) -> Option<(u8, Vec<Holder>)> {
        let before = server.acknowledges(self.mutant);
        let mut past_the_mirror = None;
        match input {
            Input::View(view) => {
                let at = &self.views[usize::from(view) - 1];
                let anybody = self.mutant == Some(Mutant::AnyoneAcknowledges);
                let in_ring = |h: &Holder| anybody || at.contains(*h);
                let since = at.since;
                server.mirror.view_installed(view.into(), since, &at.predecessors, in_ring);
            }
            Input::Submitted(version) => {
                let (slot, changed) = (usize::from(version) % SLOTS, Stale::everything(1));
                server.mirror.submitted(0, version.into(), slot, 8, &changed, false);
            }
            Input::Prepared { holder, region, versions } => {
                server.mirror.prepared(&holder, region.into(), &versions.map(u64::from));
            }
            Input::Broken(holder) => {
                for (work, _) in server.works.extract_if(.., |(_, h)| *h == holder) {
                    server.mirror.completed(work.into(), false);
                }
                server.marks.retain(|(_, h, _)| *h != holder);
                server.smuggled.retain(|(work, _)| server.works.iter().any(|(w, _)| w == work));
                server.mirror.lost(&holder);
            }
            Input::Completed(work) => {
                let holder =
                    server.works.extract_if(.., |(w, _)| *w == work).map(|(_, h)| h).next();
                if let Some(at) = server.marks.iter().position(|(w, ..)| *w == work) {
                    let (_, holder, view) = server.marks.remove(at);
                    server.mark_posted(holder, view, work);
                }
                for (_, version) in server.smuggled.extract_if(.., |(w, _)| *w == work) {
                    server.smuggled_up_to = server.smuggled_up_to.max(version);
                    past_the_mirror = holder;
                }
                server.mirror.completed(work.into(), true);
            }
            Input::Spoiled(work) => {
                server.works.retain(|(w, _)| *w != work);
                server.mirror.spoiled(0, work.into());
            }
        }
        let after = server.acknowledges(self.mutant);
        let of_record = || past_the_mirror.map_or_else(|| server.of_record(), |h| vec![h]);
        (after > before).then(|| (after, of_record()))
    }

    /// Does what the mirror wants done, as the data plane does after each event.
    fn drive(&self, server: &mut Server) -> Vec<Effect> {
        let mut effects = Vec::new();
        while let Some(action) = server.mirror.next(0) {
            match action {
                Action::Prepare(holder) => effects.push(Effect::Ask(holder)),
                Action::Post(post) => {
                    let holder = *server.mirror.holder_at(post.at);
                    let work = server.new_work(holder);
                    server.mirror.posted(&post, work.into());
                    let slot = match self.mutant {
                        Some(Mutant::ParitySlots) => post.version % SLOTS as u64,
                        _ => post.to as u64,
                    };
                    let (version, slot) = (post.version as u8, slot as u8);
                    effects.push(Effect::Post { holder, work, version, slot });
                }
                Action::PostMark { at, view } => {
                    let holder = *server.mirror.holder_at(at);
                    let known =
                        server.marks.iter().any(|(_, h, v)| (*h, *v) == (holder, view as u8));
                    if known {
                        break; // the mirror does not know that it is on its way already
                    }
                    let work = server.new_work(holder);
                    effects.push(Effect::Mark { holder, work, view: view as u8 });
                    if self.mutant == Some(Mutant::FloorRaisedLate) {
                        server.marks.push((work, holder, view as u8));
                        break;
                    }
                    server.mirror.mark_posted(at, view, work.into());
                    if self.mutant == Some(Mutant::SwitchBeforeAllMarks) {
                        server.mirror.completed(work.into(), true);
                    }
                }
                Action::Synced { view, .. } => effects.push(Effect::Synced(view as u8)),
                Action::Release { .. } => {}
            }
        }
        if self.mutant == Some(Mutant::NoQuiesce) {
            effects.extend(server.smuggle());
        }
        effects
    }
}

impl Server {
    /// The smallest number that is not under way.
    fn new_work(&mut self, holder: Holder) -> u8 {
        let free = |work: &u8| self.works.iter().all(|(w, _)| w != work);
        let work = (1..).find(free).expect("few are under way");
        self.works.push((work, holder));
        self.works.sort_unstable();
        work
    }

    /// Sends the newest version to a holder of record while another holder is being synced.
    fn smuggle(&mut self) -> Option<Effect> {
        let newest = self.mirror.version() as u8;
        let idle = |h: &Holder| self.works.iter().all(|(_, holder)| holder != h);
        let copies = self.mirror.copies();
        let behind = copies.filter(|c| c.of_record && c.version < u64::from(newest));
        let holder = behind.map(|c| *c.holder).find(idle).filter(|_| !self.works.is_empty())?;
        let work = self.new_work(holder);
        self.smuggled.push((work, newest));
        Some(Effect::Post { holder, work, version: newest, slot: OLDEST_SLOT })
    }

    fn of_record(&self) -> Vec<Holder> {
        self.mirror.copies().filter(|c| c.of_record).map(|c| *c.holder).collect()
    }

    fn acknowledges(&self, mutant: Option<Mutant>) -> u8 {
        let by_all = self.mirror.mirrored();
        let by_any = self.mirror.copies().filter(|c| c.of_record).map(|c| c.version).max();
        let part = mutant == Some(Mutant::AcknowledgedByPart);
        (by_any.filter(|_| part).unwrap_or(0).max(by_all) as u8).max(self.smuggled_up_to)
    }

    fn mark_posted(&mut self, holder: Holder, view: u8, work: u8) {
        let at = self.mirror.copies().position(|c| *c.holder == holder);
        if let Some(at) = at {
            self.mirror.mark_posted(at, view.into(), work.into());
        }
    }
}
