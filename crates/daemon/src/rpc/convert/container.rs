//! ContainerConfig to [`ContainerSpec`].

use super::security::{id_map, security};
use super::signal::signal_from_cri;
use super::text::{absolute_path, at_most, map, name, no_dot_dot, no_nul, one_line, path};
use super::{
    ARG_BYTES_MAX, ARGS_BYTES_MAX, ARGS_MAX, DEVICES_MAX, IMAGE_VOLUMES_MAX, MOUNTS_MAX, PATH_BYTES_MAX, resources,
};
use crate::oci::cdi;
use knarr_cri_api::v1;
use knarr_model::spec::{ContainerSpec, Device, Mount, MountSource, PodSpec, Propagation};
use knarr_model::{Error, IdMap};
use std::collections::{BTreeMap, BTreeSet};

/// Bytes of an image's name or id.
const IMAGE_BYTES_MAX: usize = 1024;

/// Parses CreateContainer's config; `sandbox` is the pod it will be in.
pub fn container_spec(config: v1::ContainerConfig, sandbox: &PodSpec) -> Result<ContainerSpec, Error> {
    let metadata = config.metadata.ok_or_else(|| Error::invalid("config.metadata", "is required"))?;
    name("config.metadata.name", &metadata.name)?;
    let image = config.image.ok_or_else(|| Error::invalid("config.image", "is required"))?;
    if image.image.is_empty() {
        return Err(Error::invalid("config.image.image", "is required"));
    }
    image_name("config.image.image", &image.image)?;
    image_name("config.image.user_specified_image", &image.user_specified_image)?;

    check_arguments("config.command", &config.command)?;
    check_arguments("config.args", &config.args)?;
    if !config.working_dir.is_empty() {
        absolute_path("config.working_dir", &config.working_dir)?;
    }
    check_log_path(&config.log_path)?;
    let stop_signal = stop_signal(config.stop_signal)?;
    let annotations = map("config.annotations", config.annotations)?;

    let linux = config.linux.unwrap_or_default();
    Ok(ContainerSpec {
        name: metadata.name,
        attempt: metadata.attempt,
        image: image.image,
        user_image: image.user_specified_image,
        command: config.command,
        args: config.args,
        working_dir: config.working_dir,
        envs: envs(config.envs)?,
        mounts: mounts(config.mounts, sandbox)?,
        devices: devices(config.devices)?,
        cdi_devices: cdi_devices(config.cdi_devices, &annotations)?,
        labels: map("config.labels", config.labels)?,
        annotations,
        log_path: config.log_path,
        stdin: config.stdin,
        stdin_once: config.stdin_once,
        tty: config.tty,
        stop_signal,
        resources: resources("config.linux.resources", linux.resources.unwrap_or_default())?,
        security: security(linux.security_context, sandbox)?,
    })
}

fn image_name(field: &str, name: &str) -> Result<(), Error> {
    at_most(field, name.len(), IMAGE_BYTES_MAX, "bytes")?;
    one_line(field, name)
}

/// The words of a command.
pub fn check_arguments(field: &str, arguments: &[String]) -> Result<(), Error> {
    at_most(field, arguments.len(), ARGS_MAX, "arguments")?;
    at_most(field, arguments.iter().map(|argument| argument.len() + 1).sum(), ARGS_BYTES_MAX, "bytes")?;
    for (at, argument) in arguments.iter().enumerate() {
        let field = format!("{field}[{at}]");
        at_most(&field, argument.len(), ARG_BYTES_MAX, "bytes")?;
        no_nul(&field, argument)?;
    }
    Ok(())
}

/// Values may hold line breaks: keys and certificates are given to containers in this way. The protocol lets them be
/// any bytes, the OCI specification only text, and a value must not arrive changed.
fn envs(envs: Vec<v1::KeyValue>) -> Result<Vec<(String, String)>, Error> {
    at_most("config.envs", envs.len(), ARGS_MAX, "variables")?;
    at_most("config.envs", envs.iter().map(|env| env.key.len() + env.value.len() + 2).sum(), ARGS_BYTES_MAX, "bytes")?;
    envs.into_iter().enumerate().map(|(at, given)| env(at, given)).collect()
}

