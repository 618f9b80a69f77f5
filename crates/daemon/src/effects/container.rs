//! Effects on one container: create, start, signal, kill, delete, update, reopen.

use super::spec::Built;
use super::steps::Steps;
use super::{LiveContainer, PodEffects, blocking, failed, not_started};
use crate::cgroup::{CgroupFds, ContainerCgroup, Sample};
use crate::oci::users::ResolvedUser;
use crate::oci::{self, classes};
use knarr_model::input::{Resolved, StartError, Started};
use knarr_model::plan::{CgroupPlan, ContainerPlan, FdIndex};
use knarr_model::pod::Container;
use knarr_model::resources::Resources;
use knarr_model::spec::{ContainerSpec, MountSource, PodSpec};
use knarr_model::view::ContainerView;
use knarr_model::{ContainerId, Error, ErrorKind, UserNamespace};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// SIGKILL
const KILL: i32 = 9;

/// What starting a container needs of its machine.
#[derive(Debug, Clone)]
pub(super) struct Parts {
    pub(super) id: ContainerId,
    pub(super) spec: Arc<ContainerSpec>,
    pub(super) resolved: Resolved,
    resources: Resources,
}

impl Parts {
    pub(super) fn of(container: &Container) -> Self {
        Self {
            id: container.id().clone(),
            spec: container.spec().clone(),
            resolved: container.resolved().clone(),
            resources: container.resources().clone(),
        }
    }

    pub(super) fn of_view(view: &ContainerView) -> Self {
        Self {
            id: view.id.clone(),
            spec: view.spec.clone(),
            resolved: view.resolved.clone(),
            resources: view.resources.clone(),
        }
    }
}

impl PodEffects {
    /// Finds the image, looks the user up, builds the specification and makes the places that the container needs.
    /// Undoes itself when it fails.
    pub(super) async fn create_container(
        &self,
        id: &ContainerId,
        spec: &Arc<ContainerSpec>,
    ) -> Result<Resolved, Error> {
        let created = self.try_create(id, spec).await;
        if created.is_err() {
            let live = self.live().containers.remove(id);
            let upper = self.world.paths.uppers.join(id.as_str());
            if let Err(left) = blocking(move || remove_dir(&upper)).await.and_then(|removed| removed) {
                tracing::warn!(container = id.as_str(), error = %left, "cannot remove what was made for it");
            }
            drop(live);
        }
        created
    }

    async fn try_create(&self, id: &ContainerId, spec: &Arc<ContainerSpec>) -> Result<Resolved, Error> {
        let image = self.world.image(&spec.image)?;
        if image.config.artifact {
            let why = "is an artifact: it has nothing to run and can only be a volume";
            return Err(Error::new(
                ErrorKind::FailedPrecondition,
                format!("config.image.image: {:?} {why}", spec.image),
            ));
        }
        self.check_classes(spec)?;
        let lease = self.world.images.store().hold(&image.id).ok_or_else(|| Error::not_found("image", &image.id))?;
        let user = self.world.user_of(&image, spec).await?;
        let root = match &self.spec.namespaces.user {
            Some(ids) => Some(root_on_host(ids, &user)?),
            None => None,
        };
        let (volume_images, mut leases) = self.find_image_volumes(spec).await?;
        leases.push(lease);
        self.live().containers.insert(id.clone(), LiveContainer { leases, ..Default::default() });
        let stop_signal = oci::signal::stop_signal(spec.stop_signal, &image.config.stop_signal);
        let resolved = Resolved {
            image_id: image.id.clone(),
            uid: user.uid,
            gid: user.gid,
            groups: user.groups,
            volume_images,
            stop_signal,
        };
        let resources = spec.resources.clone();
        self.built(&Parts { id: id.clone(), spec: spec.clone(), resolved: resolved.clone(), resources }).await?;
        let log = Some(oci::pod::log_path(&self.spec, spec)).filter(|path| !path.is_empty()).map(PathBuf::from);
        let (upper, volumes) = (self.world.paths.uppers.join(id.as_str()), host_paths(spec));
        let owner = id.clone();
        blocking(move || make_places(&owner, &upper, root, log.as_deref(), &volumes)).await??;
        Ok(resolved)
    }

