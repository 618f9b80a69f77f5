//! Which namespaces containers share with each other, with the pod and with the host.

use knarr_node_tests::node::Node;
use knarr_node_tests::requests::{Mode, container, host_network_pod, namespaces, pod, security, security_of_pod};
use knarr_node_tests::{Outcome, eventually, tests};
use std::collections::BTreeMap;
use std::time::Duration;

tests![
    containers_share_network_ipc_and_host_name_but_not_processes,
    a_shared_pid_namespace_has_an_init,
    a_container_enters_the_processes_of_its_target,
    the_hosts_namespaces_are_the_hosts,
    the_pods_files_are_there,
    shared_memory_is_the_pods,
    sysctls_are_the_pods,
    a_sysctl_of_the_host_is_refused,
];

/// "net" → "net:[4026531840]"
fn parse(text: &str) -> BTreeMap<String, String> {
    text.lines().filter_map(|l| Some((l.split_once(':')?.0.to_owned(), l.to_owned()))).collect()
}

fn of_host(kind: &str) -> Outcome<String> {
    Ok(std::fs::read_link(format!("/proc/self/ns/{kind}"))?.display().to_string())
}

async fn containers_share_network_ipc_and_host_name_but_not_processes(node: &mut Node) -> Outcome {
    let pod = node.run_pod(pod("shared")).await?;
    let one = node.run(&pod, container("one", &["pause"])).await?;
    let two = node.run(&pod, container("two", &["pause"])).await?;
    let first = parse(&node.exec_output(&one, &["namespaces"]).await?);
    let second = parse(&node.exec_output(&two, &["namespaces"]).await?);
    for kind in ["net", "ipc", "uts"] {
        assert_eq!(first[kind], second[kind], "{kind}");
        assert_ne!(first[kind], of_host(kind)?, "{kind}");
    }
    for kind in ["pid", "mnt"] {
        assert_ne!(first[kind], second[kind], "{kind}");
        assert_ne!(first[kind], of_host(kind)?, "{kind}");
    }
    assert_eq!(node.exec_output(&one, &["hostname"]).await?, "shared\n");
    let pid = node.output_of(&pod, container("pid", &["pid"])).await?;
    assert_eq!(pid, "1\n");
    Ok(())
}

async fn a_shared_pid_namespace_has_an_init(node: &mut Node) -> Outcome {
    let mut config = pod("pids");
    let shared = namespaces(Mode::Pod, Mode::Pod, Mode::Pod);
    security_of_pod(&mut config).namespace_options = Some(shared.clone());
    let pod = node.run_pod(config).await?;
    let in_shared = |name: &str, words: &[&str]| {
        let mut config = container(name, words);
        security(&mut config).namespace_options = Some(shared.clone());
        config
    };
    let one = node.run(&pod, in_shared("one", &["pause"])).await?;
    let two = node.run(&pod, in_shared("two", &["fork", "2", "1000", ",", "pause"])).await?;
    let first = parse(&node.exec_output(&one, &["namespaces"]).await?);
    let second = parse(&node.exec_output(&two, &["namespaces"]).await?);
    assert_eq!(first["pid"], second["pid"]);
    let processes = node.exec_output(&one, &["procs"]).await?;
    let tools = processes.lines().filter(|l| l.ends_with(" tool")).count();
    assert!(tools >= 4, "both containers' processes are seen: {processes}");
    assert!(!processes.lines().any(|l| l == "1 tool"), "process 1 is the pod's: {processes}");

    // What a container leaves behind ends with it, though the namespace goes on.
    node.stop_container(&two, 0).await?;
    eventually("one container and the exec itself are left", Duration::from_secs(5), async || {
        let left = node.exec_output(&one, &["procs"]).await?;
        Ok((left.lines().filter(|l| l.ends_with(" tool")).count() == 2).then_some(()))
    })
    .await
}

async fn a_container_enters_the_processes_of_its_target(node: &mut Node) -> Outcome {
    let pod = node.run_pod(pod("debug")).await?;
    let target = node.run(&pod, container("app", &["pause"])).await?;
    let mut config = container("debugger", &["procs", ",", "namespaces", ",", "pause"]);
    security(&mut config).namespace_options = Some(knarr_cri_api::v1::NamespaceOption {
        target_id: target.clone(),
        ..namespaces(Mode::Pod, Mode::Target, Mode::Pod)
    });
    let debugger = node.run(&pod, config).await?;
    let of_target = parse(&node.exec_output(&target, &["namespaces"]).await?);
    let of_debugger = parse(&node.exec_output(&debugger, &["namespaces"]).await?);
    assert_eq!(of_target["pid"], of_debugger["pid"]);
    assert_ne!(of_target["mnt"], of_debugger["mnt"]);
    Ok(())
}

