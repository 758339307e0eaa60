//! The runtime's own tests, in a process of the host.

use super::format::{Text, VaList, format};
use super::lock::Lock;
use super::{chunk, heap, log, shadow, state};
use crate::layout::TEXT_MAX;
use std::ffi::{CString, c_void};
use std::io::Read;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Barrier, Once};
use std::thread;
use std::time::Duration;

fn formatted(text: &str, words: &[u64]) -> String {
    let c = CString::new(text).unwrap();
    let mut args = VaList::of_stack(words);
    let mut result: Text<TEXT_MAX> = Text::new();
    // SAFETY: the format ends, and the words are what it asks for.
    unsafe { format(&mut result, c.as_ptr().cast(), &mut args, b"name") };
    String::from_utf8(result.as_bytes().to_vec()).unwrap()
}

#[test]
fn formats_are_printf_s() {
    assert_eq!(formatted("%d|%5d|%-5d|%05d", &[u64::MAX, 42, 42, 42]), "-1|   42|42   |00042");
    assert_eq!(
        formatted("%x %#X %o %#o %lx", &[0xbeef, 0xbeef, 8, 8, u64::MAX]),
        "beef 0XBEEF 10 010 ffffffffffffffff"
    );
    assert_eq!(formatted("%hhd %hd %d %ld", &[0x1ff, 0x1_ffff, 1 << 32, u64::MAX]), "-1 -1 0 -1");
    assert_eq!(formatted("%.3d %8.3d| %.0d", &[7, 7, 0]), "007      007| ");
    assert_eq!(formatted("%*d|%-*d|", &[4, 1, 4, 2]), "   1|2   |");
    assert_eq!(formatted("%p %pS", &[0, 0x1234]), "0x0 0x1234");
    let text = CString::new("abc").unwrap();
    let address = text.as_ptr() as u64;
    assert_eq!(
        formatted("%s|%5s|%.1s|%s|%c%%", &[address, address, address, 0, u64::from(b'x')]),
        "abc|  abc|a|(null)|x%"
    );
    assert_eq!(formatted("%", &[]), "");
    assert_eq!(formatted("%y", &[]), "%y");
    assert_eq!(formatted("\u{2}: %d", &[1]), "name: 1");
}

#[test]
fn a_text_that_is_too_long_is_cut() {
    assert_eq!(formatted("%2000d", &[1]).len(), TEXT_MAX);
    assert_eq!(formatted(&"x".repeat(1000), &[]).len(), TEXT_MAX);
}

#[test]
fn the_log_takes_messages_from_many_threads() {
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| (0..1000).for_each(|_| log::append(6, b"message")));
        }
    });
}

extern "C" fn refuse(_: *mut c_void, _: *mut c_void, _: *mut c_void) -> i32 {
    -12
}

extern "C" fn set(_: *mut c_void, data: *mut c_void, value: *mut c_void) -> i32 {
    // SAFETY: the variable has eight bytes.
    unsafe { data.cast::<u64>().write(value as u64) };
    0
}

/// Has the heap map memory, as the tool does.
fn have_it_grow() {
    static MADE: Once = Once::new();
    MADE.call_once(|| {
        const PAGE: usize = 4096;
        // SAFETY: a file and a mapping of the test's own.
        unsafe {
            let fd = libc::memfd_create(c"ugraft:runtime".as_ptr(), libc::MFD_CLOEXEC);
            assert!(fd >= 0 && libc::ftruncate(fd, 8 * PAGE as i64) == 0);
            let seed =
                libc::mmap(ptr::null_mut(), PAGE, libc::PROT_NONE, libc::MAP_SHARED, fd, 7 * PAGE as i64);
            assert!(seed != libc::MAP_FAILED && libc::close(fd) == 0);
            chunk::SEED.store(seed.expose_provenance() as u64, Ordering::SeqCst);
        }
    });
}

