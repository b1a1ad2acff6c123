//! SHA-256 (FIPS 180-4) of many streams at once.
//!
//! One stream is a chain: each step waits for the one before, and most of the processor idles. Independent streams fill it, so a *kernel*
//! advances several of them together: as lanes of wide vectors, or by taking turns at the SHA instructions. Kernels know blocks of 64 bytes
//! only; [`Kernel::hash_each`] deals out blobs of any lengths to them, fills a place that falls free with the next blob, and hands the last few
//! streams, too few for wide vectors, to what is best for few. It allocates nothing, and no stream is copied but for its last bytes.
//!
//! The kernel is chosen when it is first needed, by what the processor has and, where that leaves a doubt, by a trial of some microseconds;
//! `PFIMG_KERNEL` names another. Unsafe code is in the kernels' files only, where a value of a kernel's type is the proof that the processor has
//! its instructions.

#[cfg(target_arch = "aarch64")]
mod arm;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;
mod rounds;
#[cfg(target_arch = "x86_64")]
mod sha_ni;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::OnceLock;
#[cfg(target_arch = "x86_64")]
use std::time::Instant;

use crate::error::{Error, Result};

/// The variable that names the kernel to use.
const VARIABLE: &str = "PFIMG_KERNEL";
/// Streams that the widest kernel advances together.
const MOST: usize = 16;
/// From so many streams on, sixteen lanes, some of them idle, are faster than turns at the SHA instructions, if all sixteen reach 4.9 GB/s where
/// turns reach 3.5.
#[cfg(target_arch = "x86_64")]
const FEWEST_LANES: usize = 12;

/// Bytes of each stream that are copied before they are hashed: those of sixteen, and their copies, stay in the cache of a core meanwhile.
const COPIED_AT_ONCE: usize = 4096;
/// The same for places that do not begin with a cache line, as NumPy's memory does not: the C library copies longer runs by an instruction that
/// is a fifth as fast there.
const COPIED_AT_ONCE_ASKEW: usize = 2048;

/// The eight words that a stream is reduced to so far.
type State = [u32; 8];

/// The first 32 bits of the fractional parts of the square roots of the first 8 primes.
const INITIAL: State = [0x6a09_e667, 0xbb67_ae85, 0x3c6e_f372, 0xa54f_f53a, 0x510e_527f, 0x9b05_688c, 0x1f83_d9ab, 0x5be0_cd19];

/// The first 32 bits of the fractional parts of the cube roots of the first 64 primes.
#[rustfmt::skip]
const K: [u32; 64] = [
    0x428a_2f98, 0x7137_4491, 0xb5c0_fbcf, 0xe9b5_dba5, 0x3956_c25b, 0x59f1_11f1, 0x923f_82a4, 0xab1c_5ed5,
    0xd807_aa98, 0x1283_5b01, 0x2431_85be, 0x550c_7dc3, 0x72be_5d74, 0x80de_b1fe, 0x9bdc_06a7, 0xc19b_f174,
    0xe49b_69c1, 0xefbe_4786, 0x0fc1_9dc6, 0x240c_a1cc, 0x2de9_2c6f, 0x4a74_84aa, 0x5cb0_a9dc, 0x76f9_88da,
    0x983e_5152, 0xa831_c66d, 0xb003_27c8, 0xbf59_7fc7, 0xc6e0_0bf3, 0xd5a7_9147, 0x06ca_6351, 0x1429_2967,
    0x27b7_0a85, 0x2e1b_2138, 0x4d2c_6dfc, 0x5338_0d13, 0x650a_7354, 0x766a_0abb, 0x81c2_c92e, 0x9272_2c85,
    0xa2bf_e8a1, 0xa81a_664b, 0xc24b_8b70, 0xc76c_51a3, 0xd192_e819, 0xd699_0624, 0xf40e_3585, 0x106a_a070,
    0x19a4_c116, 0x1e37_6c08, 0x2748_774c, 0x34b0_bcb5, 0x391c_0cb3, 0x4ed8_aa4a, 0x5b9c_ca4f, 0x682e_6ff3,
    0x748f_82ee, 0x78a5_636f, 0x84c8_7814, 0x8cc7_0208, 0x90be_fffa, 0xa450_6ceb, 0xbef9_a3f7, 0xc671_78f2,
];

