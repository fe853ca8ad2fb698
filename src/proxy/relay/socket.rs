//! What the copy loops ask of a byte stream beside tokio's traits, and bytes that a slow one has not taken yet.

use std::{
    cell::Cell,
    io::{self, IoSlice, IoSliceMut, Read},
    pin::Pin,
    task::{Context, Poll, ready},
};

use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest},
    net::TcpStream,
};

/// A byte stream that can be read into several places at once.
pub(in super::super) trait Socket: AsyncRead + AsyncWrite + Unpin {
    /// Reads into `places`, one after the other, as far as there is something; 0 = the other side says no more.
    fn poll_scatter(&mut self, cx: &mut Context<'_>, places: &mut [IoSliceMut<'_>]) -> Poll<io::Result<usize>>;
}

impl Socket for TcpStream {
    fn poll_scatter(&mut self, cx: &mut Context<'_>, places: &mut [IoSliceMut<'_>]) -> Poll<io::Result<usize>> {
        poll_scatter(self, cx, places)
    }
}

/// The same of a socket that is shared.
pub(super) fn poll_scatter(
    socket: &TcpStream,
    cx: &mut Context<'_>,
    places: &mut [IoSliceMut<'_>],
) -> Poll<io::Result<usize>> {
    let room: usize = places.iter().map(|place| place.len()).sum();
    loop {
        ready!(socket.poll_read_ready(cx))?;
        let mut found = None;
        let outcome = socket.try_io(Interest::READABLE, || {
            let socket = SockRef::from(socket);
            // One place is a smaller call.
            let length = match &mut *places {
                [one] => (&*socket).read(one),
                several => (&*socket).read_vectored(several),
            }?;
            found = Some(length);
            // What was not full has emptied the queue: with "would block" the next turn waits for news instead of asking
            // in vain. An end stays visible, since it is news of its own.
            if 0 < length && length < room { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
        });
        match (found, outcome) {
            (Some(length), _) => return Poll::Ready(Ok(length)),
            (None, Err(error)) if error.kind() == io::ErrorKind::WouldBlock => {}
            (None, Err(error)) => return Poll::Ready(Err(error)),
            (None, Ok(())) => return Poll::Ready(Ok(0)),
        }
    }
}

/// What slow streams of one thread may be kept of before all its connections read in small portions.
pub(super) const PLENTY: usize = 4 << 20;
/// Such a portion.
pub(super) const PORTION: usize = 4096;

thread_local! {
    /// What is kept of all connections of this thread, on which each of them stays.
    static KEPT: Cell<usize> = const { Cell::new(0) };
}

/// How much of `room` a connection may read now, which it keeps if its other side does not take it.
pub(super) fn portion(room: usize) -> usize {
    if KEPT.get() > PLENTY { room.min(PORTION) } else { room }
}

/// What is kept of all connections of this thread.
pub(super) fn kept() -> usize {
    KEPT.get()
}

/// Counts what is kept that was `before` and is `now`.
pub(super) fn count(before: usize, now: usize) {
    // A thread that ends has nothing to count any more.
    let _ = KEPT.try_with(|kept| kept.set((kept.get() + now).saturating_sub(before)));
}

/// Bytes that a slow side did not take yet. Of an idle connection there are none, and it is one word.
#[derive(Debug, Default)]
pub(super) struct Kept(Option<Box<Waiting>>);

#[derive(Debug, Default)]
struct Waiting {
    bytes: Vec<u8>,
    start: usize,
    /// How many of them are counted.
    counted: usize,
}

impl From<Vec<u8>> for Kept {
    fn from(bytes: Vec<u8>) -> Self {
        if bytes.is_empty() { Self(None) } else { Self(Some(Box::new(Waiting { bytes, ..Waiting::default() }))) }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.bytes.clear();
        self.count();
    }
}

impl Waiting {
    fn count(&mut self) {
        count(std::mem::replace(&mut self.counted, self.bytes.len()), self.bytes.len());
    }
}

impl Kept {
    /// Whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.0.as_ref().is_none_or(|waiting| waiting.bytes.is_empty())
    }

    /// Behind what waits.
    pub(super) fn tail(&mut self) -> &mut Vec<u8> {
        &mut self.0.get_or_insert_default().bytes
    }

    /// Writes what waits; ready when nothing does any more.
    pub(super) fn poll_drain<T: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        to: &mut T,
    ) -> Poll<io::Result<()>> {
        let Some(waiting) = &mut self.0 else { return Poll::Ready(Ok(())) };
        while waiting.start < waiting.bytes.len() {
            match ready!(Pin::new(&mut *to).poll_write(cx, &waiting.bytes[waiting.start..]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => waiting.start += written,
            }
        }
        // Its memory goes with what it held.
        self.0 = None;
        Poll::Ready(Ok(()))
    }

    /// Writes `pieces`, behind what waits, and keeps what is not taken: then it is pending.
    pub(super) fn poll_send<T: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        to: &mut T,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<()>> {
        let total: usize = pieces.iter().map(|piece| piece.len()).sum();
        let mut done = 0;
        while self.is_empty() && done < total {
            let written = match pieces {
                [one] => Pin::new(&mut *to).poll_write(cx, &one[done..]),
                // After a first write that took a part, the pieces go one by one: the stream is full anyhow.
                _ if done == 0 => Pin::new(&mut *to).poll_write_vectored(cx, pieces),
                _ => Pin::new(&mut *to).poll_write(cx, at(pieces, done)),
            };
            match written {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(written)) => done += written,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => break,
            }
        }
        if self.is_empty() && done == total {
            return Poll::Ready(Ok(()));
        }
        self.keep(pieces, done);
        Poll::Pending
    }

    /// Keeps `pieces`, but for the first `done` bytes of them, behind what waits.
    pub(super) fn keep(&mut self, pieces: &[IoSlice<'_>], mut done: usize) {
        let total: usize = pieces.iter().map(|piece| piece.len()).sum();
        let waiting = self.0.get_or_insert_default();
        while done < total {
            let rest = at(pieces, done);
            waiting.bytes.extend_from_slice(rest);
            done += rest.len();
        }
        waiting.count();
    }
}

/// The rest of the piece that holds byte `position`.
fn at<'a>(pieces: &'a [IoSlice<'a>], position: usize) -> &'a [u8] {
    let mut before = 0;
    for piece in pieces {
        if position < before + piece.len() {
            return &piece[position - before..];
        }
        before += piece.len();
    }
    &[]
}