#[test]
fn shadow_variables_come_and_go() {
    have_it_grow();
    let object = |n: usize| ptr::without_provenance_mut::<c_void>(0x1000 + 8 * n);
    const ID: u64 = 0x71;
    // SAFETY: constructors are what they must be, and no variable is used after it is freed.
    unsafe {
        assert!(shadow::klp_shadow_get(object(0), ID).is_null());
        assert!(shadow::klp_shadow_alloc(object(0), ID, 8, 0, Some(refuse), ptr::null_mut()).is_null());
        assert!(shadow::klp_shadow_get(object(0), ID).is_null());
        for n in 0..10_000 {
            let value = ptr::without_provenance_mut::<c_void>(n);
            let new = shadow::klp_shadow_alloc(object(n), ID, 8, 0, Some(set), value);
            assert!(!new.is_null() && new.cast::<u64>().read() == n as u64 && new.addr().is_multiple_of(16));
            assert!(shadow::klp_shadow_alloc(object(n), ID, 8, 0, None, ptr::null_mut()).is_null());
            assert_eq!(shadow::klp_shadow_get_or_alloc(object(n), ID, 8, 0, None, ptr::null_mut()), new);
            assert!(shadow::klp_shadow_get(object(n), ID + 1).is_null());
        }
        shadow::klp_shadow_free(object(3), ID, None);
        assert!(shadow::klp_shadow_get(object(3), ID).is_null());
        assert!(!shadow::klp_shadow_get(object(4), ID).is_null());
        shadow::klp_shadow_free_all(ID, None);
        assert!((0..10_000).all(|n| shadow::klp_shadow_get(object(n), ID).is_null()));
        // What was freed is used again.
        for _ in 0..100 {
            let large = shadow::klp_shadow_alloc(object(0), ID, 1 << 20, 0, None, ptr::null_mut());
            assert!(!large.is_null());
            shadow::klp_shadow_free(object(0), ID, None);
        }
        assert!(shadow::klp_shadow_alloc(object(0), ID, 1 << 46, 0, None, ptr::null_mut()).is_null());
        assert!(shadow::klp_shadow_alloc(object(0), ID, usize::MAX, 0, None, ptr::null_mut()).is_null());
    }
}

fn is_all(bytes: &[u8], value: u8) -> bool {
    match bytes {
        [] => true,
        [first, rest @ ..] => *first == value && *rest == bytes[..rest.len()],
    }
}

/// A block of the heap's, filled with something of its own.
struct Filled {
    at: *mut u8,
    len: usize,
    with: u8,
}

impl Filled {
    /// `len` bytes, if there are any, which were all zero.
    fn new(len: usize, with: u8) -> Option<Self> {
        let at = heap::allocate(len);
        if at.is_null() {
            return None;
        }
        assert!(at.addr().is_multiple_of(16));
        // SAFETY: the heap gave these bytes.
        unsafe {
            assert!(is_all(std::slice::from_raw_parts(at, len), 0), "it is not all zero");
            ptr::write_bytes(at, with, len);
        }
        Some(Self { at, len, with })
    }
}

impl Drop for Filled {
    fn drop(&mut self) {
        // SAFETY: its own bytes, which nobody uses any more.
        unsafe {
            let bytes = std::slice::from_raw_parts(self.at, self.len);
            assert!(is_all(bytes, self.with), "somebody else has written here");
            heap::free(self.at, self.len);
        }
    }
}

#[test]
fn blocks_do_not_overlap() {
    have_it_grow();
    let sizes =
        (1..200).map(|n| n * 7).chain([1 << 20, 3 << 20, (20 << 20) + 1]).chain((1..200).map(|n| n * 997));
    let blocks: Vec<_> =
        sizes.zip((1..=u8::MAX).cycle()).map(|(len, with)| Filled::new(len, with).unwrap()).collect();
    for (i, block) in blocks.iter().enumerate() {
        let (at, end) = (block.at.addr(), block.at.addr() + block.len);
        assert!(blocks[..i].iter().all(|other| other.at.addr() + other.len <= at || end <= other.at.addr()));
    }
}

#[test]
fn many_threads_need_more_memory_at_once() {
    have_it_grow();
    thread::scope(|scope| {
        for thread in 1..=8u8 {
            scope.spawn(move || {
                let (mut seed, mut kept) = (u64::from(thread), Vec::new());
                for _ in 0..2000 {
                    seed =
                        seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    let len = 1 + (seed >> 40) as usize % (1 << (6 + (seed >> 33) % 15));
                    kept.push(Filled::new(len, thread).unwrap());
                    if kept.len() > 40 {
                        kept.swap_remove((seed >> 35) as usize % 40);
                    }
                }
            });
        }
    });
}

#[test]
fn chunks_that_come_at_once_are_all_used() {
    have_it_grow();
    const LARGE: usize = 64 << 20;
    let all = Barrier::new(8);
    thread::scope(|scope| {
        for thread in 1..=8u8 {
            let all = &all;
            scope.spawn(move || {
                let (mut large, mut small) = (Vec::new(), Vec::new());
                for round in 0..50 {
                    all.wait();
                    // It takes a chunk of its own, the rest of which goes to the lists.
                    let block = heap::allocate(LARGE);
                    assert!(!block.is_null());
                    large.push(block);
                    small.extend((0..4).map(|n| Filled::new(60 << ((round + n) % 5), thread).unwrap()));
                }
                for block in large {
                    // SAFETY: nobody uses it.
                    unsafe { heap::free(block, LARGE) };
                }
            });
        }
    });
}

