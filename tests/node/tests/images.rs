//! Images: from a real registry, from archives, and what is told of them.

use knarr_cri_api::v1;
use knarr_node_tests::images::{TOOL_IMAGE, image_with, tool_image};
use knarr_node_tests::node::Node;
use knarr_node_tests::requests::{container, pod};
use knarr_node_tests::{Outcome, eventually, refused, tests};
use knarr_testkit::image::Image;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::Duration;

tests![
    an_imported_image_is_told_as_it_is,
    an_image_is_pulled_from_a_registry_and_run,
    a_pull_by_digest_has_no_tag,
    names_of_one_image_are_one_image,
    an_image_in_use_survives_its_name,
    the_same_image_pulled_by_many_is_one_image,
    what_cannot_be_pulled_says_why,
    the_file_system_of_images_is_told,
];

/// Debian's docker-registry on the loopback of the test's network namespace.
pub struct Registry {
    process: Pid,
    host: String,
}

impl Registry {
    pub async fn start(node: &Node) -> Outcome<Self> {
        let directory = node.directory.join("registry");
        std::fs::create_dir_all(&directory)?;
        let config = directory.join("config.yml");
        std::fs::write(
            &config,
            format!(
                "version: 0.1\nlog: {{ level: error }}\nstorage: {{ filesystem: {{ rootdirectory: {:?} }} }}\n\
                 http: {{ addr: '127.0.0.1:5000' }}\n",
                directory.join("data")
            ),
        )?;
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let process = Pid::from_raw(i32::try_from(child.id())?).ok_or("no process")?;
        let registry = Self { process, host: "127.0.0.1:5000".into() };
        eventually("the registry serves", Duration::from_secs(10), async || {
            Ok(TcpStream::connect(&registry.host).is_ok().then_some(()))
        })
        .await?;
        Ok(registry)
    }

    pub fn push(&self, repository: &str, tag: &str, image: &Image) -> Outcome<String> {
        for blob in image.layers.iter().map(|l| &l.blob).chain([&image.config]) {
            let upload = self.request("POST", &format!("/v2/{repository}/blobs/uploads/"), "", &[])?;
            let location = upload.lines().find_map(|l| l.strip_prefix("Location: ")).ok_or("no Location")?.trim();
            let path = location.split(&self.host).last().ok_or("no path")?;
            let and = if path.contains('?') { '&' } else { '?' };
            let path = format!("{path}{and}digest={}", knarr_testkit::image::sha256(blob));
            self.request("PUT", &path, "application/octet-stream", blob)?;
        }
        self.request("PUT", &format!("/v2/{repository}/manifests/{tag}"), &image.media_type, &image.manifest)?;
        Ok(format!("{}/{repository}:{tag}", self.host))
    }

    /// Speaks just enough HTTP to fill a registry; gives the head of the answer.
    fn request(&self, method: &str, path: &str, kind: &str, body: &[u8]) -> Outcome<String> {
        let mut stream = TcpStream::connect(&self.host)?;
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n",
            self.host,
            body.len()
        );
        stream.write_all(head.as_bytes())?;
        stream.write_all(body)?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let head = answer.split("\r\n\r\n").next().unwrap_or_default().to_owned();
        if !head.starts_with("HTTP/1.1 2") {
            return Err(format!("{method} {path}: {answer}").into());
        }
        Ok(head)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = kill_process(self.process, Signal::KILL);
    }
}

fn spec(name: &str) -> Option<v1::ImageSpec> {
    Some(v1::ImageSpec { image: name.into(), ..Default::default() })
}

pub async fn pull(node: &mut Node, name: &str) -> Result<String, tonic::Status> {
    let request = v1::PullImageRequest { image: spec(name), ..Default::default() };
    Ok(node.images.pull_image(request).await?.into_inner().image_ref)
}

async fn told(node: &mut Node, name: &str) -> Outcome<Option<v1::Image>> {
    let request = v1::ImageStatusRequest { image: spec(name), verbose: false };
    Ok(node.images.image_status(request).await?.into_inner().image)
}

async fn list(node: &mut Node) -> Outcome<Vec<v1::Image>> {
    Ok(node.images.list_images(v1::ListImagesRequest { filter: None }).await?.into_inner().images)
}

async fn remove(node: &mut Node, name: &str) -> Outcome {
    node.images.remove_image(v1::RemoveImageRequest { image: spec(name) }).await?;
    Ok(())
}

async fn an_imported_image_is_told_as_it_is(node: &mut Node) -> Outcome {
    let image = image_with(json!({ "User": "1000" }), &[]);
    node.import(&[("localhost/user:1", &image)]).await?;
    let status = told(node, "localhost/user:1").await?.ok_or("it was imported")?;
    assert_eq!(status.id, image.id());
    assert_eq!(status.repo_tags, ["localhost/user:1"]);
    assert!(status.size > 0);
    assert_eq!((status.uid.map(|u| u.value), status.username.as_str()), (Some(1000), ""));
    assert_eq!(told(node, &image.id()).await?.map(|i| i.id), Some(image.id()));
    assert_eq!(list(node).await?.len(), 2);
    Ok(())
}

