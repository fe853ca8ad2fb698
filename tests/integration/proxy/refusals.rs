//! What is not declared is refused, each with its own reason in metric and report; nothing reaches the application.

use std::{net::SocketAddr, sync::Arc};

use entente::brief::{Allow, Mode};
use jiff::SignedDuration;
use rcgen::{ExtendedKeyUsagePurpose, SanType};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::TlsAcceptor;

use super::harness::{PORT, Plan, Seen, Sidecar, address, control, read_out, say_and_read_out};
use crate::support::{
    applications::{Application, Behaviour},
    control::Server,
    domain::{Certified, Domain, instant},
    eventually, soon, wire,
};

const NAME: &str = "server.sip.contoso.example";

struct Guarded {
    control: Arc<Server>,
    application: Application,
    server: Sidecar,
}

/// A server whose only port admits `client` and nobody else.
async fn guarded() -> Guarded {
    let control = control().await;
    let ip = address();
    let application = Application::start(ip, Behaviour::Echo).await;
    let allow = Allow::servers([control.domain.id("client")]);
    let server = Plan::new(&control, "server", ip)
        .port_for(Mode::MutualTls, application.address, allow)
        .arriving_for(SocketAddr::new(ip, 9999))
        .arriving_for(SocketAddr::new(address(), PORT))
        .start()
        .await;
    Guarded { control, application, server }
}

impl Guarded {
    async fn refuses(&self, certificate: Option<Certified>, reason: &str) {
        let config = wire::client(certificate);
        let served = wire::is_served(wire::connect(self.server.inbound[0], config, NAME).await).await;
        assert!(!served, "{reason}: was served");
        self.server.refused("inbound", reason, 1).await;
        assert_eq!(self.application.accepted(), 0, "{reason}: the application was dialled");
    }
}

#[tokio::test]
async fn a_caller_without_certificate_is_refused() {
    guarded().await.refuses(None, "NoCertificate").await;
}

#[tokio::test]
async fn a_self_signed_caller_is_refused() {
    let guarded = guarded().await;
    let certificate = guarded.control.domain.self_signed("client");
    guarded.refuses(Some(certificate), "UntrustedRoot").await;
}

#[tokio::test]
async fn a_caller_of_another_authority_is_refused() {
    guarded().await.refuses(Some(Domain::new().certificate("client")), "UntrustedRoot").await;
}

#[tokio::test]
async fn an_expired_caller_is_refused() {
    let guarded = guarded().await;
    let certificate = guarded.control.domain.forge("client", |params, now| {
        params.not_before = instant(now - SignedDuration::from_hours(24));
        params.not_after = instant(now - SignedDuration::from_mins(1));
    });
    guarded.refuses(Some(certificate), "Expired").await;
}

#[tokio::test]
async fn a_caller_that_is_not_valid_yet_is_refused() {
    let guarded = guarded().await;
    let certificate = guarded.control.domain.forge("client", |params, now| {
        params.not_before = instant(now + SignedDuration::from_hours(1));
        params.not_after = instant(now + SignedDuration::from_hours(2));
    });
    guarded.refuses(Some(certificate), "NotYetValid").await;
}

#[tokio::test]
async fn a_caller_whose_certificate_is_for_servers_only_is_refused() {
    let guarded = guarded().await;
    let certificate = guarded.control.domain.forge("client", |params, _| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    });
    guarded.refuses(Some(certificate), "WrongUsage").await;
}

#[tokio::test]
async fn a_caller_with_two_identities_is_refused() {
    let guarded = guarded().await;
    let other = guarded.control.domain.id("other").to_string();
    let certificate = guarded.control.domain.forge("client", |params, _| {
        params.subject_alt_names.push(SanType::URI(other.as_str().try_into().unwrap()));
    });
    guarded.refuses(Some(certificate), "BadName").await;
}

#[tokio::test]
async fn a_declared_server_that_the_port_does_not_name_is_refused() {
    let guarded = guarded().await;
    let certificate = guarded.control.domain.certificate("stranger");
    guarded.refuses(Some(certificate), "NotInTopology").await;
    let peer = guarded.control.look(|world| world.pods[&guarded.server.home.uid].refusals[0].peer.clone());
    assert_eq!(peer, guarded.control.domain.id("stranger").to_string(), "it is named, not only its address");
}

#[tokio::test]
async fn a_caller_that_names_another_server_or_protocol_is_refused() {
    let guarded = guarded().await;
    let config = wire::client(Some(guarded.control.domain.certificate("client")));
    let served = wire::connect(guarded.server.inbound[0], config, "other.sip.contoso.example").await;
    assert!(!wire::is_served(served).await);
    guarded.server.refused("inbound", "HandshakeFailed", 1).await;
    let mut config = wire::client(Some(guarded.control.domain.certificate("client")));
    config.alpn_protocols = vec![b"h2".to_vec()];
    assert!(!wire::is_served(wire::connect(guarded.server.inbound[0], config, NAME).await).await);
    guarded.server.refused("inbound", "BadAlpn", 1).await;
    assert_eq!(guarded.application.accepted(), 0);
}

