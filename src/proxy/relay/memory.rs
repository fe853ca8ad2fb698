//! Streams in memory instead of sockets: for tests, and for counting what fixed work costs.

use std::{
    io::{self, IoSliceMut},
    pin::Pin,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, DuplexStream, ReadBuf};

use super::socket::Socket;

impl Socket for DuplexStream {
    fn poll_scatter(&mut self, cx: &mut Context<'_>, places: &mut [IoSliceMut<'_>]) -> Poll<io::Result<usize>> {
        let mut length = 0;
        for place in places {
            let mut into = ReadBuf::new(place);
            match Pin::new(&mut *self).poll_read(cx, &mut into) {
                Poll::Ready(Ok(())) => length += into.filled().len(),
                Poll::Pending if length > 0 => break,
                other => return other.map_ok(|()| length),
            }
            if into.remaining() > 0 {
                break;
            }
        }
        Poll::Ready(Ok(length))
    }
}

/// Relays between `application` and `tunnel` until both have closed; an error unless they did so in order.
#[cfg(feature = "gate")]
pub(in super::super) async fn carry(
    mut application: DuplexStream,
    mut tunnel: super::Tunnel<DuplexStream>,
) -> Result<(), anyhow::Error> {
    let (_kill, mut killed) = tokio::sync::oneshot::channel();
    let (_, end) = super::relay(&mut application, &mut tunnel, super::HALF_CLOSED, &mut killed).await;
    anyhow::ensure!(end == super::End::Closed, "a connection in memory ended as {end:?}");
    Ok(())
}
