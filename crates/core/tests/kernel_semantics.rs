//! What the kernel's livepatch does (Linux 6.1, observed), case by case, as far as it applies to a process.
//!
//! Not here, because nothing corresponds to it: fact 9 (`ftrace_enabled`), fact 10 (a patch that patches a patch), and from
//! fact 25 the times. Where ugraft differs on purpose the test says so: a disabled patch stays loaded and can be enabled
//! again, and order is enforced between patches that depend on each other (facts 5, 6 and 18), and what is already so is
//! recognised instead of being an error.

mod support;

#[path = "kernel_semantics/enable.rs"]
mod enable;
#[path = "kernel_semantics/objects.rs"]
mod objects;
#[path = "kernel_semantics/replace.rs"]
mod replace;
#[path = "kernel_semantics/reverse.rs"]
mod reverse;
#[path = "kernel_semantics/status.rs"]
mod status;
#[path = "kernel_semantics/taken_over.rs"]
mod taken_over;

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
