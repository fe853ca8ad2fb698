//! A multiplexed connection between streams of ours and a peer that knows the keys and says whatever it likes: what a
//! stream may not hear ends the connection, what it may arrives whole, and nothing grows beyond its bound.

use std::{
    collections::BTreeMap,
    io::{self, IoSlice},
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

use tokio::io::AsyncWrite;

use super::{
    super::{
        super::records::{HEADER, STRIDE, fuzz::Choice},
        application::Sink,
    },
    frame::{Frame, MAX_DATA, PREFIX},
    state::{MOST, MOST_CREDIT, PLENTY, Role, State},
    window::{LARGEST, Window},
};
use crate::{
    proxy::{
        fuzz::{Input, pattern},
        records::fuzz::{Peer, ends},
    },
    refusal::Refusal,
};

/// Steps of one input.
const STEPS: usize = 300;
/// The types of records (RFC 8446 §5.1).
const DATA: u8 = 23;
const HANDSHAKE: u8 = 22;
/// Records in a row that need no data.
const MAX_IDLE: usize = 32;

/// Lets a peer and streams of ours do what `input` says.
///
/// # Panics
///
/// Where a frame is taken that its stream may not hear, or refused where it may; where bytes are lost, changed or sent
/// without credit; where more waits than may; where somebody waits in vain.
pub fn mux(input: &[u8]) {
    let mut input = Input::new(input);
    let (ours, peer) = ends(Choice::new(input.byte()));
    let role = if input.byte().is_multiple_of(2) { Role::Caller } else { Role::Callee };
    let mut scene = Scene {
        state: State::new(role, ours, (vec![], vec![])),
        role,
        peer,
        streams: BTreeMap::new(),
        last: 0,
        closing: false,
        heard: 0,
        due: vec![],
        idle: 0,
        over: false,
        buffer: vec![0; 8 * STRIDE],
    };
    for _ in 0..STEPS {
        if input.is_empty() || !scene.step(&mut input) {
            return;
        }
        scene.listen();
    }
}

/// How far a stream's beginning has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Begun {
    Waiting,
    Accepted,
    Refused,
}

/// What must be so of a stream of ours.
struct Stream {
    begun: Begun,
    /// What the peer may send, and we may.
    allowed: u32,
    credit: u32,
    application: Arc<Application>,
    attached: bool,
    /// What came and the application has not taken, and what we sent and the peer has not heard.
    inbox: Vec<u8>,
    outbox: Vec<u8>,
    /// We sent since credit was given back last.
    sends: bool,
    /// What of ours is given back, and the peer has not heard.
    returned: Option<u32>,
    ended: bool,
    reset: bool,
    we_ended: bool,
    woken: Arc<Flag>,
    waits: bool,
}

#[derive(Default)]
struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Stream {
    fn new() -> Self {
        Self {
            begun: Begun::Waiting,
            allowed: Window::FIRST,
            credit: Window::FIRST,
            application: Arc::default(),
            attached: false,
            inbox: vec![],
            outbox: vec![],
            sends: false,
            returned: None,
            ended: false,
            reset: false,
            we_ended: false,
            woken: Arc::default(),
            waits: false,
        }
    }

    /// The application has what came first.
    fn taken(&mut self) {
        let taken = std::mem::take(&mut *self.application.taken.lock().expect("one thread"));
        assert!(self.inbox.starts_with(&taken), "what came first is taken first");
        self.inbox.drain(..taken.len());
    }
}

/// Takes as much as there is room for.
#[derive(Debug, Default)]
struct Application {
    room: Mutex<usize>,
    taken: Mutex<Vec<u8>>,
}

impl Sink for Application {
    fn take(&self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        let all: Vec<u8> = pieces.iter().flat_map(|piece| piece.iter().copied()).collect();
        let mut room = self.room.lock().expect("one thread");
        let length = all.len().min(*room);
        *room -= length;
        self.taken.lock().expect("one thread").extend_from_slice(&all[..length]);
        if length == 0 { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(length) }
    }
}

