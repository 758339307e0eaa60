//! Libraries that come and go while patches are in effect.
//!
//! While a loaded patch names a library that can come or go, the loader's function for debuggers (`r_debug.r_brk`) leads to the
//! hook of the runtime, which patches such libraries before their constructors run and lets go of them when they are gone, with no tool
//! around. This is the tool's part: it puts the hook in and takes it off, gives it its [table], and takes over what the hook
//! has done meanwhile.
//!
//! Invariants:
//! - The hook's table and the place that leads to it are changed only while all threads are stopped, none is in the hook, and
//!   the loader's list is whole (`Session::in_loader`). All stops of a session wait for that, so that whatever they
//!   write goes to libraries that are there; those that went since the document was written are known (`Session::is_gone`).
//! - A table is whole before its address is stored, and the one that it follows stays until the next one.
//! - What the hook did becomes part of the document by the same steps of the semantics as if it had happened now.
//! - Memory that the hook maps near a library is its own; it begins with a head that tells what it is, so what is left of it
//!   after the hook is found.

pub mod table;

use crate::code::entry::{Entry, Installed};
use crate::libraries::table::{Library, LibraryPlace, LibraryUse};
use crate::objects::symbols::SymbolError;
use crate::objects::{Object, Objects, Role};
use crate::remote::mapping::{MapRequest, Part, Prot};
use crate::remote::seccomp;
use crate::session::batch::Batch;
use crate::session::look::{Looker, entry_watch, library_watch};
use crate::session::site::Finder;
use crate::session::{Session, objects_of};
use crate::state::document::Site;
use crate::target::maps::Maps;
use crate::threads::StoppedProcess;
use crate::{RemoteAddr, Result, Tid, callbacks::runtime};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::mem::{offset_of, size_of};
use std::ops::Range;
use std::rc::Rc;
use std::time::{Duration, Instant};
use ugraft_core::{Due, Event, FuncId, Life, Patch, PatchId, PatchObject};
use ugraft_runtime::expected::{self, AWAY, HERE, LEFT, Loader, TABLE_MAX};

/// Name of the memfd behind the tables.
pub const TABLES_NAME: &str = "ugraft:libraries";
/// Pause between two attempts to find the libraries' functions unused.
const PAUSE: Duration = Duration::from_millis(2);
/// Most link maps and namespaces that are read at a stop.
const MAX_LISTED: usize = 16384;
const MAX_NAMESPACES: usize = 64;

/// The hook in the loader, and what it is known to have done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Libraries {
    /// The mapping with two tables.
    pub mapping: Range<RemoteAddr>,
    /// The hook's words.
    pub words: RemoteAddr,
    /// The hook.
    pub hook: RemoteAddr,
    /// The loader's function that is to lead to it.
    pub entry: Entry,
    /// The loader's `struct r_debug`.
    pub debug: RemoteAddr,
    /// The libraries of the table that are loaded, and others that the document has sites in: as far as the rest of the
    /// document knows of them.
    pub present: Vec<Present>,
    /// The patches in effect for which the table was written; `None` where it is to be written again.
    pub fits: Option<Vec<PatchId>>,
}

/// A library that is loaded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Present {
    /// What patches call it.
    pub name: String,
    /// Its place in the table; `None` for one that the table does not name.
    pub index: Option<usize>,
    /// Its `struct link_map`.
    pub link_map: RemoteAddr,
    /// What is added to its file's addresses.
    pub bias: u64,
    /// Where memory begins that the hook mapped near it, and how much it is.
    pub near: [u64; 2],
    /// Tells this time that it is loaded from others.
    pub came: u64,
}

impl Libraries {
    fn word(&self, offset: usize) -> RemoteAddr {
        self.words.offset(offset as i64)
    }
}

