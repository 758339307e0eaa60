//! Objects that come and go, facts 11 to 14.

use super::*;

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

/// A library that is there when its patch begins to be disabled has its `pre_unpatch` then, and not again when it goes.
#[test]
fn fact_13_one_that_goes_while_its_patch_is_disabled_is_told_once() {
    let mut t = Target::new(&[LIB]);
    t.load(with_callbacks(patch("p", &[(None, &["f"]), (Some(LIB), &["a"])])));
    t.stuck = threads([1]);
    t.take_log();
    t.disable("p");
    t.going(LIB);
    assert_eq!(
        t.take_callbacks(),
        [
            "p: pre_unpatch_callback: vmlinux".to_owned(),
            format!("p: pre_unpatch_callback: {LIB} -> [MODULE_STATE_LIVE] Normal state"),
            format!("p: post_unpatch_callback: {LIB} -> [MODULE_STATE_GOING] Going away"),
        ]
    );
}
