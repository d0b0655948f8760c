//! Which RDMA devices this machine has, and which one a server uses.

use std::{io, net::IpAddr};

use super::event_channel::address_of_gid;

/// The kind of GID that is an IP address, as `ibv_gid_type` numbers it.
pub(crate) const ROCE_V2: u32 = 2;

/// One RDMA device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Its name, as `rdma link` shows it without the port.
    pub name: String,
    /// The addresses of its first port that others can reach: its RoCE v2 GIDs.
    pub addresses: Vec<IpAddr>,
    /// Why it cannot be used, if it cannot.
    pub problem: Option<String>,
}

/// Why no device can be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// There is none.
    #[error(
        "this machine has no RDMA device; without special hardware, Soft-RoCE makes one: \
         soft-roce/setup.sh"
    )]
    NoDevice,
    /// There is none of this name.
    #[error("there is no RDMA device {wanted}; there are: {}", have.join(", "))]
    NoSuchDevice {
        /// The name that was asked for.
        wanted: String,
        /// Those that there are.
        have: Vec<String>,
    },
    /// None of those in question is usable.
    #[error("RDMA device {name} cannot be used: {problem}")]
    Unusable {
        /// The device.
        name: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The system refused.
    #[error("opening RDMA device {name}: {source}")]
    System {
        /// The device.
        name: String,
        /// The system's answer.
        source: io::Error,
    },
}

/// All devices, usable or not. Empty also where the kernel has no RDMA at all.
pub fn devices() -> Vec<Found> {
    let Ok(list) = ibverbs::devices() else { return Vec::new() };
    let look = |device: ibverbs::Device<'_>| {
        let name = device.name().map(|name| name.to_string_lossy().into_owned())?;
        Some(match device.open() {
            Ok(context) => {
                let addresses = usable_addresses(context.gid_table());
                let problem = addresses.is_empty().then(|| {
                    "its interface has no address: give it one (`ip addr add`) and bring it up"
                        .to_owned()
                });
                Found { name, addresses, problem }
            }
            Err(error) => Found { name, addresses: Vec::new(), problem: Some(error.to_string()) },
        })
    };
    list.iter().filter_map(look).collect()
}

/// RoCE v2 addresses, IPv4 first. Link-local ones mean nothing to another node.
fn usable_addresses(gids: &[ibverbs::GidEntry]) -> Vec<IpAddr> {
    let routable = gids.iter().filter(|entry| entry.gid_type == ROCE_V2);
    let mut addresses: Vec<IpAddr> = routable
        .map(|entry| {
            let halves = [entry.gid.subnet_prefix(), entry.gid.interface_id()];
            address_of_gid((u128::from(halves[0]) << 64 | u128::from(halves[1])).to_be_bytes())
        })
        .filter(|ip| !matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local()))
        .collect();
    addresses.sort_unstable(); // IPv4 sorts before IPv6
    addresses.dedup();
    addresses
}

/// The device and the address of it to use: the one that is named, else the one with the address
/// at which the server listens, else the first that works.
pub(super) fn choose(
    found: &[Found],
    wanted: Option<&str>,
    listen: IpAddr,
) -> Result<(String, IpAddr), OpenError> {
    let mut candidates: Vec<_> =
        found.iter().filter(|d| wanted.is_none_or(|wanted| d.name == wanted)).collect();
    candidates.sort_by_key(|d| !d.addresses.contains(&listen));
    if let Some(device) = candidates.iter().find(|d| d.problem.is_none())
        && let Some(first) = device.addresses.first()
    {
        let same = device.addresses.iter().find(|ip| **ip == listen);
        return Ok((device.name.clone(), *same.unwrap_or(first)));
    }
    Err(match (candidates.first(), wanted) {
        (Some(device), _) => OpenError::Unusable {
            name: device.name.clone(),
            problem: device.problem.clone().unwrap_or_default(),
        },
        (None, Some(wanted)) if !found.is_empty() => OpenError::NoSuchDevice {
            wanted: wanted.to_owned(),
            have: found.iter().map(|d| d.name.clone()).collect(),
        },
        (None, _) => OpenError::NoDevice,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(name: &str, addresses: &[&str]) -> Found {
        let addresses: Vec<IpAddr> = addresses.iter().map(|a| a.parse().unwrap()).collect();
        let problem = addresses.is_empty().then(|| "down".to_owned());
        Found { name: name.into(), addresses, problem }
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn the_named_device_or_the_one_of_the_address_or_the_first_that_works() {
        let found =
            [device("a", &[]), device("b", &["10.0.0.1"]), device("c", &["10.1.0.1", "10.2.0.1"])];
        let chosen = |wanted, listen| choose(&found, wanted, ip(listen)).unwrap();
        assert_eq!(chosen(None, "127.0.0.1"), ("b".into(), ip("10.0.0.1")));
        assert_eq!(chosen(None, "10.2.0.1"), ("c".into(), ip("10.2.0.1")));
        assert_eq!(chosen(Some("c"), "10.0.0.1"), ("c".into(), ip("10.1.0.1")));
    }

    #[test]
    fn what_cannot_be_had_says_why() {
        let found = [device("a", &[])];
        let error = |found: &[Found], wanted| choose(found, wanted, ip("::1")).unwrap_err();
        assert!(matches!(error(&[], None), OpenError::NoDevice));
        assert!(matches!(error(&[], Some("x")), OpenError::NoDevice));
        assert!(error(&found, Some("x")).to_string().ends_with("there are: a"));
        assert!(error(&found, None).to_string().ends_with("a cannot be used: down"));
    }
}
