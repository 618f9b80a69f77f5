//! Effects on a pod as a whole: set up, tear down, delete.

use super::container::remove_dir;
use super::steps::Steps;
use super::{PodEffects, blocking, failed};
use crate::cgroup::{PodCgroup, ShimCgroup};
use crate::config;
use crate::network::PodIdentity;
use crate::oci;
use crate::shim_client::{ShimClient, StartError};
use knarr_model::input::PodNetwork;
use knarr_model::plan::{FdIndex, PodPlan};
use knarr_model::pod::{Found, SavedPod, ShimFacts};
use knarr_model::{Error, PodId};
use std::os::fd::AsFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Bytes of a pod's /dev/shm, as containerd and CRI-O give it.
const SHM_BYTES: u64 = 64 << 20;

/// The shim must outlive what it watches: only the kernel's own are killed later.
const SHIM_OOM_SCORE: i32 = -999;

impl PodEffects {
    pub(super) fn run_dir(&self) -> PathBuf {
        self.world.paths.pods_run_dir.join(self.id.as_str())
    }

    fn identity(&self) -> PodIdentity {
        PodIdentity {
            id: self.id.clone(),
            name: self.spec.name.clone(),
            namespace: self.spec.namespace.clone(),
            uid: self.spec.uid.clone(),
            annotations: self.spec.annotations.clone(),
            cgroup_path: self.pod_cgroup().map(|c| c.path()).unwrap_or_default(),
            ports: self.spec.port_mappings.clone(),
            dns: self.spec.dns.clone(),
        }
    }

    /// Cgroup, shim, namespaces, network. What was made is undone when a step fails.
    pub(super) async fn set_up(self: &Arc<Self>) -> Result<PodNetwork, Error> {
        match self.try_set_up().await {
            Ok(network) => Ok(network),
            Err(error) => {
                for left in [self.tear_down().await, self.delete().await] {
                    if let Err(left) = left {
                        tracing::warn!(pod = self.id.as_str(), error = %left, "undoing a failed set-up");
                    }
                }
                Err(error.context(format_args!("set up pod {}/{}", self.spec.namespace, self.spec.name)))
            }
        }
    }

    async fn try_set_up(self: &Arc<Self>) -> Result<PodNetwork, Error> {
        let mut steps = Steps::start();
        self.world.cgroups.create_pod(&self.spec.cgroup_parent, &self.id).await?;
        steps.done("cgroup");
        let (this, run_dir) = (self.clone(), self.run_dir());
        let run_dir_fd = blocking(move || {
            let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&run_dir);
            made.map_err(failed(format_args!("make {}", run_dir.display())))?;
            if !this.spec.log_directory.is_empty() {
                let made = std::fs::DirBuilder::new().recursive(true).mode(0o755).create(&this.spec.log_directory);
                made.map_err(failed(format_args!("make the log directory {}", this.spec.log_directory)))?;
            }
            let opened = rustix::fs::open(
                &run_dir,
                rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC,
                rustix::fs::Mode::empty(),
            );
            opened.map_err(|e| failed(format_args!("open {}", run_dir.display()))(e.into()))
        })
        .await??;
        steps.done("directories");
        let (shim, events) = ShimClient::spawn(self.world.shim.as_fd(), &self.id, &self.run_dir(), None).await?;
        steps.done("shim");
        self.live().shim = Some(shim.clone());
        self.follow(events);
        self.place_shim(&shim);
        let base = self.world.base_mount_ns.try_clone().map_err(failed("duplicate the base mount namespace"))?;
        let up = shim.set_up_pod(self.plan(), vec![base, run_dir_fd]).await.map_err(|error| match error {
            StartError::Failed(failure) => Error::internal(failure.to_string()),
            StartError::Shim(error) => error,
        })?;
        // A shim that does not know them must not run the pod among the host's users.
        if up.user.is_none() && self.spec.namespaces.user.is_some() {
            return Err(Error::internal("knarr-shim has made no user namespace: it is older than this daemon"));
        }
        self.live().user_ns = up.user.map(Arc::new);
        steps.done("namespaces");
        let mut network = PodNetwork::default();
        if let Some(netns) = up.net {
            network.ips = self.world.network.attach(&self.identity(), netns).await?.ips;
            steps.done("network");
        }
        tracing::debug!(pod = self.id.as_str(), steps = %steps, "set up");
        Ok(network)
    }

    /// The cgroup that the shim lies in, where the configuration wants it charged to its pod.
    fn shim_within(&self) -> Result<Option<PodCgroup>, Error> {
        match self.world.config.shim.cgroup {
            config::ShimCgroup::Runtime => Ok(None),
            config::ShimCgroup::Pod => self.pod_cgroup().map(Some),
        }
    }

    fn shim_cgroup(&self) -> Result<ShimCgroup, Error> {
        Ok(self.world.cgroups.shim(&self.id, self.shim_within()?.as_ref()))
    }

    /// Moves the shim out of the daemon's own cgroup. Where that fails it stays there, which harms nobody but the
    /// accounting.
    ///
    /// Beside the set-up, not within it: the cgroup2 hierarchy waits for an RCU grace period (13 ms measured).
    fn place_shim(self: &Arc<Self>, shim: &ShimClient) {
        let (this, pid) = (self.clone(), shim.shim().pid);
        let placing = tokio::spawn(async move {
            let placed = match this.shim_cgroup() {
                Ok(cgroup) => cgroup.take_in(pid).await,
                Err(error) => Err(error),
            };
            if let Err(error) = placed {
                tracing::debug!(pod = this.id.as_str(), %error, "the shim stays in the daemon's cgroup");
            }
        });
        // A teardown waits for it: else the cgroup would be made after it was removed.
        self.live().placing = Some(placing);
    }

    /// resolv.conf, hosts and hostname. The pod's address is not known yet when they are made.
    fn files(&self) -> Vec<(Vec<u8>, Vec<u8>)> {
        let of_host = |path: &str| std::fs::read(path).unwrap_or_default();
        let hostname = if self.spec.hostname.is_empty() { &self.world.facts.hostname } else { &self.spec.hostname };
        oci::pod::files(&self.spec, hostname, &[], &of_host("/etc/resolv.conf"), &of_host("/etc/hosts"))
    }

    fn plan(&self) -> PodPlan {
        let spec = &self.spec;
        let namespaces = spec.namespaces;
        PodPlan {
            id: self.id.clone(),
            base_mount_ns: FdIndex(0),
            run_dir: FdIndex(1),
            new_net: !namespaces.host_network,
            new_ipc: !namespaces.host_ipc,
            // A pod on the host's network has the host's name, as Kubernetes defines it.
            new_uts: !namespaces.host_network,
            shared_pid: namespaces.shared_pid,
            hostname: spec.hostname.clone().into_bytes(),
            sysctls: oci::pod::sysctls(spec),
            shm_size: if namespaces.host_ipc { 0 } else { SHM_BYTES },
            files: self.files(),
            shim_oom_score_adj: SHIM_OOM_SCORE,
            user: namespaces.user,
        }
    }

    /// Network, shim with its namespaces, cgroup: all of them, whatever fails.
    pub(super) async fn tear_down(self: &Arc<Self>) -> Result<(), Error> {
        let (mut problems, mut steps) = (Vec::new(), Steps::start());
        self.ending.store(true, Ordering::Release);
        let (shim, placing) = {
            let mut live = self.live();
            live.user_ns = None;
            (live.shim.take(), live.placing.take())
        };
        if let Some(placing) = placing {
            let _ = placing.await;
        }
        steps.done("shim's move");
        if !self.spec.namespaces.host_network
            && let Err(error) = self.world.network.detach(&self.identity()).await
        {
            problems.push(error.message);
        }
        steps.done("network");
        match shim {
            Some(shim) => problems.extend(shim.shutdown(true).await.err().map(|e| e.message)),
            None => end_shim(&self.id, &self.run_dir()).await,
        }
        steps.done("shim");
        // The shim's may lie within the pod's, so it goes first.
        let shim = match self.shim_cgroup() {
            Ok(cgroup) => cgroup.remove().await,
            Err(error) => Err(error),
        };
        let pod = match self.pod_cgroup() {
            Ok(cgroup) => cgroup.remove().await,
            Err(error) => Err(error),
        };
        problems.extend([shim, pod].into_iter().filter_map(Result::err).map(|e| e.message));
        steps.done("cgroups");
        tracing::debug!(pod = self.id.as_str(), steps = %steps, "torn down");
        if problems.is_empty() {
            Ok(())
        } else {
            Err(Error::internal(format!("tear down pod {}: {}", self.id.short(), problems.join("; "))))
        }
    }

    /// The pod's directories.
    pub(super) async fn delete(&self) -> Result<(), Error> {
        let run_dir = self.run_dir();
        blocking(move || remove_dir(&run_dir)).await?
    }
}

