//! One thread stays on one core for as long as something is timed.
//!
//! Threads and processes inherit the cores of whoever starts them. So this is for the time of the
//! measurement only, when everybody else runs already: the others keep the cores that they have.

use rustix::{
    io,
    thread::{CpuSet, sched_getaffinity, sched_setaffinity},
};

/// The calling thread runs on one core; as before when this is dropped, by the same thread.
#[derive(Debug)]
pub struct Pinned {
    before: CpuSet,
}

impl Pinned {
    /// This thread, from now on.
    ///
    /// # Errors
    /// It may not run there.
    pub fn to(cpu: usize) -> io::Result<Self> {
        let before = sched_getaffinity(None)?;
        if cpu >= CpuSet::MAX_CPU || !before.is_set(cpu) {
            return Err(io::Errno::INVAL);
        }
        let mut one = CpuSet::new();
        one.set(cpu);
        sched_setaffinity(None, &one)?;
        Ok(Self { before })
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // It ran there before.
        let _ = sched_setaffinity(None, &self.before);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_thread_goes_back_to_its_cores_and_others_never_left_theirs() {
        let before = sched_getaffinity(None).unwrap();
        let first = (0..CpuSet::MAX_CPU).find(|cpu| before.is_set(*cpu)).unwrap();
        let (ask, asked) = std::sync::mpsc::channel::<()>();
        let other = std::thread::spawn(move || {
            asked.recv().unwrap();
            sched_getaffinity(None).unwrap()
        });
        let pinned = Pinned::to(first).unwrap();
        let now = sched_getaffinity(None).unwrap();
        assert_eq!((now.count(), now.is_set(first)), (1, true));
        ask.send(()).unwrap();
        assert_eq!(other.join().unwrap(), before);
        drop(pinned);
        assert_eq!(sched_getaffinity(None).unwrap(), before);
        let elsewhere = (0..).find(|cpu| *cpu >= CpuSet::MAX_CPU || !before.is_set(*cpu)).unwrap();
        assert!(Pinned::to(elsewhere).is_err());
    }
}
