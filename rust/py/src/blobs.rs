//! Blobs of a store, wherever they are.

use std::path::PathBuf;
use std::sync::Arc;

use pfimg_core::codec::{self, Encoding, Framed};
use pfimg_core::store::{BlobReader, TASK_BLOBS};
use pfimg_core::{BlobStore, Digest, DirStore, Error, Monitor, limits, pool};
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use rayon::prelude::*;

use crate::errors::{Raised, Result};
use crate::foreign::Foreign;
use crate::frames;
use crate::memory::MemoryStore;
use crate::new_bytes::NewBytes;
use crate::store::Store;
use crate::work;

/// Files that are open at once while a batch is read.
const OPEN_FILES: usize = 256;

/// Where a store's blobs are.
pub enum Blobs {
    /// In its directory.
    Directory(Arc<DirStore>),
    /// In another store, which takes the place of the directory.
    Elsewhere(Arc<dyn BlobStore>),
}

/// The core's view of a Python object that is a blob store. Ours are taken as they are, without a way through Python.
pub fn blob_store(object: &Bound<'_, PyAny>) -> Result<Arc<dyn BlobStore>> {
    if let Ok(store) = object.cast::<MemoryStore>() {
        return Ok(Arc::clone(&store.get().0) as _);
    }
    if let Ok(store) = object.cast::<Store>() {
        return Ok(match &store.get().blobs {
            Blobs::Directory(store) => Arc::clone(store) as _,
            Blobs::Elsewhere(store) => Arc::clone(store),
        });
    }
    Ok(Arc::new(Foreign::new(object)?))
}

/// What a batch does with blobs that are absent or corrupt.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum OnMiss {
    Raise,
    Mask,
}

impl<'a, 'py> FromPyObject<'a, 'py> for OnMiss {
    type Error = Raised;

    fn extract(object: Borrowed<'a, 'py, PyAny>) -> Result<Self> {
        match object.extract()? {
            "raise" => Ok(Self::Raise),
            "mask" => Ok(Self::Mask),
            other => Err(Error::format("errors", format!("{other:?} is neither raise nor mask")).into()),
        }
    }
}

impl OnMiss {
    /// What an item's error does to the batch: nothing for a miss that is masked.
    pub fn settle(self, index: usize, error: Error) -> pfimg_core::Result<()> {
        match error {
            Error::BlobNotFound { .. } | Error::Integrity { .. } if self == Self::Mask => Ok(()),
            error => Err(error.at(index)),
        }
    }
}

impl Blobs {
    /// The blobs as any store's.
    pub fn any(&self) -> &dyn BlobStore {
        match self {
            Self::Directory(store) => store.as_ref(),
            Self::Elsewhere(store) => store.as_ref(),
        }
    }

    /// The blobs' directory, for what only works on files.
    pub fn directory(&self) -> Result<&DirStore> {
        match self {
            Self::Directory(store) => Ok(store),
            Self::Elsewhere(_) => Err(Error::Store("the store's blobs are not in its directory: look after them where they are".into()).into()),
        }
    }

