//! The daemon's life: log, check the node, build the rooms, take pods over, announce, serve, drain.

mod notify;
mod requirements;
mod rooms;
mod socket;

use crate::cgroup::Cgroups;
use crate::clock::Clock;
use crate::config::{Config, LogFormat};
use crate::effects::World;
use crate::network::Network;
use crate::node::Node;
use crate::records::Records;
use crate::recovery;
use crate::rpc::deadline::DeadlineLayer;
use crate::rpc::image::ImageServer;
use crate::rpc::runtime::Runtime;
use crate::streaming::Streams;
use knarr_cri_api::knarr::images_server::ImagesServer;
use knarr_cri_api::v1::image_service_server::ImageServiceServer;
use knarr_cri_api::v1::runtime_service_server::RuntimeServiceServer;
use knarr_image::Images;
use knarr_image::registry::Registry;
use knarr_image::store::Store;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio_stream::wrappers::UnixListenerStream;

/// The largest request and answer in bytes: what kubelet's and crictl's own clients take.
const MESSAGE_BYTES_MAX: usize = 16 << 20;

/// Threads for what may block: layer appliers, mounts, record writes, netlink. A start of 32 pods at once uses most.
const BLOCKING_THREADS_MAX: usize = 128;

/// Runs the daemon until SIGTERM or SIGINT. Pods go on running after its end.
pub fn run(config: Config) -> Result<(), String> {
    // Before any thread allocates: what a pull needed for its buffers goes back to the kernel.
    knarr_sys::memory::return_large_buffers();
    start_log(&config)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .thread_name("knarr")
        .build()
        .map_err(|e| format!("start the async runtime: {e}"))?;
    let result = runtime.block_on(serve(config));
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

fn start_log(config: &Config) -> Result<(), String> {
    let level =
        ["knarr_daemon", "knarr_image", "knarr_streaming"].map(|room| format!("{room}={}", config.log.level.as_str()));
    let level = tracing_subscriber::EnvFilter::new(format!("info,{}", level.join(",")));
    let log = tracing_subscriber::fmt().with_env_filter(level).with_writer(std::io::stderr).with_target(false);
    let started = match config.log.format {
        LogFormat::Text => log.with_ansi(rustix::termios::isatty(std::io::stderr())).try_init(),
        LogFormat::Json => log.json().try_init(),
    };
    started.map_err(|e| format!("start the log: {e}"))
}

async fn serve(config: Config) -> Result<(), String> {
    requirements::check()?;
    let paths = config.paths();
    for dir in [&paths.state_dir, &paths.run_dir, &paths.pods_run_dir, &paths.uppers] {
        make_private(dir)?;
    }
    // Two daemons on one state would each undo what the other does.
    let _lock = socket::lock(&paths.run_dir)?;
    let deadline = config.limits.shutdown_deadline.0;
    // Before the node is touched: a port that is taken or a certificate that is none is a mistake in the configuration.
    let streams = Streams::bind(&config).await?;
    let (node, listener) = start_node(config).await?;
    tracing::info!(
        socket = %paths.socket.display(),
        streaming = %streams.address(),
        version = env!("CARGO_PKG_VERSION"),
        "serving"
    );
    notify::ready();
    let served = serve_until_told(node.clone(), streams, listener, deadline).await;
    notify::stopping();
    if let Err(error) = node.world().network.close().await {
        tracing::warn!(%error, "cannot take the empty bridge away");
    }
    node.world().cgroups.close().await;
    let _ = std::fs::remove_file(&paths.socket);
    served
}

fn make_private(dir: &Path) -> Result<(), String> {
    use std::os::unix::fs::PermissionsExt;
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
    // A directory that was there before may be open to others; what lies in it must not be.
    let closed = made.and_then(|()| std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700)));
    closed.map_err(|e| format!("make {}: {e}", dir.display()))
}

/// Builds everything once, in order, and takes the pods of the last run over.
async fn start_node(config: Config) -> Result<(Arc<Node>, tokio::net::UnixListener), String> {
    let paths = config.paths();
    let records = Records::open(&paths.records).map_err(|e| format!("open {}: {e}", paths.records.display()))?;
    let (cgroups, warnings) = Cgroups::open(&rooms::cgroups(&config)).await.map_err(|e| format!("cgroups: {e}"))?;
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    let network = Network::open(rooms::network(&config)).await.map_err(|e| format!("network: {e}"))?;
    let (store, problems) =
        Store::open(&paths.state_dir, rooms::store(&config)).map_err(|e| format!("image store: {e}"))?;
    for problem in problems {
        tracing::warn!(what = problem.what, why = problem.why, "the image store had something broken");
    }
    let registry = Registry::new(rooms::registry(&config)).map_err(|e| format!("registry client: {e}"))?;
    let images = Images::new(store, registry, &rooms::pulls(&config));
    let facts = rooms::facts(&config)?;
    let world =
        World::new(config, images, network, Arc::new(cgroups), records.clone(), facts).map_err(|e| e.to_string())?;
    tracing::info!(driver = %world.cgroups.driver(), parent = world.cgroups.parent(), "cgroups");
    if let Err(error) = world.cgroups.prepare_for_shims().await {
        tracing::warn!(%error, "shims stay in the daemon's cgroup until theirs can be made");
    }
    let (loaded, newest) = recovery::load(&records)?;
    let node = Node::new(Clock::starting_after(newest), records, world);
    recovery::recover(&node, loaded).await;
    // Every recovered container holds its image again: what nobody holds may go now.
    node.world().images.store().settle();
    let socket_config = &node.world().config.socket;
    let listener = socket::bind(&paths.socket, socket_config.mode.0, &socket_config.group)?;
    Ok((node, listener))
}

async fn serve_until_told(
    node: Arc<Node>,
    streams: Arc<Streams>,
    listener: tokio::net::UnixListener,
    deadline: Duration,
) -> Result<(), String> {
    let runtime = RuntimeServiceServer::new(Runtime::new(node.clone(), streams.clone()))
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let images = ImageServer::new(&node);
    let image_service = ImageServiceServer::new(images.clone())
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let own = ImagesServer::new(images).max_decoding_message_size(MESSAGE_BYTES_MAX);
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let told = async move {
        let name = told_to_stop().await;
        tracing::info!(signal = name, "draining");
        let _ = stop.send(true);
    };
    let server = tonic::transport::Server::builder()
        .layer(DeadlineLayer)
        .add_service(runtime)
        .add_service(image_service)
        .add_service(own)
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), told);
    let mut draining = stopped.clone();
    let streaming = async move {
        let told = async {
            let _ = draining.wait_for(|stopped| *stopped).await;
        };
        streams.serve(told).await;
        Ok(())
    };
    let mut overdue = stopped;
    let too_late = async move {
        let _ = overdue.wait_for(|stopped| *stopped).await;
        tokio::time::sleep(deadline).await;
    };
    tokio::select! {
        result = async { tokio::try_join!(server, streaming) } => match result {
            Ok(((), ())) => Ok(()),
            Err(e) => Err(format!("serve: {e}")),
        },
        () = too_late => {
            tracing::warn!(seconds = deadline.as_secs(), "requests still under way at the deadline are given up");
            Ok(())
        }
    }
}

async fn told_to_stop() -> &'static str {
    let (Ok(mut term), Ok(mut int)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = term.recv() => "SIGTERM",
        _ = int.recv() => "SIGINT",
    }
}