/// A way to compute SHA-256 that this processor has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kernel(Kind);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Sixteen lanes, and the SHA instructions for few streams where there are some.
    #[cfg(target_arch = "x86_64")]
    Avx512(avx512::Avx512, Option<sha_ni::ShaNi>),
    #[cfg(target_arch = "x86_64")]
    ShaNi(sha_ni::ShaNi),
    #[cfg(target_arch = "x86_64")]
    Avx2(avx2::Avx2),
    #[cfg(target_arch = "aarch64")]
    Arm(arm::Arm),
    Portable,
}

/// The kernels that this processor has, the widest first.
#[must_use]
pub fn kernels() -> Vec<Kernel> {
    let mut kinds = Vec::new();
    #[cfg(target_arch = "x86_64")]
    {
        kinds.extend(avx512::Avx512::detect().map(|lanes| Kind::Avx512(lanes, sha_ni::ShaNi::detect())));
        kinds.extend(sha_ni::ShaNi::detect().map(Kind::ShaNi));
        kinds.extend(avx2::Avx2::detect().map(Kind::Avx2));
    }
    #[cfg(target_arch = "aarch64")]
    kinds.extend(arm::Arm::detect().map(Kind::Arm));
    kinds.push(Kind::Portable);
    kinds.into_iter().map(Kernel).collect()
}

/// The kernel that everything here is hashed with: the fastest for many blobs, or the one that `PFIMG_KERNEL` names. Chosen once.
///
/// # Errors
/// [`Error::Format`] if `PFIMG_KERNEL` names none of [`kernels`].
pub fn kernel() -> Result<Kernel> {
    static CHOICE: OnceLock<Result<Kernel, String>> = OnceLock::new();
    let choose = || match std::env::var_os(VARIABLE) {
        None => Ok(fastest()),
        Some(name) => named(&name.to_string_lossy()),
    };
    CHOICE.get_or_init(choose).clone().map_err(|reason| Error::format(VARIABLE, reason))
}

/// The fastest kernel: the widest one, but for processors that split each vector of AVX-512 in two (AMD's Zen 4), where the SHA instructions are
/// faster. No flag tells, so the two are timed.
fn fastest() -> Kernel {
    let kernels = kernels();
    #[cfg(target_arch = "x86_64")]
    if let [lanes @ Kernel(Kind::Avx512(_, Some(_))), turns, ..] = kernels[..] {
        // The shortest of a few times, taken in turns: an interruption or a clock that is still rising does not decide.
        let time = |kernel: Kernel| {
            let start = Instant::now();
            kernel.hash_each(&[&[0; 1024][..]; MOST], |_, hash| _ = std::hint::black_box(hash));
            start.elapsed()
        };
        let times = std::iter::repeat_with(|| (time(lanes), time(turns))).take(8);
        let (lanes_time, turns_time) = times.reduce(|best, now| (best.0.min(now.0), best.1.min(now.1))).expect("some times were taken");
        return if lanes_time < turns_time { lanes } else { turns };
    }
    kernels[0]
}

fn named(name: &str) -> Result<Kernel, String> {
    let kernels = kernels();
    kernels.iter().find(|kernel| kernel.name() == name).copied().ok_or_else(|| {
        let names: Vec<_> = kernels.iter().map(|kernel| kernel.name()).collect();
        format!("{name:?} is no kernel of this processor, which has {}", names.join(", "))
    })
}

/// How many of `left` streams take turns at the SHA instructions: four, or three so that the last one is not left alone, at half the speed.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
fn turns(left: usize) -> usize {
    match left {
        0..=4 => left,
        _ if left % 4 == 1 => 3,
        _ => 4,
    }
}

