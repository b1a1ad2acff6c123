#![expect(clippy::cast_possible_truncation, reason = "numbers made from random bits")]

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

const WIDTHS: [Width; 3] = [Width::One, Width::Two, Width::Four];

/// Numbers that fall off like weights do: bytes of a mantissa at random below exponents of which few are frequent.
fn floats(items: usize, width: Width) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut step = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.wrapping_mul(0x2545_f491_4f6c_dd1d)
    };
    let mut item = || {
        let random = step();
        let exponent = 118 + (random >> 40).trailing_zeros();
        let float = (random as u32 & 0x807f_ffff) | exponent << 23;
        match width {
            // Five exponents, one after the other in the middle of what four bits can tell.
            Width::One => vec![(float >> 24) as u8 & 0x80 | ((exponent.clamp(118, 122) - 115) as u8) << 3 | float as u8 & 7],
            Width::Two => (float >> 16).to_le_bytes()[..2].to_vec(),
            Width::Four => float.to_le_bytes().to_vec(),
        }
    };
    (0..items).flat_map(|_| item()).collect()
}

fn returns(content: &[u8], frame: &[u8]) {
    assert_eq!(content_len(frame), Ok(content.len() as u64));
    assert_eq!(decode(frame, content.len() as u64).as_deref(), Ok(content));
    let mut out = vec![0xff; content.len()];
    assert_eq!(decode_into(frame, &mut out), Ok(()));
    assert_eq!(out, content);
}

/// A frame even where it does not pay.
fn framed(content: &[u8], width: Width) -> Vec<u8> {
    let mut out = Vec::new();
    write(content, width, &mut out);
    out
}

#[test]
fn every_length_and_width_returns() {
    let lengths = (0..70).chain([1000, 4095, 4096, 4097, CHUNK_ITEMS - 1, CHUNK_ITEMS, CHUNK_ITEMS + 1, 2 * CHUNK_ITEMS + 5]);
    for items in lengths {
        for width in WIDTHS {
            let content = floats(items, width);
            returns(&content, &framed(&content, width));
            for tail in 1..width.bytes() {
                let content = [&content[..], &[7, 8, 9][..tail]].concat();
                returns(&content, &framed(&content, width));
            }
            // What was made of others.
            for other in WIDTHS {
                returns(&content, &framed(&content, other));
            }
        }
    }
}

#[test]
fn floats_shrink_to_what_their_exponents_leave() {
    // Two bits of exponent each instead of eight (five, four), a few bytes for the frame.
    for (width, most) in [(Width::One, 80), (Width::Two, 65), (Width::Four, 83)] {
        let content = floats(36_864, width);
        let frame = encode(&content, width).unwrap();
        assert!(frame.len() * 100 < content.len() * most, "{width:?}: {} of {}", frame.len(), content.len());
        returns(&content, &frame);
        assert_eq!(sniff(&content).unwrap().width, width);
    }
}

#[test]
fn what_does_not_pay_has_no_frame() {
    let mut state = 1_u32;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    })
    .take(100_000)
    .collect();
    assert_eq!(sniff(&noise), None);
    for width in WIDTHS {
        assert_eq!(encode(&noise, width), None);
        assert_eq!(encode(b"", width), None);
        assert_eq!(encode(b"abcd", width), None);
        returns(&noise, &framed(&noise, width));
    }
}

#[test]
fn special_numbers_return() {
    let halves = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect::<Vec<u8>>();
    let singles =
        [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.0, -0.0, f32::MIN_POSITIVE, f32::from_bits(1), f32::from_bits(0xff80_0001)];
    let singles = singles.iter().cycle().take(40_000).flat_map(|float| float.to_le_bytes()).collect::<Vec<u8>>();
    for content in [halves, singles] {
        for width in WIDTHS {
            returns(&content, &framed(&content, width));
        }
    }
}

#[test]
fn constant_planes_take_a_byte() {
    let content = vec![0; 4 * CHUNK_ITEMS];
    let frame = encode(&content, Width::Four).unwrap();
    assert_eq!(frame, [&b"fpl\x01\x04\x80\x80\x20"[..], &[1, 0].repeat(4)].concat());
    returns(&content, &frame);
}

