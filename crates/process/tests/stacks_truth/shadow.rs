//! A shadow stack: what is live on a stepped program's stacks, known from its instructions alone.

use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic};
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use ugraft_process::RemoteAddr;
use ugraft_process::target::maps::Maps;
use ugraft_process::target::memory::Memory;

/// Something on a stack that control will come back to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A call's return address in the word at `slot`; `register` while it was popped into one.
    Call { slot: u64, ra: u64, register: Option<iced_x86::Register> },
    /// A signal's frame: the handler's return address at `slot`, and what was interrupted. `returned` says that the
    /// handler has returned, to the code that calls rt_sigreturn.
    Signal { slot: u64, ra: u64, pc: u64, sp: u64, returned: bool },
}

impl Entry {
    pub fn slot(&self) -> u64 {
        match self {
            Entry::Call { slot, .. } | Entry::Signal { slot, .. } => *slot,
        }
    }

    pub fn ra(&self) -> u64 {
        match self {
            Entry::Call { ra, .. } | Entry::Signal { ra, .. } => *ra,
        }
    }
}

/// The shadow stacks, one for each run of mappings that a stack pointer was seen in.
#[derive(Default)]
pub struct Shadow {
    stacks: BTreeMap<u64, Vec<Entry>>,
    /// What the stack pointer passed last: setcontext pushes it again.
    passed: Option<Entry>,
    code: HashMap<u64, Instruction>,
}

/// Which stack `sp` is on: its run of readable and writable mappings, by the end (stacks grow at the start).
fn stack_of(maps: &Maps, sp: u64) -> u64 {
    let mut end = None;
    for m in maps.iter().filter(|m| m.read && m.write && m.end.0 > sp) {
        match end {
            None => end = Some(m.end.0),
            Some(e) if m.start.0 == e => end = Some(m.end.0),
            Some(_) => break,
        }
    }
    end.unwrap_or(0)
}

impl Shadow {
    /// The instruction at `pc`.
    pub fn decode(&mut self, memory: &Memory, pc: u64) -> Instruction {
        *self.code.entry(pc).or_insert_with(|| {
            let mut bytes = [0; 15];
            let mut len = 15;
            while memory.read(RemoteAddr(pc), &mut bytes[..len]).is_err() {
                len -= 1;
            }
            Decoder::with_ip(64, &bytes[..len], pc, DecoderOptions::NONE).decode()
        })
    }

    /// Forgets decoded instructions of memory that was mapped anew.
    pub fn forget_code(&mut self) {
        self.code.clear();
    }

    fn stack(&mut self, maps: &Maps, sp: u64) -> &mut Vec<Entry> {
        self.stacks.entry(stack_of(maps, sp)).or_default()
    }

