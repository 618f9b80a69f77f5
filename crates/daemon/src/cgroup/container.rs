//! One container's cgroup, and the leaves below it in which execs run.
//!
//! It lives from just before the first process until the container is removed, so that what the kernel counted
//! (OOM kills, CPU time) can still be asked when the process is gone. A new cgroup counts from zero.

use super::group::{Group, blocking, join};
use super::names::Slice;
use super::systemd::Scope;
use super::systemd::properties::{self, Property, Translated};
use super::{CgroupFds, Sample, apply, sample};
use knarr_model::resources::{Resources, v2_files};
use knarr_model::{ContainerId, Error, ExecId};
use knarr_sys::cgroup as sys;
use knarr_sys::device_filter::{self, Rule};
use rustix::io::Errno;
use std::time::Duration;

/// How many names are tried for an exec's leaf when an earlier daemon's exec of that number still has processes.
const EXEC_LEAF_NAMES: u32 = 64;

/// How long what an exec leaves behind may take to die once it is killed: milliseconds, unless a disk holds it.
const EXEC_DEATH_LIMIT: Duration = Duration::from_secs(2);

/// Which devices a container may open and make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeviceAccess {
    /// Every device: a privileged container.
    All,
    /// These and no other; rules as the v1 controller takes them ("c 1:3 rwm", "c 136:* rwm").
    Only(Vec<String>),
}

/// One container's cgroup.
#[derive(Debug, Clone)]
pub struct ContainerCgroup {
    group: Group,
    /// Where systemd made what it lies in.
    scope: Option<ScopeOf>,
}

/// The scope around a container's cgroup.
#[derive(Debug, Clone)]
pub(super) struct ScopeOf {
    pub(super) unit: String,
    pub(super) slice: Slice,
    pub(super) group: Group,
}

impl ContainerCgroup {
    pub(super) fn new(group: Group, scope: Option<ScopeOf>) -> Self {
        Self { group, scope }
    }

    pub(super) async fn create(&self, resources: Resources, devices: DeviceAccess) -> Result<(), Error> {
        if let Some(scope) = &self.scope {
            return self.create_in_scope(scope, resources, devices).await;
        }
        let this = self.clone();
        blocking(move || {
            if !this.group.make()? {
                this.group.remove().map_err(|e| e.context("clear what an earlier attempt left"))?;
                this.group.make()?;
            }
            this.limit(&resources, &devices)
        })
        .await
    }

    async fn create_in_scope(&self, scope: &ScopeOf, resources: Resources, devices: DeviceAccess) -> Result<(), Error> {
        let Translated { mut properties, rest } = properties::translate(v2_files(&resources));
        let (group, devices_) = (scope.group.clone(), devices.clone());
        let (left, of_devices) = blocking(move || Ok((group.exists(), device_properties(&devices_)))).await?;
        if left {
            self.remove().await.map_err(|e| e.context("clear what an earlier attempt left"))?;
        }
        properties.extend(of_devices);
        let wanted = Scope {
            unit: scope.unit.clone(),
            slice: scope.slice.clone(),
            description: format!("container in {}", scope.slice.unit()),
            properties,
        };
        self.group.shared.systemd.start_kept(wanted, &scope.group).await?;
        let (this, outer) = (self.clone(), scope.group.path.clone());
        blocking(move || {
            this.group.make_below()?;
            this.limit(&resources, &devices)?;
            apply::set(&this.group.shared, &this.group.shared.tree_writes(&outer, rest))
        })
        .await
    }

    fn limit(&self, resources: &Resources, devices: &DeviceAccess) -> Result<(), Error> {
        self.allow_devices(devices)?;
        let writes = self.group.shared.writes(&self.group.path, resources);
        apply::set(&self.group.shared, &writes)
    }

    /// Absolute path in every hierarchy.
    pub fn path(&self) -> String {
        format!("/{}", self.group.path)
    }

    /// As an OCI specification names it for its driver: a path, or slice, prefix and name of a scope.
    pub fn oci_path(&self, id: &ContainerId) -> String {
        match &self.scope {
            Some(scope) => format!("{}:knarr:{id}", scope.slice.unit()),
            None => self.path(),
        }
    }

    /// For [`knarr_model::plan::MountKind::Cgroup`]: each hierarchy's name in the container's /sys/fs/cgroup and the
    /// container's directory on the host. Empty on pure v2, where the container mounts cgroup2 itself.
    pub fn v1_paths(&self) -> Vec<(Vec<u8>, Vec<u8>)> {
        let hierarchies = &self.group.shared.hierarchies;
        if hierarchies.v1.is_empty() {
            return Vec::new();
        }
        let all = hierarchies.v1.iter().chain([&hierarchies.tree]);
        all.filter_map(|hierarchy| {
            let mounted = hierarchy.mount_point.as_ref()?;
            let name = mounted.file_name()?.as_encoded_bytes().to_vec();
            Some((name, mounted.join(&self.group.path).into_os_string().into_encoded_bytes()))
        })
        .collect()
    }

