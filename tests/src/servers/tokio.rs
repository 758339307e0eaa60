//! A server on tokio, which lies in `tests/servers/tokio` as a package of its own and is built here.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::http::{self, Client, Part};
use super::{Ask, Load, Server, source, start_in};
use crate::children::Background;
use crate::isolate::kill;
use crate::pattern::Captures;
use crate::play::free_port;

struct Tokio {
    directory: PathBuf,
    process: Background,
    port: u16,
}

pub fn start(directory: &Path) -> Result<Box<dyn Server>> {
    // Copied: the user that it runs as may not be allowed to see where it was built.
    std::fs::copy(build()?, directory.join("shop")).context("cannot copy the server")?;
    let port = free_port()?;
    let mut process = start_in(directory, &format!("./shop {port}"))?;
    process.expect("ready", &mut Captures::new())?;
    Ok(Box::new(Tokio { directory: directory.to_owned(), process, port }))
}

/// Builds the server beside the running test: `target/PROFILE/deps/servers-HASH` has it in `target/servers`.
fn build() -> Result<PathBuf> {
    let test = std::env::current_exe().context("cannot find the running test program")?;
    let target =
        test.ancestors().nth(3).context("the test program lies in no target directory")?.join("servers");
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command
        .args(["build", "--quiet", "--release", "--locked", "--manifest-path"])
        .arg(source("tokio/Cargo.toml"));
    command.env("CARGO_TARGET_DIR", &target);
    let status = command.status().context("cannot run cargo")?;
    if !status.success() {
        bail!("cargo could not build the server ({status})");
    }
    Ok(target.join("release/shop"))
}

/// The server's checksum of 100, which no patch changes.
fn checksum() -> u64 {
    (0..8).fold(100u64, |n, _| (n ^ (n >> 7)).wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

impl Tokio {
    fn asks(&self) -> Client {
        let answers = [300, 301, 302].map(|price| format!("{price} {:016x}", checksum()));
        Client { port: self.port, path: "/", part: Part::Body, answers, stream: None }
    }
}

impl Server for Tokio {
    fn process(&mut self) -> &mut Background {
        &mut self.process
    }

    fn client(&self) -> Box<dyn Ask> {
        Box::new(self.asks())
    }

    fn load(&mut self) -> Result<Background> {
        http::load(&self.directory, &self.asks())
    }

    fn served(&mut self) -> Result<Option<u64>> {
        let (_, text) = http::get(&mut http::connect(self.port)?, "/count")?;
        Ok(Some(text.parse().context("the count is no number")?))
    }

    fn end_load(&mut self, load: Background) -> Result<Load> {
        http::end_load(load)
    }

    fn end(&mut self) -> Result<()> {
        kill(self.process.pid(), libc::SIGTERM);
        Ok(())
    }
}