impl PodEffects {
    /// Finds the shim of a recorded pod again and takes over what it holds; `None` if there is none.
    pub(crate) async fn reconnect(self: &Arc<Self>, saved: &SavedPod) -> Option<ShimFacts> {
        for container in &saved.containers {
            let resolved = &container.resolved;
            let images = resolved.volume_images.iter().chain([&resolved.image_id]);
            let leases = images.filter_map(|id| self.world.images.store().hold(id)).collect();
            self.live().containers.entry(container.id.clone()).or_default().leases = leases;
        }
        let (shim, events) = match ShimClient::connect(&self.id, &self.run_dir()).await {
            Ok(found) => found,
            Err(error) => {
                tracing::debug!(pod = self.id.as_str(), %error, "no shim answers");
                return None;
            }
        };
        let known = match shim.list_containers().await {
            Ok(known) => known,
            Err(error) => {
                tracing::warn!(pod = self.id.as_str(), %error, "the shim does not say what it has");
                return None;
            }
        };
        let mut facts = ShimFacts::new();
        let Some(up) = known.pod else {
            tracing::warn!(pod = self.id.as_str(), "its shim had not finished setting the pod up");
            return None;
        };
        self.live().user_ns = up.user.map(Arc::new);
        for (found, pidfd) in known.containers {
            let cgroup = self.container_cgroup(&found.id).ok();
            {
                let mut live = self.live();
                let container = live.containers.entry(found.id.clone()).or_default();
                container.cgroup = cgroup;
                container.pidfd = pidfd.map(Arc::new);
            }
            let exit = match found.exit {
                Some(exit) => Some((exit, self.oom_killed(&found.id).await)),
                None => None,
            };
            facts.push((found.id, Found { pid: found.pid, started_at: found.started_at, exit }));
        }
        self.live().shim = Some(shim);
        self.follow(events);
        Some(facts)
    }
}

/// Ends the shim of a pod that nobody is connected to. There may be none; then there is nothing to end.
pub(crate) async fn end_shim(pod: &PodId, run_dir: &Path) {
    let Ok((shim, _)) = ShimClient::connect(pod, run_dir).await else { return };
    if let Err(error) = shim.shutdown(true).await {
        tracing::warn!(pod = pod.as_str(), %error, "the shim does not end");
    }
}
