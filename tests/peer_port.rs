//! The port between servers: good peers talk in order, bad ones cost their own connection only.

#![cfg(feature = "cli")]

use std::{
    cell::Cell,
    future::Future,
    io::Write,
    net::{SocketAddr, TcpStream as StdTcpStream},
    rc::Rc,
    sync::{Arc, Mutex},
    time::Duration,
};

use ringkeep::{
    Name,
    cluster_key::ClusterKey,
    membership::{NodeId, Peer},
    server::peers::{
        CONTROL_MAGIC, Config, Event, Incoming, LinkError, MESSAGE_BYTES_MAX, PROTOCOL_VERSION,
        Peers, QUEUE_BYTES_MAX, QUEUE_MESSAGES_MAX, STRANGERS_MAX,
    },
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::{JoinHandle, LocalSet},
    time::timeout,
};

const DATA_MAGIC: [u8; 4] = *b"data";

struct Node {
    me: Peer,
    peers: Peers,
    incoming: mpsc::Receiver<Incoming>,
    events: mpsc::Receiver<Event>,
    data: mpsc::UnboundedReceiver<StdTcpStream>,
    port: JoinHandle<()>,
}

fn id(name: &str, incarnation: u64) -> NodeId {
    NodeId { name: Name::new(name).unwrap(), incarnation }
}

async fn node(name: &str, key: Option<&ClusterKey>) -> Node {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    node_at(name, key, listener)
}

fn node_at(name: &str, key: Option<&ClusterKey>, listener: TcpListener) -> Node {
    let me = Peer { id: id(name, 1), address: listener.local_addr().unwrap() };
    let (peers, incoming, events) = Peers::new(Config {
        me: me.clone(),
        cluster: Rc::new(Cell::new(0)),
        key: key.cloned(),
        data_magic: DATA_MAGIC,
    });
    let (sockets, data) = mpsc::unbounded_channel();
    let port = peers.serve(listener, move |socket| sockets.send(socket).unwrap());
    Node { me, peers, incoming, events, data, port }
}

fn key() -> ClusterKey {
    ClusterKey::generate().unwrap()
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let bounded = async { timeout(Duration::from_secs(60), test).await.expect("it hangs") };
    LocalSet::new().block_on(&runtime, bounded);
}

/// Sends to `to` and waits until it arrives, so that nothing else was lost before either.
async fn talk(from: &Node, to: &mut Node, text: &str) {
    from.peers.send(&to.me, text.as_bytes().to_vec());
    let got = to.incoming.recv().await.unwrap();
    assert_eq!((got.from, got.bytes.as_slice()), (from.me.clone(), text.as_bytes()));
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i % 251) as u8 ^ (len % 256) as u8).collect()
}

#[test]
fn two_peers_exchange_messages_of_all_sizes_in_order() {
    run(async {
        let key = key();
        for key in [Some(&key), None] {
            let (mut a, mut b) = (node("a", key).await, node("b", key).await);
            talk(&a, &mut b, "connected").await;
            talk(&b, &mut a, "connected").await;
            // The short ones at once. The long ones one by one, lest a slow machine let them wait so
            // long in the queue that they are dropped.
            let around_one_frame = 65_510..65_530;
            let short = [1, 0, 100].into_iter().chain(around_one_frame).map(pattern).collect();
            for burst in [short, vec![pattern(1 << 20)], vec![pattern(5 << 20)]] {
                for message in &burst {
                    a.peers.send(&b.me, message.clone());
                    b.peers.send(&a.me, message.clone());
                }
                for message in &burst {
                    for (to, from) in [(&mut b.incoming, &a.me), (&mut a.incoming, &b.me)] {
                        let got = to.recv().await.unwrap();
                        let lens = (got.bytes.len(), message.len());
                        assert!(got.from == *from && got.bytes == *message, "{lens:?}");
                    }
                }
            }
            assert_eq!(a.peers.stats().dropped, 0);
        }
    });
}

/// Everything that is logged, as text.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn another_key_or_none_delivers_nothing_and_is_told_once_at_both_ends() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_writer(move || writer.clone()).finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    run(async {
        let keys = (key(), key());
        for other in [Some(&keys.1), None] {
            log.0.lock().unwrap().clear();
            let (mut a, mut b) = (node("a", Some(&keys.0)).await, node("b", other).await);
            a.peers.send(&b.me, b"secret".to_vec());
            let Some(Event::Rejected { address, why }) = a.events.recv().await else { panic!() };
            assert!(address == b.me.address && matches!(why, LinkError::KeyDiffers));
            assert_eq!(a.peers.stats().queued, 0);
            // More of it is no news.
            a.peers.send(&b.me, b"secret".to_vec());
            while a.peers.stats().dropped < 2 {
                tokio::task::yield_now().await;
            }
            assert!(a.events.try_recv().is_err() && b.incoming.try_recv().is_err());
            let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
            let lines: Vec<&str> = text.lines().filter(|l| l.contains("WARN")).collect();
            // One end is told by the event above, for the server to say in its own words.
            assert_eq!(lines.len(), 1, "{text}");
            assert!(lines.iter().all(|l| l.contains("the cluster key differs")), "{text}");
        }
    });
}

