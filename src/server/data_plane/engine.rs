//! The loop of the data plane.

mod commands;

use std::{
    collections::HashMap,
    io,
    os::fd::AsFd,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    Channels, LinkEnd, Notice, ReadError, Reply, Waiting,
    links::Links,
    owned::{Granted, MirrorWork, Owned},
    sleep::{Rung, Sleeper},
    timers::Timers,
};
use crate::{
    commit::{SEGMENTS_PER_VERSION_MAX, segments},
    handover::{Condition, Violation},
    membership::{NodeId, View},
    mirror::{Action, Post},
    name::Name,
    pause::Pause,
    region::{
        Mark,
        layout::{MARK_AT, MARK_BYTES},
        sigbus,
    },
    transport::{ConnId, Event, PostError, Segment, Stamp, Work, WorkError, WorkId, many::Many},
};

/// While the thread is awake, the bells of idle clients are looked at once in so many rounds.
const ROUNDS_PER_BELL_CHECK: u32 = 32;
/// After one was rung they are looked at in so many rounds, one behind the other: where many services
/// take turns, another one rings soon.
const ROUNDS_AFTER_RINGING: u32 = 256;
/// So many clients are looked at as long as the thread is awake. Each look may miss the cache and the
/// TLB: hundreds would cost more than they save.
const ACTIVE_MAX: usize = 32;
/// Of more, one that submitted nothing for this long must ring to be looked at again.
const ACTIVE_FOR: Duration = Duration::from_micros(200);

pub(super) struct Engine {
    me: NodeId,
    transport: Many,
    waiting: Waiting,
    channels: Channels,
    sleeper: Sleeper,
    rung: Rung,
    started: Instant,
    view: Option<Arc<View>>,
    links: Links,
    owned: Vec<Option<Owned>>,
    by_name: HashMap<Name, usize>,
    /// Checkpoints whose clients are looked at in each round, with their last sign of life.
    active: Vec<(usize, u64)>,
    timers: Timers,
    /// Rounds since a bell was rung.
    quiet_rounds: u32,
    reads: HashMap<WorkId, (ConnId, Reply<Result<(), ReadError>>)>,
    count: u64,
    events: Vec<Event>,
    segments: Vec<Segment>,
    /// How many mappings of this process were found cut off so far.
    cut: usize,
    stopping: bool,
}

impl Engine {
    pub(super) fn new(
        me: NodeId,
        transport: Many,
        waiting: Waiting,
        channels: Channels,
    ) -> io::Result<Self> {
        let sleeper = Sleeper::new(channels.alarm.as_fd(), transport.event_fds())?;
        Ok(Self {
            me,
            transport,
            waiting,
            channels,
            sleeper,
            rung: Rung::default(),
            started: Instant::now(),
            view: None,
            links: Links::default(),
            owned: Vec::new(),
            by_name: HashMap::new(),
            active: Vec::new(),
            timers: Timers::default(),
            quiet_rounds: 0,
            reads: HashMap::new(),
            count: 0,
            events: Vec::with_capacity(64),
            segments: Vec::with_capacity(SEGMENTS_PER_VERSION_MAX),
            cut: 0,
            stopping: false,
        })
    }

    pub(super) fn run(&mut self) {
        if let Some(cpu) = self.waiting.cpu
            && !core_affinity::set_for_current(core_affinity::CoreId { id: cpu })
        {
            tracing::warn!(cpu, "cannot pin the data plane to this core; it runs on any");
        }
        let (mut idle_since, pause) = (None, Pause::default());
        while !self.stopping {
            let mut moved = self.take_commands();
            let now_ns = self.now_ns();
            moved |= self.take_submissions(now_ns);
            moved |= self.poll_transport(now_ns);
            moved |= self.run_timers(now_ns);
            moved |= self.look_for_cut_regions();
            self.look_at_bells_in_turn();
            if moved {
                idle_since = None;
                pause.reset();
            } else if *idle_since.get_or_insert(now_ns) + spin_ns(self.waiting) > now_ns {
                pause.pause();
            } else if self.fall_asleep() {
                idle_since = None;
            }
        }
        self.shut_down();
    }

    fn now_ns(&self) -> u64 {
        self.started.elapsed().as_nanos() as u64
    }

    /// A client that cuts its region's file off is let go; its checkpoint is not served any more.
    fn look_for_cut_regions(&mut self) -> bool {
        let so_far = sigbus::cut_so_far();
        if so_far == self.cut {
            return false;
        }
        self.cut = so_far;
        for index in 0..self.owned.len() {
            let Some(owned) = &mut self.owned[index] else { continue };
            if owned.region.mapping().is_cut() && !owned.cut {
                owned.cut = true;
                let name = owned.name.clone();
                self.detach(index, Some(Condition::Violation));
                self.channels.tell(Notice::Violation { name, violation: Violation::Cut });
            }
        }
        true
    }

