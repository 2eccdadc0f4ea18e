//! A place for each thread, so that threads record without sharing a cache line.
//!
//! A thread claims a slot when it first records and gives it back when it ends. While it holds one it
//! is the only writer of that slot's shards ([`Writer::Only`]); the claim's lock orders the last write
//! of one owner before the first of the next. Threads beyond [`EXCLUSIVE`] share the last slot.

use std::{array, cell::Cell};

use crate::{
    histogram::Writer,
    sync::{self, Mutex, MutexGuard, OnceLock, PoisonError},
};

/// Slots with a single writer. More threads than this seldom answer requests; in a model, more than two.
const EXCLUSIVE: usize = if cfg!(parallax_loom) { 2 } else { 63 };
/// All slots, with the shared one at the end.
pub(crate) const SLOTS: usize = EXCLUSIVE + 1;

sync::statics! {
    /// Bit `i` is set while slot `i` has an owner. Process-wide because threads are; it configures nothing.
    static TAKEN: Mutex<u64> = Mutex::new(1 << EXCLUSIVE);
}

fn taken() -> MutexGuard<'static, u64> {
    TAKEN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A thread's place among the slots. Only the shared one has several writers.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Slot(u8);

impl Slot {
    const SHARED: Self = Self(EXCLUSIVE as u8);
    const UNCLAIMED: Self = Self(u8::MAX);

    /// The calling thread's slot. Takes a lock on the thread's first call only.
    #[inline]
    pub(crate) fn current() -> Self {
        match CURRENT.with(Cell::get) {
            Self::UNCLAIMED => Self::claim(),
            slot => slot,
        }
    }

    /// Its position, below [`SLOTS`].
    #[inline]
    pub(crate) fn index(self) -> usize {
        usize::from(self.0) % SLOTS
    }

    /// How its thread writes to its shards.
    #[inline]
    pub(crate) fn writer(self) -> Writer {
        if self == Self::SHARED { Writer::Shared } else { Writer::Only }
    }

    #[cold]
    fn claim() -> Self {
        // While the thread's locals are being torn down there is no claim to be had: share.
        CLAIM.try_with(|claim| claim.0).unwrap_or(Self::SHARED)
    }
}

/// Gives a slot back when its thread ends.
struct Claim(Slot);

sync::locals! {
    /// Without a destructor, so that reading it is one load.
    static CURRENT: Cell<Slot> = const { Cell::new(Slot::UNCLAIMED) };
    static CLAIM: Claim = Claim::new();
}

impl Claim {
    fn new() -> Self {
        let mut taken = taken();
        let index = taken.trailing_ones() as usize;
        let slot = if index < EXCLUSIVE {
            *taken |= 1 << index;
            Slot(index as u8)
        } else {
            Slot::SHARED
        };
        CURRENT.with(|current| current.set(slot));
        Self(slot)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // What other locals of this thread still record while they are torn down goes to the shared slot.
        let _ = CURRENT.try_with(|current| current.set(Slot::SHARED));
        if self.0 != Slot::SHARED {
            *taken() &= !(1 << self.0.index());
        }
    }
}

/// Something of each thread's own, that all can read: each made when its slot first asks for it.
pub(crate) struct PerSlot<T> {
    places: Box<[OnceLock<Box<T>>; SLOTS]>,
}

impl<T> PerSlot<T> {
    pub(crate) fn new() -> Self {
        Self { places: Box::new(array::from_fn(|_| OnceLock::new())) }
    }

    /// The calling thread's, and how it may write to it.
    #[inline]
    pub(crate) fn here(&self, make: impl FnOnce() -> T) -> (&T, Writer) {
        let slot = Slot::current();
        let place = &self.places[slot.index()];
        let value = place.get().map_or_else(|| fill(place, make), Box::as_ref);
        (value, slot.writer())
    }

    /// Those that are there.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> + Clone {
        self.places.iter().filter_map(OnceLock::get).map(Box::as_ref)
    }
}

#[cold]
#[inline(never)]
fn fill<T>(place: &OnceLock<Box<T>>, make: impl FnOnce() -> T) -> &T {
    place.get_or_init(|| Box::new(make()))
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, sync::Barrier, thread};

    use super::*;

    #[test]
    fn threads_that_live_at_once_never_share_an_exclusive_slot() {
        let threads = 2 * SLOTS;
        let barrier = Barrier::new(threads);
        let slots: Vec<Slot> = thread::scope(|scope| {
            let handles: Vec<_> = (0..threads)
                .map(|_| {
                    scope.spawn(|| {
                        let slot = Slot::current();
                        assert_eq!(slot, Slot::current());
                        barrier.wait();
                        slot
                    })
                })
                .collect();
            handles.into_iter().map(|handle| handle.join().expect("no panic")).collect()
        });
        let exclusive: Vec<usize> =
            slots.iter().filter(|s| s.writer() == Writer::Only).map(|s| s.index()).collect();
        let distinct: HashSet<usize> = exclusive.iter().copied().collect();
        assert_eq!(exclusive.len(), distinct.len());
        assert!(slots.contains(&Slot::SHARED));
    }
}

#[cfg(all(test, parallax_loom))]
pub(crate) mod models {
    use std::rc::Rc;

    use loom::{cell::UnsafeCell, thread};

    use super::*;
    use crate::sync::{
        atomic::{AtomicU64, Ordering::Relaxed},
        model,
    };

    /// From here on, threads share.
    pub(crate) fn take_all() {
        *taken() = u64::MAX;
    }

    /// What slots lead to.
    #[derive(Default)]
    struct Shards {
        counts: [AtomicU64; SLOTS],
        /// Loom complains of two accesses if neither is ordered before the other.
        owned: [UnsafeCell<()>; EXCLUSIVE],
    }

    /// Two at once and one after another, in all ways.
    #[test]
    fn a_slot_has_one_owner_at_a_time_and_the_next_one_loses_nothing() {
        model(|| {
            // All threads of a model are one to the system.
            let shards = Rc::new(Shards::default());
            let threads = [(); SLOTS].map(|()| {
                let shards = shards.clone();
                thread::spawn(move || {
                    let slot = Slot::current();
                    assert_eq!(slot, Slot::current());
                    slot.writer().add(&shards.counts[slot.index()], 1);
                    if slot.writer() == Writer::Only {
                        shards.owned[slot.index()].with_mut(|_| ());
                    }
                })
            });
            for thread in threads {
                thread.join().expect("no panic");
            }
            let counted: u64 = shards.counts.iter().map(|count| count.load(Relaxed)).sum();
            assert_eq!(counted, SLOTS as u64);
        });
    }

    #[test]
    fn threads_share_while_no_slot_is_free_and_lose_nothing() {
        model(|| {
            take_all();
            let count = Rc::new(AtomicU64::new(0));
            let threads = [(); 2].map(|()| {
                let count = count.clone();
                thread::spawn(move || {
                    assert_eq!(Slot::current(), Slot::SHARED);
                    Slot::current().writer().add(&count, 1);
                })
            });
            for thread in threads {
                thread.join().expect("no panic");
            }
            assert_eq!(count.load(Relaxed), 2);
        });
    }
}
