//! Reads the machine: files of `/proc` and `/sys`, limits, and short tries: a port, a socket, and
//! whether each RDMA device moves bytes and takes memory. What cannot be read is not known; nothing
//! here fails or changes anything.

use std::{
    fs,
    net::{IpAddr, SocketAddr, TcpListener},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::{
    fs::{Access, access, statvfs},
    process::{Resource, getrlimit},
};

use super::parse;
use crate::{
    client::Client,
    cluster_key::{ClusterKey, ReadKeyError},
    region::transparent,
};

/// Where shared memory lies on every Linux.
pub const SHM_DIR: &str = "/dev/shm";
/// What is registered where no huge page is free.
#[cfg(feature = "rdma")]
const TRIAL_BYTES: usize = 2 << 20;
/// A server that does not answer within this is not waited for.
const ANSWER_LIMIT: Duration = Duration::from_secs(1);
/// The libraries of rdma-core that the verbs transport needs.
pub const RDMA_LIBRARIES: [&str; 2] = ["libibverbs.so.1", "librdmacm.so.1"];

/// Whether the server will use RDMA.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rdma {
    /// It will not.
    Unused,
    /// Where it works.
    Welcome,
    /// It will not start without.
    Required,
}

/// What a person asked the doctor to look at.
#[derive(Debug, Clone)]
pub struct Asked {
    /// Who asks.
    pub uid: u32,
    /// The local socket.
    pub socket: PathBuf,
    /// The address for other servers.
    pub listen: SocketAddr,
    /// The cluster key's file.
    pub cluster_key: Option<PathBuf>,
    /// Whether RDMA is to work.
    pub rdma: Rdma,
    /// The only RDMA device to look at.
    pub device: Option<String>,
}

/// Everything that [`super::checks`] decides on.
#[derive(Debug)]
pub struct Facts {
    /// What was asked.
    pub asked: Asked,
    /// The kernel's release.
    pub kernel: String,
    /// Cores that this process may use.
    pub cores: usize,
    /// The kernel's clock source.
    pub clock_source: Option<String>,
    /// RAM in bytes.
    pub ram_bytes: Option<u64>,
    /// The smallest limit of this process's control groups, bytes.
    pub cgroup_bytes_max: Option<u64>,
    /// Pools of huge pages.
    pub huge_pools: Vec<HugePool>,
    /// The system joins ordinary pages to huge ones when asked to.
    pub joins_pages: bool,
    /// Mounts of hugetlbfs.
    pub huge_mounts: Vec<HugeMount>,
    /// The limit of locked memory.
    pub memlock: Memlock,
    /// `/dev/shm`.
    pub shm: Option<Space>,
    /// Whether this build has the verbs transport.
    pub rdma_built: bool,
    /// RDMA devices.
    pub rdma_devices: Vec<RdmaDevice>,
    /// Whether the Soft-RoCE module can be loaded or is.
    pub rxe_available: bool,
    /// Libraries of rdma-core that are missing.
    pub rdma_libraries_missing: Vec<&'static str>,
    /// TCP's congestion control.
    pub congestion_control: Option<String>,
    /// Reading the key that was asked for.
    pub key: Option<Result<(), ReadKeyError>>,
    /// The local socket.
    pub socket: SocketState,
    /// The server that answers there is a witness.
    pub witness: bool,
    /// Why the port cannot be listened on, if it cannot.
    pub listen_error: Option<String>,
}

/// A pool of huge pages of one size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HugePool {
    /// Bytes of one page.
    pub page_bytes: u64,
    /// Pages in the pool.
    pub pages: u64,
    /// Pages that nobody uses and nobody has reserved.
    pub pages_free: u64,
}

/// A mounted hugetlbfs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HugeMount {
    /// Where.
    pub point: String,
    /// Bytes of one page, if the mount says so.
    pub page_bytes: Option<u64>,
    /// Whether this user may make files there.
    pub writable: bool,
}

/// A file system's room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Space {
    /// `tmpfs`, …; empty when unknown.
    pub kind: String,
    /// All bytes.
    pub bytes: u64,
    /// Free bytes.
    pub bytes_free: u64,
    /// Whether this user may make files there.
    pub writable: bool,
}

