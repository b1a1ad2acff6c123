//! Frames: how a blob's bytes are encoded on disk and on the wire.
//!
//! Whatever is written is exactly one standard zstd frame with its content size and without a checksum (blobs are checked by their names).
//! What does not compress is written as a *stored* frame: raw blocks of 128 KiB between three-byte headers, so that it is written and read
//! at the speed of the disk, straight from and into the caller's buffer. A stored frame depends on the content alone and is therefore also
//! the canonical encoding. What is read is any sequence of standard zstd frames, skippable ones included.
//!
//! Where it is asked for, pages of floats become *float* frames ([`float`]), which only this software reads; [`Form`] tells the two apart.
//!
//! This file is the only one that names zstd. Limits: windows up to 128 MiB ([`limits::ZSTD_WINDOW_LOG`]) when decoding by streaming.

pub mod float;
mod form;
mod sample;
mod stored;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::io::{self, IoSlice, Read, Write};
use std::str::FromStr;

use zstd::bulk::{Compressor, Decompressor};
use zstd::zstd_safe::{self, CParameter, DParameter, ResetDirective};

use crate::error::{Error, Result};
use crate::limits;

use float::Width;
pub use form::{Form, Framed};
pub use stored::{Found, read_stored, stored_len, write_stored};
use stored::{SINGLE_SEGMENT_BYTES, WINDOW_LOG};

/// Raw blocks of a stored frame have this size (the last may be shorter). It is zstd's maximum.
pub const BLOCK_BYTES: usize = 128 << 10;
/// Magic, descriptor, window byte, eight bytes of size.
pub const FRAME_HEADER_MAX: usize = 14;

/// When to compress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    /// zstd where a sample of the blob saves at least 30 %, else a stored frame.
    Auto,
    /// Always zstd.
    Zstd,
    /// Never.
    Store,
    /// A float frame where that pays, else as [`Codec::Auto`].
    Float,
}

impl FromStr for Codec {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        match s {
            "auto" => Ok(Self::Auto),
            "zstd" => Ok(Self::Zstd),
            "store" => Ok(Self::Store),
            "float" => Ok(Self::Float),
            other => Err(Error::format("codec", format!("{other:?} is none of auto, zstd, store, float"))),
        }
    }
}

/// A codec with its zstd level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Encoding {
    /// When to compress.
    pub codec: Codec,
    /// zstd's level.
    pub level: i32,
}

impl Encoding {
    /// A checked pair.
    ///
    /// # Errors
    /// [`Error::Format`] for a level outside of 1 and zstd's highest.
    pub fn new(codec: Codec, level: i32) -> Result<Self> {
        let highest = *zstd::compression_level_range().end();
        if !(1..=highest).contains(&level) {
            return Err(Error::format("level", format!("{level} is not within 1 and {highest}")));
        }
        Ok(Self { codec, level })
    }

    /// The same for what must be of the published format: no float frames.
    #[must_use]
    pub fn published(self) -> Self {
        if self.codec == Codec::Float { Self { codec: Codec::Auto, ..self } } else { self }
    }

