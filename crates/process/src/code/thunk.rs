//! Thunks: the original function, still callable while its entry is overwritten.
//!
//! A thunk is the displaced instructions, relocated to where the thunk lies, and a jump to the instruction behind them. Whoever
//! calls it gets exactly the original function:
//! - an instruction that neither branches nor refers to memory by the instruction pointer is copied byte for byte;
//! - a memory operand relative to the instruction pointer gets a new displacement, so it must be within 2 GiB
//!   ([`references`]);
//! - a branch leads where it led, by a 32-bit displacement or, farther away, through a literal; to another displaced instruction
//!   it leads in the thunk;
//! - a `call` becomes a push of its *original* return address and a jump. So the callee returns into the function, not into
//!   the thunk, and unwinders (exceptions, thread cancellation, profilers) see the stack they always saw. The entry's analysis
//!   lets a call through only if that address is not overwritten. In a process with a user shadow stack a call that was
//!   not made by a `call` faults at its return, so there such a function is refused ([`ThunkError::ShadowStack`]).
//!
//! A thread in a thunk is in the function: the range of a thunk is watched like the function's own.

use crate::RemoteAddr;
use crate::code::entry::{Entry, OutOfReach};
use crate::code::function::{is_near_branch, is_terminator};
use crate::code::trampoline;
use iced_x86::{Code, Decoder, DecoderOptions, Encoder, Instruction, Mnemonic, OpKind, Register};

/// No thunk is longer, wherever it lies. The longest has two short branches without a long form (19 bytes each when they
/// lead far), then an instruction of 15 bytes, and the far jump back (15).
pub const MAX_LEN: usize = 80;
/// Thunks begin at multiples of this.
pub const ALIGN: usize = 16;

/// Length of a near jump through a literal that follows it.
const FAR: usize = trampoline::FAR_LEN;

/// Why a thunk cannot be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ThunkError {
    /// One of the displaced instructions refers to memory that is too far from the thunk's place.
    #[error("the original of the function at {start} cannot be kept callable here: {source}")]
    OutOfReach {
        /// The function.
        start: RemoteAddr,
        /// What does not reach what.
        source: OutOfReach,
    },
    /// A call among the displaced instructions, in a process with a shadow stack.
    #[error(
        "the function at {start} calls another within its first bytes, and the process has a shadow stack, \
         which forbids to keep the original callable"
    )]
    ShadowStack {
        /// The function.
        start: RemoteAddr,
    },
    /// An instruction could not be encoded for its new place.
    #[error("the instruction at {at} cannot be rewritten for another place: {reason}")]
    Encoding {
        /// The instruction.
        at: RemoteAddr,
        /// What the encoder says.
        reason: String,
    },
}

/// The addresses that a thunk of `entry` has to reach by 32-bit displacements: memory operands relative to the
/// instruction pointer. Jumps and calls are not among them; they go through literals where need be.
#[must_use]
pub fn references(entry: &Entry) -> Vec<RemoteAddr> {
    entry
        .displaced()
        .iter()
        .filter(|i| i.is_ip_rel_memory_operand())
        .map(|i| RemoteAddr(i.ip_rel_memory_address()))
        .collect()
}

/// Whether the thunk of `entry` pushes a return address, which a user shadow stack forbids.
#[must_use]
pub fn pushes_return_address(entry: &Entry) -> bool {
    entry.displaced().iter().any(is_call)
}

/// The code of the thunk of `entry` when it lies at `at`; at most [`MAX_LEN`] bytes. `shadow_stack` tells whether the process has
/// one.
///
/// # Errors
/// See [`ThunkError`].
pub fn emit(entry: &Entry, at: RemoteAddr, shadow_stack: bool) -> Result<Vec<u8>, ThunkError> {
    if shadow_stack && pushes_return_address(entry) {
        return Err(ThunkError::ShadowStack { start: entry.start() });
    }
    let instructions = entry.displaced();
    let bytes = entry.displaced_bytes();
    // The second round knows where each instruction lies in the thunk; lengths do not depend on it.
    let mut offsets = vec![0; instructions.len()];
    let mut code = Vec::new();
    for _ in 0..2 {
        code.clear();
        let mut out =
            Relocator { entry, at, code: &mut code, offsets: &offsets, instructions: &instructions };
        let mut now = Vec::with_capacity(offsets.len());
        for instruction in &instructions {
            now.push(out.code.len());
            let start = (instruction.ip() - entry.place().0) as usize;
            out.relocate(instruction, &bytes[start..start + instruction.len()])?;
        }
        if !instructions.last().is_some_and(|last| is_terminator(last) || is_call(last)) {
            trampoline::push(&mut code, at, entry.resume());
        }
        offsets = now;
    }
    assert!(code.len() <= MAX_LEN);
    Ok(code)
}

struct Relocator<'a> {
    entry: &'a Entry,
    at: RemoteAddr,
    code: &'a mut Vec<u8>,
    offsets: &'a [usize],
    instructions: &'a [Instruction],
}

