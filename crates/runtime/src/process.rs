//! The last part of the way to execve: the same for a container's first process and for an exec, so that the two cannot
//! diverge. Everything is laid out before the process is copied; the copy makes system calls only.
//!
//! The order matters where noted. Two things stand behind it:
//! - whatever needs privilege is done before the privilege is given up, and the filter is loaded as late as it can be;
//! - a process that enters a PID namespace in which others already run can be traced by them (CAP_SYS_PTRACE reaches
//!   every process that they see). So a helper outside does all of it, and only what it leaves, which has no more
//!   rights than the program will have, is born inside.

use crate::Attempt;
use crate::launch::{Copy, failure};
use crate::step::Step;
use knarr_model::plan::{ProcessPlan, Rlimit};
use knarr_model::{ContainerId, UserNamespace};
use knarr_sys::capability::{self, SYS_ADMIN, Sets};
use knarr_sys::process::{
    StringArray, copy_process_as_sibling, execute, join_session_keyring, raise_hard_limit, set_limit, set_oom_score,
    working_directory_is_reachable,
};
use knarr_sys::seccomp::Filter;
use knarr_sys::{open, signal, terminal};
use rustix::fs::{FileType, Gid, Mode, OFlags, Uid, fchown, fstat, openat};
use rustix::io::{Errno, Result};
use rustix::process::{fchdir, setsid};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout, stderr, stdin, stdout};
use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Where programs are looked for when the environment has no PATH.
const DEFAULT_PATH: &[u8] = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A process, laid out so that nothing has to be allocated any more.
pub(crate) struct Process {
    /// What is tried in this order, as execvp does.
    programs: Vec<CString>,
    arguments: StringArray,
    environment: StringArray,
    pub(crate) cwd: CString,
    pub(crate) create_cwd: bool,
    uid: Uid,
    gid: Gid,
    /// The same two as the host counts.
    on_host: (Uid, Gid),
    groups: Vec<Gid>,
    umask: Mode,
    no_new_privs: bool,
    bounding: u64,
    sets: Sets,
    ambient: u64,
    limits: Vec<Rlimit>,
    filter: Option<Filter>,
    /// What is written to attr/apparmor/exec.
    apparmor: Option<Vec<u8>>,
    /// What is written to attr/exec.
    selinux: Option<Vec<u8>>,
    oom_score_adj: Option<i32>,
    pub(crate) terminal: bool,
    console_size: (u16, u16),
    keyring: CString,
}

impl Process {
    /// Lays a plan out; refuses what no process can be started with.
    ///
    /// `ids` are those of the pod's user namespace.
    pub(crate) fn prepare(plan: &ProcessPlan, container: &ContainerId, ids: Option<&UserNamespace>) -> Attempt<Self> {
        let on_host = match ids {
            Some(ids) => owner_on_host(plan, ids)?,
            None => (Uid::from_raw(plan.uid), Gid::from_raw(plan.gid)),
        };
        let program = plan.args.first().filter(|program| !program.is_empty());
        let program = program.ok_or_else(|| failure(Step::Execve.words(), Errno::NOENT, ""))?;
        if !plan.cwd.starts_with(b"/") {
            return Err(failure(Step::ChangeDirectory.words(), Errno::INVAL, lossy(&plan.cwd)));
        }
        let filter = match plan.seccomp.as_slice() {
            [] => None,
            bytes => Some(
                Filter::from_bytes(bytes).ok_or_else(|| failure(Step::Seccomp.words(), Errno::INVAL, "its program"))?,
            ),
        };
        let label = |text: &[u8], prefix: &[u8]| (!text.is_empty()).then(|| [prefix, text].concat());
        let held = capability::current().map_err(|errno| failure(Step::Capabilities.words(), errno, ""))?;
        let permitted = plan.capabilities.permitted & held.permitted;
        let ambient = plan.capabilities.ambient & permitted;
        Ok(Self {
            programs: programs(program, &plan.env)?,
            arguments: StringArray::new(strings(&plan.args)?),
            environment: StringArray::new(strings(&plan.env)?),
            cwd: string(&plan.cwd)?,
            create_cwd: plan.create_cwd,
            uid: Uid::from_raw(plan.uid),
            gid: Gid::from_raw(plan.gid),
            on_host,
            groups: plan.groups.iter().map(|&group| Gid::from_raw(group)).collect(),
            umask: Mode::from_raw_mode(plan.umask & 0o777),
            no_new_privs: plan.no_new_privs,
            // A user namespace begins with all of them, also with those that the host has been denied.
            bounding: plan.capabilities.bounding & if ids.is_some() { held.permitted } else { u64::MAX },
            // The kernel keeps ambient within inheritable; without ambient ones, nothing is inheritable.
            sets: Sets { effective: plan.capabilities.effective & permitted, permitted, inheritable: ambient },
            ambient,
            limits: plan.rlimits.clone(),
            filter,
            apparmor: label(&plan.apparmor, b"exec "),
            selinux: label(&plan.selinux, b""),
            oom_score_adj: plan.oom_score_adj,
            terminal: plan.terminal,
            console_size: plan.console_size,
            keyring: string(format!("_ses.{container}").as_bytes())?,
        })
    }

