//! The front door as a shell sees it: the real binary, its exit statuses and its one line.
#![cfg(feature = "cli")]

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Output, Stdio},
};

use ringkeep::cluster_key::ClusterKey;

fn ringkeep(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringkeep"));
    command.args(args).stdin(Stdio::null());
    for (variable, _) in std::env::vars_os() {
        if variable.to_string_lossy().starts_with("RINGKEEP_") {
            command.env_remove(variable);
        }
    }
    command
}

fn run(args: &[&str]) -> Output {
    ringkeep(args).output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// What a refused command says: one line, nothing on standard output.
#[track_caller]
fn refused(output: &Output, status: i32) -> String {
    let line = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(status), "{line}");
    assert!(output.stdout.is_empty(), "{}", stdout(output));
    assert!(line.starts_with("ringkeep: ") && line.ends_with('\n'), "{line:?}");
    assert_eq!(line.lines().count(), 1, "{line:?}");
    line
}

#[test]
fn every_command_explains_its_flags() {
    let commands: &[(&str, &[&str])] = &[
        (
            "serve",
            &[
                "--name",
                "--listen",
                "--join",
                "--socket",
                "--dir",
                "--memory",
                "--transport",
                "--device",
                "--cluster-key",
                "--poll",
                "--cpu",
                "--metrics",
                "--config",
                "--witness",
                "--zone",
                "--mirrors",
                "--leave-timeout",
            ],
        ),
        ("put", &["--durability", "--timeout", "--socket", "local", "mirrored"]),
        ("get", &["--output", "--version"]),
        ("ls", &["--json"]),
        ("status", &["--json", "--watch", "--interval"]),
        ("verify", &["--json"]),
        ("rm", &["--json"]),
        ("doctor", &["--json", "--cluster-key", "--listen", "--transport", "--device"]),
        ("keygen", &["--output"]),
        ("demo", &["--nodes", "--transport", "--keep", "--files-max"]),
        ("bench", &["commit", "restore", "compare", "failover", "transport"]),
        ("completions", &["bash", "zsh", "fish"]),
        ("man", &["COMMAND"]),
    ];
    let top = stdout(&run(&["--help"]));
    for (command, flags) in commands {
        assert!(top.contains(&format!("\n  {command} ")), "{command} in {top}");
        let output = run(&[command, "--help"]);
        assert_eq!(output.status.code(), Some(0));
        for flag in *flags {
            assert!(stdout(&output).contains(flag), "{flag} in the help of {command}");
        }
    }
    assert!(top.contains("Exit status:"));
}

#[test]
fn wrong_usage_exits_2_with_one_line() {
    let line = refused(&run(&["put"]), 2);
    assert!(line.contains("see `ringkeep put --help`"), "{line}");
    refused(&run(&["nothing"]), 2);
    refused(&run(&["ls", "--nothing"]), 2);
    refused(&run(&["put", "a", "--durability", "forever"]), 2);
    refused(&run(&["put", "a", "--timeout", "5"]), 2);
    refused(&run(&["get", "a", "--version", "0"]), 2);
    refused(&run(&["serve", "--memory", "much"]), 2);
    refused(&run(&["serve", "--memory", "9223372036854775808g"]), 2);
    refused(&run(&["serve", "--join", "nowhere"]), 2);
    refused(&run(&["serve", "--leave-timeout", "30"]), 2);
    refused(&run(&["serve", "--zone", "../rack"]), 2);
    refused(&run(&["demo", "--nodes", "1"]), 2);
    refused(&run(&["man", "nothing"]), 2);
    refused(&run(&["-v", "-q", "ls"]), 2);
    assert_eq!(run(&[]).status.code(), Some(2));
    let filter = ringkeep(&["ls"]).env("RINGKEEP_LOG", "a=b=c").output().unwrap();
    assert!(refused(&filter, 2).contains("RINGKEEP_LOG"));
}

#[test]
fn what_is_not_a_name_is_refused_at_the_door() {
    let long = "x".repeat(10_000);
    for name in ["", ".", "..", "../a", "a/b", "/a", "a b", "a\n", "é", "\u{1b}[31m", "a\\", &long]
    {
        for command in ["put", "get", "rm", "verify"] {
            let line = refused(&run(&[command, name]), 2);
            assert!(line.len() < 1000 && !line.contains('\u{1b}'), "{line:?}");
        }
        refused(&run(&["serve", "--name", name]), 2);
    }
    use std::os::unix::ffi::OsStrExt;
    let not_text = std::ffi::OsStr::from_bytes(b"\xff");
    refused(&ringkeep(&["put"]).arg(not_text).output().unwrap(), 2);
}

