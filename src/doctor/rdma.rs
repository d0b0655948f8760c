//! Decides what the facts about RDMA mean. With `--transport rdma` a server does not start without
//! it, and what keeps it from working is a failure; else it goes on with TCP, and that is a warning.

use std::time::Duration;

use indicatif::BinaryBytes;

use super::{
    Check,
    checks::{fail, ok, warn},
    facts::{Facts, Rdma, RdmaDevice, Refusal, RefusalKind, Trials},
};

/// The checks, in the order in which to read them.
pub(super) fn all(facts: &Facts) -> Vec<Check> {
    if facts.asked.rdma == Rdma::Unused {
        return vec![ok("rdma", "not looked at: --transport tcp")];
    }
    if !facts.rdma_built {
        let mend = "cargo build --release --features rdma   (or --transport tcp)";
        return vec![no_rdma(facts, "rdma", "this build has no RDMA", mend)];
    }
    let mut checks = vec![memlock(facts), libraries(facts)];
    checks.extend(devices(facts));
    checks
}

/// A failure if RDMA is required, else a warning.
fn lacking(
    facts: &Facts,
    name: &'static str,
    found: impl Into<String>,
    mend: impl Into<String>,
) -> Check {
    match facts.asked.rdma {
        Rdma::Required => fail(name, found, mend),
        Rdma::Welcome | Rdma::Unused => warn(name, found, mend),
    }
}

/// RDMA is out of the question; with TCP the server works.
fn no_rdma(facts: &Facts, name: &'static str, found: &str, mend: impl Into<String>) -> Check {
    match facts.asked.rdma {
        Rdma::Required => fail(name, found, mend),
        Rdma::Welcome | Rdma::Unused => warn(name, format!("{found}: TCP is used"), mend),
    }
}

/// What a server registers at most when `--memory` is not given: half of the memory.
fn default_memory(facts: &Facts) -> Option<u64> {
    let bytes = facts.ram_bytes.into_iter().chain(facts.cgroup_bytes_max).min();
    bytes.map(|bytes| bytes / 2)
}

fn memlock(facts: &Facts) -> Check {
    let limit = facts.memlock;
    let Some(bytes) = limit.bytes_max else { return ok("memlock", "no limit") };
    let found = format!("up to {}", BinaryBytes(bytes));
    if limit.is_exempt {
        return ok("memlock", format!("{found}, but you are exempt (CAP_IPC_LOCK)"));
    }
    let enough = default_memory(facts);
    if enough.is_some_and(|enough| bytes >= enough) {
        return ok("memlock", found);
    }
    let hard = match limit.hard_bytes_max {
        None => "you may raise it".to_owned(),
        Some(hard) => format!("hard limit {}", BinaryBytes(hard)),
    };
    let enough = enough.map(|enough| format!(", {},", BinaryBytes(enough))).unwrap_or_default();
    let found = format!(
        "{found} ({hard}): too little for RDMA with the default --memory{enough} also in huge pages"
    );
    lacking(facts, "memlock", found, raise_memlock(facts))
}

/// All the places where the limit is set.
fn raise_memlock(facts: &Facts) -> String {
    let shell = match facts.memlock.hard_bytes_max {
        None => "ulimit -l unlimited",
        Some(_) => "sudo prlimit --pid $$ --memlock=unlimited:unlimited && ulimit -l unlimited",
    };
    // The star in that file does not stand for root.
    let who = if facts.asked.uid == 0 { "root" } else { "*" };
    format!(
        "{shell}   (this shell; a systemd unit: LimitMEMLOCK=infinity; logins: \
         `{who} - memlock unlimited` in /etc/security/limits.conf)"
    )
}

fn libraries(facts: &Facts) -> Check {
    match &facts.rdma_libraries_missing[..] {
        [] => ok("rdma-core", "installed"),
        missing => no_rdma(
            facts,
            "rdma-core",
            &format!("{} missing", missing.join(", ")),
            "sudo apt-get install libibverbs1 librdmacm1 ibverbs-providers rdma-core",
        ),
    }
}

