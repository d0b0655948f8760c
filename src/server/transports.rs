//! Opens the transports that a server is to use.

use std::net::IpAddr;

use super::{Policy, ServeError, system};
use crate::transport::{
    Kind, Transport,
    tcp::{Adopter, TcpTransport},
};

/// What a server sends and receives with.
pub(super) struct Opened {
    /// The best first; at least one.
    pub(super) transports: Vec<Box<dyn Transport>>,
    /// Takes the data connections that come in at the listener, when TCP is used.
    pub(super) adopter: Option<Adopter>,
}

/// Opens what the policy allows and the machine has.
///
/// # Errors
/// RDMA is wanted and cannot be had, or the system refused something that TCP needs.
pub(super) fn open(
    policy: Policy,
    device: Option<&str>,
    listen: IpAddr,
) -> Result<Opened, ServeError> {
    let mut opened = Opened { transports: Vec::new(), adopter: None };
    if policy.allows(Kind::Rdma) {
        match (rdma::open(device, listen), policy) {
            (Ok(transport), _) => opened.transports.push(transport),
            (Err(Lack { why, .. }), Policy::Rdma) => {
                return Err(ServeError::NoRdma { why, mend: rdma::MEND });
            }
            (Err(Lack { why, usual }), _) if usual && device.is_none() => {
                tracing::info!("mirrors travel over TCP: {why}; {}", rdma::MEND);
            }
            (Err(Lack { why, .. }), _) => {
                tracing::warn!("mirrors travel over TCP: {why}; {}", rdma::MEND);
            }
        }
    }
    if policy.allows(Kind::Tcp) {
        let tcp = TcpTransport::new(Default::default()).map_err(system("the TCP transport"))?;
        opened.adopter = Some(tcp.adopter());
        opened.transports.push(Box::new(tcp));
    }
    Ok(opened)
}

/// Why there is no RDMA.
struct Lack {
    why: String,
    /// As on most machines: nothing is broken.
    usual: bool,
}

/// The one place that opens an RDMA device.
#[cfg(feature = "rdma")]
mod rdma {
    use std::net::IpAddr;

    use super::Lack;
    use crate::transport::{
        Transport,
        verbs::{OpenError, VerbsTransport},
    };

    pub(super) const MEND: &str = "`ringkeep doctor` says what RDMA lacks on this machine";

    pub(super) fn open(device: Option<&str>, listen: IpAddr) -> Result<Box<dyn Transport>, Lack> {
        match VerbsTransport::open(device, listen) {
            Ok(transport) => {
                let (device, address) = (transport.device(), transport.address());
                tracing::info!(device, %address, "mirrors travel over RDMA where both ends have it");
                Ok(Box::new(transport))
            }
            Err(error) => {
                let usual = matches!(error, OpenError::NoDevice);
                Err(Lack { why: error.to_string(), usual })
            }
        }
    }
}

#[cfg(not(feature = "rdma"))]
mod rdma {
    use std::net::IpAddr;

    use super::Lack;
    use crate::transport::Transport;

    pub(super) const MEND: &str = "build it with the feature rdma";

    pub(super) fn open(_: Option<&str>, _: IpAddr) -> Result<Box<dyn Transport>, Lack> {
        Err(Lack { why: "this build has no RDMA".to_owned(), usual: true })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOOPBACK: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
    /// On no machine.
    const NO_DEVICE: Option<&str> = Some("no-such-device");

    fn kinds(opened: &Opened) -> Vec<Kind> {
        opened.transports.iter().map(|transport| transport.kind()).collect()
    }

    #[test]
    fn without_a_device_tcp_is_used_unless_that_is_forbidden() {
        for policy in [Policy::Auto, Policy::Tcp] {
            let opened = open(policy, NO_DEVICE, LOOPBACK).unwrap();
            assert_eq!((kinds(&opened), opened.adopter.is_some()), (vec![Kind::Tcp], true));
        }
        let refused = open(Policy::Rdma, NO_DEVICE, LOOPBACK).err().unwrap().to_string();
        assert!(refused.contains("RDMA") && refused.contains("--transport auto"), "{refused}");
    }
}
