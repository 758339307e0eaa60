//! The runtime in a target: linked there when the first patch needs it, gone with the last patch.
//!
//! It is an object file that the tool carries (see `ugraft-runtime`), placed and linked like a patch. Patches reach its functions
//! by their names, before those of the target.

use crate::objects::scope::Value;
use crate::objects::{Objects, Role};
use crate::remote::mapping::{Part, Prot};
use crate::remote::seccomp;
use crate::session::Session;
use crate::session::batch::{Batch, PAGE};
use crate::session::resolve::NoSymbols;
use crate::state::document::Document;
use crate::state::log_ring::{Level, Record};
use crate::state::pieces::{LoaderHook, Runtime, Tables};
use crate::target::memory::Memory;
use crate::{Error, RemoteAddr, Result, Tid, threads};
use std::mem::{offset_of, size_of};
use std::ops::Range;
use std::time::Duration;
use ugraft_core::{Life, PatchId};
use ugraft_image::{LinkedImage, PatchFile};
use ugraft_runtime::expected::VERSION;
use ugraft_runtime::layout::{
    FIRST_CHUNK, LOG_MAGIC, LOG_SLOTS, LogHead, LogSlot, PATCHES_MAX, Patches, TEXT_MAX,
};

/// Name of the memfd behind it.
pub const RUNTIME_NAME: &str = "ugraft:runtime";

/// The longest that a stop may take to look at seccomp filters.
const STOP_WITHIN: Duration = Duration::from_secs(1);

/// Whether a patch calls the runtime.
#[must_use]
pub fn is_needed(patch: &PatchFile) -> bool {
    patch.imports().iter().any(|import| import.klp.is_none() && is_function(&import.name))
}

fn is_function(name: &str) -> bool {
    ugraft_runtime::FUNCTIONS.contains(&name)
}

/// What lets the runtime map memory by itself: a page behind its image, and the word for that page's address.
struct Seed {
    page: RemoteAddr,
    word: RemoteAddr,
}

/// Links the runtime for a free place, and adds what is to be mapped and written to `batch`.
///
/// # Errors
/// [`Error::NoPlace`]; others cannot be, since the object is the tool's own.
pub fn plan(objects: &Objects<'_>, batch: &mut Batch) -> Result<Runtime> {
    place(objects, batch).map(|(runtime, _)| runtime)
}

fn place(objects: &Objects<'_>, batch: &mut Batch) -> Result<(Runtime, Seed)> {
    let file = PatchFile::parse(ugraft_runtime::OBJECT, "runtime")?;
    let layout = file.layout();
    let len = layout.size + PAGE;
    // Within reach of the loader, which is to lead to the hook.
    let brk: Vec<_> =
        objects.loader_debug().map(|debug| debug.brk).filter(|brk| brk.0 != 0).into_iter().collect();
    let near = batch.ground.take(len, &brk);
    let mapping = near.or_else(|_| batch.ground.take(len, &[]))?;
    let linked = ugraft_image::link(&file, mapping.start, &mut NoSymbols)?;
    batch.add_image(RUNTIME_NAME.to_owned(), layout, &linked);
    if let Some(request) = batch.requests.last_mut() {
        request.len = len;
        request.parts.push(Part { offset: layout.size, len: PAGE, prot: Prot::Seed });
    }
    let seed = Seed {
        page: mapping.start.offset(layout.size as i64),
        word: variable(&linked, ugraft_runtime::CHUNK_SEED)?,
    };
    let runtime = describe(&linked, mapping)?;
    let clock = clock_gettime(objects).0.to_le_bytes().to_vec();
    batch.writes.push((runtime.log.offset(offset_of!(LogHead, clock) as i64), clock));
    Ok((runtime, seed))
}

impl Session {
    /// [`plan`], and has the runtime map memory by itself if the process can be expected to survive that.
    ///
    /// # Errors
    /// As [`plan`], and what looking at the process's threads fails with.
    pub(crate) fn plan_runtime(&mut self, objects: &Objects<'_>, batch: &mut Batch) -> Result<Runtime> {
        let (runtime, seed) = place(objects, batch)?;
        match self.fatal_call(&runtime, &seed)? {
            None => batch.writes.push((seed.word, seed.page.0.to_le_bytes().to_vec())),
            Some(call) => self.notes.push(format!(
                "there are {} KiB for shadow variables and no more: the process runs under a seccomp filter, which could kill \
                 it for the {call} that more would take",
                FIRST_CHUNK >> 10
            )),
        }
        Ok(runtime)
    }

    /// The call, of those with which the runtime maps memory, for which a seccomp filter could kill the process.
    fn fatal_call(&mut self, runtime: &Runtime, seed: &Seed) -> Result<Option<&'static str>> {
        let pid = self.target.pid();
        // A thread may have filters of its own; one that has ended has none.
        let is_filtered = |tid: &Tid| seccomp::is_filtered(pid, *tid).unwrap_or(false);
        if !self.target.threads()?.iter().any(is_filtered) {
            return Ok(None);
        }
        let calls = growing(runtime.mapping.start, seed.page);
        let stopped = threads::stop_all(&self.target, STOP_WITHIN)?;
        let fatal = stopped.threads().iter().find_map(|thread| seccomp::fatal(thread.tid(), &calls));
        self.let_go(stopped)?;
        Ok(fatal)
    }
}

