//! A page-wise copy of the target's memory, filled as it is read.
//!
//! The tables that the loader uses (link map, dynamic sections, hash tables, dynamic symbols) are walked in many
//! small steps over few pages; each page is read from the target once. What may change while the tool runs (slots
//! of a global offset table, code) is read through [`Memory`] and never from here.

use crate::target::memory::Memory;
use crate::{RemoteAddr, Result};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

const PAGE: u64 = 4096;

#[derive(Debug)]
pub(crate) struct Pages<'t> {
    memory: &'t Memory,
    cache: Mutex<HashMap<u64, Arc<[u8]>>>,
}

impl<'t> Pages<'t> {
    pub(crate) fn new(memory: &'t Memory) -> Self {
        Self { memory, cache: Mutex::default() }
    }

    pub(crate) fn memory(&self) -> &'t Memory {
        self.memory
    }

    fn page(&self, base: u64) -> Result<Arc<[u8]>> {
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(page) = cache.get(&base) {
            return Ok(page.clone());
        }
        let page: Arc<[u8]> = self.memory.read_vec(RemoteAddr(base), PAGE as usize)?.into();
        cache.insert(base, page.clone());
        Ok(page)
    }

    /// Fills `buf` from `addr`.
    pub(crate) fn read(&self, addr: RemoteAddr, buf: &mut [u8]) -> Result<()> {
        let mut done = 0;
        while done < buf.len() {
            let at = addr.0.wrapping_add(done as u64);
            let page = self.page(at & !(PAGE - 1))?;
            let from = &page[(at % PAGE) as usize..];
            let n = from.len().min(buf.len() - done);
            buf[done..done + n].copy_from_slice(&from[..n]);
            done += n;
        }
        Ok(())
    }

    pub(crate) fn vec(&self, addr: RemoteAddr, len: usize) -> Result<Vec<u8>> {
        let mut buf = vec![0; len];
        self.read(addr, &mut buf)?;
        Ok(buf)
    }

    pub(crate) fn u64(&self, addr: RemoteAddr) -> Result<u64> {
        let mut buf = [0; 8];
        self.read(addr, &mut buf)?;
        Ok(u64::from_le_bytes(buf))
    }

    pub(crate) fn u32(&self, addr: RemoteAddr) -> Result<u32> {
        let mut buf = [0; 4];
        self.read(addr, &mut buf)?;
        Ok(u32::from_le_bytes(buf))
    }

    pub(crate) fn u16(&self, addr: RemoteAddr) -> Result<u16> {
        let mut buf = [0; 2];
        self.read(addr, &mut buf)?;
        Ok(u16::from_le_bytes(buf))
    }

    /// The NUL-terminated string at `addr`; `None` where it is longer than `limit` bytes.
    pub(crate) fn cstr(&self, addr: RemoteAddr, limit: usize) -> Result<Option<Vec<u8>>> {
        let mut out = Vec::new();
        while out.len() <= limit {
            let at = addr.0.wrapping_add(out.len() as u64);
            let page = self.page(at & !(PAGE - 1))?;
            let from = &page[(at % PAGE) as usize..];
            if let Some(end) = from.iter().position(|b| *b == 0) {
                out.extend_from_slice(&from[..end]);
                return Ok((out.len() <= limit).then_some(out));
            }
            out.extend_from_slice(from);
        }
        Ok(None)
    }

    /// Whether the NUL-terminated string at `addr` is `name`.
    pub(crate) fn cstr_is(&self, addr: RemoteAddr, name: &[u8]) -> Result<bool> {
        let mut done = 0;
        while done <= name.len() {
            let at = addr.0.wrapping_add(done as u64);
            let page = self.page(at & !(PAGE - 1))?;
            let from = &page[(at % PAGE) as usize..];
            let left = &name[done..];
            let n = from.len().min(left.len());
            if from[..n] != left[..n] {
                return Ok(false);
            }
            if n < from.len() {
                return Ok(from[n] == 0);
            }
            done += n;
        }
        Ok(false)
    }
}
