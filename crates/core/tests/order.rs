//! Order: a patch depends on an earlier one that changes one of its functions, and on those that its metadata name.

mod support;

use support::{Target, func, patch, replacing};
use ugraft_core::{Errno, Event, Life, PatchDesc, Refusal};

fn touches(name: &str, funcs: &[&str]) -> PatchDesc {
    patch(name, &[(None, funcs)])
}

fn depending(name: &str, on: &[&str]) -> PatchDesc {
    PatchDesc { depends: on.iter().map(|&on| on.into()).collect(), ..touches(name, &[name]) }
}

#[test]
fn unrelated_patches_come_and_go_in_any_order() {
    let mut t = Target::new(&[]);
    for name in ["a", "b", "c"] {
        t.load_disabled(touches(name, &[name]));
    }
    t.enable("c");
    t.enable("a");
    t.enable("b");
    t.disable("a");
    t.disable("c");
    t.enable("a");
    t.disable("b");
    t.unload("b");
    assert_eq!(t.runs(&func(None, "a")), "a");
}

#[test]
fn a_shared_function_makes_the_later_patch_depend_on_the_earlier() {
    let mut t = Target::new(&[]);
    t.load_disabled(touches("a", &["f", "g"]));
    t.load_disabled(touches("b", &["h", "g"]));
    let refusal = t.try_enable("b").unwrap_err();
    assert_eq!(
        refusal,
        Refusal::NeedsEnabled {
            patch: "b".into(),
            parent: "a".into(),
            life: Life::Disabled,
            func: Some(func(None, "g")),
        }
    );
    assert_eq!(refusal.errno(), Errno::EBUSY);
    assert_eq!(
        refusal.to_string(),
        "patch 'b' depends on patch 'a', which is disabled (both change the function g of the main executable): \
         enable 'a' first, or ask to ignore the order"
    );
    t.enable("a");
    t.enable("b");
    let refusal = t.try_disable("a").unwrap_err();
    assert_eq!(
        refusal.to_string(),
        "patch 'a' is needed by the enabled patch 'b' (both change the function g of the main executable): \
         disable 'b' first, or ask to ignore the order"
    );
    assert_eq!(refusal.errno(), Errno::EBUSY);
    t.disable("b");
    t.disable("a");
}

#[test]
fn functions_of_the_same_name_elsewhere_are_others() {
    let mut t = Target::new(&[]);
    t.load_disabled(touches("a", &["f"]));
    t.load(patch("b", &[(Some("libz.so.1"), &["f"])]));
    let mut second = touches("c", &["f"]);
    second.objects[0].funcs[0].old_sympos = 2;
    t.load(second);
    assert_eq!(t.life("a"), Life::Disabled);
}

#[test]
fn metadata_make_a_patch_depend_on_another() {
    let mut t = Target::new(&[]);
    let load = |enable| Event::Load { desc: depending("b", &["a"]), enable, ignore_order: false };
    let refusal = t.event(load(true)).unwrap_err();
    assert_eq!(refusal, Refusal::NeedsLoaded { patch: "b".into(), parent: "a".into() });
    assert_eq!(refusal.errno(), Errno::ENOENT);
    assert!(t.state.patches().is_empty(), "a refused load leaves nothing");
    t.load_disabled(touches("a", &["a"]));
    let refusal = t.event(load(true)).unwrap_err();
    assert_eq!(
        refusal.to_string(),
        "patch 'b' depends on patch 'a', which is disabled (its metadata say so): enable 'a' first, or ask to ignore \
         the order"
    );
    t.ok(load(false));
    t.enable("a");
    t.enable("b");
    assert!(matches!(t.try_disable("a"), Err(Refusal::NeededBy { func: None, .. })));
}

#[test]
fn a_replaced_patch_is_no_longer_there_to_depend_on() {
    let mut t = Target::new(&[]);
    t.load(touches("a", &["a"]));
    t.load(replacing(touches("r", &["r"])));
    let refusal = t.event(Event::Load { desc: depending("b", &["a"]), enable: true, ignore_order: false });
    assert!(matches!(refusal, Err(Refusal::NeedsEnabled { life: Life::Replaced, .. })));
}

#[test]
fn a_replacing_patch_depends_on_nothing_below() {
    let mut t = Target::new(&[]);
    t.load_disabled(touches("a", &["f"]));
    t.load(replacing(touches("r", &["f"])));
    assert_eq!(t.life("a"), Life::Replaced);
    // And it may not say that it does.
    let desc = PatchDesc { replace: true, ..depending("q", &["a"]) };
    let refusal = t.event(Event::Load { desc, enable: true, ignore_order: false }).unwrap_err();
    assert_eq!(refusal.errno(), Errno::EINVAL);
    assert!(refusal.to_string().contains("drop the dependency or the replace flag"), "{refusal}");
}

#[test]
fn what_stands_on_a_replacing_patch_depends_on_it() {
    let mut t = Target::new(&[]);
    t.load(replacing(touches("r", &["f"])));
    t.load(touches("b", &["f"]));
    assert!(matches!(t.try_disable("r"), Err(Refusal::NeededBy { dependent, .. }) if dependent == "b"));
}

/// With the order ignored, what runs follows from which patches are enabled, and not from the order of the requests.
#[test]
fn any_order_leads_to_the_same_code() {
    let orders = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
    let names = ["a", "b", "c"];
    for order in orders {
        let mut t = Target::new(&[]);
        t.load_disabled(touches("a", &["f", "g", "h"]));
        t.load_disabled(touches("b", &["f", "g"]));
        t.load_disabled(touches("c", &["f"]));
        for at in order {
            t.ok(Event::Enable { patch: names[at].into(), ignore_order: true });
        }
        let runs = |t: &Target| ["f", "g", "h"].map(|name| t.runs(&func(None, name)));
        assert_eq!(runs(&t), ["c", "b", "a"], "{order:?}");
        t.disable_in_any_order(names[order[0]]);
        t.disable_in_any_order(names[order[1]]);
        let last = names[order[2]];
        let expected = ["f", "g", "h"].map(|name| {
            let has = t.state.patch_named(last).unwrap().desc().changes(&func(None, name));
            if has { last.to_owned() } else { "original".to_owned() }
        });
        assert_eq!(runs(&t), expected, "{order:?}");
    }
}
