//! Runs a compiled filter as the kernel would, to see what it says; and the tables of what it must say.

use super::profile::KernelVersion;
use super::{Compiler, Profile, default, parse};
use crate::oci::capability;
use libseccomp::{ScmpArch, ScmpSyscall};

const ALLOW: u32 = 0x7fff_0000;
const EPERM: u32 = 0x0005_0001;
const ENOSYS: u32 = 0x0005_0026;
const KILL_THREAD: u32 = 0;
const X86_64: u32 = 0xc000_003e;
const I386: u32 = 0x4000_0003;
const AARCH64: u32 = 0xc000_00b7;
const KERNEL: KernelVersion = KernelVersion(6, 1);

/// `struct seccomp_data`
#[derive(Clone, Copy)]
struct Call {
    number: u32,
    arch: u32,
    arguments: [u64; 6],
}

impl Call {
    fn word(&self, offset: u32) -> u32 {
        match offset {
            0 => self.number,
            4 => self.arch,
            8 | 12 => 0,
            16..64 => {
                let argument = self.arguments[(offset as usize - 16) / 8];
                let high = cfg!(target_endian = "little") == (offset % 8 == 4);
                (if high { argument >> 32 } else { argument }) as u32
            }
            _ => panic!("the filter looks at offset {offset}"),
        }
    }
}

/// Runs to the end and gives the return value. Panics on what the kernel would refuse to load.
fn run(program: &[u8], call: Call) -> u32 {
    let instructions: Vec<&[u8]> = program.chunks_exact(8).collect();
    assert!(program.len().is_multiple_of(8) && instructions.len() <= 4096, "{} instructions", instructions.len());
    let (mut at, mut accumulator) = (0_usize, 0_u32);
    loop {
        let raw = instructions[at];
        let code = u16::from_ne_bytes([raw[0], raw[1]]);
        let (if_true, if_false) = (usize::from(raw[2]), usize::from(raw[3]));
        let value = u32::from_ne_bytes([raw[4], raw[5], raw[6], raw[7]]);
        let branch = |taken: bool| if taken { if_true } else { if_false };
        at += 1 + match code {
            0x20 => {
                accumulator = call.word(value);
                0
            }
            0x54 => {
                accumulator &= value;
                0
            }
            0x05 => value as usize,
            0x15 => branch(accumulator == value),
            0x25 => branch(accumulator > value),
            0x35 => branch(accumulator >= value),
            0x45 => branch(accumulator & value != 0),
            0x06 => return value,
            _ => panic!("opcode {code:#x} at {at}"),
        };
    }
}

fn own_arch() -> u32 {
    match std::env::consts::ARCH {
        "x86_64" => X86_64,
        "aarch64" => AARCH64,
        other => panic!("no tables for {other}"),
    }
}

fn program(profile: &Profile, capabilities: &[&str]) -> Vec<u8> {
    let seccomp = profile.resolve(capability::mask(capabilities.iter().copied()), KERNEL).unwrap();
    Compiler::default().compile(&seccomp).unwrap().to_vec()
}

fn says(program: &[u8], name: &str, arguments: &[u64]) -> u32 {
    let number = ScmpSyscall::from_name(name).unwrap_or_else(|_| panic!("{name} is not known")).as_raw_syscall();
    says_number(program, number as u32, arguments)
}

fn says_number(program: &[u8], number: u32, arguments: &[u64]) -> u32 {
    let mut all = [0; 6];
    all[..arguments.len()].copy_from_slice(arguments);
    run(program, Call { number, arch: own_arch(), arguments: all })
}

