//! Making the images of patches known to the unwinders in the target: those of exceptions and of thread cancellation, and
//! whatever else walks stacks there.
//!
//! They ask the loader, by two functions. These are redirected as any function, to code of ours that knows the images and asks the
//! originals for all else (`ugraft-runtime`'s `unwinder.rs`). So it does not matter how many unwinders there are, nor when they
//! are loaded; nothing has to be run in the target; and it ends with the last image.
//!
//! ```text
//! plan      the code, its table, thunks of the originals: mapped with the first image      commit
//! lead      entries lead to the code: under the stop that begins the first transition, or
//!           one of its own before the first callback
//! add       an image's slot is written with the image
//! remove    under the stop that proves that no stack refers to the image, and that
//!           nobody is in the code
//! retire    with the last image, under the same stop: the original bytes come back          commit
//! ```
//!
//! Why nobody reads what is gone: an unwinder reads an image's tables for an address in the image that it has from the
//! stack that it walks, its own thread's, where the activation whose address that is still is. So the stack refers to the
//! image, and it is not unmapped. Where an activation's address is known from elsewhere (a list of addresses taken
//! earlier), only the table of images is read, by our code, which nobody is in when that changes.

use crate::clock;
use crate::code::entry::{Entry, Installed};
use crate::code::thunk;
use crate::objects::scope::Value;
use crate::objects::{Objects, Role};
use crate::remote::mapping::{Part as MappedPart, Prot};
use crate::session::Session;
use crate::session::batch::{Batch, PAGE};
use crate::session::look::{Looker, entry_bytes, watch_range};
use crate::session::resolve::NoSymbols;
use crate::session::site::Finder;
use crate::stacks::watch::{Part, Watch, WatchRange};
use crate::state::document::Document;
use crate::state::pieces::{Tables, Unwinder, UnwinderHook};
use crate::target::Target;
use crate::target::maps::Maps;
use crate::target::memory::Memory;
use crate::threads::StoppedProcess;
use crate::{Error, RemoteAddr, Result};
use std::mem::{offset_of, size_of};
use std::ops::Range;
use std::time::{Duration, Instant};
use ugraft_core::FuncId;
use ugraft_image::{LinkedImage, PatchFile};
use ugraft_runtime::unwinder::{NAME_LEN, SLOTS, Slot, Table};
use ugraft_runtime::{UNWINDER_FUNCTIONS, UNWINDER_OBJECT, UNWINDER_TABLE};

/// Name of the memfd behind it.
pub const UNWINDER_NAME: &str = "ugraft:unwinder";

/// The C library of glibc.
const LIBC: &str = "libc.so.6";

/// Bytes from one thunk to the next.
const THUNK_LEN: usize = thunk::MAX_LEN.next_multiple_of(thunk::ALIGN);
/// Pause between two attempts to lead the entries.
const PAUSE: Duration = Duration::from_millis(2);
/// The longest that they may take; then callbacks run without.
const LEAD_WITHIN: Duration = Duration::from_secs(1);

const PT_LOAD: u32 = 1;
const PT_GNU_EH_FRAME: u32 = 0x6474_e550;
const READ_EXECUTE: u32 = 5;
const READ: u32 = 4;

impl Tables {
    /// The tables of a linked image, if it has any.
    #[must_use]
    pub fn of(linked: &LinkedImage) -> Option<Self> {
        let range = |(addr, size): (RemoteAddr, u64)| addr..addr.offset(size as i64);
        let text = linked.segments.iter().find(|segment| segment.part == ugraft_image::Part::Text)?;
        Some(Self {
            code: range((text.addr, text.mem_size)),
            tables: range(linked.eh_frame?),
            index: range(linked.eh_frame_hdr?),
        })
    }
}

impl UnwinderHook {
    fn installed(&self, memory: &Memory) -> Result<Installed> {
        self.entry.installed(|addr, buf| memory.read(addr, buf))
    }
}

