//! A device sends to itself: does it move bytes at all?
//!
//! With the crate `ibverbs`, whose two-sided operations are enough here. Its edges, and what is done
//! about them:
//!
//! * Most of its `Drop`s panic when the kernel refuses, as it does when a device is removed: nothing
//!   made here is dropped. The kernel lets all of it go when the process ends, soon, and the device
//!   may write to the memory until then.
//! * It drops a queue pair itself when a handshake fails: a panic of that is caught, and cannot meet
//!   a second one.
//! * It finds addresses by their place in its table, and panics when that is not their index.
//! * It knows port 1 only.

use std::{
    io,
    mem::ManuallyDrop,
    panic::{self, AssertUnwindSafe},
    thread,
    time::{Duration, Instant},
};

use ibverbs::{GidEntry, ibv_qp_type, ibv_wc};

use crate::transport::verbs::{discovery::ROCE_V2, is_memlock};

/// Until both ends of the send have completed.
const PATIENCE: Duration = Duration::from_secs(2);
/// Between two looks.
const PAUSE: Duration = Duration::from_micros(100);
/// The one port that the crate knows.
const PORT: u32 = 1;
/// Until an acknowledgement is missed: 4 µs times two to the power of this, 67 ms.
const ACK_TIMEOUT: u8 = 14;
/// Sends again after a missed acknowledgement. All of them end before patience does.
const RETRIES: u8 = 7;
// The two requests.
const RECEIVE: u64 = 1;
const SEND: u64 = 2;
/// What is sent.
const MESSAGE_LEN: usize = 256;

/// Why nothing arrived.
#[derive(Debug, thiserror::Error)]
pub enum LoopbackError {
    /// The device went away.
    #[error("the device is not there any more")]
    NoDevice,
    /// The crate cannot use any of the device's addresses.
    #[error("not tried: the device's address table has gaps")]
    NoPlainAddress,
    /// The system refused.
    #[error("{step}: {source}")]
    System {
        /// What was tried.
        step: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// The device gave up.
    #[error("{what} ended with {}", status(*.code))]
    Work {
        /// The send or the receive.
        what: &'static str,
        /// The status of `ibv_wc`.
        code: u32,
    },
    /// Nothing happened.
    #[error("nothing arrived within {} s", PATIENCE.as_secs())]
    TimedOut,
    /// Something else arrived.
    #[error("other bytes arrived than were sent")]
    WrongBytes,
    /// The crate gave up.
    #[error("the library panicked")]
    Panicked,
}

impl LoopbackError {
    /// Whether the limit of locked memory is the reason.
    pub fn is_memlock(&self) -> bool {
        let Self::System { step: REGISTERING, source } = self else { return false };
        is_memlock(source)
    }

