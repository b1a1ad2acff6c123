//! Sixteen streams in the lanes of AVX-512: word *i* of every stream's state is one vector.
#![expect(unsafe_code, reason = "vector loads by pointer, and calls of functions that need AVX-512")]

use std::arch::x86_64::{
    __m512i, _mm512_add_epi32, _mm512_loadu_si512, _mm512_ror_epi32, _mm512_set1_epi32, _mm512_set4_epi32, _mm512_setzero_si512, _mm512_shuffle_epi8,
    _mm512_shuffle_i32x4, _mm512_srli_epi32, _mm512_storeu_si512, _mm512_ternarylogic_epi32, _mm512_unpackhi_epi32, _mm512_unpackhi_epi64,
    _mm512_unpacklo_epi32, _mm512_unpacklo_epi64,
};

use super::{K, State, rounds};

/// Streams that are hashed together.
pub const LANES: usize = 16;

/// Proof that this processor has what the kernel needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Avx512(());

impl Avx512 {
    /// The kernel, where the processor has it.
    pub fn detect() -> Option<Self> {
        (is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw")).then_some(Self(()))
    }

    /// Takes `blocks` blocks of up to sixteen streams into their states.
    #[expect(clippy::unused_self, reason = "it is the proof")]
    pub fn compress(self, states: &mut [State], ahead: &[&[u8]], blocks: usize) {
        assert!(states.len() == ahead.len() && ahead.iter().all(|bytes| bytes.len() >= blocks * 64));
        // Lanes without a stream hash the first one again, and nobody looks at what comes of it.
        let mut bytes = [ahead[0]; LANES];
        bytes[..ahead.len()].copy_from_slice(ahead);
        let mut words = [[0; LANES]; 8];
        for (lane, state) in states.iter().enumerate() {
            for (word, from) in words.iter_mut().zip(state) {
                word[lane] = *from;
            }
        }
        // SAFETY: `self` exists, so the processor has AVX-512 F and BW; every stream has as many bytes as are read.
        unsafe { compress(&mut words, bytes.map(<[u8]>::as_ptr), blocks) };
        for (lane, state) in states.iter_mut().enumerate() {
            for (word, to) in words.iter().zip(state) {
                *to = word[lane];
            }
        }
    }
}

/// Takes `blocks` blocks of each stream.
///
/// # Safety
/// Each of `streams` must point to `blocks` × 64 readable bytes.
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn compress(words: &mut [[u32; LANES]; 8], streams: [*const u8; LANES], blocks: usize) {
    let mut state = [_mm512_setzero_si512(); 8];
    for (vector, word) in state.iter_mut().zip(words.iter()) {
        // SAFETY: an array of sixteen words is 64 bytes.
        *vector = unsafe { _mm512_loadu_si512(word.as_ptr().cast()) };
    }
    let swap = _mm512_set4_epi32(0x0c0d_0e0f, 0x0809_0a0b, 0x0405_0607, 0x0001_0203);
    for block in 0..blocks {
        let mut w = [_mm512_setzero_si512(); LANES];
        for (vector, stream) in w.iter_mut().zip(streams) {
            // SAFETY: block `block` of each stream is readable. Fetching ahead by hand gains nothing, from memory or cache, at any stride.
            *vector = unsafe { _mm512_shuffle_epi8(_mm512_loadu_si512(stream.add(64 * block).cast()), swap) };
        }
        state = rounds::block!(state, transpose(&w));
    }
    for (vector, word) in state.into_iter().zip(words.iter_mut()) {
        // SAFETY: an array of sixteen words is 64 bytes.
        unsafe { _mm512_storeu_si512(word.as_mut_ptr().cast(), vector) };
    }
}

/// Rows, one a stream, to columns, one a word.
#[inline]
#[target_feature(enable = "avx512f")]
fn transpose(rows: &[__m512i; LANES]) -> [__m512i; LANES] {
    let mut r = *rows;
    let mut t = *rows;
    for i in 0..8 {
        t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
    }
    for i in 0..4 {
        for half in 0..2 {
            r[4 * i + 2 * half] = _mm512_unpacklo_epi64(t[4 * i + half], t[4 * i + 2 + half]);
            r[4 * i + 2 * half + 1] = _mm512_unpackhi_epi64(t[4 * i + half], t[4 * i + 2 + half]);
        }
    }
    // 0x88 takes the even quarters of both operands, 0xdd the odd ones.
    for i in 0..4 {
        for half in 0..2 {
            t[8 * half + i] = _mm512_shuffle_i32x4::<0x88>(r[8 * half + i], r[8 * half + 4 + i]);
            t[8 * half + 4 + i] = _mm512_shuffle_i32x4::<0xdd>(r[8 * half + i], r[8 * half + 4 + i]);
        }
    }
    for i in 0..8 {
        r[i] = _mm512_shuffle_i32x4::<0x88>(t[i], t[8 + i]);
        r[8 + i] = _mm512_shuffle_i32x4::<0xdd>(t[i], t[8 + i]);
    }
    r
}

/// Of three inputs' bits, told as the truth table of the result.
macro_rules! logic {
    ($table:literal, $a:expr, $b:expr, $c:expr) => {
        _mm512_ternarylogic_epi32::<$table>($a, $b, $c)
    };
}

#[inline]
#[target_feature(enable = "avx512f")]
fn add(a: __m512i, b: __m512i) -> __m512i {
    _mm512_add_epi32(a, b)
}

#[inline]
#[target_feature(enable = "avx512f")]
fn k(t: usize) -> __m512i {
    _mm512_set1_epi32(K[t].cast_signed())
}

#[inline]
#[target_feature(enable = "avx512f")]
fn choose(e: __m512i, f: __m512i, g: __m512i) -> __m512i {
    logic!(0xca, e, f, g)
}

#[inline]
#[target_feature(enable = "avx512f")]
fn majority(a: __m512i, b: __m512i, c: __m512i) -> __m512i {
    logic!(0xe8, a, b, c)
}

#[inline]
#[target_feature(enable = "avx512f")]
fn sum0(a: __m512i) -> __m512i {
    logic!(0x96, _mm512_ror_epi32::<2>(a), _mm512_ror_epi32::<13>(a), _mm512_ror_epi32::<22>(a))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn sum1(e: __m512i) -> __m512i {
    logic!(0x96, _mm512_ror_epi32::<6>(e), _mm512_ror_epi32::<11>(e), _mm512_ror_epi32::<25>(e))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn sigma0(w: __m512i) -> __m512i {
    logic!(0x96, _mm512_ror_epi32::<7>(w), _mm512_ror_epi32::<18>(w), _mm512_srli_epi32::<3>(w))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn sigma1(w: __m512i) -> __m512i {
    logic!(0x96, _mm512_ror_epi32::<17>(w), _mm512_ror_epi32::<19>(w), _mm512_srli_epi32::<10>(w))
}
