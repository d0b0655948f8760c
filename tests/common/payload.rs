//! A state whose every version follows from a seed and the version's number alone, so that a
//! reader can tell which bytes each acknowledged version must have.

/// Blocks of the state.
pub const BLOCKS: usize = 48;
/// Bytes of a block: no power of two, so that changes straddle pages and chunks.
pub const BLOCK_BYTES: usize = 1_000;
/// Bytes of the state.
pub const STATE_BYTES: u64 = (BLOCKS * BLOCK_BYTES) as u64;

/// A small generator with a seed (splitmix64).
#[derive(Debug, Clone)]
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Less than `bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}

/// The blocks that a version changes. The first one, and each hundredth, changes all.
pub fn changed(seed: u64, version: u64) -> Vec<usize> {
    if version % 100 == 1 {
        return (0..BLOCKS).collect();
    }
    let mut random = Random(seed ^ version.rotate_left(32));
    let mut blocks: Vec<usize> = (0..1 + random.below(3)).map(|_| random.below(BLOCKS)).collect();
    blocks.sort_unstable();
    blocks.dedup();
    blocks
}

/// A block as the version wrote it.
pub fn block(seed: u64, version: u64, block: usize) -> Vec<u8> {
    let mut random = Random(seed ^ version.rotate_left(20) ^ (block as u64) << 52);
    let mut bytes: Vec<u8> =
        (0..BLOCK_BYTES.div_ceil(8)).flat_map(|_| random.next().to_le_bytes()).collect();
    bytes.truncate(BLOCK_BYTES);
    bytes
}

/// The whole state of a version, 1 or later.
pub fn state(seed: u64, version: u64) -> Vec<u8> {
    // Older than the last version that changed everything is nothing.
    let whole = version - (version - 1) % 100;
    let mut last = [whole; BLOCKS];
    for earlier in whole + 1..=version {
        changed(seed, earlier).into_iter().for_each(|block| last[block] = earlier);
    }
    (0..BLOCKS).flat_map(|index| block(seed, last[index], index)).collect()
}
