//! The transition word and the pending tables, as they are in the target.

use crate::code::pending::PendingTable;
use crate::session::Session;
use crate::state::document::Arena;
use crate::{RemoteAddr, Result};
use std::collections::BTreeSet;
use ugraft_core::ThreadId;

impl Session {
    /// The keys of the transition that have not switched; `None` when it is over.
    pub(super) fn pending(&self) -> Option<BTreeSet<ThreadId>> {
        let transition = self.document.state.transition().filter(|_| !self.is_over());
        transition.map(|transition| transition.pending().clone())
    }

    pub(super) fn pending_run_goal(&self) -> bool {
        self.document.state.transition().is_some_and(|transition| transition.is_reversed())
    }

    /// Which pending table the transition word names; `None` where the transition has not begun.
    pub(super) fn valid(&self) -> Result<Option<usize>> {
        let Some(arena) = &self.document.arena else { return Ok(None) };
        arena.valid_table(self.target.memory().read_u64(arena.word)?)
    }

    /// Begins the transition, or turns it round, by the store of one word.
    pub(super) fn make_valid(&self, arena: &Arena, table: usize) -> Result<()> {
        self.target.memory().write(arena.word, &arena.tables[table].0.to_le_bytes())
    }

    /// The keys that the pending table in the target lists.
    pub(super) fn listed(&self) -> Result<BTreeSet<ThreadId>> {
        let Some(arena) = &self.document.arena else { return Ok(BTreeSet::new()) };
        let (_, table) = self.valid_table(arena)?;
        Ok(table.pending().map(ThreadId).collect())
    }

    /// The table that is valid, or will be first, and where it lies.
    pub(super) fn valid_table(&self, arena: &Arena) -> Result<(RemoteAddr, PendingTable)> {
        self.table(arena, self.valid()?.unwrap_or_default())
    }

    pub(super) fn table(&self, arena: &Arena, table: usize) -> Result<(RemoteAddr, PendingTable)> {
        let at = arena.tables[table];
        let bytes = self.target.memory().read_vec(at, arena.capacity()?.bytes())?;
        Ok((at, PendingTable::parse(&bytes)?))
    }
}