/// The limit of locked memory, to which memory registered with a device counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memlock {
    /// The limit; none when there is none.
    pub bytes_max: Option<u64>,
    /// What the limit can be raised to without privileges.
    pub hard_bytes_max: Option<u64>,
    /// Whether this process has `CAP_IPC_LOCK`, which no limit binds.
    pub is_exempt: bool,
}

/// An RDMA device's first port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RdmaDevice {
    /// As in `mlx5_0` or `rxe0`.
    pub name: String,
    /// `Ethernet` or `InfiniBand`.
    pub link_layer: String,
    /// `ACTIVE`, `DOWN`, …
    pub state: String,
    /// Its network interface, if it has one.
    pub netdev: Option<String>,
    /// The addresses that others can reach, RoCE v2.
    pub addresses: Vec<IpAddr>,
    /// Why a server cannot open it.
    pub problem: Option<String>,
    /// Whether it does what a server needs; none if that was not tried.
    pub trials: Option<Trials>,
}

/// What an RDMA device was asked to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trials {
    /// Send a message to itself: how long it took.
    pub loopback: Result<Duration, Refusal>,
    /// Take memory: how long that took.
    pub register: Result<Duration, Refusal>,
    /// Bytes of the memory that was to be registered.
    pub register_bytes: u64,
    /// Whether that memory was one huge page; ordinary memory where none is free.
    pub register_huge: bool,
}

/// Why a device did not do something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// What it is.
    pub kind: RefusalKind,
    /// In words.
    pub why: String,
}

/// What to do about a refusal depends on this.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefusalKind {
    /// The limit of locked memory.
    Memlock,
    /// It could not be tried, which says nothing about the device.
    Untried,
    /// Anything else.
    Other,
}

/// The local socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SocketState {
    /// Something accepts connections.
    Answers,
    /// A file is there, nobody listens; a server would replace it.
    Stale,
    /// Nothing there, and a server could make it.
    Free,
    /// Nothing there, and this user may not make it.
    NotWritable,
}

/// Reads everything.
pub fn read(asked: Asked) -> Facts {
    let mounts = parse::mounts(&text("/proc/mounts"));
    let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
    Facts {
        cores: std::thread::available_parallelism().map_or(1, usize::from),
        clock_source: known("/sys/devices/system/clocksource/clocksource0/current_clocksource"),
        ram_bytes: parse::meminfo(&text("/proc/meminfo"), "MemTotal"),
        cgroup_bytes_max: cgroup_bytes_max(&mounts),
        huge_pools: huge_pools(),
        joins_pages: transparent::is_offered(),
        huge_mounts: huge_mounts(&mounts),
        memlock: memlock(),
        rdma_built: cfg!(feature = "rdma"),
        shm: space(SHM_DIR, &mounts),
        rdma_devices: rdma_devices(&asked),
        rxe_available: module_available("rdma_rxe", &kernel),
        rdma_libraries_missing: RDMA_LIBRARIES.into_iter().filter(|l| !has_library(l)).collect(),
        congestion_control: known("/proc/sys/net/ipv4/tcp_congestion_control"),
        key: (asked.cluster_key.as_deref())
            .map(|path| ClusterKey::read(path, asked.uid).map(|_secret| ())),
        witness: is_witness(&asked.socket),
        socket: socket_state(&asked.socket),
        listen_error: TcpListener::bind(asked.listen).err().map(|e| e.to_string()),
        kernel,
        asked,
    }
}

/// Memory that this process may use: RAM, or its control groups' limit if that is less.
pub fn memory_bytes() -> u64 {
    let ram = parse::meminfo(&text("/proc/meminfo"), "MemTotal");
    let limit = cgroup_bytes_max(&parse::mounts(&text("/proc/mounts")));
    ram.into_iter().chain(limit).min().unwrap_or(0)
}

fn text(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn known(path: impl AsRef<Path>) -> Option<String> {
    let text = text(path).trim().to_owned();
    (!text.is_empty()).then_some(text)
}

/// The names in a directory, sorted; none if it is not there.
fn names(dir: impl AsRef<Path>) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<String> =
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort_unstable();
    names
}

