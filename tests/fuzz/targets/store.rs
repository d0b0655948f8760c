//! What a server finds in its directory when it starts: a description and a region's file, either of
//! which may be anything.
//!
//! Nothing panics; a region that is loaded lies inside its file and inside the directory, and reads of
//! it, right or wrong, end well. A description that is written is read as it was.
#![no_main]

use std::{cell::OnceCell, fs, os::unix::fs::FileExt, path::PathBuf};

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use ringkeep::{
    Name,
    region::{Identity, files::Places, layout::Layout},
    server::store::{Held, Meta, Owner, Store},
};
use ringkeep_fuzz::{Number, private_dir};

#[derive(Debug, Arbitrary)]
struct Input<'a> {
    meta: Text<'a>,
    /// Length of the region's file.
    len: Number,
    at: u16,
    content: &'a [u8],
}

#[derive(Debug, Arbitrary)]
enum Text<'a> {
    /// Any bytes.
    Bytes(&'a [u8]),
    /// A description with these bytes over it, or in place of what was there.
    Patched { at: u16, over: u8, bytes: &'a [u8] },
    /// A description with these numbers.
    Numbers { capacity: Number, slots: u8, bytes: Number, region: bool },
}

thread_local! {
    static DIR: OnceCell<PathBuf> = const { OnceCell::new() };
}

fuzz_target!(|input: Input<'_>| {
    let dir = DIR.with(|dir| dir.get_or_init(private_dir).clone());
    for entry in fs::read_dir(&dir).expect("a directory").flatten() {
        let _ = fs::remove_file(entry.path());
    }
    let places = Places { dir: dir.clone(), huge: None, joins_pages: false };
    let honest = meta();
    let text = serde_json::to_vec(&honest).expect("a description");
    let text = match input.meta {
        Text::Bytes(bytes) => bytes.to_vec(),
        Text::Patched { at, over, bytes } => {
            let at = usize::from(at) % text.len();
            let behind = (at + usize::from(over)).min(text.len());
            [&text[..at], bytes, &text[behind..]].concat()
        }
        Text::Numbers { capacity, slots, bytes, region } => {
            let mut value: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
            value["layout"]["capacity"] = capacity.beside(10_000).into();
            value["layout"]["slots"] = slots.into();
            value["bytes"] = bytes.beside(honest.bytes).into();
            value["region"] = u64::from(region).into();
            value.to_string().into_bytes()
        }
    };
    fs::write(dir.join("x.meta"), &text).expect("room");
    let len = input.len.beside(honest.bytes) % (1 << 20);
    let file = fs::File::create(dir.join(format!("{}.{:016x}.region", honest.name, honest.region)));
    let file = file.expect("a file");
    file.set_len(len).expect("room");
    file.write_all_at(input.content, input.at.into()).expect("room");
    file.set_len(len).expect("room");

    let store = Store::new(places);
    for stored in store.load().expect("a readable directory") {
        let (region, layout) = (&stored.region, *stored.region.layout());
        assert_eq!(stored.path.parent(), Some(&*dir));
        assert!(layout.region_bytes() <= region.mapping().len());
        assert!(region.mapping().len() <= len, "it is mapped beyond its file");
        for slot in 0..layout.slots() {
            let _ = region.verify(slot);
        }
        let _ = region.newest_valid();
        store.write_meta(&stored.meta).expect("room");
        let again: Meta = serde_json::from_slice(&written(&dir, &stored.meta)).expect("JSON");
        assert_eq!(again, stored.meta);
    }
});

fn written(dir: &std::path::Path, meta: &Meta) -> Vec<u8> {
    fs::read(dir.join(format!("{}.{:016x}.meta", meta.name, meta.region))).expect("written")
}

fn meta() -> Meta {
    let name = Name::new("c").expect("a name");
    let identity = Identity { checkpoint: 7, generation: 1 };
    let layout = Layout::new(10_000, 2).expect("a layout");
    let owner = Owner { uid: 0, gid: 0, mode: 0o600 };
    let mut meta = Meta::new(name, identity, layout, 1, owner, Held::Owned, 1);
    meta.bytes = layout.region_bytes().next_multiple_of(4096);
    meta
}
