//! One destination: a bounded queue and the task that dials and empties it.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    mem::{Discriminant, discriminant},
    net::SocketAddr,
    rc::Rc,
    time::Duration,
};

use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep, timeout},
};

use super::{
    Event, Inner, LinkError, QUEUE_BYTES_MAX, QUEUE_MESSAGES_MAX,
    connection::Channel,
    noise::{self, Hello},
};
use crate::membership::{NodeId, Peer};

/// A message that waited longer has been overtaken by events.
const MESSAGE_AGE_MAX: Duration = Duration::from_secs(3);
/// A destination that was not used for so long is forgotten.
const IDLE_MAX: Duration = Duration::from_secs(60);
const BACKOFF_MIN: Duration = Duration::from_millis(20);
const BACKOFF_MAX: Duration = Duration::from_millis(500);
/// A connection that lived so long was good; its end is followed up at once.
const GOOD_AFTER: Duration = Duration::from_secs(1);

/// Where messages go. With an id only that life of that node gets them.
#[derive(Debug)]
pub(super) struct Destination {
    pub(super) address: SocketAddr,
    pub(super) expects: Option<NodeId>,
    queue: RefCell<VecDeque<Queued>>,
    bytes: Cell<usize>,
    news: Notify,
}

#[derive(Debug)]
struct Queued {
    since: Instant,
    bytes: Vec<u8>,
}

impl Destination {
    pub(super) fn new(address: SocketAddr, expects: Option<NodeId>) -> Self {
        let (queue, bytes, news) = Default::default();
        Self { address, expects, queue, bytes, news }
    }

    /// Messages and bytes that wait.
    pub(super) fn waiting(&self) -> (usize, usize) {
        (self.queue.borrow().len(), self.bytes.get())
    }

    /// Puts a message at the end. Returns how many messages were dropped: outdated ones, or this
    /// one when there is no room.
    pub(super) fn push(&self, bytes: Vec<u8>) -> u64 {
        let now = Instant::now();
        let outdated = self.drop_outdated(now);
        let total = self.bytes.get() + bytes.len();
        if self.queue.borrow().len() >= QUEUE_MESSAGES_MAX || total > QUEUE_BYTES_MAX {
            return outdated + 1;
        }
        self.bytes.set(total);
        self.queue.borrow_mut().push_back(Queued { since: now, bytes });
        self.news.notify_one();
        outdated
    }

    fn drop_outdated(&self, now: Instant) -> u64 {
        let mut dropped = 0;
        let old = |q: &Queued| now.saturating_duration_since(q.since) > MESSAGE_AGE_MAX;
        while self.queue.borrow().front().is_some_and(old) {
            self.pop();
            dropped += 1;
        }
        dropped
    }

    fn drop_all(&self) -> u64 {
        self.bytes.set(0);
        std::mem::take(&mut *self.queue.borrow_mut()).len() as u64
    }

    fn pop(&self) -> Option<Queued> {
        let first = self.queue.borrow_mut().pop_front()?;
        self.bytes.set(self.bytes.get() - first.bytes.len());
        Some(first)
    }

    /// A message that could not be sent in full is the next one again.
    fn put_back(&self, message: Queued) {
        self.bytes.set(self.bytes.get() + message.bytes.len());
        self.queue.borrow_mut().push_front(message);
    }

    fn is_empty(&self) -> bool {
        self.queue.borrow().is_empty()
    }

    /// Until something waits to be sent.
    async fn filled(&self) {
        while self.is_empty() {
            self.news.notified().await;
        }
    }
}

enum End {
    /// Nothing to send for a long time.
    Idle,
    /// This server has another name for itself now.
    Renamed,
    /// The connection broke.
    Lost(LinkError),
}

/// The destination's task.
pub(super) async fn run(inner: Rc<Inner>, to: Rc<Destination>) {
    let mut me = inner.me.subscribe();
    let mut backoff = BACKOFF_MIN;
    let mut told = None;
    let mut follow_up = false;
    loop {
        if !follow_up && timeout(IDLE_MAX, to.filled()).await.is_err() {
            return inner.forget(&to);
        }
        follow_up = false;
        let from = me.borrow_and_update().clone();
        let began = Instant::now();
        let error = match connect(&inner, &to, from).await {
            Ok(mut channel) => {
                told = None;
                match pump(&inner, &to, &mut channel, &mut me).await {
                    End::Idle => return inner.forget(&to),
                    End::Renamed => continue,
                    End::Lost(error) => {
                        tracing::debug!("the connection to {}: {error}", to.address);
                        if began.elapsed() >= GOOD_AFTER {
                            // Dialing again tells soonest whether the peer is dead.
                            (backoff, follow_up) = (BACKOFF_MIN, true);
                            continue;
                        }
                        None
                    }
                }
            }
            Err(error) => Some(error),
        };
        if let Some(error) = error {
            report(&inner, &to, error, &mut told);
        }
        sleep(backoff).await;
        backoff = (2 * backoff).min(BACKOFF_MAX);
        inner.count_dropped(to.drop_outdated(Instant::now()));
    }
}

async fn connect(inner: &Inner, to: &Destination, from: Peer) -> Result<Channel, LinkError> {
    let my_id = from.id.clone();
    let hello = Hello { from, cluster: inner.cluster.get(), expects: to.expects.clone() };
    let (channel, found) = noise::dial(to.address, inner.key.as_ref(), &hello).await?;
    if to.expects.as_ref().is_some_and(|expected| *expected != found) {
        return Err(LinkError::OtherLife { found });
    }
    if found == my_id {
        return Err(LinkError::Itself);
    }
    Ok(channel)
}

async fn pump(
    inner: &Inner,
    to: &Destination,
    channel: &mut Channel,
    me: &mut watch::Receiver<Peer>,
) -> End {
    // One timer that is looked at when it ends, not a new one for each message.
    let idle = sleep(IDLE_MAX);
    tokio::pin!(idle);
    let mut used = Instant::now();
    loop {
        tokio::select! {
            biased;
            _ = me.changed() => return End::Renamed,
            error = channel.closed() => return End::Lost(error),
            () = to.filled() => used = Instant::now(),
            () = &mut idle => {
                if used.elapsed() >= IDLE_MAX {
                    return End::Idle;
                }
                idle.as_mut().reset(used + IDLE_MAX);
                continue;
            }
        }
        inner.count_dropped(to.drop_outdated(Instant::now()));
        let Some(message) = to.pop() else { continue };
        if let Err(error) = channel.send(&message.bytes).await {
            to.put_back(message);
            return End::Lost(error);
        }
    }
}

/// Tells a failure once, until it is another one or was overcome.
fn report(
    inner: &Inner,
    to: &Destination,
    error: LinkError,
    told: &mut Option<Discriminant<LinkError>>,
) {
    let news = told.replace(discriminant(&error)) != Some(discriminant(&error));
    let address = to.address;
    if news && error.is_refusal() {
        // Whoever takes the event says it louder.
        tracing::debug!("no connection to {address}: {error}");
    } else if news {
        tracing::info!("no connection to {address}: {error}");
    }
    if error.is_connection_refused() {
        inner.tell(Event::Refused(address));
        return;
    }
    match error {
        LinkError::OtherLife { found } => {
            inner.count_dropped(to.drop_all());
            if let Some(expected) = to.expects.clone() {
                inner.tell(Event::OtherLife { expected, found });
            }
        }
        LinkError::Itself => inner.count_dropped(to.drop_all()),
        error if error.is_refusal() => {
            inner.count_dropped(to.drop_all());
            if news {
                inner.tell(Event::Rejected { address, why: error });
            }
        }
        _ => {}
    }
}
