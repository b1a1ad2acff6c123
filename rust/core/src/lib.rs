//! Content-addressed images of running models and agents.
//!
//! Bytes become verified blobs and blobs become bytes again; this crate does everything that touches every byte. Room map, each using only
//! what stands before it:
//!
//! [`error`], [`limits`] → [`path`], `sha256`, [`digest`], [`codec`], [`io`], [`pool`] → [`manifest`], [`tree`], [`pages`] → [`layout`] →
//! [`store`], [`arena`] → [`walk`], [`pack`], [`car`] → [`images`] → [`capture`], [`restore`] → [`verify`], [`gc`].

pub mod arena;
pub mod capture;
pub mod car;
pub mod codec;
pub mod digest;
pub mod error;
pub mod gc;
pub mod images;
pub mod io;
mod json;
pub mod layout;
pub mod limits;
pub mod manifest;
pub mod pack;
pub mod pages;
pub mod path;
pub mod pool;
pub mod restore;
mod sha256;
pub mod store;
pub mod tree;
pub mod verify;
pub mod walk;

pub use arena::PageArena;
pub use digest::{Algorithm, Digest};
pub use error::{Error, Result};
pub use images::Images;
pub use manifest::Manifest;
pub use pack::PackIndex;
pub use pages::PageManifest;
pub use pool::Monitor;
pub use store::{BlobStore, DirStore, MemoryStore};
pub use tree::FsTree;
