//! Runs each test in a process and namespaces of its own, several at a time, and tells how they went.
//!
//! The namespaces are made by util-linux' `unshare`, before the test's process has a second thread. In its PID
//! namespace the test is process 1: when it ends or is killed, everything that it started dies with it, so a test that
//! fails leaves no process and no mount behind. Cgroups are no part of a namespace; they are removed here.
//!
//! With the systemd driver there is no PID namespace, because systemd is told processes by their numbers: orphans of a
//! test come to it, and to this process once it has ended, and are killed here.

use crate::node::{Config, Node};
use crate::tree::{self, Driver};
use crate::{Outcome, leaks, patience};
use std::fs;
use std::future::Future;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

/// How long one test may take before it is killed.
const TEST_LIMIT: Duration = Duration::from_secs(180);

/// How many tests run at once when nobody says: they wait more than they compute.
const JOBS: usize = 4;

/// How a line begins by which a test says that it cannot run here, and why.
pub const SKIPPED: &str = "skipped: ";

/// How much of a failed test's output is shown, in bytes from its end.
const OUTPUT_SHOWN: usize = 128 << 10;

/// One test.
pub struct Test {
    /// The function's name.
    pub name: &'static str,
    /// What its node's configuration says beyond the default.
    pub config: fn() -> Config,
    /// The function.
    pub run: for<'a> fn(&'a mut Node) -> Pin<Box<dyn Future<Output = Outcome> + 'a>>,
}

/// Lists the tests of a file: `tests![one, two, three with a_configuration]`. A test that is not listed is dead code,
/// which the compiler reports.
#[macro_export]
macro_rules! tests {
    ($($name:ident $(with $config:path)?),+ $(,)?) => {
        pub const TESTS: &[$crate::runner::Test] = &[$(
            $crate::runner::Test {
                name: stringify!($name),
                config: $crate::tests!(@config $($config)?),
                run: |node| ::std::boxed::Box::pin($name(node)),
            },
        )+];
    };
    (@config) => { ::std::default::Default::default };
    (@config $config:path) => { $config };
}

/// The main function of the test binary; `groups` are the files with their tests.
pub fn main(groups: &[(&str, &[Test])]) -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if let [flag, name, directory] = words.as_slice()
        && flag == "--one"
    {
        return match find(groups, name) {
            Some(test) => run_one(test, Path::new(directory)),
            None => ExitCode::FAILURE,
        };
    }
    let names: Vec<String> =
        groups.iter().flat_map(|(group, tests)| tests.iter().map(move |t| format!("{group}::{}", t.name))).collect();
    if words.iter().any(|w| w == "--list") {
        names.iter().for_each(|name| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    if !rustix::process::geteuid().is_root() {
        println!("the node tests did not run: they make namespaces, cgroups and mounts, for which they must be root");
        return ExitCode::SUCCESS;
    }
    let filters: Vec<&String> = words.iter().filter(|w| !w.starts_with("--")).collect();
    let chosen: Vec<&String> =
        names.iter().filter(|name| filters.is_empty() || filters.iter().any(|f| name.contains(f.as_str()))).collect();
    // Without a PID namespace each test's orphans come here when it is over.
    if Driver::current() == Driver::Systemd
        && let Err(error) = rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
    {
        println!("cannot become the reaper of what tests leave: {error}");
        return ExitCode::FAILURE;
    }
    let jobs = words.iter().find_map(|w| w.strip_prefix("--jobs=")?.parse().ok()).unwrap_or(JOBS).max(1);
    run_all(&chosen, jobs)
}

fn find<'a>(groups: &'a [(&str, &[Test])], name: &str) -> Option<&'a Test> {
    let (group, name) = name.split_once("::")?;
    let (_, tests) = groups.iter().find(|(g, _)| *g == group)?;
    tests.iter().find(|t| t.name == name)
}

struct Running<'a> {
    name: &'a str,
    child: Child,
    directory: PathBuf,
    started: Instant,
}

