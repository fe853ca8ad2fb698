//! How the bytes that libFuzzer makes up are read as choices.

use super::super::records::MAX_PLAINTEXT;

/// More than fits into a record, so that what does not fit is tried too.
const LONGEST: usize = MAX_PLAINTEXT + 300;

/// Choices, read from the front; behind the end all of them are zero.
#[derive(Debug)]
pub(in crate::proxy) struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    pub(in crate::proxy) const fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(in crate::proxy) const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(in crate::proxy) fn byte(&mut self) -> u8 {
        self.take(1).first().copied().unwrap_or_default()
    }

    pub(in crate::proxy) fn number(&mut self) -> usize {
        usize::from(u16::from_be_bytes([self.byte(), self.byte()]))
    }

    /// `count` bytes as they are, fewer at the end.
    pub(in crate::proxy) fn take(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// All that is left.
    pub(in crate::proxy) fn rest(&mut self) -> &'a [u8] {
        self.take(usize::MAX)
    }

    /// Something to be said: literally, or so many bytes of a pattern, since inputs are much shorter than records.
    pub(in crate::proxy) fn content(&mut self) -> Vec<u8> {
        match self.byte() {
            length @ ..0x80 => self.take(length.into()).to_vec(),
            first => pattern(first.into(), self.number() % LONGEST),
        }
    }
}

/// `length` bytes that differ from those around them.
pub(in crate::proxy) fn pattern(first: usize, length: usize) -> Vec<u8> {
    (first..first + length).map(|index| (index % 251) as u8).collect()
}

/// In what pieces a stream arrives: four lengths, over and over.
#[derive(Debug)]
pub(in crate::proxy) struct Splits {
    lengths: [usize; 4],
    next: usize,
}

impl Splits {
    pub(in crate::proxy) fn new(input: &mut Input<'_>) -> Self {
        // Half of the numbers are small ones: headers are where splits are interesting.
        let length = |number: usize| if number < 0x8000 { number % 64 } else { number % LONGEST };
        Self { lengths: [(); 4].map(|()| length(input.number()) + 1), next: 0 }
    }

    /// How long the next piece is.
    pub(in crate::proxy) const fn length(&mut self) -> usize {
        self.next += 1;
        self.lengths[self.next % 4]
    }

    /// The pieces of `stream`.
    pub(in crate::proxy) fn of<'a>(&mut self, mut stream: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
        std::iter::from_fn(move || {
            let (piece, rest) = stream.split_at(self.length().min(stream.len()));
            stream = rest;
            (!piece.is_empty()).then_some(piece)
        })
    }
}
