//! The carrier over byte streams: what is not protected, and what rustls protects by itself.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{
    super::{access::Moved, sockets::Underlying, tls},
    Broken, Carrier, End, Stage,
    socket::{Kept, portion},
};

/// Whether the network side is TLS, where an end without `close_notify` is a truncation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wire {
    /// TLS.
    Tls,
    /// As the application wrote it.
    Plain,
}

/// A network side that is a byte stream.
#[derive(Debug)]
pub(super) struct Streams<N> {
    network: N,
    wire: Wire,
    up: Pipe,
    down: Pipe,
}

impl<N> Streams<N> {
    /// Over `network`.
    pub(super) fn new(network: N, wire: Wire) -> Self {
        Self { network, wire, up: Pipe::default(), down: Pipe::default() }
    }
}

impl<N: Underlying> Underlying for Streams<N> {
    fn socket(&self) -> &tokio::net::TcpStream {
        self.network.socket()
    }
}

impl<A, N> Carrier<A> for Streams<N>
where
    A: AsyncRead + AsyncWrite + Unpin,
    N: AsyncRead + AsyncWrite + Unpin,
{
    fn poll_up(&mut self, cx: &mut Context<'_>, application: &mut A, scratch: &mut [u8]) -> Poll<Result<(), Broken>> {
        self.up.poll(cx, application, &mut self.network, scratch)
    }

    fn poll_down(&mut self, cx: &mut Context<'_>, application: &mut A, scratch: &mut [u8]) -> Poll<Result<(), Broken>> {
        self.down.poll(cx, &mut self.network, application, scratch)
    }

    fn poll_goodbye(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.network).poll_shutdown(cx)
    }

    fn moved(&self) -> Moved {
        Moved { sent: self.up.bytes, received: self.down.bytes }
    }

    fn owes(&self) -> bool {
        !self.up.kept.is_empty() || !self.down.kept.is_empty()
    }

    fn last_words(&mut self, cx: &mut Context<'_>, _: &mut [u8]) -> Option<io::Error> {
        let mut byte = [0];
        match Pin::new(&mut self.network).poll_read(cx, &mut ReadBuf::new(&mut byte)) {
            Poll::Ready(Err(error)) => Some(error),
            Poll::Ready(Ok(())) | Poll::Pending => None,
        }
    }

    fn end(&self, error: &io::Error) -> End {
        match self.wire {
            Wire::Tls => End::Refused(tls::reason(error)),
            Wire::Plain => End::Reset,
        }
    }
}

/// One direction.
#[derive(Debug, Default)]
struct Pipe {
    kept: Kept,
    bytes: u64,
    stage: Stage,
    unflushed: bool,
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
                    ready!(self.kept.poll_drain(cx, to)).map_err(Broken::To)?;
                    let most = portion(scratch.len());
                    let mut into = ReadBuf::new(&mut scratch[..most]);
                    match Pin::new(&mut *from).poll_read(cx, &mut into) {
                        Poll::Pending => {
                            ready!(self.poll_flush(cx, to))?;
                            return Poll::Pending;
                        }
                        Poll::Ready(Err(error)) => return Poll::Ready(Err(Broken::From(error))),
                        Poll::Ready(Ok(())) if into.filled().is_empty() => self.stage = Stage::Closing,
                        Poll::Ready(Ok(())) => {
                            self.bytes += into.filled().len() as u64;
                            self.unflushed = true;
                            let pieces = [IoSlice::new(into.filled())];
                            ready!(self.kept.poll_send(cx, to, &pieces)).map_err(Broken::To)?;
                        }
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

    fn poll_flush<T: AsyncWrite + Unpin>(&mut self, cx: &mut Context<'_>, to: &mut T) -> Poll<Result<(), Broken>> {
        if self.unflushed {
            ready!(Pin::new(&mut *to).poll_flush(cx)).map_err(Broken::To)?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }
}
