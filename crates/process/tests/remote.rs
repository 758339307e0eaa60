//! Running system calls in the target: mappings come and go, and nothing else changes.

mod fixture;

use fixture::{Running, descriptors, eventually, states, status_lines};
use std::process::Command;
use std::time::Duration;
use ugraft_process::remote::mapping::{MapRequest, Part, Prot, map, unmap};
use ugraft_process::remote::place::{Constraints, place};
use ugraft_process::remote::sharing::{Sharing, check_not_shared};
use ugraft_process::remote::{self, Arg, Syscall, Unsuitable};
use ugraft_process::threads::{StoppedThread, stop_all, stop_one};
use ugraft_process::{Error, RemoteAddr, Target, Tid};

const WITHIN: Duration = Duration::from_secs(5);

fn request(target: &Target, name: &str, near: RemoteAddr) -> MapRequest {
    let maps = target.maps().unwrap();
    let addr = place(&maps, 0x4000, near..near.offset(0x1000), &Constraints::of(target)).unwrap();
    let parts = vec![
        Part { offset: 0, len: 0x1000, prot: Prot::ReadExec },
        Part { offset: 0x1000, len: 0x1000, prot: Prot::Read },
        Part { offset: 0x2000, len: 0x1000, prot: Prot::ReadWrite },
        Part { offset: 0x3000, len: 0x1000, prot: Prot::Seed },
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
        assert!(thread.ran_on() || regs_of(&thread) == before);
        assert_eq!(thread.signal_mask().unwrap(), mask);
        let maps = target.maps().unwrap();
        let m = |offset| maps.find(r.addr.offset(offset)).unwrap();
        assert!(m(0).read && m(0).exec && !m(0).write && m(0).name == "/memfd:ugraft:test (deleted)");
        assert!(m(0x1000).read && !m(0x1000).exec && !m(0x1000).write);
        assert!(m(0x2000).read && !m(0x2000).exec && m(0x2000).write);
        assert!(!m(0x3000).read && !m(0x3000).exec && !m(0x3000).write && m(0x3000).shared);
        assert!((0..3).all(|page| !m(page * 0x1000).shared));
        target.memory().write(r.addr, b"text").unwrap();
        assert_eq!(target.memory().read_vec(r.addr, 5).unwrap(), b"text\0");
        unmap(&target, &mut thread, &[r.addr..r.addr.offset(0x4000)]).unwrap();
        assert!(thread.ran_on() || regs_of(&thread) == before);
        thread.resume().unwrap();
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
    // Code is mapped while the descriptor is open, data gets its access when it is closed.
    for (part, call) in [(Prot::ReadExec, "mmap"), (Prot::Seed, "mmap"), (Prot::ReadWrite, "mprotect")] {
        let mut odd = first.clone();
        odd.addr = odd.addr.offset(-0x10000);
        odd.parts.iter_mut().find(|p| p.prot == part).unwrap().offset = 17;
        let e = map(&target, thread, &[first.clone(), odd]).unwrap_err();
        assert_eq!(
            e.to_string(),
            format!("{call} in process {} failed: Invalid argument (os error 22)", running.pid())
        );
        assert_eq!(target.maps().unwrap(), maps_before);
    }
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

/// Maps something into the target and removes it again, with all threads stopped and with one.
fn map_and_unmap(target: &Target) {
    let before = target.maps().unwrap();
    let exe = before.iter().find(|m| m.exec).unwrap().start;
    let r = request(target, "ugraft:test", exe);
    let range = r.addr..r.addr.offset(0x4000);
    let mut stopped = stop_all(target, WITHIN).unwrap();
    let thread = remote::choose(target, &before, &mut stopped).unwrap();
    map(target, thread, std::slice::from_ref(&r)).unwrap();
    assert!(target.maps().unwrap().find(r.addr).is_some());
    stopped.resume().unwrap();
    let mut thread = remote::stop_suitable(target, &target.maps().unwrap(), WITHIN).unwrap();
    unmap(target, &mut thread, &[range]).unwrap();
    thread.resume().unwrap();
    let after = target.maps().unwrap();
    // The program may have mapped something for itself meanwhile.
    assert!(after.iter().all(|m| !m.name.contains("memfd:ugraft")));
    // Another thread may open and close something at any moment, but nothing of ours is left.
    let ours = |fds: Vec<(String, std::path::PathBuf)>| {
        fds.into_iter().filter(|(_, path)| path.to_string_lossy().contains("memfd:ugraft")).count()
    };
    assert_eq!(ours(descriptors(target.pid())), 0);
}

/// The kernel's headers, which musl-gcc does not find, and `-static` last.
const MUSL: [&str; 5] =
    ["-idirafter", "/usr/include", "-idirafter", "/usr/include/x86_64-linux-gnu", "-static"];

#[test]
fn every_kind_of_program() {
    for (cc, flags) in [
        ("cc", &["-no-pie"][..]),
        ("cc", &["-static"]),
        ("cc", &["-static-pie"]),
        ("cc", &["-Wl,-z,noseparate-code", "-fcf-protection=full"]),
        ("musl-gcc", &MUSL[..4]),
        ("musl-gcc", &MUSL),
    ] {
        let mut running = Running::fixture_by(cc, flags, "blocked", &["1"]);
        let target = running.target();
        for _ in 0..5 {
            map_and_unmap(&target);
        }
        assert!(running.ask("count").starts_with("0 0 "), "{cc} {flags:?}");
    }
}

#[test]
fn programs_nobody_here_wrote() {
    let python = "import threading, time, sys\n\
        def f():\n  while True: time.sleep(0.01); sum(range(1000))\n\
        for _ in range(4): threading.Thread(target=f, daemon=True).start()\n\
        print('ready', flush=True)\n\
        for line in sys.stdin: print('alive', flush=True)\n";
    let mut running = Running::start(Command::new("/usr/bin/python3").args(["-c", python]));
    assert_eq!(running.line(), "ready");
    let target = running.target();
    for _ in 0..20 {
        map_and_unmap(&target);
        assert_eq!(running.ask("are you there"), "alive");
    }
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("redis.sock");
    let mut command = Command::new("redis-server");
    command
        .args(["--port", "0", "--save", "", "--daemonize", "no", "--dir"])
        .arg(dir.path())
        .arg("--unixsocket")
        .arg(&socket);
    let mut running = Running::start(&mut command);
    while !running.line().contains("ready to accept connections") && !socket.exists() {}
    eventually(|| socket.exists());
    let target = running.target();
    for _ in 0..20 {
        map_and_unmap(&target);
        let out = Command::new("redis-cli").arg("-s").arg(&socket).arg("ping").output().unwrap();
        assert_eq!(out.stdout, b"PONG\n");
    }
}

#[test]
fn a_busy_thread_keeps_its_registers() {
    let mut running = Running::fixture_by("cc", &["-mno-red-zone"], "busy", &["3"]);
    let target = running.target();
    for _ in 0..200 {
        for tid in target.threads().unwrap() {
            let mut thread = stop_one(&target, tid, WITHIN).unwrap().unwrap();
            let before = regs_of(&thread);
            let calls = [Syscall::new("getpid", libc::SYS_getpid, vec![])];
            match remote::run(&target, &mut thread, &calls) {
                Ok(results) => assert_eq!(results, [Some(i64::from(running.pid().0))]),
                // It was caught in a sequence that must not be left; another time.
                Err(Error::CannotRun { why: Unsuitable::Rseq(_), .. }) => {}
                Err(e) => panic!("{e}"),
            }
            assert!(thread.ran_on() || regs_of(&thread) == before);
        }
    }
    // It checks general and floating-point registers and flags all the time.
    assert_eq!(running.ask("errors"), "0");
}

#[test]
fn signals_during_programs_are_delivered_afterwards() {
    let mut running = Running::fixture("odd", &["storm"]);
    let target = running.target();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let calls = [Syscall::new("getpid", libc::SYS_getpid, vec![])];
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                for tid in target.threads().unwrap() {
                    let mut thread = stop_one(&target, tid, WITHIN).unwrap().unwrap();
                    match remote::run(&target, &mut thread, &calls) {
                        Ok(results) => assert_eq!(results, [Some(i64::from(target.pid().0))]),
                        Err(Error::CannotRun { why: Unsuitable::Rseq(_), .. }) => {}
                        Err(e) => panic!("{e}"),
                    }
                    thread.resume().unwrap();
                }
                std::thread::sleep(Duration::from_micros(300));
            }
        });
        let line = running.line();
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        assert_eq!(line, "20000 taken 0 out of order 0 without cause 0 wrong");
    });
}

