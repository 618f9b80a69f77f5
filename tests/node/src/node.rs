//! One daemon with its clients, and the handful of steps that every test takes.

use crate::bus::OwnBus;
use crate::images::{TOOL_IMAGE, tool_image};
use crate::tree::{self, Driver};
use crate::{Outcome, TOOL, eventually, patience};
use knarr_cri_api::knarr::images_client::ImagesClient;
use knarr_cri_api::v1::image_service_client::ImageServiceClient;
use knarr_cri_api::v1::runtime_service_client::RuntimeServiceClient;
use knarr_cri_api::{knarr, v1};
use knarr_testkit::archive::oci_archive;
use knarr_testkit::image::Image;
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

/// How long the daemon may take to serve, and to end.
const DAEMON_LIMIT: Duration = Duration::from_secs(20);

/// How long a container may take to reach a state that it reaches by itself.
pub const STATE_LIMIT: Duration = Duration::from_secs(30);

/// Bytes of one message of an import; gRPC's own limit is 4 MiB.
const IMPORT_CHUNK_BYTES: usize = 1 << 20;

/// What a test says about its node's configuration.
#[derive(Debug, Clone, Default)]
pub struct Config {
    /// TOML that is put into a drop-in file; `{directory}` in it is the test's scratch directory.
    pub toml: String,
    /// CNI configurations: file name and content.
    pub cni: Vec<(&'static str, String)>,
    /// Whether systemd's bus is to be reached through a socket that the test can cut.
    pub own_bus: bool,
}

/// One node.
pub struct Node {
    /// The test's scratch directory.
    pub directory: PathBuf,
    /// The daemon's `--root`.
    pub root: PathBuf,
    /// CRI's RuntimeService.
    pub runtime: RuntimeServiceClient<Channel>,
    /// CRI's ImageService.
    pub images: ImageServiceClient<Channel>,
    /// knarr's own service.
    pub knarr: ImagesClient<Channel>,
    /// The way to systemd's bus, if the configuration wants one of its own.
    pub bus: Option<OwnBus>,
    daemon: Option<Pid>,
}

/// A pod that runs.
#[derive(Debug, Clone)]
pub struct Pod {
    /// its id
    pub id: String,
    /// as it was asked for
    pub config: v1::PodSandboxConfig,
}

/// One line of a container's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    /// RFC 3339 with nanoseconds
    pub time: String,
    /// "stdout" or "stderr"
    pub stream: String,
    /// "F" or "P"
    pub tag: String,
    /// without the newline
    pub text: String,
}

/// Paths of knarr and knarr-shim, from the environment or from where `cargo xtask` puts them.
pub fn executables() -> Result<(PathBuf, PathBuf), String> {
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/knarr-dev");
    let find = |variable: &str, name: &str| {
        let path = std::env::var_os(variable).map_or_else(|| built.join(name), PathBuf::from);
        path.canonicalize().map_err(|e| {
            format!("no {name} at {} ({e}): `cargo xtask test node` builds it and sets {variable}", path.display())
        })
    };
    Ok((find("KNARR_BIN", "knarr")?, find("KNARR_SHIM_BIN", "knarr-shim")?))
}

impl Node {
    /// Starts the daemon and gives it the tool's image.
    pub async fn start(directory: &Path, config: Config) -> Outcome<Self> {
        let root = directory.join("node");
        let cni = directory.join("cni");
        fs::create_dir_all(root.join("config.d"))?;
        fs::create_dir_all(&cni)?;
        fs::create_dir_all(directory.join("logs"))?;
        let (_, shim) = executables()?;
        let base = format!(
            "[cgroup]\ndriver = {:?}\nparent = {:?}\n[shim]\npath = {:?}\n[log]\nlevel = \"debug\"\n[network.cni]\nconf_dir = {:?}\n",
            Driver::current().as_str(),
            tree::parent(directory),
            shim,
            cni
        );
        fs::write(root.join("config.toml"), base)?;
        let directory_name = directory.display().to_string();
        fs::write(root.join("config.d/test.toml"), config.toml.replace("{directory}", &directory_name))?;
        for (name, content) in &config.cni {
            fs::write(cni.join(name), content)?;
        }
        let bus = if config.own_bus { Some(OwnBus::start(directory)?) } else { None };
        let daemon = spawn(directory, &root, bus.as_ref())?;
        let channel = Endpoint::from_shared(format!("unix://{}", root.join("knarr.sock").display()))?.connect_lazy();
        let mut node = Self {
            directory: directory.to_path_buf(),
            root,
            // ExecSync may give 16 MiB of each stream.
            runtime: RuntimeServiceClient::new(channel.clone()).max_decoding_message_size(64 << 20),
            images: ImageServiceClient::new(channel.clone()),
            knarr: ImagesClient::new(channel),
            bus,
            daemon: Some(daemon),
        };
        node.wait_until_serving().await?;
        node.import(&[(TOOL_IMAGE, &tool_image())]).await?;
        Ok(node)
    }

