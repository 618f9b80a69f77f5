//! The runtime's own profile: what ordinary programs need, and what a capability that the container has makes useful.
//! Names stand in one text per topic, separated by spaces.
//!
//! In effect it is containerd's and Docker's default of 2026, so that a workload that runs there runs here. What is
//! not named gets EPERM, or ENOSYS if it is newer than everything named (see `bpf`): a C library that tries a new
//! call must see "there is none" to fall back to an old one.

use super::profile::{Condition, KernelVersion, Profile, Rule};
use oci_spec::runtime::{Arch, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompArgBuilder, LinuxSeccompOperator};

/// Opening, reading, writing and naming files.
const FILES: &str = "\
    _llseek access chdir chmod chown chown32 close close_range copy_file_range creat dup dup2 dup3 faccessat \
    faccessat2 fadvise64 fadvise64_64 fallocate fchdir fchmod fchmodat fchmodat2 fchown fchown32 fchownat fcntl \
    fcntl64 fdatasync flock fstat fstat64 fstatat64 fstatfs fstatfs64 fsync ftruncate ftruncate64 futimesat getcwd \
    getdents getdents64 ioctl lchown lchown32 link linkat listmount lseek lstat lstat64 mkdir mkdirat mknod mknodat \
    name_to_handle_at newfstatat open openat openat2 pipe pipe2 pread64 preadv preadv2 pwrite64 pwritev pwritev2 \
    read readahead readlink readlinkat readv rename renameat renameat2 rmdir sendfile sendfile64 splice stat stat64 \
    statfs statfs64 statmount statx symlink symlinkat sync sync_file_range syncfs tee truncate truncate64 umask \
    unlink unlinkat utime utimensat utimensat_time64 utimes vmsplice write writev";
/// Extended attributes.
const EXTENDED_ATTRIBUTES: &str = "\
    fgetxattr flistxattr fremovexattr fsetxattr getxattr getxattrat lgetxattr listxattr listxattrat llistxattr \
    lremovexattr lsetxattr removexattr removexattrat setxattr setxattrat";
/// Waiting for files and events.
const WAITING: &str = "\
    _newselect epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old \
    eventfd eventfd2 fanotify_mark inotify_add_watch inotify_init inotify_init1 inotify_rm_watch io_cancel \
    io_destroy io_getevents io_pgetevents io_pgetevents_time64 io_setup io_submit poll ppoll ppoll_time64 pselect6 \
    pselect6_time64 select signalfd signalfd4 timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime \
    timerfd_settime64";
/// Memory.
const MEMORY: &str = "\
    brk cachestat madvise map_shadow_stack membarrier memfd_create memfd_secret mincore mlock mlock2 mlockall mmap \
    mmap2 mprotect mremap mseal msync munlock munlockall munmap pkey_alloc pkey_free pkey_mprotect process_mrelease \
    remap_file_pages";
/// Who a process is.
const IDENTITY: &str = "\
    capget capset getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32 getpgid getpgrp getpid \
    getppid getresgid getresgid32 getresuid getresuid32 getsid gettid getuid getuid32 setfsgid setfsgid32 setfsuid \
    setfsuid32 setgid setgid32 setgroups setgroups32 setpgid setregid setregid32 setresgid setresgid32 setresuid \
    setresuid32 setreuid setreuid32 setsid setuid setuid32";
/// Making, ending and steering processes.
const PROCESSES: &str = "\
    execve execveat exit exit_group fork futex futex_requeue futex_time64 futex_wait futex_waitv futex_wake \
    get_robust_list get_thread_area getcpu getpriority getrlimit getrusage ioprio_get ioprio_set kill \
    landlock_add_rule landlock_create_ruleset landlock_restrict_self lsm_get_self_attr lsm_list_modules \
    lsm_set_self_attr pause pidfd_open pidfd_send_signal prctl prlimit64 restart_syscall rseq sched_get_priority_max \
    sched_get_priority_min sched_getaffinity sched_getattr sched_getparam sched_getscheduler sched_rr_get_interval \
    sched_rr_get_interval_time64 sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield \
    seccomp set_robust_list set_thread_area set_tid_address setpriority setrlimit tgkill tkill ugetrlimit uretprobe \
    vfork wait4 waitid waitpid";
