//! Pods with a user namespace, as kubelet asks for them where `hostUsers` is false: inside they are as other pods are,
//! and on the host their root is nobody.

use crate::network::{call, cni};
use knarr_cri_api::v1;
use knarr_node_tests::images::image_with;
use knarr_node_tests::node::{Node, Pod};
use knarr_node_tests::requests::{Mode, container, int, mount, namespaces, pod, resources, security, security_of_pod};
use knarr_node_tests::{Outcome, eventually, refused, tests};
use serde_json::json;
use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::PathBuf;
use std::time::Duration;
use tonic::Code;

tests![
    the_node_says_what_it_can,
    root_is_nobody_on_the_host,
    an_exec_is_in_the_containers_user_namespace,
    the_network_works_as_elsewhere,
    cni_works_as_elsewhere with cni,
    the_hosts_network_can_be_used,
    processes_can_be_shared,
    it_outlives_the_daemon,
    it_is_counted_and_limited,
    nothing_of_the_host_is_in_reach,
    privilege_ends_at_the_namespace,
    pods_are_strangers_to_each_other,
    what_cannot_be_is_refused,
    a_terminal_is_there,
    a_manifest_can_ask_for_it,
];

/// How many ids a pod has, as kubelet gives them.
pub const LENGTH: u32 = 65_536;
/// The host's id of the root of these pods, and the next pod's.
pub const FIRST: u32 = 1_310_720;
pub const SECOND: u32 = FIRST + LENGTH;

pub fn range(host_id: u32) -> Vec<v1::IdMapping> {
    vec![v1::IdMapping { host_id, container_id: 0, length: LENGTH }]
}

pub fn users(host_id: u32) -> v1::UserNamespace {
    v1::UserNamespace { mode: Mode::Pod.into(), uids: range(host_id), gids: range(host_id) }
}

/// A pod with these ids.
pub fn user_pod(name: &str, host_id: u32) -> v1::PodSandboxConfig {
    let mut config = pod(name);
    security_of_pod(&mut config).namespace_options.get_or_insert_default().userns_options = Some(users(host_id));
    config
}

/// A container of such a pod, all its volumes mapped, as kubelet has it.
pub fn in_pod(config: &v1::PodSandboxConfig, mut container: v1::ContainerConfig) -> v1::ContainerConfig {
    let options = config.linux.clone().and_then(|l| l.security_context).and_then(|s| s.namespace_options);
    let users = options.as_ref().and_then(|o| o.userns_options.clone()).unwrap_or_default();
    for mount in &mut container.mounts {
        (mount.uid_mappings, mount.gid_mappings) = (users.uids.clone(), users.gids.clone());
    }
    security(&mut container).namespace_options = options;
    container
}

pub async fn run(node: &mut Node, pod: &Pod, container: v1::ContainerConfig) -> Outcome<String> {
    Ok(node.run(pod, in_pod(&pod.config, container)).await?)
}

pub async fn output(node: &mut Node, pod: &Pod, container: v1::ContainerConfig) -> Outcome<String> {
    node.output_of(pod, in_pod(&pod.config, container)).await
}

/// One word of a container's verbose status.
pub async fn info(node: &mut Node, id: &str, key: &str) -> Outcome<serde_json::Value> {
    let request = v1::ContainerStatusRequest { container_id: id.into(), verbose: true };
    let info = node.runtime.container_status(request).await?.into_inner().info;
    let info: serde_json::Value = serde_json::from_str(info.get("info").ok_or("no info")?)?;
    Ok(info[key].clone())
}

pub fn volume(node: &Node, name: &str) -> Outcome<PathBuf> {
    let directory = node.directory.join(name);
    fs::create_dir_all(&directory)?;
    Ok(directory)
}

pub fn owner(path: impl AsRef<std::path::Path>) -> Outcome<(u32, u32)> {
    let metadata = fs::symlink_metadata(path)?;
    Ok((metadata.uid(), metadata.gid()))
}

async fn the_node_says_what_it_can(node: &mut Node) -> Outcome {
    let status = node.runtime.status(v1::StatusRequest { verbose: false }).await?.into_inner();
    assert!(status.runtime_handlers.iter().all(|h| h.features.is_some_and(|f| f.user_namespaces)), "{status:?}");
    assert!(status.features.is_some_and(|f| f.user_namespaces_host_network));
    let pod = node.run_pod(user_pod("told", FIRST)).await?;
    let told = node.pod_status(&pod.id).await?.linux.and_then(|l| l.namespaces).and_then(|n| n.options);
    assert_eq!(told.ok_or("no namespaces in the status")?.userns_options, Some(users(FIRST)));
    Ok(())
}

