//! Volumes of a container that are images.
//!
//! An image is found and leased when the container is created, and a folder of it looked for, so that kubelet hears
//! then what is wrong. It is mounted when the container starts, as a detached read-only mount that goes to the shim as a
//! descriptor: nothing is mounted on the host, and nothing is left to be unmounted.

use super::{PodEffects, World, blocking, failed};
use knarr_image::store::{Image, Lease};
use knarr_model::input::Resolved;
use knarr_model::spec::{ContainerSpec, MountSource};
use knarr_model::{Error, ErrorKind};
use knarr_sys::mount::{self, Attributes};
use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

/// The beginning of a message by which kubelet counts these failures.
const KUBELET_PREFIX: &str = "ImageVolumeMountFailed";

/// One volume that is an image.
struct Volume<'a> {
    /// its place in the request
    number: usize,
    image: &'a str,
    sub_path: &'a str,
}

fn volumes(spec: &ContainerSpec) -> impl Iterator<Item = Volume<'_>> {
    let numbered = spec.mounts.iter().enumerate();
    numbered.filter_map(|(number, mount)| match &mount.source {
        MountSource::Image { image, sub_path } => Some(Volume { number, image, sub_path }),
        MountSource::Host(_) => None,
    })
}

impl Volume<'_> {
    fn failed(&self, error: &Error) -> Error {
        let message = format!("{KUBELET_PREFIX}: config.mounts[{}].image: {}", self.number, error.message);
        Error::new(ErrorKind::KubeletPrefix, message)
    }
}

impl PodEffects {
    /// The ids of the images, in the order of the volumes, with leases of them.
    pub(super) async fn find_image_volumes(&self, spec: &ContainerSpec) -> Result<(Vec<String>, Vec<Lease>), Error> {
        let (mut ids, mut leases) = (Vec::new(), Vec::new());
        for volume in volumes(spec) {
            let found = self.world.image(volume.image).and_then(|image| {
                let lease = self.world.images.store().hold(&image.id);
                lease.map(|lease| (image.clone(), lease)).ok_or_else(|| Error::not_found("image", &image.id))
            });
            let (image, lease) = found.map_err(|error| volume.failed(&error))?;
            if !volume.sub_path.is_empty() {
                self.world.image_volume(&image, volume.sub_path, None).await.map_err(|error| volume.failed(&error))?;
            }
            ids.push(image.id.clone());
            leases.push(lease);
        }
        Ok((ids, leases))
    }

    /// The volumes as detached mounts, in their order. In a pod with a user namespace `users` their files are the pod's.
    pub(super) async fn mount_image_volumes(
        &self,
        spec: &ContainerSpec,
        resolved: &Resolved,
        users: Option<Arc<OwnedFd>>,
    ) -> Result<Vec<OwnedFd>, Error> {
        let mut mounts = Vec::new();
        for (volume, id) in volumes(spec).zip(&resolved.volume_images) {
            let mounted = match self.world.held_image(id) {
                Ok(image) => self.world.image_volume(&image, volume.sub_path, users.clone()).await,
                Err(error) => Err(error),
            };
            mounts.push(mounted.map_err(|error| volume.failed(&error))?);
        }
        Ok(mounts)
    }
}

impl World {
    /// An image, or one folder of it, as a detached read-only mount.
    async fn image_volume(
        self: &Arc<Self>,
        image: &Arc<Image>,
        sub_path: &str,
        users: Option<Arc<OwnedFd>>,
    ) -> Result<OwnedFd, Error> {
        let (world, image, sub_path) = (self.clone(), image.clone(), sub_path.to_owned());
        let doing = format!("mount image {}", image.id);
        let mounted = blocking(move || {
            let clone = |path: PathBuf| {
                let cloned = File::open(&path).and_then(|layer| Ok(mount::clone_of(layer, false)?));
                let tree = cloned.map_err(failed(format_args!("open {}", path.display())))?;
                if let Some(users) = &users {
                    let id_map = Attributes { id_map: Some(users.as_fd()), ..Attributes::default() };
                    let mapped = mount::set_attributes(&tree, false, id_map);
                    mapped
                        .map_err(|errno| failed(format_args!("map the owners of {}", path.display()))(errno.into()))?;
                }
                Ok::<_, Error>(tree)
            };
            let layers = world.images.store().layer_paths(&image);
            let mut lowers = layers.into_iter().map(clone).collect::<Result<Vec<_>, _>>()?;
            if let [_] = lowers.as_slice() {
                // An overlay hides the marks by which a layer deletes what is below it; one layer alone makes none.
                let options = [(c"mode", c"0755"), (c"size", c"4k")];
                let empty = mount::new_filesystem(c"tmpfs", options, Attributes::default());
                lowers.push(empty.map_err(|errno| failed("make an empty layer")(errno.into()))?);
            }
            let whole = world.overlay.overlay(lowers, None, "").map_err(failed("overlay"))?;
            if sub_path.is_empty() { Ok(whole) } else { folder(whole, &sub_path) }
        });
        mounted.await?.map_err(|error: Error| error.context(doing))
    }
}

fn folder(whole: OwnedFd, sub_path: &str) -> Result<OwnedFd, Error> {
    let path = CString::new(sub_path).map_err(|_| Error::invalid("image_sub_path", "holds a NUL byte"))?;
    mount::folder_of(whole, path).map_err(|error| {
        let why = match error.kind() {
            io::ErrorKind::NotFound => "there is no such folder in it".to_owned(),
            io::ErrorKind::NotADirectory => "is no folder".to_owned(),
            io::ErrorKind::CrossesDevices => "leads out of the image".to_owned(),
            _ => error.to_string(),
        };
        Error::internal(format!("image_sub_path {sub_path:?}: {why}"))
    })
}
