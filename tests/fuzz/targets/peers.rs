//! The peers' port: who has no cluster key and says what he likes, and who has it and seals what he
//! likes.
//!
//! Without the key nothing is delivered. With it exactly those messages are that are well formed, up
//! to the first that is not, in the name that the hello gave. The connection is closed in any case.
#![no_main]

use std::{cell::Cell, rc::Rc};

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use ringkeep::{
    cluster_key::ClusterKey,
    membership::{NodeId, Peer},
    server::peers::{CONTROL_MAGIC, Config, Incoming, MESSAGE_BYTES_MAX, PROTOCOL_VERSION, Peers},
    transport::tcp::DATA_MAGIC,
};
use ringkeep_fuzz::{Number, member};
use snow::{Builder, TransportState};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    runtime::Runtime,
    sync::mpsc,
    task::LocalSet,
};

const PATTERN: &str = "Noise_NNpsk0_25519_ChaChaPoly_BLAKE2s";
/// Longest hello: that of `server/peers/connection.rs`.
const HELLO_BYTES_MAX: usize = 1024;
const TAG_BYTES: usize = 16;

#[derive(Debug, Arbitrary)]
enum Input<'a> {
    /// What a stranger sends.
    Stranger { magic: bool, version: bool, bytes: &'a [u8] },
    /// What a peer sends after the handshake.
    Peer { hello: Hello<'a>, frames: Vec<Frame<'a>> },
}

#[derive(Debug, Arbitrary)]
enum Hello<'a> {
    Right { which: u8, cluster: u64, expects: Option<u8> },
    Bytes(&'a [u8]),
}

#[derive(Debug, Arbitrary)]
enum Frame<'a> {
    /// A message in so many frames, with this length before it.
    Message { len: Number, bytes: &'a [u8], cut: Option<u8> },
    /// A frame's content.
    Sealed(&'a [u8]),
    /// Nothing that was sealed.
    Raw(&'a [u8]),
}

struct Rig {
    runtime: Runtime,
    local: LocalSet,
    address: std::net::SocketAddr,
    incoming: mpsc::Receiver<Incoming>,
}

thread_local! {
    /// Never dropped: its tasks need thread-locals that may be gone then.
    static RIG: Cell<Option<&'static mut Rig>> = const { Cell::new(None) };
}

fn key() -> ClusterKey {
    ClusterKey::parse(&"0f".repeat(32)).expect("a key")
}

fuzz_target!(|input: Input<'_>| {
    let rig = RIG.take().unwrap_or_else(|| Box::leak(Box::new(Rig::new())));
    rig.run(&input);
    RIG.set(Some(rig));
});

impl Rig {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let (runtime, local) = (runtime.expect("a runtime"), LocalSet::new());
        let (address, incoming) = local.block_on(&runtime, async {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
            let address = listener.local_addr().expect("an address");
            let me = Peer { id: member(0, 1).id, address };
            let (cluster, data_magic) = (Rc::new(Cell::new(1)), DATA_MAGIC);
            let config = Config { me, cluster, key: Some(key()), data_magic };
            let (peers, incoming, _) = Peers::new(config);
            peers.serve(listener, |_| {});
            (address, incoming)
        });
        Self { runtime, local, address, incoming }
    }

    fn run(&mut self, input: &Input<'_>) {
        let address = self.address;
        let expected = self.local.block_on(&self.runtime, async {
            let mut socket = TcpStream::connect(address).await.expect("connected");
            let expected = match input {
                Input::Stranger { magic, version, bytes } => {
                    let mut all = Vec::new();
                    if *magic {
                        all.extend(CONTROL_MAGIC);
                        all.extend((PROTOCOL_VERSION ^ u16::from(!version)).to_le_bytes());
                    }
                    all.extend(*bytes);
                    let _ = socket.write_all(&all).await;
                    Vec::new()
                }
                Input::Peer { hello, frames } => talk(&mut socket, hello, frames).await,
            };
            // It hangs up by itself.
            let _ = socket.shutdown().await;
            let mut heard = Vec::new();
            let _ = socket.read_to_end(&mut heard).await;
            expected
        });
        let mut delivered = Vec::new();
        while let Ok(Incoming { from, bytes }) = self.incoming.try_recv() {
            delivered.push((from, bytes));
        }
        assert_eq!(delivered, expected);
    }
}

