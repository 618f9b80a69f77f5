//! Capability sets as bit masks: bit n is capability n of <linux/capability.h>.
//!
//! All of it is about the calling thread, and nothing here allocates: it runs between clone and exec.

use crate::call::syscall;
use rustix::io::{Errno, Result};
use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};

/// CAP_SYS_ADMIN
pub const SYS_ADMIN: u64 = 1 << 21;
/// CAP_SETPCAP
pub const SETPCAP: u64 = 1 << 8;
/// CAP_MKNOD
pub const MKNOD: u64 = 1 << 27;
/// CAP_SYS_RESOURCE
pub const SYS_RESOURCE: u64 = 1 << 24;

/// One more than the highest number a mask can hold.
const CAPABILITIES_MAX: u32 = 64;

/// The three sets that capget and capset move together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs)]
pub struct Sets {
    pub effective: u64,
    pub permitted: u64,
    pub inheritable: u64,
}

/// The calling thread's sets.
pub fn current() -> Result<Sets> {
    let sets = capabilities(None)?;
    Ok(Sets {
        effective: sets.effective.bits(),
        permitted: sets.permitted.bits(),
        inheritable: sets.inheritable.bits(),
    })
}

/// Replaces the calling thread's sets; lowering inheritable or permitted lowers ambient too.
pub fn set(sets: Sets) -> Result<()> {
    set_capabilities(
        None,
        CapabilitySets {
            effective: CapabilitySet::from_bits_retain(sets.effective),
            permitted: CapabilitySet::from_bits_retain(sets.permitted),
            inheritable: CapabilitySet::from_bits_retain(sets.inheritable),
        },
    )
}

/// The calling thread's bounding set.
pub fn bounding() -> Result<u64> {
    let mut mask = 0;
    for number in 0..CAPABILITIES_MAX {
        match read_bounding(number) {
            Ok(held) => mask |= u64::from(held) << number,
            // The first number that the kernel does not know.
            Err(Errno::INVAL) => break,
            Err(errno) => return Err(errno),
        }
    }
    Ok(mask)
}

/// Drops everything but `keep` from the bounding set; needs CAP_SETPCAP unless there is nothing to drop.
pub fn keep_in_bounding(keep: u64) -> Result<()> {
    for number in 0..CAPABILITIES_MAX {
        match read_bounding(number) {
            Ok(true) if keep & (1 << number) == 0 => {
                // SAFETY: PR_CAPBSET_DROP takes integers only.
                unsafe { syscall!(libc::SYS_prctl, libc::PR_CAPBSET_DROP, u64::from(number), 0, 0, 0) }?;
            }
            Ok(_) => {}
            Err(Errno::INVAL) => break,
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Makes the ambient set exactly `mask`, whose bits must be permitted and inheritable.
pub fn set_ambient(mask: u64) -> Result<()> {
    ambient(libc::PR_CAP_AMBIENT_CLEAR_ALL, 0)?;
    for number in (0..CAPABILITIES_MAX).filter(|number| mask & (1 << number) != 0) {
        ambient(libc::PR_CAP_AMBIENT_RAISE, number)?;
    }
    Ok(())
}

fn read_bounding(number: u32) -> Result<bool> {
    // SAFETY: PR_CAPBSET_READ takes integers only.
    let held = unsafe { syscall!(libc::SYS_prctl, libc::PR_CAPBSET_READ, u64::from(number), 0, 0, 0) }?;
    Ok(held == 1)
}

fn ambient(operation: libc::c_int, number: u32) -> Result<()> {
    // SAFETY: PR_CAP_AMBIENT takes integers only; the last two must be 0.
    unsafe { syscall!(libc::SYS_prctl, libc::PR_CAP_AMBIENT, operation as u64, u64::from(number), 0u64, 0u64) }?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(field: &str) -> u64 {
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let line = status.lines().find(|line| line.starts_with(field)).unwrap();
        u64::from_str_radix(line.split_whitespace().nth(1).unwrap(), 16).unwrap()
    }

    #[test]
    fn sets_are_what_proc_says() {
        let sets = current().unwrap();
        assert_eq!(sets.effective, status("CapEff:"));
        assert_eq!(sets.permitted, status("CapPrm:"));
        assert_eq!(bounding().unwrap(), status("CapBnd:"));
    }

    #[test]
    fn what_is_dropped_is_gone_for_this_thread() {
        if current().unwrap().effective & SETPCAP == 0 {
            eprintln!("skipped: needs CAP_SETPCAP");
            return;
        }
        std::thread::spawn(|| {
            keep_in_bounding(MKNOD).unwrap();
            assert_eq!(status("CapBnd:"), MKNOD);
            set(Sets { effective: MKNOD, permitted: MKNOD, inheritable: MKNOD }).unwrap();
            set_ambient(MKNOD).unwrap();
            assert_eq!(status("CapAmb:"), MKNOD);
            set_ambient(0).unwrap();
            assert_eq!(status("CapAmb:"), 0);
        })
        .join()
        .unwrap();
    }
}
