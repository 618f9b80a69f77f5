//! A runtime that keeps its pods in a table: enough of CRI for every command, none of a kernel.
//!
//! Its containers do what their command says: `say TEXT` writes a line to the log and ends, `end CODE` ends with a code,
//! `stay` runs until it is stopped, `break` cannot be started.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use crate::streams_fake::{self as streams, attach, exec, port_forward};
use knarr_cri_api::knarr::images_server::{Images, ImagesServer};
use knarr_cri_api::knarr::{BlobProgress, ExportChunk, ExportRequest, ImportChunk, Progress, PullRequest};
use knarr_cri_api::v1::image_service_server::{ImageService, ImageServiceServer};
use knarr_cri_api::v1::runtime_service_server::{RuntimeService, RuntimeServiceServer};
use knarr_cri_api::v1::*;
use tonic::codegen::{BoxFuture, Service, http};
use tonic::{Request, Response, Status};

/// Everything the runtime knows, open to the tests.
#[derive(Default)]
pub struct Tables {
    /// By id.
    pub pods: BTreeMap<String, PodSandboxStatus>,
    /// What the pods were made with.
    pub pod_configs: HashMap<String, PodSandboxConfig>,
    /// By id; with the pod's id.
    pub containers: BTreeMap<String, (String, ContainerStatus)>,
    /// What the containers were made with.
    pub container_configs: HashMap<String, ContainerConfig>,
    /// In the order of the list.
    pub images: Vec<Image>,
    /// What was called, with the thing it was called on.
    pub calls: Vec<String>,
    /// This call fails with this status.
    pub failing: HashMap<&'static str, Status>,
    /// How an attach with stdin is refused.
    pub refuses_stdin: Option<Status>,
    /// What was imported.
    pub imported: Vec<u8>,
    /// Serve streams, once the runtime is up: over TCP, and over TLS.
    pub streaming: Option<[Arc<knarr_streaming::server::Server>; 2]>,
    /// Which of them is used.
    pub over_tls: bool,
    /// These tables, for programs that outlive the call.
    pub shared: Option<Arc<Mutex<Tables>>>,
    /// What listens on the ports of every pod.
    pub pod_ports: HashMap<u16, SocketAddr>,
    clock: i64,
}

/// An id of 64 digits with a given beginning, which may hold an algorithm.
pub fn id(beginning: &str) -> String {
    match beginning.split_once(':') {
        Some((algorithm, digits)) => format!("{algorithm}:{digits:0<64}"),
        None => format!("{beginning:0<64}"),
    }
}

impl Tables {
    fn tick(&mut self) -> i64 {
        self.clock += 1;
        1_700_000_000_000_000_000 + self.clock
    }

    /// Notes a call, and fails it if it is to fail.
    pub fn called(&mut self, call: &'static str, on: &str) -> Result<(), Status> {
        self.calls.push(format!("{call} {on}"));
        self.failing.get(call).map_or(Ok(()), |status| Err(status.clone()))
    }

    /// The pod of an id.
    pub fn pod(&self, id: &str) -> Result<PodSandboxStatus, Status> {
        self.pods.get(id).cloned().ok_or_else(|| Status::not_found(format!("pod {id} not found")))
    }

    /// The container of an id.
    pub fn container(&mut self, id: &str) -> Result<&mut ContainerStatus, Status> {
        let found = self.containers.get_mut(id);
        found.map(|(_, status)| status).ok_or_else(|| Status::not_found(format!("container {id} not found")))
    }

    /// Ends a container.
    pub fn end(&mut self, id: &str, code: i32) {
        let now = self.tick();
        if let Some((_, status)) = self.containers.get_mut(id)
            && status.state != ContainerState::ContainerExited as i32
        {
            status.state = ContainerState::ContainerExited as i32;
            status.exit_code = code;
            status.finished_at = now;
        }
    }

    fn image(&self, name: &str) -> Option<&Image> {
        self.images.iter().find(|image| image.id == name || image.repo_tags.iter().any(|tag| tag == name))
    }
}

/// The three services on one table.
#[derive(Clone, Default)]
pub struct Fake {
    /// What it knows.
    pub tables: Arc<Mutex<Tables>>,
    /// Whether it has knarr's own calls.
    pub has_extra: bool,
}

