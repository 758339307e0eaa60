//! Which libraries are there at a stop, and whether anything may be written to them.

use super::table;
use super::{is_permanent, loaded};
use crate::code::entry::Installed;
use crate::objects::{Object, Objects};
use crate::session::Session;
use crate::state::document::Site;
use crate::state::pieces::Present;
use crate::{RemoteAddr, Result, Tid};
use std::collections::{BTreeMap, BTreeSet};
use std::mem::{offset_of, size_of};
use ugraft_core::{FuncId, Patch, PatchObject};
use ugraft_runtime::expected::{self, AWAY, Loader};

/// Most link maps and namespaces that are read at a stop.
const MAX_LISTED: usize = 16384;
const MAX_NAMESPACES: usize = 64;

impl Session {
    /// Remembers which libraries that patches name are loaded, so that it is noticed when they go, and which of them cannot.
    pub(crate) fn know_libraries(&mut self, objects: &Objects<'_>) -> Result<()> {
        let Some(libraries) = self.document.libraries.clone() else { return Ok(()) };
        let seen = self.seen(&libraries)?;
        let permanent = objects.permanent();
        let patches = self.document.state.patches().iter();
        let patched = patches.flat_map(Patch::objects).filter_map(PatchObject::name);
        let names: BTreeSet<_> = patched.map(str::to_owned).collect();
        let mut found = Vec::new();
        for name in names {
            if is_permanent(objects, &permanent, &name) {
                self.permanent.insert(name);
                continue;
            }
            let known = libraries.present.iter().any(|present| present.name == name);
            let link_map =
                loaded(objects, &name).filter(|_| !known).and_then(|o| Some((o.link_map()?, o.bias())));
            // One that the hook has not seen is about to come.
            if let Some((link_map, bias)) = link_map.filter(|(map, _)| is_seen(seen.as_deref(), *map)) {
                found.push(Present { name, index: None, link_map, bias, near: [0; 2], came: 0 });
            }
        }
        self.document.libraries.iter_mut().for_each(|libraries| libraries.present.append(&mut found));
        Ok(())
    }

    /// The link maps of libraries for which the loader has called the hook; `None` where there is none at work.
    pub(crate) fn seen_libraries(&self) -> Result<Option<Vec<u64>>> {
        self.document.libraries.as_ref().map_or(Ok(None), |libraries| self.seen(libraries))
    }

    /// Forgets libraries that the list does not have any more, or has at another place.
    pub(crate) fn forget_libraries(&mut self, objects: &Objects<'_>) -> Result<()> {
        let patches = self.document.state.patches().iter();
        let names = patches.flat_map(Patch::objects).filter_map(PatchObject::name).map(str::to_owned);
        // Of those in its table the hook alone knows: the list that was read may have been cut short by a change.
        let libraries = self.document.libraries.iter().flat_map(|libraries| &libraries.present);
        let tracked: BTreeSet<_> =
            libraries.filter(|present| present.index.is_some()).map(|present| present.name.clone()).collect();
        let known = self.places_known();
        for name in names.filter(|name| !tracked.contains(name)).collect::<BTreeSet<_>>() {
            let found = loaded(objects, &name).map(|object| (object.link_map(), object.bias()));
            let is_there = found.is_some() && known.get(&name).is_none_or(|known| Some(*known) == found);
            if self.document.state.is_loaded(Some(&name)) && !is_there {
                self.forget_library(&name, &[])?;
                if let Some(libraries) = &mut self.document.libraries {
                    libraries.present.retain(|present| present.name != name);
                }
            }
        }
        Ok(())
    }

    /// Where libraries were found that the document has something in.
    fn places_known(&self) -> BTreeMap<String, (Option<RemoteAddr>, u64)> {
        let present = self.document.libraries.iter().flat_map(|libraries| &libraries.present);
        present.map(|present| (present.name.clone(), (Some(present.link_map), present.bias))).collect()
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
        let at = RemoteAddr(memory.read_u64(libraries.word(offset_of!(Loader, table)))?);
        let head = match at.0 {
            0 => Vec::new(),
            _ => memory.read_vec(at, size_of::<expected::Head>())?,
        };
        let mut gone = BTreeSet::new();
        for present in &libraries.present {
            let is_listed = listed.get(&present.link_map.0) == Some(&present.bias);
            let mut there = is_listed;
            if let Some(index) = present.index.filter(|_| libraries.table == at) {
                let object = table::place_of(&head, index);
                let place = at.offset(object.unwrap_or_default() as i64);
                let word = |offset: usize| memory.read_u64(place.offset(offset as i64));
                there = object.is_some()
                    && word(offset_of!(expected::Object, state))? != AWAY
                    && word(offset_of!(expected::Object, link_map))? == present.link_map.0
                    && word(offset_of!(expected::Object, came))? == present.came;
                if there && !is_listed && self.is_hooked(&libraries)? {
                    // It has just been taken off the list, and whoever did so is on the way to the hook, which notes it.
                    return Ok(Some(Tid(self.target.pid().0)));
                }
                there &= is_listed;
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
                if !matches!(installed, Ok(Installed::Original | Installed::Redirect(_) | Installed::Half(_)))
                {
                    gone.insert(present.name.clone());
                }
            }
        }
        self.gone = gone;
        Ok(None)
    }

    /// The link maps of all namespaces and what is added to their addresses; `None` while the list is being changed.
    pub(super) fn listed_libraries(&self, debug: RemoteAddr) -> Result<Option<BTreeMap<u64, u64>>> {
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
}

/// Whether a library is there for the hook to patch yet: it is listed, and the hook has not seen it.
pub(crate) fn is_about_to_come(object: &Object<'_>, seen: Option<&[u64]>) -> bool {
    object.link_map().is_some_and(|map| !is_seen(seen, map))
}

fn is_seen(seen: Option<&[u64]>, link_map: RemoteAddr) -> bool {
    seen.is_none_or(|seen| seen.contains(&link_map.0))
}
