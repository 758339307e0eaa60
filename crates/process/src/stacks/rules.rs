//! One row of a call frame table: the rules by which, for one instruction, the caller's registers are found.
//!
//! gimli decodes the instructions; the table machine is our own, because a proof must tell apart what the format
//! tells apart and a debugger need not: a register that is said to be *undefined* (for the return address that
//! means: there is no caller) and one about which nothing is said.

use gimli::{
    BaseAddresses, CallFrameInstruction, CommonInformationEntry, EndianSlice, FrameDescriptionEntry,
    LittleEndian, Register, UnwindExpression, UnwindSection,
};
use std::ops::Range;

/// Registers that a row describes: the sixteen general ones and the return address, in the numbering of the System V
/// ABI, AMD64 supplement, figure 3.36.
pub const REGISTERS: usize = 17;
/// The stack pointer's number.
pub const RSP: usize = 7;
/// The return address's number.
pub const RA: usize = 16;

/// Most instructions of one entry that are executed.
const MAX_INSTRUCTIONS: usize = 1 << 20;
/// Most states that one entry may remember at a time.
const MAX_REMEMBERED: usize = 64;

/// How the caller's value of a register is found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rule {
    /// Nothing is said; the ABI decides.
    Unspecified,
    /// It cannot be found. For the return address: there is no caller.
    Undefined,
    /// As in this frame.
    Same,
    /// In memory at the CFA plus this.
    Offset(i64),
    /// The CFA plus this.
    ValOffset(i64),
    /// In this register.
    Register(usize),
    /// In memory where this expression says.
    Expression(Vec<u8>),
    /// What this expression yields.
    ValExpression(Vec<u8>),
}

/// How the canonical frame address is found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CfaRule {
    /// A register plus an offset.
    Register(usize, i64),
    /// What this expression yields.
    Expression(Vec<u8>),
}

/// The rules for one instruction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The canonical frame address: by convention the stack pointer before the call instruction.
    pub cfa: CfaRule,
    /// The caller's registers.
    pub registers: [Rule; REGISTERS],
    /// The function is a signal trampoline: its caller was interrupted and did not call.
    pub signal: bool,
    /// The addresses of the code that the table entry describes, in the target.
    pub code: Range<u64>,
}

/// Why an entry yields no row.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadRules {
    /// gimli could not decode it.
    #[error("its call frame information is malformed: {0}")]
    Malformed(String),
    /// It says something that no x86-64 compiler says.
    #[error("its call frame information is not understood: {0}")]
    Unsupported(&'static str),
}

impl From<gimli::Error> for BadRules {
    fn from(e: gimli::Error) -> Self {
        BadRules::Malformed(e.to_string())
    }
}

/// The state of the table machine.
#[derive(Clone)]
struct State {
    cfa: Option<CfaRule>,
    registers: [Rule; REGISTERS],
}

type Slice<'a> = EndianSlice<'a, LittleEndian>;

/// Executes `fde` of `section` up to `pc`, which it covers; both are addresses in the section's own terms. `bias`
/// is what is added to those to get addresses in the target.
pub(crate) fn row<'a, S: UnwindSection<Slice<'a>>>(
    section: &S,
    bases: &BaseAddresses,
    fde: &FrameDescriptionEntry<Slice<'a>>,
    pc: u64,
    bias: u64,
) -> Result<Row, BadRules> {
    let cie = fde.cie();
    if cie.return_address_register() != Register(RA as u16) {
        return Err(BadRules::Unsupported("return address column"));
    }
    let mut machine = Machine {
        section,
        cie,
        state: State { cfa: None, registers: [const { Rule::Unspecified }; REGISTERS] },
        initial: None,
        remembered: Vec::new(),
        at: fde.initial_address(),
        steps: 0,
    };
    let mut instructions = cie.instructions(section, bases);
    while let Some(instruction) = instructions.next()? {
        machine.step(instruction, u64::MAX)?;
    }
    machine.initial = Some(machine.state.clone());
    let mut instructions = fde.instructions(section, bases);
    while let Some(instruction) = instructions.next()? {
        if !machine.step(instruction, pc)? {
            break;
        }
    }
    let start = fde.initial_address().wrapping_add(bias);
    Ok(Row {
        cfa: machine.state.cfa.ok_or(BadRules::Unsupported("no frame address"))?,
        registers: machine.state.registers,
        signal: fde.is_signal_trampoline(),
        code: start..start.wrapping_add(fde.len()),
    })
}

struct Machine<'m, 'a, S> {
    section: &'m S,
    cie: &'m CommonInformationEntry<Slice<'a>>,
    state: State,
    initial: Option<State>,
    remembered: Vec<State>,
    at: u64,
    steps: usize,
}

