//! What patching leaves in a server's memory: nothing.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, bail, ensure};

use crate::proc::{self, Pid};

/// How much memory a process has.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Present memory of its own, in KiB (`RssAnon`).
    pub resident: u64,
    /// Mappings.
    pub mappings: usize,
}

/// The sizes of processes; those that have ended are left out.
pub fn sizes(pids: &[Pid]) -> BTreeMap<Pid, Size> {
    pids.iter().filter_map(|pid| Some((*pid, size(*pid).ok()?))).collect()
}

fn size(pid: Pid) -> Result<Size> {
    let resident = proc::status_field(pid, pid, "RssAnon")?;
    let resident = resident.trim_end_matches(" kB").parse().context("a process's size is no number")?;
    Ok(Size { resident, mappings: proc::maps(pid)?.len() })
}

/// Fails unless the code of the process is that of its files, byte for byte, and no mapping of ugraft is left in it. `false`: the
/// process is gone.
pub fn check_restored(pid: Pid) -> Result<bool> {
    let Ok(maps) = proc::maps(pid) else { return Ok(false) };
    let left = proc::ugraft_maps(pid).unwrap_or_default();
    ensure!(left.is_empty(), "mappings are left in process {pid}:\n{}", left.join("\n"));
    let Ok(memory) = File::open(format!("/proc/{pid}/mem")) else { return Ok(false) };
    for line in maps {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [range, flags, offset, _, _, path] = words[..] else { continue };
        if !flags.contains('x') || !path.starts_with('/') {
            continue;
        }
        let (from, to) = range.split_once('-').context("a mapping without its end")?;
        let (from, to) = (u64::from_str_radix(from, 16)?, u64::from_str_radix(to, 16)?);
        let mut present = vec![0; (to - from) as usize];
        // A read of nothing: the process has gone since.
        if memory.read_exact_at(&mut present, from).is_err() {
            return Ok(false);
        }
        let mut built = vec![0; present.len()];
        let file = File::open(path).with_context(|| format!("cannot open {path}"))?;
        // What the last page has beyond the file's end is zero.
        let mut done = 0;
        while let n @ 1.. =
            file.read_at(&mut built[done..], u64::from_str_radix(offset, 16)? + done as u64)?
        {
            done += n;
        }
        if let Some(at) = present.iter().zip(&built).position(|(a, b)| a != b) {
            bail!("process {pid}: the code at {:#x} is not that of {path}", from + at as u64);
        }
    }
    Ok(true)
}
