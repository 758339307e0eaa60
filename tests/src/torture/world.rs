//! The programs and patches of one episode, built in a directory of its own.

use std::path::Path;

use anyhow::{Context, Result, bail};

use super::shared::GROUPS;
use super::{Episode, Variant};
use crate::children::{self, Background};
use crate::pattern::Captures;
use crate::{repository, tests_dir};

/// A patch: its version is its number among [`PATCHES`], from 1.
#[derive(Clone, Copy, Debug)]
pub struct Patch {
    /// Its name; the file has the ending `.o`.
    pub name: &'static str,
    /// Which groups it changes.
    pub covers: [bool; GROUPS],
    /// Whether it replaces all others.
    pub replace: bool,
}

const fn patch(name: &'static str, covers: [bool; GROUPS], replace: bool) -> Patch {
    Patch { name, covers, replace }
}

/// All patches.
pub const PATCHES: [Patch; 9] = [
    patch("x1", [true, false], false),
    patch("y2", [false, true], false),
    patch("both3", [true, true], false),
    patch("x4", [true, false], false),
    patch("only-x5", [true, false], true),
    patch("only-y6", [false, true], true),
    patch("only7", [true, true], true),
    patch("both8", [true, true], false),
    patch("only9", [true, true], true),
];

/// The version that a patch brings.
pub fn version(name: &str) -> Option<u8> {
    PATCHES.iter().position(|p| p.name == name).map(|n| n as u8 + 1)
}

/// Builds target, library and patches.
pub fn build(directory: &Path, variant: &Variant) -> Result<()> {
    let from = tests_dir().join("torture");
    for name in ["torture.h", "target.c", "libtorture.c", "patch.c"] {
        std::fs::copy(from.join(name), directory.join(name))
            .with_context(|| format!("cannot copy {name}"))?;
    }
    let calls = if variant.tail_calls { "-foptimize-sibling-calls" } else { "-fno-optimize-sibling-calls" };
    let cc = if variant.exceptions { "c++ -x c++" } else { "cc" };
    let mut script = format!(
        "set -e\ncc -O2 -g -shared -fPIC {calls} libtorture.c -o libtorture.so\n\
         {cc} -O2 -g -rdynamic -pthread {calls} target.c -x none ./libtorture.so '-Wl,-rpath,$ORIGIN' -o target\n"
    );
    for (n, p) in PATCHES.iter().enumerate() {
        let [x, y] = p.covers.map(u8::from);
        script.push_str(&format!(
            "cc -c -O2 -fPIC {calls} -I\"$SDK\" -DVERSION={} -DCOVERS_X={x} -DCOVERS_Y={y} -DREPLACE={} patch.c -o {}.o\n",
            n + 1,
            u8::from(p.replace),
            p.name
        ));
    }
    let sdk = repository().join("sdk/include");
    let built = children::run(children::shell(&script, directory, [("SDK", sdk.as_os_str())]))?;
    if built.code != 0 {
        bail!("cannot build the torture: {}", built.stderr.join("\n"));
    }
    Ok(())
}

/// Starts the target, which logs to the file `log`.
pub fn start(directory: &Path, episode: &Episode) -> Result<Background> {
    let v = &episode.variant;
    let command = format!(
        "exec ./target log {} {} {} {} {} {} {}",
        episode.threads,
        v.spawners,
        v.forks,
        v.signals,
        u8::from(v.unwinding),
        u8::from(v.lingering),
        episode.seed
    );
    let mut target = Background::start(children::shell(&command, directory, []))?;
    target.expect("ready", &mut Captures::new())?;
    Ok(target)
}
