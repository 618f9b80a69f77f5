//! Building the root file system of a container: an overlay of layers, as one detached mount.
//!
//! The overlay keeps the credentials and takes the layers of the mount namespace of the thread that mounts it, and up
//! to Linux 6.14 accepts no layer that is not attached there. So the thread that does it lives in a namespace of its
//! own with nothing in it but a scratch tmpfs, on which layers are attached as `0`, `1`, …: names so short that 499 of
//! them fit into the one page of options that mount(2) takes, relative to the working directory.

use super::{Attributes, RDONLY, clone_tree, new_filesystem, place, set_attributes};
use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use std::ffi::CString;
use std::fmt::Write;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::time::Duration;

/// Most layers that overlayfs takes, less the empty one that stands in when there is none.
pub const LAYERS_MAX: usize = 499;

/// Bytes of options that mount(2) takes, with their NUL.
const OPTIONS_MAX: usize = 4095;

/// How long one overlay may take: milliseconds on a healthy disk, without end on a dead one.
const OVERLAY_DEADLINE: Duration = Duration::from_secs(30);

/// Mounts an overlay and gives it as a detached mount.
///
/// `lowers` are detached copies of the layers' directories, the topmost first; `upper_and_work` that of a directory
/// with `upper/` and `work/`, or `None` for a read-only result. `options` are further ones of overlayfs, separated by
/// commas. The calling thread must be in a mount namespace of its own whose root is a writable scratch file system:
/// see [`OverlayThread`]. Nothing stays attached there, whatever happens.
pub fn overlay(lowers: Vec<OwnedFd>, upper_and_work: Option<OwnedFd>, options: &str) -> io::Result<OwnedFd> {
    if lowers.len() > LAYERS_MAX {
        return Err(Errno::TOOBIG.into());
    }
    if upper_and_work.is_none() {
        if lowers.is_empty() {
            let attributes = Attributes { set: RDONLY, ..Attributes::default() };
            return Ok(new_filesystem(c"tmpfs", [(c"mode", c"0755"), (c"size", c"4k")], attributes)?);
        }
        // overlayfs wants two layers or an upper one; a single layer needs no overlay.
        if let [_] = lowers.as_slice() {
            let only = lowers.into_iter().next().ok_or(Errno::INVAL)?;
            set_attributes(&only, true, Attributes { set: RDONLY, ..Attributes::propagation(PRIVATE) })?;
            return Ok(only);
        }
    }
    let mut scratch = Scratch::default();
    let result = mount_on_scratch(&mut scratch, &lowers, upper_and_work.as_ref(), options);
    scratch.clear();
    result
}

/// MS_PRIVATE
const PRIVATE: u64 = 1 << 18;

/// What is attached on the scratch file system at present.
#[derive(Default)]
struct Scratch {
    attached: Vec<CString>,
}

impl Scratch {
    fn attach(&mut self, name: String, tree: &OwnedFd) -> io::Result<()> {
        let target = self.directory(&name)?;
        // A copy of a shared mount is its peer: what the host mounts below a layer must not show up here.
        set_attributes(tree, true, Attributes::propagation(PRIVATE))?;
        place(tree, target)?;
        self.attached.push(CString::new(name)?);
        Ok(())
    }

    fn directory(&self, name: &str) -> io::Result<OwnedFd> {
        match mkdirat(CWD, name, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno.into()),
        }
        Ok(openat(CWD, name, OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?)
    }

