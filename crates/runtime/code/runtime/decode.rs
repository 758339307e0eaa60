//! The length of x86-64 instructions, and what of them depends on where they lie.
//!
//! The tables are those of the Intel SDM, volume 2, appendix A (opcode maps), with AMD's XOP maps and 3DNow! suffixes (AMD APM,
//! volume 3, appendix A). An opcode that is not in them is refused, and so is what the manuals declare undefined as far as the
//! opcode, its prefixes and its ModRM byte say so; the length of what runs is never guessed.

/// What an instruction does to the flow of control.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// Goes on behind it.
    Next,
    /// `jmp rel`
    Jump,
    /// `jcc rel`, with the condition's four bits.
    Condition(u8),
    /// `loop`, `loope`, `loopne`, `jrcxz`, which have no form with a 32-bit displacement.
    Loop,
    /// `xbegin rel32`
    Begin,
    /// `call rel32`
    Call,
    /// `call r/m64`
    IndirectCall,
    /// `call m16:64`
    FarCall,
    /// Comes back behind it from the kernel or a hypervisor: `syscall` and its like.
    System,
    /// `jmp r/m64`, `jmp m16:64`
    IndirectJump,
    /// `ret`, `iret`, `sysret` and their like.
    Return,
    /// `ud2`, `hlt`
    Stop,
}

/// An instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// Its address.
    pub at: u64,
    /// Its length in bytes, 1 to 15.
    pub len: u8,
    pub flow: Flow,
    /// Where a relative branch leads; else where a memory operand relative to the instruction pointer lies; else 0.
    pub to: u64,
    /// Offset in it of the 32-bit displacement from the instruction pointer, or 0 where no memory operand has one.
    pub field: u8,
    /// Offset of its opcode's last byte.
    pub opcode: u8,
    /// The offset in it of its ModRM byte, or 0.
    pub modrm: u8,
    /// Relative to the lower half of the instruction pointer, or a branch of 16 bits on some processors.
    pub truncated: bool,
    /// It does nothing: a nop of any length, or a `lea` of a register to itself.
    pub nop: bool,
    /// Its operand is the stack pointer itself.
    pub is_rsp: bool,
    /// Its memory operand is based on the stack pointer.
    pub based_on_rsp: bool,
}

impl Instruction {
    /// The address behind it.
    pub fn next(&self) -> u64 {
        self.at.wrapping_add(u64::from(self.len))
    }

    /// Whether it has a destination in the code as its operand.
    pub fn is_near_branch(&self) -> bool {
        matches!(self.flow, Flow::Jump | Flow::Condition(_) | Flow::Loop | Flow::Begin | Flow::Call)
    }

    /// Whether it is a near call.
    pub fn is_call(&self) -> bool {
        matches!(self.flow, Flow::Call | Flow::IndirectCall)
    }

    /// Whether control never goes on behind it.
    pub fn is_terminator(&self) -> bool {
        matches!(self.flow, Flow::Jump | Flow::IndirectJump | Flow::Return | Flow::Stop)
    }
}

/// Longest instruction.
pub const MAX_LEN: usize = 15;

/// The map of one-byte opcodes, a row for each upper half of the byte (table A-2), by what follows the opcode:
/// `.` nothing; `m` ModRM; `b` ModRM, imm8; `z` ModRM, imm16/32; `i` imm8; `I` imm16/32; `w` imm16; `e` imm16, imm8; `o` an address;
/// `v` imm16/32/64; `r` rel8; `R` rel32; `f` and `F` ModRM and, for `test`, imm8 or imm16/32; `p` a prefix; `x` another map; `-` undefined.
const ONE: &[u8; 256] = b"\
mmmmiI--mmmmiI-x\
mmmmiI--mmmmiI--\
mmmmiIp-mmmmiIp-\
mmmmiIp-mmmmiIp-\
pppppppppppppppp\
................\
--xmppppIzib....\
rrrrrrrrrrrrrrrr\
bz-bmmmmmmmmmmmm\
..........-.....\
oooo....iI......\
iiiiiiiivvvvvvvv\
bbw.xxbze.w..i-.\
mmmm---.mmmmmmmm\
rrrriiiiRR-r....\
p.pp..fF......mm";

/// One bit for each opcode of a map.
type Opcodes = [u64; 4];