    /// For the container's first process.
    pub fn plan_fds(&self) -> Result<CgroupFds, Error> {
        self.group.fds()
    }

    /// Changes the limits to exactly these; an error means that the old ones hold. Fails if the container uses more
    /// memory than it may have from now on, where v2 would have killed it.
    pub async fn update(&self, resources: &Resources) -> Result<(), Error> {
        resources.check()?;
        let Translated { properties, rest } = properties::translate(v2_files(resources));
        let (this, resources) = (self.clone(), resources.clone());
        let changed = blocking(move || {
            this.refuse_less_than_in_use(&resources)?;
            let shared = &this.group.shared;
            let mut writes = shared.writes(&this.group.path, &resources);
            if let Some(scope) = &this.scope {
                writes.extend(shared.tree_writes(&scope.group.path, rest));
            }
            apply::change(&writes)
        });
        let olds = changed.await?;
        let Some(scope) = &self.scope else { return Ok(()) };
        // The kernel has taken the values within the scope, so systemd will not fail to write them for it.
        let Err(mut error) = self.group.shared.systemd.set(&scope.unit, properties).await else { return Ok(()) };
        let shared = self.group.shared.clone();
        let problems = blocking(move || Ok(apply::put_back(&shared, &olds))).await?;
        problems.iter().for_each(|problem| error.message += &format!("; {problem}"));
        Err(error)
    }

    fn refuse_less_than_in_use(&self, resources: &Resources) -> Result<(), Error> {
        if let Some(limit) = resources.memory_limit.and_then(|l| u64::try_from(l).ok())
            && let Some(memory) = self.sample().memory
            && memory.working_set > limit
        {
            return Err(Error::invalid(
                "memory_limit_in_bytes",
                format!("{limit} is less than the {} bytes in use", memory.working_set),
            ));
        }
        Ok(())
    }

    /// Makes a cgroup of its own for an exec, so that the exec can be killed as a whole. v1 hierarchies, where the
    /// container's limits may be, have it in the container's own.
    pub fn exec_leaf(&self, id: ExecId) -> Result<ExecLeaf, Error> {
        let tree = self.group.shared.tree();
        for attempt in 0..EXEC_LEAF_NAMES {
            let suffix = if attempt == 0 { String::new() } else { format!("-{attempt}") };
            let path = format!("{}/knarr-exec-{}{suffix}", self.group.path, id.0);
            match rustix::fs::mkdirat(tree, path.as_str(), rustix::fs::Mode::from_raw_mode(0o755)) {
                Ok(()) => {
                    let leaf = Group { shared: self.group.shared.clone(), path };
                    return Ok(ExecLeaf { leaf, container: self.group.clone() });
                }
                Err(Errno::EXIST) => {}
                Err(Errno::NOENT | Errno::NODEV) => {
                    return Err(Error::new(
                        knarr_model::ErrorKind::FailedPrecondition,
                        "the container is not running: its cgroup is gone",
                    ));
                }
                Err(errno) => return Err(Error::internal(format!("make cgroup /{path}: {errno}"))),
            }
        }
        Err(Error::internal(format!("no free name for exec {} below cgroup /{}", id.0, self.group.path)))
    }

    /// SIGKILL to every process, those of execs and of cgroups that the container made itself included.
    pub fn kill(&self) -> Result<(), Error> {
        self.group.kill()
    }

    /// Every process of the container, as the host numbers them.
    pub fn processes(&self) -> Result<Vec<u32>, Error> {
        self.group.processes()
    }

    /// How many of the container's processes the OOM killer took since the cgroup was made, whichever limit was the
    /// cause. 0 where the kernel cannot say or the cgroup is gone.
    pub fn oom_kills(&self) -> u64 {
        let shared = &self.group.shared;
        let count = |root, file: &str| {
            let text = sys::read(root, &join(&self.group.path, file)).ok()?;
            text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
        };
        if shared.tree_has("memory") {
            // The local file counts victims that lived in this very cgroup: a limit that the container set for a
            // part of itself is its own affair.
            let tree = shared.tree();
            return count(tree, "memory.events.local").or_else(|| count(tree, "memory.events")).unwrap_or(0);
        }
        shared.v1_root("memory").and_then(|root| count(root, "memory.oom_control")).unwrap_or(0)
    }

    /// What it uses now.
    pub fn sample(&self) -> Sample {
        sample::take(&self.group.shared, &self.group.path)
    }

    /// Kills what is left and removes it in every hierarchy; goes on after errors. Nothing there is no error.
    pub async fn remove(&self) -> Result<(), Error> {
        let Some(scope) = &self.scope else {
            let group = self.group.clone();
            return blocking(move || group.remove()).await;
        };
        let group = scope.group.clone();
        blocking(move || group.remove()).await?;
        self.group.shared.systemd.clear(&scope.unit).await;
        Ok(())
    }