    // Waiting.

    /// Sleeps unless there is something to do already. Clients that were looked at in each round
    /// must ring from now on.
    fn fall_asleep(&mut self) -> bool {
        for i in 0..self.active.len() {
            if !self.consumer_sleeps(self.active[i].0) {
                return false;
            }
        }
        self.active.clear();
        let mut unarmed = None;
        match self.transport.arm() {
            Ok(true) => {}
            Ok(false) => return true,
            Err(error) => {
                tracing::error!(%error, "arming the transport");
                unarmed = Some(Duration::from_millis(10)); // nothing may ring
            }
        }
        self.channels.flush();
        let wait =
            self.timers.next().map(|at| Duration::from_nanos(at.saturating_sub(self.now_ns())));
        // Notices that found no room are tried again soon.
        let retry = (!self.channels.backlog.is_empty()).then_some(Duration::from_millis(10));
        self.look_at_bells(wait.into_iter().chain(retry).chain(unarmed).min());
        true
    }

    fn consumer_sleeps(&self, index: usize) -> bool {
        let consumer = self.owned[index].as_ref().and_then(Owned::consumer);
        consumer.is_none_or(|c| {
            let asleep = c.fall_asleep();
            if !asleep {
                c.wake_up();
            }
            asleep
        })
    }

    /// Looks at the bells if it is time to.
    fn look_at_bells_in_turn(&mut self) {
        self.quiet_rounds = self.quiet_rounds.wrapping_add(1);
        let every_round = self.quiet_rounds < ROUNDS_AFTER_RINGING;
        if every_round || self.quiet_rounds.is_multiple_of(ROUNDS_PER_BELL_CHECK) {
            self.look_at_bells(Some(Duration::ZERO));
        }
    }

    fn look_at_bells(&mut self, timeout: Option<Duration>) {
        self.sleeper.wait(timeout, &mut self.rung);
        if !self.rung.bells.is_empty() {
            self.quiet_rounds = 0;
        }
        for i in 0..self.rung.bells.len() {
            let index = self.rung.bells[i];
            if let Some(attachment) =
                self.owned.get(index).and_then(Option::as_ref).and_then(|o| o.attachment.as_ref())
            {
                if !attachment.bell.silence() {
                    // Its client is gone, of which the control plane hears, too.
                    self.sleeper.unwatch(&attachment.bell);
                }
                self.activate(index);
            }
        }
    }

    fn activate(&mut self, index: usize) {
        if let Some(consumer) = self.owned[index].as_ref().and_then(Owned::consumer) {
            consumer.wake_up();
        }
        let now_ns = self.now_ns();
        if !self.active.iter().any(|&(i, _)| i == index) {
            self.active.push((index, now_ns));
        }
    }

    fn run_timers(&mut self, now_ns: u64) -> bool {
        let mut moved = false;
        // Each one once: what is set meanwhile has its time in a later round.
        for _ in 0..self.owned.len() {
            let Some(index) = self.timers.take(now_ns) else { break };
            self.drive(index, now_ns);
            moved = true;
        }
        moved
    }

    // Commits.

    fn take_submissions(&mut self, now_ns: u64) -> bool {
        let mut moved = false;
        let mut i = 0;
        while i < self.active.len() {
            let (index, last_ns) = self.active[i];
            let owned = self.owned[index].as_mut();
            match owned.map_or(Ok(false), |o| o.take_submissions(now_ns)) {
                Ok(true) => {
                    self.active[i].1 = now_ns;
                    self.drive(index, now_ns);
                    moved = true;
                }
                Ok(false) => {
                    let idle = now_ns > last_ns + ACTIVE_FOR.as_nanos() as u64;
                    let sleeps = idle && self.active.len() > ACTIVE_MAX;
                    if sleeps && self.consumer_sleeps(index) {
                        self.active.swap_remove(i);
                        continue;
                    }
                }
                Err(violation) => {
                    self.detach(index, Some(Condition::Violation));
                    if let Some(owned) = &self.owned[index] {
                        let name = owned.name.clone();
                        self.channels.tell(Notice::Violation { name, violation });
                    }
                    continue; // `detach` took it off the list
                }
            }
            i += 1;
        }
        moved
    }

