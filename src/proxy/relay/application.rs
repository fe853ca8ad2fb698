//! The application's end of a connection. Beside the task that has it, what many connections share gives it what came.

use std::{
    fmt,
    io::{self, IoSlice, IoSliceMut},
    net::Shutdown,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use super::{
    super::sockets::Underlying,
    socket::{Socket, poll_scatter},
};

/// Takes bytes, but waits for nothing.
pub(super) trait Sink: fmt::Debug + Send + Sync {
    /// Takes of `pieces` what there is room for; answers how many bytes.
    fn take(&self, pieces: &[IoSlice<'_>]) -> io::Result<usize>;
}

impl Sink for TcpStream {
    fn take(&self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        match pieces {
            [one] => self.try_write(one),
            several => self.try_write_vectored(several),
        }
    }
}

/// The application's end.
#[derive(Debug)]
pub(in super::super) struct Application(Arc<TcpStream>);

impl From<TcpStream> for Application {
    fn from(socket: TcpStream) -> Self {
        Self(Arc::new(socket))
    }
}

impl Application {
    /// Where what came can be given to it at once.
    pub(super) fn sink(&self) -> Arc<dyn Sink> {
        self.0.clone()
    }
}

impl Underlying for Application {
    fn socket(&self) -> &TcpStream {
        &self.0
    }
}

impl Socket for Application {
    fn poll_scatter(&mut self, cx: &mut Context<'_>, places: &mut [IoSliceMut<'_>]) -> Poll<io::Result<usize>> {
        poll_scatter(&self.0, cx, places)
    }
}

impl AsyncRead for Application {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let place = IoSliceMut::new(into.initialize_unfilled());
        let length = ready!(poll_scatter(&self.0, cx, &mut [place]))?;
        into.advance(length);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Application {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.poll_write_ready(cx))?;
            match self.0.take(pieces) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => return Poll::Ready(written),
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        match SockRef::from(&*self.0).shutdown(Shutdown::Write) {
            // The other side has reset it: reading says so.
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Poll::Ready(Ok(())),
            outcome => Poll::Ready(outcome),
        }
    }
}
