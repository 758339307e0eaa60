//! Jumps as bytes: `jmp rel32` where the destination is near, through a literal where it is not.
//!
//! None of these forms needs a register, touches a flag or the stack. The indirect form carries the `notrack` prefix
//! (3e), so that it may lead to code without `endbr64` under indirect-branch tracking too; elsewhere the prefix is
//! ignored (Intel SDM vol. 1, the chapter on control-flow enforcement).

use crate::RemoteAddr;

/// Length of `jmp rel32`.
pub const NEAR_LEN: usize = 5;
/// Length of `notrack jmp [rip+0]` with the literal behind it.
pub const FAR_LEN: usize = 15;

/// `jmp rel32` that lies at `from` and leads to `to`; `None` where `to` is more than 2 GiB away.
#[must_use]
pub fn near(from: RemoteAddr, to: RemoteAddr) -> Option<[u8; NEAR_LEN]> {
    let rel = rel32(from.offset(NEAR_LEN as i64), to)?.to_le_bytes();
    Some([0xe9, rel[0], rel[1], rel[2], rel[3]])
}

/// `notrack jmp [rip+0]; .quad to`: a jump to anywhere, that may lie anywhere. This is the near trampoline for an entry
/// whose new code is out of its reach.
#[must_use]
pub fn far(to: RemoteAddr) -> [u8; FAR_LEN] {
    let mut code = [0x3e, 0xff, 0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    code[7..].copy_from_slice(&to.0.to_le_bytes());
    code
}

/// Appends the shortest jump to `to` to `code`, which lies at `base`.
pub(crate) fn push(code: &mut Vec<u8>, base: RemoteAddr, to: RemoteAddr) {
    match near(base.offset(code.len() as i64), to) {
        Some(bytes) => code.extend(bytes),
        None => code.extend(far(to)),
    }
}

/// The displacement from `next` (the address behind the instruction) to `to`, where it fits in 32 bits.
pub(crate) fn rel32(next: RemoteAddr, to: RemoteAddr) -> Option<i32> {
    i32::try_from(to.distance_from(next)).ok()
}
