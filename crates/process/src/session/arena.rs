//! What one transition needs in the target, planned: its word, its pending tables, and for each changing function a
//! stub and, where the original is one of the sides, a thunk.
//!
//! Entries reach 2 GiB far, and objects lie further apart than that, so functions are grouped by neighbourhood and each
//! group has a mapping of its own. The word and the tables lie in the first one; stubs reach them by absolute address.
//! Each transition has an arena of its own, so a thread that is late in a stub of an earlier one reads that one's word
//! and tables, which nobody touches any more. Nothing here touches the target.
//!
//! ```text
//! first mapping:  word | table 0 | table 1 | gates | a cell per function
//! other mappings:                                             a cell per function
//! cell:           stub | thunk
//! ```

use crate::clock;
use crate::code::entry::Entry;
use crate::code::pending::{self, Capacity};
use crate::code::stub::{self, Stub};
use crate::code::thunk;
use crate::remote::mapping::{MapRequest, Part, Prot};
use crate::session::batch::{Ground, PAGE};
use crate::state::document::{Arena, Document, GATE_LEN};
use crate::{Error, RemoteAddr, Result};
use ugraft_core::{Change, Implementation};

/// Name of the memfd behind an arena's mappings.
pub const ARENA_NAME: &str = "ugraft:transition";

/// Functions further apart than this get mappings of their own: half of a jump's reach, so that there is room to find a
/// gap within reach of all of them.
const NEIGHBOURHOOD: i64 = 1 << 30;

/// Where in the first mapping the tables begin.
const TABLES_AT: u64 = 64;
const THUNK_AT: usize = stub::MAX_LEN.next_multiple_of(thunk::ALIGN);
const CELL_LEN: usize = (THUNK_AT + thunk::MAX_LEN).next_multiple_of(stub::ALIGN);

/// An arena that does not exist yet.
#[derive(Debug)]
pub struct ArenaPlan {
    /// What the document will say of it.
    pub arena: Arena,
    /// The mappings to make.
    pub requests: Vec<MapRequest>,
    /// What to write into them; all the rest is zero.
    pub writes: Vec<(RemoteAddr, Vec<u8>)>,
}

/// Plans the arena for `changes`, with tables for `threads` threads and as many more born meanwhile.
///
/// `shadow_stack` says whether the target runs with user shadow stacks.
///
/// # Errors
/// [`Error::NoPlace`] where there is no room within reach of a function, and the reasons why a function cannot be moved
/// into a thunk.
pub fn plan(
    document: &Document,
    changes: &[Change],
    threads: usize,
    ground: &mut Ground,
    shadow_stack: bool,
) -> Result<ArenaPlan> {
    let capacity = Capacity::for_threads(threads)?;
    let mut plan = ArenaPlan {
        arena: Arena {
            word: RemoteAddr(0),
            tables: [RemoteAddr(0); 2],
            gates: None,
            slots: capacity.slots() as u64,
            mappings: Vec::new(),
            code: Vec::new(),
            stubs: Vec::new(),
            began_ns: clock::now().as_nanos() as u64,
            scan_memory: false,
            resolvers: Vec::new(),
        },
        requests: Vec::new(),
        writes: Vec::new(),
    };
    for group in neighbourhoods(document, changes)? {
        let first = plan.requests.is_empty();
        let read_len = (TABLES_AT + pending::tables_at(RemoteAddr(0), capacity).1).next_multiple_of(PAGE);
        let gates_len = (changes.len() as u64 * GATE_LEN as u64).next_multiple_of(PAGE);
        let data_len = if first { read_len + gates_len } else { 0 };
        let code_len = ((group.len() * CELL_LEN) as u64).next_multiple_of(PAGE);
        let all = ground.take(data_len + code_len, &reach_of(&group))?;
        let code = all.start.offset(data_len as i64)..all.end;
        let mut parts = vec![Part { offset: data_len, len: code_len, prot: Prot::ReadExec }];
        if first {
            plan.arena.word = all.start;
            plan.arena.tables = pending::tables_at(all.start.offset(TABLES_AT as i64), capacity).0;
            plan.arena.gates = Some(all.start.offset(read_len as i64));
            parts.insert(0, Part { offset: 0, len: read_len, prot: Prot::Read });
            parts.insert(1, Part { offset: read_len, len: gates_len, prot: Prot::ReadWrite });
        }
        let mut cells = vec![0xcc; group.len() * CELL_LEN];
        for (i, (change, entry)) in group.iter().enumerate() {
            let at = code.start.offset((i * CELL_LEN) as i64);
            let cell = &mut cells[i * CELL_LEN..][..CELL_LEN];
            plan.arena.stubs.push((change.func.clone(), at));
            emit_cell(cell, at, document, change, entry, &plan.arena, capacity, shadow_stack)?;
        }
        plan.writes.push((code.start, cells));
        plan.requests.push(MapRequest {
            name: ARENA_NAME.to_owned(),
            addr: all.start,
            len: data_len + code_len,
            parts,
        });
        plan.arena.mappings.push(all);
        plan.arena.code.push(code);
    }
    Ok(plan)
}

type Member<'a> = (&'a Change, &'a Entry);

/// The changing functions in groups that one mapping can serve.
fn neighbourhoods<'a>(document: &'a Document, changes: &'a [Change]) -> Result<Vec<Vec<Member<'a>>>> {
    let mut members = Vec::new();
    for change in changes {
        let site = document.site(&change.func);
        let site = site.ok_or_else(|| Error::Damaged(format!("the function {} has no site", change.func)))?;
        members.push((change, &site.entry));
    }
    members.sort_by_key(|(_, entry)| entry.place());
    let mut groups: Vec<Vec<Member<'a>>> = Vec::new();
    for member in members {
        match groups.last_mut() {
            Some(group) if member.1.place().distance_from(group[0].1.place()) < NEIGHBOURHOOD => {
                group.push(member)
            }
            _ => groups.push(vec![member]),
        }
    }
    Ok(groups)
}

/// What a group's mapping must be within reach of: its entries, and what their displaced instructions refer to.
fn reach_of(group: &[Member<'_>]) -> Vec<RemoteAddr> {
    group
        .iter()
        .flat_map(|(_, entry)| [vec![entry.place(), entry.jump()], thunk::references(entry)].concat())
        .collect()
}

#[expect(clippy::too_many_arguments, reason = "one cell is made of all of these, once")]
fn emit_cell(
    cell: &mut [u8],
    at: RemoteAddr,
    document: &Document,
    change: &Change,
    entry: &Entry,
    arena: &Arena,
    capacity: Capacity,
    shadow_stack: bool,
) -> Result<()> {
    let thunk_at = at.offset(THUNK_AT as i64);
    let callable = |implementation| -> Result<RemoteAddr> {
        Ok(document.landing(&change.func, implementation)?.unwrap_or(thunk_at))
    };
    let stub = Stub {
        word: arena.word,
        gate: arena.gate(&change.func).unwrap_or(arena.word),
        capacity,
        source: callable(change.source)?,
        goal: callable(change.goal)?,
    };
    let code = stub.emit(at);
    cell[..code.len()].copy_from_slice(&code);
    if [change.source, change.goal].contains(&Implementation::Original) {
        let code = thunk::emit(entry, thunk_at, shadow_stack)
            .map_err(|reason| Error::Thunk { function: change.func.to_string(), reason })?;
        cell[THUNK_AT..][..code.len()].copy_from_slice(&code);
    }
    Ok(())
}