impl Session {
    /// Plans the hook, if the patches that are loaded need one and there is none: adds what is to be mapped and written to `batch`.
    /// It is put in by `Session::settle_libraries`.
    pub(crate) fn plan_libraries(
        &mut self,
        objects: &Objects<'_>,
        maps: &Maps,
        batch: &mut Batch,
    ) -> Result<()> {
        if self.document.libraries.is_some() || !self.is_hook_needed(objects) {
            return Ok(());
        }
        let mut unfit = |why: &str| {
            self.notes.push(format!("libraries that are loaded from now on will not be patched: {why}"));
        };
        let Some(debug) = objects.loader_debug().filter(|debug| debug.brk.0 != 0) else {
            unfit("the process has no dynamic loader that would tell of them");
            return Ok(());
        };
        let pid = self.target.pid();
        if seccomp::is_filtered(pid, Tid(pid.0))? {
            unfit("the process runs under a seccomp filter, which could kill it for what that takes");
            return Ok(());
        }
        let entry = match self.loader_entry(objects, maps, debug.brk) {
            Ok(entry) => entry,
            Err(e) => {
                self.notes.push(format!(
                    "libraries that are loaded from now on will not be patched: the loader cannot be hooked: {e}"
                ));
                return Ok(());
            }
        };
        let runtime = match self.document.runtime.clone() {
            Some(runtime) => runtime,
            None => runtime::plan(objects, batch)?,
        };
        let Some((words, hook)) = runtime.loader.filter(|(_, hook)| entry.reaches(*hook)) else {
            self.notes.push(
                "libraries that are loaded from now on will not be patched: the runtime in the target is of an earlier \
                 version, or out of the loader's reach; unload all patches first"
                    .to_owned(),
            );
            return Ok(());
        };
        let len = 2 * TABLE_MAX as u64;
        let mapping = batch.ground.take(len, &[])?;
        batch.requests.push(MapRequest {
            name: TABLES_NAME.to_owned(),
            addr: mapping.start,
            len,
            parts: vec![Part { offset: 0, len, prot: Prot::ReadWrite }],
        });
        for (offset, value) in [
            (offset_of!(Loader, debug), debug.address.0),
            (offset_of!(Loader, signal_error), signal_error(objects)),
        ] {
            batch.writes.push((words.offset(offset as i64), value.to_le_bytes().to_vec()));
        }
        self.document.runtime = Some(runtime);
        self.document.libraries = Some(Libraries {
            mapping,
            words,
            hook,
            entry,
            debug: debug.address,
            present: Vec::new(),
            fits: None,
        });
        Ok(())
    }

    /// The loader's function, found fit to be redirected.
    fn loader_entry(&self, objects: &Objects<'_>, maps: &Maps, brk: RemoteAddr) -> Result<Entry> {
        let missing = || crate::Error::Libraries(format!("nothing is known of its function at {brk}"));
        let object = objects.at(brk).ok_or_else(missing)?;
        let function = object.function_at(brk)?.filter(|f| f.address == brk).ok_or_else(missing)?;
        let (name, sympos) = function.canonical;
        let name_of = |object: &Object<'_>| (object.role() != Role::Main).then(|| object.name().to_owned());
        let func = FuncId { object: name_of(object), name, sympos };
        Ok(Finder::new(self.target.memory(), maps, objects, &self.document.sites).find(&func)?.entry)
    }

    /// Whether a patch is loaded that names a library which can come or go.
    fn is_hook_needed(&self, objects: &Objects<'_>) -> bool {
        let loaded = self.document.state.patches().iter().filter(|patch| patch.life() != Life::Replaced);
        let names: BTreeSet<_> = loaded.flat_map(Patch::objects).filter_map(PatchObject::name).collect();
        let permanent = if names.is_empty() { BTreeSet::new() } else { objects.permanent() };
        names.iter().any(|name| !is_permanent(objects, &permanent, name))
    }