impl Fake {
    fn with<T>(&self, work: impl FnOnce(&mut Tables) -> Result<T, Status>) -> Result<Response<T>, Status> {
        work(&mut self.tables.lock().unwrap()).map(Response::new)
    }
}

type Answers<T> = Pin<Box<dyn tokio_stream::Stream<Item = Result<T, Status>> + Send>>;

fn answers<T: Send + 'static>(items: Vec<Result<T, Status>>) -> Response<Answers<T>> {
    Response::new(Box::pin(tokio_stream::iter(items)))
}

/// The trait has 35 calls and this fake a few; the rest is unimplemented, as a runtime may leave calls.
macro_rules! runtime_service {
    (
        answers { $( $name:ident($request:ident) -> $response:ident => $work:expr; )+ }
        leaves { $( $left:ident($left_request:ident) -> $left_response:ident; )+ }
        streams { $( $stream:ident($stream_request:ident) -> $stream_type:ident of $item:ident; )+ }
    ) => {
        #[tonic::async_trait]
        impl RuntimeService for Fake {
            $( async fn $name(&self, request: Request<$request>) -> Result<Response<$response>, Status> {
                let work: fn(&mut Tables, $request) -> Result<$response, Status> = $work;
                self.with(|tables| work(tables, request.into_inner()))
            } )+
            $( async fn $left(&self, _: Request<$left_request>) -> Result<Response<$left_response>, Status> {
                Err(Status::unimplemented(stringify!($left)))
            } )+
            $(
                type $stream_type = Answers<$item>;
                async fn $stream(&self, _: Request<$stream_request>) -> Result<Response<Self::$stream_type>, Status> {
                    Err(Status::unimplemented(stringify!($stream)))
                }
            )+
        }
    };
}

runtime_service! {
    answers {
        version(VersionRequest) -> VersionResponse => version;
        run_pod_sandbox(RunPodSandboxRequest) -> RunPodSandboxResponse => run_pod_sandbox;
        stop_pod_sandbox(StopPodSandboxRequest) -> StopPodSandboxResponse => stop_pod_sandbox;
        remove_pod_sandbox(RemovePodSandboxRequest) -> RemovePodSandboxResponse => remove_pod_sandbox;
        pod_sandbox_status(PodSandboxStatusRequest) -> PodSandboxStatusResponse => pod_sandbox_status;
        list_pod_sandbox(ListPodSandboxRequest) -> ListPodSandboxResponse => list_pod_sandbox;
        create_container(CreateContainerRequest) -> CreateContainerResponse => create_container;
        start_container(StartContainerRequest) -> StartContainerResponse => start_container;
        stop_container(StopContainerRequest) -> StopContainerResponse => stop_container;
        remove_container(RemoveContainerRequest) -> RemoveContainerResponse => remove_container;
        list_containers(ListContainersRequest) -> ListContainersResponse => list_containers;
        container_status(ContainerStatusRequest) -> ContainerStatusResponse => container_status;
        exec_sync(ExecSyncRequest) -> ExecSyncResponse => exec_sync;
        exec(ExecRequest) -> ExecResponse => exec;
        attach(AttachRequest) -> AttachResponse => attach;
        port_forward(PortForwardRequest) -> PortForwardResponse => port_forward;
        status(StatusRequest) -> StatusResponse => status;
        runtime_config(RuntimeConfigRequest) -> RuntimeConfigResponse => runtime_config;
    }
    leaves {
        update_container_resources(UpdateContainerResourcesRequest) -> UpdateContainerResourcesResponse;
        reopen_container_log(ReopenContainerLogRequest) -> ReopenContainerLogResponse;
        container_stats(ContainerStatsRequest) -> ContainerStatsResponse;
        list_container_stats(ListContainerStatsRequest) -> ListContainerStatsResponse;
        pod_sandbox_stats(PodSandboxStatsRequest) -> PodSandboxStatsResponse;
        list_pod_sandbox_stats(ListPodSandboxStatsRequest) -> ListPodSandboxStatsResponse;
        update_runtime_config(UpdateRuntimeConfigRequest) -> UpdateRuntimeConfigResponse;
        checkpoint_container(CheckpointContainerRequest) -> CheckpointContainerResponse;
        list_metric_descriptors(ListMetricDescriptorsRequest) -> ListMetricDescriptorsResponse;
        list_pod_sandbox_metrics(ListPodSandboxMetricsRequest) -> ListPodSandboxMetricsResponse;
        update_pod_sandbox_resources(UpdatePodSandboxResourcesRequest) -> UpdatePodSandboxResourcesResponse;
    }
    streams {
        stream_pod_sandboxes(StreamPodSandboxesRequest) -> StreamPodSandboxesStream of StreamPodSandboxesResponse;
        stream_containers(StreamContainersRequest) -> StreamContainersStream of StreamContainersResponse;
        stream_container_stats(StreamContainerStatsRequest) -> StreamContainerStatsStream of StreamContainerStatsResponse;
        stream_pod_sandbox_stats(StreamPodSandboxStatsRequest) -> StreamPodSandboxStatsStream of StreamPodSandboxStatsResponse;
        get_container_events(GetEventsRequest) -> GetContainerEventsStream of ContainerEventResponse;
        stream_pod_sandbox_metrics(StreamPodSandboxMetricsRequest) -> StreamPodSandboxMetricsStream of StreamPodSandboxMetricsResponse;
    }
}

