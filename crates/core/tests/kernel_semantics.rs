//! What the kernel's livepatch does (Linux 6.1, observed), case by case, as far as it applies to a process.
//!
//! Not here, because nothing corresponds to it: fact 9 (`ftrace_enabled`), fact 10 (a patch that patches a patch), and from
//! fact 25 the times. Where ugraft differs on purpose the test says so: a disabled patch stays loaded and can be enabled
//! again, and order is enforced between patches that depend on each other (facts 5, 6 and 18), and what is already so is
//! recognised instead of being an error.

mod support;

use support::{Target, func, patch, replacing, threads, with_callbacks};
use ugraft_core::{
    AlreadySo, CallbackKind, DescError, Direction, Effect, Errno, Event, Finish, FuncDesc, FuncId,
    Implementation, Life, Misfit, MisfitStage, ObjectDesc, PatchDesc, Phase, Refusal, StateDesc, ThreadId,
};

const LIB: &str = "liba.so";
const LIB2: &str = "libb.so";

/// A patch with all callbacks on the main executable and two libraries, and a function in each.
fn three_objects(name: &str) -> PatchDesc {
    with_callbacks(patch(name, &[(None, &["f"]), (Some(LIB), &["a"]), (Some(LIB2), &["b"])]))
}

fn touches_f(name: &str) -> PatchDesc {
    patch(name, &[(None, &["f"])])
}

fn f() -> FuncId {
    func(None, "f")
}

fn versions(states: &[(u64, u32)]) -> Vec<StateDesc> {
    states.iter().map(|&(id, version)| StateDesc { id, version }).collect()
}

fn finished(effects: &[Effect]) -> Option<&Finish> {
    effects.iter().find_map(|effect| match effect {
        Effect::Finished { finish, .. } => Some(finish),
        _ => None,
    })
}

fn callbacks_in(effects: &[Effect]) -> Vec<CallbackKind> {
    let kind = |effect: &Effect| match effect {
        Effect::RunCallback(call) => Some(call.callback),
        _ => None,
    };
    effects.iter().filter_map(kind).collect()
}

// Enable and disable.

#[test]
fn fact_01_callbacks_run_in_declared_order_in_both_directions() {
    let mut t = Target::new(&[LIB, LIB2]);
    t.load(three_objects("p"));
    t.disable("p");
    let live = "[MODULE_STATE_LIVE] Normal state";
    let expected: Vec<String> = ["pre_patch", "post_patch", "pre_unpatch", "post_unpatch"]
        .iter()
        .flat_map(|kind| {
            [
                format!("p: {kind}_callback: vmlinux"),
                format!("p: {kind}_callback: {LIB} -> {live}"),
                format!("p: {kind}_callback: {LIB2} -> {live}"),
            ]
        })
        .collect();
    assert_eq!(t.take_callbacks(), expected);
}

#[test]
fn fact_01_each_object_is_patched_before_the_next_ones_pre_patch() {
    let mut t = Target::new(&[LIB, LIB2]);
    let effects = t.load(three_objects("p"));
    let order: Vec<String> = effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::RunCallback(call) if call.callback == CallbackKind::PrePatch => {
                Some("pre_patch".to_owned())
            }
            Effect::Redirect { func, .. } => Some(func.name.clone()),
            Effect::Begin { .. } => Some("begin".to_owned()),
            _ => None,
        })
        .collect();
    assert_eq!(order, ["pre_patch", "f", "pre_patch", "a", "pre_patch", "b", "begin"]);
}

#[test]
fn fact_02_absent_objects_are_skipped_and_done_when_they_come() {
    let mut t = Target::new(&[LIB]);
    let effects = t.load(three_objects("p"));
    assert!(!t.take_callbacks().iter().any(|line| line.contains(LIB2)));
    assert!(!effects.iter().any(|e| matches!(e, Effect::Redirect { func, .. } if func.name == "b")));
    let effects = t.coming(LIB2);
    let settled = Effect::Settle {
        func: func(Some(LIB2), "b"),
        implementation: Implementation::Patch(t.state.patches()[0].id()),
    };
    assert!(effects.contains(&settled), "{effects:?}");
    assert_eq!(effects.last(), Some(&Effect::Admit { object: LIB2.into() }));
}

