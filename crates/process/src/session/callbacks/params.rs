//! Parameters of patches: set when a patch is loaded, read and written while it is.

use crate::remote::mapping::{MapRequest, Part, Prot};
use crate::session::Session;
use crate::session::batch::{Batch, Ground, PAGE};
use crate::state::document::{Image, ImageParam};
use crate::target::memory::Memory;
use crate::{Error, RemoteAddr, Result};
use serde::Serialize;
use ugraft_core::Refusal;
use ugraft_image::{ParamKind, ParamValue, PatchFile};

/// The longest text that is read of a parameter.
const TEXT_MAX: usize = 4096;

/// A parameter and what it is now.
#[derive(Clone, Debug, Serialize)]
pub struct ParamReport {
    /// Its name.
    pub name: String,
    /// Its type.
    pub kind: ParamKind,
    /// Its value.
    pub value: String,
}

/// Adds what sets the parameters of a patch that is being loaded.
pub(crate) fn set_at_load(
    settings: &[(usize, ParamValue)],
    patch: &PatchFile,
    image: &mut Image,
    batch: &mut Batch,
) -> Result<()> {
    debug_assert_eq!(patch.metadata().params.len(), image.params.len());
    for (at, value) in settings {
        if let Some(param) = image.params.get(*at).cloned() {
            let bytes = bytes_of(value, &patch.metadata().name, image, batch)?;
            batch.writes.push((param.addr, bytes));
        }
    }
    Ok(())
}

/// What the variable is to hold; a text gets memory of its own.
fn bytes_of(value: &ParamValue, name: &str, image: &mut Image, batch: &mut Batch) -> Result<Vec<u8>> {
    match value {
        ParamValue::Bytes(bytes) => Ok(bytes.clone()),
        ParamValue::Text(text) => {
            let mut bytes = text.clone().into_bytes();
            bytes.push(0);
            let len = (bytes.len() as u64).next_multiple_of(PAGE);
            let range = batch.ground.take(len, &[])?;
            batch.requests.push(MapRequest {
                name: format!("ugraft:patch:{name}"),
                addr: range.start,
                len,
                // A program may write into what its `char *` points to.
                parts: vec![Part { offset: 0, len, prot: Prot::ReadWrite }],
            });
            batch.writes.push((range.start, bytes));
            image.mappings.push(range.clone());
            Ok(range.start.0.to_le_bytes().to_vec())
        }
    }
}

impl Session {
    /// Gives values to parameters of the patch that the next [`Session::load`] loads: see
    /// [`ugraft_image::Metadata::values`].
    pub fn set_params(&mut self, values: Vec<(usize, ParamValue)>) {
        self.settings = values;
    }

    /// The parameters of a loaded patch.
    ///
    /// # Errors
    /// [`Error::Refused`] where there is no such patch, [`Error::Memory`] on a failed read.
    pub(crate) fn params(&self, patch: &str) -> Result<Vec<ParamReport>> {
        let image = self.image_named(patch)?;
        let memory = self.target.memory();
        image.params.iter().map(|param| report(memory, param)).collect()
    }

    /// Sets a parameter of a loaded patch, by one store.
    ///
    /// # Errors
    /// [`Error::Refused`] where there is no such patch, [`Error::Memory`] on a failed access; [`Error::Link`] for what is no value of it.
    pub fn set_param(&mut self, patch: &str, name: &str, text: &str) -> Result<ParamReport> {
        let mut image = self.image_named(patch)?;
        let param = image.params.iter().find(|param| param.name == name).cloned();
        let param = param.ok_or_else(|| Error::NoParam { patch: patch.to_owned(), name: name.to_owned() })?;
        let value = param.kind.parse(name, text)?;
        let mut batch = Batch::new(Ground::new(&self.target, self.target.maps()?));
        let bytes = bytes_of(&value, patch, &mut image, &mut batch)?;
        if !batch.requests.is_empty() {
            let id = image.patch;
            if let Some(known) = self.document.images.iter_mut().find(|known| known.patch == id) {
                *known = image;
            }
            self.install(batch)?;
        }
        self.target.memory().write(param.addr, &bytes)?;
        report(self.target.memory(), &param)
    }

    pub(crate) fn image_named(&self, patch: &str) -> Result<Image> {
        self.require_patched()?;
        let known = self.document.state.patch_named(patch);
        let id = known.map(|p| p.id()).ok_or_else(|| Refusal::NoSuchPatch(patch.to_owned()))?;
        self.document.image(id).cloned()
    }
}

fn report(memory: &Memory, param: &ImageParam) -> Result<ParamReport> {
    let mut bytes = memory.read_vec(param.addr, param.kind.size() as usize)?;
    if param.kind == ParamKind::CharP {
        let addr = bytes.as_slice().try_into().map_or(0, u64::from_le_bytes);
        bytes = if addr == 0 { b"(null)".to_vec() } else { text_at(memory, RemoteAddr(addr))? };
    }
    Ok(ParamReport { name: param.name.clone(), kind: param.kind, value: param.kind.show(&bytes) })
}

/// The string at `addr`, up to its zero.
fn text_at(memory: &Memory, addr: RemoteAddr) -> Result<Vec<u8>> {
    let mut text = Vec::new();
    while text.len() < TEXT_MAX {
        // Not over the end of a page, behind which there may be nothing.
        let at = addr.offset(text.len() as i64);
        let piece = memory.read_vec(at, (PAGE - at.0 % PAGE) as usize)?;
        let end = piece.iter().position(|byte| *byte == 0);
        text.extend_from_slice(&piece[..end.unwrap_or(piece.len())]);
        if end.is_some() {
            break;
        }
    }
    text.truncate(TEXT_MAX);
    Ok(text)
}
