//! The life of pods and containers: what List and Status say at each step, and how they end.

use knarr_cri_api::v1;
use knarr_node_tests::node::{Node, Pod, make_log_directory};
use knarr_node_tests::requests::{container, pod};
use knarr_node_tests::{Outcome, patience, tests};
use std::slice::from_ref;
use std::time::{Duration, Instant};
use v1::{ContainerState, PodSandboxState};

tests![
    a_pod_and_its_container_live_and_die,
    exit_codes_and_reasons_are_told,
    a_program_that_is_not_there_is_a_start_error,
    the_grace_period_is_given_and_ends,
    a_shorter_stop_overtakes_a_longer_one,
    stopping_a_pod_stops_its_containers_and_keeps_what_is_known,
    removing_a_pod_removes_what_runs_in_it,
    stop_and_remove_of_what_is_gone_succeed,
    a_container_that_was_never_started_is_removed,
    lists_are_filtered,
    the_same_pod_asked_for_twice_is_one_pod,
    pods_at_once_do_not_disturb_each_other,
    a_container_runs_again_under_the_next_attempt,
];

async fn a_pod_and_its_container_live_and_die(node: &mut Node) -> Outcome {
    let pod = node.run_pod(pod("web")).await?;
    assert!(pod.id.len() == 64 && pod.id.bytes().all(|b| b.is_ascii_hexdigit()), "{}", pod.id);
    let status = node.pod_status(&pod.id).await?;
    assert_eq!(status.state(), PodSandboxState::SandboxReady);
    assert_eq!(status.metadata, pod.config.metadata);
    assert_eq!(status.labels, pod.config.labels);
    assert_eq!(status.annotations, pod.config.annotations);
    assert!(status.created_at > 1_700_000_000_000_000_000);

    let config = container("main", &["print", "hello", ",", "on-term", "5", ",", "pause"]);
    let id = node.create(&pod, config.clone()).await?;
    let status = node.status(&id).await?;
    assert_eq!(status.state(), ContainerState::ContainerCreated);
    assert_eq!((status.started_at, status.finished_at), (0, 0));

    node.start_container(&id).await?;
    let status = node.status(&id).await?;
    assert_eq!(status.state(), ContainerState::ContainerRunning);
    assert!(status.started_at >= status.created_at);
    assert_eq!(status.labels, config.labels);
    assert_eq!(status.annotations, config.annotations);
    assert!(status.image_id.starts_with("sha256:") && !status.image_ref.is_empty(), "{status:?}");
    node.wait_for_log(&id, "hello").await?;

    node.stop_container(&id, 20).await?;
    let status = node.status(&id).await?;
    assert_eq!(status.state(), ContainerState::ContainerExited);
    assert_eq!((status.exit_code, status.reason.as_str()), (5, "Error"));
    assert!(status.finished_at >= status.started_at);

    node.remove_container(&id).await?;
    assert_eq!(node.containers().await?, []);
    assert!(std::path::Path::new(&status.log_path).exists(), "the log is kubelet's to delete");
    Ok(())
}

async fn exit_codes_and_reasons_are_told(node: &mut Node) -> Outcome {
    let pod = node.run_pod(pod("codes")).await?;
    for (name, words, code, reason) in [
        ("zero", vec!["exit", "0"], 0, "Completed"),
        ("three", vec!["exit", "3"], 3, "Error"),
        ("most", vec!["exit", "255"], 255, "Error"),
    ] {
        let status = node.run_to_end(&pod, container(name, &words)).await?;
        assert_eq!((status.exit_code, status.reason.as_str()), (code, reason), "{name}");
    }
    Ok(())
}

async fn a_program_that_is_not_there_is_a_start_error(node: &mut Node) -> Outcome {
    let pod = node.run_pod(pod("absent")).await?;
    let mut config = container("main", &[]);
    config.command = vec!["/bin/absent".into()];
    let id = node.create(&pod, config).await?;
    let error = node.start_container(&id).await.expect_err("there is no such program");
    assert!(error.message().contains("/bin/absent"), "{}", error.message());
    assert!(error.message().contains("No such file"), "{}", error.message());
    let status = node.status(&id).await?;
    assert_eq!(status.state(), ContainerState::ContainerExited);
    assert_eq!((status.exit_code, status.reason.as_str()), (128, "StartError"));
    Ok(())
}

