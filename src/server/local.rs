//! The Unix socket on which local clients ask.

use std::{
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::PermissionsExt,
    },
    path::Path,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use rustix::net::sockopt::socket_peercred;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, Interest},
    net::{UnixListener, UnixStream},
    sync::Semaphore,
};

use super::{
    copies::Copied,
    failures::invalid,
    node::{Node, blocking},
    open::{Attached, Wish},
    store::Owner,
};
use crate::{
    client::wire,
    name::Name,
    protocol::{Failure, REQUEST_BYTES_MAX, Request, Response},
    region::layout::Layout,
};

/// Connections at once; more wait in the listener's queue.
const CONNECTIONS_MAX: usize = 4096;
/// How long a client may take to say what it wants, and to read what it is told.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Listens at `path`. A socket that a dead server left is replaced; that of a live one is not.
pub(super) fn listen(path: &Path) -> io::Result<UnixListener> {
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => {
            let why =
                format!("another server listens at {}; choose another --socket", path.display());
            return Err(io::Error::new(io::ErrorKind::AddrInUse, why));
        }
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path)?;
        }
        Err(_) => {}
    }
    let listener = UnixListener::bind(path)?;
    // Anybody may ask; what they may do is decided checkpoint by checkpoint.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666))?;
    Ok(listener)
}

impl Node {
    /// Serves local clients until the server stops.
    pub(super) async fn serve_clients(self: Rc<Self>, listener: UnixListener) {
        let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let Ok(place) = room.clone().acquire_owned().await else { return };
            match listener.accept().await {
                Ok((stream, _)) => {
                    let node = self.clone();
                    tokio::task::spawn_local(async move {
                        if let Err(error) = node.client(stream).await {
                            tracing::debug!(%error, "a client's connection ended");
                        }
                        drop(place);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "accepting a local client");
                    // Out of descriptors, most likely: some become free as clients leave.
                    self.wait_a_little(Duration::from_millis(100)).await;
                }
            }
        }
    }

    async fn client(self: &Rc<Self>, mut stream: UnixStream) -> io::Result<()> {
        let credentials = socket_peercred(stream.as_fd())?;
        let caller =
            Owner { uid: credentials.uid.as_raw(), gid: credentials.gid.as_raw(), mode: 0 };
        loop {
            let received = tokio::time::timeout(REQUEST_TIMEOUT, receive(&mut stream)).await;
            let Ok(Some((request, shown))) = received.unwrap_or(Ok(None)) else { return Ok(()) };
            let request = match request {
                Ok(request) => request,
                Err(failure) => {
                    // What follows a request that cannot be read cannot be read either.
                    return answer(&mut stream, &Response::Failed(failure), &[]).await;
                }
            };
            match self.client_request(request, shown, caller).await {
                Ok(Answer::Plain(response)) => answer(&mut stream, &response, &[]).await?,
                Ok(Answer::With(response, fd)) => {
                    let sent = answer(&mut stream, &response, std::slice::from_ref(&fd)).await;
                    // The last descriptor, if the client is gone: freeing much memory takes long.
                    blocking(move || drop(fd)).await;
                    sent?;
                }
                Ok(Answer::Attached(name, attached)) => {
                    let Attached { opened, descriptors, number } = *attached;
                    let response = Response::Opened(opened);
                    let sent = answer(&mut stream, &response, &descriptors).await;
                    drop(descriptors);
                    if sent.is_ok() {
                        // The connection is the attachment: it says nothing more until it ends.
                        let _ = stream.read(&mut [0; 1]).await;
                    }
                    self.detached(&name, number);
                    return sent;
                }
                Err(failure) => answer(&mut stream, &Response::Failed(failure), &[]).await?,
            }
        }
    }

    async fn client_request(
        self: &Rc<Self>,
        request: Request,
        shown: Option<OwnedFd>,
        caller: Owner,
    ) -> Result<Answer, Failure> {
        Ok(match request {
            Request::Open { name, capacity, slots, mode, take_over, existing } => {
                let layout = Layout::new(capacity, slots).map_err(|e| invalid(&e))?;
                let caller = Owner { mode: mode & 0o777, ..caller };
                let wish = Wish { name: name.clone(), layout, caller, take_over, existing };
                Answer::Attached(name, Box::new(self.open(wish).await?))
            }
            Request::Reattach { name, epoch } => {
                let shown = shown
                    .ok_or_else(|| invalid(&"attaching again needs the region's descriptor"))?;
                let attached = self.reattach(name.clone(), epoch, shown).await?;
                Answer::Attached(name, Box::new(attached))
            }
            Request::Get { name, version, maybe_stale } => {
                let copied = self.get(&name, version, caller, maybe_stale).await?;
                let Copied { version, len, maybe_stale, .. } = copied;
                let response = Response::Fetched { version, len, maybe_stale };
                Answer::With(response, copied.file)
            }
            Request::List => Answer::Plain(Response::Listing { checkpoints: self.list().await? }),
            Request::Status => Answer::Plain(Response::Status(Box::new(self.status().await?))),
            Request::Verify { name } => {
                Answer::Plain(Response::Verified { copies: self.verify(name, caller).await? })
            }
            Request::Remove { name, leftovers } => {
                self.remove(&name, caller, leftovers).await?;
                Answer::Plain(Response::Removed)
            }
        })
    }
}

enum Answer {
    Plain(Response),
    With(Response, OwnedFd),
    Attached(Name, Box<Attached>),
}

type Received = (Result<Request, Failure>, Option<OwnedFd>);

/// A request with the descriptor that came with it; `None` at the end of the connection.
async fn receive(stream: &mut UnixStream) -> io::Result<Option<Received>> {
    let mut length = [0; 4];
    let (got, mut descriptors) = loop {
        stream.readable().await?;
        let first =
            stream.try_io(Interest::READABLE, || wire::receive_with(stream.as_fd(), &mut length));
        match first {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            other => break other?,
        }
    };
    if got == 0 {
        return Ok(None);
    }
    stream.read_exact(&mut length[got..]).await?;
    let length = u32::from_le_bytes(length);
    if length > REQUEST_BYTES_MAX {
        let why = format!("a request has at most {REQUEST_BYTES_MAX} bytes, not {length}");
        return Ok(Some((Err(invalid(&why)), None)));
    }
    let mut body = vec![0; length as usize];
    stream.read_exact(&mut body).await?;
    let request = serde_json::from_slice(&body).map_err(|e| invalid(&e));
    Ok(Some((request, descriptors.pop())))
}

async fn answer(
    stream: &mut UnixStream,
    response: &Response,
    descriptors: &[OwnedFd],
) -> io::Result<()> {
    let sending = tokio::time::timeout(REQUEST_TIMEOUT, send(stream, response, descriptors));
    sending.await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

async fn send(
    stream: &mut UnixStream,
    response: &Response,
    descriptors: &[OwnedFd],
) -> io::Result<()> {
    let body = serde_json::to_vec(response)?;
    let mut message = (body.len() as u32).to_le_bytes().to_vec();
    message.extend_from_slice(&body);
    let borrowed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
    let sent = loop {
        stream.writable().await?;
        let sent = stream
            .try_io(Interest::WRITABLE, || wire::send_with(stream.as_fd(), &message, &borrowed));
        match sent {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            other => break other?,
        }
    };
    stream.write_all(&message[sent..]).await
}
