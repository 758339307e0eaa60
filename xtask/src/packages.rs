//! What the tests and benchmarks use from Debian.

use anyhow::{Result, bail};
use std::process::{Command, Stdio};

/// A program that tells whether the package is there, and the package.
const NEEDED: &[(&str, &str)] = &[
    ("cc", "gcc"),
    ("c++", "g++"),
    ("clang", "clang"),
    ("ld", "binutils"),
    ("ld.lld", "lld"),
    ("gdb", "gdb"),
    ("strace", "strace"),
    ("perf", "linux-perf"),
    ("musl-gcc", "musl-tools"),
    ("xz", "xz-utils"),
    ("/usr/bin/python3", "python3"),
    ("redis-server", "redis-server"),
    ("redis-benchmark", "redis-tools"),
    ("memcached", "memcached"),
    ("memcslap", "libmemcached-tools"),
    ("/usr/sbin/nginx", "nginx-light"),
    ("/usr/lib/nginx/modules/ngx_http_echo_module.so", "libnginx-mod-http-echo"),
    ("curl", "curl"),
    ("pgrep", "procps"),
    ("wrk", "wrk"),
    // Each version has a directory of its own.
    ("/usr/lib/postgresql/*/bin/initdb", "postgresql"),
];

/// Installs what is missing, with apt, as root or through sudo.
pub fn install() -> Result<()> {
    let missing: Vec<&str> = NEEDED.iter().filter(|(program, _)| !is_there(program)).map(|n| n.1).collect();
    if missing.is_empty() {
        return Ok(());
    }
    super::run(apt().arg("update"))?;
    super::run(apt().args(["install", "-y", "--no-install-recommends"]).args(&missing))?;
    if let Some((program, package)) = NEEDED.iter().find(|(program, _)| !is_there(program)) {
        bail!("{program} is still missing after the installation of {package}");
    }
    Ok(())
}

fn apt() -> Command {
    // SAFETY: geteuid has no preconditions.
    let root = unsafe { libc::geteuid() } == 0;
    let mut command = if root {
        Command::new("apt-get")
    } else {
        let mut sudo = Command::new("sudo");
        sudo.arg("apt-get");
        sudo
    };
    command.env("DEBIAN_FRONTEND", "noninteractive").arg("-q");
    command
}

fn is_there(program: &str) -> bool {
    let found =
        Command::new("sh").arg("-c").arg(format!("command -v {program}")).stdout(Stdio::null()).status();
    found.is_ok_and(|status| status.success())
}
