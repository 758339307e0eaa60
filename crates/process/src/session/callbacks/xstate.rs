//! The floating-point and vector registers of a stopped thread, whole, as XSAVE writes them.
//!
//! What the kernel gives by ptrace (`NT_X86_XSTATE`) is in the format of a signal frame's, but for the marks by which
//! rt_sigreturn(2) knows how much of it there is. [`for_frame`] adds them.
#![allow(unsafe_code)]

use crate::Tid;
use std::arch::x86_64::__cpuid_count;
use std::io;
use std::ptr;

/// Larger than any processor's state by now (AMX: 11 KiB).
const MAX: usize = 16 * 1024;
const PTRACE_GETREGSET: libc::c_uint = 0x4204;
const PTRACE_SETREGSET: libc::c_uint = 0x4205;
/// `NT_X86_XSTATE` (`include/uapi/linux/elf.h`).
const NT_X86_XSTATE: usize = 0x202;

/// `struct _fpx_sw_bytes` in the legacy area, its marks, and the mark behind the state
/// (`arch/x86/include/uapi/asm/sigcontext.h`).
const SOFTWARE: usize = 464;
const MAGIC1: u32 = 0x4650_5853;
const MAGIC2: u32 = 0x4650_5845;
/// The legacy area and the header, which every state has.
const LEAST: usize = 512 + 64;
/// Where the header says which components are not in their initial state.
const IN_USE: usize = 512;
/// The CPUID leaf that says where a component lies.
const CPUID_XSTATE: u32 = 0xd;

/// The state of a stopped thread.
pub(crate) fn get(tid: Tid) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0u8; MAX];
    let mut iov = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    regset(PTRACE_GETREGSET, tid, &mut iov)?;
    bytes.truncate(iov.iov_len);
    if bytes.len() < LEAST {
        return Err(io::Error::other("the processor has no XSAVE"));
    }
    Ok(bytes)
}

/// Sets the state of a stopped thread.
pub(crate) fn set(tid: Tid, bytes: &[u8]) -> io::Result<()> {
    let mut iov = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    regset(PTRACE_SETREGSET, tid, &mut iov)
}

fn regset(request: libc::c_uint, tid: Tid, iov: &mut libc::iovec) -> io::Result<()> {
    // SAFETY: the kernel reads or writes at most `iov_len` bytes at `iov_base`, which the callers own.
    let r = unsafe { libc::ptrace(request, tid.0, NT_X86_XSTATE, ptr::from_mut(iov)) };
    if r == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The state in the form that a signal frame has it, marks included.
pub(crate) fn for_frame(state: &[u8]) -> Vec<u8> {
    let word =
        |at: usize| state.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes);
    let (features, in_use) = (word(SOFTWARE), word(IN_USE));
    // Up to the end of the last component in use: the kernel refuses a frame that is larger than the thread may have.
    let size = (2..63)
        .filter(|i| in_use >> i & 1 != 0)
        .map(|i| {
            let component = __cpuid_count(CPUID_XSTATE, i);
            component.eax as usize + component.ebx as usize
        })
        .fold(LEAST, usize::max)
        .min(state.len());
    let mut frame = state[..size].to_vec();
    let words = [MAGIC1, size as u32 + 4, features as u32, (features >> 32) as u32, size as u32];
    for (i, word) in words.iter().enumerate() {
        frame[SOFTWARE + 4 * i..][..4].copy_from_slice(&word.to_le_bytes());
    }
    frame[SOFTWARE + 4 * words.len()..IN_USE].fill(0);
    frame.extend_from_slice(&MAGIC2.to_le_bytes());
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_has_its_marks_and_ends_behind_the_last_component_in_use() {
        let mut state = vec![0u8; 4096];
        state[SOFTWARE] = 7;
        state[IN_USE] = 3;
        let frame = for_frame(&state);
        assert_eq!(frame.len(), LEAST + 4);
        assert_eq!(frame[SOFTWARE..SOFTWARE + 4], MAGIC1.to_le_bytes());
        assert_eq!(frame[LEAST..], MAGIC2.to_le_bytes());
        assert_eq!(frame[SOFTWARE + 8], 7);
    }
}
