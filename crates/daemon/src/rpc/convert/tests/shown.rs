//! What comes back of a request in List and Status.

use super::*;

pub(super) fn view() -> PodView {
    let container = ContainerView {
        id: ContainerId::from_bytes(&[0xcd; 32]),
        spec: Arc::new(spec()),
        resolved: Resolved {
            image_id: "sha256:0f2ac4".into(),
            uid: 1000,
            gid: 2000,
            groups: vec![2000, 3000],
            volume_images: Vec::new(),
            stop_signal: 3,
        },
        resources: spec().resources,
        created_at: 11,
        state: ContainerState::Exited {
            started_at: 12,
            finished_at: 13,
            code: 137,
            reason: Reason::OomKilled,
            message: String::new(),
        },
    };
    PodView {
        id: PodId::from_bytes(&[0xab; 32]),
        spec: Arc::new(pod()),
        created_at: 10,
        ready: true,
        hidden: false,
        network: PodNetwork { ips: vec!["10.1.0.5".parse().unwrap(), "fd00::5".parse().unwrap()] },
        resources: PodResources::default(),
        containers: vec![container],
    }
}

#[test]
fn a_status_says_what_was_asked_for() {
    let view = view();
    let config = pod_config();
    let status = pod_sandbox_status(&view);
    assert_eq!(status.metadata, config.metadata);
    assert_eq!(status.labels, config.labels);
    assert_eq!(status.annotations, config.annotations);
    assert_eq!(status.state, v1::PodSandboxState::SandboxReady as i32);
    let options = status.linux.unwrap().namespaces.unwrap().options.unwrap();
    assert_eq!(options, modes(Mode::Pod, Mode::Container, Mode::Pod));
    let network = status.network.unwrap();
    assert_eq!(network.ip, "10.1.0.5");
    assert_eq!(network.additional_ips, [v1::PodIp { ip: "fd00::5".into() }]);

    let config = container_config();
    let status = container_status(&view, &view.containers[0], "");
    assert_eq!(status.metadata, config.metadata);
    assert_eq!(status.labels, config.labels);
    assert_eq!(status.annotations, config.annotations);
    assert_eq!(status.mounts, config.mounts);
    assert_eq!(status.log_path, "/var/log/pods/default_web-0_6f1ed0a5/nginx/2.log");
    assert_eq!(status.resources.unwrap().linux, config.linux.unwrap().resources);
    assert_eq!(status.stop_signal, config.stop_signal);
    assert_eq!((status.started_at, status.finished_at, status.exit_code), (12, 13, 137));
    assert_eq!(status.reason, "OOMKilled");
    assert_eq!((status.image_id.as_str(), status.image_ref.as_str()), ("sha256:0f2ac4", "sha256:0f2ac4"));
    assert_eq!(status.image.unwrap().image, "nginx:1.27");
    let user = status.user.unwrap().linux.unwrap();
    assert_eq!((user.uid, user.gid, user.supplemental_groups), (1000, 2000, vec![2000, 3000]));

    let listed = container(&view.id, &view.containers[0]);
    assert_eq!(listed.pod_sandbox_id, "ab".repeat(32));
    assert_eq!(listed.state, v1::ContainerState::ContainerExited as i32);
    assert_eq!(listed.image_id, "sha256:0f2ac4");
    assert_eq!(pod_sandbox(&view).id, "ab".repeat(32));
}

#[test]
fn a_pod_on_the_hosts_network_says_so() {
    let mut config = pod_config();
    *pod_modes(&mut config) = modes(Mode::Node, Mode::Node, Mode::Node);
    linux_pod(&mut config).sysctls.clear();
    let spec = Arc::new(pod_spec(config, "").unwrap());
    let view = PodView { spec, network: PodNetwork::default(), ..view() };
    let status = pod_sandbox_status(&view);
    let options = status.linux.unwrap().namespaces.unwrap().options.unwrap();
    assert_eq!(options, modes(Mode::Node, Mode::Node, Mode::Node));
    assert_eq!(status.network.unwrap().ip, "");
}

