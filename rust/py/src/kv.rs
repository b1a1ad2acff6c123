//! KV pages: arrays in, a page manifest out, and back.

use pfimg_core::pages::{CacheMeta, LAYOUT, LogicalSeq, Page};
use pfimg_core::{BlobStore, Digest, Error, Images, Manifest, PageManifest};
use pyo3::IntoPyObjectExt;
use pyo3::exceptions::PyTypeError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyMemoryView};

use crate::blobs::OnMiss;
use crate::buffers::{Batch, Targets};
use crate::errors::Result;
use crate::work;

const WHAT: &str = "page manifest";

/// What `put_pages` makes of its pages.
pub struct NewPages<'a> {
    pub meta: CacheMeta,
    pub first_ix: u64,
    pub logical_seqs: Vec<LogicalSeq>,
    pub base: Option<&'a PageManifest>,
}

impl NewPages<'_> {
    /// Stores the pages and describes them. What can be wrong with the description is found before anything is stored.
    pub fn put(&self, py: Python<'_>, blobs: &dyn BlobStore, k: &Bound<'_, PyAny>, v: &Bound<'_, PyAny>) -> Result<PageManifest> {
        const ONE: &str = "give a list of one";
        let (k, v) = (Batch::of(k, "k", ONE)?, Batch::of(v, "v", ONE)?);
        let (k, v) = (k.blobs(), v.blobs());
        if k.len() != v.len() {
            return Err(Error::format("pages", format!("k has {} and v has {}", k.len(), v.len())).into());
        }
        let page_bytes = self.meta.page_bytes()?;
        for (index, ((k, v), ix)) in k.iter().zip(&v).zip(self.first_ix..).enumerate() {
            for (side, page) in [("k", k), ("v", v)] {
                if page.len() as u64 != page_bytes {
                    let reason = format!("{} bytes where the geometry says {page_bytes}", page.len());
                    return Err(Error::field(format!("page {ix}"), side, reason).at(index).into());
                }
            }
        }
        let nothing = pfimg_core::digest::hash(blobs.algorithm(), &[]);
        let manifest = work::run(py, None, |monitor| {
            monitor.expect(2 * k.len() as u64);
            self.describe(&vec![nothing; 2 * k.len()])?;
            let pages: Vec<&[u8]> = k.into_iter().chain(v).collect();
            let half = pages.len() / 2;
            let digests = blobs.put_floats(&pages, self.meta.dtype.width(), monitor).map_err(|error| match error {
                Error::At { index, source } => source.at(index % half),
                other => other,
            })?;
            self.describe(&digests)
        })?;
        Ok(manifest)
    }

    /// The manifest of pages whose keys' digests come first and whose values' digests follow.
    fn describe(&self, digests: &[Digest]) -> pfimg_core::Result<PageManifest> {
        let (k, v) = digests.split_at(digests.len() / 2);
        if self.first_ix.checked_add(k.len() as u64).is_none() {
            return Err(Error::format("first_ix", format!("{} leaves no numbers for {} pages", self.first_ix, k.len())));
        }
        let pages = k.iter().zip(v).zip(self.first_ix..).map(|((k, v), ix)| Page { ix, k: *k, v: *v }).collect();
        match self.base {
            Some(base) => {
                check_layout(base)?;
                check_geometry(base.meta(), &self.meta)?;
                base.extended(pages, self.logical_seqs.clone())
            }
            None => PageManifest::new(self.meta, pages, self.logical_seqs.clone()),
        }
    }
}

/// Fails for pages whose bytes mean something that is not known.
fn check_layout(manifest: &PageManifest) -> pfimg_core::Result<()> {
    if manifest.layout() == LAYOUT {
        return Ok(());
    }
    Err(Error::field(WHAT, "layout", format!("layout {:?} is not known; {LAYOUT:?} is", manifest.layout())))
}

/// Fails, naming the field, when two geometries differ.
fn check_geometry(found: &CacheMeta, expected: &CacheMeta) -> pfimg_core::Result<()> {
    let fields = |meta: &CacheMeta| {
        let CacheMeta { page_size_tokens, n_layers, n_heads, head_dim, dtype } = *meta;
        let numbers = [("page_size_tokens", page_size_tokens), ("n_layers", n_layers), ("n_heads", n_heads), ("head_dim", head_dim)];
        numbers.map(|(name, number)| (name, number.to_string())).into_iter().chain([("dtype", dtype.name().to_owned())])
    };
    match fields(found).zip(fields(expected)).find(|(found, expected)| found != expected) {
        Some(((field, found), (_, expected))) => Err(Error::field(WHAT, field, format!("{found} where {expected} is expected"))),
        None => Ok(()),
    }
}

/// The page manifest with this digest, or the one of the image with this id.
pub fn find(blobs: &dyn BlobStore, images: &Images, digest: &Digest) -> pfimg_core::Result<PageManifest> {
    let manifest = match blobs.get(digest) {
        Ok(bytes) => match Manifest::parse(&bytes) {
            Ok(manifest) => manifest,
            Err(_) => return PageManifest::parse(&bytes),
        },
        Err(error @ Error::BlobNotFound { .. }) => images.marker(digest).map_err(|_| error)?,
        Err(error) => return Err(error),
    };
    PageManifest::parse(&blobs.get(&manifest.fields().cache.manifest)?)
}

