//! Exec, attach and port-forward: what a client that brings a URL back gets to do. The HTTP server and its protocols are
//! `knarr-streaming`'s; here is what a session does with pods and processes.

mod attach;
mod backlog;
mod descriptor;
mod exec;
mod place;
mod port_forward;
mod pump;
mod tls;

pub(crate) use place::must_run;

use crate::config::{Config, Streaming};
use crate::pod_task::PodHandle;
use knarr_model::{ContainerId, Error, ErrorKind};
use knarr_streaming::server::{Command, CommandSession, Connect, Offer, PortForward, Server, Settings, TooManyTokens};
use knarr_streaming::{CommandEnd, Wanted};
use place::Place;
use serde_json::json;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;

/// How long a URL waits for its client: kubelet and crictl connect at once.
const TOKEN_LIFETIME: Duration = Duration::from_secs(60);

/// URLs that wait for their clients; as many as containerd's and CRI-O's servers keep.
const TOKENS_MAX: usize = 1000;

/// One session for so many files that the daemon may have open: a session takes at most five, and no more than half of
/// them may go to sessions, else somebody who opens many would keep pods from starting.
const OPEN_FILES_PER_SESSION: u64 = 10;

/// Sessions that go on behind a connection, for each connection that there may be: one beside its client's, one that a
/// client has left and whose process is being ended.
const SESSIONS_PER_CONNECTION: usize = 2;

/// The streaming server with what its sessions need.
#[derive(Debug)]
pub struct Streams {
    server: Server,
    /// One permit for each session that goes on, so that the end can wait for all.
    sessions: Arc<Semaphore>,
    sessions_max: u32,
    exec_drain: Duration,
    tls: bool,
    base_url: String,
}

impl Streams {
    /// Listens. An error names the configuration's key.
    pub async fn bind(config: &Config) -> Result<Arc<Self>, String> {
        let streaming = config.streaming.clone();
        let settings = tokio::task::spawn_blocking(move || settings(&streaming));
        let mut settings = settings.await.map_err(|e| format!("streaming: {e}"))??;
        let sessions_max = affordable(settings.sessions_max, open_files());
        if sessions_max < settings.sessions_max {
            let asked = settings.sessions_max;
            tracing::info!(asked, sessions_max, "the limit of open files allows fewer streaming sessions");
            settings.sessions_max = sessions_max;
        }
        let (address, tls) = (settings.address, settings.tls.is_some());
        let sessions = settings.sessions_max * SESSIONS_PER_CONNECTION;
        let server = Server::bind(settings).await;
        let server = server.map_err(|e| format!("streaming.address, streaming.port: listen on {address}: {e}"))?;
        Ok(Arc::new(Self {
            server,
            sessions: Arc::new(Semaphore::new(sessions)),
            sessions_max: u32::try_from(sessions).unwrap_or(u32::MAX),
            exec_drain: config.limits.exec_drain.0,
            tls,
            base_url: config.streaming.base_url.clone(),
        }))
    }

    /// The address that it listens on.
    pub fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// What StatusResponse.info says of it.
    pub fn info(&self) -> String {
        json!({ "address": self.address().to_string(), "tls": self.tls, "baseUrl": self.base_url }).to_string()
    }

    /// Serves until `stop` resolves, then ends all sessions and waits until what they had is given back. Commands that
    /// ran are ended; a container that was attached to goes on.
    pub async fn serve(&self, stop: impl Future<Output = ()> + Send) {
        self.server.serve(stop).await;
        // Closed by nobody, so this waits for every session.
        let _ = self.sessions.acquire_many(self.sessions_max).await;
    }

    /// A URL for a command in a container.
    pub fn exec(
        &self,
        pod: PodHandle,
        container: ContainerId,
        cmd: Vec<String>,
        wanted: Wanted,
    ) -> Result<String, Error> {
        let place = Place { pod, container };
        let exec = exec::Exec { place, cmd, tty: wanted.tty, drain: self.exec_drain };
        let run = self.session(move |session| exec.run(session));
        self.offer(Offer::Exec(Command { wanted, run }))
    }

