//! `exec` and `attach` with pipes and files: what is asked of the runtime, what comes through, when it ends.

use std::fs::File;
use std::io::{Read, Write};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use knarr_cri_api::v1::ContainerConfig;

use crate::fake::id;
use crate::lists::node;
use crate::{Fixture, Outcome, outcome};

/// Far more than any of these takes; what is still running then hangs.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// The outcome of a command that ends by itself.
pub fn ended(mut child: Child) -> Outcome {
    let asked = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if asked.elapsed() > DEADLINE {
            child.kill().unwrap();
            panic!("it does not end: {:?}", outcome(child.wait_with_output().unwrap()));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    outcome(child.wait_with_output().unwrap())
}

/// Asks until something holds.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let asked = Instant::now();
    while !holds() {
        assert!(asked.elapsed() < DEADLINE, "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn spawn(node: &Fixture, args: &[&str], stdin: impl Into<Stdio>) -> Child {
    let mut command = node.command(args);
    command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

const TRANSPORTS: [&str; 2] = ["spdy", "websocket"];

#[test]
fn both_outputs_and_the_code_come_through() {
    let node = node();
    for transport in TRANSPORTS {
        let exec = |words: &[&str]| node.knarr(&[&["exec", "--transport", transport, "log", "--"], words].concat());
        let both = exec(&["both", "out", "err"]);
        assert_eq!((both.stdout.as_str(), both.stderr.as_str(), both.code), ("out", "err", 0), "{transport}");
        for code in ["1", "42", "126", "127", "255"] {
            assert_eq!(exec(&["end", code]).code.to_string(), code, "{transport}");
        }
    }
    assert_eq!(node.calls()[0], "exec log stdout stderr");
}

#[test]
fn input_is_passed_on_only_when_asked() {
    let node = node();
    let outcome = node.knarr_with_input(&["exec", "-i", "log", "flags"], b"");
    assert_eq!(outcome.stdout, " stdin stdout stderr");
    let child = spawn(&node, &["exec", "log", "flags"], File::open("/dev/zero").unwrap());
    assert_eq!(ended(child).stdout, " stdout stderr");
}

#[test]
fn what_is_piped_through_comes_back_whole_and_ends_by_itself() {
    let node = node();
    let sent: Vec<u8> = (0..3_000_000_u32).map(|n| (n / 7 % 26) as u8 + b'a').collect();
    for transport in TRANSPORTS {
        let mut child = spawn(&node, &["exec", "-i", "--transport", transport, "log", "cat"], Stdio::piped());
        let mut stdin = child.stdin.take().unwrap();
        let feeding = sent.clone();
        let feeder = std::thread::spawn(move || stdin.write_all(&feeding).unwrap());
        let mut stdout = child.stdout.take().unwrap();
        let collector = std::thread::spawn(move || {
            let mut bytes = Vec::new();
            stdout.read_to_end(&mut bytes).unwrap();
            bytes
        });
        let outcome = ended(child);
        feeder.join().unwrap();
        assert_eq!((outcome.code, outcome.stderr.as_str()), (0, ""), "{transport}");
        assert!(collector.join().unwrap() == sent, "{transport}");
    }
}

#[test]
fn a_file_is_read_as_input_too() {
    let node = node();
    let file = node.file("input", "a line\n");
    assert_eq!(ended(spawn(&node, &["exec", "-i", "log", "cat"], File::open(file).unwrap())).stdout, "a line\n");
    assert_eq!(ended(spawn(&node, &["exec", "-i", "log", "cat"], Stdio::null())).stdout, "");
}

#[test]
fn the_end_of_the_command_is_the_end_whatever_its_input_does() {
    let node = node();
    let endless = spawn(&node, &["exec", "-i", "log", "take", "5"], File::open("/dev/zero").unwrap());
    assert_eq!(ended(endless).stdout, "\0\0\0\0\0");
    // A pipe into which nobody writes and which nobody closes.
    let mut idle = spawn(&node, &["exec", "-i", "log", "end", "3"], Stdio::piped());
    let held = idle.stdin.take();
    assert_eq!(ended(idle).code, 3);
    drop(held);
}

#[test]
fn output_comes_as_it_is_written() {
    let node = node();
    let mut child = spawn(&node, &["exec", "log", "stay"], Stdio::null());
    let mut four = [0; 4];
    child.stdout.as_mut().unwrap().read_exact(&mut four).unwrap();
    assert_eq!(&four, b"here");
    // Without a terminal a signal does to us what it does to every program; the other end sees that we have gone.
    child.kill().unwrap();
    child.wait().unwrap();
    eventually("the program is told", || node.calls().iter().any(|call| call == "the client of stay has gone"));
}

#[test]
fn a_reader_that_leaves_ends_it_without_a_word() {
    let node = node();
    let mut child = spawn(&node, &["exec", "log", "much", "100000000"], Stdio::null());
    let mut some = [0; 1000];
    child.stdout.as_mut().unwrap().read_exact(&mut some).unwrap();
    drop(child.stdout.take());
    let outcome = ended(child);
    assert_eq!((outcome.code, outcome.stderr.as_str()), (0, ""));
    eventually("the program is cut off", || node.calls().iter().any(|call| call == "much was cut off"));
}

#[test]
fn what_could_not_be_run_ends_with_125_and_says_why() {
    let node = node();
    for (words, expected) in [
        (["fail", "no such file"].as_slice(), "no such file\n"),
        (&["lost"], "error: cannot run \"lost\" in container log: "),
        (&["secret"], "the runtime's streams are https"),
    ] {
        let outcome = node.knarr(&[&["exec", "log"], words].concat());
        assert_eq!(outcome.code, 125, "{outcome:?}");
        assert!(outcome.stderr.starts_with("error: "), "{outcome:?}");
        assert!(outcome.stderr.contains(expected), "{outcome:?}");
    }
}

#[test]
fn a_terminal_that_nobody_types_on_is_not_given() {
    let node = node();
    let outcome = node.knarr_with_input(&["exec", "-it", "log", "flags"], b"");
    assert_eq!((outcome.stdout.as_str(), outcome.code), (" stdin stdout stderr", 0));
    assert_eq!(outcome.stderr, "warning: standard input is no terminal, and so the command gets none\n");
    // Without input there is nothing to type, and output may be wanted as a terminal has it.
    let outcome = node.knarr(&["exec", "-t", "log", "flags"]);
    assert_eq!((outcome.stdout.as_str(), outcome.stderr.as_str()), (" stdout tty", ""));
}

fn attachable(tty: bool, stdin: bool) -> Fixture {
    let node = node();
    let config = ContainerConfig { tty, stdin, ..ContainerConfig::default() };
    node.tables.lock().unwrap().container_configs.insert(id("cc12"), config);
    node
}

#[test]
fn attach_asks_for_what_the_container_has() {
    for (tty, stdin, args, expected) in [
        (false, false, [].as_slice(), "attach log stdout stderr"),
        (false, true, &[], "attach log stdin stdout stderr"),
        (true, true, &[], "attach log stdin stdout tty"),
        (false, true, &["--no-stdin"], "attach log stdout stderr"),
        (false, false, &["--tty"], "attach log stdout tty"),
    ] {
        let node = attachable(tty, stdin);
        let child = spawn(&node, &[&["attach", "log"], args].concat(), Stdio::null());
        eventually("it attaches", || node.calls().iter().any(|call| call == expected));
        let mut child = child;
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

#[test]
fn where_nobody_tells_of_the_input_a_refusal_does() {
    // Of this container the runtime shows no configuration.
    let node = node();
    let refusal = tonic::Status::invalid_argument("stdin: the container was created without it");
    node.tables.lock().unwrap().refuses_stdin = Some(refusal);
    let mut child = spawn(&node, &["attach", "log"], Stdio::null());
    eventually("it attaches", || node.calls().len() == 2);
    assert_eq!(node.calls(), ["attach log stdin stdout stderr", "attach log stdout stderr"]);
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn the_code_of_an_attached_container_is_waited_for() {
    let node = attachable(false, true);
    let mut child = spawn(&node, &["attach", "log"], Stdio::piped());
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"end").unwrap();
    let outcome = ended(child);
    assert_eq!((outcome.stdout.as_str(), outcome.code), ("attached stdin stdout stderr\r\n", 7), "{outcome:?}");
}

#[test]
fn a_container_that_outlives_its_attachment_is_no_failure() {
    let node = attachable(false, true);
    let outcome = node.knarr_with_input(&["attach", "log"], b"");
    assert_eq!(outcome.code, 0, "{outcome:?}");
    assert!(outcome.stderr.contains("container log, which goes on running"), "{outcome:?}");
}

#[test]
fn what_cannot_be_attached_to_is_named() {
    let node = node();
    let outcome = node.knarr(&["attach", "nope"]);
    assert_eq!(outcome.code, 125);
    assert!(outcome.stderr.contains("nope"), "{outcome:?}");
    assert_eq!(node.knarr(&["attach", "--detach-keys", "ctrl-1", "log"]).code, 2);
    let refusal = tonic::Status::failed_precondition("the container is not running");
    node.tables.lock().unwrap().failing.insert("attach", refusal);
    let outcome = node.knarr(&["attach", "log"]);
    assert_eq!(outcome.code, 125);
    assert!(outcome.stderr.starts_with("error: cannot attach to container log: the container is not running"));
}
