//! From the sections of a scenario to programs, libraries and patches.
//!
//! A section that no `build` line mentions is built by default, by what it is:
//!
//! | section | built with | into |
//! |---|---|---|
//! | `libNAME.c` | `cc -shared -fPIC -O2 -g` | `libNAME.so` |
//! | a C file that includes `ugraft/livepatch.h` | `cc -c -O2 -I sdk/include` | `NAME.o` |
//! | another `.c`, `.S`, `.cc` or `.rs` file | `cc -O2 -g -pthread`, `c++ ...`, `rustc -O -g`, with all libraries of the scenario | `NAME` |
//!
//! A variant's variables change that: `TARGET_CC` and `TARGET_FLAGS` for programs, `LIB_FLAGS` for libraries,
//! `PATCH_CC` and `PATCH_FLAGS` for patches, and `AFTER_BUILD` is a command run at the end.

use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::children::{self, Finished};
use crate::scenario::{Scenario, Section};
use crate::{repository, tests_dir};

/// Which kind of default build a section has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Library,
    Program,
    Patch,
    Nothing,
}

/// The commands that build everything, in order.
fn commands(scenario: &Scenario) -> Vec<String> {
    let mentioned = |section: &Section| {
        scenario
            .builds
            .iter()
            .any(|b| b.split_whitespace().any(|w| w.trim_start_matches("./") == section.name))
    };
    let mut sections: Vec<(Kind, &Section)> =
        scenario.sections.iter().filter(|s| !mentioned(s)).map(|s| (kind(s), s)).collect();
    sections.sort_by_key(|(kind, _)| *kind);
    let libraries: String = sections
        .iter()
        .filter(|(kind, _)| *kind == Kind::Library)
        .map(|(_, s)| format!(" ./{}.so", stem(&s.name)))
        .collect();
    // Only with libraries: a static-pie program with an rpath crashes at its start with glibc.
    let libraries = if libraries.is_empty() { libraries } else { libraries + " '-Wl,-rpath,$ORIGIN'" };
    let default = |(kind, section): (Kind, &Section)| {
        let (name, out) = (&section.name, stem(&section.name));
        match kind {
            Kind::Library => {
                Some(format!("${{LIB_CC:-cc}} -shared -fPIC -O2 -g $LIB_FLAGS {name} -o {out}.so"))
            }
            Kind::Patch => {
                Some(format!("${{PATCH_CC:-cc}} -c -O2 -I\"$SDK\" $PATCH_FLAGS {name} -o {out}.o"))
            }
            Kind::Program if name.ends_with(".rs") => {
                Some(format!("rustc --edition 2024 -O -g $TARGET_FLAGS {name} -o {out}"))
            }
            Kind::Program => {
                let cc = if name.ends_with(".cc") { "${TARGET_CXX:-c++}" } else { "${TARGET_CC:-cc}" };
                Some(format!("{cc} -O2 -g -pthread -I\"$SUPPORT\" $TARGET_FLAGS {name}{libraries} -o {out}"))
            }
            Kind::Nothing => None,
        }
    };
    let (libraries_first, rest): (Vec<_>, Vec<_>) =
        sections.into_iter().partition(|(kind, _)| *kind == Kind::Library);
    let mut all: Vec<String> = libraries_first.into_iter().filter_map(default).collect();
    all.extend(scenario.builds.iter().cloned());
    all.extend(rest.into_iter().filter_map(default));
    all
}

fn kind(section: &Section) -> Kind {
    let extension = section.name.rsplit_once('.').map_or("", |(_, e)| e);
    match extension {
        "c" | "cc" | "S" | "rs" if section.name.starts_with("lib") => Kind::Library,
        "c" | "cc" if section.text.contains("ugraft/livepatch.h") => Kind::Patch,
        "c" | "cc" | "S" | "rs" => Kind::Program,
        _ => Kind::Nothing,
    }
}

fn stem(name: &str) -> &str {
    name.rsplit_once('.').map_or(name, |(stem, _)| stem)
}

/// Writes the sections of the scenario to `directory` and builds them with `run` (which runs one shell command there).
pub fn build(
    scenario: &Scenario,
    directory: &Path,
    after: Option<&str>,
    mut run: impl FnMut(&str) -> Result<Finished>,
) -> Result<()> {
    for section in &scenario.sections {
        let preprocessed = [".c", ".cc", ".S"].iter().any(|e| section.name.ends_with(e));
        // Errors and debug information then point into the scenario itself.
        let head = match preprocessed {
            true => format!("#line {} \"{}\"\n", section.line, scenario.path.display()),
            false => String::new(),
        };
        let path = directory.join(&section.name);
        std::fs::write(&path, head + &section.text)
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    for command in commands(scenario).iter().map(String::as_str).chain(after) {
        let finished = run(command)?;
        if finished.code != 0 {
            bail!("{command}: exit code {}\n{}", finished.code, finished.stderr.join("\n"));
        }
    }
    Ok(())
}

/// Builds in `directory` what lies in the folder `from` of the tests: `target.c`, a program with threads, and patches, each
/// with flags of its own.
pub fn build_in(directory: &Path, from: &str, patches: &[(&str, &str)]) -> Result<()> {
    let (from, sdk) = (tests_dir().join(from), repository().join("sdk/include"));
    let support = tests_dir().join("support");
    let variables = [("FROM", from.as_os_str()), ("SDK", sdk.as_os_str()), ("SUPPORT", support.as_os_str())];
    let mut build = "cc -O2 -g -rdynamic -pthread -I$SUPPORT $FROM/target.c -o target".to_owned();
    for (patch, flags) in patches {
        build += &format!(" && cc -c -O2 {flags} -I$SDK $FROM/{patch}");
    }
    let built = children::run(children::shell(&build, directory, variables))?;
    if built.code != 0 {
        bail!("cannot build: {}", built.stderr.join("\n"));
    }
    Ok(())
}

/// Whether `program` can be run on this machine: a path, or a name on the search path.
pub fn is_installed(program: &str) -> bool {
    if program.contains('/') {
        return Path::new(program).exists();
    }
    let here = Path::new(".");
    let mut look = children::shell("command -v \"$program\"", here, [("program", program.as_ref())]);
    look.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::null());
    look.status().is_ok_and(|status| status.success())
}