    /// A URL for a container's own streams.
    pub fn attach(&self, pod: PodHandle, container: ContainerId, wanted: Wanted) -> Result<String, Error> {
        let attach = attach::Attach { place: Place { pod, container } };
        let run = self.session(move |session| attach.run(session));
        self.offer(Offer::Attach(Command { wanted, run }))
    }

    /// A URL for connections to a pod.
    pub fn port_forward(&self, pod: PodHandle, ports: Vec<u16>) -> Result<String, Error> {
        let connect: Connect = Arc::new(move |port| {
            let pod = pod.clone();
            Box::pin(async move { port_forward::connect(&pod, port).await })
        });
        self.offer(Offer::PortForward(PortForward { ports, connect }))
    }

    fn offer(&self, offer: Offer) -> Result<String, Error> {
        self.server.offer(offer).map_err(|TooManyTokens(count)| {
            let message = format!("{count} URLs wait for their clients already; try again in a minute");
            Error::new(ErrorKind::ResourceExhausted, message)
        })
    }

    /// Runs a session as a task of its own: it ends what it began also when its client has gone.
    fn session<F>(
        &self,
        run: impl FnOnce(CommandSession) -> F + Send + 'static,
    ) -> Box<dyn FnOnce(CommandSession) -> knarr_streaming::BoxFuture<CommandEnd> + Send>
    where
        F: Future<Output = CommandEnd> + Send + 'static,
    {
        let sessions = self.sessions.clone();
        Box::new(move |session| {
            Box::pin(async move {
                let Ok(permit) = sessions.try_acquire_owned() else {
                    return CommandEnd::Failed("too many sessions are ending; try again in a moment".into());
                };
                let task = tokio::spawn(async move {
                    let end = run(session).await;
                    drop(permit);
                    end
                });
                task.await.unwrap_or_else(|error| CommandEnd::Failed(format!("session: {error}")))
            })
        })
    }
}

/// How many files the daemon may have open; `None` is any number.
fn open_files() -> Option<u64> {
    rustix::process::getrlimit(rustix::process::Resource::Nofile).current
}

fn affordable(sessions: usize, open_files: Option<u64>) -> usize {
    let affordable = open_files.map_or(u64::MAX, |files| (files / OPEN_FILES_PER_SESSION).max(1));
    sessions.min(usize::try_from(affordable).unwrap_or(usize::MAX))
}

fn settings(streaming: &Streaming) -> Result<Settings, String> {
    let ip: IpAddr = streaming.address.parse().map_err(|e| format!("streaming.address: {e}"))?;
    Ok(Settings {
        address: SocketAddr::new(ip, streaming.port),
        base_url: Some(streaming.base_url.clone()).filter(|url| !url.is_empty()),
        tls: tls::server_config(streaming)?,
        idle_timeout: streaming.idle_timeout.0,
        creation_timeout: streaming.creation_timeout.0,
        token_lifetime: TOKEN_LIFETIME,
        tokens_max: TOKENS_MAX,
        sessions_max: streaming.max_sessions as usize,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_leave_half_of_the_open_files_to_the_rest() {
        assert_eq!(affordable(1024, Some(1024)), 102);
        assert_eq!(affordable(1024, Some(1 << 20)), 1024);
        assert_eq!(affordable(1024, None), 1024);
        assert_eq!(affordable(7, Some(3)), 1);
    }

    #[tokio::test]
    async fn a_port_that_is_taken_is_an_error_that_names_its_key() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut config = Config::default();
        config.streaming.port = taken.local_addr().unwrap().port();
        let error = Streams::bind(&config).await.unwrap_err();
        assert!(error.contains("streaming.port") && error.contains(&config.streaming.port.to_string()), "{error}");
    }

    #[test]
    fn the_configuration_becomes_settings() {
        let streaming = Streaming { address: "::1".into(), port: 10010, ..Streaming::default() };
        let made = settings(&streaming).unwrap();
        assert_eq!(made.address, "[::1]:10010".parse().unwrap());
        assert_eq!((made.base_url, made.tls.is_none()), (None, true));
        let streaming = Streaming { base_url: "https://node1:1".into(), ..Streaming::default() };
        assert_eq!(settings(&streaming).unwrap().base_url.as_deref(), Some("https://node1:1"));
    }
}
