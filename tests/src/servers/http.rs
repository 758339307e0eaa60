//! A client for HTTP, and wrk as the load generator.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::{Ask, Load, Version, source, start_in};
use crate::children::Background;
use crate::isolate::kill;

/// Which part of an answer the patches change.
#[derive(Clone, Debug)]
pub enum Part {
    Header(&'static str),
    Body,
}

/// Asks for one path; the answers of the three versions are known.
pub struct Client {
    pub port: u16,
    pub path: &'static str,
    pub part: Part,
    pub answers: [String; 3],
    pub stream: Option<BufReader<TcpStream>>,
}

impl Ask for Client {
    fn ask(&mut self, fresh: bool) -> Result<Version> {
        if fresh || self.stream.is_none() {
            self.stream = Some(connect(self.port)?);
        }
        let stream = self.stream.as_mut().context("no connection")?;
        let (headers, body) = get(stream, self.path)?;
        let answer = match self.part {
            Part::Body => body,
            Part::Header(name) => headers
                .iter()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
                .context("the header is not there")?
                .to_owned(),
        };
        self.answers.iter().position(|a| *a == answer).with_context(|| format!("the answer is {answer:?}"))
    }
}

pub fn connect(port: u16) -> Result<BufReader<TcpStream>> {
    let stream = TcpStream::connect(("127.0.0.1", port)).context("cannot connect")?;
    stream.set_read_timeout(Some(crate::deadline()))?;
    Ok(BufReader::new(stream))
}

/// Headers and body of an answer, which must be a 200.
pub fn get(stream: &mut BufReader<TcpStream>, path: &str) -> Result<(Vec<String>, String)> {
    stream.get_mut().write_all(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes())?;
    let mut headers = Vec::new();
    let mut length = 0;
    loop {
        let mut line = String::new();
        stream.read_line(&mut line)?;
        let line = line.trim_end();
        if line.is_empty() {
            break;
        }
        if let Some(n) = line.strip_prefix("Content-Length: ") {
            length = n.parse()?;
        }
        headers.push(line.to_owned());
    }
    ensure!(
        headers.first().is_some_and(|line| line.starts_with("HTTP/1.1 200 ")),
        "the answer is {headers:?}"
    );
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    Ok((headers, String::from_utf8(body)?))
}

/// Starts wrk, which looks at every answer as the client does.
pub fn load(directory: &Path, client: &Client) -> Result<Background> {
    let part = match client.part {
        Part::Header(name) => name,
        Part::Body => "body",
    };
    let answers: Vec<_> = client.answers.iter().map(|a| format!("'{a}'")).collect();
    std::fs::copy(source("check.lua"), directory.join("check.lua")).context("cannot copy check.lua")?;
    start_in(
        directory,
        &format!(
            "wrk -t 1 -c 16 -d 24h -s check.lua http://127.0.0.1:{}{} -- {part} {}",
            client.port,
            client.path,
            answers.join(" ")
        ),
    )
}

/// Has wrk end, and reads what it counted.
pub fn end_load(mut load: Background) -> Result<Load> {
    kill(load.pid(), libc::SIGINT);
    let (code, stdout, stderr) = load.wait()?;
    let all = || format!("{}\n{}", stdout.join("\n"), stderr.join("\n"));
    ensure!(code == 0, "wrk ended with {code}:\n{}", all());
    let counts = stdout.iter().find_map(|line| {
        let (requests, failed) = line.strip_prefix("requests ")?.split_once(" failed ")?;
        Some((requests.parse().ok()?, failed.parse().ok()?))
    });
    let (requests, failed) = counts.with_context(|| format!("wrk said no counts:\n{}", all()))?;
    if failed > 0 {
        eprintln!("{}", all());
    }
    Ok(Load { requests, failed, answered: Vec::new() })
}
