//! The model checker: it explores the shipped step function, with threads that call and return, are born and exit, and a
//! tool that may die after everything it does.
//!
//! The whole space is too large for one exploration, so there are several, each with one thing at its full size. Together
//! they cover four threads, a call depth of three, two functions, two ordinary patches and a replacing one, reverse, force,
//! a library coming and going, by the tool and by the hook in the loader, and death of the tool followed by its next run.
//!
//! | exploration | what is at its full size | worlds |
//! |---|---|---|
//! | `four_threads_three_deep` | four threads, depth 3; a replace over an enabled and a disabled patch, reversed twice | 516,900 |
//! | `requests_in_any_order` | five requests of any kind for three patches, order ignored and not, one reversal | 708,659 |
//! | `death_of_the_tool` | two deaths, three requests, one reversal; three threads | 358,036 |
//! | `birth_and_exit` | two births, two exits, a death, a reversal; up to four threads | 244,188 |
//! | `force` | two forces, four requests, a reversal, a death | 902,948 |
//! | `library_comes_and_goes` | three comings and goings, two requests, a reversal, a death; three threads | 236,704 |
//! | `callbacks` | all callbacks, refusing or not, with comings, goings, a death, a reversal | 18,448 |
//! | `the_hook_acts_by_itself` | all callbacks, refusing or not, with the library coming and going by the hook at any time, three times; two requests, a reversal, a death | 411,361 |
//!
//! The bugs that are seeded at the end show that the properties are not true for want of looking.
#![allow(missing_docs)]

#[path = "model/book.rs"]
mod book;
#[path = "model/hook.rs"]
mod hook;
#[path = "model/world.rs"]
mod world;

use std::time::Instant;

use book::{Ask, Book, Setup, patch};
use stateright::{Checker, Model};
use ugraft_core::{Callbacks, Faults, Life, PatchDesc};
use world::{Budget, Sight, Target, Tool, World};

const LIBRARY: &str = "libg.so";

const A: u8 = 0;
const B: u8 = 1;
const R: u8 = 2;

const fn load(patch: u8) -> Ask {
    Ask::Load { patch, enable: true, ignore_order: false }
}

const fn load_disabled(patch: u8) -> Ask {
    Ask::Load { patch, enable: false, ignore_order: false }
}

const fn enable(patch: u8) -> Ask {
    Ask::Enable { patch, ignore_order: false }
}

const fn unload(patch: u8) -> Ask {
    Ask::Unload { patch }
}

const fn disable(patch: u8) -> Ask {
    Ask::Disable { patch, ignore_order: false }
}

/// Two ordinary patches, of both functions and of `g`, and a replacing one of `f`.
fn three(library: Option<&str>) -> Vec<PatchDesc> {
    vec![
        patch("a", library, &[0, 1], false),
        patch("b", library, &[1], false),
        patch("r", library, &[0], true),
    ]
}

fn target(patches: Vec<PatchDesc>, library: Option<&'static str>) -> Target {
    Target {
        book: Book::new(Setup {
            patches,
            library,
            hooked: false,
            faults: Faults::default(),
            save_first: false,
            secretive: false,
        }),
        before: Vec::new(),
        requests: Vec::new(),
        budget: Budget::default(),
        living: 2,
        depth: 2,
        library_loaded: library.is_some(),
        sometimes: Vec::new(),
        skip_the_stack_check: false,
    }
}

/// Explores it all and demands that every property holds.
#[track_caller]
fn explore(name: &str, model: Target) {
    let begun = Instant::now();
    let checker = model.checker().threads(2).spawn_bfs().join();
    let (states, steps) = checker.model().book.count();
    println!(
        "{name}: {} worlds, {} actions, depth {}; {states} states of the machine, {steps} steps; {:.1?}",
        checker.unique_state_count(),
        checker.state_count(),
        checker.max_depth(),
        begun.elapsed(),
    );
    checker.assert_properties();
}

/// A settled target in which this patch is in this stage of its life, with somebody in the middle of something.
fn settled(model: &Target, world: &World, patch: u8, life: Life) -> bool {
    let facts = model.book.facts(world.doc);
    let somebody = world.threads.iter().any(|thread| !thread.stack().is_empty());
    world.tool == Tool::Idle
        && facts.phase.is_none()
        && facts.lives[usize::from(patch)] == Some(life)
        && somebody
}

const REPLACED: Sight = ("a replace completes", |model, world| {
    settled(model, world, R, Life::Enabled) && settled(model, world, A, Life::Replaced)
});

