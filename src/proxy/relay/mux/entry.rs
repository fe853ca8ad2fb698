//! One stream among those of a multiplexed connection, and who waits for it.

use std::task::{Context, Poll, Waker};

use super::{super::socket, window::Window};

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
    /// What the peer may send.
    pub(super) window: Window,
    /// What came, and was not fetched.
    inbox: Vec<u8>,
    /// The peer sends no more.
    pub(super) ended: bool,
    /// The peer has reset it.
    pub(super) reset: bool,
    /// It is among those who wait for the socket.
    pub(super) queued: bool,
    waker: Option<Waker>,
}

impl Drop for Entry {
    fn drop(&mut self) {
        socket::count(self.inbox.len(), 0);
    }
}

impl Entry {
    /// Of a stream that begins.
    pub(super) fn new() -> Self {
        Self {
            begun: Begun::Waiting,
            credit: Window::FIRST,
            window: Window::new(),
            inbox: Vec::new(),
            ended: false,
            reset: false,
            queued: false,
            waker: None,
        }
    }

    /// Bytes came for it.
    pub(super) fn put(&mut self, data: &[u8]) {
        socket::count(0, data.len());
        self.inbox.extend_from_slice(data);
    }

    /// How many wait.
    pub(super) fn held(&self) -> usize {
        self.inbox.len()
    }

    /// Fetches them.
    pub(super) fn fetch(&mut self) -> Vec<u8> {
        socket::count(self.inbox.len(), 0);
        std::mem::take(&mut self.inbox)
    }

    /// Who waits is to look again.
    pub(super) fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// Waits.
    pub(super) fn wait<T>(&mut self, cx: &Context<'_>) -> Poll<T> {
        leave(&mut self.waker, cx.waker());
        Poll::Pending
    }
}

/// Leaves `waker` to be woken; one that wakes the same is not made again.
pub(super) fn leave(left: &mut Option<Waker>, waker: &Waker) {
    match left {
        Some(left) => left.clone_from(waker),
        none => *none = Some(waker.clone()),
    }
}
