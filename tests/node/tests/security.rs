//! Who a container's processes are and what they may do, read back from the kernel: for the first process and for an
//! exec, which must not differ.

use knarr_cri_api::v1::{Capability, ContainerConfig, SecurityProfile, security_profile::ProfileType};
use knarr_node_tests::images::image_with;
use knarr_node_tests::node::{Node, Pod};
use knarr_node_tests::requests::{container, int, pod, security, security_of_pod};
use knarr_node_tests::{Outcome, tests};
use serde_json::json;
use std::collections::BTreeMap;

tests![
    capabilities_are_the_default_ones_and_never_inherited,
    capabilities_are_added_and_dropped,
    another_user_has_none_in_effect,
    users_and_groups_are_looked_up,
    a_user_that_is_no_number_of_the_kernel_is_refused,
    the_images_user_counts_when_the_pod_says_nothing,
    no_new_privileges_and_seccomp_are_set,
    a_profile_of_the_host_is_used_and_a_missing_one_refused,
    masked_and_read_only_paths_hold,
    a_privileged_container_sees_the_machine,
    privileged_needs_a_privileged_pod,
    a_read_only_root_cannot_be_written,
    devices_are_the_harmless_ones,
    cgroups_cannot_be_written,
    no_descriptor_but_three_reaches_a_container,
    no_abstract_socket_is_in_reach,
    the_shims_executable_cannot_be_written,
];

/// CHOWN, DAC_OVERRIDE, FOWNER, FSETID, KILL, SETGID, SETUID, SETPCAP, NET_BIND_SERVICE, NET_RAW, SYS_CHROOT, MKNOD,
/// AUDIT_WRITE, SETFCAP
const DEFAULT_CAPABILITIES: &str = "00000000a80425fb";

const STATUS: [&str; 10] =
    ["status", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "Groups", "Uid"];

/// /proc/self/status of the container's first process and of an exec in it, which must be equal.
async fn process_status(node: &mut Node, pod: &Pod, mut config: ContainerConfig) -> Outcome<BTreeMap<String, String>> {
    config.args = STATUS.iter().chain(&[",", "print", "end", ",", "pause"]).map(|w| (*w).to_owned()).collect();
    let id = node.run(pod, config).await?;
    node.wait_for_log(&id, "end").await?;
    let of_init: String =
        node.log(&id).await?.iter().filter(|l| l.text != "end").map(|l| format!("{}\n", l.text)).collect();
    let of_exec = node.exec_output(&id, &STATUS).await?;
    assert_eq!(of_init, of_exec, "an exec has exactly what the first process has");
    node.stop_container(&id, 0).await?;
    let fields = of_init.lines().filter_map(|l| l.split_once(':'));
    Ok(fields.map(|(k, v)| (k.to_owned(), v.trim().to_owned())).collect())
}

async fn capabilities_are_the_default_ones_and_never_inherited(node: &mut Node) -> Outcome {
    let pod = node.run_pod(pod("caps")).await?;
    let status = process_status(node, &pod, container("main", &[])).await?;
    for (set, expected) in [
        ("CapInh", "0000000000000000"),
        ("CapPrm", DEFAULT_CAPABILITIES),
        ("CapEff", DEFAULT_CAPABILITIES),
        ("CapBnd", DEFAULT_CAPABILITIES),
        ("CapAmb", "0000000000000000"),
    ] {
        assert_eq!(status[set], expected, "{set}");
    }
    Ok(())
}

