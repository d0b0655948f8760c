//! One authenticated, encrypted connection: frames and messages after the handshake.

use std::{io, time::Duration};

use serde::{Serialize, de::DeserializeOwned};
use snow::{HandshakeState, TransportState};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    time::timeout,
};

use super::{LinkError, MESSAGE_BYTES_MAX, noise::TAG_BYTES};

const FRAME_BYTES_MAX: usize = u16::MAX as usize;
const CHUNK_BYTES_MAX: usize = FRAME_BYTES_MAX - TAG_BYTES;
const LENGTH_BYTES: usize = 4;
/// A hello and its answer hold two names and an address.
const HELLO_BYTES_MAX: usize = 1024;
/// Several heartbeats. What is larger goes past the buffer.
const READ_AT_ONCE: usize = 1024;
/// How long a frame may wait for the peer to take it.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);

/// A connection after its handshake.
#[derive(Debug)]
pub(super) struct Channel {
    /// Buffered, so that a short message is one system call.
    stream: BufReader<TcpStream>,
    noise: TransportState,
    sealed: Vec<u8>,
    open: Vec<u8>,
}

impl Channel {
    /// The handshake must be done.
    pub(super) fn new(stream: TcpStream, noise: HandshakeState) -> Result<Self, LinkError> {
        let noise = noise.into_transport_mode().map_err(LinkError::Noise)?;
        let stream = BufReader::with_capacity(READ_AT_ONCE, stream);
        Ok(Self { stream, noise, sealed: Vec::new(), open: Vec::new() })
    }

    /// Sends one message. After an error the connection is of no use any more.
    pub(super) async fn send(&mut self, bytes: &[u8]) -> Result<(), LinkError> {
        let len = u32::try_from(bytes.len()).ok().filter(|_| bytes.len() <= MESSAGE_BYTES_MAX);
        let len = len.ok_or(LinkError::Malformed("a message over the limit"))?;
        let (first, rest) = bytes.split_at(bytes.len().min(CHUNK_BYTES_MAX - LENGTH_BYTES));
        self.open.clear();
        self.open.extend_from_slice(&len.to_le_bytes());
        self.open.extend_from_slice(first);
        self.write_frame().await?;
        for chunk in rest.chunks(CHUNK_BYTES_MAX) {
            self.open.clear();
            self.open.extend_from_slice(chunk);
            self.write_frame().await?;
        }
        Ok(())
    }

    /// The next message.
    pub(super) async fn receive(&mut self) -> Result<Vec<u8>, LinkError> {
        self.receive_at_most(MESSAGE_BYTES_MAX).await
    }

    /// Returns when the other end has closed, or says something where it has nothing to say. Can be
    /// dropped and called again.
    pub(super) async fn closed(&self) -> LinkError {
        loop {
            let stream = self.stream.get_ref();
            if let Err(error) = stream.readable().await {
                return error.into();
            }
            match stream.try_read(&mut [0]) {
                Ok(0) => return LinkError::Closed,
                Ok(_) => return LinkError::Malformed("an answer where there is none"),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return error.into(),
            }
        }
    }

    async fn receive_at_most(&mut self, max: usize) -> Result<Vec<u8>, LinkError> {
        self.read_frame().await?;
        let Some((length, first)) = self.open.split_first_chunk::<LENGTH_BYTES>() else {
            return Err(LinkError::Malformed("a frame without a length"));
        };
        let len = u32::from_le_bytes(*length) as usize;
        if len > max {
            return Err(LinkError::Malformed("a message over the limit"));
        }
        // It grows with what arrives, not with what was announced.
        let mut message = first.to_vec();
        while message.len() < len {
            self.read_frame().await?;
            if self.open.is_empty() {
                return Err(LinkError::Malformed("an empty frame"));
            }
            message.extend_from_slice(&self.open);
        }
        if message.len() > len {
            return Err(LinkError::Malformed("a frame beyond its message"));
        }
        Ok(message)
    }

    /// Sends one value.
    pub(super) async fn tell<T: Serialize>(&mut self, what: &T) -> Result<(), LinkError> {
        let bytes = postcard::to_stdvec(what).map_err(|_| LinkError::Malformed("a hello"))?;
        self.send(&bytes).await
    }

    /// The next message as a short value.
    pub(super) async fn hear<T: DeserializeOwned>(&mut self) -> Result<T, LinkError> {
        let bytes = self.receive_at_most(HELLO_BYTES_MAX).await?;
        postcard::from_bytes(&bytes).map_err(|_| LinkError::Malformed("a hello"))
    }

    async fn write_frame(&mut self) -> Result<(), LinkError> {
        self.sealed.resize(2 + self.open.len() + TAG_BYTES, 0);
        let len = self
            .noise
            .write_message(&self.open, &mut self.sealed[2..])
            .map_err(LinkError::Noise)?;
        let prefix = u16::try_from(len).map_err(|_| LinkError::Malformed("a frame too long"))?;
        self.sealed[..2].copy_from_slice(&prefix.to_le_bytes());
        timeout(WRITE_TIMEOUT, self.stream.write_all(&self.sealed[..2 + len])).await??;
        Ok(())
    }

    async fn read_frame(&mut self) -> Result<(), LinkError> {
        let len = usize::from(self.stream.read_u16_le().await?);
        if len < TAG_BYTES {
            return Err(LinkError::Malformed("a frame too short to be sealed"));
        }
        self.sealed.resize(len, 0);
        self.stream.read_exact(&mut self.sealed).await?;
        self.open.resize(len, 0);
        let len =
            self.noise.read_message(&self.sealed, &mut self.open).map_err(LinkError::Noise)?;
        self.open.truncate(len);
        Ok(())
    }
}
