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
mod metadata;
mod patch;
mod raw;
mod reloc;
mod sections;
mod structures;

pub use addr::{FileOffset, LinkAddr, RemoteAddr};
pub use check::check;
pub use error::{Error, Result};
pub use klp_symbol::{EXE, KlpSymbol};
pub use layout::{Layout, SegmentLayout};
pub use link::{
    ColdPart, Function, ImageSymbol, LinkedCallbacks, LinkedImage, LinkedObject, Resolution, Resolve,
    Segment, link,
};
pub use metadata::{Callbacks, Func, Metadata, Object, PatchState};
pub use patch::{Import, PatchFile, Usage};
pub use sections::Part;