    /// One blob as a new object.
    pub fn get<'py>(&self, py: Python<'py>, digest: &Digest) -> Result<Bound<'py, PyBytes>> {
        let bytes = match self {
            Self::Directory(store) => {
                let reader = py.detach(|| store.open_blob(digest))?;
                let opened = reserve(py, reader)?;
                py.detach(|| read(store, digest, opened))?
            }
            Self::Elsewhere(store) => Content::Read(py.detach(|| store.get(digest))?),
        };
        bytes.finish(py)
    }

    /// Many blobs as new objects; None for misses that are masked.
    pub fn get_many<'py>(&self, py: Python<'py>, digests: &[Digest], on_miss: OnMiss) -> Result<Vec<Option<Bound<'py, PyBytes>>>> {
        let contents = work::run(py, None, |monitor| {
            monitor.expect(digests.len() as u64);
            match self {
                Self::Directory(store) => read_many(store, digests, on_miss, monitor),
                Self::Elsewhere(store) => {
                    let get = |(index, digest)| {
                        monitor.advance(1, 0)?;
                        match store.get(digest) {
                            Ok(content) => Ok(Some(Content::Read(content))),
                            Err(error) => on_miss.settle(index, error).map(|()| None),
                        }
                    };
                    digests.iter().enumerate().map(get).collect()
                }
            }
        })?;
        contents.into_iter().map(|content| content.map(|content| content.finish(py)).transpose()).collect()
    }

    /// The stored frame; one is made where none is stored.
    pub fn frame(&self, digest: &Digest, encoding: Encoding) -> pfimg_core::Result<Vec<u8>> {
        match self {
            Self::Directory(store) => store.read_frame(digest),
            Self::Elsewhere(store) => Ok(encoding.published().encode(&store.get(digest)?).into_vec()),
        }
    }

    /// Many stored frames as new objects, verified; made where none are stored.
    pub fn frames<'py>(&self, py: Python<'py>, digests: &[Digest], encoding: Encoding) -> Result<Vec<Bound<'py, PyBytes>>> {
        let frames: Vec<Content> = work::run(py, None, |monitor| match self {
            Self::Directory(store) => read_frames(store, digests, monitor),
            Self::Elsewhere(_) => Ok(self.encoded(digests, encoding, monitor)?.into_iter().map(Content::Read).collect()),
        })?;
        frames.into_iter().map(|frame| frame.finish(py)).collect()
    }

    /// Bytes of the frames that [`Blobs::frames`] gives.
    pub fn frame_sizes(&self, digests: &[Digest], encoding: Encoding, monitor: &Monitor) -> pfimg_core::Result<Vec<u64>> {
        match self {
            Self::Directory(store) => store.frame_sizes(digests),
            Self::Elsewhere(_) => Ok(self.encoded(digests, encoding, monitor)?.iter().map(|frame| frame.len() as u64).collect()),
        }
    }

    /// Verifies a blob; returns the bytes of its frame.
    pub fn check(&self, digest: &Digest, encoding: Encoding, monitor: &Monitor) -> pfimg_core::Result<u64> {
        match self {
            Self::Directory(store) => store.check_blob(digest, monitor),
            Self::Elsewhere(_) => self.frame(digest, encoding).map(|frame| frame.len() as u64),
        }
    }

    /// Frames of another encoding, made in parallel. Decoded, no more blobs are in memory at a time than threads work.
    pub fn encoded(&self, digests: &[Digest], encoding: Encoding, monitor: &Monitor) -> pfimg_core::Result<Vec<Vec<u8>>> {
        let encode = |(index, digest): (usize, &Digest)| {
            let content = self.any().get(digest).map_err(|error| error.at(index))?;
            monitor.advance(1, content.len() as u64)?;
            Ok(encoding.encode(&content).into_vec())
        };
        digests.par_iter().enumerate().map(encode).collect()
    }

    /// Stores frames that came from elsewhere; returns how many were new.
    pub fn land(&self, items: &[(Digest, Framed<'_>)], monitor: &Monitor) -> pfimg_core::Result<u64> {
        match self {
            Self::Directory(store) => store.land_frames(items, monitor),
            Self::Elsewhere(store) => {
                let mut new = 0;
                for (index, (digest, frame)) in items.iter().enumerate() {
                    new += u64::from(land(store.as_ref(), digest, frame).map_err(|error| error.at(index))?);
                    monitor.advance(1, frame.bytes().len() as u64)?;
                }
                Ok(new)
            }
        }
    }

    /// Stores frames that lie in files; returns how many were new, and the bytes of the frames that were read.
    pub fn import(&self, items: &[(Digest, PathBuf)], monitor: &Monitor) -> pfimg_core::Result<(u64, u64)> {
        match self {
            Self::Directory(store) => store.import_files(items, monitor),
            Self::Elsewhere(store) => {
                monitor.expect(items.len() as u64);
                let (mut new, mut bytes) = (0, 0);
                for (index, (digest, path)) in items.iter().enumerate() {
                    let read = import(store.as_ref(), digest, path).map_err(|error| error.at(index))?;
                    new += u64::from(read.is_some());
                    bytes += read.unwrap_or(0);
                    monitor.advance(1, read.unwrap_or(0))?;
                }
                Ok((new, bytes))
            }
        }
    }
}

fn land(store: &dyn BlobStore, digest: &Digest, frame: &Framed<'_>) -> pfimg_core::Result<bool> {
    let content = frames::decode(frame, Some(digest))?;
    if store.has(digest)? {
        return Ok(false);
    }
    store.put(&content)?;
    Ok(true)
}

fn import(store: &dyn BlobStore, digest: &Digest, path: &PathBuf) -> pfimg_core::Result<Option<u64>> {
    if store.has(digest)? {
        return Ok(None);
    }
    let len = match path.metadata() {
        Ok(meta) => meta.len(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(Error::BlobNotFound { digest: digest.to_string() }),
        Err(error) => return Err(Error::io("stat", path)(error)),
    };
    if len > codec::stored_len(limits::BLOB_IN_MEMORY_BYTES) {
        return Err(Error::Limit { what: format!("blob {digest}"), name: "BLOB_IN_MEMORY_BYTES", limit: limits::BLOB_IN_MEMORY_BYTES });
    }
    let frame = std::fs::read(path).map_err(Error::io("read", path))?;
    land(store, digest, &Framed::of(&frame))?;
    Ok(Some(len))
}

/// A blob's content on its way to Python.
enum Content {
    /// In its object.
    Placed(NewBytes),
    /// Still to be copied.
    Read(Vec<u8>),
}

impl Content {
    fn finish(self, py: Python<'_>) -> Result<Bound<'_, PyBytes>> {
        match self {
            Self::Placed(new) => Ok(new.finish(py)),
            Self::Read(content) => {
                let mut new = NewBytes::new(py, content.len())?;
                py.detach(|| new.zeroed().copy_from_slice(&content));
                Ok(new.finish(py))
            }
        }
    }
}

/// A blob that is about to be read, and the object that was reserved for it.
type Opened<'a> = (BlobReader<'a>, Option<NewBytes>);

/// Makes the object for what will be read where its length is plausible; what is compressed may announce any length.
fn reserve<'a>(py: Python<'_>, reader: BlobReader<'a>) -> pfimg_core::Result<Opened<'a>> {
    let len = reader.len().filter(|_| reader.is_plausible()).and_then(|len| usize::try_from(len).ok());
    match len.map(|len| NewBytes::new(py, len)).transpose() {
        Ok(place) => Ok((reader, place)),
        Err(error) => Err(Error::Foreign(Box::new(error))),
    }
}

fn read(store: &DirStore, digest: &Digest, (reader, place): Opened<'_>) -> pfimg_core::Result<Content> {
    let Some(mut place) = place else { return reader.read().map(Content::Read) };
    match reader.read_into(place.zeroed()) {
        Ok(()) => Ok(Content::Placed(place)),
        // Sound, but of another length than the first of its frames says.
        Err(Error::Format { .. }) => store.get(digest).map(Content::Read),
        Err(error) => Err(error),
    }
}

/// Reads a batch on the pool. The interpreter is needed once for every few files, to make their objects.
fn read_many(store: &DirStore, digests: &[Digest], on_miss: OnMiss, monitor: &Monitor) -> pfimg_core::Result<Vec<Option<Content>>> {
    let mut contents = Vec::with_capacity(digests.len());
    for (at, chunk) in digests.chunks(OPEN_FILES).enumerate() {
        let opened: Vec<_> = chunk.par_iter().map(|digest| store.open_blob(digest)).collect();
        let reserved: Vec<_> = Python::attach(|py| opened.into_iter().map(|reader| reserve(py, reader?)).collect());
        let share = pool::share(chunk.len(), TASK_BLOBS);
        let tasks = reserved.into_par_iter().chunks(share).zip(chunk.par_chunks(share)).enumerate();
        let read = tasks.flat_map_iter(|(task, (opened, digests))| {
            let read = read_few(store, digests, opened, monitor).into_iter().enumerate();
            read.map(move |(index, content)| {
                let masked = |error| on_miss.settle(at * OPEN_FILES + task * share + index, error).map(|()| None);
                content.map_or_else(masked, |content| Ok(Some(content)))
            })
        });
        contents.extend(read.collect::<pfimg_core::Result<Vec<_>>>()?);
    }
    Ok(contents)
}

/// Reads what one task takes; what has its object already is verified together.
fn read_few(
    store: &DirStore,
    digests: &[Digest],
    opened: Vec<pfimg_core::Result<Opened<'_>>>,
    monitor: &Monitor,
) -> Vec<pfimg_core::Result<Content>> {
    let mut contents: Vec<Option<pfimg_core::Result<Content>>> = digests.iter().map(|_| None).collect();
    let (mut readers, mut places) = (Vec::with_capacity(opened.len()), Vec::with_capacity(opened.len()));
    for (index, opened) in opened.into_iter().enumerate() {
        match opened {
            Ok((reader, Some(place))) => {
                readers.push(reader);
                places.push((index, place));
            }
            Ok((reader, None)) => {
                let read = monitor.check().and_then(|()| reader.read());
                let read = read.and_then(|content| monitor.advance(1, content.len() as u64).map(|()| content));
                contents[index] = Some(read.map(Content::Read));
            }
            Err(error) => contents[index] = Some(Err(error)),
        }
    }
    let blobs = readers.into_iter().zip(&mut places).map(|(reader, (_, place))| Ok((reader, place.zeroed())));
    let mut failed = store.read_opened(blobs, monitor).into_iter().peekable();
    for (at, (index, place)) in places.into_iter().enumerate() {
        contents[index] = Some(match failed.next_if(|(failed, _)| *failed == at) {
            None => Ok(Content::Placed(place)),
            // Sound, but of another length than the first of its frames says.
            Some((_, Error::Format { .. })) => store.get(&digests[index]).map(Content::Read),
            Some((_, error)) => Err(error),
        });
    }
    contents.into_iter().map(|content| content.expect("each was opened, or failed to be")).collect()
}

/// Reads stored frames, each straight into its object.
fn read_frames(store: &DirStore, digests: &[Digest], monitor: &Monitor) -> pfimg_core::Result<Vec<Content>> {
    monitor.expect(digests.len() as u64);
    let lens = store.frame_lens(digests)?;
    let mut places: Vec<NewBytes> = Python::attach(|_| lens.into_iter().map(NewBytes::attached).collect::<pfimg_core::Result<_>>())?;
    let parts = places.iter_mut().map(NewBytes::whole);
    let items = digests.iter().zip(parts).map(|(digest, part)| (*digest, move || part.zeroed())).collect();
    let failed = store.read_frames(items, monitor);
    let mut frames: Vec<Content> = places.into_iter().map(Content::Placed).collect();
    for (index, error) in failed {
        frames[index] = match error {
            // Of another length than before: it was replaced meanwhile.
            Error::Changed { .. } => Content::Read(store.read_frame(&digests[index]).map_err(|error| error.at(index))?),
            error => return Err(error.at(index)),
        };
    }
    Ok(frames)
}
