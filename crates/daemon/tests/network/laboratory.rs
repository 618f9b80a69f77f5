//! A host of its own for each test: a thread in a new network and mount namespace, with an async runtime whose threads
//! inherit both. Pods are network namespaces made beside it. Nothing of it is left when the test ends.

use knarr_daemon::network::{Attachment, BuiltinConfig, CniConfig, Network, NetworkConfig, PodIdentity};
use knarr_model::PodId;
use knarr_model::spec::{PortMapping, Protocol};
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
use rustix::thread::{LinkNameSpaceType, UnshareFlags};
use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::{Duration, Instant};

/// How long a connection that must come about may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// How long the kernel may take to remove what was let go.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(20);

/// One test's host.
pub struct Laboratory {
    pub root: PathBuf,
    next: AtomicU8,
}

/// Leaves the calling thread in new namespaces.
#[allow(deprecated)]
fn unshare(flags: UnshareFlags) {
    // The safe name of it is deprecated for unsharing descriptors and memory, which is not done here.
    rustix::thread::unshare(flags).expect("unshare");
}

/// Runs a test on a host of its own; skipped, and said so, without root.
pub fn laboratory<F: Future<Output = ()>>(test: impl FnOnce(Arc<Laboratory>) -> F + Send + 'static) {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: network namespaces need root");
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let path = root.path().to_owned();
    let host = std::thread::spawn(move || {
        unshare(UnshareFlags::NEWNET | UnshareFlags::NEWNS);
        rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
        let flags = MountFlags::empty();
        rustix::mount::mount("tmpfs", &path, "tmpfs", flags, None).unwrap();
        sh("ip link set lo up");
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let laboratory = Arc::new(Laboratory { root: path, next: AtomicU8::new(1) });
        runtime.block_on(test(laboratory));
    });
    if let Err(panic) = host.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Runs a shell command in the calling thread's namespaces; it must succeed. Gives its output.
pub fn sh(command: &str) -> String {
    let output = Command::new("sh").args(["-ec", command]).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command}: {errors}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Makes a network namespace that lives as long as its descriptor.
pub fn new_netns() -> OwnedFd {
    std::thread::spawn(|| {
        unshare(UnshareFlags::NEWNET);
        OwnedFd::from(File::open("/proc/thread-self/ns/net").unwrap())
    })
    .join()
    .unwrap()
}

/// Runs something in a network namespace.
pub fn inside<T: Send>(netns: BorrowedFd<'_>, work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            rustix::thread::move_into_link_name_space(netns, Some(LinkNameSpaceType::Network)).unwrap();
            work()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// A pod that is attached.
pub struct Pod {
    pub identity: PodIdentity,
    pub netns: OwnedFd,
    pub attachment: Attachment,
}

impl Pod {
    pub fn ip(&self) -> IpAddr {
        self.attachment.ips[0]
    }

    /// The pod's second address.
    pub fn ip6(&self) -> IpAddr {
        self.attachment.ips[1]
    }
}

impl Laboratory {
    /// A configuration whose every path is in the test's folder.
    pub fn config(&self) -> NetworkConfig {
        NetworkConfig {
            netns_dir: self.root.join("netns"),
            state_dir: self.root.join("state"),
            cni: CniConfig {
                conf_dir: self.root.join("net.d"),
                bin_dirs: vec![self.root.join("bin"), "/usr/lib/cni".into()],
                cache_dir: self.root.join("cache"),
                plugin_timeout: Duration::from_secs(10),
                max_networks: 1,
            },
            builtin: BuiltinConfig::default(),
        }
    }

    pub async fn open(&self) -> Arc<Network> {
        Network::open(self.config()).await.unwrap()
    }

    /// A pod with an id of its own and these host ports.
    pub fn identity(&self, ports: &[PortMapping]) -> PodIdentity {
        let mut bytes = [0; 32];
        File::open("/dev/urandom").unwrap().read_exact(&mut bytes).unwrap();
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        PodIdentity {
            name: format!("pod-{number}"),
            namespace: "default".to_owned(),
            uid: format!("uid-{number}"),
            cgroup_path: format!("/kubepods/poduid-{number}"),
            ports: ports.to_vec(),
            ..PodIdentity::nameless(PodId::from_bytes(&bytes))
        }
    }

    /// Attaches a new pod.
    pub async fn pod(&self, network: &Network, ports: &[PortMapping]) -> Pod {
        let identity = self.identity(ports);
        let netns = new_netns();
        let attachment = network.attach(&identity, netns.try_clone().unwrap()).await.unwrap();
        Pod { identity, netns, attachment }
    }

    /// A namespace that is the world outside, 198.51.100.2 and 2001:db8::2; the host is .1 and ::1 there and has its
    /// default route by way of it.
    pub fn outside(&self) -> OwnedFd {
        let outside = new_netns();
        let pin = self.root.join("outside");
        File::create(&pin).unwrap();
        let tid = "/proc/self/fd";
        let source = format!("{tid}/{}", std::os::fd::AsRawFd::as_raw_fd(&outside));
        rustix::mount::mount_bind(source.as_str(), &pin).unwrap();
        sh(&format!(
            "ip link add up0 type veth peer name up1
             exec 9<{pin}; ip link set up1 netns /proc/self/fd/9
             ip addr add 198.51.100.1/24 dev up0; ip addr add 2001:db8::1/64 dev up0 nodad; ip link set up0 up
             nsenter --net={pin} sh -ec 'ip link set lo up; ip addr add 198.51.100.2/24 dev up1
                ip addr add 2001:db8::2/64 dev up1 nodad; ip link set up1 up'
             ip route add default via 198.51.100.2; ip route add default via 2001:db8::2",
            pin = pin.display()
        ));
        rustix::mount::unmount(&pin, UnmountFlags::DETACH).unwrap();
        std::fs::remove_file(&pin).unwrap();
        outside
    }
}

/// A host port on every address.
pub fn port(protocol: Protocol, host_port: u16, container_port: u16) -> PortMapping {
    PortMapping { protocol, container_port, host_port, host_ip: None }
}

/// Answers every TCP connection, and every UDP datagram, at a port with "name peer's-address".
pub struct Server {
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(std::thread::JoinHandle::join);
    }
}

/// Starts a [`Server`] in a namespace; `None` is the calling thread's.
pub fn serve(netns: Option<BorrowedFd<'_>>, name: &str, address: &str) -> Server {
    let open = || (TcpListener::bind(address).unwrap(), UdpSocket::bind(address).unwrap());
    let (tcp, udp) = match netns {
        Some(netns) => inside(netns, open),
        None => open(),
    };
    tcp.set_nonblocking(true).unwrap();
    udp.set_nonblocking(true).unwrap();
    let (stop, name) = (Arc::new(AtomicBool::new(false)), name.to_owned());
    let stopped = stop.clone();
    let thread = std::thread::spawn(move || {
        let mut buffer = [0; 100];
        while !stopped.load(Ordering::Relaxed) {
            if let Ok((mut stream, peer)) = tcp.accept() {
                let _ = stream.write_all(format!("{name} {}", peer.ip().to_canonical()).as_bytes());
            } else if let Ok((_, peer)) = udp.recv_from(&mut buffer) {
                let _ = udp.send_to(format!("{name} {}", peer.ip().to_canonical()).as_bytes(), peer);
            } else {
                std::thread::sleep(Duration::from_millis(2));
            }
        }
    });
    Server { stop, thread: Some(thread) }
}

/// Connects from the calling thread's namespace and reads the server's answer.
pub fn ask_tcp(ip: IpAddr, port: u16) -> Result<String, String> {
    ask_tcp_within(ip, port, CONNECT_TIMEOUT)
}

/// The same with another patience, for connections that must not come about.
pub fn ask_tcp_within(ip: IpAddr, port: u16, timeout: Duration) -> Result<String, String> {
    let mut stream = TcpStream::connect_timeout(&SocketAddr::new(ip, port), timeout).map_err(|e| e.to_string())?;
    stream.set_read_timeout(Some(timeout)).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).map_err(|e| e.to_string())?;
    Ok(answer)
}

