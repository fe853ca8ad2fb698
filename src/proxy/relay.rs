//! The copy loop between application and network, over any byte streams, with TCP's ends kept as they are.
//!
//! An idle connection owns no buffer: bytes pass through one scratch buffer per thread, and only what a slow side
//! does not take is kept. The two directions are independent; a blocked one never stops the other.

use std::{
    cell::RefCell,
    future::{Future, poll_fn},
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    sync::oneshot,
    time::{Instant, Sleep, sleep},
};

use super::{
    access::{Moved, Record},
    registry::Place,
    sockets::{self, Underlying},
    tls,
};
use crate::refusal::Refusal;

/// Bytes moved at a time.
const SCRATCH: usize = 64 * 1024;
/// How long one direction may stay silent after the other was closed.
const HALF_CLOSED: Duration = Duration::from_secs(3600);
/// How long an orderly end may take when we end it ourselves.
const GOODBYE: Duration = Duration::from_millis(250);

thread_local! {
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; SCRATCH].into_boxed_slice());
}

/// How a connection came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// Both directions were closed in order.
    Closed,
    /// One side reset it; the reset is passed on.
    Reset,
    /// We ended it.
    Refused(Refusal),
    /// It was in order and a rule ended it.
    Cut(Refusal),
}

/// Whether the network side is TLS, where an end without `close_notify` is a truncation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wire {
    /// TLS.
    Tls,
    /// As the application wrote it.
    Plain,
}

/// Copies both ways until both directions ended, one side broke, or `killed` says why it must end.
pub(super) async fn relay<A, N>(
    application: &mut A,
    network: &mut N,
    wire: Wire,
    half_closed: Duration,
    killed: &mut oneshot::Receiver<Refusal>,
) -> (Moved, End)
where
    A: AsyncRead + AsyncWrite + Unpin,
    N: AsyncRead + AsyncWrite + Unpin,
{
    let mut pair = Pair { up: Pipe::default(), down: Pipe::default(), timer: None, half_closed };
    let end = tokio::select! {
        biased;
        Ok(reason) = killed => ended(reason),
        end = poll_fn(|cx| pair.poll(cx, application, network, wire)) => end,
    };
    let moved = Moved { sent: pair.up.bytes, received: pair.down.bytes };
    if end != End::Refused(Refusal::Drained) {
        return (moved, end);
    }
    (moved, if goodbye(application, network, &pair).await { End::Closed } else { end })
}