/// The calls with which the runtime maps memory (`crates/runtime/code/runtime/chunk.rs`), for filters. These see addresses and lengths,
/// too, but cannot mean those.
fn growing(code: RemoteAddr, seed: RemoteAddr) -> [seccomp::Call; 4] {
    const LEN: u64 = 1 << 20;
    let call =
        |name, number, args| seccomp::Call { name, number, instruction_pointer: code.0, args, vital: false };
    let over = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED) as u64;
    let write = (libc::PROT_READ | libc::PROT_WRITE) as u64;
    let [none, moving] = [libc::PROT_NONE as u64, libc::MREMAP_MAYMOVE as u64];
    [
        call("mremap", libc::SYS_mremap, [seed.0, 0, LEN, moving, 0, 0]),
        call("mmap", libc::SYS_mmap, [seed.0, LEN, none, over, u64::MAX, 0]),
        call("mprotect", libc::SYS_mprotect, [seed.0, LEN, write, 0, 0, 0]),
        call("munmap", libc::SYS_munmap, [seed.0, LEN, 0, 0, 0, 0]),
    ]
}

fn missing(name: &str) -> Error {
    Error::Damaged(format!("the runtime has no {name}"))
}

fn variable(linked: &LinkedImage, name: &str) -> Result<RemoteAddr> {
    let found = linked.variables.iter().find(|symbol| symbol.name == name);
    found.map(|symbol| symbol.addr).ok_or_else(|| missing(name))
}

fn describe(linked: &LinkedImage, mapping: Range<RemoteAddr>) -> Result<Runtime> {
    let variable = |name: &str| variable(linked, name);
    let functions = linked.symbols.iter().filter(|symbol| is_function(&symbol.name));
    let function = |name: &str| {
        let found = linked.symbols.iter().find(|symbol| symbol.name == name);
        found.map(|symbol| symbol.addr).ok_or_else(|| missing(name))
    };
    Ok(Runtime {
        version: VERSION,
        mapping,
        functions: functions.map(|symbol| (symbol.name.clone(), symbol.addr)).collect(),
        log: variable(ugraft_runtime::LOG)?,
        patches: variable(ugraft_runtime::PATCHES)?,
        tables: Tables::of(linked),
        hook: Some(LoaderHook {
            function: function(ugraft_runtime::LOADER_HOOK)?,
            words: variable(ugraft_runtime::LOADER)?,
            running: variable(ugraft_runtime::RUNNING)?,
            finalizers: variable(ugraft_runtime::FINALIZERS)?,
            finalizer_code: function(ugraft_runtime::FINALIZER_CODE)?,
        }),
    })
}

/// The target's clock: the kernel's own function, which makes no system call, or the C library's; 0 where there is none.
fn clock_gettime(objects: &Objects<'_>) -> RemoteAddr {
    let vdso = objects.iter().find(|object| object.role() == Role::Vdso);
    if let Some(function) = vdso.and_then(|vdso| vdso.function("__vdso_clock_gettime", 0).ok()) {
        return function.address;
    }
    let exported = objects.scope(&[]).ok().and_then(|scope| scope.resolve("clock_gettime", None).ok());
    match exported.map(|found| found.value) {
        Some(Value::Address(addr)) => addr,
        _ => RemoteAddr(0),
    }
}

/// Tells the runtime which patches' states count while a callback of `current` runs: those enabled below it.
pub(crate) fn tell_patches(memory: &Memory, document: &Document, current: PatchId) -> Result<()> {
    let Some(runtime) = &document.runtime else { return Ok(()) };
    let below = document.state.patches().iter().take_while(|patch| patch.id() != current);
    let enabled = below.filter(|patch| patch.life() == Life::Enabled);
    let mut addresses: Vec<u64> =
        enabled.filter_map(|patch| Some(document.image(patch.id()).ok()?.structure.0)).collect();
    // The newest count.
    addresses.drain(..addresses.len().saturating_sub(PATCHES_MAX));
    let words = std::iter::once(addresses.len() as u64).chain(addresses);
    let bytes: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
    const _: () = assert!(offset_of!(Patches, count) == 0 && offset_of!(Patches, patches) == 8);
    memory.write(runtime.patches, &bytes)
}

impl Runtime {
    /// The messages of patches, in the order in which they were begun.
    ///
    /// # Errors
    /// [`Error::Memory`] on a failed read.
    pub fn records(&self, memory: &Memory) -> Result<Vec<Record>> {
        let read = || memory.read_vec(self.log, size_of::<LogHead>() + LOG_SLOTS * size_of::<LogSlot>());
        // A slot that is the same twice was not being written.
        let (bytes, again) = (read()?, read()?);
        if word(&bytes, offset_of!(LogHead, magic)) != LOG_MAGIC {
            return Ok(Vec::new());
        }
        let slots = |bytes: &[u8]| -> Vec<Vec<u8>> {
            bytes[size_of::<LogHead>()..].chunks_exact(size_of::<LogSlot>()).map(<[u8]>::to_vec).collect()
        };
        let mut records: Vec<(u64, Record)> = slots(&bytes)
            .iter()
            .zip(&slots(&again))
            .filter(|(slot, again)| slot == again)
            .filter_map(|(slot, _)| record(slot))
            .collect();
        records.sort_by_key(|(number, _)| *number);
        Ok(records.into_iter().map(|(_, record)| record).collect())
    }
}

fn record(slot: &[u8]) -> Option<(u64, Record)> {
    let state = word(slot, offset_of!(LogSlot, state));
    if state == 0 || state % 2 == 1 {
        return None;
    }
    let half = |at: usize| word(slot, at & !7) >> (8 * (at & 7)) & 0xffff_ffff;
    let len = (half(offset_of!(LogSlot, len)) as usize).min(TEXT_MAX);
    let text = &slot[offset_of!(LogSlot, text)..][..len];
    // What patches print may be anything; a terminal is to show it, not to act on it.
    let text = String::from_utf8_lossy(text).chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let level = Level::from_byte(half(offset_of!(LogSlot, level)) as u8);
    Some((state / 2 - 1, Record { time_ns: word(slot, offset_of!(LogSlot, time)), level, text }))
}

fn word(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes)
}
