//! What a server runs with: flags over environment over the file of `--config` over defaults.
//!
//! clap merges flags and environment; this module adds the file and the defaults and checks that
//! the parts fit together. It reads nothing but the file: what depends on the machine comes in as
//! [`Machine`].

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Deserialize;

use super::{
    args::ServeArgs,
    values::{Detection, Period, Poll, Size, TransportChoice},
};
use crate::{
    name::{NAME_LEN_MAX, Name},
    paths,
};

/// Where a server listens for others when nobody says where.
pub const LISTEN_DEFAULT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 7741);
/// Less than one huge page holds no region.
pub const MEMORY_MIN: Size = Size(2 << 20);
/// On how many predecessors a checkpoint can have a copy.
pub const MIRRORS: std::ops::RangeInclusive<u8> = 1..=8;
/// How long handing mirrors over may take when nobody says how long.
pub const LEAVE_TIMEOUT_DEFAULT: Duration = Duration::from_secs(30);
/// A configuration file is far smaller; a larger one is a mistake.
const FILE_LEN_MAX: u64 = 1 << 20;

/// Everything that a server needs to be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServeConfig {
    /// The node's name.
    pub name: Name,
    /// Where other servers reach this one.
    pub listen: SocketAddr,
    /// Servers of the ring to join; empty for a ring of one.
    pub join: Vec<SocketAddr>,
    /// It votes and stores nothing.
    pub witness: bool,
    /// What it shares a fate with.
    pub zone: Option<Name>,
    /// On how many predecessors its checkpoints have a copy.
    pub mirrors: u8,
    /// How long it may take to hand over what it holds before it stops.
    pub leave_timeout: Duration,
    /// The local socket.
    pub socket: PathBuf,
    /// Where region files go when huge pages have no room.
    pub dir: PathBuf,
    /// Most bytes for checkpoints and mirrors; 0 of a witness.
    pub memory_bytes_max: u64,
    /// How bytes travel.
    pub transport: TransportChoice,
    /// The RDMA device; the first active one if none.
    pub device: Option<Name>,
    /// The file with the ring's secret.
    pub cluster_key: Option<PathBuf>,
    /// How the data plane waits.
    pub poll: Poll,
    /// When a silent neighbour counts as lost.
    pub detection: Detection,
    /// The data plane's core.
    pub cpu: Option<usize>,
    /// Where to serve metrics.
    pub metrics: Option<SocketAddr>,
}

/// The part of the defaults that depends on the machine and its user.
#[derive(Debug, Clone)]
pub struct Machine {
    /// Who runs the server.
    pub uid: u32,
    /// The host's name as the system tells it.
    pub hostname: String,
    /// Memory that this process may use: RAM or its control group's limit; zero if not known.
    pub memory_bytes: u64,
    /// See [`paths::run_user_dir`].
    pub run_user: Option<PathBuf>,
}

/// The file of `--config`; its keys are the long flags.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct FileConfig {
    name: Option<Name>,
    listen: Option<SocketAddr>,
    join: Option<Vec<SocketAddr>>,
    witness: Option<bool>,
    zone: Option<Name>,
    mirrors: Option<u8>,
    leave_timeout: Option<Period>,
    socket: Option<PathBuf>,
    dir: Option<PathBuf>,
    memory: Option<Size>,
    transport: Option<TransportChoice>,
    device: Option<Name>,
    cluster_key: Option<PathBuf>,
    poll: Option<Poll>,
    detection: Option<Detection>,
    cpu: Option<usize>,
    metrics: Option<SocketAddr>,
}

/// Why a configuration file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The system refused.
    #[error("reading {path:?}: {source}")]
    System {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is larger than any configuration.
    #[error("{path:?} has {len} bytes; a configuration file has at most {FILE_LEN_MAX}")]
    TooLong {
        /// The file.
        path: PathBuf,
        /// Its length in bytes.
        len: u64,
    },
    /// A key or a value is wrong.
    #[error("{path:?}, line {line}, key {key:?}: {message}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Counted from one.
        line: usize,
        /// What stands before the line's `=`, or the line itself.
        key: String,
        /// What is wrong.
        message: String,
    },
}

