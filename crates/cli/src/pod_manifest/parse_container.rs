//! Reads one container of a pod.

use super::parse::check_label;
use super::parse_security::container_security;
use super::quantity::Quantity;
use super::reader::Object;
use super::schema::{
    Container, DataRef, EnvFrom, EnvValue, FieldRef, HostNamespaces, Port, Propagation, Protocol, PullPolicy,
    RecursiveReadOnly, Resources, Role, VolumeMount,
};

/// Reads a container that stands in `initContainers` or `containers`.
pub fn container(mut object: Object<'_>, role: Role, host: HostNamespaces) -> Option<Container> {
    let name = object.string("name").unwrap_or_default();
    check_label(&object, "name", &name);
    object.ignore(&["livenessProbe", "readinessProbe", "startupProbe"], "probes are made by kubelet");
    object.ignore(&["terminationMessagePath"], "nobody would read it");
    object.pass_over(&["terminationMessagePolicy", "resizePolicy"]);
    object.refuse(&["volumeDevices"], "there are no block volumes without a cluster");
    object.refuse(&["restartPolicyRules"], "use restartPolicy");
    let image = object.string("image").unwrap_or_default();
    if image.is_empty() || image.contains(char::is_whitespace) {
        object.problem("image", format_args!("{image:?} is no image"));
    }
    let pull = pull_policy(&mut object, "imagePullPolicy", &image);
    let stop_signal = lifecycle(&mut object);
    let container = Container {
        role: role_of(&mut object, role),
        image,
        pull,
        command: object.strings("command"),
        args: object.strings("args"),
        working_dir: object.string("workingDir").unwrap_or_default(),
        env_from: object.objects("envFrom").into_iter().filter_map(env_from).collect(),
        env: object.objects("env").into_iter().filter_map(env).collect(),
        ports: object.objects("ports").into_iter().filter_map(|port| self::port(port, host)).collect(),
        resources: resources(&mut object),
        mounts: object.objects("volumeMounts").into_iter().map(volume_mount).collect(),
        security: container_security(&mut object),
        stdin: object.boolean("stdin").unwrap_or(false),
        stdin_once: object.boolean("stdinOnce").unwrap_or(false),
        tty: object.boolean("tty").unwrap_or(false),
        stop_signal,
        name,
    };
    check_container(&object, &container);
    Some(container)
}

fn role_of(object: &mut Object<'_>, role: Role) -> Role {
    let policy = object.string("restartPolicy");
    match (role, policy.as_deref()) {
        (role, None) => role,
        (Role::Init, Some("Always")) => Role::Sidecar,
        (_, Some(other)) => {
            object.problem(
                "restartPolicy",
                format_args!("{other:?}: only an init container may have one, and only Always"),
            );
            role
        }
    }
}

fn check_container(object: &Object<'_>, container: &Container) {
    for mount in &container.mounts {
        let bidirectional = mount.propagation == Propagation::Bidirectional;
        if bidirectional && !container.security.privileged {
            object.problem("volumeMounts", format_args!("{}: Bidirectional needs a privileged container", mount.path));
        }
        let twins = container.mounts.iter().filter(|other| other.path == mount.path).count();
        if twins > 1 {
            object.problem("volumeMounts", format_args!("{} is mounted {twins} times", mount.path));
        }
    }
}

/// Always for `:latest` and for no tag, as Kubernetes decides where nothing is said.
pub fn pull_policy(object: &mut Object<'_>, key: &'static str, image: &str) -> PullPolicy {
    let words =
        [("Always", PullPolicy::Always), ("IfNotPresent", PullPolicy::IfNotPresent), ("Never", PullPolicy::Never)];
    let written = object.string(key).filter(|word| !word.is_empty()).and_then(|_| object.word(key, &words));
    let (_, tag) = crate::output::human::split_reference(image);
    written.unwrap_or(if matches!(tag, "" | "latest") { PullPolicy::Always } else { PullPolicy::IfNotPresent })
}

fn lifecycle(object: &mut Object<'_>) -> String {
    let Some(mut lifecycle) = object.object("lifecycle") else { return String::new() };
    lifecycle.ignore(&["postStart", "preStop"], "hooks are run by kubelet");
    let signal = lifecycle.string("stopSignal").unwrap_or_default();
    if !signal.is_empty() && knarr_cri_api::v1::Signal::from_str_name(&signal).is_none() {
        lifecycle.problem("stopSignal", format_args!("{signal:?} is no signal: write for example SIGUSR1"));
    }
    signal
}

fn data_ref(mut reference: Object<'_>, secret: bool) -> DataRef {
    let name = reference.string("name").unwrap_or_default();
    DataRef { secret, name, optional: reference.boolean("optional").unwrap_or(false) }
}

