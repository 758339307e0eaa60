//! The eleven callback tests that the kernel's livepatch selftests began with, line for line.
//!
//! Expected is what today's kernel prints: objects in declared order (the first version walked them backwards), and
//! `pre_unpatch` at the disabling of a replacing patch (the first version lost it). Lines with `%` are the commands; lines
//! of `test_klp_callbacks_mod` and `..._busy` are written by these modules themselves. "Module" reads "shared library"
//! here and "vmlinux" the main executable.

mod support;

use support::{Target, patch, replacing, threads, with_callbacks};
use ugraft_core::{Effect, Event, PatchDesc, ThreadId};

const LIVEPATCH: &str = "test_klp_callbacks_demo";
const LIVEPATCH2: &str = "test_klp_callbacks_demo2";
const TARGET: &str = "test_klp_callbacks_mod";
const BUSY: &str = "test_klp_callbacks_busy";
const ENODEV: i32 = -19;

fn demo() -> PatchDesc {
    with_callbacks(patch(
        LIVEPATCH,
        &[(None, &[]), (Some(TARGET), &[]), (Some(BUSY), &["busymod_work_func"])],
    ))
}

fn demo2() -> PatchDesc {
    with_callbacks(patch(LIVEPATCH2, &[(None, &[])]))
}

/// The commands of the tests.
struct Machine(Target);

impl Machine {
    fn new() -> Self {
        Self(Target::new(&[]))
    }

    fn load_module(&mut self, module: &str, arguments: &str, more: &[&str]) {
        self.0.say(format!("% modprobe {module}{arguments}"));
        let effects = self.0.coming(module);
        if effects.iter().any(|effect| matches!(effect, Effect::Admit { .. })) {
            self.0.say(format!("{module}: livepatch_callbacks_mod_init"));
            more.iter().for_each(|line| self.0.say(format!("{module}: {line}")));
        } else {
            self.0.say(format!("modprobe: ERROR: could not insert '{module}': No such device"));
        }
    }

    fn unload_module(&mut self, module: &str) {
        self.0.say(format!("% rmmod {module}"));
        self.0.say(format!("{module}: livepatch_callbacks_mod_exit"));
        self.0.going(module);
    }

    fn load_patch(&mut self, desc: PatchDesc, arguments: &str) {
        let name = desc.name.clone();
        self.0.say(format!("% modprobe {name}{arguments}"));
        self.0.load(desc);
        if self.0.state.patch_named(&name).is_none() {
            self.0.say(format!("modprobe: ERROR: could not insert '{name}': No such device"));
        }
    }

    fn disable(&mut self, patch: &str) {
        self.0.say(format!("% echo 0 > /sys/kernel/livepatch/{patch}/enabled"));
        match self.0.try_disable(patch) {
            Err(ugraft_core::Refusal::WouldReverse { .. }) => drop(self.0.reverse()),
            result => drop(result.unwrap()),
        }
    }

    fn unload_patch(&mut self, patch: &str) {
        self.0.say(format!("% rmmod {patch}"));
        self.0.unload(patch);
    }

    #[track_caller]
    fn check(&mut self, expected: &str) {
        let expected: Vec<&str> = expected.trim().lines().map(str::trim).collect();
        assert_eq!(self.0.log, expected);
    }
}

