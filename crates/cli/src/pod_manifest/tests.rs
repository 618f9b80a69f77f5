//! Whole manifests: what becomes of them, and in which words they are refused.

use knarr_cri_api::v1;

use super::container_config::{Ingredients, container_config};
use super::environment::{Facts, environment};
use super::sandbox_config::{Surroundings, parse_resolv_conf, sandbox_config};
use super::schema::{Manifest, PullPolicy, RestartPolicy, Role, Volume};
use super::{Validation, manifest};

fn read(text: &str) -> Manifest {
    manifest(text, "pod.yaml", Validation::Strict).manifest.unwrap_or_else(|problems| panic!("{problems:#?}"))
}

fn problems(text: &str) -> Vec<String> {
    manifest(text, "pod.yaml", Validation::Strict).manifest.expect_err("must be refused")
}

fn warnings(text: &str) -> Vec<String> {
    manifest(text, "pod.yaml", Validation::Strict).warnings
}

/// A pod with these lines in its spec and one container with these lines.
fn pod(spec: &str, container: &str) -> String {
    let indent = |text: &str, by: &str| -> String {
        text.lines().map(|line| if line.is_empty() { String::new() } else { format!("{by}{line}\n") }).collect()
    };
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: web\nspec:\n{}  containers:\n  - name: app\n    image: busybox:1\n{}",
        indent(spec, "  "),
        indent(container, "    ")
    )
}

fn facts() -> Facts {
    Facts {
        uid: "u-1".into(),
        pod_ips: vec!["10.0.0.2".into(), "fd00::2".into()],
        node_name: "node1".into(),
        node_memory_bytes: 8 << 30,
        node_cpus: 4,
    }
}

fn image() -> v1::Image {
    v1::Image { id: "sha256:aa".into(), ..v1::Image::default() }
}

fn config(text: &str) -> v1::ContainerConfig {
    try_config(text, &image()).unwrap()
}

fn try_config(text: &str, image: &v1::Image) -> Result<v1::ContainerConfig, String> {
    let manifest = read(text);
    let pod = &manifest.pods[0];
    let (facts, container) = (facts(), &pod.containers[0]);
    let environment = environment(&manifest, pod, container, &facts)?;
    let ingredients = Ingredients { facts: &facts, image, environment: &environment, mounts: Vec::new(), attempt: 0 };
    container_config(pod, container, ingredients)
}

fn env(text: &str) -> Vec<String> {
    let config = config(text);
    config.envs.iter().map(|kv| format!("{}={}", kv.key, String::from_utf8_lossy(&kv.value))).collect()
}

fn sandbox(text: &str) -> v1::PodSandboxConfig {
    let manifest = read(text);
    let surroundings = Surroundings {
        uid: "u-1",
        log_directory: std::path::Path::new("/logs"),
        host_dns: &parse_resolv_conf("nameserver 10.0.0.1\n"),
    };
    sandbox_config(&manifest.pods[0], &surroundings)
}

fn security(text: &str) -> v1::LinuxContainerSecurityContext {
    config(text).linux.unwrap().security_context.unwrap()
}

fn resources(text: &str) -> v1::LinuxContainerResources {
    config(text).linux.unwrap().resources.unwrap()
}

#[test]
fn the_smallest_pod_gets_the_defaults_of_kubernetes() {
    let manifest = read(&pod("", ""));
    let pod = &manifest.pods[0];
    assert_eq!((pod.namespace.as_str(), pod.hostname.as_str(), pod.grace_s), ("default", "web", 30));
    assert_eq!(pod.restart_policy, RestartPolicy::Always);
    assert_eq!(pod.containers[0].pull, PullPolicy::IfNotPresent);
    assert_eq!(pod.containers[0].role, Role::Main);
    assert!(warnings(&self::pod("", "")).is_empty());
}

