//! Pseudo terminals.
//!
//! Both ends come by descriptor, never by the name of a device: a name in a container's /dev/pts can be replaced
//! between opening the master and opening its slave.

use crate::open;
use rustix::fs::{FileType, OFlags, fstat, fstatfs};
use rustix::io::{Errno, Result};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use std::os::fd::{AsFd, OwnedFd};

/// DEVPTS_SUPER_MAGIC
const DEVPTS: i64 = 0x1cd1;
/// Device number of /dev/ptmx.
const PTMX: (u32, u32) = (5, 2);

/// Opens a new terminal of the devpts whose root directory `devpts` is: (master, slave), both close-on-exec and neither
/// a controlling terminal. ENODEV when it is no devpts.
pub fn open_pair(devpts: impl AsFd) -> Result<(OwnedFd, OwnedFd)> {
    if fstatfs(&devpts)?.f_type as i64 != DEVPTS {
        return Err(Errno::NODEV);
    }
    let master = open::beneath(&devpts, c"ptmx", OFlags::RDWR | OFlags::NOCTTY)?;
    let stat = fstat(&master)?;
    let device = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
    if FileType::from_raw_mode(stat.st_mode) != FileType::CharacterDevice || device != PTMX {
        return Err(Errno::NODEV);
    }
    unlockpt(&master)?;
    let slave = ioctl_tiocgptpeer(&master, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    Ok((master, slave))
}

/// Sets a terminal's size (either end will do); the foreground process group gets SIGWINCH.
pub fn set_size(terminal: impl AsFd, columns: u16, rows: u16) -> Result<()> {
    tcsetwinsize(terminal, Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_in_at_one_end_comes_out_at_the_other() {
        let Ok(devpts) = std::fs::File::open("/dev/pts") else {
            eprintln!("skipped: no /dev/pts");
            return;
        };
        let (master, slave) = open_pair(&devpts).unwrap();
        set_size(&master, 120, 40).unwrap();
        let size = rustix::termios::tcgetwinsize(&slave).unwrap();
        assert_eq!((size.ws_col, size.ws_row), (120, 40));
        rustix::io::write(&slave, b"hello").unwrap();
        let mut text = [0; 8];
        let length = rustix::io::read(&master, &mut text).unwrap();
        assert_eq!(&text[..length], b"hello");
    }

    #[test]
    fn another_file_system_is_no_devpts() {
        assert_eq!(open_pair(std::fs::File::open("/proc").unwrap()).unwrap_err(), Errno::NODEV);
    }
}
