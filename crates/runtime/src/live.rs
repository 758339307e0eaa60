//! The runtime redirects functions of libraries that this process has just opened.
#![allow(unsafe_code)]

use crate::layout::{CELL_LEN, NEAR_MAGIC, NearHead, Site, StubTemplate};
use crate::runtime::elf::Object;
use crate::runtime::format;
use crate::runtime::redirect::{Near, Text};
use crate::runtime::refusal::{Foreign, Refusal};
use crate::runtime::symbols::{File, STT_TLS};
use crate::runtime::syscall::Errno;
use std::ffi::{CString, c_void};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use ugraft_process::RemoteAddr;
use ugraft_process::code::pending::{Capacity, PendingTable, tables_at};
use ugraft_process::code::stub::template;

/// Held while the list of libraries changes, or is read as the tool reads it.
pub static LOADER: Mutex<()> = Mutex::new(());

/// A library from C source in a directory of its own.
struct Library {
    dir: tempfile::TempDir,
    path: PathBuf,
}

/// It, opened.
struct Open {
    handle: *mut c_void,
    object: Object,
}

const SOURCE: &str = r#"
static int counter = 40;
__attribute__((noinline)) static int hidden(int x) { return x + counter; }
__attribute__((noinline)) static int other(int x) { return x * 2; }
int exported(int x) { return hidden(x) + 1; }
int calls(int x) { return other(x) + exported(x); }
int data = 7;
__thread int local = 8;
typedef int fn(int);
static fn *choose(void) { return other; }
int chosen(int x) __attribute__((ifunc("choose")));
int (*address_of_hidden(void))(int) { return hidden; }
"#;

fn library(source: &str, flags: &[&str]) -> Library {
    let dir = tempfile::tempdir().unwrap();
    let (c, path) = (dir.path().join("lib.c"), dir.path().join("liblate.so"));
    std::fs::write(&c, source).unwrap();
    let status = Command::new("cc")
        .args(["-O2", "-fPIC", "-shared", "-Wl,-soname,liblate.so.1", "-Wl,--build-id"])
        .args(flags)
        .arg("-o")
        .args([&path, &c])
        .status();
    assert!(status.unwrap().success());
    Library { dir, path }
}

fn open(path: &Path) -> Open {
    let _list = LOADER.lock().unwrap_or_else(PoisonError::into_inner);
    let name = CString::new(path.to_str().unwrap()).unwrap();
    // SAFETY: a library of the test; glibc's handle begins with l_addr, l_name, l_ld.
    unsafe {
        let handle = libc::dlopen(name.as_ptr(), libc::RTLD_NOW);
        assert!(!handle.is_null());
        let map = handle.cast::<[usize; 3]>().read();
        let mut object = Object::of(map[0] as u64, map[1] as *const u8, map[2] as u64).unwrap();
        object.read_headers().unwrap();
        Open { handle, object }
    }
}

impl Open {
    fn call(&self, name: &str, x: i32) -> i32 {
        let name = CString::new(name).unwrap();
        // SAFETY: a function of this type.
        unsafe {
            let found = libc::dlsym(self.handle, name.as_ptr());
            assert!(!found.is_null());
            let function: extern "C" fn(i32) -> i32 = std::mem::transmute(found);
            function(x)
        }
    }

    fn close(self) {
        let _list = LOADER.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: nobody uses it any more.
        assert_eq!(unsafe { libc::dlclose(self.handle) }, 0);
    }
}

// SAFETY: a library's handle and addresses may be used by any thread.
unsafe impl Sync for Open {}

extern "C" fn replacement(x: i32) -> i32 {
    1000 + x
}

fn call(at: u64, x: i32) -> i32 {
    // SAFETY: a thunk of a function of this type.
    let function: extern "C" fn(i32) -> i32 = unsafe { std::mem::transmute(at as usize) };
    function(x)
}

#[test]
fn functions_of_a_library_are_redirected_and_restored() {
    for flags in [
        &["-fcf-protection=full"][..],
        &["-fcf-protection=none"],
        &["-fcf-protection=branch", "-fno-omit-frame-pointer"],
    ] {
        let library = library(SOURCE, flags);
        for _ in 0..3 {
            let open = open(&library.path);
            let mut file = File::open(&open.object).unwrap();
            assert!(open.object.is_named(b"liblate.so.1") && open.object.is_named(b"liblate.so"));
            let text = Text::open().unwrap();
            let near = Near::map(&open.object, 2, &text).unwrap();
            let target = replacement as *const () as u64;
            let mut sites = [Site::default(); 2];
            for (i, name) in [&b"hidden"[..], b"exported"].into_iter().enumerate() {
                let found = file.function(name, 0).unwrap();
                sites[i] = Site::analyze(&open.object, &mut file, &found, sites.iter()).unwrap();
                let original = text.fill_thunk(near.cell(i), &sites[i]).unwrap();
                text.lead_far(&sites[i], near.cell(i), target).unwrap();
                assert_eq!(call(found.address, 5), 1005);
                assert_eq!(call(original, 1), if i == 0 { 41 } else { 1002 }, "{flags:?}");
            }
            assert_eq!(open.call("calls", 1), 2 + 1001);
            for site in &sites {
                text.restore(site).unwrap();
            }
            assert_eq!(open.call("calls", 1), 2 + 42);
            // SAFETY: nothing leads there any more.
            unsafe { near.unmap() };
            open.close();
        }
    }
}

