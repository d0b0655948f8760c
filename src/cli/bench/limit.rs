//! What the machine could do instead: the limits of whatever goes to another node.

use std::net::SocketAddr;

use super::{Contenders, Failure, failure, waiting};
use crate::{
    bench::{
        handed::HandedPingPong,
        limits::{PingPong, Stream},
        report::Row,
    },
    cli::values::Poll,
    protocol::{Direction, Status},
    transport::Kind,
};

/// The limit of a mirrored commit: three parties, as a service, its server and the holder's.
pub(super) const HANDED: &str = "handed over, round trip";
/// The second one: two parties.
pub(super) const ROUND_TRIP: &str = "copy, round trip of TCP";
/// The limit of what is moved as a whole.
pub(super) const STREAM: &str = "one of a stream of TCP";
#[cfg(feature = "rdma")]
const RDMA_WRITE: &str = "RDMA write";
#[cfg(feature = "rdma")]
const RDMA_STREAM: &str = "one of a stream of RDMA";

/// What stands beside whatever goes to another node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Limit {
    /// TCP over loopback.
    Tcp,
    /// Writes of the device with itself.
    #[cfg(feature = "rdma")]
    Rdma,
    /// Nothing that could be timed here.
    Unknown(Why),
}

/// Why there is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Why {
    #[error("the mirrors lie at {0}, and what the way there can do cannot be timed from here")]
    Elsewhere(SocketAddr),
    #[cfg(not(feature = "rdma"))]
    #[error("the servers use RDMA, which this build cannot time")]
    NoRdma,
    #[error("the servers use a transport that is for tests")]
    Fake,
}

impl Limit {
    /// As a server says where its mirrors are, and what goes there.
    pub(super) fn of(status: &Status) -> Self {
        let to_holder = status.links.iter().find(|link| {
            link.direction == Direction::To && Some(&link.node) == status.predecessor.as_ref()
        });
        let transport = to_holder.and_then(|link| link.transport).unwrap_or(status.transport);
        Self::between(status.predecessor_address, transport)
    }

    fn between(holder: Option<SocketAddr>, transport: Kind) -> Self {
        match (holder, transport) {
            (Some(address), _) if !address.ip().is_loopback() => {
                Self::Unknown(Why::Elsewhere(address))
            }
            (_, Kind::Tcp) => Self::Tcp,
            #[cfg(feature = "rdma")]
            (_, Kind::Rdma) => Self::Rdma,
            #[cfg(not(feature = "rdma"))]
            (_, Kind::Rdma) => Self::Unknown(Why::NoRdma),
            (_, Kind::Fake) => Self::Unknown(Why::Fake),
        }
    }

    /// Why there is none.
    pub(super) fn why_not(self) -> Option<String> {
        match self {
            Self::Unknown(why) => Some(why.to_string()),
            _ => None,
        }
    }

    /// What one commit of so many bytes cannot do without; the first is the limit.
    pub(super) fn of_commit(self, len: u64, poll: Poll) -> Result<Contenders<'static>, Failure> {
        let (len, waiting) = (len as usize, waiting(poll));
        let failed = |error: std::io::Error| failure(error.into());
        Ok(match self {
            Self::Tcp => vec![
                (HANDED.to_owned(), Box::new(HandedPingPong::start(len, waiting).map_err(failed)?)),
                (ROUND_TRIP.to_owned(), Box::new(PingPong::start(len, waiting).map_err(failed)?)),
            ],
            #[cfg(feature = "rdma")]
            Self::Rdma => vec![(RDMA_WRITE.to_owned(), Box::new(device::writes(len, 1)?))],
            Self::Unknown(_) => Vec::new(),
        })
    }

    /// What a move of so many bytes cannot do without; the first is the limit.
    pub(super) fn of_move(self, len: u64, poll: Poll) -> Result<Contenders<'static>, Failure> {
        let (len, waiting) = (len as usize, waiting(poll));
        let failed = |error: std::io::Error| failure(error.into());
        Ok(match self {
            Self::Tcp => vec![
                (STREAM.to_owned(), Box::new(Stream::start(len, waiting).map_err(failed)?)),
                (ROUND_TRIP.to_owned(), Box::new(PingPong::start(len, waiting).map_err(failed)?)),
            ],
            #[cfg(feature = "rdma")]
            Self::Rdma => vec![
                (RDMA_STREAM.to_owned(), Box::new(device::writes(len, device::WINDOW)?)),
                (RDMA_WRITE.to_owned(), Box::new(device::writes(len, 1)?)),
            ],
            Self::Unknown(_) => Vec::new(),
        })
    }
}

/// A row beside its limits, the first of which is the one that counts.
pub(super) fn beside(row: Row, limits: &[Row]) -> Row {
    match limits {
        [] => row,
        [limit] => row.beside(limit),
        [limit, bare, ..] => row.beside(limit).beside_bare(bare),
    }
}

