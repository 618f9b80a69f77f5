//! Limits as the kernel has them, OOM kills as they are told, and what List…Stats says.

use knarr_cri_api::v1::{self, LinuxContainerResources};
use knarr_node_tests::node::{Config, Node, Pod};
use knarr_node_tests::requests::{container, pod, resources};
use knarr_node_tests::tree;
use knarr_node_tests::{Outcome, eventually, refused, tests};
use std::path::{Path, PathBuf};
use std::time::Duration;

tests![
    limits_are_in_the_cgroup,
    huge_pages_of_every_size_are_limited,
    files_of_controllers_are_written_as_given,
    a_class_that_nobody_configured_is_refused,
    a_class_that_nobody_configured_can_be_passed_over with ignoring_classes,
    a_pods_resources_are_kept_and_told,
    an_update_before_the_start_counts,
    an_update_changes_the_cgroup_and_the_status,
    an_update_that_fails_changes_nothing,
    a_container_over_its_memory_is_oom_killed,
    a_killed_child_does_not_end_its_container,
    a_given_cgroup_parent_is_used,
    processes_are_limited,
    the_oom_score_is_set,
    statistics_are_of_the_container,
];

/// Reads a cgroup file of a container: its v2 name where there is v2, else the v1 one.
fn cgroup_file(node: &Node, pod: &Pod, id: &str, controller: &str, v1: &str, v2: &str) -> Outcome<String> {
    let path = tree::container(&tree::pod(&node.directory, &pod.id), id);
    read_cgroup_file(path.trim_start_matches('/'), controller, v1, v2)
}

fn read_cgroup_file(below: &str, controller: &str, v1: &str, v2: &str) -> Outcome<String> {
    let top = Path::new("/sys/fs/cgroup");
    let path = match top.join("cgroup.controllers").exists() {
        true => top.join(below).join(v2),
        false => top.join(controller).join(below).join(v1),
    };
    let text = std::fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    Ok(text.trim().to_owned())
}

/// The directory of a container's cgroup in the hierarchy that has this controller, if any has.
fn cgroup_with(node: &Node, pod: &Pod, id: &str, controller: &str) -> Option<PathBuf> {
    let below = tree::container(&tree::pod(&node.directory, &pod.id), id);
    let below = below.trim_start_matches('/').to_owned();
    ["", controller, "unified"].into_iter().map(|name| Path::new("/sys/fs/cgroup").join(name)).find_map(|top| {
        let has = std::fs::read_to_string(top.join("cgroup.controllers")).unwrap_or_default();
        let here = has.split_whitespace().any(|word| word == controller) || top.ends_with(controller);
        (here && top.exists()).then(|| top.join(&below))
    })
}

fn read(path: &Path) -> Outcome<String> {
    Ok(std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?.trim().to_owned())
}

