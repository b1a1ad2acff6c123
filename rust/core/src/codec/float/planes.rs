//! Items of one, two or four bytes, and their byte planes.
//!
//! An item is rotated left by one bit first, so that the sign of a float stands below its mantissa and the exponent begins at the top of
//! the uppermost byte: all of it for bf16 and f32, five of its eight bits for f16. The loops are written for the compiler to vectorise.

#![expect(clippy::inline_always, reason = "`wide` compiles these functions twice, which takes that they become part of its own")]

/// Bytes of an item: what a frame knows of a number's type. f16 and bf16 are the same to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// fp8, which is left as it is.
    One = 1,
    /// bf16, f16.
    Two = 2,
    /// f32.
    Four = 4,
}

impl Width {
    pub(super) fn bytes(self) -> usize {
        self as usize
    }

    pub(super) fn from_bytes(bytes: u8) -> Option<Self> {
        [Self::One, Self::Two, Self::Four].into_iter().find(|width| *width as u8 == bytes)
    }
}

/// Cuts whole items into planes of one byte of each item, the uppermost first, one plane after the other.
#[inline(always)]
pub(super) fn split(items: &[u8], width: Width, planes: &mut [u8]) {
    let len = planes.len() / width.bytes();
    match width {
        Width::One => planes.copy_from_slice(items),
        Width::Two => {
            let (high, low) = planes.split_at_mut(len);
            for ((item, high), low) in items.as_chunks::<2>().0.iter().zip(high).zip(low) {
                [*low, *high] = u16::from_le_bytes(*item).rotate_left(1).to_le_bytes();
            }
        }
        Width::Four => {
            let (upper, lower) = planes.split_at_mut(2 * len);
            let ((a, b), (c, d)) = (upper.split_at_mut(len), lower.split_at_mut(len));
            for (item, ((a, b), (c, d))) in items.as_chunks::<4>().0.iter().zip(a.iter_mut().zip(b).zip(c.iter_mut().zip(d))) {
                [*d, *c, *b, *a] = u32::from_le_bytes(*item).rotate_left(1).to_le_bytes();
            }
        }
    }
}

/// Puts items together from their planes again.
#[inline(always)]
pub(super) fn join(planes: [&[u8]; 4], width: Width, items: &mut [u8]) {
    match width {
        Width::One => items.copy_from_slice(planes[0]),
        Width::Two => {
            let [high, low, ..] = planes;
            for ((item, &high), &low) in items.as_chunks_mut::<2>().0.iter_mut().zip(high).zip(low) {
                *item = u16::from_le_bytes([low, high]).rotate_right(1).to_le_bytes();
            }
        }
        Width::Four => {
            let [a, b, c, d] = planes;
            for ((((item, &a), &b), &c), &d) in items.as_chunks_mut::<4>().0.iter_mut().zip(a).zip(b).zip(c).zip(d) {
                *item = u32::from_le_bytes([d, c, b, a]).rotate_right(1).to_le_bytes();
            }
        }
    }
}