/// The least limit from this process's group up to the root of its hierarchy. In a container the
/// mounted hierarchy begins at the container's own group, whose limit is then found at its root.
fn cgroup_bytes_max(mounts: &[parse::Mount]) -> Option<u64> {
    let paths = parse::cgroup_paths(&text("/proc/self/cgroup"));
    let v2 = mounts.iter().find(|m| m.kind == "cgroup2");
    let has_memory =
        |m: &&parse::Mount| m.kind == "cgroup" && m.options.split(',').any(|o| o == "memory");
    let v1 = mounts.iter().find(has_memory);
    let least = |mount: Option<&parse::Mount>, group: Option<String>, file| {
        let (root, group) = (PathBuf::from(&mount?.point), group?);
        let below = root.join(group.trim_start_matches('/'));
        let groups = below.ancestors().take_while(|dir| dir.starts_with(&root));
        groups.filter_map(|dir| parse::cgroup_limit(&text(dir.join(file)))).min()
    };
    let v2 = least(v2, paths.v2, "memory.max");
    let v1 = least(v1, paths.v1_memory, "memory.limit_in_bytes");
    v2.into_iter().chain(v1).min()
}

fn huge_pools() -> Vec<HugePool> {
    let root = Path::new("/sys/kernel/mm/hugepages");
    let pool = |name: String| {
        let kib = name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse::<u64>().ok()?;
        let number = |file| text(root.join(&name).join(file)).trim().parse::<u64>().ok();
        let (pages, free) = (number("nr_hugepages")?, number("free_hugepages")?);
        let reserved = number("resv_hugepages").unwrap_or(0);
        let (page_bytes, pages_free) = (kib.checked_mul(1024)?, free.saturating_sub(reserved));
        Some(HugePool { page_bytes, pages, pages_free })
    };
    names(root).into_iter().filter_map(pool).collect()
}

fn huge_mounts(mounts: &[parse::Mount]) -> Vec<HugeMount> {
    let huge = mounts.iter().filter(|m| m.kind == "hugetlbfs");
    huge.map(|m| HugeMount {
        point: m.point.clone(),
        page_bytes: m.option("pagesize").and_then(parse::page_size),
        writable: writable(Path::new(&m.point)),
    })
    .collect()
}

fn writable(dir: &Path) -> bool {
    dir.is_dir() && access(dir, Access::WRITE_OK | Access::EXEC_OK).is_ok()
}

fn space(point: &str, mounts: &[parse::Mount]) -> Option<Space> {
    let stat = statvfs(point).ok()?;
    let kind = mounts.iter().rfind(|m| m.point == point).map(|m| m.kind.clone());
    Some(Space {
        kind: kind.unwrap_or_default(),
        bytes: stat.f_blocks.saturating_mul(stat.f_frsize),
        bytes_free: stat.f_bavail.saturating_mul(stat.f_frsize),
        writable: writable(Path::new(point)),
    })
}

fn memlock() -> Memlock {
    let limit = getrlimit(Resource::Memlock);
    Memlock {
        bytes_max: limit.current,
        hard_bytes_max: limit.maximum,
        is_exempt: parse::has_capability(&text("/proc/self/status"), parse::CAP_IPC_LOCK),
    }
}

/// What the kernel says of its devices, which needs no library, and what a server finds when it
/// opens them.
fn rdma_devices(asked: &Asked) -> Vec<RdmaDevice> {
    let root = Path::new("/sys/class/infiniband");
    let device = |name: String| {
        let dir = root.join(&name);
        let port = dir.join("ports").join(names(dir.join("ports")).into_iter().next()?);
        // Without an address the first is not told; Soft-RoCE and hardware have other places.
        let netdev = known(port.join("gid_attrs/ndevs/0"))
            .or_else(|| known(dir.join("parent")))
            .or_else(|| names(dir.join("device/net")).into_iter().next());
        Some(RdmaDevice {
            link_layer: known(port.join("link_layer")).unwrap_or_default(),
            state: parse::port_state(&text(port.join("state"))),
            netdev,
            addresses: Vec::new(),
            problem: None,
            trials: None,
            name,
        })
    };
    let mut devices: Vec<RdmaDevice> = names(root).into_iter().filter_map(device).collect();
    if asked.rdma != Rdma::Unused {
        open_devices(&mut devices, asked.device.as_deref());
    }
    devices
}

