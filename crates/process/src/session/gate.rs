//! The gate: where pending threads that enter changing functions again and again are met outside of them.
//!
//! A thread that spends nearly all its time in a changing function is hardly ever seen elsewhere. But it comes by the
//! function's stub each time, and there, before a side is chosen for it, it is as clean as its caller is. So the stubs
//! have a count of turns that pending threads wait for while it is above 0. The tool sets it for some milliseconds, stops
//! the threads, and strikes those that wait and whose callers' stacks are clean. The count runs out by itself, so a tool
//! that dies leaves nothing but that.
//!
//! A thread is held only where it begins a new outermost activation. Inside of one it could not be struck, and would wait
//! when it should go on to its end. So the slot of a thread that was seen in a changing function says where the return address
//! of its outermost one lies; with the stack pointer below that, the gate lets it pass.
//!
//! One that was kept from running since before a reverse may have read the former transition word there, and looks into the
//! former table. It has not switched when the present one says so, and is left alone.
//!
//! A thread at a stub need not have been called: a changing function may end in a jump to it (a tail call), and what it
//! passes on is of its own version. So only those functions have a gate to which no changing function can leave by a
//! jump.
//!
//! What jumps a function has is read from its code: those with a displacement, or through a word at a fixed address, are
//! followed; another indirect jump is one within the function where call frame information says that a frame is
//! still there, and may lead anywhere where it does not.

use crate::canary::canary;
use crate::code::stub::{UNDECIDED, UNDECIDED_DEPTH, goes_by};
use crate::stacks::cfi::Cfi;
use crate::stacks::rules::{CfaRule, RSP};
use crate::stacks::watch::Watch;
use crate::stacks::way_in::{Landing, landing};
use crate::state::document::Document;
use crate::target::maps::Maps;
use crate::target::memory::Memory;
use crate::{RemoteAddr, Result, Tid};
use iced_x86::{Decoder, DecoderOptions, FlowControl, OpKind};
use std::ops::Range;
use ugraft_core::{Change, Implementation};

/// How often pending threads that come by a stub wait before they go on, all of a function together: some tens of
/// milliseconds of one processor.
pub(crate) const TURNS: i32 = 1 << 20;

/// Most code of one function that is read.
const MAX_CODE: u64 = 1 << 22;

/// The gates of one transition, for the side that pending threads run.
#[derive(Debug)]
pub(crate) struct Gates {
    gates: Vec<Gate>,
    /// Where the transition word lies.
    word: RemoteAddr,
}

/// The gate of a function to which no changing function leaves by a jump.
#[derive(Debug)]
struct Gate {
    stub: RemoteAddr,
    /// Where its count lies.
    count: RemoteAddr,
}

/// Where the jumps out of a function lead, as far as changing functions are concerned.
#[derive(Debug, Default)]
struct Leaves {
    entries: Vec<RemoteAddr>,
    anywhere: bool,
}

impl Gates {
    /// The gates for `changes`, as `thread`, which lives, sees the code; `goal_side` says which side the pending threads run.
    pub(crate) fn of(
        memory: &Memory,
        maps: &Maps,
        thread: Tid,
        cfi: &mut Cfi,
        document: &Document,
        changes: &[Change],
        goal_side: bool,
    ) -> Result<Self> {
        let Some(arena) = document.arena.as_ref().filter(|arena| arena.gates.is_some()) else {
            return Ok(Self { gates: Vec::new(), word: RemoteAddr(0) });
        };
        cfi.maps_are(maps);
        let entries: Vec<RemoteAddr> = changes
            .iter()
            .filter_map(|change| document.site(&change.func))
            .map(|site| site.entry.start())
            .collect();
        let mut all = Vec::new();
        for change in changes {
            let side = if goal_side { change.goal } else { change.source };
            let mut row = |pc: u64| cfi.row(memory, maps, thread, pc).ok().map(|row| row.cfa.clone());
            let mut leaves = Leaves::default();
            let code = document.code(&change.func, side)?;
            for range in code {
                let len = range.end.distance_from(range.start).max(0) as u64;
                if len > MAX_CODE {
                    leaves.anywhere = true;
                    continue;
                }
                let mut bytes = memory.read_vec(range.start, len as usize)?;
                if side == Implementation::Original {
                    restore(&mut bytes, range, document, change);
                }
                leaves.read(memory, range, &bytes, code, &entries, &mut row);
            }
            all.push(leaves);
        }
        let mut gates = Vec::new();
        for change in changes {
            let Some(site) = document.site(&change.func) else { continue };
            let entry = site.entry.start();
            if !all.iter().any(|leaves| leaves.anywhere || leaves.entries.contains(&entry))
                // Those of libraries that came while the transition ran have none.
                && let (Some(count), Ok(stub)) = (arena.gate(&change.func), arena.stub(&change.func))
            {
                gates.push(Gate { stub, count });
            }
        }
        Ok(Self { gates, word: arena.word })
    }

