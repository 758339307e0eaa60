//! The table of libraries that the hook in the target works with, as bytes: written by the tool, read back with what the
//! hook has noted. The layout is [`ugraft_runtime::expected`]'s.
#![allow(unsafe_code)]

use crate::{Error, RemoteAddr, Result};
use std::mem::{offset_of, size_of};
use ugraft_runtime::expected::{
    BETWEEN, Func, Head, LATER, Object, Part, Place, Reference, SEEN_MORE, TABLE_MAGIC, TABLE_MAX, Use,
};
use ugraft_runtime::layout::{Site, StubTemplate};

/// A plain structure of numbers, without padding between them.
///
/// # Safety
/// Every byte of it must belong to a field, and any bytes must be one.
unsafe trait Plain: Copy {}
// SAFETY: made of integers and arrays of them, with no padding: their sizes are those of their fields together (asserted
// where they are defined, and below).
unsafe impl Plain for Head {}
// SAFETY: as above.
unsafe impl Plain for Object {}
// SAFETY: as above.
unsafe impl Plain for Use {}
// SAFETY: as above.
unsafe impl Plain for Func {}
// SAFETY: as above.
unsafe impl Plain for Place {}
// SAFETY: as above.
unsafe impl Plain for StubTemplate {}
// SAFETY: as above.
unsafe impl Plain for Reference {}
// SAFETY: a number.
unsafe impl Plain for u64 {}

const _: () = assert!(size_of::<Head>() == 8 + 8 + 16 * 4 + 8 + 8 * LATER);
const _: () = assert!(size_of::<Object>() == 16 * 3 + 8 * 6 + 8 * LATER);
const _: () = assert!(size_of::<Use>() == 16 * 4 + 9 * 8 + 8 * LATER);
const _: () = assert!(size_of::<Place>() == 16 + 8 + size_of::<Site>() + 8 * LATER);
const _: () = assert!(offset_of!(Place, site) == 24 && size_of::<Site>().is_multiple_of(8));

fn bytes_of<T: Plain>(value: &T) -> &[u8] {
    // SAFETY: `Plain`: all bytes are initialised.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(value).cast(), size_of::<T>()) }
}

/// The value of which these are the first bytes; what they lack is zero, and what they have more is not known here.
fn value_of<T: Plain>(bytes: &[u8]) -> T {
    // SAFETY: `Plain`: any bytes are a value.
    let mut value: T = unsafe { std::mem::zeroed() };
    let len = bytes.len().min(size_of::<T>());
    // SAFETY: no longer than either, which do not overlap.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), std::ptr::from_mut(&mut value).cast(), len) };
    value
}

/// The head of a table.
fn head_of(bytes: &[u8]) -> Option<Head> {
    // Before what later versions append, all have this in common.
    let len = value_of::<Head>(bytes.get(..offset_of!(Head, later))?).len;
    let len = usize::try_from(len).ok()?.min(bytes.len());
    let head: Head = value_of(&bytes[..len]);
    (head.magic == TABLE_MAGIC).then_some(head)
}

/// A library that patches name.
#[derive(Clone, Debug, Default)]
pub struct Library {
    /// What they call it.
    pub name: String,
    /// The patches, oldest first.
    pub uses: Vec<LibraryUse>,
    /// Its functions that they change.
    pub places: Vec<LibraryPlace>,
    /// [`ugraft_runtime::expected::AWAY`] and its kind.
    pub state: u64,
    /// Its `struct link_map`.
    pub link_map: RemoteAddr,
    /// What is added to its file's addresses.
    pub bias: u64,
    /// Where memory near it begins that the hook has mapped, and how much it is.
    pub near: [u64; 2],
    /// Tells this time that it is loaded from others.
    pub came: u64,
}

/// A patch that changes a library.
#[derive(Clone, Debug, Default)]
pub struct LibraryUse {
    /// The patch's name.
    pub patch: String,
    /// The build-id that it wants.
    pub build_id: Vec<u8>,
    /// Its `struct klp_object`.
    pub object: RemoteAddr,
    /// The four callbacks, or 0.
    pub callbacks: [u64; 4],
    /// Its functions: which place, the new one (0 for the original), and where jumps to it lead.
    pub funcs: Vec<(usize, RemoteAddr, RemoteAddr)>,
    /// What it refers to in the library.
    pub references: Vec<LibraryReference>,
    /// How many of the patches in effect are older.
    pub below: usize,
    /// Whether it is in transition.
    pub moving: bool,
    /// Whether it is applied.
    pub applied: bool,
    /// Whether its last callback there was a `pre_` one.
    pub between: bool,
}

/// A word of a patch that holds the address of a symbol of a library.
#[derive(Clone, Debug, Default)]
pub struct LibraryReference {
    /// The symbol.
    pub symbol: String,
    /// Its position among those of that name; 0 for the only one.
    pub position: u32,
    /// Where the word lies.
    pub word: RemoteAddr,
    /// What it holds more than the symbol's address.
    pub addend: i64,
}

