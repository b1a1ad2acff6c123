//! Hexadecimal digits of a digest, without branches or tables, so that the compiler does many at once.

/// The 64 lower-case digits of 32 bytes.
#[inline]
pub(super) fn encode(bytes: &[u8; 32]) -> [u8; 64] {
    const fn digit(nibble: u8) -> u8 {
        nibble + b'0' + if nibble > 9 { b'a' - b'9' - 1 } else { 0 }
    }
    let mut out = [0; 64];
    for (pair, byte) in out.chunks_exact_mut(2).zip(bytes) {
        pair[0] = digit(byte >> 4);
        pair[1] = digit(byte & 15);
    }
    out
}

/// The bytes of 64 lower-case digits; None when there is anything else among them.
pub(super) fn decode(digits: &[u8; 64]) -> Option<[u8; 32]> {
    // A pair at a time: the low four bits of a digit are its value, of a letter nine less.
    let mut pairs = [0; 32];
    for (pair, digits) in pairs.iter_mut().zip(digits.as_chunks().0) {
        *pair = u16::from_le_bytes(*digits);
    }
    for pair in &mut pairs {
        let nibbles = (*pair & 0x0f0f) + 9 * (*pair >> 6 & 0x0101);
        *pair = (nibbles << 4 | nibbles >> 8) & 0xff;
    }
    #[expect(clippy::cast_possible_truncation, reason = "masked just before")]
    let bytes = pairs.map(|pair| pair as u8);
    // What else has such bits is found by going back.
    let differences = encode(&bytes).iter().zip(digits).fold(0, |all, (a, b)| all | (a ^ b));
    (differences == 0).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use proptest::prelude::*;

    use super::*;

    /// A digit in the middle of others.
    fn digits_with(at: usize, digit: u8) -> [u8; 64] {
        let mut digits = [b'7'; 64];
        digits[at] = digit;
        digits
    }

    #[test]
    fn nothing_but_lower_case_digits_is_read() {
        for at in 0..64 {
            for byte in 0..=u8::MAX {
                let value = (byte as char).to_digit(16).filter(|_| !byte.is_ascii_uppercase());
                let want = value.map(|value| {
                    let mut bytes = [0x77; 32];
                    let shift = if at % 2 == 0 { 4 } else { 0 };
                    bytes[at / 2] = u8::try_from(value).unwrap() << shift | 0x77 & !(15 << shift);
                    bytes
                });
                assert_eq!(decode(&digits_with(at, byte)), want, "{byte} at {at}");
            }
        }
    }

    proptest! {
        #[test]
        fn digits_are_those_that_rust_prints(bytes: [u8; 32]) {
            let mut want = String::new();
            for byte in bytes {
                write!(want, "{byte:02x}").unwrap();
            }
            let digits = encode(&bytes);
            prop_assert_eq!(&digits[..], want.as_bytes());
            prop_assert_eq!(decode(&digits), Some(bytes));
        }
    }
}
