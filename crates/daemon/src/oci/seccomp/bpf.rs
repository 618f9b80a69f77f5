//! The few instructions that stand before libseccomp's program.
//!
//! libseccomp knows the calls that there were when it was built. A profile also speaks of newer ones, and programs try
//! calls that are newer than the profile. So the prologue answers first, for each architecture that the filter is for:
//! - a call with a number above every one that the profile names gets ENOSYS, for which C libraries have a fallback;
//!   EPERM, the usual default action, they take for a refusal;
//! - a call that the profile names without conditions and that libseccomp does not know gets its action.
//!
//! Everything else goes on to libseccomp's program, which is not changed: jumps of BPF are relative and forward.

use oci_spec::runtime::Arch;

/// Calls newer than libseccomp 2.5.4. From 424 on a call has one number on all machines but MIPS and Alpha.
const NEWER: [(&str, u32); 21] = [
    ("futex_waitv", 449),
    ("set_mempolicy_home_node", 450),
    ("cachestat", 451),
    ("fchmodat2", 452),
    ("map_shadow_stack", 453),
    ("futex_wake", 454),
    ("futex_wait", 455),
    ("futex_requeue", 456),
    ("statmount", 457),
    ("listmount", 458),
    ("lsm_get_self_attr", 459),
    ("lsm_set_self_attr", 460),
    ("lsm_list_modules", 461),
    ("mseal", 462),
    ("setxattrat", 463),
    ("getxattrat", 464),
    ("listxattrat", 465),
    ("removexattrat", 466),
    ("open_tree_attr", 467),
    ("file_getattr", 468),
    ("file_setattr", 469),
];

/// The number of a call that libseccomp may not know, the same on every architecture of [`uses_common_numbers`].
pub(super) fn newer_call(name: &str) -> Option<u32> {
    NEWER.iter().find(|(known, _)| *known == name).map(|(_, number)| *number)
}

/// Whether new calls have the common numbers there.
pub(super) fn uses_common_numbers(arch: Arch) -> bool {
    !matches!(
        arch,
        Arch::ScmpArchMips
            | Arch::ScmpArchMips64
            | Arch::ScmpArchMips64n32
            | Arch::ScmpArchMipsel
            | Arch::ScmpArchMipsel64
            | Arch::ScmpArchMipsel64n32
    )
}

/// x32 programs have x86-64's architecture and this bit in the number of every call.
pub(super) const X32_BIT: u32 = 0x4000_0000;
/// seccomp_data.nr
const OFFSET_NUMBER: u32 = 0;
/// seccomp_data.arch
const OFFSET_ARCH: u32 = 4;
/// SECCOMP_RET_ERRNO with ENOSYS
const RETURN_ENOSYS: u32 = 0x0005_0000 | 38;

/// `struct sock_filter`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Instruction {
    pub code: u16,
    pub if_true: u8,
    pub if_false: u8,
    pub value: u32,
}

/// Opcodes of classic BPF that are used here.
pub(super) mod opcode {
    pub const LOAD_WORD: u16 = 0x20;
    pub const JUMP: u16 = 0x05;
    pub const JUMP_EQUAL: u16 = 0x15;
    pub const JUMP_GREATER: u16 = 0x25;
    pub const JUMP_GREATER_EQUAL: u16 = 0x35;
    pub const RETURN: u16 = 0x06;
}

/// What the prologue answers for one architecture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answers {
    /// AUDIT_ARCH_* as the kernel reports it; x86-64's for x32.
    pub audit_arch: u32,
    /// Of x32: all numbers below have the bit.
    pub x32: bool,
    /// The highest number that the profile names; above it is ENOSYS. `None`: nothing is.
    pub highest: Option<u32>,
    /// (number, SECCOMP_RET_* with data), ascending.
    pub newer: Vec<(u32, u32)>,
}