#[test]
fn fact_03_pre_patch_failure_undoes_the_earlier_objects_only() {
    let mut t = Target::new(&[LIB, LIB2]);
    t.pre_patch = [0, -12].into();
    let effects = t.load(three_objects("p"));
    let live = "[MODULE_STATE_LIVE] Normal state";
    assert_eq!(
        t.take_callbacks(),
        [
            "p: pre_patch_callback: vmlinux".to_owned(),
            format!("p: pre_patch_callback: {LIB} -> {live}"),
            "p: post_unpatch_callback: vmlinux".to_owned(),
        ]
    );
    // The value of the callback is what the loading fails with, and nothing remains.
    assert_eq!(finished(&effects), Some(&Finish::Cancelled { object: Some(LIB.into()), errno: Errno(12) }));
    assert!(matches!(effects.last(), Some(Effect::FreePatch(_))));
    assert!(t.state.patches().is_empty());
    assert_eq!(t.state.transition(), None);
}

#[test]
fn fact_03_an_object_that_cannot_be_patched_gets_its_post_unpatch_too() {
    let mut t = Target::new(&[LIB, LIB2]);
    t.autostart = false;
    t.load(three_objects("p"));
    t.take_log();
    let effects = t.ok(Event::StartFailed { object: Some(LIB.into()), errno: Errno::EBUSY });
    let live = "[MODULE_STATE_LIVE] Normal state";
    assert_eq!(
        t.take_log(),
        [
            format!("livepatch: failed to patch object '{LIB}'"),
            "livepatch: failed to enable patch 'p'".to_owned(),
            "livepatch: 'p': canceling patching transition, going to unpatch".to_owned(),
            "livepatch: 'p': completing unpatching transition".to_owned(),
            "p: post_unpatch_callback: vmlinux".to_owned(),
            format!("p: post_unpatch_callback: {LIB} -> {live}"),
            format!("p: post_unpatch_callback: {LIB2} -> {live}"),
            "livepatch: 'p': unpatching complete".to_owned(),
        ]
    );
    assert!(!effects.iter().any(|effect| matches!(effect, Effect::Begin { .. } | Effect::End)));
    assert!(t.state.patches().is_empty());
}

#[test]
fn fact_04_no_pre_patch_counts_as_success() {
    let mut t = Target::new(&[]);
    let mut desc = touches_f("p");
    desc.objects[0].callbacks.post_unpatch = true;
    t.load(desc);
    t.disable("p");
    assert_eq!(t.take_callbacks(), ["p: post_unpatch_callback: vmlinux"]);
}

#[test]
fn fact_04_post_unpatch_runs_only_where_pre_patch_succeeded() {
    let mut t = Target::new(&[]);
    t.pre_patch = [-19].into();
    t.load(with_callbacks(touches_f("p")));
    assert_eq!(t.take_callbacks(), ["p: pre_patch_callback: vmlinux"]);
}

#[test]
fn fact_04_a_positive_value_is_a_failure_too() {
    let mut t = Target::new(&[]);
    t.pre_patch = [7].into();
    let effects = t.load(with_callbacks(touches_f("p")));
    assert_eq!(finished(&effects), Some(&Finish::Cancelled { object: None, errno: Errno(7) }));
    // That the kernel keeps the module then is an oddity of its module loader; here nothing remains.
    assert!(t.state.patches().is_empty());
}

#[test]
fn fact_05_the_newest_enabled_patch_of_a_function_wins_in_any_order() {
    let mut t = Target::new(&[]);
    for name in ["lp1", "lp2", "lp3"] {
        t.load(touches_f(name));
        assert_eq!(t.runs(&f()), name);
    }
    // The kernel enforces no order; here that has to be asked for.
    assert!(t.try_disable("lp2").is_err());
    t.disable_in_any_order("lp2");
    assert_eq!(t.runs(&f()), "lp3");
    t.disable_in_any_order("lp3");
    assert_eq!(t.runs(&f()), "lp1");
    t.unload("lp2");
    t.ok(Event::Load { desc: touches_f("lp2"), enable: true, ignore_order: true });
    assert_eq!(t.runs(&f()), "lp2");
    t.disable_in_any_order("lp1");
    assert_eq!(t.runs(&f()), "lp2");
    t.disable_in_any_order("lp2");
    assert_eq!(t.runs(&f()), "original");
}

#[test]
fn fact_05_a_patch_in_the_middle_changes_nothing_when_it_goes() {
    let mut t = Target::new(&[]);
    for name in ["lp1", "lp2", "lp3"] {
        t.load(touches_f(name));
    }
    let effects = t.disable_in_any_order("lp2");
    assert!(
        !effects.iter().any(|e| matches!(e, Effect::Redirect { .. } | Effect::Settle { .. })),
        "{effects:?}"
    );
}