async fn root_is_nobody_on_the_host(node: &mut Node) -> Outcome {
    let pod = node.run_pod(user_pod("root", FIRST)).await?;
    let id = run(node, &pod, container("main", &["pause"])).await?;
    let map = node.exec_output(&id, &["id", ",", "cat", "/proc/self/uid_map", "/proc/self/gid_map"]).await?;
    let words: Vec<&str> = map.split_whitespace().collect();
    let (host, length) = (FIRST.to_string(), LENGTH.to_string());
    assert_eq!(words[..2], ["uid=0", "gid=0"], "{map}");
    assert_eq!(words[3..], ["0", &host, &length, "0", &host, &length], "{map}");
    let pid = info(node, &id, "pid").await?;
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    for kind in ["Uid", "Gid"] {
        assert!(status.contains(&format!("{kind}:\t{host}\t{host}\t{host}\t{host}")), "{status}");
    }
    let capabilities = node.exec_output(&id, &["status", "CapEff", "CapBnd", "NoNewPrivs"]).await?;
    assert!(capabilities.contains("CapEff:\t00000000a80425fb"), "as in other pods: {capabilities}");
    Ok(())
}

async fn an_exec_is_in_the_containers_user_namespace(node: &mut Node) -> Outcome {
    let pod = node.run_pod(user_pod("exec", FIRST)).await?;
    let mut config = container("main", &["namespaces", ",", "id", ",", "status", "CapEff", "CapBnd", ",", "pause"]);
    security(&mut config).run_as_user = int(1000);
    security(&mut config).supplemental_groups = vec![3000];
    let id = run(node, &pod, config).await?;
    node.wait_for_log(&id, "CapBnd").await?;
    let of_first: String = node.log(&id).await?.iter().map(|l| format!("{}\n", l.text)).collect();
    let of_exec = node.exec_output(&id, &["namespaces", ",", "id", ",", "status", "CapEff", "CapBnd"]).await?;
    assert_eq!(of_first, of_exec);
    assert!(of_exec.contains("uid=1000 gid=1000"), "{of_exec}");
    let of_host = fs::read_link("/proc/self/ns/user")?.display().to_string();
    assert!(!of_exec.contains(&of_host), "{of_exec}");
    // What it writes comes back although its pipes were made by somebody else.
    let words = ["append", "/dev/stdout", "by name\n", ",", "append", "/dev/stderr", "too\n"];
    let answer = node.exec(&id, &words).await?;
    assert_eq!((answer.exit_code, answer.stdout, answer.stderr), (0, b"by name\n".to_vec(), b"too\n".to_vec()));
    Ok(())
}

async fn serving(node: &mut Node, mut config: v1::PodSandboxConfig, user: i64) -> Outcome<Pod> {
    let (container_port, host_port) = (80, 12000);
    config.port_mappings =
        vec![v1::PortMapping { protocol: v1::Protocol::Tcp.into(), container_port, host_port, host_ip: String::new() }];
    let pod = node.run_pod(config).await?;
    let mut config = container("server", &["listen", "80"]);
    security(&mut config).run_as_user = int(user);
    let id = run(node, &pod, config).await?;
    node.wait_for_log(&id, "listening").await?;
    Ok(pod)
}

async fn the_network_works_as_elsewhere(node: &mut Node) -> Outcome {
    // A low port for a user who is not root: the pod's sysctl has been written.
    let server = serving(node, user_pod("server", FIRST), 1000).await?;
    let address = node.address(&server).await?;
    assert_eq!(call(&address, 80)?, "hello from server\n");
    assert_eq!(call("127.0.0.1", 12000)?, "hello from server\n");
    let client = node.run_pod(user_pod("client", SECOND)).await?;
    let words = ["connect", &address, "80", ",", "try", "raw-socket", ",", "ls", "/sys/class/net"];
    let said = output(node, &client, container("main", &words)).await?;
    assert_eq!(said, "hello from server\nok\neth0\nlo\n");
    let words = ["connect", "127.0.0.1", "80"];
    assert_eq!(output(node, &server, container("self", &words)).await?, "hello from server\n");
    node.remove_pod(&server.id).await?;
    assert!(call("127.0.0.1", 12000).is_err());
    Ok(())
}

