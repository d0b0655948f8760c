//! What the targets share. Each target's first lines say what it feeds and what must hold.

use std::{env, fs, fs::File, path::PathBuf};

use arbitrary::Arbitrary;
use ringkeep::{
    Name,
    membership::{Member, NodeId},
};
use rustix::fs::{MemfdFlags, memfd_create};
use twox_hash::XxHash3_64;

/// Names that nodes have here.
pub const NODES: [&str; 8] = ["a", "b", "c", "d", "e", "f", "g", "h"];

/// When the run script wants the target's first inputs, writes them where it says and ends.
pub fn seeds(make: impl FnOnce() -> Vec<Vec<u8>>) {
    let Some(dir) = env::var_os("RINGKEEP_SEEDS") else { return };
    for (n, seed) in make().into_iter().enumerate() {
        fs::write(PathBuf::from(&dir).join(format!("seed-{n}")), seed).expect("writing a seed");
    }
    std::process::exit(0);
}

/// A file in memory.
pub fn memory(len: u64) -> File {
    let file = File::from(memfd_create("fuzz", MemfdFlags::CLOEXEC).expect("a memory file"));
    file.set_len(len).expect("room");
    file
}

/// The directory in memory that the run script made for this process.
pub fn private_dir() -> PathBuf {
    let dir = env::var_os("RINGKEEP_FUZZ_DIR").expect("RINGKEEP_FUZZ_DIR is set by tests/run");
    PathBuf::from(dir)
}

/// The checksum of all formats.
pub fn sum(bytes: &[u8]) -> [u8; 8] {
    XxHash3_64::oneshot(bytes).to_le_bytes()
}

/// A member of the test's rings.
pub fn member(which: u8, incarnation: u64) -> Member {
    let which = usize::from(which) % NODES.len();
    let id = NodeId { name: Name::new(NODES[which]).expect("a name"), incarnation };
    let address = ([127, 0, 0, 1], 7000 + which as u16).into();
    Member { id, address, witness: false, zone: None, mirrors: 1 }
}

/// Numbers near those that matter, or any.
#[derive(Debug, Clone, Copy, Arbitrary)]
pub enum Number {
    /// So far from the one that is expected.
    Near(i8),
    /// So far from the largest.
    High(u8),
    /// Any.
    Any(u64),
}

impl Number {
    /// The number, where `expected` would be right.
    pub fn beside(self, expected: u64) -> u64 {
        match self {
            Self::Near(by) => expected.saturating_add_signed(by.into()),
            Self::High(by) => u64::MAX - u64::from(by),
            Self::Any(number) => number,
        }
    }
}