/// Opcodes behind `0F`, `0F 38` and `0F 3A`, each without a prefix that selects, with `66`, `F3`, `F2` (tables ).
static LEGACY: [Opcodes; 12] = [
    [0x05bf_ff0f_ffff_ebef, 0xc3ff_cfff_ffff_ffff, 0xfeff_ffbf_ffff_ffff, 0xfffe_ffbf_ffbe_ffff],
    [0x053f_ff0f_ffff_ebef, 0xf37f_ffff_fff3_ffff, 0xfeff_ffbf_ffff_ffff, 0xfffe_ffff_ffff_fff7],
    [0x013f_3c0f_ff47_ebef, 0xc001_8000_ff0e_ffff, 0xffff_ffff_ffff_ffff, 0x8000_0040_0040_ff87],
    [0x013f_3c0f_ff07_ebef, 0x3301_0000_f702_ffff, 0xfeff_ffbf_ffff_ffff, 0x8001_0040_0041_ff87],
    [0x0000_0000_7000_0fff, 0, 0, 0x1243_0000_0000_3f00],
    [0xffbf_0f3f_70b1_0fff, 3, 7, 0x1163_0000_f800_8000],
    [0, 0, 0, 0x1d40_0000_f100_0000],
    [0, 0, 0, 0x1103_0000_0000_0000],
    [0x0000_0000_0000_8000, 0, 0, 0x0000_0000_0000_1000],
    [0x0000_0007_00f0_ff00, 0x0000_000f_0000_0017, 0, 0x0000_0000_8000_c000],
    [0, 0, 0, 0x0001_0000_0000_0000],
    [0; 4],
];

/// Opcodes of the VEX maps 1 to 3, in the same order.
static VEX: [Opcodes; 12] = [
    [0x0000_cb00_00ff_0000, 0x0080_0000_ffff_0cf6, 0x0000_4000_030f_0000, 0x0000_0000_0000_0044],
    [0x0000_cb00_00ff_0000, 0xf07f_ffff_fff3_0cf6, 0x0000_0000_030f_0000, 0x7ffe_ffff_ffff_0074],
    [0x0000_3400_0047_0000, 0xc001_8000_ff0e_0000, 0, 0x0000_0040_0000_0004],
    [0x0000_3400_0007_0000, 0x3001_0000_f702_0000, 0x0000_0000_000c_0000, 0x0001_0040_0001_0004],
    [0, 0x0000_1000_4003_0200, 0x0001_0000_0000_0000, 0x00ac_0000_040c_0000],
    [0xffff_ff3f_77c8_ffff, 0x0300_1000_470f_0ae3, 0xfff3_ffc0_ffcf_5000, 0x0080_ffff_fc0c_8000],
    [0, 0x0004_0000_5003_0800, 0x0003_0000_0000_0000, 0x00a0_0000_040c_0000],
    [0, 0x0000_0000_5003_0a00, 0x0001_0000_0000_0000, 0x00e0_0000_0400_3800],
    [0; 4],
    [0x030f_0007_23f0_ff77, 0xff00_ff0f_f000_1f57, 0, 0x0000_0000_c000_c000],
    [0; 4],
    [0, 0, 0, 0x0001_0000_0000_0000],
];

/// Opcodes of the EVEX maps 1, 2, 3, 5, 6, in the same order.
static EVEX: [Opcodes; 20] = [
    [0x0000_cb00_00ff_0000, 0x0300_0000_fff2_0000, 0, 0x0000_0000_0000_0044],
    [0x0000_cb00_00ff_0000, 0xcf7f_ffff_fff2_0000, 0, 0x7f7e_ffff_ff7e_0074],
    [0x0000_3400_0047_0000, 0xcf01_8000_ff02_0000, 0, 0x0000_0040_0000_0004],
    [0x0000_3400_0007_0000, 0x8f01_8000_f702_0000, 0, 0x0000_0040_0000_0004],
    [0; 4],
    [0xffff_3fff_ff7f_3811, 0xffef_007c_0f3f_f0fd, 0xfff0_ffcf_ffcf_af08, 0x0000_0000_f000_bdd0],
    [0x073f_07ff_003f_0000, 0x0004_0000_0004_0000, 0, 0],
    [0, 0x0004_0100_000c_0000, 0x0000_0c00_0c00_0000, 0],
    [0x0000_00c0_0000_0500, 0x0000_00c0_00c0_0000, 0, 4],
    [0xcf00_00ef_eff0_8f3b, 0x000f_00c0_00f3_001c, 0, 0xc000],
    [0, 0, 0, 4],
    [0; 4],
    [0x0000_c000_2000_0000, 0x3300_0000_ff02_0000, 0, 0],
    [0x0000_0000_2000_0000, 0x7f00_4000_0c00_0000, 0, 0],
    [0x0000_3400_0003_0000, 0x2b00_0000_ff02_0000, 0, 0],
    [0, 0x2400_0000_0400_0000, 0, 0],
    [0x0000_0000_0008_0000, 0, 0, 0],
    [0x0000_3000_0008_0000, 0xf00c, 0xffc0_ffc0_ffc0_0000, 0],
    [0, 0x0000_0000_00c0_0000, 0, 0x0000_0000_00c0_0000],
    [0, 0x0000_0000_00c0_0000, 0, 0x0000_0000_00c0_0000],
];

