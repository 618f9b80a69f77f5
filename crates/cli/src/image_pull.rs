//! Pulls an image with progress where the runtime can tell it, and plainly where it cannot.

use knarr_cri_api::{knarr, v1};
use tonic::Code;

use crate::client::Client;
use crate::credentials::Credentials;
use crate::failure::Failure;
use crate::output::progress::Reporter;

/// What to pull and how.
#[derive(Debug, Clone, Default)]
pub struct PullOrder {
    /// A name with or without tag or digest.
    pub image: String,
    /// Who asks; `None` for anybody.
    pub credentials: Option<Credentials>,
    /// os/arch[/variant]; empty for this machine's.
    pub platform: String,
    /// Shows nothing.
    pub quiet: bool,
}

/// Pulls and returns the image's id.
pub async fn pull(client: &Client, order: &PullOrder) -> Result<String, Failure> {
    let mut reporter = Reporter::new(&order.image, order.quiet);
    let outcome = match pull_with_progress(client, order, &mut reporter).await {
        Err(failure) if failure.is_unimplemented() => pull_plainly(client, order).await,
        outcome => outcome,
    };
    reporter.finish();
    outcome
}

async fn pull_with_progress(client: &Client, order: &PullOrder, reporter: &mut Reporter) -> Result<String, Failure> {
    let action = format!("pull {}", order.image);
    let credentials = order.credentials.clone().unwrap_or_default();
    let request = knarr::PullRequest {
        image: order.image.clone(),
        username: credentials.username,
        password: credentials.password,
        identity_token: credentials.identity_token,
        registry_token: credentials.registry_token,
        platform: order.platform.clone(),
    };
    let refused = |status: tonic::Status| Failure::rpc(&action, &status);
    let mut messages = client.extra().pull(request).await.map_err(refused)?.into_inner();
    let mut image_ref = String::new();
    while let Some(progress) = messages.message().await.map_err(refused)? {
        reporter.update(&progress);
        if !progress.image_ref.is_empty() {
            image_ref = progress.image_ref;
        }
    }
    if image_ref.is_empty() {
        return Err(refused(tonic::Status::new(Code::Internal, "the runtime ended the pull without an image")));
    }
    Ok(image_ref)
}

async fn pull_plainly(client: &Client, order: &PullOrder) -> Result<String, Failure> {
    if !order.platform.is_empty() {
        return Err(Failure::new(format!("cannot pull {} for {}", order.image, order.platform))
            .with_hint("choosing a platform is an extension of knarr's, and this endpoint is another runtime"));
    }
    let auth = order.credentials.clone().map(|credentials| v1::AuthConfig {
        username: credentials.username,
        password: credentials.password,
        identity_token: credentials.identity_token,
        registry_token: credentials.registry_token,
        ..v1::AuthConfig::default()
    });
    let image = v1::ImageSpec { image: order.image.clone(), ..v1::ImageSpec::default() };
    let request = v1::PullImageRequest { image: Some(image), auth, sandbox_config: None };
    client.pull_image(format!("pull {}", order.image), request).await
}
