//! Compiled patches, linked into this process and run: every compiler and option gives what the same source gives as a
//! shared library loaded by the system's loader.

mod support;

use std::ffi::{CStr, CString, c_char, c_int};
use std::process::Command;
use support::*;
use ugraft_image::{LinkedImage, PatchFile, RemoteAddr, Resolution};

const SOURCE: &str = include_str!("run/features.c");

/// Where the source finds what it calls the target's: a page with a variable and a function.
struct Target {
    page: Map,
}

impl Target {
    const VARIABLE: usize = 0;
    const FUNCTION: usize = 4096;

    fn new(low: bool) -> Self {
        let page = Map::new(8192, low);
        page.write(Self::VARIABLE, &41i32.to_le_bytes());
        // lea eax, [rdi+rdi*2+1]; ret
        page.write(Self::FUNCTION, &[0x8d, 0x44, 0x7f, 0x01, 0xc3]);
        page.protect(4096, 4096, libc::PROT_READ | libc::PROT_EXEC);
        Self { page }
    }

    fn resolver(&self) -> Here {
        let mut here = Here::default();
        let at = |offset: usize| Resolution::Address(self.page.addr.offset(offset as i64));
        here.symbols.insert("target_variable".into(), at(Self::VARIABLE));
        here.symbols.insert("target_function".into(), at(Self::FUNCTION));
        here.symbols.insert("target_errno".into(), Resolution::TpOffset(errno_offset()));
        here.klp.insert((None, "hidden.constprop.0".into(), 2), at(Self::FUNCTION));
        here.klp.insert((Some("libhidden.so.1".into()), "hidden_variable".into(), 1), at(Self::VARIABLE));
        here
    }
}

/// The offset of errno, a thread-local variable of libc in the static TLS block, from the thread pointer.
fn errno_offset() -> i64 {
    let tp: u64;
    // SAFETY: on x86-64 Linux the word at fs:0 is the thread pointer itself.
    unsafe { std::arch::asm!("mov {}, fs:0", out(reg) tp, options(nostack, readonly)) };
    // SAFETY: returns the address of this thread's errno.
    let errno = unsafe { libc::__errno_location() } as u64;
    errno.wrapping_sub(tp) as i64
}

type Run = unsafe extern "C" fn(*mut c_char, usize) -> c_int;

fn transcript(entry: u64) -> String {
    let mut out = vec![0u8; 4096];
    // SAFETY: the function of features.c, which writes at most that much.
    let n = unsafe { std::mem::transmute::<u64, Run>(entry)(out.as_mut_ptr().cast(), out.len()) };
    assert!(n > 0);
    CStr::from_bytes_until_nul(&out).unwrap().to_str().unwrap().to_string()
}

fn run_variant(cc: &str, options: &[&str], low: bool) -> String {
    let bytes = object(cc, SOURCE, options);
    let patch = PatchFile::parse(&bytes, "features").unwrap_or_else(|e| panic!("{cc} {options:?}: {e}"));
    let target = Target::new(low);
    let (image, _map) = link_here(&patch, low, &mut target.resolver());
    let text = transcript(image.objects[0].new_funcs[0].addr.0);
    assert_eq!(image.objects[0].new_funcs[0].name, "run");
    text
}

/// The same source as a shared library.
fn expected() -> String {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("features.c");
    std::fs::write(&source, SOURCE).unwrap();
    let library = dir.path().join("features.so");
    run(Command::new("gcc")
        .args(["-O1", "-shared", "-fPIC", "-DREFERENCE", "-I"])
        .arg(sdk())
        .arg(&source)
        .arg("-o")
        .arg(&library));
    let name = CString::new(library.to_str().unwrap()).unwrap();
    // SAFETY: a library of ours without constructors.
    let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
    assert!(!handle.is_null());
    // SAFETY: the library is loaded.
    let entry = unsafe { libc::dlsym(handle, c"run".as_ptr()) };
    let text = transcript(entry as u64);
    // SAFETY: nothing of it is used any more.
    unsafe { libc::dlclose(handle) };
    text
}

