//! Whether a blob is worth compressing, told by a sample of it.
//!
//! A few pieces from all over the content are compressed; if they become 30 % smaller, so will the whole, nearly enough. Most pages of a KV
//! cache do not, and for them even that costs as much as a third of their hashing: so a smaller part of the sample is looked at first, and
//! is enough where neither the frequencies of its bytes nor repetitions leave a hope. Over pages of 64 KiB of programs, libraries and source
//! texts, none that zstd would have made 30 % smaller was lost by the look; of real bf16 pages, none needed more than it.

use std::sync::LazyLock;

use super::with_compressor;

const PIECES: usize = 4;
const PIECE: usize = 1024;
/// Of each piece, what is looked at first.
const LOOK: usize = 256;
/// Bits a byte from which Huffman codes alone cannot save 30 % (5.6), and some that so small a sample may err by.
const HOPELESS_BITS: f32 = 5.8;
/// One repeated group of four bytes in so many promises nothing.
const RARE: usize = 32;

/// Whether zstd saves at least 30 % of the content.
pub(super) fn saves(content: &[u8]) -> bool {
    if content.len() >= PIECES * LOOK {
        let looks = pieces(content, if content.len() > PIECES * PIECE { PIECE } else { LOOK }).map(|piece| &piece[..LOOK]);
        if entropy(looks) >= HOPELESS_BITS && !repeats(looks) {
            return false;
        }
    }
    if content.len() <= PIECES * PIECE {
        return compresses(content);
    }
    let mut sample = [0; PIECES * PIECE];
    for (place, piece) in sample.chunks_exact_mut(PIECE).zip(pieces(content, PIECE)) {
        place.copy_from_slice(piece);
    }
    compresses(&sample)
}

/// Pieces of that length, the first at the start of the content, the last at its end.
fn pieces(content: &[u8], len: usize) -> [&[u8]; PIECES] {
    let step = (content.len() - len) / (PIECES - 1);
    std::array::from_fn(|at| &content[at * step..][..len])
}

fn compresses(sample: &[u8]) -> bool {
    // A buffer of 70 %: what does not fit does not pay.
    let mut out = [0; PIECES * PIECE * 7 / 10];
    let room = sample.len() * 7 / 10;
    with_compressor(1, false, |compressor| compressor.compress_to_buffer(sample, &mut out[..room]).is_ok())
}

/// Bits a byte, were each byte coded by its frequency alone.
fn entropy(looks: [&[u8]; PIECES]) -> f32 {
    const TOTAL: usize = PIECES * LOOK;
    /// n log2 n.
    static TERMS: LazyLock<[f32; TOTAL + 1]> = LazyLock::new(|| {
        std::array::from_fn(|n| {
            #[expect(clippy::cast_precision_loss, reason = "at most 1024")]
            let n = n as f32;
            if n > 0.0 { n * n.log2() } else { 0.0 }
        })
    });
    // Two tables, so that a byte that repeats does not wait for itself.
    let mut counts = [[0_u16; 256]; 2];
    for look in looks {
        for pair in look.chunks_exact(2) {
            counts[0][usize::from(pair[0])] += 1;
            counts[1][usize::from(pair[1])] += 1;
        }
    }
    let [a, b] = &counts;
    let sum: f32 = a.iter().zip(b).map(|(a, b)| TERMS[usize::from(a + b)]).sum();
    #[expect(clippy::cast_precision_loss, reason = "1024")]
    let total = TOTAL as f32;
    total.log2() - sum / total
}

/// Whether groups of four bytes come again, as they do where zstd finds matches.
fn repeats(looks: [&[u8]; PIECES]) -> bool {
    const BITS: u32 = 9;
    let mut last = [0_u32; 1 << BITS];
    let (mut groups, mut repeated) = (0, 0);
    for look in looks {
        for at in (0..LOOK - 3).step_by(2) {
            let group = u32::from_le_bytes([look[at], look[at + 1], look[at + 2], look[at + 3]]);
            let slot = &mut last[(group.wrapping_mul(0x9e37_79b1) >> (u32::BITS - BITS)) as usize];
            repeated += usize::from(*slot == group);
            groups += 1;
            *slot = group;
        }
    }
    repeated * RARE > groups
}