#[test]
fn without_a_key_only_loopback_is_dialed() {
    run(async {
        let mut a = node("a", None).await;
        let far: SocketAddr = "192.0.2.1:7".parse().unwrap();
        a.peers.contact(far, b"x".to_vec());
        let Some(Event::Rejected { address, why }) = a.events.recv().await else { panic!() };
        assert!(address == far && matches!(why, LinkError::LoopbackOnly));
    });
}

/// A peer that has the key and does what it likes after the handshake.
async fn insider(to: SocketAddr, key: &ClusterKey) -> (TcpStream, snow::TransportState) {
    let prologue = [&b"ringkeep control"[..], &PROTOCOL_VERSION.to_le_bytes()].concat();
    let mut noise = snow::Builder::new("Noise_NNpsk0_25519_ChaChaPoly_BLAKE2s".parse().unwrap())
        .psk(0, key.as_bytes())
        .and_then(|b| b.prologue(&prologue))
        .and_then(|b| b.build_initiator())
        .unwrap();
    let mut stream = TcpStream::connect(to).await.unwrap();
    let mut message = [0; 48];
    assert_eq!(noise.write_message(&[], &mut message).unwrap(), 48);
    let opening = [&CONTROL_MAGIC[..], &PROTOCOL_VERSION.to_le_bytes(), &message].concat();
    stream.write_all(&opening).await.unwrap();
    let mut answer = [0; 51];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(answer[0], 0);
    noise.read_message(&answer[3..], &mut []).unwrap();
    (stream, noise.into_transport_mode().unwrap())
}

fn sealed(noise: &mut snow::TransportState, plain: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; 2 + plain.len() + 16];
    let len = noise.write_message(plain, &mut frame[2..]).unwrap();
    frame[..2].copy_from_slice(&u16::try_from(len).unwrap().to_le_bytes());
    frame
}

/// Waits for the other end to close, and returns what it said before.
async fn end(stream: &mut TcpStream) -> Vec<u8> {
    let mut said = Vec::new();
    // A reset is an end too.
    let _ = stream.read_to_end(&mut said).await;
    said
}

