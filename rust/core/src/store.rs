//! Blob stores: bytes in, digest out, and back.
//!
//! [`BlobStore`] is what walks, trees and images need of a store. [`DirStore`] keeps blobs in a directory and is the one that matters;
//! [`MemoryStore`] keeps them in memory, for tests and for registries that are read without a store.

mod counters;
mod description;
mod dir;
mod frames;
mod land;
mod lock;
mod memory;
mod put;
mod read;
mod scan;
#[cfg(test)]
mod tests;

use std::io::{Read, Write};

use crate::codec::float::Width;
use crate::digest::{self, Algorithm, Digest};
use crate::error::{Error, Result};
use crate::limits;
use crate::pool::Monitor;

pub use counters::{Counters, Counts};
pub use dir::{DirStore, Durability, GRACE, LOOKED_UP_AT_ONCE, Options, RENEW_AFTER};
pub use lock::Hold;
pub use memory::MemoryStore;
pub use put::TASK_BLOBS;
pub(crate) use put::cut;
pub use read::BlobReader;
pub use scan::Usage;
pub(crate) use scan::{BlobFile, Scan};

/// Puts a few blobs; an error carries the index of its blob ([`Error::At`]).
pub type PutSome<'a> = dyn Fn(&[&[u8]]) -> Result<Vec<Digest>> + Sync + 'a;

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

    /// Stores a batch like [`BlobStore::put_many`], where some names are known: an item whose digest is given and already stored is neither
    /// read nor hashed; any other is hashed and must match ([`Error::Integrity`] otherwise). A cancelled call has stored some items.
    fn put_named(&self, blobs: &[&[u8]], digests: &[Option<Digest>], monitor: &Monitor) -> Result<Vec<Digest>> {
        let put = |blob: &[u8], name: Option<Digest>| {
            let digest = match name {
                Some(name) if self.has(&name)? => name,
                Some(name) => {
                    check_digest(self.algorithm(), blob, &name)?;
                    self.put(blob)?
                }
                None => self.put(blob)?,
            };
            monitor.advance(1, blob.len() as u64)?;
            Ok(digest)
        };
        let items = blobs.iter().zip(digests).enumerate();
        items.map(|(index, (blob, name))| put(blob, *name).map_err(|error: Error| error.at(index))).collect()
    }

    /// Stores pages whose items have this width, which a codec for floats need not find out then.
    fn put_floats(&self, blobs: &[&[u8]], width: Width, monitor: &Monitor) -> Result<Vec<Digest>> {
        let _ = width;
        self.put_named(blobs, &vec![None; blobs.len()], monitor)
    }

    /// Lets `work` put a few blobs at a time, from any threads, which share their syncs: what was put is on stable storage when this returns,
    /// where the store waits for that at all, and may not be seen before. Nothing is said of it after an error.
    fn put_grouped(&self, work: &mut dyn FnMut(&PutSome<'_>) -> Result<()>) -> Result<()> {
        work(&|blobs| self.put_many(blobs))
    }

    /// Which of a batch are there.
    fn has_many(&self, digests: &[Digest]) -> Result<Vec<bool>> {
        digests.iter().enumerate().map(|(index, digest)| self.has(digest).map_err(|error| error.at(index))).collect()
    }

    /// Whether a blob of that name is there and stays for a while: for who is about to rely on it, as a put that finds it does.
    fn keep(&self, digest: &Digest) -> Result<bool> {
        self.has(digest)
    }

    /// Which of a batch are there and stay for a while.
    fn keep_many(&self, digests: &[Digest]) -> Result<Vec<bool>> {
        digests.iter().enumerate().map(|(index, digest)| self.keep(digest).map_err(|error| error.at(index))).collect()
    }

    /// Reads a blob into `out`, which must have the blob's length ([`Error::Format`] otherwise). After an error `out` holds undefined bytes.
    fn get_into(&self, digest: &Digest, out: &mut [u8]) -> Result<()> {
        let bytes = self.get(digest)?;
        if bytes.len() != out.len() {
            return Err(wrong_length(digest, bytes.len() as u64, out.len()));
        }
        out.copy_from_slice(&bytes);
        Ok(())
    }

    /// Reads a batch, each blob into the buffer beside it, in parallel where the store can. What is returned failed: index and error, in
    /// order.
    fn get_many_into(&self, items: &mut [(Digest, &mut [u8])], monitor: &Monitor) -> Vec<(usize, Error)> {
        let get = |(index, (digest, out)): (usize, &mut (Digest, &mut [u8]))| {
            let got = self.get_into(digest, out).and_then(|()| monitor.advance(1, out.len() as u64));
            got.err().map(|error| (index, error))
        };
        items.iter_mut().enumerate().filter_map(get).collect()
    }

    /// Stores what `reader` gives until its end, which must come after `len` bytes ([`Error::Changed`] otherwise, and nothing is stored). A
    /// store on disk does not hold all of it in memory.
    fn put_stream(&self, reader: &mut dyn Read, len: u64) -> Result<Digest> {
        if len > limits::BLOB_IN_MEMORY_BYTES {
            return Err(Error::Limit { what: format!("blob of {len} bytes"), name: "BLOB_IN_MEMORY_BYTES", limit: limits::BLOB_IN_MEMORY_BYTES });
        }
        let mut bytes = Vec::new();
        let got = reader.take(len + 1).read_to_end(&mut bytes).map_err(Error::io("read", "stream"))? as u64;
        if got != len {
            return Err(Error::Changed { path: "stream".into(), reason: format!("it does not end after {len} bytes") });
        }
        self.put(&bytes)
    }

    /// Writes the blob's bytes to `writer`, without holding all of them in memory where the store can; returns their number. Bytes may have
    /// been written when this fails, so the caller makes the result visible only afterwards.
    fn get_stream(&self, digest: &Digest, writer: &mut dyn Write) -> Result<u64> {
        let bytes = self.get(digest)?;
        writer.write_all(&bytes).map_err(Error::io("write", "stream"))?;
        Ok(bytes.len() as u64)
    }
}

/// Fails unless `bytes` hash to `name`.
pub(crate) fn check_digest(algorithm: Algorithm, bytes: &[u8], name: &Digest) -> Result<()> {
    let found = digest::hash(algorithm, bytes);
    if found == *name { Ok(()) } else { Err(Error::integrity(name, format!("its bytes hash to {found}"))) }
}

/// The blob is sound, but the caller expected another size.
pub(crate) fn wrong_length(digest: &Digest, len: u64, expected: usize) -> Error {
    Error::format(format!("blob {digest}"), format!("has {len} bytes where {expected} are expected"))
}
