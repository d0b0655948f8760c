//! One request on its way through the simulated network.

use std::sync::Arc;

use super::weather::Dice;
use crate::{
    region::mapping::Mapping,
    transport::{Access, MemoryId, Segment, Stamp, WorkError, WorkId},
};

/// Most pieces that a request is torn into; a larger one is torn into larger pieces.
const PIECES_MAX: u64 = 2048;

struct Piece {
    remote: u64,
    /// Offset in the request's bytes.
    at: u64,
    len: u64,
}

pub(super) struct Flight {
    pub(super) work: WorkId,
    pub(super) memory: MemoryId,
    pub(super) access: Access,
    pub(super) key: u64,
    pub(super) stamp: Stamp,
    pub(super) segments: Vec<Segment>,
    pub(super) arrives_at: u64,
    /// What the responder made of it, and when the initiator may know.
    pub(super) outcome: Option<(Result<(), WorkError>, u64)>,
    local: Arc<Mapping>,
    /// A write's bytes once they left the local memory; a read's once they left the remote one.
    bytes: Option<Vec<u8>>,
    /// What is still to be placed; the last one is next. Made when placement begins.
    pieces: Option<Vec<Piece>>,
}

impl Flight {
    #[allow(clippy::too_many_arguments)]
    pub(super) fn new(
        work: WorkId,
        memory: MemoryId,
        local: Arc<Mapping>,
        access: Access,
        key: u64,
        stamp: Stamp,
        segments: &[Segment],
        arrives_at: u64,
    ) -> Self {
        let segments = segments.to_vec();
        let (outcome, bytes, pieces) = (None, None, None);
        Self {
            work,
            memory,
            access,
            key,
            stamp,
            segments,
            arrives_at,
            outcome,
            local,
            bytes,
            pieces,
        }
    }

    pub(super) fn len(&self) -> u64 {
        self.segments.iter().map(|segment| segment.len).sum()
    }

    /// Bytes not placed yet.
    pub(super) fn left(&self) -> u64 {
        match (&self.outcome, &self.pieces) {
            (Some(_), _) => 0,
            (None, Some(pieces)) => pieces.iter().map(|piece| piece.len).sum(),
            (None, None) => self.len(),
        }
    }

    pub(super) fn is_half_placed(&self) -> bool {
        self.outcome.is_none() && self.pieces.is_some() && self.left() < self.len()
    }

    /// Takes a write's bytes from the local memory. After this the memory may change or go.
    pub(super) fn take_local(&mut self) {
        if self.access == Access::Write && self.bytes.is_none() {
            let mut bytes = vec![0; self.len() as usize];
            let mut rest = &mut bytes[..];
            for segment in &self.segments {
                let (part, after) = rest.split_at_mut(segment.len as usize);
                self.local.read_at(segment.local, part).expect("checked when it was posted");
                rest = after;
            }
            self.bytes = Some(bytes);
        }
    }

    /// Places at most about `quota` bytes of an admitted write; answers how many, and whether that
    /// was all.
    pub(super) fn place(
        &mut self,
        target: &Mapping,
        quota: u64,
        torn: bool,
        dice: &mut Dice,
    ) -> (u64, bool) {
        self.take_local();
        if self.pieces.is_none() {
            self.pieces = Some(pieces_of(&self.segments, torn, dice));
        }
        let (Some(bytes), Some(pieces)) = (&self.bytes, &mut self.pieces) else { return (0, true) };
        let mut placed = 0;
        while placed < quota
            && let Some(piece) = pieces.pop()
        {
            let part = &bytes[piece.at as usize..(piece.at + piece.len) as usize];
            target.write_at(piece.remote, part).expect("admitted");
            placed += piece.len;
        }
        (placed, pieces.is_empty())
    }

    /// Takes an admitted read's bytes from the remote memory.
    pub(super) fn take_remote(&mut self, source: &Mapping) {
        let mut bytes = vec![0; self.len() as usize];
        let mut rest = &mut bytes[..];
        for segment in &self.segments {
            let (part, after) = rest.split_at_mut(segment.len as usize);
            source.read_at(segment.remote, part).expect("admitted");
            rest = after;
        }
        self.bytes = Some(bytes);
    }

    /// Puts a read's bytes into the local memory.
    pub(super) fn bring_home(&self) {
        let (Access::Read, Some(bytes)) = (self.access, &self.bytes) else { return };
        let mut rest = &bytes[..];
        for segment in &self.segments {
            let (part, after) = rest.split_at(segment.len as usize);
            self.local.write_at(segment.local, part).expect("checked when it was posted");
            rest = after;
        }
    }
}

/// The words of a request in the order of their placement, last first: as they come, or shuffled.
fn pieces_of(segments: &[Segment], torn: bool, dice: &mut Dice) -> Vec<Piece> {
    let total: u64 = segments.iter().map(|segment| segment.len).sum();
    let size = if torn { (total / PIECES_MAX).next_multiple_of(8).max(8) } else { u64::MAX };
    let mut pieces = Vec::new();
    let mut at = 0;
    for segment in segments {
        let end = segment.remote + segment.len;
        let mut remote = segment.remote;
        while remote < end {
            // Words are aligned where they are placed; a write may begin and end inside one.
            let boundary = (remote - remote % size).saturating_add(size);
            let len = boundary.min(end) - remote;
            pieces.push(Piece { remote, at, len });
            remote += len;
            at += len;
        }
    }
    if torn {
        for last in (1..pieces.len()).rev() {
            pieces.swap(last, dice.up_to(last as u64) as usize);
        }
    } else {
        pieces.reverse();
    }
    pieces
}
