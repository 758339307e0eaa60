//! What `/proc` tells about processes: their threads, states, tracers and mappings.

use std::fs;

use anyhow::{Context, Result};

/// A process or thread number as the kernel gives it.
pub type Pid = i32;

/// The threads of a process, or none if it is gone.
pub fn threads(pid: Pid) -> Vec<Pid> {
    numbers(&format!("/proc/{pid}/task"))
}

/// The direct children of a process, over all its threads.
pub fn children(pid: Pid) -> Vec<Pid> {
    threads(pid)
        .into_iter()
        .filter_map(|tid| fs::read_to_string(format!("/proc/{pid}/task/{tid}/children")).ok())
        .flat_map(|list| list.split_whitespace().filter_map(|n| n.parse().ok()).collect::<Vec<_>>())
        .collect()
}

/// All processes below `pid`, nearest first.
pub fn descendants(pid: Pid) -> Vec<Pid> {
    let mut found = Vec::new();
    let mut next = children(pid);
    while let Some(child) = next.pop() {
        found.push(child);
        next.extend(children(child));
    }
    found
}

/// A field of a thread's `status`, for instance `State`.
pub fn status_field(pid: Pid, tid: Pid, field: &str) -> Result<String> {
    let path = format!("/proc/{pid}/task/{tid}/status");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    text.lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))
        .map(|value| value.trim().to_owned())
        .with_context(|| format!("{path} has no {field}"))
}

/// Letter of the thread's state: R, S, D, T (stopped by job control), t (stopped by a tracer), Z, X.
pub fn state(pid: Pid, tid: Pid) -> Result<char> {
    status_field(pid, tid, "State")?.chars().next().context("a thread's state is empty")
}

/// The process that traces the thread, if any.
pub fn tracer(pid: Pid, tid: Pid) -> Result<Option<Pid>> {
    let number: Pid = status_field(pid, tid, "TracerPid")?.parse()?;
    Ok((number != 0).then_some(number))
}

/// The lines of the process's `maps`.
pub fn maps(pid: Pid) -> Result<Vec<String>> {
    let path = format!("/proc/{pid}/maps");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    Ok(text.lines().map(str::to_owned).collect())
}

/// The lines of `maps` that are mappings made by ugraft.
pub fn ugraft_maps(pid: Pid) -> Result<Vec<String>> {
    Ok(maps(pid)?
        .into_iter()
        .filter(|line| line.contains("ugraft"))
        .filter(|l| l.contains("/memfd:"))
        .collect())
}

fn numbers(dir: &str) -> Vec<Pid> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let mut numbers: Vec<Pid> =
        entries.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok()).collect();
    numbers.sort_unstable();
    numbers
}
