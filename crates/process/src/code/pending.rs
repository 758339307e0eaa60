//! The pending tables: which threads a transition still waits for, in the form in which stubs read it.
//!
//! A table is an open-addressing hash table with linear probing that lies in the target's state area. A stub looks
//! its own thread up by fs base (the thread pointer), so a look-up costs the same for one thread as for thousands.
//!
//! Invariants, which [`crate::code::stub`] relies on without checking:
//! - the capacity is a power of two and fixed for a transition, since stubs hold its mask as an immediate;
//! - at least one slot has key 0, so every probe ends;
//! - a key once written keeps its slot for as long as the transition lasts. A thread may be stopped in the middle of a
//!   probe, for any time (a signal handler can run on top of it), and must find its key where it was. So a table that
//!   is used again is [renewed](PendingTable::renewed), not built anew;
//! - a table begins at a multiple of a slot's size, and the two of a transition at addresses that differ as
//!   [`tables_at`] has them;
//! - striking a thread is the store of one byte, so a tool that dies leaves it struck or not struck.

use crate::RemoteAddr;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// One slot, as it lies in the target.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Slot {
    /// [`key_of`] the thread's fs base; 0 where the slot was never used, which ends a probe.
    pub key: u64,
    /// In its lowest byte [`PENDING`] while the thread is pending, 0 once it is struck. In the others the stack pointer from which on
    /// the gate holds it, as it is where it is held; 0 if it does not (see `gate.rs`).
    pub pending: u64,
}

/// Bytes from one slot to the next.
pub const SLOT_SIZE: usize = size_of::<Slot>();
/// Where in a slot the byte lies that a strike clears.
pub const PENDING_OFFSET: usize = core::mem::offset_of!(Slot, pending);
/// What that byte is while the thread is pending. It is also the bit by which the addresses of the two tables differ, so that a
/// stub finds the side by one exclusive or (see [`crate::code::stub::SECOND_TABLE`]).
pub const PENDING: u8 = 16;
/// The key of a thread that has no thread pointer (fs base 0). All such threads share a slot.
pub const NO_TLS_KEY: u64 = 1;
/// Multiplier of the hash: 2^64 divided by the golden ratio, odd. Thread pointers differ by a common stride (stack
/// size plus guard), which the product's high bits spread evenly.
pub const HASH_MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;
/// Fewest slots of a table: room for threads that are born during the transition and pending after a reverse.
pub const MIN_CAPACITY: usize = 1024;
/// Most slots of a table (16 MiB).
pub const MAX_CAPACITY: usize = 1 << 20;
/// Slots per thread that is there when the transition begins; with a quarter in use, a probe looks at 1.2 slots.
const SLOTS_PER_THREAD: usize = 4;

const _: () = assert!(SLOT_SIZE == 16 && core::mem::offset_of!(Slot, key) == 0 && PENDING_OFFSET == 8);
const _: () = assert!(MIN_CAPACITY.is_power_of_two() && MAX_CAPACITY.is_power_of_two());
const _: () = assert!(HASH_MULTIPLIER % 2 == 1);
// So that the second table begins at a multiple of it, too.
const _: () = assert!(PENDING as usize == SLOT_SIZE);

/// Why a table could not be made or read back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PendingError {
    /// More threads than the largest table takes, or more than this transition's tables were made for.
    #[error(
        "{threads} threads do not fit into a pending table of {capacity} slots; try again when there are fewer"
    )]
    TooManyThreads {
        /// Distinct thread pointers.
        threads: usize,
        /// Slots there are.
        capacity: usize,
    },
    /// The bytes do not have the form of a table.
    #[error("the pending table in the target is damaged: {0}")]
    Damaged(&'static str),
}

/// Where the two tables of a transition lie from `start` on, a multiple of 32, and how many bytes they take there. The bit [`PENDING`] of
/// the address is clear for the first and set for the second.
#[must_use]
pub const fn tables_at(start: RemoteAddr, capacity: Capacity) -> ([RemoteAddr; 2], u64) {
    let len = capacity.bytes() as u64;
    ([start, start.offset(len as i64 + PENDING as i64)], 2 * len + PENDING as u64)
}

