//! The keeper waits for its word, then for a signal, and for nothing else.

use rustix::process::{Pid, Signal, kill_process};
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Starting and ending take milliseconds; a busy machine is given more.
const LIMIT: Duration = Duration::from_secs(20);

fn keeper() -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_knarr-shim"));
    command.args(["--keep", "knarr-test.scope"]).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap()
}

fn wait(child: &mut Child) -> std::process::ExitStatus {
    let deadline = Instant::now() + LIMIT;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        assert!(Instant::now() < deadline, "it does not end");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn name_of(child: &Child) -> String {
    std::fs::read_to_string(format!("/proc/{}/comm", child.id())).unwrap_or_default()
}

#[test]
fn a_keeper_ends_with_a_daemon_that_did_not_finish() {
    let mut keeper = keeper();
    drop(keeper.stdin.take());
    assert!(wait(&mut keeper).success());
}

#[test]
fn a_keeper_outlives_its_daemon_and_ends_by_a_signal() {
    let mut keeper = keeper();
    keeper.stdin.take().unwrap().write_all(b"k").unwrap();
    let deadline = Instant::now() + LIMIT;
    let reads_null = |pid| std::fs::read_link(format!("/proc/{pid}/fd/0")).is_ok_and(|to| to.ends_with("null"));
    // Without root its descriptors are not shown, because it cannot be dumped.
    let shown = rustix::process::geteuid().is_root();
    while name_of(&keeper) != "knarr-keeper\n" || shown && !reads_null(keeper.id()) {
        assert!(Instant::now() < deadline, "it still reads its pipe");
        assert!(keeper.try_wait().unwrap().is_none(), "it ended");
        std::thread::sleep(Duration::from_millis(5));
    }
    kill_process(Pid::from_child(&keeper), Signal::TERM).unwrap();
    assert_eq!(wait(&mut keeper).signal(), Some(Signal::TERM.as_raw()));
}
