//! The RuntimeService: parse the request, ask the pod, render the answer. Every rule that needs a decision is in
//! `model`, every conversion in `convert`.

use super::convert;
use super::status::status;
use crate::cgroup::Driver;
use crate::config::Limits;
use crate::exec;
use crate::node::Node;
use crate::records::PodConfig;
use crate::streaming::{Streams, must_run};
use crate::usage;
use knarr_cri_api::v1::{self, runtime_service_server::RuntimeService};
use knarr_model::input::Request as Ask;
use knarr_model::view::{ContainerView, PodView};
use knarr_model::{Error, ErrorKind};
use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio_stream::Stream;
use tonic::{Request, Response, Status};

type Answer<T> = Result<Response<T>, Status>;
type Streamed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// `Version.version` must be this text exactly, or kubelet does not start.
const KUBELET_API_VERSION: &str = "0.1.0";

/// The CRI side of a node.
#[derive(Debug, Clone)]
pub struct Runtime {
    pub(super) node: Arc<Node>,
    pub(super) streams: Arc<Streams>,
}

impl Runtime {
    /// Serves `node`, with `streams` for what gRPC does not carry.
    pub fn new(node: Arc<Node>, streams: Arc<Streams>) -> Self {
        Self { node, streams }
    }
}

/// Logs a refused request once, where it is answered, and gives it its gRPC code.
pub(super) fn answer<T>(rpc: &'static str, about: &str, result: Result<T, Error>) -> Answer<T> {
    match result {
        Ok(value) => {
            tracing::debug!(rpc, about, "ok");
            Ok(Response::new(value))
        }
        Err(error) => {
            match error.kind {
                ErrorKind::NotFound | ErrorKind::InvalidArgument | ErrorKind::Unimplemented => {
                    tracing::debug!(rpc, about, %error, kind = ?error.kind, "refused");
                }
                _ => tracing::warn!(rpc, about, %error, kind = ?error.kind, "failed"),
            }
            Err(status(error))
        }
    }
}

