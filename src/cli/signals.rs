//! Being asked to end, by a signal.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::signal::unix::{SignalKind, signal};

use super::exit::{Exit, Failure};

/// Becomes true when this process is asked to end.
pub(super) fn stop_flag() -> Result<Arc<AtomicBool>, Failure> {
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    on_end(move || stopped.store(true, Ordering::Relaxed))
        .map_err(|e| Failure::new(Exit::Failed, format_args!("listening to signals: {e}")))?;
    Ok(stop)
}

/// Calls `act` once, on a thread of its own, when this process is asked to end: so that everything
/// is put in order first.
///
/// # Errors
/// The system gave no handler or no thread.
pub(super) fn on_end(act: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let (mut interrupt, mut terminate, mut hangup) = {
        let _inside = runtime.enter();
        let on = |kind| signal(kind);
        (on(SignalKind::interrupt())?, on(SignalKind::terminate())?, on(SignalKind::hangup())?)
    };
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                _ = hangup.recv() => {}
            }
        });
        act();
    })?;
    Ok(())
}
