//! Eight streams in the lanes of AVX2, for processors without the SHA instructions: word *i* of every stream's state is one vector.
#![expect(unsafe_code, reason = "vector loads by pointer, and calls of functions that need AVX2")]

use std::arch::x86_64::{
    __m256i, _mm256_add_epi32, _mm256_and_si256, _mm256_loadu_si256, _mm256_or_si256, _mm256_permute2x128_si256, _mm256_set_epi32, _mm256_set1_epi32,
    _mm256_setzero_si256, _mm256_shuffle_epi8, _mm256_slli_epi32, _mm256_srli_epi32, _mm256_storeu_si256, _mm256_unpackhi_epi32,
    _mm256_unpackhi_epi64, _mm256_unpacklo_epi32, _mm256_unpacklo_epi64, _mm256_xor_si256,
};

use super::{K, State, rounds};

/// Streams that are hashed together.
pub const LANES: usize = 8;

/// Proof that this processor has what the kernel needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Avx2(());

impl Avx2 {
    /// The kernel, where the processor has it.
    pub fn detect() -> Option<Self> {
        is_x86_feature_detected!("avx2").then_some(Self(()))
    }

    /// Takes `blocks` blocks of up to eight streams into their states.
    #[expect(clippy::unused_self, reason = "it is the proof")]
    pub fn compress(self, states: &mut [State], ahead: &[&[u8]], blocks: usize) {
        assert!(states.len() == ahead.len() && ahead.iter().all(|bytes| bytes.len() >= blocks * 64));
        // Lanes without a stream hash the first one again, and nobody looks at what comes of it.
        let mut bytes = [ahead[0]; LANES];
        bytes[..ahead.len()].copy_from_slice(ahead);
        let mut rows = [[0; 8]; LANES];
        rows[..states.len()].copy_from_slice(states);
        // SAFETY: `self` exists, so the processor has AVX2; every stream has as many bytes as are read.
        unsafe { compress(&mut rows, bytes.map(<[u8]>::as_ptr), blocks) };
        states.copy_from_slice(&rows[..states.len()]);
    }
}

/// Takes `blocks` blocks of each stream.
///
/// # Safety
/// Each of `streams` must point to `blocks` × 64 readable bytes.
#[target_feature(enable = "avx2")]
unsafe fn compress(rows: &mut [State; LANES], streams: [*const u8; LANES], blocks: usize) {
    // SAFETY: a state is 32 bytes.
    let mut state = transpose(rows.each_ref().map(|row| unsafe { _mm256_loadu_si256(row.as_ptr().cast()) }));
    let swap = _mm256_set_epi32(0x0c0d_0e0f, 0x0809_0a0b, 0x0405_0607, 0x0001_0203, 0x0c0d_0e0f, 0x0809_0a0b, 0x0405_0607, 0x0001_0203);
    for block in 0..blocks {
        let mut w = [_mm256_setzero_si256(); 16];
        for half in 0..2 {
            // SAFETY: block `block` of each stream is readable.
            let load = |stream: *const u8| unsafe { _mm256_loadu_si256(stream.add(64 * block + 32 * half).cast()) };
            let words = transpose(streams.map(|stream| _mm256_shuffle_epi8(load(stream), swap)));
            w[8 * half..][..8].copy_from_slice(&words);
        }
        state = rounds::block!(state, w);
    }
    for (row, vector) in rows.iter_mut().zip(transpose(state)) {
        // SAFETY: a state is 32 bytes.
        unsafe { _mm256_storeu_si256(row.as_mut_ptr().cast(), vector) };
    }
}

/// Rows to columns, and back.
#[inline]
#[target_feature(enable = "avx2")]
fn transpose(rows: [__m256i; 8]) -> [__m256i; 8] {
    let mut r = rows;
    let mut t = rows;
    for i in 0..4 {
        t[2 * i] = _mm256_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm256_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
    }
    for i in 0..2 {
        for half in 0..2 {
            r[4 * i + 2 * half] = _mm256_unpacklo_epi64(t[4 * i + half], t[4 * i + 2 + half]);
            r[4 * i + 2 * half + 1] = _mm256_unpackhi_epi64(t[4 * i + half], t[4 * i + 2 + half]);
        }
    }
    for i in 0..4 {
        t[i] = _mm256_permute2x128_si256::<0x20>(r[i], r[4 + i]);
        t[4 + i] = _mm256_permute2x128_si256::<0x31>(r[i], r[4 + i]);
    }
    t
}

macro_rules! xor {
    ($a:expr, $b:expr, $c:expr) => {
        _mm256_xor_si256(_mm256_xor_si256($a, $b), $c)
    };
}

/// Rotates each word to the right; the second number is 32 less the first.
macro_rules! rotate {
    ($a:expr, $right:literal, $left:literal) => {
        _mm256_or_si256(_mm256_srli_epi32::<$right>($a), _mm256_slli_epi32::<$left>($a))
    };
}

#[inline]
#[target_feature(enable = "avx2")]
fn add(a: __m256i, b: __m256i) -> __m256i {
    _mm256_add_epi32(a, b)
}

#[inline]
#[target_feature(enable = "avx2")]
fn k(t: usize) -> __m256i {
    _mm256_set1_epi32(K[t].cast_signed())
}

#[inline]
#[target_feature(enable = "avx2")]
fn choose(e: __m256i, f: __m256i, g: __m256i) -> __m256i {
    _mm256_xor_si256(g, _mm256_and_si256(e, _mm256_xor_si256(f, g)))
}

#[inline]
#[target_feature(enable = "avx2")]
fn majority(a: __m256i, b: __m256i, c: __m256i) -> __m256i {
    _mm256_or_si256(_mm256_and_si256(a, b), _mm256_and_si256(c, _mm256_or_si256(a, b)))
}

#[inline]
#[target_feature(enable = "avx2")]
fn sum0(a: __m256i) -> __m256i {
    xor!(rotate!(a, 2, 30), rotate!(a, 13, 19), rotate!(a, 22, 10))
}

#[inline]
#[target_feature(enable = "avx2")]
fn sum1(e: __m256i) -> __m256i {
    xor!(rotate!(e, 6, 26), rotate!(e, 11, 21), rotate!(e, 25, 7))
}

#[inline]
#[target_feature(enable = "avx2")]
fn sigma0(w: __m256i) -> __m256i {
    xor!(rotate!(w, 7, 25), rotate!(w, 18, 14), _mm256_srli_epi32::<3>(w))
}

#[inline]
#[target_feature(enable = "avx2")]
fn sigma1(w: __m256i) -> __m256i {
    xor!(rotate!(w, 17, 15), rotate!(w, 19, 13), _mm256_srli_epi32::<10>(w))
}
