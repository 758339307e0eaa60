//! Reading a scenario file: from annotated source to sections, builds, variants and steps.
//!
//! The notation is described for authors in `scenarios/README.md`. Everything that a line may say is known here,
//! and a line that says anything else is an error with its number, so that a misspelt expectation cannot pass for
//! prose.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// One scenario file, read whole.
#[derive(Debug, Clone)]
pub struct Scenario {
    /// The file it was read from.
    pub path: PathBuf,
    /// What introduces a marked line: `//` or `#`, by the file's extension.
    pub marker: &'static str,
    /// Source files held in the scenario.
    pub sections: Vec<Section>,
    /// Explicit build commands, in order.
    pub builds: Vec<String>,
    /// Programs and circumstances without which the scenario cannot run.
    pub needs: Vec<String>,
    /// Each variant plays the whole scenario with its own environment variables. Never empty: without variants
    /// there is one with an empty name.
    pub variants: Vec<Variant>,
    /// What is done, in order.
    pub steps: Vec<Step>,
}

/// A source file inside a scenario file.
#[derive(Debug, Clone)]
pub struct Section {
    /// Its file name.
    pub name: String,
    /// Its text.
    pub text: String,
    /// The line of the scenario file at which the text begins, from 1.
    pub line: usize,
}

/// A way to play the scenario: a name and environment variables for builds and commands.
#[derive(Debug, Clone, Default)]
pub struct Variant {
    /// Its name, empty for the only variant of a plain scenario.
    pub name: String,
    /// Variables set for builds and commands.
    pub env: BTreeMap<String, String>,
}

/// One step with its place in the file.
#[derive(Debug, Clone)]
pub struct Step {
    /// The line of the scenario file, from 1.
    pub line: usize,
    /// The process it is about, where it names another than the current one.
    pub at: Option<String>,
    /// What to do.
    pub action: Action,
}

/// What a command or a finished process must have said.
#[derive(Debug, Clone, Default)]
pub struct Expected {
    /// Patterns of the lines of standard output.
    pub stdout: Vec<String>,
    /// Patterns of the lines of standard error.
    pub stderr: Vec<String>,
    /// Exit code; a process killed by signal N has 128 + N.
    pub code: i32,
    /// The lines of the scenario file that say all this (from 1, end exclusive), for rewriting them.
    pub lines: Range<usize>,
}

/// The things a step can do.
#[derive(Debug, Clone)]
pub enum Action {
    /// Start a process in the background and make it the current one.
    Start {
        /// The name it gets.
        name: String,
        /// The command line that is run by `sh -c exec`.
        command: String,
    },
    /// Run a command to its end and compare.
    Run {
        /// The command line for `sh -c`.
        command: String,
        /// What must come back.
        expected: Expected,
    },
    /// Repeat a command until it exits with 0.
    Until(String),
    /// Wait for the end of the process and compare what it said and nobody has looked at yet.
    Wait(Expected),
    /// Write a line to the process.
    Say(String),
    /// Close the process's standard input.
    Close,
    /// Wait for a line of the process's output that matches; lines before it are passed over.
    Expect(String),
    /// No line of the process's output so far, on either stream, matches.
    Never(String),
    /// The process runs: neither stopped nor traced nor gone.
    Alive,
    /// The process is stopped by job control, by nothing else, and is not traced.
    Stopped,
    /// Send a signal, by name without SIG.
    Signal(String),
    /// Remember what the process is like.
    Snapshot,
    /// Compare the process with its snapshot.
    Unchanged,
    /// No mapping of ours is left in the process.
    Clean,
    /// The process numbered by the variable is taken under the harness's wing as if it had been started.
    Adopt {
        /// The name it gets.
        name: String,
        /// The variable that holds the process number.
        variable: String,
    },
}

impl Scenario {
    /// Reads the scenario at `path`.
    pub fn read(path: &Path) -> Result<Scenario> {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        Scenario::parse(path, &text)
    }

