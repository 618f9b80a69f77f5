//! Talks to a runtime over its Unix socket: public CRI, and knarr's own calls where the runtime has them.
//!
//! Each method is one call with a deadline and with an error that says what was tried. What the answers mean is for
//! the commands.

use std::collections::HashMap;
use std::fmt::Display;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use knarr_cri_api::knarr::images_client::ImagesClient;
use knarr_cri_api::v1;
use knarr_cri_api::v1::image_service_client::ImageServiceClient;
use knarr_cri_api::v1::runtime_service_client::RuntimeServiceClient;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};

use crate::failure::Failure;

/// A list of a full node passes kubelet's 16 MiB in a single message; servers send up to 80 MiB.
const MAX_MESSAGE_BYTES: usize = 80 << 20;

/// How long a call may take that has no deadline of its own: kubelet's runtimeRequestTimeout.
const CALL_DEADLINE: Duration = Duration::from_secs(120);

/// RunPodSandbox waits for CNI plugins; kubelet gives it twice the usual time.
const RUN_POD_DEADLINE: Duration = Duration::from_secs(240);

/// A socket that accepts and never answers is a runtime that hangs; connecting itself takes microseconds.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);

/// A connection to one runtime.
#[derive(Clone)]
pub struct Client {
    runtime: RuntimeServiceClient<Channel>,
    images: ImageServiceClient<Channel>,
    extra: ImagesClient<Channel>,
    deadline: Option<Duration>,
}

impl Client {
    /// Connects to the socket. `deadline`, if given, replaces every call's usual one.
    ///
    /// # Errors
    /// Says which socket, why not, and how a daemon is started.
    pub async fn connect(socket: &Path, deadline: Option<Duration>) -> Result<Self, Failure> {
        let first = UnixStream::connect(socket).await.map_err(|error| unreachable_socket(socket, &error))?;
        let first = Arc::new(Mutex::new(Some(first)));
        let path: PathBuf = socket.to_owned();
        // The address is what becomes :authority, which servers of CRI expect to be "localhost".
        let endpoint = Endpoint::from_static("http://localhost").connect_timeout(CONNECT_DEADLINE);
        let connector = tower::service_fn(move |_| {
            let (first, path) = (first.clone(), path.clone());
            async move {
                let ready = first.lock().unwrap_or_else(PoisonError::into_inner).take();
                let stream = match ready {
                    Some(stream) => stream,
                    None => UnixStream::connect(path).await?,
                };
                Ok::<_, io::Error>(TokioIo::new(stream))
            }
        });
        let channel = endpoint
            .connect_with_connector(connector)
            .await
            .map_err(|error| Failure::new(format!("cannot speak gRPC on {}: {error}", socket.display())))?;
        Ok(Self {
            runtime: RuntimeServiceClient::new(channel.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES),
            images: ImageServiceClient::new(channel.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES),
            extra: ImagesClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES),
            deadline,
        })
    }

    /// knarr's own image calls, for the commands that stream.
    pub fn extra(&self) -> ImagesClient<Channel> {
        self.extra.clone()
    }

    fn request<T>(&self, message: T, usual: Duration) -> tonic::Request<T> {
        let mut request = tonic::Request::new(message);
        request.set_timeout(self.deadline.unwrap_or(usual));
        request
    }
}

fn unreachable_socket(socket: &Path, error: &io::Error) -> Failure {
    let failure = Failure::new(format!("cannot connect to the runtime at {}: {error}", socket.display()));
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => failure.with_hint(
            "no runtime listens there: start one with `systemctl start knarr` or `knarr serve`, or name another socket \
             with --runtime-endpoint or --root",
        ),
        io::ErrorKind::PermissionDenied => failure.with_hint("the socket belongs to root: try again as root"),
        _ => failure,
    }
}

