//! Network namespaces by descriptor: entering one, bringing its loopback up, and pinning it under a public name.
//!
//! Who makes namespaces is not known here: the shim does, and hands a descriptor over.

use super::netlink::{Message, NETLINK_ROUTE, NLM_F_ACK, Socket};
use knarr_model::{Error, PodId};
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::mount::{MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// f_type of files that are namespaces.
const NSFS_MAGIC: u64 = 0x6e73_6673;
/// Mounts stacked on one pin that unpinning takes away: others have been seen to bind a second time.
const STACKED_MOUNTS_MAX: usize = 8;
/// Bytes of stack of a thread that enters a namespace.
const THREAD_STACK_BYTES: usize = 256 * 1024;

/// Runs `work` on a thread of its own that ends afterwards.
///
/// This is where [`enter`] may be called: a worker of the async runtime that entered a pod's namespace and failed to
/// come back would silently work for the wrong network.
pub(super) async fn on_own_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Error> {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    std::thread::Builder::new()
        .name("knarr-netns".to_owned())
        .stack_size(THREAD_STACK_BYTES)
        .spawn(move || {
            // The receiver is gone only if the daemon is ending.
            let _ = sender.send(work());
        })
        .map_err(|e| Error::internal(format!("starting a thread for the network: {e}")))?;
    receiver.await.map_err(|_| Error::internal("a thread of the network ended without a result"))
}

/// Runs `work` in a network namespace, on a thread of its own that ends afterwards. Sockets that it opens stay in that
/// namespace, whoever uses them.
pub(crate) async fn inside<T: Send + 'static>(
    netns: OwnedFd,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Error> {
    let entered = move || enter(netns.as_fd()).map(|()| work());
    on_own_thread(entered).await?.map_err(|e| Error::internal(format!("entering the network namespace: {e}")))
}

/// Moves the calling thread into a network namespace, for good.
pub(super) fn enter(netns: BorrowedFd<'_>) -> io::Result<()> {
    let kind = rustix::thread::LinkNameSpaceType::Network;
    Ok(rustix::thread::move_into_link_name_space(netns, Some(kind))?)
}

/// Brings lo up in the namespace of the thread that opened the socket. The kernel adds 127.0.0.1 and ::1 by itself;
/// lo has index 1 in every namespace.
pub(super) fn loopback_up() -> Message {
    const RTM_NEWLINK: u16 = 16;
    const IFF_UP: u32 = 1;
    let mut header = [0; 16];
    header[4..8].copy_from_slice(&1_i32.to_ne_bytes());
    header[8..12].copy_from_slice(&IFF_UP.to_ne_bytes());
    header[12..16].copy_from_slice(&IFF_UP.to_ne_bytes());
    Message::new(RTM_NEWLINK, NLM_F_ACK, &header)
}

/// Enters the namespace and brings lo up; the calling thread must end afterwards.
pub(super) fn enter_and_bring_loopback_up(netns: BorrowedFd<'_>) -> Result<(), Error> {
    enter(netns).map_err(|e| Error::internal(format!("entering the network namespace: {e}")))?;
    let up = |mut socket: Socket| socket.execute(vec![loopback_up()]);
    Socket::open(NETLINK_ROUTE)
        .map_err(Into::into)
        .and_then(up)
        .map_err(|e| Error::internal(format!("bringing the loopback interface up: {e}")))
}

/// The inode number of a namespace, which names it in /proc/<pid>/ns/net.
pub(super) fn inode(netns: BorrowedFd<'_>) -> io::Result<u64> {
    Ok(rustix::fs::fstat(netns)?.st_ino)
}

/// The folder where namespaces are pinned: bind mounts of `/proc/<pid>/ns/net` under public names.
///
/// Everything goes through a descriptor of the folder, taken once: `ip netns add` may bind the folder over itself at any
/// time, and then its path leads to the upper mount (umount says EINVAL) while the file below stays a mount point
/// (unlink says EBUSY).
#[derive(Debug)]
pub(super) struct Pins {
    path: PathBuf,
    folder: OwnedFd,
}

impl Pins {
    /// Makes the folder, and a shared mount of itself if it is none: then pins appear wherever the folder is mounted
    /// with HostToContainer (CNI agents), and `ip netns` has no reason to bind over it.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let failed = |step: &str, e: io::Error| Error::internal(format!("{step} {}: {e}", path.display()));
        std::fs::create_dir_all(path).map_err(|e| failed("making", e))?;
        let shared = MountPropagationFlags::SHARED | MountPropagationFlags::REC;
        match rustix::mount::mount_change(path, shared) {
            Ok(()) => {}
            Err(rustix::io::Errno::INVAL) => {
                rustix::mount::mount_bind_recursive(path, path).map_err(|e| failed("binding on itself", e.into()))?;
                rustix::mount::mount_change(path, shared).map_err(|e| failed("sharing", e.into()))?;
            }
            Err(errno) => return Err(failed("sharing", errno.into())),
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = rustix::fs::open(path, flags, Mode::empty()).map_err(|e| failed("opening", e.into()))?;
        Ok(Self { path: path.to_owned(), folder })
    }

    /// The public name of a pod's pin: 128 bits of its id, short enough for tools that print it.
    pub fn name(pod: &PodId) -> String {
        format!("knarr-{}", &pod.as_str()[..32])
    }

    /// Where the pod's namespace is or would be pinned.
    pub fn path(&self, pod: &PodId) -> PathBuf {
        self.path.join(Self::name(pod))
    }

    /// Pins a namespace. A pin of that name that is already there is replaced.
    pub fn pin(&self, pod: &PodId, netns: BorrowedFd<'_>) -> io::Result<()> {
        let name = Self::name(pod);
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let create = || rustix::fs::openat(&self.folder, &name, flags, Mode::from_raw_mode(0o444));
        match create() {
            Ok(_) => {}
            Err(rustix::io::Errno::EXIST) => {
                self.unpin(pod)?;
                create()?;
            }
            Err(errno) => return Err(errno.into()),
        }
        let tree = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
        let mounted = rustix::mount::open_tree(netns, "", tree).and_then(|detached| {
            let from_descriptor = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
            rustix::mount::move_mount(detached.as_fd(), "", self.folder.as_fd(), &name, from_descriptor)
        });
        if let Err(errno) = mounted {
            let _ = rustix::fs::unlinkat(&self.folder, &name, AtFlags::empty());
            return Err(errno.into());
        }
        Ok(())
    }

    /// Undoes [`Pins::pin`]; a pin that is not there is none.
    pub fn unpin(&self, pod: &PodId) -> io::Result<()> {
        let name = Self::name(pod);
        let path = format!("/proc/self/fd/{}/{name}", self.folder.as_raw_fd());
        for _ in 0..STACKED_MOUNTS_MAX {
            match rustix::mount::unmount(path.as_str(), UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
                Ok(()) => {}
                // EINVAL: not a mount point any more. Other refusals show themselves in the unlink.
                Err(_) => break,
            }
        }
        match rustix::fs::unlinkat(&self.folder, &name, AtFlags::empty()) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// The pinned namespace; NotFound if there is only the file of a pin that never came about.
    pub fn open_netns(&self, pod: &PodId) -> io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = rustix::fs::openat(&self.folder, Self::name(pod), flags, Mode::empty())?;
        #[allow(clippy::cast_sign_loss, clippy::unnecessary_cast)]
        let magic = rustix::fs::fstatfs(&file)?.f_type as u64;
        if magic == NSFS_MAGIC { Ok(file) } else { Err(io::ErrorKind::NotFound.into()) }
    }
}
