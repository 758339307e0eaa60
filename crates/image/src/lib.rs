//! Patch files: raw view of any bytes -> verified patch -> image linked for its place in a process.
#![forbid(unsafe_code)]

mod addr;
mod check;
mod error;
mod info;
mod klp_symbol;
mod layout;
pub mod limits;
mod link;
mod linked;
mod metadata;
mod param;
mod patch;
mod raw;
mod reloc;
mod sections;
mod structures;
mod symbols;
mod unwind;

pub use addr::{FileOffset, LinkAddr, RemoteAddr};
pub use check::check;
pub use error::{Error, Result};
pub use klp_symbol::{EXE, KlpSymbol};
pub use layout::{Layout, SegmentLayout};
pub use link::{Resolution, Resolve, link};
pub use linked::{
    ColdPart, Function, ImageSymbol, LinkedCallbacks, LinkedImage, LinkedObject, Reference, Segment,
};
pub use metadata::{Callbacks, Func, Metadata, Object, Param, PatchState};
pub use param::{ParamKind, ParamValue};
pub use patch::PatchFile;
pub use sections::Part;
pub use symbols::{Import, Usage};
