//! The one error type of the core.
//!
//! Every variant has a stable code ([`Error::code`]), names the item it is about, and says in lower case what is wrong. Bindings turn the
//! variants into their own classes; nothing here knows about Python.

use std::io;
use std::path::{Path, PathBuf};

/// What every fallible function of the core returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong, by kind.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No blob of that name is in the store.
    #[error("blob {digest} is not in the store")]
    BlobNotFound {
        /// The name that was asked for.
        digest: String,
    },
    /// No pin of that name is in the store.
    #[error("pin {name:?} is not in the store")]
    PinNotFound {
        /// The name that was asked for.
        name: String,
    },
    /// Bytes do not hash to their name.
    #[error("blob {digest} is corrupt: {reason}")]
    Integrity {
        /// The name the bytes were stored under.
        digest: String,
        /// What was found instead.
        reason: String,
        /// The file that held the bytes, if there is one.
        path: Option<PathBuf>,
    },
    /// A malformed or unsupported digest, manifest, tree, page manifest, frame or store description.
    #[error("{what}: {reason}{}", place(field.as_deref(), *offset))]
    Format {
        /// The document or item, for example `page manifest` or `digest "x"`.
        what: String,
        /// The field, as a path such as `pages[3].k`.
        field: Option<String>,
        /// Offset of the first offending byte.
        offset: Option<u64>,
        /// What is wrong with it.
        reason: String,
    },
    /// A named cap was hit.
    #[error("{what} exceeds the limit {name} of {limit}")]
    Limit {
        /// What was too large.
        what: String,
        /// The constant in [`crate::limits`].
        name: &'static str,
        /// Its value.
        limit: u64,
    },
    /// A file changed or vanished while it was read.
    #[error("{} changed while it was read: {reason}", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
        /// How it was noticed.
        reason: String,
    },
    /// The store cannot do what was asked, for example because it is held open by another upkeep run.
    #[error("{0}")]
    Store(String),
    /// The operating system said no.
    #[error("{op} {}: {source}", path.display())]
    Io {
        /// What was tried.
        op: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The caller asked to stop.
    #[error("cancelled")]
    Cancelled,
    /// A blob store that is not ours failed.
    #[error("{0}")]
    Foreign(Box<dyn std::error::Error + Send + Sync>),
    /// An item of a batch failed.
    #[error("item {index}: {source}")]
    At {
        /// Which item, from 0.
        index: usize,
        /// What happened to it.
        source: Box<Error>,
    },
}

fn place(field: Option<&str>, offset: Option<u64>) -> String {
    match (field, offset) {
        (Some(field), Some(offset)) => format!(" (field {field}, byte {offset})"),
        (Some(field), None) => format!(" (field {field})"),
        (None, Some(offset)) => format!(" (byte {offset})"),
        (None, None) => String::new(),
    }
}

impl Error {
    /// A stable word for programs; it does not change when the message does.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::BlobNotFound { .. } => "blob_not_found",
            Self::PinNotFound { .. } => "pin_not_found",
            Self::Integrity { .. } => "integrity",
            Self::Format { .. } => "format",
            Self::Limit { .. } => "limit",
            Self::Changed { .. } => "changed",
            Self::Store(_) => "store",
            Self::Io { .. } => "io",
            Self::Cancelled => "cancelled",
            Self::Foreign(_) => "foreign",
            Self::At { source, .. } => source.code(),
        }
    }

    /// A format error without a place.
    pub fn format(what: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Format { what: what.into(), field: None, offset: None, reason: reason.into() }
    }

    /// A format error about one field.
    pub fn field(what: impl Into<String>, field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Format { what: what.into(), field: Some(field.into()), offset: None, reason: reason.into() }
    }

    /// A corrupt blob.
    pub fn integrity(digest: &impl ToString, reason: impl Into<String>) -> Self {
        Self::Integrity { digest: digest.to_string(), reason: reason.into(), path: None }
    }

    /// A system error with the file it is about; made to be used as `.map_err(Error::io("open", path))`.
    pub fn io(op: &'static str, path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { op, path: path.as_ref().to_path_buf(), source }
    }

    /// The same error, told to be about item `index` of a batch (the outermost index wins).
    #[must_use]
    pub fn at(self, index: usize) -> Self {
        match self {
            Self::At { source, .. } => Self::At { index, source },
            Self::Cancelled => self,
            other => Self::At { index, source: Box::new(other) },
        }
    }

    /// The error below [`Error::At`].
    #[must_use]
    pub fn root(&self) -> &Self {
        match self {
            Self::At { source, .. } => source.root(),
            other => other,
        }
    }
}
