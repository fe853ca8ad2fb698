//! The client of the pod's resolvers: over UDP from a fresh socket under a random number, over TCP where the answer does
//! not fit, one resolver after the other.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    ops::RangeInclusive,
    time::Duration,
};

use domain::base::iana::Rcode;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    time::{Instant, timeout_at},
};

use super::wire::{Answer, Query};
use crate::telemetry;

/// As many resolvers as a `resolv.conf` may have.
const MOST: usize = 3;
/// How long one resolver may take before the next is asked.
const ATTEMPT: Duration = Duration::from_millis(1500);
/// How long all of them may take; applications ask again after five seconds.
const ALL: Duration = Duration::from_secs(4);
/// Above `ip_local_port_range` (ip-sysctl): nobody gets one of these by chance.
const PORTS: RangeInclusive<u16> = 61_000..=65_535;
/// So often a port may be taken.
const PORT_ATTEMPTS: usize = 16;
/// More than we said that we can take over UDP.
const DATAGRAM: usize = 4096;

/// The pod's resolvers.
#[derive(Debug)]
pub(super) struct Resolvers(Vec<SocketAddr>);

impl Resolvers {
    /// The first of `addresses`.
    pub(super) fn new(addresses: &[SocketAddr]) -> Self {
        Self(addresses.iter().copied().take(MOST).collect())
    }

    /// The one that is asked first.
    pub(super) fn first(&self) -> Option<SocketAddr> {
        self.0.first().copied()
    }

    /// Asks one after the other until one knows; `None` = nobody answered. A lonely resolver is asked twice.
    pub(super) async fn ask(&self, query: &Query) -> Option<Answer> {
        let all = Instant::now() + ALL;
        let mut last = None;
        let rounds = if self.0.len() == 1 { 2 } else { 1 };
        for resolver in self.0.iter().cycle().take(self.0.len() * rounds) {
            let until = all.min(Instant::now() + ATTEMPT);
            match timeout_at(until, exchange(*resolver, query)).await {
                Ok(Ok(answer)) => match answer.rcode() {
                    Some(Rcode::SERVFAIL | Rcode::REFUSED | Rcode::NOTIMP) => last = Some(answer),
                    _ => return Some(answer),
                },
                Ok(Err(error)) => tracing::debug!(%resolver, %error, "resolver failed"),
                Err(_) => tracing::debug!(%resolver, "resolver is silent"),
            }
            if last.is_some() && rounds > 1 {
                break;
            }
        }
        last
    }
}

async fn exchange(resolver: SocketAddr, query: &Query) -> io::Result<Answer> {
    let answer = over_udp(resolver, query).await?;
    if answer.is_truncated() { over_tcp(resolver, query).await } else { Ok(answer) }
}

fn compose(query: &Query) -> io::Result<(u16, Vec<u8>)> {
    let id = u16::from_be_bytes(telemetry::random());
    Ok((id, query.compose(id).ok_or(io::ErrorKind::InvalidData)?))
}

async fn over_udp(resolver: SocketAddr, query: &Query) -> io::Result<Answer> {
    let (id, message) = compose(query)?;
    let socket = fresh(resolver).await?;
    // The kernel then hands over nothing that another address sent.
    socket.connect(resolver).await?;
    socket.send(&message).await?;
    let mut buffer = vec![0; DATAGRAM];
    loop {
        let length = socket.recv(&mut buffer).await?;
        // What answers something else is forged or late; the right answer may still come.
        if let Some(answer) = Answer::parse(buffer[..length].to_vec(), query, id) {
            return Ok(answer);
        }
    }
}

/// A socket at a random port that the kernel gives to no application that does not ask for it by number. Conntrack knows a
/// question by its numbers alone and remembers it for a while: one of the application's under the same ones as one of ours
/// would leave as it is, and one of ours would come back to the guard.
async fn fresh(resolver: SocketAddr) -> io::Result<UdpSocket> {
    let any = if resolver.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    for _ in 0..PORT_ATTEMPTS {
        let port = PORTS.start() + u16::from_be_bytes(telemetry::random()) % (PORTS.end() - PORTS.start() + 1);
        if let Ok(socket) = UdpSocket::bind(SocketAddr::new(any, port)).await {
            return Ok(socket);
        }
    }
    Err(io::ErrorKind::AddrInUse.into())
}

async fn over_tcp(resolver: SocketAddr, query: &Query) -> io::Result<Answer> {
    let (id, message) = compose(query)?;
    let mut stream = TcpStream::connect(resolver).await?;
    write_framed(&mut stream, &message).await?;
    let answer = read_framed(&mut stream).await?;
    let answer = Answer::parse(answer, query, id).filter(|answer| !answer.is_truncated());
    answer.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Writes a message behind its length (RFC 1035 §4.2.2).
pub(super) async fn write_framed(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(|_| io::ErrorKind::InvalidData)?;
    let framed = [&length.to_be_bytes(), message].concat();
    stream.write_all(&framed).await
}

/// Reads one.
pub(super) async fn read_framed(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let length = stream.read_u16().await?;
    let mut message = vec![0; usize::from(length)];
    stream.read_exact(&mut message).await?;
    Ok(message)
}
