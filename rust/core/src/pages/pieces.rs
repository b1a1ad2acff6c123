//! A document that comes in pieces, of which nothing but the pages is kept: most of it never needs memory of its own.

use std::io::{self, Write};
use std::mem;

use super::list::{self, Part};
use super::{Listed, Page, WHAT, listed};
use crate::error::Result;
use crate::{json, limits};

/// Takes a document as it is read, and gives its pages to `P`.
///
/// A document may turn out to be another than it looked; then it has to be read at once.
pub(crate) struct Pieces<P> {
    /// Shorter documents are not worth the trouble.
    least: usize,
    /// Bytes of the document so far.
    len: u64,
    place: Place,
    /// What of the document is kept.
    text: Vec<u8>,
    pages: P,
}

enum Place {
    /// Before the list, all of which is kept.
    Before,
    /// In the list. What stood before it is here, and what is not read yet is kept.
    Within(Vec<u8>),
    /// Behind the list; kept is the document with an empty one.
    Behind,
    /// In a document whose list has not the usual form, or is not found soon.
    Unusual,
}

impl<P: Default + Extend<Page>> Pieces<P> {
    /// Nothing yet.
    pub(crate) fn new(least: usize) -> Self {
        Self { least, len: 0, place: Place::Before, text: Vec::new(), pages: P::default() }
    }

    /// The pages that the document lists, none if it is no page manifest; no result when it has to be read at once.
    pub(crate) fn finish(mut self) -> Result<Option<P>> {
        self.read(0);
        match self.place {
            Place::Before => Ok(Some(listed(&self.text)?.unwrap_or_default())),
            Place::Behind => Ok(json::parse::<Listed>(WHAT, &self.text).is_ok().then_some(self.pages)),
            Place::Within(_) | Place::Unusual => Ok(None),
        }
    }

    /// Reads pages while `least` bytes are left of the list.
    fn read(&mut self, least: usize) {
        let Place::Within(before) = &mut self.place else { return };
        match list::part(&self.text, least, &mut self.pages) {
            Some(Part::Open(rest)) => drop(self.text.drain(..self.text.len() - rest.len())),
            Some(Part::Closed(after)) => {
                let document = [before.as_slice(), b"[]", after].concat();
                self.text = document;
                self.place = Place::Behind;
            }
            None => self.give_up(),
        }
    }

    fn give_up(&mut self) {
        self.place = Place::Unusual;
        self.text = Vec::new();
    }
}

impl<P: Default + Extend<Page>> Write for Pieces<P> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        /// As much as stays in a cache nearby.
        const PIECE: usize = 1 << 18;
        let piece = &bytes[..bytes.len().min(PIECE)];
        self.len += piece.len() as u64;
        if self.len > limits::DOCUMENT_BYTES {
            self.give_up();
        }
        if !matches!(self.place, Place::Unusual) {
            self.text.extend_from_slice(piece);
        }
        if matches!(self.place, Place::Before) && self.text.len() >= self.least {
            match json::find(&self.text, "pages").filter(|at| self.text.get(*at) == Some(&b'[')) {
                Some(at) => {
                    let list = self.text.split_off(at + 1);
                    self.text.truncate(at);
                    self.place = Place::Within(mem::replace(&mut self.text, list));
                }
                None => self.give_up(),
            }
        }
        self.read(list::PAGE_MAX);
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
