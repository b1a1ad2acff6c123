//! The two kinds of frames, and what is done with either.

use super::{DecodeError, float, stored_blocks};

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

/// A frame in memory that somebody else made, and what a look at it has shown.
///
/// A stored frame is taken apart by that look and never again: its content is hashed and copied where it lies, and nothing is decoded, even if
/// its bytes change meanwhile.
#[derive(Debug)]
pub struct Framed<'a> {
    form: Form,
    bytes: &'a [u8],
    blocks: Option<Vec<&'a [u8]>>,
}

impl<'a> Framed<'a> {
    /// A frame whose first bytes tell its form.
    #[must_use]
    pub fn of(bytes: &'a [u8]) -> Self {
        Self::in_form(Form::of(bytes), bytes)
    }

    /// A frame that has to be of this form.
    #[must_use]
    pub fn in_form(form: Form, bytes: &'a [u8]) -> Self {
        Self { form, bytes, blocks: if form == Form::Zstd { stored_blocks(bytes) } else { None } }
    }

    /// Its form.
    #[must_use]
    pub const fn form(&self) -> Form {
        self.form
    }

    /// The whole frame.
    #[must_use]
    pub const fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The content of a stored frame, in blocks of [`super::BLOCK_BYTES`]; None for one that has to be decoded.
    #[must_use]
    pub fn blocks(&self) -> Option<&[&'a [u8]]> {
        self.blocks.as_deref()
    }

    /// The content, in a new buffer of at most `cap` bytes.
    pub fn decode(&self, cap: u64) -> Result<Vec<u8>, DecodeError> {
        match &self.blocks {
            Some(blocks) if blocks.iter().map(|block| block.len() as u64).sum::<u64>() > cap => Err(DecodeError::TooLarge),
            Some(blocks) => Ok(blocks.concat()),
            None => self.form.decode(self.bytes, cap),
        }
    }
}
