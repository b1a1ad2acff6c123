//! Blobs of a store as contents of an archive: each is the frame that an encoding makes of it.
//!
//! A frame of one block is made anew at every reading, from content that was verified. A longer one is read from its file where it lies there
//! just so; otherwise it is made in memory, where the last few are kept.
//!
//! Limits: a blob of more than 1 GiB can be told only as it is stored, and only where that is what the encoding makes.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{ErrorKind, IoSliceMut};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use super::plan::{PROFILE, Source};
use crate::codec::{self, Codec, Encoding};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::io;
use crate::pool::Monitor;
use crate::store::{BlobStore, DirStore};

/// Frames of several blocks that are kept in memory.
const HELD: usize = 2;

/// The frames of a store's blobs.
pub struct BlobFrames {
    blobs: Arc<dyn BlobStore>,
    files: Option<Arc<DirStore>>,
    encoding: Encoding,
    held: Mutex<VecDeque<(Digest, Arc<Vec<u8>>)>>,
}

/// The frame of one blob.
pub struct BlobFrame {
    of: Arc<BlobFrames>,
    digest: Digest,
    place: OnceLock<Place>,
}

/// How long a frame is, and where it lies as it is, if it does.
struct Place {
    len: u64,
    file: Option<PathBuf>,
}

impl BlobFrames {
    /// Those of blobs that are in a directory.
    #[must_use]
    pub fn in_directory(store: Arc<DirStore>, encoding: Encoding) -> Arc<Self> {
        Arc::new(Self { blobs: Arc::clone(&store) as _, files: Some(store), encoding, held: Mutex::default() })
    }

    /// Those of blobs that are anywhere.
    #[must_use]
    pub fn elsewhere(blobs: Arc<dyn BlobStore>, encoding: Encoding) -> Arc<Self> {
        Arc::new(Self { blobs, files: None, encoding, held: Mutex::default() })
    }

    /// That of one blob.
    #[must_use]
    pub fn of(self: &Arc<Self>, digest: Digest) -> BlobFrame {
        BlobFrame { of: Arc::clone(self), digest, place: OnceLock::new() }
    }

    /// A frame of several blocks.
    fn whole(&self, digest: &Digest) -> Result<Arc<Vec<u8>>> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, frame)) = held.iter().find(|(name, _)| name == digest) {
            return Ok(Arc::clone(frame));
        }
        if held.len() == HELD {
            held.pop_front();
        }
        let frame = Arc::new(self.encoding.encode(&self.blobs.get(digest)?).into_vec());
        held.push_back((*digest, Arc::clone(&frame)));
        Ok(frame)
    }
}

impl BlobFrame {
    fn place(&self) -> Result<&Place> {
        if let Some(place) = self.place.get() {
            return Ok(place);
        }
        let place = match (self.of.encoding.codec, &self.of.files) {
            (Codec::Store, Some(store)) => self.look_up(store)?,
            _ => Place { len: self.of.encoding.encode(&self.of.blobs.get(&self.digest)?).len() as u64, file: None },
        };
        Ok(self.place.get_or_init(|| place))
    }

    /// Goes by what the file's length and first bytes tell; whether they are true shows when the content is read.
    fn look_up(&self, store: &DirStore) -> Result<Place> {
        let len = match store.open_blob(&self.digest)?.len() {
            Some(len) => len,
            None => match self.huge(store)? {
                Some(place) => return Ok(place),
                None => self.of.blobs.get(&self.digest)?.len() as u64,
            },
        };
        let len = codec::stored_len(len);
        let path = store.blob_path(&self.digest);
        let as_it_is = len > PROFILE.block_bytes && path.metadata().is_ok_and(|meta| meta.len() == len);
        if as_it_is {
            store.check_blob(&self.digest, &Monitor::new())?;
        }
        Ok(Place { len, file: as_it_is.then_some(path) })
    }

    /// The place of a blob that is too large for memory and lies there as it shall.
    fn huge(&self, store: &DirStore) -> Result<Option<Place>> {
        let path = store.blob_path(&self.digest);
        let mut head = [0; codec::FRAME_HEADER_MAX];
        let file = match File::open(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None), // it lies there in another form
            file => file.map_err(Error::io("open", &path))?,
        };
        let filled = io::read_vectored_at(&file, &mut [IoSliceMut::new(&mut head)], 0).map_err(Error::io("read", &path))?;
        let len = file.metadata().map_err(Error::io("stat", &path))?.len();
        if codec::content_len_hint(&head[..filled]).map(codec::stored_len) != Some(len) {
            return Ok(None);
        }
        store.check_blob(&self.digest, &Monitor::new())?;
        Ok(Some(Place { len, file: Some(path) }))
    }

    fn changed(&self) -> Error {
        Error::Changed { path: self.digest.to_string().into(), reason: "its frame has another length than before".into() }
    }
}

impl Source for BlobFrame {
    fn size(&self) -> Result<u64> {
        self.place().map(|place| place.len)
    }

    fn read_at(&self, out: &mut [u8], offset: u64) -> Result<()> {
        let place = self.place()?;
        if let Some(file) = &place.file {
            return file.read_at(out, offset);
        }
        if out.len() as u64 == place.len {
            let content = self.of.blobs.get(&self.digest)?;
            let frame = self.of.encoding.encode(&content);
            if frame.len() != out.len() {
                return Err(self.changed());
            }
            let mut rest = out;
            frame
                .write(|slices| {
                    for slice in slices {
                        rest.split_off_mut(..slice.len()).expect("they have the frame's length").copy_from_slice(slice);
                    }
                    Ok(())
                })
                .expect("memory takes everything");
            return Ok(());
        }
        let frame = self.of.whole(&self.digest)?;
        let start = usize::try_from(offset).expect("a place in memory");
        out.copy_from_slice(frame.get(start..start + out.len()).ok_or_else(|| self.changed())?);
        Ok(())
    }
}
