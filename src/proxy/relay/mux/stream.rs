//! One stream of a multiplexed connection: the network side of one connection of an application's.

use std::{
    future::poll_fn,
    io,
    sync::Arc,
    task::{Context, Poll, ready},
};

use tokio::{io::AsyncWrite, net::TcpStream};

use super::{
    super::{
        super::{access::Moved, sockets::Underlying},
        Broken, Carrier, End, SLOTS, Stage,
        application::Application,
        places,
        socket::{Socket, portion},
    },
    Mux,
    frame::{MAX_DATA, PREFIX},
    state::{Answer, Gone},
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

    /// Waits for what the peer says to what we began.
    pub(in super::super::super) async fn answered(&self) -> Answer {
        poll_fn(|cx| self.mux.lock().opened(self.id, cx)).await
    }

    /// What the peer has taken.
    pub(in super::super::super) fn taken(self) -> MuxStream {
        MuxStream::new(self)
    }

    /// What the peer began is let in, and our application cannot be reached.
    pub(in super::super::super) fn unreached(self) {
        self.mux.lock().unreached(self.id);
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
    /// Bytes of the application's.
    sent: u64,
    slots: u8,
    up: Stage,
    down: Stage,
    /// Where our end lies among all that is written.
    position: u64,
}

fn lost(gone: Gone) -> Broken {
    Broken::To(gone.into())
}

impl MuxStream {
    fn new(begun: Begun) -> Self {
        Self { begun, sent: 0, slots: 1, up: Stage::Copying, down: Stage::Copying, position: 0 }
    }

    /// What comes is given to `application`.
    pub(in super::super) fn attach(&self, application: &Application) {
        self.begun.mux.lock().attach(self.begun.id, application.sink());
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
            let room = ready!(mux.lock().room(*id, quiet, cx)).map_err(lost)?;
            let most = portion(room.min(usize::from(self.slots) * MAX_DATA));
            let (mut places, count) = places(scratch, most, PREFIX);
            let Poll::Ready(length) = application.poll_scatter(cx, &mut places[..count]) else {
                mux.lock().pass();
                return Poll::Pending;
            };
            let length = length.map_err(Broken::From)?;
            let mut state = mux.lock();
            if length == 0 {
                self.position = state.end(*id).map_err(lost)?;
                self.up = Stage::Closing;
                return Poll::Ready(Ok(()));
            }
            self.sent += length as u64;
            if let Some(sealed) = state.seal(*id, scratch, length).map_err(lost)? {
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
            ready!(mux.lock().is_written(*id, self.position, cx)).map_err(lost)?;
            self.up = Stage::Done;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_down(&mut self, cx: &mut Context<'_>, application: &mut A, _: &mut [u8]) -> Poll<Result<(), Broken>> {
        let Begun { mux, id, .. } = &self.begun;
        if self.down == Stage::Copying {
            ready!(mux.lock().poll_drain(*id, cx, application))?;
            self.down = Stage::Closing;
        }
        if self.down == Stage::Closing {
            ready!(AsyncWrite::poll_shutdown(std::pin::Pin::new(application), cx)).map_err(Broken::To)?;
            self.down = Stage::Done;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_goodbye(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Begun { mux, id, .. } = &self.begun;
        let mut state = mux.lock();
        if self.up == Stage::Copying {
            self.position = state.end(*id)?;
            self.up = Stage::Closing;
        }
        state.is_written(*id, self.position, cx).map_err(io::Error::from)
    }

    fn ended(&mut self) -> bool {
        // Unless it is in order, leaving is a reset.
        self.begun.in_order = true;
        false
    }

    fn moved(&self) -> Moved {
        Moved { sent: self.sent, received: self.begun.mux.lock().received(self.begun.id) }
    }

    fn owes(&self) -> bool {
        self.begun.mux.lock().owes(self.begun.id)
    }

    fn last_words(&mut self, _: &mut Context<'_>, _: &mut [u8]) -> Option<io::Error> {
        None
    }

    fn end(&self, _: &io::Error) -> End {
        self.begun.mux.lock().failed().map_or(End::Reset, End::Refused)
    }
}
