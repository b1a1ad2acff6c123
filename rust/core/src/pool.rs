//! One thread pool for the process, and the handle by which a caller watches and stops a long call.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::error::{Error, Result};

static POOL: Mutex<Option<(u32, &'static rayon::ThreadPool)>> = Mutex::new(None);

/// Number of threads that work at once: `PFIMG_THREADS`, else what the machine (or its container) grants.
#[must_use]
pub fn threads() -> usize {
    std::env::var("PFIMG_THREADS")
        .ok()
        .and_then(|text| text.parse().ok())
        .filter(|&n: &usize| n > 0)
        .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from))
}

/// Runs `work` on the process's pool, so that rayon's parallel iterators inside use it.
///
/// A forked child inherits the pool's memory but none of its threads: the pool is therefore keyed by process id, and a child makes its own
/// (the parent's is leaked there, since its threads cannot be joined).
pub fn install<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    pool().install(work)
}

/// As [`install`], while the calling thread calls `poll` at once and then every `interval`.
pub fn install_polling<R: Send>(work: impl FnOnce() -> R + Send, interval: Duration, poll: impl FnMut()) -> R {
    let (sender, receiver) = mpsc::sync_channel(1);
    let result = pool().in_place_scope(|scope| {
        scope.spawn(move |_| sender.send(work()).expect("the receiver outlives the scope"));
        poll_until(&receiver, interval, poll)
    });
    result.expect("the scope has raised the panic of its work")
}

/// Runs `work` on a thread of its own, polling as [`install_polling`]: for what waits until other calls end, which need the pool to do so.
pub fn spawn_polling<R: Send>(work: impl FnOnce() -> R + Send, interval: Duration, poll: impl FnMut()) -> R {
    let (sender, receiver) = mpsc::sync_channel(1);
    let result = std::thread::scope(|scope| {
        scope.spawn(move || sender.send(work()).expect("the receiver outlives the scope"));
        poll_until(&receiver, interval, poll)
    });
    result.expect("the scope has raised the panic of its work")
}

/// What the work sends; None when it panicked.
fn poll_until<R>(receiver: &Receiver<R>, interval: Duration, mut poll: impl FnMut()) -> Option<R> {
    loop {
        poll();
        match receiver.recv_timeout(interval) {
            Ok(result) => return Some(result),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return None,
        }
    }
}

/// How many of `n` items one task takes so that all threads have work: at most `most`.
#[must_use]
pub fn share(n: usize, most: usize) -> usize {
    n.div_ceil(pool().current_num_threads()).clamp(1, most)
}

fn pool() -> &'static rayon::ThreadPool {
    let pid = std::process::id();
    let mut slot = POOL.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((owner, pool)) = *slot
        && owner == pid
    {
        return pool;
    }
    let pool =
        rayon::ThreadPoolBuilder::new().num_threads(threads()).thread_name(|n| format!("pfimg-{n}")).build().expect("the system grants no threads");
    let pool: &'static rayon::ThreadPool = Box::leak(Box::new(pool));
    *slot = Some((pid, pool));
    pool
}

/// How far a long call has come, and whether it shall stop. Shared between the caller and the threads that work.
#[derive(Debug, Default)]
pub struct Monitor {
    items: AtomicU64,
    bytes: AtomicU64,
    total_items: AtomicU64,
    cancelled: AtomicBool,
}

impl Monitor {
    /// A monitor at zero.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Counts finished work.
    ///
    /// # Errors
    /// [`Error::Cancelled`] once [`Monitor::cancel`] was called; callers pass it on, which ends the whole call.
    pub fn advance(&self, items: u64, bytes: u64) -> Result<()> {
        self.items.fetch_add(items, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.check()
    }

    /// Fails once the call was cancelled.
    pub fn check(&self) -> Result<()> {
        if self.cancelled.load(Ordering::Relaxed) { Err(Error::Cancelled) } else { Ok(()) }
    }

    /// Tells how many items there are in all, when it becomes known.
    pub fn expect(&self, items: u64) {
        self.total_items.fetch_add(items, Ordering::Relaxed);
    }

    /// Asks the call to stop at the next item.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    /// Items done, bytes done, items expected (0 while unknown).
    #[must_use]
    pub fn counts(&self) -> (u64, u64, u64) {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        (load(&self.items), load(&self.bytes), load(&self.total_items))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cancelled_work_fails_at_the_next_item() {
        let monitor = Monitor::new();
        monitor.expect(2);
        monitor.advance(1, 10).unwrap();
        monitor.cancel();
        assert!(matches!(monitor.advance(1, 5), Err(Error::Cancelled)));
        assert_eq!(monitor.counts(), (2, 15, 2));
    }

    #[test]
    fn polls_beside_the_work_until_it_ends() {
        let (started, begun) = mpsc::channel();
        let (release, released) = mpsc::channel();
        let mut polls = 0;
        let result = install_polling(
            move || {
                started.send(()).unwrap();
                released.recv().unwrap();
                rayon::current_num_threads()
            },
            Duration::from_millis(1),
            || {
                polls += 1;
                match polls {
                    1 => begun.recv().unwrap(),
                    3 => release.send(()).unwrap(),
                    _ => {}
                }
            },
        );
        assert_eq!(result, threads());
        assert!(polls >= 3);
    }

    #[test]
    fn pool_has_the_threads_it_says() {
        assert_eq!(install(rayon::current_num_threads), threads());
    }
}
