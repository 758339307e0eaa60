//! Reversing, signaling and forcing, facts 24 to 26.

use super::*;

#[test]
fn fact_24_reversing_a_patching_transition() {
    let mut t = Target::new(&[LIB]);
    t.stuck = threads([1, 2]);
    t.load(with_callbacks(patch("p", &[(None, &["f"]), (Some(LIB), &["a"])])));
    t.ok(Event::ThreadSwitched(ThreadId(2)));
    t.take_log();
    let effects = t.reverse();
    // Only who had switched has to come back.
    assert!(effects.contains(&Effect::Swap { pending: threads([2]), reversed: true }));
    assert_eq!(
        t.take_log(),
        [
            "livepatch: 'p': reversing transition from patching to unpatching",
            "livepatch: 'p': starting unpatching transition",
        ]
    );
    let id = t.state.patch_named("p").unwrap().id();
    assert_eq!(t.state.runs(&f(), ThreadId(1)), Implementation::Original);
    assert_eq!(t.state.runs(&f(), ThreadId(2)), Implementation::Patch(id));
    assert_eq!(t.life("p"), Life::Disabling);
    t.ok(Event::ThreadSwitched(ThreadId(2)));
    assert_eq!(
        t.take_log(),
        [
            "livepatch: 'p': completing unpatching transition".to_owned(),
            "p: post_unpatch_callback: vmlinux".to_owned(),
            format!("p: post_unpatch_callback: {LIB} -> [MODULE_STATE_LIVE] Normal state"),
            "livepatch: 'p': unpatching complete".to_owned(),
        ]
    );
    assert_eq!(t.life("p"), Life::Disabled);
}

#[test]
fn fact_24_reversing_an_unpatching_transition_runs_post_patch_again() {
    let mut t = Target::new(&[]);
    t.load(with_callbacks(touches_f("p")));
    t.stuck = threads([1, 2]);
    t.disable("p");
    t.ok(Event::ThreadSwitched(ThreadId(2)));
    t.take_log();
    t.reverse();
    t.ok(Event::ThreadSwitched(ThreadId(2)));
    assert_eq!(
        t.take_log(),
        [
            "livepatch: 'p': reversing transition from unpatching to patching",
            "livepatch: 'p': starting patching transition",
            "livepatch: 'p': completing patching transition",
            "p: post_patch_callback: vmlinux",
            "livepatch: 'p': patching complete",
        ]
    );
    assert_eq!(t.life("p"), Life::Enabled);
    assert_eq!(t.runs(&f()), "p");
}

#[test]
fn fact_24_any_number_of_times() {
    let mut t = Target::new(&[]);
    t.stuck = threads([1, 2]);
    t.load(touches_f("p"));
    t.ok(Event::ThreadSwitched(ThreadId(2)));
    for round in 0..10 {
        let transition = t.state.transition().unwrap();
        assert_eq!(transition.is_reversed(), round % 2 == 1);
        assert_eq!(*transition.pending(), threads([if round % 2 == 1 { 2 } else { 1 }]));
        t.reverse();
    }
    t.stuck.clear();
    t.ok(Event::ThreadSwitched(ThreadId(1)));
    assert_eq!(t.life("p"), Life::Enabled);
}

/// The opposite request while a transition runs is a wish to reverse it, and is recognised as that.
#[test]
fn fact_24_the_opposite_request_asks_for_a_reversal() {
    let mut t = Target::new(&[]);
    t.stuck = threads([1]);
    t.load(touches_f("p"));
    assert_eq!(
        t.try_disable("p").unwrap_err(),
        Refusal::WouldReverse { patch: "p".into(), direction: Direction::Patching }
    );
    assert_eq!(t.try_enable("p").unwrap_err(), Refusal::AlreadySo(AlreadySo::Enabling("p".into())));
    t.stuck = threads([2]);
    t.reverse();
    assert_eq!(
        t.try_enable("p").unwrap_err(),
        Refusal::WouldReverse { patch: "p".into(), direction: Direction::Unpatching }
    );
    assert_eq!(t.try_disable("p").unwrap_err(), Refusal::AlreadySo(AlreadySo::Disabling("p".into())));
}

