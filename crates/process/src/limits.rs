//! The limits of this crate in one place.

use std::time::Duration;

/// How often the listing of a process's threads may show new ones before a stop of them all is given up. Each round
/// stops everything that was listed, so only a thread that was being born then can be new.
pub const STOP_ROUNDS: usize = 100;

/// First pause between two looks whether a thread has stopped; doubled after each look that saw nothing, up to
/// [`POLL_MAX`].
pub const POLL_MIN: Duration = Duration::from_micros(2);

/// Longest pause between two looks. What is waited for comes within microseconds where processors are free, and a look too late is
/// lost time for the threads that are stopped already.
pub const POLL_MAX: Duration = Duration::from_micros(100);

/// How long a thread that was killed may take to become reapable.
pub const DEATH_WAIT: Duration = Duration::from_secs(2);

/// How long a stop that failed waits for the threads it asked to stop, to let them go.
pub const GRACE: Duration = Duration::from_millis(20);

/// How long code that a thread runs for us may take before the thread is given up.
pub const PROGRAM_WAIT: Duration = Duration::from_secs(5);

/// How long a thread that has run code for us waits to be caught, before it restores itself. Short, since it is lost time
/// for the thread if the tool was killed; longer than the tool can be kept from its processor.
pub const CATCH_WAIT: Duration = Duration::from_millis(100);

/// Most system calls in one remote program.
pub const PROGRAM_CALLS: usize = 512;

/// Free stack a thread must have below its red zone to run a program, in bytes.
pub const STACK_ROOM: u64 = 16 * 1024;
