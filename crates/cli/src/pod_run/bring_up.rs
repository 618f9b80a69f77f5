//! Gets one pod going: sandbox, volumes, /etc/hosts, and its containers one by one.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::time::Duration;

use knarr_cri_api::v1;

use super::user_ids;
use crate::client::Client;
use crate::failure::Failure;
use crate::image_pull::{PullOrder, pull};
use crate::machine;
use crate::pod_files::{PodFiles, alias_lines, hosts_content, sub_path_pin, volume_files};
use crate::pod_manifest::container_config::{Ingredients, container_config, log_path};
use crate::pod_manifest::environment::{self, Facts};
use crate::pod_manifest::expand::expand;
use crate::pod_manifest::sandbox_config::{Surroundings, sandbox_config};
use crate::pod_manifest::schema::{
    Container, DataRef, Manifest, Pod, Propagation, PullPolicy, RecursiveReadOnly, Role, Volume, VolumeMount,
};

/// Images by the name in the manifest, as the runtime has them.
pub type Images = HashMap<String, v1::Image>;

/// How often an init container is looked at while it is waited for. It is what the next one waits at most beyond need.
const INIT_POLL: Duration = Duration::from_millis(50);

/// Pulls what the pods need by their policies, each image once.
///
/// # Errors
/// An image that may not be pulled and is not there, or a pull that failed.
pub async fn fetch_images(client: &Client, manifest: &Manifest, quiet: bool) -> Result<Images, Failure> {
    let mut wanted: BTreeMap<&str, PullPolicy> = BTreeMap::new();
    for pod in &manifest.pods {
        let of_containers = pod.all_containers().map(|container| (container.image.as_str(), container.pull));
        let of_volumes = pod.volumes.iter().filter_map(|(_, volume)| match volume {
            Volume::Image { reference, pull } => Some((reference.as_str(), *pull)),
            _ => None,
        });
        for (image, policy) in of_containers.chain(of_volumes) {
            let strictest = wanted.entry(image).or_insert(policy);
            if policy == PullPolicy::Always {
                *strictest = policy;
            }
        }
    }
    let mut images = Images::new();
    for (name, policy) in wanted {
        let present = client.image(name).await?.map(|(image, _)| image);
        let image = match (policy, present) {
            (PullPolicy::IfNotPresent | PullPolicy::Never, Some(image)) => image,
            (PullPolicy::Never, None) => {
                return Err(Failure::not_found(format!(
                    "image {name} is not here, and imagePullPolicy Never forbids to pull it"
                ))
                .with_hint("`knarr import FILE` or `knarr pull IMAGE` brings it"));
            }
            (PullPolicy::Always, _) | (PullPolicy::IfNotPresent, None) => fetch(client, name, quiet).await?,
        };
        images.insert(name.to_owned(), image);
    }
    Ok(images)
}

async fn fetch(client: &Client, name: &str, quiet: bool) -> Result<v1::Image, Failure> {
    let order = PullOrder { image: name.to_owned(), quiet, ..PullOrder::default() };
    let id = pull(client, &order).await?;
    let image = client.image(&id).await?;
    let (image, _) =
        image.ok_or_else(|| Failure::not_found(format!("image {name} was removed right after its pull")))?;
    Ok(image)
}

/// A pod that is being run.
pub struct PodRun<'a> {
    client: Client,
    manifest: &'a Manifest,
    images: &'a Images,
    /// As the manifest has it.
    pub pod: &'a Pod,
    /// Its uid, by which all of it is found again.
    pub uid: String,
    /// Its directory.
    pub files: PodFiles,
    /// The sandbox's id, once there is one.
    pub sandbox_id: String,
    config: v1::PodSandboxConfig,
    facts: Facts,
    /// The ids that the pod has where they are not the host's.
    users: Option<v1::UserNamespace>,
    volumes: HashMap<String, PathBuf>,
    hosts: Option<PathBuf>,
    recursive_read_only: bool,
}

