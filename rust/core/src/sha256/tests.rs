use sha2::Digest as _;

use super::*;
use crate::digest::{Algorithm, Digest};

/// All kernels of this processor, sixteen lanes as on a processor that has no SHA instructions, and these as on one that has no AVX-512.
fn every() -> Vec<Kernel> {
    let all = kernels().into_iter();
    #[cfg(target_arch = "x86_64")]
    let all = all
        .chain(avx512::Avx512::detect().map(|lanes| Kernel(Kind::Avx512(lanes, None))))
        .chain(sha_ni::ShaNi::of_sixteen().map(|few| Kernel(Kind::ShaNi(few))));
    all.collect()
}

fn hashed(kernel: Kernel, blobs: &[&[u8]]) -> Vec<[u8; 32]> {
    let mut out = vec![None; blobs.len()];
    kernel.hash_each(blobs, |index, hash| assert_eq!(out[index].replace(hash), None, "{kernel}: {index} twice"));
    out.into_iter().map(|hash| hash.expect("every blob has a hash")).collect()
}

fn oracle(bytes: &[u8]) -> [u8; 32] {
    sha2::Sha256::digest(bytes).into()
}

fn hex(hash: [u8; 32]) -> String {
    Digest::new(Algorithm::Sha256, hash).hex()
}

/// Bytes without a pattern that could hide a wrong order (xorshift).
fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut byte = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x.to_le_bytes()[4]
    };
    (0..len).map(|_| byte()).collect()
}