/// How many slots a transition's tables have: a power of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Capacity(u8);

impl Capacity {
    /// Enough for a transition that begins with `threads` threads.
    ///
    /// # Errors
    /// [`PendingError::TooManyThreads`] beyond [`MAX_CAPACITY`] / 4 threads.
    pub fn for_threads(threads: usize) -> Result<Self, PendingError> {
        let slots = threads.saturating_mul(SLOTS_PER_THREAD).max(MIN_CAPACITY);
        if slots > MAX_CAPACITY {
            return Err(PendingError::TooManyThreads { threads, capacity: MAX_CAPACITY });
        }
        Ok(Self(slots.next_power_of_two().trailing_zeros() as u8))
    }

    /// The capacity of exactly `slots` slots; `None` unless that is a power of two from 4 to [`MAX_CAPACITY`].
    #[must_use]
    pub fn from_slots(slots: usize) -> Option<Self> {
        (slots.is_power_of_two() && (4..=MAX_CAPACITY).contains(&slots))
            .then(|| Self(slots.trailing_zeros() as u8))
    }

    /// How many slots.
    #[must_use]
    pub const fn slots(self) -> usize {
        1 << self.0
    }

    /// How many bytes a table takes.
    #[must_use]
    pub const fn bytes(self) -> usize {
        self.slots() * SLOT_SIZE
    }

    /// The binary logarithm of the number of slots.
    #[must_use]
    pub const fn log2(self) -> u8 {
        self.0
    }

    /// Most keys a table takes: three quarters, so that probes end and stay short.
    #[must_use]
    pub const fn max_keys(self) -> usize {
        self.slots() / 4 * 3
    }

    /// The slot where the search for `key` begins.
    #[must_use]
    pub const fn home(self, key: u64) -> usize {
        (key.wrapping_mul(HASH_MULTIPLIER) >> (64 - self.0)) as usize
    }
}

/// The key under which a thread with this fs base is listed.
///
/// Key 0 marks an unused slot, so a thread without a thread pointer is listed as [`NO_TLS_KEY`], an address that is
/// never mapped. Threads with the same fs base (made by a bare `clone`, or between `vfork` and `exec`) share a key:
/// they can only be struck together, when the stacks of all of them are clean.
#[must_use]
pub const fn key_of(fs_base: u64) -> u64 {
    if fs_base == 0 { NO_TLS_KEY } else { fs_base }
}

/// A table, outside the target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PendingTable {
    capacity: Capacity,
    slots: Vec<Slot>,
}

impl PendingTable {
    /// A table in which the threads with these fs bases are pending, and no others. An fs base may occur repeatedly.
    ///
    /// # Errors
    /// [`PendingError::TooManyThreads`].
    pub fn build(fs_bases: impl IntoIterator<Item = u64>, capacity: Capacity) -> Result<Self, PendingError> {
        Self { capacity, slots: vec![Slot::default(); capacity.slots()] }.renewed(fs_bases)
    }

    /// The same table with the threads of these fs bases pending and no others, every key it ever held still in its
    /// place. For the table that a reverse brings back into use.
    ///
    /// # Errors
    /// [`PendingError::TooManyThreads`], where the keys of former threads count too.
    pub fn renewed(mut self, fs_bases: impl IntoIterator<Item = u64>) -> Result<Self, PendingError> {
        for slot in &mut self.slots {
            slot.pending = 0;
        }
        let mut used = self.slots.iter().filter(|slot| slot.key != 0).count();
        for fs_base in fs_bases {
            let key = key_of(fs_base);
            let i = self.find(key);
            if self.slots[i].key == 0 {
                used += 1;
                if used > self.capacity.max_keys() {
                    return Err(PendingError::TooManyThreads {
                        threads: used,
                        capacity: self.capacity.slots(),
                    });
                }
            }
            self.slots[i] = Slot { key, pending: u64::from(PENDING) };
        }
        Ok(self)
    }