#[test]
fn fact_06_a_disabled_patch_stays_loaded_and_can_be_enabled_again() {
    let mut t = Target::new(&[]);
    t.load(touches_f("p"));
    t.disable("p");
    assert_eq!(t.life("p"), Life::Disabled);
    // Loading it once more is refused with EEXIST, as insmod is.
    let again = t.event(Event::Load { desc: touches_f("p"), enable: true, ignore_order: false });
    let refusal = again.unwrap_err();
    assert_eq!(refusal.errno(), Errno::EEXIST);
    assert!(matches!(refusal, Refusal::NameTaken { life: Life::Disabled, identical: true, .. }));
    // Differs from today's kernel, as DESIGN settles it.
    t.enable("p");
    assert_eq!(t.runs(&f()), "p");
    t.disable("p");
    t.unload("p");
    t.load(touches_f("p"));
    assert_eq!(t.runs(&f()), "p");
}

#[test]
fn fact_07_a_second_transition_is_refused_silently() {
    let mut t = Target::new(&[]);
    t.load(touches_f("done"));
    t.stuck = threads([1]);
    t.load(patch("running", &[(None, &["g"])]));
    t.take_log();
    for desc in [patch("next", &[(None, &["h"])]), replacing(patch("next", &[(None, &["h"])]))] {
        let refusal = t.event(Event::Load { desc, enable: true, ignore_order: false }).unwrap_err();
        assert_eq!(refusal.errno(), Errno::EBUSY);
        assert!(matches!(refusal, Refusal::Busy { ref patch, .. } if patch == "running"));
    }
    assert_eq!(t.try_disable("done").unwrap_err().errno(), Errno::EBUSY);
    assert!(t.take_log().is_empty());
}

#[test]
fn fact_07_the_compatibility_check_comes_first() {
    let mut t = Target::new(&[]);
    t.load(PatchDesc { states: versions(&[(1, 2)]), ..touches_f("old") });
    t.stuck = threads([1]);
    t.load(patch("running", &[(None, &["g"])]));
    t.take_log();
    let desc = PatchDesc { states: versions(&[(1, 1)]), ..patch("new", &[(None, &["h"])]) };
    let refusal = t.event(Event::Load { desc, enable: true, ignore_order: false }).unwrap_err();
    assert_eq!(refusal.errno(), Errno::EINVAL);
    assert_eq!(
        t.take_log(),
        ["livepatch: Livepatch patch (new) is not compatible with the already installed livepatches."]
    );
}

#[test]
fn fact_08_descriptions_are_checked() {
    let funcs = |funcs: &[(&str, u32)]| ObjectDesc {
        funcs: funcs
            .iter()
            .map(|&(name, old_sympos)| FuncDesc { old_name: name.into(), old_sympos })
            .collect(),
        ..ObjectDesc::default()
    };
    let desc = |objects: Vec<ObjectDesc>| PatchDesc { name: "p".into(), objects, ..PatchDesc::default() };
    let mut t = Target::new(&[]);
    let mut refused = |desc: PatchDesc| {
        let refusal = t.event(Event::Load { desc, enable: true, ignore_order: false }).unwrap_err();
        let Refusal::BadDescription { ref reason, .. } = refusal else { panic!("{refusal}") };
        (reason.clone(), refusal.errno())
    };
    assert_eq!(refused(PatchDesc::default()), (DescError::NoName, Errno::EINVAL));
    assert_eq!(refused(desc(vec![funcs(&[("", 0)])])).1, Errno::EINVAL);
    assert_eq!(refused(desc(vec![funcs(&[("f", 0), ("f", 0)])])).1, Errno::EEXIST);
    assert_eq!(
        refused(desc(vec![funcs(&[("f", 0), ("f", 1)])])).1,
        Errno::EEXIST,
        "position 0 is shown as 1"
    );
    assert_eq!(refused(desc(vec![funcs(&[]), funcs(&[])])), (DescError::ObjectTwice(None), Errno::EEXIST));
    // Accepted: no objects, an object without functions, an object that never comes, one name at two positions.
    let never = ObjectDesc { name: Some("never.so".into()), ..funcs(&[("bogus", 0)]) };
    t.load(PatchDesc { name: "empty".into(), ..PatchDesc::default() });
    t.load(PatchDesc { name: "others".into(), ..desc(vec![funcs(&[("f", 1), ("f", 2)]), never]) });
    assert_eq!(t.life("empty"), Life::Enabled);
    assert_eq!(t.life("others"), Life::Enabled);
}

// Objects that come and go.