impl<'a> PodRun<'a> {
    /// Prepares a pod without doing anything that would have to be undone.
    pub fn new(
        client: &Client,
        cli_dir: &Path,
        manifest: &'a Manifest,
        images: &'a Images,
        pod: &'a Pod,
    ) -> Result<Self, Failure> {
        let uid = machine::new_uid().map_err(|error| Failure::io("draw a random uid", &error))?;
        let files = PodFiles::of(cli_dir, &uid).ok_or_else(|| Failure::new("the new uid is no file name"))?;
        let surroundings = Surroundings { uid: &uid, log_directory: &files.logs(), host_dns: &machine::dns() };
        let config = sandbox_config(pod, &surroundings);
        let facts = Facts {
            uid: uid.clone(),
            pod_ips: Vec::new(),
            node_name: machine::node_name(),
            node_memory_bytes: machine::memory_bytes(),
            node_cpus: machine::cpus(),
        };
        Ok(Self {
            client: client.clone(),
            manifest,
            images,
            pod,
            uid,
            files,
            sandbox_id: String::new(),
            config,
            facts,
            users: None,
            volumes: HashMap::new(),
            hosts: None,
            recursive_read_only: false,
        })
    }

    /// Makes files, volumes and the sandbox. After an error the caller removes everything by uid.
    pub async fn make_sandbox(&mut self) -> Result<(), Failure> {
        let pod_name = &self.pod.name;
        self.files.create().map_err(|error| self.file_failure("make the pod's directory", &error))?;
        self.prepare_volumes()?;
        for container in self.pod.all_containers() {
            self.files
                .create_log_directory(&container.name)
                .map_err(|error| self.file_failure("make a log directory", &error))?;
        }
        if self.pod.own_users {
            let users = user_ids::choose(&self.client, pod_name, &self.uid).await?;
            let linux = self.config.linux.get_or_insert_default();
            let context = linux.security_context.get_or_insert_default();
            context.namespace_options.get_or_insert_default().userns_options = Some(users.clone());
            self.users = Some(users);
        }
        let message =
            v1::RunPodSandboxRequest { config: Some(self.config.clone()), runtime_handler: self.pod.handler.clone() };
        let response = self.client.run_pod_sandbox(format!("start pod {pod_name}"), message).await?;
        self.sandbox_id = response.pod_sandbox_id;
        self.facts.pod_ips = self.pod_ips().await?;
        self.recursive_read_only = self.handler_makes_recursive_read_only().await?;
        self.hosts = self.write_hosts()?;
        Ok(())
    }

    /// The connection that the pod is run over.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// Whether the sandbox can still hold new containers. While the runtime does not answer it is taken to.
    pub async fn is_ready(&self) -> bool {
        match self.client.pod(&self.sandbox_id).await {
            Ok(status) => status.is_some_and(|status| status.state == v1::PodSandboxState::SandboxReady as i32),
            Err(_) => true,
        }
    }

    fn file_failure(&self, action: &str, error: &std::io::Error) -> Failure {
        Failure::io(format!("{action} for pod {}", self.pod.name), error)
    }

    fn prepare_volumes(&mut self) -> Result<(), Failure> {
        let fs_group = self.pod.security.fs_group.and_then(|group| u32::try_from(group).ok());
        for (name, volume) in &self.pod.volumes {
            let wrong = |message: String| {
                Failure::new(format!("cannot make volume {name} of pod {}: {message}", self.pod.name))
            };
            let files = match volume {
                Volume::Files { secret, name, items, default_mode, optional } => {
                    let source = DataRef { secret: *secret, name: name.clone(), optional: *optional };
                    match environment::data(self.manifest, self.pod, &source).map_err(&wrong)? {
                        Some(data) => volume_files(data, items, *default_mode, *optional).map_err(&wrong)?,
                        None => Vec::new(),
                    }
                }
                _ => Vec::new(),
            };
            let path = self.files.prepare_volume(name, volume, &files, fs_group);
            let path =
                path.map_err(|error| Failure::io(format!("make volume {name} of pod {}", self.pod.name), &error))?;
            self.volumes.extend(path.map(|path| (name.clone(), path)));
        }
        Ok(())
    }

    async fn pod_ips(&self) -> Result<Vec<String>, Failure> {
        let status = self.client.pod(&self.sandbox_id).await?;
        let network = status.and_then(|status| status.network).unwrap_or_default();
        let all = std::iter::once(network.ip).chain(network.additional_ips.into_iter().map(|ip| ip.ip));
        Ok(all.filter(|ip| !ip.is_empty()).collect())
    }

