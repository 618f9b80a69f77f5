//! The ImageService, and knarr's own image calls: archives, and pulls that say how far they are.

use super::image_messages as messages;
use super::runtime::answer;
use crate::node::Node;
use knarr_cri_api::knarr as own;
use knarr_cri_api::v1::{self, image_service_server::ImageService};
use knarr_image::Images;
use knarr_image::archive::ImportOptions;
use knarr_image::pull::{Progress, ProgressSender};
use knarr_model::Error;
use std::pin::Pin;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_stream::wrappers::{ReceiverStream, WatchStream};
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};

type Answer<T> = Result<Response<T>, Status>;
type Streamed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Messages of a stream that may wait for its client.
const STREAM_MESSAGES: usize = 16;

/// The images of a node, as CRI and as knarr.v1 serve them.
#[derive(Debug, Clone)]
pub struct ImageServer {
    images: Images,
}

impl ImageServer {
    /// Serves the images of `node`.
    pub fn new(node: &Node) -> Self {
        Self { images: node.world().images.clone() }
    }

    async fn pull(&self, request: v1::PullImageRequest) -> Result<v1::PullImageResponse, Error> {
        let name = request.image.map(|i| i.image).unwrap_or_default();
        if name.is_empty() {
            return Err(Error::invalid("image.image", "is empty"));
        }
        let credentials = messages::credentials(request.auth.as_ref())?;
        // Dropped with the RPC when the client goes away: the pull then ends unless another asks for the same.
        let image = self.images.pull(&name, credentials, None, None).await.map_err(messages::pull_error)?;
        Ok(v1::PullImageResponse { image_ref: image.id.clone() })
    }

    fn find(&self, spec: Option<v1::ImageSpec>, verbose: bool) -> Result<v1::ImageStatusResponse, Error> {
        let name = spec.map(|s| s.image).unwrap_or_default();
        if name.is_empty() {
            return Err(Error::invalid("image.image", "is empty"));
        }
        // What is not there is no error here: kubelet reads the empty answer.
        let Some(image) = self.images.store().find(&name) else { return Ok(v1::ImageStatusResponse::default()) };
        let info = if verbose { messages::image_info(&image) } else { Default::default() };
        Ok(v1::ImageStatusResponse { image: Some(messages::image(&image)), info })
    }

    async fn remove(&self, spec: Option<v1::ImageSpec>) -> Result<v1::RemoveImageResponse, Error> {
        let name = spec.map(|s| s.image).unwrap_or_default();
        if name.is_empty() {
            return Err(Error::invalid("image.image", "is empty"));
        }
        self.images.remove(&name).await.map_err(|e| Error::internal(format!("remove image {name:?}: {e}")))?;
        Ok(v1::RemoveImageResponse {})
    }
}

#[tonic::async_trait]
impl ImageService for ImageServer {
    async fn list_images(&self, request: Request<v1::ListImagesRequest>) -> Answer<v1::ListImagesResponse> {
        let filter = request.into_inner().filter.and_then(|f| f.image).map(|i| i.image).filter(|i| !i.is_empty());
        let found = match filter {
            Some(name) => self.images.store().find(&name).into_iter().collect(),
            None => self.images.store().list(),
        };
        Ok(Response::new(v1::ListImagesResponse { images: found.iter().map(|i| messages::image(i)).collect() }))
    }

    type StreamImagesStream = Streamed<v1::StreamImagesResponse>;

    async fn stream_images(&self, _: Request<v1::StreamImagesRequest>) -> Answer<Self::StreamImagesStream> {
        super::runtime::later("StreamImages")
    }

    async fn image_status(&self, request: Request<v1::ImageStatusRequest>) -> Answer<v1::ImageStatusResponse> {
        let v1::ImageStatusRequest { image, verbose } = request.into_inner();
        let about = image.as_ref().map(|i| i.image.clone()).unwrap_or_default();
        answer("ImageStatus", &about, self.find(image, verbose))
    }

    async fn pull_image(&self, request: Request<v1::PullImageRequest>) -> Answer<v1::PullImageResponse> {
        let request = request.into_inner();
        let about = request.image.as_ref().map(|i| i.image.clone()).unwrap_or_default();
        answer("PullImage", &about, self.pull(request).await)
    }

    async fn remove_image(&self, request: Request<v1::RemoveImageRequest>) -> Answer<v1::RemoveImageResponse> {
        let image = request.into_inner().image;
        let about = image.as_ref().map(|i| i.image.clone()).unwrap_or_default();
        answer("RemoveImage", &about, self.remove(image).await)
    }

    async fn image_fs_info(&self, _: Request<v1::ImageFsInfoRequest>) -> Answer<v1::ImageFsInfoResponse> {
        Ok(Response::new(messages::image_fs_info(self.images.store())))
    }
}

/// Runs `work` beside a stream of its progress; what it gives is the stream's last message. Dropping the stream, as
/// when its client goes away, drops the work.
fn with_progress<F>(work: impl FnOnce(ProgressSender) -> F) -> Streamed<own::Progress>
where
    F: Future<Output = Result<own::Progress, Error>> + Send + 'static,
{
    let (sender, watched) = watch::channel(Progress::default());
    let (last, ended) = oneshot::channel();
    let work = work(sender);
    let task = tokio::spawn(async move {
        let _ = last.send(work.await);
    });
    let working = AbortOnDrop(task);
    let (end, ending) = mpsc::channel(1);
    tokio::spawn(async move {
        let result = ended.await.unwrap_or_else(|_| Err(Error::internal("the work was given up")));
        let _ = end.send(result.map_err(super::status::status)).await;
    });
    let progress = WatchStream::new(watched).map(|p| Ok(messages::progress(&p)));
    Box::pin(progress.chain(ReceiverStream::new(ending)).map(move |item| {
        let _ = &working;
        item
    }))
}

struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[tonic::async_trait]
impl own::images_server::Images for ImageServer {
    type PullStream = Streamed<own::Progress>;

    async fn pull(&self, request: Request<own::PullRequest>) -> Answer<Self::PullStream> {
        let request = request.into_inner();
        if request.image.is_empty() {
            return answer("Pull", "", Err(Error::invalid("image", "is empty")));
        }
        let platform = match messages::platform(&request.platform) {
            Ok(platform) => platform,
            Err(error) => return answer("Pull", &request.image, Err(error)),
        };
        let credentials = messages::own_credentials(&request);
        let images = self.images.clone();
        let stream = with_progress(move |progress| async move {
            let pulled = images.pull(&request.image, credentials, platform, Some(&progress)).await;
            let image = pulled.map_err(messages::pull_error)?;
            Ok(own::Progress { step: "done".into(), image_ref: image.id.clone(), ..Default::default() })
        });
        Ok(Response::new(stream))
    }

    type ImportStream = Streamed<own::Progress>;

    async fn import(&self, request: Request<Streaming<own::ImportChunk>>) -> Answer<Self::ImportStream> {
        let mut chunks = request.into_inner();
        let first = chunks.message().await?.unwrap_or_default();
        let name = first.options.map(|o| o.name).filter(|n| !n.is_empty());
        let options = ImportOptions { name, platform: None };
        let images = self.images.clone();
        let stream = with_progress(move |progress| async move {
            let (bytes, reader) = mpsc::channel::<Vec<u8>>(STREAM_MESSAGES);
            let importing = tokio::task::spawn_blocking(move || {
                images.import(ChannelReader::new(reader), &options, Some(&progress))
            });
            let _ = bytes.send(first.data).await;
            let mut broken = None;
            loop {
                match chunks.message().await {
                    Ok(Some(chunk)) => {
                        if bytes.send(chunk.data).await.is_err() {
                            break;
                        }
                    }
                    Ok(None) => break,
                    Err(status) => {
                        broken = Some(Error::internal(format!("the archive broke off: {}", status.message())));
                        break;
                    }
                }
            }
            drop(bytes);
            let done = importing.await.map_err(|e| Error::internal(format!("import: {e}")))?;
            if let Some(broken) = broken {
                return Err(broken);
            }
            let image_refs = done.map_err(|e| Error::new(e.kind(), format!("import: {e}")))?;
            Ok(own::Progress { step: "done".into(), image_refs, ..Default::default() })
        });
        Ok(Response::new(stream))
    }

    type ExportStream = Streamed<own::ExportChunk>;

    async fn export(&self, request: Request<own::ExportRequest>) -> Answer<Self::ExportStream> {
        let own::ExportRequest { images: names, format } = request.into_inner();
        if names.is_empty() {
            return answer("Export", "", Err(Error::invalid("images", "is empty")));
        }
        let format = match messages::archive_format(&format) {
            Ok(format) => format,
            Err(error) => return answer("Export", "", Err(error)),
        };
        let images = self.images.clone();
        let (sender, receiver) = mpsc::channel(STREAM_MESSAGES);
        tokio::task::spawn_blocking(move || {
            let mut writer = ChannelWriter { sender: sender.clone() };
            if let Err(error) = images.export(&names, format, &mut writer, None) {
                let error = Error::new(error.kind(), format!("export: {error}"));
                let _ = sender.blocking_send(Err(super::status::status(error)));
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

/// Reads what arrives on a channel; its end is the end of the archive.
struct ChannelReader {
    receiver: mpsc::Receiver<Vec<u8>>,
    chunk: Vec<u8>,
    taken: usize,
}

impl ChannelReader {
    fn new(receiver: mpsc::Receiver<Vec<u8>>) -> Self {
        Self { receiver, chunk: Vec::new(), taken: 0 }
    }
}

impl std::io::Read for ChannelReader {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        while self.taken == self.chunk.len() {
            match self.receiver.blocking_recv() {
                Some(chunk) => (self.chunk, self.taken) = (chunk, 0),
                None => return Ok(0),
            }
        }
        let count = buffer.len().min(self.chunk.len() - self.taken);
        buffer[..count].copy_from_slice(&self.chunk[self.taken..self.taken + count]);
        self.taken += count;
        Ok(count)
    }
}

/// One message of an export, in bytes: well below what gRPC clients take.
const EXPORT_CHUNK: usize = 256 << 10;

struct ChannelWriter {
    sender: mpsc::Sender<Result<own::ExportChunk, Status>>,
}

impl std::io::Write for ChannelWriter {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let count = bytes.len().min(EXPORT_CHUNK);
        let chunk = own::ExportChunk { data: bytes[..count].to_vec() };
        self.sender.blocking_send(Ok(chunk)).map_err(|_| std::io::ErrorKind::BrokenPipe)?;
        Ok(count)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
