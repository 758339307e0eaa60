//! Which implementation a program chose for a function with a resolver (STT_GNU_IFUNC), told without running code.
//!
//! The loader calls the resolver once for each slot that refers to the symbol and writes the answer there. So any
//! bound slot tells: an R_X86_64_IRELATIVE one with the resolver as its addend, or a JUMP_SLOT, GLOB_DAT or 64 one
//! whose symbol is the function's. A lazy slot that was not called through yet still leads to its own PLT entry, and
//! tells nothing.

use crate::objects::dynamic::Rela;
use crate::objects::elf_file::Segment;
use crate::objects::{Object, Objects, Role};
use crate::{LinkAddr, RemoteAddr, Result};
use object::elf;

/// A name of the function with its version, as references spell it.
type Alias = (String, Option<String>);

impl Objects<'_> {
    /// The implementation that `resolver` of `object` returned, as some bound slot of the target shows it.
    ///
    /// # Errors
    /// Where the target's memory cannot be read.
    pub fn ifunc_choice(&self, object: &Object<'_>, resolver: RemoteAddr) -> Result<Option<RemoteAddr>> {
        let aliases = object.names_at(resolver)?;
        // Objects call their own functions, so the answer is mostly at home.
        let others = self.iter().filter(|o| o.id() != object.id() && o.namespace() == object.namespace());
        for user in std::iter::once(object).chain(others) {
            for r in user.relocations()? {
                if !user.refers_to(r, object, resolver, &aliases)? {
                    continue;
                }
                let slot = user.to_remote(LinkAddr(r.offset));
                let Ok(value) = self.pages.memory().read_u64(slot).map(RemoteAddr) else { continue };
                // Anywhere else it is a namesake that the slot was bound to.
                let own = self.at(value).is_some_and(|o| o.id() == object.id() || o.role() == Role::Vdso);
                if value != resolver && own && self.is_text(value) && !is_lazy_plt(user, value) {
                    return Ok(Some(value));
                }
            }
        }
        Ok(None)
    }

    fn is_text(&self, addr: RemoteAddr) -> bool {
        self.at(addr).is_some_and(|o| o.is_text(addr))
    }
}

impl Object<'_> {
    /// The exported names of the function at `resolver`.
    fn names_at(&self, resolver: RemoteAddr) -> Result<Vec<Alias>> {
        let dynamic = self.dynamic()?;
        let table = dynamic.symbol_table(&self.pages)?;
        let value = self.to_link(resolver).0;
        let here = table.iter().enumerate().filter(|(_, s)| s.value == value && s.section != elf::SHN_UNDEF);
        here.map(|(i, s)| {
            let version = dynamic.version_of(&self.pages, i as u32)?;
            Ok((String::from_utf8_lossy(s.name).into_owned(), version.map(|v| v.name)))
        })
        .collect()
    }

    /// All relocations; those of a static program, which has no dynamic section, from its file.
    pub(crate) fn relocations(&self) -> Result<&[Rela]> {
        if let Some(known) = self.relocations.get() {
            return Ok(known);
        }
        let mut out = self.dynamic()?.relocations(&self.pages)?;
        if out.is_empty()
            && self.is_static()
            && let Ok(file) = self.file()
        {
            let alloc = u64::from(elf::SHF_ALLOC);
            let tables = file.sections().unwrap_or(&[]).iter();
            for s in tables.filter(|s| s.kind == elf::SHT_RELA && s.flags & alloc != 0) {
                out.extend(Rela::parse_all(&file.read(s.offset, s.size).unwrap_or_default()));
            }
        }
        Ok(self.relocations.get_or_init(|| out))
    }

    fn refers_to(
        &self,
        r: &Rela,
        object: &Object<'_>,
        resolver: RemoteAddr,
        aliases: &[Alias],
    ) -> Result<bool> {
        match r.kind {
            elf::R_X86_64_IRELATIVE => {
                let addend = self.to_remote(LinkAddr(r.addend as u64));
                Ok(self.id() == object.id() && addend == resolver)
            }
            elf::R_X86_64_JUMP_SLOT | elf::R_X86_64_GLOB_DAT | elf::R_X86_64_64 if r.addend == 0 => {
                let (dynamic, pages) = (self.dynamic()?, &self.pages);
                let Some(s) = dynamic.symbol(pages, r.symbol)? else { return Ok(false) };
                if self.id() == object.id() && s.section != elf::SHN_UNDEF {
                    return Ok(s.kind == elf::STT_GNU_IFUNC && self.to_remote(LinkAddr(s.value)) == resolver);
                }
                for (name, version) in aliases {
                    if dynamic.is_named(pages, &s, name)? {
                        let wanted = dynamic.needed_version_of(pages, r.symbol)?;
                        if wanted.is_none() || wanted == *version {
                            return Ok(true);
                        }
                    }
                }
                Ok(false)
            }
            _ => Ok(false),
        }
    }
}

/// Whether `value` leads into a PLT entry of `user` that has yet to call the loader: `push $n; jmp`, behind an
/// `endbr64` perhaps.
fn is_lazy_plt(user: &Object<'_>, value: RemoteAddr) -> bool {
    const ENDBR64: [u8; 4] = [0xf3, 0x0f, 0x1e, 0xfa];
    const PUSH_IMM32: u8 = 0x68;
    if !user.segments().iter().any(|s: &Segment| s.is_text() && s.covers(user.to_link(value))) {
        return false;
    }
    let mut code = [0; 5];
    match user.pages.memory().read(value, &mut code) {
        Ok(()) => code[0] == PUSH_IMM32 || (code[..4] == ENDBR64 && code[4] == PUSH_IMM32),
        Err(_) => true,
    }
}
