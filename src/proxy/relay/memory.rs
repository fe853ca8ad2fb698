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
        let mut into = ReadBuf::new(&mut places[0]);
        let read = Pin::new(self).poll_read(cx, &mut into);
        read.map_ok(|()| into.filled().len())
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
