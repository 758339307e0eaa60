//! Hiding a stop from a thread that was blocked in a system call.
//!
//! A stop makes a blocked call give up. Most calls then return one of the kernel's restart codes and are restarted
//! unnoticed when the thread runs on. Some return EINTR straight away, because a restart would begin their relative
//! timeout anew; their callers would see a failure that no signal of theirs caused. For those the result is changed,
//! while the thread is stopped, into `ERESTARTNOHAND`, which the kernel itself uses for poll(2) and the like: without a
//! signal to handle the call is made again (its relative timeout anew), and with one the handler runs and the call
//! returns EINTR, as it should. Winding the program counter back instead would lose that EINTR.

#![allow(non_upper_case_globals)]

use crate::canary::canary;
use libc::{
    SYS_accept, SYS_accept4, SYS_connect, SYS_epoll_pwait, SYS_epoll_pwait2, SYS_epoll_wait,
    SYS_io_getevents, SYS_io_uring_enter, SYS_read, SYS_readv, SYS_recvfrom, SYS_recvmmsg, SYS_recvmsg,
    SYS_rt_sigtimedwait, SYS_semop, SYS_semtimedop, SYS_sendmmsg, SYS_sendmsg, SYS_sendto, SYS_write,
    SYS_writev, c_long,
};

/// `-EINTR` as rax holds it.
const EINTR: u64 = (-(libc::EINTR as i64)) as u64;
/// `-ERESTARTNOHAND` (`include/linux/errno.h`).
pub(crate) const ERESTARTNOHAND: u64 = (-514i64) as u64;

/// Not in the libc crate.
const SYS_io_pgetevents: c_long = 333;

/// The calls that return EINTR after a stop without a signal: found by stopping threads in every blocking call, and in
/// the kernel's source (`fs/eventpoll.c`, `kernel/signal.c`, `ipc/sem.c`, `fs/aio.c`, `io_uring/`, and
/// `sock_intr_errno` in `include/net/sock.h` for sockets that have SO_RCVTIMEO or SO_SNDTIMEO). All may be made again: EINTR
/// means that nothing was transferred, and what had been begun (a connection) goes on.
const CALLS: &[c_long] = &[
    SYS_epoll_wait,
    SYS_epoll_pwait,
    SYS_epoll_pwait2,
    SYS_rt_sigtimedwait,
    SYS_semop,
    SYS_semtimedop,
    SYS_io_uring_enter,
    SYS_io_getevents,
    SYS_io_pgetevents,
    SYS_accept,
    SYS_accept4,
    SYS_recvfrom,
    SYS_recvmsg,
    SYS_recvmmsg,
    SYS_sendto,
    SYS_sendmsg,
    SYS_sendmmsg,
    SYS_connect,
    SYS_read,
    SYS_readv,
    SYS_write,
    SYS_writev,
];

/// Whether a thread stopped with these registers would see an EINTR of our making.
pub(crate) fn needs_hiding(rax: u64, orig_rax: u64) -> bool {
    !canary!("show-interruptions") && rax == EINTR && CALLS.contains(&(orig_rax as c_long))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_eintr_inside_a_listed_call_is_hidden() {
        assert!(needs_hiding(EINTR, SYS_epoll_wait as u64));
        assert!(!needs_hiding(ERESTARTNOHAND, SYS_epoll_wait as u64));
        assert!(!needs_hiding(EINTR, libc::SYS_close as u64));
        // Not in a system call: rax is the program's own.
        assert!(!needs_hiding(EINTR, u64::MAX));
    }
}
