//! What the analysis of an entry says where nothing needs to be executed: writes, watched ranges, refusals by what others did.

use proptest::prelude::*;
use std::ops::Range;
use ugraft_process::RemoteAddr;
use ugraft_process::code::entry::{Entry, EntryRefusal, ForeignKind, Installed, OutOfReach};
use ugraft_process::code::function::{Function, Text};
use ugraft_process::code::thunk::{self, ThunkError};

const START: RemoteAddr = RemoteAddr(0x40_1000);

/// `push rbx; mov rbx, rdi; call +0x100; pop rbx; ret`, padded to 16 bytes.
const CODE: [u8; 16] =
    [0x53, 0x48, 0x89, 0xfb, 0xe8, 0x00, 0x01, 0x00, 0x00, 0x5b, 0xc3, 0x90, 0x90, 0x90, 0x90, 0x90];
const SIZE: u64 = 11;

fn text(bytes: &[u8]) -> Text<'_> {
    Text { addr: START, bytes }
}

fn function<'a>(file: &'a [u8], memory: &'a [u8]) -> Function<'a> {
    Function {
        start: START,
        size: SIZE,
        text: text(file),
        memory: Some(text(memory)),
        neighbours: &[],
        data: &[],
        taken: &[],
    }
}

#[test]
fn writes_and_watches_the_five_bytes() {
    let entry = Entry::analyze(&function(&CODE, &CODE)).unwrap();
    assert_eq!(
        (entry.start(), entry.place(), entry.jump(), entry.resume()),
        (START, START, START, START.offset(9))
    );
    assert_eq!(entry.written(), [START..START.offset(5)]);
    assert_eq!(entry.watch_install(), [START.offset(1)..START.offset(5)]);
    assert_eq!(entry.watch_restore(), []);
    let target = RemoteAddr(0x40_0000);
    let writes = entry.entry_to(target).unwrap();
    assert_eq!(writes.len(), 1);
    assert_eq!((writes[0].addr, &*writes[0].bytes), (START, &[0xe9, 0xfb, 0xef, 0xff, 0xff][..]));
    let restore = entry.restore();
    assert_eq!((restore.len(), restore[0].addr, &*restore[0].bytes), (1, START, &CODE[..5]));
    let far = RemoteAddr(0x7f00_0000_0000);
    assert!(entry.reaches(target) && !entry.reaches(far));
    assert_eq!(entry.entry_to(far), Err(OutOfReach { from: START, to: far }));
}

#[test]
fn knows_what_is_installed() {
    let entry = Entry::analyze(&function(&CODE, &CODE)).unwrap();
    let installed = |memory: [u8; 5]| {
        entry
            .installed(|addr, bytes| {
                assert_eq!(addr, START);
                bytes.copy_from_slice(&memory[..bytes.len()]);
                Ok::<_, ()>(())
            })
            .unwrap()
    };
    assert_eq!(installed(CODE[..5].try_into().unwrap()), Installed::Original);
    assert_eq!(installed([0xe9, 0, 0, 0, 0x80]), Installed::Redirect(START.offset(5 - (1 << 31))));
    assert_eq!(installed([0xcc, 0x48, 0x89, 0xfb, 0xe8]), Installed::Other);
    assert_eq!(entry.installed(|_, _| Err("gone")), Err("gone"));
}

#[test]
fn survives_being_saved() {
    let entry = Entry::analyze(&function(&CODE, &CODE)).unwrap();
    let saved = serde_json::to_string(&entry).unwrap();
    assert_eq!(serde_json::from_str::<Entry>(&saved).unwrap(), entry);
}

#[test]
fn names_what_others_did_and_where() {
    for (offset, byte, what) in [
        (0, 0xcc, ForeignKind::Breakpoint),
        (0, 0xe9, ForeignKind::Jump),
        (0, 0xe8, ForeignKind::Call),
        (3, 0xcc, ForeignKind::Breakpoint),
        (8, 0x77, ForeignKind::Change),
    ] {
        let mut memory = CODE;
        memory[offset] = byte;
        let refusal = Entry::analyze(&function(&CODE, &memory)).unwrap_err();
        assert_eq!(refusal, EntryRefusal::Foreign { start: START, offset: offset as u64, what });
        assert!(refusal.to_string().contains(&format!("{offset} bytes into the function at 0x401000")));
    }
    // Behind what is overwritten or moved, others may do what they like.
    let mut memory = CODE;
    memory[9] = 0xcc;
    assert!(Entry::analyze(&function(&CODE, &memory)).is_ok());
}

