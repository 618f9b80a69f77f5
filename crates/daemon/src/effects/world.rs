//! What all pods of a node share: the configuration and the rooms that carry effects out.

use super::failed;
use crate::cgroup::Cgroups;
use crate::config::{Config, Paths};
use crate::network::Network;
use crate::oci::beneath::read_beneath;
use crate::oci::users::{self, ResolvedUser};
use crate::oci::{HostFacts, seccomp};
use crate::records::Records;
use crate::shim_client;
use knarr_image::Images;
use knarr_image::store::Image;
use knarr_model::resources::Resources;
use knarr_model::spec::ContainerSpec;
use knarr_model::{Error, ErrorKind};
use knarr_sys::mount::{Attributes, OverlayThread};
use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

/// Users looked up in images' /etc/passwd are remembered; above this many the memory is emptied.
const USERS_MAX: usize = 1024;

/// The shared parts. Built once at start.
#[derive(Debug)]
#[allow(missing_docs)]
pub struct World {
    pub config: Config,
    pub paths: Paths,
    pub images: Images,
    pub network: Arc<Network>,
    pub cgroups: Arc<Cgroups>,
    pub records: Records,
    pub facts: HostFacts,
    pub seccomp_compiler: seccomp::Compiler,
    /// Takes the place of the built-in default profile.
    pub seccomp_default: Option<Arc<seccomp::Profile>>,
    /// knarr-shim on a detached read-only mount: no container can write the host's file through /proc/PID/exe.
    pub shim: OwnedFd,
    /// Whether pods can have a user namespace of their own, with the host's network too; else why not.
    pub user_namespaces: Result<(), String>,
    /// A mount namespace with nothing in it, from which pods' own start.
    pub base_mount_ns: OwnedFd,
    pub(super) overlay: OverlayThread,
    users: Mutex<HashMap<UserQuestion, ResolvedUser>>,
}

/// What decides a user: the image's id, and what the request says in words.
type UserQuestion = (String, String);

/// Bytes of an image's passwd or group file. Real ones have a few hundred; a hostile image may have any.
const USER_FILE_BYTES_MAX: u64 = 16 << 20;

impl World {
    /// Opens what needs the kernel; the rooms are given.
    pub fn new(
        config: Config,
        images: Images,
        network: Arc<Network>,
        cgroups: Arc<Cgroups>,
        records: Records,
        facts: HostFacts,
    ) -> Result<Arc<Self>, Error> {
        let paths = config.paths();
        let own = std::env::current_exe().ok();
        let candidates = config.shim_candidates(own.as_deref());
        let found: Option<PathBuf> = candidates.iter().find(|path| path.is_file()).cloned();
        let Some(path) = found else {
            let tried: Vec<_> = candidates.iter().map(|p| p.display().to_string()).collect();
            return Err(Error::internal(format!("knarr-shim is in none of {}", tried.join(", "))));
        };
        let shim = shim_client::sealed_executable(&path).map_err(failed(format_args!("seal {}", path.display())))?;
        let user_namespaces = shim_client::probe::user_namespaces(shim.as_fd(), &paths.state_dir);
        if let Err(why) = &user_namespaces {
            tracing::info!(why, "pods with a user namespace are not possible on this node");
        }
        cgroups.set_shim(shim.try_clone().map_err(failed("duplicate the shim's executable"))?);
        let base_mount_ns =
            knarr_sys::namespace::make_base_mount_ns().map_err(failed("make the base mount namespace"))?;
        let overlay = OverlayThread::start().map_err(failed("start the thread that mounts root file systems"))?;
        let configured = &config.security.seccomp_profile;
        let seccomp_default = match configured.to_str() {
            Some("") => None,
            Some(path) => Some(Arc::new(seccomp::load(path).map_err(|e| e.context("security.seccomp_profile"))?)),
            None => return Err(Error::invalid("security.seccomp_profile", "is not UTF-8")),
        };
        let (users, seccomp_compiler) = (Mutex::default(), seccomp::Compiler::default());
        Ok(Arc::new(Self {
            config,
            paths,
            images,
            network,
            cgroups,
            records,
            facts,
            seccomp_compiler,
            seccomp_default,
            shim,
            user_namespaces,
            base_mount_ns,
            overlay,
            users,
        }))
    }

