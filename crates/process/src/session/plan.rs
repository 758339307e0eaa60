//! From a patch file to what is to be put into the target: its description, its image, its sites.

use crate::code::trampoline;
use crate::objects::demangle;
use crate::objects::symbols::SymbolError;
use crate::objects::{ObjectId, Objects};
use crate::remote::mapping::{MapRequest, Part as MappedPart, Prot};
use crate::session::batch::Batch;
use crate::session::resolve::Resolver;
use crate::session::site::Finder;
use crate::state::document::{Document, Image, ImageObject, ImageParam, NewFunc, Reference, Site, Symbol};
use crate::state::pieces::Tables;
use crate::target::Target;
use crate::target::maps::Maps;
use crate::{RemoteAddr, Result};
use std::collections::BTreeSet;
use std::ops::Range;
use ugraft_core::{Callbacks, FuncDesc, FuncId, ObjectDesc, PatchDesc, PatchId, StateDesc};
use ugraft_image::{Func, LinkedImage, PatchFile, Resolution};

/// Sites further apart than this need different places for what they jump to.
const NEIGHBOURHOOD: i64 = 1 << 30;
/// Bytes from one trampoline to the next.
const TRAMPOLINE_LEN: usize = trampoline::FAR_LEN.next_multiple_of(16);
const PAGE: u64 = crate::session::batch::PAGE;

/// The description of a patch in the semantics' terms. Objects that are loaded, and their functions, get their canonical
/// names, so that two patches mean the same by whatever names they call them.
#[must_use]
pub fn describe(patch: &PatchFile, objects: &Objects<'_>) -> PatchDesc {
    let metadata = patch.metadata();
    let text = |t: &Option<String>| t.clone().unwrap_or_default();
    PatchDesc {
        name: metadata.name.clone(),
        version: text(&metadata.version),
        description: text(&metadata.description),
        replace: metadata.replace,
        depends: metadata.depends.clone(),
        init: metadata.init.is_some(),
        exit: metadata.exit.is_some(),
        states: metadata.states.iter().map(|s| StateDesc { id: s.id, version: s.version }).collect(),
        objects: metadata
            .objects
            .iter()
            .map(|object| ObjectDesc {
                name: object.name.as_deref().map(|name| canonical(objects, name)),
                build_id: object.build_id.clone(),
                funcs: object
                    .funcs
                    .iter()
                    .map(|f| canonical_func(objects, object.name.as_deref(), f))
                    .collect(),
                callbacks: Callbacks {
                    pre_patch: object.callbacks.pre_patch.is_some(),
                    post_patch: object.callbacks.post_patch.is_some(),
                    pre_unpatch: object.callbacks.pre_unpatch.is_some(),
                    post_unpatch: object.callbacks.post_unpatch.is_some(),
                },
            })
            .collect(),
    }
}

fn canonical(objects: &Objects<'_>, name: &str) -> String {
    let found = objects.find(Some(name));
    // One that is called by its file's name may have gone while it was looked at, and be read as what came in its place: what it
    // is called by then need not lead to it.
    let by_other = |other: &str| objects.find(Some(other)).map(|object| object.id());
    match found {
        Ok(object) if by_other(object.name()) == Ok(object.id()) => object.name().to_owned(),
        _ => name.to_owned(),
    }
}

/// A function by its canonical name, so that patches that name it by different aliases are known to change the same one.
/// As the file has it where there is no such function (yet).
fn canonical_func(objects: &Objects<'_>, object: Option<&str>, func: &Func) -> FuncDesc {
    let found = objects.function(object, &func.old_name, func.old_sympos);
    let (old_name, old_sympos) =
        found.map_or_else(|_| (func.old_name.clone(), func.old_sympos), |f| f.canonical);
    FuncDesc { old_name, old_sympos }
}

/// Checks the build-ids that a patch asks for, of the objects that are loaded.
///
/// # Errors
/// [`crate::Error::Symbol`] where one differs.
pub fn check_build_ids(desc: &PatchDesc, objects: &Objects<'_>) -> Result<()> {
    for object in &desc.objects {
        if let (Some(wanted), Ok(found)) = (&object.build_id, objects.find(object.name.as_deref())) {
            found.check_build_id(wanted)?;
        }
    }
    Ok(())
}

