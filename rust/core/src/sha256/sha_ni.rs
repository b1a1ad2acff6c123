//! Up to four streams in turn through the SHA instructions of x86: while one waits for a result, the next ones are under way.
#![expect(unsafe_code, reason = "vector loads by pointer, and calls of functions that need the instructions")]

use std::arch::x86_64::{
    __m128i, _mm_add_epi32, _mm_alignr_epi8, _mm_blend_epi16, _mm_loadu_si128, _mm_set_epi32, _mm_setzero_si128, _mm_sha256msg1_epu32,
    _mm_sha256msg2_epu32, _mm_sha256rnds2_epu32, _mm_shuffle_epi8, _mm_shuffle_epi32, _mm_storeu_si128,
};

use super::{K, State};

/// Streams that are hashed together. One, two, three and four reach 1.8, 3.4, 3.8 and 3.8 GB/s on AMD's Zen 4 at 3.7 GHz. There it is not the
/// rounds that bound the last two, of which a pair could begin every cycle, but all that goes through the vector pipes with them.
pub const LANES: usize = 4;

/// Proof that this processor has what the kernel needs, and whether it has the 32 registers of AVX-512.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShaNi {
    registers: bool,
}

impl ShaNi {
    /// The kernel, where the processor has it.
    pub fn detect() -> Option<Self> {
        let registers = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw") && is_x86_feature_detected!("avx512vl");
        (is_x86_feature_detected!("sha") && is_x86_feature_detected!("sse4.1") && is_x86_feature_detected!("ssse3")).then_some(Self { registers })
    }

    /// The kernel as where there are 16 registers.
    #[cfg(test)]
    pub fn of_sixteen() -> Option<Self> {
        Self::detect().map(|_| Self { registers: false })
    }

    /// Takes `blocks` blocks of up to four streams into their states.
    pub fn compress(self, states: &mut [State], ahead: &[&[u8]], blocks: usize) {
        match states.len() {
            1 => self.interleaved::<1>(states, ahead, blocks),
            2 => self.interleaved::<2>(states, ahead, blocks),
            3 => self.interleaved::<3>(states, ahead, blocks),
            _ => self.interleaved::<4>(states, ahead, blocks),
        }
    }

    fn interleaved<const N: usize>(self, states: &mut [State], ahead: &[&[u8]], blocks: usize) {
        let states: &mut [State; N] = states.try_into().expect("as many states as lanes");
        let ahead: &[&[u8]; N] = ahead.try_into().expect("as many streams as states");
        assert!(ahead.iter().all(|bytes| bytes.len() >= blocks * 64));
        let compress = if self.registers { thirty_two::compress } else { sixteen::compress };
        // SAFETY: `self` exists, so the processor has the instructions, and the registers where it says so; every stream has as many bytes as are
        // read.
        unsafe { compress(states, ahead.map(<[u8]>::as_ptr), blocks) };
    }
}

/// Four rounds of `N` streams; from the sixteenth on, their words are made first.
macro_rules! rounds {
    ($w:ident $abef:ident $cdgh:ident, $t:literal, $a:literal $b:literal $c:literal $d:literal) => {
        // SAFETY: the constants `$t` to `$t + 3` are 16 bytes.
        let k = unsafe { _mm_loadu_si128(K.as_ptr().add($t).cast()) };
        for j in 0..N {
            if $t >= 16 {
                let older = _mm_add_epi32(_mm_sha256msg1_epu32($w[$a][j], $w[$b][j]), _mm_alignr_epi8::<4>($w[$d][j], $w[$c][j]));
                $w[$a][j] = _mm_sha256msg2_epu32(older, $w[$d][j]);
            }
            let sum = _mm_add_epi32($w[$a][j], k);
            $cdgh[j] = _mm_sha256rnds2_epu32($cdgh[j], $abef[j], sum);
            $abef[j] = _mm_sha256rnds2_epu32($abef[j], $cdgh[j], _mm_shuffle_epi32::<0x0e>(sum));
        }
    };
}

