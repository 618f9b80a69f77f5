//! Requests that are wrong: each is refused with the right code, in words that name the field, and changes nothing.

use knarr_cri_api::v1;
use knarr_node_tests::node::Node;
use knarr_node_tests::requests::{container, int, mount, pod, resources, security, security_of_pod};
use knarr_node_tests::{Outcome, TOOL, refused, tests};
use tonic::Code;

tests![
    pods_that_cannot_be,
    containers_that_cannot_be,
    things_that_are_not_there,
    execs_that_cannot_be,
    what_is_not_done_says_so,
    paths_stay_in_their_place,
];

async fn pods_that_cannot_be(node: &mut Node) -> Outcome {
    type Change = fn(&mut v1::PodSandboxConfig);
    let cases: [(&str, Change); 8] = [
        ("metadata", |c| c.metadata = None),
        ("metadata.name", |c| c.metadata.get_or_insert_default().name.clear()),
        ("run_as_group", |c| security_of_pod(c).run_as_group = int(1000)),
        ("cgroup_parent", |c| c.linux.get_or_insert_default().cgroup_parent = "/a/../../b".into()),
        ("log_directory", |c| c.log_directory = "relative/path".into()),
        ("port", |c| {
            c.port_mappings = vec![v1::PortMapping { container_port: 70_000, host_port: 1, ..Default::default() }];
        }),
        ("host_ip", |c| {
            c.port_mappings = vec![v1::PortMapping {
                container_port: 80,
                host_port: 1,
                host_ip: "nowhere".into(),
                ..Default::default()
            }];
        }),
        ("hostname", |c| c.hostname = "two words".into()),
    ];
    for (field, change) in cases {
        let mut config = pod("bad");
        change(&mut config);
        let message = refused(node.run_pod(config).await, Code::InvalidArgument);
        assert!(message.contains(field), "{field}: {message}");
    }
    let request = v1::RunPodSandboxRequest { config: Some(pod("handler")), runtime_handler: "no-such-handler".into() };
    let status = node.runtime.run_pod_sandbox(request).await.expect_err("there is no such handler");
    assert!(status.message().contains("no-such-handler"), "{status}");
    refused(node.runtime.run_pod_sandbox(v1::RunPodSandboxRequest::default()).await, Code::InvalidArgument);
    assert_eq!(node.pods().await?, []);
    Ok(())
}

async fn containers_that_cannot_be(node: &mut Node) -> Outcome {
    let pod = node.run_pod(pod("bad")).await?;
    type Change = fn(&mut v1::ContainerConfig);
    let cases: [(&str, Change); 10] = [
        ("metadata", |c| c.metadata = None),
        ("metadata.name", |c| c.metadata.get_or_insert_default().name.clear()),
        ("image", |c| c.image = None),
        ("container_path", |c| c.mounts = vec![mount("/tmp", "relative")]),
        ("host_path", |c| c.mounts = vec![mount("relative", "/data")]),
        ("capabilit", |c| {
            let add_capabilities = vec!["NO_SUCH_CAPABILITY".into()];
            security(c).capabilities = Some(v1::Capability { add_capabilities, ..Default::default() });
        }),
        ("memory_swap_limit", |c| {
            resources(c).memory_limit_in_bytes = 100 << 20;
            resources(c).memory_swap_limit_in_bytes = 50 << 20;
        }),
        ("unified", |c| resources(c).unified = [("../../x.y".to_owned(), "1".to_owned())].into()),
        ("cpuset_cpus", |c| resources(c).cpuset_cpus = "first".into()),
        ("run_as_group", |c| security(c).run_as_group = int(1000)),
    ];
    for (field, change) in cases {
        let mut config = container("bad", &["pause"]);
        change(&mut config);
        let message = refused(node.create(&pod, config).await, Code::InvalidArgument);
        assert!(message.contains(field), "{field}: {message}");
    }
    let mut config = container("bad", &["pause"]);
    config.image.get_or_insert_default().image = "localhost/no-such-image:1".into();
    refused(node.create(&pod, config).await, Code::NotFound);
    assert_eq!(node.containers().await?, []);
    Ok(())
}

async fn things_that_are_not_there(node: &mut Node) -> Outcome {
    let unknown = "f".repeat(64);
    refused(node.status(&unknown).await, Code::NotFound);
    refused(node.pod_status(&unknown).await, Code::NotFound);
    refused(node.start_container(&unknown).await, Code::NotFound);
    let request = v1::ContainerStatsRequest { container_id: unknown.clone() };
    refused(node.runtime.container_stats(request).await, Code::NotFound);
    let request = v1::ReopenContainerLogRequest { container_id: unknown.clone() };
    refused(node.runtime.reopen_container_log(request).await, Code::NotFound);
    let request = v1::UpdateContainerResourcesRequest {
        container_id: unknown.clone(),
        linux: Some(v1::LinuxContainerResources::default()),
        ..Default::default()
    };
    refused(node.runtime.update_container_resources(request).await, Code::NotFound);
    let request = v1::CreateContainerRequest {
        pod_sandbox_id: unknown,
        config: Some(container("main", &[])),
        sandbox_config: Some(pod("x")),
    };
    refused(node.runtime.create_container(request).await, Code::NotFound);
    // An image that is not there is no error but an empty answer.
    let image = Some(v1::ImageSpec { image: "localhost/nothing:1".into(), ..Default::default() });
    let response = node.images.image_status(v1::ImageStatusRequest { image: image.clone(), verbose: false }).await?;
    assert_eq!(response.into_inner().image, None);
    node.images.remove_image(v1::RemoveImageRequest { image }).await?;
    Ok(())
}

async fn execs_that_cannot_be(node: &mut Node) -> Outcome {
    let pod = node.run_pod(pod("exec")).await?;
    let id = node.run(&pod, container("main", &["pause"])).await?;
    let request = v1::ExecSyncRequest { container_id: id.clone(), cmd: vec![], timeout: 1 };
    assert!(node.runtime.exec_sync(request).await.is_err());
    let request = v1::ExecSyncRequest { container_id: id, cmd: vec![TOOL.into()], timeout: -1 };
    assert!(node.runtime.exec_sync(request).await.is_err());
    Ok(())
}

/// UNIMPLEMENTED is a message to kubelet: fall back. Anything else would be taken for a failure.
async fn what_is_not_done_says_so(node: &mut Node) -> Outcome {
    refused(node.runtime.checkpoint_container(v1::CheckpointContainerRequest::default()).await, Code::Unimplemented);
    Ok(())
}

/// A log path must not leave the log directory.
async fn paths_stay_in_their_place(node: &mut Node) -> Outcome {
    let pod = node.run_pod(pod("paths")).await?;
    for path in ["../../../escaped.log", "/etc/escaped.log"] {
        let mut config = container("main", &["print", "x"]);
        config.log_path = path.into();
        let outcome = match node.create(&pod, config).await {
            Ok(id) => node.start_container(&id).await.map(|()| id),
            Err(status) => Err(status),
        };
        if let Ok(id) = outcome {
            let log = node.status(&id).await?.log_path;
            assert!(std::path::Path::new(&log).starts_with(&pod.config.log_directory) && !log.contains(".."), "{log}");
            node.remove_container(&id).await?;
        }
    }
    assert!(!node.directory.join("escaped.log").exists());
    Ok(())
}