/// Which pages of a manifest are wanted, in which order.
pub fn choose(manifest: &PageManifest, ixs: Option<&[u64]>, sequence: Option<&str>) -> Result<Vec<Page>> {
    let ixs = match (ixs, sequence) {
        (None, None) => return Ok(manifest.pages().to_vec()),
        (Some(_), Some(_)) => return Err(PyTypeError::new_err("give ixs or sequence, not both").into()),
        (Some(ixs), None) => ixs,
        (None, Some(id)) => &manifest.sequence(id).ok_or_else(|| Error::format(WHAT, format!("it has no sequence {id:?}")))?.page_ixs,
    };
    let page = |(index, ix): (usize, &u64)| manifest.page(*ix).copied().ok_or_else(|| Error::format(WHAT, format!("it has no page {ix}")).at(index));
    Ok(ixs.iter().enumerate().map(page).collect::<pfimg_core::Result<_>>()?)
}

/// Reads the pages of a manifest into `out_k` and `out_v`, or into new memory.
pub struct Wanted<'a> {
    pub manifest: &'a PageManifest,
    pub pages: Vec<Page>,
    pub on_miss: OnMiss,
    pub expect: Option<CacheMeta>,
}

impl Wanted<'_> {
    pub fn get<'py>(
        &self,
        py: Python<'py>,
        blobs: &dyn BlobStore,
        out_k: Option<&Bound<'py, PyAny>>,
        out_v: Option<&Bound<'py, PyAny>>,
    ) -> Result<Bound<'py, PyAny>> {
        check_layout(self.manifest)?;
        if let Some(expect) = &self.expect {
            check_geometry(self.manifest.meta(), expect)?;
        }
        let page_bytes = usize::try_from(self.manifest.meta().page_bytes()?).map_err(PyErr::from)?;
        let mask = self.on_miss == OnMiss::Mask;
        match (out_k, out_v) {
            (Some(k), Some(v)) => {
                let found = self.fill(py, blobs, k, v, page_bytes)?;
                Ok(if mask { found.into_bound_py_any(py)? } else { py.None().into_bound(py) })
            }
            (None, None) => {
                let (k, v) = (memory(py, self.pages.len(), page_bytes)?, memory(py, self.pages.len(), page_bytes)?);
                let found = self.fill(py, blobs, &k, &v, page_bytes)?;
                Ok(if mask { (k, v, found).into_bound_py_any(py)? } else { (k, v).into_bound_py_any(py)? })
            }
            _ => Err(PyTypeError::new_err("give both out_k and out_v, or neither").into()),
        }
    }

    /// Which pages were read.
    fn fill(&self, py: Python<'_>, blobs: &dyn BlobStore, k: &Bound<'_, PyAny>, v: &Bound<'_, PyAny>, page_bytes: usize) -> Result<Vec<bool>> {
        let [mut k, mut v] = Targets::of([(k, "out_k"), (v, "out_v")])?;
        let (k, v) = (k.places(), v.places());
        for (name, places) in [("out_k", &k), ("out_v", &v)] {
            if places.len() != self.pages.len() {
                return Err(Error::format(name, format!("it has {} rows for {} pages", places.len(), self.pages.len())).into());
            }
            if let Some(index) = places.iter().position(|place| place.len() != page_bytes) {
                let reason = format!("{} bytes where the geometry says {page_bytes}", places[index].len());
                return Err(Error::format(format!("{name}[{index}]"), reason).at(index).into());
            }
        }
        let n = self.pages.len();
        let mut found = vec![true; n];
        work::run(py, None, |monitor| {
            monitor.expect(2 * n as u64);
            let digests = self.pages.iter().map(|page| page.k).chain(self.pages.iter().map(|page| page.v));
            let mut items: Vec<(Digest, &mut [u8])> = digests.zip(k.into_iter().chain(v)).collect();
            for (at, error) in blobs.get_many_into(&mut items, monitor) {
                let (index, side) = if at < n { (at, "k") } else { (at - n, "v") };
                self.on_miss.settle(index, named(error, self.pages[index].ix, side))?;
                found[index] = false;
            }
            Ok(())
        })?;
        Ok(found)
    }
}

/// Tells in an error about a blob's form which page it was.
fn named(error: Error, ix: u64, side: &str) -> Error {
    match error {
        Error::Format { reason, .. } => Error::field(format!("page {ix}"), side, reason),
        other => other,
    }
}

/// A memoryview of shape (n, len) on new memory, which is zero and takes no room before it is written.
fn memory(py: Python<'_>, n: usize, len: usize) -> PyResult<Bound<'_, PyAny>> {
    let Some(bytes) = n.checked_mul(len).filter(|bytes| *bytes > 0) else {
        // What a cast cannot make: a view with an axis of length 0.
        let byte = py.import(intern!(py, "ctypes"))?.getattr(intern!(py, "c_ubyte"))?;
        return Ok(PyMemoryView::from(&byte.mul(len)?.mul(n)?.call0()?)?.into_any());
    };
    let module = py.import(intern!(py, "mmap"))?;
    let options = PyDict::new(py);
    options.set_item(intern!(py, "flags"), module.getattr(intern!(py, "MAP_PRIVATE"))?)?;
    let map = module.call_method(intern!(py, "mmap"), (-1, bytes), Some(&options))?;
    PyMemoryView::from(&map)?.call_method1(intern!(py, "cast"), (intern!(py, "B"), (n, len)))
}
