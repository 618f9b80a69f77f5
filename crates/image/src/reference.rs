//! Image names: what a person or a kubelet writes, and the one full form behind it.
//!
//! `busybox` is `docker.io/library/busybox:latest`. The grammar and its limits are those of the distribution
//! project's reference package, so that a name means here what it means to every other client. This file resolves
//! nothing: whether the name exists is the registry's to say.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest as _, Sha256, Sha512};

/// The registry that a name without a host means.
pub const DEFAULT_REGISTRY: &str = "docker.io";
/// The older name of the default registry, still written by people.
const LEGACY_DEFAULT_REGISTRY: &str = "index.docker.io";
/// Where the default registry keeps images whose name has one component.
const OFFICIAL_PREFIX: &str = "library/";
/// The tag that a name without tag and digest means.
pub const DEFAULT_TAG: &str = "latest";
/// Bytes of `registry/repository`; the distribution project's limit.
const NAME_BYTES_MAX: usize = 255;
/// Bytes of a tag; the distribution project's limit.
const TAG_BYTES_MAX: usize = 128;
/// Bytes of a whole reference: the longest name, tag and digest with their separators fit.
const REFERENCE_BYTES_MAX: usize = NAME_BYTES_MAX + 1 + TAG_BYTES_MAX + 1 + "sha512:".len() + 128;

/// Where an image is: `registry/repository`, and a tag, a digest, or both.
///
/// ```text
/// registry.k8s.io:443/e2e-test-images/busybox:1.29-2@sha256:5957…
/// └──────┬──────────┘ └─────────┬───────────┘ └─┬──┘ └────┬─────┘
///     registry              repository         tag     digest
/// ```
///
/// With both, the digest decides which image it is and the tag is a remark.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    /// Host and optional port; never empty. `docker.io` for names without a host.
    pub registry: String,
    /// Lower-case path below the registry; never empty.
    pub repository: String,
    /// `None` only beside a digest.
    pub tag: Option<String>,
    /// The manifest's or index' digest.
    pub digest: Option<Digest>,
}

/// Why a text is no image name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("image name {text:?}: {why}")]
pub struct BadReference {
    text: String,
    why: &'static str,
}

/// Why a text is no digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a digest is sha256:<64 lower-case hexadecimal digits> or sha512:<128 of them>")]
pub struct BadDigest;

/// A content digest, `sha256:…` or `sha512:…`: lower-case hexadecimal digits only, so it is safe as a file name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(Box<str>);

/// Hashes bytes as they pass and says at the end whether they were the ones named.
#[derive(Clone)]
pub struct DigestVerifier {
    expected: Digest,
    hasher: Hasher,
}

#[derive(Clone)]
enum Hasher {
    Sha256(Sha256),
    Sha512(Sha512),
}

impl Reference {
    /// Reads a name in short or full form; a name without tag and digest gets the tag `latest`.
    pub fn parse(text: &str) -> Result<Self, BadReference> {
        parse_reference(text).map_err(|why| BadReference { text: shown(text), why })
    }

