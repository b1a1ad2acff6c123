//! Float frames: lossless byte planes for pages of floats.
//!
//! A float's exponent takes few values and its mantissa any. A frame therefore cuts items of one, two or four bytes into planes of one byte
//! each and codes each plane for itself: exponents by a Huffman code of order 0, a plane of one value by that value, and what does not
//! compress not at all. That saves a third of a bf16 page, where zstd, which sees exponents and mantissas mixed, saves a fifth.
//!
//! A blob for which this does not pay has no float frame: [`encode`] says so, and the caller writes a zstd frame. `docs/formats.md` has the
//! layout byte by byte. Frames carry no checksum (blobs are checked by their names). They are read from memory as a whole: contents up to
//! [`MAX_CONTENT`].

#![expect(clippy::inline_always, reason = "`wide` compiles these functions twice, which takes that they become part of its own")]
#![expect(clippy::cast_precision_loss, reason = "estimates from samples")]

mod huffman;
mod planes;
mod wide;

use std::borrow::Cow;
use std::cell::RefCell;
use std::sync::LazyLock;

use super::DecodeError;
use crate::limits;
use huffman::{Lengths, MAX_SYMBOLS, Plane, Table, histogram};
pub use planes::Width;

/// First bytes of a frame; the last of them is the version.
const MAGIC: [u8; 4] = *b"fpl\x01";
/// Largest content of a frame.
pub const MAX_CONTENT: u64 = limits::BLOB_IN_MEMORY_BYTES;
/// Items that are cut into planes at a time, each with codes of its own.
const CHUNK_ITEMS: usize = MAX_SYMBOLS;
/// Magic, width and ten bytes of length.
const HEADER_MAX: usize = 15;

/// How a plane is coded: the byte before it.
mod kind {
    /// As it is.
    pub const RAW: u8 = 0;
    /// All bytes have the value that follows.
    pub const CONSTANT: u8 = 1;
    /// By a Huffman code.
    pub const HUFFMAN: u8 = 2;
}

/// What a thread uses again for each frame; making it costs as much as coding a page.
struct Scratch {
    split: Vec<u8>,
    stream: Vec<u8>,
    planes: [Box<Plane>; 4],
    table: Table,
}

fn with_scratch<R>(work: impl FnOnce(&mut Scratch) -> R) -> R {
    thread_local!(static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch {
        split: Vec::new(),
        stream: Vec::new(),
        planes: std::array::from_fn(|_| huffman::plane()),
        table: Table::new(),
    }));
    SCRATCH.with_borrow_mut(work)
}

/// The float frame of a content whose items have this width; None where it does not save a sixteenth.
#[must_use]
pub fn encode(content: &[u8], width: Width) -> Option<Vec<u8>> {
    if content.len() as u64 > MAX_CONTENT {
        return None;
    }
    let room = content.len() - content.len() / 16;
    let mut out = Vec::with_capacity(room + HEADER_MAX);
    write(content, width, &mut out);
    (out.len() <= room).then_some(out)
}

fn write(content: &[u8], width: Width, out: &mut Vec<u8>) {
    out.extend(MAGIC);
    out.push(width as u8);
    push_length(out, content.len() as u64);
    let (items, tail) = content.split_at(content.len() - content.len() % width.bytes());
    with_scratch(|scratch| {
        for items in items.chunks(CHUNK_ITEMS * width.bytes()) {
            wide::encode(Chunk { items, width }, scratch, out);
        }
    });
    out.extend(tail);
}

/// Whole items, at most [`CHUNK_ITEMS`] of them.
struct Chunk<T> {
    items: T,
    width: Width,
}

#[inline(always)]
fn encode_chunk(Chunk { items, width }: Chunk<&[u8]>, scratch: &mut Scratch, out: &mut Vec<u8>) {
    if scratch.split.len() < items.len() {
        scratch.split.resize(items.len(), 0);
    }
    let planes = &mut scratch.split[..items.len()];
    planes::split(items, width, planes);
    for plane in planes.chunks_exact(items.len() / width.bytes()) {
        encode_plane(plane, &mut scratch.stream, out);
    }
}

#[inline(always)]
fn encode_plane(plane: &[u8], scratch: &mut Vec<u8>, out: &mut Vec<u8>) {
    if varies_little(plane) {
        let histogram = histogram(plane);
        if histogram[usize::from(plane[0])] as usize == plane.len() {
            out.extend([kind::CONSTANT, plane[0]]);
            return;
        }
        let lengths = Lengths::of(&histogram);
        if lengths.cost(&histogram) < plane.len() - plane.len() / 16 {
            out.push(kind::HUFFMAN);
            huffman::encode(plane, &lengths, scratch, out);
            return;
        }
    }
    out.push(kind::RAW);
    out.extend_from_slice(plane);
}