fn env_from(mut object: Object<'_>) -> Option<EnvFrom> {
    let prefix = object.string("prefix").unwrap_or_default();
    let config_map = object.object("configMapRef").map(|reference| data_ref(reference, false));
    let secret = object.object("secretRef").map(|reference| data_ref(reference, true));
    match (config_map, secret) {
        (Some(source), None) | (None, Some(source)) => Some(EnvFrom { prefix, source }),
        _ => {
            object.problem("configMapRef", "either configMapRef or secretRef must be there");
            None
        }
    }
}

fn env(mut object: Object<'_>) -> Option<(String, EnvValue)> {
    let name = object.string("name").unwrap_or_default();
    if name.is_empty() || name.contains(['=', '\0']) {
        object.problem("name", format_args!("{name:?} is no name of a variable"));
    }
    let text = object.string("value");
    let Some(mut from) = object.object("valueFrom") else {
        return Some((name, EnvValue::Text(text.unwrap_or_default())));
    };
    if text.is_some_and(|text| !text.is_empty()) {
        object.problem("valueFrom", "and value exclude each other");
    }
    from.refuse(&["fileKeyRef"], "write the value down, or use a ConfigMap");
    let key_ref = |mut reference: Object<'_>, secret| {
        let key = reference.string("key").unwrap_or_default();
        EnvValue::Key(data_ref(reference, secret), key)
    };
    let config_map = from.object("configMapKeyRef").map(|reference| key_ref(reference, false));
    let secret = from.object("secretKeyRef").map(|reference| key_ref(reference, true));
    let field = from.object("fieldRef").and_then(field_ref).map(EnvValue::Field);
    let resource = from.object("resourceFieldRef").and_then(resource_field_ref);
    config_map.or(secret).or(field).or(resource).map(|value| (name, value))
}

fn field_ref(mut object: Object<'_>) -> Option<FieldRef> {
    object.pass_over(&["apiVersion"]);
    let path = object.string("fieldPath").unwrap_or_default();
    let subscript = |field: &str| {
        let key = path.strip_prefix(field)?.strip_prefix("['")?.strip_suffix("']")?;
        Some(key.to_owned())
    };
    let found = match path.as_str() {
        "metadata.name" => Some(FieldRef::Name),
        "metadata.namespace" => Some(FieldRef::Namespace),
        "metadata.uid" => Some(FieldRef::Uid),
        "spec.nodeName" => Some(FieldRef::NodeName),
        "status.podIP" => Some(FieldRef::PodIp),
        "status.podIPs" => Some(FieldRef::PodIps),
        _ => subscript("metadata.labels")
            .map(FieldRef::Label)
            .or_else(|| subscript("metadata.annotations").map(FieldRef::Annotation)),
    };
    if found.is_none() {
        object.problem(
            "fieldPath",
            format_args!(
                "{path:?} is not known here: knarr knows metadata.name, .namespace, .uid, .labels['…'], \
                 .annotations['…'], spec.nodeName, status.podIP and status.podIPs"
            ),
        );
    }
    found
}

fn resource_field_ref(mut object: Object<'_>) -> Option<EnvValue> {
    let container = object.string("containerName").unwrap_or_default();
    let divisor = quantity(&object.scalar("divisor").unwrap_or_else(|| "1".to_owned()), &object, "divisor")?;
    // A divisor of 0 stands for the usual one.
    let divisor = if divisor.is_zero() { Quantity::whole(1) } else { divisor };
    let path = object.string("resource").unwrap_or_default();
    let (kind, resource) = path.split_once('.').unwrap_or_default();
    let known = matches!(kind, "limits" | "requests") && matches!(resource, "cpu" | "memory");
    if !known {
        object.problem(
            "resource",
            format_args!("{path:?} is none of limits.cpu, limits.memory, requests.cpu, requests.memory"),
        );
        return None;
    }
    Some(EnvValue::Resource { container, limit: kind == "limits", resource: resource.to_owned(), divisor })
}

fn port(mut object: Object<'_>, host: HostNamespaces) -> Option<Port> {
    const PORTS: std::ops::RangeInclusive<i64> = 1..=65_535;
    let words = [("TCP", Protocol::Tcp), ("UDP", Protocol::Udp), ("SCTP", Protocol::Sctp)];
    let name = object.string("name").unwrap_or_default();
    let protocol = object.word("protocol", &words).unwrap_or(Protocol::Tcp);
    let host_ip = object.string("hostIP").unwrap_or_default();
    if !host_ip.is_empty() && host_ip.parse::<std::net::IpAddr>().is_err() {
        object.problem("hostIP", format_args!("{host_ip:?} is no address"));
    }
    let host_port = object.integer_within("hostPort", 0..=65_535).unwrap_or(0);
    if object.value("containerPort").is_none() {
        object.problem("containerPort", "is missing");
    }
    let container_port = object.integer_within("containerPort", PORTS)?;
    if host.network && host_port != 0 && host_port != container_port {
        object.problem("hostPort", "must be containerPort where the pod has the host's network");
    }
    Some(Port {
        name,
        container_port: i32::try_from(container_port).unwrap_or_default(),
        host_port: i32::try_from(host_port).unwrap_or_default(),
        host_ip,
        protocol,
    })
}