    /// Another client of the same daemon, for calls at the same time.
    pub fn another_client(&self) -> Self {
        Self {
            directory: self.directory.clone(),
            root: self.root.clone(),
            runtime: self.runtime.clone(),
            images: self.images.clone(),
            knarr: self.knarr.clone(),
            bus: None,
            daemon: self.daemon,
        }
    }

    /// The daemon's process, if it runs.
    pub fn daemon_pid(&self) -> Option<u32> {
        self.daemon.map(|pid| pid.as_raw_nonzero().get() as u32)
    }

    /// Whether the daemon was started and not ended.
    pub fn is_running(&self) -> bool {
        self.daemon.is_some()
    }

    /// SIGKILL: no time for anything.
    pub async fn kill(&mut self) -> Outcome {
        self.end(Signal::KILL).await
    }

    /// SIGTERM: an orderly end. Pods go on.
    pub async fn stop(&mut self) -> Outcome {
        self.end(Signal::TERM).await
    }

    /// Starts the daemon anew on the same root.
    pub async fn start_again(&mut self) -> Outcome {
        assert!(self.daemon.is_none(), "the daemon runs");
        self.daemon = Some(spawn(&self.directory, &self.root, self.bus.as_ref())?);
        self.wait_until_serving().await
    }

    async fn end(&mut self, signal: Signal) -> Outcome {
        let daemon = self.daemon.take().ok_or("no daemon runs")?;
        kill_process(daemon, signal)?;
        eventually("the daemon ends", DAEMON_LIMIT, async || Ok(waitpid(Some(daemon), WaitOptions::NOHANG)?)).await?;
        Ok(())
    }

    async fn wait_until_serving(&mut self) -> Outcome {
        let daemon = self.daemon.ok_or("no daemon runs")?;
        eventually("the daemon serves", DAEMON_LIMIT, async || {
            if waitpid(Some(daemon), WaitOptions::NOHANG)?.is_some() {
                return Err("the daemon ended at once".into());
            }
            let version = self.runtime.version(v1::VersionRequest { version: String::new() }).await;
            Ok(version.ok().map(drop))
        })
        .await
    }

    /// Gives the node images under names.
    pub async fn import(&mut self, images: &[(&str, &Image)]) -> Outcome<Vec<String>> {
        let archive = oci_archive(images);
        let chunks: Vec<_> = archive
            .chunks(IMPORT_CHUNK_BYTES)
            .map(|data| knarr::ImportChunk { options: None, data: data.to_vec() })
            .collect();
        let mut progress = self.knarr.import(tokio_stream::iter(chunks)).await?.into_inner();
        let mut names = Vec::new();
        while let Some(step) = progress.message().await? {
            names.extend(step.image_refs);
        }
        Ok(names)
    }

