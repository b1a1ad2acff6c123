//! What the core has to say goes to Python's logger `pfimg`.

use log::{Level, LevelFilter, Log, Metadata, Record};
use pyo3::intern;
use pyo3::prelude::*;

struct ToPython;

impl Log for ToPython {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= Level::Warn && metadata.target().starts_with("pfimg")
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            // At the end of the program there may be no interpreter left to tell.
            Python::try_attach(|py| warn_all(py, &[record.args().to_string()]));
        }
    }

    fn flush(&self) {}
}

/// Passes the core's warnings on from now on; other crates have nothing to say here.
pub fn install() {
    // A second import of the module, in another interpreter, finds it in place.
    if log::set_logger(&ToPython).is_ok() {
        log::set_max_level(LevelFilter::Warn);
    }
}

/// Warns on the logger. A handler that fails is reported as Python does with errors that nobody can catch.
pub fn warn_all(py: Python<'_>, warnings: &[String]) {
    let warn = |text: &String| {
        let logger = py.import(intern!(py, "logging"))?.call_method1(intern!(py, "getLogger"), (intern!(py, "pfimg"),))?;
        logger.call_method1(intern!(py, "warning"), (intern!(py, "%s"), text))
    };
    for text in warnings {
        if let Err(error) = warn(text) {
            error.write_unraisable(py, None);
        }
    }
}
