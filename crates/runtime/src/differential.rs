//! The runtime's decoder, its judgement of entries and its thunks against those of the tool, on the functions of big libraries: of
//! each one in fifty, or in as many as the environment variable `UGRAFT_EVERY` says (1 takes some minutes).
#![allow(unsafe_code)]

use crate::layout::{Site, THUNK_MAX};
use crate::live::LOADER;
use crate::runtime::decode::{Flow, decode};
use crate::runtime::elf::Object;
use crate::runtime::refusal::Refusal;
use crate::runtime::symbols::{File, Found, STT_FUNC};
use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, Register};
use object::{Object as _, ObjectSymbol as _};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{CStr, CString};
use std::path::Path;
use std::sync::PoisonError;
use ugraft_process::code::entry::{Entry, EntryRefusal};
use ugraft_process::code::function::{Branches, Function, Text, possible_tables};
use ugraft_process::code::thunk;
use ugraft_process::objects::Objects;
use ugraft_process::target::maps::Maps;
use ugraft_process::target::memory::Memory;
use ugraft_process::{Pid, RemoteAddr};

/// One of so many functions is looked at.
fn every() -> usize {
    let said = std::env::var("UGRAFT_EVERY").ok().and_then(|every| every.parse().ok());
    said.filter(|every| *every > 0).unwrap_or(50)
}

/// `struct link_map` of link.h.
#[repr(C)]
struct LinkMap {
    bias: u64,
    name: *const i8,
    dynamic: u64,
}

/// A library of the machine, loaded into this process, with its functions.
struct Library {
    map: *const LinkMap,
    functions: Vec<(u64, u64)>,
}

fn load(name: &str) -> Option<Library> {
    let _list = LOADER.lock().unwrap_or_else(PoisonError::into_inner);
    let name = CString::new(name).unwrap();
    // SAFETY: libraries of the machine whose constructors do no harm; the handle is a `struct link_map` in glibc.
    let map = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW).cast::<LinkMap>().as_ref()? };
    // SAFETY: glibc's own string.
    let path = unsafe { CStr::from_ptr(map.name) }.to_str().unwrap();
    let bytes = std::fs::read(path).unwrap();
    let file = object::read::elf::ElfFile64::<object::LittleEndian>::parse(&*bytes).unwrap();
    let functions: BTreeMap<u64, u64> = file
        .symbols()
        .chain(file.dynamic_symbols())
        .filter(|s| s.kind() == object::SymbolKind::Text && s.is_definition() && s.size() > 0)
        .map(|s| (map.bias + s.address(), s.size()))
        .collect();
    Some(Library { map, functions: functions.into_iter().collect() })
}

impl Library {
    fn object(&self) -> Object {
        // SAFETY: the library is never closed.
        let mut object =
            unsafe { Object::of((*self.map).bias, (*self.map).name.cast(), (*self.map).dynamic).unwrap() };
        object.read_headers().unwrap();
        object
    }
}

/// What differs between the two about the instruction that `bytes` begin with.
fn difference(bytes: &[u8], at: u64) -> Option<String> {
    let mut decoder = Decoder::with_ip(64, bytes, at, DecoderOptions::NONE);
    let theirs = decoder.decode();
    let ours = decode(bytes, at);
    let shown = &bytes[..bytes.len().min(15)];
    let Some(ours) = ours else {
        return (!theirs.is_invalid()).then(|| format!("refused {shown:02x?} {:?}", theirs.code()));
    };
    if theirs.is_invalid() {
        return Some(format!("accepted {shown:02x?}"));
    }
    let near = theirs.is_ip_rel_memory_operand();
    let branch = theirs.op_count() > 0
        && matches!(
            theirs.op0_kind(),
            iced_x86::OpKind::NearBranch64 | iced_x86::OpKind::NearBranch32 | iced_x86::OpKind::NearBranch16
        );
    let to = match (branch, near) {
        (true, _) => theirs.near_branch_target(),
        (_, true) => theirs.ip_rel_memory_address(),
        _ => 0,
    };
    let field = if near { decoder.get_constant_offsets(&theirs).displacement_offset() } else { 0 };
    let equal = usize::from(ours.len) == theirs.len()
        && same_flow(ours.flow, &theirs)
        && ours.is_near_branch() == branch
        && ours.to == to
        && usize::from(ours.field) == field
        && ours.nop == is_nop(&theirs)
        && ours.is_terminator() == is_terminator(&theirs)
        && (ours.truncated || theirs.memory_base() != Register::EIP);
    (!equal).then(|| {
        format!("different {shown:02x?} ({:?}, {:?}): {ours:?}", theirs.flow_control(), theirs.code())
    })
}

