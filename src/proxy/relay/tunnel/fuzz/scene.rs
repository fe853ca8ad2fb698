//! Who talks by the tunnel, in memory, and what may be seen of it from outside.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf, duplex};

use super::super::{
    super::{End, HALF_CLOSED, Pair, SCRATCH},
    Tunnel,
};
use crate::proxy::{
    fuzz::{Input, pattern},
    records::{HEADER, MAX_PROTECTED, fuzz::Peer},
};

/// What may be kept beside a scratch-full: alerts, an announcement of a key.
const WORDS: usize = 128;

/// Whether the tunnel has been woken.
#[derive(Debug, Default)]
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A tunnel and both that talk by it.
pub(super) struct Scene {
    tunnel: Tunnel<DuplexStream>,
    pair: Pair,
    near: DuplexStream,
    application: Option<DuplexStream>,
    far: Option<DuplexStream>,
    /// An application or a peer said that it says no more.
    closed: [bool; 2],
    peer: Peer,
    wire: Vec<u8>,
    heard: Vec<u8>,
    /// What the peer reads first.
    flight: Vec<u8>,
    wrote: usize,
    understood: usize,
    /// Announcements of keys of ours.
    changes: usize,
    said_no_more: bool,
    woken: Arc<Woken>,
    /// How often the tunnel may still be polled.
    patience: usize,
    /// What has come to the application.
    pub(super) came: Vec<u8>,
    /// Whether the application was told that no more comes.
    pub(super) ended: bool,
    /// How the connection ended.
    pub(super) end: Option<End>,
}

impl Scene {
    pub(super) fn new(
        tunnel: Tunnel<DuplexStream>,
        (peer, far): (Peer, DuplexStream),
        (flight, wire): (Vec<u8>, Vec<u8>),
        room: usize,
    ) -> Self {
        let (near, application) = duplex(room);
        let patience = 1024 + 8 * (wire.len() + tunnel.down.partial.len() + flight.len());
        Self {
            tunnel,
            pair: Pair::new(HALF_CLOSED),
            near,
            application: Some(application),
            far: Some(far),
            closed: [false; 2],
            peer,
            wire,
            heard: vec![],
            flight,
            wrote: 0,
            understood: 0,
            changes: 0,
            said_no_more: false,
            woken: Arc::new(Woken(true.into())),
            patience,
            came: vec![],
            ended: false,
            end: None,
        }
    }

    /// One step of the input's choice; `false` = whatever is under way shall arrive now.
    pub(super) fn act(&mut self, input: &mut Input<'_>) -> bool {
        let what = input.byte();
        match what % 12 {
            0 => return false,
            1 | 2 => drop(self.peer_writes(input.number())),
            3 => drop(self.peer_reads(input.number())),
            4 => drop(self.application_reads(input.number())),
            5 | 6 => self.application_writes(input.number()),
            7 => self.application_closes(),
            8 => self.peer_closes(),
            9 => self.application = None,
            10 => self.far = None,
            // The turn alone.
            _ => {}
        }
        self.turn();
        true
    }

    /// Everybody reads and writes until nobody can any more.
    pub(super) fn settle(&mut self) {
        loop {
            self.turn();
            let written = self.peer_writes(usize::MAX);
            if written + self.application_reads(usize::MAX) + self.peer_reads(usize::MAX) == 0 {
                return;
            }
        }
    }

    /// Whether somebody left, or ended the wire.
    pub(super) const fn is_disturbed(&self) -> bool {
        self.application.is_none() || self.far.is_none() || self.closed[1]
    }

    /// The application says no more; the peer has heard all of it. Whether it `asked` for a new key.
    pub(super) fn finish(&mut self, asked: bool) {
        let open = !self.closed[0];
        self.application_closes();
        self.turn();
        self.settle();
        assert_eq!(self.understood, self.wrote, "bytes that the peer was told");
        assert!(self.said_no_more, "the peer was told the end");
        assert!(self.changes > 0 || !asked || !open, "we follow where we are asked to");
    }

    /// The wire is cut.
    pub(super) fn cut(&mut self) {
        self.peer_closes();
        self.turn();
        self.settle();
    }

    /// Nobody is wanted any more.
    pub(super) fn leave(self) {
        let Self { tunnel, peer, .. } = self;
        peer.give_back(tunnel.records);
    }

