//! What building and testing need from the distribution: one list, installed with apt where it is missing.

use crate::process;

/// A Debian package and what it is for.
struct Package {
    name: &'static str,
    why: &'static str,
}

const BUILD: &[Package] = &[
    Package { name: "gcc", why: "links Rust programs, compiles the small test programs" },
    Package { name: "libc6-dev", why: "the static C library of the shim and the test programs" },
    Package { name: "libseccomp-dev", why: "the daemon compiles seccomp profiles with libseccomp" },
];

const NODE_TESTS: &[Package] = &[
    Package { name: "iproute2", why: "looks at links from outside" },
    Package { name: "iptables", why: "what the portmap and bridge plugins call" },
    Package { name: "nftables", why: "looks at rules from outside" },
    Package { name: "docker-registry", why: "a real registry to pull from" },
    Package { name: "containernetworking-plugins", why: "real CNI plugins" },
];

const VIRTUAL_MACHINE: &[Package] = &[
    Package { name: "debootstrap", why: "makes the machine's file system" },
    Package { name: "debian-archive-keyring", why: "lets it trust Debian's packages, on Ubuntu too" },
    Package { name: "e2fsprogs", why: "makes the machine's disk" },
    Package { name: "qemu-system-x86", why: "is the machine" },
];

/// Installs what building needs.
pub fn for_building() -> Result<(), String> {
    install(BUILD)
}

/// Installs what the node tests need.
pub fn for_node_tests() -> Result<(), String> {
    install(NODE_TESTS)
}

/// Installs what the virtual machine needs on this side.
pub fn for_virtual_machine() -> Result<(), String> {
    install(VIRTUAL_MACHINE)
}

fn install(packages: &[Package]) -> Result<(), String> {
    let missing: Vec<&Package> = packages.iter().filter(|p| !is_installed(p.name)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    for package in &missing {
        eprintln!("needs {}: {}", package.name, package.why);
    }
    if process::output("sh", &["-c", "command -v apt-get"]).is_err() {
        eprintln!("no apt-get here: going on, in the hope that these are present under other names");
        return Ok(());
    }
    let names: Vec<&str> = missing.iter().map(|p| p.name).collect();
    let sudo: &[&str] = if process::is_root() { &[] } else { &["sudo"] };
    let command = |words: &[&str]| {
        let words: Vec<&str> = sudo.iter().chain(words).copied().collect();
        process::run_with_env(words[0], &words[1..], &[("DEBIAN_FRONTEND", "noninteractive")])
    };
    // A list that is out of date names files that the mirror has no more; one that is fresh costs a few seconds.
    command(&["apt-get", "update", "-qq"])?;
    let install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends"];
    let words: Vec<&str> = install.iter().chain(&names).copied().collect();
    command(&words)
}

fn is_installed(name: &str) -> bool {
    let script = format!("dpkg-query -W -f='${{Status}}' {name} 2>/dev/null");
    process::output("sh", &["-c", &script]).is_ok_and(|status| status == "install ok installed")
}