#[test]
fn every_condition_of_a_filter_must_hold() {
    let view = view();
    let pods = |filter| PodFilter::parse(Some(filter)).unwrap().matches(&view);
    let filter = v1::PodSandboxFilter {
        id: "abab".into(),
        state: Some(v1::PodSandboxStateValue { state: 0 }),
        label_selector: pairs(&[("io.kubernetes.pod.name", "web-0")]),
    };
    assert!(PodFilter::parse(None).unwrap().matches(&view));
    assert!(pods(filter.clone()));
    assert!(!pods(v1::PodSandboxFilter { id: "abac".into(), ..filter.clone() }));
    assert!(!pods(v1::PodSandboxFilter { state: Some(v1::PodSandboxStateValue { state: 1 }), ..filter.clone() }));
    assert!(!pods(v1::PodSandboxFilter {
        label_selector: pairs(&[("io.kubernetes.pod.name", "x")]),
        ..filter.clone()
    }));
    assert!(!pods(v1::PodSandboxFilter { label_selector: pairs(&[("x", "")]), ..filter }));
    assert!(!PodFilter::default().matches(&PodView { hidden: true, ..view.clone() }));

    let containers = |filter| ContainerFilter::parse(Some(filter)).unwrap().matches(&view, &view.containers[0]);
    let filter = v1::ContainerFilter {
        id: "cd".repeat(32),
        state: Some(v1::ContainerStateValue { state: 2 }),
        pod_sandbox_id: "ab".into(),
        label_selector: HashMap::new(),
    };
    assert!(containers(filter.clone()));
    assert!(!containers(v1::ContainerFilter { pod_sandbox_id: "cd".into(), ..filter.clone() }));
    assert!(!containers(v1::ContainerFilter { id: "ab".into(), ..filter.clone() }));
    assert!(!containers(v1::ContainerFilter { state: Some(v1::ContainerStateValue { state: 1 }), ..filter.clone() }));
    let bad = v1::ContainerFilter { state: Some(v1::ContainerStateValue { state: 9 }), ..filter };
    assert!(ContainerFilter::parse(Some(bad)).is_err());
}

#[test]
fn a_volume_that_is_an_image_is_shown_with_the_images_id() {
    let image = |name: &str| v1::Mount {
        container_path: format!("/{name}"),
        readonly: true,
        image: Some(v1::ImageSpec { image: name.into(), ..Default::default() }),
        image_sub_path: "a/b".into(),
        ..Default::default()
    };
    let mut config = container_config();
    config.mounts.insert(0, image("one"));
    config.mounts.push(image("two"));
    let view = view();
    let mut container = view.containers[0].clone();
    container.spec = Arc::new(container_spec(config.clone(), &pod()).unwrap());
    container.resolved.volume_images = vec!["sha256:11".into(), "sha256:22".into()];
    let shown = container_status(&view, &container, "").mounts;
    for (place, id) in [(0, "sha256:11"), (config.mounts.len() - 1, "sha256:22")] {
        let mut expected = config.mounts[place].clone();
        expected.image.as_mut().unwrap().image_ref = id.into();
        assert_eq!(shown[place], expected);
    }
    assert!(shown[1..shown.len() - 1].iter().all(|mount| mount.image.is_none()));
}

#[test]
fn propagation_comes_back() {
    for (raw, expected) in
        [(0, Propagation::Private), (1, Propagation::HostToContainer), (2, Propagation::Bidirectional)]
    {
        let mut config = container_config();
        config.mounts[0].propagation = raw;
        let spec = container_spec(config, &pod()).unwrap();
        assert_eq!(spec.mounts[0].propagation, expected);
        let view = view();
        let container = ContainerView { spec: Arc::new(spec), ..view.containers[0].clone() };
        assert_eq!(container_status(&view, &container, "").mounts[0].propagation, raw);
    }
}
