//! How results are said: results on stdout, everything else on stderr.

use crate::args::OutputArgs;
use crate::exit::Failure;
use serde_json::{Map, Value, json};
use std::io::{ErrorKind, IsTerminal, Write};

/// Name and version of the JSON schema; the number grows when a field changes its meaning or goes away.
pub const SCHEMA: &str = "ugraft/1";

/// What a command has to say.
#[derive(Debug)]
pub struct Outcome {
    /// The fields of the JSON object, beside `schema`, `command`, `ok` and `exit_code`.
    pub json: Value,
    /// The text for people, without a last line end; may be empty.
    pub text: String,
    /// Remarks for people that are not the result; they go to stderr.
    pub notes: Vec<String>,
    /// The exit code.
    pub exit_code: u8,
}

impl Outcome {
    /// A success.
    pub fn new(json: Value, text: String) -> Self {
        Self { json, text, notes: Vec::new(), exit_code: 0 }
    }
}

/// Remarks that a failure comes with, beside what it says itself.
#[derive(Clone, Debug, Default)]
pub struct Notes(pub Vec<String>);

impl std::fmt::Display for Notes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0.join("; "))
    }
}

/// Prints what a command has to say. False, and a word on stderr, where it cannot be written.
pub fn print_outcome(command: &str, outcome: &Outcome, how: OutputArgs) -> bool {
    if how.json && !outcome.json.is_null() {
        let ok = outcome.exit_code == 0;
        return is_written(print_json(command, ok, outcome.exit_code, outcome.json.clone()));
    }
    if how.quiet {
        return true;
    }
    for note in &outcome.notes {
        let _ = writeln!(std::io::stderr(), "ugraft: {note}");
    }
    outcome.text.is_empty() || is_written(writeln!(std::io::stdout(), "{}", outcome.text))
}

/// Whether the result of a command could be written. A reader that went away (EPIPE) has read what it wanted.
pub fn is_written(written: std::io::Result<()>) -> bool {
    match written {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => {
            let _ = writeln!(std::io::stderr(), "ugraft: cannot write to the standard output: {e}");
            false
        }
        _ => true,
    }
}

/// Prints a failure, and what was remarked before it.
pub fn print_failure(command: &str, message: &str, notes: &[String], failure: Failure, how: OutputArgs) {
    if how.json {
        let mut error = json!({ "kind": failure.kind, "message": message });
        if !failure.details.is_null() {
            error["details"] = failure.details;
        }
        if !notes.is_empty() {
            error["notes"] = notes.into();
        }
        if is_written(print_json(command, false, failure.code, json!({ "error": error }))) {
            return;
        }
    }
    let notes = notes.iter().filter(|_| !how.quiet);
    for line in notes.map(String::as_str).chain([message]) {
        let _ = writeln!(std::io::stderr(), "ugraft: {line}");
    }
}

fn print_json(command: &str, ok: bool, exit_code: u8, fields: Value) -> std::io::Result<()> {
    let mut object = Map::new();
    object.insert("schema".into(), SCHEMA.into());
    object.insert("command".into(), command.into());
    object.insert("ok".into(), ok.into());
    object.insert("exit_code".into(), exit_code.into());
    if let Value::Object(fields) = fields {
        object.extend(fields);
    }
    writeln!(std::io::stdout(), "{:#}", Value::Object(object))
}

/// Whether stdout takes colours: a terminal, and neither `NO_COLOR` (no-color.org) nor `TERM=dumb`.
pub fn colours() -> bool {
    let off = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
    let dumb = std::env::var_os("TERM").is_some_and(|v| v == "dumb");
    std::io::stdout().is_terminal() && !off && !dumb
}