    /// Parses the `text` of the scenario at `path`.
    pub fn parse(path: &Path, text: &str) -> Result<Scenario> {
        let marker = match path.extension().and_then(|e| e.to_str()) {
            Some("sh" | "py") => "#",
            _ => "//",
        };
        let mut scenario = Scenario {
            path: path.to_path_buf(),
            marker,
            sections: Vec::new(),
            builds: Vec::new(),
            needs: Vec::new(),
            variants: Vec::new(),
            steps: Vec::new(),
        };
        let mut section: Option<Section> = None;
        for (index, line) in text.lines().enumerate() {
            let number = index + 1;
            let marked = line.strip_prefix(marker).and_then(|rest| {
                let mut chars = rest.chars();
                let kind = chars.next().filter(|k| "@>!=".contains(*k))?;
                let rest = chars.as_str();
                // Only a space or the end of the line may follow, so that `//!` of Rust or `#!` are not ours.
                (rest.is_empty() || rest.starts_with(' '))
                    .then(|| (kind, rest.strip_prefix(' ').unwrap_or("")))
            });
            match marked {
                Some(('@', directive)) => {
                    scenario.sections.extend(section.take());
                    section = scenario
                        .directive(number, directive)
                        .with_context(|| format!("{}:{number}: {line}", path.display()))?;
                }
                Some((kind, rest)) if section.is_none() => {
                    scenario
                        .expectation(number, kind, rest)
                        .with_context(|| format!("{}:{number}: {line}", path.display()))?;
                }
                _ => match &mut section {
                    Some(section) => {
                        section.text.push_str(line);
                        section.text.push('\n');
                    }
                    // Prose; anything else outside a section would be lost silently.
                    None if line.trim().is_empty() || line.starts_with(marker) => {}
                    None => bail!("{}:{number}: text outside a file section: {line}", path.display()),
                },
            }
        }
        scenario.sections.extend(section);
        if scenario.variants.is_empty() {
            scenario.variants.push(Variant::default());
        }
        if scenario.steps.is_empty() {
            bail!("{}: nothing is done in this scenario", path.display());
        }
        Ok(scenario)
    }

    /// The scenario's name: the file's, without extension.
    pub fn name(&self) -> String {
        self.path.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default()
    }

    fn directive(&mut self, line: usize, directive: &str) -> Result<Option<Section>> {
        let (verb, rest) = split_word(directive);
        match verb {
            "file" => {
                let name = one_word(rest)?;
                return Ok(Some(Section { name, text: String::new(), line: line + 1 }));
            }
            "build" => self.builds.push(some(rest)?),
            "needs" => self.needs.extend(rest.split_whitespace().map(str::to_owned)),
            "variant" => self.variants.push(variant(rest)?),
            _ => {
                let (at, verb, rest) = match verb {
                    "at" => {
                        let (name, rest) = split_word(rest);
                        let (verb, rest) = split_word(rest);
                        (Some(name.to_owned()), verb, rest)
                    }
                    _ => (None, verb, rest),
                };
                let action = action(line, verb, rest)?;
                self.steps.push(Step { line, at, action });
            }
        }
        Ok(None)
    }

    /// A line of expected output belongs to the command or wait before it.
    fn expectation(&mut self, line: usize, kind: char, rest: &str) -> Result<()> {
        let expected = match self.steps.last_mut().map(|step| &mut step.action) {
            Some(Action::Run { expected, .. } | Action::Wait(expected)) => expected,
            _ => bail!("no command stands before this expectation"),
        };
        if expected.lines.end != line {
            bail!("an expectation must follow its command directly");
        }
        expected.lines.end = line + 1;
        match kind {
            '>' => expected.stdout.push(rest.to_owned()),
            '!' => expected.stderr.push(rest.to_owned()),
            _ => expected.code = rest.trim().parse().context("an exit code is a number")?,
        }
        Ok(())
    }
}

