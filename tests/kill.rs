//! Kills `ugraft` before its N-th system call, for every N of a load, a replacing load, a disable and an unload, with callbacks, init
//! and exit functions and without, and of setting a parameter, on a target with 16 threads (promise P1: no death of the tool harms the target; promise P2: the next run knows how things stand).
//! What a death leaves is what was written until then: so the tool is also killed before each of its writes into the target, which are few.
//!
//! After each death: every thread of the target goes on and none is stopped or traced, no call has failed and no
//! thread met a mix of versions; `ugraft status` names the state; and the same command given again leads to where the first was to lead,
//! or a reverse leads back.
//!
//! `UGRAFT_KILL_EVERY=K` takes every K-th N only, from 1 on; `cargo xtask kill` takes them all. The everyday tests take a slice.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use ugraft_tests::children::{self, Background, Finished};
use ugraft_tests::isolate::{self, Test};
use ugraft_tests::killer::{self, Calls, End};
use ugraft_tests::pattern::Captures;
use ugraft_tests::{compile, proc, program};

const LIMIT: Duration = Duration::from_secs(4 * 3600);
/// Where nothing is asked for: slices that the everyday tests can afford. A callback is polled for, by many calls alike.
const EVERY: u64 = 61;
const EVERY_OF_CALLBACKS: u64 = 199;
const EVERY_OF_INIT: u64 = 797;
const EVERY_OF_PARAMETERS: u64 = 211;

/// A command to be killed, and the states of the target before and after it.
struct Case {
    name: &'static str,
    before: State,
    command: &'static [&'static str],
    after: State,
    /// Which system calls are died before.
    calls: Calls,
    /// Each how manieth of these in the everyday tests.
    every: u64,
}

/// States of the target that a case begins or ends in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// No patch.
    Bare,
    /// `fix` enabled.
    Fixed,
    /// `cumulative` enabled; nothing else counts.
    Replaced,
    /// `cumulative` loaded, disabled.
    Disabled,
    /// `called`, which has callbacks, enabled.
    Called,
    /// `called` loaded, disabled.
    Uncalled,
    /// `inited`, which has init, exit and parameters, enabled with the parameters as they are in the file.
    Inited,
    /// The same with one parameter changed, or the other.
    Levelled,
    Labelled,
    /// `inited` loaded, disabled.
    Idle,
}

impl State {
    /// The version that answers.
    fn version(self) -> u32 {
        match self {
            State::Bare | State::Disabled | State::Uncalled | State::Idle => 0,
            State::Fixed => 1,
            State::Replaced => 2,
            State::Called => 3,
            State::Inited => 4,
            State::Levelled => 5,
            State::Labelled => 6,
        }
    }
}

/// What leads to [`State::Inited`].
const INITED: [&[&str]; 4] = [
    &["load", "inited.o"],
    &["enable", "inited"],
    &["param", "inited", "level=0"],
    &["param", "inited", "label=0"],
];

const CASES: [Case; 14] = [
    case("load", State::Bare, &["load", "fix.o"], State::Fixed, EVERY),
    case("replace", State::Fixed, &["load", "cumulative.o"], State::Replaced, EVERY),
    case("disable", State::Replaced, &["disable", "cumulative"], State::Disabled, EVERY),
    case("unload", State::Disabled, &["unload", "cumulative"], State::Bare, EVERY),
    writes("load-writes", State::Bare, &["load", "fix.o"], State::Fixed, 1),
    writes("replace-writes", State::Fixed, &["load", "cumulative.o"], State::Replaced, 3),
    writes("disable-writes", State::Replaced, &["disable", "cumulative"], State::Disabled, 2),
    writes("unload-writes", State::Disabled, &["unload", "cumulative"], State::Bare, 2),
    case("callbacks-in", State::Bare, &["load", "called.o"], State::Called, EVERY_OF_CALLBACKS),
    case("callbacks-out", State::Called, &["disable", "called"], State::Uncalled, EVERY_OF_CALLBACKS),
    case("init", State::Bare, &["load", "inited.o"], State::Inited, EVERY_OF_INIT),
    case("exit", State::Idle, &["unload", "inited"], State::Bare, EVERY_OF_INIT),
    case("number", State::Inited, &["param", "inited", "level=1"], State::Levelled, EVERY_OF_PARAMETERS),
    case("text", State::Inited, &["param", "inited", "label=2"], State::Labelled, EVERY_OF_PARAMETERS),
];

const fn case(
    name: &'static str,
    before: State,
    command: &'static [&'static str],
    after: State,
    every: u64,
) -> Case {
    Case { name, before, command, after, calls: Calls::All, every }
}

const fn writes(
    name: &'static str,
    before: State,
    command: &'static [&'static str],
    after: State,
    every: u64,
) -> Case {
    Case { calls: Calls::Writes, ..case(name, before, command, after, every) }
}

fn main() -> ExitCode {
    let missing = (!compile::is_installed("cc")).then(|| "cc".to_owned());
    let tests = CASES.map(|case| Test {
        name: case.name.to_owned(),
        missing: missing.clone(),
        limit: LIMIT,
        body: Box::new(move || run(&case)),
    });
    isolate::main("kill", tests.into())
}

