//! A network that can be cut: each node has a network namespace of its own, and a cable from there
//! to a router in another one.
//!
//! Nothing of it is in the namespace of the test, and nothing has a name outside: the namespaces
//! belong to processes that end with the test, and a server ends with the thread that started it.
//! So nothing is left behind, also not by a test that is killed.
//!
//! Packets that are cut vanish in the router, in silence, as in a broken switch. No end hears of it.

use std::{
    collections::BTreeSet,
    io::Write,
    process::{Command, Stdio},
};

use super::servers::Keeper;

/// Set where a test must not be left out because the network cannot be made.
const REQUIRED: &str = "RINGKEEP_REQUIRE_NETNS";
const PORT: u16 = 7741;

/// Nodes 0, 1, 2, …, each of which reaches every other one through the router.
pub struct Network {
    router: Namespace,
    nodes: Vec<Namespace>,
    /// Whose packets to whom vanish.
    cut: BTreeSet<(usize, usize)>,
}

impl Network {
    /// `None`, and loudly, where it cannot be made.
    pub fn start(nodes: usize) -> Option<Self> {
        let made = Self::make(nodes);
        if let Err(why) = &made {
            assert!(std::env::var_os(REQUIRED).is_none(), "{REQUIRED} is set, but: {why}");
            not_tested(&format!("no network namespaces here (they need root): {why}"));
        }
        made.ok()
    }

    fn make(nodes: usize) -> Result<Self, String> {
        // What has no cable, or a cut one, vanishes without an answer.
        let router = Namespace::make(
            "ip link set lo up; ip route add blackhole default; \
             echo 1 > /proc/sys/net/ipv4/ip_forward",
        )?;
        let mut network = Self { router, nodes: Vec::new(), cut: BTreeSet::new() };
        for index in 0..nodes {
            let node = Namespace::make("ip link set lo up")?;
            network.router.ip(&format!(
                "link add n{index} type veth peer name uplink netns {}\n\
                 addr add 10.9.{index}.1/24 dev n{index}\n\
                 link set n{index} up\n",
                node.0.pid()
            ))?;
            node.ip(&format!(
                "addr add 10.9.{index}.2/24 dev uplink\n\
                 link set uplink up\n\
                 route add default via 10.9.{index}.1\n"
            ))?;
            network.nodes.push(node);
        }
        Ok(network)
    }

    /// What a server's command begins with to run on this node.
    pub fn inside(&self, node: usize) -> Vec<String> {
        // A server that outlives a killed test would keep its namespace.
        let words = ["setpriv", "--pdeathsig", "KILL"].map(str::to_owned);
        self.nodes[node].inside().into_iter().chain(words).collect()
    }

    /// Where a server on this node listens.
    pub fn address(&self, node: usize) -> String {
        format!("10.9.{node}.2:{PORT}")
    }

    /// Pulls the node's cable out at the router.
    #[track_caller]
    pub fn unplug(&self, node: usize) {
        self.router.ip(&format!("link set n{node} down\n")).unwrap();
    }

    /// Puts the cable back.
    #[track_caller]
    pub fn plug(&self, node: usize) {
        self.router.ip(&format!("link set n{node} up\n")).unwrap();
    }

    /// From now on, what any of `from` sends to any of `to` vanishes; not what comes back.
    #[track_caller]
    pub fn cut_one_way(&mut self, from: &[usize], to: &[usize]) {
        let pairs = from.iter().flat_map(|&f| to.iter().map(move |&t| (f, t)));
        let new: Vec<_> = pairs.filter(|&(f, t)| f != t && self.cut.insert((f, t))).collect();
        self.router.ip(&rules("add", &new)).unwrap();
    }

    /// From now on, nothing passes between these two groups.
    #[track_caller]
    pub fn split(&mut self, one: &[usize], other: &[usize]) {
        self.cut_one_way(one, other);
        self.cut_one_way(other, one);
    }

    /// Nothing is cut any more.
    #[track_caller]
    pub fn heal(&mut self) {
        let all: Vec<_> = std::mem::take(&mut self.cut).into_iter().collect();
        self.router.ip(&rules("del", &all)).unwrap();
    }

    /// Every packet to every node is late and may be lost, by these words of `netem`. An error
    /// where the kernel has none.
    pub fn disturb(&self, how: &str) -> Result<(), String> {
        for node in 0..self.nodes.len() {
            let words = format!("qdisc add dev n{node} root netem {how}");
            self.router.run("tc", &words.split(' ').collect::<Vec<_>>(), "")?;
        }
        Ok(())
    }
}

/// Says so even where the output of tests that pass is not shown.
pub fn not_tested(what: &str) {
    // A standard error that is closed is nobody's to read.
    let _ = writeln!(std::io::stderr(), "NOT TESTED: {what}");
}

/// Rules of the router, one a line.
fn rules(action: &str, pairs: &[(usize, usize)]) -> String {
    let rule = |&(f, t): &(usize, usize)| {
        format!("rule {action} from 10.9.{f}.2 to 10.9.{t}.2 blackhole\n")
    };
    pairs.iter().map(rule).collect()
}

/// A network namespace.
struct Namespace(Keeper);

impl Namespace {
    fn make(script: &str) -> Result<Self, String> {
        Keeper::start(&["--net"], script).map(Self)
    }

    fn inside(&self) -> Vec<String> {
        vec!["nsenter".to_owned(), format!("--net=/proc/{}/ns/net", self.0.pid())]
    }

    /// Commands of `ip`, one a line.
    fn ip(&self, lines: &str) -> Result<(), String> {
        self.run("ip", &["-batch", "-"], lines)
    }

    fn run(&self, program: &str, args: &[&str], input: &str) -> Result<(), String> {
        let words = self.inside();
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).arg(program).args(args);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut process = command.spawn().map_err(|e| format!("{program}: {e}"))?;
        let written = process.stdin.take().unwrap().write_all(input.as_bytes());
        let output = process.wait_with_output().map_err(|e| format!("{program}: {e}"))?;
        let said = String::from_utf8_lossy(&output.stderr);
        if output.status.success() && written.is_ok() {
            return Ok(());
        }
        Err(format!("{program} {args:?} {input:?}: {}", said.trim()))
    }
}
