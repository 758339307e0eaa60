//! The entry of a function: which bytes a redirect overwrites, and what is written there in which state.
//!
//! A redirect is `jmp rel32` at the function's *place*: its start, or behind the `endbr64` there. Where those five bytes
//! cannot be written (the function is shorter and not padded, one of its own branches leads into them, or they straddle a
//! page), two may do: `jmp rel8` to padding between functions nearby, where the `jmp rel32` lies. That is a *springboard*.
//!
//! Invariants:
//! - A [`Write`] never crosses a page, so the kernel makes it in one piece: a tool that is killed has made it or not. Writes are
//!   listed in the order in which they must be made; after each of them the function works, in the old way or in the new.
//! - All threads are stopped when an entry is written, and none has its program counter, nor a return address on its stack, in
//!   [`Entry::watch_install`] (or [`Entry::watch_restore`]). Hence cache lines do not matter: no CPU runs the bytes
//!   while they change, and going from the stop back to user mode serialises.
//! - What is restored is what was there, byte for byte.
//!
//! A function that loops back to its own first instruction comes to the redirect again. That is right: during a transition
//! its thread cannot change sides, since the function is on its stack, so the stub leads it back to the side it is on,
//! which is the thunk of this very function; and the stub keeps all registers, flags and the red zone for it.

use crate::RemoteAddr;
use crate::canary::canary;
use crate::code::function::{self, Branches, Function, Intruder};
use crate::code::padding;
use crate::code::trampoline;
use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, OpKind, Register};
use serde::{Deserialize, Serialize};
use std::ops::Range;
use ugraft_runtime::layout::Site;

/// The CPU's page size, and the unit in which the kernel copies a write.
const PAGE: u64 = 4096;
const ENDBR64: [u8; 4] = [0xf3, 0x0f, 0x1e, 0xfa];
/// Length of `jmp rel8`.
const SHORT_LEN: usize = 2;

/// Why a function cannot be redirected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EntryRefusal {
    /// Neither its symbol nor its frame description tells its length.
    #[error("the length of the function at {0} is not known; debug symbols would tell")]
    NoSize(RemoteAddr),
    /// The bytes given do not cover it, so its symbol does not fit the mapping.
    #[error("the function at {0} does not lie in the object's text as a whole")]
    OutsideText(RemoteAddr),
    /// A redirect does not fit.
    #[error(
        "the function at {start} has {room} bytes to its end and the padding behind it, a jump takes {need}"
    )]
    TooShort {
        /// The function.
        start: RemoteAddr,
        /// How many bytes there are from the place on.
        room: usize,
        /// How many a redirect takes.
        need: usize,
    },
    /// The padding behind it serves another function's redirect.
    #[error("the padding behind the function at {0} is used by the redirect of another function")]
    PaddingTaken(RemoteAddr),
    /// Another function or entry begins in the bytes that a redirect takes.
    #[error(
        "another function begins at {at}, {offset} bytes into the function at {start}, where the jump would lie"
    )]
    OtherEntry {
        /// The function.
        start: RemoteAddr,
        /// The other one.
        at: RemoteAddr,
        /// Distance of the two.
        offset: u64,
    },
    /// A branch leads into the middle of the redirect.
    #[error("the branch at {from} leads to {to}, into the bytes that a jump at {place} would overwrite")]
    BranchInto {
        /// The branch.
        from: RemoteAddr,
        /// Its destination.
        to: RemoteAddr,
        /// The redirect.
        place: RemoteAddr,
    },
    /// Code computes an address in the middle of the redirect.
    #[error("the code at {from} takes the address {to}, which a jump at {place} would overwrite")]
    AddressTaken {
        /// The instruction.
        from: RemoteAddr,
        /// The address.
        to: RemoteAddr,
        /// The redirect.
        place: RemoteAddr,
    },
    /// A jump table leads into the middle of the redirect.
    #[error("the jump table at {table} lists {to}, which a jump at {place} would overwrite")]
    TableInto {
        /// The table.
        table: RemoteAddr,
        /// The destination it lists.
        to: RemoteAddr,
        /// The redirect.
        place: RemoteAddr,
    },
    /// A call among the first instructions would return into the middle of the redirect.
    #[error("the call at {at} returns to {to}, into the bytes that a jump at {place} would overwrite")]
    CallReturnsInto {
        /// The call.
        at: RemoteAddr,
        /// Its return address.
        to: RemoteAddr,
        /// The redirect.
        place: RemoteAddr,
    },
    /// The redirect would straddle a page, and there is no padding nearby for a springboard.
    #[error(
        "a jump at {place} would straddle a page, which cannot be written in one piece, and there is no \
         padding within reach to jump through"
    )]
    StraddlesPage {
        /// The redirect.
        place: RemoteAddr,
    },
    /// Somebody else changed the text.
    #[error("{what} of somebody else lies {offset} bytes into the function at {start}; take it off first")]
    Foreign {
        /// The function.
        start: RemoteAddr,
        /// Where the memory first differs from the file.
        offset: u64,
        /// What it looks like.
        what: ForeignKind,
    },
    /// Its first bytes are no instructions.
    #[error("the bytes at {0}, among the function's first, are no instruction")]
    Undecodable(RemoteAddr),
    /// One of its first instructions means something else at another place and cannot be rewritten.
    #[error("the instruction at {0}, among the function's first, cannot run at another place")]
    Unmovable(RemoteAddr),
}