#[tokio::test]
async fn plaintext_to_a_tls_port_is_refused_at_its_first_byte() {
    let guarded = guarded().await;
    let mut stream = TcpStream::connect(guarded.server.inbound[0]).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    assert_eq!(read_out(&mut stream).await, (vec![], Seen::Reset));
    guarded.server.refused("inbound", "NotTls", 1).await;
    assert_eq!(guarded.application.accepted(), 0);
}

#[tokio::test]
async fn a_caller_that_stalls_is_closed_at_the_deadline() {
    let guarded = guarded().await;
    let mut silent = TcpStream::connect(guarded.server.inbound[0]).await.unwrap();
    let mut stalled = TcpStream::connect(guarded.server.inbound[0]).await.unwrap();
    stalled.write_all(&[0x16, 0x03, 0x01, 0x02, 0x00]).await.unwrap();
    let began = tokio::time::Instant::now();
    let (one, other) = tokio::join!(read_out(&mut silent), read_out(&mut stalled));
    assert_eq!([one.1, other.1], [Seen::Reset, Seen::Reset]);
    assert!(began.elapsed() < std::time::Duration::from_secs(7));
    guarded.server.refused("inbound", "Timeout", 2).await;
    assert_eq!(guarded.application.accepted(), 0);
}

#[tokio::test]
async fn one_source_cannot_hold_more_than_its_share_of_handshakes() {
    let guarded = guarded().await;
    let mut stalled = vec![];
    for _ in 0..64 {
        stalled.push(TcpStream::connect(guarded.server.inbound[0]).await.unwrap());
    }
    let mut one_too_many = TcpStream::connect(guarded.server.inbound[0]).await.unwrap();
    assert_eq!(read_out(&mut one_too_many).await.1, Seen::Reset);
    guarded.server.refused("inbound", "Limit", 1).await;
}

#[tokio::test]
async fn an_undeclared_port_and_another_pods_address_are_refused() {
    let guarded = guarded().await;
    for (listener, reason) in [(1, "PortNotAllowed"), (2, "ForbiddenDestination")] {
        let config = wire::client(Some(guarded.control.domain.certificate("client")));
        assert!(!wire::is_served(wire::connect(guarded.server.inbound[listener], config, NAME).await).await);
        guarded.server.refused("inbound", reason, 1).await;
    }
    assert_eq!(guarded.application.accepted(), 0);
}

#[tokio::test]
async fn a_direct_dial_of_the_proxys_own_port_is_refused() {
    let control = control().await;
    let ip = address();
    let plan = Plan::new(&control, "server", ip);
    let sidecar = plan.calls_undeclared(SocketAddr::new(ip, 15_000)).start().await;
    let mut stream = sidecar.open(0).await;
    assert_eq!(read_out(&mut stream).await.1, Seen::Reset);
    sidecar.refused("outbound", "ForbiddenDestination", 1).await;
}

#[tokio::test]
async fn before_its_first_brief_a_proxy_refuses_everything_and_says_so() {
    let control = control().await;
    let ip = address();
    let application = Application::start(ip, Behaviour::Echo).await;
    let sidecar = Plan::new(&control, "server", ip)
        .port(Mode::MutualTls, application.address)
        .calls_undeclared(application.address)
        .without_brief()
        .launch();
    eventually("certificate", || async { (sidecar.fetch("/ready").await.1 == "NotReady [noBrief]\n").then_some(()) })
        .await;
    let config = wire::client(Some(control.domain.certificate("client")));
    assert!(!wire::is_served(wire::connect(sidecar.inbound[0], config, NAME).await).await);
    assert_eq!(read_out(&mut sidecar.open(0).await).await.1, Seen::Reset);
    sidecar.refused("inbound", "NotReady", 1).await;
    assert_eq!(sidecar.fetch("/live").await.0, 200);
    assert_eq!(application.accepted(), 0);
}

#[tokio::test]
async fn an_undeclared_address_or_port_is_refused_to_our_application() {
    let control = control().await;
    let outside = Application::start(address(), Behaviour::Echo).await;
    let declared = Application::start(address(), Behaviour::Echo).await;
    let elsewhere = SocketAddr::new(declared.address.ip(), 9);
    let client = Plan::new(&control, "client", address())
        .calls_undeclared(outside.address)
        .calls(elsewhere, &control.domain.id("server"), Mode::MutualTls)
        .calls_undeclared(declared.address)
        .start()
        .await;
    assert_eq!(read_out(&mut client.open(0).await).await.1, Seen::Reset);
    client.refused("outbound", "DestinationNotDeclared", 1).await;
    assert_eq!(read_out(&mut client.open(2).await).await.1, Seen::Reset);
    client.refused("outbound", "PortNotAllowed", 1).await;
    assert_eq!(outside.accepted() + declared.accepted(), 0);
}

