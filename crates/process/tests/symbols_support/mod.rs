//! Programs built and run for the tests of symbols: real compilers, real processes, nothing left over.
#![allow(dead_code)]

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use ugraft_process::objects::Objects;
use ugraft_process::target::maps::Maps;
use ugraft_process::target::memory::Memory;
use ugraft_process::{Pid, RemoteAddr};

/// A directory of sources and what was built from them; gone when dropped.
pub struct Workshop(tempfile::TempDir);

impl Workshop {
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Writes a source file.
    pub fn write(&self, name: &str, text: &str) -> &Self {
        std::fs::write(self.path(name), text).unwrap();
        self
    }

    /// Runs a command line (words split at blanks) in the directory and wants it to succeed.
    pub fn run(&self, line: &str) -> &Self {
        let mut words = line.split_whitespace();
        let out = Command::new(words.next().unwrap())
            .args(words)
            .current_dir(self.0.path())
            .output()
            .unwrap_or_else(|e| panic!("{line}: {e}"));
        assert!(out.status.success(), "{line}\n{}", String::from_utf8_lossy(&out.stderr));
        self
    }
}

/// A running program that has printed what it knows of itself, `NAME HEX` a line up to `ready`.
pub struct Running {
    child: Child,
    pub told: HashMap<String, u64>,
    memory: Memory,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Running {
    pub fn start(command: &mut Command) -> Self {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut told = HashMap::new();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        loop {
            let line = lines.next().expect("the program ended early").unwrap();
            if line == "ready" {
                break;
            }
            let (name, value) = line.rsplit_once(' ').unwrap();
            let value = u64::from_str_radix(value.trim_start_matches("0x"), 16).unwrap();
            told.insert(name.to_owned(), value);
        }
        Self::attach(child, told)
    }

    /// Takes a child that says nothing.
    pub fn attach(child: Child, told: HashMap<String, u64>) -> Self {
        let pid = child.id();
        let file = File::options().read(true).write(true).open(format!("/proc/{pid}/mem")).unwrap();
        Self { memory: Memory::new(Pid(pid as i32), file), child, told }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    pub fn maps(&self) -> Maps {
        Maps::parse(&std::fs::read_to_string(format!("/proc/{}/maps", self.pid())).unwrap()).unwrap()
    }

    pub fn objects(&self) -> Objects<'_> {
        let proc_dir = format!("/proc/{}", self.pid());
        let auxv = std::fs::read(format!("{proc_dir}/auxv")).unwrap();
        Objects::read(&self.memory, &self.maps(), &auxv, Path::new(&proc_dir)).unwrap()
    }

    /// What the program said of `name`.
    pub fn truth(&self, name: &str) -> RemoteAddr {
        RemoteAddr(*self.told.get(name).unwrap_or_else(|| panic!("the program told nothing of {name}")))
    }
}

/// Text for a C program: `TELL(x)` prints the address of x, `READY` says it is done and waits for ever.
pub const TELL: &str = r#"
#define _GNU_SOURCE
#include <stdio.h>
#include <unistd.h>
#define TELL(x) printf("%s %lx\n", #x, (unsigned long)&x)
#define TELL_AS(name, x) printf("%s %lx\n", name, (unsigned long)(x))
#define READY do { printf("ready\n"); fflush(stdout); for (;;) pause(); } while (0)
"#;
