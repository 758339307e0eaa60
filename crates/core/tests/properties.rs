//! Any sequence of events, sensible or not: no panic, one named state at any time, and effects that lead to what the state
//! says of itself.

mod support;

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use support::func;
use ugraft_core::{
    CallbackKind, Callbacks, Direction, Due, Effect, Errno, Event, FuncDesc, FuncId, Implementation, Life,
    Misfit, MisfitStage, ObjectDesc, PatchDesc, PatchId, Phase, State, StateDesc, ThreadId, step,
};

const PATCHES: [&str; 4] = ["a", "b", "c", "d"];
const LIBRARIES: [&str; 2] = ["liba.so", "libb.so"];
const FUNCS: [&str; 3] = ["f", "g", "h"];

fn threads() -> impl Strategy<Value = BTreeSet<ThreadId>> {
    proptest::collection::btree_set((0..4u64).prop_map(ThreadId), 0..4)
}

fn patch_name() -> impl Strategy<Value = String> {
    proptest::sample::select(&PATCHES[..]).prop_map(Into::into)
}

fn object() -> impl Strategy<Value = ObjectDesc> {
    let name = prop_oneof![
        2 => Just(None),
        2 => proptest::sample::select(&LIBRARIES[..]).prop_map(|name| Some(name.to_owned())),
    ];
    let func = (proptest::sample::select(&FUNCS[..]), 0..3u32)
        .prop_map(|(name, old_sympos)| FuncDesc { old_name: name.into(), old_sympos });
    let callbacks = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>())
        .prop_map(|(a, b, c, d)| Callbacks { pre_patch: a, post_patch: b, pre_unpatch: c, post_unpatch: d });
    (name, proptest::collection::vec(func, 0..3), callbacks).prop_map(|(name, funcs, callbacks)| ObjectDesc {
        name,
        funcs,
        callbacks,
        ..ObjectDesc::default()
    })
}

fn desc() -> impl Strategy<Value = PatchDesc> {
    let depends = prop_oneof![4 => Just(Vec::new()), 1 => proptest::collection::vec(patch_name(), 1..2)];
    let states = proptest::collection::vec(
        (0..2u64, 0..3u32).prop_map(|(id, version)| StateDesc { id, version }),
        0..2,
    );
    (patch_name(), any::<bool>(), depends, states, proptest::collection::vec(object(), 0..3)).prop_map(
        |(name, replace, depends, states, objects)| PatchDesc {
            name,
            replace,
            depends,
            states,
            objects,
            ..PatchDesc::default()
        },
    )
}

fn event() -> impl Strategy<Value = Event> {
    let library = || proptest::sample::select(&LIBRARIES[..]).prop_map(str::to_owned);
    let maybe_patch = || proptest::option::weighted(0.3, patch_name());
    let misfit = (1..6u32, any::<bool>()).prop_map(|(patch, apply)| Misfit {
        patch: PatchId(patch),
        stage: if apply { MisfitStage::Apply } else { MisfitStage::Initialize },
        errno: Errno::EINVAL,
    });
    let value = prop_oneof![9 => Just(0), 1 => Just(-19), 1 => any::<i32>()];
    prop_oneof![
        6 => (desc(), prop_oneof![3 => Just(true), 1 => Just(false)], any::<bool>())
            .prop_map(|(desc, enable, ignore_order)| Event::Load { desc, enable, ignore_order }),
        3 => (patch_name(), any::<bool>()).prop_map(|(patch, ignore_order)| Event::Enable { patch, ignore_order }),
        3 => (patch_name(), any::<bool>()).prop_map(|(patch, ignore_order)| Event::Disable { patch, ignore_order }),
        2 => patch_name().prop_map(|patch| Event::Unload { patch }),
        6 => threads().prop_map(|pending| Event::Started { pending }),
        1 => proptest::option::of(library()).prop_map(|object| Event::StartFailed { object, errno: Errno::EBUSY }),
        1 => (0..4u64).prop_map(|thread| Event::ThreadBorn(ThreadId(thread))),
        1 => (0..4u64).prop_map(|thread| Event::ThreadExited(ThreadId(thread))),
        8 => (0..4u64).prop_map(|thread| Event::ThreadSwitched(ThreadId(thread))),
        1 => (threads(), any::<bool>()).prop_map(|(pending, reversed)| Event::Resumed { pending, reversed }),
        2 => (maybe_patch(), threads()).prop_map(|(patch, threads)| Event::Reverse { patch, threads }),
        1 => maybe_patch().prop_map(|patch| Event::Force { patch }),
        1 => Just(Event::Signal),
        12 => value.prop_map(|value| Event::CallbackReturned { value }),
        3 => (library(), prop_oneof![3 => Just(Vec::new()), 1 => proptest::collection::vec(misfit, 1..2)])
            .prop_map(|(object, misfits)| Event::ObjectComing { object, misfits }),
        2 => library().prop_map(|object| Event::ObjectGoing { object }),
    ]
}

