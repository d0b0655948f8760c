//! Texts: names, cluster keys, boot ids, and the JSON of the local socket in both directions.
//!
//! What is read writes the same again; a name is of the permitted characters, a layout below the
//! limits.
#![no_main]

use std::fmt::Debug;

use libfuzzer_sys::fuzz_target;
use ringkeep::{
    Name,
    cluster_key::ClusterKey,
    commit::VERSION_MAX,
    name::NAME_LEN_MAX,
    protocol::{Failure, FailureKind, Opened, Request, Response},
    region::{Identity, layout::Layout},
    server::{state_file::BootId, store::Meta},
};
use ringkeep_fuzz::seeds;
use serde::{Serialize, de::DeserializeOwned};

fuzz_target!(init: seeds(texts), |bytes: &[u8]| {
    json::<Request>(bytes);
    json::<Meta>(bytes);
    json::<Layout>(bytes);
    if let Some(Response::Opened(opened)) = json::<Response>(bytes) {
        let Opened { layout, .. } = opened;
        assert_eq!(Layout::new(layout.capacity(), layout.slots() as u32), Ok(layout));
        // All places can be computed.
        assert!(layout.payload(layout.slots() - 1) + layout.capacity() <= layout.region_bytes());
    }
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(name) = Name::new(text) {
        let fine = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        assert!(name.as_str() == text && text.chars().all(fine) && !text.starts_with('.'));
        assert!((1..=NAME_LEN_MAX).contains(&text.len()));
    }
    if let Ok(key) = ClusterKey::parse(text) {
        let again = ClusterKey::parse(&key.to_file_text()).expect("its own text");
        assert_eq!(again.as_bytes(), key.as_bytes());
    }
    BootId::parse(text);
});

fn json<T: Serialize + DeserializeOwned + PartialEq + Debug>(bytes: &[u8]) -> Option<T> {
    let value: T = serde_json::from_slice(bytes).ok()?;
    let text = serde_json::to_vec(&value).expect("what was read can be written");
    assert_eq!(serde_json::from_slice::<T>(&text).expect("and read again"), value);
    Some(value)
}

fn texts() -> Vec<Vec<u8>> {
    let name = || Name::new("sched-1.main").expect("a name");
    let requests = [
        Request::Open {
            name: name(),
            capacity: 1 << 20,
            slots: 2,
            mode: 0o600,
            take_over: false,
            existing: true,
        },
        Request::Reattach { name: name(), epoch: 3 },
        Request::Get { name: name(), version: Some(VERSION_MAX), maybe_stale: true },
        Request::List,
        Request::Status,
        Request::Verify { name: Some(name()) },
        Request::Remove { name: name(), leftovers: true },
    ];
    let opened = Opened {
        layout: Layout::new(1 << 20, 2).expect("a layout"),
        identity: Identity { checkpoint: 1, generation: 1 },
        epoch: 1,
        bytes: 2 << 20,
        mirrored: true,
        warning: Some("why".into()),
    };
    let responses = [
        Response::Opened(opened),
        Response::Fetched { version: 3, len: 10, maybe_stale: false },
        Response::Listing { checkpoints: Vec::new() },
        Response::Verified { copies: Vec::new() },
        Response::Removed,
        Response::Failed(Failure::new(FailureKind::Fenced, "why")),
    ];
    let key = ClusterKey::parse(&"0f".repeat(32)).expect("a key").to_file_text();
    let texts = [key, "00112233-4455-6677-8899-aabbccddeeff".into(), "sched-1.main".into()];
    let requests = requests.iter().map(|it| serde_json::to_vec(it).expect("a request"));
    let responses = responses.iter().map(|it| serde_json::to_vec(it).expect("a response"));
    requests.chain(responses).chain(texts.map(String::into_bytes)).collect()
}
