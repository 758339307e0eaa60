//! Wrong patch files and wrong calls, from the table `bad-input/table.txt`: each has its message and exit code, none
//! changes the target, and no wrong *file* leads to a ptrace call (promise P6: a patch file is verified whole before
//! anything attaches to anything).

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use ugraft_tests::children::{self, Background, Finished};
use ugraft_tests::isolate::{self, Test};
use ugraft_tests::pattern::{self, Captures};
use ugraft_tests::snapshot::Snapshot;
use ugraft_tests::{compile, proc, program, repository, tests_dir, update};

const LIMIT: Duration = Duration::from_secs(600);

/// A row of the table.
#[derive(Clone)]
struct Row {
    /// `file` or `call`.
    kind: String,
    name: String,
    /// How the file is made, or the whole command.
    command: String,
    code: String,
    message: String,
}

impl Row {
    /// Columns are divided by ` | `; a bar inside one is written `\|`.
    fn parse(line: &str) -> Result<Row> {
        let columns: Vec<String> =
            line.split(" | ").map(|column| column.trim().replace("\\|", "|")).collect();
        match <[String; 5]>::try_from(columns) {
            Ok([kind, name, command, code, message]) if kind == "file" || kind == "call" => {
                Ok(Row { kind, name, command, code, message })
            }
            _ => bail!("not a row of the table: {line}"),
        }
    }

    fn text(&self) -> String {
        let escape = |column: &str| column.replace('|', "\\|");
        format!(
            "{} | {} | {} | {} | {}",
            self.kind,
            escape(&self.name),
            escape(&self.command),
            self.code,
            escape(&self.message)
        )
    }
}

fn main() -> ExitCode {
    let tests = ["file", "call"]
        .map(|kind| Test {
            name: format!("{kind}s"),
            missing: ["cc", "strace"].into_iter().find(|p| !compile::is_installed(p)).map(str::to_owned),
            limit: LIMIT,
            body: Box::new(move || run(kind)),
        })
        .into();
    isolate::main("bad_input", tests)
}

fn table() -> PathBuf {
    tests_dir().join("bad-input/table.txt")
}

/// Plays all rows of a kind against one target, and compares the whole at the end.
fn run(kind: &str) -> Result<()> {
    let text = std::fs::read_to_string(table())?;
    let mut rows = Vec::new();
    for line in text.lines().filter(|line| line.starts_with(kind)) {
        rows.push(Row::parse(line)?);
    }
    let temporary = tempfile::Builder::new().prefix("ugraft-test.").tempdir()?;
    let world =
        World { directory: temporary.path().to_path_buf(), path: program::search_path(&program::find()?) };
    world.build()?;
    let mut target = Background::start(world.shell("exec ./target", 0))?;
    target.expect("ready", &mut Captures::new())?;
    target.say("1")?;
    target.expect(ANSWER, &mut Captures::new())?;
    let snapshot = Snapshot::settled(target.pid())?;
    let mut seen = Vec::new();
    let mut failures = Vec::new();
    for row in &rows {
        let result = match kind {
            "file" => world.file(row, target.pid()),
            _ => world.call(row, target.pid()),
        };
        let now = result.with_context(|| format!("`{}`", row.name))?;
        if let Err(error) = target.check_alive().and_then(|()| snapshot.check_unchanged(target.pid())) {
            failures.push(format!("`{}` changed the target: {error:#}", row.name));
        }
        seen.push(now);
    }
    target.say("1")?;
    target.expect(ANSWER, &mut Captures::new())?;
    if !failures.is_empty() {
        bail!("{}", failures.join("\n"));
    }
    compare(&text, &rows, &seen)
}

/// What the untouched target answers to `1`.
const ANSWER: &str = "5 4 5 3";

struct World {
    directory: PathBuf,
    path: std::ffi::OsString,
}

impl World {
    fn shell(&self, command: &str, pid: proc::Pid) -> std::process::Command {
        let (sdk, support) = (repository().join("sdk/include"), tests_dir().join("support"));
        let pid = pid.to_string();
        let variables: [(&str, &std::ffi::OsStr); 5] = [
            ("PATH", &self.path),
            ("SDK", sdk.as_os_str()),
            ("SUPPORT", support.as_os_str()),
            ("PID", pid.as_ref()),
            ("NO_COLOR", "1".as_ref()),
        ];
        children::shell(command, &self.directory, variables)
    }

