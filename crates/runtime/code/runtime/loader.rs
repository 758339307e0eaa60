//! The hook in the dynamic loader: patches libraries as they come, before their constructors run, and lets go of them as they go.
//!
//! The loader calls an empty function of its own (`r_debug.r_brk`) around each change of its list of libraries, for debuggers. The
//! tool redirects that function to [`hook`] while a patch that is in effect names a library which can come or go. The hook
//! looks at the list when it is consistent, which is: after libraries were mapped and before they are relocated and their
//! constructors run; and after libraries were unmapped.
//!
//! It runs on the thread that is in dlopen or dlclose, which holds the loader's lock: so there is one thread in it at a time,
//! and it calls nothing that could take a lock, but for the callbacks of patches. What it knows and notes is in the
//! [table](crate::expected). The tool takes a target whose hook is busy for one that cannot be changed at the moment.
#![allow(clippy::result_large_err, reason = "there is no allocator, and a refusal is the end of a dlopen")]

use super::elf::Object as Library;
use super::format::Text;
use super::log::{Shared, append};
use super::redirect::{Near, Text as Code};
use super::symbols::File;
use super::syscall;
use crate::expected::{AWAY, Func, HERE, Head, LEFT, Loader, Object, Part, Place, TABLE_MAGIC, Use};
use crate::layout::Site;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU64, Ordering};

#[cfg_attr(not(test), unsafe(export_name = "ugraft_loader"))]
pub static LOADER: Shared<Loader> =
    Shared(UnsafeCell::new(Loader { table: 0, debug: 0, signal_error: 0, owner: 0, again: 0, changes: 0 }));

/// `struct module` of the header: the argument of a callback leads here.
#[repr(C)]
struct Module {
    state: u64,
    name: *const u8,
}

static MODULE: Shared<Module> = Shared(UnsafeCell::new(Module { state: 0, name: core::ptr::null() }));

/// `enum module_state` of the header.
const COMING: u64 = 1;
const GOING: u64 = 2;
/// Where `mod` lies in a `struct klp_object`.
const OBJECT_MOD: usize = 56;

/// The callbacks' places in [`Use::callbacks`].
const PRE_PATCH: usize = 0;
const POST_PATCH: usize = 1;
const PRE_UNPATCH: usize = 2;
const POST_UNPATCH: usize = 3;

/// The kernel's levels.
const ERROR: u32 = 3;
const WARNING: u32 = 4;
const NOTICE: u32 = 5;
/// Set in the owner's number where it must make no system calls of ours.
const GUARDED: u64 = 1 << 63;
/// The kernel's number for what is not permitted.
const EPERM: i32 = 1;
/// The kernel's number for what does not fit (`EINVAL`), and for no memory.
const EINVAL: i32 = 22;

/// Bytes of a message.
const LINE: usize = 480;
type Line = Text<LINE>;

/// `r_debug.r_state`: the list is whole.
const CONSISTENT: u32 = 0;
/// Most namespaces and libraries that are looked at: a list that is longer is broken.
const NAMESPACES: usize = 64;
const LIBRARIES: usize = 16384;

/// `struct r_debug` of `<link.h>`.
#[repr(C)]
struct Debug {
    version: u32,
    map: *const LinkMap,
    brk: u64,
    state: u32,
    base: u64,
    /// From version 2 on.
    next: *const Debug,
}

/// `struct link_map`.
#[repr(C)]
struct LinkMap {
    bias: u64,
    name: *const u8,
    dynamic: u64,
    next: *const LinkMap,
}

/// A library that is not to be loaded, and why.
struct Refused {
    name: *const u8,
    why: Line,
}

/// Why a patch cannot be applied.
struct Unfit {
    errno: i32,
    why: Line,
}

