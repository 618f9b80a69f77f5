//! Which of an index' images fits this machine.
//!
//! Order of preference and the spellings that mean the same follow containerd's `platforms` package, so that a node
//! gets the same image from either runtime. Whether the kernel can really run it is not asked here.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::manifest::{Descriptor, Index};

/// Entries that an error message lists.
const OFFERED_SHOWN_MAX: usize = 32;
/// Marks an index' entry that describes another entry instead of being an image.
const REFERENCE_TYPE: &str = "vnd.docker.reference.type";

/// An operating system, an architecture and, for arm and amd64, its level.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Platform {
    /// `linux`.
    #[serde(default)]
    pub os: String,
    /// Go's name: `amd64`, `arm64`, `arm`, ….
    #[serde(default)]
    pub architecture: String,
    /// `v7` of arm/v7, `v3` of amd64/v3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

/// No image of an index fits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no image for {wanted}; there is {}", if .offered.is_empty() { "none".to_owned() } else { .offered.join(", ") })]
pub struct NoSuchPlatform {
    /// What was asked for.
    pub wanted: Platform,
    /// What the index offers, in its order.
    pub offered: Vec<String>,
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

impl Platform {
    /// What this machine runs.
    pub fn host() -> Self {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", None),
            "x86" => ("386", None),
            "aarch64" => ("arm64", Some("v8".to_owned())),
            "arm" => ("arm", Some(arm_variant(&std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default()))),
            "powerpc64" if cfg!(target_endian = "little") => ("ppc64le", None),
            "powerpc64" => ("ppc64", None),
            "loongarch64" => ("loong64", None),
            other => (other, None),
        };
        Self { os: "linux".into(), architecture: architecture.into(), variant }
    }

    /// The same platform in the spelling that registries use; `aarch64` becomes `arm64/v8`.
    #[must_use]
    pub fn normalized(&self) -> Self {
        let architecture = self.architecture.to_ascii_lowercase();
        let variant = self.variant.as_deref().unwrap_or("").to_ascii_lowercase();
        let (architecture, variant) = match (architecture.as_str(), variant.as_str()) {
            ("x86_64" | "x86-64" | "amd64", "" | "v1") => ("amd64", ""),
            ("x86_64" | "x86-64" | "amd64", level) => ("amd64", level),
            ("i386" | "i486" | "i586" | "i686" | "386", _) => ("386", ""),
            ("aarch64" | "arm64", "" | "8" | "v8" | "v8.0") => ("arm64", "v8"),
            ("aarch64" | "arm64", level) => ("arm64", level),
            ("armhf", _) | ("arm", "" | "7") => ("arm", "v7"),
            ("armel", _) | ("arm", "6") => ("arm", "v6"),
            ("arm", "5") => ("arm", "v5"),
            ("arm", "8") => ("arm", "v8"),
            (other, level) => (other, level),
        };
        Self {
            os: self.os.to_ascii_lowercase(),
            architecture: architecture.to_owned(),
            variant: (!variant.is_empty()).then(|| variant.to_owned()),
        }
    }

    /// What runs on this platform, best first, itself included.
    fn runs(&self) -> Vec<Self> {
        let own = self.normalized();
        let other = |architecture: &str, variant: Option<String>| Self {
            os: own.os.clone(),
            architecture: architecture.to_owned(),
            variant,
        };
        let level = own.variant.as_deref().and_then(|variant| variant.strip_prefix('v')).unwrap_or("");
        let level: Option<u32> = level.split('.').next().and_then(|level| level.parse().ok());
        let lower_arm = |from: u32| (5..=from.min(8)).rev().map(|level| other("arm", Some(format!("v{level}"))));
        let mut runs = vec![own.clone()];
        match own.architecture.as_str() {
            "amd64" => {
                runs.extend(
                    (2..level.unwrap_or(0).min(4)).rev().map(|level| other("amd64", Some(format!("v{level}")))),
                );
                runs.push(other("amd64", None));
                runs.push(other("386", None));
            }
            "arm64" => {
                runs.push(other("arm64", Some("v8".into())));
                runs.extend(lower_arm(8));
            }
            "arm" => runs.extend(lower_arm(level.unwrap_or(0).saturating_sub(1))),
            _ => {}
        }
        runs
    }

    /// The entry of `index` that fits best. An entry that names no platform is taken when none that names one fits.
    pub fn choose<'a>(&self, index: &'a Index) -> Result<&'a Descriptor, NoSuchPlatform> {
        let runs = self.runs();
        let images = || index.manifests.iter().filter(|entry| !entry.annotations.contains_key(REFERENCE_TYPE));
        let rank = |entry: &Descriptor| match named(entry) {
            Some(platform) => runs.iter().position(|wanted| *wanted == platform.normalized()),
            None => Some(runs.len()),
        };
        let best = images().filter_map(|entry| Some((rank(entry)?, entry))).min_by_key(|(rank, _)| *rank);
        best.map(|(_, entry)| entry).ok_or_else(|| NoSuchPlatform {
            wanted: self.clone(),
            offered: images().filter_map(named).take(OFFERED_SHOWN_MAX).map(Self::to_string).collect(),
        })
    }
}

fn named(entry: &Descriptor) -> Option<&Platform> {
    entry.platform.as_ref().filter(|platform| !platform.os.is_empty() || !platform.architecture.is_empty())
}

