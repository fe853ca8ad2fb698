//! The other side of a handshake: somebody without an idea of TLS, or somebody who knows it, over a wire that adds,
//! changes and loses bytes.

use std::{
    io::{self, Write},
    pin::Pin,
    task::{Context, Poll},
};

use rustls::Connection;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::proxy::fuzz::{Input, Splits, pattern};

/// Changes of one input.
const EDITS: u8 = 4;

/// A change of what is under way.
#[derive(Debug)]
pub(super) struct Edit {
    /// At which byte of what was said.
    at: usize,
    /// How many bytes are lost there.
    lost: usize,
    /// What comes instead.
    added: Vec<u8>,
}

impl Edit {
    fn new(input: &mut Input<'_>) -> Self {
        let at = input.number() % 4096;
        let lost = usize::from(input.byte() % 40);
        Self { at, lost, added: input.content() }
    }
}

/// A stream in memory that is read and written in pieces of the input's choice.
pub(super) struct Wire {
    /// Who shakes hands; `None` = a stranger.
    peer: Option<Connection>,
    edits: Vec<Edit>,
    /// What the peer says behind its handshake.
    pub(super) said: usize,
    spoke: bool,
    splits: Splits,
    /// Whether it goes on without a word at the end, or ends.
    waits: bool,
    waited: bool,
    coming: Vec<u8>,
    /// How many bytes the peer has made so far.
    made: usize,
    heard: Vec<u8>,
    /// How many bytes were taken of it.
    pub(super) taken: usize,
    /// The same, before anything was said to it; `None` = nothing was.
    pub(super) taken_before: Option<usize>,
}

impl Wire {
    /// A wire to `peer`, or to a stranger.
    pub(super) fn new(peer: Option<Connection>, waits: bool, input: &mut Input<'_>) -> Self {
        let splits = Splits::new(input);
        let stranger = peer.is_none();
        let edits = if stranger { 0 } else { input.byte() % (EDITS + 1) };
        let edits = (0..edits).map(|_| Edit::new(input)).collect();
        let said = if stranger { 0 } else { input.number() };
        let coming = if stranger { input.rest().to_vec() } else { vec![] };
        let (spoke, waited, heard) = (false, false, vec![]);
        let (made, taken, taken_before) = (0, 0, None);
        Self { peer, edits, said, spoke, splits, waits, waited, coming, made, heard, taken, taken_before }
    }

    /// Whether somebody is there who can shake hands.
    pub(super) const fn shakes(&self) -> bool {
        self.peer.is_some()
    }

    /// Whether what was said arrives as it was said.
    pub(super) fn is_honest(&self) -> bool {
        self.shakes() && self.edits.iter().all(|edit| edit.at >= self.made)
    }

    /// Whether nothing more comes, and no end either.
    pub(super) const fn is_silent(&self) -> bool {
        self.waited && self.coming.is_empty()
    }

    /// Something is said to the peer.
    pub(super) fn hear(&mut self, bytes: &[u8]) {
        self.heard.extend_from_slice(bytes);
    }

    /// All that still comes.
    pub(super) fn rest(&mut self) -> Vec<u8> {
        self.answer();
        std::mem::take(&mut self.coming)
    }

    /// The peer reads what it was told, and says what there is to say.
    fn answer(&mut self) {
        let heard = std::mem::take(&mut self.heard);
        let Some(peer) = &mut self.peer else { return };
        let mut rest = heard.as_slice();
        while !rest.is_empty() && peer.read_tls(&mut rest).is_ok() {
            if peer.process_new_packets().is_err() {
                break;
            }
        }
        if !peer.is_handshaking() && !self.spoke {
            self.spoke = true;
            peer.set_buffer_limit(None);
            peer.writer().write_all(&pattern(0, self.said)).expect("what is written is kept");
        }
        let mut made = vec![];
        while peer.wants_write() {
            peer.write_tls(&mut made).expect("what is said is kept");
        }
        self.send(made);
    }

    /// What was `made` goes its way.
    fn send(&mut self, mut made: Vec<u8>) {
        let (start, end) = (self.made, self.made + made.len());
        self.made = end;
        let mut edits: Vec<&Edit> = self.edits.iter().filter(|edit| (start..end).contains(&edit.at)).collect();
        // From behind, so that each place is still where it was.
        edits.sort_by_key(|edit| std::cmp::Reverse(edit.at));
        for edit in edits {
            let at = (edit.at - start).min(made.len());
            made.splice(at..(at + edit.lost).min(made.len()), edit.added.iter().copied());
        }
        self.coming.extend(made);
    }
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.coming.is_empty() {
            this.answer();
        }
        if this.coming.is_empty() && this.waits {
            this.waited = true;
            return Poll::Pending;
        }
        let length = this.splits.length().min(into.remaining()).min(this.coming.len());
        into.put_slice(&this.coming[..length]);
        this.coming.drain(..length);
        this.taken += length;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.taken_before.get_or_insert(this.taken);
        let length = this.splits.length().min(bytes.len());
        this.heard.extend_from_slice(&bytes[..length]);
        Poll::Ready(Ok(length))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
