//! Stored frames: a standard zstd frame of raw blocks, whose bytes are the caller's own between small headers.
//!
//! Empty raw blocks, which are three zero bytes each, stand before a block so that its content begins at a multiple of [`ALIGNMENT`] in the
//! file: the system then copies whole cache lines between the file and the caller's page.
//!
//! Nothing is copied and nothing is allocated: a frame is handed to a gathering write, or taken from a scattering read, as a few blocks at a
//! time with their headers on the stack.

use std::io::{self, IoSlice, IoSliceMut};

use super::{BLOCK_BYTES, FRAME_HEADER_MAX};

/// Contents above this size get a window of [`BLOCK_BYTES`] instead of one as large as the content, which decoders would have to allocate.
pub(super) const SINGLE_SEGMENT_BYTES: u64 = 1 << 20;
/// [`BLOCK_BYTES`] as a power of two.
pub(super) const WINDOW_LOG: u32 = 17;
/// The same in a frame header: exponent in the upper five bits, counted from 2^10.
const WINDOW_BYTE: u8 = 7 << 3;
const MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
const BLOCK_HEADER: usize = 3;
/// A cache line.
const ALIGNMENT: usize = 64;
/// Contents from this size on, a page of memory, are aligned.
const ALIGNED_BYTES: u64 = 4096;
/// Most bytes before a block: a frame's header, and as many block headers as reach every remainder of [`ALIGNMENT`].
const HEADER_MAX: usize = FRAME_HEADER_MAX + ALIGNMENT * BLOCK_HEADER;
/// Blocks of one system call.
const GROUP_BLOCKS: usize = 16;

/// What stands before a block's content: its header, before that empty blocks for alignment, and before the first the frame's header.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Header {
    bytes: [u8; HEADER_MAX],
    len: usize,
}

impl Header {
    const EMPTY: Self = Self { bytes: [0; HEADER_MAX], len: 0 };