#[test]
fn a_child_that_was_made_meanwhile_has_memory() {
    have_it_grow();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        for with in 1..=2 {
            let done = &done;
            scope.spawn(move || {
                while !done.load(Ordering::SeqCst) {
                    drop(Filled::new(2 << 20, with).unwrap());
                    drop((0..100).map(|n| Filled::new(n * 100, with).unwrap()).collect::<Vec<_>>());
                }
            });
        }
        let children: Vec<_> = (0..10).map(|_| forked(|| Filled::new(5 << 20, 9).is_some())).collect();
        done.store(true, Ordering::SeqCst);
        assert!(children.iter().all(|status| *status == 0), "{children:?}");
    });
}

#[test]
fn there_is_no_more_where_nothing_may_be_mapped() {
    have_it_grow();
    let status = forked(|| {
        let seed = chunk::SEED.swap(0, Ordering::SeqCst);
        // What other tests have had mapped is there, too.
        let blocks = (0..1 << 20).take_while(|_| !heap::allocate(100 << 10).is_null()).count();
        chunk::SEED.store(seed, Ordering::SeqCst);
        blocks < 1 << 20 && !heap::allocate(100 << 10).is_null()
    });
    assert_eq!(status, 0);
}

#[test]
fn limits_of_memory_are_respected() {
    for resource in [libc::RLIMIT_AS, libc::RLIMIT_DATA] {
        respects(resource);
    }
}

fn respects(resource: libc::__rlimit_resource_t) {
    have_it_grow();
    let status = forked(|| {
        let limit = |bytes: u64| {
            let limit = libc::rlimit { rlim_cur: bytes, rlim_max: libc::RLIM_INFINITY };
            // SAFETY: it reads a structure.
            unsafe { libc::setrlimit(resource, &limit) == 0 }
        };
        // The number of pages that are mapped comes first. Nothing is to be allocated for it.
        let mapped = || {
            let mut text = [0; 256];
            let len =
                std::fs::File::open("/proc/self/statm").and_then(|mut file| file.read(&mut text)).unwrap();
            let end = text[..len].iter().position(|byte| *byte == b' ').unwrap();
            text[..end].iter().fold(0u64, |number, digit| number * 10 + u64::from(digit - b'0'))
        };
        // Less than there is already.
        let lowered = limit(1 << 20);
        let before = mapped();
        let refused = heap::allocate(200 << 20).is_null();
        let unchanged = mapped() == before;
        lowered && refused && unchanged && limit(libc::RLIM_INFINITY) && !heap::allocate(200 << 20).is_null()
    });
    assert_eq!(status, 0);
}

#[test]
fn without_patches_there_is_no_previous_state() {
    assert!(state::klp_get_prev_state(1).is_null());
}

/// The status that a child ends with, which does `work` after a fork.
fn forked(work: impl FnOnce() -> bool) -> i32 {
    // SAFETY: the child does nothing but call what is to be tested and end; a hanging one is ended by the alarm.
    unsafe {
        match libc::fork() {
            0 => {
                libc::alarm(20);
                libc::_exit(i32::from(!work()))
            }
            child => {
                assert!(child > 0);
                let mut status = 0;
                assert_eq!(libc::waitpid(child, &mut status, 0), child);
                status
            }
        }
    }
}

#[test]
fn a_fork_does_not_leave_a_lock_behind() {
    static LOCK: Lock = Lock::new();
    static HELD: AtomicBool = AtomicBool::new(false);
    static FORKED: AtomicBool = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            LOCK.with(|| {
                HELD.store(true, Ordering::SeqCst);
                while !FORKED.load(Ordering::SeqCst) {
                    thread::yield_now();
                }
            });
        });
        while !HELD.load(Ordering::SeqCst) {
            thread::yield_now();
        }
        let status = forked(|| {
            LOCK.with(|| ());
            LOCK.with(|| ());
            LOCK.mark().is_some_and(|mark| LOCK.is_unused_since(mark))
        });
        FORKED.store(true, Ordering::SeqCst);
        assert_eq!(status, 0);
    });
    assert!(LOCK.mark().is_some());
}

/// Stays in its constructor until it is let go.
extern "C" fn linger(_: *mut c_void, _: *mut c_void, flags: *mut c_void) -> i32 {
    // SAFETY: the test passes two of them.
    let [inside, go] = unsafe { &*flags.cast::<[AtomicBool; 2]>() };
    inside.store(true, Ordering::SeqCst);
    while !go.load(Ordering::SeqCst) {
        thread::yield_now();
    }
    0
}

