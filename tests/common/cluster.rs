//! Real servers on a [`Network`], one a node, and what a user sees of them.

use std::sync::{Mutex, PoisonError};

use ringkeep::{
    Client,
    client::RequestError,
    protocol::{FailureKind, RingState, Status},
};
use tempfile::TempDir;

use super::{bytes_of, name, network::Network, payload, poll, servers::Server, views};

/// One cluster at a time: two would starve each other on a small machine, and be evicted for it.
static TURN: Mutex<()> = Mutex::new(());

/// Servers a, b, c, … with a cluster key, since their addresses are not loopback.
pub struct Cluster {
    servers: Vec<Server>,
    pub network: Network,
    _key: TempDir,
}

/// Runs a test with so many servers that form one ring, with this `--detection`; at its end the
/// views in all logs must fit together. Does nothing, and says so, where no network can be made.
pub fn with_cluster(nodes: usize, detection: &str, test: impl FnOnce(&mut Cluster)) {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(network) = Network::start(nodes) else { return };
    let mut cluster = Cluster::start(network, nodes, detection);
    test(&mut cluster);
    cluster.views_agree();
}

impl Cluster {
    #[track_caller]
    fn start(network: Network, nodes: usize, detection: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let key = dir.path().join("key");
        let key = key.to_str().unwrap();
        let keygen = ["keygen", "-o", key];
        let made = std::process::Command::new(super::RINGKEEP).args(keygen).status().unwrap();
        assert!(made.success());
        let server = |node: usize| {
            let listen = network.address(node);
            let args = ["--listen", &listen, "--cluster-key", key, "--detection", detection];
            let name = char::from(b'a' + node as u8).to_string();
            let mut server = Server::new(&name, &[&args[..], &["--transport", "tcp"]].concat());
            server.inside = network.inside(node);
            server
        };
        let servers = (0..nodes).map(server).collect();
        let mut cluster = Self { servers, network, _key: dir };
        for node in 0..nodes {
            if node == 1 {
                // Only the one that founds the ring starts alone, and only once.
                cluster.all_join();
            }
            cluster.servers[node].start();
        }
        let all: Vec<_> = (0..nodes).collect();
        cluster.one_ring_of(&all);
        cluster
    }

    fn all_join(&mut self) {
        let addresses: Vec<_> = (0..self.servers.len()).map(|n| self.network.address(n)).collect();
        for (node, server) in self.servers.iter_mut().enumerate() {
            let mut others = addresses.clone();
            others.remove(node);
            server.args.extend(["--join".to_owned(), others.join(",")]);
        }
    }

    pub fn node(&self, node: usize) -> &Server {
        &self.servers[node]
    }

    pub fn client(&self, node: usize) -> Client {
        self.servers[node].client()
    }

    /// SIGKILL to several servers before any of the others can notice.
    pub fn kill_9(&mut self, nodes: &[usize]) {
        for &node in nodes {
            self.servers[node].pause();
        }
        for &node in nodes {
            self.servers[node].kill_9();
        }
    }

    /// Starts a server again, without the memory that it had when `wiped`.
    #[track_caller]
    pub fn restart(&mut self, node: usize, wiped: bool) {
        if wiped {
            self.servers[node].wipe_memory();
        }
        self.servers[node].start();
    }

    /// The nodes in the order of the ring, as one of them sees it: each is the predecessor, and so
    /// the holder of the mirrors, of the one after it.
    #[track_caller]
    pub fn order(&self) -> Vec<usize> {
        let view = self.servers[0].status().unwrap().view.expect("a view");
        view.members.iter().map(|member| self.index_of(member.as_str())).collect()
    }

    pub fn index_of(&self, wanted: &str) -> usize {
        self.servers.iter().position(|server| server.name == wanted).unwrap()
    }

    /// How many views this server has installed, by its log.
    pub fn views_installed(&self, node: usize) -> usize {
        views::installed(&self.servers[node].log()).len()
    }

    /// Waits until each of these has the same view, of exactly these, and suspects nobody.
    #[track_caller]
    pub fn one_ring_of(&self, nodes: &[usize]) {
        self.wait_for_ring(nodes, |_| true);
    }

    /// The same, and every checkpoint has its two copies.
    #[track_caller]
    pub fn protected_ring_of(&self, nodes: &[usize]) {
        self.wait_for_ring(nodes, |status| status.state == RingState::Protected);
    }

    #[track_caller]
    fn wait_for_ring(&self, nodes: &[usize], also: impl Fn(&Status) -> bool) {
        let mut wanted: Vec<_> = nodes.iter().map(|&n| self.servers[n].name.as_str()).collect();
        wanted.sort_unstable();
        let fits = |status: &Status| {
            let view = status.view.as_ref()?;
            let mut members: Vec<_> = view.members.iter().map(|member| member.as_str()).collect();
            members.sort_unstable();
            let fits = members == wanted && status.suspects.is_empty() && also(status);
            fits.then_some(view.number)
        };
        poll(&format!("one ring of {wanted:?}"), || {
            let mut numbers = Vec::new();
            for &node in nodes {
                let status = self.servers[node].status()?;
                numbers.push(fits(&status).ok_or_else(|| format!("{status:?}"))?);
            }
            numbers.dedup();
            if numbers.len() == 1 { Ok(()) } else { Err(format!("different views: {numbers:?}")) }
        });
    }

    /// What a node hands out: the newest version of a checkpoint and its bytes.
    pub fn get(&self, node: usize, checkpoint: &str) -> Result<(u64, Vec<u8>), RequestError> {
        let fetched = self.client(node).get(&name(checkpoint), None)?;
        Ok((fetched.version, bytes_of(fetched)))
    }

    /// The same as soon as every node that has to be asked can be.
    #[track_caller]
    pub fn get_soon(&self, node: usize, checkpoint: &str) -> (u64, Vec<u8>) {
        poll(checkpoint, || match self.get(node, checkpoint) {
            Ok(got) => Ok(got),
            Err(RequestError::Refused(f)) if f.kind == FailureKind::Unavailable => Err(f.message),
            Err(error) => panic!("{checkpoint} from {node}: {error}"),
        })
    }

    /// Each of these nodes hands out what a writer with this seed wrote, and nothing older than
    /// what was acknowledged.
    #[track_caller]
    pub fn kept(&self, nodes: &[usize], checkpoint: &str, seed: u64, acknowledged: u64) {
        for &node in nodes {
            let (version, bytes) = self.get_soon(node, checkpoint);
            assert!(
                version >= acknowledged,
                "LOST: {acknowledged} of {checkpoint} acknowledged, {version} from {node}"
            );
            assert!(bytes == payload::state(seed, version), "{checkpoint} {version} from {node}");
        }
    }

    #[track_caller]
    fn views_agree(&self) {
        let logs: Vec<_> = self.servers.iter().map(|s| (s.name.clone(), s.log())).collect();
        assert!(
            logs.iter().all(|(_, log)| !views::installed(log).is_empty()),
            "nothing to look at"
        );
        let found = views::contradiction(logs.iter().map(|(n, log)| (n.as_str(), log.as_str())));
        assert_eq!(found, None);
    }
}