/// Why settings do not fit together.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Others could read and write checkpoints without a key.
    #[error("{address} can be reached from other machines, and there is no cluster key")]
    KeyRequired {
        /// The address that is not a loopback one.
        address: SocketAddr,
    },
    /// The address is told to other servers, and `0.0.0.0` leads them nowhere.
    #[error("{address} is no address that other servers can reach")]
    ListenUnspecified {
        /// What was given.
        address: SocketAddr,
    },
    /// A port to join at that nobody can listen on.
    #[error("{address} cannot be joined: port 0 is nobody's")]
    JoinPortZero {
        /// What was given.
        address: SocketAddr,
    },
    /// Somebody has to be there whose changes it votes on.
    #[error("a witness cannot begin a ring: it stores nothing and only votes")]
    WitnessAlone,
    /// What has no meaning for a node that stores nothing.
    #[error("a witness stores nothing, and {setting} was given")]
    WitnessStores {
        /// What was given.
        setting: &'static str,
    },
    /// A number of copies that there is not.
    #[error("{given} mirrors cannot be kept; it is {} to {}", MIRRORS.start(), MIRRORS.end())]
    MirrorsOutOfRange {
        /// What was given.
        given: u8,
    },
    /// Too little memory for any checkpoint.
    #[error("{given} of memory hold no checkpoint; the least is {MEMORY_MIN}")]
    TooLittleMemory {
        /// What was given.
        given: Size,
    },
    /// More memory than there is.
    #[error("{given} of memory are more than this machine or control group has, {available}")]
    TooMuchMemory {
        /// What was given.
        given: Size,
        /// What there is.
        available: Size,
    },
    /// An RDMA device was named and RDMA forbidden.
    #[error("the device {device} was named, but the transport is tcp")]
    DeviceUnused {
        /// What was given.
        device: Name,
    },
}

impl ConfigError {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::KeyRequired { .. } => {
                "make one with `ringkeep keygen -o FILE`, copy it to every node and give \
                 --cluster-key FILE; or use loopback addresses"
            }
            Self::ListenUnspecified { .. } => "give --listen the address of one interface",
            Self::JoinPortZero { .. } => "give --join the address that the other server listens on",
            Self::WitnessAlone => {
                "give --join the addresses of the servers that it is to vote with"
            }
            Self::WitnessStores { .. } => {
                "leave it out of the flags, the environment and the file, or leave out --witness"
            }
            Self::MirrorsOutOfRange { .. } => {
                "give --mirrors the number of nodes that a checkpoint must survive the loss of"
            }
            Self::TooLittleMemory { .. } => "give --memory more, as in 1g",
            Self::TooMuchMemory { .. } => "give --memory less: services need some, too",
            Self::DeviceUnused { .. } => "leave --device out, or choose --transport auto or rdma",
        }
    }
}

impl FileConfig {
    /// Reads the file at `path`.
    pub fn read(path: &Path) -> Result<Self, FileError> {
        let system = |source| FileError::System { path: path.to_owned(), source };
        let len = fs::metadata(path).map_err(system)?.len();
        if len > FILE_LEN_MAX {
            return Err(FileError::TooLong { path: path.to_owned(), len });
        }
        Self::parse(path, &fs::read_to_string(path).map_err(system)?)
    }

    fn parse(path: &Path, text: &str) -> Result<Self, FileError> {
        toml::from_str(text).map_err(|e| {
            let start = e.span().map_or(0, |span| span.start.min(text.len()));
            let line = text.as_bytes()[..start].iter().filter(|&&b| b == b'\n').count();
            let content = text.lines().nth(line).unwrap_or_default();
            let key = content.split('=').next().unwrap_or_default().trim().to_owned();
            let message = e.message().lines().collect::<Vec<_>>().join(" ");
            FileError::Malformed { path: path.to_owned(), line: line + 1, key, message }
        })
    }
}

