//! What a peer must prove before anything of it is timed: it carries bytes both ways, and keeps out whom it must.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, ensure};
use entente::sidecar;
use rustls::{ClientConfig, ServerConfig, version::TLS13};
use rustls_pki_types::ServerName;
use sha2::{Digest, Sha256};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::AbortHandle,
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::{
    network::{self, SERVED, SERVER},
    pair::Laboratory,
    peer::{Peer, Role},
    support::{domain::Certified, wire},
    trust,
};

/// How long one check may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// So long an answer is waited for that must not come.
const SILENCE: Duration = Duration::from_secs(2);
/// What a check carries.
const BYTES: usize = 4 << 20;

/// One check and what came of it.
#[derive(Debug)]
pub(crate) struct Check {
    pub(crate) name: &'static str,
    pub(crate) result: Result<(), String>,
}

/// Every check of a peer. The first ones need A and B, the last ones A alone.
pub(crate) async fn pass(laboratory: &Laboratory, peer: Peer) -> anyhow::Result<Vec<Check>> {
    let mut checks = vec![];
    let mut note = |name, result: anyhow::Result<()>| {
        checks.push(Check { name, result: result.map_err(|error| format!("{error:#}")) });
    };
    let domain = &laboratory.control.domain;
    let mut pair = laboratory.pair(peer).await?;
    let application = Application::start()?;
    note("echo and the client's half-close", within(echo()).await);
    note("the server's half-close", within(application.closes_first()).await);
    if peer != Peer::Direct {
        let good = trust::certificate(domain, "client");
        let named = domain.id("server").topology_name().context("a server without a topology name")?;
        let called = |certified| calls(&application, named.as_str(), certified);
        note("B serves a good client", called(Some(good)).await.and_then(must_pass));
        note("B refuses a client without a certificate", called(None).await.and_then(must_not));
        let wrong = trust::certificate(domain, "other");
        note("B refuses a wrong name", called(Some(wrong)).await.and_then(must_not));
        let revoked = laboratory.revocations.revoked(domain, "client");
        note("B refuses a revoked client", called(Some(revoked)).await.and_then(must_not));
    }
    if let Some(pair) = pair.take() {
        pair.end().await;
        let a = laboratory.start(peer, Role::A).await?;
        let good = trust::certificate(domain, "server");
        note("A calls a good server", answers(good).await.and_then(must_pass));
        let wrong = trust::certificate(domain, "other");
        note("A refuses a wrong name", answers(wrong).await.and_then(must_not));
        let revoked = laboratory.revocations.revoked(domain, "server");
        note("A refuses a revoked server", answers(revoked).await.and_then(must_not));
        a.end().await;
    }
    Ok(checks)
}

fn must_pass(passed: bool) -> anyhow::Result<()> {
    ensure!(passed, "nothing came through");
    Ok(())
}

fn must_not(passed: bool) -> anyhow::Result<()> {
    ensure!(!passed, "bytes came through");
    Ok(())
}

async fn within(check: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    timeout(PATIENCE, check).await.context("nothing for ten seconds")?
}

/// Sends bytes, ends its own direction, and expects them all back.
async fn echo() -> anyhow::Result<()> {
    let (mut from, mut to) = network::dial(0)?.into_split();
    let sent = pattern();
    let expected = Sha256::digest(&sent);
    let sending = tokio::spawn(async move {
        to.write_all(&sent).await?;
        to.shutdown().await
    });
    let mut received = vec![];
    from.read_to_end(&mut received).await.context("reading")?;
    sending.await?.context("sending")?;
    ensure!(received.len() == BYTES, "{} bytes of {BYTES} came back", received.len());
    ensure!(Sha256::digest(&received) == expected, "other bytes came back");
    Ok(())
}

/// Bytes without a period that a buffer could hide.
fn pattern() -> Vec<u8> {
    let mut state: u32 = 1;
    std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    })
    .take(BYTES)
    .collect()
}

/// What listens where the server will: it echoes, or ends its own direction first and reads on.
struct Application {
    received: Arc<AtomicUsize>,
    closes_first: Arc<AtomicBool>,
    serving: AbortHandle,
}

