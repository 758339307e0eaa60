//! References of patches to symbols of libraries that can come or go.
//!
//! The image of such a patch reaches these symbols through words of its own: entries of its GOT, and pointers in its data. The hook
//! writes a word when the library comes, before the patch's `pre_patch` runs, and takes the address out again when the library goes. The
//! tool does it for a library that is loaded already when the patch is loaded or enabled, and puts right what has changed while
//! the hook did not know of the patch.
//!
//! The words of a patch that is not in effect may be stale: nobody uses them before they are written anew.

use super::table::LibraryReference;
use crate::objects::symbols::SymbolError;
use crate::objects::{Object, Objects};
use crate::session::Session;
use crate::session::batch::Batch;
use crate::state::document::{Image, Reference};
use crate::{Error, RemoteAddr, Result};
use object::elf;
use std::collections::BTreeSet;
use ugraft_core::{Life, PatchDesc};

/// The references of an image to a library, for the hook's table.
pub(crate) fn of(image: &Image, library: &str) -> Vec<LibraryReference> {
    let ours = image.references.iter().filter(|reference| reference.object == library);
    let entry = |reference: &Reference| LibraryReference {
        symbol: reference.symbol.clone(),
        position: reference.position,
        word: reference.word,
        addend: reference.addend,
    };
    ours.map(entry).collect()
}

/// Adds to `batch` what the words of a patch that is to be enabled must hold.
///
/// # Errors
/// Where a library that is loaded has no such symbol, or one that has no one address.
pub(crate) fn write_all(
    image: &Image,
    desc: &PatchDesc,
    objects: &Objects<'_>,
    batch: &mut Batch,
) -> Result<()> {
    for reference in &image.references {
        let value = match library(reference, desc, objects) {
            Some(object) => address(reference, object)?.0,
            None => 0,
        };
        batch.writes.push((reference.word, held(reference, value).to_le_bytes().to_vec()));
    }
    Ok(())
}

fn held(reference: &Reference, address: u64) -> u64 {
    address.wrapping_add_signed(reference.addend)
}

/// The library that a reference is bound in, if it is loaded and the one that the patch is for.
fn library<'o, 't>(
    reference: &Reference,
    desc: &PatchDesc,
    objects: &'o Objects<'t>,
) -> Option<&'o Object<'t>> {
    let object = super::loaded(objects, &reference.object)?;
    let described = desc.objects.iter().find(|d| d.name.as_ref() == Some(&reference.object));
    let wanted = described.and_then(|described| described.build_id.as_ref());
    wanted.is_none_or(|wanted| object.check_build_id(wanted).is_ok()).then_some(object)
}

fn address(reference: &Reference, object: &Object<'_>) -> Result<RemoteAddr> {
    let symbol = object.symbol(&reference.symbol, reference.position)?;
    match symbol.kind {
        elf::STT_TLS => Err(Error::Libraries(format!(
            "`{}` of {} is thread-local, and has no one place in a library that can come or go",
            reference.symbol, reference.object
        ))),
        elf::STT_GNU_IFUNC => Ok(object.function(&reference.symbol, reference.position)?.address),
        _ => Ok(RemoteAddr(symbol.value)),
    }
}

impl Session {
    /// Puts the words of the patches in effect right where a library came or went while the hook did not know of the patch. To be
    /// done with all threads stopped.
    pub(super) fn bind_references(&mut self, objects: &Objects<'_>) -> Result<()> {
        let memory = self.target.memory();
        for patch in self.document.state.patches().iter().filter(|patch| patch.life() == Life::Enabled) {
            for reference in &self.document.image(patch.id())?.references {
                let now =
                    memory.read_u64(reference.word)?.wrapping_add_signed(reference.addend.wrapping_neg());
                let object = library(reference, patch.desc(), objects);
                let fits = match object {
                    Some(object) => {
                        now != 0 && objects.at(RemoteAddr(now)).is_some_and(|at| at.id() == object.id())
                    }
                    None => now == 0,
                };
                if fits {
                    continue;
                }
                let value = object.map_or(Ok(RemoteAddr(0)), |object| address(reference, object));
                let value = value.unwrap_or_else(|e| {
                    let name = patch.name();
                    self.notes.push(format!("a reference of patch '{name}' is not bound, and is 0: {e}"));
                    RemoteAddr(0)
                });
                memory.write(reference.word, &held(reference, value.0).to_le_bytes())?;
            }
        }
        Ok(())
    }
}

/// Says which references of an image are to be bound when their library comes.
pub(crate) fn bound_later(image: &Image, objects: &Objects<'_>) -> Vec<String> {
    let later = image.references.iter().filter(|reference| is_away(objects, &reference.object));
    let symbols: BTreeSet<_> = later.map(|reference| (&reference.symbol, &reference.object)).collect();
    symbols
        .into_iter()
        .map(|(symbol, object)| {
            format!("{symbol} of {object} is bound when that library is loaded, and is 0 until then")
        })
        .collect()
}

/// Whether no library of that name is loaded.
pub(crate) fn is_away(objects: &Objects<'_>, name: &str) -> bool {
    matches!(objects.find(Some(name)), Err(SymbolError::NotLoaded { .. }))
}