/// A target that does what effects say, and nothing else.
#[derive(Default)]
struct Done {
    entries: BTreeMap<FuncId, (Implementation, Implementation)>,
    pending: BTreeSet<ThreadId>,
    /// `pre_patch` succeeded and `post_unpatch` has not run.
    due: BTreeSet<(PatchId, Option<String>)>,
    freed: BTreeSet<PatchId>,
}

impl Done {
    fn carry_out(&mut self, effects: &[Effect]) {
        for (at, effect) in effects.iter().enumerate() {
            match effect {
                Effect::Log(_, text) => {
                    assert!(text.starts_with("livepatch: ") && !text.contains('\n'), "{text}")
                }
                Effect::Redirect { func, source, goal } => {
                    assert_ne!(source, goal);
                    self.entries.insert(func.clone(), (*source, *goal));
                }
                Effect::Settle { func, implementation: Implementation::Original } => {
                    assert!(self.entries.remove(func).is_some(), "{func} had its original already");
                }
                Effect::Settle { func, implementation } => {
                    self.entries.insert(func.clone(), (*implementation, *implementation));
                }
                Effect::Begin { pending } | Effect::Swap { pending, .. } => self.pending = pending.clone(),
                Effect::Switch(thread) => assert!(self.pending.remove(thread)),
                Effect::End => assert!(self.pending.is_empty(), "{:?} were left behind", self.pending),
                Effect::FreePatch(id) => {
                    assert!(self.freed.insert(*id));
                    self.due.retain(|(patch, _)| patch != id);
                }
                Effect::RunCallback(call) => {
                    assert_eq!(at, effects.len() - 1, "a callback stops the step");
                    let site = (call.patch, call.object.clone());
                    match call.callback {
                        // Whether it succeeds is seen when it returns.
                        CallbackKind::PrePatch => drop(self.due.remove(&site)),
                        CallbackKind::PostUnpatch => {
                            assert!(self.due.remove(&site), "pre_patch had not succeeded")
                        }
                        _ => {}
                    }
                }
                _ => {}
            }
        }
        for (source, goal) in self.entries.values() {
            for implementation in [source, goal] {
                if let Implementation::Patch(id) = implementation {
                    assert!(!self.freed.contains(id), "an entry leads to memory given back");
                }
            }
        }
    }

    /// What the state says the entries are.
    fn expected(state: &State) -> BTreeMap<FuncId, (Implementation, Implementation)> {
        let entries = state.entries().into_iter().filter_map(|effect| match effect {
            Effect::Redirect { func, source, goal } => Some((func, (source, goal))),
            Effect::Settle { func, implementation } => Some((func, (implementation, implementation))),
            _ => None,
        });
        entries.filter(|(_, sides)| *sides != (Implementation::Original, Implementation::Original)).collect()
    }
}

fn check(state: &State, done: &Done) {
    assert_eq!(state.check(), Ok(()));
    let written = serde_json::to_string(state).unwrap();
    assert_eq!(serde_json::from_str::<State>(&written).unwrap(), *state);
    // One named state.
    let moving: Vec<_> =
        state.patches().iter().filter(|p| matches!(p.life(), Life::Enabling | Life::Disabling)).collect();
    match state.transition() {
        None => assert!(moving.is_empty()),
        Some(transition) => {
            assert_eq!(moving.len(), 1);
            assert_eq!(moving[0].id(), transition.patch());
            let towards = transition.direction() == Direction::Patching;
            assert_eq!(moving[0].life(), if towards { Life::Enabling } else { Life::Disabling });
            assert_eq!(*transition.pending(), done.pending, "state and target disagree about who is pending");
            if transition.phase() == Phase::Started && transition.pending().is_empty() {
                assert!(
                    matches!(state.due(), Due::Callback(_)),
                    "nobody is pending, and it does not complete"
                );
            }
        }
    }
    // What cannot be there.
    for patch in state.patches() {
        assert!(!done.freed.contains(&patch.id()));
        for object in patch.objects().iter().filter(|object| object.is_patched()) {
            assert!(state.is_loaded(object.name()));
            assert!(!matches!(patch.life(), Life::Disabled | Life::Replaced), "{} is patched", patch.name());
        }
        if patch.life() == Life::Enabled && patch.desc().replace {
            assert!(patch.nops().is_empty());
            let below = state.patches().iter().take_while(|other| other.id() != patch.id());
            assert!(below.into_iter().all(|other| other.life() == Life::Replaced));
        }
    }
    // Entries follow at once, but at the start of a disabling, where callbacks come first.
    let callbacks_first = state
        .transition()
        .is_some_and(|t| t.origin() == Direction::Unpatching && t.phase() == Phase::Initializing)
        && matches!(state.due(), Due::Callback(_));
    if !callbacks_first {
        assert_eq!(done.entries, Done::expected(state));
    }
    for change in state.changes() {
        assert_eq!(state.steady(&change.func), change.source);
    }
    let _ = state.status();
}