/// A library is there, a patch comes and goes, the library goes.
#[test]
fn test1_target_before_patch() {
    let mut m = Machine::new();
    m.load_module(TARGET, "", &[]);
    m.load_patch(demo(), "");
    m.disable(LIVEPATCH);
    m.unload_patch(LIVEPATCH);
    m.unload_module(TARGET);
    m.check(
        "% modprobe test_klp_callbacks_mod
        test_klp_callbacks_mod: livepatch_callbacks_mod_init
        % modprobe test_klp_callbacks_demo
        livepatch: enabling patch 'test_klp_callbacks_demo'
        livepatch: 'test_klp_callbacks_demo': initializing patching transition
        test_klp_callbacks_demo: pre_patch_callback: vmlinux
        test_klp_callbacks_demo: pre_patch_callback: test_klp_callbacks_mod -> [MODULE_STATE_LIVE] Normal state
        livepatch: 'test_klp_callbacks_demo': starting patching transition
        livepatch: 'test_klp_callbacks_demo': completing patching transition
        test_klp_callbacks_demo: post_patch_callback: vmlinux
        test_klp_callbacks_demo: post_patch_callback: test_klp_callbacks_mod -> [MODULE_STATE_LIVE] Normal state
        livepatch: 'test_klp_callbacks_demo': patching complete
        % echo 0 > /sys/kernel/livepatch/test_klp_callbacks_demo/enabled
        livepatch: 'test_klp_callbacks_demo': initializing unpatching transition
        test_klp_callbacks_demo: pre_unpatch_callback: vmlinux
        test_klp_callbacks_demo: pre_unpatch_callback: test_klp_callbacks_mod -> [MODULE_STATE_LIVE] Normal state
        livepatch: 'test_klp_callbacks_demo': starting unpatching transition
        livepatch: 'test_klp_callbacks_demo': completing unpatching transition
        test_klp_callbacks_demo: post_unpatch_callback: vmlinux
        test_klp_callbacks_demo: post_unpatch_callback: test_klp_callbacks_mod -> [MODULE_STATE_LIVE] Normal state
        livepatch: 'test_klp_callbacks_demo': unpatching complete
        % rmmod test_klp_callbacks_demo
        % rmmod test_klp_callbacks_mod
        test_klp_callbacks_mod: livepatch_callbacks_mod_exit",
    );
}

/// The library comes while the patch is enabled.
#[test]
fn test2_target_after_patch() {
    let mut m = Machine::new();
    m.load_patch(demo(), "");
    m.load_module(TARGET, "", &[]);
    m.disable(LIVEPATCH);
    m.unload_patch(LIVEPATCH);
    m.unload_module(TARGET);
    m.check(
        "% modprobe test_klp_callbacks_demo
        livepatch: enabling patch 'test_klp_callbacks_demo'
        livepatch: 'test_klp_callbacks_demo': initializing patching transition
        test_klp_callbacks_demo: pre_patch_callback: vmlinux
        livepatch: 'test_klp_callbacks_demo': starting patching transition
        livepatch: 'test_klp_callbacks_demo': completing patching transition
        test_klp_callbacks_demo: post_patch_callback: vmlinux
        livepatch: 'test_klp_callbacks_demo': patching complete
        % modprobe test_klp_callbacks_mod
        livepatch: applying patch 'test_klp_callbacks_demo' to loading module 'test_klp_callbacks_mod'
        test_klp_callbacks_demo: pre_patch_callback: test_klp_callbacks_mod -> [MODULE_STATE_COMING] Full formed, running module_init
        test_klp_callbacks_demo: post_patch_callback: test_klp_callbacks_mod -> [MODULE_STATE_COMING] Full formed, running module_init
        test_klp_callbacks_mod: livepatch_callbacks_mod_init
        % echo 0 > /sys/kernel/livepatch/test_klp_callbacks_demo/enabled
        livepatch: 'test_klp_callbacks_demo': initializing unpatching transition
        test_klp_callbacks_demo: pre_unpatch_callback: vmlinux
        test_klp_callbacks_demo: pre_unpatch_callback: test_klp_callbacks_mod -> [MODULE_STATE_LIVE] Normal state
        livepatch: 'test_klp_callbacks_demo': starting unpatching transition
        livepatch: 'test_klp_callbacks_demo': completing unpatching transition
        test_klp_callbacks_demo: post_unpatch_callback: vmlinux
        test_klp_callbacks_demo: post_unpatch_callback: test_klp_callbacks_mod -> [MODULE_STATE_LIVE] Normal state
        livepatch: 'test_klp_callbacks_demo': unpatching complete
        % rmmod test_klp_callbacks_demo
        % rmmod test_klp_callbacks_mod
        test_klp_callbacks_mod: livepatch_callbacks_mod_exit",
    );
}

