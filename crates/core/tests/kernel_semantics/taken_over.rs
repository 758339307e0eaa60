//! Libraries that came and went without the tool: what was done for them in the target is taken over as done, and each has the callbacks
//! that the kernel would have run, where a mutex keeps a module from coming and going while a patch's callbacks run.

use super::*;
use ugraft_core::{Due, Patch, PatchId, Transition, step};

fn live(patch: &str, callback: &str) -> String {
    format!("{patch}: {callback}_callback: {LIB} -> [MODULE_STATE_LIVE] Normal state")
}

fn came(applied: &[PatchId], waits: Option<PatchId>) -> Event {
    Event::ObjectCame { object: LIB.into(), applied: applied.to_vec(), waits }
}

fn gone(left: &[PatchId]) -> Event {
    Event::ObjectGone { object: LIB.into(), left: left.to_vec() }
}

fn main_and_library(name: &str) -> PatchDesc {
    with_callbacks(patch(name, &[(None, &["f"]), (Some(LIB), &["a"])]))
}

fn id_of(t: &Target, name: &str) -> PatchId {
    t.state.patch_named(name).unwrap().id()
}

/// A target in which a request has come as far as its first callback, which runs.
fn in_first_callback(t: &mut Target, event: Event) {
    let (state, effects) = step(&t.state, event).unwrap();
    assert!(matches!(effects.last(), Some(Effect::RunCallback(call)) if call.object.is_none()));
    t.state = state;
    t.take_log();
}

/// Taking over that a library came or went leads to the state that doing it leads to, and says nothing, in every kind of transition.
#[test]
fn what_was_done_in_the_target_is_taken_over() {
    for (direction, reversed) in
        [(None, false), (Some(Direction::Patching), false), (Some(Direction::Unpatching), true)]
    {
        let mut t = Target::new(&[]);
        t.load(with_callbacks(patch("old", &[(Some(LIB), &["a"])])));
        let desc = with_callbacks(patch("p", &[(None, &["f"]), (Some(LIB), &["a", "b"])]));
        if direction != Some(Direction::Patching) {
            t.load(desc.clone());
        }
        t.stuck = threads([1, 2]);
        match direction {
            Some(Direction::Patching) => drop(t.load(desc)),
            Some(Direction::Unpatching) => drop(t.disable("p")),
            None => {}
        }
        if reversed {
            t.threads = threads([1, 2, 3]);
            t.stuck = threads([3]);
            t.reverse();
        }
        let before = t.state.clone();
        let applied: Vec<_> = before.patches().iter().map(Patch::id).collect();
        let waits = before.transition().map(Transition::patch);
        t.coming(LIB);
        let came = Event::ObjectCame { object: LIB.into(), applied: applied.clone(), waits };
        assert_eq!(step(&before, came).unwrap(), (t.state.clone(), Vec::new()));
        let there = t.state.clone();
        t.going(LIB);
        let gone = Event::ObjectGone { object: LIB.into(), left: applied };
        assert_eq!(step(&there, gone).unwrap(), (t.state, Vec::new()));
    }
}

/// One that came before the last thread switched, and was not known of then, gets its `post_` callback with the others.
#[test]
fn what_came_before_the_end_is_treated_as_the_others() {
    let mut t = Target::new(&[]);
    t.stuck = threads([1]);
    t.load(with_callbacks(patch("p", &[(None, &["f"]), (Some(LIB), &["a"])])));
    let id = t.state.patches()[0].id();
    let (state, _) = step(&t.state, Event::ThreadSwitched(ThreadId(1))).unwrap();
    assert!(matches!(state.due(), Due::Callback(_)), "the post_patch of the main executable");
    let came = Event::ObjectCame { object: LIB.into(), applied: vec![id], waits: Some(id) };
    let (state, effects) = step(&state, came).unwrap();
    assert_eq!(effects, []);
    let (state, effects) = step(&state, Event::CallbackReturned { value: 0 }).unwrap();
    let post_patch = |effect: &Effect| matches!(effect, Effect::RunCallback(call) if call.callback == CallbackKind::PostPatch && call.object.as_deref() == Some(LIB));
    assert!(effects.iter().any(post_patch));
    let (state, _) = step(&state, Event::CallbackReturned { value: 0 }).unwrap();
    assert_eq!(state.patches()[0].life(), Life::Enabled);
    assert_eq!(state.due(), Due::Nothing);
}

/// Before the start the target does not know of the transition: for its patch one that came is as those that were there before, and it
/// lets go of one that went.
#[test]
fn what_came_before_the_start_is_patched_now() {
    let mut t = Target::new(&[]);
    t.load(patch("old", &[(Some(LIB), &["a"])]));
    t.autostart = false;
    t.load(with_callbacks(patch("p", &[(Some(LIB), &["a"])])));
    let old = t.state.patches()[0].id();
    t.take_log();
    t.ok(Event::ObjectCame { object: LIB.into(), applied: vec![old], waits: None });
    assert_eq!(t.take_log(), [format!("p: pre_patch_callback: {LIB} -> [MODULE_STATE_LIVE] Normal state")]);
    assert_eq!(t.state.changes().len(), 1);
    t.ok(Event::ObjectGone { object: LIB.into(), left: vec![old] });
    let lines = [
        format!("livepatch: reverting patch 'p' on unloading module '{LIB}'"),
        format!("p: post_unpatch_callback: {LIB} -> [MODULE_STATE_GOING] Going away"),
    ];
    assert_eq!(t.take_log(), lines);
    assert_eq!(t.state.changes(), []);
}