    /// Does what the mirror of this checkpoint wants done.
    fn drive(&mut self, index: usize, now_ns: u64) {
        loop {
            let Some(owned) = self.owned[index].as_mut() else { return };
            if owned.leaving.is_some() || owned.cut {
                return;
            }
            let name = &owned.name;
            match owned.mirror.next(now_ns) {
                None => break,
                Some(Action::Prepare(holder)) => {
                    let notice = Notice::NeedMirror { name: name.clone(), holder };
                    self.channels.tell(notice);
                }
                Some(Action::Release { holder, confirmed }) => {
                    owned.copies.ended(&holder);
                    let notice = Notice::Released { name: name.clone(), holder, confirmed };
                    self.channels.tell(notice);
                }
                Some(Action::Synced { holders, view }) => {
                    holders.iter().for_each(|holder| owned.copies.ended(holder));
                    let (name, epoch) = (name.clone(), owned.epoch);
                    let notice = Notice::Synced { name, epoch, holders, view };
                    self.channels.tell(notice);
                }
                Some(Action::Post(post)) => {
                    if !self.post_version(index, post) {
                        self.timers.set(index, now_ns + self.waiting.pace.as_nanos() as u64);
                        return;
                    }
                }
                Some(Action::PostMark { at, view }) => {
                    if !self.post_mark(index, at, view) {
                        self.timers.set(index, now_ns + self.waiting.pace.as_nanos() as u64);
                        return;
                    }
                }
            }
        }
        if let Some(at_ns) = self.owned[index].as_ref().and_then(|o| o.mirror.deadline_ns()) {
            self.timers.set(index, at_ns);
        }
    }

    /// Posts the newest version to a holder. False when it has to wait.
    fn post_version(&mut self, index: usize, post: Post) -> bool {
        let Some(owned) = self.owned[index].as_mut() else { return false };
        let holder = owned.mirror.holder_at(post.at).clone();
        let granted = owned.keys.get(&holder).copied();
        let (Some(conn), Some(Granted { key, .. })) = (self.links.up(&holder), granted) else {
            owned.mirror.lost(&holder);
            return true;
        };
        if !owned.pin(post.from) {
            return false; // the client is overwriting it: a newer version follows
        }
        if owned.region.commit_word(post.from) != post.version {
            owned.unpin(post.from);
            return false; // it was overwritten before: a newer version follows
        }
        self.count += 1;
        let work = MirrorWork::new(index, Some(post.from), self.count);
        let layout = owned.region.layout();
        segments(
            layout,
            post.from,
            post.to,
            post.len,
            owned.mirror.stale(&post),
            &mut self.segments,
        );
        let (epoch, view) = (owned.epoch, self.view.as_ref().map_or(0, |v| v.number));
        let posted = self.transport.post_write(Work {
            id: work.id,
            conn,
            memory: owned.memory,
            key,
            stamp: Stamp { epoch, view },
            segments: &self.segments,
        });
        match posted {
            Ok(()) => {
                if owned.makes_copy(&post) {
                    let bytes = self.segments.iter().map(|segment| segment.len).sum();
                    owned.copies.posted(&holder, conn, work.id, bytes);
                }
                owned.mirror.posted(&post, work.id.0);
                owned.outstanding += 1;
                true
            }
            Err(error) => {
                owned.unpin(post.from);
                self.post_failed(index, &holder, error)
            }
        }
    }

    /// Posts the sync mark, from this region's own header page. False when it has to wait.
    fn post_mark(&mut self, index: usize, at: usize, view: u64) -> bool {
        let Some(owned) = self.owned[index].as_mut() else { return false };
        let holder = owned.mirror.holder_at(at).clone();
        let granted = owned.keys.get_mut(&holder);
        let (Some(conn), Some(Granted { key, mark_to })) = (self.links.up(&holder), granted) else {
            owned.mirror.lost(&holder);
            return true;
        };
        let mark = Mark { view, epoch: owned.epoch, incarnation: self.me.incarnation };
        owned.region.set_mark(mark);
        self.count += 1;
        let work = MirrorWork::new(index, None, self.count);
        let posted = self.transport.post_write(Work {
            id: work.id,
            conn,
            memory: owned.memory,
            key: *key,
            stamp: Stamp { epoch: owned.epoch, view },
            segments: &[Segment { local: MARK_AT[0], remote: MARK_AT[*mark_to], len: MARK_BYTES }],
        });
        match posted {
            Ok(()) => {
                // One at a time; if it fails, the holder is asked anew.
                *mark_to = 1 - *mark_to;
                owned.mirror.mark_posted(at, view, work.id.0);
                owned.outstanding += 1;
                true
            }
            Err(error) => self.post_failed(index, &holder, error),
        }
    }