/// The library goes while the patch is enabled.
#[test]
fn test3_target_goes_under_the_patch() {
    let mut m = Machine::new();
    m.load_module(TARGET, "", &[]);
    m.load_patch(demo(), "");
    m.unload_module(TARGET);
    m.disable(LIVEPATCH);
    m.unload_patch(LIVEPATCH);
    m.check(
        "% modprobe test_klp_callbacks_mod
        test_klp_callbacks_mod: livepatch_callbacks_mod_init
        % modprobe test_klp_callbacks_demo
        livepatch: enabling patch 'test_klp_callbacks_demo'
        livepatch: 'test_klp_callbacks_demo': initializing patching transition
        test_klp_callbacks_demo: pre_patch_callback: vmlinux
        test_klp_callbacks_demo: pre_patch_callback: test_klp_callbacks_mod -> [MODULE_STATE_LIVE] Normal state
        livepatch: 'test_klp_callbacks_demo': starting patching transition
        livepatch: 'test_klp_callbacks_demo': completing patching transition
        test_klp_callbacks_demo: post_patch_callback: vmlinux
        test_klp_callbacks_demo: post_patch_callback: test_klp_callbacks_mod -> [MODULE_STATE_LIVE] Normal state
        livepatch: 'test_klp_callbacks_demo': patching complete
        % rmmod test_klp_callbacks_mod
        test_klp_callbacks_mod: livepatch_callbacks_mod_exit
        test_klp_callbacks_demo: pre_unpatch_callback: test_klp_callbacks_mod -> [MODULE_STATE_GOING] Going away
        livepatch: reverting patch 'test_klp_callbacks_demo' on unloading module 'test_klp_callbacks_mod'
        test_klp_callbacks_demo: post_unpatch_callback: test_klp_callbacks_mod -> [MODULE_STATE_GOING] Going away
        % echo 0 > /sys/kernel/livepatch/test_klp_callbacks_demo/enabled
        livepatch: 'test_klp_callbacks_demo': initializing unpatching transition
        test_klp_callbacks_demo: pre_unpatch_callback: vmlinux
        livepatch: 'test_klp_callbacks_demo': starting unpatching transition
        livepatch: 'test_klp_callbacks_demo': completing unpatching transition
        test_klp_callbacks_demo: post_unpatch_callback: vmlinux
        livepatch: 'test_klp_callbacks_demo': unpatching complete
        % rmmod test_klp_callbacks_demo",
    );
}

/// The library comes and goes while the patch is enabled.
#[test]
fn test4_target_comes_and_goes() {
    let mut m = Machine::new();
    m.load_patch(demo(), "");
    m.load_module(TARGET, "", &[]);
    m.unload_module(TARGET);
    m.disable(LIVEPATCH);
    m.unload_patch(LIVEPATCH);
    m.check(
        "% modprobe test_klp_callbacks_demo
        livepatch: enabling patch 'test_klp_callbacks_demo'
        livepatch: 'test_klp_callbacks_demo': initializing patching transition
        test_klp_callbacks_demo: pre_patch_callback: vmlinux
        livepatch: 'test_klp_callbacks_demo': starting patching transition
        livepatch: 'test_klp_callbacks_demo': completing patching transition
        test_klp_callbacks_demo: post_patch_callback: vmlinux
        livepatch: 'test_klp_callbacks_demo': patching complete
        % modprobe test_klp_callbacks_mod
        livepatch: applying patch 'test_klp_callbacks_demo' to loading module 'test_klp_callbacks_mod'
        test_klp_callbacks_demo: pre_patch_callback: test_klp_callbacks_mod -> [MODULE_STATE_COMING] Full formed, running module_init
        test_klp_callbacks_demo: post_patch_callback: test_klp_callbacks_mod -> [MODULE_STATE_COMING] Full formed, running module_init
        test_klp_callbacks_mod: livepatch_callbacks_mod_init
        % rmmod test_klp_callbacks_mod
        test_klp_callbacks_mod: livepatch_callbacks_mod_exit
        test_klp_callbacks_demo: pre_unpatch_callback: test_klp_callbacks_mod -> [MODULE_STATE_GOING] Going away
        livepatch: reverting patch 'test_klp_callbacks_demo' on unloading module 'test_klp_callbacks_mod'
        test_klp_callbacks_demo: post_unpatch_callback: test_klp_callbacks_mod -> [MODULE_STATE_GOING] Going away
        % echo 0 > /sys/kernel/livepatch/test_klp_callbacks_demo/enabled
        livepatch: 'test_klp_callbacks_demo': initializing unpatching transition
        test_klp_callbacks_demo: pre_unpatch_callback: vmlinux
        livepatch: 'test_klp_callbacks_demo': starting unpatching transition
        livepatch: 'test_klp_callbacks_demo': completing unpatching transition
        test_klp_callbacks_demo: post_unpatch_callback: vmlinux
        livepatch: 'test_klp_callbacks_demo': unpatching complete
        % rmmod test_klp_callbacks_demo",
    );
}