#[test]
fn fact_25_sleepers_are_signaled_once_per_direction() {
    let mut t = Target::new(&[]);
    t.stuck = threads([1, 2]);
    t.load(touches_f("p"));
    t.ok(Event::ThreadSwitched(ThreadId(2)));
    t.take_log();
    assert_eq!(t.ok(Event::Signal).last(), Some(&Effect::Signal(ThreadId(1))));
    // Kicks repeat silently.
    assert_eq!(t.ok(Event::Signal), [Effect::Signal(ThreadId(1))]);
    assert_eq!(t.take_log(), ["livepatch: signaling remaining tasks"]);
    t.reverse();
    t.take_log();
    t.ok(Event::Signal);
    assert_eq!(t.take_log(), ["livepatch: signaling remaining tasks"]);
}

#[test]
fn fact_26_force_in_plain_patching_leaves_no_mark() {
    let mut t = Target::new(&[]);
    t.stuck = threads([1]);
    t.load(with_callbacks(touches_f("p")));
    t.take_log();
    let effects = t.ok(Event::Force { patch: None });
    assert!(effects.contains(&Effect::Switch(ThreadId(1))));
    assert_eq!(
        t.take_log(),
        [
            "livepatch: forcing remaining tasks to the patched state",
            "livepatch: 'p': completing patching transition",
            "p: post_patch_callback: vmlinux",
            "livepatch: 'p': patching complete",
        ]
    );
    t.stuck.clear();
    t.disable("p");
    t.unload("p");
}

#[test]
fn fact_26_force_in_unpatching_keeps_the_patch_for_ever() {
    let mut t = Target::new(&[]);
    t.load(touches_f("p"));
    t.stuck = threads([1]);
    t.disable("p");
    t.ok(Event::Force { patch: Some("p".into()) });
    assert_eq!(t.runs(&f()), "original");
    assert_eq!(t.life("p"), Life::Disabled);
    let refusal = t.try_unload("p").unwrap_err();
    assert_eq!(refusal, Refusal::Forced { patch: "p".into() });
    assert_eq!(refusal.errno(), Errno::EBUSY);
    let status = &t.state.status()[0];
    assert!(status.forced && !status.may_unload);
}

#[test]
fn fact_26_force_in_replacing_keeps_the_replaced_for_ever() {
    let mut t = Target::new(&[]);
    t.load(touches_f("old"));
    t.load_disabled(patch("off", &[(None, &["g"])]));
    t.stuck = threads([1]);
    t.load(replacing(patch("new", &[(None, &["h"])])));
    t.ok(Event::Force { patch: None });
    assert_eq!(t.life("old"), Life::Replaced);
    assert_eq!(t.try_unload("old").unwrap_err(), Refusal::Forced { patch: "old".into() });
    let again = t.event(Event::Load { desc: touches_f("old"), enable: true, ignore_order: false });
    assert_eq!(again.unwrap_err().errno(), Errno::EEXIST);
    // One that was disabled has no code that anybody could be in, and the forcing patch itself comes and goes.
    t.unload("off");
    t.stuck.clear();
    t.disable("new");
    t.unload("new");
}

/// Stricter than the kernel: who is below a forced patch may have a thread in its code that no later check sees.
#[test]
fn fact_26_force_on_top_of_another_patch_marks_the_one_below() {
    let mut t = Target::new(&[]);
    t.load(touches_f("below"));
    t.load(patch("other", &[(None, &["g"])]));
    t.stuck = threads([1]);
    t.load(touches_f("above"));
    t.ok(Event::Force { patch: None });
    assert!(t.state.patch_named("below").unwrap().is_forced());
    assert!(!t.state.patch_named("other").unwrap().is_forced());
    assert!(!t.state.patch_named("above").unwrap().is_forced());
}

#[test]
fn fact_26_force_needs_a_transition_of_this_patch() {
    let mut t = Target::new(&[]);
    t.load(touches_f("p"));
    assert_eq!(t.event(Event::Force { patch: None }).unwrap_err().errno(), Errno::EINVAL);
    t.stuck = threads([1]);
    t.load(patch("q", &[(None, &["g"])]));
    let refusal = t.event(Event::Force { patch: Some("p".into()) }).unwrap_err();
    assert_eq!(refusal, Refusal::OtherTransition { patch: "p".into(), other: "q".into() });
    assert_eq!(refusal.errno(), Errno::EINVAL);
    let refusal = t.event(Event::Force { patch: Some("x".into()) }).unwrap_err();
    assert_eq!(refusal.errno(), Errno::ENOENT);
}
