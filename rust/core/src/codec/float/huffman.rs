//! Order-0 Huffman code of a byte plane, in four streams that are decoded side by side.
//!
//! Codes have at most [`MAX_BITS`] bits, and are complete and canonical: of the same length in the order of their symbols, shorter ones first.
//! They stand in the stream least significant bit first, each code beginning with its own most significant bit, so that the next 64 bits
//! of a stream are one load. The decoder's table tells for each value of the next eleven bits *all* the symbols whose codes are whole
//! within them: on exponents of real pages that is nearly four symbols a look-up.

#![expect(clippy::inline_always, reason = "`wide` compiles these functions twice, which takes that they become part of its own")]
#![expect(clippy::cast_possible_truncation, reason = "fields of a word, masked or small by construction")]

use super::{DecodeError, malformed};

/// Longest code. One more bit would shorten real exponent planes by less than 0.1 % and double the tables.
pub(super) const MAX_BITS: usize = 11;
/// Streams of a plane: four keep a processor busy, and more need registers that x86-64 does not have.
pub(super) const STREAMS: usize = 4;
/// Most symbols of a plane, so that the length of a stream fits into two bytes.
pub(super) const MAX_SYMBOLS: usize = 128 << 10;
/// What stands before the streams besides the code: their lengths.
const LENGTHS_BYTES: usize = 2 * STREAMS;
const SLOTS: usize = 1 << MAX_BITS;
const SYMBOLS: usize = 256;
/// Look-ups for each load of 64 bits, of which at least 57 are new.
const LOOKUPS: usize = 5;
/// Symbols that an entry of the decoder's table holds at most.
const ENTRY_SYMBOLS: usize = 6;

/// How often each symbol occurs.
#[inline(always)]
pub(super) fn histogram(plane: &[u8]) -> [u32; SYMBOLS] {
    // Four counters each: one counter would wait for itself where symbols repeat.
    let mut counts = [[0_u32; SYMBOLS]; 4];
    let (words, rest) = plane.as_chunks::<8>();
    for word in words {
        for (at, symbol) in u64::from_le_bytes(*word).to_le_bytes().into_iter().enumerate() {
            counts[at % 4][usize::from(symbol)] += 1;
        }
    }
    for &symbol in rest {
        counts[0][usize::from(symbol)] += 1;
    }
    let [mut total, others @ ..] = counts;
    for other in others {
        for (total, other) in total.iter_mut().zip(other) {
            *total += other;
        }
    }
    total
}

/// Bits of each symbol's code; 0 where it has none.
pub(super) struct Lengths([u8; SYMBOLS]);

impl Lengths {
    /// The lengths that code a plane of two or more symbols best, or nearly so where codes had to be shortened.
    pub(super) fn of(histogram: &[u32; SYMBOLS]) -> Self {
        let mut order = [0_u64; SYMBOLS];
        let mut used = 0;
        for (symbol, &count) in (0_u64..).zip(histogram) {
            if count > 0 {
                order[used] = u64::from(count) << 8 | symbol;
                used += 1;
            }
        }
        debug_assert!(used >= 2, "one symbol needs no code");
        let order = &mut order[..used];
        order.sort_unstable();
        let mut depths = [0_u32; SYMBOLS];
        let depths = &mut depths[..used];
        for (depth, entry) in depths.iter_mut().zip(&*order) {
            *depth = (entry >> 8) as u32;
        }
        code_lengths(depths);
        limit(depths);
        let mut lengths = [0; SYMBOLS];
        for (&depth, entry) in depths.iter().zip(&*order) {
            lengths[usize::from(*entry as u8)] = depth as u8;
        }
        Self(lengths)
    }

    /// Bytes of the coded plane, less than [`STREAMS`] off: streams end with whole bytes.
    pub(super) fn cost(&self, histogram: &[u32; SYMBOLS]) -> usize {
        let bits: usize = self.0.iter().zip(histogram).map(|(&bits, &count)| usize::from(bits) * count as usize).sum();
        bits.div_ceil(8) + LENGTHS_BYTES + STREAMS
    }

