//! nginx with two workers, which serve a file whose time of modification is the answer.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};

use super::http::{self, Client, Part};
use super::{Ask, Load, Server, source, start_in};
use crate::children::Background;
use crate::isolate::kill;
use crate::play::free_port;
use crate::proc::{self, Pid};

struct Nginx {
    directory: PathBuf,
    process: Background,
    port: u16,
}

/// When the file was changed, in seconds since 1970, and the same as nginx writes it, and one and two seconds later.
const CHANGED: u64 = 1_000_000_000;
const ANSWERS: [&str; 3] =
    ["Sun, 09 Sep 2001 01:46:40 GMT", "Sun, 09 Sep 2001 01:46:41 GMT", "Sun, 09 Sep 2001 01:46:42 GMT"];

pub fn start(directory: &Path) -> Result<Box<dyn Server>> {
    let port = free_port()?;
    let text = std::fs::read_to_string(source("nginx.conf")).context("cannot read nginx.conf")?;
    let at = directory.display().to_string();
    let text = text.replace("DIRECTORY", &at).replace("PORT", &port.to_string());
    std::fs::write(directory.join("nginx.conf"), text)?;
    std::fs::create_dir(directory.join("root"))?;
    let mut page = std::fs::File::create(directory.join("root/page"))?;
    page.write_all(b"a page\n")?;
    page.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(CHANGED))?;
    let command = "/usr/sbin/nginx -e stderr -c \"$PWD/nginx.conf\"";
    let mut server = Nginx { directory: directory.to_owned(), process: start_in(directory, command)?, port };
    super::wait_for(&mut server, |server| server.served().map(drop))?;
    Ok(Box::new(server))
}

impl Nginx {
    fn asks(&self) -> Client {
        Client {
            port: self.port,
            path: "/page",
            part: Part::Header("Last-Modified"),
            answers: ANSWERS.map(str::to_owned),
            stream: None,
        }
    }
}

impl Server for Nginx {
    fn process(&mut self) -> &mut Background {
        &mut self.process
    }

    fn client(&self) -> Box<dyn Ask> {
        Box::new(self.asks())
    }

    fn load(&mut self) -> Result<Background> {
        http::load(&self.directory, &self.asks())
    }

    /// The third of the numbers in the third line of `stub_status`.
    fn served(&mut self) -> Result<Option<u64>> {
        let (_, text) = http::get(&mut http::connect(self.port)?, "/count")?;
        let line = text.lines().nth(2).context("no third line in the status")?;
        Ok(Some(line.split_whitespace().nth(2).context("no third number in the status")?.parse()?))
    }

    fn end_load(&mut self, load: Background) -> Result<Load> {
        http::end_load(load)
    }

    fn renewed_child(&mut self) -> Option<Pid> {
        let worker = proc::children(self.process.pid()).into_iter().next()?;
        kill(worker, libc::SIGTERM);
        Some(worker)
    }

    fn end(&mut self) -> Result<()> {
        kill(self.process.pid(), libc::SIGTERM);
        Ok(())
    }
}