async fn capabilities_are_added_and_dropped(node: &mut Node) -> Outcome {
    let pod = node.run_pod(pod("caps")).await?;
    for (name, add, drop, expected) in [
        ("drop-all", &[][..], &["ALL"][..], "0000000000000000"),
        ("only-net", &["NET_ADMIN"], &["ALL"], "0000000000001000"),
        ("without-chown", &[], &["CHOWN"], "00000000a80425fa"),
        ("with-prefix", &["CAP_NET_ADMIN"], &["ALL"], "0000000000001000"),
    ] {
        let mut config = container(name, &[]);
        let owned = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect();
        security(&mut config).capabilities =
            Some(Capability { add_capabilities: owned(add), drop_capabilities: owned(drop), ..Default::default() });
        let status = process_status(node, &pod, config).await?;
        for set in ["CapPrm", "CapEff", "CapBnd"] {
            assert_eq!(status[set], expected, "{name} {set}");
        }
        assert_eq!(status["CapInh"], "0000000000000000", "{name}");
    }
    let mut config = container("all", &[]);
    let add_capabilities = vec!["ALL".into()];
    security(&mut config).capabilities = Some(Capability { add_capabilities, ..Default::default() });
    let status = process_status(node, &pod, config).await?;
    let own = std::fs::read_to_string("/proc/self/status")?;
    let own = own.lines().find_map(|l| l.strip_prefix("CapBnd:")).ok_or("no CapBnd")?.trim().to_owned();
    assert_eq!(status["CapEff"], own, "all is all that this machine gives away");
    Ok(())
}

async fn another_user_has_none_in_effect(node: &mut Node) -> Outcome {
    let pod = node.run_pod(pod("user")).await?;
    let mut config = container("main", &[]);
    security(&mut config).run_as_user = int(1000);
    let status = process_status(node, &pod, config).await?;
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        assert_eq!(status[set], "0000000000000000", "{set}");
    }
    assert_eq!(status["CapBnd"], DEFAULT_CAPABILITIES);
    assert_eq!(status["Uid"].split_whitespace().collect::<Vec<_>>(), ["1000"; 4]);
    Ok(())
}