#[test]
fn fact_11_coming_and_going_go_through_the_patches_oldest_first() {
    let mut t = Target::new(&[]);
    for name in ["lp1", "lp2"] {
        t.load(with_callbacks(patch(name, &[(Some(LIB), &["a"])])));
    }
    t.take_log();
    t.coming(LIB);
    let coming = "[MODULE_STATE_COMING] Full formed, running module_init";
    let lines = |name: &str| {
        [
            format!("livepatch: applying patch '{name}' to loading module '{LIB}'"),
            format!("{name}: pre_patch_callback: {LIB} -> {coming}"),
            format!("{name}: post_patch_callback: {LIB} -> {coming}"),
        ]
    };
    assert_eq!(t.take_log(), [lines("lp1"), lines("lp2")].concat());
    assert_eq!(t.runs(&func(Some(LIB), "a")), "lp2");
    t.going(LIB);
    let going = "[MODULE_STATE_GOING] Going away";
    let lines = |name: &str| {
        [
            format!("{name}: pre_unpatch_callback: {LIB} -> {going}"),
            format!("livepatch: reverting patch '{name}' on unloading module '{LIB}'"),
            format!("{name}: post_unpatch_callback: {LIB} -> {going}"),
        ]
    };
    assert_eq!(t.take_log(), [lines("lp1"), lines("lp2")].concat());
    assert!(!t.state.is_loaded(Some(LIB)));
    assert_eq!(t.runs(&func(Some(LIB), "a")), "original");
}

#[test]
fn fact_12_a_patch_refuses_a_coming_object() {
    let mut t = Target::new(&[]);
    for name in ["lp1", "lp2", "lp3"] {
        t.load(with_callbacks(patch(name, &[(Some(LIB), &["a"])])));
    }
    t.take_log();
    t.pre_patch = [0, -19].into();
    let effects = t.coming(LIB);
    let coming = "[MODULE_STATE_COMING] Full formed, running module_init";
    assert_eq!(
        t.take_log(),
        [
            format!("livepatch: applying patch 'lp1' to loading module '{LIB}'"),
            format!("lp1: pre_patch_callback: {LIB} -> {coming}"),
            format!("lp1: post_patch_callback: {LIB} -> {coming}"),
            format!("livepatch: applying patch 'lp2' to loading module '{LIB}'"),
            format!("lp2: pre_patch_callback: {LIB} -> {coming}"),
            format!("livepatch: pre-patch callback failed for object '{LIB}'"),
            format!("livepatch: patch 'lp2' failed for module '{LIB}', refusing to load module '{LIB}'"),
            format!("lp1: pre_unpatch_callback: {LIB} -> {coming}"),
            format!("livepatch: reverting patch 'lp1' on unloading module '{LIB}'"),
            format!("lp1: post_unpatch_callback: {LIB} -> {coming}"),
        ]
    );
    let lp2 = t.state.patch_named("lp2").unwrap().id();
    assert_eq!(
        effects.last(),
        Some(&Effect::Refuse { object: LIB.into(), patch: lp2, errno: Errno::ENODEV })
    );
    assert!(!t.state.is_loaded(Some(LIB)));
    assert!(["lp1", "lp2", "lp3"].iter().all(|name| t.life(name) == Life::Enabled));
    // It may come again.
    t.coming(LIB);
    assert_eq!(t.runs(&func(Some(LIB), "a")), "lp3");
}

#[test]
fn fact_12_a_patch_that_does_not_fit_a_coming_object() {
    let coming = "[MODULE_STATE_COMING] Full formed, running module_init";
    let mut t = Target::new(&[]);
    t.load(with_callbacks(patch("lp1", &[(Some(LIB), &["a"])])));
    let lp1 = t.state.patches()[0].id();
    let refuse = |t: &mut Target, stage| {
        t.take_log();
        let misfits = vec![Misfit { patch: lp1, stage, errno: Errno::EINVAL }];
        let effects = t.ok(Event::ObjectComing { object: LIB.into(), misfits });
        assert!(matches!(effects.last(), Some(Effect::Refuse { errno: Errno::EINVAL, .. })));
        assert!(!t.state.is_loaded(Some(LIB)));
        t.take_log()
    };
    let refusing =
        format!("livepatch: patch 'lp1' failed for module '{LIB}', refusing to load module '{LIB}'");
    assert_eq!(
        refuse(&mut t, MisfitStage::Initialize),
        [format!("livepatch: failed to initialize patch 'lp1' for module '{LIB}' (-22)"), refusing.clone()]
    );
    assert_eq!(
        refuse(&mut t, MisfitStage::Apply),
        [
            format!("livepatch: applying patch 'lp1' to loading module '{LIB}'"),
            format!("lp1: pre_patch_callback: {LIB} -> {coming}"),
            format!("livepatch: failed to apply patch 'lp1' to module '{LIB}' (-22)"),
            format!("lp1: post_unpatch_callback: {LIB} -> {coming}"),
            refusing,
        ]
    );
}