/// Opcodes of the XOP maps 8, 9, 10.
static XOP: [Opcodes; 3] = [
    [0, 0, 0x0040_004c_c0e0_c0e0, 0x0000_f000_0000_f00f],
    [0x0000_0000_0004_0006, 0, 0x0000_0000_0fff_000f, 0x0000_000e_08ce_08ce],
    [0x0000_0000_0005_0000, 0, 0, 0],
];

/// Suffixes of 3DNow! instructions.
static SUFFIXES: Opcodes = [0x0000_0000_3000_3000, 0, 0x88d1_44d1_44d1_4400, 0];

fn has(maps: &[Opcodes], map: usize, opcode: u8) -> bool {
    let word = maps.get(map).and_then(|opcodes| opcodes.get(usize::from(opcode >> 6)));
    word.is_some_and(|word| word >> (opcode & 63) & 1 != 0)
}

/// What is read of an instruction so far.
struct Reader<'b> {
    bytes: &'b [u8],
    at: usize,
}

impl Reader<'_> {
    fn peek(&self) -> Option<u8> {
        self.bytes.get(..MAX_LEN.min(self.bytes.len()))?.get(self.at).copied()
    }

    fn take(&mut self) -> Option<u8> {
        let byte = self.peek()?;
        self.at += 1;
        Some(byte)
    }

    fn skip(&mut self, count: usize) -> Option<()> {
        self.at += count;
        (self.at <= MAX_LEN.min(self.bytes.len())).then_some(())
    }
}

/// Prefixes that an instruction has.
#[derive(Clone, Copy, Default)]
struct Prefixes {
    operand: bool,
    address: bool,
    lock: bool,
    /// F2 or F3, the last of them.
    repeat: u8,
    rex: u8,
}

impl Prefixes {
    fn any_but_segments(&self) -> bool {
        self.operand || self.lock || self.repeat != 0 || self.rex != 0
    }

    /// Which of four maps a prefix selects.
    fn selects(&self) -> usize {
        match (self.repeat, self.operand) {
            (0xf3, _) => 2,
            (0xf2, _) => 3,
            (_, true) => 1,
            _ => 0,
        }
    }

    /// Bytes of an immediate that is no longer than 32 bits.
    fn immediate(&self) -> usize {
        if self.operand && self.rex & 8 == 0 { 2 } else { 4 }
    }
}

