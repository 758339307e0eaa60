//! Relocations: which the psABI for x86-64 defines, which of them a patch may have, and what each computes.
//!
//! With S the symbol's address, A the addend, P the place, G the address of the symbol's GOT entry, GOT the GOT's address,
//! L the address of its PLT entry, Z its size, T its offset from the thread pointer (System V ABI, AMD64 supplement, 4.4).

use crate::error::{Error, Result};
use crate::raw::RawRela;
use object::elf;

/// A supported computation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// S + A, 8 bytes.
    Abs64,
    /// S + A, 4 bytes zero-extended.
    Abs32,
    /// S + A, 4 bytes sign-extended.
    Abs32S,
    /// S + A - P, 4 bytes.
    Pc32,
    /// S + A - P, 8 bytes.
    Pc64,
    /// S + A - P or, out of reach, L + A - P; 4 bytes. R_X86_64_PLT32, and PC32 where it is the operand of a call or jump.
    Branch,
    /// S + A - P, 4 bytes, the operand of a `lea` that may become a load from the GOT: G + A - P.
    Lea,
    /// G + A - P, 4 bytes.
    GotPcRel,
    /// G + A - P, 8 bytes.
    GotPcRel64,
    /// G - GOT + A, 8 bytes.
    Got64,
    /// S + A - GOT, 8 bytes.
    GotOff64,
    /// GOT + A - P, 4 bytes.
    GotPc32,
    /// GOT + A - P, 8 bytes.
    GotPc64,
    /// S + A - GOT, 8 bytes: with 64 bits every function is in reach, so none needs its PLT entry.
    PltOff64,
    /// T + A, 4 bytes sign-extended.
    TpOff32,
    /// T + A, 8 bytes.
    TpOff64,
    /// G + A - P, 4 bytes, of a GOT entry that holds T.
    GotTpOff,
    /// Z + A, 4 bytes zero-extended.
    Size32,
    /// Z + A, 8 bytes.
    Size64,
}

impl Kind {
    /// Bytes that it writes.
    pub fn width(self) -> u64 {
        use Kind::*;
        match self {
            Abs64 | Pc64 | GotPcRel64 | Got64 | GotOff64 | GotPc64 | PltOff64 | TpOff64 | Size64 => 8,
            Abs32 | Abs32S | Pc32 | Branch | Lea | GotPcRel | GotPc32 | TpOff32 | GotTpOff | Size32 => 4,
        }
    }

    /// Whether the symbol needs a GOT entry, or may turn out to.
    pub fn wants_got(self) -> bool {
        matches!(self, Self::GotPcRel | Self::GotPcRel64 | Self::Got64 | Self::GotTpOff)
    }

    /// Whether the symbol is thread-local.
    pub fn is_tls(self) -> bool {
        matches!(self, Self::TpOff32 | Self::TpOff64 | Self::GotTpOff)
    }

    /// The ABI's name.
    pub fn name(self) -> &'static str {
        use Kind::*;
        match self {
            Abs64 => "R_X86_64_64",
            Abs32 => "R_X86_64_32",
            Abs32S => "R_X86_64_32S",
            Pc32 | Lea => "R_X86_64_PC32",
            Pc64 => "R_X86_64_PC64",
            Branch => "R_X86_64_PLT32",
            GotPcRel => "R_X86_64_GOTPCREL",
            GotPcRel64 => "R_X86_64_GOTPCREL64",
            Got64 => "R_X86_64_GOT64",
            GotOff64 => "R_X86_64_GOTOFF64",
            GotPc32 => "R_X86_64_GOTPC32",
            GotPc64 => "R_X86_64_GOTPC64",
            PltOff64 => "R_X86_64_PLTOFF64",
            TpOff32 => "R_X86_64_TPOFF32",
            TpOff64 => "R_X86_64_TPOFF64",
            GotTpOff => "R_X86_64_GOTTPOFF",
            Size32 => "R_X86_64_SIZE32",
            Size64 => "R_X86_64_SIZE64",
        }
    }
}