/// The kernel, where there is no way to say that there is none.
fn chosen() -> Kernel {
    kernel().unwrap_or_else(|error| panic!("{error}"))
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Kernel {
    /// The name that `PFIMG_KERNEL` takes: `avx512`, `sha-ni`, `avx2`, `arm-sha2` or `portable`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512(..) => "avx512",
            #[cfg(target_arch = "x86_64")]
            Kind::ShaNi(_) => "sha-ni",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2(_) => "avx2",
            #[cfg(target_arch = "aarch64")]
            Kind::Arm(_) => "arm-sha2",
            Kind::Portable => "portable",
        }
    }

    /// Most streams that are worth having under way.
    const fn places(self) -> usize {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512(..) => avx512::LANES,
            #[cfg(target_arch = "x86_64")]
            Kind::ShaNi(_) => sha_ni::LANES,
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2(_) => avx2::LANES,
            #[cfg(target_arch = "aarch64")]
            Kind::Arm(_) => arm::LANES,
            Kind::Portable => 1,
        }
    }

    /// How many streams are best advanced together, while `left` are to be done in all.
    fn together(self, left: usize) -> usize {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512(_, Some(_)) if left < FEWEST_LANES => turns(left),
            #[cfg(target_arch = "x86_64")]
            Kind::ShaNi(_) => turns(left),
            #[cfg(target_arch = "aarch64")]
            Kind::Arm(_) => turns(left),
            _ => left.min(self.places()),
        }
    }

    /// Takes `blocks` blocks of each stream into its state; `states` are no more than [`Kernel::together`] says.
    fn compress(self, states: &mut [State], ahead: &[&[u8]], blocks: usize) {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512(_, Some(few)) if states.len() <= sha_ni::LANES => few.compress(states, ahead, blocks),
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512(lanes, _) if states.len() > 1 => lanes.compress(states, ahead, blocks),
            #[cfg(target_arch = "x86_64")]
            Kind::ShaNi(few) => few.compress(states, ahead, blocks),
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2(lanes) if states.len() > 1 => lanes.compress(states, ahead, blocks),
            #[cfg(target_arch = "aarch64")]
            Kind::Arm(few) => few.compress(states, ahead, blocks),
            _ => states.iter_mut().zip(ahead).for_each(|(state, bytes)| portable::compress(state, &bytes[..blocks * 64])),
        }
    }

    /// Takes whole blocks of one stream into its state.
    fn compress_one(self, state: &mut State, bytes: &[u8]) {
        self.compress(std::slice::from_mut(state), &[bytes], bytes.len() / 64);
    }

    /// Hashes blobs of any lengths on the calling thread and hands over each hash with its blob's index as soon as it is known, in no
    /// particular order.
    pub fn hash_each(self, blobs: &[&[u8]], done: impl FnMut(usize, [u8; 32])) {
        self.advance(blobs.iter().map(|blob| Stream::new(blob, None)), done);
    }

    /// The same for blobs in pieces, each of which but the last has whole blocks.
    pub fn hash_pieces(self, blobs: &[&[&[u8]]], done: impl FnMut(usize, [u8; 32])) {
        self.advance(blobs.iter().map(|pieces| Stream::in_pieces(pieces)), done);
    }

    /// The same, while each blob is copied to a place of its length: a few blocks at a time, which are hashed where they were copied to. So
    /// memory is read once, and what was hashed is what the copy holds, whatever happens to the blob meanwhile.
    pub fn hash_copies<'a>(self, copies: impl ExactSizeIterator<Item = (&'a [u8], &'a mut [u8])>, done: impl FnMut(usize, [u8; 32])) {
        self.advance(copies.map(|(blob, place)| Stream::new(blob, Some(place))), done);
    }

    fn advance<'a>(self, streams: impl ExactSizeIterator<Item = Stream<'a>>, mut done: impl FnMut(usize, [u8; 32])) {
        let mut waiting = streams.enumerate();
        // Those under way are the first `active` ones, in step with their states.
        let mut streams = [const { (0, Stream::NONE) }; MOST];
        let mut states = [INITIAL; MOST];
        let mut active = 0;
        loop {
            while active < self.places()
                && let Some(next) = waiting.next()
            {
                (streams[active], states[active]) = (next, INITIAL);
                active += 1;
            }
            if active == 0 {
                return;
            }
            let together = self.together(active + waiting.len());
            let blocks = streams[..together].iter().map(|(_, stream)| stream.blocks()).min().expect("some are active");
            streams[..together].iter_mut().for_each(|(_, stream)| stream.copy(blocks * 64));
            let ahead = streams.each_ref().map(|(_, stream)| stream.ahead());
            self.compress(&mut states[..together], &ahead[..together], blocks);
            for place in (0..together).rev() {
                streams[place].1.take(blocks * 64);
                if streams[place].1.ahead().is_empty() {
                    done(streams[place].0, output(&states[place]));
                    active -= 1;
                    streams.swap(place, active);
                    states.swap(place, active);
                }
            }
        }
    }

    /// Hashes one blob.
    #[must_use]
    pub fn hash(self, bytes: &[u8]) -> [u8; 32] {
        let mut state = INITIAL;
        let (blocks, rest) = whole_blocks(bytes);
        self.compress_one(&mut state, blocks);
        self.finish(state, rest, bytes.len() as u64)
    }

    fn finish(self, mut state: State, rest: &[u8], len: u64) -> [u8; 32] {
        let (tail, tail_len) = tail(rest, len);
        self.compress_one(&mut state, &tail[..tail_len]);
        output(&state)
    }
}