/// A function of a library.
#[derive(Clone, Debug, Default)]
pub struct LibraryPlace {
    /// Its symbol.
    pub name: String,
    /// Its position among those of that name; 0 for the only one.
    pub position: u32,
    /// What the hook found.
    pub site: Site,
}

/// A transition, as the hook has to know of it.
#[derive(Clone, Copy, Debug)]
pub struct Running {
    /// What functions of libraries that come meanwhile lead to.
    pub stub: StubTemplate,
    /// Whether it began by disabling its patch.
    pub disabling: bool,
}

/// A table while it is laid out: heads first, then arrays, then texts.
struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    fn text(&mut self, text: &[u8]) -> Part {
        let at = self.bytes.len() as u32;
        self.bytes.extend(text);
        self.bytes.push(0);
        Part { at, count: text.len() as u32, each: 1, reserved: 0 }
    }

    fn array<T: Plain>(&mut self, entries: &[T]) -> Part {
        self.bytes.resize(self.bytes.len().next_multiple_of(8), 0);
        let at = self.bytes.len() as u32;
        self.bytes.extend(entries.iter().flat_map(bytes_of));
        Part { at, count: entries.len() as u32, each: size_of::<T>() as u32, reserved: 0 }
    }
}

/// The bytes of a table. `seen` are the addresses of the link maps that are listed now, `patches` those of the patches in effect, oldest
/// first, `running` the transition that runs, if one does.
///
/// # Errors
/// [`Error::Libraries`] where it is longer than there is room for.
pub fn write(
    libraries: &[Library],
    seen: &[u64],
    patches: &[RemoteAddr],
    running: Option<&Running>,
) -> Result<Vec<u8>> {
    let head_len = size_of::<Head>() + libraries.len() * size_of::<Object>();
    let mut writer = Writer { bytes: vec![0; head_len] };
    let patches = writer.array(&patches.iter().map(|patch| patch.0).collect::<Vec<_>>());
    let seen = writer.array(&[seen, &[0; SEEN_MORE]].concat());
    let stub = running.map_or(Part::default(), |running| writer.array(&[running.stub]));
    let disabling = u64::from(running.is_some_and(|running| running.disabling));
    let objects = Part {
        at: size_of::<Head>() as u32,
        count: libraries.len() as u32,
        each: size_of::<Object>() as u32,
        reserved: 0,
    };
    let len = size_of::<Head>() as u64;
    let later = [0; LATER];
    let head = Head { magic: TABLE_MAGIC, len, objects, seen, patches, stub, disabling, later };
    let mut heads = Vec::from(bytes_of(&head));
    for library in libraries {
        let name = writer.text(library.name.as_bytes());
        let mut uses = Vec::new();
        for one in &library.uses {
            let funcs: Vec<_> = one
                .funcs
                .iter()
                .map(|(place, new, landing)| Func {
                    place: *place as u64,
                    new: new.0,
                    landing: landing.0,
                    later,
                })
                .collect();
            let references: Vec<_> = one
                .references
                .iter()
                .map(|reference| Reference {
                    symbol: writer.text(reference.symbol.as_bytes()),
                    position: u64::from(reference.position),
                    word: reference.word.0,
                    addend: reference.addend as u64,
                    later,
                })
                .collect();
            uses.push(Use {
                references: writer.array(&references),
                patch: writer.text(one.patch.as_bytes()),
                build_id: writer.text(&one.build_id),
                funcs: writer.array(&funcs),
                object: one.object.0,
                callbacks: one.callbacks,
                below: one.below as u64,
                moving: u64::from(one.moving),
                applied: u64::from(one.applied),
                between: if one.between { BETWEEN } else { 0 },
                later,
            });
        }
        let places: Vec<_> = library
            .places
            .iter()
            .map(|place| Place {
                name: writer.text(place.name.as_bytes()),
                position: u64::from(place.position),
                site: place.site,
                later,
            })
            .collect();
        let object = Object {
            name,
            uses: writer.array(&uses),
            places: writer.array(&places),
            state: library.state,
            link_map: library.link_map.0,
            bias: library.bias,
            near: library.near,
            came: library.came,
            later,
        };
        heads.extend(bytes_of(&object));
    }
    writer.bytes[..head_len].copy_from_slice(&heads);
    if writer.bytes.len() > TABLE_MAX {
        return Err(Error::Libraries(format!(
            "what patches name of libraries that can come takes {} bytes, and there is room for {TABLE_MAX}: unload a patch",
            writer.bytes.len()
        )));
    }
    Ok(writer.bytes)
}

/// What a table says. The target could write to it, so it may hold anything.
///
/// # Errors
/// [`Error::Damaged`].
pub fn read(bytes: &[u8]) -> Result<Vec<Library>> {
    parse(bytes).ok_or_else(|| Error::Damaged("the table of libraries makes no sense".to_owned()))
}

/// The link maps that the hook has seen.
///
/// # Errors
/// [`Error::Damaged`].
pub fn read_seen(bytes: &[u8]) -> Result<Vec<u64>> {
    let seen = || entries(bytes, head_of(bytes)?.seen);
    seen().ok_or_else(|| Error::Damaged("the table of libraries makes no sense".to_owned()))
}

