//! The hot paths, each as one step that can be repeated. `instructions` counts their instructions;
//! the benches that ask for time run the same steps.

pub(crate) mod commit;
pub(crate) mod frame;
pub(crate) mod handover;
pub(crate) mod membership;
pub(crate) mod mirror;
pub(crate) mod region;

use std::{fs::File, time::Duration};

use ringkeep::region::mapping::Mapping;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

/// A whole number of pages on every machine. To ask how large a page is, rustix reads what valgrind
/// does not map.
const PAGES: u64 = 64 << 10;

/// What is timed is repeated for so long at least.
pub(crate) const TIME_PER_ROW: Duration = Duration::from_millis(200);

/// Something that is done again and again. A closure is one that needs no preparation.
pub(crate) trait Path {
    /// What is counted or timed.
    fn step(&mut self);

    /// What happens elsewhere before the next step, and whether the last one did what it should.
    fn settle(&mut self) {}
}

impl<F: FnMut()> Path for F {
    fn step(&mut self) {
        self();
    }
}

/// Memory without a name, in whole pages.
fn memory(bytes: u64) -> File {
    let file = memfd_create("ringkeep-bench", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&file, bytes.next_multiple_of(PAGES)).unwrap();
    file.into()
}

fn map(file: &File) -> Mapping {
    Mapping::new(file, file.metadata().unwrap().len() as usize).unwrap()
}
