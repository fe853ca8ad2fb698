//! Parts that this test binary plays as a process inside a pod: applications and their clients.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr, ToSocketAddrs},
    path::PathBuf,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    time::timeout,
};

pub(crate) use super::crowds::{Calls, Crowd, Stall, Talk};
use super::{crowds, support::dns::Ask};

/// Environment: the part, JSON.
pub(crate) const PART: &str = "ENTENTE_NET_PART";

/// So long a client waits before it says that nothing happened.
const WAIT: Duration = Duration::from_secs(2);

/// What to play, and where to write what came of it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Part {
    pub(crate) act: Act,
    pub(crate) result: PathBuf,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Act {
    /// Accepts on each address and echoes; the result appears when it listens, and counts connections.
    Echo(Vec<SocketAddr>),
    /// Sends a text over TCP and expects it back.
    Call(SocketAddr, String),
    /// The same, by name: to the first address that unmodified software finds.
    CallByName(String, u16, String),
    /// A text sent and expected back again and again on one connection, until it breaks.
    Hold(SocketAddr, String),
    /// Sends a datagram from a port (0 = any) and waits for an answer.
    Datagram(u16, SocketAddr, String),
    /// Echoes datagrams.
    EchoDatagrams(SocketAddr),
    /// Asks a resolver one question; the result is a [`Told`](super::support::dns::Told).
    Ask(Ask),
    /// Looks a name up as unmodified software does (getaddrinfo); the result is a list of addresses.
    LookUp(String),
    /// Sends a packet of any protocol, by its number.
    Packet(i32, SocketAddr, String),
    /// Holds so many connections open, silently.
    Idle(SocketAddr, usize),
    /// Calls so many times, one after the other; the result is [`Calls`].
    Calls(SocketAddr, String, usize),
    /// Opens connections from all addresses of a network that say little and then nothing; the result is [`Crowd`].
    Stall(Stall),
    /// Opens connections that talk for as long as they live; the result is [`Crowd`].
    Talk(Talk),
}

/// How a client fared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Fared {
    /// It was answered.
    Answered,
    /// Connected, then reset or closed.
    Reset,
    /// Not even connected.
    Refused,
    /// Nothing came.
    Silence,
}

/// Plays a part where the harness asks for one; as a test of its own it promises nothing.
#[test]
fn part() {
    let Some(part) = std::env::var_os(PART) else { return };
    let part: Part = serde_json::from_str(part.to_str().unwrap()).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(play(part));
}

async fn play(part: Part) {
    let Part { act, result } = part;
    let tell = |what: &str| {
        let beside = result.with_extension("new");
        std::fs::write(&beside, what).unwrap();
        std::fs::rename(beside, &result).unwrap();
    };
    let fared = match act {
        Act::Echo(addresses) => return echo(&addresses, tell).await,
        Act::EchoDatagrams(address) => return echo_datagrams(address, tell).await,
        Act::Ask(ask) => return tell(&serde_json::to_string(&ask.play().await).unwrap()),
        Act::LookUp(name) => return tell(&serde_json::to_string(&look_up(&name)).unwrap()),
        Act::Call(address, text) => call(address, &text).await,
        Act::CallByName(name, port, text) => match look_up(&name).pop_first() {
            Some(address) => call((address, port).into(), &text).await,
            None => Fared::Refused,
        },
        Act::Hold(address, text) => hold(address, &text, &tell).await,
        Act::Packet(protocol, to, text) => packet(protocol, to, &text),
        Act::Idle(address, count) => return idle(address, count, tell).await,
        Act::Calls(address, text, count) => return crowds::calls(address, &text, count, tell).await,
        Act::Stall(stall) => return crowds::stall(stall, tell).await,
        Act::Talk(talk) => return crowds::talk(talk, tell).await,
        Act::Datagram(from, to, text) => datagram(from, to, &text).await,
    };
    tell(&serde_json::to_string(&fared).unwrap());
}

