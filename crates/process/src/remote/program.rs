//! A program of system calls, as it lies on the thread's stack: what the code in the [cave](super::cave) works through.

use super::seccomp;
use crate::limits::{CATCH_WAIT, PROGRAM_CALLS};
use crate::remote::cave::Cave;
use crate::target::Target;
use crate::threads::{Restart, restart_code};
use crate::{RemoteAddr, Result};
use std::collections::HashMap;

/// System V ABI for x86-64: leaf functions use this much below rsp.
pub(super) const RED_ZONE: u64 = 128;

/// An argument of a system call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Arg {
    /// A number.
    Value(u64),
    /// The result of the program's call with this index, which comes before.
    Result(usize),
    /// The address of these bytes, in the target.
    Bytes(Vec<u8>),
}

impl From<u64> for Arg {
    fn from(value: u64) -> Self {
        Self::Value(value)
    }
}

/// Where a program goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// With the call behind this one.
    Following,
    /// With the call of this index.
    Jump(usize),
    /// It ends.
    End,
}

/// Where a program goes on after an error.
pub type OnError = Next;

/// One system call of a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Syscall {
    /// Its name, for messages.
    pub name: &'static str,
    /// Its number.
    pub number: i64,
    /// Its arguments; those not given are 0.
    pub args: Vec<Arg>,
    /// Where to go on after success.
    pub then: Next,
    /// Where to go on after an error.
    pub on_error: OnError,
}

impl Syscall {
    /// A call that ends the program if it fails.
    #[must_use]
    pub fn new(name: &'static str, number: i64, args: Vec<Arg>) -> Self {
        Self { name, number, args, then: Next::Following, on_error: Next::End }
    }

    /// Where to go on after an error.
    #[must_use]
    pub fn on_error(mut self, next: Next) -> Self {
        self.on_error = next;
        self
    }

    /// Where to go on after success.
    #[must_use]
    pub fn then(mut self, next: Next) -> Self {
        self.then = next;
        self
    }
}

/// Marks a result that no call has given: no system call returns it.
const NOT_MADE: u64 = 1 << 63;

const WORD: u64 = 8;

/// Words of a record; see the [cave](crate::remote::cave).
const RECORD_WORDS: u64 = 10;

const RESULT: u64 = 7;

/// Number of a record that ends the program.
const LEAVE: u64 = u64::MAX;

/// A program as it lies on the thread's stack.
pub(super) struct Image {
    pub(super) base: RemoteAddr,
    pub(super) bytes: Vec<u8>,
    pub(super) first_record: RemoteAddr,
    pub(super) saved_regs: RemoteAddr,
    /// The record of the sleep in which the thread is caught.
    catch: RemoteAddr,
    calls: usize,
}

impl Image {
    /// Lays out, from low to high: records, numbers that arguments point to, bytes, the progress word, the saved registers,
    /// and rip just below the red zone.
    pub(super) fn build(own: &libc::user_regs_struct, mask: u64, calls: &[Syscall]) -> Self {
        assert!(calls.len() <= PROGRAM_CALLS, "a program of {} calls", calls.len());
        // Behind the caller's calls: the sleep, the signal mask, the end.
        let catch_time: Vec<u8> = [CATCH_WAIT.as_secs(), u64::from(CATCH_WAIT.subsec_nanos())]
            .iter()
            .flat_map(|word| word.to_le_bytes())
            .collect();
        let none = || Arg::Value(0);
        let sleep = vec![none(), none(), none(), none(), Arg::Bytes(catch_time), none()];
        let set_mask = vec![
            Arg::Value(libc::SIG_SETMASK as u64),
            Arg::Bytes(mask.to_le_bytes().to_vec()),
            none(),
            Arg::Value(size_of::<u64>() as u64),
        ];
        let own_calls = [
            Syscall::new("pselect6", libc::SYS_pselect6, sleep).on_error(Next::Following),
            Syscall::new("rt_sigprocmask", libc::SYS_rt_sigprocmask, set_mask).on_error(Next::Following),
        ];
        let records = calls.len() + own_calls.len() + 1;
        let mut pool = Pool::default();
        let regs = saved_words(own);
        // Sizes first, since everything lies below a fixed upper end.
        for call in calls.iter().chain(&own_calls) {
            call.args.iter().for_each(|arg| pool.add(arg));
        }
        pool.add(&Arg::Value(0));
        let records_len = records as u64 * RECORD_WORDS * WORD;
        let pool_len = (pool.bytes.len() as u64).next_multiple_of(WORD);
        let saved_regs = RemoteAddr(own.rsp - RED_ZONE - regs.len() as u64 * WORD);
        let unaligned = saved_regs.0 - WORD - pool_len - records_len;
        let base = RemoteAddr(unaligned & !63);
        let pool_base = base.0 + records_len;
        let record = |i: usize| base.0 + i as u64 * RECORD_WORDS * WORD;
        let mut bytes = vec![0u8; (own.rsp - RED_ZONE - base.0) as usize];
        let mut put = |addr: u64, word: u64| {
            let at = (addr - base.0) as usize;
            bytes[at..at + 8].copy_from_slice(&word.to_le_bytes());
        };
        for (i, call) in calls.iter().chain(&own_calls).enumerate() {
            assert!(call.args.len() <= 6, "{} with {} arguments", call.name, call.args.len());
            let follow = |next| match next {
                Next::Following => record(i + 1),
                Next::Jump(to) => {
                    assert!(to < calls.len(), "{} goes on at call {to} of {}", call.name, calls.len());
                    record(to)
                }
                Next::End => record(calls.len()),
            };
            let at = |word: u64| record(i) + word * WORD;
            put(at(0), call.number.cast_unsigned());
            for n in 0..6 {
                let arg = call.args.get(n).unwrap_or(&Arg::Value(0));
                let pointer = match arg {
                    Arg::Result(of) => {
                        assert!(*of < calls.len(), "{} uses the result of call {of}", call.name);
                        record(*of) + RESULT * WORD
                    }
                    arg => pool_base + pool.pointer(arg),
                };
                put(at(1 + n as u64), pointer);
            }
            put(at(RESULT), NOT_MADE);
            put(at(8), follow(call.then));
            put(at(9), follow(call.on_error));
        }
        put(record(records - 1), LEAVE);
        for (i, word) in regs.iter().enumerate() {
            put(saved_regs.0 + i as u64 * WORD, *word);
        }
        let at = (pool_base - base.0) as usize;
        bytes[at..at + pool.bytes.len()].copy_from_slice(&pool.bytes);
        // Pointers to bytes are numbers that are only known now.
        for (slot, offset) in pool.addresses {
            let at = (pool_base + slot - base.0) as usize;
            bytes[at..at + 8].copy_from_slice(&(pool_base + offset).to_le_bytes());
        }
        Self {
            base,
            bytes,
            first_record: RemoteAddr(record(0)),
            saved_regs,
            catch: RemoteAddr(record(calls.len())),
            calls: calls.len(),
        }
    }