/// Refuses objects and functions by whose names they would be waited for in vain: that of the main executable, and names
/// that no linker gives in a library that comes later.
///
/// # Errors
/// [`crate::Error::Symbol`].
pub fn check_names(desc: &PatchDesc, objects: &Objects<'_>) -> Result<()> {
    for (name, object) in desc.objects.iter().filter_map(|object| Some((object.name.as_deref()?, object))) {
        if objects.find(Some(name)).is_ok() {
            continue;
        }
        if objects.main().is_called(name) {
            return Err(SymbolError::MainByName { object: name.to_owned() }.into());
        }
        if let Some(func) = object.funcs.iter().find(|func| demangle::is_demangled(&func.old_name)) {
            let (object, name) = (name.to_owned(), func.old_name.clone());
            return Err(SymbolError::DemangledLater { object, name }.into());
        }
    }
    Ok(())
}

/// Refuses names without a position that several functions of a loaded object bear. The description cannot tell: there,
/// no position is the first one.
///
/// # Errors
/// [`crate::Error::Symbol`] with the positions there are.
pub fn check_ambiguity(patch: &PatchFile, objects: &Objects<'_>) -> Result<()> {
    for object in &patch.metadata().objects {
        for func in object.funcs.iter().filter(|func| func.old_sympos == 0) {
            let at = |position| objects.function(object.name.as_deref(), &func.old_name, position);
            if let (Err(ambiguous), Ok(_)) = (at(0), at(1)) {
                return Err(ambiguous);
            }
        }
    }
    Ok(())
}

/// Whether the patch has callbacks.
#[must_use]
pub fn has_callbacks(desc: &PatchDesc) -> bool {
    desc.init || desc.exit || desc.objects.iter().any(|object| object.callbacks != Callbacks::default())
}

/// Whether callbacks of the patch run when it is enabled: such of objects that are loaded.
#[must_use]
pub fn calls_back_at_once(desc: &PatchDesc, objects: &Objects<'_>) -> bool {
    let is_there = |name: Option<&str>| !matches!(objects.find(name), Err(SymbolError::NotLoaded { .. }));
    desc.objects.iter().any(|o| o.callbacks != Callbacks::default() && is_there(o.name.as_deref()))
}

/// The sites of those of `funcs` that have none in `document` yet.
///
/// # Errors
/// Those of [`Finder::find`].
pub fn new_sites(
    target: &Target,
    maps: &Maps,
    objects: &Objects<'_>,
    document: &Document,
    funcs: impl Iterator<Item = FuncId>,
) -> Result<Vec<Site>> {
    let mut finder = Finder::new(target.memory(), maps, objects, &document.sites);
    let mut sites: Vec<Site> = Vec::new();
    let funcs: Vec<_> = funcs.collect();
    finder.expect(funcs.len());
    for func in funcs {
        if document.site(&func).is_none() && !sites.iter().any(|site| site.func == func) {
            sites.push(finder.find(&func)?);
        }
    }
    Ok(sites)
}