    /// Takes over what the hook has done since the document was written, gives it a table that fits the patches as they are, and
    /// puts it in or takes it off. To be done when no transition runs; without effect otherwise.
    /// False where functions of a library that came meanwhile are in use, and not what they are to be yet.
    pub(crate) fn settle_libraries(&mut self, deadline: Instant) -> Result<bool> {
        let waits = self.document.state.transition().is_some() || self.document.state.due() != Due::Nothing;
        if self.document.libraries.is_none() || waits {
            return Ok(true);
        }
        loop {
            let stopped = self.stop_all_patiently(deadline)?;
            let settled = self.settle_stopped(&stopped);
            self.let_go(stopped)?;
            let settled = settled?;
            self.commit()?;
            if settled {
                return Ok(true);
            }
            if Instant::now() + PAUSE >= deadline {
                self.notes.push(
                    "a library that came meanwhile is in use, and not changed yet; the next command tries again".to_owned(),
                );
                return Ok(false);
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// The same before a request, where something came or went, or the last run of the tool was cut short.
    pub(crate) fn take_up_libraries(&mut self, deadline: Instant) -> Result<()> {
        if let Some(libraries) = &self.document.libraries
            && (libraries.fits.as_ref() != Some(&self.enabled())
                || self.has_changed(libraries).unwrap_or(true)
                || !self.is_hooked(libraries)?)
            && !self.settle_libraries(deadline)?
        {
            return Err(crate::Error::Libraries(
                "a library came while a patch was enabled or disabled, and a thread is in a function of it that is to be \
                 changed; try again when it has left"
                    .to_owned(),
            ));
        }
        Ok(())
    }

    /// Fails if a function of a library that can go still leads to the patch, which is to be unloaded: then a thread has kept it
    /// from being led elsewhere until now.
    pub(crate) fn check_not_led_to(&mut self, patch: PatchId) -> Result<()> {
        let mappings = &self.document.image(patch)?.mappings;
        for site in self.document.sites.iter().filter(|site| self.can_go(&site.func)) {
            if let Some(Installed::Redirect(to)) = self.installed(site)?
                && mappings.iter().any(|mapping| mapping.contains(&to))
            {
                return Err(crate::Error::Libraries(format!(
                    "{} still leads to it, and a thread is in there; try again when it has left",
                    site.func
                )));
            }
        }
        Ok(())
    }

    /// Takes over what the hook has done, for looking only: nothing is stopped, and nothing committed.
    pub(crate) fn look_at_libraries(&mut self) -> Result<()> {
        let waits = self.document.state.transition().is_some() || self.document.state.due() != Due::Nothing;
        if self.document.libraries.is_none() || waits {
            return Ok(());
        }
        let before = self.document.clone();
        let target = Rc::clone(&self.target);
        let (maps, objects) = objects_of(&target)?;
        // While the hook is at work, what the document says is as good.
        if self.in_loader()?.is_some() || self.merge(&objects, &maps).is_err() || self.in_loader()?.is_some()
        {
            self.document = before;
        }
        self.drop_messages();
        Ok(())
    }

    fn settle_stopped(&mut self, stopped: &StoppedProcess) -> Result<bool> {
        let target = Rc::clone(&self.target);
        let (maps, objects) = objects_of(&target)?;
        self.merge(&objects, &maps)?;
        if !self.is_hook_needed(&objects) {
            self.take_off()?;
            return Ok(true);
        }
        let applied = self.apply_late(stopped, &maps)?;
        self.publish(&objects)?;
        if let Some(libraries) = self.document.libraries.as_mut().filter(|_| !applied) {
            libraries.fits = None;
        }
        self.put_in(stopped, maps)?;
        Ok(applied)
    }

    /// Remembers which libraries it is that the document has sites in, so that it is noticed when they go.
    pub(crate) fn know_libraries(&mut self, objects: &Objects<'_>) {
        let Some(libraries) = &mut self.document.libraries else { return };
        let permanent = objects.permanent();
        for name in self.document.sites.iter().filter_map(|site| site.func.object.as_ref()) {
            let known = libraries.present.iter().any(|present| present.name == *name);
            let Some(object) = loaded(objects, name).filter(|o| !known && !permanent.contains(&o.id().0))
            else {
                continue;
            };
            if let Some(link_map) = object.link_map() {
                let (name, bias) = (name.clone(), object.bias());
                libraries.present.push(Present { name, index: None, link_map, bias, near: [0; 2], came: 0 });
            }
        }
    }

    /// Forgets libraries that the list does not have any more.
    pub(crate) fn forget_libraries(&mut self, objects: &Objects<'_>) -> Result<()> {
        let patches = self.document.state.patches().iter();
        let names = patches.flat_map(Patch::objects).filter_map(PatchObject::name).map(str::to_owned);
        // Of those in its table the hook alone knows: the list that was read may have been cut short by a change.
        let libraries = self.document.libraries.iter().flat_map(|libraries| &libraries.present);
        let tracked: BTreeSet<_> =
            libraries.filter(|present| present.index.is_some()).map(|present| present.name.clone()).collect();
        for name in names.filter(|name| !tracked.contains(name)).collect::<BTreeSet<_>>() {
            if self.document.state.is_loaded(Some(&name)) && loaded(objects, &name).is_none() {
                self.forget_library(&name)?;
                if let Some(libraries) = &mut self.document.libraries {
                    libraries.present.retain(|present| present.name != name);
                }
            }
        }
        Ok(())
    }

    /// The number of a thread that keeps the loader's list from being whole, if there is one. Also finds which libraries have
    /// gone since the document was written.
    pub(crate) fn in_loader(&mut self) -> Result<Option<Tid>> {
        let Some(libraries) = self.document.libraries.clone() else { return Ok(None) };
        let memory = self.target.memory();
        let owner = memory.read_u64(libraries.word(offset_of!(Loader, owner)))?;
        let owner = Tid(owner as i32);
        if owner.0 != 0 && self.target.threads()?.contains(&owner) {
            return Ok(Some(owner));
        }
        let Some(listed) = self.listed_libraries(libraries.debug)? else {
            return Ok(Some(Tid(self.target.pid().0)));
        };
        let at = memory.read_u64(libraries.word(offset_of!(Loader, table)))?;
        let mut gone = BTreeSet::new();
        for present in &libraries.present {
            let mut there = listed.get(&present.link_map.0) == Some(&present.bias);
            if let Some(index) = present.index {
                let object = size_of::<expected::Head>() + index * size_of::<expected::Object>();
                let word = |offset: usize| memory.read_u64(RemoteAddr(at).offset((object + offset) as i64));
                there = there
                    && at != 0
                    && word(offset_of!(expected::Object, state))? != AWAY
                    && word(offset_of!(expected::Object, link_map))? == present.link_map.0
                    && word(offset_of!(expected::Object, came))? == present.came;
            }
            if !there {
                gone.insert(present.name.clone());
            }
        }
        // The hook says nothing of libraries that no patch in effect names: such a one may have gone and come again, of another file.
        for present in libraries.present.iter().filter(|present| present.index.is_none()) {
            let ours = |site: &&Site| site.func.object.as_ref() == Some(&present.name);
            for site in self.document.sites.iter().filter(ours) {
                let installed = site.entry.installed(|addr, buf| memory.read(addr, buf));
                if !matches!(installed, Ok(Installed::Original | Installed::Redirect(_))) {
                    gone.insert(present.name.clone());
                }
            }
        }
        self.gone = gone;
        Ok(None)
    }

    /// The link maps of all namespaces and what is added to their addresses; `None` while the list is being changed.
    fn listed_libraries(&self, debug: RemoteAddr) -> Result<Option<BTreeMap<u64, u64>>> {
        let memory = self.target.memory();
        let word = |bytes: &[u8], at: usize| {
            bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes)
        };
        let mut listed = BTreeMap::new();
        let mut space = debug;
        for _ in 0..MAX_NAMESPACES {
            // struct r_debug: int version, r_map, r_brk, enum state, r_ldbase, (version 2) r_next.
            let head = memory.read_vec(space, 40)?;
            if word(&head, 24) as u32 != 0 {
                return Ok(None);
            }
            let mut map = word(&head, 8);
            while map != 0 && listed.len() < MAX_LISTED {
                // struct link_map: l_addr, l_name, l_ld, l_next.
                let bytes = memory.read_vec(RemoteAddr(map), 32)?;
                if listed.insert(map, word(&bytes, 0)).is_some() {
                    break;
                }
                map = word(&bytes, 24);
            }
            if (word(&head, 0) as u32) < 2 {
                break;
            }
            match memory.read_u64(space.offset(40))? {
                0 => break,
                next => space = RemoteAddr(next),
            }
        }
        Ok(Some(listed))
    }

    /// Whether the library of a site is not there any more, as of the last stop.
    pub(crate) fn is_gone(&self, func: &FuncId) -> bool {
        func.object.as_ref().is_some_and(|object| self.gone.contains(object))
    }

    /// Whether a site is of a library that can go at any time.
    pub(crate) fn can_go(&self, func: &FuncId) -> bool {
        let present = self.document.libraries.iter().flat_map(|libraries| &libraries.present);
        func.object.is_some()
            && present.map(|present| Some(&present.name)).any(|name| name == func.object.as_ref())
    }

    /// What the entry of a site holds; `None` where its library is gone.
    pub(crate) fn installed(&self, site: &Site) -> Result<Option<Installed>> {
        if self.is_gone(&site.func) {
            return Ok(None);
        }
        match site.entry.installed(|addr, buf| self.target.memory().read(addr, buf)) {
            // It may have gone just now; whoever writes there knows.
            Err(crate::Error::Memory { .. })
                if self.document.libraries.is_some() && site.func.object.is_some() =>
            {
                Ok(None)
            }
            installed => installed.map(Some),
        }
    }

    fn has_changed(&self, libraries: &Libraries) -> Result<bool> {
        let memory = self.target.memory();
        let at = RemoteAddr(memory.read_u64(libraries.word(offset_of!(Loader, table)))?);
        let Some(now) = self.table_at(libraries, at)? else { return Ok(true) };
        let listed = self.listed_libraries(libraries.debug)?.unwrap_or_default();
        let is_there = |present: &Present| {
            present.index.is_some() || listed.get(&present.link_map.0) == Some(&present.bias)
        };
        if !libraries.present.iter().all(is_there) {
            return Ok(true);
        }
        let known = |library: &Library| {
            let present = libraries.present.iter().find(|present| present.name == library.name);
            match present {
                Some(present) => is_same(present, library),
                None => library.state == AWAY,
            }
        };
        Ok(!now.iter().all(known))
    }

    fn is_hooked(&self, libraries: &Libraries) -> Result<bool> {
        let installed = libraries.entry.installed(|addr, buf| self.target.memory().read(addr, buf))?;
        Ok(installed == Installed::Redirect(libraries.hook))
    }

    fn table_at(&self, libraries: &Libraries, at: RemoteAddr) -> Result<Option<Vec<Library>>> {
        if !libraries.mapping.contains(&at) {
            return Ok(None);
        }
        table::read(&self.target.memory().read_vec(at, table_len(libraries, at))?).map(Some)
    }

    /// Takes over what the hook has noted.
    fn merge(&mut self, objects: &Objects<'_>, maps: &Maps) -> Result<()> {
        let Some(libraries) = self.document.libraries.clone() else { return Ok(()) };
        let at = self.target.memory().read_u64(libraries.word(offset_of!(Loader, table)))?;
        let Some(now) = self.table_at(&libraries, RemoteAddr(at))? else { return Ok(()) };
        let mut present = libraries.present.clone();
        let listed = self.listed_libraries(libraries.debug)?.unwrap_or_default();
        for known in &libraries.present {
            if known.index.is_none() && listed.get(&known.link_map.0) != Some(&known.bias) {
                present.retain(|present| present.name != known.name);
                self.forget_library(&known.name)?;
            }
        }
        for (index, library) in now.iter().enumerate() {
            let known = present.iter().position(|known| known.name == library.name);
            if known.is_some_and(|known| is_same(&present[known], library)) {
                continue;
            }
            if let Some(known) = known {
                present.remove(known);
                self.forget_library(&library.name)?;
            }
            if library.state == AWAY {
                continue;
            }
            if library.state == HERE {
                self.learn(library, objects, maps)?;
            }
            present.push(Present {
                name: library.name.clone(),
                index: Some(index),
                link_map: library.link_map,
                bias: library.bias,
                near: library.near,
                came: library.came,
            });
        }
        if let Some(libraries) = &mut self.document.libraries {
            libraries.present = present;
        }
        Ok(())
    }

    /// A library is gone.
    fn forget_library(&mut self, name: &str) -> Result<()> {
        if self.document.state.is_loaded(Some(name)) {
            self.step_done(Event::ObjectGoing { object: name.to_owned() })?;
        }
        self.document.sites.retain(|site| site.func.object.as_deref() != Some(name));
        for new in self.document.images.iter_mut().flat_map(|image| &mut image.funcs) {
            if new.func.object.as_deref() == Some(name) {
                new.landing = new.addr;
            }
        }
        self.gone.remove(name);
        Ok(())
    }

    /// The hook has patched a library.
    fn learn(&mut self, library: &Library, objects: &Objects<'_>, maps: &Maps) -> Result<()> {
        let func_of = |place: &LibraryPlace| FuncId {
            object: Some(library.name.clone()),
            name: place.name.clone(),
            sympos: place.position.max(1),
        };
        for place in library.places.iter().filter(|place| place.site.start != 0) {
            let func = func_of(place);
            let Some(entry) = Entry::from_site(&place.site) else {
                return Err(crate::Error::Damaged(format!("the hook's note of {func} makes no sense")));
            };
            let (start, size) = (RemoteAddr(place.site.start), place.site.size);
            let found = objects.function(Some(&library.name), &place.name, place.position);
            let code = match found.ok().filter(|function| function.address == start) {
                Some(function) => function.ranges(),
                None => vec![start..start.offset(size as i64)],
            };
            let file = maps.find(start).map_or(((0, 0), 0), |mapping| (mapping.dev, mapping.inode));
            self.document.sites.retain(|site| site.func != func);
            self.document.sites.push(Site { func, entry, code, file });
        }
        for (place, new, landing) in library.uses.iter().flat_map(|one| &one.funcs) {
            let Some(func) = library.places.get(*place).map(func_of) else { continue };
            let funcs = self.document.images.iter_mut().flat_map(|image| &mut image.funcs);
            for known in funcs.filter(|known| known.func == func && known.addr == *new && landing.0 != 0) {
                known.landing = *landing;
            }
        }
        if !self.document.state.is_loaded(Some(&library.name)) {
            self.step_done(Event::ObjectComing { object: library.name.clone(), misfits: Vec::new() })?;
        }
        Ok(())
    }

    /// A step over what has happened already, its callbacks and messages included.
    fn step_done(&mut self, event: Event) -> Result<()> {
        let messages = self.count_messages();
        self.step(event)?;
        while let Due::Callback(_) = self.document.state.due() {
            self.step(Event::CallbackReturned { value: 0 })?;
        }
        self.drop_messages_from(messages);
        Ok(())
    }

    /// Leads functions of libraries that the hook has patched to what they are to lead to by now, which can be something
    /// else where they came while a transition ran. False where a thread is in one of them.
    fn apply_late(&mut self, stopped: &StoppedProcess, maps: &Maps) -> Result<bool> {
        let Some(libraries) = &self.document.libraries else { return Ok(true) };
        let known =
            |site: &&Site| libraries.present.iter().any(|p| Some(&p.name) == site.func.object.as_ref());
        let mut late = Vec::new();
        for site in self.document.sites.iter().filter(known) {
            let wanted = self.document.landing(&site.func, self.document.state.steady(&site.func))?;
            let reached = wanted.is_none_or(|wanted| site.entry.reaches(wanted));
            let installed = wanted.map_or(Installed::Original, Installed::Redirect);
            if reached && self.installed(site)?.is_some_and(|now| now != installed && now != Installed::Other)
            {
                late.push((site.clone(), wanted));
            }
        }
        if late.is_empty() {
            return Ok(true);
        }
        let watch = library_watch(&self.document, late.iter().map(|(site, _)| site))?;
        let mut looker = Looker::new(&self.target, &mut self.prover, maps.clone());
        for thread in stopped.threads() {
            if looker.look(thread, &watch)?.is_some() {
                return Ok(false);
            }
        }
        for (site, wanted) in late {
            self.lead_anew(&site, wanted)?;
        }
        Ok(true)
    }

    /// Gives the hook a table that fits the patches as they are.
    fn publish(&mut self, objects: &Objects<'_>) -> Result<()> {
        let Some(libraries) = self.document.libraries.clone() else { return Ok(()) };
        let memory = self.target.memory();
        let table_word = libraries.word(offset_of!(Loader, table));
        let changes = memory.read_u64(libraries.word(offset_of!(Loader, changes)))?;
        let listed = self.listed_libraries(libraries.debug)?.unwrap_or_default();
        let mut seen: Vec<u64> = listed.into_keys().collect();
        let before = RemoteAddr(memory.read_u64(table_word)?);
        if libraries.mapping.contains(&before) && self.is_hooked(&libraries)? {
            // A thread may be just about to call the hook for a library that is listed already.
            let known = table::read_seen(&memory.read_vec(before, table_len(&libraries, before))?)?;
            seen.retain(|map| known.contains(map));
        }
        let (list, present) = self.expected(objects, &libraries, changes, &seen)?;
        let bytes = table::write(&list, &seen)?;
        let first = libraries.mapping.start;
        let at = match RemoteAddr(memory.read_u64(table_word)?) == first {
            true => first.offset(TABLE_MAX as i64),
            false => first,
        };
        memory.write(at, &bytes)?;
        memory.write(table_word, &at.0.to_le_bytes())?;
        let fits = self.enabled();
        if let Some(libraries) = &mut self.document.libraries {
            libraries.present = present;
            libraries.fits = Some(fits);
        }
        Ok(())
    }

    /// The patches in effect.
    fn enabled(&self) -> Vec<PatchId> {
        let patches = self.document.state.patches().iter();
        patches.filter(|patch| patch.life() == Life::Enabled).map(Patch::id).collect()
    }

    /// The libraries that patches in effect name, and those of them that are loaded.
    fn expected(
        &self,
        objects: &Objects<'_>,
        libraries: &Libraries,
        changes: u64,
        seen: &[u64],
    ) -> Result<(Vec<Library>, Vec<Present>)> {
        let permanent = objects.permanent();
        let mut list: Vec<Library> = Vec::new();
        for patch in self.document.state.patches().iter().filter(|patch| patch.life() == Life::Enabled) {
            let image = self.document.image(patch.id())?;
            for (i, described) in patch.desc().objects.iter().enumerate() {
                let Some(name) = described.name.as_deref() else { continue };
                if is_permanent(objects, &permanent, name) {
                    continue;
                }
                let at = list.iter().position(|library| library.name == name).unwrap_or_else(|| {
                    list.push(Library { name: name.to_owned(), ..Library::default() });
                    list.len() - 1
                });
                let library = &mut list[at];
                let mut one = LibraryUse {
                    patch: patch.name().to_owned(),
                    build_id: described.build_id.clone().unwrap_or_default(),
                    applied: patch.objects().get(i).is_some_and(PatchObject::is_patched),
                    ..LibraryUse::default()
                };
                if let Some(object) = image.objects.iter().find(|object| object.name.as_deref() == Some(name))
                {
                    one.object = object.addr;
                    let callbacks =
                        [object.pre_patch, object.post_patch, object.pre_unpatch, object.post_unpatch];
                    one.callbacks = callbacks.map(|callback| callback.map_or(0, |at| at.0));
                }
                for func in &described.funcs {
                    let id = described.id_of(func);
                    let Some(new) = image.funcs.iter().find(|new| new.func == id) else { continue };
                    let same =
                        |place: &LibraryPlace| place.name == id.name && place.position.max(1) == id.sympos;
                    let place = library.places.iter().position(same).unwrap_or_else(|| {
                        let (name, position) = (func.old_name.clone(), func.old_sympos);
                        // As the hook would have noted it, for whoever reads the table after this document is lost.
                        let site = self.document.site(&id).and_then(|site| {
                            let first = site.code.first()?;
                            site.entry.to_site(first.end.distance_from(first.start) as u64)
                        });
                        library.places.push(LibraryPlace { name, position, site: site.unwrap_or_default() });
                        library.places.len() - 1
                    });
                    one.funcs.push((place, new.addr, new.landing));
                }
                library.uses.push(one);
            }
        }
        // Memory near a library stays the hook's as long as the library is there.
        for known in libraries.present.iter().filter(|known| known.near[1] != 0) {
            if !list.iter().any(|library| library.name == known.name) {
                list.push(Library { name: known.name.clone(), ..Library::default() });
            }
        }
        let mut present = Vec::new();
        for (index, library) in list.iter_mut().enumerate() {
            let known = libraries.present.iter().find(|known| known.name == library.name);
            let known = known.cloned().or_else(|| {
                let object = loaded(objects, &library.name)?;
                let (link_map, bias) = (object.link_map()?, object.bias());
                if !seen.contains(&link_map.0) {
                    return None;
                }
                let name = library.name.clone();
                Some(Present { name, index: Some(index), link_map, bias, near: [0; 2], came: changes })
            });
            let Some(known) = known else { continue };
            let applied = library.uses.iter().any(|one| one.applied) || library.uses.is_empty();
            library.state = if applied { HERE } else { LEFT };
            library.link_map = known.link_map;
            library.bias = known.bias;
            library.near = known.near;
            library.came = known.came;
            present.push(Present { index: Some(index), ..known });
        }
        let has_site = |known: &&Present| {
            let mut objects = self.document.sites.iter().map(|site| &site.func.object);
            !present.iter().any(|p| p.name == known.name) && objects.any(|o| o.as_ref() == Some(&known.name))
        };
        let others: Vec<_> = libraries.present.iter().filter(has_site).cloned().collect();
        present.extend(others.into_iter().map(|known| Present { index: None, ..known }));
        Ok((list, present))
    }

    /// Leads the loader to the hook.
    fn put_in(&mut self, stopped: &StoppedProcess, maps: Maps) -> Result<()> {
        let Some(libraries) = self.document.libraries.clone() else { return Ok(()) };
        match libraries.entry.installed(|addr, buf| self.target.memory().read(addr, buf))? {
            Installed::Redirect(to) if to == libraries.hook => return Ok(()),
            Installed::Original => {}
            _ => {
                self.notes.push(format!(
                    "libraries that are loaded from now on will not be patched: somebody else has changed the loader's \
                     function at {}",
                    libraries.entry.place()
                ));
                return Ok(());
            }
        }
        let watch = entry_watch(&libraries.entry, "the loader's function for debuggers");
        let mut looker = Looker::new(&self.target, &mut self.prover, maps);
        for thread in stopped.threads() {
            if looker.look(thread, &watch)?.is_some() {
                // A stop that finds the list whole finds nobody in there but by a stale word; the next command tries again.
                self.notes
                    .push("the loader is in use; libraries are patched from the next command on".to_owned());
                return Ok(());
            }
        }
        let writes = libraries.entry.entry_to(libraries.hook);
        for write in writes.map_err(|e| crate::Error::Damaged(e.to_string()))? {
            self.target.memory().write(write.addr, &write.bytes)?;
        }
        Ok(())
    }

    /// Takes the hook off. Who is on its way into it finds no table.
    fn take_off(&mut self) -> Result<()> {
        let Some(libraries) = self.document.libraries.take() else { return Ok(()) };
        let memory = self.target.memory();
        let installed = libraries.entry.installed(|addr, buf| memory.read(addr, buf))?;
        if installed == Installed::Redirect(libraries.hook) {
            for write in libraries.entry.restore() {
                memory.write(write.addr, &write.bytes)?;
            }
        }
        memory.write(libraries.word(offset_of!(Loader, table)), &[0; 8])?;
        let near = libraries.present.iter().map(|present| present.near).filter(|near| near[1] != 0);
        self.document.strays.extend(near);
        self.gone.clear();
        self.was_entered = true;
        self.forget_what_is_gone();
        Ok(())
    }
}

/// How much can be read of a table at `at`.
fn table_len(libraries: &Libraries, at: RemoteAddr) -> usize {
    (TABLE_MAX as u64).min(libraries.mapping.end.0 - at.0) as usize
}

fn is_same(present: &Present, library: &Library) -> bool {
    library.state != AWAY && present.link_map == library.link_map && present.came == library.came
}

fn loaded<'o, 't>(objects: &'o Objects<'t>, name: &str) -> Option<&'o Object<'t>> {
    match objects.find(Some(name)) {
        Ok(object) => Some(object),
        Err(SymbolError::AmbiguousObject { .. }) => objects.iter().find(|object| object.is_called(name)),
        Err(_) => None,
    }
}

fn is_permanent(objects: &Objects<'_>, permanent: &BTreeSet<usize>, name: &str) -> bool {
    objects.find(Some(name)).is_ok_and(|object| permanent.contains(&object.id().0))
}

/// The C library's function that ends a loading with a message; 0 where there is none.
fn signal_error(objects: &Objects<'_>) -> u64 {
    let libc = objects.iter().find(|object| object.namespace() == 0 && object.name() == "libc.so.6");
    let function = libc.and_then(|libc| libc.function("_dl_signal_error", 0).ok());
    function.map_or(0, |function| function.address.0)
}
