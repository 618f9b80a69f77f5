//! Runs the runtime for real: as root, on this kernel, with a small static program in the containers.
//!
//! Every test is a process of its own, because the runtime's caller must have one thread, in a private mount namespace
//! of its own. When all are done, the host must look as it did before. This file holds the list and the running; the
//! tests are in the modules, the scene in [`node`].

mod exec;
mod files;
mod hostile;
mod identity;
mod node;
mod pods;
mod start;
mod users;
mod volumes;

use node::Node;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// How long one test may take; KNARR_TEST_PATIENCE times as long on a machine that is emulated.
const TEST_DEADLINE: Duration = Duration::from_secs(60);

/// A test: its name, and what it does on a node of its own.
pub type Test = (&'static str, fn(&mut Node));

/// Names the functions of a module as its tests.
#[macro_export]
macro_rules! tests {
    ($($name:ident),* $(,)?) => {
        pub const TESTS: &[$crate::Test] = &[$((concat!(module_path!(), "::", stringify!($name)), $name),)*];
    };
}

const ALL: &[&[Test]] = &[
    start::TESTS,
    identity::TESTS,
    files::TESTS,
    hostile::TESTS,
    volumes::TESTS,
    exec::TESTS,
    pods::TESTS,
    users::TESTS,
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [flag, name, probe] = arguments.as_slice()
        && flag == "--run"
    {
        return run_here(name, Path::new(probe));
    }
    if arguments.iter().any(|argument| argument == "--list") {
        for (name, _) in ALL.iter().copied().flatten() {
            say(&format!("{name}: test"));
        }
        return ExitCode::SUCCESS;
    }
    if !rustix::process::geteuid().is_root() {
        say("skipped: these tests need root");
        return ExitCode::SUCCESS;
    }
    let dir = tempfile::tempdir().expect("a temporary directory");
    let probe = match build_probe(dir.path()) {
        Ok(probe) => probe,
        Err(reason) => {
            say(&format!("skipped: {reason}"));
            return ExitCode::SUCCESS;
        }
    };
    if node::cgroup2().is_none() {
        say("skipped: no cgroup2 hierarchy is mounted");
        return ExitCode::SUCCESS;
    }
    let filter = arguments.iter().rfind(|argument| !argument.starts_with('-')).cloned().unwrap_or_default();
    run_all(&filter, &probe)
}

fn run_all(filter: &str, probe: &Path) -> ExitCode {
    let before = host();
    let tests: Vec<Test> = ALL.iter().copied().flatten().filter(|(name, _)| name.contains(filter)).copied().collect();
    let next = AtomicUsize::new(0);
    let failed = Mutex::new(Vec::new());
    let work = || {
        while let Some((name, _)) = tests.get(next.fetch_add(1, Ordering::Relaxed)) {
            let started = Instant::now();
            let verdict = run_in_process(name, probe);
            let took = started.elapsed().as_millis();
            match verdict {
                Ok(()) => say(&format!("test {name} ... ok ({took} ms)")),
                Err(output) => {
                    say(&format!("test {name} ... FAILED ({took} ms)\n{output}"));
                    failed.lock().expect("no test panics in here").push(*name);
                }
            }
        }
    };
    // One waits for its deadline most of the time.
    std::thread::scope(|scope| {
        (0..2).for_each(|_| {
            scope.spawn(work);
        });
    });
    let (count, mut failed) = (tests.len(), failed.into_inner().expect("no test panics in here"));
    // What a test's process has left dies with it, but is reaped by the machine's init.
    let deadline = Instant::now() + Duration::from_secs(5);
    while before != host() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
    }
    let after = host();
    if before != after {
        say(&format!("the host is not as it was\nbefore: {before:#?}\nafter: {after:#?}"));
        failed.push("the host is as it was");
    }
    say(&format!("{} of {count} tests passed; failed: {failed:?}", count - failed.len().min(count)));
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// What no test may change: the host's mounts, cgroups of ours, and processes of ours.
fn host() -> (String, Vec<String>, Vec<String>) {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    (mounts, node::cgroups_of_tests(), node::processes_of_tests())
}

fn run_in_process(name: &str, probe: &Path) -> Result<(), String> {
    let log = tempfile::NamedTempFile::new().map_err(|error| error.to_string())?;
    let output = || log.as_file().try_clone().map(Stdio::from).map_err(|error| error.to_string());
    let mut child = Command::new(std::env::current_exe().map_err(|error| error.to_string())?)
        .arg("--run")
        .arg(name)
        .arg(probe)
        .stdin(Stdio::null())
        .stdout(output()?)
        .stderr(output()?)
        .spawn()
        .map_err(|error| error.to_string())?;
    let patience = std::env::var("KNARR_TEST_PATIENCE").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    let deadline = Instant::now() + TEST_DEADLINE * patience;
    let text = || std::fs::read_to_string(log.path()).unwrap_or_default();
    while Instant::now() < deadline {
        match child.try_wait() {
            Ok(Some(status)) if status.success() => return Ok(()),
            Ok(Some(status)) => return Err(format!("{}{status}", text())),
            Ok(None) => std::thread::sleep(Duration::from_millis(5)),
            Err(error) => return Err(error.to_string()),
        }
    }
    let _ = child.kill();
    let _ = child.wait();
    Err(format!("{}took longer than {TEST_DEADLINE:?}", text()))
}

fn run_here(name: &str, probe: &Path) -> ExitCode {
    let test = ALL.iter().copied().flatten().find(|(known, _)| *known == name);
    let Some((_, test)) = test else {
        say(&format!("no test {name}"));
        return ExitCode::FAILURE;
    };
    test(&mut Node::new(probe));
    ExitCode::SUCCESS
}

/// Compiles the program of the containers, unless KNARR_TEST_PROBE names one: not every machine has a compiler.
fn build_probe(dir: &Path) -> Result<PathBuf, String> {
    if let Some(built) = std::env::var_os("KNARR_TEST_PROBE") {
        return Ok(built.into());
    }
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kernel/probe.c");
    let program = dir.join("probe");
    let mut compiler = Command::new("cc");
    let built = compiler.args(["-static", "-O1", "-w", "-o"]).arg(&program).arg(source).output();
    match built {
        Ok(output) if output.status.success() => Ok(program),
        Ok(output) => Err(format!("cc -static failed: {}", String::from_utf8_lossy(&output.stderr))),
        Err(error) => Err(format!("no C compiler: {error}")),
    }
}

fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}