/// Called by the loader in place of its own function.
#[cfg_attr(not(test), unsafe(export_name = "ugraft_loader_hook"))]
pub extern "C" fn hook() {
    let loader = LOADER.0.get();
    // SAFETY: the tool writes the words before it leads anybody here; the others are this thread's while it owns them.
    unsafe {
        let owner = AtomicU64::from_ptr(&raw mut (*loader).owner);
        let again = AtomicU64::from_ptr(&raw mut (*loader).again);
        // The tool leads nobody here in a process under seccomp. A filter that was set since may kill for a call: then none is
        // made but those that every dlopen makes.
        let me = if syscall::is_filtered() { syscall::thread_pointer() | GUARDED } else { syscall::gettid() };
        if owner.load(Ordering::Relaxed) == me {
            // From a callback or a signal handler: the outer one notes what there is then.
            again.store(1, Ordering::Relaxed);
            return;
        }
        // Another owner is the parent's thread of a fork: the loader's lock keeps out those that there are.
        owner.store(me, Ordering::SeqCst);
        again.store(0, Ordering::Relaxed);
        let refused = look(loader, true);
        while refused.is_none() && again.swap(0, Ordering::Relaxed) != 0 {
            // What a callback or a handler has loaded is initialized by now, and in use.
            let _ = look(loader, false);
        }
        // Pairs with the tool's look: what was noted before it.
        owner.store(0, Ordering::SeqCst);
        if let Some(mut refused) = refused {
            refused.why.add(b"\0");
            let signal_error: unsafe extern "C" fn(i32, *const u8, *const u8, *const u8) -> ! =
                core::mem::transmute((*loader).signal_error as usize);
            // Leaves by a jump to where the loader began; its cleaning up calls the hook again.
            signal_error(0, refused.name, core::ptr::null(), refused.why.as_bytes().as_ptr());
        }
    }
}

/// A table, by its address.
#[derive(Clone, Copy)]
struct Table(*mut u8);

impl Table {
    unsafe fn entry<T>(self, part: Part, index: u32) -> *mut T {
        // SAFETY: the tool writes offsets of what the table holds.
        unsafe { self.0.add(part.at as usize).cast::<T>().add(index as usize) }
    }

    unsafe fn text<'t>(self, part: Part) -> &'t [u8] {
        // SAFETY: as above.
        unsafe { core::slice::from_raw_parts(self.0.add(part.at as usize), part.count as usize) }
    }

    unsafe fn objects(self) -> Part {
        // SAFETY: as above.
        let count = unsafe { (*self.0.cast::<Head>()).objects };
        Part { at: size_of::<Head>() as u32, count: count as u32 }
    }
}

/// Looks at the list of libraries, if it is whole; patches those that are new, if they are `welcome`.
unsafe fn look(loader: *mut Loader, welcome: bool) -> Option<Refused> {
    // SAFETY: `struct r_debug` and the maps are the loader's, which does not change them while this thread is here.
    unsafe {
        let at = AtomicU64::from_ptr(&raw mut (*loader).table).load(Ordering::Acquire);
        let debug = (*loader).debug as *const Debug;
        let table = Table(at as usize as *mut u8);
        if at == 0 || (*table.0.cast::<Head>()).magic != TABLE_MAGIC || !is_consistent(debug) {
            return None;
        }
        let objects = table.objects();
        for i in 0..objects.count {
            let object: *mut Object = table.entry(objects, i);
            if (*object).state != AWAY && !is_listed(debug, &*object) {
                went(loader, table, object);
            }
        }
        let seen = Seen(table, (*table.0.cast::<Head>()).seen);
        seen.forget(debug);
        let mut refused = None;
        each(debug, |map| {
            if seen.is_new(map as u64) && welcome {
                refused = came(loader, table, map);
            }
            refused.is_none()
        });
        refused
    }
}

/// The libraries that have been seen. One that was there before anybody looked, or that is another copy of one that is patched, is in
/// use, and not for the hook to change, also when it alone is left.
struct Seen(Table, Part);

