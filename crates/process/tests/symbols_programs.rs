//! Programs that nobody here wrote, with other tools as second opinion.

mod symbols_support;

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use symbols_support::{Running, Workshop};
use ugraft_process::RemoteAddr;
use ugraft_process::objects::scope::Value;
use ugraft_process::objects::{Object, Role};

/// Whether a program is installed here.
fn installed(program: &str) -> bool {
    let found =
        Command::new("sh").args(["-c", &format!("command -v {program}")]).stdout(Stdio::null()).status();
    let found = found.is_ok_and(|s| s.success());
    if !found {
        println!("{program} is not installed: not tested");
    }
    found
}

fn python() -> Running {
    let script = r#"
import ctypes, sys, time, zlib
def tell(lib, *names):
    for name in names:
        print(name, hex(ctypes.cast(getattr(lib, name), ctypes.c_void_p).value))
tell(ctypes.CDLL("libz.so.1"), "crc32", "zlibVersion", "adler32", "inflate")
tell(ctypes.CDLL("libc.so.6"), "memcpy", "strlen", "strchr", "memmove", "qsort", "puts", "gettimeofday", "time")
tell(ctypes.CDLL(None), "PyLong_FromLong", "PyObject_Call")
print("ready", flush=True)
time.sleep(1000)
"#;
    Running::start(Command::new("/usr/bin/python3").args(["-c", script]))
}

#[test]
fn python_and_its_libraries() {
    if !installed("/usr/bin/python3") {
        return;
    }
    let p = python();
    let objects = p.objects();
    let libz = objects.find(Some("libz.so.1")).unwrap();
    for name in ["crc32", "zlibVersion", "adler32", "inflate"] {
        let f = objects.function(Some("libz.so.1"), name, 0).unwrap();
        assert_eq!(f.address, p.truth(name), "{name}");
        let code = p.memory().read_vec(f.address, f.size as usize).unwrap();
        assert_eq!(libz.file_bytes(f.range()).unwrap(), code);
    }
    for name in ["PyLong_FromLong", "PyObject_Call"] {
        assert_eq!(objects.function(None, name, 0).unwrap().address, p.truth(name), "{name}");
    }
    let scope = objects.scope(&[libz.id()]).unwrap();
    for name in ["crc32", "qsort", "puts", "PyLong_FromLong"] {
        assert_eq!(scope.resolve(name, None).unwrap().value, Value::Address(p.truth(name)), "{name}");
    }
    for name in ["memcpy", "strlen", "strchr", "memmove"] {
        let Value::Ifunc { chosen, .. } = scope.resolve(name, None).unwrap().value else { panic!("{name}") };
        assert_eq!(chosen, Some(p.truth(name)), "{name}");
    }
    // Choices that lead out of the object: the kernel's own functions.
    for name in ["gettimeofday", "time"] {
        if let Value::Ifunc { chosen: Some(chosen), .. } = scope.resolve(name, None).unwrap().value {
            assert_eq!(chosen, p.truth(name), "{name}");
            let owner = objects.at(chosen).unwrap();
            assert_eq!(owner.role(), Role::Vdso);
            let f = objects.function(Some("libc.so.6"), name, 0).unwrap();
            assert_eq!((f.address, f.object), (chosen, owner.id()));
            assert!(owner.file_bytes(f.range()).is_err(), "it has no file");
        }
    }
}

#[test]
fn a_stripped_server() {
    if !installed("redis-server") || !installed("nm") {
        return;
    }
    let shop = Workshop::new();
    let mut child = Command::new("redis-server")
        .args(["--port", "0", "--save", "", "--unixsocket", "sock"])
        .arg("--dir")
        .arg(shop.path(""))
        .current_dir(shop.path(""))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let out = child.stdout.take().unwrap();
    let p = Running::attach(child, HashMap::new());
    let mut lines = BufReader::new(out).lines();
    assert!(lines.any(|l| l.unwrap().contains("eady to accept connections")));

    let objects = p.objects();
    let main = objects.main();
    let nm = Command::new("nm").args(["-D", "--defined-only", "-S", main.path()]).output().unwrap();
    let mut functions = 0;
    let mut bounded = 0;
    for line in String::from_utf8(nm.stdout).unwrap().lines() {
        let words: Vec<_> = line.split(' ').collect();
        let [value, size, "T", name] = words[..] else { continue };
        let hex = |s| u64::from_str_radix(s, 16).unwrap();
        let name = name.split('@').next().unwrap();
        let f = main.function(name, 0).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(main.to_link(f.address).0, hex(value), "{name}");
        assert_eq!(f.size, hex(size), "{name}");
        functions += 1;
        let fde = main.fde_at(f.address).unwrap();
        bounded += u32::from(fde.is_some_and(|fde| fde.range == f.range() && !fde.mid_function));
        // Cold parts of a file without local symbols: known by the code.
        for part in &f.cold {
            assert!(main.is_text(part.range.start), "{name} {part:?}");
        }
        if functions == 300 {
            break;
        }
    }
    assert_eq!(functions, 300);
    assert!(bounded > 290, "{bounded}");
}

