//! Stopping threads so that they do not notice.

mod fixture;

use fixture::{Running, eventually, states, status_lines};
use std::collections::HashSet;
use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;
use ugraft_process::threads::{Release, Unstoppable, on_own_thread, settle, stop_all, stop_one};
use ugraft_process::{Error, Pid, Target, Tid};

const WITHIN: Duration = Duration::from_secs(10);

fn nothing_is_stopped_or_traced(pid: Pid) {
    assert!(status_lines(pid, "TracerPid").iter().all(|l| l.ends_with("\t0")));
    eventually(|| states(pid).iter().all(|(_, s)| !matches!(s, 't' | 'T')));
}

fn numbers(line: &str) -> Vec<i32> {
    line.split(' ').filter_map(|n| n.parse().ok()).collect()
}

#[test]
fn blocked_calls_do_not_notice() {
    let mut running = Running::fixture("blocked", &["2"]);
    let target = running.target();
    let threads = target.threads().unwrap();
    for round in 0..100 {
        if round % 2 == 0 {
            let stopped = stop_all(&target, WITHIN).unwrap();
            assert_eq!(stopped.threads().len(), threads.len());
            assert!(stopped.threads().iter().all(|t| t.regs().rax as i64 != -4));
            let report = stopped.resume().unwrap();
            assert_eq!((report.threads, report.died), (threads.len(), 0));
            assert!(report.longest <= report.total);
        } else {
            for &tid in &threads {
                let thread = stop_one(&target, tid, WITHIN).unwrap().unwrap();
                assert!(matches!(thread.resume().unwrap(), Release::Resumed { .. }));
            }
        }
        if round % 10 == 0 {
            std::thread::sleep(Duration::from_millis(7));
        }
    }
    nothing_is_stopped_or_traced(running.pid());
    let before = numbers(&running.ask("count"));
    assert_eq!(before[..2], [0, 0]);
    // The timed calls go on.
    std::thread::sleep(Duration::from_millis(200));
    let after = numbers(&running.ask("count"));
    assert_eq!(after[..2], [0, 0]);
    assert!(after[2] > before[2]);
    running.ask("finish");
    assert!(running.wait().success());
}

#[test]
fn a_thread_that_is_not_there_is_none() {
    let running = Running::fixture("odd", &["many", "2"]);
    assert!(stop_one(&running.target(), Tid(i32::MAX), WITHIN).unwrap().is_none());
}

#[test]
fn a_thousand_threads() {
    let running = Running::fixture("odd", &["many", "1000"]);
    let target = running.target();
    for _ in 0..3 {
        let stopped = stop_all(&target, WITHIN).unwrap();
        assert_eq!(stopped.threads().len(), 1000);
        assert!(states(running.pid()).iter().all(|(_, s)| *s == 't'));
        assert_eq!(stopped.resume().unwrap().died, 0);
    }
    nothing_is_stopped_or_traced(running.pid());
}

#[test]
fn no_signal_is_lost_repeated_or_overtaken() {
    let mut running = Running::fixture("odd", &["storm"]);
    let target = running.target();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut round = 0;
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                round += 1;
                if round % 3 == 0 {
                    for tid in target.threads().unwrap() {
                        drop(stop_one(&target, tid, WITHIN).unwrap());
                    }
                } else {
                    drop(stop_all(&target, WITHIN).unwrap());
                }
                std::thread::sleep(Duration::from_micros(300));
            }
        });
        let line = running.line();
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        assert_eq!(line, "20000 taken 0 out of order 0 without cause 0 wrong");
    });
    nothing_is_stopped_or_traced(running.pid());
}

#[test]
fn job_control_is_left_as_it_is() {
    let mut running = Running::fixture("blocked", &["1"]);
    let target = running.target();
    running.signal(libc::SIGSTOP);
    let all_stopped = || states(running.pid()).iter().all(|(_, s)| *s == 'T');
    eventually(all_stopped);
    for _ in 0..20 {
        assert!(target.is_job_stopped().unwrap());
        let stopped = stop_all(&target, WITHIN).unwrap();
        assert!(stopped.threads().iter().all(|t| t.group_stop() == Some(libc::SIGSTOP)));
        stopped.resume().unwrap();
        for tid in target.threads().unwrap() {
            drop(stop_one(&target, tid, WITHIN).unwrap().unwrap());
        }
        eventually(all_stopped);
    }
    // A stop and its end while it is held.
    running.signal(libc::SIGCONT);
    eventually(|| !target.is_job_stopped().unwrap());
    let stopped = stop_all(&target, WITHIN).unwrap();
    running.signal(libc::SIGSTOP);
    stopped.resume().unwrap();
    eventually(all_stopped);
    let stopped = stop_all(&target, WITHIN).unwrap();
    running.signal(libc::SIGCONT);
    stopped.resume().unwrap();
    nothing_is_stopped_or_traced(running.pid());
    assert!(running.ask("count").starts_with("0 0 "));
}