    /// Encodes a blob.
    #[must_use]
    pub fn encode(self, content: &[u8]) -> Frame<'_> {
        self.encode_items(content, None)
    }

    /// Encodes a blob whose bytes are floats of this width, if it is known. Where it is not, a sample tells; zstd does better with what looks
    /// like floats, but has no mantissas that are noise, and becomes 30 % smaller.
    #[must_use]
    pub fn encode_items(self, content: &[u8], width: Option<Width>) -> Frame<'_> {
        if self.codec == Codec::Float {
            let sniff = || float::sniff(content).filter(|found| found.noise || !sample::saves(content)).map(|found| found.width);
            if let Some(frame) = width.or_else(sniff).and_then(|width| float::encode(content, width)) {
                return Frame::Float(frame);
            }
        }
        if self.compresses(content, content.len() as u64) { Frame::Compressed(compress(content, self.level)) } else { Frame::Stored(content) }
    }

    /// Encodes a blob of `len` bytes as it is read, without holding it: `each` sees every piece of content first, in order. Returns whether
    /// it was compressed. Never a float frame, which takes the whole content at once.
    ///
    /// # Errors
    /// Those of reading and writing; [`io::ErrorKind::UnexpectedEof`] when the reader ends early and [`io::ErrorKind::InvalidData`] when it
    /// goes on after `len` bytes.
    pub fn encode_stream(self, reader: &mut dyn Read, len: u64, writer: &mut dyn Write, mut each: impl FnMut(&[u8])) -> io::Result<bool> {
        // A multiple of the block size, so that every piece but the last fills its raw blocks.
        let mut piece = vec![0; 8 * BLOCK_BYTES];
        let mut left = len;
        let mut next = |piece: &mut [u8]| -> io::Result<usize> {
            let n = usize::try_from(left).map_or(piece.len(), |left| left.min(piece.len()));
            reader.read_exact(&mut piece[..n])?;
            each(&piece[..n]);
            left -= n as u64;
            if left == 0 && reader.read(&mut [0])? > 0 {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "longer than announced"));
            }
            Ok(n)
        };
        let mut n = next(&mut piece)?;
        let compresses = self.compresses(&piece[..n], len);
        if compresses {
            let mut encoder = zstd::stream::write::Encoder::new(writer, self.level)?;
            encoder.set_pledged_src_size(Some(len))?;
            if len > SINGLE_SEGMENT_BYTES {
                encoder.window_log(WINDOW_LOG)?;
            }
            let mut written = 0;
            loop {
                encoder.write_all(&piece[..n])?;
                written += n as u64;
                if written == len {
                    break;
                }
                n = next(&mut piece)?;
            }
            encoder.finish()?;
        } else {
            let mut written = 0;
            loop {
                write_stored(len, written, &piece[..n], |slices| slices.iter().try_for_each(|slice| writer.write_all(slice)))?;
                written += n as u64;
                if written == len {
                    break;
                }
                n = next(&mut piece)?;
            }
        }
        Ok(compresses)
    }

    fn compresses(self, head: &[u8], len: u64) -> bool {
        match self.codec {
            Codec::Auto | Codec::Float => len > 0 && sample::saves(head),
            Codec::Zstd => true,
            Codec::Store => false,
        }
    }
}