async fn the_grace_period_is_given_and_ends(node: &mut Node) -> Outcome {
    let pod = node.run_pod(pod("grace")).await?;
    let polite = node.run(&pod, container("polite", &["on-term", "0", ",", "print", "ready", ",", "pause"])).await?;
    let deaf = node.run(&pod, container("deaf", &["ignore-term", ",", "print", "ready", ",", "pause"])).await?;
    node.wait_for_log(&polite, "ready").await?;
    node.wait_for_log(&deaf, "ready").await?;

    let started = Instant::now();
    node.stop_container(&polite, 30).await?;
    assert!(
        started.elapsed() < patience(Duration::from_secs(5)),
        "it ends when the container does: {:?}",
        started.elapsed()
    );
    assert_eq!(node.status(&polite).await?.reason, "Completed");

    let started = Instant::now();
    node.stop_container(&deaf, 1).await?;
    let took = started.elapsed();
    assert!(took >= Duration::from_millis(900) && took < patience(Duration::from_secs(5)), "{took:?}");
    assert_eq!(node.status(&deaf).await?.exit_code, 137);
    Ok(())
}

async fn a_shorter_stop_overtakes_a_longer_one(node: &mut Node) -> Outcome {
    let pod = node.run_pod(pod("overtake")).await?;
    let id = node.run(&pod, container("deaf", &["ignore-term", ",", "print", "ready", ",", "pause"])).await?;
    node.wait_for_log(&id, "ready").await?;
    let mut patient = node.runtime.clone();
    let request = v1::StopContainerRequest { container_id: id.clone(), timeout: 100 };
    let waiting = tokio::spawn(async move { patient.stop_container(request).await });
    tokio::time::sleep(Duration::from_millis(200)).await;
    let started = Instant::now();
    node.stop_container(&id, 0).await?;
    assert!(started.elapsed() < patience(Duration::from_secs(3)), "{:?}", started.elapsed());
    waiting.await??;
    Ok(())
}

async fn stopping_a_pod_stops_its_containers_and_keeps_what_is_known(node: &mut Node) -> Outcome {
    let pod = node.run_pod(pod("stop")).await?;
    let running = node.run(&pod, container("running", &["pause"])).await?;
    let created = node.create(&pod, container("created", &["pause"])).await?;
    node.stop_pod(&pod.id).await?;
    assert_eq!(node.pod_status(&pod.id).await?.state(), PodSandboxState::SandboxNotready);
    let status = node.status(&running).await?;
    assert_eq!((status.state(), status.exit_code), (ContainerState::ContainerExited, 137));
    assert!(node.containers().await?.iter().any(|c| c.id == created), "it stays until it is removed");
    assert!(node.create(&pod, container("late", &["pause"])).await.is_err(), "a stopped pod takes no container");
    Ok(())
}

async fn removing_a_pod_removes_what_runs_in_it(node: &mut Node) -> Outcome {
    let pod = node.run_pod(pod("remove")).await?;
    node.run(&pod, container("running", &["fork", "5", "1000", ",", "pause"])).await?;
    node.remove_pod(&pod.id).await?;
    assert_eq!(node.pods().await?, []);
    assert_eq!(node.containers().await?, []);
    Ok(())
}

async fn stop_and_remove_of_what_is_gone_succeed(node: &mut Node) -> Outcome {
    let unknown = "0123456789abcdef".repeat(4);
    node.stop_container(&unknown, 1).await?;
    node.remove_container(&unknown).await?;
    node.stop_pod(&unknown).await?;
    node.remove_pod(&unknown).await?;
    let pod = node.run_pod(pod("twice")).await?;
    let id = node.run_to_end(&pod, container("main", &["exit", "0"])).await?.id;
    for _ in 0..2 {
        node.stop_container(&id, 1).await?;
    }
    for _ in 0..2 {
        node.remove_container(&id).await?;
    }
    for _ in 0..3 {
        node.stop_pod(&pod.id).await?;
    }
    for _ in 0..2 {
        node.remove_pod(&pod.id).await?;
    }
    Ok(())
}

async fn a_container_that_was_never_started_is_removed(node: &mut Node) -> Outcome {
    let pod = node.run_pod(pod("never")).await?;
    let id = node.create(&pod, container("main", &["pause"])).await?;
    node.remove_container(&id).await?;
    assert_eq!(node.containers().await?, []);
    Ok(())
}

