//! Volumes that are images: what a container sees of them, and what becomes of the image meanwhile.

use crate::images::{Registry, pull};
use knarr_cri_api::v1::{ContainerConfig, ImageSpec, ListImagesRequest, Mount, RemoveImageRequest};
use knarr_node_tests::images::{TOOL_BYTES, image_with};
use knarr_node_tests::node::Node;
use knarr_node_tests::requests::{container, pod};
use knarr_node_tests::{Outcome, eventually, refused, tests};
use knarr_testkit::image::{Image, Layer, tar_of_links, tar_with};
use serde_json::json;
use std::fs;
use std::time::Duration;
use tonic::Code;

tests![
    an_image_is_a_volume_as_a_whole_and_by_its_folders,
    a_folder_stays_within_its_image,
    programs_run_from_an_image,
    what_layers_delete_is_not_in_the_volume,
    nothing_is_mounted_on_the_host,
    an_image_stays_as_long_as_a_container_has_it_as_a_volume,
    an_image_stays_for_a_container_that_an_older_daemon_created,
    an_image_that_is_not_there_is_kubelets_to_count,
    an_artifact_is_a_volume_with_its_files,
];

const MODELS: &str = "localhost/models:1";

/// Files and a program, in two layers.
fn models() -> Image {
    let files: &[(&str, u32, &[u8])] =
        &[("models/small/weights", 0o644, b"1 2 3"), ("models/tool", 0o755, TOOL_BYTES), ("top", 0o600, b"top")];
    image_with(json!({}), files)
}

fn volume(image: &str, container_path: &str, image_sub_path: &str) -> Mount {
    Mount {
        container_path: container_path.into(),
        image: Some(ImageSpec { image: image.into(), ..Default::default() }),
        image_sub_path: image_sub_path.into(),
        readonly: true,
        ..Default::default()
    }
}

fn with(name: &str, words: &[&str], mounts: Vec<Mount>) -> ContainerConfig {
    ContainerConfig { mounts, ..container(name, words) }
}

async fn an_image_is_a_volume_as_a_whole_and_by_its_folders(node: &mut Node) -> Outcome {
    let image = models();
    node.import(&[(MODELS, &image)]).await?;
    let pod = node.run_pod(pod("image")).await?;
    let words = ["cat", "/whole/models/small/weights", "/part/weights", "/again/weights", ",", "pause"];
    // One volume within another, and one image three times.
    let mounts = vec![
        volume(MODELS, "/whole", ""),
        volume(MODELS, "/part", "models/small"),
        volume(&image.id(), "/again", "./models//small/"),
    ];
    let id = node.run(&pod, with("main", &words, mounts)).await?;
    let seen = node.exec_output(&id, &words[..4]).await?;
    assert_eq!(seen, "1 2 31 2 31 2 3");
    for path in ["/whole/x", "/whole/models/small/weights", "/part/x", "/again/weights"] {
        let written = node.exec_output(&id, &["try", "create", path]).await?;
        assert_eq!(written, "EROFS\n", "{path}");
    }
    assert_eq!(node.exec_output(&id, &["try", "remount-rw", "/part"]).await?, "EPERM\n");
    assert_eq!(node.exec_output(&id, &["ls", "/part"]).await?, "weights\n");
    let told = node.status(&id).await?.mounts;
    for (mount, sub_path) in told.iter().zip(["", "models/small", "./models//small/"]) {
        let spec = mount.image.clone().unwrap_or_default();
        assert_eq!((spec.image_ref, mount.image_sub_path.as_str()), (image.id(), sub_path));
        assert!(mount.readonly && mount.host_path.is_empty(), "{mount:?}");
    }
    assert_eq!(told[0].image.as_ref().map(|spec| spec.image.as_str()), Some(MODELS));
    Ok(())
}

