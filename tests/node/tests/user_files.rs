//! Files in pods with a user namespace: those of images, of volumes and of the pod, seen from both sides.

use crate::users::{FIRST, in_pod, info, output, owner, range, run, user_pod, volume};
use knarr_cri_api::v1;
use knarr_node_tests::images::{TOOL_BYTES, image_with};
use knarr_node_tests::node::Node;
use knarr_node_tests::requests::{Mode, container, int, mount, security, security_of_pod};
use knarr_node_tests::{Outcome, tests};
use serde_json::json;
use std::fs;
use std::os::unix::fs::chown;
use std::path::PathBuf;
use std::process::Command;

tests![
    what_it_writes_belongs_to_its_ids,
    volumes_are_mapped_as_kubelet_asks,
    a_host_mount_shows_in_a_mapped_volume,
    the_pods_own_files_are_its_roots,
    an_image_with_more_ids_than_the_pod_starts,
    a_programs_capabilities_are_the_pods,
];

async fn writable_layer(node: &mut Node, id: &str) -> Outcome<PathBuf> {
    let layer = info(node, id, "writableLayer").await?;
    Ok(PathBuf::from(layer.as_str().ok_or("no writable layer")?).join("upper"))
}

async fn what_it_writes_belongs_to_its_ids(node: &mut Node) -> Outcome {
    let pod = node.run_pod(user_pod("files", FIRST)).await?;
    let words = [
        "stat",
        "/",
        ",",
        "stat",
        "/bin/tool",
        ",",
        "write",
        "/note",
        "x",
        ",",
        "stat",
        "/note",
        ",",
        "append",
        "/etc/passwd",
        "x:x:9:9::/:/\n",
        ",",
        "stat",
        "/etc/passwd",
        ",",
        "try",
        "chown",
        "/note",
        "1000",
        "1001",
        ",",
        "stat",
        "/note",
        ",",
        "pause",
    ];
    let id = run(node, &pod, container("main", &words)).await?;
    node.wait_for_log(&id, "1000:1001").await?;
    let lines: Vec<String> = node.log(&id).await?.into_iter().map(|l| l.text).collect();
    let of_root = |kind: &str, mode: &str| format!("{kind} {mode} 0:0 0:0");
    let wanted = [
        of_root("dir", "0755"),
        of_root("file", "0755"),
        of_root("file", "0644"),
        of_root("file", "0644"),
        "ok".into(),
        "file 0644 1000:1001 0:0".into(),
    ];
    assert_eq!(lines, wanted);
    let layer = writable_layer(node, &id).await?;
    assert_eq!(owner(&layer)?, (FIRST, FIRST));
    assert_eq!(owner(layer.join("note"))?, (FIRST + 1000, FIRST + 1001));
    assert_eq!(owner(layer.join("etc/passwd"))?, (FIRST, FIRST), "what was changed was copied up for its root");
    // The image itself is as it was, for pods of every kind.
    let plain = node.run_pod(knarr_node_tests::requests::pod("plain")).await?;
    assert_eq!(node.output_of(&plain, container("main", &["stat", "/etc/passwd"])).await?, "file 0644 0:0 0:0\n");
    node.remove_container(&id).await?;
    assert!(!layer.exists());
    Ok(())
}

