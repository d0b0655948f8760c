//! Servers in failure domains: a checkpoint and its mirror are not lost with one rack.
#![cfg(feature = "cli")]

mod common;

use std::collections::BTreeMap;

use common::{bytes_of, in_sync, members, name, poll, servers::Server};

fn node(name: &str, zone: &str, join: Option<&Server>) -> Server {
    let mut args = vec!["--listen", "127.0.0.1:0", "--transport", "tcp", "--zone", zone];
    let address = join.map(Server::address);
    if let Some(address) = &address {
        args.extend(["--join", address]);
    }
    let mut server = Server::new(name, &args);
    server.start();
    server
}

#[test]
fn a_whole_zone_is_lost_and_no_checkpoint_with_it() {
    // In this order of joining, neighbours would share their zone.
    let zones = [
        ("a", "rack1"),
        ("b", "rack1"),
        ("c", "rack1"),
        ("d", "rack2"),
        ("e", "rack2"),
        ("f", "rack2"),
        ("g", "rack3"),
    ];
    let mut servers: Vec<Server> = vec![node("a", "rack1", None)];
    for (name, zone) in &zones[1..] {
        servers.push(node(name, zone, servers.first()));
    }
    let zone_of: BTreeMap<&str, &str> = zones.into_iter().collect();
    for server in &servers {
        server.wait("a ring of seven", |status| members(status, 7));
        let own = format!("of-{}", server.name);
        server.ok(&["put", &own, "/etc/passwd", "--durability", "mirrored", "--timeout", "20s"]);
        let status = server.wait("its mirror", |status| in_sync(status, &own));
        let holder = status.predecessor.unwrap();
        assert_ne!(zone_of[&*server.name], zone_of[holder.as_str()], "{}: {holder}", server.name);
    }
    for server in servers.iter_mut().filter(|s| zone_of[&*s.name] == "rack1") {
        server.kill_9();
    }
    let survivor = servers.last().unwrap();
    survivor.wait("a ring without that rack", |status| members(status, 4));
    for server in &servers {
        let wanted = name(&format!("of-{}", server.name));
        let bytes = poll("what it owned", || {
            let fetched = survivor.client().get(&wanted, None);
            fetched.map(bytes_of).map_err(|error| error.to_string())
        });
        assert_eq!(bytes, std::fs::read("/etc/passwd").unwrap());
    }
}