/// What a change of the text by somebody else looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ForeignKind {
    /// `int3`, as debuggers and uprobes write it.
    Breakpoint,
    /// A jump, as other patchers and hooks write it.
    Jump,
    /// A call, as tracers and optimised uprobes write it.
    Call,
    /// Anything else.
    Change,
}

impl std::fmt::Display for ForeignKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Breakpoint => "a breakpoint (a debugger's or a uprobe's)",
            Self::Jump => "a jump (a hook's or another patcher's)",
            Self::Call => "a call (a tracer's or a uprobe's)",
            Self::Change => "a change",
        })
    }
}

/// A jump does not reach its destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{to} is more than 2 GiB away from {from}")]
pub struct OutOfReach {
    /// Where the jump, or the instruction, lies.
    pub from: RemoteAddr,
    /// What it has to reach.
    pub to: RemoteAddr,
}

/// Bytes to be written in one piece: they lie in one page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// Where.
    pub addr: RemoteAddr,
    /// What.
    pub bytes: Vec<u8>,
}

impl Write {
    fn new(addr: RemoteAddr, bytes: &[u8]) -> Self {
        assert!(!straddles(addr, bytes.len()), "a write in two pages can be torn");
        Self { addr, bytes: bytes.to_vec() }
    }
}

/// Where `jmp rel32` lies.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
enum Form {
    /// At the place.
    Direct,
    /// In padding, to which a `jmp rel8` at the place leads.
    Springboard { pad: RemoteAddr, padding: Vec<u8> },
}

/// What `entry` holds, as [`Entry::installed`] finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Installed {
    /// The original bytes.
    Original,
    /// A redirect of ours, to this address.
    Redirect(RemoteAddr),
    /// The original bytes, and in the padding a jump to this address, by which nobody comes any more or yet: a springboard
    /// between its two writes.
    Half(RemoteAddr),
    /// Neither.
    Other,
}

/// A function's entry, found fit to be redirected.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Entry {
    start: RemoteAddr,
    place: RemoteAddr,
    form: Form,
    /// The original bytes from the place on: those that are overwritten, and the rest of the last instruction.
    original: Vec<u8>,
    /// How many of them are instructions that a thunk takes over; the rest, behind a jump or a return, is dead or padding.
    displaced: u8,
}

