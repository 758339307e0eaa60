//! The strict unwinder: from a stopped thread's registers through its frames, by call frame information.
//!
//! It never guesses. Every frame must have rules (or be left by instructions that tell as much, see
//! `exit_path.rs`), every rule must find its value, frames must follow one another
//! upwards within one stack (another stack is reached only through a signal frame whose contents are checked), a
//! return address must stand behind a call instruction, and what the innermost instructions say about the return
//! address must agree with the rules. The end is reached only where the rules say that there is
//! no caller, as both C libraries' or the compiler's start code does, never because a value is 0 or cannot be read.
//!
//! A walk that stops early is still good for what it covered: all activations whose return addresses lie between the
//! stack pointer and the last frame's top are known then.

use crate::RemoteAddr;
use crate::stacks::cfi::{Cfi, NoCfi};
use crate::stacks::exit_path;
use crate::stacks::rules::{CfaRule, RA, REGISTERS, RSP, Row, Rule};
use crate::stacks::scan::{MAX_STACKS, RED_ZONE, Thread, segments_word, stack_end};
use crate::target::maps::Maps;
use crate::target::memory::Memory;
use gimli::{EndianSlice, Evaluation, EvaluationResult, LittleEndian, Location, Value};
use iced_x86::{Decoder, DecoderOptions, FlowControl};
use std::ops::Range;

/// Most frames that are walked.
pub const MAX_FRAMES: usize = 100_000;
/// Most operations of one expression.
const MAX_OPERATIONS: u32 = 10_000;
/// Larger than any signal frame: the farthest that an interrupted stack pointer on the same stack can be from its
/// signal frame (AMX state is 11 KiB; sigaltstack(2) on MINSIGSTKSZ).
const MAX_SIGNAL_FRAME: u64 = 32 << 10;

/// A frame: an activation of a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The program counter: where it executes, was interrupted, or will be returned to.
    pub pc: u64,
    /// `pc` is the next instruction to run, not one behind a call: the innermost frame, or an interrupted one.
    pub exact: bool,
    /// The frame was interrupted by a signal.
    pub interrupted: bool,
    /// The stack pointer in it.
    pub sp: u64,
}

/// How a walk ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// At the outermost frame: the rules say that it has no caller.
    Outermost,
    /// Where the caller of the last frame is not known for sure.
    Unreliable(Doubt),
    /// Where the walk was told to stop.
    Enough,
}

/// Why the caller of a frame is not known for sure.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Doubt {
    /// Its code has no usable call frame information.
    #[error(transparent)]
    NoCfi(#[from] NoCfi),
    /// A rule needs a register whose value is not known.
    #[error("the rules need register {0}, which is not known")]
    Register(usize),
    /// An expression could not be evaluated.
    #[error("a rule's expression cannot be evaluated")]
    Expression,
    /// A word of the stack could not be read.
    #[error("the stack cannot be read at {0}")]
    Memory(RemoteAddr),
    /// The rules say nothing about the return address.
    #[error("the rules say nothing about the return address")]
    NoReturnAddress,
    /// The frame's top is not above its bottom, or outside the stack.
    #[error("the frame's top {0} is not above it on its stack")]
    NotUpwards(RemoteAddr),
    /// The return address does not stand behind a call instruction.
    #[error("{0}, found as return address, does not follow a call")]
    NoCall(RemoteAddr),
    /// A frame marked as a signal's does not hold what the kernel writes.
    #[error("the signal frame at {0} is not the kernel's")]
    SignalFrame(RemoteAddr),
    /// It is an exception unwinder's frame, which may be about to go elsewhere.
    #[error("an exception is being unwound through it")]
    Exception,
    /// The code about to be executed returns elsewhere than the rules say.
    #[error("the code ahead contradicts the call frame information")]
    Contradiction,
    /// More than [`MAX_FRAMES`] frames or [`MAX_STACKS`] signals.
    #[error("there are more than {MAX_FRAMES} frames or {MAX_STACKS} signal frames")]
    TooDeep,
}

/// What a walk found.
#[derive(Clone, Debug)]
pub struct Walk {
    /// The frames from the innermost on.
    pub frames: Vec<Frame>,
    /// Parts of stacks of which every activation is among the frames.
    pub covered: Vec<Range<u64>>,
    /// How it ended; on [`End::Unreliable`], at the last frame.
    pub end: End,
}

impl Walk {
    /// Whether every activation whose return address lies at `addr` would be among the frames.
    #[must_use]
    pub fn covers(&self, addr: u64) -> bool {
        self.covered.iter().any(|c| c.contains(&addr))
    }
}

