//! Content-addressed images of running models and agents.
//!
//! Bytes become verified blobs and blobs become bytes again; this crate does everything that touches every byte. Room map, each using only
//! what stands before it:
//!
//! [`error`], [`limits`] → [`path`], [`digest`], [`codec`], [`io`], [`pool`] → [`manifest`], [`tree`], [`pages`] → [`layout`] → [`store`] →
//! [`images`] → [`walk`], [`capture`], [`restore`] → [`verify`], [`gc`].

pub mod codec;
pub mod digest;
pub mod error;
pub mod io;
pub mod layout;
pub mod limits;
pub mod path;
pub mod pool;
pub mod store;

pub use digest::{Algorithm, Digest};
pub use error::{Error, Result};
pub use pool::Monitor;
pub use store::{BlobStore, DirStore, MemoryStore};
