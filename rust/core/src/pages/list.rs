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

/// Most bytes of a page, with what follows it.
pub(super) const PAGE_MAX: usize = IX.len() + DIGITS_MAX + BODY_LEN + 1;
/// A number of so few digits cannot overflow.
const DIGITS_MAX: usize = 10;

/// How a part of a list ends, and what follows its pages.
pub(super) enum Part<'a> {
    /// With too little text.
    Open(&'a [u8]),
    /// With the list.
    Closed(&'a [u8]),
}

/// Gives `pages` those at the start of `text`, which begins within a list, as long as `least` bytes are left. Without a result, some may have
/// been given.
pub(super) fn part<'a>(mut text: &'a [u8], least: usize, pages: &mut impl Extend<Page>) -> Option<Part<'a>> {
    while text.len() >= least {
        let (page, after) = page(text)?;
        pages.extend([page]);
        match after.split_first()? {
            (b',', after) => text = after,
            (b']', after) => return Some(Part::Closed(after)),
            _ => return None,
        }
    }
    Some(Part::Open(text))
}

/// Gives `pages` those of the list that starts at `text`; returns what follows the list.
pub(super) fn parse<'a>(text: &'a [u8], pages: &mut impl Extend<Page>) -> Option<&'a [u8]> {
    match part(text.strip_prefix(b"[")?, 0, pages)? {
        Part::Closed(after) => Some(after),
        Part::Open(_) => None,
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

/// A number as it is printed.
fn number(text: &[u8]) -> Option<(u64, &[u8])> {
    let len = text.iter().take(DIGITS_MAX).take_while(|byte| byte.is_ascii_digit()).count();
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
