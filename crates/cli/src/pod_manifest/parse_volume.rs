//! Reads one volume of a pod.

use super::parse::check_label;
use super::parse_container::pull_policy;
use super::quantity::Quantity;
use super::reader::Object;
use super::schema::{HostPathKind, Volume};

/// Kinds of volume that need a cluster, a driver or a cloud.
const ELSEWHERE: [&str; 26] = [
    "awsElasticBlockStore",
    "azureDisk",
    "azureFile",
    "cephfs",
    "cinder",
    "csi",
    "ephemeral",
    "fc",
    "flexVolume",
    "flocker",
    "gcePersistentDisk",
    "gitRepo",
    "glusterfs",
    "iscsi",
    "nfs",
    "persistentVolumeClaim",
    "photonPersistentDisk",
    "portworxVolume",
    "projected",
    "quobyte",
    "rbd",
    "scaleIO",
    "storageos",
    "vsphereVolume",
    "downwardAPI",
    "podCertificate",
];

/// Files of a ConfigMap or Secret that say nothing else.
const DEFAULT_MODE: u32 = 0o644;

/// Reads a volume with its name.
pub fn volume(mut object: Object<'_>) -> Option<(String, Volume)> {
    let name = object.string("name").unwrap_or_default();
    check_label(&object, "name", &name);
    object.refuse(&ELSEWHERE, "knarr run has hostPath, emptyDir, configMap, secret and image");
    let host_path = object.object("hostPath").map(host_path);
    let empty_dir = object.object("emptyDir").map(empty_dir);
    let config_map = object.object("configMap").map(|files| self::files(files, false));
    let secret = object.object("secret").map(|files| self::files(files, true));
    let image = object.object("image").map(image);
    let mut found = [host_path, empty_dir, config_map, secret, image].into_iter().flatten();
    match (found.next(), found.next()) {
        (Some(volume), None) => Some((name, volume)),
        (Some(_), Some(_)) => {
            object.problem("name", format_args!("volume {name:?} is of two kinds at once"));
            None
        }
        // A volume that says nothing is an empty directory, as in Kubernetes. One that was refused above stands for one too,
        // or each of its mounts would be reported as well.
        (None, _) => Some((name, Volume::EmptyDir { memory: false, size_limit_bytes: None })),
    }
}

fn host_path(mut object: Object<'_>) -> Volume {
    let path = object.string("path").unwrap_or_default();
    if !path.starts_with('/') || path.split('/').any(|part| part == "..") {
        object.problem("path", format_args!("{path:?} is no absolute path without '..'"));
    }
    let words = [
        ("", HostPathKind::Anything),
        ("DirectoryOrCreate", HostPathKind::DirectoryOrCreate),
        ("Directory", HostPathKind::Directory),
        ("FileOrCreate", HostPathKind::FileOrCreate),
        ("File", HostPathKind::File),
        ("Socket", HostPathKind::Socket),
        ("CharDevice", HostPathKind::CharDevice),
        ("BlockDevice", HostPathKind::BlockDevice),
    ];
    let kind = object.word("type", &words).unwrap_or(HostPathKind::Anything);
    Volume::HostPath { path, kind }
}

fn empty_dir(mut object: Object<'_>) -> Volume {
    let medium = object.string("medium").unwrap_or_default();
    let memory = medium == "Memory";
    if medium.starts_with("HugePages") {
        object.problem("medium", "not supported: huge pages are no medium here");
    } else if !memory && !medium.is_empty() {
        object.problem("medium", format_args!("{medium:?} is neither \"\" nor Memory"));
    }
    let size_limit_bytes = match object.scalar("sizeLimit").map(|text| text.parse::<Quantity>()) {
        Some(Ok(size)) => u64::try_from(size.value()).ok(),
        Some(Err(message)) => {
            object.problem("sizeLimit", message);
            None
        }
        None => None,
    };
    if size_limit_bytes.is_some() && !memory {
        object.warn("sizeLimit", "ignored: only medium Memory is limited");
    }
    Volume::EmptyDir { memory, size_limit_bytes }
}

fn files(mut object: Object<'_>, secret: bool) -> Volume {
    let name = object.string(if secret { "secretName" } else { "name" }).unwrap_or_default();
    let default_mode = object.file_mode("defaultMode").unwrap_or(DEFAULT_MODE);
    let mut items = Vec::new();
    for mut item in object.objects("items") {
        let key = item.string("key").unwrap_or_default();
        let path = item.string("path").unwrap_or_default();
        let plain = path.split('/').all(|part| !matches!(part, "" | "." | ".."));
        if !plain || path.starts_with("..") {
            item.problem("path", format_args!("{path:?} must be relative and without '..'"));
        }
        let mode = item.file_mode("mode");
        items.push((key, path, mode));
    }
    Volume::Files { secret, name, items, default_mode, optional: object.boolean("optional").unwrap_or(false) }
}

fn image(mut object: Object<'_>) -> Volume {
    let reference = object.string("reference").unwrap_or_default();
    if reference.is_empty() || reference.contains(char::is_whitespace) {
        object.problem("reference", format_args!("{reference:?} is no image"));
    }
    let pull = pull_policy(&mut object, "pullPolicy", &reference);
    Volume::Image { reference, pull }
}