    /// `registry/repository`, without tag and digest.
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// What to ask the registry for: the digest when there is one, else the tag.
    pub fn manifest_name(&self) -> &str {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.as_str(),
            (None, Some(tag)) => tag,
            (None, None) => DEFAULT_TAG,
        }
    }

    /// `registry/repository:tag`, the form of CRI's `repo_tags`; `None` for a name pinned by digest, because then
    /// nobody has checked that the tag names that image.
    pub fn repo_tag(&self) -> Option<String> {
        match (&self.tag, &self.digest) {
            (Some(tag), None) => Some(format!("{}/{}:{tag}", self.registry, self.repository)),
            _ => None,
        }
    }

    /// `registry/repository@digest`, the form of CRI's `repo_digests`.
    pub fn repo_digest(&self, digest: &Digest) -> String {
        format!("{}/{}@{digest}", self.registry, self.repository)
    }

    /// The same repository, pinned to `digest`, without a tag.
    #[must_use]
    pub fn pinned(&self, digest: Digest) -> Self {
        Self { registry: self.registry.clone(), repository: self.repository.clone(), tag: None, digest: Some(digest) }
    }

    /// The shortest form that reads back as the same name: `busybox:latest`.
    pub fn familiar(&self) -> String {
        let full = self.to_string();
        let Some(path) = full.strip_prefix("docker.io/") else { return full };
        let short = path.strip_prefix(OFFICIAL_PREFIX).unwrap_or(path);
        for candidate in [short, path] {
            if Self::parse(candidate).as_ref() == Ok(self) {
                return candidate.to_owned();
            }
        }
        full
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl FromStr for Reference {
    type Err = BadReference;

    fn from_str(text: &str) -> Result<Self, BadReference> {
        Self::parse(text)
    }
}

impl Digest {
    /// Takes exactly the canonical form.
    pub fn parse(text: &str) -> Result<Self, BadDigest> {
        let (algorithm, hex) = text.split_once(':').ok_or(BadDigest)?;
        let digits = match algorithm {
            "sha256" => 64,
            "sha512" => 128,
            _ => return Err(BadDigest),
        };
        let all_hex = hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        if all_hex && hex.len() == digits { Ok(Self(text.into())) } else { Err(BadDigest) }
    }

    /// The SHA-256 of `bytes`.
    pub fn sha256_of(bytes: &[u8]) -> Self {
        Self::from_sha256(&Sha256::digest(bytes).into())
    }

    /// The digest whose 32 bytes a SHA-256 has given.
    pub fn from_sha256(bytes: &[u8; 32]) -> Self {
        Self(format!("sha256:{}", hexadecimal(bytes)).into())
    }

    /// `sha256` or `sha512`.
    pub fn algorithm(&self) -> &str {
        &self.0[.."sha256".len()]
    }

    /// The hexadecimal digits alone.
    pub fn hex(&self) -> &str {
        &self.0["sha256:".len()..]
    }

    /// `sha256:<digits>`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Starts a check of bytes against this digest.
    pub fn verifier(&self) -> DigestVerifier {
        let hasher = match self.algorithm() {
            "sha512" => Hasher::Sha512(Sha512::new()),
            _ => Hasher::Sha256(Sha256::new()),
        };
        DigestVerifier { expected: self.clone(), hasher }
    }

    /// Whether this is the digest of `bytes`.
    pub fn matches(&self, bytes: &[u8]) -> bool {
        let mut verifier = self.verifier();
        verifier.update(bytes);
        verifier.finish().is_ok()
    }
}

impl DigestVerifier {
    /// The next bytes, in order.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.hasher {
            Hasher::Sha256(hasher) => hasher.update(bytes),
            Hasher::Sha512(hasher) => hasher.update(bytes),
        }
    }

    /// `Err` holds the digest that the bytes have instead.
    pub fn finish(self) -> Result<(), Digest> {
        let actual = match self.hasher {
            Hasher::Sha256(hasher) => Digest(format!("sha256:{}", hexadecimal(&hasher.finalize())).into()),
            Hasher::Sha512(hasher) => Digest(format!("sha512:{}", hexadecimal(&hasher.finalize())).into()),
        };
        if actual == self.expected { Ok(()) } else { Err(actual) }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Digest {
    type Err = BadDigest;

    fn from_str(text: &str) -> Result<Self, BadDigest> {
        Self::parse(text)
    }
}

impl serde::Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> serde::Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

impl fmt::Debug for DigestVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DigestVerifier({})", self.expected)
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    use fmt::Write;
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// The text for an error message: a hostile name must not fill a log.
fn shown(text: &str) -> String {
    const SHOWN_CHARS_MAX: usize = 128;
    let mut shown: String = text.chars().take(SHOWN_CHARS_MAX).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    shown
}

fn parse_reference(text: &str) -> Result<Reference, &'static str> {
    if text.is_empty() {
        return Err("is empty");
    }
    if text.len() > REFERENCE_BYTES_MAX {
        return Err("is too long");
    }
    let is_hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    if text.len() == 64 && text.bytes().all(is_hex) {
        return Err("64 hexadecimal digits are an image id, not a name");
    }

    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => (rest, Some(Digest::parse(digest).map_err(|_| "the digest is not sha256 or sha512")?)),
        None => (text, None),
    };
    let (registry, path) = split_registry(rest);
    // A colon before the first slash was the registry's port; any other begins the tag.
    let (path, tag) = match path.split_once(':') {
        Some((path, tag)) => (path, Some(tag)),
        None => (path, None),
    };
    check_registry(registry)?;
    let repository = match registry == DEFAULT_REGISTRY && !path.contains('/') {
        true => format!("{OFFICIAL_PREFIX}{path}"),
        false => path.to_owned(),
    };
    check_repository(path)?;
    if registry.len() + 1 + repository.len() > NAME_BYTES_MAX {
        return Err("the name is longer than 255 bytes");
    }
    tag.map_or(Ok(()), check_tag)?;
    let tag = match (tag, &digest) {
        (Some(tag), _) => Some(tag.to_owned()),
        (None, Some(_)) => None,
        (None, None) => Some(DEFAULT_TAG.to_owned()),
    };
    Ok(Reference { registry: registry.to_owned(), repository, tag, digest })
}

