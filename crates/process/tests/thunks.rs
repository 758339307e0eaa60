//! Redirects and thunks, executed: functions by hand and from compilers are led through their thunks, near and far, and must
//! do what they did; their entries must come back byte for byte.
#![allow(unsafe_code)]

mod exec;

use exec::library::{Library, Symbol};
use exec::{Code, Random};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use ugraft_process::RemoteAddr;
use ugraft_process::code::entry::{Entry, EntryRefusal, Installed, Write};
use ugraft_process::code::function::{Function, NEARBY, Text};
use ugraft_process::code::thunk;
use ugraft_process::code::trampoline;

fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/code").join(name)
}

/// The name of a refusal's variant.
fn reason(refusal: &EntryRefusal) -> String {
    format!("{refusal:?}").split([' ', '(']).next().unwrap().to_owned()
}

/// Analyses all functions of `library` in the order of their addresses.
fn analyze_all(library: &Library) -> Vec<(Symbol, Result<Entry, EntryRefusal>)> {
    let mut functions = library.functions();
    functions.sort_by_key(|f| f.start);
    let neighbours: Vec<Range<RemoteAddr>> =
        functions.iter().map(|f| f.start..f.start.offset(f.size as i64)).collect();
    let text = library.text();
    let data = library.data();
    let mut taken: Vec<Range<RemoteAddr>> = Vec::new();
    let mut results = Vec::new();
    functions.dedup_by_key(|f| f.start);
    for f in functions {
        let around = f.start.offset(-NEARBY).max(text.addr)..f.start.offset(NEARBY).min(text.range().end);
        let bytes = library.read(around.start, around.end.distance_from(around.start) as usize);
        let result = Entry::analyze(&Function {
            start: f.start,
            size: f.size,
            text,
            memory: Some(Text { addr: around.start, bytes: &bytes }),
            neighbours: &neighbours,
            data: &data,
            taken: &taken,
        });
        if let Ok(entry) = &result {
            taken.extend(entry.written());
        }
        results.push((f, result));
    }
    results
}

/// All functions of a library, redirected to thunks.
struct Redirected<'a> {
    library: &'a Library,
    entries: Vec<Entry>,
    _arenas: Vec<Code>,
}

impl<'a> Redirected<'a> {
    /// Leads each entry to its thunk, which lies near the library, or more than 2 GiB away where it can.
    fn new(library: &'a Library, entries: Vec<Entry>, far: bool) -> Self {
        let size = (entries.len() + 1) * 128;
        let text = library.text().addr;
        let mut near = Code::new((text.0 - (256 << 20)) & !0xfff, size);
        assert!(near.addr().distance_from(text).abs() < 1 << 31, "no room near the library");
        let mut away = Code::new(0x2_0000_0000, size);
        let mut targets = Vec::new();
        for (i, entry) in entries.iter().enumerate() {
            let offset = i * 128;
            let code = if far && thunk::references(entry).is_empty() {
                let code = thunk::emit(entry, away.at(offset), false).unwrap();
                away.write(offset, &code);
                near.write(offset, &trampoline::far(away.at(offset)));
                code
            } else {
                let code = thunk::emit(entry, near.at(offset), false).unwrap();
                near.write(offset, &code);
                code
            };
            assert!(code.len() <= thunk::MAX_LEN);
            targets.push(near.at(offset));
        }
        near.protect(true);
        away.protect(true);
        let redirected = Self { library, entries, _arenas: vec![near, away] };
        for (entry, target) in redirected.entries.iter().zip(targets) {
            assert_eq!(redirected.installed(entry), Installed::Original);
            redirected.apply(&entry.entry_to(target).unwrap());
            assert_eq!(redirected.installed(entry), Installed::Redirect(target));
        }
        redirected
    }

    fn installed(&self, entry: &Entry) -> Installed {
        entry.installed(|addr, bytes| self.library.memory.read(addr, bytes)).unwrap()
    }

    fn apply(&self, writes: &[Write]) {
        for write in writes {
            assert_eq!(write.addr.0 / 4096, (write.addr.0 + write.bytes.len() as u64 - 1) / 4096);
            self.library.memory.write(write.addr, &write.bytes).unwrap();
        }
    }

    fn restore(self) {
        for entry in &self.entries {
            self.apply(&entry.restore());
            assert_eq!(self.installed(entry), Installed::Original);
        }
        let text = self.library.text();
        assert!(self.library.read(text.addr, text.bytes.len()) == text.bytes, "the text is as it was");
    }
}

/// What a function does with many arguments.
fn results(f: RemoteAddr) -> Vec<(i64, [i64; 16])> {
    let mut random = Random(f.0 | 1);
    random.0 = 88172645463325252;
    (0..24)
        .map(|i| {
            let mut p: [i64; 16] = std::array::from_fn(|_| random.next() as i64);
            p[15] &= !1;
            let (a, b) = (random.next() as i64, random.next() as i64);
            let (a, b) = if i < 12 { (i, b & 255) } else { (a, b) };
            // SAFETY: The test's own functions, which take these arguments and stay within `p`.
            let function: extern "C" fn(i64, i64, *mut i64) -> i64 = unsafe { std::mem::transmute(f.0) };
            (function(a, b, p.as_mut_ptr()), p)
        })
        .collect()
}