fn look_up(name: &str) -> BTreeSet<IpAddr> {
    (name, 443).to_socket_addrs().map(|found| found.map(|address| address.ip()).collect()).unwrap_or_default()
}

async fn echo(addresses: &[SocketAddr], tell: impl Fn(&str)) {
    let (arrived, mut arrivals) = tokio::sync::mpsc::unbounded_channel();
    for address in addresses {
        let listener = TcpListener::bind(address).await.unwrap();
        let arrived = arrived.clone();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                arrived.send(()).unwrap();
                tokio::spawn(async move {
                    let (mut read, mut write) = stream.split();
                    let _ = tokio::io::copy(&mut read, &mut write).await;
                });
            }
        });
    }
    let mut count = 0;
    tell("0");
    while arrivals.recv().await.is_some() {
        count += 1;
        tell(&count.to_string());
    }
}

async fn echo_datagrams(address: SocketAddr, tell: impl Fn(&str)) {
    let socket = UdpSocket::bind(address).await.unwrap();
    tell("0");
    let mut buffer = [0; 2048];
    while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
        let _ = socket.send_to(&buffer[..length], from).await;
    }
}

pub(crate) async fn once(stream: &mut TcpStream, text: &str) -> Fared {
    let talk = async {
        stream.write_all(text.as_bytes()).await?;
        let mut answer = vec![0; text.len()];
        stream.read_exact(&mut answer).await.map(|_| answer)
    };
    match timeout(WAIT, talk).await {
        Ok(Ok(answer)) => {
            assert_eq!(answer, text.as_bytes());
            Fared::Answered
        }
        Ok(Err(_)) => Fared::Reset,
        Err(_) => Fared::Silence,
    }
}

pub(crate) async fn call(address: SocketAddr, text: &str) -> Fared {
    match timeout(WAIT, TcpStream::connect(address)).await {
        Ok(Ok(mut stream)) => once(&mut stream, text).await,
        // The reset may be there before the connect is reported.
        Ok(Err(error)) if error.kind() == std::io::ErrorKind::ConnectionReset => Fared::Reset,
        Ok(Err(_)) => Fared::Refused,
        Err(_) => Fared::Silence,
    }
}

async fn hold(address: SocketAddr, text: &str, tell: &impl Fn(&str)) -> Fared {
    let Ok(mut stream) = TcpStream::connect(address).await else { return Fared::Refused };
    loop {
        match once(&mut stream, text).await {
            Fared::Answered => tell("talking"),
            end => return end,
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn datagram(from: u16, to: SocketAddr, text: &str) -> Fared {
    let local = SocketAddr::new(if to.is_ipv4() { [0, 0, 0, 0].into() } else { [0_u16; 8].into() }, from);
    let socket = UdpSocket::bind(local).await.unwrap();
    // A rule that drops answers with an error; to the sender both are silence.
    if socket.send_to(text.as_bytes(), to).await.is_err() {
        return Fared::Refused;
    }
    let mut buffer = [0; 2048];
    match timeout(WAIT, socket.recv_from(&mut buffer)).await {
        Ok(Ok((length, _))) if buffer[..length] == *text.as_bytes() => Fared::Answered,
        _ => Fared::Silence,
    }
}

fn packet(protocol: i32, to: SocketAddr, text: &str) -> Fared {
    let socket = Socket::new(Domain::for_address(to), Type::RAW, Some(Protocol::from(protocol))).unwrap();
    match socket.send_to(text.as_bytes(), &SocketAddr::new(to.ip(), 0).into()) {
        Ok(_) => Fared::Silence,
        Err(_) => Fared::Refused,
    }
}

async fn idle(address: SocketAddr, count: usize, tell: impl Fn(&str)) {
    let mut held = vec![];
    for _ in 0..count {
        // A reset may be there before the connect is reported.
        held.extend(TcpStream::connect(address).await);
    }
    tell("0");
    std::future::pending::<()>().await;
}
