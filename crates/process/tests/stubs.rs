//! Stubs, executed: they keep everything and pick the right side.
#![allow(unsafe_code)]

mod exec;

use exec::{Code, Random, end1_addr, end2_addr, fs_base, run};
use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicU8, Ordering};
use ugraft_process::RemoteAddr;
use ugraft_process::pending::{Capacity, PENDING_OFFSET, PendingTable, SLOT_SIZE};
use ugraft_process::stub::{MAX_LEN, Stub, WORD_BEGUN, WORD_SWAPPED, WORD_TABLE};

/// The part of the state area that stubs read, in our own memory.
struct Area {
    word: AtomicU8,
    tables: [UnsafeCell<Box<[u8]>>; 2],
}

// SAFETY: Tables change only while no other thread runs a stub, or by single bytes as strikes do.
unsafe impl Sync for Area {}

impl Area {
    fn new(capacity: Capacity) -> Self {
        let table = || UnsafeCell::new(vec![0; capacity.bytes()].into_boxed_slice());
        Self { word: AtomicU8::new(0), tables: [table(), table()] }
    }

    fn table_addr(&self, i: usize) -> RemoteAddr {
        // SAFETY: Only the address is taken.
        RemoteAddr(unsafe { (*self.tables[i].get()).as_ptr() as u64 })
    }

    fn set_table(&self, i: usize, table: &PendingTable) {
        // SAFETY: See the Sync impl.
        unsafe { (*self.tables[i].get()).copy_from_slice(table.as_bytes()) };
    }

    fn stub(&self, capacity: Capacity) -> Stub {
        Stub {
            word: RemoteAddr(self.word.as_ptr() as u64),
            tables: [self.table_addr(0), self.table_addr(1)],
            capacity,
            source: end1_addr(),
            goal: end2_addr(),
        }
    }
}

/// The contract, in one line.
fn model(word: u8, pending: [bool; 2]) -> u64 {
    let pending = pending[usize::from(word & WORD_TABLE != 0)];
    let swapped = word & WORD_SWAPPED != 0;
    if word & WORD_BEGUN != 0 && pending == swapped { 2 } else { 1 }
}

/// The stub near its ends, and far from them.
fn both_places(stub: &Stub) -> [Code; 2] {
    [end1_addr().0 & !0xfff, 0x1_0000_0000].map(|hint| {
        let mut code = Code::new(hint, 4096);
        let bytes = stub.emit(code.addr());
        assert!(bytes.len() <= MAX_LEN);
        code.write(0, &bytes);
        code.protect(true);
        code
    })
}

#[test]
fn keeps_everything_and_picks_the_side() {
    let capacity = Capacity::from_slots(16).unwrap();
    let area = Area::new(capacity);
    let codes = both_places(&area.stub(capacity));
    let mut random = Random(1);
    for round in 0..2000 {
        let pending = [round & 1 != 0, round & 2 != 0];
        for (i, pending) in pending.into_iter().enumerate() {
            let mut keys: Vec<u64> = (0..random.below(8)).map(|_| random.next()).collect();
            if pending || random.below(2) == 0 {
                keys.push(fs_base());
            }
            let mut table = PendingTable::build(keys, capacity).unwrap();
            if !pending {
                table.strike(fs_base());
            }
            assert_eq!(table.is_pending(fs_base()), pending);
            area.set_table(i, &table);
        }
        for word in 0..8 {
            area.word.store(word, Ordering::Relaxed);
            for code in &codes {
                let before = random.cpu();
                let after = run(code.addr(), &before);
                assert_eq!(after.end, model(word, pending), "word {word} pending {pending:?}");
                assert_eq!(after, before.at_end(after.end));
            }
        }
    }
    const { assert!(SLOT_SIZE == 16 && PENDING_OFFSET == 8) };
}