/// Runs the functions that `callable` selects before, during and after the redirection of all that can be.
fn compare(library: &Library, what: &str, callable: impl Fn(&str) -> bool) -> BTreeMap<String, usize> {
    let all = analyze_all(library);
    let mut tally = BTreeMap::new();
    for (_, result) in &all {
        let key = match result {
            Ok(entry) if entry.is_springboard() => "springboard".to_owned(),
            Ok(_) => "direct".to_owned(),
            Err(refusal) => reason(refusal),
        };
        *tally.entry(key).or_default() += 1;
    }
    let called: Vec<&Symbol> = all.iter().map(|(f, _)| f).filter(|f| callable(&f.name)).collect();
    let before: Vec<_> = called.iter().map(|f| results(f.start)).collect();
    for far in [false, true] {
        let entries = all.iter().filter_map(|(_, result)| result.clone().ok()).collect();
        let redirected = Redirected::new(library, entries, far);
        for (f, before) in called.iter().zip(&before) {
            assert!(&results(f.start) == before, "{} of {what}, far: {far}", f.name);
        }
        redirected.restore();
    }
    for (f, before) in called.iter().zip(&before) {
        assert!(&results(f.start) == before, "{} of {what}, restored", f.name);
    }
    tally
}

#[test]
fn entries_by_hand() {
    let library = Library::build("gcc", &[], &[&source("entries.S")], "outside");
    let mut wrong = Vec::new();
    for (f, result) in analyze_all(&library) {
        let expected = match f.name.split('_').collect::<Vec<_>>()[..] {
            ["ok", ..] => "ok".to_owned(),
            ["spring", ..] => "spring".to_owned(),
            ["no", reason, ..] => reason.to_owned(),
            _ => continue,
        };
        let found = match &result {
            Ok(entry) if entry.is_springboard() => "spring".to_owned(),
            Ok(_) => "ok".to_owned(),
            Err(refusal) => reason(refusal),
        };
        if found != expected {
            wrong.push(format!("{}: {result:?}", f.name));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    compare(&library, "entries.S", |name| {
        let called = name.starts_with("ok_") || name.starts_with("spring_");
        called && !name.contains("_inner_") && !name.contains("_x_")
    });
}

/// Builds `name` and lets [`compare`] run its functions `f_...`.
fn build_and_compare(compiler: &str, args: &[&str], name: &str) -> BTreeMap<String, usize> {
    let mut all = vec!["-Wl,-z,now"];
    all.extend(args);
    let library = Library::build(compiler, &all, &[&source(name), &source("outside.S")], "outside");
    compare(&library, &format!("{name}, {compiler} {args:?}"), |f| f.starts_with("f_") && !f.contains('.'))
}

#[test]
fn functions_from_compilers() {
    const LEVELS: [&str; 5] = ["-O0", "-O1", "-O2", "-O3", "-Os"];
    let mut builds: Vec<(&str, Vec<&str>)> = Vec::new();
    for compiler in ["gcc", "clang"] {
        builds.extend(LEVELS.map(|level| (compiler, vec![level])));
        builds.extend([
            (compiler, vec!["-O2", "-fcf-protection=full"]),
            (compiler, vec!["-O1", "-fno-plt", "-fomit-frame-pointer"]),
            (compiler, vec!["-O2", "-pg", "-mfentry"]),
            (compiler, vec!["-O2", "-fpatchable-function-entry=3"]),
            (
                compiler,
                vec!["-Os", "-fno-semantic-interposition", "-falign-functions=1", "-ffunction-sections"],
            ),
        ]);
    }
    builds.push(("gcc", vec!["-O2", "-mindirect-branch=thunk", "-fno-jump-tables"]));
    builds.push(("gcc", vec!["-O2", "-fno-reorder-blocks", "-fstack-protector-all"]));
    let mut total: BTreeMap<String, usize> = BTreeMap::new();
    for (compiler, args) in builds {
        for (key, n) in build_and_compare(compiler, &args, "functions.c") {
            *total.entry(key).or_default() += n;
        }
    }
    println!("{total:?}");
    // Functions of the start-up files have no length.
    let all: usize = total.iter().filter(|(key, _)| *key != "NoSize").map(|(_, n)| n).sum();
    assert!((total["direct"] + total["springboard"]) * 100 > all * 95, "{total:?}");
}

#[test]
fn exceptions_pass_through() {
    for (compiler, level) in [("g++", "-O1"), ("g++", "-O2"), ("clang++", "-O2"), ("clang++", "-Os")] {
        let total = build_and_compare(compiler, &[level, "-fno-optimize-sibling-calls"], "unwind.cc");
        assert!(total["direct"] >= 5, "{total:?}");
    }
}