impl Seen {
    unsafe fn slot(&self, index: u32) -> *mut u64 {
        // SAFETY: as for `look`.
        unsafe { self.0.entry(self.1, index) }
    }

    /// Forgets those that are gone: their addresses may come again.
    unsafe fn forget(&self, debug: *const Debug) {
        // SAFETY: as for `look`.
        unsafe {
            for i in 0..self.1.count {
                let slot = self.slot(i);
                if *slot != 0 {
                    let mut listed = false;
                    each(debug, |map| {
                        listed |= map as u64 == *slot;
                        !listed
                    });
                    if !listed {
                        *slot = 0;
                    }
                }
            }
        }
    }

    /// Whether it was not seen yet, which it is from now on. Without room for it nobody can tell: then it is not new.
    unsafe fn is_new(&self, map: u64) -> bool {
        // SAFETY: as for `look`.
        unsafe {
            let mut free = None;
            for i in 0..self.1.count {
                let slot = self.slot(i);
                if *slot == map {
                    return false;
                }
                if *slot == 0 {
                    free.get_or_insert(slot);
                }
            }
            free.is_some_and(|slot| {
                *slot = map;
                true
            })
        }
    }
}

/// Calls `visit` for each library but the program itself, as long as it says so.
unsafe fn each(mut debug: *const Debug, mut visit: impl FnMut(*const LinkMap) -> bool) {
    // SAFETY: as for `look`.
    unsafe {
        for space in 0..NAMESPACES {
            if debug.is_null() || (*debug).version == 0 {
                return;
            }
            let mut map = (*debug).map;
            for i in 0..LIBRARIES {
                if map.is_null() {
                    break;
                }
                if (space != 0 || i != 0) && !visit(map) {
                    return;
                }
                map = (*map).next;
            }
            if (*debug).version < 2 {
                return;
            }
            debug = (*debug).next;
        }
    }
}

unsafe fn is_consistent(mut debug: *const Debug) -> bool {
    // SAFETY: as for `look`.
    unsafe {
        for _ in 0..NAMESPACES {
            if debug.is_null() {
                break;
            }
            if (*debug).state != CONSISTENT {
                return false;
            }
            if (*debug).version < 2 {
                break;
            }
            debug = (*debug).next;
        }
    }
    true
}

unsafe fn is_listed(debug: *const Debug, object: &Object) -> bool {
    let mut found = false;
    // SAFETY: as for `look`.
    unsafe {
        each(debug, |map| {
            found |= map as u64 == object.link_map && (*map).bias == object.bias;
            !found
        });
    }
    found
}

/// Patches a library that is new, if it is one that is expected.
unsafe fn came(loader: *mut Loader, table: Table, map: *const LinkMap) -> Option<Refused> {
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
        let changes = (*loader).changes.wrapping_add(1);
        AtomicU64::from_ptr(&raw mut (*loader).changes).store(changes, Ordering::Relaxed);
        (*object).link_map = map as u64;
        (*object).bias = (*map).bias;
        (*object).came = changes;
        (*object).near = [0; 2];
        for i in 0..(*object).places.count {
            (*table.entry::<Place>((*object).places, i)).site = Site::default();
        }
        let mut work = Work { table, object, library, file: None, near: None, cells: 0 };
        let uses = (*object).uses;
        for i in 0..uses.count {
            (*table.entry::<Use>(uses, i)).applied = 0;
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
        (*object).state =
            if (0..uses.count).any(|i| (*table.entry::<Use>(uses, i)).applied != 0) { HERE } else { LEFT };
    }
    None
}

/// Whether the hook's thread is under a seccomp filter.
unsafe fn is_guarded(loader: *mut Loader) -> bool {
    // SAFETY: this thread's own word.
    unsafe { (*loader).owner & GUARDED != 0 }
}

