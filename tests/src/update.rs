//! Rewriting transcripts: `UGRAFT_UPDATE=1` puts what was seen where a scenario expected something else.
//!
//! Lines that already match keep their pattern. In new lines, what differs from run to run becomes a placeholder:
//! process numbers, hexadecimal addresses, times, the scenario's directory. `UGRAFT_UPDATE=tighten` also replaces the
//! lines `[...]` by what they stood for.

use std::ops::Range;
use std::path::Path;

use anyhow::{Context, Result};

use crate::pattern::{self, ANY_LINES, Captures};
use crate::scenario::Expected;

/// What `UGRAFT_UPDATE` asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Differences are failures.
    Compare,
    /// Differences are written to the scenario.
    Rewrite,
    /// As `Rewrite`, and `[...]` is replaced too.
    Tighten,
}

/// The mode this run is in.
pub fn mode() -> Mode {
    match std::env::var("UGRAFT_UPDATE").as_deref() {
        Ok("tighten") => Mode::Tighten,
        Ok("" | "0") | Err(_) => Mode::Compare,
        Ok(_) => Mode::Rewrite,
    }
}

impl Mode {
    /// Whether scenarios are rewritten at all.
    pub fn is_wanted(self) -> bool {
        self != Mode::Compare
    }
}

/// New expectation lines for a range of lines of the scenario.
pub struct Rewrite {
    lines: Range<usize>,
    marked: Vec<(char, String)>,
}

impl Rewrite {
    /// The expectation that fits what was seen. `names` are texts and what to write for them.
    pub fn new(
        mode: Mode,
        expected: &Expected,
        code: i32,
        stdout: &[String],
        stderr: &[String],
        names: &[(String, String)],
        substitute: impl Fn(&str) -> String,
    ) -> Rewrite {
        let mut marked = Vec::new();
        for (kind, patterns, seen) in [('>', &expected.stdout, stdout), ('!', &expected.stderr, stderr)] {
            let kept: Vec<String> =
                patterns.iter().filter(|p| mode != Mode::Tighten || *p != ANY_LINES).cloned().collect();
            let substituted: Vec<String> = kept.iter().map(|p| substitute(p)).collect();
            let (assigned, _) = pattern::align(&substituted, seen, &mut Captures::new());
            for (line, number) in seen.iter().zip(assigned) {
                let text = number.map_or_else(|| general(line, names), |number| kept[number].clone());
                // One `[...]` stands for all its lines.
                if text != ANY_LINES || marked.last() != Some(&(kind, text.clone())) {
                    marked.push((kind, text));
                }
            }
        }
        if code != 0 {
            marked.push(('=', code.to_string()));
        }
        Rewrite { lines: expected.lines.clone(), marked }
    }
}

/// Puts placeholders for what differs from run to run.
pub fn general(line: &str, names: &[(String, String)]) -> String {
    let mut text = line.to_owned();
    for (value, name) in names {
        text = replace_words(&text, value, name);
    }
    let mut out: Vec<String> = Vec::new();
    let mut words = text.split(' ').peekable();
    while let Some(word) = words.next() {
        let core = word.trim_matches(|c: char| "(),;:".contains(c));
        let next = words.peek().map(|w| w.trim_matches(|c: char| "(),;:.".contains(c))).unwrap_or("");
        let number = !core.is_empty() && core.chars().all(|c| c.is_ascii_digit() || c == '.');
        if number && UNITS.contains(&next) {
            // The unit changes with the number.
            let unit = words.next().unwrap_or_default();
            out.push(word.replace(core, "[..]") + &unit[unit.find(next).unwrap_or(0) + next.len()..]);
        } else if core.starts_with("0x") || is_moment(core) {
            out.push(word.replace(core, "[..]"));
        } else {
            out.push(word.to_owned());
        }
    }
    let text = out.join(" ");
    // Fields of JSON whose value is a time, a size or an address.
    match text.split_once("\": ") {
        Some((key, value)) if ["_ns", "_bytes", "addr"].iter().any(|end| key.ends_with(end)) => {
            let comma = if value.ends_with(',') { "," } else { "" };
            format!("{key}\": [..]{comma}")
        }
        _ => text,
    }
}

