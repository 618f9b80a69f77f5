//! The systemd driver: containers are scopes whose properties are their limits, nothing undoes these, and nothing of
//! a container is left in systemd. These need systemd as this machine's init, with cgroup v2.

use knarr_cri_api::v1;
use knarr_node_tests::leaks::remove_kubelets;
use knarr_node_tests::node::{Config, Node, Pod};
use knarr_node_tests::requests::{container, pod, resources};
use knarr_node_tests::runner::SKIPPED;
use knarr_node_tests::tree::{self, Driver};
use knarr_node_tests::{Outcome, eventually, refused, tests};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use tonic::Code;

tests![
    kubelet_is_told_the_driver,
    a_container_is_a_scope_with_its_limits,
    limits_survive_a_reload_and_a_changed_property,
    an_update_is_told_to_systemd,
    an_oom_kill_is_known_after_the_scope_has_ended_by_itself,
    a_stopped_container_leaves_no_unit_when_it_is_removed,
    a_scope_that_is_stopped_ends_its_container,
    a_pod_outlives_its_daemon_and_a_reexecuted_systemd,
    kubelets_slice_is_known_by_path_and_by_name,
    a_parent_of_the_other_driver_is_refused,
    without_the_bus_starts_fail_and_running_pods_go_on with on_a_bus_of_its_own,
    what_was_removed_without_the_bus_is_cleared_later with on_a_bus_of_its_own,
    a_failed_scope_of_nobody_is_cleared_at_start,
    shims_have_a_scope,
    a_shim_in_its_pod_is_a_scope with shims_in_pods,
    the_driver_is_found_out with automatic,
    pods_start_twenty_at_once,
];

fn on_a_bus_of_its_own() -> Config {
    Config { own_bus: Driver::current() == Driver::Systemd, ..Config::default() }
}

fn shims_in_pods() -> Config {
    Config { toml: "[shim]\ncgroup = \"pod\"\n".into(), ..Config::default() }
}

fn automatic() -> Config {
    let toml = if Driver::current() == Driver::Systemd { "[cgroup]\ndriver = \"auto\"\n" } else { "" };
    Config { toml: toml.into(), ..Config::default() }
}

/// Ends the test where systemd does not make the cgroups.
macro_rules! needs_systemd {
    () => {
        if Driver::current() != Driver::Systemd {
            println!("{SKIPPED}not the systemd driver; `cargo xtask test --vm` has it");
            return Ok(());
        }
    };
}

