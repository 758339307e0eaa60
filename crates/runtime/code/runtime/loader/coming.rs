//! Patching a library that has come, or refusing it.
#![allow(clippy::result_large_err, reason = "there is no allocator, and a refusal is the end of a dlopen")]

use super::callbacks::{COMING, POST_PATCH, POST_UNPATCH, PRE_PATCH, call};
use super::going::{give_back, release};
use super::list::{Debug, LinkMap};
use super::message::{ERROR, Line, NOTICE, OBJECT, PATCH, WARNING, log, number};
use super::sides::Sides;
use super::table::Table;
use super::{changed, finalizers, is_guarded, references};
use crate::expected::{AWAY, BETWEEN, Func, HERE, Head, LEFT, Loader, Object, Place, Use};
use crate::layout::{Site, StubTemplate};
use crate::runtime::elf::Object as Library;
use crate::runtime::log::append;
use crate::runtime::redirect::{Near, Text as Code};
use crate::runtime::refusal::Refusal;
use crate::runtime::symbols::File;

/// The kernel's number for what is not permitted.
const EPERM: i32 = 1;
/// The kernel's number for what does not fit (`EINVAL`), and for no memory.
const EINVAL: i32 = 22;

/// A library that is not to be loaded, and why.
pub struct Refused {
    pub name: *const u8,
    pub why: Line,
}

/// Why a patch cannot be applied.
struct Unfit {
    errno: i32,
    why: Line,
}

/// Patches a library that is new, if it is one that is expected.
pub unsafe fn came(loader: *mut Loader, table: Table, map: *const LinkMap) -> Option<Refused> {
    // SAFETY: the maps are the loader's, and what they tell of is mapped.
    unsafe {
        let objects = table.objects();
        let mut library = None;
        for i in 0..objects.count {
            let object: *mut Object = table.entry(objects, i);
            if (*object).state != AWAY {
                if (*object).link_map == map as u64 {
                    // Known under this name; no other can mean it.
                    return None;
                }
                continue;
            }
            if library.is_none() {
                library = Library::of((*map).bias, (*map).name, (*map).dynamic).ok();
            }
            let Some(library) = &mut library else { return None };
            if library.is_named(table.text((*object).name)) {
                if !is_guarded(loader) {
                    // Without headers no function of it is found, which is said where one is looked for.
                    let _ = library.read_headers();
                }
                return welcome(loader, table, object, map, library);
            }
        }
    }
    None
}

unsafe fn welcome(
    loader: *mut Loader,
    table: Table,
    object: *mut Object,
    map: *const LinkMap,
    library: &Library,
) -> Option<Refused> {
    // SAFETY: as for `came`.
    unsafe {
        (*object).link_map = map as u64;
        (*object).bias = (*map).bias;
        (*object).came = changed(loader);
        (*object).near = [0; 2];
        for i in 0..(*object).places.count {
            (*table.entry::<Place>((*object).places, i)).site = Site::default();
        }
        let mut work = Work { table, object, library, file: None, near: None, cells: 0 };
        let uses = (*object).uses;
        for i in 0..uses.count {
            let one: *mut Use = table.entry(uses, i);
            ((*one).applied, (*one).between) = (0, 0);
        }
        for i in 0..uses.count {
            let one: *mut Use = table.entry(uses, i);
            let build_id = table.text((*one).build_id);
            if !is_guarded(loader) && !build_id.is_empty() && library.build_id() != Some(build_id) {
                log(
                    table,
                    object,
                    one,
                    WARNING,
                    &[b"patch ", PATCH, b" is for another build of module ", OBJECT],
                );
                continue;
            }
            let applied = if is_guarded(loader) { Err(guarded(table, object, one)) } else { work.apply(one) };
            let Err(unfit) = applied else { continue };
            log(
                table,
                object,
                one,
                WARNING,
                &[b"patch ", PATCH, b" failed for module ", OBJECT, b", refusing to load module ", OBJECT],
            );
            if (*loader).signal_error == 0 {
                // It cannot be kept out: it stays as it is for the patches from this one on.
                break;
            }
            for j in 0..i {
                release(table, object, table.entry(uses, j), COMING);
            }
            give_back(object);
            (*object).state = AWAY;
            let name = if (*map).name.is_null() { library.name() } else { (*map).name };
            return Some(Refused { name, why: unfit.why });
        }
        if !(0..uses.count).any(|i| (*table.entry::<Use>(uses, i)).applied != 0) {
            (*object).state = LEFT;
            return None;
        }
        (*object).state = HERE;
        finalizers::lead((*loader).debug as *const Debug, map as u64, (*map).bias, (*map).dynamic);
    }
    None
}

