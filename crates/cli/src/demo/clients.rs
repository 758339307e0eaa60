//! The load of the demonstration: threads that ask the server without pause and check every answer.
//!
//! Each client keeps what it must get: the version of the price and of the checksum that is right at the time, or either
//! of the two while a command runs. A request is judged only by an expectation that held from before it was sent until
//! after it was answered.

use anyhow::{Context, Result};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Clients that keep their connection.
const STEADY: usize = 4;
/// Clients that make a new connection for each request.
const HASTY: usize = 2;
/// An answer that takes longer is an error.
const PATIENCE: Duration = Duration::from_secs(20);

const TEXT: &str = "the-quick-brown-fox-jumps-over-the-lazy-dog";
const CENTS: u64 = 250;
/// The number of pieces for which the server is wrong.
const COUNT: u64 = 10;

/// Which code of a function answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// The server's own.
    Old,
    /// A patch's.
    New,
}

/// What the clients got in a time.
#[derive(Clone, Copy, Debug, Default)]
pub struct Served {
    /// Answers, right and wrong.
    pub requests: u64,
    /// Answers that were wrong for their time, and requests without an answer.
    pub errors: u64,
    /// The longest that an answer took.
    pub longest: Duration,
    /// Which versions of the price and of the checksum were seen last.
    newest: (Option<bool>, Option<bool>),
}

impl Served {
    /// Whether the last price was right, in a word.
    pub fn price(&self) -> &'static str {
        word(self.newest.0)
    }

    /// Whether the last checksum was right, in a word.
    pub fn checksum(&self) -> &'static str {
        word(self.newest.1)
    }
}

fn word(right: Option<bool>) -> &'static str {
    match right {
        Some(true) => "right",
        Some(false) => "wrong",
        None => "?",
    }
}

/// Errors over the whole time, and what the first one was.
pub struct Failure {
    /// Their number.
    pub errors: u64,
    /// The first of them.
    pub first: Option<String>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    /// Grows with every change of what is expected. Odd while either version is right.
    epoch: AtomicU64,
    expected: Mutex<(Option<Version>, Option<Version>)>,
    served: Mutex<Served>,
    errors: AtomicU64,
    first_error: Mutex<Option<String>>,
}

/// Running clients.
pub struct Clients {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Clients {
    /// Starts them; they expect the server as it was built.
    pub fn start(port: u16) -> Result<Clients> {
        let shared = Arc::new(Shared::default());
        *lock(&shared.expected) = (Some(Version::Old), Some(Version::Old));
        let mut clients = Clients { shared, threads: Vec::new() };
        for number in 0..STEADY + HASTY {
            let shared = clients.shared.clone();
            let thread = std::thread::Builder::new()
                .spawn(move || client(&shared, port, number < STEADY))
                .context("cannot start a client")?;
            clients.threads.push(thread);
        }
        Ok(clients)
    }

    /// How many there are.
    pub fn number(&self) -> usize {
        self.threads.len()
    }

    /// From now on these versions of price and checksum are right; `None`: either of each.
    pub fn expect(&self, versions: Option<(Version, Version)>) {
        let mut expected = lock(&self.shared.expected);
        *expected = (versions.map(|v| v.0), versions.map(|v| v.1));
        self.shared.epoch.fetch_add(1, Ordering::SeqCst);
    }

    /// What was served since the last call.
    pub fn take(&self) -> Served {
        std::mem::take(&mut *lock(&self.shared.served))
    }

    /// Ends them.
    pub fn stop(mut self) -> Failure {
        self.end();
        Failure {
            errors: self.shared.errors.load(Ordering::SeqCst),
            first: lock(&self.shared.first_error).take(),
        }
    }

    fn end(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        self.end();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the two versions of each function answer, old and new.
struct Answers {
    price: [String; 2],
    checksum: [String; 2],
}

fn client(shared: &Shared, port: u16, steady: bool) {
    let full = CENTS * COUNT;
    let crc = crc32(TEXT.as_bytes());
    let answers = Answers {
        price: [full.to_string(), (full - full / 10).to_string()],
        checksum: [format!("{:08x}", !crc), format!("{crc:08x}")],
    };
    let mut connection = None;
    let mut turn = false;
    while !shared.stop.load(Ordering::Relaxed) {
        turn = !turn;
        let epoch = shared.epoch.load(Ordering::SeqCst);
        let (price, checksum) = *lock(&shared.expected);
        let (path, expected, versions) = match turn {
            true => (format!("/price?cents={CENTS}&count={COUNT}"), price, &answers.price),
            false => (format!("/checksum?text={TEXT}"), checksum, &answers.checksum),
        };
        let begun = Instant::now();
        let answer = ask(&mut connection, port, &path);
        let took = begun.elapsed();
        if !steady {
            connection = None;
        }
        let verdict = match answer {
            Ok(answer) => match versions.iter().position(|version| *version == answer) {
                None => Err(format!("{path} was answered {answer}")),
                Some(seen) => {
                    let judged = shared.epoch.load(Ordering::SeqCst) == epoch;
                    match expected {
                        Some(version) if judged && (version == Version::New) != (seen == 1) => {
                            Err(format!("{path} was answered {answer}, by code that does not run any more"))
                        }
                        _ => Ok(seen == 1),
                    }
                }
            },
            Err(error) => {
                connection = None;
                Err(format!("{path}: {error:#}"))
            }
        };
        let mut served = lock(&shared.served);
        served.requests += 1;
        served.longest = served.longest.max(took);
        match verdict {
            Ok(right) if turn => served.newest.0 = Some(right),
            Ok(right) => served.newest.1 = Some(right),
            Err(error) => {
                served.errors += 1;
                shared.errors.fetch_add(1, Ordering::SeqCst);
                lock(&shared.first_error).get_or_insert(error);
            }
        }
    }
}

/// One request over the connection, which is made if there is none.
fn ask(connection: &mut Option<BufReader<TcpStream>>, port: u16, path: &str) -> Result<String> {
    let stream = match connection {
        Some(stream) => stream,
        None => {
            let stream = TcpStream::connect(("127.0.0.1", port)).context("cannot connect")?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            connection.insert(BufReader::new(stream))
        }
    };
    stream
        .get_mut()
        .write_all(format!("GET {path} HTTP/1.1\r\nHost: demo\r\n\r\n").as_bytes())
        .context("cannot send")?;
    let mut length = None;
    let mut line = String::new();
    loop {
        line.clear();
        stream.read_line(&mut line).context("no answer")?;
        match line.trim_end() {
            "" => break,
            header => {
                if let Some(value) = header.strip_prefix("Content-Length: ") {
                    length = Some(value.parse::<u8>().context("an odd length")?);
                }
            }
        }
    }
    let mut body = vec![0; usize::from(length.context("an answer without a length")?)];
    stream.read_exact(&mut body).context("half an answer")?;
    Ok(String::from_utf8_lossy(&body).trim_end().to_owned())
}

/// CRC-32 as everybody computes it (ISO 3309), for comparison.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |c, _| if c & 1 == 1 { c >> 1 ^ 0xedb8_8320 } else { c >> 1 })
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_checksum_has_its_known_value() {
        assert_eq!(super::crc32(b"123456789"), 0xcbf4_3926);
    }
}