    /// Detaches everything; one that fails stays until the thread ends, and hinders nobody else.
    fn clear(&mut self) {
        for name in self.attached.drain(..).rev() {
            let _ = unmount(&name, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
        }
    }
}

fn mount_on_scratch(
    scratch: &mut Scratch,
    lowers: &[OwnedFd],
    upper_and_work: Option<&OwnedFd>,
    options: &str,
) -> io::Result<OwnedFd> {
    let mut data = String::from("lowerdir=");
    for (number, lower) in lowers.iter().enumerate() {
        scratch.attach(number.to_string(), lower)?;
        let _ = write!(data, "{}{number}", if number == 0 { "" } else { ":" });
    }
    if lowers.is_empty() {
        scratch.directory("empty")?;
        data.push_str("empty");
    }
    if let Some(upper_and_work) = upper_and_work {
        scratch.attach("u".into(), upper_and_work)?;
        data.push_str(",upperdir=u/upper,workdir=u/work");
    }
    if !options.is_empty() {
        let _ = write!(data, ",{options}");
    }
    if data.len() > OPTIONS_MAX {
        return Err(Errno::TOOBIG.into());
    }
    scratch.directory("merged")?;
    let flags = if upper_and_work.is_none() { MountFlags::RDONLY } else { MountFlags::empty() };
    mount(c"overlay", c"merged", c"overlay", flags, CString::new(data)?.as_c_str())?;
    scratch.attached.push(c"merged".into());
    Ok(clone_tree(CWD, c"merged", false)?)
}

type Job = (Vec<OwnedFd>, Option<OwnedFd>, String, SyncSender<io::Result<OwnedFd>>);

/// The one thread that builds overlays, in a mount namespace of its own. It ends when this is dropped.
#[derive(Debug)]
pub struct OverlayThread {
    jobs: Sender<Job>,
}

impl OverlayThread {
    /// Starts the thread; an error if it could not make its namespace.
    pub fn start() -> io::Result<Self> {
        let (jobs, queue) = channel();
        let (ready, is_ready) = sync_channel(1);
        std::thread::Builder::new().name("overlay".into()).spawn(move || {
            let entered = crate::namespace::enter_empty_mount_namespace();
            let failed = entered.is_err();
            if ready.send(entered).is_ok() && !failed {
                serve(&queue);
            }
        })?;
        is_ready.recv_timeout(OVERLAY_DEADLINE).map_err(|_| Errno::TIMEDOUT)??;
        Ok(Self { jobs })
    }

