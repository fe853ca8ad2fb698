//! One stream of a multiplexed connection: the network side of one connection of an application's.

use std::{
    future::poll_fn,
    io::{self, IoSlice},
    sync::Arc,
    task::{Context, Poll, ready},
};

use tokio::{io::AsyncWrite, net::TcpStream};

use super::{
    super::{
        super::{access::Moved, sockets::Underlying},
        Broken, Carrier, End, SLOTS, Stage, places,
        socket::{Kept, Socket, portion},
    },
    Mux,
    frame::{MAX_DATA, PREFIX},
    state::{Gone, Taken},
};

/// A stream that was begun, and not accepted yet; left when dropped.
#[derive(Debug)]
pub(in super::super::super) struct Begun {
    mux: Arc<Mux>,
    id: u32,
    in_order: bool,
}

impl Drop for Begun {
    fn drop(&mut self) {
        self.mux.lock().leave(self.id, self.in_order);
    }
}

impl Begun {
    pub(super) fn new(mux: Arc<Mux>, id: u32) -> Self {
        Self { mux, id, in_order: false }
    }

    /// The connection that it is on.
    pub(in super::super::super) fn mux(&self) -> &Arc<Mux> {
        &self.mux
    }

    /// Waits until the peer has taken what we began; `None` = it has not.
    pub(in super::super::super) async fn accepted(self) -> Option<MuxStream> {
        poll_fn(|cx| self.mux.lock().opened(self.id, cx)).await.then(|| MuxStream::new(self))
    }

    /// Takes what the peer began; `None` = it is gone.
    pub(in super::super::super) fn accept(self) -> Option<MuxStream> {
        let taken = self.mux.lock().accept(self.id);
        taken.is_ok().then(|| MuxStream::new(self))
    }
}

/// A stream.
#[derive(Debug)]
pub(in super::super::super) struct MuxStream {
    begun: Begun,
    /// Of what came, what the application has not taken.
    kept: Kept,
    /// How much that was.
    lagging: usize,
    moved: Moved,
    slots: u8,
    up: Stage,
    down: Stage,
    /// Where our end lies among all that is written.
    position: u64,
}

fn gone(_: Gone) -> io::Error {
    io::ErrorKind::ConnectionReset.into()
}

impl MuxStream {
    fn new(begun: Begun) -> Self {
        Self {
            begun,
            kept: Kept::default(),
            lagging: 0,
            moved: Moved::default(),
            slots: 1,
            up: Stage::Copying,
            down: Stage::Copying,
            position: 0,
        }
    }

    fn poll_fetch<A: Socket>(
        &mut self,
        cx: &mut Context<'_>,
        application: &mut A,
        scratch: &mut [u8],
    ) -> Poll<Result<(), Broken>> {
        let Begun { mux, id, .. } = &self.begun;
        loop {
            let quiet = self.slots == 1;
            let room = ready!(mux.lock().room(*id, quiet, cx)).map_err(|lost| Broken::To(gone(lost)))?;
            let most = portion(room.min(usize::from(self.slots) * MAX_DATA));
            let (mut places, count) = places(scratch, most, PREFIX);
            let Poll::Ready(length) = application.poll_scatter(cx, &mut places[..count]) else {
                mux.lock().pass();
                return Poll::Pending;
            };
            let length = length.map_err(Broken::From)?;
            let mut state = mux.lock();
            if length == 0 {
                self.position = state.end(*id).map_err(|lost| Broken::To(gone(lost)))?;
                self.up = Stage::Closing;
                return Poll::Ready(Ok(()));
            }
            self.moved.sent += length as u64;
            if let Some(sealed) = state.seal(*id, scratch, length).map_err(|lost| Broken::To(gone(lost)))? {
                // Whoever pumps comes upon an error too, and says what it means.
                let taken = mux.network.try_write(sealed).unwrap_or_default();
                state.wrote_past(&sealed[taken..]);
            }
            if length == most {
                self.slots = (self.slots * 2).min(SLOTS);
                // The other connections of this thread have their turn.
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            self.slots = (self.slots / 2).max(1);
        }
    }
}

impl Underlying for MuxStream {
    fn socket(&self) -> &TcpStream {
        &self.begun.mux.network
    }
}

impl<A: Socket> Carrier<A> for MuxStream {
    fn poll_up(&mut self, cx: &mut Context<'_>, application: &mut A, scratch: &mut [u8]) -> Poll<Result<(), Broken>> {
        if self.up == Stage::Copying {
            ready!(self.poll_fetch(cx, application, scratch))?;
        }
        if self.up == Stage::Closing {
            let Begun { mux, id, .. } = &self.begun;
            ready!(mux.lock().is_written(*id, self.position, cx)).map_err(|lost| Broken::To(gone(lost)))?;
            self.up = Stage::Done;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_down(&mut self, cx: &mut Context<'_>, application: &mut A, _: &mut [u8]) -> Poll<Result<(), Broken>> {
        loop {
            match self.down {
                Stage::Copying => {
                    ready!(self.kept.poll_drain(cx, application)).map_err(Broken::To)?;
                    let Begun { mux, id, .. } = &self.begun;
                    let taken = {
                        let mut state = mux.lock();
                        match std::mem::take(&mut self.lagging) {
                            0 => {}
                            length => state.took(*id, length, false),
                        }
                        ready!(state.take(*id, cx)).map_err(|lost| Broken::From(gone(lost)))?
                    };
                    match taken {
                        Taken::End => self.down = Stage::Closing,
                        Taken::Data(data) => {
                            self.moved.received += data.len() as u64;
                            match self.kept.poll_send(cx, application, &[IoSlice::new(&data)]) {
                                Poll::Ready(sent) => {
                                    sent.map_err(Broken::To)?;
                                    mux.lock().took(*id, data.len(), true);
                                }
                                Poll::Pending => self.lagging = data.len(),
                            }
                        }
                    }
                }
                Stage::Closing => {
                    ready!(AsyncWrite::poll_shutdown(std::pin::Pin::new(&mut *application), cx)).map_err(Broken::To)?;
                    self.down = Stage::Done;
                }
                Stage::Done => return Poll::Ready(Ok(())),
            }
        }
    }

    fn poll_goodbye(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Begun { mux, id, .. } = &self.begun;
        let mut state = mux.lock();
        if self.up == Stage::Copying {
            self.position = state.end(*id).map_err(gone)?;
            self.up = Stage::Closing;
        }
        state.is_written(*id, self.position, cx).map_err(gone)
    }

    fn ended(&mut self) -> bool {
        // Unless it is in order, leaving is a reset.
        self.begun.in_order = true;
        false
    }

    fn moved(&self) -> Moved {
        self.moved
    }

    fn owes(&self) -> bool {
        !self.kept.is_empty()
    }

    fn last_words(&mut self, _: &mut Context<'_>, _: &mut [u8]) -> Option<io::Error> {
        None
    }

    fn end(&self, _: &io::Error) -> End {
        self.begun.mux.lock().failed().map_or(End::Reset, End::Refused)
    }
}