    fn push(&mut self, bytes: &[u8]) {
        self.bytes[self.len..self.len + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
    }

    /// Magic, descriptor, window or none, content size in the fewest bytes.
    fn frame(content_len: u64) -> Self {
        // RFC 8878, 3.1.1.1: bits 6-7 of the descriptor are the size of the size field, bit 5 says "single segment".
        let size = content_len.to_le_bytes();
        let mut header = Self::EMPTY;
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

    /// What stands before the block at `at` of a content.
    fn of(content_len: u64, at: u64) -> Self {
        let mut header = if at == 0 { Self::frame(content_len) } else { Self::EMPTY };
        if content_len >= ALIGNED_BYTES {
            while !(header.len + BLOCK_HEADER).is_multiple_of(ALIGNMENT) {
                header.len += BLOCK_HEADER;
            }
        }
        let left = content_len - at;
        // Bit 0: last block; bits 1-2: type, 0 = raw; then the size.
        let [a, b, c, ..] = (left.min(BLOCK_BYTES as u64) << 3 | u64::from(left <= BLOCK_BYTES as u64)).to_le_bytes();
        header.push(&[a, b, c]);
        header
    }

    fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// The headers of a group of blocks that starts at `at` of a content.
fn headers(content_len: u64, at: u64, blocks: usize) -> [Header; GROUP_BLOCKS] {
    std::array::from_fn(|block| if block < blocks { Header::of(content_len, at + (block * BLOCK_BYTES) as u64) } else { Header::EMPTY })
}

/// Offsets of the groups of a content, or a piece of it; an empty content has one, with one empty block.
fn groups(len: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..len.max(1)).step_by(GROUP_BLOCKS * BLOCK_BYTES).map(move |start| (start, len.min(start + GROUP_BLOCKS * BLOCK_BYTES)))
}

fn blocks(group: &[u8]) -> usize {
    group.len().div_ceil(BLOCK_BYTES).max(1)
}

/// Length of the stored frame of a content of `len` bytes.
#[must_use]
pub fn stored_len(len: u64) -> u64 {
    let more_blocks = len.div_ceil(BLOCK_BYTES as u64).saturating_sub(1);
    // A frame may announce any length.
    (Header::of(len, 0).len as u64 + more_blocks * (ALIGNMENT * BLOCK_HEADER) as u64).saturating_add(len)
}

/// The content of a stored frame, in its blocks, if `frame` is exactly that of a content of `len` bytes.
pub(super) fn blocks_of(mut frame: &[u8], len: u64) -> Option<Vec<&[u8]>> {
    if frame.len() as u64 != stored_len(len) {
        return None;
    }
    let mut found = Vec::with_capacity(frame.len() / BLOCK_BYTES + 1);
    for at in (0..len.max(1)).step_by(BLOCK_BYTES) {
        frame = frame.strip_prefix(Header::of(len, at).bytes())?;
        let (block, rest) = frame.split_at(frame.len().min(BLOCK_BYTES));
        found.push(block);
        frame = rest;
    }
    Some(found)
}

/// Gives `write` what a content's stored frame has for the piece at `at`, in order and a group of blocks at a time, for gathering writes. A
/// content can be given in one piece, or in several that are cut at multiples of [`BLOCK_BYTES`].
///
/// # Errors
/// Those of `write`.
pub fn write_stored(content_len: u64, at: u64, piece: &[u8], mut write: impl FnMut(&mut [IoSlice<'_>]) -> io::Result<()>) -> io::Result<()> {
    for (start, end) in groups(piece.len()) {
        let group = &piece[start..end];
        let blocks = blocks(group);
        let headers = headers(content_len, at + start as u64, blocks);
        let mut slices = [IoSlice::new(&[]); 2 * GROUP_BLOCKS];
        for (pair, header) in slices.chunks_exact_mut(2).zip(&headers) {
            pair[0] = IoSlice::new(header.bytes());
        }
        for (pair, block) in slices.chunks_exact_mut(2).zip(group.chunks(BLOCK_BYTES)) {
            pair[1] = IoSlice::new(block);
        }
        write(&mut slices[..2 * blocks])?;
    }
    Ok(())
}

/// What [`read_stored`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// The stored frame of a content of that length.
    Frame,
    /// Something else.
    Other,
    /// Too few bytes to tell.
    Short,
}

/// Reads the stored frame of a content as long as `out` straight into it.
///
/// `read` fills the pieces it is given from the next bytes of the file and returns how many bytes there were. Unless the frame is found,
/// `out` holds undefined bytes.
///
/// # Errors
/// Those of `read`.
pub fn read_stored(out: &mut [u8], mut read: impl FnMut(&mut [IoSliceMut<'_>]) -> io::Result<usize>) -> io::Result<Found> {
    let len = out.len();
    for (start, end) in groups(len) {
        let group = &mut out[start..end];
        let blocks = blocks(group);
        let expected = headers(len as u64, start as u64, blocks);
        let mut found = expected.map(|header| Header { bytes: Header::EMPTY.bytes, ..header });
        // A byte more than the frame has, to see whether the file ends where the frame does.
        let last = end == len;
        let mut behind = [0];
        let want = group.len() + expected.iter().map(|header| header.len).sum::<usize>();
        let mut slices: [IoSliceMut<'_>; 2 * GROUP_BLOCKS + 1] = std::array::from_fn(|_| IoSliceMut::new(&mut []));
        for (pair, header) in slices.chunks_exact_mut(2).zip(&mut found) {
            pair[0] = IoSliceMut::new(&mut header.bytes[..header.len]);
        }
        for (pair, block) in slices.chunks_exact_mut(2).zip(group.chunks_mut(BLOCK_BYTES)) {
            pair[1] = IoSliceMut::new(block);
        }
        if last {
            slices[2 * blocks] = IoSliceMut::new(&mut behind);
        }
        let got = read(&mut slices[..2 * blocks + usize::from(last)])?;
        if got > want || got >= expected[0].len && found[0] != expected[0] || got == want && found != expected {
            return Ok(Found::Other);
        }
        if got < want {
            return Ok(Found::Short);
        }
    }
    Ok(Found::Frame)
}