/// Links `patch` for a place from where, or through trampolines, its sites reach it, and adds what is to be mapped and
/// written to `batch`. `desc` is its description with one func for each of the file's.
///
/// # Errors
/// [`crate::Error::Link`] where symbols are missing or out of reach, [`crate::Error::NoPlace`] where there is no room.
pub fn image(
    id: PatchId,
    patch: &PatchFile,
    desc: &PatchDesc,
    objects: &Objects<'_>,
    document: &Document,
    batch: &mut Batch,
) -> Result<Image> {
    let also: Vec<ObjectId> =
        desc.objects.iter().filter_map(|o| objects.find(o.name.as_deref()).ok()).map(|o| o.id()).collect();
    let runtime = document.runtime.as_ref().map(|runtime| &runtime.functions);
    let mut resolver = Resolver::new(objects, &also)?
        .with(runtime.cloned().unwrap_or_default())
        .with_movable(movable(patch, desc, objects));
    let mut jumps = jumps(desc, document);
    if jumps.is_empty() {
        // Functions of libraries that come later will lie where libraries do, next to the loader.
        jumps.extend(objects.loader_debug().map(|debug| debug.brk).filter(|brk| brk.0 != 0));
    }
    let layout = patch.layout();
    let base = place(patch, &resolver, &jumps, batch)?.start;
    let linked = ugraft_image::link(patch, base, &mut resolver)?;
    batch.add_image(format!("ugraft:patch:{}", desc.name), layout, &linked);
    let mut image = Image {
        patch: id,
        mappings: vec![base..base.offset(layout.size as i64)],
        funcs: new_funcs(desc, &linked),
        symbols: symbols(&linked),
        structure: linked.patch,
        objects: image_objects(desc, &linked),
        init: linked.init,
        exit: linked.exit,
        params: image_params(patch, &linked),
        tables: Tables::of(&linked),
        references: image_references(patch, objects, &linked),
    };
    trampolines(&mut image, document, &desc.name, batch)?;
    Ok(image)
}

/// What a patch calls the libraries among its objects that can come or go.
fn movable(patch: &PatchFile, desc: &PatchDesc, objects: &Objects<'_>) -> BTreeSet<String> {
    let by_position =
        |import: &ugraft_image::Import| import.klp.as_ref().is_some_and(|klp| klp.object.is_some());
    if !patch.imports().iter().any(by_position) {
        return BTreeSet::new();
    }
    let permanent = objects.permanent();
    let stays = |name: &str| objects.find(Some(name)).is_ok_and(|object| permanent.contains(&object.id().0));
    let imports = patch.imports().iter().filter_map(|import| import.klp.as_ref()?.object.clone());
    let named = |name: &String| {
        let canonical = canonical(objects, name);
        desc.objects.iter().any(|object| object.name.as_ref() == Some(&canonical))
    };
    imports.filter(|name| named(name) && !stays(name)).collect()
}

fn image_references(patch: &PatchFile, objects: &Objects<'_>, linked: &LinkedImage) -> Vec<Reference> {
    let reference = |linked: &ugraft_image::Reference| {
        let klp = patch.imports().get(linked.import)?.klp.as_ref()?;
        Some(Reference {
            object: canonical(objects, klp.object.as_deref()?),
            symbol: klp.symbol.clone(),
            position: klp.pos,
            word: linked.word,
            addend: linked.addend,
        })
    };
    linked.references.iter().filter_map(reference).collect()
}

/// Where the redirects of the patch's loaded functions jump from.
fn jumps(desc: &PatchDesc, document: &Document) -> Vec<RemoteAddr> {
    let mut jumps: Vec<_> =
        desc.funcs().filter_map(|func| document.site(&func)).map(|site| site.entry.jump()).collect();
    jumps.sort();
    jumps
}

/// A place for the image: near what its code must reach, and near the largest group of its sites, or as much of that as
/// can be had.
fn place(
    patch: &PatchFile,
    resolver: &Resolver<'_, '_>,
    jumps: &[RemoteAddr],
    batch: &mut Batch,
) -> Result<Range<RemoteAddr>> {
    let layout = patch.layout();
    let below_2g = layout.below_2g.is_some();
    let near: Vec<RemoteAddr> = patch
        .imports()
        .iter()
        .filter(|import| import.usage.near)
        .filter_map(|import| match resolver.resolve(import) {
            Resolution::Address(addr) | Resolution::Movable(addr) if addr.0 != 0 => Some(addr),
            _ => None,
        })
        .collect();
    let largest = groups(jumps).into_iter().max_by_key(Vec::len).unwrap_or_default();
    let both = [near.clone(), largest.clone()].concat();
    let mut result = batch.ground.take_where(layout.size, &both, below_2g);
    for reach in [&near, &largest] {
        if result.is_err() && !reach.is_empty() {
            result = batch.ground.take_where(layout.size, reach, below_2g);
        }
    }
    result
}

