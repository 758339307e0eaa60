//! Stubs, executed: they keep everything and pick the right side.
#![allow(unsafe_code)]

mod exec;

use exec::{Code, Random, end1_addr, end2_addr, fs_base, run};
use iced_x86::{Decoder, DecoderOptions, Mnemonic};
use std::arch::naked_asm;
use std::cell::UnsafeCell;
use std::collections::HashSet;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, AtomicU8, AtomicU64, Ordering};
use std::time::Instant;
use ugraft_process::RemoteAddr;
use ugraft_process::code::pending::{Capacity, HASH_MULTIPLIER, PendingTable, key_of, tables_at};
use ugraft_process::code::stub::{MAX_LEN, Stub, UNDECIDED, UNDECIDED_DEPTH, goes_by};
use ugraft_process::code::trampoline;

/// What stubs read, in our own memory.
struct Area {
    word: AtomicU64,
    gate: AtomicI32,
    tables: [RemoteAddr; 2],
    /// Where the tables lie.
    _memory: UnsafeCell<Box<[Aligned]>>,
}

/// Memory at a multiple of its size.
#[derive(Clone)]
#[repr(align(32))]
struct Aligned(#[expect(dead_code, reason = "for its size")] [u8; 32]);

// SAFETY: Tables change as a whole only while no other thread runs a stub; else by single bytes, atomically.
unsafe impl Sync for Area {}

impl Area {
    fn new(capacity: Capacity) -> Self {
        let (_, len) = tables_at(RemoteAddr(0), capacity);
        let memory = vec![Aligned([0; 32]); (len as usize).div_ceil(32)];
        let mut memory = memory.into_boxed_slice();
        let (tables, _) = tables_at(RemoteAddr(memory.as_mut_ptr() as u64), capacity);
        let (word, gate) = (AtomicU64::new(0), AtomicI32::new(0));
        Self { word, gate, tables, _memory: UnsafeCell::new(memory) }
    }

    fn set_table(&self, i: usize, table: &PendingTable) {
        self.write(i, 0, table.as_bytes());
    }

    fn write(&self, i: usize, offset: usize, bytes: &[u8]) {
        let to = (self.tables[i].0 as usize + offset) as *mut u8;
        // SAFETY: Within the table; and see the Sync impl.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
    }

    /// The one byte that strikes a thread.
    fn strike(&self, i: usize, offset: usize) {
        // SAFETY: Within the table; stubs read the byte with one load.
        unsafe { AtomicU8::from_ptr((self.tables[i].0 as usize + offset) as *mut u8) }
            .store(0, Ordering::Release);
    }

    /// Begins, or turns round, so that this table is valid; `None` is before the begin.
    fn make_valid(&self, table: Option<usize>) {
        self.word.store(table.map_or(0, |table| self.tables[table].0), Ordering::SeqCst);
    }

    fn stub(&self, capacity: Capacity) -> Stub {
        Stub {
            word: RemoteAddr(self.word.as_ptr() as u64),
            gate: RemoteAddr(self.gate.as_ptr() as u64),
            capacity,
            source: end1_addr(),
            goal: end2_addr(),
        }
    }
}

/// The contract, in one line: which end, by the table that is valid and by whether it has the thread pending.
fn model(valid: Option<usize>, pending: [bool; 2]) -> u64 {
    if valid.is_some_and(|table| pending[table] == (table == 1)) { 2 } else { 1 }
}

const WORDS: [Option<usize>; 3] = [None, Some(0), Some(1)];

/// The stub, alone in a mapping near `hint`.
fn place(stub: &Stub, hint: u64) -> Code {
    let mut code = Code::new(hint, 4096);
    let bytes = stub.emit(code.addr());
    assert!(bytes.len() <= MAX_LEN);
    code.write(0, &bytes);
    code.protect(true);
    code
}

/// Near its ends, so that it ends in direct jumps, and far from them.
fn both_places(stub: &Stub) -> [Code; 2] {
    let codes = [place(stub, (end1_addr().0 - (64 << 20)) & !0xfff), place(stub, 0x1_0000_0000)];
    assert!(trampoline::near(codes[0].addr(), end1_addr()).is_some());
    assert!(trampoline::near(codes[1].addr(), end1_addr()).is_none());
    codes
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
        for valid in WORDS {
            area.make_valid(valid);
            for code in &codes {
                let before = random.cpu();
                let after = run(code.addr(), &before);
                assert_eq!(after.end, model(valid, pending), "valid {valid:?} pending {pending:?}");
                assert_eq!(after, before.at_end(after.end));
            }
        }
    }
}

