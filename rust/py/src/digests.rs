//! Digests outside of a store.

use pfimg_core::{Algorithm, digest};
use pyo3::prelude::*;

use crate::buffers::Buffer;
use crate::errors::Result;
use crate::work;

/// The SHA-256 digest of a buffer, as `sha256:<64 hex>`.
#[pyfunction]
pub fn digest_of(py: Python<'_>, data: &Bound<'_, PyAny>) -> Result<String> {
    let data = Buffer::of(data, "data")?;
    let digest = work::compute(py, data.bytes().len(), || digest::hash(Algorithm::Sha256, data.bytes()));
    Ok(digest.to_string())
}
