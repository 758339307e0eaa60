//! The code of a function that does not lie in its body: cold parts and copies.
//!
//! A compiler moves unlikely code of `foo` to `foo.cold`, elsewhere in the text; it belongs to the function, and a
//! thread in it runs the function. `foo.part.0`, `foo.constprop.0`, `foo.isra.0` are functions of their own with code
//! of `foo`: callers call them directly, and a patch of `foo` does not change them.
//!
//! Cold parts are known by their symbols, and where those were stripped by the code: a jump out of the body into code
//! whose frame description begins in mid-function. A function that jumps through a table in a file without local
//! symbols may reach cold code that no direct jump shows; there, all cold code of the object that no symbol claims is
//! counted as the function's. That can only make a thread look busy that is not.

use crate::objects::Object;
use crate::objects::symbol_set::{ObjectSymbols, is_code, text};
use crate::{RemoteAddr, Result};
use iced_x86::{Decoder, DecoderOptions, FlowControl, OpKind};
use std::ops::Range;

/// Most separate parts of one function.
pub const MAX_PARTS: usize = 64;
/// Longest part that is decoded, in bytes.
const MAX_DECODED: u64 = 1 << 22;
/// Alignment of functions that are not cold, in bytes, as compilers lay them out.
const FUNCTION_ALIGN: u64 = 16;

/// A stretch of code with a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// The symbol's name, or what the part is where it has none.
    pub name: String,
    /// Its code.
    pub range: Range<RemoteAddr>,
}

/// What a compiler's suffix says of a function's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CloneKind {
    /// Code of the function itself, elsewhere.
    Cold,
    /// A function of its own.
    Copy,
}

/// Splits `foo.constprop.0` into `foo` and what the suffix means.
pub(crate) fn split_clone(name: &str) -> Option<(&str, CloneKind)> {
    const SUFFIXES: [(&str, CloneKind); 4] = [
        (".cold", CloneKind::Cold),
        (".part", CloneKind::Copy),
        (".constprop", CloneKind::Copy),
        (".isra", CloneKind::Copy),
    ];
    let suffix_at = |(suffix, kind): (&str, CloneKind)| {
        let ends = |at: &usize| matches!(name.as_bytes().get(at + suffix.len()), None | Some(b'.'));
        let at = name.match_indices(suffix).map(|(at, _)| at).find(|at| *at > 0 && ends(at))?;
        Some((at, kind))
    };
    // `foo.part.0.cold` is a cold part, but of `foo.part.0`: seen from `foo` it belongs to a copy.
    let (at, kind) = SUFFIXES.into_iter().filter_map(suffix_at).min_by_key(|(at, _)| *at)?;
    Some((&name[..at], kind))
}