#[test]
fn random_tables_against_a_set() {
    /// Per capacity. The debug build takes its time for each.
    const TABLES: u64 = if cfg!(debug_assertions) { 25_000 } else { 250_000 };
    let mut random = Random(7);
    for capacity in [4, 8, 16, 64].map(|slots| Capacity::from_slots(slots).unwrap()) {
        let area = Area::new(capacity);
        let code = place(&area.stub(capacity), 0x1_0000_0000);
        // User addresses and the thread without a thread pointer, in the order of their hashes: neighbours collide.
        let mut pool: Vec<u64> = (0..256).map(|_| random.next() >> 17).chain([0, 2, 4096]).collect();
        pool.sort_unstable_by_key(|key| key_of(*key).wrapping_mul(HASH_MULTIPLIER));
        for round in 0..TABLES {
            let near = random.next() as usize;
            let mut key = || pool[(near % pool.len() + random.below(9) as usize) % pool.len()];
            let keys: Vec<u64> = (0..capacity.max_keys().min(7)).map(|_| key()).collect();
            let fs_base = key();
            let mut table = PendingTable::build(keys.iter().copied(), capacity).unwrap();
            let mut pending: HashSet<u64> = keys.iter().map(|key| key_of(*key)).collect();
            for key in &keys {
                if random.below(3) == 0 {
                    table.strike(*key);
                    pending.remove(&key_of(*key));
                }
            }
            let valid = Some((round & 1) as usize);
            area.set_table((round & 1) as usize, &table);
            area.make_valid(valid);
            let mut cpu = exec::Cpu::new([round; 15], 0, [0; 16], [0; 16]);
            cpu.fs_base = fs_base;
            let is_pending = pending.contains(&key_of(fs_base));
            assert_eq!(table.is_pending(fs_base), is_pending);
            let end = run(code.addr(), &cpu).end;
            assert_eq!(end, model(valid, [is_pending; 2]), "round {round} {keys:x?} {fs_base:#x}");
        }
    }
}

/// Who is pending waits at the gate for as many turns as it has, keeps everything, and goes on to the side it was on; nobody
/// else waits, nor who is pending when the gate is at 0 or below, or who has no place on its stack to be held at, or is below
/// it.
#[test]
fn the_gate_counts_down_for_pending_threads_only() {
    let capacity = Capacity::from_slots(16).unwrap();
    let area = Area::new(capacity);
    let codes = both_places(&area.stub(capacity));
    let mut random = Random(3);
    for round in 0..2000 {
        let turns = random.below(50) as i32 - 5;
        let (valid, pending) = (WORDS[random.below(3) as usize], round & 1 != 0);
        let mut table = PendingTable::build([fs_base(), 4096], capacity).unwrap();
        if !pending {
            table.strike(fs_base());
        }
        let listed = valid.unwrap_or_default();
        area.set_table(listed, &table);
        let here = &raw const table as u64;
        let (from, held) =
            [(0, false), (1, true), (here >> 1, true), (here << 1, false)][random.below(4) as usize];
        let (offset, bytes) = table.hold(fs_base(), from).unwrap();
        area.write(listed, offset, &bytes);
        area.make_valid(valid);
        for code in &codes {
            area.gate.store(turns, Ordering::SeqCst);
            let before = random.cpu();
            let after = run(code.addr(), &before);
            assert_eq!(after, before.at_end(model(valid, [pending; 2])));
            let left = if valid.is_some() && pending && held { turns.min(0) } else { turns };
            assert_eq!(area.gate.load(Ordering::SeqCst), left);
        }
    }
}

