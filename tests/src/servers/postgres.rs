//! PostgreSQL under pgbench: every client has a backend, a process of its own that the postmaster forks.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use super::{Ask, Load, Server, Version, run_in, source, start_in};
use crate::children::Background;
use crate::isolate::kill;

struct Postgres {
    directory: PathBuf,
    /// Where its programs lie.
    programs: PathBuf,
    process: Background,
}

/// The name of its socket is made of this.
const PORT: u16 = 5432;
const USER: &str = "owner";
/// What the three versions write for 4711.
const ANSWERS: [&[u8]; 3] = [b"4711", b"4712", b"4713"];

/// Where Debian has the programs of the newest version installed.
fn programs() -> Option<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").ok()?.flatten();
    let version = |path: &PathBuf| path.file_name()?.to_str()?.parse::<u32>().ok();
    let found = versions.map(|entry| entry.path()).filter(|path| path.join("bin/initdb").exists());
    Some(found.max_by_key(version)?.join("bin"))
}

pub fn missing() -> Option<&'static str> {
    let complete =
        programs().is_some_and(|bin| bin.join("postgres").exists() && bin.join("pgbench").exists());
    (!complete).then_some("postgresql")
}

pub fn start(directory: &Path) -> Result<Box<dyn Server>> {
    let programs = programs().context("PostgreSQL is not installed")?;
    let bin = programs.display();
    run_in(
        directory,
        &format!("{bin}/initdb -D data -U {USER} -A trust --no-sync --no-instructions -E UTF8 --locale C"),
    )?;
    // Autovacuum forks a worker each second, which may come while the postmaster changes sides.
    let command = format!(
        "{bin}/postgres -D data -k \"$PWD\" -c listen_addresses= -c port={PORT} -c fsync=off -c shared_buffers=16MB \
         -c max_connections=30 -c max_logical_replication_workers=0 -c autovacuum_naptime=1s"
    );
    let process = start_in(directory, &command)?;
    let mut server = Postgres { directory: directory.to_owned(), programs, process };
    super::wait_for(&mut server, |server| Session::open(&server.socket()).map(drop))?;
    run_in(
        directory,
        &format!("{}/pgbench -h \"$PWD\" -p {PORT} -U {USER} -i -q postgres", server.programs.display()),
    )?;
    std::fs::copy(source("pgbench.sql"), directory.join("pgbench.sql")).context("cannot copy pgbench.sql")?;
    Ok(Box::new(server))
}

impl Postgres {
    fn socket(&self) -> PathBuf {
        self.directory.join(format!(".s.PGSQL.{PORT}"))
    }
}

impl Server for Postgres {
    fn process(&mut self) -> &mut Background {
        &mut self.process
    }

    fn client(&self) -> Box<dyn Ask> {
        Box::new(Client { socket: self.socket(), session: None })
    }

    fn load(&mut self) -> Result<Background> {
        let command = format!(
            "{}/pgbench -h \"$PWD\" -p {PORT} -U {USER} -n -c 4 -j 1 -T 86400 -l --log-prefix transactions -f pgbench.sql postgres",
            self.programs.display()
        );
        start_in(&self.directory, &command)
    }

    /// It counts late, and by the backend; pgbench's log is exact.
    fn served(&mut self) -> Result<Option<u64>> {
        Ok(None)
    }

    fn end_load(&mut self, mut load: Background) -> Result<Load> {
        // As if its time were over.
        let pid = load.pid();
        kill(pid, libc::SIGALRM);
        let (code, stdout, stderr) = load.wait()?;
        let all = || format!("{}\n{}", stdout.join("\n"), stderr.join("\n"));
        ensure!(code == 0, "pgbench ended with {code}:\n{}", all());
        let number = |begins: &str| {
            let rest = stdout.iter().find_map(|line| line.strip_prefix(begins));
            let number = rest.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
            number.with_context(|| format!("pgbench did not say {begins:?}:\n{}", all()))
        };
        let requests = number("number of transactions actually processed: ")?;
        let failed = number("number of failed transactions: ")?;
        let log = std::fs::read_to_string(self.directory.join(format!("transactions.{pid}")))
            .context("cannot read pgbench's log")?;
        let answered = log.lines().map(|line| {
            let mut words = line.split(' ').skip(4);
            let mut next = || words.next()?.parse::<u64>().ok();
            Some(next()? * 1_000_000 + next()?)
        });
        let answered: Option<Vec<u64>> = answered.collect();
        Ok(Load { requests, failed, answered: answered.context("cannot make sense of pgbench's log")? })
    }

    fn end(&mut self) -> Result<()> {
        // A fast shutdown.
        kill(self.process.pid(), libc::SIGINT);
        Ok(())
    }
}

/// A connection; the protocol's messages are a letter, a length that counts itself, and the rest.
struct Session(UnixStream);

impl Session {
    fn open(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket).context("cannot connect")?;
        stream.set_read_timeout(Some(crate::deadline()))?;
        let mut session = Self(stream);
        let mut start = 0x0003_0000u32.to_be_bytes().to_vec();
        start.extend(format!("user\0{USER}\0database\0postgres\0\0").as_bytes());
        session.send(&start)?;
        session.until_ready()?;
        Ok(session)
    }

    fn send(&mut self, message: &[u8]) -> Result<()> {
        let length = message.len() as u32 + 4;
        Ok(self.0.write_all(&[&length.to_be_bytes(), message].concat())?)
    }

    /// Sends a query, and returns the only value of the only row.
    fn value(&mut self, query: &str) -> Result<Vec<u8>> {
        self.0.write_all(b"Q")?;
        self.send(format!("{query}\0").as_bytes())?;
        // Two bytes for the number of values, four for the value's length.
        Ok(self.until_ready()?.context("no row")?.get(6..).context("no value")?.to_vec())
    }

    /// Reads until the server waits for the next query; returns the last row.
    fn until_ready(&mut self) -> Result<Option<Vec<u8>>> {
        let mut row = None;
        loop {
            let mut head = [0; 5];
            self.0.read_exact(&mut head)?;
            let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
            let mut body = vec![0; length.saturating_sub(4)];
            self.0.read_exact(&mut body)?;
            match head[0] {
                b'Z' => return Ok(row),
                b'D' => row = Some(body),
                b'E' => bail!("the server says {}", String::from_utf8_lossy(&body).replace('\0', " ")),
                _ => {}
            }
        }
    }
}

struct Client {
    socket: PathBuf,
    session: Option<Session>,
}

impl Ask for Client {
    fn ask(&mut self, fresh: bool) -> Result<Version> {
        if fresh || self.session.is_none() {
            self.session = Some(Session::open(&self.socket)?);
        }
        let session = self.session.as_mut().context("no connection")?;
        let value = session.value("SELECT 4711")?;
        let known = ANSWERS.iter().position(|answer| *answer == value);
        known.with_context(|| format!("the answer is {:?}", String::from_utf8_lossy(&value)))
    }
}
