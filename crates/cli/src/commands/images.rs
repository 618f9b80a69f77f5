//! `knarr images`: images.

use clap::Args;
use knarr_cri_api::v1;
use serde_json::json;

use crate::failure::Failure;
use crate::filter;
use crate::output::table::{Cell, Table};
use crate::output::{Format, human, json, print, print_document};
use crate::session::Session;

/// Options of `images`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  knarr images                        all images
  knarr images busybox --digests      those with busybox in their names
  knarr images -q | xargs knarr rmi   remove all images")]
pub struct ImagesArgs {
    /// Only images whose names contain this, or match it where it holds `*`
    pattern: Option<String>,
    /// Shows digests
    #[arg(long)]
    digests: bool,
    /// Only images that are kept from garbage collection
    #[arg(long)]
    pinned: bool,
    /// Ids only
    #[arg(short, long)]
    quiet: bool,
    /// Ids in full
    #[arg(long)]
    no_trunc: bool,
    /// How to print
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
}

/// Prints the images.
pub async fn run(args: ImagesArgs, session: &Session) -> Result<(), Failure> {
    let client = session.connect().await?;
    let mut images = client.list_images("list images", v1::ListImagesRequest::default()).await?.images;
    images.retain(|image| {
        let mut names = image.repo_tags.iter().chain(&image.repo_digests);
        let named = args.pattern.is_none() || names.any(|name| filter::name_matches(args.pattern.as_deref(), name));
        named && (image.pinned || !args.pinned)
    });
    images.sort_by(|a, b| (a.repo_tags.first(), &a.id).cmp(&(b.repo_tags.first(), &b.id)));
    let id = |id: &str| if args.no_trunc { id.to_owned() } else { human::short_id(id).to_owned() };
    if args.quiet {
        return print(&images.iter().map(|image| format!("{}\n", id(&image.id))).collect::<String>());
    }
    if let Some(format) = args.output.document() {
        let all: Vec<_> = images.iter().map(json::image).collect();
        return print_document(&json!({ "images": all }), format);
    }
    let wide = args.output == Format::Wide;
    let digests = args.digests || wide;
    let mut head = vec!["IMAGE", "TAG"];
    if digests {
        head.push("DIGEST");
    }
    head.extend(["IMAGE ID", "SIZE"]);
    if wide {
        head.extend(["USER", "PINNED"]);
    }
    let mut table = Table::new(&head);
    for image in &images {
        for (name, tag, digest) in names(image) {
            let mut row: Vec<Cell> = vec![name.into(), tag.into()];
            if digests {
                row.push(if args.no_trunc { digest.into() } else { human::short_id(&digest).into() });
            }
            row.extend([id(&image.id).into(), human::size(image.size).into()]);
            if wide {
                row.extend([user(image).into(), if image.pinned { "yes" } else { "" }.into()]);
            }
            table.push(row);
        }
    }
    print(&table.render(session.stdout_style()))
}

/// (name, tag, digest) of each name of the image; an image without a tag is shown by its digests, one without any name
/// as `<none>`.
fn names(image: &v1::Image) -> Vec<(String, String, String)> {
    let digest_of = |name: &str| {
        let of_name = image.repo_digests.iter().map(|digest| human::split_reference(digest));
        of_name
            .filter(|(repository, _)| *repository == name)
            .map(|(_, digest)| digest.to_owned())
            .next()
            .unwrap_or_default()
    };
    let tagged: Vec<_> = image
        .repo_tags
        .iter()
        .map(|reference| {
            let (name, tag) = human::split_reference(reference);
            (name.to_owned(), tag.to_owned(), digest_of(name))
        })
        .collect();
    if !tagged.is_empty() {
        return tagged;
    }
    let by_digest: Vec<_> = image
        .repo_digests
        .iter()
        .map(|reference| {
            let (name, digest) = human::split_reference(reference);
            (name.to_owned(), "<none>".to_owned(), digest.to_owned())
        })
        .collect();
    if by_digest.is_empty() { vec![("<none>".to_owned(), "<none>".to_owned(), String::new())] } else { by_digest }
}

fn user(image: &v1::Image) -> String {
    match &image.uid {
        Some(uid) => uid.value.to_string(),
        None => image.username.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_shown_by_every_name_that_it_has() {
        let image = v1::Image {
            repo_tags: vec!["a/b:1".into(), "a/b:2".into()],
            repo_digests: vec!["a/b@sha256:12".into()],
            ..v1::Image::default()
        };
        let row = |a: &str, b: &str, c: &str| (a.to_owned(), b.to_owned(), c.to_owned());
        assert_eq!(names(&image), [row("a/b", "1", "sha256:12"), row("a/b", "2", "sha256:12")]);
        let untagged = v1::Image { repo_tags: Vec::new(), ..image };
        assert_eq!(names(&untagged), [row("a/b", "<none>", "sha256:12")]);
        assert_eq!(names(&v1::Image::default()), [row("<none>", "<none>", "")]);
    }
}