/// In mid-transition, both ways: `applying` and `pre_patch` at the coming, no `post_patch`; no `pre_unpatch` at the going.
#[test]
fn fact_13_objects_come_and_go_in_mid_transition() {
    let coming = "[MODULE_STATE_COMING] Full formed, running module_init";
    let going = "[MODULE_STATE_GOING] Going away";
    for direction in [Direction::Patching, Direction::Unpatching] {
        let mut t = Target::new(&[]);
        let desc = with_callbacks(patch("p", &[(None, &["f"]), (Some(LIB), &["a"])]));
        if direction == Direction::Unpatching {
            t.load(desc.clone());
        }
        t.stuck = threads([1]);
        match direction {
            Direction::Patching => drop(t.load(desc)),
            Direction::Unpatching => drop(t.disable("p")),
        }
        t.take_log();
        let come = [
            format!("livepatch: applying patch 'p' to loading module '{LIB}'"),
            format!("p: pre_patch_callback: {LIB} -> {coming}"),
        ];
        let effects = t.coming(LIB);
        assert_eq!(t.take_log(), come);
        assert!(t.state.patch_named("p").unwrap().objects()[1].is_patched());
        // Threads that have switched run the other side of the newcomer, too.
        let id = t.state.patch_named("p").unwrap().id();
        let a = func(Some(LIB), "a");
        let (stuck, switched) = (t.state.runs(&a, ThreadId(1)), t.state.runs(&a, ThreadId(2)));
        match direction {
            Direction::Patching => {
                assert_eq!((stuck, switched), (Implementation::Original, Implementation::Patch(id)));
            }
            Direction::Unpatching => {
                assert_eq!((stuck, switched), (Implementation::Patch(id), Implementation::Original));
            }
        }
        assert!(effects.iter().any(|e| matches!(e, Effect::Redirect { func, .. } if *func == a)));
        t.going(LIB);
        assert_eq!(
            t.take_log(),
            [
                format!("livepatch: reverting patch 'p' on unloading module '{LIB}'"),
                format!("p: post_unpatch_callback: {LIB} -> {going}"),
            ]
        );
        // The post_ callbacks of one that stays come at the end, with the others.
        t.coming(LIB);
        t.take_log();
        t.stuck.clear();
        t.ok(Event::ThreadSwitched(ThreadId(1)));
        let post = if direction == Direction::Patching { "post_patch" } else { "post_unpatch" };
        assert_eq!(
            t.take_callbacks(),
            [
                format!("p: {post}_callback: vmlinux"),
                format!("p: {post}_callback: {LIB} -> [MODULE_STATE_LIVE] Normal state"),
            ]
        );
    }
}

#[test]
fn fact_14_the_object_that_a_transition_is_stuck_on_can_go() {
    let mut t = Target::new(&[LIB]);
    t.stuck = threads([1]);
    t.load(with_callbacks(patch("p", &[(None, &["f"]), (Some(LIB), &["a"])])));
    t.take_log();
    t.going(LIB);
    assert_eq!(
        t.take_log(),
        [
            format!("livepatch: reverting patch 'p' on unloading module '{LIB}'"),
            format!("p: post_unpatch_callback: {LIB} -> [MODULE_STATE_GOING] Going away"),
        ]
    );
    assert!(t.state.changes().iter().all(|change| change.func == f()));
    t.stuck.clear();
    t.ok(Event::ThreadSwitched(ThreadId(1)));
    assert_eq!(t.life("p"), Life::Enabled);
    assert_eq!(t.take_callbacks(), ["p: post_patch_callback: vmlinux"]);
}

// Atomic replace.

/// A state with an enabled patch of `f` and of a library that is not loaded, a disabled patch of `g`, and a replacing
/// patch of `h` that thread 1 holds up.
fn replacing_in_transition() -> Target {
    let mut t = Target::new(&[]);
    t.load(with_callbacks(patch("old", &[(None, &["f"]), (Some(LIB), &["a"])])));
    t.load_disabled(with_callbacks(patch("off", &[(None, &["g"])])));
    t.stuck = threads([1]);
    t.take_log();
    t.load(with_callbacks(replacing(patch("new", &[(None, &["h"])]))));
    t
}