    /// Accounts for the execution of `instruction`, which changed the registers from `old` to `new`.
    pub fn executed(
        &mut self,
        memory: &Memory,
        maps: &Maps,
        instruction: &Instruction,
        old: &libc::user_regs_struct,
        new: &libc::user_regs_struct,
    ) {
        let flow = instruction.flow_control();
        let calls = matches!(flow, FlowControl::Call | FlowControl::IndirectCall)
            && instruction.mnemonic() != Mnemonic::Syscall;
        if calls {
            let ra = instruction.next_ip();
            assert_eq!(memory.read_u64(RemoteAddr(new.rsp)).unwrap(), ra);
            self.stack(maps, new.rsp).push(Entry::Call { slot: new.rsp, ra, register: None });
            return;
        }
        if instruction.mnemonic() == Mnemonic::Syscall && old.rax == libc::SYS_rt_sigreturn as u64 {
            let stack = self.stack(maps, old.rsp);
            while !matches!(stack.pop().unwrap(), Entry::Signal { .. }) {}
            return;
        }
        let passed = self.passed.take();
        let known = self.stacks.contains_key(&stack_of(maps, new.rsp));
        let stack = self.stack(maps, new.rsp);
        match instruction.mnemonic() {
            Mnemonic::Pop => {
                if let Some(Entry::Call { slot, ra, register }) = stack.last_mut()
                    && *slot == old.rsp
                {
                    *register = Some(instruction.op0_register());
                    *ra = memory.read_u64(RemoteAddr(*slot)).unwrap();
                    return;
                }
            }
            Mnemonic::Push => {
                if let Some(Entry::Call { slot, ra, register: register @ Some(_) }) = stack.last_mut()
                    && *slot == new.rsp
                {
                    assert_eq!(memory.read_u64(RemoteAddr(new.rsp)).unwrap(), *ra);
                    *register = None;
                    return;
                }
                if let Some(entry) = passed.clone()
                    && entry.slot() == new.rsp
                    && entry.ra() == memory.read_u64(RemoteAddr(new.rsp)).unwrap()
                {
                    stack.push(entry);
                    return;
                }
            }
            _ => {}
        }
        // Whatever the stack pointer has passed is gone: returned from, jumped over by longjmp or an exception. One that
        // waits in a register, or a signal frame whose handler has returned, is right below the stack pointer.
        let mut gone = None;
        while let Some(entry) = stack.last_mut() {
            if entry.slot() >= new.rsp {
                break;
            }
            let right_below = entry.slot() + 8 == new.rsp;
            match entry {
                Entry::Call { register: Some(_), .. } if right_below && flow == FlowControl::Next => break,
                Entry::Signal { returned, .. }
                    if right_below && (*returned || flow == FlowControl::Return) =>
                {
                    *returned = true;
                    break;
                }
                _ => gone = stack.pop(),
            }
        }
        let begins = !known && flow == FlowControl::Return && stack.is_empty();
        self.passed = gone.or(passed);
        let stack = self.stack(maps, new.rsp);
        // A coroutine begins: the function's return address was put there by makecontext.
        if begins {
            let ra = memory.read_u64(RemoteAddr(new.rsp)).unwrap();
            stack.push(Entry::Call { slot: new.rsp, ra, register: None });
        }
    }

    /// Accounts for a signal that was delivered on top of `old`; `new` is at the handler's first instruction.
    pub fn signalled(
        &mut self,
        memory: &Memory,
        maps: &Maps,
        old: &libc::user_regs_struct,
        new: &libc::user_regs_struct,
    ) {
        let ra = memory.read_u64(RemoteAddr(new.rsp)).unwrap();
        let entry = Entry::Signal { slot: new.rsp, ra, pc: old.rip, sp: old.rsp, returned: false };
        self.stack(maps, new.rsp).push(entry);
    }

    /// The live entries that the thread's present execution comes back to, the innermost first, across the stacks
    /// that signals interrupted.
    pub fn chain(&self, maps: &Maps, sp: u64) -> Vec<Entry> {
        let mut chain = Vec::new();
        let mut stack = stack_of(maps, sp);
        let mut below = u64::MAX;
        'stack: loop {
            let entries = self.stacks.get(&stack).map_or(&[][..], |v| v);
            for entry in entries.iter().rev().skip_while(|e| below != u64::MAX && e.slot() < below) {
                chain.push(entry.clone());
                if let Entry::Signal { sp, .. } = entry {
                    let next = stack_of(maps, *sp);
                    if next != stack {
                        (stack, below) = (next, *sp);
                        continue 'stack;
                    }
                }
            }
            return chain;
        }
    }

    /// Entries on stacks that end within `range`.
    pub fn on(&self, range: Range<u64>) -> impl Iterator<Item = &Entry> {
        self.stacks.range(range).flat_map(|(_, v)| v)
    }

    /// A live entry's word was overwritten by the program (exceptions put the handler's address there).
    pub fn overwrite(&mut self, at: u64, value: u64) {
        for entry in self.stacks.values_mut().flatten() {
            if let Entry::Call { slot, ra, .. } = entry
                && *slot == at
            {
                *ra = value;
            }
        }
    }
}