fn run(case: &Case) -> Result<()> {
    let temporary = tempfile::Builder::new().prefix("ugraft-test.").tempdir()?;
    let mut world = World::start(temporary.path())?;
    let command = case.command.join(" ");
    killer::each_call(case.every, |n| {
        let context = || format!("`{command}` killed before its system call {n} ({:?})", case.calls);
        world.round(case, n).with_context(context)
    })
}

struct World {
    directory: PathBuf,
    program: PathBuf,
    target: Background,
}

impl World {
    fn start(directory: &Path) -> Result<World> {
        let patches = [("fix.c", ""), ("cumulative.c", ""), ("called.c", "-fPIC"), ("inited.c", "-fPIC")];
        compile::build_in(directory, "kill", &patches)?;
        let mut target = Background::start(children::shell("exec ./target", directory, []))?;
        target.expect("ready", &mut Captures::new())?;
        Ok(World { directory: directory.to_path_buf(), program: program::find()?, target })
    }

    /// One death and what follows. Returns whether the command ended before it could be killed.
    fn round(&mut self, case: &Case, n: u64) -> Result<bool> {
        self.bring_to(case.before)?;
        let mut command = self.ugraft(case.command);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let end = killer::run(command, case.calls, n)?;
        self.target.check_let_go()?;
        let seen = self.works()?;
        if let End::Exited { code, calls } = end {
            if code != 0 || seen != case.after.version() {
                bail!("left alone it made {calls} calls, ended with {code} and version {seen} answers");
            }
            return Ok(true);
        }
        let status = self.run(&["status"])?;
        match status.code {
            0 | 3 | 5 => {}
            _ => bail!("status does not name the state: {}", status.told()),
        }
        let in_transition = status.code == 5;
        // Every other time back instead of on, where there is a choice.
        if in_transition && n.is_multiple_of(2) {
            let reversed = self.run(&["reverse"])?;
            if reversed.code != 0 {
                bail!("cannot reverse: {}\nafter: {}", reversed.told(), status.told());
            }
        }
        self.bring_to(case.after).with_context(|| format!("after: {}", status.told()))?;
        Ok(false)
    }

    /// Gives commands until the target is in that state; each step must succeed or be so already.
    fn bring_to(&mut self, state: State) -> Result<()> {
        // A patch is loaded, enabled, disabled, unloaded by its own command each; what is not there need not go.
        let steps: &[&[&str]] = match state {
            State::Bare => &[
                &["disable", "cumulative"],
                &["disable", "fix"],
                &["disable", "called"],
                &["disable", "inited"],
                &["unload", "cumulative"],
                &["unload", "fix"],
                &["unload", "called"],
                &["unload", "inited"],
            ],
            State::Fixed => &[
                &["disable", "cumulative"],
                &["unload", "cumulative"],
                &["unload", "fix"],
                &["load", "fix.o"],
                &["enable", "fix"],
            ],
            State::Replaced => &[&["load", "cumulative.o"], &["enable", "cumulative"]],
            State::Disabled => {
                &[&["load", "cumulative.o", "--disabled"], &["disable", "cumulative"], &["unload", "fix"]]
            }
            State::Called => &[&["load", "called.o"], &["enable", "called"]],
            State::Uncalled => &[&["load", "called.o", "--disabled"], &["disable", "called"]],
            State::Inited => &INITED,
            State::Levelled => &[INITED[0], INITED[1], &["param", "inited", "level=1"], INITED[3]],
            State::Labelled => &[INITED[0], INITED[1], INITED[2], &["param", "inited", "label=2"]],
            State::Idle => &[&["load", "inited.o", "--disabled"], &["disable", "inited"]],
        };
        let mut story = String::new();
        for step in steps {
            let finished = self.run(step)?;
            story.push_str(&format!("{}: {}\n", step.join(" "), finished.told()));
        }
        let version = self.works().with_context(|| story.clone())?;
        let status = self.run(&["status", "--json"])?;
        let is_so = version == state.version() && status.code == if state == State::Bare { 3 } else { 0 };
        if !is_so {
            bail!(
                "the target does not become {state:?}: version {version} answers\n{story}{}",
                status.told()
            );
        }
        self.target.check_let_go()?;
        let left = proc::ugraft_maps(self.target.pid())?;
        if state == State::Bare && !left.is_empty() {
            bail!("mappings are left:\n{}\n{story}", left.join("\n"));
        }
        Ok(())
    }

    /// Every thread goes round, nothing was disturbed; returns the version that answers.
    fn works(&mut self) -> Result<u32> {
        self.target.say("work")?;
        let mut captures = Captures::new();
        self.target.expect("works, version [=version]", &mut captures)?;
        self.target.never("complaint: [..]")?;
        captures["version"].parse().context("no version")
    }

    fn ugraft(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(args).arg("--pid").arg(self.target.pid().to_string()).current_dir(&self.directory);
        if !args.contains(&"status") && !args.contains(&"param") {
            // A busy machine makes a transition slow, which is not what is looked at here.
            command.args(["--timeout", "60s"]);
        }
        command
    }

    fn run(&self, args: &[&str]) -> Result<Finished> {
        children::run(self.ugraft(args))
    }
}
