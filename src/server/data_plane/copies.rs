//! Copies of one checkpoint that are being made, and how far each is: for people who wait for them.

use super::Progress;
use crate::{
    membership::NodeId,
    transport::{ConnId, WorkId},
};

#[derive(Debug)]
struct Copying {
    holder: NodeId,
    conn: ConnId,
    /// Posted and not completed, and its bytes.
    under_way: Option<(WorkId, u64)>,
    done_bytes: u64,
}

/// Empty while the mirrors only follow their owner's commits.
#[derive(Debug, Default)]
pub(super) struct Copies(Vec<Copying>);

impl Copies {
    /// A part of the copy at this holder was posted.
    pub(super) fn posted(&mut self, holder: &NodeId, conn: ConnId, work: WorkId, bytes: u64) {
        let at = self.0.iter().position(|copying| copying.holder == *holder);
        let at = at.unwrap_or_else(|| {
            let holder = holder.clone();
            self.0.push(Copying { holder, conn, under_way: None, done_bytes: 0 });
            self.0.len() - 1
        });
        (self.0[at].conn, self.0[at].under_way) = (conn, Some((work, bytes)));
    }

    /// A work request of this checkpoint is done. One that failed ends its copy: what the holder
    /// has is not known any more.
    pub(super) fn completed(&mut self, work: WorkId, ok: bool) {
        let its = |copying: &Copying| copying.under_way.is_some_and(|(id, _)| id == work);
        let Some(at) = self.0.iter().position(its) else { return };
        match self.0[at].under_way.take() {
            Some((_, bytes)) if ok => self.0[at].done_bytes += bytes,
            _ => drop(self.0.remove(at)),
        }
    }

    /// The holder's copy is complete, or given up.
    pub(super) fn ended(&mut self, holder: &NodeId) {
        self.0.retain(|copying| copying.holder != *holder);
    }

    /// `taken` says how far a work request is.
    pub(super) fn report(&self, taken: impl Fn(ConnId, WorkId) -> u64) -> Vec<Progress> {
        let report = |copying: &Copying| {
            let (sent, posted) = copying
                .under_way
                .map_or((0, 0), |(work, bytes)| (taken(copying.conn, work).min(bytes), bytes));
            Progress {
                holder: copying.holder.clone(),
                sent_bytes: copying.done_bytes + sent,
                bytes: copying.done_bytes + posted,
            }
        };
        self.0.iter().map(report).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::Name;

    const CONN: ConnId = ConnId(1);

    fn node(name: &str) -> NodeId {
        NodeId { name: Name::new(name).unwrap(), incarnation: 1 }
    }

    fn so_far(copies: &Copies, taken: u64) -> Vec<(u64, u64)> {
        let reports = copies.report(|_, _| taken);
        reports.iter().map(|report| (report.sent_bytes, report.bytes)).collect()
    }

    #[test]
    fn a_copy_grows_with_what_is_posted_and_ends_with_its_holders_mark() {
        let (mut copies, b) = (Copies::default(), node("b"));
        copies.posted(&b, CONN, WorkId(1), 1000);
        assert_eq!(so_far(&copies, 0), [(0, 1000)]);
        assert_eq!(so_far(&copies, 400), [(400, 1000)]);
        assert_eq!(so_far(&copies, 4000), [(1000, 1000)], "never more than there is");
        copies.completed(WorkId(1), true);
        assert_eq!(so_far(&copies, 0), [(1000, 1000)]);
        copies.posted(&b, CONN, WorkId(2), 10); // what changed meanwhile
        assert_eq!(so_far(&copies, 0), [(1000, 1010)]);
        copies.completed(WorkId(99), false); // a commit's, to another holder
        assert_eq!(so_far(&copies, 10), [(1010, 1010)]);
        copies.ended(&b);
        assert_eq!(so_far(&copies, 0), []);
    }

    #[test]
    fn a_copy_that_failed_begins_anew() {
        let (mut copies, b, c) = (Copies::default(), node("b"), node("c"));
        copies.posted(&b, CONN, WorkId(1), 1000);
        copies.posted(&c, CONN, WorkId(2), 500);
        copies.completed(WorkId(1), false);
        assert_eq!(so_far(&copies, 0), [(0, 500)]);
        copies.posted(&b, CONN, WorkId(3), 1000);
        assert_eq!(so_far(&copies, 7), [(7, 500), (7, 1000)]);
    }
}
