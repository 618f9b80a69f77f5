//! `knarr create`: makes the pods of a manifest without starting their containers.

use clap::Args;

use super::run::{ManifestArgs, make_room, read_manifest, remove_all};
use crate::failure::Failure;
use crate::output::print;
use crate::pod_run::{PodRun, fetch_images};
use crate::session::Session;

/// Options of `create`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  knarr create web.yaml && knarr inspect web && knarr start web")]
pub struct CreateArgs {
    #[command(flatten)]
    manifest: ManifestArgs,
}

/// Makes sandboxes and containers and prints the pods' ids. After a failure nothing is left.
pub async fn run(args: CreateArgs, session: &Session) -> Result<(), Failure> {
    let manifest = read_manifest(&args.manifest)?;
    let client = session.connect().await?;
    make_room(&client, session, &manifest, args.manifest.replace).await?;
    let images = fetch_images(&client, &manifest, args.manifest.quiet).await?;
    let mut uids = Vec::new();
    let mut ids = String::new();
    for pod in &manifest.pods {
        let mut pod = PodRun::new(&client, &session.cli_dir(), &manifest, &images, pod)?;
        uids.push(pod.uid.clone());
        let outcome = match pod.make_sandbox().await {
            Ok(()) => pod.create_all().await,
            Err(failure) => Err(failure),
        };
        if let Err(failure) = outcome {
            let mut failures = vec![failure];
            failures.extend(remove_all(&client, session, &uids).await);
            return Failure::all(failures);
        }
        ids.push_str(&format!("{}\n", pod.sandbox_id));
    }
    print(&ids)
}