    /// What must be done while `proc`, a directory of the host's procfs, is still at hand. A procfs of the container
    /// may be anything that its mounts make it.
    pub(crate) fn begin(&self, copy: &Copy<'_>, proc: BorrowedFd<'_>) -> Result<()> {
        // Modes are given in full while things are made.
        rustix::process::umask(Mode::empty());
        signal::reset_all()?;
        if let Some(score) = self.oom_score_adj {
            copy.report.step(Step::OomScore);
            set_oom_score(openat(proc, c"thread-self/oom_score_adj", read_write(), Mode::empty())?, score)?;
        }
        // Both hold from the next execve on, and are inherited by the sibling.
        if let Some(profile) = &self.apparmor {
            copy.report.step(Step::AppArmor);
            write_whole(openat(proc, c"thread-self/attr/apparmor/exec", read_write(), Mode::empty())?, profile)?;
        }
        if let Some(label) = &self.selinux {
            copy.report.step(Step::Selinux);
            write_whole(openat(proc, c"thread-self/attr/exec", read_write(), Mode::empty())?, label)?;
        }
        Ok(())
    }

    /// What cannot be done any more in the pod's user namespace: pipes that the host's root has made are nobody's there,
    /// and limits can only be lowered.
    pub(crate) fn prepare_for_user(&self, copy: &Copy<'_>, stdio: [BorrowedFd<'_>; 3]) -> Result<()> {
        for (index, limit) in self.limits.iter().enumerate() {
            copy.report.step_of(Step::Limit, index);
            raise_hard_limit(limit.resource, limit.hard)?;
        }
        if self.terminal {
            return Ok(());
        }
        for fd in stdio {
            if FileType::from_raw_mode(fstat(fd)?.st_mode) == FileType::Fifo {
                let _ = fchown(fd, Some(self.on_host.0), Some(self.on_host.1));
            }
        }
        Ok(())
    }

    /// Opens the process's terminal in the container's own devpts, hands its master over and gives its slave.
    pub(crate) fn open_terminal(&self, copy: &Copy<'_>, devpts: BorrowedFd<'_>) -> Result<OwnedFd> {
        copy.report.step(Step::OpenTerminal);
        let (master, slave) = terminal::open_pair(devpts)?;
        let (columns, rows) = self.console_size;
        if columns != 0 && rows != 0 {
            terminal::set_size(&master, columns, rows)?;
        }
        copy.hand_over(master.as_fd())?;
        Ok(slave)
    }

    /// Makes the three descriptors the standard ones, and lets the process reopen them by name (/dev/stdout).
    pub(crate) fn connect_stdio(&self, copy: &Copy<'_>, [input, output, error]: [BorrowedFd<'_>; 3]) -> Result<()> {
        copy.report.step(Step::ConnectStdio);
        dup2_stdin(input)?;
        dup2_stdout(output)?;
        dup2_stderr(error)?;
        for fd in [stdin(), stdout(), stderr()] {
            let kind = FileType::from_raw_mode(fstat(fd)?.st_mode);
            if kind == FileType::Fifo || self.terminal && kind == FileType::CharacterDevice {
                // It stays usable as it is where its owner cannot be changed.
                let _ = fchown(fd, Some(self.uid), None);
            }
        }
        Ok(())
    }

    /// The rest, in the process's final root; returns only if something failed (or, with `sibling`, when the process
    /// goes on in the helper's place).
    ///
    /// No descriptor that an owner would close on the way back may be open here, see [`Copy::close_all`].
    pub(crate) fn finish(&self, copy: &Copy<'_>, sibling: bool) -> Result<()> {
        // Best effort: a host may be out of keyrings, and nothing depends on one.
        let _ = join_session_keyring(&self.keyring);
        let entered = self.enter_cwd(copy);
        copy.close_all()?;
        for (index, limit) in self.limits.iter().enumerate() {
            copy.report.step_of(Step::Limit, index);
            set_limit(limit.resource, limit.soft, limit.hard)?;
        }
        self.take_identity(copy)?;
        if entered.is_err() {
            // Root may be the one who is not let in (a volume that maps root to nobody).
            self.enter_cwd(copy)?;
        }
        rustix::process::umask(self.umask);
        if !self.no_new_privs && self.filter.is_some() {
            // Only the privileged may load a filter then: with the last privilege, and nothing but execve after it.
            self.load_filter(copy)?;
            self.set_capabilities(copy, 0)?;
        }
        if !sibling {
            return self.execute(copy);
        }
        copy.report.step(Step::EnterPidNamespace);
        let pid = copy_process_as_sibling(0, || copy.status_of(self.execute(copy)))?;
        copy.report.set_sibling(pid);
        Ok(())
    }

    fn enter_cwd(&self, copy: &Copy<'_>) -> Result<()> {
        copy.report.step(Step::ChangeDirectory);
        // Not chdir, which would follow /proc/self/fd/N and the like to whatever is open there.
        let root = knarr_sys::mount::open_path(c"/")?;
        fchdir(open::in_root(root, &self.cwd, OFlags::PATH | OFlags::DIRECTORY)?)?;
        if working_directory_is_reachable() { Ok(()) } else { Err(Errno::NOENT) }
    }

    fn take_identity(&self, copy: &Copy<'_>) -> Result<()> {
        let held = capability::current()?.permitted;
        copy.report.step(Step::Capabilities);
        capability::keep_in_bounding(self.bounding)?;
        if self.no_new_privs {
            copy.report.step(Step::NoNewPrivileges);
            rustix::thread::set_no_new_privs(true)?;
        }
        copy.report.step(Step::SetGroups);
        rustix::thread::set_thread_groups(&self.groups)?;
        copy.report.step(Step::SetGid);
        rustix::thread::set_thread_res_gid(self.gid, self.gid, self.gid)?;
        copy.report.step(Step::SetUid);
        rustix::thread::set_keep_capabilities(true)?;
        rustix::thread::set_thread_res_uid(self.uid, self.uid, self.uid)?;
        rustix::thread::set_keep_capabilities(false)?;
        let for_filter = if self.filter.is_some() && !self.no_new_privs { SYS_ADMIN & held } else { 0 };
        self.set_capabilities(copy, for_filter)
    }

    /// Takes on the sets of the plan, with `more` permitted and effective.
    fn set_capabilities(&self, copy: &Copy<'_>, more: u64) -> Result<()> {
        copy.report.step(Step::Capabilities);
        let Sets { effective, permitted, inheritable } = self.sets;
        capability::set(Sets { effective: effective | more, permitted: permitted | more, inheritable })?;
        capability::set_ambient(self.ambient)
    }

    fn load_filter(&self, copy: &Copy<'_>) -> Result<()> {
        copy.report.step(Step::Seccomp);
        self.filter.as_ref().map_or(Ok(()), Filter::load)
    }

    /// In the process that becomes the program.
    fn execute(&self, copy: &Copy<'_>) -> Result<()> {
        copy.report.step(Step::Session);
        setsid()?;
        if self.terminal {
            rustix::process::ioctl_tiocsctty(stdin())?;
        }
        if self.no_new_privs {
            self.load_filter(copy)?;
        }
        copy.report.step(Step::Execve);
        copy.report.ready();
        let mut denied = false;
        for program in &self.programs {
            match execute(program, &self.arguments, &self.environment) {
                Errno::NOENT | Errno::NOTDIR if self.programs.len() > 1 => {}
                Errno::ACCESS if self.programs.len() > 1 => denied = true,
                errno => return Err(errno),
            }
        }
        Err(if denied { Errno::ACCESS } else { Errno::NOENT })
    }
}