/// The instruction that `bytes` begin with, at `at`; `None` where they begin with none, or the bytes end within it.
pub fn decode(bytes: &[u8], at: u64) -> Option<Instruction> {
    let mut r = Reader { bytes, at: 0 };
    let mut p = Prefixes::default();
    let mut opcode;
    loop {
        opcode = r.take()?;
        let rex = match opcode {
            0x26 | 0x2e | 0x36 | 0x3e | 0x64 | 0x65 => 0,
            0x66 => {
                p.operand = true;
                0
            }
            0x67 => {
                p.address = true;
                0
            }
            0xf0 => {
                p.lock = true;
                0
            }
            0xf2 | 0xf3 => {
                p.repeat = opcode;
                0
            }
            0x40..=0x4f => opcode,
            _ => break,
        };
        // A REX prefix counts only right in front of the opcode.
        p.rex = rex;
    }
    let mut i = Instruction {
        at,
        len: 0,
        flow: Flow::Next,
        to: 0,
        field: 0,
        opcode: 0,
        modrm: 0,
        truncated: false,
        nop: false,
        is_rsp: false,
        based_on_rsp: false,
    };
    i.opcode = (r.at - 1) as u8;
    match opcode {
        0x0f => two_bytes(&mut r, &mut i, &p)?,
        0xc4 | 0xc5 | 0x62 => vector(&mut r, &mut i, &p, opcode)?,
        0x8f if r.peek()? & 0x1f >= 8 => vector(&mut r, &mut i, &p, opcode)?,
        _ => one_byte(&mut r, &mut i, &p, opcode)?,
    }
    i.len = r.at as u8;
    let next = i.next();
    let relative = |at: u8, len: u8| -> Option<u64> {
        let rest = bytes.get(usize::from(at)..)?;
        let value = match len {
            1 => i64::from(rest.first()?.cast_signed()),
            _ => i64::from((super::elf::number::<4>(rest, 0)? as u32).cast_signed()),
        };
        Some(next.wrapping_add_signed(value))
    };
    if i.is_near_branch() {
        let short = matches!(i.flow, Flow::Loop) || matches!(opcode, 0x70..=0x7f | 0xeb);
        let len = if short { 1 } else { 4 };
        i.to = relative(i.len.wrapping_sub(len), len)?;
        i.truncated = p.operand && p.rex & 8 == 0;
    } else if i.field != 0 {
        i.to = relative(i.field, 4)?;
        if p.address {
            i.truncated = true;
            i.to &= u64::from(u32::MAX);
        }
    }
    Some(i)
}

/// Reads a ModRM byte and what belongs to it.
fn modrm(r: &mut Reader<'_>, i: &mut Instruction, p: &Prefixes) -> Option<u8> {
    i.modrm = r.at as u8;
    let modrm = r.take()?;
    let (mode, rm) = (modrm >> 6, modrm & 7);
    if mode == 3 {
        i.is_rsp = rm == 4 && p.rex & 1 == 0;
        return Some(modrm);
    }
    let mut base = rm;
    if rm == 4 {
        base = r.take()? & 7;
        i.based_on_rsp = base == 4 && p.rex & 1 == 0;
    }
    match mode {
        0 if rm == 5 => {
            i.field = r.at as u8;
            r.skip(4)?;
        }
        0 if base == 5 => r.skip(4)?,
        1 => r.skip(1)?,
        2 => r.skip(4)?,
        _ => {}
    }
    Some(modrm)
}

fn one_byte(r: &mut Reader<'_>, i: &mut Instruction, p: &Prefixes, opcode: u8) -> Option<()> {
    let kind = *ONE.get(usize::from(opcode))?;
    let mut byte = 0;
    if matches!(kind, b'm' | b'b' | b'z' | b'f' | b'F') {
        byte = modrm(r, i, p)?;
    }
    let (mode, reg) = (byte >> 6, byte >> 3 & 7);
    match kind {
        b'.' | b'm' => {}
        b'b' | b'i' | b'r' => r.skip(1)?,
        b'z' | b'I' => r.skip(p.immediate())?,
        b'w' => r.skip(2)?,
        b'e' => r.skip(3)?,
        b'o' => r.skip(if p.address { 4 } else { 8 })?,
        b'v' => r.skip(if p.rex & 8 != 0 { 8 } else { p.immediate() })?,
        b'R' => r.skip(4)?,
        b'f' if reg < 2 => r.skip(1)?,
        b'F' if reg < 2 => r.skip(p.immediate())?,
        b'f' | b'F' => {}
        _ => return None,
    }
    let defined = match opcode {
        0x8c => reg < 6,
        0x8e => reg < 6 && reg != 1,
        0x8d => mode != 3,
        0x8f => reg == 0,
        0xc6 | 0xc7 => reg == 0 || byte == 0xf8,
        0xfe => reg < 2,
        0xff => reg < 7 && !(mode == 3 && matches!(reg, 3 | 5)),
        0xd8..=0xdf => floating_point(opcode, byte),
        _ => true,
    };
    let lockable = mode != 3
        && match opcode {
            0x00..=0x31 => opcode & 7 < 2,
            0x80 | 0x81 | 0x83 => reg < 7,
            0x86 | 0x87 => true,
            0xf6 | 0xf7 => matches!(reg, 2 | 3),
            0xfe | 0xff => reg < 2,
            _ => false,
        };
    if !defined || (p.lock && !lockable) {
        return None;
    }
    i.flow = match opcode {
        0x70..=0x7f => Flow::Condition(opcode & 15),
        0xe0..=0xe3 => Flow::Loop,
        0xe8 => Flow::Call,
        0xe9 | 0xeb => Flow::Jump,
        0xc2 | 0xc3 | 0xca | 0xcb | 0xcf => Flow::Return,
        0xf4 => Flow::Stop,
        0xc7 if byte == 0xf8 => {
            // Its displacement has 32 bits but in code that is not from a compiler.
            if p.immediate() != 4 {
                return None;
            }
            Flow::Begin
        }
        0xff => match reg {
            2 => Flow::IndirectCall,
            3 => Flow::FarCall,
            4 | 5 => Flow::IndirectJump,
            _ => Flow::Next,
        },
        _ => Flow::Next,
    };
    i.nop = match opcode {
        0x90 => p.rex & 1 == 0 && p.repeat != 0xf3,
        0x8d => lea_to_itself(r.bytes.get(usize::from(i.modrm)..)?, p),
        _ => false,
    };
    Some(())
}

