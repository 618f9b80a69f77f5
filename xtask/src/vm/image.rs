//! The machine's disk and kernel, made of Debian's packages, kept for all later runs.

use super::make_executable;
use crate::process;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};

/// The release that the machine is of: its kernel, 6.1, is the oldest that knarr is for.
const SUITE: &str = "bookworm";

/// What the tests use inside, beside what makes a machine.
const PACKAGES: [&str; 16] = [
    "apparmor",
    "ca-certificates",
    "containernetworking-plugins",
    "dbus",
    "docker-registry",
    "iproute2",
    "iptables",
    "kmod",
    "libseccomp2",
    "nftables",
    "procps",
    "strace",
    "systemd",
    "systemd-sysv",
    "util-linux",
    "util-linux-extra",
];

/// Loaded at boot: what a daemon looks for, and does not load itself, because a node has it loaded.
const MODULES: &str = "overlay\nbr_netfilter\n";

/// Bytes of the disk. It is a file with holes; the tests fill some hundred MiB of it, and nothing of that is kept.
const DISK_BYTES: u64 = 8 << 30;

const JOB: &str = include_str!("../../vm/job");
const JOB_UNIT: &str = include_str!("../../vm/job.service");
const KERNEL: &str = include_str!("../../vm/kernel");

/// A disk and a kernel.
pub struct Image {
    pub disk: PathBuf,
    pub kernel: PathBuf,
}

/// Where images are kept: as large as they are, one for all clones of this tree is enough.
fn cache() -> PathBuf {
    std::env::var_os("KNARR_VM_DIR").map_or_else(|| "/var/cache/knarr-test-vm".into(), PathBuf::from)
}

/// Gives the image, after making it if there is none of this recipe.
pub fn make() -> Result<Image, String> {
    let mut recipe = DefaultHasher::new();
    (SUITE, PACKAGES, MODULES, DISK_BYTES, JOB, JOB_UNIT, KERNEL).hash(&mut recipe);
    let cache = cache();
    let made = cache.join(format!("{:016x}", recipe.finish()));
    if !made.exists() {
        fs::create_dir_all(&cache).map_err(|e| format!("{}: {e}", cache.display()))?;
        let under_way = tempfile::Builder::new().prefix("new-").tempdir_in(&cache).map_err(|e| e.to_string())?;
        eprintln!("making the virtual machine in {}: this takes a minute or two, once", made.display());
        build(under_way.path())?;
        // Another run may have been quicker, with the same.
        if !made.exists() {
            fs::rename(under_way.keep(), &made).map_err(|e| format!("{}: {e}", made.display()))?;
        }
        remove_older(&cache, &made);
    }
    Ok(Image { disk: made.join("disk"), kernel: made.join("vmlinuz") })
}

fn build(dir: &Path) -> Result<(), String> {
    let root = dir.join("root");
    let text = |path: &Path| path.display().to_string();
    let include = format!("--include={}", PACKAGES.join(","));
    let mut words = vec!["--variant=minbase", &include, SUITE];
    let (root_text, mirror) = (text(&root), std::env::var("KNARR_VM_MIRROR").ok());
    words.push(&root_text);
    words.extend(mirror.as_deref());
    process::run_quietly("debootstrap", &words)?;
    write(&root.join("usr/local/sbin/job"), JOB)?;
    write(&root.join("kernel.sh"), KERNEL)?;
    write(&root.join("etc/systemd/system/job.service"), JOB_UNIT)?;
    write(&root.join("etc/modules-load.d/knarr.conf"), MODULES)?;
    write(&root.join("etc/hostname"), "knarr-vm\n")?;
    write(&root.join("etc/hosts"), "127.0.0.1 localhost knarr-vm\n::1 localhost\n")?;
    // Nobody logs in, and without udev the console's prompt would wait for its device.
    for masked in ["serial-getty@ttyS0.service", "getty.target"] {
        link("/dev/null", &root.join("etc/systemd/system").join(masked))?;
    }
    let wants = root.join("etc/systemd/system/multi-user.target.wants");
    link("/etc/systemd/system/job.service", &wants.join("job.service"))?;
    for program in ["usr/local/sbin/job", "kernel.sh"] {
        make_executable(&root.join(program))?;
    }
    process::run_quietly("chroot", &[&root_text, "/kernel.sh"])?;
    fs::remove_file(root.join("kernel.sh")).map_err(|e| format!("kernel.sh: {e}"))?;
    fs::rename(root.join("vmlinuz"), dir.join("vmlinuz")).map_err(|e| format!("vmlinuz: {e}"))?;
    make_disk(&root, &dir.join("disk"), DISK_BYTES)?;
    fs::remove_dir_all(&root).map_err(|e| format!("{root_text}: {e}"))
}

/// Makes a file that holds a file system with what is in a directory.
pub fn make_disk(from: &Path, disk: &Path, bytes: u64) -> Result<(), String> {
    let file = fs::File::create(disk).map_err(|e| format!("{}: {e}", disk.display()))?;
    file.set_len(bytes).map_err(|e| format!("{}: {e}", disk.display()))?;
    let (from, disk) = (from.display().to_string(), disk.display().to_string());
    let words = ["-q", "-F", "-t", "ext4", "-O", "^has_journal", "-E", "lazy_itable_init=1", "-d", &from, &disk];
    process::run_quietly("mke2fs", &words)
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    let failed = |e| format!("{}: {e}", path.display());
    fs::create_dir_all(path.parent().unwrap_or(path)).map_err(failed)?;
    fs::write(path, text).map_err(failed)
}

fn link(to: &str, path: &Path) -> Result<(), String> {
    let failed = |e| format!("{}: {e}", path.display());
    fs::create_dir_all(path.parent().unwrap_or(path)).map_err(failed)?;
    std::os::unix::fs::symlink(to, path).map_err(failed)
}

/// Images of other recipes, and what a run that was broken off has left. Those in use stay open to whoever uses them.
fn remove_older(cache: &Path, made: &Path) {
    for entry in fs::read_dir(cache).into_iter().flatten().flatten().filter(|e| e.path() != made) {
        if let Err(error) = fs::remove_dir_all(entry.path()) {
            eprintln!("cannot remove {}: {error}", entry.path().display());
        }
    }
}
