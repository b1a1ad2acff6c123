//! CAR archives: plans that are written, readers, and blocks by name.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pfimg_core::car::{self, BlobFrame, BlobFrames, Block, Blocks, Cid, Link, Node, Part, Plan, Reader, Source};
use pfimg_core::{Digest, Error, digest, limits};
use pyo3::exceptions::PyKeyError;
use pyo3::prelude::*;
use pyo3::sync::MutexExt;
use pyo3::types::{PyBytes, PyDict};

use crate::blobs::Blobs;
use crate::buffers::{Buffer, constant};
use crate::digests::PyDigest;
use crate::errors::Result;
use crate::new_bytes::NewBytes;
use crate::store::Store;
use crate::work;

/// Where a file's content is.
enum Content {
    Path(PathBuf),
    Memory(Buffer),
    Blob(BlobFrame),
}

/// The frames of a store's blobs in one encoding, for a plan.
#[pyclass(module = "pfimg._core", frozen)]
pub struct CarFrames(Arc<BlobFrames>);

#[pymethods]
impl CarFrames {
    #[new]
    fn new(store: &Bound<'_, Store>, codec: &str) -> Result<Self> {
        let store = store.get();
        let encoding = store.encoding_as(codec.parse()?);
        Ok(Self(match &store.blobs {
            Blobs::Directory(store) => BlobFrames::in_directory(Arc::clone(store), encoding),
            Blobs::Elsewhere(store) => BlobFrames::elsewhere(Arc::clone(store), encoding),
        }))
    }

    /// Frames by digest, as contents of a plan.
    fn of<'py>(&self, py: Python<'py>, digests: Vec<PyDigest>) -> Result<Bound<'py, PyDict>> {
        let frames = PyDict::new(py);
        for digest in digests {
            let frame = CarFrame(Arc::clone(&self.0), digest.0);
            frames.set_item(digest, frame)?;
        }
        Ok(frames)
    }
}

/// The frame of one blob.
#[pyclass(module = "pfimg._core", frozen)]
pub struct CarFrame(Arc<BlobFrames>, Digest);

impl Source for Content {
    fn size(&self) -> pfimg_core::Result<u64> {
        match self {
            Self::Path(path) => path.size(),
            Self::Memory(buffer) => Ok(buffer.bytes().len() as u64),
            Self::Blob(frame) => frame.size(),
        }
    }

    fn read_at(&self, out: &mut [u8], offset: u64) -> pfimg_core::Result<()> {
        match self {
            Self::Path(path) => path.read_at(out, offset),
            Self::Blob(frame) => frame.read_at(out, offset),
            Self::Memory(buffer) => {
                let start = usize::try_from(offset).expect("a place in memory");
                out.copy_from_slice(&buffer.bytes()[start..][..out.len()]);
                Ok(())
            }
        }
    }
}

/// A directory as a CAR that can be written.
#[pyclass(module = "pfimg._core", frozen)]
pub struct CarPlan(Plan<Content>);

#[pymethods]
impl CarPlan {
    /// Reads everything once: names, each with a path or a buffer. Errors carry `.index`.
    #[new]
    fn new(py: Python<'_>, entries: Vec<(String, Bound<'_, PyAny>)>) -> Result<Self> {
        digest::kernel()?;
        let content = |object: &Bound<'_, PyAny>| match (object.cast::<CarFrame>(), object.extract::<PathBuf>()) {
            (Ok(frame), _) => Ok(Content::Blob(frame.get().0.of(frame.get().1))),
            (_, Ok(path)) => Ok(Content::Path(path)),
            _ => Buffer::of(object, "content").map(Content::Memory),
        };
        let entries = entries.into_iter().map(|(name, object)| Ok((name, content(&object)?))).collect::<PyResult<Vec<_>>>()?;
        Ok(Self(work::run(py, None, |monitor| Plan::new(entries, monitor))?))
    }

    /// CID of the directory.
    #[getter]
    fn root(&self) -> String {
        self.0.root().to_string()
    }

    /// CIDs and bytes of the contents, in the order of the entries.
    #[getter]
    fn files(&self) -> Vec<(String, u64)> {
        self.0.files().iter().map(|(cid, size)| (cid.to_string(), *size)).collect()
    }

    /// Bytes of the CAR.
    #[getter]
    fn size(&self) -> u64 {
        self.0.whole().size()
    }

    /// Number of blocks.
    #[getter]
    fn blocks(&self) -> usize {
        self.0.whole().blocks()
    }

    /// What a service lacks that has these blocks: its contents first, the root last.
    fn upload(this: Py<Self>, there: Vec<String>) -> Result<CarPart> {
        let there = there.iter().map(|cid| cid.parse()).collect::<pfimg_core::Result<HashSet<Cid>>>()?;
        let part = Arc::new(this.get().0.upload(&there));
        Ok(CarPart { plan: this, part })
    }

    fn __iter__(this: Py<Self>) -> CarChunks {
        let part = Arc::new(this.get().0.whole());
        CarChunks { plan: this, part, next: Mutex::new(0) }
    }
}