impl AsyncWrite for &Application {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.take(&[IoSlice::new(bytes)]).map_or(Poll::Pending, |length| Poll::Ready(Ok(length)))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

struct Scene {
    state: State,
    role: Role,
    peer: Peer,
    streams: BTreeMap<u32, Stream>,
    last: u32,
    closing: bool,
    /// How much of all that we sealed the peer has heard.
    heard: u64,
    /// What was sealed and the socket has not taken, in that order.
    due: Vec<u8>,
    /// Records in a row without data.
    idle: usize,
    /// The connection has ended.
    over: bool,
    buffer: Vec<u8>,
}

impl Scene {
    /// One thing that somebody does; answers whether it goes on.
    fn step(&mut self, input: &mut Input<'_>) -> bool {
        let (what, id) = (input.byte(), u32::from(input.byte() % 8));
        match what % 16 {
            0..=6 => return self.peer_says(input, id),
            7 if id == 0 => self.give_back(),
            7 => return self.peer_asks(),
            8 => self.open(),
            9 => self.accept(id),
            10 | 11 => self.send(id, input.number()),
            12 => self.fetch(id, input.number()),
            13 => self.end(id),
            14 => self.leave(id, input.byte()),
            _ => self.write(input.number()),
        }
        true
    }

    fn peer_says(&mut self, input: &mut Input<'_>, id: u32) -> bool {
        let kind = input.byte();
        let id = if kind >= 128 { self.last + 1 } else { id };
        let content = input.content();
        let more = u32::try_from(content.len()).expect("it is short") << (kind % 16);
        let frame = match kind % 8 {
            0 => Some(Frame::Open),
            1 => Some(Frame::Accepted),
            2 => Some(Frame::Refused),
            3 if !content.is_empty() => Some(Frame::Data(&content[..content.len().min(MAX_DATA)])),
            4 => Some(Frame::End),
            5 => Some(Frame::Reset),
            6 => Some(Frame::Credit(more)),
            7 if kind & 16 != 0 => Some(Frame::Return(more)),
            _ => None,
        };
        let said = frame.map_or_else(|| content.iter().copied().take(MAX_DATA).collect(), |frame| frame.write(id));
        if said.is_empty() {
            return true;
        }
        // What is no frame to us may be one by chance.
        let before = self.streams.get(&id);
        let lagged = before.is_some_and(|stream| !stream.inbox.is_empty());
        let room = before.map_or(0, |stream| *stream.application.room.lock().expect("one thread"));
        let legal = Frame::parse(&said).is_some_and(|(id, frame)| self.may(id, frame));
        self.idle = 0;
        let mut record = self.peer.say(DATA, &said);
        let taken = self.state.receive(&mut record);
        assert_eq!(taken.is_ok(), legal, "{frame:?} of {id}");
        if let Some(stream) = self.streams.get_mut(&id).filter(|_| legal && frame.is_some()) {
            let data = matches!(frame, Some(Frame::Data(_)));
            let fits = stream.attached && !lagged && room >= stream.inbox.len();
            stream.taken();
            assert!(!(data && fits) || stream.inbox.is_empty(), "{id} could have taken it at once");
            let woken = stream.woken.0.load(Ordering::Relaxed) || !stream.waits;
            assert!(woken || data && stream.inbox.is_empty(), "{id} waits for {frame:?} in vain");
        }
        if !legal {
            self.state.fail(Refusal::Truncated);
            let waiting = self.streams.values().filter(|stream| stream.waits);
            waiting.for_each(|stream| assert!(stream.woken.0.load(Ordering::Relaxed), "nobody is told of the end"));
            // What came before is still there.
            self.over = true;
            let ids: Vec<u32> = self.streams.keys().copied().collect();
            ids.into_iter().for_each(|id| self.fetch(id, usize::MAX));
        }
        legal
    }