/// Options that make position-independent code that reaches everything, wherever it lies.
const ANYWHERE: &[&[&str]] = &[
    &["-fPIC"],
    &["-fPIC", "-ffunction-sections", "-fdata-sections"],
    &["-fPIC", "-fno-plt"],
    &["-fPIC", "-fcf-protection=full"],
    &["-fPIC", "-fvisibility=hidden"],
    &["-fPIC", "-mcmodel=large"],
    &["-fPIC", "-mcmodel=medium"],
    &["-mcmodel=large", "-fno-pic"],
    &["-fPIC", "-g", "-fno-asynchronous-unwind-tables"],
];

/// Options whose code reaches variables within 2 GiB only, or below 2 GiB only.
const LOW: &[&[&str]] = &[
    &["-fno-pic"],
    &["-fpie"],
    &["-fno-pic", "-ffunction-sections", "-fdata-sections"],
    &["-fno-pic", "-fcf-protection=none"],
    &["-fno-pic", "-mcmodel=medium"],
    &["-fpie", "-fno-plt"],
    &[],
];

fn every_option_gives_the_same(cc: &str) {
    let expected = expected();
    assert!(expected.contains("switch"), "{expected}");
    for level in ["-O0", "-O1", "-O2", "-O3", "-Os"] {
        for (sets, low) in [(ANYWHERE, false), (ANYWHERE, true), (LOW, true)] {
            // Low memory makes a difference to code that was made for any place only in which calls are direct.
            let sets = if low && sets == ANYWHERE && level != "-O2" { &[][..] } else { sets };
            for options in sets {
                let options: Vec<&str> = [&[level, "-Wall", "-Wextra", "-Werror"][..], options].concat();
                assert_eq!(run_variant(cc, &options, low), expected, "{cc} {options:?} low={low}");
            }
        }
    }
}

/// Options that change what is in an object beside the code, or how the code is made.
const UNUSUAL: &[(&str, &[&str])] = &[
    ("gcc", &["-g3", "-gz"]),
    ("gcc", &["-flto", "-ffat-lto-objects"]),
    ("gcc", &["-fstack-protector-all", "-fstack-clash-protection"]),
    ("gcc", &["-mindirect-branch=thunk", "-mfunction-return=thunk"]),
    ("gcc", &["-fpatchable-function-entry=16,8"]),
    ("gcc", &["-fsanitize=undefined", "-fsanitize-undefined-trap-on-error"]),
    ("gcc", &["-Wa,-mrelax-relocations=no"]),
    ("gcc", &["-fno-jump-tables", "-fno-merge-constants", "-fcommon"]),
    ("gcc", &["-masm=intel", "-fno-omit-frame-pointer"]),
    ("gcc", &["-fzero-call-used-regs=all", "-mno-red-zone"]),
    ("musl-gcc", &["-fPIC"]),
    ("clang", &["-g", "-gz"]),
    ("clang", &["-mretpoline"]),
    ("clang", &["-fno-integrated-as"]),
    ("clang", &["-mllvm", "-hot-cold-split", "-faddrsig"]),
    ("clang", &["-fpatchable-function-entry=16,8"]),
    ("clang", &["-fstack-size-section", "-fbasic-block-sections=all"]),
];

#[test]
fn unusual_options_give_the_same() {
    let expected = expected();
    for (cc, options) in UNUSUAL {
        let options = [&["-O2", "-fPIC"][..], options].concat();
        assert_eq!(run_variant(cc, &options, false), expected, "{cc} {options:?}");
    }
}

#[test]
fn every_option_of_gcc() {
    every_option_gives_the_same("gcc");
}

#[test]
fn every_option_of_clang() {
    every_option_gives_the_same("clang");
}