    fn check_classes(&self, spec: &ContainerSpec) -> Result<(), Error> {
        let config = &self.world.config.resources;
        for kind in classes::Kind::ALL {
            let ignored = match kind {
                classes::Kind::BlockIo => config.ignore_blockio_not_enabled_errors,
                classes::Kind::Rdt => config.ignore_rdt_not_enabled_errors,
            };
            match kind.asked(&self.spec, spec) {
                Some((key, class)) if !ignored => return Err(kind.refusal(&key, class)),
                Some((key, class)) => tracing::debug!(key, class, "a class of service is passed over"),
                None => {}
            }
        }
        Ok(())
    }

    pub(super) async fn start_container(self: &Arc<Self>, parts: Parts) -> Result<Started, StartError> {
        let mut steps = Steps::start();
        let prepared = self.prepare(&parts, &mut steps).await.map_err(StartError::Other)?;
        let Prepared { plan, fds, cgroup } = prepared;
        self.live().containers.entry(parts.id.clone()).or_default().cgroup = Some(cgroup.clone());
        let shim = self.shim().map_err(StartError::Other)?;
        match shim.start_container(plan, fds).await {
            Ok(started) => {
                steps.done("process");
                tracing::debug!(container = parts.id.as_str(), steps = %steps, "started");
                self.live().containers.entry(parts.id.clone()).or_default().pidfd = Some(Arc::new(started.pidfd));
                Ok(Started { pid: started.pid, started_at: started.started_at })
            }
            Err(error) => {
                self.drop_cgroup(&parts.id, cgroup).await;
                Err(not_started(error))
            }
        }
    }

    /// `None` in a pod that has none.
    fn user_namespace(&self) -> Result<Option<Arc<OwnedFd>>, Error> {
        match (&self.spec.namespaces.user, &self.live().user_ns) {
            (None, _) => Ok(None),
            (Some(_), Some(namespace)) => Ok(Some(namespace.clone())),
            (Some(_), None) => {
                let why = format!("the user namespace of pod {} is gone with its shim", self.id.short());
                Err(Error::new(ErrorKind::Unavailable, why))
            }
        }
    }

    async fn drop_cgroup(&self, id: &ContainerId, cgroup: Arc<ContainerCgroup>) {
        if let Some(container) = self.live().containers.get_mut(id) {
            container.cgroup = None;
        }
        if let Err(error) = cgroup.remove().await {
            tracing::warn!(container = id.as_str(), %error, "cannot remove the cgroup of a container that did not start");
        }
    }

    async fn prepare(&self, parts: &Parts, steps: &mut Steps) -> Result<Prepared, Error> {
        let built = self.built(parts).await?;
        steps.done("specification");
        let image = self.world.held_image(&parts.resolved.image_id)?;
        let upper = self.world.paths.uppers.join(parts.id.as_str());
        let users = self.user_namespace()?;
        let rootfs = self.world.rootfs(&image, Some(upper), users.clone()).await?;
        let image_volumes = self.mount_image_volumes(&parts.spec, &parts.resolved, users).await?;
        steps.done("root file system");
        let resources = self.world.with_defaults(&parts.resources);
        let devices = built.device_access();
        let cgroup = self.world.cgroups.create_container(&self.pod_cgroup()?, &parts.id, &resources, &devices).await?;
        steps.done("cgroup");
        let (parts_, pod_spec, pod_dir) = (parts.clone(), self.spec.clone(), self.pod_dir());
        let cgroup_ = cgroup.clone();
        let compiled =
            blocking(move || compile(&parts_, &built, &pod_spec, &pod_dir, &cgroup_, rootfs, image_volumes)).await;
        steps.done("plan");
        match compiled.and_then(|result| result) {
            Ok((plan, fds)) => Ok(Prepared { plan, fds, cgroup: Arc::new(cgroup) }),
            Err(error) => {
                if let Err(left) = cgroup.remove().await {
                    tracing::warn!(container = parts.id.as_str(), error = %left, "cannot remove its cgroup");
                }
                Err(error)
            }
        }
    }