/// The registers of a frame as far as they are known.
type Registers = [Option<u64>; REGISTERS];

/// Registers that a function must preserve (System V ABI, AMD64 supplement, figure 3.4): rbx, rbp, r12 to r15.
fn callee_saved(register: usize) -> bool {
    matches!(register, 3 | 6 | 12..=15)
}

/// rax and rdx, which carry an exception to its landing pad (the same, 6.2: table of `__builtin_eh_return_data_regno`).
const EXCEPTION_DATA: [usize; 2] = [0, 1];

fn initial(r: &libc::user_regs_struct) -> Registers {
    [
        r.rax, r.rdx, r.rcx, r.rbx, r.rsi, r.rdi, r.rbp, r.rsp, r.r8, r.r9, r.r10, r.r11, r.r12, r.r13,
        r.r14, r.r15, r.rip,
    ]
    .map(Some)
}

/// What the kernel puts on a stack when it delivers a signal, seen from the handler's return address popped
/// (`struct rt_sigframe` without its first member: arch/x86/include/asm/sigframe.h, and `struct ucontext`,
/// `struct sigcontext_64` in arch/x86/include/uapi/asm).
mod frame_layout {
    /// Where `uc_stack.ss_sp` is.
    pub const ALTERNATE_START: u64 = 16;
    /// Where `uc_stack.ss_size` is.
    pub const ALTERNATE_SIZE: u64 = 32;
    /// Where the general registers begin.
    pub const REGISTERS: u64 = 40;
    /// Registers in the order in which they are stored, in the numbering of [`crate::stacks::rules`].
    pub const ORDER: [usize; 17] = [8, 9, 10, 11, 12, 13, 14, 15, 5, 4, 6, 3, 1, 0, 2, 7, 16];
    /// Where the segment registers are, behind the general ones and the flags.
    pub const SEGMENTS: u64 = REGISTERS + 18 * 8;
    /// The size of `struct ucontext` and the `siginfo_t` behind it.
    pub const SIZE: u64 = 304 + 128;
}

/// `mov $15, %rax; syscall`, the code of every C library's signal return trampoline; debuggers know it by these
/// bytes, and the kernel keeps the numbers (arch/x86/entry/syscalls/syscall_64.tbl).
const TRAMPOLINE: [u8; 9] = [0x48, 0xc7, 0xc0, 0x0f, 0, 0, 0, 0x0f, 0x05];

/// A frame and its registers; `None` where there is no caller.
type Caller = Option<(Registers, Frame)>;

/// Walks one thread's stacks.
pub(crate) struct Unwinder<'a> {
    cfi: &'a mut Cfi,
    memory: &'a Memory,
    maps: &'a Maps,
    thread: Thread<'a>,
    /// The part of the stack last read from.
    cache: (u64, Vec<u8>),
    /// End of the stack that the walk is on.
    stack_end: u64,
    signals: usize,
    covered: Vec<Range<u64>>,
}

impl<'a> Unwinder<'a> {
    pub(crate) fn new(cfi: &'a mut Cfi, memory: &'a Memory, maps: &'a Maps, thread: Thread<'a>) -> Self {
        cfi.maps_are(maps);
        Self {
            cfi,
            memory,
            maps,
            thread,
            cache: (0, Vec::new()),
            stack_end: 0,
            signals: 0,
            covered: Vec::new(),
        }
    }

    /// Walks outwards until `enough`, asked after every frame with what is covered, says so.
    pub(crate) fn walk(mut self, mut enough: impl FnMut(&[Frame], &[Range<u64>]) -> bool) -> Walk {
        let mut registers = initial(self.thread.regs);
        let (pc, sp) = (self.thread.regs.rip, self.thread.regs.rsp);
        let mut frame = Frame { pc, exact: true, interrupted: false, sp };
        let mut frames = vec![frame];
        let bottom = sp.saturating_sub(RED_ZONE);
        self.stack_end = stack_end(self.maps, sp, self.thread.regs.fs_base).unwrap_or(sp);
        self.covered.push(bottom..bottom);
        let end = loop {
            match self.step(&registers, frame) {
                Ok(Some(caller)) => {
                    (registers, frame) = caller;
                    frames.push(frame);
                }
                Ok(None) => {
                    self.cover_to(frame.sp);
                    break End::Outermost;
                }
                Err(doubt) => break End::Unreliable(doubt),
            }
            if enough(&frames, &self.covered) {
                break End::Enough;
            }
            if frames.len() == MAX_FRAMES {
                break End::Unreliable(Doubt::TooDeep);
            }
        };
        Walk { frames, covered: self.covered, end }
    }