    /// Whether the peer may say that; if so, it is said.
    fn may(&mut self, id: u32, frame: Frame<'_>) -> bool {
        if frame == Frame::Open {
            let fits = self.role == Role::Callee && id > self.last;
            if fits {
                self.last = id;
                if !self.closing {
                    self.streams.insert(id, Stream::new());
                }
            }
            return fits;
        }
        if id == 0 || id > self.last {
            return false;
        }
        let Some(stream) = self.streams.get_mut(&id) else { return true };
        let (begun, caller) = (stream.begun, self.role == Role::Caller);
        match frame {
            Frame::Accepted if caller && begun == Begun::Waiting => stream.begun = Begun::Accepted,
            Frame::Refused if caller && begun == Begun::Waiting => stream.begun = Begun::Refused,
            Frame::Reset => stream.reset = true,
            Frame::Data(data) if begun == Begun::Accepted && !stream.ended && data.len() <= stream.allowed as usize => {
                stream.allowed -= u32::try_from(data.len()).expect("it is less");
                stream.inbox.extend_from_slice(data);
            }
            Frame::End if begun == Begun::Accepted && !stream.ended => stream.ended = true,
            Frame::Credit(more) if begun == Begun::Accepted && more <= MOST_CREDIT - stream.credit => {
                stream.credit += more;
            }
            Frame::Return(less) if begun == Begun::Accepted && less <= stream.allowed => stream.allowed -= less,
            _ => return false,
        }
        true
    }

    /// For a new key, or says nothing at all.
    fn peer_asks(&mut self) -> bool {
        self.idle += 1;
        let mut record = self.peer.ask();
        let legal = self.idle <= MAX_IDLE;
        assert_eq!(self.state.receive(&mut record).is_ok(), legal);
        legal
    }

    fn open(&mut self) {
        if self.role == Role::Callee {
            return;
        }
        assert_eq!(self.state.open(), (!self.closing).then_some(self.last + 1));
        if !self.closing {
            self.last += 1;
            self.streams.insert(self.last, Stream::new());
        }
    }

    fn accept(&mut self, id: u32) {
        let begun = self.state.begun();
        assert!(begun.iter().all(|id| *id <= self.last && self.role == Role::Callee));
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if stream.begun == Begun::Accepted {
            self.state.attach(id, stream.application.clone());
            stream.attached = true;
        }
        if self.role == Role::Callee && stream.begun == Begun::Waiting {
            let taken = self.state.accept(id);
            assert_eq!(taken.is_ok(), !stream.reset);
            if taken.is_ok() {
                stream.begun = Begun::Accepted;
            }
        }
    }