fn env(at: usize, env: v1::KeyValue) -> Result<(String, String), Error> {
    let field = format!("config.envs[{at}]");
    if env.key.is_empty() {
        return Err(Error::invalid(&format!("{field}.key"), "is required"));
    }
    if let Some(bad) = env.key.chars().find(|c| *c == '=' || c.is_control()) {
        return Err(Error::invalid(&format!("{field}.key"), format!("{:?} holds {bad:?}", env.key)));
    }
    at_most(&field, env.key.len() + 1 + env.value.len(), ARG_BYTES_MAX, "bytes")?;
    let value = String::from_utf8(env.value).map_err(|_| Error::invalid(&format!("{field}.value"), "is not UTF-8"))?;
    no_nul(&format!("{field}.value"), &value)?;
    Ok((env.key, value))
}

/// Joined below the pod's log directory, and it must stay there.
fn check_log_path(log_path: &str) -> Result<(), Error> {
    const FIELD: &str = "config.log_path";
    if log_path.is_empty() {
        return Ok(());
    }
    path(FIELD, log_path)?;
    no_dot_dot(FIELD, log_path)?;
    if log_path.starts_with('/') || log_path.ends_with('/') || log_path == "." {
        return Err(Error::invalid(FIELD, format!("{log_path:?} is no file below the pod's log directory")));
    }
    Ok(())
}

fn stop_signal(raw: i32) -> Result<Option<u8>, Error> {
    match (raw, signal_from_cri(raw)) {
        (0, _) => Ok(None),
        (_, Some(number)) => Ok(Some(number)),
        (_, None) => Err(Error::invalid("config.stop_signal", format!("{raw} is no signal"))),
    }
}

fn mounts(mounts: Vec<v1::Mount>, sandbox: &PodSpec) -> Result<Vec<Mount>, Error> {
    at_most("config.mounts", mounts.len(), MOUNTS_MAX, "mounts")?;
    let mounts: Vec<Mount> =
        mounts.into_iter().enumerate().map(|(at, given)| mount(at, given, sandbox)).collect::<Result<_, _>>()?;
    let images = mounts.iter().filter(|mount| matches!(mount.source, MountSource::Image { .. })).count();
    at_most("config.mounts", images, IMAGE_VOLUMES_MAX, "images")?;
    Ok(mounts)
}

fn mount(at: usize, mount: v1::Mount, sandbox: &PodSpec) -> Result<Mount, Error> {
    let field = |name: &str| format!("config.mounts[{at}].{name}");
    absolute_path(&field("container_path"), &mount.container_path)?;
    if mount.container_path.split('/').all(|part| part.is_empty() || part == ".") {
        return Err(Error::invalid(&field("container_path"), "is the container's root"));
    }
    let propagation = match v1::MountPropagation::try_from(mount.propagation) {
        Ok(v1::MountPropagation::PropagationPrivate) => Propagation::Private,
        Ok(v1::MountPropagation::PropagationHostToContainer) => Propagation::HostToContainer,
        Ok(v1::MountPropagation::PropagationBidirectional) => Propagation::Bidirectional,
        Err(_) => return Err(Error::invalid(&field("propagation"), format!("{} is none", mount.propagation))),
    };
    if mount.recursive_read_only && (!mount.readonly || propagation != Propagation::Private) {
        let why = "needs readonly and PROPAGATION_PRIVATE";
        return Err(Error::invalid(&field("recursive_read_only"), why));
    }
    let (uid_mappings, gid_mappings) = id_mappings(at, &mount, sandbox)?;
    let source = mount_source(at, mount.host_path, mount.image, mount.image_sub_path)?;
    if matches!(source, MountSource::Image { .. }) && !mount.readonly {
        return Err(Error::invalid(&field("readonly"), "a volume that is an image is read-only"));
    }
    Ok(Mount {
        container_path: mount.container_path,
        source,
        read_only: mount.readonly,
        recursive_read_only: mount.recursive_read_only,
        selinux_relabel: mount.selinux_relabel,
        propagation,
        uid_mappings,
        gid_mappings,
    })
}

