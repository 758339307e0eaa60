//! Running system calls in the target: mappings come and go, and nothing else changes.

mod fixture;

use fixture::{Running, descriptors, eventually, states, status_lines};
use std::time::Duration;
use ugraft_process::mapping::{MapRequest, Part, Prot, map, unmap};
use ugraft_process::place::{Constraints, place};
use ugraft_process::remote::{self, Arg, Syscall};
use ugraft_process::threads::{StoppedThread, stop_all, stop_one};
use ugraft_process::{RemoteAddr, Target};

const WITHIN: Duration = Duration::from_secs(5);

fn request(target: &Target, name: &str, near: RemoteAddr) -> MapRequest {
    let maps = target.maps().unwrap();
    let addr = place(&maps, 0x4000, near..near.offset(0x1000), &Constraints::of(target)).unwrap();
    let parts = vec![
        Part { offset: 0, len: 0x1000, prot: Prot::ReadExec },
        Part { offset: 0x1000, len: 0x1000, prot: Prot::Read },
        Part { offset: 0x2000, len: 0x1000, prot: Prot::ReadWrite },
    ];
    MapRequest { name: name.to_owned(), addr, len: 0x4000, parts }
}

fn regs_of(thread: &StoppedThread) -> Vec<u64> {
    let r = thread.regs();
    vec![
        r.rip, r.rsp, r.rax, r.orig_rax, r.rbx, r.rcx, r.rdx, r.rsi, r.rdi, r.rbp, r.r8, r.r9, r.r10, r.r11,
        r.r12, r.r13, r.r14, r.r15, r.eflags, r.fs_base, r.gs_base,
    ]
}

#[test]
fn mappings_come_and_go_on_every_thread() {
    let mut running = Running::fixture("blocked", &["1"]);
    let target = running.target();
    let maps_before = target.maps().unwrap();
    let fds_before = descriptors(running.pid());
    let masks_before = status_lines(running.pid(), "SigBlk");
    let exe = maps_before.iter().find(|m| m.exec).unwrap().start;
    for tid in target.threads().unwrap() {
        let mut thread = stop_one(&target, tid, WITHIN).unwrap().unwrap();
        let before = regs_of(&thread);
        let mask = thread.signal_mask().unwrap();
        let r = request(&target, "ugraft:test", exe);
        map(&target, &mut thread, std::slice::from_ref(&r)).unwrap();
        assert_eq!(regs_of(&thread), before);
        assert_eq!(thread.signal_mask().unwrap(), mask);
        let maps = target.maps().unwrap();
        let m = |offset| maps.find(r.addr.offset(offset)).unwrap();
        assert!(m(0).read && m(0).exec && !m(0).write && m(0).name == "/memfd:ugraft:test (deleted)");
        assert!(m(0x1000).read && !m(0x1000).exec && !m(0x1000).write);
        assert!(m(0x2000).read && !m(0x2000).exec && m(0x2000).write);
        assert!(!m(0x3000).read && !m(0x3000).exec && !m(0x3000).write);
        target.memory().write(r.addr, b"text").unwrap();
        assert_eq!(target.memory().read_vec(r.addr, 5).unwrap(), b"text\0");
        unmap(&target, &mut thread, &[r.addr..r.addr.offset(0x4000)]).unwrap();
        assert_eq!(regs_of(&thread), before);
        thread.resume().unwrap();
        // And it is still in its call.
    }
    assert_eq!(target.maps().unwrap(), maps_before);
    assert_eq!(descriptors(running.pid()), fds_before);
    assert_eq!(status_lines(running.pid(), "SigBlk"), masks_before);
    eventually(|| states(running.pid()).iter().all(|(_, s)| !matches!(s, 't' | 'T')));
    assert!(running.ask("count").starts_with("0 0 "));
}

#[test]
fn all_or_nothing() {
    let running = Running::fixture("blocked", &["1"]);
    let target = running.target();
    let maps_before = target.maps().unwrap();
    let fds_before = descriptors(running.pid());
    let exe = maps_before.iter().find(|m| m.exec).unwrap().start;
    let mut stopped = stop_all(&target, WITHIN).unwrap();
    let thread = remote::choose(&target, &maps_before, &mut stopped).unwrap();
    let first = request(&target, "one", exe);
    let taken = MapRequest { addr: exe, ..first.clone() };
    let e = map(&target, thread, &[first.clone(), taken.clone()]).unwrap_err();
    assert_eq!(e.to_string(), format!("mmap in process {} failed: File exists (os error 17)", running.pid()));
    assert_eq!(target.maps().unwrap(), maps_before);
    let mut odd = first.clone();
    odd.addr = odd.addr.offset(-0x10000);
    odd.parts[1].offset = 17;
    let e = map(&target, thread, &[first.clone(), odd]).unwrap_err();
    assert_eq!(
        e.to_string(),
        format!("mprotect in process {} failed: Invalid argument (os error 22)", running.pid())
    );
    assert_eq!(target.maps().unwrap(), maps_before);
    assert_eq!(descriptors(running.pid()), fds_before);
}

#[test]
fn results_are_the_kernels_and_chain() {
    let running = Running::fixture("blocked", &["1"]);
    let target = running.target();
    let maps = target.maps().unwrap();
    let mut thread = remote::stop_suitable(&target, &maps, WITHIN).unwrap();
    let calls = [
        Syscall::new("getpid", libc::SYS_getpid, vec![]),
        Syscall::new("getpgid", libc::SYS_getpgid, vec![Arg::Result(0)]),
        Syscall::new("close", libc::SYS_close, vec![Arg::Value(u64::MAX)]),
        Syscall::new("getppid", libc::SYS_getppid, vec![]),
    ];
    let results = remote::run(&target, &mut thread, &calls).unwrap();
    assert_eq!(results[0], Some(i64::from(running.pid().0)));
    assert!(results[1].is_some_and(|pgid| pgid > 0));
    assert_eq!(results[2..], [Some(-i64::from(libc::EBADF)), None]);
}
