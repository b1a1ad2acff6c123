//! The two encodings that everything here is made of: varints, and the fields of protocol buffers.

/// Appends a number: seven bits a byte, low ones first, all bytes but the last with their upper bit set.
pub fn put_varint(out: &mut Vec<u8>, mut number: u64) {
    loop {
        let low = number.to_le_bytes()[0];
        number >>= 7;
        if number == 0 {
            return out.push(low);
        }
        out.push(low | 0x80);
    }
}

/// Bytes that [`put_varint`] appends.
pub const fn varint_len(number: u64) -> usize {
    ((70 - (number | 1).leading_zeros()) / 7) as usize
}

/// A number that bytes begin with; None where they end within it, or where it does not fit, or is longer than it need be.
pub fn take_varint(bytes: &mut &[u8]) -> Option<u64> {
    let end = bytes.iter().take(10).position(|byte| byte & 0x80 == 0)?;
    let (digits, rest) = bytes.split_at(end + 1);
    if end > 0 && digits[end] == 0 || end == 9 && digits[end] > 1 {
        return None;
    }
    *bytes = rest;
    Some(digits.iter().rev().fold(0, |number, byte| number << 7 | u64::from(byte & 0x7f)))
}

/// Appends a field that is a number.
pub fn put_number(out: &mut Vec<u8>, field: u8, number: u64) {
    out.push(field << 3);
    put_varint(out, number);
}

/// Appends a field that is bytes.
pub fn put_bytes(out: &mut Vec<u8>, field: u8, bytes: &[u8]) {
    out.push(field << 3 | 2);
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// What a field holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// The fields of a message, in the order in which they stand; the error says what is wrong.
pub struct Fields<'a>(pub &'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Value<'a>), &'static str>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.0 = &[];
        }
        Some(field)
    }
}

impl<'a> Fields<'a> {
    fn field(&mut self) -> Result<(u64, Value<'a>), &'static str> {
        const CUT: &str = "a field of it is malformed or cut off";
        let tag = take_varint(&mut self.0).ok_or(CUT)?;
        let value = match tag & 7 {
            0 => Value::Number(take_varint(&mut self.0).ok_or(CUT)?),
            2 => {
                let length = take_varint(&mut self.0).and_then(|length| usize::try_from(length).ok()).ok_or(CUT)?;
                Value::Bytes(self.0.split_off(..length).ok_or(CUT)?)
            }
            _ => return Err("a field of it is neither a number nor bytes"),
        };
        Ok((tag >> 3, value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_one_form() {
        for number in [0, 1, 127, 128, 300, 16_383, 16_384, u64::from(u32::MAX), u64::MAX >> 1, u64::MAX] {
            let mut bytes = Vec::new();
            put_varint(&mut bytes, number);
            assert_eq!(bytes.len(), varint_len(number), "{number}");
            for end in 0..bytes.len() {
                assert_eq!(take_varint(&mut &bytes[..end]), None);
            }
            bytes.push(7);
            let mut rest = &bytes[..];
            assert_eq!(take_varint(&mut rest), Some(number));
            assert_eq!(rest, [7]);
        }
        for wrong in [&[0x80, 0][..], &[0xff; 11], &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2]] {
            assert_eq!(take_varint(&mut &wrong[..]), None);
        }
    }

    #[test]
    fn fields_are_read_in_order_until_one_is_wrong() {
        let mut bytes = Vec::new();
        put_number(&mut bytes, 3, 300);
        put_bytes(&mut bytes, 1, b"ab");
        let fields: Vec<_> = Fields(&bytes).map(Result::unwrap).collect();
        assert_eq!(fields, [(3, Value::Number(300)), (1, Value::Bytes(b"ab"))]);
        assert!(Fields(&bytes[..bytes.len() - 1]).last().unwrap().is_err());
        // Fixed widths do not occur in what is read here.
        assert_eq!(Fields(&[0x0d, 0, 0, 0, 0, 0, 0]).filter(Result::is_err).count(), 1);
    }
}
