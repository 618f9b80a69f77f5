//! From the OCI specification's value to the program that the kernel runs, by libseccomp.
//!
//! Compiling takes milliseconds of CPU and no I/O but a memory file; the caller chooses a thread that may be blocked.

use super::bad_profile;
use super::bpf::{self, Answers};
use knarr_model::Error;
use libseccomp::{ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall};
use oci_spec::runtime::{Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompOperator, LinuxSyscall};
use rustix::fs::{MemfdFlags, memfd_create};
use sha2::{Digest as _, Sha256};
use std::collections::{HashMap, HashSet, VecDeque};
use std::fs::File;
use std::io::{Read as _, Seek as _};
use std::sync::{Arc, Mutex, PoisonError};

/// Instructions that the kernel takes at most (BPF_MAXINSNS).
const INSTRUCTIONS_MAX: usize = 4096;
/// Bytes of one instruction.
const INSTRUCTION_BYTES: usize = 8;
/// Programs that are kept. A node has a handful of profiles, each with a few sets of capabilities; a program has up
/// to 32 KiB.
const CACHED_MAX: usize = 32;

/// Compiles filters and remembers the last ones.
#[derive(Debug, Default)]
pub struct Compiler {
    cache: Mutex<Cache>,
}

#[derive(Debug, Default)]
struct Cache {
    programs: HashMap<[u8; 32], Arc<[u8]>>,
    /// Oldest first.
    order: VecDeque<[u8; 32]>,
}

impl Compiler {
    /// The program for `seccomp`: `struct sock_filter[]` as bytes. Calls that do not exist on this machine are passed
    /// over, as profiles are written for all machines.
    pub fn compile(&self, seccomp: &LinuxSeccomp) -> Result<Arc<[u8]>, Error> {
        let key = key(seccomp)?;
        if let Some(program) = self.cache().programs.get(&key) {
            return Ok(program.clone());
        }
        // Two containers may compile the same at once; that costs a few milliseconds and no lock is held meanwhile.
        let program: Arc<[u8]> = compile(seccomp)?.into();
        let mut cache = self.cache();
        if cache.programs.insert(key, program.clone()).is_none() {
            cache.order.push_back(key);
        }
        if cache.order.len() > CACHED_MAX
            && let Some(oldest) = cache.order.pop_front()
        {
            cache.programs.remove(&oldest);
        }
        Ok(program)
    }

