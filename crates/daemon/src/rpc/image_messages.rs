//! Images, credentials, failures and progress between the image room's words and the protocols'.

use super::convert::{self, ImageFacts};
use knarr_cri_api::knarr as own;
use knarr_cri_api::v1;
use knarr_image::archive::ExportFormat;
use knarr_image::credentials::Credentials;
use knarr_image::platform::Platform;
use knarr_image::pull::{Progress, PullError};
use knarr_image::store::{Image, Store};
use knarr_model::{Error, ErrorKind};
use serde_json::json;
use std::collections::HashMap;
use std::time::{SystemTime, UNIX_EPOCH};

/// Kubelet shows this as the pod's waiting reason when it is how the message begins.
const REGISTRY_UNAVAILABLE: &str = "RegistryUnavailable";

/// What CRI's AuthConfig shows the registry.
pub fn credentials(auth: Option<&v1::AuthConfig>) -> Result<Credentials, Error> {
    let Some(auth) = auth else { return Ok(Credentials::anonymous()) };
    let credentials = Credentials {
        username: auth.username.clone(),
        password: auth.password.clone(),
        identity_token: auth.identity_token.clone(),
        registry_token: auth.registry_token.clone(),
        server_address: auth.server_address.clone(),
    };
    if auth.auth.is_empty() || !credentials.is_anonymous() {
        return Ok(credentials);
    }
    credentials.with_auth(&auth.auth).map_err(|e| Error::invalid("auth.auth", e))
}

/// What `knarr pull` shows the registry.
pub fn own_credentials(request: &own::PullRequest) -> Credentials {
    Credentials {
        username: request.username.clone(),
        password: request.password.clone(),
        identity_token: request.identity_token.clone(),
        registry_token: request.registry_token.clone(),
        server_address: String::new(),
    }
}

/// os/arch[/variant]; empty is the host's.
pub fn platform(text: &str) -> Result<Option<Platform>, Error> {
    if text.is_empty() {
        return Ok(None);
    }
    let mut parts = text.split('/').map(str::to_owned);
    match (parts.next(), parts.next(), parts.next(), parts.next()) {
        (Some(os), Some(architecture), variant, None) if !os.is_empty() && !architecture.is_empty() => {
            Ok(Some(Platform { os, architecture, variant }))
        }
        _ => Err(Error::invalid("platform", format!("{text:?} is not os/arch or os/arch/variant"))),
    }
}

/// "oci", "docker", or nothing for the former.
pub fn archive_format(text: &str) -> Result<ExportFormat, Error> {
    match text {
        "" | "oci" => Ok(ExportFormat::Oci),
        "docker" => Ok(ExportFormat::Docker),
        other => Err(Error::invalid("format", format!("{other:?} is neither \"oci\" nor \"docker\""))),
    }
}

/// A failed pull. An unreachable registry is told in the way that kubelet reads.
pub fn pull_error(error: PullError) -> Error {
    let message = error.to_string();
    match error.kind() {
        ErrorKind::Unavailable => Error::new(ErrorKind::KubeletPrefix, format!("{REGISTRY_UNAVAILABLE}: {message}")),
        kind => Error::new(kind, message),
    }
}

/// An image in ListImages and ImageStatus.
pub fn image(image: &Image) -> v1::Image {
    convert::image(ImageFacts {
        id: image.id.clone(),
        names: image.names.clone(),
        digests: image.digests.clone(),
        size: image.size,
        user: image.config.user.clone(),
        pinned: image.pinned,
    })
}

/// ImageStatusResponse.info, under the key that crictl's users know.
pub fn image_info(image: &Image) -> HashMap<String, String> {
    let spec: serde_json::Value = serde_json::from_slice(&image.config_bytes).unwrap_or_default();
    let info = json!({
        "imageSpec": spec,
        "unpackedBytes": image.unpacked_bytes,
        "layers": image.layers.iter().map(|l| l.as_str()).collect::<Vec<_>>(),
    });
    HashMap::from([("info".to_owned(), info.to_string())])
}

/// ImageFsInfo: layers and writable layers lie on one file system.
pub fn image_fs_info(store: &Store) -> v1::ImageFsInfoResponse {
    let usage = store.usage();
    let timestamp = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as i64);
    let filesystem = v1::FilesystemUsage {
        timestamp,
        fs_id: Some(v1::FilesystemIdentifier { mountpoint: store.path().display().to_string() }),
        used_bytes: Some(v1::UInt64Value { value: usage.bytes }),
        inodes_used: Some(v1::UInt64Value { value: usage.inodes }),
    };
    v1::ImageFsInfoResponse { image_filesystems: vec![filesystem.clone()], container_filesystems: vec![filesystem] }
}

/// How far a pull or an import is.
pub fn progress(progress: &Progress) -> own::Progress {
    let blobs = progress.blobs.iter().map(|blob| own::BlobProgress {
        digest: blob.digest.to_string(),
        done_bytes: blob.done_bytes,
        total_bytes: blob.total_bytes,
        state: blob.state.as_str().to_owned(),
    });
    own::Progress { step: progress.step.to_string(), blobs: blobs.collect(), ..Default::default() }
}