/// Units of the times that are printed.
const UNITS: [&str; 5] = ["ns", "us", "ms", "s", "min"];

/// Whether the word is a date with a time, as RFC 3339 has it.
fn is_moment(word: &str) -> bool {
    word.ends_with('Z') && word.len() > 20 && word.chars().filter(|c| *c == ':').count() == 2
}

/// Replaces `value` where it is no part of a longer word.
fn replace_words(text: &str, value: &str, name: &str) -> String {
    let is_word = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(value) {
        let after = &rest[at + value.len()..];
        let inside = is_word(rest[..at].chars().next_back()) || is_word(after.chars().next());
        out.push_str(&rest[..at]);
        out.push_str(if inside { value } else { name });
        rest = after;
    }
    out + rest
}

/// Applies the rewrites to the scenario, all of them in this one call, if there are any.
pub fn write(path: &Path, marker: &str, rewrites: &[Rewrite]) -> Result<()> {
    if rewrites.is_empty() {
        return Ok(());
    }
    let text = std::fs::read_to_string(path)?;
    let mut out = String::new();
    for (index, line) in text.lines().enumerate() {
        let number = index + 1;
        for rewrite in rewrites.iter().filter(|r| r.lines.start == number) {
            for (kind, text) in &rewrite.marked {
                out.push_str(format!("{marker}{kind} {text}").trim_end());
                out.push('\n');
            }
        }
        if !rewrites.iter().any(|r| r.lines.contains(&number)) {
            out.push_str(line);
            out.push('\n');
        }
    }
    let end = text.lines().count() + 1;
    for (kind, text) in rewrites.iter().filter(|r| r.lines.start == end).flat_map(|r| &r.marked) {
        out.push_str(format!("{marker}{kind} {text}").trim_end());
        out.push('\n');
    }
    std::fs::write(path, out).with_context(|| format!("cannot rewrite {}", path.display()))
}

/// A line of a file, for messages.
pub fn line_of(path: &Path, line: usize) -> String {
    std::fs::read_to_string(path)
        .ok()
        .and_then(|t| t.lines().nth(line - 1).map(str::to_owned))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_from_run_to_run_becomes_a_placeholder() {
        let names = [("123".to_owned(), "$target".to_owned())];
        assert_eq!(
            general("pid 123: 1234 calls, (0.25 ms), at 0x7f00", &names),
            "pid $target: 1234 calls, ([..]), at [..]"
        );
    }

    #[test]
    fn times_of_logs_and_json_do_not_stay() {
        assert_eq!(general("2026-11-22T18:24:30.364693Z livepatch: x", &[]), "[..] livepatch: x");
        assert_eq!(general("  \"since_ns\": 214100575,", &[]), "  \"since_ns\": [..],");
    }

    #[test]
    fn a_rewrite_keeps_what_matched_and_its_neighbours() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.c");
        std::fs::write(&path, "//@ $ a\n//> one $x\n//> old\n//@ $ b\n").unwrap();
        let expected =
            Expected { stdout: vec!["one $x".into(), "old".into()], lines: 2..4, ..Expected::default() };
        let seen = ["one 1".to_owned(), "new 0xff".to_owned()];
        let first = Rewrite::new(Mode::Rewrite, &expected, 5, &seen, &[], &[], |p| p.replace("$x", "1"));
        let empty = Expected { lines: 5..5, ..Expected::default() };
        let second = Rewrite::new(Mode::Rewrite, &empty, 0, &["end".to_owned()], &[], &[], str::to_owned);
        write(&path, "//", &[first, second]).unwrap();
        assert_eq!(
            std::fs::read_to_string(&path).unwrap(),
            "//@ $ a\n//> one $x\n//> new [..]\n//= 5\n//@ $ b\n//> end\n"
        );
    }
}
