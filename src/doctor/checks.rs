//! Decides what the facts mean for a server.

use indicatif::BinaryBytes;

use super::{
    Check, Level,
    facts::{Facts, HugeMount, SocketState},
    parse, rdma,
};
use crate::cluster_key::ReadKeyError;

/// On older kernels nothing was tried.
const KERNEL_MIN: (u32, u32) = (5, 10);
/// The default size of `/dev/shm` in a container; checkpoints need more soon.
const SHM_BYTES_MIN: u64 = 128 << 20;
/// The page size that regions are laid out for.
const HUGE_PAGE_BYTES: u64 = 2 << 20;
/// How many huge pages to add at first: 1 GiB.
const HUGE_PAGES_MORE: u64 = 512;
/// Clock sources that are read without a system call.
const CLOCKS_FAST: [&str; 5] =
    ["tsc", "kvm-clock", "arch_sys_counter", "hyperv_clocksource_tsc_page", "timebase"];

/// Every check, in the order in which to read them.
pub fn all(facts: &Facts) -> Vec<Check> {
    let mut checks = vec![
        kernel(facts),
        cores(facts),
        clock(facts),
        memory(facts),
        hugepages(facts),
        hugetlbfs(facts),
        shm(facts),
        congestion(facts),
        listen(facts),
        socket(facts),
        cluster_key(facts),
    ];
    checks.extend(rdma::all(facts));
    checks
}

pub(super) fn ok(name: &'static str, found: impl Into<String>) -> Check {
    Check { name, level: Level::Ok, found: found.into(), mend: None }
}

pub(super) fn warn(name: &'static str, found: impl Into<String>, mend: impl Into<String>) -> Check {
    Check { name, level: Level::Warn, found: found.into(), mend: Some(mend.into()) }
}

pub(super) fn fail(name: &'static str, found: impl Into<String>, mend: impl Into<String>) -> Check {
    Check { name, level: Level::Fail, found: found.into(), mend: Some(mend.into()) }
}

fn kernel(facts: &Facts) -> Check {
    let found = format!("Linux {}", facts.kernel);
    match parse::kernel_release(&facts.kernel) {
        Some(release) if release >= KERNEL_MIN => ok("kernel", found),
        _ => {
            let (major, minor) = KERNEL_MIN;
            warn("kernel", found, format!("not tried on it; use Linux {major}.{minor} or newer"))
        }
    }
}

fn cores(facts: &Facts) -> Check {
    match facts.cores {
        1 => warn("cores", "1", "do not use --poll busy: it would starve the services"),
        n => ok("cores", n.to_string()),
    }
}

fn clock(facts: &Facts) -> Check {
    match facts.clock_source.as_deref() {
        Some(source) if CLOCKS_FAST.contains(&source) => ok("clock", source),
        Some(source) => warn(
            "clock",
            format!("{source}: reading the time is a system call"),
            "timings of small commits are too high; boot with clocksource=tsc if the CPU has it",
        ),
        None => ok("clock", "not told by this kernel"),
    }
}

fn memory(facts: &Facts) -> Check {
    let Some(ram) = facts.ram_bytes else {
        return warn("memory", "its size is not known", "give --memory to `ringkeep serve`");
    };
    match facts.cgroup_bytes_max.filter(|&limit| limit < ram) {
        None => ok("memory", BinaryBytes(ram).to_string()),
        Some(limit) => ok(
            "memory",
            format!("{}, this control group up to {}", BinaryBytes(ram), BinaryBytes(limit)),
        ),
    }
}