/// Names of which an object or a patch needs one to unwind, or to bring in what does: the functions that unwinders ask, those of
/// the C library that load an unwinder (libgcc) by themselves, and those that load anything.
const WAYS_TO_UNWIND: [&str; 11] = [
    "_dl_find_object",
    "dl_iterate_phdr",
    "backtrace",
    "pthread_cancel",
    "pthread_exit",
    "thrd_exit",
    "dlopen",
    "dlmopen",
    "dlsym",
    "dlvsym",
    "__libc_dlopen_mode",
];

/// Whether anything can come to unwind in the target, with what the patch needs: if not, nobody has to be told of images, and the
/// C library's symbols and code need not be read for it. What the C library and the loader have for others says nothing.
fn may_unwind(objects: &Objects<'_>, patch: &PatchFile) -> Result<bool> {
    let used =
        patch.imports().iter().any(|import| WAYS_TO_UNWIND.iter().any(|way| import.name.contains(way)));
    if used || objects.main().is_static() {
        return Ok(true);
    }
    for object in objects.iter().filter(|o| matches!(o.role(), Role::Main | Role::Library)) {
        if object.is_called(LIBC) {
            continue;
        }
        let dynamic = object.dynamic()?;
        for name in WAYS_TO_UNWIND {
            if dynamic.mentions(&object.pages, name)? {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// Plans our code for a target that has functions to lead to it; `None` where it has none.
///
/// # Errors
/// Where one of them cannot be redirected, or there is no place near them.
pub fn plan(
    target: &Target,
    maps: &Maps,
    objects: &Objects<'_>,
    document: &Document,
    batch: &mut Batch,
) -> Result<Option<Unwinder>> {
    let sites = sites(target, maps, objects, document)?;
    if sites.is_empty() {
        return Ok(None);
    }
    let file = PatchFile::parse(UNWINDER_OBJECT, "unwinder")?;
    let layout = file.layout();
    let thunks_len = ((sites.len() * THUNK_LEN) as u64).next_multiple_of(PAGE);
    let len = layout.size + thunks_len;
    let reach: Vec<_> = sites
        .iter()
        .flat_map(|(_, entry, _)| [vec![entry.jump()], thunk::references(entry)].concat())
        .collect();
    let mapping = batch.ground.take(len, &reach)?;
    let linked = ugraft_image::link(&file, mapping.start, &mut NoSymbols)?;
    let thunks = mapping.start.offset(layout.size as i64);
    let mut code = vec![0xcc; sites.len() * THUNK_LEN];
    let (mut hooks, mut originals) = (Vec::new(), Vec::new());
    for (i, (func, entry, ours)) in sites.into_iter().enumerate() {
        let at = thunks.offset((i * THUNK_LEN) as i64);
        let function = func.to_string();
        let bytes = thunk::emit(&entry, at, false).map_err(|reason| Error::Thunk { function, reason })?;
        code[i * THUNK_LEN..][..bytes.len()].copy_from_slice(&bytes);
        let landing = linked.symbols.iter().find(|symbol| symbol.name == ours);
        let landing = landing.ok_or_else(|| missing(ours))?.addr;
        originals.push((original_of(ours), at));
        hooks.push(UnwinderHook { func, entry, landing });
    }
    let table = linked.variables.iter().find(|symbol| symbol.name == UNWINDER_TABLE);
    let table = table.ok_or_else(|| missing(UNWINDER_TABLE))?.addr;
    let tables = Tables::of(&linked).ok_or_else(|| missing("unwind tables"))?;
    batch.add_image(UNWINDER_NAME.to_owned(), layout, &linked);
    if let Some(request) = batch.requests.last_mut() {
        request.len = len;
        request.parts.push(MappedPart { offset: layout.size, len: thunks_len, prot: Prot::ReadExec });
    }
    batch.writes.push((thunks, code));
    for (offset, at) in originals {
        batch.writes.push((table.offset(offset as i64), at.0.to_le_bytes().to_vec()));
    }
    Ok(Some(Unwinder { mapping, tables, table, hooks }))
}

fn missing(what: &str) -> Error {
    Error::Damaged(format!("the code for unwinders has no {what}"))
}

/// Where the table has the original that `ours` is for.
fn original_of(ours: &str) -> usize {
    match ours {
        "ugraft_dl_find_object" => offset_of!(Table, find_object),
        _ => offset_of!(Table, iterate_phdr),
    }
}

/// The functions of the target that are to lead to ours, with the analysis of their entries, and which of ours.
fn sites(
    target: &Target,
    maps: &Maps,
    objects: &Objects<'_>,
    document: &Document,
) -> Result<Vec<(FuncId, Entry, &'static str)>> {
    let scope = objects.scope(&[])?;
    let mut finder = Finder::new(target.memory(), maps, objects, &document.sites);
    let mut sites = Vec::new();
    for (name, ours) in UNWINDER_FUNCTIONS {
        let Ok(found) = scope.resolve(name, None) else { continue };
        let object = objects.get(found.object);
        let library = (object.role() != Role::Main).then(|| object.name().to_owned());
        let func = FuncId { object: library, name: name.to_owned(), sympos: 0 };
        let entry = match found.value {
            Value::Address(start) if found.size > 0 => {
                finder.find_at(&func, object, start..start.offset(found.size as i64))?
            }
            _ => finder.find(&func)?.entry,
        };
        sites.push((func, entry, ours));
    }
    Ok(sites)
}

/// The writes, in order, that add an image to the table; `None` where it is full. `known` are the slots in use.
fn add(
    unwinder: &Unwinder,
    known: &mut Vec<usize>,
    name: &str,
    image: &Range<RemoteAddr>,
    tables: &Tables,
) -> Option<[(RemoteAddr, Vec<u8>); 4]> {
    let number = (0..SLOTS).find(|n| !known.contains(n))?;
    known.push(number);
    let at = unwinder.slot(number);
    let name_at = at.offset(offset_of!(Slot, name) as i64).0;
    let len = image.end.0 - image.start.0;
    let index = tables.index.start.0 - image.start.0;
    let index_len = tables.index.end.0 - tables.index.start.0;
    let header = |kind: u32, flags: u32, offset: u64, len: u64, align: u64| {
        [u64::from(flags) << 32 | u64::from(kind), 0, offset, offset, len, len, align]
    };
    let mut words = vec![image.start.0, image.end.0, tables.index.start.0];
    words.extend([image.start.0, name_at, 0, 0, 0]);
    words.extend(header(PT_LOAD, READ_EXECUTE, 0, len, PAGE));
    words.extend(header(PT_GNU_EH_FRAME, READ, index, index_len, 4));
    let mut bytes: Vec<u8> = words.into_iter().flat_map(u64::to_le_bytes).collect();
    let cut = name.len().min(NAME_LEN - 1);
    bytes.extend(&name.as_bytes()[..cut]);
    bytes.resize(size_of::<Slot>() - size_of::<u64>(), 0);
    let limit = known.iter().max().map_or(0, |last| *last as u64 + 1);
    Some([
        (at.offset(offset_of!(Slot, start) as i64), bytes),
        (unwinder.table.offset(offset_of!(Table, limit) as i64), limit.to_le_bytes().to_vec()),
        (at, vec![1]),
        (unwinder.table.offset(offset_of!(Table, generation) as i64), generation()),
    ])
}

/// A number that was not used before, far from what loaders count.
fn generation() -> Vec<u8> {
    (clock::now().as_nanos() as u64 | 1 << 62).to_le_bytes().to_vec()
}

impl Unwinder {
    fn slot(&self, number: usize) -> RemoteAddr {
        self.table.offset((offset_of!(Table, slots) + number * size_of::<Slot>()) as i64)
    }

    /// The slots in use, with the images' addresses.
    fn used(&self, memory: &Memory) -> Result<Vec<(usize, RemoteAddr)>> {
        let mut limit = [0; 8];
        memory.read(self.table.offset(offset_of!(Table, limit) as i64), &mut limit)?;
        let count = u64::from_le_bytes(limit).min(SLOTS as u64) as usize;
        let bytes = memory.read_vec(self.slot(0), count * size_of::<Slot>())?;
        let word = |slot: &[u8], at: usize| {
            slot.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes)
        };
        let slots = bytes.chunks_exact(size_of::<Slot>()).enumerate();
        let used = slots.filter(|(_, slot)| word(slot, offset_of!(Slot, used)) & 0xff != 0);
        Ok(used.map(|(n, slot)| (n, RemoteAddr(word(slot, offset_of!(Slot, start))))).collect())
    }

    /// Where no thread may be when the entries are led here for the first time.
    pub(crate) fn install_watch(&self) -> impl Iterator<Item = WatchRange> {
        self.hooks.iter().flat_map(|hook| entry_bytes(&hook.entry, &hook.func.name))
    }

    /// Where no thread may be when an image leaves the table, or the entries their redirects.
    pub(crate) fn leave_watch(&self) -> impl Iterator<Item = WatchRange> {
        let pads = self.hooks.iter().flat_map(|hook| hook.entry.watch_restore());
        let ranges = pads.chain([self.mapping.clone()]);
        ranges.map(|range| watch_range(range, Part::Image, "the code that unwinders ask"))
    }
}

impl Session {
    /// Plans that unwinders find the images which were added to the document with `batch`: the image of the patch
    /// numbered last, and the runtime's. With the first image that needs it, the others that are there become known, too.
    pub(crate) fn plan_unwinder(
        &mut self,
        objects: &Objects<'_>,
        maps: &Maps,
        patch: &PatchFile,
        batch: &mut Batch,
    ) -> Result<()> {
        if self.document.unwinder.is_none() && !may_unwind(objects, patch)? {
            return Ok(());
        }
        let mut known: Vec<(usize, RemoteAddr)> = Vec::new();
        let mut fresh: Vec<(String, Range<RemoteAddr>, Tables)> = Vec::new();
        match &self.document.unwinder {
            Some(unwinder) => known = unwinder.used(self.target.memory())?,
            None => match plan(&self.target, maps, objects, &self.document, batch) {
                Ok(None) => return Ok(()),
                Ok(Some(unwinder)) => {
                    fresh.push((UNWINDER_NAME.to_owned(), unwinder.mapping.clone(), unwinder.tables.clone()));
                    self.document.unwinder = Some(unwinder);
                }
                Err(e) => {
                    self.notes.push(format!(
                        "exceptions and thread cancellation will not pass through code of patches: {e}"
                    ));
                    return Ok(());
                }
            },
        }
        let Some(unwinder) = &self.document.unwinder else { return Ok(()) };
        if let Some(runtime) = &self.document.runtime
            && let Some(tables) = &runtime.tables
        {
            let name = crate::session::callbacks::runtime::RUNTIME_NAME.to_owned();
            fresh.push((name, runtime.mapping.clone(), tables.clone()));
        }
        for image in &self.document.images {
            if let (Some(tables), Some(mapping)) = (&image.tables, image.mappings.first()) {
                let patch = self.document.state.patch(image.patch);
                let name = patch.map(|patch| format!("ugraft:patch:{}", patch.name())).unwrap_or_default();
                fresh.push((name, mapping.clone(), tables.clone()));
            }
        }
        fresh.retain(|(_, range, _)| !known.iter().any(|(_, start)| *start == range.start));
        let mut numbers: Vec<_> = known.into_iter().map(|(number, _)| number).collect();
        for (name, range, tables) in fresh {
            match add(unwinder, &mut numbers, &name, &range, &tables) {
                Some(writes) => batch.writes.extend(writes),
                None => self.notes.push(format!(
                    "exceptions and thread cancellation will not pass through {name}: no more than {SLOTS} images are known \
                     to unwinders"
                )),
            }
        }
        Ok(())
    }

    /// Leads the entries to our code where they do not lead there yet; to be done with all threads stopped, and none of them in
    /// [`Unwinder::install_watch`].
    pub(crate) fn lead_unwinder(&mut self) -> Result<()> {
        let Some(unwinder) = &self.document.unwinder else { return Ok(()) };
        let memory = self.target.memory();
        for hook in &unwinder.hooks {
            if matches!(hook.installed(memory)?, Installed::Original | Installed::Half(_)) {
                let writes = hook.entry.entry_to(hook.landing).map_err(|e| Error::Damaged(e.to_string()))?;
                for write in writes {
                    memory.write(write.addr, &write.bytes)?;
                }
            }
        }
        Ok(())
    }

    /// Whether all entries lead to our code, or to somebody else's.
    pub(crate) fn is_unwinder_led(&self) -> Result<bool> {
        for hook in self.document.unwinder.iter().flat_map(|unwinder| &unwinder.hooks) {
            if matches!(hook.installed(self.target.memory())?, Installed::Original | Installed::Half(_)) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Leads the entries under a stop of its own, for what runs before a transition does so. Gives up after a while: then
    /// that runs without.
    pub(crate) fn lead_unwinder_early(&mut self, deadline: Instant) -> Result<()> {
        let deadline = deadline.min(Instant::now() + LEAD_WITHIN);
        while !self.is_unwinder_led()? {
            let maps = self.recent_maps()?;
            let watch = self.document.unwinder.iter().flat_map(Unwinder::install_watch).collect();
            let watch = Watch::new(watch);
            if let Ok(stopped) = self.stop_all(deadline)? {
                let mut looker = Looker::new(&self.target, &mut self.prover, maps);
                if looker.first_in(&stopped, &watch)?.is_none() {
                    self.was_entered = true;
                    self.lead_unwinder()?;
                }
                self.let_go(stopped)?;
            }
            if Instant::now() + PAUSE >= deadline {
                break;
            }
            std::thread::sleep(PAUSE);
        }
        Ok(())
    }

    /// Whether our code has to stay: there are images, or somebody else has changed an entry that leads to it.
    pub(crate) fn needs_unwinder(&self) -> Result<bool> {
        for hook in self.document.unwinder.iter().flat_map(|unwinder| &unwinder.hooks) {
            if hook.installed(self.target.memory())? == Installed::Other {
                return Ok(true);
            }
        }
        Ok(!self.document.images.is_empty())
    }

    /// The slots of images in `ranges`, which are to be given back.
    pub(crate) fn slots_in(&self, ranges: &[Range<RemoteAddr>], maps: &Maps) -> Result<Vec<usize>> {
        let Some(unwinder) = &self.document.unwinder else { return Ok(Vec::new()) };
        if maps.find(unwinder.table).is_none() {
            // A killed tool came no further.
            return Ok(Vec::new());
        }
        let used = unwinder.used(self.target.memory())?;
        let within = |start: &RemoteAddr| ranges.iter().any(|range| range.contains(start));
        Ok(used.into_iter().filter(|(_, start)| within(start)).map(|(number, _)| number).collect())
    }

    /// Whether our code is in one of `ranges`.
    pub(crate) fn is_unwinder_in(&self, ranges: &[Range<RemoteAddr>]) -> bool {
        let unwinder = self.document.unwinder.as_ref();
        unwinder.is_some_and(|unwinder| ranges.iter().any(|range| range.contains(&unwinder.mapping.start)))
    }

    /// Takes images out of the table, and with `ranges` that hold our code itself gives the entries their original bytes back. To
    /// be done while all threads are stopped, and none of them in [`Unwinder::leave_watch`].
    pub(crate) fn leave_unwinder(
        &mut self,
        slots: &[usize],
        ranges: &[Range<RemoteAddr>],
        _stopped: &StoppedProcess,
    ) -> Result<()> {
        let Some(unwinder) = &self.document.unwinder else { return Ok(()) };
        let memory = self.target.memory();
        if self.is_unwinder_in(ranges) {
            for hook in &unwinder.hooks {
                let installed = hook.installed(memory)?;
                if matches!(installed, Installed::Redirect(to) | Installed::Half(to) if to == hook.landing) {
                    for write in hook.entry.restore() {
                        memory.write(write.addr, &write.bytes)?;
                    }
                }
            }
            self.document.unwinder = None;
        } else if !slots.is_empty() {
            memory.write(unwinder.table.offset(offset_of!(Table, generation) as i64), &generation())?;
            for slot in slots {
                memory.write(unwinder.slot(*slot), &[0])?;
            }
        }
        Ok(())
    }
}