/// Sends a datagram from a socket and reads the answer.
pub fn ask_udp(socket: &UdpSocket, ip: IpAddr, port: u16) -> Result<String, String> {
    socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    let mut buffer = [0; 100];
    let mut last = String::new();
    for _ in 0..3 {
        socket.send_to(b"?", (ip, port)).map_err(|e| e.to_string())?;
        match socket.recv_from(&mut buffer) {
            Ok((count, _)) => return Ok(String::from_utf8_lossy(&buffer[..count]).into_owned()),
            Err(error) => last = error.to_string(),
        }
    }
    Err(last)
}

/// Parses an address.
pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Waits until something holds; gives up loudly.
pub async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + SETTLE_TIMEOUT;
    while !holds() {
        assert!(Instant::now() < end, "not within {SETTLE_TIMEOUT:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// What the host has that could be left behind: links, rules, files of state, pins, mounts.
#[derive(Debug, PartialEq, Eq)]
pub struct Traces {
    links: String,
    rules: String,
    files: Vec<String>,
    mounts: usize,
}

impl Laboratory {
    /// Counts what is there now.
    pub fn traces(&self) -> Traces {
        let mut files = Vec::new();
        for folder in ["netns", "state/addresses", "state/attachments", "cache/results"] {
            names(&self.root.join(folder), &mut files);
        }
        let mounts = std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap().lines().count();
        let links = sh("ip -o link | cut -d: -f2 | cut -d@ -f1 | sort");
        Traces { links, rules: sh("nft -s list ruleset"), files, mounts }
    }

    /// Waits until everything is as it was.
    pub async fn settled(&self, before: &Traces) {
        let end = Instant::now() + SETTLE_TIMEOUT;
        while self.traces() != *before {
            assert!(Instant::now() < end, "left behind: {:#?}\nbefore: {before:#?}", self.traces());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

fn names(folder: &Path, into: &mut Vec<String>) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    into.extend(entries.map(|entry| entry.unwrap().path().display().to_string()));
    into.sort();
}

/// Takes a pod off the network and lets its namespace go.
pub async fn remove(network: &Network, pod: Pod) {
    network.detach(&pod.identity).await.unwrap();
    drop(pod.netns);
}

/// The inode number that names a namespace.
pub fn inode(netns: impl AsFd) -> u64 {
    rustix::fs::fstat(netns).unwrap().st_ino
}

/// The middle of some times, in microseconds.
pub fn median(mut times: Vec<Duration>) -> u128 {
    times.sort_unstable();
    times[times.len() / 2].as_micros()
}