/// Who waits at the gate and is struck goes to the goal at once.
#[test]
fn a_thread_that_waits_is_struck() {
    let capacity = Capacity::from_slots(16).unwrap();
    let area = Area::new(capacity);
    let code = place(&area.stub(capacity), 0x1_0000_0000);
    let base = AtomicU64::new(0);
    let ready = Barrier::new(2);
    for _ in 0..50 {
        std::thread::scope(|scope| {
            let caller = scope.spawn(|| {
                base.store(fs_base(), Ordering::SeqCst);
                ready.wait();
                ready.wait();
                let cpu = Random(5).cpu();
                let after = run(code.addr(), &cpu);
                assert_eq!(after, cpu.at_end(after.end));
                after.end
            });
            ready.wait();
            let key = base.load(Ordering::SeqCst);
            let table = PendingTable::build([key], capacity).unwrap();
            area.set_table(0, &table);
            let (offset, bytes) = table.hold(key, 1).unwrap();
            area.write(0, offset, &bytes);
            area.make_valid(Some(0));
            // For ever, if nobody strikes it.
            area.gate.store(i32::MAX, Ordering::SeqCst);
            ready.wait();
            while area.gate.load(Ordering::SeqCst) == i32::MAX {
                std::thread::yield_now();
            }
            area.strike(0, table.strike_offset(key).unwrap());
            assert_eq!(caller.join().unwrap(), 2);
        });
    }
}

/// What the handler of single steps waits for, and what it does there: a reverse.
static STEPPED: Stepped = Stepped {
    wanted: AtomicU64::new(0),
    area: AtomicPtr::new(std::ptr::null_mut()),
    rcx: AtomicU64::new(NOT_THERE),
};

struct Stepped {
    /// The instruction before which the word changes.
    wanted: AtomicU64,
    area: AtomicPtr<Area>,
    /// What was in rcx there.
    rcx: AtomicU64,
}

/// In place of what was in rcx.
const NOT_THERE: u64 = u64::MAX;

/// The flag that makes every instruction end in SIGTRAP.
const TRAP_FLAG: u64 = 1 << 8;

extern "C" fn step(_: i32, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: The kernel hands its handlers a context that is theirs until they return.
    let regs = unsafe { &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    let wanted = STEPPED.wanted.load(Ordering::SeqCst);
    let here = regs[libc::REG_RIP as usize] as u64;
    if wanted != 0 && here != wanted {
        return;
    }
    regs[libc::REG_EFL as usize] &= !(TRAP_FLAG as i64);
    if here != wanted {
        return;
    }
    STEPPED.rcx.store(regs[libc::REG_RCX as usize] as u64, Ordering::SeqCst);
    // SAFETY: It points to an area that outlives the steps.
    unsafe { &*STEPPED.area.load(Ordering::SeqCst) }.make_valid(Some(1));
}

/// A thread that stands at one of the undecided instructions while the transition is turned round, and is struck there: if it is
/// said to go by the new word it goes to the source, as it must then; else by the old one to the goal.
#[test]
fn a_late_thread_goes_by_what_it_has_read() {
    let capacity = Capacity::from_slots(16).unwrap();
    let area = Area::new(capacity);
    let code = place(&area.stub(capacity), 0x1_0000_0000);
    STEPPED.area.store((&raw const area).cast_mut(), Ordering::SeqCst);
    // SAFETY: The handler does nothing but atomic stores; the structure lives for the call.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = step as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        assert_eq!(libc::sigaction(libc::SIGTRAP, &action, std::ptr::null_mut()), 0);
    }
    // Not listed before the reverse, and struck after it.
    area.set_table(0, &PendingTable::build([4096], capacity).unwrap());
    let mut struck = PendingTable::build([fs_base()], capacity).unwrap();
    struck.strike(fs_base());
    area.set_table(1, &struck);
    let (mut present, mut late) = (0, 0);
    for i in Decoder::with_ip(64, &area.stub(capacity).emit(code.addr()), code.addr().0, DecoderOptions::NONE)
    {
        let offset = (i.ip() - code.addr().0) as i64;
        if !UNDECIDED.contains(&offset) {
            continue;
        }
        area.make_valid(Some(0));
        STEPPED.rcx.store(NOT_THERE, Ordering::SeqCst);
        STEPPED.wanted.store(i.ip(), Ordering::SeqCst);
        let mut cpu = Random(offset as u64).cpu();
        cpu.flags |= TRAP_FLAG;
        let end = run(code.addr(), &cpu).end;
        STEPPED.wanted.store(0, Ordering::SeqCst);
        let rcx = STEPPED.rcx.load(Ordering::SeqCst);
        if rcx == NOT_THERE {
            // Only listed threads come here.
            continue;
        }
        if goes_by(area.tables[1].0, offset, rcx) {
            assert_eq!(end, 1, "at {offset}");
            present += 1;
        } else {
            assert_eq!(end, 2, "at {offset}");
            late += 1;
        }
    }
    assert!(present == 2 && late > 10, "{present} {late}");
}

