//! Errors of the core as the classes of `pfimg.errors`, which are imported when the first one is raised.

use std::io::ErrorKind;
use std::path::PathBuf;

use pfimg_core::Error;
use pyo3::exceptions::{PyKeyboardInterrupt, PyOSError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyDict;

/// What every fallible function of the bindings returns.
pub type Result<T, E = Raised> = std::result::Result<T, E>;

/// An error on its way to Python: ours, or one that Python code raised.
#[derive(Debug)]
pub enum Raised {
    Core(Error),
    Python(PyErr),
}

impl From<Error> for Raised {
    fn from(error: Error) -> Self {
        Self::Core(error)
    }
}

impl From<PyErr> for Raised {
    fn from(error: PyErr) -> Self {
        Self::Python(error)
    }
}

impl From<Raised> for PyErr {
    fn from(raised: Raised) -> Self {
        match raised {
            Raised::Core(error) => Python::attach(|py| to_python(py, error, None)),
            Raised::Python(error) => error,
        }
    }
}

fn to_python(py: Python<'_>, error: Error, index: Option<usize>) -> PyErr {
    let message = error.to_string();
    let code = error.code();
    match error {
        Error::At { index: at, source } => to_python(py, *source, index.or(Some(at))),
        Error::BlobNotFound { digest } => Raise { digest: Some(digest), ..Raise::new("BlobNotFound") }.error(py, message, code, index),
        Error::PinNotFound { .. } => Raise::new("BlobNotFound").error(py, message, code, index),
        Error::Integrity { digest, path, .. } => Raise { digest: Some(digest), path, ..Raise::new("IntegrityError") }.error(py, message, code, index),
        Error::Format { field, offset, .. } => Raise { field, offset, ..Raise::new("FormatError") }.error(py, message, code, index),
        Error::Limit { limit, .. } => Raise { limit: Some(limit), ..Raise::new("LimitExceeded") }.error(py, message, code, index),
        Error::Changed { path, .. } => Raise { path: Some(path), ..Raise::new("StoreError") }.error(py, message, code, index),
        Error::Io { path, source, .. } => with_index(py, os_error(py, message, path, &source), index),
        Error::Cancelled => PyKeyboardInterrupt::new_err(message),
        Error::Foreign(source) => match source.downcast::<PyErr>() {
            Ok(error) => with_index(py, *error, index),
            Err(_) => Raise::new("StoreError").error(py, message, code, index),
        },
        _ => Raise::new("StoreError").error(py, message, code, index),
    }
}

/// A class of `pfimg.errors`.
pub fn class<'py>(py: Python<'py>, name: &str) -> PyResult<Bound<'py, PyAny>> {
    py.import(intern!(py, "pfimg.errors"))?.getattr(name)
}

/// A class of `pfimg.errors` and the attributes that only some of them have.
struct Raise {
    class: &'static str,
    digest: Option<String>,
    path: Option<PathBuf>,
    field: Option<String>,
    offset: Option<u64>,
    limit: Option<u64>,
}

impl Raise {
    const fn new(class: &'static str) -> Self {
        Self { class, digest: None, path: None, field: None, offset: None, limit: None }
    }

    fn error(self, py: Python<'_>, message: String, code: &'static str, index: Option<usize>) -> PyErr {
        let build = || {
            let attributes = PyDict::new(py);
            attributes.set_item(intern!(py, "code"), code)?;
            attributes.set_item(intern!(py, "digest"), self.digest)?;
            attributes.set_item(intern!(py, "path"), self.path)?;
            attributes.set_item(intern!(py, "index"), index)?;
            attributes.set_item(intern!(py, "field"), self.field)?;
            attributes.set_item(intern!(py, "offset"), self.offset)?;
            attributes.set_item(intern!(py, "limit"), self.limit)?;
            class(py, self.class)?.call((message,), Some(&attributes))
        };
        // What goes wrong while an error is made (a broken installation) is the error then.
        build().map_or_else(|error| error, PyErr::from_value)
    }
}

/// `OSError` with an error number makes itself the right subclass: `FileNotFoundError`, `PermissionError` and so on.
fn os_error(py: Python<'_>, message: String, path: PathBuf, source: &std::io::Error) -> PyErr {
    let Some(number) = source.raw_os_error().or_else(|| number_of(py, source.kind())) else {
        return PyOSError::new_err(message);
    };
    let text = || py.import(intern!(py, "os"))?.call_method1(intern!(py, "strerror"), (number,))?.extract::<String>();
    match text() {
        Ok(text) => PyOSError::new_err((number, text, path.into_os_string())),
        Err(error) => error,
    }
}

/// The system's number for what the core found itself, such as a target that exists already.
fn number_of(py: Python<'_>, kind: ErrorKind) -> Option<i32> {
    let name = match kind {
        ErrorKind::AlreadyExists => intern!(py, "EEXIST"),
        ErrorKind::InvalidInput => intern!(py, "EINVAL"),
        _ => return None,
    };
    py.import(intern!(py, "errno")).ok()?.getattr(name).ok()?.extract().ok()
}

/// Tells an error of another family which item it is about; one that takes no attributes is left as it is.
fn with_index(py: Python<'_>, error: PyErr, index: Option<usize>) -> PyErr {
    if let Some(index) = index {
        let _ = error.value(py).setattr(intern!(py, "index"), index);
    }
    error
}
