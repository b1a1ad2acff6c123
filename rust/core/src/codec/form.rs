//! The two kinds of frames, and what is done with either.

use super::{DecodeError, float};

/// How a blob's bytes are framed. A frame's first bytes tell its form, and so does the name of a file that holds one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Form {
    /// Standard zstd frames: what the published format knows.
    Zstd,
    /// A float frame ([`float`]).
    Float,
}

impl Form {
    /// The form of a frame; whatever does not begin as a float frame is taken for zstd's.
    #[must_use]
    pub fn of(frame: &[u8]) -> Self {
        // No zstd frame, skippable or not, begins with these bytes.
        if frame.starts_with(b"fpl") { Self::Float } else { Self::Zstd }
    }

    /// Content size told by the first bytes of a frame ([`super::FRAME_HEADER_MAX`] are enough for contents that fit into memory), if they
    /// tell one. Only a hint: a file may hold several frames, and any frame may lie.
    #[must_use]
    pub fn content_len_hint(self, head: &[u8]) -> Option<u64> {
        match self {
            Self::Zstd => super::content_len_hint(head),
            Self::Float => float::content_len(head).ok(),
        }
    }

    /// Content size of all frames together; None when one of them does not tell.
    pub fn content_len(self, frame: &[u8]) -> Result<Option<u64>, DecodeError> {
        match self {
            Self::Zstd => super::content_len(frame),
            Self::Float => float::content_len(frame).map(Some),
        }
    }

    /// Decodes into a new buffer of at most `cap` bytes.
    pub fn decode(self, frame: &[u8], cap: u64) -> Result<Vec<u8>, DecodeError> {
        match self {
            Self::Zstd => super::decode(frame, cap),
            Self::Float => float::decode(frame, cap),
        }
    }

    /// Decodes content that has exactly the length of `out`.
    pub fn decode_into(self, frame: &[u8], out: &mut [u8]) -> Result<(), DecodeError> {
        match self {
            Self::Zstd => super::decode_into(frame, out),
            Self::Float => float::decode_into(frame, out),
        }
    }
}