#[test]
fn addresses_of_the_linked_image() {
    let bytes = object("gcc", SOURCE, &["-O2", "-fPIC"]);
    let patch = PatchFile::parse(&bytes, "features").unwrap();
    let target = Target::new(false);
    let (image, map) = link_here(&patch, false, &mut target.resolver());
    let inside = |a: RemoteAddr| a.0 >= map.addr.0 && a.0 < map.addr.0 + map.size as u64;
    let func = &image.objects[0].new_funcs[0];
    assert!(inside(func.addr) && func.size > 0);
    assert_eq!(func.cold.len(), 1, "run has a cold part: {:?}", image.symbols);
    assert!(inside(func.cold[0].addr) && func.cold[0].size > 0 && func.cold[0].addr != func.addr);
    assert!(image.symbols.iter().any(|s| s.name == "run" && s.addr == func.addr && s.size == func.size));
    assert!(image.symbols.is_sorted_by_key(|s| s.addr));
    let (eh_frame, size) = image.eh_frame.unwrap();
    assert!(inside(eh_frame) && size > 0);
    index_leads_to_all(&image);
    let callbacks = &image.objects[0].callbacks;
    assert!(inside(callbacks.pre_patch.unwrap()) && callbacks.post_patch.is_none());
    assert!(inside(image.patch) && inside(image.objects[0].addr));
}

/// The index of the unwind tables is sorted and has every function of the image, with a frame description.
fn index_leads_to_all(image: &LinkedImage) {
    let (index, size) = image.eh_frame_hdr.unwrap();
    let (tables, tables_size) = image.eh_frame.unwrap();
    let segment = image.segments.iter().find(|s| s.addr <= index && index.0 < s.addr.0 + s.mem_size).unwrap();
    let start = (index.0 - segment.addr.0) as usize;
    let bytes = &segment.bytes[start..start + size as usize];
    let word = |at: usize| i32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    assert_eq!(bytes[..4], [1, 0x1b, 0x03, 0x3b]);
    assert_eq!(index.offset(4 + i64::from(word(4))), tables);
    let pairs: Vec<_> = (0..word(8) as usize)
        .map(|n| [12 + 8 * n, 16 + 8 * n].map(|at| index.offset(word(at).into())))
        .collect();
    assert_eq!(size as usize, 12 + 8 * pairs.len());
    assert!(
        pairs.is_sorted() && pairs.iter().all(|[_, fde]| tables <= *fde && fde.0 < tables.0 + tables_size)
    );
    // clang gives that one none: it ends the program.
    for symbol in image.symbols.iter().filter(|s| s.size > 0 && s.name != "__clang_call_terminate") {
        assert!(pairs.iter().any(|[function, _]| *function == symbol.addr), "{}", symbol.name);
    }
}

/// The parts of a function are found under all its names, whatever compiler split it.
#[test]
fn parts_of_a_function() {
    let source = "#include <ugraft/livepatch.h>\nint puts(const char *);\n\
        __attribute__((noinline, cold)) void fail(const char *why) { puts(why); }\n\
        int whole(int x) { if (x > 3) { fail(\"no\"); fail(\"never\"); } return x; }\n\
        extern __typeof__(whole) other __attribute__((alias(\"whole\")));\n\
        static struct klp_func funcs[] = { { .old_name = \"f\", .new_func = (void *)other }, { } };\n\
        static struct klp_object objs[] = { { .funcs = funcs }, { } };\n\
        static struct klp_patch patch = { .objs = objs };\nKLP_PATCH(patch);\n";
    let both = [("gcc", &["-O2", "-fPIC"][..]), ("clang", &["-O2", "-fPIC", "-fbasic-block-sections=all"])];
    for (cc, options) in both {
        let patch = PatchFile::parse(&object(cc, source, options), "parts").unwrap();
        let (image, _map) = link_here(&patch, false, &mut Here::default());
        let func = &image.objects[0].new_funcs[0];
        assert!(
            !func.cold.is_empty() && func.cold.iter().all(|c| c.size > 0 && c.addr != func.addr),
            "{cc}: {func:?}"
        );
        let names: Vec<_> = image.symbols.iter().filter(|s| s.addr == func.cold[0].addr).collect();
        assert!(!names.is_empty(), "{cc}: {:?}", image.symbols);
    }
}