/// The library is never there.
#[test]
fn test5_no_target() {
    let mut m = Machine::new();
    m.load_patch(demo(), "");
    m.disable(LIVEPATCH);
    m.unload_patch(LIVEPATCH);
    m.check(
        "% modprobe test_klp_callbacks_demo
        livepatch: enabling patch 'test_klp_callbacks_demo'
        livepatch: 'test_klp_callbacks_demo': initializing patching transition
        test_klp_callbacks_demo: pre_patch_callback: vmlinux
        livepatch: 'test_klp_callbacks_demo': starting patching transition
        livepatch: 'test_klp_callbacks_demo': completing patching transition
        test_klp_callbacks_demo: post_patch_callback: vmlinux
        livepatch: 'test_klp_callbacks_demo': patching complete
        % echo 0 > /sys/kernel/livepatch/test_klp_callbacks_demo/enabled
        livepatch: 'test_klp_callbacks_demo': initializing unpatching transition
        test_klp_callbacks_demo: pre_unpatch_callback: vmlinux
        livepatch: 'test_klp_callbacks_demo': starting unpatching transition
        livepatch: 'test_klp_callbacks_demo': completing unpatching transition
        test_klp_callbacks_demo: post_unpatch_callback: vmlinux
        livepatch: 'test_klp_callbacks_demo': unpatching complete
        % rmmod test_klp_callbacks_demo",
    );
}

/// `pre_patch` refuses at the enabling. The first object is the first to refuse.
#[test]
fn test6_pre_patch_refuses_the_patch() {
    let mut m = Machine::new();
    m.load_module(TARGET, "", &[]);
    m.0.pre_patch.push_back(ENODEV);
    m.load_patch(demo(), " pre_patch_ret=-19");
    m.unload_module(TARGET);
    m.check(
        "% modprobe test_klp_callbacks_mod
        test_klp_callbacks_mod: livepatch_callbacks_mod_init
        % modprobe test_klp_callbacks_demo pre_patch_ret=-19
        livepatch: enabling patch 'test_klp_callbacks_demo'
        livepatch: 'test_klp_callbacks_demo': initializing patching transition
        test_klp_callbacks_demo: pre_patch_callback: vmlinux
        livepatch: pre-patch callback failed for object 'vmlinux'
        livepatch: failed to enable patch 'test_klp_callbacks_demo'
        livepatch: 'test_klp_callbacks_demo': canceling patching transition, going to unpatch
        livepatch: 'test_klp_callbacks_demo': completing unpatching transition
        livepatch: 'test_klp_callbacks_demo': unpatching complete
        modprobe: ERROR: could not insert 'test_klp_callbacks_demo': No such device
        % rmmod test_klp_callbacks_mod
        test_klp_callbacks_mod: livepatch_callbacks_mod_exit",
    );
}

/// `pre_patch` refuses a library that comes: it is not let in, and the patch stays.
#[test]
fn test7_pre_patch_refuses_the_target() {
    let mut m = Machine::new();
    m.load_patch(demo(), "");
    m.0.say("% echo -19 > /sys/module/test_klp_callbacks_demo/parameters/pre_patch_ret");
    m.0.pre_patch.push_back(ENODEV);
    m.load_module(TARGET, "", &[]);
    m.disable(LIVEPATCH);
    m.unload_patch(LIVEPATCH);
    m.check(
        "% modprobe test_klp_callbacks_demo
        livepatch: enabling patch 'test_klp_callbacks_demo'
        livepatch: 'test_klp_callbacks_demo': initializing patching transition
        test_klp_callbacks_demo: pre_patch_callback: vmlinux
        livepatch: 'test_klp_callbacks_demo': starting patching transition
        livepatch: 'test_klp_callbacks_demo': completing patching transition
        test_klp_callbacks_demo: post_patch_callback: vmlinux
        livepatch: 'test_klp_callbacks_demo': patching complete
        % echo -19 > /sys/module/test_klp_callbacks_demo/parameters/pre_patch_ret
        % modprobe test_klp_callbacks_mod
        livepatch: applying patch 'test_klp_callbacks_demo' to loading module 'test_klp_callbacks_mod'
        test_klp_callbacks_demo: pre_patch_callback: test_klp_callbacks_mod -> [MODULE_STATE_COMING] Full formed, running module_init
        livepatch: pre-patch callback failed for object 'test_klp_callbacks_mod'
        livepatch: patch 'test_klp_callbacks_demo' failed for module 'test_klp_callbacks_mod', refusing to load module 'test_klp_callbacks_mod'
        modprobe: ERROR: could not insert 'test_klp_callbacks_mod': No such device
        % echo 0 > /sys/kernel/livepatch/test_klp_callbacks_demo/enabled
        livepatch: 'test_klp_callbacks_demo': initializing unpatching transition
        test_klp_callbacks_demo: pre_unpatch_callback: vmlinux
        livepatch: 'test_klp_callbacks_demo': starting unpatching transition
        livepatch: 'test_klp_callbacks_demo': completing unpatching transition
        test_klp_callbacks_demo: post_unpatch_callback: vmlinux
        livepatch: 'test_klp_callbacks_demo': unpatching complete
        % rmmod test_klp_callbacks_demo",
    );
}

