//! Volumes: what a container sees of them, and what the host sees of the container.

use knarr_cri_api::v1::{Mount, MountPropagation};
use knarr_node_tests::images::image_with;
use knarr_node_tests::node::Node;
use knarr_node_tests::requests::{container, mount, pod, security, security_of_pod};
use knarr_node_tests::{Outcome, eventually, tests};
use serde_json::json;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

tests![
    a_volume_is_written_by_both_sides,
    a_read_only_volume_cannot_be_written,
    a_recursively_read_only_volume_has_no_writable_part,
    a_file_is_a_volume_too,
    a_link_of_the_host_is_followed_there,
    a_path_that_is_not_there_becomes_a_directory,
    a_link_in_the_image_leads_nowhere_else,
    later_volumes_lie_upon_earlier_ones,
    a_host_mount_shows_only_where_it_may,
    a_containers_mount_shows_on_the_host_only_where_it_may,
    a_host_mount_made_while_starting_is_not_lost,
    volumes_outlive_their_containers,
];

fn host(command: &str, words: &[&str]) -> Outcome {
    let output = Command::new(command).args(words).output()?;
    if !output.status.success() {
        return Err(format!("{command} {words:?}: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    Ok(())
}

/// A tmpfs that is a shared mount, as /var/lib/kubelet is on a node.
fn shared_directory(node: &Node) -> Outcome<PathBuf> {
    let directory = volume(node, "shared")?;
    let path = directory.to_str().ok_or("a plain path")?;
    host("mount", &["-t", "tmpfs", "tmpfs", path])?;
    host("mount", &["--make-shared", path])?;
    Ok(directory)
}

fn volume(node: &Node, name: &str) -> Outcome<PathBuf> {
    let directory = node.directory.join(name);
    fs::create_dir_all(&directory)?;
    Ok(directory)
}

fn mount_tmpfs(at: &Path) -> Outcome {
    fs::create_dir_all(at)?;
    host("mount", &["-t", "tmpfs", "tmpfs", at.to_str().ok_or("a plain path")?])
}

fn unmount(at: &Path) -> Outcome {
    host("umount", &["-l", at.to_str().ok_or("a plain path")?])
}

async fn a_volume_is_written_by_both_sides(node: &mut Node) -> Outcome {
    let directory = volume(node, "data")?;
    fs::write(directory.join("question"), "why")?;
    let pod = node.run_pod(pod("volume")).await?;
    let mut config = container("main", &["cat", "/data/question", ",", "write", "/data/answer", "because"]);
    config.mounts = vec![mount(&directory, "/data")];
    assert_eq!(node.output_of(&pod, config).await?, "why");
    assert_eq!(fs::read_to_string(directory.join("answer"))?, "because");
    Ok(())
}

async fn a_read_only_volume_cannot_be_written(node: &mut Node) -> Outcome {
    let directory = volume(node, "data")?;
    let pod = node.run_pod(pod("read-only")).await?;
    let mut config = container("main", &["try", "create", "/data/x", ",", "try", "remount-rw", "/data"]);
    config.mounts = vec![Mount { readonly: true, ..mount(&directory, "/data") }];
    let output = node.output_of(&pod, config).await?;
    assert_eq!(output, "EROFS\nEPERM\n");
    Ok(())
}

async fn a_recursively_read_only_volume_has_no_writable_part(node: &mut Node) -> Outcome {
    let directory = volume(node, "data")?;
    mount_tmpfs(&directory.join("below"))?;
    let pod = node.run_pod(pod("recursive")).await?;
    let words = ["try", "create", "/data/x", ",", "try", "create", "/data/below/x"];
    let mut config = container("top", &words);
    config.mounts = vec![Mount { readonly: true, ..mount(&directory, "/data") }];
    assert_eq!(node.output_of(&pod, config).await?, "EROFS\nok\n", "only the top is read-only");
    let mut config = container("all", &words);
    config.mounts = vec![Mount { readonly: true, recursive_read_only: true, ..mount(&directory, "/data") }];
    assert_eq!(node.output_of(&pod, config).await?, "EROFS\nEROFS\n");
    unmount(&directory.join("below"))
}

async fn a_file_is_a_volume_too(node: &mut Node) -> Outcome {
    let file = volume(node, "data")?.join("hosts");
    fs::write(&file, "127.0.0.1 here\n")?;
    let pod = node.run_pod(pod("file")).await?;
    let mut config =
        container("main", &["cat", "/etc/hosts", ",", "cat", "/new/place/hosts", ",", "append", "/etc/hosts", "x"]);
    config.mounts = vec![mount(&file, "/etc/hosts"), mount(&file, "/new/place/hosts")];
    assert_eq!(node.output_of(&pod, config).await?, "127.0.0.1 here\n127.0.0.1 here\n");
    assert_eq!(fs::read_to_string(&file)?, "127.0.0.1 here\nx");
    Ok(())
}

async fn a_link_of_the_host_is_followed_there(node: &mut Node) -> Outcome {
    let directory = volume(node, "data")?;
    fs::write(directory.join("f"), "found")?;
    symlink(&directory, node.directory.join("link"))?;
    let pod = node.run_pod(pod("link")).await?;
    let mut config = container("main", &["cat", "/data/f"]);
    config.mounts = vec![mount(node.directory.join("link"), "/data")];
    assert_eq!(node.output_of(&pod, config).await?, "found");
    Ok(())
}

async fn a_path_that_is_not_there_becomes_a_directory(node: &mut Node) -> Outcome {
    let absent = node.directory.join("not/there");
    let pod = node.run_pod(pod("absent")).await?;
    let mut config = container("main", &["write", "/data/f", "x"]);
    config.mounts = vec![mount(&absent, "/data")];
    node.output_of(&pod, config).await?;
    assert_eq!(fs::read_to_string(absent.join("f"))?, "x");
    Ok(())
}

/// Links to the host's directories that an image holds must mean the container's own.
async fn a_link_in_the_image_leads_nowhere_else(node: &mut Node) -> Outcome {
    let trap = volume(node, "trap")?;
    let data = volume(node, "data")?;
    fs::write(data.join("f"), "volume")?;
    // The testkit writes files only; the links are made by a first container in a volume that stands for the image.
    let image = image_with(json!({}), &[("placeholder", 0o644, b"x")]);
    node.import(&[("localhost/trap:1", &image)]).await?;
    let links = volume(node, "links")?;
    symlink(&trap, links.join("absolute"))?;
    symlink("../../../../../../../../../../..", links.join("upwards"))?;
    let pod = node.run_pod(pod("trap")).await?;
    let inside = trap.display().to_string();
    for (name, target) in [("a", "/links/absolute/v".to_owned()), ("b", format!("/links/upwards{inside}/v"))] {
        let mut config = container(name, &["cat", &format!("{inside}/v/f")]);
        config.mounts = vec![mount(&links, "/links"), mount(&data, &target)];
        assert_eq!(node.output_of(&pod, config).await?, "volume", "{target}");
    }
    assert_eq!(fs::read_dir(&trap)?.count(), 0, "nothing was made on the host");
    Ok(())
}

async fn later_volumes_lie_upon_earlier_ones(node: &mut Node) -> Outcome {
    let (outer, inner) = (volume(node, "outer")?, volume(node, "inner")?);
    fs::write(outer.join("f"), "outer ")?;
    fs::write(inner.join("f"), "inner")?;
    let pod = node.run_pod(pod("order")).await?;
    let mut config = container("main", &["cat", "/data/f", "/data/below/f"]);
    config.mounts = vec![mount(&outer, "/data"), mount(&inner, "/data/below")];
    assert_eq!(node.output_of(&pod, config).await?, "outer inner");
    Ok(())
}

async fn a_host_mount_shows_only_where_it_may(node: &mut Node) -> Outcome {
    let shared = shared_directory(node)?;
    let pod = node.run_pod(pod("slave")).await?;
    let mut config = container("main", &["pause"]);
    let slave = MountPropagation::PropagationHostToContainer.into();
    config.mounts = vec![
        Mount { container_path: "/private".into(), ..mount(&shared, "") },
        Mount { container_path: "/slave".into(), propagation: slave, ..mount(&shared, "") },
    ];
    let id = node.run(&pod, config).await?;
    mount_tmpfs(&shared.join("late"))?;
    fs::write(shared.join("late/f"), "seen")?;
    assert_eq!(node.exec_output(&id, &["cat", "/slave/late/f"]).await?, "seen");
    assert_eq!(node.exec_output(&id, &["try", "read", "/private/late/f"]).await?, "ENOENT\n");
    unmount(&shared.join("late"))?;
    assert_eq!(node.exec_output(&id, &["try", "read", "/slave/late/f"]).await?, "ENOENT\n");
    node.remove_pod(&pod.id).await?;
    unmount(&shared)
}

async fn a_containers_mount_shows_on_the_host_only_where_it_may(node: &mut Node) -> Outcome {
    let shared = shared_directory(node)?;
    for name in ["one", "two"] {
        fs::create_dir(shared.join(name))?;
    }
    let mut config = pod("shared");
    security_of_pod(&mut config).privileged = true;
    let pod = node.run_pod(config).await?;
    let mut config = container("main", &["pause"]);
    security(&mut config).privileged = true;
    let both = MountPropagation::PropagationBidirectional.into();
    let slave = MountPropagation::PropagationHostToContainer.into();
    config.mounts = vec![
        Mount { container_path: "/both".into(), propagation: both, ..mount(&shared, "") },
        Mount { container_path: "/slave".into(), propagation: slave, ..mount(&shared, "") },
    ];
    let id = node.run(&pod, config).await?;
    let made = ["try", "tmpfs", "/both/one", ",", "write", "/both/one/f", "x", ",", "try", "tmpfs", "/slave/two"];
    assert_eq!(node.exec_output(&id, &made).await?, "ok\nok\n");
    assert_eq!(fs::read_to_string(shared.join("one/f"))?, "x");
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    assert!(!mounts.contains(&format!(" {}/two ", shared.display())), "a slave's mount stays in the container");
    // The end of the container must not take the host's mounts with it.
    node.stop_container(&id, 0).await?;
    node.remove_container(&id).await?;
    assert_eq!(fs::read_to_string(shared.join("one/f"))?, "x");
    node.remove_pod(&pod.id).await?;
    unmount(&shared.join("one"))?;
    unmount(&shared)
}

/// Mounts are made all the time while containers start; each must be seen once the container runs.
async fn a_host_mount_made_while_starting_is_not_lost(node: &mut Node) -> Outcome {
    const ROUNDS: usize = 20;
    let shared = shared_directory(node)?;
    let pod = node.run_pod(pod("race")).await?;
    let slave = MountPropagation::PropagationHostToContainer.into();
    for round in 0..ROUNDS {
        let mut config = container(&format!("c{round}"), &["pause"]);
        config.mounts = vec![Mount { container_path: "/slave".into(), propagation: slave, ..mount(&shared, "") }];
        let id = node.create(&pod, config).await?;
        let mut runtime = node.runtime.clone();
        let request = knarr_cri_api::v1::StartContainerRequest { container_id: id.clone() };
        let starting = tokio::spawn(async move { runtime.start_container(request).await });
        tokio::time::sleep(Duration::from_micros(300 * round as u64)).await;
        let at = shared.join(format!("m{round}"));
        mount_tmpfs(&at)?;
        fs::write(at.join("f"), "seen")?;
        starting.await??;
        let path = format!("/slave/m{round}/f");
        assert_eq!(node.exec_output(&id, &["cat", &path]).await?, "seen", "round {round}");
        node.remove_container(&id).await?;
        unmount(&at)?;
    }
    node.remove_pod(&pod.id).await?;
    unmount(&shared)
}

async fn volumes_outlive_their_containers(node: &mut Node) -> Outcome {
    let directory = volume(node, "data")?;
    let pod = node.run_pod(pod("outlive")).await?;
    for name in ["one", "two"] {
        let mut config = container(name, &["append", "/data/f", name]);
        config.mounts = vec![mount(&directory, "/data")];
        let status = node.run_to_end(&pod, config).await?;
        node.remove_container(&status.id).await?;
    }
    node.remove_pod(&pod.id).await?;
    let content = eventually("the volume is there", Duration::from_secs(1), async || {
        Ok(Some(fs::read_to_string(directory.join("f"))?))
    })
    .await?;
    assert_eq!(content, "onetwo");
    Ok(())
}
