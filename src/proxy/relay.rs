//! The copy loop between application and network, with TCP's ends kept as they are.
//!
//! An idle connection owns no buffer: bytes pass through one scratch buffer per thread, and only what a slow side
//! does not take is kept. The two directions are independent; a blocked one never stops the other. How bytes get from
//! one side to the other is a [`Carrier`]'s business: our own record layer's ([`tunnel`]), or any byte stream's
//! ([`streams`]), which is what rustls does by itself.

mod application;
#[cfg(any(test, feature = "fuzz", feature = "gate"))]
pub(super) mod memory;
mod mux;
mod socket;
mod streams;
mod tunnel;

use std::{
    cell::RefCell,
    future::{Future, poll_fn},
    io::{self, IoSliceMut},
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::AsyncWrite,
    net::TcpStream,
    sync::oneshot,
    time::{Instant, Sleep, sleep},
};

#[cfg(feature = "gate")]
pub(super) use self::mux::memory as mux_memory;
use self::{
    application::Application,
    streams::{Streams, Wire},
};
#[cfg(any(test, feature = "fuzz"))]
pub(super) use self::{mux::fuzz as mux_fuzz, tunnel::fuzz};
pub(super) use self::{
    mux::{Answer, Begun, Mux, MuxStream, Parts, Role},
    tunnel::Tunnel,
};
use super::{
    access::{Moved, Record},
    records::{HEADER, MAX_PLAINTEXT, STRIDE},
    registry::Place,
    sockets::{self, Underlying},
    tls::Stream,
};
use crate::refusal::Refusal;

/// Bytes moved at a time.
const SCRATCH: usize = 8 * STRIDE;
/// Full records that the thread's buffer holds.
const SLOTS: u8 = (SCRATCH / STRIDE) as u8;
/// Pieces of plaintext that are written together.
const PIECES: usize = 32;
/// How long one direction may stay silent after the other was closed.
const HALF_CLOSED: Duration = Duration::from_secs(3600);
/// How long an orderly end may take when we end it ourselves.
const GOODBYE: Duration = Duration::from_millis(250);

thread_local! {
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; SCRATCH].into_boxed_slice());
}

/// Where in `scratch` to read `most` bytes of plaintext that are to be sealed in place, each record's behind the room for
/// its header and for `prefix` more; and how many places these are.
#[inline]
fn places(scratch: &mut [u8], most: usize, prefix: usize) -> ([IoSliceMut<'_>; SLOTS as usize], usize) {
    let each = MAX_PLAINTEXT - prefix;
    let mut places = std::array::from_fn(|_| IoSliceMut::new(&mut []));
    let count = most.div_ceil(each);
    for (index, (place, chunk)) in places.iter_mut().zip(scratch.chunks_exact_mut(STRIDE)).take(count).enumerate() {
        *place = IoSliceMut::new(&mut chunk[HEADER + prefix..][..each.min(most - index * each)]);
    }
    (places, count)
}

/// How a connection came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Both directions were closed in order.
    Closed,
    /// One side reset it; the reset is passed on.
    Reset,
    /// We ended it.
    Refused(Refusal),
    /// It was in order and a rule ended it.
    Cut(Refusal),
}

/// How far one direction has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    #[default]
    Copying,
    Closing,
    Done,
}

/// Which side of a direction failed.
enum Broken {
    From(io::Error),
    To(io::Error),
}

