//! Stubs: the code that an entry leads to while a transition runs, and that picks a side for the calling thread.
//!
//! A stub is made for its place and for one function, with every address an immediate, so it needs no data of its own.
//! What it does, in words: read the transition word; where that is 0, the transition has not begun, go to *source*; else
//! the word is the address of the pending table that is valid: look up this thread's fs base there. Who is pending goes to
//! *source* by the first table, and to *goal* by the second, which is that of a transition turned round; all others go to the
//! other side.
//!
//! A pending thread may be held up before its side is chosen: while the *gate*, a count that the tool sets, is above 0, and
//! the stack pointer not below what the thread's slot says, it counts that down and begins anew, so that it is found at a
//! place where it is in none of the functions (see `gate.rs`). A count that nobody renews runs out.
//!
//! What it keeps: every register, every flag and the 128 bytes below the stack pointer. Only r11 and the flags are free at a
//! function's entry by the ABI, but callers in the same unit may know better (gcc's -fipa-ra), and a function that loops
//! back to its own entry comes here with anything live, red zone included. So the stub steps over the red zone before
//! it pushes. It takes 160 bytes of stack below the stack pointer. It pushes no return address and executes no `ret`, so a
//! shadow stack does not see it; it ends in direct jumps or `notrack` ones, so indirect-branch tracking lets it pass.
//!
//! Races: the word is eight bytes, aligned, and read once. A thread that is stopped inside a stub (program counter in its range) may
//! have read the old word; that is harmless, for no store that begins, reverses or ends a transition changes the side
//! of any thread. Only a strike does, and a thread in a stub is not clean, so it is not struck; but for one that has not read
//! yet whether it is pending, and goes by the present word. The table's keys stay
//! in their slots (see [`crate::code::pending`]), so a probe that began before a reverse still ends right.
//!
//! It needs `rdfsbase` (`Target::open` sees to that) and `lahf` in 64-bit mode, which every CPU with `rdfsbase` has. The thread pointer's copy at
//! `fs:0` would be had in less time, but a thread need not have one.

use crate::RemoteAddr;
use crate::canary::canary;
use crate::code::pending::{Capacity, HASH_MULTIPLIER, PENDING, PENDING_OFFSET, SLOT_SIZE};
use crate::code::trampoline;
use std::ops::RangeInclusive;
use ugraft_runtime::layout::StubTemplate;

/// The bit of a pending table's address that is set for the second one, by which who is pending runs *goal*: each reverse goes from one
/// table to the other, so that the valid one says by its place whether the transition is turned round.
pub const SECOND_TABLE: u64 = PENDING as u64;

/// No stub is longer, wherever it lies.
pub const MAX_LEN: usize = 256;
/// Stubs begin at multiples of this.
pub const ALIGN: usize = 16;

/// The first and the last instruction, as offsets from the stub's start, at which a thread may stand that has not read yet whether
/// it is pending: struck there, it goes to the other side, if it [goes by](goes_by) the present transition word.
pub const UNDECIDED: RangeInclusive<i64> = 13..=140;
/// The first instruction at which rcx holds the transition word.
const WORD_READ: i64 = 26;
/// How much lower than at the stub's start the stack pointer is there.
pub const UNDECIDED_DEPTH: u64 = 128 + 4 * 8;

/// Whether a thread that stands at one of the [`UNDECIDED`] instructions with this in rcx takes its side by `word`: it has
/// not read the transition word yet, or what it has read is that.
///
/// A thread can be late: kept from running since before a reverse, it goes by the former word and looks into the former table, and
/// a strike in the present one is nothing to it.
#[must_use]
pub const fn goes_by(word: u64, offset: i64, rcx: u64) -> bool {
    offset < WORD_READ || rcx == word
}

/// What a stub is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stub {
    /// Where the transition word lies (8 bytes: the address of the valid pending table, or 0).
    pub word: RemoteAddr,
    /// Where the gate's count lies (32 bits, signed; writable by the target).
    pub gate: RemoteAddr,
    /// How many slots each of the tables has.
    pub capacity: Capacity,
    /// The implementation from before the transition: a thunk, a new function, or whatever is callable.
    pub source: RemoteAddr,
    /// The implementation the transition leads to.
    pub goal: RemoteAddr,
}

