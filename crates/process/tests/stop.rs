//! Stopping threads so that they do not notice.

mod fixture;

use fixture::{Running, eventually, states, status_lines};
use std::time::Duration;
use ugraft_process::threads::{Release, stop_all, stop_one};
use ugraft_process::{Pid, Tid};

const WITHIN: Duration = Duration::from_secs(5);

fn nothing_is_stopped_or_traced(pid: Pid) {
    assert!(status_lines(pid, "TracerPid").iter().all(|l| l.ends_with("\t0")));
    eventually(|| states(pid).iter().all(|(_, s)| !matches!(s, 't' | 'T')));
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
    let before: Vec<i32> = running.ask("count").split(' ').map(|n| n.parse().unwrap()).collect();
    assert_eq!(before[0], 0);
    // The timed calls go on.
    std::thread::sleep(Duration::from_millis(200));
    let after: Vec<i32> = running.ask("count").split(' ').map(|n| n.parse().unwrap()).collect();
    assert_eq!(after[0], 0);
    assert!(after[1] > before[1]);
    running.ask("finish");
    assert!(running.wait().success());
}

#[test]
fn a_thread_that_is_not_there_is_none() {
    let running = Running::fixture("blocked", &["1"]);
    assert!(stop_one(&running.target(), Tid(i32::MAX), WITHIN).unwrap().is_none());
}
