//! Progress bars, for people only: of transfers that are not short, and of steps that each take a
//! while.

use std::{
    io::{self, IsTerminal, Read},
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// A transfer shorter than this shows nothing.
const DELAY: Duration = Duration::from_secs(1);

/// A bar of so many steps, on standard error if that is a terminal.
pub fn steps(what: &'static str, total: u64, quiet: bool) -> ProgressBar {
    let target = if quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
    let bar = ProgressBar::with_draw_target(Some(total), target);
    // A constant; one that indicatif refused would only look plainer.
    if let Ok(style) = ProgressStyle::with_template("{msg} {bar:30} {pos}/{len} {eta}") {
        bar.set_style(style);
    }
    bar.set_message(what);
    bar.tick();
    bar
}

/// Counts bytes; draws them on standard error once the transfer has taken a second, if standard
/// error is a terminal. Dropping it clears the bar.
#[derive(Debug)]
pub struct Progress {
    bar: ProgressBar,
    started: Instant,
    shown: bool,
    allowed: bool,
}

impl Progress {
    /// A transfer of `total` bytes, if that is known.
    pub fn new(what: &'static str, total: Option<u64>, quiet: bool) -> Self {
        let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::hidden());
        // Both templates are constants; one that indicatif refused would only look plainer.
        if let Ok(style) = ProgressStyle::with_template(match total {
            Some(_) => {
                "{msg} {bar:30} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}"
            }
            None => "{msg} {spinner} {binary_bytes} {binary_bytes_per_sec}",
        }) {
            bar.set_style(style);
        }
        bar.set_message(what);
        let allowed = !quiet && io::stderr().is_terminal();
        Self { bar, started: Instant::now(), shown: false, allowed }
    }

    /// `bytes` more have been moved.
    pub fn advance(&mut self, bytes: u64) {
        self.bar.inc(bytes);
        if self.allowed && !self.shown && self.started.elapsed() >= DELAY {
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
            self.shown = true;
        }
    }

    /// Bytes moved so far.
    pub fn position(&self) -> u64 {
        self.bar.position()
    }

    /// A reader that counts what passes.
    pub fn reader<R: Read>(self, inner: R) -> ProgressReader<R> {
        ProgressReader { inner, progress: self }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// See [`Progress::reader`].
#[derive(Debug)]
pub struct ProgressReader<R> {
    inner: R,
    progress: Progress,
}

impl<R: Read> Read for ProgressReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = self.inner.read(buffer)?;
        self.progress.advance(len as u64);
        Ok(len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_is_counted_and_nothing_is_shown_off_a_terminal() {
        let mut reader = Progress::new("testing", Some(10), true).reader(&[7u8; 10][..]);
        let mut out = Vec::new();
        reader.read_to_end(&mut out).unwrap();
        assert_eq!((out.len(), reader.progress.position()), (10, 10));
        assert!(!reader.progress.shown);
    }
}
