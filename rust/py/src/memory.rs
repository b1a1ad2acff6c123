//! Blobs in memory.

use std::sync::Arc;

use pfimg_core::BlobStore;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::buffers::Buffer;
use crate::digests::PyDigest;
use crate::errors::Result;
use crate::work;

/// Blobs in memory, for tests and for images that need no directory.
#[pyclass(module = "pfimg._core", frozen)]
pub struct MemoryStore(pub Arc<pfimg_core::MemoryStore>);

#[pymethods]
impl MemoryStore {
    #[new]
    #[pyo3(signature = (*, digest = "sha256"))]
    fn new(digest: &str) -> Result<Self> {
        pfimg_core::digest::kernel()?;
        Ok(Self(Arc::new(pfimg_core::MemoryStore::new(digest.parse()?))))
    }

    /// Stores a blob; returns its digest.
    fn put(&self, py: Python<'_>, data: &Bound<'_, PyAny>) -> Result<PyDigest> {
        let data = Buffer::of(data, "data")?;
        Ok(PyDigest(work::compute(py, data.bytes().len(), || self.0.put(data.bytes()))?))
    }

    /// The blob's bytes. Errors: `BlobNotFound`.
    fn get<'py>(&self, py: Python<'py>, digest: PyDigest) -> Result<Bound<'py, PyBytes>> {
        let bytes = py.detach(|| self.0.get(&digest.0))?;
        Ok(PyBytes::new(py, &bytes))
    }

    /// Whether the blob is here.
    fn has(&self, digest: PyDigest) -> Result<bool> {
        Ok(self.0.has(&digest.0)?)
    }

    /// What all blobs take; they are kept as they are.
    fn physical_bytes(&self) -> Result<u64> {
        Ok(self.0.physical_bytes()?)
    }
}