#[test]
fn the_pull_policy_follows_the_tag_where_nothing_is_said() {
    for (image, policy) in [
        ("busybox", PullPolicy::Always),
        ("busybox:latest", PullPolicy::Always),
        ("busybox:1", PullPolicy::IfNotPresent),
        ("registry:5000/busybox", PullPolicy::Always),
        ("busybox@sha256:aa", PullPolicy::IfNotPresent),
    ] {
        let text = pod("", "").replace("busybox:1", image);
        assert_eq!(read(&text).pods[0].containers[0].pull, policy, "{image}");
    }
}

#[test]
fn the_sandbox_has_the_words_of_kubelet() {
    let text = pod(
        "hostname: h\nshareProcessNamespace: true\nsecurityContext:\n  runAsUser: 1000\n  fsGroup: 2000\n  \
         supplementalGroups: [3000]\n  sysctls:\n  - {name: net/core/somaxconn, value: \"10\"}",
        "ports:\n- {containerPort: 80, hostPort: 8080}\n- {containerPort: 53, protocol: UDP, hostIP: 127.0.0.1}",
    );
    let config = sandbox(&text);
    assert_eq!(config.hostname, "h");
    assert_eq!(config.log_directory, "/logs");
    assert_eq!(config.labels["io.kubernetes.pod.name"], "web");
    assert_eq!(config.labels["io.kubernetes.pod.namespace"], "default");
    assert_eq!(config.labels["io.kubernetes.pod.uid"], "u-1");
    assert_eq!(config.dns_config, None);
    let ports: Vec<_> = config.port_mappings.iter().map(|p| (p.container_port, p.host_port, p.protocol)).collect();
    assert_eq!(ports, [(80, 8080, 0), (53, 0, 1)]);
    let linux = config.linux.unwrap();
    assert_eq!(linux.sysctls["net.core.somaxconn"], "10");
    let security = linux.security_context.unwrap();
    assert_eq!(security.supplemental_groups, [3000, 2000]);
    assert_eq!(security.run_as_user.unwrap().value, 1000);
    let namespaces = security.namespace_options.unwrap();
    assert_eq!(namespaces.pid, v1::NamespaceMode::Pod as i32);
    assert_eq!(namespaces.network, v1::NamespaceMode::Pod as i32);
    assert!(!security.privileged);
}

#[test]
fn a_pod_of_the_hosts_network_has_its_name_and_ports() {
    let config = sandbox(&pod("hostNetwork: true\nhostPID: true\nhostIPC: true", "ports: [{containerPort: 80}]"));
    assert_eq!(config.hostname, "");
    assert!(config.port_mappings.is_empty());
    let namespaces = config.linux.unwrap().security_context.unwrap().namespace_options.unwrap();
    let node = v1::NamespaceMode::Node as i32;
    assert_eq!((namespaces.network, namespaces.pid, namespaces.ipc), (node, node, node));
}

