//! Moments as what lies in targets states them: nanoseconds since 1970-01-01 UTC.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The time since 1970-01-01 UTC.
pub(crate) fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// How long ago a moment was.
pub(crate) fn age(at_ns: u64) -> Duration {
    now().saturating_sub(Duration::from_nanos(at_ns))
}