/// Runs `work` with this thread's compressor; making one costs more than compressing a page.
fn with_compressor<R>(level: i32, windowed: bool, work: impl FnOnce(&mut Compressor<'static>) -> R) -> R {
    thread_local!(static COMPRESSOR: RefCell<Compressor<'static>> = RefCell::new(Compressor::new(1).expect("out of memory")));
    COMPRESSOR.with_borrow_mut(|compressor| {
        // A compression that did not fit its buffer is otherwise still open.
        compressor.context_mut().reset(ResetDirective::SessionOnly).expect("nothing to allocate");
        compressor.set_compression_level(level).expect("the level was checked");
        let window = if windowed { WINDOW_LOG } else { 0 };
        compressor.set_parameter(CParameter::WindowLog(window)).expect("a constant in zstd's range");
        work(compressor)
    })
}

fn compress(content: &[u8], level: i32) -> Vec<u8> {
    let mut out = Vec::with_capacity(zstd::compress_bound(content.len()));
    with_compressor(level, content.len() as u64 > SINGLE_SEGMENT_BYTES, |compressor| compressor.compress_to_buffer(content, &mut out))
        .expect("the buffer has the size that zstd asks for");
    out
}

/// An encoded blob.
pub enum Frame<'a> {
    /// Raw blocks of the caller's bytes.
    Stored(&'a [u8]),
    /// Bytes that zstd made.
    Compressed(Vec<u8>),
    /// A float frame.
    Float(Vec<u8>),
}

impl Frame<'_> {
    /// Gives `write` the frame's pieces in order, for gathering writes.
    ///
    /// # Errors
    /// Those of `write`.
    pub fn write(&self, mut write: impl FnMut(&mut [IoSlice<'_>]) -> io::Result<()>) -> io::Result<()> {
        match self {
            Self::Stored(content) => write_stored(content.len() as u64, 0, content, write),
            Self::Compressed(bytes) | Self::Float(bytes) => write(&mut [IoSlice::new(bytes)]),
        }
    }

    /// Length of the frame.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "the shortest frame has nine bytes")]
    pub fn len(&self) -> usize {
        match self {
            Self::Stored(content) => usize::try_from(stored_len(content.len() as u64)).expect("a slice and a little more"),
            Self::Compressed(bytes) | Self::Float(bytes) => bytes.len(),
        }
    }

    /// The frame in one piece.
    #[must_use]
    pub fn into_vec(self) -> Vec<u8> {
        if let Self::Compressed(bytes) | Self::Float(bytes) = self {
            return bytes;
        }
        let mut whole = Vec::with_capacity(self.len());
        let written = self.write(|slices| {
            for slice in slices {
                whole.extend_from_slice(slice);
            }
            Ok(())
        });
        written.expect("a vector takes everything");
        whole
    }

    /// Whether zstd made it smaller.
    #[must_use]
    pub fn is_compressed(&self) -> bool {
        matches!(self, Self::Compressed(_))
    }

    /// Its form.
    #[must_use]
    pub fn form(&self) -> Form {
        if matches!(self, Self::Float(_)) { Form::Float } else { Form::Zstd }
    }
}

/// Why a frame could not be decoded.
#[derive(Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// Not (only) standard zstd frames, or damaged ones.
    Malformed(String),
    /// The content is larger than allowed.
    TooLarge,
}

/// Content size told by the first bytes of a frame, if it tells one. Only a hint: the file may hold several frames.
#[must_use]
pub fn content_len_hint(head: &[u8]) -> Option<u64> {
    zstd_safe::get_frame_content_size(head).ok().flatten()
}

/// The content of a stored frame, in blocks of [`BLOCK_BYTES`] where they lie in the frame; None for anything else.
#[must_use]
pub fn stored_blocks(frame: &[u8]) -> Option<Vec<&[u8]>> {
    stored::blocks_of(frame, content_len_hint(frame)?)
}

/// Content size of all frames together; None when one of them does not tell.
pub fn content_len(frames: &[u8]) -> Result<Option<u64>, DecodeError> {
    let malformed = |reason: &str| DecodeError::Malformed(reason.to_owned());
    let (mut rest, mut total) = (frames, Some(0_u64));
    while !rest.is_empty() {
        let len = zstd_safe::find_frame_compressed_size(rest).map_err(|code| malformed(zstd_safe::get_error_name(code)))?;
        let size = zstd_safe::get_frame_content_size(rest).map_err(|_| malformed("no frame header"))?;
        total = total.zip(size).and_then(|(total, size)| total.checked_add(size));
        rest = &rest[len..];
    }
    Ok(total)
}

/// Decodes frames into a new buffer of at most `cap` bytes.
pub fn decode(frames: &[u8], cap: u64) -> Result<Vec<u8>, DecodeError> {
    match content_len(frames)? {
        Some(len) if len > cap => Err(DecodeError::TooLarge),
        Some(len) => {
            let mut out = Vec::new();
            // A few bytes may announce more than this process may have.
            out.try_reserve_exact(usize::try_from(len).map_err(|_| DecodeError::TooLarge)?).map_err(|_| DecodeError::TooLarge)?;
            decompress(frames, &mut out)?;
            Ok(out)
        }
        None => {
            let mut out = Vec::new();
            let reader = decoder(frames).map_err(|error| DecodeError::Malformed(error.to_string()))?;
            reader.take(cap.saturating_add(1)).read_to_end(&mut out).map_err(|error| DecodeError::Malformed(error.to_string()))?;
            if out.len() as u64 > cap { Err(DecodeError::TooLarge) } else { Ok(out) }
        }
    }
}

/// Decodes frames whose content has exactly the length of `out`.
pub fn decode_into(frames: &[u8], out: &mut [u8]) -> Result<(), DecodeError> {
    let want = out.len();
    let got = decompress(frames, out)?;
    if got == want { Ok(()) } else { Err(DecodeError::Malformed(format!("{got} bytes of content where {want} were announced"))) }
}

fn decompress<C: zstd_safe::WriteBuf + ?Sized>(frames: &[u8], out: &mut C) -> Result<usize, DecodeError> {
    thread_local!(static DECOMPRESSOR: RefCell<Decompressor<'static>> = RefCell::new(Decompressor::new().expect("out of memory")));
    DECOMPRESSOR
        .with_borrow_mut(|decompressor| decompressor.decompress_to_buffer(frames, out))
        .map_err(|error| DecodeError::Malformed(error.to_string()))
}

/// Decodes frames as they are read.
pub fn decoder<R: Read>(frames: R) -> io::Result<impl Read> {
    let mut decoder = zstd::stream::read::Decoder::new(frames)?;
    decoder.set_parameter(DParameter::WindowLogMax(limits::ZSTD_WINDOW_LOG))?;
    Ok(decoder)
}