/// A blob that is being hashed: its whole blocks, which are read where they are, or where they are copied to, then what follows them.
struct Stream<'a> {
    body: &'a [u8],
    /// Pieces that follow the body.
    more: &'a [&'a [u8]],
    /// Where the body is copied to.
    place: Option<&'a mut [u8]>,
    tail: [u8; 128],
    tail_len: usize,
    /// Bytes of body and tail that are in the state.
    taken: usize,
}

impl<'a> Stream<'a> {
    const NONE: Self = Self { body: &[], more: &[], place: None, tail: [0; 128], tail_len: 0, taken: 0 };

    fn new(blob: &'a [u8], place: Option<&'a mut [u8]>) -> Self {
        let (body, rest) = whole_blocks(blob);
        let (tail, tail_len) = tail(rest, blob.len() as u64);
        let place = place.map(|place| {
            let (place, end) = place.split_at_mut(body.len());
            end.copy_from_slice(&tail[..rest.len()]);
            place
        });
        Self { body, more: &[], place, tail, tail_len, taken: 0 }
    }

    fn in_pieces(pieces: &'a [&'a [u8]]) -> Self {
        let (last, before) = pieces.split_last().map_or((&[][..], &[][..]), |(last, before)| (*last, before));
        debug_assert!(before.iter().all(|piece| piece.len().is_multiple_of(64)));
        let (_, rest) = whole_blocks(last);
        let (tail, tail_len) = tail(rest, pieces.iter().map(|piece| piece.len() as u64).sum());
        let mut stream = Self { body: &[], more: pieces, place: None, tail, tail_len, taken: 0 };
        stream.take(0);
        stream
    }

    /// Counts bytes that are in the state now, and goes on to the next piece where one ends.
    fn take(&mut self, len: usize) {
        self.taken += len;
        while self.taken == self.body.len()
            && let Some((next, more)) = self.more.split_first()
        {
            (self.body, self.more, self.taken) = (whole_blocks(next).0, more, 0);
        }
    }

    /// Whole blocks that come next and lie together; none at the end. Those of a copy have to be there first.
    fn ahead(&self) -> &[u8] {
        match self.taken.checked_sub(self.body.len()) {
            None => &self.place.as_deref().unwrap_or(self.body)[self.taken..],
            Some(taken) => &self.tail[taken..self.tail_len],
        }
    }

    /// How many of them may be taken at once.
    fn blocks(&self) -> usize {
        let most = match &self.place {
            None => usize::MAX,
            Some(place) if place.as_ptr().addr().is_multiple_of(64) => COPIED_AT_ONCE,
            Some(_) => COPIED_AT_ONCE_ASKEW,
        };
        self.ahead().len().min(most) / 64
    }

    /// Copies the next bytes of the body.
    fn copy(&mut self, len: usize) {
        if let Some(place) = &mut self.place
            && self.taken < self.body.len()
        {
            place[self.taken..][..len].copy_from_slice(&self.body[self.taken..][..len]);
        }
    }
}