async fn users_and_groups_are_looked_up(node: &mut Node) -> Outcome {
    use knarr_cri_api::v1::SupplementalGroupsPolicy::Strict;
    let pod = node.run_pod(pod("ids")).await?;
    // user, name, group, more groups, strict: what `id` prints
    type Case = (Option<i64>, &'static str, Option<i64>, &'static [i64], bool, &'static str);
    let cases: [Case; 7] = [
        (None, "", None, &[], false, "uid=0 gid=0 groups=0"),
        (Some(1000), "", None, &[], false, "uid=1000 gid=1000 groups=1000,2002"),
        (None, "many", None, &[], false, "uid=1001 gid=1001 groups=1001,2001,2002"),
        (Some(1001), "", Some(5), &[7], false, "uid=1001 gid=5 groups=5,7,2001,2002"),
        (Some(1001), "", Some(5), &[7], true, "uid=1001 gid=5 groups=5,7"),
        (Some(4242), "", None, &[], false, "uid=4242 gid=0 groups=0"),
        (Some(4242), "", Some(4343), &[9], false, "uid=4242 gid=4343 groups=9,4343"),
    ];
    for (number, (user, name, group, more, strict, expected)) in cases.into_iter().enumerate() {
        let mut config = container(&format!("c{number}"), &["id", ",", "pause"]);
        let context = security(&mut config);
        context.run_as_user = user.and_then(int);
        context.run_as_username = name.into();
        context.run_as_group = group.and_then(int);
        context.supplemental_groups = more.to_vec();
        if strict {
            context.set_supplemental_groups_policy(Strict);
        }
        let id = node.run(&pod, config).await?;
        let seen = node.exec_output(&id, &["id"]).await?;
        assert_eq!(sorted_groups(seen.trim()), expected, "case {number}");
        node.wait_for_log(&id, "uid=").await?;
        assert_eq!(format!("{}\n", node.log(&id).await?[0].text), seen);
        let told = node.status(&id).await?.user.and_then(|u| u.linux).ok_or("no user in the status")?;
        assert_eq!(format!("uid={} gid={}", told.uid, told.gid), expected.rsplit_once(' ').unwrap_or_default().0);
        node.stop_container(&id, 0).await?;
    }
    Ok(())
}

fn sorted_groups(line: &str) -> String {
    let Some((start, groups)) = line.split_once("groups=") else { return line.to_owned() };
    let mut groups: Vec<u32> = groups.split(',').filter_map(|g| g.parse().ok()).collect();
    groups.sort_unstable();
    groups.dedup();
    let groups: Vec<String> = groups.iter().map(u32::to_string).collect();
    format!("{start}groups={}", groups.join(","))
}

/// CVE-2024-40635 and its kin: a number that wraps to 0, or is looked up as a name.
async fn a_user_that_is_no_number_of_the_kernel_is_refused(node: &mut Node) -> Outcome {
    let pod = node.run_pod(pod("wrap")).await?;
    let users =
        ["4294967296", "4294967295", "99999999999999999999", "-1", "1e3", "0x0", "no-such-user", "1000:no-such"];
    for (number, user) in users.into_iter().enumerate() {
        let passwd = format!("root:x:0:0::/:/\n{}:x:0:0::/:/\n", user.split(':').next().unwrap_or_default());
        let files: &[(&str, u32, &[u8])] = if user.starts_with("no-such") || user.contains(':') {
            &[]
        } else {
            &[("etc/passwd", 0o644, passwd.as_bytes())]
        };
        let name = format!("localhost/user{number}:1");
        node.import(&[(&name, &image_with(json!({ "User": user }), files))]).await?;
        let mut config = container(&format!("c{number}"), &["id", ",", "pause"]);
        config.image.get_or_insert_default().image = name;
        let outcome = match node.create(&pod, config).await {
            Ok(id) => node.start_container(&id).await,
            Err(status) => Err(status),
        };
        // A name of digits and signs that the image's passwd has may be anybody; it must not be a number that wrapped.
        if outcome.is_ok() {
            assert!(["1e3", "0x0"].contains(&user), "{user} was let through");
        }
    }
    for user in [i64::from(u32::MAX) + 1, i64::from(u32::MAX), -1] {
        let mut config = container("number", &["id"]);
        security(&mut config).run_as_user = int(user);
        node.create(&pod, config).await.expect_err("no such number");
    }
    Ok(())
}

async fn the_images_user_counts_when_the_pod_says_nothing(node: &mut Node) -> Outcome {
    for (tag, user) in [("number", "1000"), ("name", "app"), ("both", "1000:1000"), ("names", "app:app")] {
        let image = image_with(json!({ "User": user, "WorkingDir": "/home/app" }), &[]);
        node.import(&[(&format!("localhost/user:{tag}"), &image)]).await?;
    }
    let pod = node.run_pod(pod("image-user")).await?;
    for tag in ["number", "name", "both", "names"] {
        let mut config = container(tag, &["id", ",", "pwd"]);
        config.image.get_or_insert_default().image = format!("localhost/user:{tag}");
        let output = node.output_of(&pod, config).await?;
        assert!(output.starts_with("uid=1000 gid=1000 ") && output.ends_with("\n/home/app\n"), "{tag}: {output}");
    }
    Ok(())
}

async fn no_new_privileges_and_seccomp_are_set(node: &mut Node) -> Outcome {
    let pod = node.run_pod(pod("seccomp")).await?;
    let status = process_status(node, &pod, container("nothing", &[])).await?;
    assert_eq!((status["NoNewPrivs"].as_str(), status["Seccomp"].as_str()), ("0", "0"));

    let mut config = container("default", &[]);
    let context = security(&mut config);
    context.no_new_privs = true;
    context.seccomp = Some(SecurityProfile { profile_type: ProfileType::RuntimeDefault.into(), ..Default::default() });
    let filtered = config.clone();
    let status = process_status(node, &pod, config.clone()).await?;
    assert_eq!((status["NoNewPrivs"].as_str(), status["Seccomp"].as_str()), ("1", "2"));
    // Without it, a filter needs a privilege that the process is about to lose.
    config.metadata.get_or_insert_default().name = "setuid".into();
    for user in [0, 1000] {
        config.log_path = format!("setuid/{user}.log");
        security(&mut config).no_new_privs = false;
        security(&mut config).run_as_user = int(user);
        config.metadata.get_or_insert_default().attempt = u32::try_from(user)?;
        let status = process_status(node, &pod, config.clone()).await?;
        assert_eq!((status["NoNewPrivs"].as_str(), status["Seccomp"].as_str()), ("0", "2"), "uid {user}");
    }

    let mut config = filtered;
    config.metadata.get_or_insert_default().name = "filtered".into();
    config.log_path = "filtered/0.log".into();
    config.args = ["try", "unshare-user", ",", "try", "chroot", ",", "pause"].map(str::to_owned).to_vec();
    let id = node.run(&pod, config).await?;
    let seen = node.exec_output(&id, &["try", "unshare-user", ",", "try", "chroot"]).await?;
    assert_eq!(seen, "EPERM\nok\n", "the filter stops what it must and only that");
    Ok(())
}

async fn a_profile_of_the_host_is_used_and_a_missing_one_refused(node: &mut Node) -> Outcome {
    let profile = node.directory.join("profile.json");
    std::fs::write(
        &profile,
        r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["sethostname","mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO","errnoRet":38}]}"#,
    )?;
    let pod = node.run_pod(pod("localhost")).await?;
    let local = |name: &str, path: &str| {
        let mut config = container(name, &["try", "mkdir", "/x"]);
        security(&mut config).seccomp =
            Some(SecurityProfile { profile_type: ProfileType::Localhost.into(), localhost_ref: path.into() });
        config
    };
    let output = node.output_of(&pod, local("there", &profile.display().to_string())).await?;
    assert_eq!(output, "ENOSYS\n");
    for (name, path) in [("absent", "/no/such/profile.json"), ("nameless", ""), ("broken", "/etc/passwd")] {
        let outcome = match node.create(&pod, local(name, path)).await {
            Ok(id) => node.start_container(&id).await,
            Err(status) => Err(status),
        };
        outcome.expect_err("a profile that cannot be applied must not be left out");
    }
    Ok(())
}

