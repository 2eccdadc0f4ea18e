//! What threads share: the standard library's types, and in the models (`--cfg parallax_loom`) ones that
//! loom watches.
//!
//! Loom runs a model once for each order in which its threads could have met, and for each value that the
//! memory model lets a load return. It sees only what goes through here.

#[cfg(not(parallax_loom))]
mod real {
    pub(crate) use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak, atomic};

    /// Statics, as they are written.
    macro_rules! statics {
        ($($item:item)*) => { $($item)* };
    }

    /// Values that each thread has its own of.
    macro_rules! locals {
        ($($locals:tt)*) => { thread_local! { $($locals)* } };
    }

    pub(crate) use {locals, statics};
}

#[cfg(not(parallax_loom))]
pub(crate) use real::*;

#[cfg(parallax_loom)]
mod modelled {
    use std::{
        any::Any,
        cell::RefCell,
        collections::BTreeMap,
        ops::Deref,
        sync::{Arc as StdArc, OnceLock as StdOnceLock, Weak as StdWeak},
    };

    pub(crate) use std::sync::PoisonError;

    pub(crate) use loom::sync::{Mutex, MutexGuard, atomic};

    use self::atomic::{
        AtomicBool, AtomicUsize,
        Ordering::{AcqRel, Acquire, Relaxed, Release},
    };

    /// The standard library's `OnceLock` as it is documented: initialisers exclude each other, and who finds
    /// a value sees everything that was done before it was set. A load that may still find nothing does.
    pub(crate) struct OnceLock<T> {
        value: StdOnceLock<T>,
        ready: AtomicBool,
        initialising: Mutex<()>,
    }

    impl<T> OnceLock<T> {
        pub(crate) fn new() -> Self {
            let (ready, initialising) = (AtomicBool::new(false), Mutex::new(()));
            Self { value: StdOnceLock::new(), ready, initialising }
        }

        pub(crate) fn get(&self) -> Option<&T> {
            if self.ready.load(Acquire) { self.value.get() } else { None }
        }

        pub(crate) fn set(&self, value: T) -> Result<(), T> {
            let _alone = self.initialising.lock();
            self.value.set(value)?;
            self.ready.store(true, Release);
            Ok(())
        }

        pub(crate) fn get_or_init(&self, make: impl FnOnce() -> T) -> &T {
            if let Some(value) = self.get() {
                return value;
            }
            let _alone = self.initialising.lock();
            let value = self.value.get_or_init(make);
            self.ready.store(true, Release);
            value
        }
    }

    impl<T> Default for OnceLock<T> {
        fn default() -> Self {
            Self::new()
        }
    }

    /// A reference count that loom watches, as far as the layer needs one. Loom's own `Arc` has no `Weak`.
    ///
    /// The standard library's counts follow it: no thread runs between a change of the one and of the other.
    pub(crate) struct Arc<T: ?Sized> {
        value: StdArc<T>,
        strong: StdArc<AtomicUsize>,
    }

    pub(crate) struct Weak<T: ?Sized> {
        value: StdWeak<T>,
        strong: StdArc<AtomicUsize>,
    }

    impl<T: ?Sized> Arc<T> {
        fn first(value: StdArc<T>) -> Self {
            Self { value, strong: StdArc::new(AtomicUsize::new(1)) }
        }

        pub(crate) fn downgrade(this: &Self) -> Weak<T> {
            Weak { value: StdArc::downgrade(&this.value), strong: this.strong.clone() }
        }

        pub(crate) fn ptr_eq(this: &Self, other: &Self) -> bool {
            StdArc::ptr_eq(&this.value, &other.value)
        }
    }

    impl<T> Arc<T> {
        pub(crate) fn new(value: T) -> Self {
            Self::first(StdArc::new(value))
        }
    }

    impl<T> FromIterator<T> for Arc<[T]> {
        fn from_iter<I: IntoIterator<Item = T>>(values: I) -> Self {
            Self::first(values.into_iter().collect())
        }
    }

    impl<T: ?Sized> Deref for Arc<T> {
        type Target = T;

        fn deref(&self) -> &T {
            &self.value
        }
    }

    impl<T: ?Sized> Clone for Arc<T> {
        fn clone(&self) -> Self {
            self.strong.fetch_add(1, Relaxed);
            Self { value: self.value.clone(), strong: self.strong.clone() }
        }
    }

    impl<T: ?Sized> Drop for Arc<T> {
        fn drop(&mut self) {
            self.strong.fetch_sub(1, AcqRel);
        }
    }

    impl<T: ?Sized> Weak<T> {
        pub(crate) fn upgrade(&self) -> Option<Arc<T>> {
            let one_more = |strong| (strong > 0).then_some(strong + 1);
            self.strong.fetch_update(Acquire, Relaxed, one_more).ok()?;
            Some(Arc { value: self.value.upgrade()?, strong: self.strong.clone() })
        }
    }

    /// A static that every run of a model begins anew with. Loom's own are gone as soon as the model's first
    /// thread ends, and other threads give their slots back after that.
    pub(crate) struct Static<T: 'static>(fn() -> T);

    /// By the address of their [`Static`]. All threads of a model are one to the system, and each model has
    /// its own.
    type Statics = BTreeMap<usize, &'static dyn Any>;

    std::thread_local! {
        static STATICS: RefCell<Statics> = const { RefCell::new(Statics::new()) };
    }

    impl<T> Static<T> {
        pub(crate) const fn new(make: fn() -> T) -> Self {
            Self(make)
        }
    }

    impl<T> Deref for Static<T> {
        type Target = T;

        fn deref(&self) -> &T {
            let address = std::ptr::from_ref(self) as usize;
            let value: &'static dyn Any = STATICS.with_borrow_mut(|statics| {
                // Leaked: a few hundred bytes a run.
                *statics.entry(address).or_insert_with(|| Box::leak(Box::new((self.0)())))
            });
            value.downcast_ref().expect("one address is one static")
        }
    }

    macro_rules! statics {
        ($($(#[$attribute:meta])* static $name:ident: $type:ty = $value:expr;)*) => { $(
            $(#[$attribute])*
            static $name: $crate::sync::Static<$type> = $crate::sync::Static::new(|| $value);
        )* };
    }

    macro_rules! locals {
        ($($(#[$attribute:meta])* static $name:ident: $type:ty = $value:expr;)*) => {
            loom::thread_local! { $($(#[$attribute])* static $name: $type = $value;)* }
        };
    }

    pub(crate) use {locals, statics};

    /// Runs a model in every order that its threads can meet in.
    ///
    /// First every thread runs as far as it can, in the order that they were begun in; from there loom tries
    /// to let later ones go first. It compares a step with the last one at the same atomic only, so a
    /// writer's own load hides that its store would have mattered to an earlier reader: a reader is to be
    /// begun last, never on the model's first thread.
    #[cfg(test)]
    pub(crate) fn model(run: impl Fn() + Send + Sync + 'static) {
        let mut models = loom::model::Builder::new();
        // Interruptions of a thread that could have run on. Few bugs need more; each costs ten times the runs.
        models.preemption_bound.get_or_insert(3);
        models.check(move || {
            STATICS.take();
            run();
        });
    }
}

#[cfg(parallax_loom)]
pub(crate) use modelled::*;