#[test]
fn refuses_what_it_cannot_see_whole() {
    let mut f = function(&CODE[..10], &CODE);
    assert_eq!(Entry::analyze(&f), Err(EntryRefusal::OutsideText(START)));
    f = function(&CODE, &CODE[..4]);
    assert_eq!(Entry::analyze(&f), Err(EntryRefusal::OutsideText(START)));
    f = function(&CODE, &CODE);
    f.size = 0;
    assert_eq!(Entry::analyze(&f), Err(EntryRefusal::NoSize(START)));
    f.size = u64::MAX;
    assert_eq!(Entry::analyze(&f), Err(EntryRefusal::OutsideText(START)));
    f.size = 1 << 63;
    assert_eq!(Entry::analyze(&f), Err(EntryRefusal::OutsideText(START)));
}

/// A return behind which one thing or another lies.
#[test]
fn short_functions_need_padding_that_is_theirs() {
    let analyze = |bytes: &[u8], size: u64, neighbours: &[Range<RemoteAddr>]| {
        Entry::analyze(&Function { size, neighbours, memory: None, ..function(bytes, bytes) })
    };
    let short = EntryRefusal::TooShort { start: START, room: 3, need: 5 };
    let next = |at: i64| [START.offset(at)..START.offset(16)];
    let mut bytes = [0x90; 16];
    bytes[..3].copy_from_slice(&[0x31, 0xc0, 0xc3]);
    assert!(analyze(&bytes, 3, &[]).is_ok());
    assert!(analyze(&bytes, 3, &next(8)).is_ok());
    assert_eq!(analyze(&bytes, 3, &next(4)), Err(EntryRefusal::TooShort { start: START, room: 4, need: 5 }));
    assert_eq!(analyze(&bytes, 3, &next(3)), Err(short.clone()));
    // Nobody knows where the next function begins: the padding must go on to where one would.
    bytes[12] = 0x55;
    assert_eq!(analyze(&bytes, 3, &[]), Err(short));
    assert!(analyze(&bytes, 3, &next(12)).is_ok());
    for padding in [0xcc, 0x00] {
        bytes[3..].fill(padding);
        assert!(analyze(&bytes, 3, &[]).is_ok());
    }
}

#[test]
fn padding_is_promised_once() {
    let mut bytes = [0x90; 16];
    bytes[..3].copy_from_slice(&[0x31, 0xc0, 0xc3]);
    let analyze = |taken: Range<RemoteAddr>| {
        Entry::analyze(&Function { size: 3, memory: None, taken: &[taken], ..function(&bytes, &bytes) })
    };
    assert_eq!(analyze(START.offset(4)..START.offset(9)).unwrap().jump(), START.offset(9));
    assert_eq!(analyze(START.offset(4)..START.offset(12)), Err(EntryRefusal::PaddingTaken(START)));
}

/// A function two bytes before a page's end, `before` right before it and `behind` right behind it; nothing known of others.
fn at_the_page_end(before: &[u8], behind: &[u8]) -> Result<Entry, EntryRefusal> {
    let start = RemoteAddr(0x40_1ffe);
    // mov eax, 1; nop by the way, ending in step.
    let mut bytes = [0xb8, 1, 0, 0, 0].repeat(60);
    bytes.extend(before);
    let at = bytes.len();
    bytes.extend(&CODE[..SIZE as usize]);
    bytes.extend(behind);
    bytes.extend([0xf4; 64]);
    let text = Text { addr: start.offset(-(at as i64)), bytes: &bytes };
    let f = Function { start, size: SIZE, text, memory: Some(text), neighbours: &[], data: &[], taken: &[] };
    Entry::analyze(&f)
}

#[test]
fn an_entry_across_pages_goes_through_the_padding_that_adjoins_it() {
    let start = RemoteAddr(0x40_1ffe);
    let end = start.offset(SIZE as i64);
    let refusal = EntryRefusal::StraddlesPage { place: start };
    // The function ends at ...9, seven bytes before the next could begin.
    let behind = at_the_page_end(&[], &[0x90; 7]).unwrap();
    assert!(behind.is_springboard());
    assert_eq!((behind.jump(), behind.watch_install()), (end, vec![start.offset(1)..start.offset(2)]));
    assert_eq!(behind.watch_restore(), [end..end.offset(5)]);
    let writes = behind.entry_to(RemoteAddr(0x40_0000)).unwrap();
    // First the jump that nobody comes to yet, then the way to it.
    assert_eq!((writes[0].addr, writes[0].bytes.len()), (end, 5));
    assert_eq!((writes[1].addr, &*writes[1].bytes), (start, &[0xeb, 9][..]));
    let back: Vec<_> = behind.restore().into_iter().map(|w| (w.addr, w.bytes)).collect();
    assert_eq!(back, [(start, CODE[..2].to_vec()), (end, vec![0x90; 5])]);

    assert_eq!(at_the_page_end(&[], &[0x90; 6]), Err(refusal.clone()));
    for padding in [0x90, 0xcc] {
        let before = [&[0xc3][..], &[padding; 6]].concat();
        assert_eq!(at_the_page_end(&before, &[]).unwrap().jump(), start.offset(-6));
        // Too short, and behind an instruction that runs into it.
        assert_eq!(at_the_page_end(&before[..5], &[]), Err(refusal.clone()));
        assert_eq!(at_the_page_end(&before[1..], &[]), Err(refusal.clone()));
    }
}