/// One library is there with a function to patch, which nobody is in; another comes and goes.
#[test]
fn test8_several_objects() {
    let mut m = Machine::new();
    m.load_module(
        BUSY,
        " sleep_secs=0",
        &["busymod_work_func, sleeping 0 seconds ...", "busymod_work_func exit"],
    );
    m.load_patch(demo(), "");
    m.load_module(TARGET, "", &[]);
    m.unload_module(TARGET);
    m.disable(LIVEPATCH);
    m.unload_patch(LIVEPATCH);
    m.unload_module(BUSY);
    m.check(
        "% modprobe test_klp_callbacks_busy sleep_secs=0
        test_klp_callbacks_busy: livepatch_callbacks_mod_init
        test_klp_callbacks_busy: busymod_work_func, sleeping 0 seconds ...
        test_klp_callbacks_busy: busymod_work_func exit
        % modprobe test_klp_callbacks_demo
        livepatch: enabling patch 'test_klp_callbacks_demo'
        livepatch: 'test_klp_callbacks_demo': initializing patching transition
        test_klp_callbacks_demo: pre_patch_callback: vmlinux
        test_klp_callbacks_demo: pre_patch_callback: test_klp_callbacks_busy -> [MODULE_STATE_LIVE] Normal state
        livepatch: 'test_klp_callbacks_demo': starting patching transition
        livepatch: 'test_klp_callbacks_demo': completing patching transition
        test_klp_callbacks_demo: post_patch_callback: vmlinux
        test_klp_callbacks_demo: post_patch_callback: test_klp_callbacks_busy -> [MODULE_STATE_LIVE] Normal state
        livepatch: 'test_klp_callbacks_demo': patching complete
        % modprobe test_klp_callbacks_mod
        livepatch: applying patch 'test_klp_callbacks_demo' to loading module 'test_klp_callbacks_mod'
        test_klp_callbacks_demo: pre_patch_callback: test_klp_callbacks_mod -> [MODULE_STATE_COMING] Full formed, running module_init
        test_klp_callbacks_demo: post_patch_callback: test_klp_callbacks_mod -> [MODULE_STATE_COMING] Full formed, running module_init
        test_klp_callbacks_mod: livepatch_callbacks_mod_init
        % rmmod test_klp_callbacks_mod
        test_klp_callbacks_mod: livepatch_callbacks_mod_exit
        test_klp_callbacks_demo: pre_unpatch_callback: test_klp_callbacks_mod -> [MODULE_STATE_GOING] Going away
        livepatch: reverting patch 'test_klp_callbacks_demo' on unloading module 'test_klp_callbacks_mod'
        test_klp_callbacks_demo: post_unpatch_callback: test_klp_callbacks_mod -> [MODULE_STATE_GOING] Going away
        % echo 0 > /sys/kernel/livepatch/test_klp_callbacks_demo/enabled
        livepatch: 'test_klp_callbacks_demo': initializing unpatching transition
        test_klp_callbacks_demo: pre_unpatch_callback: vmlinux
        test_klp_callbacks_demo: pre_unpatch_callback: test_klp_callbacks_busy -> [MODULE_STATE_LIVE] Normal state
        livepatch: 'test_klp_callbacks_demo': starting unpatching transition
        livepatch: 'test_klp_callbacks_demo': completing unpatching transition
        test_klp_callbacks_demo: post_unpatch_callback: vmlinux
        test_klp_callbacks_demo: post_unpatch_callback: test_klp_callbacks_busy -> [MODULE_STATE_LIVE] Normal state
        livepatch: 'test_klp_callbacks_demo': unpatching complete
        % rmmod test_klp_callbacks_demo
        % rmmod test_klp_callbacks_busy
        test_klp_callbacks_busy: livepatch_callbacks_mod_exit",
    );
}

