//! `knarr export`: images into an archive.

use std::io::IsTerminal;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use knarr_cri_api::knarr::ExportRequest;
use tokio::fs::File;
use tokio::io::AsyncWriteExt;

use super::import::not_offered;
use crate::failure::Failure;
use crate::output::{human, say};
use crate::session::Session;

/// Options of `export`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  knarr export -o app.tar localhost/app:1
  knarr export -o all.tar app:1 db:2          several images in one archive
  knarr export app:1 | ssh node2 knarr import -")]
pub struct ExportArgs {
    /// Names, digests or ids
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
    /// The archive to write; without it, standard output, which must not be a terminal
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// The archive's format
    #[arg(long, value_enum, default_value = "oci")]
    format: ArchiveFormat,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ArchiveFormat {
    /// An OCI image layout, which docker and podman load too
    Oci,
    /// What `docker save` writes
    Docker,
}

/// Receives the archive. A file that was begun and not finished is taken away again.
pub async fn run(args: ExportArgs, session: &Session) -> Result<(), Failure> {
    if args.output.is_none() && std::io::stdout().is_terminal() {
        return Err(Failure::usage("an archive is not for a terminal").with_hint("give a file with -o, or a pipe"));
    }
    let client = session.connect().await?;
    let format = match args.format {
        ArchiveFormat::Oci => "oci",
        ArchiveFormat::Docker => "docker",
    };
    let names = args.images.join(", ");
    let refused = |status: tonic::Status| not_offered(Failure::rpc(format!("export {names}"), &status), "export");
    let request = ExportRequest { images: args.images.clone(), format: format.to_owned() };
    let mut chunks = client.extra().export(request).await.map_err(refused)?.into_inner();
    // The file is made only when the runtime has begun to answer: a misspelt name leaves none behind.
    let mut next = chunks.message().await.map_err(refused)?;
    let mut target = open(args.output.as_deref()).await?;
    let outcome = async {
        let mut bytes = 0_u64;
        while let Some(chunk) = next {
            bytes += chunk.data.len() as u64;
            target.write_all(&chunk.data).await.map_err(|error| write_failure(args.output.as_deref(), &error))?;
            next = chunks.message().await.map_err(refused)?;
        }
        target.flush().await.map_err(|error| write_failure(args.output.as_deref(), &error))?;
        Ok(bytes)
    }
    .await;
    match (outcome, &args.output) {
        (Ok(bytes), Some(path)) => {
            say(&format!("{}: {}", path.display(), human::size(bytes)));
            Ok(())
        }
        (Ok(_), None) => Ok(()),
        (Err(failure), path) => {
            if let Some(path) = path {
                let _ = std::fs::remove_file(path);
            }
            Err(failure)
        }
    }
}

async fn open(path: Option<&Path>) -> Result<File, Failure> {
    match path {
        None => {
            let copy = std::io::stdout().as_fd().try_clone_to_owned();
            Ok(File::from_std(copy.map_err(|error| Failure::output(&error))?.into()))
        }
        Some(path) => {
            let file = File::create_new(path).await;
            file.map_err(|error| Failure::io(format!("create {}", path.display()), &error))
        }
    }
}

fn write_failure(path: Option<&Path>, error: &std::io::Error) -> Failure {
    match path {
        Some(path) => Failure::io(format!("write {}", path.display()), error),
        None => Failure::output(error),
    }
}