#[test]
fn a_stopped_target_stays_stopped() {
    let mut running = Running::fixture("blocked", &["1"]);
    let target = running.target();
    running.signal(libc::SIGSTOP);
    let all_stopped = || states(running.pid()).iter().all(|(_, s)| *s == 'T');
    eventually(all_stopped);
    for _ in 0..10 {
        map_and_unmap(&target);
        eventually(all_stopped);
    }
    running.signal(libc::SIGCONT);
    assert!(running.ask("count").starts_with("0 0 "));
}

fn refusal(kind: &str) -> Unsuitable {
    let running = Running::fixture("odd", &[kind]);
    let target = running.target();
    let maps = target.maps().unwrap();
    match remote::stop_suitable(&target, &maps, WITHIN) {
        Err(Error::CannotRun { why: Unsuitable::NoThread(why), .. }) => *why,
        other => panic!("{other:?}"),
    }
}

#[test]
fn foreign_stacks_are_left_alone() {
    assert!(matches!(refusal("coroutine"), Unsuitable::ForeignStack(_)));
    assert!(matches!(refusal("altstack"), Unsuitable::ForeignStack(_)));
}

#[test]
fn a_process_that_shares_the_memory_is_named() {
    let mut running = Running::fixture("odd", &["shared"]);
    let other: i32 = running.line().parse().unwrap();
    match check_not_shared(&running.target()) {
        Err(Error::SharedMemory { other: found, why: Sharing::Clone, .. }) => assert_eq!(found.0, other),
        result => panic!("{result:?}"),
    }
    let plain = Running::fixture("odd", &["many", "3"]);
    check_not_shared(&plain.target()).unwrap();
    let vfork = Running::fixture("odd", &["vfork", "100000"]);
    eventually(|| {
        matches!(check_not_shared(&vfork.target()), Err(Error::SharedMemory { why: Sharing::Vfork, .. }))
    });
}

