//! What somebody does between two looks at memory that somebody else writes.

use std::{sync::OnceLock, thread, time::Duration};

use crossbeam_utils::Backoff;

/// How long services and servers look before they sleep, unless told otherwise.
pub(crate) const LOOK: Duration = Duration::from_micros(100);

/// With so many cores whoever is waited for has one of its own: a service, its server, and what else
/// the machine does.
const CORES_FOR_SPINNING: usize = 4;

/// The pauses of one wait. On a small machine each one gives the core away at once: the one that is
/// waited for may need it. On others they spin at first, so that no system call comes between what
/// is waited for and being seen.
#[derive(Debug, Default)]
pub(crate) struct Pause(Backoff);

impl Pause {
    /// Some time passes, the more the longer the wait took already.
    pub(crate) fn pause(&self) {
        if spins() {
            self.0.snooze();
        } else {
            thread::yield_now();
        }
    }

    /// What was waited for is there: the next wait begins anew.
    #[cfg(feature = "server")]
    pub(crate) fn reset(&self) {
        self.0.reset();
    }
}

fn spins() -> bool {
    static SPINS: OnceLock<bool> = OnceLock::new();
    *SPINS.get_or_init(|| {
        thread::available_parallelism().is_ok_and(|cores| cores.get() >= CORES_FOR_SPINNING)
    })
}