/// A transition as a whole, over and over, with threads that keep calling: each is at the source until it is struck and at the
/// goal from then on; a reverse changes nobody's side but by strikes.
#[test]
fn threads_change_sides_only_when_struck() {
    const THREADS: usize = 6;
    let capacity = Capacity::for_threads(THREADS).unwrap();
    let area = Area::new(capacity);
    let code = place(&area.stub(capacity), (end1_addr().0 - (64 << 20)) & !0xfff);
    let bases: Vec<AtomicU64> = (0..THREADS).map(|_| AtomicU64::new(0)).collect();
    // At which end each thread may be, as bits (1, 2 or both), by what it reads before and after a call.
    let allowed: Vec<AtomicU64> = (0..THREADS).map(|_| AtomicU64::new(1)).collect();
    let calls: Vec<AtomicU64> = (0..THREADS).map(|_| AtomicU64::new(0)).collect();
    let stop = AtomicBool::new(false);
    let ready = Barrier::new(THREADS + 1);
    std::thread::scope(|scope| {
        for i in 0..THREADS {
            let (code, bases, allowed, calls, stop, ready) = (&code, &bases, &allowed, &calls, &stop, &ready);
            scope.spawn(move || {
                bases[i].store(fs_base(), Ordering::SeqCst);
                ready.wait();
                let mut random = Random(i as u64 + 1);
                while !stop.load(Ordering::SeqCst) {
                    let before = allowed[i].load(Ordering::SeqCst);
                    let cpu = random.cpu();
                    let after = run(code.addr(), &cpu);
                    let then = allowed[i].load(Ordering::SeqCst);
                    // On failure the scope must still end.
                    if after != cpu.at_end(after.end) || after.end & (before | then) == 0 {
                        stop.store(true, Ordering::SeqCst);
                        panic!("thread {i} at end {}, allowed {before} to {then}", after.end);
                    }
                    calls[i].fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        ready.wait();
        // Some calls of every thread, all of them begun after now.
        let settle = || {
            let seen: Vec<u64> = calls.iter().map(|c| c.load(Ordering::SeqCst)).collect();
            while !stop.load(Ordering::SeqCst)
                && calls.iter().zip(&seen).any(|(now, seen)| now.load(Ordering::SeqCst) < seen + 2)
            {
                std::thread::yield_now();
            }
        };
        let all: Vec<u64> = bases.iter().map(|b| b.load(Ordering::SeqCst)).collect();
        let mut random = Random(3);
        for _ in 0..50 {
            // Everybody is at the source. Begin.
            let mut table = PendingTable::build(all.iter().copied(), capacity).unwrap();
            area.set_table(0, &table);
            area.make_valid(Some(0));
            settle();
            let mut at_goal = Vec::new();
            for (i, base) in all.iter().enumerate() {
                if random.below(2) == 0 {
                    let offset = table.strike(*base).unwrap();
                    allowed[i].store(3, Ordering::SeqCst);
                    area.strike(0, offset);
                    settle();
                    allowed[i].store(2, Ordering::SeqCst);
                    at_goal.push(i);
                }
            }
            settle();
            // Reverse: who is at the goal is pending now.
            let mut back = PendingTable::build(at_goal.iter().map(|i| all[*i]), capacity).unwrap();
            area.set_table(1, &back);
            area.make_valid(Some(1));
            settle();
            for i in at_goal {
                let offset = back.strike(all[i]).unwrap();
                allowed[i].store(3, Ordering::SeqCst);
                area.strike(1, offset);
                settle();
                allowed[i].store(1, Ordering::SeqCst);
            }
            settle();
            area.make_valid(None);
        }
        stop.store(true, Ordering::SeqCst);
    });
    assert!(calls.iter().all(|c| c.load(Ordering::SeqCst) > 100));
}

/// The code as a disassembler sees it: nothing but the instructions that the head of the module allows.
#[test]
fn disassembles_to_what_is_documented() {
    let stub = Stub {
        word: RemoteAddr(0x1111_2222_3333_4444),
        gate: RemoteAddr(0x4444_5555_6666_7770),
        capacity: Capacity::for_threads(1000).unwrap(),
        source: RemoteAddr(0x7000_0000),
        goal: RemoteAddr(0x7fff_0000_0000),
    };
    let code = stub.emit(RemoteAddr(0x40_0000));
    let instructions: Vec<_> =
        Decoder::with_ip(64, &code, 0x40_0000, DecoderOptions::NONE).into_iter().collect();
    let mnemonics: Vec<Mnemonic> = instructions.iter().map(|i| i.mnemonic()).collect();
    for forbidden in [Mnemonic::Ret, Mnemonic::Call, Mnemonic::Pushfq, Mnemonic::Popfq] {
        assert!(!mnemonics.contains(&forbidden), "{forbidden:?}");
    }
    let jumps: Vec<u64> =
        instructions.iter().filter(|i| i.mnemonic() == Mnemonic::Jmp).map(|i| i.near_branch64()).collect();
    assert_eq!(jumps.last(), Some(&stub.source.0));
    assert!(code.windows(8).any(|w| w == stub.goal.0.to_le_bytes()));
    assert_eq!(mnemonics.iter().filter(|m| **m == Mnemonic::Push).count(), 4);
    assert_eq!(mnemonics.iter().filter(|m| **m == Mnemonic::Rdfsbase).count(), 1);
    // Between the ends of what is undecided nothing moves the stack pointer, and the last of it is what decides.
    let undecided = instructions.iter().filter(|i| UNDECIDED.contains(&(i.ip() as i64 - 0x40_0000)));
    assert!(undecided.clone().all(|i| i.stack_pointer_increment() == 0));
    assert_eq!(undecided.clone().next_back().unwrap().mnemonic(), Mnemonic::Xor);
    let before = instructions.iter().take_while(|i| (i.ip() as i64) < 0x40_0000 + UNDECIDED.start());
    let depth: i32 = before
        .map(|i| i.stack_pointer_increment() - if i.mnemonic() == Mnemonic::Lea { 128 } else { 0 })
        .sum();
    assert_eq!(-depth as u64, UNDECIDED_DEPTH);
}

/// Calls `target`, a function without arguments, `n` times.
#[unsafe(naked)]
extern "C" fn call_repeatedly(_target: u64, _n: u64) {
    naked_asm!(
        "push rbx; push r12; mov rbx, rsi; mov r12, rdi",
        "2: call r12; dec rbx; jnz 2b",
        "pop r12; pop rbx; ret"
    )
}

#[unsafe(naked)]
extern "C" fn bare() {
    naked_asm!("ret")
}

/// Nanoseconds per call through a bare jump and through a stub: `cargo test --test stubs -- --ignored --nocapture`.
#[test]
#[ignore = "measures; asserts nothing"]
fn cost() {
    const CALLS: u64 = 20_000;
    // The shortest of many short batches: what it costs when nothing interferes.
    let measure = |target: RemoteAddr| {
        (0..3000)
            .map(|_| {
                let begin = Instant::now();
                call_repeatedly(target.0, CALLS);
                begin.elapsed().as_secs_f64() * 1e9 / CALLS as f64
            })
            .fold(f64::INFINITY, f64::min)
    };
    let bare_addr = RemoteAddr(bare as *const () as u64);
    let mut jump = Code::new((bare_addr.0 - (64 << 20)) & !0xfff, 4096);
    jump.write(0, &trampoline::near(jump.addr(), bare_addr).unwrap());
    jump.write(64, &trampoline::far(bare_addr));
    jump.protect(true);
    println!("call {:.2}", measure(bare_addr));
    println!("jmp rel32 {:.2}", measure(jump.addr()));
    println!("jmp [rip] {:.2}", measure(jump.at(64)));
    for threads in [1, 8, 64, 1000] {
        let capacity = Capacity::for_threads(threads).unwrap();
        let area = Area::new(capacity);
        let mut stub = area.stub(capacity);
        stub.source = bare_addr;
        stub.goal = bare_addr;
        let code = place(&stub, (bare_addr.0 - (32 << 20)) & !0xfff);
        let others = (1..threads as u64).map(|i| fs_base() - i * 0x80_1000);
        let mut table = PendingTable::build(others.chain([fs_base()]), capacity).unwrap();
        area.set_table(0, &table);
        area.make_valid(None);
        let before = measure(code.addr());
        area.make_valid(Some(0));
        let pending = measure(code.addr());
        table.strike(fs_base());
        area.set_table(0, &table);
        let struck = measure(code.addr());
        println!("stub, {threads} threads: not begun {before:.2}, pending {pending:.2}, struck {struck:.2}");
    }
}