    /// Runs a pod; its log directory is filled in if it has none.
    pub async fn run_pod(&mut self, mut config: v1::PodSandboxConfig) -> Result<Pod, Status> {
        let name = config.metadata.clone().unwrap_or_default().name;
        if config.log_directory.is_empty() {
            config.log_directory = self.directory.join("logs").join(name).display().to_string();
        }
        let request = v1::RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: String::new() };
        let id = self.runtime.run_pod_sandbox(request).await?.into_inner().pod_sandbox_id;
        Ok(Pod { id, config })
    }

    /// Creates a container.
    pub async fn create(&mut self, pod: &Pod, config: v1::ContainerConfig) -> Result<String, Status> {
        make_log_directory(&pod.config, &config);
        let request = v1::CreateContainerRequest {
            pod_sandbox_id: pod.id.clone(),
            config: Some(config),
            sandbox_config: Some(pod.config.clone()),
        };
        Ok(self.runtime.create_container(request).await?.into_inner().container_id)
    }

    /// Starts a container.
    pub async fn start_container(&mut self, id: &str) -> Result<(), Status> {
        self.runtime.start_container(v1::StartContainerRequest { container_id: id.into() }).await?;
        Ok(())
    }

    /// Creates and starts a container.
    pub async fn run(&mut self, pod: &Pod, config: v1::ContainerConfig) -> Result<String, Status> {
        let id = self.create(pod, config).await?;
        self.start_container(&id).await?;
        Ok(id)
    }

    /// Creates and starts a container and waits for its end.
    pub async fn run_to_end(&mut self, pod: &Pod, config: v1::ContainerConfig) -> Outcome<v1::ContainerStatus> {
        let id = self.run(pod, config).await?;
        self.wait_exited(&id).await
    }

    /// Runs a container to its end and gives what it wrote to stdout.
    pub async fn output_of(&mut self, pod: &Pod, config: v1::ContainerConfig) -> Outcome<String> {
        let status = self.run_to_end(pod, config).await?;
        let text = |stream: &str, lines: &[LogLine]| -> String {
            let of_stream = lines.iter().filter(|l| l.stream == stream);
            of_stream.map(|l| format!("{}{}", l.text, if l.tag == "F" { "\n" } else { "" })).collect()
        };
        let lines = read_log(&status.log_path)?;
        if status.exit_code != 0 {
            return Err(
                format!("exit code {} ({}): {}", status.exit_code, status.reason, text("stderr", &lines)).into()
            );
        }
        Ok(text("stdout", &lines))
    }

    /// A container's status.
    pub async fn status(&mut self, id: &str) -> Result<v1::ContainerStatus, Status> {
        let request = v1::ContainerStatusRequest { container_id: id.into(), verbose: false };
        let response = self.runtime.container_status(request).await?.into_inner();
        response.status.ok_or_else(|| Status::internal("no status in the response"))
    }

    /// A pod's status.
    pub async fn pod_status(&mut self, id: &str) -> Result<v1::PodSandboxStatus, Status> {
        let request = v1::PodSandboxStatusRequest { pod_sandbox_id: id.into(), verbose: false };
        let response = self.runtime.pod_sandbox_status(request).await?.into_inner();
        response.status.ok_or_else(|| Status::internal("no status in the response"))
    }

    /// The pod's primary address.
    pub async fn address(&mut self, pod: &Pod) -> Outcome<String> {
        let status = self.pod_status(&pod.id).await?;
        Ok(status.network.ok_or("no network in the pod's status")?.ip)
    }

    /// Waits for the end of a container.
    pub async fn wait_exited(&mut self, id: &str) -> Outcome<v1::ContainerStatus> {
        eventually("the container ends", STATE_LIMIT, async || {
            let status = self.status(id).await?;
            Ok((status.state() == v1::ContainerState::ContainerExited).then_some(status))
        })
        .await
    }

    /// Waits for a text in a container's log, whichever stream it is on.
    pub async fn wait_for_log(&mut self, id: &str, text: &str) -> Outcome {
        let path = self.status(id).await?.log_path;
        let what = format!("{text:?} is in the log");
        let found = eventually(&what, STATE_LIMIT, async || {
            let lines = read_log(&path).unwrap_or_default();
            Ok(lines.iter().any(|l| l.text.contains(text)).then_some(()))
        });
        found.await
    }

    /// A container's log as it is now.
    pub async fn log(&mut self, id: &str) -> Outcome<Vec<LogLine>> {
        read_log(&self.status(id).await?.log_path)
    }

    /// Runs the tool in a running container.
    pub async fn exec(&mut self, id: &str, words: &[&str]) -> Result<v1::ExecSyncResponse, Status> {
        let limit = patience(Duration::from_secs(20));
        self.exec_for(id, words, limit.as_secs() as i64).await
    }

    /// The same with a limit in seconds; 0 is none.
    pub async fn exec_for(&mut self, id: &str, words: &[&str], timeout: i64) -> Result<v1::ExecSyncResponse, Status> {
        let cmd = [TOOL].iter().chain(words).map(|w| (*w).to_owned()).collect();
        let request = v1::ExecSyncRequest { container_id: id.into(), cmd, timeout };
        Ok(self.runtime.exec_sync(request).await?.into_inner())
    }

    /// What the tool prints in a running container.
    pub async fn exec_output(&mut self, id: &str, words: &[&str]) -> Outcome<String> {
        let response = self.exec(id, words).await?;
        if response.exit_code != 0 {
            let stderr = String::from_utf8_lossy(&response.stderr).into_owned();
            return Err(format!("exec {words:?}: exit code {}: {stderr}", response.exit_code).into());
        }
        Ok(String::from_utf8(response.stdout)?)
    }

    /// Stops a container.
    pub async fn stop_container(&mut self, id: &str, timeout: i64) -> Result<(), Status> {
        self.runtime.stop_container(v1::StopContainerRequest { container_id: id.into(), timeout }).await?;
        Ok(())
    }

    /// Removes a container.
    pub async fn remove_container(&mut self, id: &str) -> Result<(), Status> {
        self.runtime.remove_container(v1::RemoveContainerRequest { container_id: id.into() }).await?;
        Ok(())
    }

    /// Stops a pod.
    pub async fn stop_pod(&mut self, id: &str) -> Result<(), Status> {
        self.runtime.stop_pod_sandbox(v1::StopPodSandboxRequest { pod_sandbox_id: id.into() }).await?;
        Ok(())
    }

    /// Removes a pod.
    pub async fn remove_pod(&mut self, id: &str) -> Result<(), Status> {
        self.runtime.remove_pod_sandbox(v1::RemovePodSandboxRequest { pod_sandbox_id: id.into() }).await?;
        Ok(())
    }

    /// All pods.
    pub async fn pods(&mut self) -> Result<Vec<v1::PodSandbox>, Status> {
        Ok(self.runtime.list_pod_sandbox(v1::ListPodSandboxRequest { filter: None }).await?.into_inner().items)
    }

    /// All containers.
    pub async fn containers(&mut self) -> Result<Vec<v1::Container>, Status> {
        Ok(self.runtime.list_containers(v1::ListContainersRequest { filter: None }).await?.into_inner().containers)
    }

    /// Stops and removes every pod that is left.
    pub async fn remove_everything(&mut self) -> Outcome {
        for pod in self.pods().await? {
            self.stop_pod(&pod.id).await?;
            self.remove_pod(&pod.id).await?;
        }
        Ok(())
    }

    /// Runs the command line against this node and waits for it.
    pub fn cli(&self, words: &[&str]) -> Outcome<Output> {
        let (knarr, _) = executables()?;
        let mut command = Command::new(knarr);
        command.arg("--root").arg(&self.root).args(words).stdin(Stdio::null()).current_dir(&self.directory);
        Ok(command.output()?)
    }

    /// What the command line prints, which must succeed.
    pub fn cli_output(&self, words: &[&str]) -> Outcome<String> {
        let output = self.cli(words)?;
        if !output.status.success() {
            let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
            return Err(format!("knarr {words:?}: {}: {stderr}", output.status).into());
        }
        Ok(String::from_utf8(output.stdout)?)
    }

    /// A request with a deadline, as kubelet's client sends it.
    pub fn within<T>(message: T, limit: Duration) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(limit);
        request
    }
}