/// Code for an executable takes the address of a far variable by `lea`, which becomes a load from the GOT.
#[test]
fn lea_of_a_far_variable() {
    let source = "#include <ugraft/livepatch.h>\nextern int far_array[];\n\
        int *get(void) { return far_array; }\nint at(long i) { return far_array[i]; }\n\
        static struct klp_func funcs[] = { { .old_name = \"g\", .new_func = (void *)get }, { .old_name = \"a\", .new_func = (void *)at }, { } };\n\
        static struct klp_object objs[] = { { .funcs = funcs }, { } };\n\
        static struct klp_patch patch = { .objs = objs };\nKLP_PATCH(patch);\n";
    let array = [10, 20, 30];
    for low in [false, true] {
        let patch = PatchFile::parse(&object("gcc", source, &["-O2", "-fpie"]), "lea").unwrap();
        let usage = patch.imports()[0].usage;
        assert!(usage.addressed && !usage.near && !usage.low && !usage.called, "{usage:?}");
        let mut here = Here::default();
        let address = RemoteAddr(array.as_ptr() as u64);
        here.symbols.insert("far_array".into(), Resolution::Address(address));
        let (image, _map) = link_here(&patch, low, &mut here);
        let far = address.distance_from(image.base).unsigned_abs() > 1 << 31;
        assert!(far || !low, "the image is far from the array, on a stack");
        let [get, at] = [0, 1].map(|n| image.objects[0].new_funcs[n].addr.0);
        // SAFETY: the functions above.
        unsafe {
            assert_eq!(std::mem::transmute::<u64, extern "C" fn() -> u64>(get)(), address.0);
            assert_eq!(std::mem::transmute::<u64, extern "C" fn(i64) -> c_int>(at)(2), 30);
        }
    }
}

