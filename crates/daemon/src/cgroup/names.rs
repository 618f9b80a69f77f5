//! Where cgroups are, by names alone: a restarted daemon finds what an older one made, whichever driver made it.
//!
//! A path of slices is systemd's, every other one is ours: the two are told apart by the last name's `.slice`.

use knarr_model::{ContainerId, Error, PodId};
use std::fmt;

/// Longest cgroup path, in bytes: the kernel's PATH_MAX less what stands below a container.
const PATH_BYTES_MAX: usize = 3800;

/// Longest name of a unit, in bytes (systemd's UNIT_NAME_MAX, less the final NUL).
const UNIT_NAME_BYTES_MAX: usize = 255;

/// The folder of the shims' cgroups below the default parent.
pub(super) const SHIMS: &str = "shims";

/// The shim's leaf in its pod's cgroup. No container's: those are ids.
pub(super) const SHIM_LEAF: &str = "knarr-shim";

/// Below a container's scope: the container's own cgroup.
pub(super) const CONTAINER_LEAF: &str = "container";

/// Below a scope: the process that keeps it.
pub(super) const KEEPER_LEAF: &str = "knarr-keeper";

const SLICE_SUFFIX: &str = ".slice";
const SCOPE_SUFFIX: &str = ".scope";
const OURS: &str = "knarr-";

/// Who makes the cgroups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Driver {
    /// knarr, by mkdir and write.
    Cgroupfs,
    /// systemd, over D-Bus.
    Systemd,
}

impl Driver {
    /// As in the configuration, here and of kubelet.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cgroupfs => "cgroupfs",
            Self::Systemd => "systemd",
        }
    }

    pub(super) fn other(self) -> Self {
        match self {
            Self::Cgroupfs => Self::Systemd,
            Self::Systemd => Self::Cgroupfs,
        }
    }

    /// The driver that makes such a parent.
    pub(super) fn of_parent(parent: &str) -> Self {
        if parent.trim_end_matches('/').ends_with(SLICE_SUFFIX) { Self::Systemd } else { Self::Cgroupfs }
    }
}

impl fmt::Display for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A slice of systemd, by its name: `a-b.slice` lies in `a.slice`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Slice {
    stem: String,
}

impl Slice {
    /// Takes the name alone or the whole path of slices, which says the same twice. The error names `field`.
    pub(super) fn parse(field: &str, text: &str) -> Result<Self, Error> {
        let bad = |why: &str| Err(Error::invalid(field, format!("{text:?} {why}")));
        let inner = relative(field, text)?;
        let name = inner.rsplit('/').next().unwrap_or_default();
        let Some(stem) = name.strip_suffix(SLICE_SUFFIX) else { return bad("is no slice of systemd") };
        if name.len() > UNIT_NAME_BYTES_MAX {
            return bad("is longer than a unit's name may be");
        }
        if stem == "-" {
            return bad("is the root slice, which cannot hold pods");
        }
        let in_unit = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | ':' | '@' | '\\');
        if !stem.chars().all(in_unit) || stem.split('-').any(str::is_empty) {
            return bad("is no name of a slice: words with single dashes between them");
        }
        let slice = Self { stem: stem.to_owned() };
        if inner.contains('/') && inner != slice.path() {
            return Err(Error::invalid(
                field,
                format!("{text:?} is not where systemd puts {name}, which is /{}", slice.path()),
            ));
        }
        Ok(slice)
    }

    /// The unit's name.
    pub(super) fn unit(&self) -> String {
        format!("{}{SLICE_SUFFIX}", self.stem)
    }

    /// Its cgroup, without the leading slash.
    pub(super) fn path(&self) -> String {
        let ends = self.stem.match_indices('-').map(|(at, _)| at).chain([self.stem.len()]);
        let names: Vec<String> = ends.map(|end| format!("{}{SLICE_SUFFIX}", &self.stem[..end])).collect();
        names.join("/")
    }

    /// The slice of a pod that came without one.
    pub(super) fn of_pod(&self, pod: &PodId) -> Self {
        Self { stem: format!("{}-{pod}", self.stem) }
    }

    /// The pod whose slice in this one has that name.
    pub(super) fn pod_in(&self, name: &str) -> Option<PodId> {
        let id = name.strip_prefix(self.stem.as_str())?.strip_prefix('-')?.strip_suffix(SLICE_SUFFIX)?;
        PodId::parse(id).ok()
    }

    /// The scope in which the shims live: a unit's name.
    pub(super) fn scope_of_shims(&self) -> String {
        format!("{}-{SHIMS}{SCOPE_SUFFIX}", self.stem)
    }
}