#[test]
fn fact_15_a_replacing_patch_shows_nops_while_in_transition() {
    let mut t = replacing_in_transition();
    let status = t.state.status();
    let new = status.iter().find(|patch| patch.name == "new").unwrap();
    assert!(new.transition && new.life == Life::Enabling);
    let shown: Vec<String> = new
        .objects
        .iter()
        .flat_map(|o| {
            let object = o.name.as_deref().unwrap_or("main");
            o.funcs.iter().map(move |f| format!("{object} loaded={} {} nop={}", o.loaded, f.name, f.nop))
        })
        .collect();
    assert_eq!(
        shown,
        [
            "main loaded=true h nop=false",
            "main loaded=true f nop=true",
            "main loaded=true g nop=true",
            "liba.so loaded=false a nop=true",
        ]
    );
    let old = status.iter().find(|patch| patch.name == "old").unwrap();
    assert!(!old.transition && old.life == Life::Enabled);
    assert_eq!(t.try_disable("old").unwrap_err().errno(), Errno::EBUSY);
    // Removed when it completes.
    t.stuck.clear();
    t.ok(Event::ThreadSwitched(ThreadId(1)));
    let status = t.state.status();
    let new = status.iter().find(|patch| patch.name == "new").unwrap();
    assert_eq!(new.objects.len(), 1);
    assert_eq!(new.objects[0].funcs.len(), 1);
}

#[test]
fn fact_15_a_nop_is_the_original_and_not_the_entry() {
    let t = replacing_in_transition();
    let change = t.state.changes().into_iter().find(|change| change.func == f()).unwrap();
    let old = t.state.patch_named("old").unwrap().id();
    assert_eq!((change.source, change.goal), (Implementation::Patch(old), Implementation::Original));
    // What a disabled patch would change does not change, and needs no stub.
    assert!(t.state.changes().iter().all(|change| change.func != func(None, "g")));
}

#[test]
fn fact_16_completion_takes_all_older_patches_off_without_their_callbacks() {
    let mut t = replacing_in_transition();
    t.stuck.clear();
    let effects = t.ok(Event::ThreadSwitched(ThreadId(1)));
    assert_eq!(t.take_callbacks(), ["new: pre_patch_callback: vmlinux", "new: post_patch_callback: vmlinux"]);
    assert_eq!(t.life("old"), Life::Replaced);
    assert_eq!(t.life("off"), Life::Replaced);
    assert!(effects.contains(&Effect::Settle { func: f(), implementation: Implementation::Original }));
    assert_eq!(t.runs(&f()), "original");
    assert_eq!(t.runs(&func(None, "h")), "new");
    for name in ["f", "g", "h"] {
        let stack = t.state.func_stack(&func(None, name));
        let new = t.state.patch_named("new").unwrap().id();
        assert!(stack.iter().all(|&(id, top)| id == new && top == Implementation::Patch(new)), "{stack:?}");
    }
}

#[test]
fn fact_17_replaced_patches_cannot_be_enabled_and_can_be_unloaded() {
    let mut t = replacing_in_transition();
    t.stuck.clear();
    t.ok(Event::ThreadSwitched(ThreadId(1)));
    let refusal = t.try_enable("old").unwrap_err();
    assert_eq!(refusal.errno(), Errno::EINVAL);
    assert_eq!(
        refusal.to_string(),
        "patch 'old' was replaced by 'new' and cannot be used again: unload it and load it anew"
    );
    assert!(matches!(t.try_disable("old"), Err(Refusal::AlreadySo(AlreadySo::Replaced { .. }))));
    let old = t.state.patch_named("old").unwrap().id();
    assert!(t.state.may_free(old));
    assert_eq!(t.unload("old"), [Effect::FreePatch(old)]);
    t.unload("off");
    assert_eq!(t.state.patches().len(), 1);
}

#[test]
fn fact_18_a_replaced_patch_can_be_loaded_anew() {
    let new_replaced_old = || {
        let mut t = Target::new(&[]);
        t.load(touches_f("old"));
        t.load(replacing(patch("new", &[(None, &["f", "h"])])));
        t
    };
    let mut t = new_replaced_old();
    let taken =
        t.event(Event::Load { desc: touches_f("old"), enable: true, ignore_order: false }).unwrap_err();
    assert_eq!(taken.errno(), Errno::EEXIST);
    assert!(taken.to_string().contains("unload it first"), "{taken}");
    // Without the flag it goes on top,
    t.unload("old");
    t.load(touches_f("old"));
    assert_eq!(t.runs(&f()), "old");
    assert_eq!(t.life("new"), Life::Enabled);
    // with it, it is a downgrade.
    let mut t = new_replaced_old();
    t.unload("old");
    t.load(replacing(touches_f("old")));
    assert_eq!(t.runs(&f()), "old");
    assert_eq!(t.runs(&func(None, "h")), "original");
    assert_eq!(t.life("new"), Life::Replaced);
}

