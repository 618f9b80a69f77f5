//! Things that hold for one thread only: its root, its working directory, its mount namespace.
//!
//! The kernel keeps them per thread once they are unshared; so each of these is for a thread that was started for one
//! purpose and never goes back to a pool.

use rustix::io::Result;
use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};
use std::os::fd::AsFd;

/// Gives the calling thread a root, working directory and umask of its own.
pub fn unshare_fs() -> Result<()> {
    unshare(UnshareFlags::FS)
}

/// Gives the calling thread a private copy of its mount namespace: no mount gets in or out of it.
pub fn enter_private_mount_namespace() -> Result<()> {
    unshare(UnshareFlags::FS | UnshareFlags::NEWNS)?;
    mount_change(c"/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE)
}

/// Moves the calling thread into a mount namespace; its root and working directory become that namespace's root.
pub fn enter_mount_namespace(namespace: impl AsFd) -> Result<()> {
    // Joining is refused to a thread that shares its root with others.
    unshare(UnshareFlags::FS)?;
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Mount))
}

/// Makes `directory` the calling thread's root and working directory.
pub fn change_root(directory: impl AsFd) -> Result<()> {
    unshare(UnshareFlags::FS)?;
    rustix::process::fchdir(directory)?;
    rustix::process::chroot(c".")
}

/// Unshares parts of the calling thread's context. Never descriptors or memory: those flags are left out.
pub(crate) fn unshare(what: UnshareFlags) -> Result<()> {
    // SAFETY: unshare is unsafe for CLONE_FILES alone (descriptors that another thread then closes or replaces would
    // stay open here under borrowed numbers), and that flag is masked out.
    unsafe { unshare_unsafe(what.difference(UnshareFlags::FILES)) }
}

/// [`unshare`] for processes with one thread: namespaces that all it starts from now on will have.
pub fn unshare_namespaces(what: UnshareFlags) -> Result<()> {
    unshare(what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_root_is_the_threads_own() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: needs root");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("inside"), "").unwrap();
        let directory = std::fs::File::open(dir.path()).unwrap();
        std::thread::spawn(move || {
            change_root(directory).unwrap();
            assert!(std::path::Path::new("/inside").exists());
        })
        .join()
        .unwrap();
        assert!(!std::path::Path::new("/inside").exists());
    }
}
