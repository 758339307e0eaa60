//! The addresses whose presence on a stack is asked for.
//!
//! Two questions are put to a watch, and they are not the same. A *program counter* names an instruction that
//! will be executed next; a *word* found in memory may be a return address, which names the instruction behind a
//! call, and so may lie one past the end of a function whose last instruction is a call that never returns. It may
//! also be the saved program counter of a signal frame. Which end points count depends on the part; see [`Part`].

use crate::RemoteAddr;

/// Which part of a function, or of what is put in its place, a range covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Part {
    /// The function's own code, whose first instruction is or becomes a redirect. A program counter at the very
    /// start has not entered the function: it will run the redirect. Nor is a word equal to the start an activation
    /// (function pointers are common on stacks). A word one past the end is.
    Code,
    /// Code of the function that the compiler moved elsewhere (`.cold`, `.part`), entered by jump or call.
    Cold,
    /// The relocated first instructions of an original function.
    Thunk,
    /// A stub, or a trampoline of a redirect.
    Stub,
    /// The bytes that a redirect overwrites: nothing may resume strictly between the first and the end.
    EntryBytes,
    /// Code of a patch image: one function of it, or the whole text segment.
    Image,
    /// The loader's code that binds a call at its first use: who is in it may be on the way from one watched function to
    /// another. It counts where an activation of it is found, but what cannot be decided about it does not.
    Resolver,
    /// The address of code that a thread may have read and be about to call: each word that is in the range counts, wherever it is.
    Pointer,
}

impl Part {
    /// Whether a program counter, or a saved one, at the first byte counts.
    fn counts_start(self) -> bool {
        !matches!(self, Part::Code | Part::EntryBytes)
    }

    /// Whether a return address one past the last byte counts.
    fn counts_end(self) -> bool {
        !matches!(self, Part::EntryBytes | Part::Resolver | Part::Pointer)
    }

    /// How messages name it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Part::Code => "code",
            Part::Cold => "cold part",
            Part::Thunk => "thunk",
            Part::Stub => "stub",
            Part::EntryBytes => "entry bytes",
            Part::Image => "patch image",
            Part::Resolver => "loader",
            Part::Pointer => "pointer",
        }
    }
}

/// One range of addresses to look for, and whose it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchRange {
    /// First byte.
    pub start: RemoteAddr,
    /// One past the last byte.
    pub end: RemoteAddr,
    /// What lies there.
    pub part: Part,
    /// The function it belongs to, as messages name it.
    pub function: String,
    /// The caller's own number for it; not looked at here.
    pub key: u64,
}

/// Ranges of the watch closer together than this share one span of the prefilter.
const SPAN_GAP: u64 = 1 << 20;

/// A set of address ranges, made for the question "is one of these words in it" about many words.
#[derive(Clone, Debug, Default)]
pub struct Watch {
    /// By start; they may overlap.
    ranges: Vec<WatchRange>,
    /// `reach[i]` is the greatest end of `ranges[..=i]`, where a search backwards may stop.
    reach: Vec<u64>,
    /// Groups of neighbouring ranges as (least start, greatest end minus that): the prefilter.
    spans: Vec<(u64, u64)>,
}

impl Watch {
    /// Makes a watch of `ranges`, in any order; empty ranges are dropped.
    #[must_use]
    pub fn new(mut ranges: Vec<WatchRange>) -> Self {
        ranges.retain(|r| r.start < r.end);
        ranges.sort_by_key(|r| (r.start, r.end));
        let mut reach = Vec::with_capacity(ranges.len());
        let mut spans: Vec<(u64, u64)> = Vec::new();
        let mut far = 0u64;
        for r in &ranges {
            match spans.last_mut() {
                Some((lo, len)) if r.start.0 <= far.saturating_add(SPAN_GAP) => {
                    *len = (*len).max(r.end.0 - *lo);
                }
                _ => spans.push((r.start.0, r.end.0 - r.start.0)),
            }
            far = far.max(r.end.0);
            reach.push(far);
        }
        Self { ranges, reach, spans }
    }

    /// Whether there is nothing to look for.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// The ranges, by start.
    #[must_use]
    pub fn ranges(&self) -> &[WatchRange] {
        &self.ranges
    }

    /// Whether `word` may be in a range; a false "yes" is possible, a false "no" is not.
    #[inline]
    #[must_use]
    pub fn may_contain(&self, word: u64) -> bool {
        self.spans.iter().any(|&(lo, len)| word.wrapping_sub(lo) <= len)
    }

    /// The range that an instruction about to run at `pc` belongs to.
    #[must_use]
    pub fn pc(&self, pc: u64) -> Option<&WatchRange> {
        self.find(pc, |r| (r.start.0 < pc || r.part.counts_start()) && pc < r.end.0)
    }