    /// Appends the lengths in nibbles: that of each symbol from 0 on; for symbols without a code 0 and then, in two nibbles, how many follow
    /// the first. It ends where the code is complete.
    fn write(&self, out: &mut Vec<u8>) {
        let mut nibbles = Nibbles { out, half: None };
        let mut left = SLOTS;
        let mut symbol = 0;
        while left > 0 {
            let bits = self.0[symbol];
            if bits == 0 {
                let more = self.0[symbol + 1..].iter().take_while(|&&bits| bits == 0).count();
                for nibble in [0, (more & 15) as u8, (more >> 4) as u8] {
                    nibbles.push(nibble);
                }
                symbol += more;
            } else {
                nibbles.push(bits);
                left -= SLOTS >> bits;
            }
            symbol += 1;
        }
        nibbles.finish();
    }

    /// Reads what `write` wrote, and what stands after it.
    fn read(bytes: &[u8]) -> Result<(Self, &[u8]), DecodeError> {
        let mut lengths = [0; SYMBOLS];
        let mut nibbles = bytes.iter().flat_map(|byte| [byte & 15, byte >> 4]);
        let (mut symbol, mut left, mut read) = (0, SLOTS, 0);
        let mut next = || {
            read += 1;
            nibbles.next().ok_or_else(|| malformed("it ends within a code"))
        };
        while left > 0 {
            match usize::from(next()?) {
                0 => symbol += usize::from(next()?) + 16 * usize::from(next()?),
                bits @ 1..=MAX_BITS => {
                    left = left.checked_sub(SLOTS >> bits).ok_or_else(|| malformed("too many codes"))?;
                    *lengths.get_mut(symbol).ok_or_else(|| malformed("a code of no symbol"))? = bits as u8;
                }
                _ => return Err(malformed("a code of more than eleven bits")),
            }
            symbol += 1;
        }
        Ok((Self(lengths), &bytes[usize::div_ceil(read, 2)..]))
    }

    /// Each symbol's code, in the order of the stream, with its length.
    fn codes(&self) -> [Code; SYMBOLS] {
        let mut counts = [0; MAX_BITS + 1];
        for &len in self.0.iter().filter(|&&len| len > 0) {
            counts[usize::from(len)] += 1;
        }
        let mut next = [0_u16; MAX_BITS + 1];
        for len in 1..=MAX_BITS {
            next[len] = (next[len - 1] + counts[len - 1]) << 1;
        }
        let mut codes = [Code { bits: 0, len: 0 }; SYMBOLS];
        for (code, &len) in codes.iter_mut().zip(&self.0) {
            if len > 0 {
                let number = next[usize::from(len)];
                next[usize::from(len)] += 1;
                *code = Code { bits: number.reverse_bits() >> (16 - len), len: u16::from(len) };
            }
        }
        codes
    }
}

struct Nibbles<'a> {
    out: &'a mut Vec<u8>,
    half: Option<u8>,
}

impl Nibbles<'_> {
    fn push(&mut self, nibble: u8) {
        match self.half.take() {
            Some(low) => self.out.push(low | nibble << 4),
            None => self.half = Some(nibble),
        }
    }

    #[inline(always)]
    fn finish(self) {
        self.out.extend(self.half);
    }
}

#[derive(Clone, Copy)]
struct Code {
    bits: u16,
    len: u16,
}

