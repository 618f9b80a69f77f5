//! Where everything lies, derived from the configuration: the one place that joins these names.
//! It creates nothing.

use std::path::{Path, PathBuf};

use super::Config;

/// The places that one instance uses. Two instances with different roots share none of them.
///
/// ```text
/// no root                       root = DIR
/// /run/knarr/knarr.sock         DIR/knarr.sock
/// /var/lib/knarr                DIR/state             lasting: images, records, writable layers, addresses
/// /run/knarr                    DIR/run               gone at boot: what belongs to living pods
/// /run/netns                    DIR/run/netns         pinned network namespaces
/// /var/lib/knarr/cli            DIR/cli               what `knarr run` keeps: logs and volumes of its pods
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    /// The gRPC socket.
    pub socket: PathBuf,
    /// Mode 0700; everything that must survive a reboot.
    pub state_dir: PathBuf,
    /// Mode 0700; everything that must not.
    pub run_dir: PathBuf,
    /// The image store's own directory.
    pub images: PathBuf,
    /// `<pod id>/`: records of pods and containers.
    pub records: PathBuf,
    /// `<container id>/`: upper and work directories of the overlays.
    pub uppers: PathBuf,
    /// `<pod id>/`: a pod's shim, its socket, its exit records, its generated files.
    pub pods_run_dir: PathBuf,
    /// Where network namespaces are pinned by bind mounts, for CNI plugins and for `ip netns`.
    pub netns_dir: PathBuf,
    /// Addresses given out and cached CNI results.
    pub network_state: PathBuf,
    /// Results of CNI ADD, below `network_state`.
    pub cni_cache: PathBuf,
}

const SYSTEM_STATE: &str = "/var/lib/knarr";
const SYSTEM_RUN: &str = "/run/knarr";
/// Where iproute2 and every CNI plugin expect named network namespaces.
const SYSTEM_NETNS: &str = "/run/netns";
const SOCKET_NAME: &str = "knarr.sock";

impl Paths {
    pub(super) fn of(config: &Config) -> Self {
        let root = given(&config.root);
        let state_dir = given(&config.state_dir)
            .map(Path::to_path_buf)
            .unwrap_or_else(|| root.map_or_else(|| SYSTEM_STATE.into(), |root| root.join("state")));
        let run_dir = given(&config.run_dir)
            .map(Path::to_path_buf)
            .unwrap_or_else(|| root.map_or_else(|| SYSTEM_RUN.into(), |root| root.join("run")));
        let socket = given(&config.socket.path).map_or_else(|| default_socket(root), Path::to_path_buf);
        let netns_dir = given(&config.network.netns_dir)
            .map(Path::to_path_buf)
            .unwrap_or_else(|| root.map_or_else(|| SYSTEM_NETNS.into(), |root| root.join("run/netns")));
        let network_state = state_dir.join("network");
        Self {
            socket,
            images: state_dir.join("images"),
            records: state_dir.join("records"),
            uppers: state_dir.join("uppers"),
            pods_run_dir: run_dir.join("pods"),
            netns_dir,
            cni_cache: network_state.join("cni"),
            network_state,
            state_dir,
            run_dir,
        }
    }
}

/// The socket that a client tries when it is told nothing but a root.
pub fn default_socket(root: Option<&Path>) -> PathBuf {
    match root {
        Some(root) => root.join(SOCKET_NAME),
        None => Path::new(SYSTEM_RUN).join(SOCKET_NAME),
    }
}

/// Where `knarr run` keeps the logs and volumes of the pods that it started.
/// The command line owns it; the daemon never looks there.
pub fn cli_dir(root: Option<&Path>) -> PathBuf {
    root.map_or_else(|| Path::new(SYSTEM_STATE).join("cli"), |root| root.join("cli"))
}

/// An empty path in the file means "the usual place".
fn given(path: &Path) -> Option<&Path> {
    (!path.as_os_str().is_empty()).then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_root_the_system_places_are_used() {
        let paths = Config::default().paths();
        assert_eq!(paths.socket, Path::new("/run/knarr/knarr.sock"));
        assert_eq!(paths.records, Path::new("/var/lib/knarr/records"));
        assert_eq!(paths.pods_run_dir, Path::new("/run/knarr/pods"));
        assert_eq!(paths.netns_dir, Path::new("/run/netns"));
    }

    #[test]
    fn with_a_root_nothing_lies_outside_it() {
        let paths = Config { root: "/srv/one".into(), ..Config::default() }.paths();
        let Paths {
            socket,
            state_dir,
            run_dir,
            images,
            records,
            uppers,
            pods_run_dir,
            netns_dir,
            network_state,
            cni_cache,
        } = paths;
        for path in
            [socket, state_dir, run_dir, images, records, uppers, pods_run_dir, netns_dir, network_state, cni_cache]
        {
            assert!(path.starts_with("/srv/one"), "{}", path.display());
        }
        assert!(cli_dir(Some(Path::new("/srv/one"))).starts_with("/srv/one"));
    }

    #[test]
    fn a_single_place_can_be_moved_alone() {
        let config = Config { root: "/srv/one".into(), state_dir: "/data".into(), ..Config::default() };
        assert_eq!(config.paths().images, Path::new("/data/images"));
        assert_eq!(config.paths().run_dir, Path::new("/srv/one/run"));
    }
}