/// Whether ModRM, SIB and displacement of a `lea` give the register itself, all of it.
fn lea_to_itself(bytes: &[u8], p: &Prefixes) -> bool {
    let [modrm, rest @ ..] = bytes else { return false };
    let (mode, reg, rm) = (modrm >> 6, modrm >> 3 & 7, modrm & 7);
    let (mut base, mut rest) = (rm, rest);
    if rm == 4 {
        let [sib, behind @ ..] = rest else { return false };
        if sib >> 3 & 7 != 4 || p.rex & 2 != 0 {
            return false;
        }
        (base, rest) = (sib & 7, behind);
    }
    let zero = match mode {
        0 => base != 5,
        1 => rest.first() == Some(&0),
        _ => rest.get(..4) == Some(&[0; 4]),
    };
    zero && p.rex & 8 != 0 && !p.address && base == reg && (p.rex & 1 != 0) == (p.rex & 4 != 0)
}

/// Whether an opcode of the coprocessor is defined (tables ).
fn floating_point(opcode: u8, modrm: u8) -> bool {
    let reg = modrm >> 3 & 7;
    if modrm < 0xc0 {
        return !matches!((opcode, reg), (0xd9, 1) | (0xdb, 4 | 6) | (0xdd, 5));
    }
    match opcode {
        0xd9 => !matches!(modrm, 0xd1..=0xd7 | 0xe2 | 0xe3 | 0xe6 | 0xe7 | 0xef),
        0xda => reg < 4 || modrm == 0xe9,
        0xdb => reg != 7 && !matches!(modrm, 0xe5..=0xe7),
        0xdd => reg < 6,
        0xde => reg != 3 || modrm == 0xd9,
        0xdf => reg != 7 && (reg != 4 || modrm == 0xe0),
        _ => true,
    }
}