/// A thread that has ended has no memory, and neither has a kernel thread: that is not the same memory.
#[test]
fn who_has_ended_shares_nothing() {
    let running = Running::fixture("odd", &["no-leader"]);
    let target = running.target();
    eventually(|| target.thread_stat(Tid(target.pid().0)).unwrap().is_some_and(|stat| stat.is_dead()));
    check_not_shared(&target).unwrap();

    let ended = Running::fixture("odd", &["many", "3"]);
    let target = ended.target();
    // Nobody has waited for it.
    let pid = rustix::process::Pid::from_raw(target.pid().0).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    eventually(|| matches!(check_not_shared(&target), Err(Error::TargetGone(_))));
}

#[test]
fn seccomp_filters() {
    let numbers = [libc::SYS_memfd_create, libc::SYS_pselect6, libc::SYS_rt_sigprocmask];
    let [memfd, sleep, mask] = numbers.map(|n| n.to_string());
    // A call of another kind denied, or one that may fail: works all the same, since filters are suspended.
    for (call, action) in [("400", "kill"), (memfd.as_str(), "errno"), (sleep.as_str(), "errno")] {
        let running = Running::fixture("odd", &["seccomp", call, action]);
        map_and_unmap(&running.target());
    }
    // It would die, or stay without signals, if the tool died meanwhile.
    for (call, action, name) in [(memfd, "kill", "memfd_create"), (mask, "errno", "rt_sigprocmask")] {
        let running = Running::fixture("odd", &["seccomp", &call, action]);
        let target = running.target();
        let maps = target.maps().unwrap();
        let r = request(&target, "x", maps.iter().find(|m| m.exec).unwrap().start);
        let mut thread = remote::stop_suitable(&target, &maps, WITHIN).unwrap();
        match map(&target, &mut thread, &[r]) {
            Err(Error::CannotRun { why: Unsuitable::SeccompKills { call, .. }, .. }) => {
                assert_eq!(call, name)
            }
            result => panic!("{result:?}"),
        }
        assert_eq!(target.maps().unwrap(), maps);
    }
}
