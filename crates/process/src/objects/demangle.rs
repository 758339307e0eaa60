//! C++ and Rust names: what a mangled symbol is called by people, and which symbol a person means.
//!
//! Accepted spellings of a symbol, besides the mangled one:
//! - C++: the full signature, with and without the return type that templates carry, and without the parameter
//!   list;
//! - Rust (legacy and v0): with and without the hash or the crate disambiguators.

use cpp_demangle::{DemangleOptions, ParseOptions};

/// Deepest nesting that is followed in a C++ name; symbol names come from files nobody vouches for.
const MAX_DEPTH: u32 = 64;
/// Longest mangled or demangled name that is looked at, in bytes.
pub const MAX_DEMANGLED: usize = 1 << 14;

/// The demangled form of `symbol` for display, or `None` where it is not a mangled name.
#[must_use]
pub fn demangle(symbol: &str) -> Option<String> {
    if let Some(name) = rust(symbol) {
        return printed(format_args!("{name:#}"));
    }
    cpp(symbol)?.demangle_with(&DemangleOptions::new())
}

/// Every spelling by which a person may mean `symbol`.
pub(crate) fn spellings(symbol: &str) -> Vec<String> {
    let mut out = Vec::new();
    if let Some(name) = rust(symbol) {
        out.extend(printed(format_args!("{name:#}")));
        out.extend(printed(format_args!("{name}")));
    } else if let Some(name) = cpp(symbol) {
        let options = DemangleOptions::new;
        out.extend(name.demangle_with(&options()));
        out.extend(name.demangle_with(&options().no_return_type()));
        out.extend(name.demangle_with(&options().no_return_type().no_params()));
    }
    out
}

/// An identifier that the mangled form of any symbol meant by `query` holds literally; empty where none is known.
pub(crate) fn literal_part(query: &str) -> &str {
    if query.contains("operator") {
        return "";
    }
    // What follows the name proper: parameters, template arguments, a hash.
    let mut end = query.len();
    for (at, c) in query.char_indices() {
        if (c == '(' || c == '<') && at > 0 && !query[..at].ends_with("::") && !query[..at].ends_with(' ') {
            end = at;
            break;
        }
    }
    let ident = |s: &&str| {
        let hash = s.len() == 17 && s.starts_with('h') && s[1..].bytes().all(|b| b.is_ascii_hexdigit());
        !s.is_empty() && !hash && s.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
    };
    query[..end].rsplit(|c: char| !c.is_ascii_alphanumeric() && c != '_').find(ident).unwrap_or("")
}

/// Whether `name` can only be a demangled one: no linker of C, C++ or Rust knows a symbol by it. (Those of Go may have
/// parentheses in them.)
pub(crate) fn is_demangled(name: &str) -> bool {
    name.contains("::") || name.contains(' ') || name.ends_with(')')
}

/// Whether `symbol` looks like a mangled name at all.
pub(crate) fn is_mangled(symbol: &[u8]) -> bool {
    symbol.starts_with(b"_Z") || symbol.starts_with(b"_R") || symbol.starts_with(b"__Z")
}

fn rust(symbol: &str) -> Option<rustc_demangle::Demangle<'_>> {
    if symbol.len() > MAX_DEMANGLED || !is_mangled(symbol.as_bytes()) {
        return None;
    }
    rustc_demangle::try_demangle(symbol).ok()
}

fn cpp(symbol: &str) -> Option<cpp_demangle::BorrowedSymbol<'_>> {
    if symbol.len() > MAX_DEMANGLED || !symbol.starts_with("_Z") {
        return None;
    }
    let options = ParseOptions::default().recursion_limit(MAX_DEPTH);
    cpp_demangle::BorrowedSymbol::new_with_options(symbol.as_bytes(), &options).ok()
}

trait DemangleWith {
    fn demangle_with(&self, options: &DemangleOptions) -> Option<String>;
}

impl DemangleWith for cpp_demangle::BorrowedSymbol<'_> {
    fn demangle_with(&self, options: &DemangleOptions) -> Option<String> {
        let mut out = Bounded(String::new());
        let options = options.recursion_limit(MAX_DEPTH);
        self.structured_demangle(&mut out, &options).ok()?;
        Some(out.0)
    }
}

fn printed(args: std::fmt::Arguments<'_>) -> Option<String> {
    let mut out = Bounded(String::new());
    std::fmt::write(&mut out, args).ok()?;
    Some(out.0)
}

/// A string that refuses to grow without end: substitutions let a short mangled name stand for a huge one.
struct Bounded(String);

impl std::fmt::Write for Bounded {
    fn write_str(&mut self, s: &str) -> std::fmt::Result {
        if self.0.len() + s.len() > MAX_DEMANGLED {
            return Err(std::fmt::Error);
        }
        self.0.push_str(s);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_both_languages_are_spelled_out() {
        assert_eq!(demangle("_ZN2ns3FooC1Ei").as_deref(), Some("ns::Foo::Foo(int)"));
        assert_eq!(demangle("_ZN4demo4main17h0123456789abcdefE").as_deref(), Some("demo::main"));
        assert_eq!(demangle("_RNvCs15kBYyAo9fc_7mycrate7example").as_deref(), Some("mycrate::example"));
        assert_eq!(demangle("main"), None);
        let all = spellings("_Z3addIiET_S0_S0_");
        assert!(all.contains(&"int add<int>(int, int)".to_owned()), "{all:?}");
        assert!(all.contains(&"add<int>(int, int)".to_owned()), "{all:?}");
        assert!(all.contains(&"add<int>".to_owned()), "{all:?}");
    }

    #[test]
    fn the_literal_part_is_in_the_mangled_name() {
        assert_eq!(literal_part("ns::Foo::bar(int, std::string)"), "bar");
        assert_eq!(literal_part("add<int>"), "add");
        assert_eq!(literal_part("ns::Foo::~Foo()"), "Foo");
        assert_eq!(literal_part("demo::main::h0123456789abcdef"), "main");
        assert_eq!(literal_part("<demo::Foo as core::fmt::Display>::fmt"), "fmt");
        assert_eq!(literal_part("ns::operator+(ns::A, int)"), "");
    }
}
