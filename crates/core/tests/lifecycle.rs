//! The life of a patch, and of a state between runs of the tool.

mod support;

use std::collections::BTreeSet;
use support::{Target, func, patch, replacing, threads, with_callbacks};
use ugraft_core::{
    AlreadySo, CallbackKind, Corrupt, Direction, Due, Effect, Errno, Event, FORMAT, Finish, Implementation,
    Life, PatchDesc, PatchId, Refusal, State, ThreadId, step,
};

fn touches_f(name: &str) -> PatchDesc {
    patch(name, &[(None, &["f"])])
}

fn reread(state: &State) -> State {
    serde_json::from_str(&serde_json::to_string(state).unwrap()).unwrap()
}

#[test]
fn what_is_already_so_is_recognised() {
    let mut t = Target::new(&["libz.so.1"]);
    t.load(touches_f("p"));
    let refusal = t.try_enable("p").unwrap_err();
    assert!(refusal.is_already_so());
    assert_eq!(refusal.to_string(), "patch 'p' is already enabled");
    assert_eq!(refusal.errno(), Errno::EINVAL, "as the kernel answers");
    t.disable("p");
    assert_eq!(t.try_disable("p").unwrap_err(), Refusal::AlreadySo(AlreadySo::Disabled("p".into())));
    let coming = Event::ObjectComing { object: "libz.so.1".into(), misfits: Vec::new() };
    assert!(t.event(coming).unwrap_err().is_already_so());
    assert!(t.event(Event::ObjectGoing { object: "libx.so".into() }).unwrap_err().is_already_so());
}

#[test]
fn unknown_names_are_refused() {
    let mut t = Target::new(&[]);
    for result in [t.try_enable("p"), t.try_disable("p"), t.try_unload("p")] {
        assert_eq!(result.unwrap_err(), Refusal::NoSuchPatch("p".into()));
    }
    let reverse = t.event(Event::Reverse { patch: None, threads: threads([1]) });
    assert_eq!(reverse.unwrap_err(), Refusal::NoTransition);
}

#[test]
fn only_disabled_and_replaced_patches_can_be_unloaded() {
    let mut t = Target::new(&[]);
    t.load(touches_f("p"));
    let refusal = t.try_unload("p").unwrap_err();
    assert_eq!(refusal.to_string(), "patch 'p' is enabled: disable it, then unload it");
    assert_eq!(refusal.errno(), Errno::EBUSY);
    t.stuck = threads([1]);
    t.disable("p");
    assert!(matches!(t.try_unload("p"), Err(Refusal::StillInUse { life: Life::Disabling, .. })));
    t.stuck.clear();
    t.ok(Event::ThreadSwitched(ThreadId(1)));
    t.unload("p");
}

#[test]
fn identifiers_are_never_used_again() {
    let mut t = Target::new(&[]);
    for round in 1..5 {
        t.load(touches_f("p"));
        assert_eq!(t.state.patch_named("p").unwrap().id(), PatchId(round));
        t.disable("p");
        t.unload("p");
    }
}

/// An enabling that has not started is given up: nothing remains of the load, and nobody was told to begin.
#[test]
fn a_load_that_has_not_started_is_given_up() {
    let mut t = Target::new(&[]);
    t.autostart = false;
    t.load(with_callbacks(touches_f("p")));
    assert_eq!(t.state.due(), Due::Start);
    // Here the tool dies, and the next run knows all that is needed.
    t.state = reread(&t.state);
    t.take_log();
    let effects = t.reverse();
    assert_eq!(
        t.take_log(),
        [
            "livepatch: 'p': canceling patching transition, going to unpatch",
            "livepatch: 'p': completing unpatching transition",
            "p: post_unpatch_callback: vmlinux",
            "livepatch: 'p': unpatching complete",
        ]
    );
    let settled = Effect::Settle { func: func(None, "f"), implementation: Implementation::Original };
    assert!(effects.contains(&settled));
    assert!(effects.contains(&Effect::Finished { patch: PatchId(1), finish: Finish::Abandoned }));
    assert!(effects.contains(&Effect::FreePatch(PatchId(1))));
    assert!(!effects.iter().any(|e| matches!(e, Effect::Begin { .. } | Effect::Swap { .. } | Effect::End)));
    assert!(t.state.patches().is_empty());
    assert_eq!(t.state.due(), Due::Nothing);
}

#[test]
fn an_enable_that_has_not_started_is_given_up() {
    let mut t = Target::new(&[]);
    t.load_disabled(touches_f("p"));
    let before = t.state.clone();
    t.autostart = false;
    t.enable("p");
    t.reverse();
    assert_eq!(t.state, before);
}

