//! The words and the ring between a client and its server.

use ringkeep::{
    commit::Stale,
    handover::{self, Consumer, Producer, Submission},
    region::layout::Layout,
};

use super::Path;

/// Bytes of the state that is spoken of.
const LEN: u64 = 64 << 10;
const SLOTS: u32 = 2;

/// The client's end.
pub(crate) struct Near {
    pub(crate) producer: Producer,
    version: u64,
    changed: Stale,
}

/// The server's end.
pub(crate) struct Far {
    pub(crate) consumer: Consumer,
    submission: Submission,
}

/// Both ends of a new hand-over memory, each with a mapping of its own as in two processes.
pub(crate) fn pair() -> (Near, Far) {
    let layout = Layout::new(LEN, SLOTS).unwrap();
    let file = handover::create(&layout).unwrap();
    let consumer = Consumer::new(file.try_clone().unwrap(), layout, 0).unwrap();
    let producer = Producer::new(file, layout).unwrap();
    let mut changed = Stale::nothing(LEN);
    changed.insert(4096, 4160);
    let near = Near { producer, version: 0, changed };
    (near, Far { consumer, submission: Submission::new(LEN) })
}

impl Near {
    /// Hands the next version over. True when the server must be woken.
    pub(crate) fn submit(&mut self) -> bool {
        self.version += 1;
        let slot = (self.version % u64::from(SLOTS)) as usize;
        assert!(self.producer.begin_writing(slot));
        self.producer.end_writing();
        assert!(self.producer.submit(self.version, slot, LEN, &self.changed, true));
        self.producer.server_asleep()
    }

    /// Whether the version is mirrored.
    pub(crate) fn is_mirrored(&self) -> bool {
        self.producer.mirrored() == self.version
    }
}

impl Far {
    /// Takes a submission, if there is one.
    pub(crate) fn take(&mut self) -> bool {
        self.consumer.next(&mut self.submission).unwrap()
    }

    /// Reads the slot, in no time, and says that it is mirrored. True when the client must be woken.
    pub(crate) fn acknowledge(&self) -> bool {
        assert!(self.consumer.pin(self.submission.slot));
        let waits_for_slot = self.consumer.unpin(self.submission.slot);
        self.consumer.set_mirrored(self.submission.version) || waits_for_slot
    }
}

/// A version there and its acknowledgement back, both ends awake, on one thread.
pub(crate) struct RoundTrip(Near, Far);

impl RoundTrip {
    pub(crate) fn new() -> Self {
        let (near, far) = pair();
        Self(near, far)
    }
}

impl Path for RoundTrip {
    fn step(&mut self) {
        let Self(near, far) = self;
        assert!(!near.submit() && far.take() && !far.acknowledge() && near.is_mirrored());
    }
}