async fn a_folder_stays_within_its_image(node: &mut Node) -> Outcome {
    let links = [("inside", "models/small"), ("absolute", "/etc"), ("up", "../../../etc"), ("loop", "loop")];
    let mut image = models();
    image.layers.push(Layer::gzip(tar_of_links(&links)));
    let image = Image::with_config(image.layers, json!({ "config": {} }));
    node.import(&[(MODELS, &image)]).await?;
    let pod = node.run_pod(pod("folder")).await?;
    let config = with("inside", &["cat", "/data/weights"], vec![volume(MODELS, "/data", "inside")]);
    assert_eq!(node.output_of(&pod, config).await?, "1 2 3");
    for (sub_path, why) in [
        ("absolute", "leads out"),
        ("up", "leads out"),
        ("loop", "os error 40"),
        ("absent", "no such folder"),
        ("models/small/weights", "is no folder"),
    ] {
        let config = with("bad", &["pause"], vec![volume(MODELS, "/data", sub_path)]);
        let message = refused(node.create(&pod, config).await, Code::Unknown);
        assert!(message.starts_with("ImageVolumeMountFailed: config.mounts[0].image: "), "{message}");
        assert!(message.contains(why), "{sub_path}: {message}");
    }
    for sub_path in ["../etc", "/etc", "models/../../etc"] {
        let config = with("worse", &["pause"], vec![volume(MODELS, "/data", sub_path)]);
        let message = refused(node.create(&pod, config).await, Code::InvalidArgument);
        assert!(message.starts_with("config.mounts[0].image_sub_path: "), "{message}");
    }
    let writable = Mount { readonly: false, ..volume(MODELS, "/data", "") };
    let message = refused(node.create(&pod, with("rw", &["pause"], vec![writable])).await, Code::InvalidArgument);
    assert!(message.starts_with("config.mounts[0].readonly: "), "{message}");
    assert_eq!(node.containers().await?.len(), 1);
    Ok(())
}

async fn programs_run_from_an_image(node: &mut Node) -> Outcome {
    node.import(&[(MODELS, &models())]).await?;
    let pod = node.run_pod(pod("programs")).await?;
    let mut config = with("main", &["print", "from the volume"], vec![volume(MODELS, "/data", "models")]);
    config.command = vec!["/data/tool".into()];
    assert_eq!(node.output_of(&pod, config).await?, "from the volume\n");
    Ok(())
}

async fn what_layers_delete_is_not_in_the_volume(node: &mut Node) -> Outcome {
    let layer = |files: &[(&str, u32, &[u8])]| Layer::gzip(tar_with(files));
    let lower = layer(&[("keep", 0o644, b"kept"), ("gone", 0o644, b"x"), ("dir/old", 0o644, b"x")]);
    let upper = layer(&[(".wh.gone", 0o644, b""), ("dir/.wh..wh..opq", 0o644, b""), ("dir/new", 0o644, b"x")]);
    // Nothing is below the only layer, yet some builders leave such marks in it.
    let single = layer(&[("keep", 0o644, b"kept"), (".wh.gone", 0o644, b"")]);
    let two = Image::with_config(vec![lower, upper], json!({ "config": {} }));
    let one = Image::with_config(vec![single], json!({ "config": {} }));
    node.import(&[("localhost/two:1", &two), ("localhost/one:1", &one)]).await?;
    let pod = node.run_pod(pod("deleted")).await?;
    let mounts = vec![volume("localhost/two:1", "/two", ""), volume("localhost/one:1", "/one", "")];
    let words = ["ls", "/two", ",", "ls", "/two/dir", ",", "ls", "/one", ",", "print", "end"];
    let output = node.output_of(&pod, with("main", &words, mounts)).await?;
    assert_eq!(output.split_whitespace().collect::<Vec<_>>(), ["dir", "keep", "new", "keep", "end"]);
    Ok(())
}

async fn nothing_is_mounted_on_the_host(node: &mut Node) -> Outcome {
    node.import(&[(MODELS, &models())]).await?;
    let pod = node.run_pod(pod("host")).await?;
    let before = fs::read_to_string("/proc/self/mountinfo")?;
    let mounts = vec![volume(MODELS, "/whole", ""), volume(MODELS, "/part", "models")];
    let id = node.run(&pod, with("main", &["pause"], mounts)).await?;
    assert_eq!(fs::read_to_string("/proc/self/mountinfo")?, before);
    let inside = node.exec_output(&id, &["cat", "/proc/self/mountinfo"]).await?;
    for place in [" /whole ro,", " /part ro,"] {
        assert!(inside.contains(place), "{place} is not in {inside}");
    }
    Ok(())
}

/// How many layers lie in the store.
fn layers(node: &Node) -> Outcome<usize> {
    Ok(fs::read_dir(node.root.join("state/images/layers"))?.count())
}

async fn remove_image(node: &mut Node, name: &str) -> Outcome {
    let image = Some(ImageSpec { image: name.into(), ..Default::default() });
    node.images.remove_image(RemoveImageRequest { image }).await?;
    Ok(())
}

async fn layers_become(node: &Node, wanted: usize) -> Outcome {
    let what = format!("{wanted} layers are left");
    eventually(&what, Duration::from_secs(10), async || Ok((layers(node)? == wanted).then_some(()))).await
}

