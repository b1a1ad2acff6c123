//! Frames: how a blob's bytes are encoded on disk and on the wire.
//!
//! Whatever is written is exactly one standard zstd frame with its content size and without a checksum (blobs are checked by their names).
//! What does not compress is written as a *stored* frame: raw blocks of 128 KiB between three-byte headers, so that it is written and read
//! at the speed of the disk, straight from and into the caller's buffer. A stored frame depends on the content alone and is therefore also
//! the canonical encoding. What is read is any sequence of standard zstd frames, skippable ones included.
//!
//! This file is the only one that names zstd. Limits: windows up to 128 MiB ([`limits::ZSTD_WINDOW_LOG`]) when decoding by streaming.

use std::cell::RefCell;
use std::io::{self, IoSlice, Read, Write};
use std::str::FromStr;

use zstd::bulk::{Compressor, Decompressor};
use zstd::zstd_safe::{self, CParameter, DParameter, ResetDirective};

use crate::error::{Error, Result};
use crate::limits;

/// Raw blocks of a stored frame have this size (the last may be shorter). It is zstd's maximum.
pub const BLOCK_BYTES: usize = 128 << 10;
/// Contents above this size get a window of [`BLOCK_BYTES`] instead of one as large as the content, which decoders would have to allocate.
const SINGLE_SEGMENT_BYTES: u64 = 1 << 20;
const WINDOW_LOG: u32 = 17;
/// The same in a frame header: exponent in the upper five bits, counted from 2^10.
const WINDOW_BYTE: u8 = 7 << 3;
const MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// Magic, descriptor, window byte, eight bytes of size.
pub const FRAME_HEADER_MAX: usize = 14;
const BLOCK_HEADER: usize = 3;

/// When to compress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    /// zstd where a sample of the blob saves at least 30 %, else a stored frame.
    Auto,
    /// Always zstd.
    Zstd,
    /// Never.
    Store,
}

impl FromStr for Codec {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        match s {
            "auto" => Ok(Self::Auto),
            "zstd" => Ok(Self::Zstd),
            "store" => Ok(Self::Store),
            other => Err(Error::format("codec", format!("{other:?} is none of auto, zstd, store"))),
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

    /// Encodes a blob.
    #[must_use]
    pub fn encode(self, content: &[u8]) -> Frame<'_> {
        if self.compresses(content, content.len() as u64) { Frame::Compressed(compress(content, self.level)) } else { Frame::stored(content) }
    }

    /// Encodes a blob of `len` bytes as it is read, without holding it: `each` sees every piece of content first, in order. Returns whether
    /// it was compressed.
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
            let header = FrameHeader::new(len);
            writer.write_all(header.bytes())?;
            let mut written = 0;
            loop {
                for block in blocks(&piece[..n]) {
                    written += block.len() as u64;
                    writer.write_all(&block_header(block.len(), written == len))?;
                    writer.write_all(block)?;
                }
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
            Codec::Auto => len > 0 && sample_saves(head),
            Codec::Zstd => true,
            Codec::Store => false,
        }
    }
}

/// The blocks of a content; an empty content has one empty block.
fn blocks(content: &[u8]) -> impl Iterator<Item = &[u8]> {
    let empty = content.is_empty().then_some(content);
    content.chunks(BLOCK_BYTES).chain(empty)
}