    fn build(&self) -> Result<()> {
        let from = tests_dir().join("bad-input");
        for name in ["good.c", "target.c", "other.c", "helpers.sh"] {
            copy(&from.join(name), &self.directory.join(name))?;
        }
        let build =
            "cc -O2 -g -rdynamic -pthread -I$SUPPORT target.c other.c -o target && cc -c -O2 -I$SDK good.c";
        let built = children::run(self.shell(build, 0))?;
        if built.code != 0 {
            bail!("cannot build the target: {}", built.stderr.join("\n"));
        }
        Ok(())
    }

    /// Makes the wrong file and hands it to `load` and `check` under strace.
    fn file(&self, row: &Row, pid: proc::Pid) -> Result<Row> {
        let made = children::run(self.shell(&format!(". ./helpers.sh; rm -f bad.o; {}", row.command), pid))?;
        if made.code != 0 {
            bail!("cannot make it: {}", made.stderr.join("\n"));
        }
        let said = ["load", "check"]
            .iter()
            .map(|command| {
                // Every way to attach to, stop or write to another process.
                let calls = "ptrace,process_vm_readv,process_vm_writev,kill,tgkill,tkill,pidfd_send_signal,pidfd_open";
                let line =
                    format!("strace -f -qq -e signal=none -e trace={calls} -o trace ugraft {command} bad.o --pid $PID");
                let finished = children::run(self.shell(&line, pid))?;
                let trace = std::fs::read_to_string(self.directory.join("trace"))?;
                // A thread that is at its end when the program ends may be told as `PID ???( <detached ...>`: a call by no name is none of
                // these.
                if trace.lines().any(|line| !line.contains("???(")) {
                    bail!("`{command}` touched a process and said {:?}:\n{trace}", said(&finished));
                }
                Ok(said(&finished))
            })
            .collect::<Result<Vec<_>>>()?;
        if said[0] != said[1] {
            bail!("`load` and `check` differ: {:?} and {:?}", said[0], said[1]);
        }
        Ok(row.with(&said[0]))
    }

    fn call(&self, row: &Row, pid: proc::Pid) -> Result<Row> {
        let finished = children::run(self.shell(&format!(". ./helpers.sh; {}", row.command), pid))?;
        Ok(row.with(&said(&finished)))
    }
}

impl Row {
    fn with(&self, (code, message): &(String, String)) -> Row {
        Row { code: code.clone(), message: message.clone(), ..self.clone() }
    }
}

/// How much of a message the table holds.
const MESSAGE_MAX: usize = 400;

/// Exit code and message: the first line that says something; usage errors go on for some lines.
fn said(finished: &Finished) -> (String, String) {
    let line = finished.stderr.iter().chain(&finished.stdout).find(|line| !line.is_empty());
    (finished.code.to_string(), line.map(|line| line.chars().take(MESSAGE_MAX).collect()).unwrap_or_default())
}

fn compare(table_text: &str, rows: &[Row], seen: &[Row]) -> Result<()> {
    let fits = |row: &Row, seen: &Row| pattern::line_matches(&row.text(), &seen.text(), &mut Captures::new());
    if rows.iter().zip(seen).all(|(row, seen)| fits(row, seen)) && !update::mode().is_wanted() {
        return Ok(());
    }
    if update::mode().is_wanted() {
        let tighten = update::mode() == update::Mode::Tighten;
        let mut text = table_text.to_owned();
        for (row, now) in
            rows.iter().zip(seen).filter(|(row, now)| tighten && row.message == "[..]" || !fits(row, now))
        {
            let general = Row { message: update::general(&now.message, &[]), ..now.clone() };
            text = text.replace(&row.text(), &general.text());
        }
        return Ok(std::fs::write(table(), text)?);
    }
    let text = |rows: &[Row]| rows.iter().map(Row::text).collect::<Vec<_>>();
    bail!("{}", pattern::diff("table", &text(rows), &text(seen)))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    std::fs::copy(from, to).map(|_| ()).with_context(|| format!("cannot copy {}", from.display()))
}
