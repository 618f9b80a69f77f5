//! Reads securityContext, of pods and of containers.

use super::reader::Object;
use super::schema::{ContainerSecurity, HostNamespaces, PodSecurity, Profile, SeLinux, SharedSecurity};

/// The largest id of Linux; the one above it means "no id".
const MAX_ID: i64 = u32::MAX as i64 - 1;

/// Reads the pod's securityContext.
pub fn pod_security(spec: &mut Object<'_>, host: HostNamespaces) -> PodSecurity {
    let Some(mut object) = spec.object("securityContext") else { return PodSecurity::default() };
    object.pass_over(&["windowsOptions", "fsGroupChangePolicy", "seLinuxChangePolicy"]);
    let strict = object.word("supplementalGroupsPolicy", &[("Merge", false), ("Strict", true)]).unwrap_or(false);
    let groups = object.integers("supplementalGroups");
    if groups.iter().any(|group| !(0..=MAX_ID).contains(group)) {
        object.problem("supplementalGroups", format_args!("ids must be within 0–{MAX_ID}"));
    }
    let mut security = PodSecurity {
        shared: shared(&mut object),
        groups,
        strict_groups: strict,
        fs_group: object.integer_within("fsGroup", 0..=MAX_ID),
        ..PodSecurity::default()
    };
    for mut sysctl in object.objects("sysctls") {
        let name = sysctl.string("name").unwrap_or_default().replace('/', ".");
        let of_host = (host.network && name.starts_with("net."))
            || (host.ipc
                && (name.starts_with("kernel.shm")
                    || name.starts_with("kernel.msg")
                    || name.starts_with("fs.mqueue.")));
        if of_host {
            sysctl.problem("name", format_args!("{name} would be changed for the whole host"));
        }
        security.sysctls.insert(name, sysctl.scalar("value").unwrap_or_default());
    }
    security
}

/// Reads a container's securityContext.
pub fn container_security(container: &mut Object<'_>) -> ContainerSecurity {
    let Some(mut object) = container.object("securityContext") else { return ContainerSecurity::default() };
    object.pass_over(&["windowsOptions"]);
    let mut security = ContainerSecurity {
        shared: shared(&mut object),
        privileged: object.boolean("privileged").unwrap_or(false),
        read_only_root: object.boolean("readOnlyRootFilesystem").unwrap_or(false),
        no_new_privileges: object.boolean("allowPrivilegeEscalation") == Some(false),
        unmasked: object.word("procMount", &[("Default", false), ("Unmasked", true)]).unwrap_or(false),
        ..ContainerSecurity::default()
    };
    if let Some(mut capabilities) = object.object("capabilities") {
        security.add = capability_names(&mut capabilities, "add");
        security.drop = capability_names(&mut capabilities, "drop");
    }
    let admin = security.add.iter().any(|name| name == "SYS_ADMIN");
    if security.no_new_privileges && (security.privileged || admin) {
        object.problem("allowPrivilegeEscalation", "false contradicts privileged and SYS_ADMIN");
    }
    security
}

fn capability_names(object: &mut Object<'_>, key: &'static str) -> Vec<String> {
    let names: Vec<String> = object.strings(key);
    for (index, name) in names.iter().enumerate() {
        let shaped = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_');
        if !shaped || name.starts_with("CAP_") {
            let place = format!("{key}[{index}]");
            object.problem(
                &place,
                format_args!("{name:?}: write capabilities in capitals and without CAP_, as NET_ADMIN"),
            );
        }
    }
    names
}

fn shared(object: &mut Object<'_>) -> SharedSecurity {
    SharedSecurity {
        user: object.integer_within("runAsUser", 0..=MAX_ID),
        group: object.integer_within("runAsGroup", 0..=MAX_ID),
        non_root: object.boolean("runAsNonRoot"),
        seccomp: object.object("seccompProfile").and_then(|profile| self::profile(profile, true)),
        apparmor: object.object("appArmorProfile").and_then(|profile| self::profile(profile, false)),
        selinux: object.object("seLinuxOptions").map(|mut options| SeLinux {
            user: options.string("user").unwrap_or_default(),
            role: options.string("role").unwrap_or_default(),
            kind: options.string("type").unwrap_or_default(),
            level: options.string("level").unwrap_or_default(),
        }),
    }
}

fn profile(mut object: Object<'_>, is_path: bool) -> Option<Profile> {
    #[derive(Clone, Copy)]
    enum Kind {
        Default,
        Unconfined,
        Localhost,
    }
    let words = [("RuntimeDefault", Kind::Default), ("Unconfined", Kind::Unconfined), ("Localhost", Kind::Localhost)];
    let local = object.string("localhostProfile");
    match (object.word("type", &words)?, local) {
        (Kind::Default, None) => Some(Profile::RuntimeDefault),
        (Kind::Unconfined, None) => Some(Profile::Unconfined),
        (Kind::Localhost, Some(name)) => {
            let climbs = name.starts_with('/') || name.split('/').any(|part| part == "..");
            if name.is_empty() || (is_path && climbs) {
                object.problem("localhostProfile", format_args!("{name:?} must be relative and without '..'"));
            }
            Some(Profile::Localhost(name))
        }
        (Kind::Localhost, None) => {
            object.problem("localhostProfile", "is missing");
            None
        }
        (_, Some(_)) => {
            object.problem("localhostProfile", "belongs to type Localhost only");
            None
        }
    }
}