/// Blocks of a plan as a CAR.
#[pyclass(module = "pfimg._core", frozen)]
pub struct CarPart {
    plan: Py<CarPlan>,
    part: Arc<Part>,
}

#[pymethods]
impl CarPart {
    /// Bytes of the CAR.
    #[getter]
    fn size(&self) -> u64 {
        self.part.size()
    }

    /// Number of blocks.
    #[getter]
    fn blocks(&self) -> usize {
        self.part.blocks()
    }

    fn __iter__(&self, py: Python<'_>) -> CarChunks {
        CarChunks { plan: self.plan.clone_ref(py), part: Arc::clone(&self.part), next: Mutex::new(0) }
    }
}

/// The bytes of a CAR, about a mebibyte at a time.
#[pyclass(module = "pfimg._core", frozen)]
pub struct CarChunks {
    plan: Py<CarPlan>,
    part: Arc<Part>,
    /// The first block of the next chunk.
    next: Mutex<usize>,
}

#[pymethods]
impl CarChunks {
    fn __iter__(this: Py<Self>) -> Py<Self> {
        this
    }

    fn __next__<'py>(&self, py: Python<'py>) -> Result<Option<Bound<'py, PyBytes>>> {
        let (plan, part) = (&self.plan.get().0, &*self.part);
        let mut next = locked(py, &self.next);
        let Some((blocks, len)) = plan.chunk(part, *next) else { return Ok(None) };
        // Nothing follows an error.
        *next = part.blocks();
        let end = blocks.end;
        let mut chunk = NewBytes::new(py, len)?;
        py.detach(|| plan.write(part, blocks, chunk.zeroed()))?;
        *next = end;
        Ok(Some(chunk.finish(py)))
    }
}

/// Gives the blocks of a CAR as it comes.
#[pyclass(module = "pfimg._core", frozen)]
pub struct CarReader(Mutex<Reader>);

#[pymethods]
impl CarReader {
    #[new]
    fn new() -> Result<Self> {
        digest::kernel()?;
        Ok(Self(Mutex::new(Reader::new())))
    }

    /// Takes bytes and gives the blocks that they complete: CID, codec, bytes.
    fn feed<'py>(&self, py: Python<'py>, data: &Bound<'py, PyAny>) -> Result<Vec<(String, &'static str, Bound<'py, PyBytes>)>> {
        let data = constant(data, "data")?;
        let bytes = data.as_bytes();
        let reader = &mut *locked(py, &self.0);
        let blocks = py.detach(|| reader.feed(bytes))?;
        Ok(blocks.iter().map(|block| (block.cid().to_string(), block.cid().codec().name(), PyBytes::new(py, block.bytes()))).collect())
    }

    /// Says that no more comes.
    fn finish(&self, py: Python<'_>) -> Result<()> {
        Ok(locked(py, &self.0).finish()?)
    }

    /// The roots; None before the header has come.
    #[getter]
    fn roots(&self, py: Python<'_>) -> Option<Vec<String>> {
        locked(py, &self.0).roots().map(|roots| roots.iter().map(Cid::to_string).collect())
    }
}

/// Verified blocks by name.
#[pyclass(module = "pfimg._core", frozen)]
pub struct CarBlocks(Mutex<Blocks>);

#[pymethods]
impl CarBlocks {
    #[new]
    fn new() -> Result<Self> {
        digest::kernel()?;
        Ok(Self(Mutex::new(Blocks::new())))
    }

    /// Keeps a block that is what its CID says.
    fn add(&self, py: Python<'_>, cid: &str, data: &Bound<'_, PyAny>) -> Result<()> {
        let cid: Cid = cid.parse()?;
        let data = constant(data, "data")?;
        let bytes = data.as_bytes();
        let block = work::compute(py, bytes.len(), || Block::check(cid, bytes))?;
        locked(py, &self.0).insert(&block);
        Ok(())
    }

    /// Takes bytes of a CAR and keeps the blocks that they complete.
    fn feed(&self, py: Python<'_>, reader: &CarReader, data: &Bound<'_, PyAny>) -> Result<()> {
        let data = constant(data, "data")?;
        let bytes = data.as_bytes();
        let reader = &mut *locked(py, &reader.0);
        let blocks = &mut *locked(py, &self.0);
        Ok(py.detach(|| reader.feed(bytes).map(|found| found.iter().for_each(|block| blocks.insert(block))))?)
    }

