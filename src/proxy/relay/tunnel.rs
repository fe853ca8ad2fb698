//! The carrier whose network side is our own record layer: one read into the thread's buffer, records sealed or opened
//! where they lie, one write. A connection owns bytes only while a side is slow, or a record incomplete.

#[cfg(any(test, feature = "fuzz"))]
pub(in super::super) mod fuzz;

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};

use rustls::{AlertDescription, ContentType, Error};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, ReadBuf},
    net::TcpStream,
};

use super::{
    super::{
        access::Moved,
        records::{self, MAX_PLAINTEXT, Opened, Records, STRIDE},
        sockets::Underlying,
        tls,
    },
    Broken, Carrier, End, PIECES, SLOTS, Stage, places,
    socket::{Kept, Socket, portion},
};

/// Where a direction begins: what a first answer usually fits in, and a slow side must at most be kept of.
const FIRST_SLOTS: u8 = 2;

/// A connection to a peer, handshake done.
#[derive(Debug)]
pub(in super::super) struct Tunnel<S> {
    pub(super) network: S,
    pub(super) records: Records,
    up: Up,
    pub(super) down: Down,
    moved: Moved,
}

/// From the application to the peer.
#[derive(Debug)]
struct Up {
    /// Sealed, and not taken yet.
    kept: Kept,
    slots: u8,
    /// What is kept has not been tried: it may go with the first data.
    first: bool,
    /// An answer to a peer that asked for a new key is among what is kept.
    answers: bool,
    stage: Stage,
}

/// From the peer to the application.
#[derive(Debug)]
pub(super) struct Down {
    /// Opened, and not taken yet.
    kept: Kept,
    slots: u8,
    /// The beginning of a record whose end has not come.
    pub(super) partial: Vec<u8>,
    stage: Stage,
}

impl<S> Tunnel<S> {
    /// After a handshake: what of it is still to be sent, and what came behind it.
    pub(in super::super) fn new(network: S, records: Records, (flight, behind): (Vec<u8>, Vec<u8>)) -> Self {
        let first = !flight.is_empty();
        let up = Up { kept: flight.into(), slots: FIRST_SLOTS, first, answers: false, stage: Stage::Copying };
        let down = Down { kept: Kept::default(), slots: FIRST_SLOTS, partial: behind, stage: Stage::Copying };
        Self { network, records, up, down, moved: Moved::default() }
    }
}

impl Underlying for Tunnel<TcpStream> {
    fn socket(&self) -> &TcpStream {
        &self.network
    }
}