    /// Whether there is none.
    pub(crate) fn is_empty(&self) -> bool {
        self.gates.is_empty()
    }

    /// Sets all counts.
    pub(crate) fn set(&self, memory: &Memory, turns: i32) -> Result<()> {
        self.gates.iter().try_for_each(|gate| memory.write(gate.count, &turns.to_le_bytes()))
    }

    /// Whether any thread has come since the counts were set to `turns`.
    pub(crate) fn any_came(&self, memory: &Memory, turns: i32) -> Result<bool> {
        for gate in &self.gates {
            let mut count = [0; 4];
            memory.read(gate.count, &mut count)?;
            if i32::from_le_bytes(count) != turns {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// If a thread with these registers is at a gate, and will go by what its slot says by then: the registers of its caller, as they
    /// are behind the call.
    pub(crate) fn caller(
        &self,
        memory: &Memory,
        regs: &libc::user_regs_struct,
        watch: &Watch,
    ) -> Option<libc::user_regs_struct> {
        let pc = RemoteAddr(regs.rip);
        let offset = |gate: &Gate| pc.distance_from(gate.stub);
        let offset = self.gates.iter().map(offset).find(|offset| UNDECIDED.contains(offset))?;
        let word = memory.read_u64(self.word).ok()?;
        if !goes_by(word, offset, regs.rcx) && !canary!("strike-the-late") {
            return None;
        }
        let slot = regs.rsp.wrapping_add(UNDECIDED_DEPTH);
        let back = memory.read_u64(RemoteAddr(slot)).ok()?;
        if watch.return_address(back).is_some() {
            return None;
        }
        Some(libc::user_regs_struct { rip: back, rsp: slot.wrapping_add(8), ..*regs })
    }
}

/// Puts back into `bytes`, read from `range`, what the redirect of the changing function has overwritten.
fn restore(bytes: &mut [u8], range: &Range<RemoteAddr>, document: &Document, change: &Change) {
    for write in document.site(&change.func).map(|site| site.entry.restore()).unwrap_or_default() {
        for (i, byte) in write.bytes.iter().enumerate() {
            let at = write.addr.offset(i as i64);
            if range.contains(&at) {
                bytes[at.distance_from(range.start) as usize] = *byte;
            }
        }
    }
}

impl Leaves {
    /// Adds the jumps of the code `bytes` at `range`, which is part of `code`.
    fn read(
        &mut self,
        memory: &Memory,
        range: &Range<RemoteAddr>,
        bytes: &[u8],
        code: &[Range<RemoteAddr>],
        entries: &[RemoteAddr],
        row: &mut impl FnMut(u64) -> Option<CfaRule>,
    ) {
        let within = |at: RemoteAddr| code.iter().any(|range| range.contains(&at));
        for i in Decoder::with_ip(64, bytes, range.start.0, DecoderOptions::NONE) {
            if i.is_invalid() {
                self.anywhere = true;
                continue;
            }
            let to = match i.flow_control() {
                FlowControl::UnconditionalBranch | FlowControl::ConditionalBranch => match i.op0_kind() {
                    OpKind::NearBranch64 => Some(i.near_branch_target()),
                    _ => None,
                },
                FlowControl::IndirectBranch if i.is_ip_rel_memory_operand() => {
                    memory.read_u64(RemoteAddr(i.ip_rel_memory_address())).ok()
                }
                FlowControl::IndirectBranch => {
                    // With its frame still there a function does not leave.
                    let frameless =
                        !matches!(row(i.ip()), Some(CfaRule::Register(r, offset)) if r != RSP || offset > 8);
                    self.anywhere |= frameless;
                    continue;
                }
                FlowControl::XbeginXabortXend => {
                    self.anywhere = true;
                    continue;
                }
                _ => continue,
            };
            let Some(to) = to.map(RemoteAddr) else {
                self.anywhere = true;
                continue;
            };
            if within(to) && !entries.contains(&to) {
                continue;
            }
            match landing(memory, to.0, |at| entries.contains(&RemoteAddr(at))) {
                Landing::At(entry) => self.entries.push(RemoteAddr(entry)),
                Landing::Elsewhere => {}
                Landing::Unknown => self.anywhere = true,
            }
        }
    }
}
