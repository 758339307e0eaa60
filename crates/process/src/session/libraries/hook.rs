//! Putting the hook into the loader, and taking it off.

use super::is_permanent;
use crate::code::entry::{Entry, Installed};
use crate::objects::{Object, Objects, Role};
use crate::remote::mapping::{MapRequest, Part, Prot};
use crate::remote::seccomp;
use crate::session::Session;
use crate::session::batch::Batch;
use crate::session::look::{Looker, entry_watch};
use crate::session::site::Finder;
use crate::state::pieces::Libraries;
use crate::target::maps::Maps;
use crate::threads::StoppedProcess;
use crate::{RemoteAddr, Result, Tid};
use std::collections::BTreeSet;
use std::mem::offset_of;
use ugraft_core::{FuncId, Life, Patch, PatchObject};
use ugraft_runtime::expected::{Loader, TABLE_MAX};

/// Name of the memfd behind the tables.
pub const TABLES_NAME: &str = "ugraft:libraries";

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
            None => self.plan_runtime(objects, batch)?,
        };
        let Some(hook) = runtime.hook.clone().filter(|hook| entry.reaches(hook.function)) else {
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
            batch.writes.push((hook.words.offset(offset as i64), value.to_le_bytes().to_vec()));
        }
        self.document.runtime = Some(runtime);
        self.document.libraries = Some(Libraries {
            mapping,
            words: hook.words,
            hook: hook.function,
            entry,
            debug: debug.address,
            present: Vec::new(),
            table: RemoteAddr(0),
            moving: false,
            fits: None,
        });
        Ok(())
    }

    /// The loader's function, found fit to be redirected.
    pub(super) fn loader_entry(&self, objects: &Objects<'_>, maps: &Maps, brk: RemoteAddr) -> Result<Entry> {
        let missing = || crate::Error::Libraries(format!("nothing is known of its function at {brk}"));
        let object = objects.at(brk).ok_or_else(missing)?;
        let function = object.function_at(brk)?.filter(|f| f.address == brk).ok_or_else(missing)?;
        let (name, sympos) = function.canonical;
        let name_of = |object: &Object<'_>| (object.role() != Role::Main).then(|| object.name().to_owned());
        let func = FuncId { object: name_of(object), name, sympos };
        Ok(Finder::new(self.target.memory(), maps, objects, &self.document.sites).find(&func)?.entry)
    }

    /// Whether a patch is loaded that names a library which can come or go.
    pub(crate) fn is_hook_needed(&self, objects: &Objects<'_>) -> bool {
        let loaded = self.document.state.patches().iter().filter(|patch| patch.life() != Life::Replaced);
        let names: BTreeSet<_> = loaded.flat_map(Patch::objects).filter_map(PatchObject::name).collect();
        let permanent = if names.is_empty() { BTreeSet::new() } else { objects.permanent() };
        names.iter().any(|name| !is_permanent(objects, &permanent, name))
    }

    pub(crate) fn is_hooked(&self, libraries: &Libraries) -> Result<bool> {
        let installed = libraries.entry.installed(|addr, buf| self.target.memory().read(addr, buf))?;
        Ok(installed == Installed::Redirect(libraries.hook))
    }

    /// Leads the loader to the hook.
    pub(crate) fn put_in(&mut self, stopped: &StoppedProcess, maps: Maps) -> Result<()> {
        let Some(libraries) = self.document.libraries.clone() else { return Ok(()) };
        match libraries.entry.installed(|addr, buf| self.target.memory().read(addr, buf))? {
            Installed::Redirect(to) if to == libraries.hook => return Ok(()),
            Installed::Original | Installed::Half(_) => {}
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
        if looker.first_in(stopped, &watch)?.is_some() {
            // A stop that finds the list whole finds nobody in there but by a stale word; the next command tries again.
            self.notes
                .push("the loader is in use; libraries are patched from the next command on".to_owned());
            return Ok(());
        }
        let writes = libraries.entry.entry_to(libraries.hook);
        for write in writes.map_err(|e| crate::Error::Damaged(e.to_string()))? {
            self.target.memory().write(write.addr, &write.bytes)?;
        }
        Ok(())
    }

    /// Takes the hook off. Who is on its way into it finds no table. False where a thread may be about to call a library's finalizer in
    /// the runtime.
    pub(super) fn take_off(&mut self, stopped: &StoppedProcess, maps: Maps) -> Result<bool> {
        self.lead_finalizers(&[])?;
        if !self.nobody_calls_finalizers(stopped, maps)? {
            return Ok(false);
        }
        let Some(libraries) = self.document.libraries.take() else { return Ok(true) };
        let memory = self.target.memory();
        let installed = libraries.entry.installed(|addr, buf| memory.read(addr, buf))?;
        if matches!(installed, Installed::Redirect(to) | Installed::Half(to) if to == libraries.hook) {
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
        Ok(true)
    }
}

/// The C library's function that ends a loading with a message; 0 where there is none.
fn signal_error(objects: &Objects<'_>) -> u64 {
    let libc = objects.iter().find(|object| object.namespace() == 0 && object.name() == "libc.so.6");
    let function = libc.and_then(|libc| libc.function("_dl_signal_error", 0).ok());
    function.map_or(0, |function| function.address.0)
}