    fn __len__(&self, py: Python<'_>) -> usize {
        locked(py, &self.0).len()
    }

    fn __contains__(&self, py: Python<'_>, cid: &str) -> Result<bool> {
        let cid = cid.parse()?;
        Ok(locked(py, &self.0).get(&cid).is_some())
    }

    fn __getitem__<'py>(&self, py: Python<'py>, cid: &str) -> Result<Bound<'py, PyBytes>> {
        let name = cid.parse()?;
        let blocks = locked(py, &self.0);
        Ok(blocks.get(&name).map(|block| PyBytes::new(py, block)).ok_or_else(|| PyKeyError::new_err(cid.to_owned()))?)
    }

    /// Blocks that are linked to and not here.
    fn missing(&self, py: Python<'_>, cid: &str) -> Result<Vec<String>> {
        let cid = cid.parse()?;
        let blocks = &*locked(py, &self.0);
        Ok(py.detach(|| blocks.missing(&cid))?.iter().map(Cid::to_string).collect())
    }

    /// Entries of a directory: name, CID, bytes of all below.
    fn entries(&self, py: Python<'_>, cid: &str) -> Result<Vec<Row>> {
        let cid = cid.parse()?;
        let blocks = &*locked(py, &self.0);
        Ok(rows(py.detach(|| blocks.entries(&cid))?))
    }

    /// The entry of a directory that has a name: name, CID, bytes of all below; None where there is none.
    fn find(&self, py: Python<'_>, cid: &str, name: &str) -> Result<Option<Row>> {
        let cid = cid.parse()?;
        let blocks = &*locked(py, &self.0);
        Ok(rows(blocks.find(&cid, name)?.into_iter().collect()).pop())
    }

    /// Content of a file.
    fn read<'py>(&self, py: Python<'py>, cid: &str) -> Result<Bound<'py, PyBytes>> {
        let cid = cid.parse()?;
        let blocks = &*locked(py, &self.0);
        let size = blocks.size(&cid)?;
        let len = usize::try_from(size).ok().filter(|_| size <= limits::BLOB_IN_MEMORY_BYTES).ok_or_else(|| Error::Limit {
            what: format!("file {cid} of {size} bytes"),
            name: "BLOB_IN_MEMORY_BYTES",
            limit: limits::BLOB_IN_MEMORY_BYTES,
        })?;
        let mut content = NewBytes::new(py, len)?;
        py.detach(|| {
            let mut rest = content.zeroed();
            blocks.read(&cid, &mut |bytes| {
                rest.split_off_mut(..bytes.len()).expect("each part has the length that was told").copy_from_slice(bytes);
                Ok(())
            })
        })?;
        Ok(content.finish(py))
    }
}

/// A link for Python: name, CID, bytes.
type Row = (String, String, u64);

fn rows(links: Vec<Link>) -> Vec<Row> {
    links.into_iter().map(|link| (link.name, link.cid.to_string(), link.tsize)).collect()
}

/// What a block is, after it was hashed to its CID: kind, bytes of the file (None for a directory), links.
#[pyfunction]
pub fn car_node(py: Python<'_>, cid: &str, data: &Bound<'_, PyAny>) -> Result<(&'static str, Option<u64>, Vec<Row>)> {
    digest::kernel()?;
    let cid: Cid = cid.parse()?;
    let data = constant(data, "data")?;
    let bytes = data.as_bytes();
    let block = work::compute(py, bytes.len(), || Block::check(cid, bytes))?;
    let node = Node::parse(block.cid(), block.bytes())?;
    let size = node.size();
    let (kind, links) = match node {
        Node::File(_, links) => ("file", links.into_iter().map(|(link, size)| Link { tsize: size, ..link }).collect()),
        Node::Directory(links) => ("directory", links),
        Node::Shard { entries, shards, .. } => ("shard", entries.into_iter().chain(shards.into_iter().map(|(_, link)| link)).collect()),
    };
    Ok((kind, size, rows(links)))
}

/// The CID of a file with these bytes.
#[pyfunction]
pub fn car_cid_of(py: Python<'_>, data: &Bound<'_, PyAny>) -> Result<String> {
    digest::kernel()?;
    let data = Buffer::of(data, "data")?;
    Ok(work::compute(py, data.bytes().len(), || car::cid_of(data.bytes())).to_string())
}

/// What a lock holds. Whoever waits for it lets other threads run, as its holder may need them to.
fn locked<'a, T>(py: Python<'_>, lock: &'a Mutex<T>) -> MutexGuard<'a, T> {
    lock.lock_py_attached(py).unwrap_or_else(PoisonError::into_inner)
}