/// The network side of a connection of an application `A`, and what moves bytes between the two.
trait Carrier<A> {
    /// Moves from application to network, a scratch-full at most; ready at its orderly end.
    fn poll_up(&mut self, cx: &mut Context<'_>, application: &mut A, scratch: &mut [u8]) -> Poll<Result<(), Broken>>;

    /// Moves from network to application, a scratch-full at most; ready at its orderly end.
    fn poll_down(&mut self, cx: &mut Context<'_>, application: &mut A, scratch: &mut [u8]) -> Poll<Result<(), Broken>>;

    /// Ends the network side in order.
    fn poll_goodbye(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// What was moved so far.
    fn moved(&self) -> Moved;

    /// Whether bytes are kept that a side did not take.
    fn owes(&self) -> bool;

    /// The error that may wait behind a pipe that broke.
    fn last_words(&mut self, cx: &mut Context<'_>, scratch: &mut [u8]) -> Option<io::Error>;

    /// Both directions ended in order. Answers whether the network side's socket is to end in order too: not where others
    /// go on by it.
    fn ended(&mut self) -> bool {
        true
    }

    /// What an error of the network's means.
    fn end(&self, error: &io::Error) -> End;
}

/// Copies both ways until both directions ended, one side broke, or `killed` says why it must end.
async fn relay<A, C>(
    application: &mut A,
    carrier: &mut C,
    half_closed: Duration,
    killed: &mut oneshot::Receiver<Refusal>,
) -> (Moved, End)
where
    A: AsyncWrite + Unpin,
    C: Carrier<A>,
{
    let mut pair = Pair::new(half_closed);
    let end = tokio::select! {
        biased;
        Ok(reason) = killed => ended(reason),
        end = poll_fn(|cx| pair.poll(cx, application, carrier)) => end,
    };
    let moved = carrier.moved();
    if end != End::Refused(Refusal::Drained) {
        return (moved, end);
    }
    (moved, if Box::pin(goodbye(application, carrier)).await { End::Closed } else { end })
}

/// Two ends that may talk with each other.
#[derive(Debug)]
pub(super) struct Joined {
    /// The application's end.
    pub(super) application: Application,
    /// The other one.
    pub(super) network: Network,
    /// Among the open connections.
    pub(super) place: Place,
}

/// The network side of a connection.
#[derive(Debug)]
pub(super) enum Network {
    /// TLS.
    Secured(Stream),
    /// A stream among others.
    Stream(Box<MuxStream>),
    /// As the application writes it.
    Plain(TcpStream),
}

/// Relays until both ends have ended, one broke or a rule ended it.
pub(super) async fn carry(mut joined: Box<Joined>, record: &mut Record) -> Result<(), Refusal> {
    // What waits for bytes is lent what it works with: a future that owned it would hold it more than once.
    let Joined { application, network, place } = &mut *joined;
    match network {
        Network::Secured(Stream::Own(tunnel)) => between(application, &mut **tunnel, place, record).await,
        Network::Stream(stream) => {
            stream.attach(application);
            between(application, &mut **stream, place, record).await
        }
        // Rare, and large beside the other.
        Network::Secured(Stream::Rustls(stream)) => {
            let mut carrier = Box::new(Streams::new(&mut **stream, Wire::Tls));
            Box::pin(between(application, &mut *carrier, place, record)).await
        }
        Network::Plain(network) => {
            let mut carrier = Box::new(Streams::new(network, Wire::Plain));
            Box::pin(between(application, &mut *carrier, place, record)).await
        }
    }
}

/// Relays over two sockets; unless both directions ended in order, both sides see a reset.
async fn between<C>(
    application: &mut Application,
    carrier: &mut C,
    place: &mut Place,
    record: &mut Record,
) -> Result<(), Refusal>
where
    C: Carrier<Application> + Underlying,
{
    let (count, end) = relay(application, carrier, HALF_CLOSED, &mut place.killed).await;
    record.moved = count;
    match end {
        End::Closed => {
            sockets::end_cleanly(application.socket());
            if carrier.ended() {
                sockets::end_cleanly(carrier.socket());
            }
            Ok(())
        }
        End::Reset => Ok(()),
        End::Refused(refusal) => Err(refusal),
        End::Cut(refusal) => {
            record.cut = true;
            Err(refusal)
        }
    }
}

fn ended(reason: Refusal) -> End {
    if reason == Refusal::Drained { End::Refused(reason) } else { End::Cut(reason) }
}

/// A drained connection that owes nobody a byte ends in order.
async fn goodbye<A, C>(application: &mut A, carrier: &mut C) -> bool
where
    A: AsyncWrite + Unpin,
    C: Carrier<A>,
{
    use tokio::io::AsyncWriteExt;
    if carrier.owes() {
        return false;
    }
    let both = async { tokio::join!(poll_fn(|cx| carrier.poll_goodbye(cx)), application.shutdown()) };
    matches!(tokio::time::timeout(GOODBYE, both).await, Ok((Ok(()), Ok(()))))
}

struct Pair {
    timer: Option<Pin<Box<Sleep>>>,
    half_closed: Duration,
    /// What had been moved when that was looked at last.
    seen: Moved,
}

impl Pair {
    fn new(half_closed: Duration) -> Self {
        Self { timer: None, half_closed, seen: Moved::default() }
    }

    fn poll<A, C: Carrier<A>>(&mut self, cx: &mut Context<'_>, application: &mut A, carrier: &mut C) -> Poll<End> {
        BUFFER.with_borrow_mut(|scratch| {
            // What came may have to be answered: so that goes first.
            let down = carrier.poll_down(cx, application, scratch);
            let up = carrier.poll_up(cx, application, scratch);
            match (up, down) {
                (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => return Poll::Ready(End::Closed),
                (Poll::Ready(Err(Broken::From(_))), _) | (_, Poll::Ready(Err(Broken::To(_)))) => {
                    return Poll::Ready(End::Reset);
                }
                (_, Poll::Ready(Err(Broken::From(error)))) => return Poll::Ready(carrier.end(&error)),
                (Poll::Ready(Err(Broken::To(error))), _) => {
                    // The alert that explains the broken pipe may wait behind it.
                    let last = carrier.last_words(cx, scratch).unwrap_or(error);
                    return Poll::Ready(carrier.end(&last));
                }
                (Poll::Ready(Ok(())), Poll::Pending) | (Poll::Pending, Poll::Ready(Ok(()))) => {}
                (Poll::Pending, Poll::Pending) => return Poll::Pending,
            }
            self.poll_timer(cx, carrier.moved())
        })
    }

    fn poll_timer(&mut self, cx: &mut Context<'_>, moved: Moved) -> Poll<End> {
        let limit = self.half_closed;
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(limit)));
        // What came may have been given to the application without this: it is seen here at the latest.
        if std::mem::replace(&mut self.seen, moved) != moved {
            timer.as_mut().reset(Instant::now() + limit);
        }
        timer.as_mut().poll(cx).map(|()| End::Refused(Refusal::HalfClosed))
    }
}

#[cfg(test)]
mod tests;