/// Puts a server's settings together and checks them. `flags` carry the environment already, and
/// so does `socket`, which is a flag of every command.
pub fn resolve(
    flags: ServeArgs,
    socket: Option<PathBuf>,
    file: FileConfig,
    machine: &Machine,
) -> Result<ServeConfig, ConfigError> {
    let name = flags.name.or(file.name).unwrap_or_else(|| node_name(&machine.hostname));
    let witness = flags.witness.or(file.witness).unwrap_or(false);
    let (memory, mirrors) = (flags.memory.or(file.memory), flags.mirrors.or(file.mirrors));
    if witness {
        let stores = [(memory.is_some(), "memory"), (mirrors.is_some(), "mirrors")];
        if let Some(&(_, setting)) = stores.iter().find(|(given, _)| *given) {
            return Err(ConfigError::WitnessStores { setting });
        }
    }
    let memory_default = if witness { 0 } else { machine.memory_bytes / 2 };
    let leave_timeout = flags.leave_timeout.or(file.leave_timeout);
    let default_socket = || paths::default_socket(machine.uid, machine.run_user.as_deref());
    let config = ServeConfig {
        listen: flags.listen.or(file.listen).unwrap_or(LISTEN_DEFAULT),
        join: flags.join.or(file.join).unwrap_or_default(),
        witness,
        zone: flags.zone.or(file.zone),
        mirrors: mirrors.unwrap_or(*MIRRORS.start()),
        leave_timeout: leave_timeout.map_or(LEAVE_TIMEOUT_DEFAULT, |period| period.0),
        socket: socket.or(file.socket).unwrap_or_else(default_socket),
        dir: (flags.dir.or(file.dir)).unwrap_or_else(|| paths::default_dir(machine.uid, &name)),
        memory_bytes_max: memory.map_or(memory_default, |size| size.0),
        transport: flags.transport.or(file.transport).unwrap_or(TransportChoice::Auto),
        device: flags.device.or(file.device),
        cluster_key: flags.cluster_key.or(file.cluster_key),
        poll: flags.poll.or(file.poll).unwrap_or(Poll::Adaptive),
        detection: flags.detection.or(file.detection).unwrap_or(Detection::Normal),
        cpu: flags.cpu.or(file.cpu),
        metrics: flags.metrics.or(file.metrics),
        name,
    };
    check(&config, machine)?;
    Ok(config)
}

fn check(config: &ServeConfig, machine: &Machine) -> Result<(), ConfigError> {
    if config.listen.ip().is_unspecified() {
        return Err(ConfigError::ListenUnspecified { address: config.listen });
    }
    if let Some(&address) = config.join.iter().find(|address| address.port() == 0) {
        return Err(ConfigError::JoinPortZero { address });
    }
    let mut peers = std::iter::once(&config.listen).chain(&config.join);
    match peers.find(|address| !address.ip().is_loopback()) {
        Some(&address) if config.cluster_key.is_none() => {
            return Err(ConfigError::KeyRequired { address });
        }
        _ => {}
    }
    if config.witness && config.join.iter().all(|address| *address == config.listen) {
        return Err(ConfigError::WitnessAlone);
    }
    if !MIRRORS.contains(&config.mirrors) {
        return Err(ConfigError::MirrorsOutOfRange { given: config.mirrors });
    }
    if config.memory_bytes_max < MEMORY_MIN.0 && !config.witness {
        return Err(ConfigError::TooLittleMemory { given: Size(config.memory_bytes_max) });
    }
    // Zero is memory that the system does not tell.
    let available = Size(machine.memory_bytes);
    if available.0 > 0 && config.memory_bytes_max > available.0 {
        let given = Size(config.memory_bytes_max);
        return Err(ConfigError::TooMuchMemory { given, available });
    }
    match (&config.device, config.transport) {
        (Some(device), TransportChoice::Tcp) => {
            Err(ConfigError::DeviceUnused { device: device.clone() })
        }
        _ => Ok(()),
    }
}

