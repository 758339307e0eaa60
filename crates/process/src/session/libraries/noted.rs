//! Taking over what the hook has noted in its table.

use super::table::{self, Library, LibraryPlace};
use crate::code::entry::Entry;
use crate::objects::Objects;
use crate::session::Session;
use crate::state::document::Site;
use crate::state::pieces::{Libraries, Present};
use crate::target::maps::Maps;
use crate::{RemoteAddr, Result};
use std::mem::offset_of;
use ugraft_core::{Event, FuncId, Patch, PatchId};
use ugraft_runtime::expected::{AWAY, HERE, Loader, TABLE_MAX};

impl Session {
    pub(super) fn has_changed(&self, libraries: &Libraries) -> Result<bool> {
        let Some((_, table)) = self.table_that_counts(libraries)? else { return Ok(true) };
        let now = table::read(&table)?;
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

    /// Where the table lies that counts, and its bytes, with whatever lies behind it; `None` where there is none.
    pub(super) fn table_that_counts(&self, libraries: &Libraries) -> Result<Option<(RemoteAddr, Vec<u8>)>> {
        let memory = self.target.memory();
        let at = RemoteAddr(memory.read_u64(libraries.word(offset_of!(Loader, table)))?);
        if !libraries.mapping.contains(&at) {
            return Ok(None);
        }
        let len = (TABLE_MAX as u64).min(libraries.mapping.end.0 - at.0) as usize;
        Ok(Some((at, memory.read_vec(at, len)?)))
    }

    /// Takes over what the hook has noted; under a stop, or for looking only.
    pub(crate) fn merge(&mut self, objects: &Objects<'_>, maps: &Maps) -> Result<()> {
        let Some(libraries) = self.document.libraries.clone() else { return Ok(()) };
        let memory = self.target.memory();
        self.counted = Some(memory.read_u64(libraries.word(offset_of!(Loader, changes)))?);
        let listed = self.listed_libraries(libraries.debug)?;
        self.listed = listed.map(|listed| listed.into_keys().collect());
        if let Some((at, table)) = self.table_that_counts(&libraries)? {
            self.merge_table(&libraries, at, &table::read(&table)?, objects, maps)?;
        }
        self.know_libraries(objects)
    }

    fn merge_table(
        &mut self,
        libraries: &Libraries,
        at: RemoteAddr,
        now: &[Library],
        objects: &Objects<'_>,
        maps: &Maps,
    ) -> Result<()> {
        let mut present = libraries.present.clone();
        let listed = self.listed_libraries(libraries.debug)?.unwrap_or_default();
        for known in &libraries.present {
            let in_table = now.iter().any(|library| library.name == known.name);
            if !in_table && listed.get(&known.link_map.0) != Some(&known.bias) {
                present.retain(|present| present.name != known.name);
                self.forget_library(&known.name, &[])?;
            }
        }
        for (index, library) in now.iter().enumerate() {
            let known = present.iter().position(|known| known.name == library.name);
            if let Some(known) = known.filter(|known| is_same(&present[*known], library)) {
                present[known].index = Some(index);
                continue;
            }
            if let Some(known) = known {
                present.remove(known);
                self.forget_library(&library.name, &self.patches_of(library, false))?;
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
            libraries.table = at;
        }
        Ok(())
    }

    /// The patches that a table has for a library; with `applied` those that are applied to it.
    fn patches_of(&self, library: &Library, applied: bool) -> Vec<PatchId> {
        let uses = library.uses.iter().filter(|one| one.applied || !applied);
        uses.filter_map(|one| self.document.state.patch_named(&one.patch)).map(|patch| patch.id()).collect()
    }

    /// A library is gone, and these patches have let go of it.
    pub(super) fn forget_library(&mut self, name: &str, left: &[PatchId]) -> Result<()> {
        if self.document.state.is_loaded(Some(name)) {
            self.step(Event::ObjectGone { object: name.to_owned(), left: left.to_vec() })?;
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
    pub(super) fn learn(&mut self, library: &Library, objects: &Objects<'_>, maps: &Maps) -> Result<()> {
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
        let applied = self.patches_of(library, true);
        let owing = library.uses.iter().find(|one| one.applied && (one.moving || one.between));
        let waits = owing.and_then(|one| self.document.state.patch_named(&one.patch)).map(Patch::id);
        self.step(Event::ObjectCame { object: library.name.clone(), applied, waits })
    }
}

fn is_same(present: &Present, library: &Library) -> bool {
    library.state != AWAY && present.link_map == library.link_map && present.came == library.came
}