impl Drop for Application {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Application {
    fn start() -> anyhow::Result<Self> {
        let listener = network::listen(SERVER, SERVED)?;
        let (received, closes_first) = (Arc::<AtomicUsize>::default(), Arc::<AtomicBool>::default());
        let (counter, flag) = (received.clone(), closes_first.clone());
        let serving = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(converse(stream, flag.load(Ordering::SeqCst), counter.clone()));
            }
        });
        Ok(Self { received, closes_first, serving: serving.abort_handle() })
    }

    /// The server ends its direction at once; what the client sends after that must all arrive.
    async fn closes_first(&self) -> anyhow::Result<()> {
        let before = self.received.load(Ordering::SeqCst);
        self.closes_first.store(true, Ordering::SeqCst);
        let (mut from, mut to) = network::dial(0)?.into_split();
        let mut rest = vec![];
        from.read_to_end(&mut rest).await.context("reading")?;
        ensure!(rest.is_empty(), "bytes that nobody sent");
        to.write_all(&pattern()).await.context("sending after the server's end")?;
        to.shutdown().await?;
        while self.received.load(Ordering::SeqCst) - before < BYTES {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.closes_first.store(false, Ordering::SeqCst);
        Ok(())
    }
}

async fn converse(mut stream: impl AsyncRead + AsyncWrite + Unpin, closes_first: bool, received: Arc<AtomicUsize>) {
    if closes_first && stream.shutdown().await.is_err() {
        return;
    }
    let mut buffer = vec![0; 1 << 16];
    while let Ok(length @ 1..) = stream.read(&mut buffer).await {
        received.fetch_add(length, Ordering::SeqCst);
        if !closes_first && stream.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
    let _ = stream.shutdown().await;
}

/// Calls B as if a proxy did; whether a byte reached the application.
async fn calls(application: &Application, named: &str, certified: Option<Certified>) -> anyhow::Result<bool> {
    application.closes_first.store(false, Ordering::SeqCst);
    let before = application.received.load(Ordering::SeqCst);
    let stream = network::dial(sidecar::UID)?;
    let answered = timeout(SILENCE, talk(stream, named, wire::client(certified))).await;
    let served = matches!(answered, Ok(Ok(())));
    Ok(served || application.received.load(Ordering::SeqCst) > before)
}

/// In TLS 1.3 the client is done before the server has judged it: only an answer shows that it was let in.
async fn talk(stream: TcpStream, named: &str, config: ClientConfig) -> std::io::Result<()> {
    let name = ServerName::try_from(named.to_owned()).map_err(std::io::Error::other)?;
    let mut stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
    stream.write_all(b"hello").await?;
    stream.read_exact(&mut [0; 5]).await.map(drop)
}

/// Stands where B would, with this certificate; whether a byte of the client's reached it.
async fn answers(certified: Certified) -> anyhow::Result<bool> {
    let listener = network::listen(SERVER, &format!("0.0.0.0:{}", sidecar::INBOUND_PORT))?;
    let received = Arc::<AtomicUsize>::default();
    let standing = tokio::spawn(stand(listener, wire::asking(certified, &[&TLS13]), received.clone()));
    let mut stream = network::dial(0)?;
    let talking = async {
        stream.write_all(b"hello").await?;
        stream.read_exact(&mut [0; 5]).await
    };
    let answered = timeout(SILENCE, talking).await;
    standing.abort();
    // Its listener must be gone before the next one binds.
    let _ = standing.await;
    Ok(matches!(answered, Ok(Ok(_))) || received.load(Ordering::SeqCst) > 0)
}

async fn stand(listener: TcpListener, config: ServerConfig, received: Arc<AtomicUsize>) {
    let acceptor = TlsAcceptor::from(Arc::new(config));
    while let Ok((stream, _)) = listener.accept().await {
        if let Ok(stream) = acceptor.accept(stream).await {
            tokio::spawn(converse(stream, false, received.clone()));
        }
    }
}
