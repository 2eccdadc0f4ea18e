//! A place for each thread, so that threads record without sharing a cache line.
//!
//! A thread claims a slot when it first records and gives it back when it ends. While it holds one it
//! is the only writer of that slot's shards ([`Writer::Only`]); the claim's lock orders the last write
//! of one owner before the first of the next. Threads beyond [`EXCLUSIVE`] share the last slot.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::histogram::Writer;

/// Slots with a single writer. More threads than this seldom answer requests.
const EXCLUSIVE: usize = 63;
/// All slots, with the shared one at the end.
pub(crate) const SLOTS: usize = EXCLUSIVE + 1;

/// Bit `i` is set while slot `i` has an owner. Process-wide because threads are; it configures nothing.
static TAKEN: Mutex<u64> = Mutex::new(1 << EXCLUSIVE);

fn taken() -> MutexGuard<'static, u64> {
    TAKEN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where a thread writes, and how.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Slot {
    pub(crate) index: usize,
    pub(crate) writer: Writer,
}

impl Slot {
    const SHARED: Self = Self { index: EXCLUSIVE, writer: Writer::Shared };

    /// The calling thread's slot. Takes a lock on the thread's first call only.
    pub(crate) fn current() -> Self {
        // While the thread's locals are being torn down the claim is gone: share.
        CLAIM.try_with(|claim| claim.0).unwrap_or(Self::SHARED)
    }
}

struct Claim(Slot);

thread_local! {
    static CLAIM: Claim = Claim::new();
}

impl Claim {
    fn new() -> Self {
        let mut taken = taken();
        let index = taken.trailing_ones() as usize;
        if index >= EXCLUSIVE {
            return Self(Slot::SHARED);
        }
        *taken |= 1 << index;
        Self(Slot { index, writer: Writer::Only })
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if self.0.writer == Writer::Only {
            *taken() &= !(1 << self.0.index);
        }
    }
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
            slots.iter().filter(|s| s.writer == Writer::Only).map(|s| s.index).collect();
        let distinct: HashSet<usize> = exclusive.iter().copied().collect();
        assert_eq!(exclusive.len(), distinct.len());
        assert!(slots.contains(&Slot::SHARED));
    }
}