fn version(_: &mut Tables, _: VersionRequest) -> Result<VersionResponse, Status> {
    Ok(VersionResponse {
        version: "0.1.0".into(),
        runtime_name: "fake".into(),
        runtime_version: "1.2.3".into(),
        runtime_api_version: "v1".into(),
    })
}

fn run_pod_sandbox(tables: &mut Tables, request: RunPodSandboxRequest) -> Result<RunPodSandboxResponse, Status> {
    let config = request.config.unwrap();
    let metadata = config.metadata.clone().unwrap();
    tables.called("run_pod_sandbox", &metadata.name)?;
    let id = id(&format!("{:08x}", 0xa000_0000_u32 + u32::try_from(tables.tick() & 0xffff).unwrap()));
    let status = PodSandboxStatus {
        id: id.clone(),
        metadata: Some(metadata),
        created_at: tables.tick(),
        network: Some(PodSandboxNetworkStatus { ip: "10.1.2.3".into(), additional_ips: Vec::new() }),
        labels: config.labels.clone(),
        annotations: config.annotations.clone(),
        ..PodSandboxStatus::default()
    };
    tables.pods.insert(id.clone(), status);
    tables.pod_configs.insert(id.clone(), config);
    Ok(RunPodSandboxResponse { pod_sandbox_id: id })
}

fn stop_pod_sandbox(tables: &mut Tables, request: StopPodSandboxRequest) -> Result<StopPodSandboxResponse, Status> {
    tables.called("stop_pod_sandbox", &request.pod_sandbox_id)?;
    let inside: Vec<String> = tables
        .containers
        .iter()
        .filter(|(_, (pod, status))| {
            *pod == request.pod_sandbox_id && status.state == ContainerState::ContainerRunning as i32
        })
        .map(|(id, _)| id.clone())
        .collect();
    for id in inside {
        tables.end(&id, 137);
    }
    if let Some(pod) = tables.pods.get_mut(&request.pod_sandbox_id) {
        pod.state = PodSandboxState::SandboxNotready as i32;
    }
    Ok(StopPodSandboxResponse {})
}

fn remove_pod_sandbox(
    tables: &mut Tables,
    request: RemovePodSandboxRequest,
) -> Result<RemovePodSandboxResponse, Status> {
    tables.called("remove_pod_sandbox", &request.pod_sandbox_id)?;
    tables.pods.remove(&request.pod_sandbox_id);
    tables.containers.retain(|_, (pod, _)| *pod != request.pod_sandbox_id);
    Ok(RemovePodSandboxResponse {})
}

fn pod_sandbox_status(
    tables: &mut Tables,
    request: PodSandboxStatusRequest,
) -> Result<PodSandboxStatusResponse, Status> {
    let status = tables.pod(&request.pod_sandbox_id)?;
    let info = if request.verbose { "{\"netns\":\"/run/netns/x\"}" } else { "{}" };
    Ok(PodSandboxStatusResponse {
        status: Some(status),
        info: HashMap::from([("info".into(), info.into())]),
        ..PodSandboxStatusResponse::default()
    })
}