/// An id that is not mapped is nobody's: no process can have it.
fn owner_on_host(plan: &ProcessPlan, ids: &UserNamespace) -> Attempt<(Uid, Gid)> {
    let not_mapped = |step: Step, id: u32| failure(step.words(), Errno::INVAL, format!("{id}, which is not mapped"));
    let uid = ids.uids.to_host(plan.uid).ok_or_else(|| not_mapped(Step::SetUid, plan.uid))?;
    let gid = ids.gids.to_host(plan.gid).ok_or_else(|| not_mapped(Step::SetGid, plan.gid))?;
    if let Some(group) = plan.groups.iter().find(|group| ids.gids.to_host(**group).is_none()) {
        return Err(not_mapped(Step::SetGroups, *group));
    }
    Ok((Uid::from_raw(uid), Gid::from_raw(gid)))
}

/// The thing of the plan that a step is about.
pub(crate) fn about(plan: &ProcessPlan, step: Step, index: usize) -> String {
    match step {
        Step::Execve => plan.args.first().map(|program| lossy(program)).unwrap_or_default(),
        Step::ChangeDirectory | Step::MakeWorkingDirectory => lossy(&plan.cwd),
        Step::Limit => plan.rlimits.get(index).map(|limit| limit.resource.to_string()).unwrap_or_default(),
        Step::AppArmor => lossy(&plan.apparmor),
        Step::Selinux => lossy(&plan.selinux),
        Step::SetUid => plan.uid.to_string(),
        Step::SetGid => plan.gid.to_string(),
        _ => String::new(),
    }
}