    fn step(&mut self, registers: &Registers, frame: Frame) -> Result<Caller, Doubt> {
        let at = if frame.exact { frame.pc } else { frame.pc.wrapping_sub(1) };
        let row = match self.cfi.row(self.memory, self.maps, self.thread.tid, at) {
            Ok(row) => row,
            Err(NoCfi::NoEntry) if self.is_trampoline(frame, registers) => {
                return self.interrupted(frame, None);
            }
            // Behind a call that never returns there may be other code than the frame's own.
            Err(NoCfi::NoEntry) if frame.exact => return self.by_code(registers, frame).map(Some),
            Err(e) => return Err(e.into()),
        };
        if row.signal {
            let by_rules = self.caller(registers, frame, &row)?.map(|(registers, _)| registers);
            return self.interrupted(frame, Some(by_rules.ok_or(Doubt::NoReturnAddress)?));
        }
        // Exception unwinders (gcc's __builtin_eh_return) are known by saving the registers that carry an exception,
        // which no caller expects back. Before they leave, they overwrite their saved registers by those of the frame
        // that the exception goes to: from then on the rules find values that belong to no caller.
        if EXCEPTION_DATA.iter().any(|&r| matches!(row.registers[r], Rule::Offset(_) | Rule::Expression(_))) {
            return Err(Doubt::Exception);
        }
        let Some((next, cfa)) = self.caller(registers, frame, &row)? else { return Ok(None) };
        // Only the innermost frame may have given up its return address already (a tail position in assembly).
        let upwards = if frame.exact { cfa >= frame.sp } else { cfa > frame.sp };
        if !upwards || cfa > self.stack_end {
            return Err(Doubt::NotUpwards(RemoteAddr(cfa)));
        }
        let pc = next[RA].ok_or(Doubt::NoReturnAddress)?;
        if let Rule::Offset(offset) = row.registers[RA] {
            let slot = cfa.wrapping_add_signed(offset);
            let bottom = if frame.exact { frame.sp.saturating_sub(RED_ZONE) } else { frame.sp };
            if !(bottom..self.stack_end).contains(&slot) {
                return Err(Doubt::NotUpwards(RemoteAddr(slot)));
            }
        }
        if frame.exact && !self.agrees_with_code(registers, frame, &row, cfa) {
            return Err(Doubt::Contradiction);
        }
        let caller = Frame { pc, exact: false, interrupted: false, sp: cfa };
        // A handler "returns" to a trampoline that called nobody.
        if !follows_call(self.memory, pc) && !self.is_signal_code(caller, &next) {
            return Err(Doubt::NoCall(RemoteAddr(pc)));
        }
        self.cover_to(cfa);
        Ok(Some((next, caller)))
    }

    /// The caller of a frame without call frame information, if the instructions that it is about to execute tell.
    fn by_code(&mut self, registers: &Registers, frame: Frame) -> Result<(Registers, Frame), Doubt> {
        const NONE: Doubt = Doubt::NoCfi(NoCfi::NoEntry);
        let code = self.maps.find(RemoteAddr(frame.pc)).filter(|m| m.exec).ok_or(NONE)?;
        let code = code.start.0..code.end.0;
        let way = exit_path::way_out(self.memory, registers, frame.pc, &code).ok_or(NONE)?;
        let top = way.slot.wrapping_add(8);
        if top < frame.sp || top > self.stack_end {
            return Err(Doubt::NotUpwards(RemoteAddr(top)));
        }
        let mut next = way.registers;
        next[RSP] = Some(top);
        next[RA] = Some(way.ra);
        let caller = Frame { pc: way.ra, exact: false, interrupted: false, sp: top };
        if !follows_call(self.memory, way.ra) && !self.is_signal_code(caller, &next) {
            return Err(Doubt::NoCall(RemoteAddr(way.ra)));
        }
        self.cover_to(top);
        Ok((next, caller))
    }

    fn cover_to(&mut self, top: u64) {
        if let Some(last) = self.covered.last_mut() {
            last.end = last.end.max(top);
        }
    }

