//! A terminal of the test's own, and what a person would see on it.

use std::{
    fs::File,
    io::{Read, Write},
    os::{
        fd::OwnedFd,
        unix::process::{CommandExt, ExitStatusExt},
    },
    process::{Child, Command, ExitStatus},
    sync::{Arc, Mutex},
    thread::JoinHandle,
};

use rustix::{
    process::{Pid, Signal, ioctl_tiocsctty, kill_process, setsid},
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    stdio,
    termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize},
};

use super::poll;

/// A process on a terminal. Dropping it kills the process.
pub struct Terminal {
    child: Child,
    near: File,
    /// Kept open, so that the terminal outlives its process.
    far: OwnedFd,
    shown: Arc<Mutex<vt100::Parser>>,
    reader: Option<JoinHandle<()>>,
}

impl Terminal {
    /// Starts a command on a new terminal of so many columns and rows.
    pub fn start(mut command: Command, columns: u16, rows: u16) -> Self {
        let near = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&near).unwrap();
        unlockpt(&near).unwrap();
        let path = ptsname(&near, Vec::new()).unwrap();
        let far = File::options().read(true).write(true).open(path.to_str().unwrap()).unwrap();
        tcsetwinsize(&near, size(columns, rows)).unwrap();
        command.stdin(far.try_clone().unwrap()).stdout(far.try_clone().unwrap());
        command.stderr(far.try_clone().unwrap()).env("TERM", "xterm-256color");
        // SAFETY: two system calls, which a forked process may make: the terminal becomes the
        // process's own, so that it hears of a new size.
        unsafe {
            command.pre_exec(|| {
                setsid()?;
                ioctl_tiocsctty(stdio::stdin())?;
                Ok(())
            });
        }
        let child = command.spawn().unwrap();
        let near = File::from(near);
        let shown = Arc::new(Mutex::new(vt100::Parser::new(rows, columns, 0)));
        let (mut from, into) = (near.try_clone().unwrap(), Arc::clone(&shown));
        let reader = std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = from.read(&mut bytes) {
                into.lock().unwrap().process(&bytes[..count]);
            }
        });
        Self { child, near, far: far.into(), shown, reader: Some(reader) }
    }

    /// What is on it now, line by line.
    pub fn text(&self) -> String {
        self.shown.lock().unwrap().screen().contents()
    }

    /// Waits until a person can read this.
    #[track_caller]
    pub fn shows(&self, part: &str) {
        poll(&format!("{part:?} on the terminal"), || {
            let text = self.text();
            if text.contains(part) { Ok(()) } else { Err(text) }
        });
    }

    /// It has another screen than before, without a cursor, and keys are not echoed.
    pub fn is_taken(&self) -> bool {
        let shown = self.shown.lock().unwrap();
        let raw = !self.modes().contains(LocalModes::ECHO | LocalModes::ICANON);
        shown.screen().alternate_screen() && shown.screen().hide_cursor() && raw
    }

    /// It is as it was before.
    pub fn is_given_back(&self) -> bool {
        let shown = self.shown.lock().unwrap();
        let cooked = self.modes().contains(LocalModes::ECHO | LocalModes::ICANON);
        !shown.screen().alternate_screen() && !shown.screen().hide_cursor() && cooked
    }

    fn modes(&self) -> LocalModes {
        tcgetattr(&self.far).unwrap().local_modes
    }

    pub fn types(&mut self, keys: &[u8]) {
        self.near.write_all(keys).unwrap();
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    pub fn resize(&self, columns: u16, rows: u16) {
        self.shown.lock().unwrap().screen_mut().set_size(rows, columns);
        tcsetwinsize(&self.near, size(columns, rows)).unwrap();
    }

    /// Waits until the process ends by itself.
    #[track_caller]
    pub fn ended(&mut self) -> ExitStatus {
        let child = &mut self.child;
        let ended = poll("its end", || match child.try_wait().unwrap() {
            Some(status) => Ok(status),
            None => Err("running".to_owned()),
        });
        assert_eq!(ended.signal(), None, "it puts the terminal in order first");
        ended
    }
}

fn size(columns: u16, rows: u16) -> Winsize {
    Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        // The reader ends with the last descriptor of the terminal's other end, which is closed
        // after this; it is not waited for.
        drop(self.reader.take());
    }
}
