//! Which step a copy of the process is at, and how it ended: what a copy tells its parent.
//!
//! It is told through shared memory and not by a message, because a system call filter may already be loaded when
//! something fails, and because the step is of interest also when the copy hangs or dies. What a step was about is not
//! told: the parent has the plan and finds it by the index.

use knarr_sys::process::SharedWords;
use rustix::io::Errno;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

macro_rules! steps {
    ($($(#[$doc:meta])* $name:ident = $words:literal,)*) => {
        /// One step of the set-up, in words for a failure's report.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[repr(u32)]
        pub(crate) enum Step {
            $($(#[$doc])* $name,)*
        }

        impl Step {
            const ALL: &[Self] = &[$(Self::$name,)*];

            pub(crate) fn words(self) -> &'static str {
                match self {
                    $(Self::$name => $words,)*
                }
            }
        }
    };
}

steps! {
    Prepare = "prepare the process",
    /// index: which of `v1_tasks`
    JoinCgroup = "join cgroup",
    OomScore = "set the OOM score",
    AppArmor = "set the AppArmor profile",
    Selinux = "set the SELinux label",
    /// index: which mount
    OpenVolume = "open volume",
    /// index: which mount
    MapVolume = "map the owners of volume (its file system must support id-mapped mounts)",
    /// index: which mount, then which hierarchy of it
    OpenCgroup = "open cgroup for mounting",
    NewUserNamespace = "make a user namespace",
    MapIds = "map the ids of the user namespace",
    JoinUserNamespace = "join the pod's user namespace",
    JoinNamespaces = "join the pod's namespaces",
    JoinTarget = "join the target container's PID namespace",
    JoinContainer = "join the container's namespaces",
    NewNamespaces = "make namespaces",
    /// index: which mount
    TargetProc = "take over the target container's /proc",
    PlaceRoot = "place the root file system",
    /// index: which mount
    MountVolume = "mount volume",
    /// index: which mount
    Mount = "mount",
    /// index: which device
    MakeDevice = "make device",
    /// index: which link
    MakeLink = "make symbolic link",
    OpenTerminal = "open a terminal",
    Console = "mount /dev/console",
    /// index: which path
    ReadonlyPath = "make read-only",
    /// index: which path
    MaskPath = "mask",
    MakeWorkingDirectory = "make working directory",
    ReadOnlyRoot = "make the root file system read-only",
    PivotRoot = "pivot_root",
    ChangeDirectory = "change to working directory",
    ConnectStdio = "connect input and output",
    /// index: which limit
    Limit = "set resource limit",
    SetGroups = "set supplementary groups",
    SetGid = "set group id",
    SetUid = "set user id",
    Capabilities = "set capabilities",
    NoNewPrivileges = "set no_new_privs",
    Seccomp = "load the seccomp filter",
    EnterPidNamespace = "start in the PID namespace",
    Session = "start a session",
    Execve = "execve",
    HostTemplates = "make the templates of proc and sysfs",
    PodRoot = "make the pod's file system",
    /// index: which file
    PodFile = "write the pod's file",
    PodShm = "make the pod's /dev/shm",
    Hostname = "set the host name",
    /// index: which sysctl
    Sysctl = "set sysctl",
    PodInit = "start the init of the shared PID namespace",
}

/// How far a copy of the process has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Still setting up; or it died while it was.
    SettingUp,
    /// This failed.
    Failed(Errno),
    /// All is set up: if it is gone, it has been replaced by the program.
    Ready,
}

const SETTING_UP: u32 = 0;
const FAILED: u32 = 1;
const READY: u32 = 2;

/// Shared between the parent and the copies it made.
#[derive(Debug)]
pub(crate) struct Report {
    words: SharedWords,
}

impl Report {
    const OUTCOME: usize = 0;
    const STEP: usize = 1;
    const INDEX: usize = 2;
    const ERRNO: usize = 3;
    const SIBLING: usize = 4;

    pub(crate) fn new() -> rustix::io::Result<Self> {
        Ok(Self { words: SharedWords::new()? })
    }

    /// In the copy: from here on it is this step that fails.
    pub(crate) fn step(&self, step: Step) {
        self.step_of(step, 0);
    }

    /// In the copy: from here on it is this step with the `index`-th thing of the plan that fails.
    pub(crate) fn step_of(&self, step: Step, index: usize) {
        let words = self.words.words();
        words[Self::STEP].store(step as u32, Relaxed);
        words[Self::INDEX].store(index as u32, Relaxed);
    }

    /// In the copy: all is set up, only execve is left.
    pub(crate) fn ready(&self) {
        self.words.words()[Self::OUTCOME].store(READY, Release);
    }

    /// In the copy: the present step failed.
    pub(crate) fn fail(&self, errno: Errno) {
        let words = self.words.words();
        words[Self::ERRNO].store(errno.raw_os_error() as u32, Relaxed);
        words[Self::OUTCOME].store(FAILED, Release);
    }

    /// In the copy: its exit status, now that its work has ended; a failure is noted.
    pub(crate) fn status_of(&self, worked: rustix::io::Result<()>) -> u8 {
        match worked {
            Ok(()) => 0,
            Err(errno) => {
                self.fail(errno);
                1
            }
        }
    }

    /// In the helper: the process that goes on in its place.
    pub(crate) fn set_sibling(&self, pid: u32) {
        self.words.words()[Self::SIBLING].store(pid, Release);
    }

    /// The process that goes on in the helper's place.
    pub(crate) fn sibling(&self) -> Option<u32> {
        match self.words.words()[Self::SIBLING].load(Acquire) {
            0 => None,
            pid => Some(pid),
        }
    }

    pub(crate) fn outcome(&self) -> Outcome {
        let words = self.words.words();
        match words[Self::OUTCOME].load(Acquire) {
            SETTING_UP => Outcome::SettingUp,
            READY => Outcome::Ready,
            // Whatever else stands there was not written by us.
            _ => Outcome::Failed(Errno::from_raw_os_error(words[Self::ERRNO].load(Relaxed) as i32 & 0xfff)),
        }
    }

    /// The present step and what it is about.
    pub(crate) fn at(&self) -> (Step, usize) {
        let words = self.words.words();
        let step = words[Self::STEP].load(Relaxed) as usize;
        (Step::ALL.get(step).copied().unwrap_or(Step::Prepare), words[Self::INDEX].load(Relaxed) as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_found_again_by_its_number() {
        for (number, step) in Step::ALL.iter().enumerate() {
            assert_eq!(*step as usize, number);
        }
    }

    #[test]
    fn the_last_step_before_a_failure_is_the_one_that_failed() {
        let report = Report::new().unwrap();
        assert_eq!(report.outcome(), Outcome::SettingUp);
        report.step_of(Step::Mount, 3);
        report.fail(Errno::NOTDIR);
        assert_eq!((report.outcome(), report.at()), (Outcome::Failed(Errno::NOTDIR), (Step::Mount, 3)));
    }

    #[test]
    fn an_execve_that_fails_after_all_was_ready_is_a_failure() {
        let report = Report::new().unwrap();
        report.step(Step::Execve);
        report.ready();
        assert_eq!(report.outcome(), Outcome::Ready);
        report.fail(Errno::NOENT);
        assert_eq!(report.outcome(), Outcome::Failed(Errno::NOENT));
    }
}