#[test]
fn both_ways_of_compiling_make_the_same_frame() {
    for width in WIDTHS {
        let content = floats(50_000, width);
        let (mut wide, mut plain) = (Vec::new(), Vec::new());
        let mut out = vec![0; content.len()];
        with_scratch(|scratch| {
            wide::encode(Chunk { items: &content, width }, scratch, &mut wide);
            encode_chunk(Chunk { items: &content, width }, scratch, &mut plain);
            assert_eq!(wide, plain);
            assert_eq!(decode_chunk(&plain, Chunk { items: &mut out, width }, scratch), Ok(&[][..]));
        });
        assert_eq!(out, content);
    }
}

#[test]
fn what_is_no_frame_is_refused() {
    let content = floats(5000, Width::Two);
    let frame = encode(&content, Width::Two).unwrap();
    let refused = |frame: &[u8], reason: &str| match decode(frame, 1 << 20) {
        Err(DecodeError::Malformed(found)) => assert!(found.contains(reason), "{found:?} instead of {reason:?}"),
        other => panic!("{other:?}"),
    };
    let with = |at: usize, byte: u8| {
        let mut frame = frame.clone();
        frame[at] = byte;
        frame
    };
    refused(&with(0, b'F'), "magic");
    refused(&with(3, 2), "version 2 is not known");
    refused(&with(4, 8), "items of 8 bytes");
    refused(&with(7, 3), "a plane of kind 3");
    refused(&[&frame[..], b"x"].concat(), "bytes after its end");
    refused(b"fpl\x01\x02\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02", "more than 64 bits");
    // A code of three bits where the first symbol's one bit has left half of all: never complete.
    refused(b"fpl\x01\x01\x05\x02\x31", "it ends within a code");
    refused(b"fpl\x01\x01\x05\x02\x11\x11", "streams");
    refused(b"fpl\x01\x01\x05\x02\x21\x01", "too many codes");
    refused(b"fpl\x01\x01\x05\x02\xf0\x1f", "no symbol");
    refused(b"fpl\x01\x01\x05\x02\x0c", "eleven bits");
    refused(b"fpl\x01\x01\x05\x02\x11\x01\x00\x01\x00\x01\x00\x02\x00\x00\x00\x00\x00\x00", "another length");
    for cut in 0..frame.len() {
        assert!(decode(&frame[..cut], 1 << 20).is_err(), "{cut}");
    }
    assert_eq!(decode(&frame, 9999), Err(DecodeError::TooLarge));
    assert!(decode_into(&frame, &mut vec![0; 9998]).is_err());
}

#[test]
fn codes_are_never_longer_than_allowed() {
    // Fibonacci numbers make the longest codes.
    let mut content = Vec::new();
    let (mut a, mut b) = (1, 1);
    for symbol in 0..24_u8 {
        content.extend(std::iter::repeat_n(symbol, a));
        (a, b) = (b, a + b);
    }
    returns(&content, &framed(&content, Width::One));
    let all: Vec<u8> = (0..=u8::MAX).chain(std::iter::repeat_n(9, 100_000)).collect();
    returns(&all, &framed(&all, Width::One));
}

proptest! {
    #[test]
    fn any_bytes_return(content in vec(any::<u8>(), 0..5000), width in 0..3_usize) {
        returns(&content, &framed(&content, WIDTHS[width]));
    }

    #[test]
    fn few_symbols_return(content in vec(prop_oneof![4 => Just(0_u8), 2 => 1..4_u8, 1 => any::<u8>()], 0..5000), width in 0..3_usize) {
        returns(&content, &framed(&content, WIDTHS[width]));
    }

    #[test]
    fn damage_is_refused_or_decodes_to_as_many_bytes(flips in vec((0..7000_usize, 1..=255_u8), 1..6), width in 0..3_usize) {
        let content = floats(1500, WIDTHS[width]);
        let mut frame = framed(&content, WIDTHS[width]);
        for (at, flip) in flips {
            let at = at % frame.len();
            frame[at] ^= flip;
        }
        if let Ok(found) = decode(&frame, 1 << 16) {
            prop_assert_eq!(found.len() as u64, content_len(&frame).unwrap());
        }
    }

    #[test]
    fn any_planes_are_refused_or_decode(planes in vec(any::<u8>(), 0..200), len in 0..600_u64, width in 0..3_usize) {
        let mut frame = [&MAGIC[..], &[WIDTHS[width] as u8]].concat();
        push_length(&mut frame, len);
        frame.extend(planes);
        if let Ok(found) = decode(&frame, 1 << 16) {
            prop_assert_eq!(found.len() as u64, len);
        }
    }
}
