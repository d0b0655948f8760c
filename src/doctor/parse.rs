//! Reads what the kernel writes into its small files. Nothing here fails: a line that cannot be
//! understood is a fact that is not known.

/// One line of `/proc/mounts`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Where it is mounted.
    pub point: String,
    /// `tmpfs`, `hugetlbfs`, …
    pub kind: String,
    /// Comma-separated, as mounted.
    pub options: String,
}

/// The lines of `/proc/mounts`.
pub fn mounts(text: &str) -> Vec<Mount> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split(' ');
            let (_device, point, kind) = (words.next()?, words.next()?, words.next()?);
            let options = words.next()?.to_owned();
            Some(Mount { point: unescape(point), kind: kind.to_owned(), options })
        })
        .collect()
}

/// `\040` and its like, in which the kernel writes blanks.
fn unescape(text: &str) -> String {
    text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

impl Mount {
    /// The value of `key=value` among the options.
    pub fn option(&self, key: &str) -> Option<&str> {
        self.options.split(',').find_map(|o| o.strip_prefix(key)?.strip_prefix('='))
    }
}

/// The page size of a hugetlbfs mount: `2M`, `1024M`, `1G`.
pub fn page_size(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "" => 1,
        "K" | "k" => 1 << 10,
        "M" | "m" => 1 << 20,
        "G" | "g" => 1 << 30,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(unit)
}

/// A value of `/proc/meminfo`, in bytes.
pub fn meminfo(text: &str, key: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    let kib = value.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?;
    kib.checked_mul(1024)
}

/// This process's memory control groups from `/proc/self/cgroup`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CgroupPaths {
    /// In the unified hierarchy.
    pub v2: Option<String>,
    /// In the memory controller's own.
    pub v1_memory: Option<String>,
}

/// Reads `/proc/self/cgroup`.
pub fn cgroup_paths(text: &str) -> CgroupPaths {
    let mut paths = CgroupPaths::default();
    for line in text.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(id), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next())
        else {
            continue;
        };
        if id == "0" && controllers.is_empty() {
            paths.v2 = Some(path.to_owned());
        } else if controllers.split(',').any(|c| c == "memory") {
            paths.v1_memory = Some(path.to_owned());
        }
    }
    paths
}

/// A control group's limit in bytes; none for `max` and for the huge number that v1 writes when
/// there is no limit.
pub fn cgroup_limit(text: &str) -> Option<u64> {
    text.trim().parse::<u64>().ok().filter(|&bytes| bytes < 1 << 60)
}

/// `4: ACTIVE` in a port's `state`, without its number.
pub fn port_state(text: &str) -> String {
    text.split_once(':').map_or(text, |(_, state)| state).trim().to_owned()
}

/// The number of the capability that no limit of locked memory binds.
pub const CAP_IPC_LOCK: u32 = 14;

/// Whether a `/proc/PID/status` says that its process may use this capability.
pub fn has_capability(text: &str, capability: u32) -> bool {
    let set = text.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let set = set.and_then(|set| u64::from_str_radix(set.trim(), 16).ok());
    set.is_some_and(|set| set.checked_shr(capability).is_some_and(|bits| bits & 1 == 1))
}

/// Major and minor number of a kernel release such as `6.1.0-18-amd64`.
pub fn kernel_release(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// Whether a module stands in a `modules.dep` or `modules.builtin`.
pub fn has_module(text: &str, module: &str) -> bool {
    let file = format!("{module}.ko");
    text.lines().any(|line| {
        let path = line.split(':').next().unwrap_or_default();
        path.rsplit('/').next().unwrap_or_default().starts_with(&file)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_read_with_their_options() {
        let text = "none /dev/huge\\040pages hugetlbfs rw,relatime,pagesize=2M,size=64M 0 0\n\
                    tmpfs /dev/shm tmpfs rw,size=65536k 0 0\nbroken line\n";
        let mounts = mounts(text);
        assert_eq!(mounts.len(), 2);
        assert_eq!((&*mounts[0].point, &*mounts[0].kind), ("/dev/huge pages", "hugetlbfs"));
        assert_eq!(mounts[0].option("pagesize").and_then(page_size), Some(2 << 20));
        assert_eq!((mounts[1].option("size"), mounts[1].option("mode")), (Some("65536k"), None));
    }

    #[test]
    fn page_sizes_have_units() {
        assert_eq!(page_size("1024M"), Some(1 << 30));
        assert_eq!(page_size("1G"), Some(1 << 30));
        assert_eq!(page_size("2X"), None);
        assert_eq!(page_size("M"), None);
        assert_eq!(page_size("99999999999999G"), None);
    }

    #[test]
    fn meminfo_is_in_bytes() {
        let text = "MemTotal:        8048372 kB\nMemFree: 12 kB\nHugePages_Total:   3\n";
        assert_eq!(meminfo(text, "MemTotal"), Some(8048372 * 1024));
        assert_eq!(meminfo(text, "Mem"), None);
        assert_eq!(meminfo(text, "HugePages_Total"), None);
    }

    #[test]
    fn both_kinds_of_control_groups_are_found() {
        assert_eq!(cgroup_paths("0::/user.slice\n").v2.as_deref(), Some("/user.slice"));
        let mixed = cgroup_paths("9:name=systemd:/\n4:cpu,memory:/job:7\n0::/\n");
        assert_eq!(mixed.v1_memory.as_deref(), Some("/job:7"));
        assert_eq!(cgroup_paths("nothing"), CgroupPaths::default());
        assert_eq!(cgroup_limit("max\n"), None);
        assert_eq!(cgroup_limit("9223372036854771712\n"), None);
        assert_eq!(cgroup_limit("1073741824\n"), Some(1 << 30));
    }

    #[test]
    fn ports_and_capabilities_are_read() {
        assert_eq!(port_state("4: ACTIVE\n"), "ACTIVE");
        let text = "Name:\tsh\nCapInh:\tffffffffffffffff\nCapEff:\t0000000000004000\n";
        assert!(has_capability(text, CAP_IPC_LOCK));
        assert!(!has_capability(text, 0) && !has_capability(text, 99));
    }

    #[test]
    fn kernels_and_their_modules() {
        assert_eq!(kernel_release("6.1.0-18-amd64"), Some((6, 1)));
        assert_eq!(kernel_release("5.15-rc"), Some((5, 15)));
        assert_eq!(kernel_release("linux"), None);
        let dep = "kernel/drivers/infiniband/sw/rxe/rdma_rxe.ko.xz: kernel/net/udp_tunnel.ko\n";
        assert!(has_module(dep, "rdma_rxe"));
        assert!(!has_module(dep, "udp_tunnel"), "only a dependency there");
    }

    proptest::proptest! {
        #[test]
        fn any_text_can_be_read(text: String) {
            for mount in mounts(&text) {
                let _ = mount.option("pagesize").and_then(page_size);
            }
            let _ = (page_size(&text), meminfo(&text, "MemTotal"), cgroup_paths(&text));
            let _ = (cgroup_limit(&text), port_state(&text), has_capability(&text, 14));
            let _ = (kernel_release(&text), has_module(&text, "rdma_rxe"));
        }
    }
}
