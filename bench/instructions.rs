//! How many instructions does one step of each hot path take, and is that still as recorded?
//!
//! `bash tests/run instructions` counts them with valgrind's callgrind and compares them with
//! `bench/instructions.toml`: 5 % more or less fails, as a part of `bash tests/run test`. Times of a
//! shared machine cannot do that; instructions are the same each time. What was counted can be looked
//! at with `callgrind_annotate target/tmp/instructions/PATH.out`.
//!
//! `bash tests/run instructions --accept` records what it counts, for the commit that changed it.
//! `cargo bench` alone says so and goes on where there is no valgrind; `tests/run` fails (`--required`).
//!
//! * One step is counted after some that are not, and without what happens elsewhere before the next
//!   one (`Path::settle`). Setting up is not counted.
//! * How many bytes are copied, zeroed or checksummed at once depends on the processor and the C library.
//!   So a long copy is counted by itself and taken off the path that contains it: a path of 4 KiB is
//!   what is done beside one copy and one checksum of these bytes, and a second copy would be seen.
//!   Short ones stay in.
//! * Another compiler may change the counts; the message says when it is another one.
//!
//! Why not gungraun: `docs/decisions/0004-instruction-counts.md`.

#[path = "counts/mod.rs"]
mod counts;
#[path = "paths/mod.rs"]
#[allow(dead_code)]
mod paths;

use std::{
    collections::BTreeMap,
    env::{self, consts::ARCH},
    error::Error,
    fs,
    hint::black_box,
    path::PathBuf,
    process::{Command, ExitCode},
};

use counts::{Counts, compare};
use paths::{
    Path,
    commit::{LocalCommit, Update},
    frame::Exchange,
    handover::RoundTrip,
    membership::{Heartbeat, Ring},
    mirror::MirroredCommit,
    region,
};

const RECORD: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/bench/instructions.toml");
const RECORD_HEAD: &str = "\
# Instructions of one step of each hot path; bench/instructions.rs says what they are.
# Written by `bash tests/run instructions --accept`.
";
/// How a change is accepted.
const ACCEPT: &str = "bash tests/run instructions --accept";
const CHUNK: usize = 4 << 10;

struct HotPath {
    name: &'static str,
    begin: fn() -> Box<dyn Path>,
    /// How often it is done: first without being counted, then counted.
    steps: u64,
    /// What is counted by itself and taken off.
    less: &'static [&'static str],
}

const fn path(name: &'static str, begin: fn() -> Box<dyn Path>) -> HotPath {
    HotPath { name, begin, steps: 16, less: &[] }
}

const PATHS: [HotPath; 14] = [
    path("commit_64b", || Box::new(LocalCommit::new(64, Update::Whole))),
    HotPath {
        less: &["copy_4k", "checksum_4k"],
        ..path("commit_4k", || Box::new(LocalCommit::new(CHUNK, Update::Whole)))
    },
    HotPath {
        less: &["checksum_4k"],
        ..path("commit_64b_of_64k", || Box::new(LocalCommit::new(16 * CHUNK, Update::Piece)))
    },
    path("handover", || Box::new(RoundTrip::new())),
    path("record_encode_decode", || Box::new(region::encode_record())),
    path("record_read", || Box::new(region::read_record())),
    HotPath {
        less: &["zeroed_4k", "copy_4k", "checksum_4k"],
        ..path("verify_4k", || Box::new(region::verify_slot(CHUNK)))
    },
    HotPath {
        less: &["checksum_4k"],
        ..path("verify_quiet_4k", || Box::new(region::verify_slot_quiet(CHUNK)))
    },
    path("mirror_commit", || Box::new(MirroredCommit::new())),
    path("heartbeat_of_3", || Box::new(Heartbeat::new(3))),
    path("heartbeat_of_100", || Box::new(Heartbeat::new(100))),
    HotPath { steps: 2, ..path("view_of_3", || Box::new(Ring::formed(3))) },
    HotPath { steps: 2, ..path("view_of_100", || Box::new(Ring::formed(100))) },
    path("tcp_frame", || Box::new(Exchange::new(3))),
];

