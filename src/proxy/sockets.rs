//! Sockets: listeners, options, and where an intercepted connection wanted to go.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    os::fd::AsFd,
    time::Duration,
};

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::tls::Stream;
use crate::{
    identity::DnsName,
    refusal::{DestinationDetail, Refusal, TimeoutDetail},
};

/// A short queue hurts when a whole rollout reconnects at once.
const BACKLOG: i32 = 4096;
/// How long the peer may leave what we sent unacknowledged.
const USER_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a refused peer may take to read why, and how much of what it said meanwhile is passed over.
const FAREWELL: Duration = Duration::from_millis(500);
const MOST_UNREAD: u64 = 64 * 1024;
/// Deadline of a dial.
const CONNECT: Duration = Duration::from_secs(5);

/// How a listener learns where an accepted connection wanted to go.
#[derive(Clone, Debug)]
pub enum Intercepted {
    /// The kernel's record of the redirect, `SO_ORIGINAL_DST`.
    OriginalDestination,
    /// Fixed pairs, listen address → destination: for tests and benchmarks without interception rules.
    Fixed(HashMap<SocketAddr, SocketAddr>),
}

impl Intercepted {
    /// Where `stream` wanted to go. A connection that was not redirected is a direct dial of the proxy and refused:
    /// the kernel then answers with the listener's own address, or with an error.
    pub(super) fn destination(&self, stream: &TcpStream) -> Result<SocketAddr, Refusal> {
        let direct = Refusal::ForbiddenDestination(DestinationDetail::OwnPort);
        let local = stream.local_addr().map_err(|_| direct)?;
        let found = match self {
            Self::OriginalDestination => original(stream, local).ok_or(direct)?,
            Self::Fixed(pairs) => *pairs.get(&local).ok_or(direct)?,
        };
        let found = SocketAddr::new(found.ip().to_canonical(), found.port());
        if found == local { Err(direct) } else { Ok(found) }
    }
}

fn original(stream: &TcpStream, local: SocketAddr) -> Option<SocketAddr> {
    let socket = SockRef::from(stream);
    let answer = if local.is_ipv4() { socket.original_dst_v4() } else { socket.original_dst_v6() };
    answer.ok()?.as_socket()
}

