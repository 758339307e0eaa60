//! Atomic replace, facts 15 to 23.

use super::*;

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
