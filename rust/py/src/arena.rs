//! The class `PageArena`: pages in mapped memory.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use pfimg_core::arena::Geometry;
use pfimg_core::{Algorithm, Digest, Error};
use pyo3::IntoPyObjectExt;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::blobs::{OnMiss, blob_store};
use crate::buffers::{Batch, Targets};
use crate::digests::{self, PyDigest, names};
use crate::errors::Result;
use crate::work;

/// A fixed number of page slots in mapped memory. A page is hashed while it is copied in, and verified while it is copied out.
///
/// `path` names a file, which is made where it is missing and kept; None stands for memory of this process. `capacity_bytes` is what all pages
/// may take together; all of it is reserved now. `page_bytes` is the length of the longest page.
///
/// One process has a file open to write; `PageArena.attach(path)` reads it in others. A forked child opens it again.
///
/// Errors: `OSError` where the space is not there, `FormatError` for a file of another geometry or another kind, `StoreError` where it is open to
/// write already.
#[pyclass(module = "pfimg._core", frozen)]
pub struct PageArena {
    /// None once it is closed; calls under way keep it.
    arena: Mutex<Option<Arc<pfimg_core::PageArena>>>,
}

impl PageArena {
    fn of(arena: pfimg_core::PageArena) -> Self {
        Self { arena: Mutex::new(Some(Arc::new(arena))) }
    }

    fn open(&self) -> Result<Arc<pfimg_core::PageArena>> {
        let arena = self.arena.lock().unwrap_or_else(PoisonError::into_inner).clone();
        arena.ok_or_else(|| Error::Store("the arena is closed".into()).into())
    }
}

#[pymethods]
impl PageArena {
    #[new]
    #[pyo3(signature = (path, *, page_bytes, capacity_bytes, digest = "sha256"))]
    fn new(py: Python<'_>, path: Option<PathBuf>, page_bytes: usize, capacity_bytes: usize, digest: &str) -> Result<Self> {
        pfimg_core::digest::kernel()?;
        let slots = capacity_bytes.checked_div(page_bytes).unwrap_or(0);
        let Ok(slots @ 1..) = u32::try_from(slots) else {
            let reason = format!("{capacity_bytes} bytes hold {slots} pages of {page_bytes}: there may be 1 to {}", u32::MAX);
            return Err(Error::format("capacity_bytes", reason).into());
        };
        let geometry = Geometry { algorithm: digest.parse::<Algorithm>()?, page_bytes, slots };
        Ok(Self::of(py.detach(|| pfimg_core::PageArena::open(path.as_deref(), geometry))?))
    }

    /// The arena in a file that another process, or another object, writes to: for reading.
    #[staticmethod]
    fn attach(py: Python<'_>, path: PathBuf) -> Result<Self> {
        pfimg_core::digest::kernel()?;
        Ok(Self::of(py.detach(|| pfimg_core::PageArena::attach(&path))?))
    }

    /// The file; None for memory of this process.
    #[getter]
    fn path(&self) -> Result<Option<PathBuf>> {
        Ok(self.open()?.path().map(PathBuf::from))
    }

    /// Bytes of the longest page.
    #[getter]
    fn page_bytes(&self) -> Result<usize> {
        Ok(self.open()?.geometry().page_bytes)
    }

    /// Number of pages that there is room for.
    #[getter]
    fn slots(&self) -> Result<u32> {
        Ok(self.open()?.geometry().slots)
    }