async fn masked_and_read_only_paths_hold(node: &mut Node) -> Outcome {
    let pod = node.run_pod(pod("masked")).await?;
    let words = [
        "try",
        "write",
        "/proc/sys/kernel/domainname",
        ",",
        "try",
        "chown",
        "/proc/bus",
        "0",
        "0",
        ",",
        "try",
        "tmpfs",
        "/proc",
        ",",
        "try",
        "umount",
        "/etc",
        ",",
        "try",
        "create",
        "/sys/x",
    ];
    let mut config = container("main", &words);
    security(&mut config).masked_paths = vec!["/proc/kcore".into(), "/proc/no-such-thing".into(), "/etc".into()];
    security(&mut config).readonly_paths = vec!["/proc/sys".into(), "/proc/bus".into(), "/proc/no-such-thing".into()];
    let output = node.output_of(&pod, config.clone()).await?;
    let seen: Vec<&str> = output.lines().collect();
    assert_eq!(&seen[..2], ["EROFS", "EROFS"]);
    assert_eq!(&seen[2..4], ["EPERM", "EPERM"]);
    assert!(["EROFS", "EACCES", "EPERM"].contains(&seen[4]), "{}", seen[4]);

    config.metadata.get_or_insert_default().name = "contents".into();
    config.log_path = "contents/0.log".into();
    config.args = ["ls", "/etc", ",", "print", "end"].map(str::to_owned).to_vec();
    assert_eq!(node.output_of(&pod, config).await?, "end\n", "what is masked is empty");
    Ok(())
}