    /// True when the mirror was told and can be asked again at once.
    fn post_failed(&mut self, index: usize, holder: &NodeId, error: PostError) -> bool {
        if matches!(error, PostError::QueueFull) {
            return false;
        }
        if !matches!(error, PostError::NotConnected) {
            tracing::error!(%error, %holder, "posting to the mirror");
        }
        if matches!(error, PostError::UnknownMemory) {
            self.link_unfit(holder, &error);
            return true;
        }
        if let Some(owned) = self.owned[index].as_mut() {
            owned.mirror.lost(holder);
        }
        true
    }

    /// The transport of this connection did not take the memory that is to be sent: another one may.
    pub(super) fn link_unfit(&mut self, peer: &NodeId, why: &PostError) {
        let Some(conn) = self.links.up(peer) else { return };
        self.transport.close(conn);
        self.link_ended(conn, Some(LinkEnd::Unfit(why.to_string())), self.now_ns());
    }

    // The transport.

    fn poll_transport(&mut self, now_ns: u64) -> bool {
        let mut events = std::mem::take(&mut self.events);
        let moved = self.transport.poll(&mut events);
        for event in events.drain(..) {
            match event {
                Event::Completed { conn, work, result } => {
                    match result {
                        Ok(()) => self.links.proven(conn),
                        Err(error) => self.work_failed(conn, work, error),
                    }
                    self.completed(work, result, now_ns);
                }
                Event::Closed { conn } => self.link_ended(conn, None, now_ns),
            }
        }
        self.events = events;
        moved
    }

    /// Says which peer it was and what to do. The first failure ends a connection, so this is told
    /// once for each; what is flushed behind it is not told.
    fn work_failed(&mut self, conn: ConnId, work: WorkId, error: WorkError) {
        let Some(peer) = self.links.peer_of(conn) else { return };
        let owned = MirrorWork::unpack(work).and_then(|w| self.owned.get(w.index)?.as_ref());
        match (error, owned) {
            (WorkError::Flushed, _) => {}
            (WorkError::Fenced, Some(owned)) => {
                let (name, holder) = (owned.name.clone(), peer.clone());
                self.channels.tell(Notice::Fenced { name, holder });
            }
            _ => tracing::warn!(
                %peer, %error,
                "work on the data connection failed; `ringkeep status` shows who is in the ring"
            ),
        }
    }

    fn completed(&mut self, work: WorkId, result: Result<(), WorkError>, now_ns: u64) {
        if let Some((_, reply)) = self.reads.remove(&work) {
            // Whoever asked may have given up.
            let _ = reply.send(result.map_err(ReadError::Work));
            return;
        }
        let Some(MirrorWork { index, slot, .. }) = MirrorWork::unpack(work) else { return };
        let Some(owned) = self.owned.get_mut(index).and_then(Option::as_mut) else { return };
        owned.outstanding -= 1;
        owned.copies.completed(work, result.is_ok());
        // A client that nobody could keep away, because it is not attached, may have overwritten
        // the slot while it was read.
        let overwritten = slot.is_some_and(|slot| {
            owned.mirror.version_of(work.0).is_some_and(|v| v != owned.region.commit_word(slot))
        });
        let advanced = if result.is_ok() && overwritten {
            owned.mirror.spoiled(now_ns, work.0);
            false
        } else {
            owned.mirror.completed(work.0, result.is_ok())
        };
        owned.work_done(slot, advanced);
        self.leave_if_done(index);
        self.drive(index, now_ns);
    }

    /// Forgets a connection, and tells it when this node had opened it. `unfit` when it had to end
    /// for what its transport cannot do.
    fn link_ended(&mut self, conn: ConnId, unfit: Option<LinkEnd>, now_ns: u64) {
        let Some((peer, proven)) = self.links.closed(conn) else { return };
        let Some(kind) = self.transport.kind_of(conn) else { return };
        tracing::info!(%peer, %kind, "the data connection ended");
        let end = unfit.unwrap_or(if proven { LinkEnd::Proven } else { LinkEnd::Unproven });
        self.channels.tell(Notice::LinkDown { peer: peer.clone(), conn, kind, end });
        self.holder_lost(&peer, now_ns);
    }

    fn holder_lost(&mut self, peer: &NodeId, now_ns: u64) {
        for index in 0..self.owned.len() {
            if let Some(owned) = &mut self.owned[index]
                && owned.keys.remove(peer).is_some()
            {
                owned.mirror.lost(peer);
                self.drive(index, now_ns);
            }
        }
    }

    fn shut_down(&mut self) {
        for index in 0..self.owned.len() {
            self.detach(index, Some(Condition::Stopping));
        }
        self.links.close_all(&mut self.transport);
        let mut events = Vec::new();
        self.transport.poll(&mut events);
    }
}

fn spin_ns(waiting: Waiting) -> u64 {
    u64::try_from(waiting.spin.as_nanos()).unwrap_or(u64::MAX / 2)
}