fn two_bytes(r: &mut Reader<'_>, i: &mut Instruction, p: &Prefixes) -> Option<()> {
    i.opcode = r.at as u8;
    let opcode = r.take()?;
    if matches!(opcode, 0x38 | 0x3a) {
        i.opcode = r.at as u8;
        let third = r.take()?;
        let map = if opcode == 0x38 { 4 } else { 8 };
        let mut selected = p.selects();
        // MOVBE and CRC32 take 66 as the size of their operands beside F2; the others here have one selecting prefix.
        if selected == 0 && p.operand {
            selected = 1;
        }
        if p.lock || !has(&LEGACY, map + selected, third) {
            return None;
        }
        modrm(r, i, p)?;
        return if opcode == 0x3a { r.skip(1) } else { Some(()) };
    }
    if !has(&LEGACY, p.selects(), opcode) {
        return None;
    }
    let without = matches!(
        opcode,
        0x05..=0x09 | 0x0b | 0x0e | 0x30..=0x37 | 0x77 | 0x80..=0x8f | 0xa0..=0xa2 | 0xa8..=0xaa | 0xc8..=0xcf
    );
    let byte = match opcode {
        _ if without => 0,
        // Moves to and from control and debug registers have no memory operand, whatever the mode says.
        0x20..=0x23 => r.take()?,
        _ => modrm(r, i, p)?,
    };
    let (mode, reg) = (byte >> 6, byte >> 3 & 7);
    match opcode {
        0x80..=0x8f => r.skip(4)?,
        0x70..=0x73 | 0xa4 | 0xac | 0xba | 0xc2 | 0xc4..=0xc6 => r.skip(1)?,
        0x0f => {
            let suffix = r.take()?;
            if !has(core::slice::from_ref(&SUFFIXES), 0, suffix) {
                return None;
            }
        }
        // EXTRQ and INSERTQ.
        0x78 if p.selects() != 0 => r.skip(2)?,
        _ => {}
    }
    let defined = match opcode {
        0x00 => reg < 6 || (reg == 6 && p.selects() == 3),
        0xba => reg >= 4,
        0x71 | 0x72 => mode == 3 && matches!(reg, 2 | 4 | 6),
        0x73 => mode == 3 && (matches!(reg, 2 | 6) || (matches!(reg, 3 | 7) && p.selects() == 1)),
        0xa6 | 0xa7 => mode == 3,
        0x13 | 0x17 | 0x2b | 0xc3 | 0xe7 | 0xb2 | 0xb4 | 0xb5 => mode != 3,
        0x50 | 0xc5 | 0xd7 | 0xf7 => mode == 3,
        0x20 | 0x22 => {
            if p.rex & 4 != 0 {
                reg == 0
            } else {
                matches!(reg, 0 | 2..=4)
            }
        }
        0x21 | 0x23 => p.rex & 4 == 0,
        _ => true,
    };
    let lockable = match opcode {
        0xab | 0xb3 | 0xbb | 0xb0 | 0xb1 | 0xc0 | 0xc1 => mode != 3,
        0xba => mode != 3 && reg > 4,
        0xc7 => mode != 3 && reg == 1,
        0x20 | 0x22 => true,
        _ => false,
    };
    if !defined || (p.lock && !lockable) {
        return None;
    }
    i.flow = match opcode {
        0x80..=0x8f => Flow::Condition(opcode & 15),
        0x0b | 0xb9 | 0xff => Flow::Stop,
        0x05 | 0x34 => Flow::System,
        0x07 | 0x35 | 0xaa => Flow::Return,
        0x01 if matches!(byte, 0xc1..=0xc3 | 0xd8 | 0xd9) => Flow::System,
        0x01 if matches!(byte, 0xcc | 0xcd | 0xcf) && p.selects() == 1 => Flow::System,
        0x01 if matches!((byte, p.selects()), (0xca, 2 | 3) | (0xec, 2) | (0xde, _)) => Flow::Return,
        _ => Flow::Next,
    };
    i.nop = opcode == 0x1f && reg == 0;
    Some(())
}

/// What begins with a VEX, EVEX or XOP prefix.
fn vector(r: &mut Reader<'_>, i: &mut Instruction, p: &Prefixes, escape: u8) -> Option<()> {
    if p.any_but_segments() {
        return None;
    }
    let first = r.take()?;
    let (map, select) = match escape {
        0xc5 => (1, first & 3),
        0x62 => {
            let second = r.take()?;
            r.take()?;
            if first & 8 != 0 || second & 4 == 0 {
                return None;
            }
            (first & 7, second & 3)
        }
        _ => (first & 0x1f, r.take()? & 3),
    };
    i.opcode = r.at as u8;
    let opcode = r.take()?;
    let select = usize::from(select);
    let (defined, immediate) = match (escape, map) {
        (0x62, 1..=3) => (has(&EVEX, usize::from(map - 1) * 4 + select, opcode), map == 3),
        (0x62, 5 | 6) => (has(&EVEX, usize::from(map - 2) * 4 + select, opcode), false),
        (0xc4 | 0xc5, 1..=3) => (has(&VEX, usize::from(map - 1) * 4 + select, opcode), map == 3),
        (0x8f, 8..=10) if select == 0 => (has(&XOP, usize::from(map - 8), opcode), map == 8),
        _ => (false, false),
    };
    if !defined {
        return None;
    }
    if !(map == 1 && opcode == 0x77) {
        // The B bit is inverted in the first byte; two-byte VEX has none.
        let rex = u8::from(escape != 0xc5 && first & 0x20 == 0);
        modrm(r, i, &Prefixes { rex, ..*p })?;
    }
    match (map, opcode) {
        _ if immediate => r.skip(1),
        (1, 0x70..=0x73 | 0xc2 | 0xc4..=0xc6) => r.skip(1),
        (10, _) => r.skip(4),
        _ => Some(()),
    }
}
