//! What the tool tells the code in the loader of libraries that patches name, and what that code notes of them: layouts.
//!
//! A *table* lists the objects by name, for each the patches that change it (its *uses*, oldest patch first), for each of these
//! the functions. The tool writes a table whole before it makes it the one that counts, by one store of its address. Only what
//! is marked "noted" here is written after that, by the hook, whose thread holds the loader's lock; and by the tool alone where it
//! runs callbacks itself ([`Use::between`]). The tool reads
//! that while no thread is in the hook, and takes it over into the next table.
//!
//! All offsets are bytes from the table's head.
//!
//! A later version may append fields to what is in a table, no more: the head states its length, and each array the distance of its
//! entries. So the hook of an earlier version works with the table of a later tool, and that tool reads what the hook has noted.
//! (A tool that is earlier than the hook changes nothing: see [`VERSION`].)

/// Version of the code in the target, and of the layouts that it shares with the tool. Raised with every change that a tool has to know
/// of, which keeps to what the earlier ones understand.
pub const VERSION: u32 = 3 + LATER as u32;

/// Words that a build with the feature `next-version` appends to everything in a table: a version of which this one knows nothing.
#[cfg(feature = "next-version")]
pub const LATER: usize = 1;
/// None: this is no such build.
#[cfg(not(feature = "next-version"))]
pub const LATER: usize = 0;

/// Says that what lies here is a table of this layout.
pub const TABLE_MAGIC: u64 = 0x3530_7463_6570_7865;
/// Room for one table.
pub const TABLE_MAX: usize = 512 << 10;

/// Libraries that can be seen besides those that are loaded when the table is written. What is more is not patched.
pub const SEEN_MORE: usize = 1024;

/// [`Object::state`]: not loaded.
pub const AWAY: u64 = 0;
/// Loaded, and changed by the uses that are [applied](Use::applied).
pub const HERE: u64 = 1;
/// Loaded, and left as it is.
pub const LEFT: u64 = 2;

/// [`Use::between`]: the last callback was a `pre_` one, so `pre_unpatch` is not due when the library goes.
pub const BETWEEN: u64 = 1;
/// The same, in the hands of the tool: it has a callback run for the library, and a thread that is about to remove that waits for its end.
pub const CALLED: u64 = 2;

/// The hook's own words.
#[repr(C)]
#[derive(Debug)]
pub struct Loader {
    /// The table that counts, or 0. Written by the tool.
    pub table: u64,
    /// The loader's `struct r_debug`. Written by the tool.
    pub debug: u64,
    /// The C library's `_dl_signal_error`, or 0. Written by the tool.
    pub signal_error: u64,
    /// The thread that is in the hook, or 0.
    pub owner: u64,
    /// Whether that thread came to the hook again while it was in it.
    pub again: u64,
    /// Another number after each library that came or went, those that no patch names included.
    pub changes: u64,
    /// How often threads that have changed the list wait here for a moment before it is looked at: a count that the tool sets, and
    /// that runs out.
    pub hold: u64,
}

/// The callback that the hook is running.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Running {
    /// Where the thread block of the thread lies that runs it; 0 while none runs.
    pub thread: u64,
    /// The address of the library's [`Object`] in the table.
    pub object: u64,
    /// The address of the patch's [`Use`].
    pub one: u64,
    /// Its place in [`Use::callbacks`].
    pub callback: u64,
    /// When it began, in nanoseconds since 1970-01-01 UTC, or 0.
    pub since: u64,
}

/// A library whose finalizer, the function of its DT_FINI, leads to the runtime. Written by the hook, and by the tool while no thread is in
/// the hook, before the word in the library is.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Finalizer {
    /// The library's `struct link_map`. What is not listed by the loader with this bias any more may be taken for another.
    pub link_map: u64,
    /// What is added to its file's addresses.
    pub bias: u64,
    /// The address of the word, in its dynamic section, that says where its finalizer is.
    pub word: u64,
    /// What is there by itself: the finalizer's address, less the bias.
    pub original: u64,
    /// The thread that has called it, by its thread block; 0: none has.
    pub thread: u64,
    /// Where on its stack the return address of that call lay.
    pub frame: u64,
    /// Which of all such calls that was.
    pub order: u64,
}

/// Libraries that have a [`Finalizer`] at one time. Of the end of others the hook hears when they are gone.
pub const FINALIZERS_MAX: usize = 256;
/// Bytes of the code that the word of one leads to, and that says which of them it is.
pub const FINALIZER_CODE_LEN: u64 = 16;

