//! Which socket to talk to. Decides only; `client` connects.

use std::path::{Path, PathBuf};

use knarr_daemon::config::default_socket;

use crate::failure::Failure;

/// The variable that crictl and others read as well.
pub const ENDPOINT_VARIABLE: &str = "CONTAINER_RUNTIME_ENDPOINT";

/// Picks the socket's path: what was typed wins over what the environment says, and the nearer wins over the farther:
/// `--runtime-endpoint`, then `--root`, then the variable, then the system's socket.
///
/// # Errors
/// An endpoint that is no Unix socket.
pub fn choose(flag: Option<&str>, root: Option<&Path>, variable: Option<&str>) -> Result<PathBuf, Failure> {
    if let Some(flag) = flag {
        return parse(flag, "--runtime-endpoint");
    }
    if let Some(root) = root {
        return Ok(default_socket(Some(root)));
    }
    match variable.filter(|variable| !variable.is_empty()) {
        Some(variable) => parse(variable, ENDPOINT_VARIABLE),
        None => Ok(default_socket(None)),
    }
}

/// `unix:///run/x.sock`, `unix:/run/x.sock` or `/run/x.sock`.
fn parse(endpoint: &str, origin: &str) -> Result<PathBuf, Failure> {
    let path = endpoint.strip_prefix("unix://").or_else(|| endpoint.strip_prefix("unix:")).unwrap_or(endpoint);
    if path.starts_with('/') {
        return Ok(path.into());
    }
    Err(Failure::usage(format!("{origin}: {endpoint:?} is no Unix socket"))
        .with_hint("write for example unix:///run/knarr/knarr.sock"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearer_wins_over_the_farther() {
        let root = Path::new("/srv/one");
        let choose = |flag, root, variable| choose(flag, root, variable).unwrap();
        assert_eq!(choose(Some("unix:///a.sock"), Some(root), Some("unix:///b.sock")), Path::new("/a.sock"));
        assert_eq!(choose(None, Some(root), Some("unix:///b.sock")), Path::new("/srv/one/knarr.sock"));
        assert_eq!(choose(None, None, Some("unix:///b.sock")), Path::new("/b.sock"));
        assert_eq!(choose(None, None, Some("")), Path::new("/run/knarr/knarr.sock"));
        assert_eq!(choose(None, None, None), Path::new("/run/knarr/knarr.sock"));
    }

    #[test]
    fn only_unix_sockets_are_endpoints() {
        assert_eq!(parse("/x.sock", "x").unwrap(), Path::new("/x.sock"));
        assert_eq!(parse("unix:/x.sock", "x").unwrap(), Path::new("/x.sock"));
        for bad in ["tcp://127.0.0.1:1", "x.sock", "unix://x.sock", ""] {
            assert!(parse(bad, "x").is_err(), "{bad}");
        }
    }
}