/// Relays over two sockets; unless both directions ended in order, both sides see a reset.
pub(super) async fn carry<N>(
    mut application: TcpStream,
    mut network: N,
    wire: Wire,
    mut place: Place,
    record: &mut Record,
) -> Result<(), Refusal>
where
    N: AsyncRead + AsyncWrite + Unpin + Underlying,
{
    let (count, end) = relay(&mut application, &mut network, wire, HALF_CLOSED, &mut place.killed).await;
    record.moved = count;
    match end {
        End::Closed => {
            sockets::end_cleanly(&application);
            sockets::end_cleanly(network.socket());
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
async fn goodbye<A, N>(application: &mut A, network: &mut N, pair: &Pair) -> bool
where
    A: AsyncWrite + Unpin,
    N: AsyncWrite + Unpin,
{
    use tokio::io::AsyncWriteExt;
    if !pair.up.kept.is_empty() || !pair.down.kept.is_empty() {
        return false;
    }
    let both = async { tokio::join!(network.shutdown(), application.shutdown()) };
    matches!(tokio::time::timeout(GOODBYE, both).await, Ok((Ok(()), Ok(()))))
}

struct Pair {
    up: Pipe,
    down: Pipe,
    timer: Option<Pin<Box<Sleep>>>,
    half_closed: Duration,
}

impl Pair {
    fn poll<A, N>(&mut self, cx: &mut Context<'_>, application: &mut A, network: &mut N, wire: Wire) -> Poll<End>
    where
        A: AsyncRead + AsyncWrite + Unpin,
        N: AsyncRead + AsyncWrite + Unpin,
    {
        let before = self.up.bytes + self.down.bytes;
        let (up, down) = BUFFER.with_borrow_mut(|scratch| {
            (self.up.poll(cx, application, network, scratch), self.down.poll(cx, network, application, scratch))
        });
        match (up, down) {
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => return Poll::Ready(End::Closed),
            (Poll::Ready(Err(Broken::From(_))), _) | (_, Poll::Ready(Err(Broken::To(_)))) => {
                return Poll::Ready(End::Reset);
            }
            (_, Poll::Ready(Err(Broken::From(error)))) => return Poll::Ready(network_end(&error, wire)),
            (Poll::Ready(Err(Broken::To(error))), _) => {
                // The alert that explains the broken pipe may wait behind it.
                let last = last_words(cx, network).unwrap_or(error);
                return Poll::Ready(network_end(&last, wire));
            }
            (Poll::Ready(Ok(())), Poll::Pending) | (Poll::Pending, Poll::Ready(Ok(()))) => {}
            (Poll::Pending, Poll::Pending) => return Poll::Pending,
        }
        let progress = self.up.bytes + self.down.bytes != before;
        self.poll_timer(cx, progress)
    }

    fn poll_timer(&mut self, cx: &mut Context<'_>, progress: bool) -> Poll<End> {
        let limit = self.half_closed;
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(limit)));
        if progress {
            timer.as_mut().reset(Instant::now() + limit);
        }
        timer.as_mut().poll(cx).map(|()| End::Refused(Refusal::HalfClosed))
    }
}

fn network_end(error: &io::Error, wire: Wire) -> End {
    match wire {
        Wire::Tls => End::Refused(tls::reason(error)),
        Wire::Plain => End::Reset,
    }
}

fn last_words(cx: &mut Context<'_>, network: &mut (impl AsyncRead + Unpin)) -> Option<io::Error> {
    let mut byte = [0];
    match Pin::new(network).poll_read(cx, &mut ReadBuf::new(&mut byte)) {
        Poll::Ready(Err(error)) => Some(error),
        Poll::Ready(Ok(())) | Poll::Pending => None,
    }
}

/// Which side of a pipe failed.
enum Broken {
    From(io::Error),
    To(io::Error),
}

/// One direction.
#[derive(Default)]
struct Pipe {
    kept: Vec<u8>,
    start: usize,
    bytes: u64,
    stage: Stage,
    unflushed: bool,
}

#[derive(Clone, Copy, Default)]
enum Stage {
    #[default]
    Copying,
    Closing,
    Done,
}

impl Pipe {
    fn poll<F, T>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut F,
        to: &mut T,
        scratch: &mut [u8],
    ) -> Poll<Result<(), Broken>>
    where
        F: AsyncRead + Unpin,
        T: AsyncWrite + Unpin,
    {
        loop {
            match self.stage {
                Stage::Copying => {
                    ready!(self.poll_kept(cx, to))?;
                    let mut into = ReadBuf::new(scratch);
                    match Pin::new(&mut *from).poll_read(cx, &mut into) {
                        Poll::Pending => {
                            ready!(self.poll_flush(cx, to))?;
                            return Poll::Pending;
                        }
                        Poll::Ready(Err(error)) => return Poll::Ready(Err(Broken::From(error))),
                        Poll::Ready(Ok(())) if into.filled().is_empty() => self.stage = Stage::Closing,
                        Poll::Ready(Ok(())) => ready!(self.poll_pass(cx, to, into.filled()))?,
                    }
                }
                Stage::Closing => {
                    ready!(Pin::new(&mut *to).poll_shutdown(cx)).map_err(Broken::To)?;
                    self.stage = Stage::Done;
                }
                Stage::Done => return Poll::Ready(Ok(())),
            }
        }
    }

    /// Writes `data`, and keeps what the other side does not take.
    fn poll_pass<T: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        to: &mut T,
        data: &[u8],
    ) -> Poll<Result<(), Broken>> {
        let mut done = 0;
        self.unflushed = true;
        while done < data.len() {
            match Pin::new(&mut *to).poll_write(cx, &data[done..]) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(Broken::To(io::ErrorKind::WriteZero.into()))),
                Poll::Ready(Ok(written)) => {
                    done += written;
                    self.bytes += written as u64;
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(Broken::To(error))),
                Poll::Pending => {
                    self.kept = data[done..].to_vec();
                    self.start = 0;
                    return Poll::Pending;
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_kept<T: AsyncWrite + Unpin>(&mut self, cx: &mut Context<'_>, to: &mut T) -> Poll<Result<(), Broken>> {
        while self.start < self.kept.len() {
            let written = ready!(Pin::new(&mut *to).poll_write(cx, &self.kept[self.start..])).map_err(Broken::To)?;
            if written == 0 {
                return Poll::Ready(Err(Broken::To(io::ErrorKind::WriteZero.into())));
            }
            self.start += written;
            self.bytes += written as u64;
        }
        self.kept = Vec::new();
        Poll::Ready(Ok(()))
    }

    fn poll_flush<T: AsyncWrite + Unpin>(&mut self, cx: &mut Context<'_>, to: &mut T) -> Poll<Result<(), Broken>> {
        if self.unflushed {
            ready!(Pin::new(&mut *to).poll_flush(cx)).map_err(Broken::To)?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    const LIMIT: Duration = Duration::from_secs(60);

    #[tokio::test(start_paused = true)]
    async fn a_half_closed_connection_ends_after_its_limit_of_silence_and_not_before() {
        let (mut application, mut near) = duplex(1024);
        let (mut peer, mut far) = duplex(1024);
        let (_kill, mut killed) = oneshot::channel();
        let relayed = relay(&mut near, &mut far, Wire::Plain, LIMIT, &mut killed);
        let script = async {
            application.shutdown().await.unwrap();
            for _ in 0..10 {
                sleep(LIMIT / 2).await;
                peer.write_all(b"still here").await.unwrap();
                application.read_exact(&mut [0; 10]).await.unwrap();
            }
            Instant::now()
        };
        let (relayed, last_word) = tokio::join!(async { (relayed.await, Instant::now()) }, script);
        let ((moved, end), ended) = relayed;
        assert_eq!(end, End::Refused(Refusal::HalfClosed));
        assert_eq!(moved.received, 100);
        let silence = ended - last_word;
        assert!(silence >= LIMIT && silence < LIMIT + Duration::from_secs(1), "{silence:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_blocked_direction_does_not_stop_the_other() {
        let (mut application, mut near) = duplex(1024);
        let (mut peer, mut far) = duplex(1024);
        let (_kill, mut killed) = oneshot::channel();
        let relayed = relay(&mut near, &mut far, Wire::Plain, LIMIT, &mut killed);
        let script = async {
            // The peer reads nothing, so this direction fills and blocks.
            let blocked = tokio::time::timeout(Duration::from_secs(1), application.write_all(&[1; 500_000])).await;
            assert!(blocked.is_err());
            peer.write_all(b"the other way").await.unwrap();
            let mut word = [0; 13];
            application.read_exact(&mut word).await.unwrap();
            assert_eq!(&word, b"the other way");
        };
        tokio::select! {
            end = relayed => panic!("{end:?}"),
            () = script => {}
        }
    }

    #[tokio::test]
    async fn a_kill_gives_its_reason_even_while_bytes_flow() {
        let (mut application, mut near) = duplex(1024);
        let (_peer, mut far) = duplex(1024);
        let (kill, mut killed) = oneshot::channel();
        application.write_all(b"bytes").await.unwrap();
        kill.send(Refusal::NotInTopology).unwrap();
        let (_, end) = relay(&mut near, &mut far, Wire::Tls, LIMIT, &mut killed).await;
        assert_eq!(end, End::Cut(Refusal::NotInTopology));
    }

    #[tokio::test]
    async fn bytes_arrive_whole_whatever_the_sizes_of_the_streams_buffers() {
        for (left, right) in [(1, 7), (100_000, 3), (64 * 1024, 64 * 1024), (5, 1_000_000)] {
            let (mut application, mut near) = duplex(left);
            let (mut peer, mut far) = duplex(right);
            let (_kill, mut killed) = oneshot::channel();
            let sent: Vec<u8> = (0..200_000_u32).map(|index| (index % 251) as u8).collect();
            let copy = sent.clone();
            let script = async {
                let write = async {
                    application.write_all(&copy).await.unwrap();
                    application.shutdown().await.unwrap();
                };
                let mut all = vec![];
                tokio::join!(write, async { peer.read_to_end(&mut all).await.unwrap() });
                peer.shutdown().await.unwrap();
                all
            };
            let relayed = relay(&mut near, &mut far, Wire::Plain, LIMIT, &mut killed);
            let ((moved, end), received) = tokio::join!(relayed, script);
            assert!(received == sent, "{left} {right}");
            assert_eq!((moved.sent, end), (200_000, End::Closed));
        }
    }
}
