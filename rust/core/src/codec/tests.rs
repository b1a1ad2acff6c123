use super::*;

fn encodings() -> Vec<Encoding> {
    [Codec::Auto, Codec::Zstd, Codec::Store].into_iter().map(|codec| Encoding::new(codec, 1).unwrap()).collect()
}

fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut step = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    (0..len).map(|_| step()).collect()
}

const LENGTHS: [usize; 14] =
    [0, 1, 255, 256, 257, 65_791, 65_792, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 1 << 20, (1 << 20) + 1, 3 << 20, 5_000_000];

#[test]
fn every_encoding_decodes_to_the_same_bytes() {
    for len in LENGTHS {
        for content in [noise(len), vec![0; len]] {
            for encoding in encodings() {
                let frame = encoding.encode(&content).into_vec();
                assert_eq!(content_len(&frame), Ok(Some(len as u64)));
                assert_eq!(content_len_hint(&frame), Some(len as u64));
                assert_eq!(decode(&frame, len as u64).unwrap(), content);
                let mut streamed = Vec::new();
                let mut seen = Vec::new();
                encoding.encode_stream(&mut &content[..], len as u64, &mut streamed, |piece| seen.extend_from_slice(piece)).unwrap();
                assert_eq!(seen, content);
                assert_eq!(decode(&streamed, len as u64).unwrap(), content, "{len} {encoding:?}");
                assert_eq!(content_len(&streamed), Ok(Some(len as u64)), "{len} {encoding:?}");
            }
        }
    }
}

#[test]
fn stored_frames_have_the_length_that_is_told_and_stream_alike() {
    let encoding = Encoding::new(Codec::Store, 1).unwrap();
    for len in LENGTHS {
        let content = noise(len);
        let frame = Frame::Stored(&content);
        assert_eq!(frame.len() as u64, stored_len(len as u64));
        let frame = frame.into_vec();
        assert_eq!(frame.len() as u64, stored_len(len as u64));
        let mut streamed = Vec::new();
        encoding.encode_stream(&mut &content[..], len as u64, &mut streamed, |_| ()).unwrap();
        assert_eq!(frame, streamed);
        let mut out = vec![1; len];
        let mut rest = &frame[..];
        assert_eq!(read_stored(&mut out, |slices| rest.read_vectored(slices)).unwrap(), Found::Frame);
        assert!(rest.is_empty());
        assert_eq!(out, content);
        let blocks = stored_blocks(&frame).unwrap();
        assert!(blocks.iter().rev().skip(1).all(|block| block.len() == BLOCK_BYTES), "{len}");
        assert_eq!(blocks.concat(), content);
    }
}

#[test]
fn what_is_not_exactly_a_stored_frame_has_no_blocks() {
    let content = noise(3 * BLOCK_BYTES + 5);
    let frame = Frame::Stored(&content).into_vec();
    let is_content = |index: usize| frame[index..].len() <= 5;
    for index in (0..300).chain(BLOCK_BYTES..BLOCK_BYTES + 600).chain(frame.len() - 5..frame.len()) {
        let mut other = frame.clone();
        other[index] ^= 1;
        match stored_blocks(&other) {
            // A flip in the content is for its digest to find.
            Some(blocks) => assert_eq!(decode(&other, 1 << 20).unwrap(), blocks.concat(), "{index}"),
            None => assert!(!is_content(index), "{index}"),
        }
    }
    let endless = [&[0x28, 0xb5, 0x2f, 0xfd, 0xe0][..], &[0xff; 8]].concat();
    for other in [&endless[..], &frame[..frame.len() - 1], &[&frame[..], &[0]].concat(), &zstd_of(&content), &[]] {
        assert_eq!(stored_blocks(other), None);
    }
}

fn zstd_of(content: &[u8]) -> Vec<u8> {
    Encoding::new(Codec::Zstd, 1).unwrap().encode(content).into_vec()
}

#[test]
fn windows_stay_small() {
    // Byte 5 is the window descriptor when bit 5 of the descriptor (byte 4) is clear.
    for encoding in encodings() {
        let frame = encoding.encode(&noise(2 << 20)).into_vec();
        assert_eq!((frame[4] & 0x20, frame[5]), (0, 0x38), "{encoding:?}");
        assert_eq!(frame[4] & 0x04, 0, "no checksum");
    }
}

#[test]
fn auto_compresses_what_pays() {
    let auto = Encoding::new(Codec::Auto, 1).unwrap();
    assert!(auto.encode(&vec![0; 100_000]).is_compressed());
    assert!(auto.encode("the page of a book is text, and text is compressible. ".repeat(3000).as_bytes()).is_compressed());
    assert!(!auto.encode(&noise(100_000)).is_compressed());
    assert!(!auto.encode(b"x").is_compressed());
}

#[test]
fn a_reader_of_another_length_is_refused() {
    for encoding in encodings() {
        for len in [9, 11] {
            let error = encoding.encode_stream(&mut &[7; 10][..], len, &mut Vec::new(), |_| ()).unwrap_err();
            let want = if len > 10 { io::ErrorKind::UnexpectedEof } else { io::ErrorKind::InvalidData };
            assert_eq!(error.kind(), want);
        }
    }
}