async fn volumes_are_mapped_as_kubelet_asks(node: &mut Node) -> Outcome {
    let (mapped, plain) = (volume(node, "mapped")?, volume(node, "plain")?);
    fs::write(mapped.join("secret"), "root's")?;
    fs::set_permissions(mapped.join("secret"), std::os::unix::fs::PermissionsExt::from_mode(0o400))?;
    fs::write(plain.join("secret"), "the host's")?;
    fs::set_permissions(plain.join("secret"), std::os::unix::fs::PermissionsExt::from_mode(0o400))?;
    let tmpfs = volume(node, "tmpfs")?;
    let mounted = Command::new("mount").args(["-t", "tmpfs", "tmpfs"]).arg(&tmpfs).status()?;
    assert!(mounted.success());
    fs::write(tmpfs.join("token"), "token")?;

    let pod = node.run_pod(user_pod("volumes", FIRST)).await?;
    let words = [
        "cat",
        "/mapped/secret",
        "/tmpfs/token",
        ",",
        "print",
        ",",
        "write",
        "/mapped/new",
        "x",
        ",",
        "stat",
        "/mapped/new",
        ",",
        "try",
        "read",
        "/plain/secret",
        ",",
        "try",
        "create",
        "/plain/new",
        ",",
        "stat",
        "/plain/secret",
    ];
    let mut config = container("main", &words);
    config.mounts = vec![mount(&mapped, "/mapped"), mount(&tmpfs, "/tmpfs")];
    let mut config = in_pod(&pod.config, config);
    config.mounts.push(mount(&plain, "/plain"));
    let output = node.output_of(&pod, config).await?;
    let wanted = "root'stoken\nfile 0644 0:0 0:0\nEACCES\nEACCES\nfile 0400 65534:65534 0:0\n";
    assert_eq!(output, wanted);
    assert_eq!(owner(mapped.join("new"))?, (0, 0), "the next pod with another range finds it as its root's");
    // Where it is not mapped, files belong to the ids that the pod has on the host.
    chown(&plain, Some(FIRST), Some(FIRST))?;
    let mut config =
        in_pod(&pod.config, container("plain", &["write", "/plain/mine", "x", ",", "stat", "/plain/mine"]));
    config.mounts = vec![mount(&plain, "/plain")];
    assert_eq!(node.output_of(&pod, config).await?, "file 0644 0:0 0:0\n");
    assert_eq!(owner(plain.join("mine"))?, (FIRST, FIRST));

    let status = node.containers().await?;
    let id = status.iter().find(|c| c.metadata.as_ref().is_some_and(|m| m.name == "main")).ok_or("no container")?;
    let told = node.status(&id.id.clone()).await?.mounts;
    assert_eq!((told[0].uid_mappings.clone(), told[2].uid_mappings.clone()), (range(FIRST), vec![]));

    // A file system that knows no mapping is named by the path that the user wrote.
    let mut config = container("unmappable", &["pause"]);
    config.mounts = vec![mount("/proc/sys/kernel", "/kernel")];
    let id = node.create(&pod, in_pod(&pod.config, config)).await?;
    let message = node.start_container(&id).await.unwrap_err().message().to_owned();
    assert!(message.contains("/proc/sys/kernel") && message.contains("id-mapped"), "{message}");
    node.remove_pod(&pod.id).await?;
    assert!(Command::new("umount").arg(&tmpfs).status()?.success(), "the volume is free");
    Ok(())
}

async fn a_host_mount_shows_in_a_mapped_volume(node: &mut Node) -> Outcome {
    let shared = volume(node, "shared")?;
    let run_host = |command: &str, words: &[&str]| -> Outcome {
        let done = Command::new(command).args(words).arg(&shared).status()?;
        if done.success() { Ok(()) } else { Err(format!("{command}: {done}").into()) }
    };
    run_host("mount", &["-t", "tmpfs", "tmpfs"])?;
    run_host("mount", &["--make-shared"])?;
    let pod = node.run_pod(user_pod("shared", FIRST)).await?;
    let mut config = container("main", &["await", "/shared/late/file", ",", "print", "seen", ",", "pause"]);
    config.mounts = vec![v1::Mount {
        propagation: v1::MountPropagation::PropagationHostToContainer.into(),
        ..mount(&shared, "/shared")
    }];
    let id = run(node, &pod, config).await?;
    let late = shared.join("late");
    fs::create_dir(&late)?;
    assert!(Command::new("mount").args(["-t", "tmpfs", "tmpfs"]).arg(&late).status()?.success());
    fs::write(late.join("file"), "")?;
    node.wait_for_log(&id, "seen").await?;
    node.remove_pod(&pod.id).await?;
    assert!(late.join("file").exists(), "nothing of the host was unmounted");
    run_host("umount", &["-R"])
}