/// Says that nothing is done for a patch under such a filter.
unsafe fn guarded(table: Table, object: *mut Object, one: *mut Use) -> Unfit {
    // SAFETY: as for `came`.
    unsafe {
        log(
            table,
            object,
            one,
            WARNING,
            &[
                b"failed to initialize patch ",
                PATCH,
                b" for module ",
                OBJECT,
                b" (-",
                number(EPERM).as_bytes(),
                b")",
            ],
        );
        let mut why = Line::new();
        why.add(b"patch '");
        why.add(table.text((*one).patch));
        why.add(b"' cannot be applied to it: a seccomp filter that could kill the process for what that takes was set since, or /proc is not there to tell; load the library before");
        Unfit { errno: EPERM, why }
    }
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

impl Work<'_> {
    /// Applies a patch to the library.
    unsafe fn apply(&mut self, one: *mut Use) -> Result<(), Unfit> {
        let (table, object) = (self.table, self.object);
        // SAFETY: the table is the tool's, and the library is mapped.
        unsafe {
            if let Err(unfit) = self.initialize(one) {
                log(
                    table,
                    object,
                    one,
                    WARNING,
                    &[
                        b"failed to initialize patch ",
                        PATCH,
                        b" for module ",
                        OBJECT,
                        b" (-",
                        number(unfit.errno).as_bytes(),
                        b")",
                    ],
                );
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
                return Err(Unfit { errno: value.wrapping_neg(), why });
            }
            (*one).applied = 1;
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
                return Err(unfit);
            }
            call(table, object, one, POST_PATCH, COMING);
        }
        Ok(())
    }

    /// Finds the patch's functions in the library.
    unsafe fn initialize(&mut self, one: *mut Use) -> Result<(), Unfit> {
        let (table, object) = (self.table, self.object);
        // SAFETY: as for `apply`.
        unsafe {
            for i in 0..(*one).funcs.count {
                let func: *mut Func = table.entry((*one).funcs, i);
                (*func).landing = 0;
                let place: *mut Place = table.entry((*object).places, (*func).place as u32);
                if (*place).site.start != 0 {
                    continue;
                }
                let name = table.text((*place).name);
                let refused = |refusal: super::refusal::Refusal| {
                    let mut why = Line::new();
                    why.add(b"patch '");
                    why.add(table.text((*one).patch));
                    why.add(b"' cannot change its function '");
                    why.add(name);
                    why.add(b"': ");
                    refusal.write(&mut why);
                    let mut line = Line::new();
                    line.add(b"livepatch: ");
                    line.add(why.as_bytes());
                    append(ERROR, line.as_bytes());
                    Unfit { errno: EINVAL, why }
                };
                if self.file.is_none() {
                    self.file = Some(File::open(self.library).map_err(refused)?);
                }
                let Some(file) = &mut self.file else { continue };
                let found = file.function(name, (*place).position).map_err(refused)?;
                let places: *const Place = table.entry((*object).places, 0);
                let places = core::slice::from_raw_parts(places, (*object).places.count as usize);
                let taken = places.iter().map(|place| &place.site).filter(|site| site.start != 0);
                let site = Site::analyze(self.library, file, &found, taken).map_err(refused)?;
                (*place).site = site;
            }
        }
        Ok(())
    }

    /// Leads the library's functions to the patch's.
    unsafe fn redirect(&mut self, one: *mut Use) -> Result<(), Unfit> {
        let (table, object) = (self.table, self.object);
        // SAFETY: as for `apply`.
        if unsafe { (*one).funcs.count } == 0 {
            return Ok(());
        }
        // SAFETY: as for `apply`; nobody runs the library's code before the hook returns.
        unsafe {
            let refused = |refusal: super::refusal::Refusal| {
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
                let site = &(*table.entry::<Place>((*object).places, (*func).place as u32)).site;
                let mut landing = (*func).new;
                if !site.reaches(landing) {
                    if self.near.is_none() {
                        let near = Near::map(self.library, self.all_funcs(), &code).map_err(refused)?;
                        (*object).near = [near.start, near.len];
                        self.near = Some(near);
                    }
                    let Some(near) = &self.near else { continue };
                    let cell = near.cell(self.cells);
                    self.cells = self.cells.wrapping_add(1);
                    landing = code.trampoline(cell, landing).map_err(refused)?;
                }
                code.lead(site, landing).map_err(refused)?;
                (*func).landing = landing;
            }
        }
        Ok(())
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

/// Lets go of a library that is gone.
unsafe fn went(loader: *mut Loader, table: Table, object: *mut Object) {
    // SAFETY: the table is the tool's.
    unsafe {
        let changes = (*loader).changes.wrapping_add(1);
        AtomicU64::from_ptr(&raw mut (*loader).changes).store(changes, Ordering::Relaxed);
        for i in 0..(*object).uses.count {
            release(table, object, table.entry((*object).uses, i), GOING);
        }
        give_back(object);
        (*object).state = AWAY;
        (*object).link_map = 0;
    }
}

/// Lets go of a library for a patch. Nobody runs the library any more, so its code stays as it is.
unsafe fn release(table: Table, object: *mut Object, one: *mut Use, state: u64) {
    // SAFETY: as for `went`.
    unsafe {
        if (*one).applied == 0 {
            return;
        }
        call(table, object, one, PRE_UNPATCH, state);
        log(table, object, one, NOTICE, &[b"reverting patch ", PATCH, b" on unloading module ", OBJECT]);
        (*one).applied = 0;
        call(table, object, one, POST_UNPATCH, state);
    }
}

/// Unmaps what was mapped near a library.
unsafe fn give_back(object: *mut Object) {
    // SAFETY: nothing leads there but the library's code, which nobody runs any more.
    unsafe {
        let [start, len] = (*object).near;
        if len != 0 {
            (*object).near = [0; 2];
            syscall::unmap(start, len as usize);
        }
    }
}

/// Runs a callback, if there is one.
unsafe fn call(table: Table, object: *mut Object, one: *mut Use, which: usize, state: u64) -> i32 {
    // SAFETY: the tool writes addresses of the patch's functions and of its object, which is writable.
    unsafe {
        let function = (&raw const (*one).callbacks).cast::<u64>().add(which).read();
        if function == 0 {
            return 0;
        }
        let module = MODULE.0.get();
        (*module).state = state;
        // The tool ends texts with a zero.
        (*module).name = table.text((*object).name).as_ptr();
        let at = (*one).object as usize as *mut u8;
        at.add(OBJECT_MOD).cast::<*mut Module>().write(module);
        let function: unsafe extern "C" fn(*mut u8) -> i32 = core::mem::transmute(function as usize);
        let value = function(at);
        at.add(OBJECT_MOD).cast::<*mut Module>().write(core::ptr::null_mut());
        if which == PRE_PATCH { value } else { 0 }
    }
}

/// Stand for names in the pieces of a message.
const PATCH: &[u8] = b"\x01";
const OBJECT: &[u8] = b"\x02";

/// Writes a message to the log.
unsafe fn log(table: Table, object: *mut Object, one: *mut Use, level: u32, pieces: &[&[u8]]) {
    let mut line = Line::new();
    line.add(b"livepatch: ");
    for piece in pieces {
        // SAFETY: the table is the tool's.
        let (patch, object) = unsafe { (table.text((*one).patch), table.text((*object).name)) };
        let name = match *piece {
            PATCH => patch,
            OBJECT => object,
            piece => {
                line.add(piece);
                continue;
            }
        };
        line.add(b"'");
        line.add(name);
        line.add(b"'");
    }
    append(level, line.as_bytes());
}

fn number(value: i32) -> Text<16> {
    let mut text = Text::new();
    text.add_number(u64::from(value.unsigned_abs()), 10);
    text
}
