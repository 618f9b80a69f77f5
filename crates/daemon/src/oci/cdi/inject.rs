//! What edits do to a container's specification.
//!
//! [`complete`] looks at the host's devices, once; [`apply`] is a function of values.

use super::file::{DeviceNode, Edits, HOOKS, Hook, IntelRdt, Mount, NO_PERMISSIONS};
use crate::oci::build::bug;
use knarr_model::{Error, ErrorKind};
use oci_spec::runtime::{
    self as oci, HookBuilder, Hooks, Linux, LinuxDevice, LinuxDeviceBuilder, LinuxDeviceCgroupBuilder, LinuxDeviceType,
    LinuxIntelRdt, LinuxIntelRdtBuilder, LinuxNetDevice, Process, Spec,
};
use rustix::fs::{FileType, major, minor, stat};
use std::collections::HashMap;

/// Permission bits of a node that neither the file nor the host says.
const MODE_DEFAULT: u32 = 0o666;

/// Fills in what a file leaves to the host: kinds, numbers and modes of device nodes. A node that is not there is an
/// error, unless the file says all of it.
pub(super) fn complete(edits: &mut Edits) -> Result<(), Error> {
    edits.device_nodes.iter_mut().try_for_each(complete_node)
}

fn complete_node(node: &mut DeviceNode) -> Result<(), Error> {
    let path = if node.host_path.is_empty() { &node.path } else { &node.host_path };
    let failed = |why: String| Error::new(ErrorKind::FailedPrecondition, format!("CDI device node {path}: {why}"));
    let says_all = !node.kind.is_empty() && (node.major != 0 || node.kind == "p");
    let found = match stat(path.as_str()) {
        Ok(found) => found,
        Err(_) if says_all => return Ok(()),
        Err(errno) => return Err(failed(errno.to_string())),
    };
    let kind = match FileType::from_raw_mode(found.st_mode) {
        FileType::BlockDevice => "b",
        FileType::CharacterDevice => "c",
        FileType::Fifo => "p",
        _ if says_all => return Ok(()),
        _ => return Err(failed("is no device".into())),
    };
    if !says_all {
        let same = node.kind.is_empty() || node.kind == kind || (node.kind == "u" && kind == "c");
        if !same {
            return Err(failed(format!("is of type {kind} on this host, and its file says {}", node.kind)));
        }
        kind.clone_into(&mut node.kind);
        if kind != "p" {
            (node.major, node.minor) = (major(found.st_rdev).into(), minor(found.st_rdev).into());
        }
    }
    node.file_mode.get_or_insert(found.st_mode & 0o7777);
    Ok(())
}

/// Changes a specification. What is there already at the place of a device or mount, or under the name of a variable,
/// is replaced.
pub(super) fn apply(edits: &Edits, spec: &mut Spec) -> Result<(), Error> {
    let mut process = spec.process().clone().unwrap_or_default();
    let mut linux = spec.linux().clone().unwrap_or_default();
    add_variables(&edits.env, &mut process);
    for node in &edits.device_nodes {
        add_device(node, &process, &mut linux)?;
    }
    add_groups(&edits.additional_gids, &mut process);
    if !edits.net_devices.is_empty() {
        let named = |name: &str| LinuxNetDevice::default().set_name(Some(name.to_owned())).clone();
        let mut devices: HashMap<String, LinuxNetDevice> = linux.net_devices().clone().unwrap_or_default();
        devices.extend(edits.net_devices.iter().map(|one| (one.host_interface_name.clone(), named(&one.name))));
        linux.set_net_devices(Some(devices));
    }
    if let Some(rdt) = &edits.intel_rdt {
        linux.set_intel_rdt(Some(intel_rdt(rdt)?));
    }
    spec.set_process(Some(process)).set_linux(Some(linux));
    add_mounts(&edits.mounts, spec);
    if !edits.hooks.is_empty() {
        let mut hooks = spec.hooks().clone().unwrap_or_default();
        edits.hooks.iter().try_for_each(|hook| add_hook(hook, &mut hooks))?;
        spec.set_hooks(Some(hooks));
    }
    Ok(())
}

