//! What people read: tables and a few words.

use crate::output::colours;
use comfy_table::{Attribute, Cell, Color, ContentArrangement, Table, presets};
use std::time::{Duration, SystemTime};
use ugraft_core::{Life, PatchStatus};
use ugraft_image::PatchFile;
use ugraft_process::answers::{Blocked, Report, Status, ToolReport, TransitionReport};
use ugraft_process::report::check::CheckReport;
use ugraft_process::state::log_ring::{Level, Record};

/// What a change has led to, in one line.
pub fn changed(report: &Report, done: &str) -> String {
    let mut text = format!("patch '{}': {done}", report.patch);
    if !report.replaced.is_empty() {
        text += &format!("; replaced {}", report.replaced.join(", "));
    }
    let cost = &report.cost;
    if cost.stops > 0 {
        text += &format!(
            " ({}, longest pause {}, {} in all)",
            count(cost.threads, "thread"),
            time(cost.longest_pause),
            time(cost.elapsed)
        );
    }
    text
}

/// A table of patches.
pub fn patches(patches: &[PatchStatus]) -> String {
    let mut table = table(&["patch", "version", "state", "objects", "functions"]);
    for patch in patches {
        let objects = patch.objects.iter().map(|o| object(o.name.as_deref()).to_owned() + unloaded(o.loaded));
        let functions = patch.objects.iter().flat_map(|o| &o.funcs).map(|f| {
            let position = if f.sympos > 1 { format!(",{}", f.sympos) } else { String::new() };
            format!("{}{position}{}", f.name, if f.nop { " (nop)" } else { "" })
        });
        table.add_row(vec![
            Cell::new(&patch.name),
            Cell::new(&patch.version),
            life(patch),
            Cell::new(lines(objects)),
            Cell::new(lines(functions)),
        ]);
    }
    table.to_string()
}

/// A table of patched processes.
pub fn processes(all: &[Status]) -> String {
    if all.is_empty() {
        return "no process is patched".to_owned();
    }
    let mut table = table(&["pid", "process", "patches", "transition"]);
    for status in all {
        let names = status.patches.iter().map(|p| format!("{} ({})", p.name, p.life));
        let transition =
            status.transition.as_ref().map_or(String::new(), |t| format!("{} {}", t.patch, t.direction));
        table.add_row(vec![status.pid.to_string(), status.comm.clone(), lines(names), transition]);
    }
    table.to_string()
}

/// A target as it stands.
pub fn status(status: &Status) -> String {
    let mut text = format!("process {} ({})", status.pid, status.comm);
    if status.patches.is_empty() {
        text += ": not patched";
    } else {
        text += &format!("\n{}", patches(&status.patches));
    }
    if status.tool_at_work {
        text += &format!("\n{}", at_work(status.tool.as_ref()));
    }
    if let Some(hook) = &status.hook {
        text += &format!(
            "\nthread {} ({}) has been in the {} callback of patch '{}' for the library '{}' for {}: until it returns no thread can \
             load or unload another, and no command can change anything",
            hook.tid,
            hook.comm,
            hook.callback,
            hook.patch,
            hook.object,
            time(hook.since)
        );
    }
    match &status.transition {
        Some(t) => text += &format!("\n{}", transition(t)),
        None if !status.patches.is_empty() => text += "\nno patch is in transition",
        None => {}
    }
    text
}

fn at_work(tool: Option<&ToolReport>) -> String {
    match tool {
        None => "another ugraft is at work on it".to_owned(),
        Some(ToolReport { pid, stopped: false }) => format!("another ugraft (pid {pid}) is at work on it"),
        Some(ToolReport { pid, stopped: true }) => format!(
            "another ugraft (pid {pid}) is at work on it, and is stopped: continue it (`kill -CONT {pid}`), or kill it, and \
             the next command takes its work up"
        ),
    }
}

fn transition(t: &TransitionReport) -> String {
    let mut text = if t.begun {
        format!(
            "patch '{}' is in transition ({}) for {}: {} of {} threads have not switched",
            t.patch,
            t.direction,
            time(t.since),
            t.pending,
            t.threads
        )
    } else {
        format!(
            "patch '{}' is in transition ({}), which has not begun: nothing has changed yet",
            t.patch, t.direction
        )
    };
    for blocked in &t.blockers {
        text += &format!("\n{}", blocker(blocked));
    }
    if let Some(call) = &t.callback {
        let object = call.object.as_deref().unwrap_or("the main executable");
        let thread = call.tid.map_or(String::new(), |tid| format!(", which thread {tid} was given"));
        text += &format!("\n  it waits for the {} callback for {object}{thread}", call.callback);
    }
    let wait = format!("\n`ugraft wait {}` carries it on, as any command does", t.patch);
    text + &wait + "; `ugraft reverse` turns it round, `ugraft force` completes it unproved"
}

fn blocker(b: &Blocked) -> String {
    let function = b.function.as_deref().map(|f| format!("{f}: ")).unwrap_or_default();
    let mut text = format!("  {}: {function}{}, for {}", b.who(), b.reason, time(b.since));
    text += &format!("\n    what helps: {}", b.advice);
    for (i, frame) in b.backtrace.iter().enumerate() {
        text += &format!("\n    #{i} {} {}", frame.addr, frame.symbol.as_deref().unwrap_or("?"));
    }
    text
}

/// The messages, with their times in UTC.
pub fn log(records: &[Record]) -> String {
    let line = |r: &Record| format!("{} {}{}", utc(r.time_ns), level(r.level), r.text);
    records.iter().map(line).collect::<Vec<_>>().join("\n")
}

