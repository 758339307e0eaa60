//! The commands: each asks the library and makes an [`Outcome`] of the answer.

use crate::args::{
    ChangeArgs, CheckArgs, ForceArgs, InfoArgs, ListArgs, LoadArgs, LogArgs, LogLevel, ParamArgs, SymbolsArgs,
};
use crate::args::{Scan, TargetArgs, TransitionArgs, TransitionOptions, UnloadArgs, WaitArgs};
use crate::exit;
use crate::output::{Notes, Outcome};
use crate::text;
use anyhow::{Context, Result};
use serde_json::json;
use std::path::Path;
use std::time::{Duration, Instant};
use ugraft_image::PatchFile;
use ugraft_process::answers::Report;
use ugraft_process::report::check;
use ugraft_process::report::status;
use ugraft_process::session::requests::Options;
use ugraft_process::session::{self, Session};
use ugraft_process::state::log_ring::Level;
use ugraft_process::{Error, Pid};

/// How long `force` may wait for the one stop it needs.
const FORCE_WITHIN: Duration = Duration::from_secs(10);

/// `ugraft load FILE`
pub fn load(args: &LoadArgs) -> Result<Outcome> {
    let patch = read_patch(&args.file)?;
    let _prompt = session::prepare();
    let options = options(args.transition, args.ignore_order);
    let values = patch.metadata().values(&args.params)?;
    let report = change(args.target, |session| {
        session.set_params(values);
        session.load(&patch, !args.disabled, options)
    })?;
    let done = if args.disabled { "loaded, disabled" } else { "enabled" };
    Ok(changed(&report, done))
}

/// `ugraft enable NAME`
pub fn enable(args: &ChangeArgs) -> Result<Outcome> {
    let _prompt = session::prepare();
    let options = options(args.transition, args.ignore_order);
    let report = change(args.target, |session| session.enable(&args.name, options))?;
    Ok(changed(&report, "enabled"))
}

/// `ugraft disable NAME`
pub fn disable(args: &ChangeArgs) -> Result<Outcome> {
    let _prompt = session::prepare();
    let options = options(args.transition, args.ignore_order);
    let report = change(args.target, |session| session.disable(&args.name, options))?;
    Ok(changed(&report, "disabled"))
}

/// `ugraft unload NAME`
pub fn unload(args: &UnloadArgs) -> Result<Outcome> {
    let options = within(args.timeout.timeout);
    let report = change(args.target, |session| session.unload(&args.name, options))?;
    Ok(changed(&report, "unloaded"))
}

/// `ugraft wait NAME`
pub fn wait(args: &WaitArgs) -> Result<Outcome> {
    let deadline = Instant::now() + args.timeout;
    let session = Session::open_by(pid(args.target), deadline)?;
    let left = deadline.saturating_duration_since(Instant::now());
    let report = noted(session, |session| session.wait(&args.name, within(left)))?;
    let life = report.life.map(|life| life.to_string()).unwrap_or_default();
    Ok(changed(&report, &life))
}

/// `ugraft reverse`
pub fn reverse(args: &TransitionArgs) -> Result<Outcome> {
    let report = change(args.target, |session| session.reverse(within(args.timeout.timeout)))?;
    Ok(changed(&report, "reversed"))
}

/// `ugraft force`
pub fn force(args: &ForceArgs) -> Result<Outcome> {
    let report = change(args.target, |session| session.force(within(FORCE_WITHIN)))?;
    let mut outcome = changed(&report, "forced");
    let mixed = "threads that were still in the other version may run a mix of both until they leave it";
    outcome.notes.push(match &report.forced[..] {
        [] => mixed.to_owned(),
        patches => format!(
            "{mixed}; the memory of {} stays for ever, since they may be in it",
            patches.iter().map(|name| format!("patch '{name}'")).collect::<Vec<_>>().join(", ")
        ),
    });
    Ok(outcome)
}

/// `ugraft list`
pub fn list(args: &ListArgs) -> Result<Outcome> {
    let Some(pid) = args.pid else {
        let all: Vec<_> =
            status::patched_processes().into_iter().filter_map(|pid| status::standing(pid).ok()).collect();
        return Ok(Outcome::new(json!({ "processes": all }), text::processes(&all)));
    };
    let status = status::standing(Pid(pid))?;
    if status.patches.is_empty() {
        return Err(Error::NotPatched(Pid(pid)).into());
    }
    Ok(Outcome::new(json!({ "pid": pid, "patches": status.patches }), text::patches(&status.patches)))
}

/// `ugraft status`
pub fn status(args: TargetArgs) -> Result<Outcome> {
    let status = status::status(pid(args))?;
    let mut outcome = Outcome::new(json!({ "status": status }), text::status(&status));
    if status.patches.is_empty() {
        outcome.exit_code = exit::NOT_PATCHED;
    } else if status.transition.is_some() {
        outcome.exit_code = exit::IN_TRANSITION;
    }
    Ok(outcome)
}