    /// Algorithm of the pages' digests: `sha256` or `blake3`.
    #[getter]
    fn digest(&self) -> Result<&'static str> {
        Ok(self.open()?.geometry().algorithm.name())
    }

    /// Copies pages in, in parallel; returns their digests, in order. Pages that were asked for least make room.
    ///
    /// `buffers` is a sequence of buffers, or one of two or more dimensions whose axis 0 is pages; none is longer than `page_bytes`
    /// (`LimitExceeded`). `digests` names all of them: one that is there already is neither copied nor hashed, any other has to hash to its name
    /// (`IntegrityError`).
    ///
    /// An error carries the item's `.index`; others may have been put. Errors: `StoreError` when all slots are pinned.
    #[pyo3(signature = (buffers, *, digests = None))]
    fn put_many(&self, py: Python<'_>, buffers: &Bound<'_, PyAny>, digests: Option<Vec<PyDigest>>) -> Result<Vec<PyDigest>> {
        let arena = self.open()?;
        let buffers = Batch::of(buffers, "buffers", "give a list of one")?;
        let pages = buffers.blobs();
        let known: Option<Vec<Digest>> = digests.map(digests::digests);
        if let Some(known) = known.as_ref().filter(|known| known.len() != pages.len()) {
            return Err(Error::format("digests", format!("{} for {} buffers", known.len(), pages.len())).into());
        }
        let put = work::run(py, None, |monitor| {
            monitor.expect(pages.len() as u64);
            arena.put_many(&pages, known.as_deref(), monitor)
        })?;
        Ok(names(put))
    }

    /// Copies pages out, in parallel, each verified, into `out`: a sequence of writable buffers, or one of two or more dimensions whose axis 0
    /// is pages, each of its page's length (`FormatError` otherwise).
    ///
    /// With `errors="mask"` an absent or corrupt page is no error: a list of bools is returned, true where the page is in `out`. Rows that are not
    /// true, and all rows after an error, hold undefined bytes. An error carries the item's `.index`.
    #[pyo3(signature = (digests, *, out, errors = OnMiss::Raise), text_signature = "($self, digests, *, out, errors='raise')")]
    fn get_many<'py>(&self, py: Python<'py>, digests: Vec<PyDigest>, out: &Bound<'py, PyAny>, errors: OnMiss) -> Result<Bound<'py, PyAny>> {
        let arena = self.open()?;
        let [mut out] = Targets::of([(out, "out")])?;
        let places = out.places();
        if places.len() != digests.len() {
            return Err(Error::format("out", format!("it has {} rows for {} digests", places.len(), digests.len())).into());
        }
        let found = work::run(py, None, |monitor| {
            monitor.expect(digests.len() as u64);
            let mut items: Vec<(Digest, &mut [u8])> = digests.into_iter().map(|digest| digest.0).zip(places).collect();
            let mut found = vec![true; items.len()];
            for (index, error) in arena.get_many(&mut items, monitor)? {
                errors.settle(index, error)?;
                found[index] = false;
            }
            Ok(found)
        })?;
        Ok(if errors == OnMiss::Mask { found.into_bound_py_any(py)? } else { py.None().into_bound(py) })
    }

    /// Puts pages into a store, in parallel, straight from their slots, each verified; returns which are there now. The others are not here, or
    /// were found corrupt. Errors: those of the store's `put_many`; some pages may have been put.
    fn write_to(&self, py: Python<'_>, store: &Bound<'_, PyAny>, digests: Vec<PyDigest>) -> Result<Vec<bool>> {
        let (arena, store, names) = (self.open()?, blob_store(store)?, digests::digests(digests));
        let failed = work::run(py, None, |monitor| {
            monitor.expect(names.len() as u64);
            arena.write_to(store.as_ref(), &names, monitor)
        })?;
        let mut found = vec![true; names.len()];
        for (index, _) in failed {
            found[index] = false;
        }
        Ok(found)
    }

    /// Reads pages from a store into `out`, as its `get_many` does with `errors="mask"`, and keeps a copy of each here, where there is room.
    #[pyo3(signature = (store, digests, *, out))]
    fn read_from(&self, py: Python<'_>, store: &Bound<'_, PyAny>, digests: Vec<PyDigest>, out: &Bound<'_, PyAny>) -> Result<Vec<bool>> {
        let (arena, store) = (self.open()?, blob_store(store)?);
        let [mut out] = Targets::of([(out, "out")])?;
        let places = out.places();
        if places.len() != digests.len() {
            return Err(Error::format("out", format!("it has {} rows for {} digests", places.len(), digests.len())).into());
        }
        work::run(py, None, |monitor| {
            monitor.expect(digests.len() as u64);
            let mut items: Vec<(Digest, &mut [u8])> = digests.into_iter().map(|digest| digest.0).zip(places).collect();
            let mut found = vec![true; items.len()];
            for (index, error) in arena.read_from(store.as_ref(), &mut items, monitor)? {
                OnMiss::Mask.settle(index, error)?;
                found[index] = false;
            }
            Ok(found)
        })
    }

    /// Whether each page is there; none is read.
    fn has_many(&self, py: Python<'_>, digests: Vec<PyDigest>) -> Result<Vec<bool>> {
        let (arena, names) = (self.open()?, digests::digests(digests));
        Ok(py.detach(|| arena.has_many(&names))?)
    }

    /// Keeps pages from making room for others, until `unpin` was called as often; returns which of them were there.
    fn pin(&self, py: Python<'_>, digests: Vec<PyDigest>) -> Result<Vec<bool>> {
        let (arena, names) = (self.open()?, digests::digests(digests));
        Ok(py.detach(|| arena.pin(&names))?)
    }

    /// The inverse of `pin`; returns which of them were pinned.
    fn unpin(&self, py: Python<'_>, digests: Vec<PyDigest>) -> Result<Vec<bool>> {
        let (arena, names) = (self.open()?, digests::digests(digests));
        Ok(py.detach(|| arena.unpin(&names))?)
    }

    /// Takes pages out, pinned or not; returns which of them were there.
    fn remove(&self, py: Python<'_>, digests: Vec<PyDigest>) -> Result<Vec<bool>> {
        let (arena, names) = (self.open()?, digests::digests(digests));
        Ok(py.detach(|| arena.remove(&names))?)
    }

    /// What it holds, and what this object has done, by name.
    fn stats<'py>(&self, py: Python<'py>) -> Result<Bound<'py, PyDict>> {
        let arena = self.open()?;
        let counts = py.detach(|| arena.counts())?;
        let stats = PyDict::new(py);
        for (name, count) in counts.named() {
            stats.set_item(name, count)?;
        }
        Ok(stats)
    }

    /// Lets go of the memory and the file's lock, once all calls have ended. Closing twice does no harm.
    fn close(&self, py: Python<'_>) {
        let arena = self.arena.lock().unwrap_or_else(PoisonError::into_inner).take();
        py.detach(|| drop(arena));
    }

    fn __enter__<'py>(this: &Bound<'py, Self>) -> Bound<'py, Self> {
        this.clone()
    }

    #[pyo3(signature = (*_exc))]
    fn __exit__(&self, py: Python<'_>, _exc: &Bound<'_, pyo3::types::PyTuple>) {
        self.close(py);
    }
}
