//! The runtime's own tests, in a process of the host.

use super::format::{Text, VaList, format};
use super::{heap, log, shadow, state};
use crate::layout::TEXT_MAX;
use std::ffi::{CString, c_void};
use std::ptr;

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

#[test]
fn shadow_variables_come_and_go() {
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
        // What was freed is used again: more in all than the heap has.
        for _ in 0..100 {
            let large = shadow::klp_shadow_alloc(object(0), ID, 1 << 20, 0, None, ptr::null_mut());
            assert!(!large.is_null());
            shadow::klp_shadow_free(object(0), ID, None);
        }
        assert!(shadow::klp_shadow_alloc(object(0), ID, 1 << 40, 0, None, ptr::null_mut()).is_null());
        assert!(shadow::klp_shadow_alloc(object(0), ID, usize::MAX, 0, None, ptr::null_mut()).is_null());
    }
}

#[test]
fn blocks_do_not_overlap() {
    let blocks: Vec<(usize, usize)> = (1..200).map(|n| (heap::allocate(n * 7).addr(), n * 7)).collect();
    for (i, (at, size)) in blocks.iter().enumerate() {
        assert!(*at != 0);
        assert!(blocks[..i].iter().all(|(other, len)| other + len <= *at || at + size <= *other));
    }
}

#[test]
fn without_patches_there_is_no_previous_state() {
    assert!(state::klp_get_prev_state(1).is_null());
}
