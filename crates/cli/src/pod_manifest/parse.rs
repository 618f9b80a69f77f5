//! From the text of a file to [`Manifest`]: documents, kinds, metadata and the pod's own fields.

use std::collections::{BTreeMap, BTreeSet};

use base64::Engine as _;
use serde::Deserialize as _;
use serde_json::Value;

use super::parse_container::container;
use super::parse_security::pod_security;
use super::parse_volume::volume;
use super::reader::{Notes, Object, Validation};
use super::schema::{Container, Data, Dns, HostNamespaces, Manifest, Pod, RestartPolicy, Role};

/// A manifest larger than this is no manifest; etcd takes 1.5 MiB at most.
pub const MAX_MANIFEST_BYTES: u64 = 4 << 20;

/// A manifest that was read, or everything that is wrong with it.
pub struct Outcome {
    /// `Err` holds one line for each problem.
    pub manifest: Result<Manifest, Vec<String>>,
    /// One line for each field that is not honoured.
    pub warnings: Vec<String>,
}

/// Reads all documents of a text. `origin` names the file in messages.
pub fn manifest(text: &str, origin: &str, validation: Validation) -> Outcome {
    let notes = Notes::new(validation);
    let mut manifest = Manifest::default();
    for (index, document) in yaml_serde::Deserializer::from_str(text).enumerate() {
        let place = format!("{origin} (document {})", index + 1);
        match read_document(document) {
            Ok(Value::Null) => {}
            Ok(value) => document_into(&place, &value, &notes, &mut manifest),
            Err(message) => {
                notes.problem(&place, message);
                // What follows a document that is no YAML cannot be told apart from it.
                break;
            }
        }
    }
    check_names_in_use(&manifest, &notes);
    let (mut problems, warnings) = notes.into_parts();
    if problems.is_empty() && manifest.pods.is_empty() {
        problems.push(format!("{origin}: there is no Pod in it"));
    }
    Outcome { manifest: if problems.is_empty() { Ok(manifest) } else { Err(problems) }, warnings }
}

/// One document with its anchors and merge keys (`<<`) resolved, in the shape of JSON, which is what Kubernetes reads.
fn read_document(document: yaml_serde::Deserializer<'_>) -> Result<Value, String> {
    let mut value = yaml_serde::Value::deserialize(document).map_err(|error| error.to_string())?;
    value.apply_merge().map_err(|error| error.to_string())?;
    serde_json::to_value(value).map_err(|error| error.to_string())
}

fn document_into(place: &str, value: &Value, notes: &Notes, manifest: &mut Manifest) {
    let Some(mut object) = Object::new("", value, notes) else { return };
    let kind = object.string("kind").unwrap_or_default();
    let version = object.string("apiVersion");
    if version.as_deref() != Some("v1") && matches!(kind.as_str(), "Pod" | "ConfigMap" | "Secret" | "List") {
        object.problem("apiVersion", format_args!("{kind} in {place} must be of apiVersion v1"));
    }
    match kind.as_str() {
        "Pod" => manifest.pods.extend(pod(&mut object)),
        "ConfigMap" => {
            if let Some((key, data)) = config_map(&mut object) {
                manifest.config_maps.insert(key, data);
            }
        }
        "Secret" => {
            if let Some((key, data)) = secret(&mut object) {
                manifest.secrets.insert(key, data);
            }
        }
        "List" | "PodList" => {
            object.pass_over(&["metadata"]);
            let Some(Value::Array(items)) = object.value("items") else { return };
            for (index, item) in items.iter().enumerate() {
                document_into(&format!("{place}, items[{index}]"), item, notes, manifest);
            }
        }
        "" => {
            object.pass_over(&["metadata", "spec", "data", "status"]);
            notes.problem(place, "kind is missing: it must be Pod, ConfigMap, Secret or List");
        }
        other => {
            // Its fields are not ours to judge.
            object.pass_over(&[
                "metadata",
                "spec",
                "data",
                "status",
                "stringData",
                "type",
                "rules",
                "subjects",
                "roleRef",
            ]);
            notes.problem(
                place,
                format_args!(
                    "kind {other} is not supported: a single machine runs Pods, with ConfigMaps and Secrets of the same \
                     file; what makes Pods of a {other} is a cluster"
                ),
            );
        }
    }
}

