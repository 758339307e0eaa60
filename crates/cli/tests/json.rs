//! The JSON schema, on a real process: which fields each command prints, and with which exit code.

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

const TARGET: &str = "
#include <unistd.h>
__attribute__((noipa)) int price(int n) { return n * 2; }
__attribute__((noipa)) int behind(int n) { return n * 5; }
int main(void) { write(1, \"r\", 1); for (;;) { price(1); usleep(1000); } }
";

const PATCH: &str = "
#include <ugraft/livepatch.h>
int new_price(int n) { return n * 3; }
static struct klp_func funcs[] = { { .old_name = \"price\", .new_func = (void *)new_price }, {} };
static struct klp_object objs[] = { { .funcs = funcs }, {} };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);
KLP_VERSION(\"1.2\");
KLP_DESCRIPTION(\"a better price\");
";

struct Target(Child);

impl Drop for Target {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn compile(dir: &Path, name: &str, source: &str, flags: &[&str]) -> PathBuf {
    let c = dir.join(format!("{name}.c"));
    std::fs::write(&c, source).unwrap();
    let out = dir.join(if flags.contains(&"-c") { format!("{name}.o") } else { name.to_owned() });
    let sdk = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../sdk/include");
    let mut cc = Command::new("cc");
    cc.arg("-O2").args(flags).arg("-I").arg(sdk).arg("-o").arg(&out).arg(&c);
    assert!(cc.status().unwrap().success());
    out
}

fn ugraft(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ugraft")).args(args).output().unwrap()
}

fn json(args: &[&str], code: i32) -> Value {
    let output = ugraft(&[&["--json"], args].concat());
    assert_eq!(output.status.code(), Some(code), "{args:?}: {output:?}");
    assert!(output.stderr.is_empty(), "{args:?}: {output:?}");
    let value: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(value["schema"], "ugraft/1");
    assert_eq!(value["command"], args[0]);
    assert_eq!(value["ok"], code == 0);
    assert_eq!(value["exit_code"], code);
    value
}

/// The target, which is ready, and the patch.
fn start(dir: &Path) -> (Target, PathBuf) {
    let program = compile(dir, "target", TARGET, &["-fno-toplevel-reorder"]);
    let patch = compile(dir, "fix", PATCH, &["-c"]);
    let mut target = Target(Command::new(program).stdout(Stdio::piped()).spawn().unwrap());
    let mut ready = [0];
    std::io::Read::read_exact(target.0.stdout.as_mut().unwrap(), &mut ready).unwrap();
    (target, patch)
}

fn fields(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

#[test]
fn every_command_keeps_to_the_schema() {
    let dir = tempfile::tempdir().unwrap();
    let (target, patch) = start(dir.path());
    let patch = patch.to_str().unwrap();
    let pid = &target.0.id().to_string();

    assert_eq!(json(&["status", "--pid", pid], 3)["status"]["patches"], Value::Array(Vec::new()));
    assert_eq!(json(&["list", "--pid", pid], 3)["error"]["kind"], "not_patched");

    let check = json(&["check", patch, "--pid", pid], 0);
    assert_eq!(fields(&check["check"]), ["funcs", "notes", "ok", "patch", "pid", "problems"]);
    let func = &check["check"]["funcs"][0];
    assert_eq!(fields(func), ["addr", "clones", "cold", "name", "object", "ok", "verdict"]);

    let load = json(&["load", patch, "--pid", pid], 0);
    let report = &load["report"];
    assert_eq!(fields(report), ["already", "cost", "forced", "life", "notes", "patch", "replaced"]);
    assert_eq!(report["life"], "enabled");
    let cost = &report["cost"];
    assert_eq!(fields(cost), ["elapsed_ns", "longest_pause_ns", "looks", "stopped_ns", "stops", "threads"]);
    assert!(cost["longest_pause_ns"].as_u64().unwrap() > 0);

    let again = json(&["enable", "fix", "--pid", pid], 0);
    assert_eq!(again["report"]["already"], "patch 'fix' is already enabled");

    let status = &json(&["status", "--pid", pid], 0)["status"];
    assert_eq!(
        fields(status),
        [
            "comm",
            "hook",
            "mapped_bytes",
            "patches",
            "pid",
            "tool",
            "tool_at_work",
            "transition",
            "written_by"
        ]
    );
    let listed = &json(&["list", "--pid", pid], 0)["patches"][0];
    assert_eq!(listed["name"], "fix");
    assert_eq!(listed["version"], "1.2");
    assert_eq!(listed["objects"][0]["funcs"][0]["name"], "price");

    let log = json(&["log", "--pid", pid], 0);
    assert_eq!(fields(&log["messages"][0]), ["level", "text", "time_ns"]);
    let texts: Vec<_> =
        log["messages"].as_array().unwrap().iter().map(|m| m["text"].as_str().unwrap()).collect();
    assert_eq!(
        texts,
        [
            "livepatch: enabling patch 'fix'",
            "livepatch: 'fix': initializing patching transition",
            "livepatch: 'fix': starting patching transition",
            "livepatch: 'fix': completing patching transition",
            "livepatch: 'fix': patching complete",
        ]
    );

    assert_eq!(json(&["wait", "fix", "--pid", pid], 0)["report"]["life"], "enabled");
    assert_eq!(json(&["disable", "nope", "--pid", pid], 4)["error"]["kind"], "no_such_patch");
    assert_eq!(json(&["disable", "fix", "--pid", pid], 0)["report"]["life"], "disabled");
    assert_eq!(json(&["unload", "fix", "--pid", pid], 0)["report"]["life"], Value::Null);
    assert_eq!(json(&["unload", "fix", "--pid", pid], 3)["error"]["kind"], "not_patched");
    assert!(!std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap().contains("ugraft"));
}

#[test]
fn files_and_usage() {
    let dir = tempfile::tempdir().unwrap();
    let patch = compile(dir.path(), "fix", PATCH, &["-c"]);
    let info = json(&["info", patch.to_str().unwrap()], 0);
    assert_eq!(info["patch"]["name"], "fix");
    assert_eq!(info["patch"]["description"], "a better price");
    let source = dir.path().join("fix.c");
    assert_eq!(json(&["info", source.to_str().unwrap()], 8)["error"]["kind"], "bad_patch_file");
    let missing = dir.path().join("missing.o");
    assert_eq!(json(&["info", missing.to_str().unwrap()], 8)["error"]["kind"], "bad_patch_file");
    let (pipe, empty) = (dir.path().join("pipe.o"), dir.path().join("empty.o"));
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    std::fs::write(&empty, "").unwrap();
    for odd in [&pipe, &empty, dir.path(), Path::new("/dev/null"), Path::new("/dev/zero")] {
        assert_eq!(json(&["info", odd.to_str().unwrap()], 8)["error"]["kind"], "bad_patch_file");
    }
    assert_eq!(json(&["load"], 2)["error"]["kind"], "usage");
    assert_eq!(json(&["load", "x.o", "--pid", "none"], 2)["error"]["kind"], "usage");
    assert_eq!(ugraft(&["load"]).status.code(), Some(2));
    assert_eq!(ugraft(&["nonsense"]).status.code(), Some(2));
    assert_eq!(json(&["status", "--pid", "2147483647"], 4)["error"]["kind"], "no_such_process");
}

#[test]
fn what_cannot_be_written_is_an_error() {
    let full = |args: &[&str]| {
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        Command::new(env!("CARGO_BIN_EXE_ugraft")).args(args).stdout(full).output().unwrap()
    };
    for args in [&["--help"][..], &["list"], &["list", "--json"], &["completions", "bash"], &["manual"]] {
        let output = full(args);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {said}");
        assert!(said.starts_with("ugraft: cannot write to the standard output: "), "{args:?}: {said}");
    }
    // The failure itself is told where it can be.
    let output = full(&["--json", "info", "/nonexistent.o"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(8) && said.contains("/nonexistent.o"), "{said}");
}

#[test]
fn what_was_done_is_done_whoever_hears_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let (target, patch) = start(dir.path());
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut load = Command::new(env!("CARGO_BIN_EXE_ugraft"));
    load.args(["load", patch.to_str().unwrap(), "--pid", &target.0.id().to_string()]).stdout(full);
    assert_eq!(load.output().unwrap().status.code(), Some(0));
}

#[test]
fn quiet_says_nothing_but_errors() {
    let dir = tempfile::tempdir().unwrap();
    let patch = compile(dir.path(), "fix", PATCH, &["-c"]);
    let output = ugraft(&["--quiet", "info", patch.to_str().unwrap()]);
    assert!(output.status.success() && output.stdout.is_empty() && output.stderr.is_empty());
    let output = ugraft(&["--quiet", "status", "--pid", "2147483647"]);
    assert!(output.stdout.is_empty() && !output.stderr.is_empty());
}

#[test]
fn completions_and_the_manual_page() {
    let completions = ugraft(&["completions", "bash"]);
    assert!(String::from_utf8_lossy(&completions.stdout).contains("_ugraft()"));
    for command in [&["completions", "bash"][..], &["manual"], &["--help"], &["--version"]] {
        // Nobody reads what is said.
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut unread = Command::new(env!("CARGO_BIN_EXE_ugraft"));
        let output = unread.args(command).stdout(writer).stderr(Stdio::piped()).output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{command:?}: {output:?}");
    }
    let manual = ugraft(&["manual"]);
    assert!(String::from_utf8_lossy(&manual.stdout).contains(".TH ugraft"));
}