impl Entry {
    /// Looks for a way to redirect `f`.
    ///
    /// # Errors
    /// The reason why there is none; nothing has been touched.
    pub fn analyze(f: &Function<'_>) -> Result<Self, EntryRefusal> {
        Self::analyze_with(f, None)
    }

    /// The same with the branches of the function's text already at hand, for many functions of one object.
    ///
    /// # Errors
    /// As [`Entry::analyze`].
    pub fn analyze_with(f: &Function<'_>, branches: Option<&Branches>) -> Result<Self, EntryRefusal> {
        if f.size == 0 {
            return Err(EntryRefusal::NoSize(f.start));
        }
        let body = f.text.get(f.start..f.end()).ok_or(EntryRefusal::OutsideText(f.start))?;
        let place = if body.starts_with(&ENDBR64) { f.start.offset(ENDBR64.len() as i64) } else { f.start };
        let entry = match Self::direct(f, place, branches) {
            Ok(entry) => entry,
            Err(refusal) => Self::springboard(f, place, branches).ok_or(refusal)?,
        };
        entry.check_foreign(f)?;
        Ok(entry)
    }

    /// The same as the hook in a target has found it; `None` where that makes no sense.
    #[must_use]
    pub fn from_site(site: &Site) -> Option<Self> {
        let (place, jump) = (RemoteAddr(site.place), RemoteAddr(site.jump));
        let original = site.original.get(..usize::from(site.original_len))?.to_vec();
        let form = match jump == place {
            true => Form::Direct,
            false => Form::Springboard { pad: jump, padding: site.padding.to_vec() },
        };
        let entry = Self { start: RemoteAddr(site.start), place, form, original, displaced: site.displaced };
        let reach = jump.distance_from(place.offset(SHORT_LEN as i64));
        let fits = entry.overwritten() <= entry.original.len()
            && usize::from(entry.displaced) <= entry.original.len()
            && !straddles(place, entry.overwritten())
            && !straddles(jump, trampoline::NEAR_LEN)
            && (jump == place || i8::try_from(reach).is_ok());
        fits.then_some(entry)
    }

    /// The entry as the hook in a target has it; `None` where that has no room for it.
    #[must_use]
    pub fn to_site(&self, size: u64) -> Option<Site> {
        let mut site = Site {
            start: self.start.0,
            size,
            place: self.place.0,
            jump: self.jump().0,
            original_len: self.original.len() as u8,
            displaced: self.displaced,
            ..Site::default()
        };
        site.original.get_mut(..self.original.len())?.copy_from_slice(&self.original);
        if let Form::Springboard { padding, .. } = &self.form {
            site.padding = padding.as_slice().try_into().ok()?;
        }
        Some(site)
    }

    fn direct(
        f: &Function<'_>,
        place: RemoteAddr,
        branches: Option<&Branches>,
    ) -> Result<Self, EntryRefusal> {
        let entry = Self::overwriting(f, place, trampoline::NEAR_LEN, branches)?;
        if straddles(place, trampoline::NEAR_LEN) {
            return Err(EntryRefusal::StraddlesPage { place });
        }
        Ok(entry)
    }

    fn springboard(f: &Function<'_>, place: RemoteAddr, branches: Option<&Branches>) -> Option<Self> {
        if straddles(place, SHORT_LEN) {
            return None;
        }
        let mut entry = Self::overwriting(f, place, SHORT_LEN, branches).ok()?;
        let base = place.offset(SHORT_LEN as i64);
        let reach = base.offset(i8::MIN.into())..base.offset(i64::from(i8::MAX) + 1);
        let len = trampoline::NEAR_LEN as i64;
        for gap in padding::gaps(f, reach.clone()) {
            // A jump may begin anywhere in the gap; the bytes from the place on are spoken for.
            let mut pad = gap.start.max(reach.start);
            while pad.offset(len) <= gap.end && pad < reach.end {
                let range = pad..pad.offset(len);
                if !straddles(pad, trampoline::NEAR_LEN)
                    && !f.taken.iter().chain(&entry.written()).any(|taken| overlap(taken, &range))
                {
                    let padding = f.text.get(range)?.to_vec();
                    entry.form = Form::Springboard { pad, padding };
                    return Some(entry);
                }
                pad = pad.offset(1);
            }
        }
        None
    }