/// Signals and timers of a process.
const SIGNALS: &str = "\
    alarm getitimer rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend \
    rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo setitimer sigaltstack sigprocmask sigreturn \
    timer_create timer_delete timer_getoverrun timer_gettime timer_gettime64 timer_settime timer_settime64";
/// Clocks.
const TIME: &str = "\
    adjtimex clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime clock_gettime64 \
    clock_nanosleep clock_nanosleep_time64 gettimeofday nanosleep time times";
/// System V and POSIX message passing.
const IPC: &str = "\
    ipc mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend mq_timedsend_time64 \
    mq_unlink msgctl msgget msgrcv msgsnd semctl semget semop semtimedop semtimedop_time64 shmat shmctl shmdt shmget";
/// Sockets, but for making one.
const SOCKETS: &str = "\
    accept accept4 bind connect getpeername getsockname getsockopt listen recv recvfrom recvmmsg recvmmsg_time64 \
    recvmsg send sendmmsg sendmsg sendto setsockopt shutdown socketcall socketpair";
/// Asking about the system.
const SYSTEM: &str = "\
    getrandom sysinfo uname";

/// Everything that is allowed without any condition.
const ALWAYS: [&str; 11] =
    [FILES, EXTENDED_ATTRIBUTES, WAITING, MEMORY, IDENTITY, PROCESSES, SIGNALS, TIME, IPC, SOCKETS, SYSTEM];

/// What a capability unlocks.
const WITH_CAPABILITY: [(&str, &str); 14] = [
    ("BPF", "bpf"),
    ("DAC_READ_SEARCH", "open_by_handle_at"),
    ("PERFMON", "perf_event_open"),
    (
        "SYS_ADMIN",
        "\
            bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie mount mount_setattr move_mount \
            open_tree perf_event_open quotactl quotactl_fd setdomainname sethostname setns syslog umount umount2 unshare",
    ),
    ("SYS_BOOT", "reboot"),
    ("SYS_CHROOT", "chroot"),
    ("SYS_MODULE", "delete_module finit_module init_module"),
    ("SYS_NICE", "get_mempolicy mbind set_mempolicy set_mempolicy_home_node"),
    ("SYS_PACCT", "acct"),
    ("SYS_PTRACE", "kcmp pidfd_getfd process_madvise process_vm_readv process_vm_writev ptrace"),
    ("SYS_RAWIO", "ioperm iopl"),
    ("SYS_TIME", "clock_settime clock_settime64 settimeofday stime"),
    ("SYS_TTY_CONFIG", "vhangup"),
    ("SYSLOG", "syslog"),
];

/// What exists on some machines only, by the name that profiles use for a machine.
const ON_MACHINE: [(&str, &str); 6] = [
    ("ppc64le", "swapcontext sync_file_range2"),
    ("arm arm64", "arm_fadvise64_64 arm_sync_file_range breakpoint cacheflush set_tls sync_file_range2"),
    ("amd64", "arch_prctl"),
    ("amd64 386", "modify_ldt"),
    ("s390x", "s390_pci_mmio_read s390_pci_mmio_write s390_runtime_instr"),
    ("riscv64", "riscv_flush_icache riscv_hwprobe"),
];

/// Execution domains that are harmless: PER_LINUX and PER_LINUX32, each with and without UNAME26, and "only tell me"
/// (all ones).
const PERSONALITIES: [u64; 5] = [0x0, 0x8, 0x20000, 0x20008, 0xffff_ffff];

/// CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID and NEWNET: a new namespace is a way to new privileges.
const NAMESPACE_FLAGS: u64 = 0x7e02_0000;

/// AF_ALG opens the kernel's crypto code to everyone, AF_VSOCK reaches the host past every network policy.
const AF_ALG: u64 = 38;
const AF_VSOCK: u64 = 40;

