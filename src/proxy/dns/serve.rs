//! The guard's listeners: bounded in questions under way, in connections, and in time.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    net::{TcpListener, TcpStream, UdpSocket},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use super::{
    answer::answer,
    upstream::{read_framed, write_framed},
};
use crate::{
    brief::Direction,
    proxy::{shared::Shared, sockets},
    refusal::{LimitDetail, Refusal},
};

/// Questions under way; each holds a descriptor.
const MOST_QUESTIONS: usize = 256;
/// Connections; each serves one question at a time.
const MOST_CONNECTIONS: usize = 32;
/// How long a connection may be silent.
const IDLE: Duration = Duration::from_secs(10);
/// How long the application may take to take its answer.
const WRITE: Duration = Duration::from_secs(5);
/// Pause after a failure that does not pass by itself.
const PAUSE: Duration = Duration::from_millis(100);
/// The longest datagram there is.
const DATAGRAM: usize = 65_535;

/// What is held for the guard.
#[derive(Debug, Default)]
pub(in crate::proxy) struct Listeners {
    datagrams: Vec<std::net::UdpSocket>,
    streams: Vec<std::net::TcpListener>,
}

impl Listeners {
    /// Takes `addresses`, each over UDP and over TCP.
    pub(in crate::proxy) fn bind(addresses: &[SocketAddr]) -> io::Result<Self> {
        let streams = sockets::listen_all(addresses)?;
        // The same port of both, also where any will do.
        let taken: Vec<SocketAddr> = streams.iter().filter_map(|stream| stream.local_addr().ok()).collect();
        Ok(Self { datagrams: sockets::bind_all(&taken)?, streams })
    }

    /// Where they are.
    pub(in crate::proxy) fn addresses(&self) -> Vec<SocketAddr> {
        self.streams.iter().filter_map(|stream| stream.local_addr().ok()).collect()
    }

    /// Serves for ever.
    pub(in crate::proxy) async fn serve(self, shared: Arc<Shared>) -> io::Result<()> {
        let (questions, connections) =
            (Arc::new(Semaphore::new(MOST_QUESTIONS)), Arc::new(Semaphore::new(MOST_CONNECTIONS)));
        // What ends this function ends the tasks.
        let mut tasks = tokio::task::JoinSet::new();
        for socket in self.datagrams {
            let socket = Arc::new(UdpSocket::from_std(socket)?);
            tasks.spawn(datagrams(shared.clone(), socket, questions.clone()));
        }
        for listener in self.streams {
            let listener = TcpListener::from_std(listener)?;
            tasks.spawn(streams(shared.clone(), listener, questions.clone(), connections.clone()));
        }
        while tasks.join_next().await.is_some() {}
        Ok(())
    }
}

fn place(shared: &Shared, places: &Arc<Semaphore>) -> Option<OwnedSemaphorePermit> {
    let place = places.clone().try_acquire_owned().ok();
    if place.is_none() {
        shared.metrics.refused(Direction::Outbound, Refusal::Limit(LimitDetail::Pending));
    }
    place
}

async fn datagrams(shared: Arc<Shared>, socket: Arc<UdpSocket>, questions: Arc<Semaphore>) {
    let mut buffer = vec![0; DATAGRAM];
    let mut tasks = tokio::task::JoinSet::new();
    loop {
        while tasks.try_join_next().is_some() {}
        let (length, from) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                tracing::warn!(%error, "cannot receive questions");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let Some(place) = place(&shared, &questions) else { continue };
        let (shared, socket, message) = (shared.clone(), socket.clone(), buffer[..length].to_vec());
        tasks.spawn(async move {
            if let Some(told) = answer(&shared, &message, from).await.and_then(|reply| reply.datagram())
                && let Err(error) = socket.send_to(&told, from).await
            {
                tracing::debug!(%error, "an answer was lost");
            }
            drop(place);
        });
    }
}

async fn streams(shared: Arc<Shared>, listener: TcpListener, questions: Arc<Semaphore>, connections: Arc<Semaphore>) {
    let mut tasks = tokio::task::JoinSet::new();
    loop {
        while tasks.try_join_next().is_some() {}
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) if sockets::is_exhausted(&error) => {
                tracing::warn!(%error, "cannot accept questions");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
            Err(_) => continue,
        };
        let Some(place) = place(&shared, &connections) else { continue };
        let (shared, questions) = (shared.clone(), questions.clone());
        tasks.spawn(async move {
            if let Err(error) = converse(&shared, stream, from, &questions).await {
                tracing::debug!(%error, "a connection with questions broke");
            }
            drop(place);
        });
    }
}

/// Answers one question after the other until the application has no more.
async fn converse(
    shared: &Arc<Shared>,
    mut stream: TcpStream,
    from: SocketAddr,
    questions: &Arc<Semaphore>,
) -> io::Result<()> {
    loop {
        let message = timeout(IDLE, read_framed(&mut stream)).await??;
        let Some(_place) = place(shared, questions) else { return Ok(()) };
        let Some(reply) = answer(shared, &message, from).await else { return Ok(()) };
        timeout(WRITE, write_framed(&mut stream, &reply.message)).await??;
    }
}
