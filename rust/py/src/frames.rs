//! Frames outside of a store.

use std::io::Write;

use pfimg_core::codec::{DecodeError, Encoding, Framed};
use pfimg_core::{Digest, Error, digest, limits};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::buffers::{Buffer, constant};
use crate::digests::PyDigest;
use crate::errors::Result;
use crate::work;

/// Encodes a blob as one frame, as a store with this codec and level would write it: a standard zstd frame, or with codec `float` a float frame
/// where that pays.
#[pyfunction]
#[pyo3(signature = (data, *, codec = "auto", level = 1))]
pub fn encode_frame<'py>(py: Python<'py>, data: &Bound<'py, PyAny>, codec: &str, level: i32) -> Result<Bound<'py, PyBytes>> {
    let encoding = Encoding::new(codec.parse()?, level)?;
    let data = Buffer::of(data, "data")?;
    let frame = work::compute(py, data.bytes().len(), || encoding.encode(data.bytes()));
    Ok(PyBytes::new_with(py, frame.len(), |mut out| {
        frame.write(|slices| slices.iter().try_for_each(|slice| out.write_all(slice)))?;
        Ok(())
    })?)
}

/// The content of any standard zstd frames, or of a float frame, of at most 1 GiB. With `expect`, content that does not hash to it is an `IntegrityError`.
#[pyfunction]
#[pyo3(signature = (frame, *, expect = None))]
pub fn decode_frame<'py>(py: Python<'py>, frame: &Bound<'py, PyAny>, expect: Option<PyDigest>) -> Result<Bound<'py, PyBytes>> {
    let frame = constant(frame, "frame")?;
    let bytes = frame.as_bytes();
    let content = py.detach(|| decode(&Framed::of(bytes), expect.map(|digest| digest.0).as_ref()))?;
    Ok(PyBytes::new(py, &content))
}

/// The content of frames, checked against its digest if one is given.
pub fn decode(frame: &Framed<'_>, expect: Option<&Digest>) -> pfimg_core::Result<Vec<u8>> {
    let content = frame.decode(limits::BLOB_IN_MEMORY_BYTES).map_err(refused)?;
    if let Some(expect) = expect {
        digest::kernel()?;
        let found = digest::hash(expect.algorithm(), &content);
        if found != *expect {
            return Err(Error::integrity(expect, format!("the frame's content hashes to {found}")));
        }
    }
    Ok(content)
}

fn refused(error: DecodeError) -> Error {
    match error {
        DecodeError::Malformed(reason) => Error::format("frame", reason),
        DecodeError::TooLarge => {
            Error::Limit { what: "the frame's content".into(), name: "BLOB_IN_MEMORY_BYTES", limit: limits::BLOB_IN_MEMORY_BYTES }
        }
    }
}
