//! What a node must have. Everything that is missing is said at start, all of it at once, with what to do.

/// The oldest kernel that knarr is built for: cgroup.kill, openat2, mount_setattr, idmapped overlay layers and
/// everything else that is used without a fallback.
const KERNEL_MIN: (u32, u32) = (6, 1);

/// Checks what every pod needs.
pub fn check() -> Result<(), String> {
    let mut missing = Vec::new();
    if !rustix::process::geteuid().is_root() {
        missing.push("knarr serve must run as root".to_owned());
    }
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    missing.extend(kernel_problem(&release));
    let filesystems = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    missing.extend(filesystem_problems(&filesystems));
    if missing.is_empty() { Ok(()) } else { Err(format!("this node cannot run pods:\n  {}", missing.join("\n  "))) }
}

fn kernel_problem(release: &str) -> Option<String> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let (major, minor) = KERNEL_MIN;
    (version < KERNEL_MIN).then(|| format!("Linux {release} is too old: {major}.{minor} or newer is needed"))
}

fn filesystem_problems(filesystems: &str) -> Vec<String> {
    let has = |name: &str| filesystems.lines().any(|line| line.split_whitespace().last() == Some(name));
    let needed = [
        ("overlay", "load the module: modprobe overlay"),
        ("cgroup2", "the kernel must be built with CONFIG_CGROUPS"),
        ("tmpfs", "the kernel must be built with CONFIG_TMPFS"),
        ("mqueue", "the kernel must be built with CONFIG_POSIX_MQUEUE"),
    ];
    let missing = needed.iter().filter(|(name, _)| !has(name));
    missing.map(|(name, remedy)| format!("the kernel has no {name} file system; {remedy}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_kernels_are_named() {
        for old in ["5.15.0-91-generic", "6.0.19", "4.18.0-553.el8.x86_64"] {
            assert!(kernel_problem(old).unwrap().contains(old));
        }
        for new in ["6.1.0-13-amd64", "6.18.44", "7.0.0-rc1", "10.2"] {
            assert_eq!(kernel_problem(new), None, "{new}");
        }
    }

    #[test]
    fn every_missing_file_system_is_named_with_its_remedy() {
        let problems = filesystem_problems("nodev\ttmpfs\nnodev\tcgroup2\n\text4\n");
        assert_eq!(problems.len(), 2, "{problems:?}");
        assert!(problems[0].contains("modprobe overlay"));
    }
}