fn add_variables(variables: &[String], process: &mut Process) {
    fn name(entry: &str) -> &str {
        entry.split('=').next().unwrap_or_default()
    }
    let mut all = process.env().clone().unwrap_or_default();
    let mut places: HashMap<String, usize> =
        all.iter().enumerate().map(|(place, entry)| (name(entry).to_owned(), place)).collect();
    for entry in variables {
        if let Some(place) = places.get(name(entry)) {
            all[*place].clone_from(entry);
        } else {
            places.insert(name(entry).to_owned(), all.len());
            all.push(entry.clone());
        }
    }
    process.set_env(Some(all));
}

fn add_groups(groups: &[u32], process: &mut Process) {
    let mut user = process.user().clone();
    let mut all = user.additional_gids().clone().unwrap_or_default();
    for group in groups.iter().filter(|group| **group != 0) {
        if !all.contains(group) {
            all.push(*group);
        }
    }
    user.set_additional_gids(Some(all));
    process.set_user(user);
}

/// The node belongs to whom its file says, else to the container's user: it was asked for to be used.
fn add_device(node: &DeviceNode, process: &Process, linux: &mut Linux) -> Result<(), Error> {
    let kind = match node.kind.as_str() {
        "b" => LinuxDeviceType::B,
        "p" => LinuxDeviceType::P,
        _ => LinuxDeviceType::C,
    };
    let user = process.user();
    let device: LinuxDevice = LinuxDeviceBuilder::default()
        .path(node.path.as_str())
        .typ(kind)
        .major(node.major)
        .minor(node.minor)
        .file_mode(node.file_mode.unwrap_or(MODE_DEFAULT))
        .uid(node.uid.unwrap_or(user.uid()))
        .gid(node.gid.unwrap_or(user.gid()))
        .build()
        .map_err(bug)?;
    let mut devices = linux.devices().clone().unwrap_or_default();
    devices.retain(|other| other.path() != device.path());
    devices.push(device);
    linux.set_devices(Some(devices));
    if kind == LinuxDeviceType::P || node.permissions == NO_PERMISSIONS {
        return Ok(());
    }
    let access = if node.permissions.is_empty() { "rwm" } else { &node.permissions };
    let rule = LinuxDeviceCgroupBuilder::default()
        .allow(true)
        .typ(kind)
        .major(node.major)
        .minor(node.minor)
        .access(access)
        .build()
        .map_err(bug)?;
    let mut resources = linux.resources().clone().unwrap_or_default();
    let mut rules = resources.devices().clone().unwrap_or_default();
    rules.push(rule);
    resources.set_devices(Some(rules));
    linux.set_resources(Some(resources));
    Ok(())
}

/// Those with fewer parts in their path first, so that none hides another.
fn add_mounts(mounts: &[Mount], spec: &mut Spec) {
    if mounts.is_empty() {
        return;
    }
    let mut all = spec.mounts().clone().unwrap_or_default();
    for given in mounts {
        let place = crate::oci::cleaned(&given.container_path);
        all.retain(|other| crate::oci::cleaned(&other.destination().to_string_lossy()) != place);
        let mut options = given.options.clone();
        let is_bind = options.iter().any(|option| option == "bind" || option == "rbind");
        if given.kind.is_empty() && !is_bind {
            options.insert(0, "rbind".into());
        }
        let mut mount = oci::Mount::default();
        mount
            .set_destination(given.container_path.as_str().into())
            .set_typ(Some(if given.kind.is_empty() { "bind".into() } else { given.kind.clone() }))
            .set_source(Some(given.host_path.as_str().into()))
            .set_options(Some(options))
            .set_uid_mappings(None)
            .set_gid_mappings(None);
        all.push(mount);
    }
    let parts = |mount: &oci::Mount| crate::oci::cleaned(&mount.destination().to_string_lossy()).matches('/').count();
    all.sort_by_key(parts);
    spec.set_mounts(Some(all));
}

