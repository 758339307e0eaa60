//! Expected lines against seen lines.
//!
//! `[..]` in a line stands for any text, `[=name]` for one word that is remembered under that name, a line that is
//! just `[...]` for any number of lines. Everything else is literal.

use std::collections::BTreeMap;

use similar::{ChangeTag, TextDiff};

/// Words remembered by `[=name]`.
pub type Captures = BTreeMap<String, String>;

/// The line that stands for any number of lines.
pub const ANY_LINES: &str = "[...]";

/// Whether `line` matches `pattern`; on success words are remembered in `captures`.
pub fn line_matches(pattern: &str, line: &str, captures: &mut Captures) -> bool {
    let mut found = Captures::new();
    let matched = matches_from(pattern, line, &mut found);
    if matched {
        captures.extend(found);
    }
    matched
}

fn matches_from(pattern: &str, line: &str, captures: &mut Captures) -> bool {
    let Some((at, open)) =
        ["[..]", "[="].iter().filter_map(|o| pattern.find(o).map(|at| (at, *o))).min_by_key(|(at, _)| *at)
    else {
        return pattern == line;
    };
    let Some(rest) = line.strip_prefix(&pattern[..at]) else { return false };
    if open == "[..]" {
        let after = &pattern[at + open.len()..];
        return char_ends(rest).any(|end| matches_from(after, &rest[end..], captures));
    }
    let Some((name, after)) = pattern[at + open.len()..].split_once(']') else { return pattern == line };
    let word = rest.split(|c: char| !(c.is_alphanumeric() || c == '_')).next().unwrap_or("");
    if word.is_empty() || !matches_from(after, &rest[word.len()..], captures) {
        return false;
    }
    captures.insert(name.to_owned(), word.to_owned());
    true
}

fn char_ends(text: &str) -> impl Iterator<Item = usize> {
    text.char_indices().map(|(at, _)| at).chain([text.len()])
}

/// For each line of `seen` the number of the pattern that accounts for it (`None` where none does), if the patterns are
/// taken in order; and whether everything fits.
pub fn align(patterns: &[String], seen: &[String], captures: &mut Captures) -> (Vec<Option<usize>>, bool) {
    // The best chain of matches, by dynamic programming over suffixes: `best[i][j]` for patterns[i..], seen[j..]. A
    // line under its own pattern counts two, a line under `[...]` one, so that a full match is always the best.
    let (n, m) = (patterns.len(), seen.len());
    let fits = |i: usize, j: usize| line_matches(&patterns[i], &seen[j], &mut Captures::new());
    let mut best = vec![vec![0usize; m + 1]; n + 1];
    for i in (0..n).rev() {
        for j in (0..=m).rev() {
            let mut value = best[i + 1][j];
            if j < m {
                value = value.max(best[i][j + 1]);
                if patterns[i] == ANY_LINES {
                    value = value.max(1 + best[i][j + 1]);
                } else if fits(i, j) {
                    value = value.max(2 + best[i + 1][j + 1]);
                }
            }
            best[i][j] = value;
        }
    }
    let mut assigned = vec![None; m];
    let (mut i, mut j) = (0, 0);
    let mut all = true;
    while i < n && j < m {
        let any = patterns[i] == ANY_LINES;
        if !any && fits(i, j) && best[i][j] == 2 + best[i + 1][j + 1] {
            line_matches(&patterns[i], &seen[j], captures);
            assigned[j] = Some(i);
            (i, j) = (i + 1, j + 1);
        } else if any && best[i][j] == best[i + 1][j] {
            i += 1;
        } else if any {
            assigned[j] = Some(i);
            j += 1;
        } else if best[i][j] == best[i + 1][j] {
            all = false;
            i += 1;
        } else {
            j += 1;
        }
    }
    all &= patterns[i..].iter().all(|p| p == ANY_LINES) && assigned.iter().all(Option::is_some);
    (assigned, all)
}

/// A unified diff from what was expected to what was seen, lines that match shown as they were seen.
pub fn diff(title: &str, patterns: &[String], seen: &[String]) -> String {
    let (assigned, _) = align(patterns, seen, &mut Captures::new());
    // Rewriting each matched pattern as the line it matched leaves only true differences.
    let mut expected = Vec::new();
    let mut used = 0;
    let literal = |range: std::ops::Range<usize>| patterns[range].iter().filter(|p| *p != ANY_LINES).cloned();
    for (line, number) in seen.iter().zip(&assigned) {
        let Some(number) = *number else { continue };
        expected.extend(literal(used..number.max(used)));
        expected.push(line.clone());
        used = number + 1;
    }
    expected.extend(literal(used.min(patterns.len())..patterns.len()));
    let (old, new) = (join(&expected), join(seen));
    let text_diff = TextDiff::from_lines(&old, &new);
    let mut out = format!("--- expected {title}\n+++ seen {title}\n");
    for change in text_diff.iter_all_changes() {
        let sign = match change.tag() {
            ChangeTag::Delete => '-',
            ChangeTag::Insert => '+',
            ChangeTag::Equal => ' ',
        };
        out.push(sign);
        out.push_str(change.value());
    }
    out
}

fn join(lines: &[String]) -> String {
    lines.iter().map(|line| format!("{line}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &[&str]) -> Vec<String> {
        text.iter().map(|s| (*s).to_owned()).collect()
    }

    #[test]
    fn placeholders_match_within_their_line() {
        let mut c = Captures::new();
        assert!(line_matches("took [..] ms for [..]", "took 1.2 ms for all", &mut c));
        assert!(!line_matches("took [..] ms", "took 1.2 s", &mut c));
        assert!(line_matches("child [=child], [..]", "child 123, ok", &mut c));
        assert_eq!(c["child"], "123");
        assert!(line_matches("[ok] [=", "[ok] [=", &mut c), "brackets that are no placeholder are literal");
    }

    #[test]
    fn any_lines_may_be_none_or_many() {
        let mut c = Captures::new();
        assert!(align(&lines(&["a", "[...]", "z"]), &lines(&["a", "z"]), &mut c).1);
        assert!(align(&lines(&["a", "[...]", "z"]), &lines(&["a", "b", "c", "z"]), &mut c).1);
        assert!(!align(&lines(&["a", "[...]", "z"]), &lines(&["a", "b", "c"]), &mut c).1);
        assert!(align(&lines(&["[...]"]), &[], &mut c).1);
        assert!(!align(&lines(&["a"]), &[], &mut c).1);
        assert!(!align(&[], &lines(&["a"]), &mut c).1);
    }

    #[test]
    fn a_diff_shows_only_what_differs() {
        let text = diff("stdout", &lines(&["a [..]", "b", "c"]), &lines(&["a 1", "x", "c"]));
        assert_eq!(text, "--- expected stdout\n+++ seen stdout\n a 1\n-b\n+x\n c\n");
    }
}
