//! `knarr import`: images from an archive.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use clap::Args;
use knarr_cri_api::knarr::{ImportChunk, ImportOptions};
use tokio::fs::File;
use tokio::io::AsyncReadExt;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::failure::Failure;
use crate::output::print;
use crate::output::progress::Reporter;
use crate::session::Session;

/// Options of `import`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  knarr import app.tar                          an OCI layout or what `docker save` wrote, also as .gz or .zst
  docker save app:1 | knarr import -
  knarr import --name localhost/app:1 rootless.tar   a name for an image that has none")]
pub struct ImportArgs {
    /// The archive, `-` for standard input
    file: PathBuf,
    /// The name of an image that the archive gives none
    #[arg(long)]
    name: Option<String>,
    /// Shows no progress
    #[arg(short, long)]
    quiet: bool,
}

/// How much of the archive one message holds.
const CHUNK_BYTES: usize = 1 << 20;

/// Chunks that may wait for the runtime; reading ahead further only takes memory.
const CHUNKS_AHEAD: usize = 4;

/// Sends the archive and prints what became of it.
pub async fn run(args: ImportArgs, session: &Session) -> Result<(), Failure> {
    let client = session.connect().await?;
    let shown = args.file.display().to_string();
    let source = open(&args.file).await?;
    let (chunks, receiver) = mpsc::channel(CHUNKS_AHEAD);
    let options = ImportOptions { name: args.name.unwrap_or_default() };
    let reading = tokio::spawn(send(source, options, chunks));
    let mut reporter = Reporter::new(&shown, args.quiet);
    let refused = |status: tonic::Status| not_offered(Failure::rpc(format!("import {shown}"), &status), "import");
    let outcome = async {
        let mut messages = client.extra().import(ReceiverStream::new(receiver)).await.map_err(refused)?.into_inner();
        let mut refs = Vec::new();
        while let Some(progress) = messages.message().await.map_err(refused)? {
            reporter.update(&progress);
            if !progress.image_refs.is_empty() {
                refs = progress.image_refs;
            }
        }
        Ok::<_, Failure>(refs)
    }
    .await;
    reporter.finish();
    // A file that cannot be read ends the stream early, and the runtime can only complain of half an archive: the cause
    // goes first.
    if let Ok(Err(error)) = reading.await {
        return Err(Failure::io(format!("read {shown}"), &error));
    }
    print(&outcome?.iter().map(|name| format!("{name}\n")).collect::<String>())
}

async fn open(path: &Path) -> Result<File, Failure> {
    if path == Path::new("-") {
        let copy = std::io::stdin().as_fd().try_clone_to_owned();
        return Ok(File::from_std(copy.map_err(|error| Failure::io("read standard input", &error))?.into()));
    }
    File::open(path).await.map_err(|error| Failure::io(format!("open {}", path.display()), &error))
}

async fn send(mut source: File, options: ImportOptions, chunks: mpsc::Sender<ImportChunk>) -> std::io::Result<()> {
    let mut options = Some(options);
    loop {
        let mut data = vec![0; CHUNK_BYTES];
        let mut filled = 0;
        while filled < data.len() {
            match source.read(&mut data[filled..]).await? {
                0 => break,
                count => filled += count,
            }
        }
        let first = options.is_some();
        if filled == 0 && !first {
            return Ok(());
        }
        data.truncate(filled);
        let chunk = ImportChunk { options: options.take(), data };
        // The runtime has ended the call; its answer says why.
        if chunks.send(chunk).await.is_err() || filled == 0 {
            return Ok(());
        }
    }
}

/// What to say where the runtime has no calls for archives.
pub fn not_offered(failure: Failure, command: &str) -> Failure {
    if failure.is_unimplemented() {
        return Failure::new(format!("this endpoint cannot {command} images"))
            .with_hint("archives are an extension of knarr's, and this endpoint is another runtime");
    }
    failure
}