/// Addresses, sorted, in groups of neighbours.
fn groups(sorted: &[RemoteAddr]) -> Vec<Vec<RemoteAddr>> {
    let mut groups: Vec<Vec<RemoteAddr>> = Vec::new();
    for &addr in sorted {
        match groups.last_mut() {
            Some(group) if addr.distance_from(group[0]) < NEIGHBOURHOOD => group.push(addr),
            _ => groups.push(vec![addr]),
        }
    }
    groups
}

/// Gives trampolines to those functions of `image` that their sites' jumps do not reach.
///
/// # Errors
/// [`crate::Error::NoPlace`] where there is no room within reach of a site.
pub fn trampolines(image: &mut Image, document: &Document, name: &str, batch: &mut Batch) -> Result<()> {
    let mut far: Vec<(RemoteAddr, &mut NewFunc)> = Vec::new();
    for new in &mut image.funcs {
        if let Some(site) = document.site(&new.func)
            && !site.entry.reaches(new.landing)
        {
            far.push((site.entry.jump(), new));
        }
    }
    far.sort_by_key(|(jump, _)| *jump);
    while !far.is_empty() {
        let first = far[0].0;
        let count = far.partition_point(|(jump, _)| jump.distance_from(first) < NEIGHBOURHOOD);
        let reach: Vec<_> = far[..count].iter().map(|(jump, _)| *jump).collect();
        let len = ((count * TRAMPOLINE_LEN) as u64).next_multiple_of(PAGE);
        let range = batch.ground.take(len, &reach)?;
        let mut bytes = vec![0xcc; count * TRAMPOLINE_LEN];
        for (i, (_, new)) in far.drain(..count).enumerate() {
            bytes[i * TRAMPOLINE_LEN..][..trampoline::FAR_LEN].copy_from_slice(&trampoline::far(new.addr));
            new.landing = range.start.offset((i * TRAMPOLINE_LEN) as i64);
        }
        batch.requests.push(MapRequest {
            name: format!("ugraft:patch:{name}"),
            addr: range.start,
            len,
            parts: vec![MappedPart { offset: 0, len, prot: Prot::ReadExec }],
        });
        batch.writes.push((range.start, bytes));
        image.mappings.push(range);
    }
    Ok(())
}

fn new_funcs(desc: &PatchDesc, linked: &LinkedImage) -> Vec<NewFunc> {
    let funcs = desc.objects.iter().flat_map(|object| object.funcs.iter().map(|f| object.id_of(f)));
    let new = linked.objects.iter().flat_map(|object| &object.new_funcs);
    funcs
        .zip(new)
        .map(|(func, new)| NewFunc {
            func,
            addr: new.addr,
            landing: new.addr,
            code: std::iter::once((new.addr, new.size))
                .chain(new.cold.iter().map(|cold| (cold.addr, cold.size)))
                .map(|(addr, size)| addr..addr.offset(size as i64))
                .collect(),
        })
        .collect()
}

fn image_objects(desc: &PatchDesc, linked: &LinkedImage) -> Vec<ImageObject> {
    let objects = desc.objects.iter().zip(&linked.objects);
    objects
        .map(|(described, object)| ImageObject {
            name: described.name.clone(),
            addr: object.addr,
            pre_patch: object.callbacks.pre_patch,
            post_patch: object.callbacks.post_patch,
            pre_unpatch: object.callbacks.pre_unpatch,
            post_unpatch: object.callbacks.post_unpatch,
        })
        .collect()
}

fn image_params(patch: &PatchFile, linked: &LinkedImage) -> Vec<ImageParam> {
    let params = patch.metadata().params.iter().zip(&linked.params);
    params
        .map(|(param, addr)| ImageParam { name: param.name.clone(), kind: param.kind, addr: *addr })
        .collect()
}

fn symbols(linked: &LinkedImage) -> Vec<Symbol> {
    let symbol = |s: &ugraft_image::ImageSymbol| Symbol {
        name: s.name.clone(),
        range: s.addr..s.addr.offset(s.size as i64),
    };
    linked.symbols.iter().map(symbol).collect()
}