async fn a_privileged_container_sees_the_machine(node: &mut Node) -> Outcome {
    let mut config = pod("privileged");
    security_of_pod(&mut config).privileged = true;
    let pod = node.run_pod(config).await?;
    let mut config = container("main", &[]);
    security(&mut config).privileged = true;
    let status = process_status(node, &pod, config.clone()).await?;
    let own = std::fs::read_to_string("/proc/self/status")?;
    let own = own.lines().find_map(|l| l.strip_prefix("CapBnd:")).ok_or("no CapBnd")?.trim().to_owned();
    assert_eq!(status["CapEff"], own);
    assert_eq!(status["Seccomp"], "0");

    config.metadata.get_or_insert_default().name = "more".into();
    config.log_path = "more/0.log".into();
    config.args = ["try", "tmpfs", "/mnt", ",", "ls", "/dev"].map(str::to_owned).to_vec();
    config.mounts = vec![];
    let words = ["try", "write", "/proc/sys/kernel/domainname", ",", "ls", "/dev"];
    config.args = words.map(str::to_owned).to_vec();
    let output = node.output_of(&pod, config).await?;
    assert!(output.starts_with("ok\n"), "{output}");
    let host_devices: Vec<String> = ["null", "zero", "full", "random", "urandom", "kmsg"]
        .iter()
        .map(|d| (*d).to_owned())
        .filter(|d| std::path::Path::new("/dev").join(d).exists())
        .collect();
    for device in host_devices {
        assert!(output.lines().any(|l| l == device), "{device} is not in {output}");
    }
    Ok(())
}

async fn privileged_needs_a_privileged_pod(node: &mut Node) -> Outcome {
    let pod = node.run_pod(pod("plain")).await?;
    let mut config = container("main", &["pause"]);
    security(&mut config).privileged = true;
    node.create(&pod, config).await.expect_err("the pod is not privileged");
    Ok(())
}

async fn a_read_only_root_cannot_be_written(node: &mut Node) -> Outcome {
    let pod = node.run_pod(pod("root")).await?;
    let mut config =
        container("main", &["try", "create", "/x", ",", "try", "create", "/dev/shm/x", ",", "cat", "/etc/hostname"]);
    security(&mut config).readonly_rootfs = true;
    assert_eq!(node.output_of(&pod, config).await?, "EROFS\nok\nroot\n");
    Ok(())
}

async fn devices_are_the_harmless_ones(node: &mut Node) -> Outcome {
    let pod = node.run_pod(pod("devices")).await?;
    let words = [
        "ls",
        "/dev",
        ",",
        "write",
        "/dev/null",
        "x",
        ",",
        "stat",
        "/dev/null",
        ",",
        "try",
        "mknod",
        "/own",
        "1",
        "11",
        ",",
        "try",
        "mknod",
        "/zero",
        "1",
        "5",
    ];
    let id = node.run(&pod, container("main", &["pause"])).await?;
    let output = node.exec_output(&id, &words).await?;
    for name in ["null", "zero", "full", "random", "urandom", "tty", "ptmx", "pts", "shm", "mqueue", "fd", "stdin"] {
        assert!(output.lines().any(|l| l == name), "{name} is not in {output}");
    }
    for name in ["mem", "kmsg", "sda", "vda", "fuse", "kvm", "port"] {
        assert!(!output.lines().any(|l| l == name), "{name} is in {output}");
    }
    assert!(output.contains("char 0666 0:0 1:3\n"), "{output}");
    // Making a node is allowed by default; using one that was not given is what the cgroup forbids.
    let output = node.exec_output(&id, &["try", "mknod", "/disk", "1", "11", ",", "try", "read", "/disk"]).await?;
    assert!(output.lines().last() == Some("EPERM") || output == "EPERM\nENOENT\n", "{output}");
    Ok(())
}

/// GHSA-m8cg-xc2p-r3fc and its kin.
async fn cgroups_cannot_be_written(node: &mut Node) -> Outcome {
    let pod = node.run_pod(pod("cgroup")).await?;
    let id = node.run(&pod, container("main", &["pause"])).await?;
    let hierarchies = node.exec_output(&id, &["ls", "/sys/fs/cgroup"]).await?;
    let mut places = vec!["/sys/fs/cgroup".to_owned()];
    // On pure v2 the exec that lists sees the cgroup that it runs in itself, which is gone with it.
    let lasting = |name: &&str| !name.contains('.') && !name.starts_with("knarr-exec-");
    places.extend(hierarchies.lines().filter(lasting).map(|l| format!("/sys/fs/cgroup/{l}")));
    for place in places {
        let made = node.exec_output(&id, &["try", "mkdir", &format!("{place}/x")]).await?;
        assert!(made == "EROFS\n" || made == "EEXIST\n", "{place}: {made}");
        let moved = node.exec_output(&id, &["try", "write", &format!("{place}/cgroup.procs")]).await?;
        assert!(moved == "EROFS\n" || moved == "ENOENT\n", "{place}: {moved}");
    }
    // v1 has no delegation to hide, so there, as with other runtimes, the host's path is seen.
    let own = node.exec_output(&id, &["cat", "/proc/self/cgroup"]).await?;
    let unified = std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    assert!(!unified || !own.contains(&id), "{own}");
    Ok(())
}