#[test]
fn variables_see_earlier_ones_and_the_pod() {
    let text = pod(
        "",
        "env:
- {name: A, value: one}
- {name: B, value: \"$(A)-$(C)-$$(A)\"}
- {name: C, value: late}
- name: IP
  valueFrom: {fieldRef: {fieldPath: status.podIP}}
- name: IPS
  valueFrom: {fieldRef: {apiVersion: v1, fieldPath: status.podIPs}}
- name: APP
  valueFrom: {fieldRef: {fieldPath: \"metadata.labels['app']\"}}
- name: NODE
  valueFrom: {fieldRef: {fieldPath: spec.nodeName}}
- name: CPUS
  valueFrom: {resourceFieldRef: {resource: limits.cpu, divisor: 1m}}
- name: MEMORY
  valueFrom: {resourceFieldRef: {resource: limits.memory, divisor: 1Mi}}
- {name: A, value: \"two, after $(A)\"}
resources: {limits: {memory: 64Mi}}",
    )
    .replace("  name: web", "  name: web\n  labels: {app: shop}");
    assert_eq!(
        env(&text),
        [
            "A=two, after one",
            "B=one-$(C)-$(A)",
            "C=late",
            "IP=10.0.0.2",
            "IPS=10.0.0.2,fd00::2",
            "APP=shop",
            "NODE=node1",
            "CPUS=4000",
            "MEMORY=64",
        ]
    );
}

#[test]
fn config_maps_and_secrets_of_the_same_file_are_used() {
    let text = format!(
        "{}---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: conf}}\ndata: {{K: v, L: w}}\n---\napiVersion: v1\nkind: \
         Secret\nmetadata: {{name: sec}}\ndata: {{P: c2VjcmV0}}\nstringData: {{Q: plain}}\n",
        pod(
            "volumes:\n- name: files\n  secret: {secretName: sec, defaultMode: 0400, items: [{key: P, path: a/b}]}",
            "envFrom:
- {prefix: X_, configMapRef: {name: conf}}
- {secretRef: {name: other, optional: true}}
env:
- {name: P, valueFrom: {secretKeyRef: {name: sec, key: P}}}
- {name: N, valueFrom: {configMapKeyRef: {name: conf, key: none, optional: true}}}
volumeMounts: [{name: files, mountPath: /files}]"
        )
    );
    assert_eq!(env(&text), ["X_K=v", "X_L=w", "P=secret"]);
    let manifest = read(&text);
    let Some(Volume::Files { secret: true, default_mode: 0o400, items, .. }) = manifest.pods[0].volume("files") else {
        panic!("{:?}", manifest.pods[0].volumes);
    };
    assert_eq!(items[0].1, "a/b");
}

#[test]
fn a_config_map_that_is_not_there_is_an_error_unless_it_is_optional() {
    let text = pod("", "env: [{name: A, valueFrom: {configMapKeyRef: {name: conf, key: k}}}]");
    let error = try_config(&text, &image()).unwrap_err();
    assert!(error.starts_with("ConfigMap \"conf\" is not in this file"), "{error}");
}

#[test]
fn commands_are_expanded_with_all_variables() {
    let config =
        config(&pod("", "command: [sh, -c, \"echo $(A) $(B)\"]\nargs: [\"$(A)\"]\nenv: [{name: A, value: x}]"));
    assert_eq!(config.command, ["sh", "-c", "echo x $(B)"]);
    assert_eq!(config.args, ["x"]);
    assert_eq!(config.log_path, "app/0.log");
    let image = config.image.unwrap();
    assert_eq!((image.image.as_str(), image.user_specified_image.as_str()), ("sha256:aa", "busybox:1"));
}

#[test]
fn resources_are_counted_as_kubelet_counts_them() {
    let resources_of = |lines: &str| resources(&pod("", lines));
    let both = resources_of("resources: {limits: {cpu: 500m, memory: 128Mi}, requests: {cpu: 250m, memory: 64Mi}}");
    assert_eq!((both.cpu_shares, both.cpu_quota, both.cpu_period), (256, 50_000, 100_000));
    assert_eq!(both.memory_limit_in_bytes, 134_217_728);
    assert_eq!(both.oom_score_adj, 1_000 - (64 << 20) * 1_000 / (8 << 30));
    let guaranteed = resources_of("resources: {limits: {cpu: 2, memory: 1Gi}}");
    assert_eq!((guaranteed.cpu_shares, guaranteed.cpu_quota, guaranteed.oom_score_adj), (2_048, 200_000, -997));
    let nothing = resources_of("");
    assert_eq!((nothing.cpu_shares, nothing.cpu_quota, nothing.oom_score_adj), (2, 0, 1_000));
    let tiny = resources_of("resources: {limits: {cpu: 1m}}");
    assert_eq!((tiny.cpu_shares, tiny.cpu_quota), (2, 1_000));
    let huge = resources_of("resources: {limits: {hugepages-2Mi: 4Mi, hugepages-1Gi: 1Gi}}");
    let sizes: Vec<_> = huge.hugepage_limits.iter().map(|limit| (limit.page_size.as_str(), limit.limit)).collect();
    assert_eq!(sizes, [("1GB", 1 << 30), ("2MB", 4 << 20)]);
}

#[test]
fn security_is_the_containers_word_before_its_pods() {
    let text = pod(
        "securityContext: {runAsUser: 1, runAsGroup: 2, seccompProfile: {type: Unconfined}}",
        "securityContext:
  runAsUser: 5
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL], add: [NET_BIND_SERVICE]}
  seccompProfile: {type: Localhost, localhostProfile: a/b.json}",
    );
    let security = security(&text);
    assert_eq!(security.run_as_user.unwrap().value, 5);
    assert_eq!(security.run_as_group.unwrap().value, 2);
    assert!(security.no_new_privs && security.readonly_rootfs && !security.privileged);
    let capabilities = security.capabilities.unwrap();
    assert_eq!(
        (capabilities.drop_capabilities, capabilities.add_capabilities),
        (vec!["ALL".into()], vec!["NET_BIND_SERVICE".into()])
    );
    assert_eq!(security.seccomp.unwrap().localhost_ref, "/var/lib/kubelet/seccomp/a/b.json");
    assert!(security.masked_paths.contains(&"/proc/kcore".to_owned()));
    assert!(security.readonly_paths.contains(&"/proc/sys".to_owned()));
}

#[test]
fn nothing_said_is_the_runtimes_seccomp_profile_and_privileged_is_none() {
    use v1::security_profile::ProfileType;
    let kind = |lines: &str| security(&pod("", lines)).seccomp.unwrap().profile_type;
    assert_eq!(kind(""), ProfileType::RuntimeDefault as i32);
    assert_eq!(kind("securityContext: {privileged: true}"), ProfileType::Unconfined as i32);
    let privileged = security(&pod("", "securityContext: {privileged: true}"));
    assert!(privileged.masked_paths.is_empty() && privileged.readonly_paths.is_empty());
}

#[test]
fn root_is_refused_where_the_pod_forbids_it() {
    let text = pod("securityContext: {runAsNonRoot: true}", "");
    let refused = |image: &v1::Image| try_config(&text, image).unwrap_err();
    assert!(refused(&image()).contains("the image runs as root"));
    let zero = v1::Image { uid: Some(v1::Int64Value { value: 0 }), ..image() };
    assert!(refused(&zero).contains("the image runs as root"));
    let named = v1::Image { username: "www-data".into(), ..image() };
    assert!(refused(&named).contains("\"www-data\" is no number"));
    let other = v1::Image { uid: Some(v1::Int64Value { value: 33 }), ..image() };
    let config = try_config(&text, &other).unwrap();
    assert_eq!(config.linux.unwrap().security_context.unwrap().run_as_user.unwrap().value, 33);
    let both = pod("securityContext: {runAsNonRoot: true, runAsUser: 0}", "");
    assert!(try_config(&both, &other).is_err());
}

#[test]
fn the_images_user_is_said_so_that_a_group_is_never_alone() {
    let text = pod("securityContext: {runAsGroup: 7}", "");
    let named = v1::Image { username: "www-data".into(), ..image() };
    let security = try_config(&text, &named).unwrap().linux.unwrap().security_context.unwrap();
    assert_eq!(security.run_as_username, "www-data");
    assert_eq!(security.run_as_group.unwrap().value, 7);
    assert_eq!(self::security(&text).run_as_user.unwrap().value, 0);
}

#[test]
fn init_containers_are_told_from_sidecars() {
    let text =
        pod("initContainers:\n- {name: first, image: a:1}\n- {name: proxy, image: b:1, restartPolicy: Always}", "");
    let manifest = read(&text);
    let roles: Vec<_> = manifest.pods[0].all_containers().map(|one| (one.name.as_str(), one.role)).collect();
    assert_eq!(roles, [("first", Role::Init), ("proxy", Role::Sidecar), ("app", Role::Main)]);
}

#[test]
fn what_is_not_honoured_is_named() {
    let text = pod(
        "serviceAccountName: robot\nnodeSelector: {a: b}\ntolerations: [{}]\nvolumes: [{name: v, emptyDir: {sizeLimit: 1Gi}}]",
        "livenessProbe: {httpGet: {port: 80}}\nlifecycle: {preStop: {exec: {command: [x]}}}\nresources: {limits: {ephemeral-storage: 1Gi}}",
    );
    assert_eq!(
        warnings(&text),
        [
            "spec.serviceAccountName: ignored: there is no cluster here whose tokens it could hold",
            "spec.containers[0].livenessProbe: ignored: probes are made by kubelet",
            "spec.containers[0].lifecycle.preStop: ignored: hooks are run by kubelet",
            "spec.containers[0].resources.limits.ephemeral-storage: ignored: disk use is not limited",
            "spec.volumes[0].emptyDir.sizeLimit: ignored: only medium Memory is limited",
        ]
    );
    read(&text);
}

#[test]
fn what_would_make_another_pod_is_refused() {
    for (spec, container, expected) in [
        (
            "volumes: [{name: v, persistentVolumeClaim: {claimName: c}}]",
            "",
            "spec.volumes[0].persistentVolumeClaim: not supported",
        ),
        ("hostUsers: false\nhostPID: true", "", "spec.hostUsers: false excludes hostPID and hostIPC"),
        (
            "",
            "env: [{name: A, valueFrom: {fieldRef: {fieldPath: status.hostIP}}}]",
            "fieldPath: \"status.hostIP\" is not known here",
        ),
        ("", "resources: {limits: {nvidia.com/gpu: 1}}", "limits.nvidia.com/gpu: not supported"),
        ("", "resources: {limits: {cpu: 1}, requests: {cpu: 2}}", "requests.cpu: is more than the limit"),
        (
            "",
            "volumeMounts: [{name: gone, mountPath: /x}]",
            "container \"app\" mounts volume \"gone\", which is not there",
        ),
        (
            "volumes: [{name: v}]",
            "volumeMounts: [{name: v, mountPath: /x, subPath: ../y}]",
            "subPath: must be relative",
        ),
        ("volumes: [{name: v}]", "volumeMounts: [{name: v, mountPath: x}]", "mountPath: \"x\" is no absolute path"),
        (
            "volumes: [{name: v}]",
            "volumeMounts: [{name: v, mountPath: /x, mountPropagation: Bidirectional}]",
            "needs a privileged container",
        ),
        ("volumes: [{name: ../v}]", "", "is no name"),
        ("volumes: [{name: v, hostPath: {path: /a/../b}}]", "", "no absolute path"),
        ("", "ports: [{containerPort: 0}]", "0 is not within 1–65535"),
        ("hostNetwork: true", "ports: [{containerPort: 1, hostPort: 2}]", "hostPort: must be containerPort"),
        ("", "securityContext: {capabilities: {add: [CAP_NET_ADMIN]}}", "without CAP_"),
        ("", "command: sh", "command: must be a list, not a string"),
        ("", "env: [{name: A, value: 1}]", "value: must be a string (put it in quotes), not a number"),
        (
            "restartPolicy: Allways",
            "",
            "restartPolicy: \"Allways\" is none of Always, OnFailure, Never; did you mean Always?",
        ),
        ("", "imagePullPollicy: Never", "imagePullPollicy: there is no such field; did you mean imagePullPolicy?"),
        ("dnsPolicy: None", "", "dnsConfig: must hold nameservers"),
        (
            "hostNetwork: true\nsecurityContext: {sysctls: [{name: net.ipv4.ip_forward, value: \"1\"}]}",
            "",
            "whole host",
        ),
        ("securityContext: {seccompProfile: {type: Localhost, localhostProfile: ../x}}", "", "must be relative"),
        ("initContainers: [{name: app, image: x}]", "", "two containers have the name \"app\""),
        ("", "restartPolicy: Never", "only an init container"),
        ("", "lifecycle: {stopSignal: SIGFOO}", "is no signal"),
    ] {
        let found = problems(&pod(spec, container));
        assert!(found.iter().any(|problem| problem.contains(expected)), "{expected}: {found:#?}");
    }
}

#[test]
fn other_kinds_and_other_files_are_refused_in_a_sentence() {
    let found = problems("apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: x}\nspec: {replicas: 1}\n");
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].contains("kind Deployment is not supported"), "{found:?}");
    assert!(problems("").iter().any(|problem| problem.contains("there is no Pod in it")));
    assert!(problems("a: [").iter().any(|problem| problem.starts_with("pod.yaml (document 1): ")));
    assert!(problems("just text").iter().any(|problem| problem.contains("must be an object")));
    assert!(problems("apiVersion: v2\nkind: Pod\n").iter().any(|problem| problem.contains("apiVersion v1")));
    let twice = format!("{}---\n{}", pod("", ""), pod("", ""));
    assert!(problems(&twice).iter().any(|problem| problem.contains("two pods have the name default/web")));
}

