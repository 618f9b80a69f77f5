//! Which images the kubelet is told never to collect. Removal on request still works: pinning is advice to it.

use crate::reference::Reference;

/// One pattern of the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Pattern {
    Exact(String),
    /// `glob*`
    Prefix(String),
    /// `*keyword*`
    Contains(String),
}

impl Pattern {
    /// `*keyword*`, `glob*`, or a name in any form.
    pub fn parse(text: &str) -> Self {
        if let Some(rest) = text.strip_suffix('*') {
            return match rest.strip_prefix('*') {
                Some(keyword) => Self::Contains(keyword.to_owned()),
                None => Self::Prefix(rest.to_owned()),
            };
        }
        let full = Reference::parse(text).map(|reference| reference.to_string());
        Self::Exact(full.unwrap_or_else(|_| text.to_owned()))
    }

    /// Whether it means this name, which is in full form.
    pub fn matches(&self, name: &str) -> bool {
        match self {
            Self::Exact(exact) => name == exact,
            Self::Prefix(prefix) => name.starts_with(prefix.as_str()),
            Self::Contains(keyword) => name.contains(keyword.as_str()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_mean_names_in_full_form() {
        let busybox = "docker.io/library/busybox:latest";
        for (pattern, matches) in [
            ("busybox", true),
            ("docker.io/library/busybox:latest", true),
            ("busybox:1", false),
            ("docker.io/library/*", true),
            ("registry.k8s.io/*", false),
            ("*busy*", true),
            ("*lazy*", false),
            ("*", true),
        ] {
            assert_eq!(Pattern::parse(pattern).matches(busybox), matches, "{pattern}");
        }
    }
}
