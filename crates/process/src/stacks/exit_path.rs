//! The way out of a function as its instructions have it: a check on call frame information, and in place of it where
//! there is none.
//!
//! Tables made with `-fno-asynchronous-unwind-tables` are right at calls and may be wrong elsewhere: clang's say
//! nothing of epilogues, gcc's nothing of arguments being pushed. Nothing marks such tables, and believed at an
//! interrupted instruction they lose a frame without a trace. So the way out is followed from there, with the
//! registers' real values: through pushes, pops and moves of pointers to a `ret`, whose return address must be the
//! one the table names, or to a jump out of the function, where the target's table must name it. Several paths may be
//! followed; if some reach an end and none agrees, the tables are not believed. A path that cannot be followed
//! (a value loaded from elsewhere, too long a way) says nothing.
//!
//! musl comes without tables. The functions in which its threads sleep are a few instructions from their `ret`, and there
//! the instructions themselves say where the return address is, as surely as a table: [`way_out`]. A path is good for
//! that only if it meets no call, since what follows a call that never returns may be another function; for the same
//! reason it must begin where the thread is, not behind a call.

use crate::RemoteAddr;
use crate::stacks::rules::{CfaRule, RA, REGISTERS, RSP, Row, Rule};
use crate::target::memory::Memory;
use iced_x86::{
    Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind,
    Register,
};
use std::collections::{HashMap, HashSet};
use std::ops::Range;

/// Most instructions that are followed on all paths together.
const MAX_INSTRUCTIONS: usize = 400;
/// Most paths.
const MAX_PATHS: usize = 32;

/// What is known at a point of a path.
#[derive(Clone)]
struct Point {
    pc: u64,
    /// By DWARF number.
    registers: [Option<u64>; REGISTERS],
    /// Words written on the way.
    written: HashMap<u64, Option<u64>>,
}

/// The DWARF number of a 64-bit general register.
fn number(register: Register) -> Option<usize> {
    use Register as R;
    [
        R::RAX,
        R::RDX,
        R::RCX,
        R::RBX,
        R::RSI,
        R::RDI,
        R::RBP,
        R::RSP,
        R::R8,
        R::R9,
        R::R10,
        R::R11,
        R::R12,
        R::R13,
        R::R14,
        R::R15,
    ]
    .iter()
    .position(|&r| r == register)
}

/// Registers that a call may change (System V ABI, AMD64 supplement, figure 3.4), by DWARF number.
const CALLER_SAVED: [usize; 9] = [0, 1, 2, 4, 5, 8, 9, 10, 11];

/// Registers that a function must preserve (the same): rbx, rbp, r12 to r15.
const PRESERVED: [usize; 6] = [3, 6, 12, 13, 14, 15];
/// Registers that a system call changes: rax, rcx, r11.
const SYSCALL_CHANGES: [usize; 3] = [0, 2, 11];

/// False if the code ahead of `pc`, which lies in `code`, returns elsewhere than to the address in the word at
/// `slot`. `row_of` gives the rules for an address outside of `code`.
pub(crate) fn agrees(
    memory: &Memory,
    registers: &[Option<u64>; REGISTERS],
    pc: u64,
    code: &Range<u64>,
    slot: u64,
    mut row_of: impl FnMut(u64) -> Option<std::sync::Arc<Row>>,
) -> bool {
    let mut walker = Walker::new(memory, code);
    let mut paths = Paths::from(pc, registers);
    let mut disagreed = false;
    while let Some(path) = paths.next() {
        match walker.follow(path, &mut paths, &mut |at| slot_by(row_of(at.pc)?.as_ref(), &at.registers)) {
            Some(out) if out.slot == slot => return true,
            Some(_) => disagreed = true,
            None => {}
        }
    }
    !disagreed
}

/// How a function that has no call frame information is left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WayOut {
    /// The word from which the return address is taken.
    pub(crate) slot: u64,
    /// The return address.
    pub(crate) ra: u64,
    /// The caller's registers that the function preserves, by DWARF number; the others are `None`.
    pub(crate) registers: [Option<u64>; REGISTERS],
}

/// The way out from `pc`, in `code`, as the instructions themselves have it: through branches and direct jumps, but not
/// through calls, which need not return. `None` if no path gets to a `ret`, or if two get to different ones.
pub(crate) fn way_out(
    memory: &Memory,
    registers: &[Option<u64>; REGISTERS],
    pc: u64,
    code: &Range<u64>,
) -> Option<WayOut> {
    let mut walker = Walker::new(memory, code);
    walker.calls = false;
    let mut paths = Paths::from(pc, registers);
    let mut found: Option<WayOut> = None;
    while let Some(path) = paths.next() {
        let Some(out) = walker.follow(path, &mut paths, &mut |_| None) else { continue };
        let mut way = WayOut { slot: out.slot, ra: out.ra?, registers: [None; REGISTERS] };
        for r in PRESERVED {
            way.registers[r] = out.registers[r];
        }
        match &mut found {
            None => found = Some(way),
            Some(first) if (first.slot, first.ra) != (way.slot, way.ra) => return None,
            Some(first) => {
                for r in PRESERVED {
                    if first.registers[r] != way.registers[r] {
                        first.registers[r] = None;
                    }
                }
            }
        }
    }
    found
}