/// A relocation of a section of the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reloc {
    /// From the section's beginning.
    pub offset: u64,
    pub kind: Kind,
    /// Index into the patch's symbols.
    pub symbol: u32,
    pub addend: i64,
}

/// Reads one relocation of `section`, whose unlinked bytes are `bytes`. None for R_X86_64_NONE. `far_code` says that the
/// place is in code and the symbol not the patch's own: then the instruction tells what may be done about a far one.
pub fn read(
    rela: RawRela,
    section: &str,
    bytes: &[u8],
    symbol: &str,
    far_code: bool,
) -> Result<Option<Reloc>> {
    let unsupported = |kind: String, way| {
        Err(Error::RelocationKind {
            section: section.to_string(),
            offset: rela.offset,
            kind,
            symbol: symbol.to_string(),
            way,
        })
    };
    let dynamic_tls =
        |kind| Err(Error::DynamicTls { section: section.to_string(), symbol: symbol.to_string(), kind });
    let kind = match rela.kind {
        elf::R_X86_64_NONE => return Ok(None),
        elf::R_X86_64_64 => Kind::Abs64,
        elf::R_X86_64_32 => Kind::Abs32,
        elf::R_X86_64_32S => Kind::Abs32S,
        elf::R_X86_64_PC32 if far_code => operand(bytes, rela.offset, rela.addend),
        elf::R_X86_64_PC32 => Kind::Pc32,
        elf::R_X86_64_PLT32 => Kind::Branch,
        elf::R_X86_64_PC64 => Kind::Pc64,
        elf::R_X86_64_GOTPCREL | elf::R_X86_64_GOTPCRELX | elf::R_X86_64_REX_GOTPCRELX => Kind::GotPcRel,
        elf::R_X86_64_GOTPCREL64 => Kind::GotPcRel64,
        elf::R_X86_64_GOT64 | elf::R_X86_64_GOTPLT64 => Kind::Got64,
        elf::R_X86_64_GOTOFF64 => Kind::GotOff64,
        elf::R_X86_64_GOTPC32 => Kind::GotPc32,
        elf::R_X86_64_GOTPC64 => Kind::GotPc64,
        elf::R_X86_64_PLTOFF64 => Kind::PltOff64,
        elf::R_X86_64_TPOFF32 => Kind::TpOff32,
        elf::R_X86_64_TPOFF64 => Kind::TpOff64,
        elf::R_X86_64_GOTTPOFF => Kind::GotTpOff,
        elf::R_X86_64_SIZE32 => Kind::Size32,
        elf::R_X86_64_SIZE64 => Kind::Size64,
        elf::R_X86_64_TLSGD => return dynamic_tls("R_X86_64_TLSGD"),
        elf::R_X86_64_TLSLD => return dynamic_tls("R_X86_64_TLSLD"),
        elf::R_X86_64_DTPOFF32 => return dynamic_tls("R_X86_64_DTPOFF32"),
        elf::R_X86_64_DTPOFF64 => return dynamic_tls("R_X86_64_DTPOFF64"),
        elf::R_X86_64_GOTPC32_TLSDESC => return dynamic_tls("R_X86_64_GOTPC32_TLSDESC"),
        elf::R_X86_64_TLSDESC_CALL => return dynamic_tls("R_X86_64_TLSDESC_CALL"),
        elf::R_X86_64_8 => return unsupported("R_X86_64_8".into(), "an address does not fit 8 bits"),
        elf::R_X86_64_PC8 => {
            return unsupported(
                "R_X86_64_PC8".into(),
                "use a 32-bit operand (a short jump to another section?)",
            );
        }
        elf::R_X86_64_16 => return unsupported("R_X86_64_16".into(), "an address does not fit 16 bits"),
        elf::R_X86_64_PC16 => return unsupported("R_X86_64_PC16".into(), "use a 32-bit operand"),
        elf::R_X86_64_GOT32 => return unsupported("R_X86_64_GOT32".into(), "use @GOTPCREL"),
        elf::R_X86_64_COPY
        | elf::R_X86_64_GLOB_DAT
        | elf::R_X86_64_JUMP_SLOT
        | elf::R_X86_64_RELATIVE
        | elf::R_X86_64_DTPMOD64
        | elf::R_X86_64_TLSDESC
        | elf::R_X86_64_IRELATIVE
        | elf::R_X86_64_RELATIVE64 => {
            return unsupported(
                format!("type {} of linked files", rela.kind),
                "give the object that `cc -c` makes",
            );
        }
        other => {
            return unsupported(
                format!("type {other}"),
                "compile without options for newer instruction sets, or for the small or large code model",
            );
        }
    };
    let fits = rela.offset.checked_add(kind.width()).is_some_and(|end| end <= bytes.len() as u64);
    if !fits {
        return Err(Error::damaged(
            format!("section {section}"),
            format!("has a relocation at {:#x}, beyond its {} bytes", rela.offset, bytes.len()),
        ));
    }
    Ok(Some(Reloc { offset: rela.offset, kind, symbol: rela.symbol, addend: rela.addend }))
}

