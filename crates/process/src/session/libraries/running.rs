//! The callback that a thread runs in the hook, where it keeps the loader, and whoever is to stop the process, waiting.

use crate::answers::HookReport;
use crate::clock::age;
use crate::state::document::Document;
use crate::target::Target;
use crate::{RemoteAddr, Result, Tid};
use std::mem::{offset_of, size_of};
use ugraft_runtime::expected::{Loader, Object, Part, Running, Use};

/// The names, by the callbacks' places in a table.
const NAMES: [&str; 4] = ["pre_patch", "post_patch", "pre_unpatch", "post_unpatch"];
/// No name of a patch or library in a table is longer.
const NAME_MAX: u32 = 4096;

/// The callback that runs in the hook of a target, if one does.
pub(crate) fn running(target: &Target, document: &Document) -> Result<Option<HookReport>> {
    let hook = document.runtime.as_ref().and_then(|runtime| runtime.hook.as_ref());
    let (Some(libraries), Some(hook)) = (&document.libraries, hook) else { return Ok(None) };
    let memory = target.memory();
    let owner = Tid(memory.read_u64(libraries.word(offset_of!(Loader, owner)))? as i32);
    if owner.0 == 0 || !target.threads()?.contains(&owner) {
        return Ok(None);
    }
    let table = RemoteAddr(memory.read_u64(libraries.word(offset_of!(Loader, table)))?);
    let read = || memory.read_vec(hook.running, size_of::<Running>());
    let now = read()?;
    let word = |at: usize| now.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes);
    let text = |entry: u64, part: usize| -> Result<Option<String>> {
        if !libraries.mapping.contains(&RemoteAddr(entry)) {
            return Ok(None);
        }
        let part = memory.read_u64(RemoteAddr(entry).offset(part as i64))?;
        const _: () = assert!(offset_of!(Part, at) == 0 && offset_of!(Part, count) == 4);
        let (at, count) = (part as u32, (part >> 32) as u32);
        let name = memory.read_vec(table.offset(at.into()), count.min(NAME_MAX) as usize)?;
        Ok(Some(String::from_utf8_lossy(&name).into_owned()))
    };
    let patch = text(word(offset_of!(Running, one)), offset_of!(Use, patch))?;
    let object = text(word(offset_of!(Running, object)), offset_of!(Object, name))?;
    let callback = NAMES.get(word(offset_of!(Running, callback)) as usize);
    // One that ends or begins meanwhile keeps nobody waiting.
    let same = word(offset_of!(Running, thread)) != 0 && read()? == now;
    let (true, Some(patch), Some(object), Some(callback)) = (same, patch, object, callback) else {
        return Ok(None);
    };
    let comm = target.thread_stat(owner)?.map_or_else(|| "?".to_owned(), |stat| stat.comm);
    let since = age(word(offset_of!(Running, since)));
    Ok(Some(HookReport { tid: owner.0, comm, patch, object, callback, since }))
}