#[test]
fn fact_19_disabling_the_replacing_patch_gives_the_original() {
    let mut t = Target::new(&[]);
    t.load(with_callbacks(touches_f("old")));
    t.load(with_callbacks(replacing(touches_f("new"))));
    t.take_log();
    t.disable("new");
    assert_eq!(t.runs(&f()), "original");
    assert_eq!(
        t.take_callbacks(),
        ["new: pre_unpatch_callback: vmlinux", "new: post_unpatch_callback: vmlinux"]
    );
    assert_eq!(t.life("old"), Life::Replaced);
}

#[test]
fn fact_20_patches_stack_on_a_replacing_one_until_the_next() {
    let mut t = Target::new(&[]);
    t.load(replacing(touches_f("r1")));
    assert_eq!(t.life("r1"), Life::Enabled);
    t.load(touches_f("p"));
    assert_eq!(t.runs(&f()), "p");
    t.load(replacing(touches_f("r2")));
    assert_eq!(t.runs(&f()), "r2");
    assert_eq!((t.life("r1"), t.life("p")), (Life::Replaced, Life::Replaced));
}

#[test]
fn fact_21_a_replace_that_fails_leaves_the_old_ones_untouched() {
    let mut t = Target::new(&[]);
    t.load(with_callbacks(touches_f("old")));
    let before = t.state.clone();
    t.take_log();
    t.pre_patch = [-19].into();
    t.load(with_callbacks(replacing(patch("new", &[(None, &["h"])]))));
    assert_eq!(t.state.patches(), before.patches());
    assert_eq!(t.take_callbacks(), ["new: pre_patch_callback: vmlinux"]);
}

#[test]
fn fact_21_a_replace_can_be_reversed_and_reversed_again() {
    let mut t = replacing_in_transition();
    let before = t.state.clone();
    t.take_log();
    t.stuck = threads([2]);
    t.reverse();
    assert_eq!(t.life("new"), Life::Disabling);
    t.stuck.clear();
    let mut reversed = Target { state: t.state.clone(), ..Target::new(&[]) };
    reversed.ok(Event::ThreadSwitched(ThreadId(2)));
    assert_eq!(reversed.take_callbacks(), ["new: post_unpatch_callback: vmlinux"]);
    assert_eq!(reversed.state.patches()[..2], before.patches()[..2], "the others are exactly as they were");
    assert_eq!(reversed.runs(&f()), "old");
    assert_eq!(reversed.life("new"), Life::Disabled);
    // It keeps its nops, so it can be asked to replace them once more.
    reversed.enable("new");
    assert_eq!(reversed.life("old"), Life::Replaced);
    // Reversed again before it was over, it completes as a replace.
    t.reverse();
    assert_eq!(t.life("new"), Life::Enabled);
    assert_eq!(t.life("old"), Life::Replaced);
    assert_eq!(t.runs(&f()), "original");
}

#[test]
fn fact_22_an_old_patchs_object_comes_in_mid_replace() {
    let coming = "[MODULE_STATE_COMING] Full formed, running module_init";
    let going = "[MODULE_STATE_GOING] Going away";
    let mut t = replacing_in_transition();
    t.take_log();
    t.coming(LIB);
    assert_eq!(
        t.take_log(),
        [
            format!("livepatch: applying patch 'old' to loading module '{LIB}'"),
            format!("old: pre_patch_callback: {LIB} -> {coming}"),
            format!("old: post_patch_callback: {LIB} -> {coming}"),
            format!("livepatch: applying patch 'new' to loading module '{LIB}'"),
        ]
    );
    let a = func(Some(LIB), "a");
    let old = t.state.patch_named("old").unwrap().id();
    assert_eq!(t.state.runs(&a, ThreadId(1)), Implementation::Patch(old));
    assert_eq!(t.state.runs(&a, ThreadId(2)), Implementation::Original);
    t.going(LIB);
    assert_eq!(
        t.take_log(),
        [
            format!("old: pre_unpatch_callback: {LIB} -> {going}"),
            format!("livepatch: reverting patch 'old' on unloading module '{LIB}'"),
            format!("old: post_unpatch_callback: {LIB} -> {going}"),
            format!("livepatch: reverting patch 'new' on unloading module '{LIB}'"),
        ]
    );
    // Once it is complete, the library is nobody's business.
    t.stuck.clear();
    t.ok(Event::ThreadSwitched(ThreadId(1)));
    t.take_log();
    let effects = t.coming(LIB);
    assert_eq!(effects, [Effect::Admit { object: LIB.into() }]);
}