    /// Asked only where a mount depends on the answer.
    async fn handler_makes_recursive_read_only(&self) -> Result<bool, Failure> {
        let mut mounts = self.pod.all_containers().flat_map(|container| &container.mounts);
        if mounts.all(|mount| mount.recursive_read_only == RecursiveReadOnly::Disabled) {
            return Ok(false);
        }
        let status = self.client.status("ask what the runtime can do", v1::StatusRequest { verbose: false }).await?;
        let handler = status.runtime_handlers.into_iter().find(|handler| handler.name == self.pod.handler);
        Ok(handler.and_then(|handler| handler.features).is_some_and(|features| features.recursive_read_only_mounts))
    }

    /// A pod with the host's network has the host's file, which is left to the runtime unless aliases are to be added.
    fn write_hosts(&self) -> Result<Option<PathBuf>, Failure> {
        let aliases = &self.pod.host_aliases;
        let content = if !self.pod.host.network {
            hosts_content(&self.facts.pod_ips, &self.pod.hostname, aliases)
        } else if !aliases.is_empty() {
            let of_host = std::fs::read_to_string("/etc/hosts").unwrap_or_default();
            format!("{of_host}\n{}", alias_lines(aliases))
        } else {
            return Ok(None);
        };
        self.files.write_hosts(&content).map(Some).map_err(|error| self.file_failure("write /etc/hosts", &error))
    }

    /// Creates one container and returns its id.
    pub async fn create_container(&self, container: &Container, attempt: u32) -> Result<String, Failure> {
        let named = format!("container {} of pod {}", container.name, self.pod.name);
        let wrong = |message: String| Failure::new(format!("cannot create {named}: {message}"));
        let image = self.images.get(&container.image);
        let image = image.ok_or_else(|| wrong(format!("image {} was not fetched", container.image)))?;
        let environment = environment::environment(self.manifest, self.pod, container, &self.facts).map_err(&wrong)?;
        let mut mounts = Vec::new();
        for (number, mount) in container.mounts.iter().enumerate() {
            mounts.push(self.mount(container, attempt, number, mount, &environment).map_err(&wrong)?);
        }
        if let Some(hosts) = &self.hosts
            && !container.mounts.iter().any(|mount| mount.path.trim_end_matches('/') == "/etc/hosts")
        {
            mounts.push(v1::Mount {
                container_path: "/etc/hosts".to_owned(),
                host_path: hosts.to_string_lossy().into_owned(),
                ..v1::Mount::default()
            });
        }
        let ingredients = Ingredients { facts: &self.facts, image, environment: &environment, mounts, attempt };
        let mut config = container_config(self.pod, container, ingredients).map_err(&wrong)?;
        self.take_into_user_namespace(&mut config);
        let message = v1::CreateContainerRequest {
            pod_sandbox_id: self.sandbox_id.clone(),
            config: Some(config),
            sandbox_config: Some(self.config.clone()),
        };
        let response = self.client.create_container(format!("create {named}"), message).await?;
        Ok(response.container_id)
    }

    /// The container is in its pod's user namespace, and what root owns in a volume its root owns.
    fn take_into_user_namespace(&self, config: &mut v1::ContainerConfig) {
        let Some(users) = &self.users else { return };
        for mount in &mut config.mounts {
            (mount.uid_mappings, mount.gid_mappings) = (users.uids.clone(), users.gids.clone());
        }
        let context = config.linux.get_or_insert_default().security_context.get_or_insert_default();
        context.namespace_options.get_or_insert_default().userns_options = Some(users.clone());
    }