impl Stub {
    /// The code of this stub when it lies at `at`; at most [`MAX_LEN`] bytes.
    #[must_use]
    pub fn emit(&self, at: RemoteAddr) -> Vec<u8> {
        // All bits of an index in bytes into the table. Fits, as a table has at most 2^20 slots of 16 bytes.
        let index_mask = ((self.capacity.bytes() - SLOT_SIZE) as u32).to_le_bytes();
        let slot_shift = SLOT_SIZE.trailing_zeros() as u8;
        let mut c = Vec::with_capacity(MAX_LEN);

        let red_zone = if canary!("clobber-the-red-zone") { 0 } else { 0x80 };
        c.extend([0x48, 0x8d, 0x64, 0x24, red_zone]); // lea rsp, [rsp-128]   keep the red zone
        c.extend([0x50, 0x51, 0x52, 0x56]); //       push rax; push rcx; push rdx; push rsi
        c.push(0x9f); //                             lahf                 ah = SF ZF AF PF CF
        c.extend([0x0f, 0x90, 0xc0]); //             seto al
        let begin = c.len();
        c.extend([0x48, 0xb9]); //                   mov rcx, word
        c.extend(self.word.0.to_le_bytes());
        c.extend([0x48, 0x8b, 0x09]); //             mov rcx, [rcx]
        assert_eq!(c.len() as i64, WORD_READ);
        c.extend([0x48, 0x85, 0xc9]); //             test rcx, rcx
        c.extend([0x0f, 0x84, 0, 0, 0, 0]); //       jz source            too far for a short one
        let not_begun = c.len();

        c.extend([0xf3, 0x48, 0x0f, 0xae, 0xc2]); // rdfsbase rdx
        c.extend([0x48, 0x83, 0xfa, 0x01]); //       cmp rdx, 1           0 becomes NO_TLS_KEY
        c.extend([0x48, 0x83, 0xd2, 0x00]); //       adc rdx, 0
        c.extend([0x48, 0xbe]); //                   mov rsi, HASH_MULTIPLIER
        c.extend(HASH_MULTIPLIER.to_le_bytes());
        c.extend([0x48, 0x0f, 0xaf, 0xf2]); //       imul rsi, rdx
        // The top bits, not yet as a slot number but as an offset in bytes.
        c.extend([0x48, 0xc1, 0xee, 64 - slot_shift - self.capacity.log2()]); // shr rsi, ..
        c.extend([0x81, 0xe6]); //                   and esi, index_mask
        c.extend(index_mask);

        let probe = c.len();
        c.extend([0x48, 0x39, 0x14, 0x31]); //       cmp [rcx+rsi], rdx
        let hit = short_jump(&mut c, 0x74); //       je
        c.extend([0x48, 0x83, 0x3c, 0x31, 0x00]); // cmp qword [rcx+rsi], 0
        let miss = short_jump(&mut c, 0x74); //      je                   not listed: not pending
        c.extend([0x83, 0xc6, SLOT_SIZE as u8]); //  add esi, SLOT_SIZE
        c.extend([0x81, 0xe6]); //                   and esi, index_mask
        c.extend(index_mask);
        c.extend([0xeb, (probe as i64 - c.len() as i64 - 2) as u8]); // jmp probe
        land(&mut c, hit);
        c.extend([0x48, 0x8b, 0x54, 0x31, PENDING_OFFSET as u8]); // mov rdx, [rcx+rsi+PENDING_OFFSET]
        c.extend([0x84, 0xd2]); //                   test dl, dl
        let struck = short_jump(&mut c, 0x74); //    jz
        c.extend([0x48, 0xc1, 0xea, 0x08]); //       shr rdx, 8           from where on it is held
        let free = short_jump(&mut c, 0x74); //      jz
        c.extend([0x48, 0x39, 0xd4]); //             cmp rsp, rdx
        let nested = short_jump(&mut c, 0x72); //    jb
        c.extend([0x48, 0xba]); //                   mov rdx, gate
        c.extend(self.gate.0.to_le_bytes());
        c.extend([0x83, 0x3a, 0x00]); //             cmp dword [rdx], 0
        let open = short_jump(&mut c, 0x7e); //      jle
        c.extend([0xff, 0x0a]); //                   dec dword [rdx]      a count lost to another thread is no harm
        c.extend([0xf3, 0x90]); //                   pause
        c.push(0xe9); //                             jmp begin
        c.extend((begin as i32 - c.len() as i32 - 4).to_le_bytes());
        for skipped in [struck, free, nested, open] {
            land(&mut c, skipped);
        }
        assert_eq!(begin as i64..=c.len() as i64, UNDECIDED);
        c.extend([0x32, 0x4c, 0x31, PENDING_OFFSET as u8]); // xor cl, [rcx+rsi+PENDING_OFFSET]
        land(&mut c, miss);
        c.extend([0xf6, 0xc1, SECOND_TABLE as u8]); // test cl, SECOND_TABLE   pending by the first, or not by the second
        let differ = short_jump(&mut c, 0x75); //    jnz source

        leave(&mut c, at, self.goal);
        let distance = (c.len() - not_begun) as u32;
        c[not_begun - 4..not_begun].copy_from_slice(&distance.to_le_bytes());
        land(&mut c, differ);
        leave(&mut c, at, self.source);
        assert!(c.len() <= MAX_LEN);
        c
    }
}

