//! Safe points: where a thread can be interrupted to run a callback that may call libc.
//!
//! A callback may take any lock of the C library, so the thread that runs it must hold none. That is proved from its
//! frames, which must be walked reliably to the outermost one:
//!
//! - it sleeps in a system call below a function of the C library that is known to wait without holding one of the
//!   library's locks (`WAITS`), or it is not in the C library at all;
//! - further out there is no frame of the C library, of the loader or of an allocator, but for the code that starts
//!   a thread or the program: so none of malloc, dlopen, printf, qsort, exit ... is under way;
//! - no signal handler is.
//!
//! What cannot be proved is not safe. Locks of the program itself are the patch author's affair, as in the kernel.

use crate::objects::scope::Value;
use crate::objects::{Object, ObjectId, Objects, Role};
use crate::stacks::Prover;
use crate::stacks::scan::Thread;
use crate::stacks::unwind::{self, End, Frame};
use crate::target::Target;
use crate::target::maps::Maps;
use crate::threads::{Restart, StoppedThread, restart_code};
use crate::{RemoteAddr, Result};

/// Functions of the C library that wait in a system call and hold no lock of the library meanwhile. Names without
/// leading underscores.
const WAITS: &[&str] = &[
    "accept",
    "accept4",
    "clock_nanosleep",
    "cnd_timedwait",
    "cnd_wait",
    "connect",
    "epoll_pwait",
    "epoll_pwait2",
    "epoll_wait",
    "eventfd_read",
    "fcntl",
    "fcntl64",
    "fdatasync",
    "flock",
    "fsync",
    "getrandom",
    "ioctl",
    "lockf",
    "lockf64",
    "mq_receive",
    "mq_send",
    "mq_timedreceive",
    "mq_timedsend",
    "msgrcv",
    "msgsnd",
    "mtx_lock",
    "mtx_timedlock",
    "nanosleep",
    "open",
    "open64",
    "openat",
    "openat64",
    "pause",
    "poll",
    "poll_chk",
    "ppoll",
    "ppoll_chk",
    "pread",
    "pread64",
    "preadv",
    "preadv64",
    "pselect",
    "pthread_barrier_wait",
    "pthread_clockjoin_np",
    "pthread_cond_clockwait",
    "pthread_cond_timedwait",
    "pthread_cond_wait",
    "pthread_join",
    "pthread_mutex_clocklock",
    "pthread_mutex_lock",
    "pthread_mutex_timedlock",
    "pthread_rwlock_rdlock",
    "pthread_rwlock_timedrdlock",
    "pthread_rwlock_timedwrlock",
    "pthread_rwlock_wrlock",
    "pthread_timedjoin_np",
    "pwrite",
    "pwrite64",
    "pwritev",
    "pwritev64",
    "read",
    "read_chk",
    "readv",
    "recv",
    "recv_chk",
    "recvfrom",
    "recvfrom_chk",
    "recvmmsg",
    "recvmsg",
    "select",
    "sem_clockwait",
    "sem_timedwait",
    "sem_wait",
    "semop",
    "semtimedop",
    "send",
    "sendfile",
    "sendfile64",
    "sendmmsg",
    "sendmsg",
    "sendto",
    "sigpause",
    "sigsuspend",
    "sigtimedwait",
    "sigwait",
    "sigwaitinfo",
    "sleep",
    "splice",
    "syscall",
    "tcdrain",
    "tee",
    "thrd_join",
    "thrd_sleep",
    "usleep",
    "vmsplice",
    "wait",
    "wait3",
    "wait4",
    "waitid",
    "waitpid",
    "write",
    "writev",
];

/// What implementations put in front of the public names.
const PREFIXES: &[&str] = &["_", "GI_", "libc_", "new_"];

/// Parts of the names of functions that may be an allocator linked into the program.
const ALLOCATOR_WORDS: &[&str] =
    &["alloc", "free", "memalign", "arena", "tcache", "je_", "mi_", "tc_", "_Zn", "_Zd"];

