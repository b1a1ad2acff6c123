//! One stream at a time, for any processor.

use super::{K, State, rounds};

fn add(a: u32, b: u32) -> u32 {
    a.wrapping_add(b)
}

fn k(t: usize) -> u32 {
    K[t]
}

fn choose(e: u32, f: u32, g: u32) -> u32 {
    g ^ (e & (f ^ g))
}

fn majority(a: u32, b: u32, c: u32) -> u32 {
    (a & b) | (c & (a | b))
}

fn sum0(a: u32) -> u32 {
    a.rotate_right(2) ^ a.rotate_right(13) ^ a.rotate_right(22)
}

fn sum1(e: u32) -> u32 {
    e.rotate_right(6) ^ e.rotate_right(11) ^ e.rotate_right(25)
}

fn sigma0(w: u32) -> u32 {
    w.rotate_right(7) ^ w.rotate_right(18) ^ (w >> 3)
}

fn sigma1(w: u32) -> u32 {
    w.rotate_right(17) ^ w.rotate_right(19) ^ (w >> 10)
}

/// Takes whole blocks into a state.
pub fn compress(state: &mut State, bytes: &[u8]) {
    for block in bytes.as_chunks::<64>().0 {
        let mut w = [0; 16];
        for (word, bytes) in w.iter_mut().zip(block.as_chunks().0) {
            *word = u32::from_be_bytes(*bytes);
        }
        *state = rounds::block!(*state, w);
    }
}
