//! Blob stores: bytes in, digest out, and back.
//!
//! [`BlobStore`] is what walks, trees and images need of a store. [`DirStore`] keeps blobs in a directory and is the one that matters;
//! [`MemoryStore`] keeps them in memory, for tests and for registries that are read without a store.

mod memory;

use std::io::{Read, Write};

use crate::digest::{Algorithm, Digest};
use crate::error::{Error, Result};
use crate::limits;

pub use memory::MemoryStore;

/// A place that keeps blobs under their digests. Every read is verified.
pub trait BlobStore: Send + Sync {
    /// The hash function of this store's names.
    fn algorithm(&self) -> Algorithm;

    /// Stores a blob; returns its name. A blob that is already there is not written again.
    fn put(&self, bytes: &[u8]) -> Result<Digest>;

    /// The blob's bytes.
    ///
    /// # Errors
    /// [`Error::BlobNotFound`], [`Error::Integrity`], [`Error::Limit`] above [`limits::BLOB_IN_MEMORY_BYTES`].
    fn get(&self, digest: &Digest) -> Result<Vec<u8>>;

    /// Whether a blob of that name is there (its bytes are not read).
    fn has(&self, digest: &Digest) -> Result<bool>;

    /// Bytes that the blobs take, encoded.
    fn physical_bytes(&self) -> Result<u64>;

    /// Stores a batch, in parallel where the store can. The error of a failed item carries its index ([`Error::At`]).
    fn put_many(&self, blobs: &[&[u8]]) -> Result<Vec<Digest>> {
        blobs.iter().enumerate().map(|(index, blob)| self.put(blob).map_err(|error| error.at(index))).collect()
    }

    /// Stores what `reader` gives until its end, without holding all of it in memory where the store can. `len` is the length if it is
    /// known; a reader that gives another number of bytes is an error, and nothing is stored.
    fn put_stream(&self, reader: &mut dyn Read, len: Option<u64>) -> Result<(Digest, u64)> {
        let mut bytes = Vec::new();
        reader.take(limits::BLOB_IN_MEMORY_BYTES + 1).read_to_end(&mut bytes).map_err(Error::io("read", "stream"))?;
        let got = bytes.len() as u64;
        if got > limits::BLOB_IN_MEMORY_BYTES {
            return Err(Error::Limit { what: "streamed blob".into(), name: "BLOB_IN_MEMORY_BYTES", limit: limits::BLOB_IN_MEMORY_BYTES });
        }
        if let Some(len) = len
            && len != got
        {
            return Err(Error::Changed { path: "stream".into(), reason: format!("{got} bytes instead of {len}") });
        }
        Ok((self.put(&bytes)?, got))
    }

    /// Writes the blob's bytes to `writer`, without holding all of them in memory where the store can; returns their number. Bytes may have
    /// been written when this fails, so the caller makes the result visible only afterwards.
    fn get_stream(&self, digest: &Digest, writer: &mut dyn Write) -> Result<u64> {
        let bytes = self.get(digest)?;
        writer.write_all(&bytes).map_err(Error::io("write", "stream"))?;
        Ok(bytes.len() as u64)
    }
}
