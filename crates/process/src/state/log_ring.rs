//! The log ring: the messages of a target's live patching, kept in its state area like the kernel's `dmesg`.
//!
//! ```text
//! oldest: u64    position of the oldest record          positions only grow; modulo the ring's length
//! written: u64   position behind the newest record
//! bytes          records: len u32, level u8, 3 zero, time u64, text, padded to 8
//! ```
//!
//! A writer first gives up what it will overwrite (`oldest`), then writes the record, then counts it (`written`):
//! a writer that dies in between loses its own record only.

use crate::target::memory::Memory;
use crate::{RemoteAddr, Result};
use serde::{Deserialize, Serialize};
use std::time::{SystemTime, UNIX_EPOCH};

const HEADER_LEN: u64 = 16;
const RECORD_HEADER_LEN: u64 = 16;

/// The longest text of one message, in bytes; longer ones are cut at a character.
pub const MAX_TEXT: usize = 1000;

/// How grave a message is, by the kernel's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum Level {
    /// `pr_err`
    Err = 3,
    /// `pr_warn`
    Warn = 4,
    /// `pr_notice`
    Notice = 5,
    /// `pr_info`
    Info = 6,
    /// `pr_debug`
    Debug = 7,
}

impl Level {
    pub(crate) fn from_byte(byte: u8) -> Self {
        match byte {
            0..=3 => Self::Err,
            4 => Self::Warn,
            5 => Self::Notice,
            6 => Self::Info,
            _ => Self::Debug,
        }
    }
}

/// One message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// When it was written, in nanoseconds since 1970-01-01 UTC.
    pub time_ns: u64,
    /// How grave it is.
    pub level: Level,
    /// The text, without a line end.
    pub text: String,
}

/// A log ring in a target.
#[derive(Clone, Copy, Debug)]
pub struct LogRing {
    base: RemoteAddr,
    len: u64,
}

impl LogRing {
    /// The ring at `base`, `len` bytes with its header.
    #[must_use]
    pub fn new((base, len): (RemoteAddr, u64)) -> Self {
        Self { base, len: (len - HEADER_LEN) & !7 }
    }

    /// Appends a message with the time of now.
    ///
    /// # Errors
    /// [`crate::Error::Memory`] on a failed access.
    pub fn append(&self, memory: &Memory, level: Level, text: &str) -> Result<()> {
        self.append_all(memory, &[(level, text.to_owned())])
    }

    /// Appends messages with the time of now, as many at once as there is room for.
    ///
    /// # Errors
    /// As [`LogRing::append`].
    pub fn append_all(&self, memory: &Memory, messages: &[(Level, String)]) -> Result<()> {
        let time_ns = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64);
        let mut records = Vec::new();
        for (level, text) in messages {
            let record = encode(&Record { time_ns, level: *level, text: cut(text).to_owned() });
            if (records.len() + record.len()) as u64 > self.len {
                self.append_records(memory, &std::mem::take(&mut records))?;
            }
            records.extend(record);
        }
        if records.is_empty() { Ok(()) } else { self.append_records(memory, &records) }
    }

    fn append_records(&self, memory: &Memory, records: &[u8]) -> Result<()> {
        let mut header = [0; 16];
        memory.read(self.base, &mut header)?;
        let [mut oldest, written] =
            [0, 8].map(|at| header[at..at + 8].try_into().map(u64::from_le_bytes).unwrap_or_default());
        let end = written + records.len() as u64;
        if end - oldest > self.len {
            while end - oldest > self.len {
                oldest += self.record_len(memory, oldest)?.unwrap_or(written - oldest);
            }
            memory.write(self.base, &oldest.to_le_bytes())?;
        }
        self.write_at(memory, written, records)?;
        memory.write(self.base.offset(8), &end.to_le_bytes())
    }

    /// All messages, oldest first; also while somebody appends some.
    ///
    /// # Errors
    /// [`crate::Error::Memory`] on a failed read.
    pub fn records(&self, memory: &Memory) -> Result<Vec<Record>> {
        // Who appends as fast as the ring is read cannot go on so for long.
        const TRIES: usize = 100;
        for _ in 0..TRIES {
            let oldest = memory.read_u64(self.base)?;
            let written = memory.read_u64(self.base.offset(8))?;
            let len = written.saturating_sub(oldest);
            let bytes = if len <= self.len { self.read_at(memory, oldest, len)? } else { Vec::new() };
            // What was overwritten meanwhile had been given up before.
            let given_up = memory.read_u64(self.base)?.saturating_sub(oldest);
            if let Some(whole) = bytes.get(given_up as usize..)
                && len <= self.len
            {
                return Ok(decode_all(whole));
            }
        }
        Ok(Vec::new())
    }

    fn record_len(&self, memory: &Memory, position: u64) -> Result<Option<u64>> {
        let header = self.read_at(memory, position, RECORD_HEADER_LEN)?;
        let text = u64::from(u32::from_le_bytes([header[0], header[1], header[2], header[3]]));
        Ok((text <= MAX_TEXT as u64).then(|| padded(text)))
    }

    fn write_at(&self, memory: &Memory, position: u64, bytes: &[u8]) -> Result<()> {
        let at = position % self.len;
        let first = bytes.len().min((self.len - at) as usize);
        memory.write(self.data(at), &bytes[..first])?;
        memory.write(self.data(0), &bytes[first..])
    }

    fn read_at(&self, memory: &Memory, position: u64, len: u64) -> Result<Vec<u8>> {
        let at = position % self.len;
        let first = len.min(self.len - at);
        let mut bytes = memory.read_vec(self.data(at), first as usize)?;
        bytes.extend(memory.read_vec(self.data(0), (len - first) as usize)?);
        Ok(bytes)
    }

    fn data(&self, at: u64) -> RemoteAddr {
        self.base.offset((HEADER_LEN + at) as i64)
    }
}

