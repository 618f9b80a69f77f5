//! The configuration in the words of each room.

use crate::cgroup::{CgroupConfig, Driver};
use crate::config::{CgroupDriver, Config, NetworkMode};
use crate::network::{BuiltinConfig, CniConfig, NetworkConfig};
use crate::oci::{HostFacts, capability};
use knarr_image::layer::Limits;
use knarr_image::pull::PullConfig;
use knarr_image::registry::RegistryConfig;
use knarr_image::store::StoreConfig;
use sha2::{Digest, Sha256};

/// What the cgroups are told.
pub fn cgroups(config: &Config) -> CgroupConfig {
    let driver = match config.cgroup.driver {
        CgroupDriver::Auto => None,
        CgroupDriver::Cgroupfs => Some(Driver::Cgroupfs),
        CgroupDriver::Systemd => Some(Driver::Systemd),
    };
    CgroupConfig { driver, parent: config.cgroup.parent.clone(), instance: instance(config) }
}

/// A name that no instance with another root has.
fn instance(config: &Config) -> String {
    if config.root.as_os_str().is_empty() {
        return "knarr".to_owned();
    }
    // The same directory by another name is the same instance: the lock below it keeps a second daemon off.
    let root = std::fs::canonicalize(&config.root).unwrap_or_else(|_| config.root.clone());
    let digest = Sha256::digest(root.as_os_str().as_encoded_bytes());
    let digits: String = digest.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    format!("knarr-{digits}")
}

/// What the network is told.
pub fn network(config: &Config) -> NetworkConfig {
    let paths = config.paths();
    let network = &config.network;
    // A directory that cannot hold a configuration is how CNI is switched off.
    let conf_dir = match network.mode {
        NetworkMode::Builtin => paths.network_state.join("no-cni"),
        NetworkMode::Auto | NetworkMode::Cni => network.cni.conf_dir.clone(),
    };
    let subnet_v6 = Some(network.builtin.subnet_v6.clone()).filter(|s| !s.is_empty());
    NetworkConfig {
        netns_dir: paths.netns_dir,
        state_dir: paths.network_state,
        cni: CniConfig {
            conf_dir,
            bin_dirs: network.cni.bin_dirs.clone(),
            cache_dir: paths.cni_cache,
            plugin_timeout: network.cni.plugin_timeout.0,
            max_networks: network.cni.max_networks as usize,
        },
        builtin: BuiltinConfig {
            enabled: network.mode != NetworkMode::Cni,
            bridge: network.builtin.bridge.clone(),
            subnet_v4: network.builtin.subnet_v4.clone(),
            subnet_v6,
            host_ports: network.builtin.host_ports,
            masquerade: network.builtin.masquerade,
            mtu: network.builtin.mtu,
        },
    }
}

/// What the registry client is told.
pub fn registry(config: &Config) -> RegistryConfig {
    RegistryConfig {
        config_path: config.image.registry.config_path.clone(),
        progress_timeout: config.image.pull_progress_timeout.0,
        ..RegistryConfig::default()
    }
}

/// What the image store is told.
pub fn store(config: &Config) -> StoreConfig {
    let mut layer_limits = Limits::default();
    if config.image.max_unpacked_bytes.0 > 0 {
        layer_limits.content_bytes_max = config.image.max_unpacked_bytes.0;
    }
    StoreConfig { pinned: config.image.pinned.clone(), layer_limits }
}

/// What pulls are told.
pub fn pulls(config: &Config) -> PullConfig {
    PullConfig { layers_at_once: config.image.max_concurrent_layers as usize }
}

/// What the host has, with what the configuration says of it. An unknown capability is refused by name.
pub fn facts(config: &Config) -> Result<HostFacts, String> {
    let names = &config.security.default_capabilities;
    if let Some(unknown) = names.iter().find(|name| capability::number(name).is_none()) {
        return Err(format!("security.default_capabilities: {unknown:?} is no capability"));
    }
    let default_capabilities = capability::mask(names.iter().map(String::as_str));
    Ok(HostFacts { default_capabilities, ..HostFacts::probe() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instances_with_different_roots_have_different_cgroups() {
        let of = |root: &str| cgroups(&Config { root: root.into(), ..Config::default() }).instance;
        assert_eq!(of(""), "knarr");
        assert_ne!(of("/srv/one"), of("/srv/two"));
        assert_eq!(of("/srv/one"), of("/srv/one"));
    }
}
