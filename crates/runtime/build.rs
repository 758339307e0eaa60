//! Compiles the code that runs in targets, `code/`, to relocatable objects, with the compiler that builds everything else.

use std::env;
use std::path::Path;
use std::process::{Command, exit};

fn main() {
    println!("cargo::rerun-if-changed=code");
    compile("object.rs", "ugraft_runtime_code", "runtime.o");
    compile("unwinder.rs", "ugraft_unwinder_code", "unwinder.o");
}

fn compile(source: &str, name: &str, object: &str) {
    let variable = |name| env::var_os(name).unwrap_or_default();
    let object = Path::new(&variable("OUT_DIR")).join(object);
    let next = env::var_os("CARGO_FEATURE_NEXT_VERSION").map(|_| ["--cfg", "feature=\"next-version\""]);
    let status = Command::new(variable("RUSTC"))
        .args(["--edition", "2024", "--crate-type", "lib", "--crate-name", name])
        .args(["--emit", "obj", "-C", "opt-level=2", "-C", "codegen-units=1", "-C", "panic=abort"])
        .args(["-C", "relocation-model=pic", "-C", "force-unwind-tables=yes", "-C", "debuginfo=0"])
        .args(["-C", "overflow-checks=no", "-C", "debug-assertions=no"])
        .args(next.into_iter().flatten())
        .arg("--target")
        .arg(variable("TARGET"))
        .arg("-o")
        .arg(object)
        .arg(Path::new("code").join(source))
        .status();
    match status {
        Ok(status) if status.success() => {}
        Ok(status) => {
            println!("cargo::error=the code for targets does not compile: {status}");
            exit(1);
        }
        Err(e) => {
            println!("cargo::error=the compiler cannot be started: {e}");
            exit(1);
        }
    }
}
