//! The judge of the log: what a thread may have met, given what was done.
//!
//! The configurations that were ever in effect, or may have been, are numbered in their order. A configuration says which
//! version each group runs. Each round must fit: one version per group; each group's version that of some configuration that may have been in
//! effect during the round; and the configurations met by one thread never go back. A reverse is no going back: it is a
//! configuration of its own, equal to an earlier one.
//!
//! Taking the earliest configuration that fits, each time, finds a fit if there is one: it leaves the most room for all that
//! comes after.

use super::shared::{GROUPS, Record};

/// Which version of each group runs; 0 is the original.
pub type Config = [u8; GROUPS];

/// What is wrong with a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// One call met several versions of a group, or none.
    Mix {
        /// Which group.
        group: usize,
    },
    /// The version met is none that may have run then, or one that the thread had left for good.
    Stray {
        /// Which group.
        group: usize,
        /// The earliest configuration that was still open to the thread.
        from: u32,
    },
}

/// What one lane has met so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lane {
    generation: u32,
    /// The earliest configuration that the writer can be in.
    floor: u32,
}

impl Lane {
    /// Judges the next record of the lane. `configs` are known at least up to the record's `hi`.
    pub fn judge(&mut self, record: &Record, configs: &[Config]) -> Result<(), Fault> {
        if self.generation != record.generation {
            *self = Lane { generation: record.generation, floor: 0 };
        }
        self.floor = self.floor.max(record.lo);
        // Rounds that repeat must fit after each other. Once a round does not move the floor, no further one will.
        for _ in 0..record.count {
            let before = self.floor;
            for group in 0..GROUPS {
                let mask = record.mask[group];
                if mask.count_ones() != 1 {
                    return Err(Fault::Mix { group });
                }
                let fits =
                    |k: &u32| configs.get(*k as usize).is_some_and(|c| 1 << c[group] == u32::from(mask));
                let from = self.floor;
                self.floor = (from..=record.hi).find(fits).ok_or(Fault::Stray { group, from })?;
            }
            if self.floor == before {
                break;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(lo: u32, hi: u32, versions: Config, count: u32) -> Record {
        Record { lo, hi, generation: 1, count, mask: versions.map(|v| 1 << v), ..Record::default() }
    }

    const CONFIGS: [Config; 4] = [[0, 0], [1, 1], [0, 0], [2, 0]];

    fn judge(records: &[Record]) -> Result<(), Fault> {
        let mut lane = Lane::default();
        records.iter().try_for_each(|r| lane.judge(r, &CONFIGS))
    }

    #[test]
    fn a_thread_may_follow_the_configurations() {
        assert_eq!(
            judge(&[record(0, 1, [0, 0], 9), record(0, 1, [0, 1], 1), record(0, 1, [1, 1], 5)]),
            Ok(())
        );
        // Reversed, and on to the next.
        assert_eq!(
            judge(&[record(0, 2, [1, 1], 1), record(0, 2, [0, 0], 1), record(2, 3, [2, 0], 2)]),
            Ok(())
        );
    }

    #[test]
    fn a_call_may_not_meet_two_versions() {
        let mixed = Record { mask: [3, 1], ..record(0, 1, [0, 0], 1) };
        assert_eq!(judge(&[mixed]), Err(Fault::Mix { group: 0 }));
        let none = Record { mask: [1, 0], ..record(0, 1, [0, 0], 1) };
        assert_eq!(judge(&[none]), Err(Fault::Mix { group: 1 }));
    }

    #[test]
    fn a_thread_may_not_go_back() {
        let back = [record(0, 1, [1, 1], 1), record(0, 1, [0, 0], 1)];
        assert_eq!(judge(&back), Err(Fault::Stray { group: 0, from: 1 }));
        // Two groups of one patch go over together: one cannot follow the other twice.
        assert_eq!(judge(&[record(0, 1, [0, 1], 1)]), Ok(()));
        assert_eq!(judge(&[record(0, 1, [0, 1], 2)]), Err(Fault::Stray { group: 0, from: 1 }));
        assert_eq!(judge(&[record(0, 1, [1, 0], 1)]), Err(Fault::Stray { group: 1, from: 1 }));
        // Another thread in the same lane begins anew.
        let mut other = record(0, 1, [0, 0], 1);
        other.generation = 2;
        assert_eq!(judge(&[record(0, 1, [1, 1], 1), other]), Ok(()));
    }

    #[test]
    fn what_is_complete_is_for_all() {
        assert_eq!(judge(&[record(1, 1, [0, 0], 1)]), Err(Fault::Stray { group: 0, from: 1 }));
        assert_eq!(judge(&[record(0, 0, [1, 1], 1)]), Err(Fault::Stray { group: 0, from: 0 }));
        assert_eq!(judge(&[record(0, 9, [5, 5], 1)]), Err(Fault::Stray { group: 0, from: 0 }));
    }
}