    /// [`overlay`] on that thread; blocks until it is done. ETIMEDOUT when it takes longer than 30 s.
    pub fn overlay(&self, lowers: Vec<OwnedFd>, upper_and_work: Option<OwnedFd>, options: &str) -> io::Result<OwnedFd> {
        let (answer, answered) = sync_channel(1);
        self.jobs.send((lowers, upper_and_work, options.to_owned(), answer)).map_err(|_| Errno::PIPE)?;
        answered.recv_timeout(OVERLAY_DEADLINE).map_err(|_| Errno::TIMEDOUT)?
    }
}

fn serve(queue: &Receiver<Job>) {
    while let Ok((lowers, upper_and_work, options, answer)) = queue.recv() {
        // Nobody listens any more after the deadline: the mount goes with its descriptor.
        let _ = answer.send(overlay(lowers, upper_and_work, &options));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn copy_of(path: &Path) -> OwnedFd {
        super::super::clone_of(std::fs::File::open(path).unwrap(), false).unwrap()
    }

    fn read(root: &OwnedFd, name: &str) -> Result<String, Errno> {
        let fd = openat(root, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        let mut text = [0; 64];
        let length = rustix::io::read(&fd, &mut text)?;
        Ok(String::from_utf8_lossy(&text[..length]).into_owned())
    }

    fn write(root: &OwnedFd, name: &str) -> Result<(), Errno> {
        openat(root, name, OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC, Mode::from_raw_mode(0o644)).map(|_| ())
    }

    fn is_root() -> bool {
        let root = rustix::process::geteuid().is_root();
        if !root {
            eprintln!("skipped: needs root");
        }
        root
    }

    /// A tmpfs can be an upper directory; the temporary directory may lie on an overlay, which cannot.
    fn with_directories(test: impl FnOnce(&Path) + Send + 'static) {
        std::thread::spawn(|| {
            crate::thread::enter_private_mount_namespace().unwrap();
            let tmpfs = new_filesystem(c"tmpfs", [(c"size", c"16m")], Attributes::default()).unwrap();
            place(tmpfs, super::super::open_path(c"/mnt").unwrap()).unwrap();
            let base = Path::new("/mnt");
            for dir in ["low0", "low1", "uw/upper", "uw/work"] {
                std::fs::create_dir_all(base.join(dir)).unwrap();
            }
            std::fs::write(base.join("low0/both"), "top").unwrap();
            std::fs::write(base.join("low1/both"), "bottom").unwrap();
            std::fs::write(base.join("low1/only"), "bottom").unwrap();
            test(base);
        })
        .join()
        .unwrap();
    }

    #[test]
    fn the_first_lower_is_on_top_and_writes_go_to_upper() {
        if !is_root() {
            return;
        }
        with_directories(|base| {
            let thread = OverlayThread::start().unwrap();
            let lowers = || vec![copy_of(&base.join("low0")), copy_of(&base.join("low1"))];
            for _ in 0..2 {
                let root = thread.overlay(lowers(), Some(copy_of(&base.join("uw"))), "index=off").unwrap();
                assert_eq!(read(&root, "both").unwrap(), "top");
                assert_eq!(read(&root, "only").unwrap(), "bottom");
                write(&root, "new").unwrap();
                assert!(base.join("uw/upper/new").exists());
            }
            let read_only = thread.overlay(lowers(), None, "").unwrap();
            assert_eq!(write(&read_only, "new").unwrap_err(), Errno::ROFS);
        });
    }

    #[test]
    fn one_layer_or_none_is_handled() {
        if !is_root() {
            return;
        }
        with_directories(|base| {
            let thread = OverlayThread::start().unwrap();
            let single = thread.overlay(vec![copy_of(&base.join("low1"))], None, "").unwrap();
            assert_eq!(read(&single, "only").unwrap(), "bottom");
            assert_eq!(write(&single, "new").unwrap_err(), Errno::ROFS);
            let none = thread.overlay(vec![], Some(copy_of(&base.join("uw"))), "").unwrap();
            write(&none, "new").unwrap();
            assert!(base.join("uw/upper/new").exists());
            let empty = thread.overlay(vec![], None, "").unwrap();
            assert_eq!(write(&empty, "new").unwrap_err(), Errno::ROFS);
        });
    }

    #[test]
    fn a_failure_leaves_the_thread_usable() {
        if !is_root() {
            return;
        }
        with_directories(|base| {
            let thread = OverlayThread::start().unwrap();
            let bad = thread.overlay(vec![copy_of(&base.join("low0"))], Some(copy_of(&base.join("low1"))), "");
            assert_eq!(bad.unwrap_err().raw_os_error(), Some(libc::ENOENT));
            let lowers = vec![copy_of(&base.join("low0"))];
            assert!(thread.overlay(lowers, Some(copy_of(&base.join("uw"))), "nonsense=1").is_err());
            thread.overlay(vec![copy_of(&base.join("low0"))], Some(copy_of(&base.join("uw"))), "").unwrap();
        });
    }

    #[test]
    fn as_many_layers_as_overlayfs_takes() {
        if !is_root() {
            return;
        }
        with_directories(|base| {
            let thread = OverlayThread::start().unwrap();
            let lowers = |n| (0..n).map(|_| copy_of(&base.join("low1"))).collect::<Vec<_>>();
            assert!(thread.overlay(lowers(LAYERS_MAX + 1), None, "").is_err());
            // The same directory cannot be two layers, so one layer that many times is refused by the kernel (ELOOP);
            // different ones are needed.
            let mut different = Vec::new();
            for number in 0..LAYERS_MAX {
                let dir = base.join(format!("many/{number}"));
                std::fs::create_dir_all(&dir).unwrap();
                std::fs::write(dir.join(format!("file{number}")), "x").unwrap();
                different.push(copy_of(&dir));
            }
            let root = thread.overlay(different, Some(copy_of(&base.join("uw"))), "").unwrap();
            assert_eq!(read(&root, "file498").unwrap(), "x");
            assert_eq!(read(&root, "file0").unwrap(), "x");
        });
    }
}