async fn cni_works_as_elsewhere(node: &mut Node) -> Outcome {
    let server = serving(node, user_pod("server", FIRST), 0).await?;
    let address = node.address(&server).await?;
    assert!(address.starts_with("10.93.0."), "{address}");
    assert_eq!(call(&address, 80)?, "hello from server\n");
    assert_eq!(call("10.93.0.1", 12000)?, "hello from server\n");
    let client = node.run_pod(user_pod("client", SECOND)).await?;
    let said = output(node, &client, container("main", &["connect", &address, "80"])).await?;
    assert_eq!(said, "hello from server\n");
    node.stop_pod(&server.id).await?;
    assert!(call("10.93.0.1", 12000).is_err());
    Ok(())
}

async fn the_hosts_network_can_be_used(node: &mut Node) -> Outcome {
    let mut config = user_pod("host", FIRST);
    config.hostname.clear();
    security_of_pod(&mut config).namespace_options.get_or_insert_default().network = Mode::Node.into();
    let pod = node.run_pod(config).await?;
    let mut config = container("main", &["listen", "8081"]);
    security(&mut config).capabilities =
        Some(v1::Capability { add_capabilities: vec!["NET_ADMIN".into()], ..Default::default() });
    let id = run(node, &pod, config).await?;
    node.wait_for_log(&id, "listening").await?;
    assert!(call("127.0.0.1", 8081)?.starts_with("hello from "));
    let words = [
        "readlink",
        "/proc/self/ns/net",
        ",",
        "ls",
        "/sys/class/net",
        ",",
        "try",
        "write",
        "/sys/class/net/lo/mtu",
        ",",
        "try",
        "write",
        "/proc/sys/net/ipv4/ip_forward",
        ",",
        "try",
        "raw-socket",
    ];
    let seen = node.exec_output(&id, &words).await?;
    assert!(seen.starts_with(&format!("{}\n", fs::read_link("/proc/self/ns/net")?.display())), "{seen}");
    assert!(seen.lines().any(|l| l == "lo") && seen.ends_with("\nEACCES\nEACCES\nEPERM\n"), "{seen}");
    Ok(())
}

async fn processes_can_be_shared(node: &mut Node) -> Outcome {
    let mut config = user_pod("shared", FIRST);
    let options = security_of_pod(&mut config).namespace_options.get_or_insert_default();
    *options =
        v1::NamespaceOption { userns_options: Some(users(FIRST)), ..namespaces(Mode::Pod, Mode::Pod, Mode::Pod) };
    let pod = node.run_pod(config).await?;
    let one = run(node, &pod, container("one", &["pause"])).await?;
    let two = run(node, &pod, container("two", &["fork", "2", "1000", ",", "pause"])).await?;
    let seen = node.exec_output(&one, &["procs"]).await?;
    assert!(seen.lines().filter(|l| l.ends_with(" tool")).count() >= 4, "{seen}");
    assert!(seen.lines().any(|l| l == "1 knarr-init"), "{seen}");
    node.stop_container(&two, 0).await?;
    eventually("one container and the exec itself are left", Duration::from_secs(5), async || {
        let left = node.exec_output(&one, &["procs"]).await?;
        Ok((left.lines().filter(|l| l.ends_with(" tool")).count() == 2).then_some(()))
    })
    .await?;
    let mut config = in_pod(&pod.config, container("debugger", &["procs", ",", "namespaces"]));
    let options = security(&mut config).namespace_options.get_or_insert_default();
    (options.pid, options.target_id) = (Mode::Target.into(), one.clone());
    let seen = node.output_of(&pod, config).await?;
    assert!(seen.contains(" knarr-init\n"), "{seen}");
    Ok(())
}

