//! Another second opinion on the unwinder: that of framehop, the unwinder of a sampling profiler.
//!
//! framehop falls back to frame pointers where tables fail, without saying so, and knows no signal frames. So it is asked one
//! step at a time, and believed where the tables have plain rules for that step, which leave it nothing to guess. There its
//! frame must be ours.

#[path = "stacks_support/mod.rs"]
mod support;

use framehop::x86_64::{CacheX86_64, UnwindRegsX86_64, UnwinderX86_64};
use framehop::{ExplicitModuleSectionInfo, FrameAddress, Module, Unwinder};
use gimli::{
    BaseAddresses, CfaRule, EhFrame, EhFrameHdr, EndianSlice, LittleEndian, RegisterRule, UnwindContext,
    UnwindSection, X86_64,
};
use object::{Object, ObjectSection, ObjectSegment};
use std::ops::Range;
use support::programs::{self, Program};
use support::{Stop, Traced, build};
use ugraft_process::RemoteAddr;
use ugraft_process::stacks::cfi::Cfi;
use ugraft_process::stacks::unwind::{self, End, Walk};
use ugraft_process::target::maps::Maps;
use ugraft_process::target::memory::Memory;

/// The unwind tables of one ELF object in a process.
struct Tables {
    code: Range<u64>,
    /// What is to be added to the addresses that the object states.
    bias: u64,
    bases: BaseAddresses,
    header: Vec<u8>,
    frames: Vec<u8>,
}

impl Tables {
    /// Whether the rules at `addr` are such that every unwinder must take the step from there in the same way: return
    /// address and caller's frame pointer at a distance from the stack or the frame pointer.
    fn are_plain(&self, addr: u64) -> bool {
        let mut frames = EhFrame::new(&self.frames, LittleEndian);
        frames.set_address_size(8);
        let Ok(header) = EhFrameHdr::new(&self.header, LittleEndian).parse(&self.bases, 8) else {
            return false;
        };
        let mut context: UnwindContext<usize> = UnwindContext::new();
        let row = header.table().and_then(|table| {
            table
                .unwind_info_for_address(
                    &frames,
                    &self.bases,
                    &mut context,
                    addr - self.bias,
                    EhFrame::<EndianSlice<'_, LittleEndian>>::cie_from_offset,
                )
                .ok()
        });
        row.is_some_and(|row| {
            let cfa = matches!(row.cfa(), CfaRule::RegisterAndOffset { register, offset }
                if [X86_64::RSP, X86_64::RBP].contains(register) && offset % 8 == 0);
            let kept = matches!(
                row.register(X86_64::RBP),
                RegisterRule::Undefined | RegisterRule::SameValue | RegisterRule::Offset(_)
            );
            let back = matches!(row.register(X86_64::RA), RegisterRule::Undefined | RegisterRule::Offset(-8));
            cfa && kept && back
        })
    }
}

/// framehop, and what it knows of a process.
struct Framehop {
    unwinder: UnwinderX86_64<Vec<u8>>,
    cache: CacheX86_64,
    tables: Vec<Tables>,
}

/// How far framehop confirmed a walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Confirmed {
    /// So many steps from a frame to its caller.
    steps: usize,
    /// And the last frame as the outermost one.
    end: bool,
}

impl Framehop {
    fn of(memory: &Memory, maps: &Maps) -> Self {
        let mut all = Self { unwinder: UnwinderX86_64::new(), cache: CacheX86_64::new(), tables: Vec::new() };
        for code in maps.iter().filter(|m| m.exec && m.read) {
            let first = maps.iter().find(|m| m.name == code.name && m.offset.0 == 0);
            let data = match code.name.as_str() {
                "[vdso]" => memory.read_vec(code.start, code.len() as usize).unwrap(),
                path if path.starts_with('/') => std::fs::read(path).unwrap(),
                _ => continue,
            };
            let (Some(first), Ok(file)) = (first, object::File::parse(&*data)) else { continue };
            let stated = file.segments().map(|s| s.address()).min().unwrap() & !0xfff;
            all.add(&code.name, code.start.0..code.end.0, first.start.0 - stated, &file);
        }
        all
    }