fn quantity(text: &str, object: &Object<'_>, key: &str) -> Option<Quantity> {
    match text.parse::<Quantity>() {
        Ok(quantity) if quantity.is_negative() => {
            object.problem(key, format_args!("{text} is less than nothing"));
            None
        }
        Ok(quantity) => Some(quantity),
        Err(message) => {
            object.problem(key, message);
            None
        }
    }
}

fn resources(object: &mut Object<'_>) -> Resources {
    let mut resources = Resources::default();
    let Some(mut written) = object.object("resources") else { return resources };
    written.refuse(&["claims"], "there is no device driver of a cluster here");
    for (key, is_limit) in [("limits", true), ("requests", false)] {
        for (name, text) in written.scalar_map(key) {
            let field = format!("{key}.{name}");
            let Some(amount) = quantity(&text, &written, &field) else { continue };
            let place = match (name.as_str(), is_limit) {
                ("cpu", true) => &mut resources.cpu_limit,
                ("cpu", false) => &mut resources.cpu_request,
                ("memory", true) => &mut resources.memory_limit,
                ("memory", false) => &mut resources.memory_request,
                ("ephemeral-storage", _) => {
                    written.warn(&field, "ignored: disk use is not limited");
                    continue;
                }
                (other, _) => {
                    match other.strip_prefix("hugepages-").map(|size| size.parse::<Quantity>()) {
                        Some(Ok(size)) if is_limit => {
                            resources.huge_pages.push((page_size_name(size.value()), amount.value().unsigned_abs()));
                        }
                        // The request of huge pages is always their limit.
                        Some(Ok(_)) => {}
                        Some(Err(message)) => written.problem(&field, message),
                        None => written.problem(&field, "not supported: only a cluster knows extended resources"),
                    }
                    continue;
                }
            };
            *place = Some(amount);
        }
    }
    resources.cpu_request = resources.cpu_request.or(resources.cpu_limit);
    resources.memory_request = resources.memory_request.or(resources.memory_limit);
    for (name, request, limit) in [
        ("cpu", resources.cpu_request, resources.cpu_limit),
        ("memory", resources.memory_request, resources.memory_limit),
    ] {
        if let (Some(request), Some(limit)) = (request, limit)
            && request > limit
        {
            written.problem(&format!("requests.{name}"), "is more than the limit");
        }
    }
    resources
}

/// "2MB" and "1GB", which are powers of two all the same: so the kernel names hugetlb files.
fn page_size_name(bytes: i64) -> String {
    const UNITS: [&str; 4] = ["B", "KB", "MB", "GB"];
    let mut size = bytes;
    let mut unit = 0;
    while size >= 1_024 && size % 1_024 == 0 && unit + 1 < UNITS.len() {
        size /= 1_024;
        unit += 1;
    }
    format!("{size}{}", UNITS[unit])
}

fn volume_mount(mut object: Object<'_>) -> VolumeMount {
    let volume = object.string("name").unwrap_or_default();
    let path = object.string("mountPath").unwrap_or_default();
    if !path.starts_with('/') || path.contains(['\0', ':']) || path.split('/').any(|part| part == "..") {
        object.problem("mountPath", format_args!("{path:?} is no absolute path without '..' and ':'"));
    }
    let plain = object.string("subPath").unwrap_or_default();
    let expression = object.string("subPathExpr").unwrap_or_default();
    if !plain.is_empty() && !expression.is_empty() {
        object.problem("subPathExpr", "and subPath exclude each other");
    }
    let expand_sub_path = !expression.is_empty();
    let sub_path = if expand_sub_path { expression } else { plain };
    if sub_path.starts_with('/') || sub_path.split('/').any(|part| part == "..") {
        object.problem(if expand_sub_path { "subPathExpr" } else { "subPath" }, "must be relative and without '..'");
    }
    let propagation = object.word(
        "mountPropagation",
        &[
            ("None", Propagation::None),
            ("HostToContainer", Propagation::HostToContainer),
            ("Bidirectional", Propagation::Bidirectional),
        ],
    );
    let recursive = object.word(
        "recursiveReadOnly",
        &[
            ("Disabled", RecursiveReadOnly::Disabled),
            ("IfPossible", RecursiveReadOnly::IfPossible),
            ("Enabled", RecursiveReadOnly::Enabled),
        ],
    );
    let mount = VolumeMount {
        volume,
        path,
        read_only: object.boolean("readOnly").unwrap_or(false),
        recursive_read_only: recursive.unwrap_or_default(),
        sub_path,
        expand_sub_path,
        propagation: propagation.unwrap_or_default(),
    };
    let wants_recursive = mount.recursive_read_only != RecursiveReadOnly::Disabled;
    if wants_recursive && (!mount.read_only || mount.propagation != Propagation::None) {
        object.problem("recursiveReadOnly", "needs readOnly: true and no mountPropagation");
    }
    mount
}