fn read_write() -> OFlags {
    OFlags::RDWR | OFlags::CLOEXEC
}

/// The kernel takes a label in one write or not at all.
fn write_whole(file: OwnedFd, text: &[u8]) -> Result<()> {
    if rustix::io::write(&file, text)? == text.len() { Ok(()) } else { Err(Errno::IO) }
}

/// Every name under which the program is tried: itself if it has a slash, else in each directory of PATH.
fn programs(program: &[u8], env: &[Vec<u8>]) -> Attempt<Vec<CString>> {
    if program.contains(&b'/') {
        return Ok(vec![string(program)?]);
    }
    let path = env.iter().find_map(|entry| entry.strip_prefix(b"PATH=")).unwrap_or(DEFAULT_PATH);
    path.split(|&byte| byte == b':')
        // An empty directory means the working directory.
        .map(
            |directory| {
                if directory.is_empty() { string(program) } else { string(&[directory, b"/", program].concat()) }
            },
        )
        .collect()
}

/// Bytes as the kernel takes them.
pub(crate) fn string(bytes: &[u8]) -> Attempt<CString> {
    CString::new(bytes).map_err(|_| failure("read the plan", Errno::INVAL, lossy(bytes)))
}

fn strings(list: &[Vec<u8>]) -> Attempt<Vec<CString>> {
    list.iter().map(|bytes| string(bytes)).collect()
}

/// For words in a failure.
pub(crate) fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tried(program: &str, env: &[&str]) -> Vec<String> {
        let env: Vec<Vec<u8>> = env.iter().map(|entry| entry.as_bytes().to_vec()).collect();
        let programs = programs(program.as_bytes(), &env).unwrap();
        programs.iter().map(|program| program.to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn a_name_without_a_slash_is_looked_for_in_the_containers_path() {
        assert_eq!(tried("sh", &["A=1", "PATH=/bin:/x"]), ["/bin/sh", "/x/sh"]);
        assert_eq!(tried("sh", &["PATH=:/x"]), ["sh", "/x/sh"]);
        assert_eq!(tried("./sh", &["PATH=/bin"]), ["./sh"]);
        assert_eq!(tried("/sh", &["PATH=/bin"]), ["/sh"]);
        assert_eq!(tried("sh", &[]).len(), 6);
    }
}