async fn lists_are_filtered(node: &mut Node) -> Outcome {
    let one = node.run_pod(pod("one")).await?;
    let two = node.run_pod(pod("two")).await?;
    let in_one = node.run(&one, container("a", &["pause"])).await?;
    let in_two = node.create(&two, container("b", &["pause"])).await?;
    node.stop_pod(&two.id).await?;

    let mut pods = async |filter: v1::PodSandboxFilter| -> Outcome<Vec<String>> {
        let request = v1::ListPodSandboxRequest { filter: Some(filter) };
        let items = node.runtime.list_pod_sandbox(request).await?.into_inner().items;
        Ok(items.into_iter().map(|p| p.id).collect())
    };
    let ready = Some(v1::PodSandboxStateValue { state: PodSandboxState::SandboxReady.into() });
    assert_eq!(pods(v1::PodSandboxFilter { state: ready, ..Default::default() }).await?, from_ref(&one.id));
    let label_selector = [("io.kubernetes.pod.name".to_owned(), "two".to_owned())].into();
    assert_eq!(pods(v1::PodSandboxFilter { label_selector, ..Default::default() }).await?, from_ref(&two.id));
    let filter = |id: &str| v1::PodSandboxFilter { id: id.into(), ..Default::default() };
    assert_eq!(pods(filter(&one.id)).await?, from_ref(&one.id));
    assert_eq!(pods(filter(&one.id[..12])).await?, from_ref(&one.id), "as crictl asks");
    assert!(pods(filter(&"f".repeat(64))).await?.is_empty(), "an unknown id is an empty list");

    let mut containers = async |filter: v1::ContainerFilter| -> Outcome<Vec<String>> {
        let request = v1::ListContainersRequest { filter: Some(filter) };
        let items = node.runtime.list_containers(request).await?.into_inner().containers;
        Ok(items.into_iter().map(|c| c.id).collect())
    };
    let running = Some(v1::ContainerStateValue { state: ContainerState::ContainerRunning.into() });
    assert_eq!(containers(v1::ContainerFilter { state: running, ..Default::default() }).await?, [in_one]);
    let pod_sandbox_id = two.id.clone();
    assert_eq!(containers(v1::ContainerFilter { pod_sandbox_id, ..Default::default() }).await?, [in_two]);
    Ok(())
}

async fn the_same_pod_asked_for_twice_is_one_pod(node: &mut Node) -> Outcome {
    let first = node.run_pod(pod("same")).await?;
    // Whether a retry after the answer joins or is refused is not the point; that it makes no second pod is.
    match node.run_pod(pod("same")).await {
        Ok(second) => assert_eq!(second.id, first.id),
        Err(status) => assert_eq!(status.code(), tonic::Code::AlreadyExists, "{status}"),
    }
    assert_eq!(node.pods().await?.len(), 1);

    let id = node.run(&first, container("main", &["pause"])).await?;
    match node.create(&first, container("main", &["pause"])).await {
        Ok(second) => assert_eq!(second, id),
        Err(status) => assert_eq!(status.code(), tonic::Code::AlreadyExists, "{status}"),
    }
    assert_eq!(node.containers().await?.len(), 1);
    Ok(())
}

async fn pods_at_once_do_not_disturb_each_other(node: &mut Node) -> Outcome {
    const PODS: usize = 20;
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..PODS {
        let mut runtime = node.runtime.clone();
        let mut config = pod(&format!("p{number}"));
        config.log_directory = node.directory.join(format!("logs/p{number}")).display().to_string();
        make_log_directory(&config, &container("main", &[]));
        tasks.spawn(async move {
            let request = v1::RunPodSandboxRequest { config: Some(config.clone()), ..Default::default() };
            let id = runtime.run_pod_sandbox(request).await?.into_inner().pod_sandbox_id;
            let request = v1::CreateContainerRequest {
                pod_sandbox_id: id.clone(),
                config: Some(container("main", &["pause"])),
                sandbox_config: Some(config.clone()),
            };
            let container_id = runtime.create_container(request).await?.into_inner().container_id;
            runtime.start_container(v1::StartContainerRequest { container_id }).await?;
            Ok::<_, tonic::Status>(Pod { id, config })
        });
    }
    let mut pods = Vec::new();
    while let Some(pod) = tasks.join_next().await {
        pods.push(pod??);
    }
    let containers = node.containers().await?;
    assert_eq!(containers.len(), PODS);
    assert!(containers.iter().all(|c| c.state() == ContainerState::ContainerRunning));
    let mut addresses = std::collections::BTreeSet::new();
    for pod in &pods {
        addresses.insert(node.address(pod).await?);
    }
    assert_eq!(addresses.len(), PODS, "no address is given twice");

    let mut tasks = tokio::task::JoinSet::new();
    for pod in pods {
        let mut runtime = node.runtime.clone();
        tasks.spawn(async move {
            runtime.stop_pod_sandbox(v1::StopPodSandboxRequest { pod_sandbox_id: pod.id.clone() }).await?;
            runtime.remove_pod_sandbox(v1::RemovePodSandboxRequest { pod_sandbox_id: pod.id }).await?;
            Ok::<_, tonic::Status>(())
        });
    }
    while let Some(outcome) = tasks.join_next().await {
        outcome??;
    }
    assert_eq!(node.pods().await?, []);
    Ok(())
}

async fn a_container_runs_again_under_the_next_attempt(node: &mut Node) -> Outcome {
    let pod = node.run_pod(pod("again")).await?;
    let mut last = 0;
    for attempt in 0..3 {
        let mut config = container("main", &["exit", "1"]);
        config.metadata.get_or_insert_default().attempt = attempt;
        config.log_path = format!("main/{attempt}.log");
        let status = node.run_to_end(&pod, config).await?;
        assert!(status.created_at > last, "kubelet takes the latest for the current one");
        last = status.created_at;
    }
    assert_eq!(node.containers().await?.len(), 3);
    Ok(())
}
