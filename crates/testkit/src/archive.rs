//! Images as one file: the OCI image layout in a plain tar, as `skopeo copy … oci-archive:` writes it.

use crate::image::{Image, OCI_INDEX, tar_of};
use serde_json::json;

/// An archive of these images under their names. Blobs that two images share are in it once.
pub fn oci_archive(images: &[(&str, &Image)]) -> Vec<u8> {
    let mut files: Vec<(String, Vec<u8>)> = Vec::new();
    let mut put = |path: &str, bytes: &[u8]| files.push((path.to_owned(), bytes.to_vec()));
    put("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#);
    let mut entries = Vec::new();
    let mut written = std::collections::BTreeSet::new();
    for (name, image) in images {
        let layers = image.layers.iter().map(|layer| (layer.digest(), layer.blob.as_slice()));
        let own = [(image.id(), image.config.as_slice()), (image.digest(), image.manifest.as_slice())];
        for (digest, bytes) in layers.chain(own) {
            if written.insert(digest.clone()) {
                put(&format!("blobs/{}", digest.replace(':', "/")), bytes);
            }
        }
        entries.push(json!({
            "mediaType": image.media_type,
            "digest": image.digest(),
            "size": image.manifest.len(),
            // The first is what containerd and podman read, the second is OCI's own.
            "annotations": {
                "io.containerd.image.name": name,
                "org.opencontainers.image.ref.name": name,
            },
        }));
    }
    let index = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries }).to_string();
    put("index.json", index.as_bytes());
    let files: Vec<(&str, &[u8])> = files.iter().map(|(path, bytes)| (path.as_str(), bytes.as_slice())).collect();
    tar_of(&files)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{Layer, sha256, tar_of};
    use std::io::Read as _;

    #[test]
    fn every_blob_is_in_it_once_under_its_digest() {
        let layer = Layer::gzip(tar_of(&[("a", b"1")]));
        let image = Image::new(vec![layer]);
        let archive = oci_archive(&[("one:1", &image), ("two:2", &image)]);
        let mut names = Vec::new();
        for entry in tar::Archive::new(archive.as_slice()).entries().unwrap() {
            let mut entry = entry.unwrap();
            let name = entry.path().unwrap().display().to_string();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).unwrap();
            if let Some(digits) = name.strip_prefix("blobs/sha256/") {
                assert_eq!(sha256(&bytes), format!("sha256:{digits}"));
            }
            names.push(name);
        }
        assert_eq!(names.len(), 5, "{names:?}");
    }
}
