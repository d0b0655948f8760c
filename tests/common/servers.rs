//! Servers started with flags of the test's own, where a [`super::Ring`] is too well behaved.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
};

use ringkeep::{Client, demo::ring::clean, protocol::Status, region::files::Places};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::{RINGKEEP, poll, refused};

/// One server below a directory of its own. Dropping it kills it and removes that directory; after
/// a failure its log is printed.
pub struct Server {
    pub child: Option<Child>,
    pub name: String,
    pub root: PathBuf,
    pub dir: PathBuf,
    pub args: Vec<String>,
    /// What runs the server: a program and its arguments that end with the command to run.
    pub inside: Vec<String>,
    _home: Option<TempDir>,
}

impl Server {
    /// Not started yet; its `--dir` is below a directory of its own.
    pub fn new(name: &str, args: &[&str]) -> Self {
        let home = tempfile::Builder::new().prefix("ringkeep-t-").tempdir_in("/dev/shm").unwrap();
        let root = home.path().to_owned();
        let args = args.iter().map(|&a| a.to_owned()).collect();
        let (name, dir) = (name.to_owned(), root.join("dir"));
        Self { child: None, name, root, dir, args, inside: Vec::new(), _home: Some(home) }
    }

    pub fn socket(&self) -> PathBuf {
        self.root.join("sock")
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.root.join("log")).unwrap_or_default()
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    /// Starts it without waiting for anything.
    pub fn spawn(&mut self) {
        let log = File::options().create(true).append(true).open(self.root.join("log")).unwrap();
        let mut words = self.inside.clone();
        words.push(RINGKEEP.to_owned());
        let mut command = clean(Command::new(&words[0]));
        command.args(&words[1..]).args(["serve", "--name", &self.name]);
        command.arg("--socket").arg(self.socket()).arg("--dir").arg(&self.dir).args(&self.args);
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        self.child = Some(command.spawn().unwrap());
    }

    /// Starts it and waits until it answers.
    #[track_caller]
    pub fn start(&mut self) {
        self.spawn();
        self.answers();
    }

    #[track_caller]
    pub fn answers(&mut self) {
        poll("the server's answer", || match self.child.as_mut().unwrap().try_wait().unwrap() {
            Some(status) => panic!("it ended: {status}"),
            None => self.status(),
        });
    }

    /// Its status; a server that does not answer is given up after some seconds.
    pub fn status(&self) -> Result<Status, String> {
        let (sender, receiver) = std::sync::mpsc::channel();
        let socket = self.socket();
        std::thread::spawn(move || {
            let status = Client::connect_to(socket).and_then(|client| client.status());
            // Nobody listens any more when it took too long.
            let _ = sender.send(status.map_err(|e| e.to_string()));
        });
        let answer = receiver.recv_timeout(std::time::Duration::from_secs(5));
        answer.unwrap_or_else(|_| Err("it does not answer".to_owned()))
    }

    pub fn client(&self) -> Client {
        Client::connect_to(self.socket()).unwrap()
    }

    /// The address that it says it listens at. The last life's last.
    #[track_caller]
    pub fn address(&self) -> String {
        poll("its address", || {
            let log = self.log();
            let said = log.lines().rev().find_map(|l| l.strip_prefix("listening on "));
            said.map(str::to_owned).ok_or_else(|| log.clone())
        })
    }

    #[track_caller]
    pub fn wait(&self, what: &str, mut until: impl FnMut(&Status) -> bool) -> Status {
        poll(what, || {
            let status = self.status()?;
            if until(&status) { Ok(status) } else { Err(format!("{status:?}")) }
        })
    }

    /// Waits until it ends by itself.
    #[track_caller]
    pub fn ended(&mut self) -> ExitStatus {
        poll("its end", || {
            let ended = self.child.as_mut().unwrap().try_wait().unwrap();
            ended.ok_or_else(|| "running".to_owned())
        })
    }

    pub fn kill_9(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Removes its memory files, on ordinary and on huge pages: what a power cut does.
    pub fn wipe_memory(&self) {
        let mounts = fs::read_to_string("/proc/mounts").unwrap();
        let huge = Places::prepare(&self.dir, &mounts).unwrap().huge;
        for dir in huge.map(|(dir, _)| dir).into_iter().chain([self.dir.clone()]) {
            fs::remove_dir_all(dir).unwrap();
        }
    }

    /// SIGTERM.
    pub fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// SIGSTOP.
    pub fn pause(&self) {
        self.signal(Signal::STOP);
    }

    /// SIGCONT.
    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(self.child.as_ref().unwrap()), signal).unwrap();
    }

    #[track_caller]
    pub fn refused(&self, args: &[&str], status: i32) -> String {
        refused(&super::command(&self.socket(), args).output().unwrap(), status)
    }

    #[track_caller]
    pub fn ok(&self, args: &[&str]) -> String {
        let output = super::command(&self.socket(), args).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{args:?}: {said}");
        said.into_owned() + &String::from_utf8_lossy(&output.stdout)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill_9();
        if std::thread::panicking() {
            eprintln!("---- log of {}\n{}", self.name, self.log());
        }
    }
}

/// Holds namespaces of its own: they end with it, and it ends with this process, however that
/// ends. Nothing of them has a name that could be left behind.
pub struct Keeper {
    process: Child,
    _until_closed: ChildStdin,
}

impl Keeper {
    /// In new namespaces, by flags of `unshare`, runs a few shell commands that set them up.
    pub fn start(namespaces: &[&str], script: &str) -> Result<Self, String> {
        let script = format!("set -e; {script}; echo ready; exec cat");
        let mut command = Command::new("unshare");
        command.args(namespaces).args(["sh", "-c", &script]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut process = command.spawn().map_err(|e| format!("unshare: {e}"))?;
        let until_closed = process.stdin.take().unwrap();
        let mut said = String::new();
        let _ = BufReader::new(process.stdout.take().unwrap()).read_line(&mut said);
        let keeper = Self { process, _until_closed: until_closed };
        if said == "ready\n" { Ok(keeper) } else { Err(format!("cannot be done here: {script}")) }
    }

    pub fn pid(&self) -> u32 {
        self.process.id()
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Mounts that only those see who ask for them.
pub struct Mounts(Keeper);

impl Mounts {
    /// Runs a few shell commands that mount something.
    pub fn make(script: &str) -> Result<Self, String> {
        Keeper::start(&["--mount", "--propagation", "private"], script).map(Self)
    }

    /// What a command must begin with to see them.
    pub fn inside(&self) -> Vec<String> {
        let namespace = format!("--mount=/proc/{}/ns/mnt", self.0.pid());
        vec!["nsenter".to_owned(), namespace]
    }

    /// A path as it is seen inside.
    pub fn path(&self, path: &Path) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", self.0.pid()));
        root.join(path.strip_prefix("/").unwrap())
    }
}