/// A thread is stuck in the function to patch; a library comes and goes in mid-transition; the transition is reversed.
#[test]
fn test9_busy_target() {
    let mut m = Machine::new();
    m.load_module(BUSY, " sleep_secs=60", &["busymod_work_func, sleeping 60 seconds ..."]);
    m.0.stuck = threads([1]);
    m.load_patch(demo(), "");
    assert_eq!(m.0.state.transition().map(|t| t.pending().clone()), Some([ThreadId(1)].into()));
    m.load_module(TARGET, "", &[]);
    m.unload_module(TARGET);
    m.disable(LIVEPATCH);
    m.unload_patch(LIVEPATCH);
    m.0.say("% rmmod test_klp_callbacks_busy");
    m.0.say("test_klp_callbacks_busy: busymod_work_func exit");
    m.0.say("test_klp_callbacks_busy: livepatch_callbacks_mod_exit");
    m.0.ok(Event::ObjectGoing { object: BUSY.into() });
    m.check(
        "% modprobe test_klp_callbacks_busy sleep_secs=60
        test_klp_callbacks_busy: livepatch_callbacks_mod_init
        test_klp_callbacks_busy: busymod_work_func, sleeping 60 seconds ...
        % modprobe test_klp_callbacks_demo
        livepatch: enabling patch 'test_klp_callbacks_demo'
        livepatch: 'test_klp_callbacks_demo': initializing patching transition
        test_klp_callbacks_demo: pre_patch_callback: vmlinux
        test_klp_callbacks_demo: pre_patch_callback: test_klp_callbacks_busy -> [MODULE_STATE_LIVE] Normal state
        livepatch: 'test_klp_callbacks_demo': starting patching transition
        % modprobe test_klp_callbacks_mod
        livepatch: applying patch 'test_klp_callbacks_demo' to loading module 'test_klp_callbacks_mod'
        test_klp_callbacks_demo: pre_patch_callback: test_klp_callbacks_mod -> [MODULE_STATE_COMING] Full formed, running module_init
        test_klp_callbacks_mod: livepatch_callbacks_mod_init
        % rmmod test_klp_callbacks_mod
        test_klp_callbacks_mod: livepatch_callbacks_mod_exit
        livepatch: reverting patch 'test_klp_callbacks_demo' on unloading module 'test_klp_callbacks_mod'
        test_klp_callbacks_demo: post_unpatch_callback: test_klp_callbacks_mod -> [MODULE_STATE_GOING] Going away
        % echo 0 > /sys/kernel/livepatch/test_klp_callbacks_demo/enabled
        livepatch: 'test_klp_callbacks_demo': reversing transition from patching to unpatching
        livepatch: 'test_klp_callbacks_demo': starting unpatching transition
        livepatch: 'test_klp_callbacks_demo': completing unpatching transition
        test_klp_callbacks_demo: post_unpatch_callback: vmlinux
        test_klp_callbacks_demo: post_unpatch_callback: test_klp_callbacks_busy -> [MODULE_STATE_LIVE] Normal state
        livepatch: 'test_klp_callbacks_demo': unpatching complete
        % rmmod test_klp_callbacks_demo
        % rmmod test_klp_callbacks_busy
        test_klp_callbacks_busy: busymod_work_func exit
        test_klp_callbacks_busy: livepatch_callbacks_mod_exit",
    );
}