#[test]
fn symbols_are_found_or_the_reason_is_said() {
    let library = library(SOURCE, &[]);
    let open = open(&library.path);
    let mut file = File::open(&open.object).unwrap();
    assert_eq!(file.function(b"missing", 0), Err(Refusal::NotFound { local: true }));
    assert_eq!(file.function(b"", 0), Err(Refusal::NotFound { local: true }));
    assert_eq!(file.function(b"data", 0), Err(Refusal::NotAFunction));
    assert_eq!(file.function(b"chosen", 0), Err(Refusal::Ifunc));
    assert_eq!(file.function(b"hidden", 2), Err(Refusal::NoSuchPosition { count: 1 }));
    let data = file.symbol(b"data", 0).unwrap();
    // SAFETY: a variable of the library.
    assert_eq!((data.size, unsafe { (data.address as *const i32).read() }), (4, 7));
    assert_eq!(file.symbol(b"local", 0).unwrap().kind, STT_TLS);
    assert_eq!(file.export(b"data", b""), Some(data));
    assert_eq!(file.export(b"hidden", b""), None);
    let found = file.function(b"exported", 0).unwrap();
    let site = Site::analyze(&open.object, &mut file, &found, [].iter()).unwrap();
    // Somebody else's breakpoint.
    let text = Text::open().unwrap();
    text.write(site.place + 1, &[0xcc]).unwrap();
    let refusal = Site::analyze(&open.object, &mut file, &found, [].iter()).unwrap_err();
    assert!(matches!(refusal, Refusal::Foreign { what: Foreign::Breakpoint, .. }));
    let mut words: format::Text<480> = format::Text::new();
    refusal.write(&mut words);
    let words = String::from_utf8(words.as_bytes().to_vec()).unwrap();
    assert!(words.starts_with("a breakpoint (a debugger's or a uprobe's) of somebody else lies "), "{words}");
    drop(file);
    open.close();

    let strip = Command::new("strip").arg(&library.path).status();
    assert!(strip.unwrap().success());
    let open = self::open(&library.path);
    let file = File::open(&open.object).unwrap();
    assert_eq!(file.function(b"hidden", 0), Err(Refusal::NotFound { local: false }));
    assert!(file.function(b"exported", 0).is_ok());
    drop(file);
    // The file is replaced while it is mapped.
    let other = self::library("int another(int x) { return x; }", &[]);
    std::fs::rename(&other.path, &library.path).unwrap();
    assert!(matches!(File::open(&open.object), Err(Refusal::Differs(_))));
    std::fs::remove_file(&library.path).unwrap();
    assert!(matches!(File::open(&open.object), Err(Refusal::File(Errno(2)))));
    open.close();
    drop((library.dir, other.dir));
}

#[test]
fn positions_count_addresses() {
    let one = "static __attribute__((noinline)) int twin(int x) { return x + 1; } int first(int x) { return twin(x); }";
    let two = "static __attribute__((noinline)) int twin(int x) { return x + 2; } int second(int x) { return twin(x); }";
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("two.c"), two).unwrap();
    let library = library(one, &[dir.path().join("two.c").to_str().unwrap()]);
    let open = open(&library.path);
    let file = File::open(&open.object).unwrap();
    assert_eq!(file.function(b"twin", 0), Err(Refusal::Ambiguous { count: 2 }));
    let (a, b) = (file.function(b"twin", 1).unwrap(), file.function(b"twin", 2).unwrap());
    assert!(a.address < b.address);
    let mut answers = [call(a.address, 0), call(b.address, 0)];
    answers.sort_unstable();
    assert_eq!(answers, [1, 2]);
    drop(file);
    open.close();
}

/// Whatever the part of the file holds that is not mapped, nothing worse than a refusal comes of it.
#[test]
fn a_damaged_file_is_refused_or_read() {
    let library = library(SOURCE, &[]);
    let bytes = std::fs::read(&library.path).unwrap();
    let open = open(&library.path);
    let mapped =
        open.object.segments().filter(|s| s.is_load()).map(|s| s.offset + s.filesz).max().unwrap() as usize;
    let mut seed = 0x2545_f491_4f6c_dd1du64;
    for round in 0..2000 {
        let mut damaged = bytes.clone();
        for _ in 0..1 + round % 8 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            // The section headers lie at the end, the symbols before them.
            let at = mapped + (seed >> 33) as usize % (damaged.len() - mapped);
            damaged[at] = if seed & 1 == 0 { (seed >> 8) as u8 } else { 0xff };
        }
        if round % 16 == 0 {
            damaged.truncate(mapped + (seed >> 40) as usize % (bytes.len() - mapped));
        }
        // Another inode, so that nothing changes in what is mapped.
        std::fs::remove_file(&library.path).unwrap();
        std::fs::write(&library.path, &damaged).unwrap();
        if let Ok(file) = File::open(&open.object) {
            for name in [&b"hidden"[..], b"exported", b"data"] {
                let _ = file.function(name, 0);
                let _ = file.symbol(name, 1);
                let _ = file.export(name, b"V");
            }
        }
    }
    open.close();
}

