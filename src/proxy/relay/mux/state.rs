//! A multiplexed connection without its socket: records in, frames to streams; frames of streams, records out.
//!
//! Nothing here waits, and of sockets only the applications' are written, as far as they take it: who must wait leaves its
//! waker, and what is sealed lies in `out` until the socket takes it. A peer cannot make us keep more than the windows we gave its streams.

mod heard;

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    sync::Arc,
    task::{Context, Poll, Waker, ready},
};

use rustls::{AlertDescription, ContentType, Error, InvalidMessage};
use tokio::io::AsyncWrite;

use super::{
    super::{
        super::records::{HEADER, Records, STRIDE},
        Broken,
        application::Sink,
    },
    entry::{Begun, Entry},
    frame::{Frame, MAX_DATA, PREFIX},
    window::Window,
};
use crate::refusal::Refusal;

/// Streams at a time.
const MAX_STREAMS: usize = 16_384;
/// What waits for the socket before no stream adds to it.
pub(super) const PLENTY: usize = 256 << 10;
/// What may wait when a peer makes us answer and does not listen.
pub(super) const MOST: usize = 1 << 20;
/// Credit that a peer may give.
pub(super) const MOST_CREDIT: u32 = 1 << 26;

/// Which side this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super::super) enum Role {
    /// We called: streams are begun here.
    Caller,
    /// We were called.
    Callee,
}

/// What the peer says to the beginning of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super::super) enum Answer {
    /// It has taken it.
    Accepted,
    /// It has not judged it, or not let it in.
    Refused,
    /// It has let it in, and could not reach its application.
    Unreached,
}

/// The stream, or all of it, is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Gone;

/// What a connection has to look out for, beside its socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Outlook {
    /// It has no stream.
    pub(super) alone: bool,
    /// Some streams may send more than at first, and have to give that back if they do not.
    pub(super) lent: bool,
}

impl From<Gone> for io::Error {
    fn from(_: Gone) -> Self {
        io::ErrorKind::ConnectionReset.into()
    }
}

/// A multiplexed connection.
#[derive(Debug)]
pub(super) struct State {
    records: Records,
    role: Role,
    streams: BTreeMap<u32, Entry>,
    /// The number of the newest stream.
    last: u32,
    out: Vec<u8>,
    /// How much of `out` the socket has taken.
    start: usize,
    /// How many bytes the socket has ever taken.
    written: u64,
    /// An answer to a peer that asked for a new key is in `out`.
    answers: bool,
    partial: Vec<u8>,
    /// Streams that the peer has begun and nobody has looked at.
    begun: Vec<u32>,
    failed: Option<Refusal>,
    /// No more streams.
    closing: bool,
    pump: Option<Waker>,
    /// Streams that wait for room in `out`, in the order in which they came.
    crowd: VecDeque<u32>,
    /// Streams that wait until what they said last is written.
    ending: Vec<u32>,
    /// Some streams may send more than at first.
    lent: bool,
}

fn violation() -> Error {
    InvalidMessage::UnexpectedMessage("a frame that its stream does not have").into()
}

impl State {
    /// After a handshake: what of it is to be sent, and what came behind it.
    pub(super) fn new(role: Role, records: Records, (flight, behind): (Vec<u8>, Vec<u8>)) -> Self {
        Self {
            records,
            role,
            streams: BTreeMap::new(),
            last: 0,
            out: flight,
            start: 0,
            written: 0,
            answers: false,
            partial: behind,
            begun: Vec::new(),
            failed: None,
            closing: false,
            pump: None,
            crowd: VecDeque::new(),
            ending: Vec::new(),
            lent: false,
        }
    }

    /// Who is woken, once, when there is something to write: nobody while that is looked for anyhow.
    pub(super) fn pump(&mut self, waker: Option<Waker>) {
        self.pump = waker;
    }

    fn wake_pump(&mut self) {
        if let Some(waker) = self.pump.take() {
            waker.wake();
        }
    }

    /// What there is to wait for.
    pub(super) fn outlook(&self) -> Outlook {
        Outlook { alone: self.streams.is_empty(), lent: self.lent }
    }

