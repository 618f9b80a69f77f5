//! The `knarr` binary against a fake runtime: what it prints, what it calls, what it exits with.
//!
//! The rules behind it are tested beside the code; here stands only what needs the whole program.
#![allow(missing_docs, clippy::wildcard_imports)]

mod fake;
mod images;
mod lists;
mod pods;
mod port_forward;
mod run;
mod streams;
mod streams_fake;
mod terminals;
mod tls;

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use fake::{Fake, Tables};

/// A runtime and a directory for one test.
struct Fixture {
    dir: tempfile::TempDir,
    tables: Arc<Mutex<Tables>>,
}

/// What a run of `knarr` left.
#[derive(Debug)]
struct Outcome {
    stdout: String,
    stderr: String,
    code: i32,
}

impl Fixture {
    fn new() -> Self {
        Self::with_extra(true)
    }

    fn with_extra(has_extra: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let fake = Fake { has_extra, ..Fake::default() };
        let tables = fake.tables.clone();
        fake::serve(fake, &dir.path().join("knarr.sock"));
        Self { dir, tables }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_knarr"));
        command.arg("--root").arg(self.dir.path()).args(args);
        command.env_remove("CONTAINER_RUNTIME_ENDPOINT").env_remove("REGISTRY_AUTH_FILE").env_remove("NO_COLOR");
        command
    }

    fn knarr(&self, args: &[&str]) -> Outcome {
        outcome(self.command(args).stdin(Stdio::null()).output().unwrap())
    }

    fn knarr_with_input(&self, args: &[&str], input: &[u8]) -> Outcome {
        let mut command = self.command(args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(input).unwrap();
        outcome(child.wait_with_output().unwrap())
    }

    fn file(&self, name: &str, content: &str) -> String {
        let path: PathBuf = self.dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    }

    fn calls(&self) -> Vec<String> {
        self.tables.lock().unwrap().calls.iter().filter(|call| !call.starts_with("list_")).cloned().collect()
    }
}

fn outcome(output: std::process::Output) -> Outcome {
    Outcome {
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
        code: output.status.code().unwrap_or(-1),
    }
}

#[test]
fn where_nobody_listens_the_socket_and_the_cure_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_knarr")).arg("--root").arg(dir.path()).arg("ps").output().unwrap();
    let outcome = outcome(output);
    assert_eq!(outcome.code, 1);
    let socket = dir.path().join("knarr.sock");
    assert!(outcome.stderr.contains(&format!("cannot connect to the runtime at {}", socket.display())), "{outcome:?}");
    assert!(outcome.stderr.contains("knarr serve"), "{outcome:?}");
}

#[test]
fn the_endpoint_is_taken_from_the_environment() {
    let fixture = Fixture::new();
    let socket = format!("unix://{}", fixture.dir.path().join("knarr.sock").display());
    let output = Command::new(env!("CARGO_BIN_EXE_knarr"))
        .arg("version")
        .env("CONTAINER_RUNTIME_ENDPOINT", socket)
        .output()
        .unwrap();
    let outcome = outcome(output);
    assert_eq!(outcome.code, 0);
    assert!(outcome.stdout.contains("fake 1.2.3 (CRI v1)"), "{outcome:?}");
}

#[test]
fn a_wrong_command_line_exits_with_2() {
    let fixture = Fixture::new();
    assert_eq!(fixture.knarr(&["nonsense"]).code, 2);
    assert_eq!(fixture.knarr(&["ps", "--state", "tired"]).code, 2);
    assert_eq!(fixture.knarr(&["stop", "-t", "-1", "x"]).code, 2);
    assert_eq!(fixture.knarr(&["-r", "tcp://x", "ps"]).code, 2);
    assert_eq!(fixture.knarr(&["--timeout", "0s", "ps"]).code, 2);
}

#[test]
fn info_tells_what_is_not_ready_and_why() {
    let fixture = Fixture::new();
    let outcome = fixture.knarr(&["info"]);
    assert_eq!(outcome.code, 0);
    for line in [
        "Runtime:              fake 1.2.3 (CRI v1)",
        "RuntimeReady:         yes",
        "NetworkReady:         no (NotYet: no configuration)",
        "Cgroup driver:        cgroupfs",
        "Images:               12.3MB and 9 inodes in /var/lib/fake",
    ] {
        assert!(outcome.stdout.lines().any(|found| found == line), "{line}\n{}", outcome.stdout);
    }
    let document: serde_json::Value = serde_json::from_str(&fixture.knarr(&["info", "-o", "json"]).stdout).unwrap();
    assert_eq!(document["status"]["conditions"][1]["reason"], "NotYet");
    assert_eq!(document["cgroupDriver"], "CGROUPFS");
}

#[test]
fn configuration_is_printed_and_checked_without_a_runtime() {
    let fixture = Fixture::new();
    let default = fixture.knarr(&["config", "default"]).stdout;
    assert!(default.contains("\n[network.cni]\n"), "{default}");
    let file = fixture.file("good.toml", &default);
    assert_eq!(fixture.knarr(&["config", "check", "--config", &file]).stdout, format!("{file}: good\n"));
    let file = fixture.file("bad.toml", "[log]\nlevl = \"info\"\n");
    let outcome = fixture.knarr(&["config", "check", "--config", &file]);
    assert_eq!(outcome.code, 2);
    assert_eq!(outcome.stderr, format!("error: {file}:2: log.levl: there is no such key; did you mean `level`?\n"));
    let shown = fixture.knarr(&["config", "show"]).stdout;
    assert!(shown.contains(&format!("root = \"{}\"", fixture.dir.path().display())), "{shown}");
}

#[test]
fn a_reader_that_leaves_early_is_no_error() {
    let fixture = Fixture::new();
    let mut child =
        fixture.command(&["config", "default"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let outcome = outcome(child.wait_with_output().unwrap());
    assert_eq!((outcome.code, outcome.stderr.as_str()), (0, ""));
}

#[test]
fn completions_are_made_for_each_shell() {
    let fixture = Fixture::new();
    for (shell, sign) in [("bash", "complete -F _knarr"), ("zsh", "#compdef knarr"), ("fish", "complete -c knarr")] {
        assert!(fixture.knarr(&["completion", shell]).stdout.contains(sign), "{shell}");
    }
}