/// Functions of a statically linked C library that hold its locks, or run functions of the program; by parts of
/// their names.
const LIBRARY_WORDS: &[&str] = &[
    "alloc",
    "free",
    "print",
    "scanf",
    "puts",
    "putc",
    "gets",
    "getc",
    "getline",
    "getdelim",
    "fread",
    "fwrite",
    "fopen",
    "fclose",
    "fflush",
    "fseek",
    "popen",
    "pclose",
    "system",
    "spawn",
    "exit",
    "qsort",
    "bsearch",
    "dlopen",
    "dlclose",
    "dlsym",
    "dl_iterate",
    "once",
    "getaddrinfo",
    "gethostby",
    "getpw",
    "getgr",
    "syslog",
    "locale",
    "iconv",
    "fork",
    "pthread_create",
    "environ",
    "setenv",
    "putenv",
    "getenv",
    "atexit",
    "tzset",
    "localtime",
    "mktime",
    "strftime",
    "random",
    "rand",
    "abort",
    "backtrace",
];

/// What starts a program or a thread, in a statically linked program.
const START: &[&str] =
    &["_start", "__libc_start_main", "__libc_start_call_main", "start_thread", "clone", "__clone3"];

/// Most frames of the C library that start a program or a thread: `__libc_start_call_main` and `__libc_start_main`, or
/// `start_thread` and `clone3`. Destructors of thread-local data, exit handlers and the like have more.
const START_FRAMES: usize = 2;
/// Most frames further out than these: `_start` of the program.
const OUTSIDE_START: usize = 1;

/// SONAMEs of C libraries and their parts.
const LIBC_NAMES: &[&str] = &["libc.so.6", "libpthread.so.0", "libdl.so.2", "librt.so.1", "libc.so"];

/// Why a thread is at no safe point.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unsafe {
    /// It is in a function that may hold locks.
    #[error("it is in {function} of {object}")]
    Within {
        /// The function, as far as it has a name.
        function: String,
        /// Its object.
        object: String,
    },
    /// It handles a signal.
    #[error("it handles a signal")]
    Signal,
    /// Its frames cannot be walked to the outermost.
    #[error("its stack cannot be unwound reliably: {0}")]
    Unreliable(String),
    /// Job control has stopped it.
    #[error("it is stopped by job control; continue it by SIGCONT")]
    JobStopped,
    /// A static program without names of functions.
    #[error("the program is static and has no symbols, so nothing tells what its frames are")]
    Nameless,
}

/// What a frame's code is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Code {
    /// The program's own or a library's.
    Free,
    /// The C library.
    Libc,
    /// Never safe: loader, vdso, allocator.
    Never,
}

/// Knows the objects of a target by what a frame in them means.
#[derive(Debug)]
pub(crate) struct SafePoints<'o, 't> {
    objects: &'o Objects<'t>,
    allocator: Option<ObjectId>,
    static_program: bool,
}

impl<'o, 't> SafePoints<'o, 't> {
    pub(crate) fn new(objects: &'o Objects<'t>) -> Result<Self> {
        let static_program = objects.main().is_static();
        let found = objects.scope(&[])?.resolve("malloc", None).ok();
        let allocator = found.filter(|f| matches!(f.value, Value::Address(_))).map(|f| f.object);
        Ok(Self { objects, allocator, static_program })
    }

    /// Whether the stopped thread is at a safe point.
    pub(crate) fn judge(
        &self,
        target: &Target,
        prover: &mut Prover,
        maps: &Maps,
        thread: &StoppedThread,
    ) -> Result<(), Unsafe> {
        if thread.group_stop().is_some() {
            return Err(Unsafe::JobStopped);
        }
        let facts = Thread { pid: target.pid(), tid: thread.tid(), regs: thread.regs() };
        let walk = unwind::walk(&mut prover.cfi, target.memory(), maps, facts);
        match walk.end {
            End::Outermost => self.judge_frames(&walk.frames, is_blocked(thread.regs()), true),
            End::Unreliable(doubt) => Err(Unsafe::Unreliable(doubt.to_string())),
            End::Enough => Err(Unsafe::Unreliable("the walk was cut short".to_owned())),
        }
    }