#[test]
fn shadow_variables_can_be_used_after_a_fork() {
    static FLAGS: [AtomicBool; 2] = [AtomicBool::new(false), AtomicBool::new(false)];
    const ID: u64 = 0xf0;
    let object = ptr::without_provenance_mut::<c_void>(0x8000_0000);
    thread::scope(|scope| {
        // SAFETY: constructors are what they must be, and no variable is used after it is freed.
        unsafe {
            scope.spawn(|| {
                let object = ptr::without_provenance_mut::<c_void>(0x8000_0000);
                let flags = (&raw const FLAGS).cast_mut().cast();
                assert!(!shadow::klp_shadow_alloc(object, ID, 8, 0, Some(linger), flags).is_null());
            });
            while !FLAGS[0].load(Ordering::SeqCst) {
                thread::yield_now();
            }
            let status = forked(|| {
                // Not whole when the process was copied, so it is not there.
                let before = shadow::klp_shadow_get(object, ID);
                let made = shadow::klp_shadow_get_or_alloc(object, ID, 8, 0, None, ptr::null_mut());
                let after = shadow::klp_shadow_get(object, ID);
                shadow::klp_shadow_free_all(ID, None);
                before.is_null()
                    && !made.is_null()
                    && made == after
                    && shadow::klp_shadow_get(object, ID).is_null()
            });
            FLAGS[1].store(true, Ordering::SeqCst);
            assert_eq!(status, 0);
        }
    });
    assert!(!shadow::klp_shadow_get(object, ID).is_null());
    // SAFETY: nobody uses it.
    unsafe { shadow::klp_shadow_free(object, ID, None) };
}

static SHARED_LOCK: Lock = Lock::new();
static RELEASED: AtomicBool = AtomicBool::new(false);
static CHILD_WAITS: AtomicBool = AtomicBool::new(false);
static IN_ORDER: AtomicBool = AtomicBool::new(false);

extern "C" fn wait_for_the_parent(_: *mut c_void) -> i32 {
    CHILD_WAITS.store(true, Ordering::SeqCst);
    SHARED_LOCK.with(|| IN_ORDER.store(RELEASED.load(Ordering::SeqCst), Ordering::SeqCst));
    0
}

#[test]
fn a_process_that_shares_the_memory_waits() {
    let held = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            SHARED_LOCK.with(|| {
                held.store(true, Ordering::SeqCst);
                while !CHILD_WAITS.load(Ordering::SeqCst) {
                    thread::yield_now();
                }
                // Longer than it takes a waiting thread to ask whose the lock is.
                thread::sleep(Duration::from_millis(100));
                RELEASED.store(true, Ordering::SeqCst);
            });
        });
        while !held.load(Ordering::SeqCst) {
            thread::yield_now();
        }
        let mut stack = vec![0u8; 256 << 10];
        let top = stack.as_mut_ptr_range().end.map_addr(|end| end & !15);
        let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
        // SAFETY: the child runs on its own stack, uses atomics only, and this thread waits for its end.
        unsafe {
            let child = libc::clone(wait_for_the_parent, top.cast(), flags, ptr::null_mut());
            assert!(child > 0);
            let mut status = 0;
            assert_eq!(libc::waitpid(child, &mut status, 0), child);
            assert_eq!(status, 0);
        }
    });
    assert!(IN_ORDER.load(Ordering::SeqCst));
}

#[test]
fn many_threads_read_what_others_make_and_free() {
    const ID: u64 = 0xabc;
    const ROUNDS: usize = 20_000;
    let done = AtomicBool::new(false);
    let object = |n: usize| ptr::without_provenance_mut::<c_void>(0x9000_0000 + 8 * n);
    // SAFETY: it takes no constructor.
    assert!(!unsafe { shadow::klp_shadow_alloc(object(0), ID, 8, 0, None, ptr::null_mut()) }.is_null());
    thread::scope(|scope| {
        let readers: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    let mut seen = 0u64;
                    while !done.load(Ordering::SeqCst) {
                        // One that is always there, in lists where others come and go.
                        assert!(!shadow::klp_shadow_get(object(0), ID).is_null());
                        seen += u64::from(!shadow::klp_shadow_get(object(1), ID).is_null());
                    }
                    seen
                })
            })
            .collect();
        // SAFETY: nobody uses what is freed.
        unsafe {
            let none = ptr::null_mut();
            // Other numbers of the same address are in the same list.
            for round in 0..ROUNDS {
                let id = ID + 1 + (round % 7) as u64;
                assert!(!shadow::klp_shadow_alloc(object(0), id, 8, 0, None, none).is_null());
                assert!(!shadow::klp_shadow_alloc(object(1), ID, 64, 0, None, none).is_null());
                shadow::klp_shadow_free(object(0), id, None);
                shadow::klp_shadow_free(object(1), ID, None);
            }
            done.store(true, Ordering::SeqCst);
            for reader in readers {
                let _ = reader.join().unwrap();
            }
            shadow::klp_shadow_free_all(ID, None);
        }
    });
}