/// The sizes of huge pages that this machine has, as cgroup files are named: "2MB".
fn page_sizes() -> Outcome<Vec<String>> {
    let directory = match std::fs::read_dir("/sys/kernel/mm/hugepages") {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut sizes = Vec::new();
    for entry in directory {
        let name = entry?.file_name();
        let kilobytes =
            name.to_str().and_then(|name| name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok());
        let kilobytes: u64 = kilobytes.ok_or("a directory that is named otherwise")?;
        sizes.push(match kilobytes {
            1_048_576.. => format!("{}GB", kilobytes >> 20),
            1024.. => format!("{}MB", kilobytes >> 10),
            _ => format!("{kilobytes}KB"),
        });
    }
    Ok(sizes)
}

async fn huge_pages_of_every_size_are_limited(node: &mut Node) -> Outcome {
    let pod = node.run_pod(pod("huge")).await?;
    let sizes = page_sizes()?;
    let limits = |pages: u64| -> Vec<v1::HugepageLimit> {
        sizes.iter().map(|size| v1::HugepageLimit { page_size: size.clone(), limit: pages << 30 }).collect()
    };
    let mut config = container("main", &["pause"]);
    resources(&mut config).hugepage_limits = limits(0);
    let id = node.run(&pod, config).await?;
    let told = node.status(&id).await?.resources.and_then(|r| r.linux).ok_or("no resources in the status")?;
    assert_eq!(told.hugepage_limits.len(), sizes.len());
    let cgroup = cgroup_with(node, &pod, &id, "hugetlb");
    let check = |pages: u64| -> Outcome {
        let Some(cgroup) = &cgroup else { return Ok(()) };
        for size in &sizes {
            let names = ["max", "limit_in_bytes"].map(|ending| cgroup.join(format!("hugetlb.{size}.{ending}")));
            let file = names.iter().find(|path| path.exists()).ok_or_else(|| format!("no file for {size}"))?;
            assert_eq!(read(file)?, (pages << 30).to_string(), "{}", file.display());
        }
        Ok(())
    };
    check(0)?;
    let linux = Some(LinuxContainerResources { hugepage_limits: limits(3), ..Default::default() });
    let request = v1::UpdateContainerResourcesRequest { container_id: id.clone(), linux, ..Default::default() };
    node.runtime.update_container_resources(request).await?;
    check(3)
}

/// `unified` is for cgroup v2; a hybrid machine has some of its controllers there.
async fn files_of_controllers_are_written_as_given(node: &mut Node) -> Outcome {
    let pod = node.run_pod(pod("unified")).await?;
    let all =
        [("memory", "memory.high", "50331648"), ("hugetlb", "hugetlb.2MB.max", "4194304"), ("pids", "pids.max", "77")];
    let is_v2 = |controller: &str| {
        let tops = ["/sys/fs/cgroup/cgroup.controllers", "/sys/fs/cgroup/unified/cgroup.controllers"];
        tops.iter()
            .any(|top| std::fs::read_to_string(top).unwrap_or_default().split_whitespace().any(|c| c == controller))
    };
    let mut config = container("main", &["pause"]);
    // Those of v1 controllers are passed over: kubelet sends memory.oom.group everywhere.
    resources(&mut config).unified = all.iter().map(|(_, file, value)| (file.to_string(), value.to_string())).collect();
    let id = node.run(&pod, config).await?;
    for (controller, file, value) in all {
        let Some(cgroup) = cgroup_with(node, &pod, &id, controller).filter(|_| is_v2(controller)) else { continue };
        assert_eq!(read(&cgroup.join(file))?, value, "{file}");
    }
    for bad in ["../x.y", "memory/max", "cgroup.procs", "cgroup.kill", "memory.", "memory.max\n"] {
        let mut config = container("bad", &["pause"]);
        resources(&mut config).unified = [(bad.to_owned(), "1".to_owned())].into();
        let message = refused(node.create(&pod, config).await, tonic::Code::InvalidArgument);
        assert!(message.contains("unified"), "{message}");
    }
    Ok(())
}

fn ignoring_classes() -> Config {
    let keys = "ignore_blockio_not_enabled_errors = true\nignore_rdt_not_enabled_errors = true\n";
    Config { toml: format!("[resources]\n{keys}"), ..Config::default() }
}

async fn a_class_that_nobody_configured_is_refused(node: &mut Node) -> Outcome {
    for (word, key) in [("blockio", "pod"), ("rdt", "container.main"), ("blockio", "container.main")] {
        let key = format!("{word}.resources.beta.kubernetes.io/{key}");
        let mut config = pod(&key.replace(['/', '.'], "-"));
        config.annotations.insert(key.clone(), "gold".into());
        let pod = node.run_pod(config).await?;
        let message = refused(node.create(&pod, container("main", &["pause"])).await, tonic::Code::FailedPrecondition);
        assert!(message.contains(&key) && message.contains("gold"), "{message}");
    }
    let pod = node.run_pod(pod("own")).await?;
    let mut config = container("main", &["pause"]);
    config.annotations.insert("io.kubernetes.cri.rdt-class".into(), "gold".into());
    refused(node.create(&pod, config).await, tonic::Code::FailedPrecondition);
    Ok(())
}

async fn a_class_that_nobody_configured_can_be_passed_over(node: &mut Node) -> Outcome {
    let mut config = pod("ignored");
    for word in ["blockio", "rdt"] {
        config.annotations.insert(format!("{word}.resources.beta.kubernetes.io/pod"), "gold".into());
    }
    let pod = node.run_pod(config).await?;
    assert_eq!(node.output_of(&pod, container("main", &["print", "runs"])).await?, "runs\n");
    Ok(())
}

/// Kubelet asks before it changes the pod's cgroup, and does not when it hears no.
async fn a_pods_resources_are_kept_and_told(node: &mut Node) -> Outcome {
    let shares = |cpu_shares| LinuxContainerResources { cpu_shares, ..Default::default() };
    let mut config = pod("resized");
    config.linux.get_or_insert_default().overhead = Some(shares(10));
    config.linux.get_or_insert_default().resources = Some(shares(100));
    let pod = node.run_pod(config).await?;
    let told = async |node: &mut Node, key: &str| -> Outcome<i64> {
        let request = v1::PodSandboxStatusRequest { pod_sandbox_id: pod.id.clone(), verbose: true };
        let info = node.runtime.pod_sandbox_status(request).await?.into_inner().info;
        let info: serde_json::Value = serde_json::from_str(info.get("info").ok_or("no info")?)?;
        Ok(info[key]["cpuShares"].as_i64().unwrap_or_default())
    };
    assert_eq!((told(node, "overhead").await?, told(node, "resources").await?), (10, 100));
    let request = |id: &str| v1::UpdatePodSandboxResourcesRequest {
        pod_sandbox_id: id.into(),
        overhead: Some(shares(20)),
        resources: Some(shares(200)),
    };
    node.runtime.update_pod_sandbox_resources(request(&pod.id)).await?;
    assert_eq!((told(node, "overhead").await?, told(node, "resources").await?), (20, 200));
    let wrong = v1::UpdatePodSandboxResourcesRequest { overhead: Some(shares(-1)), ..request(&pod.id) };
    let message = refused(node.runtime.update_pod_sandbox_resources(wrong).await, tonic::Code::InvalidArgument);
    assert!(message.starts_with("overhead.cpu_shares: "), "{message}");
    node.kill().await?;
    node.start_again().await?;
    assert_eq!((told(node, "overhead").await?, told(node, "resources").await?), (20, 200));
    let absent = request(&"f".repeat(64));
    refused(node.runtime.update_pod_sandbox_resources(absent).await, tonic::Code::NotFound);
    node.stop_pod(&pod.id).await?;
    let stopped = node.runtime.update_pod_sandbox_resources(request(&pod.id)).await;
    refused(stopped, tonic::Code::FailedPrecondition);
    Ok(())
}

async fn an_update_before_the_start_counts(node: &mut Node) -> Outcome {
    let pod = node.run_pod(pod("early")).await?;
    let id = node.create(&pod, container("main", &["pause"])).await?;
    let update = |linux| v1::UpdateContainerResourcesRequest {
        container_id: id.clone(),
        linux: Some(linux),
        ..Default::default()
    };
    let memory = LinuxContainerResources { memory_limit_in_bytes: 64 << 20, ..Default::default() };
    node.runtime.update_container_resources(update(memory)).await?;
    let swap = LinuxContainerResources { memory_swap_limit_in_bytes: 32 << 20, cpu_shares: 7, ..Default::default() };
    refused(node.runtime.update_container_resources(update(swap)).await, tonic::Code::InvalidArgument);
    node.start_container(&id).await?;
    let limit = cgroup_file(node, &pod, &id, "memory", "memory.limit_in_bytes", "memory.max")?;
    assert_eq!(limit, (64 << 20).to_string());
    let told = node.status(&id).await?.resources.and_then(|r| r.linux).ok_or("no resources in the status")?;
    assert_eq!((told.memory_limit_in_bytes, told.cpu_shares), (64 << 20, 0));
    Ok(())
}

async fn limits_are_in_the_cgroup(node: &mut Node) -> Outcome {
    let pod = node.run_pod(pod("limits")).await?;
    let mut config = container("main", &["pause"]);
    let asked = LinuxContainerResources {
        cpu_period: 100_000,
        cpu_quota: 20_000,
        cpu_shares: 512,
        memory_limit_in_bytes: 64 << 20,
        memory_swap_limit_in_bytes: 64 << 20,
        cpuset_cpus: "0".into(),
        hugepage_limits: vec![v1::HugepageLimit { page_size: "2MB".into(), limit: 0 }],
        ..Default::default()
    };
    *resources(&mut config) = asked.clone();
    let id = node.run(&pod, config).await?;
    let get = |controller, v1, v2| cgroup_file(node, &pod, &id, controller, v1, v2);
    assert_eq!(get("memory", "memory.limit_in_bytes", "memory.max")?, (64 << 20).to_string());
    assert!(["20000", "20000 100000"].contains(&get("cpu", "cpu.cfs_quota_us", "cpu.max")?.as_str()));
    assert!(["512", "59"].contains(&get("cpu", "cpu.shares", "cpu.weight")?.as_str()));
    assert_eq!(get("cpuset", "cpuset.cpus", "cpuset.cpus")?, "0");
    let told = node.status(&id).await?.resources.and_then(|r| r.linux).ok_or("no resources in the status")?;
    assert_eq!(told.memory_limit_in_bytes, asked.memory_limit_in_bytes);
    assert_eq!((told.cpu_period, told.cpu_quota, told.cpu_shares), (100_000, 20_000, 512));
    Ok(())
}

async fn an_update_changes_the_cgroup_and_the_status(node: &mut Node) -> Outcome {
    let pod = node.run_pod(pod("update")).await?;
    let mut config = container("main", &["pause"]);
    resources(&mut config).memory_limit_in_bytes = 64 << 20;
    resources(&mut config).cpu_shares = 512;
    let id = node.run(&pod, config).await?;
    for (memory, shares) in [(128 << 20, 0), (0, 1024), (32 << 20, 2048)] {
        let linux = LinuxContainerResources { memory_limit_in_bytes: memory, cpu_shares: shares, ..Default::default() };
        let request =
            v1::UpdateContainerResourcesRequest { container_id: id.clone(), linux: Some(linux), ..Default::default() };
        node.runtime.update_container_resources(request).await?;
    }
    let get = |controller, v1, v2| cgroup_file(node, &pod, &id, controller, v1, v2);
    assert_eq!(get("memory", "memory.limit_in_bytes", "memory.max")?, (32 << 20).to_string());
    assert!(["2048", "174", "175"].contains(&get("cpu", "cpu.shares", "cpu.weight")?.as_str()));
    let told = node.status(&id).await?.resources.and_then(|r| r.linux).ok_or("no resources in the status")?;
    assert_eq!((told.memory_limit_in_bytes, told.cpu_shares), (32 << 20, 2048));
    Ok(())
}

async fn an_update_that_fails_changes_nothing(node: &mut Node) -> Outcome {
    let pod = node.run_pod(pod("refused")).await?;
    let mut config = container("main", &["pause"]);
    resources(&mut config).memory_limit_in_bytes = 64 << 20;
    let id = node.run(&pod, config).await?;
    let linux =
        LinuxContainerResources { memory_limit_in_bytes: 96 << 20, cpuset_cpus: "4000".into(), ..Default::default() };
    let request =
        v1::UpdateContainerResourcesRequest { container_id: id.clone(), linux: Some(linux), ..Default::default() };
    node.runtime.update_container_resources(request).await.expect_err("there is no such CPU");
    let limit = cgroup_file(node, &pod, &id, "memory", "memory.limit_in_bytes", "memory.max")?;
    assert_eq!(limit, (64 << 20).to_string());
    let told = node.status(&id).await?.resources.and_then(|r| r.linux).ok_or("no resources in the status")?;
    assert_eq!((told.memory_limit_in_bytes, told.cpuset_cpus.as_str()), (64 << 20, ""));
    Ok(())
}

async fn a_container_over_its_memory_is_oom_killed(node: &mut Node) -> Outcome {
    let pod = node.run_pod(pod("oom")).await?;
    let mut config = container("main", &["eat", "512", ",", "pause"]);
    resources(&mut config).memory_limit_in_bytes = 32 << 20;
    let status = node.run_to_end(&pod, config).await?;
    assert_eq!((status.exit_code, status.reason.as_str()), (137, "OOMKilled"));

    let mut config = container("killed", &["pause"]);
    resources(&mut config).memory_limit_in_bytes = 32 << 20;
    let id = node.run(&pod, config).await?;
    node.stop_container(&id, 0).await?;
    let status = node.status(&id).await?;
    assert_eq!((status.exit_code, status.reason.as_str()), (137, "Error"), "a kill is no OOM kill");
    Ok(())
}

async fn a_killed_child_does_not_end_its_container(node: &mut Node) -> Outcome {
    let pod = node.run_pod(pod("child")).await?;
    let mut config = container("main", &["child-eats", "512", ",", "print", "alive", ",", "pause"]);
    resources(&mut config).memory_limit_in_bytes = 32 << 20;
    let id = node.run(&pod, config).await?;
    node.wait_for_log(&id, "alive").await?;
    assert_eq!(node.status(&id).await?.state(), v1::ContainerState::ContainerRunning);
    Ok(())
}

async fn a_given_cgroup_parent_is_used(node: &mut Node) -> Outcome {
    let parent = tree::kubelets(&node.directory);
    let mut config = pod("parent");
    config.linux.get_or_insert_default().cgroup_parent = parent.clone();
    let pod = node.run_pod(config).await?;
    let id = node.run(&pod, container("main", &["pause"])).await?;
    let path = tree::container(&parent, &id);
    let below = path.trim_start_matches('/').to_owned();
    read_cgroup_file(&below, "memory", "memory.limit_in_bytes", "memory.max")?;
    node.remove_pod(&pod.id).await?;
    assert!(read_cgroup_file(&below, "memory", "memory.limit_in_bytes", "memory.max").is_err());
    // Kubelet made it, so kubelet takes it away.
    knarr_node_tests::leaks::remove_kubelets(&node.directory);
    Ok(())
}

async fn processes_are_limited(node: &mut Node) -> Outcome {
    let pod = node.run_pod(pod("pids")).await?;
    let id = node.run(&pod, container("main", &["pause"])).await?;
    let limit: u64 = cgroup_file(node, &pod, &id, "pids", "pids.max", "pids.max")?.parse()?;
    assert_eq!(limit, 32_768, "a fork bomb ends before the machine does");
    Ok(())
}

async fn the_oom_score_is_set(node: &mut Node) -> Outcome {
    let pod = node.run_pod(pod("score")).await?;
    let mut config = container("main", &["pause"]);
    resources(&mut config).oom_score_adj = 987;
    let id = node.run(&pod, config).await?;
    assert_eq!(node.exec_output(&id, &["cat", "/proc/1/oom_score_adj"]).await?, "987\n");
    assert_eq!(node.exec_output(&id, &["cat", "/proc/self/oom_score_adj"]).await?, "987\n");
    Ok(())
}

async fn statistics_are_of_the_container(node: &mut Node) -> Outcome {
    let pod = node.run_pod(pod("stats")).await?;
    let mut config = container("busy", &["write", "/file", "some bytes", ",", "eat", "16", ",", "spin"]);
    resources(&mut config).memory_limit_in_bytes = 64 << 20;
    let busy = node.run(&pod, config).await?;
    let idle = node.run(&pod, container("idle", &["pause"])).await?;
    let stats = async |node: &mut Node| -> Outcome<Vec<v1::ContainerStats>> {
        let request = v1::ListContainerStatsRequest { filter: None };
        Ok(node.runtime.list_container_stats(request).await?.into_inner().stats)
    };
    assert_eq!(stats(node).await?.len(), 2);
    let (cpu, memory) = eventually("a rate and 16 MiB", Duration::from_secs(20), async || {
        let all = stats(node).await?;
        let of = all.iter().find(|s| s.attributes.as_ref().is_some_and(|a| a.id == busy)).ok_or("no statistics")?;
        let (Some(cpu), Some(memory)) = (of.cpu, of.memory) else { return Ok(None) };
        let rate = cpu.usage_nano_cores.unwrap_or_default().value;
        let rss = memory.rss_bytes.unwrap_or_default().value;
        tokio::time::sleep(Duration::from_millis(200)).await;
        Ok((rate > 50_000_000 && rss >= 16 << 20).then_some((cpu, memory)))
    })
    .await?;
    assert!(cpu.usage_core_nano_seconds.unwrap_or_default().value > 0 && cpu.timestamp > 0);
    let value = |v: Option<v1::UInt64Value>| v.unwrap_or_default().value;
    assert!(value(memory.working_set_bytes) >= 16 << 20);
    assert!(value(memory.available_bytes) <= 48 << 20);
    let request = v1::ContainerStatsRequest { container_id: idle.clone() };
    let one = node.runtime.container_stats(request).await?.into_inner().stats.ok_or("no statistics")?;
    assert_eq!(one.attributes.unwrap_or_default().id, idle);
    let layer = eventually("the writable layer is counted", Duration::from_secs(40), async || {
        let all = stats(node).await?;
        let of = all.into_iter().find(|s| s.attributes.as_ref().is_some_and(|a| a.id == busy));
        let layer = of.and_then(|s| s.writable_layer).filter(|l| l.used_bytes.is_some_and(|b| b.value > 0));
        tokio::time::sleep(Duration::from_millis(200)).await;
        Ok(layer)
    })
    .await?;
    assert!(value(layer.inodes_used) >= 1);
    Ok(())
}
