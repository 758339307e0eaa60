//! Finding free addresses near code.

use crate::RemoteAddr;
use crate::target::maps::{Mapping, Maps};
use std::ops::Range;

/// How far a 32-bit displacement reaches, less a page for the instruction itself and what it addresses behind its end.
pub const REACH: u64 = (1 << 31) - PAGE;

const PAGE: u64 = 4096;
/// Room kept between a new mapping and its neighbours, if there is enough.
pub const GUARD: u64 = 64 * 1024;
/// Room left for the heap to grow where nothing else will do.
const HEAP_RESERVE: u64 = 1 << 30;
/// Room left for the first thread's stack to grow.
const STACK_RESERVE: u64 = 256 << 20;
/// One past the last address of user space with 4-level page tables.
const USER_END: u64 = 0x7fff_ffff_f000;
/// Lowest address to use where the kernel's own limit cannot be read.
const LOWEST: u64 = 64 * 1024;

/// What else a place must satisfy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Constraints {
    /// Lowest address that may be mapped.
    pub lowest: RemoteAddr,
    /// The whole must lie below 2 GiB, for code with absolute 32-bit addresses.
    pub below_2g: bool,
    /// Where the heap begins ([`Target::start_brk`](crate::Target::start_brk)).
    pub start_brk: RemoteAddr,
    /// Room to keep between a new mapping and its neighbours, where there is enough.
    pub apart: u64,
}

impl Constraints {
    /// Those of a target on this machine: above `vm.mmap_min_addr`, and out of the way of the heap.
    #[must_use]
    pub fn of(target: &crate::Target) -> Self {
        let text = std::fs::read_to_string("/proc/sys/vm/mmap_min_addr").unwrap_or_default();
        let lowest = text.trim().parse().unwrap_or(LOWEST).max(LOWEST);
        Self { lowest: RemoteAddr(lowest), below_2g: false, start_brk: target.start_brk(), apart: GUARD }
    }
}

/// A free, page-aligned address where `len` bytes can be mapped so that every byte of them and every byte of `near` are
/// within [`REACH`] of each other; as close to `near` as possible. `None` if there is no such place.
///
/// The place is never where the heap or the first thread's stack will grow, unless that leaves them
/// enough, and keeps some distance from its neighbours where it can.
#[must_use]
pub fn place(
    maps: &Maps,
    len: u64,
    near: Range<RemoteAddr>,
    constraints: &Constraints,
) -> Option<RemoteAddr> {
    let len = len.checked_next_multiple_of(PAGE)?.max(PAGE);
    let top = if constraints.below_2g { 1 << 31 } else { USER_END };
    // The window's own bounds are not page-aligned as `near` is not.
    let low = near.end.0.saturating_sub(REACH).max(constraints.lowest.0).next_multiple_of(PAGE);
    let high = near.start.0.saturating_add(REACH).min(top) / PAGE * PAGE;
    let bounds = RemoteAddr(0)..RemoteAddr(USER_END);
    [constraints.apart, GUARD, PAGE].into_iter().find_map(|guard| {
        let best = maps
            .gaps(bounds.clone())
            .filter_map(|gap| {
                let (below, above) = growth(maps, &gap, constraints.start_brk);
                let start = (gap.start.0 + below.max(guard)).max(low);
                let end = gap.end.0.checked_sub(above.max(guard))?.min(high);
                (start.checked_add(len)? <= end).then(|| nearest(start, end - len, len, &near))
            })
            .min_by_key(|&addr| distance(addr, len, &near))?;
        Some(RemoteAddr(best))
    })
}

/// The address in `first..=last`, page aligned, that is nearest to `near`.
fn nearest(first: u64, last: u64, len: u64, near: &Range<RemoteAddr>) -> u64 {
    if first >= near.end.0 {
        first
    } else if last + len <= near.start.0 {
        last
    } else {
        // The gap overlaps `near`, which then is not mapped: anywhere in it.
        (near.start.0 / PAGE * PAGE).clamp(first, last)
    }
}

/// How far apart the furthest bytes are.
fn distance(addr: u64, len: u64, near: &Range<RemoteAddr>) -> u64 {
    (addr + len).max(near.end.0) - addr.min(near.start.0)
}

