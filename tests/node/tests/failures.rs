//! Starts that fail at every step they can: what was made before is gone afterwards. The leak oracle does the looking.

use knarr_cri_api::v1::{self, ContainerState};
use knarr_node_tests::images::image_with;
use knarr_node_tests::node::Node;
use knarr_node_tests::requests::{container, mount, pod, resources, security};
use knarr_node_tests::{Outcome, tests};
use serde_json::json;

tests![
    a_container_that_cannot_start_is_told_and_removed,
    pods_that_cannot_start_leave_their_name_free,
    hundreds_of_failed_starts_leave_nothing,
    a_volume_that_vanished_is_a_start_error,
];

type Change = fn(&mut v1::ContainerConfig);

const BROKEN: [(&str, Change); 6] = [
    ("no-program", |c| c.command = vec!["/bin/absent".into()]),
    ("no-program-in-path", |c| c.command = vec!["absent".into()]),
    ("a-directory", |c| c.command = vec!["/etc".into()]),
    ("not-executable", |c| c.command = vec!["/etc/passwd".into()]),
    ("file-under-file", |c| c.mounts = vec![mount("/tmp", "/bin/tool/below")]),
    ("no-cpu", |c| resources(c).cpuset_cpus = "4000".into()),
];

async fn a_container_that_cannot_start_is_told_and_removed(node: &mut Node) -> Outcome {
    let pod = node.run_pod(pod("broken")).await?;
    for (name, change) in BROKEN {
        let mut config = container(name, &["pause"]);
        change(&mut config);
        let id = match node.create(&pod, config).await {
            Ok(id) => id,
            Err(status) => {
                assert!(!status.message().is_empty(), "{name}");
                continue;
            }
        };
        let status = node.start_container(&id).await.expect_err(name);
        assert!(status.message().len() > 10, "{name}: {status}");
        let after = node.status(&id).await?;
        assert_eq!(after.state(), ContainerState::ContainerExited, "{name}");
        assert_eq!(after.exit_code, 128, "{name}");
        node.stop_container(&id, 1).await?;
        node.remove_container(&id).await?;
    }
    assert_eq!(node.output_of(&pod, container("good", &["print", "x"])).await?, "x\n");
    Ok(())
}

async fn pods_that_cannot_start_leave_their_name_free(node: &mut Node) -> Outcome {
    for _ in 0..5 {
        let mut config = pod("unlucky");
        config.linux.get_or_insert_default().sysctls = [("net.ipv4.no_such_thing".to_owned(), "1".to_owned())].into();
        node.run_pod(config).await.expect_err("there is no such sysctl");
    }
    assert_eq!(node.pods().await?, []);
    let pod = node.run_pod(pod("unlucky")).await?;
    node.output_of(&pod, container("main", &["print", "x"])).await?;
    Ok(())
}

async fn hundreds_of_failed_starts_leave_nothing(node: &mut Node) -> Outcome {
    const ROUNDS: usize = 200;
    let pod = node.run_pod(pod("often")).await?;
    for round in 0..ROUNDS {
        let mut config = container("main", &["pause"]);
        config.metadata.get_or_insert_default().attempt = u32::try_from(round)?;
        config.command = vec!["/bin/absent".into()];
        config.tty = round % 2 == 0;
        config.stdin = round % 3 == 0;
        let id = node.create(&pod, config).await?;
        node.start_container(&id).await.expect_err("there is no such program");
        node.remove_container(&id).await?;
    }
    Ok(())
}

async fn a_volume_that_vanished_is_a_start_error(node: &mut Node) -> Outcome {
    let directory = node.directory.join("vanishes");
    std::fs::create_dir(&directory)?;
    std::fs::write(directory.join("f"), "")?;
    node.import(&[("localhost/cwd:1", &image_with(json!({ "WorkingDir": "/made/by/the/runtime" }), &[]))]).await?;
    let pod = node.run_pod(pod("vanish")).await?;
    let mut config = container("main", &["pwd"]);
    config.image.get_or_insert_default().image = "localhost/cwd:1".into();
    security(&mut config).run_as_user = knarr_node_tests::requests::int(1000);
    config.mounts = vec![mount(directory.join("f"), "/f")];
    let id = node.create(&pod, config.clone()).await?;
    std::fs::remove_file(directory.join("f"))?;
    std::fs::remove_dir(&directory)?;
    std::fs::write(&directory, "now a file")?;
    node.start_container(&id).await.expect_err("the volume is gone");
    node.remove_container(&id).await?;
    std::fs::remove_file(&directory)?;
    config.mounts.clear();
    assert_eq!(node.output_of(&pod, config).await?, "/made/by/the/runtime\n");
    Ok(())
}