fn action(line: usize, verb: &str, rest: &str) -> Result<Action> {
    let nothing = |action: Action| match rest.is_empty() {
        true => Ok(action),
        false => bail!("`{verb}` takes no words"),
    };
    let expected = || Expected { lines: line + 1..line + 1, ..Expected::default() };
    match verb {
        "start" => start(rest),
        "$" => Ok(Action::Run { command: some(rest)?, expected: expected() }),
        "until" => Ok(Action::Until(some(rest)?)),
        "wait" => nothing(Action::Wait(expected())),
        "say" => Ok(Action::Say(rest.to_owned())),
        "close" => nothing(Action::Close),
        "expect" => Ok(Action::Expect(some(rest)?)),
        "never" => Ok(Action::Never(some(rest)?)),
        "alive" => nothing(Action::Alive),
        "stopped" => nothing(Action::Stopped),
        "signal" => Ok(Action::Signal(one_word(rest)?)),
        "snapshot" => nothing(Action::Snapshot),
        "unchanged" => nothing(Action::Unchanged),
        "clean" => nothing(Action::Clean),
        "adopt" => {
            let (name, variable) = split_word(rest);
            Ok(Action::Adopt { name: some(name)?, variable: one_word(variable)? })
        }
        _ => bail!("unknown directive `{verb}`"),
    }
}

/// `target ARGS` starts the program of that name built from a section; `name: command line` any command.
fn start(rest: &str) -> Result<Action> {
    let (first, args) = split_word(rest);
    Ok(match first.strip_suffix(':') {
        Some(name) => Action::Start { name: some(name)?, command: some(args)? },
        None => {
            Action::Start { name: some(first)?, command: format!("./{first} {args}").trim_end().to_owned() }
        }
    })
}

/// `name A=value B="several words"`.
fn variant(rest: &str) -> Result<Variant> {
    let (name, mut rest) = split_word(rest);
    let mut variant = Variant { name: some(name)?, env: BTreeMap::new() };
    while !rest.is_empty() {
        let (key, value) = rest.split_once('=').context("a variant's variables are NAME=value")?;
        let (value, after) = match value.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').context("a quote is not closed")?,
            None => value.split_once(' ').unwrap_or((value, "")),
        };
        variant.env.insert(key.to_owned(), value.to_owned());
        rest = after.trim_start();
    }
    Ok(variant)
}

fn split_word(text: &str) -> (&str, &str) {
    let (word, rest) = text.split_once(' ').unwrap_or((text, ""));
    (word, rest.trim_start())
}

fn some(text: &str) -> Result<String> {
    if text.is_empty() { bail!("something is missing at the end of the line") } else { Ok(text.to_owned()) }
}

fn one_word(text: &str) -> Result<String> {
    match text.contains(' ') {
        true => bail!("one word is expected here, not `{text}`"),
        false => some(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &str = "\
// Prose.
//@ variant static TARGET_FLAGS=\"-static -O1\" CC=gcc
//@ file target.c
int main(void) { return 0; }
//@ start target 1 2
// more prose
//@ $ echo a
//> a
//! b
//= 3
//@ at other expect x y
";

    #[test]
    fn a_scenario_is_read_with_its_places() {
        let s = Scenario::parse(Path::new("x.c"), SAMPLE).unwrap();
        assert_eq!(s.variants[0].env["TARGET_FLAGS"], "-static -O1");
        assert_eq!(s.variants[0].env["CC"], "gcc");
        assert_eq!((s.sections[0].line, s.sections[0].text.as_str()), (4, "int main(void) { return 0; }\n"));
        assert!(
            matches!(&s.steps[0].action, Action::Start { name, command } if name == "target" && command == "./target 1 2")
        );
        let Action::Run { expected, .. } = &s.steps[1].action else { panic!() };
        assert_eq!((expected.code, expected.lines.clone()), (3, 8..11));
        assert_eq!(s.steps[2].at.as_deref(), Some("other"));
    }

    #[test]
    fn misspelt_lines_are_errors_with_their_number() {
        for (text, message) in [
            ("//@ exepct x\n", "x.c:1: //@ exepct x: unknown directive `exepct`"),
            ("//> lost\n", "no command stands before"),
            ("//@ $ a\n// prose\n//> late\n", "must follow its command directly"),
            ("int x;\n", "text outside a file section"),
            ("// prose\n", "nothing is done"),
        ] {
            let error = format!("{:#}", Scenario::parse(Path::new("x.c"), text).unwrap_err());
            assert!(error.contains(message), "{error}");
        }
    }
}
