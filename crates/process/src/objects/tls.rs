//! How far a module's thread-local variables lie from the thread pointer (initial-exec model; "ELF Handling For
//! Thread-Local Storage", variant II).
//!
//! Only modules in the static block have such a distance, the same in every thread. It is, in this order of trust:
//! - the main executable's by the ABI: its block ends at the thread pointer;
//! - what glibc's loader keeps in the module's `struct link_map`, at the offset that the C library states for thread
//!   debuggers (`_thread_db_link_map_l_tls_offset`);
//! - what a bound R_X86_64_TPOFF64 slot for a symbol of the module holds;
//! - for musl, which lays out the modules it loads at start one below the other, the sum.

use crate::objects::elf_file::Segment;
use crate::objects::scope::Value;
use crate::objects::symbols::SymbolError;
use crate::objects::{Object, ObjectId, Objects, Role};
use crate::{LinkAddr, Result};
use object::elf;

/// The name under which glibc tells thread debuggers where `l_tls_offset` lies: size in bits, count, offset.
const L_TLS_OFFSET: &str = "_thread_db_link_map_l_tls_offset";
/// Longest `struct link_map` believed, in bytes.
const MAX_LINK_MAP: u32 = 1 << 13;
/// Longest static block believed, in bytes.
const MAX_STATIC_TLS: u64 = 1 << 30;

impl Objects<'_> {
    /// The distance in bytes from the thread pointer (fs base) to the byte at `offset` of the thread-local block of
    /// `object`; negative. It holds for all threads.
    ///
    /// # Errors
    /// [`SymbolError::Tls`] where the module has no block, or none in the static part as far as can be known.
    pub fn tp_offset(&self, object: ObjectId, offset: u64) -> Result<i64> {
        let object = self.get(object);
        let refuse = |reason| {
            let (object, name) = (object.name().to_owned(), format!("offset {offset:#x}"));
            SymbolError::Tls { object, name, reason }
        };
        let segment =
            object.tls_segment().ok_or_else(|| refuse("the object has no thread-local variables"))?;
        let block = match self.static_tls(object, segment)? {
            Some(block) => block,
            None => {
                return Err(refuse(
                    "its block is not in the static part, or the loader does not tell; \
                     reach the variable through a function of the object that returns its address",
                )
                .into());
            }
        };
        Ok((offset as i64).wrapping_sub(block as i64))
    }

    /// How far below the thread pointer the block of `object` begins.
    fn static_tls(&self, object: &Object<'_>, segment: &Segment) -> Result<Option<u64>> {
        let by_abi = block_above(0, segment);
        if object.role() == Role::Main {
            return Ok(by_abi);
        }
        if let Some(known) = self.l_tls_offset(object)? {
            return Ok(known.filter(|block| *block >= segment.memsz && *block <= MAX_STATIC_TLS));
        }
        if let Some(block) = self.bound_tpoff(object)? {
            return Ok(Some(block));
        }
        if self.is_musl() {
            let mut top = 0;
            for o in self.startup_objects()? {
                let Some(s) = self.get(o).tls_segment() else { continue };
                let Some(block) = block_above(top, s) else { return Ok(None) };
                if o == object.id() {
                    return Ok(Some(block));
                }
                top = block;
            }
        }
        Ok(None)
    }

    /// What glibc's loader keeps; the outer `None` where it does not tell.
    fn l_tls_offset(&self, object: &Object<'_>) -> Result<Option<Option<u64>>> {
        let Some(map) = object.link_map() else { return Ok(None) };
        let Some(at) = self.iter().filter(|o| o.namespace() == object.namespace()).find_map(|o| {
            let s = o.definition(L_TLS_OFFSET, None).ok()??;
            Some(o.to_remote(LinkAddr(s.value)))
        }) else {
            return Ok(None);
        };
        let (bits, count, offset) =
            (self.pages.u32(at)?, self.pages.u32(at.offset(4))?, self.pages.u32(at.offset(8))?);
        if bits != 64 || count != 1 || offset % 8 != 0 || offset >= MAX_LINK_MAP {
            return Ok(None);
        }
        // 0: not decided; -1: dynamic for good. Neither is a distance.
        let value = self.pages.u64(map.offset(i64::from(offset)))?;
        Ok(Some((value != 0 && value != u64::MAX).then_some(value)))
    }

    fn bound_tpoff(&self, object: &Object<'_>) -> Result<Option<u64>> {
        for user in self.iter().filter(|o| o.namespace() == object.namespace()) {
            let dynamic = user.dynamic()?;
            let slots: Vec<_> =
                user.relocations()?.iter().filter(|r| r.kind == elf::R_X86_64_TPOFF64).collect();
            if slots.is_empty() {
                continue;
            }
            let scope = self.scope(&[user.id()])?;
            for r in slots {
                let at = match r.symbol {
                    0 if user.id() == object.id() => 0,
                    0 => continue,
                    index => {
                        let Some(s) = dynamic.symbol(&user.pages, index)? else { continue };
                        if s.bind == elf::STB_LOCAL && s.section != elf::SHN_UNDEF {
                            if user.id() != object.id() {
                                continue;
                            }
                            s.value
                        } else {
                            let Some(name) = dynamic.name_of(&user.pages, &s)? else { continue };
                            let version = dynamic.needed_version_of(&user.pages, index)?;
                            match scope.resolve(&name, version.as_deref()) {
                                Ok(found) if found.object == object.id() => match found.value {
                                    Value::Tls { offset } => offset,
                                    _ => continue,
                                },
                                _ => continue,
                            }
                        }
                    }
                };
                let slot = self.pages.memory().read_u64(user.to_remote(LinkAddr(r.offset)))?;
                let block = at.wrapping_add(r.addend as u64).wrapping_sub(slot);
                if block > 0 && block <= MAX_STATIC_TLS {
                    return Ok(Some(block));
                }
            }
        }
        Ok(None)
    }

    /// Whether the loader is musl's: it is the C library, and tells thread debuggers nothing.
    fn is_musl(&self) -> bool {
        let defines = |o: &Object<'_>, name| o.definition(name, None).is_ok_and(|s| s.is_some());
        let loader = self.iter().find(|o| o.role() == Role::Loader);
        loader.is_some_and(|o| defines(o, "__libc_start_main"))
    }
}