/// The limits' own rows.
pub(super) fn rows(limits: &[Row]) -> impl Iterator<Item = Row> {
    limits.iter().enumerate().map(|(number, row)| match number {
        0 => beside(row.clone(), limits).as_limit(),
        _ => beside(row.clone(), limits).as_bare_limit(),
    })
}

/// RDMA devices.
#[cfg(feature = "rdma")]
pub(super) mod device {
    use super::{Contenders, Failure, RDMA_STREAM, RDMA_WRITE, failure};
    use crate::{
        bench::rdma::Writes,
        cli::{exit::Exit, values::TransportChoice},
        transport::verbs::discovery,
    };

    /// Under way at a time in a stream of writes.
    pub(super) const WINDOW: usize = 16;

    pub(super) fn writes(len: usize, window: usize) -> Result<Writes, Failure> {
        Writes::open(len, window).map_err(|error| failure(error.into()))
    }

    /// Whether a device can be timed.
    pub(in super::super) fn is_there(choice: TransportChoice) -> Result<bool, Failure> {
        let is_there = discovery::devices().iter().any(|device| device.problem.is_none());
        match (is_there, choice) {
            (false, TransportChoice::Rdma) => {
                let why = "--transport rdma: no RDMA device can be used";
                Err(Failure::new(Exit::Failed, why).hint("`ringkeep doctor` says what is missing"))
            }
            (is_there, _) => Ok(is_there),
        }
    }

    /// A write, and one of a stream.
    pub(in super::super) fn both(len: usize) -> Result<Contenders<'static>, Failure> {
        Ok(vec![
            (RDMA_WRITE.to_owned(), Box::new(writes(len, 1)?)),
            (RDMA_STREAM.to_owned(), Box::new(writes(len, WINDOW)?)),
        ])
    }
}

/// None in this build.
#[cfg(not(feature = "rdma"))]
pub(super) mod device {
    use super::{Contenders, Failure};
    use crate::cli::{exit::Exit, values::TransportChoice};

    pub(in super::super) fn is_there(choice: TransportChoice) -> Result<bool, Failure> {
        match choice {
            TransportChoice::Rdma => {
                let why = "--transport rdma: this build has no RDMA";
                Err(Failure::new(Exit::Failed, why).hint("build it with the feature rdma"))
            }
            _ => Ok(false),
        }
    }

    pub(in super::super) fn both(_: usize) -> Result<Contenders<'static>, Failure> {
        Ok(Vec::new())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::bench::turns::Times;

    #[test]
    fn the_limit_is_that_of_the_way_to_the_mirrors() {
        let at = |text: &str| Some(text.parse().unwrap());
        assert_eq!(Limit::between(None, Kind::Tcp), Limit::Tcp);
        for here in ["127.0.0.1:1", "127.9.9.9:1", "[::1]:1"] {
            assert_eq!(Limit::between(at(here), Kind::Tcp), Limit::Tcp);
            assert_ne!(Limit::between(at(here), Kind::Rdma), Limit::Tcp);
        }
        for transport in [Kind::Tcp, Kind::Rdma] {
            let far = Limit::between(at("10.0.0.2:7741"), transport);
            assert_eq!(far, Limit::Unknown(Why::Elsewhere("10.0.0.2:7741".parse().unwrap())));
            assert!(far.why_not().is_some_and(|why| why.contains("10.0.0.2:7741")));
            assert!(far.of_commit(64, Poll::Adaptive).is_ok_and(|all| all.is_empty()));
            assert!(far.of_move(64, Poll::Adaptive).is_ok_and(|all| all.is_empty()));
        }
        assert_eq!(Limit::Tcp.why_not(), None);
    }

    #[test]
    fn each_limit_is_once_itself_and_the_first_one_counts() {
        let row =
            |what: &str, micros| Row::new(what, 8, 8, &Times::of([Duration::from_micros(micros)]));
        let limits = [row("handed over", 20), row("bare", 10)];
        let near = |of: Option<f64>, ratio: f64| of.is_some_and(|of| (of - ratio).abs() < 0.01);
        let ours = beside(row("ours", 40), &limits);
        assert!(near(ours.of_limit, 2.0) && near(ours.of_bare, 4.0), "{ours:?}");
        let own: Vec<Row> = rows(&limits).collect();
        let [first, second] = &own[..] else { panic!("{own:?}") };
        assert!(first.is_limit && second.is_limit);
        assert!(near(first.of_limit, 1.0) && near(first.of_bare, 2.0), "{first:?}");
        assert!(near(second.of_limit, 0.5) && near(second.of_bare, 1.0), "{second:?}");
        let alone = beside(row("ours", 40), &limits[..1]);
        assert!(near(alone.of_limit, 2.0) && alone.of_bare.is_none());
        assert_eq!(beside(row("ours", 40), &[]).of_limit, None);
    }
}