/// The stub of a transition without a function's own addresses, to be filled in by the runtime for a library that comes while the
/// transition runs. Its jumps are far ones, so that it works wherever it lies.
#[must_use]
pub fn template(word: RemoteAddr, capacity: Capacity) -> StubTemplate {
    // Addresses that nothing has, far from each other and from where the stub is said to lie.
    const GATE: u64 = 0x7eee_0000_1111_2222;
    const SOURCE: u64 = 0x7eee_3333_0000_4444;
    const GOAL: u64 = 0x7eee_5555_6666_0000;
    let [gate, source, goal] = [GATE, SOURCE, GOAL].map(RemoteAddr);
    let code = Stub { word, gate, capacity, source, goal }.emit(RemoteAddr(0));
    let place = |address: u64| {
        let mut found = code.windows(8).enumerate().filter(|(_, bytes)| **bytes == address.to_le_bytes());
        let at = found.next().map(|(at, _)| at as u16);
        assert!(found.next().is_none(), "no other part of a stub looks like that");
        at.unwrap_or_else(|| unreachable!("a stub holds all of its addresses"))
    };
    let mut template = StubTemplate {
        len: code.len() as u32,
        gate_at: place(GATE),
        source_at: place(SOURCE),
        goal_at: place(GOAL),
        reserved: [0; 3],
        code: [0; MAX_LEN],
    };
    template.code[..code.len()].copy_from_slice(&code);
    template
}

/// Gives back flags and registers and jumps to `to`.
fn leave(c: &mut Vec<u8>, at: RemoteAddr, to: RemoteAddr) {
    c.extend([0x04, 0x7f]); //                                   add al, 127   overflows where al is 1: OF
    c.push(0x9e); //                                             sahf
    c.extend([0x5e, 0x5a, 0x59, 0x58]); //                       pop rsi; pop rdx; pop rcx; pop rax
    let red_zone = if canary!("clobber-the-red-zone") { 0 } else { 0x80 };
    c.extend([0x48, 0x8d, 0xa4, 0x24, red_zone, 0, 0, 0]); //        lea rsp, [rsp+128]
    trampoline::push(c, at, to);
}

/// Appends a branch with an 8-bit displacement that [`land`] fills in.
fn short_jump(c: &mut Vec<u8>, opcode: u8) -> usize {
    c.extend([opcode, 0]);
    c.len()
}

/// Lets the branch that ends at `from` lead to the end of `c`.
fn land(c: &mut [u8], from: usize) {
    let distance = c.len() - from;
    assert!(distance <= i8::MAX as usize, "a stub's own branches are short");
    c[from - 1] = distance as u8;
}