fn same_flow(ours: Flow, theirs: &Instruction) -> bool {
    match theirs.flow_control() {
        FlowControl::UnconditionalBranch => ours == Flow::Jump,
        FlowControl::IndirectBranch => ours == Flow::IndirectJump,
        FlowControl::ConditionalBranch => match ours {
            Flow::Condition(c) => theirs.condition_code() as u8 == c + 1 && !theirs.is_jcx_short(),
            Flow::Loop => theirs.is_jcx_short() || theirs.is_loop() || theirs.is_loopcc(),
            _ => false,
        },
        FlowControl::Return => ours == Flow::Return,
        FlowControl::Call => match theirs.mnemonic() {
            Mnemonic::Call => ours == Flow::Call,
            _ => ours == Flow::System,
        },
        FlowControl::IndirectCall => matches!(ours, Flow::IndirectCall | Flow::FarCall),
        FlowControl::XbeginXabortXend => matches!(ours, Flow::Begin | Flow::Next),
        FlowControl::Exception => matches!(ours, Flow::Stop | Flow::Next),
        FlowControl::Next | FlowControl::Interrupt => matches!(ours, Flow::Next | Flow::Stop),
    }
}

fn is_nop(i: &Instruction) -> bool {
    match i.mnemonic() {
        Mnemonic::Nop => true,
        Mnemonic::Lea => {
            i.code() == iced_x86::Code::Lea_r64_m
                && i.memory_base() == i.op0_register()
                && i.memory_index() == Register::None
                && i.memory_displacement64() == 0
        }
        _ => false,
    }
}

fn is_terminator(i: &Instruction) -> bool {
    matches!(
        i.flow_control(),
        FlowControl::UnconditionalBranch | FlowControl::IndirectBranch | FlowControl::Return
    ) || matches!(i.mnemonic(), Mnemonic::Ud0 | Mnemonic::Ud1 | Mnemonic::Ud2 | Mnemonic::Hlt)
}

const LIBRARIES: &[&str] = &[
    "libc.so.6",
    "libm.so.6",
    "libstdc++.so.6",
    "libcrypto.so.3",
    "libz.so.1",
    "libgmp.so.10",
    "libpython3.11.so.1.0",
];

#[test]
fn instructions_of_functions_are_decoded_as_the_tool_decodes_them() {
    let mut differences = BTreeSet::new();
    let mut count = 0;
    for library in LIBRARIES.iter().filter_map(|name| load(name)) {
        let object = library.object();
        for (start, size) in library.functions.iter().step_by(every()) {
            let Some(bytes) = object.bytes(*start, *size) else { continue };
            let mut decoder = Decoder::with_ip(64, bytes, *start, DecoderOptions::NONE);
            while decoder.can_decode() {
                let at = decoder.position();
                let _ = decoder.decode();
                differences.extend(difference(&bytes[at..], start + at as u64));
                count += 1;
            }
        }
    }
    assert!(differences.is_empty(), "{differences:#?}");
    assert!(count > 1000);
}