#[test]
fn fact_23_states_must_be_known_in_at_least_the_installed_version() {
    let installed = || {
        let mut t = Target::new(&[]);
        t.load(PatchDesc { states: versions(&[(1, 2)]), ..touches_f("old") });
        t
    };
    let newer = |states: &[(u64, u32)], replace| PatchDesc {
        states: versions(states),
        replace,
        ..patch("new", &[(None, &["h"])])
    };
    for (states, replace, compatible) in [
        (&[(1, 2)][..], false, true),
        (&[(1, 3)], true, true),
        (&[(1, 1)], false, false),
        (&[(1, 1)], true, false),
        (&[(7, 1)], false, true),
        (&[(7, 1)], true, false),
    ] {
        let mut t = installed();
        let result = t.event(Event::Load { desc: newer(states, replace), enable: true, ignore_order: false });
        assert_eq!(result.is_ok(), compatible, "{states:?} {replace}");
        if let Err(refusal) = result {
            assert_eq!(refusal.errno(), Errno::EINVAL);
        }
    }
    // Disabled and replaced patches do not count.
    let mut t = installed();
    t.disable("old");
    t.load(newer(&[(1, 1)], true));
    assert_eq!(t.life("new"), Life::Enabled);
    let mut t = installed();
    t.load(PatchDesc { name: "between".into(), ..newer(&[(1, 2)], true) });
    t.disable("between");
    t.load(PatchDesc { states: versions(&[(1, 1)]), ..touches_f("new") });
    assert_eq!(t.life("new"), Life::Enabled);
}

// Reversing and forcing.

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

// What sysfs shows through time (section 7 of the observations).

#[test]
fn status_through_time() {
    let mut t = Target::new(&[]);
    let shown = |t: &Target| {
        let patch = t.state.status().remove(0);
        let patched: Vec<bool> = patch.objects.iter().map(|object| object.patched).collect();
        (patch.life, patch.transition, patched)
    };
    t.stuck = threads([1]);
    t.load(patch("p", &[(None, &["f"]), (Some(LIB), &["a"])]));
    assert_eq!(shown(&t), (Life::Enabling, true, vec![true, false]));
    assert_eq!(t.state.status()[0].objects[0].funcs[0].sympos, 1, "position 0 is shown as 1");
    t.stuck.clear();
    t.ok(Event::ThreadSwitched(ThreadId(1)));
    assert_eq!(shown(&t), (Life::Enabled, false, vec![true, false]));
    t.stuck = threads([1]);
    t.disable("p");
    assert_eq!(shown(&t), (Life::Disabling, true, vec![true, false]));
    t.stuck.clear();
    t.ok(Event::ThreadSwitched(ThreadId(1)));
    assert_eq!(shown(&t), (Life::Disabled, false, vec![false, false]));
}

#[test]
fn objects_are_patched_between_the_callbacks() {
    let mut t = Target::new(&[]);
    t.autostart = false;
    let mut seen = Vec::new();
    let mut look = |t: &mut Target, event: Event| {
        let mut event = Some(event);
        while let Some(next) = event.take() {
            let (state, effects) = ugraft_core::step(&t.state, next).unwrap();
            t.state = state;
            for kind in callbacks_in(&effects) {
                seen.push((kind, t.state.patches()[0].objects()[0].is_patched()));
                event = Some(Event::CallbackReturned { value: 0 });
            }
            if event.is_none() && t.state.transition().is_some_and(|t| t.phase() == Phase::Initializing) {
                event = Some(Event::Started { pending: threads([]) });
            }
        }
    };
    look(&mut t, Event::Load { desc: with_callbacks(touches_f("p")), enable: true, ignore_order: false });
    look(&mut t, Event::Disable { patch: "p".into(), ignore_order: false });
    assert_eq!(
        seen,
        [
            (CallbackKind::PrePatch, false),
            (CallbackKind::PostPatch, true),
            (CallbackKind::PreUnpatch, true),
            (CallbackKind::PostUnpatch, false),
        ]
    );
}
