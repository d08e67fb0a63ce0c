//! Sets of offsets, kept as ranges that neither touch nor overlap.

use std::collections::BTreeMap;
use std::ops::Range;

/// A set of `u64` offsets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct RangeSet(BTreeMap<u64, u64>);

impl RangeSet {
    /// Adds a range, merged with its neighbours.
    pub(super) fn insert(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let (mut start, mut end) = (range.start, range.end);
        while let Some((&from, &to)) = self.0.range(..=end).next_back() {
            if to < start {
                break;
            }
            self.0.remove(&from);
            start = start.min(from);
            end = end.max(to);
        }
        self.0.insert(start, end);
    }

    /// Takes a range out, splitting what it cuts.
    pub(super) fn remove(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        while let Some((&from, &to)) = self.0.range(..range.end).next_back() {
            if to <= range.start {
                break;
            }
            self.0.remove(&from);
            if to > range.end {
                self.0.insert(range.end, to);
            }
            if from < range.start {
                self.0.insert(from, range.start);
            }
        }
    }

    /// Whether the whole range is in the set.
    pub(super) fn contains(&self, range: &Range<u64>) -> bool {
        range.is_empty() || self.0.range(..=range.start).next_back().is_some_and(|(_, &to)| to >= range.end)
    }

    /// The lowest range.
    pub(super) fn first(&self) -> Option<Range<u64>> {
        self.0.first_key_value().map(|(&from, &to)| from..to)
    }

    /// Whether nothing is in it.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The ranges, lowest first.
    pub(super) fn iter(&self) -> impl DoubleEndedIterator<Item = Range<u64>> + '_ {
        self.0.iter().map(|(&from, &to)| from..to)
    }

    /// What of a range is not in the set.
    pub(super) fn gaps(&self, range: Range<u64>) -> Vec<Range<u64>> {
        let mut gaps = Self::default();
        gaps.insert(range.clone());
        let start = self.0.range(..=range.start).next_back().map_or(range.start, |(&from, _)| from);
        for (&from, &to) in self.0.range(start..range.end) {
            gaps.remove(from..to);
        }
        gaps.iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_the_set_that_it_stands_for(steps in prop::collection::vec((any::<bool>(), 0u64..60, 0u64..12), 0..60), probe in (0u64..70, 0u64..20)) {
            let mut ranges = RangeSet::default();
            let mut plain = BTreeSet::new();
            for (add, from, len) in steps {
                if add {
                    ranges.insert(from..from + len);
                    plain.extend(from..from + len);
                } else {
                    ranges.remove(from..from + len);
                    (from..from + len).for_each(|offset| { plain.remove(&offset); });
                }
                let flat: Vec<_> = ranges.iter().flatten().collect();
                prop_assert_eq!(flat, plain.iter().copied().collect::<Vec<_>>());
                let list: Vec<_> = ranges.iter().collect();
                prop_assert!(list.windows(2).all(|pair| pair[0].end < pair[1].start));
            }
            let probe = probe.0..probe.0 + probe.1;
            prop_assert_eq!(ranges.contains(&probe), probe.clone().all(|offset| plain.contains(&offset)));
            let gaps: Vec<_> = ranges.gaps(probe.clone()).into_iter().flatten().collect();
            prop_assert_eq!(gaps, probe.filter(|offset| !plain.contains(offset)).collect::<Vec<_>>());
        }
    }
}