#[test]
fn foreign_frames_are_read() {
    let (a, b) = (noise(1000), vec![3; 70_000]);
    let mut frames = vec![0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3];
    frames.extend(compress(&a, 3));
    frames.extend(zstd::stream::encode_all(&b[..], 19).unwrap());
    let whole = [a, b].concat();
    assert_eq!(content_len(&frames), Ok(None), "the streamed frame does not tell its size");
    assert_eq!(decode(&frames, 100_000).unwrap(), whole);
    assert_eq!(decode(&frames, 70_999), Err(DecodeError::TooLarge));
    let mut out = vec![0; whole.len()];
    decode_into(&frames, &mut out).unwrap();
    assert_eq!(out, whole);
}

#[test]
fn damage_is_malformed() {
    let frame = compress(&vec![5; 1000], 1);
    for bad in [&frame[..frame.len() - 1], &frame[1..], &[frame.clone(), vec![0]].concat(), b"nonsense"] {
        assert!(matches!(decode(bad, 1000), Err(DecodeError::Malformed(_))), "{bad:?}");
    }
    assert!(decode_into(&frame, &mut [0; 999]).is_err());
    assert!(decode_into(&frame, &mut [0; 1001]).is_err());
}

#[test]
fn a_float_frame_is_known_by_its_first_bytes_and_made_only_when_asked_for() {
    let content = half_noise(100_000);
    for (codec, width, expect) in [
        (Codec::Float, None, Form::Float),
        (Codec::Float, Some(Width::Two), Form::Float),
        (Codec::Auto, Some(Width::Two), Form::Zstd),
        (Codec::Zstd, Some(Width::Two), Form::Zstd),
    ] {
        let encoding = Encoding::new(codec, 1).unwrap();
        let frame = encoding.encode_items(&content, width);
        let (form, len, frame) = (frame.form(), frame.len(), frame.into_vec());
        assert_eq!((form, len), (expect, frame.len()), "{codec:?}");
        assert_eq!(Form::of(&frame), form);
        assert_eq!(form.content_len_hint(&frame[..FRAME_HEADER_MAX]), Some(100_000));
        assert_eq!(form.content_len(&frame), Ok(Some(100_000)));
        assert_eq!(form.decode(&frame, 100_000).unwrap(), content);
        assert_eq!(form.decode(&frame, 99_999), Err(DecodeError::TooLarge));
        let mut out = vec![0; content.len()];
        form.decode_into(&frame, &mut out).unwrap();
        assert_eq!(out, content);
        assert_eq!(encoding.published().encode_items(&content, width).form(), Form::Zstd);
        // What is streamed is never one.
        let mut streamed = Vec::new();
        encoding.encode_stream(&mut &content[..], 100_000, &mut streamed, |_| ()).unwrap();
        assert_eq!(decode(&streamed, 100_000).unwrap(), content);
    }
}

proptest::proptest! {
    #[test]
    fn arbitrary_bytes_round_trip_and_never_panic(content: Vec<u8>) {
        let _ = decode(&content, 1 << 20);
        let _ = Form::Float.decode(&content, 1 << 20);
        let floats = Encoding::new(Codec::Float, 1).unwrap();
        for width in [None, Some(Width::One), Some(Width::Two), Some(Width::Four)] {
            let frame = floats.encode_items(&content, width);
            proptest::prop_assert_eq!(&frame.form().decode(&frame.into_vec(), 1 << 20).unwrap(), &content);
        }
        for encoding in encodings() {
            proptest::prop_assert_eq!(&decode(&encoding.encode(&content).into_vec(), 1 << 20).unwrap(), &content);
        }
    }
}

/// Bytes of which the first of each pair is one of a few, as in pages of bf16 numbers, and the other any.
fn half_noise(len: usize) -> Vec<u8> {
    let mut content = noise(len);
    for pair in content.chunks_exact_mut(2) {
        pair[1] = 0x3c + (pair[1] & pair[0] & 7);
    }
    content
}

#[test]
fn a_sample_tells_what_pays_at_every_length() {
    let encoding = Encoding::new(Codec::Auto, 1).unwrap();
    let text = include_bytes!("../codec.rs");
    for len in [1, 100, 4095, 4096, 4097, 65_536, 1 << 20] {
        let text: Vec<u8> = text.iter().copied().cycle().take(len).collect();
        let expect = |content: &[u8], compressed: bool| assert_eq!(encoding.encode(content).is_compressed(), compressed, "{len}");
        expect(&noise(len), false);
        if len > 1 {
            expect(&vec![0; len], true);
        }
        if len >= 4096 {
            expect(&half_noise(len), false);
            expect(&text, true);
            // Few frequencies, many repetitions.
            expect(&noise(100).into_iter().cycle().take(len).collect::<Vec<_>>(), true);
        }
    }
}

proptest::proptest! {
    #[test]
    fn what_the_first_look_gives_up_zstd_would_not_have_saved(seed: u64, alphabet in 2_u64..=256, run in 1_usize..40) {
        // Bytes of an alphabet, each drawn anew or copied from a little before.
        let mut state = seed | 1;
        let mut next = || {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            state >> 33
        };
        let mut content: Vec<u8> = Vec::new();
        while content.len() < 40_000 {
            let back = 1 + usize::try_from(next() % 200).unwrap();
            if content.len() > back && next() % 2 == 0 {
                let from = content.len() - back;
                for at in from..from + run {
                    content.push(content[at]);
                }
            } else {
                content.push(u8::try_from(next() % alphabet).unwrap());
            }
        }
        let whole = Encoding::new(Codec::Zstd, 1).unwrap().encode(&content).len();
        if whole * 2 < content.len() {
            proptest::prop_assert!(Encoding::new(Codec::Auto, 1).unwrap().encode(&content).is_compressed(), "{whole}");
        }
    }
}