/// Not compared: they are the processor's and the C library's.
const TAKEN_OFF: [HotPath; 3] = [
    path("zeroed_4k", || Box::new(region::zeroed(CHUNK))),
    path("copy_4k", || Box::new(region::copy(CHUNK))),
    path("checksum_4k", || Box::new(region::checksum(CHUNK))),
];

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["--under-callgrind", name] => {
            repeat(PATHS.iter().chain(&TAKEN_OFF).find(|p| p.name == name).ok_or("which path?")?);
            Ok(ExitCode::SUCCESS)
        }
        // By itself, as one of all benches, it is not worth a failure.
        ["--bench"] if !has_valgrind() => {
            println!("NOT MEASURED: no valgrind; apt-get install valgrind");
            Ok(ExitCode::SUCCESS)
        }
        ["--bench"] | ["--required", "--bench"] => check(),
        ["--accept", "--bench"] | ["--required", "--accept", "--bench"] => {
            fs::write(RECORD, format!("{RECORD_HEAD}{}", toml::to_string(&count_all()?)?))?;
            println!("recorded in {RECORD}");
            Ok(ExitCode::SUCCESS)
        }
        // `cargo test --benches` runs this, too: then it only has to compile.
        [] => Ok(ExitCode::SUCCESS),
        _ => Err(format!("usage: {ACCEPT}, or without --accept").into()),
    }
}

fn has_valgrind() -> bool {
    Command::new("valgrind").arg("--version").output().is_ok()
}

fn check() -> Result<ExitCode, Box<dyn Error>> {
    let recorded: Counts = toml::from_str(&fs::read_to_string(RECORD)?)?;
    let counted = count_all()?;
    if recorded.architecture != ARCH {
        println!("not compared: the record is of {}, this is {ARCH}", recorded.architecture);
        return Ok(ExitCode::SUCCESS);
    }
    println!("{:<24} {:>10} {:>10} {:>10}", "path", "recorded", "counted", "change");
    let rows = compare(&recorded, &counted);
    rows.iter().for_each(|row| println!("{row}"));
    let complaints: Vec<String> = rows.iter().filter_map(counts::Row::complaint).collect();
    if complaints.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    println!("\n{}", complaints.join("\n"));
    println!("What takes them: callgrind_annotate {}", out("PATH").display());
    if recorded.compiler != counted.compiler {
        println!(
            "Perhaps it is the compiler: recorded with {}, this is {}.",
            recorded.compiler, counted.compiler
        );
    }
    println!("If it is meant to be so: {ACCEPT}, and commit what that changes.");
    Ok(ExitCode::FAILURE)
}

fn count_all() -> Result<Counts, Box<dyn Error>> {
    let mut taken_off = BTreeMap::new();
    for path in &TAKEN_OFF {
        taken_off.insert(path.name, count(path)?);
    }
    let mut instructions = BTreeMap::new();
    for path in &PATHS {
        let others: u64 = path.less.iter().map(|name| taken_off[name]).sum();
        let own = count(path)?.checked_sub(others);
        let own = own.ok_or_else(|| {
            format!("{} takes less than {:?} together: does it contain them?", path.name, path.less)
        })?;
        instructions.insert(path.name.to_owned(), own);
    }
    let compiler = Command::new("rustc").arg("--version").output()?.stdout;
    let compiler = String::from_utf8(compiler)?.trim().to_owned();
    Ok(Counts { architecture: ARCH.to_owned(), compiler, instructions })
}

/// Runs this program under callgrind. Instructions of one step.
fn count(path: &HotPath) -> Result<u64, Box<dyn Error>> {
    let out = out(path.name);
    fs::create_dir_all(out.parent().ok_or("a file in a directory")?)?;
    let output = Command::new("valgrind")
        .args(["--quiet", "--tool=callgrind", "--toggle-collect=ringkeep_counted"])
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(env::current_exe()?)
        .args(["--under-callgrind", path.name])
        .output()
        .map_err(|error| format!("valgrind: {error}; apt-get install valgrind"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{} under valgrind: {}\n{said}", path.name, output.status).into());
    }
    let text = fs::read_to_string(&out)?;
    let summary = text.lines().find_map(|line| line.strip_prefix("summary: "));
    let all: u64 = summary.ok_or("callgrind wrote no summary")?.trim().parse()?;
    if all == 0 {
        return Err(format!("nothing was counted of {}", path.name).into());
    }
    Ok(all / path.steps)
}

fn out(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("instructions").join(format!("{name}.out"))
}

fn repeat(path: &HotPath) {
    let mut steps = (path.begin)();
    for _ in 0..path.steps {
        steps.step();
        steps.settle();
    }
    for _ in 0..path.steps {
        ringkeep_counted(&mut *steps);
        steps.settle();
    }
}

/// Callgrind counts from the entry of this symbol to its return. The answer keeps the call in it
/// from becoming a jump out of it.
#[unsafe(no_mangle)]
#[inline(never)]
fn ringkeep_counted(path: &mut dyn Path) -> bool {
    path.step();
    black_box(true)
}
