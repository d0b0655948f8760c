//! The handshake that shows the cluster key, and who may begin it.
//!
//! ```text
//! dialer → acceptor   magic 4 │ version 2 │ Noise e 48
//! acceptor → dialer   status 1 │ version 2 │ Noise e, ee 48, only when the status is 0
//! then, in Noise       frame = length 2 │ sealed bytes;   message = length 4 │ bytes, in frames
//! ```
//!
//! What is said in clear is bound by the handshake's prologue or costs a log line only.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use rustix::net::sockopt;
use serde::{Deserialize, Serialize};
use snow::HandshakeState;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use super::{CONTROL_MAGIC, LinkError, PROTOCOL_VERSION, connection::Channel};
use crate::{
    cluster_key::{CLUSTER_KEY_LEN, ClusterKey},
    membership::{NodeId, Peer},
};

const PATTERN: &str = "Noise_NNpsk0_25519_ChaChaPoly_BLAKE2s";
const PROTOCOL_NAME: &[u8] = b"ringkeep control";
/// What servers without a cluster key use among themselves on one machine. No secret.
const WELL_KNOWN_KEY: [u8; CLUSTER_KEY_LEN] = *b"ringkeep: no key, loopback only.";

/// An ephemeral public key and the tag over an empty payload.
const HANDSHAKE_BYTES: usize = 32 + TAG_BYTES;
/// What sealing adds.
pub(super) const TAG_BYTES: usize = 16;
/// What a refused dialer may still have under way.
const DRAIN_BYTES_MAX: u64 = 4096;
const DRAIN_TIMEOUT: Duration = Duration::from_millis(500);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long the whole handshake may take.
pub(super) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(3);
const USER_TIMEOUT_MILLIS: u32 = 5_000;

/// The acceptor's first byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Status {
    /// The handshake goes on.
    Fine = 0,
    /// Another protocol version.
    Version = 1,
    /// The dialer's message does not open with the acceptor's key.
    KeyDiffers = 2,
    /// The acceptor has no key and the dialer is not on its machine.
    LoopbackOnly = 3,
}

/// What the dialer says first, sealed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Hello {
    /// Who dials, and where its own server listens.
    pub(super) from: Peer,
    /// The cluster it believes in, or zero.
    pub(super) cluster: u64,
    /// Which life it wants to reach, if it knows.
    pub(super) expects: Option<NodeId>,
}

/// Without a cluster key everybody on this machine is trusted, and nobody else.
pub(super) fn permitted(keyed: bool, ip: IpAddr) -> bool {
    keyed || ip.to_canonical().is_loopback()
}

/// Small messages at once; the sockets of dead peers close in about five seconds.
pub(super) fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, Duration::from_secs(2))?;
    sockopt::set_tcp_keepintvl(stream, Duration::from_secs(1))?;
    sockopt::set_tcp_keepcnt(stream, 3)?;
    sockopt::set_tcp_user_timeout(stream, USER_TIMEOUT_MILLIS)?;
    Ok(())
}

/// Connects to `address` and learns who answers there.
pub(super) async fn dial(
    address: SocketAddr,
    key: Option<&ClusterKey>,
    hello: &Hello,
) -> Result<(Channel, NodeId), LinkError> {
    if !permitted(key.is_some(), address.ip()) {
        return Err(LinkError::LoopbackOnly);
    }
    let stream = timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await??;
    tune(&stream)?;
    timeout(HANDSHAKE_TIMEOUT, greet(stream, key, hello)).await?
}

async fn greet(
    mut stream: TcpStream,
    key: Option<&ClusterKey>,
    hello: &Hello,
) -> Result<(Channel, NodeId), LinkError> {
    let mut noise = handshake(key, true)?;
    let mut opening = [0; 6 + HANDSHAKE_BYTES];
    opening[..4].copy_from_slice(&CONTROL_MAGIC);
    opening[4..6].copy_from_slice(&PROTOCOL_VERSION.to_le_bytes());
    noise.write_message(&[], &mut opening[6..]).map_err(LinkError::Noise)?;
    stream.write_all(&opening).await?;

    let status = stream.read_u8().await?;
    let version = stream.read_u16_le().await?;
    match status {
        s if s == Status::Fine as u8 => {}
        s if s == Status::Version as u8 => return Err(LinkError::Version { peer: version }),
        s if s == Status::KeyDiffers as u8 => return Err(LinkError::KeyDiffers),
        s if s == Status::LoopbackOnly as u8 => return Err(LinkError::PeerLoopbackOnly),
        _ => return Err(LinkError::Malformed("an unknown status")),
    }
    let mut answer = [0; HANDSHAKE_BYTES];
    stream.read_exact(&mut answer).await?;
    noise.read_message(&answer, &mut []).map_err(|_| LinkError::KeyDiffers)?;
    let mut channel = Channel::new(stream, noise)?;
    channel.tell(hello).await?;
    let who = channel.hear().await?;
    Ok((channel, who))
}

/// The acceptor's side, after the magic was read. Answers with `me`, whomever the dialer expects.
pub(super) async fn accept(
    mut stream: TcpStream,
    key: Option<&ClusterKey>,
    me: &NodeId,
) -> Result<(Channel, Hello), LinkError> {
    let version = stream.read_u16_le().await?;
    if version != PROTOCOL_VERSION {
        refuse(stream, Status::Version).await;
        return Err(LinkError::Version { peer: version });
    }
    let mut noise = handshake(key, false)?;
    let mut opening = [0; HANDSHAKE_BYTES];
    stream.read_exact(&mut opening).await?;
    if noise.read_message(&opening, &mut []).is_err() {
        refuse(stream, Status::KeyDiffers).await;
        return Err(LinkError::KeyDiffers);
    }
    let mut answer = [0; 3 + HANDSHAKE_BYTES];
    answer[..3].copy_from_slice(&head(Status::Fine));
    noise.write_message(&[], &mut answer[3..]).map_err(LinkError::Noise)?;
    stream.write_all(&answer).await?;
    let mut channel = Channel::new(stream, noise)?;
    let hello: Hello = channel.hear().await?;
    channel.tell(me).await?;
    Ok((channel, hello))
}

/// Says why and closes. What the dialer sent meanwhile is read, lest a reset overtake the answer.
pub(super) async fn refuse(mut stream: TcpStream, why: Status) {
    // It is refused either way; a dialer that does not listen misses the reason only.
    let _ = timeout(DRAIN_TIMEOUT, async {
        stream.write_all(&head(why)).await?;
        stream.shutdown().await?;
        tokio::io::copy(&mut stream.take(DRAIN_BYTES_MAX), &mut tokio::io::sink()).await
    })
    .await;
}

fn head(status: Status) -> [u8; 3] {
    let [low, high] = PROTOCOL_VERSION.to_le_bytes();
    [status as u8, low, high]
}

fn handshake(key: Option<&ClusterKey>, initiator: bool) -> Result<HandshakeState, LinkError> {
    let key = key.map_or(&WELL_KNOWN_KEY, ClusterKey::as_bytes);
    let mut prologue = PROTOCOL_NAME.to_vec();
    prologue.extend_from_slice(&PROTOCOL_VERSION.to_le_bytes());
    let build = || {
        let builder =
            snow::Builder::new(PATTERN.parse()?).psk(0, key)?.prologue(prologue.as_slice())?;
        if initiator { builder.build_initiator() } else { builder.build_responder() }
    };
    build().map_err(LinkError::Noise)
}