/// ENOSYS
const ENOSYS: u32 = 38;

/// The profile, for every machine and every set of capabilities; [`Profile::resolve`] makes it one container's.
pub(super) fn profile() -> Profile {
    let mut rules = ALWAYS.map(Rule::allow).to_vec();
    rules.extend(socket_rules());
    rules.extend(
        PERSONALITIES
            .iter()
            .map(|domain| Rule::allow("personality").with(argument(0, LinuxSeccompOperator::ScmpCmpEq, *domain, None))),
    );
    // Since 4.8 seccomp is asked again after ptrace has changed a call, so tracing opens no way around the filter.
    let since_4_8 = Condition { min_kernel: Some(KernelVersion(4, 8)), ..Condition::default() };
    rules.push(Rule::allow("process_vm_readv process_vm_writev ptrace").only(since_4_8));
    for (machines, names) in ON_MACHINE {
        rules.push(Rule::allow(names).only(Condition::on(machines)));
    }
    for (capability, names) in WITH_CAPABILITY {
        rules.push(Rule::allow(names).only(Condition::having(capability)));
    }
    rules.extend(clone_rules());
    Profile {
        default_action: LinuxSeccompAction::ScmpActErrno,
        default_errno: None,
        architectures: Vec::new(),
        families: families(),
        rules,
    }
}

/// Every address family but two, as three ranges: two conditions on one argument of one rule would be joined by "or".
fn socket_rules() -> [Rule; 3] {
    [
        (LinuxSeccompOperator::ScmpCmpLt, AF_ALG),
        (LinuxSeccompOperator::ScmpCmpEq, AF_ALG + 1),
        (LinuxSeccompOperator::ScmpCmpGt, AF_VSOCK),
    ]
    .map(|(operator, family)| Rule::allow("socket").with(argument(0, operator, family, None)))
}

/// Without CAP_SYS_ADMIN clone makes no namespaces. The flags of clone3 are in memory where a filter cannot look, so
/// it is said not to exist: the C library then takes clone.
fn clone_rules() -> [Rule; 3] {
    let without_namespaces = |index| argument(index, LinuxSeccompOperator::ScmpCmpMaskedEq, NAMESPACE_FLAGS, Some(0));
    let s390 = Condition::on("s390x");
    [
        Rule::allow("clone").with(without_namespaces(0)).unless(Condition::having("SYS_ADMIN")).not_on("s390x"),
        // There the flags are the second argument.
        Rule::allow("clone").with(without_namespaces(1)).only(s390).unless(Condition::having("SYS_ADMIN")),
        Rule {
            action: LinuxSeccompAction::ScmpActErrno,
            errno: Some(ENOSYS),
            ..Rule::allow("clone3").unless(Condition::having("SYS_ADMIN"))
        },
    ]
}

fn argument(index: usize, operator: LinuxSeccompOperator, value: u64, second: Option<u64>) -> LinuxSeccompArg {
    let builder = LinuxSeccompArgBuilder::default().index(index).op(operator).value(value);
    let builder = match second {
        Some(second) => builder.value_two(second),
        None => builder,
    };
    // Every field of the builder has a default, so that it cannot fail.
    builder.build().unwrap_or_default()
}

/// Which other machines' programs a machine runs.
fn families() -> Vec<(Arch, Vec<Arch>)> {
    vec![
        (Arch::ScmpArchX86_64, vec![Arch::ScmpArchX86, Arch::ScmpArchX32]),
        (Arch::ScmpArchAarch64, vec![Arch::ScmpArchArm]),
        (Arch::ScmpArchMips64, vec![Arch::ScmpArchMips, Arch::ScmpArchMips64n32]),
        (Arch::ScmpArchMipsel64, vec![Arch::ScmpArchMipsel, Arch::ScmpArchMipsel64n32]),
        (Arch::ScmpArchS390x, vec![Arch::ScmpArchS390]),
    ]
}