    /// Signals by pidfd: the daemon does it itself, so that a busy shim delays no Stop.
    pub(super) fn signal(&self, id: &ContainerId, signal: u8) {
        let pidfd = self.live().containers.get(id).and_then(|c| c.pidfd.clone());
        let Some(pidfd) = pidfd else { return };
        // ESRCH: it has ended, and its exit is on the way.
        let sent = knarr_sys::process::send_signal(pidfd.as_fd(), i32::from(signal));
        if let Err(error) = sent
            && error != rustix::io::Errno::SRCH
        {
            tracing::warn!(container = id.as_str(), signal, %error, "cannot signal");
        }
    }

    /// Kills everything in the container's cgroup, and its first process by its pidfd as well.
    pub(super) fn kill(&self, id: &ContainerId) {
        let pidfd = self.live().containers.get(id).and_then(|c| c.pidfd.clone());
        if let Some(pidfd) = pidfd {
            let _ = knarr_sys::process::send_signal(pidfd.as_fd(), KILL);
        }
        if let Err(error) = self.container_cgroup(id).and_then(|cgroup| cgroup.kill()) {
            tracing::warn!(container = id.as_str(), %error, "cannot kill its cgroup");
        }
    }

    /// Removes all that the container has, going on after errors.
    pub(super) async fn delete_container(&self, id: &ContainerId) -> Result<(), Error> {
        let cgroup = self.container_cgroup(id);
        let live = self.live().containers.remove(id);
        let shim = self.live().shim.clone();
        if let Some(shim) = shim
            && let Err(error) = shim.forget_container(id.clone()).await
            && error.kind != ErrorKind::NotFound
        {
            tracing::debug!(container = id.as_str(), %error, "the shim does not forget the container");
        }
        let mut problems = Vec::new();
        let emptied = match cgroup {
            Ok(cgroup) => cgroup.remove().await,
            Err(error) => Err(error),
        };
        problems.extend(emptied.err().map(|e| e.message));
        let (world, pod, owner) = (self.world.clone(), self.id.clone(), id.clone());
        blocking(move || {
            // Only now: the layers must stay as long as a process could use them.
            drop(live);
            problems.extend(remove_dir(&world.paths.uppers.join(owner.as_str())).err().map(|e| e.message));
            world.records.drop_container_config(&pod, &owner);
            if problems.is_empty() { Ok(()) } else { Err(Error::internal(problems.join("; "))) }
        })
        .await?
        .map_err(|e| e.context(format_args!("remove container {}", id.short())))
    }

    pub(super) async fn update_resources(&self, id: &ContainerId, resources: Resources) -> Result<(), Error> {
        let cgroup = self.container_cgroup(id)?;
        let resources = self.world.with_defaults(&resources);
        cgroup.update(&resources).await
    }

    /// What the container uses now; nothing where it has no cgroup.
    pub fn sample(&self, id: &ContainerId) -> Sample {
        self.container_cgroup(id).map(|cgroup| cgroup.sample()).unwrap_or_default()
    }

    pub(super) async fn reopen_log(&self, id: &ContainerId) -> Result<(), Error> {
        self.shim()?.reopen_log(id.clone()).await
    }
}

struct Prepared {
    plan: ContainerPlan,
    fds: Vec<OwnedFd>,
    cgroup: Arc<ContainerCgroup>,
}

pub(super) fn push(fds: &mut Vec<OwnedFd>, fd: OwnedFd) -> FdIndex {
    fds.push(fd);
    FdIndex(fds.len() as u32 - 1)
}

pub(super) fn push_cgroup(fds: &mut Vec<OwnedFd>, CgroupFds { into, v1_tasks }: CgroupFds) -> CgroupPlan {
    let into = push(fds, into);
    let v1_tasks = v1_tasks.into_iter().map(|fd| push(fds, fd)).collect();
    CgroupPlan { into, v1_tasks }
}