/// What has to be delivered.
async fn talk(
    socket: &mut TcpStream,
    hello: &Hello<'_>,
    frames: &[Frame<'_>],
) -> Vec<(Peer, Vec<u8>)> {
    let mut prologue = b"ringkeep control".to_vec();
    prologue.extend(PROTOCOL_VERSION.to_le_bytes());
    let key = key();
    let builder = Builder::new(PATTERN.parse().expect("a pattern"));
    let builder = builder.psk(0, key.as_bytes()).expect("a key");
    let builder = builder.prologue(&prologue).expect("a prologue");
    let mut noise = builder.build_initiator().expect("an initiator");
    let mut opening = [0; 54];
    opening[..4].copy_from_slice(&CONTROL_MAGIC);
    opening[4..6].copy_from_slice(&PROTOCOL_VERSION.to_le_bytes());
    noise.write_message(&[], &mut opening[6..]).expect("an opening");
    socket.write_all(&opening).await.expect("room");
    let mut answer = [0; 51];
    socket.read_exact(&mut answer).await.expect("an answer");
    assert_eq!(answer[0], 0, "the key is right");
    noise.read_message(&answer[3..], &mut []).expect("the same key");
    let mut noise = noise.into_transport_mode().expect("done");

    let (sender, mut said) = match hello {
        Hello::Right { which, cluster, expects } => {
            let from = Peer::from(&member(*which, 1));
            let expects = expects.map(|which| member(which, 1).id);
            let hello = (&from, cluster, &expects);
            let bytes = postcard::to_stdvec(&hello).expect("a hello");
            let let_in = expects.is_none_or(|id| id == member(0, 1).id);
            (let_in.then_some(from), bytes)
        }
        Hello::Bytes(bytes) => {
            let read = postcard::from_bytes::<(Peer, u64, Option<NodeId>)>(bytes).ok();
            let read = read.filter(|_| bytes.len() <= HELLO_BYTES_MAX);
            let let_in =
                read.filter(|(.., expects)| expects.is_none() || *expects == Some(member(0, 1).id));
            (let_in.map(|(from, ..)| from), bytes.to_vec())
        }
    };
    let mut framed = (said.len() as u32).to_le_bytes().to_vec();
    framed.append(&mut said);
    let sealed = seal(&mut noise, &framed);
    if socket.write_all(&sealed).await.is_err() {
        return Vec::new();
    }
    let mut expect = Expected { messages: Vec::new(), begun: None, over: sender.is_none() };
    for frame in frames.iter().take(30) {
        for (bytes, content) in frame.sealed(&mut noise) {
            if socket.write_all(&bytes).await.is_err() {
                assert!(expect.over, "a connection was closed for nothing");
            }
            expect.hear(content.as_deref());
        }
    }
    let messages = expect.messages.into_iter();
    sender.map_or(Vec::new(), |from| messages.map(|bytes| (from.clone(), bytes)).collect())
}

fn seal(noise: &mut TransportState, content: &[u8]) -> Vec<u8> {
    let mut sealed = vec![0; 2 + content.len() + TAG_BYTES];
    let len = noise.write_message(content, &mut sealed[2..]).expect("short enough");
    sealed[..2].copy_from_slice(&(len as u16).to_le_bytes());
    sealed
}

impl Frame<'_> {
    /// The bytes of each frame, and what is sealed in it.
    fn sealed(&self, noise: &mut TransportState) -> Vec<(Vec<u8>, Option<Vec<u8>>)> {
        match self {
            Self::Raw([]) => Vec::new(),
            Self::Raw(bytes) => vec![(bytes.to_vec(), None)],
            Self::Sealed(bytes) => vec![(seal(noise, bytes), Some(bytes.to_vec()))],
            Self::Message { len, bytes, cut } => {
                let len = len.beside(bytes.len() as u64) as u32;
                let content = [&len.to_le_bytes(), *bytes].concat();
                let at = cut.map_or(content.len(), |at| usize::from(at).min(content.len()));
                let (first, second) = content.split_at(at);
                let parts = [Some(first), Some(second).filter(|rest| !rest.is_empty())];
                let parts = parts.into_iter().flatten();
                parts.map(|part| (seal(noise, part), Some(part.to_vec()))).collect()
            }
        }
    }
}

/// The rules of messages in frames, written once more.
struct Expected {
    messages: Vec<Vec<u8>>,
    /// A message's length, and what of it has come.
    begun: Option<(usize, Vec<u8>)>,
    over: bool,
}

impl Expected {
    fn hear(&mut self, content: Option<&[u8]>) {
        if self.over {
            return;
        }
        // Bytes that nobody sealed may be the begin of a frame, which then is not right.
        let Some(content) = content else {
            self.over = true;
            return;
        };
        let (len, mut bytes) = match self.begun.take() {
            Some((_, _)) if content.is_empty() => return self.over = true,
            Some((len, bytes)) => (len, [&bytes, content].concat()),
            None => match content.split_first_chunk() {
                Some((len, first)) => (u32::from_le_bytes(*len) as usize, first.to_vec()),
                None => return self.over = true,
            },
        };
        if len > MESSAGE_BYTES_MAX || bytes.len() > len {
            self.over = true;
        } else if bytes.len() == len {
            self.messages.push(std::mem::take(&mut bytes));
        } else {
            self.begun = Some((len, bytes));
        }
    }
}
