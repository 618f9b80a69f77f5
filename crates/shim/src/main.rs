//! KEEPS ALIVE. One process per pod: it makes the pod's namespaces and its containers when the daemon says so, reaps
//! them, writes their logs and keeps their exit codes, and goes on doing so when the daemon is gone.
//!
//! One thread around one epoll: [`supervisor`] waits and decides what comes next, [`requests`] answers the daemon over
//! a [`connection`], [`container`] is one container with its pipes, [`log`] the file that these end in, [`attach`] who
//! else sees what comes out of them. What a container is and how it is started is the `runtime`'s; nothing is decided
//! here that the daemon could have decided.
//!
//! It is started with a listening Unix SEQPACKET socket as standard input, the pod's run-time directory as working
//! directory and a file for its own complaints as standard error. Its arguments are for people who read `ps`, but for
//! two that ask for something else altogether: to try what the host allows, and [`keeper`].

mod attach;
mod connection;
mod container;
mod keeper;
mod log;
mod requests;
mod supervisor;

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use knarr_model::plan::Rlimit;
use knarr_sys::{process, signal};
use knarr_wire::shim::PROBE_USER_NAMESPACES;
use rustix::fs::{Mode, OFlags};
use rustix::process::{Resource, Signal};

/// Descriptors that the shim may have open: five of each container, two of each exec and each attached client, those of
/// one message and some of its own are 2500. The usual soft limit of 1024 is for programs that call select.
const DESCRIPTORS_MAX: u64 = 4096;

/// RLIMIT_NOFILE of the kernel.
const FILES: u32 = 7;

fn main() -> ExitCode {
    let keeps = std::env::args_os().nth(1).is_some_and(|argument| argument == keeper::ARGUMENT);
    match if keeps { keeper::run() } else { run() } {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("knarr-shim: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> io::Result<()> {
    // Before anything else: a process of a container that has joined us half-way must never be able to open
    // /proc/<us>/exe or our descriptors. The flag is inherited by every clone until its execve.
    process::forbid_dumps()?;
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_some_and(|argument| argument == PROBE_USER_NAMESPACES) {
        let directories: Vec<PathBuf> = arguments.map(PathBuf::from).collect();
        let directories: Vec<&Path> = directories.iter().map(PathBuf::as_path).collect();
        return knarr_runtime::probe_user_namespaces(&directories)
            .map_err(|failure| io::Error::other(failure.to_string()));
    }
    process::become_subreaper()?;
    // The daemon opens nothing without this flag; a library of its may, and a container must not get that.
    process::close_on_exec_from(3)?;
    rustix::thread::set_name(c"knarr-shim")?;
    let files_of_processes = raise_files_limit();
    // Already leading a session is no harm.
    let _ = rustix::process::setsid();
    // All signals are blocked: none can end the shim but KILL, and a SIGPIPE or SIGXFSZ comes as an errno. The runtime
    // empties the mask again in each process that it starts.
    signal::set_mask(signal::Set::ALL)?;
    let signals = signal::descriptor(signal::Set::of(&[Signal::CHILD.as_raw(), Signal::TERM.as_raw()]))?;

    let listener = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::io::ioctl_fionbio(&listener, true)?;

    supervisor::Supervisor::new(listener, signals, null, files_of_processes)?.run()
}

/// Raises how many descriptors the shim may have open, as far as it may. Gives what it was, if it was raised: that is
/// what the processes get that it starts, unless their plans say otherwise.
fn raise_files_limit() -> Option<Rlimit> {
    let before = rustix::process::getrlimit(Resource::Nofile);
    let soft = before.current?;
    let wanted = before.maximum.unwrap_or(u64::MAX).min(DESCRIPTORS_MAX);
    if soft >= wanted {
        return None;
    }
    let raised = rustix::process::Rlimit { current: Some(wanted), maximum: before.maximum };
    match rustix::process::setrlimit(Resource::Nofile, raised) {
        Ok(()) => Some(Rlimit { resource: FILES, soft, hard: before.maximum.unwrap_or(u64::MAX) }),
        Err(errno) => {
            eprintln!("knarr-shim: raise the limit of open files from {soft} to {wanted}: {errno}");
            None
        }
    }
}
