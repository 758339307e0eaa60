//! `ugraft demo`: a server of ours is patched, patched again, given a replacing patch and restored, under load.
//!
//! Everything that is needed is inside this program: the server and the patches are C sources that are compiled in a
//! temporary directory with `cc`, the clients are threads. Each step runs this very program as an engineer would, and
//! reads what it says as JSON. Clients check every answer; an answer that is wrong for its time is an error, and the
//! demonstration fails.

mod clients;

use crate::args::{DemoArgs, OutputArgs};
use crate::output::Outcome;
use anyhow::{Context, Result, bail};
use clients::{Clients, Served, Version};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const SERVER: &str = include_str!("../../../demo/server.c");
const HEADER: &str = include_str!("../../../sdk/include/ugraft/livepatch.h");
const PATCHES: [(&str, &str); 3] = [
    ("fix-price", include_str!("../../../demo/fix-price.c")),
    ("fix-checksum", include_str!("../../../demo/fix-checksum.c")),
    ("cumulative", include_str!("../../../demo/cumulative.c")),
];

/// One step: what is typed, what it is for, and which versions of the two functions answer afterwards.
struct Step {
    command: &'static str,
    name: &'static str,
    what: &'static str,
    price: Version,
    checksum: Version,
}

const STEPS: [Step; 6] = [
    Step {
        command: "load",
        name: "fix-price",
        what: "the price is right",
        price: Version::New,
        checksum: Version::Old,
    },
    Step {
        command: "load",
        name: "fix-checksum",
        what: "the checksum too",
        price: Version::New,
        checksum: Version::New,
    },
    Step {
        command: "load",
        name: "cumulative",
        what: "replaces both, drops the price fix",
        price: Version::Old,
        checksum: Version::New,
    },
    Step {
        command: "disable",
        name: "cumulative",
        what: "as it was built",
        price: Version::Old,
        checksum: Version::Old,
    },
    Step {
        command: "unload",
        name: "fix-price",
        what: "replaced patches go",
        price: Version::Old,
        checksum: Version::Old,
    },
    Step { command: "unload", name: "fix-checksum", what: "", price: Version::Old, checksum: Version::Old },
];

/// The last step stands alone: afterwards nothing of ours may be left in the server.
const LAST: Step = Step {
    command: "unload",
    name: "cumulative",
    what: "nothing is left",
    price: Version::Old,
    checksum: Version::Old,
};

/// Runs the demonstration and prints it as it happens (nothing but the summary with `--json`).
pub fn run(args: &DemoArgs, how: OutputArgs) -> Result<Outcome> {
    let say = |line: &str| {
        if !how.json && !how.quiet {
            let _ = writeln!(std::io::stdout(), "{line}");
            let _ = std::io::stdout().flush();
        }
    };
    let directory = Directory::create()?;
    say("Compiling a server and three patches with cc ...");
    compile(&directory.0)?;
    let server = Server::start(&directory.0)?;
    let clients = Clients::start(server.port)?;
    say(&format!(
        "The server runs: pid {}, {} threads, 127.0.0.1:{}; {} clients ask it without pause.",
        server.child.id(),
        server.threads(),
        server.port,
        clients.number()
    ));
    say("");
    say(&heading());
    let mut total = Served::default();
    let mut steps = Vec::new();
    let first = serve(&clients, args.step, &mut total);
    say(&line("", "as it was built", None, &first));
    for step in STEPS.iter().chain([&LAST]) {
        clients.expect(None);
        let done = perform(step, &directory.0, server.child.id())?;
        clients.expect(Some((step.price, step.checksum)));
        let served = serve(&clients, args.step, &mut total);
        say(&line(&format!("{} {}", step.command, step.name), step.what, Some(&done), &served));
        steps.push(json!({
            "command": step.command,
            "patch": step.name,
            "wall_us": done.wall.as_micros() as u64,
            "result": done.result,
            "served": served.requests,
            "errors": served.errors,
            "longest_answer_us": served.longest.as_micros() as u64,
        }));
    }
    let failure = clients.stop();
    total.errors = failure.errors.max(total.errors);
    let left = server.mappings_of_ours();
    say("");
    say(&format!(
        "{} requests served, {} errors; mappings left in the server: {left}.",
        grouped(total.requests),
        total.errors
    ));
    let mut outcome = Outcome::new(
        json!({ "steps": steps, "served": total.requests, "errors": total.errors, "mappings_left": left }),
        String::new(),
    );
    if total.errors > 0 || left > 0 {
        outcome.exit_code = 1;
        outcome.notes.push(match failure.first {
            Some(first) => format!("the demonstration failed; the first error: {first}"),
            None => "the demonstration failed: something is left in the server".to_owned(),
        });
    }
    Ok(outcome)
}

/// Lets the clients run for the time of a step, and says what they got from its beginning on.
fn serve(clients: &Clients, time: Duration, total: &mut Served) -> Served {
    std::thread::sleep(time);
    let served = clients.take();
    total.requests += served.requests;
    total.errors += served.errors;
    served
}