/// What the four bytes at `offset` are the operand of.
///
/// A byte e8 or e9 before them is a call or jump, since as the ModRM byte of a RIP-relative operand it would need mod 00
/// and r/m 101; likewise 0f 80 to 0f 8f. `lea reg, [rip+disp]` with 64-bit registers is 48 or 4c, 8d, ModRM. The one other
/// instruction that can end so before its displacement is EVEX `vpermb` (62, three payload bytes of which the last
/// may be 48, 8d, ModRM): a 62 there means we leave it alone.
fn operand(bytes: &[u8], offset: u64, addend: i64) -> Kind {
    let Ok(at) = usize::try_from(offset) else { return Kind::Pc32 };
    let back = |n: usize| at.checked_sub(n).and_then(|i| bytes.get(i)).copied();
    match (back(2), back(1)) {
        (_, Some(0xe8 | 0xe9)) | (Some(0x0f), Some(0x80..=0x8f)) => Kind::Branch,
        (Some(0x8d), Some(modrm))
            if addend == -4
                && modrm & 0xc7 == 0x05
                && matches!(back(3), Some(0x48 | 0x4c))
                && back(6) != Some(0x62) =>
        {
            Kind::Lea
        }
        _ => Kind::Pc32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_operand_belongs_to() {
        let cases: &[(&str, &[u8], Kind)] = &[
            ("call", &[0xe8], Kind::Branch),
            ("jmp", &[0xe9], Kind::Branch),
            ("jne", &[0x0f, 0x85], Kind::Branch),
            ("lea rax", &[0x90, 0x48, 0x8d, 0x05], Kind::Lea),
            ("lea r15", &[0x90, 0x4c, 0x8d, 0x3d], Kind::Lea),
            ("lea eax, whose upper half is zero", &[0x90, 0x90, 0x8d, 0x05], Kind::Pc32),
            ("mov rax", &[0x90, 0x48, 0x8b, 0x05], Kind::Pc32),
            ("lea rax, [rax+disp32]", &[0x90, 0x48, 0x8d, 0x80], Kind::Pc32),
            ("vpermb zmm0, zmm0, [rip+disp32]", &[0x62, 0xf2, 0x7d, 0x48, 0x8d, 0x05], Kind::Pc32),
            ("nothing before", &[], Kind::Pc32),
        ];
        for (name, before, kind) in cases {
            let bytes = [before, &[0; 4][..]].concat();
            assert_eq!(operand(&bytes, before.len() as u64, -4), *kind, "{name}");
        }
        assert_eq!(operand(&[0x90, 0x48, 0x8d, 0x05, 0, 0, 0, 0], 4, 0), Kind::Pc32, "lea of another place");
    }
}