fn run_all(names: &[&String], jobs: usize) -> ExitCode {
    if let Err(problem) = crate::node::executables() {
        println!("{problem}");
        return ExitCode::FAILURE;
    }
    let (started, limit) = (Instant::now(), patience(TEST_LIMIT));
    let mut waiting = names.iter().enumerate();
    let mut running: Vec<Running<'_>> = Vec::new();
    let mut failed = Vec::new();
    let mut done = 0;
    loop {
        while running.len() < jobs {
            let Some((number, name)) = waiting.next() else { break };
            match spawn(name, number) {
                Ok(test) => running.push(test),
                Err(problem) => {
                    println!("test {name} ... cannot start: {problem}");
                    failed.push((*name).clone());
                }
            }
        }
        if running.is_empty() {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
        let mut still = Vec::new();
        for mut test in running {
            let took = test.started.elapsed();
            let verdict = match test.child.try_wait() {
                Ok(None) if took < limit => {
                    still.push(test);
                    continue;
                }
                Ok(Some(status)) if status.success() => skipped(&test.directory).unwrap_or("ok".to_owned()),
                Ok(Some(status)) => format!("FAILED ({status})"),
                Ok(None) => format!("FAILED (not done within {limit:?})"),
                Err(error) => format!("FAILED ({error})"),
            };
            println!("test {} ... {verdict} {:.2} s", test.name, took.as_secs_f64());
            done += 1;
            if verdict.starts_with("FAILED") {
                show_output(&test.directory);
                failed.push(test.name.to_owned());
            }
            clean_up(test);
        }
        running = still;
        if Driver::current() == Driver::Systemd {
            leaks::kill_orphans(&running.iter().map(|test| test.child.id()).collect::<Vec<_>>());
        }
    }
    println!("\n{done} tests in {:.1} s, {} failed", started.elapsed().as_secs_f64(), failed.len());
    failed.iter().for_each(|name| println!("  {name}"));
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn spawn<'a>(name: &'a str, number: usize) -> Outcome<Running<'a>> {
    // Short, because the path of the daemon's socket may have 107 bytes; the name is the cgroup's as well.
    let directory = PathBuf::from(format!("/tmp/knarr-node-{}-{number}", std::process::id()));
    fs::create_dir(&directory)?;
    let output = fs::File::create(directory.join("output"))?;
    let processes: &[&str] = match Driver::current() {
        Driver::Cgroupfs => &["--pid", "--fork", "--kill-child=SIGKILL", "--mount-proc"],
        Driver::Systemd => &[],
    };
    let child = Command::new("unshare")
        .args(["--mount", "--net", "--ipc", "--uts"])
        .args(processes)
        .arg(std::env::current_exe()?)
        .args(["--one", name])
        .arg(&directory)
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        .spawn()?;
    Ok(Running { name, child, directory, started: Instant::now() })
}

fn clean_up(mut test: Running<'_>) {
    let _ = test.child.kill();
    let _ = test.child.wait();
    leaks::remove_cgroups(&tree::parent(&test.directory));
    leaks::remove_units(&test.directory);
    if let Err(error) = fs::remove_dir_all(&test.directory) {
        println!("cannot remove {}: {error}", test.directory.display());
    }
}

/// What a test that could not run here says of it, in a line of its output.
fn skipped(directory: &Path) -> Option<String> {
    let output = fs::read_to_string(directory.join("output")).ok()?;
    output.lines().find(|line| line.starts_with(SKIPPED)).map(str::to_owned)
}

fn show_output(directory: &Path) {
    for name in ["output", "daemon.log"] {
        let mut bytes = Vec::new();
        let read = fs::File::open(directory.join(name)).and_then(|mut file| file.read_to_end(&mut bytes));
        if read.is_ok() && !bytes.is_empty() {
            let from = bytes.len().saturating_sub(OUTPUT_SHOWN);
            println!("--- {name}\n{}", String::from_utf8_lossy(&bytes[from..]));
        }
    }
    println!("---");
}

/// In the test's own process and namespaces.
fn run_one(test: &Test, directory: &Path) -> ExitCode {
    // A new network namespace has a loopback interface, and it is down.
    let up = Command::new("ip").args(["link", "set", "lo", "up"]).status();
    if !up.is_ok_and(|status| status.success()) {
        println!("cannot bring the loopback interface up");
        return ExitCode::FAILURE;
    }
    if Driver::current() == Driver::Systemd
        && let Err(error) = rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
    {
        println!("cannot become the reaper of what the daemon leaves: {error}");
        return ExitCode::FAILURE;
    }
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            println!("{error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(live(test, directory)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("{error}");
            ExitCode::FAILURE
        }
    }
}

async fn live(test: &Test, directory: &Path) -> Outcome {
    let before_daemon = leaks::Snapshot::take(directory, None)?;
    let mut node = Node::start(directory, (test.config)()).await?;
    let before = leaks::Snapshot::take(directory, node.daemon_pid())?;
    (test.run)(&mut node).await?;
    if !node.is_running() {
        node.start_again().await?;
    }
    node.remove_everything().await?;
    leaks::nothing_left(&before, directory, || node.daemon_pid(), leaks::Scope::Pods).await?;
    node.stop().await?;
    leaks::nothing_left(&before_daemon, directory, || None, leaks::Scope::Daemon).await
}
