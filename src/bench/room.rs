//! How much memory a measurement may still take: what does not fit is better left out than killed for.

use std::fs;

/// Where regions lie.
const REGIONS: &str = "/dev/shm";

/// Bytes that programs can still have, when about half of them are in regions; none where the system
/// does not say.
pub fn free_bytes() -> Option<u64> {
    let regions = rustix::fs::statvfs(REGIONS).ok()?;
    let memory = available_bytes(&fs::read_to_string("/proc/meminfo").ok()?)?;
    Some(memory.min(regions.f_bavail.saturating_mul(regions.f_frsize).saturating_mul(2)))
}

/// What the system says is available; see proc(5).
fn available_bytes(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_system_says_is_available() {
        let meminfo = "MemTotal:  10 kB\nMemFree:  1 kB\nMemAvailable:   7 kB\n";
        assert_eq!(available_bytes(meminfo), Some(7 << 10));
        assert_eq!(available_bytes("MemTotal: 10 kB\n"), None);
        assert!(free_bytes().is_some_and(|free| free > 0));
    }
}
