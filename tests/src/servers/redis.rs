//! redis-server under redis-benchmark, which counts one key up as fast as it can. The client's own key tells who counts.

use std::cell::Cell;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use super::{Ask, Load, Server, Version, start_in};
use crate::children::Background;
use crate::isolate::kill;
use crate::play::free_port;

struct Redis {
    directory: PathBuf,
    process: Background,
    port: u16,
    /// How many clients there were: each has a key of its own.
    clients: Cell<u64>,
}

/// By how much each version counts.
const STEPS: [i64; 3] = [1, 2, 10];

pub fn start(directory: &Path) -> Result<Box<dyn Server>> {
    let port = free_port()?;
    let command = format!(
        "redis-server --bind 127.0.0.1 --port {port} --save '' --appendonly no --daemonize no --dir ."
    );
    let mut server = Redis {
        directory: directory.to_owned(),
        process: start_in(directory, &command)?,
        port,
        clients: Cell::new(0),
    };
    super::wait_for(&mut server, |server| server.served().map(drop))?;
    Ok(Box::new(server))
}

impl Redis {
    /// Sum of a field over the lines of a section of INFO that begin so.
    fn info(&self, section: &str, line_begins: &str, field: &str) -> Result<u64> {
        let text = Connection::open(self.port)?.text(&format!("INFO {section}"))?;
        let lines = text.lines().filter_map(|line| line.strip_prefix(line_begins));
        let values = lines.filter_map(|line| {
            line.split([',', ':'])
                .find_map(|pair| pair.strip_prefix(field)?.strip_prefix('=').map(str::to_owned))
        });
        values.map(|value| value.parse::<u64>().context("a count is no number")).sum()
    }

    fn count(&self, section: &str, name: &str) -> Result<u64> {
        let text = Connection::open(self.port)?.text(&format!("INFO {section}"))?;
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.with_context(|| format!("no {name} in INFO {section}"))?
            .trim()
            .parse()
            .context("a count is no number")
    }
}

impl Server for Redis {
    fn process(&mut self) -> &mut Background {
        &mut self.process
    }

    fn client(&self) -> Box<dyn Ask> {
        self.clients.set(self.clients.get() + 1);
        Box::new(Client { port: self.port, connection: None, key: self.clients.get(), last: 0 })
    }

    fn load(&mut self) -> Result<Background> {
        let command = format!("redis-benchmark -p {} -t incr -c 16 -n 2000000000 -q", self.port);
        start_in(&self.directory, &command)
    }

    fn served(&mut self) -> Result<Option<u64>> {
        Ok(Some(self.count("stats", "total_commands_processed")?))
    }

    fn end_load(&mut self, mut load: Background) -> Result<Load> {
        // It ends by itself at the first error.
        load.check_alive()?;
        kill(load.pid(), libc::SIGTERM);
        load.wait()?;
        let failed = self.info("commandstats", "cmdstat_", "failed_calls")?
            + self.info("commandstats", "cmdstat_", "rejected_calls")?
            + self.count("stats", "total_error_replies")?
            + self.count("stats", "rejected_connections")?;
        Ok(Load {
            requests: self.info("commandstats", "cmdstat_incr", "calls")?,
            failed,
            answered: Vec::new(),
        })
    }

    fn end(&mut self) -> Result<()> {
        kill(self.process.pid(), libc::SIGTERM);
        Ok(())
    }
}

struct Connection(BufReader<TcpStream>);

impl Connection {
    fn open(port: u16) -> Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port)).context("cannot connect")?;
        stream.set_read_timeout(Some(crate::deadline()))?;
        Ok(Self(BufReader::new(stream)))
    }

    /// An integer, or a text.
    fn text(&mut self, command: &str) -> Result<String> {
        self.0.get_mut().write_all(format!("{command}\r\n").as_bytes())?;
        let mut line = String::new();
        self.0.read_line(&mut line)?;
        let line = line.trim_end();
        let Some(length) = line.strip_prefix('$') else {
            return line
                .strip_prefix(':')
                .map(str::to_owned)
                .with_context(|| format!("{command} is answered by {line:?}"));
        };
        let mut text =
            vec![
                0;
                length.parse::<usize>().with_context(|| format!("{command} is answered by {line:?}"))? + 2
            ];
        self.0.read_exact(&mut text)?;
        text.truncate(text.len() - 2);
        String::from_utf8(text).context("no text")
    }
}

struct Client {
    port: u16,
    connection: Option<Connection>,
    /// What it counts up, and where it is.
    key: u64,
    last: i64,
}

impl Ask for Client {
    fn ask(&mut self, fresh: bool) -> Result<Version> {
        if fresh || self.connection.is_none() {
            self.connection = Some(Connection::open(self.port)?);
        }
        let connection = self.connection.as_mut().context("no connection")?;
        let (last, key) = (self.last, self.key);
        let now: i64 = connection.text(&format!("INCR {key}"))?.parse()?;
        self.last = now;
        let stored: i64 = connection.text(&format!("GET {key}"))?.parse()?;
        ensure!(stored == now, "INCR said {now}, but GET {stored}");
        match STEPS.iter().position(|step| *step == now - last) {
            Some(version) => Ok(version),
            None => bail!("it counts from {last} to {now}"),
        }
    }
}