    /// The range that `word`, found in memory or a register, may be a return address or a saved program counter of.
    #[must_use]
    pub fn word(&self, word: u64) -> Option<&WatchRange> {
        if !self.may_contain(word) {
            return None;
        }
        self.find(word, |r| {
            (r.start.0 < word || r.part.counts_start()) && (word < r.end.0 || r.part.counts_end())
        })
    }

    /// The range that the return address `ra` of a frame returns into.
    #[must_use]
    pub fn return_address(&self, ra: u64) -> Option<&WatchRange> {
        self.find(ra, |r| r.start.0 < ra && (ra < r.end.0 || r.part.counts_end()))
    }

    /// Of the ranges that hold `addr` or end at it, one that `fits`; the one that starts last if there are several.
    fn find(&self, addr: u64, fits: impl Fn(&WatchRange) -> bool) -> Option<&WatchRange> {
        let n = self.ranges.partition_point(|r| r.start.0 <= addr);
        (0..n)
            .rev()
            .take_while(|&i| self.reach[i] >= addr)
            .map(|i| &self.ranges[i])
            .find(|r| addr <= r.end.0 && fits(r))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn range(start: u64, end: u64, part: Part) -> WatchRange {
        WatchRange {
            start: RemoteAddr(start),
            end: RemoteAddr(end),
            part,
            function: "f".to_owned(),
            key: start,
        }
    }

    #[test]
    fn the_start_of_redirected_code_is_not_inside_it_but_one_past_its_end_may_be_returned_to() {
        let watch = Watch::new(vec![range(0x1000, 0x1100, Part::Code)]);
        assert!(watch.pc(0x1000).is_none());
        assert!(watch.pc(0x1001).is_some());
        assert!(watch.pc(0x1100).is_none());
        assert!(watch.word(0x1000).is_none());
        assert!(watch.word(0x1001).is_some());
        assert!(watch.word(0x1100).is_some());
        assert!(watch.word(0x1101).is_none());
        assert!(watch.return_address(0x1100).is_some());
    }

    #[test]
    fn the_start_of_other_parts_is_inside_them() {
        for part in [Part::Cold, Part::Thunk, Part::Stub, Part::Image] {
            let watch = Watch::new(vec![range(0x1000, 0x1100, part)]);
            assert!(watch.pc(0x1000).is_some());
            assert!(watch.word(0x1000).is_some());
            assert!(watch.return_address(0x1000).is_none());
        }
    }

    #[test]
    fn entry_bytes_are_safe_at_both_ends() {
        let watch = Watch::new(vec![range(0x1000, 0x1005, Part::EntryBytes)]);
        let inside: Vec<u64> = (0xff0..0x1010).filter(|&a| watch.pc(a).is_some()).collect();
        assert_eq!(inside, [0x1001, 0x1002, 0x1003, 0x1004]);
        let inside: Vec<u64> = (0xff0..0x1010).filter(|&a| watch.word(a).is_some()).collect();
        assert_eq!(inside, [0x1001, 0x1002, 0x1003, 0x1004]);
    }

    fn part() -> impl Strategy<Value = Part> {
        prop_oneof![
            Just(Part::Code),
            Just(Part::Cold),
            Just(Part::Thunk),
            Just(Part::Stub),
            Just(Part::EntryBytes),
            Just(Part::Image)
        ]
    }

    proptest! {
        #[test]
        fn finds_what_a_look_at_every_range_finds(
            ranges in prop::collection::vec((0u64..400, 0u64..60, part(), any::<bool>()), 0..12),
            far in prop_oneof![Just(0u64), Just(1 << 40)],
        ) {
            let ranges: Vec<_> = ranges
                .into_iter()
                .map(|(s, len, part, up)| { let b = if up { far } else { 0 }; range(b + s, b + s + len, part) })
                .collect();
            let watch = Watch::new(ranges.clone());
            for addr in (0..480).chain(far..far + 480) {
                let live = || ranges.iter().filter(|r| r.start < r.end);
                let pc = live().any(|r| {
                    addr < r.end.0 && (addr > r.start.0 || (addr == r.start.0 && r.part.counts_start()))
                });
                let word = live().any(|r| {
                    addr >= r.start.0
                        && addr <= r.end.0
                        && (addr != r.start.0 || r.part.counts_start())
                        && (addr != r.end.0 || r.part.counts_end())
                });
                prop_assert_eq!(watch.pc(addr).is_some(), pc);
                prop_assert_eq!(watch.word(addr).is_some(), word);
            }
        }
    }
}