/// What a step took.
struct Done {
    wall: Duration,
    result: Value,
}

/// Types the command of a step.
fn perform(step: &Step, directory: &Path, server: u32) -> Result<Done> {
    let program = std::env::current_exe().context("cannot find this program's own file")?;
    let mut command = Command::new(program);
    command.arg(step.command);
    match step.command {
        "load" => command.arg(directory.join(step.name).with_extension("o")),
        _ => command.arg(step.name),
    };
    command.args(["--json", "--pid", &server.to_string()]).stdin(Stdio::null());
    let begun = Instant::now();
    let output = command.output().context("cannot run this program again")?;
    let wall = begun.elapsed();
    let said = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        bail!(
            "`{} {}` failed ({}): {said}{}",
            step.command,
            step.name,
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
    }
    let result = serde_json::from_str(&said).with_context(|| format!("this program said no JSON: {said}"))?;
    Ok(Done { wall, result })
}

fn heading() -> String {
    format!(
        "{:<22} {:>8} {:>9}   {:>9} {:>6} {:>9}   {:<14} {}",
        "command", "took", "pause", "requests", "errors", "slowest", "price checksum", "what it does"
    )
}

/// One line of the table: a command, what it cost, and what the clients saw since.
fn line(command: &str, what: &str, done: Option<&Done>, served: &Served) -> String {
    let ms = |d: Duration| format!("{:.1} ms", d.as_secs_f64() * 1000.0);
    let pause =
        done.and_then(|d| longest_pause(&d.result)).map(|d| format!("{:.2} ms", d.as_secs_f64() * 1000.0));
    format!(
        "{:<22} {:>8} {:>9}   {:>9} {:>6} {:>9}   {:<5} {:<8} {}",
        command,
        done.map(|d| ms(d.wall)).unwrap_or_default(),
        pause.unwrap_or_default(),
        grouped(served.requests),
        served.errors,
        ms(served.longest),
        served.price(),
        served.checksum(),
        what
    )
    .trim_end()
    .to_owned()
}

/// The longest time for which the command stopped one of the server's threads, from its JSON.
fn longest_pause(result: &Value) -> Option<Duration> {
    let nanoseconds = result.pointer("/report/cost/longest_pause_ns").and_then(Value::as_u64)?;
    Some(Duration::from_nanos(nanoseconds))
}

fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

fn compile(directory: &Path) -> Result<()> {
    let include = directory.join("ugraft");
    std::fs::create_dir(&include)?;
    std::fs::write(include.join("livepatch.h"), HEADER)?;
    std::fs::write(directory.join("server.c"), SERVER)?;
    cc(directory, &["-O2", "-g", "-pthread", "-o", "server", "server.c"])?;
    for (name, source) in PATCHES {
        let file = format!("{name}.c");
        std::fs::write(directory.join(&file), source)?;
        cc(directory, &["-O2", "-I", ".", "-c", &file])?;
    }
    Ok(())
}

fn cc(directory: &Path, args: &[&str]) -> Result<()> {
    let output = Command::new("cc")
        .args(args)
        .current_dir(directory)
        .output()
        .context("cannot run cc: the demonstration needs a C compiler")?;
    if !output.status.success() {
        bail!("cc {} failed:\n{}", args.join(" "), String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

/// A temporary directory that goes when the demonstration ends.
struct Directory(PathBuf);

impl Directory {
    fn create() -> Result<Directory> {
        let path = std::env::temp_dir().join(format!("ugraft-demo.{}", std::process::id()));
        std::fs::create_dir(&path)
            .with_context(|| format!("cannot make the directory {}", path.display()))?;
        Ok(Directory(path))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The running server. It ends when its standard input does, so it cannot outlive this program.
struct Server {
    child: Child,
    port: u16,
}

impl Server {
    fn start(directory: &Path) -> Result<Server> {
        let mut child = Command::new(directory.join("server"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start the server")?;
        let stdout = child.stdout.take().context("the server has no output")?;
        let mut server = Server { child, port: 0 };
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line).context("the server said nothing")?;
        let port = line.trim_end().rsplit(':').next().and_then(|port| port.parse().ok());
        server.port = port.with_context(|| format!("the server did not say where it listens: {line}"))?;
        Ok(server)
    }

    fn threads(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/task", self.child.id())).map(Iterator::count).unwrap_or(0)
    }

    fn mappings_of_ours(&self) -> usize {
        let maps = std::fs::read_to_string(format!("/proc/{}/maps", self.child.id())).unwrap_or_default();
        maps.lines().filter(|line| line.contains("/memfd:ugraft")).count()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_grouped() {
        assert_eq!(
            (grouped(7), grouped(1000), grouped(1234567)),
            ("7".into(), "1,000".into(), "1,234,567".into())
        );
    }

    #[test]
    fn the_sources_inside_the_program_compile() {
        let directory = Directory::create().unwrap();
        compile(&directory.0).unwrap();
        for name in ["server", "fix-price.o", "fix-checksum.o", "cumulative.o"] {
            assert!(directory.0.join(name).exists(), "{name}");
        }
    }
}
