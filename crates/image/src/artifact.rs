//! Artifacts: manifests whose layers are no layers of a file system but files as they are, each with a name.
//!
//! A model, a data set or a policy is stored like an image, so that all that images have (verification, sharing, leases,
//! mounting) holds for it too: each file becomes a layer of its own, made from a tar archive that is put around the
//! file's bytes as they arrive. The id is the digest of the manifest, since the configuration is often the same empty
//! one. An artifact can be a volume of a container, and nothing else.

use std::io::{self, Cursor, Read};

use tar::{Builder, EntryType, Header};

use crate::layer::clean;
use crate::manifest::{BadManifest, Descriptor, ImageConfig};
use crate::reference::Digest;

/// What names a layer's file, best first: OCI's own annotation, then those of the model formats.
const NAME_ANNOTATIONS: [&str; 3] =
    ["org.opencontainers.image.title", "org.cncf.model.filepath", "org.cnai.model.filepath"];

/// Bytes of a tar block: contents are padded to a multiple.
const BLOCK_BYTES: u64 = 512;
/// Two empty blocks end an archive.
const END_BYTES: u64 = 2 * BLOCK_BYTES;

/// Permission bits: everybody may read what a registry gave to anybody.
const FILE_MODE: u32 = 0o644;
const DIRECTORY_MODE: u32 = 0o755;

/// The layers that name a file, with the names. A name is a relative path without `..`, and no two are the same; one
/// that a layer's archive would take for a deletion is refused.
pub(crate) fn named_files(layers: Vec<Descriptor>) -> Result<(Vec<Descriptor>, Vec<String>), BadManifest> {
    let (mut files, mut names) = (Vec::new(), Vec::new());
    for layer in layers {
        let name = NAME_ANNOTATIONS.iter().find_map(|key| layer.annotations.get(*key)).filter(|name| !name.is_empty());
        let Some(name) = name else { continue };
        let bad = |why: &str| BadManifest::new(format!("artifact with a file of the name {name:?}: {why}"));
        let special = |part: &str| part == ".." || part.starts_with(".wh.");
        if name.starts_with('/') || name.ends_with('/') || name.split('/').any(special) {
            return Err(bad("is no relative path of a file"));
        }
        if name.chars().any(char::is_control) {
            return Err(bad("holds a control character"));
        }
        let path = clean(name.as_bytes()).map_err(|why| bad(&why.to_string()))?;
        let path = String::from_utf8(path).map_err(|_| bad("is cut within a character"))?;
        if path.is_empty() || names.contains(&path) {
            return Err(bad("is empty or there twice"));
        }
        files.push(layer);
        names.push(path);
    }
    Ok((files, names))
}

/// What stands for the configuration of an artifact.
pub(crate) fn config(diff_ids: Vec<Digest>) -> ImageConfig {
    ImageConfig { artifact: true, diff_ids, ..ImageConfig::default() }
}

/// Tells the layers of two files apart before their archives are known: by name and content.
pub(crate) fn fingerprint(name: &str, digest: &Digest) -> Digest {
    Digest::sha256_of(format!("file {digest} {name}").as_bytes())
}

/// A tar archive with one file and the directories above it. `content` must have exactly `size` bytes; fewer make an
/// archive that is cut off, more are not read.
pub(crate) fn archive(name: &str, size: u64, content: impl Read) -> io::Result<impl Read> {
    let padding = size.next_multiple_of(BLOCK_BYTES) - size;
    let head = Cursor::new(head(name, size)?);
    Ok(head.chain(content.take(size)).chain(io::repeat(0).take(padding + END_BYTES)))
}

/// Everything before the content. The builder pads what it is given, which is nothing, and so adds nothing.
fn head(name: &str, size: u64) -> io::Result<Vec<u8>> {
    let mut builder = Builder::new(Vec::new());
    let header = |kind, mode, size| {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(size);
        header
    };
    for (slash, _) in name.match_indices('/') {
        let mut directory = header(EntryType::Directory, DIRECTORY_MODE, 0);
        builder.append_data(&mut directory, &name[..slash], io::empty())?;
    }
    builder.append_data(&mut header(EntryType::Regular, FILE_MODE, size), name, io::empty())?;
    Ok(builder.get_ref().clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn layer(annotations: &[(&str, &str)]) -> Descriptor {
        let annotations = annotations.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Descriptor {
            media_type: "application/octet-stream".into(),
            digest: Digest::sha256_of(b"x"),
            size: 1,
            urls: Vec::new(),
            annotations,
            platform: None,
        }
    }

    fn names_of(titles: &[&str]) -> Result<Vec<String>, BadManifest> {
        named_files(titles.iter().map(|title| layer(&[(NAME_ANNOTATIONS[0], title)])).collect()).map(|(_, names)| names)
    }

    #[test]
    fn files_are_named_by_annotations_and_others_are_left_out() {
        let layers = vec![
            layer(&[("org.cnai.model.filepath", "old"), (NAME_ANNOTATIONS[0], "a/./b//c")]),
            layer(&[("comment", "no name")]),
            layer(&[("org.cncf.model.filepath", "weights.bin")]),
        ];
        let (files, names) = named_files(layers).unwrap();
        assert_eq!(names, ["a/b/c", "weights.bin"]);
        assert_eq!(files.len(), 2);
        for bad in ["/etc/passwd", "../x", "a/../../b", "a/", ".wh.x", "a/.wh..wh..opq", "a\nb", ".", &"n".repeat(256)]
        {
            names_of(&[bad]).expect_err(bad);
        }
        names_of(&["same", "./same"]).expect_err("twice");
    }

    #[test]
    fn a_large_file_has_its_size_in_the_header() {
        let size = 9 << 30;
        let mut archive = archive("large", size, io::repeat(0)).unwrap();
        let mut head = [0; 512];
        archive.read_exact(&mut head).unwrap();
        assert_eq!(Header::from_byte_slice(&head).entry_size().unwrap(), size);
    }

    proptest! {
        #[test]
        fn an_archive_gives_the_file_back(
            name in "[a-zA-Z0-9_. äß-]{1,80}(/[a-zA-Z0-9_-]{1,80}){0,3}",
            content in prop::collection::vec(any::<u8>(), 0..2000),
        ) {
            let Ok(names) = names_of(&[&name]) else { return Ok(()) };
            let mut bytes = Vec::new();
            archive(&names[0], content.len() as u64, content.as_slice()).unwrap().read_to_end(&mut bytes).unwrap();
            prop_assert_eq!(bytes.len() % 512, 0);
            let mut entries = tar::Archive::new(bytes.as_slice());
            let mut last = (String::new(), Vec::new());
            let mut count = 0;
            for entry in entries.entries().unwrap() {
                let mut entry = entry.unwrap();
                last.0 = entry.path().unwrap().to_str().unwrap().to_owned();
                last.1.clear();
                entry.read_to_end(&mut last.1).unwrap();
                count += 1;
            }
            prop_assert_eq!(count, names[0].split('/').count());
            prop_assert_eq!(last, (names[0].clone(), content));
        }
    }
}
