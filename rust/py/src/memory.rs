//! Blobs in memory, and blob stores that are written in Python.

use std::sync::Arc;

use pfimg_core::{Algorithm, BlobStore, Digest, Error};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::buffers::Buffer;
use crate::errors::Result;
use crate::work;

/// Blobs in memory, for tests and for images that need no directory.
#[pyclass(module = "pfimg._core", frozen)]
pub struct MemoryStore(Arc<pfimg_core::MemoryStore>);

#[pymethods]
impl MemoryStore {
    #[new]
    #[pyo3(signature = (*, digest = "sha256"))]
    fn new(digest: &str) -> Result<Self> {
        Ok(Self(Arc::new(pfimg_core::MemoryStore::new(digest.parse()?))))
    }

    fn put(&self, py: Python<'_>, data: &Bound<'_, PyAny>) -> Result<String> {
        let data = Buffer::of(data, "data")?;
        let digest = work::compute(py, data.bytes().len(), || self.0.put(data.bytes()))?;
        Ok(digest.to_string())
    }

    fn get<'py>(&self, py: Python<'py>, digest: &str) -> Result<Bound<'py, PyBytes>> {
        let digest = digest.parse()?;
        let bytes = py.detach(|| self.0.get(&digest))?;
        Ok(PyBytes::new(py, &bytes))
    }

    fn has(&self, digest: &str) -> Result<bool> {
        Ok(self.0.has(&digest.parse()?)?)
    }

    fn physical_bytes(&self) -> Result<u64> {
        Ok(self.0.physical_bytes()?)
    }
}

/// A blob store of Python objects' making: `put`, `get`, `has`, `physical_bytes`.
///
/// It is called from several threads, each of which attaches to the interpreter for the call. What it gives is not trusted: bytes are hashed
/// to their name, and so are names to their bytes.
struct Foreign {
    store: Py<PyAny>,
    algorithm: Algorithm,
}

/// The core's view of a Python object that is a blob store. Ours are taken as they are, without a way through Python.
pub fn blob_store(object: &Bound<'_, PyAny>) -> Result<Arc<dyn BlobStore>> {
    if let Ok(store) = object.cast::<MemoryStore>() {
        return Ok(Arc::clone(&store.get().0) as _);
    }
    let py = object.py();
    let algorithm = match object.getattr_opt(intern!(py, "digest"))? {
        Some(name) => name.extract::<String>()?.parse()?,
        None => Algorithm::Sha256,
    };
    Ok(Arc::new(Foreign { store: object.clone().unbind(), algorithm }))
}

impl Foreign {
    fn call<T: Send>(&self, call: impl FnOnce(&Bound<'_, PyAny>) -> PyResult<T>) -> pfimg_core::Result<T> {
        Python::attach(|py| call(self.store.bind(py))).map_err(|error| Error::Foreign(Box::new(error)))
    }
}

fn check(digest: &Digest, bytes: &[u8]) -> pfimg_core::Result<()> {
    let found = pfimg_core::digest::hash(digest.algorithm(), bytes);
    if found == *digest { Ok(()) } else { Err(Error::integrity(digest, format!("the bytes hash to {found}"))) }
}

impl BlobStore for Foreign {
    fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    fn put(&self, bytes: &[u8]) -> pfimg_core::Result<Digest> {
        let digest = self.call(|store| {
            let py = store.py();
            store.call_method1(intern!(py, "put"), (PyBytes::new(py, bytes),))?.extract::<String>()
        })?;
        let digest = digest.parse()?;
        check(&digest, bytes)?;
        Ok(digest)
    }

    fn get(&self, digest: &Digest) -> pfimg_core::Result<Vec<u8>> {
        let bytes = self.call(|store| {
            let py = store.py();
            let data = store.call_method1(intern!(py, "get"), (digest.to_string(),))?;
            Ok(Buffer::of(&data, "get(digest)")?.bytes().to_vec())
        })?;
        check(digest, &bytes)?;
        Ok(bytes)
    }

    fn has(&self, digest: &Digest) -> pfimg_core::Result<bool> {
        self.call(|store| store.call_method1(intern!(store.py(), "has"), (digest.to_string(),))?.is_truthy())
    }

    fn physical_bytes(&self) -> pfimg_core::Result<u64> {
        self.call(|store| store.call_method0(intern!(store.py(), "physical_bytes"))?.extract())
    }
}