fn padded(text_len: u64) -> u64 {
    RECORD_HEADER_LEN + text_len.next_multiple_of(8)
}

fn cut(text: &str) -> &str {
    let mut end = text.len().min(MAX_TEXT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

fn encode(record: &Record) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend((record.text.len() as u32).to_le_bytes());
    bytes.extend([record.level as u8, 0, 0, 0]);
    bytes.extend(record.time_ns.to_le_bytes());
    bytes.extend(record.text.as_bytes());
    bytes.resize(padded(record.text.len() as u64) as usize, 0);
    bytes
}

fn decode_all(mut bytes: &[u8]) -> Vec<Record> {
    let mut records = Vec::new();
    while let Some((record, len)) = decode(bytes) {
        records.push(record);
        bytes = bytes.get(len..).unwrap_or_default();
    }
    records
}

fn decode(bytes: &[u8]) -> Option<(Record, usize)> {
    let (header, rest) = bytes.split_first_chunk::<{ RECORD_HEADER_LEN as usize }>()?;
    let text_len = u32::from_le_bytes(*header.first_chunk()?) as usize;
    let time_ns = u64::from_le_bytes(*header.last_chunk()?);
    let text = String::from_utf8_lossy(rest.get(..text_len)?).into_owned();
    let record = Record { time_ns, level: Level::from_byte(header[4]), text };
    Some((record, padded(text_len as u64) as usize))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Pid;
    use std::fs::OpenOptions;

    fn ring(len: u64) -> (Memory, LogRing) {
        let file = OpenOptions::new().read(true).write(true).open("/proc/self/mem").unwrap();
        let memory = Memory::new(Pid(std::process::id() as i32), file);
        let base = RemoteAddr(Vec::leak(vec![0u64; len as usize / 8]).as_ptr() as u64);
        (memory, LogRing::new((base, len)))
    }

    fn texts(ring: &LogRing, memory: &Memory) -> Vec<String> {
        ring.records(memory).unwrap().into_iter().map(|r| r.text).collect()
    }

    #[test]
    fn messages_come_back_in_order() {
        let (memory, ring) = ring(4096);
        assert!(ring.records(&memory).unwrap().is_empty());
        ring.append(&memory, Level::Notice, "livepatch: enabling patch 'x'").unwrap();
        ring.append(&memory, Level::Warn, "").unwrap();
        let records = ring.records(&memory).unwrap();
        assert_eq!(records[0].text, "livepatch: enabling patch 'x'");
        assert_eq!((records[0].level, records[1].level), (Level::Notice, Level::Warn));
        assert!(records[0].time_ns > 0 && records[0].time_ns <= records[1].time_ns);
    }

    #[test]
    fn the_oldest_give_way_to_the_newest() {
        let (memory, ring) = ring(1024 + 16);
        for i in 0..1000 {
            ring.append(&memory, Level::Info, &format!("message {i} {}", "x".repeat(i % 40))).unwrap();
            let texts = texts(&ring, &memory);
            assert!(texts.last().unwrap().starts_with(&format!("message {i} ")));
            let numbers: Vec<usize> =
                texts.iter().map(|t| t.split(' ').nth(1).unwrap().parse().unwrap()).collect();
            assert!(numbers.windows(2).all(|w| w[1] == w[0] + 1), "{numbers:?}");
            assert!(i < 30 || numbers.len() >= 10);
        }
    }

    #[test]
    fn a_long_text_is_cut_at_a_character() {
        let (memory, ring) = ring(4096);
        ring.append(&memory, Level::Info, &"é".repeat(2000)).unwrap();
        let texts = texts(&ring, &memory);
        assert_eq!(texts[0], "é".repeat(MAX_TEXT / 2));
    }
}