impl Relocator<'_> {
    fn here(&self) -> RemoteAddr {
        self.at.offset(self.code.len() as i64)
    }

    /// Where a branch to `to` leads in the thunk.
    fn destination(&self, to: u64) -> RemoteAddr {
        match self.instructions.iter().position(|i| i.ip() == to) {
            Some(i) => self.at.offset(self.offsets[i] as i64),
            None => RemoteAddr(to),
        }
    }

    fn relocate(&mut self, instruction: &Instruction, bytes: &[u8]) -> Result<(), ThunkError> {
        if is_call(instruction) {
            return self.call(instruction, bytes);
        }
        if is_near_branch(instruction) {
            return self.branch(instruction, bytes);
        }
        self.copy(instruction, bytes)
    }

    /// The bytes as they are, but for a displacement from the instruction pointer.
    fn copy(&mut self, instruction: &Instruction, bytes: &[u8]) -> Result<(), ThunkError> {
        let mut bytes = bytes.to_vec();
        if instruction.is_ip_rel_memory_operand() {
            let to = RemoteAddr(instruction.ip_rel_memory_address());
            let mut decoder = Decoder::with_ip(64, &bytes, instruction.ip(), DecoderOptions::NONE);
            let decoded = decoder.decode();
            let field = decoder.get_constant_offsets(&decoded).displacement_offset();
            let rel = self.displacement(self.here().offset(bytes.len() as i64), to)?;
            bytes[field..field + 4].copy_from_slice(&rel.to_le_bytes());
        }
        self.code.extend(bytes);
        Ok(())
    }

    fn branch(&mut self, instruction: &Instruction, bytes: &[u8]) -> Result<(), ThunkError> {
        let to = self.destination(instruction.near_branch64());
        match instruction.mnemonic() {
            Mnemonic::Jmp => self.jump(to),
            Mnemonic::Xbegin => {
                // c7 f8 rel32: there is no other form, and no far one.
                let rel = self.displacement(self.here().offset(6), to)?;
                self.code.extend([0xc7, 0xf8]);
                self.code.extend(rel.to_le_bytes());
            }
            _ if instruction.is_jcx_short() || instruction.is_loop() || instruction.is_loopcc() => {
                // There is no long form: op +2; jmp short over; jmp to. Prefixes (67) stay.
                self.code.extend(&bytes[..bytes.len() - 1]);
                self.code.push(2);
                let over = self.short_over_jump(to);
                self.code.extend([0xeb, over]);
                self.jump_after(to, over);
            }
            _ => {
                let condition = instruction.condition_code() as u8 - 1;
                let here = self.here();
                match trampoline::rel32(here.offset(6), to) {
                    Some(rel) => {
                        self.code.extend([0x0f, 0x80 | condition]);
                        self.code.extend(rel.to_le_bytes());
                    }
                    None => {
                        self.code.extend([0x70 | (condition ^ 1), FAR as u8]);
                        self.code.extend(trampoline::far(to));
                    }
                }
            }
        }
        Ok(())
    }

    fn call(&mut self, instruction: &Instruction, bytes: &[u8]) -> Result<(), ThunkError> {
        let returns_to = instruction.next_ip();
        // push [rip+literal], whose displacement is filled in when the literal's place is known.
        self.code.extend([0xff, 0x35, 0, 0, 0, 0]);
        let pushed = self.code.len();
        if is_near_branch(instruction) {
            let to = self.destination(instruction.near_branch64());
            self.jump(to);
        } else {
            self.indirect_jump(instruction, bytes)?;
        }
        let distance = (self.code.len() - pushed) as u32;
        self.code[pushed - 4..pushed].copy_from_slice(&distance.to_le_bytes());
        self.code.extend(returns_to.to_le_bytes());
        Ok(())
    }

    /// An indirect call's jump, after its return address has been pushed.
    fn indirect_jump(&mut self, instruction: &Instruction, bytes: &[u8]) -> Result<(), ThunkError> {
        if instruction.op0_kind() == OpKind::Memory && instruction.memory_base() == Register::RSP {
            // The push moved the stack pointer away from the operand.
            let mut jump = *instruction;
            jump.set_code(Code::Jmp_rm64);
            jump.set_memory_displacement64(instruction.memory_displacement64().wrapping_add(8));
            jump.set_memory_displ_size(8);
            let mut encoder = Encoder::new(64);
            encoder.encode(&jump, self.here().0).map_err(|e| ThunkError::Encoding {
                at: RemoteAddr(instruction.ip()),
                reason: e.to_string(),
            })?;
            self.code.extend(encoder.take_buffer());
            return Ok(());
        }
        // Opcode ff follows the prefixes, none of which is ff; in the ModRM byte behind it /2 (call) becomes /4 (jmp).
        let mut bytes = bytes.to_vec();
        if let Some(opcode) = bytes.iter().position(|b| *b == 0xff) {
            bytes[opcode + 1] = bytes[opcode + 1] & !0x38 | 0x20;
        }
        self.copy(instruction, &bytes)
    }

    /// A jump to `to`, near or far.
    fn jump(&mut self, to: RemoteAddr) {
        trampoline::push(self.code, self.at, to);
    }

    /// How long the jump to `to` is when it lies behind the two-byte jump that is about to be written.
    fn short_over_jump(&self, to: RemoteAddr) -> u8 {
        match trampoline::near(self.here().offset(2), to) {
            Some(_) => trampoline::NEAR_LEN as u8,
            None => FAR as u8,
        }
    }

    fn jump_after(&mut self, to: RemoteAddr, length: u8) {
        let before = self.code.len();
        self.jump(to);
        assert_eq!(self.code.len() - before, length as usize);
    }

    fn displacement(&self, next: RemoteAddr, to: RemoteAddr) -> Result<i32, ThunkError> {
        trampoline::rel32(next, to).ok_or(ThunkError::OutOfReach {
            start: self.entry.start(),
            source: OutOfReach { from: next, to },
        })
    }
}

fn is_call(instruction: &Instruction) -> bool {
    instruction.mnemonic() == Mnemonic::Call
}
