//! The port: who is let in, and what the others cost.

use std::{
    cell::RefCell,
    collections::{BTreeMap, VecDeque},
    mem::{Discriminant, discriminant},
    net::{IpAddr, SocketAddr, TcpStream as StdTcpStream},
    rc::Rc,
    time::Duration,
};

use tokio::{
    io::AsyncReadExt,
    net::{TcpListener, TcpStream},
    task::{AbortHandle, JoinSet},
    time::{Instant, sleep, timeout},
};

use super::{
    CONTROL_MAGIC, Incoming, Inner, LinkError, STRANGERS_MAX,
    noise::{self, Status},
};

const MAGIC_TIMEOUT: Duration = Duration::from_secs(2);
/// How long to wait when the system has no descriptor for a new connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// The same complaint about the same address is made once in this time.
const COMPLAINT_AGAIN_AFTER: Duration = Duration::from_secs(60);
/// So many complaints of any kind in that time.
const COMPLAINTS_MAX: usize = 64;

/// Where data sockets go.
pub(super) type OnData = Rc<dyn Fn(StdTcpStream)>;

/// Connections that have not shown the key, oldest first.
type Strangers = Rc<RefCell<BTreeMap<u64, AbortHandle>>>;

/// Takes its connection off the list of strangers.
struct Stranger {
    number: u64,
    strangers: Strangers,
}

impl Drop for Stranger {
    fn drop(&mut self) {
        self.strangers.borrow_mut().remove(&self.number);
    }
}

/// Accepts until it is dropped; its connections end with it.
pub(super) async fn run(inner: Rc<Inner>, listener: TcpListener, data: OnData) {
    let strangers = Strangers::default();
    let complaints = Rc::new(RefCell::new(Complaints::default()));
    let mut connections = JoinSet::new();
    let mut number = 0;
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(ended) = connections.join_next() => {
                if let Err(error) = ended && error.is_panic() {
                    tracing::error!("a peer's connection ended by a panic");
                }
                continue;
            }
        };
        let (stream, from) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!("accepting a connection: {error}");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        // The oldest goes, not the newest: an honest handshake takes milliseconds, so that a flood
        // must be faster than that to keep a peer out.
        if strangers.borrow().len() >= STRANGERS_MAX
            && let Some((_, oldest)) = strangers.borrow_mut().pop_first()
        {
            oldest.abort();
        }
        number += 1;
        let stranger = Stranger { number, strangers: strangers.clone() };
        let (inner, data, complaints) = (inner.clone(), data.clone(), complaints.clone());
        let handle = connections.spawn_local(async move {
            if let Err(error) = converse(&inner, stream, from, stranger, &data).await {
                complaints.borrow_mut().make(from.ip(), &error);
            }
        });
        strangers.borrow_mut().insert(number, handle);
    }
}

/// One connection from its first byte to its end. Whatever ends it after it was let in is told in
/// passing only.
async fn converse(
    inner: &Inner,
    mut stream: TcpStream,
    from: SocketAddr,
    stranger: Stranger,
    data: &OnData,
) -> Result<(), LinkError> {
    noise::tune(&stream)?;
    let mut magic = [0; 4];
    timeout(MAGIC_TIMEOUT, stream.read_exact(&mut magic)).await??;
    let permitted = noise::permitted(inner.key.is_some(), from.ip());
    if magic == inner.data_magic && permitted {
        data(stream.into_std()?);
        return Ok(());
    }
    if magic != CONTROL_MAGIC {
        let unknown = magic != inner.data_magic;
        return Err(if unknown { LinkError::UnknownProtocol } else { LinkError::LoopbackOnly });
    }
    if !permitted {
        noise::refuse(stream, Status::LoopbackOnly).await;
        return Err(LinkError::LoopbackOnly);
    }
    let mut me = inner.me.subscribe();
    let my_id = me.borrow_and_update().id.clone();
    let accepting = noise::accept(stream, inner.key.as_ref(), &my_id);
    let (mut channel, hello) = timeout(noise::HANDSHAKE_TIMEOUT, accepting).await??;
    drop(stranger);
    if hello.expects.as_ref().is_some_and(|expected| *expected != my_id) {
        tracing::debug!("{} looks for another life of this node", hello.from.id);
        return Ok(());
    }
    let mine = inner.cluster.get();
    if mine != 0 && hello.cluster != 0 && mine != hello.cluster {
        tracing::info!("{} belongs to cluster {:016x}", hello.from.id, hello.cluster);
    }
    tracing::debug!("{} connected from {from}", hello.from.id);
    loop {
        let received = tokio::select! {
            received = channel.receive() => received,
            // Whoever dialed meant the life that it was told.
            _ = me.changed() => return Ok(()),
        };
        let bytes = match received {
            Ok(bytes) => bytes,
            Err(LinkError::Closed) => return Ok(()),
            Err(error @ LinkError::System(_)) => {
                tracing::debug!("the connection of {}: {error}", hello.from.id);
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        // Waiting here is what slows a fast sender down.
        if inner.incoming.send(Incoming { from: hello.from.clone(), bytes }).await.is_err() {
            return Ok(());
        }
    }
}

/// One line a bad peer, not one a connection.
#[derive(Debug, Default)]
struct Complaints {
    recent: VecDeque<(Instant, IpAddr, Discriminant<LinkError>)>,
    withheld: u64,
}

impl Complaints {
    fn make(&mut self, from: IpAddr, error: &LinkError) {
        if self.is_news(from, error, Instant::now()) {
            let withheld = std::mem::take(&mut self.withheld);
            tracing::warn!(withheld, "closed a connection from {from}: {error}");
        }
    }

    fn is_news(&mut self, from: IpAddr, error: &LinkError, now: Instant) -> bool {
        let old = |at: Instant| now.saturating_duration_since(at) >= COMPLAINT_AGAIN_AFTER;
        while self.recent.front().is_some_and(|&(at, ..)| old(at)) {
            self.recent.pop_front();
        }
        let kind = discriminant(error);
        let known = self.recent.iter().any(|&(_, ip, k)| ip == from && k == kind);
        if known || self.recent.len() >= COMPLAINTS_MAX {
            self.withheld += 1;
            return false;
        }
        self.recent.push_back((now, from, kind));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_key_only_this_machine_is_let_in() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        for near in ["127.0.0.1", "127.8.9.1", "::1", "::ffff:127.0.0.1"] {
            assert!(noise::permitted(false, ip(near)), "{near}");
        }
        for far in ["10.0.0.1", "0.0.0.0", "fe80::1", "::ffff:10.0.0.1", "128.0.0.1"] {
            assert!(!noise::permitted(false, ip(far)), "{far}");
            assert!(noise::permitted(true, ip(far)), "{far}");
        }
    }

    #[test]
    fn a_complaint_is_made_once_a_minute_and_floods_are_cut() {
        let (mut complaints, now) = (Complaints::default(), Instant::now());
        let ip = |n: u8| IpAddr::from([10, 0, 0, n]);
        let mut news = |n, error: &LinkError, at| complaints.is_news(ip(n), error, at);
        assert!(news(1, &LinkError::KeyDiffers, now));
        assert!(!news(1, &LinkError::KeyDiffers, now));
        assert!(news(1, &LinkError::TimedOut, now));
        assert!(news(1, &LinkError::KeyDiffers, now + COMPLAINT_AGAIN_AFTER));
        let later = now + 3 * COMPLAINT_AGAIN_AFTER;
        let told = (0..=255).filter(|&n| news(n, &LinkError::KeyDiffers, later)).count();
        assert_eq!(told, COMPLAINTS_MAX);
    }
}