/// Says that nothing is done for a patch under such a filter.
unsafe fn guarded(table: Table, object: *mut Object, one: *mut Use) -> Unfit {
    // SAFETY: as for `came`.
    unsafe {
        log_uninitialized(table, object, one, EPERM);
        let mut why = Line::new();
        why.add(b"patch '");
        why.add(table.text((*one).patch));
        why.add(b"' cannot be applied to it: a seccomp filter that could kill the process for what that takes was set since, or /proc is not there to tell; load the library before");
        Unfit { errno: EPERM, why }
    }
}

/// Says in the log that a patch could not be made ready for the library.
unsafe fn log_uninitialized(table: Table, object: *mut Object, one: *mut Use, errno: i32) {
    let number = number(errno);
    let pieces: &[&[u8]] =
        &[b"failed to initialize patch ", PATCH, b" for module ", OBJECT, b" (-", number.as_bytes(), b")"];
    // SAFETY: as for `came`.
    unsafe { log(table, object, one, WARNING, pieces) }
}

/// Says in the log what it is about the library that a patch `cannot` do.
unsafe fn unfit(table: Table, one: *mut Use, cannot: &[u8], name: &[u8], refusal: Refusal) -> Unfit {
    let mut why = Line::new();
    why.add(b"patch '");
    // SAFETY: as for `came`.
    why.add(unsafe { table.text((*one).patch) });
    why.add(b"' cannot ");
    why.add(cannot);
    why.add(b" '");
    why.add(name);
    why.add(b"': ");
    refusal.write(&mut why);
    let mut line = Line::new();
    line.add(b"livepatch: ");
    line.add(why.as_bytes());
    append(ERROR, line.as_bytes());
    Unfit { errno: EINVAL, why }
}

/// What is at hand while a library is patched.
struct Work<'l> {
    table: Table,
    object: *mut Object,
    library: &'l Library,
    file: Option<File<'l>>,
    near: Option<Near>,
    /// Cells of the near memory that are in use.
    cells: usize,
}

impl<'l> Work<'l> {
    /// Applies a patch to the library.
    unsafe fn apply(&mut self, one: *mut Use) -> Result<(), Unfit> {
        let (table, object) = (self.table, self.object);
        // SAFETY: the table is the tool's, and the library is mapped.
        unsafe {
            if let Err(unfit) = self.initialize(one) {
                references::unbind(table, object, one);
                log_uninitialized(table, object, one, unfit.errno);
                return Err(unfit);
            }
            log(table, object, one, NOTICE, &[b"applying patch ", PATCH, b" to loading module ", OBJECT]);
            let value = call(table, object, one, PRE_PATCH, COMING);
            if value != 0 {
                log(table, object, one, WARNING, &[b"pre-patch callback failed for object ", OBJECT]);
                let mut why = Line::new();
                why.add(b"the pre_patch callback of patch '");
                why.add(table.text((*one).patch));
                why.add(b"' refused with ");
                if value < 0 {
                    why.add(b"-");
                }
                why.add_number(u64::from(value.unsigned_abs()), 10);
                references::unbind(table, object, one);
                return Err(Unfit { errno: value.wrapping_neg(), why });
            }
            ((*one).applied, (*one).between) = (1, BETWEEN);
            if let Err(unfit) = self.redirect(one) {
                log(
                    table,
                    object,
                    one,
                    WARNING,
                    &[
                        b"failed to apply patch ",
                        PATCH,
                        b" to module ",
                        OBJECT,
                        b" (-",
                        number(unfit.errno).as_bytes(),
                        b")",
                    ],
                );
                (*one).applied = 0;
                call(table, object, one, POST_UNPATCH, COMING);
                references::unbind(table, object, one);
                return Err(unfit);
            }
            if (*one).moving == 0 {
                call(table, object, one, POST_PATCH, COMING);
                (*one).between = 0;
            }
        }
        Ok(())
    }