async fn it_outlives_the_daemon(node: &mut Node) -> Outcome {
    let pod = node.run_pod(user_pod("alive", FIRST)).await?;
    let id = run(node, &pod, container("main", &["on-term", "4", ",", "pause"])).await?;
    let created = node.create(&pod, in_pod(&pod.config, container("created", &["id", ",", "exit", "6"]))).await?;
    let before = (node.pod_status(&pod.id).await?, node.status(&id).await?);
    let namespaces = node.exec_output(&id, &["namespaces"]).await?;
    node.kill().await?;
    node.start_again().await?;
    assert_eq!((node.pod_status(&pod.id).await?, node.status(&id).await?), before);
    assert_eq!(node.exec_output(&id, &["namespaces"]).await?, namespaces);
    // Its layers are mapped by the namespace that the shim has kept.
    node.start_container(&created).await?;
    assert_eq!(node.wait_exited(&created).await?.exit_code, 6);
    let late = output(node, &pod, container("late", &["namespaces", ",", "stat", "/bin/tool"])).await?;
    let user = namespaces.lines().find(|l| l.starts_with("user:")).ok_or("no user namespace")?;
    assert!(late.contains(user) && late.ends_with("file 0755 0:0 0:0\n"), "{late}");
    node.stop_container(&id, 10).await?;
    assert_eq!(node.status(&id).await?.exit_code, 4);
    // One whose shim was killed as well can only be taken away.
    let lost = node.run_pod(user_pod("lost", SECOND)).await?;
    let container_id = run(node, &lost, container("main", &["pause"])).await?;
    let request = v1::PodSandboxStatusRequest { pod_sandbox_id: lost.id.clone(), verbose: true };
    let info = node.runtime.pod_sandbox_status(request).await?.into_inner().info;
    let info: serde_json::Value = serde_json::from_str(info.get("info").ok_or("no info")?)?;
    let shim = info["shimPid"].as_i64().and_then(|pid| rustix::process::Pid::from_raw(pid as i32)).ok_or("no shim")?;
    rustix::process::kill_process(shim, rustix::process::Signal::KILL)?;
    eventually("the loss is seen", Duration::from_secs(10), async || {
        let state = node.status(&container_id).await?.state();
        Ok((state != v1::ContainerState::ContainerRunning).then_some(()))
    })
    .await?;
    node.remove_pod(&lost.id).await?;
    Ok(())
}

async fn it_is_counted_and_limited(node: &mut Node) -> Outcome {
    let pod = node.run_pod(user_pod("counted", FIRST)).await?;
    let mut config = container(
        "main",
        &["write", "/file", &"x".repeat(20_000), ",", "eat", "8", ",", "print", "ready", ",", "pause"],
    );
    resources(&mut config).memory_limit_in_bytes = 64 << 20;
    let id = run(node, &pod, config).await?;
    node.wait_for_log(&id, "ready").await?;
    let request = v1::ContainerStatsRequest { container_id: id.clone() };
    let stats = node.runtime.container_stats(request).await?.into_inner().stats.ok_or("no statistics")?;
    let memory = stats.memory.and_then(|m| m.working_set_bytes).map_or(0, |b| b.value);
    assert!((8 << 20..64 << 20).contains(&memory), "{memory}");
    let layer = stats.writable_layer.ok_or("no writable layer")?;
    assert!(layer.used_bytes.is_some_and(|b| b.value >= 20_000), "{layer:?}");
    let mut config = container("hungry", &["eat", "100"]);
    resources(&mut config).memory_limit_in_bytes = 32 << 20;
    let status = node.run_to_end(&pod, in_pod(&pod.config, config)).await?;
    assert_eq!((status.exit_code, status.reason.as_str()), (137, "OOMKilled"));
    // A score below the shim's own needs a right that is gone inside.
    let mut config = container("score", &["cat", "/proc/self/oom_score_adj"]);
    resources(&mut config).oom_score_adj = 500;
    assert_eq!(output(node, &pod, config).await?, "500\n");
    Ok(())
}