/// The kernel, compiled for `$features`: with 32 registers, of which the words of four streams take half, it is faster by a fourteenth on AMD's Zen 4
/// than with 16, where they go to memory and back.
macro_rules! kernel {
    ($name:ident, $features:literal) => {
        mod $name {
            use super::*;

            /// Takes `blocks` blocks of each stream.
            ///
            /// # Safety
            /// Each of `streams` must point to `blocks` × 64 readable bytes.
            #[target_feature(enable = $features)]
            pub(super) unsafe fn compress<const N: usize>(states: &mut [State; N], streams: [*const u8; N], blocks: usize) {
                let swap = _mm_set_epi32(0x0c0d_0e0f, 0x0809_0a0b, 0x0405_0607, 0x0001_0203);
                let zero = _mm_setzero_si128();
                // The instructions want the words a b e f and c d g h together, the first one highest.
                let (mut abef, mut cdgh) = ([zero; N], [zero; N]);
                for j in 0..N {
                    // SAFETY: a state is 32 bytes.
                    let (dcba, hgfe) = unsafe { (_mm_loadu_si128(states[j].as_ptr().cast()), _mm_loadu_si128(states[j].as_ptr().add(4).cast())) };
                    let cdab = _mm_shuffle_epi32::<0xb1>(dcba);
                    let efgh = _mm_shuffle_epi32::<0x1b>(hgfe);
                    abef[j] = _mm_alignr_epi8::<8>(cdab, efgh);
                    cdgh[j] = _mm_blend_epi16::<0xf0>(efgh, cdab);
                }
                for block in 0..blocks {
                    let (abef_before, cdgh_before) = (abef, cdgh);
                    let mut w = [[zero; N]; 4];
                    for (i, words) in w.iter_mut().enumerate() {
                        for (word, stream) in words.iter_mut().zip(streams) {
                            // SAFETY: block `block` of each stream is readable.
                            *word = unsafe { _mm_shuffle_epi8(_mm_loadu_si128(stream.add(64 * block + 16 * i).cast()), swap) };
                        }
                    }
                    rounds!(w abef cdgh, 0, 0 1 2 3);
                    rounds!(w abef cdgh, 4, 1 2 3 0);
                    rounds!(w abef cdgh, 8, 2 3 0 1);
                    rounds!(w abef cdgh, 12, 3 0 1 2);
                    rounds!(w abef cdgh, 16, 0 1 2 3);
                    rounds!(w abef cdgh, 20, 1 2 3 0);
                    rounds!(w abef cdgh, 24, 2 3 0 1);
                    rounds!(w abef cdgh, 28, 3 0 1 2);
                    rounds!(w abef cdgh, 32, 0 1 2 3);
                    rounds!(w abef cdgh, 36, 1 2 3 0);
                    rounds!(w abef cdgh, 40, 2 3 0 1);
                    rounds!(w abef cdgh, 44, 3 0 1 2);
                    rounds!(w abef cdgh, 48, 0 1 2 3);
                    rounds!(w abef cdgh, 52, 1 2 3 0);
                    rounds!(w abef cdgh, 56, 2 3 0 1);
                    rounds!(w abef cdgh, 60, 3 0 1 2);
                    for j in 0..N {
                        abef[j] = _mm_add_epi32(abef[j], abef_before[j]);
                        cdgh[j] = _mm_add_epi32(cdgh[j], cdgh_before[j]);
                    }
                }
                for j in 0..N {
                    let feba = _mm_shuffle_epi32::<0x1b>(abef[j]);
                    let dchg = _mm_shuffle_epi32::<0xb1>(cdgh[j]);
                    let (dcba, hgfe): (__m128i, __m128i) = (_mm_blend_epi16::<0xf0>(feba, dchg), _mm_alignr_epi8::<8>(dchg, feba));
                    // SAFETY: a state is 32 bytes.
                    unsafe {
                        _mm_storeu_si128(states[j].as_mut_ptr().cast(), dcba);
                        _mm_storeu_si128(states[j].as_mut_ptr().add(4).cast(), hgfe);
                    }
                }
            }
        }
    };
}

kernel!(sixteen, "sha,sse4.1,ssse3");
kernel!(thirty_two, "sha,sse4.1,ssse3,avx512f,avx512bw,avx512vl");