    /// Whether this says nothing about the device.
    pub fn is_untried(&self) -> bool {
        matches!(self, Self::NoPlainAddress)
    }
}

const REGISTERING: &str = "registering 256 bytes";

/// The words for the statuses that a broken path gives.
fn status(code: u32) -> String {
    match code {
        12 => "no acknowledgement after all retries".to_owned(),
        13 => "no receive posted in time".to_owned(),
        5 => "the queue pair broken".to_owned(),
        code => format!("completion status {code}"),
    }
}

/// Sends a message from the device to itself and says how long it took.
///
/// For a process that ends soon: what it makes stays until then.
///
/// # Errors
/// It did not arrive, or not whole.
pub fn send_to_itself(device: &str) -> Result<Duration, LoopbackError> {
    // Nothing is shared with the caller that a panic could leave half done.
    panic::catch_unwind(AssertUnwindSafe(|| attempt(device)))
        .unwrap_or(Err(LoopbackError::Panicked))
}

fn attempt(name: &str) -> Result<Duration, LoopbackError> {
    let failed = |step| move |source| LoopbackError::System { step, source };
    let devices = ibverbs::devices().map_err(failed("listing devices"))?;
    let device = devices
        .iter()
        .find(|device| device.name().is_some_and(|n| n.to_bytes() == name.as_bytes()))
        .ok_or(LoopbackError::NoDevice)?;
    let context = ManuallyDrop::new(device.open().map_err(failed("opening the device"))?);
    let gid_index = plain_address(context.gid_table()).ok_or(LoopbackError::NoPlainAddress)?;
    let queue = context.create_cq(2, 0).map_err(failed("making a completion queue"))?;
    let queue = ManuallyDrop::new(queue);
    let domain = context.alloc_pd().map_err(failed("making a protection domain"))?;
    let domain = ManuallyDrop::new(domain);
    let region =
        || domain.allocate::<u8>(MESSAGE_LEN).map(ManuallyDrop::new).map_err(failed(REGISTERING));
    let (mut sent, mut received) = (region()?, region()?);
    for (at, byte) in sent.iter_mut().enumerate() {
        *byte = (at as u8).wrapping_mul(167).wrapping_add(13);
    }
    let prepared = domain
        .create_qp(&queue, &queue, ibv_qp_type::IBV_QPT_RC)
        .set_gid_index(gid_index)
        .set_timeout(ACK_TIMEOUT)
        .set_retry_count(RETRIES)
        .set_rnr_retry(RETRIES - 1) // 7 would be without end
        .build()
        .map_err(failed("making a queue pair"))?;
    let itself = prepared.endpoint();
    let pair = prepared.handshake(itself).map_err(failed("connecting a queue pair to itself"))?;
    let mut pair = ManuallyDrop::new(pair);

    let begin = Instant::now();
    // SAFETY: the region is never freed, and read only after its completion.
    unsafe { pair.post_receive(&mut received, .., RECEIVE) }
        .map_err(failed("posting a receive"))?;
    // SAFETY: the region is never freed, and not written any more.
    unsafe { pair.post_send(&mut sent, .., SEND) }.map_err(failed("posting a send"))?;
    let mut missing = 2;
    while missing > 0 {
        let mut places = [ibv_wc::default(); 2];
        let done = queue.poll(&mut places).map_err(failed("polling the completion queue"))?;
        for completion in &*done {
            let is_receive = completion.wr_id() == RECEIVE;
            if let Some((code, _)) = completion.error() {
                let what = if is_receive { "the receive" } else { "the send" };
                return Err(LoopbackError::Work { what, code });
            }
            if is_receive && completion.len() != MESSAGE_LEN {
                return Err(LoopbackError::WrongBytes);
            }
        }
        missing -= done.len();
        if missing > 0 && begin.elapsed() > PATIENCE {
            return Err(LoopbackError::TimedOut);
        }
        if done.is_empty() {
            thread::sleep(PAUSE);
        }
    }
    let took = begin.elapsed();
    if received[..] != sent[..] {
        return Err(LoopbackError::WrongBytes);
    }
    Ok(took)
}

/// The index of a RoCE v2 address that stands at its index in the table; rather one that is not
/// link-local.
fn plain_address(gids: &[GidEntry]) -> Option<u32> {
    let plain = gids.iter().enumerate().filter(|(at, entry)| {
        let here = u32::try_from(*at) == Ok(entry.gid_index);
        // The crate keeps a byte of it.
        here && *at <= 0xff && entry.port_num == PORT && entry.gid_type == ROCE_V2
    });
    let best = plain.min_by_key(|(_, entry)| entry.gid.subnet_prefix() >> 54 == 0xfe80 >> 6);
    best.map(|(_, entry)| entry.gid_index)
}

#[cfg(test)]
mod tests {
    use ibverbs::Gid;
    use rustix::io::Errno;

    use super::*;

    fn entry(gid_index: u32, gid_type: u32) -> GidEntry {
        GidEntry { gid: Gid::default(), gid_index, port_num: 1, gid_type, ndev_ifindex: 0 }
    }

    #[test]
    fn only_addresses_that_the_crate_can_use_are_used() {
        assert_eq!(plain_address(&[]), None);
        assert_eq!(plain_address(&[entry(0, 1), entry(1, ROCE_V2)]), Some(1));
        assert_eq!(plain_address(&[entry(0, 1), entry(2, ROCE_V2)]), None, "a gap before it");
        let other_port = GidEntry { port_num: 2, ..entry(0, ROCE_V2) };
        assert_eq!(plain_address(&[other_port]), None);
    }

    #[test]
    fn failures_have_words() {
        let text = |error: LoopbackError| error.to_string();
        let work = LoopbackError::Work { what: "the send", code: 12 };
        assert_eq!(text(work), "the send ended with no acknowledgement after all retries");
        assert_eq!(text(LoopbackError::TimedOut), "nothing arrived within 2 s");
        let system = |step, errno: Errno| LoopbackError::System { step, source: errno.into() };
        assert!(system(REGISTERING, Errno::NOMEM).is_memlock());
        assert!(system(REGISTERING, Errno::PERM).is_memlock());
        assert!(!system("posting a send", Errno::NOMEM).is_memlock());
        assert!(!LoopbackError::TimedOut.is_memlock());
    }

    #[test]
    fn a_device_that_is_not_there_is_an_error() {
        assert!(send_to_itself("no-such-device").is_err());
    }
}
