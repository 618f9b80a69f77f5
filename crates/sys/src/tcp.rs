//! What the kernel knows of a TCP connection and rustix does not ask.

use crate::call::syscall;
use rustix::io::Result;
use std::ffi::c_int;
use std::os::fd::{AsFd, AsRawFd};

/// Bytes that were written to a connection and that its peer has not acknowledged: they are in the kernel, on the wire,
/// or wait for a peer that does not read. The end of writing counts as one. 0 means that the peer's kernel has all, not
/// that its program has read it. EINVAL for what is no socket, ENOTTY for other sockets.
pub fn undelivered(socket: impl AsFd) -> Result<usize> {
    let mut count: c_int = 0;
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: the descriptor is borrowed for the call, and SIOCOUTQ, which is TIOCOUTQ, writes one int.
    unsafe { syscall!(libc::SYS_ioctl, fd, libc::TIOCOUTQ, &raw mut count) }?;
    Ok(usize::try_from(count).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::time::{Duration, Instant};

    #[test]
    fn what_the_peer_does_not_read_is_undelivered() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        assert_eq!(undelivered(&server).unwrap(), 0);
        server.set_nonblocking(true).unwrap();
        let mut written = 0;
        // Until both kernels are full.
        let mut last = Instant::now();
        while last.elapsed() < Duration::from_millis(300) {
            match server.write(&[7; 65_536]) {
                Ok(count) => {
                    written += count;
                    last = Instant::now();
                }
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        }
        let waits = undelivered(&server).unwrap();
        assert!(waits > 0 && waits < written, "{waits} of {written}");
        server.shutdown(std::net::Shutdown::Write).unwrap();
        let mut read = Vec::new();
        client.read_to_end(&mut read).unwrap();
        assert_eq!(read.len(), written);
        let end = Instant::now() + Duration::from_secs(10);
        while undelivered(&server).unwrap() > 0 {
            assert!(Instant::now() < end, "the end is not acknowledged");
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(undelivered(std::fs::File::open("/dev/null").unwrap()).is_err());
    }
}
