//! Up to four streams in turn through the SHA-2 instructions of 64-bit ARM: while one waits for a result, the next ones are under way.
#![expect(unsafe_code, reason = "vector loads by pointer, and calls of functions that need the instructions")]

use std::arch::aarch64::{
    vaddq_u32, vdupq_n_u32, vld1q_u8, vld1q_u32, vreinterpretq_u32_u8, vrev32q_u8, vsha256h2q_u32, vsha256hq_u32, vsha256su0q_u32, vsha256su1q_u32,
    vst1q_u32,
};
use std::arch::is_aarch64_feature_detected;

use super::{K, State};

/// Streams that are hashed together.
pub const LANES: usize = 4;

/// Proof that this processor has what the kernel needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arm(());

impl Arm {
    /// The kernel, where the processor has it.
    pub fn detect() -> Option<Self> {
        is_aarch64_feature_detected!("sha2").then_some(Self(()))
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

    #[expect(clippy::unused_self, reason = "it is the proof")]
    fn interleaved<const N: usize>(self, states: &mut [State], ahead: &[&[u8]], blocks: usize) {
        let states: &mut [State; N] = states.try_into().expect("as many states as lanes");
        let ahead: &[&[u8]; N] = ahead.try_into().expect("as many streams as states");
        assert!(ahead.iter().all(|bytes| bytes.len() >= blocks * 64));
        // SAFETY: `self` exists, so the processor has the instructions; every stream has as many bytes as are read.
        unsafe { compress(states, ahead.map(<[u8]>::as_ptr), blocks) };
    }
}

/// Takes `blocks` blocks of each stream.
///
/// # Safety
/// Each of `streams` must point to `blocks` × 64 readable bytes.
#[target_feature(enable = "neon,sha2")]
unsafe fn compress<const N: usize>(states: &mut [State; N], streams: [*const u8; N], blocks: usize) {
    let zero = vdupq_n_u32(0);
    let (mut abcd, mut efgh) = ([zero; N], [zero; N]);
    for j in 0..N {
        // SAFETY: a state is 32 bytes.
        unsafe {
            abcd[j] = vld1q_u32(states[j].as_ptr());
            efgh[j] = vld1q_u32(states[j].as_ptr().add(4));
        }
    }
    for block in 0..blocks {
        let (abcd_before, efgh_before) = (abcd, efgh);
        let mut w = [[zero; N]; 4];
        for (i, words) in w.iter_mut().enumerate() {
            for (word, stream) in words.iter_mut().zip(streams) {
                // SAFETY: block `block` of each stream is readable.
                *word = vreinterpretq_u32_u8(vrev32q_u8(unsafe { vld1q_u8(stream.add(64 * block + 16 * i)) }));
            }
        }
        // Four rounds; from the sixteenth on, their words are made first.
        macro_rules! rounds {
            ($t:literal, $a:literal $b:literal $c:literal $d:literal) => {
                // SAFETY: the constants `$t` to `$t + 3` are 16 bytes.
                let k = unsafe { vld1q_u32(K.as_ptr().add($t)) };
                for j in 0..N {
                    if $t >= 16 {
                        w[$a][j] = vsha256su1q_u32(vsha256su0q_u32(w[$a][j], w[$b][j]), w[$c][j], w[$d][j]);
                    }
                    let sum = vaddq_u32(w[$a][j], k);
                    let before = abcd[j];
                    abcd[j] = vsha256hq_u32(before, efgh[j], sum);
                    efgh[j] = vsha256h2q_u32(efgh[j], before, sum);
                }
            };
        }
        rounds!(0, 0 1 2 3);
        rounds!(4, 1 2 3 0);
        rounds!(8, 2 3 0 1);
        rounds!(12, 3 0 1 2);
        rounds!(16, 0 1 2 3);
        rounds!(20, 1 2 3 0);
        rounds!(24, 2 3 0 1);
        rounds!(28, 3 0 1 2);
        rounds!(32, 0 1 2 3);
        rounds!(36, 1 2 3 0);
        rounds!(40, 2 3 0 1);
        rounds!(44, 3 0 1 2);
        rounds!(48, 0 1 2 3);
        rounds!(52, 1 2 3 0);
        rounds!(56, 2 3 0 1);
        rounds!(60, 3 0 1 2);
        for j in 0..N {
            abcd[j] = vaddq_u32(abcd[j], abcd_before[j]);
            efgh[j] = vaddq_u32(efgh[j], efgh_before[j]);
        }
    }
    for j in 0..N {
        // SAFETY: a state is 32 bytes.
        unsafe {
            vst1q_u32(states[j].as_mut_ptr(), abcd[j]);
            vst1q_u32(states[j].as_mut_ptr().add(4), efgh[j]);
        }
    }
}
