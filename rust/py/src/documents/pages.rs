//! Page manifests.

use std::sync::Arc;

use pfimg_core::{PageManifest, pages};
use pyo3::IntoPyObjectExt;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyTuple};

use super::{get_item, record, repr};
use crate::buffers::constant;
use crate::digests::PyDigest;
use crate::errors::Result;
use crate::work;

/// Geometry of a KV cache: tokens of a page, layers, heads that K and V have, elements of a head, and `bf16`, `f16`, `f32` or `fp8e4m3`.
#[pyclass(module = "pfimg._core", frozen, eq, hash, from_py_object)]
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct CacheMeta(pub pages::CacheMeta);

#[pymethods]
impl CacheMeta {
    #[new]
    fn new(page_size_tokens: u64, n_layers: u64, n_heads: u64, head_dim: u64, dtype: &str) -> Result<Self> {
        Ok(Self(pages::CacheMeta { page_size_tokens, n_layers, n_heads, head_dim, dtype: dtype.parse()? }))
    }

    #[getter]
    fn page_size_tokens(&self) -> u64 {
        self.0.page_size_tokens
    }

    #[getter]
    fn n_layers(&self) -> u64 {
        self.0.n_layers
    }

    #[getter]
    fn n_heads(&self) -> u64 {
        self.0.n_heads
    }

    #[getter]
    fn head_dim(&self) -> u64 {
        self.0.head_dim
    }

    #[getter]
    fn dtype(&self) -> &'static str {
        self.0.dtype.name()
    }

    /// Size of one K page (and of one V page) in bytes: layers × tokens × heads × head dimension × element size.
    #[getter]
    fn page_bytes(&self) -> Result<u64> {
        Ok(self.0.page_bytes()?)
    }

    /// Shape of one K page (and of one V page): layers, tokens, heads, head dimension.
    #[getter]
    fn shape(&self) -> (u64, u64, u64, u64) {
        (self.0.n_layers, self.0.page_size_tokens, self.0.n_heads, self.0.head_dim)
    }

    fn __getnewargs__(&self) -> (u64, u64, u64, u64, &'static str) {
        let meta = &self.0;
        (meta.page_size_tokens, meta.n_layers, meta.n_heads, meta.head_dim, meta.dtype.name())
    }

    fn __repr__(&self) -> String {
        let pages::CacheMeta { page_size_tokens, n_layers, n_heads, head_dim, dtype } = self.0;
        let dtype = dtype.name();
        format!("CacheMeta(page_size_tokens={page_size_tokens}, n_layers={n_layers}, n_heads={n_heads}, head_dim={head_dim}, dtype='{dtype}')")
    }
}

record! {
    /// One page: its number and the digests of its keys and values.
    Page { ix: u64, k: PyDigest, v: PyDigest } (ix, k, v) as "(ix, k, v)"
}

impl Page {
    const fn of(page: &pages::Page) -> Self {
        Self { ix: page.ix, k: PyDigest(page.k), v: PyDigest(page.v) }
    }
}

/// A sequence of tokens: its name, the numbers of its pages in order, and the tokens in the last one (0: it is full).
#[pyclass(module = "pfimg._core", frozen, eq, hash, from_py_object)]
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct LogicalSeq(pub pages::LogicalSeq);

#[pymethods]
impl LogicalSeq {
    #[new]
    #[pyo3(signature = (id, page_ixs, fill_in_last_page = 0))]
    const fn new(id: String, page_ixs: Vec<u64>, fill_in_last_page: u64) -> Self {
        Self(pages::LogicalSeq { id, page_ixs, fill_in_last_page })
    }

    #[getter]
    fn id(&self) -> &str {
        &self.0.id
    }

    #[getter]
    fn page_ixs<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        PyTuple::new(py, &self.0.page_ixs)
    }

    #[getter]
    fn fill_in_last_page(&self) -> u64 {
        self.0.fill_in_last_page
    }

    fn __getnewargs__<'py>(&self, py: Python<'py>) -> PyResult<(&str, Bound<'py, PyTuple>, u64)> {
        Ok((self.id(), self.page_ixs(py)?, self.fill_in_last_page()))
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let (id, page_ixs, fill) = self.__getnewargs__(py)?;
        let fields = [("id", id.into_bound_py_any(py)?), ("page_ixs", page_ixs.into_any()), ("fill_in_last_page", fill.into_bound_py_any(py)?)];
        repr("LogicalSeq", &fields)
    }
}