fn systemctl(words: &[&str]) -> Outcome<String> {
    let output = Command::new("systemctl").args(words).output()?;
    if !output.status.success() {
        return Err(format!("systemctl {words:?}: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    Ok(String::from_utf8(output.stdout)?)
}

fn show(unit: &str) -> Outcome<BTreeMap<String, String>> {
    let text = systemctl(&["show", unit])?;
    Ok(text.lines().filter_map(|line| line.split_once('=')).map(|(k, v)| (k.to_owned(), v.to_owned())).collect())
}

fn is_known(unit: &str) -> Outcome<bool> {
    Ok(show(unit)?["LoadState"] == "loaded")
}

fn directory_of(cgroup: &str) -> PathBuf {
    Path::new("/sys/fs/cgroup").join(cgroup.trim_start_matches('/'))
}

fn read(cgroup: &str, file: &str) -> Outcome<String> {
    let path = directory_of(cgroup).join(file);
    Ok(std::fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?.trim().to_owned())
}

/// The cgroup of a container's scope.
fn scope_path(node: &Node, pod: &Pod, id: &str) -> String {
    format!("{}/{}", tree::pod(&node.directory, &pod.id), tree::scope(id))
}

fn limited(name: &str) -> v1::ContainerConfig {
    let mut config = container(name, &["pause"]);
    *resources(&mut config) = v1::LinuxContainerResources {
        cpu_period: 100_000,
        cpu_quota: 20_000,
        cpu_shares: 512,
        memory_limit_in_bytes: 64 << 20,
        cpuset_cpus: "0".into(),
        unified: [("memory.oom.group".into(), "1".into()), ("memory.high".into(), (60 << 20).to_string())].into(),
        ..Default::default()
    };
    config
}

async fn update(node: &mut Node, id: &str, linux: v1::LinuxContainerResources) -> Result<(), tonic::Status> {
    let request =
        v1::UpdateContainerResourcesRequest { container_id: id.into(), linux: Some(linux), ..Default::default() };
    node.runtime.update_container_resources(request).await.map(drop)
}

async fn kubelet_is_told_the_driver(node: &mut Node) -> Outcome {
    let told = node.runtime.runtime_config(v1::RuntimeConfigRequest {}).await?.into_inner();
    let expected = match Driver::current() {
        Driver::Cgroupfs => v1::CgroupDriver::Cgroupfs,
        Driver::Systemd => v1::CgroupDriver::Systemd,
    };
    assert_eq!(told.linux.ok_or("nothing for Linux")?.cgroup_driver(), expected);
    Ok(())
}

async fn a_container_is_a_scope_with_its_limits(node: &mut Node) -> Outcome {
    needs_systemd!();
    let pod = node.run_pod(pod("scope")).await?;
    let id = node.run(&pod, limited("main")).await?;
    let unit = show(&tree::scope(&id))?;
    let expected = [
        ("ActiveState", "active"),
        ("SubState", "running"),
        ("Delegate", "yes"),
        ("DefaultDependencies", "no"),
        ("CollectMode", "inactive-or-failed"),
        ("CPUWeight", "59"),
        ("CPUQuotaPerSecUSec", "200ms"),
        ("CPUQuotaPeriodUSec", "100ms"),
        ("AllowedCPUs", "0"),
        ("MemoryMax", "67108864"),
        ("MemoryHigh", "62914560"),
        // One for the keeper.
        ("TasksMax", "32769"),
        ("DevicePolicy", "strict"),
    ];
    for (name, value) in expected {
        assert_eq!(unit.get(name).map(String::as_str), Some(value), "{name}");
    }
    assert!(unit["DeviceAllow"].contains("/dev/char/1:3 rwm"), "{}", unit["DeviceAllow"]);
    let scope = scope_path(node, &pod, &id);
    assert_eq!(unit["ControlGroup"], scope);
    assert_eq!(read(&scope, "memory.max")?, "67108864");
    let own = format!("{scope}/container");
    for (file, value) in [
        ("memory.max", "67108864"),
        ("memory.high", "62914560"),
        ("memory.oom.group", "1"),
        ("cpu.max", "20000 100000"),
        ("cpu.weight", "59"),
        ("cpuset.cpus", "0"),
        ("pids.max", "32768"),
    ] {
        assert_eq!(read(&own, file)?, value, "{file}");
    }
    // The keeper is nowhere in the container's view.
    assert_eq!(node.exec_output(&id, &["cat", "/proc/1/cgroup"]).await?, "0::/\n");
    assert!(!node.exec_output(&id, &["ls", "/sys/fs/cgroup"]).await?.contains("knarr-keeper"));
    assert_eq!(read(&own, "cgroup.procs")?.lines().count(), 1);
    assert_eq!(read(&format!("{scope}/knarr-keeper"), "cgroup.procs")?.lines().count(), 1);
    let kmsg = ["try", "mknod", "/kmsg", "1", "11", ",", "try", "read", "/kmsg"];
    assert_eq!(node.exec_output(&id, &kmsg).await?, "ok\nEPERM\n");
    Ok(())
}

async fn limits_survive_a_reload_and_a_changed_property(node: &mut Node) -> Outcome {
    needs_systemd!();
    let pod = node.run_pod(pod("reload")).await?;
    let id = node.run(&pod, limited("main")).await?;
    let (unit, scope) = (tree::scope(&id), scope_path(node, &pod, &id));
    let own = format!("{scope}/container");
    let all = |cgroup: &str| -> Outcome<Vec<String>> {
        let files = ["memory.max", "memory.high", "cpu.max", "cpuset.cpus", "pids.max"];
        files.iter().map(|file| read(cgroup, file)).collect()
    };
    let (before, before_own) = (all(&scope)?, all(&own)?);
    systemctl(&["daemon-reload"])?;
    systemctl(&["set-property", "--runtime", &unit, "IOWeight=50"])?;
    systemctl(&["set-property", "--runtime", &unit, "CPUWeight=80"])?;
    systemctl(&["daemon-reload"])?;
    eventually("the property is in the file", Duration::from_secs(10), async || {
        Ok((read(&scope, "cpu.weight")? == "80").then_some(()))
    })
    .await?;
    assert_eq!(all(&scope)?, before);
    assert_eq!(all(&own)?, before_own);
    assert_eq!(read(&own, "memory.oom.group")?, "1", "systemd has no word for it and does not touch it");
    assert_eq!(node.exec_output(&id, &["cat", "/proc/1/cgroup"]).await?, "0::/\n", "exec works as before");
    Ok(())
}

async fn an_update_is_told_to_systemd(node: &mut Node) -> Outcome {
    needs_systemd!();
    let pod = node.run_pod(pod("update")).await?;
    let id = node.run(&pod, limited("main")).await?;
    let (unit, scope) = (tree::scope(&id), scope_path(node, &pod, &id));
    let asked = v1::LinuxContainerResources {
        memory_limit_in_bytes: 128 << 20,
        cpu_quota: 55_500,
        cpu_period: 100_000,
        unified: [("memory.high".into(), "max".into())].into(),
        ..Default::default()
    };
    update(node, &id, asked).await?;
    systemctl(&["daemon-reload"])?;
    let shown = show(&unit)?;
    assert_eq!((shown["MemoryMax"].as_str(), shown["MemoryHigh"].as_str()), ("134217728", "infinity"));
    assert_eq!(shown["CPUQuotaPerSecUSec"], "560ms", "whole percents, rounded up");
    assert_eq!(shown["CPUWeight"], "59", "what the update does not name stays");
    assert_eq!(read(&scope, "memory.max")?, "134217728");
    let own = format!("{scope}/container");
    assert_eq!(read(&own, "memory.max")?, "134217728");
    assert_eq!(read(&own, "cpu.max")?, "55500 100000", "the exact one");

    let no_such_cpu = v1::LinuxContainerResources {
        memory_limit_in_bytes: 256 << 20,
        cpuset_cpus: "4000".into(),
        ..Default::default()
    };
    refused(update(node, &id, no_such_cpu).await, Code::Unknown);
    assert_eq!(show(&unit)?["MemoryMax"], "134217728", "a refused update changes nothing");
    assert_eq!(read(&own, "memory.max")?, "134217728");
    Ok(())
}

async fn an_oom_kill_is_known_after_the_scope_has_ended_by_itself(node: &mut Node) -> Outcome {
    needs_systemd!();
    let pod = node.run_pod(pod("oom")).await?;
    for round in 0..5 {
        let mut config = container(&format!("eats{round}"), &["eat", "256"]);
        resources(&mut config).memory_limit_in_bytes = 16 << 20;
        resources(&mut config).unified = [("memory.oom.group".into(), "1".into())].into();
        let status = node.run_to_end(&pod, config).await?;
        assert_eq!((status.exit_code, status.reason.as_str()), (137, "OOMKilled"));
        let unit = show(&tree::scope(&status.id))?;
        assert_eq!(unit["ActiveState"], "active", "the keeper keeps it until the container is removed");
    }
    Ok(())
}

async fn a_stopped_container_leaves_no_unit_when_it_is_removed(node: &mut Node) -> Outcome {
    needs_systemd!();
    let pod = node.run_pod(pod("gone")).await?;
    let endings: [(&str, &[&str], i64); 3] = [
        ("by-itself", &["exit", "3"], 0),
        ("by-term", &["pause"], 10),
        ("by-kill", &["on-term", "0", ",", "pause"], 0),
    ];
    for (name, words, timeout) in endings {
        let id = node.run(&pod, container(name, words)).await?;
        if name == "by-itself" {
            node.wait_exited(&id).await?;
        } else {
            node.stop_container(&id, timeout).await?;
        }
        let unit = tree::scope(&id);
        node.remove_container(&id).await?;
        assert!(!is_known(&unit)?, "{name}: {:?}", show(&unit)?);
        assert!(!directory_of(&scope_path(node, &pod, &id)).exists(), "{name}");
    }
    let failed = systemctl(&["list-units", "--all", "--state=failed", "--no-legend", "knarr*"])?;
    assert_eq!(failed, "");
    Ok(())
}

async fn a_scope_that_is_stopped_ends_its_container(node: &mut Node) -> Outcome {
    needs_systemd!();
    let pod = node.run_pod(pod("stopped")).await?;
    let id = node.run(&pod, container("main", &["pause"])).await?;
    systemctl(&["stop", &tree::scope(&id)])?;
    node.wait_exited(&id).await?;
    node.remove_container(&id).await?;
    assert!(!is_known(&tree::scope(&id))?);
    let again = node.run(&pod, container("again", &["pause"])).await?;
    assert_eq!(show(&tree::scope(&again))?["ActiveState"], "active");
    Ok(())
}

async fn a_pod_outlives_its_daemon_and_a_reexecuted_systemd(node: &mut Node) -> Outcome {
    needs_systemd!();
    let pod = node.run_pod(pod("outlives")).await?;
    let id = node.run(&pod, limited("main")).await?;
    node.kill().await?;
    systemctl(&["daemon-reexec"])?;
    node.start_again().await?;
    assert_eq!(node.status(&id).await?.state(), v1::ContainerState::ContainerRunning);
    assert_eq!(node.exec_output(&id, &["cat", "/proc/1/cgroup"]).await?, "0::/\n");
    systemctl(&["daemon-reexec"])?;
    let asked = v1::LinuxContainerResources { memory_limit_in_bytes: 80 << 20, ..Default::default() };
    update(node, &id, asked).await?;
    assert_eq!(show(&tree::scope(&id))?["MemoryMax"], (80 << 20).to_string());
    let second = node.run(&pod, container("second", &["pause"])).await?;
    assert_eq!(show(&tree::scope(&second))?["ActiveState"], "active");
    node.stop_container(&id, 5).await?;
    node.remove_container(&id).await?;
    assert!(!is_known(&tree::scope(&id))?);
    Ok(())
}

/// As kubelet makes a pod's slice, with a limit of its own.
fn make_kubelets(node: &Node) -> Outcome<(String, String)> {
    let parent = tree::kubelets(&node.directory);
    let slice = parent.rsplit('/').next().unwrap_or_default().to_owned();
    systemctl(&["start", &slice])?;
    systemctl(&["set-property", "--runtime", &slice, "MemoryMax=300M"])?;
    Ok((parent, slice))
}

async fn kubelets_slice_is_known_by_path_and_by_name(node: &mut Node) -> Outcome {
    needs_systemd!();
    let (parent, slice) = make_kubelets(node)?;
    for (name, given) in [("path", parent.as_str()), ("name", slice.as_str())] {
        let mut config = pod(name);
        config.linux.get_or_insert_default().cgroup_parent = given.into();
        let pod = node.run_pod(config).await?;
        let id = node.run(&pod, container("main", &["pause"])).await?;
        let unit = show(&tree::scope(&id))?;
        assert_eq!(unit["Slice"], slice);
        assert_eq!(unit["ControlGroup"], format!("{parent}/{}", tree::scope(&id)));
        node.stop_pod(&pod.id).await?;
        node.remove_pod(&pod.id).await?;
        assert!(!is_known(&tree::scope(&id))?);
        assert_eq!(show(&slice)?["ActiveState"], "active", "kubelet's slice is kubelet's");
        assert_eq!(read(&parent, "memory.max")?, (300 << 20).to_string());
    }
    remove_kubelets(&node.directory);
    Ok(())
}

async fn a_parent_of_the_other_driver_is_refused(node: &mut Node) -> Outcome {
    let (other, word) = match Driver::current() {
        Driver::Cgroupfs => ("/kubepods.slice/kubepods-pod1.slice", "cgroupfs"),
        Driver::Systemd => ("/kubepods/pod1", "systemd"),
    };
    let mut config = pod("wrong");
    config.linux.get_or_insert_default().cgroup_parent = other.into();
    let message = refused(node.run_pod(config).await, Code::InvalidArgument);
    assert!(message.contains("cgroup_parent") && message.contains(word) && message.contains("kubelet"), "{message}");
    let mut config = pod("elsewhere");
    config.linux.get_or_insert_default().cgroup_parent = "/elsewhere/a-b.slice".into();
    refused(node.run_pod(config).await, Code::InvalidArgument);
    Ok(())
}

async fn without_the_bus_starts_fail_and_running_pods_go_on(node: &mut Node) -> Outcome {
    needs_systemd!();
    let pod = node.run_pod(pod("cut")).await?;
    let running = node.run(&pod, container("running", &["pause"])).await?;
    let waiting = node.create(&pod, container("waiting", &["pause"])).await?;
    node.bus.as_mut().ok_or("no bus")?.cut();
    let message = refused(node.start_container(&waiting).await, Code::Unavailable);
    assert!(message.contains("D-Bus") && message.contains(&tree::scope(&waiting)), "{message}");
    assert_eq!(node.exec_output(&running, &["print", "alive"]).await?, "alive\n");
    let asked = v1::LinuxContainerResources { memory_limit_in_bytes: 80 << 20, ..Default::default() };
    let message = refused(update(node, &running, asked.clone()).await, Code::Unavailable);
    assert!(message.contains("D-Bus"), "{message}");
    assert_eq!(read(&format!("{}/container", scope_path(node, &pod, &running)), "memory.max")?, "max", "put back");
    node.bus.as_mut().ok_or("no bus")?.restore()?;
    update(node, &running, asked).await?;
    assert_eq!(show(&tree::scope(&running))?["MemoryMax"], (80 << 20).to_string());
    let another = node.run(&pod, container("another", &["pause"])).await?;
    assert_eq!(show(&tree::scope(&another))?["ActiveState"], "active");
    Ok(())
}

async fn what_was_removed_without_the_bus_is_cleared_later(node: &mut Node) -> Outcome {
    needs_systemd!();
    let first = node.run_pod(pod("first")).await?;
    node.run(&first, container("main", &["pause"])).await?;
    let slice = tree::pod(&node.directory, &first.id);
    let slice = slice.rsplit('/').next().unwrap_or_default().to_owned();
    assert_eq!(show(&slice)?["ActiveState"], "active");
    node.bus.as_mut().ok_or("no bus")?.cut();
    node.stop_pod(&first.id).await?;
    node.remove_pod(&first.id).await?;
    assert!(node.pods().await?.is_empty());
    node.bus.as_mut().ok_or("no bus")?.restore()?;
    let second = node.run_pod(pod("second")).await?;
    node.run(&second, container("main", &["pause"])).await?;
    eventually("the first pod's slice is gone", Duration::from_secs(30), async || {
        Ok((show(&slice)?["ActiveState"] == "inactive").then_some(()))
    })
    .await
}

async fn a_failed_scope_of_nobody_is_cleared_at_start(node: &mut Node) -> Outcome {
    needs_systemd!();
    node.stop().await?;
    // A name that no other test gives.
    let unit = tree::scope(&format!("{:0>64}", std::process::id()));
    let slice = format!("--slice={}.slice", tree::word(&node.directory));
    let run = ["--scope", "--quiet", &slice, "--unit", &unit, "-p", "RuntimeMaxSec=1", "sleep", "1000"];
    let ended = Command::new("systemd-run").args(run).status()?;
    assert!(!ended.success());
    eventually("it has failed", Duration::from_secs(10), async || {
        Ok((show(&unit)?["ActiveState"] == "failed").then_some(()))
    })
    .await?;
    node.start_again().await?;
    assert!(!is_known(&unit)?, "{:?}", show(&unit)?);
    Ok(())
}

async fn shims_have_a_scope(node: &mut Node) -> Outcome {
    needs_systemd!();
    let pod = node.run_pod(pod("shim")).await?;
    let unit = format!("{}-shims.scope", tree::word(&node.directory));
    let shown = show(&unit)?;
    assert_eq!((shown["ActiveState"].as_str(), shown["Delegate"].as_str()), ("active", "yes"));
    let leaf = format!("{}/{unit}/{}", tree::parent(&node.directory), &pod.id[..12]);
    eventually("the shim is in its leaf", Duration::from_secs(10), async || {
        let there = read(&leaf, "cgroup.procs").is_ok_and(|processes| processes.lines().count() == 1);
        Ok(there.then_some(()))
    })
    .await?;
    assert_eq!(read(&leaf, "memory.max")?, (32 << 20).to_string());
    systemctl(&["daemon-reload"])?;
    assert_eq!(read(&leaf, "memory.max")?, (32 << 20).to_string());
    Ok(())
}

async fn a_shim_in_its_pod_is_a_scope(node: &mut Node) -> Outcome {
    needs_systemd!();
    let pod = node.run_pod(pod("within")).await?;
    node.run(&pod, container("main", &["pause"])).await?;
    let unit = format!("knarr-shim-{}.scope", pod.id);
    eventually("the shim is in its scope", Duration::from_secs(10), async || {
        Ok((show(&unit)?["ActiveState"] == "active").then_some(()))
    })
    .await?;
    let shown = show(&unit)?;
    assert_eq!(shown["ControlGroup"], format!("{}/{unit}", tree::pod(&node.directory, &pod.id)));
    assert_eq!(shown["MemoryMax"], (32 << 20).to_string());
    node.stop_pod(&pod.id).await?;
    assert!(!is_known(&unit)?);
    Ok(())
}

async fn the_driver_is_found_out(node: &mut Node) -> Outcome {
    needs_systemd!();
    kubelet_is_told_the_driver(node).await?;
    let pod = node.run_pod(pod("auto")).await?;
    let id = node.run(&pod, container("main", &["pause"])).await?;
    assert_eq!(show(&tree::scope(&id))?["ActiveState"], "active");
    Ok(())
}

async fn pods_start_twenty_at_once(node: &mut Node) -> Outcome {
    needs_systemd!();
    let mut starts = tokio::task::JoinSet::new();
    for number in 0..20 {
        let mut config = pod(&format!("many{number}"));
        config.log_directory = node.directory.join("logs").join(number.to_string()).display().to_string();
        let mut runtime = node.runtime.clone();
        starts.spawn(async move {
            let request = v1::RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: String::new() };
            let id = runtime.run_pod_sandbox(request).await?.into_inner().pod_sandbox_id;
            let request = v1::CreateContainerRequest {
                pod_sandbox_id: id.clone(),
                config: Some(container("main", &["pause"])),
                sandbox_config: Some(config),
            };
            let container = runtime.create_container(request).await?.into_inner().container_id;
            runtime.start_container(v1::StartContainerRequest { container_id: container.clone() }).await?;
            Ok::<_, tonic::Status>((id, container))
        });
    }
    let mut ids = Vec::new();
    while let Some(started) = starts.join_next().await {
        ids.push(started??);
    }
    for (_, container) in &ids {
        assert_eq!(node.status(container).await?.state(), v1::ContainerState::ContainerRunning);
        assert_eq!(show(&tree::scope(container))?["ActiveState"], "active");
    }
    let mut ends = tokio::task::JoinSet::new();
    for (pod, _) in ids.clone() {
        let mut runtime = node.runtime.clone();
        ends.spawn(async move {
            runtime.stop_pod_sandbox(v1::StopPodSandboxRequest { pod_sandbox_id: pod.clone() }).await?;
            runtime.remove_pod_sandbox(v1::RemovePodSandboxRequest { pod_sandbox_id: pod }).await
        });
    }
    while let Some(ended) = ends.join_next().await {
        ended??;
    }
    for (_, container) in &ids {
        assert!(!is_known(&tree::scope(container))?);
    }
    Ok(())
}