#[test]
fn a_disable_that_has_not_started_is_given_up() {
    let mut t = Target::new(&[]);
    t.load(with_callbacks(touches_f("p")));
    let before = t.state.clone();
    t.autostart = false;
    t.disable("p");
    t.take_log();
    t.reverse();
    // pre_unpatch had run, so post_patch runs again, as after a reversal.
    assert_eq!(
        t.take_log(),
        [
            "livepatch: 'p': reversing transition from unpatching to patching",
            "livepatch: 'p': completing patching transition",
            "p: post_patch_callback: vmlinux",
            "livepatch: 'p': patching complete",
        ]
    );
    assert_eq!(t.state, before);
}

#[test]
fn a_started_load_that_is_reversed_leaves_the_patch_disabled() {
    let mut t = Target::new(&[]);
    t.stuck = threads([1]);
    t.load(touches_f("p"));
    t.reverse();
    assert_eq!(t.life("p"), Life::Disabled);
    t.unload("p");
}

/// A run of the tool that takes over reads in the target who is pending, and goes on.
#[test]
fn the_next_run_takes_over() {
    let mut t = Target::new(&[]);
    t.stuck = threads([1, 2]);
    t.load(touches_f("p"));
    let mut state = reread(&t.state);
    assert_eq!(state, t.state);
    assert_eq!(state.due(), Due::Threads);
    state.set_pending(threads([2]));
    assert_eq!(*state.transition().unwrap().pending(), threads([2]));
    let id = state.patches()[0].id();
    assert_eq!(state.runs(&func(None, "f"), ThreadId(1)), Implementation::Patch(id));
    // It finds that the last one was struck before the tool died.
    let (state, effects) = step(&state, Event::Resumed { pending: threads([]), reversed: false }).unwrap();
    assert!(effects.contains(&Effect::End));
    assert_eq!(state.patches()[0].life(), Life::Enabled);
}

/// The target can be ahead of the state: the tool died after it began, or after it swapped, and before it saved.
#[test]
fn the_next_run_makes_up_for_what_was_not_saved() {
    let mut t = Target::new(&[]);
    t.autostart = false;
    t.load(touches_f("p"));
    t.take_log();
    let (state, effects) = step(&t.state, Event::Resumed { pending: threads([1]), reversed: false }).unwrap();
    assert!(
        matches!(&effects[..], [Effect::Log(_, text)] if text == "livepatch: 'p': starting patching transition")
    );
    assert_eq!(state.due(), Due::Threads);
    let (state, effects) = step(&state, Event::Resumed { pending: threads([2]), reversed: true }).unwrap();
    let texts: Vec<_> = effects.iter().map(|e| format!("{e:?}")).collect();
    assert_eq!(texts.len(), 2, "{texts:?}");
    assert!(texts[0].contains("reversing transition from patching to unpatching"));
    assert_eq!(state.patches()[0].life(), Life::Disabling);
    let (state, _) = step(&state, Event::ThreadSwitched(ThreadId(2))).unwrap();
    assert_eq!(state.patches()[0].life(), Life::Disabled);
}

#[test]
fn the_pending_table_is_changed_before_and_all_else_after_the_state_is_saved() {
    let mut t = Target::new(&[]);
    t.autostart = false;
    let check = |state: &State, event: Event, expected: Option<Effect>| {
        let (state, effects) = step(state, event.clone()).unwrap();
        let at = event.save_after(&effects);
        assert_eq!(at.checked_sub(1).map(|at| effects[at].clone()), expected);
        state
    };
    let load = Event::Load { desc: touches_f("p"), enable: true, ignore_order: false };
    let state = check(&t.state, load, None);
    let begin = Effect::Begin { pending: threads([1, 2]) };
    let state = check(&state, Event::Started { pending: threads([1, 2]) }, Some(begin));
    let state = check(&state, Event::ThreadSwitched(ThreadId(1)), Some(Effect::Switch(ThreadId(1))));
    check(&state, Event::ThreadSwitched(ThreadId(2)), Some(Effect::Switch(ThreadId(2))));
    let reverse = Event::Reverse { patch: None, threads: threads([1, 2]) };
    let swap = Effect::Swap { pending: threads([1]), reversed: true };
    check(&state, reverse, Some(swap));
    let state = check(&state, Event::Force { patch: None }, None);
    let state = check(&state, Event::Disable { patch: "p".into(), ignore_order: false }, None);
    let state = check(&state, Event::Reverse { patch: None, threads: threads([1]) }, None);
    assert_eq!(state.due(), Due::Nothing);
}

