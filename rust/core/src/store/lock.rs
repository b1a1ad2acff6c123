//! The lock that keeps gc and everybody else apart.
//!
//! Whoever relies on blobs that no image names yet holds it shared; gc takes it exclusively for a moment, whenever it is about to remove
//! some. gc only ever tries, so that nobody queues behind it, and a process that dies lets go (flock). On a file system without locks
//! nothing can be swept, and so nothing has to be held.

use std::fs::{File, TryLockError};
use std::io::ErrorKind;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::pool::Monitor;
use crate::{io, layout};

/// How long gc, which takes the lock for moments, may have it before whoever needs it gives up: it was stopped, or its disk is.
const PATIENCE: Duration = Duration::from_secs(300);
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(10);

/// While it lives, the lock is held.
#[derive(Debug)]
pub struct Hold(#[expect(dead_code, reason = "closing the file releases the lock")] Option<File>);

fn open(root: &Path) -> Result<File> {
    let path = root.join(layout::LOCK);
    File::options().create(true).truncate(false).write(true).open(&path).map_err(Error::io("open", &path))
}

impl Hold {
    /// Keeps gc from removing anything. A store that cannot be written cannot be swept either: there is nothing to hold.
    pub fn shared(root: &Path) -> Result<Self> {
        let file = match open(root) {
            Ok(file) => file,
            Err(Error::Io { source, .. }) if matches!(source.kind(), ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem) => {
                return Ok(Self(None));
            }
            Err(error) => return Err(error),
        };
        let start = Instant::now();
        loop {
            match file.try_lock_shared() {
                Ok(()) => return Ok(Self(Some(file))),
                Err(TryLockError::WouldBlock) if start.elapsed() < PATIENCE => std::thread::sleep(PAUSE),
                Err(TryLockError::WouldBlock) => {
                    let path = root.join(layout::LOCK);
                    return Err(Error::Store(format!("gc has had {} locked for {} s: is its process stopped?", path.display(), PATIENCE.as_secs())));
                }
                Err(TryLockError::Error(error)) if io::has_no_locks(&error) => return Ok(Self(None)),
                Err(TryLockError::Error(error)) => return Err(Error::io("lock", root.join(layout::LOCK))(error)),
            }
        }
    }

    /// Waits until nobody relies on anything.
    pub(crate) fn exclusive(root: &Path, monitor: &Monitor) -> Result<Self> {
        let file = open(root)?;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Self(Some(file))),
                Err(TryLockError::WouldBlock) => {
                    monitor.check()?;
                    std::thread::sleep(PAUSE);
                }
                Err(TryLockError::Error(error)) => return Err(Error::io("lock", root.join(layout::LOCK))(error)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_share_and_one_excludes() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path();
        let (a, b) = (Hold::shared(path).unwrap(), Hold::shared(path).unwrap());
        let monitor = Monitor::new();
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| Hold::exclusive(path, &monitor));
            drop((a, b));
            drop(waiter.join().unwrap().unwrap());
        });
        let _shared = Hold::shared(path).unwrap();
        monitor.cancel();
        assert!(matches!(Hold::exclusive(path, &monitor), Err(Error::Cancelled)));
    }
}
