//! Many connections at a time on one between two sidecars of ours: each is a stream with a window of its own, judged,
//! cut and ended by itself.
//!
//! What several streams say within one turn of the thread goes out in one write, and what came for several is read in
//! one: where many talk at a time, a third of all segments and system calls, and the switches between them, are gone.
//! The thread that made it has all of it: socket, streams and their applications.

mod entry;
mod frame;
#[cfg(any(test, feature = "fuzz"))]
pub(in super::super) mod fuzz;
#[cfg(feature = "gate")]
pub(in super::super) mod memory;
mod state;
mod stream;
mod window;

use std::{
    future::poll_fn,
    io::{self, IoSliceMut},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use rustls::AlertDescription;
use tokio::{
    net::TcpStream,
    sync::oneshot,
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use self::state::{Outlook, State};
pub(in super::super) use self::{
    state::{Answer, Role},
    stream::{Begun, MuxStream},
};
use super::{
    super::{
        records::{self, Records},
        registry::Place,
        sockets, tls,
    },
    BUFFER, GOODBYE,
    socket::poll_scatter,
    tunnel::broken,
};
use crate::refusal::Refusal;

/// How long a stream that sends nothing keeps what its window has grown by; twice as long at most.
const QUIET: Duration = Duration::from_secs(10);

/// What an unsent byte of one stream may have to wait behind.
const UNSENT: u32 = 128 << 10;

/// What one is made of, handshake done.
#[derive(Debug)]
pub(in super::super) struct Parts {
    /// The socket.
    pub(in super::super) network: TcpStream,
    /// What protects it.
    pub(in super::super) records: Records,
    /// What of the handshake is still to be sent, and what came behind it.
    pub(in super::super) left: (Vec<u8>, Vec<u8>),
}

/// A multiplexed connection.
#[derive(Debug)]
pub(in super::super) struct Mux {
    network: TcpStream,
    state: Mutex<State>,
    /// Of the handshake: what its streams rest on.
    pub(in super::super) place: Place,
}

/// What ends it.
#[derive(Debug)]
pub(in super::super) struct Life {
    killed: oneshot::Receiver<Refusal>,
    /// How long it may be without a stream.
    rest: Duration,
}

/// What the pump has come upon.
enum Event {
    /// There is something else to look out for.
    Changed,
    /// It has ended.
    Over,
}

impl Mux {
    /// From what a handshake made, on the thread that will have it.
    pub(in super::super) fn new(
        role: Role,
        Parts { network, records, left }: Parts,
        mut place: Place,
        rest: Duration,
    ) -> (Arc<Self>, Life) {
        // A kernel that cannot lets bytes of one stream wait behind more of another's.
        let _ = socket2::SockRef::from(&network).set_tcp_notsent_lowat(UNSENT);
        // The place itself is shared by all streams.
        let killed = std::mem::replace(&mut place.killed, oneshot::channel().1);
        let state = Mutex::new(State::new(role, records, left));
        (Arc::new(Self { network, state, place }), Life { killed, rest })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether another stream may begin.
    pub(in super::super) fn has_room(&self) -> bool {
        self.lock().has_room()
    }

    /// Begins a stream; it is there once the peer has taken it.
    pub(in super::super) fn begin(self: &Arc<Self>) -> Option<Begun> {
        let id = self.lock().open()?;
        Some(Begun::new(self.clone(), id))
    }

    /// Moves bytes until it has ended, and hands what the peer begins to `begun`.
    pub(in super::super) async fn run(
        self: &Arc<Self>,
        mut life: Life,
        draining: &CancellationToken,
        mut begun: impl FnMut(Begun),
    ) {
        let mut first = self.lock().first();
        if !matches!(self.receive(&mut first), Ok(true)) {
            return self.lock().fail(Refusal::Truncated);
        }
        drop(first);
        let (mut alone_since, mut lent_since) = (Instant::now(), Instant::now());
        let mut ends = false;
        loop {
            let outlook = self.lock().outlook();
            if ends && outlook.alone {
                break;
            }
            tokio::select! {
                biased;
                // The streams are told by themselves, and some may still say goodbye.
                _ = &mut life.killed, if !ends => ends = true,
                () = draining.cancelled(), if !ends => ends = true,
                event = poll_fn(|cx| self.poll(cx, outlook, &mut begun)) => match event {
                    Event::Over => return,
                    Event::Changed => {
                        let now = Instant::now();
                        alone_since = if outlook.alone { alone_since } else { now };
                        lent_since = if outlook.lent { lent_since } else { now };
                    }
                },
                () = sleep_until(alone_since + life.rest), if outlook.alone => break,
                () = sleep_until(lent_since + QUIET), if outlook.lent => {
                    self.lock().give_back();
                    lent_since = Instant::now();
                }
            }
            if ends {
                self.lock().close();
            }
        }
        self.goodbye().await;
    }

    fn poll(self: &Arc<Self>, cx: &mut Context<'_>, outlook: Outlook, begun: &mut impl FnMut(Begun)) -> Poll<Event> {
        self.lock().pump(None);
        let read = self.poll_read(cx);
        let new = {
            let mut state = self.lock();
            state.pump(Some(cx.waker().clone()));
            state.begun()
        };
        new.into_iter().for_each(|id| begun(Begun::new(self.clone(), id)));
        let outcome = match (read, self.poll_write(cx)) {
            (Poll::Ready(Err(error)), _) | (_, Err(error)) => Err(tls::reason(&error)),
            // The peer says no more: what is under way is cut off.
            (Poll::Ready(Ok(())), Ok(())) => Err(Refusal::Truncated),
            (Poll::Pending, Ok(())) => Ok(()),
        };
        let mut state = self.lock();
        if let Err(reason) = outcome {
            state.fail(reason);
            return Poll::Ready(Event::Over);
        }
        if state.failed().is_some() {
            return Poll::Ready(Event::Over);
        }
        if state.outlook() == outlook { Poll::Pending } else { Poll::Ready(Event::Changed) }
    }

    /// Reads as long as there is something, a scratch-full at most; ready at the end.
    fn poll_read(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        BUFFER.with_borrow_mut(|scratch| {
            loop {
                let behind = self.lock().behind(scratch);
                let room = scratch.len() - behind;
                let length = ready!(poll_scatter(&self.network, cx, &mut [IoSliceMut::new(&mut scratch[behind..])]))?;
                if length == 0 {
                    // An end without close_notify: somebody cut the wire.
                    return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
                }
                if !self.receive(&mut scratch[..behind + length])? {
                    return Poll::Ready(Ok(()));
                }
                if length == room {
                    // The streams have their turn.
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
            }
        })
    }

    /// Reads records; answers whether the peer goes on.
    fn receive(&self, bytes: &mut [u8]) -> io::Result<bool> {
        let mut state = self.lock();
        state.receive(bytes).map_err(|error| {
            if let Some(description) = records::alert_for(&error) {
                state.alert(description);
            }
            broken(error)
        })
    }

    /// Writes what waits, as far as the socket takes it.
    fn poll_write(&self, cx: &mut Context<'_>) -> io::Result<()> {
        let mut state = self.lock();
        while !state.unwritten().is_empty() {
            match self.network.try_write(state.unwritten()) {
                Ok(length) => state.wrote(length),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => match self.network.poll_write_ready(cx) {
                    Poll::Pending => return Ok(()),
                    Poll::Ready(ready) => ready?,
                },
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Ends in order: no stream is left.
    async fn goodbye(&self) {
        let said = async {
            {
                let mut state = self.lock();
                state.close();
                state.alert(AlertDescription::CloseNotify);
            }
            poll_fn(|cx| match self.poll_write(cx) {
                Ok(()) if !self.lock().unwritten().is_empty() => Poll::Pending,
                other => Poll::Ready(other),
            })
            .await
        };
        if matches!(timeout(GOODBYE, said).await, Ok(Ok(()))) {
            sockets::end_cleanly(&self.network);
        }
    }
}

#[cfg(test)]
mod tests;