#[cfg(not(feature = "rdma"))]
fn open_devices(_devices: &mut [RdmaDevice], _wanted: Option<&str>) {}

#[cfg(feature = "rdma")]
fn open_devices(devices: &mut [RdmaDevice], wanted: Option<&str>) {
    use crate::transport::verbs::discovery;

    if devices.is_empty() {
        return;
    }
    let found = discovery::devices();
    for device in devices {
        let Some(found) = found.iter().find(|found| found.name == device.name) else {
            device.problem = Some("libibverbs does not find it".to_owned());
            continue;
        };
        device.addresses.clone_from(&found.addresses);
        device.problem.clone_from(&found.problem);
        if found.problem.is_none() && wanted.is_none_or(|wanted| wanted == device.name) {
            device.trials = Some(trials(&device.name));
        }
    }
}

#[cfg(feature = "rdma")]
fn trials(device: &str) -> Trials {
    use super::{huge_page::HugePage, loopback};
    use crate::transport::verbs::probe;

    let mut page = HugePage::new();
    let mut ordinary = Vec::new();
    let memory = match &mut page {
        Ok(page) => page.as_mut_slice(),
        Err(_) => {
            ordinary.resize(TRIAL_BYTES, 0);
            &mut ordinary[..]
        }
    };
    let (register_bytes, register) = (memory.len() as u64, probe::register(Some(device), memory));
    let kind = |is_memlock: bool, is_untried: bool| match (is_memlock, is_untried) {
        (true, _) => RefusalKind::Memlock,
        (_, true) => RefusalKind::Untried,
        _ => RefusalKind::Other,
    };
    Trials {
        loopback: loopback::send_to_itself(device).map_err(|error| Refusal {
            kind: kind(error.is_memlock(), error.is_untried()),
            why: error.to_string(),
        }),
        register: register.map_err(|error| Refusal {
            kind: kind(error.is_memlock(), false),
            why: error.to_string(),
        }),
        register_bytes,
        register_huge: page.is_ok(),
    }
}

fn module_available(module: &str, kernel: &str) -> bool {
    let lists = Path::new("/lib/modules").join(kernel);
    Path::new("/sys/module").join(module).exists()
        || parse::has_module(&text(lists.join("modules.dep")), module)
        || parse::has_module(&text(lists.join("modules.builtin")), module)
}

fn has_library(file: &str) -> bool {
    let triple = format!("{}-linux-gnu", std::env::consts::ARCH);
    let roots = ["/lib", "/usr/lib", "/lib64", "/usr/lib64", "/usr/local/lib"];
    let dirs = roots.iter().flat_map(|root| [PathBuf::from(root), Path::new(root).join(&triple)]);
    let asked = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    dirs.chain(std::env::split_paths(&asked)).any(|dir| dir.join(file).exists())
}

fn is_witness(socket: &Path) -> bool {
    let client = Client::connect_to(socket);
    let status = client.and_then(|client| client.status_within(ANSWER_LIMIT));
    status.is_ok_and(|status| status.witness)
}

fn socket_state(path: &Path) -> SocketState {
    if UnixStream::connect(path).is_ok() {
        return SocketState::Answers;
    }
    // The server makes the last directory itself, but not the one above it.
    let existing = path.ancestors().skip(1).take(2).find(|dir| dir.exists());
    match (path.exists(), existing.is_some_and(writable)) {
        (_, false) => SocketState::NotWritable,
        (true, true) => SocketState::Stale,
        (false, true) => SocketState::Free,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_can_be_read() {
        assert!(memory_bytes() > 0);
        assert!(writable(Path::new("/tmp")));
        assert!(!writable(Path::new("/no/such/directory")));
        assert!(!has_library("libnothing-of-this-name.so.1"));
    }

    #[test]
    fn a_socket_is_free_then_answers_then_is_stale() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("s");
        assert_eq!(socket_state(&path), SocketState::Free);
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        assert_eq!(socket_state(&path), SocketState::Answers);
        drop(listener);
        assert_eq!(socket_state(&path), SocketState::Stale);
        assert_eq!(socket_state(&path.join("below-a-socket")), SocketState::NotWritable);
    }
}
