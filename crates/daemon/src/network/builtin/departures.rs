//! Pods that have left but whose link may still be there: their addresses return when it is gone, not before.
//!
//! Nobody deletes the link of a pod that stops: RTM_DELLINK takes 25 to 30 ms of waiting for RCU each, while the kernel
//! removes the links of dead network namespaces in batches. Until then the pod's end may still answer for its address,
//! so that the next pod with it would share it. If the link stays, something holds the namespace: after
//! [`HELD_LINK_DEADLINE`] the link is deleted by name and the holder is named.

use super::addresses::Addresses;
use super::links::{self, RTNLGRP_LINK};
use crate::network::netlink::{Frames, NETLINK_ROUTE, Socket};
use knarr_model::{Error, PodId};
use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::io::unix::AsyncFd;

/// How long the kernel gets to remove a link whose pod is gone: it takes 13 to 57 ms after the last of hundreds.
const HELD_LINK_DEADLINE: Duration = Duration::from_secs(5);
/// How long until a link that could not be deleted is tried again.
const RETRY_INTERVAL: Duration = Duration::from_secs(30);
/// How long notifications are listened to when no link is awaited any more: on a busy node the next one is near.
const LINGER_TIME: Duration = Duration::from_secs(1);
/// Bytes of notifications that may wait: about 1.5 KiB each, so 1000 links going at once. An overflow is noticed and
/// made good by asking for each link.
const NOTIFICATION_BYTES: usize = 2 * 1024 * 1024;
/// Processes named as holders of one namespace.
const HOLDERS_MAX: usize = 4;

/// The links that are awaited to go.
#[derive(Debug)]
pub(in crate::network) struct Departures {
    addresses: Arc<Addresses>,
    leaving: Mutex<HashMap<String, Leaving>>,
    wake: tokio::sync::Notify,
}

#[derive(Debug, Clone)]
struct Leaving {
    pod: PodId,
    /// Names the namespace in /proc.
    netns_inode: Option<u64>,
    deadline: Instant,
}