    /// A panic elsewhere leaves the maps whole: each change is one call.
    fn cache(&self) -> std::sync::MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The value itself is the key: capabilities and kernel have been worked into it.
fn key(seccomp: &LinuxSeccomp) -> Result<[u8; 32], Error> {
    let json = serde_json::to_vec(seccomp).map_err(bad_profile)?;
    Ok(Sha256::digest(&json).into())
}

fn compile(seccomp: &LinuxSeccomp) -> Result<Vec<u8>, Error> {
    let default = action(seccomp.default_action(), seccomp.default_errno_ret())?;
    let mut filter = ScmpFilterContext::new(default).map_err(bad_profile)?;
    let architectures = architectures(seccomp)?;
    for (_, arch) in &architectures {
        filter.add_arch(*arch).map_err(bad_profile)?;
    }
    // no_new_privs is the plan's to set, and not by loading a filter.
    filter.set_ctl_nnp(false).map_err(bad_profile)?;
    // A binary tree instead of a list: the most frequent call is not always the one with the lowest number.
    filter.set_ctl_optimize(2).map_err(bad_profile)?;
    for rule in seccomp.syscalls().iter().flatten() {
        add_rule(&mut filter, default, rule)?;
    }
    let mut program = bpf::to_bytes(&bpf::prologue(&answers(seccomp, &architectures)?));
    program.extend(export(&filter)?);
    if program.len() > INSTRUCTIONS_MAX * INSTRUCTION_BYTES {
        let instructions = program.len() / INSTRUCTION_BYTES;
        return Err(bad_profile(format!("needs {instructions} instructions, the kernel takes {INSTRUCTIONS_MAX}")));
    }
    Ok(program)
}

/// libseccomp writes to a descriptor only (until 2.6).
fn export(filter: &ScmpFilterContext) -> Result<Vec<u8>, Error> {
    let failed = |error: std::io::Error| Error::internal(format!("export a seccomp filter: {error}"));
    let memory = memfd_create("seccomp", MemfdFlags::CLOEXEC).map_err(|errno| failed(errno.into()))?;
    let mut file = File::from(memory);
    filter.export_bpf(&file).map_err(|error| Error::internal(format!("export a seccomp filter: {error}")))?;
    file.rewind().map_err(failed)?;
    let mut program = Vec::new();
    file.read_to_end(&mut program).map_err(failed)?;
    Ok(program)
}

fn add_rule(filter: &mut ScmpFilterContext, default: ScmpAction, rule: &LinuxSyscall) -> Result<(), Error> {
    let action = action(rule.action(), rule.errno_ret())?;
    // libseccomp refuses a rule that says what happens anyway.
    if action == default {
        return Ok(());
    }
    let arguments = rule.args().iter().flatten().map(comparison).collect::<Result<Vec<_>, _>>()?;
    let indices: HashSet<usize> = rule.args().iter().flatten().map(LinuxSeccompArg::index).collect();
    for name in rule.names() {
        let Ok(call) = ScmpSyscall::from_name(name) else { continue };
        let added = if arguments.is_empty() {
            filter.add_rule(action, call).map(drop)
        } else if indices.len() == arguments.len() {
            filter.add_rule_conditional(action, call, &arguments).map(drop)
        } else {
            // Two conditions on one argument mean "or": each becomes a rule of its own.
            arguments
                .iter()
                .try_for_each(|one| filter.add_rule_conditional(action, call, std::slice::from_ref(one)).map(drop))
        };
        added.map_err(|error| bad_profile(format!("the rule for {name}: {error}")))?;
    }
    Ok(())
}

fn action(action: LinuxSeccompAction, errno: Option<u32>) -> Result<ScmpAction, Error> {
    const EPERM: u32 = 1;
    let data = errno.unwrap_or(EPERM);
    let bad = |_| bad_profile(format!("{data} is no errno"));
    Ok(match action {
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => ScmpAction::KillThread,
        LinuxSeccompAction::ScmpActKillProcess => ScmpAction::KillProcess,
        LinuxSeccompAction::ScmpActTrap => ScmpAction::Trap,
        LinuxSeccompAction::ScmpActErrno => ScmpAction::Errno(i32::try_from(data).map_err(bad)?),
        LinuxSeccompAction::ScmpActTrace => ScmpAction::Trace(u16::try_from(data).map_err(bad)?),
        LinuxSeccompAction::ScmpActLog => ScmpAction::Log,
        LinuxSeccompAction::ScmpActAllow => ScmpAction::Allow,
        LinuxSeccompAction::ScmpActNotify => return Err(bad_profile("SCMP_ACT_NOTIFY is not supported")),
    })
}

/// SECCOMP_RET_* with its data, for the prologue.
fn return_value(action: ScmpAction) -> Option<u32> {
    match action {
        ScmpAction::KillProcess => Some(0x8000_0000),
        ScmpAction::KillThread => Some(0),
        ScmpAction::Trap => Some(0x0003_0000),
        ScmpAction::Errno(errno) => Some(0x0005_0000 | u32::try_from(errno).ok()?),
        ScmpAction::Trace(data) => Some(0x7ff0_0000 | u32::from(data)),
        ScmpAction::Log => Some(0x7ffc_0000),
        ScmpAction::Allow => Some(0x7fff_0000),
        _ => None,
    }
}

fn comparison(argument: &LinuxSeccompArg) -> Result<ScmpArgCompare, Error> {
    let index = u32::try_from(argument.index()).ok().filter(|index| *index < 6);
    let index = index.ok_or_else(|| bad_profile(format!("there is no argument {}", argument.index())))?;
    let (operator, datum) = match argument.op() {
        LinuxSeccompOperator::ScmpCmpNe => (ScmpCompareOp::NotEqual, argument.value()),
        LinuxSeccompOperator::ScmpCmpLt => (ScmpCompareOp::Less, argument.value()),
        LinuxSeccompOperator::ScmpCmpLe => (ScmpCompareOp::LessOrEqual, argument.value()),
        LinuxSeccompOperator::ScmpCmpEq => (ScmpCompareOp::Equal, argument.value()),
        LinuxSeccompOperator::ScmpCmpGe => (ScmpCompareOp::GreaterEqual, argument.value()),
        LinuxSeccompOperator::ScmpCmpGt => (ScmpCompareOp::Greater, argument.value()),
        LinuxSeccompOperator::ScmpCmpMaskedEq => {
            (ScmpCompareOp::MaskedEqual(argument.value()), argument.value_two().unwrap_or(0))
        }
    };
    Ok(ScmpArgCompare::new(index, operator, datum))
}

/// The architectures that the filter is for, this machine's own always among them.
fn architectures(seccomp: &LinuxSeccomp) -> Result<Vec<(Arch, ScmpArch)>, Error> {
    let own = native_arch()?;
    let mut all = vec![own];
    for arch in seccomp.architectures().iter().flatten() {
        if *arch != Arch::ScmpArchNative && !all.contains(arch) {
            all.push(*arch);
        }
    }
    all.into_iter().map(|arch| Ok((arch, scmp_arch(arch)?))).collect()
}

fn native_arch() -> Result<Arch, Error> {
    match std::env::consts::ARCH {
        "x86_64" => Ok(Arch::ScmpArchX86_64),
        "aarch64" => Ok(Arch::ScmpArchAarch64),
        "arm" => Ok(Arch::ScmpArchArm),
        "x86" => Ok(Arch::ScmpArchX86),
        "powerpc64" => Ok(Arch::ScmpArchPpc64le),
        "riscv64" => Ok(Arch::ScmpArchRiscv64),
        "loongarch64" => Ok(Arch::ScmpArchLoongarch64),
        "s390x" => Ok(Arch::ScmpArchS390x),
        other => Err(Error::internal(format!("seccomp filters for {other} are not known"))),
    }
}

fn scmp_arch(arch: Arch) -> Result<ScmpArch, Error> {
    Ok(match arch {
        Arch::ScmpArchX86 => ScmpArch::X86,
        Arch::ScmpArchX86_64 => ScmpArch::X8664,
        Arch::ScmpArchX32 => ScmpArch::X32,
        Arch::ScmpArchArm => ScmpArch::Arm,
        Arch::ScmpArchAarch64 => ScmpArch::Aarch64,
        Arch::ScmpArchMips => ScmpArch::Mips,
        Arch::ScmpArchMips64 => ScmpArch::Mips64,
        Arch::ScmpArchMips64n32 => ScmpArch::Mips64N32,
        Arch::ScmpArchMipsel => ScmpArch::Mipsel,
        Arch::ScmpArchMipsel64 => ScmpArch::Mipsel64,
        Arch::ScmpArchMipsel64n32 => ScmpArch::Mipsel64N32,
        Arch::ScmpArchPpc => ScmpArch::Ppc,
        Arch::ScmpArchPpc64 => ScmpArch::Ppc64,
        Arch::ScmpArchPpc64le => ScmpArch::Ppc64Le,
        Arch::ScmpArchS390 => ScmpArch::S390,
        Arch::ScmpArchS390x => ScmpArch::S390X,
        Arch::ScmpArchParisc => ScmpArch::Parisc,
        Arch::ScmpArchParisc64 => ScmpArch::Parisc64,
        Arch::ScmpArchRiscv64 => ScmpArch::Riscv64,
        Arch::ScmpArchLoongarch64 => ScmpArch::Loongarch64,
        Arch::ScmpArchM68k => ScmpArch::M68k,
        Arch::ScmpArchSh => ScmpArch::Sh,
        Arch::ScmpArchSheb => ScmpArch::Sheb,
        other => return Err(bad_profile(format!("the architecture {other:?} is not known"))),
    })
}

/// What the prologue says for each architecture.
fn answers(seccomp: &LinuxSeccomp, architectures: &[(Arch, ScmpArch)]) -> Result<Vec<Answers>, Error> {
    // With an errno of its own the profile has decided about unknown calls, and a permissive default lets them in.
    let stops = matches!(
        seccomp.default_action(),
        LinuxSeccompAction::ScmpActErrno
            | LinuxSeccompAction::ScmpActKill
            | LinuxSeccompAction::ScmpActKillThread
            | LinuxSeccompAction::ScmpActKillProcess
            | LinuxSeccompAction::ScmpActTrap
    );
    let unknown_is_enosys = stops && seccomp.default_errno_ret().is_none();
    let newer = newer_calls(seccomp)?;
    Ok(architectures.iter().map(|arch| answers_on(seccomp, *arch, unknown_is_enosys, &newer)).collect())
}

fn answers_on(
    seccomp: &LinuxSeccomp,
    (arch, scmp): (Arch, ScmpArch),
    unknown_is_enosys: bool,
    newer: &[(u32, u32)],
) -> Answers {
    let x32 = arch == Arch::ScmpArchX32;
    let bit = if x32 { bpf::X32_BIT } else { 0 };
    let newer: Vec<(u32, u32)> = if bpf::uses_common_numbers(arch) {
        newer.iter().map(|(number, action)| (number | bit, *action)).collect()
    } else {
        Vec::new()
    };
    let names = seccomp.syscalls().iter().flatten().flat_map(|rule| rule.names());
    let known = names
        .filter_map(|name| ScmpSyscall::from_name_by_arch(name, scmp).ok())
        // Negative numbers are libseccomp's own, for calls that other architectures have.
        .filter_map(|call| u32::try_from(call.as_raw_syscall()).ok())
        .max();
    let highest = known.max(newer.last().map(|(number, _)| *number));
    Answers {
        audit_arch: if x32 { Arch::ScmpArchX86_64 as u32 } else { arch as u32 },
        x32,
        highest: highest.filter(|_| unknown_is_enosys),
        newer,
    }
}

/// Calls that the profile names without a condition and libseccomp does not know: (number, return value), ascending.
fn newer_calls(seccomp: &LinuxSeccomp) -> Result<Vec<(u32, u32)>, Error> {
    let mut calls = Vec::new();
    for rule in seccomp.syscalls().iter().flatten().filter(|rule| rule.args().iter().flatten().next().is_none()) {
        let Some(value) = return_value(action(rule.action(), rule.errno_ret())?) else { continue };
        for name in rule.names() {
            if let Some(number) = bpf::newer_call(name)
                && ScmpSyscall::from_name(name).is_err()
            {
                calls.push((number, value));
            }
        }
    }
    calls.sort_unstable();
    calls.dedup_by_key(|(number, _)| *number);
    Ok(calls)
}