    /// Whether a thread with these frames, innermost first, holds no lock of the C library. `blocked`: it sleeps in a
    /// system call. `to_the_end`: the frames go to the outermost one, else to where we called.
    pub(crate) fn judge_frames(
        &self,
        frames: &[Frame],
        blocked: bool,
        to_the_end: bool,
    ) -> Result<(), Unsafe> {
        if frames.iter().any(|frame| frame.interrupted) {
            return Err(Unsafe::Signal);
        }
        if self.static_program {
            return self.judge_static(frames, blocked);
        }
        let codes: Vec<Code> = frames.iter().map(|frame| self.code(frame)).collect();
        let mut inner = codes.iter().take_while(|code| **code == Code::Libc).count();
        if inner > 0 {
            let entry = &frames[inner - 1];
            if !blocked || !self.name(entry).is_some_and(|name| waits(&name)) {
                return Err(self.within(entry));
            }
        } else if self.is_allocator_by_name(&frames[0]) {
            return Err(self.within(&frames[0]));
        }
        while inner < codes.len() && codes[inner] == Code::Free {
            if self.is_allocator_by_name(&frames[inner]) {
                return Err(self.within(&frames[inner]));
            }
            inner += 1;
        }
        let start = codes[inner..].iter().take_while(|code| **code == Code::Libc).count();
        let beyond = codes.len() - inner - start;
        let starts = start <= START_FRAMES
            && beyond <= OUTSIDE_START
            && codes[inner + start..].iter().all(|c| *c == Code::Free);
        if inner < codes.len() && !(to_the_end && starts) {
            return Err(self.within(&frames[inner]));
        }
        Ok(())
    }

    fn judge_static(&self, frames: &[Frame], blocked: bool) -> Result<(), Unsafe> {
        let names: Option<Vec<String>> = frames.iter().map(|frame| self.name(frame)).collect();
        let names = names.ok_or(Unsafe::Nameless)?;
        let waiting = names.iter().rposition(|name| waits(name)).filter(|_| blocked);
        let rest = waiting.map_or(0, |at| at + 1);
        let is_library = |name: &String| {
            !START.contains(&name.as_str())
                && (name.starts_with('_') || LIBRARY_WORDS.iter().any(|word| name.contains(word)))
        };
        match names.iter().enumerate().skip(rest).find(|(_, name)| is_library(name)) {
            Some((at, _)) => Err(self.within(&frames[at])),
            None => Ok(()),
        }
    }

    fn object(&self, frame: &Frame) -> Option<&Object<'t>> {
        self.objects.at(lookup(frame))
    }

    fn code(&self, frame: &Frame) -> Code {
        let Some(object) = self.object(frame) else { return Code::Free };
        let is_libc = LIBC_NAMES.contains(&object.name()) || object.name().starts_with("libc.musl-");
        match object.role() {
            // The loader of musl is its C library.
            Role::Loader if object.name().starts_with("ld-musl-") => Code::Libc,
            Role::Loader | Role::Vdso => Code::Never,
            _ if is_libc => Code::Libc,
            Role::Library if self.allocator == Some(object.id()) => Code::Never,
            _ => Code::Free,
        }
    }

    /// Whether the frame is in an allocator that is part of the program itself.
    fn is_allocator_by_name(&self, frame: &Frame) -> bool {
        let own = self.allocator == Some(self.objects.main().id());
        own && self.object(frame).is_some_and(|o| o.role() == Role::Main)
            && self.name(frame).is_none_or(|name| ALLOCATOR_WORDS.iter().any(|word| name.contains(word)))
    }

    fn name(&self, frame: &Frame) -> Option<String> {
        self.object(frame)?.symbolize(lookup(frame)).ok()?.function
    }

    fn within(&self, frame: &Frame) -> Unsafe {
        Unsafe::Within {
            function: self.name(frame).unwrap_or_else(|| format!("code at {}", lookup(frame))),
            object: self.object(frame).map_or_else(|| "no object".to_owned(), |o| o.name().to_owned()),
        }
    }
}

/// Whether the thread sleeps in a system call that it will make again.
pub(crate) fn is_blocked(regs: &libc::user_regs_struct) -> bool {
    matches!(restart_code(regs), Some(Restart::Again | Restart::Block))
}

/// A return address names the instruction behind the call, which may belong to the next function.
fn lookup(frame: &Frame) -> RemoteAddr {
    RemoteAddr(if frame.exact { frame.pc } else { frame.pc.wrapping_sub(1) })
}

fn waits(name: &str) -> bool {
    let mut name = name;
    while let Some(rest) = PREFIXES.iter().find_map(|prefix| name.strip_prefix(prefix)) {
        name = rest;
    }
    WAITS.binary_search(&name).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_are_sorted() {
        assert!(WAITS.is_sorted());
    }

    #[test]
    fn functions_that_wait_are_known_by_all_their_names() {
        for name in
            ["read", "__read", "__GI___poll", "__libc_accept", "__new_sem_wait", "___pthread_mutex_lock"]
        {
            assert!(waits(name), "{name}");
        }
        for name in ["fgets", "malloc", "__libc_malloc", "getaddrinfo", "readdir", ""] {
            assert!(!waits(name), "{name}");
        }
    }
}
