//! The kernel's spelling of a symbol that the target does not export: `.klp.sym.OBJECT.SYMBOL,POS`.
//!
//! Both parts may hold dots (`libz.so.1`, `deflate.constprop.0`), so where one ends needs a rule. POS is what follows
//! the last comma. OBJECT is, in this order:
//! 1. what stands in brackets, if the text begins with one: `[plugin.node].helper`;
//! 2. `exe`, the main executable, if that is the first component;
//! 3. the components up to the first that is `so`, and after it all that begin with a digit: `libz.so.1`,
//!    `libpython3.11.so.1.0`. A symbol of C, C++ or Rust never begins with a digit;
//! 4. the first component.
//!
//! SYMBOL is the rest.

use crate::error::{Error, Result};
use crate::limits;

/// What such names begin with.
pub const PREFIX: &str = ".klp.sym.";
/// How the main executable is called where it needs a name.
pub const EXE: &str = "exe";

/// A symbol of one object, by its place in that object's symbol table.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KlpSymbol {
    /// The object, None for the main executable.
    pub object: Option<String>,
    /// The symbol's name there.
    pub symbol: String,
    /// Which of several of that name, counted from 1; 0 says there must be exactly one.
    pub pos: u32,
}

impl KlpSymbol {
    /// Reads `name`, which begins with `PREFIX`.
    pub fn parse(name: &str) -> Result<Self> {
        let wrong = |reason| Error::KlpSymbol { symbol: name.to_string(), reason };
        let text = name.strip_prefix(PREFIX).ok_or(wrong("the prefix is missing"))?;
        let (text, pos) = text.rsplit_once(',').ok_or(wrong("the position is missing"))?;
        if pos.is_empty() || !pos.bytes().all(|b| b.is_ascii_digit()) {
            return Err(wrong("the position is not a decimal number"));
        }
        let pos = pos.parse().map_err(|_| wrong("the position is too large"))?;
        let (object, symbol) = split(text).ok_or(wrong("the object or the symbol is missing"))?;
        if object.is_empty() || symbol.is_empty() {
            return Err(wrong("the object or the symbol is missing"));
        }
        if object.len() > limits::MAX_OBJECT_NAME {
            return Err(wrong("the object's name is too long"));
        }
        if object.contains('/') || object.chars().chain(symbol.chars()).any(char::is_control) {
            return Err(wrong("a control character or slash in a name"));
        }
        let object = (object != EXE || text.starts_with('[')).then(|| object.to_string());
        Ok(Self { object, symbol: symbol.to_string(), pos })
    }
}

impl core::fmt::Display for KlpSymbol {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{}", self.symbol)?;
        if self.pos > 0 {
            write!(f, ",{}", self.pos)?;
        }
        match &self.object {
            Some(object) => write!(f, " of {object}"),
            None => write!(f, " of the main executable"),
        }
    }
}

fn split(text: &str) -> Option<(&str, &str)> {
    if let Some(quoted) = text.strip_prefix('[') {
        let (object, rest) = quoted.split_once(']')?;
        return Some((object, rest.strip_prefix('.')?));
    }
    let (first, rest) = text.split_once('.')?;
    if first == EXE {
        return Some((first, rest));
    }
    let mut end = first.len();
    let mut rest = Some(rest);
    let mut seen_so = false;
    // Ends of components are byte positions in `text`; `rest` is what follows the dot at `end`.
    while let Some(after) = rest {
        let component = after.split('.').next().unwrap_or(after);
        if seen_so {
            if !component.starts_with(|c: char| c.is_ascii_digit()) {
                return Some((&text[..end], after));
            }
        } else if component == "so" {
            seen_so = true;
        }
        end += 1 + component.len();
        rest = text.get(end + 1..);
    }
    if seen_so && end == text.len() && !text.ends_with(".so") {
        return None;
    }
    text.split_once('.')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> (Option<String>, String, u32) {
        let k = KlpSymbol::parse(&format!("{PREFIX}{text}")).unwrap_or_else(|e| panic!("{text}: {e}"));
        (k.object, k.symbol, k.pos)
    }

    #[test]
    fn objects_and_symbols_with_dots() {
        let cases: &[(&str, Option<&str>, &str, u32)] = &[
            ("exe.main,0", None, "main", 0),
            ("exe.foo.constprop.0,2", None, "foo.constprop.0", 2),
            ("exe.so,1", None, "so", 1),
            ("libz.so.1.crc32,1", Some("libz.so.1"), "crc32", 1),
            ("libpython3.11.so.1.0.foo.isra.0.cold,3", Some("libpython3.11.so.1.0"), "foo.isra.0.cold", 3),
            ("libLLVM-14.so.1._ZN4llvm3fooEv,0", Some("libLLVM-14.so.1"), "_ZN4llvm3fooEv", 0),
            ("libstdc++.so.6.so,0", Some("libstdc++.so.6"), "so", 0),
            (
                "mod.cpython-311-x86_64-linux-gnu.so.init,0",
                Some("mod.cpython-311-x86_64-linux-gnu.so"),
                "init",
                0,
            ),
            ("nodots.helper,0", Some("nodots"), "helper", 0),
            ("nodots.helper.part.0,0", Some("nodots"), "helper.part.0", 0),
            ("[plugin.node].helper.part.0,0", Some("plugin.node"), "helper.part.0", 0),
            ("[exe].helper,0", Some("exe"), "helper", 0),
            ("exe.f<a,b>,7", None, "f<a,b>", 7),
        ];
        for (text, object, symbol, pos) in cases {
            assert_eq!(parsed(text), (object.map(str::to_string), symbol.to_string(), *pos), "{text}");
        }
    }

    #[test]
    fn malformed_names_are_refused() {
        for text in [
            "",
            "exe",
            "exe.f",
            "exe.f,",
            "exe.f,x",
            "exe.f,-1",
            "exe.,0",
            ".f,0",
            "exe.f,99999999999",
            "[a.b,0",
            "[].f,0",
            "[a]f,0",
            "libz.so.1,0",
            "a/b.f,0",
        ] {
            let name = format!("{PREFIX}{text}");
            assert!(KlpSymbol::parse(&name).is_err(), "{text}");
        }
    }
}
