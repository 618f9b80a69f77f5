//! The walls around the thread that writes a layer.

use std::io;
use std::os::fd::OwnedFd;

/// Makes the layer's directory the calling thread's root, in a file system state of its own: no path that any mistake
/// could come up with leads out. The thread must end with the layer, because there is no way back.
///
/// Without the privilege to change the root this does nothing: every open is still beneath a descriptor of the layer.
pub(crate) fn enter(layer: &OwnedFd) -> io::Result<()> {
    match knarr_sys::thread::change_root(layer) {
        Ok(()) | Err(rustix::io::Errno::PERM) => Ok(()),
        Err(e) => Err(e.into()),
    }
}