fn hugepages(facts: &Facts) -> Check {
    let pool = facts.huge_pools.iter().find(|pool| pool.page_bytes == HUGE_PAGE_BYTES);
    let more = pool.map_or(0, |pool| pool.pages).saturating_add(HUGE_PAGES_MORE);
    let mend = format!(
        "sudo sysctl -w vm.nr_hugepages={more}   (1 GiB more; size it for checkpoints and mirrors)"
    );
    match pool {
        Some(pool) if pool.pages_free > 0 => {
            let (free, pages) = (pool.pages_free, pool.pages);
            ok(
                "hugepages",
                format!(
                    "{free} of {pages} pages of 2 MiB free; with TCP and RDMA, regions of 1 MiB \
                     and more lie in them"
                ),
            )
        }
        _ if facts.joins_pages => ok(
            "hugepages",
            "none free in a pool; the system joins ordinary pages for regions of 2 MiB and more \
             (vm.nr_hugepages keeps some back where memory is fragmented)",
        ),
        Some(pool) if pool.pages > 0 => {
            warn("hugepages", format!("all {} pages of 2 MiB are in use", pool.pages), mend)
        }
        Some(_) => warn("hugepages", "none; regions go to tmpfs in pages of 4 KiB", mend),
        None => warn(
            "hugepages",
            "this kernel offers no pages of 2 MiB",
            "regions go to tmpfs; use a kernel with hugetlbfs for more speed",
        ),
    }
}

fn hugetlbfs(facts: &Facts) -> Check {
    let fits = |m: &&HugeMount| m.page_bytes.is_none_or(|bytes| bytes == HUGE_PAGE_BYTES);
    let mut mounts = facts.huge_mounts.iter().filter(fits);
    let mend = format!(
        "sudo mkdir -p /mnt/ringkeep && sudo mount -t hugetlbfs -o \
         pagesize=2M,uid={},mode=0700 none /mnt/ringkeep",
        facts.asked.uid
    );
    if let Some(mount) = mounts.clone().find(|m| m.writable) {
        return ok("hugetlbfs", format!("{}, writable", mount.point));
    }
    let pooled = facts.huge_pools.iter().any(|p| p.page_bytes == HUGE_PAGE_BYTES && p.pages > 0);
    if facts.joins_pages && !pooled {
        return ok("hugetlbfs", "not needed: there is no pool of huge pages");
    }
    match mounts.next() {
        Some(mount) => warn("hugetlbfs", format!("{}, not writable for you", mount.point), mend),
        None => warn("hugetlbfs", "not mounted with pages of 2 MiB", mend),
    }
}

fn shm(facts: &Facts) -> Check {
    let elsewhere = "sudo mount -t tmpfs -o size=50%,mode=1777 tmpfs /dev/shm   \
                     (or --dir PATH on another tmpfs)";
    let Some(shm) = &facts.shm else {
        return fail("shm", "/dev/shm is not there", elsewhere);
    };
    let found = format!(
        "/dev/shm ({}), {} of {} free",
        if shm.kind.is_empty() { "unknown kind" } else { &shm.kind },
        BinaryBytes(shm.bytes_free),
        BinaryBytes(shm.bytes)
    );
    if !shm.writable {
        let mend = "sudo chmod 1777 /dev/shm   (or --dir PATH on another tmpfs)";
        return fail("shm", format!("{found}, not writable for you"), mend);
    }
    if shm.bytes_free < SHM_BYTES_MIN {
        let mend = "sudo mount -o remount,size=50% /dev/shm   (in a container: --shm-size=4g)";
        return warn("shm", found, mend);
    }
    ok("shm", found)
}

fn congestion(facts: &Facts) -> Check {
    match facts.congestion_control.as_deref() {
        Some("bbr") => warn(
            "tcp",
            "congestion control bbr: up to 2x slower for large checkpoints on short ways",
            "sudo sysctl -w net.ipv4.tcp_congestion_control=cubic",
        ),
        Some(name) => ok("tcp", format!("congestion control {name}")),
        None => ok("tcp", "congestion control not told by this kernel"),
    }
}

fn listen(facts: &Facts) -> Check {
    let address = facts.asked.listen;
    match &facts.listen_error {
        None => ok("listen", format!("{address} is free")),
        Some(_) if facts.socket == SocketState::Answers => {
            ok("listen", format!("{address} is taken; a server of yours is running"))
        }
        Some(error) => fail(
            "listen",
            format!("{address}: {error}"),
            "ringkeep serve --listen IP:PORT with an address of this machine and a free port",
        ),
    }
}

