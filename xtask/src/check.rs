//! `cargo xtask test`: everything that must hold before a change goes in, the quick things first.

use crate::{binaries, packages, process, tidy};

/// All of it.
pub fn run() -> Result<(), String> {
    packages::for_building()?;
    tidy::run()?;
    let cargo = process::cargo();
    process::run(&cargo, &["fmt", "--all", "--check"])?;
    process::run(&cargo, &["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"])?;
    process::run(&cargo, &["test", "--quiet"])?;
    if let Some(reason) = no_node_tests() {
        eprintln!("All is well, as far as it was looked at: the node tests did not run, because {reason}.");
        return Ok(());
    }
    node_tests(&[])?;
    eprintln!("All is well.");
    Ok(())
}

/// Only the tests of the whole of knarr against this machine's kernel.
pub fn node_tests(filters: &[&str]) -> Result<(), String> {
    if let Some(reason) = no_node_tests() {
        return Err(format!("the node tests cannot run: {reason}"));
    }
    packages::for_building()?;
    packages::for_node_tests()?;
    let made = binaries::build(binaries::Flavour::Dev)?;
    let knarr = made.knarr.display().to_string();
    let shim = made.shim.display().to_string();
    let mut args = vec!["test", "-p", "knarr-node-tests", "--"];
    args.extend(filters);
    process::run_with_env(&process::cargo(), &args, &[("KNARR_BIN", &knarr), ("KNARR_SHIM_BIN", &shim)])
}

fn no_node_tests() -> Option<&'static str> {
    if !cfg!(target_os = "linux") {
        return Some("this is not Linux");
    }
    if !process::is_root() {
        return Some("they make namespaces, cgroups and mounts, for which they must be root");
    }
    None
}