    fn mount(
        &self,
        container: &Container,
        attempt: u32,
        number: usize,
        mount: &VolumeMount,
        environment: &[(String, String)],
    ) -> Result<v1::Mount, String> {
        let recursive_read_only = match (mount.recursive_read_only, self.recursive_read_only) {
            (RecursiveReadOnly::Disabled, _) | (RecursiveReadOnly::IfPossible, false) => false,
            (RecursiveReadOnly::Enabled | RecursiveReadOnly::IfPossible, true) => true,
            (RecursiveReadOnly::Enabled, false) => {
                return Err(format!("{}: the runtime cannot make mounts read-only all the way down", mount.path));
            }
        };
        let propagation = match mount.propagation {
            Propagation::None => v1::MountPropagation::PropagationPrivate,
            Propagation::HostToContainer => v1::MountPropagation::PropagationHostToContainer,
            Propagation::Bidirectional => v1::MountPropagation::PropagationBidirectional,
        };
        let sub_path = if mount.expand_sub_path {
            let lookup =
                |name: &str| environment.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str());
            expand(&mount.sub_path, lookup)
        } else {
            mount.sub_path.clone()
        };
        let mut answer = v1::Mount {
            container_path: mount.path.clone(),
            readonly: mount.read_only,
            recursive_read_only,
            propagation: propagation as i32,
            ..v1::Mount::default()
        };
        if let Some(Volume::Image { reference, .. }) = self.pod.volume(&mount.volume) {
            let image = self.images.get(reference).map_or(reference, |image| &image.id);
            answer.image = Some(v1::ImageSpec {
                image: image.clone(),
                user_specified_image: reference.clone(),
                ..v1::ImageSpec::default()
            });
            answer.image_sub_path = sub_path;
            answer.readonly = true;
            return Ok(answer);
        }
        let volume = self.volumes.get(&mount.volume).ok_or_else(|| format!("volume {} was not made", mount.volume))?;
        let path = if sub_path.is_empty() {
            volume.clone()
        } else {
            let pin = sub_path_pin(&container.name, attempt, number);
            let pinned = self.files.pin_sub_path(volume, &sub_path, &pin);
            pinned.map_err(|error| format!("{}: part {sub_path:?} of volume {}: {error}", mount.path, mount.volume))?
        };
        answer.host_path = path.to_string_lossy().into_owned();
        Ok(answer)
    }

    /// Starts a created container.
    pub async fn start_container(&self, container: &Container, id: &str) -> Result<(), Failure> {
        let message = v1::StartContainerRequest { container_id: id.to_owned() };
        let action = format!("start container {} of pod {}", container.name, self.pod.name);
        self.client.start_container(action, message).await.map(|_| ())
    }

    /// Removes an earlier attempt of a container and what was pinned for it.
    pub async fn remove_container(&self, container: &Container, id: &str, attempt: u32) -> Result<(), Failure> {
        let message = v1::RemoveContainerRequest { container_id: id.to_owned() };
        let action = format!("remove attempt {attempt} of container {}", container.name);
        self.client.remove_container(action, message).await?;
        let unpinned = self.files.unpin_sub_paths(&container.name, attempt);
        unpinned.map_err(|error| self.file_failure("unmount parts of volumes", &error))
    }

    /// Where the container's log is.
    pub fn log_file(&self, container: &Container, attempt: u32) -> PathBuf {
        self.files.logs().join(log_path(&container.name, attempt))
    }

    /// Creates all containers without starting any.
    pub async fn create_all(&self) -> Result<(), Failure> {
        for container in self.pod.all_containers() {
            self.create_container(container, 0).await?;
        }
        Ok(())
    }

    /// Starts everything once and waits for the init containers; for a pod that nobody stays with.
    pub async fn start_all(&self) -> Result<(), Failure> {
        for container in self.pod.all_containers() {
            let id = self.create_container(container, 0).await?;
            self.start_container(container, &id).await?;
            if container.role == Role::Init {
                self.wait_for_init(container, &id).await?;
            }
        }
        Ok(())
    }

    async fn wait_for_init(&self, container: &Container, id: &str) -> Result<(), Failure> {
        let named = format!("init container {} of pod {}", container.name, self.pod.name);
        wait_for_exit(&self.client, id, &named).await.and_then(|code| match code {
            0 => Ok(()),
            code => Err(Failure::new(format!("{named} failed with exit code {code}"))),
        })
    }
}

/// Waits until a container has ended and returns its exit code.
pub async fn wait_for_exit(client: &Client, id: &str, named: &str) -> Result<i32, Failure> {
    loop {
        let status = client.container(id).await?;
        let Some(status) = status else {
            return Err(Failure::not_found(format!("{named} was removed by somebody else")));
        };
        if status.state == v1::ContainerState::ContainerExited as i32 {
            return Ok(status.exit_code);
        }
        tokio::time::sleep(INIT_POLL).await;
    }
}