    fn add(&mut self, name: &str, code: Range<u64>, bias: u64, file: &object::File<'_>) {
        let section = |name: &str| {
            let section = file.section_by_name(name)?;
            Some((section.address()..section.address() + section.size(), section.data().ok()?.to_vec()))
        };
        let (Some((header_at, header)), Some((frames_at, frames))) =
            (section(".eh_frame_hdr"), section(".eh_frame"))
        else {
            return;
        };
        let text = section(".text").map_or(0..0, |(range, _)| range);
        let bases = BaseAddresses::default()
            .set_eh_frame_hdr(header_at.start)
            .set_eh_frame(frames_at.start)
            .set_text(text.start);
        let info = ExplicitModuleSectionInfo {
            text_svma: Some(text),
            eh_frame_svma: Some(frames_at),
            eh_frame: Some(frames.clone()),
            eh_frame_hdr_svma: Some(header_at),
            eh_frame_hdr: Some(header.clone()),
            ..Default::default()
        };
        self.unwinder.add_module(Module::new(name.to_owned(), code.clone(), bias, info));
        self.tables.push(Tables { code, bias, bases, header, frames });
    }

    /// Takes the steps of `walk`, which began with these registers.
    fn confirm(&mut self, memory: &Memory, regs: &libc::user_regs_struct, walk: &Walk) -> Confirmed {
        let mut read = |at| memory.read_u64(RemoteAddr(at)).map_err(drop);
        let mut at = FrameAddress::from_instruction_pointer(regs.rip);
        let mut state = UnwindRegsX86_64::new(regs.rip, regs.rsp, regs.rbp);
        let mut steps = 0;
        loop {
            let lookup = at.address_for_lookup();
            let plain = self.tables.iter().any(|t| t.code.contains(&lookup) && t.are_plain(lookup));
            let next = walk.frames.get(steps + 1);
            // A frame that a signal interrupted is not its handler's caller.
            if !plain || next.is_some_and(|frame| frame.exact) {
                return Confirmed { steps, end: false };
            }
            match (self.unwinder.unwind_frame(at, &mut state, &mut self.cache, &mut read), next) {
                (Ok(Some(back)), Some(frame)) => {
                    assert_eq!((back, state.sp()), (frame.pc, frame.sp), "step {steps} of {walk:x?}");
                    at = FrameAddress::from_return_address(back).unwrap();
                    steps += 1;
                }
                (Ok(None), None) => return Confirmed { steps, end: walk.end == End::Outermost },
                // We are the stricter one.
                (Ok(Some(_)) | Err(_), None) if walk.end != End::Outermost => {
                    return Confirmed { steps, end: false };
                }
                (theirs, _) => panic!("{theirs:x?} at step {steps} of {walk:x?}"),
            }
        }
    }
}

/// Asks framehop about all threads; `whole` walks at least must be confirmed from one end to the other.
fn compare(program: Option<Program>, whole: usize) {
    let Some(program) = program else { return };
    let mut cfi = Cfi::default();
    let mut framehop: Option<Framehop> = None;
    let seen = program.of_each(|memory, maps, thread| {
        let walk = unwind::walk(&mut cfi, memory, maps, thread);
        let framehop = framehop.get_or_insert_with(|| Framehop::of(memory, maps));
        (framehop.confirm(memory, thread.regs, &walk), walk.frames.len())
    });
    let confirmed = seen.values().filter(|(c, frames)| c.end && c.steps + 1 == *frames).count();
    assert!(confirmed >= whole, "{seen:?}");
}

#[test]
fn python_with_threads_in_many_places() {
    compare(programs::python(), 10);
}

#[test]
fn redis_server() {
    compare(programs::redis(), 3);
}

#[test]
fn a_shell_that_waits() {
    compare(programs::bash(), 1);
}

/// At every instruction of a program that calls in many ways, with frame pointers and without.
#[test]
fn instruction_by_instruction() {
    const POINTS: usize = 3_000;
    let dir = tempfile::tempdir().unwrap();
    for flags in [["-O2", "-fomit-frame-pointer"], ["-O0", "-fno-omit-frame-pointer"]] {
        let exe = build(dir.path(), "mix", "cc", &flags, &["mix.c"]);
        let mut target = Traced::start(&exe, &[]);
        target.run_to(target.address("main"));
        let (memory, maps) = (target.memory(), target.maps());
        let mut framehop = Framehop::of(&memory, &maps);
        let mut cfi = Cfi::default();
        let (mut steps, mut ends) = (0, 0);
        for _ in 0..POINTS {
            let regs = target.regs();
            let walk = unwind::walk(&mut cfi, &memory, &maps, target.thread(&regs));
            let confirmed = framehop.confirm(&memory, &regs, &walk);
            steps += confirmed.steps;
            ends += usize::from(confirmed.end);
            assert!(matches!(target.step(0), Stop::Signal(libc::SIGTRAP, _)));
        }
        // Where it cannot be compared is mostly the loader binding.
        assert!(ends > POINTS / 2 && steps > POINTS, "{ends} ends, {steps} steps");
    }
}