/// The head of a table.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Head {
    /// [`TABLE_MAGIC`]
    pub magic: u64,
    /// Bytes of the head.
    pub len: u64,
    /// The libraries: [`Object`].
    pub objects: Part,
    /// Addresses of the `struct link_map`s of libraries that have been seen, or 0: all that are loaded, with room for more. Only
    /// one that is not among them is new. Noted, too.
    pub seen: Part,
    /// The patches in effect, oldest first: addresses of their `struct klp_patch`.
    pub patches: Part,
    /// While a transition runs, what the functions of libraries that come meanwhile lead to: one
    /// [`StubTemplate`](crate::layout::StubTemplate).
    pub stub: Part,
    /// Whether that transition began by disabling its patch, so that its functions are what threads come from.
    pub disabling: u64,
    /// What a later version appends.
    pub later: [u64; LATER],
}

/// A piece of the table: bytes of a text, or entries of an array.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Part {
    /// Where it begins.
    pub at: u32,
    /// How many.
    pub count: u32,
    /// Bytes from the beginning of one to that of the next.
    pub each: u32,
    /// Zero.
    pub reserved: u32,
}

/// A library that patches name.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Object {
    /// What they call it.
    pub name: Part,
    /// The patches that do: [`Use`].
    pub uses: Part,
    /// Its functions that they change: [`Place`].
    pub places: Part,
    /// Noted: [`AWAY`], [`HERE`] or [`LEFT`].
    pub state: u64,
    /// Noted: its `struct link_map`.
    pub link_map: u64,
    /// Noted: what is added to its file's addresses.
    pub bias: u64,
    /// Noted: memory near it that the hook has mapped, or 0, 0.
    pub near: [u64; 2],
    /// Noted: the value of [`Loader::changes`] when it came.
    pub came: u64,
    /// What a later version appends.
    pub later: [u64; LATER],
}

/// A patch that changes a library.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Use {
    /// The patch's name.
    pub patch: Part,
    /// Its functions: [`Func`].
    pub funcs: Part,
    /// What it refers to in the library: [`Reference`].
    pub references: Part,
    /// The build-id that the library must have, or none.
    pub build_id: Part,
    /// The `struct klp_object`, argument of the callbacks.
    pub object: u64,
    /// `pre_patch`, `post_patch`, `pre_unpatch`, `post_unpatch`, or 0.
    pub callbacks: [u64; 4],
    /// How many of the [patches](Head::patches) are older.
    pub below: u64,
    /// Whether the patch is in transition: its functions are then for the threads on its side only, and `post_patch` and `pre_unpatch` do
    /// not run.
    pub moving: u64,
    /// Noted: whether the patch has been applied.
    pub applied: u64,
    /// Noted: 0, [`BETWEEN`] or [`CALLED`].
    pub between: u64,
    /// What a later version appends.
    pub later: [u64; LATER],
}

/// A patch's version of a function.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Func {
    /// Which of the object's places.
    pub place: u64,
    /// The new function; 0 for the original one.
    pub new: u64,
    /// Noted: where a jump from the place leads to come there.
    pub landing: u64,
    /// What a later version appends.
    pub later: [u64; LATER],
}

/// A word of a patch's image that holds the address of a symbol of the library while that is loaded.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Reference {
    /// The symbol's name.
    pub symbol: Part,
    /// Its position among those of that name; 0 where it is to be the only one.
    pub position: u64,
    /// Where the word lies.
    pub word: u64,
    /// What it holds more than the symbol's address; without the library, this alone.
    pub addend: u64,
    /// What a later version appends.
    pub later: [u64; LATER],
}

/// A function of a library.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Place {
    /// Its symbol.
    pub name: Part,
    /// Its position among those of that name; 0 where it is to be the only one.
    pub position: u64,
    /// Noted: where it is, and what a redirect overwrites.
    pub site: crate::layout::Site,
    /// What a later version appends.
    pub later: [u64; LATER],
}

const _: () = assert!(size_of::<Loader>() == 56);
const _: () = assert!(size_of::<Running>() == 40 && size_of::<Finalizer>() == 56);
const _: () = assert!(size_of::<Part>() == 16);
const _: () = assert!(size_of::<Head>() == 88 + 8 * LATER);
const _: () = assert!(size_of::<Object>() == 96 + 8 * LATER && size_of::<Use>() == 136 + 8 * LATER);
const _: () = assert!(size_of::<Func>() == 24 + 8 * LATER && size_of::<Reference>() == 40 + 8 * LATER);
