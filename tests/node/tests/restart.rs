//! The daemon dies and comes back; pods do not notice, and nothing that happened meanwhile is lost.

use knarr_cri_api::v1::{self, ContainerState, PodSandboxState};
use knarr_node_tests::node::{Node, read_log};
use knarr_node_tests::requests::{container, pod};
use knarr_node_tests::{Outcome, eventually, tests};
use std::time::Duration;

tests![
    pods_go_on_and_are_told_the_same_afterwards,
    an_end_while_the_daemon_was_away_is_known,
    a_log_has_no_hole,
    what_was_stopped_halfway_is_finished,
    a_daemon_that_dies_again_and_again_leaves_one_whole_node,
    a_lost_shim_is_told_and_cleaned_up,
    an_orderly_end_leaves_pods_running,
    a_request_that_was_cut_off_can_be_sent_again,
    calls_that_were_cut_off_leave_a_whole_node,
];

async fn pods_go_on_and_are_told_the_same_afterwards(node: &mut Node) -> Outcome {
    let web = node.run_pod(pod("web")).await?;
    let running = node.run(&web, container("running", &["on-term", "4", ",", "pause"])).await?;
    let created = node.create(&web, container("created", &["exit", "6"])).await?;
    let over = node.run_to_end(&web, container("over", &["exit", "9"])).await?.id;
    let stopped = node.run_pod(pod("stopped")).await?;
    node.stop_pod(&stopped.id).await?;
    let pid = node.exec_output(&running, &["cat", "/proc/1/stat"]).await?;
    let mut before = Vec::new();
    for id in [&running, &created, &over] {
        before.push(node.status(id).await?);
    }
    let pods_before = (node.pod_status(&web.id).await?, node.pod_status(&stopped.id).await?);

    node.kill().await?;
    node.start_again().await?;

    for (id, before) in [&running, &created, &over].into_iter().zip(before) {
        assert_eq!(node.status(id).await?, before);
    }
    assert_eq!((node.pod_status(&web.id).await?, node.pod_status(&stopped.id).await?), pods_before);
    let same = node.exec_output(&running, &["cat", "/proc/1/stat"]).await?;
    let start_time = |stat: &str| stat.split(' ').nth(21).map(str::to_owned);
    assert_eq!(start_time(&same), start_time(&pid), "it is the same process");
    node.start_container(&created).await?;
    assert_eq!(node.wait_exited(&created).await?.exit_code, 6);
    node.stop_container(&running, 10).await?;
    assert_eq!(node.status(&running).await?.exit_code, 4);
    Ok(())
}

async fn an_end_while_the_daemon_was_away_is_known(node: &mut Node) -> Outcome {
    let pod = node.run_pod(pod("away")).await?;
    let flag = node.directory.join("flags");
    std::fs::create_dir_all(&flag)?;
    let mut config = container("main", &["await", "/flags/go", ",", "print", "going", ",", "exit", "42"]);
    config.mounts = vec![knarr_node_tests::requests::mount(&flag, "/flags")];
    let id = node.run(&pod, config).await?;
    let log = node.status(&id).await?.log_path;
    node.kill().await?;
    let away = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_nanos();
    std::fs::write(flag.join("go"), "")?;
    eventually("the container ends by itself", Duration::from_secs(10), async || {
        Ok(read_log(&log)?.iter().any(|l| l.text == "going").then_some(()))
    })
    .await?;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let back = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_nanos();
    node.start_again().await?;
    let status = node.wait_exited(&id).await?;
    assert_eq!((status.exit_code, status.reason.as_str()), (42, "Error"));
    let finished = u128::try_from(status.finished_at)?;
    assert!(away <= finished && finished <= back, "it is told when it ended, not when that was found out");
    Ok(())
}

async fn a_log_has_no_hole(node: &mut Node) -> Outcome {
    let pod = node.run_pod(pod("log")).await?;
    let id = node.run(&pod, container("main", &["tick", "0.001"])).await?;
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(200)).await;
        node.kill().await?;
        tokio::time::sleep(Duration::from_millis(200)).await;
        node.start_again().await?;
    }
    node.stop_container(&id, 0).await?;
    let lines = node.log(&id).await?;
    assert!(lines.len() > 200, "{} lines", lines.len());
    for (number, line) in lines.iter().enumerate() {
        assert_eq!(line.text, format!("tick {}", number + 1));
    }
    Ok(())
}