/// A C++ patch: templates (COMDAT groups), virtual functions, type information, exceptions thrown, caught and passed on.
#[test]
fn cplusplus() {
    // SAFETY: the C++ runtime, kept loaded; its constructors are meant to run.
    let runtime = unsafe { libc::dlopen(c"libstdc++.so.6".as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
    assert!(!runtime.is_null(), "libstdc++.so.6");
    let source = include_str!("run/features.cc");
    let dir = tempfile::tempdir().unwrap();
    for cc in ["g++", "clang++"] {
        for options in [
            &["-O0", "-fPIC"][..],
            &["-O2", "-fPIC"],
            &["-O3", "-fPIC", "-ffunction-sections", "-fdata-sections"],
            &["-O2", "-fPIC", "-mcmodel=large"],
            &["-O2", "-fpie"],
        ] {
            let options = [options, &["-std=c++17", "-Wall", "-Wextra", "-Werror"]].concat();
            let object = compile(dir.path(), cc, "features", "cc", source, &options);
            let patch = PatchFile::parse(&std::fs::read(object).unwrap(), "features")
                .unwrap_or_else(|e| panic!("{cc} {options:?}: {e}"));
            let (image, _map) = link_here(&patch, false, &mut Here::default());
            index_leads_to_all(&image);
            let frames = image.eh_frame.unwrap().0;
            let _registered = Frames::register(frames);
            assert_eq!(
                transcript(image.objects[0].new_funcs[0].addr.0),
                "circle 3.14 square 4.00 sum 10 caught 7 passed on: too large: 9, b-a-c, static 1 2 3",
                "{cc} {options:?}"
            );
        }
    }
}

/// Unwind tables known to this process's unwinder.
struct Frames(u64);

unsafe extern "C" {
    fn __register_frame(begin: *const u8);
    fn __deregister_frame(begin: *const u8);
}

impl Frames {
    fn register(begin: RemoteAddr) -> Self {
        // SAFETY: the linked and installed unwind tables of an image, ended by a zero word.
        unsafe { __register_frame(begin.0 as *const u8) };
        Self(begin.0)
    }
}

impl Drop for Frames {
    fn drop(&mut self) {
        // SAFETY: registered above, still mapped.
        unsafe { __deregister_frame(self.0 as *const u8) };
    }
}

/// Several objects joined, of several compilers, with static functions of the same name.
#[test]
fn joined_objects() {
    let dir = tempfile::tempdir().unwrap();
    let part = |cc: &str, name: &str, add: &str, options: &[&str]| {
        let source = format!(
            "static __attribute__((noinline)) int helper(int x) {{ return x {add}; }}\nint {name}(int x) {{ return helper(x) * 2; }}\n"
        );
        compile(dir.path(), cc, name, "c", &source, &[&["-O1", "-fPIC"][..], options].concat())
    };
    let first = part("gcc", "first", "+ 1", &[]);
    let second = part("clang", "second", "- 1", &["-ffunction-sections"]);
    let main = "#include <ugraft/livepatch.h>\nint first(int); int second(int);\n\
        int both(int x) { return first(x) * 1000 + second(x); }\n\
        static struct klp_func funcs[] = { { .old_name = \"both\", .new_func = (void *)both }, { .old_name = \"old_first\", .new_func = (void *)first }, { } };\n\
        static struct klp_object objs[] = { { .name = \"libj.so.2\", .funcs = funcs }, { } };\n\
        static struct klp_patch patch = { .objs = objs, .replace = true };\nKLP_PATCH(patch); KLP_NAME(\"joined\");\n";
    let main = compile(dir.path(), "gcc", "main", "c", main, &["-O2", "-fPIC"]);
    let all = dir.path().join("all.o");
    run(Command::new("ld").arg("-r").arg("-o").arg(&all).args([&main, &first, &second]));
    let patch = PatchFile::parse(&std::fs::read(all).unwrap(), "all").unwrap();
    assert_eq!(patch.metadata().name, "joined");
    assert_eq!(patch.metadata().objects[0].funcs[1].new_func, "first");
    assert!(patch.imports().is_empty());
    let (image, _map) = link_here(&patch, false, &mut Here::default());
    let both = image.objects[0].new_funcs[0].addr.0;
    // SAFETY: the function above.
    let both = unsafe { std::mem::transmute::<u64, extern "C" fn(c_int) -> c_int>(both) };
    assert_eq!(both(10), 22_018);
    assert_eq!(image.symbols.iter().filter(|s| s.name == "helper").count(), 2);
}

/// Every byte of the linked text that is wrong is found by the check, wherever it stands.
#[test]
fn the_check_finds_every_wrong_byte() {
    let bytes = object("gcc", SOURCE, &["-O2", "-fPIC"]);
    let patch = PatchFile::parse(&bytes, "features").unwrap();
    let target = Target::new(false);
    let (image, _map) = link_here(&patch, false, &mut target.resolver());
    ugraft_image::check(&patch, &image).unwrap();
    let mut missed = 0;
    for segment in 0..image.segments.len() {
        for at in (0..image.segments[segment].bytes.len()).step_by(3) {
            let mut wrong = image.clone();
            wrong.segments[segment].bytes[at] ^= 0x40;
            missed += usize::from(ugraft_image::check(&patch, &wrong).is_ok());
        }
    }
    // What lies between sections and the filling of PLT entries means nothing.
    let total: usize = image.segments.iter().map(|s| s.bytes.len()).sum();
    assert!(missed * 3 < total / 10, "{missed} of {} wrong bytes missed", total / 3);
}