async fn an_image_is_pulled_from_a_registry_and_run(node: &mut Node) -> Outcome {
    let registry = Registry::start(node).await?;
    let files: &[(&str, u32, &[u8])] = &[("data/one", 0o644, b"1"), ("data/two", 0o600, b"2")];
    let image = image_with(json!({ "Cmd": ["print", "from the registry"] }), files);
    let name = registry.push("team/app", "v1", &image)?;
    let image_ref = pull(node, &name).await?;
    assert_eq!(image_ref, image.id());
    let status = told(node, &name).await?.ok_or("it was pulled")?;
    assert_eq!(status.repo_tags, std::slice::from_ref(&name));
    assert_eq!(status.repo_digests, [format!("{}/team/app@{}", registry.host, image.digest())]);
    let pod = node.run_pod(pod("pulled")).await?;
    let mut config = container("main", &[]);
    config.image.get_or_insert_default().image = image_ref.clone();
    assert_eq!(node.output_of(&pod, config.clone()).await?, "from the registry\n");
    config.metadata.get_or_insert_default().name = "files".into();
    config.log_path = "files/0.log".into();
    config.args = ["cat", "/data/one", "/data/two", ",", "stat", "/data/two"].map(str::to_owned).to_vec();
    assert_eq!(node.output_of(&pod, config).await?, "12file 0600 0:0 0:0\n");
    Ok(())
}

async fn a_pull_by_digest_has_no_tag(node: &mut Node) -> Outcome {
    let registry = Registry::start(node).await?;
    let image = image_with(json!({}), &[("a", 0o644, b"digest")]);
    registry.push("by/digest", "v1", &image)?;
    let name = format!("{}/by/digest@{}", registry.host, image.digest());
    assert_eq!(pull(node, &name).await?, image.id());
    let status = told(node, &name).await?.ok_or("it was pulled")?;
    assert_eq!(status.repo_tags, Vec::<String>::new());
    assert_eq!(status.repo_digests, [name]);
    Ok(())
}

async fn names_of_one_image_are_one_image(node: &mut Node) -> Outcome {
    let registry = Registry::start(node).await?;
    let image = image_with(json!({}), &[("a", 0o644, b"names")]);
    let mut names = Vec::new();
    for tag in ["1", "2", "3"] {
        let name = registry.push("many/names", tag, &image)?;
        pull(node, &name).await?;
        names.push(name);
    }
    let images = list(node).await?;
    let one: Vec<_> = images.iter().filter(|i| i.id == image.id()).collect();
    assert_eq!(one.len(), 1);
    let mut tags = one[0].repo_tags.clone();
    tags.sort();
    assert_eq!(tags, names);
    remove(node, &names[0]).await?;
    assert!(!list(node).await?.iter().any(|i| i.id == image.id()), "kubelet means the image, not the name");
    Ok(())
}

async fn an_image_in_use_survives_its_name(node: &mut Node) -> Outcome {
    let pod = node.run_pod(pod("uses")).await?;
    let id = node.run(&pod, container("main", &["pause"])).await?;
    let before = node.status(&id).await?;
    // Whether removing an image that a container uses is refused or only hides it, the container must go on.
    let _ = remove(node, TOOL_IMAGE).await;
    assert_eq!(node.exec_output(&id, &["print", "still here"]).await?, "still here\n");
    let after = node.status(&id).await?;
    assert!(!after.image_ref.is_empty());
    assert_eq!(after.image_id, before.image_id);
    node.import(&[(TOOL_IMAGE, &tool_image())]).await?;
    Ok(())
}

async fn the_same_image_pulled_by_many_is_one_image(node: &mut Node) -> Outcome {
    let registry = Registry::start(node).await?;
    let block = vec![7; 1 << 20];
    let files: Vec<(String, u32)> = (0..8).map(|n| (format!("data/{n}"), 0o644)).collect();
    let files: Vec<(&str, u32, &[u8])> = files.iter().map(|(p, m)| (p.as_str(), *m, block.as_slice())).collect();
    let image = image_with(json!({}), &files);
    let name = registry.push("crowd", "1", &image)?;
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..10 {
        let mut images = node.images.clone();
        let request = v1::PullImageRequest { image: spec(&name), ..Default::default() };
        tasks.spawn(async move { images.pull_image(request).await });
    }
    while let Some(outcome) = tasks.join_next().await {
        assert_eq!(outcome??.into_inner().image_ref, image.id());
    }
    assert_eq!(list(node).await?.iter().filter(|i| i.id == image.id()).count(), 1);
    Ok(())
}

async fn what_cannot_be_pulled_says_why(node: &mut Node) -> Outcome {
    let registry = Registry::start(node).await?;
    let absent = format!("{}/no/such:image", registry.host);
    let status = pull(node, &absent).await.expect_err("there is no such image");
    assert!(status.message().contains("no/such"), "{status}");
    // Kubelet matches this prefix, and sees it only under code Unknown.
    let message = refused(pull(node, "127.0.0.1:9/nobody/listens:1").await, tonic::Code::Unknown);
    assert!(message.starts_with("RegistryUnavailable: "), "{message}");
    for bad in ["", "localhost/UPPER/case:1", "a b", "name@sha256:short", "127.0.0.1:5000/x:bad tag"] {
        refused(pull(node, bad).await, tonic::Code::InvalidArgument);
    }
    let request = Node::within(
        v1::PullImageRequest { image: spec("127.0.0.1:5000/x:1"), ..Default::default() },
        Duration::from_millis(1),
    );
    let status = node.images.pull_image(request).await.expect_err("a millisecond is too short");
    assert!([tonic::Code::DeadlineExceeded, tonic::Code::Cancelled].contains(&status.code()), "{status}");
    assert_eq!(list(node).await?.len(), 1);
    Ok(())
}

async fn the_file_system_of_images_is_told(node: &mut Node) -> Outcome {
    let info = node.images.image_fs_info(v1::ImageFsInfoRequest {}).await?.into_inner();
    let of_images = info.image_filesystems.first().ok_or("no file system")?;
    assert!(of_images.timestamp > 0);
    let mountpoint = &of_images.fs_id.as_ref().ok_or("no mount point")?.mountpoint;
    assert!(std::path::Path::new(mountpoint).is_dir(), "{mountpoint}");
    assert!(of_images.used_bytes.is_some_and(|b| b.value > 500_000), "the tool alone is larger");
    Ok(())
}