async fn what_was_stopped_halfway_is_finished(node: &mut Node) -> Outcome {
    let pod = node.run_pod(pod("halfway")).await?;
    let id = node.run(&pod, container("main", &["ignore-term", ",", "print", "ready", ",", "pause"])).await?;
    node.wait_for_log(&id, "ready").await?;
    let mut runtime = node.runtime.clone();
    let request = v1::StopContainerRequest { container_id: id.clone(), timeout: 2 };
    let stopping = tokio::spawn(async move { runtime.stop_container(request).await });
    tokio::time::sleep(Duration::from_millis(300)).await;
    node.kill().await?;
    stopping.await?.expect_err("its daemon died");
    node.start_again().await?;
    node.stop_container(&id, 1).await?;
    assert_eq!(node.status(&id).await?.exit_code, 137);
    node.remove_pod(&pod.id).await?;
    Ok(())
}

/// SIGKILL at any moment of anything: what is listed afterwards is whole and can be removed.
async fn a_daemon_that_dies_again_and_again_leaves_one_whole_node(node: &mut Node) -> Outcome {
    const ROUNDS: u64 = 25;
    for round in 0..ROUNDS {
        let mut runtime = node.runtime.clone();
        let mut config = pod(&format!("p{round}"));
        config.log_directory = node.directory.join(format!("logs/p{round}")).display().to_string();
        knarr_node_tests::node::make_log_directory(&config, &container("main", &[]));
        let work = tokio::spawn(async move {
            let request = v1::RunPodSandboxRequest { config: Some(config.clone()), ..Default::default() };
            let id = runtime.run_pod_sandbox(request).await?.into_inner().pod_sandbox_id;
            let request = v1::CreateContainerRequest {
                pod_sandbox_id: id.clone(),
                config: Some(container("main", &["pause"])),
                sandbox_config: Some(config),
            };
            let container_id = runtime.create_container(request).await?.into_inner().container_id;
            runtime.start_container(v1::StartContainerRequest { container_id }).await?;
            runtime.stop_pod_sandbox(v1::StopPodSandboxRequest { pod_sandbox_id: id.clone() }).await?;
            runtime.remove_pod_sandbox(v1::RemovePodSandboxRequest { pod_sandbox_id: id }).await?;
            Ok::<_, tonic::Status>(())
        });
        // From before the first step to after the last.
        tokio::time::sleep(Duration::from_millis(3 * round)).await;
        node.kill().await?;
        let _ = work.await?;
        node.start_again().await?;
        // What was being made or removed may go on vanishing.
        let there_or_gone = |outcome: Result<(), tonic::Status>| match outcome {
            Err(status) if status.code() != tonic::Code::NotFound => Err(status),
            _ => Ok(()),
        };
        for pod in node.pods().await? {
            there_or_gone(node.pod_status(&pod.id).await.map(drop))?;
        }
        for container in node.containers().await? {
            there_or_gone(node.status(&container.id).await.map(drop))?;
        }
    }
    node.remove_everything().await?;
    assert_eq!(node.containers().await?, []);
    Ok(())
}

async fn a_lost_shim_is_told_and_cleaned_up(node: &mut Node) -> Outcome {
    let pod = node.run_pod(pod("lost")).await?;
    let id = node.run(&pod, container("main", &["pause"])).await?;
    for entry in std::fs::read_dir("/proc")? {
        let entry = entry?;
        let name = std::fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        if name.starts_with("knarr-sh") {
            let pid = entry.file_name().to_string_lossy().parse()?;
            let pid = rustix::process::Pid::from_raw(pid).ok_or("no process")?;
            rustix::process::kill_process(pid, rustix::process::Signal::KILL)?;
        }
    }
    eventually("the loss is told", Duration::from_secs(20), async || {
        let state = node.status(&id).await?.state();
        Ok((state != ContainerState::ContainerRunning).then_some(()))
    })
    .await?;
    node.stop_pod(&pod.id).await?;
    assert_eq!(node.pod_status(&pod.id).await?.state(), PodSandboxState::SandboxNotready);
    node.remove_pod(&pod.id).await?;
    // Another pod is not hit.
    let next = node.run_pod(knarr_node_tests::requests::pod("next")).await?;
    node.output_of(&next, container("main", &["print", "x"])).await?;
    Ok(())
}

