//! Having the runtime told of the end of a library before its memory goes: leading the library's finalizer (DT_FINI) to it.
//!
//! The word in the library's dynamic section that says where its finalizer is is the loader's data: it reads the word when it has run
//! the library's other destructors, and calls what it finds. See the runtime's `finalizers.rs` for what that is good for. Here it
//! is done for libraries that the tool patches itself, and put right again for all.
//!
//! A thread may be stopped between reading the word and the call. What it has read leads to the runtime, whose function for
//! the library works as long as the library and the runtime are there. So the runtime goes only after a look under the same stop has
//! shown that no thread has such an address.

use crate::session::Session;
use crate::session::look::{Looker, watch_range};
use crate::stacks::watch::{Part, Watch};
use crate::state::pieces::LoaderHook;
use crate::target::maps::Maps;
use crate::threads::StoppedProcess;
use crate::{RemoteAddr, Result};
use std::collections::BTreeMap;
use std::mem::{offset_of, size_of};
use ugraft_runtime::expected::{FINALIZER_CODE_LEN, FINALIZERS_MAX, Finalizer};

/// DT_FINI (System V gABI, chapter 5).
const FINI: u64 = 13;
/// Most entries read of a dynamic section.
const MAX_DYNAMIC: usize = 4096;
/// Where `l_ld` lies in a `struct link_map`.
const LINK_MAP_DYNAMIC: i64 = 16;

impl LoaderHook {
    fn code(&self, index: usize) -> RemoteAddr {
        self.finalizer_code.offset((index as u64 * FINALIZER_CODE_LEN) as i64)
    }

    fn note(&self, index: usize) -> RemoteAddr {
        self.finalizers.offset((index * size_of::<Finalizer>()) as i64)
    }
}

impl Session {
    /// Leads the finalizers of the libraries `patched`, each given by its `struct link_map` and bias, to the runtime, and those of all
    /// others to where they lead by themselves. All threads are stopped, and the loader's list is whole.
    pub(super) fn lead_finalizers(&self, patched: &[(RemoteAddr, u64)]) -> Result<()> {
        let (Some(hook), Some(libraries)) = (self.hook(), &self.document.libraries) else { return Ok(()) };
        let memory = self.target.memory();
        let listed = self.listed_libraries(libraries.debug)?.unwrap_or_default();
        let notes = self.finalizers(hook)?;
        for (index, note) in notes.iter().enumerate() {
            let library = (RemoteAddr(note.link_map), note.bias);
            let led = |word: u64| word == hook.code(index).0.wrapping_sub(note.bias);
            if is_listed(&listed, note)
                && !patched.contains(&library)
                && led(memory.read_u64(RemoteAddr(note.word))?)
            {
                memory.write(RemoteAddr(note.word), &note.original.to_le_bytes())?;
            }
        }
        let mut taken: Vec<bool> = notes.iter().map(|note| is_listed(&listed, note)).collect();
        for &(link_map, bias) in patched.iter().filter(|(map, bias)| listed.get(&map.0) == Some(bias)) {
            let own = |note: &Finalizer| note.link_map == link_map.0 && note.bias == bias;
            let own = notes.iter().position(own).filter(|index| taken[*index]);
            // Without room the hook hears of its end when it is gone.
            let Some(index) = own.or_else(|| taken.iter().position(|taken| !taken)) else { break };
            taken[index] = true;
            let Some(word) = self.finalizer_word(link_map)? else { continue };
            let (original, wanted) = (memory.read_u64(word)?, hook.code(index).0.wrapping_sub(bias));
            if original != wanted {
                let note =
                    Finalizer { link_map: link_map.0, bias, word: word.0, original, ..Finalizer::default() };
                memory.write(hook.note(index), &to_bytes(&note))?;
                memory.write(word, &wanted.to_le_bytes())?;
            }
        }
        Ok(())
    }

    /// Whether no thread may be about to call a finalizer in the runtime, having read where it is before that was put right.
    pub(super) fn nobody_calls_finalizers(&mut self, stopped: &StoppedProcess, maps: Maps) -> Result<bool> {
        let (Some(hook), Some(libraries)) = (self.hook(), &self.document.libraries) else { return Ok(true) };
        let listed = self.listed_libraries(libraries.debug)?.unwrap_or_default();
        let notes = self.finalizers(hook)?.into_iter().enumerate();
        // The sum, or the word that the bias is still to be added to.
        let addresses = notes
            .filter(|(_, note)| is_listed(&listed, note))
            .flat_map(|(index, note)| [hook.code(index).0, hook.code(index).0.wrapping_sub(note.bias)]);
        let range = |at: u64| {
            watch_range(RemoteAddr(at)..RemoteAddr(at).offset(1), Part::Pointer, "a library's finalizer")
        };
        let watch = Watch::new(addresses.map(range).collect());
        if watch.is_empty() {
            return Ok(true);
        }
        let first = Looker::new(&self.target, &mut self.prover, maps).first_in(stopped, &watch)?;
        Ok(first.is_none())
    }

    pub(super) fn hook(&self) -> Option<&LoaderHook> {
        self.document.runtime.as_ref()?.hook.as_ref()
    }

    /// What the runtime notes of libraries' finalizers.
    fn finalizers(&self, hook: &LoaderHook) -> Result<Vec<Finalizer>> {
        let len = size_of::<Finalizer>();
        let bytes = self.target.memory().read_vec(hook.finalizers, FINALIZERS_MAX * len)?;
        Ok(bytes.chunks_exact(len).map(of_bytes).collect())
    }

    /// Where the word of DT_FINI lies of the library with this `struct link_map`.
    fn finalizer_word(&self, link_map: RemoteAddr) -> Result<Option<RemoteAddr>> {
        let memory = self.target.memory();
        let section = RemoteAddr(memory.read_u64(link_map.offset(LINK_MAP_DYNAMIC))?);
        for i in 0..MAX_DYNAMIC {
            let entry = section.offset(16 * i as i64);
            match memory.read_u64(entry)? {
                0 => break,
                FINI => return Ok(Some(entry.offset(8))),
                _ => {}
            }
        }
        Ok(None)
    }
}

fn is_listed(listed: &BTreeMap<u64, u64>, note: &Finalizer) -> bool {
    note.link_map != 0 && listed.get(&note.link_map) == Some(&note.bias)
}

fn to_bytes(note: &Finalizer) -> Vec<u8> {
    const _: () = assert!(offset_of!(Finalizer, link_map) == 0 && offset_of!(Finalizer, order) == 48);
    let Finalizer { link_map, bias, word, original, thread, frame, order } = *note;
    [link_map, bias, word, original, thread, frame, order].into_iter().flat_map(u64::to_le_bytes).collect()
}

fn of_bytes(bytes: &[u8]) -> Finalizer {
    let mut words = bytes.chunks_exact(8).map(|word| word.try_into().map_or(0, u64::from_le_bytes));
    let mut word = || words.next().unwrap_or(0);
    Finalizer {
        link_map: word(),
        bias: word(),
        word: word(),
        original: word(),
        thread: word(),
        frame: word(),
        order: word(),
    }
}