#[test]
fn the_default_profile_lets_programs_run_and_keeps_them_from_the_kernel() {
    let program = program(&default::profile(), &["CHOWN", "SETUID", "SYS_CHROOT"]);
    for name in [
        "read",
        "openat",
        "execve",
        "futex",
        "mmap",
        "socketpair",
        "chroot",
        "mknodat",
        "ptrace",
        "process_vm_readv",
        "landlock_restrict_self",
        "memfd_secret",
        "pidfd_open",
        "setuid",
        "capset",
        "io_setup",
        "name_to_handle_at",
    ] {
        assert_eq!(says(&program, name, &[]), ALLOW, "{name}");
    }
    for name in [
        "mount",
        "umount2",
        "setns",
        "unshare",
        "bpf",
        "perf_event_open",
        "init_module",
        "finit_module",
        "kexec_load",
        "kexec_file_load",
        "reboot",
        "settimeofday",
        "clock_settime",
        "swapon",
        "swapoff",
        "acct",
        "add_key",
        "request_key",
        "keyctl",
        "userfaultfd",
        "open_by_handle_at",
        "io_uring_setup",
        "io_uring_enter",
        "mbind",
        "move_pages",
        "syslog",
        "quotactl",
        "pivot_root",
        "fsopen",
        "open_tree",
        "move_mount",
        "vhangup",
        "nfsservctl",
        "lookup_dcookie",
        "pidfd_getfd",
        "kcmp",
    ] {
        assert_eq!(says(&program, name, &[]), EPERM, "{name}");
    }
}

#[test]
fn a_capability_unlocks_its_calls_and_no_others() {
    for (capability, unlocked, locked) in [
        ("SYS_ADMIN", "mount", "reboot"),
        ("SYS_ADMIN", "clone3", "kexec_load"),
        ("SYS_ADMIN", "perf_event_open", "open_by_handle_at"),
        ("BPF", "bpf", "perf_event_open"),
        ("PERFMON", "perf_event_open", "bpf"),
        ("SYS_BOOT", "reboot", "mount"),
        ("SYS_CHROOT", "chroot", "acct"),
        ("SYS_MODULE", "finit_module", "mount"),
        ("SYS_NICE", "mbind", "kcmp"),
        ("SYS_PACCT", "acct", "chroot"),
        ("SYS_PTRACE", "pidfd_getfd", "mbind"),
        ("SYS_TIME", "clock_settime", "syslog"),
        ("SYS_TTY_CONFIG", "vhangup", "mount"),
        ("SYSLOG", "syslog", "settimeofday"),
        ("DAC_READ_SEARCH", "open_by_handle_at", "mount"),
    ] {
        let with = program(&default::profile(), &[capability]);
        assert_eq!(says(&with, unlocked, &[]), ALLOW, "{capability}: {unlocked}");
        assert_ne!(says(&with, locked, &[]), ALLOW, "{capability}: {locked}");
        let without = program(&default::profile(), &[]);
        assert_ne!(says(&without, unlocked, &[]), ALLOW, "nothing: {unlocked}");
    }
}

#[test]
fn arguments_are_looked_at() {
    let program = program(&default::profile(), &[]);
    for (family, expected) in [(1, ALLOW), (2, ALLOW), (10, ALLOW), (16, ALLOW), (17, ALLOW), (37, ALLOW)] {
        assert_eq!(says(&program, "socket", &[family]), expected, "socket family {family}");
    }
    for (family, expected) in [(38, EPERM), (39, ALLOW), (40, EPERM), (41, ALLOW), (44, ALLOW)] {
        assert_eq!(says(&program, "socket", &[family]), expected, "socket family {family}");
    }
    for (domain, expected) in [
        (0, ALLOW),
        (8, ALLOW),
        (0x20000, ALLOW),
        (0x20008, ALLOW),
        (0xffff_ffff, ALLOW),
        (0x0040_0000, EPERM),
        (1, EPERM),
    ] {
        assert_eq!(says(&program, "personality", &[domain]), expected, "personality {domain:#x}");
    }
    let thread = 0x003d_0f00;
    for (flags, expected) in [
        (17, ALLOW),
        (thread, ALLOW),
        (0x0002_0000, EPERM),
        (0x0200_0000, EPERM),
        (0x0400_0000, EPERM),
        (0x0800_0000, EPERM),
        (0x1000_0000, EPERM),
        (0x2000_0000, EPERM),
        (0x4000_0000, EPERM),
        (0x1000_0000 | thread, EPERM),
    ] {
        assert_eq!(says(&program, "clone", &[flags]), expected, "clone {flags:#x}");
    }
    assert_eq!(says(&program, "clone3", &[]), ENOSYS);
}

#[test]
fn calls_from_after_libseccomp_are_answered_too() {
    let with = program(&default::profile(), &[]);
    // fchmodat2, futex_wait, mseal, removexattrat
    for number in [452, 455, 462, 466] {
        assert_eq!(says_number(&with, number, &[]), ALLOW, "{number}");
    }
    // open_tree_attr is above all that are named, and so is everything to come.
    for number in [467, 470, 1000, 0x3fff_ffff] {
        assert_eq!(says_number(&with, number, &[]), ENOSYS, "{number}");
    }
}