async fn nothing_of_the_host_is_in_reach(node: &mut Node) -> Outcome {
    let setuid = image_with(json!({}), &[("bin/setuid", 0o4755, knarr_node_tests::images::TOOL_BYTES)]);
    node.import(&[("localhost/setuid:latest", &setuid)]).await?;
    let theirs = volume(node, "theirs")?;
    fs::write(theirs.join("file"), "the host's")?;
    let pod = node.run_pod(user_pod("hostile", FIRST)).await?;

    let words = [
        "try",
        "mknod",
        "/disk",
        "8",
        "0",
        ",",
        "try",
        "write",
        "/theirs/file",
        ",",
        "try",
        "chown",
        "/theirs/file",
        "0",
        "0",
        ",",
        "try",
        "create",
        "/theirs/new",
        ",",
        "try",
        "tmpfs",
        "/theirs",
        ",",
        "try",
        "umount",
        "/proc/acpi",
        ",",
        "try",
        "remount-rw",
        "/sys",
        ",",
        "try",
        "chroot",
        ",",
        "try",
        "unshare-net",
    ];
    let mut config = in_pod(&pod.config, container("main", &words));
    config.mounts = vec![mount(&theirs, "/theirs")];
    let output = node.output_of(&pod, config.clone()).await?;
    assert_eq!(output, "EPERM\nEACCES\nEPERM\nEACCES\nEPERM\nEPERM\nEPERM\nok\nEPERM\n");

    // Even with every capability: they are good for what the pod owns.
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    config.metadata.get_or_insert_default().name = "all".into();
    config.log_path = "all/0.log".into();
    security(&mut config).capabilities =
        Some(v1::Capability { add_capabilities: vec!["ALL".into()], ..Default::default() });
    let output = node.output_of(&pod, config).await?;
    assert_eq!(output, "EPERM\nEACCES\nEPERM\nEACCES\nok\nok\nok\nok\nok\n");
    assert_eq!(fs::read_to_string("/proc/self/mountinfo")?, mounts, "its mounts are its own");
    assert_eq!((fs::read_to_string(theirs.join("file"))?, owner(theirs.join("file"))?), ("the host's".into(), (0, 0)));

    // A setuid program makes its user root of the pod and no more.
    let mut config =
        container("setuid", &["status", "Uid", ",", "try", "write", "/etc/passwd", ",", "print", "set", ",", "pause"]);
    config.image.get_or_insert_default().image = "localhost/setuid:latest".into();
    config.command = vec!["/bin/setuid".into()];
    security(&mut config).run_as_user = int(1000);
    let id = run(node, &pod, config).await?;
    node.wait_for_log(&id, "set").await?;
    let lines: Vec<String> = node.log(&id).await?.into_iter().map(|l| l.text).collect();
    assert_eq!(lines[..2], ["Uid:\t1000\t0\t0\t0", "ok"]);
    let pid = info(node, &id, "pid").await?;
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    assert!(status.contains(&format!("Uid:\t{}\t{FIRST}\t{FIRST}\t{FIRST}", FIRST + 1000)), "{status}");
    Ok(())
}

async fn privilege_ends_at_the_namespace(node: &mut Node) -> Outcome {
    let mut config = user_pod("privileged", FIRST);
    security_of_pod(&mut config).privileged = true;
    let pod = node.run_pod(config).await?;
    let words = [
        "stat",
        "/dev/null",
        ",",
        "stat",
        "/dev/kmsg",
        ",",
        "try",
        "tmpfs",
        "/mnt",
        ",",
        "try",
        "write",
        "/proc/sys/kernel/core_pattern",
        ",",
        "try",
        "write",
        "/proc/sys/vm/drop_caches",
        ",",
        "try",
        "write",
        "/proc/sys/net/ipv4/ip_forward",
        ",",
        "try",
        "mknod",
        "/disk",
        "8",
        "0",
    ];
    let mut config = container("main", &words);
    security(&mut config).privileged = true;
    let image = image_with(json!({}), &[("mnt/.keep", 0o644, b"")]);
    node.import(&[("localhost/mnt:latest", &image)]).await?;
    config.image.get_or_insert_default().image = "localhost/mnt:latest".into();
    let output = output(node, &pod, config).await?;
    let lines: Vec<&str> = output.lines().collect();
    assert_eq!(lines[0], "char 0666 0:0 1:3");
    assert!(lines[1].starts_with("char ") && lines[1].ends_with(" 65534:65534 1:11"), "{}", lines[1]);
    assert_eq!(lines[2..], ["ok", "EACCES", "EACCES", "ok", "EPERM"], "its own network is its own");
    Ok(())
}

async fn pods_are_strangers_to_each_other(node: &mut Node) -> Outcome {
    let one = node.run_pod(user_pod("one", FIRST)).await?;
    let two = node.run_pod(user_pod("two", SECOND)).await?;
    let first = run(node, &one, container("a", &["pause"])).await?;
    let second = run(node, &one, container("b", &["pause"])).await?;
    let stranger = run(node, &two, container("c", &["pause"])).await?;
    let mut users = Vec::new();
    for id in [&first, &second, &stranger] {
        let namespaces = node.exec_output(id, &["namespaces"]).await?;
        users.push(namespaces.lines().find(|l| l.starts_with("user:")).ok_or("no user namespace")?.to_owned());
    }
    assert!(users[0] == users[1] && users[0] != users[2], "{users:?}");
    // What one has left in a volume is nobody's to the other, unless it is mapped.
    let volume = volume(node, "between")?;
    chown(&volume, Some(FIRST), Some(FIRST))?;
    let mut config = in_pod(&one.config, container("writer", &["write", "/v/file", "x"]));
    config.mounts = vec![mount(&volume, "/v")];
    node.output_of(&one, config).await?;
    let mut config = in_pod(&two.config, container("reader", &["stat", "/v/file", ",", "try", "write", "/v/file"]));
    config.mounts = vec![mount(&volume, "/v")];
    assert_eq!(node.output_of(&two, config).await?, "file 0644 65534:65534 0:0\nEACCES\n");
    Ok(())
}