/// A TLS server of the test's own, where a declared one is expected; answers whether it ever read a byte.
async fn impostor(certificate: Certified) -> (SocketAddr, tokio::task::JoinHandle<bool>) {
    let listener = TcpListener::bind((address(), 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(wire::server(certificate)));
    let heard = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        match acceptor.accept(stream).await {
            Ok(mut stream) => stream.read_u8().await.is_ok(),
            Err(_) => false,
        }
    });
    (address, heard)
}

#[tokio::test]
async fn a_wrong_server_gets_no_byte_of_the_call() {
    let control = control().await;
    let expired = |domain: &Domain| {
        domain.forge("server", |params, now| {
            params.not_before = instant(now - SignedDuration::from_hours(24));
            params.not_after = instant(now - SignedDuration::from_mins(1));
        })
    };
    let nameless = |domain: &Domain| domain.forge("server", |params, _| params.subject_alt_names.truncate(1));
    let cases = [
        (control.domain.certificate("impostor"), "WrongServer"),
        (nameless(&control.domain), "WrongServer"),
        (control.domain.self_signed("server"), "UntrustedRoot"),
        (Domain::new().certificate("server"), "UntrustedRoot"),
        (expired(&control.domain), "Expired"),
    ];
    for (certificate, reason) in cases {
        let (there, heard) = impostor(certificate).await;
        let id = control.domain.id("server");
        let client = Plan::new(&control, "client", address()).calls(there, &id, Mode::MutualTls).start().await;
        let mut stream = client.open(0).await;
        assert_eq!(say_and_read_out(&mut stream, b"the secret").await.1, Seen::Reset, "{reason}");
        client.refused("outbound", reason, 1).await;
        assert!(!soon("impostor done", heard).await.unwrap(), "{reason}: a byte arrived");
    }
}

/// Dials of a refused peer in a row.
const DIALS: u32 = 60;

#[tokio::test]
async fn what_the_far_proxy_refuses_is_a_reset_here_and_called_peer_refused() {
    let guarded = guarded().await;
    let id = guarded.control.domain.id("server");
    let stranger = Plan::new(&guarded.control, "stranger", address());
    let stranger = stranger.calls(guarded.server.inbound[0], &id, Mode::MutualTls).start().await;
    // A reset could overtake the alert that says why: each of many dials must learn it.
    for _ in 0..DIALS {
        let mut stream = stranger.open(0).await;
        assert_eq!(say_and_read_out(&mut stream, b"let me in").await, (vec![], Seen::Reset));
    }
    stranger.refused("outbound", "PeerRefused", DIALS).await;
    guarded.server.refused("inbound", "NotInTopology", DIALS).await;
    assert_eq!(guarded.application.accepted(), 0);
}

#[tokio::test]
async fn a_stream_that_ends_without_close_notify_is_a_reset_and_called_truncated() {
    let control = control().await;
    let listener = TcpListener::bind((address(), 0)).await.unwrap();
    let there = listener.local_addr().unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(wire::server(control.domain.certificate("server"))));
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut stream = acceptor.accept(stream).await.unwrap();
        stream.write_all(b"half a").await.unwrap();
        stream.flush().await.unwrap();
        // FIN without close_notify.
        stream.get_mut().0.shutdown().await.unwrap();
        let _ = stream.read_u8().await;
    });
    let id = control.domain.id("server");
    let client = Plan::new(&control, "client", address()).calls(there, &id, Mode::MutualTls).start().await;
    let (came, end) = read_out(&mut client.open(0).await).await;
    assert_eq!((came.as_slice(), end), (b"half a".as_slice(), Seen::Reset));
    eventually("counted", || async { (client.reasons().await.get("Truncated") == Some(&1)).then_some(()) }).await;
}

#[tokio::test]
async fn a_declared_server_that_is_not_there_is_a_reset_and_called_dial_failed() {
    let control = control().await;
    let gone = TcpListener::bind((address(), 0)).await.unwrap().local_addr().unwrap();
    let id = control.domain.id("server");
    let client = Plan::new(&control, "client", address()).calls(gone, &id, Mode::MutualTls).start().await;
    assert_eq!(read_out(&mut client.open(0).await).await.1, Seen::Reset);
    eventually("counted", || async { (client.reasons().await.get("DialFailed") == Some(&1)).then_some(()) }).await;
}