fn list_pod_sandbox(tables: &mut Tables, request: ListPodSandboxRequest) -> Result<ListPodSandboxResponse, Status> {
    tables.called("list_pod_sandbox", "")?;
    let wanted = request.filter.unwrap_or_default().label_selector;
    let pods = tables.pods.values().filter(|pod| wanted.iter().all(|(key, value)| pod.labels.get(key) == Some(value)));
    let items = pods.map(|pod| PodSandbox {
        id: pod.id.clone(),
        metadata: pod.metadata.clone(),
        state: pod.state,
        created_at: pod.created_at,
        labels: pod.labels.clone(),
        annotations: pod.annotations.clone(),
        runtime_handler: String::new(),
    });
    Ok(ListPodSandboxResponse { items: items.collect() })
}

fn create_container(tables: &mut Tables, request: CreateContainerRequest) -> Result<CreateContainerResponse, Status> {
    let config = request.config.unwrap();
    let metadata = config.metadata.clone().unwrap();
    tables.called("create_container", &format!("{} {}", metadata.name, metadata.attempt))?;
    tables.pod(&request.pod_sandbox_id)?;
    let id = id(&format!("{:08x}", 0xc000_0000_u32 + u32::try_from(tables.tick() & 0xffff).unwrap()));
    let log_directory = &tables.pod_configs[&request.pod_sandbox_id].log_directory;
    let status = ContainerStatus {
        id: id.clone(),
        metadata: Some(metadata),
        log_path: format!("{log_directory}/{}", config.log_path),
        image: config.image.clone(),
        image_id: config.image.clone().unwrap_or_default().image,
        labels: config.labels.clone(),
        annotations: config.annotations.clone(),
        created_at: tables.tick(),
        ..ContainerStatus::default()
    };
    tables.containers.insert(id.clone(), (request.pod_sandbox_id, status));
    tables.container_configs.insert(id.clone(), config);
    Ok(CreateContainerResponse { container_id: id })
}

fn start_container(tables: &mut Tables, request: StartContainerRequest) -> Result<StartContainerResponse, Status> {
    let id = request.container_id;
    let now = tables.tick();
    let config = tables.container_configs.get(&id).cloned().unwrap_or_default();
    let status = tables.container(&id)?;
    let name = status.metadata.clone().unwrap_or_default().name;
    status.state = ContainerState::ContainerRunning as i32;
    status.started_at = now;
    let log_path = status.log_path.clone();
    tables.called("start_container", &name)?;
    let words: Vec<&str> = config.command.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["say", text] => {
            std::fs::write(log_path, format!("2024-01-01T00:00:00Z stdout F {text}\n")).unwrap();
            tables.end(&id, 0);
        }
        ["end", code] => tables.end(&id, code.parse().unwrap()),
        ["break"] => {
            tables.end(&id, 128);
            return Err(Status::unknown("exec: \"break\": no such file or directory"));
        }
        _ => {}
    }
    Ok(StartContainerResponse {})
}

fn stop_container(tables: &mut Tables, request: StopContainerRequest) -> Result<StopContainerResponse, Status> {
    let name = tables.container(&request.container_id)?.metadata.clone().unwrap_or_default().name;
    tables.called("stop_container", &format!("{name} {}", request.timeout))?;
    tables.end(&request.container_id, 143);
    Ok(StopContainerResponse {})
}

fn remove_container(tables: &mut Tables, request: RemoveContainerRequest) -> Result<RemoveContainerResponse, Status> {
    tables.called("remove_container", &request.container_id)?;
    tables.containers.remove(&request.container_id);
    Ok(RemoveContainerResponse {})
}

fn list_containers(tables: &mut Tables, request: ListContainersRequest) -> Result<ListContainersResponse, Status> {
    tables.called("list_containers", "")?;
    let wanted = request.filter.unwrap_or_default().pod_sandbox_id;
    let found = tables.containers.values().filter(|(pod, _)| wanted.is_empty() || *pod == wanted);
    let containers = found.map(|(pod, status)| Container {
        id: status.id.clone(),
        pod_sandbox_id: pod.clone(),
        metadata: status.metadata.clone(),
        image: status.image.clone(),
        image_ref: status.image_ref.clone(),
        state: status.state,
        created_at: status.created_at,
        labels: status.labels.clone(),
        annotations: status.annotations.clone(),
        image_id: status.image_id.clone(),
    });
    Ok(ListContainersResponse { containers: containers.collect() })
}