#[test]
fn random_bytes_are_decoded_as_the_tool_decodes_them() {
    let mut seed = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    let rounds = 10_000_000 / every();
    let (mut refused, mut accepted, mut different) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        let mut bytes = [0u8; 16];
        bytes[..8].copy_from_slice(&random().to_le_bytes());
        bytes[8..].copy_from_slice(&random().to_le_bytes());
        // Every other one begins as something that is rarely hit by chance.
        let choice = random();
        match choice % 12 {
            0 => bytes[0] = 0x0f,
            1 => bytes[..2].copy_from_slice(&[0x0f, if choice & 16 == 0 { 0x38 } else { 0x3a }]),
            2 => bytes[0] = 0xc5,
            3 => (bytes[0], bytes[1]) = (0xc4, bytes[1] & 0xe0 | (choice >> 8 & 3) as u8),
            4 => {
                let map = bytes[1] & 0xf0 | (choice >> 8 & 7) as u8;
                (bytes[0], bytes[1], bytes[2]) = (0x62, map, bytes[2] | 4);
            }
            5 => bytes[..2].copy_from_slice(&[[0x66, 0xf2, 0xf3, 0x48][(choice >> 8 & 3) as usize], 0x0f]),
            _ => {}
        }
        if let Some(text) = difference(&bytes, 0x7000_0000_1000) {
            match text.split(' ').next() {
                Some("refused") => refused.push(text),
                Some("accepted") => accepted.push(bytes),
                _ => different.push(text),
            }
        }
    }
    assert!(refused.is_empty() && different.is_empty(), "{refused:?}\n{different:?}");
    // What ours takes and theirs does not differs in operands that only the processor minds: fields of a vector prefix, and
    // forms with a register or with memory of opcodes that have the other one, or of which only some numbers are taken.
    let explained = |bytes: &[u8]| {
        let prefix =
            |b: &u8| matches!(b, 0x26 | 0x2e | 0x36 | 0x3e | 0x64..=0x67 | 0xf0 | 0xf2 | 0xf3 | 0x40..=0x4f);
        let rest: Vec<u8> = bytes.iter().copied().skip_while(prefix).collect();
        match rest[0] {
            0x62 | 0xc4 | 0xc5 | 0x8f => true,
            0x0f => matches!(
                rest[1],
                0x01 | 0x12
                    | 0x16
                    | 0x1a
                    | 0x1b
                    | 0x38
                    | 0x3a
                    | 0x6e
                    | 0x78
                    | 0x79
                    | 0xa6
                    | 0xa7
                    | 0xae
                    | 0xc7
                    | 0xf0
                    | 0x18..=0x1f | 0x0d | 0xd6 | 0x00
            ),
            _ => false,
        }
    };
    accepted.retain(|bytes: &[u8; 16]| !explained(bytes));
    assert!(accepted.is_empty(), "{accepted:02x?}");
}

/// The name of a variant, without what it holds.
fn kind(reason: &impl std::fmt::Debug) -> String {
    format!("{reason:?}").split(['(', ' ', '{']).next().unwrap_or_default().to_owned()
}

/// What the tool makes of a function of the library.
fn theirs(
    object: &Object,
    start: u64,
    size: u64,
    branches: &mut Option<Branches>,
) -> Result<Entry, EntryRefusal> {
    let text = object
        .segments()
        .find(|s| s.is_text() && (s.vaddr..s.vaddr + s.filesz).contains(&(start - object.bias())))
        .unwrap();
    let addr = object.bias() + text.vaddr;
    let text = Text { addr: RemoteAddr(addr), bytes: object.bytes(addr, text.filesz).unwrap() };
    let neighbours: Vec<_> = (size < 16)
        .then(|| object.described(start + size, 16))
        .flatten()
        .map(|(start, end)| RemoteAddr(start)..RemoteAddr(end))
        .into_iter()
        .collect();
    let body = Text { addr: RemoteAddr(start), bytes: object.bytes(start, size).unwrap() };
    let outside = |at: &RemoteAddr| !text.range().contains(at);
    let data: Vec<_> = possible_tables(body)
        .into_iter()
        .filter(outside)
        .filter_map(|at| object.tail(at.0).map(|bytes| Text { addr: at, bytes }))
        .collect();
    let function = Function {
        start: RemoteAddr(start),
        size,
        text,
        memory: None,
        neighbours: &neighbours,
        data: &data,
        taken: &[],
    };
    Entry::analyze_with(&function, Some(branches.get_or_insert_with(|| Branches::of(text))))
}

