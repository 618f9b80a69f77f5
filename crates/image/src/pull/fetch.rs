//! One layer, from the registry's stream into a stage.
//!
//! The async side carries bytes from the network into a bounded channel; a thread takes them out, hashes, decompresses
//! and writes. A full channel holds the network back, so a slow disk costs no memory. When the async side is dropped
//! the channel closes without its end mark, the thread fails, and the stage goes to the trash.

use std::io::{self, Read};
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use super::PullError;
use super::progress::{BlobCounter, BlobState};
use crate::artifact;
use crate::credentials::Credentials;
use crate::layer::LayerError;
use crate::manifest::Descriptor;
use crate::reference::{Digest, DigestVerifier, Reference};
use crate::registry::{BlobStream, Registry};
use crate::store::{Inner, StagedLayer};

/// Pieces of a blob that wait for the thread; each is what one read of the network gave, at most some 64 KiB.
const PIECES_WAITING_MAX: usize = 16;
/// A blob whose bytes are not the ones named is asked for once more, because another mirror may have the right ones.
const ATTEMPTS: usize = 2;

/// What to fetch and from where.
#[derive(Clone)]
pub(crate) struct Wanted {
    pub reference: Reference,
    pub credentials: Credentials,
    pub descriptor: Descriptor,
    /// What the image's configuration says that the layer's archive hashes to. Of a file of an artifact it is not known
    /// before; then this only tells it from others.
    pub diff_id: Digest,
    /// The blob is no archive but a file of this name.
    pub file: Option<String>,
}

/// Fetches and writes one layer; both of its hashes are right when it comes back.
pub(crate) async fn fetch(
    registry: &Registry,
    store: &Arc<Inner>,
    wanted: &Wanted,
    counter: &BlobCounter,
) -> Result<Arc<StagedLayer>, PullError> {
    let mut first_failure: Option<PullError> = None;
    for _ in 0..ATTEMPTS {
        counter.restart();
        counter.set(BlobState::Downloading);
        match attempt(registry, store, wanted, counter).await {
            Ok(staged) => {
                counter.set(BlobState::Done);
                return Ok(Arc::new(staged));
            }
            // What the first attempt has seen says more than that nobody else has the blob.
            Err(failure) if !failure.may_be_wrong_bytes() => return Err(first_failure.unwrap_or(failure)),
            Err(failure) => first_failure = first_failure.or(Some(failure)),
        }
    }
    Err(first_failure.unwrap_or(PullError::Lost))
}

async fn attempt(
    registry: &Registry,
    store: &Arc<Inner>,
    wanted: &Wanted,
    counter: &BlobCounter,
) -> Result<StagedLayer, PullError> {
    let Wanted { reference, credentials, descriptor, .. } = wanted;
    let mut stream = registry.blob(reference, credentials, descriptor, 0).await?;
    let (pieces, arriving) = mpsc::channel(PIECES_WAITING_MAX);
    let file = wanted.file.clone().map(|name| (name, descriptor.size));
    let written = start_writing(store, &descriptor.digest, arriving, file)?;
    let carried = carry(&mut stream, &pieces, counter).await;
    drop(pieces);
    // The thread is waited for in any case: when this returns, nothing of the attempt is left.
    let written = written.await.map_err(|_| PullError::Lost)?;
    let outcome = match (carried, written) {
        (Err(failure), _) => Err(failure),
        (Ok(()), Err(error)) => Err(PullError::layer(&descriptor.digest, error)),
        (Ok(()), Ok((staged, other_digest))) => check(wanted, &staged, other_digest).map(|()| staged),
    };
    if outcome.as_ref().is_err_and(PullError::may_be_wrong_bytes) {
        stream.reject();
    }
    outcome
}

/// Ends without an error when the thread does not take any more: the thread knows why.
async fn carry(stream: &mut BlobStream, pieces: &mpsc::Sender<Piece>, counter: &BlobCounter) -> Result<(), PullError> {
    while let Some(bytes) = stream.next().await? {
        counter.add(bytes.len() as u64);
        if pieces.send(Piece::Data(bytes)).await.is_err() {
            return Ok(());
        }
    }
    let _ = pieces.send(Piece::End).await;
    Ok(())
}

fn check(wanted: &Wanted, staged: &StagedLayer, other: Option<Result<(), Digest>>) -> Result<(), PullError> {
    let expected = &wanted.descriptor.digest;
    let actual = match other {
        Some(Ok(())) => expected,
        Some(Err(actual)) => return Err(PullError::wrong_digest(expected, &actual)),
        None => &staged.applied.digest,
    };
    if actual != expected {
        return Err(PullError::wrong_digest(expected, actual));
    }
    if wanted.file.is_none() && staged.applied.diff_id != wanted.diff_id {
        return Err(PullError::WrongDiffId {
            digest: expected.clone(),
            expected: wanted.diff_id.clone(),
            actual: staged.applied.diff_id.clone(),
        });
    }
    Ok(())
}

/// What goes through the channel; one that closes without `End` was given up.
enum Piece {
    Data(Bytes),
    End,
}

type Written = Result<(StagedLayer, Option<Result<(), Digest>>), LayerError>;

/// Starts the thread that writes the layer, which is a file with a name and a size where there is one. The second half
/// of its answer is the check of a digest that is not that of the layer's stream.
fn start_writing(
    store: &Arc<Inner>,
    digest: &Digest,
    arriving: mpsc::Receiver<Piece>,
    file: Option<(String, u64)>,
) -> Result<oneshot::Receiver<Written>, PullError> {
    let (answer, written) = oneshot::channel();
    let verifier = (digest.algorithm() != "sha256" || file.is_some()).then(|| digest.verifier());
    let mut pieces = Pieces { arriving, current: Bytes::new(), ended: false, verifier };
    let store = store.clone();
    let thread = std::thread::Builder::new().name("layer-read".to_owned()).spawn(move || {
        let limits = store.layer_limits.clone();
        let staged = match file {
            None => StagedLayer::write(&store, &mut pieces, &limits),
            Some((name, size)) => artifact::archive(&name, size, &mut pieces)
                .map_err(LayerError::Input)
                .and_then(|archive| StagedLayer::write(&store, archive, &limits)),
        };
        let checked = pieces.verifier.take().map(DigestVerifier::finish);
        // Nobody waits any more when the pull was given up; then the layer goes to the trash right here.
        let _ = answer.send(staged.map(|staged| (staged, checked)));
    });
    thread.map_err(|e| PullError::layer(digest, LayerError::Thread(e)))?;
    Ok(written)
}

/// The thread's end of the channel.
struct Pieces {
    arriving: mpsc::Receiver<Piece>,
    current: Bytes,
    ended: bool,
    verifier: Option<DigestVerifier>,
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() && !self.ended {
            match self.arriving.blocking_recv() {
                Some(Piece::Data(bytes)) => self.current = bytes,
                Some(Piece::End) => self.ended = true,
                None => return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the pull was given up")),
            }
        }
        let piece = self.current.split_to(self.current.len().min(buffer.len()));
        buffer[..piece.len()].copy_from_slice(&piece);
        if let Some(verifier) = &mut self.verifier {
            verifier.update(&piece);
        }
        Ok(piece.len())
    }
}