fn devices(facts: &Facts) -> Vec<Check> {
    if facts.rdma_devices.is_empty() {
        let module = match facts.rxe_available {
            true => "",
            false => " once the kernel has rdma_rxe, on Ubuntu in linux-modules-extra-$(uname -r)",
        };
        let mend = format!(
            "sudo soft-roce/setup.sh   (makes one with Soft-RoCE{module}; or soft-roce/vm.sh \
             COMMAND to try it in an emulated machine)"
        );
        return vec![no_rdma(facts, "rdma", "this machine has no RDMA device", mend)];
    }
    let wanted = facts.asked.device.as_deref();
    let is_wanted = |device: &&RdmaDevice| wanted.is_none_or(|wanted| wanted == device.name);
    let looked_at: Vec<&RdmaDevice> = facts.rdma_devices.iter().filter(is_wanted).collect();
    if let (Some(wanted), []) = (wanted, &looked_at[..]) {
        let have: Vec<&str> = facts.rdma_devices.iter().map(|d| &*d.name).collect();
        let mend = format!("--device with one of these: {}", have.join(", "));
        return vec![lacking(facts, "rdma", format!("there is no device {wanted}"), mend)];
    }
    // One that works is enough.
    let some_work = looked_at.iter().any(|device| trouble(device).is_none());
    let mut checks = Vec::new();
    for device in looked_at {
        checks.push(match trouble(device) {
            None => ok("rdma", describe(device)),
            Some((what, mend)) if some_work => warn("rdma", what, mend),
            Some((what, mend)) => lacking(facts, "rdma", what, mend),
        });
        if let Some(trials) = &device.trials {
            checks.push(loopback(facts, device, trials));
            checks.push(register(facts, device, trials));
        }
    }
    checks
}

fn describe(device: &RdmaDevice) -> String {
    let netdev = device.netdev.as_deref().unwrap_or("no interface");
    let mut text = format!("{} ({}, {netdev}), {}", device.name, device.link_layer, device.state);
    if !device.addresses.is_empty() {
        let addresses: Vec<String> = device.addresses.iter().map(ToString::to_string).collect();
        text += &format!(", RoCE v2 at {}", addresses.join(", "));
    }
    text
}

/// Why a server cannot use the device, and what mends that.
fn trouble(device: &RdmaDevice) -> Option<(String, String)> {
    let described = describe(device);
    let interface = device.netdev.as_deref().unwrap_or("INTERFACE");
    if device.link_layer == "InfiniBand" {
        let mend = "use a device on Ethernet, or --transport tcp over IPoIB".to_owned();
        return Some((format!("{described}: only RoCE v2 is supported"), mend));
    }
    if device.state != "ACTIVE" {
        let mend = format!("sudo ip link set {interface} up");
        return Some((format!("{described}: its port is not up"), mend));
    }
    if let (Some(problem), []) = (&device.problem, &device.addresses[..])
        && !problem.contains("no address")
    {
        let mend = "sudo apt-get install ibverbs-providers rdma-core && sudo modprobe ib_uverbs \
                    (and this user must be allowed to use /dev/infiniband/uverbs*)";
        return Some((format!("{described}: {problem}"), mend.to_owned()));
    }
    if device.addresses.is_empty() {
        let mend = format!("sudo ip addr add IP/24 dev {interface}");
        return Some((format!("{described}, no address that others can reach"), mend));
    }
    None
}

fn millis(took: Duration) -> String {
    format!("{:.2} ms", took.as_secs_f64() * 1e3)
}