/// The end of a path: a return.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Out {
    slot: u64,
    ra: Option<u64>,
    registers: [Option<u64>; REGISTERS],
}

/// Paths still to be followed, and what was seen on those before.
struct Paths {
    waiting: Vec<Point>,
    seen: HashSet<u64>,
    left: usize,
}

impl Paths {
    fn from(pc: u64, registers: &[Option<u64>; REGISTERS]) -> Self {
        let first = Point { pc, registers: *registers, written: HashMap::new() };
        Self { waiting: vec![first], seen: HashSet::new(), left: MAX_PATHS }
    }

    fn next(&mut self) -> Option<Point> {
        self.left = self.left.checked_sub(1)?;
        self.waiting.pop()
    }
}

/// Where control goes from an instruction.
enum Next {
    /// To another point.
    At(u64),
    /// To one of two points, the second by jump.
    Either(u64, u64),
    /// Out by `ret`.
    Return,
    /// It cannot be told.
    Unknown,
}

struct Walker<'a> {
    memory: &'a Memory,
    code: Range<u64>,
    chunk: (u64, Vec<u8>),
    info: InstructionInfoFactory,
    budget: usize,
    /// Whether calls are taken to return, and indirect jumps to go where they seem to.
    calls: bool,
}

impl<'a> Walker<'a> {
    fn new(memory: &'a Memory, code: &Range<u64>) -> Self {
        Self {
            memory,
            code: code.clone(),
            chunk: (0, Vec::new()),
            info: InstructionInfoFactory::new(),
            budget: MAX_INSTRUCTIONS,
            calls: true,
        }
    }

    /// Follows one path to its end. `outside` tells, where the path leaves `code`, which word will be returned by.
    fn follow(
        &mut self,
        mut at: Point,
        paths: &mut Paths,
        outside: &mut impl FnMut(&Point) -> Option<u64>,
    ) -> Option<Out> {
        loop {
            if !self.code.contains(&at.pc) {
                let slot = outside(&at)?;
                return Some(Out { slot, ra: self.load(slot, &at), registers: at.registers });
            }
            if self.budget == 0 || !paths.seen.insert(at.pc) {
                return None;
            }
            self.budget -= 1;
            let instruction = self.decode(at.pc)?;
            match self.execute(&instruction, &mut at) {
                Next::At(pc) => at.pc = pc,
                Next::Either(pc, jump) => {
                    paths.waiting.push(Point { pc: jump, ..at.clone() });
                    at.pc = pc;
                }
                Next::Return => {
                    let slot = at.registers[RSP]?;
                    return Some(Out { slot, ra: self.load(slot, &at), registers: at.registers });
                }
                Next::Unknown => return None,
            }
        }
    }

    fn decode(&mut self, pc: u64) -> Option<Instruction> {
        /// The longest instruction.
        const LONGEST: u64 = 15;
        const CHUNK: u64 = 256;
        let end = self.code.end.min(pc + LONGEST);
        let (start, bytes) = &self.chunk;
        if pc < *start || end > start + bytes.len() as u64 {
            let len = CHUNK.min(self.code.end - pc) as usize;
            self.chunk = (pc, self.memory.read_vec(RemoteAddr(pc), len).ok()?);
        }
        let (start, bytes) = &self.chunk;
        let mut decoder = Decoder::with_ip(64, &bytes[(pc - start) as usize..], pc, DecoderOptions::NONE);
        let instruction = decoder.decode();
        (!instruction.is_invalid()).then_some(instruction)
    }

