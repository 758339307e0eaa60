//! Messages about a patch and a library.

use super::table::Table;
use crate::expected::{Object, Use};
use crate::runtime::format::Text;
use crate::runtime::log::append;

/// The kernel's levels.
pub const ERROR: u32 = 3;
pub const WARNING: u32 = 4;
pub const NOTICE: u32 = 5;

/// Bytes of a message.
const LINE: usize = 480;
pub type Line = Text<LINE>;

/// Stand for names in the pieces of a message.
pub const PATCH: &[u8] = b"\x01";
pub const OBJECT: &[u8] = b"\x02";

/// Writes a message to the log.
pub unsafe fn log(table: Table, object: *mut Object, one: *mut Use, level: u32, pieces: &[&[u8]]) {
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

pub fn number(value: i32) -> Text<16> {
    let mut text = Text::new();
    text.add_number(u64::from(value.unsigned_abs()), 10);
    text
}
