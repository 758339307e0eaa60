//! Writing the table that the hook is to work with.

use super::noted::table_len;
use super::table::{self, Library, LibraryPlace, LibraryUse};
use super::{Libraries, Present, is_permanent, loaded};
use crate::objects::Objects;
use crate::session::Session;
use crate::{RemoteAddr, Result};
use std::mem::offset_of;
use ugraft_core::{Life, Patch, PatchId, PatchObject};
use ugraft_runtime::expected::{HERE, LEFT, Loader, TABLE_MAX};

impl Session {
    /// Gives the hook a table that fits the patches as they are.
    pub(super) fn publish(&mut self, objects: &Objects<'_>) -> Result<()> {
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
        let patches = self.enabled().into_iter().map(|id| Ok(self.document.image(id)?.structure));
        let bytes = table::write(&list, &seen, &patches.collect::<Result<Vec<_>>>()?)?;
        let first = libraries.mapping.start;
        let at = match RemoteAddr(memory.read_u64(table_word)?) == first {
            true => first.offset(TABLE_MAX as i64),
            false => first,
        };
        memory.write(at, &bytes)?;
        memory.write(table_word, &at.0.to_le_bytes())?;
        let patched = list.iter().filter(|library| library.state == HERE && !library.uses.is_empty());
        let patched: Vec<_> = patched.map(|library| (library.link_map, library.bias)).collect();
        self.lead_finalizers(&patched)?;
        let fits = self.enabled();
        if let Some(libraries) = &mut self.document.libraries {
            libraries.present = present;
            libraries.fits = Some(fits);
        }
        Ok(())
    }

    /// The patches in effect.
    pub(super) fn enabled(&self) -> Vec<PatchId> {
        let patches = self.document.state.patches().iter();
        patches.filter(|patch| patch.life() == Life::Enabled).map(Patch::id).collect()
    }

    /// The libraries that patches in effect name, and those of them that are loaded.
    pub(super) fn expected(
        &self,
        objects: &Objects<'_>,
        libraries: &Libraries,
        changes: u64,
        seen: &[u64],
    ) -> Result<(Vec<Library>, Vec<Present>)> {
        let permanent = objects.permanent();
        let mut list: Vec<Library> = Vec::new();
        let enabled = self.document.state.patches().iter().filter(|patch| patch.life() == Life::Enabled);
        for (below, patch) in enabled.enumerate() {
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
                    below,
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
}