    /// Polls for the stream `id`, noting whether it waits.
    fn poll<T>(
        stream: &mut Stream,
        state: &mut State,
        poll: impl FnOnce(&mut State, &mut Context<'_>) -> Poll<T>,
    ) -> Option<T> {
        stream.woken.0.store(false, Ordering::Relaxed);
        let waker = Waker::from(stream.woken.clone());
        let polled = poll(state, &mut Context::from_waker(&waker));
        stream.waits = polled.is_pending();
        match polled {
            Poll::Ready(answer) => Some(answer),
            Poll::Pending => None,
        }
    }

    fn send(&mut self, id: u32, length: usize) {
        let Self { state, streams, buffer, .. } = self;
        let Some(stream) = streams.get_mut(&id).filter(|stream| stream.begun == Begun::Accepted && !stream.we_ended)
        else {
            return;
        };
        let Some(room) = Self::poll(stream, state, |state, cx| state.room(id, length.is_multiple_of(2), cx)) else {
            return;
        };
        assert_eq!(room.is_ok(), !stream.reset);
        let Ok(room) = room else { return };
        assert!(room > 0 && room <= stream.credit as usize);
        let length = length.min(room).min(8 * MAX_DATA);
        if length == 0 {
            return;
        }
        let data = pattern(length, length);
        for (slot, piece) in buffer.chunks_mut(STRIDE).zip(data.chunks(MAX_DATA)) {
            slot[HEADER + PREFIX..HEADER + PREFIX + piece.len()].copy_from_slice(piece);
        }
        let direct = state.seal(id, buffer, length).expect("there was room").map(<[u8]>::to_vec);
        stream.credit -= u32::try_from(length).expect("it is less");
        stream.outbox.extend_from_slice(&data);
        stream.sends = true;
        if let Some(direct) = direct {
            // The socket takes a part.
            let (taken, rest) = direct.split_at(direct.len() / 3);
            self.state.wrote_past(rest);
            self.heard += direct.len() as u64;
            self.due.extend_from_slice(&direct);
            self.hear(direct.clone());
            self.took(taken);
        }
    }

    /// The application has room again; now and then the stream comes to know of it later.
    fn fetch(&mut self, id: u32, room: usize) {
        let Self { state, streams, .. } = self;
        let Some(stream) = streams.get_mut(&id).filter(|stream| stream.begun == Begun::Accepted) else { return };
        let application = stream.application.clone();
        *application.room.lock().expect("one thread") = room;
        if room % 4 == 3 && !self.over {
            return;
        }
        let polled = Self::poll(stream, state, |state, cx| state.poll_drain(id, cx, &mut &*application));
        stream.taken();
        let done = stream.inbox.is_empty();
        // Else it waits for its application.
        stream.waits &= done;
        assert!(room < usize::MAX || done || stream.reset, "{id} is not given all");
        match polled {
            None => assert!(!done || !self.over && !stream.ended && !stream.reset, "{id} has something"),
            Some(Err(_)) => assert!(stream.reset || self.over && done && !stream.ended),
            Some(Ok(())) => assert!(stream.ended && done),
        }
    }

    /// Whoever has not sent gives back what is more than at first.
    fn give_back(&mut self) {
        self.listen();
        for stream in self.streams.values_mut() {
            let more = stream.credit.saturating_sub(Window::FIRST);
            if !std::mem::take(&mut stream.sends) && more > 0 {
                stream.credit = Window::FIRST;
                stream.returned = Some(more);
            }
        }
        self.state.give_back();
        self.listen();
        assert!(self.streams.values().all(|stream| stream.returned.is_none()), "what is due is given back");
        let lent = self.streams.values().any(|stream| stream.credit > Window::FIRST);
        assert_eq!(self.state.outlook().lent, lent);
    }

    fn end(&mut self, id: u32) {
        let Some(stream) = self.streams.get_mut(&id).filter(|stream| stream.begun == Begun::Accepted) else { return };
        if !stream.we_ended {
            stream.we_ended = self.state.end(id).is_ok();
            assert_eq!(stream.we_ended, !stream.reset);
        }
    }

    fn leave(&mut self, id: u32, how: u8) {
        if how == 0 {
            self.closing = true;
            self.state.close();
        }
        // What was sent before is still heard.
        self.listen();
        self.state.leave(id, how.is_multiple_of(2));
        self.streams.remove(&id);
        assert_eq!(self.state.outlook().alone, self.streams.is_empty());
    }

    /// The socket takes some.
    fn write(&mut self, length: usize) {
        let length = length.min(self.state.unwritten().len());
        if length > 0 {
            let taken = self.state.unwritten()[..length].to_vec();
            self.state.wrote(length);
            self.took(&taken);
        }
    }

    fn took(&mut self, taken: &[u8]) {
        assert!(self.due.starts_with(taken), "what was sealed first is written first");
        self.due.drain(..taken.len());
    }

    /// The peer hears what was sealed since.
    fn listen(&mut self) {
        let unwritten = self.state.unwritten();
        assert!(unwritten.len() <= 2 * MOST, "{} bytes wait", unwritten.len());
        assert!(self.state.held() <= unwritten.len() + PLENTY, "{} bytes are kept", self.state.held());
        let new = usize::try_from(self.state.sealed() - self.heard).expect("it fits");
        let wire = unwritten[unwritten.len() - new..].to_vec();
        self.heard += new as u64;
        self.due.extend_from_slice(&wire);
        assert_eq!(self.due.len(), self.state.unwritten().len());
        self.hear(wire);
    }

    fn hear(&mut self, mut wire: Vec<u8>) {
        for (kind, content) in self.peer.hear(&mut wire) {
            if kind == HANDSHAKE {
                continue;
            }
            let (id, frame) = Frame::parse(&content).expect("we say what is a frame");
            assert!(kind == DATA && id <= self.last, "{frame:?} of {id}");
            let Some(stream) = self.streams.get_mut(&id) else { continue };
            match frame {
                Frame::Data(data) => {
                    assert!(stream.outbox.starts_with(data), "what arrives is what was sent");
                    stream.outbox.drain(..data.len());
                }
                Frame::Credit(more) => {
                    stream.allowed += more;
                    assert!(stream.allowed as usize + stream.inbox.len() <= LARGEST as usize);
                }
                Frame::Return(less) => assert_eq!(stream.returned.take(), Some(less)),
                Frame::End => assert!(stream.we_ended && stream.outbox.is_empty()),
                Frame::Open | Frame::Accepted | Frame::Refused | Frame::Reset => {}
            }
        }
        assert!(wire.is_empty(), "whole records");
    }
}