    /// Does what `i` does to the registers, as far as that is known, and tells what comes next.
    fn execute(&mut self, i: &Instruction, at: &mut Point) -> Next {
        match i.flow_control() {
            // `ret n` is no ABI's on x86-64.
            FlowControl::Return if i.op_count() == 0 => return Next::Return,
            FlowControl::UnconditionalBranch => return Next::At(i.near_branch_target()),
            FlowControl::ConditionalBranch => return Next::Either(i.next_ip(), i.near_branch_target()),
            FlowControl::IndirectBranch if self.calls => {
                let target = self.operand(i, 0, at);
                return target.map_or(Next::Unknown, Next::At);
            }
            FlowControl::Call if i.mnemonic() == Mnemonic::Syscall => {
                for r in SYSCALL_CHANGES {
                    at.registers[r] = None;
                }
                return Next::At(i.next_ip());
            }
            FlowControl::Call | FlowControl::IndirectCall if self.calls => {
                for r in CALLER_SAVED {
                    at.registers[r] = None;
                }
                return Next::At(i.next_ip());
            }
            FlowControl::Next => {}
            _ => return Next::Unknown,
        }
        let sp = at.registers[RSP];
        match i.mnemonic() {
            Mnemonic::Push if i.stack_pointer_increment() == -8 => {
                let value = self.operand(i, 0, at);
                let to = sp.map(|s| s.wrapping_sub(8));
                if let Some(to) = to {
                    at.written.insert(to, value);
                }
                at.registers[RSP] = to;
            }
            Mnemonic::Pop if i.stack_pointer_increment() == 8 => {
                let value = sp.and_then(|s| self.load(s, at));
                at.registers[RSP] = sp.map(|s| s.wrapping_add(8));
                if let Some(r) = number(i.op0_register()) {
                    at.registers[r] = value;
                }
            }
            Mnemonic::Leave => {
                const RBP: usize = 6;
                let base = at.registers[RBP];
                at.registers[RBP] = base.and_then(|b| self.load(b, at));
                at.registers[RSP] = base.map(|b| b.wrapping_add(8));
            }
            Mnemonic::Mov if i.op0_kind() == OpKind::Memory => {
                let value = self.operand(i, 1, at);
                let full = matches!(i.memory_size(), iced_x86::MemorySize::UInt64);
                if let Some(addr) = address(i, at) {
                    at.written.insert(addr, value.filter(|_| full));
                }
            }
            Mnemonic::Mov | Mnemonic::Lea | Mnemonic::Add | Mnemonic::Sub | Mnemonic::And
                if number(i.op0_register()).is_some() =>
            {
                let old = self.operand(i, 0, at);
                let value = self.operand(i, 1, at);
                let with = |f: fn(u64, u64) -> u64| old.zip(value).map(|(o, v)| f(o, v));
                let result = match i.mnemonic() {
                    Mnemonic::Mov => value,
                    Mnemonic::Lea => address(i, at),
                    Mnemonic::Add => with(u64::wrapping_add),
                    Mnemonic::Sub => with(u64::wrapping_sub),
                    _ => with(|o, v| o & v),
                };
                if let Some(r) = number(i.op0_register()) {
                    at.registers[r] = result;
                }
            }
            _ => self.forget_written(i, at),
        }
        Next::At(i.next_ip())
    }

    /// What a register that `i` writes holds afterwards is not known.
    fn forget_written(&mut self, i: &Instruction, at: &mut Point) {
        for used in self.info.info(i).used_registers() {
            let writes = !matches!(used.access(), OpAccess::None | OpAccess::Read | OpAccess::CondRead);
            if let Some(r) = number(used.register().full_register()).filter(|_| writes) {
                at.registers[r] = None;
            }
        }
    }

    fn load(&self, addr: u64, at: &Point) -> Option<u64> {
        match at.written.get(&addr) {
            Some(value) => *value,
            None => self.memory.read_u64(RemoteAddr(addr)).ok(),
        }
    }

    /// The 64-bit value of an operand.
    fn operand(&self, i: &Instruction, n: u32, at: &Point) -> Option<u64> {
        match i.op_kind(n) {
            OpKind::Register => at.registers[number(i.op_register(n))?],
            OpKind::Memory if i.memory_size().size() == 8 && i.mnemonic() != Mnemonic::Lea => {
                self.load(address(i, at)?, at)
            }
            OpKind::Immediate8to64 | OpKind::Immediate32to64 | OpKind::Immediate64 => Some(i.immediate(n)),
            _ => None,
        }
    }
}

/// The address of an instruction's memory operand.
fn address(i: &Instruction, at: &Point) -> Option<u64> {
    if matches!(i.segment_prefix(), Register::FS | Register::GS) {
        return None;
    }
    let mut sum = i.memory_displacement64();
    // A RIP-relative displacement is the whole address already.
    if i.memory_base() != Register::None && !i.is_ip_rel_memory_operand() {
        sum = sum.wrapping_add(at.registers[number(i.memory_base())?]?);
    }
    if i.memory_index() != Register::None {
        let index = at.registers[number(i.memory_index())?]?;
        sum = sum.wrapping_add(index.wrapping_mul(i.memory_index_scale().into()));
    }
    Some(sum)
}

/// Where `row` says that the return address is.
fn slot_by(row: &Row, registers: &[Option<u64>; REGISTERS]) -> Option<u64> {
    match (&row.cfa, &row.registers[RA]) {
        (CfaRule::Register(r, offset), Rule::Offset(slot)) => {
            Some(registers[*r]?.wrapping_add_signed(*offset).wrapping_add_signed(*slot))
        }
        _ => None,
    }
}