#[test]
fn a_target_under_a_debugger_is_refused() {
    let running = Running::fixture("odd", &["many", "3"]);
    let target = running.target();
    let mut gdb = Command::new("gdb")
        .args(["-nx", "-q", "-iex", "set debuginfod enabled off", "-p", &running.pid().to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    eventually(|| status_lines(running.pid(), "TracerPid").iter().all(|l| !l.ends_with("\t0")));
    let pid = gdb.id();
    let expected = format!("is already traced by gdb (pid {pid}); end that first");
    let e = Target::open(running.pid()).unwrap_err();
    assert!(e.to_string().ends_with(&expected), "{e}");
    let e = stop_all(&target, WITHIN).unwrap_err();
    assert!(e.to_string().ends_with(&expected), "{e}");
    writeln!(gdb.stdin.take().unwrap(), "detach\nquit").unwrap();
    gdb.wait().unwrap();
    nothing_is_stopped_or_traced(running.pid());
    drop(stop_all(&target, WITHIN).unwrap());
}

#[test]
fn a_target_killed_while_stopped_is_reaped() {
    for _ in 0..10 {
        let mut running = Running::fixture_once("odd", &["many", "20"]);
        let target = running.target();
        let stopped = stop_all(&target, WITHIN).unwrap();
        running.signal(libc::SIGKILL);
        let report = stopped.resume().unwrap();
        assert_eq!(report.threads, 20);
        // Its parent, this process, gets its status.
        assert!(!running.wait().success());
        assert!(matches!(stop_all(&target, WITHIN), Err(Error::TargetGone(_))));
        assert!(matches!(target.check_same(), Err(Error::TargetGone(_))));
        assert!(matches!(target.maps(), Err(Error::TargetGone(_))));
        assert!(matches!(Target::open(running.pid()), Err(Error::NoSuchProcess(_))));
    }
}

#[test]
fn exec_in_another_thread_goes_on() {
    let mut running = Running::fixture("odd", &["exec", "100"]);
    let pid = running.pid();
    let first = running.target();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                match Target::open(pid).and_then(|target| stop_all(&target, WITHIN)) {
                    Ok(stopped) => drop(stopped),
                    Err(Error::TargetGone(_) | Error::Permission(..)) => {}
                    Err(e) => panic!("{e}"),
                }
                settle();
            }
        });
        assert_eq!(running.line(), "done");
        done.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    nothing_is_stopped_or_traced(pid);
    assert!(matches!(first.check_same(), Err(Error::TargetGone(_))));
    assert!(matches!(stop_all(&first, WITHIN), Err(Error::TargetGone(_))));
}

#[test]
fn a_vfork_parent_is_named_and_nothing_stays_stopped() {
    let running = Running::fixture("odd", &["vfork", "300"]);
    let target = running.target();
    let mut refused = 0;
    for _ in 0..10 {
        match on_own_thread(|| stop_all(&target, Duration::from_millis(50)).map(drop)) {
            Ok(()) => {}
            Err(Error::CannotStop { why: Unstoppable::Vfork, comm, .. }) => {
                assert_eq!(comm, "odd");
                refused += 1;
                // Long after the child has exited.
                nothing_is_stopped_or_traced(running.pid());
            }
            // On a busy machine 50 ms may not be enough for a thread that could stop.
            Err(Error::CannotStop { why: Unstoppable::Starved, .. }) => {}
            Err(e) => panic!("{e}"),
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(refused > 0);
    // With time enough it is a wait.
    drop(stop_all(&target, WITHIN).unwrap());
    nothing_is_stopped_or_traced(running.pid());
}

#[test]
fn threads_that_come_and_go() {
    let running = Running::fixture("odd", &["churn"]);
    let target = running.target();
    for _ in 0..100 {
        let stopped = stop_all(&target, WITHIN).unwrap();
        let ids: HashSet<i32> = stopped.threads().iter().map(|t| t.tid().0).collect();
        for (tid, state) in states(running.pid()) {
            assert!(ids.contains(&tid) && state == 't' || state == 'Z', "{tid} {state}");
        }
        stopped.resume().unwrap();
    }
    nothing_is_stopped_or_traced(running.pid());
}

#[test]
fn a_process_whose_first_thread_has_left() {
    let running = Running::fixture("odd", &["no-leader"]);
    eventually(|| states(running.pid()).iter().any(|(_, s)| *s == 'Z'));
    let target = running.target();
    target.check_same().unwrap();
    assert!(target.maps().unwrap().iter().count() > 5);
    assert!(target.exe().unwrap().exists());
    for _ in 0..20 {
        let stopped = stop_all(&target, WITHIN).unwrap();
        assert_eq!(stopped.threads().len(), 2);
        stopped.resume().unwrap();
    }
    nothing_is_stopped_or_traced(running.pid());
}