const REVERSED: Sight = ("a replace is reversed to its end", |model, world| {
    let reversed = world.left.reversals < model.budget.reversals;
    reversed && settled(model, world, R, Life::Disabled) && settled(model, world, A, Life::Enabled)
});

const REVERSED_TWICE: Sight = ("a replace that was reversed twice completes", |model, world| {
    world.left.reversals + 2 <= model.budget.reversals && settled(model, world, R, Life::Enabled)
});

const TAKEN_OVER: Sight = ("the next run completes what a dead one began", |model, world| {
    world.left.deaths < model.budget.deaths && settled(model, world, R, Life::Enabled)
});

/// Four threads, three calls deep: one patch is enabled and one disabled, and a third replaces both, is reversed, and
/// reversed again.
#[test]
fn four_threads_three_deep() {
    explore(
        "four threads, three deep",
        Target {
            before: vec![load(A), load_disabled(B)],
            requests: vec![load(R)],
            budget: Budget { requests: 1, reversals: 2, ..Budget::default() },
            living: 4,
            depth: 3,
            sometimes: vec![REPLACED, REVERSED, REVERSED_TWICE],
            ..target(three(None), None)
        },
    );
}

/// All requests in any order, with the order of patches ignored and not.
#[test]
fn requests_in_any_order() {
    let mut requests = Vec::new();
    for patch in [A, B, R] {
        requests.extend([load(patch), load_disabled(patch), unload(patch)]);
        for ignore_order in [false, true] {
            requests.extend([Ask::Enable { patch, ignore_order }, Ask::Disable { patch, ignore_order }]);
        }
    }
    explore(
        "requests in any order",
        Target {
            requests,
            budget: Budget { requests: 5, reversals: 1, ..Budget::default() },
            sometimes: vec![REPLACED, REVERSED],
            ..target(three(None), None)
        },
    );
}

/// The tool dies, twice, between any two of the things that it does.
#[test]
fn death_of_the_tool() {
    explore(
        "death of the tool",
        Target {
            before: vec![load(A), load_disabled(B)],
            requests: vec![load(R), enable(B), disable(A), disable(R), unload(A)],
            budget: Budget { requests: 3, reversals: 1, deaths: 2, ..Budget::default() },
            living: 3,
            sometimes: vec![REPLACED, REVERSED, TAKEN_OVER],
            ..target(three(None), None)
        },
    );
}

/// Threads are born and exit in mid-transition, and take over each other's identifiers.
#[test]
fn birth_and_exit() {
    explore(
        "birth and exit",
        Target {
            before: vec![load(A)],
            requests: vec![load(R), disable(A)],
            budget: Budget { requests: 1, reversals: 1, deaths: 1, births: 2, exits: 2, ..Budget::default() },
            sometimes: vec![REPLACED, REVERSED, TAKEN_OVER],
            ..target(three(None), None)
        },
    );
}

/// A transition is forced; P3 is given up, but nothing that may still run is given back.
#[test]
fn force() {
    let forced_twice: Sight = ("two transitions are forced", |model, world| {
        model.budget.forces == 2 && world.left.forces == 0 && settled(model, world, R, Life::Enabled)
    });
    explore(
        "force",
        Target {
            before: vec![load(A), load(B)],
            requests: vec![load(R), disable(B), disable(A), disable(R), unload(A), unload(B), unload(R)],
            budget: Budget { requests: 4, reversals: 1, forces: 2, deaths: 1, ..Budget::default() },
            sometimes: vec![REPLACED, forced_twice],
            ..target(three(None), None)
        },
    );
}

/// The library of one of the functions comes and goes, before, in and after transitions.
#[test]
fn library_comes_and_goes() {
    explore(
        "library comes and goes",
        Target {
            before: vec![load(A), load_disabled(B)],
            requests: vec![load(R), enable(B), disable(A)],
            budget: Budget { requests: 2, reversals: 1, deaths: 1, moves: 3, ..Budget::default() },
            living: 3,
            sometimes: vec![REPLACED, REVERSED, TAKEN_OVER],
            ..target(three(Some(LIBRARY)), Some(LIBRARY))
        },
    );
}

/// Callbacks run and refuse, and the tool dies around them.
#[test]
fn callbacks() {
    let mut patches = three(Some(LIBRARY));
    for object in patches.iter_mut().flat_map(|patch| &mut patch.objects) {
        object.callbacks = Callbacks::ALL;
    }
    let refused: Sight = ("pre_patch refuses a load", |model, world| {
        let lives = model.book.facts(world.doc).lives;
        world.tool == Tool::Idle && world.left.requests == 0 && lives[usize::from(R)].is_none()
    });
    explore(
        "callbacks",
        Target {
            before: vec![load(A)],
            requests: vec![load(R), disable(A)],
            budget: Budget { requests: 1, reversals: 1, deaths: 1, moves: 2, ..Budget::default() },
            sometimes: vec![REPLACED, REVERSED, TAKEN_OVER, refused],
            ..target(patches, Some(LIBRARY))
        },
    );
}

