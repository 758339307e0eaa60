//! Every function of big libraries and programs of this system, analysed: nearly all can be redirected, each refusal has its reason,
//! and what a thunk would run is what the function ran.

use gimli::{BaseAddresses, CieOrFde, EhFrame, LittleEndian, UnwindSection};
use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic, OpKind};
use object::{Object, ObjectSection, ObjectSegment, ObjectSymbol, SegmentFlags, SymbolKind};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use ugraft_process::RemoteAddr;
use ugraft_process::code::entry::Entry;
use ugraft_process::code::function::{Branches, Function, Text};
use ugraft_process::code::thunk;

/// What is looked at, where it is installed.
const FILES: [&str; 8] = [
    "/lib/x86_64-linux-gnu/libc.so.6",
    "/lib/x86_64-linux-gnu/libcrypto.so.3",
    "/lib/x86_64-linux-gnu/libssl.so.3",
    "/lib/x86_64-linux-gnu/libstdc++.so.6",
    "/lib/x86_64-linux-gnu/libpython3.11.so.1.0",
    "/lib/x86_64-linux-gnu/libz.so.1",
    "/usr/bin/bash",
    "/usr/bin/redis-server",
];
/// Most functions of a file that may be refused, in percent.
const MAX_REFUSED: f64 = 4.0;
/// Every so many functions one has its thunk checked.
const SAMPLE: usize = 3;

/// Extents of functions with their names, by start; frame descriptions without a symbol have none.
fn functions(elf: &object::File<'_>) -> BTreeMap<u64, (u64, String)> {
    let mut functions = BTreeMap::new();
    if let Some(section) = elf.section_by_name(".eh_frame") {
        let data = section.uncompressed_data().unwrap();
        let bases = BaseAddresses::default().set_eh_frame(section.address());
        let eh_frame = EhFrame::new(&data, LittleEndian);
        let mut entries = eh_frame.entries(&bases);
        while let Ok(Some(entry)) = entries.next() {
            if let CieOrFde::Fde(partial) = entry {
                let fde = partial.parse(|_, bases, offset| eh_frame.cie_from_offset(bases, offset)).unwrap();
                functions.insert(fde.initial_address(), (fde.len(), String::new()));
            }
        }
    }
    for symbol in elf.symbols().chain(elf.dynamic_symbols()) {
        if symbol.kind() == SymbolKind::Text && symbol.is_definition() && symbol.size() > 0 {
            functions.insert(symbol.address(), (symbol.size(), symbol.name().unwrap_or_default().to_owned()));
        }
    }
    functions
}

/// An operation apart from where it runs: mnemonic and operands, with the addresses it refers to as they are.
fn essence(instruction: &Instruction) -> String {
    let operands: Vec<String> = instruction
        .op_kinds()
        .map(|kind| match kind {
            OpKind::NearBranch64 => "branch".to_owned(),
            OpKind::Memory if instruction.is_ip_rel_memory_operand() => {
                format!("[{:#x}]", instruction.ip_rel_memory_address())
            }
            OpKind::Memory => format!(
                "{:?}:[{:?}+{:?}*{}+{:#x}]",
                instruction.segment_prefix(),
                instruction.memory_base(),
                instruction.memory_index(),
                instruction.memory_index_scale(),
                instruction.memory_displacement64()
            ),
            OpKind::Register => String::new(),
            _ => instruction.try_immediate(0).map_or_else(|_| format!("{kind:?}"), |i| format!("{i:#x}")),
        })
        .collect();
    let registers: Vec<_> =
        (0..instruction.op_count()).map(|i| instruction.try_op_register(i).unwrap()).collect();
    format!(
        "{:?} {operands:?} {registers:?} {} {} {}",
        instruction.mnemonic(),
        instruction.has_lock_prefix(),
        instruction.has_rep_prefix(),
        instruction.has_repne_prefix()
    )
}