#[test]
fn thunks_refuse_by_name() {
    // mov rax, [rip+0x100]
    let code =
        [0x48, 0x8b, 0x05, 0x00, 0x01, 0x00, 0x00, 0xc3, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90];
    let entry = Entry::analyze(&Function { size: 8, ..function(&code, &code) }).unwrap();
    assert_eq!(thunk::references(&entry), [START.offset(7 + 0x100)]);
    assert!(thunk::emit(&entry, RemoteAddr(0x7000_0000), true).is_ok());
    let far = RemoteAddr(0x1_0000_0000);
    let refusal = thunk::emit(&entry, far, false).unwrap_err();
    let source = OutOfReach { from: far.offset(7), to: START.offset(7 + 0x100) };
    assert_eq!(refusal, ThunkError::OutOfReach { start: START, source });

    let calls = Entry::analyze(&function(&CODE, &CODE)).unwrap();
    assert!(thunk::pushes_return_address(&calls));
    assert_eq!(thunk::emit(&calls, far, true), Err(ThunkError::ShadowStack { start: START }));
    assert!(thunk::emit(&calls, far, false).is_ok());
}

/// `xbegin` is not to be had on every machine, so it is looked at only.
#[test]
fn xbegin_keeps_its_way_out() {
    let mut code = [0x90; 32];
    code[..6].copy_from_slice(&[0xc7, 0xf8, 0x0a, 0, 0, 0]);
    code[31] = 0xc3;
    let entry = Entry::analyze(&Function { size: 32, ..function(&code, &code) }).unwrap();
    let at = START.offset(0x1000);
    let thunk = thunk::emit(&entry, at, false).unwrap();
    assert_eq!(thunk[..2], [0xc7, 0xf8]);
    let rel = i32::from_le_bytes(thunk[2..6].try_into().unwrap());
    assert_eq!(at.offset(6 + i64::from(rel)), START.offset(16));
}

/// Bytes as instructions begin: the opcodes that need thought, and any others.
fn code_byte() -> impl Strategy<Value = u8> {
    prop_oneof![
        any::<u8>(),
        prop::sample::select(vec![
            0x0f, 0x40, 0x48, 0x66, 0x67, 0x70, 0x75, 0x8b, 0x8d, 0x90, 0xc3, 0xc7, 0xcc, 0xe2, 0xe3, 0xe8,
            0xe9, 0xeb, 0xf2, 0xf3, 0xff, 0x05, 0x15, 0x25, 0x24, 0x54, 0x00, 0x01, 0x02, 0xfe, 0xfd, 0x3e,
        ]),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    /// Whatever a function holds, and wherever it lies: a verdict, and where it is yes, writes within a page, an original that comes
    /// back, and a thunk within its bound.
    #[test]
    fn any_bytes_get_a_verdict(
        bytes in prop::collection::vec(code_byte(), 1..200),
        at in 0usize..100,
        size in 0u64..120,
        page in prop_oneof![Just(0u64), Just(0x40_0000), Just(0x7fff_ffff_e000), Just(u64::MAX - 0xfff)],
        offset in 0u64..4096,
        split in 0u64..200,
    ) {
        let addr = RemoteAddr(page.wrapping_add(offset));
        let text = Text { addr, bytes: &bytes };
        let neighbours = [addr.offset(split as i64)..addr.offset(split as i64 + 9)];
        let f = Function {
            start: addr.offset(at as i64),
            size,
            text,
            memory: Some(text),
            neighbours: &neighbours,
            data: &[text],
            taken: &[],
        };
        let Ok(entry) = Entry::analyze(&f) else { return Ok(()) };
        let mut memory = bytes.clone();
        let mut apply = |writes: Vec<ugraft_process::code::entry::Write>| {
            for write in writes {
                let from = write.addr.distance_from(addr) as usize;
                memory[from..from + write.bytes.len()].copy_from_slice(&write.bytes);
                assert!(write.addr.0 % 4096 + write.bytes.len() as u64 <= 4096);
            }
            memory.clone()
        };
        let target = entry.jump().offset(0x1234);
        let redirected = apply(entry.entry_to(target).unwrap());
        let found = entry.installed(|addr, now| {
            let from = addr.distance_from(text.addr) as usize;
            now.copy_from_slice(&redirected[from..from + now.len()]);
            Ok::<_, ()>(())
        });
        prop_assert_eq!(found, Ok(Installed::Redirect(target)));
        prop_assert_eq!(&apply(entry.restore()), &bytes);
        for thunk_at in [entry.start().offset(1 << 20), entry.start().offset(1 << 40)] {
            if let Ok(code) = thunk::emit(&entry, thunk_at, false) {
                prop_assert!(code.len() <= thunk::MAX_LEN);
            }
        }
    }
}
