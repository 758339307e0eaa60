//! Servers that nobody here wrote, each under a load generator of its own, while a patch of a hot function is applied,
//! atomically replaced by a second one, and removed, again and again. docs/servers.md has the whole idea.
//!
//! A server (`redis`, `nginx`, `postgres`, `tokio`) knows how to be started, loaded and asked; the [`campaign`] does the
//! rounds; the `judge` asks all the time and knows which answers are right; `memory` looks at what is left.

pub mod campaign;
mod http;
mod judge;
mod memory;
mod nginx;
mod outcome;
mod postgres;
mod redis;
mod tokio;
mod tool;

pub use outcome::Outcome;

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::children::{self, Background};
use crate::proc::{self, Pid};
use crate::{compile, deadline, isolate, repository, tests_dir};

/// Which versions of its answer a server gives: 0 is the one it was built with, 1 and 2 are those of the patches.
pub type Version = usize;

/// What a campaign on one server is to do.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// How often both patches are applied and removed.
    pub rounds: u32,
    /// How long throughput is measured between two commands.
    pub interval: Duration,
    /// Whether to leave out the look at a child that is started anew.
    pub brief: bool,
}

/// One of the servers.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    /// Its name, which is that of its patches' source, too.
    pub name: &'static str,
    /// Whether it has a process for each connection, and more.
    pub many_processes: bool,
    start: fn(&Path) -> Result<Box<dyn Server>>,
    missing: fn() -> Option<&'static str>,
}

/// All servers.
pub const KINDS: [Kind; 4] = [
    Kind {
        name: "redis",
        many_processes: false,
        start: redis::start,
        missing: || first_missing(&["redis-server", "redis-benchmark"]),
    },
    Kind {
        name: "nginx",
        many_processes: false,
        start: nginx::start,
        missing: || first_missing(&["/usr/sbin/nginx", "wrk"]),
    },
    Kind { name: "postgres", many_processes: true, start: postgres::start, missing: postgres::missing },
    Kind {
        name: "tokio",
        many_processes: false,
        start: tokio::start,
        missing: || first_missing(&["cargo", "wrk"]),
    },
];

impl Kind {
    /// What has to be installed for it and is not.
    pub fn missing(&self) -> Option<&'static str> {
        first_missing(&["cc"]).or_else(self.missing)
    }
}

/// A server that runs.
trait Server {
    /// The process that was started; all others of the server are below it.
    fn process(&mut self) -> &mut Background;

    /// A client that asks for the answer that the patches change.
    fn client(&self) -> Box<dyn Ask>;

    /// Starts the load generator.
    fn load(&mut self) -> Result<Background>;

    /// How many requests the server has answered, if it counts them; else [`Server::end_load`] tells when it did.
    fn served(&mut self) -> Result<Option<u64>>;

    /// Ends the load generator, and tells what it counted.
    fn end_load(&mut self, load: Background) -> Result<Load>;

    /// Ends a child of the server that it will start anew, if there is one.
    fn renewed_child(&mut self) -> Option<Pid> {
        None
    }

    /// Tells the server to end.
    fn end(&mut self) -> Result<()>;

    /// All its processes, the first one first.
    fn processes(&mut self) -> Vec<Pid> {
        let first = self.process().pid();
        std::iter::once(first).chain(proc::descendants(first)).collect()
    }
}

/// A client of a server.
trait Ask: Send {
    /// Asks once, over a connection of its own if `fresh`; fails if the answer is none of the three.
    fn ask(&mut self, fresh: bool) -> Result<Version>;
}

/// What a load generator tells at its end.
#[derive(Debug, Default)]
struct Load {
    requests: u64,
    failed: u64,
    /// When each was answered, in microseconds since 1970, where the server does not count.
    answered: Vec<u64>,
}

/// The user that servers run as, where the tests are run by root: a server of Debian's has one, too.
const NOBODY: u32 = 65534;

/// Starts a program of the server's, in its directory, as an unprivileged user.
fn start_in(directory: &Path, command: &str) -> Result<Background> {
    Background::start(as_nobody(directory, command)?)
}

/// Runs a command to its end, in the server's directory, as the user that it belongs to.
fn run_in(directory: &Path, command: &str) -> Result<Vec<String>> {
    let done = children::run(as_nobody(directory, command)?)?;
    if done.code != 0 {
        bail!("{command}: exit code {}\n{}\n{}", done.code, done.stdout.join("\n"), done.stderr.join("\n"));
    }
    Ok(done.stdout)
}

fn as_nobody(directory: &Path, command: &str) -> Result<std::process::Command> {
    let mut command = children::shell(&format!("exec {command}"), directory, [("LC_ALL", "C".as_ref())]);
    if isolate::is_root() {
        std::os::unix::fs::chown(directory, Some(NOBODY), Some(NOBODY))
            .with_context(|| format!("cannot give {} away", directory.display()))?;
        command.uid(NOBODY).gid(NOBODY);
    }
    Ok(command)
}

/// Compiles both patches of the server, `first.o` and `second.o`.
fn build_patches(kind: &Kind, directory: &Path) -> Result<()> {
    let source = source(&format!("{}.c", kind.name));
    let sdk = repository().join("sdk/include");
    let script = format!(
        "for v in 1:first 2:second; do cc -c -O2 -fPIC -Wall -Werror -Wno-unused-function -I'{}' -DVERSION=${{v%:*}} '{}' -o ${{v#*:}}.o || exit; done",
        sdk.display(),
        source.display()
    );
    let built = children::run(children::shell(&script, directory, []))?;
    if built.code != 0 {
        bail!("cannot build the patches: {}", built.stderr.join("\n"));
    }
    Ok(())
}

/// A file of `tests/servers`.
fn source(name: &str) -> PathBuf {
    tests_dir().join("servers").join(name)
}

fn first_missing(programs: &[&'static str]) -> Option<&'static str> {
    programs.iter().copied().find(|program| !compile::is_installed(program))
}

/// Waits until the server does what it is asked.
fn wait_for<S: Server>(server: &mut S, mut asked: impl FnMut(&mut S) -> Result<()>) -> Result<()> {
    let end = Instant::now() + deadline();
    while let Err(error) = asked(server) {
        server.process().check_alive()?;
        if Instant::now() > end {
            return Err(error.context("the server does not begin to serve"));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}