impl<'a, S: UnwindSection<Slice<'a>>> Machine<'_, 'a, S> {
    /// Executes one instruction; false once the row of `pc` is complete.
    fn step(&mut self, instruction: CallFrameInstruction<usize>, pc: u64) -> Result<bool, BadRules> {
        use CallFrameInstruction as I;
        self.steps += 1;
        if self.steps > MAX_INSTRUCTIONS {
            return Err(BadRules::Unsupported("too many instructions"));
        }
        let data = self.cie.data_alignment_factor();
        let factor = |offset: u64| (offset as i64).wrapping_mul(data);
        match instruction {
            I::SetLoc { address } => return self.advance_to(address, pc),
            I::AdvanceLoc { delta } => {
                let by = u64::from(delta).wrapping_mul(self.cie.code_alignment_factor());
                return self.advance_to(self.at.wrapping_add(by), pc);
            }
            I::DefCfa { register, offset } => self.cfa(register, offset as i64)?,
            I::DefCfaSf { register, factored_offset } => {
                self.cfa(register, factored_offset.wrapping_mul(data))?;
            }
            I::DefCfaRegister { register } => {
                let offset = self.cfa_offset()?;
                self.cfa(register, offset)?;
            }
            I::DefCfaOffset { offset } => self.set_cfa_offset(offset as i64)?,
            I::DefCfaOffsetSf { factored_offset } => {
                self.set_cfa_offset(factored_offset.wrapping_mul(data))?;
            }
            I::DefCfaExpression { expression } => {
                self.state.cfa = Some(CfaRule::Expression(self.bytes(&expression)?));
            }
            I::Undefined { register } => self.set(register, Rule::Undefined),
            I::SameValue { register } => self.set(register, Rule::Same),
            I::Offset { register, factored_offset } => {
                self.set(register, Rule::Offset(factor(factored_offset)));
            }
            I::OffsetExtendedSf { register, factored_offset } => {
                self.set(register, Rule::Offset(factored_offset.wrapping_mul(data)));
            }
            I::ValOffset { register, factored_offset } => {
                self.set(register, Rule::ValOffset(factor(factored_offset)));
            }
            I::ValOffsetSf { register, factored_offset } => {
                self.set(register, Rule::ValOffset(factored_offset.wrapping_mul(data)));
            }
            I::Register { dest_register, src_register } => {
                let source = usize::from(src_register.0);
                if source >= REGISTERS {
                    return Err(BadRules::Unsupported("a value in a vector register"));
                }
                self.set(dest_register, Rule::Register(source));
            }
            I::Expression { register, expression } => {
                let bytes = self.bytes(&expression)?;
                self.set(register, Rule::Expression(bytes));
            }
            I::ValExpression { register, expression } => {
                let bytes = self.bytes(&expression)?;
                self.set(register, Rule::ValExpression(bytes));
            }
            I::Restore { register } => {
                let initial = self.initial.as_ref().ok_or(BadRules::Unsupported("restore in a CIE"))?;
                if let Some(rule) = initial.registers.get(usize::from(register.0)).cloned() {
                    self.set(register, rule);
                }
            }
            I::RememberState => {
                if self.remembered.len() == MAX_REMEMBERED {
                    return Err(BadRules::Unsupported("too many remembered states"));
                }
                self.remembered.push(self.state.clone());
            }
            // The frame address is part of the state, as every producer and consumer has it.
            I::RestoreState => {
                self.state = self.remembered.pop().ok_or(BadRules::Unsupported("nothing remembered"))?;
            }
            // How many bytes of arguments were pushed matters to landing pads only.
            I::ArgsSize { .. } | I::Nop => {}
            _ => return Err(BadRules::Unsupported("unknown instruction")),
        }
        Ok(true)
    }

    fn advance_to(&mut self, address: u64, pc: u64) -> Result<bool, BadRules> {
        if self.initial.is_none() {
            return Err(BadRules::Unsupported("an advance in a CIE"));
        }
        if address < self.at {
            return Err(BadRules::Unsupported("a step back"));
        }
        self.at = address;
        Ok(address <= pc)
    }

    fn cfa(&mut self, register: Register, offset: i64) -> Result<(), BadRules> {
        let register = usize::from(register.0);
        if register >= REGISTERS {
            return Err(BadRules::Unsupported("frame address in a vector register"));
        }
        self.state.cfa = Some(CfaRule::Register(register, offset));
        Ok(())
    }

    fn cfa_offset(&self) -> Result<i64, BadRules> {
        match self.state.cfa {
            Some(CfaRule::Register(_, offset)) => Ok(offset),
            _ => Err(BadRules::Unsupported("no frame address register")),
        }
    }

    fn set_cfa_offset(&mut self, to: i64) -> Result<(), BadRules> {
        match &mut self.state.cfa {
            Some(CfaRule::Register(_, offset)) => {
                *offset = to;
                Ok(())
            }
            _ => Err(BadRules::Unsupported("no frame address register")),
        }
    }

    /// Sets the rule of `register` if it is one that rows describe; vector registers never lead to a frame.
    fn set(&mut self, register: Register, rule: Rule) {
        if let Some(slot) = self.state.registers.get_mut(usize::from(register.0)) {
            *slot = rule;
        }
    }

    fn bytes(&self, expression: &UnwindExpression<usize>) -> Result<Vec<u8>, BadRules> {
        Ok(expression.get(self.section)?.0.slice().to_vec())
    }
}