/// Checks that the code of a thunk at `at` does what the displaced instructions do.
fn check_thunk(entry: &Entry, at: RemoteAddr, code: &[u8]) {
    let mut decoder = Decoder::with_ip(64, code, at.0, DecoderOptions::NONE);
    let displaced = entry.displaced();
    let mut places = BTreeMap::new();
    let mut branches = Vec::new();
    let mut ends = false;
    for original in &displaced {
        places.insert(original.ip(), decoder.ip());
        if original.mnemonic() == Mnemonic::Call {
            let push = decoder.decode();
            assert_eq!(push.mnemonic(), Mnemonic::Push);
            let literal = (push.ip_rel_memory_address() - at.0) as usize;
            assert_eq!(code[literal..literal + 8], original.next_ip().to_le_bytes());
            let jump = decoder.decode();
            assert_eq!(jump.mnemonic(), Mnemonic::Jmp);
            if original.op0_kind() == OpKind::NearBranch64 {
                branches.push((original.near_branch64(), jump.near_branch64()));
            } else if original.memory_base() != iced_x86::Register::RSP {
                assert_eq!(essence(original).replacen("Call", "Jmp", 1), essence(&jump));
            }
            ends = true;
            continue;
        }
        let copy = decoder.decode();
        if original.op0_kind() == OpKind::NearBranch64 {
            assert_eq!(original.mnemonic(), copy.mnemonic());
            if copy.is_jcx_short() || copy.is_loop() || copy.is_loopcc() {
                let over = decoder.decode();
                assert_eq!(copy.near_branch64(), over.next_ip());
                let jump = decoder.decode();
                assert_eq!(over.near_branch64(), jump.next_ip());
                branches.push((original.near_branch64(), jump.near_branch64()));
            } else {
                branches.push((original.near_branch64(), copy.near_branch64()));
            }
        } else {
            assert_eq!(essence(original), essence(&copy));
        }
        ends = matches!(original.mnemonic(), Mnemonic::Jmp | Mnemonic::Ret | Mnemonic::Ud2 | Mnemonic::Hlt);
    }
    if !ends {
        let back = decoder.decode();
        assert_eq!((back.mnemonic(), back.near_branch64()), (Mnemonic::Jmp, entry.resume().0));
    }
    for (original, copy) in branches {
        assert_eq!(places.get(&original).copied().unwrap_or(original), copy);
    }
}

/// All branches that decoding every function from its start finds, sorted by destination: another way to what the analysis finds.
fn decoded_branches(text: Text<'_>, functions: &[Range<RemoteAddr>]) -> Vec<(u64, u64)> {
    let mut branches = Vec::new();
    for bytes in functions.iter().filter_map(|f| Some((f.start, text.get(f.clone())?))) {
        let body: Vec<Instruction> =
            Decoder::with_ip(64, bytes.1, bytes.0.0, DecoderOptions::NONE).into_iter().collect();
        // Some functions in assembler have data in them, which show as these.
        let data = [Mnemonic::INVALID, Mnemonic::Insb, Mnemonic::Insd, Mnemonic::Outsb, Mnemonic::Outsd];
        if !body.iter().any(|instruction| data.contains(&instruction.mnemonic())) {
            let near = body.iter().filter(|instruction| instruction.op0_kind() == OpKind::NearBranch64);
            branches.extend(near.map(|instruction| (instruction.near_branch64(), instruction.ip())));
        }
    }
    branches.sort_unstable();
    branches
}

/// No branch leads into what a redirect overwrites, but for those that move along.
fn check_branches(entry: &Entry, decoded: &[(u64, u64)]) {
    let displaced = entry.displaced();
    for range in entry.written() {
        let inside = range.start.0 + 1..range.end.0;
        let first = decoded.partition_point(|(to, _)| *to < inside.start);
        for (to, from) in decoded[first..].iter().take_while(|(to, _)| *to < inside.end) {
            let moves = |ip: u64| displaced.iter().any(|i| i.ip() == ip);
            assert!(moves(*from) && moves(*to), "the branch at {from:#x} leads to {to:#x}: {entry:x?}");
        }
    }
}

#[derive(Default)]
struct Tally {
    functions: usize,
    springboards: usize,
    refused: BTreeMap<String, usize>,
    thunks: usize,
    calls: usize,
}

/// The segments of a file with code, or with read-only data.
fn segments<'a>(elf: &object::File<'a>, exec: bool) -> Vec<Text<'a>> {
    let wanted = |flags| {
        let SegmentFlags::Elf { p_flags } = flags else { return false };
        (p_flags & object::elf::PF_X != 0) == exec && p_flags & object::elf::PF_W == 0
    };
    let segments = elf.segments().filter(|s| wanted(s.flags()));
    segments.map(|s| Text { addr: RemoteAddr(s.address()), bytes: s.data().unwrap() }).collect()
}