impl Object<'_> {
    fn tls_segment(&self) -> Option<&Segment> {
        self.segments().iter().find(|s| s.kind == elf::PT_TLS && s.memsz > 0)
    }
}

/// Where the block of `segment` begins, counted downwards from the thread pointer, if `top` bytes below it are taken:
/// the next place that is aligned as the segment wants it.
fn block_above(top: u64, segment: &Segment) -> Option<u64> {
    let align = segment.align.max(1);
    if !align.is_power_of_two() {
        return None;
    }
    let low = top.checked_add(segment.memsz)?;
    let block = low.checked_add(low.wrapping_add(segment.vaddr.0).wrapping_neg() & (align - 1))?;
    (block <= MAX_STATIC_TLS).then_some(block)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::FileOffset;

    #[test]
    fn blocks_end_where_the_abi_says() {
        let segment = |vaddr, memsz, align| Segment {
            kind: elf::PT_TLS,
            flags: 0,
            offset: FileOffset(0),
            vaddr: LinkAddr(vaddr),
            filesz: 0,
            memsz,
            align,
        };
        assert_eq!(block_above(0, &segment(0x1000, 4, 4)), Some(4));
        assert_eq!(block_above(0, &segment(0x1000, 20, 16)), Some(32));
        assert_eq!(block_above(0, &segment(0x1008, 4, 16)), Some(8));
        assert_eq!(block_above(32, &segment(0x1000, 4, 64)), Some(64));
        assert_eq!(block_above(0, &segment(0x1000, 4, 3)), None);
        assert_eq!(block_above(0, &segment(0x1000, u64::MAX, 16)), None);
    }
}
