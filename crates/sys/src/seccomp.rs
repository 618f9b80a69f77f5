//! Loading a compiled system call filter. Compiling one is the daemon's work.

use crate::call::syscall;
use rustix::io::Result;

/// The kernel's BPF_MAXINSNS.
const INSTRUCTIONS_MAX: usize = 4096;

/// A filter program, ready to be loaded without allocating.
#[derive(Debug, Clone)]
pub struct Filter {
    program: Vec<libc::sock_filter>,
}

impl Filter {
    /// Takes `struct sock_filter[]` as bytes in the machine's order; `None` if that cannot be a program.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (instructions, rest) = bytes.as_chunks::<8>();
        if !rest.is_empty() || instructions.is_empty() || instructions.len() > INSTRUCTIONS_MAX {
            return None;
        }
        let program = instructions
            .iter()
            .map(|&[c0, c1, jt, jf, k0, k1, k2, k3]| libc::sock_filter {
                code: u16::from_ne_bytes([c0, c1]),
                jt,
                jf,
                k: u32::from_ne_bytes([k0, k1, k2, k3]),
            })
            .collect();
        Some(Self { program })
    }

    /// Loads it for the calling thread and all that it starts; needs no_new_privs or CAP_SYS_ADMIN.
    pub fn load(&self) -> Result<()> {
        let program = libc::sock_fprog {
            // At most INSTRUCTIONS_MAX, see from_bytes.
            len: self.program.len() as u16,
            filter: self.program.as_ptr().cast_mut(),
        };
        // SAFETY: `program` and the instructions it points to live until the call returns; the kernel only reads them.
        unsafe { syscall!(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0u32, &raw const program) }?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// "Fail `number` with EPERM, allow the rest", without looking at the architecture.
    fn deny(number: u32) -> Vec<u8> {
        let instructions: [(u16, u8, u8, u32); 4] =
            [(0x20, 0, 0, 0), (0x15, 0, 1, number), (0x06, 0, 0, 0x0005_0001), (0x06, 0, 0, 0x7fff_0000)];
        let bytes = |&(code, jt, jf, k): &(u16, u8, u8, u32)| {
            [code.to_ne_bytes().as_slice(), &[jt, jf], &k.to_ne_bytes()].concat()
        };
        instructions.iter().flat_map(bytes).collect()
    }

    #[test]
    fn only_whole_instructions_are_a_program() {
        assert!(Filter::from_bytes(&[]).is_none());
        assert!(Filter::from_bytes(&[0; 12]).is_none());
        assert!(Filter::from_bytes(&vec![0; 8 * (INSTRUCTIONS_MAX + 1)]).is_none());
        assert!(Filter::from_bytes(&[0; 16]).is_some());
    }

    #[test]
    fn a_loaded_filter_holds_for_the_thread_that_loaded_it() {
        let filter = Filter::from_bytes(&deny(libc::SYS_getppid as u32)).unwrap();
        std::thread::spawn(move || {
            rustix::thread::set_no_new_privs(true).unwrap();
            filter.load().unwrap();
            // SAFETY: getppid takes nothing.
            let result = unsafe { syscall!(libc::SYS_getppid) };
            assert_eq!(result, Err(rustix::io::Errno::PERM));
        })
        .join()
        .unwrap();
        assert!(rustix::process::getppid().is_some());
    }
}
