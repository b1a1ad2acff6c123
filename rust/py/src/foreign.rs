//! Blob stores that are written in Python.

use pfimg_core::{Algorithm, BlobStore, Digest, Error};
use pyo3::exceptions::PyKeyError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::buffers::Buffer;
use crate::errors::{self, Result};

/// Any object with `put`, `get`, `has` and `physical_bytes`.
///
/// It is called from several threads, each of which attaches to the interpreter for the call. What it gives is not trusted: bytes are hashed
/// to their name, and so are names to their bytes. A `KeyError` from `get` means that the blob is not there, our own `IntegrityError` that it is
/// corrupt; any other exception reaches the caller as it is.
pub struct Foreign {
    store: Py<PyAny>,
    algorithm: Algorithm,
}

impl Foreign {
    /// Takes an object for a blob store. One whose digests are not SHA-256 says so in an attribute `digest`.
    pub fn new(store: &Bound<'_, PyAny>) -> Result<Self> {
        let algorithm = match store.getattr_opt(intern!(store.py(), "digest"))? {
            Some(name) => name.extract::<&str>()?.parse()?,
            None => Algorithm::Sha256,
        };
        Ok(Self { store: store.clone().unbind(), algorithm })
    }

    fn call<T: Send>(&self, call: impl FnOnce(&Bound<'_, PyAny>) -> PyResult<T>) -> pfimg_core::Result<T> {
        Python::attach(|py| call(self.store.bind(py))).map_err(|error| Error::Foreign(Box::new(error)))
    }
}

/// What an exception from `get` says about the blob.
fn miss(py: Python<'_>, digest: &Digest, error: PyErr) -> Error {
    // `BlobNotFound` is one, and so is what a dictionary raises.
    if error.is_instance_of::<PyKeyError>(py) {
        return Error::BlobNotFound { digest: digest.to_string() };
    }
    if errors::class(py, "IntegrityError").is_ok_and(|class| error.is_instance(py, &class)) {
        return Error::integrity(digest, error.value(py).to_string());
    }
    Error::Foreign(Box::new(error))
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
        let bytes = Python::attach(|py| {
            let data = self.store.bind(py).call_method1(intern!(py, "get"), (digest.to_string(),));
            let data = data.map_err(|error| miss(py, digest, error))?;
            let buffer = Buffer::of(&data, "get(digest)").map_err(|error| Error::Foreign(Box::new(error)))?;
            Ok::<_, Error>(buffer.bytes().to_vec())
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
