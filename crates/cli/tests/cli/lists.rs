//! `ps`, `pods`, `images`, `inspect`: what is shown of a node with two pods.

use knarr_cri_api::v1::*;
use serde_json::Value;

use crate::Fixture;
use crate::fake::id;

/// Two pods with the same name in two namespaces, one of them with a container that has ended.
pub fn node() -> Fixture {
    let fixture = Fixture::new();
    let mut tables = fixture.tables.lock().unwrap();
    for (beginning, namespace, state, ip) in [
        ("aa11", "default", PodSandboxState::SandboxReady, "10.0.0.1"),
        ("aa22", "prod", PodSandboxState::SandboxNotready, ""),
    ] {
        let metadata =
            PodSandboxMetadata { name: "web".into(), uid: "u".into(), namespace: namespace.into(), attempt: 0 };
        let status = PodSandboxStatus {
            id: id(beginning),
            metadata: Some(metadata),
            state: state as i32,
            created_at: 1_700_000_000_000_000_000,
            network: Some(PodSandboxNetworkStatus {
                ip: ip.into(),
                additional_ips: vec![PodIp { ip: "fd00::1".into() }],
            }),
            labels: [("app".to_owned(), namespace.to_owned())].into(),
            ..PodSandboxStatus::default()
        };
        tables.pods.insert(id(beginning), status);
    }
    for (beginning, pod, name, state, code) in [
        ("cc11", "aa11", "app", ContainerState::ContainerRunning, 0),
        ("cc12", "aa11", "log", ContainerState::ContainerRunning, 0),
        ("cd21", "aa22", "app", ContainerState::ContainerExited, 3),
    ] {
        let image = ImageSpec { image: id("sha256:1a"), ..ImageSpec::default() };
        let status = ContainerStatus {
            id: id(beginning),
            metadata: Some(ContainerMetadata { name: name.into(), attempt: 1 }),
            state: state as i32,
            exit_code: code,
            reason: if code == 0 { String::new() } else { "Error".into() },
            created_at: 1_700_000_000_000_000_000,
            image: Some(image),
            image_id: id("sha256:1a"),
            annotations: [(
                "io.kubernetes.container.ports".to_owned(),
                "[{\"containerPort\":80,\"hostPort\":8080,\"protocol\":\"TCP\"}]".to_owned(),
            )]
            .into(),
            ..ContainerStatus::default()
        };
        tables.containers.insert(id(beginning), (id(pod), status));
    }
    tables.images.push(Image {
        id: id("sha256:1a"),
        repo_tags: vec!["registry:5000/team/app:1.2".into()],
        repo_digests: vec!["registry:5000/team/app@sha256:dddd".into()],
        size: 42_600_000,
        ..Image::default()
    });
    tables.images.push(Image { id: id("sha256:2b"), size: 5, pinned: true, ..Image::default() });
    drop(tables);
    fixture
}

/// The words of each line of a table.
fn words(text: &str) -> Vec<Vec<&str>> {
    text.lines().map(|line| line.split_whitespace().collect()).collect()
}

#[test]
fn ps_shows_what_runs_and_all_when_asked() {
    let node = node();
    let outcome = node.knarr(&["ps"]);
    assert_eq!(outcome.code, 0, "{outcome:?}");
    let lines = words(&outcome.stdout);
    assert_eq!(lines[0], ["CONTAINER", "ID", "NAME", "POD", "NAMESPACE", "IMAGE", "STATUS", "AGE", "RESTARTS"]);
    assert_eq!(lines.len(), 3, "{}", outcome.stdout);
    assert_eq!(lines[1][..6], ["cc11000000000", "app", "web", "default", "registry:5000/team/app:1.2", "Running"]);
    let all = node.knarr(&["ps", "-a", "-o", "wide"]).stdout;
    let ended = words(&all).into_iter().find(|line| line[0] == "cd21000000000").unwrap();
    assert_eq!(ended[5..7], ["Exited", "(3)"]);
    assert!(all.contains("8080->80/tcp"), "{all}");
}

