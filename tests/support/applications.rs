//! Applications: what they do with a connection, and how many they were given.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::AbortHandle,
};

/// An application in the test.
#[derive(Clone)]
pub(crate) struct Application {
    pub(crate) address: SocketAddr,
    accepted: Arc<AtomicUsize>,
    ended: Arc<AtomicUsize>,
    listening: AbortHandle,
}

/// What an application does with a connection.
#[derive(Clone, Copy)]
pub(crate) enum Behaviour {
    /// Sends back what it reads, and closes when the caller does.
    Echo,
    /// Speaks first, then echoes.
    Greets,
    /// Reads to the end before it says how many bytes there were.
    Counts,
    /// Closes its own direction at once, then reads to the end and reports through the count of connections.
    ClosesFirst,
}

pub(crate) const GREETING: &[u8] = b"220 at your service\r\n";

impl Application {
    pub(crate) async fn start(address: IpAddr, behaviour: Behaviour) -> Self {
        Self::serve(TcpListener::bind((address, 0)).await.unwrap(), behaviour)
    }

    /// One that echoes at this very address.
    pub(crate) async fn at(address: SocketAddr) -> Self {
        Self::serve(TcpListener::bind(address).await.unwrap(), Behaviour::Echo)
    }

    fn serve(listener: TcpListener, behaviour: Behaviour) -> Self {
        let address = listener.local_addr().unwrap();
        let (accepted, ended) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let counts = (accepted.clone(), ended.clone());
        let listening = tokio::spawn(async move {
            let (accepted, ended) = counts;
            while let Ok((stream, _)) = listener.accept().await {
                accepted.fetch_add(1, Ordering::SeqCst);
                let ended = ended.clone();
                tokio::spawn(async move {
                    let _ = serve(stream, behaviour).await;
                    ended.fetch_add(1, Ordering::SeqCst);
                });
            }
        });
        Self { address, accepted, ended, listening: listening.abort_handle() }
    }

    /// Accepts nobody any more; who is there goes on.
    pub(crate) fn stop_listening(&self) {
        self.listening.abort();
    }

    /// Connections now.
    pub(crate) fn open(&self) -> usize {
        self.accepted() - self.ended.load(Ordering::SeqCst)
    }

    /// Connections so far.
    pub(crate) fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }
}

async fn serve(mut stream: TcpStream, behaviour: Behaviour) -> std::io::Result<()> {
    match behaviour {
        Behaviour::Echo => {}
        Behaviour::Greets => stream.write_all(GREETING).await?,
        Behaviour::Counts => {
            let mut all = vec![];
            stream.read_to_end(&mut all).await?;
            stream.write_all(all.len().to_string().as_bytes()).await?;
            return stream.shutdown().await;
        }
        Behaviour::ClosesFirst => stream.shutdown().await?,
    }
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let length = stream.read(&mut buffer).await?;
        if length == 0 {
            return stream.shutdown().await;
        }
        if !matches!(behaviour, Behaviour::ClosesFirst) {
            stream.write_all(&buffer[..length]).await?;
        }
    }
}