    /// The caller's registers by `row`, and the frame's top; `None` where the rules say that there is no caller.
    fn caller(
        &mut self,
        registers: &Registers,
        frame: Frame,
        row: &Row,
    ) -> Result<Option<(Registers, u64)>, Doubt> {
        if row.registers[RA] == Rule::Undefined {
            return Ok(None);
        }
        let cfa = match &row.cfa {
            CfaRule::Register(r, offset) => {
                registers[*r].ok_or(Doubt::Register(*r))?.wrapping_add_signed(*offset)
            }
            CfaRule::Expression(e) => self.evaluate(e, registers, frame, None)?,
        };
        let mut next = [None; REGISTERS];
        for (i, rule) in row.registers.iter().enumerate() {
            next[i] = match rule {
                Rule::Unspecified if i == RSP => Some(cfa),
                Rule::Unspecified if i == RA => return Err(Doubt::NoReturnAddress),
                Rule::Unspecified if callee_saved(i) => registers[i],
                Rule::Unspecified | Rule::Undefined => None,
                Rule::Same => registers[i],
                Rule::Offset(offset) => Some(self.word(cfa.wrapping_add_signed(*offset))?),
                Rule::ValOffset(offset) => Some(cfa.wrapping_add_signed(*offset)),
                Rule::Register(r) => registers[*r],
                Rule::Expression(e) => {
                    let addr = self.evaluate(e, registers, frame, Some(cfa))?;
                    Some(self.word(addr)?)
                }
                Rule::ValExpression(e) => Some(self.evaluate(e, registers, frame, Some(cfa))?),
            };
        }
        Ok(Some((next, cfa)))
    }

    /// The interrupted frame behind a signal trampoline whose stack pointer is `frame.sp`: the registers are those
    /// that the kernel saved, and they must be those that the trampoline's own rules find, if it has any.
    fn interrupted(&mut self, frame: Frame, by_rules: Option<Registers>) -> Result<Caller, Doubt> {
        use frame_layout as l;
        let bad = Doubt::SignalFrame(RemoteAddr(frame.sp));
        self.signals += 1;
        if self.signals > MAX_STACKS {
            return Err(Doubt::TooDeep);
        }
        if self.word(frame.sp + l::SEGMENTS)? != segments_word(self.thread.regs) {
            return Err(bad);
        }
        let mut next = [None; REGISTERS];
        for (slot, register) in (0..).zip(l::ORDER) {
            next[register] = Some(self.word(frame.sp + l::REGISTERS + slot * 8)?);
        }
        if by_rules.is_some_and(|r| r.iter().zip(&next).any(|(rule, saved)| rule.is_some() && rule != saved))
        {
            return Err(bad);
        }
        let (Some(pc), Some(sp)) = (next[RA], next[RSP]) else { return Err(bad) };
        let caller = Frame { pc, exact: true, interrupted: true, sp };
        if frame.sp < sp && sp - frame.sp <= MAX_SIGNAL_FRAME && sp <= self.stack_end {
            // The frame was pushed right below what it interrupted.
            self.cover_to(sp);
        } else {
            let start = self.word(frame.sp + l::ALTERNATE_START)?;
            let size = self.word(frame.sp + l::ALTERNATE_SIZE)?;
            let on_alternate = frame.sp.wrapping_sub(start) < size;
            // The kernel begins an alternate stack at its end: above the frame there is nothing on it.
            let top = if on_alternate { start.saturating_add(size) } else { frame.sp + l::SIZE };
            self.cover_to(top);
            let bottom = sp.saturating_sub(RED_ZONE);
            self.covered.push(bottom..bottom);
            self.stack_end =
                stack_end(self.maps, sp, self.thread.regs.fs_base).ok_or(Doubt::Memory(RemoteAddr(sp)))?;
        }
        Ok(Some((next, caller)))
    }

    /// Whether `frame` is in a trampoline that is known by its bytes.
    fn is_trampoline(&self, frame: Frame, registers: &Registers) -> bool {
        let starts_at = |addr: u64| {
            let mut code = [0; TRAMPOLINE.len()];
            self.memory.read(RemoteAddr(addr), &mut code).is_ok() && code == TRAMPOLINE
        };
        // A handler's return address is the trampoline's start; a thread may also be between its instructions.
        starts_at(frame.pc)
            || (frame.exact
                && registers[0] == Some(libc::SYS_rt_sigreturn as u64)
                && starts_at(frame.pc.wrapping_sub(7)))
    }

    /// Whether `frame` is a signal trampoline, by its rules or its bytes.
    fn is_signal_code(&mut self, frame: Frame, registers: &Registers) -> bool {
        match self.cfi.row(self.memory, self.maps, self.thread.tid, frame.pc.wrapping_sub(1)) {
            Ok(row) => row.signal,
            Err(NoCfi::NoEntry) => self.is_trampoline(frame, registers),
            Err(_) => false,
        }
    }