/// And who refuses it refuses the enabling: the library is in use by then, and stays what it was.
#[test]
fn what_came_before_the_start_can_be_refused_by_not_enabling_only() {
    let mut t = Target::new(&[]);
    t.load(with_callbacks(patch("old", &[(Some(LIB), &["a"])])));
    let old = id_of(&t, "old");
    t.autostart = false;
    t.load(main_and_library("p"));
    t.take_log();
    t.pre_patch = [-19].into();
    let effects = t.ok(came(&[old], None));
    assert_eq!(
        finished(&effects),
        Some(&Finish::Cancelled { object: Some(LIB.into()), errno: Errno::ENODEV })
    );
    assert_eq!(t.take_callbacks(), [live("p", "pre_patch"), "p: post_unpatch_callback: vmlinux".to_owned()]);
    assert!(t.state.is_loaded(Some(LIB)) && t.state.patch_named("p").is_none());
    assert_eq!(t.runs(&func(Some(LIB), "a")), "old");
}

/// What came to an enabled patch that begins to be disabled has had `post_patch`, so its `pre_unpatch` runs as that of the others.
#[test]
fn what_came_before_the_start_of_a_disabling_is_told_of_it() {
    let mut t = Target::new(&[]);
    t.load(main_and_library("p"));
    let p = id_of(&t, "p");
    t.autostart = false;
    t.disable("p");
    t.take_log();
    t.ok(came(&[p], None));
    assert_eq!(t.take_callbacks(), [live("p", "pre_unpatch")]);
    t.ok(Event::Started { pending: threads([]) });
    let ends = ["p: post_unpatch_callback: vmlinux".to_owned(), live("p", "post_unpatch")];
    assert_eq!(t.take_callbacks(), ends);
    assert_eq!(t.life("p"), Life::Disabled);
}

/// One that goes before its turn to be told has had both callbacks of its going in the target, and has no more.
#[test]
fn what_went_before_the_start_of_a_disabling_is_told_once() {
    let mut t = Target::new(&[LIB]);
    t.load(main_and_library("p"));
    let p = id_of(&t, "p");
    in_first_callback(&mut t, Event::Disable { patch: "p".into(), ignore_order: false });
    t.ok(gone(&[p]));
    t.ok(Event::CallbackReturned { value: 0 });
    assert_eq!(t.take_callbacks(), ["p: post_unpatch_callback: vmlinux"]);
    assert_eq!(t.life("p"), Life::Disabled);
}

/// The same where its own callback is the next to run, before a transition and at its end.
#[test]
fn a_callback_that_is_due_for_what_went_does_not_run() {
    for direction in [Direction::Patching, Direction::Unpatching] {
        let mut t = Target::new(&[LIB]);
        let desc = with_callbacks(patch("p", &[(Some(LIB), &["a"])]));
        t.stuck = threads([1]);
        t.load(desc);
        let p = id_of(&t, "p");
        if direction == Direction::Patching {
            t.state = step(&t.state, Event::ThreadSwitched(ThreadId(1))).unwrap().0;
        } else {
            t.stuck.clear();
            t.ok(Event::ThreadSwitched(ThreadId(1)));
            t.state = step(&t.state, Event::Disable { patch: "p".into(), ignore_order: false }).unwrap().0;
        }
        assert!(matches!(t.state.due(), Due::Callback(_)));
        t.take_log();
        t.ok(gone(&[p]));
        assert_eq!(t.take_callbacks(), [""; 0]);
        assert!(!matches!(t.state.due(), Due::Callback(_)));
    }
}

/// One that came while the last threads switched is heard of when the transition is over, and has the callback that ends it.
#[test]
fn what_came_before_the_end_is_called_back_after_it() {
    let mut t = Target::new(&[]);
    t.load(with_callbacks(patch("p", &[(Some(LIB), &["a"])])));
    let p = id_of(&t, "p");
    t.take_log();
    assert_eq!(t.life("p"), Life::Enabled);
    t.ok(came(&[p], Some(p)));
    assert_eq!(t.take_callbacks(), [live("p", "post_patch")]);
    t.ok(gone(&[p]));
    t.disable("p");
    t.take_log();
    assert_eq!(t.life("p"), Life::Disabled);
    t.ok(came(&[p], Some(p)));
    assert_eq!(t.take_callbacks(), [live("p", "post_unpatch")]);
    assert_eq!(t.runs(&func(Some(LIB), "a")), "original");
}

/// A library that an enabled patch left alone has no callbacks of it.
#[test]
fn what_was_never_patched_is_not_unpatched() {
    let mut t = Target::new(&[]);
    for name in ["p", "other"] {
        t.load(with_callbacks(patch(name, &[(Some(LIB), &[name])])));
    }
    let other = id_of(&t, "other");
    t.ok(came(&[other], None));
    t.take_log();
    t.disable("p");
    assert_eq!(t.take_callbacks(), [""; 0]);
    t.disable("other");
    assert_eq!(t.take_callbacks(), [live("other", "pre_unpatch"), live("other", "post_unpatch")]);
}