#[test]
fn callbacks_are_awaited_one_at_a_time() {
    let state = State::default();
    let load = Event::Load { desc: with_callbacks(touches_f("p")), enable: true, ignore_order: false };
    let (state, effects) = step(&state, load).unwrap();
    let Some(Effect::RunCallback(call)) = effects.last() else { panic!("{effects:?}") };
    assert_eq!(call.callback, CallbackKind::PrePatch);
    // Another run of the tool sees which.
    let state = reread(&state);
    assert_eq!(state.due(), Due::Callback(call.clone()));
    for event in [
        Event::Started { pending: threads([1]) },
        Event::Reverse { patch: None, threads: threads([1]) },
        Event::ObjectComing { object: "libz.so.1".into(), misfits: Vec::new() },
    ] {
        let refusal = step(&state, event).unwrap_err();
        assert_eq!(refusal.errno(), Errno::EBUSY);
        assert_eq!(
            refusal.to_string(),
            "the pre_patch callback of patch 'p' for the main executable has not returned: wait for it, then ask again"
        );
    }
    let (state, _) = step(&state, Event::CallbackReturned { value: 0 }).unwrap();
    assert_eq!(state.due(), Due::Start);
    assert_eq!(step(&state, Event::CallbackReturned { value: 0 }).unwrap_err(), Refusal::NoCallback);
}

#[test]
fn threads_can_switch_while_an_object_waits_for_its_callback() {
    let mut t = Target::new(&[]);
    t.stuck = threads([1, 2]);
    t.load(with_callbacks(patch("p", &[(None, &["f"]), (Some("liba.so"), &["a"])])));
    let coming = Event::ObjectComing { object: "liba.so".into(), misfits: Vec::new() };
    let (state, _) = step(&t.state, coming).unwrap();
    let (state, _) = step(&state, Event::ThreadSwitched(ThreadId(1))).unwrap();
    let (state, effects) = step(&state, Event::ThreadExited(ThreadId(2))).unwrap();
    assert_eq!(effects, [Effect::Switch(ThreadId(2))], "the end waits for the callback");
    let (_, effects) = step(&state, Event::CallbackReturned { value: 0 }).unwrap();
    let admitted = effects.iter().position(|e| matches!(e, Effect::Admit { .. })).unwrap();
    let end = effects.iter().position(|e| *e == Effect::End).unwrap();
    assert!(admitted < end);
}

#[test]
fn threads_are_born_switched_and_die_unnoticed() {
    let mut t = Target::new(&[]);
    t.stuck = threads([1]);
    t.load(touches_f("p"));
    let id = t.state.patches()[0].id();
    assert_eq!(t.ok(Event::ThreadBorn(ThreadId(3))), []);
    assert_eq!(t.state.runs(&func(None, "f"), ThreadId(3)), Implementation::Patch(id));
    assert_eq!(t.ok(Event::ThreadExited(ThreadId(3))), []);
    t.ok(Event::ThreadExited(ThreadId(1)));
    assert_eq!(t.life("p"), Life::Enabled);
    assert_eq!(t.ok(Event::ThreadExited(ThreadId(2))), []);
}

#[test]
fn a_patch_without_functions_has_a_transition_too() {
    let mut t = Target::new(&[]);
    let effects = t.load(with_callbacks(patch("p", &[(None, &[])])));
    assert!(effects.contains(&Effect::Begin { pending: threads([1, 2]) }));
    assert!(
        effects.contains(&Effect::Finished {
            patch: PatchId(1),
            finish: Finish::Completed(Direction::Patching)
        })
    );
    assert_eq!(t.state.entries(), []);
}

#[test]
fn a_run_that_takes_over_can_compare_all_entries() {
    let mut t = Target::new(&[]);
    t.load(touches_f("p"));
    t.stuck = threads([1]);
    t.load(replacing(patch("r", &[(None, &["g"])])));
    let [p, r] = ["p", "r"].map(|name| Implementation::Patch(t.state.patch_named(name).unwrap().id()));
    let original = Implementation::Original;
    assert_eq!(
        t.state.entries(),
        [
            Effect::Redirect { func: func(None, "f"), source: p, goal: original },
            Effect::Redirect { func: func(None, "g"), source: original, goal: r },
        ]
    );
    t.stuck.clear();
    t.ok(Event::ThreadSwitched(ThreadId(1)));
    assert_eq!(t.state.entries(), [Effect::Settle { func: func(None, "g"), implementation: r }]);
}

// The written form.