/// Writes a method for each unary call: its name, its action for error messages, and the names of request and response.
macro_rules! calls {
    ($service:ident: $( $(#[$doc:meta])* $name:ident($request:ident) -> $response:ident within $deadline:expr; )+) => {
        impl Client {
            $(
                $(#[$doc])*
                pub async fn $name(&self, action: impl Display, message: v1::$request) -> Result<v1::$response, Failure> {
                    let request = self.request(message, $deadline);
                    let answer = self.$service.clone().$name(request).await;
                    answer.map(tonic::Response::into_inner).map_err(|status| Failure::rpc(action, &status))
                }
            )+
        }
    };
}

calls! {
    runtime:
    /// Who the runtime is.
    version(VersionRequest) -> VersionResponse within CALL_DEADLINE;
    /// Makes a pod sandbox.
    run_pod_sandbox(RunPodSandboxRequest) -> RunPodSandboxResponse within RUN_POD_DEADLINE;
    /// Ends a pod sandbox and its containers.
    stop_pod_sandbox(StopPodSandboxRequest) -> StopPodSandboxResponse within CALL_DEADLINE;
    /// Removes a pod sandbox and its containers.
    remove_pod_sandbox(RemovePodSandboxRequest) -> RemovePodSandboxResponse within CALL_DEADLINE;
    /// All of one pod sandbox.
    pod_sandbox_status(PodSandboxStatusRequest) -> PodSandboxStatusResponse within CALL_DEADLINE;
    /// The pod sandboxes that pass a filter.
    list_pod_sandbox(ListPodSandboxRequest) -> ListPodSandboxResponse within CALL_DEADLINE;
    /// Makes a container.
    create_container(CreateContainerRequest) -> CreateContainerResponse within CALL_DEADLINE;
    /// Starts a container that was made.
    start_container(StartContainerRequest) -> StartContainerResponse within CALL_DEADLINE;
    /// Removes a container.
    remove_container(RemoveContainerRequest) -> RemoveContainerResponse within CALL_DEADLINE;
    /// The containers that pass a filter.
    list_containers(ListContainersRequest) -> ListContainersResponse within CALL_DEADLINE;
    /// All of one container.
    container_status(ContainerStatusRequest) -> ContainerStatusResponse within CALL_DEADLINE;
    /// Where to connect to for a command in a container; it runs once somebody does.
    exec(ExecRequest) -> ExecResponse within CALL_DEADLINE;
    /// Where to connect to for a container's own input and output.
    attach(AttachRequest) -> AttachResponse within CALL_DEADLINE;
    /// Where to connect to for the ports of a pod.
    port_forward(PortForwardRequest) -> PortForwardResponse within CALL_DEADLINE;
    /// The runtime's own state.
    status(StatusRequest) -> StatusResponse within CALL_DEADLINE;
    /// What kubelet must agree on with the runtime.
    runtime_config(RuntimeConfigRequest) -> RuntimeConfigResponse within CALL_DEADLINE;
}

calls! {
    images:
    /// The images that pass a filter.
    list_images(ListImagesRequest) -> ListImagesResponse within CALL_DEADLINE;
    /// All of one image; no image is an answer, not an error.
    image_status(ImageStatusRequest) -> ImageStatusResponse within CALL_DEADLINE;
    /// Removes an image.
    remove_image(RemoveImageRequest) -> RemoveImageResponse within CALL_DEADLINE;
    /// What images take on disk.
    image_fs_info(ImageFsInfoRequest) -> ImageFsInfoResponse within CALL_DEADLINE;
}

impl Client {
    /// Stops one container; the call itself waits for the grace period.
    pub async fn stop_container(&self, action: impl Display, id: &str, grace_s: i64) -> Result<(), Failure> {
        let message = v1::StopContainerRequest { container_id: id.to_owned(), timeout: grace_s };
        let grace = Duration::from_secs(u64::try_from(grace_s).unwrap_or(0));
        let request = self.request(message, grace.saturating_add(CALL_DEADLINE));
        let answer = self.runtime.clone().stop_container(request).await;
        answer.map(|_| ()).map_err(|status| Failure::rpc(action, &status))
    }

    /// Runs one command in a container and waits for its end. `timeout_s` 0 is no limit.
    pub async fn exec_sync(
        &self,
        action: impl Display,
        id: &str,
        command: &[String],
        timeout_s: i64,
    ) -> Result<v1::ExecSyncResponse, Failure> {
        let message = v1::ExecSyncRequest { container_id: id.to_owned(), cmd: command.to_vec(), timeout: timeout_s };
        let mut request = tonic::Request::new(message);
        if timeout_s > 0 {
            let limit = Duration::from_secs(u64::try_from(timeout_s).unwrap_or(0));
            request.set_timeout(limit.saturating_add(self.deadline.unwrap_or(CALL_DEADLINE)));
        }
        let answer = self.runtime.clone().exec_sync(request).await;
        answer.map(tonic::Response::into_inner).map_err(|status| Failure::rpc(action, &status))
    }

    /// Pulls an image; as long as it takes unless the command line set a deadline.
    pub async fn pull_image(&self, action: impl Display, message: v1::PullImageRequest) -> Result<String, Failure> {
        let mut request = tonic::Request::new(message);
        if let Some(deadline) = self.deadline {
            request.set_timeout(deadline);
        }
        let answer = self.images.clone().pull_image(request).await;
        answer.map(|response| response.into_inner().image_ref).map_err(|status| Failure::rpc(action, &status))
    }

    /// All pod sandboxes.
    pub async fn pods(&self) -> Result<Vec<v1::PodSandbox>, Failure> {
        let message = v1::ListPodSandboxRequest { filter: None };
        Ok(self.list_pod_sandbox("list pods", message).await?.items)
    }

    /// All containers, or those of one pod.
    pub async fn containers(&self, pod_id: Option<&str>) -> Result<Vec<v1::Container>, Failure> {
        let filter = pod_id
            .map(|pod_id| v1::ContainerFilter { pod_sandbox_id: pod_id.to_owned(), ..v1::ContainerFilter::default() });
        Ok(self.list_containers("list containers", v1::ListContainersRequest { filter }).await?.containers)
    }

    /// One container's status; `None` where it has gone.
    pub async fn container(&self, id: &str) -> Result<Option<v1::ContainerStatus>, Failure> {
        let message = v1::ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
        match self.container_status(format!("read the status of container {id}"), message).await {
            Ok(response) => Ok(response.status),
            Err(failure) if failure.is_not_found() => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    /// One pod sandbox's status; `None` where it has gone.
    pub async fn pod(&self, id: &str) -> Result<Option<v1::PodSandboxStatus>, Failure> {
        let message = v1::PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: false };
        match self.pod_sandbox_status(format!("read the status of pod {id}"), message).await {
            Ok(response) => Ok(response.status),
            Err(failure) if failure.is_not_found() => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    /// One image by name, digest or id, with what the runtime tells beyond it.
    pub async fn image(&self, name: &str) -> Result<Option<(v1::Image, HashMap<String, String>)>, Failure> {
        let image = v1::ImageSpec { image: name.to_owned(), ..v1::ImageSpec::default() };
        let message = v1::ImageStatusRequest { image: Some(image), verbose: true };
        let response = self.image_status(format!("look up image {name}"), message).await?;
        let info = response.info;
        Ok(response.image.map(|image| (image, info)))
    }
}
