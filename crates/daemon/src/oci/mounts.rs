//! What is mounted in a container, and in which order.
//!
//! First what every container has, then the pod's files and the volumes together, those with fewer parts in their
//! path first, so that no volume hides one that lies below it. A volume replaces what would be at the same place.

use super::build::id_mappings;
use super::{Inputs, cleaned};
use knarr_model::spec::{Mount as Volume, MountSource, Propagation};
use knarr_model::{Error, IdMap};
use oci_spec::runtime::Mount;

/// A mount that every container has.
type DefaultMount = (&'static str, &'static str, &'static str, &'static [&'static str]);

const DEFAULTS: [DefaultMount; 6] = [
    ("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
    ("/dev", "tmpfs", "tmpfs", &["nosuid", "mode=755", "size=65536k"]),
    ("/dev/pts", "devpts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
    ("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
    ("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev"]),
    ("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime"]),
];

/// The group that terminals belong to, and how devpts is told.
const TERMINALS: (u32, &str) = (5, "gid=5");

/// Of the defaults, those that a container that is not privileged cannot write to.
const READ_ONLY: [&str; 2] = ["/sys", "/sys/fs/cgroup"];

/// Files that a pod's containers share, by place and name.
const POD_FILES: [(&str, &str); 3] =
    [("/etc/hostname", "hostname"), ("/etc/hosts", "hosts"), ("/etc/resolv.conf", "resolv.conf")];

/// Everything to mount, in order.
pub(super) fn mounts(inputs: &Inputs<'_>) -> Result<Vec<Mount>, Error> {
    let volumes = &inputs.container.mounts;
    let taken: Vec<String> = volumes.iter().map(|volume| cleaned(&volume.container_path)).collect();
    let whole_dev = taken.iter().any(|place| place == "/dev");
    let free = |place: &str| !taken.iter().any(|other| other == place);

    let mut mounts: Vec<Mount> = DEFAULTS
        .iter()
        .filter(|(place, ..)| free(place) && !(whole_dev && place.starts_with("/dev/")))
        .map(|default| default_mount(default, inputs))
        .collect();
    let mut placed: Vec<(String, Mount)> = of_pod(inputs).into_iter().filter(|(place, _)| free(place)).collect();
    let mut images = 0..;
    let source = |volume: &Volume| match &volume.source {
        MountSource::Host(path) => path.clone(),
        MountSource::Image { .. } => inputs.pod_dir.image_volume(images.next().unwrap_or_default()),
    };
    let sources: Vec<String> = volumes.iter().map(source).collect();
    for ((place, one), source) in taken.iter().zip(volumes).zip(&sources) {
        placed.push((place.clone(), volume(one, source)?));
    }
    // Stable: volumes with as many parts stay in the order of the request.
    placed.sort_by_key(|(place, _)| place.split('/').filter(|part| !part.is_empty()).count());
    mounts.extend(placed.into_iter().map(|(_, mount)| mount));
    Ok(mounts)
}

/// How mounts in the container and on the host see each other at the root: foreign runtimes must make the root at
/// least as open as the most open volume.
pub(super) fn rootfs_propagation(volumes: &[Volume]) -> Option<&'static str> {
    let any = |wanted| volumes.iter().any(|volume| volume.propagation == wanted);
    match (any(Propagation::Bidirectional), any(Propagation::HostToContainer)) {
        (true, _) => Some("rshared"),
        (false, true) => Some("rslave"),
        (false, false) => None,
    }
}

fn default_mount((place, kind, source, options): &DefaultMount, inputs: &Inputs<'_>) -> Mount {
    let writable = inputs.container.security.privileged || !READ_ONLY.contains(place);
    // A user namespace may be too small to have the group of terminals.
    let has_terminals = inputs.pod.namespaces.user.is_none_or(|user| user.gids.to_host(TERMINALS.0).is_some());
    let options = options.iter().copied().filter(|option| has_terminals || *option != TERMINALS.1);
    let options = options.chain((!writable).then_some("ro"));
    mount(place, kind, source, options.map(str::to_owned).collect())
}

/// The pod's /dev/shm and the files that kubelet does not bring.
fn of_pod(inputs: &Inputs<'_>) -> Vec<(String, Mount)> {
    let access = if inputs.container.security.read_only_rootfs { "ro" } else { "rw" };
    let bind = |place: &str, source: &str, access: &str| {
        let options = ["rbind", "rprivate", access].map(str::to_owned).to_vec();
        (place.to_owned(), mount(place, "bind", source, options))
    };
    let shm = if inputs.container.security.host_ipc { "/dev/shm".to_owned() } else { inputs.pod_dir.shm() };
    let mut of_pod: Vec<_> =
        POD_FILES.iter().map(|(place, name)| bind(place, &inputs.pod_dir.file(name), access)).collect();
    let shm_options = ["rbind", "rprivate", "rw", "nosuid", "noexec", "nodev"].map(str::to_owned).to_vec();
    of_pod.push(("/dev/shm".to_owned(), mount("/dev/shm", "bind", &shm, shm_options)));
    of_pod
}

fn volume(volume: &Volume, source: &str) -> Result<Mount, Error> {
    let propagation = match volume.propagation {
        Propagation::Private => "rprivate",
        Propagation::HostToContainer => "rslave",
        Propagation::Bidirectional => "rshared",
    };
    let access = match (volume.recursive_read_only, volume.read_only) {
        (true, _) => "rro",
        (false, true) => "ro",
        (false, false) => "rw",
    };
    let options = ["rbind", propagation, access].map(str::to_owned).to_vec();
    let mut mount = mount(&volume.container_path, "bind", source, options);
    let mappings = |maps: &[IdMap]| maps.first().map(id_mappings).transpose();
    mount.set_uid_mappings(mappings(&volume.uid_mappings)?).set_gid_mappings(mappings(&volume.gid_mappings)?);
    Ok(mount)
}

fn mount(place: &str, kind: &str, source: &str, options: Vec<String>) -> Mount {
    let mut mount = Mount::default();
    mount
        .set_destination(place.into())
        .set_typ(Some(kind.to_owned()))
        .set_source(Some(source.into()))
        .set_options(Some(options))
        .set_uid_mappings(None)
        .set_gid_mappings(None);
    mount
}
