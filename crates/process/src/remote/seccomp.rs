//! What a thread's seccomp filters would do to the calls we have it make.
//!
//! While the tool lives the filters are suspended (PTRACE_O_SUSPEND_SECCOMP). Should it die in between, they are back in
//! force for the rest of the program, and one that kills for a call of ours would then kill the target. So they are read
//! and run here first, on the very calls; only a filter that at most lets calls fail can be suspended safely.

use crate::remote::Unsuitable;
use crate::target::{read_text, status_field};
use crate::threads::ptrace::{self, Instruction};
use crate::{Error, Pid, Result, Tid};

/// What the filters are asked about: `struct seccomp_data` (`include/uapi/linux/seccomp.h`).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call {
    pub(crate) name: &'static str,
    pub(crate) number: i64,
    pub(crate) instruction_pointer: u64,
    pub(crate) args: [u64; 6],
    /// The thread does not get over it if this call fails.
    pub(crate) vital: bool,
}

/// `AUDIT_ARCH_X86_64`.
const ARCH: u32 = 0xc000_003e;
/// Most filters on one thread that are read. The kernel's own limit is by their total length.
const FILTERS_MAX: usize = 4096;

const RET_KILL_THREAD: u32 = 0;
const RET_ERRNO: u32 = 0x0005_0000;
const RET_LOG: u32 = 0x7ffc_0000;
const RET_ALLOW: u32 = 0x7fff_0000;
const RET_ACTION: u32 = 0xffff_0000;

/// What the filters of a thread would do to calls.
enum Judgement {
    /// At most let them fail.
    Harmless,
    /// Kill it for this one, or what comes to that.
    Fatal(&'static str),
    /// They cannot be read.
    Unknown,
}

/// Suspends the filters of a stopped thread, if that is safe.
///
/// # Errors
/// [`Error::CannotRun`] if they cannot be suspended, or would kill the target if we died.
pub(crate) fn suspend(pid: Pid, tid: Tid, calls: &[Call]) -> Result<()> {
    let refuse = |why| Err(Error::CannotRun { pid, why });
    match judge(tid, calls) {
        Judgement::Harmless => {}
        Judgement::Fatal(call) => return refuse(Unsuitable::SeccompKills { tid, call }),
        Judgement::Unknown if !is_filtered(pid, tid)? => return Ok(()),
        Judgement::Unknown => return refuse(Unsuitable::Seccomp(tid)),
    }
    match ptrace::set_options(tid, ptrace::O_TRACESYSGOOD | ptrace::O_SUSPEND_SECCOMP) {
        Err(_) if is_filtered(pid, tid)? => refuse(Unsuitable::Seccomp(tid)),
        _ => Ok(()),
    }
}

/// The call for which the filters of a stopped thread may kill it, if there is one; the first where the filters cannot be read.
pub(crate) fn fatal(tid: Tid, calls: &[Call]) -> Option<&'static str> {
    match judge(tid, calls) {
        Judgement::Harmless => None,
        Judgement::Fatal(call) => Some(call),
        Judgement::Unknown => calls.first().map(|call| call.name),
    }
}

fn judge(tid: Tid, calls: &[Call]) -> Judgement {
    for index in 0..FILTERS_MAX {
        match ptrace::seccomp_filter(tid, index) {
            Ok(filter) => {
                for call in calls {
                    let action = evaluate(&filter, call).unwrap_or(RET_KILL_THREAD) & RET_ACTION;
                    let harmless =
                        matches!(action, RET_ALLOW | RET_LOG) || (action == RET_ERRNO && !call.vital);
                    if !harmless {
                        return Judgement::Fatal(call.name);
                    }
                }
            }
            // No more of them, or none at all.
            Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::EINVAL)) => {
                return Judgement::Harmless;
            }
            Err(_) => return Judgement::Unknown,
        }
    }
    Judgement::Harmless
}

/// Whether the thread is under seccomp, in any mode.
pub(crate) fn is_filtered(pid: Pid, tid: Tid) -> Result<bool> {
    let path = format!("/proc/{pid}/task/{tid}/status");
    let status = read_text(&path).map_err(|source| Error::Proc { path, source })?;
    Ok(status_field(&status, "Seccomp").is_some_and(|mode| mode != "0"))
}