    /// Nothing but the list, fail-closed: by the v1 controller where there is one, else by a program in cgroup2.
    fn allow_devices(&self, devices: &DeviceAccess) -> Result<(), Error> {
        let Some(root) = self.group.shared.v1_root("devices") else { return self.filter_devices(devices) };
        let write = |file: &str, rule: &str| {
            sys::write(root, &join(&self.group.path, file), rule)
                .map_err(|e| Error::internal(format!("write {rule:?} to cgroup file /{}/{file}: {e}", self.group.path)))
        };
        match devices {
            DeviceAccess::All => write("devices.allow", "a"),
            DeviceAccess::Only(rules) => {
                write("devices.deny", "a")?;
                rules.iter().try_for_each(|rule| write("devices.allow", rule))
            }
        }
    }

    fn filter_devices(&self, devices: &DeviceAccess) -> Result<(), Error> {
        let DeviceAccess::Only(rules) = devices else { return Ok(()) };
        let parsed: Option<Vec<Rule>> = rules.iter().map(|rule| device_rule(rule)).collect();
        let rules = parsed.ok_or_else(|| Error::internal(format!("device rules {rules:?} cannot be read")))?;
        let path = &self.group.path;
        let directory = sys::open_dir(self.group.shared.tree(), path);
        directory
            .and_then(|directory| device_filter::attach(directory, &rules))
            .map_err(|e| Error::internal(format!("attach the device filter to cgroup /{path}: {e}")))
    }
}

/// The same rules for systemd, where it has words for all of them.
fn device_properties(devices: &DeviceAccess) -> Vec<Property> {
    let DeviceAccess::Only(rules) = devices else { return Vec::new() };
    let rules: Option<Vec<Rule>> = rules.iter().map(|rule| device_rule(rule)).collect();
    let majors = std::fs::read_to_string("/proc/devices").unwrap_or_default();
    rules.and_then(|rules| properties::devices(&rules, &majors)).unwrap_or_default()
}

/// A rule in the words of the v1 controller: "c 1:3 rwm", "b *:* m".
fn device_rule(text: &str) -> Option<Rule> {
    let mut words = text.split(' ');
    let (kind, numbers, access) = (words.next()?, words.next()?, words.next()?);
    let block = match kind {
        "b" => true,
        "c" => false,
        _ => return None,
    };
    let number = |text: &str| match text {
        "*" => Some(None),
        digits => digits.parse().ok().map(Some),
    };
    let (major, minor) = numbers.split_once(':')?;
    let access = access.chars().try_fold(0, |access, way| match way {
        'm' => Some(access | device_filter::MKNOD),
        'r' => Some(access | device_filter::READ),
        'w' => Some(access | device_filter::WRITE),
        _ => None,
    })?;
    Some(Rule { block, major: number(major)?, minor: number(minor)?, access })
}

/// The cgroup of one exec.
#[derive(Debug, Clone)]
pub struct ExecLeaf {
    leaf: Group,
    container: Group,
}

impl ExecLeaf {
    /// Absolute path in the cgroup2 hierarchy.
    pub fn path(&self) -> String {
        format!("/{}", self.leaf.path)
    }

    /// For the exec's process.
    pub fn plan_fds(&self) -> Result<CgroupFds, Error> {
        let mut fds = self.container.fds()?;
        fds.into = sys::open_dir(self.leaf.shared.tree(), &self.leaf.path)
            .map_err(|e| Error::internal(format!("open cgroup /{}: {e}", self.leaf.path)))?;
        Ok(fds)
    }

    /// SIGKILL to everything that the exec started and that has not moved away.
    pub fn kill(&self) -> Result<(), Error> {
        self.leaf.kill()
    }

    /// Whether a process of the exec is left.
    pub fn is_populated(&self) -> bool {
        !sys::wait_until_empty(self.leaf.shared.tree(), &self.leaf.path, Duration::ZERO).unwrap_or(false)
    }

    /// Kills everything in the leaf, waits a moment until it is dead, and removes the leaf.
    pub fn end(&self) {
        let _ = self.leaf.kill();
        let _ = sys::wait_until_empty(self.leaf.shared.tree(), &self.leaf.path, EXEC_DEATH_LIMIT);
        self.remove();
    }

    /// Removes the leaf if nothing lives in it. What a background process still uses goes with the container.
    pub fn remove(&self) {
        let _ = sys::remove_tree(self.leaf.shared.tree(), &self.leaf.path);
    }
}

#[cfg(test)]
mod device_tests {
    use super::*;

    #[test]
    fn rules_of_the_v1_controller_are_understood_for_the_filter() {
        let all = device_filter::MKNOD | device_filter::READ | device_filter::WRITE;
        let null = Rule { block: false, major: Some(1), minor: Some(3), access: all };
        assert_eq!(device_rule("c 1:3 rwm"), Some(null));
        let make = Rule { block: true, major: None, minor: None, access: device_filter::MKNOD };
        assert_eq!(device_rule("b *:* m"), Some(make));
        for bad in ["", "a", "c 1:3", "c 1 rw", "x 1:3 rw", "c 1:x rw", "c 1:3 rx"] {
            assert_eq!(device_rule(bad), None, "{bad:?}");
        }
    }
}
