//! Messages with descriptors over Unix sockets: one packet of a SEQPACKET socket is one message.
//!
//! It knows nothing of what the bytes mean; `knarr_wire::shim` does.

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recv, recvmsg, sendmsg,
};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

/// Descriptors in one packet; the kernel's SCM_MAX_FD.
pub const FDS_MAX: usize = 253;

/// Bytes in one packet. A plan holds at most a few files, a filter of 32 KiB and an environment below ARG_MAX.
pub const PACKET_MAX: usize = 8 << 20;

/// Sends one packet with its descriptors; all of it or nothing.
///
/// `bytes` must not be empty, since an empty packet looks like the end to the receiver. `EMSGSIZE` when it is larger
/// than the socket's send buffer: see [`set_send_buffer`]. Never raises SIGPIPE.
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>], flags: SendFlags) -> io::Result<()> {
    if bytes.is_empty() || fds.len() > FDS_MAX {
        return Err(Errno::INVAL.into());
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(Errno::INVAL.into());
    }
    let sent = retry(|| sendmsg(socket, &[IoSlice::new(bytes)], &mut control, flags | SendFlags::NOSIGNAL))?;
    if sent == bytes.len() { Ok(()) } else { Err(Errno::MSGSIZE.into()) }
}

/// Receives one packet: `buffer` is replaced by its bytes, its descriptors (close-on-exec) are appended to `fds`.
///
/// Gives the number of bytes; 0 means that the other side is closed. `EMSGSIZE` when the packet is larger than
/// [`PACKET_MAX`] or some descriptors did not get through (too many open ones): then nothing of it is handed out.
/// `EAGAIN` from a non-blocking socket passes through.
pub fn receive(socket: BorrowedFd<'_>, buffer: &mut Vec<u8>, fds: &mut Vec<OwnedFd>) -> io::Result<usize> {
    buffer.clear();
    let peek = RecvFlags::PEEK | RecvFlags::TRUNC;
    let (_, length) = retry(|| recv(socket, &mut [0u8; 0][..], peek))?;
    if length > PACKET_MAX {
        // Taken off the queue, or the same packet would be refused for ever.
        let _ = recv(socket, &mut [0u8; 0][..], RecvFlags::empty());
        return Err(Errno::MSGSIZE.into());
    }
    buffer.resize(length, 0);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let result = retry(|| recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut control, RecvFlags::CMSG_CLOEXEC));
    let message = match result {
        Ok(message) => message,
        Err(error) => {
            buffer.clear();
            return Err(error.into());
        }
    };
    let mut received = Vec::new();
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = part {
            received.extend(rights);
        }
    }
    if message.flags.intersects(ReturnFlags::CTRUNC | ReturnFlags::TRUNC) {
        buffer.clear();
        return Err(Errno::MSGSIZE.into());
    }
    buffer.truncate(message.bytes);
    fds.append(&mut received);
    Ok(message.bytes)
}

/// Receives one small packet into `buffer` without allocating, and the descriptor (close-on-exec) that comes with it.
///
/// Gives the number of bytes; 0 means that the other side is closed. `EMSGSIZE` when the packet is larger than the buffer
/// or its descriptor did not get through.
pub fn receive_small(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> rustix::io::Result<(usize, Option<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let message = retry(|| recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut control, RecvFlags::CMSG_CLOEXEC))?;
    let mut received = None;
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = part {
            received = rights.last();
        }
    }
    if message.flags.intersects(ReturnFlags::CTRUNC | ReturnFlags::TRUNC) {
        return Err(Errno::MSGSIZE);
    }
    Ok((message.bytes, received))
}

/// Makes room for packets of `bytes`; beyond the host's `wmem_max` with CAP_NET_ADMIN, else up to it.
pub fn set_send_buffer(socket: BorrowedFd<'_>, bytes: usize) -> io::Result<()> {
    if rustix::net::sockopt::set_socket_send_buffer_size_force(socket, bytes).is_ok() {
        return Ok(());
    }
    Ok(rustix::net::sockopt::set_socket_send_buffer_size(socket, bytes)?)
}

/// A connected pair of SEQPACKET sockets, close-on-exec.
pub fn socket_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