/// Metadata that the API server writes and that says nothing about the pod itself.
const SERVER_METADATA: [&str; 11] = [
    "uid",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "resourceVersion",
    "generation",
    "generateName",
    "managedFields",
    "ownerReferences",
    "finalizers",
    "selfLink",
];

struct Metadata {
    name: String,
    namespace: String,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
}

fn metadata(object: &mut Object<'_>) -> Metadata {
    let Some(mut metadata) = object.object("metadata") else {
        object.problem("metadata", "is missing: it must hold a name");
        return Metadata {
            name: String::new(),
            namespace: String::new(),
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
        };
    };
    metadata.pass_over(&SERVER_METADATA);
    let name = metadata.string("name").unwrap_or_default();
    check_subdomain(&metadata, "name", &name);
    let namespace = metadata.string("namespace").unwrap_or_else(|| "default".to_owned());
    check_label(&metadata, "namespace", &namespace);
    Metadata { name, namespace, labels: metadata.string_map("labels"), annotations: metadata.string_map("annotations") }
}

fn config_map(object: &mut Object<'_>) -> Option<((String, String), Data)> {
    object.pass_over(&["immutable"]);
    let metadata = metadata(object);
    let mut data: Data = object.string_map("data").into_iter().map(|(key, text)| (key, text.into_bytes())).collect();
    data.extend(decoded(object, "binaryData"));
    check_keys(object, "data", &data);
    Some(((metadata.namespace, metadata.name), data))
}

fn secret(object: &mut Object<'_>) -> Option<((String, String), Data)> {
    object.pass_over(&["immutable", "type"]);
    let metadata = metadata(object);
    let mut data = decoded(object, "data");
    data.extend(object.string_map("stringData").into_iter().map(|(key, text)| (key, text.into_bytes())));
    check_keys(object, "data", &data);
    Some(((metadata.namespace, metadata.name), data))
}

fn decoded(object: &mut Object<'_>, key: &'static str) -> Data {
    let mut data = Data::new();
    for (name, text) in object.string_map(key) {
        let compact: String = text.split_whitespace().collect();
        match base64::engine::general_purpose::STANDARD.decode(compact) {
            Ok(bytes) => {
                data.insert(name, bytes);
            }
            Err(_) => object.problem(&format!("{key}[{name}]"), "is no base64"),
        }
    }
    data
}

/// A key becomes a file name, so it is held to what Kubernetes allows before anything is done with it.
fn check_keys(object: &Object<'_>, key: &str, data: &Data) {
    for name in data.keys() {
        let shaped = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
        if name.is_empty() || name.len() > 253 || name.starts_with("..") || name == "." || !shaped {
            object.problem(&format!("{key}[{name}]"), "is no key: use letters, digits, '-', '_' and '.'");
        }
    }
}

/// Fields of a pod that only a cluster gives a meaning to, and whose absence leaves the pod what it is.
const CLUSTER_FIELDS: [&str; 13] = [
    "nodeName",
    "nodeSelector",
    "affinity",
    "tolerations",
    "topologySpreadConstraints",
    "schedulerName",
    "schedulingGates",
    "priority",
    "priorityClassName",
    "preemptionPolicy",
    "enableServiceLinks",
    "automountServiceAccountToken",
    "serviceAccount",
];

