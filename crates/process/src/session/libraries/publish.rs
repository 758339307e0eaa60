//! Writing the table that the hook is to work with.

use super::references;
use super::table::{self, Library, LibraryPlace, LibraryUse, Running};
use crate::code::stub;
use crate::session::Session;
use crate::state::pieces::{Libraries, Present};
use crate::{RemoteAddr, Result};
use std::mem::offset_of;
use ugraft_core::{Direction, Life, Patch, PatchId, PatchObject, Phase};
use ugraft_runtime::expected::{HERE, LEFT, Loader, TABLE_MAX};

/// The place of `post_patch` among a use's callbacks.
const POST_PATCH: usize = 1;

impl Session {
    /// Gives the hook a table that fits the patches as they are, and the transition that runs; to be done with all threads stopped and
    /// when what the hook has done is taken over.
    pub(crate) fn publish(&mut self) -> Result<()> {
        let Some(libraries) = self.document.libraries.clone() else { return Ok(()) };
        let memory = self.target.memory();
        let table_word = libraries.word(offset_of!(Loader, table));
        let listed = self.listed_libraries(libraries.debug)?.unwrap_or_default();
        let mut seen: Vec<u64> = listed.into_keys().collect();
        // A thread may be just about to call the hook for a library that is listed already.
        if let Some(known) = self.seen(&libraries)?.or_else(|| self.listed.clone()) {
            seen.retain(|map| known.contains(map));
        }
        let running = self.running()?;
        let (list, present) = self.expected(&libraries, running.is_some())?;
        let patches =
            self.in_effect(running.is_some()).map(|patch| Ok(self.document.image(patch.id())?.structure));
        let bytes = table::write(&list, &seen, &patches.collect::<Result<Vec<_>>>()?, running.as_ref())?;
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
        let fits = running.is_none().then(|| self.enabled());
        if let Some(libraries) = &mut self.document.libraries {
            libraries.table = at;
            libraries.moving = running.is_some();
            libraries.present = present;
            libraries.fits = fits;
        }
        Ok(())
    }

    /// The link maps that the hook has seen; `None` where it is not at work.
    pub(super) fn seen(&self, libraries: &Libraries) -> Result<Option<Vec<u64>>> {
        // Before it is put in, its words need not be there.
        if !self.is_hooked(libraries)? {
            return Ok(None);
        }
        self.table_that_counts(libraries)?.map(|(_, table)| table::read_seen(&table)).transpose()
    }

    /// The patches in effect.
    pub(super) fn enabled(&self) -> Vec<PatchId> {
        let patches = self.document.state.patches().iter();
        patches.filter(|patch| patch.life() == Life::Enabled).map(Patch::id).collect()
    }

    /// What the hook has to know of the transition, while that still decides what runs.
    fn running(&self) -> Result<Option<Running>> {
        let transition = self.document.state.transition().filter(|t| t.phase() != Phase::Completing);
        let (Some(transition), Some(arena)) = (transition, &self.document.arena) else { return Ok(None) };
        let stub = stub::template(arena.word, arena.capacity()?);
        Ok(Some(Running { stub, disabling: transition.origin() == Direction::Unpatching }))
    }

    /// The patches of which libraries get what they have for them; `running` says whether the transition still decides what runs.
    fn in_effect(&self, running: bool) -> impl Iterator<Item = &Patch> {
        self.document.state.patches().iter().filter(move |patch| {
            match self.document.state.transition().filter(|t| t.patch() == patch.id()) {
                Some(_) if running => true,
                Some(transition) => transition.direction() == Direction::Patching,
                None => patch.life() == Life::Enabled,
            }
        })
    }

    /// The libraries that patches in effect name, and those of them that are loaded.
    fn expected(&self, libraries: &Libraries, running: bool) -> Result<(Vec<Library>, Vec<Present>)> {
        let mut list: Vec<Library> = Vec::new();
        for (below, patch) in self.in_effect(running).enumerate() {
            let image = self.document.image(patch.id())?;
            let moving = running && patch.life() != Life::Enabled;
            for (i, part) in patch.objects().iter().enumerate() {
                let Some(name) = part.name().filter(|name| !self.permanent.contains(*name)) else { continue };
                let described = patch.desc().objects.get(i);
                if described.is_none() && !moving {
                    // There for nops only, which are a matter of the transition.
                    continue;
                }
                let at = list.iter().position(|library| library.name == name).unwrap_or_else(|| {
                    list.push(Library { name: name.to_owned(), ..Library::default() });
                    list.len() - 1
                });
                let library = &mut list[at];
                let mut one = LibraryUse {
                    patch: patch.name().to_owned(),
                    build_id: described.and_then(|described| described.build_id.clone()).unwrap_or_default(),
                    below,
                    moving,
                    applied: part.is_patched(),
                    ..LibraryUse::default()
                };
                if let Some(object) = image.objects.iter().find(|object| object.name.as_deref() == Some(name))
                {
                    one.object = object.addr;
                    let callbacks =
                        [object.pre_patch, object.post_patch, object.pre_unpatch, object.post_unpatch];
                    one.callbacks = callbacks.map(|callback| callback.map_or(0, |at| at.0));
                }
                one.references = references::of(image, name);
                let own = described.into_iter().flat_map(|described| {
                    described.funcs.iter().map(|func| (described.id_of(func), func.old_sympos))
                });
                let nops = patch.nops().iter().filter(|func| moving && func.object.as_deref() == Some(name));
                for (id, position) in own.chain(nops.map(|func| (func.clone(), func.sympos))) {
                    let new = image.funcs.iter().find(|new| new.func == id);
                    if new.is_none() && !patch.nops().contains(&id) {
                        continue;
                    }
                    let same =
                        |place: &LibraryPlace| place.name == id.name && place.position.max(1) == id.sympos;
                    let place = library.places.iter().position(same).unwrap_or_else(|| {
                        // As the hook would have noted it, for whoever reads the table after this document is lost.
                        let site = self.document.site(&id).and_then(|site| {
                            let first = site.code.first()?;
                            site.entry.to_site(first.end.distance_from(first.start) as u64)
                        });
                        let (name, site) = (id.name.clone(), site.unwrap_or_default());
                        library.places.push(LibraryPlace { name, position, site });
                        library.places.len() - 1
                    });
                    one.funcs.push(
                        new.map_or((place, RemoteAddr(0), RemoteAddr(0)), |new| {
                            (place, new.addr, new.landing)
                        }),
                    );
                }
                // At the end of a transition one without `post_patch` is past it.
                one.between = part.is_between() && (running || one.callbacks[POST_PATCH] != 0);
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
            let Some(known) = known.cloned() else { continue };
            let applied = library.uses.iter().any(|one| one.applied) || library.uses.is_empty();
            library.state = if applied { HERE } else { LEFT };
            library.link_map = known.link_map;
            library.bias = known.bias;
            library.near = known.near;
            library.came = known.came;
            present.push(Present { index: Some(index), ..known });
        }
        let patches = self.document.state.patches().iter();
        let named: Vec<_> = patches.flat_map(Patch::objects).filter_map(PatchObject::name).collect();
        let is_other = |known: &&Present| {
            !present.iter().any(|p| p.name == known.name) && named.contains(&known.name.as_str())
        };
        let others: Vec<_> = libraries.present.iter().filter(is_other).cloned().collect();
        present.extend(others.into_iter().map(|known| Present { index: None, ..known }));
        Ok((list, present))
    }
}
