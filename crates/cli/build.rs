//! Links the program statically in a release build, where the C library for that is installed.
//!
//! A run of the program lasts some milliseconds, of which a tenth would go into loading and relocating two shared libraries
//! and a program that may lie anywhere. Rust's own switch for static linking (`-C target-feature=+crt-static`) cannot be
//! used: it applies to procedural macros, which cannot be linked so, unless every build names its target. So the libraries
//! that rustc asks the linker for by name are found here first, as linker scripts that lead to the archives.

use std::path::{Path, PathBuf};
use std::process::Command;

/// What rustc links programs for this target with, and what is to be taken instead.
const LIBRARIES: [(&str, &str); 7] = [
    ("gcc_s", "-l:libgcc_eh.a -l:libgcc.a"),
    ("c", "-l:libc.a -l:libgcc_eh.a -l:libgcc.a"),
    ("m", "-l:libm.a"),
    ("util", "-l:libutil.a"),
    ("rt", "-l:librt.a"),
    ("pthread", "-l:libpthread.a"),
    ("dl", "-l:libdl.a"),
];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let is = |name: &str, value: &str| std::env::var(name).is_ok_and(|found| found == value);
    let linux = is("CARGO_CFG_TARGET_OS", "linux") && is("CARGO_CFG_TARGET_ENV", "gnu");
    let native = std::env::var("HOST").is_ok_and(|host| is("TARGET", &host));
    let features = std::env::var("CARGO_CFG_TARGET_FEATURE").unwrap_or_default();
    let already = features.split(',').any(|feature| feature == "crt-static");
    if !is("PROFILE", "release") || !linux || !native || already || !archives_are_there() {
        return;
    }
    let Some(dir) = std::env::var_os("OUT_DIR").map(PathBuf::from) else { return };
    // Without the scripts the program is linked as any other.
    if write_scripts(&dir).is_ok() {
        for arg in ["-L", &dir.to_string_lossy(), "-static", "-no-pie"] {
            println!("cargo::rustc-link-arg-bins={arg}");
        }
    }
}

fn write_scripts(dir: &Path) -> std::io::Result<()> {
    for (name, archives) in LIBRARIES {
        std::fs::write(dir.join(format!("lib{name}.so")), format!("GROUP ( {archives} )\n"))?;
    }
    Ok(())
}

/// Whether the C compiler that links has all the archives.
fn archives_are_there() -> bool {
    let linker = std::env::var("RUSTC_LINKER").unwrap_or_else(|_| "cc".to_owned());
    let names = LIBRARIES.iter().flat_map(|(_, archives)| archives.split(' '));
    names.filter_map(|archive| archive.strip_prefix("-l:")).all(|archive| {
        let asked = Command::new(&linker).arg(format!("-print-file-name={archive}")).output();
        // A compiler without such a file repeats its name.
        asked.is_ok_and(|answer| Path::new(String::from_utf8_lossy(&answer.stdout).trim_end()).is_absolute())
    })
}