    /// Whether another stream may begin.
    pub(super) fn has_room(&self) -> bool {
        self.failed.is_none() && !self.closing && self.streams.len() < MAX_STREAMS && self.last < u32::MAX
    }

    /// No more streams begin.
    pub(super) fn close(&mut self) {
        self.closing = true;
        self.wake_pump();
    }

    /// Why it ended, if it did not end in order.
    pub(super) fn failed(&self) -> Option<Refusal> {
        self.failed
    }

    /// It is over, for all streams.
    pub(super) fn fail(&mut self, reason: Refusal) {
        self.failed.get_or_insert(reason);
        self.closing = true;
        self.streams.values_mut().for_each(Entry::wake);
        self.wake_pump();
    }

    // ---- what streams do

    /// Begins a stream.
    pub(super) fn open(&mut self) -> Option<u32> {
        if !self.has_room() {
            return None;
        }
        self.last += 1;
        self.streams.insert(self.last, Entry::new());
        self.say(self.last, Frame::Open).ok()?;
        Some(self.last)
    }

    /// What the peer says to the beginning of the stream.
    pub(super) fn opened(&mut self, id: u32, cx: &Context<'_>) -> Poll<Answer> {
        let failed = self.failed.is_some();
        let Some(entry) = self.streams.get_mut(&id) else { return Poll::Ready(Answer::Refused) };
        match entry.begun {
            Begun::Accepted if !failed => Poll::Ready(Answer::Accepted),
            Begun::Waiting if entry.reset && !failed => Poll::Ready(Answer::Unreached),
            Begun::Waiting if !failed => entry.wait(cx),
            _ => Poll::Ready(Answer::Refused),
        }
    }

    /// Streams that have sent nothing since this was asked last give back what their windows have grown by: the peer's
    /// thread has only so much of that for all.
    pub(super) fn give_back(&mut self) {
        let due: Vec<(u32, u32)> =
            self.streams.iter_mut().filter_map(|(id, entry)| Some((*id, entry.give_back()?))).collect();
        for (id, more) in due {
            let _ = self.say(id, Frame::Return(more));
        }
        self.lent = self.streams.values().any(|entry| entry.credit > Window::FIRST);
    }