/// Replaces weights in ascending order by the lengths of their codes, in place (Moffat and Katajainen, 1995).
fn code_lengths(a: &mut [u32]) {
    let n = a.len();
    a[0] += a[1];
    let (mut root, mut leaf) = (0, 2);
    let index = |i: usize| u32::try_from(i).expect("at most 256");
    // Weights of inner nodes, then the index of each one's parent.
    for next in 1..n - 1 {
        let mut weight = 0;
        for _ in 0..2 {
            if leaf >= n || (root < next && a[root] < a[leaf]) {
                weight += a[root];
                a[root] = index(next);
                root += 1;
            } else {
                weight += a[leaf];
                leaf += 1;
            }
        }
        a[next] = weight;
    }
    // Depths of inner nodes.
    a[n - 2] = 0;
    for next in (0..n - 2).rev() {
        a[next] = a[a[next] as usize] + 1;
    }
    // Depths of leaves.
    let (mut free, mut depth) = (1, 0);
    let (mut root, mut next) = (n - 1, n);
    while free > 0 {
        let mut inner = 0;
        while root > 0 && a[root - 1] == depth {
            inner += 1;
            root -= 1;
        }
        for _ in inner..free {
            next -= 1;
            a[next] = depth;
        }
        free = 2 * inner;
        depth += 1;
    }
}

/// Shortens codes that are too long, and lengthens the least frequent of the others until the code is complete again.
fn limit(depths: &mut [u32]) {
    const MAX: u32 = MAX_BITS as u32;
    let slots = |bits: u32| SLOTS >> bits;
    let mut taken = 0;
    for depth in &mut *depths {
        *depth = (*depth).min(MAX);
        taken += slots(*depth);
    }
    while taken > SLOTS {
        // The rarest that can still grow costs least, and stands first.
        let depth = depths.iter_mut().find(|depth| **depth < MAX).expect("256 codes of eleven bits fit");
        taken -= slots(*depth) - slots(*depth + 1);
        *depth += 1;
    }
    // What was freed too much goes to the most frequent that fit.
    for depth in depths.iter_mut().rev() {
        while taken < SLOTS && slots(*depth) <= SLOTS - taken {
            taken += slots(*depth);
            *depth -= 1;
        }
    }
    debug_assert_eq!(taken, SLOTS, "a code is complete");
}

/// Bounds of the streams' symbols: four equal parts, the last may be shorter.
fn parts(symbols: usize) -> [usize; STREAMS] {
    let part = symbols.div_ceil(STREAMS);
    std::array::from_fn(|at| part.min(symbols.saturating_sub(at * part)))
}

/// Appends a plane of at most [`MAX_SYMBOLS`]: the code, the lengths of the streams in two bytes each, the streams. `scratch` is reused.
#[inline(always)]
pub(super) fn encode(plane: &[u8], lengths: &Lengths, scratch: &mut Vec<u8>, out: &mut Vec<u8>) {
    lengths.write(out);
    let codes = lengths.codes();
    let at = out.len();
    out.resize(at + LENGTHS_BYTES, 0);
    let mut rest = plane;
    for (stream, part) in parts(plane.len()).into_iter().enumerate() {
        let symbols = rest.split_off(..part).expect("parts of the plane");
        // Each group of five symbols may write eight bytes.
        let room = symbols.len() * MAX_BITS / 8 + 16;
        if scratch.len() < room {
            scratch.resize(room, 0);
        }
        let len = encode_stream(symbols, &codes, scratch);
        let field = at + 2 * stream;
        out[field..field + 2].copy_from_slice(&u16::try_from(len).expect("planes are short enough").to_le_bytes());
        out.extend_from_slice(&scratch[..len]);
    }
}

#[inline(always)]
fn encode_stream(symbols: &[u8], codes: &[Code; SYMBOLS], out: &mut [u8]) -> usize {
    // A code at the upper end of a word, its length at the lower: shifted down by the next one's length, the word takes the next one in.
    let entries = codes.map(|Code { bits, len }| if len == 0 { 0 } else { u64::from(bits) << (64 - len) | u64::from(len) });
    let append = |(word, sum): (u64, u64), &symbol: &u8| {
        let entry = entries[usize::from(symbol)];
        (word >> (entry & 63) | entry, sum.wrapping_add(entry))
    };
    let (mut acc, mut held, mut at) = (0, 0, 0);
    let (groups, rest) = symbols.as_chunks::<LOOKUPS>();
    for group in groups {
        let (word, sum) = group.iter().fold((0, 0), append);
        // At most 55 bits: the lengths have not reached the codes, neither in their sum nor in the word.
        let len = sum & 63;
        acc |= word >> (64 - len) << held;
        held += len;
        out[at..at + 8].copy_from_slice(&acc.to_le_bytes());
        at += (held >> 3) as usize;
        acc >>= held & !7;
        held &= 7;
    }
    for &symbol in rest {
        let Code { bits, len } = codes[usize::from(symbol)];
        acc |= u64::from(bits) << held;
        held += u64::from(len);
    }
    out[at..at + 8].copy_from_slice(&acc.to_le_bytes());
    at + held.div_ceil(8) as usize
}

