//! A command that arrives just when the data plane falls asleep is not slept over.
#![cfg(feature = "server")]

use std::time::Duration;

use ringkeep::{
    membership::NodeId,
    name::Name,
    server::data_plane::{Command, DataPlane, Waiting},
    transport::tcp::TcpTransport,
};

/// One command wakes the thread, which then has nothing to do; the next comes at every distance
/// from it, around the time at which the thread falls asleep again.
#[tokio::test]
async fn every_command_is_answered_whenever_it_comes() {
    let me = NodeId { name: Name::new("a").unwrap(), incarnation: 1 };
    let transport = TcpTransport::new(Default::default()).unwrap();
    let waiting = Waiting { spin: Duration::ZERO, ..Waiting::default() };
    let view = || Command::View { me: me.clone(), view: None };
    let (data_plane, _notices) = DataPlane::start(me.clone(), transport, waiting).unwrap();
    for distance in 0..100_000u32 {
        data_plane.send(view()).unwrap();
        for _ in 0..distance % 900 {
            std::hint::spin_loop();
        }
        let answer = data_plane.ask(|reply| Command::Report { reply });
        let answer = tokio::time::timeout(Duration::from_secs(10), answer).await;
        assert!(answer.expect("it slept over a command").unwrap().is_empty());
    }
    data_plane.stop();
}