/// What differs between two judgements of one function.
fn judged_differently(ours: &Result<Site, Refusal>, theirs: &Result<Entry, EntryRefusal>) -> Option<String> {
    let (site, entry) = match (ours, theirs) {
        (Err(ours), Err(theirs)) if kind(ours) == kind(theirs) => return None,
        (Ok(site), Ok(entry)) => (site, entry),
        _ => return Some(format!("{ours:?} {theirs:?}")),
    };
    let mut written = vec![(site.place, site.original[..site.overwritten()].to_vec())];
    if site.is_springboard() {
        written.push((site.jump, site.padding.to_vec()));
    }
    let restored: Vec<_> = entry.restore().into_iter().map(|write| (write.addr.0, write.bytes)).collect();
    let same = site.start == entry.start().0
        && site.place == entry.place().0
        && site.jump == entry.jump().0
        && site.original[..usize::from(site.displaced)] == *entry.displaced_bytes()
        && written == restored;
    if !same {
        return Some(format!("{site:?} {entry:?}"));
    }
    // Near, and where only far jumps lead back.
    for at in [site.start.wrapping_sub(1 << 28), site.start.wrapping_sub(1 << 40)] {
        let mut code = [0; THUNK_MAX];
        let ours = site.thunk(at, &mut code).map(|len| code[..len].to_vec());
        let theirs = thunk::emit(entry, RemoteAddr(at), false);
        match (&ours, &theirs) {
            (Ok(ours), Ok(theirs)) if ours == theirs => {}
            (Err(_), Err(_)) => {}
            _ => return Some(format!("thunk {ours:02x?} {theirs:02x?} {site:02x?}")),
        }
    }
    None
}

#[test]
fn symbols_are_found_as_the_tool_finds_them() {
    let file = std::fs::File::options().read(true).write(true).open("/proc/self/mem").unwrap();
    let memory = Memory::new(Pid(std::process::id() as i32), file);
    let library = load("libstdc++.so.6").unwrap();
    let list = LOADER.lock().unwrap_or_else(PoisonError::into_inner);
    let maps = Maps::parse(&std::fs::read_to_string("/proc/self/maps").unwrap()).unwrap();
    let auxv = std::fs::read("/proc/self/auxv").unwrap();
    let objects = Objects::read(&memory, &maps, &auxv, Path::new("/proc/self")).unwrap();
    drop(list);
    for name in ["libc.so.6", "libstdc++.so.6"] {
        let library = if name == "libstdc++.so.6" { &library } else { &load(name).unwrap() };
        let object = library.object();
        assert!(object.is_named(name.as_bytes()) && !object.is_named(b"libc.so"));
        let file = File::open(&object).unwrap();
        let all = objects.find(Some(name)).unwrap();
        assert_eq!(all.build_id(), object.build_id());
        let mut names: Vec<_> = all.symbols().unwrap().functions().map(|(name, _)| name).collect();
        names.sort();
        names.dedup();
        for name in names.iter().step_by(4 * every()) {
            for position in 0..3 {
                let theirs = all.function(name, position);
                let ours = file.function(name.as_bytes(), position.into());
                match (&ours, &theirs) {
                    (Ok(ours), Ok(theirs)) => assert_eq!(ours.address, theirs.address.0, "{name}"),
                    (Err(_), Err(_)) => {}
                    // The tool reads separate debug files too.
                    (Err(Refusal::NotFound { local: false }), _) => {}
                    _ => panic!("{name} {position}: {ours:?} {theirs:?}"),
                }
            }
        }
    }
}

#[test]
fn entries_are_judged_as_the_tool_judges_them() {
    let libraries = if every() > 10 { &LIBRARIES[..2] } else { LIBRARIES };
    let (mut count, mut redirected, mut differences) = (0, 0, Vec::new());
    for library in libraries.iter().filter_map(|name| load(name)) {
        let object = library.object();
        let mut file = File::open(&object).unwrap();
        let mut branches = None;
        for &(start, size) in library.functions.iter().step_by(every()) {
            if object.bytes(start, size).is_none() {
                continue;
            }
            let found = Found { address: start, size, kind: STT_FUNC };
            let ours = Site::analyze(&object, &mut file, &found, [].iter());
            let theirs = theirs(&object, start, size, &mut branches);
            count += 1;
            redirected += usize::from(ours.is_ok());
            differences.extend(judged_differently(&ours, &theirs));
        }
    }
    assert!(differences.is_empty(), "{} of {count}: {differences:#?}", differences.len());
    assert!(redirected > 50);
}
