//! `cargo xtask demo`: from a fresh clone to a container that ran, and nothing left of it afterwards.
//!
//! No registry and no network: the image holds one small program, compiled on the spot. The daemon runs in network and
//! mount namespaces of its own, so that the machine's network is not touched; its files are in a scratch directory.

use crate::{binaries, packages, process};
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

/// How long the daemon may take to open its socket, and to end.
const DAEMON_LIMIT: Duration = Duration::from_secs(20);

const IMAGE: &str = "localhost/knarr/hello:latest";

/// Runs it; needs root.
pub fn run() -> Result<(), String> {
    if !process::is_root() {
        return Err("making containers needs root: run it as root, or with sudo".into());
    }
    packages::for_building()?;
    let made = binaries::build(binaries::Flavour::Dev)?;
    // A short path: the socket's may have 107 bytes.
    let scratch = tempfile::Builder::new().prefix("knarr-demo-").tempdir_in("/tmp").map_err(|e| e.to_string())?;
    let archive = make_image(scratch.path())?;
    let knarr = made.knarr.display().to_string();
    let node = scratch.path().join("node").display().to_string();
    let mut daemon = serve(&knarr, &node, scratch.path())?;
    let outcome = wait_for_socket(&mut daemon, Path::new(&node)).and_then(|()| show(&knarr, &node, &archive));
    let ended = end(daemon);
    if outcome.is_err() {
        let log = std::fs::read_to_string(scratch.path().join("daemon.log")).unwrap_or_default();
        eprintln!("--- the daemon's log\n{log}---");
    }
    outcome.and(ended)
}

fn show(knarr: &str, node: &str, archive: &str) -> Result<(), String> {
    let knarr = |args: &[&str]| {
        println!("\n$ knarr {}", args.join(" "));
        let status = Command::new(knarr).args(["--root", node]).args(args).current_dir(crate::root()).status();
        match status {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(format!("knarr {}: {status}", args.join(" "))),
            Err(error) => Err(format!("cannot run knarr: {error}")),
        }
    };
    knarr(&["import", archive])?;
    knarr(&["images"])?;
    knarr(&["run", "-d", "examples/hello.yaml"])?;
    knarr(&["logs", "-f", "hello"])?;
    knarr(&["ps", "-a"])?;
    knarr(&["pods"])?;
    knarr(&["rm", "-f", "hello"])?;
    knarr(&["pods"])
}

/// Compiles the program and wraps it into an archive that `knarr import` takes.
fn make_image(scratch: &Path) -> Result<String, String> {
    let program = scratch.join("hello").display().to_string();
    process::run("cc", &["-static", "-O2", "-o", &program, "xtask/hello/hello.c"])?;
    let archive = scratch.join("hello.tar").display().to_string();
    let args = ["run", "--quiet", "-p", "knarr-testkit", "--bin", "image-of", "--", IMAGE, &program, &archive];
    process::run(&process::cargo(), &args)?;
    Ok(archive)
}

fn serve(knarr: &str, node: &str, scratch: &Path) -> Result<Child, String> {
    let log = std::fs::File::create(scratch.join("daemon.log")).map_err(|e| e.to_string())?;
    // The network is down in a new namespace, loopback included, which the streaming server listens on.
    let script = "ip link set lo up 2>/dev/null; exec \"$0\" --root \"$1\" serve";
    let mut command = Command::new("unshare");
    command.args(["--net", "--mount", "sh", "-c", script, knarr, node]);
    command.stdout(log.try_clone().map_err(|e| e.to_string())?).stderr(log);
    command.spawn().map_err(|e| format!("start the daemon: {e}"))
}

fn wait_for_socket(daemon: &mut Child, node: &Path) -> Result<(), String> {
    let deadline = Instant::now() + DAEMON_LIMIT;
    while std::os::unix::net::UnixStream::connect(node.join("knarr.sock")).is_err() {
        if let Some(status) = daemon.try_wait().map_err(|e| e.to_string())? {
            return Err(format!("the daemon ended: {status}"));
        }
        if Instant::now() > deadline {
            return Err(format!("the daemon opened no socket within {DAEMON_LIMIT:?}"));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// SIGTERM first: the daemon's own end is a part of what is shown.
fn end(mut daemon: Child) -> Result<(), String> {
    process::output("kill", &["-TERM", &daemon.id().to_string()])?;
    let deadline = Instant::now() + DAEMON_LIMIT;
    loop {
        match daemon.try_wait().map_err(|e| e.to_string())? {
            Some(status) if status.success() => return Ok(()),
            Some(status) => return Err(format!("the daemon ended: {status}")),
            None if Instant::now() > deadline => {
                let _ = daemon.kill();
                let _ = daemon.wait();
                return Err(format!("the daemon did not end within {DAEMON_LIMIT:?} of SIGTERM"));
            }
            None => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}