/// A hash of bytes that come in pieces.
#[derive(Clone)]
pub struct Hasher {
    kernel: Kernel,
    state: State,
    /// The bytes after the last whole block.
    rest: [u8; 64],
    len: u64,
}

impl Hasher {
    /// A hash of nothing yet.
    pub fn new() -> Self {
        Self { kernel: chosen(), state: INITIAL, rest: [0; 64], len: 0 }
    }

    /// Adds bytes.
    pub fn update(&mut self, mut bytes: &[u8]) {
        let held = self.held();
        self.len += bytes.len() as u64;
        if held > 0 {
            let (first, others) = bytes.split_at(bytes.len().min(64 - held));
            self.rest[held..held + first.len()].copy_from_slice(first);
            if held + first.len() < 64 {
                return;
            }
            self.kernel.compress_one(&mut self.state, &self.rest);
            bytes = others;
        }
        let (blocks, rest) = whole_blocks(bytes);
        self.kernel.compress_one(&mut self.state, blocks);
        self.rest[..rest.len()].copy_from_slice(rest);
    }

    /// The hash of all bytes added.
    pub fn finish(self) -> [u8; 32] {
        self.kernel.finish(self.state, &self.rest[..self.held()], self.len)
    }

    fn held(&self) -> usize {
        (self.len % 64) as usize
    }
}

/// Hashes one blob with the chosen kernel.
pub fn hash(bytes: &[u8]) -> [u8; 32] {
    chosen().hash(bytes)
}

/// [`Kernel::hash_each`] of the chosen kernel.
pub fn hash_each(blobs: &[&[u8]], done: impl FnMut(usize, [u8; 32])) {
    chosen().hash_each(blobs, done);
}

/// [`Kernel::hash_pieces`] of the chosen kernel.
pub fn hash_pieces(blobs: &[&[&[u8]]], done: impl FnMut(usize, [u8; 32])) {
    chosen().hash_pieces(blobs, done);
}

/// [`Kernel::hash_copies`] of the chosen kernel.
pub fn hash_copies<'a>(copies: impl ExactSizeIterator<Item = (&'a [u8], &'a mut [u8])>, done: impl FnMut(usize, [u8; 32])) {
    chosen().hash_copies(copies, done);
}

fn whole_blocks(bytes: &[u8]) -> (&[u8], &[u8]) {
    bytes.split_at(bytes.len() / 64 * 64)
}

/// What follows the whole blocks of a message of `len` bytes: `rest`, a one bit, zeros, and the length in bits at the end of a block. That is
/// one block or two.
fn tail(rest: &[u8], len: u64) -> ([u8; 128], usize) {
    let mut tail = [0; 128];
    tail[..rest.len()].copy_from_slice(rest);
    tail[rest.len()] = 0x80;
    let end = if rest.len() < 56 { 64 } else { 128 };
    tail[end - 8..end].copy_from_slice(&(len * 8).to_be_bytes());
    (tail, end)
}

fn output(state: &State) -> [u8; 32] {
    let mut out = [0; 32];
    for (bytes, word) in out.as_chunks_mut().0.iter_mut().zip(state) {
        *bytes = word.to_be_bytes();
    }
    out
}