/// The first component is a registry when it could not be part of a repository's path: it has a dot, a colon or an
/// upper-case letter, or is `localhost`.
fn split_registry(text: &str) -> (&str, &str) {
    let Some((first, rest)) = text.split_once('/') else { return (DEFAULT_REGISTRY, text) };
    let is_host = first.contains(['.', ':']) || first == "localhost" || first.bytes().any(|b| b.is_ascii_uppercase());
    match first {
        LEGACY_DEFAULT_REGISTRY => (DEFAULT_REGISTRY, rest),
        _ if is_host => (first, rest),
        _ => (DEFAULT_REGISTRY, text),
    }
}

fn check_registry(registry: &str) -> Result<(), &'static str> {
    const BAD_HOST: &str = "the registry is not a host name with an optional port";
    let (host, port) = match registry.strip_prefix('[') {
        Some(rest) => {
            let (address, after) = rest.split_once(']').ok_or(BAD_HOST)?;
            address.parse::<std::net::Ipv6Addr>().map_err(|_| BAD_HOST)?;
            (None, if after.is_empty() { None } else { Some(after.strip_prefix(':').ok_or(BAD_HOST)?) })
        }
        None => match registry.split_once(':') {
            Some((host, port)) => (Some(host), Some(port)),
            None => (Some(registry), None),
        },
    };
    if let Some(port) = port {
        let digits = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
        if !digits || port.parse::<u16>().is_err() {
            return Err("the registry's port is not a number up to 65535");
        }
    }
    let label = |label: &str| {
        let inside = label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        inside && !label.is_empty() && !label.starts_with('-') && !label.ends_with('-')
    };
    match host {
        Some(host) if !host.split('.').all(label) => Err(BAD_HOST),
        _ => Ok(()),
    }
}

fn check_repository(path: &str) -> Result<(), &'static str> {
    if path.is_empty() {
        return Err("the repository is missing");
    }
    if path.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err("the repository must be lower case");
    }
    if path.split('/').all(is_path_component) {
        Ok(())
    } else {
        Err("the repository is not made of lower-case letters and digits, separated by . _ __ - or /")
    }
}

/// Runs of letters and digits, separated by one dot, one or two underscores, or any number of hyphens.
fn is_path_component(component: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = component.as_bytes();
    let (Some(&first), Some(&last)) = (bytes.first(), bytes.last()) else { return false };
    if !alphanumeric(first) || !alphanumeric(last) {
        return false;
    }
    bytes.split(|&b| alphanumeric(b)).all(|separator| match separator {
        b"" | b"." | b"_" | b"__" => true,
        hyphens => hyphens.iter().all(|&b| b == b'-'),
    })
}