    /// The entry when `len` bytes are overwritten at `place`.
    fn overwriting(
        f: &Function<'_>,
        place: RemoteAddr,
        len: usize,
        branches: Option<&Branches>,
    ) -> Result<Self, EntryRefusal> {
        let written = place..place.offset(len as i64);
        let room = Self::room(f, place, len)?;
        let bytes = f.text.get(place..place.offset(room as i64)).ok_or(EntryRefusal::OutsideText(f.start))?;
        if let Some(other) = f.neighbours.iter().find(|r| written.contains(&r.start) && r.start > place) {
            let offset = other.start.0 - f.start.0;
            return Err(EntryRefusal::OtherEntry { start: f.start, at: other.start, offset });
        }
        if f.taken.iter().any(|taken| overlap(taken, &written)) {
            return Err(EntryRefusal::PaddingTaken(f.start));
        }

        let mut decoder = Decoder::with_ip(64, bytes, place.0, DecoderOptions::NONE);
        let mut boundaries = Vec::new();
        let mut ends = false;
        while decoder.position() < len && !ends {
            let at = RemoteAddr(decoder.ip());
            let instruction = decoder.decode();
            if instruction.is_invalid() {
                return Err(EntryRefusal::Undecodable(at));
            }
            boundaries.push(at);
            check_movable(&instruction, &written)?;
            ends = function::is_terminator(&instruction);
        }
        let displaced = decoder.position();
        let moved = place..place.offset(displaced as i64);

        for intruder in function::intruders(f, place.offset(1)..written.end, branches) {
            let (from, to) = intruder.ends();
            return Err(match intruder {
                // Moves along, to the same instruction's new place.
                Intruder::Branch { .. } if moved.contains(&from) && boundaries.contains(&to) => continue,
                Intruder::Branch { .. } => EntryRefusal::BranchInto { from, to, place },
                Intruder::Address { .. } => EntryRefusal::AddressTaken { from, to, place },
                Intruder::Table { .. } => EntryRefusal::TableInto { table: from, to, place },
            });
        }
        Ok(Self {
            start: f.start,
            place,
            form: Form::Direct,
            original: bytes[..displaced.max(len)].to_vec(),
            displaced: displaced as u8,
        })
    }

    /// How many bytes from `place` on belong to the function or to padding behind it; at least `need`.
    fn room(f: &Function<'_>, place: RemoteAddr, need: usize) -> Result<usize, EntryRefusal> {
        let own = f.end().distance_from(place).max(0) as usize;
        if own >= need {
            return Ok(own);
        }
        let room = padding::end_behind(f).distance_from(place).max(0) as usize;
        if room < need {
            return Err(EntryRefusal::TooShort { start: f.start, room, need });
        }
        Ok(room)
    }

    /// Refuses where the memory is not as in the file, in any byte that is overwritten or moved.
    fn check_foreign(&self, f: &Function<'_>) -> Result<(), EntryRefusal> {
        let Some(memory) = f.memory else { return Ok(()) };
        let moved = self.start..self.place.offset(self.original.len() as i64);
        for range in self.written().into_iter().chain([moved]) {
            let file = f.text.get(range.clone()).ok_or(EntryRefusal::OutsideText(f.start))?;
            let now = memory.get(range.clone()).ok_or(EntryRefusal::OutsideText(f.start))?;
            if let Some(i) = file.iter().zip(now).position(|(a, b)| a != b) {
                let what = match now[i] {
                    0xcc => ForeignKind::Breakpoint,
                    0xe8 => ForeignKind::Call,
                    0xe9 | 0xeb | 0xff => ForeignKind::Jump,
                    _ => ForeignKind::Change,
                };
                let offset = range.start.offset(i as i64).0.wrapping_sub(f.start.0);
                return Err(EntryRefusal::Foreign { start: f.start, offset, what });
            }
        }
        Ok(())
    }