pub(super) fn broken(error: Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

/// What cannot be sealed cannot be sent.
fn unsealed(error: Error) -> Broken {
    Broken::To(broken(error))
}

impl<A: Socket, S: Socket> Carrier<A> for Tunnel<S> {
    fn poll_up(&mut self, cx: &mut Context<'_>, application: &mut A, scratch: &mut [u8]) -> Poll<Result<(), Broken>> {
        if std::mem::take(&mut self.up.first) {
            self.join_first(cx, application, scratch)?;
        }
        ready!(self.up.kept.poll_drain(cx, &mut self.network)).map_err(Broken::To)?;
        self.up.answers = false;
        if self.up.stage == Stage::Copying {
            ready!(self.poll_seal(cx, application, scratch))?;
            if self.up.stage == Stage::Copying {
                // The other connections of this thread have their turn.
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            ready!(self.up.kept.poll_drain(cx, &mut self.network)).map_err(Broken::To)?;
        }
        if self.up.stage == Stage::Closing {
            ready!(Pin::new(&mut self.network).poll_shutdown(cx)).map_err(Broken::To)?;
            self.up.stage = Stage::Done;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_down(&mut self, cx: &mut Context<'_>, application: &mut A, scratch: &mut [u8]) -> Poll<Result<(), Broken>> {
        ready!(self.down.kept.poll_drain(cx, application)).map_err(Broken::To)?;
        if self.down.stage == Stage::Copying {
            ready!(self.poll_open(cx, application, scratch))?;
            if self.down.stage == Stage::Copying {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            ready!(self.down.kept.poll_drain(cx, application)).map_err(Broken::To)?;
        }
        if self.down.stage == Stage::Closing {
            ready!(Pin::new(application).poll_shutdown(cx)).map_err(Broken::To)?;
            self.down.stage = Stage::Done;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_goodbye(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.records.alert(AlertDescription::CloseNotify, self.up.kept.tail()).map_err(broken)?;
        ready!(self.up.kept.poll_drain(cx, &mut self.network))?;
        Pin::new(&mut self.network).poll_shutdown(cx)
    }

    fn moved(&self) -> Moved {
        self.moved
    }

    fn owes(&self) -> bool {
        !self.up.kept.is_empty() || !self.down.kept.is_empty()
    }

    fn last_words(&mut self, cx: &mut Context<'_>, scratch: &mut [u8]) -> Option<io::Error> {
        // An alert that explains why it was the last is all that is wanted of it.
        let mut behind = self.behind(scratch);
        let mut into = ReadBuf::new(scratch.get_mut(behind..)?);
        match Pin::new(&mut self.network).poll_read(cx, &mut into) {
            Poll::Ready(Err(error)) => return Some(error),
            Poll::Ready(Ok(())) => behind += into.filled().len(),
            Poll::Pending => {}
        }
        let mut rest = scratch.get_mut(..behind)?;
        while let Ok(Some(length)) = records::whole(rest) {
            let (record, behind) = rest.split_at_mut(length);
            if let Err(error) = self.records.open(record) {
                return Some(broken(error));
            }
            rest = behind;
        }
        None
    }

    fn end(&self, error: &io::Error) -> End {
        End::Refused(tls::reason(error))
    }
}

impl<S: Socket> Tunnel<S> {
    /// Says `word` and the end of our direction, and waits until the peer has ended its own.
    pub(in super::super) async fn say_last(&mut self, word: &[u8]) -> io::Result<()> {
        let mut out = Vec::new();
        self.records.say(ContentType::ApplicationData, word, &mut out).map_err(broken)?;
        self.records.alert(AlertDescription::CloseNotify, &mut out).map_err(broken)?;
        self.network.write_all(&out).await?;
        self.network.shutdown().await?;
        self.network.read(&mut [0; 64]).await.map(drop)
    }

    /// What the application said while the handshake went on, sealed behind what is left of that: one write for both.
    fn join_first<A: Socket>(
        &mut self,
        cx: &mut Context<'_>,
        application: &mut A,
        scratch: &mut [u8],
    ) -> Result<(), Broken> {
        match self.poll_fill(cx, application, scratch) {
            Poll::Ready(Ok(0)) => self.end_up(),
            Poll::Ready(Ok(sealed)) => {
                self.up.kept.tail().extend_from_slice(&scratch[..sealed]);
                Ok(())
            }
            Poll::Ready(Err(error)) => Err(error),
            Poll::Pending => Ok(()),
        }
    }

    /// Reads from the application and seals; answers how much lies in `scratch` now, 0 = it says no more.
    fn poll_fill<A: Socket>(
        &mut self,
        cx: &mut Context<'_>,
        application: &mut A,
        scratch: &mut [u8],
    ) -> Poll<Result<usize, Broken>> {
        let slots = usize::from(self.up.slots);
        // Whole records, or one smaller one.
        let most = portion(slots * MAX_PLAINTEXT);
        let (mut places, count) = places(scratch, most, 0);
        let length = ready!(application.poll_scatter(cx, &mut places[..count])).map_err(Broken::From)?;
        self.moved.sent += length as u64;
        if length == slots * MAX_PLAINTEXT {
            self.up.slots = (self.up.slots * 2).min(SLOTS);
        }
        Poll::Ready(self.records.seal(scratch, length).map_err(unsealed))
    }

    fn poll_seal<A: Socket>(
        &mut self,
        cx: &mut Context<'_>,
        application: &mut A,
        scratch: &mut [u8],
    ) -> Poll<Result<(), Broken>> {
        if self.records.is_worn() {
            self.update()?;
            ready!(self.up.kept.poll_drain(cx, &mut self.network)).map_err(Broken::To)?;
        }
        let sealed = ready!(self.poll_fill(cx, application, scratch))?;
        if sealed == 0 {
            return Poll::Ready(self.end_up());
        }
        let sent = self.up.kept.poll_send(cx, &mut self.network, &[IoSlice::new(&scratch[..sealed])]);
        if sent.is_pending() {
            // What the network is slow to take is not read so eagerly next time.
            self.up.slots = (self.up.slots / 2).max(1);
        }
        sent.map_err(Broken::To)
    }

    fn end_up(&mut self) -> Result<(), Broken> {
        self.up.stage = Stage::Closing;
        self.records.alert(AlertDescription::CloseNotify, self.up.kept.tail()).map_err(unsealed)
    }

    fn update(&mut self) -> Result<(), Broken> {
        self.records.update(self.up.kept.tail()).map_err(unsealed)
    }

    /// Follows a peer that asked for a new key. One answer is enough for all that was asked before it is sent (RFC 8446
    /// §4.6.3): of a peer that asks and does not listen, no more and more may be kept.
    fn answer(&mut self) -> Result<(), Broken> {
        if std::mem::replace(&mut self.up.answers, true) { Ok(()) } else { self.update() }
    }

    /// Puts the incomplete record at the beginning of `scratch`; answers how long it is.
    fn behind(&self, scratch: &mut [u8]) -> usize {
        let partial = &self.down.partial;
        scratch[..partial.len()].copy_from_slice(partial);
        partial.len()
    }

    fn poll_open<A: Socket>(
        &mut self,
        cx: &mut Context<'_>,
        application: &mut A,
        scratch: &mut [u8],
    ) -> Poll<Result<(), Broken>> {
        let behind = self.behind(scratch);
        let room = (behind + portion(usize::from(self.down.slots) * STRIDE)).min(scratch.len());
        let waiting = records::whole(&scratch[..behind]).is_ok_and(|whole| whole.is_none());
        let mut filled = behind;
        if waiting {
            let mut into = ReadBuf::new(&mut scratch[behind..room]);
            ready!(Pin::new(&mut self.network).poll_read(cx, &mut into)).map_err(Broken::From)?;
            if into.filled().is_empty() {
                // An end without close_notify: somebody cut the wire.
                return Poll::Ready(Err(Broken::From(io::ErrorKind::UnexpectedEof.into())));
            }
            filled += into.filled().len();
        }
        if filled == room {
            self.down.slots = (self.down.slots * 2).min(SLOTS);
        }
        let delivered = self.deliver(cx, application, &mut scratch[..filled]);
        if !self.down.kept.is_empty() {
            self.down.slots = (self.down.slots / 2).max(1);
        }
        Poll::Ready(delivered)
    }

    /// Opens what is whole in `buffer`, gives it to the application, and keeps what is not.
    fn deliver<A: Socket>(
        &mut self,
        cx: &mut Context<'_>,
        application: &mut A,
        mut buffer: &mut [u8],
    ) -> Result<(), Broken> {
        let mut pieces = [IoSlice::new(&[]); PIECES];
        let mut count = 0;
        let outcome = loop {
            if count == PIECES {
                self.give(cx, application, &pieces)?;
                count = 0;
            }
            let length = match records::whole(buffer) {
                Ok(Some(length)) => length,
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            };
            let (record, behind) = buffer.split_at_mut(length);
            buffer = behind;
            match self.records.open(record) {
                Ok(Opened::Data(data)) => {
                    pieces[count] = IoSlice::new(data);
                    count += 1;
                }
                Ok(Opened::Nothing) => {}
                Ok(Opened::UpdateRequested) => self.answer()?,
                Ok(Opened::Closed) => {
                    self.down.stage = Stage::Closing;
                    buffer = &mut [];
                    break Ok(());
                }
                Err(error) => break Err(error),
            }
        };
        self.give(cx, application, &pieces[..count])?;
        if let Err(error) = outcome {
            self.complain(cx, &error);
            return Err(Broken::From(broken(error)));
        }
        // Of an idle connection nothing is left.
        self.down.partial = if buffer.is_empty() { Vec::new() } else { buffer.to_vec() };
        Ok(())
    }

    fn give<A: Socket>(
        &mut self,
        cx: &mut Context<'_>,
        application: &mut A,
        pieces: &[IoSlice<'_>],
    ) -> Result<(), Broken> {
        self.moved.received += pieces.iter().map(|piece| piece.len() as u64).sum::<u64>();
        match self.down.kept.poll_send(cx, application, pieces) {
            Poll::Ready(Err(error)) => Err(Broken::To(error)),
            Poll::Ready(Ok(())) | Poll::Pending => Ok(()),
        }
    }

    /// Tells the peer what is wrong with what it sent, if it can be told at once.
    fn complain(&mut self, cx: &mut Context<'_>, error: &Error) {
        let Some(description) = records::alert_for(error) else { return };
        let mut out = Vec::new();
        if self.up.kept.is_empty() && self.records.alert(description, &mut out).is_ok() {
            let _ = Pin::new(&mut self.network).poll_write(cx, &out);
        }
    }
}
