//! One life of the node: what it says rests on votes that are stored (rule V5).

use super::{
    membership::Remembered,
    state_file::{StateFile, StoreStateError},
};
use crate::membership::{Event, Membership, Output, Time};

/// One life of the node: its state machine, and the file that keeps its vote.
pub(super) struct Life {
    pub(super) machine: Membership,
    pub(super) file: StateFile,
    /// A vote could not be kept.
    silent: bool,
}

impl Life {
    pub(super) fn new(machine: Membership, file: StateFile) -> Self {
        Self { machine, file, silent: false }
    }

    pub(super) fn deadline(&self) -> Option<Time> {
        self.machine.deadline().filter(|_| !self.silent)
    }

    /// Appends what is to be done about an event; the votes that this rests on are stored then.
    /// Where one cannot be, nobody may hear of it (rule V5): what follows is left out, and this life
    /// says nothing any more, for the machine takes that vote for given.
    pub(super) fn handle(
        &mut self,
        now: Time,
        event: Event,
        out: &mut Vec<Output>,
    ) -> Result<(), StoreStateError> {
        if self.silent {
            return Ok(());
        }
        let mut outputs = Vec::new();
        self.machine.handle(now, event, &mut outputs);
        for output in outputs {
            match output {
                Output::Persist(durable) => {
                    let stored = self.file.store(&Remembered::Voting(durable));
                    self.silent = stored.is_err();
                    stored?;
                }
                output => out.push(output),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        membership::{
            Body, Change, Config, Durable, Member, Message, NodeId, Peer, View, ballot::Ballot,
        },
        name::Name,
        server::{membership::Shell, state_file::BootId},
    };

    const NOW: Time = Time(1);

    fn member(name: &str) -> Member {
        let id = NodeId { name: Name::new(name).unwrap(), incarnation: 1 };
        let address = ([127, 0, 0, 1], 7000).into();
        Member { id, address, witness: false, zone: None, mirrors: 1 }
    }

    /// Node a of the ring a b c.
    fn machine() -> Membership {
        let joined = vec![member("b"), member("c")];
        let view = View::first(1, member("a")).next(&Change { joined, ..Change::default() });
        let (me, view, votes) = (member("a"), Arc::new(view.unwrap()), Default::default());
        Membership::resume(Config::default(), Durable { me, view, votes }, NOW).unwrap()
    }

    fn file_in(dir: &tempfile::TempDir) -> StateFile {
        StateFile::open(&dir.path().join("node.state"), BootId::current().unwrap()).unwrap()
    }

    /// One that has stored in `dir` what it has at its start.
    fn life(dir: &tempfile::TempDir) -> Life {
        let mut life = Life::new(machine(), file_in(dir));
        life.handle(NOW, Event::Tick, &mut Vec::new()).unwrap();
        life
    }

    fn from_b(body: Body) -> Event {
        let (from, to) = (Peer::from(&member("b")), Some(member("a").id));
        Event::Received { from, message: Message { cluster: 1, view: 2, to, body } }
    }

    /// What b asks a to vote on, in the one-round ballot and in a slow one.
    fn questions() -> [Event; 2] {
        let change = Change { removed: vec![member("c").id], ..Change::default() };
        let slow = Ballot { round: 1, rank: 1 };
        [from_b(Body::Propose(Arc::new(change))), from_b(Body::Prepare(slow))]
    }

    fn votes(outputs: &[Output]) -> usize {
        let is_vote = |output: &&Output| {
            let Output::Send { message, .. } = output else { return false };
            matches!(message.body, Body::Ack | Body::Promise(..))
        };
        outputs.iter().filter(is_vote).count()
    }

    #[test]
    fn a_vote_is_stored_and_then_heard() {
        let dir = tempfile::tempdir().unwrap();
        let (mut life, mut out) = (life(&dir), Vec::new());
        for question in questions() {
            life.handle(NOW, question, &mut out).unwrap();
        }
        assert_eq!(votes(&out), 2);
        let Some(Remembered::Voting(stored)) = life.file.load() else { panic!("nothing stored") };
        assert!(stored.votes.cast.vote.is_some() && stored.votes.promised.is_some());
    }

    #[test]
    fn a_vote_that_cannot_be_stored_is_never_heard() {
        for question in questions() {
            let dir = tempfile::tempdir().unwrap();
            let (mut life, mut out) = (life(&dir), Vec::new());
            life.file = StateFile::full();
            life.handle(NOW, question.clone(), &mut out).unwrap_err();
            // To the machine this is a vote that it gave: asked again, it would just say so.
            let _ = life.handle(NOW, question, &mut out);
            assert_eq!(votes(&out), 0, "I8 nobody votes after amnesia: {out:?}");
            assert_eq!(life.deadline(), None);
        }
    }

    #[test]
    fn a_former_life_whose_vote_cannot_be_stored_votes_no_more() {
        let dir = tempfile::tempdir().unwrap();
        let former = (machine(), StateFile::full());
        let mut shell = Shell::new(machine(), file_in(&dir), Some(former), Vec::new());
        for question in questions() {
            let said = shell.tell_former(NOW, &question);
            assert_eq!(said.map_or(0, |(_, out)| votes(&out)), 0, "I8 nobody votes after amnesia");
        }
        assert!(shell.tell_former(NOW, &Event::Tick).is_none(), "it is gone");
    }
}