/// The pages of a `PageManifest`, in order of their numbers; each becomes an object when it is asked for.
#[pyclass(module = "pfimg._core", frozen)]
pub struct Pages(Arc<PageManifest>);

#[pymethods]
impl Pages {
    fn __len__(&self) -> usize {
        self.0.pages().len()
    }

    fn __getitem__<'py>(&self, index: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        get_item(self.0.pages(), index, Page::of)
    }

    fn __repr__(&self) -> String {
        format!("<{} pages>", self.__len__())
    }
}

/// A paged KV cache: geometry, pages, sequences. Given in any order, they come out in order of number and of name.
///
/// Errors: `FormatError` naming a number or a name that is there twice, a page that a sequence names and that is not there, or a fill that
/// the page size does not allow.
#[pyclass(name = "PageManifest", module = "pfimg._core", frozen, eq)]
pub struct PyPageManifest {
    pub manifest: Arc<PageManifest>,
    /// What it was read from.
    bytes: Option<Py<PyBytes>>,
}

impl PartialEq for PyPageManifest {
    fn eq(&self, other: &Self) -> bool {
        self.manifest == other.manifest
    }
}

impl From<PageManifest> for PyPageManifest {
    fn from(manifest: PageManifest) -> Self {
        Self { manifest: Arc::new(manifest), bytes: None }
    }
}

#[pymethods]
impl PyPageManifest {
    #[new]
    #[pyo3(signature = (meta, pages = Vec::new(), logical_seqs = Vec::new()), text_signature = "(meta, pages=(), logical_seqs=())")]
    fn new(py: Python<'_>, meta: CacheMeta, pages: Vec<Page>, logical_seqs: Vec<LogicalSeq>) -> Result<Self> {
        let pages = pages.into_iter().map(|page| pages::Page { ix: page.ix, k: page.k.0, v: page.v.0 }).collect();
        let logical_seqs = logical_seqs.into_iter().map(|sequence| sequence.0).collect();
        Ok(py.detach(|| PageManifest::new(meta.0, pages, logical_seqs))?.into())
    }

    /// Reads a page manifest from its JSON, of at most 1 GiB. Errors: `FormatError` with `.field` and `.offset`, `LimitExceeded`.
    #[staticmethod]
    fn from_json(data: &Bound<'_, PyAny>) -> Result<Self> {
        let source = constant(data, "data")?;
        let bytes = source.as_bytes();
        let manifest = work::compute(data.py(), bytes.len(), || PageManifest::parse(bytes))?;
        Ok(Self { manifest: Arc::new(manifest), bytes: Some(source.unbind()) })
    }

    /// The bytes it was read from, or for a new one its JSON as the published format prints it.
    fn to_json<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        match &self.bytes {
            Some(bytes) => bytes.bind(py).clone(),
            None => PyBytes::new(py, &py.detach(|| self.manifest.to_json())),
        }
    }

    /// Number of pages.
    fn __len__(&self) -> usize {
        self.manifest.pages().len()
    }

    /// An empty cache is a document all the same.
    #[expect(clippy::unused_self, reason = "Python's protocol")]
    fn __bool__(&self) -> bool {
        true
    }

    #[getter]
    fn layout(&self) -> &str {
        self.manifest.layout()
    }

    #[getter]
    fn meta(&self) -> CacheMeta {
        CacheMeta(*self.manifest.meta())
    }

    #[getter]
    fn pages(&self) -> Pages {
        Pages(Arc::clone(&self.manifest))
    }

    #[getter]
    fn logical_seqs<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        PyTuple::new(py, self.manifest.logical_seqs().iter().cloned().map(LogicalSeq))
    }

    fn __repr__(&self) -> String {
        format!("<PageManifest of {} pages, {} sequences, {}>", self.__len__(), self.manifest.logical_seqs().len(), self.meta().__repr__())
    }

    fn __reduce__<'py>(&self, py: Python<'py>) -> PyResult<(Bound<'py, PyAny>, (Bound<'py, PyBytes>,))> {
        Ok((py.get_type::<Self>().getattr("from_json")?, (self.to_json(py),)))
    }
}