async fn an_orderly_end_leaves_pods_running(node: &mut Node) -> Outcome {
    let pod = node.run_pod(pod("orderly")).await?;
    let id = node.run(&pod, container("main", &["tick", "0.01"])).await?;
    node.stop().await?;
    let path = node.directory.join("logs/orderly/main/0.log").display().to_string();
    let lines = read_log(&path)?.len();
    eventually("it goes on", Duration::from_secs(5), async || Ok((read_log(&path)?.len() > lines + 10).then_some(())))
        .await?;
    node.start_again().await?;
    assert_eq!(node.status(&id).await?.state(), ContainerState::ContainerRunning);
    Ok(())
}

async fn a_request_that_was_cut_off_can_be_sent_again(node: &mut Node) -> Outcome {
    let mut config = pod("again");
    config.log_directory = node.directory.join("logs/again").display().to_string();
    let mut runtime = node.runtime.clone();
    let request = v1::RunPodSandboxRequest { config: Some(config.clone()), ..Default::default() };
    // Kubelet's deadline passes while the pod is being made, sooner or later.
    for limit in [3, 4, 6, 10, 16] {
        let _ = runtime.run_pod_sandbox(Node::within(request.clone(), Duration::from_millis(limit))).await;
    }
    let pod = eventually("a retry gets the pod", Duration::from_secs(10), async || {
        match node.run_pod(config.clone()).await {
            Ok(pod) => Ok(Some(pod)),
            Err(status) if status.code() == tonic::Code::AlreadyExists => {
                Err(format!("the name is held by nobody: {status}").into())
            }
            Err(_) => Ok(None),
        }
    })
    .await?;
    assert_eq!(node.pods().await?.len(), 1);
    node.output_of(&pod, container("main", &["print", "x"])).await?;
    Ok(())
}

/// Every call of a container's life is given up by its client at some moment, and then sent again as kubelet does.
async fn calls_that_were_cut_off_leave_a_whole_node(node: &mut Node) -> Outcome {
    let pod = node.run_pod(pod("calls")).await?;
    for limit in [3, 4, 5, 7, 10, 15, 25] {
        let limit = Duration::from_millis(limit);
        let mut config = container("main", &["on-term", "0", ",", "pause"]);
        config.metadata.get_or_insert_default().attempt = u32::try_from(limit.as_millis())?;
        let mut runtime = node.runtime.clone();
        let request = v1::CreateContainerRequest {
            pod_sandbox_id: pod.id.clone(),
            config: Some(config.clone()),
            sandbox_config: Some(pod.config.clone()),
        };
        let _ = runtime.create_container(Node::within(request, limit)).await;
        let id = node.create(&pod, config).await?;
        let request = v1::StartContainerRequest { container_id: id.clone() };
        if runtime.start_container(Node::within(request, limit)).await.is_err() {
            // The request may have come to nothing, or the container may be starting or running by now.
            eventually("it starts", Duration::from_secs(10), async || match node.status(&id).await?.state() {
                ContainerState::ContainerRunning => Ok(Some(())),
                ContainerState::ContainerCreated => {
                    let _ = node.start_container(&id).await;
                    Ok(None)
                }
                other => Err(format!("it is {other:?}").into()),
            })
            .await?;
        }
        let cmd = [knarr_node_tests::TOOL, "sleep", "0.01"].map(str::to_owned).to_vec();
        let request = v1::ExecSyncRequest { container_id: id.clone(), cmd, timeout: 10 };
        let _ = runtime.exec_sync(Node::within(request, limit)).await;
        let request = v1::StopContainerRequest { container_id: id.clone(), timeout: 10 };
        let _ = runtime.stop_container(Node::within(request, limit)).await;
        node.stop_container(&id, 10).await?;
        let request = v1::RemoveContainerRequest { container_id: id.clone() };
        let _ = runtime.remove_container(Node::within(request, limit)).await;
        node.remove_container(&id).await?;
    }
    assert_eq!(node.containers().await?, []);
    let mut runtime = node.runtime.clone();
    let request = v1::StopPodSandboxRequest { pod_sandbox_id: pod.id.clone() };
    let _ = runtime.stop_pod_sandbox(Node::within(request, Duration::from_millis(3))).await;
    let request = v1::RemovePodSandboxRequest { pod_sandbox_id: pod.id.clone() };
    let _ = runtime.remove_pod_sandbox(Node::within(request, Duration::from_millis(3))).await;
    node.remove_pod(&pod.id).await?;
    Ok(())
}