fn check_tag(tag: &str) -> Result<(), &'static str> {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let begins = tag.bytes().next().is_some_and(word);
    let inside = tag.bytes().all(|b| word(b) || b == b'.' || b == b'-');
    match begins && inside && tag.len() <= TAG_BYTES_MAX {
        true => Ok(()),
        false => Err("the tag is not up to 128 letters, digits and _ . -"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SHA256: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn short_names_mean_docker_hub() {
        let cases = [
            ("busybox", "docker.io/library/busybox:latest", "busybox:latest"),
            ("busybox:1.37", "docker.io/library/busybox:1.37", "busybox:1.37"),
            ("library/busybox", "docker.io/library/busybox:latest", "busybox:latest"),
            ("docker.io/busybox", "docker.io/library/busybox:latest", "busybox:latest"),
            ("index.docker.io/library/busybox", "docker.io/library/busybox:latest", "busybox:latest"),
            ("grafana/loki:3", "docker.io/grafana/loki:3", "grafana/loki:3"),
            ("docker.io/library/a/b", "docker.io/library/a/b:latest", "library/a/b:latest"),
            ("docker.io/foo.com/bar", "docker.io/foo.com/bar:latest", "docker.io/foo.com/bar:latest"),
            ("localhost/app", "localhost/app:latest", "localhost/app:latest"),
            ("localhost:5000/app", "localhost:5000/app:latest", "localhost:5000/app:latest"),
            ("UPPER/app", "UPPER/app:latest", "UPPER/app:latest"),
            ("quay.io/a/b/c:x", "quay.io/a/b/c:x", "quay.io/a/b/c:x"),
            ("registry:5000/app:v1", "registry:5000/app:v1", "registry:5000/app:v1"),
            ("[::1]:5000/app", "[::1]:5000/app:latest", "[::1]:5000/app:latest"),
            ("[2001:db8::1]/app", "[2001:db8::1]/app:latest", "[2001:db8::1]/app:latest"),
            ("a__b/c-d--e.f_g", "docker.io/a__b/c-d--e.f_g:latest", "a__b/c-d--e.f_g:latest"),
            ("app:_.-", "docker.io/library/app:_.-", "app:_.-"),
        ];
        for (text, full, familiar) in cases {
            let reference = Reference::parse(text).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(reference.to_string(), full, "{text}");
            assert_eq!(reference.familiar(), familiar, "{text}");
        }
    }

    #[test]
    fn a_digest_decides_and_a_tag_beside_it_is_kept() {
        let both = Reference::parse(&format!("busybox:1.37@{SHA256}")).expect("valid");
        assert_eq!(both.tag.as_deref(), Some("1.37"));
        assert_eq!(both.manifest_name(), SHA256);
        assert_eq!(both.to_string(), format!("docker.io/library/busybox:1.37@{SHA256}"));
        assert_eq!(both.repo_tag(), None);

        let pinned = Reference::parse(&format!("busybox@{SHA256}")).expect("valid");
        assert_eq!((pinned.tag.as_deref(), pinned.repo_tag()), (None, None));
        assert_eq!(Reference::parse("busybox").expect("valid").pinned(Digest::parse(SHA256).expect("valid")), pinned);

        let tagged = Reference::parse("busybox").expect("valid");
        assert_eq!(tagged.repo_tag().as_deref(), Some("docker.io/library/busybox:latest"));
    }

    #[test]
    fn hostile_and_broken_names_are_refused() {
        let long = |n: usize| "a".repeat(n);
        let cases = [
            String::new(),
            " ".into(),
            "Busybox".into(),
            "quay.io/Upper/x".into(),
            "/busybox".into(),
            "busybox/".into(),
            "a//b".into(),
            "quay.io/".into(),
            "../etc/passwd".into(),
            "quay.io/../../etc".into(),
            "quay.io/a/..".into(),
            "quay.io/./a".into(),
            "a..b".into(),
            "a___b".into(),
            "a_.b".into(),
            "-a".into(),
            "a-".into(),
            ".a".into(),
            "busybox:".into(),
            "busybox:-x".into(),
            "busybox:.x".into(),
            "busybox:a b".into(),
            "busybox:a/b".into(),
            "busybox:a:b".into(),
            format!("busybox:{}", long(129)),
            "busybox@".into(),
            "busybox@sha256:".into(),
            "busybox@sha256:abc".into(),
            format!("busybox@{}", SHA256.to_uppercase()),
            format!("busybox@{SHA256}@{SHA256}"),
            format!("busybox@{SHA256}:tag"),
            "busybox@md5:d41d8cd98f00b204e9800998ecf8427e".into(),
            SHA256["sha256:".len()..].into(),
            long(256),
            format!("quay.io/{}", long(248)),
            "user@quay.io/app".into(),
            "https://quay.io/app".into(),
            "quay.io:port/app".into(),
            "quay.io:/app".into(),
            "quay.io:65536/app".into(),
            "quay.io:+80/app".into(),
            "quay..io/app".into(),
            "-quay.io/app".into(),
            "quay.io./app".into(),
            "[::1/app".into(),
            "[quay.io]/app".into(),
            "[::1]x/app".into(),
            "[fe80::1%25eth0]/app".into(),
            "quay.io/app?ns=x".into(),
            "quay.io/app#x".into(),
            "quay.io/app%2f".into(),
            "quay.io/app\n".into(),
            "quay.io/a\0b".into(),
            "quay.io/\u{202e}app".into(),
            "bücher/app".into(),
            "quay.io/app\\..".into(),
        ];
        for text in cases {
            assert!(Reference::parse(&text).is_err(), "{text:?} was taken");
        }
    }

    #[test]
    fn limits_are_met_exactly() {
        assert!(Reference::parse(&format!("quay.io/{}", "a".repeat(247))).is_ok());
        assert!(Reference::parse(&format!("busybox:{}", "a".repeat(128))).is_ok());
        // `docker.io/library/` counts.
        assert!(Reference::parse(&"a".repeat(255 - "docker.io/library/".len())).is_ok());
        assert!(Reference::parse(&"a".repeat(256 - "docker.io/library/".len())).is_err());
        let longest = format!("quay.io/{}:{}@sha512:{}", "a".repeat(247), "t".repeat(128), "0".repeat(128));
        assert_eq!(longest.len(), REFERENCE_BYTES_MAX);
        assert!(Reference::parse(&longest).is_ok());
    }

    #[test]
    fn an_error_shows_only_the_beginning_of_a_long_name() {
        let error = Reference::parse(&"é".repeat(100_000)).expect_err("too long");
        assert!(error.to_string().len() < 400);
    }

    #[test]
    fn digests_are_checked_over_pieces() {
        for digest in
            [Digest::sha256_of(b"hello world"), Digest::parse(&format!("sha512:{}", HELLO_512)).expect("valid")]
        {
            let mut verifier = digest.verifier();
            verifier.update(b"hello ");
            verifier.update(b"world");
            assert_eq!(verifier.finish(), Ok(()), "{digest}");
            assert!(!digest.matches(b"hello_world"));
        }
    }

    const HELLO_512: &str = "309ecc489c12d6eb4cc40f50c902f2b4d0ed77ee511a7c7a9bcd3ca86d4cd86f\
                             989dd35bc5ff499670da34255b45b0cfd830e81f605dcf7dc5542e93ae9cd76f";

    proptest! {
        #[test]
        fn any_text_is_a_name_or_an_error(text in "\\PC{0,300}") {
            if let Ok(reference) = Reference::parse(&text) {
                prop_assert_eq!(&Reference::parse(&reference.to_string()), &Ok(reference.clone()));
                prop_assert_eq!(&Reference::parse(&reference.familiar()), &Ok(reference));
            }
        }

        #[test]
        fn every_valid_name_reads_back_from_both_its_forms(
            registry in "(([a-z0-9]([a-z0-9-]{0,5}[a-z0-9])?\\.){1,3}[a-z]{2}|localhost|docker\\.io|X)(:[1-9][0-9]{0,3})?/|",
            path in "(library/)?[a-z0-9]{1,8}(([._]|__|-{1,3})[a-z0-9]{1,4}){0,2}(/[a-z0-9]{1,8}(\\.[a-z]{1,3})?){0,2}",
            tag in "(:[a-zA-Z0-9_][a-zA-Z0-9_.-]{0,20})?",
            digest in prop::option::of(any::<[u8; 32]>()),
        ) {
            // Without a registry, a dot in the first of several components would make that one the registry.
            prop_assume!(!registry.is_empty() || !path.contains('/') || !path.contains('.'));
            let digest = digest.map(|bytes| format!("@{}", Digest::from_sha256(&bytes))).unwrap_or_default();
            let text = format!("{registry}{path}{tag}{digest}");
            let reference = Reference::parse(&text).map_err(|error| TestCaseError::fail(error.to_string()))?;
            prop_assert_eq!(&Reference::parse(&reference.to_string()), &Ok(reference.clone()));
            prop_assert_eq!(&Reference::parse(&reference.familiar()), &Ok(reference.clone()));
            prop_assert!(reference.tag.is_some() || reference.digest.is_some());
        }

        #[test]
        fn what_is_taken_is_safe_in_a_url_and_a_path(text in "[a-zA-Z0-9./:@_%-]{0,60}") {
            if let Ok(reference) = Reference::parse(&text) {
                let hostile = |c: char| !c.is_ascii_alphanumeric() && !"._-/".contains(c);
                prop_assert!(!reference.repository.contains(hostile));
                prop_assert!(reference.repository.split('/').all(|part| !part.is_empty() && !part.starts_with('.')));
                prop_assert!(!reference.registry.contains(['/', '@', '%', '?']));
            }
        }

        #[test]
        fn only_canonical_digests_are_taken(text in "(sha256|sha512|SHA256|md5)?:?[a-fA-F0-9/.]{60,130}") {
            if let Ok(digest) = Digest::parse(&text) {
                prop_assert_eq!(digest.as_str(), text.as_str());
                prop_assert!(digest.hex().bytes().all(|b| b.is_ascii_hexdigit() && !b.is_ascii_uppercase()));
                prop_assert_eq!(format!("{}:{}", digest.algorithm(), digest.hex()), text);
            }
        }
    }
}
