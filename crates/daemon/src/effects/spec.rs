//! The OCI specification of a container: built when it is created, so that what is wrong is said then, and kept as a
//! value for its start and for execs.

use super::container::Parts;
use super::{PodEffects, blocking, failed};
use crate::cgroup::DeviceAccess;
use crate::oci::devices::{Owner, Taken};
use crate::oci::{self, ImageConfig, Inputs, PodDir, cdi, devices, seccomp};
use knarr_model::spec::{ContainerSpec, Profile};
use knarr_model::{ContainerId, Error, PodId};
use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType, Spec};
use std::sync::Arc;

/// A container's specification with what was compiled from it.
#[derive(Debug)]
pub(super) struct Built {
    pub(super) spec: Spec,
    pub(super) seccomp: Arc<[u8]>,
}

impl Built {
    /// Which devices the container may open, for the device controller.
    pub(super) fn device_access(&self) -> DeviceAccess {
        let linux = self.spec.linux().as_ref();
        let rules = linux.and_then(|l| l.resources().as_ref()).and_then(|r| r.devices().as_deref());
        device_access(rules.unwrap_or_default())
    }
}

/// The allowing rules in the words of the v1 controller; without any the container may open nothing.
fn device_access(rules: &[LinuxDeviceCgroup]) -> DeviceAccess {
    let number = |n: Option<i64>| n.filter(|n| *n >= 0).map_or("*".to_owned(), |n| n.to_string());
    let mut list = Vec::new();
    for rule in rules.iter().filter(|rule| rule.allow()) {
        let kind = match rule.typ() {
            Some(LinuxDeviceType::B) => 'b',
            Some(LinuxDeviceType::C | LinuxDeviceType::U) => 'c',
            None | Some(LinuxDeviceType::A) => return DeviceAccess::All,
            Some(LinuxDeviceType::P) => continue,
        };
        let access = rule.access().as_deref().unwrap_or("rwm");
        list.push(format!("{kind} {}:{} {access}", number(rule.major()), number(rule.minor())));
    }
    DeviceAccess::Only(list)
}

impl PodEffects {
    pub(super) fn pod_dir(&self) -> PodDir {
        PodDir::new(self.run_dir().display().to_string())
    }

    /// The container's specification; made anew after a restart of the daemon, equal to what it was.
    pub(super) async fn built(&self, parts: &Parts) -> Result<Arc<Built>, Error> {
        if let Some(built) = self.live().containers.get(&parts.id).and_then(|c| c.spec.clone()) {
            return Ok(built);
        }
        let image = self.world.held_image(&parts.resolved.image_id)?;
        let user = self.world.user_of(&image, &parts.spec).await?;
        let (world, pod, pod_id, container) =
            (self.world.clone(), self.spec.clone(), self.id.clone(), parts.spec.clone());
        let (id, pod_dir) = (parts.id.clone(), self.pod_dir());
        let cgroups_path = self.container_cgroup(&parts.id)?.oci_path(&parts.id);
        let built = blocking(move || {
            let config = &image.config;
            let image = ImageConfig {
                entrypoint: config.entrypoint.clone(),
                cmd: config.cmd.clone(),
                env: config.env.clone(),
                working_dir: config.working_dir.clone(),
                user: config.user.clone(),
                stop_signal: config.stop_signal.clone(),
            };
            let profile = world.seccomp_profile(&container)?;
            let taken = world.devices_of(&pod_id, &id, &container)?;
            let (mut devices, all_devices) = world.host_devices(&container)?;
            devices.extend(taken.nodes);
            let mut spec = oci::build(&Inputs {
                pod_id: &pod_id,
                pod: &pod,
                container: &container,
                image: &image,
                user: &user,
                pod_dir: &pod_dir,
                cgroups_path: &cgroups_path,
                seccomp: profile.as_deref(),
                devices: &devices,
                all_devices,
                host: &world.facts,
            })?;
            taken.cdi.apply(&mut spec)?;
            oci::check_plannable(&spec)?;
            let filter = spec.linux().as_ref().and_then(|l| l.seccomp().as_ref());
            let seccomp = match filter {
                Some(filter) => world.seccomp_compiler.compile(filter)?,
                None => Arc::default(),
            };
            Ok::<_, Error>(Built { spec, seccomp })
        });
        let built = Arc::new(built.await??);
        self.live().containers.entry(parts.id.clone()).or_default().spec = Some(built.clone());
        Ok(built)
    }
}

impl super::World {
    /// The profile that a container asked for; `RuntimeDefault` may be replaced by the configuration.
    fn seccomp_profile(&self, container: &ContainerSpec) -> Result<Option<Arc<seccomp::Profile>>, Error> {
        let security = &container.security;
        if security.seccomp == Profile::RuntimeDefault
            && !security.privileged
            && let Some(configured) = &self.seccomp_default
        {
            return Ok(Some(configured.clone()));
        }
        seccomp::choose(security)
    }

    /// The devices that a container asked for. The first time they are looked for on the host, and what is found is
    /// kept: an exec after a restart of the daemon must not fail because a driver has been removed since.
    fn devices_of(&self, pod: &PodId, id: &ContainerId, container: &ContainerSpec) -> Result<Taken, Error> {
        if container.devices.is_empty() && container.cdi_devices.is_empty() {
            return Ok(Taken::default());
        }
        match self.records.load_devices(pod, id) {
            Ok(Some(kept)) => return Ok(kept),
            Ok(None) => {}
            Err(error) => tracing::warn!(container = id.as_str(), %error, "its devices are looked for again"),
        }
        let config = &self.config.devices;
        let owner = match config.device_ownership_from_security_context {
            true => Owner::of_request(&container.security),
            false => Owner::default(),
        };
        let taken = Taken {
            nodes: devices::requested(&container.devices, owner)?,
            cdi: cdi::resolve(&config.cdi_spec_dirs, &container.cdi_devices)?,
        };
        self.records.save_devices(pod, id, &taken).map_err(failed("write the record of the container's devices"))?;
        Ok(taken)
    }

    /// What a privileged container gets of the host's devices, and whether it may open any.
    fn host_devices(&self, container: &ContainerSpec) -> Result<(Vec<devices::DeviceNode>, bool), Error> {
        let config = &self.config.devices;
        match (container.security.privileged, config.privileged_without_host_devices) {
            (false, _) => Ok((Vec::new(), false)),
            (true, true) => Ok((Vec::new(), config.privileged_without_host_devices_all_devices_allowed)),
            (true, false) => Ok((devices::all().map_err(failed("list /dev"))?, true)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(allow: bool, kind: LinuxDeviceType, numbers: (Option<i64>, Option<i64>)) -> LinuxDeviceCgroup {
        let mut rule = LinuxDeviceCgroup::default();
        rule.set_allow(allow).set_typ(Some(kind)).set_major(numbers.0).set_minor(numbers.1);
        rule.set_access(Some("rw".into()));
        rule
    }

    #[test]
    fn an_empty_list_allows_nothing_and_a_rule_for_all_allows_all() {
        assert!(matches!(device_access(&[]), DeviceAccess::Only(list) if list.is_empty()));
        let deny_all = rule(false, LinuxDeviceType::A, (None, None));
        let one = rule(true, LinuxDeviceType::C, (Some(136), None));
        let DeviceAccess::Only(list) = device_access(&[deny_all, one]) else { panic!() };
        assert_eq!(list, ["c 136:* rw"]);
        assert!(matches!(device_access(&[rule(true, LinuxDeviceType::A, (None, None))]), DeviceAccess::All));
    }
}