fn retry<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> rustix::io::Result<T> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    fn null() -> OwnedFd {
        std::fs::File::open("/dev/null").unwrap().into()
    }

    #[test]
    fn a_packet_arrives_whole_with_its_descriptors_close_on_exec() {
        let (a, b) = socket_pair().unwrap();
        let files = [null(), null(), null()];
        let borrowed: Vec<_> = files.iter().map(|f| f.as_fd()).collect();
        send(a.as_fd(), b"one", &borrowed, SendFlags::empty()).unwrap();
        send(a.as_fd(), b"second", &[], SendFlags::empty()).unwrap();
        let (mut buffer, mut fds) = (vec![9; 40], Vec::new());
        assert_eq!(receive(b.as_fd(), &mut buffer, &mut fds).unwrap(), 3);
        assert_eq!((buffer.as_slice(), fds.len()), (&b"one"[..], 3));
        for fd in &fds {
            assert!(rustix::io::fcntl_getfd(fd).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
        }
        assert_eq!(receive(b.as_fd(), &mut buffer, &mut fds).unwrap(), 6);
        assert_eq!((buffer.as_slice(), fds.len()), (&b"second"[..], 3));
        drop(a);
        assert_eq!(receive(b.as_fd(), &mut buffer, &mut fds).unwrap(), 0);
    }

    #[test]
    fn a_small_packet_is_received_into_what_is_there() {
        let (a, b) = socket_pair().unwrap();
        let mut buffer = [0; 4];
        let file = null();
        send(a.as_fd(), b"four", &[file.as_fd()], SendFlags::empty()).unwrap();
        let (length, fd) = receive_small(b.as_fd(), &mut buffer).unwrap();
        assert_eq!((&buffer[..length], fd.is_some()), (&b"four"[..], true));
        assert!(rustix::io::fcntl_getfd(fd.unwrap()).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
        send(a.as_fd(), b"fives", &[], SendFlags::empty()).unwrap();
        assert_eq!(receive_small(b.as_fd(), &mut buffer).unwrap_err(), Errno::MSGSIZE);
        send(a.as_fd(), b"1", &[], SendFlags::empty()).unwrap();
        let (length, fd) = receive_small(b.as_fd(), &mut buffer).unwrap();
        assert_eq!((length, fd.is_some()), (1, false));
        drop(a);
        assert_eq!(receive_small(b.as_fd(), &mut buffer).unwrap().0, 0);
    }

    #[test]
    fn as_many_descriptors_as_the_kernel_takes_and_no_more() {
        let (a, b) = socket_pair().unwrap();
        let file = null();
        send(a.as_fd(), b"x", &vec![file.as_fd(); FDS_MAX], SendFlags::empty()).unwrap();
        let error = send(a.as_fd(), b"x", &vec![file.as_fd(); FDS_MAX + 1], SendFlags::empty()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(Errno::INVAL.raw_os_error()));
        let (mut buffer, mut fds) = (Vec::new(), Vec::new());
        receive(b.as_fd(), &mut buffer, &mut fds).unwrap();
        assert_eq!(fds.len(), FDS_MAX);
    }

    #[test]
    fn a_larger_packet_needs_a_larger_send_buffer() {
        let (a, b) = socket_pair().unwrap();
        let bytes = vec![7u8; 1 << 20];
        assert!(send(a.as_fd(), &bytes, &[], SendFlags::empty()).is_err());
        set_send_buffer(a.as_fd(), 2 << 20).unwrap();
        if !rustix::process::geteuid().is_root() {
            return;
        }
        send(a.as_fd(), &bytes, &[], SendFlags::empty()).unwrap();
        let (mut buffer, mut fds) = (Vec::new(), Vec::new());
        assert_eq!(receive(b.as_fd(), &mut buffer, &mut fds).unwrap(), bytes.len());
        assert_eq!(buffer, bytes);
    }

    #[test]
    fn an_empty_packet_is_never_sent() {
        let (a, _b) = socket_pair().unwrap();
        assert!(send(a.as_fd(), b"", &[], SendFlags::empty()).is_err());
    }

    #[test]
    fn a_socket_without_a_packet_says_so() {
        let (_a, b) = socket_pair().unwrap();
        rustix::fs::fcntl_setfl(&b, rustix::fs::OFlags::NONBLOCK).unwrap();
        let error = receive(b.as_fd(), &mut Vec::new(), &mut Vec::new()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }
}