/// `ugraft log`
pub fn log(args: &LogArgs) -> Result<Outcome> {
    let least = match args.level {
        LogLevel::Err => Level::Err,
        LogLevel::Warn => Level::Warn,
        LogLevel::Notice => Level::Notice,
        LogLevel::Info => Level::Info,
        LogLevel::Debug => Level::Debug,
    };
    let mut records = status::log(pid(args.target))?;
    records.retain(|record| record.level <= least);
    Ok(Outcome::new(json!({ "messages": records }), text::log(&records)))
}

/// `ugraft param NAME [PARAMETER[=VALUE]]`
pub fn param(args: &ParamArgs) -> Result<Outcome> {
    let pid = pid(args.target);
    let params = match args.param.as_deref().map(|param| (param, param.split_once('='))) {
        Some((_, Some((name, value)))) => vec![Session::open(pid)?.set_param(&args.name, name, value)?],
        Some((name, None)) => {
            let all = status::params(pid, &args.name)?;
            let found: Vec<_> = all.into_iter().filter(|param| param.name == name).collect();
            if found.is_empty() {
                let (patch, name) = (args.name.clone(), name.to_owned());
                return Err(Error::NoParam { patch, name }.into());
            }
            found
        }
        None => status::params(pid, &args.name)?,
    };
    let lines: Vec<_> = params.iter().map(|param| format!("{}={}", param.name, param.value)).collect();
    Ok(Outcome::new(json!({ "params": params }), lines.join("\n")))
}

/// `ugraft symbols NAME -o FILE`
pub fn symbols(args: &SymbolsArgs) -> Result<Outcome> {
    let bytes = status::symbol_file(pid(args.target), &args.name)?;
    std::fs::write(&args.output, bytes).with_context(|| format!("cannot write {}", args.output.display()))?;
    let command = format!("add-symbol-file {}", args.output.display());
    Ok(Outcome::new(json!({ "file": args.output, "gdb": command }), format!("in gdb: {command}")))
}

/// `ugraft info FILE`
pub fn info(args: &InfoArgs) -> Result<Outcome> {
    let patch = read_patch(&args.file)?;
    let imports: Vec<_> = patch.imports().iter().map(|import| import.display_name()).collect();
    let json = json!({ "patch": patch.metadata(), "size": patch.layout().size, "imports": imports });
    Ok(Outcome::new(json, text::info(&patch)))
}

/// `ugraft check FILE`
pub fn check(args: &CheckArgs) -> Result<Outcome> {
    let patch = read_patch(&args.file)?;
    let report = check::check(&patch, pid(args.target))?;
    let mut outcome = Outcome::new(json!({ "check": report }), text::check(&report));
    if !report.ok {
        outcome.exit_code = exit::UNSAFE;
    }
    Ok(outcome)
}

/// Changes a target.
fn change(
    target: TargetArgs,
    request: impl FnOnce(&mut Session) -> ugraft_process::Result<Report>,
) -> Result<Report> {
    noted(Session::open(pid(target))?, request)
}

/// What a request leads to; a failure with the remarks that were made on the way.
fn noted(
    mut session: Session,
    request: impl FnOnce(&mut Session) -> ugraft_process::Result<Report>,
) -> Result<Report> {
    request(&mut session).map_err(|e| match session.notes() {
        [] => e.into(),
        notes => anyhow::Error::new(e).context(Notes(notes.to_vec())),
    })
}

fn pid(args: TargetArgs) -> Pid {
    Pid(args.pid)
}

fn options(how: TransitionOptions, ignore_order: bool) -> Options {
    let scan_memory = how.scan == Scan::Memory;
    Options { timeout: how.timeout.timeout, ignore_order, keep: how.keep, scan_memory }
}

fn within(timeout: Duration) -> Options {
    Options { timeout, ..Options::default() }
}

fn changed(report: &Report, done: &str) -> Outcome {
    let text = match &report.already {
        Some(already) => already.clone(),
        None => text::changed(report, done),
    };
    let mut outcome = Outcome::new(json!({ "report": report }), text);
    outcome.notes = report.notes.clone();
    outcome
}

/// Reads and verifies a patch file; nothing else is looked at before that has succeeded.
fn read_patch(path: &Path) -> Result<PatchFile> {
    let bytes = read_file(path).map_err(|source| exit::Unreadable { path: path.to_owned(), source })?;
    let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    PatchFile::parse(&bytes, &stem).with_context(|| format!("{}", path.display()))
}

fn read_file(path: &Path) -> std::io::Result<Vec<u8>> {
    use std::io::Read;
    use std::os::unix::fs::OpenOptionsExt;
    // A pipe without a writer would be waited for until one comes.
    let file = std::fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(std::io::Error::other("it is not a regular file"));
    }
    let mut bytes = Vec::new();
    // One byte more than is allowed tells a file that is too large without reading it all.
    file.take(ugraft_image::limits::MAX_FILE_SIZE as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}
