//! Enabling and disabling, facts 1 to 8.

use super::*;

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
    // Differs from today's kernel, which only lets it be removed.
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