#[test]
fn other_architectures_programs_are_filtered_by_their_own_numbers() {
    if own_arch() != X86_64 {
        eprintln!("skipped: the numbers here are those of x86");
        return;
    }
    let program = program(&default::profile(), &[]);
    let says = |arch: u32, number: u32| run(&program, Call { number, arch, arguments: [0; 6] });
    let of_i386 = |name: &str| ScmpSyscall::from_name_by_arch(name, ScmpArch::X86).unwrap().as_raw_syscall() as u32;
    assert_eq!(says(I386, of_i386("read")), ALLOW);
    assert_eq!(says(I386, of_i386("socketcall")), ALLOW);
    assert_eq!(says(I386, of_i386("mount")), EPERM);
    assert_eq!(says(I386, 455), ALLOW, "futex_wait");
    assert_eq!(says(I386, 600), ENOSYS);
    let x32 = 0x4000_0000;
    assert_eq!(says(X86_64, x32), ALLOW, "x32 read");
    assert_eq!(says(X86_64, x32 | 165), EPERM, "x32 mount");
    assert_eq!(says(X86_64, x32 | 455), ALLOW, "x32 futex_wait");
    assert_eq!(says(X86_64, x32 | 0x1000), ENOSYS);
    assert_eq!(says(AARCH64, 63), KILL_THREAD, "no program of another machine gets a call through");
}

#[test]
fn a_profile_with_an_errno_of_its_own_decides_about_unknown_calls() {
    let json = br#"{"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 13,
        "syscalls": [{"names": ["read", "mseal", "no_such_call"], "action": "SCMP_ACT_ALLOW"},
                     {"names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "errnoRet": 13},
                     {"names": ["write"], "action": "SCMP_ACT_KILL_PROCESS"}]}"#;
    let program = program(&parse(json).unwrap(), &[]);
    assert_eq!(says(&program, "read", &[]), ALLOW);
    assert_eq!(says(&program, "mkdir", &[]), 0x0005_000d);
    assert_eq!(says(&program, "write", &[]), 0x8000_0000);
    assert_eq!(says_number(&program, 462, &[]), ALLOW, "mseal");
    assert_eq!(says_number(&program, 461, &[]), 0x0005_000d);
    assert_eq!(says_number(&program, 5000, &[]), 0x0005_000d);
}

#[test]
fn a_list_of_what_is_forbidden_leaves_the_rest_alone() {
    let json = br#"{"defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["chmod", "fchmodat2"], "action": "SCMP_ACT_ERRNO"},
                     {"names": ["kill"], "action": "SCMP_ACT_ERRNO", "args": [
                        {"index": 1, "value": 9, "op": "SCMP_CMP_EQ"}, {"index": 1, "value": 15, "op": "SCMP_CMP_EQ"}]}]}"#;
    let program = program(&parse(json).unwrap(), &[]);
    assert_eq!(says(&program, "read", &[]), ALLOW);
    assert_eq!(says(&program, "kill", &[1, 9]), EPERM, "conditions on one argument mean or");
    assert_eq!(says(&program, "kill", &[1, 15]), EPERM);
    assert_eq!(says(&program, "kill", &[1, 1]), ALLOW);
    assert_eq!(says_number(&program, 452, &[]), EPERM, "fchmodat2");
    assert_eq!(says_number(&program, 5000, &[]), ALLOW);
}

#[test]
fn the_same_profile_is_compiled_once_and_the_cache_has_an_end() {
    let compiler = Compiler::default();
    let seccomp = default::profile().resolve(0, KERNEL).unwrap();
    let first = compiler.compile(&seccomp).unwrap();
    assert!(std::sync::Arc::ptr_eq(&first, &compiler.compile(&seccomp).unwrap()));
    for errno in 1..100 {
        let json = format!(r#"{{"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": {errno}}}"#);
        compiler.compile(&parse(json.as_bytes()).unwrap().resolve(0, KERNEL).unwrap()).unwrap();
    }
    assert!(!std::sync::Arc::ptr_eq(&first, &compiler.compile(&seccomp).unwrap()), "the oldest is forgotten");
}