    /// The limits of the configuration where a container says nothing.
    pub fn with_defaults(&self, resources: &Resources) -> Resources {
        let pids = self.config.limits.pids_limit;
        let pids_limit = resources.pids_limit.or_else(|| (pids > 0).then(|| i64::from(pids)));
        Resources { pids_limit, ..resources.clone() }
    }

    /// An image by any of its names or its id.
    pub fn image(&self, name: &str) -> Result<Arc<Image>, Error> {
        self.images.store().find(name).ok_or_else(|| {
            Error::new(ErrorKind::NotFound, format!("image {name:?} is not on this node; pull it first"))
        })
    }

    /// The image of a container, which may have been removed since the container was created.
    pub fn held_image(&self, id: &str) -> Result<Arc<Image>, Error> {
        self.images.store().held(id).ok_or_else(|| Error::not_found("image", id))
    }

    /// The root file system of a container as a detached mount: the image's layers, with `upper` on top. Without an
    /// upper it is read-only. In a pod with a user namespace `users`, the image's files are the pod's: its root owns what
    /// is root's there.
    pub async fn rootfs(
        self: &Arc<Self>,
        image: &Arc<Image>,
        upper: Option<PathBuf>,
        users: Option<Arc<OwnedFd>>,
    ) -> Result<OwnedFd, Error> {
        let (world, image) = (self.clone(), image.clone());
        let doing = format!("mount the root file system of image {}", image.id);
        super::blocking(move || {
            let clone = |path: PathBuf| {
                let opened = std::fs::File::open(&path);
                let cloned = opened.and_then(|dir| Ok(knarr_sys::mount::clone_of(dir, false)?));
                cloned.map_err(failed(format_args!("open {}", path.display())))
            };
            let layers = world.images.store().layer_paths(&image);
            let mapped_clone = |path: PathBuf| {
                let Some(users) = &users else { return clone(path) };
                let doing = format!("map the owners of {}", path.display());
                let tree = clone(path)?;
                let id_map = Attributes { id_map: Some(users.as_fd()), ..Attributes::default() };
                let mapped = knarr_sys::mount::set_attributes(&tree, false, id_map);
                mapped.map_err(|errno| cannot_map(&doing, errno))?;
                Ok(tree)
            };
            let lowers = layers.into_iter().map(mapped_clone).collect::<Result<Vec<_>, _>>()?;
            let upper = upper.map(clone).transpose()?;
            world.overlay.overlay(lowers, upper, "").map_err(failed("overlay"))
        })
        .await?
        .map_err(|e| e.context(doing))
    }

    /// Who a container of this image runs as. The image's passwd and group files are read once for each question.
    pub async fn user_of(self: &Arc<Self>, image: &Arc<Image>, spec: &ContainerSpec) -> Result<ResolvedUser, Error> {
        let security = &spec.security;
        let question = (
            image.id.clone(),
            format!(
                "{:?} {:?} {:?} {:?}",
                security.run_as, security.run_as_group, security.supplemental_groups, security.groups_policy
            ),
        );
        if let Some(known) = self.users.lock().unwrap_or_else(PoisonError::into_inner).get(&question) {
            return Ok(known.clone());
        }
        let rootfs = self.rootfs(image, None, None).await?;
        let (image_user, security) = (image.config.user.clone(), security.clone());
        let resolved = super::blocking(move || {
            let read = |path: &str| -> Result<Vec<u8>, Error> {
                let bytes = read_beneath(rootfs.as_fd(), path, USER_FILE_BYTES_MAX);
                Ok(bytes.map_err(failed(format_args!("read the image's /{path}")))?.unwrap_or_default())
            };
            let (passwd, group) = (read("etc/passwd")?, read("etc/group")?);
            users::resolve(
                &security.run_as,
                security.run_as_group,
                &security.supplemental_groups,
                security.groups_policy,
                &image_user,
                &passwd,
                &group,
            )
        });
        let resolved = resolved.await?.map_err(|e: Error| e.context(format_args!("user of image {}", image.id)))?;
        let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        if users.len() >= USERS_MAX {
            users.clear();
        }
        users.insert(question, resolved.clone());
        Ok(resolved)
    }
}

/// EINVAL is how the kernel says that a file system has no id-mapped mounts.
fn cannot_map(doing: &str, errno: rustix::io::Errno) -> Error {
    match errno {
        rustix::io::Errno::INVAL => Error::new(
            ErrorKind::FailedPrecondition,
            format!("{doing}: its file system has no id-mapped mounts, which pods with a user namespace need"),
        ),
        errno => failed(doing)(errno.into()),
    }
}
