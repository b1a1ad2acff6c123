//! Chunks by the instructions that the processor has. On x86-64 the same code is compiled twice: the second time for AVX2, which cuts and
//! joins planes in half the time, and BMI2, whose shifts take their count from any register, which gains a third where codes are written.
//!
//! Unsafe here: calling what was compiled for a feature.

#![expect(unsafe_code, reason = "calls of functions that need the instructions")]

use super::{Chunk, DecodeError, Scratch};

/// Appends a chunk of items in their planes.
pub(super) fn encode(chunk: Chunk<&[u8]>, scratch: &mut Scratch, out: &mut Vec<u8>) {
    #[cfg(target_arch = "x86_64")]
    if available() {
        // SAFETY: the processor has the features, as `available` asks for each.
        return unsafe { x86::encode(chunk, scratch, out) };
    }
    super::encode_chunk(chunk, scratch, out);
}

/// Decodes a chunk and tells what stands after it.
pub(super) fn decode<'a>(frame: &'a [u8], chunk: Chunk<&mut [u8]>, scratch: &mut Scratch) -> Result<&'a [u8], DecodeError> {
    #[cfg(target_arch = "x86_64")]
    if available() {
        // SAFETY: the processor has the features, as `available` asks for each.
        return unsafe { x86::decode(frame, chunk, scratch) };
    }
    super::decode_chunk(frame, chunk, scratch)
}

#[cfg(target_arch = "x86_64")]
fn available() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("bmi1") && is_x86_feature_detected!("bmi2") && is_x86_feature_detected!("lzcnt")
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::super::{Chunk, DecodeError, Scratch, decode_chunk, encode_chunk};

    #[target_feature(enable = "avx2,bmi1,bmi2,lzcnt")]
    pub(super) fn encode(chunk: Chunk<&[u8]>, scratch: &mut Scratch, out: &mut Vec<u8>) {
        encode_chunk(chunk, scratch, out);
    }

    #[target_feature(enable = "avx2,bmi1,bmi2,lzcnt")]
    pub(super) fn decode<'a>(frame: &'a [u8], chunk: Chunk<&mut [u8]>, scratch: &mut Scratch) -> Result<&'a [u8], DecodeError> {
        decode_chunk(frame, chunk, scratch)
    }
}
