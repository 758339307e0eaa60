//! A patch in Rust that has a little of everything: functions, one of them static in the program, which it calls as well,
//! callbacks, a parameter, a shadow variable, a state.
//!
//! The program it is for is in `tests/scenarios/rust-patch.c` of the project.
#![no_std]
#![no_main]

use core::ffi::c_int;
use core::sync::atomic::{AtomicU64, Ordering};
use ugraft_patch::{Errno, Object, Param, Shadow, livepatch, pr_info, pr_warn};

livepatch! {
    version: "1.0",
    description: "prices are right, and orders are counted",
    license: "MIT OR Apache-2.0",
    states: { STATE => 1 },
    params: { "factor" => FACTOR },
    init: init,
    exit: exit,
    objects: {
        exe => {
            pre_patch: pre_patch,
            post_patch: post_patch,
            pre_unpatch: pre_unpatch,
            post_unpatch: post_unpatch,
            // SAFETY: both have the types that they have in the program, which does not unwind through them.
            unsafe funcs: { "price" => price, "discount", 1 => discount },
        },
    },
}

/// The number of the state "orders are counted", and of the counts.
const STATE: u64 = 0x7072_6963;

/// What a unit costs.
static FACTOR: Param<i32> = Param::new(10);

// SAFETY: nobody else uses this number.
static COUNTS: Shadow<AtomicU64> = unsafe { Shadow::new(STATE) };

/// An order of the program. Its layout cannot be changed any more.
#[repr(C)]
struct Order {
    pieces: c_int,
    customer: c_int,
}

unsafe extern "C" {
    /// Of the program, exported.
    static mut total: c_int;

    /// Of the program, static: the first symbol of that name.
    #[link_name = ".klp.sym.exe.rebate,1"]
    safe fn rebate(customer: c_int) -> c_int;
}

unsafe extern "C" fn price(order: *const Order) -> c_int {
    // SAFETY: the program passes an order that it has.
    let Order { pieces, customer } = *unsafe { &*order };
    if let Some(count) = COUNTS.get_or_alloc(order, AtomicU64::default) {
        let number = count.fetch_add(1, Ordering::Relaxed) + 1;
        pr_info!("order {number} of customer {customer}");
    }
    // Here it ends the program.
    assert!(pieces >= 0, "{pieces} pieces");
    let price = pieces * FACTOR.get() - rebate(customer);
    // SAFETY: the program has one thread that sells.
    unsafe { total += price };
    price
}

extern "C" fn discount(percent: c_int) -> c_int {
    percent.min(50)
}

fn init() -> Result<(), Errno> {
    pr_info!("init, factor {}", FACTOR.get());
    Ok(())
}

fn exit() {
    pr_info!("exit");
    // SAFETY: the patch is disabled, and no thread runs its code any more.
    unsafe { COUNTS.free_all() };
}

fn pre_patch(object: &Object) -> Result<(), Errno> {
    pr_info!("pre_patch of {:?}, {:?}", object.name(), object.state());
    if FACTOR.get() <= 0 {
        pr_warn!("a factor of {} makes no sense", FACTOR.get());
        return Err(Errno::EINVAL);
    }
    let before = object.previous_state(STATE).map(|state| state.version());
    let now = KLP_PATCH.state(STATE).map(|state| state.version());
    pr_info!("state before {before:?}, now {now:?}");
    Ok(())
}

fn post_patch(_object: &Object) {
    pr_info!("post_patch");
}

fn pre_unpatch(_object: &Object) {
    // A panic is to a callback what a crash is: ugraft tells of it, and the program goes on.
    assert!(FACTOR.get() > 0, "the factor has become {}", FACTOR.get());
    pr_info!("pre_unpatch");
}

fn post_unpatch(_object: &Object) {
    pr_info!("post_unpatch");
}
