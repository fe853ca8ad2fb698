//! One stream among those of a multiplexed connection, and who waits for it.

use std::{
    io::{self, IoSlice},
    sync::Arc,
    task::{Context, Poll, Waker, ready},
};

use tokio::io::AsyncWrite;

use super::{
    super::{application::Sink, socket::Kept},
    window::Window,
};

/// How far the beginning of a stream has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Begun {
    /// The callee has not said anything yet.
    Waiting,
    /// It has taken it.
    Accepted,
    /// It has not.
    Refused,
}

/// What there is to know of a stream.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) begun: Begun,
    /// What we may send.
    pub(super) credit: u32,
    /// Something was sent since that was looked at last.
    pub(super) sends: bool,
    /// What the peer may send.
    pub(super) window: Window,
    /// Who takes what came, once it is known.
    pub(super) sink: Option<Arc<dyn Sink>>,
    /// What came, and was not taken.
    inbox: Kept,
    /// What came since the application lags.
    lagging: usize,
    /// What ever came.
    pub(super) received: u64,
    /// The peer sends no more.
    pub(super) ended: bool,
    /// The peer has reset it.
    pub(super) reset: bool,
    /// It is among those who wait for the socket.
    pub(super) queued: bool,
    waker: Option<Waker>,
}

impl Entry {
    /// Of a stream that begins.
    pub(super) fn new() -> Self {
        Self {
            begun: Begun::Waiting,
            credit: Window::FIRST,
            sends: false,
            window: Window::new(),
            sink: None,
            inbox: Kept::default(),
            lagging: 0,
            received: 0,
            ended: false,
            reset: false,
            queued: false,
            waker: None,
        }
    }

    /// Where nothing was sent since the last time, gives up what is more than at first; answers how much that was.
    pub(super) fn give_back(&mut self) -> Option<u32> {
        let sends = std::mem::take(&mut self.sends);
        let more = self.credit.saturating_sub(Window::FIRST);
        (!sends && more > 0).then(|| {
            self.credit = Window::FIRST;
            more
        })
    }

    /// Bytes came for it: the application has them at once, or who waits is to see to it. Answers how many it took, all
    /// or none.
    pub(super) fn put(&mut self, pieces: &[IoSlice<'_>]) -> usize {
        let length: usize = pieces.iter().map(|piece| piece.len()).sum();
        self.received += length as u64;
        let taken = match &self.sink {
            // What is wrong with it is found by who waits.
            Some(sink) if self.lagging == 0 => sink.take(pieces).unwrap_or_default(),
            _ => 0,
        };
        if taken == length {
            return length;
        }
        self.lagging += length;
        self.inbox.keep(pieces, taken);
        self.wake();
        0
    }

    /// Whether nothing waits for the application.
    pub(super) fn is_empty(&self) -> bool {
        self.lagging == 0
    }

    /// Gives the application what waits for it; ready with how much came meanwhile.
    pub(super) fn poll_drain<A: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        application: &mut A,
    ) -> Poll<io::Result<usize>> {
        ready!(self.inbox.poll_drain(cx, application))?;
        Poll::Ready(Ok(std::mem::take(&mut self.lagging)))
    }

    /// Who waits is to look again.
    pub(super) fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// Waits.
    pub(super) fn wait<T>(&mut self, cx: &Context<'_>) -> Poll<T> {
        match &mut self.waker {
            // One that wakes the same is not made again.
            Some(left) => left.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
        Poll::Pending
    }
}