#[test]
fn published_vectors() {
    // FIPS 180-2 appendix B, and of the CAVP's SHA256ShortMsg.rsp and SHA256LongMsg.rsp those short enough to stand here.
    let million = vec![b'a'; 1_000_000];
    let vectors: [(&[u8], &str); 9] = [
        (b"", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
        (b"abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
        (b"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq", "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1"),
        (
            b"abcdefghbcdefghicdefghijdefghijkefghijklfghijklmghijklmnhijklmnoijklmnopjklmnopqklmnopqrlmnopqrsmnopqrstnopqrstu",
            "cf5b16a778af8380036ce59e7b0492370b249b11e8f07a51afac45037afee9d1",
        ),
        (&million, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0"),
        (&[0xd3], "28969cdfa74a12c82f3bad960b0b000aca2ac329deea5c2328ebc6f2ba9802c1"),
        (&[0x11, 0xaf], "5ca7133fa735326081558ac312c620eeca9970d1e70a4b95533d956f072d1f98"),
        (&[0xb4, 0x19, 0x0e], "dff2e73091f6c05e528896c4c831b9448653dc2ff043528f6769437bc7b975c2"),
        (&[0x74, 0xba, 0x25, 0x21], "b16aa56be3880d18cd41e68384cf1ec8c17680c45a02b1575dc1518923ae8b0e"),
    ];
    for kernel in every() {
        for (message, want) in vectors {
            assert_eq!(hex(kernel.hash(message)), want, "{kernel}");
        }
        let messages = vectors.map(|(message, _)| message);
        for (hash, (_, want)) in hashed(kernel, &messages).into_iter().zip(vectors) {
            assert_eq!(hex(hash), want, "{kernel}");
        }
    }
}

#[test]
fn blobs_in_pieces_hash_as_in_one() {
    let bytes = noise(20_000, 2);
    for kernel in every() {
        for streams in [1, 2, 4, 5, 16, 17, 40] {
            for (blocks, len) in [(1, 0), (1, 1), (1, 63), (1, 64), (1, 65), (1, 200), (2, 127), (2, 128), (2, 129), (3, 5000), (7, 18_000)] {
                let blobs: Vec<&[u8]> = (0..streams).map(|i| &bytes[i..][..len + i % 3 * 64]).collect();
                let pieces: Vec<Vec<&[u8]>> = blobs.iter().map(|blob| blob.chunks(blocks * 64).collect()).collect();
                let mut found = vec![None; streams];
                let pieces: Vec<&[&[u8]]> = pieces.iter().map(|pieces| &**pieces).collect();
                kernel.hash_pieces(&pieces, |index, hash| assert_eq!(found[index].replace(hash), None, "{kernel}: {index} twice"));
                for (found, blob) in found.into_iter().zip(blobs) {
                    assert_eq!(found, Some(oracle(blob)), "{kernel}: {len} bytes in pieces of {blocks} blocks, {streams} streams");
                }
            }
        }
    }
}

#[test]
fn every_length_up_to_three_blocks_at_every_number_of_streams() {
    // All offsets from a block's start occur, since lengths are odd as often as even.
    let bytes = noise(4096, 1);
    for kernel in every() {
        for streams in 1..=40 {
            for len in 0..=194 {
                let blobs: Vec<&[u8]> = (0..streams).map(|i| &bytes[i..][..len]).collect();
                for (found, blob) in hashed(kernel, &blobs).into_iter().zip(&blobs) {
                    assert_eq!(found, oracle(blob), "{kernel}: {len} bytes, {streams} streams");
                }
            }
        }
    }
}

#[test]
fn no_blobs_and_many_empty_ones() {
    for kernel in every() {
        assert!(hashed(kernel, &[]).is_empty());
        for count in [1, 15, 16, 17, 1000] {
            assert_eq!(hashed(kernel, &vec![&[][..]; count]), vec![oracle(b""); count], "{kernel}");
        }
    }
}

#[test]
fn one_long_blob_among_short_ones() {
    let bytes = noise(300_000, 2);
    for kernel in every() {
        for place in [0, 7, 40] {
            let mut blobs: Vec<&[u8]> = (0..41).map(|i| &bytes[i * 100..][..i * 37]).collect();
            blobs[place] = &bytes[1..];
            assert_eq!(hashed(kernel, &blobs), blobs.iter().map(|blob| oracle(blob)).collect::<Vec<_>>(), "{kernel}");
        }
    }
}

#[test]
fn pages_end_where_the_memory_ends() {
    // A kernel that read beyond a blob would read what is not there: each is an allocation of its own size.
    let pages: Vec<Box<[u8]>> = (0..32).map(|i| noise(65_536 + i % 3, i as u64).into_boxed_slice()).collect();
    let blobs: Vec<&[u8]> = pages.iter().map(|page| &**page).collect();
    for kernel in every() {
        assert_eq!(hashed(kernel, &blobs), blobs.iter().map(|blob| oracle(blob)).collect::<Vec<_>>(), "{kernel}");
    }
}

#[test]
fn kernels_have_names_of_their_own() {
    let names: Vec<_> = kernels().iter().map(|kernel| kernel.name()).collect();
    assert_eq!(names.last(), Some(&"portable"));
    for kernel in kernels() {
        assert_eq!(named(kernel.name()), Ok(kernel));
    }
    let reason = named("abacus").unwrap_err();
    assert!(reason.contains("abacus") && names.iter().all(|name| reason.contains(name)), "{reason}");
    assert!(named("").is_err());
}

proptest::proptest! {
    #[test]
    fn any_mix_of_copies(lens in proptest::collection::vec((0..9000_usize, 0..64_usize), 0..40)) {
        let bytes = noise(9064, lens.len() as u64);
        let blobs: Vec<&[u8]> = lens.iter().map(|&(len, at)| &bytes[at..][..len]).collect();
        let want: Vec<_> = blobs.iter().map(|blob| oracle(blob)).collect();
        for kernel in every() {
            let mut places: Vec<Vec<u8>> = blobs.iter().map(|blob| vec![0; blob.len()]).collect();
            let mut found = vec![[0; 32]; blobs.len()];
            let copies = blobs.iter().copied().zip(places.iter_mut().map(Vec::as_mut_slice));
            kernel.hash_copies(copies, |index, hash| found[index] = hash);
            proptest::prop_assert_eq!(&found, &want, "{}", kernel);
            proptest::prop_assert_eq!(&places, &blobs, "{}", kernel);
        }
    }

    #[test]
    fn any_mix_of_lengths(lens in proptest::collection::vec((0..2000_usize, 0..64_usize), 0..80)) {
        let bytes = noise(2064, lens.len() as u64);
        let blobs: Vec<&[u8]> = lens.iter().map(|&(len, at)| &bytes[at..][..len]).collect();
        let want: Vec<_> = blobs.iter().map(|blob| oracle(blob)).collect();
        for kernel in every() {
            proptest::prop_assert_eq!(&hashed(kernel, &blobs), &want, "{}", kernel);
        }
    }

    #[test]
    fn any_pieces(pieces in proptest::collection::vec(0..200_usize, 0..12)) {
        let bytes = noise(2400, 3);
        for kernel in every() {
            let mut hasher = Hasher { kernel, ..Hasher::new() };
            let mut at = 0;
            for &len in &pieces {
                hasher.update(&bytes[at..][..len]);
                at += len;
            }
            proptest::prop_assert_eq!(hasher.finish(), oracle(&bytes[..at]), "{}", kernel);
        }
    }
}