/// The scope of a container: a unit's name.
pub(super) fn scope_of(container: &ContainerId) -> String {
    format!("{OURS}{container}{SCOPE_SUFFIX}")
}

/// Every name that [`scope_of`] gives, as systemd matches names.
pub(super) const SCOPES: &str = "knarr-*.scope";

/// The container whose scope has that name.
pub(super) fn container_of_scope(unit: &str) -> Option<ContainerId> {
    ContainerId::parse(unit.strip_prefix(OURS)?.strip_suffix(SCOPE_SUFFIX)?).ok()
}

/// The scope of a shim that is charged to its pod: a unit's name.
pub(super) fn scope_of_shim(pod: &PodId) -> String {
    format!("{SHIM_LEAF}-{pod}{SCOPE_SUFFIX}")
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_plain_paths_are_cgroup_paths() {
        for good in ["/kubepods/burstable/pod1", "kubepods", "/a/b/"] {
            assert!(relative("f", good).is_ok(), "{good}");
        }
        assert_eq!(relative("f", "/").unwrap(), "");
        let long = format!("/{}", "a".repeat(256));
        for bad in ["/..", "/a/../b", "/a//b", "/./a", "/a\0", &long, &"/a".repeat(4000)] {
            assert!(relative("f", bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_slice_is_known_by_its_name_and_by_its_whole_path() {
        let name = "kubepods-burstable-pod1_2.slice";
        let path = "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice";
        for text in [name, path, &format!("/{path}"), &format!("/{path}/")] {
            let slice = Slice::parse("f", text).unwrap();
            assert_eq!((slice.unit().as_str(), slice.path().as_str()), (name, path), "{text}");
        }
        assert_eq!(Slice::parse("f", "knarr.slice").unwrap().path(), "knarr.slice");
    }

    #[test]
    fn what_is_no_slice_is_refused_with_the_field() {
        let long = format!("{}.slice", "a".repeat(250));
        for bad in ["", "/", "-.slice", ".slice", "a--b.slice", "-a.slice", "a-.slice", "a b.slice", "a", &long] {
            let error = Slice::parse("the_field", bad).unwrap_err();
            assert!(error.message.starts_with("the_field: "), "{error}");
        }
        let error = Slice::parse("f", "/elsewhere/a-b.slice").unwrap_err();
        assert!(error.message.contains("/a.slice/a-b.slice"), "{error}");
    }

    #[test]
    fn the_parents_last_name_says_whose_it_is() {
        for parent in ["a.slice", "/a.slice/a-b.slice", "/a.slice/"] {
            assert_eq!(Driver::of_parent(parent), Driver::Systemd, "{parent}");
        }
        for parent in ["", "/", "/kubepods/pod1", "/a.slice/pod1"] {
            assert_eq!(Driver::of_parent(parent), Driver::Cgroupfs, "{parent}");
        }
    }

    #[test]
    fn names_lead_back_to_ids() {
        let (pod, container) = (PodId::from_bytes(&[1; 32]), ContainerId::from_bytes(&[2; 32]));
        let ours = Slice::parse("f", "knarr-01234567.slice").unwrap();
        assert_eq!(ours.pod_in(&ours.of_pod(&pod).unit()), Some(pod.clone()));
        assert_eq!(Slice::parse("f", "knarr.slice").unwrap().pod_in(&ours.of_pod(&pod).unit()), None, "another's");
        assert_eq!(container_of_scope(&scope_of(&container)), Some(container));
        assert_eq!(container_of_scope(&scope_of_shim(&pod)), None);
        assert_eq!(container_of_scope(&ours.scope_of_shims()), None);
    }

    proptest! {
        #[test]
        fn the_path_of_a_slice_leads_back_to_it(words in prop::collection::vec("[a-z0-9_.:@]{1,12}", 1..6)) {
            let slice = Slice::parse("f", &format!("{}.slice", words.join("-"))).unwrap();
            prop_assert_eq!(slice.path().split('/').count(), words.len());
            prop_assert_eq!(Slice::parse("f", &slice.path()).unwrap(), slice);
        }
    }
}