fn loopback(facts: &Facts, device: &RdmaDevice, trials: &Trials) -> Check {
    const NAME: &str = "rdma-loopback";
    match &trials.loopback {
        Ok(took) => ok(NAME, format!("{} sent to itself in {}", device.name, millis(*took))),
        Err(refusal) if refusal.kind == RefusalKind::Untried => {
            ok(NAME, format!("{}: {}", device.name, refusal.why))
        }
        Err(refusal) => refused(facts, NAME, device, "sending to itself", refusal),
    }
}

fn register(facts: &Facts, device: &RdmaDevice, trials: &Trials) -> Check {
    const NAME: &str = "rdma-memory";
    let what = match trials.register_huge {
        true => format!("a huge page of {}", BinaryBytes(trials.register_bytes)),
        false => {
            let bytes = BinaryBytes(trials.register_bytes);
            format!("{bytes} of ordinary memory (no huge page is free)")
        }
    };
    match &trials.register {
        Ok(took) => ok(NAME, format!("{} registered {what} in {}", device.name, millis(*took))),
        Err(refusal) => refused(facts, NAME, device, &format!("registering {what}"), refusal),
    }
}

fn refused(
    facts: &Facts,
    name: &'static str,
    device: &RdmaDevice,
    what: &str,
    refusal: &Refusal,
) -> Check {
    // The same refusal comes for other reasons where there is no limit.
    let is_memlock = refusal.kind == RefusalKind::Memlock && facts.memlock.bytes_max.is_some();
    let why = match is_memlock {
        true => "more than the limit of locked memory allows",
        false => &refusal.why,
    };
    let found = format!("{}: {what} failed: {why}", device.name);
    let mend = match is_memlock {
        true => raise_memlock(facts),
        false => {
            "see `sudo dmesg | tail`; a firewall must let UDP port 4791 through, and `sudo modprobe \
             rdma_ucm` be done   (until then: --transport tcp)"
                .to_owned()
        }
    };
    lacking(facts, name, found, mend)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::{
        Level::{Fail, Warn},
        Report,
        checks::tests::{assert_one, good, spoiled},
        facts::Memlock,
    };

    fn limited(soft: u64, hard: Option<u64>) -> Memlock {
        Memlock { bytes_max: Some(soft), hard_bytes_max: hard, is_exempt: false }
    }

    /// Both ways of asking: a note, and a failure.
    #[track_caller]
    fn assert_both(spoil: impl Fn(&mut Facts), name: &str, found: &str, mend: &str) {
        for (rdma, level) in [(Rdma::Welcome, Warn), (Rdma::Required, Fail)] {
            let checks = spoiled(|facts| {
                spoil(facts);
                facts.asked.rdma = rdma;
            });
            assert_one(&checks, name, level, mend);
            assert!(checks[0].found.contains(found), "{checks:?}");
        }
    }

    #[test]
    fn what_keeps_rdma_from_working_is_a_failure_where_it_is_required() {
        let device = |spoil: fn(&mut RdmaDevice)| {
            move |f: &mut Facts| {
                f.rdma_devices[0].trials = None;
                f.rdma_devices[0].addresses.clear();
                spoil(&mut f.rdma_devices[0]);
            }
        };
        assert_both(|f| f.rdma_devices.clear(), "rdma", "no RDMA device", "soft-roce/setup.sh");
        assert_both(|f| f.rdma_devices.clear(), "rdma", "no RDMA device", "soft-roce/vm.sh");
        assert!(spoiled(|f| f.rdma_devices.clear())[0].found.contains("TCP is used"));
        assert_both(|f| f.rdma_built = false, "rdma", "this build has no RDMA", "--features rdma");
        let other = |f: &mut Facts| f.asked.device = Some("rxe9".into());
        assert_both(other, "rdma", "no device rxe9", "mlx5_0");
        let down = device(|d| d.state = "DOWN".into());
        assert_both(down, "rdma", "not up", "ip link set eth1 up");
        let no_address = device(|d| d.problem = Some("its interface has no address".into()));
        assert_both(no_address, "rdma", "no address", "ip addr add IP/24 dev eth1");
        let unseen = device(|d| d.problem = Some("libibverbs does not find it".into()));
        assert_both(unseen, "rdma", "does not find it", "ibverbs-providers");
        let infiniband = device(|d| d.link_layer = "InfiniBand".into());
        assert_both(infiniband, "rdma", "only RoCE v2", "--transport tcp");
        let missing = |f: &mut Facts| f.rdma_libraries_missing = vec!["libibverbs.so.1"];
        assert_both(missing, "rdma-core", "libibverbs.so.1", "apt-get install");
    }

    #[test]
    fn a_device_must_do_what_it_promises() {
        let refusal = |kind| Err(Refusal { kind, why: "because".into() });
        let trials = |spoil: fn(&mut Trials, Result<Duration, Refusal>), kind| {
            move |f: &mut Facts| spoil(f.rdma_devices[0].trials.as_mut().unwrap(), refusal(kind))
        };
        let silent = trials(|t, r| t.loopback = r, RefusalKind::Other);
        assert_both(silent, "rdma-loopback", "mlx5_0: sending to itself failed: because", "4791");
        let memory = trials(|t, r| t.register = r, RefusalKind::Memlock);
        assert_both(memory, "rdma-memory", "because", "dmesg");
        let exempt = Memlock { is_exempt: true, ..limited(64 << 10, None) };
        let limited = |f: &mut Facts| {
            memory(f);
            f.memlock = exempt;
        };
        assert_both(limited, "rdma-memory", "limit of locked memory", "LimitMEMLOCK=infinity");
        assert_eq!(spoiled(trials(|t, r| t.loopback = r, RefusalKind::Untried)), []);
        let ordinary = |f: &mut Facts| {
            f.rdma_devices[0].trials.as_mut().unwrap().register_huge = false;
        };
        assert_eq!(spoiled(ordinary), [], "no huge page is a finding of its own");
    }

    #[test]
    fn one_device_that_works_is_enough() {
        let second = |f: &mut Facts| {
            f.asked.rdma = Rdma::Required;
            let mut down = f.rdma_devices[0].clone();
            (down.name, down.state, down.trials) = ("mlx5_1".into(), "DOWN".into(), None);
            f.rdma_devices.push(down);
        };
        assert_one(&spoiled(second), "rdma", Warn, "up");
        let only_first = |f: &mut Facts| {
            second(f);
            f.asked.device = Some("mlx5_0".into());
        };
        assert_eq!(spoiled(only_first), []);
    }

    #[test]
    fn the_limit_of_locked_memory_must_hold_the_default_memory() {
        let limit = |memlock| move |f: &mut Facts| f.memlock = memlock;
        let low = limit(limited(64 << 10, Some(64 << 10)));
        assert_both(low, "memlock", "up to 64.00 KiB (hard limit 64.00 KiB)", "prlimit");
        for place in ["LimitMEMLOCK=infinity", "`* - memlock unlimited`", "limits.conf"] {
            assert_both(low, "memlock", "8.00 GiB", place);
        }
        let soft = limit(limited(64 << 10, None));
        assert_both(soft, "memlock", "you may raise it", "ulimit -l unlimited   (this shell");
        assert_eq!(spoiled(limit(limited(8 << 30, None))), []);
        let cgroup = |f: &mut Facts| {
            f.memlock = limited(1 << 30, None);
            f.cgroup_bytes_max = Some(2 << 30);
        };
        assert_eq!(spoiled(cgroup), []);
        let exempt = Memlock { is_exempt: true, ..limited(64 << 10, None) };
        assert_eq!(spoiled(limit(exempt)), []);
    }

    #[test]
    fn tcp_needs_none_of_it() {
        let mut facts = good();
        facts.asked.rdma = Rdma::Unused;
        facts.rdma_devices.clear();
        facts.memlock = limited(0, None);
        assert_eq!(Report::new(all(&facts)).level, crate::doctor::Level::Ok);
    }
}