/// The prologue; empty when there is nothing to answer.
pub(super) fn prologue(answers: &[Answers]) -> Vec<Instruction> {
    let blocks: Vec<(u32, Vec<Instruction>)> = architectures(answers)
        .into_iter()
        .map(|audit_arch| {
            let of = |x32: bool| answers.iter().find(|one| one.audit_arch == audit_arch && one.x32 == x32);
            (audit_arch, block(of(false), of(true)))
        })
        .filter(|(_, body)| !body.is_empty())
        .collect();
    if blocks.is_empty() {
        return Vec::new();
    }
    // Each block: is it this architecture? then its body, whose last instruction jumps over all later blocks.
    let mut program = vec![load(OFFSET_ARCH)];
    let total: usize = blocks.iter().map(|(_, body)| body.len() + 2).sum();
    let mut done = 0;
    for (audit_arch, body) in blocks {
        done += body.len() + 2;
        let skip = u8::try_from(body.len() + 1).unwrap_or(u8::MAX);
        program.push(jump(opcode::JUMP_EQUAL, audit_arch, 0, skip));
        program.extend(body);
        program.push(Instruction {
            code: opcode::JUMP,
            if_true: 0,
            if_false: 0,
            value: u32::try_from(total - done).unwrap_or(0),
        });
    }
    program
}

fn architectures(answers: &[Answers]) -> Vec<u32> {
    let mut all: Vec<u32> = answers.iter().map(|one| one.audit_arch).collect();
    all.sort_unstable();
    all.dedup();
    all
}

/// Answers for one audit architecture, falling through at the end when there is none.
fn block(plain: Option<&Answers>, x32: Option<&Answers>) -> Vec<Instruction> {
    let plain = plain.map(comparisons).unwrap_or_default();
    let x32 = x32.map(comparisons).unwrap_or_default();
    if plain.is_empty() && x32.is_empty() {
        return Vec::new();
    }
    let mut body = vec![load(OFFSET_NUMBER)];
    // x32's numbers are all above the others' and would be ENOSYS there.
    let to_x32 = u8::try_from(plain.len() + 1).unwrap_or(u8::MAX);
    body.push(jump(opcode::JUMP_GREATER_EQUAL, X32_BIT, to_x32, 0));
    body.extend(plain);
    let over_x32 = u32::try_from(x32.len()).unwrap_or(0);
    body.push(Instruction { code: opcode::JUMP, if_true: 0, if_false: 0, value: over_x32 });
    body.extend(x32);
    body
}

fn comparisons(answers: &Answers) -> Vec<Instruction> {
    let mut body = Vec::new();
    if let Some(highest) = answers.highest {
        body.push(jump(opcode::JUMP_GREATER, highest, 0, 1));
        body.push(ret(RETURN_ENOSYS));
    }
    if let Some((lowest, _)) = answers.newer.first() {
        // One comparison, not twenty, for the calls that programs make all the time.
        let over = u8::try_from(2 * answers.newer.len()).unwrap_or(u8::MAX);
        body.push(jump(opcode::JUMP_GREATER_EQUAL, *lowest, 0, over));
        for (number, action) in &answers.newer {
            body.push(jump(opcode::JUMP_EQUAL, *number, 0, 1));
            body.push(ret(*action));
        }
    }
    body
}

fn load(offset: u32) -> Instruction {
    Instruction { code: opcode::LOAD_WORD, if_true: 0, if_false: 0, value: offset }
}

fn jump(code: u16, value: u32, if_true: u8, if_false: u8) -> Instruction {
    Instruction { code, if_true, if_false, value }
}

fn ret(action: u32) -> Instruction {
    Instruction { code: opcode::RETURN, if_true: 0, if_false: 0, value: action }
}

/// As the kernel takes it: `struct sock_filter[]` in this machine's byte order.
pub(super) fn to_bytes(program: &[Instruction]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(8 * program.len());
    for instruction in program {
        bytes.extend(instruction.code.to_ne_bytes());
        bytes.extend([instruction.if_true, instruction.if_false]);
        bytes.extend(instruction.value.to_ne_bytes());
    }
    bytes
}