/// A host's name made into a node's name: what a name cannot hold becomes a dash.
pub fn node_name(hostname: &str) -> Name {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let text: String = hostname
        .trim_start_matches('.')
        .chars()
        .map(|c| if allowed(c) { c } else { '-' })
        .take(NAME_LEN_MAX)
        .collect();
    // Only the empty name is left to refuse.
    Name::new(&text).unwrap_or_else(|_| Name::new("node").expect("a constant that is a name"))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::args::{Cli, Command};

    fn machine() -> Machine {
        let hostname = "node 7.example".to_owned();
        Machine { uid: 1000, hostname, memory_bytes: 8 << 30, run_user: None }
    }

    fn flags(line: &str) -> (ServeArgs, Option<PathBuf>) {
        let words = ["ringkeep", "serve"].into_iter().chain(line.split_whitespace());
        let cli = Cli::try_parse_from(words).unwrap();
        let Command::Serve(args) = cli.command else { panic!("serve") };
        (args, cli.global.socket)
    }

    fn file(text: &str) -> Result<FileConfig, String> {
        FileConfig::parse(Path::new("r.toml"), text).map_err(|e| e.to_string())
    }

    fn name(text: &str) -> Name {
        Name::new(text).unwrap()
    }

    fn with(line: &str, text: &str) -> Result<ServeConfig, ConfigError> {
        let (args, socket) = flags(line);
        resolve(args, socket, file(text).unwrap(), &machine())
    }

    #[test]
    fn with_no_setting_it_is_a_ring_of_one() {
        let config = with("", "").unwrap();
        assert_eq!(config.name.as_str(), "node-7.example");
        assert_eq!((config.listen, config.join), (LISTEN_DEFAULT, vec![]));
        assert_eq!(config.socket, Path::new("/tmp/ringkeep-1000/ringkeep.sock"));
        assert_eq!(config.dir, Path::new("/dev/shm/ringkeep-1000/node-7.example"));
        assert_eq!(config.memory_bytes_max, 4 << 30);
        assert_eq!((config.transport, config.poll), (TransportChoice::Auto, Poll::Adaptive));
        assert_eq!((config.witness, config.zone, config.mirrors), (false, None, 1));
        assert_eq!(config.leave_timeout, Duration::from_secs(30));
    }

    #[test]
    fn a_flag_overrides_the_file_and_the_file_the_default() {
        let text = "
            name = 'f'
            listen = '127.0.0.1:1'
            join = ['127.0.0.1:2', '127.0.0.1:3']
            socket = '/f.sock'
            dir = '/f'
            memory = '64MiB'
            transport = 'tcp'
            cluster-key = '/f.key'
            poll = 'busy'
            cpu = 1
            metrics = '127.0.0.1:4'
            zone = 'rack-1'
            mirrors = 2
            leave-timeout = '1m'
        ";
        let config = with("", text).unwrap();
        assert_eq!((config.name.as_str(), config.listen.port()), ("f", 1));
        assert_eq!((config.join.len(), config.memory_bytes_max), (2, 64 << 20));
        assert_eq!((config.socket, config.dir), ("/f.sock".into(), "/f".into()));
        assert_eq!((config.transport, config.poll), (TransportChoice::Tcp, Poll::Busy));
        assert_eq!((config.cpu, config.metrics.unwrap().port()), (Some(1), 4));
        assert_eq!(config.cluster_key, Some("/f.key".into()));
        assert_eq!((config.zone, config.mirrors), (Some(name("rack-1")), 2));
        assert_eq!(config.leave_timeout, Duration::from_secs(60));

        let line = "--name g --listen 127.0.0.1:9 --join 127.0.0.1:8 --socket /g.sock --dir /g \
                    --memory 1g --transport auto --cluster-key /g.key --poll adaptive --cpu 0 \
                    --metrics 127.0.0.1:7 --zone rack-2 --mirrors 3 --leave-timeout 0s";
        let config = with(line, text).unwrap();
        assert_eq!((config.name.as_str(), config.listen.port()), ("g", 9));
        assert_eq!((config.join.len(), config.memory_bytes_max), (1, 1 << 30));
        assert_eq!((config.socket, config.dir), ("/g.sock".into(), "/g".into()));
        assert_eq!((config.transport, config.poll), (TransportChoice::Auto, Poll::Adaptive));
        assert_eq!((config.cpu, config.metrics.unwrap().port()), (Some(0), 7));
        assert_eq!(config.cluster_key, Some("/g.key".into()));
        assert_eq!((config.zone, config.mirrors), (Some(name("rack-2")), 3));
        assert_eq!(config.leave_timeout, Duration::ZERO);
    }

    #[test]
    fn a_witness_joins_and_stores_nothing() {
        let join = "--join 127.0.0.1:1 --zone z";
        let config = with(&format!("--witness {join}"), "").unwrap();
        assert_eq!((config.witness, config.memory_bytes_max), (true, 0));
        assert!(with(join, "witness = true").unwrap().witness);
        assert!(!with(&format!("--witness=false {join}"), "witness = true").unwrap().witness);
        assert!(!with(join, "").unwrap().witness);
        assert_eq!(with("--witness", ""), Err(ConfigError::WitnessAlone));
        let itself = "--witness --listen 127.0.0.1:1 --join 127.0.0.1:1";
        assert_eq!(with(itself, ""), Err(ConfigError::WitnessAlone));
        let stores = |setting| Err(ConfigError::WitnessStores { setting });
        let line = format!("--witness {join}");
        assert_eq!(with(&line, "memory = '1g'"), stores("memory"));
        assert_eq!(with(&format!("{line} --mirrors 2"), ""), stores("mirrors"));
    }

    #[test]
    fn without_a_key_only_loopback_addresses_are_allowed() {
        let address = "10.0.0.2:7741".parse().unwrap();
        let refused = Err(ConfigError::KeyRequired { address });
        assert_eq!(with("--listen 10.0.0.2:7741", ""), refused);
        assert_eq!(with("--join 127.0.0.1:1,10.0.0.2:7741", ""), refused);
        assert_eq!(with("", "listen = '10.0.0.2:7741'"), refused);
        assert!(with("--listen 10.0.0.2:7741 --cluster-key k", "").is_ok());
        assert!(with("--listen [::1]:1", "").is_ok());
        let anywhere = with("--listen 0.0.0.0:1 --cluster-key k", "");
        assert!(matches!(anywhere, Err(ConfigError::ListenUnspecified { .. })));
    }

    #[test]
    fn what_does_not_fit_together_is_refused() {
        let refused = |line| with(line, "").unwrap_err();
        assert_eq!(refused("--mirrors 0"), ConfigError::MirrorsOutOfRange { given: 0 });
        assert_eq!(refused("--mirrors 9"), ConfigError::MirrorsOutOfRange { given: 9 });
        assert_eq!(refused("--memory 4096"), ConfigError::TooLittleMemory { given: Size(4096) });
        let (given, available) = (Size(9 << 30), Size(8 << 30));
        assert_eq!(refused("--memory 9g"), ConfigError::TooMuchMemory { given, available });
        let device = Name::new("rxe0").unwrap();
        assert_eq!(refused("--transport tcp --device rxe0"), ConfigError::DeviceUnused { device });
        let address = "127.0.0.1:0".parse().unwrap();
        assert_eq!(refused("--join 127.0.0.1:0"), ConfigError::JoinPortZero { address });
    }

    #[test]
    fn a_file_error_names_file_line_and_key() {
        let told = file("name = 'a'\nlisten = 'nowhere'\n").unwrap_err();
        assert!(told.starts_with("\"r.toml\", line 2, key \"listen\": "), "{told}");
        let told = file("\n\nmemroy = 1\n").unwrap_err();
        assert!(told.contains("line 3, key \"memroy\"") && told.contains("unknown"), "{told}");
        let told = file("memory = 'much'").unwrap_err();
        assert!(told.contains("line 1, key \"memory\"") && told.contains("64MiB"), "{told}");
        let told = file("name = '../x'").unwrap_err();
        assert!(told.contains("must not start with a dot"), "{told}");
        let told = file("leave-timeout = '30'").unwrap_err();
        assert!(told.contains("line 1, key \"leave-timeout\"") && told.contains("5s"), "{told}");
        let told = file("poll = true").unwrap_err();
        assert!(told.contains("line 1, key \"poll\""), "{told}");
        assert!(file("name = 'a'\nname = 'b'").is_err());
        assert!(file("\u{feff}= =").is_err());
        assert_eq!(file("memory = 4194304").unwrap().memory, Some(Size(4 << 20)));
    }

    #[test]
    fn any_host_has_a_node_name() {
        assert_eq!(node_name("n1").as_str(), "n1");
        assert_eq!(node_name("").as_str(), "node");
        assert_eq!(node_name("...").as_str(), "node");
        assert_eq!(node_name("a/../b").as_str(), "a-..-b");
        assert_eq!(node_name(&"é".repeat(300)).as_str().len(), NAME_LEN_MAX);
    }
}