/// Runs a filter as the kernel does (`Documentation/networking/filter.rst`, `seccomp_check_filter` for the allowed
/// instructions); `None` for what the kernel would not have accepted.
fn evaluate(filter: &[Instruction], call: &Call) -> Option<u32> {
    let words = data(call);
    let load = |at: u32| at.is_multiple_of(4).then(|| words.get(at as usize / 4).copied()).flatten();
    let (mut a, mut x, mut memory) = (0u32, 0u32, [0u32; 16]);
    let mut pc = 0usize;
    loop {
        let Instruction { code, jt, jf, k } = *filter.get(pc)?;
        pc += 1;
        let operand = if code & 0x08 != 0 { x } else { k };
        match code {
            // ld [k], ld #len, ldx #len, ld #k, ldx #k, ld M[k], ldx M[k], st, stx
            0x20 => a = load(k)?,
            0x80 => a = 64,
            0x81 => x = 64,
            0x00 => a = k,
            0x01 => x = k,
            0x60 => a = *memory.get(k as usize)?,
            0x61 => x = *memory.get(k as usize)?,
            0x02 => *memory.get_mut(k as usize)? = a,
            0x03 => *memory.get_mut(k as usize)? = x,
            // tax, txa
            0x07 => x = a,
            0x87 => a = x,
            // add, sub, mul, div, or, and, lsh, rsh, neg, mod, xor
            0x04 | 0x0c => a = a.wrapping_add(operand),
            0x14 | 0x1c => a = a.wrapping_sub(operand),
            0x24 | 0x2c => a = a.wrapping_mul(operand),
            0x34 | 0x3c if operand == 0 => return Some(0),
            0x34 | 0x3c => a /= operand,
            0x44 | 0x4c => a |= operand,
            0x54 | 0x5c => a &= operand,
            0x64 | 0x6c => a = a.wrapping_shl(operand),
            0x74 | 0x7c => a = a.wrapping_shr(operand),
            0x84 => a = a.wrapping_neg(),
            0x94 | 0x9c if operand == 0 => return Some(0),
            0x94 | 0x9c => a %= operand,
            0xa4 | 0xac => a ^= operand,
            // ja, jeq, jgt, jge, jset
            0x05 => pc = pc.checked_add(k as usize)?,
            0x15 | 0x1d | 0x25 | 0x2d | 0x35 | 0x3d | 0x45 | 0x4d => {
                let taken = match code & 0xf0 {
                    0x10 => a == operand,
                    0x20 => a > operand,
                    0x30 => a >= operand,
                    _ => a & operand != 0,
                };
                pc += usize::from(if taken { jt } else { jf });
            }
            // ret #k, ret a
            0x06 => return Some(k),
            0x16 => return Some(a),
            _ => return None,
        }
    }
}

/// `struct seccomp_data` as 32-bit words.
fn data(call: &Call) -> [u32; 16] {
    let mut words = [0; 16];
    words[0] = call.number as u32;
    words[1] = ARCH;
    let long = [call.instruction_pointer].into_iter().chain(call.args);
    for (pair, value) in words[2..].chunks_exact_mut(2).zip(long) {
        pair[0] = value as u32;
        pair[1] = (value >> 32) as u32;
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn op(code: u16, jt: u8, jf: u8, k: u32) -> Instruction {
        Instruction { code, jt, jf, k }
    }

    fn call(number: i64, first: u64) -> Call {
        Call {
            name: "x",
            number,
            instruction_pointer: 0x1_0000_0002,
            args: [first, 0, 0, 0, 0, 0],
            vital: false,
        }
    }

    #[test]
    fn a_filter_by_number_and_high_argument_word() {
        let filter = [
            op(0x20, 0, 0, 4),
            op(0x15, 1, 0, ARCH),
            op(0x06, 0, 0, RET_KILL_THREAD),
            op(0x20, 0, 0, 0),
            op(0x15, 0, 3, 9),
            op(0x20, 0, 0, 20),
            op(0x45, 0, 1, 0xff),
            op(0x06, 0, 0, RET_ERRNO | 1),
            op(0x06, 0, 0, RET_ALLOW),
        ];
        assert_eq!(evaluate(&filter, &call(9, 0)), Some(RET_ALLOW));
        assert_eq!(evaluate(&filter, &call(9, 0x12_0000_0000)), Some(RET_ERRNO | 1));
        assert_eq!(evaluate(&filter, &call(10, 0x12_0000_0000)), Some(RET_ALLOW));
    }

    #[test]
    fn arithmetic_and_memory() {
        let filter = [
            op(0x20, 0, 0, 12),
            op(0x02, 0, 0, 3),
            op(0x00, 0, 0, 7),
            op(0x61, 0, 0, 3),
            op(0x0c, 0, 0, 0),
            op(0x64, 0, 0, 4),
            op(0x16, 0, 0, 0),
        ];
        // The instruction pointer's high word is 1.
        assert_eq!(evaluate(&filter, &call(0, 0)), Some(8 << 4));
    }

    #[test]
    fn what_is_no_filter_has_no_result() {
        assert_eq!(evaluate(&[], &call(0, 0)), None);
        assert_eq!(evaluate(&[op(0x20, 0, 0, 3)], &call(0, 0)), None);
        assert_eq!(evaluate(&[op(0x20, 0, 0, 64)], &call(0, 0)), None);
        assert_eq!(evaluate(&[op(0xffff, 0, 0, 0)], &call(0, 0)), None);
        assert_eq!(evaluate(&[op(0x05, 0, 0, u32::MAX)], &call(0, 0)), None);
        assert_eq!(evaluate(&[op(0x34, 0, 0, 0)], &call(0, 0)), Some(0));
    }
}