/// Every library gets its own memory, as near as it needs to be, and all of it is given back.
#[test]
fn memory_near_a_library_comes_and_goes() {
    let library = library(SOURCE, &[]);
    let open = open(&library.path);
    let text = Text::open().unwrap();
    let (start, end) = open.object.range().unwrap();
    let all: Vec<Near> = (0..64).map(|i| Near::map(&open.object, 1 + i * 7, &text).unwrap()).collect();
    for (i, near) in all.iter().enumerate() {
        assert!(
            all[..i]
                .iter()
                .all(|other| other.start + other.len <= near.start || near.start + near.len <= other.start)
        );
        assert!(near.start.abs_diff(start) < 1 << 31 && (near.start + near.len).abs_diff(end) < 1 << 31);
        // SAFETY: mapped just now.
        let head = unsafe { (near.start as *const NearHead).read() };
        assert_eq!((head.magic, head.start, head.len), (NEAR_MAGIC, near.start, near.len));
        assert!(near.cell(i * 7) + CELL_LEN as u64 <= near.start + near.len && near.cell(0) % 16 == 0);
    }
    for near in all {
        // SAFETY: nothing leads there.
        unsafe { near.unmap() };
    }
    open.close();
}

/// Memory at a multiple of its size.
#[derive(Clone)]
#[repr(align(32))]
struct Aligned(#[expect(dead_code, reason = "for its size")] [u8; 32]);

/// During a transition a function leads to a stub that the runtime has filled in: pending threads run the original.
#[test]
fn a_stub_picks_the_side_of_its_thread() {
    let library = library(SOURCE, &[]);
    let open = open(&library.path);
    let mut file = File::open(&open.object).unwrap();
    let text = Text::open().unwrap();
    let near = Near::map(&open.object, 1, &text).unwrap();
    let found = file.function(b"exported", 0).unwrap();
    let site = Site::analyze(&open.object, &mut file, &found, [].iter()).unwrap();
    drop(file);
    let fs: u64;
    // SAFETY: the kernel lets programs read it, as stubs do.
    unsafe { std::arch::asm!("rdfsbase {}", out(reg) fs) };
    let capacity = Capacity::for_threads(1).unwrap();
    let mut table = PendingTable::build([fs], capacity).unwrap();
    let mut memory = vec![Aligned([0; 32]); 2 * capacity.bytes() / 32 + 1];
    let start = memory.as_mut_ptr().cast::<u8>();
    let ([first, second], len) = tables_at(RemoteAddr(start as u64), capacity);
    assert!(len as usize <= memory.len() * 32);
    let put = |at: RemoteAddr, table: &PendingTable| {
        // SAFETY: within the memory, which nobody else uses but the stub, on this thread.
        unsafe {
            std::ptr::copy_nonoverlapping(table.as_bytes().as_ptr(), at.0 as *mut u8, capacity.bytes())
        };
    };
    put(first, &table);
    put(second, &table);
    let word = AtomicU64::new(0);
    let made = template(RemoteAddr(word.as_ptr() as u64), capacity);
    let template = StubTemplate {
        len: made.len,
        gate_at: made.gate_at,
        source_at: made.source_at,
        goal_at: made.goal_at,
        reserved: made.reserved,
        code: made.code,
    };
    let original = text.fill_thunk(near.cell(0), &site).unwrap();
    let stub = text.fill_stub(near.cell(0), &template, original, replacement as *const () as u64).unwrap();
    text.lead(&site, stub).unwrap();
    let (old, new) = (43, 1002);
    assert_eq!(open.call("exported", 2), old, "it has not begun");
    word.store(first.0, Ordering::SeqCst);
    assert_eq!(open.call("exported", 2), old, "this thread is pending");
    std::thread::scope(|scope| {
        scope.spawn(|| assert_eq!(open.call("exported", 2), new, "a thread born meanwhile is not"));
    });
    word.store(second.0, Ordering::SeqCst);
    assert_eq!(open.call("exported", 2), new, "it is reversed");
    word.store(first.0, Ordering::SeqCst);
    table.strike(fs);
    put(first, &table);
    assert_eq!(open.call("exported", 2), new, "this thread is struck");
    let none = StubTemplate { len: 0, ..template };
    assert_eq!(text.fill_stub(near.cell(0), &none, 1, 1), Err(Refusal::NoStub));
    text.restore(&site).unwrap();
    assert_eq!(open.call("exported", 2), old);
    // SAFETY: nothing leads there any more.
    unsafe { near.unmap() };
    open.close();
}