/// Whether a plane may be worth a look. Of random bytes it costs no more than a sample.
fn varies_little(plane: &[u8]) -> bool {
    entropy(&sample::<1024>(plane)) < NOISE_BITS
}

/// The width of items that suits a content best, judged by a few KiB of it, and what it promises. None where no width saves a tenth.
#[must_use]
pub fn sniff(content: &[u8]) -> Option<Sniffed> {
    let sample = sample::<SAMPLE>(content);
    let sample = &sample[..sample.len() - sample.len() % 4];
    let mut best = None;
    // As many planes as items of four bytes have of the same sample.
    let mut planes = [0; SAMPLE];
    let planes = &mut planes[..sample.len()];
    for width in [Width::One, Width::Two, Width::Four] {
        planes::split(sample, width, planes);
        let bits = planes.chunks_exact((sample.len() / width.bytes()).max(1)).map(entropy);
        let (sum, last) = bits.fold((0.0, 0.0), |(sum, _), bits| (sum + bits, bits));
        let share = sum / (8 * width.bytes()) as f64;
        // Pairs of bf16 look like one f32: a wider one must be better indeed.
        if share < best.map_or(0.9, |best: Sniffed| 0.97 * best.share) {
            best = Some(Sniffed { width, share, noise: width != Width::One && last >= NOISE_BITS });
        }
    }
    best
}

/// What [`sniff`] found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sniffed {
    /// Of the items.
    pub width: Width,
    /// Length of the frame to expect, as a share of the content's.
    pub share: f64,
    /// Whether the lowest plane is incompressible, as mantissas are and text, code and tables are not.
    pub noise: bool,
}

/// Entropy from which a plane counts as incompressible.
const NOISE_BITS: f64 = 7.5;

/// Entropy of order 0 of a plane, in bits a byte, judged by a sample of it: what the sample's own counts say, and a little more because rare
/// symbols are missing in it (Miller, 1955).
fn entropy(sample: &[u8]) -> f64 {
    static N_LOG_N: LazyLock<[f64; SAMPLE + 1]> = LazyLock::new(|| std::array::from_fn(|n| n as f64 * (n.max(1) as f64).log2()));
    let n = sample.len().max(1) as f64;
    let (mut symbols, mut sum) = (-1.0, 0.0);
    for count in histogram(sample) {
        symbols += f64::from(u8::from(count > 0));
        sum += N_LOG_N[count as usize];
    }
    n.log2() - sum / n + symbols * std::f64::consts::LOG2_E / (2.0 * n)
}

/// Bytes that a judgement is based on.
const SAMPLE: usize = 2048;

/// Four pieces from all over some bytes, aligned to four bytes; the bytes themselves where they are no more than that.
fn sample<const LEN: usize>(bytes: &[u8]) -> Cow<'_, [u8]> {
    const PIECES: usize = 4;
    if bytes.len() <= LEN {
        return bytes.into();
    }
    let piece = LEN / PIECES;
    let step = ((bytes.len() - piece) / (PIECES - 1)) & !3;
    (0..PIECES).flat_map(|at| &bytes[at * step..][..piece]).copied().collect()
}

/// The length of the content that the first bytes of a frame announce. At most [`HEADER_MAX`] bytes are looked at.
pub fn content_len(frame: &[u8]) -> Result<u64, DecodeError> {
    Header::read(frame).map(|(header, _)| header.len)
}

struct Header {
    width: Width,
    len: u64,
}

impl Header {
    fn read(frame: &[u8]) -> Result<(Self, &[u8]), DecodeError> {
        let (magic, rest) = frame.split_at_checked(MAGIC.len()).ok_or_else(|| malformed("it ends within its magic"))?;
        match magic {
            [b'f', b'p', b'l', 1] => {}
            [b'f', b'p', b'l', version] => return Err(malformed(&format!("version {version} is not known"))),
            _ => return Err(malformed("another magic")),
        }
        let (&width, mut rest) = rest.split_first().ok_or_else(|| malformed("it ends within its header"))?;
        let width = Width::from_bytes(width).ok_or_else(|| malformed(&format!("items of {width} bytes")))?;
        let mut len = 0;
        for shift in (0..u64::BITS).step_by(7) {
            let byte = rest.split_off_first().ok_or_else(|| malformed("it ends within its header"))?;
            len |= u64::from(byte & 0x7f).checked_mul(1 << shift).ok_or_else(|| malformed("a length of more than 64 bits"))?;
            if byte & 0x80 == 0 {
                return Ok((Self { width, len }, rest));
            }
        }
        Err(malformed("a length of more than 64 bits"))
    }
}

