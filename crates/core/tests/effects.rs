//! The effects of the main path, in their order: what the layer that carries them out builds on.

mod support;

use support::{Target, func, patch, threads};
use ugraft_core::{Direction, Effect, Finish, Implementation, Level, PatchId};

fn log(level: Level, text: &str) -> Effect {
    Effect::Log(level, format!("livepatch: {text}"))
}

#[test]
fn effects_of_load_disable_unload_come_in_order() {
    let (f, g) = (func(None, "f"), func(Some("libz.so.1"), "g"));
    let id = PatchId(1);
    let (original, new) = (Implementation::Original, Implementation::Patch(id));
    let redirect = |func: &_, source, goal| Effect::Redirect { func: Clone::clone(func), source, goal };
    let settle = |func: &_, implementation| Effect::Settle { func: Clone::clone(func), implementation };

    let mut target = Target::new(&["libz.so.1"]);
    let [one, two] = [1, 2].map(ugraft_core::ThreadId);
    let loaded = target.load(patch("fix", &[(None, &["f"]), (Some("libz.so.1"), &["g"])]));
    assert_eq!(
        loaded,
        [
            log(Level::Notice, "enabling patch 'fix'"),
            log(Level::Debug, "'fix': initializing patching transition"),
            redirect(&f, original, new),
            redirect(&g, original, new),
            log(Level::Notice, "'fix': starting patching transition"),
            Effect::Begin { pending: threads([1, 2]) },
            Effect::Switch(one),
            Effect::Switch(two),
            log(Level::Debug, "'fix': completing patching transition"),
            Effect::End,
            settle(&f, new),
            settle(&g, new),
            log(Level::Notice, "'fix': patching complete"),
            Effect::Finished { patch: id, finish: Finish::Completed(Direction::Patching) },
        ]
    );
    let disabled = target.disable("fix");
    assert_eq!(
        disabled,
        [
            log(Level::Debug, "'fix': initializing unpatching transition"),
            redirect(&f, new, original),
            redirect(&g, new, original),
            log(Level::Notice, "'fix': starting unpatching transition"),
            Effect::Begin { pending: threads([1, 2]) },
            Effect::Switch(one),
            Effect::Switch(two),
            log(Level::Debug, "'fix': completing unpatching transition"),
            Effect::End,
            settle(&f, original),
            settle(&g, original),
            log(Level::Notice, "'fix': unpatching complete"),
            Effect::Finished { patch: id, finish: Finish::Completed(Direction::Unpatching) },
        ]
    );
    assert_eq!(target.unload("fix"), [Effect::FreePatch(id)]);
}
