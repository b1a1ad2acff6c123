//! Trees of files.

use std::sync::Arc;

use pfimg_core::tree::{Entry, Kind};
use pfimg_core::{Error, FsTree};
use pyo3::IntoPyObjectExt;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::{get_item, repr};
use crate::buffers::constant;
use crate::digests::PyDigest;
use crate::errors::Result;
use crate::work;

/// One file, directory or link: relative path, mode as four octal digits, size in bytes, kind, and for files and links the blob that holds
/// the content or the target.
///
/// Errors: `FormatError` naming the field that is malformed, or that this kind does not have.
#[pyclass(module = "pfimg._core", frozen, eq, hash, from_py_object)]
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct FsTreeEntry(Entry);

#[pymethods]
impl FsTreeEntry {
    #[new]
    #[pyo3(signature = (path, mode, size, kind, blob = None, link_target = None))]
    fn new(path: String, mode: &str, size: u64, kind: &str, blob: Option<PyDigest>, link_target: Option<String>) -> Result<Self> {
        let bad = |field: &str, reason: String| Error::field(format!("tree entry {path:?}"), field, reason);
        let octal = mode.len() == 4 && mode.bytes().all(|digit| matches!(digit, b'0'..=b'7'));
        let mode = u16::from_str_radix(mode, 8).ok().filter(|_| octal).ok_or_else(|| bad("mode", format!("{mode:?} is not four octal digits")))?;
        let kind = match (kind, blob, link_target) {
            ("file", Some(blob), None) => Kind::File { blob: blob.0 },
            ("dir", None, None) => Kind::Dir,
            ("symlink", Some(blob), Some(target)) => Kind::Symlink { blob: blob.0, target },
            ("file", ..) => return Err(bad("blob", "a file has a blob and no link_target".into()).into()),
            ("dir", ..) => return Err(bad("blob", "a dir has neither blob nor link_target".into()).into()),
            ("symlink", ..) => return Err(bad("link_target", "a symlink has a blob and a link_target".into()).into()),
            (other, ..) => return Err(bad("kind", format!("{other:?} is none of file, dir, symlink")).into()),
        };
        Ok(Self(Entry { path, mode, size, kind }))
    }

    #[getter]
    fn path(&self) -> &str {
        &self.0.path
    }

    #[getter]
    fn mode(&self) -> String {
        format!("{:04o}", self.0.mode)
    }

    #[getter]
    fn size(&self) -> u64 {
        self.0.size
    }

    #[getter]
    fn kind(&self) -> &'static str {
        match self.0.kind {
            Kind::File { .. } => "file",
            Kind::Dir => "dir",
            Kind::Symlink { .. } => "symlink",
        }
    }

    #[getter]
    fn blob(&self) -> Option<PyDigest> {
        self.0.blob().copied().map(PyDigest)
    }

    #[getter]
    fn link_target(&self) -> Option<&str> {
        match &self.0.kind {
            Kind::Symlink { target, .. } => Some(target),
            _ => None,
        }
    }

    fn __getnewargs__(&self) -> (&str, String, u64, &'static str, Option<PyDigest>, Option<&str>) {
        (self.path(), self.mode(), self.size(), self.kind(), self.blob(), self.link_target())
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let fields = [
            ("path", self.path().into_bound_py_any(py)?),
            ("mode", self.mode().into_bound_py_any(py)?),
            ("size", self.size().into_bound_py_any(py)?),
            ("kind", self.kind().into_bound_py_any(py)?),
            ("blob", self.blob().into_bound_py_any(py)?),
            ("link_target", self.link_target().into_bound_py_any(py)?),
        ];
        let present: Vec<_> = fields.into_iter().filter(|(_, value)| !value.is_none()).collect();
        repr("FsTreeEntry", &present)
    }
}

/// The entries of an `FsTree`; each becomes an object when it is asked for.
#[pyclass(module = "pfimg._core", frozen)]
pub struct Entries(Arc<FsTree>);

#[pymethods]
impl Entries {
    fn __len__(&self) -> usize {
        self.0.entries.len()
    }

    fn __getitem__<'py>(&self, index: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        get_item(&self.0.entries, index, |entry| FsTreeEntry(entry.clone()))
    }

    fn __repr__(&self) -> String {
        format!("<{} entries>", self.__len__())
    }
}

/// What a directory holds. Entries given in any order come out in path order; those of a document stay as they stand in it.
///
/// Errors: `FormatError` naming an entry whose path is absolute, leaves the tree, is there twice, or runs through a file or link. A tree that
/// is read is not checked for that, so that it can be listed; `restore_tree` refuses it.
#[pyclass(name = "FsTree", module = "pfimg._core", frozen, eq)]
pub struct PyFsTree {
    tree: Arc<FsTree>,
    /// What it was read from.
    bytes: Option<Py<PyBytes>>,
}

impl PartialEq for PyFsTree {
    fn eq(&self, other: &Self) -> bool {
        self.tree == other.tree
    }
}

#[pymethods]
impl PyFsTree {
    #[new]
    #[pyo3(signature = (entries = Vec::new()), text_signature = "(entries=())")]
    fn new(entries: Vec<FsTreeEntry>) -> Result<Self> {
        let tree = FsTree::new(entries.into_iter().map(|entry| entry.0).collect())?;
        Ok(Self { tree: Arc::new(tree), bytes: None })
    }

    /// Reads a tree from its JSON, of at most 1 GiB. Errors: `FormatError` with `.field` and `.offset`, `LimitExceeded`.
    #[staticmethod]
    fn from_json(data: &Bound<'_, PyAny>) -> Result<Self> {
        let source = constant(data, "data")?;
        let bytes = source.as_bytes();
        let tree = work::compute(data.py(), bytes.len(), || FsTree::parse(bytes))?;
        Ok(Self { tree: Arc::new(tree), bytes: Some(source.unbind()) })
    }

    /// The bytes it was read from, or for a new one its JSON as the published format prints it.
    fn to_json<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        match &self.bytes {
            Some(bytes) => bytes.bind(py).clone(),
            None => PyBytes::new(py, &py.detach(|| self.tree.to_json())),
        }
    }

    /// Number of entries.
    fn __len__(&self) -> usize {
        self.tree.entries.len()
    }

    /// An empty directory is a tree all the same.
    #[expect(clippy::unused_self, reason = "Python's protocol")]
    fn __bool__(&self) -> bool {
        true
    }

    #[getter]
    fn entries(&self) -> Entries {
        Entries(Arc::clone(&self.tree))
    }

    fn __repr__(&self) -> String {
        format!("<FsTree of {} entries>", self.__len__())
    }

    fn __reduce__<'py>(&self, py: Python<'py>) -> PyResult<(Bound<'py, PyAny>, (Bound<'py, PyBytes>,))> {
        Ok((py.get_type::<Self>().getattr("from_json")?, (self.to_json(py),)))
    }
}