/// The directory of a container's log, which kubelet makes before it creates the container.
pub fn make_log_directory(pod: &v1::PodSandboxConfig, container: &v1::ContainerConfig) {
    let log = Path::new(&pod.log_directory).join(&container.log_path);
    if let Some(directory) = log.parent() {
        // Where this is impossible, the test is about what the daemon says of it.
        let _ = fs::create_dir_all(directory);
    }
}

/// A child whose end is seen by `waitpid` alone: the leak oracle, which reaps orphans, and this file share the
/// knowledge of which process is the daemon.
fn spawn(directory: &Path, root: &Path, bus: Option<&OwnBus>) -> Outcome<Pid> {
    let (knarr, _) = executables()?;
    let log = fs::OpenOptions::new().create(true).append(true).open(directory.join("daemon.log"))?;
    let mut command = Command::new(knarr);
    if let Some(bus) = bus {
        command.env("DBUS_SYSTEM_BUS_ADDRESS", bus.address());
    }
    let child = command
        .arg("--root")
        .arg(root)
        .arg("serve")
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()?;
    Pid::from_raw(child.id() as i32).ok_or_else(|| "a process without a number".into())
}

/// Reads a log in CRI's format; a line that is not in it is an error.
pub fn read_log(path: &str) -> Outcome<Vec<LogLine>> {
    let bytes = fs::read(path).map_err(|e| format!("{path}: {e}"))?;
    let text = String::from_utf8_lossy(&bytes);
    let mut lines = Vec::new();
    for line in text.lines() {
        let mut parts = line.splitn(4, ' ').map(str::to_owned);
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(time), Some(stream), Some(tag), Some(text)) => lines.push(LogLine { time, stream, tag, text }),
            _ => return Err(format!("{path}: {line:?} is no line of a CRI log").into()),
        }
    }
    Ok(lines)
}