/// For each value of the next eleven bits: up to six symbols in the lower bytes, above them the bits they take, and on top how many they are.
pub(super) struct Table(Box<[u64; SLOTS]>);

const BITS_SHIFT: u32 = 48;
const COUNT_SHIFT: u32 = 56;

impl Table {
    pub(super) fn new() -> Self {
        Self(Box::new([0; SLOTS]))
    }

    #[inline(always)]
    fn fill(&mut self, lengths: &Lengths) {
        let mut codes = [(0_u8, Code { bits: 0, len: 0 }); SYMBOLS];
        let mut used = 0;
        for (symbol, code) in (0..=u8::MAX).zip(lengths.codes()) {
            if code.len > 0 {
                codes[used] = (symbol, code);
                used += 1;
            }
        }
        let codes = &codes[..used];
        // Tables of fewer bits one behind the other: that of `bits` bits begins at 2^bits. What follows a code within the eleven bits stands
        // in the table of as many bits as are left.
        let mut shorter = [0_u64; SLOTS];
        let shortest = codes.iter().map(|(_, code)| usize::from(code.len)).min().unwrap_or(MAX_BITS);
        for bits in 1..=MAX_BITS - shortest {
            let (known, table) = shorter.split_at_mut(1 << bits);
            fill(&mut table[..1 << bits], bits, known, codes);
        }
        fill(&mut self.0[..], MAX_BITS, &shorter, codes);
    }
}

#[inline(always)]
fn fill(table: &mut [u64], bits: usize, shorter: &[u64], codes: &[(u8, Code)]) {
    for &(symbol, Code { bits: code, len }) in codes {
        let len = usize::from(len);
        if len > bits {
            continue;
        }
        let left = bits - len;
        let own = 1 << COUNT_SHIFT | (len as u64) << BITS_SHIFT | u64::from(symbol);
        for (value, slot) in table[usize::from(code)..].iter_mut().step_by(1 << len).enumerate() {
            let mut rest = shorter[(1 << left) + value];
            if (rest >> COUNT_SHIFT) as usize == ENTRY_SYMBOLS {
                // No room for one more: five bits hold at most five.
                rest = shorter[(1 << 5) + (value & 31)];
            }
            // The fields of count and bits add up; the symbols of the rest move up by one.
            let symbols = rest & ((1 << BITS_SHIFT) - 1);
            *slot = own + (rest - symbols) + (symbols << 8);
        }
    }
}

/// Room for a plane. That its length is constant spares the decoder a check for each word it writes.
pub(super) type Plane = [u8; MAX_SYMBOLS + 8];

/// A new one, on the heap from the start.
pub(super) fn plane() -> Box<Plane> {
    vec![0; MAX_SYMBOLS + 8].into_boxed_slice().try_into().expect("of that length")
}

/// Decodes a plane of so many symbols and tells what stands after it.
#[inline(always)]
pub(super) fn decode<'a>(bytes: &'a [u8], symbols: usize, plane: &mut Plane, table: &mut Table) -> Result<&'a [u8], DecodeError> {
    let (lengths, rest) = Lengths::read(bytes)?;
    let (sizes, rest) = rest.split_at_checked(LENGTHS_BYTES).ok_or_else(|| malformed("it ends before its streams"))?;
    table.fill(&lengths);
    let mut streams = [Stream::default(); STREAMS];
    let (mut end, mut until) = (0, 0);
    for ((stream, size), part) in streams.iter_mut().zip(sizes.as_chunks::<2>().0).zip(parts(symbols)) {
        (stream.at, stream.to) = (end, until);
        end += usize::from(u16::from_le_bytes(*size));
        until += part;
        (stream.end, stream.until) = (end, until);
    }
    let (data, rest) = rest.split_at_checked(end).ok_or_else(|| malformed("it ends within its streams"))?;
    decode_together(data, &mut streams, plane, &table.0);
    for stream in streams {
        stream.finish(data, plane, &table.0, &lengths)?;
    }
    Ok(rest)
}