/// Owners are mapped by the pod's own user namespace or not at all: kubelet asks for nothing else.
fn id_mappings(at: usize, mount: &v1::Mount, sandbox: &PodSpec) -> Result<(Vec<IdMap>, Vec<IdMap>), Error> {
    let given = |mappings: &[v1::IdMapping]| mappings.iter().map(id_map).collect::<Vec<_>>();
    let (uids, gids) = (given(&mount.uid_mappings), given(&mount.gid_mappings));
    if uids.is_empty() && gids.is_empty() {
        return Ok((uids, gids));
    }
    let refused = |name: &str, why: &str| Err(Error::invalid(&format!("config.mounts[{at}].{name}"), why));
    match &sandbox.namespaces.user {
        None => refused("uidMappings", "the pod has no user namespace"),
        Some(user) if uids != [user.uids] => refused("uidMappings", "are not those of the pod"),
        Some(user) if gids != [user.gids] => refused("gidMappings", "are not those of the pod"),
        Some(_) => Ok((uids, gids)),
    }
}

/// A path of the host or an image, never both. An ImageSpec without a name is none: older clients send one.
fn mount_source(
    at: usize,
    host_path: String,
    image: Option<v1::ImageSpec>,
    image_sub_path: String,
) -> Result<MountSource, Error> {
    let field = |name: &str| format!("config.mounts[{at}].{name}");
    let image = image.map(|spec| spec.image).filter(|name| !name.is_empty());
    match (host_path.is_empty(), image) {
        (false, Some(_)) => Err(Error::invalid(&field("image"), "host_path is given too")),
        (true, None) => Err(Error::invalid(&field("host_path"), "is required")),
        (false, None) => {
            absolute_path(&field("host_path"), &host_path)?;
            if !image_sub_path.is_empty() {
                return Err(Error::invalid(&field("image_sub_path"), "needs image"));
            }
            Ok(MountSource::Host(host_path))
        }
        (true, Some(image)) => {
            image_name(&field("image.image"), &image)?;
            path(&field("image_sub_path"), &image_sub_path)?;
            no_dot_dot(&field("image_sub_path"), &image_sub_path)?;
            if image_sub_path.starts_with('/') {
                return Err(Error::invalid(&field("image_sub_path"), "is not relative"));
            }
            Ok(MountSource::Image { image, sub_path: image_sub_path })
        }
    }
}

fn devices(devices: Vec<v1::Device>) -> Result<Vec<Device>, Error> {
    at_most("config.devices", devices.len(), DEVICES_MAX, "devices")?;
    devices.into_iter().enumerate().map(|(at, given)| device(at, given)).collect()
}

fn device(at: usize, device: v1::Device) -> Result<Device, Error> {
    let field = |name: &str| format!("config.devices[{at}].{name}");
    absolute_path(&field("container_path"), &device.container_path)?;
    absolute_path(&field("host_path"), &device.host_path)?;
    no_dot_dot(&field("container_path"), &device.container_path)?;
    let given = &device.permissions;
    if given.is_empty() || given.chars().any(|c| !matches!(c, 'r' | 'w' | 'm')) {
        return Err(Error::invalid(&field("permissions"), format!("{given:?} is not made of r, w and m")));
    }
    let permissions = ['r', 'w', 'm'].into_iter().filter(|c| given.contains(*c)).collect();
    Ok(Device { container_path: device.container_path, host_path: device.host_path, permissions })
}

/// Fully qualified names, `vendor/class=device`: those of the field, then those of annotations; each counts once.
fn cdi_devices(devices: Vec<v1::CdiDevice>, annotations: &BTreeMap<String, String>) -> Result<Vec<String>, Error> {
    let of_field = devices.iter().enumerate();
    let of_field = of_field.map(|(at, device)| (format!("config.CDI_devices[{at}].name"), device.name.as_str()));
    let annotated = cdi::in_annotations(annotations);
    let annotated = annotated.map(|(key, name)| (format!("config.annotations[{key}]"), name));
    let mut names: Vec<String> = Vec::new();
    let mut seen = BTreeSet::new();
    for (field, name) in of_field.chain(annotated) {
        at_most(&field, name.len(), PATH_BYTES_MAX, "bytes")?;
        cdi::check_name(name).map_err(|why| Error::invalid(&field, format!("{name:?}: {why}")))?;
        if seen.insert(name.to_owned()) {
            at_most("config.CDI_devices", names.len() + 1, DEVICES_MAX, "devices")?;
            names.push(name.to_owned());
        }
    }
    Ok(names)
}