    /// The function's first byte.
    #[must_use]
    pub fn start(&self) -> RemoteAddr {
        self.start
    }

    /// Where the redirect lies: the start, or behind the `endbr64` there.
    #[must_use]
    pub fn place(&self) -> RemoteAddr {
        self.place
    }

    /// Where the `jmp rel32` lies, from whose end new code has to be within 2 GiB.
    #[must_use]
    pub fn jump(&self) -> RemoteAddr {
        match &self.form {
            Form::Direct => self.place,
            Form::Springboard { pad, .. } => *pad,
        }
    }

    /// Whether the redirect goes through padding.
    #[must_use]
    pub fn is_springboard(&self) -> bool {
        matches!(self.form, Form::Springboard { .. })
    }

    /// Whether `jmp rel32` of this entry reaches `target`.
    #[must_use]
    pub fn reaches(&self, target: RemoteAddr) -> bool {
        trampoline::near(self.jump(), target).is_some()
    }

    /// Every range of bytes that redirects change.
    #[must_use]
    pub fn written(&self) -> Vec<Range<RemoteAddr>> {
        let near = trampoline::NEAR_LEN as i64;
        match &self.form {
            Form::Direct => vec![self.place..self.place.offset(near)],
            Form::Springboard { pad, .. } => {
                vec![*pad..pad.offset(near), self.place..self.place.offset(SHORT_LEN as i64)]
            }
        }
    }

    /// Where no thread's program counter or return address may lie when the first redirect is written: the interior of the
    /// bytes it overwrites. The place itself is no obstacle.
    #[must_use]
    pub fn watch_install(&self) -> Vec<Range<RemoteAddr>> {
        vec![self.place.offset(1)..self.place.offset(self.overwritten() as i64)]
    }

    /// Where no thread's program counter may lie when the original bytes come back: empty but for a springboard, whose
    /// padding a thread may be about to jump from.
    #[must_use]
    pub fn watch_restore(&self) -> Vec<Range<RemoteAddr>> {
        match &self.form {
            Form::Direct => Vec::new(),
            Form::Springboard { pad, .. } => vec![*pad..pad.offset(trampoline::NEAR_LEN as i64)],
        }
    }

    /// What to write, in this order, to lead the entry to `target`, whether it is original or leads elsewhere.
    ///
    /// # Errors
    /// Where `target` is out of the jump's reach: let it lead to a near trampoline.
    pub fn entry_to(&self, target: RemoteAddr) -> Result<Vec<Write>, OutOfReach> {
        let from = self.jump();
        let jump = trampoline::near(from, target).ok_or(OutOfReach { from, to: target })?;
        Ok(match &self.form {
            Form::Direct => vec![Write::new(self.place, &jump)],
            Form::Springboard { pad, .. } => {
                vec![Write::new(*pad, &jump), Write::new(self.place, &self.short_jump(*pad))]
            }
        })
    }

    /// What to write, in this order, to bring the original bytes back.
    #[must_use]
    pub fn restore(&self) -> Vec<Write> {
        let len = self.overwritten() - usize::from(canary!("restore-too-little"));
        let original = Write::new(self.place, &self.original[..len]);
        match &self.form {
            Form::Direct => vec![original],
            Form::Springboard { pad, padding } => vec![original, Write::new(*pad, padding)],
        }
    }

