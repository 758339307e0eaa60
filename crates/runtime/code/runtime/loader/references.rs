//! What patches refer to in libraries: words of their images, written when the library comes and when it goes.
#![allow(clippy::result_large_err, reason = "there is no allocator, and a refusal is the end of a dlopen")]

use super::message::{OBJECT, PATCH, WARNING, log};
use super::table::Table;
use super::{LOADER, is_guarded};
use crate::expected::{Object, Reference, Use};
use crate::runtime::redirect::Text;
use crate::runtime::refusal::Refusal;
use crate::runtime::symbols::{File, STT_TLS};

/// Writes the addresses of a library's symbols into the words of a patch that refers to them. Where one is refused, `name` is told of it.
pub unsafe fn bind(table: Table, one: *mut Use, file: &File<'_>, name: &mut &[u8]) -> Result<(), Refusal> {
    // SAFETY: the table is the tool's, and names words of the patch's image.
    unsafe {
        let words = Text::open()?;
        for i in 0..(*one).references.count {
            let reference: *const Reference = table.entry((*one).references, i);
            *name = table.text((*reference).symbol);
            let found = file.symbol(name, (*reference).position)?;
            if found.kind == STT_TLS {
                return Err(Refusal::ThreadLocal);
            }
            let value = found.address.wrapping_add((*reference).addend);
            words.write((*reference).word, &value.to_le_bytes())?;
        }
    }
    Ok(())
}

/// Takes the addresses out again.
pub unsafe fn unbind(table: Table, object: *mut Object, one: *mut Use) {
    // SAFETY: as for `bind`.
    unsafe {
        // A filter that was set since may kill for the calls that it takes.
        if (*one).references.count == 0 || is_guarded(LOADER.0.get()) {
            return;
        }
        let clear = || {
            let words = Text::open()?;
            for i in 0..(*one).references.count {
                let reference: *const Reference = table.entry((*one).references, i);
                words.write((*reference).word, &(*reference).addend.to_le_bytes())?;
            }
            Ok::<_, Refusal>(())
        };
        if clear().is_err() {
            log(table, object, one, WARNING, &[b"patch ", PATCH, b" keeps addresses of module ", OBJECT]);
        }
    }
}