fn pod(object: &mut Object<'_>) -> Option<Pod> {
    object.pass_over(&["status"]);
    let metadata = metadata(object);
    let Some(mut spec) = object.object("spec") else {
        object.problem("spec", "is missing");
        return None;
    };
    spec.pass_over(&CLUSTER_FIELDS);
    spec.ignore(&["serviceAccountName"], "there is no cluster here whose tokens it could hold");
    spec.ignore(&["imagePullSecrets"], "log in with `knarr pull --creds` or --auth-file first");
    spec.ignore(&["readinessGates", "resourceClaims", "overhead"], "knarr run has no controller for them");
    spec.ignore(&["subdomain", "setHostnameAsFQDN"], "there is no cluster domain here");
    spec.ignore(&["activeDeadlineSeconds"], "stop the pod with `knarr stop`");
    spec.refuse(&["ephemeralContainers"], "use `knarr exec`");
    spec.refuse(&["resources"], "give each container its own resources");
    spec.refuse(&["hostnameOverride"], "use hostname");
    if let Some(mut os) = spec.object("os")
        && os.string("name").is_some_and(|name| name != "linux")
    {
        os.problem("name", "only linux can run here");
    }
    let host = HostNamespaces {
        network: spec.boolean("hostNetwork").unwrap_or(false),
        pid: spec.boolean("hostPID").unwrap_or(false),
        ipc: spec.boolean("hostIPC").unwrap_or(false),
    };
    let share_processes = spec.boolean("shareProcessNamespace").unwrap_or(false);
    if share_processes && host.pid {
        spec.problem("shareProcessNamespace", "and hostPID exclude each other");
    }
    let own_users = spec.boolean("hostUsers") == Some(false);
    if own_users && (host.pid || host.ipc) {
        spec.problem("hostUsers", "false excludes hostPID and hostIPC");
    }
    let hostname = hostname(&mut spec, &metadata.name);
    let security = pod_security(&mut spec, host);
    let init_containers = containers(&mut spec, "initContainers", Role::Init, host);
    let main_containers = containers(&mut spec, "containers", Role::Main, host);
    if main_containers.is_empty() {
        spec.problem("containers", "must hold at least one container");
    }
    let volumes = spec.objects("volumes").into_iter().filter_map(volume).collect();
    let pod = Pod {
        name: metadata.name,
        namespace: metadata.namespace,
        labels: metadata.labels,
        annotations: metadata.annotations,
        init_containers,
        containers: main_containers,
        volumes,
        restart_policy: restart_policy(&mut spec),
        grace_s: spec.integer_within("terminationGracePeriodSeconds", 0..=86_400 * 7).unwrap_or(30),
        hostname,
        host,
        share_processes,
        own_users,
        dns: dns(&mut spec),
        host_aliases: host_aliases(&mut spec),
        security,
        handler: spec.string("runtimeClassName").unwrap_or_default(),
    };
    check_pod(&spec, &pod);
    Some(pod)
}

fn containers(spec: &mut Object<'_>, key: &'static str, role: Role, host: HostNamespaces) -> Vec<Container> {
    spec.objects(key).into_iter().filter_map(|object| container(object, role, host)).collect()
}

fn restart_policy(spec: &mut Object<'_>) -> RestartPolicy {
    let words =
        [("Always", RestartPolicy::Always), ("OnFailure", RestartPolicy::OnFailure), ("Never", RestartPolicy::Never)];
    spec.word("restartPolicy", &words).unwrap_or(RestartPolicy::Always)
}

/// The longest host name of Linux that DNS can carry.
const MAX_HOSTNAME_BYTES: usize = 63;

fn hostname(spec: &mut Object<'_>, pod_name: &str) -> String {
    if let Some(hostname) = spec.string("hostname").filter(|hostname| !hostname.is_empty()) {
        check_label(spec, "hostname", &hostname);
        return hostname;
    }
    let cut = pod_name.get(..MAX_HOSTNAME_BYTES).unwrap_or(pod_name);
    cut.trim_end_matches(['-', '.']).to_owned()
}