async fn the_pods_own_files_are_its_roots(node: &mut Node) -> Outcome {
    let pod = node.run_pod(user_pod("own", FIRST)).await?;
    let words = [
        "stat",
        "/etc/hosts",
        ",",
        "stat",
        "/etc/resolv.conf",
        ",",
        "stat",
        "/etc/hostname",
        ",",
        "stat",
        "/dev/shm",
        ",",
        "stat",
        "/dev/null",
        ",",
        "write",
        "/dev/null",
        "x",
        ",",
        "cat",
        "/etc/hostname",
        ",",
        "hostname",
        ",",
        "write",
        "/dev/shm/a",
        "x",
        ",",
        "try",
        "write",
        "/proc/sys/kernel/shmmax",
        ",",
        "ls",
        "/proc/acpi",
        ",",
        "cat",
        "/proc/sys/net/ipv4/ip_unprivileged_port_start",
        ",",
        "cat",
        "/proc/sys/net/ipv4/ping_group_range",
    ];
    let output = output(node, &pod, container("main", &words)).await?;
    let file = "file 0644 0:0 0:0\n";
    let wanted = format!("{file}{file}{file}dir 1777 0:0 0:0\nchar 0666 0:0 1:3\nown\nown\nEROFS\n0\n0\t65535\n");
    assert_eq!(output, wanted);
    Ok(())
}

/// Ids that the pod does not have are nobody's in it; the rest of the image is not hindered.
async fn an_image_with_more_ids_than_the_pod_starts(node: &mut Node) -> Outcome {
    let mut config = user_pod("small", FIRST);
    let options = security_of_pod(&mut config).namespace_options.get_or_insert_default();
    let few = vec![v1::IdMapping { host_id: FIRST, container_id: 0, length: 3 }];
    options.userns_options = Some(v1::UserNamespace { mode: Mode::Pod.into(), uids: few.clone(), gids: few });
    let pod = node.run_pod(config).await?;
    let words = [
        "id",
        ",",
        "stat",
        "/dev/pts",
        ",",
        "try",
        "chown",
        "/etc/passwd",
        "3",
        "3",
        ",",
        "try",
        "chown",
        "/etc/passwd",
        "2",
        "2",
    ];
    let output = output(node, &pod, container("main", &words)).await?;
    assert_eq!(output, "uid=0 gid=0 groups=0\ndir 0755 0:0 0:0\nEINVAL\nok\n");
    Ok(())
}

/// The one file below a directory that ends in these words.
fn find(directory: &std::path::Path, end: &str) -> Option<PathBuf> {
    for entry in fs::read_dir(directory).ok()?.flatten() {
        let path = entry.path();
        if path.ends_with(end) {
            return Some(path);
        }
        if entry.file_type().is_ok_and(|kind| kind.is_dir())
            && let Some(found) = find(&path, end)
        {
            return Some(found);
        }
    }
    None
}

/// An image's files may have capabilities (ping): they are good for the pod whose files they then are.
async fn a_programs_capabilities_are_the_pods(node: &mut Node) -> Outcome {
    const NET_RAW: u32 = 1 << 13;
    let image = image_with(json!({}), &[("bin/able", 0o755, TOOL_BYTES)]);
    node.import(&[("localhost/able:latest", &image)]).await?;
    let able = find(&node.root, "bin/able").ok_or("no such file in any layer")?;
    // struct vfs_cap_data of version 2: effective, permitted and inheritable, low and high.
    let words = [0x0200_0001_u32, NET_RAW, 0, 0, 0].map(u32::to_le_bytes);
    rustix::fs::setxattr(&able, "security.capability", &words.concat(), rustix::fs::XattrFlags::empty())?;
    let pod = node.run_pod(user_pod("able", FIRST)).await?;
    let mut config = container("main", &["status", "CapEff", ",", "try", "raw-socket"]);
    config.image.get_or_insert_default().image = "localhost/able:latest".into();
    config.command = vec!["/bin/able".into()];
    security(&mut config).run_as_user = int(1000);
    assert_eq!(output(node, &pod, config).await?, "CapEff:\t0000000000002000\nok\n");
    Ok(())
}