fn socket(facts: &Facts) -> Check {
    let path = facts.asked.socket.display();
    match facts.socket {
        SocketState::Answers if facts.witness => {
            ok("socket", format!("{path}, a server answers: a witness, which stores nothing"))
        }
        SocketState::Answers => ok("socket", format!("{path}, a server answers")),
        SocketState::Free => ok("socket", format!("{path}, no server yet")),
        SocketState::Stale => ok("socket", format!("{path}, left over; a new server replaces it")),
        SocketState::NotWritable => fail(
            "socket",
            format!("{path} cannot be made by you"),
            "export RINGKEEP_SOCKET=/tmp/ringkeep.sock   (for server and clients)",
        ),
    }
}

fn cluster_key(facts: &Facts) -> Check {
    let Some(result) = &facts.key else {
        return warn(
            "cluster-key",
            "none given: loopback addresses only",
            "ringkeep keygen -o FILE, then --cluster-key FILE on every node",
        );
    };
    match result {
        Ok(()) => ok("cluster-key", "readable by you alone"),
        Err(e @ ReadKeyError::TooOpen { path, .. }) => {
            fail("cluster-key", e.to_string(), format!("chmod 600 {path:?}"))
        }
        Err(e) => fail(
            "cluster-key",
            e.to_string(),
            "ringkeep keygen -o FILE makes one; copy it to every node",
        ),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Duration;

    use super::*;
    use crate::doctor::{
        Report,
        facts::{Asked, HugePool, Memlock, Rdma, RdmaDevice, Space, Trials},
    };

    /// A machine on which nothing is missing.
    pub(in crate::doctor) fn good() -> Facts {
        Facts {
            asked: Asked {
                uid: 1000,
                socket: "/run/user/1000/ringkeep.sock".into(),
                listen: "127.0.0.1:7741".parse().unwrap(),
                cluster_key: Some("/etc/key".into()),
                rdma: Rdma::Welcome,
                device: None,
            },
            kernel: "6.1.0-18-amd64".to_owned(),
            cores: 8,
            clock_source: Some("tsc".to_owned()),
            ram_bytes: Some(16 << 30),
            cgroup_bytes_max: None,
            huge_pools: vec![HugePool { page_bytes: 2 << 20, pages: 512, pages_free: 500 }],
            joins_pages: false,
            huge_mounts: vec![HugeMount {
                point: "/dev/hugepages".to_owned(),
                page_bytes: Some(2 << 20),
                writable: true,
            }],
            memlock: Memlock { bytes_max: None, hard_bytes_max: None, is_exempt: false },
            shm: Some(Space {
                kind: "tmpfs".to_owned(),
                bytes: 8 << 30,
                bytes_free: 8 << 30,
                writable: true,
            }),
            rdma_devices: vec![RdmaDevice {
                name: "mlx5_0".to_owned(),
                link_layer: "Ethernet".to_owned(),
                state: "ACTIVE".to_owned(),
                netdev: Some("eth1".to_owned()),
                addresses: vec!["10.0.0.2".parse().unwrap()],
                problem: None,
                trials: Some(Trials {
                    loopback: Ok(Duration::from_micros(30)),
                    register: Ok(Duration::from_micros(200)),
                    register_bytes: 2 << 20,
                    register_huge: true,
                }),
            }],
            rdma_built: true,
            rxe_available: true,
            rdma_libraries_missing: vec![],
            congestion_control: Some("cubic".to_owned()),
            key: Some(Ok(())),
            socket: SocketState::Free,
            witness: false,
            listen_error: None,
        }
    }

    /// The checks that are not ok after `spoil`.
    pub(in crate::doctor) fn spoiled(spoil: impl FnOnce(&mut Facts)) -> Vec<Check> {
        let mut facts = good();
        spoil(&mut facts);
        all(&facts).into_iter().filter(|check| check.level != Level::Ok).collect()
    }

    #[track_caller]
    pub(in crate::doctor) fn assert_one(found: &[Check], name: &str, level: Level, mend: &str) {
        let [check] = found else { panic!("{found:?}") };
        assert_eq!((check.name, check.level), (name, level));
        assert!(check.mend.as_ref().unwrap().contains(mend), "{check:?}");
    }

    #[test]
    fn a_good_machine_has_nothing_to_mend() {
        assert_eq!(spoiled(|_| {}), []);
        assert_eq!(Report::new(all(&good())).level, Level::Ok);
    }

    #[test]
    fn what_only_costs_speed_is_a_warning_with_its_command() {
        use Level::Warn;
        assert_one(&spoiled(|f| f.kernel = "4.4.0".into()), "kernel", Warn, "5.10");
        assert_one(&spoiled(|f| f.cores = 1), "cores", Warn, "--poll busy");
        assert_one(&spoiled(|f| f.clock_source = Some("hpet".into())), "clock", Warn, "tsc");
        assert_one(&spoiled(|f| f.huge_pools[0].pages_free = 0), "hugepages", Warn, "=1024 ");
        assert_one(&spoiled(|f| f.huge_pools.clear()), "hugepages", Warn, "tmpfs");
        let joined = |f: &mut Facts| {
            (f.huge_pools, f.huge_mounts, f.joins_pages) = (vec![], vec![], true);
        };
        assert_eq!(spoiled(joined), [], "no pool is needed then");
        let unused = |f: &mut Facts| (f.huge_mounts, f.joins_pages) = (vec![], true);
        assert_one(&spoiled(unused), "hugetlbfs", Warn, "mount");
        assert_one(&spoiled(|f| f.huge_mounts[0].writable = false), "hugetlbfs", Warn, "uid=1000");
        let other = |f: &mut Facts| f.huge_mounts[0].page_bytes = Some(1 << 30);
        assert_one(&spoiled(other), "hugetlbfs", Warn, "pagesize=2M");
        assert_one(&spoiled(|f| f.congestion_control = Some("bbr".into())), "tcp", Warn, "cubic");
        assert_one(&spoiled(|f| f.key = None), "cluster-key", Warn, "keygen");
        let docker = |f: &mut Facts| f.shm.as_mut().unwrap().bytes_free = 64 << 20;
        assert_one(&spoiled(docker), "shm", Warn, "--shm-size");
    }

    #[test]
    fn what_prevents_serving_is_a_failure() {
        use Level::Fail;
        assert_one(&spoiled(|f| f.shm = None), "shm", Fail, "mount -t tmpfs");
        let closed = |f: &mut Facts| f.shm.as_mut().unwrap().writable = false;
        assert_one(&spoiled(closed), "shm", Fail, "--dir");
        assert_one(
            &spoiled(|f| f.listen_error = Some("in use".into())),
            "listen",
            Fail,
            "--listen",
        );
        let closed = |f: &mut Facts| f.socket = SocketState::NotWritable;
        assert_one(&spoiled(closed), "socket", Fail, "RINGKEEP_SOCKET");
        let open = ReadKeyError::TooOpen { path: "/k".into(), mode: 0o644 };
        assert_one(&spoiled(|f| f.key = Some(Err(open))), "cluster-key", Fail, "chmod 600");
    }

    #[test]
    fn a_running_server_of_the_same_user_holds_its_port() {
        let running = |f: &mut Facts| {
            f.listen_error = Some("in use".into());
            f.socket = SocketState::Answers;
        };
        assert_eq!(spoiled(running), []);
        let mut facts = good();
        (facts.socket, facts.witness) = (SocketState::Answers, true);
        assert!(all(&facts).iter().any(|c| c.name == "socket" && c.found.contains("a witness")));
    }
}
