//! Digests: values in the core, text in Python.

use std::convert::Infallible;

use pfimg_core::{Algorithm, Digest, digest};
use pyo3::prelude::*;
use pyo3::types::PyString;
use rayon::prelude::*;

use crate::buffers::{Batch, Buffer};
use crate::errors::{Raised, Result};
use crate::work::{self, threads};

/// Blobs that one thread hashes before it looks whether to go on.
const HASHED_AT_ONCE: usize = 256;

/// A digest that comes from or goes to Python as `sha256:<64 hex>`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PyDigest(pub Digest);

impl<'a, 'py> FromPyObject<'a, 'py> for PyDigest {
    type Error = Raised;

    fn extract(object: Borrowed<'a, 'py, PyAny>) -> Result<Self> {
        // What is no UTF-8, as an argument of a command can be, is no digest either.
        Ok(Self(object.cast::<PyString>().map_err(PyErr::from)?.to_string_lossy().parse()?))
    }
}

impl<'py> IntoPyObject<'py> for PyDigest {
    type Target = PyString;
    type Output = Bound<'py, PyString>;
    type Error = Infallible;

    fn into_pyobject(self, py: Python<'py>) -> Result<Self::Output, Infallible> {
        Ok(PyString::from_bytes(py, &self.0.text()).expect("ASCII"))
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
    digest::kernel()?;
    let data = Buffer::of(data, "data")?;
    Ok(PyDigest(work::compute(py, data.bytes().len(), || digest::hash(Algorithm::Sha256, data.bytes()))))
}

/// The digests of many blobs, hashed on the pool: a sequence of buffers, or one buffer of two or more dimensions, axis 0 = blobs.
#[pyfunction]
#[pyo3(signature = (buffers, *, algorithm = "sha256"))]
pub fn digests_of(py: Python<'_>, buffers: &Bound<'_, PyAny>, algorithm: &str) -> Result<Vec<PyDigest>> {
    digest::kernel()?;
    let algorithm: Algorithm = algorithm.parse()?;
    let batch = Batch::of(buffers, "buffers", "use digest_of")?;
    let blobs = batch.blobs();
    let found = work::run(py, None, |monitor| {
        let hash = |blobs: &[&[u8]]| monitor.check().map(|()| digest::hash_many(algorithm, blobs));
        // Equal shares: each thread has as many as any other, and as many at once as fill the lanes of a kernel.
        let shares = blobs.len().div_ceil(threads() * HASHED_AT_ONCE) * threads();
        blobs.par_chunks(blobs.len().div_ceil(shares.max(1)).max(1)).map(hash).collect::<pfimg_core::Result<Vec<_>>>()
    })?;
    Ok(names(found.concat()))
}

/// Name of the kernel that computes SHA-256.
#[pyfunction]
pub fn kernel() -> Result<&'static str> {
    Ok(digest::kernel()?.name())
}

/// Names of the kernels that this processor has.
#[pyfunction]
pub fn kernels() -> Vec<&'static str> {
    digest::kernels().into_iter().map(digest::Kernel::name).collect()
}
