//! The device controller of cgroup2: a program that the kernel asks at each opening and making of a device. Which
//! devices are allowed is the caller's to say; this file turns the list into a program and attaches it.

use crate::call::syscall;
use rustix::io::Result;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

/// What a rule allows, as in `BPF_DEVCG_ACC_*`.
pub const MKNOD: u32 = 1;
/// Opening for reading.
pub const READ: u32 = 2;
/// Opening for writing.
pub const WRITE: u32 = 4;

/// One rule: devices of this kind and these numbers may be used in these ways.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// a block device, else a character device
    pub block: bool,
    /// `None` for all
    pub major: Option<u32>,
    /// `None` for all
    pub minor: Option<u32>,
    /// some of [`MKNOD`], [`READ`], [`WRITE`]
    pub access: u32,
}

/// Instructions of one rule at most, of what is before the rules and of what is after them.
const RULE_INSTRUCTIONS: usize = 8;

// Codes of instructions (linux/bpf.h), by what they do here.
const LOAD_WORD: u8 = 0x61;
const MOVE_REGISTER: u8 = 0xbf;
const MOVE: u8 = 0xb7;
const AND_32: u8 = 0x54;
const SHIFT_RIGHT_32: u8 = 0x74;
const SKIP_UNLESS_EQUAL: u8 = 0x55;
const EXIT: u8 = 0x95;

/// `struct bpf_insn`.
fn instruction(code: u8, to: u8, from: u8, offset: i16, value: i32) -> [u8; 8] {
    let [o0, o1] = offset.to_ne_bytes();
    let [v0, v1, v2, v3] = value.to_ne_bytes();
    let registers = if cfg!(target_endian = "little") { from << 4 | to } else { to << 4 | from };
    [code, registers, o0, o1, v0, v1, v2, v3]
}

/// Says yes where a rule holds, else no: an empty list forbids every device.
fn program(rules: &[Rule]) -> Vec<[u8; 8]> {
    // r1 is the question: { kind in the lower half and access in the upper half of a word, major, minor }.
    let mut program = vec![
        instruction(LOAD_WORD, 2, 1, 0, 0),
        instruction(MOVE_REGISTER, 3, 2, 0, 0),
        instruction(AND_32, 2, 0, 0, 0xffff),
        instruction(SHIFT_RIGHT_32, 3, 0, 0, 16),
        instruction(LOAD_WORD, 4, 1, 4, 0),
        instruction(LOAD_WORD, 5, 1, 8, 0),
    ];
    for rule in rules {
        let kind = if rule.block { 1 } else { 2 };
        let mut tests = vec![instruction(SKIP_UNLESS_EQUAL, 2, 0, 0, kind)];
        tests.push(instruction(MOVE_REGISTER, 1, 3, 0, 0));
        tests.push(instruction(AND_32, 1, 0, 0, !(rule.access as i32)));
        tests.push(instruction(SKIP_UNLESS_EQUAL, 1, 0, 0, 0));
        tests.extend(rule.major.map(|major| instruction(SKIP_UNLESS_EQUAL, 4, 0, 0, major as i32)));
        tests.extend(rule.minor.map(|minor| instruction(SKIP_UNLESS_EQUAL, 5, 0, 0, minor as i32)));
        tests.extend([instruction(MOVE, 0, 0, 0, 1), instruction(EXIT, 0, 0, 0, 0)]);
        let length = tests.len();
        debug_assert!(length <= RULE_INSTRUCTIONS);
        for (at, test) in tests.iter_mut().enumerate().filter(|(_, test)| test[0] == SKIP_UNLESS_EQUAL) {
            // To the next rule. At most RULE_INSTRUCTIONS away.
            let offset = ((length - at - 1) as i16).to_ne_bytes();
            (test[2], test[3]) = (offset[0], offset[1]);
        }
        program.extend(tests);
    }
    program.extend([instruction(MOVE, 0, 0, 0, 0), instruction(EXIT, 0, 0, 0, 0)]);
    program
}

const BPF_PROG_LOAD: u32 = 5;
const BPF_PROG_ATTACH: u32 = 8;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
/// More programs may be attached below: a cgroup manager within the container may have its own.
const BPF_F_ALLOW_MULTI: u32 = 2;

