//! What is shown through time, as the kernel's sysfs does.

use super::*;

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