#[test]
fn what_the_api_server_adds_is_passed_over() {
    let text = pod(
        "nodeName: n1\nenableServiceLinks: true\npriority: 0\npreemptionPolicy: x",
        "terminationMessagePolicy: File",
    )
    .replace("  name: web", "  name: web\n  uid: u\n  resourceVersion: \"1\"\n  managedFields: [{a: b}]")
        + "status: {phase: Running}\n";
    read(&text);
    assert!(warnings(&text).is_empty());
}

#[test]
fn lists_anchors_and_merge_keys_are_read() {
    let text = "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Pod\n  metadata: {name: a}\n  spec:\n    \
                containers:\n    - &base {name: one, image: x:1, tty: true}\n    - {<<: *base, name: two}\n";
    let manifest = read(text);
    assert_eq!(manifest.pods[0].containers[1].name, "two");
    assert!(manifest.pods[0].containers[1].tty);
}

#[test]
fn every_example_is_a_manifest_without_warnings() {
    let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples");
    let mut count = 0;
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "yaml") {
            let text = std::fs::read_to_string(&path).unwrap();
            read(&text);
            assert!(warnings(&text).is_empty(), "{}", path.display());
            count += 1;
        }
    }
    assert!(count >= 4);
}

/// Words of manifests, strung together at random: most of it is nonsense of the right shape.
const FRAGMENTS: [&str; 24] = [
    "kind: Pod\n",
    "apiVersion: v1\n",
    "metadata: {name: x}\n",
    "spec:\n",
    "  containers:\n",
    "  - name: a\n",
    "    image: b:1\n",
    "    command: [x]\n",
    "    env: [{name: A, value: \"$(B)\"}]\n",
    "  volumes: [{name: v}]\n",
    "    volumeMounts: [{name: v, mountPath: /x}]\n",
    "    resources: {limits: {cpu: 1e9999, memory: -1}}\n",
    "    securityContext: {runAsUser: 99999999999}\n",
    "    ports: [{containerPort: 70000}]\n",
    "---\n",
    "items:\n",
    "- ",
    "null\n",
    "  hostAliases: [1, {}]\n",
    "&a ",
    "*a\n",
    "<<: *a\n",
    "    lifecycle: 3\n",
    "  dnsConfig: {options: [{}]}\n",
];

proptest::proptest! {
    #[test]
    fn any_text_is_a_manifest_or_a_list_of_problems(
        picks in proptest::collection::vec(0..FRAGMENTS.len(), 0..40),
        noise in "\\PC{0,40}",
    ) {
        let text: String = picks.iter().map(|pick| FRAGMENTS[*pick]).collect();
        for text in [format!("{text}{noise}"), format!("{noise}{text}"), text] {
            let outcome = manifest(&text, "x", Validation::Strict);
            if let Err(problems) = outcome.manifest {
                proptest::prop_assert!(!problems.is_empty());
            }
        }
    }
}
