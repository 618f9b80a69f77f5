//! What a client may show a registry, as CRI's AuthConfig gives it.
//!
//! Secrets live in memory and are never printed: `Debug` shows which fields are set, not their values. How they are
//! spent (Basic, token endpoint, bearer) is `registry::auth`'s.

use std::fmt;

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use sha2::{Digest as _, Sha256};

use crate::reference::DEFAULT_REGISTRY;

/// Where the default registry's API is; its name leads to a web site.
pub(crate) const DEFAULT_REGISTRY_HOST: &str = "registry-1.docker.io";

/// Kubelet takes `auth` from files that people write by hand, with and without padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The fields of CRI's AuthConfig; an empty text is an absent one.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Credentials {
    /// With `password`.
    pub username: String,
    /// With `username`.
    pub password: String,
    /// A refresh token for the token endpoint (OAuth2).
    pub identity_token: String,
    /// A bearer token to be shown as it is.
    pub registry_token: String,
    /// The host that these are for, as `host[:port]` or URL; others never see them. Empty: every host that the node's
    /// configuration names for the image's registry.
    pub server_address: String,
}

/// The request's credentials cannot be read; the message never holds them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("credentials: {0}")]
pub struct BadCredentials(&'static str);

impl Credentials {
    /// For registries that ask for none.
    pub fn anonymous() -> Self {
        Self::default()
    }

    /// Also reads AuthConfig's `auth`, base64 of `username:password`, which counts when there is neither a user name
    /// nor an identity token.
    pub fn with_auth(mut self, auth: &str) -> Result<Self, BadCredentials> {
        if auth.is_empty() || !self.username.is_empty() || !self.identity_token.is_empty() {
            return Ok(self);
        }
        let decoded = BASE64.decode(auth.trim()).map_err(|_| BadCredentials("auth is not base64"))?;
        let decoded = String::from_utf8(decoded).map_err(|_| BadCredentials("auth is not text in base64"))?;
        let (username, password) =
            decoded.split_once(':').ok_or(BadCredentials("auth is not base64 of username:password"))?;
        self.username = username.to_owned();
        // Old clients padded the password with zero bytes.
        self.password = password.trim_matches('\0').to_owned();
        Ok(self)
    }

    /// Whether there is nothing to show.
    pub fn is_anonymous(&self) -> bool {
        self.username.is_empty()
            && self.password.is_empty()
            && self.identity_token.is_empty()
            && self.registry_token.is_empty()
    }

    /// Whether `host`, asked on behalf of `registry`, may see these. The names of Docker Hub count as one.
    pub(crate) fn are_for(&self, host: &str, registry: &str) -> bool {
        if self.server_address.is_empty() {
            return true;
        }
        let wanted = canonical_host(&self.server_address);
        let is_upstream = canonical_host(host) == canonical_host(registry);
        wanted == canonical_host(host) || (is_upstream && wanted == canonical_host(registry))
    }

    /// Tells two credentials apart in a cache without keeping them there.
    pub(crate) fn fingerprint(&self) -> [u8; 32] {
        let mut hasher = Sha256::new();
        let fields = [&self.username, &self.password, &self.identity_token, &self.registry_token, &self.server_address];
        for field in fields {
            hasher.update((field.len() as u64).to_le_bytes());
            hasher.update(field);
        }
        hasher.finalize().into()
    }
}

/// `https://Index.docker.io/v1/` → `docker.io`; a default port is dropped.
fn canonical_host(address: &str) -> String {
    let (scheme, rest) = address.split_once("://").unwrap_or(("https", address));
    let authority = rest.split(['/', '?', '#']).next().unwrap_or("");
    let host = authority.rsplit('@').next().unwrap_or("").to_ascii_lowercase();
    let default_port = if scheme.eq_ignore_ascii_case("http") { ":80" } else { ":443" };
    let host = host.strip_suffix(default_port).unwrap_or(&host);
    match host {
        "index.docker.io" | DEFAULT_REGISTRY_HOST => DEFAULT_REGISTRY.to_owned(),
        other => other.to_owned(),
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let set = |secret: &str| if secret.is_empty() { "none" } else { "set" };
        f.debug_struct("Credentials")
            .field("username", &set(&self.username))
            .field("password", &set(&self.password))
            .field("identity_token", &set(&self.identity_token))
            .field("registry_token", &set(&self.registry_token))
            .field("server_address", &self.server_address)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn auth_is_read_with_and_without_padding() {
        for auth in ["dXNlcjpwYXNz", "dXNlcjpwYXNzMQ==", "dXNlcjpwYXNzMQ"] {
            let credentials = Credentials::default().with_auth(auth).expect("valid");
            assert_eq!(credentials.username, "user");
            assert!(credentials.password.starts_with("pass"));
        }
        let colons = Credentials::default().with_auth("dTphOmI6Yw==").expect("valid");
        assert_eq!((colons.username.as_str(), colons.password.as_str()), ("u", "a:b:c"));
        let padded = Credentials::default().with_auth("dTpwAAA=").expect("valid");
        assert_eq!(padded.password, "p");
    }

    #[test]
    fn a_user_name_or_identity_token_beats_auth() {
        let named = Credentials { username: "me".into(), ..Credentials::default() }.with_auth("!").expect("not read");
        assert_eq!(named.username, "me");
        let token = Credentials { identity_token: "t".into(), ..Credentials::default() };
        assert!(token.with_auth("dTpw").expect("not read").username.is_empty());
    }

    #[test]
    fn bad_auth_is_refused_without_showing_it() {
        for auth in ["%%%", "bm8gY29sb24=", "//79"] {
            let error = Credentials::default().with_auth(auth).expect_err("not user:password");
            assert!(!error.to_string().contains(auth));
        }
    }

    #[test]
    fn a_server_address_keeps_other_hosts_from_seeing_them() {
        let cases = [
            ("", "mirror:5000", "docker.io", true),
            ("https://index.docker.io/v1/", "registry-1.docker.io", "docker.io", true),
            ("docker.io", "registry-1.docker.io", "docker.io", true),
            ("https://index.docker.io/v1/", "mirror:5000", "docker.io", false),
            ("quay.io", "quay.io", "quay.io", true),
            ("https://quay.io:443/v2/", "quay.io", "quay.io", true),
            ("http://quay.io:443", "quay.io", "quay.io", false),
            ("quay.io", "quay.io.evil.example", "quay.io.evil.example", false),
            ("https://user@quay.io/", "quay.io", "quay.io", true),
            ("https://quay.io@evil.example/", "quay.io", "quay.io", false),
            ("mirror:5000", "mirror:5000", "docker.io", true),
            ("mirror:5000", "registry-1.docker.io", "docker.io", false),
            ("localhost:5000", "localhost:5001", "localhost:5001", false),
        ];
        for (server_address, host, registry, expected) in cases {
            let credentials = Credentials { server_address: server_address.into(), ..Credentials::default() };
            assert_eq!(credentials.are_for(host, registry), expected, "{server_address} for {host}");
        }
    }

    #[test]
    fn debug_never_shows_a_secret() {
        let credentials = Credentials {
            username: "secret-user".into(),
            password: "secret-password".into(),
            identity_token: "secret-identity".into(),
            registry_token: "secret-token".into(),
            server_address: "quay.io".into(),
        };
        let shown = format!("{credentials:?} {credentials:#?}");
        assert!(!shown.contains("secret") && shown.contains("quay.io"), "{shown}");
    }

    #[test]
    fn moving_a_character_between_fields_changes_the_fingerprint() {
        let one = Credentials { username: "ab".into(), password: "c".into(), ..Credentials::default() };
        let two = Credentials { username: "a".into(), password: "bc".into(), ..Credentials::default() };
        assert_ne!(one.fingerprint(), two.fingerprint());
        assert_eq!(one.fingerprint(), one.clone().fingerprint());
    }

    proptest! {
        #[test]
        fn any_text_as_auth_or_address_is_survived(auth in ".{0,64}", address in ".{0,64}", host in ".{0,32}") {
            let _ = Credentials::default().with_auth(&auth);
            let credentials = Credentials { server_address: address, ..Credentials::default() };
            let _ = credentials.are_for(&host, &host);
        }

        #[test]
        fn auth_reads_back_what_was_encoded(username in "[^:\0]{0,16}", password in "[^\0]{0,16}") {
            let auth = BASE64.encode(format!("{username}:{password}"));
            let credentials = Credentials::default().with_auth(&auth).expect("valid");
            prop_assert_eq!((credentials.username, credentials.password), (username, password));
        }
    }
}