/// Appends a length: seven bits a byte, low ones first, all but the last byte with their upper bit set (LEB128).
fn push_length(out: &mut Vec<u8>, mut len: u64) {
    loop {
        let [low, ..] = len.to_le_bytes();
        len >>= 7;
        if len == 0 {
            return out.push(low);
        }
        out.push(low | 0x80);
    }
}

/// Decodes a frame into a new buffer of at most `cap` bytes, and never more than [`MAX_CONTENT`].
pub fn decode(frame: &[u8], cap: u64) -> Result<Vec<u8>, DecodeError> {
    let len = content_len(frame)?;
    if len > cap.min(MAX_CONTENT) {
        return Err(DecodeError::TooLarge);
    }
    let mut out = vec![0; usize::try_from(len).map_err(|_| DecodeError::TooLarge)?];
    decode_into(frame, &mut out)?;
    Ok(out)
}

/// Decodes a frame whose content has exactly the length of `out`. After an error `out` holds anything.
pub fn decode_into(frame: &[u8], out: &mut [u8]) -> Result<(), DecodeError> {
    let (Header { width, len }, mut rest) = Header::read(frame)?;
    if len != out.len() as u64 {
        return Err(malformed(&format!("{len} bytes of content where {} were announced", out.len())));
    }
    let (items, tail) = out.split_at_mut(out.len() - out.len() % width.bytes());
    with_scratch(|scratch| {
        for items in items.chunks_mut(CHUNK_ITEMS * width.bytes()) {
            rest = wide::decode(rest, Chunk { items, width }, scratch)?;
        }
        Ok(())
    })?;
    if rest.len() != tail.len() {
        return Err(malformed("bytes after its end"));
    }
    tail.copy_from_slice(rest);
    Ok(())
}

/// Decodes a frame of at most [`MAX_CONTENT`] bytes of content, which `each` gets piece by piece; a failure may come after some of them.
pub fn decode_pieces<E: From<DecodeError>>(frame: &[u8], mut each: impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
    let (Header { width, len }, mut rest) = Header::read(frame)?;
    if len > MAX_CONTENT {
        return Err(DecodeError::TooLarge.into());
    }
    let len = usize::try_from(len).map_err(|_| DecodeError::TooLarge)?;
    let tail = len % width.bytes();
    let mut left = len - tail;
    let mut piece = vec![0; left.min(CHUNK_ITEMS * width.bytes())];
    while left > 0 {
        let items = &mut piece[..left.min(CHUNK_ITEMS * width.bytes())];
        rest = with_scratch(|scratch| wide::decode(rest, Chunk { items: &mut *items, width }, scratch))?;
        each(items)?;
        left -= items.len();
    }
    if rest.len() != tail {
        return Err(malformed("bytes after its end").into());
    }
    each(rest)
}

#[inline(always)]
fn decode_chunk<'a>(frame: &'a [u8], Chunk { items, width }: Chunk<&mut [u8]>, scratch: &mut Scratch) -> Result<&'a [u8], DecodeError> {
    let mut rest = frame;
    let mut planes = [&[][..]; 4];
    for (plane, room) in planes[..width.bytes()].iter_mut().zip(&mut scratch.planes) {
        (*plane, rest) = decode_plane(rest, items.len() / width.bytes(), room, &mut scratch.table)?;
    }
    planes::join(planes, width, items);
    Ok(rest)
}

/// A plane of so many bytes and what stands after it. A raw plane stays where it is, any other is decoded into `room`.
#[inline(always)]
fn decode_plane<'f: 'p, 'p>(bytes: &'f [u8], len: usize, room: &'p mut Plane, table: &mut Table) -> Result<(&'p [u8], &'f [u8]), DecodeError> {
    let short = || malformed("it ends within a plane");
    let (&kind, rest) = bytes.split_first().ok_or_else(short)?;
    match kind {
        kind::RAW => rest.split_at_checked(len).ok_or_else(short),
        kind::CONSTANT => {
            let (&value, rest) = rest.split_first().ok_or_else(short)?;
            room[..len].fill(value);
            Ok((&room[..len], rest))
        }
        kind::HUFFMAN => {
            let rest = huffman::decode(rest, len, room, table)?;
            Ok((&room[..len], rest))
        }
        other => Err(malformed(&format!("a plane of kind {other}"))),
    }
}

fn malformed(reason: &str) -> DecodeError {
    DecodeError::Malformed(format!("float frame: {reason}"))
}

#[cfg(test)]
mod tests;