fn survey(path: &str) -> Tally {
    let file = std::fs::read(path).unwrap();
    let elf = object::File::parse(&*file).unwrap();
    let functions = functions(&elf);
    let neighbours: Vec<Range<RemoteAddr>> =
        functions.iter().map(|(start, (size, _))| RemoteAddr(*start)..RemoteAddr(start + size)).collect();
    let data = segments(&elf, false);
    let mut tally = Tally::default();
    for text in segments(&elf, true) {
        let branches = Branches::of(text);
        let decoded = decoded_branches(text, &neighbours);
        for (i, (start, (size, name))) in functions.iter().enumerate() {
            let start = RemoteAddr(*start);
            if !text.range().contains(&start) {
                continue;
            }
            tally.functions += 1;
            // Those near are enough, and many are slow.
            let near = &neighbours[i.saturating_sub(20)..neighbours.len().min(i + 20)];
            let f = Function {
                start,
                size: *size,
                text,
                memory: Some(text),
                neighbours: near,
                data: &data,
                taken: &[],
            };
            match Entry::analyze_with(&f, Some(&branches)) {
                Ok(entry) => {
                    check_branches(&entry, &decoded);
                    tally.springboards += usize::from(entry.is_springboard());
                    tally.calls += usize::from(thunk::pushes_return_address(&entry));
                    if i % SAMPLE == 0 {
                        let at = RemoteAddr(0x2000_0000);
                        let code = thunk::emit(&entry, at, false).unwrap();
                        check_thunk(&entry, at, &code);
                        tally.thunks += 1;
                    }
                    if i % 500 == 0 {
                        assert_eq!(Entry::analyze(&f).as_ref(), Ok(&entry), "with and without the index");
                    }
                }
                Err(refusal) => {
                    let reason = format!("{refusal:?}").split([' ', '(']).next().unwrap().to_owned();
                    if std::env::var_os("SURVEY_VERBOSE").is_some() {
                        println!("{path} {name}: {refusal}");
                    }
                    *tally.refused.entry(reason).or_default() += 1;
                }
            }
        }
    }
    tally
}

#[test]
fn nearly_all_functions_can_be_redirected() {
    for path in FILES.into_iter().filter(|path| Path::new(path).exists()) {
        let tally = survey(path);
        let refused: usize = tally.refused.values().sum();
        let percent = 100.0 * refused as f64 / tally.functions as f64;
        println!(
            "{path}: {} functions, {:.2} % can be redirected ({} by springboard, {} call at once), {} thunks checked; \
             refused {:?}",
            tally.functions,
            100.0 - percent,
            tally.springboards,
            tally.calls,
            tally.thunks,
            tally.refused
        );
        assert!(percent <= MAX_REFUSED, "{path}: {percent:.2} % refused");
    }
}

/// The functions that unwinders ask are judged by what lies around them (`Finder::find_at`), and all text says the same of them.
#[test]
fn what_unwinders_ask_is_judged_alike_by_its_surroundings() {
    const AROUND: i64 = 512;
    let mut found = 0;
    for path in [FILES[0], "/lib/ld-musl-x86_64.so.1"].into_iter().filter(|path| Path::new(path).exists()) {
        let file = std::fs::read(path).unwrap();
        let elf = object::File::parse(&*file).unwrap();
        let data = segments(&elf, false);
        let named = |name: &str| elf.dynamic_symbols().find(|s| s.name() == Ok(name) && s.is_definition());
        for symbol in ["_dl_find_object", "dl_iterate_phdr"].into_iter().filter_map(named) {
            let start = RemoteAddr(symbol.address());
            let all = segments(&elf, true).into_iter().find(|text| text.range().contains(&start)).unwrap();
            let end = start.offset(symbol.size() as i64 + AROUND).min(all.range().end);
            let around = start.offset(-AROUND).max(all.addr)..end;
            let judged = |text: Text<'_>| {
                Entry::analyze(&Function {
                    start,
                    size: symbol.size(),
                    text,
                    memory: None,
                    neighbours: &[],
                    data: &data,
                    taken: &[],
                })
            };
            let near = judged(Text { addr: around.start, bytes: all.get(around.clone()).unwrap() });
            assert!(near.is_ok(), "{path}: {near:?}");
            assert_eq!(near, judged(all), "{path}");
            found += 1;
        }
    }
    assert!(found > 0, "a C library has such functions");
}
