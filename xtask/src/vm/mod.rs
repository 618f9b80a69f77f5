//! `cargo xtask test --vm`: the tests in a machine of our own, with what the machine at hand may lack: systemd as its
//! init, cgroup v2 with every controller, AppArmor, and a kernel of the oldest kind that knarr is for.
//!
//! [`image`] makes the machine's disk, once; [`machine`] boots it with a job; this file says what the job is: which
//! programs are brought along and in which order they run.

mod image;
mod machine;

use crate::{binaries, packages, process};
use cargo_metadata::{Message, TargetKind};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// From switching on to switching off. All of the tests under both drivers take a half of it in an emulated machine.
const RUN_LIMIT: Duration = Duration::from_secs(80 * 60);

/// How much longer a test may take in an emulated machine, which needs five to ten times the time.
const PATIENCE_EMULATED: u32 = 10;

const DRIVERS: [&str; 2] = ["cgroupfs", "systemd"];

/// Runs all tests, or the node tests with one of the `words` in their names; `--driver=systemd` picks one driver.
pub fn run(words: &[&str]) -> Result<(), String> {
    let (options, words): (Vec<&str>, Vec<&str>) = words.iter().partition(|word| word.starts_with("--"));
    let mut drivers = DRIVERS.to_vec();
    for option in options {
        match option.strip_prefix("--driver=").filter(|driver| DRIVERS.contains(driver)) {
            Some(driver) => drivers = vec![driver],
            None => return Err(format!("unknown option {option}: there are --driver=cgroupfs and --driver=systemd")),
        }
    }
    if let Some(word) = words.iter().find(|word| !word.bytes().all(|b| b.is_ascii_alphanumeric() || b"_:".contains(&b)))
    {
        return Err(format!("{word:?} is no part of a test's name"));
    }
    if !process::is_root() {
        return Err("making the machine's disk needs root: run it as root, or with sudo".into());
    }
    if !cfg!(target_arch = "x86_64") {
        return Err("the virtual machine is made for x86_64 only".into());
    }
    packages::for_building()?;
    packages::for_virtual_machine()?;
    let image = image::make()?;
    let job = tempfile::tempdir().map_err(|e| format!("a directory for the job: {e}"))?;
    let accelerated = machine::has_kvm();
    bring_programs(job.path(), words.is_empty())?;
    let script = script(&words, &drivers, if accelerated { 1 } else { PATIENCE_EMULATED });
    let run = job.path().join("run");
    std::fs::write(&run, script).map_err(|e| format!("{}: {e}", run.display()))?;
    make_executable(&run)?;
    match machine::boot(&image, job.path(), accelerated, RUN_LIMIT)? {
        0 => Ok(()),
        status => Err(format!("the tests in the virtual machine failed with status {status}")),
    }
}

/// Builds what the job needs and puts it, stripped, into its directory.
fn bring_programs(job: &Path, all: bool) -> Result<(), String> {
    let made = binaries::build(binaries::Flavour::Emulated)?;
    let mut programs = vec![("knarr", made.knarr), ("knarr-shim", made.shim)];
    programs.push(("node", test_program("knarr-node-tests", "node", TargetKind::Test)?));
    if all {
        programs.push(("kernel", test_program("knarr-runtime", "kernel", TargetKind::Test)?));
        programs.push(("daemon", test_program("knarr-daemon", "knarr_daemon", TargetKind::Lib)?));
        let probe = job.join("probe").display().to_string();
        process::run("cc", &["-static", "-O1", "-w", "-o", &probe, "crates/runtime/tests/kernel/probe.c"])?;
    }
    for (name, from) in programs {
        let (from, to) = (from.display().to_string(), job.join(name).display().to_string());
        process::run("strip", &["--strip-debug", "-o", &to, &from])?;
    }
    Ok(())
}

/// Builds a test program and says where cargo put it.
fn test_program(package: &str, target: &str, kind: TargetKind) -> Result<PathBuf, String> {
    eprintln!("+ cargo test --no-run --profile=emulated -p {package}");
    let which: &[&str] = if kind == TargetKind::Lib { &["--lib"] } else { &["--test", target] };
    let output = Command::new(process::cargo())
        .args(["test", "--no-run", "--quiet", "--message-format=json", "--profile=emulated", "-p", package])
        .args(which)
        .current_dir(crate::root())
        .stderr(Stdio::inherit())
        .output()
        .map_err(|e| format!("cannot run cargo: {e}"))?;
    if !output.status.success() {
        return Err(format!("cargo test --no-run -p {package}: {}", output.status));
    }
    let found =
        Message::parse_stream(output.stdout.as_slice()).filter_map(Result::ok).find_map(|message| match message {
            Message::CompilerArtifact(made) if made.profile.test && made.target.name == target => made.executable,
            _ => None,
        });
    found.map(Into::into).ok_or_else(|| format!("cargo built no test program {target} of {package}"))
}

/// What runs in the machine. A stage that fails does not stop those after it.
fn script(words: &[&str], drivers: &[&str], patience: u32) -> String {
    let mut text = format!(
        "#!/bin/sh\n\
         cd /job\n\
         export HOME=/root KNARR_BIN=/job/knarr KNARR_SHIM_BIN=/job/knarr-shim KNARR_TEST_PROBE=/job/probe\n\
         export KNARR_TEST_PATIENCE={patience}\n\
         failed=\n\
         stage() {{ echo \"== $1\"; name=$1; shift; \"$@\" || failed=\"$failed, $name\"; }}\n\
         echo \"== Linux $(uname -r), systemd $(systemctl --version | sed -n '1s/.*(\\(.*\\))/\\1/p')\"\n"
    );
    if words.is_empty() {
        text += "stage 'runtime against the kernel' ./kernel\n";
        text += "stage 'cgroups against the kernel' ./daemon --test-threads=2 cgroup::\n";
    }
    for driver in drivers {
        let _ = writeln!(
            text,
            "stage 'node tests, {driver} driver' env KNARR_TEST_CGROUP_DRIVER={driver} ./node {}",
            words.join(" ")
        );
    }
    text += "[ -z \"$failed\" ] || { echo \"== failed: ${failed#, }\"; exit 1; }\n";
    text
}

fn make_executable(path: &Path) -> Result<(), String> {
    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(path, mode).map_err(|e| format!("{}: {e}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_choose_node_tests_under_every_driver_that_was_not_ruled_out() {
        let all = script(&[], &DRIVERS, 10);
        for part in ["./kernel\n", "cgroup::\n", "=cgroupfs ./node \n", "=systemd ./node \n", "PATIENCE=10\n"] {
            assert!(all.contains(part), "{part:?} in {all}");
        }
        let some = script(&["pods::", "execs"], &["systemd"], 1);
        assert!(some.contains("=systemd ./node pods:: execs\n") && !some.contains("./kernel"), "{some}");
        assert!(!some.contains("=cgroupfs"), "{some}");
    }
}