#[test]
fn keygen_makes_a_closed_file_once() {
    let tmp = tempfile::tempdir().unwrap();
    let path = tmp.path().join("key");
    let args = ["keygen", "-o", path.to_str().unwrap()];
    assert_eq!(run(&args).status.code(), Some(0));
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let text = fs::read_to_string(&path).unwrap();
    ClusterKey::parse(&text).unwrap();

    let line = refused(&run(&args), 1);
    assert!(line.contains("never overwritten"), "{line}");
    assert_eq!(fs::read_to_string(&path).unwrap(), text);

    let first = stdout(&run(&["keygen"]));
    ClusterKey::parse(&first).unwrap();
    assert_ne!(stdout(&run(&["keygen"])), first);
}

#[test]
fn an_address_others_can_reach_needs_a_key() {
    let line = refused(&run(&["serve", "--listen", "10.0.0.2:7741"]), 2);
    assert!(line.contains("10.0.0.2:7741") && line.contains("ringkeep keygen"), "{line}");
    refused(&run(&["serve", "--join", "127.0.0.1:1,10.0.0.2:7741"]), 2);
}

#[test]
fn a_witness_needs_a_ring_and_takes_nothing_about_storing() {
    let witness = ["serve", "--witness"];
    let serve = |more: &[&str]| refused(&run(&[&witness, more].concat()), 2);
    assert!(serve(&[]).contains("--join"));
    assert!(serve(&["--join", "127.0.0.1:1", "--memory", "1g"]).contains("memory was given"));
    assert!(serve(&["--join", "127.0.0.1:1", "--mirrors", "2"]).contains("mirrors was given"));
    let line = refused(&run(&["serve", "--mirrors", "9"]), 2);
    assert!(line.contains("1 to 8") && line.contains("--mirrors"), "{line}");
    let mut by_environment = ringkeep(&["serve"]);
    let output = by_environment.env("RINGKEEP_WITNESS", "true").output().unwrap();
    assert!(refused(&output, 2).contains("cannot begin a ring"));
}

/// On a machine with RDMA, too: nothing has a device of this name.
#[test]
fn rdma_alone_without_a_device_does_not_start() {
    let tmp = tempfile::tempdir().unwrap();
    let place = |name: &str| tmp.path().join(name).to_str().unwrap().to_owned();
    let (dir, socket) = (place("dir"), place("socket"));
    let at = ["--listen", "127.0.0.1:0", "--dir", &dir, "--socket", &socket, "--memory", "64m"];
    let rdma = ["serve", "-q", "--transport", "rdma", "--device", "no-such-device"];
    let line = refused(&ringkeep(&rdma).args(at).output().unwrap(), 1);
    assert!(line.contains("RDMA") && line.contains("--transport auto"), "{line}");
    let mend = if cfg!(feature = "rdma") { "`ringkeep doctor`" } else { "the feature rdma" };
    assert!(line.contains(mend), "{line}");
    assert!(!Path::new(&dir).exists(), "nothing is left behind");
}

/// Each address needs a key, so the refusal tells which one would have been used.
#[test]
fn a_flag_overrides_the_environment_and_that_the_file() {
    let tmp = tempfile::tempdir().unwrap();
    let path = tmp.path().join("ringkeep.toml");
    fs::write(&path, "listen = '10.0.0.1:1'\n").unwrap();
    let config = path.to_str().unwrap();

    let line = refused(&run(&["serve", "--config", config]), 2);
    assert!(line.contains("10.0.0.1:1 "), "{line}");
    let mut with_env = ringkeep(&["serve", "--config", config]);
    let line = refused(&with_env.env("RINGKEEP_LISTEN", "10.0.0.2:2").output().unwrap(), 2);
    assert!(line.contains("10.0.0.2:2 "), "{line}");
    let with_flag = with_env.args(["--listen", "10.0.0.3:3"]).output().unwrap();
    let line = refused(&with_flag, 2);
    assert!(line.contains("10.0.0.3:3 "), "{line}");
}

#[test]
fn a_broken_configuration_names_file_line_and_key() {
    let tmp = tempfile::tempdir().unwrap();
    let path = tmp.path().join("ringkeep.toml");
    let serve = |text: &str| {
        fs::write(&path, text).unwrap();
        run(&["serve", "--config", path.to_str().unwrap()])
    };
    let line = refused(&serve("name = 'a'\n\nmemroy = '1g'\n"), 2);
    assert!(line.contains("ringkeep.toml\", line 3, key \"memroy\""), "{line}");
    refused(&serve("cpu = -1"), 2);
    refused(&serve("\0\u{1}"), 2);
    fs::remove_file(&path).unwrap();
    refused(&run(&["serve", "--config", path.to_str().unwrap()]), 1);
}