async fn an_image_stays_as_long_as_a_container_has_it_as_a_volume(node: &mut Node) -> Outcome {
    let pod = node.run_pod(pod("lease")).await?;
    let before = layers(node)?;
    let image = Image::with_config(vec![Layer::gzip(tar_with(&[("f", 0o644, b"here")]))], json!({ "config": {} }));
    node.import(&[(MODELS, &image)]).await?;
    let config = with("main", &["cat", "/data/f", ",", "pause"], vec![volume(MODELS, "/data", "")]);
    let id = node.create(&pod, config).await?;
    // Kubelet's collection means it: the image is listed no more, yet the container that has it starts.
    remove_image(node, MODELS).await?;
    let listed = node.images.list_images(ListImagesRequest { filter: None }).await?.into_inner().images;
    assert!(!listed.iter().any(|listed| listed.id == image.id()));
    node.start_container(&id).await?;
    node.wait_for_log(&id, "here").await?;
    assert_eq!(node.exec_output(&id, &["cat", "/data/f"]).await?, "here");
    let told = node.status(&id).await?.mounts[0].image.clone().unwrap_or_default();
    assert_eq!(told.image_ref, image.id());
    assert_eq!(layers(node)?, before + 1);
    let other = with("other", &["pause"], vec![volume(MODELS, "/data", "")]);
    refused(node.create(&pod, other).await, Code::Unknown);
    node.remove_container(&id).await?;
    layers_become(node, before).await
}

async fn an_image_stays_for_a_container_that_an_older_daemon_created(node: &mut Node) -> Outcome {
    let pod = node.run_pod(pod("restart")).await?;
    let before = layers(node)?;
    let image = Image::with_config(vec![Layer::gzip(tar_with(&[("d/f", 0o644, b"here")]))], json!({ "config": {} }));
    node.import(&[(MODELS, &image)]).await?;
    let config = with("main", &["cat", "/data/f"], vec![volume(MODELS, "/data", "d")]);
    let id = node.create(&pod, config).await?;
    node.kill().await?;
    node.start_again().await?;
    remove_image(node, MODELS).await?;
    node.start_container(&id).await?;
    assert_eq!(node.wait_exited(&id).await?.exit_code, 0);
    node.wait_for_log(&id, "here").await?;
    node.remove_pod(&pod.id).await?;
    layers_become(node, before).await
}

async fn an_image_that_is_not_there_is_kubelets_to_count(node: &mut Node) -> Outcome {
    node.import(&[(MODELS, &models())]).await?;
    let pod = node.run_pod(pod("absent")).await?;
    let mounts = vec![volume(MODELS, "/here", ""), volume("localhost/absent:1", "/absent", "")];
    let message = refused(node.create(&pod, with("main", &["pause"], mounts)).await, Code::Unknown);
    assert!(message.starts_with("ImageVolumeMountFailed: config.mounts[1].image: "), "{message}");
    assert!(message.contains("localhost/absent:1"), "{message}");
    assert_eq!(node.containers().await?.len(), 0);
    // A request that failed holds nothing.
    let before = layers(node)?;
    remove_image(node, MODELS).await?;
    layers_become(node, before - 1).await
}

async fn an_artifact_is_a_volume_with_its_files(node: &mut Node) -> Outcome {
    let registry = Registry::start(node).await?;
    let artifact = Image::artifact(&[("model/weights.bin", b"1 2 3"), ("README", b"read me")]);
    let name = registry.push("models/tiny", "1", &artifact)?;
    let id = pull(node, &name).await?;
    assert_eq!(id, artifact.digest(), "what it is called in kubelet's requests");
    let pod = node.run_pod(pod("artifact")).await?;
    let words = [
        "cat",
        "/all/model/weights.bin",
        "/part/weights.bin",
        ",",
        "stat",
        "/all/README",
        ",",
        "try",
        "create",
        "/all/x",
    ];
    let mounts = vec![volume(&id, "/all", ""), volume(&name, "/part", "model")];
    let output = node.output_of(&pod, with("main", &words, mounts)).await?;
    assert_eq!(output, "1 2 31 2 3file 0644 0:0 0:0\nEROFS\n");
    let mut config = container("run", &["pause"]);
    config.image.get_or_insert_default().image = id;
    let message = refused(node.create(&pod, config).await, Code::FailedPrecondition);
    assert!(message.starts_with("config.image.image: "), "{message}");
    Ok(())
}