/// A 32-bit build may run on any arm, so the level is the processor's.
fn arm_variant(cpuinfo: &str) -> String {
    let level = cpuinfo.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == "CPU architecture").then(|| value.trim())
    });
    match level {
        Some("5" | "5T" | "5TE" | "5TEJ") => "v5".into(),
        Some("6" | "6TEJ") => "v6".into(),
        Some("8" | "AArch64") => "v8".into(),
        _ => "v7".into(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::reference::Digest;

    fn platform(text: &str) -> Platform {
        let mut parts = text.split('/').map(str::to_owned);
        Platform {
            os: parts.next().unwrap_or_default(),
            architecture: parts.next().unwrap_or_default(),
            variant: parts.next(),
        }
    }

    fn index(platforms: &[&str]) -> Index {
        let entry = |text: &&str| Descriptor {
            media_type: crate::manifest::OCI_MANIFEST.into(),
            digest: Digest::sha256_of(text.as_bytes()),
            size: 1,
            urls: Vec::new(),
            annotations: Default::default(),
            platform: (!text.is_empty()).then(|| platform(text)),
        };
        Index { media_type: String::new(), manifests: platforms.iter().map(entry).collect() }
    }

    fn chosen(wanted: &str, offered: &[&str]) -> Option<String> {
        let index = index(offered);
        let entry = platform(wanted).choose(&index).ok()?;
        Some(entry.platform.as_ref().map(Platform::to_string).unwrap_or_default())
    }

    #[test]
    fn the_nearest_platform_that_runs_here_is_chosen() {
        let cases: &[(&str, &[&str], Option<&str>)] = &[
            ("linux/amd64", &["linux/arm64", "linux/amd64"], Some("linux/amd64")),
            ("linux/amd64", &["windows/amd64", "linux/arm64"], None),
            ("linux/amd64", &["linux/386"], Some("linux/386")),
            ("linux/amd64", &["linux/amd64/v3"], None),
            ("linux/amd64/v3", &["linux/amd64", "linux/amd64/v4", "linux/amd64/v2"], Some("linux/amd64/v2")),
            ("linux/arm64/v8", &["linux/arm/v7", "linux/arm64"], Some("linux/arm64")),
            ("linux/arm64", &["linux/arm64/v8"], Some("linux/arm64/v8")),
            ("linux/arm64", &["linux/arm/v6", "linux/arm/v7"], Some("linux/arm/v7")),
            ("linux/arm/v7", &["linux/arm/v5", "linux/arm/v6", "linux/arm64"], Some("linux/arm/v6")),
            ("linux/arm/v6", &["linux/arm/v7"], None),
            ("linux/arm", &["linux/arm/v7"], Some("linux/arm/v7")),
            ("linux/s390x", &["linux/s390x"], Some("linux/s390x")),
            ("linux/amd64", &["unknown/unknown", ""], Some("")),
            ("linux/amd64", &["", "linux/amd64"], Some("linux/amd64")),
            ("linux/x86_64", &["Linux/AMD64"], Some("Linux/AMD64")),
            ("linux/amd64", &[], None),
        ];
        for (wanted, offered, expected) in cases {
            assert_eq!(chosen(wanted, offered).as_deref(), *expected, "{wanted} of {offered:?}");
        }
    }

    #[test]
    fn an_attestation_is_never_an_image() {
        let mut index = index(&["linux/amd64", ""]);
        for entry in &mut index.manifests {
            entry.annotations.insert(REFERENCE_TYPE.into(), "attestation-manifest".into());
        }
        assert!(platform("linux/amd64").choose(&index).is_err());
    }

    #[test]
    fn the_error_lists_what_there_is() {
        let error = platform("linux/riscv64").choose(&index(&["linux/amd64", "linux/arm/v7"])).expect_err("none fits");
        assert_eq!(error.to_string(), "no image for linux/riscv64; there is linux/amd64, linux/arm/v7");
    }

    #[test]
    fn the_host_runs_its_own_platform() {
        let host = Platform::host();
        assert!(host.choose(&index(&[&host.to_string()])).is_ok());
    }

    #[test]
    fn the_level_of_arm_is_read_from_cpuinfo() {
        assert_eq!(arm_variant("processor\t: 0\nCPU architecture: 7\n"), "v7");
        assert_eq!(arm_variant("CPU architecture: 6TEJ\n"), "v6");
        assert_eq!(arm_variant("CPU architecture: 8\n"), "v8");
        assert_eq!(arm_variant(""), "v7");
    }

    proptest! {
        #[test]
        fn any_platforms_are_survived_and_spelling_settles(
            wanted in "[a-z]{0,5}/(arm|amd64|arm64|ARM64|aarch64|[a-z0-9]{0,4})(/v?[0-9.]{0,12})?",
            offered in prop::collection::vec("[a-z]{0,5}/(arm|amd64|386|arm64|x)?(/v?[0-9.]{0,3})?", 0..6),
        ) {
            let offered: Vec<&str> = offered.iter().map(String::as_str).collect();
            let wanted = platform(&wanted);
            let _ = wanted.choose(&index(&offered));
            prop_assert_eq!(wanted.normalized().normalized(), wanted.normalized());
            prop_assert!(wanted.runs().len() < 16);
        }

        #[test]
        fn the_order_of_an_index_does_not_matter_between_different_platforms(
            offered in Just(vec!["linux/arm/v6", "linux/arm/v7", "linux/arm64", "linux/amd64", "linux/386", ""]).prop_shuffle(),
            wanted in prop::sample::select(vec!["linux/amd64", "linux/arm64/v8", "linux/arm/v7", "linux/386"]),
        ) {
            let expected = wanted.trim_end_matches("/v8");
            let expected = if wanted == "linux/arm/v7" { wanted } else { expected };
            prop_assert_eq!(chosen(wanted, &offered), Some(expected.to_owned()));
        }
    }
}
