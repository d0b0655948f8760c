//! The voting state's file as a killed process or a damaged disk may leave it, and the membership
//! that goes on from what it says.
//!
//! Nothing counts whose checksum is wrong, and the newest of what counts is loaded; what is stored
//! next is loaded next; a state from which the membership goes on is one that it stores again.
#![no_main]

use std::{cell::OnceCell, fs, os::unix::fs::FileExt, path::PathBuf, sync::Arc};

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use ringkeep::{
    membership::{Change, Config, Durable, Event, Membership, Output, ResumeError, Time, View},
    server::state_file::{BootId, StateFile, StoreStateError},
};
use ringkeep_fuzz::{Number, member, private_dir};
use twox_hash::XxHash3_64;

const SLOT_BYTES: u64 = 64 << 20;
const BOOT: &str = "00112233445566778899aabbccddeeff";

#[derive(Debug, Arbitrary)]
struct Input<'a> {
    slots: [Slot<'a>; 2],
    /// Where the file ends, counted from the second slot's begin.
    end: u16,
    flip: Option<(u16, u8)>,
}

#[derive(Debug, Arbitrary)]
struct Slot<'a> {
    foreign: bool,
    other_boot: bool,
    sequence: Number,
    len: Number,
    torn: bool,
    payload: Payload<'a>,
}

#[derive(Debug, Arbitrary)]
enum Payload<'a> {
    Bytes(&'a [u8]),
    /// An honest state, with these bytes over it.
    Patched {
        members: u8,
        at: u16,
        bytes: &'a [u8],
    },
}

thread_local! {
    static DIR: OnceCell<PathBuf> = const { OnceCell::new() };
}

fuzz_target!(|input: Input<'_>| {
    let path = DIR.with(|dir| dir.get_or_init(private_dir).join("node.state"));
    let _ = fs::remove_file(&path);
    let options = fs::File::options().read(true).write(true).create_new(true).clone();
    let file = options.open(&path).expect("a file");
    file.set_len(SLOT_BYTES + u64::from(input.end)).expect("a sparse file");
    let payloads = [0, 1].map(|slot| write(&file, slot as u64, &input.slots[slot]));
    if let Some((at, bit)) = input.flip {
        let mut byte = [0];
        file.read_exact_at(&mut byte, at.into()).expect("inside");
        file.write_all_at(&[byte[0] ^ 1 << (bit % 8)], at.into()).expect("inside");
    }
    let boot = BootId::parse(BOOT).expect("a boot id");
    let mut state = StateFile::open(&path, boot).expect("nobody else has it");
    let loaded: Option<Durable> = state.load();
    if let Some(loaded) = &loaded {
        let written = |(payload, counts): &(Vec<u8>, bool)| {
            *counts && postcard::from_bytes::<Durable>(payload).as_ref() == Ok(loaded)
        };
        let flipped = input.flip.is_some();
        assert!(flipped || payloads.iter().any(written), "a state that nobody wrote");
        go_on(loaded);
    }
    let next = honest(3);
    match state.store(&next) {
        Err(StoreStateError::Last) => return assert_eq!(state.load(), loaded),
        stored => stored.expect("there is room"),
    }
    assert_eq!(state.load::<Durable>().as_ref(), Some(&next));
    drop(state);
    let again = StateFile::open(&path, boot).expect("nobody else has it");
    assert_eq!(again.load::<Durable>(), Some(next));
});

/// The payload, and whether it may count.
fn write(file: &fs::File, slot: u64, with: &Slot<'_>) -> (Vec<u8>, bool) {
    let payload = match with.payload {
        Payload::Bytes(bytes) => bytes.to_vec(),
        Payload::Patched { members, at, bytes } => {
            let mut state = postcard::to_stdvec(&honest(members)).expect("a state");
            let at = usize::from(at) % state.len();
            let fits = bytes.len().min(state.len() - at);
            state[at..at + fits].copy_from_slice(&bytes[..fits]);
            state
        }
    };
    let mut header = [0; 48];
    header[..8].copy_from_slice(if with.foreign { b"rkstate0" } else { b"rkstate1" });
    header[8..16].copy_from_slice(&with.sequence.beside(3).to_le_bytes());
    let boot = u128::from_str_radix(BOOT, 16).expect("digits") ^ u128::from(with.other_boot);
    header[16..32].copy_from_slice(&boot.to_be_bytes());
    let len = with.len.beside(payload.len() as u64);
    header[32..40].copy_from_slice(&len.to_le_bytes());
    let sum = XxHash3_64::oneshot_with_seed(XxHash3_64::oneshot(&header[..40]), &payload);
    header[40..].copy_from_slice(&(sum ^ u64::from(with.torn)).to_le_bytes());
    let at = slot * SLOT_BYTES;
    file.write_all_at(&header, at).expect("room");
    file.write_all_at(&payload, at + 48).expect("room");
    (payload, !with.foreign && !with.other_boot && !with.torn)
}

fn honest(members: u8) -> Durable {
    let me = member(0, 1);
    let mut view = View::first(1, me.clone());
    for which in 1..=members % 5 {
        let change = Change { joined: vec![member(which, 1)], ..Change::default() };
        view = view.next(&change).expect("it fits");
    }
    Durable { me, view: Arc::new(view), votes: Default::default() }
}

/// A server that starts with this state.
fn go_on(durable: &Durable) {
    let config = Config::default();
    let mut machine = match Membership::resume(config, durable.clone(), Time(1)) {
        Ok(machine) => machine,
        Err(ResumeError::Incoherent | ResumeError::NoPart { .. }) => return,
    };
    let mut now = Time(1);
    for _ in 0..20 {
        let mut out = Vec::new();
        machine.handle(now, Event::Tick, &mut out);
        for output in out {
            if let Output::Persist(stored) = output {
                let resumed = Membership::resume(config, stored, now);
                assert!(!matches!(resumed, Err(ResumeError::Incoherent)), "{durable:?}");
            }
        }
        let Some(deadline) = machine.deadline() else { return };
        now = deadline.max(now + config.heartbeat_interval);
    }
}
