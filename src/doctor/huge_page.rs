//! One private huge page, to try registering it: the one place that uses `hugepage-rs`.
//!
//! Regions are not made with it: they must be shared between a service, its server and the device,
//! and outlive all processes, so they are mapped files. This crate gives private memory.

use std::{alloc::Layout, fs, ptr::NonNull, slice};

use super::parse;

/// Why there is no page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HugePageError {
    /// The kernel has none.
    #[error("this kernel has no huge pages")]
    NotSupported,
    /// All are in use, or there are none.
    #[error("no huge page is free")]
    NoneFree,
}

/// A huge page of the default size, with zeros, freed when dropped.
#[derive(Debug)]
pub struct HugePage {
    start: NonNull<u8>,
    layout: Layout,
}

impl HugePage {
    /// Takes one from the pool.
    ///
    /// # Errors
    /// There is none.
    pub fn new() -> Result<Self, HugePageError> {
        // The crate panics where this line is missing, and then takes its size for all it does.
        let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let layout = parse::meminfo(&meminfo, "Hugepagesize")
            .and_then(|bytes| usize::try_from(bytes).ok())
            .filter(|&bytes| bytes > 0)
            .and_then(|bytes| Layout::from_size_align(bytes, 1).ok())
            .ok_or(HugePageError::NotSupported)?;
        // SAFETY: the layout's size is not zero.
        let start = unsafe { hugepage_rs::alloc(layout) };
        NonNull::new(start).map(|start| Self { start, layout }).ok_or(HugePageError::NoneFree)
    }

    /// Its memory.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: the allocation has this many bytes, which the kernel made zeros; it is this
        // value's alone and lives as long.
        unsafe { slice::from_raw_parts_mut(self.start.as_ptr(), self.layout.size()) }
    }
}

impl Drop for HugePage {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout, freed once; no slice of it outlives this value. It
        // cannot panic: the page size was found when it was allocated.
        unsafe { hugepage_rs::dealloc(self.start.as_ptr(), self.layout) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_can_be_written_and_freed_or_there_is_none() {
        match HugePage::new() {
            Ok(mut page) => {
                let memory = page.as_mut_slice();
                assert!(memory.len() >= 1 << 20 && memory.len().is_power_of_two());
                assert_eq!(memory[memory.len() - 1], 0);
            }
            Err(HugePageError::NoneFree | HugePageError::NotSupported) => {}
        }
    }
}