fn level(level: Level) -> &'static str {
    match level {
        Level::Err => "error: ",
        Level::Warn => "warning: ",
        Level::Notice | Level::Info | Level::Debug => "",
    }
}

/// A patch file.
pub fn info(patch: &PatchFile) -> String {
    let m = patch.metadata();
    let mut lines = vec![format!("name:        {}", m.name)];
    let mut field = |name: &str, value: Option<&str>| {
        if let Some(value) = value {
            lines.push(format!("{:<13}{value}", format!("{name}:")));
        }
    };
    field("version", m.version.as_deref());
    field("description", m.description.as_deref());
    field("license", m.license.as_deref());
    field("replace", Some(if m.replace { "yes" } else { "no" }));
    if !m.depends.is_empty() {
        field("depends", Some(&m.depends.join(", ")));
    }
    for state in &m.states {
        field("state", Some(&format!("{:#x}, version {}", state.id, state.version)));
    }
    for param in &m.params {
        field("parameter", Some(&format!("{} ({})", param.name, param.kind.name())));
    }
    field("size", Some(&format!("{} bytes", patch.layout().size)));
    for o in &m.objects {
        let id = o.build_id.as_ref().map(|id| format!(" (build-id {})", hex(id))).unwrap_or_default();
        lines.push(format!("object:      {}{id}", object(o.name.as_deref())));
        for f in &o.funcs {
            let position = if f.old_sympos > 0 { format!(",{}", f.old_sympos) } else { String::new() };
            lines.push(format!("  {}{position} -> {}", f.old_name, f.new_func));
        }
    }
    lines.join("\n")
}

/// A try of a patch on a target.
pub fn check(report: &CheckReport) -> String {
    let mut table = table(&["object", "function", "address", "verdict"]);
    for f in &report.funcs {
        let addr = f.addr.map_or(String::new(), |a| a.to_string());
        table.add_row(vec![object(f.object.as_deref()), &f.name, &addr, &f.verdict]);
    }
    let mut text = table.to_string();
    for problem in &report.problems {
        text += &format!("\n{problem}");
    }
    for note in &report.notes {
        text += &format!("\nnote: {note}");
    }
    let verdict = if report.ok { "can be loaded into" } else { "cannot be loaded into" };
    text + &format!("\npatch '{}' {verdict} process {}", report.patch, report.pid)
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    if colours() {
        table.enforce_styling();
        table.set_header(header.iter().map(|h| Cell::new(h).add_attribute(Attribute::Bold)));
    } else {
        table.force_no_tty();
        table.set_header(header);
    }
    table
}

fn life(patch: &PatchStatus) -> Cell {
    let forced = if patch.forced { ", forced: its memory stays" } else { "" };
    let by = patch.replaced_by.as_ref().map(|by| format!(" by {by}")).unwrap_or_default();
    let cell = Cell::new(format!("{}{by}{forced}", patch.life));
    if !colours() {
        return cell;
    }
    match patch.life {
        Life::Enabled => cell.fg(Color::Green),
        Life::Enabling | Life::Disabling => cell.fg(Color::Yellow),
        Life::Disabled | Life::Replaced => cell.add_attribute(Attribute::Dim),
    }
}

fn object(name: Option<&str>) -> &str {
    name.unwrap_or("(executable)")
}

fn unloaded(loaded: bool) -> &'static str {
    if loaded { "" } else { " (not loaded)" }
}

fn lines(items: impl Iterator<Item = String>) -> String {
    items.collect::<Vec<_>>().join("\n")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// So many of a thing, with its name in the number that fits.
fn count(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// A time in the unit that fits.
pub fn time(duration: Duration) -> String {
    let seconds = duration.as_secs_f64();
    match seconds {
        s if s < 1e-3 => format!("{:.0} us", s * 1e6),
        s if s < 1.0 => format!("{:.1} ms", s * 1e3),
        s if s < 120.0 => format!("{s:.1} s"),
        s => format!("{:.0} min", s / 60.0),
    }
}

/// A moment as RFC 3339 has it, to the microsecond.
fn utc(time_ns: u64) -> String {
    let since = SystemTime::UNIX_EPOCH + Duration::from_nanos(time_ns);
    let seconds = since.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs()) as i64;
    let (days, of_day) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let (year, month, day) = civil(days);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:06}Z",
        of_day / 3600,
        of_day / 60 % 60,
        of_day % 60,
        time_ns / 1000 % 1_000_000
    )
}

/// Year, month and day of a day counted from 1970-01-01 (Howard Hinnant, "chrono-Compatible Low-Level Date
/// Algorithms", `civil_from_days`).
fn civil(days: i64) -> (i64, i64, i64) {
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let doe = z.rem_euclid(146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    (yoe + era * 400 + i64::from(month <= 2), month, doy - (153 * mp + 2) / 5 + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments() {
        assert_eq!(utc(0), "1970-01-01T00:00:00.000000Z");
        assert_eq!(utc(951_782_400_000_001_000), "2000-02-29T00:00:00.000001Z");
        assert_eq!(utc(1_795_365_273_123_456_789), "2026-11-22T16:34:33.123456Z");
    }

    #[test]
    fn times_have_the_unit_that_fits() {
        assert_eq!(time(Duration::from_micros(42)), "42 us");
        assert_eq!(time(Duration::from_micros(1500)), "1.5 ms");
        assert_eq!(time(Duration::from_secs(10)), "10.0 s");
        assert_eq!(time(Duration::from_secs(180)), "3 min");
    }
}