/// The part of `union bpf_attr` that BPF_PROG_LOAD reads, as of Linux 4.15.
#[repr(C, align(8))]
struct Load {
    kind: u32,
    instructions: u32,
    program: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
}

/// The part of `union bpf_attr` that BPF_PROG_ATTACH reads.
#[repr(C, align(8))]
struct Attach {
    target: u32,
    program: u32,
    kind: u32,
    flags: u32,
}

/// Allows the processes of a cgroup2 directory these devices and no other, from now on and as long as the cgroup is
/// there. EPERM without CAP_BPF and CAP_NET_ADMIN or CAP_SYS_ADMIN; E2BIG for more rules than a program can hold.
pub fn attach(cgroup: impl AsFd, rules: &[Rule]) -> Result<()> {
    let program = program(rules);
    let load = Load {
        kind: BPF_PROG_TYPE_CGROUP_DEVICE,
        instructions: program.len() as u32,
        program: program.as_ptr() as u64,
        // Calls none of the kernel's functions, so the licence need not be the kernel's.
        license: c"Apache-2.0".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel_version: 0,
        flags: 0,
    };
    // SAFETY: `load` and the program and text that it points to live until the call returns; the kernel only reads.
    let loaded = unsafe { syscall!(libc::SYS_bpf, BPF_PROG_LOAD, &raw const load, size_of::<Load>()) }?;
    // SAFETY: the kernel has just made this descriptor, close-on-exec, for us alone.
    let loaded = unsafe { OwnedFd::from_raw_fd(loaded as i32) };
    let attach = Attach {
        target: cgroup.as_fd().as_raw_fd() as u32,
        program: loaded.as_raw_fd() as u32,
        kind: BPF_CGROUP_DEVICE,
        flags: BPF_F_ALLOW_MULTI,
    };
    // SAFETY: `attach` lives until the call returns; both descriptors in it are open.
    unsafe { syscall!(libc::SYS_bpf, BPF_PROG_ATTACH, &raw const attach, size_of::<Attach>()) }?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::Hierarchies;
    use std::os::unix::fs::FileTypeExt;

    #[test]
    fn a_rule_is_left_to_the_next_one_and_nothing_is_allowed_at_the_end() {
        let one = Rule { block: false, major: Some(1), minor: Some(3), access: READ | WRITE | MKNOD };
        let all_blocks = Rule { block: true, major: None, minor: None, access: MKNOD };
        let program = program(&[one, all_blocks]);
        assert_eq!(program.len(), 6 + 8 + 6 + 2);
        let offset = |at: usize| i16::from_ne_bytes([program[at][2], program[at][3]]);
        // Each test of the first rule leads to the first of the second.
        for at in (6..14).filter(|at| program[*at][0] == SKIP_UNLESS_EQUAL) {
            assert_eq!(at as i16 + 1 + offset(at), 14);
        }
        assert_eq!(program[20], instruction(MOVE, 0, 0, 0, 0));
    }

    #[test]
    fn only_the_devices_of_the_list_open_in_the_cgroup() {
        let hierarchies = match Hierarchies::detect() {
            Ok(found) if rustix::process::geteuid().is_root() => found,
            _ => return eprintln!("skipped: needs root and a cgroup2 hierarchy"),
        };
        assert!(std::fs::metadata("/dev/null").unwrap().file_type().is_char_device());
        let name = format!("knarr-device-filter-{}", std::process::id());
        crate::cgroup::make_dirs(&hierarchies.tree.root, &name).unwrap();
        let directory = crate::cgroup::open_dir(&hierarchies.tree.root, &name).unwrap();
        let null = Rule { block: false, major: Some(1), minor: Some(3), access: READ | WRITE };
        let attached = attach(&directory, &[null]);
        let script = "exec 2>&1; echo $$ > \"$1/cgroup.procs\"; : < /dev/null && echo null; : < /dev/zero && echo zero";
        let place = format!("/proc/{}/fd/{}", std::process::id(), directory.as_raw_fd());
        let output = std::process::Command::new("sh").args(["-c", script, "sh", &place]).output().unwrap();
        let removed = crate::cgroup::remove_tree(&hierarchies.tree.root, &name);
        attached.unwrap();
        removed.unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(said.contains("null\n") && !said.contains("zero\n"), "{said}");
    }
}