#[test]
fn ps_filters_by_everything_it_shows() {
    let node = node();
    let ids = |args: &[&str]| -> Vec<String> {
        let outcome = node.knarr(&[&["ps", "-q"], args].concat());
        assert_eq!(outcome.code, 0, "{outcome:?}");
        outcome.stdout.lines().map(|line| line[..4].to_owned()).collect()
    };
    assert_eq!(ids(&["--name", "og"]), ["cc12"]);
    assert_eq!(ids(&["-a", "-n", "prod"]), ["cd21"]);
    assert_eq!(ids(&["--state", "exited"]), ["cd21"]);
    assert_eq!(ids(&["-a", "--pod", "prod/web"]), ["cd21"]);
    assert_eq!(ids(&["--pod", "aa11", "--name", "a*p"]), ["cc11"]);
    assert_eq!(ids(&["-a", "--image", "1a"]).len(), 3);
    assert!(ids(&["--label", "x=y"]).is_empty());
    assert_eq!(ids(&["--last", "1"]).len(), 1);
    let full = node.knarr(&["ps", "-q", "--no-trunc", "--name", "log"]).stdout;
    assert_eq!(full.trim(), id("cc12"));
}

#[test]
fn lists_as_json_have_the_shape_of_crictl() {
    let node = node();
    let json = |args: &[&str]| -> Value { serde_json::from_str(&node.knarr(args).stdout).unwrap() };
    let containers = json(&["ps", "-a", "-o", "json"]);
    assert_eq!(containers["containers"].as_array().unwrap().len(), 3);
    assert_eq!(containers["containers"][0]["createdAt"], "1700000000000000000");
    let pods = json(&["pods", "-o", "json"]);
    assert_eq!(pods["items"][0]["metadata"]["name"], "web");
    let images = json(&["images", "-o", "json"]);
    assert_eq!(images["images"].as_array().unwrap().len(), 2);
    let yaml = node.knarr(&["images", "--pinned", "-o", "yaml"]).stdout;
    assert!(yaml.starts_with("images:\n- id: sha256:2b"), "{yaml}");
}

#[test]
fn pods_show_addresses_and_how_many_containers_run() {
    let node = node();
    let lines = node.knarr(&["pods", "-n", "default"]).stdout;
    let lines = words(&lines);
    assert_eq!(lines[1][..6], ["aa11000000000", "web", "default", "Ready", "2/2", "10.0.0.1"]);
    let wide = node.knarr(&["pods", "-o", "wide", "-l", "app=prod"]).stdout;
    let lines = words(&wide);
    assert_eq!(lines.len(), 2, "{wide}");
    assert_eq!(lines[1][3..6], ["NotReady", "0/1", "-"]);
    assert_eq!(node.knarr(&["pods", "-q", "--state", "ready"]).stdout, "aa11000000000\n");
}

#[test]
fn images_are_shown_by_name_and_size() {
    let node = node();
    let text = node.knarr(&["images", "--digests"]).stdout;
    let lines = words(&text);
    assert_eq!(lines[1], ["<none>", "<none>", "2b00000000000", "5B"]);
    assert_eq!(lines[2], ["registry:5000/team/app", "1.2", "dddd", "1a00000000000", "42.6MB"]);
    assert_eq!(node.knarr(&["images", "team/app", "-q"]).stdout, "1a00000000000\n");
}

#[test]
fn inspect_finds_pods_containers_and_images() {
    let node = node();
    let json = |args: &[&str]| -> Value { serde_json::from_str(&node.knarr(args).stdout).unwrap() };
    let container = json(&["inspect", "log"]);
    assert_eq!(container["status"]["id"], id("cc12"));
    assert_eq!(container["info"]["pid"], 4711);
    let pod = json(&["inspect", "default/web"]);
    assert_eq!(pod["status"]["network"]["ip"], "10.0.0.1");
    assert_eq!(pod["info"]["netns"], "/run/netns/x");
    let image = json(&["inspect", "1a"]);
    assert_eq!(image["status"]["size"], "42600000");
    let both = json(&["inspect", "log", "--type", "container", "cc11"]);
    assert_eq!(both.as_array().unwrap().len(), 2);
    assert!(node.knarr(&["inspect", "-o", "yaml", "log"]).stdout.contains("\nstatus:\n"));
}

#[test]
fn what_is_missing_exits_with_3_and_what_is_ambiguous_with_2() {
    let node = node();
    let outcome = node.knarr(&["inspect", "nope"]);
    assert_eq!(outcome.code, 3);
    assert_eq!(outcome.stderr, "error: no pod, container or image has the name or id \"nope\"\n");
    let outcome = node.knarr(&["stop", "web"]);
    assert_eq!(outcome.code, 2);
    assert!(outcome.stderr.contains("aa11000000000  pod default/web (ready)\n"), "{outcome:?}");
    assert!(outcome.stderr.contains("aa22000000000  pod prod/web (not ready)\n"), "{outcome:?}");
    assert_eq!(node.knarr(&["rmi", "nope"]).code, 3);
    assert_eq!(node.knarr(&["logs", "nope"]).code, 3);
}