/// Where a stream is, and what it has still to do.
#[derive(Clone, Copy, Default)]
struct Stream {
    /// Its next byte, of which `used` bits are used, and where it ends.
    at: usize,
    used: u32,
    end: usize,
    /// Where its next symbol goes, and where the next stream's symbols begin.
    to: usize,
    until: usize,
}

impl Stream {
    /// Takes note of bits and symbols that were decoded.
    fn advance(&mut self, bits: u32, to: usize) {
        let used = self.used + bits;
        self.at += (used / 8) as usize;
        self.used = used % 8;
        self.to = to;
    }
}

/// Decodes all streams in turns, as far as each has room to read and write whole words without looking.
#[inline(always)]
fn decode_together(data: &[u8], streams: &mut [Stream; STREAMS], plane: &mut Plane, table: &[u64; SLOTS]) {
    const ROOM: usize = LOOKUPS * ENTRY_SYMBOLS + 2;
    /// Above the bits that a load brings for certain: how far it has come down tells how many were taken.
    const SENTINEL: u64 = 1 << 63;
    loop {
        let (mut bits, mut to) = ([0; STREAMS], [0; STREAMS]);
        for (at, stream) in streams.iter().enumerate() {
            let Some(word) = data.get(stream.at..).and_then(<[u8]>::first_chunk) else { return };
            if stream.until - stream.to < ROOM {
                return;
            }
            bits[at] = u64::from_le_bytes(*word) >> stream.used | SENTINEL;
            to[at] = stream.to;
        }
        for _ in 0..LOOKUPS {
            for (bits, to) in bits.iter_mut().zip(&mut to) {
                let entry = table[*bits as usize % SLOTS];
                let at = *to % MAX_SYMBOLS;
                plane[at..at + 8].copy_from_slice(&entry.to_le_bytes());
                *bits >>= entry >> BITS_SHIFT & 63;
                *to += (entry >> COUNT_SHIFT) as usize;
            }
        }
        for ((stream, bits), to) in streams.iter_mut().zip(bits).zip(to) {
            stream.advance(bits.leading_zeros(), to);
        }
    }
}

impl Stream {
    /// Decodes what is left, and checks that the stream ends where it should.
    fn finish(mut self, data: &[u8], plane: &mut Plane, table: &[u64; SLOTS], lengths: &Lengths) -> Result<(), DecodeError> {
        while self.to < self.until {
            let rest = data.get(self.at..self.end).unwrap_or_default();
            let word = rest.first_chunk().copied().unwrap_or_else(|| {
                let mut word = [0; 8];
                word[..rest.len()].copy_from_slice(rest);
                word
            });
            let bits = u64::from_le_bytes(word) >> self.used;
            let (mut taken, mut to) = (0, self.to);
            for _ in 0..LOOKUPS {
                let entry = table[(bits >> taken) as usize % SLOTS];
                let count = (entry >> COUNT_SHIFT) as usize;
                if self.until - to >= 8 {
                    plane[to..to + 8].copy_from_slice(&entry.to_le_bytes());
                    taken += (entry >> BITS_SHIFT) as u32 & 63;
                    to += count;
                } else if to < self.until {
                    // The table may know more symbols than there are.
                    plane[to] = entry as u8;
                    taken += u32::from(lengths.0[usize::from(entry as u8)]);
                    to += 1;
                }
            }
            self.advance(taken, to);
        }
        if self.at + usize::from(self.used > 0) == self.end { Ok(()) } else { Err(malformed("a stream of another length")) }
    }
}