/// What must stay free at the lower and at the upper end of a gap.
fn growth(maps: &Maps, gap: &Range<RemoteAddr>, start_brk: RemoteAddr) -> (u64, u64) {
    let neighbour = |at: fn(&Mapping) -> RemoteAddr, addr| maps.iter().find(|m| at(m) == addr);
    let heap_below = neighbour(|m| m.end, gap.start).is_some_and(|m| m.name == "[heap]");
    // With no heap yet, it will begin inside this gap.
    let heap_inside = gap.contains(&start_brk) || start_brk == gap.start;
    let below = match (heap_below, heap_inside) {
        (true, _) => HEAP_RESERVE,
        (_, true) => start_brk.0 - gap.start.0 + HEAP_RESERVE,
        _ => 0,
    };
    let stack_above = neighbour(|m| m.start, gap.end).is_some_and(|m| m.name == "[stack]");
    (below, if stack_above { STACK_RESERVE } else { 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PIE: &str = "\
555555554000-555555558000 r-xp 00000000 fe:00 1 /bin/x
555555580000-5555555a0000 rw-p 00000000 00:00 0 [heap]
7ffff7c00000-7ffff7d00000 r-xp 00000000 fe:00 2 /lib/libc.so.6
7ffff7d10000-7ffff7d20000 r-xp 00000000 fe:00 3 /lib/ld.so
7ffffffde000-7ffffffff000 rw-p 00000000 00:00 0 [stack]
";

    fn at(maps: &str, len: u64, near: Range<u64>, brk: u64, below_2g: bool) -> Option<u64> {
        let maps = Maps::parse(maps).unwrap();
        let constraints =
            Constraints { lowest: RemoteAddr(LOWEST), below_2g, start_brk: RemoteAddr(brk), apart: GUARD };
        let near = RemoteAddr(near.start)..RemoteAddr(near.end);
        let addr = place(&maps, len, near.clone(), &constraints)?;
        assert_eq!(addr.0 % PAGE, 0);
        assert!(distance(addr.0, len, &near) <= 1 << 31);
        assert!((addr.0..addr.0 + len).step_by(PAGE as usize).all(|a| maps.find(RemoteAddr(a)).is_none()));
        Some(addr.0)
    }

    #[test]
    fn near_a_pie_it_is_below_and_never_above_the_heap() {
        let exe = 0x5555_5555_4000..0x5555_5555_8000;
        assert_eq!(
            at(PIE, 0x3000, exe.clone(), 0x5555_5558_0000, false),
            Some(0x5555_5555_4000 - GUARD - 0x3000)
        );
        // Without a heap yet.
        let no_heap: String = PIE.lines().filter(|l| !l.contains("heap")).flat_map(|l| [l, "\n"]).collect();
        assert_eq!(
            at(&no_heap, 0x3000, exe, 0x5555_5558_0000, false),
            Some(0x5555_5555_4000 - GUARD - 0x3000)
        );
    }

    #[test]
    fn a_fixed_executable_has_room_below_or_far_above_the_heap() {
        let maps = "00400000-00500000 r-xp 00000000 fe:00 1 /bin/x\n00600000-00700000 rw-p 00000000 00:00 0 [heap]\n";
        let exe = 0x40_0000..0x50_0000;
        assert_eq!(at(maps, 0x1000, exe.clone(), 0x60_0000, true), Some(0x40_0000 - GUARD - 0x1000));
        let big = at(maps, 0x100_0000, exe, 0x60_0000, true).unwrap();
        assert!(big >= 0x70_0000 + HEAP_RESERVE);
    }

    #[test]
    fn near_a_library_it_keeps_away_from_the_stack() {
        let lib = 0x7fff_f7d1_0000..0x7fff_f7d2_0000;
        // The gap between the libraries is too narrow for the usual distance, and the stack is above.
        let addr = at(PIE, 0x1000, lib.clone(), 0x5555_5558_0000, false).unwrap();
        assert_eq!(addr, 0x7fff_f7c0_0000 - GUARD - 0x1000);
        let far =
            PIE.replace("7ffffffde000-7ffffffff000", "7ffffffde000-7ffffffdf000").replace("7ffff7", "7fffd7");
        let lib = 0x7fff_d7d1_0000..0x7fff_d7d2_0000;
        assert_eq!(at(&far, 0x1000, lib, 0x5555_5558_0000, false).unwrap(), 0x7fff_d7d2_0000 + GUARD);
    }

    #[test]
    fn no_place_is_none() {
        let full = "00010000-7ffffffff000 r-xp 00000000 fe:00 1 /bin/x\n";
        assert_eq!(at(full, 0x1000, 0x40_0000..0x50_0000, 0, false), None);
        assert_eq!(at(PIE, 3 << 30, 0x5555_5555_4000..0x5555_5555_8000, 0, false), None);
        assert_eq!(at(PIE, u64::MAX, 0x5555_5555_4000..0x5555_5555_8000, 0, false), None);
    }
}