#[test]
fn a_key_open_to_others_is_refused() {
    let tmp = tempfile::tempdir().unwrap();
    let key = tmp.path().join("key");
    let serve = |key: &Path| run(&["serve", "--cluster-key", key.to_str().unwrap()]);
    let line = refused(&serve(&key), 1);
    assert!(line.contains("ringkeep keygen -o"), "{line}");
    fs::write(&key, ClusterKey::generate().unwrap().to_file_text()).unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    let line = refused(&serve(&key), 1);
    assert!(line.contains("chmod 600"), "{line}");
    fs::write(&key, "not a key").unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    let line = refused(&serve(&key), 1);
    assert!(!line.contains("not a key"), "a key file's content is never told: {line}");
}

#[test]
fn doctor_speaks_json_and_text() {
    let tmp = tempfile::tempdir().unwrap();
    let socket = tmp.path().join("s");
    let flags = ["--socket", socket.to_str().unwrap(), "--listen", "127.0.0.1:0"];
    let output = ringkeep(&["doctor", "--json"]).args(flags).output().unwrap();
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let level = report["level"].as_str().unwrap();
    assert_eq!(output.status.code(), Some(i32::from(level == "fail")));
    let checks = report["checks"].as_array().unwrap();
    for name in ["kernel", "hugepages", "memlock", "shm", "rdma", "cluster-key", "socket", "listen"]
    {
        let check = checks.iter().find(|check| check["name"] == name).unwrap();
        assert_eq!(check["level"] != "ok", check["mend"].is_string(), "{check}");
    }
    let text = stdout(&ringkeep(&["doctor"]).args(flags).output().unwrap());
    assert!(text.contains("hugepages") && text.contains("ringkeep serve"), "{text}");
}

/// Works on any machine: what is to be expected depends on whether it has a device.
#[test]
fn doctor_asks_for_rdma_only_when_told() {
    let tmp = tempfile::tempdir().unwrap();
    let socket = tmp.path().join("s");
    let doctor = |flags: &[&str]| {
        let output = ringkeep(&["doctor", "--json", "--listen", "127.0.0.1:0", "--socket"])
            .arg(&socket)
            .args(flags)
            .output()
            .unwrap();
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let checks = report["checks"].as_array().unwrap().clone();
        let rdma: Vec<_> = checks.into_iter().filter(|check| check["name"] == "rdma").collect();
        (output.status.code(), rdma)
    };
    let has_device =
        fs::read_dir("/sys/class/infiniband").is_ok_and(|mut dir| dir.next().is_some());

    let (status, auto) = doctor(&["--transport", "auto"]);
    assert_eq!(status, Some(0), "{auto:?}");
    let (status, rdma) = doctor(&["--transport", "rdma"]);
    if has_device && cfg!(feature = "rdma") {
        assert!(auto.iter().any(|check| check["level"] == "ok"), "{auto:?}");
        assert_eq!(status, Some(0), "{rdma:?}");
        let (status, none) = doctor(&["--transport", "rdma", "--device", "no-such-device"]);
        assert_eq!((status, none[0]["level"].as_str()), (Some(1), Some("fail")));
    } else {
        assert_eq!((auto[0]["level"].as_str(), auto.len()), (Some("warn"), 1), "{auto:?}");
        assert!(auto[0]["found"].as_str().unwrap().contains("TCP"), "{auto:?}");
        let mend = if cfg!(feature = "rdma") { "soft-roce/setup.sh" } else { "--features" };
        assert!(auto[0]["mend"].as_str().unwrap().contains(mend), "{auto:?}");
        assert_eq!((status, rdma[0]["level"].as_str()), (Some(1), Some("fail")), "{rdma:?}");
    }
    let (status, tcp) = doctor(&["--transport", "tcp"]);
    assert_eq!((status, tcp[0]["level"].as_str()), (Some(0), Some("ok")), "{tcp:?}");
    let both = ["doctor", "--transport", "tcp", "--device", "rxe0"];
    assert!(refused(&run(&both), 2).contains("rxe0"));
}

#[test]
fn completions_and_manual_pages_are_printed() {
    for shell in ["bash", "zsh", "fish"] {
        assert!(stdout(&run(&["completions", shell])).contains("cluster-key"), "{shell}");
    }
    assert!(stdout(&run(&["man"])).contains(".TH ringkeep 1"));
    let page = stdout(&run(&["man", "serve"]));
    assert!(page.contains(".TH ringkeep-serve 1") && page.contains("\\-\\-join"), "{page}");
}

/// `ringkeep completions bash | head -0` is no failure.
#[test]
fn a_reader_that_goes_away_is_no_failure() {
    for args in [&["completions", "bash"][..], &["man"], &["doctor", "--json"], &["--help"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = ringkeep(args).stdout(writer).stderr(Stdio::piped()).output().unwrap();
        assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_ne!(output.status.code(), Some(101));
    }
}