/// Whether zstd saves at least 30 % of a few pieces taken from all over the content.
fn sample_saves(content: &[u8]) -> bool {
    const PIECES: usize = 4;
    const PIECE: usize = 1024;
    let mut sample = [0; PIECES * PIECE];
    let sample = if content.len() <= sample.len() {
        content
    } else {
        let step = (content.len() - PIECE) / (PIECES - 1);
        for (at, piece) in sample.chunks_exact_mut(PIECE).enumerate() {
            piece.copy_from_slice(&content[at * step..at * step + PIECE]);
        }
        &sample
    };
    // A buffer of 70 %: what does not fit does not pay.
    let mut out = [0; PIECES * PIECE * 7 / 10];
    let room = sample.len() * 7 / 10;
    with_compressor(1, false, |compressor| compressor.compress_to_buffer(sample, &mut out[..room]).is_ok())
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

/// Start of a stored frame: magic, descriptor, window or none, content size in the fewest bytes.
#[derive(Clone, Copy)]
struct FrameHeader {
    bytes: [u8; FRAME_HEADER_MAX],
    len: usize,
}

impl FrameHeader {
    fn new(content_len: u64) -> Self {
        // RFC 8878, 3.1.1.1: bits 6-7 of the descriptor are the size of the size field, bit 5 says "single segment".
        let size = content_len.to_le_bytes();
        let mut header = Self { bytes: [0; FRAME_HEADER_MAX], len: 0 };
        header.push(&MAGIC);
        match content_len {
            0..=255 => header.push(&[0x20, size[0]]),
            256..=65_791 => {
                #[expect(clippy::cast_possible_truncation, reason = "the range says so")]
                let size = (content_len - 256) as u16;
                header.push(&[0x60]);
                header.push(&size.to_le_bytes());
            }
            65_792..=SINGLE_SEGMENT_BYTES => {
                header.push(&[0xa0]);
                header.push(&size[..4]);
            }
            _ if u32::try_from(content_len).is_ok() => {
                header.push(&[0x80, WINDOW_BYTE]);
                header.push(&size[..4]);
            }
            _ => {
                header.push(&[0xc0, WINDOW_BYTE]);
                header.push(&size);
            }
        }
        header
    }

    fn push(&mut self, bytes: &[u8]) {
        self.bytes[self.len..self.len + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
    }

    fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

fn block_header(len: usize, last: bool) -> [u8; BLOCK_HEADER] {
    // Bit 0: last block; bits 1-2: type, 0 = raw; then the size.
    let [a, b, c, ..] = (len << 3 | usize::from(last)).to_le_bytes();
    [a, b, c]
}

/// Length of the stored frame of a content of `len` bytes.
#[must_use]
pub fn stored_len(len: u64) -> u64 {
    FrameHeader::new(len).len as u64 + len.div_ceil(BLOCK_BYTES as u64).max(1) * BLOCK_HEADER as u64 + len
}

/// All headers of a content's stored frame, one after the other, and how many of these bytes stand before the first block.
fn stored_headers(content: &[u8]) -> (Vec<u8>, usize) {
    let header = FrameHeader::new(content.len() as u64);
    let mut headers = header.bytes().to_vec();
    let mut left = content.len();
    for block in blocks(content) {
        left -= block.len();
        headers.extend(block_header(block.len(), left == 0));
    }
    (headers, header.len + BLOCK_HEADER)
}

/// An encoded blob.
pub enum Frame<'a> {
    /// Raw blocks of the caller's bytes.
    Stored(Stored<'a>),
    /// Bytes that zstd made.
    Compressed(Vec<u8>),
}

/// A stored frame: the content stays where it is, only the headers are made.
pub struct Stored<'a> {
    /// Frame header with the first block's header, then one block header each.
    headers: Vec<u8>,
    first: usize,
    content: &'a [u8],
}

impl<'a> Frame<'a> {
    /// The stored frame of a content.
    #[must_use]
    pub fn stored(content: &'a [u8]) -> Self {
        let (headers, first) = stored_headers(content);
        Self::Stored(Stored { headers, first, content })
    }

    /// The frame's pieces in order, for a gathering write.
    #[must_use]
    pub fn slices(&self) -> Vec<IoSlice<'_>> {
        match self {
            Self::Compressed(bytes) => vec![IoSlice::new(bytes)],
            Self::Stored(Stored { headers, first, content }) => {
                let (start, rest) = headers.split_at(*first);
                let headers = std::iter::once(start).chain(rest.chunks_exact(BLOCK_HEADER));
                headers.zip(blocks(content)).flat_map(|(header, block)| [IoSlice::new(header), IoSlice::new(block)]).collect()
            }
        }
    }

    /// Length of the frame.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Stored(stored) => stored.headers.len() + stored.content.len(),
            Self::Compressed(bytes) => bytes.len(),
        }
    }

    /// Never: the shortest frame has nine bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        false
    }

    /// The frame in one piece.
    #[must_use]
    pub fn into_vec(self) -> Vec<u8> {
        match self {
            Self::Compressed(bytes) => bytes,
            Self::Stored(_) => self.slices().iter().flat_map(|slice| slice.iter().copied()).collect(),
        }
    }

    /// Whether zstd made it smaller.
    #[must_use]
    pub fn is_compressed(&self) -> bool {
        matches!(self, Self::Compressed(_))
    }
}

/// Where the content of a stored frame goes when it is read: headers to one place, blocks straight to the caller.
pub struct StoredReader {
    expected: Vec<u8>,
    found: Vec<u8>,
    first: usize,
}

impl StoredReader {
    /// A reader of the stored frame of a content as long as `out`.
    #[must_use]
    pub fn new(out: &[u8]) -> Self {
        let (expected, first) = stored_headers(out);
        Self { found: vec![0; expected.len()], expected, first }
    }

    /// Pieces for a scattering read of the frame, whose content goes to `out`.
    pub fn slices<'a>(&'a mut self, out: &'a mut [u8]) -> Vec<io::IoSliceMut<'a>> {
        let (start, rest) = self.found.split_at_mut(self.first);
        let headers = std::iter::once(start).chain(rest.chunks_exact_mut(BLOCK_HEADER));
        if out.is_empty() {
            return headers.map(io::IoSliceMut::new).collect();
        }
        headers.zip(out.chunks_mut(BLOCK_BYTES)).flat_map(|(header, block)| [io::IoSliceMut::new(header), io::IoSliceMut::new(block)]).collect()
    }

    /// Whether what was read is that stored frame.
    #[must_use]
    pub fn matches(&self) -> bool {
        self.expected == self.found
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
            let mut out = Vec::with_capacity(usize::try_from(len).map_err(|_| DecodeError::TooLarge)?);
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

#[cfg(test)]
mod tests;
