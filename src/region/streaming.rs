//! Copies that leave the cache alone.
//!
//! A store to memory that is not in the cache first reads it. For a state that is larger than the cache
//! that is a third of the whole traffic, and what it brings in pushes out what others need. The stores
//! here go to memory around the cache.

/// Copies `from` to `to`, around the cache where the processor can.
///
/// # Safety
/// `to` is valid for writing `from.len()` bytes, none of which lies in `from`.
pub(super) unsafe fn copy(from: &[u8], to: *mut u8) {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx") {
        // SAFETY: the processor has the feature; the rest is the caller's promise.
        return unsafe { avx(from, to) };
    }
    // SAFETY: the caller's promise.
    unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to, from.len()) };
}

/// # Safety
/// As [`copy`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx")]
unsafe fn avx(from: &[u8], to: *mut u8) {
    use std::arch::x86_64::{__m256i, _mm_sfence, _mm256_loadu_si256, _mm256_stream_si256};
    const WIDTH: usize = size_of::<__m256i>();

    // Only whole, aligned words go around the cache.
    let head = to.align_offset(WIDTH).min(from.len());
    let (first, rest) = from.split_at(head);
    let (words, last) = rest.as_chunks::<WIDTH>();
    // SAFETY: `first`, `words` and `last` are `from` piece by piece, and so are the places in `to`.
    unsafe { std::ptr::copy_nonoverlapping(first.as_ptr(), to, head) };
    for (at, word) in words.iter().enumerate() {
        // SAFETY: reads the word's bytes, at any alignment.
        let word = unsafe { _mm256_loadu_si256(word.as_ptr().cast()) };
        let place = to.wrapping_add(head + at * WIDTH).cast::<__m256i>();
        // SAFETY: inside, as above, and aligned since `to + head` is.
        unsafe { _mm256_stream_si256(place, word) };
    }
    let place = to.wrapping_add(from.len() - last.len());
    // SAFETY: as for `first`.
    unsafe { std::ptr::copy_nonoverlapping(last.as_ptr(), place, last.len()) };
    // Such stores are seen in any order. What is stored after this call is seen after them.
    _mm_sfence();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_arrives_at_every_alignment_and_none_beside() {
        let from: Vec<u8> = (0..300).map(|i| i as u8 | 1).collect();
        for (skip, start) in (0..33).flat_map(|skip| (0..33).map(move |start| (skip, start))) {
            for len in [0, 1, 31, 32, 33, 64, 95, 200] {
                let mut to = [0; 300];
                // SAFETY: 33 and 200 bytes fit.
                unsafe { copy(&from[skip..skip + len], to.as_mut_ptr().wrapping_add(start)) };
                assert_eq!(to[start..start + len], from[skip..skip + len]);
                let beside = to[..start].iter().chain(&to[start + len..]);
                assert!(beside.copied().all(|byte| byte == 0), "{skip} {start} {len}");
            }
        }
    }
}