    /// Reads a table back from the target's bytes.
    ///
    /// # Errors
    /// [`PendingError::Damaged`] where the bytes are no table that [`PendingTable::build`] and strikes can have made.
    pub fn parse(bytes: &[u8]) -> Result<Self, PendingError> {
        let slots = <[Slot]>::ref_from_bytes(bytes)
            .map(<[Slot]>::to_vec)
            .or_else(|_| {
                // The copy may lie unaligned in a buffer of ours.
                bytes.chunks(SLOT_SIZE).map(Slot::read_from_bytes).collect::<Result<Vec<_>, _>>()
            })
            .map_err(|_| PendingError::Damaged("its length is not a whole number of slots"))?;
        let capacity = Capacity::from_slots(slots.len())
            .ok_or(PendingError::Damaged("its number of slots is not a power of two within the limits"))?;
        let table = Self { capacity, slots };
        if table.slots.iter().filter(|slot| slot.key != 0).count() > capacity.max_keys() {
            return Err(PendingError::Damaged("it is overfull"));
        }
        for (i, slot) in table.slots.iter().enumerate() {
            if !matches!(slot.pending as u8, 0 | PENDING) || (slot.key == 0 && slot.pending != 0) {
                return Err(PendingError::Damaged("a slot is neither pending nor struck"));
            }
            if slot.key != 0 && table.find(slot.key) != i {
                return Err(PendingError::Damaged("a key cannot be found from its hash"));
            }
        }
        Ok(table)
    }

    /// How many slots.
    #[must_use]
    pub fn capacity(&self) -> Capacity {
        self.capacity
    }