fn dns(spec: &mut Object<'_>) -> Dns {
    #[derive(Clone, Copy, PartialEq)]
    enum Policy {
        Cluster,
        Host,
        None,
    }
    let words = [
        ("ClusterFirst", Policy::Cluster),
        ("ClusterFirstWithHostNet", Policy::Cluster),
        ("Default", Policy::Host),
        ("None", Policy::None),
    ];
    let policy = spec.word("dnsPolicy", &words);
    let mut dns = Dns { with_host: policy != Some(Policy::None), ..Dns::default() };
    if let Some(mut config) = spec.object("dnsConfig") {
        dns.servers = config.strings("nameservers");
        for (index, server) in dns.servers.iter().enumerate() {
            if server.parse::<std::net::IpAddr>().is_err() {
                config.problem(&format!("nameservers[{index}]"), format_args!("{server:?} is no address"));
            }
        }
        dns.searches = config.strings("searches");
        for mut option in config.objects("options") {
            let name = option.string("name").unwrap_or_default();
            let value = option.scalar("value");
            dns.options.push(value.map_or_else(|| name.clone(), |value| format!("{name}:{value}")));
        }
    }
    if policy == Some(Policy::None) && dns.servers.is_empty() {
        spec.problem("dnsConfig", "must hold nameservers where dnsPolicy is None");
    }
    let lines = dns.searches.iter().chain(&dns.options);
    if lines.clone().any(|word| word.is_empty() || word.contains(char::is_whitespace)) {
        spec.problem("dnsConfig", "searches and options must be single words");
    }
    dns
}

fn host_aliases(spec: &mut Object<'_>) -> Vec<(String, Vec<String>)> {
    let mut aliases = Vec::new();
    for mut alias in spec.objects("hostAliases") {
        let address = alias.string("ip").unwrap_or_default();
        if address.parse::<std::net::IpAddr>().is_err() {
            alias.problem("ip", format_args!("{address:?} is no address"));
        }
        let names = alias.strings("hostnames");
        for name in &names {
            check_subdomain(&alias, "hostnames", name);
        }
        aliases.push((address, names));
    }
    aliases
}

/// What several fields together can get wrong.
fn check_pod(spec: &Object<'_>, pod: &Pod) {
    let mut names = BTreeSet::new();
    for container in pod.all_containers() {
        if !names.insert(&container.name) {
            spec.problem("containers", format_args!("two containers have the name {:?}", container.name));
        }
        for mount in &container.mounts {
            if pod.volume(&mount.volume).is_none() {
                spec.problem(
                    "volumes",
                    format_args!("container {:?} mounts volume {:?}, which is not there", container.name, mount.volume),
                );
            }
        }
    }
    let mut names = BTreeSet::new();
    for (name, _) in &pod.volumes {
        if !names.insert(name) {
            spec.problem("volumes", format_args!("two volumes have the name {name:?}"));
        }
    }
    let mut host_ports = BTreeSet::new();
    for port in pod.containers.iter().chain(&pod.init_containers).flat_map(|container| &container.ports) {
        let key = (port.host_port, port.host_ip.clone(), port.protocol as u8);
        if port.host_port != 0 && !pod.host.network && !host_ports.insert(key) {
            spec.problem("containers", format_args!("host port {} is asked for twice", port.host_port));
        }
    }
}

fn check_names_in_use(manifest: &Manifest, notes: &Notes) {
    let mut names = BTreeSet::new();
    for pod in &manifest.pods {
        if !names.insert((&pod.namespace, &pod.name)) {
            notes.problem("metadata.name", format_args!("two pods have the name {}/{}", pod.namespace, pod.name));
        }
    }
}

/// A DNS label: what becomes a directory's name can then hold neither a slash nor dots alone.
pub fn check_label(object: &Object<'_>, key: &str, name: &str) {
    if !is_label(name) || name.len() > 63 {
        object.problem(
            key,
            format_args!("{name:?} is no name: use at most 63 of a–z, 0–9 and '-', no '-' at either end"),
        );
    }
}

fn check_subdomain(object: &Object<'_>, key: &str, name: &str) {
    if name.len() > 253 || !name.split('.').all(is_label) {
        object.problem(
            key,
            format_args!("{name:?} is no name: use a–z, 0–9, '-' and '.', letters or digits at both ends"),
        );
    }
}

fn is_label(name: &str) -> bool {
    let shaped = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    !name.is_empty() && shaped && !name.starts_with('-') && !name.ends_with('-')
}