#[test]
fn malformed_peers_cost_only_their_own_connection() {
    run(async {
        let key = key();
        let (a, mut b) = (node("a", Some(&key)).await, node("b", Some(&key)).await);
        talk(&a, &mut b, "before").await;
        let version = PROTOCOL_VERSION.to_le_bytes();
        let to = b.me.address;

        let mut noise_bytes = [0; 4096];
        getrandom(&mut noise_bytes);
        let mut random = TcpStream::connect(to).await.unwrap();
        random.write_all(&noise_bytes).await.unwrap();
        assert_eq!(end(&mut random).await, b"");
        talk(&a, &mut b, "after random bytes").await;

        let mut truncated = TcpStream::connect(to).await.unwrap();
        truncated.write_all(&[&CONTROL_MAGIC[..], &version, b"half"].concat()).await.unwrap();
        truncated.shutdown().await.unwrap();
        assert_eq!(end(&mut truncated).await, b"");
        talk(&a, &mut b, "after a truncated handshake").await;

        let mut forged = TcpStream::connect(to).await.unwrap();
        let opening = [&CONTROL_MAGIC[..], &version, &noise_bytes[..48]].concat();
        forged.write_all(&opening).await.unwrap();
        assert_eq!(end(&mut forged).await[0], 2);

        let mut newer = TcpStream::connect(to).await.unwrap();
        let opening = [&CONTROL_MAGIC[..], &[0xff, 0xff], &noise_bytes[..48]].concat();
        newer.write_all(&opening).await.unwrap();
        let refusal = [&[1][..], &version].concat();
        assert_eq!(end(&mut newer).await, refusal);
        talk(&a, &mut b, "after another version").await;

        // With the key, before and after its hello: lengths and frames that lie.
        let huge = u32::try_from(MESSAGE_BYTES_MAX + 1).unwrap().to_le_bytes();
        let lies: [&[u8]; 5] =
            [&huge, &u32::MAX.to_le_bytes(), b"", b"\x01\0\0\0ab", b"\x04\0\0\0\xff\xff\xff\xff"];
        for lie in lies {
            let (mut stream, mut noise) = insider(to, &key).await;
            stream.write_all(&sealed(&mut noise, lie)).await.unwrap();
            assert_eq!(end(&mut stream).await, b"", "{lie:?}");
        }
        for lie in &lies[..4] {
            let (mut stream, mut noise) = insider(to, &key).await;
            // A hello as it is on the wire: who, where, which cluster, whom it looks for.
            let peer = Peer { id: id("evil", 1), address: to };
            let hello = postcard::to_stdvec(&(&peer, 0u64, None::<NodeId>)).unwrap();
            let hello = [&u32::try_from(hello.len()).unwrap().to_le_bytes()[..], &hello].concat();
            stream.write_all(&sealed(&mut noise, &hello)).await.unwrap();
            stream.write_all(&sealed(&mut noise, b"\x02\0\0\0ok")).await.unwrap();
            let got = b.incoming.recv().await.unwrap();
            assert_eq!((got.from, got.bytes), (peer, b"ok".to_vec()));
            stream.write_all(&sealed(&mut noise, lie)).await.unwrap();
            end(&mut stream).await;
        }
        let (mut stream, mut noise) = insider(to, &key).await;
        let mut tampered = sealed(&mut noise, b"\x02\0\0\0ok");
        tampered[5] ^= 1;
        stream.write_all(&tampered).await.unwrap();
        assert_eq!(end(&mut stream).await, b"");
        let (mut stream, _) = insider(to, &key).await;
        stream.write_all(b"\x03\0abc").await.unwrap();
        assert_eq!(end(&mut stream).await, b"");

        talk(&a, &mut b, "after all of them").await;
        assert!(b.incoming.try_recv().is_err(), "nothing else arrived");
    });
}

fn getrandom(bytes: &mut [u8]) {
    for chunk in bytes.chunks_mut(32) {
        let key = key();
        chunk.copy_from_slice(&key.as_bytes()[..chunk.len()]);
    }
}

#[test]
fn a_flood_of_silent_strangers_keeps_no_peer_out() {
    run(async {
        let key = key();
        let (a, mut b) = (node("a", Some(&key)).await, node("b", Some(&key)).await);
        talk(&a, &mut b, "before").await;
        let mut silent = Vec::new();
        for n in 0..STRANGERS_MAX + 20 {
            let mut stream = TcpStream::connect(b.me.address).await.unwrap();
            // Some say a part, and then nothing for ever.
            stream.write_all(&CONTROL_MAGIC[..n % 5]).await.unwrap();
            silent.push(stream);
        }
        talk(&a, &mut b, "an old peer").await;
        talk(&node("c", Some(&key)).await, &mut b, "a new peer").await;
        // The first had to go for the last, and in time all of them go.
        for stream in &mut silent {
            assert_eq!(end(stream).await, b"");
        }
        talk(&a, &mut b, "after").await;
    });
}

#[test]
fn a_destination_that_is_down_costs_bounded_memory_and_is_found_again() {
    run(async {
        let key = key();
        let mut a = node("a", Some(&key)).await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let b = Peer { id: id("b", 1), address: listener.local_addr().unwrap() };
        drop(listener);
        for _ in 0..10_000 {
            a.peers.send(&b, vec![0; 100]);
        }
        let stats = a.peers.stats();
        assert_eq!((stats.queued, stats.queued_bytes), (QUEUE_MESSAGES_MAX, 25_600));
        assert_eq!((stats.dropped, stats.destinations), (9_744, 1));
        let Some(Event::Refused(address)) = a.events.recv().await else { panic!() };
        assert_eq!(address, b.address);
        // What waits too long is dropped, with nobody asking.
        while a.peers.stats().queued > 0 {
            // No event tells of it: the last attempt is refused before the last message is dropped.
            let _ = timeout(Duration::from_millis(50), a.events.recv()).await;
        }
        assert_eq!((a.peers.stats().dropped, a.peers.stats().queued_bytes), (10_000, 0));
        for _ in 0..10 {
            a.peers.send(&b, vec![0; MESSAGE_BYTES_MAX]);
        }
        assert_eq!(a.peers.stats().queued_bytes, QUEUE_BYTES_MAX);
        a.peers.send(&b, vec![0; MESSAGE_BYTES_MAX + 1]);
        assert_eq!(a.peers.stats().dropped, 10_007);

        let listener = TcpListener::bind(b.address).await.unwrap();
        let mut b = node_at("b", Some(&key), listener);
        assert_eq!(b.incoming.recv().await.unwrap().bytes.len(), MESSAGE_BYTES_MAX);
    });
}