    /// The tunnel works while it is woken, and not for ever.
    fn turn(&mut self) {
        let waker = Waker::from(self.woken.clone());
        let mut cx = Context::from_waker(&waker);
        while self.end.is_none() && self.woken.0.swap(false, Ordering::Relaxed) {
            assert!(self.patience > 0, "it is busy with nothing");
            self.patience -= 1;
            if let Poll::Ready(end) = self.pair.poll(&mut cx, &mut self.near, &mut self.tunnel) {
                self.end = Some(end);
            }
            self.bounded();
        }
    }

    fn bounded(&mut self) {
        let Tunnel { up, down, .. } = &mut self.tunnel;
        let (sealed, opened, partial) = (up.kept.tail().len(), down.kept.tail().len(), down.partial.len());
        assert!(sealed <= SCRATCH + self.flight.len() + WORDS, "{sealed} sealed bytes are kept");
        assert!(opened <= SCRATCH, "{opened} opened bytes are kept");
        assert!(partial <= HEADER + MAX_PROTECTED, "{partial} bytes of a record are kept");
    }

    fn peer_writes(&mut self, most: usize) -> usize {
        let length = self.far.as_mut().filter(|_| !self.closed[1]).map_or(0, |far| write(far, &self.wire, most));
        self.wire.drain(..length);
        length
    }

    fn peer_reads(&mut self, most: usize) -> usize {
        let length = self.far.as_mut().map_or(0, |far| read(far, &mut self.heard, most).0);
        self.hear();
        length
    }

    fn peer_closes(&mut self) {
        self.closed[1] = true;
        if let Some(far) = &mut self.far {
            let _ = Pin::new(far).poll_shutdown(&mut Context::from_waker(Waker::noop()));
        }
    }

    fn application_reads(&mut self, most: usize) -> usize {
        let Some(application) = &mut self.application else { return 0 };
        let (length, ended) = read(application, &mut self.came, most);
        self.ended |= ended && self.end.is_none_or(|end| end == End::Closed);
        length
    }

    fn application_writes(&mut self, most: usize) {
        let Some(application) = self.application.as_mut().filter(|_| !self.closed[0]) else { return };
        let length = write(application, &pattern(self.wrote, most), most);
        self.wrote += length;
        self.patience += 8 * length;
    }

    fn application_closes(&mut self) {
        self.closed[0] = true;
        if let Some(application) = &mut self.application {
            let _ = Pin::new(application).poll_shutdown(&mut Context::from_waker(Waker::noop()));
        }
    }

    /// What the peer has been told is what the application said, and nothing behind its end.
    fn hear(&mut self) {
        for (kind, content) in self.understand() {
            assert!(!self.said_no_more || kind != 23, "something is said behind the end");
            match kind {
                23 if !content.is_empty() => {
                    assert!(content == pattern(self.understood, content.len()), "other bytes are said");
                    self.understood += content.len();
                }
                22 => self.changes += 1,
                _ => self.said_no_more = true,
            }
        }
        assert!(self.understood <= self.wrote, "more is said than was");
    }

    fn understand(&mut self) -> Vec<(u8, Vec<u8>)> {
        let flown = self.flight.len().min(self.heard.len());
        assert!(self.flight.drain(..flown).eq(self.heard.drain(..flown)), "the flight comes first");
        self.peer.hear(&mut self.heard)
    }
}

/// Writes of `bytes` what `stream` takes, `most` at most.
fn write(stream: &mut DuplexStream, bytes: &[u8], most: usize) -> usize {
    let bytes = &bytes[..most.min(bytes.len())];
    if bytes.is_empty() {
        return 0;
    }
    match Pin::new(stream).poll_write(&mut Context::from_waker(Waker::noop()), bytes) {
        Poll::Ready(Ok(length)) => length,
        Poll::Ready(Err(_)) | Poll::Pending => 0,
    }
}

/// Reads what there is, `most` at most; how much that is, and whether it was the last.
fn read(stream: &mut DuplexStream, all: &mut Vec<u8>, most: usize) -> (usize, bool) {
    let mut bytes = vec![0; most.min(1 << 17)];
    let mut into = ReadBuf::new(&mut bytes);
    let read = Pin::new(stream).poll_read(&mut Context::from_waker(Waker::noop()), &mut into);
    let length = into.filled().len();
    all.extend_from_slice(into.filled());
    (length, read.is_ready() && length == 0 && most > 0)
}
