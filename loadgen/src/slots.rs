//! A run's time in equal slots: so many at most, however long the run; each two become one when it outgrows them.

use std::{slice, time::Duration};

/// Slots that a run's timelines are cut into at the most; those of a longer one are longer.
pub(crate) const MAX_SLOTS: usize = 256;

/// What is kept of a stretch of time.
pub(crate) trait AddUp: Clone + Default {
    /// Adds what is kept of another stretch.
    fn add_up(&mut self, other: Self);
}

/// At most `MAX` slots, the first from the run's start; those past the last one are empty.
#[derive(Clone, Debug, Default)]
pub(crate) struct Slots<T, const MAX: usize> {
    /// Zero before [`begin`](Self::begin).
    width: Duration,
    slots: Vec<T>,
}

impl<T: AddUp, const MAX: usize> Slots<T, MAX> {
    /// Slots are so long at first, unless that is decided already.
    pub(crate) fn begin(&mut self, width: Duration) {
        if self.width.is_zero() {
            self.width = width.max(Duration::from_nanos(1));
        }
    }

    /// How long each is.
    pub(crate) fn width(&self) -> Duration {
        self.width
    }

    /// The slot of a moment, made if it is not there yet.
    pub(crate) fn at(&mut self, at: Duration) -> &mut T {
        let index = loop {
            // By 64 bits, 584 years: dividing 128 takes several times as long.
            let index = (at.as_nanos() as u64 / self.width.as_nanos() as u64) as usize;
            if index < MAX {
                break index;
            }
            self.coarsen();
        };
        if self.slots.len() <= index {
            self.slots.resize_with(index + 1, T::default);
        }
        &mut self.slots[index]
    }

    /// Makes slots of `width`, which is the present one doubled more or less often.
    pub(crate) fn widen(&mut self, width: Duration) {
        while !self.width.is_zero() && self.width < width {
            self.coarsen();
        }
    }

    /// Makes one slot of each two.
    fn coarsen(&mut self) {
        self.width *= 2;
        let mut slots = std::mem::take(&mut self.slots).into_iter();
        while let Some(mut slot) = slots.next() {
            if let Some(later) = slots.next() {
                slot.add_up(later);
            }
            self.slots.push(slot);
        }
    }

    /// Adds slots that began with the same width.
    pub(crate) fn merge(&mut self, mut other: Self) {
        if self.width.is_zero() {
            *self = other;
            return;
        }
        other.widen(self.width);
        self.widen(other.width);
        if self.slots.len() < other.slots.len() {
            self.slots.resize_with(other.slots.len(), T::default);
        }
        self.slots.iter_mut().zip(other.slots).for_each(|(mine, theirs)| mine.add_up(theirs));
    }

    /// In order.
    pub(crate) fn iter(&self) -> slice::Iter<'_, T> {
        self.slots.iter()
    }

    pub(crate) fn iter_mut(&mut self) -> slice::IterMut<'_, T> {
        self.slots.iter_mut()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    impl AddUp for u64 {
        fn add_up(&mut self, other: Self) {
            *self += other;
        }
    }

    const WIDTH: Duration = Duration::from_millis(1);

    fn slots(moments: &[u64]) -> Slots<u64, 8> {
        let mut slots = Slots::default();
        slots.begin(WIDTH);
        moments.iter().for_each(|at| *slots.at(Duration::from_micros(*at)) += 1);
        slots
    }

    proptest! {
        /// However much a run outgrows its slots, each moment is in the one that it lies in.
        #[test]
        fn slots_are_few_and_hold_what_lies_in_them(moments in prop::collection::vec(0..100_000_u64, 1..50)) {
            let slots = slots(&moments);
            let width = slots.width().as_micros() as u64;
            let last = moments.iter().max().expect("there are some") / width;
            let expected: Vec<u64> = (0..=last)
                .map(|slot| moments.iter().filter(|at| **at / width == slot).count() as u64)
                .collect();
            prop_assert_eq!(slots.iter().copied().collect::<Vec<_>>(), expected);
            prop_assert!(last < 8 && (width == 1_000 || last >= 4));
        }

        /// Whichever of the two has the longer slots, and if one has none.
        #[test]
        fn merging_is_adding(
            first in prop::collection::vec(0..100_000_u64, 0..20),
            second in prop::collection::vec(0..10_000_u64, 0..20),
        ) {
            let both = slots(&[first.clone(), second.clone()].concat());
            for (mut one, other) in [(slots(&first), slots(&second)), (slots(&second), slots(&first))] {
                one.merge(other);
                prop_assert_eq!(one.width(), both.width());
                prop_assert!(one.iter().eq(both.iter()));
            }
            let mut none = Slots::<u64, 8>::default();
            none.merge(slots(&first));
            prop_assert!(none.iter().eq(slots(&first).iter()));
            none.merge(Slots::default());
            prop_assert!(none.iter().eq(slots(&first).iter()));
        }
    }
}
