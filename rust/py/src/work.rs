//! Long calls: detached from the interpreter, on the shared pool, and stopped by Ctrl-C.

use std::time::Duration;

use pfimg_core::{Monitor, pool};
use pyo3::intern;
use pyo3::prelude::*;

use crate::errors::Result;

/// As in `hashlib`: below this, letting other threads run costs more than it gives.
const DETACH_BYTES: usize = 2048;
/// How often a waiting call reports and looks for signals.
const POLL: Duration = Duration::from_millis(100);

/// Runs pure computation over `bytes` bytes on the calling thread, detached if that is worth it.
pub fn compute<T: Send>(py: Python<'_>, bytes: usize, work: impl FnOnce() -> T + Send) -> T {
    if bytes < DETACH_BYTES { work() } else { py.detach(work) }
}

/// Runs work of unknown length on the pool.
///
/// The main thread, and any thread that was given a `tick`, waits beside it: calls `tick(done, total, bytes)` at the start, ten times a second
/// and at the end, and looks for signals. An exception from either asks the work to stop, waits until it has, and is raised then.
pub fn run<T: Send>(py: Python<'_>, tick: Option<&Bound<'_, PyAny>>, work: impl FnOnce(&Monitor) -> pfimg_core::Result<T> + Send) -> Result<T> {
    let monitor = Monitor::new();
    if tick.is_none() && !on_main_thread(py)? {
        return Ok(py.detach(|| pool::install(|| work(&monitor)))?);
    }
    watch(py, tick, &monitor, |poll| pool::install_polling(|| work(&monitor), POLL, poll))
}

/// Runs work that waits until other calls end. It has a thread of its own: on the pool it could take the place that they need for that.
pub fn run_apart<T: Send>(py: Python<'_>, work: impl FnOnce(&Monitor) -> pfimg_core::Result<T> + Send) -> Result<T> {
    let monitor = Monitor::new();
    watch(py, None, &monitor, |poll| pool::spawn_polling(|| work(&monitor), POLL, poll))
}

fn watch<T: Send>(
    py: Python<'_>,
    tick: Option<&Bound<'_, PyAny>>,
    monitor: &Monitor,
    start: impl FnOnce(&mut (dyn FnMut() + Send)) -> pfimg_core::Result<T> + Send,
) -> Result<T> {
    let tick = tick.map(|tick| tick.clone().unbind());
    let mut interrupted = None;
    let look = |py: Python<'_>| {
        if let Some(tick) = &tick {
            let (done, bytes, total) = monitor.counts();
            tick.call1(py, (done, total, bytes))?;
        }
        py.check_signals()
    };
    let mut poll = || {
        if interrupted.is_none()
            && let Err(error) = Python::attach(look)
        {
            interrupted = Some(error);
            monitor.cancel();
        }
    };
    let result = py.detach(|| start(&mut poll));
    if let Some(error) = interrupted {
        return Err(error.into());
    }
    let value = result?;
    look(py)?;
    Ok(value)
}

/// Whether Python runs signal handlers on this thread.
fn on_main_thread(py: Python<'_>) -> PyResult<bool> {
    let threading = py.import(intern!(py, "threading"))?;
    let main = threading.call_method0(intern!(py, "main_thread"))?.getattr(intern!(py, "ident"))?;
    main.eq(threading.call_method0(intern!(py, "get_ident"))?)
}

/// How many threads work at once: `PFIMG_THREADS`, else what the machine grants.
#[pyfunction]
pub fn threads() -> usize {
    pool::threads()
}