/// Binds a listener. IPv6 sockets never take IPv4 connections: each family has its own.
pub(super) fn listen(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = bound(address, false)?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Binds `count` listeners of one address, among which the kernel deals its connections out (`SO_REUSEPORT`).
///
/// The first one takes the address for itself alone, so that one that is taken already is an error. What they accept is
/// prepared: the kernel passes a listener's options on.
fn listen_together(address: SocketAddr, count: usize, over_network: bool) -> io::Result<Vec<std::net::TcpListener>> {
    let first = bound(address, false)?;
    first.set_reuse_port(true)?;
    let mut all = vec![carrying(first, over_network)?];
    let address = all[0].local_addr()?;
    for _ in 1..count {
        all.push(carrying(bound(address, true)?, over_network)?);
    }
    Ok(all)
}

fn carrying(socket: Socket, over_network: bool) -> io::Result<std::net::TcpListener> {
    prepare(&socket, over_network)?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn bound(address: SocketAddr, together: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(together)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

/// Binds all of `addresses`. An IPv6 address on a machine without IPv6 is left out; every other failure is one.
pub(super) fn listen_all(addresses: &[SocketAddr]) -> io::Result<Vec<std::net::TcpListener>> {
    every(addresses, listen)
}

/// Binds all of `addresses`, each `count` times: the listeners of one address stand together.
pub(super) fn listen_all_together(
    addresses: &[SocketAddr],
    count: usize,
    over_network: bool,
) -> io::Result<Vec<Vec<std::net::TcpListener>>> {
    every(addresses, |address| listen_together(address, count, over_network))
}

fn every<L>(addresses: &[SocketAddr], listen: impl Fn(SocketAddr) -> io::Result<L>) -> io::Result<Vec<L>> {
    let mut listeners = Vec::new();
    for &address in addresses {
        match listen(address) {
            Ok(listener) => listeners.push(listener),
            Err(error) if address.is_ipv6() && lacks_ipv6(&error) => {
                tracing::info!(%address, "no IPv6 here, not listening");
            }
            Err(error) => return Err(io::Error::new(error.kind(), format!("cannot listen on {address}: {error}"))),
        }
    }
    let none = listeners.is_empty() && !addresses.is_empty();
    if none { Err(io::ErrorKind::AddrNotAvailable.into()) } else { Ok(listeners) }
}

/// Binds datagram sockets to all of `addresses`.
pub(super) fn bind_all(addresses: &[SocketAddr]) -> io::Result<Vec<std::net::UdpSocket>> {
    let bind = |address: &SocketAddr| {
        let socket = std::net::UdpSocket::bind(address)
            .map_err(|error| io::Error::new(error.kind(), format!("cannot bind UDP {address}: {error}")))?;
        socket.set_nonblocking(true)?;
        Ok(socket)
    };
    addresses.iter().map(bind).collect()
}

fn lacks_ipv6(error: &io::Error) -> bool {
    // EAFNOSUPPORT has no kind of its own.
    const EAFNOSUPPORT: i32 = 97;
    error.kind() == io::ErrorKind::AddrNotAvailable || error.raw_os_error() == Some(EAFNOSUPPORT)
}

/// Prepares a connection: no delay, keepalive, and a reset instead of a clean end until [`end_cleanly`] says
/// otherwise, so that whatever drops the socket (a refusal, a panic, a cut) never looks like an orderly end.
pub(super) fn prepare(stream: &impl AsFd, over_network: bool) -> io::Result<()> {
    let socket = SockRef::from(stream);
    socket.set_tcp_nodelay(true)?;
    let keepalive = TcpKeepalive::new().with_time(Duration::from_secs(60)).with_interval(Duration::from_secs(10));
    socket.set_tcp_keepalive(&keepalive.with_retries(6))?;
    if over_network {
        socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
    }
    socket.set_linger(Some(Duration::ZERO))
}

/// The connection came to its orderly end: closing sends what is left and FIN.
pub(super) fn end_cleanly(stream: &TcpStream) {
    // It fails only on a socket that is gone, and then there is nothing to end.
    let _ = SockRef::from(stream).set_linger(None);
}

/// Ends our side in order and waits until the peer has ended its own: a reset at once would overtake what we said last,
/// the alert with the reason, and the peer's own bytes that nobody read would cause one.
pub(super) async fn let_it_be_read(stream: &mut TcpStream) {
    let read = async {
        stream.shutdown().await?;
        let mut unread = (&mut *stream).take(MOST_UNREAD);
        tokio::io::copy(&mut unread, &mut tokio::io::sink()).await
    };
    // Whether it worked makes no difference: the connection is refused either way.
    let _ = tokio::time::timeout(FAREWELL, read).await;
}

/// Dials within the deadline.
pub(super) async fn dial(address: SocketAddr, over_network: bool) -> Result<TcpStream, Refusal> {
    match tokio::time::timeout(CONNECT, TcpStream::connect(address)).await {
        Ok(Ok(stream)) => {
            prepare(&stream, over_network).map_err(|_| Refusal::DialFailed)?;
            Ok(stream)
        }
        Ok(Err(_)) => Err(Refusal::DialFailed),
        Err(_) => Err(Refusal::Timeout(TimeoutDetail::Connect)),
    }
}

/// A stream with a TCP socket at its bottom.
pub(super) trait Underlying {
    /// The socket.
    fn socket(&self) -> &TcpStream;
}

impl Underlying for TcpStream {
    fn socket(&self) -> &TcpStream {
        self
    }
}

impl<T: Underlying> Underlying for &mut T {
    fn socket(&self) -> &TcpStream {
        (**self).socket()
    }
}

impl Underlying for tokio_rustls::TlsStream<TcpStream> {
    fn socket(&self) -> &TcpStream {
        self.get_ref().0
    }
}

impl Underlying for Stream {
    fn socket(&self) -> &TcpStream {
        match self {
            Self::Own(tunnel) => tunnel.socket(),
            Self::Rustls(stream) => stream.socket(),
        }
    }
}

/// Whether an accept failed because there is no descriptor (or memory) for one more connection.
pub(super) fn is_exhausted(error: &io::Error) -> bool {
    const EMFILE: i32 = 24;
    const ENFILE: i32 = 23;
    const ENOBUFS: i32 = 105;
    const ENOMEM: i32 = 12;
    matches!(error.raw_os_error(), Some(EMFILE | ENFILE | ENOBUFS | ENOMEM))
}

/// The nameservers of a `resolv.conf`.
pub fn resolvers(resolv_conf: &str) -> Vec<IpAddr> {
    let server = |line: &str| {
        let mut words = line.split_whitespace();
        // A zone (`fe80::1%eth0`) only says which link; the rules match the address.
        (words.next() == Some("nameserver")).then(|| words.next()?.split('%').next()?.parse().ok()).flatten()
    };
    resolv_conf.lines().filter_map(server).collect()
}

/// What a `resolv.conf` completes names with: its last `search` line (resolv.conf(5)).
pub fn search(resolv_conf: &str) -> Vec<DnsName> {
    let domains = |line: &str| {
        let mut words = line.split_whitespace();
        (words.next() == Some("search")).then(|| words.filter_map(|name| DnsName::parse(name).ok()).collect())
    };
    resolv_conf.lines().filter_map(domains).next_back().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_listener_accepts_is_prepared() {
        for over_network in [true, false] {
            let listener = listen_together("127.0.0.1:0".parse().unwrap(), 1, over_network).unwrap().remove(0);
            listener.set_nonblocking(false).unwrap();
            let _caller = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (accepted, _) = listener.accept().unwrap();
            let socket = SockRef::from(&accepted);
            assert!(socket.tcp_nodelay().unwrap() && socket.keepalive().unwrap());
            assert_eq!(socket.linger().unwrap(), Some(Duration::ZERO), "what is dropped is a reset");
            assert_eq!(socket.tcp_user_timeout().unwrap(), over_network.then_some(USER_TIMEOUT));
            assert_eq!(socket.tcp_keepalive_time().unwrap(), Duration::from_secs(60));
        }
    }

    #[test]
    fn only_nameserver_lines_of_a_resolv_conf_are_resolvers() {
        let text = "search svc.cluster.local\nnameserver 10.96.0.10\n# nameserver 1.1.1.1\nnameserver fe80::1%eth0\n\
                    nameserver nonsense\noptions ndots:5\n";
        let expected: Vec<IpAddr> = vec!["10.96.0.10".parse().unwrap(), "fe80::1".parse().unwrap()];
        assert_eq!(resolvers(text), expected);
        assert_eq!(search(text), [DnsName::parse("svc.cluster.local").unwrap()]);
        assert_eq!(search("search a b\nsearch c\n"), [DnsName::parse("c").unwrap()]);
        assert_eq!(search("nameserver 10.0.0.1\n"), []);
    }
}
