//! Each field of a container's request with what the kernel says of it, seen from inside: by the first process, and by
//! an exec, which must see the same.

use knarr_cri_api::v1::security_profile::ProfileType;
use knarr_cri_api::v1::{
    Capability, ContainerConfig, KeyValue, Mount, MountPropagation, PodSandboxConfig, SecurityProfile,
};
use knarr_node_tests::node::Node;
use knarr_node_tests::requests::{container, int, mount, pod, resources, security, security_of_pod};
use knarr_node_tests::{Outcome, tests};
use std::fs;
use std::path::Path;
use std::process::Command;

tests![identity_and_rights, mounts, limits, surroundings];

/// One field, or a few that belong together.
struct Row {
    name: &'static str,
    set: fn(&mut PodSandboxConfig, &mut ContainerConfig, &Path),
    /// What the tool is to do to show it.
    ask: &'static [&'static str],
    /// Whether what it shows is right; the error says what is not.
    right: fn(&str) -> Result<(), String>,
}

async fn hold(node: &mut Node, rows: &[Row]) -> Outcome {
    let directory = node.directory.clone();
    for row in rows {
        let (mut of_pod, mut config) = (pod(row.name), container("main", &[]));
        (row.set)(&mut of_pod, &mut config, &directory);
        let words = [row.ask, &[",", "print", "THE-END", ",", "pause"]].concat();
        config.args = words.iter().map(|word| (*word).to_owned()).collect();
        let pod = node.run_pod(of_pod).await.map_err(|status| format!("{}: {status}", row.name))?;
        let id = node.run(&pod, config).await.map_err(|status| format!("{}: {status}", row.name))?;
        node.wait_for_log(&id, "THE-END").await?;
        let lines = node.log(&id).await?;
        let of_init: String =
            lines.iter().filter(|line| line.text != "THE-END").map(|line| format!("{}\n", line.text)).collect();
        let of_exec = node.exec_output(&id, row.ask).await?;
        assert_eq!(of_init, of_exec, "{}: an exec sees what the first process sees", row.name);
        (row.right)(&of_init).map_err(|why| format!("{}: {why} in:\n{of_init}", row.name))?;
        node.remove_pod(&pod.id).await?;
    }
    Ok(())
}

fn nothing(_: &mut PodSandboxConfig, _: &mut ContainerConfig, _: &Path) {}

/// Every line of `wanted`, whatever else there is.
fn has_lines(seen: &str, wanted: &[&str]) -> Result<(), String> {
    let squeezed: Vec<String> =
        seen.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    match wanted.iter().find(|line| !squeezed.iter().any(|seen| seen == *line)) {
        Some(absent) => Err(format!("no line {absent:?}")),
        None => Ok(()),
    }
}

/// What lies uppermost at a place: (options of the mount, peers and masters, type of the file system).
fn mount_at<'a>(mountinfo: &'a str, place: &str) -> Option<(Vec<&'a str>, Vec<&'a str>, &'a str)> {
    let of_place = |line: &&str| line.split(' ').nth(4) == Some(place);
    let words: Vec<&str> = mountinfo.lines().rfind(of_place)?.split(' ').collect();
    let dash = words.iter().position(|word| *word == "-")?;
    Some((words[5].split(',').collect(), words[6..dash].to_vec(), words[dash + 1]))
}

/// The mounts that must be there: (place, flags that it has, kind of its sharing, file system or ""). A flag with `!`
/// must not be there.
fn has_mounts(seen: &str, wanted: &[(&str, &str, &str, &str)]) -> Result<(), String> {
    for (place, flags, sharing, fstype) in wanted {
        let (options, peers, found) = mount_at(seen, place).ok_or_else(|| format!("nothing is mounted at {place}"))?;
        let holds = |flag: &str| match flag.strip_prefix('!') {
            Some(absent) => !options.contains(&absent),
            None => options.contains(&flag),
        };
        let peers: Vec<&str> = peers.iter().map(|peer| peer.split(':').next().unwrap_or_default()).collect();
        if !flags.split(',').all(holds) || peers.join(",") != *sharing || (!fstype.is_empty() && found != *fstype) {
            return Err(format!("{place} is {options:?} {peers:?} {found}, not {flags} {sharing:?} {fstype}"));
        }
    }
    Ok(())
}

fn equals(seen: &str, wanted: &str) -> Result<(), String> {
    if seen == wanted { Ok(()) } else { Err(format!("not {wanted:?}")) }
}