    /// The calls as the thread's seccomp filters would see them. Results of earlier calls are descriptors, of no interest to
    /// filters; any will do.
    pub(super) fn filtered(&self, cave: &Cave, calls: &[Syscall]) -> Vec<seccomp::Call> {
        let word = |arg: Option<&Arg>| match arg {
            None => 0,
            Some(Arg::Value(value)) => *value,
            Some(Arg::Bytes(_)) => self.base.0,
            Some(Arg::Result(_)) => 3,
        };
        let call = |name, number, args: &[Arg], vital| seccomp::Call {
            name,
            number,
            instruction_pointer: cave.addr.0,
            args: std::array::from_fn(|n| word(args.get(n))),
            vital,
        };
        let sleep = [0, 0, 0, 0, self.base.0, 0].map(Arg::Value);
        let set_mask = [libc::SIG_SETMASK as u64, self.base.0, 0, WORD].map(Arg::Value);
        let mut all: Vec<_> = calls.iter().map(|c| call(c.name, c.number, &c.args, false)).collect();
        all.push(call("pselect6", libc::SYS_pselect6, &sleep, false));
        all.push(call("rt_sigprocmask", libc::SYS_rt_sigprocmask, &set_mask, true));
        all
    }

    /// Whether the thread has come to the sleep, or further.
    pub(super) fn is_done(&self, target: &Target) -> Result<bool> {
        let progress = target.memory().read_u64(self.saved_regs.offset(-8))?;
        Ok(progress >= self.catch.0)
    }

    pub(super) fn results(&self, target: &Target) -> Result<Vec<Option<i64>>> {
        let len = self.calls * (RECORD_WORDS * WORD) as usize;
        let records = target.memory().read_vec(self.first_record, len)?;
        let result = |record: &[u8]| {
            let at = (RESULT * WORD) as usize;
            let word = record[at..at + 8].try_into().map_or(NOT_MADE, u64::from_le_bytes);
            (word != NOT_MADE).then_some(word.cast_signed())
        };
        Ok(records.chunks_exact((RECORD_WORDS * WORD) as usize).map(result).collect())
    }
}

/// The numbers and bytes that arguments point to. Each is there once.
#[derive(Default)]
struct Pool {
    bytes: Vec<u8>,
    values: HashMap<u64, u64>,
    blobs: HashMap<Vec<u8>, u64>,
    /// Words that are to hold the address of something else in the pool.
    addresses: Vec<(u64, u64)>,
}

impl Pool {
    fn add(&mut self, arg: &Arg) {
        match arg {
            Arg::Value(value) if !self.values.contains_key(value) => {
                let at = self.append(&value.to_le_bytes());
                self.values.insert(*value, at);
            }
            Arg::Bytes(bytes) if !self.blobs.contains_key(bytes) => {
                let offset = self.append(bytes);
                let slot = self.append(&[0; 8]);
                self.addresses.push((slot, offset));
                self.blobs.insert(bytes.clone(), slot);
            }
            _ => {}
        }
    }

    fn append(&mut self, bytes: &[u8]) -> u64 {
        let at = self.bytes.len().next_multiple_of(8);
        self.bytes.resize(at, 0);
        self.bytes.extend_from_slice(bytes);
        at as u64
    }

    /// Offset of the word that holds the argument's value.
    fn pointer(&self, arg: &Arg) -> u64 {
        let found = match arg {
            Arg::Value(value) => self.values.get(value),
            Arg::Bytes(bytes) => self.blobs.get(bytes),
            Arg::Result(_) => None,
        };
        *found.expect("every argument was added")
    }
}

/// The registers in the order in which the cave's code takes them back, the way the kernel would go on with the
/// interrupted system call.
fn saved_words(own: &libc::user_regs_struct) -> [u64; 17] {
    let (rip, rax) = match restart_code(own) {
        // The syscall instruction is two bytes long.
        Some(Restart::Again) => (own.rip - 2, own.orig_rax),
        Some(Restart::Block) => (own.rip - 2, libc::SYS_restart_syscall as u64),
        _ => (own.rip, own.rax),
    };
    [
        own.eflags, own.r15, own.r14, own.r13, own.r12, own.r11, own.r10, own.r9, own.r8, own.rdi, own.rsi,
        own.rdx, own.rcx, own.rbx, rax, own.rbp, rip,
    ]
}
