//! Credentials for a registry, from the command line or from a file in Docker's format. They are never printed.

use std::fmt;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use crate::failure::Failure;

/// How a pull proves who it is.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Credentials {
    /// Empty where a token is used.
    pub username: String,
    /// Empty where a token is used.
    pub password: String,
    /// A refresh token that stands for user and password.
    pub identity_token: String,
    /// A bearer token that is sent as it is.
    pub registry_token: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").finish_non_exhaustive()
    }
}

/// A file of credentials is smaller than this.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Docker's name for its own registry in credential files.
const DOCKER_HUB: [&str; 4] = ["docker.io", "index.docker.io", "registry-1.docker.io", "https://index.docker.io/v1/"];

impl Credentials {
    /// `user:password`; the password may hold colons.
    pub fn parse(typed: &str) -> Result<Self, Failure> {
        let Some((username, password)) = typed.split_once(':').filter(|(username, _)| !username.is_empty()) else {
            return Err(Failure::usage("--creds: write user:password"));
        };
        Ok(Self { username: username.to_owned(), password: password.to_owned(), ..Self::default() })
    }

    /// What the file holds for the registry of this image; `None` where it knows nothing of it.
    pub fn from_file(path: &Path, image: &str) -> Result<Option<Self>, Failure> {
        let reading = format!("read {}", path.display());
        let metadata = std::fs::metadata(path).map_err(|error| Failure::io(&reading, &error))?;
        if metadata.len() > MAX_FILE_BYTES {
            return Err(Failure::new(format!("cannot {reading}: it is larger than {MAX_FILE_BYTES} bytes")));
        }
        let text = std::fs::read_to_string(path).map_err(|error| Failure::io(&reading, &error))?;
        let document: Value =
            serde_json::from_str(&text).map_err(|error| Failure::new(format!("cannot {reading}: no JSON: {error}")))?;
        find(&document, image).map_err(|message| Failure::new(format!("cannot use {}: {message}", path.display())))
    }
}

fn find(document: &Value, image: &str) -> Result<Option<Credentials>, String> {
    let Some(auths) = document.get("auths").and_then(Value::as_object) else {
        let helper = document.get("credsStore").is_some() || document.get("credHelpers").is_some();
        return if helper { Err(NEEDS_HELPER.to_owned()) } else { Ok(None) };
    };
    let registry = registry_of(image);
    // A longer key ("host/team") is meant for less than a shorter one, so it goes first.
    let mut keys: Vec<&String> = auths.keys().filter(|key| matches(key, image, &registry)).collect();
    keys.sort_by_key(|key| std::cmp::Reverse(key.len()));
    let Some(entry) = keys.first().and_then(|key| auths.get(*key)) else { return Ok(None) };
    credentials_of(entry).map(Some)
}

const NEEDS_HELPER: &str = "the secret is kept by a credential helper, which knarr does not run: use --creds";

fn credentials_of(entry: &Value) -> Result<Credentials, String> {
    let text = |key: &str| entry.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let mut credentials = Credentials {
        username: text("username"),
        password: text("password"),
        identity_token: text("identitytoken"),
        registry_token: text("registrytoken"),
    };
    let auth = text("auth");
    if !auth.is_empty() {
        let decoded = STANDARD.decode(auth.trim()).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        let decoded = decoded.ok_or("\"auth\" is no base64 of user:password")?;
        let (username, password) = decoded.split_once(':').ok_or("\"auth\" is no base64 of user:password")?;
        credentials.username = username.to_owned();
        // Docker pads it with NULs in old files.
        credentials.password = password.trim_end_matches('\0').to_owned();
    }
    if credentials == Credentials::default() {
        return Err(NEEDS_HELPER.to_owned());
    }
    Ok(credentials)
}

/// The host of an image's name, by Docker's rule: a first part with a dot, a colon or "localhost".
fn registry_of(image: &str) -> String {
    match image.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => host.to_owned(),
        _ => "docker.io".to_owned(),
    }
}

fn matches(key: &str, image: &str, registry: &str) -> bool {
    if DOCKER_HUB.contains(&registry) && DOCKER_HUB.contains(&key) {
        return true;
    }
    let plain = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    let plain = plain.trim_end_matches('/');
    let plain = plain.strip_suffix("/v1").or_else(|| plain.strip_suffix("/v2")).unwrap_or(plain);
    if plain == registry {
        return true;
    }
    image.strip_prefix(plain).is_some_and(|rest| plain.contains('/') && rest.starts_with(['/', ':', '@']))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn user(document: &Value, image: &str) -> Option<String> {
        find(document, image).unwrap().map(|credentials| credentials.username)
    }

    #[test]
    fn the_nearest_entry_of_a_file_counts() {
        let document = json!({ "auths": {
            "https://index.docker.io/v1/": { "auth": STANDARD.encode("hub:a:b") },
            "registry.local:5000": { "username": "local", "password": "x" },
            "registry.local:5000/team": { "username": "team", "password": "x" },
        }});
        assert_eq!(user(&document, "busybox"), Some("hub".into()));
        assert_eq!(user(&document, "docker.io/library/busybox:1"), Some("hub".into()));
        assert_eq!(user(&document, "registry.local:5000/app:1"), Some("local".into()));
        assert_eq!(user(&document, "registry.local:5000/team/app:1"), Some("team".into()));
        assert_eq!(user(&document, "registry.local:5000/teams/app:1"), Some("local".into()));
        assert_eq!(user(&document, "other.example/app"), None);
        assert_eq!(find(&document, "busybox").unwrap().unwrap().password, "a:b");
    }

    #[test]
    fn secrets_elsewhere_are_said_to_be_elsewhere() {
        assert!(find(&json!({ "credsStore": "desktop" }), "x/y").is_err());
        assert!(find(&json!({ "auths": { "docker.io": {} } }), "busybox").is_err());
        assert!(find(&json!({ "auths": { "docker.io": { "auth": "!" } } }), "busybox").is_err());
    }

    #[test]
    fn credentials_are_typed_as_user_and_password_and_never_shown() {
        let credentials = Credentials::parse("me:s3:cret").unwrap();
        assert_eq!(credentials.password, "s3:cret");
        assert!(!format!("{credentials:?}").contains("s3"));
        assert!(Credentials::parse("me").is_err());
        assert!(Credentials::parse(":x").is_err());
    }
}