impl Object<'_> {
    /// The cold parts and the copies of the function called by any of `names`, whose symbol is in the source file
    /// noted at index `file` of the full table, and whose body is `body`.
    pub(crate) fn parts(
        &self,
        symbols: &ObjectSymbols,
        names: &[String],
        file: Option<usize>,
        body: Range<RemoteAddr>,
    ) -> Result<(Vec<Part>, Vec<Part>)> {
        let (mut cold, clones) = self.named_parts(symbols, names, file);
        let (reached, through_table) = self.reached_parts(symbols, body, &cold)?;
        cold.extend(reached);
        if through_table && !symbols.has_local_code() {
            let name = "cold code of this object that no symbol claims";
            for range in self.mid_function_code()? {
                let known = cold.iter().any(|p| p.range.start <= range.start && range.end <= p.range.end);
                if !known {
                    cold.push(Part { name: name.to_owned(), range: range.clone() });
                }
            }
        }
        Ok((cold, clones))
    }

    fn named_parts(
        &self,
        symbols: &ObjectSymbols,
        names: &[String],
        file: Option<usize>,
    ) -> (Vec<Part>, Vec<Part>) {
        let mut claimed: Option<Vec<usize>> = None;
        let (mut cold, mut clones) = (Vec::new(), Vec::new());
        let all = names.iter().flat_map(|base| symbols.compiler_parts(base).map(move |part| (base, part)));
        for (base, (e, kind)) in all {
            // Parts are local symbols of the file that their function is in. A global function has those that no
            // local namesake claims.
            let part_file = symbols.file_of(&e).map(|(i, _)| i);
            let ours = match file {
                Some(_) => part_file == file,
                None => {
                    let claimed = claimed.get_or_insert_with(|| {
                        let groups = symbols.named(base, is_code);
                        let entries = groups.iter().flat_map(|g| &g.entries);
                        entries.filter_map(|e| symbols.file_of(e)).map(|(i, _)| i).collect()
                    });
                    part_file.is_none_or(|i| !claimed.contains(&i))
                }
            };
            if ours {
                let start = self.to_remote(crate::LinkAddr(e.raw.value));
                let range = start..RemoteAddr(start.0.saturating_add(e.raw.size));
                let part = Part { name: text(e.name), range };
                match kind {
                    CloneKind::Cold => cold.push(part),
                    CloneKind::Copy => clones.push(part),
                }
            }
        }
        (cold, clones)
    }

    /// The parts that direct jumps lead to from `body` and from the parts `known`, and whether there is a jump whose
    /// target is computed.
    fn reached_parts(
        &self,
        symbols: &ObjectSymbols,
        body: Range<RemoteAddr>,
        known: &[Part],
    ) -> Result<(Vec<Part>, bool)> {
        let mut ranges = vec![body];
        ranges.extend(known.iter().map(|p| p.range.clone()));
        let mut out = Vec::new();
        let mut through_table = false;
        let mut next = 0;
        while let Some(range) = ranges.get(next).cloned() {
            next += 1;
            let len = range.end.0.saturating_sub(range.start.0).min(MAX_DECODED);
            let code = match self.file_bytes(range.start..RemoteAddr(range.start.0.saturating_add(len))) {
                Ok(code) => code,
                Err(_) => self.pages.memory().read_vec(range.start, len as usize)?,
            };
            for i in Decoder::with_ip(64, &code, range.start.0, DecoderOptions::NONE) {
                let conditional = match i.flow_control() {
                    FlowControl::ConditionalBranch => true,
                    FlowControl::UnconditionalBranch => false,
                    FlowControl::IndirectBranch => {
                        through_table = true;
                        continue;
                    }
                    _ => continue,
                };
                let target = RemoteAddr(i.near_branch_target());
                if i.op0_kind() != OpKind::NearBranch64
                    || ranges.len() > MAX_PARTS
                    || ranges.iter().any(|r| r.contains(&target))
                    || !self.is_text(target)
                {
                    continue;
                }
                let Some(fde) = self.fde_at(target)? else { continue };
                // A cold part may begin as a function does where nothing was pushed yet. Compilers do not end a
                // function by a conditional jump to another one, which would be aligned, too.
                let frameless =
                    conditional && fde.range.start == target && !target.0.is_multiple_of(FUNCTION_ALIGN);
                let named = symbols.code_at(self.to_link(target).0);
                if named.entries.iter().any(|e| e.raw.bind != object::elf::STB_LOCAL) {
                    continue;
                }
                if fde.mid_function || (frameless && named.entries.is_empty()) {
                    let name =
                        named.names().into_iter().next().unwrap_or_else(|| format!("cold part at {target}"));
                    ranges.push(fde.range.clone());
                    out.push(Part { name, range: fde.range });
                }
            }
        }
        Ok((out, through_table))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suffixes_of_compilers() {
        assert_eq!(split_clone("foo.cold"), Some(("foo", CloneKind::Cold)));
        assert_eq!(split_clone("foo.cold.3"), Some(("foo", CloneKind::Cold)));
        assert_eq!(split_clone("foo.part.0.cold"), Some(("foo", CloneKind::Copy)));
        assert_eq!(split_clone("foo.constprop.0.isra.0"), Some(("foo", CloneKind::Copy)));
        assert_eq!(split_clone("foo.colder"), None);
        assert_eq!(split_clone("foo"), None);
    }
}
