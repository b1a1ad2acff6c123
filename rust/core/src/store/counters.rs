//! What a handle has done since it was opened.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// Running totals, shared by all threads that use the handle.
        #[derive(Debug, Default)]
        pub struct Counters { $(pub(super) $name: Counter),* }

        /// The totals at one moment.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Counts { $($(#[$doc])* pub $name: u64),* }

        impl Counters {
            /// The totals now.
            #[must_use]
            pub fn read(&self) -> Counts {
                Counts { $($name: self.$name.0.load(Ordering::Relaxed)),* }
            }
        }

        impl Counts {
            /// Each total with its name.
            #[must_use]
            pub fn named(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name)),*]
            }
        }
    };
}

counters! {
    /// Blobs read and verified.
    hits,
    /// Blobs asked for that were not there.
    misses,
    /// Blobs found corrupt.
    corrupt,
    /// Content bytes read and verified.
    bytes_read,
    /// Blobs written.
    written,
    /// Blobs put that were there already.
    deduplicated,
    /// Content bytes written.
    bytes_written,
    /// Of the blobs written, those that zstd made smaller.
    compressed,
    /// Of the blobs written, those in stored frames.
    stored,
    /// Of the blobs written, those in float frames.
    float,
}

/// One total.
#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub(super) fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }
}