fn add_hook(given: &Hook, hooks: &mut Hooks) -> Result<(), Error> {
    let mut builder = HookBuilder::default().path(given.path.as_str()).args(given.args.clone()).env(given.env.clone());
    if let Some(seconds) = given.timeout {
        builder = builder.timeout(seconds);
    }
    let hook = builder.build().map_err(bug)?;
    let with = |list: &Option<Vec<oci::Hook>>| Some([list.clone().unwrap_or_default(), vec![hook.clone()]].concat());
    match HOOKS.iter().position(|name| *name == given.hook_name) {
        #[allow(deprecated)]
        Some(0) => drop(hooks.set_prestart(with(hooks.prestart()))),
        Some(1) => drop(hooks.set_create_runtime(with(hooks.create_runtime()))),
        Some(2) => drop(hooks.set_create_container(with(hooks.create_container()))),
        Some(3) => drop(hooks.set_start_container(with(hooks.start_container()))),
        Some(4) => drop(hooks.set_poststart(with(hooks.poststart()))),
        Some(5) => drop(hooks.set_poststop(with(hooks.poststop()))),
        _ => return Err(Error::internal(format!("the hook {:?} is none", given.hook_name))),
    }
    Ok(())
}

fn intel_rdt(rdt: &IntelRdt) -> Result<LinuxIntelRdt, Error> {
    let mut builder = LinuxIntelRdtBuilder::default().enable_monitoring(rdt.enable_monitoring);
    if !rdt.clos_id.is_empty() {
        builder = builder.clos_id(rdt.clos_id.as_str());
    }
    if !rdt.l3_cache_schema.is_empty() {
        builder = builder.l3_cache_schema(rdt.l3_cache_schema.as_str());
    }
    if !rdt.mem_bw_schema.is_empty() {
        builder = builder.mem_bw_schema(rdt.mem_bw_schema.as_str());
    }
    if !rdt.schemata.is_empty() {
        builder = builder.schemata(rdt.schemata.clone());
    }
    builder.build().map_err(bug)
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::UserBuilder;

    fn edits(yaml: &str) -> Edits {
        yaml_serde::from_str(yaml).unwrap()
    }

    fn spec() -> Spec {
        let mut process = Process::default();
        process
            .set_user(UserBuilder::default().uid(1000u32).gid(1001u32).additional_gids([7]).build().unwrap())
            .set_env(Some(vec!["PATH=/bin".into(), "A=old".into()]));
        let mut mounts = Vec::new();
        for place in ["/proc", "/dev", "/dev/pts", "/data"] {
            let mut mount = oci::Mount::default();
            mount.set_destination(place.into()).set_source(Some("before".into()));
            mounts.push(mount);
        }
        let mut spec = Spec::default();
        spec.set_process(Some(process)).set_mounts(Some(mounts)).set_linux(Some(Linux::default())).set_hooks(None);
        spec
    }

    #[test]
    fn variables_and_groups_are_added_and_replaced() {
        let mut spec = spec();
        apply(&edits("{env: [B=1, A=new, 'B=2=3'], additionalGids: [0, 44, 7, 44]}"), &mut spec).unwrap();
        let process = spec.process().as_ref().unwrap();
        assert_eq!(process.env().as_deref().unwrap(), ["PATH=/bin", "A=new", "B=2=3"]);
        assert_eq!(process.user().additional_gids().as_deref().unwrap(), [7, 44]);
        assert!(spec.hooks().is_none());
    }

    #[test]
    fn a_device_is_the_users_and_allowed_as_its_file_says() {
        let mut all = edits(
            "deviceNodes:\n\
             - {path: /dev/a, hostPath: /dev/null}\n\
             - {path: /dev/b, type: b, major: 8, minor: 1, permissions: r, uid: 0, gid: 6, fileMode: 0640}\n\
             - {path: /dev/c, type: c, major: 1, minor: 5, permissions: none}\n\
             - {path: /dev/a, hostPath: /dev/zero, permissions: rw}",
        );
        complete(&mut all).unwrap();
        let mut spec = spec();
        apply(&all, &mut spec).unwrap();
        let linux = spec.linux().as_ref().unwrap();
        let nodes: Vec<_> = linux.devices().iter().flatten().collect();
        let shown: Vec<String> = nodes
            .iter()
            .map(|d| {
                let path = d.path().display();
                format!("{path} {} {}:{} {:?} {:?}", d.typ().as_str(), d.major(), d.minor(), d.uid(), d.gid())
            })
            .collect();
        assert_eq!(
            shown,
            [
                "/dev/b b 8:1 Some(0) Some(6)",
                "/dev/c c 1:5 Some(1000) Some(1001)",
                "/dev/a c 1:5 Some(1000) Some(1001)"
            ]
        );
        assert_eq!(nodes[0].file_mode(), Some(0o640));
        assert_eq!(nodes[2].file_mode().unwrap() & 0o666, 0o666, "that of the host's node");
        let rules = linux.resources().as_ref().unwrap().devices().clone().unwrap();
        let rules: Vec<_> = rules.iter().map(|r| (r.major(), r.minor(), r.access().clone().unwrap())).collect();
        let rule = |major, minor, access: &str| (Some(major), Some(minor), access.to_owned());
        assert_eq!(rules, [rule(1, 3, "rwm"), rule(8, 1, "r"), rule(1, 5, "rw")]);
    }

    #[test]
    fn a_node_that_the_host_lacks_must_be_described_whole() {
        complete(&mut edits("deviceNodes: [{path: /dev/absent, type: c, major: 10, minor: 7}]")).unwrap();
        complete(&mut edits("deviceNodes: [{path: /dev/absent, type: p}]")).unwrap();
        for bad in
            ["{path: /dev/absent}", "{path: /dev/absent, type: c}", "{path: /etc/passwd}", "{path: /dev/null, type: b}"]
        {
            let error = complete(&mut edits(&format!("deviceNodes: [{bad}]"))).unwrap_err();
            assert_eq!(error.kind, ErrorKind::FailedPrecondition);
            assert!(error.message.starts_with("CDI device node /"), "{error}");
        }
    }

    #[test]
    fn mounts_replace_what_was_there_and_hide_nothing() {
        let mut spec = spec();
        let yaml = "mounts:\n\
                    - {hostPath: /h/deep, containerPath: /data/deep, options: [ro, rbind]}\n\
                    - {hostPath: /h/data, containerPath: /data/, options: [ro]}\n\
                    - {hostPath: tmpfs, containerPath: /scratch, type: tmpfs, options: [size=1m]}";
        apply(&edits(yaml), &mut spec).unwrap();
        let shown: Vec<String> =
            spec.mounts().as_ref().unwrap().iter().map(|m| m.destination().display().to_string()).collect();
        assert_eq!(shown, ["/proc", "/dev", "/data/", "/scratch", "/dev/pts", "/data/deep"]);
        let mounts = spec.mounts().as_ref().unwrap();
        assert_eq!(mounts[2].options().as_deref().unwrap(), ["rbind", "ro"]);
        assert_eq!(mounts[3].typ().as_deref(), Some("tmpfs"));
        assert_eq!(mounts[5].typ().as_deref(), Some("bind"));
    }

    #[test]
    fn hooks_come_in_the_order_of_the_files() {
        let mut spec = spec();
        let yaml = "hooks:\n\
                    - {hookName: createContainer, path: /one, args: [one, x], timeout: 5}\n\
                    - {hookName: poststop, path: /two}\n\
                    - {hookName: createContainer, path: /three, env: [A=b]}";
        apply(&edits(yaml), &mut spec).unwrap();
        let hooks = spec.hooks().as_ref().unwrap();
        let paths = |list: &Option<Vec<oci::Hook>>| -> Vec<String> {
            list.iter().flatten().map(|hook| hook.path().display().to_string()).collect()
        };
        assert_eq!(paths(hooks.create_container()), ["/one", "/three"]);
        assert_eq!(paths(hooks.poststop()), ["/two"]);
        assert_eq!(hooks.create_container().as_ref().unwrap()[0].timeout(), Some(5));
    }

    #[test]
    fn network_devices_and_classes_of_service_are_passed_on() {
        let mut spec = spec();
        let yaml = "{netDevices: [{hostInterfaceName: eth1, name: net1}], intelRdt: {closID: gold}}";
        apply(&edits(yaml), &mut spec).unwrap();
        let linux = spec.linux().as_ref().unwrap();
        assert_eq!(linux.net_devices().as_ref().unwrap()["eth1"].name().as_deref(), Some("net1"));
        assert_eq!(linux.intel_rdt().as_ref().unwrap().clos_id().as_deref(), Some("gold"));
    }

    #[test]
    fn what_was_kept_on_disk_is_what_was_found() {
        let mut all = edits("{env: [A=b], deviceNodes: [{path: /dev/null}], hooks: [{hookName: poststop, path: /x}]}");
        complete(&mut all).unwrap();
        let text = serde_json::to_string(&all).unwrap();
        assert_eq!(serde_json::from_str::<Edits>(&text).unwrap(), all);
    }
}
