//! The list of pages in the form in which it is written: `{"ix":N,"k":"D","v":"D"}`, comma, the next.
//!
//! Such a list is nearly all of a large document, and neither way needs more than copying and comparing pieces of known length. Nothing is
//! decided here: what is not exactly of that form, sound or not, is left to the parser, which gives the same pages for what is.

use std::io::Write;

use super::Page;
use crate::digest::Digest;

const IX: &[u8] = br#"{"ix":"#;
const K: &[u8] = br#","k":""#;
const V: &[u8] = br#"","v":""#;
const END: &[u8] = br#""}"#;
/// From the end of a page's number to its own.
const BODY_LEN: usize = K.len() + V.len() + END.len() + 2 * Digest::TEXT_LEN;

/// Gives `pages` those of the list that starts at `text`; returns what follows the list. Without a result, some may have been given.
pub(super) fn parse<'a>(text: &'a [u8], pages: &mut impl Extend<Page>) -> Option<&'a [u8]> {
    let mut rest = text.strip_prefix(b"[")?;
    loop {
        let (page, after) = page(rest)?;
        pages.extend([page]);
        match after.split_first()? {
            (b',', after) => rest = after,
            (b']', after) => return Some(after),
            _ => return None,
        }
    }
}

/// Appends the list, with its brackets.
pub(super) fn print(pages: &[Page], out: &mut Vec<u8>) {
    let digits = pages.last().map_or(0, |last| last.ix.max(1).ilog10() as usize + 1);
    out.reserve(pages.len() * (IX.len() + digits + BODY_LEN + 1) + 2);
    out.push(b'[');
    for (at, page) in pages.iter().enumerate() {
        if at > 0 {
            out.push(b',');
        }
        out.extend_from_slice(IX);
        write!(out, "{}", page.ix).expect("memory takes everything");
        for (before, digest) in [(K, &page.k), (V, &page.v)] {
            out.extend_from_slice(before);
            out.extend_from_slice(&digest.text());
        }
        out.extend_from_slice(END);
    }
    out.push(b']');
}

fn page(text: &[u8]) -> Option<(Page, &[u8])> {
    let text = text.strip_prefix(IX)?;
    let (ix, text) = number(text)?;
    let (body, after) = text.split_first_chunk::<BODY_LEN>()?;
    let (k, body) = digest(body, K)?;
    let (v, body) = digest(body, V)?;
    (body == END).then_some((Page { ix, k, v }, after))
}

/// A number as it is printed, of so few digits that it cannot overflow.
fn number(text: &[u8]) -> Option<(u64, &[u8])> {
    const DIGITS: usize = 10;
    let len = text.iter().take(DIGITS).take_while(|byte| byte.is_ascii_digit()).count();
    let (digits, after) = text.split_at(len);
    if len == 0 || (len > 1 && digits[0] == b'0') {
        return None;
    }
    Some((digits.iter().fold(0, |number, digit| number * 10 + u64::from(digit - b'0')), after))
}

fn digest<'a>(text: &'a [u8], before: &[u8]) -> Option<(Digest, &'a [u8])> {
    let (digest, after) = text.strip_prefix(before)?.split_first_chunk()?;
    Some((Digest::from_text(digest)?, after))
}
