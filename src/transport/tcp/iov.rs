//! Scatter and gather lists that reach into mappings.
//!
//! **Strategy.** A mapping's bytes may change under a system call at any time, by the service that
//! owns them or by a second node, so no `&[u8]` to them is ever made: the lists hold raw pointers
//! laid out as `struct iovec`, and only the kernel follows them. Every pointer comes from a
//! borrow that lives as long as the list.

use std::{
    io::{self, IoSlice, IoSliceMut},
    marker::PhantomData,
    mem::MaybeUninit,
    os::fd::AsFd,
};

use rustix::{
    io::Errno,
    net::{SendAncillaryBuffer, SendFlags, sendmsg},
};

use crate::region::mapping::Mapping;

/// The system takes no more in one call (`UIO_MAXIOV`).
const PIECES_MAX: usize = 1024;
/// So often bytes that the kernel could not reach are touched. A file that is cut off and extended in
/// turns may look whole at one touch and be cut off before the next call, but not each time.
const TOUCHES_MAX: usize = 64;

#[derive(Clone, Copy)]
#[repr(C)]
struct IoVec {
    base: *mut u8,
    len: usize,
}

const _: () = assert!(size_of::<IoVec>() == size_of::<IoSlice<'_>>());
const _: () = assert!(align_of::<IoVec>() == align_of::<IoSlice<'_>>());
const _: () = assert!(size_of::<IoVec>() == size_of::<IoSliceMut<'_>>());
const _: () = assert!(align_of::<IoVec>() == align_of::<IoSliceMut<'_>>());

/// Pieces for one system call. `'a` is the borrow of everything pointed to.
struct Pieces<'a> {
    /// The first `count` are there; the others are left as they were found, since most calls have a
    /// few pieces.
    vecs: [MaybeUninit<IoVec>; PIECES_MAX],
    count: usize,
    bytes: usize,
    borrows: PhantomData<&'a mut [u8]>,
}

impl<'a> Pieces<'a> {
    fn new() -> Self {
        let vecs = [const { MaybeUninit::uninit() }; PIECES_MAX];
        Self { vecs, count: 0, bytes: 0, borrows: PhantomData }
    }

    fn push(&mut self, base: *mut u8, len: usize) -> bool {
        if self.count == PIECES_MAX {
            return false;
        }
        self.vecs[self.count].write(IoVec { base, len });
        self.count += 1;
        self.bytes += len;
        true
    }

    /// Makes a system call, again where it could not reach all bytes.
    fn reaching(&mut self, call: impl Fn(&mut Self) -> Result<usize, Errno>) -> io::Result<usize> {
        let mut done = call(self);
        for _ in 0..TOUCHES_MAX {
            if done != Err(Errno::FAULT) {
                break;
            }
            self.touch();
            done = call(self);
        }
        Ok(done?)
    }

    /// The kernel could not reach some of the bytes: a mapping's file was cut off. Touching them
    /// puts zeros in its place (see `region::sigbus`), so that the request can be finished: other
    /// checkpoints use the same connection. In a process without that handler this is the end, as
    /// any access would be.
    fn touch(&self) {
        for vec in &self.vecs[..self.count] {
            // SAFETY: the first `count` entries are there.
            let IoVec { base, len } = *unsafe { vec.assume_init_ref() };
            // SAFETY: all entries point to bytes borrowed for `'a`.
            unsafe { Mapping::touch(base, len) };
        }
    }

    fn push_mapping(&mut self, mapping: &'a Mapping, offset: u64, len: u64) -> bool {
        mapping.check(offset, len).is_ok()
            && self.push(mapping.as_ptr().wrapping_add(offset as usize), len as usize)
    }
}

/// Bytes to send from.
pub(super) struct Gather<'a>(Pieces<'a>);

impl<'a> Gather<'a> {
    pub(super) fn new() -> Self {
        Self(Pieces::new())
    }

    /// False when the list is full and nothing was added.
    pub(super) fn bytes(&mut self, bytes: &'a [u8]) -> bool {
        self.0.push(bytes.as_ptr().cast_mut(), bytes.len())
    }

    /// False when the list is full or the bytes are not inside, and nothing was added.
    pub(super) fn mapping(&mut self, mapping: &'a Mapping, offset: u64, len: u64) -> bool {
        self.0.push_mapping(mapping, offset, len)
    }

    /// Sends what the socket takes without blocking.
    pub(super) fn send(&mut self, socket: impl AsFd) -> io::Result<usize> {
        self.0.reaching(|pieces| {
            // SAFETY: `IoSlice` is guaranteed to have the layout of `struct iovec`, as `IoVec` has;
            // the first `count` entries are there; they point to bytes borrowed for `'a`, which
            // outlives this call, and neither the standard library nor rustix looks through them:
            // only the kernel reads there, and it does not mind a racing writer.
            let slices = unsafe {
                std::slice::from_raw_parts(pieces.vecs.as_ptr().cast::<IoSlice<'_>>(), pieces.count)
            };
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            sendmsg(&socket, slices, &mut SendAncillaryBuffer::default(), flags)
        })
    }
}

/// Places to receive into.
pub(super) struct Scatter<'a>(Pieces<'a>);

impl<'a> Scatter<'a> {
    pub(super) fn new() -> Self {
        Self(Pieces::new())
    }

    /// False when the list is full and nothing was added.
    pub(super) fn bytes(&mut self, bytes: &'a mut [u8]) -> bool {
        self.0.push(bytes.as_mut_ptr(), bytes.len())
    }

    /// False when the list is full or the bytes are not inside, and nothing was added.
    pub(super) fn mapping(&mut self, mapping: &'a Mapping, offset: u64, len: u64) -> bool {
        self.0.push_mapping(mapping, offset, len)
    }

    /// Sum of all lengths.
    pub(super) fn len(&self) -> usize {
        self.0.bytes
    }

    /// Receives what the (non-blocking) socket has. Zero is the end of the stream.
    pub(super) fn receive(&mut self, socket: impl AsFd) -> io::Result<usize> {
        self.0.reaching(|pieces| {
            // SAFETY: as in `Gather::send`, for `IoSliceMut`; bytes of this process are borrowed
            // mutably for `'a`, and bytes of a mapping belong to whoever writes last, by its contract.
            let slices = unsafe {
                std::slice::from_raw_parts_mut(
                    pieces.vecs.as_mut_ptr().cast::<IoSliceMut<'_>>(),
                    pieces.count,
                )
            };
            rustix::io::readv(&socket, slices)
        })
    }
}
