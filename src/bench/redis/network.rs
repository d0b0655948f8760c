//! A network of their own for the servers that are started, where TCP is set up as ringkeep sets up its
//! sockets. Redis cannot choose the congestion control of a connection. A route can, in a network
//! namespace that ends with the servers; this system's stays as it is.

use std::{
    io,
    net::{Ipv4Addr, TcpListener, TcpStream},
};

use rustix::{
    fd::OwnedFd,
    net::{
        AddressFamily, RecvFlags, SendFlags, SocketType, netlink::SocketAddrNetlink, recv, sendto,
        socket, sockopt,
    },
    thread::{UnshareFlags, unshare_unsafe},
};

/// As ringkeep's sockets.
const WANTED: &str = "cubic";
/// The loopback device is always the first.
const LOOPBACK: u32 = 1;

/// What TCP between the servers uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Network {
    /// They have one of their own.
    pub(super) private: bool,
    /// Its congestion control.
    pub(super) congestion: String,
}

impl Network {
    /// Takes this thread into a new network, and with it whatever it starts. Where that is not allowed,
    /// the network stays the system's.
    ///
    /// # Errors
    /// Nobody can connect there.
    pub(super) fn enter() -> io::Result<Self> {
        // SAFETY: only the network of this thread changes; no descriptor is closed or shared by that.
        let private = unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.is_ok();
        if private {
            let kernel = Kernel::open()?;
            kernel.bring_up(LOOPBACK)?;
            // Without it connections use what the system uses.
            let _ = kernel.route(LOOPBACK, Ipv4Addr::LOCALHOST, WANTED);
        }
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let near = TcpStream::connect(listener.local_addr()?)?;
        Ok(Self { private, congestion: sockopt::tcp_congestion(&near)? })
    }

    /// It is what ringkeep's sockets use.
    pub(super) fn is_tuned(&self) -> bool {
        self.congestion == WANTED
    }
}

/// Whom devices and routes are asked of; see netlink(7) and rtnetlink(7).
struct Kernel(OwnedFd);

impl Kernel {
    fn open() -> io::Result<Self> {
        // Its first protocol, which has no number but 0, is that of devices and routes.
        Ok(Self(socket(AddressFamily::NETLINK, SocketType::RAW, None)?))
    }

    /// Turns a network device on.
    fn bring_up(&self, device: u32) -> io::Result<()> {
        const RTM_NEWLINK: u16 = 16;
        const UP: u32 = 1;
        let words = [0, device, UP, UP]; // any family and type; that flag, and no other
        self.ask(RTM_NEWLINK, 0, &words.map(u32::to_ne_bytes).concat())
    }

    /// Connections with an address of this machine use this congestion control.
    fn route(&self, device: u32, to: Ipv4Addr, congestion: &str) -> io::Result<()> {
        const RTM_NEWROUTE: u16 = 24;
        const REPLACE_OR_CREATE: u16 = 0x500;
        const IPV4: u8 = 2;
        const TABLE_LOCAL: u8 = 255;
        const BY_KERNEL: u8 = 2;
        const SCOPE_HOST: u8 = 254;
        const TYPE_LOCAL: u8 = 2;
        let (destination, out, source, metrics, algorithm) = (1, 4, 7, 8, 16);
        let whole = Ipv4Addr::BITS as u8;
        let mut body = vec![IPV4, whole, 0, 0, TABLE_LOCAL, BY_KERNEL, SCOPE_HOST, TYPE_LOCAL];
        body.extend([0; 4]); // no flags
        body.extend(attribute(destination, &to.octets()));
        body.extend(attribute(source, &to.octets()));
        body.extend(attribute(out, &device.to_ne_bytes()));
        body.extend(attribute(metrics, &attribute(algorithm, congestion.as_bytes())));
        self.ask(RTM_NEWROUTE, REPLACE_OR_CREATE, &body)
    }

    fn ask(&self, what: u16, flags: u16, body: &[u8]) -> io::Result<()> {
        const HEAD_BYTES: usize = 16;
        const REQUEST_AND_ACKNOWLEDGE: u16 = 1 | 4;
        let mut message = Vec::new();
        message.extend(((HEAD_BYTES + body.len()) as u32).to_ne_bytes());
        message.extend(what.to_ne_bytes());
        message.extend((REQUEST_AND_ACKNOWLEDGE | flags).to_ne_bytes());
        message.extend([0; 8]); // number and sender
        message.extend_from_slice(body);
        sendto(&self.0, &message, SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
        let mut answer = [0; 256];
        let (len, _) = recv(&self.0, &mut answer[..], RecvFlags::empty())?;
        // 0, or an error's number below 0.
        let code = answer[..len].get(HEAD_BYTES..HEAD_BYTES + 4);
        let code = code.and_then(|code| code.try_into().ok()).ok_or(io::ErrorKind::InvalidData)?;
        match i32::from_ne_bytes(code) {
            0 => Ok(()),
            error => Err(io::Error::from_raw_os_error(-error)),
        }
    }
}

/// Its length, its kind and what it says, filled up to whole words.
fn attribute(kind: u16, says: &[u8]) -> Vec<u8> {
    let len = 4 + says.len();
    let mut bytes = [(len as u16).to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend_from_slice(says);
    bytes.resize(len.next_multiple_of(4), 0);
    bytes
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    /// What a connection uses that somebody makes here.
    fn used() -> (String, TcpListener) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (far, _) = listener.accept().unwrap();
        let both = [&near, &far].map(|end| sockopt::tcp_congestion(end).unwrap());
        assert_eq!(both[0], both[1]);
        (both[0].clone(), listener)
    }

    #[test]
    fn a_private_network_has_what_is_wanted_and_the_systems_stays_as_it_is() {
        let before = used().0;
        let inside = thread::spawn(|| (Network::enter().unwrap(), used()));
        let (network, (inside, listener)) = inside.join().unwrap();
        assert_eq!(network.congestion, inside);
        assert_eq!(used().0, before);
        if network.private {
            assert!(network.is_tuned(), "{network:?}");
            assert!(TcpStream::connect(listener.local_addr().unwrap()).is_err(), "from outside");
        } else {
            eprintln!("NOT TESTED: no right to a network of one's own");
            assert_eq!(inside, before);
        }
    }
}