fn compile(
    parts: &Parts,
    built: &Built,
    pod: &PodSpec,
    pod_dir: &oci::PodDir,
    cgroup: &ContainerCgroup,
    rootfs: OwnedFd,
    image_volumes: Vec<OwnedFd>,
) -> Result<(ContainerPlan, Vec<OwnedFd>), Error> {
    let mut fds = Vec::new();
    let rootfs = push(&mut fds, rootfs);
    let image_volumes: Vec<FdIndex> = image_volumes.into_iter().map(|volume| push(&mut fds, volume)).collect();
    let cgroup_plan = push_cgroup(&mut fds, cgroup.plan_fds()?);
    let plan = oci::plan(
        &built.spec,
        oci::PlanInputs {
            id: &parts.id,
            pod_dir,
            rootfs,
            image_volumes: &image_volumes,
            cgroup: cgroup_plan,
            cgroup_v1: &cgroup.v1_paths(),
            seccomp: &built.seccomp,
            stdio: oci::stdio(pod, &parts.spec),
        },
    )?;
    Ok((plan, fds))
}

/// Host paths of volumes, which are made as directories where they are missing, as containerd and CRI-O do.
fn host_paths(spec: &ContainerSpec) -> Vec<PathBuf> {
    let sources = spec.mounts.iter().filter_map(|m| match &m.source {
        MountSource::Host(path) => Some(PathBuf::from(path)),
        MountSource::Image { .. } => None,
    });
    sources.collect()
}

/// The host's ids of the root of a pod's user namespace. Every id that the container's user has must be in it: the kernel
/// knows nobody else there.
fn root_on_host(ids: &UserNamespace, user: &ResolvedUser) -> Result<(u32, u32), Error> {
    let not_mapped = |what: &str, id: u32, last: Option<u32>| {
        let why = format!("{what} {id} is not mapped in the pod's user namespace, which ends at {}", last.unwrap_or(0));
        Error::new(ErrorKind::InvalidArgument, why)
    };
    if ids.uids.to_host(user.uid).is_none() {
        return Err(not_mapped("user", user.uid, ids.uids.last()));
    }
    if let Some(group) = [user.gid].iter().chain(&user.groups).find(|group| ids.gids.to_host(**group).is_none()) {
        return Err(not_mapped("group", *group, ids.gids.last()));
    }
    ids.root().ok_or_else(|| not_mapped("user", 0, ids.uids.last()))
}

/// `root` is who owns the container's `/`, if not the host's root.
fn make_places(
    id: &ContainerId,
    upper: &Path,
    root: Option<(u32, u32)>,
    log: Option<&Path>,
    volumes: &[PathBuf],
) -> Result<(), Error> {
    let private = |path: &Path| std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    private(upper).map_err(failed(format_args!("make the writable layer {}", upper.display())))?;
    for name in ["upper", "work"] {
        let path = upper.join(name);
        // The upper's root becomes the container's `/`, which everybody may search.
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o755).create(&path);
        made.map_err(failed(format_args!("make the writable layer {}", path.display())))?;
    }
    if let Some((uid, gid)) = root {
        let path = upper.join("upper");
        let given = std::os::unix::fs::chown(&path, Some(uid), Some(gid));
        given.map_err(failed(format_args!("give {} to {uid}:{gid}", path.display())))?;
    }
    for volume in volumes {
        if std::fs::metadata(volume).is_err() {
            let made = std::fs::DirBuilder::new().recursive(true).mode(0o755).create(volume);
            made.map_err(failed(format_args!(
                "container {}: host path {} is missing and cannot be made",
                id.short(),
                volume.display()
            )))?;
        }
    }
    if let Some(parent) = log.and_then(Path::parent) {
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o755).create(parent);
        made.map_err(failed(format_args!("make the log's directory {}", parent.display())))?;
    }
    Ok(())
}

pub(super) fn remove_dir(path: &Path) -> Result<(), Error> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        result => result.map_err(failed(format_args!("remove {}", path.display()))),
    }
}