    /// Streams that the peer has begun since this was asked last.
    pub(super) fn begun(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.begun)
    }

    /// Takes a stream that the peer has begun.
    pub(super) fn accept(&mut self, id: u32) -> Result<(), Gone> {
        let entry = self.streams.get_mut(&id).filter(|entry| !entry.reset).ok_or(Gone)?;
        entry.begun = Begun::Accepted;
        self.say(id, Frame::Accepted)
    }

    /// The stream that the peer has begun is let in, and leads nowhere: left now, it is reset.
    pub(super) fn unreached(&mut self, id: u32) {
        if let Some(entry) = self.streams.get_mut(&id) {
            entry.begun = Begun::Accepted;
        }
    }

    /// How much may be sent now. Who is `quiet` does not wait behind those who fill `out` whenever there is room; where
    /// some wait, nobody takes more than a frame at a time.
    pub(super) fn room(&mut self, id: u32, quiet: bool, cx: &Context<'_>) -> Poll<Result<usize, Gone>> {
        let full = self.unwritten().len() > if quiet { 2 * PLENTY } else { PLENTY };
        let most = if self.crowd.is_empty() { usize::MAX } else { MAX_DATA };
        let entry = self.live(id)?;
        let credit = entry.credit as usize;
        if credit > 0 && !full {
            return Poll::Ready(Ok(credit.min(most)));
        }
        let wait = entry.wait(cx);
        if credit == 0 {
            self.pass();
        } else if !std::mem::replace(&mut entry.queued, true) {
            self.crowd.push_back(id);
        }
        wait
    }

    /// Whoever waits longest has its turn, if there is room; who does not use its turn passes it on.
    pub(super) fn pass(&mut self) {
        while self.unwritten().len() <= PLENTY
            && let Some(id) = self.crowd.pop_front()
        {
            if let Some(entry) = self.streams.get_mut(&id) {
                entry.queued = false;
                return entry.wake();
            }
        }
    }

    fn live(&mut self, id: u32) -> Result<&mut Entry, Gone> {
        let failed = self.failed.is_some();
        self.streams.get_mut(&id).filter(|entry| !entry.reset && !failed).ok_or(Gone)
    }

    /// Seals `length` bytes of the stream's, which lie in `buffer` in pieces of [`MAX_DATA`], each behind the room for
    /// a record's header and a frame's. Answers the sealed bytes where they should be written at once: otherwise they
    /// wait. Whoever writes them says how much was taken by [`State::wrote_past`].
    pub(super) fn seal<'b>(&mut self, id: u32, buffer: &'b mut [u8], length: usize) -> Result<Option<&'b [u8]>, Gone> {
        self.refresh()?;
        let entry = self.live(id)?;
        entry.credit = entry.credit.checked_sub(u32::try_from(length).map_err(|_| Gone)?).ok_or(Gone)?;
        entry.sends = true;
        let pieces = length.div_ceil(MAX_DATA);
        for slot in buffer.chunks_mut(STRIDE).take(pieces) {
            slot.get_mut(HEADER..HEADER + PREFIX).ok_or(Gone)?.copy_from_slice(&Frame::prefix(id));
        }
        let sealed = self.records.seal(buffer, length + pieces * PREFIX).map_err(|_| Gone)?;
        let sealed = &buffer[..sealed];
        // Where there is nobody else, nobody is waited for; and what is much goes without a copy.
        if (pieces > 1 || self.streams.len() == 1) && self.out.is_empty() {
            self.written += sealed.len() as u64;
            return Ok(Some(sealed));
        }
        self.out.extend_from_slice(sealed);
        self.wake_pump();
        self.pass();
        Ok(None)
    }

    /// Of what [`State::seal`] gave to be written, `rest` was not taken.
    pub(super) fn wrote_past(&mut self, rest: &[u8]) {
        if !rest.is_empty() {
            self.written -= rest.len() as u64;
            self.out.extend_from_slice(rest);
            self.wake_pump();
        }
        self.pass();
    }

    /// Whoever takes what comes for the stream.
    pub(super) fn attach(&mut self, id: u32, sink: Arc<dyn Sink>) {
        if let Some(entry) = self.streams.get_mut(&id) {
            entry.sink = Some(sink);
        }
    }

    /// Gives the application what waits for it, also where nothing else will come; ready when nothing does.
    pub(super) fn poll_drain<A: AsyncWrite + Unpin>(
        &mut self,
        id: u32,
        cx: &mut Context<'_>,
        application: &mut A,
    ) -> Poll<Result<(), Broken>> {
        let failed = self.failed.is_some();
        let entry = self.streams.get_mut(&id).filter(|entry| !entry.reset);
        let entry = entry.ok_or_else(|| Broken::From(Gone.into()))?;
        let lagged = ready!(entry.poll_drain(cx, application)).map_err(Broken::To)?;
        let outcome = match (entry.ended, failed) {
            (true, _) => Poll::Ready(Ok(())),
            (false, true) => Poll::Ready(Err(Broken::From(Gone.into()))),
            (false, false) => entry.wait(cx),
        };
        if lagged > 0 {
            self.took(id, lagged, false);
        }
        outcome
    }

    /// Whether something waits for the stream's application.
    pub(super) fn owes(&self, id: u32) -> bool {
        self.streams.get(&id).is_some_and(|entry| !entry.is_empty())
    }

    /// How much ever came for the stream.
    pub(super) fn received(&self, id: u32) -> u64 {
        self.streams.get(&id).map_or(0, |entry| entry.received)
    }

    /// The application has taken `length` bytes, `at_once` or not: the peer may send more.
    fn took(&mut self, id: u32, length: usize, at_once: bool) {
        let Ok(entry) = self.live(id) else { return };
        if let Some(more) = entry.window.took(length, at_once)
            && !entry.ended
        {
            let _ = self.say(id, Frame::Credit(more));
        }
    }

    /// The stream sends no more. Answers the position at which that is written.
    pub(super) fn end(&mut self, id: u32) -> Result<u64, Gone> {
        self.live(id)?;
        self.say(id, Frame::End)?;
        Ok(self.sealed())
    }

    /// Whether the socket has taken everything up to `position`.
    pub(super) fn is_written(&mut self, id: u32, position: u64, cx: &Context<'_>) -> Poll<Result<(), Gone>> {
        let written = self.written;
        let entry = self.live(id)?;
        if written >= position {
            return Poll::Ready(Ok(()));
        }
        let wait = entry.wait(cx);
        if !std::mem::replace(&mut entry.queued, true) {
            self.ending.push(id);
        }
        wait
    }

    /// The stream is gone here; unless `in_order`, it is reset for the peer too.
    pub(super) fn leave(&mut self, id: u32, in_order: bool) {
        let Some(entry) = self.streams.remove(&id) else { return };
        let answer = match (self.role, entry.begun) {
            (Role::Callee, Begun::Waiting) => Some(Frame::Refused),
            (_, Begun::Refused) => None,
            _ => (!in_order && !entry.reset).then_some(Frame::Reset),
        };
        if let Some(frame) = answer
            && self.failed.is_none()
        {
            let _ = self.say(id, frame);
        }
        self.pass();
        if self.streams.is_empty() {
            self.lent = false;
            self.wake_pump();
        }
    }

    // ---- what the socket does

    /// How many bytes `out` holds, the written ones too.
    #[cfg(any(test, feature = "fuzz"))]
    pub(super) const fn held(&self) -> usize {
        self.out.len()
    }

    /// How many bytes were ever sealed.
    pub(super) fn sealed(&self) -> u64 {
        self.written + self.unwritten().len() as u64
    }

    /// What is to be written.
    pub(super) fn unwritten(&self) -> &[u8] {
        &self.out[self.start..]
    }

    /// The socket has taken so much of it.
    pub(super) fn wrote(&mut self, length: usize) {
        self.start += length;
        self.written += length as u64;
        if self.start == self.out.len() {
            (self.out, self.start, self.answers) = (Vec::new(), 0, false);
        } else if self.start > PLENTY {
            self.out.drain(..self.start);
            self.start = 0;
        }
        for id in std::mem::take(&mut self.ending) {
            if let Some(entry) = self.streams.get_mut(&id) {
                entry.queued = false;
                entry.wake();
            }
        }
        self.pass();
    }

    /// What came behind the handshake, to be read before anything else.
    pub(super) fn first(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.partial)
    }

    /// Puts the incomplete record at the beginning of `scratch`; answers how long it is.
    pub(super) fn behind(&self, scratch: &mut [u8]) -> usize {
        scratch[..self.partial.len()].copy_from_slice(&self.partial);
        self.partial.len()
    }

    // ---- what is sealed

    fn say(&mut self, id: u32, frame: Frame<'_>) -> Result<(), Gone> {
        self.refresh()?;
        self.records.say(ContentType::ApplicationData, &frame.write(id), &mut self.out).map_err(|_| Gone)?;
        self.wake_pump();
        Ok(())
    }

    /// A new key where ours is worn.
    fn refresh(&mut self) -> Result<(), Gone> {
        if self.records.is_worn() { self.update().map_err(|_| Gone) } else { Ok(()) }
    }

    fn update(&mut self) -> Result<(), Error> {
        self.records.update(&mut self.out)?;
        self.wake_pump();
        Ok(())
    }

    /// One answer is enough for all that was asked before it is sent (RFC 8446 §4.6.3).
    fn answer(&mut self) -> Result<(), Error> {
        if std::mem::replace(&mut self.answers, true) { Ok(()) } else { self.update() }
    }

    /// Says why it ends, behind everything else.
    pub(super) fn alert(&mut self, description: AlertDescription) {
        // What cannot be sealed is not said: it ends anyhow.
        let _ = self.records.alert(description, &mut self.out);
    }
}
