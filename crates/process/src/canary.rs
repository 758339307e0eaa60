//! Seeded faults: each breaks one thing on which consistency rests, and the tests must catch each (`cargo xtask canaries`).
//!
//! They are compiled in by the feature `canaries` only, and then `UGRAFT_CANARY` names the one that is switched on. In ordinary
//! builds `canary!` is the constant `false`, and nothing of this is left. docs/canaries.md has the list.

/// Whether the seeded fault of this name is switched on.
macro_rules! canary {
    ($name:literal) => {
        $crate::canary::is_on($name)
    };
}
pub(crate) use canary;

/// Whether the seeded fault is switched on.
#[cfg(feature = "canaries")]
pub(crate) fn is_on(name: &str) -> bool {
    static CHOSEN: std::sync::LazyLock<Option<String>> =
        std::sync::LazyLock::new(|| std::env::var("UGRAFT_CANARY").ok());
    CHOSEN.as_deref() == Some(name)
}

/// No fault is built in.
#[cfg(not(feature = "canaries"))]
#[inline(always)]
pub(crate) const fn is_on(_: &str) -> bool {
    false
}