async fn the_hosts_namespaces_are_the_hosts(node: &mut Node) -> Outcome {
    let mut config = host_network_pod("host");
    let all = namespaces(Mode::Node, Mode::Node, Mode::Node);
    security_of_pod(&mut config).namespace_options = Some(all.clone());
    let pod = node.run_pod(config).await?;
    let status = node.pod_status(&pod.id).await?;
    let told = status.linux.and_then(|l| l.namespaces).and_then(|n| n.options).ok_or("no namespaces in the status")?;
    assert_eq!((told.network(), told.pid(), told.ipc()), (Mode::Node, Mode::Node, Mode::Node));

    let mut config = container("main", &["pause"]);
    security(&mut config).namespace_options = Some(all);
    let id = node.run(&pod, config).await?;
    let seen = parse(&node.exec_output(&id, &["namespaces"]).await?);
    for kind in ["net", "ipc", "uts", "pid"] {
        assert_eq!(seen[kind], of_host(kind)?, "{kind}");
    }
    assert_ne!(seen["mnt"], of_host("mnt")?);
    let processes = node.exec_output(&id, &["procs"]).await?;
    assert!(processes.lines().any(|l| l.ends_with(" knarr")), "the daemon is seen: {processes}");
    Ok(())
}

async fn the_pods_files_are_there(node: &mut Node) -> Outcome {
    let mut config = pod("files");
    config.dns_config = Some(knarr_cri_api::v1::DnsConfig {
        servers: vec!["10.96.0.10".into()],
        searches: vec!["default.svc.cluster.local".into(), "svc.cluster.local".into()],
        options: vec!["ndots:5".into()],
    });
    let pod = node.run_pod(config).await?;
    let words = ["cat", "/etc/resolv.conf", ",", "cat", "/etc/hostname", ",", "env"];
    let output = node.output_of(&pod, container("main", &words)).await?;
    for line in ["search default.svc.cluster.local svc.cluster.local", "nameserver 10.96.0.10", "options ndots:5"] {
        assert!(output.lines().any(|l| l == line), "{line:?} is not in {output}");
    }
    assert!(output.lines().any(|l| l == "files") && output.contains("HOSTNAME=files"), "{output}");
    Ok(())
}

async fn shared_memory_is_the_pods(node: &mut Node) -> Outcome {
    let pod = node.run_pod(pod("shm")).await?;
    let one = node.run(&pod, container("one", &["write", "/dev/shm/note", "here", ",", "pause"])).await?;
    let two = node
        .run(&pod, container("two", &["await", "/dev/shm/note", ",", "cat", "/dev/shm/note", ",", "pause"]))
        .await?;
    node.wait_for_log(&two, "here").await?;
    let mounts = node.exec_output(&one, &["cat", "/proc/self/mountinfo"]).await?;
    let shm = mounts.lines().find(|l| l.contains(" /dev/shm ")).ok_or("no /dev/shm")?;
    assert!(shm.contains("size=65536k"), "{shm}");
    Ok(())
}

async fn sysctls_are_the_pods(node: &mut Node) -> Outcome {
    let mut config = pod("sysctl");
    config.linux.get_or_insert_default().sysctls = [
        ("kernel.shm_rmid_forced".to_owned(), "1".to_owned()),
        ("net.ipv4.ip_local_port_range".into(), "1024 65535".into()),
    ]
    .into();
    let pod = node.run_pod(config).await?;
    let words = ["cat", "/proc/sys/kernel/shm_rmid_forced", ",", "cat", "/proc/sys/net/ipv4/ip_local_port_range"];
    let output = node.output_of(&pod, container("main", &words)).await?;
    assert_eq!(output.split_whitespace().collect::<Vec<_>>(), ["1", "1024", "65535"]);
    let host = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range")?;
    assert_ne!(host.split_whitespace().collect::<Vec<_>>(), ["1024", "65535"]);
    Ok(())
}

async fn a_sysctl_of_the_host_is_refused(node: &mut Node) -> Outcome {
    let core_pattern = std::fs::read_to_string("/proc/sys/kernel/core_pattern")?;
    for (name, value) in [
        ("kernel.core_pattern", "|/bin/evil"),
        ("kernel.shm_rmid_forced", "1+kernel.core_pattern=x"),
        ("net.ipv4.conf/../../../kernel/core_pattern", "x"),
        ("net/../kernel.core_pattern", "x"),
    ] {
        let mut config = pod("bad");
        config.linux.get_or_insert_default().sysctls = [(name.to_owned(), value.to_owned())].into();
        node.run_pod(config).await.expect_err(name);
    }
    for name in ["net.ipv4.ip_forward", "net.core.somaxconn"] {
        let mut config = host_network_pod("bad");
        config.linux.get_or_insert_default().sysctls = [(name.to_owned(), "1".to_owned())].into();
        node.run_pod(config).await.expect_err(name);
    }
    assert_eq!(std::fs::read_to_string("/proc/sys/kernel/core_pattern")?, core_pattern);
    Ok(())
}