/// Stop and Remove of what is not there are done already.
fn gone_is_done(result: Result<(), Error>) -> Result<(), Error> {
    match result {
        Err(error) if error.kind == ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

fn required<T>(field: &'static str, value: Option<T>) -> Result<T, Error> {
    value.ok_or_else(|| Error::invalid(field, "is missing"))
}

pub(super) fn not_empty(field: &'static str, id: &str) -> Result<(), Error> {
    if id.is_empty() { Err(Error::invalid(field, "is empty")) } else { Ok(()) }
}

/// Gives up waiting after `limit`; the work goes on, and a retry joins it.
async fn within<T>(limit: Duration, asked: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    tokio::time::timeout(limit, asked).await.unwrap_or_else(|_| {
        let message = format!("no end after {} s; the work goes on, a retry joins it", limit.as_secs());
        Err(Error::new(ErrorKind::DeadlineExceeded, message))
    })
}

impl Runtime {
    fn limits(&self) -> &Limits {
        &self.node.world().config.limits
    }

    async fn run(&self, request: v1::RunPodSandboxRequest) -> Result<v1::RunPodSandboxResponse, Error> {
        let config = required("config", request.config)?;
        let spec = convert::pod_spec(config.clone(), &request.runtime_handler)?;
        if !spec.handler.is_empty() && spec.handler != DEFAULT_HANDLER {
            return Err(Error::invalid("runtime_handler", format!("{:?} is not configured here", spec.handler)));
        }
        if let (Some(_), Err(why)) = (&spec.namespaces.user, &self.node.world().user_namespaces) {
            const FIELD: &str = "config.linux.security_context.namespace_options.userns_options";
            let message = format!("{FIELD}: pods with a user namespace are not possible on this node: {why}");
            return Err(Error::new(ErrorKind::FailedPrecondition, message));
        }
        let config = PodConfig { config, handler: request.runtime_handler };
        // The work goes on if the client goes away: its retry joins it.
        let limit = self.limits().run_pod_deadline.0;
        let id = within(limit, self.node.run_pod(config, spec)).await?;
        Ok(v1::RunPodSandboxResponse { pod_sandbox_id: id.to_string() })
    }

    async fn stop_pod(&self, id: &str) -> Result<(), Error> {
        not_empty("pod_sandbox_id", id)?;
        let pod = self.node.pod(id)?;
        within(self.limits().request_deadline.0, pod.ask(Ask::Stop)).await.map(|_| ())
    }

    async fn remove_pod(&self, id: &str) -> Result<(), Error> {
        not_empty("pod_sandbox_id", id)?;
        let pod = self.node.pod(id)?;
        within(self.limits().request_deadline.0, async {
            pod.ask(Ask::Remove).await?;
            pod.ended().await;
            Ok(())
        })
        .await
    }

    fn pod_status(&self, request: &v1::PodSandboxStatusRequest) -> Result<v1::PodSandboxStatusResponse, Error> {
        not_empty("pod_sandbox_id", &request.pod_sandbox_id)?;
        let pod = self.node.pod(&request.pod_sandbox_id)?;
        let view = pod.view();
        if view.hidden {
            return Err(Error::not_found("pod", &request.pod_sandbox_id));
        }
        let info = if request.verbose { pod.effects().info(&view) } else { Default::default() };
        Ok(v1::PodSandboxStatusResponse {
            status: Some(convert::pod_sandbox_status(&view)),
            info,
            containers_statuses: view.containers.iter().map(|c| self.status_of(&view, c)).collect(),
            // The version of evented pod statuses; without events, 0 tells kubelet to ask for each container.
            timestamp: 0,
        })
    }

    async fn create(&self, request: v1::CreateContainerRequest) -> Result<v1::CreateContainerResponse, Error> {
        not_empty("pod_sandbox_id", &request.pod_sandbox_id)?;
        let config = required("config", request.config)?;
        let pod = self.node.pod(&request.pod_sandbox_id)?;
        let spec = convert::container_spec(config.clone(), &pod.view().spec)?;
        let limit = self.limits().request_deadline.0;
        let id = within(limit, self.node.create_container(pod, config, spec)).await?;
        Ok(v1::CreateContainerResponse { container_id: id.to_string() })
    }

    async fn stop_container(&self, id: &str, timeout_s: i64) -> Result<(), Error> {
        not_empty("container_id", id)?;
        let (pod, container) = self.node.container(id)?;
        // The grace period is the client's; ours is for the end that must follow it.
        let grace = Duration::from_secs(timeout_s.max(0) as u64);
        let limit = grace.saturating_add(self.limits().request_deadline.0);
        within(limit, pod.ask(Ask::StopContainer(container.id, timeout_s))).await.map(|_| ())
    }

    async fn remove_container(&self, id: &str) -> Result<(), Error> {
        not_empty("container_id", id)?;
        let (pod, container) = self.node.container(id)?;
        within(self.limits().request_deadline.0, pod.ask(Ask::RemoveContainer(container.id))).await.map(|_| ())
    }

    async fn start(&self, id: &str) -> Result<(), Error> {
        not_empty("container_id", id)?;
        let (pod, container) = self.node.container(id)?;
        within(self.limits().request_deadline.0, pod.ask(Ask::StartContainer(container.id))).await.map(|_| ())
    }

    async fn update(&self, request: v1::UpdateContainerResourcesRequest) -> Result<(), Error> {
        not_empty("container_id", &request.container_id)?;
        let (pod, container) = self.node.container(&request.container_id)?;
        let Some(linux) = request.linux else { return Ok(()) };
        let update = convert::resources("linux", linux)?;
        let asked = pod.ask(Ask::UpdateResources(container.id, update));
        within(self.limits().request_deadline.0, asked).await.map(|_| ())
    }

    async fn update_pod(&self, request: v1::UpdatePodSandboxResourcesRequest) -> Result<(), Error> {
        not_empty("pod_sandbox_id", &request.pod_sandbox_id)?;
        let pod = self.node.pod(&request.pod_sandbox_id)?;
        let parse = |field, given: Option<_>| given.map(|given| convert::resources(field, given)).transpose();
        let asked = Ask::UpdatePodResources {
            overhead: parse("overhead", request.overhead)?,
            containers: parse("resources", request.resources)?,
        };
        within(self.limits().request_deadline.0, pod.ask(asked)).await.map(|_| ())
    }

    async fn reopen(&self, id: &str) -> Result<(), Error> {
        not_empty("container_id", id)?;
        let (pod, container) = self.node.container(id)?;
        within(self.limits().request_deadline.0, pod.ask(Ask::ReopenLog(container.id))).await.map(|_| ())
    }

    async fn exec(&self, request: v1::ExecSyncRequest) -> Result<v1::ExecSyncResponse, Error> {
        not_empty("container_id", &request.container_id)?;
        if request.cmd.is_empty() {
            return Err(Error::invalid("cmd", "is empty"));
        }
        if request.timeout < 0 {
            return Err(Error::invalid("timeout", format!("{} is negative", request.timeout)));
        }
        let (pod, container) = self.node.container(&request.container_id)?;
        must_run(&container)?;
        let timeout = (request.timeout > 0).then(|| Duration::from_secs(request.timeout as u64));
        let output = exec::run_sync(pod.effects(), &container, &request.cmd, timeout).await?;
        Ok(v1::ExecSyncResponse { stdout: output.stdout, stderr: output.stderr, exit_code: output.exit_code })
    }

    fn status_of(&self, pod: &PodView, container: &ContainerView) -> v1::ContainerStatus {
        // The name by digest, as kubelet shows it; the image may have been removed meanwhile.
        let image = self.node.world().images.store().held(&container.resolved.image_id);
        let image_ref = image.and_then(|i| i.digests.first().cloned()).unwrap_or_default();
        convert::container_status(pod, container, &image_ref)
    }

    fn container_status(&self, request: &v1::ContainerStatusRequest) -> Result<v1::ContainerStatusResponse, Error> {
        not_empty("container_id", &request.container_id)?;
        let (pod, container) = self.node.container(&request.container_id)?;
        let view = pod.view();
        let info = if request.verbose { pod.effects().container_info(&view, &container) } else { Default::default() };
        let status = self.status_of(&view, &container);
        Ok(v1::ContainerStatusResponse { status: Some(status), info })
    }

    fn info(&self) -> HashMap<String, String> {
        let mut info = self.node.world().info();
        info.insert("streaming".to_owned(), self.streams.info());
        info
    }

    fn runtime_status(&self, verbose: bool) -> v1::StatusResponse {
        let network = self.node.world().network.status();
        let conditions = vec![
            v1::RuntimeCondition { r#type: "RuntimeReady".into(), status: true, ..Default::default() },
            v1::RuntimeCondition {
                r#type: "NetworkReady".into(),
                status: network.ready,
                reason: network.reason,
                message: network.message,
            },
        ];
        // The kernel that is required has mount_setattr with AT_RECURSIVE.
        let user_namespaces = self.node.world().user_namespaces.is_ok();
        let features = v1::RuntimeHandlerFeatures { recursive_read_only_mounts: true, user_namespaces };
        let handler = |name: &str| v1::RuntimeHandler { name: name.into(), features: Some(features) };
        v1::StatusResponse {
            status: Some(v1::RuntimeStatus { conditions }),
            info: if verbose { self.info() } else { Default::default() },
            // Kubelet looks a pod without RuntimeClass up by the empty name.
            runtime_handlers: vec![handler(""), handler(DEFAULT_HANDLER)],
            features: Some(v1::RuntimeFeatures {
                supplemental_groups_policy: true,
                user_namespaces_host_network: user_namespaces,
            }),
        }
    }
}

/// Our own low-level runtime.
const DEFAULT_HANDLER: &str = "native";

pub(super) fn later<T>(rpc: &'static str) -> Answer<T> {
    answer(rpc, "", Err(Error::new(ErrorKind::Unimplemented, format!("{rpc} is not implemented in this version"))))
}

#[tonic::async_trait]
impl RuntimeService for Runtime {
    async fn version(&self, _: Request<v1::VersionRequest>) -> Answer<v1::VersionResponse> {
        Ok(Response::new(v1::VersionResponse {
            version: KUBELET_API_VERSION.into(),
            runtime_name: "knarr".into(),
            runtime_version: env!("CARGO_PKG_VERSION").into(),
            runtime_api_version: "v1".into(),
        }))
    }

    async fn run_pod_sandbox(&self, request: Request<v1::RunPodSandboxRequest>) -> Answer<v1::RunPodSandboxResponse> {
        let request = request.into_inner();
        let metadata = request.config.as_ref().and_then(|c| c.metadata.as_ref());
        let about = metadata.map_or(String::new(), |m| format!("{}/{}", m.namespace, m.name));
        answer("RunPodSandbox", &about, self.run(request).await)
    }

    async fn stop_pod_sandbox(
        &self,
        request: Request<v1::StopPodSandboxRequest>,
    ) -> Answer<v1::StopPodSandboxResponse> {
        let id = request.into_inner().pod_sandbox_id;
        let done = gone_is_done(self.stop_pod(&id).await);
        answer("StopPodSandbox", &id, done.map(|()| v1::StopPodSandboxResponse {}))
    }

    async fn remove_pod_sandbox(
        &self,
        request: Request<v1::RemovePodSandboxRequest>,
    ) -> Answer<v1::RemovePodSandboxResponse> {
        let id = request.into_inner().pod_sandbox_id;
        let done = gone_is_done(self.remove_pod(&id).await);
        answer("RemovePodSandbox", &id, done.map(|()| v1::RemovePodSandboxResponse {}))
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<v1::PodSandboxStatusRequest>,
    ) -> Answer<v1::PodSandboxStatusResponse> {
        let request = request.into_inner();
        answer("PodSandboxStatus", &request.pod_sandbox_id, self.pod_status(&request))
    }

    async fn list_pod_sandbox(
        &self,
        request: Request<v1::ListPodSandboxRequest>,
    ) -> Answer<v1::ListPodSandboxResponse> {
        let filter = match convert::PodFilter::parse(request.into_inner().filter) {
            Ok(filter) => filter,
            Err(error) => return answer("ListPodSandbox", "", Err(error)),
        };
        let views = self.node.views();
        let items = views.iter().filter(|v| filter.matches(v)).map(|v| convert::pod_sandbox(v));
        Ok(Response::new(v1::ListPodSandboxResponse { items: items.collect() }))
    }

    async fn create_container(
        &self,
        request: Request<v1::CreateContainerRequest>,
    ) -> Answer<v1::CreateContainerResponse> {
        let request = request.into_inner();
        let metadata = request.config.as_ref().and_then(|c| c.metadata.as_ref());
        let about = format!("{} in {}", metadata.map_or("", |m| &m.name), request.pod_sandbox_id);
        answer("CreateContainer", &about, self.create(request).await)
    }

    async fn start_container(&self, request: Request<v1::StartContainerRequest>) -> Answer<v1::StartContainerResponse> {
        let id = request.into_inner().container_id;
        answer("StartContainer", &id, self.start(&id).await.map(|()| v1::StartContainerResponse {}))
    }

    async fn stop_container(&self, request: Request<v1::StopContainerRequest>) -> Answer<v1::StopContainerResponse> {
        let v1::StopContainerRequest { container_id, timeout } = request.into_inner();
        let done = gone_is_done(self.stop_container(&container_id, timeout).await);
        answer("StopContainer", &container_id, done.map(|()| v1::StopContainerResponse {}))
    }

    async fn remove_container(
        &self,
        request: Request<v1::RemoveContainerRequest>,
    ) -> Answer<v1::RemoveContainerResponse> {
        let id = request.into_inner().container_id;
        let done = gone_is_done(self.remove_container(&id).await);
        answer("RemoveContainer", &id, done.map(|()| v1::RemoveContainerResponse {}))
    }

    async fn list_containers(&self, request: Request<v1::ListContainersRequest>) -> Answer<v1::ListContainersResponse> {
        let filter = match convert::ContainerFilter::parse(request.into_inner().filter) {
            Ok(filter) => filter,
            Err(error) => return answer("ListContainers", "", Err(error)),
        };
        let mut containers = Vec::new();
        for pod in self.node.views() {
            let matching = pod.containers.iter().filter(|c| filter.matches(&pod, c));
            containers.extend(matching.map(|c| convert::container(&pod.id, c)));
        }
        Ok(Response::new(v1::ListContainersResponse { containers }))
    }

    async fn container_status(
        &self,
        request: Request<v1::ContainerStatusRequest>,
    ) -> Answer<v1::ContainerStatusResponse> {
        let request = request.into_inner();
        answer("ContainerStatus", &request.container_id, self.container_status(&request))
    }

    async fn update_container_resources(
        &self,
        request: Request<v1::UpdateContainerResourcesRequest>,
    ) -> Answer<v1::UpdateContainerResourcesResponse> {
        let request = request.into_inner();
        let id = request.container_id.clone();
        let done = self.update(request).await;
        answer("UpdateContainerResources", &id, done.map(|()| v1::UpdateContainerResourcesResponse {}))
    }

    async fn reopen_container_log(
        &self,
        request: Request<v1::ReopenContainerLogRequest>,
    ) -> Answer<v1::ReopenContainerLogResponse> {
        let id = request.into_inner().container_id;
        let done = self.reopen(&id).await;
        answer("ReopenContainerLog", &id, done.map(|()| v1::ReopenContainerLogResponse {}))
    }

    async fn exec_sync(&self, request: Request<v1::ExecSyncRequest>) -> Answer<v1::ExecSyncResponse> {
        let request = request.into_inner();
        let id = request.container_id.clone();
        answer("ExecSync", &id, self.exec(request).await)
    }

    async fn exec(&self, request: Request<v1::ExecRequest>) -> Answer<v1::ExecResponse> {
        let request = request.into_inner();
        let id = request.container_id.clone();
        answer("Exec", &id, self.offer_exec(request).map(|url| v1::ExecResponse { url }))
    }

    async fn attach(&self, request: Request<v1::AttachRequest>) -> Answer<v1::AttachResponse> {
        let request = request.into_inner();
        answer("Attach", &request.container_id, self.offer_attach(&request).map(|url| v1::AttachResponse { url }))
    }

    async fn port_forward(&self, request: Request<v1::PortForwardRequest>) -> Answer<v1::PortForwardResponse> {
        let request = request.into_inner();
        let offered = self.offer_port_forward(&request).map(|url| v1::PortForwardResponse { url });
        answer("PortForward", &request.pod_sandbox_id, offered)
    }

    async fn container_stats(&self, request: Request<v1::ContainerStatsRequest>) -> Answer<v1::ContainerStatsResponse> {
        let id = request.into_inner().container_id;
        let found = not_empty("container_id", &id).and_then(|()| self.node.container(&id));
        let result = match found {
            Ok((pod, container)) => {
                let stats = usage::of_containers(self.node.clone(), vec![(pod.effects().clone(), container)]).await;
                stats.map(|mut stats| v1::ContainerStatsResponse { stats: stats.pop() })
            }
            Err(error) => Err(error),
        };
        answer("ContainerStats", &id, result)
    }

    async fn list_container_stats(
        &self,
        request: Request<v1::ListContainerStatsRequest>,
    ) -> Answer<v1::ListContainerStatsResponse> {
        let filter = convert::ContainerFilter::of_stats(request.into_inner().filter);
        let mut asked = Vec::new();
        for pod in self.node.handles() {
            let view = pod.view();
            let matching = view.containers.iter().filter(|c| filter.matches(&view, c)).cloned();
            asked.extend(matching.map(|c| (pod.effects().clone(), c)));
        }
        let stats = usage::of_containers(self.node.clone(), asked).await;
        answer("ListContainerStats", "", stats.map(|stats| v1::ListContainerStatsResponse { stats }))
    }

    async fn update_runtime_config(
        &self,
        request: Request<v1::UpdateRuntimeConfigRequest>,
    ) -> Answer<v1::UpdateRuntimeConfigResponse> {
        let network = request.into_inner().runtime_config.and_then(|c| c.network_config);
        if let Some(network) = network.filter(|n| !n.pod_cidr.is_empty())
            && let Err(error) = self.node.world().network.pod_cidr(&network.pod_cidr).await
        {
            return answer("UpdateRuntimeConfig", &network.pod_cidr, Err(error));
        }
        Ok(Response::new(v1::UpdateRuntimeConfigResponse {}))
    }

    async fn status(&self, request: Request<v1::StatusRequest>) -> Answer<v1::StatusResponse> {
        Ok(Response::new(self.runtime_status(request.into_inner().verbose)))
    }

    async fn runtime_config(&self, _: Request<v1::RuntimeConfigRequest>) -> Answer<v1::RuntimeConfigResponse> {
        let driver = match self.node.world().cgroups.driver() {
            Driver::Cgroupfs => v1::CgroupDriver::Cgroupfs,
            Driver::Systemd => v1::CgroupDriver::Systemd,
        };
        let linux = Some(v1::LinuxRuntimeConfiguration { cgroup_driver: driver.into() });
        Ok(Response::new(v1::RuntimeConfigResponse { linux }))
    }

    // What follows answers UNIMPLEMENTED, which kubelet and crictl take as "use the other way": streams fall back to
    // unary calls, pod stats and metrics to cAdvisor.

    type StreamPodSandboxesStream = Streamed<v1::StreamPodSandboxesResponse>;
    type StreamContainersStream = Streamed<v1::StreamContainersResponse>;
    type StreamContainerStatsStream = Streamed<v1::StreamContainerStatsResponse>;
    type StreamPodSandboxStatsStream = Streamed<v1::StreamPodSandboxStatsResponse>;
    type StreamPodSandboxMetricsStream = Streamed<v1::StreamPodSandboxMetricsResponse>;
    type GetContainerEventsStream = Streamed<v1::ContainerEventResponse>;

    async fn stream_pod_sandboxes(
        &self,
        _: Request<v1::StreamPodSandboxesRequest>,
    ) -> Answer<Self::StreamPodSandboxesStream> {
        later("StreamPodSandboxes")
    }

    async fn stream_containers(&self, _: Request<v1::StreamContainersRequest>) -> Answer<Self::StreamContainersStream> {
        later("StreamContainers")
    }

    async fn stream_container_stats(
        &self,
        _: Request<v1::StreamContainerStatsRequest>,
    ) -> Answer<Self::StreamContainerStatsStream> {
        later("StreamContainerStats")
    }

    async fn stream_pod_sandbox_stats(
        &self,
        _: Request<v1::StreamPodSandboxStatsRequest>,
    ) -> Answer<Self::StreamPodSandboxStatsStream> {
        later("StreamPodSandboxStats")
    }

    async fn stream_pod_sandbox_metrics(
        &self,
        _: Request<v1::StreamPodSandboxMetricsRequest>,
    ) -> Answer<Self::StreamPodSandboxMetricsStream> {
        later("StreamPodSandboxMetrics")
    }

    async fn get_container_events(&self, _: Request<v1::GetEventsRequest>) -> Answer<Self::GetContainerEventsStream> {
        later("GetContainerEvents")
    }

    async fn pod_sandbox_stats(&self, _: Request<v1::PodSandboxStatsRequest>) -> Answer<v1::PodSandboxStatsResponse> {
        later("PodSandboxStats")
    }

    async fn list_pod_sandbox_stats(
        &self,
        _: Request<v1::ListPodSandboxStatsRequest>,
    ) -> Answer<v1::ListPodSandboxStatsResponse> {
        later("ListPodSandboxStats")
    }

    async fn checkpoint_container(
        &self,
        _: Request<v1::CheckpointContainerRequest>,
    ) -> Answer<v1::CheckpointContainerResponse> {
        later("CheckpointContainer")
    }

    async fn list_metric_descriptors(
        &self,
        _: Request<v1::ListMetricDescriptorsRequest>,
    ) -> Answer<v1::ListMetricDescriptorsResponse> {
        later("ListMetricDescriptors")
    }

    async fn list_pod_sandbox_metrics(
        &self,
        _: Request<v1::ListPodSandboxMetricsRequest>,
    ) -> Answer<v1::ListPodSandboxMetricsResponse> {
        later("ListPodSandboxMetrics")
    }

    async fn update_pod_sandbox_resources(
        &self,
        request: Request<v1::UpdatePodSandboxResourcesRequest>,
    ) -> Answer<v1::UpdatePodSandboxResourcesResponse> {
        let request = request.into_inner();
        let id = request.pod_sandbox_id.clone();
        let done = self.update_pod(request).await;
        answer("UpdatePodSandboxResources", &id, done.map(|()| v1::UpdatePodSandboxResourcesResponse {}))
    }
}
