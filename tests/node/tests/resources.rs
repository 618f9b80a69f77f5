//! Limits as the kernel has them, OOM kills as they are told, and what List…Stats says.

use knarr_cri_api::v1::{self, LinuxContainerResources};
use knarr_node_tests::node::{Node, Pod};
use knarr_node_tests::requests::{container, pod, resources};
use knarr_node_tests::tree;
use knarr_node_tests::{Outcome, eventually, tests};
use std::path::Path;
use std::time::Duration;

tests![
    limits_are_in_the_cgroup,
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