    /// The bytes to write into the target.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.slots.as_bytes()
    }

    /// Whether threads with this fs base are pending: what a stub would find.
    #[must_use]
    pub fn is_pending(&self, fs_base: u64) -> bool {
        self.slots[self.find(key_of(fs_base))].pending as u8 == PENDING
    }

    /// The keys (see [`key_of`]) that are pending, in no particular order.
    pub fn pending(&self) -> impl Iterator<Item = u64> {
        self.slots.iter().filter(|slot| slot.pending as u8 == PENDING).map(|slot| slot.key)
    }

    /// Offset in bytes, from the table's start, of the byte whose clearing strikes this fs base; `None` where it is not
    /// listed.
    #[must_use]
    pub fn strike_offset(&self, fs_base: u64) -> Option<usize> {
        let i = self.find(key_of(fs_base));
        (self.slots[i].key != 0).then_some(i * SLOT_SIZE + PENDING_OFFSET)
    }

    /// What to write, and at what offset in bytes from the table's start, to have the gate hold this fs base from this stack
    /// pointer on; `None` where it is not listed. Not at once, which does no harm: who reads half of it waits too often or
    /// not at all.
    #[must_use]
    pub fn hold(&self, fs_base: u64, from: u64) -> Option<(usize, [u8; 7])> {
        let mut bytes = [0; 7];
        bytes.copy_from_slice(&from.to_le_bytes()[..7]);
        Some((self.strike_offset(fs_base)? + 1, bytes))
    }

    /// Strikes this fs base in the copy; returns the offset at which to store a zero byte in the target.
    pub fn strike(&mut self, fs_base: u64) -> Option<usize> {
        let offset = self.strike_offset(fs_base)?;
        self.slots[offset / SLOT_SIZE].pending = 0;
        Some(offset)
    }

    /// The slot of `key`, or the unused one that ends the probe for it. There is one: a table is never overfull.
    fn find(&self, key: u64) -> usize {
        let mask = self.capacity.slots() - 1;
        let mut i = self.capacity.home(key);
        while self.slots[i].key != key && self.slots[i].key != 0 {
            i = (i + 1) & mask;
        }
        i
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn capacity_is_a_power_of_two_with_room() {
        for (threads, slots) in [(0, 1024), (256, 1024), (257, 2048), (1000, 4096), (262_144, 1 << 20)] {
            assert_eq!(Capacity::for_threads(threads).unwrap().slots(), slots);
        }
        assert_eq!(
            Capacity::for_threads(262_145),
            Err(PendingError::TooManyThreads { threads: 262_145, capacity: MAX_CAPACITY })
        );
        assert_eq!(Capacity::from_slots(2), None);
        assert_eq!(Capacity::from_slots(48), None);
        assert_eq!(Capacity::from_slots(MAX_CAPACITY * 2), None);
    }

    #[test]
    fn layout_is_what_stubs_read() {
        let capacity = Capacity::from_slots(4).unwrap();
        let table = PendingTable::build([0x7f12_3456_7740], capacity).unwrap();
        let home = capacity.home(0x7f12_3456_7740);
        let mut expected = [0; 64];
        expected[home * 16..][..8].copy_from_slice(&0x7f12_3456_7740u64.to_le_bytes());
        expected[home * 16 + 8] = PENDING;
        assert_eq!(table.as_bytes(), expected);
        assert_eq!(table.strike_offset(0x7f12_3456_7740), Some(home * 16 + 8));
        assert_eq!(table.strike_offset(0x7f12_3456_7741), None);
    }

    #[test]
    fn threads_without_thread_pointer_share_a_slot() {
        let mut table = PendingTable::build([0, 0, 4096], Capacity::from_slots(8).unwrap()).unwrap();
        assert!(table.is_pending(0));
        assert_eq!(table.pending().collect::<BTreeSet<_>>(), BTreeSet::from([NO_TLS_KEY, 4096]));
        table.strike(0);
        assert!(!table.is_pending(0) && table.is_pending(4096));
    }

    #[test]
    fn is_never_full() {
        let capacity = Capacity::from_slots(8).unwrap();
        assert!(PendingTable::build(1..=6, capacity).is_ok());
        let refusal = PendingTable::build(1..=7, capacity);
        assert_eq!(refusal, Err(PendingError::TooManyThreads { threads: 7, capacity: 8 }));
    }

    #[test]
    fn refuses_bytes_that_are_no_table() {
        let table = PendingTable::build([0x1000, 0x2000], Capacity::from_slots(4).unwrap()).unwrap();
        let good = table.as_bytes();
        let at = table.strike_offset(0x1000).unwrap() - PENDING_OFFSET;
        let damaged = |i: usize, byte: u8| {
            let mut bytes = good.to_vec();
            bytes[i] = byte;
            PendingTable::parse(&bytes)
        };
        assert_eq!(PendingTable::parse(good).as_ref(), Ok(&table));
        assert!(matches!(damaged(at + 8, 2), Err(PendingError::Damaged(_))));
        assert!(matches!(damaged(at + 7, 0x80), Err(PendingError::Damaged(_))));
        assert!(matches!(PendingTable::parse(&good[1..]), Err(PendingError::Damaged(_))));
        assert!(matches!(PendingTable::parse(&good[16..]), Err(PendingError::Damaged(_))));
        assert!(matches!(PendingTable::parse(&[]), Err(PendingError::Damaged(_))));
        assert!(matches!(PendingTable::parse(&[1; 64]), Err(PendingError::Damaged(_))));
    }

    proptest! {
        #[test]
        fn renewing_moves_no_key(
            first in prop::collection::vec(0u64..64, 0..20),
            second in prop::collection::vec(0u64..64, 0..20),
        ) {
            let capacity = Capacity::from_slots(64).unwrap();
            let table = PendingTable::build(first.iter().map(|k| k << 12), capacity).unwrap();
            let places: Vec<_> = first.iter().map(|k| table.strike_offset(k << 12)).collect();
            let renewed = table.renewed(second.iter().map(|k| k << 12)).unwrap();
            for (key, place) in first.iter().zip(places) {
                prop_assert_eq!(renewed.strike_offset(key << 12), place);
            }
            for key in 0..64 {
                prop_assert_eq!(renewed.is_pending(key << 12), second.contains(&key));
            }
            let read_back = PendingTable::parse(renewed.as_bytes()).unwrap();
            prop_assert_eq!(&read_back, &renewed);
            // A copy that lies at an odd address is read all the same.
            let mut odd = vec![0];
            odd.extend(renewed.as_bytes());
            prop_assert_eq!(PendingTable::parse(&odd[1..]).unwrap(), renewed);
        }
    }
}