/// Where in a table, of which these are the first bytes, the entry of a library lies, by its place among them.
pub fn place_of(head: &[u8], index: usize) -> Option<usize> {
    let objects = head_of(head)?.objects;
    (index < objects.count as usize).then(|| objects.at as usize + index * objects.each as usize)
}

/// Where in a table the use of a library by a patch lies, if it has one with all that is known here: that of an earlier version has less.
///
/// # Errors
/// [`Error::Damaged`].
pub fn find_use(bytes: &[u8], library: &str, patch: &str) -> Result<Option<usize>> {
    let libraries = read(bytes)?;
    let place = || {
        let (i, known) = libraries.iter().enumerate().find(|(_, known)| known.name == library)?;
        let one = known.uses.iter().position(|one| one.patch == patch)?;
        let uses = entries::<Object>(bytes, head_of(bytes)?.objects)?.get(i)?.uses;
        let is_whole = uses.each as usize >= size_of::<Use>();
        is_whole.then(|| uses.at as usize + one * uses.each as usize)
    };
    Ok(place())
}

/// An array of a table.
fn entries<T: Plain>(bytes: &[u8], part: Part) -> Option<Vec<T>> {
    if part.count == 0 {
        return Some(Vec::new());
    }
    let each = part.each as usize;
    let all = bytes.get(part.at as usize..)?.get(..(part.count as usize).checked_mul(each)?)?;
    (each != 0).then(|| all.chunks_exact(each).map(value_of).collect())
}

fn parse(bytes: &[u8]) -> Option<Vec<Library>> {
    let text = |part: Part| Some(bytes.get(part.at as usize..)?.get(..part.count as usize)?.to_vec());
    let string = |part: Part| String::from_utf8(text(part)?).ok();
    let head = head_of(bytes)?;
    let library = |object: Object| {
        let reference_of = |reference: Reference| {
            Some(LibraryReference {
                symbol: string(reference.symbol)?,
                position: u32::try_from(reference.position).ok()?,
                word: RemoteAddr(reference.word),
                addend: reference.addend as i64,
            })
        };
        let use_of = |one: Use| {
            let references = entries::<Reference>(bytes, one.references)?;
            let funcs = entries::<Func>(bytes, one.funcs)?;
            Some(LibraryUse {
                patch: string(one.patch)?,
                build_id: text(one.build_id)?,
                object: RemoteAddr(one.object),
                callbacks: one.callbacks,
                funcs: funcs
                    .iter()
                    .map(|f| (f.place as usize, RemoteAddr(f.new), RemoteAddr(f.landing)))
                    .collect(),
                below: one.below as usize,
                moving: one.moving != 0,
                references: references.into_iter().map(reference_of).collect::<Option<_>>()?,
                applied: one.applied != 0,
                between: one.between != 0,
            })
        };
        let place_of = |place: Place| {
            let position = u32::try_from(place.position).ok()?;
            Some(LibraryPlace { name: string(place.name)?, position, site: place.site })
        };
        Some(Library {
            name: string(object.name)?,
            uses: entries::<Use>(bytes, object.uses)?.into_iter().map(use_of).collect::<Option<_>>()?,
            places: entries::<Place>(bytes, object.places)?
                .into_iter()
                .map(place_of)
                .collect::<Option<_>>()?,
            state: object.state,
            link_map: RemoteAddr(object.link_map),
            bias: object.bias,
            near: object.near,
            came: object.came,
        })
    };
    entries::<Object>(bytes, head.objects)?.into_iter().map(library).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let place = |name: &str| LibraryPlace { name: name.to_owned(), position: 2, site: Site::default() };
        let library = Library {
            name: "libx.so.1".to_owned(),
            uses: vec![LibraryUse {
                patch: "fix".to_owned(),
                build_id: vec![1, 2, 3],
                object: RemoteAddr(7),
                callbacks: [1, 2, 3, 4],
                funcs: vec![(1, RemoteAddr(8), RemoteAddr(9))],
                references: vec![LibraryReference {
                    symbol: "h".to_owned(),
                    position: 3,
                    word: RemoteAddr(16),
                    addend: -8,
                }],
                below: 1,
                moving: true,
                applied: true,
                between: true,
            }],
            places: vec![place("f"), place("g")],
            state: 1,
            link_map: RemoteAddr(5),
            bias: 6,
            near: [10, 11],
            came: 12,
        };
        let bytes = write(&[library.clone(), Library::default()], &[1, 2], &[RemoteAddr(3)], None).unwrap();
        let again = read(&bytes).unwrap();
        assert_eq!(format!("{:?}", again[0]), format!("{library:?}"));
        assert_eq!(again.len(), 2);
        for len in (0..bytes.len()).step_by(7) {
            let _ = read(&bytes[..len]);
        }
        assert!(read(&bytes[..8]).is_err() && read(&[0; 64]).is_err());
    }
}
