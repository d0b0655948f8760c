//! What the container's limit leaves, less what was promised of it: memory that somebody is about to
//! fill is in no count of the system yet.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

/// Left to the rest of the container.
const HEADROOM_BYTES: u64 = 32 << 20;

static PROMISED: Promised = Promised(Mutex::new(0));

/// Bytes that were promised in this process and are not taken yet.
#[derive(Debug)]
struct Promised(Mutex<u64>);

/// So many bytes are not anybody else's, until they are taken or this is dropped.
#[derive(Debug)]
pub struct Promise {
    bytes: u64,
    of: &'static Promised,
}

/// The container's limit is too near.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this container's memory limit leaves {available} bytes")]
pub struct NoRoom {
    /// Bytes that could be had.
    pub available: u64,
}

impl From<NoRoom> for io::Error {
    fn from(error: NoRoom) -> Self {
        Self::new(io::ErrorKind::OutOfMemory, error)
    }
}

impl Promised {
    fn promise(&'static self, bytes: u64, room: impl FnOnce() -> u64) -> Result<Promise, NoRoom> {
        let mut promised = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Asked only now: what was taken of a promise until here is in it.
        let available = room().saturating_sub(*promised);
        if bytes > available {
            return Err(NoRoom { available });
        }
        *promised += bytes;
        Ok(Promise { bytes, of: self })
    }
}

impl Promise {
    /// # Errors
    /// The container's limit leaves less than that, and nothing was promised.
    pub fn new(bytes: u64) -> Result<Self, NoRoom> {
        PROMISED.promise(bytes, || container_room().saturating_sub(HEADROOM_BYTES))
    }

    /// All but `bytes` are taken: the system counts them.
    pub fn shrink_to(&mut self, bytes: u64) {
        let mut promised = self.of.0.lock().unwrap_or_else(PoisonError::into_inner);
        *promised -= self.bytes.saturating_sub(bytes);
        self.bytes = self.bytes.min(bytes);
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        self.shrink_to(0);
    }
}

/// Bytes that this process's control group may still take, `u64::MAX` when nothing limits it.
fn container_room() -> u64 {
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let number = |path: PathBuf| {
        fs::read_to_string(path).ok().and_then(|text| text.trim().parse::<u64>().ok())
    };
    let mut room = u64::MAX;
    for (base, group, limit, usage) in memory_groups(&groups) {
        // Every group on the way up limits too.
        for dir in Path::new(group.trim_start_matches('/')).ancestors() {
            let dir = Path::new(base).join(dir);
            if let (Some(limit), Some(used)) = (number(dir.join(limit)), number(dir.join(usage))) {
                room = room.min(limit.saturating_sub(used));
            }
        }
    }
    room
}

type MemoryGroup<'a> = (&'static str, &'a str, &'static str, &'static str);

/// The memory control groups in the text of `/proc/self/cgroup`: mount, group, limit's and usage's
/// file.
fn memory_groups(text: &str) -> impl Iterator<Item = MemoryGroup<'_>> {
    text.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':');
        let (_, controllers, group) = (fields.next()?, fields.next()?, fields.next()?);
        if controllers.is_empty() {
            Some(("/sys/fs/cgroup", group, "memory.max", "memory.current"))
        } else if controllers.split(',').any(|c| c == "memory") {
            let base = "/sys/fs/cgroup/memory";
            Some((base, group, "memory.limit_in_bytes", "memory.usage_in_bytes"))
        } else {
            None
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_generations_of_control_groups_are_understood() {
        let v1: Vec<_> = memory_groups("9:name=systemd:/\n4:cpu,memory:/a/b\n").collect();
        assert_eq!(v1[0].1, "/a/b");
        assert_eq!(v1[0].2, "memory.limit_in_bytes");
        let v2: Vec<_> = memory_groups("0::/user.slice\n").collect();
        assert_eq!((v2[0].1, v2[0].2), ("/user.slice", "memory.max"));
    }

    #[test]
    fn what_is_promised_and_not_taken_is_promised_to_nobody_else() {
        static OF_TEST: Promised = Promised(Mutex::new(0));
        let promise = |bytes, room| OF_TEST.promise(bytes, || room);
        let mut first = promise(60, 100).unwrap();
        assert_eq!(promise(41, 100).unwrap_err(), NoRoom { available: 40 });
        let second = promise(40, 100).unwrap();
        // Taken, it is in what the system counts.
        first.shrink_to(10);
        assert_eq!(promise(1, 50).unwrap_err(), NoRoom { available: 0 });
        drop((first, second));
        promise(50, 50).unwrap();
        promise(u64::MAX, u64::MAX).unwrap();
    }
}