#[test]
fn a_state_of_an_earlier_version_can_be_read() {
    let state: State = serde_json::from_str("{}").unwrap();
    assert_eq!(state, State::default());
    let state: State = serde_json::from_str(
        r#"{"format":1,"next_id":4,"patches":[{"id":3,"life":"enabled","desc":{"name":"p"}}],"later":"ignored"}"#,
    )
    .unwrap();
    assert_eq!(state.check(), Ok(()));
    assert_eq!(state.patch_named("p").unwrap().life(), Life::Enabled);
}

#[test]
fn what_is_no_state_is_refused() {
    let corrupt = |json: &str| {
        let state: State = serde_json::from_str(json).unwrap();
        let refusal = step(&state, Event::Signal).unwrap_err();
        let Refusal::Corrupt(corrupt) = refusal else { panic!("{refusal}") };
        corrupt
    };
    assert_eq!(corrupt(&format!(r#"{{"format":{}}}"#, FORMAT + 1)), Corrupt::Newer { format: FORMAT + 1 });
    assert_eq!(corrupt(r#"{"transition":{"patch":9}}"#), Corrupt::UnknownPatch(PatchId(9)));
    let twice = r#"{"next_id":9,"patches":[{"id":3,"desc":{"name":"p"}},{"id":4,"desc":{"name":"p"}}]}"#;
    assert_eq!(corrupt(twice), Corrupt::Twice("p".into()));
    for patch in [
        r#"{"id":3,"life":"enabling","desc":{"name":"p"}}"#,
        r#"{"id":9,"desc":{"name":"p"}}"#,
        r#"{"id":3,"desc":{"name":"p","objects":[{}]}}"#,
    ] {
        let json = format!(r#"{{"next_id":9,"patches":[{patch}]}}"#);
        assert_eq!(corrupt(&json), Corrupt::Patch("p".into()));
    }
    let work = r#"{"next_id":9,"patches":[{"id":3,"desc":{"name":"p"}}],"work":[{"Revert":{"site":{"patch":3,"object":0}}}]}"#;
    assert_eq!(corrupt(work), Corrupt::Patch("p".into()));
}

#[test]
fn init_runs_before_the_enabling_and_exit_before_a_patch_is_forgotten() {
    let desc =
        PatchDesc { name: "own".into(), init: true, exit: true, replace: true, ..PatchDesc::default() };
    let load = |enable| Event::Load { desc: desc.clone(), enable, ignore_order: false };
    let due = |state: &State| match state.due() {
        Due::Callback(call) => Some(call.callback),
        _ => None,
    };
    let returned = |value| Event::CallbackReturned { value };

    // Refused: as if it had never been.
    let (loading, _) = step(&State::default(), load(true)).unwrap();
    assert_eq!(due(&loading), Some(CallbackKind::Init));
    assert!(loading.transition().is_none());
    let (refused, effects) = step(&loading, returned(-12)).unwrap();
    assert!(refused.patches().is_empty());
    assert!(effects.iter().any(|e| matches!(e, Effect::FreePatch(_))));

    // What it says of itself in its init counts, and nothing else can happen meanwhile.
    assert!(step(&loading, Event::Unload { patch: "own".into() }).is_err());
    let (said, _) = step(&loading, Event::ReplaceSet { replace: false }).unwrap();
    assert!(!said.patch_named("own").unwrap().desc().replace);
    let (enabling, _) = step(&said, returned(0)).unwrap();
    assert_eq!(enabling.due(), Due::Start);
    assert!(step(&enabling, Event::ReplaceSet { replace: true }).is_err());

    // Cancelled before its start: exit undoes what init did, and then it is gone.
    let reverse = Event::Reverse { patch: None, threads: BTreeSet::new() };
    let (cancelled, _) = step(&enabling, reverse).unwrap();
    assert_eq!(due(&cancelled), Some(CallbackKind::Exit));
    let (gone, _) = step(&cancelled, returned(0)).unwrap();
    assert!(gone.patches().is_empty());

    // Loaded without being enabled, and unloaded.
    let (loading, _) = step(&State::default(), load(false)).unwrap();
    let (loaded, _) = step(&loading, returned(0)).unwrap();
    assert_eq!((due(&loaded), loaded.patch_named("own").unwrap().life()), (None, Life::Disabled));
    let (leaving, _) = step(&loaded, Event::Unload { patch: "own".into() }).unwrap();
    assert_eq!(due(&leaving), Some(CallbackKind::Exit));
    let (gone, _) = step(&leaving, returned(0)).unwrap();
    assert!(gone.patches().is_empty());
}
