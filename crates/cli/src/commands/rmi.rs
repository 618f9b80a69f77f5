//! `knarr rmi`: removes images.

use std::collections::HashSet;

use clap::Args;
use knarr_cri_api::v1;

use crate::client::Client;
use crate::failure::Failure;
use crate::lookup;
use crate::output::print;
use crate::session::Session;

/// Options of `rmi`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  knarr rmi localhost/app:1
  knarr rmi 3f2a9c                    by the beginning of its id
  knarr rmi --prune                   all images that no container uses and that are not pinned")]
pub struct RmiArgs {
    /// Names, digests or ids
    #[arg(value_name = "IMAGE", required_unless_present_any = ["all", "prune"])]
    images: Vec<String>,
    /// Every image
    #[arg(short, long, conflicts_with_all = ["images", "prune"])]
    all: bool,
    /// Every image that no container uses and that is not pinned
    #[arg(long, conflicts_with = "images")]
    prune: bool,
}

/// Removes what was asked for, and goes on after a failure.
pub async fn run(args: RmiArgs, session: &Session) -> Result<(), Failure> {
    let client = session.connect().await?;
    let mut failures = Vec::new();
    let mut removed = Vec::new();
    if args.all || args.prune {
        let used = if args.prune { used_images(&client).await? } else { HashSet::new() };
        let all = client.list_images("list images", v1::ListImagesRequest::default()).await?.images;
        removed.extend(all.into_iter().filter(|image| args.all || !(image.pinned || is_used(image, &used))));
    }
    for typed in &args.images {
        match lookup::image(&client, typed).await {
            Ok((image, _)) => removed.push(image),
            Err(failure) => failures.push(failure),
        }
    }
    for image in removed {
        let name = image.repo_tags.first().unwrap_or(&image.id).clone();
        let spec = v1::ImageSpec { image: image.id.clone(), ..v1::ImageSpec::default() };
        let message = v1::RemoveImageRequest { image: Some(spec) };
        match client.remove_image(format!("remove image {name}"), message).await {
            Ok(_) => print(&format!("{name}\n"))?,
            Err(failure) => failures.push(failure),
        }
    }
    Failure::all(failures)
}

/// Containers name their images by id, by reference or by both, depending on the runtime.
async fn used_images(client: &Client) -> Result<HashSet<String>, Failure> {
    let containers = client.containers(None).await?;
    let names = containers.into_iter().flat_map(|container| {
        let spec = container.image.unwrap_or_default();
        [container.image_id, container.image_ref, spec.image, spec.user_specified_image]
    });
    Ok(names.filter(|name| !name.is_empty()).collect())
}

fn is_used(image: &v1::Image, used: &HashSet<String>) -> bool {
    let digits = image.id.strip_prefix("sha256:").unwrap_or(&image.id);
    let mut names = image.repo_tags.iter().chain(&image.repo_digests);
    used.contains(&image.id) || used.contains(digits) || names.any(|name| used.contains(name))
}