proptest! {
    #[test]
    fn any_sequence_of_events_is_survived(events in proptest::collection::vec(event(), 1..80)) {
        let mut state = State::default();
        let mut done = Done::default();
        for event in events {
            let awaited = state.due();
            match step(&state, event.clone()) {
                Ok((next, effects)) => {
                    if let (Due::Callback(call), Event::CallbackReturned { value: 0 }) = (&awaited, &event)
                        && call.callback == CallbackKind::PrePatch
                    {
                        done.due.insert((call.patch, call.object.clone()));
                    }
                    // These are told by the target, not asked of it.
                    if let Event::Resumed { pending, .. } = &event {
                        done.pending = pending.clone();
                    }
                    prop_assert!(event.save_after(&effects) <= effects.len());
                    // Objects without a pre_patch count as if it had succeeded.
                    for patch in next.patches() {
                        for object in patch.desc().objects.iter().filter(|object| !object.callbacks.pre_patch) {
                            done.due.insert((patch.id(), object.name.clone()));
                        }
                    }
                    done.carry_out(&effects);
                    state = next;
                }
                Err(refusal) => {
                    prop_assert!(refusal.errno().returned() < 0);
                    prop_assert!(!refusal.to_string().is_empty());
                }
            }
            check(&state, &done);
        }
    }

    /// Whatever was done, it can be brought to an end, and everything can be taken off again.
    #[test]
    fn everything_can_be_undone(events in proptest::collection::vec(event(), 1..60)) {
        let mut state = State::default();
        for event in events {
            if let Ok((next, _)) = step(&state, event) {
                state = next;
            }
        }
        let settle = |mut state: State| {
            for _ in 0..200 {
                let event = match state.due() {
                    Due::Nothing => break,
                    Due::Callback(_) => Event::CallbackReturned { value: 0 },
                    Due::Start => Event::Started { pending: BTreeSet::new() },
                    Due::Threads => Event::Resumed {
                        pending: BTreeSet::new(),
                        reversed: state.transition().is_some_and(|transition| transition.is_reversed()),
                    },
                };
                state = step(&state, event).unwrap().0;
            }
            assert_eq!(state.due(), Due::Nothing);
            state
        };
        state = settle(state);
        let names: Vec<String> = state.patches().iter().map(|patch| patch.name().to_owned()).collect();
        for patch in names {
            if state.patch_named(&patch).unwrap().life() == Life::Enabled {
                state = settle(step(&state, Event::Disable { patch: patch.clone(), ignore_order: true }).unwrap().0);
            }
            let forced = state.patch_named(&patch).unwrap().is_forced();
            match step(&state, Event::Unload { patch }) {
                Ok((next, _)) => state = next,
                Err(refusal) => prop_assert!(forced, "{}", refusal),
            }
        }
        prop_assert_eq!(Done::expected(&state), BTreeMap::new());
        prop_assert_eq!(state.steady(&func(None, "f")), Implementation::Original);
    }

    /// What is read from a target may be anything.
    #[test]
    fn damaged_states_are_survived(
        events in proptest::collection::vec(event(), 1..40),
        more in proptest::collection::vec(event(), 1..10),
        cut in any::<proptest::sample::Index>(),
        replacement in any::<proptest::sample::Index>(),
    ) {
        let mut state = State::default();
        for event in events {
            if let Ok((next, _)) = step(&state, event) {
                state = next;
            }
        }
        // One number in its written form becomes another.
        let written = serde_json::to_string(&state).unwrap();
        let digits: Vec<usize> = written.char_indices().filter(|(_, c)| c.is_ascii_digit()).map(|(at, _)| at).collect();
        let at = digits[cut.index(digits.len())];
        let damaged = format!("{}{}{}", &written[..at], replacement.index(10), &written[at + 1..]);
        if let Ok(mut state) = serde_json::from_str::<State>(&damaged) {
            let _ = (state.due(), state.status(), state.entries(), state.changes());
            for event in more {
                if let Ok((next, _)) = step(&state, event) {
                    state = next;
                }
            }
        }
    }
}
