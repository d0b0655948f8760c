//! The terminal while it is watched: another screen, given back on every way out.

use std::{
    io::{self, Stdout, Write},
    panic, process,
};

use crossterm::{
    cursor, execute, queue,
    style::{Attribute, Color, Print, ResetColor, SetAttribute, SetForegroundColor},
    terminal::{
        self, BeginSynchronizedUpdate, Clear, ClearType, EndSynchronizedUpdate,
        EnterAlternateScreen, LeaveAlternateScreen,
    },
};

use super::page::{Line, Tone};

/// The exit status of a process that panicked.
const PANICKED: i32 = 101;

/// The alternate screen. Dropping it gives the terminal back; so does a panic on any thread, which
/// ends the process.
#[derive(Debug)]
pub(super) struct Screen(Stdout);

impl Screen {
    /// Takes the terminal of standard output.
    ///
    /// # Errors
    /// It is none, or it is gone.
    pub(super) fn open() -> io::Result<Self> {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            let _nobody_paints = io::stdout().lock();
            give_back();
            before(info);
            // On whichever thread: a page that nobody feeds or paints is worse than none.
            process::exit(PANICKED);
        }));
        terminal::enable_raw_mode()?;
        let mut screen = Self(io::stdout()); // from here on dropping it gives back
        execute!(screen.0, EnterAlternateScreen, cursor::Hide)?;
        Ok(screen)
    }

    /// Columns and rows.
    pub(super) fn size() -> io::Result<(usize, usize)> {
        let (columns, rows) = terminal::size()?;
        Ok((usize::from(columns), usize::from(rows)))
    }

    /// Shows these lines and nothing else, at once.
    pub(super) fn paint(&mut self, lines: &[Line]) -> io::Result<()> {
        queue!(self.0, BeginSynchronizedUpdate)?;
        for (row, line) in lines.iter().enumerate() {
            // Before the text: behind one that fills its row there is no place to clear from.
            let last = row + 1 == lines.len();
            let old = if last { ClearType::FromCursorDown } else { ClearType::UntilNewLine };
            queue!(self.0, cursor::MoveTo(0, row as u16), Clear(old))?;
            match line.tone {
                Tone::Plain => {}
                Tone::Quiet => queue!(self.0, SetAttribute(Attribute::Dim))?,
                Tone::Head => queue!(self.0, SetAttribute(Attribute::Bold))?,
                Tone::Good => queue!(self.0, SetForegroundColor(Color::Green))?,
                Tone::Bad => queue!(self.0, SetForegroundColor(Color::Red))?,
                Tone::New => queue!(self.0, SetAttribute(Attribute::Reverse))?,
            }
            queue!(self.0, Print(&line.text), SetAttribute(Attribute::Reset), ResetColor)?;
        }
        queue!(self.0, EndSynchronizedUpdate)?;
        self.0.flush()
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        give_back();
    }
}

/// A terminal that is gone needs nothing.
fn give_back() {
    let _ = execute!(io::stdout(), cursor::Show, LeaveAlternateScreen);
    let _ = terminal::disable_raw_mode();
}