    /// Binds the patch's references to the library, and finds its functions there.
    unsafe fn initialize(&mut self, one: *mut Use) -> Result<(), Unfit> {
        let (table, object) = (self.table, self.object);
        // SAFETY: as for `apply`.
        unsafe {
            if (*one).references.count > 0 {
                let mut name: &[u8] = b"";
                let bound = self.file().and_then(|file| references::bind(table, one, file, &mut name));
                bound.map_err(|refusal| unfit(table, one, b"refer to its symbol", name, refusal))?;
            }
            for i in 0..(*one).funcs.count {
                let func: *mut Func = table.entry((*one).funcs, i);
                (*func).landing = 0;
                let place: *mut Place = table.entry((*object).places, (*func).place as u32);
                if (*place).site.start != 0 {
                    continue;
                }
                let name = table.text((*place).name);
                let refused = |refusal: Refusal| unfit(table, one, b"change its function", name, refusal);
                let library = self.library;
                let file = self.file().map_err(refused)?;
                let found = file.function(name, (*place).position).map_err(refused)?;
                let places: *const Place = table.entry((*object).places, 0);
                let places = core::slice::from_raw_parts(places, (*object).places.count as usize);
                let taken = places.iter().map(|place| &place.site).filter(|site| site.start != 0);
                let site = Site::analyze(library, file, &found, taken).map_err(refused)?;
                (*place).site = site;
            }
        }
        Ok(())
    }

    /// The library's file.
    fn file(&mut self) -> Result<&mut File<'l>, Refusal> {
        match &mut self.file {
            Some(file) => Ok(file),
            none => Ok(none.insert(File::open(self.library)?)),
        }
    }

    /// Leads the library's functions to the patch's.
    unsafe fn redirect(&mut self, one: *mut Use) -> Result<(), Unfit> {
        let table = self.table;
        // SAFETY: as for `apply`.
        if unsafe { (*one).funcs.count } == 0 {
            return Ok(());
        }
        // SAFETY: as for `apply`; nobody runs the library's code before the hook returns.
        unsafe {
            let refused = |refusal: Refusal| {
                let mut why = Line::new();
                why.add(b"patch '");
                why.add(table.text((*one).patch));
                why.add(b"' cannot be applied to it: ");
                refusal.write(&mut why);
                Unfit { errno: refusal.errno(), why }
            };
            let code = Code::open().map_err(refused)?;
            for i in 0..(*one).funcs.count {
                let func: *mut Func = table.entry((*one).funcs, i);
                self.lead(func, &code).map_err(refused)?;
            }
        }
        Ok(())
    }

    /// Leads a function to what it is by a patch that was just applied, and those before it.
    unsafe fn lead(&mut self, func: *mut Func, code: &Code) -> Result<(), Refusal> {
        let (table, object) = (self.table, self.object);
        // SAFETY: as for `apply`; nobody runs the library's code before the hook returns.
        unsafe {
            let site = &(*table.entry::<Place>((*object).places, (*func).place as u32)).site;
            let mut cell = None;
            if (*func).new != 0 {
                (*func).landing = (*func).new;
                if !site.reaches((*func).new) {
                    let cell = self.cell(&mut cell, code)?;
                    (*func).landing = code.trampoline(cell, (*func).new)?;
                }
            }
            let Sides { source, goal } = Sides::of(table, object, (*func).place);
            if source.new == goal.new {
                return match goal.landing {
                    0 => code.restore(site),
                    landing => code.lead(site, landing),
                };
            }
            let stub = (*table.0.cast::<Head>()).stub;
            let cell = self.cell(&mut cell, code)?;
            let thunk = if source.new == 0 || goal.new == 0 { code.fill_thunk(cell, site)? } else { 0 };
            let [source, goal] = [source, goal].map(|side| if side.new == 0 { thunk } else { side.new });
            if stub.count == 0 {
                return Err(Refusal::NoStub);
            }
            let stub = code.fill_stub(cell, &*table.entry::<StubTemplate>(stub, 0), source, goal)?;
            code.lead(site, stub)
        }
    }

    /// The cell of a function, taken when it is first asked for.
    unsafe fn cell(&mut self, cell: &mut Option<u64>, code: &Code) -> Result<u64, Refusal> {
        if let Some(cell) = *cell {
            return Ok(cell);
        }
        let near = match self.near {
            Some(near) => near,
            None => {
                // SAFETY: as for `apply`.
                let near = unsafe { Near::map(self.library, self.all_funcs(), code)? };
                // SAFETY: as for `apply`.
                unsafe { (*self.object).near = [near.start, near.len] };
                *self.near.insert(near)
            }
        };
        let at = near.cell(self.cells);
        self.cells = self.cells.wrapping_add(1);
        *cell = Some(at);
        Ok(at)
    }

    /// How many functions the patches have for the library, together.
    unsafe fn all_funcs(&self) -> usize {
        // SAFETY: as for `apply`.
        unsafe {
            let uses = (*self.object).uses;
            (0..uses.count).map(|i| (*self.table.entry::<Use>(uses, i)).funcs.count as usize).sum()
        }
    }
}