async fn what_cannot_be_is_refused(node: &mut Node) -> Outcome {
    for (network, pid, ipc) in [(Mode::Pod, Mode::Node, Mode::Pod), (Mode::Pod, Mode::Container, Mode::Node)] {
        let mut config = user_pod("host", FIRST);
        security_of_pod(&mut config).namespace_options =
            Some(v1::NamespaceOption { userns_options: Some(users(FIRST)), ..namespaces(network, pid, ipc) });
        refused(node.run_pod(config).await, Code::InvalidArgument);
    }
    let mut two = user_pod("two", FIRST);
    let options = security_of_pod(&mut two).namespace_options.get_or_insert_default();
    options.userns_options.get_or_insert_default().uids.extend(range(SECOND));
    let why = refused(node.run_pod(two).await, Code::InvalidArgument);
    assert!(why.contains("userns_options.uids"), "{why}");

    let pod = node.run_pod(user_pod("good", FIRST)).await?;
    let mut config = in_pod(&pod.config, container("other", &["pause"]));
    security(&mut config).namespace_options.get_or_insert_default().userns_options = Some(users(SECOND));
    refused(node.create(&pod, config).await, Code::InvalidArgument);
    let mut config = in_pod(&pod.config, container("mount", &["pause"]));
    config.mounts =
        vec![v1::Mount { uid_mappings: range(SECOND), gid_mappings: range(SECOND), ..mount("/tmp", "/tmp") }];
    refused(node.create(&pod, config).await, Code::InvalidArgument);
    let mut config = in_pod(&pod.config, container("nobody", &["pause"]));
    security(&mut config).run_as_user = int(i64::from(LENGTH));
    let why = refused(node.create(&pod, config).await, Code::InvalidArgument);
    assert!(why.contains("65536 is not mapped"), "{why}");
    // One that says nothing is in its pod's.
    assert_eq!(
        node.output_of(&pod, container("silent", &["cat", "/proc/self/uid_map"])).await?.split_whitespace().nth(1),
        Some("1310720")
    );
    Ok(())
}

async fn a_terminal_is_there(node: &mut Node) -> Outcome {
    let pod = node.run_pod(user_pod("terminal", FIRST)).await?;
    let mut config = container("main", &["tty", ",", "stat", "/dev/console", ",", "stat", "/dev/pts/0"]);
    config.tty = true;
    security(&mut config).run_as_user = int(1000);
    let output = output(node, &pod, config).await?;
    assert!(output.replace('\r', "").starts_with("1 1 1"), "{output}");
    assert_eq!(output.matches("char 0620 1000:5 136:0").count(), 2, "{output}");
    Ok(())
}

async fn a_manifest_can_ask_for_it(node: &mut Node) -> Outcome {
    let manifest = |name: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  hostUsers: false\n  restartPolicy: Never\n  \
             volumes: [{{name: v, emptyDir: {{}}}}]\n  containers:\n  - name: main\n    image: localhost/tool:latest\n    \
             imagePullPolicy: Never\n    args: [write, /v/file, x, \",\", pause]\n    volumeMounts: [{{name: v, mountPath: /v}}]\n"
        )
    };
    let mut firsts = Vec::new();
    for name in ["one", "two"] {
        let path = node.directory.join(format!("{name}.yaml"));
        fs::write(&path, manifest(name))?;
        node.cli_output(&["run", "-d", path.to_str().ok_or("a plain path")?])?;
        let map =
            node.cli_output(&["exec", name, "--", "/bin/tool", "cat", "/proc/self/uid_map", ",", "stat", "/v/file"])?;
        assert!(map.ends_with("file 0644 0:0 0:0\n"), "{map}");
        firsts.push(map.split_whitespace().nth(1).ok_or("no map")?.parse::<u32>()?);
    }
    assert!(firsts[0].abs_diff(firsts[1]) >= LENGTH && firsts.iter().all(|first| *first >= 1 << 30), "{firsts:?}");
    node.cli_output(&["rm", "-f", "one", "two"])?;
    Ok(())
}