async fn no_descriptor_but_three_reaches_a_container(node: &mut Node) -> Outcome {
    let pod = node.run_pod(pod("fds")).await?;
    let id = node.run(&pod, container("main", &["fds", ",", "print", "end", ",", "pause"])).await?;
    node.wait_for_log(&id, "end").await?;
    let numbers =
        |text: &str| -> Vec<String> { text.lines().filter_map(|l| Some(l.split_once(' ')?.0.to_owned())).collect() };
    let of_init: String = node.log(&id).await?.iter().map(|l| format!("{}\n", l.text)).collect();
    assert_eq!(numbers(&of_init), ["0", "1", "2"], "{of_init}");
    let of_exec = node.exec_output(&id, &["fds"]).await?;
    assert_eq!(numbers(&of_exec), ["0", "1", "2"], "{of_exec}");
    Ok(())
}

async fn no_abstract_socket_is_in_reach(node: &mut Node) -> Outcome {
    let pod = node.run_pod(pod("sockets")).await?;
    let output = node.output_of(&pod, container("main", &["cat", "/proc/net/unix"])).await?;
    assert_eq!(output.lines().count(), 1, "only the head of the table: {output}");
    Ok(())
}

/// CVE-2019-5736: through /proc/<pid>/exe of a process of ours, with the host's processes in sight.
async fn the_shims_executable_cannot_be_written(node: &mut Node) -> Outcome {
    use knarr_node_tests::requests::{Mode, namespaces};
    let (_, shim) = knarr_node_tests::node::executables()?;
    let before = std::fs::read(&shim)?;
    let mut config = pod("exe");
    let host_pid = namespaces(Mode::Pod, Mode::Node, Mode::Pod);
    let context = security_of_pod(&mut config);
    context.privileged = true;
    context.namespace_options = Some(host_pid.clone());
    let pod = node.run_pod(config).await?;
    let mut config = container("main", &["pause"]);
    let context = security(&mut config);
    context.privileged = true;
    context.namespace_options = Some(host_pid);
    let id = node.run(&pod, config).await?;
    let processes = node.exec_output(&id, &["procs"]).await?;
    let shims: Vec<&str> = processes
        .lines()
        .filter_map(|l| l.split_once(' '))
        .filter(|(_, n)| n.starts_with("knarr-sh"))
        .map(|(p, _)| p)
        .collect();
    assert!(!shims.is_empty(), "{processes}");
    let mut seen = 0;
    for pid in shims {
        let outcome = node.exec_output(&id, &["try", "write", &format!("/proc/{pid}/exe")]).await?;
        assert!(["EROFS\n", "EACCES\n", "EPERM\n", "ETXTBSY\n", "ENOENT\n"].contains(&outcome.as_str()), "{outcome}");
        // While it runs it is busy whatever the mount is; what counts is the mount, through which a handle that was
        // kept could be opened again later. Both sides see the same processes, under the same numbers.
        // What started the listing was a copy of the shim, which is gone.
        let Ok(mount) = rustix::fs::statvfs(format!("/proc/{pid}/exe")) else { continue };
        assert!(mount.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY), "{:?}", mount.f_flag);
        seen += 1;
    }
    assert!(seen > 0);
    assert!(std::fs::read(&shim)? == before);
    Ok(())
}