/// The library comes and goes by the hook in the loader, and the tool hears of it afterwards. `cumulative` says whether the replacing
/// patch changes it, too, or has a nop there.
fn by_the_hook(cumulative: bool) -> Target {
    let mut patches = three(Some(LIBRARY));
    if cumulative {
        patches[usize::from(R)] = patch("r", Some(LIBRARY), &[0, 1], true);
    }
    for object in patches.iter_mut().flat_map(|patch| &mut patch.objects) {
        object.callbacks = Callbacks::ALL;
    }
    let mut model = Target {
        before: vec![load(A), load_disabled(B)],
        requests: vec![load(R), enable(B), disable(A)],
        budget: Budget { requests: 1, reversals: 1, deaths: 1, moves: 3, ..Budget::default() },
        ..target(patches, Some(LIBRARY))
    };
    model.book.setup.hooked = true;
    model
}

/// The hook acts at any time, in the middle of transitions and of callbacks, too.
#[test]
fn the_hook_acts_by_itself() {
    let sometimes = vec![REPLACED, REVERSED, TAKEN_OVER];
    for (cumulative, depth) in [(false, 2), (true, 1)] {
        let mut model = Target { depth, sometimes: sometimes.clone(), ..by_the_hook(cumulative) };
        model.requests.push(disable(R));
        model.budget.requests = 2;
        explore("the hook acts by itself", model);
    }
}

/// Explores until a property is found not to hold, and demands that it is the one expected.
#[track_caller]
fn find(bug: &str, property: &'static str, model: Target) {
    let checker = model.checker().threads(2).spawn_bfs().join();
    let Some(path) = checker.discovery(property) else {
        panic!("{bug}: '{property}' was not found to be broken")
    };
    println!("{bug}: '{property}' is broken after {} actions:", path.clone().into_actions().len());
    for action in path.into_actions() {
        println!("  {action:?}");
    }
}

const PAIRS: &str = "callbacks pair up";
const P3: &str = "P3: no thread mixes versions";
const LEFT: &str = "no nop and nothing replaced is left";
const FREED: &str = "freed memory is not used";

#[test]
fn seeded_bug_skip_the_stack_check() {
    find(
        "skip the stack check",
        P3,
        Target {
            requests: vec![load(A)],
            budget: Budget { requests: 1, ..Budget::default() },
            skip_the_stack_check: true,
            ..target(three(None), None)
        },
    );
}

#[test]
fn seeded_bug_forget_the_nop_of_a_disabled_patch() {
    let model = || {
        let mut model = Target {
            requests: vec![load_disabled(A), load_disabled(R), enable(A), enable(R), unload(A)],
            budget: Budget { requests: 5, ..Budget::default() },
            ..target(three(None), None)
        };
        model.book.setup.faults.forget_nops_of_disabled = true;
        model
    };
    for property in ["a replacing patch covers all below it", LEFT, FREED] {
        find("forget the nop of a disabled patch", property, model());
    }
}

#[test]
fn seeded_bug_forget_the_pending_threads_on_a_reverse() {
    let mut model = Target {
        requests: vec![load(A)],
        budget: Budget { requests: 1, reversals: 1, ..Budget::default() },
        ..target(three(None), None)
    };
    model.book.setup.faults.forget_pending_on_reverse = true;
    find("forget the pending threads on a reverse", P3, model);
}

/// Not one of the machine's: a tool that saves a state before it is true has the next run settle what threads still run.
#[test]
fn seeded_bug_save_before_the_pending_table_is_changed() {
    let mut model = Target {
        requests: vec![load(A)],
        budget: Budget { requests: 1, deaths: 1, ..Budget::default() },
        ..target(three(None), None)
    };
    model.book.setup.save_first = true;
    find("save before the pending table is changed", P3, model);
}

#[test]
fn seeded_bug_do_again_what_the_hook_has_done() {
    let mut model = by_the_hook(false);
    model.book.setup.faults.do_again_what_was_done = true;
    find("do again what the hook has done", PAIRS, model);
}

/// Not one of the machine's: a hook that does not know which callbacks the tool has run runs them again.
#[test]
fn seeded_bug_keep_from_the_hook_what_was_called() {
    let mut model = by_the_hook(false);
    model.book.setup.secretive = true;
    find("keep from the hook what was called", PAIRS, model);
}