fn container_status(tables: &mut Tables, request: ContainerStatusRequest) -> Result<ContainerStatusResponse, Status> {
    let status = tables.container(&request.container_id)?.clone();
    let info = match tables.container_configs.get(&request.container_id) {
        Some(config) if request.verbose => {
            format!(r#"{{"pid":4711,"config":{{"tty":{},"stdin":{}}}}}"#, config.tty, config.stdin)
        }
        None if request.verbose => r#"{"pid":4711}"#.into(),
        _ => "{}".into(),
    };
    Ok(ContainerStatusResponse { status: Some(status), info: HashMap::from([("info".into(), info)]) })
}

/// Says what it was asked to run, and ends with the code that stands last in the command.
fn exec_sync(tables: &mut Tables, request: ExecSyncRequest) -> Result<ExecSyncResponse, Status> {
    let name = tables.container(&request.container_id)?.metadata.clone().unwrap_or_default().name;
    tables.called("exec_sync", &format!("{name} {}", request.timeout))?;
    let code = request.cmd.last().and_then(|word| word.parse().ok()).unwrap_or(0);
    Ok(ExecSyncResponse {
        stdout: format!("out {}\n", request.cmd.join(" ")).into_bytes(),
        stderr: b"err\n".to_vec(),
        exit_code: code,
    })
}

fn status(_: &mut Tables, _: StatusRequest) -> Result<StatusResponse, Status> {
    let condition = |name: &str, status, message: &str| RuntimeCondition {
        r#type: name.into(),
        status,
        reason: if status { String::new() } else { "NotYet".into() },
        message: message.into(),
    };
    Ok(StatusResponse {
        status: Some(RuntimeStatus {
            conditions: vec![condition("RuntimeReady", true, ""), condition("NetworkReady", false, "no configuration")],
        }),
        ..StatusResponse::default()
    })
}

fn runtime_config(_: &mut Tables, _: RuntimeConfigRequest) -> Result<RuntimeConfigResponse, Status> {
    let linux = LinuxRuntimeConfiguration { cgroup_driver: CgroupDriver::Cgroupfs as i32 };
    Ok(RuntimeConfigResponse { linux: Some(linux) })
}

#[tonic::async_trait]
impl ImageService for Fake {
    type StreamImagesStream = Answers<StreamImagesResponse>;

    async fn list_images(&self, _: Request<ListImagesRequest>) -> Result<Response<ListImagesResponse>, Status> {
        self.with(|tables| Ok(ListImagesResponse { images: tables.images.clone() }))
    }

    async fn stream_images(
        &self,
        _: Request<StreamImagesRequest>,
    ) -> Result<Response<Self::StreamImagesStream>, Status> {
        Err(Status::unimplemented("stream_images"))
    }

    async fn image_status(
        &self,
        request: Request<ImageStatusRequest>,
    ) -> Result<Response<ImageStatusResponse>, Status> {
        let name = request.into_inner().image.unwrap_or_default().image;
        self.with(|tables| {
            let image = tables.image(&name).cloned();
            Ok(ImageStatusResponse { image, info: HashMap::from([("info".into(), "{\"chainID\":\"x\"}".into())]) })
        })
    }

    async fn pull_image(&self, request: Request<PullImageRequest>) -> Result<Response<PullImageResponse>, Status> {
        let request = request.into_inner();
        let user = request.auth.map_or(String::new(), |auth| auth.username);
        let name = request.image.unwrap_or_default().image;
        self.with(|tables| {
            tables.called("pull_image", format!("{name} {user}").trim())?;
            let image_ref = id("sha256:beef");
            tables.images.push(Image { id: image_ref.clone(), repo_tags: vec![name], size: 7, ..Image::default() });
            Ok(PullImageResponse { image_ref })
        })
    }

    async fn remove_image(
        &self,
        request: Request<RemoveImageRequest>,
    ) -> Result<Response<RemoveImageResponse>, Status> {
        let name = request.into_inner().image.unwrap_or_default().image;
        self.with(|tables| {
            tables.called("remove_image", &name)?;
            tables.images.retain(|image| image.id != name);
            Ok(RemoveImageResponse {})
        })
    }

    async fn image_fs_info(&self, _: Request<ImageFsInfoRequest>) -> Result<Response<ImageFsInfoResponse>, Status> {
        let usage = FilesystemUsage {
            timestamp: 1,
            fs_id: Some(FilesystemIdentifier { mountpoint: "/var/lib/fake".into() }),
            used_bytes: Some(UInt64Value { value: 12_345_678 }),
            inodes_used: Some(UInt64Value { value: 9 }),
        };
        Ok(Response::new(ImageFsInfoResponse { image_filesystems: vec![usage], ..ImageFsInfoResponse::default() }))
    }
}

#[tonic::async_trait]
impl Images for Fake {
    type PullStream = Answers<Progress>;
    type ImportStream = Answers<Progress>;
    type ExportStream = Answers<ExportChunk>;

    async fn pull(&self, request: Request<PullRequest>) -> Result<Response<Self::PullStream>, Status> {
        let request = request.into_inner();
        let called = format!("{} {} {}", request.image, request.username, request.platform);
        self.with(|tables| tables.called("knarr pull", called.trim()))?;
        let blob = |state: &str| BlobProgress {
            digest: id("sha256:1a7e"),
            done_bytes: 5,
            total_bytes: 10,
            state: state.into(),
        };
        let image_ref = id("sha256:beef");
        self.with(|tables| {
            tables.images.push(Image {
                id: image_ref.clone(),
                repo_tags: vec![request.image],
                size: 7,
                ..Image::default()
            });
            Ok(())
        })?;
        Ok(answers(vec![
            Ok(Progress { step: "resolving".into(), ..Progress::default() }),
            Ok(Progress { step: "pulling layers".into(), blobs: vec![blob("downloading")], ..Progress::default() }),
            Ok(Progress { blobs: vec![blob("done")], image_ref, ..Progress::default() }),
        ]))
    }

    async fn import(
        &self,
        request: Request<tonic::Streaming<ImportChunk>>,
    ) -> Result<Response<Self::ImportStream>, Status> {
        let mut chunks = request.into_inner();
        let mut bytes = Vec::new();
        let mut name = String::new();
        while let Some(chunk) = chunks.message().await? {
            name = chunk.options.map_or(name, |options| options.name);
            bytes.extend(chunk.data);
        }
        self.with(|tables| {
            tables.imported = bytes;
            Ok(())
        })?;
        Ok(answers(vec![Ok(Progress { image_refs: vec![name], ..Progress::default() })]))
    }

    async fn export(&self, request: Request<ExportRequest>) -> Result<Response<Self::ExportStream>, Status> {
        let request = request.into_inner();
        if request.images.iter().any(|name| name == "broken") {
            let part = Ok(ExportChunk { data: b"half".to_vec() });
            return Ok(answers(vec![part, Err(Status::data_loss("a layer is damaged"))]));
        }
        let data = format!("{} of {}", request.format, request.images.join("+")).into_bytes();
        Ok(answers(vec![Ok(ExportChunk { data })]))
    }
}

/// Sends each request to its service by the first part of its path.
#[derive(Clone)]
struct Dispatch {
    runtime: RuntimeServiceServer<Fake>,
    images: ImageServiceServer<Fake>,
    extra: Option<ImagesServer<Fake>>,
}

impl Service<http::Request<tonic::body::Body>> for Dispatch {
    type Response = http::Response<tonic::body::Body>;
    type Error = std::convert::Infallible;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        let path = request.uri().path();
        if path.starts_with("/runtime.v1.RuntimeService/") {
            self.runtime.call(request)
        } else if path.starts_with("/runtime.v1.ImageService/") {
            self.images.call(request)
        } else if let Some(extra) = &mut self.extra {
            extra.call(request)
        } else {
            Box::pin(async { Ok(Status::unimplemented("unknown service").into_http()) })
        }
    }
}

/// Serves on a socket from a thread of its own, until the test's process ends.
pub fn serve(fake: Fake, socket: &Path) {
    let socket: PathBuf = socket.into();
    let (ready, is_ready) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let listener = tokio::net::UnixListener::bind(socket).unwrap();
            streams::serve(&fake).await;
            ready.send(()).unwrap();
            let dispatch = Dispatch {
                runtime: RuntimeServiceServer::new(fake.clone()),
                images: ImageServiceServer::new(fake.clone()),
                extra: fake.has_extra.then(|| ImagesServer::new(fake)),
            };
            let incoming = tokio_stream::wrappers::UnixListenerStream::new(listener);
            tonic::transport::Server::builder().serve_with_incoming(dispatch, incoming).await.unwrap();
        });
    });
    is_ready.recv().unwrap();
}