    /// What the entry holds now. `read` gives the bytes in memory at an address.
    ///
    /// # Errors
    /// Those of `read`.
    pub fn installed<E>(
        &self,
        mut read: impl FnMut(RemoteAddr, &mut [u8]) -> Result<(), E>,
    ) -> Result<Installed, E> {
        let mut bytes = [0; trampoline::NEAR_LEN];
        let now = &mut bytes[..self.overwritten()];
        read(self.place, now)?;
        let original = *now == self.original[..now.len()];
        if let Form::Springboard { pad, padding } = &self.form {
            let ours = *now == self.short_jump(*pad);
            read(*pad, &mut bytes)?;
            return Ok(match self.jump_to(bytes) {
                Some(to) if ours => Installed::Redirect(to),
                Some(to) if original && bytes != padding[..] => Installed::Half(to),
                _ if original => Installed::Original,
                _ => Installed::Other,
            });
        }
        Ok(match self.jump_to(bytes) {
            _ if original => Installed::Original,
            Some(to) => Installed::Redirect(to),
            None => Installed::Other,
        })
    }

    /// The instructions that a thunk takes over, in order, at their original addresses.
    #[must_use]
    pub fn displaced(&self) -> Vec<Instruction> {
        let bytes = &self.original[..self.displaced as usize];
        Decoder::with_ip(64, bytes, self.place.0, DecoderOptions::NONE).iter().collect()
    }

    /// The bytes of [`Entry::displaced`].
    #[must_use]
    pub fn displaced_bytes(&self) -> &[u8] {
        &self.original[..self.displaced as usize]
    }

    /// Where the function goes on behind the displaced instructions.
    #[must_use]
    pub fn resume(&self) -> RemoteAddr {
        self.place.offset(self.displaced.into())
    }

    /// Where these bytes lead from the place of the `jmp rel32`, if they are one.
    fn jump_to(&self, bytes: [u8; trampoline::NEAR_LEN]) -> Option<RemoteAddr> {
        let [0xe9, rel @ ..] = bytes else { return None };
        Some(self.jump().offset(trampoline::NEAR_LEN as i64 + i64::from(i32::from_le_bytes(rel))))
    }

    /// How many bytes at the place a redirect overwrites.
    fn overwritten(&self) -> usize {
        match self.form {
            Form::Direct => trampoline::NEAR_LEN,
            Form::Springboard { .. } => SHORT_LEN,
        }
    }

    fn short_jump(&self, pad: RemoteAddr) -> [u8; SHORT_LEN] {
        let rel = pad.distance_from(self.place.offset(SHORT_LEN as i64));
        assert!(i8::try_from(rel).is_ok(), "a springboard's padding lies within 128 bytes");
        [0xeb, rel as u8]
    }
}

/// Whether `instruction` can run in a thunk while `written` is overwritten.
fn check_movable(instruction: &Instruction, written: &Range<RemoteAddr>) -> Result<(), EntryRefusal> {
    let at = RemoteAddr(instruction.ip());
    let next = RemoteAddr(instruction.next_ip());
    let calls = matches!(instruction.flow_control(), FlowControl::Call | FlowControl::IndirectCall);
    let far = instruction.is_call_far() || instruction.is_call_far_indirect();
    let through_rsp = instruction.op_count() > 0
        && instruction.op0_kind() == OpKind::Register
        && instruction.op0_register() == Register::RSP;
    let truncated = matches!(instruction.op0_kind(), OpKind::NearBranch16 | OpKind::NearBranch32)
        || instruction.memory_base() == Register::EIP;
    if truncated || (calls && (far || through_rsp)) {
        return Err(EntryRefusal::Unmovable(at));
    }
    if calls && next < written.end {
        return Err(EntryRefusal::CallReturnsInto { at, to: next, place: written.start });
    }
    Ok(())
}

fn straddles(addr: RemoteAddr, len: usize) -> bool {
    addr.0 / PAGE != addr.offset(len as i64 - 1).0 / PAGE
}

fn overlap(a: &Range<RemoteAddr>, b: &Range<RemoteAddr>) -> bool {
    a.start < b.end && b.start < a.end
}

/// Builds the decoder's tables, which is done once in a process and otherwise when they are first needed.
pub(crate) fn build_decoder_tables() {
    let _: Instruction = Decoder::new(64, &[0x90], DecoderOptions::NONE).decode();
}
