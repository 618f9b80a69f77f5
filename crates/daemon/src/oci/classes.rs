//! Classes of service that pods ask for by annotations: of block I/O, and of caches and memory bandwidth (Intel RDT).
//!
//! Other runtimes read what the classes mean from files of the goresctrl library. knarr reads none, so no class is known
//! here, and a container that asks for one is treated as those runtimes treat it where they have no such file.

use knarr_model::spec::{ContainerSpec, PodSpec};
use knarr_model::{Error, ErrorKind};
use std::collections::BTreeMap;

/// What is divided into classes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Weights and rates of block devices.
    BlockIo,
    /// Caches and memory bandwidth.
    Rdt,
}

impl Kind {
    /// Both.
    pub const ALL: [Self; 2] = [Self::BlockIo, Self::Rdt];

    fn word(self) -> &'static str {
        match self {
            Self::BlockIo => "blockio",
            Self::Rdt => "rdt",
        }
    }

    /// The configuration's key that lets containers start without their class.
    fn key(self) -> &'static str {
        match self {
            Self::BlockIo => "resources.ignore_blockio_not_enabled_errors",
            Self::Rdt => "resources.ignore_rdt_not_enabled_errors",
        }
    }

    /// The class that a container asks for, with the annotation that says so. Its own annotation comes first, then the
    /// pod's for this container, then the pod's for all.
    pub fn asked<'a>(self, pod: &'a PodSpec, container: &'a ContainerSpec) -> Option<(String, &'a str)> {
        let word = self.word();
        let find = |annotations: &'a BTreeMap<String, String>, key: String| {
            let class = annotations.get(&key)?;
            Some((key, class.as_str()))
        };
        let own = find(&container.annotations, format!("io.kubernetes.cri.{word}-class"));
        let of_pod = |rest: &str| find(&pod.annotations, format!("{word}.resources.beta.kubernetes.io/{rest}"));
        let found = own.or_else(|| of_pod(&format!("container.{}", container.name))).or_else(|| of_pod("pod"));
        found.filter(|(_, class)| !class.is_empty())
    }

    /// Why a container cannot have the class that it asks for.
    pub fn refusal(self, key: &str, class: &str) -> Error {
        let (word, ignore) = (self.word(), self.key());
        let why = format!(
            "annotation {key}: {word} class {class:?} is not there: no {word} classes are configured on this node \
             ({ignore} lets the container run without)"
        );
        Error::new(ErrorKind::FailedPrecondition, why)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn annotations(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn the_nearest_annotation_counts() {
        let mut pod = PodSpec::default();
        let mut container = ContainerSpec { name: "web".into(), ..ContainerSpec::default() };
        assert_eq!(Kind::BlockIo.asked(&pod, &container), None);
        pod.annotations = annotations(&[
            ("blockio.resources.beta.kubernetes.io/pod", "slow"),
            ("blockio.resources.beta.kubernetes.io/container.db", "fast"),
            ("rdt.resources.beta.kubernetes.io/container.web", "gold"),
        ]);
        let class = |kind: Kind, pod: &PodSpec, container: &ContainerSpec| {
            kind.asked(pod, container).map(|(_, class)| class.to_owned())
        };
        assert_eq!(class(Kind::BlockIo, &pod, &container).as_deref(), Some("slow"));
        assert_eq!(class(Kind::Rdt, &pod, &container).as_deref(), Some("gold"));
        container.annotations =
            annotations(&[("io.kubernetes.cri.blockio-class", "mine"), ("io.kubernetes.cri.rdt-class", "")]);
        assert_eq!(class(Kind::BlockIo, &pod, &container).as_deref(), Some("mine"));
        assert_eq!(class(Kind::Rdt, &pod, &container), None, "none is asked for");
        container.name = "db".into();
        container.annotations.clear();
        let (key, class) = Kind::BlockIo.asked(&pod, &container).unwrap();
        let error = Kind::BlockIo.refusal(&key, class);
        for told in ["container.db", "\"fast\"", "resources.ignore_blockio_not_enabled_errors"] {
            assert!(error.message.contains(told), "{error}");
        }
    }
}