/// Two patches, on top of each other.
#[test]
fn test10_two_patches() {
    let mut m = Machine::new();
    m.load_patch(demo(), "");
    m.load_patch(demo2(), "");
    m.disable(LIVEPATCH2);
    m.disable(LIVEPATCH);
    m.unload_patch(LIVEPATCH2);
    m.unload_patch(LIVEPATCH);
    m.check(
        "% modprobe test_klp_callbacks_demo
        livepatch: enabling patch 'test_klp_callbacks_demo'
        livepatch: 'test_klp_callbacks_demo': initializing patching transition
        test_klp_callbacks_demo: pre_patch_callback: vmlinux
        livepatch: 'test_klp_callbacks_demo': starting patching transition
        livepatch: 'test_klp_callbacks_demo': completing patching transition
        test_klp_callbacks_demo: post_patch_callback: vmlinux
        livepatch: 'test_klp_callbacks_demo': patching complete
        % modprobe test_klp_callbacks_demo2
        livepatch: enabling patch 'test_klp_callbacks_demo2'
        livepatch: 'test_klp_callbacks_demo2': initializing patching transition
        test_klp_callbacks_demo2: pre_patch_callback: vmlinux
        livepatch: 'test_klp_callbacks_demo2': starting patching transition
        livepatch: 'test_klp_callbacks_demo2': completing patching transition
        test_klp_callbacks_demo2: post_patch_callback: vmlinux
        livepatch: 'test_klp_callbacks_demo2': patching complete
        % echo 0 > /sys/kernel/livepatch/test_klp_callbacks_demo2/enabled
        livepatch: 'test_klp_callbacks_demo2': initializing unpatching transition
        test_klp_callbacks_demo2: pre_unpatch_callback: vmlinux
        livepatch: 'test_klp_callbacks_demo2': starting unpatching transition
        livepatch: 'test_klp_callbacks_demo2': completing unpatching transition
        test_klp_callbacks_demo2: post_unpatch_callback: vmlinux
        livepatch: 'test_klp_callbacks_demo2': unpatching complete
        % echo 0 > /sys/kernel/livepatch/test_klp_callbacks_demo/enabled
        livepatch: 'test_klp_callbacks_demo': initializing unpatching transition
        test_klp_callbacks_demo: pre_unpatch_callback: vmlinux
        livepatch: 'test_klp_callbacks_demo': starting unpatching transition
        livepatch: 'test_klp_callbacks_demo': completing unpatching transition
        test_klp_callbacks_demo: post_unpatch_callback: vmlinux
        livepatch: 'test_klp_callbacks_demo': unpatching complete
        % rmmod test_klp_callbacks_demo2
        % rmmod test_klp_callbacks_demo",
    );
}

/// The second patch replaces the first: only its callbacks run, and all four of them do.
#[test]
fn test11_atomic_replace() {
    let mut m = Machine::new();
    m.load_patch(demo(), "");
    m.load_patch(replacing(demo2()), " replace=1");
    m.disable(LIVEPATCH2);
    m.unload_patch(LIVEPATCH2);
    m.unload_patch(LIVEPATCH);
    m.check(
        "% modprobe test_klp_callbacks_demo
        livepatch: enabling patch 'test_klp_callbacks_demo'
        livepatch: 'test_klp_callbacks_demo': initializing patching transition
        test_klp_callbacks_demo: pre_patch_callback: vmlinux
        livepatch: 'test_klp_callbacks_demo': starting patching transition
        livepatch: 'test_klp_callbacks_demo': completing patching transition
        test_klp_callbacks_demo: post_patch_callback: vmlinux
        livepatch: 'test_klp_callbacks_demo': patching complete
        % modprobe test_klp_callbacks_demo2 replace=1
        livepatch: enabling patch 'test_klp_callbacks_demo2'
        livepatch: 'test_klp_callbacks_demo2': initializing patching transition
        test_klp_callbacks_demo2: pre_patch_callback: vmlinux
        livepatch: 'test_klp_callbacks_demo2': starting patching transition
        livepatch: 'test_klp_callbacks_demo2': completing patching transition
        test_klp_callbacks_demo2: post_patch_callback: vmlinux
        livepatch: 'test_klp_callbacks_demo2': patching complete
        % echo 0 > /sys/kernel/livepatch/test_klp_callbacks_demo2/enabled
        livepatch: 'test_klp_callbacks_demo2': initializing unpatching transition
        test_klp_callbacks_demo2: pre_unpatch_callback: vmlinux
        livepatch: 'test_klp_callbacks_demo2': starting unpatching transition
        livepatch: 'test_klp_callbacks_demo2': completing unpatching transition
        test_klp_callbacks_demo2: post_unpatch_callback: vmlinux
        livepatch: 'test_klp_callbacks_demo2': unpatching complete
        % rmmod test_klp_callbacks_demo2
        % rmmod test_klp_callbacks_demo",
    );
}
