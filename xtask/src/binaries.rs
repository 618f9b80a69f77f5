//! Building the two executables as they are installed: `knarr`, and `knarr-shim` linked statically, side by side in
//! one directory, because knarr looks for its shim beside itself.

use crate::process;
use std::path::{Path, PathBuf};

/// For whom they are built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flavour {
    /// For tests and the demo: quick to build, the shim as static as the real one.
    Dev,
    /// For tests in an emulated machine.
    Emulated,
    /// For machines.
    Release,
}

/// The executables.
pub struct Binaries {
    /// the directory that holds both
    pub dir: PathBuf,
    /// the daemon and command line
    pub knarr: PathBuf,
    /// the shim
    pub shim: PathBuf,
}

/// Builds both.
pub fn build(flavour: Flavour) -> Result<Binaries, String> {
    let (profile, profile_dir) = match flavour {
        Flavour::Dev => ("dev", "debug"),
        Flavour::Emulated => ("emulated", "emulated"),
        Flavour::Release => ("release", "release"),
    };
    process::run(&process::cargo(), &["build", "--profile", profile, "-p", "knarr-cli"])?;
    let (shim_profile, shim_dir) = match flavour {
        Flavour::Dev | Flavour::Emulated => (profile, profile_dir),
        Flavour::Release => ("shim", "shim"),
    };
    let host = host_target()?;
    // `--target` keeps the flag away from build scripts and procedural macros, which cannot be static.
    let static_libc = format!("target.{host}.rustflags=[\"-C\", \"target-feature=+crt-static\"]");
    process::run(
        &process::cargo(),
        &["build", "--profile", shim_profile, "-p", "knarr-shim", "--target", &host, "--config", &static_libc],
    )?;
    let target = target_dir()?;
    let dir = target.join(match flavour {
        Flavour::Dev => "knarr-dev",
        Flavour::Emulated => "knarr-emulated",
        Flavour::Release => "knarr-release",
    });
    std::fs::create_dir_all(&dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    let made = Binaries { knarr: dir.join("knarr"), shim: dir.join("knarr-shim"), dir };
    put(&target.join(profile_dir).join("knarr"), &made.knarr)?;
    put(&target.join(&host).join(shim_dir).join("knarr-shim"), &made.shim)?;
    Ok(made)
}

/// Copies by way of a new file: a running executable cannot be written to, but its name can be given to another.
fn put(from: &Path, to: &Path) -> Result<(), String> {
    let new = to.with_extension("new");
    std::fs::copy(from, &new).map_err(|e| format!("copy {}: {e}", from.display()))?;
    std::fs::rename(&new, to).map_err(|e| format!("put {} in place: {e}", to.display()))
}

/// "x86_64-unknown-linux-gnu" and the like.
pub fn host_target() -> Result<String, String> {
    let version = process::output("rustc", &["-vV"])?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).ok_or_else(|| format!("rustc -vV names no host:\n{version}"))
}

/// Where cargo builds.
pub fn target_dir() -> Result<PathBuf, String> {
    let metadata = cargo_metadata::MetadataCommand::new()
        .current_dir(crate::root())
        .no_deps()
        .exec()
        .map_err(|e| format!("cargo metadata: {e}"))?;
    Ok(metadata.target_directory.into_std_path_buf())
}
