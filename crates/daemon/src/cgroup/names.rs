//! Where cgroups are, by names alone: a restarted daemon finds what an older one made.

use knarr_model::Error;

/// Longest cgroup path, in bytes: the kernel's PATH_MAX less what stands below a container.
const PATH_BYTES_MAX: usize = 3800;

/// The folder of the shims' cgroups below the default parent.
pub(super) const SHIMS: &str = "shims";

/// The shim's leaf in its pod's cgroup. No container's: those are ids.
pub(super) const SHIM_LEAF: &str = "knarr-shim";

/// Who makes the cgroups.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Driver {
    /// knarr, by mkdir and write.
    #[default]
    Cgroupfs,
    /// systemd, over D-Bus.
    Systemd,
}

/// A cgroup path without its leading slash, or why it is none.
pub(super) fn relative(field: &str, path: &str) -> Result<String, Error> {
    let bad = |why: &str| Err(Error::invalid(field, format!("{path:?} {why}")));
    if path.len() > PATH_BYTES_MAX {
        return Err(Error::invalid(field, format!("longer than {PATH_BYTES_MAX} bytes")));
    }
    let inner = path.trim_matches('/');
    if inner.is_empty() {
        return Ok(String::new());
    }
    if inner.contains(['\0', '\n']) {
        return bad("holds a control character");
    }
    if inner.split('/').any(|part| part.is_empty() || part == "." || part == ".." || part.len() > 255) {
        return bad("is no plain path of a cgroup");
    }
    Ok(inner.to_owned())
}
