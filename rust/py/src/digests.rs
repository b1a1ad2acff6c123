//! Digests: values in the core, text in Python.

use std::convert::Infallible;

use pfimg_core::{Algorithm, Digest, digest};
use pyo3::prelude::*;
use pyo3::types::PyString;

use crate::buffers::Buffer;
use crate::errors::{Raised, Result};
use crate::work;

/// A digest that comes from or goes to Python as `sha256:<64 hex>`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PyDigest(pub Digest);

impl<'a, 'py> FromPyObject<'a, 'py> for PyDigest {
    type Error = Raised;

    fn extract(object: Borrowed<'a, 'py, PyAny>) -> Result<Self> {
        Ok(Self(object.extract::<&str>()?.parse()?))
    }
}

impl<'py> IntoPyObject<'py> for PyDigest {
    type Target = PyString;
    type Output = Bound<'py, PyString>;
    type Error = Infallible;

    fn into_pyobject(self, py: Python<'py>) -> Result<Self::Output, Infallible> {
        Ok(PyString::new(py, &self.0.to_string()))
    }
}

/// A list of digests for the core.
pub fn digests(digests: Vec<PyDigest>) -> Vec<Digest> {
    digests.into_iter().map(|digest| digest.0).collect()
}

/// A list of digests for Python.
pub fn names(digests: Vec<Digest>) -> Vec<PyDigest> {
    digests.into_iter().map(PyDigest).collect()
}

/// The SHA-256 digest of a buffer, as `sha256:<64 hex>`.
#[pyfunction]
pub fn digest_of(py: Python<'_>, data: &Bound<'_, PyAny>) -> Result<PyDigest> {
    let data = Buffer::of(data, "data")?;
    Ok(PyDigest(work::compute(py, data.bytes().len(), || digest::hash(Algorithm::Sha256, data.bytes()))))
}