    /// Whether the instructions ahead of an interrupted frame find the return address where the rules do, as far as
    /// they can be followed.
    fn agrees_with_code(&mut self, registers: &Registers, frame: Frame, row: &Row, cfa: u64) -> bool {
        let Rule::Offset(offset) = row.registers[RA] else { return true };
        let slot = cfa.wrapping_add_signed(offset);
        let Self { cfi, memory, maps, thread, .. } = self;
        exit_path::agrees(memory, registers, frame.pc, &row.code, slot, |pc| {
            cfi.row(memory, maps, thread.tid, pc).ok()
        })
    }

    /// A word of a stack.
    fn word(&mut self, addr: u64) -> Result<u64, Doubt> {
        const CACHE: u64 = 4096;
        let start = addr & !(CACHE - 1);
        if self.cache.1.is_empty() || self.cache.0 != start {
            self.cache.0 = start;
            self.cache.1.resize(CACHE as usize, 0);
            if self.memory.read(RemoteAddr(start), &mut self.cache.1).is_err() {
                self.cache.1.clear();
                return Err(Doubt::Memory(RemoteAddr(addr)));
            }
        }
        let at = (addr - start) as usize;
        match self.cache.1.get(at..at + 8) {
            Some(bytes) => Ok(u64::from_le_bytes(bytes.try_into().unwrap_or_default())),
            None => self.memory.read_u64(RemoteAddr(addr)).map_err(|_| Doubt::Memory(RemoteAddr(addr))),
        }
    }

    /// Evaluates a rule's expression; `initial` is what its stack begins with.
    fn evaluate(
        &mut self,
        expression: &[u8],
        registers: &Registers,
        frame: Frame,
        initial: Option<u64>,
    ) -> Result<u64, Doubt> {
        let encoding = gimli::Encoding { address_size: 8, format: gimli::Format::Dwarf32, version: 4 };
        let mut evaluation = Evaluation::new(EndianSlice::new(expression, LittleEndian), encoding);
        evaluation.set_max_iterations(MAX_OPERATIONS);
        if let Some(value) = initial {
            evaluation.set_initial_value(value);
        }
        let mut state = evaluation.evaluate().map_err(|_| Doubt::Expression)?;
        loop {
            state = match state {
                EvaluationResult::Complete => break,
                EvaluationResult::RequiresMemory { address, size: 8, space: None, .. } => {
                    let word = self.word(address)?;
                    evaluation.resume_with_memory(Value::Generic(word))
                }
                EvaluationResult::RequiresRegister { register, .. } => {
                    let i = usize::from(register.0);
                    let value = match registers.get(i) {
                        // The rules of PLT entries look at the program counter itself.
                        _ if i == RA => Some(frame.pc),
                        Some(value) => *value,
                        None => None,
                    };
                    evaluation.resume_with_register(Value::Generic(value.ok_or(Doubt::Register(i))?))
                }
                _ => return Err(Doubt::Expression),
            }
            .map_err(|_| Doubt::Expression)?;
        }
        match evaluation.result().as_slice() {
            [piece] => match piece.location {
                Location::Address { address } => Ok(address),
                Location::Value { value: Value::Generic(value) } => Ok(value),
                _ => Err(Doubt::Expression),
            },
            _ => Err(Doubt::Expression),
        }
    }
}

/// Whether a call instruction ends at `pc`.
pub(crate) fn follows_call(memory: &Memory, pc: u64) -> bool {
    /// The longest call: two prefixes, opcode, ModRM, SIB, 4 bytes of displacement.
    const LONGEST: usize = 9;
    const NEAR_CALL: u8 = 0xe8;
    const GROUP_5: u8 = 0xff;
    let mut code = [0; LONGEST];
    let read = |code: &mut [u8]| memory.read(RemoteAddr(pc.wrapping_sub(code.len() as u64)), code).is_ok();
    // The mapping may begin right before the call.
    if !read(&mut code) && !read(&mut code[4..]) {
        return false;
    }
    (2..=LONGEST).any(|len| {
        let bytes = &code[LONGEST - len..];
        if !bytes[..3.min(len)].iter().any(|b| matches!(*b, NEAR_CALL | GROUP_5)) {
            return false;
        }
        let mut decoder = Decoder::with_ip(64, bytes, pc - len as u64, DecoderOptions::NONE);
        let instruction = decoder.decode();
        instruction.len() == len
            && matches!(instruction.flow_control(), FlowControl::Call | FlowControl::IndirectCall)
    })
}

/// Walks a stopped thread to the end, or to the first doubt: for backtraces.
pub fn walk(cfi: &mut Cfi, memory: &Memory, maps: &Maps, thread: Thread<'_>) -> Walk {
    Unwinder::new(cfi, memory, maps, thread).walk(|_, _| false)
}