#[test]
fn a_receiver_that_is_slow_slows_the_sender_down_and_keeps_the_order() {
    run(async {
        let key = key();
        let (a, mut b) = (node("a", Some(&key)).await, node("b", Some(&key)).await);
        let mut sent = 0u32;
        while a.peers.stats().dropped == 0 {
            let mut message = sent.to_le_bytes().to_vec();
            message.resize(64 << 10, 0);
            a.peers.send(&b.me, message);
            sent += 1;
            assert!(a.peers.stats().queued_bytes <= QUEUE_BYTES_MAX);
            tokio::task::yield_now().await;
        }
        // Those that waited too long may be missing, but none overtakes another.
        let mut last = None;
        for _ in 0..32 {
            let got = b.incoming.recv().await.unwrap();
            let number = got.bytes.first_chunk().map(|bytes| u32::from_le_bytes(*bytes));
            assert!(number > last, "{number:?} after {last:?}");
            last = number;
        }
    });
}

#[test]
fn a_message_for_another_life_is_dropped_and_contact_reaches_anybody() {
    run(async {
        let key = key();
        let (mut a, mut b) = (node("a", Some(&key)).await, node("b", Some(&key)).await);
        let before = Peer { id: id("b", 0), ..b.me.clone() };
        a.peers.send(&before, b"for the dead".to_vec());
        let Some(Event::OtherLife { expected, found }) = a.events.recv().await else { panic!() };
        assert_eq!((&expected, &found), (&before.id, &b.me.id));
        a.peers.contact(b.me.address, b"anybody".to_vec());
        assert_eq!(b.incoming.recv().await.unwrap().bytes, b"anybody");

        talk(&a, &mut b, "to this life").await;
        let old = std::mem::replace(&mut b.me.id, id("b", 2));
        b.peers.set_me(b.me.clone());
        talk(&a, &mut b, "to the next one").await;
        a.peers.send(&Peer { id: old.clone(), ..b.me.clone() }, b"too late".to_vec());
        let Some(Event::OtherLife { expected, .. }) = a.events.recv().await else { panic!() };
        assert_eq!(expected, old);

        a.me.id = id("a", 2);
        a.peers.set_me(a.me.clone());
        talk(&a, &mut b, "from the next one").await;
        assert!(b.incoming.try_recv().is_err());

        // A server that is told to join itself gets nothing.
        a.peers.contact(a.me.address, b"me?".to_vec());
        let dropped = a.peers.stats().dropped;
        while a.peers.stats().dropped == dropped {
            tokio::task::yield_now().await;
        }
        assert!(a.incoming.try_recv().is_err());
    });
}

#[test]
fn the_death_of_a_peer_is_noticed_and_its_return_too() {
    run(async {
        let key = key();
        let (mut a, mut b) = (node("a", Some(&key)).await, node("b", Some(&key)).await);
        talk(&a, &mut b, "alive").await;
        b.port.abort();
        let mut beat = tokio::time::interval(Duration::from_millis(10));
        let died = loop {
            tokio::select! {
                event = a.events.recv() => break event.unwrap(),
                _ = beat.tick() => a.peers.send(&b.me, b"beat".to_vec()),
            }
        };
        assert!(matches!(died, Event::Refused(at) if at == b.me.address));
        let listener = TcpListener::bind(b.me.address).await.unwrap();
        let mut b = node_at("b", Some(&key), listener);
        assert_eq!(b.incoming.recv().await.unwrap().bytes, b"beat");
    });
}

#[test]
fn data_sockets_reach_the_callback_with_only_their_magic_read() {
    run(async {
        let key = key();
        let mut b = node("b", Some(&key)).await;
        let mut client = TcpStream::connect(b.me.address).await.unwrap();
        client.write_all(&[&DATA_MAGIC[..], b"payload"].concat()).await.unwrap();
        let socket = b.data.recv().await.unwrap();
        assert_eq!(socket.peer_addr().unwrap(), client.local_addr().unwrap());
        let mut socket = TcpStream::from_std(socket).unwrap();
        let mut rest = [0; 7];
        socket.read_exact(&mut rest).await.unwrap();
        assert_eq!(&rest, b"payload");
        let empty = socket.into_std().unwrap();
        let nothing = std::io::Read::read(&mut &empty, &mut [0]).unwrap_err();
        assert_eq!(nothing.kind(), std::io::ErrorKind::WouldBlock);
    });
}