impl Departures {
    pub fn new(addresses: Arc<Addresses>) -> Self {
        Self { addresses, leaving: Mutex::new(HashMap::new()), wake: tokio::sync::Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Leaving>> {
        self.leaving.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the pod's addresses when its link is gone, which may be now. Does not wait.
    pub fn leave(&self, socket: &mut Socket, pod: &PodId, netns_inode: Option<u64>) -> Result<(), Error> {
        let name = super::host_link(pod);
        let leaving = Leaving { pod: pod.clone(), netns_inode, deadline: Instant::now() + HELD_LINK_DEADLINE };
        // Written down before looking: a notification that comes in between finds it.
        self.lock().insert(name.clone(), leaving);
        match links::find(socket, &name) {
            Ok(None) => self.gone(&name),
            Ok(Some(_)) => {
                self.wake.notify_one();
                Ok(())
            }
            Err(refusal) => Err(Error::internal(format!("looking for link {name} of pod {pod}: {refusal}"))),
        }
    }

    /// Whether that link is awaited to go.
    pub fn awaits(&self, name: &str) -> bool {
        self.lock().contains_key(name)
    }

    /// Links that are awaited to go.
    pub fn count(&self) -> usize {
        self.lock().len()
    }

    fn gone(&self, name: &str) -> Result<(), Error> {
        let Some(leaving) = self.lock().remove(name) else { return Ok(()) };
        self.addresses.release(&leaving.pod)
    }

    fn gone_or_log(&self, name: &str) {
        if let Err(error) = self.gone(name) {
            tracing::warn!(link = name, %error, "addresses of a pod that left stay taken");
        }
    }

    /// Waits for links to go until the task is dropped. Listens only while one is awaited: links come and go for reasons
    /// that are none of ours.
    pub async fn watch(self: Arc<Self>) {
        loop {
            self.wake.notified().await;
            match listen() {
                Ok(socket) => self.clone().watch_while_leaving(socket).await,
                Err(error) => {
                    tracing::error!(%error, "no link notifications, asking for the links instead");
                    tokio::time::sleep(RETRY_INTERVAL).await;
                    self.clone().look_again(|_| true).await;
                    self.wake.notify_one();
                }
            }
        }
    }

    async fn watch_while_leaving(self: Arc<Self>, socket: AsyncFd<Socket>) {
        let mut buffer = Vec::new();
        // What went before this socket was there is asked for; what goes from now on is heard.
        self.clone().look_again(|_| true).await;
        loop {
            let (leaving, deadline) = {
                let leaving = self.lock();
                (leaving.len(), leaving.values().map(|one| one.deadline).min())
            };
            let until = deadline.unwrap_or_else(|| Instant::now() + LINGER_TIME);
            tokio::select! {
                ready = socket.readable() => match ready {
                    Ok(mut ready) => match self.drain(socket.get_ref(), &mut buffer) {
                        Ok(()) => ready.clear_ready(),
                        // Notifications were lost: what is left is asked for.
                        Err(_) => self.clone().look_again(|_| true).await,
                    },
                    Err(_) => return self.wake.notify_one(),
                },
                () = self.wake.notified() => {}
                () = tokio::time::sleep_until(until.into()) => {
                    if leaving == 0 {
                        return;
                    }
                    let now = Instant::now();
                    self.clone().look_again(move |leaving| leaving.deadline <= now).await;
                }
            }
        }
    }

    /// Reads notifications until there is none; any other error than that is an overflow.
    fn drain(&self, socket: &Socket, buffer: &mut Vec<u8>) -> io::Result<()> {
        loop {
            match socket.receive(buffer) {
                Ok(()) => {
                    for name in Frames(buffer).filter_map(|frame| links::gone_link(&frame)) {
                        self.gone_or_log(name);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    /// Asks for each chosen link; one that is there although its time is over is deleted.
    async fn look_again(self: Arc<Self>, chosen: impl Fn(&Leaving) -> bool) {
        let some: Vec<(String, Leaving)> =
            self.lock().iter().filter(|(_, one)| chosen(one)).map(|(name, one)| (name.clone(), one.clone())).collect();
        let looked = tokio::task::spawn_blocking(move || {
            let mut socket = Socket::open(NETLINK_ROUTE)?;
            for (name, leaving) in some {
                self.look_at(&mut socket, &name, &leaving);
            }
            io::Result::Ok(())
        });
        if let Ok(Err(error)) = looked.await {
            tracing::warn!(%error, "links of pods that left could not be looked for");
        }
    }

    fn look_at(&self, socket: &mut Socket, name: &str, leaving: &Leaving) {
        let overdue = leaving.deadline <= Instant::now();
        match links::find(socket, name) {
            Ok(None) => return self.gone_or_log(name),
            Ok(Some(_)) if !overdue => return,
            Ok(Some(_)) | Err(_) => {}
        }
        let holders = leaving.netns_inode.map(holders).unwrap_or_default();
        tracing::warn!(pod = %leaving.pod, link = name, ?holders, "network namespace is still held, deleting its link");
        match links::delete(socket, name) {
            Ok(()) => self.gone_or_log(name),
            Err(refusal) => {
                tracing::warn!(pod = %leaving.pod, link = name, %refusal, "link could not be deleted");
                if let Some(leaving) = self.lock().get_mut(name) {
                    leaving.deadline = Instant::now() + RETRY_INTERVAL;
                }
            }
        }
    }
}

/// Opens a socket for notifications, in the calling thread's network namespace.
fn listen() -> io::Result<AsyncFd<Socket>> {
    crate::network::readable(Socket::listen(NETLINK_ROUTE, RTNLGRP_LINK, NOTIFICATION_BYTES)?)
}

/// "pid (command)" of processes in a network namespace; a descriptor or mount that holds it is not found.
fn holders(netns_inode: u64) -> Vec<String> {
    let wanted = format!("net:[{netns_inode}]");
    let Ok(processes) = std::fs::read_dir("/proc") else { return Vec::new() };
    let in_it =
        |process: &Path| std::fs::read_link(process.join("ns/net")).is_ok_and(|link| link.as_os_str() == &*wanted);
    processes
        .flatten()
        .filter(|process| process.file_name().to_str().is_some_and(|name| name.parse::<u32>().is_ok()))
        .filter(|process| in_it(&process.path()))
        .take(HOLDERS_MAX)
        .map(|process| {
            let command = std::fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            format!("{} ({})", process.file_name().to_string_lossy(), command.trim_end().escape_debug())
        })
        .collect()
}
