//! Packs and their indexes.

use std::collections::HashSet;

use pfimg_core::pack::Place;
use pfimg_core::{Algorithm, Digest, Error, PackIndex};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyString};

use crate::buffers::constant;
use crate::digests::{PyDigest, digests};
use crate::errors::Result;
use crate::work;

/// What an entry or a look-up is counted as where it is decided whether to detach.
const ENTRY_BYTES: usize = 64;

/// Where the frames of blobs lie in packs. Nothing it says is trusted: `land_frames` decodes and hashes what is cut out of a pack.
#[pyclass(name = "PackIndex", module = "pfimg._core", frozen, eq)]
#[derive(PartialEq)]
pub struct PyPackIndex(PackIndex);

#[pymethods]
impl PyPackIndex {
    /// The index of one pack: its name (64 hexadecimal digits), its blobs and the bytes of their frames, in order. Errors: `FormatError` for
    /// no blobs, for one that is there twice or has another algorithm than the first, and for a frame of no bytes.
    #[staticmethod]
    fn of(py: Python<'_>, pack: &str, digests: Vec<PyDigest>, lengths: Vec<u64>) -> Result<Self> {
        if digests.len() != lengths.len() {
            return Err(Error::format("lengths", format!("{} for {} digests", lengths.len(), digests.len())).into());
        }
        let name = Digest::from_hex(Algorithm::Sha256, pack)?;
        let frames = self::digests(digests).into_iter().zip(lengths.iter().copied());
        Ok(Self(work::compute(py, lengths.len() * ENTRY_BYTES, || PackIndex::of(name, frames))?))
    }

    /// Reads an index of at most 1 GiB. Errors: `FormatError` with `.offset`, `LimitExceeded`.
    #[staticmethod]
    fn from_bytes(data: &Bound<'_, PyAny>) -> Result<Self> {
        let source = constant(data, "data")?;
        let bytes = source.as_bytes();
        Ok(Self(work::compute(data.py(), bytes.len(), || PackIndex::parse(bytes))?))
    }

    /// The document.
    fn to_bytes<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &work::compute(py, self.0.len() * ENTRY_BYTES, || self.0.to_bytes()))
    }

    /// The packs of several indexes in one, in order. One that several of them describe is there once, as the first of them does.
    /// Errors: `FormatError` where their digests are of different algorithms, `LimitExceeded`.
    #[staticmethod]
    fn join(py: Python<'_>, indexes: Vec<Bound<'_, Self>>) -> Result<Self> {
        let indexes: Vec<&PackIndex> = indexes.iter().map(|index| &index.get().0).collect();
        let entries: usize = indexes.iter().map(|index| index.len()).sum();
        Ok(Self(work::compute(py, entries * ENTRY_BYTES, || PackIndex::join(indexes))?))
    }

    /// The packs in order: name, bytes, number of blobs.
    #[getter]
    fn packs(&self) -> Vec<(String, u64, usize)> {
        self.0.packs().iter().map(|pack| (pack.name().hex(), pack.bytes(), pack.blobs())).collect()
    }

    /// Number of blobs, in all packs together.
    fn __len__(&self) -> usize {
        self.0.len()
    }

    /// Where the frame of each blob lies: pack, offset, length, in the first pack that has it; None where none has.
    fn locate<'py>(&self, py: Python<'py>, digests: Vec<PyDigest>) -> Vec<Option<(Bound<'py, PyString>, u64, u64)>> {
        let places: Vec<Option<Place>> =
            work::compute(py, digests.len() * ENTRY_BYTES, || digests.iter().map(|digest| self.0.locate(&digest.0)).collect());
        let mut names: Vec<Option<Bound<'py, PyString>>> = vec![None; self.0.packs().len()];
        let mut name = |pack: usize| names[pack].get_or_insert_with(|| PyString::new(py, &self.0.packs()[pack].name().hex())).clone();
        places.into_iter().map(|place| place.map(|place| (name(place.pack), place.offset, place.len))).collect()
    }

    /// Names of the packs that `locate` would tell, in order.
    fn covering(&self, py: Python<'_>, digests: Vec<PyDigest>) -> Vec<String> {
        let digests = self::digests(digests);
        let packs = work::compute(py, digests.len() * ENTRY_BYTES, || self.0.covering(&digests));
        packs.into_iter().map(|pack| self.0.packs()[pack].name().hex()).collect()
    }

    /// The same without all packs but these.
    fn only(&self, py: Python<'_>, packs: Vec<String>) -> Result<Self> {
        let packs: HashSet<Digest> = packs.iter().map(|name| Digest::from_hex(Algorithm::Sha256, name)).collect::<pfimg_core::Result<_>>()?;
        Ok(Self(work::compute(py, self.0.len() * ENTRY_BYTES, || self.0.only(&packs))))
    }

    fn __repr__(&self) -> String {
        format!("<PackIndex of {} blobs in {} packs>", self.0.len(), self.0.packs().len())
    }
}