/// What `info symbol` says: the name and the distance from it.
fn gdb_says(p: &Running, addresses: &[RemoteAddr]) -> Vec<Option<(String, u64)>> {
    let shop = Workshop::new();
    let commands: String = addresses.iter().map(|a| format!("echo =\\n\ninfo symbol {a}\n")).collect();
    shop.write("commands", &commands);
    let out = Command::new("gdb")
        .args(["-nx", "-batch", "-iex", "set debuginfod enabled off", "-iex", "set auto-load off"])
        .args(["-p", &p.pid().to_string(), "-x"])
        .arg(shop.path("commands"))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let answers = text.split("=\n").skip(1);
    let parse = |answer: &str| {
        let said = answer.lines().next()?.split(" in section ").next()?;
        if said.starts_with("No symbol") {
            return None;
        }
        Some(match said.rsplit_once(" + ") {
            Some((name, offset)) => (name.to_owned(), offset.parse().ok()?),
            None => (said.to_owned(), 0),
        })
    };
    answers.map(parse).collect()
}

/// `count` addresses spread over the functions of an object, some at their start and some within.
fn sample(object: &Object<'_>, count: usize) -> Vec<RemoteAddr> {
    let mut all: Vec<_> = object.symbols().unwrap().functions().map(|(_, at)| at).collect();
    all.sort();
    all.dedup();
    let step = (all.len() / count).max(1);
    let spread = all.iter().step_by(step).enumerate();
    spread.map(|(i, at)| object.to_remote(*at).offset(i as i64 % 3)).collect()
}

#[test]
fn a_debugger_names_the_same_functions() {
    if !installed("gdb") || !installed("/usr/bin/python3") {
        return;
    }
    let p = python();
    let objects = p.objects();
    let mut addresses = Vec::new();
    for object in
        [Some("libc.so.6"), Some("libz.so.1"), Some("ld-linux-x86-64.so.2"), Some("libm.so.6"), None]
    {
        addresses.extend(sample(objects.find(object).unwrap(), 250));
    }
    assert!(addresses.len() >= 1000, "{}", addresses.len());
    let answers = gdb_says(&p, &addresses);
    if answers.is_empty() {
        println!("gdb may not attach here");
        return;
    }
    assert_eq!(answers.len(), addresses.len());
    let mut agreed = 0;
    let mut differ = Vec::new();
    for (addr, answer) in addresses.iter().zip(&answers) {
        let object = objects.at(*addr).unwrap();
        let ours = object.symbolize(*addr).unwrap();
        let (name, offset, function) = match (answer, &ours.function) {
            (Some((name, offset)), Some(function)) => (name, offset, function),
            // Beyond the end of a function of a byte or two.
            (None, None) => {
                agreed += 1;
                continue;
            }
            _ => {
                differ.push(format!("{addr}: {answer:?} {ours:?}"));
                continue;
            }
        };
        let start = addr.offset(-(*offset as i64));
        // gdb takes names from DWARF first, which cut a clone's suffix, and it does not set resolvers of ifuncs apart.
        let bare = |n: &str| n.replace("[cold]", ".cold").split('@').next().unwrap_or_default().to_owned();
        let mut names = object.function_at(start).unwrap().map(|f| f.aliases).unwrap_or_default();
        names.push(function.clone());
        let same = |n: &String| bare(n) == bare(name) || bare(n).starts_with(&format!("{}.", bare(name)));
        let known = names.iter().any(|n| same(n) || n.ends_with("_ifunc"));
        if *offset == ours.offset && known {
            agreed += 1;
        } else {
            differ.push(format!("{addr}: gdb {name}+{offset}, here {function}+{}; {names:?}", ours.offset));
        }
    }
    println!("{agreed} of {}: {differ:#?}", addresses.len());
    assert!(agreed * 1000 >= addresses.len() * 998, "{agreed} of {}: {differ:#?}", addresses.len());
}
