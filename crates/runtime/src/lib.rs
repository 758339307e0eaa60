//! What patches use inside the target: a log, shadow variables, states.
//!
//! The code itself is in `code/`; a build script compiles it to an object file, which this crate carries and which the
//! tool links into a target like a patch when the first patch needs it. It uses nothing of the target: no allocator, no
//! C library but the clock it is given, and it cannot panic.

#[cfg(test)]
mod differential;
#[cfg(test)]
mod live;
#[cfg(test)]
#[path = "../code/runtime/mod.rs"]
mod runtime;

#[path = "../code/layout.rs"]
pub mod layout;

#[path = "../code/expected.rs"]
pub mod expected;
#[path = "../code/unwinder_layout.rs"]
pub mod unwinder;

/// The object file, with the metadata of a patch that changes nothing.
pub const OBJECT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/runtime.o"));

/// The functions that patches may call.
pub const FUNCTIONS: &[&str] = &[
    "ugraft_vprintk",
    "klp_shadow_get",
    "klp_shadow_alloc",
    "klp_shadow_get_or_alloc",
    "klp_shadow_free",
    "klp_shadow_free_all",
    "klp_get_state",
    "klp_get_prev_state",
];

/// The variables that the tool reads and writes: see [`layout`].
pub const LOG: &str = "ugraft_log";
/// See [`LOG`].
pub const PATCHES: &str = "ugraft_patches";

/// The word for the address of a page of the runtime's own file, mapped shared and without access, with which it maps more memory for
/// shadow variables. While it is 0 there is no more than what comes with the runtime.
pub const CHUNK_SEED: &str = "ugraft_chunk_seed";

/// The object file that tells unwinders of images, with the metadata of a patch that changes nothing.
pub const UNWINDER_OBJECT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/unwinder.o"));
/// Its table: see [`unwinder`].
pub const UNWINDER_TABLE: &str = "ugraft_unwinder_table";
/// Functions of C libraries that it takes the place of, and what it has for each.
pub const UNWINDER_FUNCTIONS: [(&str, &str); 2] =
    [("_dl_find_object", "ugraft_dl_find_object"), ("dl_iterate_phdr", "ugraft_dl_iterate_phdr")];
/// The [words](expected::Loader) of the hook in the dynamic loader.
pub const LOADER: &str = "ugraft_loader";
/// The hook.
pub const LOADER_HOOK: &str = "ugraft_loader_hook";
/// What it notes of libraries whose [finalizers](expected::Finalizer) lead to it.
pub const FINALIZERS: &str = "ugraft_finalizers";
/// The code that they lead to: [`expected::FINALIZER_CODE_LEN`] bytes for each.
pub const FINALIZER_CODE: &str = "ugraft_finalizer_code";
/// The callback that the hook is [running](expected::Running).
pub const RUNNING: &str = "ugraft_running";
