//! Between two connections on one session: it rests, and the next one is begun and accepted by marks.
//!
//! Nothing of an application's is sent before the peer has accepted: a session that ended meanwhile costs no byte, and
//! whoever began comes again by a handshake.

use std::io;

use rustls::{AlertDescription, ContentType};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{
    super::{
        records::{self, Opened, Records},
        registry::Place,
    },
    Tunnel,
    socket::Socket,
    tunnel::broken,
};

/// What is read of a mark at a time.
const READ: usize = 128;

/// A session on which nothing is under way.
#[derive(Debug)]
pub(in super::super) struct Resting {
    /// The session.
    pub(in super::super) tunnel: Box<Tunnel<TcpStream>>,
    /// Of the connection that was the last one on it: what that rests on must go on to hold.
    pub(in super::super) place: Place,
}

impl<S: Socket> Tunnel<S> {
    /// Says that a connection begins, or that it is accepted.
    pub(in super::super) async fn mark(&mut self) -> io::Result<()> {
        self.send(Records::mark).await
    }

    /// Sends what `seal` makes.
    async fn send(
        &mut self,
        seal: impl FnOnce(&mut Records, &mut Vec<u8>) -> Result<(), rustls::Error>,
    ) -> io::Result<()> {
        let mut out = Vec::new();
        seal(&mut self.records, &mut out).map_err(broken)?;
        self.network.write_all(&out).await
    }

    /// Waits until the peer says it. Anything else is an error, the end of the session included.
    pub(in super::super) async fn marked(&mut self) -> io::Result<()> {
        loop {
            if let Some(length) = records::whole(&self.down.partial).map_err(broken)? {
                let mut record: Vec<u8> = self.down.partial.drain(..length).collect();
                match self.records.open(&mut record).map_err(broken)? {
                    Opened::Mark => {
                        self.records.marked();
                        self.down.partial.shrink_to_fit();
                        self.restart();
                        return Ok(());
                    }
                    Opened::Nothing => {}
                    Opened::UpdateRequested => self.send(Records::update).await?,
                    Opened::Data(_) | Opened::Closed => return Err(io::ErrorKind::UnexpectedEof.into()),
                }
                continue;
            }
            let mut bytes = [0; READ];
            match self.network.read(&mut bytes).await? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                length => self.down.partial.extend_from_slice(&bytes[..length]),
            }
        }
    }

    /// Says `word` and the end of our direction, and waits until the peer has ended its own.
    pub(in super::super) async fn say_last(&mut self, word: &[u8]) -> io::Result<()> {
        self.send(|records, out| {
            records.say(ContentType::ApplicationData, word, out)?;
            records.alert(AlertDescription::CloseNotify, out)
        })
        .await?;
        self.network.shutdown().await?;
        self.network.read(&mut [0; 64]).await.map(drop)
    }
}