fn capabilities(config: &mut ContainerConfig, add: &[&str], drop: &[&str], ambient: &[&str]) {
    let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    security(config).capabilities = Some(Capability {
        add_capabilities: owned(add),
        drop_capabilities: owned(drop),
        add_ambient_capabilities: owned(ambient),
    });
}

const RIGHTS: &[&str] = &["status", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp"];

async fn identity_and_rights(node: &mut Node) -> Outcome {
    let rows = [
        Row {
            name: "ambient-of-a-user",
            set: |_, config, _| {
                capabilities(config, &["NET_BIND_SERVICE"], &["ALL"], &["NET_BIND_SERVICE"]);
                security(config).run_as_user = int(1000);
            },
            ask: RIGHTS,
            right: |seen| {
                let all =
                    ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"].map(|set| format!("{set}: 0000000000000400"));
                has_lines(seen, &all.each_ref().map(String::as_str))
            },
        },
        Row {
            name: "added-to-a-user",
            set: |_, config, _| {
                capabilities(config, &["NET_ADMIN"], &["ALL"], &[]);
                security(config).run_as_user = int(1000);
            },
            ask: RIGHTS,
            right: |seen| {
                let (none, bound) = ("0000000000000000", "0000000000001000");
                let sets = [("CapInh", none), ("CapPrm", none), ("CapEff", none), ("CapBnd", bound), ("CapAmb", none)];
                let all = sets.map(|(set, mask)| format!("{set}: {mask}"));
                has_lines(seen, &all.each_ref().map(String::as_str))
            },
        },
        Row {
            name: "filtered",
            set: |_, config, _| {
                let profile_type = ProfileType::RuntimeDefault.into();
                security(config).seccomp = Some(SecurityProfile { profile_type, ..Default::default() });
            },
            ask: &["status", "Seccomp", "Seccomp_filters", "NoNewPrivs"],
            right: |seen| has_lines(seen, &["Seccomp: 2", "Seccomp_filters: 1", "NoNewPrivs: 0"]),
        },
        Row {
            name: "unfiltered",
            set: nothing,
            ask: &["status", "Seccomp", "Seccomp_filters"],
            right: |seen| has_lines(seen, &["Seccomp: 0", "Seccomp_filters: 0"]),
        },
        Row {
            name: "no-new-privileges",
            set: |_, config, _| security(config).no_new_privs = true,
            ask: &["status", "NoNewPrivs"],
            right: |seen| has_lines(seen, &["NoNewPrivs: 1"]),
        },
        Row {
            name: "ids-in-all-four-places",
            set: |_, config, _| {
                security(config).run_as_user = int(1001);
                security(config).run_as_group = int(77);
                security(config).supplemental_groups = vec![88];
            },
            ask: &["status", "Uid", "Gid", "Groups"],
            right: |seen| has_lines(seen, &["Uid: 1001 1001 1001 1001", "Gid: 77 77 77 77", "Groups: 77 88 2001 2002"]),
        },
        Row {
            name: "privileged",
            set: |pod, config, _| {
                security_of_pod(pod).privileged = true;
                security(config).privileged = true;
            },
            ask: RIGHTS,
            right: |seen| {
                let own = fs::read_to_string("/proc/self/status").unwrap_or_default();
                let bound = own.lines().find_map(|line| line.strip_prefix("CapBnd:")).unwrap_or_default().trim();
                let all = ["CapPrm", "CapEff", "CapBnd"].map(|set| format!("{set}: {bound}"));
                has_lines(seen, &all.each_ref().map(String::as_str))?;
                has_lines(seen, &["CapInh: 0000000000000000", "CapAmb: 0000000000000000", "Seccomp: 0"])
            },
        },
    ];
    hold(node, &rows).await
}

const MOUNTS: &[&str] = &["cat", "/proc/self/mountinfo"];

async fn mounts(node: &mut Node) -> Outcome {
    let shared = node.directory.join("shared");
    fs::create_dir_all(shared.join("plain"))?;
    let on_host = |words: &[&str]| Command::new("mount").args(words).arg(&shared).status();
    assert!(on_host(&["-t", "tmpfs", "tmpfs"])?.success() && on_host(&["--make-shared"])?.success());
    let rows = [
        Row {
            name: "defaults",
            set: nothing,
            ask: MOUNTS,
            right: |seen| {
                has_mounts(
                    seen,
                    &[
                        ("/", "rw", "", "overlay"),
                        ("/proc", "rw,nosuid,nodev,noexec", "", "proc"),
                        ("/dev", "rw,nosuid,!nodev,!noexec", "", "tmpfs"),
                        ("/dev/pts", "rw,nosuid,noexec", "", "devpts"),
                        ("/dev/mqueue", "rw,nosuid,nodev,noexec", "", "mqueue"),
                        ("/dev/shm", "rw,nosuid,nodev,noexec", "", "tmpfs"),
                        ("/sys", "ro,nosuid,nodev,noexec", "", "sysfs"),
                        ("/sys/fs/cgroup", "ro,nosuid,nodev,noexec", "", ""),
                        ("/etc/hosts", "rw", "", ""),
                        ("/etc/hostname", "rw", "", ""),
                        ("/etc/resolv.conf", "rw", "", ""),
                        ("/proc/sys", "ro,nosuid,nodev,noexec", "", "proc"),
                        ("/sys/firmware", "ro", "", "tmpfs"),
                    ],
                )
            },
        },
        Row {
            name: "privileged",
            set: |pod, config, _| {
                security_of_pod(pod).privileged = true;
                security(config).privileged = true;
            },
            ask: MOUNTS,
            right: |seen| {
                has_mounts(seen, &[("/sys", "rw", "", "sysfs"), ("/sys/fs/cgroup", "rw", "", "")])?;
                let masked = ["/proc/sys", "/proc/kcore", "/sys/firmware"];
                match masked.iter().find(|place| mount_at(seen, place).is_some()) {
                    Some(place) => Err(format!("{place} is covered")),
                    None => Ok(()),
                }
            },
        },
        Row {
            name: "read-only-root",
            set: |_, config, _| security(config).readonly_rootfs = true,
            ask: MOUNTS,
            right: |seen| {
                has_mounts(seen, &[("/", "ro", "", ""), ("/etc/hosts", "ro", "", ""), ("/dev/shm", "rw", "", "")])
            },
        },
        Row {
            name: "volumes",
            set: |_, config, directory| {
                let volume = |name: &str, propagation: MountPropagation| Mount {
                    propagation: propagation.into(),
                    ..mount(directory.join("shared"), name)
                };
                config.mounts = vec![
                    volume("/private", MountPropagation::PropagationPrivate),
                    volume("/slave", MountPropagation::PropagationHostToContainer),
                    volume("/both", MountPropagation::PropagationBidirectional),
                    Mount { readonly: true, ..volume("/read-only", MountPropagation::PropagationHostToContainer) },
                ];
            },
            ask: MOUNTS,
            right: |seen| {
                has_mounts(
                    seen,
                    &[
                        ("/private", "rw,!nosuid,!nodev,!noexec", "", "tmpfs"),
                        ("/slave", "rw", "master", "tmpfs"),
                        ("/both", "rw", "shared", "tmpfs"),
                        ("/read-only", "ro", "master", "tmpfs"),
                        ("/", "rw", "", "overlay"),
                    ],
                )
            },
        },
        Row {
            name: "recursively-read-only",
            set: |_, config, directory| {
                let top = mount(directory, "/data");
                config.mounts = vec![Mount { readonly: true, recursive_read_only: true, ..top }];
            },
            ask: MOUNTS,
            right: |seen| has_mounts(seen, &[("/data", "ro", "", ""), ("/data/shared", "ro", "", "tmpfs")]),
        },
    ];
    let held = hold(node, &rows).await;
    assert!(Command::new("umount").arg("-l").arg(&shared).status()?.success());
    held
}

/// Reads what there is of a cgroup file's places in the two versions.
fn limits_seen(seen: &str, v1: &str, v2: &str) -> Result<(), String> {
    let unified = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    equals(seen.trim_end(), if unified { v2 } else { v1 })
}

async fn limits(node: &mut Node) -> Outcome {
    let unified = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    let file = |v1: &'static str, v2: &'static str| -> &'static [&'static str] {
        Box::leak(Box::new(["cat", if unified { v2 } else { v1 }]))
    };
    let rows = [
        Row {
            name: "memory",
            set: |_, config, _| resources(config).memory_limit_in_bytes = 96 << 20,
            ask: file("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory.max"),
            right: |seen| equals(seen, "100663296\n"),
        },
        Row {
            name: "shares",
            set: |_, config, _| resources(config).cpu_shares = 2048,
            ask: file("/sys/fs/cgroup/cpu/cpu.shares", "/sys/fs/cgroup/cpu.weight"),
            right: |seen| limits_seen(seen, "2048", "174"),
        },
        Row {
            name: "quota",
            set: |_, config, _| {
                resources(config).cpu_period = 50_000;
                resources(config).cpu_quota = 20_000;
            },
            ask: file("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "/sys/fs/cgroup/cpu.max"),
            right: |seen| limits_seen(seen, "20000", "20000 50000"),
        },
        Row {
            name: "period",
            set: |_, config, _| resources(config).cpu_period = 50_000,
            ask: file("/sys/fs/cgroup/cpu/cpu.cfs_period_us", "/sys/fs/cgroup/cpu.max"),
            right: |seen| limits_seen(seen, "50000", "max 50000"),
        },
        Row {
            name: "cpus",
            set: |_, config, _| {
                resources(config).cpuset_cpus = "0".into();
                resources(config).cpuset_mems = "0".into();
            },
            // The process itself, not only its cgroup: an exec must have been put there too.
            ask: &["status", "Cpus_allowed_list", "Mems_allowed_list"],
            right: |seen| has_lines(seen, &["Cpus_allowed_list: 0", "Mems_allowed_list: 0"]),
        },
        Row {
            name: "score-that-anybody-may-have",
            set: |_, config, _| resources(config).oom_score_adj = 987,
            ask: &["cat", "/proc/self/oom_score_adj"],
            right: |seen| equals(seen, "987\n"),
        },
        Row {
            name: "score-that-needs-a-privilege",
            set: |_, config, _| resources(config).oom_score_adj = -998,
            ask: &["cat", "/proc/self/oom_score_adj"],
            // Where the daemon may not go so low, it goes as low as it may.
            right: |seen| match seen.trim_end().parse::<i32>() {
                Ok(-998..=0) => Ok(()),
                _ => Err("not between -998 and 0".into()),
            },
        },
        Row {
            name: "no-score-is-the-default-one",
            set: nothing,
            ask: &["cat", "/proc/self/oom_score_adj"],
            right: |seen| equals(seen, "0\n"),
        },
        Row {
            name: "resource-limits",
            set: nothing,
            ask: &["cat", "/proc/self/limits"],
            right: |seen| match seen.lines().find_map(|line| line.strip_prefix("Max open files")) {
                Some(files) if files.split_whitespace().next().and_then(|n| n.parse().ok()) >= Some(1024u64) => Ok(()),
                _ => Err("fewer than 1024 open files".into()),
            },
        },
    ];
    hold(node, &rows).await
}

async fn surroundings(node: &mut Node) -> Outcome {
    let rows = [
        Row { name: "umask", set: nothing, ask: &["umask"], right: |seen| equals(seen, "0022\n") },
        Row {
            name: "working-directory",
            set: |_, config, _| config.working_dir = "/made/for/this".into(),
            ask: &["pwd"],
            right: |seen| equals(seen, "/made/for/this\n"),
        },
        Row {
            name: "environment",
            set: |_, config, _| {
                let variable = |key: &str, value: &str| KeyValue { key: key.into(), value: value.into() };
                config.envs = vec![variable("A", "1"), variable("PATH", "/elsewhere"), variable("A", "two\nlines")];
            },
            ask: &["env"],
            right: |seen| {
                has_lines(
                    seen,
                    &["A=two", "lines", "PATH=/elsewhere", "FROM_IMAGE=yes", "HOSTNAME=environment", "HOME=/root"],
                )
            },
        },
        Row {
            name: "host-name",
            set: |pod, _, _| pod.hostname = "another-name".into(),
            ask: &["hostname", ",", "cat", "/etc/hostname"],
            right: |seen| equals(seen, "another-name\nanother-name\n"),
        },
        Row {
            name: "sysctls",
            set: |pod, _, _| {
                let sysctls = [("net.ipv4.ip_forward", "1"), ("kernel.shm_rmid_forced", "1")];
                pod.linux.get_or_insert_default().sysctls =
                    sysctls.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
            },
            ask: &["cat", "/proc/sys/net/ipv4/ip_forward", "/proc/sys/kernel/shm_rmid_forced"],
            right: |seen| equals(seen, "1\n1\n"),
        },
    ];
    hold(node, &rows).await
}
